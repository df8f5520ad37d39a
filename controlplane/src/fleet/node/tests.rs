//! The machine against a model of a node: tables for each turn of a delivery, and random histories that must converge.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashSet;
use proptest::prelude::*;
use sluice_policy::fleet::{
    Assembly, Change, Delivered, Delivery, Inventory, inventory_chunks, row_digest,
};
use sluice_proto::v1::{self, from_node, reject::Reason, row::Kind};
use tokio::time::Instant;

use super::super::history::History;
use super::*;
use crate::domain::StoreId;

const SHARDS: u32 = 2;

/// A row whose content is `value`; the big ones make a delivery of several chunks.
fn change(name: usize, value: u64) -> Change {
    let bytes = if name < 2 { 600 << 10 } else { 10 };
    let row = v1::Row {
        name: format!("r{name}"),
        kind: Some(Kind::Rule(v1::Rule {
            topics: vec![format!("{value}/{}", "x".repeat(bytes))],
            ..v1::Rule::default()
        })),
        ..v1::Row::default()
    };
    Change::from_message(&row).expect("a good row")
}

fn removal(name: usize) -> Change {
    Change {
        row: None,
        ..change(name, 0)
    }
}

/// A data plane, as the contract describes it.
#[derive(Default)]
struct Peer {
    held: Option<GenerationId>,
    rows: Inventory,
    assembly: Assembly,
    features: Vec<String>,
    version: String,
    /// Generations whose rows it finds wrong.
    refuses: HashSet<GenerationId>,
    active: [Option<GenerationId>; SHARDS as usize],
    expected: Option<(v1::GenerationId, u32)>,
    /// Rows that came, and how many of them it had.
    came: usize,
    had: usize,
}

impl Peer {
    fn hello(&mut self) -> v1::Hello {
        self.assembly = Assembly::default();
        self.expected = None;
        v1::Hello {
            node: "n".into(),
            version: self.version.clone(),
            features: self.features.clone(),
            shards: SHARDS,
            held: self.held.map(GenerationId::to_wire),
            ..v1::Hello::default()
        }
    }

    fn heartbeat(&self) -> from_node::Message {
        let shard = |active: &Option<GenerationId>| v1::heartbeat::Shard {
            active: active.map(GenerationId::to_wire),
            ..v1::heartbeat::Shard::default()
        };
        from_node::Message::Heartbeat(v1::Heartbeat {
            shards: self.active.iter().map(shard).collect(),
            ..v1::Heartbeat::default()
        })
    }

    fn take(&mut self, chunk: v1::GenerationChunk) -> Vec<from_node::Message> {
        let wire_id = chunk.generation.clone().expect("every chunk has one");
        let id = GenerationId::from_wire(&wire_id).expect("a whole id");
        if chunk.index > 0 {
            let expected = Some((wire_id.clone(), chunk.index));
            assert_eq!(self.expected, expected, "chunks of two generations");
        }
        self.expected = (!chunk.is_last).then_some((wire_id, chunk.index + 1));
        self.came += chunk.changes.len();
        let has = |change: &&v1::RowChange| {
            let key = change.key.clone().and_then(RowKey::from_wire);
            let mine = key.and_then(|key| self.rows.get(&key).cloned());
            mine.map(|row| row_digest(&row)) == change.row.as_ref().map(|row| row_digest(row))
        };
        self.had += chunk.changes.iter().filter(has).count();
        match self.assembly.take(chunk) {
            Delivered::Part => Vec::new(),
            Delivered::Whole(delivery) => self.apply(delivery),
            Delivered::Refused { reason, .. } => vec![reject(id, reason)],
        }
    }

    fn apply(&mut self, delivery: Delivery) -> Vec<from_node::Message> {
        let id = GenerationId::from_wire(&delivery.generation).unwrap();
        let base = delivery.base.as_ref().and_then(GenerationId::from_wire);
        if base.is_some() && base != self.held {
            return vec![reject(id, Reason::BaseUnknown)];
        }
        let from = base.map_or_else(Inventory::default, |_| self.rows.clone());
        let rows = from.with(delivery.changes);
        if rows.digest() != id.digest {
            return vec![reject(id, Reason::Digest)];
        }
        if self.refuses.contains(&id) {
            return vec![reject(id, Reason::Invalid)];
        }
        (self.held, self.rows) = (Some(id), rows);
        self.active = [Some(id); SHARDS as usize];
        (0..SHARDS).map(|shard| ack(id, shard)).collect()
    }
}

