//! Properties of MQTT 5 (section 2.2.2): a validated slice and an iterator over it.

/// Validated properties: iterating cannot fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    /// The properties without their length prefix.
    pub(crate) bytes: &'a [u8],
}

/// Property identifiers by their number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum PropertyId {
    PayloadFormatIndicator = 0x01,
    MessageExpiryInterval = 0x02,
    ContentType = 0x03,
    ResponseTopic = 0x08,
    CorrelationData = 0x09,
    SubscriptionIdentifier = 0x0b,
    SessionExpiryInterval = 0x11,
    AssignedClientIdentifier = 0x12,
    ServerKeepAlive = 0x13,
    AuthenticationMethod = 0x15,
    AuthenticationData = 0x16,
    RequestProblemInformation = 0x17,
    WillDelayInterval = 0x18,
    RequestResponseInformation = 0x19,
    ResponseInformation = 0x1a,
    ServerReference = 0x1c,
    ReasonString = 0x1f,
    ReceiveMaximum = 0x21,
    TopicAliasMaximum = 0x22,
    TopicAlias = 0x23,
    MaximumQos = 0x24,
    RetainAvailable = 0x25,
    UserProperty = 0x26,
    MaximumPacketSize = 0x27,
    WildcardSubscriptionAvailable = 0x28,
    SubscriptionIdentifierAvailable = 0x29,
    SharedSubscriptionAvailable = 0x2a,
}

/// One property. Grouped by data type, so that a match stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property<'a> {
    /// One byte, two bytes, four bytes or a variable byte integer.
    Number(PropertyId, u32),
    /// UTF-8 string.
    Text(PropertyId, &'a str),
    /// Binary data.
    Data(PropertyId, &'a [u8]),
    /// User Property.
    Pair(&'a str, &'a str),
}

impl<'a> Properties<'a> {
    /// No properties.
    pub const EMPTY: Properties<'static> = Properties { bytes: &[] };

    /// The properties in order.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let _ = self.bytes;
        core::iter::empty()
    }

    /// The bytes without the length prefix.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The number of `id`, when present.
    pub fn number(&self, id: PropertyId) -> Option<u32> {
        let _ = id;
        todo!()
    }

    /// The text of `id`, when present.
    pub fn text(&self, id: PropertyId) -> Option<&'a str> {
        let _ = id;
        todo!()
    }
}
