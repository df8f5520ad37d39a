//! How a session ends: cause, bytes down, bytes up, what becomes of the will; and the deadlines that end it.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::session::{Cause, Deadline, Side};
use sluice_wire::mqtt::{Connect, Packet, QoS, Version, Violation};

use crate::harness::{
    Event, RULES, Rig, VERSIONS, bytes, connack, connect, disconnect, document, publish, will,
};

/// An open session with a will on `topic`.
fn with_will(version: Version, listener: &str, topic: &str) -> Rig {
    let request = Connect {
        will: Some(will(topic, QoS::AtMostOnce, false, b"gone")),
        ..connect(version, "dev")
    };
    Rig::open_with(version, &document(listener, RULES), &request)
}

/// The rules without the one that allows the will of these tests.
fn without_open() -> String {
    document("", &RULES.replace("\"open/#\", ", ""))
}

const NORMAL: [u8; 2] = [0xe0, 0];

#[test]
fn the_table_of_ends() {
    let violation = Violation::PacketTooLarge;
    // What a v5 client hears once open, and before CONNACK (3.x code, v5 code); 0 is silence.
    let table = [
        (Cause::ClientGone, 0, (0, 0)),
        (Cause::UpstreamGone, 0x80, (3, 0x88)),
        (Cause::UpstreamUnavailable, 0x80, (3, 0x88)),
        (Cause::UpstreamClosed, 0x80, (0, 0x80)),
        (Cause::UpstreamStalled, 0x80, (3, 0x88)),
        (Cause::Violation(violation), 0x95, (0, 0x95)),
        (Cause::UpstreamViolation(violation), 0x80, (3, 0x88)),
        (Cause::Denied, 0x87, (5, 0x87)),
        (Cause::ListenerGone, 0x98, (3, 0x88)),
        (Cause::Busy, 0x89, (3, 0x89)),
        (Cause::PacketTimeout, 0x80, (3, 0x80)),
        (Cause::KeepAlive, 0x8d, (3, 0x80)),
        (Cause::WriteStall, 0, (0, 0)),
        (Cause::Kicked, 0x98, (5, 0x87)),
        (Cause::Drained, 0x8b, (3, 0x88)),
        (Cause::Overload, 0x97, (3, 0x89)),
    ];
    for (cause, disconnect, (code_3, code_5)) in table {
        for version in VERSIONS {
            let is_v5 = version == Version::V5;
            let mut rig = with_will(version, "", "open/will");
            rig.end(cause);
            let told = match disconnect {
                reason if is_v5 && reason != 0 => vec![0xe0, 1, reason],
                _ => vec![],
            };
            rig.expect(
                &told,
                &[],
                &format!("{cause:?}, open: the will is the broker's"),
            );
            assert_eq!(rig.events, [Event::Close(cause)]);
            assert_eq!(rig.count(cause.counter()), 1, "{cause:?}");

            let mut rig = Rig::dialled(version, &document("", RULES), &connect(version, "dev"));
            rig.clear();
            rig.end(cause);
            let told = match (is_v5, code_3, code_5) {
                (true, _, 0) | (false, 0, _) => vec![],
                (true, _, code) => vec![0x20, 3, 0, code, 0],
                (false, code, _) => vec![0x20, 2, 0, code],
            };
            rig.expect(&told, &[], &format!("{cause:?}, before CONNACK"));

            let mut rig = Rig::new(&document("", RULES));
            rig.end(cause);
            rig.expect(&[], &[], &format!("{cause:?}, before CONNECT"));
        }
    }
}

#[test]
fn an_ended_session_is_deaf_and_dumb() {
    let mut rig = Rig::open(Version::V5);
    rig.end(Cause::Kicked);
    rig.clear();
    let message = bytes(
        Version::V5,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, b"x")),
    );
    rig.client(&message);
    rig.broker(&message);
    rig.closed(Side::Downstream);
    rig.closed(Side::Upstream);
    rig.dialled_now(true);
    rig.end(Cause::Drained);
    rig.held(Side::Downstream, true);
    rig.applies(&without_open());
    rig.sweeps();
    rig.passes(Duration::from_secs(100_000));
    rig.expect(&[], &[], "nothing more");
    assert_eq!(rig.events, []);
    assert_eq!(rig.session.poll_timeout(), None);
    assert_eq!(rig.session.generation(), None);
}

#[test]
fn a_disconnect_of_the_client_is_passed_on() {
    for version in VERSIONS {
        let mut rig = with_will(version, "", "open/will");
        rig.client(&NORMAL);
        rig.expect(&[], &NORMAL, "DISCONNECT");
        assert_eq!(rig.ended(), Some(Cause::ClientDisconnect));
    }
    let mut rig = with_will(Version::V5, "", "open/will");
    let with_will_message = disconnect(Version::V5, 4);
    rig.client(&with_will_message);
    rig.expect(&[], &with_will_message, "0x04 passes unchanged");
}

