//! Each bound of a shard is reached, has its defined answer, and is counted.

use std::num::NonZeroU16;
use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::node::{KickWho, ToShard};
use sluice_dataplane::ring::simulated::{Faults, Peer, PeerState};
use sluice_dataplane::ring::{ListenSlot, RingConfig};
use sluice_dataplane::session::AuthOutcome;
use sluice_wire::mqtt::Version;

use crate::basics::{POLICY, address, connect, hear, knock, open, say};
use crate::packets::{self, ConnectFields};
use crate::stage::{Options, Stage};

fn wide() -> String {
    POLICY
        .replace(
            "connections_per_address_max: 3",
            "connections_per_address_max: 100000",
        )
        .replace("connections_max: 5", "connections_max: 100000")
}

fn login(stage: &mut Stage, last: u8) -> Peer {
    let client = knock(stage, last);
    let fields = ConnectFields {
        version: Version::V5,
        client_id: "c",
        keep_alive_secs: 0,
        login: Some(("nobody", "right")),
    };
    say(stage, client, &packets::connect(&fields));
    client
}

#[test]
fn one_password_too_many_is_told_to_come_back() {
    let mut options = Options::quiet();
    options.limits.authenticating_max = 2;
    let mut stage = Stage::with_policy(&options, &wide());
    let (_first, _second) = (login(&mut stage, 1), login(&mut stage, 2));
    let third = login(&mut stage, 3);
    let told = hear(&mut stage, third);
    assert_eq!((told.first(), told.get(3)), (Some(&0x20), Some(&0x89)));
    assert_eq!(stage.count(Counter::AuthenticateRefused), 1);
    // The answers make room again.
    stage.answer_passwords();
    stage.run_for(Duration::from_millis(1));
    assert_eq!(stage.count(Counter::EndedUnauthenticated), 2);
    login(&mut stage, 4);
    assert_eq!(stage.passwords.len(), 1);
}

/// What sessions keep of packets that are not finished is bounded like backlogs: whoever keeps most is ended.
#[test]
fn strangers_that_each_send_most_of_a_packet_do_not_take_the_memory() {
    let mut options = Options::quiet();
    options.limits.backlog_bytes_max = 64 << 10;
    let mut stage = Stage::with_policy(&options, &wide());
    // A CONNECT of 60,000 bytes, of which the last ones never come.
    let mut begun = vec![
        0x10, 0xe0, 0xd4, 0x03, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0xea, 0,
    ];
    begun.resize(10_000, b'x');
    let modest = knock(&mut stage, 100);
    say(&mut stage, modest, &begun[..3_000]);
    let strangers: Vec<Peer> = (1..=10).map(|last| knock(&mut stage, last)).collect();
    for stranger in strangers {
        say(&mut stage, stranger, &begun);
        assert!(stage.shard.backlog_bytes() <= 64 << 10);
    }
    assert!(stage.shard.backlog_bytes() > 48 << 10, "it is used");
    assert!(stage.count(Counter::BacklogShed) > 0, "and kept");
    knock(&mut stage, 101);
    assert_eq!(stage.count(Counter::RefusedMemory), 1);
    assert_eq!(stage.network.state(modest), PeerState::Open);
    // Their deadline comes, and everything is given back.
    stage.run_for(Duration::from_secs(30));
    assert_eq!(
        (stage.shard.backlog_bytes(), stage.shard.sessions()),
        (0, 0)
    );
}

#[test]
fn a_full_mailbox_is_told_to_come_back_too() {
    let options = Options::one_message();
    let mut stage = Stage::with_policy(&options, &wide());
    stage.is_reading_mail = false;
    let clients: Vec<Peer> = (1..=3).map(|last| login(&mut stage, last)).collect();
    assert_eq!(stage.count(Counter::AuthenticateRefused), 2);
    let told = hear(&mut stage, clients[2]);
    assert_eq!((told.first(), told.get(3)), (Some(&0x20), Some(&0x89)));
}

#[test]
fn what_must_be_told_waits_for_room_and_nothing_more_is_read_meanwhile() {
    let options = Options::one_message();
    let mut stage = Stage::with_policy(&options, &wide());
    stage.is_reading_mail = false;
    // One answer fits into the mailbox, sixteen wait in the shard; the other orders stay unread in its own mailbox.
    for request in 0..40 {
        stage.send(ToShard::Kick {
            request,
            who: KickWho::ClientId("nobody".into()),
        });
    }
    stage.run_for(Duration::from_secs(1));
    let more = (0..64).take_while(|_| stage.to_shard.send(ToShard::Report { request: 0 }).is_ok());
    assert_eq!(more.count(), 64 - (40 - 17), "23 orders are unread");
    stage.is_reading_mail = true;
    stage.run_for(Duration::from_secs(5));
    let requests: Vec<u64> = stage.kicked.iter().map(|(request, _)| *request).collect();
    assert_eq!(requests, (0..40).collect::<Vec<_>>(), "none lost, in order");
}

