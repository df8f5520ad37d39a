//! How a session opens: who is refused and how, what goes upstream and when, whose limits hold.

use std::time::Duration;

use sluice_dataplane::session::{AuthOutcome, Cause, Side};
use sluice_wire::mqtt::{
    Auth, Connect, Packet, Property, PropertyId, Publish, QoS, Version, Violation, decode_connect,
};

use crate::harness::{
    Event, RULES, Rig, VERSIONS, bytes, connack, connect, disconnect, document, properties,
    publish, will,
};

/// What a refused client is told before the connection closes.
fn refusal(version: Version, code_3: u8, code_5: u8) -> Vec<u8> {
    match version {
        Version::V5 => vec![0x20, 3, 0, code_5, 0],
        Version::V31 | Version::V311 => vec![0x20, 2, 0, code_3],
    }
}

#[track_caller]
fn check_refused(
    rig: &mut Rig,
    version: Version,
    cause: Cause,
    code_3: u8,
    code_5: u8,
    note: &str,
) {
    rig.expect(&refusal(version, code_3, code_5), &[], note);
    assert_eq!(rig.ended(), Some(cause), "{note}");
    assert!(!rig.events.contains(&Event::Dial), "{note}: dialled");
}

#[test]
fn m1_an_anonymous_session_opens_with_bytes_unchanged() {
    for version in [Version::V31, Version::V311] {
        let mut rig = Rig::new(&document("", RULES));
        let sent = bytes(version, &Packet::Connect(connect(version, "dev")));
        rig.client(&sent);
        rig.expect(&[], &[], "nothing before the upstream is there");
        assert_eq!(rig.events, [Event::Dial]);
        rig.dialled_now(true);
        rig.expect(&[], &sent, "CONNECT");
        let answer = connack(version, 0, &[]);
        rig.broker(&answer);
        rig.expect(&answer, &[], "CONNACK");
        assert!(rig.session.is_open());
        assert_eq!(rig.session.client_id(), Some("dev"));
        assert_eq!(rig.session.username(), None);
        assert_eq!(rig.events, [Event::Dial], "reading was never paused");
    }
}

#[test]
fn m7_wrong_password_unknown_user_and_disabled_user_look_the_same() {
    for version in VERSIONS {
        for (name, known) in [
            ("alice", true),
            ("nobody", false),
            ("bob", false),
            ("", false),
        ] {
            let mut rig = Rig::new(&document("", RULES));
            let request = Connect {
                username: Some(name),
                password: Some(b"wrong"),
                ..connect(version, "dev")
            };
            rig.client(&bytes(version, &Packet::Connect(request)));
            let username = name.to_owned();
            assert_eq!(rig.events, [Event::Authenticate { username, known }]);
            rig.authenticated(AuthOutcome::Refused);
            check_refused(&mut rig, version, Cause::Unauthenticated, 4, 0x86, name);
        }
    }
}

#[test]
fn a_user_name_without_password_is_verified_against_nothing() {
    let mut rig = Rig::new(&document("", RULES));
    let request = Connect {
        username: Some("alice"),
        ..connect(Version::V311, "dev")
    };
    rig.client(&bytes(Version::V311, &Packet::Connect(request)));
    assert_eq!(
        rig.events,
        [Event::Authenticate {
            username: "alice".into(),
            known: false
        }]
    );
}

#[test]
fn a_password_without_user_name_proves_nobody() {
    let request = Connect {
        password: Some(b"token"),
        ..connect(Version::V5, "dev")
    };
    let mut rig = Rig::open_with(Version::V5, &document("", RULES), &request);
    assert_eq!(rig.session.username(), None);
    rig.clear();
}

#[test]
fn a_full_hashing_queue_says_busy() {
    for version in VERSIONS {
        let mut rig = Rig::new(&document("", RULES));
        let request = Connect {
            username: Some("alice"),
            password: Some(b"right"),
            ..connect(version, "dev")
        };
        rig.client(&bytes(version, &Packet::Connect(request)));
        rig.authenticated(AuthOutcome::Busy);
        check_refused(&mut rig, version, Cause::Busy, 3, 0x89, "busy");
    }
}

