//! What a session waits for: the answer to a password, its upstream connection, or the broker's answer to CONNECT.
//!
//! Owns the carrying out of a [`Dial`]; which endpoint and how often is decided there. A session waits for one of the three
//! at a time.

use std::time::Duration;

use sluice_policy::UpstreamId;

use crate::metrics::Counter;
use crate::node::{Address, Directory, Fault, Table, ToControl, Undelivered};
use crate::ring::{KeepAlive, Ring, SocketId};
use crate::session::{AuthOutcome, Credentials, Dialled, Session, Side, Unanswered};
use crate::upstream::Dial;
use crate::upstream::dial::{Step, Surroundings};

use super::close::write_stall_timeout;
use super::dispatch::Follow;
use super::leg::{Leg, Reading};
use super::slots::Waiting;
use super::{Core, Turn};

impl<R: Ring> Core<R> {
    /// Hands a password to the control thread; the session is told at once when there is no room.
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
        if self.is_kept_out(turn, slot) {
            return Some(Follow::KeptOut);
        }
        self.dials = self.dials.wrapping_add(1);
        self.introduce(slot);
        let open = self.slots.get_mut(slot)?;
        let doubter = self.table.doubter(Address::from(open.peer));
        let dial = Dial::new(upstream, key, doubter).kept(kept);
        open.waiting = Some(Box::new(Waiting::Dial(dial)));
        self.attempt(turn, slot)
    }

    /// The next attempt of a dial that waits for one.
    pub(super) fn attempt(&mut self, turn: Turn<'_>, slot: u32) -> Option<Follow> {
        self.step(turn, slot, |dial, around| dial.next(around))
    }

    /// The broker that was left is not to be the last one that is asked.
    pub(super) fn dial_elsewhere(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        fault: Fault,
    ) -> Option<Follow> {
        self.step(turn, slot, |dial, around| dial.elsewhere(around, fault))
    }

    /// Takes a step of a dial, and carries it out.
    fn step(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        step: impl for<'a> FnOnce(&mut Dial, Surroundings<'a>) -> Step<'a>,
    ) -> Option<Follow> {
        let open = self.slots.get_mut(slot)?;
        let Some(Waiting::Dial(dial)) = open.waiting.as_deref_mut() else {
            return None;
        };
        let seen = (self.dials, self.lent.random.next());
        let around = around(turn, dial, &self.directory, &self.table, seen);
        let (target, name, failover) = match step(dial, around) {
            Step::Connect {
                target,
                name,
                failover,
            } => (target, name, failover),
            Step::Wait => return None,
            Step::GiveUp => return self.give_up(turn, slot),
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
        let mut connecting = self.ring.connect(target);
        // There are two sockets for each session, and a broker that is being left has a third for a while.
        if connecting.is_err()
            && let Some((_, left)) = self.leaving.pop_front()
        {
            self.ring.reset(left);
            connecting = self.ring.connect(target);
        }
        let Ok(socket) = connecting else {
            // No socket left on this shard: not the endpoint's fault, and waiting would hold a slot that is missing.
            self.counters.add(Counter::DialNoSocket, 1);
            return self.give_up(turn, slot);
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
        let Some(Waiting::Dial(dial)) = open
            .waiting
            .take_if(|waiting| waiting.is_dial())
            .map(|waiting| *waiting)
        else {
            return;
        };
        let around = around(turn, &dial, &self.directory, &self.table, (self.dials, 0));
        let bytes = open.session.as_ref().map_or(0, Session::kept_connect_bytes) as u64;
        let has_another = dial.has_another(around);
        let has_room = self.connects_kept + bytes <= self.limits.connects_kept_bytes_max;
        if has_another && !has_room {
            self.counters.add(Counter::SecondChanceNoRoom, 1);
        }
        let has_another = has_another && has_room;
        let kept_bytes = if has_another { bytes } else { 0 };
        self.connects_kept += kept_bytes;
        // What counts is the upstream that was dialled; the listener may have another one by now.
        let dialled = around.upstream;
        let another_after =
            has_another.then(|| dialled.map_or(Duration::MAX, |upstream| upstream.connack_timeout));
        let stall = write_stall_timeout(turn.snapshot, open.listener);
        let idle = dialled.map_or(Duration::ZERO, |upstream| upstream.tcp_keep_alive);
        if let Some(keep_alive) = KeepAlive::new(idle, stall) {
            self.ring.keep_alive(socket, keep_alive);
        }
        open.cell = dial.connected();
        open.waiting = Some(Box::new(Waiting::Connack { dial, kept_bytes }));
        open.up.reading = Reading::Idle;
        self.connected += 1;
        self.call(turn, slot, |session, context| {
            session.handle_dialled(context, Dialled::Connected { another_after });
        });
    }

    /// The broker gave a clear answer to CONNECT.
    pub(super) fn answered(&mut self, turn: Turn<'_>, slot: u32) {
        if let Some(mut dial) = self.take_asked(slot) {
            let around = around(turn, &dial, &self.directory, &self.table, (self.dials, 0));
            dial.answered(around);
        }
    }

    /// The dial of a session that waits for CONNACK, which it does no longer.
    fn take_asked(&mut self, slot: u32) -> Option<Dial> {
        let open = self.slots.get_mut(slot)?;
        let asked = open.waiting.take_if(|waiting| waiting.is_connack())?;
        let Waiting::Connack { dial, kept_bytes } = *asked else {
            return None;
        };
        self.connects_kept -= kept_bytes;
        Some(dial)
    }

    /// The broker gave no usable answer to CONNECT: its connection is closed, and perhaps another one is asked.
    pub(super) fn leave_upstream(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        why: Unanswered,
        says_goodbye: bool,
        again: bool,
    ) -> Option<Follow> {
        match why {
            Unanswered::Silent | Unanswered::Broken(_) => {
                self.abort_upstream(turn.now, slot, says_goodbye);
            }
            Unanswered::Closed | Unanswered::Unavailable(_) => self.drop_leg(slot, Side::Upstream),
        }
        let fault = match why {
            Unanswered::Silent => Fault::NoConnack,
            Unanswered::Closed => Fault::ClosedEarly,
            Unanswered::Unavailable(_) => Fault::Unavailable,
            Unanswered::Broken(_) => Fault::NotMqtt,
        };
        let mut dial = self.take_asked(slot)?;
        if again {
            let open = self.slots.get_mut(slot)?;
            open.waiting = Some(Box::new(Waiting::Dial(dial)));
            return self.dial_elsewhere(turn, slot, fault);
        }
        let around = around(turn, &dial, &self.directory, &self.table, (self.dials, 0));
        dial.unanswered(around, fault);
        None
    }

    pub(super) fn upstream_failed(&mut self, turn: Turn<'_>, socket: SocketId, errno: i32) {
        self.ring.close(socket);
        let Some((slot, Side::Upstream)) = self.owner(socket) else {
            return;
        };
        if let Some(open) = self.slots.get_mut(slot) {
            open.up.socket = None;
        }
        self.attempt_failed(turn, slot, Fault::of_errno(errno));
    }

    /// An attempt failed or took too long; its socket is closed.
    pub(super) fn attempt_failed(&mut self, turn: Turn<'_>, slot: u32, fault: Fault) {
        self.counters.add(Counter::DialFailed, 1);
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let Some(Waiting::Dial(dial)) = open.waiting.as_deref_mut() else {
            return;
        };
        let seen = (self.dials, self.lent.random.next());
        let around = around(turn, dial, &self.directory, &self.table, seen);
        if dial.failed(around, fault) != Step::GiveUp {
            self.schedule(turn.now, slot);
        } else if self.give_up(turn, slot).is_some() {
            self.call(turn, slot, |session, context| {
                session.handle_dialled(context, Dialled::Failed);
            });
        }
    }

    fn give_up(&mut self, turn: Turn<'_>, slot: u32) -> Option<Follow> {
        self.stop_waiting(turn, slot);
        Some(Follow::Dialled(Dialled::Failed))
    }
}

/// What a dial looks at; `seen` is how many dials there were, and a random number.
pub(super) fn around<'a>(
    turn: Turn<'a>,
    dial: &Dial,
    directory: &'a Directory,
    table: &'a Table,
    seen: (u64, u64),
) -> Surroundings<'a> {
    Surroundings {
        now: turn.now,
        upstream: turn.snapshot.upstream(dial.upstream()),
        endpoints: directory.endpoints(dial.upstream()),
        table,
        turn: seen.0,
        random: seen.1,
    }
}
