//! Packets from bytes. Strict: what the specification forbids is a [`Violation`], never a guess.
//!
//! Owns the order and the rules of the fields of every packet. Borrows all it returns; what was sent before is none of
//! its business.

use super::codes;
use super::framer::FixedHeader;
use super::header::{self, DUP, RETAIN};
use super::packet::{
    Ack, Auth, BRIDGE, Connack, Connect, Disconnect, FiltersHead, Packet, PacketId, PacketKind,
    Publish, QoS, Side, Suback, Subscribe, SubscribeFilter, Unsuback, Unsubscribe, Version, Will,
};
use super::properties::{Place, Properties, PropertyId, read_properties, text};
use super::topic::{FilterError, check_levels, has_any, has_wildcard, parse_filter};
use super::violation::Violation;
use crate::cursor::Cursor;

/// Decodes one whole packet sent by `side`. A CONNECT is read as the version that it names.
pub fn decode<'a>(version: Version, side: Side, bytes: &'a [u8]) -> Result<Packet<'a>, Violation> {
    let (header, mut body) = open(version, side, bytes)?;
    if body.rest().len() != header.remaining_bytes as usize {
        return Err(Violation::RemainingLengthMismatch);
    }
    let fields = &mut body;
    let packet = match header.kind {
        PacketKind::Connect => Packet::Connect(connect(header, fields)?),
        PacketKind::Connack => Packet::Connack(connack(version, fields)?),
        PacketKind::Publish => Packet::Publish(publish(version, side, header, fields)?),
        PacketKind::Puback => Packet::Puback(ack(
            version,
            fields,
            |code| codes::is_puback_or_pubrec(side, code),
            Violation::PubackCodeUndefined,
        )?),
        PacketKind::Pubrec => Packet::Pubrec(ack(
            version,
            fields,
            |code| codes::is_puback_or_pubrec(side, code),
            Violation::PubrecCodeUndefined,
        )?),
        PacketKind::Pubrel => Packet::Pubrel(ack(
            version,
            fields,
            |code| codes::is_pubrel_or_pubcomp(side, code),
            Violation::PubrelCodeUndefined,
        )?),
        PacketKind::Pubcomp => Packet::Pubcomp(ack(
            version,
            fields,
            |code| codes::is_pubrel_or_pubcomp(side, code),
            Violation::PubcompCodeUndefined,
        )?),
        PacketKind::Subscribe => Packet::Subscribe(subscribe(version, fields)?),
        PacketKind::Suback => Packet::Suback(suback(version, fields)?),
        PacketKind::Unsubscribe => Packet::Unsubscribe(unsubscribe(version, fields)?),
        PacketKind::Unsuback => Packet::Unsuback(unsuback(version, fields)?),
        PacketKind::Pingreq => Packet::Pingreq,
        PacketKind::Pingresp => Packet::Pingresp,
        PacketKind::Disconnect => Packet::Disconnect(disconnect(version, side, fields)?),
        PacketKind::Auth => Packet::Auth(auth(side, fields)?),
    };
    if !body.is_empty() {
        return Err(Violation::TrailingBytes);
    }
    Ok(packet)
}

/// Decodes a CONNECT, whose version is what it says.
pub fn decode_connect(bytes: &[u8]) -> Result<Connect<'_>, Violation> {
    match decode(Version::V5, Side::Client, bytes)? {
        Packet::Connect(connect) => Ok(connect),
        Packet::Connack(_)
        | Packet::Publish(_)
        | Packet::Puback(_)
        | Packet::Pubrec(_)
        | Packet::Pubrel(_)
        | Packet::Pubcomp(_)
        | Packet::Subscribe(_)
        | Packet::Suback(_)
        | Packet::Unsubscribe(_)
        | Packet::Unsuback(_)
        | Packet::Pingreq
        | Packet::Pingresp
        | Packet::Disconnect(_)
        | Packet::Auth(_) => Err(Violation::FirstPacketNotConnect),
    }
}

