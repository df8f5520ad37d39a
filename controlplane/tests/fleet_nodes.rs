//! The service `Nodes` over real gRPC: what operators see of the fleet, and what they can have it do.
#![allow(clippy::expect_used, clippy::unwrap_used)] // all of it is test

mod fleet_support;

use sluice_controlplane::domain::Role;
use sluice_controlplane::fleet::State;
use sluice_controlplane::store::Store;
use sluice_loadtest::fleet_node::{Memory, Options, dial};
use sluice_proto::control::v1::nodes_client::NodesClient;
use sluice_proto::control::v1::{
    DenialsRequest, DenialsResponse, DrainRequest, KickRequest, ListNodesRequest, NodeState,
    RemoveNodeRequest, RulesRequest, SessionsRequest, kick_request::Who,
};
use sluice_proto::v1::Denial;
use sluice_proto::v1::session_page::Session;
use sluice_proto::v1::{RulePlace, rule_page};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request};

use fleet_support::{PATIENCE, Plane, Running, change, options};

async fn client(plane: &Plane) -> NodesClient<Channel> {
    NodesClient::new(dial(plane.address, None).await.expect("a channel"))
}

fn call<T>(bearer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = bearer.parse().expect("metadata");
    request.metadata_mut().insert("authorization", bearer);
    request
}

fn sessions(of: &str, count: usize) -> Vec<Session> {
    let session = |n: usize| Session {
        client_id: format!("{of}-{n}"),
        username: Some("ann".into()),
        ..Session::default()
    };
    (0..count).map(session).collect()
}

