//! Topic aliases of one direction (MQTT 5 section 3.3.2.3.4), as the proxy has to know them to judge a message.
//!
//! Owns the mapping that one sender has set up, and for each whether the receiver has heard of it: a message that set
//! an alias and was then dropped left the receiver ignorant, so the next that relies on it is sent with the full topic.
//! Bounded by the maximum that the sender was given: a sender that keeps to it may use topics of any length, and only the
//! sender could make room. What they take counts in the shard's memory budget.

use std::num::NonZeroU16;

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

impl Aliases {
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.entries.capacity() * size_of::<Option<Entry>>() + self.topic_bytes
    }

    /// The sender maps `alias`, which is at most its maximum, to `topic`. The receiver has not heard of it yet.
    pub(super) fn set(&mut self, alias: NonZeroU16, topic: &str) {
        let index = usize::from(alias.get()) - 1;
        if self.entries.len() <= index {
            self.entries.resize_with(index + 1, || None);
        }
        match self.entries.get_mut(index) {
            // The usual sender repeats itself; nothing is allocated for that.
            Some(Some(entry)) if *entry.topic == *topic => entry.known_to_peer = false,
            Some(slot) => {
                let old = slot.as_ref().map_or(0, |entry| entry.topic.len());
                self.topic_bytes = self.topic_bytes - old + topic.len();
                *slot = Some(Entry {
                    topic: topic.into(),
                    known_to_peer: false,
                });
            }
            None => debug_assert!(false, "there is a place for each alias"),
        }
    }

    /// What `alias` stands for, and whether the receiver knows.
    pub(super) fn topic(&self, alias: NonZeroU16) -> Option<(&str, bool)> {
        let entry = self.entries.get(usize::from(alias.get()) - 1)?.as_ref()?;
        Some((&entry.topic, entry.known_to_peer))
    }

    /// `alias` stands for something that is not known.
    pub(super) fn forget(&mut self, alias: NonZeroU16) {
        if let Some(slot) = self.entries.get_mut(usize::from(alias.get()) - 1)
            && let Some(entry) = slot.take()
        {
            self.topic_bytes -= entry.topic.len();
        }
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
        aliases.set(alias(3), "a/b");
        assert_eq!(aliases.topic(alias(3)), Some(("a/b", false)));
        assert_eq!(aliases.topic(alias(1)), None);
        aliases.told(alias(3));
        assert_eq!(aliases.topic(alias(3)), Some(("a/b", true)));
        aliases.set(alias(3), "c");
        assert_eq!(aliases.topic(alias(3)), Some(("c", false)));
        aliases.forget(alias(3));
        aliases.forget(alias(9));
        assert_eq!(aliases.topic(alias(3)), None);
        assert_eq!(aliases.topic_bytes, 0);
    }

    #[test]
    fn bytes_of_topics_are_counted_and_replacing_gives_back() {
        let mut aliases = Aliases::default();
        let long = "x".repeat(65_535);
        for number in 1..=32 {
            aliases.set(alias(number), &long);
        }
        let most = aliases.heap_bytes();
        assert!(most > 32 * long.len());
        for number in 1..=32 {
            aliases.set(alias(number), "s");
        }
        assert!(aliases.heap_bytes() < most - 32 * (long.len() - 2));
    }
}
