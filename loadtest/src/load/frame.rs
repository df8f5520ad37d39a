//! Finds packets in a byte stream and writes the few that the load tester needs.
//!
//! Knows nothing of `sluice-wire`, on purpose: the instrument shares no code with what it measures. It trusts its peers
//! (they are our own), so it checks lengths and nothing else.

/// MQTT version of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1
    V31,
    /// MQTT 3.1.1
    V311,
    /// MQTT 5
    V5,
}

/// Packet type numbers as they stand in the high half of the first byte.
pub mod kind {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
}

/// One whole packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Type and flags.
    pub first: u8,
    /// After the fixed header.
    pub body: &'a [u8],
    /// Length with the fixed header.
    pub total: usize,
}

impl<'a> Frame<'a> {
    /// The packet type.
    pub fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// The packet identifier at the front of the body (acknowledgements, SUBSCRIBE, SUBACK).
    pub fn packet_id(&self) -> Option<u16> {
        self.body
            .first_chunk()
            .map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// Reads the body as that of a PUBLISH.
    pub fn publish(&self, version: Version) -> Option<Publish<'a>> {
        let (topic, mut rest) = text(self.body)?;
        let qos = (self.first >> 1) & 3;
        let mut packet_id = 0;
        if qos > 0 {
            let (id, after) = rest.split_first_chunk()?;
            packet_id = u16::from_be_bytes(*id);
            rest = after;
        }
        let head = rest;
        if version == Version::V5 {
            let (properties, header) = variable(rest)?;
            rest = rest.get(header.checked_add(properties)?..)?;
        }
        Some(Publish {
            topic,
            qos,
            packet_id,
            after_id: head,
            payload: rest,
        })
    }
}

/// A PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Topic name.
    pub topic: &'a [u8],
    /// QoS as sent.
    pub qos: u8,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// Properties (version 5) and payload: what stays the same when the QoS is lowered.
    pub after_id: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

/// A length field of more than four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMqtt;

/// Takes the first packet off the front, if it is whole.
pub fn cut(bytes: &[u8]) -> Result<Option<Frame<'_>>, NotMqtt> {
    let Some((first, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let Some((remaining, length_bytes)) = variable(rest) else {
        return if rest.len() < 4 {
            Ok(None)
        } else {
            Err(NotMqtt)
        };
    };
    Ok(rest
        .get(length_bytes..length_bytes + remaining)
        .map(|body| Frame {
            first: *first,
            body,
            total: 1 + length_bytes + remaining,
        }))
}

/// A variable byte integer and its length; `None` when it is not whole or too long.
fn variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0usize;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

/// A string with its two-byte length, and what follows.
pub fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

/// Appends a packet.
pub fn push_packet(first: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    push_variable(body.len(), out);
    out.extend_from_slice(body);
}

fn push_variable(mut value: usize, out: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value > 0 { low | 0x80 } else { low });
        if value == 0 {
            return;
        }
    }
}

fn push_text(bytes: &[u8], out: &mut Vec<u8>) {
    // Callers give client ids, names and topics from the command line, far below 64 KiB; longer ones are cut.
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes.get(..usize::from(len)).unwrap_or(bytes));
}

/// Name and password of a connection.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// User name.
    pub username: Option<String>,
    /// Password; only with a user name.
    pub password: Option<Vec<u8>>,
}

/// CONNECT with a clean start and no will.
pub fn connect(version: Version, client_id: &str, keep_alive_secs: u16, login: &Login) -> Vec<u8> {
    let mut body = Vec::with_capacity(32 + client_id.len());
    let (name, level): (&[u8], u8) = match version {
        Version::V31 => (b"MQIsdp", 3),
        Version::V311 => (b"MQTT", 4),
        Version::V5 => (b"MQTT", 5),
    };
    push_text(name, &mut body);
    let mut flags = 0b0000_0010;
    if login.username.is_some() {
        flags |= 0b1000_0000;
        if login.password.is_some() {
            flags |= 0b0100_0000;
        }
    }
    body.extend_from_slice(&[level, flags]);
    body.extend_from_slice(&keep_alive_secs.to_be_bytes());
    if version == Version::V5 {
        body.push(0);
    }
    push_text(client_id.as_bytes(), &mut body);
    if let Some(username) = &login.username {
        push_text(username.as_bytes(), &mut body);
        if let Some(password) = &login.password {
            push_text(password, &mut body);
        }
    }
    let mut out = Vec::with_capacity(body.len() + 3);
    push_packet(kind::CONNECT << 4, &body, &mut out);
    out
}

