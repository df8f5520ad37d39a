//! Messages in both directions: verdicts, what the publisher hears, what the receiver sees, aliases.

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::session::{Cause, Side};
use sluice_wire::mqtt::{
    Ack, Connect, Packet, Property, PropertyId, Publish, QoS, Version, Violation,
};

use crate::harness::{
    Event, Piece, RULES, Rig, VERSIONS, ack, bytes, connack, connect, document, properties, publish,
};

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn puback(number: u16) -> Packet<'static> {
    Packet::Puback(ack(number, 0))
}

fn pubrec(number: u16) -> Packet<'static> {
    Packet::Pubrec(ack(number, 0))
}

fn pubrel(number: u16) -> Packet<'static> {
    Packet::Pubrel(ack(number, 0))
}

fn pubcomp(number: u16) -> Packet<'static> {
    Packet::Pubcomp(ack(number, 0))
}

fn with_code<'a>(packet: fn(Ack<'a>) -> Packet<'a>, number: u16, code: u8) -> Packet<'a> {
    packet(ack(number, code))
}

impl Rig {
    /// `from` sends the packet; the answer, and what the other side sees, must be these packets.
    #[track_caller]
    fn exchange(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        answered: &[Packet<'_>],
        passed: &[Packet<'_>],
        note: &str,
    ) {
        let version = self.version;
        self.bytes_from(from, &bytes(version, packet));
        let all = |list: &[Packet<'_>]| -> Vec<u8> {
            list.iter()
                .flat_map(|packet| bytes(version, packet))
                .collect()
        };
        let (answered, passed) = (all(answered), all(passed));
        match from {
            Side::Downstream => self.expect(&answered, &passed, note),
            Side::Upstream => self.expect(&passed, &answered, note),
        }
        assert_eq!(self.ended(), None, "{note}");
    }
}

#[test]
fn an_allowed_message_passes_untouched_with_its_handshake() {
    for version in VERSIONS {
        for qos in QOS {
            for (from, to) in [
                (Side::Downstream, Side::Upstream),
                (Side::Upstream, Side::Downstream),
            ] {
                let mut rig = Rig::open(version);
                let mut message = publish("open/a", qos, 9, b"payload");
                message.retain = true;
                let message = Packet::Publish(message);
                rig.exchange(
                    from,
                    &message,
                    &[],
                    std::slice::from_ref(&message),
                    "PUBLISH",
                );
                match qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => rig.exchange(to, &puback(9), &[], &[puback(9)], "PUBACK"),
                    QoS::ExactlyOnce => {
                        rig.exchange(to, &pubrec(9), &[], &[pubrec(9)], "PUBREC");
                        rig.exchange(from, &pubrel(9), &[], &[pubrel(9)], "PUBREL");
                        rig.exchange(to, &pubcomp(9), &[], &[pubcomp(9)], "PUBCOMP");
                    }
                }
            }
        }
    }
}

#[test]
fn m9_a_denied_message_is_dropped_and_answered_by_version_and_qos() {
    for version in VERSIONS {
        for qos in QOS {
            let mut rig = Rig::open(version);
            let message = Packet::Publish(publish("secret/a", qos, 9, b"payload"));
            let answer: &[Packet<'_>] = match (qos, version) {
                (QoS::AtMostOnce, _) => &[],
                (QoS::AtLeastOnce, Version::V5) => &[with_code(Packet::Puback, 9, 0x87)],
                (QoS::AtLeastOnce, _) => &[puback(9)],
                (QoS::ExactlyOnce, Version::V5) => &[with_code(Packet::Pubrec, 9, 0x87)],
                (QoS::ExactlyOnce, _) => &[pubrec(9)],
            };
            rig.exchange(Side::Downstream, &message, answer, &[], "PUBLISH");
            if qos == QoS::ExactlyOnce && version != Version::V5 {
                rig.exchange(Side::Downstream, &message, answer, &[], "again");
                rig.exchange(Side::Downstream, &pubrel(9), &[pubcomp(9)], &[], "PUBREL");
                rig.exchange(
                    Side::Downstream,
                    &pubrel(9),
                    &[],
                    &[pubrel(9)],
                    "no longer ours",
                );
            }
            assert!(rig.count(Counter::PublishDenied) > 0);
        }
    }
}

#[test]
fn m9_a_rule_may_close_instead() {
    for version in VERSIONS {
        for (topic, retain, qos, reason) in [
            ("closing/a", false, QoS::AtMostOnce, 0x87),
            ("bareclose/a", true, QoS::AtLeastOnce, 0x9a),
            ("qosclose/a", false, QoS::ExactlyOnce, 0x9b),
        ] {
            let mut rig = Rig::open(version);
            let mut message = publish(topic, qos, 9, b"x");
            message.retain = retain;
            rig.client_sends(&Packet::Publish(message));
            let told = match version {
                Version::V5 => vec![0xe0, 1, reason],
                Version::V31 | Version::V311 => vec![],
            };
            rig.expect(&told, &[], topic);
            assert_eq!(rig.ended(), Some(Cause::Denied), "{topic}");
        }
    }
}

#[test]
fn s15_retain_is_stripped_or_refused_and_size_is_bounded() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let mut message = publish("strip/a", QoS::AtMostOnce, 0, b"x");
        message.retain = true;
        let stripped = Publish {
            retain: false,
            ..message.clone()
        };
        let (message, stripped) = (Packet::Publish(message), Packet::Publish(stripped));
        rig.exchange(Side::Downstream, &message, &[], &[stripped], "strip");
        assert_eq!(rig.count(Counter::RetainStripped), 1);
        let mut bare = publish("bare/a", QoS::AtMostOnce, 0, b"x");
        rig.exchange(
            Side::Downstream,
            &Packet::Publish(bare.clone()),
            &[],
            &[Packet::Publish(bare.clone())],
            "not retained",
        );
        bare.retain = true;
        rig.exchange(
            Side::Downstream,
            &Packet::Publish(bare),
            &[],
            &[],
            "retained",
        );
        assert_eq!(rig.count(Counter::DeniedRetain), 1);
        let small = publish("small/a", QoS::AtMostOnce, 0, b"1234");
        let large = publish("small/a", QoS::AtMostOnce, 0, b"12345");
        rig.exchange(
            Side::Downstream,
            &Packet::Publish(small.clone()),
            &[],
            &[Packet::Publish(small)],
            "fits",
        );
        rig.exchange(
            Side::Downstream,
            &Packet::Publish(large),
            &[],
            &[],
            "does not",
        );
        assert_eq!(rig.count(Counter::DeniedPayload), 1);
    }
}

