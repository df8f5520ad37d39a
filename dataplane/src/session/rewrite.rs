//! Packets written by hand, and edits of property lists.
//!
//! Owns the bytes of what the proxy originates or changes. Everything it is given was decoded before, so lengths fit; it
//! decides nothing. Whole packets that nothing was changed in never come here: they are forwarded as they lie.

use sluice_wire::mqtt::{
    Connack, Connect, PacketId, PacketKind, Properties, Property, PropertyId, Publish, QoS, Version,
};
use smallvec::SmallVec;

/// A packet of a few bytes, without an allocation.
pub(super) type Small = SmallVec<[u8; 8]>;

/// The first byte of a PUBLISH.
pub(super) fn publish_first_byte(dup: bool, qos: QoS, retain: bool) -> u8 {
    (PacketKind::Publish as u8) << 4 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain)
}

/// PUBACK, PUBREC or PUBCOMP. A code of 0, and any code below version 5, leaves the code out.
pub(super) fn ack(version: Version, kind: PacketKind, packet_id: PacketId, code: u8) -> Small {
    let [high, low] = packet_id.get().to_be_bytes();
    let first = (kind as u8) << 4;
    if version == Version::V5 && code != 0 {
        Small::from_slice(&[first, 3, high, low, code])
    } else {
        Small::from_slice(&[first, 2, high, low])
    }
}

/// DISCONNECT. Below version 5 there is no code.
pub(super) fn disconnect(version: Version, code: u8) -> Small {
    if version == Version::V5 && code != 0 {
        Small::from_slice(&[0xe0, 1, code])
    } else {
        Small::from_slice(&[0xe0, 0])
    }
}

/// A CONNACK that refuses.
pub(super) fn connack_refusal(version: Version, code: u8) -> Small {
    if version == Version::V5 {
        Small::from_slice(&[0x20, 3, 0, code, 0])
    } else {
        Small::from_slice(&[0x20, 2, 0, code])
    }
}

/// PINGREQ.
pub(super) const PINGREQ: [u8; 2] = [0xc0, 0];

/// Appends `value` as a variable byte integer; what is above the protocol's maximum is cut to it.
pub(super) fn put_varint(out: &mut Vec<u8>, value: u32) {
    let mut rest = value.min(268_435_455);
    loop {
        let digit = u8::try_from(rest & 0x7f).unwrap_or(0);
        rest >>= 7;
        if rest == 0 {
            return out.push(digit);
        }
        out.push(digit | 0x80);
    }
}

fn varint_bytes(value: u32) -> u32 {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

fn len32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Appends a two-byte length and the bytes.
pub(super) fn put_data(out: &mut Vec<u8>, data: &[u8]) {
    let len = u16::try_from(data.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data.get(..usize::from(len)).unwrap_or(data));
}

/// Appends a property list with its length, in version 5.
pub(super) fn put_properties(out: &mut Vec<u8>, version: Version, properties: &[u8]) {
    if version == Version::V5 {
        put_varint(out, len32(properties));
        out.extend_from_slice(properties);
    }
}

/// Appends a fixed header and the body.
pub(super) fn put_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    put_varint(out, len32(body));
    out.extend_from_slice(body);
}

/// One change of a property list.
pub(super) enum Edit<'a> {
    /// The number is `1`, whatever it was.
    Number(PropertyId, u32),
    /// The text is `1`, whatever it was.
    Text(PropertyId, &'a str),
}

impl Edit<'_> {
    fn id(&self) -> PropertyId {
        match self {
            Self::Number(id, _) | Self::Text(id, _) => *id,
        }
    }
}

/// The property list with the edits made; everything else in its order and as it was.
pub(super) fn edited(properties: Properties<'_>, edits: &[Edit<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(properties.as_bytes().len() + edits.len() * 8);
    for property in properties.iter() {
        let id = match property {
            Property::Number(id, _) | Property::Text(id, _) | Property::Data(id, _) => id,
            Property::Pair(..) => PropertyId::UserProperty,
        };
        if !edits.iter().any(|edit| edit.id() == id) {
            put_property(&mut out, &property);
        }
    }
    for edit in edits {
        match *edit {
            Edit::Number(id, number) => put_property(&mut out, &Property::Number(id, number)),
            Edit::Text(id, text) => put_property(&mut out, &Property::Text(id, text)),
        }
    }
    out
}

fn put_property(out: &mut Vec<u8>, property: &Property<'_>) {
    match *property {
        Property::Number(id, number) => {
            out.push(id as u8);
            put_number(out, id, number);
        }
        Property::Text(id, text) => {
            out.push(id as u8);
            put_data(out, text.as_bytes());
        }
        Property::Data(id, data) => {
            out.push(id as u8);
            put_data(out, data);
        }
        Property::Pair(name, value) => {
            out.push(PropertyId::UserProperty as u8);
            put_data(out, name.as_bytes());
            put_data(out, value.as_bytes());
        }
    }
}

