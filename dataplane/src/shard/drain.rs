//! The end of a shard: nothing more is accepted, sessions are told one after the other, whatever is left is cut off.
//!
//! Owns the spread. A fleet that is told to go all at once comes back all at once, somewhere else.

use std::time::Duration;

use crate::clock::Time;
use crate::node::{AfterDrain, DrainOutcome, ToControl};
use crate::ring::Ring;
use crate::session::{Cause, Side};

use super::{Core, Turn};

/// Sessions are told at this pace at least.
const STEP: Duration = Duration::from_millis(50);
/// Slots looked at in one turn.
const TURN_MAX: u32 = 4096;
/// Least time from the beginning to the cutting off, however soon it is to be over: goodbyes take a way.
const GOODBYE: Duration = Duration::from_millis(250);

pub(super) struct Drain {
    began: Time,
    /// When the last session is told; a quarter of the time is left for the goodbyes.
    told_by: Time,
    until: Time,
    outcome: DrainOutcome,
    told: u32,
    next_slot: u32,
    is_over: bool,
    then: AfterDrain,
}

impl Drain {
    /// True exactly when no session is left, control is being told, and the shard is to end.
    pub(super) fn is_the_end(&self) -> bool {
        self.is_over && self.then == AfterDrain::End
    }

    /// When to go on.
    pub(super) fn next(&self, open: u32) -> Option<Time> {
        if self.is_over {
            return None;
        }
        if open == 0 {
            return Some(Time(0));
        }
        if self.told >= self.outcome.sessions {
            return Some(self.until);
        }
        // The turn of the next session: `due` looks one step ahead, so it is due then.
        let spread = self.told_by.since(self.began);
        let share = spread / self.outcome.sessions.max(1);
        let next = share.saturating_mul(self.told.saturating_add(1));
        Some(self.began.after(next).min(self.until))
    }

    /// How many sessions should have been told by now.
    fn due(&self, now: Time) -> u32 {
        let spread = self.told_by.since(self.began).as_nanos();
        let elapsed = now.since(self.began).saturating_add(STEP).as_nanos();
        if spread == 0 || elapsed >= spread {
            return u32::MAX;
        }
        u32::try_from(u128::from(self.outcome.sessions) * elapsed / spread).unwrap_or(u32::MAX)
    }
}

impl<R: Ring> Core<R> {
    /// Stops accepting. A second order changes nothing, unless the shard was to stay and is to end by now: then the
    /// spread begins anew with whoever is left.
    pub(super) fn begin_drain(&mut self, within: Duration, then: AfterDrain) {
        if let Some(drain) = &self.drain
            && (drain.then == AfterDrain::End || then == AfterDrain::Stay)
        {
            return;
        }
        let now = self.ring.now();
        self.drain = Some(Drain {
            began: now,
            told_by: now.after(within / 4 * 3),
            until: now.after(within.max(GOODBYE)),
            outcome: DrainOutcome {
                sessions: self.slots.open(),
                cut_off: 0,
            },
            told: 0,
            next_slot: 0,
            is_over: false,
            then,
        });
        self.stop_accepting();
    }

    /// Takes connections again, unless the shard is to end.
    pub(super) fn end_drain(&mut self) {
        self.drain.take_if(|drain| drain.then == AfterDrain::Stay);
    }

    pub(super) fn drain(&mut self, turn: Turn<'_>) {
        let Some(mut drain) = self.drain.take() else {
            return;
        };
        let due = drain.due(turn.now);
        let end = drain.next_slot.saturating_add(TURN_MAX);
        while drain.told < due && drain.next_slot < end.min(self.slots.used()) {
            let slot = drain.next_slot;
            drain.next_slot += 1;
            let is_open = self.slots.get(slot).is_some();
            drain.told += u32::from(is_open);
            self.call(turn, slot, |session, context| {
                session.handle_end(context, Cause::Drained);
            });
        }
        if drain.next_slot >= self.slots.used() {
            drain.told = drain.told.max(drain.outcome.sessions);
        }
        if turn.now >= drain.until {
            drain.outcome.cut_off += self.cut_off(turn);
        }
        self.drain = Some(drain);
        self.finish_drain();
    }

    /// Without a policy there are no sessions.
    pub(super) fn drain_without_policy(&mut self) {
        self.finish_drain();
    }

    fn cut_off(&mut self, turn: Turn<'_>) -> u32 {
        let mut count = 0;
        for slot in 0..self.slots.used() {
            if let Some(open) = self.slots.get_mut(slot) {
                count += 1;
                open.session = None;
                self.stop_waiting(turn, slot);
                self.drop_leg(slot, Side::Downstream);
                self.drop_leg(slot, Side::Upstream);
                self.free_if_closed(slot);
            }
        }
        count
    }

    fn finish_drain(&mut self) {
        let Some(drain) = self.drain.as_mut() else {
            return;
        };
        if drain.is_over || self.slots.open() > 0 {
            return;
        }
        drain.is_over = true;
        let (shard, outcome) = (self.shard, drain.outcome);
        self.outgoing.tell(ToControl::Drained { shard, outcome });
    }
}
