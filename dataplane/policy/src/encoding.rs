//! Bytes to the text of a document: which encoding they look like where they are no UTF-8.
//!
//! Owns the guess, which only ever goes into a message: nothing is converted, because a wrong guess would change names.

use crate::problem::{Errors, Position, Problems};

/// So much of the beginning decides what it looks like.
const LOOKED_AT_BYTES: usize = 4_096;

/// The text of a document, or what is wrong with its bytes. `file` is only for the messages.
pub fn text_of<'b>(bytes: &'b [u8], file: &str) -> Result<&'b str, Errors> {
    let mut problems = Problems::default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => {
            note_odd_text(text, &mut problems);
            text
        }
        Err(error) => {
            let at = place(bytes.get(..error.valid_up_to()).unwrap_or_default());
            problems.add(at, not_utf8(bytes, error.valid_up_to()));
            ""
        }
    };
    problems.finish(file, text)
}

/// Notes a text that is UTF-8 by accident: of letters without accents in two or four bytes each, NUL is the other half.
pub(crate) fn note_odd_text(text: &str, problems: &mut Problems) -> bool {
    if let Some(wide) = wide(text.as_bytes()) {
        problems.add(Position { line: 1, column: 1 }, advice(wide));
        return true;
    }
    false
}

fn not_utf8(bytes: &[u8], at: usize) -> String {
    let looks_like = match bytes {
        [0x1F, 0x8B, ..] => return "this is a gzip file, not a text: unpack it first".into(),
        [b'P', b'K', 3 | 5 | 7, 4 | 6 | 8, ..] => {
            return "this is a zip archive, not a text: unpack it first".into();
        }
        _ => wide(bytes),
    };
    if let Some(wide) = looks_like {
        return advice(wide);
    }
    let byte = bytes.get(at).copied().unwrap_or_default();
    let is_text = !bytes
        .iter()
        .take(LOOKED_AT_BYTES.max(at))
        .any(|byte| *byte == 0);
    if !is_text {
        return "this is not UTF-8, and there are zero bytes in it: is it a text at all?".into();
    }
    let name = match byte {
        0x80..=0x9F => "Windows-1252",
        _ => "Latin-1 (ISO 8859-1) or Windows-1252",
    };
    let letter = match byte {
        0xA1..=0xFF => format!(", in which it is `{}`", char::from(byte)),
        _ => String::new(),
    };
    format!(
        "the byte 0x{byte:02X} is not UTF-8; it looks like {name}{letter}: save the document as UTF-8"
    )
}

fn advice(name: &str) -> String {
    format!("this looks like {name}: save the document as UTF-8")
}

/// The name of an encoding of two or four bytes for each letter, told by its mark or by where the zero bytes are.
fn wide(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xFF, 0xFE, 0, 0, ..] => return Some("UTF-32 (little-endian)"),
        [0, 0, 0xFE, 0xFF, ..] => return Some("UTF-32 (big-endian)"),
        [0xFF, 0xFE, ..] => return Some("UTF-16 (little-endian)"),
        [0xFE, 0xFF, ..] => return Some("UTF-16 (big-endian)"),
        _ => {}
    }
    let bytes = bytes.get(..LOOKED_AT_BYTES).unwrap_or(bytes);
    let quads = bytes.chunks_exact(4);
    let count = quads.len();
    // How often each of the four places is zero. Most letters of a policy are ASCII.
    let mut zeros = [0_usize; 4];
    for quad in quads {
        for (zero, byte) in zeros.iter_mut().zip(quad) {
            *zero += usize::from(*byte == 0);
        }
    }
    let is_mostly = zeros.map(|zero| count > 0 && zero * 4 >= count * 3);
    match is_mostly {
        [false, true, true, true] => Some("UTF-32 (little-endian) without a byte order mark"),
        [true, true, true, false] => Some("UTF-32 (big-endian) without a byte order mark"),
        [false, true, false, true] => Some("UTF-16 (little-endian) without a byte order mark"),
        [true, false, true, false] => Some("UTF-16 (big-endian) without a byte order mark"),
        _ => None,
    }
}

/// Where the good part ends.
fn place(good: &[u8]) -> Position {
    let good = std::str::from_utf8(good).unwrap_or_default();
    let last = good.rsplit('\n').next().unwrap_or_default();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position {
        line: number(good.matches('\n').count() + 1),
        column: number(last.chars().count() + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        text_of(bytes, "p").expect_err("no UTF-8").to_string()
    }

    #[test]
    fn every_encoding_is_named() {
        const TEXT: &str = "default: deny\nusers:\n  - name: jörg\n";
        let units = || TEXT.encode_utf16();
        let le16: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let be16: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        let le32: Vec<u8> = TEXT
            .chars()
            .flat_map(|c| u32::from(c).to_le_bytes())
            .collect();
        let be32: Vec<u8> = TEXT
            .chars()
            .flat_map(|c| u32::from(c).to_be_bytes())
            .collect();
        let latin: Vec<u8> = TEXT
            .chars()
            .filter_map(|c| u8::try_from(u32::from(c)).ok())
            .collect();
        let marked = |mark: &[u8], text: &[u8]| [mark, text].concat();
        let table = [
            (
                marked(&[0xFF, 0xFE], &le16),
                "p:1:1: this looks like UTF-16 (little-endian): save",
            ),
            (
                marked(&[0xFE, 0xFF], &be16),
                "p:1:1: this looks like UTF-16 (big-endian): save",
            ),
            (
                marked(&[0xFF, 0xFE, 0, 0], &le32),
                "p:1:1: this looks like UTF-32 (little-endian): save",
            ),
            (
                marked(&[0, 0, 0xFE, 0xFF], &be32),
                "this looks like UTF-32 (big-endian): save",
            ),
            (le16, "UTF-16 (little-endian) without a byte order mark"),
            (be16, "UTF-16 (big-endian) without a byte order mark"),
            (le32, "UTF-32 (little-endian) without a byte order mark"),
            (be32, "UTF-32 (big-endian) without a byte order mark"),
            (
                latin,
                "p:3:12: the byte 0xF6 is not UTF-8; it looks like Latin-1 (ISO 8859-1) or Windows-1252, in which it is `ö`",
            ),
            (
                b"a: \x93b\x94".to_vec(),
                "p:1:4: the byte 0x93 is not UTF-8; it looks like Windows-1252: save",
            ),
            (b"\x1f\x8b\x08\x00".to_vec(), "p:1:2: this is a gzip file"),
            (
                b"PK\x03\x04\x14\x00\x08\x00\xff".to_vec(),
                "this is a zip archive",
            ),
            (b"\x7fELF\x00\x01\xff".to_vec(), "is it a text at all?"),
        ];
        for (bytes, expected) in table {
            assert!(
                message(&bytes).contains(expected),
                "{}\n{expected}",
                message(&bytes)
            );
        }
    }

    #[test]
    fn utf8_is_itself() {
        for text in [
            "",
            "a",
            "default: deny\n",
            "\u{feff}default: deny\n",
            "größer: ä",
            "a\0b",
        ] {
            assert_eq!(text_of(text.as_bytes(), "p").expect("UTF-8"), text);
        }
    }
}
