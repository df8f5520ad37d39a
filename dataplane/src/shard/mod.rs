//! One core's event loop: the owner of every session, connection and timer of its thread.
//!
//! A shard shares nothing with other shards but the node's table and the policy pointer, is told things by one mailbox,
//! and runs on any [`Ring`]: the same code serves the kernel and the simulation. Nothing in here may block, and nothing
//! in here knows MQTT.
//!
//! # A turn
//!
//! ```text
//!  ring.turn           submits the last turn's sends, waits, gives events
//!  now, policy         each looked at once
//!  short sends         become backlogs, before anything is added to them
//!  mail                from the control thread
//!  events              one handle_* of a session each; its outputs are carried out at once: bytes become pieces
//!  timers, sweep,      sessions whose time has come; idle sessions under a new policy; the next few of a drain
//!  drain
//!  work                a share of what sessions left for later
//!  flush               one send for each socket that is owed something
//! ```
//!
//! # Invariants
//!
//! - **A leg has pieces or a backlog, never both.** While a backlog exists every new byte is appended to it, so bytes leave
//!   in the order in which the session wrote them.
//! - **The policy is acknowledged after the sweep**: when every session of the shard was judged by it.
//! - **A slot is free exactly when both its connections are closed**; its place in the node's counts is given back then.
//!
//! | file | noun |
//! |---|---|
//! | `accept.rs` | new connections, and why they are refused |
//! | `strangers.rs` | connections that have not said who they are, and which gives way |
//! | `dispatch.rs` | event to session, outputs to operations, the flush |
//! | `pressure.rs`, `backlog.rs` | what sockets do not take: backlogs, holding back, budgets, stalls |
//! | `connect.rs` | the way to a broker that answers; parked passwords |
//! | `close.rs` | send, shutdown, discard, close |
//! | `deadlines.rs`, `timers.rs` | when a session is looked at again |
//! | `mail.rs` | what control wants |
//! | `rules.rs` | counting how often each rule decides |
//! | `sweep.rs`, `drain.rs`, `kick.rs` | idle sessions under a new policy; the end; whom an operator ends |
//! | `work.rs` | what sessions left for later turns |
//! | `slots.rs`, `leg.rs`, `outbox.rs` | where things are kept |
//! | `denials.rs` | refusals: those before there is a session, their memory, who asks for them |
//! | `lent.rs`, `lag.rs`, `random.rs` | what sessions are lent; how long turns take; a seeded generator |

mod accept;
mod backlog;
mod close;
mod connect;
mod deadlines;
mod denials;
mod dispatch;
mod drain;
mod kick;
mod lag;
mod leg;
mod lent;
mod mail;
mod outbox;
mod pressure;
mod random;
mod rules;
mod slots;
mod strangers;
mod sweep;
mod timers;
mod work;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use sluice_policy::{ListenerId, PolicyCache, PolicyHandle, Snapshot};

use crate::clock::Time;
use crate::metrics::Counters;
use crate::node::{
    DecisionSampler, DenialRing, Directory, Inbox, KeptOut, Notices, Post, ShardId, Table,
    ToControl, ToShard,
};
use crate::ring::{Event, Piece, Ring, SocketId};
use crate::session::Side;

use drain::Drain;
use kick::Kicks;
use lag::Lag;
use lent::Lent;
use mail::Outgoing;
use outbox::Outbox;
use pressure::Budget;
use random::Random;
use slots::Slots;
use strangers::Strangers;
use sweep::Sweep;
use timers::Wheel;
use work::Work;

/// Bounds of a shard. All of them are reached in tests.
#[derive(Clone, Debug)]
pub struct ShardLimits {
    /// Sessions at once (closing ones included).
    pub sessions_max: u32,
    /// Bytes in backlogs of all sessions, and what sessions keep beyond a usual amount; above three quarters of it every sender is held back early, above it the
    /// largest sessions are ended.
    pub backlog_bytes_max: u64,
    /// New connections are refused while turns take longer than this.
    pub turn_time_max: Duration,
    /// Passwords being verified at once; one more is told to come back.
    pub authenticating_max: u32,
    /// How long a password may take.
    pub authenticate_timeout: Duration,
    /// A stranger is left alone for so long; after it, it may have to give way to a newcomer.
    pub strangers_grace: Duration,
    /// Bytes of CONNECTs that are kept until CONNACK, for another endpoint; one more goes without a second chance.
    pub connects_kept_bytes_max: u64,
    /// Memory for counting how often rules decide; part of the budget for backlogs. 0: they are not counted.
    pub rule_counts_bytes_max: u64,
}

impl Default for ShardLimits {
    fn default() -> Self {
        Self {
            sessions_max: 100_000,
            backlog_bytes_max: 256 << 20,
            turn_time_max: Duration::from_millis(250),
            authenticating_max: 512,
            authenticate_timeout: Duration::from_secs(20),
            strangers_grace: Duration::from_secs(2),
            connects_kept_bytes_max: 8 << 20,
            rule_counts_bytes_max: 32 << 20,
        }
    }
}

