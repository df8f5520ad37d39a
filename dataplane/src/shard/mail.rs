//! What control wants, and what the shard tells it.
//!
//! Owns the outgoing messages that did not fit: they wait here, bounded, because no new order is read while they do.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use sluice_policy::ListenerId;

use crate::clock::Time;
use crate::metrics::Counter;
use crate::node::{
    Post, SessionFilter, SessionInfo, SessionRef, ShardGauges, ToControl, ToShard, Undelivered,
};
use crate::ring::{ListenSlot, Ring};

use super::{Core, Turn};

/// Messages that may wait for room; as many orders may be answered before the rest of the mail waits.
const WAITING_MAX: usize = 16;
/// Orders read in one turn: a flood of orders must not hold up traffic.
const ORDERS_MAX: usize = 256;
/// When a full queue is tried again. Control empties it within microseconds unless it is in trouble.
const RETRY: Duration = Duration::from_millis(20);
/// Slots looked at for one list: more is asked for again.
const LIST_MAX: u32 = 4096;

/// Messages to control.
pub(super) struct Outgoing {
    post: Post<ToControl>,
    waiting: VecDeque<ToControl>,
    /// True exactly when mail was left unread in the last turn.
    left_unread: bool,
}

impl Outgoing {
    pub(super) fn new(post: Post<ToControl>) -> Self {
        Self {
            post,
            waiting: VecDeque::new(),
            left_unread: false,
        }
    }

    /// Sends something that has a fallback of its own: it does not wait, and does not overtake what waits either way,
    /// because nothing that waits concerns it.
    pub(super) fn ask(&self, message: ToControl) -> Result<(), Undelivered<ToControl>> {
        self.post.send(message)
    }

    /// Sends something that must arrive.
    pub(super) fn tell(&mut self, message: ToControl) {
        self.waiting.push_back(message);
    }

