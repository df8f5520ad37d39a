//! What is taken from a subscription that is narrowed: which rules refuse some of it, and whether the default does.
//!
//! A rule takes something exactly when it decides about what its filter and the subscription have in common at some depth.
//! The check of deliveries is asked about a topic of that, in which a value that no rule names stands for the wildcards.

use serde::Serialize;

use super::{Asked, PASSED_OVER_MAX, vars};
use crate::rows::Mode;
use crate::tables::level::LEVELS_MAX;
use crate::{
    Action, Classes, Decision, Denial, Effect, Message, RuleId, Snapshot, Vars, Verdict, Who,
};

use sluice_wire::mqtt::QoS;

/// Who takes what from a narrowed subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Narrowed {
    /// Rules that refuse some of it, in the order in which rules are asked.
    pub by: Vec<String>,
    /// How many more there are.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub left_off: usize,
    /// True exactly when some of it is refused because no rule matches.
    pub by_default: bool,
}

impl std::fmt::Display for Narrowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut names: Vec<String> = self.by.iter().map(|rule| format!("`{rule}`")).collect();
        if self.left_off > 0 {
            names.push(format!("{} more rules", self.left_off));
        }
        if self.by_default {
            names.push("the default".into());
        }
        write!(
            f,
            "narrowed: what is refused by {} is not delivered",
            names.join(", ")
        )
    }
}

impl Snapshot {
    pub(super) fn narrowed(&self, who: &Who<'_>, classes: &Classes, filter: &str) -> Narrowed {
        let vars = vars(who);
        let fresh = self.fresh_level(&vars, filter);
        let asked = Asked::filter(filter);
        let rules = || self.rules.iter().flat_map(|(_, rule)| rule.topics());
        let deepest = rules().map(|filter| filter.levels().count()).max();
        let depth_max = (deepest.unwrap_or(0).max(asked.levels.len()) + 1).min(LEVELS_MAX);
        let first = |topic: &str| self.first_for_deliveries(classes, &vars, topic);
        let mut narrowed = Narrowed {
            by: Vec::new(),
            left_off: 0,
            by_default: asked.topics(&asked, depth_max, &fresh).any(|topic| {
                let verdict = first(&topic);
                verdict.rule.is_none() && verdict.decision == Decision::Deny(Denial::NotAuthorized)
            }),
        };
        for (rank, rule) in self.rules.iter() {
            let is_deny = rule.enabled
                && rule.effect == Effect::Deny
                && rule.mode == Mode::Enforce
                && rule.actions.judges_deliveries();
            let decides = || {
                let mut filters = rule.topics().map(|filter| Asked::rule(filter, &vars));
                filters.any(|own| {
                    let mut topics = asked.topics(&own, depth_max, &fresh);
                    own.overlaps(&asked)
                        && topics.any(|topic| first(&topic).rule == Some(RuleId(rank)))
                })
            };
            if !is_deny || !decides() {
                continue;
            }
            if narrowed.by.len() < PASSED_OVER_MAX {
                narrowed.by.push(rule.name().to_owned());
            } else {
                narrowed.left_off += 1;
            }
        }
        narrowed
    }

    fn first_for_deliveries(&self, classes: &Classes, vars: &Vars<'_>, topic: &str) -> Verdict {
        let any = Message {
            qos: QoS::AtMostOnce,
            retain: false,
            payload_bytes: 0,
        };
        self.ruling(classes, vars, Action::Receive, topic)
            .verdict(any)
    }

    /// A level that stands in no rule, in no variable and not in the filter.
    fn fresh_level(&self, vars: &Vars<'_>, filter: &str) -> String {
        let mut texts = vec![vars.client_id, vars.username, filter];
        texts.extend(
            self.rules
                .iter()
                .flat_map(|(_, rule)| rule.topics())
                .map(|topic| topic.as_str()),
        );
        let is_fresh = |level: &String| !texts.iter().any(|text| text.contains(level.as_str()));
        (0_u64..)
            .map(|number| format!("any{number}"))
            .find(is_fresh)
            .unwrap_or_default()
    }
}

impl Asked<'_> {
    /// One topic for each depth at which both filters deliver.
    fn topics<'t>(
        &'t self,
        other: &'t Self,
        depth_max: usize,
        fresh: &'t str,
    ) -> impl Iterator<Item = String> {
        let least = self.levels.len().max(other.levels.len()).max(1);
        let most = if self.is_multi && other.is_multi {
            depth_max
        } else {
            least
        };
        let level = move |index: usize| {
            let of = |asked: &Self| asked.levels.get(index).copied().flatten();
            of(self).or_else(|| of(other)).unwrap_or(fresh)
        };
        let topics = (least..=most).map(move |depth| {
            let levels: Vec<&str> = (0..depth).map(level).collect();
            levels.join("/")
        });
        topics.filter(|topic| !topic.is_empty())
    }
}