#[test]
fn s14_qos_2_goes_on_as_1_and_the_handshake_ends_here() {
    use Side::{Downstream, Upstream};
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let mut sent = publish("low1/a", QoS::ExactlyOnce, 9, b"payload");
        sent.retain = true;
        let lowered = Packet::Publish(Publish {
            qos: QoS::AtLeastOnce,
            ..sent.clone()
        });
        let again = Packet::Publish(Publish {
            dup: true,
            ..sent.clone()
        });
        let sent = Packet::Publish(sent);
        rig.exchange(Downstream, &sent, &[], &[lowered], "lowered");
        rig.exchange(
            Downstream,
            &again,
            &[],
            &[],
            "a duplicate waits for the broker",
        );
        rig.exchange(
            Upstream,
            &puback(9),
            &[],
            &[pubrec(9)],
            "PUBACK becomes PUBREC",
        );
        rig.exchange(
            Downstream,
            &again,
            &[pubrec(9)],
            &[],
            "a duplicate is answered",
        );
        rig.exchange(Downstream, &pubrel(9), &[pubcomp(9)], &[], "PUBREL");
        rig.exchange(
            Downstream,
            &pubrel(9),
            &[],
            &[pubrel(9)],
            "the flow has ended",
        );
    }
}

#[test]
fn s14_an_error_of_the_broker_ends_the_lowered_flow() {
    let mut rig = Rig::open(Version::V5);
    let sent = Packet::Publish(publish("low1/a", QoS::ExactlyOnce, 9, b"payload"));
    let lowered = Packet::Publish(publish("low1/a", QoS::AtLeastOnce, 9, b"payload"));
    rig.exchange(Side::Downstream, &sent, &[], &[lowered], "lowered");
    let refused = with_code(Packet::Puback, 9, 0x97);
    let told = with_code(Packet::Pubrec, 9, 0x97);
    rig.exchange(Side::Upstream, &refused, &[], &[told], "its code");
    rig.exchange(
        Side::Downstream,
        &pubrel(9),
        &[],
        &[pubrel(9)],
        "not ours any more",
    );
    let nobody = with_code(Packet::Puback, 9, 0x10);
    let sent = Packet::Publish(publish("low1/a", QoS::ExactlyOnce, 9, b"payload"));
    rig.client_sends(&sent);
    rig.clear();
    let told = with_code(Packet::Pubrec, 9, 0x10);
    rig.exchange(Side::Upstream, &nobody, &[], &[told], "no subscribers");
    rig.exchange(Side::Downstream, &pubrel(9), &[pubcomp(9)], &[], "goes on");
}