#[tokio::test]
async fn list_and_watch_tell_how_the_nodes_are() {
    let mut plane = Plane::start(&["a", "b"]).await;
    let viewer = plane.operator("viewer", Role::Viewer).await;
    let mut client = client(&plane).await;
    let all = ListNodesRequest::default();
    let list = client
        .list(call(&viewer, all.clone()))
        .await
        .unwrap()
        .into_inner();
    let states: Vec<_> = list.nodes.iter().map(|node| node.state()).collect();
    assert_eq!(states, [NodeState::Offline; 2]);
    assert_eq!(list.released, None);
    let stranger = ListNodesRequest {
        nodes: vec!["c".into()],
    };
    let refused = client.list(call(&viewer, stranger)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = client.list(Request::new(all.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let watched = client.watch(call(&viewer, all)).await.unwrap();
    let mut watched = watched.into_inner();
    let first = watched.message().await.unwrap().expect("at once");
    assert_eq!(first.nodes.len(), 2);
    let _node = Running::start(&plane, options("b"), Memory::default()).await;
    let id = plane.release(vec![change(1, 1, 10)]).to_wire();
    let active = timeout(PATIENCE, async {
        loop {
            let seen = watched.message().await.unwrap().expect("it goes on");
            if seen.nodes[1].state() == NodeState::Active {
                return seen;
            }
        }
    });
    let active = active.await.expect("it becomes active");
    assert_eq!(active.released.as_ref(), Some(&id));
    let node = &active.nodes[1];
    assert_eq!(
        (node.desired.as_ref(), node.active.as_ref()),
        (Some(&id), Some(&id))
    );
    assert_eq!(
        (node.shards.len(), node.lag_ms, node.connected),
        (2, None, true)
    );
    assert_eq!(node.address, "127.0.0.1");
    plane.fleet.close();
    let ended = timeout(PATIENCE, async {
        loop {
            match watched.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    });
    assert_eq!(ended.await.expect("it ends"), Code::Unavailable);
}

#[tokio::test]
async fn watchers_are_bounded_and_a_place_is_given_back() {
    let plane = Plane::start(&["a"]).await;
    let viewer = plane.operator("viewer", Role::Viewer).await;
    let mut client = client(&plane).await;
    let all = ListNodesRequest::default();
    let mut watching = Vec::new();
    for _ in 0..64 {
        watching.push(
            client
                .watch(call(&viewer, all.clone()))
                .await
                .expect("a place"),
        );
    }
    let refused = client.watch(call(&viewer, all.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    watching.clear();
    let again = timeout(PATIENCE, async {
        while client.watch(call(&viewer, all.clone())).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    again.await.expect("a place is free again");
}

#[tokio::test]
async fn sessions_come_in_pages_across_nodes() {
    let plane = Plane::start(&["a", "b", "c", "off"]).await;
    let auditor = plane.operator("auditor", Role::Auditor).await;
    let viewer = plane.operator("viewer", Role::Viewer).await;
    let with = |node: &str, count| Options {
        sessions: sessions(node, count),
        ..options(node)
    };
    let _a = Running::start(&plane, with("a", 5), Memory::default()).await;
    let unable = Options {
        capabilities: Vec::new(),
        ..options("b")
    };
    let _b = Running::start(&plane, unable, Memory::default()).await;
    let _c = Running::start(&plane, with("c", 4), Memory::default()).await;
    let connected = |views: &[sluice_controlplane::fleet::View]| {
        views
            .iter()
            .filter(|view| view.state == State::Idle)
            .count()
            == 3
    };
    plane.until("connected", connected).await;
    let mut client = client(&plane).await;
    let mut wish = SessionsRequest {
        limit: Some(2),
        ..SessionsRequest::default()
    };
    let (mut found, mut failed, mut pages) = (Vec::new(), Vec::new(), 0);
    loop {
        let page = client.sessions(call(&auditor, wish.clone())).await;
        let page = page.expect("a page").into_inner();
        assert!(page.sessions.len() <= 2);
        let ids = page
            .sessions
            .into_iter()
            .map(|session| (session.node, session.session.expect("a session").client_id));
        found.extend(ids);
        failed.extend(page.failed);
        pages += 1;
        match page.next {
            Some(next) => wish.after = Some(next),
            None => break,
        }
    }
    let expected: Vec<_> = [("a", 5), ("c", 4)]
        .iter()
        .flat_map(|(node, count)| {
            (0..*count).map(move |n| ((*node).to_owned(), format!("{node}-{n}")))
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(pages, 5);
    assert_eq!(failed.len(), 1);
    assert!(failed[0].node == "b" && failed[0].error.contains("`sessions`"));
    let one = SessionsRequest {
        node: Some("off".into()),
        ..SessionsRequest::default()
    };
    let page = client
        .sessions(call(&auditor, one))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page.failed[0].error, "the node is not connected");
    let refused = client
        .sessions(call(&viewer, SessionsRequest::default()))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn refusals_of_all_nodes_are_listed_followed_and_that_is_recorded() {
    let plane = Plane::start(&["a", "b", "c"]).await;
    let auditor = plane.operator("auditor", Role::Auditor).await;
    let viewer = plane.operator("viewer", Role::Viewer).await;
    let with = |node: &str, times: &[u64]| {
        let denials = times.iter().map(|unix_ms| Denial {
            unix_ms: *unix_ms,
            client_id: format!("{node}-{unix_ms}"),
            ..Denial::default()
        });
        Options {
            denials: denials.collect(),
            ..options(node)
        }
    };
    let _a = Running::start(&plane, with("a", &[1, 4, 5, 9]), Memory::default()).await;
    let _b = Running::start(&plane, with("b", &[2, 3, 8]), Memory::default()).await;
    let unable = Options {
        capabilities: Vec::new(),
        ..options("c")
    };
    let _c = Running::start(&plane, unable, Memory::default()).await;
    let connected = |views: &[sluice_controlplane::fleet::View]| {
        views
            .iter()
            .filter(|view| view.state == State::Idle)
            .count()
            == 3
    };
    plane.until("connected", connected).await;
    let mut client = client(&plane).await;
    let ids = |answer: &DenialsResponse| -> Vec<String> {
        let ids = answer.denials.iter().map(|entry| {
            let denial = entry.denial.as_ref().expect("a refusal");
            assert!(denial.client_id.starts_with(&entry.node));
            denial.client_id.clone()
        });
        ids.collect()
    };
    let wish = DenialsRequest {
        limit: Some(3),
        user: Some("eyJ.token".into()),
        ..DenialsRequest::default()
    };
    let mut answers = client
        .denials(call(&auditor, wish))
        .await
        .expect("answers")
        .into_inner();
    let first = answers.message().await.unwrap().expect("an answer");
    assert_eq!(
        ids(&first),
        ["b-3", "a-4", "a-5"],
        "the newest, in order of time"
    );
    assert_eq!(first.left_off, 2, "what is not shown is said");
    assert_eq!(first.failed.len(), 1);
    assert!(first.failed[0].node == "c" && first.failed[0].error.contains("`denials`"));
    assert_eq!(answers.message().await.unwrap(), None, "one answer");

    let follow = DenialsRequest {
        follow: true,
        ..DenialsRequest::default()
    };
    let mut answers = client
        .denials(call(&auditor, follow))
        .await
        .expect("answers")
        .into_inner();
    let first = answers.message().await.unwrap().expect("an answer");
    assert_eq!(ids(&first), ["a-1", "b-2", "b-3", "a-4", "a-5"]);
    let next = timeout(PATIENCE, answers.message()).await.expect("in time");
    let next = next.unwrap().expect("an answer");
    assert_eq!(ids(&next), ["b-8", "a-9"]);
    assert_eq!(next.failed, [], "what is known is not said again");
    drop(answers);

    let refused = client
        .denials(call(&viewer, DenialsRequest::default()))
        .await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(Code::PermissionDenied)
    );
    let unknown = DenialsRequest {
        node: Some("nobody".into()),
        ..DenialsRequest::default()
    };
    let refused = client.denials(call(&auditor, unknown)).await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(Code::NotFound)
    );
    let records = plane.store.audit(None, 100).await.expect("the audit");
    let done: Vec<_> = records
        .iter()
        .rev()
        .filter(|record| record.who == "auditor")
        .map(|record| (record.action.as_str(), record.what.as_str()))
        .collect();
    assert_eq!(
        done,
        [
            ("denials.list", "refusals of a user of 9 bytes"),
            ("denials.follow", "refusals of all clients"),
        ]
    );
}

#[tokio::test]
async fn kicks_and_drains_are_done_answered_and_recorded() {
    let plane = Plane::start(&["a", "b", "off"]).await;
    let operator = plane.operator("olga", Role::Operator).await;
    let viewer = plane.operator("viewer", Role::Viewer).await;
    let a = Options {
        sessions: sessions("a", 3),
        ..options("a")
    };
    let mut a = Running::start(&plane, a, Memory::default()).await;
    let unable = Options {
        capabilities: Vec::new(),
        ..options("b")
    };
    let _b = Running::start(&plane, unable, Memory::default()).await;
    let connected = |views: &[sluice_controlplane::fleet::View]| {
        views
            .iter()
            .filter(|view| view.state == State::Idle)
            .count()
            == 2
    };
    plane.until("connected", connected).await;
    let mut client = client(&plane).await;
    let ann = KickRequest {
        node: None,
        who: Some(Who::Username("ann".into())),
        keep_out_ms: None,
    };
    let answers = client
        .kick(call(&operator, ann.clone()))
        .await
        .unwrap()
        .into_inner()
        .answers;
    assert_eq!(answers.len(), 2, "connected ones");
    assert_eq!((answers[0].sessions, answers[0].error.as_str()), (3, ""));
    assert!(answers[1].error.contains("`kick`"), "{:?}", answers[1]);
    for (bearer, who, node, code) in [
        (&operator, None, None, Code::InvalidArgument),
        (
            &operator,
            Some(Who::ClientId(String::new())),
            None,
            Code::InvalidArgument,
        ),
        (
            &operator,
            ann.who.clone(),
            Some("nobody".to_owned()),
            Code::NotFound,
        ),
        (&viewer, ann.who.clone(), None, Code::PermissionDenied),
    ] {
        let refused = client
            .kick(call(
                bearer,
                KickRequest {
                    node,
                    who,
                    keep_out_ms: None,
                },
            ))
            .await;
        assert_eq!(refused.unwrap_err().code(), code);
    }
    for (node, code) in [
        ("off", Code::FailedPrecondition),
        ("b", Code::FailedPrecondition),
    ] {
        let drain = DrainRequest {
            node: node.into(),
            ..DrainRequest::default()
        };
        let refused = client.drain(call(&operator, drain)).await;
        assert_eq!(refused.unwrap_err().code(), code);
    }
    for undo in [false, true] {
        let drain = DrainRequest {
            node: "a".into(),
            within_ms: Some(500),
            undo,
        };
        let answer = client
            .drain(call(&operator, drain))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.answers[0].error, "");
        a.until("told", |seen| seen.is_draining != undo).await;
        plane
            .until("shown", |views| views[0].told.is_draining != undo)
            .await;
    }
    let remove = RemoveNodeRequest { node: "a".into() };
    let refused = client.remove(call(&operator, remove.clone())).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let admin = plane.operator("adam", Role::Admin).await;
    client
        .remove(call(&admin, remove.clone()))
        .await
        .expect("removed");
    let refused = client.remove(call(&admin, remove)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(a.ended().await.1.code(), Code::Unauthenticated);
    let records = plane.store.audit(None, 100).await.expect("the audit");
    let done: Vec<_> = records
        .iter()
        .rev()
        .filter(|record| record.who != "test")
        .inspect(|record| {
            let peer = record.peer.as_deref().expect("recorded");
            let peer: std::net::SocketAddr = peer.parse().expect("an address and a port");
            assert!(peer.ip().is_loopback(), "{record:?}");
        })
        .map(|record| {
            (
                record.who.as_str(),
                record.action.as_str(),
                record.what.as_str(),
            )
        })
        .collect();
    assert_eq!(
        done,
        [
            ("olga", "session.kick", "user `ann`"),
            ("olga", "node.drain", "node a"),
            ("olga", "node.undrain", "node a"),
            ("adam", "node.remove", "node a"),
        ]
    );
}

#[tokio::test]
async fn rules_are_added_up_over_nodes_page_by_page() {
    let plane = Plane::start(&["a", "b", "c", "off"]).await;
    let viewer = plane.operator("viewer", Role::Viewer).await;
    let rules = |counts: &[u64]| -> Vec<rule_page::Rule> {
        let rule = |(n, decided): (usize, &u64)| rule_page::Rule {
            place: Some(RulePlace {
                priority: -(n as i64),
                name: format!("r{n}"),
                ..RulePlace::default()
            }),
            decided: *decided,
            since_unix_ms: 10 + decided,
            ..rule_page::Rule::default()
        };
        counts.iter().enumerate().map(rule).collect()
    };
    let with = |node: &str, counts| Options {
        rules: rules(counts),
        ..options(node)
    };
    let unable = Options {
        capabilities: Vec::new(),
        ..options("c")
    };
    let _a = Running::start(&plane, with("a", &[1, 0, 0, 4, 0]), Memory::default()).await;
    let _b = Running::start(&plane, with("b", &[1, 0, 3]), Memory::default()).await;
    let _c = Running::start(&plane, unable, Memory::default()).await;
    let connected = |views: &[sluice_controlplane::fleet::View]| {
        let idle = views.iter().filter(|view| view.state == State::Idle);
        idle.count() == 3
    };
    plane.until("connected", connected).await;
    let mut client = client(&plane).await;
    let mut wish = RulesRequest {
        limit: Some(2),
        ..RulesRequest::default()
    };
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = client.rules(call(&viewer, wish.clone())).await;
        let page = page.expect("a page").into_inner();
        assert!(page.rules.len() <= 2 && page.nodes == 2, "{page:?}");
        assert_eq!((page.by_default, page.since_unix_ms), (2, 1));
        let failed: Vec<&str> = page.failed.iter().map(|node| &*node.node).collect();
        assert_eq!(failed, ["c", "off"]);
        assert!(page.failed[0].error.contains("`rules`"), "{page:?}");
        found.extend(page.rules.into_iter().map(|rule| {
            let name = rule.place.expect("a place").name;
            (name, rule.decided, rule.since_unix_ms, rule.nodes)
        }));
        pages += 1;
        match page.next {
            Some(next) => wish.behind = Some(next),
            None => break,
        }
    }
    let row = |name: &str, decided, since, nodes| (name.to_owned(), decided, since, nodes);
    let expected = [
        row("r0", 2, 11, 2),
        row("r1", 0, 10, 2),
        row("r2", 3, 13, 2),
        row("r3", 4, 14, 1),
        row("r4", 0, 10, 1),
    ];
    assert_eq!((found.as_slice(), pages), (&expected[..], 3));

    // Unused means: on no node. A node may have used what another has not.
    let wish = RulesRequest {
        only_unused: true,
        ..RulesRequest::default()
    };
    let page = client
        .rules(call(&viewer, wish))
        .await
        .unwrap()
        .into_inner();
    let unused = page.rules.into_iter().map(|rule| rule.place.unwrap().name);
    assert_eq!(unused.collect::<Vec<_>>(), ["r1", "r4"]);
    assert_eq!(page.next, None);
    let stranger = RulesRequest {
        node: Some("d".into()),
        ..RulesRequest::default()
    };
    let refused = client.rules(call(&viewer, stranger)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}
