//! How a command ends: exit codes, and failures with what, where and what to do.
//!
//! The one place where gRPC statuses become exit codes.

use serde_json::{Value, json};
use sluice_proto::Message;
use sluice_proto::control::v1::DocumentProblems;
use tonic::{Code, Status};

use super::connect;
use super::render::{self, problems};

/// Exit codes, documented in `--help`. Scripts depend on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Done.
    Done = 0,
    /// The policy document is wrong, or a node rejected the generation.
    Wrong = 1,
    /// The command is wrong, or a local file cannot be read or written.
    Usage = 2,
    /// Done, but not on every node.
    Partly = 3,
    /// Someone else was first.
    Conflict = 4,
    /// The control plane cannot be reached, or does not let this token in.
    Away = 5,
    /// The control plane says no for another reason.
    Refused = 6,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a command was not done.
#[derive(Debug)]
pub(super) struct Failure {
    /// The exit code.
    pub(super) exit: Exit,
    /// For programs; one of a closed set.
    pub(super) code: &'static str,
    /// What went wrong, where, and what to do.
    pub(super) message: String,
    /// What is wrong with a document, and what it is called.
    pub(super) document: Option<Box<(String, DocumentProblems)>>,
    /// Under which the control plane's log has it.
    pub(super) request_id: Option<String>,
}

impl Failure {
    /// One without a place.
    pub(super) fn new(exit: Exit, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            exit,
            code,
            message: message.into(),
            document: None,
            request_id: None,
        }
    }

    /// The command is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    /// A local file.
    pub(super) fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        let message = format!("{}: {error}", path.display());
        Self::new(Exit::Usage, "file", message)
    }

    /// A document is wrong.
    pub(super) fn document(file: &str, problems: DocumentProblems) -> Self {
        let count = problems.problems.len() as u64 + problems.left_off;
        let message = format!("{file}: {}", render::count(count, "problem"));
        Self {
            document: Some(Box::new((file.to_owned(), problems))),
            ..Self::new(Exit::Wrong, "document", message)
        }
    }

    /// The control plane's answer to a call that brought no document.
    pub(super) fn from_status(status: &Status) -> Self {
        let (exit, code, advice) = meaning(status);
        let said = render::clean(status.message());
        let message = match (said.is_empty(), advice.is_empty()) {
            (true, true) => format!("the control plane answered {:?}", status.code()),
            (true, false) => advice.to_owned(),
            (false, true) => said,
            (false, false) => format!("{said}; {advice}"),
        };
        let id = status.metadata().get("x-request-id");
        Self {
            request_id: id.and_then(|id| id.to_str().ok()).map(str::to_owned),
            ..Self::new(exit, code, message)
        }
    }

    /// The control plane's answer to a call with a document: its problems, if that is what is wrong.
    pub(super) fn from_document_status(status: &Status, file: &str) -> Self {
        let is_about_the_text =
            status.code() == Code::InvalidArgument && !status.details().is_empty();
        match DocumentProblems::decode(status.details()) {
            Ok(problems) if is_about_the_text && !problems.problems.is_empty() => Self {
                request_id: Self::from_status(status).request_id,
                ..Self::document(file, problems)
            },
            _ => Self::from_status(status),
        }
    }

    /// For people, on standard error; without the last line's end.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if let Some((file, found)) = self.document.as_deref() {
            text.push_str(&problems::text(file, found));
        }
        text.push_str("error: ");
        text.push_str(&self.message);
        if let Some(id) = &self.request_id {
            text.push_str(&format!(" (request {})", render::clean(id)));
        }
        text
    }

    /// For programs, on standard output.
    pub(super) fn json(&self) -> Value {
        let document = self.document.as_deref();
        json!({ "error": {
            "code": self.code,
            "exit": self.exit as u8,
            "message": self.message,
            "request_id": self.request_id,
            "file": document.map(|(file, _)| file),
            "problems": document.map_or_else(|| json!([]), |(_, found)| problems::json(found)),
            "problems_left_off": document.map_or(0, |(_, found)| found.left_off),
        }})
    }
}

/// True exactly when the status was made on this side, because the connection failed.
pub(super) fn is_unreachable(status: &Status) -> bool {
    let is_ours = std::error::Error::source(status).is_some();
    let codes = [
        Code::Unavailable,
        Code::Unknown,
        Code::Internal,
        Code::Cancelled,
    ];
    is_ours && codes.contains(&status.code())
}

