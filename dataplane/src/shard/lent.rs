//! What a session is lent during a call: outputs to write to, counters, a generator, the decision log, the refusals that are
//! kept.
//!
//! Kept apart from the rest of the shard so that a session, its slot and the ring can be borrowed beside it.

use std::sync::Arc;

use sluice_policy::Effort;

use crate::metrics::{Counters, RuleCounts};
use crate::node::{DecisionBatch, DecisionSampler, DenialRing};
use crate::session::{Context, DecisionRecord, Outputs};

use super::Turn;
use super::random::Random;

pub(super) struct Lent {
    pub(super) outputs: Outputs,
    /// See `work.rs`.
    pub(super) effort: Effort,
    pub(super) random: Random,
    /// How often each rule of the policy decided; `None` where that is not counted.
    pub(super) rules: Option<Arc<RuleCounts>>,
    counters: Arc<Counters>,
    decisions: Option<DecisionSampler>,
    pub(super) denials: Option<DenialRing>,
}

impl Lent {
    pub(super) fn new(
        counters: Arc<Counters>,
        random: Random,
        decisions: Option<DecisionSampler>,
        denials: Option<DenialRing>,
    ) -> Self {
        Self {
            outputs: Outputs::default(),
            effort: Effort::new(0),
            random,
            rules: None,
            counters,
            decisions,
            denials,
        }
    }

    /// Makes one call with everything at hand.
    #[inline]
    pub(super) fn with<T>(
        &mut self,
        turn: Turn<'_>,
        call: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        let random = &mut self.random;
        let mut note = self.decisions.as_mut().map(|sampler| {
            move |record: &DecisionRecord<'_>| sampler.note(turn.now, turn.snapshot, record)
        });
        let mut deny = self.denials.as_mut().map(|ring| {
            move |record: &DecisionRecord<'_>| ring.note(turn.now, Some(turn.snapshot), record)
        });
        call(&mut Context {
            now: turn.now,
            snapshot: turn.snapshot,
            effort: &mut self.effort,
            out: &mut self.outputs,
            counters: &self.counters,
            rules: self.rules.as_deref(),
            random: &mut || random.next(),
            decisions: note
                .as_mut()
                .map(|note| note as &mut dyn FnMut(&DecisionRecord<'_>)),
            denials: deny
                .as_mut()
                .map(|deny| deny as &mut dyn FnMut(&DecisionRecord<'_>)),
        })
    }

    /// Another log of decisions; what was noted for the one before is dropped.
    pub(super) fn log_decisions(&mut self, decisions: Option<DecisionSampler>) {
        self.decisions = decisions;
    }

    /// The decisions of the turn that are to be logged.
    pub(super) fn take_decisions(&mut self) -> Option<DecisionBatch> {
        self.decisions.as_mut()?.take()
    }

    /// The mailbox was full.
    pub(super) fn decisions_undelivered(&mut self, batch: &DecisionBatch) {
        if let Some(sampler) = self.decisions.as_mut() {
            sampler.undelivered(batch);
        }
    }
}
