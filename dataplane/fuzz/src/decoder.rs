//! The decoder over any packet: an answer, and what it accepts it can write and read again.

use sluice_wire::mqtt::{
    Packet, PropertiesBuf, Side, decode, decode_connect, decode_publish_head, encode,
};

use crate::version;

/// Input: a byte for the version, then one packet of a client.
pub fn decode_client(input: &[u8]) {
    check(Side::Client, input);
}

/// Input: a byte for the version, then one packet of a server.
pub fn decode_server(input: &[u8]) {
    check(Side::Server, input);
}

fn check(side: Side, input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    let version = version(*choice);
    let head = decode_publish_head(version, side, bytes);
    let packet = match decode(version, side, bytes) {
        Ok(packet) => packet,
        Err(violation) => {
            assert!(!violation.clause().is_empty());
            return;
        }
    };
    if let Packet::Publish(publish) = &packet {
        let head = head.as_ref().map(|head| (head.topic, head.payload_bytes));
        assert_eq!(head, Ok((publish.topic, publish.payload_bytes)));
        let mut copy = PropertiesBuf::new();
        for property in publish.properties.iter() {
            assert_eq!(copy.push(property), Ok(()));
        }
        assert_eq!(copy.view(), publish.properties, "nothing is skipped");
    }
    if let Packet::Connect(connect) = &packet {
        assert_eq!(decode_connect(bytes).as_ref(), Ok(connect));
    }
    let mut written = Vec::new();
    assert_eq!(encode(version, &packet, &mut written), Ok(()));
    assert!(written.len() <= bytes.len(), "ours is the shortest form");
    assert_eq!(decode(version, side, &written), Ok(packet));
}
