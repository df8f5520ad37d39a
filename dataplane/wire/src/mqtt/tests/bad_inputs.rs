//! Inputs that broke other parsers, by the name of the report, and scenario S7: every truncation and every flipped
//! header bit of every legal packet.
//!
//! Reports that concern queues or sessions rather than bytes are tested where those live.

use super::*;
use Side::{Client, Server};
use Version::{V5, V31, V311};

/// The outcome of a stream in one piece and byte by byte, which must be the same.
fn outcome(side: Side, version: Option<Version>, bytes: &[u8]) -> Result<usize, Violation> {
    let read_as = version.unwrap_or(V5);
    let whole = read_stream(&mut framer(side, version, 1 << 21), read_as, side, [bytes]);
    let mut bytewise = framer(side, version, 1 << 21);
    let by_bytes = read_stream(&mut bytewise, read_as, side, bytes.chunks(1));
    assert_eq!(whole, by_bytes);
    assert!(
        bytewise.heap_bytes() <= 2 * bytes.len().max(8),
        "no more than came"
    );
    whole
}

/// NanoMQ: a large remaining length with a tiny payload. Ours waits for the rest and holds what came.
#[test]
fn cve_2026_25627_large_remaining_length_tiny_payload() {
    let claim = b"\x30\xff\xff\x3f\x00\x01a";
    assert_eq!(outcome(Client, Some(V311), claim), Ok(1));
    assert_eq!(
        outcome(Client, Some(V5), b"\x82\xff\xff\x3f\x00\x01"),
        Ok(0)
    );
    let mut small = framer(Client, Some(V311), 1000);
    assert_eq!(small.next(claim), Err(Violation::PacketTooLarge));
}

/// NanoMQ: a variable integer of five bytes as the property length of CONNECT.
#[test]
fn cve_2026_21888_five_byte_property_length_in_connect() {
    let connect = packet(
        0x10,
        b"\x00\x04MQTT\x05\x02\x00\x3c\x80\x80\x80\x80\x01\x00\x00",
    );
    let expected = Err(Violation::VariableIntegerTooLong);
    assert_eq!(outcome(Client, None, &connect), expected);
}

/// NanoMQ 2268, 2270: SUBSCRIBE cut before the options byte.
#[test]
fn nanomq_2268_2270_subscribe_cut_before_options() {
    for (version, body) in [
        (V311, &b"\x00\x01\x00\x01a"[..]),
        (V5, b"\x00\x01\x00\x00\x01a"),
    ] {
        let expected = Err(Violation::FieldPastEnd);
        assert_eq!(
            outcome(Client, Some(version), &packet(0x82, body)),
            expected
        );
    }
}

/// NanoMQ 1042, 1155: a QoS 1 PUBLISH that ends before its packet identifier.
#[test]
fn nanomq_1042_1155_truncated_qos_publish() {
    for body in [
        &b"\x00\x01a"[..],
        b"\x00\x01a\x00",
        b"\x00\x00",
        b"\x00",
        b"",
    ] {
        let expected = Err(Violation::PublishHeadPastEnd);
        assert_eq!(outcome(Client, Some(V311), &packet(0x32, body)), expected);
        assert_eq!(outcome(Client, Some(V5), &packet(0x32, body)), expected);
    }
}

/// NanoMQ 1181, 1720: properties that are read past their length.
#[test]
fn nanomq_1181_1720_property_over_reads() {
    let table: &[(&[u8], Violation)] = &[
        (b"\x00\x01a\x01\x01", Violation::PropertyPastEnd),
        (b"\x00\x01a\x03\x26\x00\x05", Violation::PropertyPastEnd),
        (
            b"\x00\x01a\x06\x26\x00\x01k\x00\x01v",
            Violation::PropertyPastEnd,
        ),
        (b"\x00\x01a\x02\x0b\x80payload", Violation::PropertyPastEnd),
        (b"\x00\x01a\x7f\x01\x00", Violation::PublishHeadPastEnd),
    ];
    for (body, expected) in table {
        assert_eq!(
            outcome(Server, Some(V5), &packet(0x30, body)),
            Err(*expected)
        );
    }
}

/// Mosquitto: PUBLISH with a topic of length zero.
#[test]
fn cve_2021_34432_publish_topic_length_zero() {
    for version in [V31, V311] {
        let publish = packet(0x30, b"\x00\x00payload");
        let expected = Err(Violation::PublishTopicEmpty);
        assert_eq!(outcome(Client, Some(version), &publish), expected);
        assert_eq!(outcome(Server, Some(version), &publish), expected);
    }
    let publish = packet(0x30, b"\x00\x00\x00payload");
    assert_eq!(
        outcome(Client, Some(V5), &publish),
        Err(Violation::PublishTopicMissing)
    );
}

