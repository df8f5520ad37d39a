//! The fleet stream over real gRPC on loopback: what nodes get, what they do not get, and whether what is shown is true.
#![allow(clippy::expect_used, clippy::unwrap_used)] // all of it is test

mod fleet_support;

use std::net::Ipv4Addr;
use std::time::Duration;

use sluice_controlplane::domain::Name;
use sluice_controlplane::fleet::{Limits, State, View};
use sluice_loadtest::fleet_node::{Memory, Options, dial};
use sluice_proto::v1::fleet_client::FleetClient;
use sluice_proto::v1::{self, FromNode, from_node, reject::Reason};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};

use fleet_support::{Plane, Running, audit, change, join_text, options, secret};

#[tokio::test]
async fn s18_two_hundred_nodes_of_which_one_is_deaf_one_refuses_and_one_flaps() {
    let names: Vec<String> = (0..200).map(|n| format!("node-{n:03}")).collect();
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut plane = Plane::start(&refs).await;
    let first = plane.release((0..40).map(|n| change(n, 0, 6000)).collect());
    let mut running = Vec::new();
    for name in &refs[3..] {
        running.push(Running::start(&plane, options(name), Memory::default()).await);
    }
    let deaf = Options {
        is_deaf: true,
        ..options("node-000")
    };
    let _deaf = Running::start_narrow(&plane, deaf, Memory::default(), Some(65_535)).await;
    let refuses = Options {
        refuses: Some(Reason::Invalid),
        ..options("node-001")
    };
    let _refuses = Running::start(&plane, refuses, Memory::default()).await;
    let flaps = Options {
        leaves_after: Some(1),
        ..options("node-002")
    };
    let mut flaps = Running::start_again_and_again(&plane, flaps);
    for round in 1..3_u64 {
        let id = match round {
            1 => first,
            _ => plane.release(vec![change(7, round, 10)]),
        };
        let good = |views: &[View]| {
            let others = views.get(3..).unwrap_or_default();
            others.iter().all(|view| view.state == State::Active)
                && views[1].state == State::Rejected
        };
        let views = plane.until("197 active", good).await;
        assert_eq!(views.len(), 200);
        assert_eq!(views[0].state, State::Delivering, "the deaf one");
        assert!(views[0].lag_ms.is_some() && views[0].told.active().is_none());
        assert_eq!(
            views[1].refusal.as_ref().map(|refusal| refusal.generation),
            Some(id)
        );
        for view in &views[3..] {
            assert_eq!(view.told.active(), Some(id));
            assert_eq!((view.delivered, view.lag_ms), (Some(id), None));
        }
        let counts = plane.fleet.counts();
        assert_eq!((counts.nodes, counts.rejected), (200, 1));
        assert!((197..=198).contains(&counts.active), "{counts:?}");
        let took = |seen: &sluice_loadtest::fleet_node::Seen| {
            seen.active.as_ref().map(|active| active.number) == Some(id.number)
        };
        flaps.until("taken between two flaps", took).await;
    }
    for node in &running {
        let seen = node.seen.borrow();
        assert_eq!(
            (seen.rows, seen.asked),
            (41, 0),
            "one changed row is one row"
        );
    }
}

#[tokio::test]
async fn a_node_that_comes_back_gets_only_what_it_lacks() {
    let mut plane = Plane::start(&["a"]).await;
    plane.release((0..30).map(|n| change(n, 0, 10)).collect());
    let mut node = Running::start(&plane, options("a"), Memory::default()).await;
    let seen = node.until("active", |seen| seen.active.is_some()).await;
    assert_eq!(seen.rows, 30);
    plane.fleet.close();
    let (memory, status) = node.ended().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(memory.rows.len(), 30);
    drop(plane);
    // Another control plane with the same rows under another store: the node is asked what it holds.
    let mut plane = Plane::start(&["a"]).await;
    plane.release((0..29).map(|n| change(n, 0, 10)).collect());
    let mut node = Running::start(&plane, options("a"), memory).await;
    let seen = node.until("active", |seen| seen.active.is_some()).await;
    assert_eq!((seen.asked, seen.rows), (1, 1), "one row is gone");
    plane
        .until("active", |views| views[0].state == State::Active)
        .await;
    // Away while two generations were released.
    plane.release(vec![change(1, 1, 10)]);
    node.until("two", |seen| {
        seen.active.as_ref().is_some_and(|id| id.number == 2)
    })
    .await;
    let memory = node.stop().await;
    plane
        .until("offline", |views| views[0].state == State::Offline)
        .await;
    plane.release(vec![change(2, 2, 10)]);
    plane.release(vec![change(3, 3, 10), change(2, 3, 10)]);
    let mut node = Running::start(&plane, options("a"), memory).await;
    let seen = node.until("active", |seen| seen.active.is_some()).await;
    assert_eq!(seen.active.map(|id| id.number), Some(4));
    let got = (seen.asked, seen.chunks, seen.rows);
    assert_eq!(got, (0, 1, 2), "two rows differ from what it held");
    // Away while nothing was released.
    let memory = node.stop().await;
    plane
        .until("offline", |views| views[0].state == State::Offline)
        .await;
    let node = Running::start(&plane, options("a"), memory).await;
    plane
        .until("active", |views| views[0].state == State::Active)
        .await;
    let seen = node.seen.borrow().clone();
    assert_eq!((seen.asked, seen.chunks), (0, 0), "nothing is sent");
}

