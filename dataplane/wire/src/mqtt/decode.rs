//! Packets from bytes. Strict: what the specification forbids is a [`Violation`], never a guess.

use super::packet::{Connect, Packet, Publish, Side, Version};
use super::violation::Violation;

/// Decodes one whole packet sent by `side`.
pub fn decode<'a>(version: Version, side: Side, bytes: &'a [u8]) -> Result<Packet<'a>, Violation> {
    let _ = (version, side, bytes);
    todo!()
}

/// Decodes a CONNECT, whose version is what it says.
pub fn decode_connect(bytes: &[u8]) -> Result<Connect<'_>, Violation> {
    let _ = bytes;
    todo!()
}

/// Decodes the head of a PUBLISH as [`super::Step::PublishHead`] gives it.
pub fn decode_publish_head<'a>(
    version: Version,
    side: Side,
    bytes: &'a [u8],
) -> Result<Publish<'a>, Violation> {
    let _ = (version, side, bytes);
    todo!()
}
