//! What a server meant by a packet that breaks a rule.
//!
//! Owns the second look at what [`decode`] refuses: a proxy that ends a session for every fault of a broker helps no client,
//! since the client comes back and meets the same fault. What is mended here is legal again; what cannot be mended is
//! `None`. Nothing here is called for a packet that is in order.

use super::codes::{is_suback, nearest};
use super::decode::decode;
use super::encode::framed;
use super::header::{self, DUP, FLAGS_0010};
use super::packet::{PacketId, PacketKind, QoS, Side, Version};
use super::properties::{Place, PropertyId, read_properties};
use super::violation::Violation;
use crate::cursor::Cursor;

/// A legal packet that says what `bytes`, a whole packet of a server that [`decode`] refuses, can only have meant.
///
/// - CONNACK that refuses, in the form or with the codes of another version; a success must be in the right form.
/// - Codes that the packet does not define: an error stays an error, all else becomes success, in SUBACK all is an error,
///   and so is what it does not answer.
/// - Acknowledgements and DISCONNECT with properties that cannot be read, or with bytes that do not belong there.
///
/// `requested` tells the QoS that each filter of the SUBSCRIBE with this identifier asked for, and nothing when that is not
/// known. 3.1 has no code for a subscription that failed; there it is the answer, or 0.
pub fn mend(
    version: Version,
    bytes: &[u8],
    requested: impl FnOnce(PacketId) -> Vec<QoS>,
) -> Option<Vec<u8>> {
    let header = header::parse(Side::Server, version, bytes).ok()??;
    let body = bytes.get(usize::from(header.header_bytes)..)?;
    let kind = header.kind;
    match kind {
        PacketKind::Connack => connack(version, body),
        PacketKind::Puback | PacketKind::Pubrec | PacketKind::Pubrel | PacketKind::Pubcomp => {
            let (id, rest) = body.split_first_chunk::<2>()?;
            coded(version, kind, id, rest)
        }
        PacketKind::Disconnect => coded(version, kind, &[], body),
        PacketKind::Suback => suback(version, body, requested),
        PacketKind::Unsuback => unsuback(version, body),
        PacketKind::Connect
        | PacketKind::Publish
        | PacketKind::Subscribe
        | PacketKind::Unsubscribe
        | PacketKind::Pingreq
        | PacketKind::Pingresp
        | PacketKind::Auth => None,
    }
}

fn connack(version: Version, body: &[u8]) -> Option<Vec<u8>> {
    let [flags, code, rest @ ..] = body else {
        return None;
    };
    if *code == 0 {
        return packet(version, PacketKind::Connack, &[&[*flags & 1, 0], rest]);
    }
    let refusal = [0, nearest(version, PacketKind::Connack, *code)];
    let bare: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    packet(version, PacketKind::Connack, &[&refusal, rest])
        .or_else(|| packet(version, PacketKind::Connack, &[&refusal, bare]))
}

/// A packet that may end after `front`, after its code, or after its properties.
fn coded(version: Version, kind: PacketKind, front: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
    let (code, properties) = match rest {
        [code, properties @ ..] if version == Version::V5 => {
            (nearest(version, kind, *code), properties)
        }
        _ => (0, &[][..]),
    };
    let bare: &[u8] = if code == 0 { &[] } else { &[code] };
    let whole = match properties {
        [] => None,
        properties => packet(version, kind, &[front, &[code], properties]),
    };
    whole.or_else(|| packet(version, kind, &[front, bare]))
}

fn suback(
    version: Version,
    body: &[u8],
    requested: impl FnOnce(PacketId) -> Vec<QoS>,
) -> Option<Vec<u8>> {
    let (front, codes) = codes_of_ack(version, body)?;
    let id = front.first_chunk::<2>()?;
    let id = PacketId::new(u16::from_be_bytes(*id))?;
    let requested = requested(id);
    let failure = |index: usize| match (version, requested.get(index)) {
        (Version::V31, Some(qos)) => qos.bits(),
        (Version::V31, None) => 0,
        (Version::V311 | Version::V5, _) => 0x80,
    };
    let mended: Vec<u8> = (0..codes.len().max(requested.len()))
        .map(|index| match codes.get(index) {
            Some(code) if is_suback(version, *code) => *code,
            Some(_) | None => failure(index),
        })
        .collect();
    packet(version, PacketKind::Suback, &[front, &mended])
}

fn unsuback(version: Version, body: &[u8]) -> Option<Vec<u8>> {
    let (front, codes) = codes_of_ack(version, body)?;
    if version < Version::V5 {
        return packet(version, PacketKind::Unsuback, &[front]);
    }
    let mended: Vec<u8> = codes
        .iter()
        .map(|code| nearest(version, PacketKind::Unsuback, *code))
        .collect();
    packet(version, PacketKind::Unsuback, &[front, &mended])
}

/// Identifier and properties, and the codes after them.
fn codes_of_ack(version: Version, body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = Cursor::new(body);
    fields.u16()?;
    read_properties(&mut fields, version, Place::Ack).ok()?;
    let codes = fields.rest();
    Some((body.get(..body.len() - codes.len())?, codes))
}

/// The packet of these parts, if it is legal now.
fn packet(version: Version, kind: PacketKind, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let flags = if kind == PacketKind::Pubrel {
        FLAGS_0010
    } else {
        0
    };
    let mut bytes = Vec::new();
    framed(&mut bytes, kind.number() << 4 | flags, 0, |body| {
        for part in parts {
            body.extend_from_slice(part);
        }
        Ok(())
    })
    .ok()?;
    decode(version, Side::Server, &bytes)
        .is_ok()
        .then_some(bytes)
}

/// What is left of a PUBLISH whose head [`super::decode_publish_head`] refuses: enough to acknowledge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishRemains {
    /// Re-delivery flag.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// The packet identifier, if it is one.
    pub packet_id: Option<PacketId>,
    /// The topic alias that it carries; an error when the properties cannot be read, so that it may have set any.
    pub alias: Result<Option<u32>, Violation>,
}

/// What is left of a PUBLISH of a server, from its head as [`super::Step::PublishHead`] gives it.
pub fn publish_remains(version: Version, head: &[u8]) -> Option<PublishRemains> {
    let header = header::parse(Side::Server, version, head).ok()??;
    let mut fields = Cursor::new(head.get(usize::from(header.header_bytes)..)?);
    fields.prefixed()?;
    let qos = QoS::from_bits(header.flags >> 1)?;
    let packet_id = match qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce | QoS::ExactlyOnce => PacketId::new(fields.u16()?),
    };
    let properties = read_properties(&mut fields, version, Place::Publish(Side::Server));
    Some(PublishRemains {
        dup: header.flags & DUP != 0,
        qos,
        packet_id,
        alias: properties.map(|properties| properties.number(PropertyId::TopicAlias)),
    })
}
