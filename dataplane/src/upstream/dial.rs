//! One session's way to an upstream connection: which endpoint, how many attempts, how long between them.
//!
//! ```text
//!            next            failed, attempts left
//!  waiting ────────▶ connecting ────────▶ waiting
//!     │                   │ connected
//!     ▼ give up           ▼
//! ```
//!
//! # Invariants
//!
//! - **A probe is always told how it went.** Whoever holds a [`Dial`] in the connecting state ends it with
//!   [`Dial::connected`], [`Dial::failed`] or [`Dial::abandon`]; else a half-open breaker would stay half open.
//! - **An endpoint counts a connection from the first attempt to the close**, so that a storm of dials is spread too.

use std::time::Duration;

use sluice_policy::{Upstream, UpstreamId};
use smallvec::SmallVec;

use super::balance::{self, Candidate, Question};
use crate::clock::Time;
use crate::node::{Dialling, EndpointCell, ResolvedEndpoint, Table};
use crate::ring::Target;

/// See the module documentation.
#[derive(Debug)]
pub struct Dial {
    upstream: UpstreamId,
    key: u64,
    kept: bool,
    attempts: u8,
    tried: SmallVec<[EndpointCell; 4]>,
    attempt: Option<Attempt>,
    until: Time,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    cell: EndpointCell,
    dialling: Dialling,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Connect there.
    Connect {
        /// Address.
        target: &'a Target,
        /// The endpoint as the policy spells it.
        name: &'a str,
        /// True exactly when hashing by client id would have gone elsewhere: the MQTT session may not be there.
        failover: bool,
    },
    /// Call [`Dial::next`] again at [`Dial::deadline`].
    Wait,
    /// Every attempt failed, or nothing may be dialled.
    GiveUp,
}

/// What a dial looks at.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Read once per turn.
    pub now: Time,
    /// The upstream as the snapshot has it; `None` when this generation has it no more.
    pub upstream: Option<&'a Upstream>,
    /// Its endpoints as resolved.
    pub endpoints: &'a [ResolvedEndpoint],
    /// The node's table.
    pub table: &'a Table,
    /// Counts dials of the shard.
    pub turn: u64,
    /// One random number, for the jitter.
    pub random: u64,
}

impl Dial {
    /// A dial that has not begun.
    pub fn new(upstream: UpstreamId, key: u64) -> Self {
        Self {
            upstream,
            key,
            kept: false,
            attempts: 0,
            tried: SmallVec::new(),
            attempt: None,
            until: Time(0),
        }
    }

    /// The client wants its MQTT state kept between connections.
    #[must_use]
    pub fn kept(self, kept: bool) -> Self {
        Self { kept, ..self }
    }

    /// See [`Dial::kept`].
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// Which upstream.
    pub fn upstream(&self) -> UpstreamId {
        self.upstream
    }

    /// True exactly when a connection is being opened.
    pub fn is_connecting(&self) -> bool {
        self.attempt.is_some()
    }

    /// When the attempt has taken too long ([`Dial::failed`]), or the pause is over ([`Dial::next`]).
    pub fn deadline(&self) -> Time {
        self.until
    }

