//! What control and a shard tell each other: two closed lists.
//!
//! Every message that concerns one session carries its [`SessionRef`]; an answer to a session that is over is dropped by
//! its epoch. For each message the line "when the queue is full" says what the sender does.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use sluice_policy::{Generation, ListenerId};

use super::decisions::{DecisionBatch, DecisionSampler};
use super::denials::{DenialList, DenialQuery};
use super::directory::Directory;
use super::kept_out::KeptOut;
use super::notices::NoticeBatch;
use crate::metrics::RuleCounts;
use crate::session::{AuthOutcome, Credentials};

/// A shard by number, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// One session of a shard. The epoch tells a reused slot apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionRef {
    /// Slot number.
    pub slot: u32,
    /// Reuse counter of the slot.
    pub epoch: u32,
}

/// Control to shard. When the queue is full: control keeps the message and sends it again on its next tick.
#[derive(Debug)]
pub enum ToShard {
    /// Accept on this bound, listening, non-blocking socket.
    Listen {
        /// Whose sessions these are.
        listener: ListenerId,
        /// The socket; the shard owns it from here on.
        socket: OwnedFd,
    },
    /// Stop accepting there and close the socket; open sessions stay.
    StopListening {
        /// Which one.
        listener: ListenerId,
    },
    /// The answer to [`ToControl::Authenticate`].
    Authenticated {
        /// Who asked.
        session: SessionRef,
        /// What came out.
        outcome: AuthOutcome,
    },
    /// Where endpoints are from now on. Sent before the policy that needs it is swapped in: a shard looks at the policy
    /// first and into its mailbox second, so it never dials by a policy whose directory it has not seen.
    Directory(Arc<Directory>),
    /// End every session of these; answered with [`ToControl::Kicked`] once all slots were looked at, some in each turn.
    Kick {
        /// Comes back in the answer.
        request: u64,
        /// Whose sessions.
        who: KickWho,
    },
    /// Who is kept out from now on. Sent before the [`ToShard::Kick`] that goes with it.
    KeptOut(Arc<KeptOut>),
    /// List sessions, in order of slots; answered with [`ToControl::Listed`].
    List {
        /// Comes back in the answer.
        request: u64,
        /// First slot to look at; 0 to begin.
        from: u32,
        /// At most this many; the shard also has a bound of its own.
        limit: u32,
        /// Which.
        filter: SessionFilter,
    },
    /// List recent refusals; answered with [`ToControl::Denials`].
    ListDenials {
        /// Comes back in the answer.
        request: u64,
        /// Which.
        query: Box<DenialQuery>,
    },
    /// Accept nothing more, end every session spread over `within`; answered with [`ToControl::Drained`].
    Drain {
        /// Time until whatever is left is closed without a word.
        within: Duration,
        /// What the shard does then. An order to end prevails over an earlier one to stay.
        then: AfterDrain,
    },
    /// Stop a drain after which the shard would stay, and take connections again: the sockets follow as
    /// [`ToShard::Listen`]. What was ended stays ended. Not answered.
    ServeAgain,
    /// Log decisions like this from here on, or none. Not answered.
    LogDecisions(Option<Box<DecisionSampler>>),
    /// Answered with [`ToControl::Reported`].
    Report {
        /// Comes back in the answer.
        request: u64,
    },
}

