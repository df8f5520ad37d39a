//! When each message is due. Open loop: the schedule depends on nothing that the target does.
//!
//! Owns the arithmetic only. Latency is measured from these times, so a target that stalls is charged for every message
//! that should have been sent meanwhile (no coordinated omission).

const NANOS_PER_SEC: u128 = 1_000_000_000;

/// Message `n` is due at `start + n / rate`, computed from `n` each time, so that rounding never adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    start_ns: u64,
    per_sec: u32,
}

impl Pace {
    /// `per_sec` events a second from `start_ns` on; 0 is taken as 1.
    pub fn new(start_ns: u64, per_sec: u32) -> Self {
        Self {
            start_ns,
            per_sec: per_sec.max(1),
        }
    }

    /// When event `n` (from 0) is due.
    pub fn due_ns(&self, n: u64) -> u64 {
        let offset = u128::from(n) * NANOS_PER_SEC / u128::from(self.per_sec);
        self.start_ns
            .saturating_add(u64::try_from(offset).unwrap_or(u64::MAX))
    }

    /// How many events are due at `now_ns`: the smallest `n` whose `due_ns(n)` is later.
    pub fn due_count(&self, now_ns: u64) -> u64 {
        let Some(elapsed) = now_ns.checked_sub(self.start_ns) else {
            return 0;
        };
        // due_ns(n) <= now  <=>  floor(n * 1e9 / rate) <= elapsed  <=>  n * 1e9 < (elapsed + 1) * rate
        let bound = (u128::from(elapsed) + 1) * u128::from(self.per_sec);
        u64::try_from(bound.div_ceil(NANOS_PER_SEC)).unwrap_or(u64::MAX)
    }
}

/// The part of the run that is measured: messages *due* from `from_ns` up to before `until_ns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// First nanosecond measured.
    pub from_ns: u64,
    /// First nanosecond not measured any more.
    pub until_ns: u64,
}

impl Window {
    /// True exactly when a message due then is measured.
    pub fn holds(&self, due_ns: u64) -> bool {
        self.from_ns <= due_ns && due_ns < self.until_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_are_evenly_spread_and_do_not_drift() {
        let cases = [
            // (rate, n, offset in ns)
            (1, 0, 0),
            (1, 3, 3_000_000_000),
            (20_000, 1, 50_000),
            (20_000, 20_000, 1_000_000_000),
            (3, 1, 333_333_333),
            (3, 3, 1_000_000_000),
            (3, 3_000_000, 1_000_000_000_000_000),
            (7, 7 * 86_400, 86_400_000_000_000),
            (0, 2, 2_000_000_000),
        ];
        for (rate, n, offset) in cases {
            let pace = Pace::new(5_000, rate);
            assert_eq!(pace.due_ns(n), 5_000 + offset, "rate {rate}, event {n}");
        }
    }

    #[test]
    fn nothing_is_due_before_the_start() {
        let pace = Pace::new(1_000, 10);
        assert_eq!(pace.due_count(999), 0);
        assert_eq!(pace.due_count(1_000), 1);
    }

    #[test]
    fn the_window_is_half_open() {
        let window = Window {
            from_ns: 10,
            until_ns: 20,
        };
        let held: Vec<_> = [9, 10, 19, 20]
            .into_iter()
            .filter(|due| window.holds(*due))
            .collect();
        assert_eq!(held, [10, 19]);
        assert!(
            !Window::default().holds(0),
            "nothing is measured by default"
        );
    }

    proptest! {
        #[test]
        fn due_count_inverts_due_ns(rate in 1u32..=5_000_000, elapsed in 0u64..=1_000_000_000_000) {
            let pace = Pace::new(77, rate);
            let count = pace.due_count(77 + elapsed);
            prop_assert!(pace.due_ns(count) > 77 + elapsed, "the next one is later");
            prop_assert!(pace.due_ns(count - 1) <= 77 + elapsed, "the last one is due");
        }
    }
}
