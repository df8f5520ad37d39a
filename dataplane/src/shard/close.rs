//! How a close is carried out: send what is owed, shutdown(write), discard until FIN or two seconds, close.
//!
//! Owns the end of connections and the return of everything a session had. Closing a socket with unread bytes would
//! reset the connection, and a reset may destroy bytes on their way to the peer: its last message, or our reason.

use std::time::Duration;

use sluice_policy::Snapshot;
use sluice_wire::mqtt::Violation;

use crate::clock::Time;
use crate::metrics::Counter;
use crate::ring::Ring;
use crate::session::{Cause, Reason, Session, Side};

use super::connect::around;
use super::leg::{Chain, Closing, Leg, Reading};
use super::slots::Waiting;
use super::strangers::Stranger;
use super::{Core, Turn};

/// How long a peer may take to send its FIN.
const LINGER: Duration = Duration::from_secs(2);
/// Connections to brokers that were left and may still close by themselves; one more is reset at once.
const LEAVING_MAX: usize = 4096;
/// Write-stall timeout of sessions whose listener is gone.
const WRITE_STALL_DEFAULT: Duration = Duration::from_secs(10);

impl<R: Ring> Core<R> {
    /// The session said close: it is dropped, its connections are flushed and closed.
    pub(super) fn begin_close(&mut self, turn: Turn<'_>, slot: u32) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        open.session = None;
        let until = turn
            .now
            .after(write_stall_timeout(turn.snapshot, open.listener));
        self.stop_waiting(turn, slot);
        for side in [Side::Downstream, Side::Upstream] {
            let Some(open) = self.slots.get_mut(slot) else {
                return;
            };
            let leg = open.leg(side);
            if leg.socket.is_none() {
                continue;
            }
            leg.closing = Closing::Flushing;
            leg.until = until;
            self.outbox.mark(slot, side);
        }
        self.free_if_closed(slot);
    }

    /// Tells the log why a session ended, if anybody wants to know.
    pub(super) fn note_ended(&mut self, turn: Turn<'_>, slot: u32, cause: Cause) {
        if let Cause::UpstreamViolation(violation) = cause {
            self.note_fault(turn, slot, violation, true);
        }
        if !self.table.logs_ended() {
            return;
        }
        let Some(open) = self.slots.get(slot) else {
            return;
        };
        let session = open.session.as_ref();
        let client_id = session.and_then(Session::client_id);
        let listener = turn.snapshot.listener(open.listener);
        let clause = cause
            .violation()
            .zip(session)
            .map_or("", |(violation, session)| clause(session, violation));
        self.notices.ended(
            (cause, clause),
            client_id.unwrap_or_default(),
            open.peer,
            listener.map_or("", |row| &row.name),
            turn.now.since(open.opened),
        );
    }

    /// Tells the log of a rule that the broker broke.
    pub(super) fn note_fault(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        violation: Violation,
        has_ended: bool,
    ) {
        let Some(session) = self.slots.get(slot).and_then(|open| open.session.as_ref()) else {
            return;
        };
        let listener = turn.snapshot.listener(session.listener());
        let upstream = listener.and_then(|listener| turn.snapshot.upstream(listener.upstream));
        self.notices.fault(
            turn.now,
            session.client_id().unwrap_or_default(),
            upstream.map_or("", |upstream| &upstream.name),
            (violation, clause(session, violation)),
            has_ended,
        );
    }

    /// Tells the log of a client that does not speak MQTT.
    pub(super) fn note_other_protocol(&mut self, turn: Turn<'_>, slot: u32, protocol: Reason) {
        let Some(session) = self.slots.get(slot).and_then(|open| open.session.as_ref()) else {
            return;
        };
        let listener = turn.snapshot.listener(session.listener());
        let name = listener.map_or("", |row| &row.name);
        self.notices
            .other_protocol(turn.now, session.peer(), name, protocol.name());
    }

    /// Tells the log of a message that its client was not sent, because of its length and this limit.
    pub(super) fn note_too_large(&mut self, turn: Turn<'_>, slot: u32, bytes: (u32, u32)) {
        let Some(session) = self.slots.get(slot).and_then(|open| open.session.as_ref()) else {
            return;
        };
        let listener = turn.snapshot.listener(session.listener());
        let name = listener.map_or("", |row| &row.name);
        let client_id = session.client_id().unwrap_or_default();
        self.notices.too_large(turn.now, client_id, name, bytes);
    }

    /// Ends waiting for a dial, a CONNACK or a password.
    pub(super) fn stop_waiting(&mut self, turn: Turn<'_>, slot: u32) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let seen = (self.dials, 0);
        match open.waiting.take().map(|waiting| *waiting) {
            None => {}
            Some(Waiting::Password(_)) => {
                self.authenticating = self.authenticating.saturating_sub(1)
            }
            Some(Waiting::Connack {
                mut dial,
                kept_bytes,
            }) => {
                self.connects_kept -= kept_bytes;
                dial.forget(around(turn, &dial, &self.directory, &self.table, seen));
            }
            Some(Waiting::Dial(mut dial)) => {
                dial.abandon(around(turn, &dial, &self.directory, &self.table, seen));
                if let Some(socket) = open.up.socket.take() {
                    open.up.reading = Reading::Unconnected;
                    self.ring.close(socket);
                }
            }
        }
    }

