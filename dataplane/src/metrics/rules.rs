//! How often each rule decided, as one shard counts it, or as what several counted together.
//!
//! Counts are in chunks of a few rules that are made when the first of them decides: a shard of many, with a policy of a
//! million rules, takes memory for those that its own clients meet. Written by one thread, read by any, like
//! [`Counters`](super::Counters). Owns its bound; what finds no room is counted as such.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of a chunk: 256 bytes. Of rules for single devices, those of other shards lie between.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 5;
/// Chunks of a page: 8 KiB to find them.
const PAGE: usize = 1 << PAGE_BITS;
const PAGE_BITS: u32 = 9;

type Chunk = [AtomicU64; CHUNK];
type Page = [OnceLock<Box<Chunk>>; PAGE];

impl std::fmt::Debug for RuleCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RuleCounts")
    }
}

/// What is known of one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// How often it decided; a rule in shadow: would have decided.
    pub decided: u64,
    /// Of these, how often a rule in shadow would have decided otherwise.
    pub otherwise: u64,
}

/// See the module documentation. Rules are known by number.
pub struct RuleCounts {
    decided: Cells,
    otherwise: Cells,
    by_default: AtomicU64,
    left_off: AtomicU64,
    bytes: AtomicU64,
    bytes_max: u64,
}

/// Cells by number.
struct Cells {
    pages: Box<[OnceLock<Box<Page>>]>,
}

impl Cells {
    fn new(numbers_end: u32) -> Self {
        let pages = (numbers_end as usize).div_ceil(CHUNK * PAGE);
        Self {
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
        }
    }

    #[inline]
    fn get(&self, number: u32) -> Option<&AtomicU64> {
        let page = self
            .pages
            .get((number >> (CHUNK_BITS + PAGE_BITS)) as usize)?
            .get()?;
        let chunk = page.get((number >> CHUNK_BITS) as usize & (PAGE - 1))?;
        chunk.get()?.get(number as usize & (CHUNK - 1))
    }

    /// The same, made where it is not there. `may_take` is asked for the bytes; `None` also for a number beyond the end.
    #[cold]
    fn make(&self, number: u32, may_take: impl Fn(usize) -> bool) -> Option<&AtomicU64> {
        let page = self
            .pages
            .get((number >> (CHUNK_BITS + PAGE_BITS)) as usize)?;
        let is_new = page.get().is_none();
        let bytes = if is_new { size_of::<Page>() } else { 0 };
        if !may_take(bytes + size_of::<Chunk>()) {
            return None;
        }
        let page = page.get_or_init(|| Box::new([const { OnceLock::new() }; PAGE]));
        let chunk = page.get((number >> CHUNK_BITS) as usize & (PAGE - 1))?;
        let chunk = chunk.get_or_init(|| Box::new([const { AtomicU64::new(0) }; CHUNK]));
        chunk.get(number as usize & (CHUNK - 1))
    }

    fn read(&self, number: u32) -> u64 {
        self.get(number)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// The numbers of all chunks that are there.
    fn made(&self) -> impl Iterator<Item = u32> {
        let pages = self.pages.iter().enumerate();
        let pages = pages.filter_map(|(place, page)| Some((place, page.get()?)));
        let chunks = pages.flat_map(|(place, page)| {
            let made = page.iter().enumerate();
            let made = made.filter(|(_, chunk)| chunk.get().is_some());
            made.map(move |(chunk, _)| place * PAGE + chunk)
        });
        let numbers = chunks.flat_map(|chunk| chunk * CHUNK..(chunk + 1) * CHUNK);
        numbers.filter_map(|number| u32::try_from(number).ok())
    }
}

impl RuleCounts {
    /// For numbers below `numbers_end`, in at most `bytes_max` of memory.
    pub fn new(numbers_end: u32, bytes_max: u64) -> Self {
        let (decided, otherwise) = (Cells::new(numbers_end), Cells::new(numbers_end));
        let lists = size_of_val(&*decided.pages) + size_of_val(&*otherwise.pages);
        Self {
            decided,
            otherwise,
            by_default: AtomicU64::new(0),
            left_off: AtomicU64::new(0),
            bytes: AtomicU64::new(lists as u64),
            bytes_max,
        }
    }

    /// A rule decided, or the default decision. Only the owner may call this.
    #[inline]
    pub fn decided(&self, rule: Option<u32>) {
        match rule {
            Some(rule) => self.add(&self.decided, rule, 1),
            None => bump(&self.by_default, 1),
        }
    }

    /// A rule in shadow would have decided. Only the owner may call this.
    #[inline(never)]
    pub fn would_decide(&self, rule: u32, is_otherwise: bool) {
        self.add(&self.decided, rule, 1);
        if is_otherwise {
            self.add(&self.otherwise, rule, 1);
        }
    }

