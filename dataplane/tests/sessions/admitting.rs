//! What a session is to the policy is asked in shares: it waits for the answer as a whole, and nothing of it is judged by a
//! generation that is over.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::session::{AuthOutcome, Cause, Dialled, Side, Unanswered};
use sluice_wire::mqtt::{Connect, Packet, Property, PropertyId, QoS, Version};

use crate::harness::{
    Event, RULES, Rig, VERSIONS, bytes, connack, connect, disconnect, document, publish, subscribe,
    will,
};

/// The topic `open/#` is not allowed any more.
fn narrower() -> String {
    document("", &RULES.replace("\"open/#\", ", ""))
}

/// Nobody may connect.
fn closed_to_all() -> String {
    document(
        "",
        &RULES.replace("[connect], decision: allow", "[connect], decision: deny"),
    )
}

fn message(version: Version, topic: &str) -> Vec<u8> {
    bytes(
        version,
        &Packet::Publish(publish(topic, QoS::AtMostOnce, 0, b"x")),
    )
}

/// A session that another generation is about to judge, and that has not had all the shares that takes.
fn admitting(version: Version, document: &str, connect: &Connect<'_>) -> Rig {
    let mut rig = Rig::open_with(version, &self::document("", RULES), connect);
    rig.applies(document);
    begin(&mut rig);
    rig
}

fn begin(rig: &mut Rig) {
    rig.share = 1;
    rig.sweeps();
    // Each call would bring it forward; here there is nothing left of any turn.
    rig.share = 0;
    assert_eq!(rig.events, [Event::Later]);
    assert!(rig.session.generation() < Some(rig.snapshot.generation()));
}

/// Gives shares until no more are asked for.
fn finish(rig: &mut Rig) -> u32 {
    let mut shares = 0;
    rig.share = 1;
    while let Some(place) = rig.events.iter().position(|event| *event == Event::Later) {
        rig.events.remove(place);
        rig.events.push(Event::Later);
        rig.goes_on();
        shares += 1;
        assert!(shares < 1_000);
    }
    shares
}

#[test]
fn a_connect_is_admitted_in_shares_as_small_as_may_be() {
    for version in VERSIONS {
        for username in [None, Some("alice")] {
            let mut rig = Rig::new(&document("", RULES));
            (rig.version, rig.share) = (version, 1);
            let connect = Connect {
                username,
                password: username.map(|_| &b"right"[..]),
                will: Some(will("open/will", QoS::AtMostOnce, false, b"")),
                ..connect(version, "dev")
            };
            let sent = bytes(version, &Packet::Connect(connect));
            rig.client(&sent);
            if username.is_some() {
                assert!(matches!(rig.events.pop(), Some(Event::Authenticate { .. })));
                rig.authenticated(AuthOutcome::Verified);
            }
            assert_eq!(rig.events, [Event::Later]);
            // What comes meanwhile is held, and the password is not asked for again.
            rig.client(&message(version, "open/a"));
            rig.authenticated(AuthOutcome::Refused);
            assert!(finish(&mut rig) > 1);
            assert_eq!(rig.events, [Event::Dial]);
            rig.dialled_now(true);
            assert_eq!(rig.take_up().first(), Some(&0x10));
            let yes = connack(version, 0, &[]);
            rig.broker(&yes);
            let up = message(version, "open/a");
            assert_eq!(rig.take_up(), up);
            assert_eq!(rig.decisions.len(), 3, "{:?}", rig.decisions);
        }
    }
}

#[test]
fn a_connect_that_is_refused_is_refused_in_shares() {
    let mut rig = Rig::new(&closed_to_all());
    (rig.version, rig.share) = (Version::V5, 1);
    rig.client_sends(&Packet::Connect(connect(Version::V5, "dev")));
    finish(&mut rig);
    assert_eq!(rig.ended(), Some(Cause::Denied));
    rig.expect(&connack(Version::V5, 0x87, &[]), &[], "not authorized");
}

