//! SUBSCRIBE filter by filter, and the SUBACK merged from two answers.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::session::{Cause, Deadline, Side};
use sluice_wire::mqtt::{
    Packet, Properties, Property, PropertyId, Publish, QoS, Suback, Subscribe, SubscribeFilter,
    SubscribeFilters, Unsubscribe, UnsubscribeFilters, Version, Violation,
};

use crate::harness::{
    Event, RULES, Rig, VERSIONS, ack, bytes, connect, document, id, properties, publish, suback,
    subscribe,
};

const FILTERS: [(&str, QoS); 3] = [
    ("open/a", QoS::AtLeastOnce),
    ("secret/#", QoS::ExactlyOnce),
    ("open/+/b", QoS::AtMostOnce),
];

#[test]
fn what_is_allowed_as_it_is_passes_untouched() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let sent = subscribe(version, 5, &[FILTERS[0], FILTERS[2]]);
        rig.client(&sent);
        rig.expect(&[], &sent, "SUBSCRIBE");
        let answer = suback(version, 5, &[1, 0]);
        rig.broker(&answer);
        rig.expect(&answer, &[], "SUBACK");
    }
}

#[test]
fn m8_only_the_refused_filter_is_refused() {
    for (version, code) in [
        // 3.1 has no failure code: the QoS asked for, and nothing is forwarded.
        (Version::V31, 2),
        (Version::V311, 0x80),
        (Version::V5, 0x87),
    ] {
        let mut rig = Rig::open(version);
        rig.client(&subscribe(version, 5, &FILTERS));
        let rest = subscribe(version, 5, &[FILTERS[0], FILTERS[2]]);
        rig.expect(&[], &rest, "the others");
        rig.broker(&suback(version, 5, &[1, 0]));
        rig.expect(&suback(version, 5, &[1, code, 0]), &[], "merged in order");
        assert_eq!(rig.count(Counter::SubscribeDenied), 1);

        rig.client(&subscribe(version, 6, &[FILTERS[1]]));
        rig.expect(&suback(version, 6, &[code]), &[], "nothing left to forward");
    }
}

#[test]
fn merging_keeps_options_identifiers_and_the_brokers_words() {
    let mut filters = SubscribeFilters::new();
    let mut left = SubscribeFilters::new();
    for (name, options) in [("open/a", 0x2d), ("secret/a", 0x01), ("open/b", 0x14)] {
        let filter = SubscribeFilter {
            filter: name,
            qos: QoS::AtLeastOnce,
            options,
        };
        let qos = if options & 3 == 0 {
            QoS::AtMostOnce
        } else {
            QoS::AtLeastOnce
        };
        let filter = SubscribeFilter { qos, ..filter };
        filters.push(&filter).unwrap();
        if !name.starts_with("secret") {
            left.push(&filter).unwrap();
        }
    }
    let list = properties(&[Property::Number(PropertyId::SubscriptionIdentifier, 300)]);
    let mut rig = Rig::open(Version::V5);
    rig.client_sends(&Packet::Subscribe(Subscribe::new(
        id(5),
        list.view(),
        &filters,
    )));
    let rest = bytes(
        Version::V5,
        &Packet::Subscribe(Subscribe::new(id(5), list.view(), &left)),
    );
    rig.expect(&[], &rest, "options and identifier");
    let words = properties(&[Property::Text(PropertyId::ReasonString, "as you wish")]);
    let answer = |codes| {
        bytes(
            Version::V5,
            &Packet::Suback(Suback {
                packet_id: id(5),
                properties: words.view(),
                codes,
            }),
        )
    };
    rig.broker(&answer(&[1, 0x97]));
    rig.expect(&answer(&[1, 0x87, 0x97]), &[], "reason string and codes");
}

#[test]
fn qos_is_lowered_in_what_goes_upstream() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let asked = [
            ("low1/a", QoS::ExactlyOnce),
            ("open/a", QoS::ExactlyOnce),
            ("low0/a", QoS::AtLeastOnce),
        ];
        let lowered = [
            ("low1/a", QoS::AtLeastOnce),
            ("open/a", QoS::ExactlyOnce),
            ("low0/a", QoS::AtMostOnce),
        ];
        rig.client(&subscribe(version, 5, &asked));
        rig.expect(&[], &subscribe(version, 5, &lowered), "lowered");
        let answer = suback(version, 5, &[1, 2, 0]);
        rig.broker(&answer);
        rig.expect(&answer, &[], "the broker's answer is the answer");
    }
}

