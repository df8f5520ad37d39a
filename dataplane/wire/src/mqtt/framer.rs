//! Cuts one direction of a byte stream into packets, at any split point, without copying what arrives whole.
//!
//! Owns the bytes of a packet begun in one read and finished in a later one (the carry). Never allocates what a
//! length field merely claims: the carry grows with the bytes received. It does not look into packets beyond what is
//! needed to find the end of a PUBLISH head.
//!
//! # Invariants
//!
//! - *Boundary*: `payload_left` is 0 and the carry holds nothing unspent exactly when the next byte is the first of a
//!   packet.
//! - *Carry*: it holds only bytes received, never payload, and never more than `packet_bytes_max` of them. It is spent by
//!   the step that hands it out and cleared by the call after; when that call finds no packet begun, it holds no heap.

use super::header;
use super::packet::{PacketKind, Side, Version};
use super::violation::Violation;
use crate::cursor::{Varint, varint};

/// A spent carry keeps this much memory while its stream goes on, so that a stream cut by every read allocates once.
const CARRY_KEPT_BYTES: usize = 1024;

/// The first two to five bytes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedHeader {
    /// Packet type.
    pub kind: PacketKind,
    /// Low four bits of the first byte, as the version allows them for the kind.
    pub flags: u8,
    /// Remaining length in bytes.
    pub remaining_bytes: u32,
    /// Length of the fixed header itself, 2 to 5.
    pub header_bytes: u8,
}

impl FixedHeader {
    /// Length of the whole packet.
    #[inline]
    pub fn packet_bytes(&self) -> u32 {
        // At most 5 + 268,435,455.
        u32::from(self.header_bytes) + self.remaining_bytes
    }

    /// The first byte.
    #[inline]
    pub fn first_byte(&self) -> u8 {
        self.kind.number() << 4 | self.flags
    }

    /// True exactly when the remaining length takes no more bytes than it needs. Only version 5 asks for that.
    #[inline]
    pub fn is_minimal(&self) -> bool {
        // Two bytes are the fewest there can be; each byte more is needed from seven bits more on.
        let longer_by = self.header_bytes.saturating_sub(2).min(4);
        longer_by == 0 || self.remaining_bytes >> (7 * longer_by) > 0
    }
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
        /// Its fixed header.
        header: FixedHeader,
        /// The packet, fixed header included.
        bytes: &'a [u8],
        /// Where `bytes` lie.
        at: At,
        /// How much of the input is used up.
        consumed: usize,
    },
    /// The head of a PUBLISH: fixed header, topic, packet identifier, properties. Payload steps follow until none is left.
    PublishHead {
        /// Its fixed header.
        header: FixedHeader,
        /// The head, fixed header included.
        bytes: &'a [u8],
        /// Where `bytes` lie.
        at: At,
        /// Length of the payload that follows.
        payload_bytes: u32,
        /// How much of the input is used up.
        consumed: usize,
    },
    /// The next `consumed` bytes of the input are payload of the PUBLISH begun before; `left` bytes are still to come.
    Payload {
        /// How much of the input is payload.
        consumed: usize,
        /// How much payload is still to come after it.
        left: u32,
    },
}