#[test]
fn a_disconnect_of_the_broker_is_passed_on_alone() {
    let mut rig = Rig::open(Version::V5);
    let taken_over = disconnect(Version::V5, 0x8e);
    rig.broker(&taken_over);
    rig.expect(&taken_over, &[], "its reason and no other");
    assert_eq!(rig.ended(), Some(Cause::UpstreamDisconnect));
    let mut rig = Rig::open(Version::V311);
    rig.broker(&NORMAL);
    assert!(matches!(rig.ended(), Some(Cause::UpstreamViolation(_))));
}

#[test]
fn a_will_that_is_forbidden_by_then_is_suppressed() {
    for version in VERSIONS {
        for cause in [
            Cause::ClientGone,
            Cause::KeepAlive,
            Cause::Kicked,
            Cause::Drained,
            Cause::Violation(Violation::PacketTooLarge),
        ] {
            let mut rig = with_will(version, "", "open/will");
            rig.applies(&without_open());
            rig.end(cause);
            assert_eq!(rig.take_up(), NORMAL, "{cause:?}");
            assert_eq!(rig.count(Counter::WillSuppressed), 1);
        }
        let mut rig = with_will(version, "", "open/will");
        rig.applies(&without_open());
        rig.closed(Side::Downstream);
        rig.expect(&[], &NORMAL, "FIN of the client");
    }
    let mut rig = with_will(Version::V5, "", "open/will");
    rig.applies(&without_open());
    rig.client(&disconnect(Version::V5, 4));
    rig.expect(&[], &NORMAL, "0x04 would have set it off");
    assert_eq!(rig.ended(), Some(Cause::ClientDisconnect));
}

#[test]
fn the_will_of_a_session_that_is_taken_away() {
    let deny = document(
        "",
        "rules:\n  - {name: none, actions: [connect], decision: deny}",
    );
    let other_listener = document("", RULES).replace("name: plain", "name: other");
    for version in VERSIONS {
        // Who is not admitted has no right to publish; a listener that goes says nothing about its clients.
        for (document, up) in [(&deny, &NORMAL[..]), (&other_listener, &[])] {
            let mut rig = with_will(version, "", "open/will");
            rig.applies(document);
            rig.sweeps();
            assert!(rig.ended().is_some());
            assert_eq!(rig.take_up(), up);
        }
    }
}

#[test]
fn in_the_middle_of_a_message_no_will_can_be_suppressed() {
    let mut rig = with_will(Version::V311, "", "open/will");
    let message = publish("open/a", QoS::AtMostOnce, 0, &[7; 100]);
    let message = bytes(Version::V311, &Packet::Publish(message));
    rig.client(&message[..50]);
    rig.applies(&without_open());
    rig.closed(Side::Downstream);
    rig.expect(&[], &message[..50], "a DISCONNECT would be payload");
}

#[test]
fn a_drain_treats_wills_as_the_document_says() {
    for version in VERSIONS {
        for (listener, up) in [("", &[][..]), ("    drain_wills: suppress", &NORMAL)] {
            let mut rig = with_will(version, listener, "open/will");
            rig.end(Cause::Drained);
            assert_eq!(rig.take_up(), up, "{listener}");
            let mut rig = with_will(version, listener, "open/will");
            rig.end(Cause::Kicked);
            assert!(rig.take_up().is_empty(), "only a drain asks");
        }
    }
}

#[test]
fn a_session_in_mid_packet_gets_no_reason() {
    let message = |version| {
        bytes(
            version,
            &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, &[7; 100])),
        )
    };
    let mut rig = with_will(Version::V5, "    drain_wills: suppress", "open/will");
    rig.broker(&message(Version::V5)[..30]);
    rig.take_down();
    rig.end(Cause::Drained);
    rig.expect(
        &[],
        &NORMAL,
        "nothing into a payload; upstream is at a boundary",
    );
    let mut rig = with_will(Version::V5, "    drain_wills: suppress", "open/will");
    rig.client(&message(Version::V5)[..30]);
    rig.take_up();
    rig.end(Cause::Drained);
    rig.expect(&[0xe0, 1, 0x8b], &[], "and the other way round");
}