#[test]
fn a_stranger_that_waits_is_ended_at_once() {
    for by_operator in [false, true] {
        let mut rig = Rig::new(&document("", RULES));
        rig.share = 1;
        rig.client_sends(&Packet::Connect(connect(Version::V311, "dev")));
        assert_eq!(rig.events, [Event::Later]);
        if by_operator {
            rig.end(Cause::GaveWay);
        } else {
            rig.closed(Side::Downstream);
        }
        assert!(rig.ended().is_some() && rig.session.heap_bytes() < 64);
    }
}

/// Both sides wait, and what they sent is judged by the new generation, in order.
#[test]
fn both_sides_are_held_until_the_new_generation_has_judged_the_session() {
    for version in VERSIONS {
        let mut rig = admitting(version, &narrower(), &connect(version, "dev"));
        let old = message(version, "open/a");
        let kept = message(version, "low1/a");
        let usual = rig.session.heap_bytes();
        for _ in 0..2 {
            rig.client(&[&*old, &kept].concat());
            rig.broker(&[&*kept, &old].concat());
        }
        rig.expect(&[], &[], "nothing of it is taken up");
        assert_eq!(rig.events, [Event::Later], "asked for once");
        assert!(rig.session.heap_bytes() >= usual + 4 * kept.len());
        assert!(finish(&mut rig) > 1);
        rig.expect(
            &[&*kept, &kept].concat(),
            &[&*kept, &kept].concat(),
            "by the new rules",
        );
        assert_eq!(rig.session.generation(), Some(rig.snapshot.generation()));
        assert_eq!(rig.ended(), None);
        assert!(rig.events.is_empty());
    }
}

#[test]
fn reading_pauses_on_either_side_and_goes_on() {
    let mut rig = admitting(Version::V311, &narrower(), &connect(Version::V311, "dev"));
    let kept = message(Version::V311, "low1/a").repeat(500);
    for _ in 0..2 {
        rig.client(&kept);
        rig.broker(&kept);
    }
    assert_eq!(
        rig.events,
        [
            Event::Later,
            Event::Pause(Side::Downstream),
            Event::Pause(Side::Upstream)
        ]
    );
    finish(&mut rig);
    rig.expect(&kept.repeat(2), &kept.repeat(2), "all of it");
    assert_eq!(
        rig.events[2..],
        [
            Event::Resume(Side::Upstream),
            Event::Resume(Side::Downstream)
        ]
    );
    assert_eq!(rig.count(Counter::EndedOverload), 0);
}

/// Bytes that come in the very call that brings the answer do not overtake those that were held.
#[test]
fn order_is_kept_when_the_answer_comes_with_bytes() {
    for side in [Side::Downstream, Side::Upstream] {
        let mut rig = admitting(Version::V311, &narrower(), &connect(Version::V311, "dev"));
        rig.bytes_from(side, &message(Version::V311, "low1/first"));
        rig.share = u32::MAX;
        rig.bytes_from(side, &message(Version::V311, "low1/second"));
        let expected = [
            message(Version::V311, "low1/first"),
            message(Version::V311, "low1/second"),
        ]
        .concat();
        assert_eq!([rig.take_down(), rig.take_up()].concat(), expected);
        // The share that was asked for comes all the same, and finds nothing to do.
        rig.goes_on();
        assert!(rig.events.is_empty());
    }
}

/// Its head was judged when it came.
#[test]
fn a_message_in_the_middle_comes_to_its_end() {
    for side in [Side::Downstream, Side::Upstream] {
        let mut rig = Rig::open(Version::V311);
        let message = message(Version::V311, "open/a");
        let (head, payload) = message.split_at(message.len() - 1);
        rig.bytes_from(side, head);
        rig.applies(&narrower());
        begin(&mut rig);
        rig.bytes_from(side, &[payload, &message].concat());
        assert_eq!([rig.take_down(), rig.take_up()].concat(), message);
        finish(&mut rig);
        rig.expect(&[], &[], "the next one is judged");
        assert_eq!(rig.ended(), None);
    }
}