#[test]
fn s5_a_filter_that_could_deliver_what_is_denied_is_refused() {
    let rules = r##"rules:
  - {name: c, actions: [connect], decision: allow}
  - {name: no, priority: 5, actions: [subscribe], topics: ["internal/#"], decision: deny}
  - {name: all, actions: [subscribe], topics: ["#"], decision: allow}"##;
    let document = document("", rules);
    for version in [Version::V311, Version::V5] {
        let code = if version == Version::V5 { 0x87 } else { 0x80 };
        for filter in [
            "#",
            "+/secret",
            "internal/+",
            "internal",
            "$share/g/internal/x",
            "$share/g/#",
        ] {
            let mut rig = Rig::open_with(version, &document, &connect(version, "dev"));
            rig.client(&subscribe(version, 5, &[(filter, QoS::AtMostOnce)]));
            rig.expect(&suback(version, 5, &[code]), &[], filter);
        }
        for filter in ["public/+", "+/+/+/+", "$share/g/public/x"] {
            let mut rig = Rig::open_with(version, &document, &connect(version, "dev"));
            let sent = subscribe(version, 5, &[(filter, QoS::AtMostOnce)]);
            rig.client(&sent);
            if filter == "+/+/+/+" {
                rig.expect(&suback(version, 5, &[code]), &[], "it overlaps");
            } else {
                rig.expect(&[], &sent, filter);
            }
        }
        // The second net: what is delivered all the same does not arrive.
        let mut rig = Rig::open_with(version, &document, &connect(version, "dev"));
        let secret = publish("internal/x", QoS::AtMostOnce, 0, b"x");
        rig.broker_sends(&Packet::Publish(secret));
        rig.expect(&[], &[], "delivery of a denied topic");
    }
}

#[test]
fn s6_only_the_filter_part_of_a_shared_subscription_is_judged() {
    let mut rig = Rig::open(Version::V5);
    let good = subscribe(Version::V5, 5, &[("$share/secret/open/a", QoS::AtMostOnce)]);
    rig.client(&good);
    rig.expect(&[], &good, "the group is only a name");
    rig.client(&subscribe(
        Version::V5,
        6,
        &[("$share/open/secret/a", QoS::AtMostOnce)],
    ));
    rig.expect(&suback(Version::V5, 6, &[0x87]), &[], "the filter is not");
}

#[test]
fn unsubscribe_always_passes() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let mut filters = UnsubscribeFilters::new();
        filters.push("secret/#").unwrap();
        let sent = bytes(
            version,
            &Packet::Unsubscribe(Unsubscribe::new(id(5), Properties::EMPTY, &filters)),
        );
        rig.client(&sent);
        rig.expect(&[], &sent, "UNSUBSCRIBE");
    }
}

#[test]
fn a_suback_with_too_few_codes_grants_no_more_than_it_says() {
    for (version, missing, refused) in [
        (Version::V31, 0, 2),
        (Version::V311, 0x80, 0x80),
        (Version::V5, 0x80, 0x87),
    ] {
        let mut rig = Rig::open(version);
        rig.client(&subscribe(version, 5, &FILTERS));
        rig.clear();
        rig.broker(&suback(version, 5, &[1]));
        let told = suback(version, 5, &[1, refused, missing]);
        rig.expect(&told, &[], "what is not answered failed");
        assert_eq!(rig.faults, [Violation::AckCountMismatch]);
        assert_eq!(rig.ended(), None);
    }
}

/// SUBSCRIBEs of one allowed and one refused filter, numbered from 1.
fn mixed_subscribes(version: Version, count: u16) -> Vec<u8> {
    let mixed = |number| subscribe(version, number, &FILTERS[..2]);
    (1..=count).flat_map(mixed).collect()
}

#[test]
fn subscribes_beyond_what_is_remembered_wait_for_the_brokers_answers() {
    for version in VERSIONS {
        let refused = match version {
            Version::V31 => 2,
            Version::V311 => 0x80,
            Version::V5 => 0x87,
        };
        // Few are held without a pause; many make reading pause.
        for (count, pauses) in [(65, false), (1000, true)] {
            let mut rig = Rig::open(version);
            rig.client(&[&mixed_subscribes(version, count)[..], &[0xc0, 0]].concat());
            let passed = |from: u16, to: u16| -> Vec<u8> {
                let one = |number| subscribe(version, number, &FILTERS[..1]);
                (from..=to).flat_map(one).collect()
            };
            rig.expect(&[], &passed(1, 64), "as many as are remembered");
            assert_eq!(rig.events.contains(&Event::Pause(Side::Downstream)), pauses);
            let last = |number| {
                if number + 63 == count {
                    &[0xc0, 0][..]
                } else {
                    &[]
                }
            };
            for number in 1..=count {
                rig.broker(&suback(version, number, &[1]));
                let next = (number + 64).min(count + 1);
                let next = [&passed(next, (number + 64).min(count))[..], last(number)].concat();
                rig.expect(
                    &suback(version, number, &[1, refused]),
                    &next,
                    "one for one",
                );
            }
            assert_eq!(
                rig.events.contains(&Event::Resume(Side::Downstream)),
                pauses
            );
            assert_eq!(rig.ended(), None);
        }
    }
}

