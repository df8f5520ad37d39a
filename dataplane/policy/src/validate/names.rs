//! Names of rows: there, short, unique, and what they look like.

use std::collections::HashMap;

use super::Source;
use crate::problem::{Position, Problems};
use crate::rows::Text;
use crate::wording::{is_deceptive, nearest, shown};

/// Longest name of a row, in bytes. User names are strings of MQTT and may be longer.
pub(super) const NAME_BYTES_MAX: usize = 128;

/// Where each name of a kind was first written.
pub(super) type Names = HashMap<Box<str>, Position>;

/// Checks the names of all rows of a kind.
pub(super) fn names<'a>(
    rows: impl Iterator<Item = &'a Text>,
    kind: &str,
    bytes_max: usize,
    source: Source,
    problems: &mut Problems,
) -> Names {
    let mut names = Names::new();
    for name in rows {
        if problems.is_cancelled() {
            break;
        }
        if name.value.is_empty() {
            // A name that is missing altogether has been reported when the row was read.
            if name.at != Position::default() {
                problems.add(
                    name.at,
                    format!("the name of {} must not be empty", one(kind)),
                );
            }
            continue;
        }
        if name.value.len() > bytes_max {
            problems.add(
                name.at,
                format!("the name of {} has at most {bytes_max} bytes", one(kind)),
            );
        }
        if let Some(message) = deceptive(&name.value, kind, source) {
            problems.add(name.at, message);
        }
        if let Some(first) = names.get(&name.value) {
            problems.add(
                name.at,
                format!(
                    "a second {kind} named `{}`; the first is in line {}",
                    shown(&name.value),
                    first.line
                ),
            );
        } else {
            names.insert(name.value.clone(), name.at);
        }
    }
    names
}

/// The first character that must not be in a name, and where: with it, lists, logs and audit would show another name.
/// Stored rows may have one that turns the direction of writing, because earlier versions took it.
fn deceptive(name: &str, kind: &str, source: Source) -> Option<String> {
    let is_refused = |c: char| match source {
        Source::Document => is_deceptive(c),
        Source::Stored => c.is_control(),
    };
    let (place, c) = (1..).zip(name.chars()).find(|(_, c)| is_refused(*c))?;
    let what = if c.is_control() {
        "control characters"
    } else {
        "characters that turn the direction of writing or end a line"
    };
    let (code, kind) = (u32::from(c), one(kind));
    Some(format!(
        "the name of {kind} must not contain {what}: U+{code:04X} is its character {place}"
    ))
}

/// A kind of row with its article.
fn one(kind: &str) -> String {
    let article = if kind.starts_with('u') && kind != "user" {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

/// Looks for names near a wrong one; bounded, because a document may have a million of both.
#[derive(Debug)]
pub(super) struct Nearby {
    /// How many names may still be looked at.
    left: usize,
}

impl Default for Nearby {
    /// Comparing with so many takes less than half a second.
    fn default() -> Self {
        Self { left: 500_000 }
    }
}

impl Nearby {
    /// `; did you mean \`x\`?`, or nothing. Which is suggested does not depend on the order of the names.
    pub(super) fn suggestion(&mut self, wrong: &str, names: &Names) -> String {
        let Some(left) = self.left.checked_sub(names.len()) else {
            return String::new();
        };
        self.left = left;
        let near = nearest(wrong, names.keys().map(|name| &**name));
        near.map_or_else(String::new, |near| {
            format!("; did you mean `{}`?", shown(near))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_end_when_enough_names_were_looked_at() {
        let name = |n: usize| (format!("name-{n}").into(), Position::default());
        let names: Names = (0..10).map(name).collect();
        let mut nearby = Nearby { left: 25 };
        for expected in ["; did you mean `name-3`?", "; did you mean `name-3`?", ""] {
            assert_eq!(nearby.suggestion("name_3", &names), expected);
        }
    }

    #[test]
    fn characters_that_deceive_are_named_with_their_place() {
        for (name, in_document, stored) in [
            ("plain", None, None),
            ("jörg müller", None, None),
            (
                "a\nb",
                Some("control characters: U+000A is its character 2"),
                Some("U+000A"),
            ),
            (
                "ü\u{9b}",
                Some("control characters: U+009B is its character 2"),
                Some("U+009B"),
            ),
            (
                "ab\u{202e}c",
                Some("end a line: U+202E is its character 3"),
                None,
            ),
            ("\u{2028}", Some("U+2028 is its character 1"), None),
            ("\u{61c}", Some("U+061C is its character 1"), None),
        ] {
            for (source, expected) in [(Source::Document, in_document), (Source::Stored, stored)] {
                let found = deceptive(name, "user", source);
                assert_eq!(found.is_some(), expected.is_some(), "{name:?} {found:?}");
                if let (Some(found), Some(expected)) = (found, expected) {
                    assert!(
                        found.ends_with(expected) || found.contains(expected),
                        "{found}"
                    );
                }
            }
        }
    }
}
