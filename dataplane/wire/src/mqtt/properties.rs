//! Properties of MQTT 5 (section 2.2.2): a validated slice, an iterator over it, and a builder.
//!
//! Owns which property may stand in which packet of which side, and which values it may take. The slice stays where it
//! was received; text is looked at again only when somebody asks for it.

use super::encode::{TooLong, append_property};
use super::packet::{Side, Version};
use super::topic::has_wildcard;
use super::violation::Violation;
use crate::cursor::{Cursor, Varint};

/// Validated properties: iterating cannot fail. `Debug` counts them only: they may hold authentication data.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    /// The properties without their length prefix.
    pub(crate) bytes: &'a [u8],
}

impl core::fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Properties(<{} bytes>)", self.bytes.len())
    }
}

/// The data type of a property (MQTT 5 section 2.2.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataType {
    Byte,
    TwoByte,
    FourByte,
    Variable,
    Text,
    Binary,
    Pair,
}

/// Makes the enum and its maps from one row for each property: name, number on the wire, data type.
macro_rules! property_ids {
    ($( $name:ident = $number:literal: $data_type:ident, )*) => {
        /// Property identifiers by their number on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum PropertyId {
            $( $name = $number, )*
        }

        impl PropertyId {
            /// Every property.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// The property with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $( $number => Some(Self::$name), )*
                    _ => None,
                }
            }

            pub(crate) const fn data_type(self) -> DataType {
                match self {
                    $( Self::$name => DataType::$data_type, )*
                }
            }
        }
    };
}

property_ids! {
    PayloadFormatIndicator = 0x01: Byte,
    MessageExpiryInterval = 0x02: FourByte,
    ContentType = 0x03: Text,
    ResponseTopic = 0x08: Text,
    CorrelationData = 0x09: Binary,
    SubscriptionIdentifier = 0x0b: Variable,
    SessionExpiryInterval = 0x11: FourByte,
    AssignedClientIdentifier = 0x12: Text,
    ServerKeepAlive = 0x13: TwoByte,
    AuthenticationMethod = 0x15: Text,
    AuthenticationData = 0x16: Binary,
    RequestProblemInformation = 0x17: Byte,
    WillDelayInterval = 0x18: FourByte,
    RequestResponseInformation = 0x19: Byte,
    ResponseInformation = 0x1a: Text,
    ServerReference = 0x1c: Text,
    ReasonString = 0x1f: Text,
    ReceiveMaximum = 0x21: TwoByte,
    TopicAliasMaximum = 0x22: TwoByte,
    TopicAlias = 0x23: TwoByte,
    MaximumQos = 0x24: Byte,
    RetainAvailable = 0x25: Byte,
    UserProperty = 0x26: Pair,
    MaximumPacketSize = 0x27: FourByte,
    WildcardSubscriptionAvailable = 0x28: Byte,
    SubscriptionIdentifierAvailable = 0x29: Byte,
    SharedSubscriptionAvailable = 0x2a: Byte,
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

impl Property<'_> {
    /// Which property it is.
    pub fn id(&self) -> PropertyId {
        match *self {
            Self::Number(id, _) | Self::Text(id, _) | Self::Data(id, _) => id,
            Self::Pair(..) => PropertyId::UserProperty,
        }
    }
}

impl<'a> Properties<'a> {
    /// No properties.
    pub const EMPTY: Properties<'static> = Properties { bytes: &[] };

