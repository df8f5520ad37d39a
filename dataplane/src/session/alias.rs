//! Topic aliases of one direction (MQTT 5 section 3.3.2.3.4), as the proxy has to know them to judge a message.
//!
//! Owns the mapping that one sender has set up, and for each whether the receiver has heard of it: a message that set
//! an alias and was then dropped left the receiver ignorant, so the next that relies on it is sent with the full topic.
//! Bounded in entries by the maximum that the sender was given, and in bytes.

use std::num::NonZeroU16;

/// Bytes of topics that the aliases of one direction may hold: thousands of usual topics, four of the greatest length. A
/// sender that wants more is ended: what one session may hold times the sessions of a node must stay affordable.
const TOPIC_BYTES_MAX: usize = 256 * 1024;

/// The aliases of one direction.
#[derive(Default)]
pub(super) struct Aliases {
    entries: Vec<Option<Entry>>,
    topic_bytes: usize,
}

struct Entry {
    topic: Box<str>,
    known_to_peer: bool,
}

/// The bound on bytes was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Aliases {
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.entries.capacity() * size_of::<Option<Entry>>() + self.topic_bytes
    }

    /// The sender maps `alias`, which is at most its maximum, to `topic`. The receiver has not heard of it yet.
    pub(super) fn set(&mut self, alias: NonZeroU16, topic: &str) -> Result<(), Full> {
        let index = usize::from(alias.get()) - 1;
        if self.entries.len() <= index {
            self.entries.resize_with(index + 1, || None);
        }
        let Some(slot) = self.entries.get_mut(index) else {
            return Err(Full);
        };
        match slot {
            // The usual sender repeats itself; nothing is allocated for that.
            Some(entry) if *entry.topic == *topic => entry.known_to_peer = false,
            Some(_) | None => {
                let old = slot.as_ref().map_or(0, |entry| entry.topic.len());
                let bytes = self.topic_bytes - old + topic.len();
                if bytes > TOPIC_BYTES_MAX {
                    return Err(Full);
                }
                self.topic_bytes = bytes;
                *slot = Some(Entry {
                    topic: topic.into(),
                    known_to_peer: false,
                });
            }
        }
        Ok(())
    }

    /// What `alias` stands for, and whether the receiver knows.
    pub(super) fn topic(&self, alias: NonZeroU16) -> Option<(&str, bool)> {
        let entry = self.entries.get(usize::from(alias.get()) - 1)?.as_ref()?;
        Some((&entry.topic, entry.known_to_peer))
    }

    /// A message that carries `alias` together with its topic was forwarded.
    pub(super) fn told(&mut self, alias: NonZeroU16) {
        if let Some(Some(entry)) = self.entries.get_mut(usize::from(alias.get()) - 1) {
            entry.known_to_peer = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    #[test]
    fn alias_is_unknown_to_the_peer_until_it_was_told() {
        let mut aliases = Aliases::default();
        assert_eq!(aliases.topic(alias(3)), None);
        aliases.set(alias(3), "a/b").unwrap();
        assert_eq!(aliases.topic(alias(3)), Some(("a/b", false)));
        assert_eq!(aliases.topic(alias(1)), None);
        aliases.told(alias(3));
        assert_eq!(aliases.topic(alias(3)), Some(("a/b", true)));
        aliases.set(alias(3), "c").unwrap();
        assert_eq!(aliases.topic(alias(3)), Some(("c", false)));
    }

    #[test]
    fn bytes_of_topics_are_bounded_and_replacing_gives_back() {
        let mut aliases = Aliases::default();
        let long = "x".repeat(65_535);
        let fits = u16::try_from(TOPIC_BYTES_MAX / long.len()).unwrap();
        for number in 1..=fits {
            aliases.set(alias(number), &long).unwrap();
        }
        assert_eq!(aliases.set(alias(fits + 1), &long), Err(Full));
        aliases.set(alias(1), "s").unwrap();
        aliases.set(alias(fits + 1), &long).unwrap();
    }
}