/// Decodes the head of a PUBLISH as [`super::Step::PublishHead`] gives it. Bytes after the head are not looked at.
#[inline]
pub fn decode_publish_head<'a>(
    version: Version,
    side: Side,
    bytes: &'a [u8],
) -> Result<Publish<'a>, Violation> {
    let (header, mut body) = open(version, side, bytes)?;
    if header.kind != PacketKind::Publish {
        return Err(Violation::KindReserved);
    }
    publish_head(version, side, header, &mut body)
}

/// Decodes what stands before the filters of a SUBSCRIBE of a client, which are not looked at: there may be very many.
/// [`next_subscribe_filter`] reads one after the other, and with the last of them everything was checked.
pub fn decode_subscribe_head(version: Version, bytes: &[u8]) -> Result<FiltersHead<'_>, Violation> {
    let mut body = open_whole(version, PacketKind::Subscribe, bytes)?;
    subscribe_head(version, &mut body)
}

/// The same for an UNSUBSCRIBE, and [`next_unsubscribe_filter`].
pub fn decode_unsubscribe_head(
    version: Version,
    bytes: &[u8],
) -> Result<FiltersHead<'_>, Violation> {
    let mut body = open_whole(version, PacketKind::Unsubscribe, bytes)?;
    unsubscribe_head(version, &mut body)
}

/// The body of a whole packet of that kind of a client.
fn open_whole(version: Version, kind: PacketKind, bytes: &[u8]) -> Result<Cursor<'_>, Violation> {
    let (header, body) = open(version, Side::Client, bytes)?;
    if header.kind != kind {
        return Err(Violation::KindReserved);
    }
    if body.rest().len() != header.remaining_bytes as usize {
        return Err(Violation::RemainingLengthMismatch);
    }
    Ok(body)
}

/// Takes a filter of a SUBSCRIBE off the front of those that are left; `None` when none is.
pub fn next_subscribe_filter<'a>(
    version: Version,
    filters: &mut &'a [u8],
) -> Result<Option<SubscribeFilter<'a>>, Violation> {
    if filters.is_empty() {
        return Ok(None);
    }
    let mut fields = Cursor::new(filters);
    let found = subscribe_filter(version, &mut fields)?;
    *filters = fields.rest();
    Ok(Some(found))
}

/// The same for an UNSUBSCRIBE.
pub fn next_unsubscribe_filter<'a>(
    version: Version,
    filters: &mut &'a [u8],
) -> Result<Option<&'a str>, Violation> {
    if filters.is_empty() {
        return Ok(None);
    }
    let mut fields = Cursor::new(filters);
    let (found, _) = filter(version, &mut fields)?;
    *filters = fields.rest();
    Ok(Some(found))
}

#[inline]
fn open(
    version: Version,
    side: Side,
    bytes: &[u8],
) -> Result<(FixedHeader, Cursor<'_>), Violation> {
    let header = header::parse(side, version, bytes)?.ok_or(Violation::RemainingLengthMismatch)?;
    let body = bytes
        .get(usize::from(header.header_bytes)..)
        .unwrap_or_default();
    Ok((header, Cursor::new(body)))
}

// --- CONNECT and CONNACK ---

/// The bits of the CONNECT flags byte (section 3.1.2.3).
mod connect_flag {
    pub(super) const RESERVED: u8 = 0x01;
    pub(super) const CLEAN_START: u8 = 0x02;
    pub(super) const WILL: u8 = 0x04;
    pub(super) const WILL_RETAIN: u8 = 0x20;
    pub(super) const PASSWORD: u8 = 0x40;
    pub(super) const USERNAME: u8 = 0x80;
}

