//! Differential tests against three other codecs: mqtt-proto, rmqtt-codec and mqttbytes.
//!
//! Each has known errors, so none is believed alone. What all must agree on are random legal packets; where one does not,
//! the class of packet is named here with the error. The table of hand-made packets records the verdict of all four, so
//! that a release of an oracle that changes its mind shows.

use bytes::BytesMut;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio_util::codec::{Decoder, Encoder};

use super::random::material;
use super::*;
use Side::{Client, Server};
use Version::{V5, V31, V311};

/// What an oracle makes of one packet: `None` when it refuses it, else what it writes when asked to send it on.
type Verdict = Option<Vec<u8>>;

fn mqtt_proto(version: Version, bytes: &[u8]) -> Verdict {
    let written = match version {
        V5 => mqtt_proto::v5::Packet::decode(bytes).ok()??.encode(),
        V31 | V311 => mqtt_proto::v3::Packet::decode(bytes).ok()??.encode(),
    };
    Some(written.ok()?.as_ref().to_vec())
}

fn rmqtt(version: Version, bytes: &[u8]) -> Verdict {
    let mut input = BytesMut::from(bytes);
    let mut output = BytesMut::new();
    match version {
        V5 => {
            let mut codec = rmqtt_codec::v5::Codec::new(0, 0);
            let (packet, _) = codec.decode(&mut input).ok()??;
            codec.encode(packet, &mut output).ok()?;
        }
        V31 | V311 => {
            let mut codec = rmqtt_codec::v3::Codec::new(0);
            let (packet, _) = codec.decode(&mut input).ok()??;
            codec.encode(packet, &mut output).ok()?;
        }
    }
    Some(output.to_vec())
}

/// mqttbytes knows 3.1.1 and 5 only.
fn mqttbytes(version: Version, bytes: &[u8]) -> Verdict {
    let mut input = BytesMut::from(bytes);
    let mut output = BytesMut::new();
    /// Writes the packets that have fields; the others are two fixed bytes.
    macro_rules! write {
        ($version:ident, $input:expr, $output:expr, fixed { $( $fixed:ident => $bytes:expr ),* }) => {{
            use ::mqttbytes::$version::Packet::*;
            match ::mqttbytes::$version::read($input, usize::MAX).ok()? {
                Connect(packet) => packet.write($output).map(drop),
                ConnAck(packet) => packet.write($output).map(drop),
                Publish(packet) => packet.write($output).map(drop),
                PubAck(packet) => packet.write($output).map(drop),
                PubRec(packet) => packet.write($output).map(drop),
                PubRel(packet) => packet.write($output).map(drop),
                PubComp(packet) => packet.write($output).map(drop),
                Subscribe(packet) => packet.write($output).map(drop),
                SubAck(packet) => packet.write($output).map(drop),
                Unsubscribe(packet) => packet.write($output).map(drop),
                UnsubAck(packet) => packet.write($output).map(drop),
                PingReq => { $output.extend_from_slice(b"\xc0\x00"); Ok(()) }
                PingResp => { $output.extend_from_slice(b"\xd0\x00"); Ok(()) }
                $( $fixed => $bytes($output), )*
                #[allow(unreachable_patterns)]
                _ => return None,
            }
        }};
    }
    let written = match version {
        V31 => return None,
        V311 => write!(v4, &mut input, &mut output, fixed {
            Disconnect => |output: &mut BytesMut| { output.extend_from_slice(b"\xe0\x00"); Ok(()) }
        }),
        V5 => write!(v5, &mut input, &mut output, fixed {}),
    };
    written.ok()?;
    Some(output.to_vec())
}

/// A packet as it means: without the order of its properties, and without those that say what their absence says.
fn meaning(version: Version, side: Side, bytes: &[u8]) -> Result<[String; 4], Violation> {
    let mut packet = decode(version, side, bytes)?;
    let hidden = hidden(&packet);
    let (properties, will_properties) = take_properties(&mut packet);
    Ok([
        format!("{packet:?}"),
        hidden,
        sorted(properties),
        sorted(will_properties),
    ])
}

