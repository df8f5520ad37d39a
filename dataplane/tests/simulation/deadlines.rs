//! Every deadline of a shard, with the virtual clock: nothing happens before it, and soon after it what must.

use std::time::Duration;

use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::Counter;
use sluice_dataplane::node::{AfterDrain, ToShard};
use sluice_dataplane::ring::simulated::{Faults, Peer, PeerState, Serve};
use sluice_wire::mqtt::Version;

use crate::basics::{POLICY, broker, connect, hear, knock, open, say};
use crate::packets::{self, ConnectFields};
use crate::stage::{Options, Stage};

/// How late a deadline may be noticed: two ticks of the wheel, or the look at stalls.
const LATE: Duration = Duration::from_millis(600);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Runs until `counter` moves, at most for `most`; tells after how long.
fn until_counted(stage: &mut Stage, counter: Counter, most: Duration) -> Duration {
    let (begin, before) = (stage.now(), stage.count(counter));
    let end = begin.after(most);
    while stage.count(counter) == before && stage.now() < end {
        stage.network.set_alarm(Some(end));
        stage.turn();
    }
    assert!(stage.count(counter) > before, "{counter:?} within {most:?}");
    stage.now().since(begin)
}

fn assert_about(took: Duration, deadline: Duration) {
    assert!(
        took >= deadline.saturating_sub(Duration::from_millis(10)) && took <= deadline + LATE,
        "{took:?} instead of {deadline:?}"
    );
}

/// What brings a session to a deadline: begins the wait; then the counter must move after this long.
struct Row {
    name: &'static str,
    begin: fn(&mut Stage),
    counter: Counter,
    after: Duration,
}

fn keep_alive(stage: &mut Stage) {
    let client = knock(stage, 1);
    let fields = ConnectFields {
        version: Version::V5,
        client_id: "c",
        keep_alive_secs: 4,
        login: None,
    };
    say(stage, client, &packets::connect(&fields));
    let broker = broker(stage).expect("a dial");
    say(stage, broker, &packets::connack(Version::V5, 0));
}

#[test]
fn deadlines_fire_once_and_on_time() {
    let rows = [
        Row {
            name: "no CONNECT",
            begin: |stage| {
                knock(stage, 1);
            },
            counter: Counter::EndedConnectTimeout,
            after: secs(5),
        },
        Row {
            name: "half a CONNECT",
            begin: |stage| {
                let client = knock(stage, 1);
                say(stage, client, &connect(Version::V5, "c")[..9]);
            },
            counter: Counter::EndedPacketTimeout,
            after: secs(4),
        },
        Row {
            name: "half a packet",
            begin: |stage| {
                let (client, _) = open(stage, Version::V5, 1);
                say(
                    stage,
                    client,
                    &packets::publish(Version::V5, "open/a", 0, 0, b"payload")[..6],
                );
            },
            counter: Counter::EndedPacketTimeout,
            after: secs(4),
        },
        Row {
            name: "half a payload",
            begin: |stage| {
                let (client, _) = open(stage, Version::V311, 1);
                say(
                    stage,
                    client,
                    &packets::publish(Version::V311, "open/a", 0, 0, &[7; 300])[..100],
                );
            },
            counter: Counter::EndedPacketTimeout,
            after: secs(4),
        },
        Row {
            name: "keep alive",
            begin: keep_alive,
            counter: Counter::EndedKeepAlive,
            after: secs(6),
        },
        Row {
            name: "a client that takes nothing",
            begin: |stage| {
                let (_client, broker) = open(stage, Version::V5, 1);
                flood(stage, broker);
            },
            counter: Counter::EndedWriteStall,
            after: secs(6),
        },
        Row {
            name: "a broker that takes nothing",
            begin: |stage| {
                let (client, _broker) = open(stage, Version::V5, 1);
                flood(stage, client);
            },
            counter: Counter::EndedUpstreamStalled,
            after: secs(6),
        },
        Row {
            name: "upstreams that never answer: three dials of two seconds, pauses between",
            begin: |stage| {
                for target in stage.targets() {
                    stage.network.serve(&target, Serve::Blackhole);
                }
                let client = knock(stage, 1);
                say(stage, client, &connect(Version::V5, "c"));
            },
            counter: Counter::EndedUpstreamUnavailable,
            after: Duration::from_millis(6_200),
        },
        Row {
            name: "a password that nobody answers",
            begin: |stage| {
                let client = knock(stage, 1);
                let fields = ConnectFields {
                    version: Version::V5,
                    client_id: "c",
                    keep_alive_secs: 0,
                    login: Some(("nobody", "right")),
                };
                say(stage, client, &packets::connect(&fields));
            },
            counter: Counter::EndedBusy,
            after: secs(3),
        },
    ];
    for row in rows {
        let mut options = Options {
            faults: Faults {
                capacity_bytes: 1000,
                ..Faults::none()
            },
            ..Options::quiet()
        };
        options.limits.authenticate_timeout = secs(3);
        let mut stage = Stage::with_policy(&options, POLICY);
        (row.begin)(&mut stage);
        let took = until_counted(&mut stage, row.counter, row.after * 3);
        println!("{}: {took:?}", row.name);
        assert_about(took, row.after);
        stage.run_for(secs(20));
        assert_eq!(stage.count(row.counter), 1, "{}", row.name);
        stage.assert_empty();
    }
}