/// Exit code, word and advice for a status.
#[allow(clippy::wildcard_enum_match_arm)] // what is not named is another reason, also in versions to come
fn meaning(status: &Status) -> (Exit, &'static str, &'static str) {
    if is_unreachable(status) {
        let advice = connect::advice(&connect::chain(status)).unwrap_or(
            "the connection to the control plane broke; try again. Where it always does: it may want https://, and a server that \
             wants to see a certificate, or another one than that in --cert, ends it so too (--cert, --key)",
        );
        return (Exit::Away, "unreachable", advice);
    }
    match status.code() {
        Code::Aborted => (
            Exit::Conflict,
            "conflict",
            "someone else was first: look at `sluicectl history` and try again",
        ),
        Code::Unauthenticated => (
            Exit::Away,
            "unauthenticated",
            "this one is unknown here, expired or revoked: name another with --token-file, SLUICE_TOKEN_FILE or SLUICE_TOKEN",
        ),
        Code::PermissionDenied => (
            Exit::Away,
            "permission_denied",
            "use a token with the role that is needed",
        ),
        Code::DeadlineExceeded => (Exit::Away, "deadline", "try a longer --call-timeout"),
        Code::InvalidArgument => (Exit::Usage, "invalid_argument", ""),
        Code::NotFound => (Exit::Refused, "not_found", ""),
        Code::AlreadyExists => (Exit::Refused, "already_exists", ""),
        Code::FailedPrecondition => (Exit::Refused, "failed_precondition", ""),
        Code::ResourceExhausted => (Exit::Refused, "resource_exhausted", ""),
        Code::Unavailable => (Exit::Refused, "unavailable", ""),
        Code::Unimplemented => (
            Exit::Refused,
            "unimplemented",
            "the control plane is older than this sluicectl, or something else answers there",
        ),
        _ => (Exit::Refused, "other", ""),
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::DocumentProblem;
    use tonic::metadata::MetadataMap;

    use super::*;

    #[test]
    fn every_status_has_its_exit_code() {
        for (code, exit) in [
            (Code::Aborted, 4),
            (Code::Unauthenticated, 5),
            (Code::PermissionDenied, 5),
            (Code::DeadlineExceeded, 5),
            (Code::InvalidArgument, 2),
            (Code::NotFound, 6),
            (Code::AlreadyExists, 6),
            (Code::FailedPrecondition, 6),
            (Code::ResourceExhausted, 6),
            (Code::Unavailable, 6),
            (Code::Unimplemented, 6),
            (Code::Internal, 6),
            (Code::Unknown, 6),
            (Code::DataLoss, 6),
        ] {
            let failure = Failure::from_status(&Status::new(code, "said so"));
            assert_eq!(failure.exit as u8, exit, "{code:?}");
            assert!(
                failure.message.starts_with("said so"),
                "{code:?}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn what_the_server_calls_unavailable_is_not_taken_for_a_broken_connection() {
        let from_wire = Status::unavailable("the store cannot be used: disk I/O error");
        assert_eq!(Failure::from_status(&from_wire).exit, Exit::Refused);
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let ours = Status::from_error(Box::new(error));
        assert_eq!(Failure::from_status(&ours).exit, Exit::Away);
    }

    #[test]
    fn the_problems_of_a_document_come_out_of_the_details() {
        let problem = DocumentProblem {
            line: 3,
            column: 5,
            message: "unknown key `nmae`".into(),
        };
        let details = DocumentProblems {
            problems: vec![problem],
            left_off: 2,
        };
        let mut metadata = MetadataMap::new();
        metadata.insert("x-request-id", "r-1".parse().unwrap());
        let status = Status::with_details_and_metadata(
            Code::InvalidArgument,
            "the document is wrong",
            details.encode_to_vec().into(),
            metadata,
        );
        let failure = Failure::from_document_status(&status, "p.yaml");
        assert_eq!(failure.exit, Exit::Wrong);
        assert_eq!(
            failure.text(),
            "p.yaml:3:5: unknown key `nmae`\np.yaml: and 2 more problems\nerror: p.yaml: 3 problems (request r-1)"
        );
        let json = failure.json();
        assert_eq!(json["error"]["problems"][0]["line"], 3);
        assert_eq!(json["error"]["exit"], 1);
        // Details that are something else are not made into problems.
        let other = Status::with_details(Code::InvalidArgument, "no header", vec![0xff].into());
        assert_eq!(
            Failure::from_document_status(&other, "p.yaml").exit,
            Exit::Usage
        );
    }
}
