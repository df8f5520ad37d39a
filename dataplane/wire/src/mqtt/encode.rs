//! Packets to bytes: what the proxy originates, what it rewrites, and what tests send.
//!
//! Owns lengths: a field that does not fit its length prefix is refused, never cut. Does not judge whether the packet is
//! legal; the decoder does.
//!
//! Rewriting is encoding a decoded view with other fields (`Publish { qos, ..head }`) and with [`PropertyEdit`]s: all
//! properties are copied in order except those edited, then come the new ones.

use super::decode::decode;
use super::header::{DUP, FLAGS_0010, RETAIN};
use super::packet::{
    Ack, BRIDGE, Connack, Connect, Packet, PacketId, PacketKind, Publish, Side, Subscribe,
    SubscribeFilter, Version, Will,
};
use super::properties::{DataType, Properties, PropertiesBuf, Property, PropertyId};

/// The greatest value of a variable byte integer (section 1.5.5), and so the longest packet body.
const VARINT_MAX: u32 = 268_435_455;

/// A field does not fit its place on the wire: longer than its length prefix can say, a number too great for its data
/// type, or a property variant that is not the property's data type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl core::fmt::Display for TooLong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a field does not fit its length on the wire")
    }
}

impl core::error::Error for TooLong {}

/// One change to the properties of a packet. Without effect below version 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropertyEdit<'a> {
    /// Leave every property with this identifier out.
    Remove(PropertyId),
    /// Put this one in place of every property with its identifier; a User Property is added to those there are.
    Set(Property<'a>),
}

impl PropertyEdit<'_> {
    fn removes(&self, id: PropertyId) -> bool {
        match self {
            Self::Remove(removed) => *removed == id,
            Self::Set(property) => property.id() == id && id != PropertyId::UserProperty,
        }
    }
}

/// Appends the packet to `out`. Fields that do not fit their length prefix are refused, never truncated; `out` is then
/// as it was.
///
/// The short forms of version 5 are used where they say the same. `payload_bytes` of a PUBLISH is not looked at: the
/// payload is what is at hand (see [`encode_publish_head`] for the other case).
pub fn encode(version: Version, packet: &Packet<'_>, out: &mut Vec<u8>) -> Result<(), TooLong> {
    match packet {
        Packet::Connect(connect) => encode_connect(connect, &[], out),
        Packet::Connack(connack) => encode_connack(version, connack, &[], out),
        Packet::Publish(publish) => encode_publish(version, publish, out),
        Packet::Puback(ack) => encode_ack(version, PacketKind::Puback, ack, out),
        Packet::Pubrec(ack) => encode_ack(version, PacketKind::Pubrec, ack, out),
        Packet::Pubrel(ack) => encode_ack(version, PacketKind::Pubrel, ack, out),
        Packet::Pubcomp(ack) => encode_ack(version, PacketKind::Pubcomp, ack, out),
        Packet::Subscribe(subscribe) => encode_subscribe(version, subscribe, out),
        Packet::Suback(suback) => encode_suback(
            version,
            suback.packet_id,
            suback.properties,
            suback.codes,
            out,
        ),
        Packet::Unsubscribe(unsubscribe) => encode_unsubscribe(
            version,
            unsubscribe.packet_id,
            unsubscribe.properties,
            unsubscribe.filters(),
            out,
        ),
        Packet::Unsuback(unsuback) => encode_unsuback(
            version,
            unsuback.packet_id,
            unsuback.properties,
            unsuback.codes,
            out,
        ),
        Packet::Pingreq => framed(out, first_byte(PacketKind::Pingreq, 0), 0, |_| Ok(())),
        Packet::Pingresp => framed(out, first_byte(PacketKind::Pingresp, 0), 0, |_| Ok(())),
        Packet::Disconnect(disconnect) => {
            let first = first_byte(PacketKind::Disconnect, 0);
            framed(out, first, 0, |body| {
                append_tail(body, version, disconnect.code, disconnect.properties)
            })
        }
        Packet::Auth(auth) => framed(out, first_byte(PacketKind::Auth, 0), 0, |body| {
            append_tail(body, version, auth.code, auth.properties)
        }),
    }
}

