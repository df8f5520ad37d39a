//! Each refusal is told once, with who it was, what was wanted and why.

use std::time::Duration;

use sluice_dataplane::session::{Act, AuthOutcome, Cause, Dialled, Reason, Side};
use sluice_wire::mqtt::{Connect, Packet, QoS, Version, Violation};

use super::harness::*;

/// The only refusal so far.
#[track_caller]
fn only(rig: &Rig) -> Denied {
    assert_eq!(rig.denials.len(), 1, "{:?}", rig.denials);
    rig.denials[0].clone()
}

#[track_caller]
fn is_told(rig: &Rig, act: Act, reason: Reason, rule: Option<&str>) {
    let told = only(rig);
    assert_eq!(
        (told.act, told.reason, told.rule.as_deref()),
        (act, reason, rule)
    );
}

fn connected(document: &str, connect: &Connect<'_>) -> Rig {
    let mut rig = Rig::new(document);
    rig.version = connect.version;
    rig.client(&bytes(connect.version, &Packet::Connect(connect.clone())));
    rig
}

#[test]
fn refused_messages() {
    let cases: [(&str, QoS, bool, &[u8], Reason, Option<&str>); 6] = [
        (
            "nowhere",
            QoS::AtMostOnce,
            false,
            b"xyz",
            Reason::NoRule,
            None,
        ),
        (
            "closing/x",
            QoS::AtMostOnce,
            false,
            b"",
            Reason::DeniedByRule,
            Some("closing"),
        ),
        (
            "bare/x",
            QoS::AtMostOnce,
            true,
            b"x",
            Reason::RetainRefused,
            Some("bare"),
        ),
        (
            "strict1/x",
            QoS::ExactlyOnce,
            false,
            b"x",
            Reason::QosRefused,
            Some("strict1"),
        ),
        (
            "small/x",
            QoS::AtLeastOnce,
            false,
            b"12345",
            Reason::PayloadTooLarge,
            Some("small"),
        ),
        ("open/x", QoS::AtMostOnce, false, b"x", Reason::NoRule, None),
    ];
    for (topic, qos, retain, payload, reason, rule) in cases {
        let mut rig = Rig::open(Version::V5);
        let mut message = publish(topic, qos, 1, payload);
        message.retain = retain;
        rig.client_sends(&Packet::Publish(message));
        if topic == "open/x" {
            assert_eq!(rig.denials, [], "an allowed one is not told");
            continue;
        }
        is_told(&rig, Act::Publish, reason, rule);
        let told = only(&rig);
        assert_eq!((&*told.topic, &*told.client_id), (topic, "dev"));
        let payload_bytes = u32::try_from(payload.len()).unwrap();
        assert_eq!(told.message, (Some(qos), retain, Some(payload_bytes)));
    }
}

#[test]
fn refused_filters_and_deliveries() {
    let mut rig = Rig::open(Version::V5);
    rig.client(&subscribe(
        Version::V5,
        1,
        &[("open/a", QoS::AtMostOnce), ("shut/a", QoS::AtLeastOnce)],
    ));
    is_told(&rig, Act::Subscribe, Reason::NoRule, None);
    let told = only(&rig);
    assert_eq!(
        (&*told.topic, told.message.0),
        ("shut/a", Some(QoS::AtLeastOnce))
    );

    rig.clear();
    let message = publish("wide/hidden", QoS::AtMostOnce, 0, b"x");
    rig.broker_sends(&Packet::Publish(message));
    is_told(&rig, Act::Receive, Reason::DeniedByRule, Some("hidden"));
}

#[test]
fn a_delivery_longer_than_the_client_takes() {
    let mut connect = connect(Version::V5, "dev");
    let list = properties(&[sluice_wire::mqtt::Property::Number(
        sluice_wire::mqtt::PropertyId::MaximumPacketSize,
        64,
    )]);
    connect.properties = list.view();
    let mut rig = Rig::open_with(Version::V5, &document("", RULES), &connect);
    let message = publish("open/x", QoS::AtMostOnce, 0, &[0; 100]);
    rig.broker_sends(&Packet::Publish(message));
    is_told(&rig, Act::Receive, Reason::DeliveryTooLarge, None);
}