fn connect<'a>(header: FixedHeader, fields: &mut Cursor<'a>) -> Result<Connect<'a>, Violation> {
    let (version, is_bridge) = protocol(fields)?;
    header::check_connect(version, header)?;
    let flags = fields.u8().ok_or(Violation::FieldPastEnd)?;
    check_connect_flags(version, flags)?;
    let keep_alive_secs = fields.u16().ok_or(Violation::FieldPastEnd)?;
    let properties = read_properties(fields, version, Place::Connect)?;
    let client_id = string(version, fields)?;
    let will = if flags & connect_flag::WILL == 0 {
        None
    } else {
        Some(will(version, flags, fields)?)
    };
    // MQTT 3.1 section 3.1: the remaining length takes precedence over these two flags; the field may be missing.
    let is_there = |flag: u8, fields: &Cursor<'_>| {
        flags & flag != 0 && !(version == Version::V31 && fields.is_empty())
    };
    let username = if is_there(connect_flag::USERNAME, fields) {
        Some(string(version, fields)?)
    } else {
        None
    };
    let password = if is_there(connect_flag::PASSWORD, fields) {
        Some(fields.prefixed().ok_or(Violation::FieldPastEnd)?)
    } else {
        None
    };
    Ok(Connect {
        version,
        is_bridge,
        clean_start: flags & connect_flag::CLEAN_START != 0,
        keep_alive_secs,
        properties,
        client_id,
        will,
        username,
        password,
    })
}

/// The version, and whether a bridge asks.
fn protocol(fields: &mut Cursor<'_>) -> Result<(Version, bool), Violation> {
    let name = fields.prefixed().ok_or(Violation::FieldPastEnd)?;
    let is_old_name = match name {
        b"MQTT" => false,
        b"MQIsdp" => true,
        _ => return Err(Violation::ProtocolNameUnknown),
    };
    let level = fields.u8().ok_or(Violation::FieldPastEnd)?;
    match (level, is_old_name) {
        (3 | 0x83, true) => Ok((Version::V31, level & BRIDGE != 0)),
        (4 | 0x84, false) => Ok((Version::V311, level & BRIDGE != 0)),
        (5, false) => Ok((Version::V5, false)),
        (3..=5 | 0x83 | 0x84, _) => Err(Violation::ProtocolNameLevelMismatch),
        _ => Err(Violation::ProtocolLevelUnknown),
    }
}

fn check_connect_flags(version: Version, flags: u8) -> Result<(), Violation> {
    let is_set = |flag| flags & flag != 0;
    if is_set(connect_flag::WILL) && will_qos(flags).is_none() {
        return Err(Violation::WillQos3);
    }
    // 3.1 does not use bit 0, and disregards what the bits of a will say when there is none (its section 3.1).
    if version > Version::V31 {
        if is_set(connect_flag::RESERVED) {
            return Err(Violation::ConnectReservedFlag);
        }
        if !is_set(connect_flag::WILL) && will_qos(flags) != Some(QoS::AtMostOnce) {
            return Err(Violation::WillQosWithoutWill);
        }
        if !is_set(connect_flag::WILL) && is_set(connect_flag::WILL_RETAIN) {
            return Err(Violation::WillRetainWithoutWill);
        }
    }
    if version < Version::V5 && is_set(connect_flag::PASSWORD) && !is_set(connect_flag::USERNAME) {
        return Err(Violation::PasswordWithoutUsername);
    }
    Ok(())
}

fn will_qos(flags: u8) -> Option<QoS> {
    QoS::from_bits(flags >> 3)
}

fn will<'a>(version: Version, flags: u8, fields: &mut Cursor<'a>) -> Result<Will<'a>, Violation> {
    let properties = read_properties(fields, version, Place::Will)?;
    let topic = topic_text(fields)?;
    if topic.is_empty() {
        return Err(Violation::WillTopicEmpty);
    }
    if has_wildcard(topic) {
        return Err(Violation::WillTopicHasWildcard);
    }
    Ok(Will {
        qos: will_qos(flags).ok_or(Violation::WillQos3)?,
        retain: flags & connect_flag::WILL_RETAIN != 0,
        properties,
        topic,
        payload: fields.prefixed().ok_or(Violation::FieldPastEnd)?,
    })
}