/// Shard to control.
#[derive(Debug)]
pub enum ToControl {
    /// Verify a password. When the queue is full: the session is told [`AuthOutcome::Busy`] (CONNACK 3 / 0x89), counted.
    Authenticate {
        /// Where the answer goes.
        shard: ShardId,
        /// Where the answer goes.
        session: SessionRef,
        /// The peer, for fairness between addresses.
        peer: IpAddr,
        /// What to verify.
        credentials: Box<Credentials>,
    },
    /// Every session of the shard is judged by `generation`. When the queue is full: sent again in a later turn.
    Acknowledged {
        /// Who.
        shard: ShardId,
        /// What.
        generation: Generation,
    },
    /// The shard judges by `generation` from here on, and counts here how often its rules decide: what it counted before is
    /// final. When the queue is full: sent again in a later turn.
    Counting {
        /// Who.
        shard: ShardId,
        /// By what.
        generation: Generation,
        /// Written by the shard.
        counts: Arc<RuleCounts>,
    },
    /// A [`ToShard::Listen`] failed. When the queue is full: sent again in a later turn.
    ListenFailed {
        /// Who.
        shard: ShardId,
        /// Which listener.
        listener: ListenerId,
        /// What the machine said.
        error: io::Error,
    },
    /// Answer to [`ToShard::Kick`]. When the queue is full: sent again in a later turn.
    Kicked {
        /// Who.
        shard: ShardId,
        /// From the question.
        request: u64,
        /// Sessions ended.
        sessions: u32,
    },
    /// Answer to [`ToShard::List`]. When the queue is full: sent again in a later turn.
    Listed {
        /// Who.
        shard: ShardId,
        /// From the question.
        request: u64,
        /// The sessions.
        sessions: Vec<SessionInfo>,
        /// Where to go on; `None` at the end.
        next: Option<u32>,
    },
    /// Answer to [`ToShard::ListDenials`]. When the queue is full: sent again in a later turn.
    Denials {
        /// Who.
        shard: ShardId,
        /// From the question.
        request: u64,
        /// What was asked for; `None` when the shard keeps none.
        list: Option<Box<DenialList>>,
    },
    /// Answer to [`ToShard::Report`]. When the queue is full: sent again in a later turn.
    Reported {
        /// Who.
        shard: ShardId,
        /// From the question.
        request: u64,
        /// Added latency in microseconds since the shard started.
        latency: Box<Histogram<u64>>,
        /// What the shard holds.
        gauges: ShardGauges,
    },
    /// Sampled decisions, at most one batch for each turn. When the queue is full: left off and counted
    /// ([`DecisionSampler::undelivered`](super::DecisionSampler::undelivered)).
    Decisions {
        /// Who.
        shard: ShardId,
        /// What.
        batch: Box<DecisionBatch>,
    },
    /// Ended sessions, failovers and faults for the log, at most one batch for each turn. When the queue is full: left off and
    /// counted ([`Notices::undelivered`](super::Notices::undelivered)).
    Notices {
        /// Who.
        shard: ShardId,
        /// What.
        batch: Box<NoticeBatch>,
    },
    /// The drain is over: no session is open. When the queue is full: sent again in a later turn.
    Drained {
        /// Who.
        shard: ShardId,
        /// How it went.
        outcome: DrainOutcome,
    },
}

/// Whose sessions are to be ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KickWho {
    /// Those with this client id.
    ClientId(Box<str>),
    /// Those of this verified user.
    Username(Box<str>),
}

/// Which sessions are listed: those that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Only this client id.
    pub client_id: Option<Box<str>>,
    /// Only this verified user.
    pub username: Option<Box<str>>,
}

/// What follows a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDrain {
    /// The shard ends.
    End,
    /// It stays, without sessions, until it is to serve again or to end.
    Stay,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainOutcome {
    /// Sessions open when it began.
    pub sessions: u32,
    /// Of these, closed at the deadline without having finished.
    pub cut_off: u32,
}

/// One line of a session list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Which.
    pub session: SessionRef,
    /// Where it came in.
    pub listener: ListenerId,
    /// Client id, once known.
    pub client_id: Option<Box<str>>,
    /// Verified user name.
    pub username: Option<Box<str>>,
    /// Peer address.
    pub peer: IpAddr,
    /// Age.
    pub open_for: Duration,
}

/// What a shard holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardGauges {
    /// Sessions open (closing ones included).
    pub sessions: u32,
    /// Most sessions.
    pub sessions_max: u32,
    /// Sessions whose CONNECT was accepted by the upstream path (an upstream connection exists).
    pub connected: u32,
    /// Bytes in backlogs.
    pub backlog_bytes: u64,
    /// Authentications waiting for an answer.
    pub authenticating: u32,
    /// Longest recent turn, in microseconds.
    pub loop_lag_micros: u64,
}
