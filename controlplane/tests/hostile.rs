//! Callers who mean harm, or who are broken, against the real process: what they get, and that others are served.

#![allow(clippy::expect_used)] // a test that cannot go on ends here

mod common;
mod frames;

use common::{Plain, Server, call_empty, with};
use frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM,
    SETTINGS, frame, headers, message,
};
use sluice_proto::control::v1 as wire;
use sluice_proto::v1::{EnrollRequest, fleet_client::FleetClient};
use tonic::{Code, Request, Status};
use wire::access_client::AccessClient;

const STATUS: &str = "/sluice.control.v1.Operations/Status";
const APPLY: &str = "/sluice.control.v1.Policies/Apply";
const GRPC: (&str, &str) = ("content-type", "application/grpc");

async fn is_served(server: &Server) {
    call_empty(server.channel(), STATUS, Some(&server.token()))
        .await
        .expect("others are served");
}

/// What a stranger gets who begins a call and never says what it is about.
async fn silent_call(server: &Server, path: &str) -> Status {
    let mut client = tonic::client::Grpc::new(server.channel());
    client.ready().await.expect("connected");
    let nothing = tokio_stream::pending::<Vec<u8>>();
    let path = path.parse().expect("a path");
    let answer = client.streaming(Request::new(nothing), path, Plain);
    let answer = tokio::time::timeout(common::PATIENCE, answer).await;
    answer.expect("at once").map(drop).expect_err("refused")
}

#[tokio::test]
async fn of_strangers_no_message_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    for path in [
        STATUS,
        APPLY,
        "/sluice.control.v1.Nodes/Watch",
        "/sluice.control.v1.Operations/Backup",
        "/sluice.fleet.v1.Fleet/Connect",
    ] {
        let refused = silent_call(&server, path).await;
        assert_eq!(refused.code(), Code::Unauthenticated, "{path}");
    }
    let mut fleet = FleetClient::new(server.channel());
    let asked = EnrollRequest {
        join_token: "x".repeat(100_000),
        ..EnrollRequest::default()
    };
    let refused = fleet.enroll(asked).await.expect_err("long");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    is_served(&server).await;
}

#[tokio::test]
async fn strangers_do_not_fill_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let channel = server.channel();
    for _ in 0..200 {
        let refused = call_empty(channel.clone(), STATUS, None).await;
        assert_eq!(refused.expect_err("refused").code(), Code::Unauthenticated);
        let unknown = call_empty(channel.clone(), "/x.y/Z", None).await;
        assert_eq!(unknown.expect_err("unknown").code(), Code::Unimplemented);
    }
    is_served(&server).await;
    let (_, log) = server.stop();
    let of_calls = log.lines().filter(|line| line.contains("sluice::call"));
    assert_eq!(of_calls.count(), 1, "the one of somebody: {log}");
    assert!(log.lines().count() < 100, "{log}");
}

/// What it is of, and the bytes of the piece with that number.
type Flood = (&'static str, fn(u32) -> Vec<u8>);

#[tokio::test]
async fn floods_of_frames_end_with_their_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let floods: [Flood; 5] = [
        ("resets", |number| {
            let stream = 2 * number + 1;
            let block = headers(STATUS, &[GRPC]);
            let mut bytes = frame(HEADERS, END_HEADERS, stream, &block);
            bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            bytes
        }),
        ("settings", |_| frame(SETTINGS, 0, 0, &[])),
        ("pings", |_| frame(PING, 0, 0, &[0; 8])),
        ("continuations", |number| match number {
            0 => frame(HEADERS, 0, 1, &headers(STATUS, &[])),
            _ => frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'].repeat(100)),
        }),
        ("unknown frames", |_| frame(0xfa, 0xff, 0, &[1; 100])),
    ];
    for (what, piece) in floods {
        let mut frames = Frames::open(server.address, &[]);
        // Sent until refused, or enough; answers are not read meanwhile.
        let mut bytes = Vec::new();
        for number in 0..20_000 {
            bytes.extend(piece(number));
        }
        let _ = frames.write(&bytes);
        drop(frames);
        is_served(&server).await;
        assert_eq!(server.get("/livez").0, 200, "{what}");
    }
}

/// What is wrong with a call, its path, its headers and its body.
type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a [u8]);

