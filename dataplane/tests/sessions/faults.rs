//! What a session makes of packets that break a rule: those of another version's form, of another version's manners, and
//! those of a broker, which rarely end it.

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::session::Cause;
use sluice_wire::mqtt::{
    Connect, Packet, Property, PropertyId, Publish, QoS, Version, Violation, connack_refusal,
};

use crate::harness::{
    RULES, Rig, VERSIONS, bytes, connect, document, properties, publish, suback, subscribe,
};

/// A session that waits for its CONNACK.
fn waiting(version: Version) -> Rig {
    let mut rig = Rig::dialled(version, &document("", RULES), &connect(version, "dev"));
    rig.clear();
    rig
}

#[test]
fn a_refusal_keeps_its_meaning_in_another_versions_form() {
    let table: [(u8, u8); 5] = [(1, 0x84), (2, 0x85), (3, 0x88), (4, 0x86), (5, 0x87)];
    for (old, new) in table {
        // The form of 3.1.1 to a client of 5, and that form with the code of 5.
        for code in [old, new] {
            let mut rig = waiting(Version::V5);
            rig.broker(&[0x20, 2, 0, code]);
            rig.expect(&[0x20, 3, 0, new, 0], &[], "a client of 5");
            assert_eq!(rig.ended(), Some(Cause::UpstreamRefused));
            assert_eq!(rig.count(Counter::BrokerPacketsMended), 1);
        }
        for version in [Version::V31, Version::V311] {
            for answer in [
                &[0x20, 3, 0, new, 0][..],
                &[0x20, 3, 0, old, 0],
                &[0x20, 2, 0, new],
                // With a reason string, and a session that is said to be present.
                &[0x20, 7, 1, new, 4, 0x1f, 0, 1, b'r'],
            ] {
                let mut rig = waiting(version);
                rig.broker(answer);
                rig.expect(&[0x20, 2, 0, old], &[], "a client of 3");
                assert_eq!(rig.ended(), Some(Cause::UpstreamRefused));
            }
        }
    }
}

#[test]
fn only_an_unknown_refusal_becomes_unavailable() {
    for code in [6, 0x42, 0x7f, 0x9e, 0xff] {
        for answer in [&[0x20, 2, 0, code][..], &[0x20, 3, 0, code, 0]] {
            let mut rig = waiting(Version::V5);
            rig.broker(answer);
            rig.expect(&[0x20, 3, 0, 0x88, 0], &[], "5");
            let mut rig = waiting(Version::V311);
            rig.broker(answer);
            rig.expect(&[0x20, 2, 0, 3], &[], "3.1.1");
        }
    }
    // A code of the right version keeps what stands beside it.
    let mut rig = waiting(Version::V5);
    rig.broker(&[0x20, 7, 0, 0x9e, 4, 0x1f, 0, 1, b'r']);
    rig.expect(&[0x20, 7, 0, 0x88, 4, 0x1f, 0, 1, b'r'], &[], "reason");
    // Every code is told as one that the version defines, and never as a success.
    for code in 0..=u8::MAX {
        assert!((1..=5).contains(&connack_refusal(Version::V311, code)));
        assert!(connack_refusal(Version::V5, code) >= 0x80);
    }
}

#[test]
fn a_success_in_another_versions_form_is_a_violation() {
    for (version, answer, told) in [
        (
            Version::V5,
            &[0x20, 2, 0, 0][..],
            &[0x20, 3, 0, 0x88, 0][..],
        ),
        (Version::V311, &[0x20, 3, 0, 0, 0], &[0x20, 2, 0, 3]),
        (Version::V31, &[0x20, 3, 0, 0, 0], &[0x20, 2, 0, 3]),
    ] {
        let mut rig = waiting(version);
        rig.broker(answer);
        rig.expect(told, &[], "unavailable");
        assert!(matches!(rig.ended(), Some(Cause::UpstreamViolation(_))));
    }
}