#[test]
fn filters_beyond_what_is_remembered_wait_too() {
    let mut rig = Rig::open(Version::V5);
    let many = [FILTERS[0], FILTERS[1]].repeat(8 * 1024);
    for number in 1..=5 {
        rig.client(&subscribe(Version::V5, number, &many));
    }
    // So many are judged a second's allowance at a time.
    let judge = |rig: &mut Rig| {
        while matches!(rig.session.poll_timeout(), Some((_, Deadline::Judging))) {
            rig.passes(Duration::from_millis(100));
        }
    };
    judge(&mut rig);
    let left = |number| subscribe(Version::V5, number, &[FILTERS[0]].repeat(8 * 1024));
    let four: Vec<u8> = (1..=4).flat_map(left).collect();
    assert!(rig.take_up() == four, "65,536 filters");
    assert!(
        rig.session.heap_bytes() > 64 * 1024,
        "what waits is counted"
    );
    rig.broker(&suback(Version::V5, 1, &[1].repeat(8 * 1024)));
    judge(&mut rig);
    let answer = suback(Version::V5, 1, &[1, 0x87].repeat(8 * 1024));
    assert!(
        rig.take_down() == answer && rig.take_up() == left(5),
        "room again"
    );
}

#[test]
fn a_broker_that_gives_no_answer_is_given_up() {
    let limits = document("    limits: {packet_timeout: 10s}", RULES);
    for answers in [0, 3] {
        let mut rig = Rig::open_with(Version::V5, &limits, &connect(Version::V5, "dev"));
        rig.client(&mixed_subscribes(Version::V5, 64));
        rig.passes(Duration::from_secs(20));
        assert_eq!(rig.ended(), None, "nothing waits yet");
        rig.client(&mixed_subscribes(Version::V5, 64));
        for number in 1..=answers {
            rig.passes(Duration::from_secs(9));
            rig.broker(&suback(Version::V5, number, &[1]));
        }
        rig.passes(Duration::from_millis(9_999));
        assert_eq!(rig.ended(), None, "after {answers} answers");
        rig.take_down();
        rig.passes(Duration::from_millis(1));
        assert_eq!(rig.take_down(), [0xe0, 1, 0x80], "the client is told");
        assert_eq!(rig.ended(), Some(Cause::UpstreamStalled));
    }
}

/// The client takes its retained messages slowly, so that the broker is not read, and the SUBACKs are behind them.
#[test]
fn a_broker_that_is_not_read_is_not_blamed_for_missing_answers() {
    let limits = document("    limits: {packet_timeout: 10s}", RULES);
    let mut rig = Rig::open_with(Version::V5, &limits, &connect(Version::V5, "dev"));
    rig.client(&mixed_subscribes(Version::V5, 65));
    rig.passes(Duration::from_secs(9));
    rig.held(Side::Upstream, true);
    rig.passes(Duration::from_secs(40));
    assert_eq!(rig.ended(), None, "we do not listen");
    rig.held(Side::Upstream, false);
    rig.passes(Duration::from_millis(9_999));
    assert_eq!(rig.ended(), None, "all of the time again");
    rig.passes(Duration::from_millis(1));
    assert_eq!(rig.ended(), Some(Cause::UpstreamStalled));
}

#[test]
fn a_client_that_waits_for_answers_is_not_blamed_for_its_silence() {
    let mut rig = Rig::open(Version::V311);
    let many = mixed_subscribes(Version::V311, 65);
    let (whole, part) = many.split_at(many.len() - 5);
    rig.client(whole);
    rig.client(part);
    let answer = |number| suback(Version::V311, number, &[1]);
    // Keep alive is 60 s, and a packet may take 30 s.
    rig.passes(Duration::from_secs(29));
    rig.broker(&answer(64));
    assert_eq!(rig.ended(), None);
    rig.passes(Duration::from_secs(89));
    assert_eq!(rig.ended(), None);
    rig.passes(Duration::from_secs(1));
    assert_eq!(rig.ended(), Some(Cause::KeepAlive));
}

#[test]
fn what_a_client_sent_before_it_left_is_taken_up_when_there_is_room() {
    let mut rig = Rig::open(Version::V311);
    let message = publish("open/a", QoS::AtMostOnce, 0, b"last");
    let message = bytes(Version::V311, &Packet::Publish(message));
    rig.client(&[&mixed_subscribes(Version::V311, 64)[..], &message].concat());
    rig.closed(Side::Downstream);
    assert_eq!(rig.ended(), None);
    rig.clear();
    rig.broker(&suback(Version::V311, 1, &[1]));
    assert_eq!(rig.take_up(), message);
    assert_eq!(rig.ended(), Some(Cause::ClientGone));
}

