//! Deadlines and bounds of one stream on a paused clock, with channels in place of the network.

use std::time::Duration;

use sluice_policy::fleet::{Change, Inventory};
use sluice_proto::v1;
use sluice_proto::v1::row::Kind;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::*;
use crate::auth::Gate;
use crate::domain::{
    GenerationId, JoinToken, Name, NodeRecord, SecretHash, StoreId, TokenId, UnixMillis,
};
use crate::fleet::{Capability, Fleet, Limits, Question, State};
use crate::release::Released;
use crate::store::{Sqlite, Store};

struct Wire {
    fleet: Fleet,
    member: Arc<Member>,
    in_force: watch::Sender<Option<Arc<Released>>>,
    to_plane: mpsc::Sender<Result<FromNode, Status>>,
    to_node: Outgoing,
    _folder: tempfile::TempDir,
}

impl Wire {
    /// One member, whose stream is open and has said nothing. The clock stands still from here on.
    async fn open() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Sqlite::open(folder.path()).await.expect("a store");
        let hash = SecretHash([1; 32]);
        let id = TokenId("joinjoinjoinjoin".into());
        let audit = || crate::domain::AuditEntry {
            at: UnixMillis(1),
            who: "test".into(),
            action: "test",
            what: String::new(),
            before: String::new(),
            after: String::new(),
            request_id: String::new(),
            peer: "127.0.0.1:7".into(),
        };
        let token = JoinToken {
            id: id.clone(),
            node: None,
            uses_left: 1,
            hash,
            created_at: UnixMillis(1),
            created_by: "test".into(),
            expires_at: UnixMillis(u64::MAX >> 1),
            revoked_at: None,
        };
        store.add_join_token(token, audit()).await.expect("a token");
        let record = NodeRecord {
            name: Name::parse("n").expect("a name"),
            hash,
            enrolled_at: UnixMillis(1),
            join_token: id,
        };
        store.enroll(record, audit()).await.expect("a member");
        let gate = Gate::open(Arc::new(store)).await.expect("a gate");
        let in_force = watch::Sender::new(None);
        let fleet = Fleet::open(gate, in_force.subscribe())
            .await
            .expect("a fleet");
        let member = fleet.inner.members().values().next().cloned();
        let member = member.expect("one member");
        tokio::time::pause();
        let (to_plane, inbound) = mpsc::channel(64);
        let inbound = ReceiverStream::new(inbound);
        let to_node = serve(&fleet.inner, &member, String::new(), inbound);
        Self {
            fleet,
            member,
            in_force,
            to_plane,
            to_node: to_node.expect("a seat"),
            _folder: folder,
        }
    }

    async fn say(&self, message: from_node::Message) {
        let message = FromNode {
            message: Some(message),
        };
        self.to_plane.send(Ok(message)).await.expect("it listens");
    }

    async fn hello(&self, held: Option<GenerationId>) {
        let hello = v1::Hello {
            node: "n".into(),
            shards: 1,
            capabilities: vec!["kick".into()],
            held: held.map(GenerationId::to_wire),
            ..v1::Hello::default()
        };
        self.say(from_node::Message::Hello(hello)).await;
        let mut changes = self.fleet.changes();
        while !self.member.look(|seat| seat.node.is_connected()) {
            changes.changed().await.expect("the fleet lives");
        }
    }

    /// Another stream of the same node.
    fn connect_again(&mut self) {
        let (to_plane, inbound) = mpsc::channel(64);
        let inbound = ReceiverStream::new(inbound);
        let to_node = serve(&self.fleet.inner, &self.member, String::new(), inbound);
        (self.to_plane, self.to_node) = (to_plane, to_node.expect("a seat"));
    }

    fn release(&self, rows: usize, bytes: usize) -> GenerationId {
        self.release_as(1, rows, bytes)
    }

    fn release_as(&self, number: u64, rows: usize, bytes: usize) -> GenerationId {
        let row = |n: usize| v1::Row {
            name: format!("r{n}"),
            kind: Some(Kind::Rule(v1::Rule {
                topics: vec!["x".repeat(bytes)],
                ..v1::Rule::default()
            })),
            ..v1::Row::default()
        };
        let changes = (0..rows).map(|n| Change::from_message(&row(n)).expect("a good row"));
        let rows = Inventory::default().with(changes);
        let id = GenerationId {
            store: StoreId([1; 16]),
            number,
            digest: rows.digest(),
        };
        self.in_force.send_replace(Some(Arc::new(Released {
            id,
            rows,
            features: Arc::default(),
            warnings: Arc::default(),
            since: Instant::now(),
        })));
        id
    }

    /// Reads to the end; how many messages there were, and why it ended.
    async fn end(&mut self) -> (usize, Status) {
        let mut count = 0;
        loop {
            match self.to_node.next().await {
                Some(Ok(_)) => count += 1,
                Some(Err(status)) => return (count, status),
                None => return (count, Status::ok("ended")),
            }
        }
    }

    async fn until(&self, state: State) {
        let mut changes = self.fleet.changes();
        while self.state() != state {
            changes.changed().await.expect("the fleet lives");
        }
    }

    fn state(&self) -> State {
        let desired = self.in_force.borrow().clone();
        self.member.look(|seat| seat.node.state(desired.as_deref()))
    }
}

