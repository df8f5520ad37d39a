//! How long to wait before the next attempt to reach the control plane.
//!
//! Owns the growth and the jitter. It reads no clock and draws no numbers: both are given.

use std::time::Duration;

/// The first pause, before jitter.
const FIRST: Duration = Duration::from_millis(500);
/// The longest, before jitter. A node that was told to go away waits this long at once.
const LONGEST: Duration = Duration::from_secs(30);
/// A stream that lasted this long was a good one: the next attempt begins with short pauses again.
const LIVED: Duration = Duration::from_secs(10);

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// A stream was open for so long and broke, or never came about (zero).
    Broken(Duration),
    /// The control plane does not take this node: a wrong secret or token. Only an operator can help.
    Refused,
    /// Another stream of the same node has taken over. Coming back at once would throw that one out.
    Replaced,
}

/// See the module documentation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BackOff {
    doublings: u32,
}

impl BackOff {
    /// The pause after an attempt that ended so. `random` spreads it: a fleet that lost its control plane does not come
    /// back in step. Between half of what is due and all of it, except after [`Ended::Replaced`]: then all, up to twice.
    pub(super) fn pause(&mut self, ended: Ended, random: u32) -> Duration {
        let due = match ended {
            Ended::Broken(lasted) => {
                if lasted >= LIVED {
                    self.doublings = 0;
                }
                let due = FIRST
                    .saturating_mul(1_u32.checked_shl(self.doublings).unwrap_or(u32::MAX))
                    .min(LONGEST);
                self.doublings = (self.doublings + 1).min(16);
                due
            }
            Ended::Refused => LONGEST,
            Ended::Replaced => return LONGEST + share(LONGEST, random),
        };
        due / 2 + share(due / 2, random)
    }
}

/// A part of `whole`: none for 0, nearly all for the largest number.
fn share(whole: Duration, random: u32) -> Duration {
    let nanos = (whole.as_nanos() * u128::from(random)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEVER: Ended = Ended::Broken(Duration::ZERO);

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_stream_that_lived() {
        let mut back_off = BackOff::default();
        let full = |back_off: &mut BackOff, ended| {
            let pause = back_off.pause(ended, u32::MAX);
            u64::try_from(pause.as_millis()).expect("short") + 1
        };
        let seen: Vec<u64> = (0..8).map(|_| full(&mut back_off, NEVER)).collect();
        assert_eq!(seen, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(full(&mut back_off, Ended::Broken(LIVED)), 500);
        assert_eq!(full(&mut back_off, Ended::Broken(LIVED / 2)), 1000);
        assert_eq!(full(&mut back_off, Ended::Refused), 30000);
        assert_eq!(
            full(&mut back_off, NEVER),
            2000,
            "a refusal changes nothing"
        );
    }

    proptest! {
        #[test]
        fn no_pause_is_zero_and_being_replaced_waits_longest(
            ends in prop::collection::vec((0_u8..3, 0_u64..20, any::<u32>()), 1..100),
        ) {
            let mut back_off = BackOff::default();
            for (kind, secs, random) in ends {
                let ended = match kind {
                    0 => Ended::Broken(Duration::from_secs(secs)),
                    1 => Ended::Refused,
                    _ => Ended::Replaced,
                };
                let pause = back_off.pause(ended, random);
                prop_assert!(pause >= FIRST / 2);
                prop_assert_eq!(pause >= LONGEST, ended == Ended::Replaced, "{:?} {:?}", pause, ended);
                prop_assert!(pause < LONGEST * 2);
            }
        }
    }
}