#[test]
fn a_new_generation_closes_who_may_not_be_there() {
    let deny = document(
        "",
        "rules:\n  - {name: none, actions: [connect], decision: deny}",
    );
    let no_anonymous = document("", RULES).replace("    anonymous: {group: guests}\n", "");
    let other_listener = document("", RULES).replace("name: plain", "name: other");
    for version in VERSIONS {
        for (document, cause, reason) in [
            (&deny, Cause::Denied, 0x87),
            (&no_anonymous, Cause::Denied, 0x87),
            (&other_listener, Cause::ListenerGone, 0x98),
        ] {
            let told = match version {
                Version::V5 => vec![0xe0, 1, reason],
                Version::V31 | Version::V311 => vec![],
            };
            // By the sweep, or at its first packet before anything is read from a table.
            let mut rig = Rig::open(version);
            rig.applies(document);
            rig.sweeps();
            rig.expect(&told, &[], "swept");
            assert_eq!(rig.ended(), Some(cause));
            let mut rig = Rig::open(version);
            rig.applies(document);
            rig.client_sends(&Packet::Publish(publish(
                "open/a",
                QoS::AtMostOnce,
                0,
                b"x",
            )));
            rig.expect(&told, &[], "at its first packet");
            assert_eq!(rig.ended(), Some(cause));
        }
        let mut rig = Rig::open(version);
        rig.applies(&without_open());
        rig.sweeps();
        assert_eq!(rig.session.generation().map(|number| number.0), Some(2));
        assert_eq!(rig.events, []);
    }
}

#[test]
fn a_new_generation_during_the_dial_stops_the_session() {
    let deny = document(
        "",
        "rules:\n  - {name: none, actions: [connect], decision: deny}",
    );
    let will_only = Connect {
        will: Some(will("open/will", QoS::AtMostOnce, false, b"gone")),
        ..connect(Version::V5, "dev")
    };
    for (document_then, request) in [
        (deny, connect(Version::V5, "dev")),
        (without_open(), will_only),
    ] {
        let mut rig = Rig::new(&document("", RULES));
        rig.client(&bytes(Version::V5, &Packet::Connect(request)));
        rig.applies(&document_then);
        rig.dialled_now(true);
        rig.expect(&[0x20, 3, 0, 0x87, 0], &[], "nothing went upstream");
        assert_eq!(rig.ended(), Some(Cause::Denied));
    }
}

#[test]
fn keep_alive_is_one_and_a_half_times() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        assert_eq!(
            rig.session.poll_timeout(),
            Some((rig.now.after(Duration::from_secs(90)), Deadline::KeepAlive))
        );
        rig.passes(Duration::from_secs(89));
        rig.client(&[0xc0, 0]);
        rig.expect(&[], &[0xc0, 0], "PINGREQ passes");
        rig.passes(Duration::from_secs(89));
        assert_eq!(rig.ended(), None);
        rig.passes(Duration::from_secs(1));
        let told = match version {
            Version::V5 => vec![0xe0, 1, 0x8d],
            Version::V31 | Version::V311 => vec![],
        };
        rig.expect(&told, &[], "silent for 90 s");
        assert_eq!(rig.ended(), Some(Cause::KeepAlive));
    }
}

#[test]
fn without_keep_alive_there_is_no_deadline() {
    let request = Connect {
        keep_alive_secs: 0,
        ..connect(Version::V311, "dev")
    };
    let mut rig = Rig::open_with(Version::V311, &document("", RULES), &request);
    assert_eq!(rig.session.poll_timeout(), None);
    rig.passes(Duration::from_secs(1_000_000));
    assert_eq!(rig.ended(), None);
}

#[test]
fn a_client_whose_reading_we_hold_is_not_blamed() {
    let mut rig = Rig::open(Version::V311);
    rig.held(Side::Downstream, true);
    rig.passes(Duration::from_secs(1_000));
    assert_eq!(rig.ended(), None);
    rig.held(Side::Downstream, false);
    rig.passes(Duration::from_secs(89));
    assert_eq!(rig.ended(), None);
    rig.passes(Duration::from_secs(1));
    assert_eq!(rig.ended(), Some(Cause::KeepAlive));
}

#[test]
fn absorbed_packets_are_made_up_for_with_a_ping() {
    let mut rig = Rig::open(Version::V311);
    let denied = bytes(
        Version::V311,
        &Packet::Publish(publish("secret/a", QoS::AtMostOnce, 0, b"x")),
    );
    rig.passes(Duration::from_secs(40));
    rig.client(&denied);
    assert_eq!(
        rig.session.poll_timeout().map(|(_, why)| why),
        Some(Deadline::UpstreamPing)
    );
    rig.passes(Duration::from_secs(19));
    rig.expect(&[], &[], "the broker has heard from us 59 s ago");
    rig.passes(Duration::from_secs(1));
    rig.expect(&[], &[0xc0, 0], "PINGREQ of our own");
    rig.broker(&[0xd0, 0]);
    rig.expect(&[], &[], "its PINGRESP is ours");
    rig.client(&[0xc0, 0]);
    rig.broker(&[0xd0, 0]);
    rig.expect(&[0xd0, 0], &[0xc0, 0], "the client's own is not");
    // A client that is silent itself is not covered up for.
    rig.passes(Duration::from_secs(89));
    rig.expect(&[], &[], "no ping");
    rig.passes(Duration::from_secs(1));
    assert_eq!(rig.ended(), Some(Cause::KeepAlive));
}

