//! Counting how often each rule decides: begun anew with each policy, since rules have other numbers then.
//!
//! Owns when: in the turn that first sees a policy, before anything is judged by it. Control keeps what was counted before.

use std::sync::Arc;

use sluice_policy::Snapshot;

use crate::metrics::RuleCounts;
use crate::node::ToControl;
use crate::ring::Ring;

use super::Core;

/// They have at most this part of the shard's budget.
const BUDGET_PART: u64 = 4;

impl<R: Ring> Core<R> {
    pub(super) fn count_rules_of(&mut self, snapshot: &Snapshot) {
        // Counts are not let go of when memory is short, so they leave most of the budget to what is.
        let limits = &self.limits;
        let bytes_max = limits
            .rule_counts_bytes_max
            .min(limits.backlog_bytes_max / BUDGET_PART);
        if bytes_max == 0 {
            return;
        }
        let counts = Arc::new(RuleCounts::new(snapshot.rule_ids_end(), bytes_max));
        self.lent.rules = Some(Arc::clone(&counts));
        let (shard, generation) = (self.shard, snapshot.generation());
        self.outgoing.tell(ToControl::Counting {
            shard,
            generation,
            counts,
        });
    }

    /// Brings the budget up to date with the memory that counts take.
    pub(super) fn weigh_rules(&mut self) {
        let rules = self.lent.rules.as_ref();
        self.budget
            .rules_take(rules.map_or(0, |rules| rules.heap_bytes()));
    }
}
