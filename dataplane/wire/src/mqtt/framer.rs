//! Cuts one direction of a byte stream into packets, at any split point, without copying what arrives whole.
//!
//! Owns the bytes of a packet begun in one read and finished in a later one (the carry). Never allocates what a
//! length field merely claims: the carry grows with the bytes received. It does not look into packets beyond what is
//! needed to find the end of a PUBLISH head.

use super::packet::{PacketKind, Side, Version};
use super::violation::Violation;

/// The first two to five bytes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedHeader {
    /// Packet type.
    pub kind: PacketKind,
    /// Low four bits of the first byte, valid for the kind.
    pub flags: u8,
    /// Remaining length in bytes.
    pub remaining_bytes: u32,
    /// Length of the fixed header itself, 2 to 5.
    pub header_bytes: u8,
}

/// Where the bytes of a step lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In the input, at its front: `input[..bytes.len()]`.
    Input,
    /// In the framer's carry: a copy, valid until the next call.
    Carry,
}

/// What the front of the input turned out to be. `consumed` counts bytes of the *input* only.
#[derive(Debug, PartialEq)]
pub enum Step<'a> {
    /// The whole input was taken into the carry (or was empty); more is needed.
    Incomplete,
    /// A whole packet other than PUBLISH.
    Packet {
        header: FixedHeader,
        bytes: &'a [u8],
        at: At,
        consumed: usize,
    },
    /// The head of a PUBLISH: fixed header, topic, packet identifier, properties. Payload steps follow until none is left.
    PublishHead {
        header: FixedHeader,
        bytes: &'a [u8],
        at: At,
        payload_bytes: u32,
        consumed: usize,
    },
    /// The next `consumed` bytes of the input are payload of the PUBLISH begun before; `left` bytes are still to come.
    Payload { consumed: usize, left: u32 },
}

/// One direction of a connection.
///
/// Until [`Framer::set_version`] is called on a [`Side::Client`] framer, only CONNECT is accepted as a packet, and it is
/// refused at its first byte otherwise.
#[derive(Debug)]
pub struct Framer {
    side: Side,
    version: Option<Version>,
    packet_bytes_max: u32,
    payload_left: u32,
    carry: Vec<u8>,
}

impl Framer {
    /// A framer for what `side` sends; a packet longer than `packet_bytes_max` (fixed header included) is a violation as
    /// soon as its length is known.
    pub fn new(side: Side, packet_bytes_max: u32) -> Self {
        Self {
            side,
            version: None,
            packet_bytes_max,
            payload_left: 0,
            carry: Vec::new(),
        }
    }

    /// From here on packets are read as `version`.
    pub fn set_version(&mut self, version: Version) {
        self.version = Some(version);
    }

    /// Changes the limit for packets that begin after this call.
    pub fn set_packet_bytes_max(&mut self, packet_bytes_max: u32) {
        self.packet_bytes_max = packet_bytes_max;
    }

    /// Takes the next step off the front of `input`. Call again with `input[consumed..]` until `Incomplete`.
    pub fn next<'a>(&'a mut self, input: &'a [u8]) -> Result<Step<'a>, Violation> {
        let _ = (self.side, self.version, input, &self.carry);
        todo!()
    }

    /// True exactly when no packet has begun: the next byte is the first of a packet.
    pub fn is_at_boundary(&self) -> bool {
        self.payload_left == 0 && self.carry.is_empty()
    }

    /// Bytes held for a packet that has begun.
    pub fn carry_bytes(&self) -> usize {
        self.carry.len()
    }
}
