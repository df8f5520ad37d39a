//! From messages to text and JSON: functions without side effects, so that every answer can be compared with a table.
//!
//! Text is for 80 to 100 columns. What devices and operators wrote (client ids, comments) is cleaned of control
//! characters, so that it cannot move a terminal's cursor. JSON is stable: fields are added, never renamed.

pub(crate) mod access;
pub(crate) mod denials;
pub(crate) mod diff;
pub(crate) mod nodes;
pub(crate) mod operations;
pub(crate) mod policy;
pub(crate) mod problems;
pub(crate) mod rules;
mod table;
pub(crate) mod time;

use serde_json::{Value, json};
use sluice_proto::v1::GenerationId;

pub(crate) use table::Table;

/// A text that a terminal shows as it is: control characters, and what turns the direction of writing, are escaped.
pub(crate) fn clean(text: &str) -> String {
    let is_bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if is_bad(c) {
            cleaned.extend(c.escape_unicode());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Bytes as people read them.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A generation's number, `-` for none.
fn number(id: Option<&GenerationId>) -> String {
    id.map_or_else(|| "-".into(), |id| id.number.to_string())
}

fn id_json(id: Option<&GenerationId>) -> Value {
    id.map_or(
        Value::Null,
        |id| json!({ "store": hex(&id.store), "number": id.number, "digest": hex(&id.digest) }),
    )
}

/// Warnings and nodes that lack features, a line each.
fn remarks(warnings: &[String], lacking: &[sluice_proto::control::v1::LackingNode]) -> String {
    remarks_as("warning", warnings, lacking)
}

/// The same under another word.
fn remarks_as(
    word: &str,
    warnings: &[String],
    lacking: &[sluice_proto::control::v1::LackingNode],
) -> String {
    let mut text = String::new();
    for warning in warnings {
        text.push_str(&format!("{word}: {}\n", clean(warning)));
    }
    for node in lacking {
        let features = clean(&node.features.join(", "));
        let name = clean(&node.node);
        text.push_str(&format!(
            "{word}: node {name} would refuse it: it lacks {features}\n"
        ));
    }
    text
}

fn lacking_json(lacking: &[sluice_proto::control::v1::LackingNode]) -> Value {
    let one = |node: &sluice_proto::control::v1::LackingNode| json!({ "node": node.node, "features": node.features });
    lacking.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_move_the_cursor() {
        for (text, expected) in [
            ("sensor-7", "sensor-7"),
            ("sensör \u{1F600}", "sensör \u{1F600}"),
            ("\x1b[2Jgone", "\\u{1b}[2Jgone"),
            ("a\r\nb\tc", "a\\u{d}\\u{a}b\\u{9}c"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}exe", "\\u{202e}exe"),
        ] {
            assert_eq!(clean(text), expected);
        }
    }

    #[test]
    fn sizes_are_short() {
        for (size, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(size), expected);
        }
    }
}
