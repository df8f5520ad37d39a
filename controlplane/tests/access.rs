//! Who may call what, against the real process: refusals, roles, revocation, and secrets that are nowhere to be seen.

#![allow(clippy::expect_used)] // a test that cannot go on ends here

mod common;

use std::collections::BTreeMap;

use common::{PATIENCE, Server, call_empty, with};
use sluice_proto::control::v1 as wire;
use tonic::Code;
use tonic::transport::Channel;
use wire::access_client::AccessClient;
use wire::operations_client::OperationsClient;

const ROLES: [&str; 4] = ["viewer", "auditor", "operator", "admin"];
const STATUS: &str = "/sluice.control.v1.Operations/Status";

async fn token(channel: &Channel, admin: &str, name: &str, role: wire::Role) -> (String, String) {
    let asked = wire::CreateTokenRequest {
        name: name.to_owned(),
        role: role.into(),
        lifetime_secs: None,
    };
    let mut access = AccessClient::new(channel.clone());
    let made = access.create_token(with(admin, asked)).await.expect("made");
    let made = made.into_inner();
    (made.token.expect("a token").id, made.secret)
}

async fn revoke(channel: &Channel, admin: &str, id: &str) -> Result<(), tonic::Status> {
    let asked = wire::RevokeTokenRequest { id: id.to_owned() };
    let mut access = AccessClient::new(channel.clone());
    access.revoke_token(with(admin, asked)).await.map(drop)
}

/// Changes the last digit of a token's secret.
fn wrong(token: &str) -> String {
    let (rest, last) = token.split_at(token.len() - 1);
    format!("{rest}{}", if last == "0" { "1" } else { "0" })
}

#[tokio::test]
async fn c2_refusals_are_counted_by_reason_and_answered_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (channel, admin) = (server.channel(), server.token());
    let (id, revoked) = token(&channel, &admin, "gone", wire::Role::Viewer).await;
    revoke(&channel, &admin, &id).await.expect("revoked");
    let secret = "0".repeat(64);
    let mut texts = Vec::new();
    for (reason, token) in [
        ("no_token", None),
        ("malformed", Some("x".to_owned())),
        ("malformed", Some(format!("sln_node_{secret}"))),
        ("unknown", Some(format!("slc_abcdefghijklmnop_{secret}"))),
        ("wrong_secret", Some(wrong(&admin))),
        ("revoked", Some(revoked)),
    ] {
        let metric = format!("sluice_control_refused_total{{reason=\"{reason}\"}}");
        let before = server.metric(&metric);
        for _ in 0..6 {
            let refused = call_empty(channel.clone(), STATUS, token.as_deref()).await;
            let refused = refused.expect_err(reason);
            assert_eq!(refused.code(), Code::Unauthenticated, "{reason}");
            texts.push(refused.message().to_owned());
        }
        assert_eq!(server.metric(&metric) - before, 6.0, "{reason}");
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    call_empty(channel, STATUS, Some(&admin))
        .await
        .expect("others are not kept out");
    let (_, log) = server.stop();
    let events = log.lines().filter(|line| line.contains("sluice::security"));
    assert!((6..=36).contains(&events.count()), "logged, and bounded");
}

/// Methods of the operators' services by path, and the role that the contract's comment names.
fn methods() -> BTreeMap<String, String> {
    let text = include_str!("../../proto/control/v1/control.proto");
    let (mut methods, mut service, mut comment) = (BTreeMap::new(), "", String::new());
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("//") {
            comment.push_str(rest);
        } else if let Some(rest) = line.strip_prefix("service ") {
            service = rest.trim_end_matches(" {");
            comment.clear();
        } else if let Some(rest) = line.strip_prefix("rpc ") {
            let name = rest.split('(').next().expect("a name");
            let (_, role) = comment.rsplit_once("Role: ").expect(name);
            let role = role.split('.').next().expect("a word").trim();
            methods.insert(
                format!("/sluice.control.v1.{service}/{name}"),
                role.to_owned(),
            );
            comment.clear();
        } else {
            comment.clear();
        }
    }
    methods
}

