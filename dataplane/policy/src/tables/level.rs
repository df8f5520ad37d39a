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
pub(crate) const SHORT_BYTES_MAX: usize = 14;

/// Tags that stand in place of a length.
pub(crate) const LONG: u8 = 0xF0;
pub(crate) const ANY: u8 = 0xF1;
pub(crate) const CLIENT_ID: u8 = 0xF2;
pub(crate) const USERNAME: u8 = 0xF3;

/// The short form: the bytes, padded with zeros, and their number or one of the tags above. Two short levels are equal
/// exactly when their short forms are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Short {
    /// The first eight bytes, the first one lowest.
    pub(crate) head: u64,
    /// The six after them, and in the highest byte the length or tag. The byte below that is always zero: the trie keeps
    /// flags there.
    pub(crate) rest: u64,
}

impl Short {
    /// The length or tag.
    #[inline]
    pub(crate) fn tag(self) -> u8 {
        (self.rest >> 56) as u8
    }
}

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
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self::from_words(bytes, word(bytes), word(bytes.get(8..).unwrap_or_default()))
    }

    /// From the first sixteen bytes at the level's start, whatever stands behind its end.
    #[inline]
    fn from_words(bytes: &'a [u8], first: u64, second: u64) -> Self {
        let len = bytes.len();
        if len > SHORT_BYTES_MAX {
            return Self::new_long(bytes);
        }
        let short = Short {
            head: if len < 8 {
                first & !(u64::MAX << (8 * len))
            } else {
                first
            },
            rest: if len > 8 {
                second & !(u64::MAX << (8 * (len - 8)))
            } else {
                0
            } | (len as u64) << 56,
        };
        Self {
            bytes,
            hash: short_hash(short),
            short,
        }
    }

    /// A short level without its bytes: for everything but comparing with bytes.
    pub(crate) fn from_short(short: Short) -> Self {
        Self {
            bytes: &[],
            hash: short_hash(short),
            short,
        }
    }

    #[inline(never)]
    fn new_long(bytes: &'a [u8]) -> Self {
        let mut hasher = FixedState::with_seed(0x51_u64).build_hasher();
        hasher.write(bytes);
        Self {
            bytes,
            hash: hasher.finish(),
            short: special(LONG),
        }
    }

    /// True exactly when there is nothing between its slashes.
    pub(crate) fn is_empty(&self) -> bool {
        self.short == Short::default()
    }

    /// True exactly when the level begins with `$`, which leading wildcards do not match [MQTT-4.7.2-1].
    #[inline]
    pub(crate) fn is_reserved(&self) -> bool {
        if self.short.tag() == LONG {
            self.bytes.first() == Some(&b'$')
        } else {
            self.short.head as u8 == b'$'
        }
    }

    /// True exactly when both are the same text.
    pub(crate) fn is(&self, other: &Level<'_>) -> bool {
        self.short == other.short && (self.short.tag() != LONG || self.bytes == other.bytes)
    }
}

#[inline]
fn short_hash(short: Short) -> u64 {
    fold(short.head ^ 0x1319_8A2E_0370_7344, short.rest)
}

/// The short form of a level that is not text, or too long.
pub(crate) const fn special(tag: u8) -> Short {
    Short {
        head: 0,
        rest: (tag as u64) << 56,
    }
}

/// Mixes two words: both halves of the product take part, since the high one is the better mixed.
#[inline]
pub(crate) fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right ^ 0x9E37_79B9_7F4A_7C15);
    (product as u64) ^ ((product >> 64) as u64)
}

/// The first eight bytes, the first one lowest; zeros behind the end.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(chunk) => u64::from_le_bytes(*chunk),
        None => bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// Where the first `/` stands in a word; 8 when there is none.
#[inline]
fn slash_in(word: u64) -> usize {
    const LOW: u64 = u64::MAX / 255;
    let zeroed = word ^ (LOW * b'/' as u64);
    // The lowest bit set belongs to the first zero byte; bits above it may be wrong.
    let found = zeroed.wrapping_sub(LOW) & !zeroed & (LOW << 7);
    found.trailing_zeros() as usize / 8
}

/// Splits a topic, as far as rules can look into it.
pub(crate) fn split(topic: &str) -> Levels<'_> {
    let mut levels = Levels::new();
    split_into(topic, &mut levels);
    levels
}

/// The same into a list that is empty: where every message passes, so that the list is not moved.
#[inline]
pub(crate) fn split_into<'a>(topic: &'a str, levels: &mut Levels<'a>) {
    let mut rest = topic.as_bytes();
    while levels.len() < LEVELS_MAX {
        let first = word(rest);
        let at = slash_in(first);
        let (level, second) = if at < 8 {
            (rest.get(..at), 0)
        } else {
            let behind = rest.get(8..).unwrap_or_default();
            let end = behind
                .iter()
                .position(|byte| *byte == b'/')
                .map(|at| at + 8);
            (end.and_then(|end| rest.get(..end)), word(behind))
        };
        match level {
            Some(level) => {
                levels.push(Level::from_words(level, first, second));
                rest = rest.get(level.len() + 1..).unwrap_or_default();
            }
            None => {
                levels.push(Level::from_words(rest, first, second));
                break;
            }
        }
    }
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
        assert_eq!(short("0123456789abcd"), short("0123456789abcd"));
        assert_ne!(short("01234567"), short("01234567\0"));
        assert_eq!(short("0123456789abcdx").tag(), LONG);
    }

    #[test]
    fn a_level_of_a_topic_is_the_level_by_itself() {
        for length in 0..20 {
            let text = "abcdefghijklmnopqrst".get(..length).unwrap();
            for topic in [
                format!("{text}/next-level"),
                format!("{text}/"),
                text.to_owned(),
                format!("{text}//"),
            ] {
                let levels = split(&topic);
                let (found, alone) = (levels.first().unwrap(), Level::new(text.as_bytes()));
                assert_eq!(
                    (found.bytes, found.hash, found.short),
                    (alone.bytes, alone.hash, alone.short),
                    "{topic}"
                );
            }
        }
    }
}