#[test]
fn a_length_that_is_not_minimal_is_served_below_5_and_sent_on_in_the_shortest_form() {
    for version in [Version::V31, Version::V311] {
        let mut rig = Rig::open(version);
        rig.client(b"\x82\x8b\x00\x00\x06\x00\x06open/b\x00");
        rig.expect(&[], b"\x82\x0b\x00\x06\x00\x06open/b\x00", "SUBSCRIBE");
        rig.broker(b"\x90\x83\x00\x00\x06\x00");
        rig.expect(b"\x90\x03\x00\x06\x00", &[], "SUBACK");
        rig.client(b"\x30\x8c\x80\x00\x00\x06open/bhell");
        rig.expect(&[], b"\x30\x0c\x00\x06open/bhell", "PUBLISH");
        // Cut inside its head, so that it lies in the carry.
        rig.client(b"\x30\x8c\x80\x00\x00\x06op");
        rig.client(b"en/bhell");
        rig.expect(&[], b"\x30\x0c\x00\x06open/bhell", "PUBLISH in two pieces");
        rig.client(b"\xc0\x80\x80\x00");
        rig.expect(&[], b"\xc0\x00", "PINGREQ");
        assert_eq!(rig.ended(), None);
    }
    let mut rig = Rig::open(Version::V5);
    rig.client(b"\xc0\x80\x00");
    rig.expect(b"\xe0\x01\x81", &[], "a rule of version 5");
    let violation = Violation::RemainingLengthNotMinimal;
    assert_eq!(rig.ended(), Some(Cause::Violation(violation)));
}

#[test]
fn a_connect_goes_upstream_in_the_plainest_form() {
    let table: [(&[u8], &[u8]); 3] = [
        (
            b"\x10\x8f\x00\x00\x04MQTT\x04\x02\x00\x3c\x00\x03dev",
            b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03dev",
        ),
        // 3.1: QoS 1, the unused flag, RETAIN of no will.
        (
            b"\x12\x11\x00\x06MQIsdp\x03\x23\x00\x3c\x00\x03dev",
            b"\x10\x11\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x03dev",
        ),
        // A user name that is announced and missing.
        (
            b"\x10\x11\x00\x06MQIsdp\x03\x82\x00\x3c\x00\x03dev",
            b"\x10\x11\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x03dev",
        ),
    ];
    for (sent, told) in table {
        let mut rig = Rig::new(&document("", RULES));
        rig.client(sent);
        rig.dialled_now(true);
        rig.expect(&[], told, "CONNECT");
    }
}

#[test]
fn bits_that_3_1_does_not_use_are_served_and_cleared() {
    let mut rig = Rig::open(Version::V31);
    let from_client: [(&[u8], &[u8]); 9] = [
        (b"\xc2\x00", b"\xc0\x00"),
        (b"\x42\x02\x00\x01", b"\x40\x02\x00\x01"),
        (b"\x60\x02\x00\x01", b"\x62\x02\x00\x01"),
        (
            b"\x80\x0b\x00\x06\x00\x06open/b\x01",
            b"\x82\x0b\x00\x06\x00\x06open/b\x01",
        ),
        // DUP has a meaning there. What is rewritten for its options goes as a new one.
        (
            b"\x8d\x0b\x00\x06\x00\x06open/b\x01",
            b"\x8a\x0b\x00\x06\x00\x06open/b\x01",
        ),
        (
            b"\x8d\x0b\x00\x06\x00\x06open/b\xf5",
            b"\x82\x0b\x00\x06\x00\x06open/b\x01",
        ),
        (
            b"\xa0\x0a\x00\x06\x00\x06open/b",
            b"\xa2\x0a\x00\x06\x00\x06open/b",
        ),
        (b"\x38\x08\x00\x06open/b", b"\x30\x08\x00\x06open/b"),
        (b"\x39\x08\x00\x06open/b", b"\x31\x08\x00\x06open/b"),
    ];
    for (sent, told) in from_client {
        rig.client(sent);
        rig.expect(&[], told, "from the client, in one piece");
        for byte in sent {
            rig.client(&[*byte]);
        }
        rig.expect(&[], told, "from the client, byte by byte");
    }
    let from_broker: [(&[u8], &[u8]); 3] = [
        (b"\x92\x03\x00\x06\x01", b"\x90\x03\x00\x06\x01"),
        (b"\xb2\x02\x00\x06", b"\xb0\x02\x00\x06"),
        (b"\x38\x08\x00\x06open/b", b"\x30\x08\x00\x06open/b"),
    ];
    for (sent, told) in from_broker {
        rig.broker(sent);
        rig.expect(told, &[], "from the broker");
    }
    assert_eq!(rig.ended(), None);
    assert!(rig.faults.is_empty());

    let mut rig = waiting(Version::V31);
    rig.broker(b"\x22\x02\x00\x00");
    rig.expect(b"\x20\x02\x00\x00", &[], "CONNACK");
    assert!(rig.session.is_open());
}

