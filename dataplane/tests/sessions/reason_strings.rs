//! Reason Strings: who hears which words, and where none are said.

use sluice_dataplane::session::{AuthOutcome, Cause};
use sluice_wire::mqtt::{
    self, Ack, Connect, Disconnect, Packet, Property, PropertyId, Publish, QoS, Suback, Version,
    decode,
};

use crate::harness::{
    RULES, Rig, ack, bytes, connack, connect, document, id, properties, publish, suback, subscribe,
};

const OFF: &str = "";
const SHORT: &str = "    reason_strings: short";
const RULE: &str = "    reason_strings: rule";
/// Bytes that a Reason String takes besides its text, in a packet with a code and no other properties.
const OVERHEAD: usize = 1 + 3;

/// Rules beside those of the harness.
const NAMED: &str = r##"
  - {name: "no secrets", actions: [publish, subscribe], topics: ["secret/#"], decision: deny}
"##;

fn rules() -> String {
    format!("{RULES}{NAMED}")
}

fn open(listener: &str, connect: &Connect<'_>) -> Rig {
    Rig::open_with(Version::V5, &document(listener, &rules()), connect)
}

fn rig(listener: &str) -> Rig {
    open(listener, &connect(Version::V5, "dev"))
}

/// The one packet that was written to the client: its kind, first code and Reason String.
fn said(rig: &mut Rig) -> (&'static str, u8, Option<String>) {
    let written = rig.take_down();
    let packet = decode(Version::V5, mqtt::Side::Server, &written)
        .unwrap_or_else(|violation| panic!("{violation:?} {written:?}"));
    let (kind, code, properties) = match packet {
        Packet::Connack(connack) => ("CONNACK", connack.code, connack.properties),
        Packet::Puback(ack) => ("PUBACK", ack.code, ack.properties),
        Packet::Pubrec(ack) => ("PUBREC", ack.code, ack.properties),
        Packet::Suback(suback) => ("SUBACK", suback.codes[0], suback.properties),
        Packet::Disconnect(disconnect) => ("DISCONNECT", disconnect.code, disconnect.properties),
        other => panic!("{other:?}"),
    };
    let text = properties.text(PropertyId::ReasonString);
    (kind, code, text.map(str::to_owned))
}

fn message<'a>(topic: &'a str, qos: QoS) -> Publish<'a> {
    publish(topic, qos, 7, b"12345")
}

fn put(rig: &mut Rig, publish: Publish<'_>) {
    rig.client(&bytes(Version::V5, &Packet::Publish(publish)));
}

#[test]
fn a_refused_message_is_answered_in_as_many_words_as_the_listener_gives() {
    let retained = |topic| Publish {
        retain: true,
        ..message(topic, QoS::AtLeastOnce)
    };
    let table = [
        (
            message("secret/x", QoS::AtLeastOnce),
            "not authorized",
            "denied by rule `no secrets`",
        ),
        (
            message("none/x", QoS::AtLeastOnce),
            "not authorized",
            "no rule allows it",
        ),
        (
            message("none/x", QoS::ExactlyOnce),
            "not authorized",
            "no rule allows it",
        ),
        (
            retained("bare/x"),
            "retained messages are not allowed here",
            "rule `bare` allows no retained messages",
        ),
        (
            message("strict1/x", QoS::ExactlyOnce),
            "this QoS is not allowed here",
            "rule `strict1` does not allow this QoS",
        ),
        (
            message("small/x", QoS::AtLeastOnce),
            "the payload is too large",
            "the payload is larger than rule `small` allows",
        ),
    ];
    for (publish, short, rule) in table {
        let kind = match publish.qos {
            QoS::ExactlyOnce => "PUBREC",
            QoS::AtMostOnce | QoS::AtLeastOnce => "PUBACK",
        };
        for (listener, text) in [(OFF, None), (SHORT, Some(short)), (RULE, Some(rule))] {
            let mut rig = rig(listener);
            put(&mut rig, publish.clone());
            let expected = (kind, 0x87, text.map(str::to_owned));
            assert_eq!(said(&mut rig), expected, "{}", publish.topic);
        }
    }
}