fn connack<'a>(version: Version, fields: &mut Cursor<'a>) -> Result<Connack<'a>, Violation> {
    let flags = fields.u8().ok_or(Violation::FieldPastEnd)?;
    let code = fields.u8().ok_or(Violation::FieldPastEnd)?;
    // 3.1 does not use the byte of the flags (its section 3.2).
    if version > Version::V31 && flags > 1 {
        return Err(Violation::ConnackReservedFlags);
    }
    if !codes::is_connack(version, code) {
        return Err(Violation::ConnackCodeUndefined);
    }
    let session_present = flags & 1 == 1;
    if version > Version::V31 && session_present && code != 0 {
        return Err(Violation::SessionPresentOnRefusal);
    }
    Ok(Connack {
        session_present,
        code,
        properties: read_properties(fields, version, Place::Connack)?,
    })
}

// --- PUBLISH and its acknowledgements ---

fn publish<'a>(
    version: Version,
    side: Side,
    header: FixedHeader,
    fields: &mut Cursor<'a>,
) -> Result<Publish<'a>, Violation> {
    let head = publish_head(version, side, header, fields)?;
    let payload = fields.rest();
    // All that is left is payload.
    *fields = Cursor::new(&[]);
    Ok(Publish { payload, ..head })
}

#[inline]
fn publish_head<'a>(
    version: Version,
    side: Side,
    header: FixedHeader,
    fields: &mut Cursor<'a>,
) -> Result<Publish<'a>, Violation> {
    let before = fields.rest().len();
    let topic = publish_topic(fields)?;
    let qos = QoS::from_bits(header.flags >> 1).ok_or(Violation::PublishQos3)?;
    let packet_id = match qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce | QoS::ExactlyOnce => Some(packet_id(fields)?),
    };
    let properties = read_properties(fields, version, Place::Publish(side))?;
    if topic.is_empty() {
        if version < Version::V5 {
            return Err(Violation::PublishTopicEmpty);
        }
        if properties.number(PropertyId::TopicAlias).is_none() {
            return Err(Violation::PublishTopicMissing);
        }
    }
    // A head lies within one packet, so its length fits.
    let head_bytes = u32::try_from(before - fields.rest().len()).unwrap_or(u32::MAX);
    Ok(Publish {
        dup: header.flags & DUP != 0,
        qos,
        retain: header.flags & RETAIN != 0,
        topic,
        packet_id,
        properties,
        payload: &[],
        payload_bytes: header
            .remaining_bytes
            .checked_sub(head_bytes)
            .ok_or(Violation::PublishHeadPastEnd)?,
    })
}

/// A topic name, looked through once for all that it must not have.
#[inline]
fn publish_topic<'a>(fields: &mut Cursor<'a>) -> Result<&'a str, Violation> {
    let bytes = fields.prefixed().ok_or(Violation::FieldPastEnd)?;
    let topic = core::str::from_utf8(bytes).map_err(|_| Violation::StringNotUtf8)?;
    if has_any(bytes, |byte| matches!(byte, b'+' | b'#' | 0)) {
        return Err(if bytes.contains(&0) {
            Violation::StringHasNul
        } else {
            Violation::PublishTopicHasWildcard
        });
    }
    Ok(topic)
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP: in version 5 the properties, or the code too, may be left out.
fn ack<'a>(
    version: Version,
    fields: &mut Cursor<'a>,
    is_defined: impl Fn(u8) -> bool,
    undefined: Violation,
) -> Result<Ack<'a>, Violation> {
    let packet_id = packet_id(fields)?;
    let (code, properties) = code_and_properties(version, fields, Place::Ack)?;
    if !is_defined(code) {
        return Err(undefined);
    }
    Ok(Ack {
        packet_id,
        code,
        properties,
    })
}

/// The optional tail of version 5: nothing, a code, or a code and properties (sections 3.4.2.1, 3.14.2.1, 3.15.2.1).
fn code_and_properties<'a>(
    version: Version,
    fields: &mut Cursor<'a>,
    place: Place,
) -> Result<(u8, Properties<'a>), Violation> {
    if version < Version::V5 {
        return Ok((0, Properties::EMPTY));
    }
    let Some(code) = fields.u8() else {
        return Ok((0, Properties::EMPTY));
    };
    if fields.is_empty() {
        return Ok((code, Properties::EMPTY));
    }
    Ok((code, read_properties(fields, version, place)?))
}

// --- SUBSCRIBE, UNSUBSCRIBE and their acknowledgements ---

