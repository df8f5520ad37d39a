//! The settings of a node that is under a control plane.
//!
//! Owns their spelling and what of them goes together. It opens nothing; that plaintext stays on this machine is decided
//! here, before anything is sent.

use std::path::PathBuf;

use clap::Args;
use tonic::transport::Uri;

/// Longest name of a node.
const NODE_BYTES_MAX: usize = 64;

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub struct FleetArgs {
    /// Control plane to get the policy from, in the place of --policy: https://host:port, or http:// on loopback only.
    /// What was active last is kept in --state-dir and served without it.
    #[arg(long, env = "SLUICE_CONTROL_PLANE", value_name = "URL")]
    pub control_plane: Option<Uri>,

    /// This node's name in the fleet: 1 to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`.
    #[arg(long, env = "SLUICE_NODE", value_name = "NAME", value_parser = node_name)]
    pub node: Option<String>,

    /// Directory for this node's secret and the last good policy, for one process alone. It is made where it is missing.
    #[arg(long, env = "SLUICE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// File with the join token; needed until the node has joined, not read later.
    #[arg(long, env = "SLUICE_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,

    /// Certificates (PEM) of the authorities that the control plane's certificate may come from. Required with https://.
    #[arg(long, env = "SLUICE_CONTROL_PLANE_CA", value_name = "FILE")]
    pub control_plane_ca: Option<PathBuf>,

    /// This node's certificate (PEM), when the control plane asks for one.
    #[arg(long, env = "SLUICE_CONTROL_PLANE_CERT", value_name = "FILE")]
    pub control_plane_cert: Option<PathBuf>,

    /// The key of --control-plane-cert (PEM).
    #[arg(long, env = "SLUICE_CONTROL_PLANE_KEY", value_name = "FILE")]
    pub control_plane_key: Option<PathBuf>,
}

/// The same, checked.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// The control plane.
    pub url: Uri,
    /// This node's name.
    pub node: String,
    /// What outlives the process.
    pub state_dir: PathBuf,
    /// The join token.
    pub join_token_file: Option<PathBuf>,
    /// Set exactly when the stream is encrypted.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key of this node.
    pub certificate_files: Option<(PathBuf, PathBuf)>,
}

/// Flags that cannot be meant together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFleet {
    /// Neither http nor https, or no host.
    #[error("--control-plane: expected https://host:port, or http://127.0.0.1:port")]
    Url,
    /// Secrets would cross a network in the clear.
    #[error(
        "--control-plane {0}: plaintext is for loopback addresses only, because the stream carries this node's secret and password hashes: use https:// and --control-plane-ca"
    )]
    Plaintext(String),
    /// Whom to trust is not said.
    #[error(
        "--control-plane with https:// needs --control-plane-ca: a file with the certificates to trust, for example the system's /etc/ssl/certs/ca-certificates.crt"
    )]
    NoCa,
    /// A certificate without encryption.
    #[error(
        "--control-plane-ca, --control-plane-cert and --control-plane-key go with https:// only"
    )]
    CertificateForPlaintext,
    /// A flag that does nothing alone.
    #[error(
        "--node, --state-dir, --join-token-file and --control-plane-* go with --control-plane only"
    )]
    NoControlPlane,
    /// A flag is missing.
    #[error("--control-plane needs --node and --state-dir")]
    Incomplete,
    /// Half of a pair.
    #[error("--control-plane-cert and --control-plane-key go together")]
    HalfCertificate,
    /// The URL may be logged and shown.
    #[error(
        "--control-plane holds a user or password; a node shows its join token, by --join-token-file"
    )]
    Login,
}

impl FleetArgs {
    /// Checks what belongs together; `None` without a control plane.
    pub fn settings(&self) -> Result<Option<FleetSettings>, BadFleet> {
        let Some(url) = self.control_plane.clone() else {
            let has_others = self.node.is_some()
                || self.state_dir.is_some()
                || self.join_token_file.is_some()
                || self.control_plane_ca.is_some()
                || self.control_plane_cert.is_some()
                || self.control_plane_key.is_some();
            return if has_others {
                Err(BadFleet::NoControlPlane)
            } else {
                Ok(None)
            };
        };
        let (Some(node), Some(state_dir)) = (self.node.clone(), self.state_dir.clone()) else {
            return Err(BadFleet::Incomplete);
        };
        if url
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(BadFleet::Login);
        }
        if self.control_plane_cert.is_some() != self.control_plane_key.is_some() {
            return Err(BadFleet::HalfCertificate);
        }
        let host = url
            .host()
            .filter(|host| !host.is_empty())
            .ok_or(BadFleet::Url)?;
        let ca_file = self.control_plane_ca.clone();
        let certificate_files = self
            .control_plane_cert
            .clone()
            .zip(self.control_plane_key.clone());
        match url.scheme_str() {
            Some("https") if ca_file.is_none() => return Err(BadFleet::NoCa),
            Some("https") => {}
            Some("http") if !is_loopback(host) => return Err(BadFleet::Plaintext(url.to_string())),
            Some("http") if ca_file.is_some() || certificate_files.is_some() => {
                return Err(BadFleet::CertificateForPlaintext);
            }
            Some("http") => {}
            Some(_) | None => return Err(BadFleet::Url),
        }
        Ok(Some(FleetSettings {
            url,
            node,
            state_dir,
            join_token_file: self.join_token_file.clone(),
            ca_file,
            certificate_files,
        }))
    }
}

