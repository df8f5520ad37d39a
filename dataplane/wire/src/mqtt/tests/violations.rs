//! Every violation that the bytes alone show: one test for each variant, named after its clause, and a proof that none
//! is missing.

use super::*;
use Side::{Client, Server};
use Version::{V5, V31, V311};

/// The limit used by every row; the row of `PacketTooLarge` is above it.
const PACKET_BYTES_MAX: u32 = 1000;

const VERSIONS: [Version; 3] = [V31, V311, V5];

/// Makes one test for each row, and the table that the proof of completeness walks.
macro_rules! violation_tests {
    ($( $test:ident: $violation:ident, $side:ident, $version:expr, $bytes:expr; )*) => {
        $(
            #[test]
            fn $test() {
                check(stringify!($test), Violation::$violation, $side, $version.into(), &$bytes);
            }
        )*

        fn table() -> Vec<(&'static str, Violation)> {
            vec![$( (stringify!($test), Violation::$violation), )*]
        }
    };
}

/// The bytes show the violation when they come at once and when they come one by one.
fn check(test: &str, expected: Violation, side: Side, version: Option<Version>, bytes: &[u8]) {
    for size in [bytes.len().max(1), 1, 2, 3] {
        let mut framer = framer(side, version, PACKET_BYTES_MAX);
        let read_as = version.unwrap_or(V5);
        let outcome = read_stream(&mut framer, read_as, side, bytes.chunks(size));
        assert_eq!(outcome, Err(expected), "{test} in chunks of {size}");
    }
    let has_clause = match version {
        Some(version) => !expected.clause(version).is_empty(),
        None => VERSIONS
            .iter()
            .any(|known| !expected.clause(*known).is_empty()),
    };
    assert!(has_clause, "{test} is refused by a clause of its version");
}

/// CONNECT of version 5 with these flags, properties and payload.
fn connect(flags: u8, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x05".to_vec();
    body.extend_from_slice(&[flags, 0, 60, properties.len() as u8]);
    body.extend_from_slice(properties);
    body.extend_from_slice(payload);
    packet(0x10, &body)
}

/// CONNACK of version 5 with these properties.
fn connack(properties: &[u8]) -> Vec<u8> {
    packet(
        0x20,
        &[&[0, 0, properties.len() as u8], properties].concat(),
    )
}

/// PUBLISH of version 5 to `a` with these properties.
fn publish(properties: &[u8]) -> Vec<u8> {
    packet(
        0x30,
        &[&b"\x00\x01a"[..], &[properties.len() as u8], properties].concat(),
    )
}

/// SUBSCRIBE of version 5 with one filter.
fn subscribe(filter: &str, options: u8) -> Vec<u8> {
    let len = (filter.len() as u16).to_be_bytes();
    packet(
        0x82,
        &[b"\x00\x01\x00", &len[..], filter.as_bytes(), &[options]].concat(),
    )
}

const NO_VERSION: Option<Version> = None;