#[test]
fn credentials_go_upstream_as_they_came() {
    for version in [Version::V31, Version::V311] {
        let request = Connect {
            username: Some("alice"),
            password: Some(b"right\x00\xff"),
            ..connect(version, "dev")
        };
        let mut rig = Rig::dialled(version, &document("", RULES), &request);
        rig.expect(&[], &bytes(version, &Packet::Connect(request)), "CONNECT");
        assert_eq!(rig.session.username(), Some("alice"));
    }
}

#[test]
fn a_user_who_went_while_verified_is_refused() {
    let mut rig = Rig::new(&document("", RULES));
    let request = Connect {
        username: Some("alice"),
        password: Some(b"right"),
        ..connect(Version::V311, "dev")
    };
    rig.client(&bytes(Version::V311, &Packet::Connect(request)));
    rig.applies(&document("", RULES).replace("name: alice", "name: alicia"));
    rig.authenticated(AuthOutcome::Verified);
    check_refused(
        &mut rig,
        Version::V311,
        Cause::Unauthenticated,
        4,
        0x86,
        "gone",
    );
}

#[test]
fn what_the_listener_or_a_rule_refuses_is_told_at_connect() {
    let no_anonymous = document("", RULES).replace("    anonymous: {group: guests}\n", "");
    let pattern = document("    client_id: {pattern: \"[a-z]+-[0-9]+\"}", RULES);
    let only_5 = document("    versions: [\"5\"]", RULES);
    let only_3 = document("    versions: [\"3.1\", \"3.1.1\"]", RULES);
    let deny = document(
        "",
        "rules:\n  - {name: none, actions: [connect], decision: deny}",
    );
    let v3 = [Version::V31, Version::V311].as_slice();
    let cases: [(&str, &str, &[Version], &str, Cause, u8, u8); 6] = [
        (
            "anonymous",
            &no_anonymous,
            &VERSIONS,
            "dev",
            Cause::Unauthenticated,
            4,
            0x86,
        ),
        (
            "pattern",
            &pattern,
            &VERSIONS,
            "dev",
            Cause::Refused,
            2,
            0x85,
        ),
        ("version", &only_5, v3, "dev", Cause::Refused, 1, 0x84),
        (
            "version",
            &only_3,
            &[Version::V5],
            "dev",
            Cause::Refused,
            1,
            0x84,
        ),
        ("rule", &deny, &VERSIONS, "dev", Cause::Denied, 5, 0x87),
        // `${client_id}` is used by a rule, so that an id which is not one level cannot be let in.
        (
            "variable",
            &document("", RULES),
            &VERSIONS,
            "a/b",
            Cause::Refused,
            2,
            0x85,
        ),
    ];
    for (note, document, versions, client_id, cause, code_3, code_5) in cases {
        for version in versions {
            let mut rig = Rig::new(document);
            let request = connect(*version, client_id);
            rig.client(&bytes(*version, &Packet::Connect(request)));
            check_refused(&mut rig, *version, cause, code_3, code_5, note);
        }
    }
}

#[test]
fn a_client_id_bound_to_a_user_is_no_good_for_another() {
    let request = |client_id| Connect {
        username: Some("carol"),
        password: Some(b"x"),
        ..connect(Version::V311, client_id)
    };
    let rules = document("", RULES).replace("name: alice", "name: carol, client_id: carol-1");
    Rig::open_with(Version::V311, &rules, &request("carol-1"));
    let mut rig = Rig::new(&rules);
    rig.client(&bytes(Version::V311, &Packet::Connect(request("carol-2"))));
    rig.authenticated(AuthOutcome::Verified);
    check_refused(&mut rig, Version::V311, Cause::Refused, 2, 0x85, "bound");
}