#[tokio::test]
async fn a_stream_without_a_hello_ends() {
    let mut wire = Wire::open().await;
    let begun = Instant::now();
    let (_, status) = wire.end().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(begun.elapsed() >= Limits::default().hello);
}

#[tokio::test]
async fn three_missing_heartbeats_make_a_node_offline() {
    let mut wire = Wire::open().await;
    wire.hello(None).await;
    let begun = Instant::now();
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(30)).await;
        wire.say(from_node::Message::Heartbeat(v1::Heartbeat::default()))
            .await;
        while wire.to_plane.capacity() < wire.to_plane.max_capacity() {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.state(), State::Idle, "it was heard all the time");
    let (_, status) = wire.end().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(wire.state(), State::Offline);
    let took = begun.elapsed().as_secs();
    assert_eq!(took, 300 + Limits::default().patience.heartbeats.as_secs());
}

#[tokio::test]
async fn a_node_that_does_not_read_costs_one_chunk_and_ends() {
    let mut wire = Wire::open().await;
    wire.release(5, 900 << 10);
    wire.hello(None).await;
    let mut changes = wire.fleet.changes();
    let stall = Limits::default().stall;
    let begun = Instant::now();
    // It is alive, and takes nothing.
    while wire.state() != State::Offline {
        tokio::select! {
            changed = changes.changed() => changed.expect("the fleet lives"),
            () = tokio::time::sleep(Duration::from_secs(10)) => {
                wire.say(from_node::Message::Heartbeat(v1::Heartbeat::default())).await;
            }
        }
    }
    assert!(begun.elapsed() >= stall && begun.elapsed() < stall * 2);
    let (chunks, status) = wire.end().await;
    assert_eq!((chunks, status.code()), (1, Code::ResourceExhausted));
}

#[tokio::test]
async fn an_inventory_that_does_not_come_ends_the_stream() {
    let mut wire = Wire::open().await;
    let mut held = wire.release(1, 10);
    held.number = 99;
    wire.hello(Some(held)).await;
    let asked = wire
        .to_node
        .next()
        .await
        .expect("a message")
        .expect("no end");
    assert!(matches!(
        asked.message,
        Some(to_node::Message::AskInventory(_))
    ));
    let begun = Instant::now();
    let patience = Limits::default().patience.inventory;
    let mut ended = std::pin::pin!(async { wire.to_node.next().await });
    let status = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            () = tokio::time::sleep(Duration::from_secs(10)) => {
                let heartbeat = from_node::Message::Heartbeat(v1::Heartbeat::default());
                let message = FromNode { message: Some(heartbeat) };
                // The last one may come after the end.
                let _ = wire.to_plane.send(Ok(message)).await;
            }
        }
    };
    let status = status.expect("a status").expect_err("an end");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(begun.elapsed() >= patience && begun.elapsed() < patience * 2);
}