/// Writes until nothing more is taken.
fn flood(stage: &mut Stage, peer: Peer) {
    let packet = packets::publish(Version::V5, "open/a", 0, 0, &[7; 500]);
    let mut full = 0;
    while full < 3 {
        let mut from = 0;
        while from < packet.len() {
            let taken = stage.network.write(peer, &packet[from..]);
            from += taken;
            stage.run_for(Duration::from_millis(1));
            full = if taken == 0 { full + 1 } else { 0 };
            if full == 3 {
                break;
            }
        }
    }
}

#[test]
fn a_slow_reader_holds_its_sender_back_and_gets_everything() {
    let options = Options {
        faults: Faults {
            capacity_bytes: 1000,
            ..Faults::none()
        },
        ..Options::quiet()
    };
    let mut stage = Stage::with_policy(&options, POLICY);
    let (client, broker) = open(&mut stage, Version::V5, 1);
    let packet = packets::publish(Version::V5, "open/a", 0, 0, &[7; 500]);
    let whole: Vec<u8> = packet
        .iter()
        .copied()
        .cycle()
        .take(packet.len() * 200)
        .collect();
    let (mut sent, mut got, mut most) = (0, Vec::new(), 0);
    while got.len() < whole.len() {
        sent += stage.network.write(broker, &whole[sent..]);
        stage.run_for(Duration::from_millis(20));
        most = most.max(stage.shard.backlog_bytes());
        // Seldom and little, but always before the stall deadline.
        got.extend(stage.network.read(client, 333));
    }
    assert_eq!(got, whole);
    // High mark, plus what had been received before the pause took effect.
    assert!((8 << 10..(8 << 10) + 64 * 1024).contains(&most), "{most}");
    assert_eq!(stage.shard.backlog_bytes(), 0);
}

#[test]
fn a_close_lingers_for_two_seconds_and_no_longer() {
    for closes in [true, false] {
        let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
        let (client, broker) = open(&mut stage, Version::V5, 1);
        stage.network.close(broker);
        assert_eq!(hear(&mut stage, client), [0xe0, 1, 0x80]);
        assert_eq!(stage.network.state(client), PeerState::Finished);
        assert_eq!(stage.shard.sessions(), 1, "its FIN is waited for");
        if closes {
            stage.network.close(client);
            stage.run_for(Duration::from_millis(50));
        } else {
            // Bytes that come are discarded, and do not keep it alive.
            stage.network.write(client, &packets::pingreq());
            stage.run_for(Duration::from_millis(1_900));
            assert_eq!(stage.shard.sessions(), 1);
            stage.run_for(Duration::from_millis(200));
        }
        stage.assert_empty();
    }
}

