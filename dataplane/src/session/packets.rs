//! The few packets that the proxy itself originates, without an allocation.
//!
//! Owns nothing. What is rewritten from a packet of a peer is encoded by `wire`.

use sluice_wire::mqtt::{PacketId, PacketKind, QoS, Version};
use smallvec::SmallVec;

/// A packet of a few bytes.
pub(super) type Small = SmallVec<[u8; 8]>;

/// PINGREQ.
pub(super) const PINGREQ: [u8; 2] = [0xc0, 0];

/// PUBACK, PUBREC or PUBCOMP. A code of 0, and any code below version 5, is left out.
pub(super) fn ack(version: Version, kind: PacketKind, packet_id: PacketId, code: u8) -> Small {
    let [high, low] = packet_id.get().to_be_bytes();
    let first = (kind as u8) << 4;
    if version == Version::V5 && code != 0 {
        Small::from_slice(&[first, 3, high, low, code])
    } else {
        Small::from_slice(&[first, 2, high, low])
    }
}

/// DISCONNECT. A code of 0, and any code below version 5, is left out.
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

/// The first byte of a PUBLISH.
pub(super) fn publish_first_byte(dup: bool, qos: QoS, retain: bool) -> u8 {
    (PacketKind::Publish as u8) << 4 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain)
}
