//! The packets as borrowed views. Owns no bytes: every field points into the packet that was decoded.
//!
//! `Debug` of a packet shows neither payloads nor passwords nor properties, only their lengths: a view that ends up in a
//! log must not take a secret along.

use core::fmt;

use super::encode::{TooLong, append_prefixed, append_subscribe_filter};
use super::properties::Properties;
use crate::cursor::Cursor;

/// The protocol version a CONNECT names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// MQTT 3.1: protocol name `MQIsdp`, level 3.
    V31,
    /// MQTT 3.1.1: protocol name `MQTT`, level 4.
    V311,
    /// MQTT 5: protocol name `MQTT`, level 5.
    V5,
}

/// Who sent the bytes. What is legal differs between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// A client, towards a server.
    Client,
    /// A server, towards a client.
    Server,
}

/// The packet types, by their number on the wire (MQTT 5 section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum PacketKind {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

/// A packet identifier; never 0 [MQTT-2.2.1-3].
pub type PacketId = core::num::NonZeroU16;

/// Any packet. Closed: a new packet type is a new variant and every match is looked at.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet<'a> {
    /// CONNECT
    Connect(Connect<'a>),
    /// CONNACK
    Connack(Connack<'a>),
    /// PUBLISH, whole
    Publish(Publish<'a>),
    /// PUBACK
    Puback(Ack<'a>),
    /// PUBREC
    Pubrec(Ack<'a>),
    /// PUBREL
    Pubrel(Ack<'a>),
    /// PUBCOMP
    Pubcomp(Ack<'a>),
    /// SUBSCRIBE
    Subscribe(Subscribe<'a>),
    /// SUBACK
    Suback(Suback<'a>),
    /// UNSUBSCRIBE
    Unsubscribe(Unsubscribe<'a>),
    /// UNSUBACK
    Unsuback(Unsuback<'a>),
    /// PINGREQ
    Pingreq,
    /// PINGRESP
    Pingresp,
    /// DISCONNECT
    Disconnect(Disconnect<'a>),
    /// AUTH
    Auth(Auth<'a>),
}

/// CONNECT (MQTT 5 section 3.1).
#[derive(Clone, PartialEq)]
pub struct Connect<'a> {
    /// Protocol version.
    pub version: Version,
    /// A broker that bridges says so in the highest bit of the protocol level (0x83, 0x84), below 5. No version of the
    /// specification knows it; Mosquitto sends it first, and brokers that know it send such a client nothing back of its own.
    pub is_bridge: bool,
    /// Clean Session (3.x) or Clean Start (5).
    pub clean_start: bool,
    /// Keep alive in seconds; 0 switches it off.
    pub keep_alive_secs: u16,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
    /// Client identifier, possibly empty.
    pub client_id: &'a str,
    /// The will, if any.
    pub will: Option<Will<'a>>,
    /// User name, possibly empty when present.
    pub username: Option<&'a str>,
    /// Password: binary data, possibly empty when present.
    pub password: Option<&'a [u8]>,
}

/// The will of a CONNECT.
#[derive(Clone, PartialEq)]
pub struct Will<'a> {
    /// QoS it is published with.
    pub qos: QoS,
    /// Whether it is published retained.
    pub retain: bool,
    /// Will properties; empty below 5.
    pub properties: Properties<'a>,
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
}

/// CONNACK.
#[derive(Clone, Debug, PartialEq)]
pub struct Connack<'a> {
    /// Session Present.
    pub session_present: bool,
    /// Return code (3.x: 0 to 5) or reason code (5).
    pub code: u8,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
}

/// PUBLISH. From [`super::decode_publish_head`] the payload is empty and `payload_bytes` tells its length.
#[derive(Clone, PartialEq)]
pub struct Publish<'a> {
    /// Re-delivery flag.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic name; empty only in version 5 with a topic alias.
    pub topic: &'a str,
    /// Present exactly when QoS is above 0.
    pub packet_id: Option<PacketId>,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
    /// Payload bytes at hand.
    pub payload: &'a [u8],
    /// Length of the payload on the wire.
    pub payload_bytes: u32,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack<'a> {
    /// Which packet is answered.
    pub packet_id: PacketId,
    /// Reason code; 0 when the short form leaves it out, always 0 below 5.
    pub code: u8,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe<'a> {
    /// Packet identifier.
    pub packet_id: PacketId,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
    /// The filters, validated when decoded; iterate with [`Subscribe::filters`].
    pub(crate) body: &'a [u8],
}

/// A SUBSCRIBE or UNSUBSCRIBE whose filters were not looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct FiltersHead<'a> {
    /// Packet identifier.
    pub packet_id: PacketId,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
    /// The filters as sent, to the end of the packet.
    pub filters: &'a [u8],
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubscribeFilter<'a> {
    /// The topic filter as sent, `$share/...` included.
    pub filter: &'a str,
    /// Requested maximum QoS.
    pub qos: QoS,
    /// The whole options byte.
    pub options: u8,
}

/// SUBACK.
#[derive(Clone, Debug, PartialEq)]
pub struct Suback<'a> {
    /// Packet identifier.
    pub packet_id: PacketId,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
    /// One code for each filter.
    pub codes: &'a [u8],
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsubscribe<'a> {
    /// Packet identifier.
    pub packet_id: PacketId,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
    /// The filters, validated when decoded; iterate with [`Unsubscribe::filters`].
    pub(crate) body: &'a [u8],
}

/// UNSUBACK.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsuback<'a> {
    /// Packet identifier.
    pub packet_id: PacketId,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
    /// One code for each filter; empty below 5.
    pub codes: &'a [u8],
}

/// DISCONNECT.
#[derive(Clone, Debug, PartialEq)]
pub struct Disconnect<'a> {
    /// Reason code; 0 when the short form leaves it out.
    pub code: u8,
    /// Properties; empty below 5.
    pub properties: Properties<'a>,
}

/// AUTH (version 5 only).
#[derive(Clone, Debug, PartialEq)]
pub struct Auth<'a> {
    /// Reason code.
    pub code: u8,
    /// Properties.
    pub properties: Properties<'a>,
}

/// Bytes that `Debug` only counts.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0)
    }
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("clean_start", &self.clean_start)
            .field("keep_alive_secs", &self.keep_alive_secs)
            .field("properties", &self.properties)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("username", &self.username)
            .field(
                "password",
                &self.password.map(|password| Hidden(password.len())),
            )
            .finish()
    }
}

