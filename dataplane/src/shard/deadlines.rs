//! When a session is looked at again, and what is overdue then.
//!
//! Owns the order of deadlines of one slot. The wheel only says when to look; this file says what is due. Per packet it
//! costs a few comparisons: an entry is moved only when a deadline has come nearer.

use crate::clock::Time;
use crate::node::Fault;
use crate::ring::Ring;
use crate::session::{AuthOutcome, Cause, Dialled, Side};

use super::close::write_stall_timeout;
use super::leg::{Closing, Leg, Reading};
use super::slots::{Open, Waiting};
use super::{Core, Turn};

/// A session with a backlog is looked at this often at least; how long a stall may last is the listener's to say.
const STALL_LOOK: std::time::Duration = std::time::Duration::from_millis(500);

impl<R: Ring> Core<R> {
    /// Sees to it that the slot is looked at when its next deadline comes.
    #[inline]
    pub(super) fn schedule(&mut self, now: Time, slot: u32) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let next = next_deadline(open, now);
        if next < open.timer {
            open.timer = next;
            self.wheel.set(slot, next.max(now));
        }
    }

    pub(super) fn check_timers(&mut self, turn: Turn<'_>) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(turn.now, &mut due);
        for slot in due.drain(..) {
            if let Some(open) = self.slots.get_mut(slot) {
                open.timer = Time(u64::MAX);
                self.check(turn, slot);
                self.schedule(turn.now, slot);
            }
        }
        self.due = due;
    }

    fn check(&mut self, turn: Turn<'_>, slot: u32) {
        self.check_waiting(turn, slot);
        self.check_stalls(turn, slot);
        let due = self
            .slots
            .get(slot)
            .and_then(|open| open.session.as_ref()?.poll_timeout())
            .is_some_and(|(at, _)| at <= turn.now);
        if due {
            self.call(turn, slot, |session, context| {
                session.handle_timeout(context)
            });
        }
        self.close_overdue(turn.now, slot);
    }

    fn check_waiting(&mut self, turn: Turn<'_>, slot: u32) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        match open.waiting.as_deref() {
            Some(Waiting::Password(until)) if *until <= turn.now => {
                self.authenticated(turn, slot, AuthOutcome::Busy);
            }
            Some(Waiting::Dial(dial)) if dial.deadline() <= turn.now => {
                if dial.is_connecting() {
                    if let Some(socket) = open.up.socket.take() {
                        self.ring.close(socket);
                    }
                    self.attempt_failed(turn, slot, Fault::TimedOut);
                } else if self.attempt(turn, slot).is_some() {
                    self.call(turn, slot, |session, context| {
                        session.handle_dialled(context, Dialled::Failed);
                    });
                }
            }
            Some(Waiting::Password(_) | Waiting::Dial(_) | Waiting::Connack { .. }) | None => {}
        }
    }

    /// A side that takes nothing of what it is owed for too long is given up.
    fn check_stalls(&mut self, turn: Turn<'_>, slot: u32) {
        for (side, cause) in [
            (Side::Downstream, Cause::WriteStall),
            (Side::Upstream, Cause::UpstreamStalled),
        ] {
            let Some(open) = self.slots.get_mut(slot) else {
                return;
            };
            if open.session.is_none() {
                return;
            }
            let listener = open.listener;
            let Some(backlog) = open.leg(side).backlog.as_ref() else {
                continue;
            };
            let timeout = write_stall_timeout(turn.snapshot, listener);
            if backlog.progress.after(timeout) <= turn.now {
                self.drop_leg(slot, side);
                self.call(turn, slot, |session, context| {
                    session.handle_end(context, cause)
                });
                self.free_if_closed(slot);
            }
        }
    }
}

/// The earliest time at which something of the slot may be due.
fn next_deadline(open: &Open, now: Time) -> Time {
    let mut next = match open.session.as_ref() {
        Some(session) => session.poll_timeout().map_or(Time(u64::MAX), |(at, _)| at),
        None => Time(u64::MAX),
    };
    match open.waiting.as_deref() {
        Some(Waiting::Dial(dial)) => next = next.min(dial.deadline()),
        Some(Waiting::Password(until)) => next = next.min(*until),
        // How long a broker may take is the session's to say.
        Some(Waiting::Connack { .. }) | None => {}
    }
    for leg in [&open.down, &open.up] {
        next = next.min(leg_deadline(leg, now));
    }
    next
}

fn leg_deadline(leg: &Leg, now: Time) -> Time {
    match (leg.closing, leg.backlog.is_some()) {
        (Closing::Not, false) => Time(u64::MAX),
        (Closing::Not, true) => now.after(STALL_LOOK),
        (Closing::Flushing | Closing::Lingering, _) => {
            debug_assert!(leg.reading != Reading::Unconnected, "nothing to close");
            leg.until
        }
    }
}