#[test]
fn a_subscription_no_longer_permitted_stops_delivering() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let message = publish("open/a", QoS::AtMostOnce, 0, b"x");
        let message = bytes(version, &Packet::Publish(message));
        rig.broker(&message);
        rig.expect(&message, &[], "permitted");
        rig.applies(&document("", &RULES.replace("\"open/#\", ", "")));
        rig.broker(&message);
        rig.expect(&[], &[], "taken away");
        assert_eq!(rig.ended(), None);
    }
}

/// Everything but what `secret` denies, and `hidden` by no rule at all.
const NARROWED: &str = r##"rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: secret, priority: 1, actions: [subscribe], topics: ["site/+/secret/#"], decision: deny}
  - {name: site, actions: [subscribe], topics: ["site/#"], decision: allow, narrow: true}
"##;

#[test]
fn a_narrowed_subscription_goes_on_and_what_is_refused_is_left_out() {
    for version in VERSIONS {
        let connect = connect(version, "dev");
        let mut rig = Rig::open_with(version, &document("", NARROWED), &connect);
        let sent = subscribe(version, 5, &[("#", QoS::AtLeastOnce)]);
        rig.client(&sent);
        rig.expect(&[], &sent, "it goes on as it came");
        assert_eq!(rig.count(Counter::SubscribeNarrowed), 1);
        assert_eq!(rig.count(Counter::SubscribeForwarded), 1);
        let answer = suback(version, 5, &[1]);
        rig.broker(&answer);
        rig.expect(&answer, &[], "the broker's answer");

        let message = |topic, number, retain| {
            let message = publish(topic, QoS::AtLeastOnce, number, b"x");
            bytes(version, &Packet::Publish(Publish { retain, ..message }))
        };
        let allowed = message("site/1/open", 7, false);
        rig.broker(&allowed);
        rig.expect(&allowed, &[], "allowed");
        rig.client(&bytes(version, &Packet::Puback(ack(7, 0))));
        rig.clear();
        for (topic, number) in [("site/1/secret/x", 8), ("site/1/secret", 9), ("other", 10)] {
            rig.broker(&message(topic, number, true));
            let acknowledged = bytes(version, &Packet::Puback(ack(number, 0)));
            rig.expect(&[], &acknowledged, topic);
        }
        assert_eq!(rig.count(Counter::DeliveryDenied), 3);
        assert_eq!(rig.ended(), None);
    }
}

#[test]
fn a_share_is_not_narrowed_and_its_refusal_stands_beside_what_is() {
    for (version, code) in [
        (Version::V31, 0),
        (Version::V311, 0x80),
        (Version::V5, 0x87),
    ] {
        let connect = connect(version, "dev");
        let mut rig = Rig::open_with(version, &document("", NARROWED), &connect);
        let qos = QoS::AtMostOnce;
        let filters = [("$share/g/site/#", qos), ("site/#", qos), ("other/#", qos)];
        rig.client(&subscribe(version, 5, &filters));
        rig.expect(&[], &subscribe(version, 5, &filters[1..2]), "the one alone");
        rig.broker(&suback(version, 5, &[0]));
        rig.expect(&suback(version, 5, &[code, 0, code]), &[], "the others");
        assert_eq!(rig.count(Counter::SubscribeNarrowed), 1);
    }
}

/// The broker has the subscription; a later policy judges what it delivers.
#[test]
fn a_later_policy_judges_deliveries_of_a_narrowed_subscription() {
    let connect = connect(Version::V5, "dev");
    let mut rig = Rig::open_with(Version::V5, &document("", NARROWED), &connect);
    rig.client(&subscribe(Version::V5, 5, &[("site/#", QoS::AtMostOnce)]));
    rig.clear();
    let whole = document("", &NARROWED.replace(", narrow: true", ""));
    rig.applies(&whole);
    let message = |topic| {
        let message = publish(topic, QoS::AtMostOnce, 0, b"x");
        bytes(Version::V5, &Packet::Publish(message))
    };
    rig.broker(&message("site/1/secret/x"));
    rig.expect(&[], &[], "refused as before");
    rig.broker(&message("site/1/open"));
    rig.expect(&message("site/1/open"), &[], "allowed as before");
    rig.client(&subscribe(Version::V5, 6, &[("site/#", QoS::AtMostOnce)]));
    rig.expect(&suback(Version::V5, 6, &[0x87]), &[], "not narrowed again");
}
