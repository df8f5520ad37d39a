//! The control plane killed (SIGKILL) at every step of a release and started again: nothing half applied, its word true,
//! and the node where the store says it should be. The session of a device stays open through all of it.
//!
//! Steps are found by what is seen (bytes that pass a relay, the store's file growing), and besides at random. A failure
//! prints its seed; `SLUICE_SEED=<number>` repeats it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::fmt::Write as _;

use serde_json::Value;
use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{
    Cell, Engine, Fleet, Guarded, NODE, Relay, Running, Way, number_of,
};
use sluice_loadtest::patience::{Deadline, until};
use sluice_wire::mqtt::Version;

/// Rows of a policy that are another's in the next: enough for several messages to the node.
const BULK_RULES: usize = 300;
const BULK_TOPICS: usize = 40;

/// Generation `variant` lets devices publish to `only/<variant>` and nothing else that they try.
fn policy(variant: usize, is_large: bool) -> String {
    let mut text = String::from(
        r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@STUB@"] }
groups:
  - { name: guests }
rules:
  - { name: connects, actions: [connect], decision: allow }
"##,
    );
    writeln!(
        text,
        "  - {{ name: only, actions: [publish], topics: [\"only/{variant}\"], decision: allow }}"
    )
    .unwrap();
    if is_large {
        for rule in 0..BULK_RULES {
            let topics: Vec<String> = (0..BULK_TOPICS)
                .map(|topic| format!("\"bulk/{variant}/{rule}/{topic}/{}\"", "x".repeat(200)))
                .collect();
            writeln!(
                text,
                "  - {{ name: bulk-{rule}, actions: [publish], topics: [{}], decision: deny }}",
                topics.join(", ")
            )
            .unwrap();
        }
    }
    text
}

