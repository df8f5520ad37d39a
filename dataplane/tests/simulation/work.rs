//! Work that is long goes in small parts: what one client asks for does not hold up the others.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::ring::simulated::{Faults, Peer};
use sluice_policy::SLICE_NODES;
use sluice_wire::mqtt::Version;

use crate::basics::{POLICY, hear, open, say};
use crate::packets;
use crate::stage::{Options, Stage};

const LEVELS: usize = 31;
const GREEDY: u8 = 10;
/// What a slice may go beyond its share: the last filter of each of its parts is finished with.
const BEYOND: u64 = 4 * 16;

fn policy() -> String {
    let deep = ["+"; LEVELS].join("/");
    POLICY
        .replace(
            "connections_per_address_max: 3",
            "connections_per_address_max: 100",
        )
        .replace("connections_max: 5", "connections_max: 100")
        .replace("'open/#'", &format!("'open/#', '{deep}'"))
}

fn options() -> Options {
    Options {
        faults: Faults {
            capacity_bytes: 64 << 10,
            ..Faults::none()
        },
        ..Options::quiet()
    }
}

/// A SUBSCRIBE and how much of it was written.
struct Sender {
    client: Peer,
    broker: Peer,
    packet: Vec<u8>,
    written: usize,
    arrived: Vec<u8>,
}

impl Sender {
    fn open(stage: &mut Stage, last: u8, packet: Vec<u8>) -> Self {
        let (client, broker) = open(stage, Version::V311, last);
        Self {
            client,
            broker,
            packet,
            written: 0,
            arrived: Vec::new(),
        }
    }

    fn go_on(&mut self, stage: &Stage) {
        let rest = self.packet.get(self.written..).unwrap_or_default();
        self.written += stage.network.write(self.client, rest);
        self.arrived
            .extend(stage.network.read(self.broker, usize::MAX));
    }

    fn is_done(&self) -> bool {
        self.arrived.len() >= self.packet.len()
    }
}

/// Turns until `bytes` have come to a peer; the work of each is within its bound.
fn turns_until(stage: &mut Stage, peer: Peer, bytes: &[u8]) -> u32 {
    let mut heard = Vec::new();
    for turns in 1.. {
        let before = stage.count(Counter::WorkNodes);
        stage.network.set_alarm(Some(stage.now()));
        stage.turn();
        let nodes = stage.count(Counter::WorkNodes) - before;
        assert!(
            nodes <= u64::from(SLICE_NODES) + BEYOND,
            "{nodes} in a turn"
        );
        heard.extend(stage.network.read(peer, usize::MAX));
        if heard == bytes {
            return turns;
        }
        assert!(turns < 1_000, "it does not come: {heard:?}");
    }
    unreachable!("the loop has no end")
}

#[test]
fn ten_subscribes_of_ten_thousand_filters_do_not_hold_up_others() {
    let mut stage = Stage::with_policy(&options(), &policy());
    let filters: Vec<String> = (0..10_000)
        .map(|number| format!("{number}{}", "/a".repeat(LEVELS - 1)))
        .collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (&**filter, 1)).collect();
    let packet = packets::subscribe(Version::V311, 7, &filters);
    let mut senders: Vec<Sender> = (1..=GREEDY)
        .map(|last| Sender::open(&mut stage, last, packet.clone()))
        .collect();
    let (client, broker) = open(&mut stage, Version::V311, 100);
    let message = packets::publish(Version::V311, "open/a", 0, 0, b"x");
    let small = packets::subscribe(Version::V311, 8, &[("open/a", 1)]);
    // What the way through the network takes.
    stage.network.write(client, &message);
    let idle = turns_until(&mut stage, broker, &message);
    let (mut most_message, mut most_small) = (0, 0);
    while !senders.iter().all(Sender::is_done) {
        for sender in &mut senders {
            sender.go_on(&stage);
        }
        stage.network.write(client, &message);
        most_message = most_message.max(turns_until(&mut stage, broker, &message));
        stage.network.write(client, &small);
        most_small = most_small.max(turns_until(&mut stage, broker, &small));
        // Those that used up their allowance wait for the clock.
        stage.run_for(Duration::from_millis(1));
    }
    for sender in senders {
        assert!(sender.arrived == sender.packet, "all of it, as it was sent");
    }
    assert!(stage.count(Counter::SubscribePaused) > 0);
    assert_eq!(stage.count(Counter::SubscribeDenied), 0);
    assert!(
        most_message <= idle + 1,
        "{most_message} turns, {idle} when idle"
    );
    // Four sessions have their share in a turn: it waits for one round at most.
    let round = u32::from(GREEDY).div_ceil(4);
    assert!(
        most_small <= idle + 1 + round,
        "{most_small} turns, {idle} when idle"
    );
}

/// A client that is judged when the policy changes is judged by the new one, and a sweep does not wait for it.
#[test]
fn a_policy_that_comes_meanwhile_judges_all_of_it() {
    let mut stage = Stage::with_policy(&options(), &policy());
    let (client, broker) = open(&mut stage, Version::V311, 1);
    let filters = vec![("open/a", 0); 2_000];
    let sent = packets::subscribe(Version::V311, 7, &filters);
    let mut written = 0;
    while written < sent.len() {
        written += stage.network.write(client, &sent[written..]);
        stage.network.set_alarm(Some(stage.now()));
        stage.turn();
    }
    assert!(stage.network.read(broker, usize::MAX).is_empty());
    stage.apply(&policy().replace("'open/#', ", ""));
    assert!(hear(&mut stage, broker).is_empty(), "nothing of it goes on");
    let answer = hear(&mut stage, client);
    assert_eq!(answer.get(5..), Some(&[0x80; 2_000][..]));
    assert_eq!(stage.acknowledged, 2);
    say(&mut stage, client, &packets::disconnect());
    assert_eq!(hear(&mut stage, broker), packets::disconnect());
}