#[test]
fn s14_to_qos_0_takes_the_identifier_off() {
    for version in VERSIONS {
        for (qos, answer) in [(QoS::AtLeastOnce, puback(9)), (QoS::ExactlyOnce, pubrec(9))] {
            let mut rig = Rig::open(version);
            let mut sent = publish("low0/a", qos, 9, b"payload");
            sent.dup = true;
            let bare = Packet::Publish(publish("low0/a", QoS::AtMostOnce, 0, b"payload"));
            let sent = Packet::Publish(sent);
            let answers = std::slice::from_ref(&answer);
            rig.exchange(Side::Downstream, &sent, answers, &[bare], "lowered");
            if qos == QoS::ExactlyOnce {
                rig.exchange(Side::Downstream, &sent, answers, &[], "again");
                rig.exchange(Side::Downstream, &pubrel(9), &[pubcomp(9)], &[], "PUBREL");
            }
        }
    }
}

#[test]
fn a_refused_qos_is_refused_under_a_strict_rule() {
    let mut rig = Rig::open(Version::V5);
    let high = Packet::Publish(publish("strict1/a", QoS::ExactlyOnce, 9, b"x"));
    let told = with_code(Packet::Pubrec, 9, 0x87);
    rig.exchange(Side::Downstream, &high, &[told], &[], "too high");
    assert_eq!(rig.count(Counter::DeniedQos), 1);
}

#[test]
fn a_dropped_delivery_is_acknowledged_to_the_end() {
    for version in VERSIONS {
        for qos in QOS {
            let mut rig = Rig::open(version);
            let message = Packet::Publish(publish("secret/a", qos, 9, b"payload"));
            match qos {
                QoS::AtMostOnce => rig.exchange(Side::Upstream, &message, &[], &[], "QoS 0"),
                QoS::AtLeastOnce => {
                    rig.exchange(Side::Upstream, &message, &[puback(9)], &[], "QoS 1");
                }
                QoS::ExactlyOnce => {
                    rig.exchange(Side::Upstream, &message, &[pubrec(9)], &[], "QoS 2");
                    rig.exchange(Side::Upstream, &message, &[pubrec(9)], &[], "again");
                    rig.exchange(Side::Upstream, &pubrel(9), &[pubcomp(9)], &[], "PUBREL");
                    rig.exchange(Side::Upstream, &pubrel(9), &[], &[pubrel(9)], "done");
                }
            }
            assert!(rig.count(Counter::DeliveryDenied) > 0);
            let good = Packet::Publish(publish("open/a", qos, 9, b"payload"));
            let passed = std::slice::from_ref(&good);
            rig.exchange(Side::Upstream, &good, &[], passed, "the client stays");
        }
    }
}

#[test]
fn a_delivery_longer_than_the_client_takes_is_dropped() {
    let list = properties(&[Property::Number(PropertyId::MaximumPacketSize, 40)]);
    let mut request = connect(Version::V5, "dev");
    request.properties = list.view();
    let mut rig = Rig::open_with(Version::V5, &document("", RULES), &request);
    // 2 + (2 + 6) + 2 + 1 + payload
    let fits = Packet::Publish(publish("open/a", QoS::AtLeastOnce, 9, &[1; 27]));
    let long = Packet::Publish(publish("open/a", QoS::AtLeastOnce, 9, &[1; 28]));
    let passed = std::slice::from_ref(&fits);
    rig.exchange(Side::Upstream, &fits, &[], passed, "40 bytes");
    rig.exchange(Side::Upstream, &long, &[puback(9)], &[], "41 bytes");
    assert_eq!(rig.count(Counter::DeliveryTooLarge), 1);
}