/// Numbers that differ from run to run and can be repeated.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        let seed = std::env::var("SLUICE_SEED").ok().map_or_else(
            || std::hash::RandomState::new().build_hasher().finish(),
            |text| text.parse().unwrap(),
        );
        #[allow(clippy::print_stdout)] // shown by the test runner with the failure
        {
            println!("SLUICE_SEED={seed}");
        }
        Self(seed)
    }

    /// From 0 to `below` - 1.
    fn below(&mut self, below: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// What the store may say after a kill.
#[derive(Clone, Copy, Debug)]
struct Heads {
    newest: u64,
    released: u64,
}

struct Story {
    fleet: Guarded,
    device: Client,
    /// The variant that each generation holds, from number 1 on.
    variants: Vec<(usize, bool)>,
    heads: Heads,
    /// Generations in the order in which they came into force.
    in_force: Vec<u64>,
    packet_id: u16,
}

impl Story {
    fn begin(name: &str) -> Self {
        let cell = Cell {
            engine: Engine::Uring,
            shards: 3,
        };
        let fleet = Fleet::alone(name, cell, &[]);
        let number = fleet.put(&policy(0, true));
        assert_eq!(number, 1);
        let device = Client::open(fleet.listener("main"), Version::V5, "device");
        let mut this = Self {
            fleet,
            device,
            variants: vec![(0, true)],
            heads: Heads {
                newest: 1,
                released: 1,
            },
            in_force: vec![1],
            packet_id: 0,
        };
        this.assert_judged(0);
        this
    }

    /// The device's open session is judged by that variant and by no other.
    #[track_caller]
    fn assert_judged(&mut self, variant: usize) {
        for other in [variant.wrapping_sub(1), variant, variant + 1] {
            self.packet_id = self.packet_id % 60_000 + 1;
            let topic = format!("only/{other}");
            let code = self.device.publish_acked(&topic, "x", self.packet_id);
            assert_eq!(code < 0x80, other == variant, "{topic}: PUBACK {code:#04x}");
        }
    }

    fn next(&self) -> usize {
        self.variants
            .iter()
            .map(|(variant, _)| variant)
            .max()
            .unwrap()
            + 1
    }

    fn document(&self, variant: usize, is_large: bool) -> String {
        let text = self.fleet.policy(&policy(variant, is_large));
        self.fleet.control.document(&text).unwrap()
    }

    /// `sluicectl`, through a relay.
    fn ctl_through(&self, relay: &Relay, args: &[&str]) -> Running {
        let program = self.fleet.control.ctl_program_at(relay.address(), args);
        program.unwrap().start().unwrap()
    }

    /// Starts the control plane again and holds its word against `may`: the states of the store that are no lie.
    #[track_caller]
    fn restart_and_check(&mut self, what: &str, may: &[Heads], candidate: Option<(usize, bool)>) {
        self.fleet.control.restart().unwrap();
        let control = &self.fleet.control;
        let history = control.ctl_json(&["history", "--limit", "1000"]);
        let found = Heads {
            newest: history["newest"].as_u64().unwrap(),
            released: history["released"].as_u64().unwrap(),
        };
        let is_allowed = may
            .iter()
            .any(|heads| heads.newest == found.newest && heads.released == found.released);
        assert!(is_allowed, "{what}: {found:?} is none of {may:?}");
        if found.newest > self.heads.newest {
            assert_eq!(found.newest, self.heads.newest + 1, "{what}");
            self.variants.push(candidate.unwrap());
        }
        self.heads = found;
        if self.in_force.last() != Some(&found.released) {
            self.in_force.push(found.released);
        }
        self.check_history(what, &history);
        // Whole: what is stored says exactly what the document said.
        for number in [found.newest, found.released] {
            let (variant, is_large) = self.variant(number);
            let path = self.document(variant, is_large);
            let control = &self.fleet.control;
            let diff = control.ctl_json(&["diff", "-f", &path, "--from", &number.to_string()]);
            let changes: u64 = ["added", "changed", "removed"]
                .iter()
                .map(|kind| diff["summary"][kind].as_u64().unwrap())
                .sum();
            assert_eq!(changes, 0, "{what}: generation {number}: {diff:#}");
        }
        let audit = self.fleet.control.ctl_json(&["audit", "--limit", "1000"]);
        assert_eq!(audit["chain_is_whole"], true, "{what}");
        let released_in_audit = audit["records"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|record| {
                record["action"] == "policy.release" || record["action"] == "policy.rollback"
            })
            .count();
        let released_in_history = history["generations"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|generation| !generation["released_unix_ms"].is_null())
            .count();
        assert_eq!(released_in_audit, released_in_history, "{what}: {audit:#}");
        // The node comes to what is in force, and the device's session with it.
        until(&format!("{what}: the node has what is in force"), || {
            let node = self.fleet.control.node(NODE);
            let is_there =
                node["state"] == "active" && node["active"]["number"] == self.heads.released;
            is_there.then_some(())
        });
        let (variant, _) = self.variant(self.heads.released);
        self.assert_judged(variant);
    }

    fn variant(&self, number: u64) -> (usize, bool) {
        self.variants[usize::try_from(number).unwrap() - 1]
    }

    #[track_caller]
    fn check_history(&self, what: &str, history: &Value) {
        let generations = history["generations"].as_array().unwrap();
        let numbers: Vec<u64> = generations
            .iter()
            .map(|generation| generation["number"].as_u64().unwrap())
            .collect();
        let expected: Vec<u64> = (1..=self.heads.newest).rev().collect();
        assert_eq!(numbers, expected, "{what}");
        for generation in generations {
            let is_released = generation["number"] == self.heads.released;
            assert_eq!(
                generation["state"] == "released",
                is_released,
                "{what}: {generation:#}"
            );
        }
    }

    fn heads_with(&self, newest: u64, released: u64) -> Heads {
        Heads {
            newest: self.heads.newest + newest,
            released: if released == 0 {
                self.heads.released
            } else {
                self.heads.newest + released
            },
        }
    }
}

#[test]
fn killed_before_an_apply_and_while_the_document_comes_in() {
    let mut story = Story::begin("killed-apply");
    let mut dice = Dice::new();
    let same = story.heads;
    story.fleet.control.kill();
    let path = story.document(1, true);
    let answer = story.fleet.control.ctl_code(5, &["apply", "-f", &path]);
    assert_eq!(answer["error"]["code"], "unreachable", "{answer:#}");
    story.restart_and_check("before apply", &[same], None);
    let length = std::fs::metadata(&path).unwrap().len();
    for round in 0..3 {
        let relay = Relay::start(Some(story.fleet.control.api())).unwrap();
        let path = story.document(1, true);
        // Anywhere in the document, the last part of it never comes.
        relay.hold_after(Way::Up, 1 + dice.below(length * 9 / 10));
        let mut ctl = story.ctl_through(&relay, &["apply", "-f", &path]);
        relay.wait_held(Way::Up);
        story.fleet.control.kill();
        relay.set_target(None);
        let (status, output) = ctl.output().unwrap();
        assert_eq!(status.code(), Some(5), "{output}");
        story.restart_and_check(&format!("in apply, round {round}"), &[same], None);
    }
}

#[test]
fn killed_while_a_generation_is_stored() {
    let mut story = Story::begin("killed-store");
    let mut dice = Dice::new();
    let wal = story.fleet.control.data_dir().join("store.db-wal");
    let wal_length = || std::fs::metadata(&wal).map_or(0, |found| found.len());
    for round in 0..3 {
        let variant = story.next();
        let path = story.document(variant, true);
        let before = wal_length();
        let more = 1 + dice.below(2_000_000);
        let program = story.fleet.control.ctl_program(&["apply", "-f", &path]);
        let mut ctl = program.unwrap().start().unwrap();
        // The file grows, or is begun anew when it was emptied.
        let deadline = Deadline::generous();
        while !(wal_length() > before + more || wal_length() < before || ctl.has_ended()) {
            assert!(!deadline.has_passed(), "the store does not grow");
            std::thread::yield_now();
        }
        story.fleet.control.kill();
        let (status, _) = ctl.output().unwrap();
        let stored = story.heads_with(1, 0);
        let may = match status.code() {
            // What was promised is kept.
            Some(0) => vec![stored],
            _ => vec![story.heads, stored],
        };
        let what = format!("while it is stored, round {round}");
        story.restart_and_check(&what, &may, Some((variant, true)));
    }
}

#[test]
fn killed_between_apply_and_release() {
    let mut story = Story::begin("killed-between");
    let variant = story.next();
    let text = story.fleet.policy(&policy(variant, true));
    let number = story.fleet.control.apply(&text);
    story.fleet.control.kill();
    story.assert_judged(0);
    let stored = story.heads_with(1, 0);
    story.restart_and_check("after apply", &[stored], Some((variant, true)));
    // And it can be released as if nothing had been.
    story.fleet.control.release(number);
    story.heads.released = number;
    story.assert_judged(variant);
    story.fleet.control.kill();
    let heads = story.heads;
    story.restart_and_check("after all have acknowledged", &[heads], None);
}

#[test]
fn killed_in_a_release_and_in_a_rollback() {
    let mut story = Story::begin("killed-release");
    let mut dice = Dice::new();
    for round in 0..6 {
        let variant = story.next();
        let is_rollback = round % 2 == 1;
        let number = if is_rollback {
            story.heads.newest + 1
        } else {
            let text = story.fleet.policy(&policy(variant, false));
            let number = story.fleet.control.apply(&text);
            story.variants.push((variant, false));
            story.heads.newest = number;
            number
        };
        let relay = Relay::start(Some(story.fleet.control.api())).unwrap();
        // Two calls go up and down before and in the release; a few hundred bytes each.
        let way = [Way::Up, Way::Down][usize::from(dice.below(2) == 1)];
        relay.hold_after(way, 1 + dice.below(1_200));
        let number_text = number.to_string();
        let mut ctl = if is_rollback {
            story.ctl_through(&relay, &["rollback"])
        } else {
            story.ctl_through(&relay, &["release", &number_text])
        };
        until("something is held, or it is done", || {
            (relay.is_held(way) || ctl.has_ended()).then_some(())
        });
        story.fleet.control.kill();
        relay.set_target(None);
        let (status, _) = ctl.output().unwrap();
        let done = Heads {
            newest: number,
            released: number,
        };
        let may = match status.code() {
            Some(0) => vec![done],
            _ => vec![story.heads, done],
        };
        // A rollback has the rows of what was in force before.
        let candidate = match story.in_force.as_slice() {
            [.., before, _] if is_rollback => Some(story.variant(*before)),
            _ => None,
        };
        let what = format!("round {round}, rollback {is_rollback}, {way:?}");
        story.restart_and_check(&what, &may, candidate);
    }
}

#[test]
fn killed_while_a_generation_is_delivered_and_before_it_is_acknowledged() {
    let mut story = Story::begin("killed-delivery");
    let mut dice = Dice::new();
    // Chunks: some of them have come, the rest not.
    for round in 0..3 {
        let (old, variant) = (story.variant(story.heads.released).0, story.next());
        let text = story.fleet.policy(&policy(variant, true));
        let number = story.fleet.control.apply(&text);
        story.variants.push((variant, true));
        let relay = story.fleet.control.relay();
        relay.hold_after(Way::Down, 1 + dice.below(text.len() as u64 * 9 / 10));
        let answer = story
            .fleet
            .control
            .ctl_json(&["release", &number.to_string()]);
        assert_eq!(number_of(&answer), number);
        story.fleet.control.relay().wait_held(Way::Down);
        // Half of it is nothing.
        story.assert_judged(old);
        story.fleet.control.kill();
        story.fleet.control.relay().release(Way::Down);
        story.assert_judged(old);
        story.heads = Heads {
            newest: number,
            released: number,
        };
        let heads = story.heads;
        story.restart_and_check(&format!("in delivery, round {round}"), &[heads], None);
    }
    // Acknowledgements: all of it has come and is in force, and nobody has heard of that.
    let variant = story.next();
    let text = story.fleet.policy(&policy(variant, false));
    let number = story.fleet.control.apply(&text);
    story.variants.push((variant, false));
    story.fleet.control.relay().hold_after(Way::Up, 0);
    story
        .fleet
        .control
        .ctl_json(&["release", &number.to_string()]);
    story.fleet.control.relay().wait_held(Way::Up);
    until("the device is judged by it", || {
        let code = story
            .device
            .publish_acked(&format!("only/{variant}"), "x", 1);
        (code < 0x80).then_some(())
    });
    let node = story.fleet.control.node(NODE);
    assert_ne!(node["state"], "active", "nobody has said so: {node:#}");
    story.fleet.control.kill();
    story.fleet.control.relay().release(Way::Up);
    story.heads = Heads {
        newest: number,
        released: number,
    };
    let heads = story.heads;
    story.restart_and_check("before the acknowledgements", &[heads], None);
    // It had it all along.
    let metrics = story.fleet.control.metrics().unwrap();
    let sent = metrics.sum("sluice_control_rows_sent_total", &[]);
    assert_eq!(sent.unwrap_or(0.0), 0.0);
}