/// Appends a CONNECT with its properties edited. For another client id, user name or will, change the view.
pub fn encode_connect(
    connect: &Connect<'_>,
    edits: &[PropertyEdit<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    framed(out, first_byte(PacketKind::Connect, 0), 0, |body| {
        let name: &[u8] = match connect.version {
            Version::V31 => b"MQIsdp",
            Version::V311 | Version::V5 => b"MQTT",
        };
        append_prefixed(body, name)?;
        let bridge = if connect.is_bridge { BRIDGE } else { 0 };
        body.push(connect.version.level() | bridge);
        body.push(connect_flags(connect));
        body.extend_from_slice(&connect.keep_alive_secs.to_be_bytes());
        append_properties(body, connect.version, connect.properties, edits)?;
        append_prefixed(body, connect.client_id.as_bytes())?;
        if let Some(will) = &connect.will {
            append_will(body, connect.version, will)?;
        }
        if let Some(username) = connect.username {
            append_prefixed(body, username.as_bytes())?;
        }
        if let Some(password) = connect.password {
            append_prefixed(body, password)?;
        }
        Ok(())
    })
}

/// Appends a CONNACK with its properties edited.
pub fn encode_connack(
    version: Version,
    connack: &Connack<'_>,
    edits: &[PropertyEdit<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    framed(out, first_byte(PacketKind::Connack, 0), 0, |body| {
        body.extend_from_slice(&[u8::from(connack.session_present), connack.code]);
        append_properties(body, version, connack.properties, edits)
    })
}

/// Appends the head of a PUBLISH, for a payload of `payload_bytes` that follows by another way.
pub fn encode_publish_head(
    version: Version,
    publish: &Publish<'_>,
    edits: &[PropertyEdit<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let flags = (publish.qos.bits() << 1)
        | if publish.dup { DUP } else { 0 }
        | if publish.retain { RETAIN } else { 0 };
    let first = first_byte(PacketKind::Publish, flags);
    framed(out, first, publish.payload_bytes, |body| {
        append_prefixed(body, publish.topic.as_bytes())?;
        if let Some(packet_id) = publish.packet_id {
            body.extend_from_slice(&packet_id.get().to_be_bytes());
        }
        append_properties(body, version, publish.properties, edits)
    })
}

/// The filters are copied as they lie: there may be very many, and each was checked when it came there.
fn encode_subscribe(
    version: Version,
    subscribe: &Subscribe<'_>,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let first = first_byte(PacketKind::Subscribe, FLAGS_0010);
    framed(out, first, 0, |body| {
        body.extend_from_slice(&subscribe.packet_id.get().to_be_bytes());
        append_properties(body, version, subscribe.properties, &[])?;
        body.extend_from_slice(subscribe.body);
        Ok(())
    })
}

/// Appends an UNSUBSCRIBE of these filters.
pub fn encode_unsubscribe<'a>(
    version: Version,
    packet_id: PacketId,
    properties: Properties<'_>,
    filters: impl IntoIterator<Item = &'a str>,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let first = first_byte(PacketKind::Unsubscribe, FLAGS_0010);
    framed(out, first, 0, |body| {
        body.extend_from_slice(&packet_id.get().to_be_bytes());
        append_properties(body, version, properties, &[])?;
        for filter in filters {
            append_prefixed(body, filter.as_bytes())?;
        }
        Ok(())
    })
}

/// Appends a first byte and a remaining length in as few bytes as it needs.
pub fn encode_fixed_header(
    first: u8,
    remaining_bytes: u32,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    framed(out, first, remaining_bytes, |_| Ok(()))
}

/// A packet of a server without what it must leave out rather than send more than the client takes: Reason String
/// [MQTT-3.2.2-19] and User Properties [MQTT-3.2.2-20], and the same for the other packets. `None` for what is none of
/// these, or not legal.
pub fn slim(version: Version, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut packet = decode(version, Side::Server, bytes).ok()?;
    let properties = match &mut packet {
        Packet::Connack(connack) => &mut connack.properties,
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
            &mut ack.properties
        }
        Packet::Suback(suback) => &mut suback.properties,
        Packet::Unsuback(unsuback) => &mut unsuback.properties,
        Packet::Disconnect(disconnect) => &mut disconnect.properties,
        Packet::Auth(auth) => &mut auth.properties,
        Packet::Connect(_)
        | Packet::Publish(_)
        | Packet::Subscribe(_)
        | Packet::Unsubscribe(_)
        | Packet::Pingreq
        | Packet::Pingresp => return None,
    };
    let mut kept = PropertiesBuf::new();
    for property in properties.iter() {
        if !matches!(
            property.id(),
            PropertyId::ReasonString | PropertyId::UserProperty
        ) {
            kept.push(property).ok()?;
        }
    }
    *properties = kept.view();
    let mut slimmed = Vec::new();
    encode(version, &packet, &mut slimmed).ok()?;
    Some(slimmed)
}

fn encode_publish(
    version: Version,
    publish: &Publish<'_>,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let head = Publish {
        payload_bytes: u32::try_from(publish.payload.len()).map_err(|_| TooLong)?,
        ..publish.clone()
    };
    encode_publish_head(version, &head, &[], out)?;
    out.extend_from_slice(publish.payload);
    Ok(())
}

