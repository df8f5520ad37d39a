//! Connections that say nothing: they have a share, give way after their grace, and keep nobody else out.

use std::net::IpAddr;
use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::node::{TableConfig, TurnedAway, strangers_share};
use sluice_dataplane::ring::ListenSlot;
use sluice_dataplane::ring::simulated::{Peer, PeerState};
use sluice_wire::mqtt::Version;

use crate::basics::{POLICY, address, connect, knock, say};
use crate::packets::{self, ConnectFields};
use crate::stage::{Options, Stage};

const GRACE: Duration = Duration::from_secs(2);
/// What a node holds whose limit on descriptors is 20,000.
const PLACES: u32 = 9_488;

/// The policy of the other tests with these limits on connections, and time to be silent.
fn policy(listener: &str, address: &str) -> String {
    POLICY
        .replace(
            "connections_per_address_max: 3",
            &format!("connections_per_address_max: {address}"),
        )
        .replace(
            "connections_max: 5",
            &format!("connections_max: {listener}"),
        )
        .replace("connect_timeout: 5s", "connect_timeout: 60s")
}

/// A shard of a node with so many places, and the defaults.
fn stage(places: u32) -> Stage {
    stage_of(
        places,
        TableConfig::default().strangers_per_address_max,
        "unlimited",
        "unlimited",
    )
}

fn stage_of(places: u32, per_address: u32, listener: &str, address: &str) -> Stage {
    let mut options = Options::quiet();
    options.ring.sockets_max = 2 * places.max(128);
    options.table = TableConfig {
        connections_max: places,
        strangers_max: strangers_share(places),
        strangers_per_address_max: per_address,
        ..TableConfig::default()
    };
    options.limits.sessions_max = places;
    Stage::with_policy(&options, &policy(listener, address))
}

/// So many connections from one address, all at once.
fn crowd(stage: &mut Stage, from: IpAddr, count: u32) -> Vec<Peer> {
    let listener = stage.listener();
    let crowd = (0..count)
        .map(|_| stage.network.connect(listener, from))
        .collect();
    stage.run_for(Duration::from_millis(5));
    crowd
}

fn is_open(stage: &Stage, peer: Peer) -> bool {
    stage.network.state(peer) == PeerState::Open
}

fn count_open(stage: &Stage, peers: &[Peer]) -> usize {
    peers.iter().filter(|peer| is_open(stage, **peer)).count()
}

/// Sends CONNECT; true when a broker is dialled for it.
fn gets_in(stage: &mut Stage, client: Peer) -> bool {
    if !is_open(stage, client) {
        return false;
    }
    let before = stage.count(Counter::DialAttempts);
    say(stage, client, &connect(Version::V5, "c"));
    stage.count(Counter::DialAttempts) == before + 1
}

#[test]
fn eleven_thousand_silent_connections_of_one_address_keep_no_other_out() {
    for places in [PLACES, 100_000] {
        let mut stage = stage(places);
        let silent = crowd(&mut stage, address(1), 11_000);
        let held = count_open(&stage, &silent);
        assert!(held <= 6_000, "{held} of {places}");
        assert_eq!(
            stage.count(Counter::RefusedStrangersAddress) as usize,
            silent.len() - held
        );
        for last in 2..=200 {
            let client = knock(&mut stage, last);
            assert!(gets_in(&mut stage, client), "{last} of {places}");
        }
        // A neighbour behind the same address has to wait until one of them may give way.
        let early = knock(&mut stage, 1);
        assert!(!is_open(&stage, early));
        stage.run_for(GRACE);
        let neighbour = knock(&mut stage, 1);
        assert!(gets_in(&mut stage, neighbour));
        assert_eq!(stage.count(Counter::StrangersGaveWay), 1);
        assert!(!is_open(&stage, silent[0]), "the oldest");
        assert_eq!(count_open(&stage, &silent), held - 1);
    }
}