#[test]
fn a_session_that_is_closed_for_a_message_hears_why() {
    for (listener, text) in [
        (OFF, None),
        (SHORT, Some("not authorized")),
        (RULE, Some("denied by rule `closing`")),
    ] {
        let mut rig = rig(listener);
        put(&mut rig, message("closing/x", QoS::AtMostOnce));
        let expected = ("DISCONNECT", 0x87, text.map(str::to_owned));
        assert_eq!(said(&mut rig), expected);
        assert_eq!(rig.ended(), Some(Cause::Denied));
    }
}

/// An answer that waits for its turn says the same; a rule that a later policy numbers otherwise is not named.
#[test]
fn an_answer_that_waits_keeps_its_reason() {
    for (is_reloaded, text) in [
        (false, "denied by rule `no secrets`"),
        (true, "not authorized"),
    ] {
        let mut rig = rig(RULE);
        for (topic, number) in [("open/x", 1), ("secret/x", 2), ("open/x", 3)] {
            put(&mut rig, publish(topic, QoS::AtLeastOnce, number, b"x"));
        }
        assert!(rig.take_down().is_empty(), "the broker answers first");
        if is_reloaded {
            rig.applies(&document(RULE, &rules().replace("low1", "renamed")));
        }
        let passes = bytes(Version::V5, &Packet::Puback(ack(1, 0)));
        rig.broker(&passes);
        let written = rig.take_down();
        assert!(written.starts_with(&passes), "{written:?}");
        let list = properties(&[Property::Text(PropertyId::ReasonString, text)]);
        let ours = Packet::Puback(Ack {
            packet_id: id(2),
            code: 0x87,
            properties: list.view(),
        });
        assert_eq!(written[passes.len()..], bytes(Version::V5, &ours));
    }
}

/// What was kept for a message is not said of a later one with its identifier.
#[test]
fn a_reason_goes_with_its_message() {
    let mut rig = rig(RULE);
    put(&mut rig, publish("open/x", QoS::ExactlyOnce, 1, b"x"));
    put(&mut rig, publish("secret/x", QoS::ExactlyOnce, 2, b"x"));
    rig.client(&bytes(Version::V5, &Packet::Pubrel(ack(2, 0))));
    rig.clear();
    put(&mut rig, publish("low1/x", QoS::ExactlyOnce, 2, b"x"));
    rig.clear();
    rig.broker(&bytes(Version::V5, &Packet::Puback(ack(2, 0x97))));
    rig.broker(&bytes(Version::V5, &Packet::Pubrec(ack(1, 0))));
    let first = bytes(Version::V5, &Packet::Pubrec(ack(1, 0)));
    let second = bytes(Version::V5, &Packet::Pubrec(ack(2, 0x97)));
    assert_eq!(rig.take_down(), [first, second].concat());
}

#[test]
fn refused_filters_are_spoken_of_together() {
    let qos = QoS::AtMostOnce;
    let table: [(&[&str], Option<&str>, &str); 4] = [
        (
            &["secret/#", "secret/x"],
            Some("not authorized"),
            "denied by rule `no secrets`",
        ),
        (&["none/#"], Some("not authorized"), "no rule allows it"),
        (
            &["open/a", "secret/#", "none/#", "secret/x"],
            Some("not authorized"),
            "filter 2: denied by rule `no secrets`; filter 3: no rule allows it",
        ),
        (&["open/a"], None, ""),
    ];
    for (filters, short, rule) in table {
        for (listener, text) in [(OFF, None), (SHORT, short), (RULE, short.map(|_| rule))] {
            let mut rig = rig(listener);
            let filters: Vec<(&str, QoS)> = filters.iter().map(|name| (*name, qos)).collect();
            rig.client(&subscribe(Version::V5, 5, &filters));
            let asked = filters.iter().filter(|(name, _)| *name == "open/a").count();
            if asked > 0 {
                rig.broker(&suback(Version::V5, 5, &[0]));
            }
            let (kind, _, found) = said(&mut rig);
            assert_eq!((kind, found.as_deref()), ("SUBACK", text), "{filters:?}");
        }
    }
    // As many reasons as are told, and that there are others.
    let names: Vec<String> = (0..5).map(|index| format!("deny{index}")).collect();
    let deny = |name: &String| {
        format!("  - {{name: {name}, actions: [subscribe], topics: [{name}], decision: deny}}\n")
    };
    let denies: String = names.iter().map(deny).collect();
    let text = document(RULE, &format!("{RULES}{denies}"));
    let mut rig = Rig::open_with(Version::V5, &text, &connect(Version::V5, "dev"));
    let filters: Vec<(&str, QoS)> = names.iter().map(|name| (name.as_str(), qos)).collect();
    rig.client(&subscribe(Version::V5, 5, &filters));
    let expected = "filter 1: denied by rule `deny0`; filter 2: denied by rule `deny1`; filter 3: denied by rule `deny2`; and others";
    assert_eq!(said(&mut rig).2.as_deref(), Some(expected));
}

