//! Bytes of MQTT packets as a test wants them, and whole packets cut from a stream.
//!
//! Builders never validate: a topic with a wildcard or a reserved flag is written as asked. They know nothing of
//! `sluice-wire`, so that an encoding mistake there cannot hide here; only [`Frame::decode`] uses it, for reading.

use sluice_wire::mqtt::{Packet, PacketKind, Side, Version, Violation, decode};

/// All versions, for tables.
pub const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// One whole packet as it was on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Fixed header included.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// High four bits of the first byte.
    pub fn type_number(&self) -> u8 {
        self.bytes.first().copied().unwrap_or(0) >> 4
    }

    /// True exactly when the packet is of that kind.
    pub fn is(&self, kind: PacketKind) -> bool {
        self.type_number() == kind as u8
    }

    /// Reads the packet as one sent by `side`.
    pub fn decode(&self, version: Version, side: Side) -> Result<Packet<'_>, Violation> {
        decode(version, side, &self.bytes)
    }

    /// What follows the fixed header.
    pub fn body(&self) -> &[u8] {
        let header = 1
            + self
                .bytes
                .iter()
                .skip(1)
                .take(4)
                .take_while(|byte| **byte & 0x80 != 0)
                .count()
            + 1;
        self.bytes.get(header..).unwrap_or(&[])
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[", name(self.type_number()))?;
        for byte in self.bytes.iter().take(48) {
            write!(f, "{byte:02x}")?;
        }
        if self.bytes.len() > 48 {
            write!(f, "... {} bytes", self.bytes.len())?;
        }
        f.write_str("]")
    }
}

/// The specification's name of a packet type.
pub fn name(type_number: u8) -> &'static str {
    match type_number {
        1 => "CONNECT",
        2 => "CONNACK",
        3 => "PUBLISH",
        4 => "PUBACK",
        5 => "PUBREC",
        6 => "PUBREL",
        7 => "PUBCOMP",
        8 => "SUBSCRIBE",
        9 => "SUBACK",
        10 => "UNSUBSCRIBE",
        11 => "UNSUBACK",
        12 => "PINGREQ",
        13 => "PINGRESP",
        14 => "DISCONNECT",
        15 => "AUTH",
        _ => "RESERVED",
    }
}

/// Cuts a byte stream into whole packets. Holds at most what has arrived.
#[derive(Debug, Default)]
pub struct Cutter {
    bytes: Vec<u8>,
}

impl Cutter {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole packet, or `None` when more bytes are needed. `Err` when the length field is longer than four bytes.
    pub fn cut(&mut self) -> Result<Option<Frame>, NotMqtt> {
        let mut remaining = 0usize;
        for index in 0..4 {
            let Some(byte) = self.bytes.get(index + 1).copied() else {
                return Ok(None);
            };
            remaining |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                let whole = index + 2 + remaining;
                if self.bytes.len() < whole {
                    return Ok(None);
                }
                let rest = self.bytes.split_off(whole);
                let bytes = std::mem::replace(&mut self.bytes, rest);
                return Ok(Some(Frame { bytes }));
            }
        }
        Err(NotMqtt)
    }

    /// Bytes of a packet that has begun.
    pub fn pending(&self) -> &[u8] {
        &self.bytes
    }
}

/// A remaining length of more than four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMqtt;

/// Properties of MQTT 5 in the order they are added; any identifier with any type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Props(pub Vec<u8>);

impl Props {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }
    /// One byte.
    pub fn byte(mut self, id: u8, value: u8) -> Self {
        self.0.extend_from_slice(&[id, value]);
        self
    }
    /// Two-byte integer.
    pub fn two(mut self, id: u8, value: u16) -> Self {
        self.0.push(id);
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    /// Four-byte integer.
    pub fn four(mut self, id: u8, value: u32) -> Self {
        self.0.push(id);
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    /// Variable byte integer.
    pub fn variable(mut self, id: u8, value: u32) -> Self {
        self.0.push(id);
        push_variable(&mut self.0, value);
        self
    }
    /// UTF-8 string or binary data; they look the same.
    pub fn text(mut self, id: u8, value: impl AsRef<[u8]>) -> Self {
        self.0.push(id);
        push_text(&mut self.0, value.as_ref());
        self
    }
    /// User Property.
    pub fn user(mut self, name: &str, value: &str) -> Self {
        self.0.push(0x26);
        push_text(&mut self.0, name.as_bytes());
        push_text(&mut self.0, value.as_bytes());
        self
    }

    fn push_to(&self, out: &mut Vec<u8>) {
        push_variable(out, self.0.len() as u32);
        out.extend_from_slice(&self.0);
    }
}

/// A will.
#[derive(Clone, Debug, Default)]
pub struct Will {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// QoS; 3 is possible.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// Will properties.
    pub props: Props,
}

impl Will {
    /// A will at QoS 0 without RETAIN.
    pub fn new(topic: &str, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            ..Self::default()
        }
    }
    /// Sets the QoS.
    pub fn qos(mut self, qos: u8) -> Self {
        self.qos = qos;
        self
    }
    /// Sets RETAIN.
    pub fn retain(mut self) -> Self {
        self.retain = true;
        self
    }
    /// Sets the will properties.
    pub fn props(mut self, props: Props) -> Self {
        self.props = props;
        self
    }
}