violation_tests! {
    // --- the fixed header and the order of packets ---
    mqtt_3_2_2_15_packet_too_large: PacketTooLarge, Client, V5, *b"\x30\xe8\x07";
    mqtt_3_1_0_1_first_packet_not_connect: FirstPacketNotConnect, Client, NO_VERSION, *b"\x30";
    mqtt_3_1_0_2_second_connect: SecondConnect, Client, V5, *b"\x10";
    mqtt_3_2_0_1_first_packet_not_connack: FirstPacketNotConnack, Server, NO_VERSION, *b"\xd0";
    s_2_1_2_kind_reserved: KindReserved, Client, V5, *b"\x00\x00";
    s_2_1_2_kind_not_from_client: KindNotFromClient, Client, V5, *b"\x90";
    s_2_1_2_kind_not_from_server: KindNotFromServer, Server, V5, *b"\x82";
    v311_2_2_1_auth_below_version_5: AuthBelowVersion5, Client, V311, *b"\xf0";
    mqtt_2_1_3_1_header_flags_reserved: HeaderFlagsReserved, Client, V5, *b"\xc1";
    mqtt_3_6_1_1_pubrel_flags: PubrelFlags, Client, V5, *b"\x60";
    mqtt_3_8_1_1_subscribe_flags: SubscribeFlags, Client, V5, *b"\x80";
    mqtt_3_10_1_1_unsubscribe_flags: UnsubscribeFlags, Client, V5, *b"\xa0";
    mqtt_3_3_1_4_publish_qos_3: PublishQos3, Client, V5, *b"\x36";
    mqtt_3_3_1_2_publish_dup_with_qos_0: PublishDupWithQos0, Client, V5, *b"\x38";
    s_1_5_5_remaining_length_too_long: RemainingLengthTooLong, Client, V5, *b"\x30\x80\x80\x80\x80\x01";
    mqtt_1_5_5_1_remaining_length_not_minimal: RemainingLengthNotMinimal, Client, V5, *b"\xc0\x80\x00";
    s_3_12_ping_has_body: PingHasBody, Client, V5, *b"\xc0\x01\x00";

    // --- fields ---
    s_2_1_4_field_past_end: FieldPastEnd, Client, V311, packet(0x82, b"\x00\x01\x00\x05a");
    s_3_3_2_publish_head_past_end: PublishHeadPastEnd, Client, V311, packet(0x30, b"\x00\x05a");
    s_2_1_4_trailing_bytes: TrailingBytes, Client, V311, packet(0x40, b"\x00\x01\x00");
    mqtt_1_5_4_1_string_not_utf8: StringNotUtf8, Client, V311, packet(0x30, b"\x00\x03\xed\xa0\x80");
    mqtt_1_5_4_2_string_has_nul: StringHasNul, Client, V311, packet(0x30, b"\x00\x01\x00");
    mqtt_2_2_1_3_packet_id_zero: PacketIdZero, Client, V311, packet(0x32, b"\x00\x01a\x00\x00");
    s_1_5_5_variable_integer_too_long: VariableIntegerTooLong, Client, V5, packet(0x82, b"\x00\x01\x80\x80\x80\x80\x01");
    mqtt_1_5_5_1_variable_integer_not_minimal: VariableIntegerNotMinimal, Client, V5, packet(0x82, b"\x00\x01\x80\x00");

    // --- properties ---
    s_2_2_2_1_property_length_past_end: PropertyLengthPastEnd, Client, V5, packet(0x82, b"\x00\x01\x05\x0b");
    s_2_2_2_1_property_past_end: PropertyPastEnd, Client, V5, publish(b"\x02\x00\x00\x00");
    s_2_2_2_2_property_unknown: PropertyUnknown, Client, V5, publish(b"\x04\x00");
    s_2_2_2_2_property_not_allowed: PropertyNotAllowed, Client, V5, publish(b"\x21\x00\x01");
    s_2_2_2_property_repeated: PropertyRepeated, Client, V5, publish(b"\x01\x00\x01\x00");
    mqtt_3_3_4_6_subscription_identifier_from_client: SubscriptionIdentifierFromClient, Client, V5, publish(b"\x0b\x01");
    mqtt_3_14_2_2_session_expiry_from_server: SessionExpiryFromServer, Server, V5, packet(0xe0, b"\x00\x05\x11\x00\x00\x00\x01");
    s_3_3_2_3_2_payload_format_indicator_above_one: PayloadFormatIndicatorAboveOne, Client, V5, publish(b"\x01\x02");
    s_3_1_2_11_7_request_problem_information_above_one: RequestProblemInformationAboveOne, Client, NO_VERSION, connect(2, b"\x17\x02", b"\x00\x00");
    s_3_1_2_11_6_request_response_information_above_one: RequestResponseInformationAboveOne, Client, NO_VERSION, connect(2, b"\x19\x07", b"\x00\x00");
    s_3_2_2_3_4_maximum_qos_above_one: MaximumQosAboveOne, Server, V5, connack(b"\x24\x02");
    s_3_2_2_3_5_retain_available_above_one: RetainAvailableAboveOne, Server, V5, connack(b"\x25\x02");
    s_3_2_2_3_11_wildcard_subscription_available_above_one: WildcardSubscriptionAvailableAboveOne, Server, V5, connack(b"\x28\x02");
    s_3_2_2_3_12_subscription_identifier_available_above_one: SubscriptionIdentifierAvailableAboveOne, Server, V5, connack(b"\x29\x02");
    s_3_2_2_3_13_shared_subscription_available_above_one: SharedSubscriptionAvailableAboveOne, Server, V5, connack(b"\x2a\x02");
    s_3_1_2_11_3_receive_maximum_zero: ReceiveMaximumZero, Client, NO_VERSION, connect(2, b"\x21\x00\x00", b"\x00\x00");
    s_3_1_2_11_4_maximum_packet_size_zero: MaximumPacketSizeZero, Server, V5, connack(b"\x27\x00\x00\x00\x00");
    mqtt_3_3_2_8_topic_alias_zero: TopicAliasZero, Client, V5, publish(b"\x23\x00\x00");
    s_3_8_2_1_2_subscription_identifier_zero: SubscriptionIdentifierZero, Client, V5, packet(0x82, b"\x00\x01\x02\x0b\x00\x00\x01a\x00");
    mqtt_3_3_2_14_response_topic_has_wildcard: ResponseTopicHasWildcard, Client, V5, publish(b"\x08\x00\x03a/#");
    mqtt_4_7_3_1_response_topic_empty: ResponseTopicEmpty, Client, V5, publish(b"\x08\x00\x00");
    s_3_1_2_11_10_authentication_data_without_method: AuthenticationDataWithoutMethod, Client, NO_VERSION, connect(2, b"\x16\x00\x01d", b"\x00\x00");
    s_3_15_2_2_2_auth_without_method: AuthWithoutMethod, Client, V5, packet(0xf0, b"\x18\x00");

    // --- CONNECT and CONNACK ---
    mqtt_3_1_2_1_protocol_name_unknown: ProtocolNameUnknown, Client, NO_VERSION, packet(0x10, b"\x00\x04MQTX\x05\x02\x00\x00\x00\x00\x00");
    mqtt_3_1_2_2_protocol_level_unknown: ProtocolLevelUnknown, Client, NO_VERSION, packet(0x10, b"\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00");
    s_3_1_2_2_protocol_name_level_mismatch: ProtocolNameLevelMismatch, Client, NO_VERSION, packet(0x10, b"\x00\x06MQIsdp\x04\x02\x00\x00\x00\x00");
    mqtt_3_1_2_3_connect_reserved_flag: ConnectReservedFlag, Client, NO_VERSION, connect(0x03, b"", b"\x00\x00");
    mqtt_3_1_2_11_will_qos_without_will: WillQosWithoutWill, Client, NO_VERSION, connect(0x0a, b"", b"\x00\x00");
    mqtt_3_1_2_12_will_qos_3: WillQos3, Client, NO_VERSION, connect(0x1e, b"", b"\x00\x00\x00\x00\x01t\x00\x00");
    mqtt_3_1_2_13_will_retain_without_will: WillRetainWithoutWill, Client, NO_VERSION, connect(0x22, b"", b"\x00\x00");
    v311_mqtt_3_1_2_22_password_without_username: PasswordWithoutUsername, Client, NO_VERSION, packet(0x10, b"\x00\x04MQTT\x04\x42\x00\x3c\x00\x00\x00\x01p");
    mqtt_4_7_0_1_will_topic_has_wildcard: WillTopicHasWildcard, Client, NO_VERSION, connect(0x06, b"", b"\x00\x00\x00\x00\x01+\x00\x00");
    mqtt_4_7_3_1_will_topic_empty: WillTopicEmpty, Client, NO_VERSION, connect(0x06, b"", b"\x00\x00\x00\x00\x00\x00\x00");
    mqtt_3_2_2_1_connack_reserved_flags: ConnackReservedFlags, Server, V311, packet(0x20, b"\x02\x00");
    mqtt_3_2_2_6_session_present_on_refusal: SessionPresentOnRefusal, Server, V311, packet(0x20, b"\x01\x05");
    mqtt_3_2_2_8_connack_code_undefined: ConnackCodeUndefined, Server, V311, packet(0x20, b"\x00\x06");

    // --- PUBLISH and its acknowledgements ---
    mqtt_3_3_2_2_publish_topic_has_wildcard: PublishTopicHasWildcard, Client, V311, packet(0x30, b"\x00\x03a/#");
    v311_mqtt_4_7_3_1_publish_topic_empty: PublishTopicEmpty, Client, V311, packet(0x30, b"\x00\x00");
    s_3_3_2_1_publish_topic_missing: PublishTopicMissing, Client, V5, packet(0x30, b"\x00\x00\x00");
    mqtt_3_4_2_1_puback_code_undefined: PubackCodeUndefined, Client, V5, packet(0x40, b"\x00\x01\x92");
    mqtt_3_5_2_1_pubrec_code_undefined: PubrecCodeUndefined, Server, V5, packet(0x50, b"\x00\x01\x01");
    mqtt_3_6_2_1_pubrel_code_undefined: PubrelCodeUndefined, Client, V5, packet(0x62, b"\x00\x01\x80");
    mqtt_3_7_2_1_pubcomp_code_undefined: PubcompCodeUndefined, Server, V5, packet(0x70, b"\x00\x01\x87");

    // --- SUBSCRIBE, UNSUBSCRIBE and their acknowledgements ---
    mqtt_3_8_3_2_subscribe_no_filter: SubscribeNoFilter, Client, V311, packet(0x82, b"\x00\x01");
    mqtt_3_8_3_5_subscribe_options_reserved: SubscribeOptionsReserved, Client, V5, subscribe("a", 0x40);
    s_3_8_3_1_subscribe_qos_3: SubscribeQos3, Client, V5, subscribe("a", 0x03);
    s_3_8_3_1_retain_handling_3: RetainHandling3, Client, V5, subscribe("a", 0x30);
    mqtt_3_8_3_4_no_local_on_shared: NoLocalOnShared, Client, V5, subscribe("$share/g/a", 0x04);
    mqtt_3_10_3_2_unsubscribe_no_filter: UnsubscribeNoFilter, Client, V311, packet(0xa2, b"\x00\x01");
    mqtt_4_7_3_1_filter_empty: FilterEmpty, Client, V5, subscribe("", 0);
    mqtt_4_7_1_1_filter_multi_level: FilterMultiLevel, Client, V5, subscribe("a/#/b", 0);
    mqtt_4_7_1_2_filter_single_level: FilterSingleLevel, Client, V5, subscribe("a+/b", 0);
    mqtt_4_8_2_1_filter_share_name: FilterShareName, Client, V5, subscribe("$share//a", 0);
    mqtt_4_8_2_2_filter_share_without_filter: FilterShareWithoutFilter, Client, V5, subscribe("$share/g", 0);
    mqtt_3_8_4_6_suback_no_code: SubackNoCode, Server, V311, packet(0x90, b"\x00\x01");
    mqtt_3_9_3_2_suback_code_undefined: SubackCodeUndefined, Server, V31, packet(0x90, b"\x00\x01\x80");
    s_3_11_3_unsuback_no_code: UnsubackNoCode, Server, V5, packet(0xb0, b"\x00\x01\x00");
    mqtt_3_11_3_2_unsuback_code_undefined: UnsubackCodeUndefined, Server, V5, packet(0xb0, b"\x00\x01\x00\x01");

    // --- DISCONNECT and AUTH ---
    mqtt_3_14_2_1_disconnect_code_undefined: DisconnectCodeUndefined, Client, V5, packet(0xe0, b"\x8b");
    mqtt_3_15_2_1_auth_code_undefined: AuthCodeUndefined, Server, V5, packet(0xf0, b"\x19\x04\x15\x00\x01m");
}

