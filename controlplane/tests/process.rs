//! The process from outside: start, settings, restart, TLS, readiness, backup, and its end.

#![allow(clippy::expect_used)] // a test that cannot go on ends here

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{PATIENCE, Server, call_empty, command, with};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sluice_proto::control::v1 as wire;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use wire::operations_client::OperationsClient;
use wire::policies_client::PoliciesClient;

const STATUS: &str = "/sluice.control.v1.Operations/Status";
const POLICY: &str = include_str!("../../deploy/examples/policy.yaml");

fn failing(args: &[&str]) -> (Option<i32>, String) {
    let output = command().args(args).output().expect("the program");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

async fn apply(
    channel: &Channel,
    token: &str,
    expected_newest: u64,
    text: String,
) -> wire::ApplyResponse {
    use wire::document_part::Part;
    let header = wire::DocumentHeader {
        expected_newest: Some(expected_newest),
        ..wire::DocumentHeader::default()
    };
    let parts = [Part::Header(header), Part::Text(text.into())];
    let parts = parts.map(|part| wire::DocumentPart { part: Some(part) });
    let request = with(token, tokio_stream::iter(parts));
    let mut policies = PoliciesClient::new(channel.clone());
    policies.apply(request).await.expect("applied").into_inner()
}

#[test]
fn c17_settings_that_cannot_be_meant_are_all_told() {
    let (code, text) = failing(&[
        "--tls-key",
        "k",
        "--tls-client-ca",
        "c",
        "--admin",
        "127.0.0.1:7443",
    ]);
    assert_eq!(code, Some(2), "{text}");
    for part in ["--tls-key needs", "--tls-client-ca needs", "two servers"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for args in [
        &["--no-such-flag"][..],
        &["--listen", "nowhere"],
        &["--release-within", "0s"],
        &["--log-format", "xml"],
        &["token", "--name", "a/b"],
        &["token"],
    ] {
        assert_eq!(failing(args).0, Some(2), "{args:?}");
    }
    let output = command().env("SLUICE_CONTROL_LISTEN", "x").output();
    assert_eq!(output.expect("the program").status.code(), Some(2));
}

#[test]
fn a_store_that_cannot_be_used_ends_the_start_with_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let shown = folder.path().display().to_string();
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--data-dir",
        &shown,
    ];
    let server = Server::start(folder.path(), &[]);
    let (code, text) = failing(&args);
    assert_eq!(code, Some(1), "{text}");
    let (token_code, token_text) = failing(&["token", "--name", "x", "--data-dir", &shown]);
    assert_eq!(token_code, Some(1), "{token_text}");
    server.kill();
    for file in ["store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(file));
    }
    std::fs::write(folder.path().join("store.db"), [b'x'; 8192]).expect("written");
    let (code, text) = failing(&args);
    assert_eq!(code, Some(1), "{text}");
    let errors: Vec<_> = text.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(errors[0].contains(&shown), "{text}");
}

#[tokio::test]
async fn the_first_token_is_a_file_and_a_lost_one_is_replaced_offline() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let path = folder.path().join("admin.token");
    let mode = std::fs::metadata(&path)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (status, _) = server.stop();
    assert_eq!(status.code(), Some(0));
    std::fs::remove_file(&path).expect("lost");

    let shown = folder.path().display().to_string();
    let args = ["token", "--data-dir", &shown, "--name", "rescue"];
    assert_eq!(failing(&args).0, Some(0));
    assert_eq!(failing(&args).0, Some(1), "the name is taken");
    let token = std::fs::read_to_string(folder.path().join("rescue.token")).expect("a file");
    let server = Server::start(folder.path(), &[]);
    assert!(
        !path.exists(),
        "only a store without tokens gets one by itself"
    );
    call_empty(server.channel(), STATUS, Some(token.trim()))
        .await
        .expect("it works");
}

#[tokio::test]
async fn c13_after_a_restart_everything_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let token = server.token();
    let first = apply(&server.channel(), &token, 0, POLICY.to_owned()).await;
    let first = first
        .generation
        .and_then(|generation| generation.id)
        .expect("an id");
    assert_eq!(first.number, 1);
    server.kill();
    let server = Server::start(folder.path(), &[]);
    let (channel, more) = (server.channel(), format!("{POLICY}\n# again\n"));
    let same = apply(&channel, &token, 1, more).await;
    assert!(same.unchanged, "the store still has it");
    let request = wire::ReleaseRequest {
        generation: 1,
        expected_released: Some(0),
        comment: None,
    };
    let mut policies = PoliciesClient::new(channel);
    policies
        .release(with(&token, request))
        .await
        .expect("released");
}

