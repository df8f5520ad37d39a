//! The connection to the control plane: where, over what, with whose token, and how long to wait.
//!
//! Owns the rule that a token never travels in the clear beyond this machine. The token is read from a file or the
//! environment, held in memory that is wiped, and shown nowhere.

use std::future::Future;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use sluice_proto::control::v1::access_client::AccessClient;
use sluice_proto::control::v1::nodes_client::NodesClient;
use sluice_proto::control::v1::operations_client::OperationsClient;
use sluice_proto::control::v1::policies_client::PoliciesClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::args::{ConnectionArgs, SERVER_DEFAULT};
use super::failure::{Exit, Failure};

/// Longest answer taken: 10,000 nodes with many shards stay below it.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Longest header list taken: a thousand problems of a document travel in one.
const HEADER_BYTES_MAX: u32 = 1 << 20;
/// Longest token file: a token is below 200 bytes.
const TOKEN_BYTES_MAX: u64 = 4096;
/// A document may take this many times as long as another call.
const DOCUMENT_TIMES: u32 = 10;
/// A connection that answers no ping for this long is given up, also while a watch is quiet.
const PING_SECS: u64 = 10;

/// Puts the token on every call.
#[derive(Clone)]
pub(super) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Bearer>;

/// An open connection with a token.
pub(super) struct Connection {
    service: Service,
    call_timeout: Duration,
}

/// Where the control plane is, checked.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// As given.
    pub(super) url: String,
    /// Name or address, without brackets.
    pub(super) host: String,
    /// Given or the scheme's.
    pub(super) port: u16,
    /// True exactly when the connection is encrypted.
    pub(super) is_tls: bool,
}

impl Target {
    /// Checks `--server`.
    pub(super) fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::usage(format!(
                "--server `{url}`: {why}; write `{SERVER_DEFAULT}` or `https://control.example:7443`"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| wrong("no URL"))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(wrong("it must begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("no host"))?;
        if authority.as_str().contains('@') {
            return Err(Failure::usage(
                "--server holds a user or password; tokens come from --token-file or SLUICE_TOKEN",
            ));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("nothing may follow the port"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(wrong("no host"));
        }
        let port = authority
            .port_u16()
            .unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self {
            url: url.to_owned(),
            host,
            port,
            is_tls,
        })
    }

    /// True exactly when what is sent there does not leave this machine, going by how it is written: a name that only
    /// resolves to loopback today does not count.
    pub(super) fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Fails when a token would be readable on its way.
    pub(super) fn check_token_is_safe(&self) -> Result<(), Failure> {
        if self.is_tls || self.is_loopback() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "--server {} is not encrypted and not on this machine: a token is never sent there. Use https:// with --ca, or \
             a tunnel whose end is on 127.0.0.1",
            self.url
        )))
    }
}

/// The address asked for, or the default.
pub(super) fn target(args: &ConnectionArgs) -> Result<Target, Failure> {
    Target::parse(args.server.as_deref().unwrap_or(SERVER_DEFAULT))
}

/// How to reach the target; nothing is opened yet.
pub(super) fn endpoint(args: &ConnectionArgs, target: &Target) -> Result<Endpoint, Failure> {
    let failed = |error: tonic::transport::Error| Failure::usage(chain(&error));
    let mut endpoint = Endpoint::from_shared(target.url.clone())
        .map_err(failed)?
        .connect_timeout(args.connect_timeout)
        .http2_keep_alive_interval(Duration::from_secs(PING_SECS))
        .keep_alive_timeout(Duration::from_secs(PING_SECS))
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .tcp_nodelay(true);
    if target.is_tls {
        endpoint = endpoint
            .tls_config(tls(args)?)
            .map_err(|error| Failure::usage(format!("--ca, --cert or --key: {}", chain(&error))))?;
    } else if args.ca.is_some() || args.cert.is_some() || args.domain.is_some() {
        return Err(Failure::usage(format!(
            "--ca, --cert and --domain are for https; --server is {}",
            target.url
        )));
    }
    Ok(endpoint)
}

fn tls(args: &ConnectionArgs) -> Result<ClientTlsConfig, Failure> {
    let Some(ca) = &args.ca else {
        return Err(Failure::usage(
            "https needs --ca (SLUICE_CA): the file with the certificate that the server's was signed with",
        ));
    };
    let mut config = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read_file(ca)?))
        .timeout(args.connect_timeout);
    if let Some(domain) = &args.domain {
        config = config.domain_name(domain);
    }
    if let (Some(cert), Some(key)) = (&args.cert, &args.key) {
        let key = Zeroizing::new(read_file(key)?);
        config = config.identity(Identity::from_pem(read_file(cert)?, &*key));
    }
    Ok(config)
}

fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::file(path, &error))
}

/// Opens the channel.
pub(super) async fn open(endpoint: &Endpoint, target: &Target) -> Result<Channel, Failure> {
    endpoint.connect().await.map_err(|error| {
        let text = chain(&error);
        let advice = advice(&text).unwrap_or("`sluicectl doctor` says more");
        let message = format!(
            "cannot reach the control plane at {}: {text}; {advice}",
            target.url
        );
        Failure::new(Exit::Away, "unreachable", message)
    })
}

/// What to do about an error of a connection, going by its text: the libraries' types say no more. `None`: nothing special.
pub(super) fn advice(text: &str) -> Option<&'static str> {
    const ADVICE: &[(&[&str], &str)] = &[
        (
            &["UnknownIssuer", "BadSignature"],
            "the server's certificate comes from none of the authorities in --ca",
        ),
        (
            &["not valid for name"],
            "the server's certificate is for another name: use that one in --server, or say it with --domain",
        ),
        (
            &["certificate expired"],
            "the server's certificate has expired, or a clock is wrong",
        ),
        (
            &["CertificateRequired"],
            "the server wants to see a certificate: --cert and --key",
        ),
        (
            &["fatal alert"],
            "the server does not take the certificate in --cert",
        ),
        (
            &["InvalidContentType"],
            "what answers there does not speak TLS: another port, or http://?",
        ),
        (
            &["frame with invalid size", "FRAME_SIZE_ERROR"],
            "what answers there does not speak gRPC: another port, or https://?",
        ),
    ];
    let is_in = |parts: &&[&str]| parts.iter().any(|part| text.contains(part));
    let mut advice = ADVICE.iter();
    advice
        .find(|(parts, _)| is_in(parts))
        .map(|(_, advice)| *advice)
}

/// The token, and what to warn of.
pub(super) fn token(args: &ConnectionArgs) -> Result<(Bearer, Option<String>), Failure> {
    let (text, warning) = match &args.token_file {
        Some(path) => read_token(path)?,
        None => match std::env::var("SLUICE_TOKEN") {
            Ok(text) => (Zeroizing::new(text), None),
            Err(_) => {
                return Err(Failure::new(
                    Exit::Away,
                    "no_token",
                    "no token: name its file with --token-file (SLUICE_TOKEN_FILE), or put it into SLUICE_TOKEN. The control \
                     plane prints the path of the first admin token when it first starts",
                ));
            }
        },
    };
    Ok((bearer(text.trim())?, warning))
}

/// The metadata that carries a token. A text that cannot be one is refused without being shown.
fn bearer(token: &str) -> Result<Bearer, Failure> {
    let wrong = "the token is empty or holds something else than letters, digits and `_`; look at the file \
                 that --token-file names, or at SLUICE_TOKEN";
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if token.is_empty() || !token.bytes().all(is_token) {
        return Err(Failure::usage(wrong));
    }
    let header = Zeroizing::new(format!("Bearer {token}"));
    let mut value = MetadataValue::try_from(header.as_str()).map_err(|_| Failure::usage(wrong))?;
    value.set_sensitive(true);
    Ok(Bearer(value))
}

fn read_token(path: &Path) -> Result<(Zeroizing<String>, Option<String>), Failure> {
    let failed = |error: std::io::Error| Failure::file(path, &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_BYTES_MAX as usize + 1));
    file.take(TOKEN_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > TOKEN_BYTES_MAX {
        return Err(Failure::usage(format!(
            "{}: too long for a token",
            path.display()
        )));
    }
    let warning = (mode & 0o077 != 0).then(|| {
        let mode = mode & 0o777;
        let path = path.display();
        format!("{path} can be used by others (mode {mode:03o}): chmod 600 {path}, and make a new token if in doubt")
    });
    Ok((text, warning))
}

impl Connection {
    /// Connects.
    pub(super) async fn open(
        args: &ConnectionArgs,
        warn: impl FnOnce(&str),
    ) -> Result<Self, Failure> {
        let target = target(args)?;
        target.check_token_is_safe()?;
        let endpoint = endpoint(args, &target)?;
        let (bearer, warning) = token(args)?;
        if let Some(warning) = warning {
            warn(&warning);
        }
        let channel = open(&endpoint, &target).await?;
        Ok(Self::new(channel, bearer, args.call_timeout))
    }