/// A framer never hands out a packet that is cut or too long, so only `decode` itself can find this one.
#[test]
fn s_2_1_4_remaining_length_mismatch() {
    let whole = packet(0x30, b"\x00\x01apayload");
    let cut = &whole[..whole.len() - 1];
    let long = [&whole[..], b"x"].concat();
    for bytes in [cut, &long, &[], &[0x30]] {
        let outcome = decode(V311, Client, bytes);
        assert_eq!(outcome, Err(Violation::RemainingLengthMismatch));
    }
}

#[test]
fn every_violation_of_the_codec_has_a_test_named_after_its_clause() {
    let mut tested = table();
    tested.push((
        "s_2_1_4_remaining_length_mismatch",
        Violation::RemainingLengthMismatch,
    ));
    for violation in Violation::CODEC {
        let tests: Vec<_> = tested.iter().filter(|(_, of)| of == violation).collect();
        assert_eq!(tests.len(), 1, "{violation:?} has one test");
        assert_eq!(tests[0].0, test_name(*violation), "{violation:?}");
    }
    assert_eq!(tested.len(), Violation::CODEC.len());
}

/// The clause of the newest version that has one: `MQTT-3.3.2-2` and `PublishTopicHasWildcard` give `mqtt_3_3_2_2_publish_topic_has_wildcard`; a bare section begins
/// with `s_`, an older version with its own name.
fn test_name(violation: Violation) -> String {
    let newest = VERSIONS.map(|version| violation.clause(version));
    let newest = newest.iter().rfind(|clause| !clause.is_empty()).unwrap();
    let mut clause = newest.to_lowercase().replace(['.', '-', ' '], "_");
    if let Some(rest) = clause.strip_prefix("3_1_1_") {
        // MQTT 5 has sections that begin so, too; only with a space is it the version.
        if newest.starts_with("3.1.1 ") {
            clause = format!("v311_{rest}");
        }
    }
    if clause.starts_with(|first: char| first.is_ascii_digit()) {
        clause = format!("s_{clause}");
    }
    let mut name = String::new();
    let mut last = '_';
    for c in violation.name().chars() {
        if c.is_ascii_uppercase() || (c.is_ascii_digit() && !last.is_ascii_digit() && last != 'f') {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
        last = c;
    }
    format!("{clause}{name}")
}

/// The reason codes the proxy answers with are those that section 4.13.1 allows for a malformed packet or a protocol error.
#[test]
fn reason_codes_are_those_of_errors() {
    use ReasonCode::*;
    for violation in Violation::CODEC.iter().chain(Violation::SESSION) {
        let code = violation.reason_code();
        let is_expected = matches!(
            code,
            MalformedPacket
                | ProtocolError
                | PacketTooLarge
                | TopicAliasInvalid
                | UnsupportedProtocolVersion
                | ReceiveMaximumExceeded
        );
        assert!(is_expected, "{violation:?}");
    }
    // What a 3.x client is told as return code 1, and nothing else.
    let unsupported = Violation::CODEC
        .iter()
        .filter(|violation| violation.reason_code() == UnsupportedProtocolVersion);
    assert_eq!(
        unsupported.collect::<Vec<_>>(),
        [
            &Violation::ProtocolNameUnknown,
            &Violation::ProtocolLevelUnknown,
            &Violation::ProtocolNameLevelMismatch,
        ]
    );
}

/// More inputs for variants that several rules share.
#[test]
fn further_violations() {
    let table: &[(Violation, Side, Version, Vec<u8>)] = &[
        (
            Violation::KindNotFromServer,
            Server,
            V311,
            packet(0xe0, b""),
        ),
        (Violation::KindNotFromServer, Server, V5, packet(0x10, b"")),
        (Violation::KindNotFromServer, Server, V5, packet(0xc0, b"")),
        (
            Violation::KindNotFromClient,
            Client,
            V5,
            packet(0x20, b"\x00\x00\x00"),
        ),
        (Violation::KindNotFromClient, Client, V5, packet(0xd0, b"")),
        (
            Violation::HeaderFlagsReserved,
            Server,
            V5,
            packet(0x21, b"\x00\x00\x00"),
        ),
        (
            Violation::HeaderFlagsReserved,
            Client,
            V5,
            packet(0xe2, b""),
        ),
        (
            Violation::HeaderFlagsReserved,
            Client,
            V311,
            packet(0x42, b"\x00\x01"),
        ),
        (
            Violation::SubscribeFlags,
            Client,
            V311,
            packet(0x8a, b"\x00\x01\x00\x01a\x00"),
        ),
        (
            Violation::SubscribeFlags,
            Client,
            V311,
            packet(0x80, b"\x00\x01\x00\x01a\x00"),
        ),
        (
            Violation::PacketIdZero,
            Client,
            V5,
            packet(0x82, b"\x00\x00\x00\x00\x01a\x00"),
        ),
        (
            Violation::PacketIdZero,
            Client,
            V5,
            packet(0x40, b"\x00\x00"),
        ),
        (
            Violation::PacketIdZero,
            Server,
            V311,
            packet(0xb0, b"\x00\x00"),
        ),
        (
            Violation::StringNotUtf8,
            Client,
            V311,
            packet(0x82, b"\x00\x01\x00\x01\xff\x00"),
        ),
        (
            Violation::StringNotUtf8,
            Client,
            V5,
            publish(b"\x26\x00\x01\xff\x00\x00"),
        ),
        (
            Violation::StringHasNul,
            Client,
            V5,
            publish(b"\x26\x00\x00\x00\x01\x00"),
        ),
        (
            Violation::StringHasNul,
            Client,
            V5,
            publish(b"\x08\x00\x01\x00"),
        ),
        (
            Violation::StringHasNul,
            Client,
            V311,
            packet(0xa2, b"\x00\x01\x00\x01\x00"),
        ),
        (
            Violation::PropertyRepeated,
            Client,
            V5,
            packet(0x82, b"\x00\x01\x04\x0b\x01\x0b\x02\x00\x01a\x00"),
        ),
        (
            Violation::PropertyNotAllowed,
            Client,
            V5,
            packet(0xe0, b"\x00\x04\x1c\x00\x01s"),
        ),
        (
            Violation::PropertyNotAllowed,
            Client,
            V5,
            packet(0xa2, b"\x00\x01\x04\x1f\x00\x01r\x00\x01a"),
        ),
        (
            Violation::PropertyUnknown,
            Client,
            V5,
            publish(b"\xa6\x00\x00\x00\x00\x00"),
        ),
        (
            Violation::PublishHeadPastEnd,
            Client,
            V311,
            packet(0x32, b"\x00\x01a\x00"),
        ),
        (
            Violation::PublishHeadPastEnd,
            Client,
            V311,
            packet(0x30, b"\x00"),
        ),
        (
            Violation::PublishHeadPastEnd,
            Client,
            V5,
            packet(0x30, b"\x00\x01a"),
        ),
        (
            Violation::PublishHeadPastEnd,
            Client,
            V5,
            packet(0x30, b"\x00\x01a\x80"),
        ),
        (
            Violation::PublishHeadPastEnd,
            Client,
            V5,
            packet(0x30, b"\x00\x01a\x02\x01"),
        ),
        (
            Violation::VariableIntegerTooLong,
            Client,
            V5,
            packet(0x30, b"\x00\x01a\x80\x80\x80\x80\x01"),
        ),
        (
            Violation::VariableIntegerNotMinimal,
            Client,
            V5,
            packet(0x30, b"\x00\x01a\x80\x00"),
        ),
        (
            Violation::VariableIntegerNotMinimal,
            Server,
            V5,
            publish(b"\x0b\x81\x00"),
        ),
        (
            Violation::TrailingBytes,
            Client,
            V5,
            packet(0xe0, b"\x00\x00x"),
        ),
        (
            Violation::TrailingBytes,
            Server,
            V311,
            packet(0xb0, b"\x00\x01\x00"),
        ),
        (
            Violation::TrailingBytes,
            Server,
            V311,
            packet(0x20, b"\x00\x00\x00"),
        ),
        (
            Violation::SubscribeOptionsReserved,
            Client,
            V311,
            packet(0x82, b"\x00\x01\x00\x01a\x04"),
        ),
        (
            Violation::SubackCodeUndefined,
            Server,
            V311,
            packet(0x90, b"\x00\x01\x87"),
        ),
        (
            Violation::SubackCodeUndefined,
            Server,
            V5,
            packet(0x90, b"\x00\x01\x00\x03"),
        ),
        (
            Violation::PubackCodeUndefined,
            Client,
            V5,
            packet(0x40, b"\x00\x01\x10"),
        ),
        (
            Violation::ConnackCodeUndefined,
            Server,
            V5,
            packet(0x20, b"\x00\x01\x00"),
        ),
        (
            Violation::FilterMultiLevel,
            Client,
            V5,
            packet(0xa2, b"\x00\x01\x00\x00\x02a#"),
        ),
        (Violation::AuthCodeUndefined, Client, V5, packet(0xf0, b"")),
    ];
    for (expected, side, version, bytes) in table {
        check(
            &format!("{bytes:02x?}"),
            *expected,
            *side,
            Some(*version),
            bytes,
        );
    }
    let connects: &[(Violation, Vec<u8>)] = &[
        (Violation::TrailingBytes, connect(2, b"", b"\x00\x00x")),
        (Violation::FieldPastEnd, connect(0x82, b"", b"\x00\x00")),
        (Violation::FieldPastEnd, packet(0x10, b"")),
        (Violation::StringNotUtf8, connect(2, b"", b"\x00\x01\xff")),
        (
            Violation::ProtocolNameLevelMismatch,
            packet(0x10, b"\x00\x04MQTT\x03\x02\x00\x00\x00\x00"),
        ),
        (
            Violation::ProtocolLevelUnknown,
            packet(0x10, b"\x00\x06MQIsdp\x85"),
        ),
        (
            Violation::PasswordWithoutUsername,
            packet(0x10, b"\x00\x06MQIsdp\x03\x42\x00\x3c\x00\x00\x00\x01p"),
        ),
        (
            Violation::PropertyNotAllowed,
            connect(0x06, b"", b"\x00\x00\x02\x17\x01\x00\x01t\x00\x00"),
        ),
        (
            Violation::HeaderFlagsReserved,
            packet(0x12, b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"),
        ),
    ];
    for (expected, bytes) in connects {
        check(&format!("{bytes:02x?}"), *expected, Client, None, bytes);
    }
}

/// Violations of 3.1 and 3.1.1 sessions name clauses of their own version.
#[test]
fn clauses_are_those_of_the_version() {
    let table = [
        (
            Violation::PacketIdZero,
            ["3.1 2.4", "3.1.1 MQTT-2.3.1-1", "MQTT-2.2.1-3"],
        ),
        (
            Violation::PublishQos3,
            ["3.1 2.1", "3.1.1 MQTT-3.3.1-4", "MQTT-3.3.1-4"],
        ),
        (
            Violation::PublishTopicEmpty,
            ["3.1 A", "3.1.1 MQTT-4.7.3-1", ""],
        ),
        (
            Violation::SubscribeFlags,
            ["", "3.1.1 MQTT-3.8.1-1", "MQTT-3.8.1-1"],
        ),
        (
            Violation::RemainingLengthNotMinimal,
            ["", "", "MQTT-1.5.5-1"],
        ),
        (Violation::TopicAliasUnknown, ["", "", "3.3.2.3.4"]),
    ];
    for (violation, expected) in table {
        assert_eq!(VERSIONS.map(|version| violation.clause(version)), expected);
    }
    for violation in Violation::CODEC.iter().chain(Violation::SESSION) {
        let [v31, v311, v5] = VERSIONS.map(|version| violation.clause(version));
        assert!(v31.is_empty() || v31.starts_with("3.1 "), "{v31}");
        assert!(v311.is_empty() || v311.starts_with("3.1.1 "), "{v311}");
        assert!(!v5.starts_with("3.1 ") && !v5.starts_with("3.1.1 "), "{v5}");
        assert!(!v31.is_empty() || !v311.is_empty() || !v5.is_empty());
    }
}

/// A rule of a later version does not bind an older one.
#[test]
fn rules_of_later_versions_do_not_bind_older_ones() {
    let table: &[(Side, &[Version], &[u8], &str)] = &[
        (
            Client,
            &[V31, V311],
            b"\x82\x88\x00\x00\x06\x00\x03a/b\x00",
            "SUBSCRIBE, a length in two bytes",
        ),
        (
            Client,
            &[V31, V311],
            b"\x30\x83\x80\x80\x00\x00\x01a",
            "PUBLISH, a length in four bytes",
        ),
        (
            Client,
            &[V31, V311],
            b"\xc0\x80\x00",
            "PINGREQ, a length in two bytes",
        ),
        (
            Server,
            &[V31, V311],
            b"\x20\x82\x00\x00\x00",
            "CONNACK, a length in two bytes",
        ),
        (
            Client,
            &[V31, V311],
            b"\x82\x0e\x00\x06\x00\x09$share//a\x00",
            "a share without a name is a plain filter",
        ),
        (
            Client,
            &[V31, V311],
            b"\x82\x0d\x00\x06\x00\x08$share/g\x00",
            "and one without a filter",
        ),
        (Client, &[V31], b"\xc2\x00", "PINGREQ with QoS 1"),
        (Client, &[V31], b"\x42\x02\x00\x01", "PUBACK with QoS 1"),
        (
            Client,
            &[V31],
            b"\x80\x06\x00\x01\x00\x01a\x00",
            "SUBSCRIBE with QoS 0",
        ),
        (
            Client,
            &[V31],
            b"\xaf\x05\x00\x01\x00\x01a",
            "UNSUBSCRIBE with every flag",
        ),
        (Client, &[V31], b"\x60\x02\x00\x01", "PUBREL with QoS 0"),
        (
            Client,
            &[V31],
            b"\x38\x03\x00\x01a",
            "PUBLISH with DUP and QoS 0",
        ),
        (Client, &[V31], b"\xe1\x00", "DISCONNECT with RETAIN"),
        (
            Client,
            &[V31],
            b"\x82\x06\x00\x01\x00\x01a\xfc",
            "options that are not used",
        ),
        (
            Client,
            &[V31],
            b"\x82\x02\x00\x01",
            "SUBSCRIBE without a filter",
        ),
        (
            Client,
            &[V31],
            b"\xa2\x02\x00\x01",
            "UNSUBSCRIBE without a filter",
        ),
        (Server, &[V31], b"\x92\x03\x00\x01\x00", "SUBACK with QoS 1"),
        (Server, &[V31], b"\x90\x02\x00\x01", "SUBACK without a code"),
        (Server, &[V31], b"\x22\x02\x00\x00", "CONNACK with QoS 1"),
        (
            Server,
            &[V31],
            b"\x20\x02\x01\x05",
            "CONNACK, a byte that is not used",
        ),
        (
            Client,
            &[V31],
            b"\x12\x0f\x00\x06MQIsdp\x03\x23\x00\x3c\x00\x01c",
            "CONNECT with QoS 1, bit 0, and RETAIN of no will",
        ),
        (
            Client,
            &[V31],
            b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01\x00",
            "a client id of U+0000",
        ),
        (
            Client,
            &[V311],
            b"\x10\x8d\x00\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c",
            "CONNECT, a length in two bytes",
        ),
    ];
    for (side, versions, bytes, note) in table {
        for version in VERSIONS {
            let is_connect = bytes[0] >> 4 == 1;
            let mut framer = framer(*side, (!is_connect).then_some(version), PACKET_BYTES_MAX);
            let seen = read_stream(&mut framer, version, *side, bytes.chunks(1));
            let is_bound = !is_connect && !versions.contains(&version);
            assert_eq!(seen.is_err(), is_bound, "{note} in {version:?}: {seen:?}");
        }
    }
}

/// The header of a CONNECT is judged by the version that the packet names.
#[test]
fn a_connect_is_held_to_its_own_version() {
    let body = |version: &[u8]| [version, b"\x02\x00\x3c\x00\x00"].concat();
    let (v311, v5) = (body(b"\x00\x04MQTT\x04"), body(b"\x00\x04MQTT\x05"));
    let v5 = [&v5[..], b"\x00"].concat();
    for body in [&v311, &v5] {
        let bytes = packet(0x12, body);
        let outcome = decode_connect(&bytes);
        assert_eq!(outcome, Err(Violation::HeaderFlagsReserved));
    }
    let long = [&[0x10, 0x80 | v5.len() as u8, 0], &v5[..]].concat();
    let outcome = decode_connect(&long);
    assert_eq!(outcome, Err(Violation::RemainingLengthNotMinimal));
}

/// What looks forbidden and is not.
#[test]
fn legal_oddities_are_accepted() {
    let table: &[(Version, Side, Vec<u8>, &str)] = &[
        (
            V31,
            Client,
            packet(0x6a, b"\x00\x01"),
            "3.1 marks a repeated PUBREL with DUP",
        ),
        (
            V31,
            Client,
            packet(0x8a, b"\x00\x01\x00\x01a\x01"),
            "and a repeated SUBSCRIBE",
        ),
        (
            V31,
            Client,
            packet(0xaa, b"\x00\x01\x00\x01a"),
            "and a repeated UNSUBSCRIBE",
        ),
        (
            V5,
            Client,
            packet(0x32, b"\x00\x01a\x00\x01\x00"),
            "an empty payload",
        ),
        (
            V5,
            Server,
            publish(b"\x0b\x01\x0b\x01"),
            "a subscription identifier twice, from a server",
        ),
        (
            V5,
            Client,
            publish(b"\x26\x00\x00\x00\x00\x26\x00\x00\x00\x00"),
            "a user property twice, and empty",
        ),
        (
            V5,
            Client,
            publish(b"\x23\x00\x01"),
            "a topic together with an alias",
        ),
        (V5, Client, packet(0x30, b"\x00\x04$SYS\x00"), "a `$` topic"),
        (
            V5,
            Client,
            packet(0x30, b"\x00\x03\xef\xbb\xbf\x00"),
            "U+FEFF is a character [MQTT-1.5.4-3]",
        ),
        (
            V5,
            Server,
            packet(0xe0, b"\x8c"),
            "a code that only the table of section 2.4 has",
        ),
        (
            V311,
            Server,
            packet(0x90, b"\x00\x01\x80"),
            "the failure code of 3.1.1",
        ),
        (
            V5,
            Server,
            packet(0x40, b"\x00\x01\x10"),
            "no matching subscribers",
        ),
    ];
    for (version, side, bytes, note) in table {
        let outcome = decode(*version, *side, bytes);
        assert!(outcome.is_ok(), "{note}: {outcome:?}");
    }
    let connects: &[(Vec<u8>, &str)] = &[
        (
            connect(0x42, b"", b"\x00\x00\x00\x01p"),
            "version 5 allows a password alone",
        ),
        (
            connect(0xc2, b"", b"\x00\x00\x00\x00\x00\x00"),
            "empty user name and password",
        ),
        (
            connect(0x00, b"", b"\x00\x00"),
            "no client id and no clean start: the session's affair",
        ),
        (
            packet(0x10, b"\x00\x06MQIsdp\x03\x82\x00\x00\x00\x01c"),
            "3.1: the user name may be missing",
        ),
        (
            packet(0x10, b"\x00\x06MQIsdp\x03\xc2\x00\x00\x00\x01c\x00\x01u"),
            "3.1: so may the password",
        ),
    ];
    for (bytes, note) in connects {
        let outcome = decode_connect(bytes);
        assert!(outcome.is_ok(), "{note}: {outcome:?}");
    }
}
