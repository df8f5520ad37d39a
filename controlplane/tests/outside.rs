//! The process from outside: how it ends, what it says of itself, and what its settings do.

#![allow(clippy::expect_used)] // a test that cannot go on ends here

mod common;
mod frames;

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use common::{PATIENCE, Server, call_empty, command, with};
use frames::{END_HEADERS, END_STREAM, Frames, HEADERS, headers};
use rustix::process::Signal;
use sluice_proto::control::v1 as wire;
use sluice_proto::v1::{EnrollRequest, fleet_client::FleetClient};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use wire::access_client::AccessClient;
use wire::document_part::Part;
use wire::nodes_client::NodesClient;
use wire::operations_client::OperationsClient;
use wire::policies_client::PoliciesClient;

const STATUS: &str = "/sluice.control.v1.Operations/Status";
const CUT: &str = "calls that were still under way were cut";

/// A call over a connection of its own, answered with headers and no more: the caller takes no byte of the message.
fn unread_call(server: &Server) -> Frames {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut frames = Frames::open(server.address, &[(INITIAL_WINDOW_SIZE, 0)]);
    let bearer = format!("Bearer {}", server.token());
    let more = [
        ("content-type", "application/grpc"),
        ("authorization", &*bearer),
    ];
    let block = headers(STATUS, &more);
    frames.send(HEADERS, END_HEADERS, 1, &block);
    frames.send(frames::DATA, END_STREAM, 1, &[0; 5]);
    frames.until(HEADERS, 1).expect("an answer begins");
    frames
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let _frames = unread_call(&server);
    // Two kinds, because a second of one kind may be merged with the first.
    server.signal(Signal::TERM);
    server.signal(Signal::INT);
    let (status, log) = server.wait();
    let code = status.code().expect("it ended by itself");
    assert!([130, 143].contains(&code), "{code}: {log}");
    assert!(log.contains("a second signal"), "{log}");
}

#[tokio::test]
async fn who_keeps_an_idle_connection_does_not_delay_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    // This runtime has one thread, which waits for the process: nobody answers its GOAWAY or its pings.
    call_empty(server.channel(), STATUS, Some(&server.token()))
        .await
        .expect("served");
    let channel = server.channel();
    call_empty(channel.clone(), STATUS, Some(&server.token()))
        .await
        .expect("served");
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains(CUT), "{log}");
    drop(channel);
}

#[tokio::test]
async fn open_streams_are_told_that_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let mut nodes = NodesClient::new(server.channel());
    let asked = wire::ListNodesRequest::default();
    let watching = nodes.watch(with(&server.token(), asked)).await;
    let mut watching = watching.expect("watching").into_inner();
    watching.message().await.expect("open").expect("the fleet");
    let health = HealthCheckRequest::default();
    let mut healths = HealthClient::new(server.channel());
    let healths = healths.watch(health).await.expect("watching");
    let mut healths = healths.into_inner();
    healths.message().await.expect("open").expect("a state");
    let mut policies = PoliciesClient::new(server.channel());
    let mut behind = policies.clone();
    let never = with(&server.token(), tokio_stream::pending());
    let uploading = tokio::spawn(async move { policies.validate(never).await.map(drop) });
    tokio::task::yield_now().await;
    // Asked behind the upload's headers on the same connection: when it is answered, the upload is under way.
    let asked = with(&server.token(), wire::HistoryRequest::default());
    behind.history(asked).await.expect("answered");
    server.signal(Signal::TERM);
    let told = timeout(PATIENCE, async {
        let watching = loop {
            match watching.message().await {
                Ok(Some(_)) => {}
                end => break end.map(drop),
            }
        };
        let healths = loop {
            match healths.message().await {
                Ok(Some(_)) => {}
                end => break end.map(drop),
            }
        };
        [watching, healths, uploading.await.expect("it ends")]
    });
    for told in told.await.expect("told") {
        assert_eq!(told.expect_err("told").code(), Code::Unavailable);
    }
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains(CUT), "{log}");
}

/// A connection that takes little at a time.
async fn narrow(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address));
    let endpoint = endpoint.expect("an address");
    let endpoint = endpoint.initial_stream_window_size(Some(16 * 1024));
    let endpoint = endpoint.initial_connection_window_size(Some(64 * 1024));
    endpoint.connect().await.expect("connected")
}