    /// Over an open channel.
    pub(super) fn new(channel: Channel, bearer: Bearer, call_timeout: Duration) -> Self {
        Self {
            service: InterceptedService::new(channel, bearer),
            call_timeout,
        }
    }

    /// Policy and releases.
    pub(super) fn policies(&self) -> PoliciesClient<Service> {
        PoliciesClient::new(self.service.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// The fleet.
    pub(super) fn nodes(&self) -> NodesClient<Service> {
        NodesClient::new(self.service.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Tokens.
    pub(super) fn access(&self) -> AccessClient<Service> {
        AccessClient::new(self.service.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// The control plane itself.
    pub(super) fn operations(&self) -> OperationsClient<Service> {
        OperationsClient::new(self.service.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// How long a call may take.
    pub(super) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// Waits for a call, at most as long as a call may take.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let answer = within(self.call_timeout, call).await?;
        Ok(answer.into_inner())
    }

    /// The same for a call that sends a document.
    pub(super) async fn call_with_document<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let answer = within(self.call_timeout * DOCUMENT_TIMES, call).await?;
        Ok(answer.into_inner())
    }
}

/// What `future` gives, or DEADLINE_EXCEEDED. A write may have been done all the same.
#[allow(clippy::result_large_err)] // tonic's own error, once for each call
pub(super) async fn within<T>(
    timeout: Duration,
    future: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let late = |_| {
        Status::deadline_exceeded(format!(
            "no answer within {} ms; what was asked may have been done",
            timeout.as_millis()
        ))
    };
    tokio::time::timeout(timeout, future).await.map_err(late)?
}

/// An error with its causes in one line: tonic's own texts say little alone.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        for (url, expected) in [
            (
                "http://127.0.0.1:7443",
                Some(("127.0.0.1", 7443, false, true)),
            ),
            ("http://[::1]:7443/", Some(("::1", 7443, false, true))),
            ("http://localhost:1", Some(("localhost", 1, false, true))),
            (
                "http://localhost.example:1",
                Some(("localhost.example", 1, false, false)),
            ),
            (
                "http://127.0.0.1.example",
                Some(("127.0.0.1.example", 80, false, false)),
            ),
            ("http://0.0.0.0:7443", Some(("0.0.0.0", 7443, false, false))),
            (
                "https://control.example",
                Some(("control.example", 443, true, false)),
            ),
            ("control.example:7443", None),
            ("127.0.0.1:7443", None),
            ("ftp://127.0.0.1", None),
            ("http://ann:secret@127.0.0.1", None),
            ("http://127.0.0.1/api", None),
            ("http://127.0.0.1?x", None),
            ("", None),
        ] {
            let found = Target::parse(url);
            let found = found
                .as_ref()
                .map(|t| (t.host.as_str(), t.port, t.is_tls, t.is_loopback()));
            assert_eq!(found.ok(), expected, "{url}");
        }
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear_beyond_this_machine() {
        for (url, is_safe) in [
            ("http://127.0.0.1:1", true),
            ("http://10.0.0.1:1", false),
            ("http://control.example:1", false),
            ("https://control.example:1", true),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(target.check_token_is_safe().is_ok(), is_safe, "{url}");
        }
    }

    #[test]
    fn a_text_that_is_no_token_is_refused_and_not_shown() {
        for (text, is_good) in [
            ("slc_abc_0123", true),
            ("sln_edge-1.a_0123", true),
            ("", false),
            ("hidden words", false),
            ("hidden\nwords", false),
            ("hidd\u{e4}n", false),
        ] {
            let found = bearer(text);
            assert_eq!(found.is_ok(), is_good, "{text:?}");
            if let Err(failure) = found {
                assert!(!failure.text().contains("hidd"), "{}", failure.text());
            }
        }
        let Ok(Bearer(value)) = bearer("slc_abc_0123") else {
            panic!("a good token")
        };
        assert!(!format!("{value:?}").contains("abc"), "{value:?}");
    }

    #[test]
    fn a_token_file_that_others_can_read_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "slc_a_b\n").unwrap();
        for (mode, is_warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let (text, warning) = read_token(&path).unwrap();
            assert_eq!(text.trim(), "slc_a_b");
            assert_eq!(warning.is_some(), is_warned, "{mode:o}");
        }
        std::fs::write(&path, "a".repeat(5000)).unwrap();
        assert!(read_token(&path).is_err());
    }
}