/// The same paths from what reflection serves, so that no method can be forgotten.
fn described() -> Vec<String> {
    use prost_types::FileDescriptorSet;
    use sluice_proto::Message;
    let files = FileDescriptorSet::decode(sluice_proto::DESCRIPTORS).expect("our own");
    let files = files.file.iter();
    let mut paths: Vec<_> = files
        .filter(|file| file.package() == "sluice.control.v1")
        .flat_map(|file| &file.service)
        .flat_map(|service| {
            let name = service.name();
            let methods = service.method.iter();
            methods.map(move |method| format!("/sluice.control.v1.{name}/{}", method.name()))
        })
        .collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn c4_every_method_asks_for_the_role_that_its_comment_names() {
    let methods = methods();
    assert_eq!(methods.keys().cloned().collect::<Vec<_>>(), described());
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (channel, admin) = (server.channel(), server.token());
    let mut tokens = Vec::new();
    for (name, role) in ROLES.into_iter().zip(1..) {
        let role = wire::Role::try_from(role).expect("a role");
        let (_, secret) = token(&channel, &admin, &format!("a-{name}"), role).await;
        tokens.push((name, secret));
    }
    let mut wrong = Vec::new();
    for (path, least) in &methods {
        let least_at = ROLES.iter().position(|role| role == least);
        let least_at = least_at.unwrap_or_else(|| panic!("{path}: no role `{least}`"));
        let refused = call_empty(channel.clone(), path, None).await;
        if refused.as_ref().map_err(tonic::Status::code) != Err(Code::Unauthenticated) {
            wrong.push(format!("{path} without a token: {refused:?}"));
        }
        for (at, (role, secret)) in tokens.iter().enumerate() {
            let answer = call_empty(channel.clone(), path, Some(secret)).await;
            let code = answer.err().map_or(Code::Ok, |status| status.code());
            let is_good = if at < least_at {
                code == Code::PermissionDenied
            } else {
                let refusals = [
                    Code::PermissionDenied,
                    Code::Unauthenticated,
                    Code::Unimplemented,
                    Code::Internal,
                    Code::Unknown,
                ];
                !refusals.contains(&code)
            };
            if !is_good {
                wrong.push(format!("{path} as {role}, which needs {least}: {code:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let refused = server.metric("sluice_control_refused_total{reason=\"role\"}");
    let below = methods
        .values()
        .map(|least| ROLES.iter().position(|role| role == least));
    let expected: usize = below.map(|at| at.expect("a role")).sum();
    assert_eq!(refused as usize, expected, "each is counted");
}

#[tokio::test]
async fn c5_a_revoked_token_is_refused_and_its_stream_is_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (channel, admin) = (server.channel(), server.token());
    let (id, secret) = token(&channel, &admin, "watcher", wire::Role::Viewer).await;
    let mut nodes = wire::nodes_client::NodesClient::new(channel.clone());
    let watching = nodes
        .watch(with(&secret, wire::ListNodesRequest::default()))
        .await;
    let mut watching = watching.expect("watching").into_inner();
    watching.message().await.expect("open").expect("the fleet");
    revoke(&channel, &admin, &id).await.expect("revoked");
    let refused = call_empty(channel, STATUS, Some(&secret)).await;
    assert_eq!(refused.expect_err("revoked").code(), Code::Unauthenticated);
    let end = async {
        loop {
            match watching.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status.code()),
            }
        }
    };
    let end = tokio::time::timeout(PATIENCE, end).await.expect("cut");
    assert_eq!(end, Some(Code::Unauthenticated));
}

#[tokio::test]
async fn c6_the_last_admin_token_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (channel, admin) = (server.channel(), server.token());
    let first = admin.split('_').nth(1).expect("an id").to_owned();
    let refused = revoke(&channel, &admin, &first)
        .await
        .expect_err("the last");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let (_, second) = token(&channel, &admin, "second", wire::Role::Admin).await;
    revoke(&channel, &second, &first)
        .await
        .expect("one is left");
    let unknown = revoke(&channel, &second, "nobodys")
        .await
        .expect_err("none");
    assert_eq!(unknown.code(), Code::NotFound);
    let refused = call_empty(channel, STATUS, Some(&admin)).await;
    assert_eq!(refused.expect_err("revoked").code(), Code::Unauthenticated);
}

#[tokio::test]
async fn c8_no_secret_is_seen_anywhere_but_where_it_is_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &["--log-level", "trace"]);
    let (channel, admin) = (server.channel(), server.token());
    let (_, viewer) = token(&channel, &admin, "viewer", wire::Role::Viewer).await;
    let mut access = AccessClient::new(channel.clone());
    let asked = wire::CreateJoinTokenRequest::default();
    let join = access
        .create_join_token(with(&admin, asked))
        .await
        .expect("made");
    let join = join.into_inner().secret;
    let _ = call_empty(channel.clone(), STATUS, Some(&wrong(&viewer))).await;
    let _ = call_empty(
        channel.clone(),
        "/sluice.fleet.v1.Fleet/Connect",
        Some(&viewer),
    )
    .await;

    let mut operations = OperationsClient::new(channel);
    let asked = wire::AuditRequest::default();
    let audit = operations
        .audit(with(&admin, asked))
        .await
        .expect("audit")
        .into_inner();
    assert!(
        audit.chain_is_whole && audit.records.len() >= 3,
        "{audit:?}"
    );
    let tokens = access
        .list_tokens(with(&admin, wire::ListTokensRequest {}))
        .await;
    let joins = access
        .list_join_tokens(with(&admin, wire::ListJoinTokensRequest {}))
        .await;
    let mut shown = format!("{audit:?}{tokens:?}{joins:?}");
    for page in ["/metrics", "/readyz?verbose", "/livez", "/"] {
        shown += &server.get(page).1;
    }
    shown += &server.stop().1;
    assert!(shown.contains("token.create"), "the outputs are there");
    for token in [&admin, &viewer, &join] {
        let secret = token.rsplit('_').next().expect("a secret");
        assert_eq!(secret.len(), 64);
        assert!(!shown.contains(&secret[..16]), "{shown}");
    }
}