/// What a shard is made of besides its ring.
pub struct ShardParts {
    /// Its number.
    pub shard: ShardId,
    /// What control tells it.
    pub inbox: Inbox<ToShard>,
    /// What it tells control.
    pub control: Post<ToControl>,
    /// The policy pointer.
    pub policy: PolicyHandle,
    /// The node's counts.
    pub table: Arc<Table>,
    /// Its own counters.
    pub counters: Arc<Counters>,
    /// Its bounds.
    pub limits: ShardLimits,
    /// Which decisions are logged; `None` for none.
    pub decisions: Option<DecisionSampler>,
    /// Where refusals are kept; `None`: nowhere.
    pub denials: Option<DenialRing>,
    /// Seed of its generator.
    pub seed: u64,
}

/// See the module documentation.
pub struct Shard<R: Ring> {
    policy: PolicyCache,
    events: Vec<Event>,
    core: Core<R>,
}

/// Everything but the policy pointer, so that a turn can borrow the snapshot while it changes the rest.
struct Core<R: Ring> {
    shard: ShardId,
    ring: R,
    limits: ShardLimits,
    table: Arc<Table>,
    directory: Arc<Directory>,
    counters: Arc<Counters>,
    slots: Slots,
    strangers: Strangers,
    /// By socket index: whose it is. Verified against the leg, so stale entries are harmless.
    owners: Vec<Owner>,
    wheel: Wheel,
    /// Reused between turns.
    due: Vec<u32>,
    lent: Lent,
    outbox: Outbox,
    pieces: Vec<Piece>,
    budget: Budget,
    /// Added latency in microseconds.
    latency: Histogram<u64>,
    inbox: Inbox<ToShard>,
    outgoing: Outgoing,
    /// For the log: ended sessions, failovers, faults of brokers.
    notices: Notices,
    sweep: Sweep,
    drain: Option<Drain>,
    kicks: Kicks,
    kept_out: Arc<KeptOut>,
    work: Work,
    authenticating: u32,
    connected: u32,
    /// Bytes of CONNECTs that are kept until CONNACK.
    connects_kept: u64,
    /// Connections to brokers that were left, until they are reset; the oldest first.
    leaving: VecDeque<(Time, SocketId)>,
    /// What the budget counts for the refusals that are kept.
    denial_bytes: usize,
    /// Counts dials; round robin goes by it.
    dials: u64,
    latency_budget_micros: u32,
    lag: Lag,
    /// Where this shard accepts.
    listening: Vec<ListenerId>,
}

/// Whose socket this is.
#[derive(Clone, Copy)]
struct Owner {
    slot: u32,
    side: Side,
}

/// What is looked at once per turn.
#[derive(Clone, Copy)]
struct Turn<'a> {
    now: Time,
    snapshot: &'a Snapshot,
}

impl<R: Ring> Shard<R> {
    /// A shard on this ring; made on the thread that runs it.
    pub fn new(ring: R, parts: ShardParts) -> io::Result<Self> {
        let waker = ring.waker();
        parts.inbox.set_waker(Arc::clone(&waker));
        waker.wake(); // for what was queued before: the first turn would wait for something else
        let now = ring.now();
        Ok(Self {
            policy: parts.policy.cache(),
            events: Vec::new(),
            core: Core {
                shard: parts.shard,
                slots: Slots::new(parts.limits.sessions_max),
                strangers: Strangers::new(parts.limits.strangers_grace),
                budget: Budget::new(parts.limits.backlog_bytes_max),
                limits: parts.limits,
                ring,
                table: parts.table,
                directory: Arc::default(),
                lent: Lent::new(
                    Arc::clone(&parts.counters),
                    Random::new(parts.seed),
                    parts.decisions,
                    parts.denials,
                ),
                counters: parts.counters,
                owners: Vec::new(),
                wheel: Wheel::new(now),
                due: Vec::new(),
                outbox: Outbox::default(),
                pieces: Vec::new(),
                latency: latency_histogram()?,
                inbox: parts.inbox,
                outgoing: Outgoing::new(parts.control),
                notices: Notices::default(),
                sweep: Sweep::default(),
                drain: None,
                kicks: Kicks::new(),
                kept_out: Arc::default(),
                work: Work::default(),
                authenticating: 0,
                connected: 0,
                connects_kept: 0,
                leaving: VecDeque::new(),
                denial_bytes: 0,
                dials: 0,
                latency_budget_micros: 0,
                lag: Lag::default(),
                listening: Vec::new(),
            },
        })
    }