#[test]
fn the_brokers_words_stay_where_we_have_none() {
    let qos = QoS::AtMostOnce;
    for (listener, text) in [(OFF, "its own"), (SHORT, "not authorized")] {
        let mut rig = rig(listener);
        rig.client(&subscribe(
            Version::V5,
            5,
            &[("open/a", qos), ("secret/#", qos)],
        ));
        let list = properties(&[
            Property::Text(PropertyId::ReasonString, "its own"),
            Property::Pair("key", "value"),
        ]);
        let answer = |codes| Suback {
            packet_id: id(5),
            properties: list.view(),
            codes,
        };
        rig.broker(&bytes(Version::V5, &Packet::Suback(answer(&[0]))));
        let written = rig.take_down();
        let decoded = decode(Version::V5, mqtt::Side::Server, &written);
        let Ok(Packet::Suback(suback)) = decoded else {
            panic!("{decoded:?}");
        };
        assert_eq!(suback.codes, [0, 0x87]);
        let found: Vec<Property<'_>> = suback.properties.iter().collect();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&Property::Text(PropertyId::ReasonString, text)));
        assert!(found.contains(&Property::Pair("key", "value")));
    }
}

/// [MQTT-3.1.2-29]: CONNACK and DISCONNECT may have one all the same.
#[test]
fn a_client_that_wants_no_problem_information_has_none_in_acknowledgements() {
    let list = properties(&[Property::Number(PropertyId::RequestProblemInformation, 0)]);
    let quiet = Connect {
        properties: list.view(),
        ..connect(Version::V5, "dev")
    };
    let mut rig = open(RULE, &quiet);
    put(&mut rig, message("secret/x", QoS::AtLeastOnce));
    assert_eq!(said(&mut rig), ("PUBACK", 0x87, None));
    put(&mut rig, message("secret/x", QoS::ExactlyOnce));
    assert_eq!(said(&mut rig), ("PUBREC", 0x87, None));
    rig.client(&subscribe(Version::V5, 5, &[("secret/#", QoS::AtMostOnce)]));
    assert_eq!(said(&mut rig), ("SUBACK", 0x87, None));
    put(&mut rig, message("closing/x", QoS::AtMostOnce));
    let text = Some("denied by rule `closing`".to_owned());
    assert_eq!(said(&mut rig), ("DISCONNECT", 0x87, text));
}

