//! Single sessions through the whole shard: what each step looks like from both ends, and what every bound does.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::node::{KeptOut, KickWho, SessionFilter, ToShard};
use sluice_dataplane::ring::simulated::{Peer, PeerState, Serve};
use sluice_dataplane::ring::{KeepAlive, ListenSlot};
use sluice_wire::mqtt::Version;

use crate::packets::{self, ConnectFields};
use crate::stage::{Options, Stage};

pub(crate) const POLICY: &str = "
default: deny
listeners:
  - name: devices
    address: 127.0.0.1:1883
    upstream: broker
    anonymous: {group: devices}
    limits:
      connections_max: 5
      connections_per_address_max: 3
      connect_timeout: 5s
      packet_timeout: 4s
      write_stall_timeout: 6s
      backlog_bytes_high: 8KiB
      backlog_bytes_low: 2KiB
upstreams:
  - name: broker
    endpoints: ['tcp://127.0.0.1:2001', 'tcp://127.0.0.1:2002']
    dial: {timeout: 2s, attempts_max: 3, backoff: 100ms}
    breaker: {failures: 100, open: 3s}
groups: [{name: devices}]
rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: open, actions: [publish, subscribe], topics: ['open/#'], decision: allow}
";

pub(crate) fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

pub(crate) fn knock(stage: &mut Stage, last: u8) -> Peer {
    let peer = stage.network.connect(
        ListenSlot(stage.snapshot().listeners()[0].id.0),
        address(last),
    );
    stage.run_for(Duration::from_millis(1));
    peer
}

pub(crate) fn say(stage: &mut Stage, peer: Peer, bytes: &[u8]) {
    assert_eq!(stage.network.write(peer, bytes), bytes.len());
    stage.run_for(Duration::from_millis(1));
}

pub(crate) fn hear(stage: &mut Stage, peer: Peer) -> Vec<u8> {
    stage.run_for(Duration::from_millis(1));
    stage.network.read(peer, usize::MAX)
}

pub(crate) fn broker(stage: &mut Stage) -> Option<Peer> {
    stage.run_for(Duration::from_millis(1));
    let targets = stage.targets();
    targets
        .iter()
        .find_map(|target| stage.network.accept(target))
}

pub(crate) fn connect(version: Version, client_id: &str) -> Vec<u8> {
    packets::connect(&ConnectFields {
        version,
        client_id,
        keep_alive_secs: 0,
        login: None,
    })
}

/// An open session: the client's end and the broker's.
pub(crate) fn open(stage: &mut Stage, version: Version, last: u8) -> (Peer, Peer) {
    let client = knock(stage, last);
    say(stage, client, &connect(version, &format!("client-{last}")));
    let broker = broker(stage).expect("the shard dials");
    let connect = hear(stage, broker);
    assert_eq!(connect.first(), Some(&0x10));
    say(stage, broker, &packets::connack(version, 0));
    let connack = hear(stage, client);
    assert_eq!(connack.first(), Some(&0x20));
    assert_eq!(connack.get(3), Some(&0));
    (client, broker)
}

#[test]
fn a_session_opens_forwards_and_closes() {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
        let (client, broker) = open(&mut stage, version, 1);
        let allowed = packets::publish(version, "open/a", 0, 0, b"payload");
        let denied = packets::publish(version, "shut/a", 0, 0, b"payload");
        say(&mut stage, client, &[&*allowed, &denied, &allowed].concat());
        assert_eq!(hear(&mut stage, broker), [&*allowed, &allowed].concat());
        say(&mut stage, broker, &allowed);
        assert_eq!(hear(&mut stage, client), allowed);
        say(&mut stage, client, &packets::disconnect());
        assert_eq!(hear(&mut stage, broker), packets::disconnect());
        assert_eq!(stage.network.state(broker), PeerState::Finished);
        stage.network.close(broker);
        stage.network.close(client);
        stage.run_for(Duration::from_secs(3));
        stage.assert_empty();
    }
}

