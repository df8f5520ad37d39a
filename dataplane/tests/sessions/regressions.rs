//! Inputs that have broken other brokers and proxies, as whole sessions. The decoders have theirs in `wire`.

use std::time::Duration;

use sluice_dataplane::session::{Cause, Side};
use sluice_wire::mqtt::{Connect, Packet, QoS, Version, Violation};

use crate::harness::{
    Event, RULES, Rig, VERSIONS, ack, bytes, connect, document, publish, subscribe,
};

/// Mosquitto: a first packet that is not CONNECT, with a huge length, was buffered.
#[test]
fn cve_2023_0809_first_packet_not_connect_with_a_huge_length() {
    for first in 0..=u8::MAX {
        let mut rig = Rig::new(&document("", RULES));
        rig.client(&[first, 0xff, 0xff, 0xff, 0x7f]);
        assert!(
            matches!(rig.ended(), Some(Cause::Violation(_))),
            "{first:#x}"
        );
        rig.expect(&[], &[], "nothing is said");
        assert_eq!(rig.session.heap_bytes(), 0);
    }
}

/// Mosquitto: a huge remaining length before authentication took memory.
#[test]
fn cve_2017_7651_a_claimed_length_takes_no_memory() {
    let mut rig = Rig::new(&document("", RULES));
    // 64 KiB, within the limit for CONNECT.
    rig.client(&[0x10, 0x80, 0x80, 0x03, 0, 4]);
    assert_eq!(rig.ended(), None);
    assert!(
        rig.session.heap_bytes() < 256,
        "{}",
        rig.session.heap_bytes()
    );
}

/// Mosquitto: QoS 2 messages with the same identifier leaked.
#[test]
fn cve_2023_28366_one_identifier_is_one_flow() {
    for topic in ["secret/a", "low1/a", "low0/a"] {
        let mut rig = Rig::open(Version::V311);
        for _ in 0..10_000 {
            rig.client_sends(&Packet::Publish(publish(topic, QoS::ExactlyOnce, 7, b"x")));
        }
        assert_eq!(rig.ended(), None);
        assert!(
            rig.session.heap_bytes() < 1_000,
            "{}",
            rig.session.heap_bytes()
        );
    }
}

/// EMQX: duplicates of a QoS 2 message raced its release.
#[test]
fn cve_2026_8741_a_duplicate_after_the_release_is_a_new_message() {
    let mut rig = Rig::open(Version::V311);
    let message = Packet::Publish(publish("low1/a", QoS::ExactlyOnce, 7, b"x"));
    let lowered = bytes(
        Version::V311,
        &Packet::Publish(publish("low1/a", QoS::AtLeastOnce, 7, b"x")),
    );
    for _ in 0..3 {
        rig.client_sends(&message);
        rig.client_sends(&message);
        rig.broker_sends(&Packet::Puback(ack(7, 0)));
        rig.client_sends(&message);
        assert_eq!(rig.take_up(), lowered, "forwarded once");
        rig.client_sends(&Packet::Pubrel(ack(7, 0)));
        assert!(rig.take_up().is_empty());
    }
}

/// Mosquitto: a SUBACK without reason codes crashed a bridge.
#[test]
fn cve_2024_10525_a_suback_without_codes() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let filters = [("open/a", QoS::AtMostOnce), ("secret/a", QoS::AtMostOnce)];
        rig.client(&subscribe(version, 5, &filters));
        rig.clear();
        let empty: &[u8] = match version {
            Version::V5 => &[0x90, 3, 0, 5, 0],
            Version::V31 | Version::V311 => &[0x90, 2, 0, 5],
        };
        rig.broker(empty);
        let told: &[u8] = match version {
            Version::V5 => &[0x90, 5, 0, 5, 0, 0x80, 0x87],
            Version::V311 => &[0x90, 4, 0, 5, 0x80, 0x80],
            Version::V31 => &[0x90, 4, 0, 5, 0, 0],
        };
        rig.expect(told, &[], "both failed");
        // Without a merge it is not known how many codes are missing.
        rig.client(&subscribe(version, 6, &filters[..1]));
        rig.clear();
        if version > Version::V31 {
            let last = 3;
            let mut empty = empty.to_vec();
            empty[last] = 6;
            rig.broker(&empty);
            rig.expect(&[], &[], "dropped");
            assert_eq!(rig.faults, [Violation::SubackNoCode]);
        }
        assert_eq!(rig.ended(), None);
    }
}

