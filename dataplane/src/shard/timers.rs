//! A coarse timer wheel: at most one entry for each slot, lazily kept.
//!
//! Owns when a slot is looked at again, not why. An entry may be too early, never too late: when it comes up, the shard
//! checks the session's real deadlines and enters it again. Moving a deadline later therefore costs nothing, which is
//! what happens with nearly every packet.

use crate::clock::Time;

/// A tick is 2^24 ns, about 17 ms: fine enough for dial pauses, coarse enough that a tick is worth its wake-up.
const TICK_BITS: u32 = 24;
/// Buckets of the wheel: about 68 s. Later deadlines come up at the end of the wheel and are entered again.
const BUCKETS: u64 = 4096;
const WORDS: usize = (BUCKETS / 64) as usize;
const _: () = assert!(WORDS == u64::BITS as usize, "one word sums up the others");
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    bucket: u32,
}

const UNLINKED: Link = Link {
    previous: NONE,
    next: NONE,
    bucket: NONE,
};

pub(super) struct Wheel {
    heads: Box<[u32]>,
    /// A bit for each bucket that holds something, and above it a bit for each word of these that is not zero: the next
    /// entry is found in three loads, since every turn asks for it twice.
    occupied: [u64; WORDS],
    summary: u64,
    links: Vec<Link>,
    /// Every bucket before this tick has been emptied.
    tick: u64,
}

impl Wheel {
    pub(super) fn new(now: Time) -> Self {
        Self {
            heads: vec![NONE; BUCKETS as usize].into_boxed_slice(),
            occupied: [0; WORDS],
            summary: 0,
            links: Vec::new(),
            tick: now.0 >> TICK_BITS,
        }
    }

    /// Enters a slot, or moves its entry, so that it comes up not before `at`; returns when it will.
    pub(super) fn set(&mut self, slot: u32, at: Time) -> Time {
        self.clear(slot);
        let last = self.tick.saturating_add(BUCKETS - 1);
        let tick = ((at.0 >> TICK_BITS).saturating_add(1)).clamp(self.tick, last);
        let bucket = (tick % BUCKETS) as u32;
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, UNLINKED);
        }
        let head = self.heads.get(bucket as usize).copied().unwrap_or(NONE);
        self.relink(
            slot,
            Link {
                previous: NONE,
                next: head,
                bucket,
            },
        );
        if let Some(link) = self.links.get_mut(head as usize) {
            link.previous = slot;
        }
        self.set_head(bucket, slot);
        start_of(tick)
    }

    /// Takes a slot out, if it is in.
    pub(super) fn clear(&mut self, slot: u32) {
        let Some(&link) = self.links.get(slot as usize) else {
            return;
        };
        if link.bucket == NONE {
            return;
        }
        match self.links.get_mut(link.previous as usize) {
            Some(previous) => previous.next = link.next,
            None => self.set_head(link.bucket, link.next),
        }
        if let Some(next) = self.links.get_mut(link.next as usize) {
            next.previous = link.previous;
        }
        self.relink(slot, UNLINKED);
    }

    /// Moves what has come up by `now` into `due`.
    pub(super) fn advance(&mut self, now: Time, due: &mut Vec<u32>) {
        let target = now.0 >> TICK_BITS;
        while let Some(tick) = self.next_tick().filter(|tick| *tick <= target) {
            let bucket = (tick % BUCKETS) as u32;
            while let Some(&slot) = self
                .heads
                .get(bucket as usize)
                .filter(|slot| **slot != NONE)
            {
                self.clear(slot);
                due.push(slot);
            }
        }
        // A clock that goes back must not take the wheel with it.
        self.tick = self.tick.max(target);
    }

    /// When to advance next; `None` when nothing is entered.
    pub(super) fn next(&self) -> Option<Time> {
        self.next_tick().map(start_of)
    }

    /// The tick of the first entry, from [`Wheel::tick`] on and once around.
    fn next_tick(&self) -> Option<u64> {
        let start = self.tick % BUCKETS;
        let (word, bit) = ((start / 64) as u32, (start % 64) as u32);
        let here = self.occupied_in(word);
        let bucket = if here >> bit != 0 {
            start + u64::from((here >> bit).trailing_zeros())
        } else if self.summary != 0 {
            // The words behind this one first, this one (what lies before `bit`) last.
            let behind = self.summary.rotate_right(word + 1);
            let found = (word + 1 + behind.trailing_zeros()) % u64::BITS;
            u64::from(found) * 64 + u64::from(self.occupied_in(found).trailing_zeros())
        } else {
            return None;
        };
        Some(self.tick + (bucket + BUCKETS - start) % BUCKETS)
    }

    fn occupied_in(&self, word: u32) -> u64 {
        self.occupied.get(word as usize).copied().unwrap_or(0)
    }

    fn relink(&mut self, slot: u32, link: Link) {
        if let Some(place) = self.links.get_mut(slot as usize) {
            *place = link;
        }
    }

    fn set_head(&mut self, bucket: u32, slot: u32) {
        if let Some(head) = self.heads.get_mut(bucket as usize) {
            *head = slot;
        }
        if let Some(word) = self.occupied.get_mut((bucket / 64) as usize) {
            *word = with_bit(*word, bucket % 64, slot != NONE);
            self.summary = with_bit(self.summary, bucket / 64, *word != 0);
        }
    }
}