#[test]
fn without_a_policy_devices_are_refused() {
    let mut stage = Stage::new(&Options::quiet());
    stage.shard.ring_mut().listen_simulated(ListenSlot(0));
    let client = stage.network.connect(ListenSlot(0), address(1));
    stage.run_for(Duration::from_millis(10));
    assert_ne!(stage.network.state(client), PeerState::Open);
    assert_eq!(stage.count(Counter::RefusedNoPolicy), 1);
    stage.assert_empty();
}

#[test]
fn a_policy_is_acknowledged_after_the_sweep() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    assert_eq!(stage.acknowledged, 1);
    let (client, broker) = open(&mut stage, Version::V5, 1);
    stage.apply(&POLICY.replace(
        "actions: [connect], decision: allow",
        "actions: [connect], decision: deny",
    ));
    stage.run_for(Duration::from_millis(1));
    assert_eq!(stage.acknowledged, 2);
    let told = hear(&mut stage, client);
    assert_eq!(told, [0xe0, 1, 0x87], "DISCONNECT not authorized");
    assert!(
        hear(&mut stage, broker).is_empty(),
        "no DISCONNECT upstream: the will is the broker's"
    );
    assert_eq!(stage.network.state(broker), PeerState::Finished);
    stage.run_for(Duration::from_secs(3));
    stage.assert_empty();
}

#[test]
fn every_reason_to_refuse_a_connection_is_counted_and_its_place_comes_back() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let one: Vec<Peer> = (0..4).map(|_| knock(&mut stage, 1)).collect();
    assert_eq!(
        stage.count(Counter::RefusedAddress),
        1,
        "3 for each address"
    );
    for (number, client) in one.iter().take(3).enumerate() {
        say(
            &mut stage,
            *client,
            &connect(Version::V5, &format!("c{number}")),
        );
    }
    let two: Vec<Peer> = (0..3).map(|_| knock(&mut stage, 2)).collect();
    assert_eq!(
        stage.count(Counter::RefusedListener),
        1,
        "5 for the listener"
    );
    assert_eq!(stage.shard.sessions(), 5);
    for peer in one.into_iter().chain(two) {
        stage.network.close(peer);
    }
    stage.run_for(Duration::from_secs(3));
    stage.assert_empty();
    let again = knock(&mut stage, 1);
    assert_eq!(stage.network.state(again), PeerState::Open);
}

#[test]
fn the_node_and_the_shard_have_limits_of_their_own() {
    let mut options = Options::quiet();
    options.table.connections_max = 2;
    let mut stage = Stage::with_policy(&options, POLICY);
    for last in 1..=3 {
        knock(&mut stage, last);
    }
    assert_eq!(
        (stage.count(Counter::RefusedNode), stage.shard.sessions()),
        (1, 2)
    );

    let mut options = Options::quiet();
    options.limits.sessions_max = 2;
    let mut stage = Stage::with_policy(&options, POLICY);
    for last in 1..=3 {
        knock(&mut stage, last);
    }
    assert_eq!(
        (stage.count(Counter::RefusedShard), stage.shard.sessions()),
        (1, 2)
    );
}

#[test]
fn a_dead_endpoint_is_left_for_the_other_and_two_dead_ones_for_an_answer() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let targets = stage.targets();
    stage.network.serve(&targets[0], Serve::Refuse(111));
    for last in 1..=3 {
        let client = knock(&mut stage, last);
        say(
            &mut stage,
            client,
            &connect(Version::V311, &format!("c{last}")),
        );
        stage.run_for(Duration::from_millis(300));
        assert!(stage.network.accept(&targets[1]).is_some(), "client {last}");
    }
    stage.network.serve(&targets[1], Serve::Refuse(111));
    let client = knock(&mut stage, 4);
    say(&mut stage, client, &connect(Version::V311, "c4"));
    stage.run_for(Duration::from_secs(1));
    assert_eq!(hear(&mut stage, client), packets::connack(Version::V311, 3));
    assert!(stage.count(Counter::DialFailed) >= 3);
}