#[test]
fn an_end_waits_until_the_will_can_be_judged() {
    let version = Version::V5;
    for (document, is_suppressed) in [
        (document("", RULES), false),
        (narrower(), true),
        (closed_to_all(), true),
    ] {
        for cause in [
            Cause::ClientGone,
            Cause::Kicked,
            Cause::WriteStall,
            Cause::UpstreamGone,
        ] {
            let connect = Connect {
                will: Some(will("open/will", QoS::AtMostOnce, false, b"")),
                ..connect(version, "dev")
            };
            let mut rig = admitting(version, &document, &connect);
            match cause {
                Cause::ClientGone => rig.closed(Side::Downstream),
                Cause::UpstreamGone => rig.closed(Side::Upstream),
                cause => rig.end(cause),
            }
            assert_eq!(rig.events, [Event::Later], "{cause:?}");
            rig.expect(&[], &[], "nothing is said yet");
            finish(&mut rig);
            let expected = if document == closed_to_all() {
                Cause::Denied
            } else {
                cause
            };
            assert_eq!(rig.ended(), Some(expected));
            let up = rig.take_up();
            // A broker that has closed is told nothing, unless the policy ends the session first.
            let is_told = is_suppressed && expected != Cause::UpstreamGone;
            let goodbye = disconnect(version, 0);
            assert_eq!(up, if is_told { goodbye } else { Vec::new() }, "{cause:?}");
        }
    }
}

#[test]
fn where_memory_is_short_it_ends_at_once_and_an_unjudged_will_is_not_published() {
    let version = Version::V5;
    let connect = Connect {
        will: Some(will("open/will", QoS::AtMostOnce, false, b"")),
        ..connect(version, "dev")
    };
    let mut rig = admitting(version, &document("", RULES), &connect);
    rig.end(Cause::Overload);
    assert_eq!(rig.ended(), Some(Cause::Overload));
    assert_eq!(rig.take_up(), disconnect(version, 0));
}

#[test]
fn what_was_sent_before_a_side_closed_is_served_first() {
    let message = message(Version::V311, "low1/a");
    for (side, cause) in [
        (Side::Downstream, Cause::ClientGone),
        (Side::Upstream, Cause::UpstreamGone),
    ] {
        let mut rig = admitting(Version::V311, &narrower(), &connect(Version::V311, "dev"));
        rig.bytes_from(side, &message);
        rig.closed(side);
        finish(&mut rig);
        assert_eq!([rig.take_down(), rig.take_up()].concat(), message);
        assert_eq!(rig.ended(), Some(cause));
    }
}

/// A reload while the broker is dialled.
#[test]
fn a_broker_that_is_there_meanwhile_waits_too() {
    let version = Version::V5;
    let sent = bytes(version, &Packet::Connect(connect(version, "dev")));
    let dialling = |document: &str| {
        let mut rig = Rig::new(&self::document("", RULES));
        rig.version = version;
        rig.client(&sent);
        rig.clear();
        rig.applies(document);
        begin(&mut rig);
        rig
    };
    let connected = Dialled::Connected {
        another_after: Some(Duration::from_secs(5)),
    };
    for dialled in [connected, Dialled::Failed] {
        let mut rig = dialling(&narrower());
        rig.dialled_as(dialled);
        rig.expect(&[], &[], "it waits");
        finish(&mut rig);
        match dialled {
            Dialled::Failed => assert_eq!(rig.ended(), Some(Cause::UpstreamUnavailable)),
            Dialled::Connected { .. } => assert_eq!(rig.take_up().first(), Some(&0x10)),
        }
    }
    let mut rig = dialling(&closed_to_all());
    rig.dialled_as(connected);
    finish(&mut rig);
    assert_eq!(rig.ended(), Some(Cause::Denied));
    assert!(rig.take_up().is_empty());
    // It is gone again before it heard anything: the next one is asked.
    let mut rig = dialling(&narrower());
    rig.dialled_as(connected);
    rig.closed(Side::Upstream);
    finish(&mut rig);
    let left = Event::Leave {
        why: Unanswered::Closed,
        says_goodbye: false,
        again: true,
    };
    assert_eq!(rig.events, [left]);
    // Or it speaks first, and before CONNACK.
    let mut rig = dialling(&narrower());
    rig.dialled_as(connected);
    rig.broker(&message(version, "open/a"));
    finish(&mut rig);
    assert!(
        matches!(
            rig.events[..],
            [Event::Leave {
                why: Unanswered::Broken(_),
                again: true,
                ..
            }]
        ),
        "{:?}",
        rig.events
    );
}