#[tokio::test]
async fn calls_that_are_none_get_an_answer_and_do_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let bearer = format!("Bearer {}", server.token());
    let authorization = ("authorization", &*bearer);
    let bomb = message(true, &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    let endless = [0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
    let long = "x".repeat(20_000);
    let cases: [Case<'_>; 9] = [
        ("no content type", STATUS, vec![authorization], &[]),
        (
            "another content type",
            STATUS,
            vec![("content-type", "text/html"), authorization],
            &message(false, &[]),
        ),
        ("no message", STATUS, vec![GRPC, authorization], &[]),
        (
            "compressed",
            STATUS,
            vec![GRPC, authorization, ("grpc-encoding", "gzip")],
            &bomb,
        ),
        (
            "compressed, and does not say so",
            STATUS,
            vec![GRPC, authorization],
            &bomb,
        ),
        (
            "longer than any message",
            STATUS,
            vec![GRPC, authorization],
            &endless,
        ),
        (
            "cut in the middle",
            APPLY,
            vec![GRPC, authorization],
            &[0, 0, 0, 0, 9, 1],
        ),
        (
            "no protobuf",
            APPLY,
            vec![GRPC, authorization],
            &[0, 0, 0, 0, 2, 0xff, 0xff],
        ),
        (
            "a token with odd bytes",
            STATUS,
            vec![GRPC, ("authorization", "Bearer slc_\u{ff}\u{fe}")],
            &message(false, &[]),
        ),
    ];
    for (what, path, more, body) in cases {
        let mut frames = Frames::open(server.address, &[]);
        frames.call(1, 0, path, &more);
        frames.send(DATA, END_STREAM, 1, body);
        assert!(frames.until(HEADERS, 1).is_some(), "{what}");
    }
    let mut frames = Frames::open(server.address, &[]);
    frames.call(1, END_STREAM, STATUS, &[GRPC, ("x", &long)]);
    let refused = loop {
        match frames.next() {
            None => break true,
            Some((HEADERS | RST_STREAM, _, 1, _) | (GOAWAY, ..)) => break true,
            Some(_) => {}
        }
    };
    assert!(refused, "long headers");
    let mut garbage = Frames::open(server.address, &[]);
    garbage.write(&[0xff; 4096]);
    garbage.until_closed();
    is_served(&server).await;
    let (_, log) = server.stop();
    assert!(!log.contains("panic"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[tokio::test]
async fn of_two_nodes_with_one_use_of_a_join_token_one_joins() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let mut access = AccessClient::new(server.channel());
    let asked = wire::CreateJoinTokenRequest::default();
    let made = access.create_join_token(with(&server.token(), asked)).await;
    let join_token = made.expect("made").into_inner().secret;
    let mut joining = tokio::task::JoinSet::new();
    for number in 0..8 {
        let mut fleet = FleetClient::new(server.channel());
        let asked = EnrollRequest {
            join_token: join_token.clone(),
            node: format!("node-{number}"),
            secret: vec![number; 32],
        };
        joining.spawn(async move { fleet.enroll(asked).await.map(drop) });
    }
    let ends = joining.join_all().await;
    let joined = ends.iter().filter(|end| end.is_ok()).count();
    assert_eq!(joined, 1, "{ends:?}");
    let mut nodes = wire::nodes_client::NodesClient::new(server.channel());
    let asked = wire::ListNodesRequest::default();
    let listed = nodes.list(with(&server.token(), asked)).await;
    assert_eq!(listed.expect("listed").into_inner().nodes.len(), 1);
}

#[tokio::test]
async fn names_that_are_paths_or_lines_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), &[]);
    let mut access = AccessClient::new(server.channel());
    for name in ["../x", "a/b", "a\nb", "\u{1b}[31m", "a b", "", "ä"] {
        let asked = wire::CreateTokenRequest {
            name: name.to_owned(),
            role: wire::Role::Viewer.into(),
            lifetime_secs: None,
        };
        let refused = access.create_token(with(&server.token(), asked)).await;
        let refused = refused.expect_err(name);
        assert_eq!(refused.code(), Code::InvalidArgument, "{name:?}");
        let asked = wire::CreateJoinTokenRequest {
            node: Some(name.to_owned()),
            ..wire::CreateJoinTokenRequest::default()
        };
        let refused = access.create_join_token(with(&server.token(), asked)).await;
        let refused = refused.expect_err(name);
        assert_eq!(refused.code(), Code::InvalidArgument, "{name:?}");
        let asked = wire::RevokeTokenRequest {
            id: name.to_owned(),
        };
        let refused = access.revoke_token(with(&server.token(), asked)).await;
        assert_eq!(refused.expect_err(name).code(), Code::NotFound, "{name:?}");
    }
}
