//! What a peer can do wrong, one variant for each clause, and the reason code each deserves.

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

/// One broken clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// The packet is longer than the receiver allows.
    PacketTooLarge,
}

impl Violation {
    /// The reason code to answer with. Total: a new variant must choose.
    pub fn reason_code(self) -> ReasonCode {
        match self {
            Self::PacketTooLarge => ReasonCode::PacketTooLarge,
        }
    }

    /// The clause, `[MQTT-3.1.0-1]` or a section, for logs and tests.
    pub fn clause(self) -> &'static str {
        match self {
            Self::PacketTooLarge => "3.1.2.11.4",
        }
    }
}
