//! May a filter be subscribed to: which questions are put to the tables, and what their answers come to.
//!
//! Up to six checks make a verdict: what may be subscribed to, what may be delivered, and where that is not all of it, whether
//! some of it may be, so that the subscription is narrowed; by the rules that are enforced, and again with those that are only
//! tried. Owns where a verdict stands when its share of work is used up.

use sluice_wire::mqtt::QoS;

use crate::effort::Effort;
use crate::rows::QosOver;
use crate::ruling::rule;
use crate::tables::NO_RANK;
use crate::tables::class::{ClassTable, Tries};
use crate::tables::subscription::{Check, First, Grant, Walk};
use crate::tables::topic_trie::{Bound, Mark, TopicTrie};
use crate::verdict::bound;
use crate::{Classes, Decision, Denial, Effect, OnDeny, Snapshot, Vars, Verdict};

/// A filter that is half judged. It holds for the snapshot, classes, variables, filter and QoS it was begun with.
#[derive(Debug)]
pub struct HalfJudged {
    check: Tally,
    /// The verdict on subscribing, while that on delivery is being found.
    subscribe: Option<Verdict>,
    /// The verdict on all of the filter, while a part of it is looked for that is allowed.
    refused: Option<Verdict>,
    /// The verdict of the enforced rules, while those that are tried are asked too.
    enforced: Option<Verdict>,
    /// The lowest rank of a tried rule that decided anything.
    shadow: u32,
}

/// One check under way, and what the rules that cover the filter ask for.
#[derive(Debug)]
struct Tally {
    walk: Walk,
    verdict: Verdict,
    qos_refused_by: u32,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            walk: Walk::default(),
            verdict: Verdict {
                decision: Decision::Allow,
                rule: None,
                qos_max: QoS::ExactlyOnce,
                strip_retain: false,
                is_narrowed: false,
                on_deny: OnDeny::Drop,
                shadow: None,
                shadow_first: None,
            },
            qos_refused_by: NO_RANK,
        }
    }
}

impl HalfJudged {
    fn begin() -> Self {
        Self {
            check: Tally::default(),
            subscribe: None,
            refused: None,
            enforced: None,
            shadow: NO_RANK,
        }
    }
}

/// See [`Snapshot::subscribe_within`].
pub(crate) fn subscribe(
    asked: &Subscription<'_>,
    effort: &mut Effort,
    half: &mut Option<Box<HalfJudged>>,
) -> Option<Verdict> {
    let Some(begun) = half else {
        let mut begun = HalfJudged::begin();
        let verdict = asked.judge(&mut begun, effort);
        if verdict.is_none() {
            *half = Some(Box::new(begun));
        }
        return verdict;
    };
    let verdict = asked.judge(begun, effort)?;
    *half = None;
    Some(verdict)
}

/// One question.
pub(crate) struct Subscription<'a> {
    snapshot: &'a Snapshot,
    classes: &'a Classes,
    bound: Bound<'a>,
    filter: &'a str,
    qos: QoS,
    is_shared: bool,
}

impl<'a> Subscription<'a> {
    pub(crate) fn new(
        snapshot: &'a Snapshot,
        classes: &'a Classes,
        vars: &Vars<'a>,
        filter: &'a str,
        qos: QoS,
        is_shared: bool,
    ) -> Self {
        Self {
            snapshot,
            classes,
            bound: bound(vars),
            filter,
            qos,
            is_shared,
        }
    }