    /// Begins an attempt, or says why not.
    pub fn next<'a>(&mut self, around: Surroundings<'a>) -> Step<'a> {
        debug_assert!(self.attempt.is_none(), "one attempt at a time");
        let Some(upstream) = around.upstream else {
            return Step::GiveUp;
        };
        if around.endpoints.is_empty() {
            // Names may not be resolved yet: worth the patience of a failed attempt.
            return self.pause(upstream, around.now, around.random);
        }
        match self.pick(around, upstream) {
            Some((endpoint, attempt)) => {
                if let Some(state) = around.table.endpoint(attempt.cell) {
                    state.connected();
                }
                self.attempt = Some(attempt);
                self.until = around.now.after(upstream.dial_timeout);
                Step::Connect {
                    target: &endpoint.target,
                    name: endpoint.name(),
                    failover: upstream.balance == sluice_policy::Balance::ClientId
                        && is_away(self.key, attempt.cell, around.endpoints),
                }
            }
            // Every breaker is open: failing at once is what they are for.
            None => Step::GiveUp,
        }
    }

    /// The attempt succeeded; the endpoint counts the connection until [`EndpointState::disconnected`].
    ///
    /// [`EndpointState::disconnected`]: crate::node::EndpointState::disconnected
    pub fn connected(&mut self, table: &Table) -> Option<EndpointCell> {
        let attempt = self.attempt.take()?;
        if let Some(state) = table.endpoint(attempt.cell) {
            state.succeeded();
        }
        Some(attempt.cell)
    }

    /// The attempt failed or took too long.
    pub fn failed(&mut self, around: Surroundings<'_>) -> Step<'static> {
        let Some(upstream) = around.upstream else {
            self.abandon(around.table);
            return Step::GiveUp;
        };
        if let Some(attempt) = self.attempt.take() {
            if let Some(state) = around.table.endpoint(attempt.cell) {
                state.disconnected();
                state.failed(
                    around.now,
                    attempt.dialling,
                    upstream.breaker_failures,
                    upstream.breaker_open,
                );
            }
            self.tried.push(attempt.cell);
        }
        self.pause(upstream, around.now, around.random)
    }

    /// Nobody waits for the result any more.
    pub fn abandon(&mut self, table: &Table) {
        if let Some(attempt) = self.attempt.take()
            && let Some(state) = table.endpoint(attempt.cell)
        {
            state.disconnected();
            state.abandoned(attempt.dialling);
        }
    }

    fn pick<'a>(
        &mut self,
        around: Surroundings<'a>,
        upstream: &Upstream,
    ) -> Option<(&'a ResolvedEndpoint, Attempt)> {
        let question = Question {
            balance: upstream.balance,
            key: self.key,
            turn: around.turn,
        };
        let mut candidates = self.candidates(around);
        if candidates.is_empty() {
            self.tried.clear(); // all were tried: begin again
            candidates = self.candidates(around);
        }
        while let Some(chosen) = balance::choose(question, &candidates) {
            let endpoint = around.endpoints.get(chosen.index)?;
            let dialling = around.table.endpoint(endpoint.cell)?.dial(around.now);
            match dialling {
                Dialling::Free | Dialling::Probe => {
                    let attempt = Attempt {
                        cell: endpoint.cell,
                        dialling,
                    };
                    return Some((endpoint, attempt));
                }
                Dialling::Open => candidates.retain(|other| other.index != chosen.index),
            }
        }
        None
    }

    fn candidates(&self, around: Surroundings<'_>) -> SmallVec<[Candidate; 8]> {
        around
            .endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| !self.tried.contains(&endpoint.cell))
            .filter_map(|(index, endpoint)| {
                let state = around.table.endpoint(endpoint.cell)?;
                Some(Candidate::new(
                    index,
                    endpoint,
                    state.open(),
                    state.is_healthy(),
                ))
            })
            .collect()
    }

    fn pause(&mut self, upstream: &Upstream, now: Time, random: u64) -> Step<'static> {
        self.attempts = self.attempts.saturating_add(1);
        if self.attempts >= upstream.dial_attempts_max.max(1) {
            return Step::GiveUp;
        }
        self.until = now.after(back_off(upstream.dial_backoff, self.attempts, random));
        Step::Wait
    }
}

fn is_away(key: u64, cell: EndpointCell, endpoints: &[ResolvedEndpoint]) -> bool {
    balance::home(key, endpoints)
        .and_then(|home| endpoints.get(home))
        .is_some_and(|home| home.cell != cell)
}

