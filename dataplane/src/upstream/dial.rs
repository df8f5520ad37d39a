//! One session's way to a broker that answers its CONNECT: which endpoint, how many attempts, how long between them, and
//! which endpoint is charged.
//!
//! ```text
//!            next            failed, attempts left
//!  waiting ────────▶ connecting ────────▶ waiting
//!     │                   │ connected        ▲
//!     ▼ give up           ▼                  │ elsewhere, once
//!                       asked ───────────────┤
//!                         │                  │ unanswered
//!                         ▼ answered         ▼ the end
//! ```
//!
//! # Invariants
//!
//! - **A probe is always told how it went.** The holder of a [`Dial`] in the connecting or asked state ends it with
//!   [`Dial::answered`], [`Dial::unanswered`], [`Dial::abandon`] or [`Dial::forget`]; else a half-open breaker would stay half open.
//! - **An endpoint counts a connection from the first attempt to the close**, so that a storm of dials is spread too.
//! - **An endpoint that gave no answer is charged when another one has answered the same CONNECT**, and not before: until
//!   then it may be the CONNECT that no broker likes.

use std::time::Duration;

use sluice_policy::{Upstream, UpstreamId};
use smallvec::SmallVec;

use super::balance::{self, Candidate, Question};
use crate::clock::Time;
use crate::node::{
    Breaker, Dialling, Doubter, EndpointCell, EndpointState, Fault, Proof, ResolvedEndpoint, Table,
};
use crate::ring::Target;