impl fmt::Debug for Will<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Will")
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("properties", &self.properties)
            .field("topic", &self.topic)
            .field("payload", &Hidden(self.payload.len()))
            .finish()
    }
}

impl fmt::Debug for Publish<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("dup", &self.dup)
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("topic", &self.topic)
            .field("packet_id", &self.packet_id)
            .field("properties", &self.properties)
            .field("payload", &Hidden(self.payload.len()))
            .field("payload_bytes", &self.payload_bytes)
            .finish()
    }
}

impl PacketKind {
    /// Every kind, in the order of its number.
    pub const ALL: &'static [Self] = &[
        Self::Connect,
        Self::Connack,
        Self::Publish,
        Self::Puback,
        Self::Pubrec,
        Self::Pubrel,
        Self::Pubcomp,
        Self::Subscribe,
        Self::Suback,
        Self::Unsubscribe,
        Self::Unsuback,
        Self::Pingreq,
        Self::Pingresp,
        Self::Disconnect,
        Self::Auth,
    ];

    /// The kind with this number; 0 has none.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Connect,
            2 => Self::Connack,
            3 => Self::Publish,
            4 => Self::Puback,
            5 => Self::Pubrec,
            6 => Self::Pubrel,
            7 => Self::Pubcomp,
            8 => Self::Subscribe,
            9 => Self::Suback,
            10 => Self::Unsubscribe,
            11 => Self::Unsuback,
            12 => Self::Pingreq,
            13 => Self::Pingresp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    /// The number on the wire.
    #[inline]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl QoS {
    /// The QoS of the two low bits; 3 is none.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }

    /// 0, 1 or 2.
    #[inline]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// The bit of the protocol level by which a bridge is told from a client.
pub(super) const BRIDGE: u8 = 0x80;

