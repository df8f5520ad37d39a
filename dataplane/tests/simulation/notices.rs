//! What the log is told of single sessions: how they ended, when somebody wants to know; kept sessions sent elsewhere.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::ring::simulated::Serve;
use sluice_dataplane::session::Cause;
use sluice_wire::mqtt::{Version, Violation};

use crate::basics::{POLICY, address, connect, hear, knock, open, say};
use crate::packets;
use crate::stage::{Options, Stage};

const ECONNREFUSED: i32 = 111;

#[test]
fn how_a_session_ends_is_told_exactly_when_it_is_wanted() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    for wanted in [false, true, false] {
        stage.table.set_logs_ended(wanted);
        let (client, _broker) = open(&mut stage, Version::V5, 1);
        stage.run_for(Duration::from_secs(1));
        say(&mut stage, client, &connect(Version::V5, "client-1"));
        let ended: Vec<_> = stage.notices.drain(..).flat_map(|b| b.ended).collect();
        assert_eq!(ended.len(), usize::from(wanted));
        for line in ended {
            assert_eq!(line.cause, Cause::Violation(Violation::SecondConnect));
            assert_eq!(line.cause.name(), "violation");
            assert_eq!(line.clause, "MQTT-3.1.0-2");
            assert_eq!((&*line.client_id, &*line.listener), ("client-1", "devices"));
            assert_eq!(line.peer, address(1));
            assert!(line.open_for >= Duration::from_secs(1));
        }
        stage.network.close(client);
        stage.run_for(Duration::from_secs(3));
    }
}

#[test]
fn a_session_of_an_older_version_names_a_clause_of_its_own() {
    for (version, clause) in [
        (Version::V31, "3.1 3.1"),
        (Version::V311, "3.1.1 MQTT-3.1.0-2"),
    ] {
        let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
        stage.table.set_logs_ended(true);
        let (client, _broker) = open(&mut stage, version, 1);
        stage.run_for(Duration::from_secs(1));
        say(&mut stage, client, &connect(version, "client-1"));
        let ended: Vec<_> = stage.notices.drain(..).flat_map(|b| b.ended).collect();
        let clauses: Vec<_> = ended.iter().map(|line| line.clause).collect();
        assert_eq!(clauses, [clause]);
    }
}

#[test]
fn a_fault_of_a_broker_is_told_and_the_session_goes_on() {
    let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
    let (client, broker) = open(&mut stage, Version::V5, 1);
    say(&mut stage, broker, b"\x40\x03\x00\x01\x95");
    let faults: Vec<_> = stage.notices.drain(..).flat_map(|b| b.faults).collect();
    let [fault] = &faults[..] else {
        panic!("one line: {faults:?}");
    };
    assert_eq!(fault.violation, Violation::PubackCodeUndefined);
    assert_eq!(fault.clause, "MQTT-3.4.2-1");
    assert_eq!(
        (&*fault.client_id, &*fault.upstream),
        ("client-1", "broker")
    );
    assert_eq!(hear(&mut stage, client), b"\x40\x03\x00\x01\x80");
    say(&mut stage, client, &packets::pingreq());
    assert_eq!(hear(&mut stage, broker), packets::pingreq());
}

#[test]
fn lines_without_room_are_counted_and_told_later() {
    let options = Options::one_message();
    let mut stage = Stage::with_policy(&options, POLICY);
    stage.table.set_logs_ended(true);
    stage.is_reading_mail = false;
    for _ in 0..3 {
        let client = knock(&mut stage, 1);
        say(&mut stage, client, &packets::pingreq());
        stage.network.close(client);
        stage.run_for(Duration::from_secs(3));
    }
    stage.is_reading_mail = true;
    stage.run_for(Duration::from_millis(1));
    let client = knock(&mut stage, 1);
    say(&mut stage, client, &packets::pingreq());
    let told: usize = stage.notices.iter().map(|batch| batch.ended.len()).sum();
    let left_off: u32 = stage.notices.iter().map(|batch| batch.ended_left_off).sum();
    assert_eq!((told, left_off), (2, 2));
}

/// CONNECT with a clean start or without, and in version 5 with this session expiry.
fn hello(version: Version, clean_start: bool, expiry: Option<u32>) -> Vec<u8> {
    let mut body = vec![0, 4];
    body.extend_from_slice(b"MQTT");
    body.push(if version == Version::V5 { 5 } else { 4 });
    body.extend_from_slice(&[u8::from(clean_start) << 1, 0, 0]);
    match expiry {
        Some(seconds) => {
            body.extend_from_slice(&[5, 0x11]);
            body.extend_from_slice(&seconds.to_be_bytes());
        }
        None if version == Version::V5 => body.push(0),
        None => {}
    }
    body.extend_from_slice(&[0, 1, b'c']);
    packets::packet(0x10, &body)
}

#[test]
fn a_kept_session_sent_elsewhere_is_counted_and_named() {
    for (version, clean_start, expiry, kept) in [
        (Version::V311, true, None, false),
        (Version::V311, false, None, true),
        (Version::V5, true, None, false),
        (Version::V5, true, Some(0), false),
        (Version::V5, true, Some(60), true),
        (Version::V5, false, None, true),
    ] {
        let mut stage = Stage::with_policy(&Options::quiet(), POLICY);
        // One of the two is where the client belongs.
        let mut away = Vec::new();
        for refusing in stage.targets() {
            stage.network.serve(&refusing, Serve::Refuse(ECONNREFUSED));
            let client = knock(&mut stage, 1);
            say(&mut stage, client, &hello(version, clean_start, expiry));
            stage.run_for(Duration::from_millis(500));
            stage.network.close(client);
            stage.network.serve(&refusing, Serve::Accept);
            stage.run_for(Duration::from_secs(20));
            away.extend(stage.notices.drain(..).flat_map(|batch| batch.failovers));
        }
        assert_eq!(stage.count(Counter::DialFailover), 1);
        assert_eq!(stage.count(Counter::DialFailoverKept), u64::from(kept));
        assert_eq!(away.len(), usize::from(kept), "{version:?} {clean_start}");
        for line in away {
            assert_eq!((&*line.client_id, &*line.upstream), ("c", "broker"));
            assert!(line.endpoint.contains("200"), "{}", line.endpoint);
        }
    }
}