#[tokio::test]
async fn c22_a_backup_taken_while_others_write_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (channel, token) = (server.channel(), server.token());
    let writer = tokio::spawn({
        let (channel, token) = (channel.clone(), token.clone());
        async move {
            let mut access = wire::access_client::AccessClient::new(channel);
            for number in 0..40 {
                let asked = wire::CreateTokenRequest {
                    name: format!("t{number}"),
                    role: wire::Role::Viewer.into(),
                    lifetime_secs: Some(60),
                };
                access
                    .create_token(with(&token, asked))
                    .await
                    .expect("made");
            }
        }
    });
    let mut operations = OperationsClient::new(channel);
    let request = with(&token, wire::BackupRequest {});
    let mut parts = operations
        .backup(request)
        .await
        .expect("begun")
        .into_inner();
    let mut file = Vec::new();
    while let Some(part) = parts.message().await.expect("a part") {
        assert!(part.bytes.len() <= 64 * 1024);
        file.extend_from_slice(&part.bytes);
    }
    writer.await.expect("written");
    let left = std::fs::read_dir(folder.path())
        .expect("a folder")
        .flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().contains("backup"));
    assert_eq!(left.count(), 0, "no copy stays");

    let other = tempfile::tempdir().expect("a folder");
    std::fs::write(other.path().join("store.db"), &file).expect("written");
    let copy = Server::start(other.path(), &[]);
    let mut operations = OperationsClient::new(copy.channel());
    let request = with(&token, wire::AuditRequest::default());
    let audit = operations
        .audit(request)
        .await
        .expect("the same token")
        .into_inner();
    assert!(audit.chain_is_whole);
}

#[test]
fn c23_readyz_says_when_the_store_is_gone_and_livez_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get("/readyz").0, 200);
    assert_eq!(server.get("/livez").0, 200);
    std::fs::remove_dir_all(folder.path()).expect("gone");
    let (code, body) = server.get("/readyz?verbose");
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("store: "), "{body}");
    assert_eq!(server.get("/livez").0, 200);
}

#[test]
fn a_signal_ends_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("\"stopped\""), "{log}");
}

struct Papers {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn papers() -> Papers {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
    let signed = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let cert = params.signed_by(&key, &ca).expect("signed");
        (cert.pem(), key.serialize_pem())
    };
    Papers {
        server: signed("localhost"),
        client: signed("operator"),
        ca: ca.pem(),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn tls_channel(server: &Server, tls: ClientTlsConfig) -> Channel {
    let endpoint = Endpoint::from_shared(format!("https://localhost:{}", server.address.port()));
    let tls = tls.domain_name("localhost");
    let endpoint = endpoint
        .expect("an address")
        .tls_config(tls)
        .expect("certificates");
    endpoint.connect_timeout(PATIENCE).connect_lazy()
}

#[tokio::test]
async fn tls_and_mutual_tls() {
    let (folder, papers) = (tempfile::tempdir().expect("a folder"), papers());
    let cert = write(folder.path(), "cert.pem", &papers.server.0);
    let key = write(folder.path(), "key.pem", &papers.server.1);
    let ca = write(folder.path(), "ca.pem", &papers.ca);
    let data_dir = folder.path().join("data");
    let roots = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&papers.ca));

    let server = Server::start(&data_dir, &["--tls-cert", &cert, "--tls-key", &key]);
    let token = server.token();
    let mut operations = OperationsClient::new(tls_channel(&server, roots()));
    let status = operations
        .status(with(&token, wire::StatusRequest {}))
        .await;
    assert!(status.expect("served").into_inner().is_tls);
    assert!(
        call_empty(server.channel(), STATUS, Some(&token))
            .await
            .is_err(),
        "no plaintext there"
    );
    let (_, log) = server.stop();
    assert!(
        log.contains("the private key can be read by others"),
        "{log}"
    );

    let mutual = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca,
    ];
    let server = Server::start(&data_dir, &mutual);
    let stranger = call_empty(tls_channel(&server, roots()), STATUS, Some(&token)).await;
    assert!(stranger.is_err(), "no certificate");
    let identity = Identity::from_pem(&papers.client.0, &papers.client.1);
    let known = tls_channel(&server, roots().identity(identity));
    call_empty(known.clone(), STATUS, Some(&token))
        .await
        .expect("served");
    let no_token = call_empty(known, STATUS, None)
        .await
        .expect_err("a certificate is no token");
    assert_eq!(no_token.code(), Code::Unauthenticated);
}

