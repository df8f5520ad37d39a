//! The way to the control plane over TLS and mutual TLS, and ways that lead nowhere: what the log says about each.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::*;

/// An authority that signs what the test needs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    fn sign(&self, name: &str) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Signed {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Signed {
    fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }

    /// Arguments that show it to the control plane.
    fn args(&self, folder: &Path, name: &str) -> [String; 4] {
        [
            "--control-plane-cert".to_owned(),
            write(folder, &format!("{name}.pem"), &self.certificate),
            "--control-plane-key".to_owned(),
            write(folder, &format!("{name}.key"), &self.key),
        ]
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path: PathBuf = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

/// A node that does not get through, and what it says about it.
#[track_caller]
fn fails(url: &str, args: &[String], expected: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut running = start(folder.path(), url, &args);
    let line = running.wait_log("what is in force stays");
    assert!(line.contains(expected), "{expected}: {line}");
    let shown = running.json("/fleet")["fleet"]["last_end"].to_string();
    assert!(shown.contains(expected), "{expected}: {shown}");
}

#[test]
fn the_control_planes_certificate_must_be_of_the_authority_and_for_the_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let trust = |authority: &Authority, name| {
        let path = write(folder.path(), name, &authority.0.pem());
        vec!["--control-plane-ca".to_owned(), path]
    };
    let (ours_ca, theirs_ca) = (trust(&ours, "ours.pem"), trust(&theirs, "theirs.pem"));

    let tls = ServerTlsConfig::new().identity(ours.sign("localhost").identity());
    let control_plane = ControlPlane::start_tls(tls);
    fails(
        &control_plane.url,
        &theirs_ca,
        "comes from none of the authorities in --control-plane-ca",
    );
    assert!(
        control_plane.enrolled().is_empty(),
        "nothing was told to it"
    );
    let args: Vec<&str> = ours_ca.iter().map(String::as_str).collect();
    let _running = start(folder.path(), &control_plane.url, &args);
    assert_eq!(control_plane.stream().hello().node, "edge-1");

    let tls = ServerTlsConfig::new().identity(ours.sign("elsewhere").identity());
    let control_plane = ControlPlane::start_tls(tls);
    fails(
        &control_plane.url,
        &ours_ca,
        "for another name than --control-plane says",
    );
    assert!(
        control_plane.enrolled().is_empty(),
        "nothing was told to it"
    );
}

#[test]
fn a_control_plane_that_wants_a_certificate_gets_it_or_the_log_says_that_it_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let ca = write(folder.path(), "ca.pem", &ours.0.pem());
    let ca = vec!["--control-plane-ca".to_owned(), ca];
    let tls = ServerTlsConfig::new()
        .identity(ours.sign("localhost").identity())
        .client_ca_root(Certificate::from_pem(ours.0.pem()));
    let control_plane = ControlPlane::start_tls(tls);
    let url = &control_plane.url;
    fails(url, &ca, "wants to see a certificate of this node");
    let stranger = theirs.sign("edge-1").args(folder.path(), "stranger");
    let args = [&ca[..], &stranger].concat();
    fails(
        url,
        &args,
        "does not take the certificate in --control-plane-cert",
    );
    assert!(
        control_plane.enrolled().is_empty(),
        "nothing was told to it"
    );

    let known = ours.sign("edge-1").args(folder.path(), "known");
    let args = [&ca[..], &known].concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let _running = start(folder.path(), url, &args);
    assert_eq!(control_plane.stream().hello().node, "edge-1");
    assert_eq!(control_plane.enrolled().len(), 1);
}

#[test]
fn certificates_that_are_none_end_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new("ours");
    let ca = write(folder.path(), "ca.pem", &ours.0.pem());
    let [_, cert, _, key] = ours.sign("edge-1").args(folder.path(), "own");
    let state = folder.path().join("state");
    let state = state.to_str().expect("UTF-8");
    let token = write(folder.path(), "token", "slj_1_x");
    let base = [
        "--control-plane",
        "https://localhost:1",
        "--node",
        "n",
        "--state-dir",
        state,
        "--join-token-file",
        &token,
    ];
    for (args, expected) in [
        (vec!["--control-plane-ca", "/nonexistent"], "/nonexistent"),
        (
            vec![
                "--control-plane-ca",
                &ca,
                "--control-plane-cert",
                &key,
                "--control-plane-key",
                &cert,
            ],
            "--control-plane-cert",
        ),
    ] {
        let args: Vec<&str> = args.into_iter().chain(base).collect();
        let output = ask(&args, b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(expected),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn a_port_where_no_control_plane_listens_is_said_to_be_one() {
    // A web server that knows nothing but HTTP/1.
    let web = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = web.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in web.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer);
        }
    });
    fails(&format!("http://{address}"), &[], "is no control plane");
    // Whoever is asked for TLS and does not speak it.
    let folder = tempfile::tempdir().expect("a folder");
    let ca = write(folder.path(), "ca.pem", &Authority::new("ours").0.pem());
    let ca = ["--control-plane-ca".to_owned(), ca];
    fails(&format!("https://{address}"), &ca, "does not speak TLS");
    // A gRPC server with other services.
    let other = ControlPlane::start_without_fleet();
    fails(&other.url, &[], "is no control plane");
}
