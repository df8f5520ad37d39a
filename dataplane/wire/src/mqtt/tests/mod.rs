//! Tests of the codec as a whole: framer, decoder and encoder together.

mod bad_inputs;
mod framing;
mod oracles;
mod random;
mod rewriting;
mod round_trip;
mod violations;

use super::*;

/// A packet from its first byte and its body.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut rest = body.len();
    loop {
        let low = (rest % 128) as u8;
        rest /= 128;
        bytes.push(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

/// What a session would find in `chunks`: every packet decoded, PUBLISH from its head. Gives the number of packets.
pub(crate) fn read_stream<'a>(
    framer: &mut Framer,
    version: Version,
    side: Side,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Result<usize, Violation> {
    let mut count = 0;
    for chunk in chunks {
        let mut rest = chunk;
        loop {
            let consumed = match framer.next(rest)? {
                Step::Incomplete => break,
                Step::Packet {
                    bytes, consumed, ..
                } => {
                    decode(version, side, bytes)?;
                    count += 1;
                    consumed
                }
                Step::PublishHead {
                    bytes,
                    payload_bytes,
                    consumed,
                    ..
                } => {
                    let head = decode_publish_head(version, side, bytes)?;
                    assert_eq!(head.payload_bytes, payload_bytes);
                    count += 1;
                    consumed
                }
                Step::Payload { consumed, left } => {
                    assert!(consumed > 0 && left == framer.payload_left());
                    consumed
                }
            };
            rest = &rest[consumed..];
        }
    }
    Ok(count)
}

/// The framer of a session past CONNECT (or before it, when `version` is none).
pub(crate) fn framer(side: Side, version: Option<Version>, packet_bytes_max: u32) -> Framer {
    let mut framer = Framer::new(side, packet_bytes_max);
    if let Some(version) = version {
        framer.set_version(version);
    }
    framer
}

/// What a stream amounts to, however it was cut.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Seen {
    Packet(Vec<u8>),
    /// Head and payload.
    Publish(Vec<u8>, Vec<u8>),
}

/// Gathers what the framer cuts out of `chunks`, checking the invariants of the steps on the way.
pub(crate) fn gather<'a>(
    framer: &mut Framer,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<Seen>, Violation> {
    let mut seen = Vec::new();
    for chunk in chunks {
        let mut rest = chunk;
        loop {
            let consumed = match framer.next(rest)? {
                Step::Incomplete => break,
                Step::Packet {
                    header,
                    bytes,
                    at,
                    consumed,
                } => {
                    assert_eq!(header.packet_bytes() as usize, bytes.len());
                    check_place(rest, bytes, at, consumed);
                    seen.push(Seen::Packet(bytes.to_vec()));
                    consumed
                }
                Step::PublishHead {
                    header,
                    bytes,
                    at,
                    payload_bytes,
                    consumed,
                } => {
                    let whole = bytes.len() + payload_bytes as usize;
                    assert_eq!(header.packet_bytes() as usize, whole);
                    check_place(rest, bytes, at, consumed);
                    seen.push(Seen::Publish(bytes.to_vec(), Vec::new()));
                    consumed
                }
                Step::Payload { consumed, .. } => {
                    let Some(Seen::Publish(_, payload)) = seen.last_mut() else {
                        panic!("payload without a head");
                    };
                    payload.extend_from_slice(&rest[..consumed]);
                    consumed
                }
            };
            rest = &rest[consumed..];
        }
    }
    Ok(seen)
}

fn check_place(input: &[u8], bytes: &[u8], at: At, consumed: usize) {
    match at {
        At::Input => assert!(consumed == bytes.len() && std::ptr::eq(&input[..consumed], bytes)),
        At::Carry => assert!(consumed < bytes.len() && bytes.ends_with(&input[..consumed])),
    }
}

/// One legal packet of each kind, side and version, and of each of the forms a kind has.
pub(crate) fn valid_packets() -> Vec<(Version, Side, Vec<u8>)> {
    use Side::{Client, Server};
    use Version::{V5, V31, V311};
    let mut all = vec![
        (V31, Client, packet(0x10, b"\x00\x06MQIsdp\x03\xc6\x00\x3c\x00\x01c\x00\x01t\x00\x01m\x00\x01u\x00\x01p")),
        (V31, Client, packet(0x10, b"\x00\x06MQIsdp\x03\xc2\x00\x3c\x00\x01c")),
        (V311, Client, packet(0x10, b"\x00\x04MQTT\x04\xee\x00\x3c\x00\x01c\x00\x01t\x00\x01m\x00\x01u\x00\x02\xff\x00")),
        (V5, Client, packet(0x10, b"\x00\x04MQTT\x05\x76\x00\x3c\x05\x11\x00\x00\x00\x0a\x00\x00\x08\x18\x00\x00\x00\x01\x03\x00\x00\x00\x01t\x00\x01m\x00\x01p")),
        (V5, Client, packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")),
        (V5, Server, packet(0x20, b"\x01\x00\x0b\x21\x00\x0a\x22\x00\x0a\x12\x00\x02id")),
        (V5, Client, packet(0x3b, b"\x00\x03a/b\x00\x07\x00payload")),
        (V5, Client, packet(0x30, b"\x00\x00\x03\x23\x00\x01payload")),
        (V5, Server, packet(0x30, b"\x00\x01a\x0a\x0b\x01\x0b\x80\x01\x02\x00\x00\x00\x09payload")),
        (V5, Client, packet(0x40, b"\x00\x01")),
        (V5, Client, packet(0x40, b"\x00\x01\x87")),
        (V5, Client, packet(0x40, b"\x00\x01\x87\x00")),
        (V5, Client, packet(0x50, b"\x00\x01\x00\x07\x26\x00\x01k\x00\x01v")),
        (V5, Client, packet(0x62, b"\x00\x01\x92\x04\x1f\x00\x01r")),
        (V5, Client, packet(0x70, b"\x00\x01\x92")),
        (V5, Client, packet(0x82, b"\x00\x01\x02\x0b\x05\x00\x03a/+\x2d\x00\x0a$share/g/#\x01")),
        (V5, Server, packet(0x90, b"\x00\x01\x00\x00\x87")),
        (V5, Client, packet(0xa2, b"\x00\x01\x00\x00\x03a/+\x00\x01#")),
        (V5, Server, packet(0xb0, b"\x00\x01\x00\x00\x11")),
        (V5, Client, packet(0xe0, b"")),
        (V5, Client, packet(0xe0, b"\x04")),
        (V5, Client, packet(0xe0, b"\x04\x05\x11\x00\x00\x00\x05")),
        (V5, Server, packet(0xe0, b"\x8b\x04\x1c\x00\x01s")),
        (V5, Client, packet(0xf0, b"\x18\x08\x15\x00\x01m\x16\x00\x01d")),
        (V5, Server, packet(0xf0, b"")),
    ];
    for version in [V31, V311] {
        all.extend([
            (version, Server, packet(0x20, b"\x00\x05")),
            (version, Client, packet(0x3d, b"\x00\x03a/b\x00\x07payload")),
            (version, Server, packet(0x31, b"\x00\x02\xc3\xa9")),
            (version, Client, packet(0x82, b"\x00\x01\x00\x03a/+\x02")),
            (version, Server, packet(0x90, b"\x00\x01\x00\x01\x02")),
            (version, Client, packet(0xa2, b"\x00\x01\x00\x03a/+")),
            (version, Server, packet(0xb0, b"\x00\x01")),
            (version, Client, packet(0x62, b"\x00\x01")),
            (version, Server, packet(0x50, b"\x00\x01")),
            (version, Client, packet(0xe0, b"")),
        ]);
    }
    for version in [V31, V311, V5] {
        all.push((version, Client, packet(0xc0, b"")));
        all.push((version, Server, packet(0xd0, b"")));
    }
    all
}

#[test]
fn valid_packets_are_valid_and_cover_every_kind() {
    let mut kinds: Vec<u8> = Vec::new();
    for (version, side, bytes) in valid_packets() {
        match decode(version, side, &bytes) {
            Ok(packet) => kinds.push(packet.kind().number()),
            Err(violation) => panic!("{version:?} {side:?} {bytes:02x?}: {violation:?}"),
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, (1..=15).collect::<Vec<_>>());
}