async fn apply(server: &Server, text: String) -> wire::Generation {
    let header = wire::DocumentHeader {
        expected_newest: Some(0),
        ..wire::DocumentHeader::default()
    };
    let pieces = text.into_bytes();
    let pieces = pieces.chunks(1 << 20);
    let pieces = pieces.map(|piece| Part::Text(piece.to_vec().into()));
    let parts = std::iter::once(Part::Header(header)).chain(pieces);
    let parts: Vec<_> = parts
        .map(|part| wire::DocumentPart { part: Some(part) })
        .collect();
    let request = with(&server.token(), tokio_stream::iter(parts));
    let mut policies = PoliciesClient::new(server.channel());
    let applied = policies.apply(request).await.expect("applied");
    applied.into_inner().generation.expect("a generation")
}

#[tokio::test]
async fn c22_one_backup_at_a_time_and_none_for_who_has_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("backup-00.part"), b"left").expect("written");
    let server = Server::start(folder.path(), &[]);
    assert!(!folder.path().join("backup-00.part").exists());
    let topics = "x".repeat(600);
    let rule = |n| {
        format!("  - {{name: r{n}, actions: publish, topics: [{topics}{n}], decision: allow}}\n")
    };
    let rules: String = (0..1500).map(rule).collect();
    apply(&server, format!("rules:\n{rules}")).await;
    let mut first = OperationsClient::new(narrow(&server).await);
    let begun = first.backup(with(&server.token(), wire::BackupRequest {}));
    let mut begun = begun.await.expect("begun").into_inner();
    begun.message().await.expect("open").expect("a part");
    let mut second = OperationsClient::new(server.channel());
    let refused = second.backup(with(&server.token(), wire::BackupRequest {}));
    let refused = refused.await.expect_err("one at a time");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop((begun, first));
    let again = async {
        loop {
            let asked = with(&server.token(), wire::BackupRequest {});
            match second.backup(asked).await {
                Ok(begun) => return begun.into_inner(),
                Err(refused) => assert_eq!(refused.code(), Code::ResourceExhausted),
            }
        }
    };
    let mut again = timeout(PATIENCE, again).await.expect("the place is free");
    let mut bytes = 0;
    while let Some(part) = again.message().await.expect("a part") {
        bytes += part.bytes.len();
    }
    assert!(bytes > 800_000, "{bytes}");
}