    /// Sends what waits, as far as there is room. Without a reader there is nobody to tell: it is dropped.
    pub(super) fn deliver(&mut self) {
        while let Some(message) = self.waiting.pop_front() {
            match self.post.send(message) {
                Ok(()) | Err(Undelivered::Gone(_)) => {}
                Err(Undelivered::Full(message)) => {
                    self.waiting.push_front(message);
                    break;
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn has_read_too_much(&self) -> bool {
        self.left_unread && self.waiting.len() < WAITING_MAX
    }

    pub(super) fn retries_in(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(RETRY)
    }
}

impl<R: Ring> Core<R> {
    /// Carries out what is in the mailbox. Without a policy there are no sessions, and orders about them find none.
    pub(super) fn read_mail(&mut self, turn: Option<Turn<'_>>) {
        self.outgoing.left_unread = false;
        for read in 0.. {
            let answers = self.outgoing.waiting.len() + self.kicks.len();
            if read == ORDERS_MAX || answers >= WAITING_MAX {
                self.outgoing.left_unread = true;
                return;
            }
            let Some(order) = self.inbox.take() else {
                return;
            };
            self.obey(turn, order);
        }
    }

    fn obey(&mut self, turn: Option<Turn<'_>>, order: ToShard) {
        match order {
            ToShard::Listen { listener, socket } => {
                if self.drain.is_some() {
                    return; // dropped, and closed with it
                }
                self.listen(listener, socket);
            }
            ToShard::StopListening { listener } => {
                self.listening.retain(|other| *other != listener);
                self.ring.stop_listening(ListenSlot(listener.0));
            }
            ToShard::Directory(directory) => self.directory = directory,
            ToShard::Authenticated { session, outcome } => match (turn, self.slots.find(session)) {
                (Some(turn), Some(slot)) => self.authenticated(turn, slot, outcome),
                (Some(_) | None, Some(_) | None) => {
                    self.counters.add(Counter::AuthenticateLate, 1);
                }
            },
            ToShard::Kick { request, who } => self.begin_kick(request, who),
            ToShard::KeptOut(kept_out) => self.kept_out = kept_out,
            ToShard::List {
                request,
                from,
                limit,
                filter,
            } => self.list(request, from, limit, &filter),
            ToShard::Drain { within, then } => self.begin_drain(within, then),
            ToShard::ServeAgain => self.end_drain(),
            ToShard::ListDenials { request, query } => self.list_denials(request, &query),
            ToShard::LogDecisions(sampler) => self.lent.log_decisions(sampler.map(|new| *new)),
            ToShard::Report { request } => self.report(request),
        }
    }

    /// At most one batch for each turn; what finds no room is counted as left off.
    pub(super) fn post_decisions(&mut self) {
        let Some(batch) = self.lent.take_decisions() else {
            return;
        };
        let (shard, batch) = (self.shard, Box::new(batch));
        if let Err(undelivered) = self.outgoing.ask(ToControl::Decisions { shard, batch })
            && let ToControl::Decisions { batch, .. } = undelivered.into_inner()
        {
            self.lent.decisions_undelivered(&batch);
        }
    }

    /// The same for what the log is told of single sessions.
    pub(super) fn post_notices(&mut self) {
        let Some(batch) = self.notices.take(self.ring.now()) else {
            return;
        };
        let (shard, batch) = (self.shard, Box::new(batch));
        if let Err(undelivered) = self.outgoing.ask(ToControl::Notices { shard, batch })
            && let ToControl::Notices { batch, .. } = undelivered.into_inner()
        {
            self.notices.undelivered(&batch);
        }
    }

    fn listen(&mut self, listener: ListenerId, socket: OwnedFd) {
        match self.ring.listen(ListenSlot(listener.0), socket) {
            Ok(()) => self.listening.push(listener),
            Err(error) => {
                let shard = self.shard;
                self.outgoing.tell(ToControl::ListenFailed {
                    shard,
                    listener,
                    error,
                });
            }
        }
    }

    pub(super) fn stop_accepting(&mut self) {
        for listener in self.listening.drain(..) {
            self.ring.stop_listening(ListenSlot(listener.0));
        }
    }

    fn list(&mut self, request: u64, from: u32, limit: u32, filter: &SessionFilter) {
        let now = self.ring.now();
        let limit = limit.clamp(1, LIST_MAX) as usize;
        let mut sessions = Vec::new();
        let mut next = None;
        for slot in from..self.slots.used() {
            if sessions.len() == limit || slot - from >= LIST_MAX {
                next = Some(slot);
                break;
            }
            if self.is_listed(slot, filter) {
                sessions.extend(self.describe(slot, now));
            }
        }
        let shard = self.shard;
        self.outgoing.tell(ToControl::Listed {
            shard,
            request,
            sessions,
            next,
        });
    }

    fn is_listed(&self, slot: u32, filter: &SessionFilter) -> bool {
        let Some(session) = self.slots.get(slot).and_then(|open| open.session.as_ref()) else {
            return false;
        };
        let is = |wanted: &Option<Box<str>>, found: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == found
        };
        is(&filter.client_id, session.client_id()) && is(&filter.username, session.username())
    }

    fn describe(&self, slot: u32, now: Time) -> Option<SessionInfo> {
        let session: SessionRef = self.slots.name(slot)?;
        let open = self.slots.get(slot)?;
        let state = open.session.as_ref()?;
        Some(SessionInfo {
            session,
            listener: open.listener,
            client_id: state.client_id().map(Into::into),
            username: state.username().map(Into::into),
            peer: open.peer,
            open_for: now.since(open.opened),
        })
    }

    fn report(&mut self, request: u64) {
        let now = self.ring.now();
        if let Some(denials) = self.lent.denials.as_mut() {
            denials.expire(now);
        }
        let gauges = ShardGauges {
            sessions: self.slots.open(),
            sessions_max: self.limits.sessions_max,
            connected: self.connected,
            backlog_bytes: self.budget.bytes(),
            authenticating: self.authenticating,
            loop_lag_micros: u64::try_from(self.lag.at(now).as_micros()).unwrap_or(u64::MAX),
        };
        let shard = self.shard;
        let latency = Box::new(self.latency.clone());
        self.outgoing.tell(ToControl::Reported {
            shard,
            request,
            latency,
            gauges,
        });
    }
}