/// What `Debug` does not show.
fn hidden(packet: &Packet<'_>) -> String {
    match packet {
        Packet::Connect(connect) => {
            let will = connect.will.as_ref().map(|will| will.payload);
            format!("{:02x?} {will:02x?}", connect.password)
        }
        Packet::Publish(publish) => format!("{:02x?}", publish.payload),
        Packet::Connack(_)
        | Packet::Puback(_)
        | Packet::Pubrec(_)
        | Packet::Pubrel(_)
        | Packet::Pubcomp(_)
        | Packet::Subscribe(_)
        | Packet::Suback(_)
        | Packet::Unsubscribe(_)
        | Packet::Unsuback(_)
        | Packet::Pingreq
        | Packet::Pingresp
        | Packet::Disconnect(_)
        | Packet::Auth(_) => String::new(),
    }
}

fn take_properties<'a>(packet: &mut Packet<'a>) -> (Properties<'a>, Properties<'a>) {
    let mut will_properties = Properties::EMPTY;
    let properties = match packet {
        Packet::Connect(connect) => {
            if let Some(will) = &mut connect.will {
                will_properties = std::mem::take(&mut will.properties);
            }
            &mut connect.properties
        }
        Packet::Connack(connack) => &mut connack.properties,
        Packet::Publish(publish) => &mut publish.properties,
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
            &mut ack.properties
        }
        Packet::Subscribe(subscribe) => &mut subscribe.properties,
        Packet::Suback(suback) => &mut suback.properties,
        Packet::Unsubscribe(unsubscribe) => &mut unsubscribe.properties,
        Packet::Unsuback(unsuback) => &mut unsuback.properties,
        Packet::Disconnect(disconnect) => &mut disconnect.properties,
        Packet::Auth(auth) => &mut auth.properties,
        Packet::Pingreq | Packet::Pingresp => return (Properties::EMPTY, Properties::EMPTY),
    };
    (std::mem::take(properties), will_properties)
}

fn sorted(properties: Properties<'_>) -> String {
    use PropertyId::*;
    let defaults = [
        (PayloadFormatIndicator, 0),
        (RequestProblemInformation, 1),
        (RequestResponseInformation, 0),
        (ReceiveMaximum, 65_535),
        (RetainAvailable, 1),
        (WildcardSubscriptionAvailable, 1),
        (SubscriptionIdentifierAvailable, 1),
        (SharedSubscriptionAvailable, 1),
    ];
    let is_default = |property: &Property<'_>| matches!(property, Property::Number(id, number) if defaults.contains(&(*id, *number)));
    let mut lines: Vec<String> = properties
        .iter()
        .filter(|property| !is_default(property))
        .map(|property| format!("{property:?}"))
        .collect();
    lines.sort();
    lines.join("\n")
}

// --- legal packets: all agree, but for the known errors ---

/// mqtt-proto 0.4.0 refuses these, or writes them wrong.
fn is_known_of_mqtt_proto(packet: &Packet<'_>) -> bool {
    match packet {
        // It checks the payload when the indicator says UTF-8; section 3.3.2.3.2 allows that and does not ask for it.
        Packet::Publish(publish) => {
            says_utf8(publish.properties) && std::str::from_utf8(publish.payload).is_err()
                || has_two_subscription_identifiers(publish.properties)
        }
        Packet::Connect(connect) => connect.will.as_ref().is_some_and(|will| {
            says_utf8(will.properties) && std::str::from_utf8(will.payload).is_err()
        }),
        // It reads the failure code of 3.1.1 and writes another byte.
        Packet::Suback(suback) => suback.codes.contains(&0x80),
        // The table of section 3.14.2.1 does not have it, that of section 2.4 does.
        Packet::Disconnect(disconnect) => disconnect.code == 0x8c,
        Packet::Connack(_)
        | Packet::Puback(_)
        | Packet::Pubrec(_)
        | Packet::Pubrel(_)
        | Packet::Pubcomp(_)
        | Packet::Subscribe(_)
        | Packet::Unsubscribe(_)
        | Packet::Unsuback(_)
        | Packet::Pingreq
        | Packet::Pingresp
        | Packet::Auth(_) => false,
    }
}