#[tokio::test]
async fn health_is_told_for_each_service_and_changes_with_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    let mut health = HealthClient::new(server.channel());
    let asked = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    for service in [
        "sluice.control.v1.Policies",
        "sluice.control.v1.Nodes",
        "sluice.control.v1.Access",
        "sluice.control.v1.Operations",
        "sluice.fleet.v1.Fleet",
        "",
    ] {
        let mut watching = health.watch(asked(service)).await.expect(service);
        let serving = async {
            let watching = watching.get_mut();
            while let Some(told) = watching.message().await.expect("open") {
                if told.status() == ServingStatus::Serving {
                    return;
                }
            }
            panic!("{service} never serves");
        };
        timeout(PATIENCE, serving).await.expect(service);
    }
    let unknown = health.check(asked("no.such")).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watching = health
        .watch(asked(""))
        .await
        .expect("watching")
        .into_inner();
    watching.message().await.expect("open").expect("a state");
    std::fs::remove_dir_all(folder.path().join("data")).expect("gone");
    let told = timeout(PATIENCE, watching.message()).await.expect("told");
    let told = told.expect("open").expect("a state");
    assert_eq!(told.status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn reflection_tells_what_there_is_also_without_a_token() {
    use reflection::server_reflection_client::ServerReflectionClient;
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1 as reflection;
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let mut client = ServerReflectionClient::new(server.channel());
    let asked = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = client.server_reflection_info(tokio_stream::once(asked));
    let mut answers = answers.await.expect("answered").into_inner();
    let answer = answers.message().await.expect("open").expect("an answer");
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let mut names: Vec<_> = listed.service.into_iter().map(|found| found.name).collect();
    names.sort();
    // Tools that know the older version only.
    use tonic_reflection::pb::v1alpha as older;
    let mut client = older::server_reflection_client::ServerReflectionClient::new(server.channel());
    let asked = older::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            older::server_reflection_request::MessageRequest::FileContainingSymbol(
                "sluice.control.v1.Policies".into(),
            ),
        ),
    };
    let answers = client.server_reflection_info(tokio_stream::once(asked));
    let mut answers = answers.await.expect("answered").into_inner();
    let answer = answers.message().await.expect("open").expect("an answer");
    assert!(matches!(
        answer.message_response,
        Some(older::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
    ));
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "sluice.control.v1.Access",
        "sluice.control.v1.Nodes",
        "sluice.control.v1.Operations",
        "sluice.control.v1.Policies",
        "sluice.fleet.v1.Fleet",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_request_id_comes_back_and_stands_in_log_and_audit() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let mut access = AccessClient::new(server.channel());
    let asked = wire::CreateJoinTokenRequest::default();
    let mut request = with(&server.token(), asked);
    let id = "Trace-1_2.3";
    request
        .metadata_mut()
        .insert("x-request-id", id.parse().expect("ascii"));
    let made = access.create_join_token(request).await.expect("made");
    assert_eq!(made.metadata().get("x-request-id").expect("an id"), id);
    let mut enroll = Request::new(EnrollRequest {
        join_token: made.into_inner().secret,
        node: "edge".to_owned(),
        secret: vec![7; 32],
    });
    let metadata = enroll.metadata_mut();
    metadata.insert("x-request-id", "of-the-node".parse().expect("ascii"));
    let mut fleet = FleetClient::new(server.channel());
    fleet.enroll(enroll).await.expect("joined");
    let (_, page) = server.get("/metrics");
    assert!(
        page.contains("sluice_control_node_connected{node=\"edge\"} 0"),
        "{page}"
    );
    assert!(
        !page.contains("sluice_control_node_sessions{"),
        "nothing is known of one that is away"
    );
    let mut bad = with("x", wire::StatusRequest {});
    bad.metadata_mut()
        .insert("x-request-id", "a\"b".parse().expect("ascii"));
    let mut operations = OperationsClient::new(server.channel());
    let refused = operations.status(bad).await.expect_err("refused");
    let made_up = refused.metadata().get("x-request-id").expect("an id");
    assert_ne!(made_up, "a\"b");

    let asked = with(&server.token(), wire::AuditRequest::default());
    let audit = operations.audit(asked).await.expect("audit").into_inner();
    let found: Vec<_> = audit.records.iter().take(2).collect();
    assert_eq!(found[0].action, "node.enroll");
    assert_eq!(found[0].request_id, "of-the-node");
    assert_eq!(found[1].action, "join-token.create");
    assert_eq!(found[1].request_id, id);
    for record in found {
        let peer: std::net::SocketAddr = record.peer.parse().expect("an address and a port");
        assert!(peer.ip().is_loopback() && peer.port() != 0, "{record:?}");
    }
    let first = audit.records.last().expect("the first token");
    assert_eq!((&*first.who, &*first.peer), ("control plane", ""));
    let (_, log) = server.stop();
    let mut calls = log.lines().filter(|line| line.contains("sluice::call"));
    assert!(calls.any(|line| line.contains(id)), "{log}");
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (channel, admin) = (server.channel(), server.token());
    for _ in 0..3 {
        call_empty(channel.clone(), STATUS, Some(&admin))
            .await
            .expect("served");
    }
    for path in [STATUS, STATUS, "/made.up/A", "/made.up/B"] {
        call_empty(channel.clone(), path, None)
            .await
            .expect_err("refused");
    }
    let counted = |method: &str, code: &str| {
        server.metric(&format!(
            "sluice_control_calls_total{{method=\"{method}\",code=\"{code}\"}}"
        ))
    };
    assert_eq!(counted("Operations/Status", "OK"), 3.0);
    assert_eq!(counted("Operations/Status", "UNAUTHENTICATED"), 2.0);
    assert_eq!(counted("other", "UNIMPLEMENTED"), 2.0);
    let (_, all) = server.get("/metrics");
    assert!(!all.contains("made.up"), "no label of a caller's making");
}

#[tokio::test]
async fn release_within_is_what_applied_generations_get() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &["--release-within", "90m"]);
    let rule = "rules:\n  - {name: c, actions: connect, decision: allow}\n";
    let generation = apply(&server, rule.to_owned()).await;
    let expires = generation.expires_unix_ms.expect("it can be released");
    assert_eq!(expires - generation.created_unix_ms, 90 * 60 * 1000);
}