#[tokio::test]
async fn a_node_that_lives_and_neither_takes_nor_refuses_begins_anew_with_the_newest() {
    let mut wire = Wire::open().await;
    wire.release(2, 10);
    wire.hello(None).await;
    let begun = Instant::now();
    let sent = wire.to_node.next().await;
    let sent = sent.expect("a message").expect("no end");
    assert!(matches!(
        sent.message,
        Some(to_node::Message::Generation(_))
    ));
    // It waits for the node's answer.
    let newest = wire.release_as(2, 3, 10);
    let to_plane = wire.to_plane.clone();
    let (more, status) = {
        let mut ended = std::pin::pin!(wire.end());
        loop {
            tokio::select! {
                ended = &mut ended => break ended,
                () = tokio::time::sleep(Duration::from_secs(10)) => {
                    let heartbeat = from_node::Message::Heartbeat(v1::Heartbeat::default());
                    let message = FromNode { message: Some(heartbeat) };
                    // The last one may come after the end.
                    let _ = to_plane.send(Ok(message)).await;
                }
            }
        }
    };
    assert_eq!((more, status.code()), (0, Code::DeadlineExceeded));
    let waited = Limits::default().patience.answer;
    assert_eq!(begun.elapsed().as_secs(), waited.as_secs());
    assert_eq!(wire.state(), State::Offline);
    wire.connect_again();
    wire.hello(None).await;
    let sent = wire.to_node.next().await;
    let sent = sent.expect("a message").expect("no end");
    let Some(to_node::Message::Generation(chunk)) = sent.message else {
        panic!("{sent:?}");
    };
    let sent = chunk.generation.as_ref().and_then(GenerationId::from_wire);
    assert_eq!(sent, Some(newest));
    wire.say(from_node::Message::Ack(v1::Ack {
        generation: chunk.generation,
        shard: 0,
    }))
    .await;
    wire.until(State::Active).await;
}

