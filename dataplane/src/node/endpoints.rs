//! The state of each upstream endpoint, for all shards: open connections, breaker, health.
//!
//! The cells are the table's; see `table.rs`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::table::give_back;
use crate::clock::Time;

/// The state of one upstream endpoint, for all shards.
///
/// The breaker is one word: 0 is closed, otherwise the time until which it is open, with the lowest bit set exactly while
/// the single probe is under way. Times are rounded down to even nanoseconds for that.
#[derive(Debug, Default)]
pub struct EndpointState {
    open: AtomicU32,
    failures: AtomicU32,
    breaker: AtomicU64,
    /// Stored inverted, so that a zeroed cell is healthy until a check says otherwise.
    unhealthy: AtomicBool,
    failed_ever: AtomicU64,
}

const PROBING: u64 = 1;

/// May this endpoint be dialled?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialling {
    /// Yes.
    Free,
    /// Yes, and this dial is the one probe of an open breaker: its end must be told.
    Probe,
    /// No, until then at least.
    Open,
}

impl EndpointState {
    /// Asks for a dial. [`Dialling::Probe`] is given to one caller of the whole node until it tells how it went.
    pub fn dial(&self, now: Time) -> Dialling {
        let seen = self.breaker.load(Ordering::Acquire);
        if seen == 0 {
            return Dialling::Free;
        }
        if seen & PROBING != 0 || now.0 < seen {
            return Dialling::Open;
        }
        match self.breaker.compare_exchange(
            seen,
            seen | PROBING,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Dialling::Probe,
            Err(_) => Dialling::Open,
        }
    }

    /// A dial succeeded: the breaker closes.
    pub fn succeeded(&self) {
        // The common case writes nothing: no shared line is dirtied for a healthy endpoint.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.breaker.load(Ordering::Relaxed) != 0 {
            self.breaker.store(0, Ordering::Release);
        }
    }

    /// A dial failed. True when this opened (or opened again) the breaker.
    pub fn failed(
        &self,
        now: Time,
        dialling: Dialling,
        threshold: u32,
        open_for: Duration,
    ) -> bool {
        self.failed_ever.fetch_add(1, Ordering::Relaxed);
        let failures = self
            .failures
            .fetch_add(1, Ordering::AcqRel)
            .saturating_add(1);
        let until = (now.after(open_for).0 & !PROBING).max(2);
        match dialling {
            Dialling::Probe => {
                self.breaker.store(until, Ordering::Release);
                true
            }
            Dialling::Free | Dialling::Open => {
                failures >= threshold.max(1)
                    && self
                        .breaker
                        .compare_exchange(0, until, Ordering::AcqRel, Ordering::Acquire)
                        .is_ok()
            }
        }
    }

    /// A dial was given up without a result (the client went away): the probe may be tried by the next one.
    pub fn abandoned(&self, dialling: Dialling) {
        if dialling == Dialling::Probe {
            self.breaker.fetch_and(!PROBING, Ordering::AcqRel);
        }
    }

    /// One more connection is open.
    pub fn connected(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// One connection less is open.
    pub fn disconnected(&self) {
        give_back(&self.open);
    }

    /// Connections open through this node.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// The result of an active health check; the control thread is the only one to call this.
    pub fn set_healthy(&self, healthy: bool) {
        self.unhealthy.store(!healthy, Ordering::Release);
    }

    /// False exactly when the last active health check failed.
    pub fn is_healthy(&self) -> bool {
        !self.unhealthy.load(Ordering::Acquire)
    }

    /// True exactly when the breaker is not closed.
    pub fn is_open(&self) -> bool {
        self.breaker.load(Ordering::Acquire) != 0
    }

    /// Failed dials in all, for metrics.
    pub fn failures(&self) -> u64 {
        self.failed_ever.load(Ordering::Relaxed)
    }

    /// Forgets everything, before the cell is given to another endpoint. Only when nothing is open.
    pub(super) fn reset(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.failed_ever.store(0, Ordering::Relaxed);
        self.unhealthy.store(false, Ordering::Relaxed);
        self.breaker.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_admits_one_probe_and_closes() {
        let state = EndpointState::default();
        let open_for = Duration::from_secs(5);
        let at = |secs: u64| Time(secs * 1_000_000_000);
        assert_eq!(state.dial(at(0)), Dialling::Free);
        assert!(!state.failed(at(0), Dialling::Free, 2, open_for));
        assert!(state.failed(at(1), Dialling::Free, 2, open_for));
        assert_eq!(state.dial(at(5)), Dialling::Open, "open until 6");
        assert_eq!(state.dial(at(6)), Dialling::Probe);
        assert_eq!(state.dial(at(6)), Dialling::Open, "one probe only");
        assert!(state.failed(at(7), Dialling::Probe, 2, open_for));
        assert_eq!(state.dial(at(11)), Dialling::Open, "open until 12");
        assert_eq!(state.dial(at(12)), Dialling::Probe);
        state.abandoned(Dialling::Probe);
        assert_eq!(
            state.dial(at(12)),
            Dialling::Probe,
            "given up: the next one probes"
        );
        state.succeeded();
        assert_eq!(state.dial(at(12)), Dialling::Free);
        assert!(
            !state.failed(at(13), Dialling::Free, 2, open_for),
            "counting began anew"
        );
    }
}
