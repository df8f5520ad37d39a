//! Brokers that accept connections and answer nothing: who is asked instead, who is blamed, and what is left of it.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::node::{EndpointCell, EndpointState, Fault};
use sluice_dataplane::ring::simulated::{Peer, PeerState, Serve};
use sluice_wire::mqtt::Version;

use crate::basics::{POLICY, connect, hear, knock, say};
use crate::packets;
use crate::stage::{Options, Stage};

/// Half of `connect_timeout`, and a little for the timer wheel.
const SILENCE: Duration = Duration::from_millis(2_600);
/// How long a broker that was told goodbye has to close.
const LINGER: Duration = Duration::from_millis(2_100);

/// What a broken endpoint does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// Accepts it and closes.
    Closes,
    /// Accepts it and is stopped.
    Stopped,
    /// Answers that it is not available.
    Refuses,
    /// Is a web server.
    Babbles,
}

const ALL: [(Broken, Fault); 4] = [
    (Broken::Closes, Fault::ClosedEarly),
    (Broken::Stopped, Fault::NoConnack),
    (Broken::Refuses, Fault::Unavailable),
    (Broken::Babbles, Fault::NotMqtt),
];

fn policy(balance: &str, breaker_failures: u32) -> String {
    POLICY
        .replace("connections_max: 5", "connections_max: 200")
        .replace(
            "connections_per_address_max: 3",
            "connections_per_address_max: 200",
        )
        .replace("    dial:", &format!("    balance: {balance}\n    dial:"))
        .replace(
            "breaker: {failures: 100, open: 3s}",
            &format!("breaker: {{failures: {breaker_failures}, open: 60s}}"),
        )
}

/// The whole round trip of `client` while the first endpoint, and the second if `both`, is broken. Tells whether it got in.
fn log_in(stage: &mut Stage, broken: Broken, both: bool, last: u8, client_id: &str) -> bool {
    let client = knock(stage, last);
    say(stage, client, &connect(Version::V311, client_id));
    let targets = stage.targets();
    let mut heard = Vec::new();
    for _ in 0..4 {
        for (number, target) in targets.iter().enumerate() {
            while let Some(broker) = stage.network.accept(target) {
                if number == 1 && !both {
                    say(stage, broker, &packets::connack(Version::V311, 0));
                } else {
                    misbehave(stage, broken, broker);
                }
            }
        }
        heard = hear(stage, client);
        if !heard.is_empty() {
            break;
        }
        stage.run_for(SILENCE);
    }
    heard == packets::connack(Version::V311, 0)
}