/// rmqtt-codec 0.3.1: an empty client id without clean start is refused by the codec, which is the server's affair; a
/// 3.1 CONNECT is written with the name of 3.1.1.
fn is_known_of_rmqtt(packet: &Packet<'_>) -> bool {
    matches!(packet, Packet::Connect(connect)
        if connect.version == V31 || (connect.client_id.is_empty() && !connect.clean_start))
}

/// The written list for mqttbytes 0.6.0, which is otherwise too lax and too strict to be asked.
fn is_agreed_with_mqttbytes(version: Version, packet: &Packet<'_>) -> bool {
    match packet {
        // No 3.1. An empty user name or password is lost, a binary password refused, and in 5 that costs more than them.
        Packet::Connect(connect) => {
            version == V311
                && connect.username != Some("")
                && connect
                    .password
                    .is_none_or(|data| std::str::from_utf8(data).is_ok())
        }
        // Without properties the property length is left out.
        Packet::Connack(connack) => version == V311 || !connack.properties.is_empty(),
        Packet::Publish(publish) => {
            version >= V311 && !has_two_subscription_identifiers(publish.properties)
        }
        Packet::Puback(_)
        | Packet::Pubrec(_)
        | Packet::Pubrel(_)
        | Packet::Pubcomp(_)
        | Packet::Subscribe(_)
        | Packet::Suback(_)
        | Packet::Unsuback(_)
        | Packet::Pingreq
        | Packet::Pingresp => version >= V311,
        // In 5 it prints the packet identifier to the terminal.
        Packet::Unsubscribe(_) => version == V311,
        // In 5 its reason code is read from the wrong place.
        Packet::Disconnect(_) => version == V311,
        Packet::Auth(_) => false,
    }
}

fn says_utf8(properties: Properties<'_>) -> bool {
    properties.number(PropertyId::PayloadFormatIndicator) == Some(1)
}

fn has_two_subscription_identifiers(properties: Properties<'_>) -> bool {
    let is_one = |property: &Property<'_>| property.id() == PropertyId::SubscriptionIdentifier;
    properties.iter().filter(is_one).count() > 1
}

/// What an older version allows and a later one forbids; the oracles read all by the later one.
fn is_liberty(version: Version, packet: &Packet<'_>, bytes: &[u8]) -> bool {
    if version == V5 {
        return false;
    }
    // Unused bits, DUP on SUBSCRIBE, a missing user name, a length that is too long: written in the form of 3.1.1.
    let mut written = Vec::new();
    encode(version, packet, &mut written).unwrap();
    let is_bad = |filter: &str| parse_filter(filter).is_err();
    written != bytes
        || match packet {
            Packet::Connect(connect) => {
                let name = connect.username.unwrap_or_default();
                connect.client_id.contains('\0') || name.contains('\0')
            }
            Packet::Publish(publish) => publish.dup && publish.qos == QoS::AtMostOnce,
            Packet::Subscribe(subscribe) => {
                let mut filters = subscribe.filters();
                subscribe.body.is_empty()
                    || filters.any(|filter| filter.options > 2 || is_bad(filter.filter))
            }
            Packet::Unsubscribe(unsubscribe) => {
                unsubscribe.body.is_empty() || unsubscribe.filters().any(is_bad)
            }
            Packet::Suback(suback) => suback.codes.is_empty(),
            Packet::Connack(_)
            | Packet::Puback(_)
            | Packet::Pubrec(_)
            | Packet::Pubrel(_)
            | Packet::Pubcomp(_)
            | Packet::Unsuback(_)
            | Packet::Pingreq
            | Packet::Pingresp
            | Packet::Disconnect(_)
            | Packet::Auth(_) => false,
        }
}