fn encode_ack(
    version: Version,
    kind: PacketKind,
    ack: &Ack<'_>,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let flags = if kind == PacketKind::Pubrel {
        FLAGS_0010
    } else {
        0
    };
    framed(out, first_byte(kind, flags), 0, |body| {
        body.extend_from_slice(&ack.packet_id.get().to_be_bytes());
        append_tail(body, version, ack.code, ack.properties)
    })
}

fn encode_suback(
    version: Version,
    packet_id: PacketId,
    properties: Properties<'_>,
    codes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    framed(out, first_byte(PacketKind::Suback, 0), 0, |body| {
        body.extend_from_slice(&packet_id.get().to_be_bytes());
        append_properties(body, version, properties, &[])?;
        body.extend_from_slice(codes);
        Ok(())
    })
}

/// Below version 5 an UNSUBACK has no codes.
fn encode_unsuback(
    version: Version,
    packet_id: PacketId,
    properties: Properties<'_>,
    codes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    framed(out, first_byte(PacketKind::Unsuback, 0), 0, |body| {
        body.extend_from_slice(&packet_id.get().to_be_bytes());
        append_properties(body, version, properties, &[])?;
        if version == Version::V5 {
            body.extend_from_slice(codes);
        }
        Ok(())
    })
}

fn connect_flags(connect: &Connect<'_>) -> u8 {
    let mut flags = 0;
    if connect.clean_start {
        flags |= 0x02;
    }
    if let Some(will) = &connect.will {
        flags |= 0x04 | (will.qos.bits() << 3);
        if will.retain {
            flags |= 0x20;
        }
    }
    if connect.password.is_some() {
        flags |= 0x40;
    }
    if connect.username.is_some() {
        flags |= 0x80;
    }
    flags
}

fn append_will(body: &mut Vec<u8>, version: Version, will: &Will<'_>) -> Result<(), TooLong> {
    append_properties(body, version, will.properties, &[])?;
    append_prefixed(body, will.topic.as_bytes())?;
    append_prefixed(body, will.payload)
}

/// Code and properties in the shortest form that says the same; nothing below version 5.
fn append_tail(
    body: &mut Vec<u8>,
    version: Version,
    code: u8,
    properties: Properties<'_>,
) -> Result<(), TooLong> {
    if version < Version::V5 || (code == 0 && properties.is_empty()) {
        return Ok(());
    }
    body.push(code);
    if properties.is_empty() {
        return Ok(());
    }
    append_properties(body, version, properties, &[])
}

