//! Which reason codes each packet kind defines (MQTT 5 section 2.4), and the return codes of the older versions.

use super::packet::{Side, Version};

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