#[test]
fn a_broker_that_answers_no_ping_of_ours_is_given_up() {
    let denied = publish("secret/a", QoS::AtMostOnce, 0, b"x");
    let denied = bytes(Version::V311, &Packet::Publish(denied));
    for answers in [0, 1] {
        let mut rig = Rig::open(Version::V311);
        for _ in 0..255 + answers {
            rig.passes(Duration::from_secs(1));
            rig.client(&denied);
            rig.passes(Duration::from_secs(59));
            rig.expect(&[], &[0xc0, 0], "PINGREQ of our own");
            if rig.count(Counter::PingsOriginated) == answers {
                rig.broker(&[0xd0, 0]);
            }
        }
        rig.passes(Duration::from_secs(1));
        rig.client(&denied);
        rig.passes(Duration::from_secs(59));
        assert_eq!(rig.ended(), Some(Cause::UpstreamStalled));
    }
}

#[test]
fn a_begun_packet_must_be_finished() {
    let limits = document("    limits: {packet_timeout: 10s}", RULES);
    let message = bytes(
        Version::V5,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, &[7; 100])),
    );
    for cut in [1, 5, 12, 50, message.len() - 1] {
        let mut rig = Rig::open_with(Version::V5, &limits, &connect(Version::V5, "dev"));
        rig.client(&message[..cut]);
        rig.take_up();
        rig.passes(Duration::from_secs(5));
        rig.client(&message[cut..cut]);
        rig.passes(Duration::from_millis(4_999));
        assert_eq!(rig.ended(), None, "cut at {cut}");
        rig.passes(Duration::from_millis(1));
        rig.expect(&[0xe0, 1, 0x80], &[], "the client's");
        assert_eq!(rig.ended(), Some(Cause::PacketTimeout), "cut at {cut}");

        let mut rig = Rig::open_with(Version::V5, &limits, &connect(Version::V5, "dev"));
        rig.broker(&message[..cut]);
        rig.held(Side::Upstream, true);
        rig.passes(Duration::from_secs(60));
        assert_eq!(rig.ended(), None, "we hold it back ourselves");
        rig.held(Side::Upstream, false);
        rig.passes(Duration::from_secs(10));
        assert_eq!(rig.ended(), Some(Cause::UpstreamStalled), "cut at {cut}");
    }
}

#[test]
fn slow_progress_does_not_extend_the_deadline_of_a_packet() {
    let limits = document("    limits: {packet_timeout: 10s}", RULES);
    let mut rig = Rig::open_with(Version::V311, &limits, &connect(Version::V311, "dev"));
    let message = bytes(
        Version::V311,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, &[7; 100])),
    );
    for (at, byte) in message.iter().enumerate() {
        rig.client(&[*byte]);
        assert_eq!(rig.ended(), None, "byte {at}");
        rig.passes(Duration::from_secs(1));
        if at == 9 {
            break;
        }
    }
    assert_eq!(rig.ended(), Some(Cause::PacketTimeout));
    // The next packet, begun with the end of the one before, has its own time.
    let mut rig = Rig::open_with(Version::V311, &limits, &connect(Version::V311, "dev"));
    rig.client(&message[..20]);
    rig.passes(Duration::from_secs(9));
    rig.client(&[&message[20..], &message[..20]].concat());
    rig.passes(Duration::from_secs(9));
    assert_eq!(rig.ended(), None);
    rig.passes(Duration::from_secs(1));
    assert_eq!(rig.ended(), Some(Cause::PacketTimeout));
}

#[test]
fn a_broker_that_never_answers_connect_is_given_up() {
    let limits = document("    limits: {connect_timeout: 5s}", RULES);
    for version in VERSIONS {
        let mut rig = Rig::dialled(version, &limits, &connect(version, "dev"));
        rig.clear();
        assert_eq!(
            rig.session.poll_timeout().map(|(_, why)| why),
            Some(Deadline::Connack)
        );
        rig.passes(Duration::from_secs(5));
        assert_eq!(rig.ended(), Some(Cause::UpstreamUnavailable));
        rig.clear();
        rig.broker(&connack(version, 0, &[]));
        rig.expect(&[], &[], "too late");
    }
}