#[test]
fn a_bridge_is_served_and_the_broker_learns_that_it_is_one() {
    for (version, level_at) in [(Version::V31, 10), (Version::V311, 8)] {
        let mut sent = bytes(version, &Packet::Connect(connect(version, "dev")));
        sent[level_at] |= 0x80;
        let mut rig = Rig::new(&document("", RULES));
        rig.client(&sent);
        rig.dialled_now(true);
        rig.expect(&[], &sent, "as the bridge sent it");
    }
}

#[test]
fn an_unknown_protocol_level_is_answered() {
    let level = |level: u8| {
        let mut sent = bytes(
            Version::V311,
            &Packet::Connect(connect(Version::V311, "dev")),
        );
        sent[8] = level;
        sent
    };
    for (number, answer) in [
        (0, vec![0x20, 2, 0, 1]),
        (0x85, vec![0x20, 2, 0, 1]),
        (2, vec![0x20, 2, 0, 1]),
        (6, vec![0x20, 3, 0, 0x84, 0]),
        (9, vec![0x20, 3, 0, 0x84, 0]),
    ] {
        let mut rig = Rig::new(&document("", RULES));
        rig.client(&level(number));
        rig.expect(&answer, &[], &format!("level {number}"));
        assert!(matches!(rig.ended(), Some(Cause::Violation(_))));
    }
}

#[test]
fn m11_what_comes_before_connect_is_not_answered() {
    let first = publish("open/a", QoS::AtMostOnce, 0, b"x");
    let mut rig = Rig::new(&document("", RULES));
    rig.client(&bytes(Version::V311, &Packet::Publish(first)));
    rig.expect(&[], &[], "the version is not known");
    assert!(matches!(rig.ended(), Some(Cause::Violation(_))));
}

#[test]
fn m11_a_second_connect_ends_the_session() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        rig.client_sends(&Packet::Connect(connect(version, "dev")));
        let told = match version {
            Version::V5 => vec![0xe0, 1, 0x82],
            Version::V31 | Version::V311 => vec![],
        };
        rig.expect(&told, &[], "second CONNECT");
        assert!(matches!(rig.ended(), Some(Cause::Violation(_))));
    }
}

#[test]
fn m10_a_will_is_judged_as_the_message_it_becomes() {
    let forbidden = will("secret/x", QoS::AtMostOnce, false, b"gone");
    let strict = will("strict1/x", QoS::ExactlyOnce, false, b"gone");
    let bare = will("bare/x", QoS::AtMostOnce, true, b"gone");
    let small = will("small/x", QoS::AtMostOnce, false, b"12345");
    for (will, code_5) in [
        (forbidden, 0x87),
        (strict, 0x9b),
        (bare, 0x9a),
        (small, 0x95),
    ] {
        for version in VERSIONS {
            let mut rig = Rig::new(&document("", RULES));
            let request = Connect {
                will: Some(will.clone()),
                ..connect(version, "dev")
            };
            rig.client(&bytes(version, &Packet::Connect(request)));
            check_refused(&mut rig, version, Cause::Denied, 5, code_5, will.topic);
        }
    }
}

#[test]
fn a_will_is_lowered_and_stripped_in_the_connect() {
    for version in VERSIONS {
        for (topic, qos, retain, qos_up, retain_up) in [
            ("low1/x", QoS::ExactlyOnce, true, QoS::AtLeastOnce, true),
            ("low0/x", QoS::ExactlyOnce, false, QoS::AtMostOnce, false),
            ("strip/x", QoS::ExactlyOnce, true, QoS::ExactlyOnce, false),
        ] {
            let request = Connect {
                will: Some(will(topic, qos, retain, b"gone")),
                username: Some("alice"),
                password: Some(b"pw"),
                ..connect(version, "dev")
            };
            let mut rig = Rig::dialled(version, &document("", RULES), &request);
            let sent = rig.take_up();
            let seen = decode_connect(&sent).unwrap();
            let expected = Connect {
                will: Some(will(topic, qos_up, retain_up, b"gone")),
                properties: seen.properties,
                ..request
            };
            assert_eq!(seen, expected, "{topic}");
        }
    }
}

