//! The contract between control plane, data plane and operators, as Rust types. What everything means stands in
//! `fleet/v1/*.proto` and `control/v1/control.proto`.
//!
//! Messages only; the gRPC stubs come with the feature `grpc`, so that what only reads rows pulls in no async runtime.
//! Nothing is checked here: `sluice_policy::convert` does that, and nothing else reads policy rows.
#![forbid(unsafe_code)]

/// What operators ask of the control plane.
pub mod control {
    /// Version 1.
    pub mod v1 {
        #![allow(
            missing_docs,
            clippy::all,
            clippy::use_self,
            clippy::large_types_passed_by_value
        )]
        #![allow(unused_qualifications, elided_lifetimes_in_paths)] // the stubs

        include!(concat!(env!("OUT_DIR"), "/sluice.control.v1.rs"));
    }
}

/// Rows, and the stream between a node and its control plane.
pub mod fleet {
    /// Version 1.
    pub mod v1 {
        #![allow(
            missing_docs,
            clippy::all,
            clippy::use_self,
            clippy::large_types_passed_by_value
        )]
        #![allow(unused_qualifications, elided_lifetimes_in_paths)] // the stubs

        include!(concat!(env!("OUT_DIR"), "/sluice.fleet.v1.rs"));
    }
}

pub use fleet::v1;

/// All files of the contract, as a serialized `FileDescriptorSet`: what gRPC reflection serves.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fleet.bin"));

pub use prost::{DecodeError, Message};

impl std::fmt::Debug for v1::User {
    /// Leaves the hash out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("groups", &self.groups)
            .field("client_id", &self.client_id)
            .field("client_id_pattern", &self.client_id_pattern)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for v1::RowChange {
    /// Leaves the row out, which may be a user's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowChange")
            .field("key", &self.key)
            .field("bytes", &self.row.as_ref().map(bytes::Bytes::len))
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for v1::EnrollRequest {
    /// Leaves token and secret out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrollRequest")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for control::v1::CreateTokenResponse {
    /// Leaves the secret out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateTokenResponse")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for control::v1::CreateJoinTokenResponse {
    /// Leaves the secret out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateJoinTokenResponse")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for control::v1::DocumentPart {
    /// Leaves the text out, which holds password hashes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DocumentPart").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for control::v1::BackupPart {
    /// Leaves the bytes out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupPart").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_password_is_not_shown() {
        let row = v1::Row {
            name: "ann".into(),
            kind: Some(v1::row::Kind::User(v1::User {
                password_hash: Some("secret".into()),
                ..v1::User::default()
            })),
            ..v1::Row::default()
        };
        let change = v1::RowChange {
            key: None,
            row: Some(row.encode_to_vec().into()),
        };
        let chunk = v1::GenerationChunk {
            changes: vec![change],
            ..v1::GenerationChunk::default()
        };
        let secret_as_numbers = "115, 101, 99, 114";
        for shown in [format!("{row:?}"), format!("{chunk:?}")] {
            assert!(
                !shown.contains("secret") && !shown.contains(secret_as_numbers),
                "{shown}"
            );
        }
    }

    #[test]
    fn an_unknown_enum_number_survives_decoding_so_that_it_can_be_refused() {
        let rule = v1::Rule {
            decision: 77,
            ..v1::Rule::default()
        };
        let read = v1::Rule::decode(rule.encode_to_vec().as_slice()).unwrap();
        assert_eq!(read.decision, 77);
        assert!(v1::Effect::try_from(read.decision).is_err());
    }
}