#[test]
fn refused_connects() {
    let refuse_all = "rules: [{name: shut, actions: [connect], decision: deny}]";
    let plain = connect(Version::V311, "dev");
    let mut rig = connected(&document("", refuse_all), &plain);
    is_told(&rig, Act::Connect, Reason::DeniedByRule, Some("shut"));
    assert_eq!(rig.ended(), Some(Cause::Denied));

    rig = connected(&document("", "rules: []"), &plain);
    is_told(&rig, Act::Connect, Reason::NoRule, None);

    rig = connected(&document("    client_id: {pattern: 'x.*'}", RULES), &plain);
    is_told(&rig, Act::Connect, Reason::ClientId, None);
    assert_eq!(only(&rig).client_id, "dev");

    rig = connected(&document("    versions: ['5']", RULES), &plain);
    is_told(&rig, Act::Connect, Reason::Version, None);
    assert_eq!(only(&rig).client_id, "dev");

    let anonymous_off = document("", RULES).replace("    anonymous: {group: guests}\n", "");
    rig = connected(&anonymous_off, &plain);
    is_told(&rig, Act::Connect, Reason::UserMissing, None);

    let with_will = Connect {
        will: Some(will("shut/will", QoS::AtLeastOnce, true, b"gone")),
        ..plain
    };
    rig = connected(&document("", RULES), &with_will);
    is_told(&rig, Act::Will, Reason::NoRule, None);
    let told = only(&rig);
    assert_eq!(
        (&*told.topic, told.message),
        ("shut/will", (Some(QoS::AtLeastOnce), true, Some(4)))
    );
}

#[test]
fn failed_logins() {
    let cases: [(&str, Option<&[u8]>, AuthOutcome, Reason); 4] = [
        (
            "alice",
            Some(b"wrong"),
            AuthOutcome::Refused,
            Reason::PasswordWrong,
        ),
        ("alice", None, AuthOutcome::Refused, Reason::PasswordMissing),
        ("bob", Some(b"x"), AuthOutcome::Refused, Reason::UserUnknown),
        (
            "alice",
            Some(b"right"),
            AuthOutcome::Busy,
            Reason::PasswordBusy,
        ),
    ];
    for (name, password, outcome, reason) in cases {
        for version in [Version::V311, Version::V5] {
            if password.is_none() && version == Version::V311 {
                continue;
            }
            let connect = Connect {
                username: Some(name),
                password,
                ..connect(version, "dev")
            };
            let mut rig = connected(&document("", RULES), &connect);
            rig.authenticated(outcome);
            is_told(&rig, Act::Connect, reason, None);
            let told = only(&rig);
            assert_eq!(
                (&*told.user, &*told.client_id),
                (&*format!("?{name}"), "dev")
            );
        }
    }
    // From then on it is known who it is.
    let alice = Connect {
        username: Some("alice"),
        password: Some(b"right"),
        ..connect(Version::V5, "dev")
    };
    let mut rig = Rig::open_with(Version::V5, &document("", RULES), &alice);
    rig.client_sends(&Packet::Publish(publish("shut", QoS::AtMostOnce, 0, b"x")));
    assert_eq!(only(&rig).user, "=alice");
}

#[test]
fn what_is_no_mqtt_is_called_what_it_is() {
    let cases: [(&[u8], Reason); 5] = [
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", Reason::Tls),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Reason::Http),
        (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            Reason::ProxyHeader,
        ),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Reason::ProxyHeader),
        (
            b"\xe0\0",
            Reason::Violation(Violation::FirstPacketNotConnect),
        ),
    ];
    for (sent, reason) in cases {
        let mut rig = Rig::new(&document("", RULES));
        rig.client(sent);
        is_told(&rig, Act::Connect, reason, None);
        assert!(rig.take_down().is_empty());
    }
}

/// What the shard, the clock or the broker ends is a refusal when the client did not leave, was not silent and had not lost
/// its broker.
#[test]
fn ends_that_are_refusals() {
    let ends: [(Cause, Option<Reason>); 5] = [
        (Cause::Kicked, Some(Reason::Kicked)),
        (Cause::Overload, Some(Reason::Overload)),
        (Cause::WriteStall, Some(Reason::WriteStall)),
        (Cause::Drained, None),
        (Cause::KeepAlive, None),
    ];
    for (cause, reason) in ends {
        let mut rig = Rig::open(Version::V5);
        rig.end(cause);
        match reason {
            Some(reason) => is_told(&rig, Act::Session, reason, None),
            None => assert_eq!(rig.denials, []),
        }
    }
    let mut rig = Rig::open(Version::V5);
    rig.closed(Side::Downstream);
    assert_eq!(rig.denials, []);

    let mut rig = Rig::new(&document("", RULES));
    rig.passes(Duration::from_secs(3600));
    is_told(&rig, Act::Connect, Reason::ConnectTimeout, None);

    let mut rig = connected(&document("", RULES), &connect(Version::V5, "dev"));
    rig.dialled_as(Dialled::Failed);
    is_told(&rig, Act::Connect, Reason::UpstreamUnavailable, None);

    let mut rig = Rig::dialled(
        Version::V5,
        &document("", RULES),
        &connect(Version::V5, "dev"),
    );
    rig.broker(&connack(Version::V5, 0x87, &[]));
    is_told(&rig, Act::Connect, Reason::UpstreamRefused, None);

    let mut rig = Rig::open(Version::V5);
    rig.applies(&document("", "rules: []"));
    rig.sweeps();
    is_told(&rig, Act::Connect, Reason::NoRule, None);
}