/// A name other than `localhost` may lead anywhere.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let address: Result<std::net::IpAddr, _> = address.parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn node_name(text: &str) -> Result<String, String> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=NODE_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_good) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "expected 1 to {NODE_BYTES_MAX} of a-z, A-Z, 0-9, `-`, `_` and `.`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(url: &str, ca: bool, certificate: bool) -> FleetArgs {
        let file = |yes: bool| yes.then(|| PathBuf::from("file.pem"));
        FleetArgs {
            control_plane: Some(url.parse().expect("a URL")),
            node: Some("n".into()),
            state_dir: Some("/var/lib/sluice".into()),
            join_token_file: None,
            control_plane_ca: file(ca),
            control_plane_cert: file(certificate),
            control_plane_key: file(certificate),
        }
    }

    #[test]
    fn plaintext_stays_on_this_machine_and_encryption_knows_whom_to_trust() {
        for (url, ca, certificate, expected) in [
            ("http://127.0.0.1:9400", false, false, Ok(())),
            ("http://127.8.8.8:9400", false, false, Ok(())),
            ("http://[::1]:9400", false, false, Ok(())),
            ("http://localhost:9400", false, false, Ok(())),
            ("https://control.example:9400", true, false, Ok(())),
            ("https://control.example:9400", true, true, Ok(())),
            (
                "https://control.example:9400",
                false,
                false,
                Err(BadFleet::NoCa),
            ),
            (
                "http://control.example:9400",
                false,
                false,
                Err(BadFleet::Plaintext("http://control.example:9400/".into())),
            ),
            (
                "http://10.0.0.1:9400",
                false,
                false,
                Err(BadFleet::Plaintext("http://10.0.0.1:9400/".into())),
            ),
            (
                "http://localhost.evil.example",
                false,
                false,
                Err(BadFleet::Plaintext("http://localhost.evil.example/".into())),
            ),
            (
                "http://127.0.0.1:9400",
                true,
                false,
                Err(BadFleet::CertificateForPlaintext),
            ),
            (
                "http://u:secret@127.0.0.1",
                false,
                false,
                Err(BadFleet::Login),
            ),
            ("ftp://127.0.0.1", false, false, Err(BadFleet::Url)),
            ("127.0.0.1:9400", false, false, Err(BadFleet::Url)),
        ] {
            let found = args(url, ca, certificate).settings().map(|_| ());
            assert_eq!(found, expected, "{url}");
        }
    }

    #[test]
    fn flags_that_would_do_nothing_are_refused() {
        assert!(matches!(FleetArgs::default().settings(), Ok(None)));
        let mut alone = args("http://127.0.0.1", false, false);
        alone.control_plane = None;
        assert_eq!(alone.settings().map(|_| ()), Err(BadFleet::NoControlPlane));
        let key_alone = FleetArgs {
            control_plane_key: Some("k".into()),
            ..FleetArgs::default()
        };
        assert_eq!(
            key_alone.settings().map(|_| ()),
            Err(BadFleet::NoControlPlane)
        );
        let mut half = args("http://127.0.0.1", false, false);
        half.node = None;
        assert_eq!(half.settings().map(|_| ()), Err(BadFleet::Incomplete));
        let mut half = args("https://127.0.0.1", true, true);
        half.control_plane_key = None;
        assert_eq!(half.settings().map(|_| ()), Err(BadFleet::HalfCertificate));
    }

    #[test]
    fn names_of_nodes_are_short_and_plain() {
        for (name, is_good) in [
            ("edge-7.site_A", true),
            (&*"n".repeat(64), true),
            (&*"n".repeat(65), false),
            ("", false),
            ("a b", false),
            ("a/b", false),
            ("\u{e9}", false),
        ] {
            assert_eq!(node_name(name).is_ok(), is_good, "{name:?}");
        }
    }
}
