//! The state of one upstream endpoint, for all shards: open connections, breaker, health, and what it failed at last.
//!
//! One cache line of atomics in the node's [`table`](super::table), touched when a connection is dialled, answered or
//! closed; never per packet. It holds no limits: the caller passes them in.
//!
//! # Invariants
//!
//! - **A success is a CONNACK, or AUTH.** A broker that accepts connections and does no more has not succeeded at anything.
//! - **What one client can cause is not charged.** A broker closes on some CONNECTs (Mosquitto does on control characters in
//!   a client id), so an endpoint without an answer is charged only with a [`Proof`].

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Time;

/// See the module documentation.
///
/// The breaker is one word: 0 is closed, otherwise the time until which it is open, with the lowest bit set exactly while
/// the single probe is under way. Times are rounded down to even nanoseconds for that.
#[derive(Debug, Default)]
pub struct EndpointState {
    open: AtomicU32,
    /// Charged failures since the last success.
    failures: AtomicU32,
    breaker: AtomicU64,
    /// Stored inverted, so that a zeroed cell is healthy until a check says otherwise.
    unhealthy: AtomicBool,
    /// A [`Fault`] since the last success; 0 is none.
    fault: AtomicU8,
    /// CONNECTs without an answer since the last success.
    unanswered: AtomicU32,
    /// Who saw them: distinct addresses; 0 is a free place.
    doubters: [AtomicU32; DOUBTERS],
    failed_ever: AtomicU64,
    /// When it failed last, charged or not; 0 is never.
    failed_at: AtomicU64,
}

const PROBING: u64 = 1;

/// Addresses that must have seen an endpoint fail, with no success between, before it is charged without another witness.
/// One is a client with a CONNECT that the broker does not like, two may be its neighbour; a broker that is down is seen
/// by all.
const DOUBTERS: usize = 3;

/// CONNECTs in a row without an answer after which operators are told that an endpoint does not work.
const UNANSWERED_TOLD: u32 = 5;

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

/// What an endpoint failed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fault {
    /// Nothing listens there.
    Refused = 1,
    /// There is no way to it, or connecting failed for another reason than the others here.
    Unreachable = 2,
    /// The connection was not established in time.
    TimedOut = 3,
    /// Its name has no address.
    NameNotFound = 4,
    /// It accepted the connection and gave no CONNACK in time.
    NoConnack = 5,
    /// It closed the connection before CONNACK.
    ClosedEarly = 6,
    /// It said in CONNACK that it is unavailable or busy.
    Unavailable = 7,
    /// It sent something else than an answer to CONNECT.
    NotMqtt = 8,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
        Self::NameNotFound,
        Self::NoConnack,
        Self::ClosedEarly,
        Self::Unavailable,
        Self::NotMqtt,
    ];

    /// In words, for the log and for operators.
    pub fn words(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed out",
            Self::NameNotFound => "name not found",
            Self::NoConnack => "no CONNACK",
            Self::ClosedEarly => "closed before CONNACK",
            Self::Unavailable => "says that it is unavailable",
            Self::NotMqtt => "sends no answer to CONNECT",
        }
    }

    /// Its name in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::NameNotFound => "name_not_found",
            Self::NoConnack => "no_connack",
            Self::ClosedEarly => "closed_before_connack",
            Self::Unavailable => "unavailable",
            Self::NotMqtt => "not_mqtt",
        }
    }

    /// What a failed connect came to.
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ECONNREFUSED | libc::ECONNRESET | libc::ENOENT => Self::Refused,
            libc::ETIMEDOUT => Self::TimedOut,
            _ => Self::Unreachable,
        }
    }

    fn of_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| *fault as u8 == byte)
    }
}

/// Why an endpoint that gave no answer to a CONNECT is to be blamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Another endpoint answered the same CONNECT.
    Answered,
    /// There was no other to ask: the address that saw it. Counts when several have.
    Address(Doubter),
    /// Another endpoint did not answer either: it may be the CONNECT.
    None,
}

/// An address as endpoints remember it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubter(u32);