fn is_bridge(packet: &Packet<'_>) -> bool {
    matches!(packet, Packet::Connect(connect) if connect.is_bridge)
}

proptest! {
    // A fixed seed: an error of an oracle that nobody has met yet must not fail somebody else's change.
    #![proptest_config(ProptestConfig {
        cases: 256,
        rng_seed: RngSeed::Fixed(20),
        // Each round runs four codecs; a failing packet is small enough soon.
        max_shrink_iters: 500,
        ..ProptestConfig::default()
    })]

    #[test]
    fn legal_packets_mean_the_same_to_all(material in material()) {
        let bytes = material.bytes();
        let packet = material.packet();
        let (version, side) = (material.version, material.side);
        let ours = meaning(version, side, &bytes);
        prop_assert!(ours.is_ok());
        if is_bridge(&packet) {
            return Ok(()); // no specification knows it, and no other decoder
        }
        let check = |name: &str, verdict: Verdict| {
            let Some(written) = verdict else {
                panic!("{name} refuses {packet:?}");
            };
            assert_eq!(meaning(version, side, &written), ours, "{name} writes {written:02x?}");
        };
        if !is_known_of_mqtt_proto(&packet) {
            check("mqtt-proto", mqtt_proto(version, &bytes));
        }
        if !is_known_of_rmqtt(&packet) {
            check("rmqtt-codec", rmqtt(version, &bytes));
        }
        if is_agreed_with_mqttbytes(version, &packet) {
            check("mqttbytes", mqttbytes(version, &bytes));
        }
    }

    /// One byte of a legal packet changed: what we accept, the two stricter oracles accept.
    #[test]
    fn we_are_the_strictest(
        material in material(),
        index in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = material.bytes();
        let index = index.index(bytes.len());
        bytes[index] = byte;
        let (version, side) = (material.version, material.side);
        let Ok(packet) = decode(version, side, &bytes) else {
            return Ok(());
        };
        let is_liberty = is_bridge(&packet) || is_liberty(version, &packet, &bytes);
        if !is_liberty && !is_known_of_mqtt_proto(&packet) {
            prop_assert!(mqtt_proto(version, &bytes).is_some(), "mqtt-proto refuses {packet:?}");
        }
        if !is_liberty && !is_known_of_rmqtt(&packet) {
            prop_assert!(rmqtt(version, &bytes).is_some(), "rmqtt-codec refuses {packet:?}");
        }
    }
}

// --- hand-made packets: who accepts what ---

/// Who accepts (`x`) and who refuses (`-`), in the order: ours, mqtt-proto, rmqtt-codec, mqttbytes.
type Accepts = &'static str;