#[tokio::test]
async fn a_snapshot_longer_than_a_message_comes_in_chunks_and_a_deaf_node_is_given_up() {
    let limits = Limits {
        stall: Duration::from_millis(300),
        ..Limits::default()
    };
    let from = Ipv4Addr::LOCALHOST.into();
    let mut plane = Plane::start_with(&["deaf", "good"], limits, from).await;
    let id = plane.release((0..6).map(|n| change(n, 0, 900 << 10)).collect());
    let mut good = Running::start(&plane, options("good"), Memory::default()).await;
    let seen = good.until("active", |seen| seen.active.is_some()).await;
    assert_eq!((seen.chunks, seen.rows), (6, 6));
    let deaf = Options {
        is_deaf: true,
        ..options("deaf")
    };
    let _deaf = Running::start_narrow(&plane, deaf, Memory::default(), Some(65_535)).await;
    plane
        .until("delivering", |views| views[0].state == State::Delivering)
        .await;
    let views = plane
        .until("given up", |views| views[0].state == State::Offline)
        .await;
    assert_eq!(views[0].delivered, None, "not whole");
    assert_eq!(views[1].told.active(), Some(id));
}

#[tokio::test]
async fn a_generation_with_a_feature_that_a_node_lacks_is_not_sent() {
    let mut plane = Plane::start(&["old", "new"]).await;
    let old = Running::start(&plane, options("old"), Memory::default()).await;
    let new = Options {
        features: vec!["sparkle".into()],
        ..options("new")
    };
    let _new = Running::start(&plane, new, Memory::default()).await;
    plane
        .until("both are there", |views| {
            views.iter().all(|view| view.state == State::Idle)
        })
        .await;
    let needed = ["sparkle".to_owned()].into_iter().collect();
    let lacking = plane.fleet.lacking(&needed);
    assert_eq!(lacking.len(), 1);
    assert_eq!(lacking[0].1, ["sparkle"]);
    plane.release_needing(vec![change(1, 1, 10)], &["sparkle"]);
    let views = plane
        .until("active and rejected", |views| {
            views[0].state == State::Active && views[1].state == State::Rejected
        })
        .await;
    let refusal = views[1].refusal.as_ref().expect("it says why");
    assert_eq!(refusal.reason, Reason::Features);
    assert!(refusal.problems[0].message.contains("`sparkle`"));
    assert_eq!(old.seen.borrow().chunks, 0);
}

#[tokio::test]
async fn a_newer_stream_of_a_node_takes_over_from_the_older() {
    let mut plane = Plane::start(&["a"]).await;
    plane.release(vec![change(1, 1, 10)]);
    let mut first = Running::start(&plane, options("a"), Memory::default()).await;
    first.until("active", |seen| seen.active.is_some()).await;
    let mut second = Running::start(&plane, options("a"), Memory::default()).await;
    second.until("active", |seen| seen.active.is_some()).await;
    let active = |views: &[View]| views[0].state == State::Active;
    plane.until("the second is shown", active).await;
    let (_, status) = first.ended().await;
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    let views = plane.fleet.views(&[]).unwrap();
    assert_eq!(
        views[0].state,
        State::Active,
        "the end of the first changed nothing"
    );
}

#[tokio::test]
async fn removal_cuts_the_stream_and_the_secret_is_worth_nothing() {
    let plane = Plane::start(&["a", "b"]).await;
    let node = Running::start(&plane, options("a"), Memory::default()).await;
    plane
        .until("there", |views| views[0].state == State::Idle)
        .await;
    let name = Name::parse("a").unwrap();
    plane
        .fleet
        .remove(name.clone(), audit())
        .await
        .expect("removed");
    let (memory, status) = node.ended().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let again = Running::start(&plane, options("a"), memory).await;
    assert_eq!(again.ended().await.1.code(), Code::Unauthenticated);
    assert!(!plane.fleet.has(&name));
    assert_eq!(plane.fleet.counts().nodes, 1);
    assert!(plane.fleet.remove(name, audit()).await.is_err());
}