#[test]
fn five_thousand_behind_one_address_reconnect_at_once() {
    for places in [PLACES, 100_000] {
        let mut stage = stage(places);
        let fleet = crowd(&mut stage, address(1), 5_000);
        let hello = connect(Version::V311, "device");
        for device in &fleet {
            assert_eq!(stage.network.write(*device, &hello), hello.len());
        }
        stage.run_for(Duration::from_millis(5));
        assert_eq!(stage.count(Counter::DialAttempts), 5_000, "{places}");
        assert_eq!(stage.table.strangers(), 0);
        assert_eq!(count_open(&stage, &fleet), 5_000);
    }
}

#[test]
fn the_oldest_of_the_address_with_most_gives_way_and_never_within_its_grace() {
    // 12 places, 9 of them for strangers, 7 for those of one address.
    let mut stage = stage_of(12, 100, "unlimited", "unlimited");
    let few = [knock(&mut stage, 1), knock(&mut stage, 2)];
    let many: Vec<Peer> = (0..7).map(|_| knock(&mut stage, 3)).collect();
    let turned_away = knock(&mut stage, 4);
    assert!(!is_open(&stage, turned_away), "all are within their grace");
    assert_eq!(stage.count(Counter::RefusedStrangersNode), 1);
    assert_eq!(stage.count(Counter::StrangersGaveWay), 0);
    stage.run_for(GRACE);
    let newcomer = knock(&mut stage, 4);
    assert!(is_open(&stage, newcomer));
    assert_eq!(count_open(&stage, &few), 2, "theirs are older, but few");
    assert!(!is_open(&stage, many[0]) && is_open(&stage, many[1]));
    assert_eq!(stage.count(Counter::EndedGaveWay), 1);
    assert_eq!(stage.table.strangers(), 9);
}

/// The shard or the node is full, and the address of the newcomer has all the connections that it may have.
#[test]
fn no_stranger_gives_way_to_a_newcomer_that_does_not_get_in() {
    for (of_shard, of_node) in [(6, 100), (100, 6)] {
        let mut options = Options::quiet();
        options.limits.sessions_max = of_shard;
        options.table.connections_max = of_node;
        let mut stage = Stage::with_policy(&options, &policy("unlimited", "3"));
        let known: Vec<Peer> = (0..3).map(|_| knock(&mut stage, 1)).collect();
        for client in known {
            assert!(gets_in(&mut stage, client));
        }
        let silent: Vec<Peer> = (0..3).map(|_| knock(&mut stage, 2)).collect();
        stage.run_for(GRACE);
        let turned_away = knock(&mut stage, 1);
        assert!(!is_open(&stage, turned_away));
        assert_eq!(stage.count(Counter::RefusedAddress), 1);
        assert_eq!(count_open(&stage, &silent), 3, "{of_shard} {of_node}");
        // One that is let in costs one place, also where two limits are reached.
        let newcomer = knock(&mut stage, 2);
        assert!(is_open(&stage, newcomer));
        assert_eq!(count_open(&stage, &silent), 2, "{of_shard} {of_node}");
        assert_eq!(stage.count(Counter::StrangersGaveWay), 1);
    }
}

/// A second listener, with these limits, on a node with so many places.
fn beside_a_small_one(places: u32, limits: &str) -> Stage {
    let small = format!(
        "  - name: small\n    address: 127.0.0.1:1884\n    upstream: broker\n    anonymous: {{group: devices}}\n    \
         limits: {{connect_timeout: 60s, {limits}}}\nupstreams:\n"
    );
    let mut options = Options::quiet();
    options.table.connections_max = places;
    let policy = policy("unlimited", "unlimited").replace("upstreams:\n", &small);
    Stage::with_policy(&options, &policy)
}

fn knock_at_small(stage: &mut Stage, last: u8) -> Peer {
    let small = ListenSlot(stage.snapshot().listeners()[1].id.0);
    let peer = stage.network.connect(small, address(last));
    stage.run_for(Duration::from_millis(1));
    peer
}