/// Where an oracle differs from ours, that is its known error.
#[test]
fn verdicts_of_the_four_decoders() {
    let table: &[(&str, Version, Side, Vec<u8>, Accepts)] = &[
        ("bare DISCONNECT", V5, Client, packet(0xe0, b""), "xxx-"),
        (
            "AUTH",
            V5,
            Client,
            packet(0xf0, b"\x18\x04\x15\x00\x01m"),
            "xxx-",
        ),
        (
            "CONNECT of 3.1",
            V31,
            Client,
            packet(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01c"),
            "xxx-",
        ),
        (
            "binary password",
            V311,
            Client,
            packet(
                0x10,
                b"\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01c\x00\x01u\x00\x01\xff",
            ),
            "xxx-",
        ),
        (
            "reserved CONNECT flag",
            V311,
            Client,
            packet(0x10, b"\x00\x04MQTT\x04\x03\x00\x3c\x00\x01c"),
            "---x",
        ),
        (
            "SUBSCRIBE with wrong flags",
            V311,
            Client,
            packet(0x80, b"\x00\x01\x00\x01a\x00"),
            "---x",
        ),
        (
            "PUBREL with wrong flags",
            V311,
            Client,
            packet(0x60, b"\x00\x01"),
            "---x",
        ),
        (
            "SUBSCRIBE with packet id 0",
            V311,
            Client,
            packet(0x82, b"\x00\x00\x00\x01a\x00"),
            "---x",
        ),
        (
            "SUBSCRIBE without a filter",
            V311,
            Client,
            packet(0x82, b"\x00\x01"),
            "---x",
        ),
        (
            "PUBLISH to a wildcard",
            V311,
            Client,
            packet(0x30, b"\x00\x01#"),
            "--xx",
        ),
        (
            "PUBLISH topic with NUL",
            V311,
            Client,
            packet(0x30, b"\x00\x01\x00"),
            "--xx",
        ),
        (
            "PUBLISH with an empty topic",
            V311,
            Client,
            packet(0x30, b"\x00\x00"),
            "-x-x",
        ),
        (
            "two subscription identifiers",
            V5,
            Server,
            packet(0x30, b"\x00\x01a\x06\x0b\x01\x0b\x02\x01\x00"),
            "x-xx",
        ),
        (
            "duplicate property",
            V5,
            Client,
            packet(0x30, b"\x00\x01a\x04\x01\x00\x01\x00"),
            "---x",
        ),
        (
            "property length overrun",
            V5,
            Client,
            packet(0x30, b"\x00\x01a\x03\x02\x00\x00\x00\x00"),
            "---x",
        ),
        (
            "indicator above one",
            V5,
            Client,
            packet(0x30, b"\x00\x01a\x02\x01\x07"),
            "---x",
        ),
        (
            "CONNECT with a trailing byte",
            V311,
            Client,
            packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01cx"),
            "-xxx",
        ),
        (
            "password without user name",
            V311,
            Client,
            packet(0x10, b"\x00\x04MQTT\x04\x42\x00\x3c\x00\x01c\x00\x01p"),
            "-xxx",
        ),
        (
            "QoS 0 with DUP",
            V311,
            Client,
            packet(0x38, b"\x00\x01a"),
            "-xxx",
        ),
        (
            "PINGREQ with a body",
            V311,
            Client,
            packet(0xc0, b"\x00"),
            "-xxx",
        ),
        (
            "length not minimal",
            V5,
            Client,
            b"\xc0\x80\x00".to_vec(),
            "-xxx",
        ),
        (
            "filter with `+` not alone",
            V311,
            Client,
            packet(0x82, b"\x00\x01\x00\x04a+/b\x00"),
            "--xx",
        ),
        (
            "reserved option bits",
            V311,
            Client,
            packet(0x82, b"\x00\x01\x00\x01a\xf0"),
            "--xx",
        ),
        (
            "SUBACK without a code",
            V311,
            Server,
            packet(0x90, b"\x00\x01"),
            "-xx-",
        ),
        (
            "CONNACK from a client",
            V311,
            Client,
            packet(0x20, b"\x00\x00"),
            "-xxx",
        ),
        (
            "server's code from a client",
            V5,
            Client,
            packet(0xe0, b"\x8b\x00"),
            "-xx-",
        ),
    ];
    for (name, version, side, bytes, expected) in table {
        let accepts = [
            decode(*version, *side, bytes).is_ok(),
            mqtt_proto(*version, bytes).is_some(),
            rmqtt(*version, bytes).is_some(),
            mqttbytes(*version, bytes).is_some(),
        ];
        let accepts: String = accepts
            .map(|is| if is { 'x' } else { '-' })
            .iter()
            .collect();
        assert_eq!(accepts, *expected, "{name}");
    }
}