#[test]
fn a_kick_looks_at_many_slots_in_several_turns_and_finds_them_all() {
    // Searches go 4,096 slots a turn: the last of them stand in the third part.
    const SESSIONS: u32 = 9000;
    let mut options = Options::quiet();
    options.ring.sockets_max = 2 * SESSIONS;
    let mut stage = Stage::with_policy(&options, &wide());
    let listener = ListenSlot(stage.snapshot().listeners()[0].id.0);
    let clients: Vec<Peer> = (0..SESSIONS)
        .map(|n| {
            let last = u8::try_from(n % 250).expect("small");
            let client = stage.network.connect(listener, address(last));
            let name = if n % 3 == 0 { "meant" } else { "other" };
            stage.network.write(client, &connect(Version::V5, name));
            if n % 100 == 0 {
                stage.run_for(Duration::from_millis(1));
            }
            client
        })
        .collect();
    stage.run_for(Duration::from_millis(10));
    assert_eq!(stage.shard.sessions(), SESSIONS);
    stage.send(ToShard::Kick {
        request: 1,
        who: KickWho::ClientId("meant".into()),
    });
    stage.turn();
    assert!(stage.kicked.is_empty(), "not in one turn");
    stage.run_for(Duration::from_millis(10));
    assert_eq!(stage.kicked, [(1, SESSIONS / 3)]);
    for (index, client) in clients.into_iter().enumerate() {
        let is_open = stage.network.state(client) == PeerState::Open;
        assert_eq!(is_open, index % 3 != 0, "{index}");
    }
}

#[test]
fn a_late_answer_is_dropped_by_its_epoch() {
    let mut stage = Stage::with_policy(&Options::quiet(), &wide());
    let client = login(&mut stage, 1);
    let (session, _) = stage.passwords.pop_front().expect("a question");
    // An operator lists and ends it meanwhile; another takes the slot.
    stage.send(ToShard::Kick {
        request: 1,
        who: KickWho::ClientId("c".into()),
    });
    stage.run_for(Duration::from_millis(1));
    stage.network.close(client);
    stage.run_for(Duration::from_secs(30));
    let other = login(&mut stage, 2);
    let outcome = AuthOutcome::Verified;
    stage.send(ToShard::Authenticated { session, outcome });
    assert!(hear(&mut stage, other).is_empty());
    assert_eq!(stage.count(Counter::AuthenticateLate), 1);
    assert_eq!(stage.count(Counter::DialAttempts), 0, "nobody was let in");
}

#[test]
fn the_largest_backlogs_go_first_when_memory_runs_short() {
    let mut options = Options {
        faults: Faults {
            capacity_bytes: 1000,
            ..Faults::none()
        },
        ..Options::quiet()
    };
    options.limits.backlog_bytes_max = 12 << 10;
    let mut stage = Stage::with_policy(&options, &wide());
    let sessions: Vec<(Peer, Peer)> = (1..=4)
        .map(|last| open(&mut stage, Version::V5, last))
        .collect();
    let packet = packets::publish(Version::V5, "open/a", 0, 0, &[7; 400]);
    // Nobody reads; the second broker sends most.
    let mut sent = [0; 4];
    for round in 0..200 {
        for (number, (_, broker)) in sessions.iter().enumerate() {
            if number == 1 || round % 4 == 0 {
                sent[number] += stage
                    .network
                    .write(*broker, &packet[sent[number] % packet.len()..]);
            }
        }
        stage.run_for(Duration::from_millis(5));
        assert!(stage.shard.backlog_bytes() <= 12 << 10);
        if stage.count(Counter::BacklogShed) > 0 {
            break;
        }
        if stage.shard.backlog_bytes() > 9 << 10 {
            knock(&mut stage, 9);
        }
    }
    assert!(
        stage.count(Counter::RefusedMemory) > 0,
        "newcomers are turned away first"
    );
    assert_eq!(stage.count(Counter::EndedOverload), 1);
    stage.run_for(Duration::from_millis(5));
    let states: Vec<PeerState> = sessions
        .iter()
        .map(|(client, _)| stage.network.state(*client))
        .collect();
    assert_ne!(states[1], PeerState::Open, "the largest: {states:?}");
    assert_eq!(
        states
            .iter()
            .filter(|state| **state == PeerState::Open)
            .count(),
        3
    );
}