#[test]
fn a_name_with_nul_is_refused_at_connect_in_3_1_too() {
    for (packet, code) in [
        (
            &b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01\x00"[..],
            2,
        ),
        (
            b"\x10\x15\x00\x06MQIsdp\x03\xc2\x00\x3c\x00\x01c\x00\x01\x00\x00\x01p",
            4,
        ),
    ] {
        let mut rig = Rig::new(&document("", RULES));
        rig.client(packet);
        rig.expect(&[0x20, 2, 0, code], &[], "refused");
    }
}

#[test]
fn a_malformed_share_is_refused_below_5_and_costs_nothing_else() {
    let mut rig = Rig::open(Version::V311);
    rig.client(b"\x82\x16\x00\x06\x00\x06open/b\x01\x00\x08$share/g\x01");
    rig.expect(
        &[],
        b"\x82\x0b\x00\x06\x00\x06open/b\x01",
        "the other filter",
    );
    rig.broker(b"\x90\x03\x00\x06\x01");
    rig.expect(b"\x90\x04\x00\x06\x01\x80", &[], "merged");
}

#[test]
fn undefined_codes_of_a_broker_do_not_end_the_session() {
    let table: [(&[u8], &[u8], Violation); 13] = [
        (
            b"\x40\x03\x00\x01\x95",
            b"\x40\x03\x00\x01\x80",
            Violation::PubackCodeUndefined,
        ),
        (
            b"\x40\x03\x00\x01\x01",
            b"\x40\x02\x00\x01",
            Violation::PubackCodeUndefined,
        ),
        (
            b"\x50\x03\x00\x01\xff",
            b"\x50\x03\x00\x01\x80",
            Violation::PubrecCodeUndefined,
        ),
        (
            b"\x50\x03\x00\x01\x7f",
            b"\x50\x02\x00\x01",
            Violation::PubrecCodeUndefined,
        ),
        (
            b"\x62\x03\x00\x01\x80",
            b"\x62\x03\x00\x01\x92",
            Violation::PubrelCodeUndefined,
        ),
        (
            b"\x70\x03\x00\x01\x80",
            b"\x70\x03\x00\x01\x92",
            Violation::PubcompCodeUndefined,
        ),
        (
            b"\x70\x03\x00\x01\x01",
            b"\x70\x02\x00\x01",
            Violation::PubcompCodeUndefined,
        ),
        (
            b"\x90\x07\x00\x02\x00\x03\x7f\xff\x01",
            b"\x90\x07\x00\x02\x00\x80\x80\x80\x01",
            Violation::SubackCodeUndefined,
        ),
        (
            b"\xb0\x07\x00\x02\x00\x01\x95\x11\x00",
            b"\xb0\x07\x00\x02\x00\x00\x80\x11\x00",
            Violation::UnsubackCodeUndefined,
        ),
        // What stands beside the code stays.
        (
            b"\x40\x08\x00\x01\x95\x04\x1f\x00\x01r",
            b"\x40\x08\x00\x01\x80\x04\x1f\x00\x01r",
            Violation::PubackCodeUndefined,
        ),
        // Properties that cannot be read are left out.
        (
            b"\x40\x06\x00\x01\x87\x02\x7e\x00",
            b"\x40\x03\x00\x01\x87",
            Violation::PropertyUnknown,
        ),
        (
            b"\x40\x04\x00\x01\x00\x05",
            b"\x40\x02\x00\x01",
            Violation::PropertyLengthPastEnd,
        ),
        (
            b"\xe0\x01\xa5",
            b"\xe0\x01\x80",
            Violation::DisconnectCodeUndefined,
        ),
    ];
    for (sent, told, violation) in table {
        let mut rig = Rig::open(Version::V5);
        rig.broker(sent);
        rig.expect(told, &[], "mended");
        assert_eq!(rig.faults, [violation], "{sent:02x?}");
        assert_eq!(rig.count(Counter::BrokerPacketsMended), 1);
        let is_disconnect = sent[0] == 0xe0;
        let expected = is_disconnect.then_some(Cause::UpstreamDisconnect);
        assert_eq!(rig.ended(), expected, "{sent:02x?}");
    }
    // The client's own end its session still.
    let mut rig = Rig::open(Version::V5);
    rig.client(b"\x40\x03\x00\x01\x95");
    rig.expect(b"\xe0\x01\x82", &[], "told");
}