#[tokio::test]
async fn so_many_inventories_are_in_memory_at_once_and_others_wait() {
    let mut wire = Wire::open().await;
    let places = u32::try_from(crate::fleet::INVENTORIES_MAX).expect("few");
    let taken = Arc::clone(&wire.fleet.inner.inventories);
    let taken = taken.acquire_many_owned(places).await.expect("open");
    let mut held = wire.release(1, 10);
    held.number = 99;
    wire.hello(Some(held)).await;
    let waited = timeout(Duration::from_secs(30), wire.to_node.next()).await;
    assert!(waited.is_err(), "asked without a place: {waited:?}");
    drop(taken);
    let asked = wire.to_node.next().await;
    let asked = asked.expect("a message").expect("no end").message;
    assert!(matches!(asked, Some(to_node::Message::AskInventory(_))));
    let left = || wire.fleet.inner.inventories.available_permits();
    assert_eq!(left() + 1, crate::fleet::INVENTORIES_MAX);
    wire.fleet.close();
    wire.until(State::Offline).await;
    while left() < crate::fleet::INVENTORIES_MAX {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_fleet_takes_so_many_members_and_so_many_joining_at_once() {
    let wire = Wire::open().await;
    let inner = &wire.fleet.inner;
    let join = || async {
        let wish = v1::EnrollRequest {
            join_token: "jt".into(),
            node: "another".into(),
            secret: vec![1; 32],
        };
        let mut request = tonic::Request::new(wish);
        let peer = crate::auth::Peer::new(([127, 0, 0, 1], 1).into(), false);
        request.extensions_mut().insert(peer);
        let refused = v1::fleet_server::Fleet::enroll(&wire.fleet, request).await;
        refused.expect_err("the token is none").code()
    };
    assert_eq!(join().await, Code::Unauthenticated, "there is room");
    let places = u32::try_from(crate::fleet::ENROLLING_MAX).expect("few");
    let taken = inner.enrolling.try_acquire_many(places);
    assert_eq!(join().await, Code::ResourceExhausted);
    drop(taken);
    assert_eq!(join().await, Code::Unauthenticated, "there is room again");
    let record = &wire.member.record;
    assert!(!inner.is_full_for(&Name::parse("another").expect("a name")));
    for number in 1..crate::fleet::NODES_MAX {
        let name = Name::parse(&format!("n{number}")).expect("a name");
        let record = NodeRecord {
            name: name.clone(),
            ..record.clone()
        };
        let member = Arc::new(Member::new(record));
        inner.members_mut().insert(name, member);
    }
    assert!(inner.is_full_for(&Name::parse("another").expect("a name")));
    let known = Name::parse("n1").expect("a name");
    assert!(!inner.is_full_for(&known), "a repeated call is answered");
}

#[tokio::test]
async fn what_nodes_get_and_answer_is_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let shown = recorder.handle();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let assert_shown = |lines: &[&str]| {
        let text = shown.render();
        for line in lines {
            let found = text.lines().any(|found| found == *line);
            assert!(found, "no `{line}` in\n{text}");
        }
    };
    let mut wire = Wire::open().await;
    let state =
        |name: &str, count: u32| format!("sluice_control_nodes{{state=\"{name}\"}} {count}");
    assert_shown(&[&state("offline", 1), &state("active", 0)]);
    wire.hello(None).await;
    assert_shown(&[&state("offline", 0), &state("idle", 1)]);
    let first = wire.release(2, 10);
    wire.to_node.next().await.expect("a chunk").expect("no end");
    assert_shown(&[&state("delivering", 1), "sluice_control_rows_sent_total 2"]);
    tokio::time::advance(Duration::from_secs(2)).await;
    wire.say(from_node::Message::Ack(v1::Ack {
        generation: Some(first.to_wire()),
        shard: 0,
    }))
    .await;
    wire.until(State::Active).await;
    assert_shown(&[
        &state("active", 1),
        &state("delivering", 0),
        "sluice_control_propagation_seconds_sum 2",
        "sluice_control_propagation_seconds_count 1",
    ]);
    let second = wire.release_as(2, 3, 10);
    wire.to_node.next().await.expect("a chunk").expect("no end");
    wire.say(from_node::Message::Reject(v1::Reject {
        generation: Some(second.to_wire()),
        reason: v1::reject::Reason::Invalid.into(),
        ..v1::Reject::default()
    }))
    .await;
    wire.until(State::Rejected).await;
    assert_shown(&[
        &state("rejected", 1),
        &state("active", 0),
        "sluice_control_rejections_total{reason=\"invalid\"} 1",
        "sluice_control_rejections_total{reason=\"digest\"} 0",
        "sluice_control_rows_sent_total 3",
        "sluice_control_propagation_seconds_count 1",
    ]);
    wire.fleet.close();
    wire.end().await;
    wire.until(State::Offline).await;
    assert_shown(&[&state("offline", 1), &state("rejected", 0)]);
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_asked_so_often_and_no_more() {
    let wire = Wire::open().await;
    wire.hello(None).await;
    let name = Name::parse("n").expect("a name");
    let ask = || {
        let who = v1::kick::Who::ClientId("c".into());
        wire.fleet.ask(
            &name,
            Capability::Kick,
            Question::Kick {
                who,
                keep_out_ms: None,
            },
        )
    };
    let mut pending = Vec::new();
    let refused = loop {
        match ask() {
            Ok(one) => pending.push(one),
            Err(why) => break why,
        }
        tokio::task::yield_now().await;
        assert!(pending.len() <= 3 * REQUESTS_MAX, "no bound");
    };
    assert!(refused.contains("too many requests"), "{refused}");
    let begun = Instant::now();
    for one in pending {
        let answer = wire.fleet.answer(one).await;
        assert!(answer.is_err(), "nobody answered");
    }
    assert_eq!(begun.elapsed().as_secs(), 5, "all waited at the same time");
    let drain = Question::Drain {
        within_us: None,
        undo: false,
    };
    let refused = wire.fleet.ask(&name, Capability::Drain, drain).err();
    assert!(refused.expect("it cannot").contains("`drain`"));
}