#[tokio::test]
async fn connections_max_holds_and_who_says_nothing_gives_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &["--connections-max", "1"]);
    let mut silent = TcpStream::connect(server.address).expect("a queue");
    // Less than what strangers are granted.
    let patience = Some(Duration::from_secs(20));
    silent.set_read_timeout(patience).expect("a read timeout");
    let channel = server.channel();
    call_empty(channel.clone(), STATUS, Some(&server.token()))
        .await
        .expect("a place");
    let mut bytes = Vec::new();
    let end = silent.read_to_end(&mut bytes);
    let is_late = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!is_late, "the silent one had to go");
    let third = server.channel();
    let token = server.token();
    let waiting = tokio::spawn(async move { call_empty(third, STATUS, Some(&token)).await });
    call_empty(channel.clone(), STATUS, Some(&server.token()))
        .await
        .expect("who is known stays");
    assert!(!waiting.is_finished(), "no place is free");
    drop(channel);
    let served = timeout(PATIENCE, waiting).await.expect("in time");
    served.expect("ended").expect("a place became free");
}

#[tokio::test]
async fn c5_a_token_revoked_during_an_upload_does_not_finish_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (channel, admin) = (server.channel(), server.token());
    let mut access = AccessClient::new(channel.clone());
    let asked = wire::CreateTokenRequest {
        name: "writer".to_owned(),
        role: wire::Role::Operator.into(),
        lifetime_secs: None,
    };
    let made = access
        .create_token(with(&admin, asked))
        .await
        .expect("made");
    let made = made.into_inner();
    let (parts, receiver) = tokio::sync::mpsc::channel(4);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let header = wire::DocumentHeader {
        expected_newest: Some(0),
        ..wire::DocumentHeader::default()
    };
    let text = b"rules:\n  - {name: c, actions: connect, decision: allow}\n".to_vec();
    let [header, text] = [Part::Header(header), Part::Text(text.into())]
        .map(|part| wire::DocumentPart { part: Some(part) });
    let mut policies = PoliciesClient::new(channel.clone());
    let applying = policies.apply(with(&made.secret, receiver));
    let revoking = async {
        // Behind the upload's headers on the same connection, so the upload was let in.
        parts.send(header).await.expect("taken");
        let asked = wire::RevokeTokenRequest {
            id: made.token.expect("a token").id,
        };
        access
            .revoke_token(with(&admin, asked))
            .await
            .expect("revoked");
        // Whether anybody still listens is the server's affair.
        let _ = parts.send(text).await;
        drop(parts);
    };
    let (applied, ()) = tokio::join!(applying, revoking);
    assert_eq!(applied.expect_err("revoked").code(), Code::Unauthenticated);
    let mut operations = OperationsClient::new(channel);
    let status = operations
        .status(with(&admin, wire::StatusRequest {}))
        .await;
    assert_eq!(status.expect("served").into_inner().newest, 0);
}

#[test]
fn a_variable_that_is_no_setting_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, b"no folder").expect("written");
    let output = command()
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(&file)
        .env("SLUICE_CONTROL_LISTEM", "x")
        .env("SLUICE_CONTROL_PLANE", "http://127.0.0.1:1")
        .output();
    let output = output.expect("the program");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("SLUICE_CONTROL_LISTEM"), "{log}");
    assert_eq!(log.matches("SLUICE_CONTROL_").count(), 1, "{log}");
}

fn start_fails(data_dir: &std::path::Path) -> String {
    let output = command()
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(data_dir)
        .output();
    let output = output.expect("the program");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{log}");
    let errors = log.lines().filter(|line| line.contains("ERROR"));
    assert_eq!(errors.count(), 1, "{log}");
    log
}

#[tokio::test]
async fn a_store_of_a_newer_program_ends_the_start() {
    use sqlx::ConnectOptions;
    let folder = tempfile::tempdir().expect("a folder");
    drop(Server::start(folder.path(), &[]).stop());
    let options = sqlx::sqlite::SqliteConnectOptions::new();
    let file = options.filename(folder.path().join("store.db"));
    let mut store = file.connect().await.expect("a store");
    let sql =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
               VALUES (77, 'later', 1, x'00', 0)";
    sqlx::raw_sql(sql).execute(&mut store).await.expect("newer");
    sqlx::Connection::close(store).await.expect("closed");
    let log = start_fails(folder.path());
    assert!(log.contains("newer") && log.contains("77"), "{log}");
}