/// A CONNECT to be.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Version.
    pub version: Version,
    /// Client identifier.
    pub client_id: String,
    /// Clean Session / Clean Start.
    pub clean: bool,
    /// Keep alive.
    pub keep_alive_secs: u16,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Vec<u8>>,
    /// Will.
    pub will: Option<Will>,
    /// Properties.
    pub props: Props,
}

impl Connect {
    /// Clean, keep alive 60 s, anonymous.
    pub fn new(version: Version, client_id: &str) -> Self {
        Self {
            version,
            client_id: client_id.into(),
            clean: true,
            keep_alive_secs: 60,
            username: None,
            password: None,
            will: None,
            props: Props::new(),
        }
    }
    /// Asks for the session to be kept (version 5: for an hour).
    pub fn persistent(mut self) -> Self {
        self.clean = false;
        if self.version == Version::V5 {
            self.props = self.props.four(0x11, 3600);
        }
        self
    }
    /// Sets user name and password.
    pub fn user(mut self, username: &str, password: &str) -> Self {
        self.username = Some(username.into());
        self.password = Some(password.into());
        self
    }
    /// Sets keep alive.
    pub fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive_secs = seconds;
        self
    }
    /// Sets the will.
    pub fn will(mut self, will: Will) -> Self {
        self.will = Some(will);
        self
    }
    /// Sets the properties.
    pub fn props(mut self, props: Props) -> Self {
        self.props = props;
        self
    }
    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (name, level): (&[u8], u8) = match self.version {
            Version::V31 => (b"MQIsdp", 3),
            Version::V311 => (b"MQTT", 4),
            Version::V5 => (b"MQTT", 5),
        };
        push_text(&mut body, name);
        body.push(level);
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6 | u8::from(self.username.is_some()) << 7;
        body.push(flags);
        body.extend_from_slice(&self.keep_alive_secs.to_be_bytes());
        if self.version == Version::V5 {
            self.props.push_to(&mut body);
        }
        push_text(&mut body, self.client_id.as_bytes());
        if let Some(will) = &self.will {
            if self.version == Version::V5 {
                will.props.push_to(&mut body);
            }
            push_text(&mut body, will.topic.as_bytes());
            push_text(&mut body, &will.payload);
        }
        if let Some(username) = &self.username {
            push_text(&mut body, username.as_bytes());
        }
        if let Some(password) = &self.password {
            push_text(&mut body, password);
        }
        raw(0x10, &body)
    }
}

/// A PUBLISH to be.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Version.
    pub version: Version,
    /// Topic, as bytes so that it may be broken UTF-8.
    pub topic: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// QoS; 3 is possible.
    pub qos: u8,
    /// Packet identifier, written when QoS is above 0.
    pub packet_id: u16,
    /// DUP.
    pub dup: bool,
    /// RETAIN.
    pub retain: bool,
    /// Properties.
    pub props: Props,
}

impl Publish {
    /// QoS 0.
    pub fn new(version: Version, topic: impl AsRef<[u8]>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            version,
            topic: topic.as_ref().to_vec(),
            payload: payload.into(),
            qos: 0,
            packet_id: 0,
            dup: false,
            retain: false,
            props: Props::new(),
        }
    }
    /// Sets QoS and packet identifier.
    pub fn qos(mut self, qos: u8, packet_id: u16) -> Self {
        self.qos = qos;
        self.packet_id = packet_id;
        self
    }
    /// Sets RETAIN.
    pub fn retain(mut self) -> Self {
        self.retain = true;
        self
    }
    /// Sets DUP.
    pub fn dup(mut self) -> Self {
        self.dup = true;
        self
    }
    /// Sets the properties.
    pub fn props(mut self, props: Props) -> Self {
        self.props = props;
        self
    }
    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        push_text(&mut body, &self.topic);
        if self.qos > 0 {
            body.extend_from_slice(&self.packet_id.to_be_bytes());
        }
        if self.version == Version::V5 {
            self.props.push_to(&mut body);
        }
        body.extend_from_slice(&self.payload);
        let first = 0x30 | u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain);
        raw(first, &body)
    }
}

/// CONNACK.
pub fn connack(version: Version, session_present: bool, code: u8, props: &Props) -> Vec<u8> {
    let mut body = vec![u8::from(session_present), code];
    if version == Version::V5 {
        props.push_to(&mut body);
    }
    raw(0x20, &body)
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP with success, in its short form.
pub fn ack(kind: PacketKind, packet_id: u16) -> Vec<u8> {
    raw(first_byte(kind), &packet_id.to_be_bytes())
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP of version 5 in its long form.
pub fn ack_with(kind: PacketKind, packet_id: u16, code: u8, props: &Props) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    body.push(code);
    if !props.0.is_empty() {
        props.push_to(&mut body);
    }
    raw(first_byte(kind), &body)
}

/// SUBSCRIBE with the options byte of each filter.
pub fn subscribe(version: Version, packet_id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    subscribe_with(version, packet_id, filters, &Props::new())
}

/// SUBSCRIBE with properties.
pub fn subscribe_with(
    version: Version,
    packet_id: u16,
    filters: &[(&str, u8)],
    props: &Props,
) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        props.push_to(&mut body);
    }
    for (filter, options) in filters {
        push_text(&mut body, filter.as_bytes());
        body.push(*options);
    }
    raw(0x82, &body)
}

