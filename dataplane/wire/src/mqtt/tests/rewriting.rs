//! What the proxy changes in passing: heads, filters, properties; and what the encoder refuses.

use super::*;
use PropertyEdit::{Remove, Set};
use Version::{V5, V31, V311};

fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}

fn buf(properties: &[Property<'_>]) -> PropertiesBuf {
    let mut buf = PropertiesBuf::new();
    for property in properties {
        buf.push(*property).unwrap();
    }
    buf
}

#[test]
fn edits_replace_in_order_and_append() {
    use PropertyId::*;
    let before = buf(&[
        Property::Number(ReceiveMaximum, 100),
        Property::Pair("k", "1"),
        Property::Number(TopicAliasMaximum, 10),
        Property::Pair("k", "2"),
        Property::Text(ReasonString, "r"),
    ]);
    let edits = [
        Set(Property::Number(ReceiveMaximum, 5)),
        Remove(TopicAliasMaximum),
        Remove(MaximumQos),
        Set(Property::Pair("k", "3")),
        Set(Property::Text(AssignedClientIdentifier, "id")),
    ];
    let connack = Connack {
        session_present: true,
        code: 0,
        properties: before.view(),
    };
    let mut out = Vec::new();
    encode_connack(V5, &connack, &edits, &mut out).unwrap();
    let Ok(Packet::Connack(after)) = decode(V5, Side::Server, &out) else {
        panic!("{out:02x?}");
    };
    assert!(after.session_present);
    assert_eq!(
        after.properties.iter().collect::<Vec<_>>(),
        [
            Property::Pair("k", "1"),
            Property::Pair("k", "2"),
            Property::Text(ReasonString, "r"),
            Property::Number(ReceiveMaximum, 5),
            Property::Pair("k", "3"),
            Property::Text(AssignedClientIdentifier, "id"),
        ]
    );
    out.clear();
    encode_connack(V311, &connack, &edits, &mut out).unwrap();
    assert_eq!(out, b"\x20\x02\x01\x00", "no properties below version 5");
}

#[test]
fn a_bridge_keeps_its_level() {
    for (level, name, version) in [
        (0x83, &b"\x00\x06MQIsdp"[..], V31),
        (0x84, b"\x00\x04MQTT", V311),
    ] {
        let body = [name, &[level, 2, 0, 60], b"\x00\x01b"].concat();
        let bytes = [&[0x10, body.len() as u8], &*body].concat();
        let connect = decode_connect(&bytes).unwrap();
        assert_eq!((connect.version, connect.is_bridge), (version, true));
        let mut out = Vec::new();
        encode_connect(&connect, &[], &mut out).unwrap();
        assert_eq!(out, bytes);
    }
}

#[test]
fn connect_with_another_client_id_will_and_limits() {
    use PropertyId::*;
    let properties = buf(&[
        Property::Number(SessionExpiryInterval, 60),
        Property::Number(MaximumPacketSize, 1 << 20),
    ]);
    let will_properties = buf(&[Property::Number(WillDelayInterval, 5)]);
    let original = Connect {
        version: V5,
        is_bridge: false,
        clean_start: true,
        keep_alive_secs: 30,
        properties: properties.view(),
        client_id: "",
        will: Some(Will {
            qos: QoS::ExactlyOnce,
            retain: true,
            properties: will_properties.view(),
            topic: "t",
            payload: b"gone",
        }),
        username: Some("u"),
        password: Some(b"\xff"),
    };
    let lowered = original.will.clone().map(|will| Will {
        qos: QoS::AtLeastOnce,
        retain: false,
        ..will
    });
    let changed = Connect {
        client_id: "assigned",
        will: lowered,
        ..original
    };
    let edits = [Set(Property::Number(MaximumPacketSize, 1000))];
    let mut out = Vec::new();
    encode_connect(&changed, &edits, &mut out).unwrap();
    let read = decode_connect(&out).unwrap();
    let expected = buf(&[
        Property::Number(SessionExpiryInterval, 60),
        Property::Number(MaximumPacketSize, 1000),
    ]);
    assert_eq!(
        read,
        Connect {
            properties: expected.view(),
            ..changed
        }
    );
}

/// The head is written for a payload that is forwarded from where it lies; lengths of one to four bytes.
#[test]
fn publish_head_with_another_qos_topic_and_alias() {
    for payload_bytes in [0, 100, 127, 16_384, 2_097_152, 268_435_000] {
        let properties = buf(&[Property::Number(PropertyId::TopicAlias, 3)]);
        let head = Publish {
            dup: true,
            qos: QoS::ExactlyOnce,
            retain: true,
            topic: "",
            packet_id: Some(id(7)),
            properties: properties.view(),
            payload: &[],
            payload_bytes,
        };
        let changed = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: "resolved/topic",
            packet_id: None,
            ..head
        };
        let mut out = vec![1, 2, 3];
        let edits = [Remove(PropertyId::TopicAlias)];
        encode_publish_head(V5, &changed, &edits, &mut out).unwrap();
        let read = decode_publish_head(V5, Side::Client, &out[3..]).unwrap();
        assert_eq!(
            read,
            Publish {
                properties: Properties::EMPTY,
                ..changed
            }
        );
        let mut framer = framer(Side::Client, Some(V5), u32::MAX);
        let Ok(Step::PublishHead { bytes, .. }) = framer.next(&out[3..]) else {
            panic!("{out:02x?}");
        };
        assert_eq!(bytes, &out[3..]);
    }
}

