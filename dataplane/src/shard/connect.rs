//! What a session waits for: its upstream connection, or the answer to a password.
//!
//! Owns the carrying out of a [`Dial`]; which endpoint and how often is decided there. A session waits for one of the two
//! at a time.

use sluice_policy::UpstreamId;

use crate::metrics::Counter;
use crate::node::{ToControl, Undelivered};
use crate::ring::{Ring, SocketId};
use crate::session::{AuthOutcome, Credentials, Session, Side};
use crate::upstream::Dial;
use crate::upstream::dial::{Step, Surroundings};

use super::dispatch::Follow;
use super::leg::{Leg, Reading};
use super::slots::Waiting;
use super::{Core, Turn};

impl<R: Ring> Core<R> {
    /// Hands a password to the control thread; the session is told at once when nobody can take it.
    pub(super) fn park(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        credentials: Box<Credentials>,
    ) -> Option<Follow> {
        let busy = Some(Follow::Authenticated(AuthOutcome::Busy));
        if self.authenticating >= self.limits.authenticating_max {
            self.counters.add(Counter::AuthenticateRefused, 1);
            return busy;
        }
        let session = self.slots.name(slot)?;
        let open = self.slots.get_mut(slot)?;
        let question = ToControl::Authenticate {
            shard: self.shard,
            session,
            peer: open.peer,
            credentials,
        };
        match self.outgoing.ask(question) {
            Ok(()) => {
                let until = turn.now.after(self.limits.authenticate_timeout);
                open.waiting = Some(Box::new(Waiting::Password(until)));
                self.authenticating += 1;
                self.introduce(slot);
                None
            }
            Err(Undelivered::Full(_) | Undelivered::Gone(_)) => {
                self.counters.add(Counter::AuthenticateRefused, 1);
                busy
            }
        }
    }

    /// The answer to a password, if the session still waits for it.
    pub(super) fn authenticated(&mut self, turn: Turn<'_>, slot: u32, outcome: AuthOutcome) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        if !matches!(open.waiting.as_deref(), Some(Waiting::Password(_))) {
            return;
        }
        open.waiting = None;
        self.authenticating = self.authenticating.saturating_sub(1);
        self.call(turn, slot, |session, context| {
            session.handle_authenticated(context, outcome);
        });
    }

    /// Begins the way to an upstream.
    pub(super) fn dial(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        upstream: UpstreamId,
        key: u64,
        kept: bool,
    ) -> Option<Follow> {
        self.dials = self.dials.wrapping_add(1);
        self.introduce(slot);
        let open = self.slots.get_mut(slot)?;
        open.waiting = Some(Box::new(Waiting::Dial(Dial::new(upstream, key).kept(kept))));
        self.attempt(turn, slot)
    }

    /// The next attempt of a dial that waits for one.
    pub(super) fn attempt(&mut self, turn: Turn<'_>, slot: u32) -> Option<Follow> {
        let open = self.slots.get_mut(slot)?;
        let Some(Waiting::Dial(dial)) = open.waiting.as_deref_mut() else {
            return None;
        };
        let around = Surroundings {
            now: turn.now,
            upstream: turn.snapshot.upstream(dial.upstream()),
            endpoints: self.directory.endpoints(dial.upstream()),
            table: &self.table,
            turn: self.dials,
            random: self.lent.random.next(),
        };
        let (target, name, failover) = match dial.next(around) {
            Step::Connect {
                target,
                name,
                failover,
            } => (target, name, failover),
            Step::Wait => return None,
            Step::GiveUp => return self.give_up(slot),
        };
        self.counters.add(Counter::DialAttempts, 1);
        self.counters
            .add(Counter::DialFailover, u64::from(failover));
        if failover && dial.is_kept() {
            self.counters.add(Counter::DialFailoverKept, 1);
            let client_id = open.session.as_ref().and_then(Session::client_id);
            let upstream = around.upstream.map_or("", |upstream| &upstream.name);
            self.notices
                .failover(turn.now, client_id.unwrap_or_default(), upstream, name);
        }
        let Ok(socket) = self.ring.connect(target) else {
            // No socket left on this shard: not the endpoint's fault, and waiting would hold a slot that is missing.
            dial.abandon(&self.table);
            self.counters.add(Counter::DialNoSocket, 1);
            return self.give_up(slot);
        };
        open.up = Leg::none();
        open.up.socket = Some(socket);
        self.set_owner(socket, slot, Side::Upstream);
        None
    }

    pub(super) fn upstream_connected(&mut self, turn: Turn<'_>, socket: SocketId) {
        let Some((slot, Side::Upstream)) = self.owner(socket) else {
            return;
        };
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let Some(Waiting::Dial(dial)) = open.waiting.as_deref_mut() else {
            return;
        };
        open.cell = dial.connected(&self.table);
        open.waiting = None;
        open.up.reading = Reading::Idle;
        self.connected += 1;
        self.call(turn, slot, |session, context| {
            session.handle_dialled(context, true)
        });
    }

    /// The ring has closed the socket already.
    pub(super) fn upstream_failed(&mut self, turn: Turn<'_>, socket: SocketId) {
        let Some((slot, Side::Upstream)) = self.owner(socket) else {
            return;
        };
        if let Some(open) = self.slots.get_mut(slot) {
            open.up.socket = None;
        }
        self.attempt_failed(turn, slot);
    }

    /// An attempt failed or took too long; its socket is closed.
    pub(super) fn attempt_failed(&mut self, turn: Turn<'_>, slot: u32) {
        self.counters.add(Counter::DialFailed, 1);
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let Some(Waiting::Dial(dial)) = open.waiting.as_deref_mut() else {
            return;
        };
        let around = Surroundings {
            now: turn.now,
            upstream: turn.snapshot.upstream(dial.upstream()),
            endpoints: self.directory.endpoints(dial.upstream()),
            table: &self.table,
            turn: self.dials,
            random: self.lent.random.next(),
        };
        if dial.failed(around) != Step::GiveUp {
            self.schedule(turn.now, slot);
        } else if self.give_up(slot).is_some() {
            self.call(turn, slot, |session, context| {
                session.handle_dialled(context, false);
            });
        }
    }

    fn give_up(&mut self, slot: u32) -> Option<Follow> {
        self.slots.get_mut(slot)?.waiting = None;
        Some(Follow::Dialled(false))
    }
}