/// SUBSCRIBE for one filter.
pub fn subscribe(version: Version, packet_id: u16, filter: &str, qos: u8) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    push_text(filter.as_bytes(), &mut body);
    body.push(qos);
    let mut out = Vec::new();
    push_packet(kind::SUBSCRIBE << 4 | 2, &body, &mut out);
    out
}

/// DISCONNECT, normal.
pub const DISCONNECT: [u8; 2] = [kind::DISCONNECT << 4, 0];

/// PINGREQ.
pub const PINGREQ: [u8; 2] = [kind::PINGREQ << 4, 0];

/// Appends an acknowledgement without a reason code.
pub fn push_ack(ack: u8, packet_id: u16, out: &mut Vec<u8>) {
    let flags = if ack == kind::PUBREL { 2 } else { 0 };
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[ack << 4 | flags, 2, high, low]);
}

/// A PUBLISH made once and sent many times; only the stamp and the packet identifier change.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    packet_id_at: Option<usize>,
    stamp_at: usize,
}

impl Template {
    /// `payload_bytes` is raised to [`Stamp::BYTES`]. `response_topic` only with version 5.
    pub fn new(
        version: Version,
        topic: &str,
        qos: u8,
        payload_bytes: usize,
        response_topic: Option<&str>,
    ) -> Self {
        let mut body = Vec::with_capacity(topic.len() + payload_bytes + 8);
        push_text(topic.as_bytes(), &mut body);
        let packet_id_in_body = (qos > 0).then_some(body.len());
        if qos > 0 {
            body.extend_from_slice(&[0, 1]);
        }
        if version == Version::V5 {
            let mut properties = Vec::new();
            if let Some(topic) = response_topic {
                properties.push(0x08);
                push_text(topic.as_bytes(), &mut properties);
            }
            push_variable(properties.len(), &mut body);
            body.extend_from_slice(&properties);
        }
        let stamp_in_body = body.len();
        body.resize(stamp_in_body + payload_bytes.max(Stamp::BYTES), b'x');
        let mut bytes = Vec::with_capacity(body.len() + 5);
        push_packet(kind::PUBLISH << 4 | qos << 1, &body, &mut bytes);
        let header = bytes.len() - body.len();
        Self {
            bytes,
            packet_id_at: packet_id_in_body.map(|at| at + header),
            stamp_at: stamp_in_body + header,
        }
    }

    /// Appends the packet with this stamp.
    pub fn push(&self, stamp: Stamp, packet_id: u16, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(at) = self.packet_id_at
            && let Some(field) = out.get_mut(start + at..start + at + 2)
        {
            field.copy_from_slice(&packet_id.to_be_bytes());
        }
        let at = start + self.stamp_at;
        if let Some(field) = out.get_mut(at..at + Stamp::BYTES) {
            field.copy_from_slice(&stamp.bytes());
        }
    }

    /// QoS of the message.
    pub fn qos(&self) -> u8 {
        self.bytes.first().map_or(0, |first| (first >> 1) & 3)
    }

    /// Length on the wire.
    pub fn wire_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The front of every payload: when the message was due, who sent it, and which one of his it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Scheduled time, by the monotonic clock.
    pub due_ns: u64,
    /// Index of the sender.
    pub sender: u32,
    /// Counts the sender's messages from 0.
    pub sequence: u32,
}

impl Stamp {
    /// Length in the payload.
    pub const BYTES: usize = 16;

    fn bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (due, rest) = bytes.split_at_mut(8);
        let (sender, sequence) = rest.split_at_mut(4);
        due.copy_from_slice(&self.due_ns.to_le_bytes());
        sender.copy_from_slice(&self.sender.to_le_bytes());
        sequence.copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// The sender of messages that belong to no sequence.
    pub const NOBODY: u32 = u32::MAX;

    /// Takes the sender out of a payload: what passes it on keeps no sequence of its own.
    pub fn disown(payload: &mut [u8]) {
        if let Some(sender) = payload.get_mut(8..12) {
            sender.copy_from_slice(&Self::NOBODY.to_le_bytes());
        }
    }