fn ack(id: GenerationId, shard: u32) -> from_node::Message {
    from_node::Message::Ack(v1::Ack {
        generation: Some(id.to_wire()),
        shard,
    })
}

fn reject(id: GenerationId, reason: Reason) -> from_node::Message {
    from_node::Message::Reject(v1::Reject {
        generation: Some(id.to_wire()),
        reason: reason.into(),
        ..v1::Reject::default()
    })
}

/// The machine, its peer, and what is on the way between them.
struct World {
    node: Node,
    history: History,
    peer: Peer,
    in_force: Option<Arc<Released>>,
    number: u64,
    to_node: Vec<v1::GenerationChunk>,
    to_plane: VecDeque<from_node::Message>,
    events: Vec<Event>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            node: Node::default(),
            history: History::new(),
            peer: Peer::default(),
            in_force: None,
            number: 0,
            to_node: Vec::new(),
            to_plane: VecDeque::new(),
            events: Vec::new(),
            now: Instant::now(),
        }
    }

    fn release(&mut self, changes: Vec<Change>) -> GenerationId {
        self.release_needing(changes, &[])
    }

    fn release_needing(&mut self, changes: Vec<Change>, features: &[&str]) -> GenerationId {
        let before = self.in_force.as_ref().map(|released| &released.rows);
        let rows = before.cloned().unwrap_or_default().with(changes);
        self.number += 1;
        let id = GenerationId {
            store: StoreId([7; 16]),
            number: self.number,
            digest: rows.digest(),
        };
        let released = Arc::new(Released {
            id,
            rows,
            features: Arc::new(features.iter().map(|word| (*word).to_owned()).collect()),
            warnings: Arc::default(),
            since: self.now,
        });
        self.in_force = Some(Arc::clone(&released));
        if self.node.is_connected() {
            self.history.see(&released);
            let event = self.node.desire(Some(released), self.now);
            self.events.extend(event);
        }
        id
    }

    fn connect(&mut self) {
        self.disconnect();
        if let Some(released) = &self.in_force {
            self.history.see(released);
        }
        let hello = self.peer.hello();
        let event = self.node.hello(hello, self.in_force.clone(), self.now);
        self.events.extend(event.expect("a good Hello"));
        self.to_plane.push_back(self.peer.heartbeat());
    }

    fn disconnect(&mut self) {
        self.node.close();
        self.to_node.clear();
        self.to_plane.clear();
    }

    /// The transport takes one message; true when there was one.
    fn send(&mut self) -> bool {
        while let Some(plan) = self.node.next_plan(|id| self.history.knows(id)) {
            let changes = self.history.compare(&plan);
            self.node.planned(changes);
        }
        if self.node.wants_inventory() {
            self.node.ask_inventory(self.now);
            let chunks = inventory_chunks(&self.peer.rows);
            let answers = chunks.into_iter().map(from_node::Message::Inventory);
            self.to_plane.extend(answers);
            return true;
        }
        let chunk = self.node.next_chunk(self.now);
        let has = chunk.is_some();
        self.to_node.extend(chunk);
        has
    }

    /// The node reads one chunk; true when there was one.
    fn read(&mut self) -> bool {
        if self.to_node.is_empty() {
            return false;
        }
        let chunk = self.to_node.remove(0);
        let answers = self.peer.take(chunk);
        self.to_plane.extend(answers);
        true
    }

    /// The control plane reads one message; true when there was one.
    fn hear(&mut self) -> bool {
        let message = self.to_plane.pop_front();
        let has = message.is_some();
        if let Some(message) = message {
            let event = self.node.receive(message, self.now);
            self.events.extend(event);
        }
        has
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !(self.send() | self.read() | self.hear()) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn state(&self) -> State {
        self.node.state(self.in_force.as_deref())
    }

    fn rejections(&self, wanted: Reason) -> usize {
        let is_it =
            |event: &&Event| matches!(event, Event::Rejected { reason, .. } if *reason == wanted);
        self.events.iter().filter(is_it).count()
    }
}

fn rows(count: usize) -> Vec<Change> {
    (0..count).map(|name| change(name, 0)).collect()
}