#[test]
fn a_failed_subscription_is_no_grant_in_any_version() {
    let filters = [("open/a", QoS::AtLeastOnce), ("open/b", QoS::ExactlyOnce)];
    for (version, sent, told) in [
        // 3.1 has no failure code: what was asked for, as with our own refusals.
        (
            Version::V31,
            &b"\x90\x04\x00\x02\x80\x01"[..],
            &b"\x90\x04\x00\x02\x01\x01"[..],
        ),
        (
            Version::V31,
            b"\x90\x04\x00\x02\x01\x87",
            b"\x90\x04\x00\x02\x01\x02",
        ),
        (
            Version::V311,
            b"\x90\x04\x00\x02\x87\x01",
            b"\x90\x04\x00\x02\x80\x01",
        ),
        (
            Version::V311,
            b"\x90\x04\x00\x02\x03\x01",
            b"\x90\x04\x00\x02\x80\x01",
        ),
    ] {
        let mut rig = Rig::open(version);
        rig.client(&subscribe(version, 2, &filters));
        rig.clear();
        rig.broker(sent);
        rig.expect(told, &[], "mended");
        assert_eq!(rig.faults, [Violation::SubackCodeUndefined]);
        assert_eq!(rig.ended(), None);
    }
    // One that nobody waits for: the least that can be granted.
    let mut rig = Rig::open(Version::V31);
    rig.broker(b"\x90\x04\x00\x02\x80\x01");
    rig.expect(b"\x90\x04\x00\x02\x00\x01", &[], "not known");
}

#[test]
fn a_failed_subscription_of_3_1_is_merged_with_those_we_refused() {
    let mut rig = Rig::open(Version::V31);
    let filters = [
        ("secret/a", QoS::ExactlyOnce),
        ("open/a", QoS::AtLeastOnce),
        ("low0/a", QoS::ExactlyOnce),
    ];
    rig.client(&subscribe(Version::V31, 7, &filters));
    rig.clear();
    rig.broker(&[0x90, 4, 0, 7, 0x80, 0]);
    rig.expect(&suback(Version::V31, 7, &[2, 1, 0]), &[], "merged");
    assert!(rig.session.heap_bytes() < 100, "nothing is kept");
}

#[test]
fn a_delivery_that_cannot_be_judged_is_dropped_with_its_acknowledgement() {
    let table: [(Version, &[u8], &[u8], Violation); 8] = [
        (
            Version::V311,
            b"\x32\x06\x00\x01#\x00\x07x",
            b"\x40\x02\x00\x07",
            Violation::PublishTopicHasWildcard,
        ),
        (
            Version::V31,
            b"\x34\x06\x00\x01+\x00\x07x",
            b"\x50\x02\x00\x07",
            Violation::PublishTopicHasWildcard,
        ),
        (
            Version::V311,
            b"\x32\x05\x00\x00\x00\x07x",
            b"\x40\x02\x00\x07",
            Violation::PublishTopicEmpty,
        ),
        (
            Version::V311,
            b"\x32\x06\x00\x01\xff\x00\x07x",
            b"\x40\x02\x00\x07",
            Violation::StringNotUtf8,
        ),
        (
            Version::V311,
            b"\x32\x06\x00\x01a\x00\x00x",
            b"",
            Violation::PacketIdZero,
        ),
        (
            Version::V5,
            b"\x32\x07\x00\x01\x00\x00\x07\x00x",
            b"\x40\x02\x00\x07",
            Violation::StringHasNul,
        ),
        (
            Version::V5,
            b"\x32\x09\x00\x01a\x00\x07\x02\x01\x09x",
            b"\x40\x02\x00\x07",
            Violation::PayloadFormatIndicatorAboveOne,
        ),
        (
            Version::V5,
            b"\x30\x04\x00\x00\x00x",
            b"",
            Violation::PublishTopicMissing,
        ),
    ];
    for (version, sent, acknowledged, violation) in table {
        let mut rig = Rig::open(version);
        // A message behind it, to show that the stream is followed.
        let next = bytes(
            version,
            &Packet::Publish(publish("open/next", QoS::AtMostOnce, 0, b"y")),
        );
        rig.broker(&[sent, &next].concat());
        rig.expect(&next, acknowledged, "dropped");
        assert_eq!(rig.faults, [violation]);
        assert_eq!(rig.count(Counter::BrokerPacketsDropped), 1);
        assert_eq!(rig.ended(), None, "{violation:?}");
    }
}

