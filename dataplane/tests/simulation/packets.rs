//! MQTT by hand, for the simulated peers: written and cut without the codec that is under test.

use std::num::NonZeroU16;

use sluice_wire::mqtt::Version;

/// Cuts a stream into whole packets.
#[derive(Default)]
pub(crate) struct Splitter {
    bytes: Vec<u8>,
}

impl Splitter {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole packet.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let (mut length, mut at) = (0_usize, 1);
        loop {
            let byte = *self.bytes.get(at)?;
            length |= usize::from(byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let end = at + length;
        (self.bytes.len() >= end).then(|| self.bytes.drain(..end).collect())
    }
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut left = body.len();
    loop {
        let byte = (left & 0x7f) as u8;
        left >>= 7;
        if left == 0 {
            out.push(byte);
            break;
        }
        out.push(byte | 0x80);
    }
    out.extend_from_slice(body);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn no_properties(version: Version, out: &mut Vec<u8>) {
    if version == Version::V5 {
        out.push(0);
    }
}

pub(crate) struct ConnectFields<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    pub(crate) keep_alive_secs: u16,
    pub(crate) login: Option<(&'a str, &'a str)>,
}

pub(crate) fn connect(fields: &ConnectFields<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    let (name, level) = match fields.version {
        Version::V31 => ("MQIsdp", 3),
        Version::V311 => ("MQTT", 4),
        Version::V5 => ("MQTT", 5),
    };
    text(&mut body, name);
    body.push(level);
    body.push(if fields.login.is_some() { 0xc2 } else { 0x02 });
    body.extend_from_slice(&fields.keep_alive_secs.to_be_bytes());
    no_properties(fields.version, &mut body);
    text(&mut body, fields.client_id);
    if let Some((username, password)) = fields.login {
        text(&mut body, username);
        text(&mut body, password);
    }
    packet(0x10, &body)
}

/// A CONNECT of 3.1.1 with a will.
pub(crate) fn connect_with_will(client_id: &str, topic: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, "MQTT");
    body.extend_from_slice(&[4, 0x06, 0, 0]);
    for part in [client_id, topic, "gone"] {
        text(&mut body, part);
    }
    packet(0x10, &body)
}

pub(crate) fn connack(version: Version, code: u8) -> Vec<u8> {
    let mut body = vec![0, code];
    no_properties(version, &mut body);
    packet(0x20, &body)
}

pub(crate) fn publish(version: Version, topic: &str, qos: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    no_properties(version, &mut body);
    body.extend_from_slice(payload);
    packet(0x30 | qos << 1, &body)
}

pub(crate) fn puback(id: NonZeroU16) -> Vec<u8> {
    packet(0x40, &id.get().to_be_bytes())
}

pub(crate) fn pubrec(id: NonZeroU16) -> Vec<u8> {
    packet(0x50, &id.get().to_be_bytes())
}

pub(crate) fn pubrel(id: NonZeroU16) -> Vec<u8> {
    packet(0x62, &id.get().to_be_bytes())
}

pub(crate) fn pubcomp(id: NonZeroU16) -> Vec<u8> {
    packet(0x70, &id.get().to_be_bytes())
}

pub(crate) fn subscribe(version: Version, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    no_properties(version, &mut body);
    for (filter, qos) in filters {
        text(&mut body, filter);
        body.push(*qos);
    }
    packet(0x82, &body)
}

pub(crate) fn suback(version: Version, id: NonZeroU16, codes: &[u8]) -> Vec<u8> {
    let mut body = id.get().to_be_bytes().to_vec();
    no_properties(version, &mut body);
    body.extend_from_slice(codes);
    packet(0x90, &body)
}

pub(crate) fn pingreq() -> Vec<u8> {
    packet(0xc0, &[])
}

pub(crate) fn pingresp() -> Vec<u8> {
    packet(0xd0, &[])
}

pub(crate) fn disconnect() -> Vec<u8> {
    packet(0xe0, &[])
}