#[test]
fn a_new_node_gets_the_whole_and_then_only_what_changed() {
    let mut world = World::new();
    world.connect();
    world.settle();
    assert_eq!(world.state(), State::Idle);
    let first = world.release(rows(20));
    assert_eq!(world.state(), State::Delivering);
    world.settle();
    assert_eq!(world.state(), State::Active);
    assert_eq!(world.node.delivered(), Some(first));
    assert_eq!(world.peer.came, 20);
    world.now += Duration::from_millis(30);
    let second = world.release(vec![change(7, 1)]);
    world.now += Duration::from_millis(40);
    world.settle();
    assert_eq!((world.peer.came, world.peer.had), (21, 0));
    assert_eq!(world.peer.rows.digest(), second.digest);
    let took = Some(Duration::from_millis(40));
    let generation = second;
    assert_eq!(
        world.events.last(),
        Some(&Event::Active { generation, took })
    );
}

#[test]
fn a_reconnect_brings_only_what_the_node_lacks_and_nothing_when_it_lacks_nothing() {
    let mut world = World::new();
    world.release(rows(20));
    world.connect();
    world.settle();
    let events = world.events.len();
    world.disconnect();
    assert_eq!(world.state(), State::Offline);
    world.connect();
    world.settle();
    assert_eq!((world.state(), world.peer.came), (State::Active, 20));
    assert_eq!(
        world.events.len(),
        events,
        "active once for each generation"
    );
    world.disconnect();
    world.release(vec![change(3, 1), removal(4)]);
    world.release(vec![change(5, 1)]);
    world.connect();
    world.settle();
    assert_eq!(
        (world.state(), world.peer.came, world.peer.had),
        (State::Active, 23, 0)
    );
}

#[test]
fn a_node_with_an_unknown_generation_is_asked_and_gets_what_it_lacks() {
    let mut world = World::new();
    world.release(rows(20));
    let mut held = world.in_force.as_ref().unwrap().id;
    held.store = StoreId([9; 16]);
    world.peer.held = Some(held);
    world.peer.rows = Inventory::default().with(rows(19)).with([change(30, 3)]);
    world.connect();
    world.settle();
    assert_eq!(world.state(), State::Active);
    assert_eq!(
        (world.peer.came, world.peer.had),
        (2, 0),
        "one put, one removed"
    );
}

#[test]
fn a_node_that_was_wrong_about_what_it_holds_gets_the_whole_once() {
    let mut world = World::new();
    world.release(rows(20));
    world.connect();
    world.settle();
    world.peer.rows = Inventory::default().with(rows(3)); // its disk lied
    world.release(vec![change(9, 1)]);
    world.settle();
    assert_eq!(
        (world.state(), world.peer.came),
        (State::Active, 20 + 1 + 20)
    );
    assert_eq!(world.rejections(Reason::Digest), 0, "it took it in the end");
}

#[test]
fn the_whole_that_is_refused_as_well_is_a_rejection_and_is_not_sent_again() {
    let mut world = World::new();
    world.release(rows(5));
    world.connect();
    world.settle();
    let id = world.release(vec![change(4, 1)]);
    for _ in 0..2 {
        assert!(world.send(), "first the changes, then the whole");
        while world.send() {}
        world.to_node.clear();
        world.to_plane.push_back(reject(id, Reason::BaseUnknown));
        world.hear();
    }
    assert_eq!(world.state(), State::Rejected);
    assert!(!world.send());
    assert_eq!(world.rejections(Reason::BaseUnknown), 1);
    world.release(vec![change(4, 2)]);
    world.settle();
    assert_eq!(world.state(), State::Active);
}

#[test]
fn a_rejected_generation_waits_for_another_one_or_another_program() {
    let mut world = World::new();
    let good = world.release(rows(5));
    world.connect();
    world.settle();
    let bad = world.release(vec![change(4, 1)]);
    world.peer.refuses.insert(bad);
    world.settle();
    assert_eq!(world.state(), State::Rejected);
    assert_eq!(
        world.node.told().active(),
        Some(good),
        "it keeps what it has"
    );
    assert_eq!(world.rejections(Reason::Invalid), 1);
    let came = world.peer.came;
    world.connect();
    world.settle();
    assert_eq!((world.state(), world.peer.came), (State::Rejected, came));
    world.peer.version = "2".into();
    world.peer.refuses.clear();
    world.connect();
    world.settle();
    assert_eq!((world.state(), world.peer.came), (State::Active, came + 1));
}

#[test]
fn a_generation_that_needs_a_missing_feature_is_never_sent() {
    let mut world = World::new();
    world.release(rows(5));
    world.connect();
    world.settle();
    let came = world.peer.came;
    world.release_needing(vec![change(4, 1)], &["b", "a"]);
    world.settle();
    assert_eq!((world.state(), world.peer.came), (State::Rejected, came));
    let refusal = world.node.refusal(world.in_force.as_deref()).unwrap();
    assert_eq!(refusal.reason, Reason::Features);
    let words: Vec<_> = refusal
        .problems
        .iter()
        .map(|p| p.message.as_str())
        .collect();
    assert!(
        words[0].contains("`a`") && words[1].contains("`b`"),
        "{words:?}"
    );
    world.peer.features = vec!["a".into(), "b".into()];
    world.connect();
    world.settle();
    assert_eq!((world.state(), world.peer.came), (State::Active, came + 1));
}

