//! What the rules say to one topic, before a message is looked at; and what that means for a message.
//!
//! The first half of a verdict depends on the snapshot, the session's classes and variables, the action and the topic; the
//! second on flags and length of the message. Whoever asks about one topic again and again may keep the first half.

use crate::rows::{QosOver, Retain};
use crate::snapshot::Outcome;
use crate::tables::NO_RANK;
use crate::{Decision, Denial, Effect, Message, RuleId, Verdict};

/// Which rule decides about a topic, and what it asks for. Valid for the snapshot, the classes, the variables, the action and
/// the topic that it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub(crate) enforced: Ranked,
    /// The shadow rule before it; the same as `enforced` where there is none.
    pub(crate) shadow: Ranked,
    /// The search was given up: refused, whatever the default says.
    pub(crate) is_too_complex: bool,
}

/// A rule by its rank, with what it asks for; the default's for [`NO_RANK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ranked {
    pub(crate) rank: u32,
    pub(crate) outcome: Outcome,
}

impl Ruling {
    /// Judges one message on this topic.
    #[inline]
    pub fn verdict(&self, message: Message) -> Verdict {
        let mut verdict = self.enforced.judge(message);
        if self.is_too_complex {
            verdict.decision = Decision::Deny(Denial::TooComplex);
        } else if self.shadow.rank != self.enforced.rank {
            verdict.shadow_first = rule(self.shadow.rank);
            verdict.shadow = self.shadow_rule(message, &verdict);
        }
        verdict
    }

    /// The shadow rule, when it would have decided otherwise.
    #[inline(never)]
    fn shadow_rule(&self, message: Message, verdict: &Verdict) -> Option<RuleId> {
        let other = self.shadow.judge(message);
        let is_same = other.decision == verdict.decision
            && other.qos_max.min(message.qos) == verdict.qos_max.min(message.qos)
            && other.strip_retain == verdict.strip_retain;
        if is_same { None } else { other.rule }
    }
}

impl Ranked {
    /// What the rule, or the default, says to one message.
    #[inline]
    fn judge(&self, message: Message) -> Verdict {
        let outcome = &self.outcome;
        let decision = if outcome.effect == Effect::Deny {
            Decision::Deny(Denial::NotAuthorized)
        } else if message.payload_bytes > outcome.payload_bytes_max {
            Decision::Deny(Denial::PayloadTooLarge)
        } else if message.retain && outcome.retain == Retain::Refuse {
            Decision::Deny(Denial::RetainRefused)
        } else if message.qos > outcome.qos_max && outcome.qos_over == QosOver::Refuse {
            Decision::Deny(Denial::QosRefused)
        } else {
            Decision::Allow
        };
        Verdict {
            decision,
            rule: rule(self.rank),
            qos_max: outcome.qos_max,
            strip_retain: decision == Decision::Allow
                && message.retain
                && outcome.retain == Retain::Strip,
            is_narrowed: false,
            on_deny: outcome.on_deny,
            shadow: None,
            shadow_first: None,
        }
    }
}

#[inline]
pub(crate) fn rule(rank: u32) -> Option<RuleId> {
    (rank != NO_RANK).then_some(RuleId(rank))
}