#[test]
fn a_delivery_of_any_length_below_version_5_is_bounded_by_the_listener() {
    let limits = document("    limits: {packet_bytes_max: 128}", RULES);
    let mut rig = Rig::open_with(Version::V311, &limits, &connect(Version::V311, "dev"));
    let long = Packet::Publish(publish("open/a", QoS::AtLeastOnce, 9, &[1; 128]));
    rig.exchange(
        Side::Upstream,
        &long,
        &[puback(9)],
        &[],
        "dropped, not fatal",
    );
}

#[test]
fn owned_flows_of_version_5_are_bounded_by_the_receive_maximum() {
    let limits = document("    limits: {receive_max: 3}", RULES);
    let mut rig = Rig::open_with(Version::V5, &limits, &connect(Version::V5, "dev"));
    for number in 1..=3 {
        let message = publish("low1/a", QoS::ExactlyOnce, number, b"x");
        rig.client_sends(&Packet::Publish(message));
    }
    assert_eq!(rig.ended(), None);
    rig.clear();
    let message = publish("low1/a", QoS::ExactlyOnce, 4, b"x");
    rig.client_sends(&Packet::Publish(message));
    rig.expect(&[0xe0, 1, 0x93], &[], "the fourth");
    assert_eq!(rig.ended(), Some(Cause::Overload));
}

#[test]
fn an_abandoned_lowered_flow_leaves_nothing_behind() {
    let mut rig = Rig::open(Version::V311);
    let sent = Packet::Publish(publish("low1/a", QoS::ExactlyOnce, 9, b"x"));
    let lowered = Packet::Publish(publish("low1/a", QoS::AtLeastOnce, 9, b"x"));
    rig.exchange(Side::Downstream, &sent, &[], &[lowered], "lowered");
    rig.exchange(
        Side::Downstream,
        &pubrel(9),
        &[pubcomp(9)],
        &[],
        "out of turn",
    );
    rig.exchange(Side::Upstream, &puback(9), &[], &[], "nobody waits for it");
    rig.exchange(
        Side::Upstream,
        &puback(9),
        &[],
        &[puback(9)],
        "another flow",
    );
}

#[test]
fn a_delivery_with_the_longest_topic_is_dropped_wherever_it_is_cut() {
    let limits = document("    limits: {packet_bytes_max: 128}", RULES);
    let topic = format!("open/{}", "x".repeat(65_530));
    for version in [Version::V31, Version::V311] {
        let long = publish(&topic, QoS::AtLeastOnce, 9, b"payload");
        let long = bytes(version, &Packet::Publish(long));
        let mut rig = Rig::open_with(version, &limits, &connect(version, "dev"));
        let (head, rest) = long.split_at(long.len() - 8);
        rig.broker(head);
        rig.broker(rest);
        rig.expect(&[], &[0x40, 2, 0, 9], "too long for the client");
        assert_eq!(rig.ended(), None);
    }
}

#[test]
fn a_response_topic_must_be_receivable_by_the_sender() {
    for (topic, passes) in [("open/answer", true), ("secret/answer", false)] {
        let mut rig = Rig::open(Version::V5);
        let list = properties(&[Property::Text(PropertyId::ResponseTopic, topic)]);
        let mut message = publish("open/a", QoS::AtLeastOnce, 9, b"x");
        message.properties = list.view();
        let message = Packet::Publish(message);
        let refused = [with_code(Packet::Puback, 9, 0x87)];
        if passes {
            let passed = std::slice::from_ref(&message);
            rig.exchange(Side::Downstream, &message, &[], passed, topic);
        } else {
            rig.exchange(Side::Downstream, &message, &refused, &[], topic);
        }
    }
}

/// A session of version 5 in which both sides may use three aliases.
fn aliased() -> Rig {
    let three = [Property::Number(PropertyId::TopicAliasMaximum, 3)];
    let list = properties(&three);
    let request = Connect {
        properties: list.view(),
        ..connect(Version::V5, "dev")
    };
    let mut rig = Rig::dialled(Version::V5, &document("", RULES), &request);
    rig.broker(&connack(Version::V5, 0, &three));
    rig.clear();
    rig
}

fn message_with_alias(topic: &str, alias: u32, qos: QoS) -> Vec<u8> {
    let list = properties(&[
        Property::Pair("k", "v"),
        Property::Number(PropertyId::TopicAlias, alias),
    ]);
    let message = Publish {
        properties: list.view(),
        ..publish(topic, qos, 9, b"payload")
    };
    bytes(Version::V5, &Packet::Publish(message))
}