#[test]
fn the_response_topic_of_a_will_must_be_receivable() {
    for (topic, allowed) in [("open/answer", true), ("secret/answer", false)] {
        let list = properties(&[Property::Text(PropertyId::ResponseTopic, topic)]);
        let mut request = connect(Version::V5, "dev");
        let mut will = will("open/x", QoS::AtMostOnce, false, b"gone");
        will.properties = list.view();
        request.will = Some(will);
        let mut rig = Rig::new(&document("", RULES));
        rig.client(&bytes(Version::V5, &Packet::Connect(request)));
        assert_eq!(rig.events.contains(&Event::Dial), allowed);
        assert_eq!(rig.ended().is_none(), allowed);
        if !allowed {
            rig.expect(&[0x20, 3, 0, 0x87, 0], &[], topic);
        }
    }
}

#[test]
fn what_is_sent_ahead_of_connack_is_held_and_then_judged() {
    for version in VERSIONS {
        for step in [1, 2, 3, 7, 1000] {
            let mut rig = Rig::new(&document("", RULES));
            rig.version = version;
            let mut sent = bytes(version, &Packet::Connect(connect(version, "dev")));
            let good = bytes(
                version,
                &Packet::Publish(publish("open/a", QoS::AtLeastOnce, 1, b"payload")),
            );
            let bad = bytes(
                version,
                &Packet::Publish(publish("secret/a", QoS::AtMostOnce, 0, b"payload")),
            );
            sent.extend_from_slice(&good);
            sent.extend_from_slice(&bad);
            sent.extend_from_slice(&good[..9]);
            for part in sent.chunks(step) {
                rig.client(part);
            }
            rig.dialled_now(true);
            rig.take_up();
            rig.broker(&connack(version, 0, &[]));
            assert_eq!(rig.take_up(), good, "{version:?} by {step}");
            rig.client(&good[9..]);
            assert_eq!(rig.take_up(), good, "{version:?} by {step}");
        }
    }
}

#[test]
fn a_client_that_sends_far_ahead_is_paused_and_then_ended() {
    let mut rig = Rig::new(&document("", RULES));
    let ahead = bytes(
        Version::V311,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, &[7; 1000])),
    );
    rig.client(&bytes(
        Version::V311,
        &Packet::Connect(connect(Version::V311, "dev")),
    ));
    for _ in 0..5 {
        rig.client(&ahead);
    }
    assert_eq!(rig.events, [Event::Dial, Event::Pause(Side::Downstream)]);
    let mut other = Rig::new(&document("", RULES));
    other.client(&bytes(
        Version::V311,
        &Packet::Connect(connect(Version::V311, "dev")),
    ));
    // A ring may deliver the receive buffers of a whole turn, 4 MiB, before a pause takes effect.
    let turn = ahead.repeat(100);
    for _ in 0..(4 << 20) / turn.len() + 1 {
        other.client(&turn);
    }
    assert_eq!(other.ended(), None);
    for _ in 0..(4 << 20) / turn.len() + 1 {
        other.client(&turn);
    }
    assert_eq!(other.ended(), Some(Cause::Overload));

    rig.dialled_now(true);
    rig.take_up();
    rig.broker(&connack(Version::V311, 0, &[]));
    assert_eq!(rig.events.last(), Some(&Event::Resume(Side::Downstream)));
    assert_eq!(rig.take_up(), ahead.repeat(5));
}

#[test]
fn no_upstream_and_a_refusing_upstream_are_told_apart() {
    for version in VERSIONS {
        let mut rig = Rig::new(&document("", RULES));
        rig.client(&bytes(version, &Packet::Connect(connect(version, "dev"))));
        rig.dialled_now(false);
        rig.expect(&refusal(version, 3, 0x88), &[], "unreachable");
        assert_eq!(rig.ended(), Some(Cause::UpstreamUnavailable));

        let mut rig = Rig::dialled(version, &document("", RULES), &connect(version, "dev"));
        rig.clear();
        rig.closed(Side::Upstream);
        let told = match version {
            Version::V5 => refusal(version, 0, 0x80),
            Version::V31 | Version::V311 => vec![],
        };
        rig.expect(&told, &[], "gone before CONNACK");
        assert_eq!(rig.ended(), Some(Cause::UpstreamClosed));

        let mut rig = Rig::dialled(version, &document("", RULES), &connect(version, "dev"));
        rig.clear();
        let code = if version == Version::V5 { 0x87 } else { 5 };
        let answer = connack(version, code, &[]);
        rig.broker(&answer);
        rig.expect(&answer, &[], "the broker's own words");
        assert_eq!(rig.ended(), Some(Cause::UpstreamRefused));
    }
}

