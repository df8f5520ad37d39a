//! Which reason codes each packet kind defines (MQTT 5 section 2.4), and the return codes of the older versions.

use super::packet::{PacketKind, Side, Version};

/// CONNACK: return codes below version 5 (3.1.1 section 3.2.2.3), reason codes in it (section 3.2.2.2).
pub(crate) fn is_connack(version: Version, code: u8) -> bool {
    if version < Version::V5 {
        return code <= 5;
    }
    matches!(
        code,
        0x00 | 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f
    )
}

/// PUBACK and PUBREC (sections 3.4.2.1, 3.5.2.1).
pub(crate) fn is_puback_or_pubrec(side: Side, code: u8) -> bool {
    match code {
        0x00 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99 => true,
        // No matching subscribers: only a server knows.
        0x10 => side == Side::Server,
        _ => false,
    }
}

/// PUBREL and PUBCOMP (sections 3.6.2.1, 3.7.2.1).
pub(crate) fn is_pubrel_or_pubcomp(_: Side, code: u8) -> bool {
    matches!(code, 0x00 | 0x92)
}

/// SUBACK: the granted QoS, or a failure. 3.1 has no failure code, 3.1.1 has one.
pub(crate) fn is_suback(version: Version, code: u8) -> bool {
    match (version, code) {
        (_, 0..=2) => true,
        (Version::V31, _) => false,
        (Version::V311, _) => code == 0x80,
        (Version::V5, _) => matches!(
            code,
            0x80 | 0x83 | 0x87 | 0x8f | 0x91 | 0x97 | 0x9e | 0xa1 | 0xa2
        ),
    }
}

/// UNSUBACK (section 3.11.3).
pub(crate) fn is_unsuback(code: u8) -> bool {
    matches!(code, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91)
}

/// DISCONNECT (section 3.14.2.1, with 0x8c after the table of section 2.4).
pub(crate) fn is_disconnect(side: Side, code: u8) -> bool {
    match code {
        0x00 | 0x80..=0x83 | 0x90 | 0x93..=0x99 => true,
        0x04 => side == Side::Client,
        0x87 | 0x89 | 0x8b..=0x8f | 0x9a..=0xa2 => side == Side::Server,
        _ => false,
    }
}

/// AUTH (section 3.15.2.1): 0x00 from a server, 0x19 from a client, 0x18 from both.
pub(crate) fn is_auth(side: Side, code: u8) -> bool {
    match code {
        0x00 => side == Side::Server,
        0x18 => true,
        0x19 => side == Side::Client,
        _ => false,
    }
}

/// The code of a refusing CONNACK in the codes of `version`, whatever version the server spoke.
///
/// A server that knows one version only answers in it ([MQTT-3.1.2-2] of 3.1.1 asks for that). What is unknown to both
/// becomes "server unavailable", and so does 0, which refuses nothing: a success must be in the form of its version.
///
/// | 5 | below 5 | why |
/// |---|---|---|
/// | 0x84 | 1 | the protocol version |
/// | 0x85 | 2 | the client id |
/// | 0x86 | 4 | user name or password |
/// | 0x87 | 5 | not authorized |
/// | 0x8a, 0x8c | 5 | banned; authentication method: this client may not come in |
/// | 0x90, 0x99, 0x9a, 0x9b, 0x95 | 5 | the will (topic, payload, RETAIN, QoS) or the packet: not accepted in this form |
/// | 0x88, 0x89, 0x97, 0x9c, 0x9d, 0x9f | 3 | not now, or not here: unavailable, busy, quota, another server, rate |
/// | 0x80, 0x81, 0x82, 0x83 | 3 | an error that says no more |
pub fn connack_refusal(version: Version, code: u8) -> u8 {
    match (version, code) {
        (Version::V5, 1) => 0x84,
        (Version::V5, 2) => 0x85,
        (Version::V5, 3) => 0x88,
        (Version::V5, 4) => 0x86,
        (Version::V5, 5) => 0x87,
        (Version::V5, _) if code != 0 && is_connack(version, code) => code,
        (Version::V5, _) => 0x88,
        (Version::V31 | Version::V311, 1..=5) => code,
        (Version::V31 | Version::V311, 0x84) => 1,
        (Version::V31 | Version::V311, 0x85) => 2,
        (Version::V31 | Version::V311, 0x86) => 4,
        (Version::V31 | Version::V311, 0x87 | 0x8a | 0x8c | 0x90 | 0x95 | 0x99 | 0x9a | 0x9b) => 5,
        (Version::V31 | Version::V311, _) => 3,
    }
}

/// A code of a server's packet as the packet's kind defines it: what is undefined keeps only whether it is an error. Not
/// for SUBACK, in which nothing undefined may become a grant.
pub(crate) fn nearest(version: Version, kind: PacketKind, code: u8) -> u8 {
    let (is_defined, error) = match kind {
        PacketKind::Connack => return connack_refusal(version, code),
        PacketKind::Puback | PacketKind::Pubrec => (is_puback_or_pubrec(Side::Server, code), 0x80),
        PacketKind::Pubrel | PacketKind::Pubcomp => {
            (is_pubrel_or_pubcomp(Side::Server, code), 0x92)
        }
        PacketKind::Unsuback => (is_unsuback(code), 0x80),
        PacketKind::Disconnect => (is_disconnect(Side::Server, code), 0x80),
        PacketKind::Connect
        | PacketKind::Publish
        | PacketKind::Subscribe
        | PacketKind::Suback
        | PacketKind::Unsubscribe
        | PacketKind::Pingreq
        | PacketKind::Pingresp
        | PacketKind::Auth => return code,
    };
    match (is_defined, code) {
        (true, _) => code,
        (false, 0x80..) => error,
        (false, _) => 0,
    }
}
