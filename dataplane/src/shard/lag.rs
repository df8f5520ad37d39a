//! How long turns take: what a packet waits at most before the shard looks at it.

use std::time::Duration;

use crate::clock::Time;

/// A long turn counts half after this long, so that an idle shard forgets it.
const HALF_LIFE_NANOS: u64 = 100_000_000;

/// The longest recent turn, fading.
#[derive(Debug, Default)]
pub(super) struct Lag {
    longest: Duration,
    at: Time,
}

impl Lag {
    /// A turn ended at `now`.
    pub(super) fn took(&mut self, now: Time, took: Duration) {
        if took >= self.at(now) {
            self.longest = took;
            self.at = now;
        }
    }

    /// What it counts now.
    pub(super) fn at(&self, now: Time) -> Duration {
        let halvings = now.0.saturating_sub(self.at.0) / HALF_LIFE_NANOS;
        self.longest / (1 << halvings.min(31) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_turn_counts_at_once_and_fades_with_time() {
        let millis = Duration::from_millis;
        let mut lag = Lag::default();
        lag.took(Time(0), millis(400));
        lag.took(Time(1), millis(2));
        let cases = [(1, 400), (99, 400), (100, 200), (250, 100), (60_000, 0)];
        for (at, expected) in cases {
            assert_eq!(
                lag.at(Time(0).after(millis(at))).as_millis(),
                expected,
                "after {at} ms"
            );
        }
        lag.took(Time(0).after(millis(250)), millis(150));
        assert_eq!(lag.at(Time(0).after(millis(250))), millis(150));
    }
}