    /// Leaves a broker that may wake up later so that it does as little as possible with what it was sent: see
    /// `session/chance.rs`. With a goodbye the reset comes when the broker has not closed by itself in time.
    pub(super) fn abort_upstream(&mut self, now: Time, slot: u32, says_goodbye: bool) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = &mut open.up;
        let Some(socket) = leg.socket else {
            return;
        };
        let has_all = leg.backlog.is_none();
        if leg.pieces != Chain::EMPTY {
            self.outbox.collect(leg.pieces, &mut self.pieces);
            self.ring.send(socket, &self.pieces);
            self.pieces.clear();
        }
        if says_goodbye && has_all && self.leaving.len() < LEAVING_MAX {
            self.ring.pause(socket);
            self.ring.shutdown_write(socket);
            self.leaving.push_back((now.after(LINGER), socket));
        } else {
            self.ring.reset(socket);
        }
        self.forget_leg(slot, Side::Upstream);
    }

    /// Resets the connections to brokers that were left and whose time is up.
    pub(super) fn reset_left(&mut self, now: Time) {
        while let Some((_, socket)) = self.leaving.pop_front_if(|(until, _)| *until <= now) {
            self.ring.reset(socket);
        }
    }

    /// Everything owed was handed over: FIN, and wait for the peer's.
    pub(super) fn finish_sending(&mut self, now: Time, slot: u32, side: Side) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = open.leg(side);
        let Some(socket) = leg.socket else {
            return;
        };
        self.ring.shutdown_write(socket);
        leg.closing = Closing::Lingering;
        // A peer that has sent its FIN already is waited for one tick: until the ring has told what was not taken.
        leg.until = match leg.reading {
            Reading::Ended => now,
            Reading::Unconnected | Reading::Idle | Reading::Receiving | Reading::Pausing => {
                now.after(LINGER)
            }
        };
        self.schedule(now, slot);
    }

    /// The last send was short after all: the connection is flushed again, FIN follows by itself.
    pub(super) fn resume_flushing(&mut self, turn: Turn<'_>, slot: u32, side: Side) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let until = turn
            .now
            .after(write_stall_timeout(turn.snapshot, open.listener));
        let leg = open.leg(side);
        if leg.closing == Closing::Lingering {
            leg.closing = Closing::Flushing;
            leg.until = until;
        }
    }

    /// Closes the connections of a closing session whose time is up.
    pub(super) fn close_overdue(&mut self, now: Time, slot: u32) {
        for side in [Side::Downstream, Side::Upstream] {
            let Some(open) = self.slots.get_mut(slot) else {
                return;
            };
            let leg = open.leg(side);
            if leg.closing != Closing::Not && leg.until <= now {
                if leg.closing == Closing::Flushing {
                    self.counters.add(Counter::CloseUnflushed, 1);
                }
                self.drop_leg(slot, side);
            }
        }
        self.free_if_closed(slot);
    }

    /// Closes a connection at once, with whatever it is still owed.
    pub(super) fn drop_leg(&mut self, slot: u32, side: Side) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = open.leg(side);
        let Some(socket) = leg.socket.take() else {
            return;
        };
        self.ring.close(socket);
        self.forget_leg(slot, side);
    }

    /// The same for a connection that is closed, or closes by itself.
    fn forget_leg(&mut self, slot: u32, side: Side) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = open.leg(side);
        leg.socket = None;
        self.budget.removed(leg.backlog_bytes());
        leg.backlog = None;
        leg.pieces = Chain::EMPTY;
        leg.reading = Reading::Ended;
        leg.closing = Closing::Not;
        leg.until = Time(u64::MAX);
        if side == Side::Upstream
            && let Some(cell) = open.cell.take()
        {
            self.connected = self.connected.saturating_sub(1);
            if let Some(endpoint) = self.table.endpoint(cell) {
                endpoint.disconnected();
            }
        }
    }

    /// Gives the slot back when the session is over and both connections are closed.
    pub(super) fn free_if_closed(&mut self, slot: u32) {
        let Some(open) = self.slots.get(slot) else {
            return;
        };
        let is_closed = |leg: &Leg| leg.socket.is_none();
        if open.session.is_some() || !is_closed(&open.down) || !is_closed(&open.up) {
            return;
        }
        self.wheel.clear(slot);
        if let Some(mut open) = self.slots.remove(slot) {
            self.budget.removed(open.kept_bytes);
            if let Some(permit) = open.permit.take() {
                if permit.is_stranger() {
                    self.forget(Stranger::new(slot, &open));
                }
                self.table.release(permit);
            }
        }
    }
}

/// The clause of the session's version; empty while that is not known.
fn clause(session: &Session, violation: Violation) -> &'static str {
    session
        .version()
        .map_or("", |version| violation.clause(version))
}

/// How long a connection may leave bytes where they are, the last ones included.
pub(super) fn write_stall_timeout(
    snapshot: &Snapshot,
    listener: sluice_policy::ListenerId,
) -> Duration {
    snapshot
        .listener(listener)
        .map_or(WRITE_STALL_DEFAULT, |row| row.limits.write_stall_timeout)
}