    /// Adds what others counted of a rule. Only the owner may call this.
    pub fn add_count(&self, rule: u32, count: RuleCount) {
        self.add(&self.decided, rule, count.decided);
        if count.otherwise > 0 {
            self.add(&self.otherwise, rule, count.otherwise);
        }
    }

    /// The same for what is no rule's.
    pub fn add_rest(&self, by_default: u64, left_off: u64) {
        bump(&self.by_default, by_default);
        bump(&self.left_off, left_off);
    }

    #[inline]
    fn add(&self, cells: &Cells, rule: u32, n: u64) {
        let cell = match cells.get(rule) {
            Some(cell) => Some(cell),
            None => cells.make(rule, |bytes| self.may_take(bytes)),
        };
        match cell {
            Some(cell) => bump(cell, n),
            None => bump(&self.left_off, n),
        }
    }

    fn may_take(&self, bytes: usize) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed) + bytes as u64;
        let has_room = bytes <= self.bytes_max;
        if has_room {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        has_room
    }

    /// From any thread, as everything below.
    pub fn read(&self, rule: u32) -> RuleCount {
        RuleCount {
            decided: self.decided.read(rule),
            otherwise: self.otherwise.read(rule),
        }
    }

    /// Decisions of the default.
    pub fn by_default(&self) -> u64 {
        self.by_default.load(Ordering::Relaxed)
    }

    /// Decisions that found no room: rules shown as unused may have been among them.
    pub fn left_off(&self) -> u64 {
        self.left_off.load(Ordering::Relaxed)
    }

    /// Memory it takes.
    pub fn heap_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The rules that decided, or would have.
    pub fn used(&self) -> impl Iterator<Item = (u32, RuleCount)> {
        let counts = self.decided.made().map(|rule| (rule, self.read(rule)));
        counts.filter(|(_, count)| *count != RuleCount::default())
    }
}

#[inline]
fn bump(cell: &AtomicU64, n: u64) {
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(decided: u64, otherwise: u64) -> RuleCount {
        RuleCount { decided, otherwise }
    }

    #[test]
    fn what_is_counted_is_read_and_nothing_else() {
        let last = 2 * (CHUNK * PAGE) as u32 + 1;
        let counts = RuleCounts::new(last + 1, u64::MAX);
        for rule in [0, 31, 32, last, last] {
            counts.decided(Some(rule));
        }
        counts.decided(None);
        counts.would_decide(40, false);
        counts.would_decide(40, true);
        counts.decided(Some(u32::MAX)); // of no rule of this policy
        let used: Vec<_> = counts.used().collect();
        let expected = [
            (0, count(1, 0)),
            (31, count(1, 0)),
            (32, count(1, 0)),
            (40, count(2, 1)),
            (last, count(2, 0)),
        ];
        assert_eq!(used, expected);
        assert_eq!((counts.by_default(), counts.left_off()), (1, 1));
        assert_eq!(counts.read(1), count(0, 0));
        let sum = RuleCounts::new(last + 1, u64::MAX);
        for _ in 0..2 {
            counts
                .used()
                .for_each(|(rule, count)| sum.add_count(rule, count));
            sum.add_rest(counts.by_default(), counts.left_off());
        }
        assert_eq!(sum.read(40), count(4, 2));
        assert_eq!((sum.by_default(), sum.left_off()), (2, 2));
    }

    /// A million rules have about 2,250,000 numbers. A shard of 64 meets the clients of one rule in 64, strewn over all.
    #[test]
    fn memory_is_for_what_decided() {
        let numbers = 2_250_000;
        let fresh = RuleCounts::new(numbers, u64::MAX);
        assert!(fresh.heap_bytes() < 8 << 10, "{}", fresh.heap_bytes());
        fresh.decided(Some(numbers - 1));
        assert!(fresh.heap_bytes() < 16 << 10, "{}", fresh.heap_bytes());
        let mut rule: u32 = 7;
        for _ in 0..1_000_000 / 64 {
            rule = rule.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            fresh.decided(Some(((u64::from(rule) * u64::from(numbers)) >> 32) as u32));
        }
        let full = u64::from(numbers) * 8;
        assert!(fresh.heap_bytes() < full / 3, "{}", fresh.heap_bytes());
    }

    #[test]
    fn what_finds_no_room_is_left_off_and_the_rest_goes_on() {
        let counts = RuleCounts::new(10 * CHUNK as u32, 9 << 10);
        for chunk in 0..10 {
            counts.decided(Some(chunk * CHUNK as u32));
        }
        let room = ((9 << 10) - size_of::<Page>() - 32) / size_of::<Chunk>();
        assert_eq!(counts.used().count(), room);
        assert_eq!(counts.left_off(), 10 - room as u64);
        assert!(counts.heap_bytes() <= 9 << 10);
        counts.decided(Some(0));
        assert_eq!(counts.read(0), count(2, 0));
    }
}