fn misbehave(stage: &mut Stage, broken: Broken, broker: Peer) {
    match broken {
        Broken::Closes => stage.network.close(broker),
        Broken::Stopped => {}
        Broken::Babbles => say(stage, broker, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        Broken::Refuses => say(stage, broker, &packets::connack(Version::V311, 3)),
    }
}

fn state(stage: &Stage, cell: u16) -> &EndpointState {
    stage.table.endpoint(EndpointCell(cell)).expect("a cell")
}

#[test]
fn with_one_broken_endpoint_of_two_every_login_succeeds_and_the_broken_one_is_left_alone() {
    for balance in ["round_robin", "least_connections", "client_id"] {
        for (broken, fault) in ALL {
            let mut stage = Stage::with_policy(&Options::quiet(), &policy(balance, 3));
            for number in 0..20 {
                let client_id = format!("device-{number}");
                let got_in = log_in(&mut stage, broken, false, 1, &client_id);
                assert!(got_in, "{balance} {broken:?}: {client_id}");
            }
            let told = (state(&stage, 0).fault(), state(&stage, 1).fault());
            assert_eq!(told, (Some(fault), None), "{balance} {broken:?}");
            let chances = stage.count(Counter::SecondChances);
            assert!(
                (1..=3).contains(&chances),
                "{balance} {broken:?}: {chances}"
            );
            assert_eq!(state(&stage, 0).is_open(), balance != "least_connections");
            assert_eq!(state(&stage, 0).open(), 0);
            assert_eq!(stage.shard.connects_kept_bytes(), 0);
        }
    }
}

#[test]
fn when_both_close_no_breaker_opens_and_the_client_hears_the_end() {
    let mut stage = Stage::with_policy(&Options::quiet(), &policy("round_robin", 1));
    for last in 1..=9 {
        assert!(!log_in(
            &mut stage,
            Broken::Closes,
            true,
            last,
            "bad\u{1}id"
        ));
    }
    assert!(!state(&stage, 0).is_open() && !state(&stage, 1).is_open());
    assert!(log_in(&mut stage, Broken::Closes, false, 10, "good"));
    assert_eq!(stage.count(Counter::EndedUpstreamClosed), 9);
    assert_eq!(stage.count(Counter::EndedUpstreamUnavailable), 0);
}

#[test]
fn an_only_endpoint_is_left_alone_after_failures_from_several_addresses() {
    let one = policy("round_robin", 1).replace(", 'tcp://127.0.0.1:2002'", "");
    for (broken, _) in ALL {
        let mut stage = Stage::with_policy(&Options::quiet(), &one);
        for last in [1, 1, 1, 2, 2] {
            assert!(!log_in(&mut stage, broken, true, last, "device"));
            assert!(!state(&stage, 0).is_open(), "{broken:?}");
        }
        assert!(!log_in(&mut stage, broken, true, 3, "device"));
        assert!(state(&stage, 0).is_open(), "{broken:?}");
        assert_eq!(stage.count(Counter::SecondChances), 0);
    }
}

/// A session at a stopped broker that is given up; the broker's end of it.
fn given_up(stage: &mut Stage, will: bool) -> Peer {
    let client = knock(stage, 1);
    let request = if will {
        packets::connect_with_will("device", "open/will")
    } else {
        connect(Version::V311, "device")
    };
    say(stage, client, &request);
    let targets = stage.targets();
    let stopped = targets
        .iter()
        .find_map(|target| stage.network.accept(target))
        .expect("a dial");
    stage.run_for(SILENCE);
    let other = targets
        .iter()
        .find_map(|target| stage.network.accept(target))
        .expect("another dial");
    say(stage, other, &packets::connack(Version::V311, 0));
    assert_eq!(hear(stage, client), packets::connack(Version::V311, 0));
    stopped
}

#[test]
fn a_broker_that_is_given_up_is_reset_and_with_a_will_told_goodbye_before() {
    let mut stage = Stage::with_policy(&Options::quiet(), &policy("round_robin", 1));
    let plain = given_up(&mut stage, false);
    assert_eq!(stage.network.state(plain), PeerState::Reset);

    let mut stage = Stage::with_policy(&Options::quiet(), &policy("round_robin", 1));
    let willed = given_up(&mut stage, true);
    assert_eq!(stage.network.state(willed), PeerState::Finished);
    let got = hear(&mut stage, willed);
    assert!(got.ends_with(&packets::disconnect()), "{got:02x?}");
    stage.run_for(LINGER);
    assert_eq!(stage.network.state(willed), PeerState::Reset);
    assert_eq!(stage.table.connections(), 1);
}

/// Two sockets for each session is all there is; brokers that were told goodbye have theirs for a while longer.
#[test]
fn brokers_that_are_being_left_do_not_keep_the_sockets_from_the_second_chance() {
    let mut options = Options::quiet();
    options.ring.sockets_max = 8;
    options.limits.sessions_max = 4;
    let mut stage = Stage::with_policy(&options, &policy("round_robin", 100));
    let clients: Vec<Peer> = (0..4)
        .map(|number| {
            let client = knock(&mut stage, 1);
            let client_id = format!("device-{number}");
            say(
                &mut stage,
                client,
                &packets::connect_with_will(&client_id, "open/will"),
            );
            client
        })
        .collect();
    let targets = stage.targets();
    let yes = packets::connack(Version::V311, 0);
    for _ in 0..2 {
        while let Some(broker) = stage.network.accept(&targets[1]) {
            say(&mut stage, broker, &yes);
        }
        while stage.network.accept(&targets[0]).is_some() {}
        stage.run_for(SILENCE);
    }
    while let Some(broker) = stage.network.accept(&targets[1]) {
        say(&mut stage, broker, &yes);
    }
    for client in clients {
        assert_eq!(hear(&mut stage, client), yes);
    }
    assert_eq!(stage.count(Counter::DialNoSocket), 0);
}

#[test]
fn a_shard_without_room_for_connects_goes_on_without_a_second_chance() {
    let mut options = Options::quiet();
    options.limits.connects_kept_bytes_max = 2 * connect(Version::V311, "device-0").len() as u64;
    let mut stage = Stage::with_policy(&options, &policy("round_robin", 100));
    let clients: Vec<Peer> = (0..3)
        .map(|number| {
            let client = knock(&mut stage, 1);
            let request = connect(Version::V311, &format!("device-{number}"));
            say(&mut stage, client, &request);
            client
        })
        .collect();
    assert_eq!(stage.count(Counter::SecondChanceNoRoom), 1);
    assert_eq!(
        stage.shard.connects_kept_bytes(),
        options.limits.connects_kept_bytes_max
    );
    for client in clients {
        stage.network.close(client);
    }
    stage.run_for(Duration::from_secs(10));
    assert_eq!(stage.shard.connects_kept_bytes(), 0);
    stage.assert_empty();
}

#[test]
fn a_client_that_leaves_before_its_answer_leaves_nothing_behind() {
    let mut stage = Stage::with_policy(&Options::quiet(), &policy("client_id", 1));
    for wait in [Duration::from_millis(1), SILENCE] {
        let client = knock(&mut stage, 1);
        say(&mut stage, client, &connect(Version::V5, "device"));
        stage.run_for(wait);
        stage.network.close(client);
        stage.run_for(Duration::from_secs(8));
        assert_eq!(stage.shard.connects_kept_bytes(), 0);
        stage.assert_empty();
    }
    assert!(!state(&stage, 0).is_open() && !state(&stage, 1).is_open());
}

/// A reload brings the listener's clients elsewhere while one of them is on its way: what counts for it is where it goes.
#[test]
fn the_time_of_a_broker_is_that_of_the_upstream_that_was_dialled() {
    let quick = POLICY.replace("dial: {", "dial: {connack_timeout: 300ms, ");
    let mut stage = Stage::with_policy(&Options::quiet(), &quick);
    let brokers = stage.targets();
    for target in &brokers {
        stage.network.serve(target, Serve::Blackhole);
    }
    let client = knock(&mut stage, 1);
    say(&mut stage, client, &connect(Version::V311, "device"));
    let slow =
        "  - name: slow\n    endpoints: ['tcp://127.0.0.1:2003', 'tcp://127.0.0.1:2004']\ngroups:";
    let elsewhere = quick
        .replace("upstream: broker", "upstream: slow")
        .replace("groups:", slow);
    stage.apply(&elsewhere);
    for target in &brokers {
        stage.network.serve(target, Serve::Accept);
    }
    // The attempt that was begun times out after 2 s.
    stage.run_for(Duration::from_millis(2_200));
    assert_eq!(stage.count(Counter::SecondChances), 0);
    stage.run_for(Duration::from_millis(400));
    assert_eq!(stage.count(Counter::SecondChances), 1);
}