/// Mosquitto: memory for a first packet that is not CONNECT and claims a huge length.
#[test]
fn cve_2023_0809_first_packet_not_connect_with_huge_length() {
    let mut framer = framer(Client, None, u32::MAX);
    let refused = framer.next(b"\x30\xff\xff\xff\x7f");
    assert_eq!(refused, Err(Violation::FirstPacketNotConnect));
    assert_eq!(framer.heap_bytes(), 0);
}

/// Mosquitto: a will with invalid properties. Ours borrows, so there is nothing to leak.
#[test]
fn cve_2023_3592_will_with_invalid_properties() {
    let with_will = |properties: &[u8]| {
        let body = [
            &b"\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c"[..],
            &[properties.len() as u8],
            properties,
            b"\x00\x01t\x00\x01m",
        ];
        packet(0x10, &body.concat())
    };
    let table: &[(&[u8], Violation)] = &[
        (b"\x23\x00\x01", Violation::PropertyNotAllowed),
        (
            b"\x18\x00\x00\x00\x01\x18\x00\x00\x00\x01",
            Violation::PropertyRepeated,
        ),
        (b"\x01\x02", Violation::PayloadFormatIndicatorAboveOne),
        (b"\x08\x00\x01#", Violation::ResponseTopicHasWildcard),
        (b"\x18\x00", Violation::PropertyPastEnd),
    ];
    for (properties, expected) in table {
        assert_eq!(
            outcome(Client, None, &with_will(properties)),
            Err(*expected)
        );
    }
}

/// Mosquitto: SUBACK without reason codes.
#[test]
fn cve_2024_10525_suback_without_codes() {
    let expected = Err(Violation::SubackNoCode);
    assert_eq!(
        outcome(Server, Some(V311), &packet(0x90, b"\x00\x01")),
        expected
    );
    assert_eq!(
        outcome(Server, Some(V5), &packet(0x90, b"\x00\x01\x00")),
        expected
    );
}

/// Mosquitto: a huge remaining length before authentication.
#[test]
fn cve_2017_7651_huge_remaining_length_before_connect() {
    let mut framer = framer(Client, None, 65_536);
    let refused = framer.next(b"\x10\xff\xff\xff\x7f\x00\x04MQTT");
    assert_eq!(refused, Err(Violation::PacketTooLarge));
    assert_eq!(framer.heap_bytes(), 0);
}

/// Mosquitto: a topic of invalid UTF-8 disconnected others; it must end at its sender.
#[test]
fn cve_2017_7653_topic_of_invalid_utf8() {
    let topics: &[&[u8]] = &[
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"a\xe2\x82",
    ];
    for topic in topics {
        let publish = packet(0x30, &[&[0, topic.len() as u8], *topic].concat());
        assert_eq!(
            outcome(Client, Some(V311), &publish),
            Err(Violation::StringNotUtf8)
        );
        let subscribe = packet(
            0x82,
            &[&b"\x00\x01\x00"[..], &[topic.len() as u8], *topic, b"\x00"].concat(),
        );
        assert_eq!(
            outcome(Client, Some(V311), &subscribe),
            Err(Violation::StringNotUtf8)
        );
    }
}

/// Mosquitto: CONNECT packets that end inside a field leaked memory.
#[test]
fn cve_2017_7654_connect_cut_inside_each_field() {
    let body = b"\x00\x04MQTT\x05\xce\x00\x3c\x00\x00\x01c\x00\x00\x01t\x00\x01m\x00\x01u\x00\x01p";
    assert_eq!(outcome(Client, None, &packet(0x10, body)), Ok(1));
    for len in 0..body.len() {
        let expected = Err(Violation::FieldPastEnd);
        assert_eq!(
            outcome(Client, None, &packet(0x10, &body[..len])),
            expected,
            "{len}"
        );
    }
}

/// RabbitMQ: a user name without a password is no licence; the view keeps absent and empty apart.
#[test]
fn cve_2016_9877_username_without_password() {
    let absent = packet(0x10, b"\x00\x04MQTT\x04\x82\x00\x3c\x00\x01c\x00\x01u");
    let connect = decode_connect(&absent).unwrap();
    assert_eq!((connect.username, connect.password), (Some("u"), None));
    let empty = packet(
        0x10,
        b"\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01c\x00\x01u\x00\x00",
    );
    let connect = decode_connect(&empty).unwrap();
    assert_eq!(
        (connect.username, connect.password),
        (Some("u"), Some(&b""[..]))
    );
}

