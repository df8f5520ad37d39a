//! The rules of a snapshot in the order in which they are asked, as operators look at them.
//!
//! Owns the place of a rule: where it stands in the order whatever else there is, so that a list goes on at the same place
//! in another snapshot, and lists of several nodes can be put together.

use std::cmp::{Ordering, Reverse};

use crate::model::RuleModel;
use crate::rows::Mode;
use crate::{Effect, RuleId, Snapshot};

/// Where a rule stands in the order. The smaller one is asked first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlace {
    /// The higher one first.
    pub priority: i64,
    /// Within a priority.
    pub order: i64,
    /// Among rules that are equal in both.
    pub tie: u64,
    /// Among rules that are equal in all of these.
    pub name: Box<str>,
}

impl RulePlace {
    fn key(&self) -> (Reverse<i64>, i64, u64, &str) {
        (Reverse(self.priority), self.order, self.tie, &self.name)
    }
}

impl Ord for RulePlace {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for RulePlace {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One rule.
#[derive(Clone, Copy)]
pub struct RuleLine<'s> {
    /// Its number in this snapshot.
    pub id: RuleId,
    rule: &'s RuleModel,
}

impl<'s> RuleLine<'s> {
    /// Its name.
    pub fn name(&self) -> &'s str {
        self.rule.name()
    }

    /// Where it stands.
    pub fn place(&self) -> RulePlace {
        RulePlace {
            priority: self.rule.priority,
            order: self.rule.order,
            tie: self.rule.tie,
            name: self.name().into(),
        }
    }

    /// The number of its row: the same in another snapshot of the process exactly while it is called and says the same.
    /// Rows that are new in a snapshot have higher numbers than all before.
    pub fn row(&self) -> u32 {
        self.rule.row
    }

    /// What it says when it decides.
    pub fn effect(&self) -> Effect {
        self.rule.effect
    }

    /// True exactly when it is tried in shadow: it decides nothing.
    pub fn is_shadow(&self) -> bool {
        self.rule.mode == Mode::Shadow
    }

    /// False: it is asked nothing.
    pub fn is_enabled(&self) -> bool {
        self.rule.enabled
    }
}

impl Snapshot {
    /// The rules behind a place, or all.
    pub fn rules_behind(&self, place: Option<&RulePlace>) -> impl Iterator<Item = RuleLine<'_>> {
        let is_before = move |rule: &RuleModel| {
            place.is_some_and(|place| {
                let key = (Reverse(rule.priority), rule.order, rule.tie, rule.name());
                key <= place.key()
            })
        };
        let rules = self.rules.behind(is_before);
        rules.map(|(rank, rule)| RuleLine {
            id: RuleId(rank),
            rule,
        })
    }

    /// The name of a rule, and whether it is in shadow, by its number.
    pub fn rule_kind(&self, rule: RuleId) -> Option<(&str, bool)> {
        let rule = self.rules.rule(rule.0)?;
        Some((rule.name(), rule.mode == Mode::Shadow))
    }

    /// The number of a rule's row; see [`RuleLine::row`].
    pub fn rule_row(&self, rule: RuleId) -> Option<u32> {
        self.rules.rule(rule.0).map(|rule| rule.row)
    }

    /// The number of every rule of this snapshot is below this.
    pub fn rule_ids_end(&self) -> u32 {
        self.rules.ranks_end()
    }

    /// The number of every row of this snapshot is below this. Lower than in the snapshot before: they began again.
    pub fn rows_end(&self) -> u32 {
        self.rules.rows_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Generation, compile};

    fn compiled(rules: &[&str], previous: Option<&Snapshot>) -> Snapshot {
        let rules: String = rules.iter().map(|rule| format!("  - {rule}\n")).collect();
        let document = format!("rules:\n{rules}");
        compile(&document, "p.yaml", Generation(1), previous)
            .unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn names(snapshot: &Snapshot, place: Option<&RulePlace>) -> Vec<String> {
        let rules = snapshot.rules_behind(place);
        rules.map(|rule| rule.name().to_owned()).collect()
    }

    fn row(snapshot: &Snapshot, name: &str) -> u32 {
        let mut rules = snapshot.rules_behind(None);
        rules
            .find(|rule| rule.name() == name)
            .expect("it is there")
            .row()
    }

    const A: &str = "{name: a, actions: [publish], topics: [a], decision: allow}";
    const B: &str =
        "{name: b, priority: 5, mode: shadow, actions: [publish], topics: [b], decision: deny}";
    const C: &str = "{name: c, enabled: false, actions: [publish], topics: [c], decision: allow}";

    #[test]
    fn a_list_goes_on_behind_a_place_whether_its_rule_is_there_or_not() {
        let snapshot = compiled(&[A, B, C], None);
        assert_eq!(names(&snapshot, None), ["b", "a", "c"]);
        let places: Vec<RulePlace> = snapshot
            .rules_behind(None)
            .map(|rule| rule.place())
            .collect();
        assert!(places.is_sorted());
        assert_eq!(names(&snapshot, places.first()), ["a", "c"]);
        assert_eq!(names(&snapshot, places.last()), [""; 0]);
        let without_a = compiled(
            &[
                B,
                "{name: z, order: 9, actions: [connect], decision: allow}",
            ],
            None,
        );
        assert_eq!(names(&without_a, places.get(1)), ["z"]);
        let kinds: Vec<_> = snapshot
            .rules_behind(None)
            .map(|rule| (rule.is_shadow(), rule.is_enabled(), rule.effect()))
            .collect();
        assert_eq!(
            kinds,
            [
                (true, true, Effect::Deny),
                (false, true, Effect::Allow),
                (false, false, Effect::Allow)
            ]
        );
    }

    #[test]
    fn a_row_keeps_its_number_while_it_says_the_same() {
        let first = compiled(&[A, B, C], None);
        assert_eq!(first.rows_end(), 3);
        // Another place in the document changes nothing; other words make it new.
        let changed_b = B.replace("deny", "allow");
        let second = compiled(&[C, &changed_b, A], Some(&first));
        assert_eq!(row(&second, "a"), row(&first, "a"));
        assert_eq!(row(&second, "c"), row(&first, "c"));
        assert_eq!((row(&second, "b"), second.rows_end()), (3, 4));
        // One that was away is new when it is back.
        let third = compiled(&[A, C], Some(&second));
        let fourth = compiled(&[A, &changed_b, C], Some(&third));
        assert_eq!((row(&fourth, "b"), fourth.rows_end()), (4, 5));
        assert_eq!(row(&fourth, "a"), row(&first, "a"));
    }
}