#[test]
fn a_newer_generation_waits_for_the_end_of_the_one_under_way_and_only_the_newest_does() {
    let mut world = World::new();
    world.connect();
    let first = world.release(rows(5));
    assert!(world.send(), "the first of two chunks");
    let numbers = |world: &World| -> Vec<u64> {
        let id = |chunk: &v1::GenerationChunk| chunk.generation.as_ref().unwrap().number;
        world.to_node.iter().map(id).collect()
    };
    for value in 1..4 {
        world.release(vec![change(4, value)]);
    }
    while world.send() {}
    assert_eq!(numbers(&world), [1, 1], "the second waits for the answer");
    while world.read() {}
    world.hear();
    world.hear();
    assert_eq!(world.node.delivered(), Some(first));
    while world.send() {}
    assert_eq!(numbers(&world), [4]);
    world.settle();
    assert_eq!((world.state(), world.peer.came), (State::Active, 6));
}

#[test]
fn sweeping_is_when_some_shards_are_there() {
    let mut world = World::new();
    world.release(rows(5));
    world.connect();
    while world.send() {}
    while world.read() {}
    let id = world.in_force.as_ref().unwrap().id;
    world.to_plane = VecDeque::from([ack(id, 1)]);
    world.hear();
    assert_eq!(world.state(), State::Sweeping);
    assert_eq!(world.node.told().active(), None);
    world.to_plane.push_back(ack(id, 0));
    world.hear();
    assert_eq!(world.state(), State::Active);
}

#[test]
fn silence_has_an_end() {
    let patience = Patience {
        heartbeats: Duration::from_secs(35),
        inventory: Duration::from_secs(20),
        answer: Duration::from_secs(25),
    };
    let mut world = World::new();
    world.connect();
    let late = world.now + patience.heartbeats;
    assert_eq!(world.node.deadline(&patience), Some(late));
    let early = late.checked_sub(Duration::from_millis(1)).unwrap();
    assert_eq!(world.node.overdue(&patience, early), None);
    assert!(world.node.overdue(&patience, late).is_some());
    world.now = early;
    world.hear();
    assert_eq!(world.node.overdue(&patience, late), None);
    world.peer.held = Some(world.release(rows(1)));
    world.peer.held.as_mut().unwrap().number = 99;
    world.connect();
    world.send();
    let asked_until = world.now + patience.inventory;
    assert_eq!(world.node.deadline(&patience), Some(asked_until));
    assert!(world.node.overdue(&patience, asked_until).is_some());
}

#[test]
fn an_answer_that_does_not_come_has_an_end_and_one_that_comes_has_none() {
    let patience = Patience {
        heartbeats: Duration::from_secs(35),
        inventory: Duration::from_secs(20),
        answer: Duration::from_secs(25),
    };
    let mut world = World::new();
    world.connect();
    world.settle();
    world.release(rows(2));
    assert!(world.send(), "the first of two chunks");
    let heartbeats = world.now + patience.heartbeats;
    assert_eq!(
        world.node.deadline(&patience),
        Some(heartbeats),
        "not all sent"
    );
    assert!(world.send(), "the second");
    let due = world.now + patience.answer;
    assert_eq!(world.node.deadline(&patience), Some(due));
    assert!(world.node.overdue(&patience, due).is_some());
    world.settle();
    assert_eq!(world.state(), State::Active);
    assert_eq!(world.node.overdue(&patience, due), None);
}

