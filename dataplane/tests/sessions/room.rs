//! What the client takes at most, and what it may say last: its Maximum Packet Size binds every packet that comes from
//! here [MQTT-3.1.2-24], and a DISCONNECT that breaks a rule is answered here.

use sluice_dataplane::session::{Cause, Side};
use sluice_wire::mqtt::{
    Connect, Disconnect, Packet, Properties, Property, PropertyId, QoS, Suback, Version, Violation,
};

use crate::harness::{
    Event, RULES, Rig, bytes, connack, connect, disconnect, document, id, properties, publish,
    suback, subscribe, will,
};

/// A CONNECT of a client that takes packets of so many bytes.
fn with_room<'a>(list: Properties<'a>) -> Connect<'a> {
    Connect {
        properties: list,
        ..connect(Version::V5, "dev")
    }
}

fn room(bytes: u32) -> sluice_wire::mqtt::PropertiesBuf {
    properties(&[Property::Number(PropertyId::MaximumPacketSize, bytes)])
}

#[test]
fn a_client_that_takes_no_connack_gets_none_and_costs_no_upstream() {
    for bytes_max in [1, 2, 4] {
        let mut rig = Rig::new(&document("", RULES));
        let list = room(bytes_max);
        rig.client(&bytes(
            Version::V5,
            &Packet::Connect(with_room(list.view())),
        ));
        rig.expect(&[], &[], "nothing fits");
        assert_eq!(rig.events, [Event::Close(Cause::ClientNoRoom)]);
    }
    // A refusal of five bytes fits in five.
    let mut rig = Rig::new(&document("    client_id: {pattern: \"[0-9]+\"}", RULES));
    let list = room(5);
    rig.client(&bytes(
        Version::V5,
        &Packet::Connect(with_room(list.view())),
    ));
    rig.expect(&[0x20, 3, 0, 0x85, 0], &[], "refused");
}

#[test]
fn a_connack_loses_what_it_may_and_no_more() {
    let told = [
        Property::Text(PropertyId::ReasonString, "welcome"),
        Property::Pair("k", "v"),
        Property::Number(PropertyId::ReceiveMaximum, 5),
        Property::Number(PropertyId::MaximumPacketSize, 1000),
    ];
    let full = connack(Version::V5, 0, &told);
    let slim = connack(Version::V5, 0, &told[2..]);
    let last = u32::try_from(full.len()).unwrap();
    let least = u32::try_from(slim.len()).unwrap();
    for (bytes_max, expected) in [
        (last, Some(&full)),
        (last - 1, Some(&slim)),
        (least, Some(&slim)),
        (least - 1, None),
    ] {
        let list = room(bytes_max);
        let mut rig = Rig::dialled(Version::V5, &document("", RULES), &with_room(list.view()));
        rig.clear();
        rig.broker(&full);
        match expected {
            Some(expected) => {
                rig.expect(expected, &[], "told");
                assert!(rig.session.is_open());
            }
            None => {
                // A refusal still fits where the answer did not.
                rig.expect(&[0x20, 3, 0, 0x95, 0], &[], "not told");
                assert_eq!(rig.ended(), Some(Cause::ClientNoRoom));
            }
        }
    }
}

#[test]
fn limits_that_we_add_to_a_connack_count() {
    // The broker's is five bytes, and our limits make it longer.
    let list = room(10);
    let mut rig = Rig::dialled(Version::V5, &document("", RULES), &with_room(list.view()));
    rig.clear();
    rig.broker(&connack(Version::V5, 0, &[]));
    rig.expect(&[0x20, 3, 0, 0x95, 0], &[], "too long with ours");
    assert_eq!(rig.ended(), Some(Cause::ClientNoRoom));
}

/// An open session whose client takes packets of so many bytes.
fn open(bytes_max: u32) -> Rig {
    let list = room(bytes_max);
    Rig::open_with(Version::V5, &document("", RULES), &with_room(list.view()))
}

#[test]
fn a_suback_that_is_too_long_is_not_sent() {
    let filters = vec![("secret/a", QoS::AtMostOnce); 30];
    let answer = suback(Version::V5, 3, &[0x87; 30]);
    assert_eq!(answer.len(), 35);
    // Judged at once, and in slices.
    for share in [u32::MAX, 10] {
        let answered = |bytes_max| {
            let mut rig = open(bytes_max);
            rig.share = share;
            rig.client(&subscribe(Version::V5, 3, &filters));
            while rig.events.last() == Some(&Event::Later) {
                rig.goes_on();
            }
            rig
        };
        answered(35).expect(&answer, &[], "ours");
        let mut rig = answered(34);
        rig.expect(&[0xe0, 1, 0x95], &[], "ours");
        assert_eq!(rig.ended(), Some(Cause::ClientNoRoom));
    }
}