#[test]
fn a_broker_that_speaks_out_of_turn_is_not_believed() {
    for version in VERSIONS {
        let mut rig = Rig::dialled(version, &document("", RULES), &connect(version, "dev"));
        rig.clear();
        rig.broker_sends(&Packet::Publish(publish(
            "open/a",
            QoS::AtMostOnce,
            0,
            b"x",
        )));
        rig.expect(&refusal(version, 3, 0x88), &[], "PUBLISH before CONNACK");
        assert!(matches!(rig.ended(), Some(Cause::UpstreamViolation(_))));

        let mut rig = Rig::open(version);
        rig.broker(&connack(version, 0, &[]));
        rig.expect(&[], &[], "a second CONNACK is dropped");
        assert_eq!(rig.faults, [Violation::SecondConnack]);
        assert_eq!(rig.ended(), None);
    }
}

#[test]
fn an_empty_client_id_is_refused_assigned_or_learned() {
    let kept = Connect {
        clean_start: false,
        ..connect(Version::V311, "")
    };
    let plain = "rules:\n  - {name: all, actions: [connect, publish, subscribe], topics: [\"#\"], decision: allow}";
    for document in [document("", RULES), document("", plain)] {
        let mut rig = Rig::new(&document);
        rig.client(&bytes(Version::V311, &Packet::Connect(kept.clone())));
        check_refused(
            &mut rig,
            Version::V311,
            Cause::Refused,
            2,
            0x85,
            "3.1.1, kept session",
        );
    }

    // A rule needs it: assigned, and told in version 5.
    for version in [Version::V311, Version::V5] {
        let mut rig = Rig::dialled(version, &document("", RULES), &connect(version, ""));
        let sent = rig.take_up();
        let assigned = decode_connect(&sent).unwrap().client_id.to_owned();
        assert_eq!(assigned.len(), 22);
        assert_eq!(rig.session.client_id(), Some(&*assigned));
        rig.broker(&connack(version, 0, &[]));
        let told = rig.take_down();
        let mentions = told.windows(22).any(|window| window == assigned.as_bytes());
        assert_eq!(mentions, version == Version::V5);
        let topic = format!("self/{assigned}/x");
        rig.version = version;
        rig.client_sends(&Packet::Publish(publish(&topic, QoS::AtMostOnce, 0, b"x")));
        assert!(!rig.take_up().is_empty(), "the variable is bound");
    }

    // No rule needs it: the broker's word is taken.
    let mut rig = Rig::dialled(Version::V5, &document("", plain), &connect(Version::V5, ""));
    let sent = rig.take_up();
    assert_eq!(decode_connect(&sent).unwrap().client_id, "");
    assert_eq!(rig.session.client_id(), None);
    let learned = [Property::Text(
        PropertyId::AssignedClientIdentifier,
        "from-broker",
    )];
    rig.broker(&connack(Version::V5, 0, &learned));
    assert_eq!(rig.session.client_id(), Some("from-broker"));
}