#[test]
fn a_sweep_goes_over_many_turns_and_only_then_acknowledges() {
    let mut options = Options::quiet();
    options.ring.sockets_max = 8192;
    let mut stage = Stage::with_policy(&options, &wide());
    for _ in 0..2500 {
        stage.network.connect(stage.listener(), address(1));
    }
    stage.run_for(Duration::from_millis(10));
    assert_eq!(stage.shard.sessions(), 2500);
    stage.apply(&wide());
    let mut turns = 0;
    while stage.acknowledged < 2 {
        stage.turn();
        turns += 1;
        assert!(turns < 10);
    }
    assert_eq!(turns, 3, "1,024 sessions in a turn");
}

#[test]
fn thousands_that_vanish_at_once_leave_nothing_s20() {
    let mut options = Options::quiet();
    options.ring = RingConfig {
        sockets_max: 8192,
        buffers: 64,
        buffer_bytes: 256,
    };
    let mut stage = Stage::with_policy(&options, &wide());
    let mut turns = 0;
    for wave in 0..3 {
        let clients: Vec<Peer> = (0..1500)
            .map(|_| stage.network.connect(stage.listener(), address(1)))
            .collect();
        stage.run_for(Duration::from_millis(5));
        for (number, client) in clients.iter().enumerate() {
            let hello = connect(Version::V311, &format!("c{number}"));
            // Some never say who they are, some only half.
            let most = if number % 3 == 0 {
                number % 7
            } else {
                hello.len()
            };
            stage.network.write(*client, &hello[..most]);
        }
        stage.run_for(Duration::from_millis(20));
        assert_eq!(stage.shard.sessions(), 1500);
        for (number, client) in clients.iter().enumerate() {
            match (number + wave) % 3 {
                0 => stage.network.reset(*client),
                1 => stage.network.close(*client),
                _ => stage.network.finish(*client),
            }
        }
        // Brokers close when the shard does.
        for _ in 0..20 {
            stage.run_for(Duration::from_millis(20));
            for target in stage.targets() {
                while let Some(broker) = stage.network.accept(&target) {
                    stage.network.finish(broker);
                }
            }
            turns += 1;
        }
        stage.run_for(Duration::from_secs(3));
        stage.assert_empty();
    }
    assert!(turns > 0);
    assert_eq!(stage.count(Counter::ConnectionsAccepted), 4500);
}

/// A client may subscribe as much as it likes at once: what the broker has not answered makes reading wait, in the ring too.
#[test]
fn subscribes_written_in_one_go_are_all_answered() {
    const COUNT: u16 = 2000;
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let (client, broker) = open(&mut stage, Version::V311, 1);
    let filters = [("open/a", 1), ("shut/a", 1)];
    let subscribe = |number| packets::subscribe(Version::V311, number, &filters);
    let suback = |number, codes: &[u8]| {
        let number = NonZeroU16::new(number).expect("from 1");
        packets::suback(Version::V311, number, codes)
    };
    let sent: Vec<u8> = (1..=COUNT).flat_map(subscribe).collect();
    let mut written = stage.network.write(client, &sent);
    let (mut passed, mut told) = (packets::Splitter::default(), Vec::new());
    let mut answered = 0;
    let mut kept_most = 0;
    while answered < COUNT {
        kept_most = kept_most.max(stage.shard.backlog_bytes());
        passed.add(&hear(&mut stage, broker));
        while let Some(packet) = passed.next() {
            answered += 1;
            assert_eq!(packet[2..4], answered.to_be_bytes());
            let suback = suback(answered, &[1]);
            assert_eq!(stage.network.write(broker, &suback), suback.len());
        }
        told.extend(hear(&mut stage, client));
        written += stage.network.write(client, &sent[written..]);
    }
    told.extend(hear(&mut stage, client));
    let merged = |number| suback(number, &[1, 0x80]);
    assert_eq!(told, (1..=COUNT).flat_map(merged).collect::<Vec<u8>>());
    assert!(
        kept_most > 4 << 10,
        "what waits is in the budget: {kept_most}"
    );
    assert_eq!(stage.shard.backlog_bytes(), 0, "and was given back");
    assert_eq!(stage.shard.sessions(), 1);
}