/// A session whose broker may use three topic aliases.
fn with_aliases() -> Rig {
    let list = properties(&[Property::Number(PropertyId::TopicAliasMaximum, 3)]);
    let request = Connect {
        properties: list.view(),
        ..connect(Version::V5, "dev")
    };
    Rig::open_with(
        Version::V5,
        &document("    limits: {topic_alias_max: 3}", RULES),
        &request,
    )
}

fn with_alias(topic: &str, alias: u32) -> Vec<u8> {
    let list = properties(&[Property::Number(PropertyId::TopicAlias, alias)]);
    let message = Publish {
        properties: list.view(),
        ..publish(topic, QoS::AtMostOnce, 0, b"x")
    };
    bytes(Version::V5, &Packet::Publish(message))
}

#[test]
fn a_dropped_delivery_does_not_leave_its_alias_behind() {
    let mut rig = with_aliases();
    let set = with_alias("open/a", 1);
    rig.broker(&set);
    rig.expect(&set, &[], "alias 1 is open/a");
    // To the broker alias 1 is another topic from here on, one that we could not read.
    let mut bad = with_alias("open/b", 1);
    bad[4] = b'#';
    rig.broker(&bad);
    rig.broker(&with_alias("", 1));
    rig.expect(&[], &[], "neither goes on");
    let expected = [
        Violation::PublishTopicHasWildcard,
        Violation::TopicAliasUnknown,
    ];
    assert_eq!(rig.faults, expected);
    assert_eq!(rig.ended(), None);
    // With properties that cannot be read it is not known which alias was set.
    rig.broker(&set);
    rig.clear();
    rig.broker(b"\x30\x07\x00\x01a\x02\x7e\x00x");
    let violation = Violation::PropertyUnknown;
    assert_eq!(rig.ended(), Some(Cause::UpstreamViolation(violation)));
}

#[test]
fn what_a_broker_sends_out_of_place_is_dropped() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        // An acknowledgement of no packet cannot be mended.
        rig.broker(&[0x40, 2, 0, 0]);
        assert_eq!(rig.faults, [Violation::PacketIdZero]);
        rig.expect(&[], &[], "dropped");
        assert_eq!(rig.ended(), None);
        // A stream that cannot be followed is the end.
        rig.broker(&[0x00, 0x00]);
        let violation = Violation::KindReserved;
        assert_eq!(rig.ended(), Some(Cause::UpstreamViolation(violation)));
    }
    let mut rig = Rig::open(Version::V5);
    rig.broker(b"\xf0\x09\x18\x07\x15\x00\x04SCRM");
    assert_eq!(rig.faults, [Violation::AuthNotNegotiated]);
    assert_eq!(rig.ended(), None);
    // Trailing bytes of 3.1.1 acknowledgements: the form of version 5.
    let mut rig = Rig::open(Version::V311);
    rig.broker(b"\x40\x03\x00\x01\x00\xb0\x03\x00\x02\x00");
    rig.expect(b"\x40\x02\x00\x01\xb0\x02\x00\x02", &[], "mended");
}

#[test]
fn before_connack_a_fault_is_the_end() {
    for version in VERSIONS {
        let mut rig = waiting(version);
        rig.broker(&[0x40, 2, 0, 1]);
        let violation = Violation::FirstPacketNotConnack;
        assert_eq!(rig.ended(), Some(Cause::UpstreamViolation(violation)));
        assert!(!violation.clause(version).is_empty());
    }
}

#[test]
fn mqtt_3_14_0_1_a_disconnect_in_the_place_of_a_connack_is_no_answer() {
    let mut rig = waiting(Version::V5);
    rig.broker(&[0xe0, 1, 0x8b]);
    rig.expect(&[0x20, 3, 0, 0x88, 0], &[], "as for any other packet");
    let broken = Cause::UpstreamViolation(Violation::FirstPacketNotConnack);
    assert_eq!(rig.ended(), Some(broken));
}