#[test]
fn a_learned_client_id_is_judged_too() {
    let rules = "rules:
  - {name: no, priority: 1, who: {client_ids: [from-broker]}, actions: [connect], decision: deny}
  - {name: all, actions: [connect, publish], topics: [\"#\"], decision: allow}";
    let mut rig = Rig::dialled(
        Version::V5,
        &document("", rules),
        &connect(Version::V5, "x"),
    );
    rig.clear();
    let learned = [Property::Text(
        PropertyId::AssignedClientIdentifier,
        "from-broker",
    )];
    rig.broker(&connack(Version::V5, 0, &learned));
    rig.expect(&[0x20, 3, 0, 0x87, 0], &[], "denied under its real name");
    assert_eq!(rig.ended(), Some(Cause::Denied));
}

fn numbers(bytes: &[u8], version: Version, side: sluice_wire::mqtt::Side) -> [Option<u32>; 4] {
    let packet = sluice_wire::mqtt::decode(version, side, bytes).unwrap();
    let list = match packet {
        Packet::Connect(connect) => connect.properties,
        Packet::Connack(connack) => connack.properties,
        other => panic!("{other:?}"),
    };
    [
        list.number(PropertyId::ReceiveMaximum),
        list.number(PropertyId::MaximumPacketSize),
        list.number(PropertyId::TopicAliasMaximum),
        list.number(PropertyId::ServerKeepAlive),
    ]
}

#[test]
fn limits_of_either_hop_are_the_lower_of_both() {
    let limits = "    limits: {receive_max: 20, packet_bytes_max: 2000, topic_alias_max: 5, keep_alive_max: 100s}";
    let all = |receive, packet, alias| {
        [
            Property::Number(PropertyId::ReceiveMaximum, receive),
            Property::Number(PropertyId::MaximumPacketSize, packet),
            Property::Number(PropertyId::TopicAliasMaximum, alias),
        ]
    };
    use sluice_wire::mqtt::Side::{Client, Server};
    // Properties of either side, what is seen by the other, and whether the bytes are the same.
    let cases: [(&[Property<'_>], [Option<u32>; 3], bool); 3] = [
        (&[], [Some(20), Some(2000), None], false),
        (&all(10, 1000, 3), [Some(10), Some(1000), Some(3)], true),
        (&all(30, 3000, 7), [Some(20), Some(2000), Some(5)], false),
    ];
    for (list, expected, untouched) in cases {
        let buffer = properties(list);
        let mut request = connect(Version::V5, "dev");
        request.properties = buffer.view();
        let sent = bytes(Version::V5, &Packet::Connect(request.clone()));
        let mut rig = Rig::dialled(Version::V5, &document(limits, RULES), &request);
        let seen = rig.take_up();
        assert_eq!(numbers(&seen, Version::V5, Client)[..3], expected);
        assert_eq!(seen == sent, untouched);
        let answer = connack(Version::V5, 0, list);
        rig.broker(&answer);
        let seen = rig.take_down();
        assert_eq!(numbers(&seen, Version::V5, Server)[..3], expected);
        assert_eq!(seen == answer, untouched);
    }
}

#[test]
fn keep_alive_is_lowered_for_version_5_and_the_servers_word_counts() {
    let limits = "    limits: {keep_alive_max: 100s}";
    for (asked, server, told, effective) in [
        (60, None, None, 60),
        (200, None, Some(100), 100),
        (0, None, Some(100), 100),
        (60, Some(30), Some(30), 30),
        (60, Some(300), Some(100), 100),
        (60, Some(0), Some(100), 100),
    ] {
        let mut request = connect(Version::V5, "dev");
        request.keep_alive_secs = asked;
        let mut rig = Rig::dialled(Version::V5, &document(limits, RULES), &request);
        let list: Vec<_> = server
            .map(|secs| Property::Number(PropertyId::ServerKeepAlive, secs))
            .into_iter()
            .collect();
        rig.broker(&connack(Version::V5, 0, &list));
        let seen = rig.take_down();
        let server = sluice_wire::mqtt::Side::Server;
        assert_eq!(numbers(&seen, Version::V5, server)[3], told);
        rig.passes(Duration::from_secs(effective * 3 / 2 - 1));
        assert_eq!(rig.ended(), None, "{asked} {told:?}");
        rig.passes(Duration::from_secs(1));
        assert_eq!(rig.ended(), Some(Cause::KeepAlive), "{asked} {told:?}");
    }
}

#[test]
fn m12_a_connect_with_properties_keeps_all_that_is_not_ours() {
    let list = [
        Property::Number(PropertyId::SessionExpiryInterval, 3600),
        Property::Pair("key", "value"),
        Property::Number(PropertyId::RequestProblemInformation, 1),
        Property::Pair("key", "again"),
    ];
    let buffer = properties(&list);
    let mut request = connect(Version::V5, "dev");
    request.properties = buffer.view();
    let mut rig = Rig::dialled(Version::V5, &document("", RULES), &request);
    let sent = rig.take_up();
    let seen: Vec<_> = decode_connect(&sent).unwrap().properties.iter().collect();
    assert_eq!(seen[..4], list);
}

#[test]
fn m12_enhanced_authentication_is_refused_or_left_to_the_upstream() {
    let list = properties(&[Property::Text(PropertyId::AuthenticationMethod, "SCRAM")]);
    let mut request = connect(Version::V5, "dev");
    request.properties = list.view();
    let mut rig = Rig::new(&document("", RULES));
    rig.client(&bytes(Version::V5, &Packet::Connect(request.clone())));
    check_refused(&mut rig, Version::V5, Cause::Refused, 5, 0x8c, "refused");

    let pass = document("    upstream_auth: pass", RULES);
    let mut rig = Rig::dialled(Version::V5, &pass, &request);
    rig.clear();
    let step = bytes(
        Version::V5,
        &Packet::Auth(Auth {
            code: 0x18,
            properties: list.view(),
        }),
    );
    rig.broker(&step);
    rig.expect(&step, &[], "challenge");
    rig.client(&step);
    rig.expect(&[], &step, "response");
    let mut early = Rig::dialled(Version::V5, &pass, &request);
    early.clear();
    early.client(&bytes(
        Version::V5,
        &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, b"x")),
    ));
    assert!(matches!(early.ended(), Some(Cause::Violation(_))));
    rig.broker(&connack(Version::V5, 0, &[]));
    assert!(rig.session.is_open());
    rig.clear();
    rig.client(&step);
    rig.expect(&[], &step, "authentication anew");

    let mut plain = Rig::open(Version::V5);
    plain.client(&step);
    plain.expect(&[0xe0, 1, 0x82], &[], "never negotiated");
}

#[test]
fn m14_a_declared_length_above_the_limit_is_refused_before_it_comes() {
    let mut rig = Rig::new(&document("", RULES));
    rig.client(&[0x10, 0xff, 0xff, 0xff, 0x7f]);
    assert!(matches!(rig.ended(), Some(Cause::Violation(_))));
    // As soon as the version can be seen, a client of version 5 is told.
    let mut long = connect(Version::V5, "dev");
    let password = vec![0; 65_535];
    (long.username, long.password) = (Some("alice"), Some(&password[..]));
    for (version, told) in [
        (Version::V311, vec![]),
        (Version::V5, vec![0x20, 3, 0, 0x95, 0]),
    ] {
        long.version = version;
        let sent = bytes(version, &Packet::Connect(long.clone()));
        let mut rig = Rig::new(&document("", RULES));
        rig.client(&sent[..20]);
        rig.expect(&told, &[], "CONNECT of 65 KiB");
        assert!(matches!(rig.ended(), Some(Cause::Violation(_))));
    }
    for (version, told) in [(Version::V311, vec![]), (Version::V5, vec![0xe0, 1, 0x95])] {
        let mut rig = Rig::open(version);
        rig.client(&[0x30, 0xff, 0xff, 0xff, 0x7f]);
        rig.expect(&told, &[], "PUBLISH of 256 MiB");
        assert!(matches!(rig.ended(), Some(Cause::Violation(_))));
    }
}

#[test]
fn m15_a_silent_client_costs_no_upstream() {
    let limits = "    limits: {connect_timeout: 5s}";
    for sent in [&b""[..], &[0x10], &[0x10, 20, 0, 4]] {
        let mut rig = Rig::new(&document(limits, RULES));
        rig.client(sent);
        rig.passes(Duration::from_millis(4_999));
        assert_eq!(rig.ended(), None);
        rig.passes(Duration::from_millis(1));
        rig.expect(&[], &[], "nothing to say");
        assert_eq!(rig.events, [Event::Close(Cause::ConnectTimeout)]);
    }
}

#[test]
fn a_client_that_goes_while_it_waits_costs_no_upstream() {
    let mut rig = Rig::new(&document("", RULES));
    let request = Connect {
        username: Some("alice"),
        password: Some(b"right"),
        ..connect(Version::V311, "dev")
    };
    rig.client(&bytes(Version::V311, &Packet::Connect(request)));
    rig.closed(Side::Downstream);
    assert_eq!(rig.ended(), Some(Cause::ClientGone));
    rig.authenticated(AuthOutcome::Verified);
    rig.dialled_now(true);
    rig.expect(&[], &[], "nothing more");
}

#[test]
fn a_client_that_sends_all_in_one_go_and_leaves_is_served() {
    for version in VERSIONS {
        let message = bytes(
            version,
            &Packet::Publish(publish("open/a", QoS::AtMostOnce, 0, b"reading")),
        );
        for ending in [disconnect(version, 0), vec![]] {
            let mut rig = Rig::new(&document("", RULES));
            let hello = bytes(version, &Packet::Connect(connect(version, "dev")));
            rig.client(&[&hello[..], &message, &ending].concat());
            rig.closed(Side::Downstream);
            assert_eq!(rig.events, [Event::Dial]);
            rig.dialled_now(true);
            rig.take_up();
            rig.closed(Side::Downstream);
            rig.broker(&connack(version, 0, &[]));
            assert_eq!(rig.take_up(), [&message[..], &ending].concat());
            let cause = if ending.is_empty() {
                Cause::ClientGone
            } else {
                Cause::ClientDisconnect
            };
            assert_eq!(rig.ended(), Some(cause));
        }
    }
}

#[test]
fn m13_bytes_one_at_a_time_make_the_same_session() {
    for version in VERSIONS {
        let mut rig = Rig::new(&document("", RULES));
        let sent = bytes(version, &Packet::Connect(connect(version, "dev")));
        for byte in &sent {
            rig.client(&[*byte]);
        }
        assert_eq!(rig.events, [Event::Dial]);
        rig.dialled_now(true);
        rig.take_up();
        for byte in connack(version, 0, &[]) {
            rig.broker(&[byte]);
        }
        assert!(rig.session.is_open());
        rig.clear();
        let packet = publish("open/a", QoS::ExactlyOnce, 7, b"payload");
        let message = bytes(
            version,
            &Packet::Publish(Publish {
                retain: true,
                ..packet
            }),
        );
        for byte in &message {
            rig.client(&[*byte]);
        }
        rig.expect(&[], &message, "up");
        for byte in &message {
            rig.broker(&[*byte]);
        }
        rig.expect(&message, &[], "down");
        rig.client(&disconnect(version, 0));
        rig.expect(&[], &disconnect(version, 0), "DISCONNECT");
        assert_eq!(rig.ended(), Some(Cause::ClientDisconnect));
    }
}

#[test]
fn an_idle_session_holds_next_to_no_memory() {
    let client_id = "a-client-id-of-twent";
    let mut rig = Rig::open_with(
        Version::V311,
        &document("", RULES),
        &connect(Version::V311, client_id),
    );
    assert_eq!(rig.session.heap_bytes(), client_id.len());
    // Neither traffic nor what was absorbed leaves anything behind but the ruling on the last topic.
    const RULING_BYTES: usize = 128;
    for byte in bytes(
        Version::V311,
        &Packet::Publish(publish("low1/a", QoS::ExactlyOnce, 9, b"payload")),
    ) {
        rig.client(&[byte]);
    }
    assert!(rig.session.heap_bytes() > client_id.len() + RULING_BYTES);
    rig.broker(&[0x40, 2, 0, 9]);
    rig.client(&[0x62, 2, 0, 9]);
    rig.client(&[0xc0, 0]);
    rig.broker(&[0xd0, 0]);
    rig.client(&[]);
    assert_eq!(rig.session.heap_bytes(), client_id.len() + RULING_BYTES);
}