#[test]
fn a_delivery_refused_in_the_middle_is_followed_by_the_whole_and_what_was_on_its_way_is_passed_over()
 {
    let big = |name: usize| {
        let row = v1::Row {
            name: format!("big{name}"),
            kind: Some(Kind::Rule(v1::Rule {
                topics: vec!["x".repeat(900 << 10)],
                ..v1::Rule::default()
            })),
            ..v1::Row::default()
        };
        Change::from_message(&row).expect("a good row")
    };
    let mut world = World::new();
    world.connect();
    world.release(rows(3));
    world.settle();
    let second = world.release((0..4).map(big).collect());
    while world.send() {}
    assert_eq!(world.to_node.len(), 4);
    // What a peer that does not keep the contract would send.
    world.to_node[1].base = None;
    assert!(world.read() && world.read() && world.hear());
    while world.send() {}
    assert!(world.to_node.len() > 4, "two of the first, and the whole");
    world.settle();
    assert_eq!(world.state(), State::Active);
    assert_eq!(world.peer.rows.digest(), second.digest);
    assert_eq!(world.rejections(Reason::Digest), 0);
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Send,
    Read,
    Hear,
    Disconnect,
    Connect,
    Release(usize, u64),
    Remove(usize),
    /// The next generation is one that the node refuses.
    ReleaseBad(usize, u64),
    /// The node comes back with what an old backup held, under a name that the control plane does not know.
    Restore,
    /// The node comes back with nothing.
    Wipe,
    /// The node's rows are not those of what it says it holds.
    Corrupt,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..6_usize;
    let value = 1..1000_u64;
    prop_oneof![
        6 => Just(Step::Send),
        6 => Just(Step::Read),
        6 => Just(Step::Hear),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
        3 => (name.clone(), value.clone()).prop_map(|(name, value)| Step::Release(name, value)),
        1 => name.clone().prop_map(Step::Remove),
        1 => (name, value).prop_map(|(name, value)| Step::ReleaseBad(name, value)),
        1 => Just(Step::Restore),
        1 => Just(Step::Wipe),
        1 => Just(Step::Corrupt),
    ]
}

impl World {
    /// What the peer counts as rows it had are the machine's mistakes, but where it was misled.
    fn step(&mut self, step: &Step) {
        match step {
            Step::Send => drop(self.send()),
            Step::Read => drop(self.read()),
            Step::Hear => drop(self.hear()),
            Step::Disconnect => self.disconnect(),
            Step::Connect => self.connect(),
            Step::Release(name, value) => drop(self.release(vec![change(*name, *value)])),
            Step::Remove(name) => drop(self.release(vec![removal(*name)])),
            Step::ReleaseBad(name, value) => {
                let id = self.release(vec![change(*name, *value)]);
                self.peer.refuses.insert(id);
            }
            Step::Restore => {
                self.disconnect();
                let mut id = self.release(Vec::new());
                id.store = StoreId([1; 16]);
                self.peer.held = Some(id);
                self.peer.rows = Inventory::default().with([change(2, 5), change(9, 5)]);
                self.peer.active = [None; SHARDS as usize];
                self.connect();
            }
            Step::Wipe => {
                self.disconnect();
                self.peer.held = None;
                self.peer.rows = Inventory::default();
                self.peer.active = [None; SHARDS as usize];
                self.connect();
            }
            Step::Corrupt => self.peer.rows = self.peer.rows.with([change(8, 77)]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Chunks of two generations between each other, or out of order, fail in [`Peer::take`].
    #[test]
    fn whatever_happens_a_good_node_comes_to_have_what_is_in_force(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut world = World::new();
        world.release(rows(6));
        world.connect();
        for one in &steps {
            world.step(one);
        }
        if steps.iter().any(|step| matches!(step, Step::Corrupt)) {
            // A node that says that it holds what is in force is believed: only the next generation shows that it lied.
            world.release(vec![change(4, 4000)]);
        }
        world.connect();
        world.settle();
        let in_force = world.in_force.clone().expect("released");
        if world.peer.refuses.contains(&in_force.id) {
            prop_assert_eq!(world.state(), State::Rejected);
            world.release(vec![change(3, 2000)]);
            world.settle();
        }
        prop_assert_eq!(world.state(), State::Active);
        let in_force = world.in_force.clone().expect("released");
        prop_assert_eq!(world.peer.held, Some(in_force.id));
        prop_assert_eq!(world.peer.rows.digest(), in_force.id.digest);
        // And from here on one row is one row.
        (world.peer.came, world.peer.had) = (0, 0);
        world.release(vec![change(2, 3000)]);
        world.settle();
        prop_assert_eq!((world.state(), world.peer.came, world.peer.had), (State::Active, 1, 0));
    }

    #[test]
    fn a_node_that_holds_what_it_says_never_gets_a_row_that_it_has(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut world = World::new();
        world.release(rows(6));
        world.connect();
        for one in steps.iter().filter(|step| !matches!(step, Step::Corrupt)) {
            world.step(one);
        }
        world.settle();
        prop_assert_eq!(world.peer.had, 0);
        prop_assert_eq!(world.rejections(Reason::Digest), 0);
    }
}