    /// The properties in order.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        self.raw().filter_map(|(id, raw)| raw.view(id))
    }

    /// The bytes without the length prefix.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// True exactly when there is no property.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The number of `id`, when present; the first one, when repeated.
    pub fn number(&self, id: PropertyId) -> Option<u32> {
        match self.first(id)? {
            Raw::Number(number) => Some(number),
            Raw::Text(_) | Raw::Binary(_) | Raw::Pair(..) => None,
        }
    }

    /// The text of `id`, when present.
    pub fn text(&self, id: PropertyId) -> Option<&'a str> {
        match self.first(id)? {
            Raw::Text(text) => core::str::from_utf8(text).ok(),
            Raw::Number(_) | Raw::Binary(_) | Raw::Pair(..) => None,
        }
    }

    /// The binary data of `id`, when present.
    pub fn data(&self, id: PropertyId) -> Option<&'a [u8]> {
        match self.first(id)? {
            Raw::Binary(data) => Some(data),
            Raw::Number(_) | Raw::Text(_) | Raw::Pair(..) => None,
        }
    }

    fn first(&self, id: PropertyId) -> Option<Raw<'a>> {
        self.raw()
            .find_map(|(found, raw)| (found == id).then_some(raw))
    }

    /// Ends early instead of failing; validated bytes have no such end.
    fn raw(&self) -> impl Iterator<Item = (PropertyId, Raw<'a>)> + use<'a> {
        self.slices().map(|(id, raw, _)| (id, raw))
    }

    /// The properties together with the bytes each is written in.
    pub(crate) fn slices(&self) -> impl Iterator<Item = (PropertyId, Raw<'a>, &'a [u8])> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        core::iter::from_fn(move || {
            if cursor.is_empty() {
                return None;
            }
            let before = cursor.rest();
            let (id, raw) = read(&mut cursor).ok()?;
            let taken = before.len().saturating_sub(cursor.rest().len());
            Some((id, raw, before.get(..taken)?))
        })
    }
}

/// Properties under construction, for packets that the proxy originates and for tests.
///
/// Keeps each property whole and of its data type; whether the packet may carry it is the caller's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertiesBuf {
    bytes: Vec<u8>,
}

impl PropertiesBuf {
    /// No properties yet.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Appends a property. A value that its data type cannot hold, or a variant that is not the property's data type,
    /// is refused and nothing is appended.
    pub fn push(&mut self, property: Property<'_>) -> Result<(), TooLong> {
        append_property(&mut self.bytes, property)
    }

    /// A view for a packet.
    pub fn view(&self) -> Properties<'_> {
        Properties { bytes: &self.bytes }
    }
}

/// Where properties stand, and so which are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Connect,
    Will,
    Connack,
    Publish(Side),
    Ack,
    Subscribe,
    Unsubscribe,
    Disconnect(Side),
    Auth,
}

/// One bit for each property identifier; the greatest is 0x2a.
type IdSet = u64;

const fn bit(id: PropertyId) -> IdSet {
    1 << id as u8
}

const fn set(ids: &[PropertyId]) -> IdSet {
    let mut bits = 0;
    let mut rest = ids;
    while let [first, tail @ ..] = rest {
        bits |= bit(*first);
        rest = tail;
    }
    bits
}

const CONNECT: IdSet = {
    use PropertyId::*;
    set(&[
        SessionExpiryInterval,
        AuthenticationMethod,
        AuthenticationData,
        RequestProblemInformation,
        RequestResponseInformation,
        ReceiveMaximum,
        TopicAliasMaximum,
        UserProperty,
        MaximumPacketSize,
    ])
};

const WILL: IdSet = {
    use PropertyId::*;
    set(&[
        PayloadFormatIndicator,
        MessageExpiryInterval,
        ContentType,
        ResponseTopic,
        CorrelationData,
        WillDelayInterval,
        UserProperty,
    ])
};

const CONNACK: IdSet = {
    use PropertyId::*;
    set(&[
        SessionExpiryInterval,
        AssignedClientIdentifier,
        ServerKeepAlive,
        AuthenticationMethod,
        AuthenticationData,
        ResponseInformation,
        ServerReference,
        ReasonString,
        ReceiveMaximum,
        TopicAliasMaximum,
        MaximumQos,
        RetainAvailable,
        UserProperty,
        MaximumPacketSize,
        WildcardSubscriptionAvailable,
        SubscriptionIdentifierAvailable,
        SharedSubscriptionAvailable,
    ])
};

const PUBLISH_OF_CLIENT: IdSet = {
    use PropertyId::*;
    set(&[
        PayloadFormatIndicator,
        MessageExpiryInterval,
        ContentType,
        ResponseTopic,
        CorrelationData,
        TopicAlias,
        UserProperty,
    ])
};

const ACK: IdSet = set(&[PropertyId::ReasonString, PropertyId::UserProperty]);

impl Place {
    /// True exactly when the property may stand here.
    pub(crate) const fn allows(self, id: PropertyId) -> bool {
        self.allowed() & bit(id) != 0
    }