#[test]
fn a_merged_suback_loses_its_reason_string() {
    let mut filters = vec![("secret/a", QoS::AtMostOnce); 20];
    filters.push(("open/a", QoS::AtMostOnce));
    let list = properties(&[Property::Text(PropertyId::ReasonString, "granted")]);
    let answer = Packet::Suback(Suback {
        packet_id: id(3),
        properties: list.view(),
        codes: &[0],
    });
    let codes = [&[0x87; 20][..], &[0]].concat();
    let told = suback(Version::V5, 3, &codes);
    let mut rig = open(u32::try_from(told.len()).unwrap());
    rig.client(&subscribe(Version::V5, 3, &filters));
    rig.clear();
    rig.broker_sends(&answer);
    rig.expect(&told, &[], "merged");
    assert_eq!(rig.ended(), None);
}

#[test]
fn what_the_broker_sends_too_long_is_cut_down_or_the_end() {
    let long = b"\x40\x18\x00\x01\x87\x14\x1f\x00\x11not a good reason";
    let cut = b"\x40\x03\x00\x01\x87";
    let mut rig = open(25);
    rig.broker(long);
    rig.expect(cut, &[], "PUBACK");
    // Deliveries are dropped as before, and PINGRESP has nothing to leave out.
    rig.broker_sends(&Packet::Publish(publish(
        "open/a",
        QoS::AtLeastOnce,
        9,
        &[b'x'; 40],
    )));
    rig.expect(&[], &[0x40, 2, 0, 9], "PUBLISH");
    // DISCONNECT with a server reference that must not be left out.
    let list = properties(&[
        Property::Text(PropertyId::ServerReference, "another.example:1883"),
        Property::Text(PropertyId::ReasonString, "moved"),
    ]);
    let moved = Packet::Disconnect(Disconnect {
        code: 0x9d,
        properties: list.view(),
    });
    rig.broker_sends(&moved);
    rig.expect(&[0xe0, 1, 0x95], &[], "DISCONNECT");
    assert_eq!(rig.ended(), Some(Cause::ClientNoRoom));
    let mut rig = open(30);
    rig.broker_sends(&moved);
    let slim = properties(&[Property::Text(
        PropertyId::ServerReference,
        "another.example:1883",
    )]);
    let slim = Packet::Disconnect(Disconnect {
        code: 0x9d,
        properties: slim.view(),
    });
    rig.expect(&bytes(Version::V5, &slim), &[], "DISCONNECT");
    assert_eq!(rig.ended(), Some(Cause::UpstreamDisconnect));
}

#[test]
fn a_broken_acknowledgement_that_is_too_long_is_cut_down_too() {
    let mut rig = open(20);
    rig.broker(b"\x40\x18\x00\x01\x95\x14\x1f\x00\x11not a good reason");
    rig.expect(b"\x40\x03\x00\x01\x80", &[], "mended and cut down");
    assert_eq!(rig.ended(), None);
}

/// DISCONNECT with a Session Expiry Interval.
fn keeps(secs: u32) -> Vec<u8> {
    let list = properties(&[Property::Number(PropertyId::SessionExpiryInterval, secs)]);
    let last = Packet::Disconnect(Disconnect {
        code: 0,
        properties: list.view(),
    });
    bytes(Version::V5, &last)
}

#[test]
fn a_session_expiry_raised_from_0_is_answered_and_the_will_stays() {
    assert_eq!(keeps(1), b"\xe0\x07\x00\x05\x11\x00\x00\x00\x01");
    for at_connect in [None, Some(0)] {
        let list = match at_connect {
            None => properties(&[]),
            Some(secs) => properties(&[Property::Number(PropertyId::SessionExpiryInterval, secs)]),
        };
        let request = Connect {
            properties: list.view(),
            will: Some(will("open/will", QoS::AtMostOnce, false, b"gone")),
            ..connect(Version::V5, "dev")
        };
        let mut rig = Rig::open_with(Version::V5, &document("", RULES), &request);
        rig.client(&keeps(1));
        // Nothing goes upstream, so that its end is what publishes the will.
        rig.expect(&[0xe0, 1, 0x82], &[], "raised");
        let violation = Violation::SessionExpiryRaised;
        assert_eq!(rig.ended(), Some(Cause::Violation(violation)));
        assert_eq!(violation.clause(Version::V5), "3.14.2.2.2");

        let mut rig = Rig::open_with(Version::V5, &document("", RULES), &request);
        rig.client(&keeps(0));
        rig.expect(&[], &keeps(0), "left at 0");
        assert_eq!(rig.ended(), Some(Cause::ClientDisconnect));
    }
    let list = properties(&[Property::Number(PropertyId::SessionExpiryInterval, 5)]);
    let request = with_room(list.view());
    let mut rig = Rig::open_with(Version::V5, &document("", RULES), &request);
    rig.client(&keeps(100));
    rig.expect(&[], &keeps(100), "raised from another value");
    assert_eq!(rig.ended(), Some(Cause::ClientDisconnect));
    let mut rig = Rig::open(Version::V311);
    rig.client(&disconnect(Version::V311, 0));
    rig.expect(&[], &disconnect(Version::V311, 0), "3.1.1 has none");
    rig.closed(Side::Upstream);
}
