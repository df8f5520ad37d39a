//! Idle sessions under a new policy: visited a few at a time, so that a swap never holds up traffic.
//!
//! Owns when the shard acknowledges a generation: when every session was judged by it. Sessions with traffic judge
//! themselves with their next bytes, or wait for a turn to do so; the sweep finds the others, and does not go past one that
//! waits.

use std::sync::Arc;
use std::time::Duration;

use sluice_policy::{Effort, Generation, Snapshot};

use crate::node::ToControl;
use crate::ring::Ring;
use crate::session::Session;

use super::work::SWEEP_NODES;
use super::{Core, Turn};

/// Time a turn may spend on the sweep, besides [`SWEEP_NODES`]; the clock is looked at behind each session.
const TURN_TIME: Duration = Duration::from_micros(200);
/// Sessions of one turn, whatever the clock says: a simulated clock stands still during a turn.
const TURN_MAX: u32 = 1024;

#[derive(Default)]
pub(super) struct Sweep {
    /// Address of the snapshot looked at last. Only compared: control keeps a snapshot until a later one was acknowledged, so
    /// no other can take its address unnoticed.
    seen: usize,
    /// Next slot to visit; `None` when the sweep is over.
    next: Option<u32>,
    /// Told when the sweep is over.
    generation: Generation,
}

impl Sweep {
    pub(super) fn is_pending(&self) -> bool {
        self.next.is_some()
    }
}

impl<R: Ring> Core<R> {
    /// Begins a sweep when the policy is another one than in the last turn.
    pub(super) fn notice(&mut self, snapshot: &Arc<Snapshot>) {
        let address = Arc::as_ptr(snapshot).addr();
        if address == self.sweep.seen {
            return;
        }
        self.sweep = Sweep {
            seen: address,
            next: Some(0),
            generation: snapshot.generation(),
        };
        self.count_rules_of(snapshot);
        // The smallest of the listeners' budgets: one that wants no waiting is not made to wait for another's sake.
        let budget = snapshot
            .listeners()
            .iter()
            .map(|row| row.limits.latency_budget)
            .min();
        self.latency_budget_micros = budget
            .map(|budget| u32::try_from(budget.as_micros()).unwrap_or(u32::MAX))
            .unwrap_or(0);
    }

    pub(super) fn sweep(&mut self, turn: Turn<'_>) {
        let Some(first) = self.sweep.next else {
            return;
        };
        let began = self.ring.now();
        let end = self.slots.used();
        let mut slot = first;
        let arriving = std::mem::replace(&mut self.lent.effort, Effort::new(SWEEP_NODES));
        while slot < end && !self.lent.effort.is_used_up() {
            self.call(turn, slot, |session, context| {
                session.handle_generation(context)
            });
            if !self.is_judged(slot) {
                break;
            }
            slot += 1;
            let visited = slot - first;
            if visited >= TURN_MAX || self.ring.now().since(began) >= TURN_TIME {
                break;
            }
        }
        let swept = std::mem::replace(&mut self.lent.effort, arriving);
        self.work.swept(swept.spent());
        if slot < end {
            self.sweep.next = Some(slot);
            return;
        }
        self.sweep.next = None;
        let (shard, generation) = (self.shard, self.sweep.generation);
        self.outgoing
            .tell(ToControl::Acknowledged { shard, generation });
    }

    /// True exactly when the session of a slot, if there is one, was judged by the generation that is swept.
    fn is_judged(&self, slot: u32) -> bool {
        let session = self.slots.get(slot).and_then(|open| open.session.as_ref());
        let judged_by = session.and_then(Session::generation);
        judged_by.is_none_or(|generation| generation == self.sweep.generation)
    }
}