/// See the module documentation.
#[derive(Debug)]
pub struct Dial {
    upstream: UpstreamId,
    key: u64,
    kept: bool,
    attempts: u8,
    doubter: Doubter,
    tried: SmallVec<[EndpointCell; 4]>,
    attempt: Option<Attempt>,
    /// The endpoint that gave no answer, until another one has or has not.
    suspect: Option<(Attempt, Fault)>,
    until: Time,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    cell: EndpointCell,
    /// Tells whether the cell still stands for the same endpoint.
    identity: u64,
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
    /// Every attempt failed, or nothing may be dialled. [`Dial::abandon`] follows.
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
    /// A dial that has not begun, for a client at the address that `doubter` stands for.
    pub fn new(upstream: UpstreamId, key: u64, doubter: Doubter) -> Self {
        Self {
            upstream,
            key,
            kept: false,
            attempts: 0,
            doubter,
            tried: SmallVec::new(),
            attempt: None,
            suspect: None,
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

    /// True exactly when a connection is being opened, or was and its broker has been asked.
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
                        && is_away(self.key, endpoint, around.endpoints),
                }
            }
            // Every breaker is open: failing at once is what they are for.
            None => Step::GiveUp,
        }
    }

    /// The connection stands, and the broker is asked: what it answers is still to come. The endpoint counts the connection
    /// until [`EndpointState::disconnected`].
    pub fn connected(&self) -> Option<EndpointCell> {
        self.attempt.map(|attempt| attempt.cell)
    }

    /// True exactly when the broker that was asked is the first one, and there is another to ask if it does not answer.
    pub fn has_another(&self, around: Surroundings<'_>) -> bool {
        let Some(attempt) = self.attempt.filter(|_| self.suspect.is_none()) else {
            return false;
        };
        let others = around
            .endpoints
            .iter()
            .filter(|other| other.cell != attempt.cell);
        others
            .filter_map(|other| around.table.endpoint(other.cell))
            .any(|state| state.may_dial(around.now))
    }

    /// The broker gave a clear answer.
    pub fn answered(&mut self, around: Surroundings<'_>) {
        if let Some(attempt) = self.attempt.take()
            && let Some(state) = around.table.endpoint(attempt.cell)
        {
            state.succeeded();
        }
        self.blame_suspect(around, Proof::Answered);
    }

    /// The broker gave no usable answer, and another one is to be asked, once. The caller has closed the connection.
    pub fn elsewhere<'a>(&mut self, around: Surroundings<'a>, fault: Fault) -> Step<'a> {
        debug_assert!(self.suspect.is_none(), "there is one second chance");
        if let Some(attempt) = self.attempt.take() {
            if let Some(state) = state(around, attempt) {
                state.noticed(around.now, fault);
            }
            self.suspect = Some((attempt, fault));
        }
        self.attempts = 0;
        self.next(around)
    }

    /// The broker gave no usable answer, and that was the last one to ask.
    pub fn unanswered(&mut self, around: Surroundings<'_>, fault: Fault) {
        let has_asked_two = self.suspect.is_some();
        if let Some(attempt) = self.attempt.take() {
            blame(around, attempt, fault, self.proof(fault, has_asked_two));
        }
        if let Some((_, fault)) = self.suspect {
            self.blame_suspect(around, self.proof(fault, has_asked_two));
        }
    }

    /// What there is against an endpoint when none has answered. Two that close may do so because of the CONNECT; no
    /// CONNECT makes a broker that works fall silent.
    fn proof(&self, fault: Fault, has_asked_two: bool) -> Proof {
        if has_asked_two && fault != Fault::NoConnack {
            Proof::None
        } else {
            Proof::Address(self.doubter)
        }
    }

    fn blame_suspect(&mut self, around: Surroundings<'_>, proof: Proof) {
        if let Some((attempt, fault)) = self.suspect.take() {
            blame(around, attempt, fault, proof);
        }
    }

    /// The attempt failed or took too long.
    pub fn failed(&mut self, around: Surroundings<'_>, fault: Fault) -> Step<'static> {
        let Some(upstream) = around.upstream else {
            return Step::GiveUp;
        };
        if let Some(attempt) = self.attempt.take() {
            if let Some(state) = around.table.endpoint(attempt.cell) {
                state.disconnected();
                state.failed(around.now, attempt.dialling, fault, breaker(upstream));
            }
            self.tried.push(attempt.cell);
        }
        self.pause(upstream, around.now, around.random)
    }

    /// Ends a dial before its broker was asked. The endpoint of an attempt no longer counts it.
    pub fn abandon(&mut self, around: Surroundings<'_>) {
        if let Some(attempt) = self.attempt
            && let Some(state) = around.table.endpoint(attempt.cell)
        {
            state.disconnected();
        }
        self.forget(around);
    }

    /// Ends a dial whose broker was asked and has not answered, because the client left. A client that leaves while the second
    /// endpoint is asked says as little about the first as if both had closed: else it would only have to leave in time to
    /// make its CONNECT the endpoint's fault.
    pub fn forget(&mut self, around: Surroundings<'_>) {
        let is_asking_second = self.attempt.is_some();
        if let Some(attempt) = self.attempt.take()
            && let Some(state) = around.table.endpoint(attempt.cell)
        {
            state.abandoned(attempt.dialling);
        }
        if let Some((_, fault)) = self.suspect {
            self.blame_suspect(around, self.proof(fault, is_asking_second));
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
        let mut candidates = self.candidates(around, upstream);
        if candidates.is_empty() {
            self.tried.clear(); // all were tried: begin again
            candidates = self.candidates(around, upstream);
        }
        while let Some(chosen) = balance::choose(question, &candidates) {
            let endpoint = around.endpoints.get(chosen.index)?;
            let dialling = around.table.endpoint(endpoint.cell)?.dial(around.now);
            match dialling {
                Dialling::Free | Dialling::Probe => {
                    let attempt = Attempt {
                        cell: endpoint.cell,
                        identity: endpoint.identity,
                        dialling,
                    };
                    return Some((endpoint, attempt));
                }
                Dialling::Open => candidates.retain(|other| other.index != chosen.index),
            }
        }
        None
    }

    fn candidates(
        &self,
        around: Surroundings<'_>,
        upstream: &Upstream,
    ) -> SmallVec<[Candidate; 8]> {
        let suspect = self.suspect.map(|(attempt, _)| attempt.cell);
        around
            .endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| !self.tried.contains(&endpoint.cell))
            .filter(|(_, endpoint)| suspect != Some(endpoint.cell))
            .filter_map(|(index, endpoint)| {
                let state = around.table.endpoint(endpoint.cell)?;
                Some(Candidate {
                    index,
                    identity: endpoint.identity,
                    open: state.open(),
                    healthy: state.is_healthy(),
                    failed_lately: state.failed_within(around.now, upstream.breaker_open),
                })
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

fn breaker(upstream: &Upstream) -> Breaker {
    Breaker {
        failures: upstream.breaker_failures,
        open_for: upstream.breaker_open,
    }
}

/// The state of an endpoint that was tried; `None` when its cell may have been given to another one.
fn state<'a>(around: Surroundings<'a>, attempt: Attempt) -> Option<&'a EndpointState> {
    around
        .endpoints
        .iter()
        .find(|endpoint| endpoint.cell == attempt.cell && endpoint.identity == attempt.identity)
        .and_then(|endpoint| around.table.endpoint(endpoint.cell))
}

/// Tells an endpoint that it gave no usable answer.
fn blame(around: Surroundings<'_>, attempt: Attempt, fault: Fault, proof: Proof) {
    let Some(state) = state(around, attempt) else {
        return;
    };
    match around.upstream {
        Some(upstream) => {
            let breaker = breaker(upstream);
            state.unanswered(around.now, attempt.dialling, fault, proof, breaker);
        }
        None => state.abandoned(attempt.dialling),
    }
}

fn is_away(key: u64, chosen: &ResolvedEndpoint, endpoints: &[ResolvedEndpoint]) -> bool {
    balance::home(key, endpoints)
        .and_then(|home| endpoints.get(home))
        .is_some_and(|home| home.cell != chosen.cell && !are_one_host(home, chosen, endpoints))
}

/// True exactly when two places are the IPv4 and the IPv6 address of one endpoint, as those of `localhost`: the same broker. A
/// name with more addresses than that stands for several brokers.
fn are_one_host(
    one: &ResolvedEndpoint,
    other: &ResolvedEndpoint,
    endpoints: &[ResolvedEndpoint],
) -> bool {
    let is_v4 = |endpoint: &ResolvedEndpoint| match &endpoint.target {
        Target::Tcp(address) => Some(address.is_ipv4()),
        Target::Unix(_) => None,
    };
    let of_name = |endpoint: &&ResolvedEndpoint| endpoint.name() == one.name();
    one.name() == other.name()
        && is_v4(one) != is_v4(other)
        && endpoints.iter().filter(of_name).count() == 2
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
                    tcp_keep_alive: Duration::ZERO,
                    connack_timeout: Duration::from_secs(5),
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

        fn state(&self, cell: u16) -> &EndpointState {
            self.table.endpoint(EndpointCell(cell)).unwrap()
        }

        /// What the shard does when it closes an upstream connection.
        fn close(&self, dial: &Dial) {
            let cell = dial.connected().unwrap();
            self.state(cell.0).disconnected();
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

    fn dial_of(client: u64) -> Dial {
        Dial::new(U, client, Doubter::new(client << 33))
    }

    #[test]
    fn attempts_go_over_other_endpoints_and_then_give_up() {
        let mut world = World::new(2, 3, 100);
        let mut dial = dial_of(1);
        let mut seen = Vec::new();
        loop {
            seen.push(world.port(&mut dial).unwrap());
            match dial.failed(world.around(), Fault::Refused) {
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
        let mut dial = dial_of(1);
        assert_eq!(world.port(&mut dial), Some(1));
        assert_eq!(dial.failed(world.around(), Fault::Refused), Step::Wait);
        let mut other = dial_of(2);
        assert_eq!(
            world.port(&mut other),
            Some(2),
            "the first one's breaker is open"
        );
        assert_eq!(other.failed(world.around(), Fault::Refused), Step::Wait);
        assert_eq!(dial_of(3).next(world.around()), Step::GiveUp);
        // After the pause one probe each, of the whole node.
        world.now = world.now.after(world.upstream.breaker_open);
        let (mut a, mut b, mut c) = (dial_of(4), dial_of(5), dial_of(6));
        assert_eq!((world.port(&mut a), world.port(&mut b)), (Some(1), Some(2)));
        assert_eq!(c.next(world.around()), Step::GiveUp);
        a.abandon(world.around());
        assert_eq!(
            world.port(&mut dial_of(7)),
            Some(1),
            "an abandoned probe is tried again"
        );
        assert_eq!(b.connected(), Some(EndpointCell(1)));
        assert!(world.state(1).is_open(), "a connection is no answer yet");
        b.answered(world.around());
        assert!(!world.state(1).is_open());
    }

    #[test]
    fn unresolved_names_are_waited_for_within_the_attempts() {
        let world = World::new(0, 2, 1);
        let mut dial = dial_of(1);
        assert_eq!(dial.next(world.around()), Step::Wait);
        assert_eq!(dial.next(world.around()), Step::GiveUp);
        let gone = Surroundings {
            upstream: None,
            ..world.around()
        };
        assert_eq!(dial_of(1).next(gone), Step::GiveUp);
    }

    #[test]
    fn a_client_sent_away_from_home_is_a_failover() {
        let mut world = World::new(3, 5, 100);
        world.upstream.balance = Balance::ClientId;
        let mut dial = dial_of(42);
        assert!(matches!(
            dial.next(world.around()),
            Step::Connect {
                failover: false,
                ..
            }
        ));
        assert_eq!(dial.failed(world.around(), Fault::Refused), Step::Wait);
        assert!(matches!(
            dial.next(world.around()),
            Step::Connect { failover: true, .. }
        ));
        dial.abandon(world.around());
        assert!(world.table.is_empty());
    }

    #[test]
    fn the_other_family_of_the_clients_own_endpoint_is_no_failover() {
        let v6 = |last: u16| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, last], 1883));
        let v4 = |last: u8| SocketAddr::from(([127, 0, 0, last], 1883));
        let both = vec![
            ("tcp://localhost:1883", v4(1)),
            ("tcp://localhost:1883", v6(1)),
        ];
        let several = vec![
            ("tcp://brokers:1883", v4(1)),
            ("tcp://brokers:1883", v4(2)),
            ("tcp://brokers:1883", v6(1)),
        ];
        let named = vec![("tcp://a:1883", v4(1)), ("tcp://b:1883", v6(1))];
        for (places, is_failover) in [(both, false), (several, true), (named, true)] {
            let mut world = World::new(0, 5, 100);
            world.upstream.balance = Balance::ClientId;
            let located = places.into_iter().map(|(name, address)| Located {
                upstream: U,
                name: name.into(),
                target: Target::Tcp(address),
            });
            world.directory =
                Directory::build(&Directory::default(), &world.table, located.collect()).unwrap();
            for client in 0..32 {
                let mut dial = dial_of(client);
                dial.next(world.around());
                assert_eq!(dial.failed(world.around(), Fault::Refused), Step::Wait);
                let Step::Connect { failover, .. } = dial.next(world.around()) else {
                    panic!("there is another address");
                };
                assert_eq!(failover, is_failover);
                dial.abandon(world.around());
            }
        }
    }

    /// A dial whose first broker gave no answer, and that asks the second.
    fn sent_elsewhere(world: &World, client: u64, fault: Fault) -> Dial {
        let mut dial = dial_of(client);
        let first = world.port(&mut dial).unwrap();
        assert!(dial.has_another(world.around()));
        world.close(&dial);
        let Step::Connect {
            target: Target::Tcp(second),
            ..
        } = dial.elsewhere(world.around(), fault)
        else {
            panic!("no second chance");
        };
        assert_ne!(first, second.port());
        assert!(!dial.has_another(world.around()), "once");
        dial
    }

    #[test]
    fn the_first_endpoint_is_charged_when_another_one_answers() {
        for fault in [Fault::NoConnack, Fault::ClosedEarly, Fault::Unavailable] {
            let world = World::new(2, 3, 1);
            let mut dial = sent_elsewhere(&world, 1, fault);
            assert_eq!(world.state(0).failures(), 0, "{fault:?}: not yet");
            assert!(dial.connected().is_some());
            dial.answered(world.around());
            assert_eq!(world.state(0).failures(), 1, "{fault:?}");
            assert!(world.state(0).is_open() && !world.state(1).is_open());
            assert_eq!(world.state(0).fault(), Some(fault));
        }
    }

    #[test]
    fn when_both_close_neither_is_charged_whoever_asks() {
        let world = World::new(2, 3, 1);
        for client in 1..=9 {
            let mut dial = sent_elsewhere(&world, client, Fault::ClosedEarly);
            world.close(&dial);
            dial.unanswered(world.around(), Fault::ClosedEarly);
        }
        assert_eq!(
            (world.state(0).failures(), world.state(1).failures()),
            (0, 0)
        );
        assert!(world.state(0).is_silent(), "but it can be seen");
        assert!(world.table.is_empty());
    }

    #[test]
    fn a_client_that_leaves_while_the_second_is_asked_is_no_witness_against_one_that_closed() {
        let world = World::new(2, 3, 1);
        for client in 1..=9 {
            let mut dial = sent_elsewhere(&world, client, Fault::ClosedEarly);
            if client % 2 == 0 {
                dial.abandon(world.around()); // it is being dialled
            } else {
                world.close(&dial);
                dial.forget(world.around()); // it has CONNECT
            }
        }
        assert_eq!(world.state(0).failures(), 0);
        assert!(!world.state(0).is_open() && world.table.is_empty());
    }

    #[test]
    fn when_both_are_silent_several_addresses_are_proof() {
        let world = World::new(2, 3, 1);
        for client in 1..=3 {
            assert!(!world.state(0).is_open() && !world.state(1).is_open());
            let mut dial = sent_elsewhere(&world, client, Fault::NoConnack);
            world.close(&dial);
            dial.unanswered(world.around(), Fault::NoConnack);
        }
        assert!(world.state(0).is_open() && world.state(1).is_open());
    }

    #[test]
    fn without_another_endpoint_several_addresses_are_proof() {
        let world = World::new(1, 3, 1);
        for (client, is_open) in [(1, false), (1, false), (2, false), (3, true)] {
            let mut dial = dial_of(client);
            assert_eq!(world.port(&mut dial), Some(1));
            assert!(!dial.has_another(world.around()));
            world.close(&dial);
            dial.unanswered(world.around(), Fault::ClosedEarly);
            assert_eq!(world.state(0).is_open(), is_open, "client {client}");
        }
    }

    #[test]
    fn the_suspect_is_not_tried_again_and_is_remembered_when_the_other_cannot_be_reached() {
        let world = World::new(2, 2, 100);
        for client in 1..=3 {
            let mut dial = sent_elsewhere(&world, client, Fault::NoConnack);
            assert_eq!(dial.failed(world.around(), Fault::Refused), Step::Wait);
            assert_eq!(world.port(&mut dial), Some(2), "again the other one");
            let over = dial.failed(world.around(), Fault::Refused);
            assert_eq!(over, Step::GiveUp);
            dial.abandon(world.around());
        }
        assert_eq!(world.state(0).failures(), 1, "the third address");
        assert_eq!(world.state(1).failures(), 6);
        assert!(world.table.is_empty());
    }

    #[test]
    fn a_client_that_leaves_blames_nobody_and_gives_the_probe_back() {
        let mut world = World::new(1, 3, 1);
        let mut first = dial_of(1);
        assert_eq!(world.port(&mut first), Some(1));
        first.failed(world.around(), Fault::Refused);
        world.now = world.now.after(world.upstream.breaker_open);
        let mut probe = dial_of(2);
        assert_eq!(world.port(&mut probe), Some(1));
        world.close(&probe);
        probe.forget(world.around());
        assert_eq!(world.state(0).failures(), 1);
        assert_eq!(world.port(&mut dial_of(3)), Some(1));
    }
}
