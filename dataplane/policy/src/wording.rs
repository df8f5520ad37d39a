//! How messages quote what was written, and what they suggest instead.
//!
//! Quotes are short, stand on one line and hold no secret: what looks like a password hash, and what stands before the `@`
//! of an address, is left out.

/// Longest quote, in characters.
const QUOTED_CHARS_MAX: usize = 80;
/// Longer texts are no slips of the finger.
const NEAR_BYTES_MAX: usize = 64;

/// A text quoted in a message: short, on one line.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(QUOTED_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() {
        out.push_str("...");
    }
    out
}

/// True exactly when a text with the character may look like another one: it is a control character, ends a line, or turns
/// the direction of writing.
pub(crate) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A wrong value in backticks, or what it looks like where it must not be repeated.
pub(crate) fn quoted(value: &str) -> String {
    if is_like_a_hash(value) {
        return "a text that looks like a password hash".into();
    }
    // Of `mqtt://user:password@host`, only the host.
    match (value.find("//"), value.rfind('@')) {
        (Some(start), Some(end)) if start < end => {
            let (before, after) = (value.get(..start + 2), value.get(end..));
            format!(
                "`{}...{}`",
                shown(before.unwrap_or_default()),
                shown(after.unwrap_or_default())
            )
        }
        _ => format!("`{}`", shown(value)),
    }
}

/// `$7$...`, `$2b$...`, `$argon2id$...`, also behind other text.
fn is_like_a_hash(value: &str) -> bool {
    let parts = value.split('$').collect::<Vec<_>>();
    let is_scheme = |part: &&str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // What stands between two `$`.
    let between = parts.get(1..parts.len().saturating_sub(1));
    between.is_some_and(|between| {
        between
            .iter()
            .any(|part| part.len() <= 16 && is_scheme(part))
    })
}

/// `; did you mean \`x\`?`, where one of the words is near.
pub(crate) fn suggestion<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> String {
    nearest(text, words).map_or_else(String::new, |near| {
        format!("; did you mean `{}`?", shown(near))
    })
}

/// The word that a text may have been meant to be: few letters differ. Of equally near ones the first in their order.
pub(crate) fn nearest<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if text.len() > NEAR_BYTES_MAX {
        return None;
    }
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let far = match text.len() {
        0 => return None,
        1 => 0,
        2 => 1,
        3 | 4 => 2,
        _ => 3,
    };
    words
        .filter(|word| word.len() <= NEAR_BYTES_MAX + far)
        .filter_map(|word| {
            let letters: Vec<char> = word.to_lowercase().chars().collect();
            if letters.len().abs_diff(text.len()) > far {
                return None;
            }
            let edits = distance(&text, &letters);
            (edits <= far && edits < letters.len()).then_some((edits, word))
        })
        .min()
        .map(|(_, word)| word)
}

/// How many letters must be put in, taken out or replaced to make one word of the other.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = i;
        let mut last = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(right) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *cell;
            *cell = replaced.min(*cell + 1).min(last + 1);
            last = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let words = ["publish", "subscribe", "receive", "ab", "x", "Ω"];
        for (text, expected) in [
            ("publsh", Some("publish")),
            ("publihs", Some("publish")),
            ("PUBLISH", Some("publish")),
            ("subscribed", Some("subscribe")),
            ("fly", None),
            ("a", None),
            ("X", Some("x")),
            ("ω", Some("Ω")),
            ("y", None),
            ("", None),
            ("ax", Some("ab")),
        ] {
            assert_eq!(nearest(text, words.into_iter()), expected, "{text}");
        }
        // Whatever their order, the same one.
        assert_eq!(nearest("cut", ["cup", "cur"].into_iter()), Some("cup"));
        assert_eq!(nearest("cut", ["cur", "cup"].into_iter()), Some("cup"));
        let long = "a".repeat(NEAR_BYTES_MAX + 1);
        assert_eq!(nearest(&long, [long.as_str()].into_iter()), None);
    }

    #[test]
    fn quotes_are_short_plain_and_without_secrets() {
        for (text, expected) in [
            ("maybe", "`maybe`"),
            ("a\nb", "`a\\nb`"),
            ("a\u{202e}\u{61c}b", "`a\\u{202e}\\u{61c}b`"),
            ("tcp://host", "`tcp://host`"),
            ("mqtt://ann:hunter2@host:1", "`mqtt://...@host:1`"),
            ("mqtt://ann:hu@nter2@host:1", "`mqtt://...@host:1`"),
            ("$SYS/#/x", "`$SYS/#/x`"),
            (
                "a/${client_id}x/${username}",
                "`a/${client_id}x/${username}`",
            ),
            ("$7$101$salt$hash", "a text that looks like a password hash"),
            ("ann:$2b$10$abc", "a text that looks like a password hash"),
            (
                "$argon2id$v=19$m=1",
                "a text that looks like a password hash",
            ),
        ] {
            assert_eq!(quoted(text), expected, "{text}");
        }
        assert_eq!(shown(&"é".repeat(81)), "é".repeat(80) + "...");
    }
}