#[test]
fn a_crowd_on_a_large_listener_does_not_close_a_small_one_to_its_address() {
    for limits in [
        "connections_max: 8",
        "connections_max: unlimited, connections_per_address_max: 2",
    ] {
        let mut stage = beside_a_small_one(1000, limits);
        let silent = crowd(&mut stage, address(1), 100);
        for _ in 0..2 {
            let client = knock_at_small(&mut stage, 1);
            assert!(gets_in(&mut stage, client), "{limits}");
        }
        assert_eq!(count_open(&stage, &silent), 100, "{limits}");
    }
}

/// Node and listener are full: a stranger on another listener holds a place of the node only.
#[test]
fn no_stranger_gives_way_whose_place_alone_is_not_enough() {
    for (note, limits, address_of_known) in [
        ("listener", "connections_max: 2", 1),
        ("address", "connections_per_address_max: 2", 4),
    ] {
        let mut stage = beside_a_small_one(10, limits);
        for _ in 0..2 {
            let known = knock_at_small(&mut stage, address_of_known);
            assert!(gets_in(&mut stage, known), "{note}");
        }
        let silent = crowd(&mut stage, address(2), 8);
        stage.run_for(GRACE);
        let turned_away = knock_at_small(&mut stage, 4);
        assert!(!is_open(&stage, turned_away), "{note}");
        assert_eq!(count_open(&stage, &silent), 8, "{note}");
        assert_eq!(stage.count(Counter::StrangersGaveWay), 0, "{note}");

        // One that holds a place of each is few, young and the right one.
        let mut stage = beside_a_small_one(10, limits);
        let known = knock_at_small(&mut stage, address_of_known);
        assert!(gets_in(&mut stage, known), "{note}");
        let silent = crowd(&mut stage, address(2), 8);
        stage.run_for(GRACE);
        let both = knock_at_small(&mut stage, address_of_known);
        stage.run_for(GRACE);
        let newcomer = knock_at_small(&mut stage, 4);
        assert!(gets_in(&mut stage, newcomer), "{note}");
        assert!(!is_open(&stage, both), "{note}");
        assert_eq!(count_open(&stage, &silent), 8, "{note}");
    }
}

#[test]
fn a_flood_within_its_grace_does_not_shelter_older_ones_of_others() {
    let mut stage = stage_of(12, 100, "unlimited", "unlimited");
    let old: Vec<Peer> = (1..=3).map(|last| knock(&mut stage, last)).collect();
    stage.run_for(GRACE);
    let flood = crowd(&mut stage, address(9), 6);
    let newcomer = knock(&mut stage, 4);
    assert!(is_open(&stage, newcomer));
    assert_eq!(
        (count_open(&stage, &old), count_open(&stage, &flood)),
        (2, 6)
    );
}

#[test]
fn a_listener_keeps_a_quarter_of_its_places_from_strangers() {
    // 8 for the listener: 6 for strangers, 5 for those of one address.
    let mut stage = stage_of(1000, 100, "8", "unlimited");
    let silent = crowd(&mut stage, address(1), 7);
    assert_eq!(count_open(&stage, &silent), 5);
    assert_eq!(stage.count(Counter::RefusedStrangersAddress), 2);
    let other = knock(&mut stage, 2);
    let refused = knock(&mut stage, 3);
    assert!(is_open(&stage, other) && !is_open(&stage, refused));
    assert_eq!(stage.count(Counter::RefusedStrangersListener), 1);
    stage.run_for(GRACE);
    for last in 3..=5 {
        let client = knock(&mut stage, last);
        assert!(gets_in(&mut stage, client), "{last}");
    }
    assert_eq!(stage.count(Counter::RefusedListener), 0);
}

