//! Packets, topics and policies that the benches share. Made by hand, so that no decoder is fed by its own encoder.

use std::fmt::Write as _;

/// MQTT levels, as they stand in a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// 3.1.1
    V311 = 4,
    /// 5
    V5 = 5,
}

/// A PUBLISH at QoS 0 with so many bytes of payload; in version 5 with the raw properties.
pub fn publish(level: Level, topic: &str, properties: &[u8], payload_bytes: usize) -> Vec<u8> {
    let mut body = text(topic);
    if level == Level::V5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.resize(body.len() + payload_bytes, b'x');
    packet(0x30, &body)
}

/// A CONNECT with a clean start.
pub fn connect(level: Level, client_id: &str, username: &str) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[level as u8, 0b1000_0010, 0, 60]);
    if level == Level::V5 {
        body.push(0);
    }
    body.extend(text(client_id));
    body.extend(text(username));
    packet(0x10, &body)
}

/// A CONNECT without credentials.
pub fn connect_anonymous(level: Level, client_id: &str) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[level as u8, 0b0000_0010, 0, 0]);
    if level == Level::V5 {
        body.push(0);
    }
    body.extend(text(client_id));
    packet(0x10, &body)
}

/// An accepting CONNACK.
pub fn connack(level: Level) -> Vec<u8> {
    match level {
        Level::V311 => vec![0x20, 2, 0, 0],
        Level::V5 => vec![0x20, 3, 0, 0, 0],
    }
}

/// A policy with one listener `devices`, anonymous clients in a group, and one publish rule for each of `rules` devices.
pub fn policy(rules: u32) -> String {
    let mut text = String::from(
        "listeners:\n  - name: devices\n    address: 127.0.0.1:1883\n    upstream: broker\n    anonymous: { group: devices }\n\
         upstreams:\n  - name: broker\n    endpoints: [\"tcp://127.0.0.1:1884\"]\n\
         groups:\n  - name: devices\n\
         rules:\n  - name: connect\n    who: { groups: [devices] }\n    actions: [connect]\n    decision: allow\n",
    );
    for device in 0..rules {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "  - name: device-{device}\n    who: {{ groups: [devices] }}\n    actions: [publish]\n    \
             topics: [\"devices/{device}/telemetry\"]\n    decision: allow\n"
        );
    }
    text
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut left = body.len();
    loop {
        let low = (left & 0x7f) as u8;
        left >>= 7;
        bytes.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}
