//! The fixed header (MQTT 5 section 2.1): packet type, flags, remaining length, and which side may send what.
//!
//! Shared by the framer, which meets it byte by byte, and by `decode`, which gets it whole. Knows nothing of what was
//! sent before. The version of a CONNECT stands behind its header, so [`check_connect`] looks at that header again.
//!
//! 3.1 has bits that are "not used" (its sections 3.1 to 3.14), and only version 5 wants lengths in as few bytes as
//! possible. Such headers are read; [`plain_first_byte`] and [`FixedHeader::is_minimal`] tell a proxy what to send on.

use super::framer::FixedHeader;
use super::packet::{PacketKind, Side, Version};
use super::violation::Violation;
use crate::cursor::{Varint, varint};

/// The flag bits of a PUBLISH.
pub(crate) const DUP: u8 = 0x08;
pub(crate) const RETAIN: u8 = 0x01;

/// The flags that PUBREL, SUBSCRIBE and UNSUBSCRIBE must have.
pub(crate) const FLAGS_0010: u8 = 0x02;

/// The fixed header at the front of `bytes`, or `None` when they end in it. Refuses at the earliest byte.
#[inline]
pub(crate) fn parse(
    side: Side,
    version: Version,
    bytes: &[u8],
) -> Result<Option<FixedHeader>, Violation> {
    let Some((&first, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let kind = check_first_byte(side, version, first)?;
    let (remaining_bytes, len) = match varint(rest) {
        Varint::Value(remaining_bytes, len) => (remaining_bytes, len),
        Varint::NotMinimal(..) if version == Version::V5 && kind != PacketKind::Connect => {
            return Err(Violation::RemainingLengthNotMinimal);
        }
        Varint::NotMinimal(remaining_bytes, len) => (remaining_bytes, len),
        Varint::Incomplete => return Ok(None),
        Varint::TooLong => return Err(Violation::RemainingLengthTooLong),
    };
    if remaining_bytes > 0 && matches!(kind, PacketKind::Pingreq | PacketKind::Pingresp) {
        return Err(Violation::PingHasBody);
    }
    Ok(Some(FixedHeader {
        kind,
        flags: first & 0x0f,
        remaining_bytes,
        header_bytes: 1 + len,
    }))
}

/// What the header of a CONNECT breaks in the version that the packet names.
pub(crate) fn check_connect(version: Version, header: FixedHeader) -> Result<(), Violation> {
    if version > Version::V31 && header.flags != 0 {
        return Err(Violation::HeaderFlagsReserved);
    }
    if version == Version::V5 && !header.is_minimal() {
        return Err(Violation::RemainingLengthNotMinimal);
    }
    Ok(())
}

/// A first byte as every version has it, with the bits that 3.1 does not use as 3.1.1 wants them.
#[inline]
pub fn plain_first_byte(first: u8) -> u8 {
    match PacketKind::from_number(first >> 4) {
        // DUP says nothing at QoS 0.
        Some(PacketKind::Publish) if first & 0x06 == 0 => first & !DUP,
        Some(PacketKind::Publish) | None => first,
        Some(PacketKind::Pubrel | PacketKind::Subscribe | PacketKind::Unsubscribe) => {
            first & (0xf0 | DUP) | FLAGS_0010
        }
        Some(
            PacketKind::Connect
            | PacketKind::Connack
            | PacketKind::Puback
            | PacketKind::Pubrec
            | PacketKind::Pubcomp
            | PacketKind::Suback
            | PacketKind::Unsuback
            | PacketKind::Pingreq
            | PacketKind::Pingresp
            | PacketKind::Disconnect
            | PacketKind::Auth,
        ) => first & 0xf0,
    }
}

#[inline]
fn check_first_byte(side: Side, version: Version, first: u8) -> Result<PacketKind, Violation> {
    let kind = PacketKind::from_number(first >> 4).ok_or(Violation::KindReserved)?;
    if kind == PacketKind::Publish {
        check_publish_flags(version, first)?;
    } else {
        check_side(side, version, kind)?;
        check_flags(version, kind, first & 0x0f)?;
    }
    Ok(kind)
}

#[inline]
fn check_publish_flags(version: Version, first: u8) -> Result<(), Violation> {
    match first & 0x06 {
        0x06 => Err(Violation::PublishQos3),
        // Without meaning in 3.1, and not forbidden (its section 2.1).
        0 if first & DUP != 0 && version > Version::V31 => Err(Violation::PublishDupWithQos0),
        _ => Ok(()),
    }
}

fn check_side(side: Side, version: Version, kind: PacketKind) -> Result<(), Violation> {
    let is_from_client = match kind {
        PacketKind::Publish
        | PacketKind::Puback
        | PacketKind::Pubrec
        | PacketKind::Pubrel
        | PacketKind::Pubcomp => return Ok(()),
        PacketKind::Auth if version < Version::V5 => return Err(Violation::AuthBelowVersion5),
        PacketKind::Auth => return Ok(()),
        PacketKind::Disconnect if version == Version::V5 => return Ok(()),
        PacketKind::Connect
        | PacketKind::Subscribe
        | PacketKind::Unsubscribe
        | PacketKind::Pingreq
        | PacketKind::Disconnect => true,
        PacketKind::Connack | PacketKind::Suback | PacketKind::Unsuback | PacketKind::Pingresp => {
            false
        }
    };
    match (side, is_from_client) {
        (Side::Client, true) | (Side::Server, false) => Ok(()),
        (Side::Client, false) => Err(Violation::KindNotFromClient),
        (Side::Server, true) => Err(Violation::KindNotFromServer),
    }
}

fn check_flags(version: Version, kind: PacketKind, flags: u8) -> Result<(), Violation> {
    // 3.1 does not use these bits, or gives them a meaning that changes nothing (DUP and QoS 1 of three kinds).
    if version == Version::V31 {
        return Ok(());
    }
    let (expected, violation) = match kind {
        PacketKind::Pubrel => (FLAGS_0010, Violation::PubrelFlags),
        PacketKind::Subscribe => (FLAGS_0010, Violation::SubscribeFlags),
        PacketKind::Unsubscribe => (FLAGS_0010, Violation::UnsubscribeFlags),
        // Its version is not known here: `check_connect`.
        PacketKind::Connect => return Ok(()),
        PacketKind::Connack
        | PacketKind::Publish
        | PacketKind::Puback
        | PacketKind::Pubrec
        | PacketKind::Pubcomp
        | PacketKind::Suback
        | PacketKind::Unsuback
        | PacketKind::Pingreq
        | PacketKind::Pingresp
        | PacketKind::Disconnect
        | PacketKind::Auth => (0, Violation::HeaderFlagsReserved),
    };
    if flags == expected {
        Ok(())
    } else {
        Err(violation)
    }
}