fn subscribe<'a>(version: Version, fields: &mut Cursor<'a>) -> Result<Subscribe<'a>, Violation> {
    let head = subscribe_head(version, fields)?;
    while !fields.is_empty() {
        subscribe_filter(version, fields)?;
    }
    Ok(Subscribe {
        packet_id: head.packet_id,
        properties: head.properties,
        body: head.filters,
    })
}

fn subscribe_head<'a>(
    version: Version,
    fields: &mut Cursor<'a>,
) -> Result<FiltersHead<'a>, Violation> {
    let packet_id = packet_id(fields)?;
    let properties = read_properties(fields, version, Place::Subscribe)?;
    let filters = fields.rest();
    if filters.is_empty() && version > Version::V31 {
        return Err(Violation::SubscribeNoFilter);
    }
    Ok(FiltersHead {
        packet_id,
        properties,
        filters,
    })
}

fn subscribe_filter<'a>(
    version: Version,
    fields: &mut Cursor<'a>,
) -> Result<SubscribeFilter<'a>, Violation> {
    let (filter, is_shared) = filter(version, fields)?;
    let options = fields.u8().ok_or(Violation::FieldPastEnd)?;
    check_options(version, options, is_shared)?;
    Ok(SubscribeFilter {
        filter,
        qos: QoS::from_bits(options).ok_or(Violation::SubscribeQos3)?,
        options,
    })
}

fn check_options(version: Version, options: u8, is_shared: bool) -> Result<(), Violation> {
    let reserved = match version {
        // "Not used" (its section 3.8).
        Version::V31 => 0,
        Version::V311 => 0xfc,
        Version::V5 => 0xc0,
    };
    if options & reserved != 0 {
        return Err(Violation::SubscribeOptionsReserved);
    }
    if QoS::from_bits(options).is_none() {
        return Err(Violation::SubscribeQos3);
    }
    if version < Version::V5 {
        return Ok(());
    }
    if options & 0x30 == 0x30 {
        return Err(Violation::RetainHandling3);
    }
    if is_shared && options & 0x04 != 0 {
        return Err(Violation::NoLocalOnShared);
    }
    Ok(())
}

fn unsubscribe<'a>(
    version: Version,
    fields: &mut Cursor<'a>,
) -> Result<Unsubscribe<'a>, Violation> {
    let head = unsubscribe_head(version, fields)?;
    while !fields.is_empty() {
        filter(version, fields)?;
    }
    Ok(Unsubscribe {
        packet_id: head.packet_id,
        properties: head.properties,
        body: head.filters,
    })
}

fn unsubscribe_head<'a>(
    version: Version,
    fields: &mut Cursor<'a>,
) -> Result<FiltersHead<'a>, Violation> {
    let packet_id = packet_id(fields)?;
    let properties = read_properties(fields, version, Place::Unsubscribe)?;
    let filters = fields.rest();
    if filters.is_empty() && version > Version::V31 {
        return Err(Violation::UnsubscribeNoFilter);
    }
    Ok(FiltersHead {
        packet_id,
        properties,
        filters,
    })
}

/// Reads one filter; true when it is a shared subscription.
fn filter<'a>(version: Version, fields: &mut Cursor<'a>) -> Result<(&'a str, bool), Violation> {
    let filter = topic_text(fields)?;
    let is_shared = is_shared(version, filter).map_err(|error| match error {
        FilterError::Empty => Violation::FilterEmpty,
        FilterError::Nul => Violation::StringHasNul,
        // Two bytes of length cannot say so much.
        FilterError::TooLong => Violation::FieldPastEnd,
        FilterError::MultiLevelNotLast | FilterError::MultiLevelNotAlone => {
            Violation::FilterMultiLevel
        }
        FilterError::WildcardNotAlone => Violation::FilterSingleLevel,
        FilterError::ShareGroup => Violation::FilterShareName,
        FilterError::ShareWithoutFilter => Violation::FilterShareWithoutFilter,
    })?;
    Ok((filter, is_shared))
}