#[test]
fn aliases_are_judged_by_what_they_stand_for() {
    for from in [Side::Downstream, Side::Upstream] {
        let mut rig = aliased();
        let set = message_with_alias("open/a", 1, QoS::AtMostOnce);
        let used = message_with_alias("", 1, QoS::AtMostOnce);
        rig.bytes_from(from, &[set.clone(), used.clone()].concat());
        let both = [rig.take_down(), rig.take_up()].concat();
        assert_eq!(both, [set, used.clone()].concat(), "as they came");

        let bad = message_with_alias("secret/a", 1, QoS::AtMostOnce);
        rig.bytes_from(from, &bad);
        rig.bytes_from(from, &used);
        rig.expect(&[], &[], "the alias means a forbidden topic now");
        assert_eq!(rig.ended(), None);

        let good = message_with_alias("open/b", 1, QoS::AtMostOnce);
        rig.bytes_from(from, &good);
        rig.bytes_from(from, &used);
        let both = [rig.take_down(), rig.take_up()].concat();
        assert_eq!(
            both,
            [good, used].concat(),
            "and means an allowed one again"
        );
    }
}

#[test]
fn an_alias_the_receiver_has_not_heard_of_goes_with_its_topic() {
    for from in [Side::Downstream, Side::Upstream] {
        let mut rig = aliased();
        // Refused for its QoS alone, so that the alias is set here and unknown there.
        let (set, refused) = match from {
            Side::Downstream => ("strict1/a", QoS::ExactlyOnce),
            Side::Upstream => ("open/a", QoS::AtMostOnce),
        };
        rig.bytes_from(from, &message_with_alias(set, 2, refused));
        if from == Side::Upstream {
            // A delivery is not refused by QoS; a later generation takes the topic away and gives it back.
            let none = document(
                "",
                "rules:\n  - {name: c, actions: [connect], decision: allow}",
            );
            rig.clear();
            rig.applies(&none);
            rig.bytes_from(from, &message_with_alias(set, 2, refused));
            rig.expect(&[], &[], "denied by then");
            rig.applies(&document("", RULES));
        }
        rig.clear();
        let alone = message_with_alias("", 2, QoS::AtMostOnce);
        let told = message_with_alias(set, 2, QoS::AtMostOnce);
        rig.bytes_from(from, &alone);
        let both = [rig.take_down(), rig.take_up()].concat();
        assert_eq!(both, told, "with the full topic");
        rig.bytes_from(from, &alone);
        let both = [rig.take_down(), rig.take_up()].concat();
        assert_eq!(both, alone, "told once is enough");
    }
}

#[test]
fn every_alias_that_was_allowed_may_stand_for_the_longest_topic() {
    let most = [Property::Number(PropertyId::TopicAliasMaximum, 32)];
    let list = properties(&most);
    let request = Connect {
        properties: list.view(),
        ..connect(Version::V5, "dev")
    };
    for from in [Side::Downstream, Side::Upstream] {
        let mut rig = Rig::dialled(Version::V5, &document("", RULES), &request);
        rig.broker(&connack(Version::V5, 0, &most));
        rig.clear();
        for alias in 1..=32 {
            let topic = format!("open/{}", "x".repeat(65_530));
            rig.bytes_from(from, &message_with_alias(&topic, alias, QoS::AtMostOnce));
        }
        rig.clear();
        assert_eq!(rig.ended(), None);
        assert!(rig.session.heap_bytes() > 32 * 65_535, "it is counted");
        let used = message_with_alias("", 1, QoS::AtMostOnce);
        rig.bytes_from(from, &used);
        assert_eq!([rig.take_down(), rig.take_up()].concat(), used);
    }
}

#[test]
fn alias_violations_end_the_session_of_a_client_and_drop_the_delivery_of_a_broker() {
    for (topic, alias, violation) in [
        ("open/a", 4, Violation::TopicAliasAboveMaximum),
        ("", 3, Violation::TopicAliasUnknown),
    ] {
        let mut rig = aliased();
        rig.client(&message_with_alias(topic, alias, QoS::AtMostOnce));
        let reason = violation.reason_code().byte();
        rig.expect(&[0xe0, 1, reason], &[], topic);
        assert_eq!(rig.ended(), Some(Cause::Violation(violation)));
        let mut rig = aliased();
        rig.broker(&message_with_alias(topic, alias, QoS::AtMostOnce));
        rig.expect(&[], &[], "QoS 0");
        rig.broker(&message_with_alias(topic, alias, QoS::AtLeastOnce));
        rig.expect(&[], &[0x40, 2, 0, 9], "with its acknowledgement");
        assert_eq!(rig.faults, [violation; 2]);
        assert_eq!(rig.ended(), None);
    }
}