#[test]
fn kick_list_and_report_answer() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let (client, _broker) = open(&mut stage, Version::V5, 1);
    let (_other, _broker) = open(&mut stage, Version::V311, 2);
    stage.send(ToShard::List {
        request: 1,
        from: 0,
        limit: 100,
        filter: SessionFilter::default(),
    });
    stage.send(ToShard::Kick {
        request: 7,
        who: KickWho::ClientId("client-1".into()),
    });
    stage.send(ToShard::Report { request: 3 });
    stage.run_for(Duration::from_millis(1));
    assert_eq!(stage.listed, ["client-1", "client-2"]);
    assert_eq!(stage.kicked, [(7, 1)]);
    assert_eq!(hear(&mut stage, client), [0xe0, 1, 0x98]);
    let gauges = stage.gauges.expect("gauges");
    assert_eq!((gauges.sessions, gauges.connected), (2, 2));
    assert!(stage.latency_samples > 0);
}

#[test]
fn a_client_that_is_kept_out_is_refused_until_its_time() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let (first, _broker) = open(&mut stage, Version::V5, 1);
    let mut kept_out = KeptOut::default();
    let who = KickWho::ClientId("client-1".into());
    let (now, time) = (stage.now(), Duration::from_secs(60));
    kept_out.add(&who, now.after(time), now).expect("room");
    stage.send(ToShard::KeptOut(Arc::new(kept_out)));
    stage.send(ToShard::Kick { request: 7, who });
    stage.run_for(Duration::from_millis(1));
    assert_eq!(hear(&mut stage, first), [0xe0, 1, 0x98]);
    for (version, expected) in [
        (Version::V5, vec![0x20, 3, 0, 0x8a, 0]),
        (Version::V311, vec![0x20, 2, 0, 5]),
        (Version::V31, vec![0x20, 2, 0, 5]),
    ] {
        let client = knock(&mut stage, 3);
        say(&mut stage, client, &connect(version, "client-1"));
        assert_eq!(hear(&mut stage, client), expected, "{version:?}");
    }
    assert_eq!(stage.count(Counter::EndedKeptOut), 3);
    assert_eq!(
        stage.count(Counter::DialAttempts),
        1,
        "the broker hears nothing of it"
    );
    open(&mut stage, Version::V5, 2);
    stage.run_for(time);
    open(&mut stage, Version::V5, 1);
}

#[test]
fn what_a_client_is_owed_is_sent_although_its_fin_comes_in_the_same_turn() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let (client, broker) = open(&mut stage, Version::V5, 1);
    let message = packets::publish(Version::V5, "open/a", 0, 0, b"payload");
    // Both are there before the shard turns, and it looks at the broker first.
    assert_eq!(stage.network.write(broker, &message), message.len());
    stage.network.finish(client);
    assert_eq!(hear(&mut stage, client), message);
    assert_eq!(stage.count(Counter::EndedClientGone), 1);
}

#[test]
fn both_legs_of_a_session_are_kept_alive_as_listener_and_upstream_say() {
    let options = |policy: &str| {
        let mut stage = Stage::with_policy(&Options::quiet(), policy);
        let (client, broker) = open(&mut stage, Version::V5, 1);
        [client, broker].map(|peer| stage.network.keep_alive(peer))
    };
    let secs = Duration::from_secs;
    // The kernel never gives up before the deadline of a write stall, which is six seconds here.
    assert_eq!(options(POLICY), [KeepAlive::new(secs(60), secs(6)); 2]);
    let set = POLICY
        .replace(
            "connect_timeout: 5s",
            "connect_timeout: 5s\n      tcp_keep_alive: 2s",
        )
        .replace("    dial:", "    tcp_keep_alive: 0s\n    dial:");
    let short = KeepAlive {
        idle: secs(2),
        give_up: secs(6),
    };
    assert_eq!(options(&set), [Some(short), None]);
}