/// Where places of any kind run out, a connection that says nothing makes room too.
#[test]
fn silent_connections_give_way_to_newcomers_at_every_limit() {
    for (places, sessions, listener, per_address, reason) in [
        (4, 100, "unlimited", "unlimited", Counter::RefusedNode),
        (100, 4, "unlimited", "unlimited", Counter::RefusedShard),
        (100, 100, "4", "unlimited", Counter::RefusedListener),
        (100, 100, "unlimited", "4", Counter::RefusedAddress),
    ] {
        let mut options = Options::quiet();
        options.table.connections_max = places;
        options.limits.sessions_max = sessions;
        let mut stage = Stage::with_policy(&options, &policy(listener, per_address));
        for _ in 0..2 {
            let client = knock(&mut stage, 1);
            assert!(gets_in(&mut stage, client), "{reason:?}");
        }
        let silent = [knock(&mut stage, 1), knock(&mut stage, 1)];
        let early = knock(&mut stage, 1);
        assert!(!is_open(&stage, early));
        assert_eq!(stage.count(reason), 1, "{reason:?}");
        stage.run_for(GRACE);
        let newcomer = knock(&mut stage, 1);
        assert!(gets_in(&mut stage, newcomer), "{reason:?}");
        assert!(!is_open(&stage, silent[0]) && is_open(&stage, silent[1]));
    }
}

/// A password that is being verified has bounds of its own: the queue's.
#[test]
fn a_complete_connect_is_no_stranger_and_nonsense_stays_one() {
    let mut stage = stage_of(100, 2, "unlimited", "unlimited");
    let waiting = knock(&mut stage, 1);
    let fields = ConnectFields {
        version: Version::V5,
        client_id: "c",
        keep_alive_secs: 0,
        login: Some(("nobody", "right")),
    };
    say(&mut stage, waiting, &packets::connect(&fields));
    assert_eq!(stage.passwords.len(), 1);
    assert_eq!(stage.table.strangers(), 0);
    let talkers = [knock(&mut stage, 1), knock(&mut stage, 1)];
    for talker in talkers {
        say(&mut stage, talker, &packets::pingreq());
        assert_ne!(stage.network.state(talker), PeerState::Reset);
    }
    assert_eq!(stage.table.strangers(), 2, "until they are closed");
    let refused = knock(&mut stage, 1);
    assert!(!is_open(&stage, refused));
    stage.run_for(GRACE);
    let newcomer = knock(&mut stage, 1);
    assert!(is_open(&stage, newcomer));
    assert_eq!(stage.network.state(waiting), PeerState::Open);
    for peer in [waiting, talkers[0], talkers[1], newcomer] {
        stage.network.close(peer);
    }
    stage.run_for(Duration::from_secs(90));
    stage.assert_empty();
}

#[test]
fn who_was_turned_away_and_why_is_told_once_a_second() {
    let mut stage = stage_of(100, 3, "unlimited", "unlimited");
    crowd(&mut stage, address(7), 43);
    let (batches, told) = turned_away(&mut stage);
    assert_eq!(batches, 1);
    assert_eq!(told.reasons(), [(Counter::RefusedStrangersAddress, 40)]);
    assert_eq!(told.most(), Some((address(7).into(), 40)));
    crowd(&mut stage, address(8), 5);
    crowd(&mut stage, address(7), 2);
    assert_eq!(turned_away(&mut stage).0, 0, "within the second");
    stage.run_for(GRACE);
    knock(&mut stage, 7);
    stage.run_for(GRACE);
    let (batches, told) = turned_away(&mut stage);
    assert!(batches <= 2, "{batches}");
    let expected = [
        (Counter::RefusedStrangersAddress, 4),
        (Counter::StrangersGaveWay, 1),
    ];
    assert_eq!(told.reasons(), expected);
}

/// What was told since the last call, and in how many batches.
fn turned_away(stage: &mut Stage) -> (usize, TurnedAway) {
    let mut sum = TurnedAway::default();
    let batches: Vec<_> = stage.notices.drain(..).collect();
    batches
        .iter()
        .for_each(|batch| sum.merge(&batch.turned_away));
    (batches.len(), sum)
}