#[test]
fn a_full_disk_ends_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "mount -t tmpfs -o size=48k,mode=700 none \"$1\" || exit 77; exec \"$0\" --listen 127.0.0.1:0 --admin 127.0.0.1:0 --data-dir \"$1\"";
    let output = std::process::Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_sluice-controlplane"))
        .arg(folder.path())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return eprintln!("no namespaces here: {error}"),
    };
    let log = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || log.contains("unshare failed") {
        return eprintln!("no file system of our own here: {log}");
    }
    assert_eq!(output.status.code(), Some(1), "{log}");
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].contains("no room"), "{log}");
}

/// The data directory of a control plane that ran once.
fn used() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let (status, log) = Server::start(folder.path(), &[]).stop();
    assert_eq!(status.code(), Some(0), "{log}");
    folder
}

async fn run_sql(data_dir: &std::path::Path, sql: &'static str) {
    use sqlx::ConnectOptions;
    let file = data_dir.join("store.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut store = options.connect().await.expect("a store");
    sqlx::raw_sql(sql).execute(&mut store).await.expect("done");
    sqlx::Connection::close(store).await.expect("closed");
}

#[tokio::test]
async fn a_store_that_lost_its_contents_is_damage_and_the_token_stays() {
    let folder = used();
    let (file, token) = (
        folder.path().join("store.db"),
        folder.path().join("admin.token"),
    );
    let (good, secret) = (
        std::fs::read(&file).expect("a store"),
        std::fs::read(&token).expect("a token"),
    );
    for (what, sql) in [
        ("zero bytes", None),
        ("gone", None),
        ("a table missing", Some("DROP TABLE token")),
        ("an index missing", Some("DROP INDEX token_name")),
        ("no tokens", Some("DELETE FROM token")),
        ("no id", Some("DELETE FROM store")),
        ("no steps", Some("DROP TABLE _sqlx_migrations")),
        ("steps forgotten", Some("DELETE FROM _sqlx_migrations")),
    ] {
        std::fs::write(&file, &good).expect("written");
        match (what, sql) {
            (_, Some(sql)) => run_sql(folder.path(), sql).await,
            ("gone", None) => std::fs::remove_file(&file).expect("removed"),
            (_, None) => std::fs::write(&file, "").expect("written"),
        }
        let bad = std::fs::read(&file).ok();
        for _ in 0..2 {
            let log = start_fails(folder.path());
            let dir = folder.path().display();
            let advice = format!("sluicectl restore --input BACKUP --data-dir {dir} --force");
            assert!(log.contains(&advice), "{what}: {log}");
            assert!(log.contains("nothing was changed"), "{what}: {log}");
        }
        assert_eq!(
            std::fs::read(&file).ok(),
            bad,
            "{what}: the store is as it was"
        );
        assert_eq!(std::fs::read(&token).expect("a token"), secret, "{what}");
    }
    std::fs::write(&file, &good).expect("written");
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get("/readyz").0, 200);
}

#[test]
fn a_token_file_of_another_store_is_kept_under_another_name() {
    let (folder, other) = (used(), tempfile::tempdir().expect("a folder"));
    // A start that was cut short after the store was made and before it had a token.
    let token = folder.path().join("admin.token");
    std::fs::write(other.path().join("admin.token"), "of another store").expect("written");
    std::fs::write(other.path().join("admin.token.1"), "older").expect("written");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let aside = tempfile::tempdir().expect("a folder");
    runtime.block_on(async {
        let store = sluice_controlplane::store::Sqlite::open(aside.path()).await;
        store.expect("a store").close().await;
    });
    let file = "store.db";
    std::fs::copy(aside.path().join(file), other.path().join(file)).expect("copied");
    let server = Server::start(other.path(), &[]);
    assert_ne!(server.token(), "of another store");
    let read = |name: &str| std::fs::read_to_string(other.path().join(name)).expect("a file");
    assert_eq!(
        (&*read("admin.token.1"), &*read("admin.token.2")),
        ("older", "of another store")
    );
    assert!(token.exists());
}

