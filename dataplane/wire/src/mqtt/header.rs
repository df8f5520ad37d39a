//! The fixed header (MQTT 5 section 2.1): packet type, flags, remaining length, and which side may send what.
//!
//! Shared by the framer, which meets it byte by byte, and by `decode`, which gets it whole. Knows nothing of what was
//! sent before.

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
    match varint(rest) {
        Varint::Value(remaining_bytes, len) => {
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
        Varint::Incomplete => Ok(None),
        Varint::TooLong => Err(Violation::RemainingLengthTooLong),
        Varint::NotMinimal => Err(Violation::RemainingLengthNotMinimal),
    }
}

#[inline]
fn check_first_byte(side: Side, version: Version, first: u8) -> Result<PacketKind, Violation> {
    let kind = PacketKind::from_number(first >> 4).ok_or(Violation::KindReserved)?;
    if kind == PacketKind::Publish {
        check_publish_flags(first)?;
    } else {
        check_side(side, version, kind)?;
        check_flags(version, kind, first & 0x0f)?;
    }
    Ok(kind)
}

#[inline]
fn check_publish_flags(first: u8) -> Result<(), Violation> {
    match first & 0x06 {
        0x06 => Err(Violation::PublishQos3),
        0 if first & DUP != 0 => Err(Violation::PublishDupWithQos0),
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
    let (expected, violation) = match kind {
        PacketKind::Pubrel => (FLAGS_0010, Violation::PubrelFlags),
        PacketKind::Subscribe => (FLAGS_0010, Violation::SubscribeFlags),
        PacketKind::Unsubscribe => (FLAGS_0010, Violation::UnsubscribeFlags),
        PacketKind::Connect
        | PacketKind::Connack
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
    // MQTT 3.1 section 2.1: these three carry QoS 1, and DUP when they are sent again.
    let may_be_dup = version == Version::V31 && expected == FLAGS_0010;
    if flags == expected || (may_be_dup && flags == expected | DUP) {
        Ok(())
    } else {
        Err(violation)
    }
}