    /// Reads the stamp at the front of a payload.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (due, rest) = payload.split_first_chunk()?;
        let (sender, rest) = rest.split_first_chunk()?;
        let (sequence, _) = rest.split_first_chunk()?;
        Some(Self {
            due_ns: u64::from_le_bytes(*due),
            sender: u32::from_le_bytes(*sender),
            sequence: u32::from_le_bytes(*sequence),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_cut_only_when_it_is_whole() {
        let mut bytes = Vec::new();
        push_packet(0x30, &[7; 200], &mut bytes);
        for len in 0..bytes.len() {
            assert_eq!(cut(&bytes[..len]), Ok(None), "{len} bytes");
        }
        let frame = cut(&bytes).unwrap().unwrap();
        assert_eq!((frame.kind(), frame.total), (kind::PUBLISH, 203));
        assert_eq!(cut(&[0x30, 0xff, 0xff, 0xff, 0xff]), Err(NotMqtt));
    }

    #[test]
    fn a_template_says_what_was_asked() {
        for (version, qos, response) in [
            (Version::V31, 0, None),
            (Version::V311, 1, None),
            (Version::V311, 0, None),
            (Version::V5, 2, Some("r/1")),
            (Version::V5, 0, None),
        ] {
            let stamp = Stamp {
                due_ns: 0x0102_0304_0506_0708,
                sender: 9,
                sequence: 11,
            };
            let template = Template::new(version, "a/b", qos, 128, response);
            let mut out = vec![0xee];
            template.push(stamp, 77, &mut out);
            let frame = cut(&out[1..]).unwrap().unwrap();
            assert_eq!(frame.total, template.wire_bytes());
            let publish = frame.publish(version).unwrap();
            assert_eq!((publish.topic, publish.qos), (&b"a/b"[..], qos));
            assert_eq!(publish.packet_id, if qos > 0 { 77 } else { 0 });
            assert_eq!(publish.payload.len(), 128);
            assert_eq!(Stamp::read(publish.payload), Some(stamp));
            let mut payload = publish.payload.to_vec();
            Stamp::disown(&mut payload);
            let sender = Stamp::NOBODY;
            assert_eq!(Stamp::read(&payload), Some(Stamp { sender, ..stamp }));
        }
    }

    #[test]
    fn a_short_payload_is_raised_to_the_stamp() {
        let template = Template::new(Version::V311, "t", 0, 0, None);
        assert_eq!(template.wire_bytes(), 2 + 3 + Stamp::BYTES);
    }

    #[test]
    fn other_decoders_agree_with_what_is_built() {
        let login = Login {
            username: Some("u".into()),
            password: Some(b"p".to_vec()),
        };
        let mut stream = bytes::BytesMut::new();
        stream.extend_from_slice(&connect(Version::V311, "c", 30, &login));
        stream.extend_from_slice(&subscribe(Version::V311, 3, "a/+", 1));
        let read = |stream: &mut bytes::BytesMut| mqttbytes::v4::read(stream, 1_000).unwrap();
        let mqttbytes::v4::Packet::Connect(seen) = read(&mut stream) else {
            panic!("no CONNECT");
        };
        assert_eq!((seen.client_id.as_str(), seen.keep_alive), ("c", 30));
        assert_eq!(seen.login.map(|login| login.username), Some("u".into()));
        let mqttbytes::v4::Packet::Subscribe(seen) = read(&mut stream) else {
            panic!("no SUBSCRIBE");
        };
        assert_eq!((seen.pkid, seen.filters[0].path.as_str()), (3, "a/+"));

        let mut stream = bytes::BytesMut::new();
        stream.extend_from_slice(&connect(Version::V5, "c5", 0, &Login::default()));
        let stamp = Stamp {
            due_ns: 1,
            sender: 2,
            sequence: 3,
        };
        let mut publish = Vec::new();
        Template::new(Version::V5, "a", 1, 16, Some("back")).push(stamp, 5, &mut publish);
        stream.extend_from_slice(&publish);
        let mqttbytes::v5::Packet::Connect(seen) = mqttbytes::v5::read(&mut stream, 1_000).unwrap()
        else {
            panic!("no CONNECT");
        };
        assert_eq!(seen.client_id, "c5");
        let mqttbytes::v5::Packet::Publish(seen) = mqttbytes::v5::read(&mut stream, 1_000).unwrap()
        else {
            panic!("no PUBLISH");
        };
        assert_eq!((seen.topic.as_str(), seen.pkid), ("a", 5));
        assert_eq!(
            seen.properties.and_then(|found| found.response_topic),
            Some("back".into())
        );
    }
}