/// One direction of a connection.
///
/// Until [`Framer::set_version`] is called on a [`Side::Client`] framer, only CONNECT is accepted as a packet, and it is
/// refused at its first byte otherwise; a [`Side::Server`] framer accepts only CONNACK until then. After the call a
/// CONNECT is refused at its first byte.
///
/// A [`Violation`] ends the stream: calling again is harmless and says nothing of use.
#[derive(Debug)]
pub struct Framer {
    side: Side,
    version: Option<Version>,
    /// The carry was handed out by the last step.
    is_carry_spent: bool,
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
            is_carry_spent: false,
            packet_bytes_max,
            payload_left: 0,
            carry: Vec::new(),
        }
    }

    /// From here on packets are read as `version`.
    pub fn set_version(&mut self, version: Version) {
        self.version = Some(version);
    }

    /// Changes the limit for packets that begin after this call, and for one whose length is not yet known.
    pub fn set_packet_bytes_max(&mut self, packet_bytes_max: u32) {
        self.packet_bytes_max = packet_bytes_max;
    }

    /// Takes the next step off the front of `input`. Call again with `input[consumed..]` until `Incomplete`.
    #[inline]
    pub fn next<'a>(&'a mut self, input: &'a [u8]) -> Result<Step<'a>, Violation> {
        if self.carry.capacity() == 0 && self.payload_left == 0 {
            return match self.scan(input)? {
                Scan::Found(found) => {
                    self.payload_left = found.payload_bytes;
                    Ok(found.step(input, At::Input, found.len))
                }
                Scan::Needs(_) => Ok(self.keep(input)),
            };
        }
        self.next_with_state(input)
    }

    /// True exactly when no packet has begun: the next byte is the first of a packet.
    #[inline]
    pub fn is_at_boundary(&self) -> bool {
        self.payload_left == 0 && self.carry_bytes() == 0
    }

    /// Bytes held for a packet that has begun.
    #[inline]
    pub fn carry_bytes(&self) -> usize {
        if self.is_carry_spent {
            0
        } else {
            self.carry.len()
        }
    }

    /// Bytes of heap held, for the memory budget.
    pub fn heap_bytes(&self) -> usize {
        self.carry.capacity()
    }

    /// Payload still to come of the PUBLISH whose head was handed out.
    #[inline]
    pub fn payload_left(&self) -> u32 {
        self.payload_left
    }

    /// The step when something was kept from an earlier call: payload to come, a carry, or its memory.
    fn next_with_state<'a>(&'a mut self, input: &'a [u8]) -> Result<Step<'a>, Violation> {
        if self.is_carry_spent {
            self.clear_carry();
        }
        if self.payload_left > 0 && !input.is_empty() {
            return Ok(self.take_payload(input));
        }
        if !self.carry.is_empty() {
            return self.finish_carry(input);
        }
        if input.is_empty() {
            self.carry = Vec::new();
            return Ok(Step::Incomplete);
        }
        match self.scan(input)? {
            Scan::Found(found) => {
                self.payload_left = found.payload_bytes;
                Ok(found.step(input, At::Input, found.len))
            }
            Scan::Needs(_) => Ok(self.keep(input)),
        }
    }

    fn take_payload(&mut self, input: &[u8]) -> Step<'static> {
        let here = u32::try_from(input.len())
            .unwrap_or(u32::MAX)
            .min(self.payload_left);
        self.payload_left -= here;
        Step::Payload {
            consumed: here as usize,
            left: self.payload_left,
        }
    }

    /// Feeds the carry just as much as the packet (or the head) needs. Each round either ends or learns a later end, of
    /// which there are at most eight: five header bytes, topic length, property length, end.
    fn finish_carry<'a>(&'a mut self, input: &'a [u8]) -> Result<Step<'a>, Violation> {
        let mut consumed = 0;
        loop {
            match self.scan(&self.carry)? {
                Scan::Found(found) => {
                    self.payload_left = found.payload_bytes;
                    self.is_carry_spent = true;
                    return Ok(found.step(&self.carry, At::Carry, consumed));
                }
                Scan::Needs(len) => {
                    let rest = input.get(consumed..).unwrap_or_default();
                    let missing = len.saturating_sub(self.carry.len()).max(1);
                    let taken = rest.get(..missing).unwrap_or(rest);
                    if taken.is_empty() {
                        return Ok(Step::Incomplete);
                    }
                    self.carry.extend_from_slice(taken);
                    consumed += taken.len();
                }
            }
        }
    }

    #[cold]
    fn keep(&mut self, input: &[u8]) -> Step<'static> {
        self.carry.extend_from_slice(input);
        Step::Incomplete
    }

    fn clear_carry(&mut self) {
        self.is_carry_spent = false;
        if self.carry.capacity() > CARRY_KEPT_BYTES {
            self.carry = Vec::new();
        } else {
            self.carry.clear();
        }
    }

    /// What the front of `bytes` is, or how many bytes are needed to know more.
    #[inline]
    fn scan(&self, bytes: &[u8]) -> Result<Scan, Violation> {
        let Some(&first) = bytes.first() else {
            return Ok(Scan::Needs(2));
        };
        let version = match self.version {
            Some(version) if first >> 4 != PacketKind::Connect.number() => version,
            known => self.check_order(known, first)?,
        };
        let Some(header) = header::parse(self.side, version, bytes)? else {
            return Ok(Scan::Needs(bytes.len() + 1));
        };
        if header.packet_bytes() > self.packet_bytes_max {
            return Err(Violation::PacketTooLarge);
        }
        if header.kind == PacketKind::Publish {
            return scan_publish(header, version, bytes);
        }
        let len = header.packet_bytes() as usize;
        if bytes.len() < len {
            return Ok(Scan::Needs(len));
        }
        Ok(Scan::Found(Found {
            header,
            len,
            payload_bytes: 0,
        }))
    }

    /// CONNECT comes first and once. Gives a version to read the fixed header by: any will do for CONNECT and CONNACK.
    #[cold]
    fn check_order(&self, version: Option<Version>, first: u8) -> Result<Version, Violation> {
        let kind = PacketKind::from_number(first >> 4);
        match (self.side, version) {
            (Side::Client, None) if kind == Some(PacketKind::Connect) => Ok(Version::V311),
            (Side::Client, None) => Err(Violation::FirstPacketNotConnect),
            (Side::Client, Some(_)) => Err(Violation::SecondConnect),
            (Side::Server, None) if kind == Some(PacketKind::Connack) => Ok(Version::V311),
            (Side::Server, None) => Err(Violation::FirstPacketNotConnack),
            // A server that sends CONNECT: the header check refuses it.
            (Side::Server, Some(version)) => Ok(version),
        }
    }
}