#[test]
fn a_shadow_rule_is_counted_and_changes_nothing() {
    let mut rig = Rig::open(Version::V311);
    let message = Packet::Publish(publish("open/shadow", QoS::AtMostOnce, 0, b"x"));
    let passed = std::slice::from_ref(&message);
    // The second is judged by the ruling that the first one left behind.
    for times in [1, 2] {
        rig.exchange(
            Side::Downstream,
            &message,
            &[],
            passed,
            "enforced rules decide",
        );
        assert_eq!(rig.count(Counter::ShadowPublish), times);
    }
    let decided = ("open/shadow".to_owned(), true);
    assert_eq!(rig.decisions, [decided.clone(), decided]);
}

#[test]
fn a_topic_published_to_again_is_judged_by_the_generation_of_now() {
    let mut rig = Rig::open(Version::V311);
    let message = bytes(
        Version::V311,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, b"x")),
    );
    let open = document("", RULES);
    let closed = document("", &RULES.replace("\"open/#\", ", ""));
    for (document, expected) in [(&closed, &[][..]), (&open, &message), (&closed, &[])] {
        rig.client(&message);
        rig.take_up();
        // Not told by a sweep: it finds out when the message comes.
        rig.applies(document);
        rig.client(&message);
        rig.expect(&[], expected, "judged by the new generation");
    }
}

#[test]
fn what_the_proxy_says_waits_for_the_end_of_a_packet() {
    let mut rig = Rig::open(Version::V311);
    let long = bytes(
        Version::V311,
        &Packet::Publish(publish("open/long", QoS::AtMostOnce, 0, &[7; 300])),
    );
    rig.broker(&long[..100]);
    assert_eq!(rig.take_down(), &long[..100]);
    for number in 1..=3 {
        let denied = publish("secret/a", QoS::AtLeastOnce, number, b"x");
        rig.client_sends(&Packet::Publish(denied));
    }
    rig.expect(&[], &[], "PUBACK would land in the payload");
    rig.broker(&long[100..]);
    let mut expected = long[100..].to_vec();
    for number in 1..=3 {
        expected.extend_from_slice(&bytes(Version::V311, &puback(number)));
    }
    assert_eq!(rig.take_down(), expected);
}

/// A message whose first 100 bytes have been passed on from `from`; what is left of it is given back.
fn begun_message(rig: &mut Rig, from: Side) -> Vec<u8> {
    let long = publish("open/long", QoS::AtMostOnce, 0, &[7; 300]);
    let long = bytes(rig.version, &Packet::Publish(long));
    rig.bytes_from(from, &long[..100]);
    rig.clear();
    long[100..].to_vec()
}

#[test]
fn a_client_that_is_owed_many_answers_waits_for_the_end_of_the_brokers_packet() {
    let mut rig = Rig::open(Version::V5);
    let rest = begun_message(&mut rig, Side::Upstream);
    let (mut sent, mut expected) = (Vec::new(), rest.clone());
    for number in 1..=20_000 {
        let denied = publish("secret/a", QoS::AtLeastOnce, number, b"x");
        sent.extend(bytes(Version::V5, &Packet::Publish(denied)));
        let told = with_code(Packet::Puback, number, 0x87);
        expected.extend(bytes(Version::V5, &told));
    }
    let half = sent.len() / 2;
    rig.client(&sent[..half]);
    rig.client(&sent[half..]);
    rig.expect(&[], &[], "PUBACK would land in the payload");
    assert_eq!(rig.events, [Event::Pause(Side::Downstream)]);
    let queued = 64 * 1024 / 5 + 1;
    assert_eq!(rig.count(Counter::PublishDenied), queued, "no more is read");
    rig.broker(&rest);
    rig.expect(&expected, &[], "all of them, in order");
    let both = [
        Event::Pause(Side::Downstream),
        Event::Resume(Side::Downstream),
    ];
    assert_eq!(rig.events, both);
}