/// Doubles with each attempt, up to 64 times the first pause; half of it is random, so that a fleet does not come back in step.
fn back_off(first: Duration, attempts: u8, random: u64) -> Duration {
    let doubled = first.saturating_mul(1 << u32::from(attempts.saturating_sub(1).min(6)));
    let half = doubled / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
    let jitter = if nanos == 0 { 0 } else { random % (nanos + 1) };
    half.saturating_add(Duration::from_nanos(jitter))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sluice_policy::Balance;

    use super::*;
    use crate::node::{Directory, Located, TableConfig};

    const U: UpstreamId = UpstreamId(3);

    struct World {
        upstream: Upstream,
        table: Table,
        directory: Directory,
        now: Time,
        turn: u64,
    }

    impl World {
        fn new(endpoints: u16, attempts: u8, breaker_failures: u32) -> Self {
            let table = Table::new(&TableConfig::default());
            let located = (0..endpoints)
                .map(|n| Located {
                    upstream: U,
                    name: format!("tcp://b{n}").into(),
                    target: Target::Tcp(SocketAddr::from(([127, 0, 0, 1], n + 1))),
                })
                .collect();
            let directory = Directory::build(&Directory::default(), &table, located).unwrap();
            Self {
                upstream: Upstream {
                    id: U,
                    name: "brokers".into(),
                    endpoints: Box::default(),
                    balance: Balance::RoundRobin,
                    dial_timeout: Duration::from_secs(2),
                    dial_attempts_max: attempts,
                    dial_backoff: Duration::from_millis(100),
                    breaker_failures,
                    breaker_open: Duration::from_secs(10),
                    health_interval: None,
                },
                table,
                directory,
                now: Time(1_000_000_000),
                turn: 0,
            }
        }

        fn around(&self) -> Surroundings<'_> {
            Surroundings {
                now: self.now,
                upstream: Some(&self.upstream),
                endpoints: self.directory.endpoints(U),
                table: &self.table,
                turn: self.turn,
                random: 17,
            }
        }

        fn port(&self, dial: &mut Dial) -> Option<u16> {
            match dial.next(self.around()) {
                Step::Connect {
                    target: Target::Tcp(address),
                    ..
                } => Some(address.port()),
                Step::Connect { .. } | Step::Wait | Step::GiveUp => None,
            }
        }
    }

    #[test]
    fn attempts_go_over_other_endpoints_and_then_give_up() {
        let mut world = World::new(2, 3, 100);
        let mut dial = Dial::new(U, 1);
        let mut seen = Vec::new();
        loop {
            seen.push(world.port(&mut dial).unwrap());
            match dial.failed(world.around()) {
                Step::Wait => world.now = dial.deadline(),
                Step::GiveUp => break,
                Step::Connect { .. } => unreachable!(),
            }
        }
        assert_eq!(seen, [1, 2, 1]);
        assert!(world.table.is_empty());
    }

    #[test]
    fn pauses_double_with_jitter_between_half_and_whole() {
        let first = Duration::from_millis(100);
        for (attempts, whole) in [(1, 100), (2, 200), (3, 400), (7, 6400), (200, 6400)] {
            for random in [0, 1, u64::MAX, 77_777_777_777] {
                let pause = back_off(first, attempts, random).as_millis();
                assert!((whole / 2..=whole).contains(&pause), "{attempts}: {pause}");
            }
        }
        assert_eq!(back_off(Duration::ZERO, 3, 5), Duration::ZERO);
    }

    #[test]
    fn an_open_breaker_is_passed_over_and_all_open_gives_up_at_once() {
        let mut world = World::new(2, 5, 1);
        let mut dial = Dial::new(U, 1);
        assert_eq!(world.port(&mut dial), Some(1));
        assert_eq!(dial.failed(world.around()), Step::Wait);
        let mut other = Dial::new(U, 2);
        assert_eq!(
            world.port(&mut other),
            Some(2),
            "the first one's breaker is open"
        );
        assert_eq!(other.failed(world.around()), Step::Wait);
        assert_eq!(Dial::new(U, 3).next(world.around()), Step::GiveUp);
        // After the pause one probe each, of the whole node.
        world.now = world.now.after(world.upstream.breaker_open);
        let (mut a, mut b, mut c) = (Dial::new(U, 4), Dial::new(U, 5), Dial::new(U, 6));
        assert_eq!((world.port(&mut a), world.port(&mut b)), (Some(1), Some(2)));
        assert_eq!(c.next(world.around()), Step::GiveUp);
        a.abandon(&world.table);
        assert_eq!(
            world.port(&mut Dial::new(U, 7)),
            Some(1),
            "an abandoned probe is tried again"
        );
        assert_eq!(b.connected(&world.table), Some(EndpointCell(1)));
        assert!(!world.table.endpoint(EndpointCell(1)).unwrap().is_open());
    }

    #[test]
    fn unresolved_names_are_waited_for_within_the_attempts() {
        let world = World::new(0, 2, 1);
        let mut dial = Dial::new(U, 1);
        assert_eq!(dial.next(world.around()), Step::Wait);
        assert_eq!(dial.next(world.around()), Step::GiveUp);
        let gone = Surroundings {
            upstream: None,
            ..world.around()
        };
        assert_eq!(Dial::new(U, 1).next(gone), Step::GiveUp);
    }

    #[test]
    fn a_client_sent_away_from_home_is_a_failover() {
        let mut world = World::new(3, 5, 100);
        world.upstream.balance = Balance::ClientId;
        let mut dial = Dial::new(U, 42);
        assert!(matches!(
            dial.next(world.around()),
            Step::Connect {
                failover: false,
                ..
            }
        ));
        assert_eq!(dial.failed(world.around()), Step::Wait);
        assert!(matches!(
            dial.next(world.around()),
            Step::Connect { failover: true, .. }
        ));
        dial.abandon(&world.table);
        assert!(world.table.is_empty());
    }
}
