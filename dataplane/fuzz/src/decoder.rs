//! The decoder over any packet: an answer, and what it accepts it can write and read again.

use sluice_wire::mqtt::{
    Packet, PropertiesBuf, QoS, Side, Version, Violation, decode, decode_connect,
    decode_publish_head, encode, mend, slim,
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
            check_refused(version, side, violation, bytes);
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
    assert_eq!(decode(version, side, &written).as_ref(), Ok(&packet));
    if side == Side::Server
        && let Some(slimmed) = slim(version, bytes)
    {
        assert!(slimmed.len() <= bytes.len());
        assert!(decode(version, side, &slimmed).is_ok());
    }
}

/// It is refused by a rule of its version, and what can be mended is legal then.
fn check_refused(version: Version, side: Side, violation: Violation, bytes: &[u8]) {
    // A CONNECT is held to the version that it names.
    let is_connect = bytes.first().is_some_and(|first| first >> 4 == 1);
    let mut held_to = [Version::V31, Version::V311, Version::V5]
        .into_iter()
        .filter(|known| is_connect || *known == version);
    assert!(
        held_to.any(|version| !violation.clause(version).is_empty()),
        "{violation:?}"
    );
    if side == Side::Server
        && let Some(mended) = mend(version, bytes, |_| vec![QoS::AtLeastOnce; 2])
    {
        let packet = decode(version, side, &mended);
        assert!(packet.is_ok(), "{bytes:02x?} became {mended:02x?}");
    }
}