    fn tables(&self) -> impl Iterator<Item = &'a ClassTable> {
        let snapshot = self.snapshot;
        self.classes
            .ids
            .iter()
            .filter_map(move |id| snapshot.rules.table(*id))
    }

    fn tries(&self, with_shadow: bool) -> impl Iterator<Item = &'a Tries> {
        self.tables().flat_map(move |table| {
            let shadow = table.shadow.as_deref().filter(|_| with_shadow);
            [Some(&table.enforce), shadow].into_iter().flatten()
        })
    }

    fn judge(&self, half: &mut HalfJudged, effort: &mut Effort) -> Option<Verdict> {
        let enforced = match half.enforced {
            Some(enforced) => enforced,
            None => {
                let enforced = self.judge_by(false, half, effort)?;
                if !self.tables().any(|table| table.shadow.is_some()) {
                    return Some(enforced);
                }
                half.shadow = NO_RANK;
                *half.enforced.insert(enforced)
            }
        };
        let tried = self.judge_by(true, half, effort)?;
        let is_same = tried.decision == enforced.decision
            && tried.is_narrowed == enforced.is_narrowed
            && tried.qos_max.min(self.qos) == enforced.qos_max.min(self.qos);
        let shadow_first = rule(half.shadow);
        let shadow = if is_same { None } else { shadow_first };
        Some(Verdict {
            shadow,
            shadow_first,
            ..enforced
        })
    }

    /// All of the filter is judged, and where some of it is refused, whether the rest may be had.
    fn judge_by(
        &self,
        with_shadow: bool,
        half: &mut HalfJudged,
        effort: &mut Effort,
    ) -> Option<Verdict> {
        let refused = match half.refused {
            Some(refused) => refused,
            None => {
                let verdict = self.judge_all(with_shadow, half, effort)?;
                let is_refused = verdict.decision == Decision::Deny(Denial::NotAuthorized);
                // A member of a share group that drops a message takes it from the others.
                if !is_refused || self.is_shared || !self.snapshot.rules.may_narrow() {
                    return Some(verdict);
                }
                *half.refused.insert(verdict)
            }
        };
        let narrowed = self.narrow(with_shadow, half, effort)?;
        half.refused = None;
        Some(narrowed.unwrap_or(refused))
    }

    /// Both what may be subscribed to and what may be delivered must cover the filter: `subscribe` implies `receive`, and
    /// `receive` by itself only takes away.
    fn judge_all(
        &self,
        with_shadow: bool,
        half: &mut HalfJudged,
        effort: &mut Effort,
    ) -> Option<Verdict> {
        let qos_refused = Decision::Deny(Denial::QosRefused);
        let verdict = match half.subscribe {
            Some(verdict) => verdict,
            None => {
                let asked = self.tries(with_shadow);
                let asked = asked.filter_map(|tries| tries.subscribe.as_ref());
                let verdict = self.check(asked, half, effort)?;
                let is_apart = |tries: &Tries| tries.receive_alone.is_some();
                let is_apart = self.tries(with_shadow).any(is_apart);
                let is_open =
                    verdict.decision == Decision::Allow || verdict.decision == qos_refused;
                if !(is_apart && is_open) {
                    return Some(verdict);
                }
                *half.subscribe.insert(verdict)
            }
        };
        let delivered = self.tries(with_shadow).flat_map(Tries::receive);
        let delivered = self.check(delivered, half, effort)?;
        half.subscribe = None;
        // That it is not allowed at all is said before that it is not allowed at this QoS.
        Some(match (verdict.decision, delivered.decision) {
            (Decision::Allow, Decision::Allow) => Verdict {
                qos_max: verdict.qos_max.min(delivered.qos_max),
                ..verdict
            },
            (Decision::Deny(_), decision)
                if decision == Decision::Allow || decision == qos_refused =>
            {
                verdict
            }
            (Decision::Allow | Decision::Deny(_), _) => delivered,
        })
    }

    /// The verdict on a filter of which not all may be had: it goes on when a rule that narrows allows a topic in it, and the
    /// rules let that be delivered. The inner `None`: there is no such topic, or none was found within the bound.
    fn narrow(
        &self,
        with_shadow: bool,
        half: &mut HalfJudged,
        effort: &mut Effort,
    ) -> Option<Option<Verdict>> {
        let tries = || self.tries(with_shadow);
        let asked = tries().filter_map(|tries| tries.subscribe.as_ref());
        let for_deliveries = tries().filter_map(|tries| tries.receive_alone.as_ref());
        let (grant, tally) = self.run(Mark::Narrow, asked, for_deliveries, half, effort)?;
        let Grant::Found(rank) = grant else {
            return Some(None);
        };
        if tally.qos_refused_by != NO_RANK {
            return Some(Some(
                tally.refused(Denial::QosRefused, tally.qos_refused_by),
            ));
        }
        Some(Some(Verdict {
            rule: rule(rank),
            is_narrowed: true,
            ..tally.verdict
        }))
    }

    /// Looks for a topic that is refused.
    fn check(
        &self,
        tries: impl Iterator<Item = &'a TopicTrie>,
        half: &mut HalfJudged,
        effort: &mut Effort,
    ) -> Option<Verdict> {
        let nothing_apart = std::iter::empty();
        let (grant, tally) = self.run(Mark::Deny, tries, nothing_apart, half, effort)?;
        let (denial, rank) = match grant {
            Grant::None if tally.qos_refused_by == NO_RANK => return Some(tally.verdict),
            Grant::None => (Denial::QosRefused, tally.qos_refused_by),
            Grant::Found(rank) => (Denial::NotAuthorized, rank),
            Grant::TooComplex => (Denial::TooComplex, NO_RANK),
        };
        Some(tally.refused(denial, rank))
    }

    /// One check of the tables. When it is over, the next one begins from the start.
    fn run(
        &self,
        sought: Mark,
        tries: impl Iterator<Item = &'a TopicTrie>,
        for_deliveries: impl Iterator<Item = &'a TopicTrie>,
        half: &mut HalfJudged,
        effort: &mut Effort,
    ) -> Option<(Grant, Tally)> {
        let snapshot = self.snapshot;
        let (tally, shadow) = (&mut half.check, &mut half.shadow);
        let mark = |rank: u32| snapshot.outcome(rank).mark();
        let mut decided = |rank: u32| {
            if rank < *shadow && snapshot.outcome(rank).is_shadow {
                *shadow = rank;
            }
        };
        let check = Check::new(
            sought,
            tries,
            for_deliveries,
            self.bound,
            &mark,
            &mut decided,
            effort,
        );
        let (verdict, qos_refused_by) = (&mut tally.verdict, &mut tally.qos_refused_by);
        let mut covered = |rank: u32| {
            let outcome = snapshot.outcome(rank);
            if outcome.effect == Effect::Deny {
                return;
            }
            verdict.rule = verdict.rule.or(rule(rank));
            verdict.qos_max = verdict.qos_max.min(outcome.qos_max);
            if self.qos > outcome.qos_max && outcome.qos_over == QosOver::Refuse {
                *qos_refused_by = (*qos_refused_by).min(rank);
            }
        };
        let grant = check.run(&mut tally.walk, self.filter, |first: First| {
            covered(first.asked);
            covered(first.delivered);
        })?;
        Some((grant, std::mem::take(&mut half.check)))
    }
}

impl Tally {
    fn refused(&self, denial: Denial, rank: u32) -> Verdict {
        Verdict {
            decision: Decision::Deny(denial),
            rule: rule(rank),
            qos_max: QoS::ExactlyOnce,
            ..self.verdict
        }
    }
}