    /// Turns until the shard was drained and has said so, or its engine fails.
    pub fn run(mut self) -> io::Result<()> {
        while !self.is_finished() {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn; see the module documentation.
    pub fn turn(&mut self) -> io::Result<()> {
        let core = &mut self.core;
        let until = core.until();
        core.ring
            .turn(until, core.latency_budget_micros, &mut self.events)?;
        let began = core.ring.now();
        let flushed = match self.policy.load() {
            Some(snapshot) => {
                core.notice(snapshot);
                let now = began;
                core.serve(Turn { now, snapshot }, &mut self.events)
            }
            None => {
                core.refuse_all(&mut self.events);
                0
            }
        };
        core.weigh_denials();
        core.post_decisions();
        core.post_notices();
        core.outgoing.deliver();
        let ended = core.ring.now();
        core.record_latency(began, ended, flushed);
        let took = ended.since(began);
        core.lag.took(ended, took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        core.counters.took_turn(micros);
        Ok(())
    }

    /// True exactly when the shard was drained and control has been told.
    pub fn is_finished(&self) -> bool {
        self.core.drain.as_ref().is_some_and(Drain::is_the_end) && self.core.outgoing.is_empty()
    }

    /// Sessions open, closing ones included.
    pub fn sessions(&self) -> u32 {
        self.core.slots.open()
    }

    /// Bytes in backlogs.
    pub fn backlog_bytes(&self) -> u64 {
        self.core.budget.bytes()
    }

    /// Bytes of CONNECTs that are kept for another endpoint.
    pub fn connects_kept_bytes(&self) -> u64 {
        self.core.connects_kept
    }

    /// The engine, for tests that play the network.
    pub fn ring_mut(&mut self) -> &mut R {
        &mut self.core.ring
    }
}

impl<R: Ring> Core<R> {
    /// When the next turn must end at the latest.
    fn until(&self) -> Option<Time> {
        if self.sweep.is_pending()
            || self.work.is_left()
            || !self.kicks.is_empty()
            || self.outgoing.has_read_too_much()
        {
            return Some(self.ring.now());
        }
        let retry = self
            .outgoing
            .retries_in()
            .map(|pause| self.ring.now().after(pause));
        let drain = self
            .drain
            .as_ref()
            .and_then(|drain| drain.next(self.slots.open()));
        let leaving = self.leaving.front().map(|(until, _)| *until);
        [self.wheel.next(), retry, drain, leaving]
            .into_iter()
            .flatten()
            .min()
    }

    /// Everything of a turn that has a policy; tells how many sockets were given something to send.
    fn serve(&mut self, turn: Turn<'_>, events: &mut Vec<Event>) -> u64 {
        self.lent.effort = work::arriving();
        let mut events_left = events.drain(..).peekable();
        while let Some(event) = events_left
            .next_if(|event| matches!(event, Event::SendShort { .. } | Event::SendFailed { .. }))
        {
            self.dispatch(turn, event);
        }
        self.read_mail(Some(turn));
        for event in events_left {
            self.dispatch(turn, event);
        }
        self.check_timers(turn);
        self.reset_left(turn.now);
        self.sweep(turn);
        self.kick(Some(turn));
        self.drain(turn);
        self.work(turn);
        self.weigh_rules();
        self.relieve(turn);
        self.flush(turn)
    }

    /// Without a policy nobody is let in: there is nothing to judge them by.
    fn refuse_all(&mut self, events: &mut Vec<Event>) {
        self.read_mail(None);
        for event in events.drain(..) {
            self.refuse_event(&event);
        }
        self.kick(None);
        self.drain_without_policy();
    }
}

/// From 1 us to 60 s at two digits: about 22 KiB.
fn latency_histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000, 2).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{AfterDrain, TableConfig, mailbox};
    use crate::ring::{Epoll, RingConfig, Uring};

    /// Tells a shard to drain before there is a shard, and runs it.
    fn drained_before_it_began<R: Ring>(ring: R) {
        let (post, inbox) = mailbox(1);
        let (control, told) = mailbox(4);
        let within = Duration::ZERO;
        assert!(
            post.send(ToShard::Drain {
                within,
                then: AfterDrain::End
            })
            .is_ok()
        );
        let parts = ShardParts {
            shard: ShardId(0),
            inbox,
            control,
            policy: PolicyHandle::default(),
            table: Arc::new(Table::new(&TableConfig::default())),
            counters: Arc::default(),
            limits: ShardLimits {
                sessions_max: 1,
                ..ShardLimits::default()
            },
            decisions: None,
            denials: None,
            seed: 0,
        };
        let shard = Shard::new(ring, parts).expect("a shard");
        shard.run().expect("it ends by its drain");
        assert!(matches!(told.take(), Some(ToControl::Drained { .. })));
    }

    #[test]
    fn what_was_sent_before_the_shard_began_is_seen() {
        let config = RingConfig {
            sockets_max: 2,
            buffers: 4,
            buffer_bytes: 4096,
        };
        drained_before_it_began(Epoll::new(&config).expect("epoll runs everywhere"));
        if let Ok(ring) = Uring::new(&config) {
            drained_before_it_began(ring);
        }
    }
}