/// The outcome of looking at the front of some bytes.
enum Scan {
    /// So many bytes are needed, counted from the same front.
    Needs(usize),
    Found(Found),
}

#[derive(Clone, Copy)]
struct Found {
    header: FixedHeader,
    /// Length of the packet, or of the PUBLISH head.
    len: usize,
    payload_bytes: u32,
}

impl Found {
    #[inline]
    fn step<'a>(&self, bytes: &'a [u8], at: At, consumed: usize) -> Step<'a> {
        let header = self.header;
        // `len` was found in `bytes`.
        let bytes = bytes.get(..self.len).unwrap_or(bytes);
        if header.kind == PacketKind::Publish {
            Step::PublishHead {
                header,
                bytes,
                at,
                payload_bytes: self.payload_bytes,
                consumed,
            }
        } else {
            Step::Packet {
                header,
                bytes,
                at,
                consumed,
            }
        }
    }
}

/// Finds the end of a PUBLISH head: topic, packet identifier above QoS 0, properties in version 5.
#[inline]
fn scan_publish(header: FixedHeader, version: Version, bytes: &[u8]) -> Result<Scan, Violation> {
    let header_bytes = usize::from(header.header_bytes);
    let packet_len = header.packet_bytes() as usize;
    let topic_at = header_bytes + 2;
    if topic_at > packet_len {
        return Err(Violation::PublishHeadPastEnd);
    }
    let Some(&[high, low]) = bytes.get(header_bytes..topic_at) else {
        return Ok(Scan::Needs(topic_at));
    };
    let id_bytes = if header.flags & 0x06 == 0 { 0 } else { 2 };
    let mut end = topic_at + usize::from(u16::from_be_bytes([high, low])) + id_bytes;
    if version == Version::V5 {
        // Properties: their length is at least one byte.
        if end >= packet_len {
            return Err(Violation::PublishHeadPastEnd);
        }
        let property_length = bytes.get(end..packet_len.min(bytes.len()));
        match property_length.map_or(Varint::Incomplete, varint) {
            Varint::Value(len, varint_bytes) => end += usize::from(varint_bytes) + len as usize,
            Varint::Incomplete if bytes.len() >= packet_len => {
                return Err(Violation::PublishHeadPastEnd);
            }
            Varint::Incomplete => return Ok(Scan::Needs(bytes.len().max(end) + 1)),
            Varint::TooLong => return Err(Violation::VariableIntegerTooLong),
            Varint::NotMinimal(..) => return Err(Violation::VariableIntegerNotMinimal),
        }
    }
    if end > packet_len {
        return Err(Violation::PublishHeadPastEnd);
    }
    if bytes.len() < end {
        return Ok(Scan::Needs(end));
    }
    Ok(Scan::Found(Found {
        header,
        len: end,
        // The packet is at most 268,435,460 bytes long, and `end` lies within it.
        payload_bytes: u32::try_from(packet_len - end).unwrap_or(0),
    }))
}