#[test]
fn subscribe_with_some_filters_and_a_lower_qos() {
    let properties = buf(&[Property::Number(PropertyId::SubscriptionIdentifier, 9)]);
    let mut filters = SubscribeFilters::new();
    for (filter, options) in [("a/#", 0x2e), ("b", 0x01), ("$share/g/c", 0x02)] {
        let qos = QoS::from_bits(options).unwrap();
        let filter = SubscribeFilter {
            filter,
            qos,
            options,
        };
        filters.push(&filter).unwrap();
    }
    let original = Subscribe::new(id(5), properties.view(), &filters);
    let mut sent = Vec::new();
    encode(V5, &Packet::Subscribe(original.clone()), &mut sent).unwrap();
    // Read one after the other, as what may be long is.
    let head = decode_subscribe_head(V5, &sent).unwrap();
    let mut kept = SubscribeFilters::new();
    let mut rest = head.filters;
    while let Some(filter) = next_subscribe_filter(V5, &mut rest).unwrap() {
        let qos = filter.qos.min(QoS::AtLeastOnce);
        if filter.filter != "b" {
            kept.push(&SubscribeFilter { qos, ..filter }).unwrap();
        }
    }
    let mut out = Vec::new();
    let changed = Subscribe::new(head.packet_id, head.properties, &kept);
    encode(V5, &Packet::Subscribe(changed), &mut out).unwrap();
    let Ok(Packet::Subscribe(read)) = decode(V5, Side::Client, &out) else {
        panic!("{out:02x?}");
    };
    assert_eq!(read.properties, original.properties);
    let read: Vec<_> = read.filters().collect();
    assert_eq!(
        read.iter()
            .map(|filter| (filter.filter, filter.options))
            .collect::<Vec<_>>(),
        [("a/#", 0x2d), ("$share/g/c", 0x01)]
    );
    assert!(read[0].is_no_local() && read[0].is_retain_as_published());
    assert_eq!(read[0].retain_handling(), 2);

    let mut unsubscribe = Vec::new();
    encode_unsubscribe(V5, id(6), Properties::EMPTY, ["a/#", "b"], &mut unsubscribe).unwrap();
    let Ok(Packet::Unsubscribe(read)) = decode(V5, Side::Client, &unsubscribe) else {
        panic!("{unsubscribe:02x?}");
    };
    assert_eq!(read.filters().collect::<Vec<_>>(), ["a/#", "b"]);
}