/// [MQTT-3.4.2-2] and its kind: at the last length that has room for it, and one byte below.
#[test]
fn no_reason_makes_a_packet_longer_than_the_client_takes() {
    let text = "denied by rule `no secrets`";
    let puback = 2 + 3 + OVERHEAD + text.len();
    let closing = "denied by rule `closing`";
    let disconnect = 2 + 1 + OVERHEAD + closing.len();
    for (max, expected) in [(puback, Some(text)), (puback - 1, None)] {
        let list = properties(&[Property::Number(PropertyId::MaximumPacketSize, max as u32)]);
        let small = Connect {
            properties: list.view(),
            ..connect(Version::V5, "dev")
        };
        let mut rig = open(RULE, &small);
        put(&mut rig, message("secret/x", QoS::AtLeastOnce));
        assert_eq!(said(&mut rig).2.as_deref(), expected);
        // SUBACK has the same length: an identifier, one code, the property length.
        rig.client(&subscribe(Version::V5, 5, &[("secret/#", QoS::AtMostOnce)]));
        assert_eq!(said(&mut rig).2.as_deref(), expected);
    }
    for (max, expected) in [(disconnect, Some(closing)), (disconnect - 1, None)] {
        let list = properties(&[Property::Number(PropertyId::MaximumPacketSize, max as u32)]);
        let small = Connect {
            properties: list.view(),
            ..connect(Version::V5, "dev")
        };
        let mut rig = open(RULE, &small);
        put(&mut rig, message("closing/x", QoS::AtMostOnce));
        assert_eq!(said(&mut rig).2.as_deref(), expected);
    }
}

/// A stranger learns neither whether the user is there, nor which rule refuses it.
#[test]
fn before_a_session_is_open_no_rule_is_named() {
    let wrong = "the user name or the password is wrong";
    for listener in [SHORT, RULE] {
        for name in ["alice", "bob", "nobody"] {
            let mut rig = Rig::new(&document(listener, &rules()));
            let login = Connect {
                username: Some(name),
                password: Some(b"x"),
                ..connect(Version::V5, "dev")
            };
            rig.client(&bytes(Version::V5, &Packet::Connect(login)));
            rig.authenticated(AuthOutcome::Refused);
            assert_eq!(
                said(&mut rig),
                ("CONNACK", 0x86, Some(wrong.into())),
                "{name}"
            );
        }
        let refusing = rules().replace(
            "{name: connect, actions: [connect], decision: allow}",
            "{name: closed, actions: [connect], decision: deny}",
        );
        let mut rig = Rig::new(&document(listener, &refusing));
        let plain = connect(Version::V5, "dev");
        rig.client(&bytes(Version::V5, &Packet::Connect(plain)));
        let text = Some("not authorized".to_owned());
        assert_eq!(said(&mut rig), ("CONNACK", 0x87, text));
    }
}

#[test]
fn older_versions_and_what_passes_are_as_they_were() {
    for version in [Version::V31, Version::V311] {
        let mut rig = Rig::open_with(version, &document(RULE, &rules()), &connect(version, "dev"));
        let refused = message("secret/x", QoS::AtLeastOnce);
        rig.client(&bytes(version, &Packet::Publish(refused)));
        let plain = bytes(version, &Packet::Puback(ack(7, 0)));
        rig.expect(&plain, &[], "no words");
    }
    let mut rig = rig(RULE);
    let allowed = bytes(
        Version::V5,
        &Packet::Publish(message("open/x", QoS::AtLeastOnce)),
    );
    rig.client(&allowed);
    rig.expect(&[], &allowed, "forwarded");
    let answer = bytes(Version::V5, &Packet::Puback(ack(7, 0x10)));
    rig.broker(&answer);
    rig.expect(&answer, &[], "the broker's answer");
    rig.end(Cause::Drained);
    let text = Some("the server is shutting down".to_owned());
    assert_eq!(said(&mut rig), ("DISCONNECT", 0x8b, text));
}

#[test]
fn a_broken_clause_is_named() {
    let mut rig = Rig::dialled(
        Version::V5,
        &document(SHORT, &rules()),
        &connect(Version::V5, "dev"),
    );
    rig.broker(&connack(Version::V5, 0, &[]));
    rig.clear();
    let raised = properties(&[Property::Number(PropertyId::SessionExpiryInterval, 5)]);
    let disconnect = Packet::Disconnect(Disconnect {
        code: 0,
        properties: raised.view(),
    });
    rig.client(&bytes(Version::V5, &disconnect));
    let (kind, code, text) = said(&mut rig);
    assert_eq!((kind, code), ("DISCONNECT", 0x82));
    let text = text.expect("it is told");
    assert!(text.starts_with("SessionExpiryRaised ["), "{text}");
}