#[test]
fn a_broker_is_owed_one_answer_for_each_identifier_and_no_more() {
    let mut rig = Rig::open(Version::V311);
    let rest = begun_message(&mut rig, Side::Downstream);
    let denied = |number| {
        let message = publish("secret/a", QoS::AtLeastOnce, number, b"x");
        bytes(Version::V311, &Packet::Publish(message))
    };
    let all: Vec<u8> = (1..=65_535).flat_map(denied).collect();
    rig.broker(&all);
    rig.expect(&[], &[], "PUBACK would land in the payload");
    assert!(rig.session.heap_bytes() >= 4 * 65_535, "and is counted");
    rig.client(&rest);
    let answers = (1..=65_535).flat_map(|number| bytes(Version::V311, &puback(number)));
    let expected: Vec<u8> = rest.iter().copied().chain(answers).collect();
    rig.expect(&[], &expected, "all of them");

    let mut rig = Rig::open(Version::V311);
    begun_message(&mut rig, Side::Downstream);
    rig.broker(&all);
    assert_eq!(rig.ended(), None);
    rig.broker(&denied(1));
    assert_eq!(rig.ended(), Some(Cause::Overload), "it does not wait");
}

#[test]
fn s8_a_topic_that_is_none_ends_the_session() {
    for version in VERSIONS {
        for topic in [&b"a/#"[..], b"a/+", b"", b"a\0b", b"\xed\xa0\x80"] {
            let mut rig = Rig::open(version);
            let mut body = vec![0, u8::try_from(topic.len()).unwrap()];
            body.extend_from_slice(topic);
            if version == Version::V5 {
                body.push(0);
            }
            body.extend_from_slice(b"payload");
            let mut packet = vec![0x30, u8::try_from(body.len()).unwrap()];
            packet.extend_from_slice(&body);
            rig.client(&packet);
            assert!(
                matches!(rig.ended(), Some(Cause::Violation(_))),
                "{topic:?}"
            );
            assert!(rig.take_up().is_empty());
            assert_eq!(rig.take_down().is_empty(), version != Version::V5);
        }
    }
}

#[test]
fn a_verdict_holds_for_the_payload_of_its_message() {
    let mut rig = Rig::open(Version::V311);
    let message = bytes(
        Version::V311,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, &[7; 300])),
    );
    rig.client(&message[..50]);
    let closed = RULES.replace("\"open/#\", ", "");
    rig.applies(&document("", &closed));
    rig.sweeps();
    rig.client(&message[50..]);
    assert_eq!(rig.take_up(), message, "judged once, at its head");
    rig.client(&message);
    rig.expect(&[], &[], "the next is judged by the new generation");
    assert_eq!(rig.ended(), None);
}

#[test]
fn runs_of_what_passes_leave_as_one_range_of_the_lease() {
    let message = |topic, qos, number| {
        bytes(
            Version::V311,
            &Packet::Publish(publish(topic, qos, number, b"payload")),
        )
    };
    let passes = message("open/a", QoS::AtLeastOnce, 1);
    let lowered = message("low1/a", QoS::ExactlyOnce, 2);
    let denied = message("secret/a", QoS::AtMostOnce, 0);
    let bare = message("low0/a", QoS::AtLeastOnce, 3);
    let run = [&passes[..], &lowered, &[0xc0, 0], &passes].concat();
    let mut rig = Rig::open(Version::V311);
    rig.client(&run);
    assert_eq!(
        rig.pieces,
        [Piece::Forwarded(Side::Upstream, run.len())],
        "an edit of the flags is made in the lease"
    );
    rig.clear();
    rig.client(&[&passes[..], &denied, &passes, &passes[..5]].concat());
    let one = Piece::Forwarded(Side::Upstream, passes.len());
    assert_eq!(rig.pieces, [one, one], "around what is dropped");
    rig.clear();
    rig.client(&passes[5..]);
    let head_bytes = passes.len() - b"payload".len();
    assert_eq!(
        rig.pieces,
        [
            Piece::Written(Side::Upstream, head_bytes),
            Piece::Forwarded(Side::Upstream, 7)
        ],
        "only a head that came in two reads is copied"
    );
    for answer in [puback(1), puback(2)] {
        rig.broker_sends(&answer);
    }
    rig.clear();
    rig.client(&bare);
    assert_eq!(
        rig.pieces,
        [
            Piece::Written(Side::Upstream, head_bytes - 2),
            Piece::Written(Side::Downstream, 4),
            Piece::Forwarded(Side::Upstream, 7)
        ],
        "a rewritten head, PUBACK, and the payload as it lies"
    );
}