/// RMQTT died of a few CONNECT packets in a row; the second is refused at its first byte.
#[test]
fn cve_2024_36856_connect_sequence() {
    let connect = packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c");
    let mut framer = framer(Client, None, 1000);
    let five = connect.repeat(5);
    let first = framer.next(&five).unwrap();
    assert!(matches!(first, Step::Packet { bytes, .. } if bytes == connect));
    framer.set_version(V311);
    assert_eq!(
        framer.next(&five[connect.len()..]),
        Err(Violation::SecondConnect)
    );
}

/// HAProxy: CONNACK bits for one property were those of another. Each property stands where the specification lets it.
#[test]
fn haproxy_2026_property_table() {
    use super::super::properties::Place::*;
    use PropertyId::*;
    // Table 2-4 of MQTT 5, written out a second time by property.
    let table = [
        (
            PayloadFormatIndicator,
            &[Publish(Client), Publish(Server), Will][..],
        ),
        (
            MessageExpiryInterval,
            &[Publish(Client), Publish(Server), Will],
        ),
        (ContentType, &[Publish(Client), Publish(Server), Will]),
        (ResponseTopic, &[Publish(Client), Publish(Server), Will]),
        (CorrelationData, &[Publish(Client), Publish(Server), Will]),
        (SubscriptionIdentifier, &[Publish(Server), Subscribe]),
        (
            SessionExpiryInterval,
            &[Connect, Connack, Disconnect(Client)],
        ),
        (AssignedClientIdentifier, &[Connack]),
        (ServerKeepAlive, &[Connack]),
        (AuthenticationMethod, &[Connect, Connack, Auth]),
        (AuthenticationData, &[Connect, Connack, Auth]),
        (RequestProblemInformation, &[Connect]),
        (WillDelayInterval, &[Will]),
        (RequestResponseInformation, &[Connect]),
        (ResponseInformation, &[Connack]),
        (ServerReference, &[Connack, Disconnect(Server)]),
        (
            ReasonString,
            &[Connack, Ack, Disconnect(Client), Disconnect(Server), Auth],
        ),
        (ReceiveMaximum, &[Connect, Connack]),
        (TopicAliasMaximum, &[Connect, Connack]),
        (TopicAlias, &[Publish(Client), Publish(Server)]),
        (MaximumQos, &[Connack]),
        (RetainAvailable, &[Connack]),
        (MaximumPacketSize, &[Connect, Connack]),
        (WildcardSubscriptionAvailable, &[Connack]),
        (SubscriptionIdentifierAvailable, &[Connack]),
        (SharedSubscriptionAvailable, &[Connack]),
    ];
    let places = [
        Connect,
        Will,
        Connack,
        Publish(Client),
        Publish(Server),
        Ack,
        Subscribe,
        Unsubscribe,
        Disconnect(Client),
        Disconnect(Server),
        Auth,
    ];
    assert_eq!(table.len() + 1, PropertyId::ALL.len());
    for place in places {
        assert!(place.allows(UserProperty), "{place:?}");
        for (id, allowed) in table {
            assert_eq!(
                place.allows(id),
                allowed.contains(&place),
                "{id:?} in {place:?}"
            );
        }
    }
}

/// HAProxy: the flags of PUBLISH were masked, those of others not. All 256 first bytes, every version and side.
#[test]
fn haproxy_2026_first_byte_table() {
    for version in [V31, V311, V5] {
        for side in [Client, Server] {
            for first in 0..=u8::MAX {
                let mut framer = framer(side, Some(version), 1000);
                let is_accepted = framer.next(&[first]) == Ok(Step::Incomplete);
                assert_eq!(
                    is_accepted,
                    is_first_byte(version, side, first),
                    "{version:?} {side:?} {first:02x}"
                );
            }
        }
    }
}

/// Tables 2.1 and 2.2 of the specification, for a stream past CONNECT. 3.1 does not use the flags.
fn is_first_byte(version: Version, side: Side, first: u8) -> bool {
    let from_client = side == Client;
    let is_v31 = version == V31;
    match first {
        0x30..=0x35 | 0x3a..=0x3d => true,
        0x38 | 0x39 => is_v31,
        0x36..=0x3f => false,
        0x20 | 0x90 | 0xb0 | 0xd0 => !from_client,
        0x40 | 0x50 | 0x62 | 0x70 => true,
        0x82 | 0xa2 | 0xc0 => from_client,
        0xe0 => from_client || version == V5,
        0xf0 => version == V5,
        _ if !is_v31 => false,
        0x40..=0x7f => true,
        0x20..=0x2f | 0x90..=0x9f | 0xb0..=0xbf | 0xd0..=0xdf => !from_client,
        0x80..=0x8f | 0xa0..=0xaf | 0xc0..=0xcf | 0xe0..=0xef => from_client,
        _ => false,
    }
}