/// The broker names the client: its packets wait, CONNACK included, until the policy has judged the name.
#[test]
fn a_name_of_the_brokers_is_judged_in_shares() {
    let version = Version::V5;
    let named = |name| {
        connack(
            version,
            0,
            &[Property::Text(PropertyId::AssignedClientIdentifier, name)],
        )
    };
    let rules = RULES.replace(
        "{name: connect, ",
        "{name: not-you, priority: 9, who: {client_ids: [bad]}, actions: [connect], decision: deny}\n  - {name: connect, ",
    );
    let delivery = message(version, "open/self");
    for (name, is_refused) in [("good", false), ("bad", true)] {
        for meanwhile in [false, true] {
            let mut rig = Rig::dialled(version, &document("", &rules), &connect(version, ""));
            rig.clear();
            rig.share = 1;
            rig.broker(&[named(name), delivery.clone()].concat());
            rig.client(&subscribe(version, 1, &[("open/#", QoS::AtMostOnce)]));
            rig.passes(Duration::from_secs(1));
            rig.expect(&[], &[], "CONNACK waits");
            assert_eq!(rig.events, [Event::Later]);
            assert!(!rig.session.is_open());
            if meanwhile {
                rig.applies(&document("", &rules.replace("\"open/#\", ", "")));
            }
            finish(&mut rig);
            if is_refused {
                rig.expect(&connack(version, 0x87, &[]), &[], "not authorized");
                assert_eq!(rig.ended(), Some(Cause::Denied));
                continue;
            }
            assert!(rig.session.is_open());
            let down = rig.take_down();
            assert_eq!(down.first(), Some(&0x20));
            assert_eq!(down.ends_with(&delivery), !meanwhile, "by the rules of now");
            assert_eq!(rig.take_up().is_empty(), meanwhile);
        }
    }
}

/// A reload in the middle of an answer begins it again.
#[test]
fn another_generation_asks_from_the_start() {
    let mut rig = admitting(
        Version::V311,
        &closed_to_all(),
        &connect(Version::V311, "dev"),
    );
    rig.share = 1;
    rig.goes_on();
    rig.client(&message(Version::V311, "low1/a"));
    rig.applies(&document("", RULES));
    finish(&mut rig);
    assert_eq!(rig.ended(), None);
    rig.expect(
        &[],
        &message(Version::V311, "low1/a"),
        "the latest one counts",
    );
    let connects = rig.decisions.iter().filter(|(topic, _)| topic.is_empty());
    assert_eq!(connects.count(), 1, "{:?}", rig.decisions);
}

/// A SUBSCRIBE that is half judged, and a session that is: one share serves both.
#[test]
fn a_half_judged_subscribe_goes_on_when_the_session_was_judged() {
    let mut rig = Rig::open(Version::V5);
    rig.share = 10;
    let filters = [
        ("low1/a", QoS::AtLeastOnce),
        ("open/a", QoS::AtLeastOnce),
        ("low1/b", QoS::AtLeastOnce),
    ];
    rig.client(&subscribe(Version::V5, 7, &filters));
    rig.applies(&narrower());
    rig.share = 1;
    rig.sweeps();
    rig.passes(Duration::ZERO);
    assert_eq!(rig.events, [Event::Later], "asked for once");
    finish(&mut rig);
    let rest = subscribe(Version::V5, 7, &[filters[0], filters[2]]);
    rig.expect(&[], &rest, "as the new rules say");
    assert_eq!(rig.ended(), None);
}