    const fn allowed(self) -> IdSet {
        use PropertyId::*;
        match self {
            Self::Connect => CONNECT,
            Self::Will => WILL,
            Self::Connack => CONNACK,
            Self::Publish(Side::Client) => PUBLISH_OF_CLIENT,
            Self::Publish(Side::Server) => PUBLISH_OF_CLIENT | bit(SubscriptionIdentifier),
            Self::Ack => ACK,
            Self::Subscribe => set(&[SubscriptionIdentifier, UserProperty]),
            Self::Unsubscribe => bit(UserProperty),
            Self::Disconnect(Side::Client) => ACK | bit(SessionExpiryInterval),
            Self::Disconnect(Side::Server) => ACK | bit(ServerReference),
            Self::Auth => ACK | set(&[AuthenticationMethod, AuthenticationData]),
        }
    }

    const fn repeatable(self) -> IdSet {
        match self {
            Self::Publish(Side::Server) => {
                bit(PropertyId::UserProperty) | bit(PropertyId::SubscriptionIdentifier)
            }
            Self::Connect
            | Self::Will
            | Self::Connack
            | Self::Publish(Side::Client)
            | Self::Ack
            | Self::Subscribe
            | Self::Unsubscribe
            | Self::Disconnect(_)
            | Self::Auth => bit(PropertyId::UserProperty),
        }
    }

    const fn not_allowed(self, id: PropertyId) -> Violation {
        match (self, id) {
            (Self::Publish(Side::Client), PropertyId::SubscriptionIdentifier) => {
                Violation::SubscriptionIdentifierFromClient
            }
            (Self::Disconnect(Side::Server), PropertyId::SessionExpiryInterval) => {
                Violation::SessionExpiryFromServer
            }
            _ => Violation::PropertyNotAllowed,
        }
    }
}

/// Reads the property length and validates the properties that follow. Below version 5 there are none.
#[inline]
pub(crate) fn read_properties<'a>(
    cursor: &mut Cursor<'a>,
    version: Version,
    place: Place,
) -> Result<Properties<'a>, Violation> {
    if version < Version::V5 {
        return Ok(Properties::EMPTY);
    }
    let len = read_varint(cursor, Violation::FieldPastEnd)?;
    let bytes = usize::try_from(len)
        .ok()
        .and_then(|len| cursor.take(len))
        .ok_or(Violation::PropertyLengthPastEnd)?;
    if !bytes.is_empty() {
        validate(bytes, place)?;
    }
    Ok(Properties { bytes })
}

fn validate(bytes: &[u8], place: Place) -> Result<(), Violation> {
    let mut cursor = Cursor::new(bytes);
    let mut seen: IdSet = 0;
    while !cursor.is_empty() {
        let (id, raw) = read(&mut cursor)?;
        if !place.allows(id) {
            return Err(place.not_allowed(id));
        }
        if seen & bit(id) & !place.repeatable() != 0 {
            return Err(Violation::PropertyRepeated);
        }
        seen |= bit(id);
        validate_value(id, raw)?;
    }
    let has = |id| seen & bit(id) != 0;
    if place == Place::Connect
        && has(PropertyId::AuthenticationData)
        && !has(PropertyId::AuthenticationMethod)
    {
        return Err(Violation::AuthenticationDataWithoutMethod);
    }
    Ok(())
}

fn validate_value(id: PropertyId, raw: Raw<'_>) -> Result<(), Violation> {
    match raw {
        Raw::Number(number) => validate_number(id, number),
        Raw::Text(bytes) => {
            let text = text(bytes)?;
            if id == PropertyId::ResponseTopic {
                validate_response_topic(text)?;
            }
            Ok(())
        }
        Raw::Pair(name, value) => {
            text(name)?;
            text(value)?;
            Ok(())
        }
        Raw::Binary(_) => Ok(()),
    }
}

