//! What a peer can do wrong, one variant for each rule, its clause in each version, and the reason code it deserves.
//!
//! The table below is the whole list: variant, clauses, reason code in one row. A variant cannot be added without them, and
//! what has no clause in a version is no violation in it.

use super::packet::Version;

/// MQTT 5 reason codes that Sluice itself sends (section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum ReasonCode {
    Success = 0x00,
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecificError = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    /// An operator keeps this client out.
    Banned = 0x8a,
    ServerShuttingDown = 0x8b,
    BadAuthenticationMethod = 0x8c,
    KeepAliveTimeout = 0x8d,
    TopicFilterInvalid = 0x8f,
    TopicNameInvalid = 0x90,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    RetainNotSupported = 0x9a,
    QosNotSupported = 0x9b,
}

impl ReasonCode {
    /// The byte on the wire.
    #[inline]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// A clause of an older version, with the version in front; nothing when there is none.
macro_rules! older {
    ($version:literal, "") => {
        ""
    };
    ($version:literal, $clause:literal) => {
        concat!($version, " ", $clause)
    };
}

/// Makes the enum and its total maps from one row for each variant: `Variant: "3.1", "3.1.1", "5" => ReasonCode`, with the
/// clause of each version, or `""` where the version has no such rule.
///
/// `codec` rows are found by [`super::Framer`] and [`super::decode`] from bytes alone; `session` rows need to know what
/// was sent before, so only a session can find them.
macro_rules! violations {
    (
        codec { $( $(#[$doc:meta])* $name:ident: $v31:tt, $v311:tt, $v5:tt => $code:ident, )* }
        session { $( $(#[$s_doc:meta])* $s_name:ident: $s_v31:tt, $s_v311:tt, $s_v5:tt => $s_code:ident, )* }
    ) => {
        /// One broken clause.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Violation {
            $( $(#[$doc])* $name, )*
            $( $(#[$s_doc])* $s_name, )*
        }

        impl Violation {
            /// Every violation that the bytes alone show.
            pub const CODEC: &'static [Self] = &[$( Self::$name, )*];
            /// Every violation that only the course of a session shows.
            pub const SESSION: &'static [Self] = &[$( Self::$s_name, )*];

            /// The reason code to answer with. Total: a new variant must choose.
            pub const fn reason_code(self) -> ReasonCode {
                match self {
                    $( Self::$name => ReasonCode::$code, )*
                    $( Self::$s_name => ReasonCode::$s_code, )*
                }
            }

            /// The clause of `version` for logs and tests: the number of a normative statement (`MQTT-3.1.0-1`), else a
            /// section (`2.1.4`, `A` for the appendix of 3.1). Those of 3.1 and 3.1.1 have the version in front
            /// (`3.1.1 MQTT-3.1.2-22`). Empty when the version has no such rule: nothing is refused for it then.
            pub const fn clause(self, version: Version) -> &'static str {
                match version {
                    Version::V31 => match self {
                        $( Self::$name => older!("3.1", $v31), )*
                        $( Self::$s_name => older!("3.1", $s_v31), )*
                    },
                    Version::V311 => match self {
                        $( Self::$name => older!("3.1.1", $v311), )*
                        $( Self::$s_name => older!("3.1.1", $s_v311), )*
                    },
                    Version::V5 => match self {
                        $( Self::$name => $v5, )*
                        $( Self::$s_name => $s_v5, )*
                    },
                }
            }

            /// The name of the variant: a bounded label for counters and logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$name => stringify!($name), )*
                    $( Self::$s_name => stringify!($s_name), )*
                }
            }
        }
    };
}

violations! {
    codec {
        // --- the fixed header and the order of packets ---
        /// The packet is longer than the receiver allows. 3.1 does not speak of that; the limit is the listener's.
        PacketTooLarge: "packet_bytes_max", "MQTT-4.8.0-2", "MQTT-3.2.2-15" => PacketTooLarge,
        /// The first packet of a client is not CONNECT.
        FirstPacketNotConnect: "3.1", "MQTT-3.1.0-1", "MQTT-3.1.0-1" => ProtocolError,
        /// A client sends CONNECT again.
        SecondConnect: "3.1", "MQTT-3.1.0-2", "MQTT-3.1.0-2" => ProtocolError,
        /// The first packet of a server is neither CONNACK nor AUTH.
        FirstPacketNotConnack: "3.2", "MQTT-3.2.0-1", "MQTT-3.2.0-1" => ProtocolError,
        /// Packet type 0.
        KindReserved: "2.1", "2.2.1", "2.1.2" => MalformedPacket,
        /// A packet type that only servers send.
        KindNotFromClient: "3", "2.2.1", "2.1.2" => ProtocolError,
        /// A packet type that only clients send (below version 5, DISCONNECT too).
        KindNotFromServer: "3", "2.2.1", "2.1.2" => ProtocolError,
        /// Packet type 15 below version 5.
        AuthBelowVersion5: "2.1", "2.2.1", "" => MalformedPacket,
        /// Reserved flags in the first byte of a packet not named below.
        HeaderFlagsReserved: "", "MQTT-2.2.2-2", "MQTT-2.1.3-1" => MalformedPacket,
        /// PUBREL without the flags 0010.
        PubrelFlags: "", "MQTT-3.6.1-1", "MQTT-3.6.1-1" => MalformedPacket,
        /// SUBSCRIBE without the flags 0010.
        SubscribeFlags: "", "MQTT-3.8.1-1", "MQTT-3.8.1-1" => MalformedPacket,
        /// UNSUBSCRIBE without the flags 0010.
        UnsubscribeFlags: "", "MQTT-3.10.1-1", "MQTT-3.10.1-1" => MalformedPacket,
        /// PUBLISH with both QoS bits set.
        PublishQos3: "2.1", "MQTT-3.3.1-4", "MQTT-3.3.1-4" => MalformedPacket,
        /// PUBLISH with DUP and QoS 0.
        PublishDupWithQos0: "", "MQTT-3.3.1-2", "MQTT-3.3.1-2" => ProtocolError,
        /// A remaining length of more than four bytes.
        RemainingLengthTooLong: "2.1", "2.2.3", "1.5.5" => MalformedPacket,
        /// A remaining length in more bytes than it needs.
        RemainingLengthNotMinimal: "", "", "MQTT-1.5.5-1" => MalformedPacket,
        /// The remaining length is not that of the packet at hand. A framer never hands out such a packet.
        RemainingLengthMismatch: "2.1", "2.2.3", "2.1.4" => MalformedPacket,
        /// PINGREQ or PINGRESP with a body.
        PingHasBody: "3.12", "3.12", "3.12" => MalformedPacket,

        // --- fields ---
        /// A field reaches past the end of its packet.
        FieldPastEnd: "2.1", "2.2.3", "2.1.4" => MalformedPacket,
        /// Topic, identifier and properties of a PUBLISH reach past its end.
        PublishHeadPastEnd: "3.3", "3.3.2", "3.3.2" => MalformedPacket,
        /// Bytes follow the last field.
        TrailingBytes: "2.1", "2.2.3", "2.1.4" => MalformedPacket,
        /// Text that is not UTF-8, encoded surrogates included.
        StringNotUtf8: "2.5", "MQTT-1.5.3-1", "MQTT-1.5.4-1" => MalformedPacket,
        /// Text with U+0000.
        StringHasNul: "A", "MQTT-1.5.3-2", "MQTT-1.5.4-2" => MalformedPacket,
        /// Packet identifier 0.
        PacketIdZero: "2.4", "MQTT-2.3.1-1", "MQTT-2.2.1-3" => ProtocolError,
        /// A variable byte integer of more than four bytes inside a packet.
        VariableIntegerTooLong: "", "", "1.5.5" => MalformedPacket,
        /// A variable byte integer in more bytes than it needs, inside a packet.
        VariableIntegerNotMinimal: "", "", "MQTT-1.5.5-1" => MalformedPacket,

        // --- properties ---
        /// The property length reaches past the end of the packet.
        PropertyLengthPastEnd: "", "", "2.2.2.1" => MalformedPacket,
        /// A property reaches past the property length.
        PropertyPastEnd: "", "", "2.2.2.1" => MalformedPacket,
        /// An identifier that names no property.
        PropertyUnknown: "", "", "2.2.2.2" => MalformedPacket,
        /// A property that this packet, or this sender, must not carry.
        PropertyNotAllowed: "", "", "2.2.2.2" => MalformedPacket,
        /// A property more than once, where once is the most.
        PropertyRepeated: "", "", "2.2.2" => ProtocolError,
        /// A Subscription Identifier in a PUBLISH of a client.
        SubscriptionIdentifierFromClient: "", "", "MQTT-3.3.4-6" => ProtocolError,
        /// A Session Expiry Interval in a DISCONNECT of a server.
        SessionExpiryFromServer: "", "", "MQTT-3.14.2-2" => ProtocolError,
        /// Payload Format Indicator above 1.
        PayloadFormatIndicatorAboveOne: "", "", "3.3.2.3.2" => ProtocolError,
        /// Request Problem Information above 1.
        RequestProblemInformationAboveOne: "", "", "3.1.2.11.7" => ProtocolError,
        /// Request Response Information above 1.
        RequestResponseInformationAboveOne: "", "", "3.1.2.11.6" => ProtocolError,
        /// Maximum QoS above 1.
        MaximumQosAboveOne: "", "", "3.2.2.3.4" => ProtocolError,
        /// Retain Available above 1.
        RetainAvailableAboveOne: "", "", "3.2.2.3.5" => ProtocolError,
        /// Wildcard Subscription Available above 1.
        WildcardSubscriptionAvailableAboveOne: "", "", "3.2.2.3.11" => ProtocolError,
        /// Subscription Identifier Available above 1.
        SubscriptionIdentifierAvailableAboveOne: "", "", "3.2.2.3.12" => ProtocolError,
        /// Shared Subscription Available above 1.
        SharedSubscriptionAvailableAboveOne: "", "", "3.2.2.3.13" => ProtocolError,
        /// Receive Maximum 0.
        ReceiveMaximumZero: "", "", "3.1.2.11.3" => ProtocolError,
        /// Maximum Packet Size 0.
        MaximumPacketSizeZero: "", "", "3.1.2.11.4" => ProtocolError,
        /// Topic Alias 0.
        TopicAliasZero: "", "", "MQTT-3.3.2-8" => TopicAliasInvalid,
        /// Subscription Identifier 0.
        SubscriptionIdentifierZero: "", "", "3.8.2.1.2" => ProtocolError,
        /// A Response Topic with a wildcard.
        ResponseTopicHasWildcard: "", "", "MQTT-3.3.2-14" => ProtocolError,
        /// An empty Response Topic.
        ResponseTopicEmpty: "", "", "MQTT-4.7.3-1" => ProtocolError,
        /// Authentication Data without Authentication Method.
        AuthenticationDataWithoutMethod: "", "", "3.1.2.11.10" => ProtocolError,
        /// AUTH with properties but no Authentication Method.
        AuthWithoutMethod: "", "", "3.15.2.2.2" => ProtocolError,

        // --- CONNECT and CONNACK ---
        /// A protocol name other than `MQTT` and `MQIsdp`.
        ProtocolNameUnknown: "3.1", "MQTT-3.1.2-1", "MQTT-3.1.2-1" => UnsupportedProtocolVersion,
        /// A protocol level that no version of MQTT has.
        ProtocolLevelUnknown: "3.1", "MQTT-3.1.2-2", "MQTT-3.1.2-2" => UnsupportedProtocolVersion,
        /// The protocol name of one version with the level of another.
        ProtocolNameLevelMismatch: "3.1", "3.1.2.2", "3.1.2.2" => UnsupportedProtocolVersion,
        /// The reserved CONNECT flag is set.
        ConnectReservedFlag: "", "MQTT-3.1.2-3", "MQTT-3.1.2-3" => MalformedPacket,
        /// A will QoS without a will.
        WillQosWithoutWill: "", "MQTT-3.1.2-13", "MQTT-3.1.2-11" => MalformedPacket,
        /// Will QoS 3.
        WillQos3: "3.1", "MQTT-3.1.2-14", "MQTT-3.1.2-12" => MalformedPacket,
        /// Will Retain without a will.
        WillRetainWithoutWill: "", "MQTT-3.1.2-15", "MQTT-3.1.2-13" => MalformedPacket,
        /// A password without a user name, below version 5.
        PasswordWithoutUsername: "3.1", "MQTT-3.1.2-22", "" => MalformedPacket,
        /// A will topic with a wildcard.
        WillTopicHasWildcard: "A", "MQTT-4.7.1-1", "MQTT-4.7.0-1" => ProtocolError,
        /// An empty will topic.
        WillTopicEmpty: "A", "MQTT-4.7.3-1", "MQTT-4.7.3-1" => ProtocolError,
        /// Reserved CONNACK flags are set.
        ConnackReservedFlags: "", "3.2.2.1", "MQTT-3.2.2-1" => MalformedPacket,
        /// Session Present together with a refusal.
        SessionPresentOnRefusal: "", "MQTT-3.2.2-4", "MQTT-3.2.2-6" => ProtocolError,
        /// A CONNACK code that the version does not define.
        ConnackCodeUndefined: "3.2", "3.2.2.3", "MQTT-3.2.2-8" => ProtocolError,

        // --- PUBLISH and its acknowledgements ---
        /// A topic name with a wildcard.
        PublishTopicHasWildcard: "A", "MQTT-3.3.2-2", "MQTT-3.3.2-2" => ProtocolError,
        /// An empty topic name below version 5.
        PublishTopicEmpty: "A", "MQTT-4.7.3-1", "" => ProtocolError,
        /// Neither a topic name nor a topic alias.
        PublishTopicMissing: "", "", "3.3.2.1" => ProtocolError,
        /// A reason code that PUBACK does not define.
        PubackCodeUndefined: "", "", "MQTT-3.4.2-1" => ProtocolError,
        /// A reason code that PUBREC does not define.
        PubrecCodeUndefined: "", "", "MQTT-3.5.2-1" => ProtocolError,
        /// A reason code that PUBREL does not define.
        PubrelCodeUndefined: "", "", "MQTT-3.6.2-1" => ProtocolError,
        /// A reason code that PUBCOMP does not define.
        PubcompCodeUndefined: "", "", "MQTT-3.7.2-1" => ProtocolError,

        // --- SUBSCRIBE, UNSUBSCRIBE and their acknowledgements ---
        /// SUBSCRIBE without a filter.
        SubscribeNoFilter: "", "MQTT-3.8.3-3", "MQTT-3.8.3-2" => ProtocolError,
        /// Reserved subscription option bits are set.
        SubscribeOptionsReserved: "", "MQTT-3.8.3-4", "MQTT-3.8.3-5" => MalformedPacket,
        /// A requested QoS of 3.
        SubscribeQos3: "2.1", "MQTT-3.8.3-4", "3.8.3.1" => ProtocolError,
        /// Retain Handling 3.
        RetainHandling3: "", "", "3.8.3.1" => ProtocolError,
        /// No Local on a shared subscription.
        NoLocalOnShared: "", "", "MQTT-3.8.3-4" => ProtocolError,
        /// UNSUBSCRIBE without a filter.
        UnsubscribeNoFilter: "", "MQTT-3.10.3-2", "MQTT-3.10.3-2" => ProtocolError,
        /// An empty topic filter.
        FilterEmpty: "A", "MQTT-4.7.3-1", "MQTT-4.7.3-1" => ProtocolError,
        /// `#` that is not the last level, or shares its level.
        FilterMultiLevel: "A", "MQTT-4.7.1-2", "MQTT-4.7.1-1" => ProtocolError,
        /// `+` that shares its level.
        FilterSingleLevel: "A", "MQTT-4.7.1-3", "MQTT-4.7.1-2" => ProtocolError,
        /// `$share/` without a share name, or with a wildcard in it.
        FilterShareName: "", "", "MQTT-4.8.2-1" => ProtocolError,
        /// `$share/<name>` without `/` and a filter after it.
        FilterShareWithoutFilter: "", "", "MQTT-4.8.2-2" => ProtocolError,
        /// SUBACK without a code.
        SubackNoCode: "", "MQTT-3.8.4-5", "MQTT-3.8.4-6" => ProtocolError,
        /// A code that SUBACK does not define in this version.
        SubackCodeUndefined: "3.9", "MQTT-3.9.3-2", "MQTT-3.9.3-2" => ProtocolError,
        /// UNSUBACK without a code, in version 5.
        UnsubackNoCode: "", "", "3.11.3" => ProtocolError,
        /// A reason code that UNSUBACK does not define.
        UnsubackCodeUndefined: "", "", "MQTT-3.11.3-2" => ProtocolError,

        // --- DISCONNECT and AUTH ---
        /// A reason code that DISCONNECT does not define for this sender.
        DisconnectCodeUndefined: "", "", "MQTT-3.14.2-1" => ProtocolError,
        /// A reason code that AUTH does not define for this sender.
        AuthCodeUndefined: "", "", "MQTT-3.15.2-1" => ProtocolError,
    }
    session {
        /// A server sends CONNACK again.
        SecondConnack: "", "", "MQTT-3.2.0-2" => ProtocolError,
        /// A client sends something else than AUTH or DISCONNECT while it is being authenticated.
        PacketBeforeConnack: "", "", "MQTT-3.1.2-30" => ProtocolError,
        /// More unacknowledged PUBLISH packets than the receiver allows.
        ReceiveMaximumExceeded: "", "", "MQTT-3.3.4-7" => ReceiveMaximumExceeded,
        /// A topic alias above the maximum that the receiver gave.
        TopicAliasAboveMaximum: "", "", "MQTT-3.3.2-9" => TopicAliasInvalid,
        /// A topic alias that stands for no topic yet.
        TopicAliasUnknown: "", "", "3.3.2.3.4" => ProtocolError,
        /// AUTH although CONNECT named no authentication method, or another one.
        AuthNotNegotiated: "", "", "MQTT-4.12.0-7" => ProtocolError,
        /// A SUBACK or UNSUBACK with fewer or more codes than the request has filters.
        AckCountMismatch: "3.9", "MQTT-3.8.4-5", "MQTT-3.8.4-6" => ProtocolError,
        /// A DISCONNECT that keeps the MQTT session although CONNECT said that it ends with the connection.
        SessionExpiryRaised: "", "", "3.14.2.2.2" => ProtocolError,
    }
}