/// RabbitMQ: a user name without a password was let in.
#[test]
fn cve_2016_9877_a_user_name_alone_is_no_login() {
    for version in VERSIONS {
        for password in [None, Some(&b""[..])] {
            let mut rig = Rig::new(&document("", RULES));
            let request = Connect {
                username: Some("alice"),
                password,
                ..connect(version, "dev")
            };
            rig.client(&bytes(version, &Packet::Connect(request)));
            let known = password.is_some();
            let username = "alice".to_owned();
            assert_eq!(rig.events, [Event::Authenticate { username, known }]);
        }
    }
}

/// RMQTT: a row of CONNECT packets killed the broker.
#[test]
fn cve_2024_36856_a_row_of_connects() {
    let one = bytes(
        Version::V311,
        &Packet::Connect(connect(Version::V311, "dev")),
    );
    let mut rig = Rig::new(&document("", RULES));
    rig.client(&one.repeat(5));
    assert_eq!(rig.events, [Event::Dial], "the others are held, unread");
    rig.dialled_now(true);
    assert_eq!(rig.take_up(), one);
    rig.broker(&[0x20, 2, 0, 0]);
    assert!(matches!(rig.ended(), Some(Cause::Violation(_))));
    assert!(rig.take_up().is_empty());
}

/// Moquette and NanoMQ: a queue for each session without a bound.
#[test]
fn cve_2026_95845_a_flood_against_a_stalled_delivery_is_bounded() {
    let mut rig = Rig::open(Version::V311);
    let delivery = bytes(
        Version::V311,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, &[7; 500])),
    );
    rig.broker(&delivery[..100]);
    let flood = bytes(
        Version::V311,
        &Packet::Publish(publish("secret/a", QoS::AtLeastOnce, 1, b"x")),
    )
    .repeat(1_000);
    while rig.events.is_empty() {
        rig.client(&flood);
        assert!(rig.session.heap_bytes() < 200_000);
    }
    assert_eq!(
        rig.events,
        [Event::Pause(Side::Downstream)],
        "no more is read"
    );
    // A ring that went on all the same.
    for _ in 0..1_000 {
        rig.client(&flood);
        assert!(rig.session.heap_bytes() < 20_000_000);
    }
    assert_eq!(rig.ended(), Some(Cause::Overload));
}

/// Every packet of a usual session cut at every byte, and every bit of its first byte turned.
#[test]
fn s7_cut_and_flipped_packets_end_or_wait() {
    for version in VERSIONS {
        let packets = [
            bytes(version, &Packet::Connect(connect(version, "dev"))),
            bytes(
                version,
                &Packet::Publish(publish("open/a", QoS::ExactlyOnce, 1, b"x")),
            ),
            bytes(version, &Packet::Puback(ack(1, 0))),
            bytes(version, &Packet::Pubrel(ack(1, 0))),
            subscribe(version, 1, &[("open/a", QoS::AtMostOnce)]),
            vec![0xc0, 0],
            vec![0xe0, 0],
        ];
        for packet in &packets {
            for cut in 1..packet.len() {
                for side in [Side::Downstream, Side::Upstream] {
                    let mut rig = Rig::open(version);
                    rig.bytes_from(side, &packet[..cut]);
                    rig.passes(Duration::from_secs(10_000));
                    assert!(rig.ended().is_some(), "{packet:?} cut at {cut}");
                }
            }
            for bit in 0..8 {
                let mut flipped = packet.clone();
                flipped[0] ^= 1 << bit;
                for side in [Side::Downstream, Side::Upstream] {
                    let mut rig = Rig::open(version);
                    rig.bytes_from(side, &flipped);
                    rig.passes(Duration::from_secs(10_000));
                    assert!(rig.ended().is_some(), "{flipped:?}");
                }
            }
        }
    }
}
