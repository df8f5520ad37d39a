//! One level of a topic as the tries look it up: its bytes, their hash, and a short form that compares in two loads.
//!
//! The hash only chooses where to look; equality is always decided by the bytes.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use smallvec::SmallVec;

use crate::filter::FILTER_LEVELS_MAX;

/// Levels of a topic that are looked at. One more than a rule's filter can have: what lies deeper is reached by `#` only,
/// which the level after the last possible one already shows.
pub(crate) const LEVELS_MAX: usize = FILTER_LEVELS_MAX + 1;

/// Levels longer than this are compared in the trie's own text.
pub(crate) const SHORT_BYTES_MAX: usize = 10;

/// First byte of a short form that is not a length.
pub(crate) const LONG: u8 = 0xF0;
pub(crate) const ANY: u8 = 0xF1;
pub(crate) const CLIENT_ID: u8 = 0xF2;
pub(crate) const USERNAME: u8 = 0xF3;

/// The short form: a length and the bytes, or one of the tags above.
pub(crate) type Short = [u8; SHORT_BYTES_MAX + 1];

/// A level with what is needed to find it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) hash: u64,
    pub(crate) short: Short,
}

/// The levels of one topic.
pub(crate) type Levels<'a> = SmallVec<[Level<'a>; LEVELS_MAX]>;

impl<'a> Level<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let mut short = [0; SHORT_BYTES_MAX + 1];
        let (tag, body) = short.split_at_mut(1);
        let is_short = bytes.len() <= SHORT_BYTES_MAX;
        if let Some(tag) = tag.first_mut() {
            *tag = if is_short { bytes.len() as u8 } else { LONG };
        }
        if is_short {
            for (to, from) in body.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
        let mut hasher = FixedState::with_seed(0x51_u64).build_hasher();
        hasher.write(bytes);
        Self {
            bytes,
            hash: hasher.finish(),
            short,
        }
    }

    /// True exactly when the level begins with `$`, which leading wildcards do not match [MQTT-4.7.2-1].
    pub(crate) fn is_reserved(&self) -> bool {
        self.bytes.first() == Some(&b'$')
    }
}

impl PartialEq for Level<'_> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bytes == other.bytes
    }
}

/// The short form of a level that is not text.
pub(crate) fn special(tag: u8) -> Short {
    let mut short = [0; SHORT_BYTES_MAX + 1];
    if let Some(first) = short.first_mut() {
        *first = tag;
    }
    short
}

/// Splits a topic, as far as rules can look into it.
#[inline]
pub(crate) fn split(topic: &str) -> Levels<'_> {
    let mut levels = Levels::new();
    let mut rest = topic.as_bytes();
    while levels.len() < LEVELS_MAX {
        match rest.iter().position(|byte| *byte == b'/') {
            Some(at) => {
                let (level, after) = rest.split_at(at);
                levels.push(Level::new(level));
                rest = after.get(1..).unwrap_or_default();
            }
            None => {
                levels.push(Level::new(rest));
                break;
            }
        }
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_split_at_every_slash() {
        for topic in [
            "a",
            "",
            "/",
            "a//b",
            "a/bb/ccc",
            "/a/",
            "a-level-of-many-bytes/x",
        ] {
            let levels: Vec<&[u8]> = split(topic).iter().map(|level| level.bytes).collect();
            let expected: Vec<&[u8]> = topic.split('/').map(str::as_bytes).collect();
            assert_eq!(levels, expected, "{topic}");
        }
    }

    #[test]
    fn very_deep_topics_are_cut_without_allocating() {
        let levels = split(&"/".repeat(65_535)).len();
        assert_eq!(levels, LEVELS_MAX);
        assert!(!split(&"/".repeat(65_535)).spilled());
    }

    #[test]
    fn short_forms_differ_when_short_levels_differ() {
        let short = |text: &'static str| Level::new(text.as_bytes()).short;
        assert_ne!(short("a"), short("a\0"));
        assert_ne!(short(""), short("\0"));
        assert_eq!(short("0123456789"), short("0123456789"));
        assert_eq!(short("0123456789x").first(), Some(&LONG));
    }
}