#[test]
fn bad_certificates_end_the_start() {
    let (folder, papers) = (tempfile::tempdir().expect("a folder"), papers());
    let cert = write(folder.path(), "cert.pem", &papers.server.0);
    let key = write(folder.path(), "key.pem", &papers.server.1);
    let other = write(folder.path(), "other.pem", &papers.client.1);
    let data_dir = folder.path().join("data").display().to_string();
    for (cert, key, named) in [
        ("/nonexistent", &*key, "/nonexistent"),
        (&*cert, "/nonexistent", "/nonexistent"),
        (&*key, &*key, "--tls-cert"),
        (&*cert, &*cert, "--tls-key"),
        (&*cert, &*other, "cannot be used together"),
    ] {
        let args = [
            "--data-dir",
            &data_dir,
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ];
        let args = [&args[..], &["--tls-cert", cert, "--tls-key", key]].concat();
        let (code, text) = failing(&args);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(named), "{named}: {text}");
    }
    assert!(!Path::new(&data_dir).exists(), "nothing was made");
}

#[tokio::test]
async fn a_certificate_is_taken_without_a_restart_and_a_broken_pair_is_not() {
    use rcgen::date_time_ymd;
    let folder = tempfile::tempdir().expect("a folder");
    let made = |year| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let cert = params.self_signed(&key).expect("signed");
        (cert.pem(), key.serialize_pem())
    };
    let (first, second, third) = (made(2900), made(2901), made(2902));
    let cert = write(folder.path(), "cert.pem", &first.0);
    let key = write(folder.path(), "key.pem", &first.1);
    let data_dir = folder.path().join("data");
    let server = Server::start(&data_dir, &["--tls-cert", &cert, "--tls-key", &key]);
    let token = server.token();
    let ask = async |root: &str| {
        let roots = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root));
        let mut operations = OperationsClient::new(tls_channel(&server, roots));
        let status = operations
            .status(with(&token, wire::StatusRequest {}))
            .await;
        status.map(tonic::Response::into_inner)
    };
    let before = ask(&first.0).await.expect("the first");
    assert_eq!(before.certificate_problem, "");
    let ends = server.metric("sluice_control_certificate_expiration_timestamp_seconds");
    let expected = before.certificate_expires_unix_ms.expect("it has one") as f64 / 1e3;
    assert_eq!(ends, expected);
    assert!((29e9..30e9).contains(&ends), "in the year 2900: {ends}");

    // The certificate alone is another's: the old pair stays, and it is said.
    write(folder.path(), "cert.pem", &second.0);
    until(async || {
        let status = ask(&first.0).await.expect("still the first");
        status
            .certificate_problem
            .contains("cannot be used together")
    })
    .await;
    let reloads = |result: &str| {
        server.metric(&format!(
            "sluice_control_certificate_reloads_total{{result=\"{result}\"}}"
        ))
    };
    assert!(reloads("failed") >= 1.0 && reloads("done") == 0.0);
    write(folder.path(), "key.pem", &second.1);
    until(async || {
        ask(&second.0)
            .await
            .is_ok_and(|status| status.certificate_problem.is_empty())
    })
    .await;
    assert!(
        ask(&first.0).await.is_err(),
        "the old one is not shown any more"
    );

    // By another file under the same name, as secrets are mounted.
    let next = |name: &str, text: &str| {
        let beside = write(folder.path(), "next", text);
        std::fs::rename(beside, folder.path().join(name)).expect("renamed");
    };
    next("key.pem", &third.1);
    next("cert.pem", &third.0);
    until(async || ask(&third.0).await.is_ok()).await;
    let (_, log) = server.stop();
    assert!(log.contains("the one before stays"), "{log}");
    assert!(!log.contains("expires within"), "{log}");
}

#[test]
fn a_certificate_near_its_end_is_warned_of_at_the_start() {
    let (folder, key) = (
        tempfile::tempdir().expect("a folder"),
        KeyPair::generate().expect("a key"),
    );
    let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let cert = params.self_signed(&key).expect("signed");
    let cert = write(folder.path(), "cert.pem", &cert.pem());
    let key = write(folder.path(), "key.pem", &key.serialize_pem());
    let data_dir = folder.path().join("data");
    let server = Server::start(&data_dir, &["--tls-cert", &cert, "--tls-key", &key]);
    let (_, log) = server.stop();
    assert!(log.contains("HAS EXPIRED"), "{log}");
}

/// Asks again and again, with no pause but what the answer takes.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let asking = async { while !holds().await {} };
    let in_time = tokio::time::timeout(PATIENCE, asking).await;
    in_time.expect("in time");
}