#[test]
fn a_data_directory_that_everybody_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data");
    std::fs::create_dir(&dir).expect("made");
    let set = |dir: &std::path::Path, mode| {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).expect("set");
    };
    for mode in [0o777, 0o1777, 0o722] {
        set(&dir, mode);
        let log = start_fails(&dir);
        assert!(log.contains("chmod 700"), "{mode:o}: {log}");
        assert_eq!(
            std::fs::read_dir(&dir).expect("a folder").count(),
            0,
            "{mode:o}"
        );
    }
    for (own, above, warning) in [
        (0o770, 0o1777, Some("the group may write")),
        (0o755, 0o700, Some("others may look")),
        (0o700, 0o777, Some("a folder above the data directory")),
        (0o700, 0o1777, None),
    ] {
        set(&dir, own);
        set(folder.path(), above);
        let (_, log) = Server::start(&dir, &[]).stop();
        match warning {
            Some(warning) => assert!(log.contains(warning), "{own:o}: {log}"),
            None => assert!(!log.contains("may "), "{log}"),
        }
    }
}

#[tokio::test]
async fn a_watch_that_its_caller_ends_is_ok_and_one_that_never_answered_is_not() {
    use wire::nodes_client::NodesClient;
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let counted = |code: &str| {
        let labels = format!("method=\"Nodes/Watch\",code=\"{code}\"");
        server.metric(&format!("sluice_control_calls_total{{{labels}}}"))
    };
    let mut client = NodesClient::new(server.channel());
    let request = with(&server.token(), wire::ListNodesRequest::default());
    let mut watch = client.watch(request).await.expect("begun").into_inner();
    watch.message().await.expect("open").expect("an answer");
    drop(watch);
    drop(client);
    let is_counted = async {
        while counted("OK") == 0.0 {
            tokio::task::yield_now().await;
        }
    };
    let in_time = timeout(PATIENCE, is_counted).await;
    in_time.expect("it is counted");
    assert_eq!((counted("OK"), counted("CANCELLED")), (1.0, 0.0));
}

#[test]
fn the_page_of_metrics_passes_promtool_and_counters_begin_at_zero() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let (_, page) = server.get("/metrics");
    check_metrics(&page);
    for line in [
        "sluice_control_calls_total{method=\"Policies/Release\",code=\"ABORTED\"} 0",
        "sluice_control_refused_total{reason=\"revoked\"} 0",
        "sluice_control_applies_total{result=\"conflict\"} 0",
        "sluice_control_releases_total{kind=\"rollback\"} 0",
        "sluice_control_trials_total{share=\"readers\",end=\"cancelled\"} 0",
        "sluice_control_trials_refused_total{share=\"writers\",reason=\"memory\"} 0",
        "sluice_fleet_generation{stage=\"desired\"} 0",
        "sluice_control_nodes_left_out 0",
        concat!(
            "sluice_control_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
    ] {
        assert!(page.lines().any(|found| found == line), "{line}: {page}");
    }
    for name in [
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "sluice_control_received_bytes_total{server=\"admin\"}",
    ] {
        assert!(server.metric(name) > 0.0, "{name}: {page}");
    }
    let now = sluice_controlplane::clock::unix_now().0 as f64 / 1e3;
    let age = now - server.metric("process_start_time_seconds");
    assert!(age.abs() < 3600.0, "in seconds since 1970: {age}");
}

/// Every name has one line of help, a sentence of its own, and `promtool` has nothing to say.
fn check_metrics(page: &str) {
    let mut names = std::collections::BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').expect("a text");
        assert!(names.insert(name), "{name} is described once");
        let is_a_sentence = help.starts_with(char::is_uppercase) && help.ends_with('.');
        assert!(
            is_a_sentence && !help.contains("The same"),
            "{name}: {help}"
        );
    }
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().expect("a name");
        assert!(names.contains(name), "{name} has no help");
    }
    let mut tool = std::process::Command::new("promtool");
    tool.args(["check", "metrics"])
        .stdin(std::process::Stdio::piped());
    let tool = tool
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut tool = tool.spawn().expect("promtool, which .ci/needs installs");
    std::io::Write::write_all(&mut tool.stdin.take().expect("piped"), page.as_bytes())
        .expect("read");
    let output = tool.wait_with_output().expect("its end");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
