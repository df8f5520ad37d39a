//! Backpressure: who is held back, and who must go when memory runs short.
//!
//! Owns three marks. Above the high mark of a listener the side that feeds a backlog is not read; below the low mark it is
//! again. Above three quarters of the shard's budget the low mark rules for everybody; above the budget the sessions with
//! the largest backlogs are ended, one after the other, until it is kept.
//!
//! What a session keeps of its own (a packet that is not finished, a CONNECT, topic aliases) counts in the same budget
//! once it is more than usual: a fleet of strangers that each send most of a large packet must not take the node's memory.
//!
//! What the proxy itself writes to a side (acknowledgements of what it refused) is fed by that very side. It is held
//! back too, at twice the high mark: so the bound of a backlog is twice the mark plus one turn, and a client that
//! only writes is not stopped by the answers it has not read yet, up to there.

use crate::metrics::Counter;
use crate::ring::Ring;
use crate::session::{Cause, Session, Side};

use super::dispatch::Follow;
use super::{Core, Turn};

/// Marks for sessions whose listener is gone.
const HIGH_DEFAULT: usize = 64 << 10;
const LOW_DEFAULT: usize = 16 << 10;

/// What a session keeps up to here is not looked at: it is part of what a connection costs.
const KEPT_USUAL: usize = 4 << 10;

/// The shard's memory for backlogs and for what sessions keep.
pub(super) struct Budget {
    bytes: u64,
    /// Beside these: what counting rules takes. It goes back with the next policy only.
    rules_bytes: u64,
    max: u64,
    /// Slots that had a backlog, or kept much, since the last look; each is verified.
    slots: Vec<u32>,
}

impl Budget {
    pub(super) fn new(max: u64) -> Self {
        Self {
            bytes: 0,
            rules_bytes: 0,
            max,
            slots: Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn added(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    pub(super) fn removed(&mut self, bytes: usize) {
        debug_assert!(bytes as u64 <= self.bytes, "more was removed than added");
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    pub(super) fn rules_take(&mut self, bytes: u64) {
        self.rules_bytes = bytes;
    }

    /// A slot has a backlog, or keeps much, from here on.
    pub(super) fn begun(&mut self, slot: u32) {
        self.slots.push(slot);
    }

    /// More than three quarters are in use: senders are held back early, nobody new is let in.
    pub(super) fn is_tight(&self) -> bool {
        self.bytes + self.rules_bytes > self.max / 4 * 3
    }

    fn is_exhausted(&self) -> bool {
        self.bytes + self.rules_bytes > self.max
    }
}

impl<R: Ring> Core<R> {
    /// Decides whether reading of a side is to be held or let go; one change at a time, for the session to be told.
    pub(super) fn press(&mut self, turn: Turn<'_>, slot: u32) -> Option<Follow> {
        let is_tight = self.budget.is_tight();
        let open = self.slots.get_mut(slot)?;
        let is_calm = open.down.backlog.is_none() && open.up.backlog.is_none();
        if open.session.is_none() || (is_calm && !open.down.held && !open.up.held) {
            return None;
        }
        let (high, low) =
            turn.snapshot
                .listener(open.listener)
                .map_or((HIGH_DEFAULT, LOW_DEFAULT), |row| {
                    (
                        row.limits.backlog_bytes_high as usize,
                        row.limits.backlog_bytes_low as usize,
                    )
                });
        let high = if is_tight { low } else { high };
        let (down, up) = (open.down.backlog_bytes(), open.up.backlog_bytes());
        for (side, own, other) in [(Side::Downstream, down, up), (Side::Upstream, up, down)] {
            let leg = open.leg(side);
            let held = if other > high || own > high.saturating_mul(2) {
                true
            } else if other <= low && own <= high {
                false
            } else {
                leg.held
            };
            if held != leg.held {
                leg.held = held;
                return Some(Follow::Held(side, held));
            }
        }
        None
    }

    /// Brings the budget up to date with what the session keeps.
    #[inline]
    pub(super) fn weigh(&mut self, slot: u32) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let kept = open.session.as_ref().map_or(0, Session::heap_bytes);
        let kept = if kept > KEPT_USUAL { kept } else { 0 };
        if kept == open.kept_bytes {
            return;
        }
        let before = std::mem::replace(&mut open.kept_bytes, kept);
        self.budget.removed(before);
        self.budget.added(kept);
        if before == 0 {
            self.budget.begun(slot);
        }
    }

    /// Ends the sessions with the largest backlogs, or that keep most, while the budget is exceeded.
    pub(super) fn relieve(&mut self, turn: Turn<'_>) {
        if !self.budget.is_exhausted() {
            self.forget_calm();
            return;
        }
        while self.budget.is_exhausted() {
            let Some((slot, backlog)) = self.largest() else {
                break;
            };
            self.counters.add(Counter::BacklogShed, 1);
            if let Some(side) = backlog {
                self.drop_leg(slot, side);
            }
            self.call(turn, slot, |session, context| {
                session.handle_end(context, Cause::Overload);
            });
            self.free_if_closed(slot);
        }
    }

    /// Keeps the list of slots with a backlog short: it is rebuilt when it has grown past what can be in use.
    fn forget_calm(&mut self) {
        if self.budget.slots.len() <= 64 + self.slots.open() as usize {
            return;
        }
        let mut listed = std::mem::take(&mut self.budget.slots);
        listed.sort_unstable();
        listed.dedup();
        listed.retain(|slot| {
            self.slots.get(*slot).is_some_and(|open| {
                open.down.backlog.is_some() || open.up.backlog.is_some() || open.kept_bytes > 0
            })
        });
        self.budget.slots = listed;
    }

    /// The slot with most, and the side of the backlog when it is one.
    fn largest(&self) -> Option<(u32, Option<Side>)> {
        self.budget
            .slots
            .iter()
            .filter_map(|slot| Some((*slot, self.slots.get(*slot)?)))
            .flat_map(|(slot, open)| {
                [
                    (open.down.backlog_bytes(), slot, Some(Side::Downstream)),
                    (open.up.backlog_bytes(), slot, Some(Side::Upstream)),
                    (open.kept_bytes, slot, None),
                ]
            })
            .filter(|(bytes, ..)| *bytes > 0)
            .max_by_key(|(bytes, slot, _)| (*bytes, *slot))
            .map(|(_, slot, side)| (slot, side))
    }
}