/// SUBACK.
pub fn suback(version: Version, packet_id: u16, codes: &[u8]) -> Vec<u8> {
    answers(0x90, version, packet_id, codes)
}

/// UNSUBACK; below version 5 `codes` must be empty.
pub fn unsuback(version: Version, packet_id: u16, codes: &[u8]) -> Vec<u8> {
    answers(0xb0, version, packet_id, codes)
}

/// UNSUBSCRIBE.
pub fn unsubscribe(version: Version, packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    for filter in filters {
        push_text(&mut body, filter.as_bytes());
    }
    raw(0xa2, &body)
}

/// PINGREQ.
pub const PINGREQ: [u8; 2] = [0xc0, 0];
/// PINGRESP.
pub const PINGRESP: [u8; 2] = [0xd0, 0];
/// DISCONNECT in its short form: below version 5, or normal.
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

/// DISCONNECT of version 5 with a reason.
pub fn disconnect_with(code: u8, props: &Props) -> Vec<u8> {
    let mut body = vec![code];
    if !props.0.is_empty() {
        props.push_to(&mut body);
    }
    raw(0xe0, &body)
}

/// AUTH.
pub fn auth(code: u8, props: &Props) -> Vec<u8> {
    let mut body = vec![code];
    props.push_to(&mut body);
    raw(0xf0, &body)
}

/// A first byte, the right remaining length, and `body`.
pub fn raw(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    push_variable(&mut out, body.len() as u32);
    out.extend_from_slice(body);
    out
}

fn answers(first: u8, version: Version, packet_id: u16, codes: &[u8]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    body.extend_from_slice(codes);
    raw(first, &body)
}

fn first_byte(kind: PacketKind) -> u8 {
    // PUBREL is the only acknowledgement whose flags are not zero [MQTT-3.6.1-1].
    (kind as u8) << 4 | if kind == PacketKind::Pubrel { 2 } else { 0 }
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    // Longer texts cannot be said in MQTT; cutting them keeps the packet well-formed around them.
    let text = text.get(..65_535).unwrap_or(text);
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

fn push_variable(out: &mut Vec<u8>, mut value: u32) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builders_write_the_specifications_examples() {
        let table: &[(Vec<u8>, &[u8])] = &[
            (
                Connect::new(Version::V311, "ab").bytes(),
                b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab",
            ),
            (
                Connect::new(Version::V31, "").user("u", "p").bytes(),
                b"\x10\x14\x00\x06MQIsdp\x03\xc2\x00\x3c\x00\x00\x00\x01u\x00\x01p",
            ),
            (
                Publish::new(Version::V5, "a/b", "x").qos(1, 10).bytes(),
                b"\x32\x09\x00\x03a/b\x00\x0a\x00x",
            ),
            (ack(PacketKind::Pubrel, 7), b"\x62\x02\x00\x07"),
            (
                subscribe(Version::V311, 1, &[("a", 2)]),
                b"\x82\x06\x00\x01\x00\x01a\x02",
            ),
            (
                connack(Version::V5, true, 0, &Props::new().two(0x21, 1)),
                b"\x20\x06\x01\x00\x03\x21\x00\x01",
            ),
        ];
        for (built, expected) in table {
            assert_eq!(built, expected);
        }
    }

    #[test]
    fn cutter_gives_the_same_packets_at_every_split_point() {
        let packets = [
            Publish::new(Version::V5, "t", vec![7; 300]).bytes(),
            PINGREQ.to_vec(),
            subscribe(Version::V5, 9, &[("#", 0)]),
        ];
        let stream = packets.concat();
        for split in 0..=stream.len() {
            let mut cutter = Cutter::default();
            let mut cut = Vec::new();
            for part in [&stream[..split], &stream[split..]] {
                cutter.push(part);
                while let Some(frame) = cutter.cut().unwrap() {
                    cut.push(frame.bytes);
                }
            }
            assert_eq!(cut, packets);
            assert!(cutter.pending().is_empty());
        }
    }

    #[test]
    fn cutter_refuses_a_five_byte_length() {
        let mut cutter = Cutter::default();
        cutter.push(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert_eq!(cutter.cut(), Err(NotMqtt));
    }

    #[test]
    fn body_is_what_follows_the_fixed_header() {
        let long = Frame {
            bytes: raw(0x30, &[1; 200]),
        };
        assert_eq!(long.body(), [1; 200]);
        let empty = Frame {
            bytes: PINGREQ.to_vec(),
        };
        assert!(empty.body().is_empty());
    }
}