/// Mosquitto's test set has packets of type 0.
#[test]
fn mosquitto_type_0_packets() {
    for first in 0x00..=0x0f {
        for version in [V31, V311, V5] {
            assert_eq!(
                outcome(Client, Some(version), &[first, 0]),
                Err(Violation::KindReserved)
            );
            assert_eq!(
                outcome(Server, Some(version), &[first, 0]),
                Err(Violation::KindReserved)
            );
        }
    }
}

/// Mosquitto's test set has malformed shared subscriptions.
#[test]
fn mosquitto_shared_subscription_filters() {
    let filters: &[(&[u8], Violation)] = &[
        (b"$share/", Violation::FilterShareName),
        (b"$share//a", Violation::FilterShareName),
        (b"$share/+/a", Violation::FilterShareName),
        (b"$share/g#/a", Violation::FilterShareName),
        (b"$share/g", Violation::FilterShareWithoutFilter),
        (b"$share/g/", Violation::FilterShareWithoutFilter),
        (b"$share/g/a#", Violation::FilterMultiLevel),
    ];
    for (filter, expected) in filters {
        let subscribe = packet(
            0x82,
            &[
                &b"\x00\x01\x00\x00"[..],
                &[filter.len() as u8],
                *filter,
                b"\x00",
            ]
            .concat(),
        );
        assert_eq!(outcome(Client, Some(V5), &subscribe), Err(*expected));
        // Plain filters before shares were invented: only the rules for wildcards bind them.
        let filter = [&[0, filter.len() as u8], *filter, b"\x00"].concat();
        let subscribe = packet(0x82, &[&b"\x00\x01"[..], &filter].concat());
        let has_bad_wildcard = filter.contains(&b'#');
        for version in [V31, V311] {
            let expected = if has_bad_wildcard {
                Err(Violation::FilterMultiLevel)
            } else {
                Ok(1)
            };
            assert_eq!(outcome(Client, Some(version), &subscribe), expected);
        }
    }
}

/// Scenario S7: each legal packet cut at each byte. A cut stream waits; a packet that says it is shorter is refused,
/// unless what is left happens to be a whole packet of its own.
#[test]
fn s7_truncation_at_each_byte() {
    for (version, side, bytes) in valid_packets() {
        let first = (bytes[0] >> 4 != 1).then_some(version);
        for len in 0..bytes.len() {
            let packets =
                usize::from(bytes[0] >> 4 == 3 && is_past_head(version, side, &bytes, len));
            assert_eq!(
                outcome(side, first, &bytes[..len]),
                Ok(packets),
                "{bytes:02x?} at {len}"
            );
        }
        let header_len = bytes.len() - body_len(&bytes);
        for len in 0..body_len(&bytes) {
            let cut = packet(bytes[0], &bytes[header_len..][..len]);
            if let Ok(packet) = decode(version, side, &cut) {
                let mut again = Vec::new();
                encode(version, &packet, &mut again).unwrap();
                assert!(again.len() <= cut.len());
            }
            let _ = outcome(side, first, &cut);
        }
    }
}

fn is_past_head(version: Version, side: Side, bytes: &[u8], len: usize) -> bool {
    let Ok(Packet::Publish(publish)) = decode(version, side, bytes) else {
        panic!("{bytes:02x?}");
    };
    len >= bytes.len() - publish.payload.len()
}

fn body_len(bytes: &[u8]) -> usize {
    // All of these packets have a remaining length of one byte.
    usize::from(bytes[1])
}

/// Scenario S7: each bit of the first bytes of each legal packet flipped: an answer, the same one however it is cut.
#[test]
fn s7_each_header_bit_flipped() {
    let mut refused = 0;
    for (version, side, bytes) in valid_packets() {
        let first = (bytes[0] >> 4 != 1).then_some(version);
        for index in 0..bytes.len().min(16) {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[index] ^= 1 << bit;
                let _ = decode(version, side, &flipped);
                let _ = decode_publish_head(version, side, &flipped);
                refused += usize::from(outcome(side, first, &flipped).is_err());
            }
        }
    }
    assert!(refused > 1000, "most flips break something: {refused}");
}