#[test]
fn bytes_owed_at_the_end_are_delivered_before_fin() {
    let options = Options {
        faults: Faults {
            capacity_bytes: 1000,
            ..Faults::none()
        },
        ..Options::quiet()
    };
    let mut stage = Stage::with_policy(&options, POLICY);
    let (client, broker) = open(&mut stage, Version::V311, 1);
    let packet = packets::publish(Version::V311, "open/a", 0, 0, &[7; 500]);
    let whole: Vec<u8> = packet
        .iter()
        .copied()
        .cycle()
        .take(packet.len() * 9)
        .collect();
    let (mut sent, mut got) = (0, Vec::new());
    while sent < whole.len() {
        sent += stage.network.write(client, &whole[sent..]);
        stage.run_for(Duration::from_millis(1));
    }
    assert!(stage.shard.backlog_bytes() > 0);
    // It says goodbye and is gone; the broker reads later.
    stage.network.write(client, &packets::disconnect());
    stage.run_for(Duration::from_millis(10));
    stage.network.close(client);
    for _ in 0..40 {
        got.extend(stage.network.read(broker, 300));
        stage.run_for(Duration::from_millis(10));
    }
    assert_eq!(got, [whole, packets::disconnect()].concat());
    assert_eq!(stage.network.state(broker), PeerState::Finished);
    stage.network.close(broker);
    stage.run_for(Duration::from_millis(50));
    stage.assert_empty();
}

#[test]
fn a_drain_is_spread_and_ends_at_its_deadline() {
    let options = Options {
        faults: Faults {
            capacity_bytes: 1000,
            ..Faults::none()
        },
        ..Options::quiet()
    };
    let policy = POLICY.replace(
        "connections_per_address_max: 3",
        "connections_per_address_max: 100",
    );
    let mut stage = Stage::with_policy(
        &options,
        &policy.replace("connections_max: 5", "connections_max: 100"),
    );
    let mut clients: Vec<(Peer, Peer)> = (0..8).map(|n| open(&mut stage, Version::V5, n)).collect();
    // One that takes nothing: it is cut off at the end.
    let (deaf, its_broker) = clients.remove(3);
    flood(&mut stage, its_broker);
    let begin = stage.now();
    stage.send(ToShard::Drain {
        within: secs(4),
        then: AfterDrain::End,
    });
    let mut told: Vec<(Time, Peer)> = Vec::new();
    while stage.drained.is_none() {
        stage.run_for(Duration::from_millis(20));
        for (client, broker) in &clients {
            let bytes = stage.network.read(*client, usize::MAX);
            if !bytes.is_empty() {
                assert_eq!(bytes, [0xe0, 1, 0x8b]);
                told.push((stage.now(), *client));
                stage.network.close(*client);
                stage.network.close(*broker);
            }
        }
        assert!(stage.now().since(begin) < secs(10), "the drain has no end");
    }
    assert_eq!(told.len(), 7);
    let times: Vec<u128> = told
        .iter()
        .map(|(at, _)| at.since(begin).as_millis())
        .collect();
    assert!(
        times[0] < 600 && times[6] > 2_000 && times[6] <= 3_100,
        "{times:?}"
    );
    let outcome = stage.drained.expect("drained");
    assert_eq!((outcome.sessions, outcome.cut_off), (8, 1));
    assert_about(stage.now().since(begin), secs(4));
    assert!(stage.shard.is_finished());
    stage.assert_empty();
    let late = stage.network.connect(
        sluice_dataplane::ring::ListenSlot(0),
        crate::basics::address(1),
    );
    stage.run_for(Duration::from_millis(10));
    assert_eq!(stage.network.state(late), PeerState::Refused);
    let _ = deaf;
}

#[test]
fn a_drain_after_which_the_shard_stays_is_undone_or_becomes_the_end() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let stay = ToShard::Drain {
        within: secs(1),
        then: AfterDrain::Stay,
    };
    stage.send(stay);
    stage.run_for(secs(2));
    assert!(stage.drained.take().is_some(), "it says when it is empty");
    assert!(!stage.shard.is_finished(), "and stays");
    stage.send(ToShard::ServeAgain);
    stage.run_for(secs(1));
    assert!(!stage.shard.is_finished());
    let end = |within| ToShard::Drain {
        within,
        then: AfterDrain::End,
    };
    stage.send(ToShard::Drain {
        within: secs(1),
        then: AfterDrain::Stay,
    });
    stage.run_for(secs(2));
    stage.drained = None;
    stage.send(end(secs(1)));
    stage.turn();
    assert!(stage.shard.is_finished(), "an order to end prevails");
    assert!(stage.drained.is_some());
    stage.send(ToShard::ServeAgain);
    stage.turn();
    assert!(stage.shard.is_finished(), "and is not taken back");
}
