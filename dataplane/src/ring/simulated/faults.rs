//! What goes wrong in a simulated network, and the generator that decides when.

use std::time::Duration;

/// Chances are in thousandths, for each occasion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Longest way of a segment; each takes a random time up to this, in order within its connection.
    pub delay_max: Duration,
    /// Largest segment; each has a random size from 1 byte up to this.
    pub segment_bytes_max: usize,
    /// Bytes that one direction of a connection holds, on the way and unread.
    pub capacity_bytes: usize,
    /// A send takes only part of what there is room for, possibly nothing.
    pub short_send: u32,
    /// Writing (from either side) breaks the connection.
    pub reset: u32,
    /// A connect of the ring fails.
    pub connect_failure: u32,
    /// A connect of the ring is never answered.
    pub connect_hang: u32,
    /// Accepting fails with EMFILE; what waits is turned away.
    pub accept_failure: u32,
    /// A receive finds no buffer, though there are some.
    pub no_buffers: u32,
    /// A turn with events also tells of a wake that nobody asked for.
    pub spurious_wake: u32,
    /// Sockets that are ready in the same turn are told in random order.
    pub reorder: bool,
}

impl Faults {
    /// A network without faults, delays and limits that matter.
    pub fn none() -> Self {
        Self {
            delay_max: Duration::ZERO,
            segment_bytes_max: usize::MAX,
            capacity_bytes: 1 << 20,
            short_send: 0,
            reset: 0,
            connect_failure: 0,
            connect_hang: 0,
            accept_failure: 0,
            no_buffers: 0,
            spurious_wake: 0,
            reorder: false,
        }
    }

    /// Faults that lose no connection: delays, cuts, short sends, small capacities, missing buffers, random order.
    pub fn lossless(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x6c6f_7373_6c65_7373);
        let micros = [0, 50, 2_000, 80_000];
        let segments = [1, 7, 100, 1_500, 65_536];
        let capacities = [64, 1_000, 10_000, 1 << 20];
        let chances = [0, 10, 200];
        Self {
            delay_max: Duration::from_micros(random.pick(&micros)),
            segment_bytes_max: random.pick(&segments),
            capacity_bytes: random.pick(&capacities),
            short_send: random.pick(&chances),
            no_buffers: random.pick(&chances),
            spurious_wake: random.pick(&chances),
            reorder: random.chance(500),
            ..Self::none()
        }
    }

    /// All faults, in a mixture that the seed decides.
    pub fn hostile(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x0068_6f73_7469_6c65);
        let rare = [0, 1, 10, 50];
        Self {
            reset: random.pick(&rare),
            connect_failure: random.pick(&rare),
            connect_hang: random.pick(&rare),
            accept_failure: random.pick(&rare),
            ..Self::lossless(seed)
        }
    }
}

/// A small generator (splitmix64): good enough to vary, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A generator that gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to and without `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64().checked_rem(end).unwrap_or(0)
    }

    /// A length from 1 to `most`.
    pub fn length(&mut self, most: usize) -> usize {
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        usize::try_from(self.below(most).saturating_add(1)).unwrap_or(usize::MAX)
    }

    /// True in `thousandths` of 1,000 cases.
    pub fn chance(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.below(1000) < u64::from(thousandths)
    }

    /// One of the values; the default where there are none.
    pub fn pick<T: Copy + Default>(&mut self, values: &[T]) -> T {
        let at = self.below(u64::try_from(values.len()).unwrap_or(0));
        let at = usize::try_from(at).unwrap_or(0);
        values.get(at).copied().unwrap_or_default()
    }

    /// Puts the values in random order.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for at in (1..values.len()).rev() {
            let other = self.length(at + 1) - 1;
            values.swap(at, other);
        }
    }
}