impl Doubter {
    /// From a hash of the address.
    pub fn new(hash: u64) -> Self {
        Self((hash >> 32) as u32 | 1)
    }
}

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row.
    pub failures: u32,
    /// How long it stays open.
    pub open_for: Duration,
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

    /// True exactly when [`EndpointState::dial`] would allow it.
    pub fn may_dial(&self, now: Time) -> bool {
        let seen = self.breaker.load(Ordering::Acquire);
        seen == 0 || (seen & PROBING == 0 && now.0 >= seen)
    }

    /// It gave a CONNACK: the breaker closes.
    pub fn succeeded(&self) {
        // The common case writes nothing: no shared line is dirtied for a healthy endpoint.
        for count in [&self.failures, &self.unanswered]
            .into_iter()
            .chain(&self.doubters)
        {
            if count.load(Ordering::Relaxed) != 0 {
                count.store(0, Ordering::Relaxed);
            }
        }
        if self.fault.load(Ordering::Relaxed) != 0 {
            self.fault.store(0, Ordering::Relaxed);
        }
        if self.failed_at.load(Ordering::Relaxed) != 0 {
            self.failed_at.store(0, Ordering::Relaxed);
        }
        if self.breaker.load(Ordering::Relaxed) != 0 {
            self.breaker.store(0, Ordering::Release);
        }
    }

    /// It failed beyond doubt, which may open the breaker, or open it again.
    pub fn failed(&self, now: Time, dialling: Dialling, fault: Fault, breaker: Breaker) {
        self.noticed(now, fault);
        self.failed_ever.fetch_add(1, Ordering::Relaxed);
        let failures = self
            .failures
            .fetch_add(1, Ordering::AcqRel)
            .saturating_add(1);
        let until = (now.after(breaker.open_for).0 & !PROBING).max(2);
        match dialling {
            Dialling::Probe => self.breaker.store(until, Ordering::Release),
            Dialling::Free | Dialling::Open if failures >= breaker.failures.max(1) => {
                // One that is open already stays open until then.
                let _ =
                    self.breaker
                        .compare_exchange(0, until, Ordering::AcqRel, Ordering::Acquire);
            }
            Dialling::Free | Dialling::Open => {}
        }
    }

    /// It gave no usable answer to a CONNECT, which is not charged yet: other endpoints are preferred for a while.
    pub fn noticed(&self, now: Time, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
        self.failed_at.store(now.0.max(1), Ordering::Relaxed);
    }

    /// The end of a CONNECT that it gave no usable answer to: it is charged if there is enough proof.
    ///
    /// A probe that ended in silence opens the breaker again, since no CONNECT can silence a broker that works. One that was
    /// closed proves nothing by itself, and the next client may try: else a client with a bad CONNECT could keep the breaker
    /// of a broker open that is well again.
    pub fn unanswered(
        &self,
        now: Time,
        dialling: Dialling,
        fault: Fault,
        proof: Proof,
        breaker: Breaker,
    ) {
        let _ = self
            .unanswered
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                Some(count.saturating_add(1))
            });
        let is_proven = match (proof, dialling) {
            (Proof::Answered, _) => true,
            (Proof::Address(doubter), Dialling::Free | Dialling::Open) => self.is_doubted(doubter),
            (Proof::Address(_), Dialling::Probe) => fault == Fault::NoConnack,
            (Proof::None, _) => false,
        };
        if is_proven {
            return self.failed(now, dialling, fault, breaker);
        }
        self.noticed(now, fault);
        self.abandoned(dialling);
    }

    /// Remembers who saw it fail; true when enough have.
    fn is_doubted(&self, doubter: Doubter) -> bool {
        for place in &self.doubters {
            let seen = place.compare_exchange(0, doubter.0, Ordering::Relaxed, Ordering::Relaxed);
            if seen.is_ok() || seen == Err(doubter.0) {
                break;
            }
        }
        let is_taken = |place: &AtomicU32| place.load(Ordering::Relaxed) != 0;
        self.doubters.iter().all(is_taken)
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
        let before = self.open.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a connection given back twice");
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

    /// True exactly when it failed within `span`, and has not succeeded since.
    pub fn failed_within(&self, now: Time, span: Duration) -> bool {
        match self.failed_at.load(Ordering::Relaxed) {
            0 => false,
            at => now < Time(at).after(span),
        }
    }

    /// What it failed at last; `None` after a success.
    pub fn fault(&self) -> Option<Fault> {
        Fault::of_byte(self.fault.load(Ordering::Relaxed))
    }

    /// True exactly when several CONNECTs in a row had no answer, so that an operator should look.
    pub fn is_silent(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) >= UNANSWERED_TOLD
    }

    /// Failures charged in all, for metrics.
    pub fn failures(&self) -> u64 {
        self.failed_ever.load(Ordering::Relaxed)
    }

    /// Forgets everything, before the cell is given to another endpoint. Only when nothing is open.
    pub(super) fn reset(&self) {
        self.failed_ever.store(0, Ordering::Relaxed);
        self.unhealthy.store(false, Ordering::Relaxed);
        self.succeeded();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BREAKER: Breaker = Breaker {
        failures: 2,
        open_for: Duration::from_secs(5),
    };

    fn at(secs: u64) -> Time {
        Time(secs * 1_000_000_000)
    }

    fn address(number: u64) -> Proof {
        Proof::Address(Doubter::new(number << 33))
    }

    #[test]
    fn a_state_is_one_cache_line() {
        assert!(size_of::<EndpointState>() <= 64);
    }

    #[test]
    fn the_breaker_opens_admits_one_probe_and_closes() {
        let state = EndpointState::default();
        let fail = |secs, dialling| {
            state.failed(at(secs), dialling, Fault::Refused, BREAKER);
            state.is_open()
        };
        assert_eq!(state.dial(at(0)), Dialling::Free);
        assert!(!fail(0, Dialling::Free));
        assert!(fail(1, Dialling::Free));
        assert!(!state.may_dial(at(5)));
        assert_eq!(state.dial(at(5)), Dialling::Open, "open until 6");
        assert!(state.may_dial(at(6)), "looking takes no probe");
        assert_eq!(state.dial(at(6)), Dialling::Probe);
        assert!(!state.may_dial(at(6)));
        assert_eq!(state.dial(at(6)), Dialling::Open, "one probe only");
        assert!(fail(7, Dialling::Probe));
        assert_eq!(state.dial(at(11)), Dialling::Open, "open until 12");
        assert_eq!(state.dial(at(12)), Dialling::Probe);
        state.abandoned(Dialling::Probe);
        assert_eq!(
            state.dial(at(12)),
            Dialling::Probe,
            "given up: the next one probes"
        );
        assert_eq!(state.fault(), Some(Fault::Refused));
        state.succeeded();
        assert_eq!(state.dial(at(12)), Dialling::Free);
        assert_eq!(state.fault(), None);
        assert!(!fail(13, Dialling::Free), "counting began anew");
    }

    #[test]
    fn without_another_witness_several_addresses_must_have_seen_it() {
        let state = EndpointState::default();
        let see = |proof| {
            state.unanswered(at(1), Dialling::Free, Fault::ClosedEarly, proof, BREAKER);
            state.failures()
        };
        for _ in 0..100 {
            assert_eq!(see(address(1)), 0, "one address");
            assert_eq!(see(Proof::None), 0, "another endpoint did the same");
        }
        assert_eq!(see(address(2)), 0);
        assert!(!state.is_open());
        assert_eq!(see(address(3)), 1);
        assert_eq!(see(address(9)), 2, "one more, no place for it needed");
        assert!(state.is_open());
        state.succeeded();
        assert!(!state.is_open());
        assert_eq!(see(address(3)), 2, "a success between: all begins anew");
        assert_eq!(see(Proof::Answered), 3);
    }

    #[test]
    fn a_probe_that_is_closed_leaves_the_next_one_a_try_and_a_silent_one_does_not() {
        for (fault, next) in [
            (Fault::ClosedEarly, Dialling::Probe),
            (Fault::Unavailable, Dialling::Probe),
            (Fault::NoConnack, Dialling::Open),
        ] {
            let state = EndpointState::default();
            for _ in 0..2 {
                state.failed(at(0), Dialling::Free, Fault::Refused, BREAKER);
            }
            assert_eq!(state.dial(at(6)), Dialling::Probe);
            state.unanswered(at(6), Dialling::Probe, fault, address(1), BREAKER);
            assert_eq!(state.dial(at(6)), next, "{fault:?}");
        }
    }

    #[test]
    fn operators_are_told_of_an_endpoint_that_answers_nothing_whoever_asks() {
        let state = EndpointState::default();
        for count in 1..=UNANSWERED_TOLD {
            let fault = Fault::NoConnack;
            state.unanswered(at(1), Dialling::Free, fault, Proof::None, BREAKER);
            assert_eq!(state.is_silent(), count == UNANSWERED_TOLD);
        }
        let span = Duration::from_secs(5);
        assert!(state.failed_within(at(5), span) && !state.failed_within(at(6), span));
        state.succeeded();
        assert!(!state.is_silent() && !state.failed_within(at(1), span));
    }

    #[test]
    fn every_fault_has_a_byte_and_a_name_of_its_own() {
        let mut names = std::collections::BTreeSet::new();
        for fault in Fault::ALL {
            assert_eq!(Fault::of_byte(fault as u8), Some(fault));
            assert!(names.insert(fault.name()));
        }
        assert_eq!(Fault::of_byte(0), None);
        for (errno, fault) in [
            (libc::ECONNREFUSED, Fault::Refused),
            (libc::EHOSTUNREACH, Fault::Unreachable),
            (libc::ETIMEDOUT, Fault::TimedOut),
            (libc::EAGAIN, Fault::Unreachable),
        ] {
            assert_eq!(Fault::of_errno(errno), fault);
        }
    }
}