/// Below version 5 no rule speaks of shares: one that is not well formed is a plain filter, and left to whoever judges it.
fn is_shared(version: Version, filter: &str) -> Result<bool, FilterError> {
    match parse_filter(filter) {
        Ok(filter) => Ok(filter.share_group.is_some()),
        Err(FilterError::ShareGroup | FilterError::ShareWithoutFilter) if version < Version::V5 => {
            check_levels(filter).map(|()| false)
        }
        Err(error) => Err(error),
    }
}

fn suback<'a>(version: Version, fields: &mut Cursor<'a>) -> Result<Suback<'a>, Violation> {
    let packet_id = packet_id(fields)?;
    let properties = read_properties(fields, version, Place::Ack)?;
    let codes = all_codes(fields);
    if codes.is_empty() && version > Version::V31 {
        return Err(Violation::SubackNoCode);
    }
    if !codes.iter().all(|&code| codes::is_suback(version, code)) {
        return Err(Violation::SubackCodeUndefined);
    }
    Ok(Suback {
        packet_id,
        properties,
        codes,
    })
}

fn unsuback<'a>(version: Version, fields: &mut Cursor<'a>) -> Result<Unsuback<'a>, Violation> {
    let packet_id = packet_id(fields)?;
    if version < Version::V5 {
        // No payload: what follows is found to be trailing.
        return Ok(Unsuback {
            packet_id,
            properties: Properties::EMPTY,
            codes: &[],
        });
    }
    let properties = read_properties(fields, version, Place::Ack)?;
    let codes = all_codes(fields);
    if codes.is_empty() {
        return Err(Violation::UnsubackNoCode);
    }
    if !codes.iter().all(|&code| codes::is_unsuback(code)) {
        return Err(Violation::UnsubackCodeUndefined);
    }
    Ok(Unsuback {
        packet_id,
        properties,
        codes,
    })
}

fn all_codes<'a>(fields: &mut Cursor<'a>) -> &'a [u8] {
    let codes = fields.rest();
    *fields = Cursor::new(&[]);
    codes
}

// --- DISCONNECT and AUTH ---

fn disconnect<'a>(
    version: Version,
    side: Side,
    fields: &mut Cursor<'a>,
) -> Result<Disconnect<'a>, Violation> {
    let (code, properties) = code_and_properties(version, fields, Place::Disconnect(side))?;
    if !codes::is_disconnect(side, code) {
        return Err(Violation::DisconnectCodeUndefined);
    }
    Ok(Disconnect { code, properties })
}

/// Only a packet without code and properties may go without a method: section 3.15.2.1 allows the short form although
/// section 3.15.2.2.2 asks for the method.
fn auth<'a>(side: Side, fields: &mut Cursor<'a>) -> Result<Auth<'a>, Violation> {
    let is_short = fields.is_empty();
    let (code, properties) = code_and_properties(Version::V5, fields, Place::Auth)?;
    if !codes::is_auth(side, code) {
        return Err(Violation::AuthCodeUndefined);
    }
    if !is_short && properties.text(PropertyId::AuthenticationMethod).is_none() {
        return Err(Violation::AuthWithoutMethod);
    }
    Ok(Auth { code, properties })
}

// --- fields ---

#[inline]
fn packet_id(fields: &mut Cursor<'_>) -> Result<PacketId, Violation> {
    let id = fields.u16().ok_or(Violation::FieldPastEnd)?;
    PacketId::new(id).ok_or(Violation::PacketIdZero)
}

/// A client id or user name. 3.1 forbids U+0000 in topics only (its appendix A).
fn string<'a>(version: Version, fields: &mut Cursor<'a>) -> Result<&'a str, Violation> {
    let bytes = fields.prefixed().ok_or(Violation::FieldPastEnd)?;
    match version {
        Version::V31 => core::str::from_utf8(bytes).map_err(|_| Violation::StringNotUtf8),
        Version::V311 | Version::V5 => text(bytes),
    }
}

/// A topic or filter.
fn topic_text<'a>(fields: &mut Cursor<'a>) -> Result<&'a str, Violation> {
    text(fields.prefixed().ok_or(Violation::FieldPastEnd)?)
}