/// Set in the process that this test starts in a network namespace of its own.
const INSIDE: &str = "SLUICE_TEST_INSIDE_NAMESPACE";
const BEYOND: &str = "10.99.0.1";

#[test]
fn a_token_over_plaintext_from_beyond_loopback_is_refused_unseen() {
    if std::env::var_os(INSIDE).is_some() {
        return beyond_loopback();
    }
    let name = "a_token_over_plaintext_from_beyond_loopback_is_refused_unseen";
    let script = format!(
        "ip link set lo up && ip addr add {BEYOND}/32 dev lo || exit 77; exec \"$0\" --exact {name} --nocapture"
    );
    let output = std::process::Command::new("unshare")
        .args(["-rn", "sh", "-c", &script])
        .arg(std::env::current_exe().expect("this program"))
        .env(INSIDE, "1")
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        // The decision itself is tested in a table; this machine forbids the rest.
        Ok(output) if matches!(output.status.code(), Some(1 | 77)) && !ran(&output.stdout) => {
            eprintln!(
                "no network namespace here: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output) => panic!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => eprintln!("no network namespace here: {error}"),
    }
}

fn ran(stdout: &[u8]) -> bool {
    String::from_utf8_lossy(stdout).contains("running 1 test")
}

#[tokio::main(flavor = "current_thread")]
async fn beyond_loopback() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start_on("0.0.0.0:0", folder.path(), &[]);
    let (admin, port) = (server.token(), server.address.port());
    let to = |host: &str| {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{host}:{port}"));
        endpoint.expect("an address").connect_lazy()
    };
    for token in [&*admin, &wrong(&admin), "x"] {
        let refused = call_empty(to(BEYOND), STATUS, Some(token)).await;
        assert_eq!(
            refused.expect_err("plaintext").code(),
            Code::FailedPrecondition
        );
    }
    let enroll = sluice_proto::v1::EnrollRequest {
        join_token: format!("slj_abcdefghijklmnop_{}", "0".repeat(64)),
        node: "edge".to_owned(),
        secret: vec![0; 32],
    };
    let mut fleet = sluice_proto::v1::fleet_client::FleetClient::new(to(BEYOND));
    let refused = fleet.enroll(enroll).await.expect_err("plaintext");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let counted = server.metric("sluice_control_refused_total{reason=\"plaintext\"}");
    assert_eq!(counted, 4.0);
    call_empty(to("127.0.0.1"), STATUS, Some(&admin))
        .await
        .expect("from here");
    let (_, log) = server.stop();
    assert!(
        log.contains("LISTENS BEYOND THIS MACHINE WITHOUT TLS"),
        "{log}"
    );
}
