//! Text of clients, made safe to show: what clients call themselves and their topics may hold anything.
//!
//! Owns the escapes: control characters, those that change the direction of what follows, and those that are not seen are
//! written as `\u{...}`, and a backslash twice, so that what is shown says exactly what was sent.

use std::fmt::Write;

/// The text with escapes; `…` at its end says that the rest was cut off.
pub fn shown(text: &str, is_cut: bool) -> Box<str> {
    let mut out = String::with_capacity(text.len() + 3);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            letter if must_escape(letter) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(letter)); // writing to a String cannot fail
            }
            letter => out.push(letter),
        }
    }
    if is_cut {
        out.push('…');
    }
    out.into()
}

fn must_escape(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            // Direction marks, embeddings, overrides and isolates.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators; joiners, fillers and other letters without a shape.
            | '\u{2028}' | '\u{2029}' | '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_mislead_is_escaped() {
        for (text, expected) in [
            ("dev-1/ü/日本", "dev-1/ü/日本"),
            ("a\nb\tc\0", "a\\u{a}b\\u{9}c\\u{0}"),
            ("\x1b[31mred", "\\u{1b}[31mred"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("abc\u{202e}gpj", "abc\\u{202e}gpj"),
            ("x\u{2067}y\u{200b}", "x\\u{2067}y\\u{200b}"),
            ("back\\u{a}", "back\\\\u{a}"),
        ] {
            assert_eq!(&*shown(text, false), expected);
        }
        assert_eq!(&*shown("abc", true), "abc…");
    }
}