/// Appends the property length and the properties as edited; nothing below version 5.
fn append_properties(
    body: &mut Vec<u8>,
    version: Version,
    properties: Properties<'_>,
    edits: &[PropertyEdit<'_>],
) -> Result<(), TooLong> {
    if version < Version::V5 {
        return Ok(());
    }
    with_length(body, 0, |bytes| {
        if edits.is_empty() {
            bytes.extend_from_slice(properties.bytes);
            return Ok(());
        }
        for (id, _, written) in properties.slices() {
            if !edits.iter().any(|edit| edit.removes(id)) {
                bytes.extend_from_slice(written);
            }
        }
        for edit in edits {
            match edit {
                PropertyEdit::Remove(_) => {}
                PropertyEdit::Set(property) => append_property(bytes, *property)?,
            }
        }
        Ok(())
    })
}

pub(crate) fn append_property(bytes: &mut Vec<u8>, property: Property<'_>) -> Result<(), TooLong> {
    let start = bytes.len();
    let appended = append_property_fields(bytes, property);
    if appended.is_err() {
        bytes.truncate(start);
    }
    appended
}

fn append_property_fields(bytes: &mut Vec<u8>, property: Property<'_>) -> Result<(), TooLong> {
    let id = property.id();
    bytes.push(id as u8);
    match (id.data_type(), property) {
        (DataType::Byte, Property::Number(_, number)) => {
            bytes.push(u8::try_from(number).map_err(|_| TooLong)?);
            Ok(())
        }
        (DataType::TwoByte, Property::Number(_, number)) => {
            let number = u16::try_from(number).map_err(|_| TooLong)?;
            bytes.extend_from_slice(&number.to_be_bytes());
            Ok(())
        }
        (DataType::FourByte, Property::Number(_, number)) => {
            bytes.extend_from_slice(&number.to_be_bytes());
            Ok(())
        }
        (DataType::Variable, Property::Number(_, number)) => {
            let number = VarintBytes::new(number).ok_or(TooLong)?;
            bytes.extend_from_slice(number.as_slice());
            Ok(())
        }
        (DataType::Text, Property::Text(_, text)) => append_prefixed(bytes, text.as_bytes()),
        (DataType::Binary, Property::Data(_, data)) => append_prefixed(bytes, data),
        (DataType::Pair, Property::Pair(name, value)) => {
            append_prefixed(bytes, name.as_bytes())?;
            append_prefixed(bytes, value.as_bytes())
        }
        (
            _,
            Property::Number(..) | Property::Text(..) | Property::Data(..) | Property::Pair(..),
        ) => Err(TooLong),
    }
}

/// Two bytes of length, then the data; nothing when it is too long.
pub(crate) fn append_prefixed(bytes: &mut Vec<u8>, data: &[u8]) -> Result<(), TooLong> {
    let len = u16::try_from(data.len()).map_err(|_| TooLong)?;
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(data);
    Ok(())
}

pub(crate) fn append_subscribe_filter(
    bytes: &mut Vec<u8>,
    filter: &SubscribeFilter<'_>,
) -> Result<(), TooLong> {
    append_prefixed(bytes, filter.filter.as_bytes())?;
    bytes.push(filter.options_with_qos());
    Ok(())
}

const fn first_byte(kind: PacketKind, flags: u8) -> u8 {
    (kind.number() << 4) | flags
}

/// Appends a first byte, a remaining length and the body that `write` appends; `extra_bytes` of the packet follow by
/// another way. When `write` fails, or the length does not fit, `out` is as it was.
pub(super) fn framed(
    out: &mut Vec<u8>,
    first: u8,
    extra_bytes: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), TooLong>,
) -> Result<(), TooLong> {
    let start = out.len();
    out.push(first);
    let written = with_length(out, extra_bytes, write);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// Appends a variable byte integer and as many bytes after it (less `extra_bytes`). The body is written after a
/// one-byte length, which is what most packets need, and moved when it needs more.
fn with_length(
    out: &mut Vec<u8>,
    extra_bytes: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), TooLong>,
) -> Result<(), TooLong> {
    let start = out.len();
    out.push(0);
    write(out)?;
    let len = u32::try_from(out.len() - start - 1)
        .ok()
        .and_then(|len| len.checked_add(extra_bytes))
        .and_then(VarintBytes::new)
        .ok_or(TooLong)?;
    // An iterator of known length: the tail moves once and nothing is allocated beside `out`.
    out.splice(start..=start, len.as_slice().iter().copied());
    Ok(())
}

/// A variable byte integer as it is written.
struct VarintBytes {
    bytes: [u8; 4],
    len: usize,
}

impl VarintBytes {
    /// `None` when the value would need five bytes.
    fn new(value: u32) -> Option<Self> {
        if value > VARINT_MAX {
            return None;
        }
        let mut written = Self {
            bytes: [0; 4],
            len: 0,
        };
        let mut rest = value;
        for byte in &mut written.bytes {
            let [low, ..] = (rest & 0x7f).to_le_bytes();
            rest >>= 7;
            *byte = if rest > 0 { low | 0x80 } else { low };
            written.len += 1;
            if rest == 0 {
                break;
            }
        }
        Some(written)
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}