fn with_bit(word: u64, bit: u32, is_set: bool) -> u64 {
    word & !(1 << bit) | u64::from(is_set) << bit
}

fn start_of(tick: u64) -> Time {
    Time(tick.saturating_mul(1 << TICK_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_never_comes_up_before_its_time_and_at_most_a_tick_late() {
        let mut wheel = Wheel::new(Time(0));
        for millis in [0, 1, 16, 17, 100, 5_000, 60_000] {
            let at = Time(0).after(Duration::from_millis(millis));
            let comes_up = wheel.set(3, at);
            assert_eq!(wheel.next(), Some(comes_up));
            let mut due = Vec::new();
            wheel.advance(Time(comes_up.0 - 1), &mut due);
            assert!(
                due.is_empty() && comes_up >= at && comes_up.since(at) <= Duration::from_millis(17)
            );
            wheel = Wheel::new(Time(0));
        }
    }

    #[test]
    fn far_deadlines_come_up_early_at_the_end_of_the_wheel() {
        let mut wheel = Wheel::new(Time(0));
        let comes_up = wheel.set(0, Time(u64::MAX));
        assert!(comes_up.since(Time(0)) > Duration::from_secs(60));
        let mut due = Vec::new();
        wheel.advance(comes_up, &mut due);
        assert_eq!((due, wheel.next()), (vec![0], None));
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(steps in prop::collection::vec((0_u32..20, 0_u64..200_000, any::<bool>()), 1..200)) {
            let mut wheel = Wheel::new(Time(0));
            let mut model: BTreeMap<u32, Time> = BTreeMap::new();
            let mut now = Time(0);
            for (slot, millis, advance) in steps {
                if advance {
                    now = now.after(Duration::from_millis(millis));
                    let mut due = Vec::new();
                    wheel.advance(now, &mut due);
                    due.sort_unstable();
                    let expected: Vec<u32> =
                        model.iter().filter(|(_, at)| **at <= now).map(|(slot, _)| *slot).collect();
                    model.retain(|_, at| *at > now);
                    prop_assert_eq!(due, expected);
                } else if millis % 5 == 0 {
                    wheel.clear(slot);
                    model.remove(&slot);
                } else {
                    let comes_up = wheel.set(slot, now.after(Duration::from_millis(millis)));
                    model.insert(slot, comes_up);
                }
                prop_assert_eq!(wheel.next(), model.values().min().copied());
            }
        }
    }
}
