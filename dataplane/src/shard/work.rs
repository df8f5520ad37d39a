//! Work that can be divided: who a session is under the policy is found, and the filters of a large SUBSCRIBE are judged, a
//! little at a time.
//!
//! Owns how much of such work a turn does, for all sessions together, so that what they ask for never holds up the traffic
//! of others: one share for what arrives in the turn, so that most is done where it comes; one that goes round the sessions
//! that have work left; and one for idle sessions under a new policy (`sweep.rs`). While some is left, the shard does not
//! sleep. What the SUBSCRIBEs of a session may cause in a second is the session's own account.

use std::collections::VecDeque;

use sluice_policy::{Effort, SLICE_NODES};

use crate::metrics::Counter;
use crate::node::SessionRef;
use crate::ring::Ring;

use super::{Core, Turn};

/// Nodes for what arrives in a turn.
const ARRIVING_NODES: u32 = SLICE_NODES / 2;
/// Nodes for what was left: together one slice, at most 250 us. A turn with much traffic takes longer than that.
const LEFT_NODES: u32 = SLICE_NODES / 2;
/// Nodes for idle sessions under a new policy, as long as there is one.
pub(super) const SWEEP_NODES: u32 = SLICE_NODES;
/// Nodes for one session before the next one has its share: a SUBSCRIBE of usual size is done with one.
const SESSION_NODES: u32 = LEFT_NODES / 4;

/// Sessions that have work left, each once; the one whose turn comes next is first. Entries of sessions that are over are
/// passed by.
#[derive(Default)]
pub(super) struct Work {
    sessions: VecDeque<SessionRef>,
    /// What the sweep did in this turn.
    swept: u32,
}

impl Work {
    pub(super) fn swept(&mut self, nodes: u32) {
        self.swept += nodes;
    }

    pub(super) fn is_left(&self) -> bool {
        !self.sessions.is_empty()
    }
}

/// The share of what arrives in one turn.
pub(super) fn arriving() -> Effort {
    Effort::new(ARRIVING_NODES)
}

impl<R: Ring> Core<R> {
    /// A session says that it has work left.
    pub(super) fn work_left(&mut self, slot: u32) {
        if let Some(name) = self.slots.name(slot) {
            self.work.sessions.push_back(name);
        }
    }

    /// Goes round the sessions that have work left.
    pub(super) fn work(&mut self, turn: Turn<'_>) {
        let arrived = self.lent.effort.spent() + std::mem::take(&mut self.work.swept);
        let mut spent = 0;
        while spent < LEFT_NODES
            && let Some(name) = self.work.sessions.pop_front()
        {
            let Some(slot) = self.slots.find(name) else {
                continue;
            };
            self.lent.effort = Effort::new(SESSION_NODES.min(LEFT_NODES - spent));
            self.call(turn, slot, |session, context| session.handle_share(context));
            // A session that does nothing is not asked again in this turn; each costs something.
            spent += self.lent.effort.spent().max(1);
        }
        if arrived + spent > 0 {
            let nodes = u64::from(arrived + spent);
            self.counters.add(Counter::WorkNodes, nodes);
        }
    }
}