/// The widths of MQTT 5 table 2-4. Texts and data never come here; they would be written as a byte.
fn put_number(out: &mut Vec<u8>, id: PropertyId, number: u32) {
    use PropertyId as P;
    match id {
        P::MessageExpiryInterval
        | P::SessionExpiryInterval
        | P::WillDelayInterval
        | P::MaximumPacketSize => out.extend_from_slice(&number.to_be_bytes()),
        P::ServerKeepAlive | P::ReceiveMaximum | P::TopicAliasMaximum | P::TopicAlias => {
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            out.extend_from_slice(&number.to_be_bytes());
        }
        P::SubscriptionIdentifier => put_varint(out, number),
        P::PayloadFormatIndicator
        | P::RequestProblemInformation
        | P::RequestResponseInformation
        | P::MaximumQos
        | P::RetainAvailable
        | P::WildcardSubscriptionAvailable
        | P::SubscriptionIdentifierAvailable
        | P::SharedSubscriptionAvailable
        | P::ContentType
        | P::ResponseTopic
        | P::CorrelationData
        | P::AssignedClientIdentifier
        | P::AuthenticationMethod
        | P::AuthenticationData
        | P::ResponseInformation
        | P::ServerReference
        | P::ReasonString
        | P::UserProperty => out.push(u8::try_from(number).unwrap_or(u8::MAX)),
    }
}

/// What a rewritten CONNECT has instead of the client's.
pub(super) struct ConnectEdits<'a> {
    pub(super) client_id: &'a str,
    pub(super) will: Option<(QoS, bool)>,
    pub(super) properties: &'a [u8],
}

/// Appends a CONNECT.
pub(super) fn put_connect(out: &mut Vec<u8>, connect: &Connect<'_>, edits: &ConnectEdits<'_>) {
    let mut body = Vec::with_capacity(64 + edits.client_id.len() + edits.properties.len());
    let (name, level): (&[u8], u8) = match connect.version {
        Version::V31 => (b"MQIsdp", 3),
        Version::V311 => (b"MQTT", 4),
        Version::V5 => (b"MQTT", 5),
    };
    put_data(&mut body, name);
    body.push(level);
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some((qos, retain)) = edits.will {
        flags |= 1 << 2 | (qos as u8) << 3 | u8::from(retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6;
    flags |= u8::from(connect.username.is_some()) << 7;
    body.push(flags);
    body.extend_from_slice(&connect.keep_alive_secs.to_be_bytes());
    put_properties(&mut body, connect.version, edits.properties);
    put_data(&mut body, edits.client_id.as_bytes());
    if let (Some(will), Some(_)) = (&connect.will, edits.will) {
        put_properties(&mut body, connect.version, will.properties.as_bytes());
        put_data(&mut body, will.topic.as_bytes());
        put_data(&mut body, will.payload);
    }
    if let Some(username) = connect.username {
        put_data(&mut body, username.as_bytes());
    }
    if let Some(password) = connect.password {
        put_data(&mut body, password);
    }
    put_packet(out, (PacketKind::Connect as u8) << 4, &body);
    zeroize::Zeroize::zeroize(&mut body);
}

/// Appends a CONNACK of version 5 with other properties.
pub(super) fn put_connack(out: &mut Vec<u8>, connack: &Connack<'_>, properties: &[u8]) {
    let mut body = Vec::with_capacity(properties.len() + 8);
    body.push(u8::from(connack.session_present));
    body.push(connack.code);
    put_properties(&mut body, Version::V5, properties);
    put_packet(out, (PacketKind::Connack as u8) << 4, &body);
}

/// The head of a PUBLISH as it goes on.
pub(super) struct PublishHead<'a> {
    pub(super) first_byte: u8,
    pub(super) topic: &'a str,
    pub(super) packet_id: Option<PacketId>,
    pub(super) properties: &'a [u8],
    pub(super) payload_bytes: u32,
}

impl<'a> PublishHead<'a> {
    /// The head of `publish` with another QoS and topic; a lowering to QoS 0 takes identifier and DUP off.
    pub(super) fn of(publish: &Publish<'a>, topic: &'a str, qos: QoS, retain: bool) -> Self {
        let acknowledged = qos != QoS::AtMostOnce;
        Self {
            first_byte: publish_first_byte(publish.dup && acknowledged, qos, retain),
            topic,
            packet_id: publish.packet_id.filter(|_| acknowledged),
            properties: publish.properties.as_bytes(),
            payload_bytes: publish.payload_bytes,
        }
    }

    fn remaining_bytes(&self, version: Version) -> u32 {
        let properties = if version == Version::V5 {
            let len = len32(self.properties);
            varint_bytes(len).saturating_add(len)
        } else {
            0
        };
        len32(self.topic.as_bytes())
            .saturating_add(2)
            .saturating_add(if self.packet_id.is_some() { 2 } else { 0 })
            .saturating_add(properties)
            .saturating_add(self.payload_bytes)
    }

    /// The length of the whole packet.
    pub(super) fn packet_bytes(&self, version: Version) -> u32 {
        let remaining = self.remaining_bytes(version);
        varint_bytes(remaining)
            .saturating_add(1)
            .saturating_add(remaining)
    }

    /// Appends the head; the payload is to follow.
    pub(super) fn put(&self, out: &mut Vec<u8>, version: Version) {
        out.push(self.first_byte);
        put_varint(out, self.remaining_bytes(version));
        put_data(out, self.topic.as_bytes());
        if let Some(packet_id) = self.packet_id {
            out.extend_from_slice(&packet_id.get().to_be_bytes());
        }
        put_properties(out, version, self.properties);
    }
}