#[test]
fn the_short_forms_of_version_5_are_used() {
    let reason = buf(&[Property::Text(PropertyId::ReasonString, "r")]);
    let ack = |code, properties| Ack {
        packet_id: id(1),
        code,
        properties,
    };
    let table: &[(Version, Packet<'_>, &[u8])] = &[
        (
            V5,
            Packet::Puback(ack(0, Properties::EMPTY)),
            b"\x40\x02\x00\x01",
        ),
        (
            V5,
            Packet::Puback(ack(0x87, Properties::EMPTY)),
            b"\x40\x03\x00\x01\x87",
        ),
        (
            V5,
            Packet::Pubrel(ack(0, reason.view())),
            b"\x62\x08\x00\x01\x00\x04\x1f\x00\x01r",
        ),
        (
            V311,
            Packet::Pubrec(ack(0x87, reason.view())),
            b"\x50\x02\x00\x01",
        ),
        (
            V5,
            Packet::Disconnect(Disconnect {
                code: 0,
                properties: Properties::EMPTY,
            }),
            b"\xe0\x00",
        ),
        (
            V5,
            Packet::Disconnect(Disconnect {
                code: 0x8b,
                properties: Properties::EMPTY,
            }),
            b"\xe0\x01\x8b",
        ),
        (
            V31,
            Packet::Disconnect(Disconnect {
                code: 0x8b,
                properties: Properties::EMPTY,
            }),
            b"\xe0\x00",
        ),
        (
            V311,
            Packet::Unsuback(Unsuback {
                packet_id: id(1),
                properties: Properties::EMPTY,
                codes: b"\x00",
            }),
            b"\xb0\x02\x00\x01",
        ),
    ];
    for (version, packet, expected) in table {
        let mut out = Vec::new();
        encode(*version, packet, &mut out).unwrap();
        assert_eq!(out, *expected, "{packet:?}");
    }
}

/// A field that does not fit is refused, and nothing of the packet is left in the output.
#[test]
fn what_does_not_fit_is_refused_whole() {
    let long = "x".repeat(65_536);
    let fits = &long[1..];
    let publish = |topic, payload_bytes| Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic,
        packet_id: None,
        properties: Properties::EMPTY,
        payload: &[],
        payload_bytes,
    };
    let mut out = vec![7];
    let packets = [
        Packet::Publish(publish(&long, 0)),
        Packet::Connect(Connect {
            version: V5,
            is_bridge: false,
            clean_start: true,
            keep_alive_secs: 0,
            properties: Properties::EMPTY,
            client_id: "c",
            will: None,
            username: Some(fits),
            password: Some(long.as_bytes()),
        }),
    ];
    for packet in &packets {
        assert_eq!(encode(V5, packet, &mut out), Err(TooLong));
        assert_eq!(out, [7]);
    }
    let head = publish("t", 268_435_455);
    assert_eq!(
        encode_publish_head(V311, &head, &[], &mut out),
        Err(TooLong)
    );
    assert_eq!(out, [7]);
    let head = publish("t", 268_435_452);
    assert_eq!(encode_publish_head(V311, &head, &[], &mut out), Ok(()));
    out.clear();
    encode(V5, &Packet::Publish(publish(fits, 0)), &mut out).unwrap();
    let read = decode(V5, Side::Client, &out);
    assert!(matches!(read, Ok(Packet::Publish(read)) if read.topic == fits));

    let mut filters = SubscribeFilters::new();
    let too_long = SubscribeFilter::new(&long, QoS::AtMostOnce);
    assert_eq!(filters.push(&too_long), Err(TooLong));
    assert_eq!(UnsubscribeFilters::new().push(&long), Err(TooLong));
    let subscribe = Subscribe::new(id(1), Properties::EMPTY, &filters);
    assert_eq!(subscribe.filters().count(), 0, "nothing was appended");
}

#[test]
fn a_property_keeps_to_its_data_type() {
    use PropertyId::*;
    let long = "x".repeat(65_536);
    let refused = [
        Property::Number(MaximumQos, 256),
        Property::Number(ReceiveMaximum, 65_536),
        Property::Number(SubscriptionIdentifier, 268_435_456),
        Property::Number(ContentType, 1),
        Property::Text(ReceiveMaximum, "1"),
        Property::Text(CorrelationData, "1"),
        Property::Text(ContentType, &long),
        Property::Data(ContentType, b"x"),
        Property::Data(CorrelationData, long.as_bytes()),
        Property::Pair("k", &long),
    ];
    let mut buf = PropertiesBuf::new();
    for property in refused {
        assert_eq!(buf.push(property), Err(TooLong), "{:?}", property.id());
        assert!(buf.view().is_empty());
        let connack = Connack {
            session_present: false,
            code: 0,
            properties: Properties::EMPTY,
        };
        let mut out = Vec::new();
        let refused = encode_connack(V5, &connack, &[Set(property)], &mut out);
        assert_eq!((refused, out.len()), (Err(TooLong), 0));
    }
    buf.push(Property::Number(SubscriptionIdentifier, 268_435_455))
        .unwrap();
    assert_eq!(buf.view().as_bytes(), b"\x0b\xff\xff\xff\x7f");
}

#[test]
fn debug_shows_no_secret() {
    let properties = buf(&[Property::Data(PropertyId::AuthenticationData, b"zq9")]);
    let connect = Connect {
        version: V5,
        is_bridge: false,
        clean_start: true,
        keep_alive_secs: 0,
        properties: properties.view(),
        client_id: "c",
        will: Some(Will {
            qos: QoS::AtMostOnce,
            retain: false,
            properties: properties.view(),
            topic: "t",
            payload: b"zq9",
        }),
        username: Some("u"),
        password: Some(b"zq9"),
    };
    let publish = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "t",
        packet_id: None,
        properties: properties.view(),
        payload: b"zq9",
        payload_bytes: 3,
    };
    let shown = format!("{connect:?} {publish:?}");
    let secrets = ["zq9", &format!("{:?}", b"zq9"), "122, 113"];
    for secret in secrets {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("password: Some(<3 bytes>)"), "{shown}");
}