fn validate_number(id: PropertyId, number: u32) -> Result<(), Violation> {
    use PropertyId::*;
    let (is_legal, violation) = match id {
        PayloadFormatIndicator => (number <= 1, Violation::PayloadFormatIndicatorAboveOne),
        RequestProblemInformation => (number <= 1, Violation::RequestProblemInformationAboveOne),
        RequestResponseInformation => (number <= 1, Violation::RequestResponseInformationAboveOne),
        MaximumQos => (number <= 1, Violation::MaximumQosAboveOne),
        RetainAvailable => (number <= 1, Violation::RetainAvailableAboveOne),
        WildcardSubscriptionAvailable => (
            number <= 1,
            Violation::WildcardSubscriptionAvailableAboveOne,
        ),
        SubscriptionIdentifierAvailable => (
            number <= 1,
            Violation::SubscriptionIdentifierAvailableAboveOne,
        ),
        SharedSubscriptionAvailable => {
            (number <= 1, Violation::SharedSubscriptionAvailableAboveOne)
        }
        ReceiveMaximum => (number != 0, Violation::ReceiveMaximumZero),
        MaximumPacketSize => (number != 0, Violation::MaximumPacketSizeZero),
        TopicAlias => (number != 0, Violation::TopicAliasZero),
        SubscriptionIdentifier => (number != 0, Violation::SubscriptionIdentifierZero),
        MessageExpiryInterval
        | SessionExpiryInterval
        | ServerKeepAlive
        | WillDelayInterval
        | TopicAliasMaximum => return Ok(()),
        ContentType
        | ResponseTopic
        | CorrelationData
        | AssignedClientIdentifier
        | AuthenticationMethod
        | AuthenticationData
        | ResponseInformation
        | ServerReference
        | ReasonString
        | UserProperty => return Ok(()),
    };
    if is_legal { Ok(()) } else { Err(violation) }
}

fn validate_response_topic(topic: &str) -> Result<(), Violation> {
    if topic.is_empty() {
        return Err(Violation::ResponseTopicEmpty);
    }
    if has_wildcard(topic) {
        return Err(Violation::ResponseTopicHasWildcard);
    }
    Ok(())
}

/// UTF-8 without U+0000 (section 1.5.4).
#[inline]
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Violation> {
    let text = core::str::from_utf8(bytes).map_err(|_| Violation::StringNotUtf8)?;
    if super::topic::has_any(bytes, |byte| byte == 0) {
        return Err(Violation::StringHasNul);
    }
    Ok(text)
}

/// A variable byte integer inside a packet; `past_end` says what it means when the bytes end in it.
#[inline]
pub(crate) fn read_varint(cursor: &mut Cursor<'_>, past_end: Violation) -> Result<u32, Violation> {
    match cursor.varint() {
        Varint::Value(value, _) => Ok(value),
        Varint::Incomplete => Err(past_end),
        Varint::TooLong => Err(Violation::VariableIntegerTooLong),
        Varint::NotMinimal(..) => Err(Violation::VariableIntegerNotMinimal),
    }
}

/// A property whose text nobody has looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Raw<'a> {
    Number(u32),
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Pair(&'a [u8], &'a [u8]),
}

impl<'a> Raw<'a> {
    fn view(self, id: PropertyId) -> Option<Property<'a>> {
        Some(match self {
            Self::Number(number) => Property::Number(id, number),
            Self::Text(text) => Property::Text(id, core::str::from_utf8(text).ok()?),
            Self::Binary(data) => Property::Data(id, data),
            Self::Pair(name, value) => Property::Pair(
                core::str::from_utf8(name).ok()?,
                core::str::from_utf8(value).ok()?,
            ),
        })
    }
}

/// One property off the front. The identifier is a variable byte integer, of which only values of one byte are defined.
fn read<'a>(cursor: &mut Cursor<'a>) -> Result<(PropertyId, Raw<'a>), Violation> {
    const CUT: Violation = Violation::PropertyPastEnd;
    let number = cursor.u8().ok_or(CUT)?;
    let id = PropertyId::from_number(number).ok_or(Violation::PropertyUnknown)?;
    let raw = match id.data_type() {
        DataType::Byte => Raw::Number(u32::from(cursor.u8().ok_or(CUT)?)),
        DataType::TwoByte => Raw::Number(u32::from(cursor.u16().ok_or(CUT)?)),
        DataType::FourByte => Raw::Number(cursor.u32().ok_or(CUT)?),
        DataType::Variable => Raw::Number(read_varint(cursor, CUT)?),
        DataType::Text => Raw::Text(cursor.prefixed().ok_or(CUT)?),
        DataType::Binary => Raw::Binary(cursor.prefixed().ok_or(CUT)?),
        DataType::Pair => {
            let name = cursor.prefixed().ok_or(CUT)?;
            Raw::Pair(name, cursor.prefixed().ok_or(CUT)?)
        }
    };
    Ok((id, raw))
}