#[tokio::test]
async fn no_secret_over_plaintext_from_beyond_loopback() {
    let from = "192.0.2.1".parse().unwrap();
    let plane = Plane::start_with(&["a"], Limits::default(), from).await;
    let node = Running::start(&plane, options("a"), Memory::default()).await;
    assert_eq!(node.ended().await.1.code(), Code::FailedPrecondition);
    let refused = enroll(&plane, &join_text(), "b", vec![1; 32]).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(plane.fleet.counts().nodes, 1);
}

#[tokio::test]
async fn a_node_joins_once_and_a_lost_answer_costs_nothing() {
    let plane = Plane::start(&["old"]).await;
    let id = sluice_controlplane::store::Store::id(&*plane.store);
    let wrong = join_text().replace("_03", "_04");
    for (token, node, secret, code) in [
        ("", "new", vec![1; 32], Code::Unauthenticated),
        (wrong.as_str(), "new", vec![1; 32], Code::Unauthenticated),
        (&join_text(), "no name", vec![1; 32], Code::InvalidArgument),
        (&join_text(), "new", vec![1; 31], Code::InvalidArgument),
        (&join_text(), "old", vec![1; 32], Code::AlreadyExists),
    ] {
        let refused = enroll(&plane, token, node, secret).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        if code == Code::Unauthenticated {
            let said = refused.message();
            assert!(
                said.contains("join token") && !said.contains("Bearer"),
                "{said}"
            );
        }
    }
    assert_eq!(plane.fleet.counts().nodes, 1);
    for _ in 0..2 {
        let store = enroll(&plane, &join_text(), "new", secret("new").to_vec()).await;
        assert_eq!(store.expect("a member"), id.0);
    }
    assert_eq!(plane.fleet.counts().nodes, 2);
    let _node = Running::start(&plane, options("new"), Memory::default()).await;
    plane
        .until("there", |views| views[0].state == State::Idle)
        .await;
}

async fn enroll(
    plane: &Plane,
    join_token: &str,
    node: &str,
    secret: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let channel = dial(plane.address, None).await.expect("a channel");
    let request = v1::EnrollRequest {
        join_token: join_token.into(),
        node: node.into(),
        secret,
    };
    let answer = FleetClient::new(channel).enroll(request).await?;
    Ok(answer.into_inner().store)
}

#[tokio::test]
async fn streams_that_do_not_begin_as_they_should_are_refused() {
    let plane = Plane::start(&["a"]).await;
    let hello = |hello: v1::Hello| {
        let hello = v1::Hello { shards: 1, ..hello };
        from_node::Message::Hello(hello)
    };
    let good = || {
        hello(v1::Hello {
            node: "a".into(),
            ..v1::Hello::default()
        })
    };
    let garbage = hello(v1::Hello {
        node: "a".into(),
        version: "\u{7f}".repeat(64 << 10),
        ..v1::Hello::default()
    });
    let other = hello(v1::Hello {
        node: "b".into(),
        ..v1::Hello::default()
    });
    let heartbeat = from_node::Message::Heartbeat(v1::Heartbeat::default());
    let long = from_node::Message::Heartbeat(v1::Heartbeat {
        not_ready: vec!["x".repeat(5 << 20)],
        ..v1::Heartbeat::default()
    });
    for (messages, code) in [
        (vec![garbage], Code::InvalidArgument),
        (vec![other], Code::PermissionDenied),
        (vec![heartbeat.clone()], Code::InvalidArgument),
        (vec![good(), good()], Code::InvalidArgument),
        (vec![good(), heartbeat, long], Code::OutOfRange),
    ] {
        assert_eq!(ending(&plane, messages).await.code(), code);
    }
    let views = plane
        .until("offline", |views| views[0].state == State::Offline)
        .await;
    assert!(views[0].last_seen.is_some());
}

/// How a stream ends whose node says just this, and stays.
async fn ending(plane: &Plane, messages: Vec<from_node::Message>) -> Status {
    let channel = dial(plane.address, None).await.expect("a channel");
    let messages = messages.into_iter().map(|message| FromNode {
        message: Some(message),
    });
    let outgoing = tokio_stream::iter(messages).chain(tokio_stream::pending());
    let mut request = Request::new(outgoing);
    let bearer = options("a").bearer().parse().expect("metadata");
    request.metadata_mut().insert("authorization", bearer);
    let stream = match FleetClient::new(channel).connect(request).await {
        Ok(stream) => stream,
        Err(status) => return status,
    };
    let mut stream = stream.into_inner();
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok("ended"),
            Err(status) => return status,
        }
    }
}