impl Version {
    /// The protocol level that CONNECT names.
    #[inline]
    pub const fn level(self) -> u8 {
        match self {
            Self::V31 => 3,
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }
}

impl Packet<'_> {
    /// Which kind of packet it is.
    pub fn kind(&self) -> PacketKind {
        match self {
            Self::Connect(_) => PacketKind::Connect,
            Self::Connack(_) => PacketKind::Connack,
            Self::Publish(_) => PacketKind::Publish,
            Self::Puback(_) => PacketKind::Puback,
            Self::Pubrec(_) => PacketKind::Pubrec,
            Self::Pubrel(_) => PacketKind::Pubrel,
            Self::Pubcomp(_) => PacketKind::Pubcomp,
            Self::Subscribe(_) => PacketKind::Subscribe,
            Self::Suback(_) => PacketKind::Suback,
            Self::Unsubscribe(_) => PacketKind::Unsubscribe,
            Self::Unsuback(_) => PacketKind::Unsuback,
            Self::Pingreq => PacketKind::Pingreq,
            Self::Pingresp => PacketKind::Pingresp,
            Self::Disconnect(_) => PacketKind::Disconnect,
            Self::Auth(_) => PacketKind::Auth,
        }
    }
}

impl<'a> Subscribe<'a> {
    /// A SUBSCRIBE with the filters of `filters`, which must not be empty for the packet to be legal.
    pub fn new(
        packet_id: PacketId,
        properties: Properties<'a>,
        filters: &'a SubscribeFilters,
    ) -> Self {
        Self {
            packet_id,
            properties,
            body: &filters.bytes,
        }
    }

    /// The filters in order. Cannot fail: decoding has validated them.
    pub fn filters(&self) -> impl Iterator<Item = SubscribeFilter<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.body);
        core::iter::from_fn(move || {
            let filter = core::str::from_utf8(cursor.prefixed()?).ok()?;
            let options = cursor.u8()?;
            Some(SubscribeFilter {
                filter,
                qos: QoS::from_bits(options)?,
                options,
            })
        })
    }
}

impl<'a> SubscribeFilter<'a> {
    /// A filter with a QoS and no other option.
    pub fn new(filter: &'a str, qos: QoS) -> Self {
        Self {
            filter,
            qos,
            options: qos.bits(),
        }
    }

    /// The options byte to send: [`Self::options`] with the QoS bits of [`Self::qos`], which may have been lowered.
    pub fn options_with_qos(&self) -> u8 {
        (self.options & !3) | self.qos.bits()
    }

    /// No Local (version 5).
    pub fn is_no_local(&self) -> bool {
        self.options & 0x04 != 0
    }

    /// Retain As Published (version 5).
    pub fn is_retain_as_published(&self) -> bool {
        self.options & 0x08 != 0
    }

    /// Retain Handling, 0 to 2 (version 5).
    pub fn retain_handling(&self) -> u8 {
        (self.options >> 4) & 3
    }
}

impl<'a> Unsubscribe<'a> {
    /// An UNSUBSCRIBE with the filters of `filters`, which must not be empty for the packet to be legal.
    pub fn new(
        packet_id: PacketId,
        properties: Properties<'a>,
        filters: &'a UnsubscribeFilters,
    ) -> Self {
        Self {
            packet_id,
            properties,
            body: &filters.bytes,
        }
    }

    /// The filters in order. Cannot fail: decoding has validated them.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut cursor = Cursor::new(self.body);
        core::iter::from_fn(move || core::str::from_utf8(cursor.prefixed()?).ok())
    }
}

/// Filters of a SUBSCRIBE under construction.
#[derive(Clone, Debug, Default)]
pub struct SubscribeFilters {
    bytes: Vec<u8>,
}

impl SubscribeFilters {
    /// No filters yet.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// True exactly when there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Memory behind them, in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends a filter with its options.
    pub fn push(&mut self, filter: &SubscribeFilter<'_>) -> Result<(), TooLong> {
        append_subscribe_filter(&mut self.bytes, filter)
    }
}

/// Filters of an UNSUBSCRIBE under construction.
#[derive(Clone, Debug, Default)]
pub struct UnsubscribeFilters {
    bytes: Vec<u8>,
}

impl UnsubscribeFilters {
    /// No filters yet.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Appends a filter.
    pub fn push(&mut self, filter: &str) -> Result<(), TooLong> {
        append_prefixed(&mut self.bytes, filter.as_bytes())
    }
}
