//! A reload under many sessions that all send: every one is judged again before anything of it goes on, and no turn does
//! more of that than its share.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::ring::RingConfig;
use sluice_dataplane::ring::simulated::Peer;
use sluice_policy::SLICE_NODES;
use sluice_wire::mqtt::Version;

use crate::basics::{POLICY, connect, knock, open};
use crate::packets;
use crate::stage::{Options, Stage};

const SESSIONS: u8 = 100;
/// Who-parts that nearly match each of them.
const CROWD: u32 = 200;
/// What a share may go beyond: a step that is not divided, in each of its parts.
const BEYOND: u64 = 4 * 16;

/// Admitting a session costs hundreds of nodes. `allowed` is what it may publish to.
fn policy(allowed: &str) -> String {
    let crowd: String = (0..CROWD)
        .map(|number| {
            let who =
                format!("{{groups: [devices], addresses: ['10.0.0.0/8', '10.9.{number}.0/24']}}");
            format!(
                "  - {{name: crowd{number}, who: {who}, actions: [connect], decision: allow}}\n"
            )
        })
        .collect();
    POLICY
        .replace(
            "connections_per_address_max: 3",
            "connections_per_address_max: 1000",
        )
        .replace("connections_max: 5", "connections_max: 1000")
        .replace("'open/#'", &format!("'{allowed}'"))
        + &crowd
}

fn options() -> Options {
    let mut options = Options::quiet();
    options.ring = RingConfig {
        sockets_max: 1024,
        buffers: 1024,
        buffer_bytes: 1024,
    };
    options
}

/// One turn, and the nodes of work that it did.
fn turn(stage: &mut Stage) -> u64 {
    let before = stage.count(Counter::WorkNodes);
    stage.network.set_alarm(Some(stage.now()));
    stage.turn();
    stage.count(Counter::WorkNodes) - before
}

struct Fleet {
    stage: Stage,
    sessions: Vec<(Peer, Peer)>,
}

impl Fleet {
    fn new() -> Self {
        let mut stage = Stage::with_policy(&options(), &policy("open/#"));
        let sessions = (1..=SESSIONS)
            .map(|last| open(&mut stage, Version::V311, last))
            .collect();
        Self { stage, sessions }
    }

    /// Every client and every broker sends this, and then a PINGREQ or PINGRESP, at the same time.
    fn all_send(&self, message: &[u8]) {
        for (client, broker) in &self.sessions {
            for (peer, ping) in [(client, [0xc0, 0]), (broker, [0xd0, 0])] {
                let bytes = [message, &ping].concat();
                assert_eq!(self.stage.network.write(*peer, &bytes), bytes.len());
            }
        }
    }
}

#[test]
fn sessions_that_send_at_once_after_a_reload_share_the_turns() {
    let mut fleet = Fleet::new();
    let message = packets::publish(Version::V311, "open/a", 0, 0, b"x");
    for (allowed, is_allowed) in [("shut/#", false), ("open/#", true)] {
        fleet.stage.apply(&policy(allowed));
        let generation = fleet.stage.generation();
        fleet.all_send(&message);
        let mut heard = vec![(Vec::new(), Vec::new()); fleet.sessions.len()];
        let (mut turns, mut turns_waited) = (0, 0);
        let is_done = |heard: &Vec<(Vec<u8>, Vec<u8>)>| {
            heard
                .iter()
                .all(|(down, up)| !down.is_empty() && !up.is_empty())
        };
        while !is_done(&heard) || fleet.stage.acknowledged < generation {
            let nodes = turn(&mut fleet.stage);
            // One share for what arrives and for what was left, and one for the sweep.
            let most = 2 * u64::from(SLICE_NODES) + BEYOND;
            assert!(nodes <= most, "{nodes} nodes in a turn");
            for ((client, broker), (down, up)) in fleet.sessions.iter().zip(&mut heard) {
                down.extend(fleet.stage.network.read(*client, usize::MAX));
                up.extend(fleet.stage.network.read(*broker, usize::MAX));
            }
            turns += 1;
            turns_waited += u32::from(fleet.stage.acknowledged < generation);
            assert!(turns < 5_000, "it has no end");
        }
        let of = |ping: [u8; 2]| {
            if is_allowed {
                [&message[..], &ping].concat()
            } else {
                ping.to_vec()
            }
        };
        for (down, up) in heard {
            assert_eq!(
                (down, up),
                (of([0xd0, 0]), of([0xc0, 0])),
                "by the new rules, in order"
            );
        }
        // All of it in two or three shares of a turn each.
        let nodes = u64::from(SESSIONS) * u64::from(CROWD) * 2;
        let least = nodes / (2 * u64::from(SLICE_NODES) + BEYOND);
        assert!(
            u64::from(turns_waited) + 1 >= least,
            "{turns_waited} of {least}"
        );
    }
    assert!(fleet.stage.count(Counter::AdmissionWaited) > u64::from(SESSIONS));
}

/// The shard says that the generation is everywhere only when it is.
#[test]
fn a_generation_is_acknowledged_when_every_session_was_judged_by_it() {
    let mut fleet = Fleet::new();
    fleet.stage.apply(&policy("shut/#"));
    // Only brokers send, of which none is read before the answer.
    let message = packets::publish(Version::V311, "open/a", 0, 0, b"x");
    let generation = fleet.stage.generation();
    while fleet.stage.acknowledged < generation {
        for (client, broker) in &fleet.sessions {
            fleet.stage.network.write(*broker, &message);
            assert!(fleet.stage.network.read(*client, usize::MAX).is_empty());
        }
        turn(&mut fleet.stage);
    }
    fleet.stage.run_for(Duration::from_millis(100));
    for (client, _) in &fleet.sessions {
        assert!(fleet.stage.network.read(*client, usize::MAX).is_empty());
    }
    assert_eq!(fleet.stage.count(Counter::DeliveryForwarded), 0);
    assert!(fleet.stage.count(Counter::DeliveryDenied) > u64::from(SESSIONS));
}

/// Clients that connect at once share the turns too, and so does a policy that nobody may connect under any more.
#[test]
fn logins_and_evictions_share_the_turns() {
    let mut stage = Stage::with_policy(&options(), &policy("open/#"));
    let clients: Vec<Peer> = (1..=SESSIONS).map(|last| knock(&mut stage, last)).collect();
    for (number, client) in clients.iter().enumerate() {
        let connect = connect(Version::V311, &format!("c{number}"));
        assert_eq!(stage.network.write(*client, &connect), connect.len());
    }
    let most = u64::from(SLICE_NODES) + BEYOND;
    let mut turns = 0;
    while stage.count(Counter::DialAttempts) < u64::from(SESSIONS) {
        let nodes = turn(&mut stage);
        assert!(nodes <= most, "{nodes} nodes in a turn");
        turns += 1;
        assert!(turns < 5_000, "not all are admitted");
    }
    assert!(turns > u32::from(SESSIONS) / 4, "{turns}");
    let closed = policy("open/#").replace("decision: allow", "decision: deny");
    stage.apply(&closed);
    while stage.acknowledged < stage.generation() {
        let nodes = turn(&mut stage);
        assert!(nodes <= 2 * most, "{nodes} nodes in a turn");
    }
    assert_eq!(stage.count(Counter::EndedDenied), u64::from(SESSIONS));
}
