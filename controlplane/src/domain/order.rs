//! Order keys of rules: numbers that say which of two rules of equal priority is asked first, and that stay what they are
//! when a document is edited elsewhere. A rule put in, moved or taken out is then one changed row, and one row to send.
//!
//! Decides about keys only; which rule comes first is what the document says. Pure.
//!
//! # Invariants
//!
//! - Within a priority keys rise in the order of the document, so asking by (priority, key) asks in its order.
//! - A rule keeps its key as long as its order among the rules that keep theirs allows, and a number is left for what
//!   comes between them.

use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt};
use sluice_policy::fleet::Inventory;
use sluice_policy::rows::{Located, Rows};
use sluice_proto::v1::{self, RowKind, row::Kind};
use sluice_proto::{DecodeError, Message};

/// Between neighbours that come into being together: twenty insertions at one place before a neighbour must move.
const GAP: i64 = 1 << 20;
/// Keys beyond this, either way, are made anew: a document that names `order` itself may have used any number.
const KEY_MAX: i64 = 1 << 61;
/// What must be left between neighbours once some of them had to move, so that the next insertion there moves none.
const STEP_MIN: i64 = 1 << 8;

/// Gives every rule a key, those of `before` where they can stay. A document in which any rule names `order` is left as it
/// is: there keys are compared with places.
pub fn keep_order(rows: &mut Rows, before: &Inventory) -> Result<(), DecodeError> {
    if rows.rules.iter().any(|rule| rule.order.is_some()) {
        return Ok(());
    }
    let held = held_keys(before)?;
    let mut groups: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (place, rule) in rows.rules.iter().enumerate() {
        let priority = rule.priority.as_ref().map_or(0, |priority| priority.value);
        groups.entry(priority).or_default().push(place);
    }
    for places in groups.into_values() {
        let known = places.iter().map(|place| {
            let rule = rows.rules.get(*place)?;
            held.get(&rule.name.value).copied()
        });
        let keys = keys(&known.collect::<Vec<_>>());
        for (place, key) in places.into_iter().zip(keys) {
            if let Some(rule) = rows.rules.get_mut(place) {
                rule.order = Some(Located {
                    value: key,
                    at: rule.at,
                });
            }
        }
    }
    Ok(())
}

/// Keys of the rules there are, by name.
fn held_keys(rows: &Inventory) -> Result<HashMap<Box<str>, i64>, DecodeError> {
    let mut keys = HashMap::new();
    for (key, row) in rows.iter().filter(|(key, _)| key.kind == RowKind::Rule) {
        let row = v1::Row::decode(row.clone())?;
        if let Some(Kind::Rule(v1::Rule {
            order: Some(order), ..
        })) = row.kind
        {
            keys.insert(key.name.clone(), order);
        }
    }
    Ok(keys)
}

/// Rising keys for rules in their order, given the key that each has, if any.
fn keys(held: &[Option<i64>]) -> Vec<i64> {
    let mut keys = rising(held);
    let mut at = 0;
    while at < keys.len() {
        let run = keys.iter().skip(at).take_while(|key| key.is_none()).count();
        if run > 0 {
            at = fill(&mut keys, at, at + run);
        } else {
            at += 1;
        }
    }
    keys.into_iter().map(Option::unwrap_or_default).collect()
}

/// Gives keys to `start..end`, and to as many neighbours as must move for that. All before `start` have keys. Gives the
/// place up to which all have.
fn fill(keys: &mut [Option<i64>], start: usize, end: usize) -> usize {
    let (mut start, mut end) = (start, end);
    let mut widen = 1;
    let mut step_min = 1;
    loop {
        let low = start.checked_sub(1).and_then(|place| keys.get(place));
        let low = low.copied().flatten();
        let high = keys.get(end).copied().flatten();
        let room = room(low, high, end - start, step_min);
        if let Some((first, step)) = room {
            let window = keys.iter_mut().skip(start).take(end - start);
            let numbers = std::iter::successors(Some(first), |key| key.checked_add(step));
            for (key, number) in window.zip(numbers) {
                *key = Some(number);
            }
            return end;
        }
        start = start.saturating_sub(widen);
        end = (end + widen).min(keys.len());
        // Up to the next that has a key: what lies between is still to be given one anyway.
        end += keys
            .iter()
            .skip(end)
            .take_while(|key| key.is_none())
            .count();
        widen *= 2;
        step_min = STEP_MIN;
    }
}

/// The first key and the step for `count` keys between two bounds; `None` when they do not fit. Without bounds they do.
fn room(low: Option<i64>, high: Option<i64>, count: usize, step_min: i64) -> Option<(i64, i64)> {
    let count = i64::try_from(count).unwrap_or(KEY_MAX / GAP);
    let (first, step) = match (low, high) {
        (None, None) => return Some((0, GAP)),
        (Some(low), None) => (low + GAP, GAP),
        (None, Some(high)) => (high - GAP * count, GAP),
        (Some(low), Some(high)) => {
            let step = (high - low) / (count + 1);
            (low + step, step)
        }
    };
    let last = first + step * (count - 1);
    (step >= step_min && first >= -KEY_MAX && last <= KEY_MAX).then_some((first, step))
}

/// The longest strictly rising choice of the keys; the others left out.
fn rising(held: &[Option<i64>]) -> Vec<Option<i64>> {
    // By length of a rising choice: the place and key where the one that ends lowest ends.
    let mut ends: Vec<(usize, i64)> = Vec::new();
    let mut previous: Vec<Option<usize>> = vec![None; held.len()];
    for (place, key) in held.iter().enumerate() {
        let Some(key) = key.filter(|key| (-KEY_MAX..=KEY_MAX).contains(key)) else {
            continue;
        };
        let length = ends.partition_point(|(_, end)| *end < key);
        if let (Some(link), Some((before, _))) = (
            previous.get_mut(place),
            length.checked_sub(1).and_then(|length| ends.get(length)),
        ) {
            *link = Some(*before);
        }
        match ends.get_mut(length) {
            Some(end) => *end = (place, key),
            None => ends.push((place, key)),
        }
    }
    let mut chosen = vec![None; held.len()];
    let mut next = ends.last().map(|(place, _)| *place);
    while let Some(place) = next {
        if let (Some(chosen), Some(held)) = (chosen.get_mut(place), held.get(place)) {
            *chosen = *held;
        }
        next = previous.get(place).copied().flatten();
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sluice_policy::convert;
    use sluice_policy::rows::RuleRow;

    fn rule(name: usize, priority: i64) -> RuleRow {
        RuleRow {
            name: Located {
                value: format!("r{name}").into(),
                ..Located::default()
            },
            priority: Some(Located {
                value: priority,
                ..Located::default()
            }),
            ..RuleRow::default()
        }
    }

    /// What is asked first, by the keys of the rows.
    fn asked(rows: &Inventory) -> Vec<String> {
        let mut rules: Vec<_> = rows
            .messages()
            .unwrap()
            .into_iter()
            .filter_map(|row| match row.kind {
                Some(Kind::Rule(rule)) => Some((
                    std::cmp::Reverse(rule.priority()),
                    rule.order(),
                    rule.tie,
                    row.name,
                )),
                _ => None,
            })
            .collect();
        rules.sort();
        rules.into_iter().map(|(.., name)| name).collect()
    }

    /// What is asked first, by the document.
    fn meant(document: &[(usize, i64)]) -> Vec<String> {
        let mut rules = document.to_vec();
        rules.sort_by_key(|(_, priority)| std::cmp::Reverse(*priority));
        rules.iter().map(|(name, _)| format!("r{name}")).collect()
    }

    fn stored(document: &[(usize, i64)], before: &Inventory) -> Inventory {
        let mut rows = Rows {
            rules: document.iter().map(|(n, p)| rule(*n, *p)).collect(),
            ..Rows::default()
        };
        keep_order(&mut rows, before).unwrap();
        Inventory::from_messages(&convert::to_messages(&rows)).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Edit {
        Insert(usize, i64),
        Delete(usize),
        Move(usize, usize),
        Priority(usize, i64),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let place = 0..64_usize;
        prop_oneof![
            4 => (place.clone(), 0..2_i64).prop_map(|(at, priority)| Edit::Insert(at, priority)),
            2 => place.clone().prop_map(Edit::Delete),
            2 => (place.clone(), place.clone()).prop_map(|(from, to)| Edit::Move(from, to)),
            1 => (place, 0..2_i64).prop_map(|(at, priority)| Edit::Priority(at, priority)),
        ]
    }

    fn apply(document: &mut Vec<(usize, i64)>, edit: &Edit, fresh: usize) {
        let len = document.len();
        match edit {
            Edit::Insert(at, priority) => document.insert(at % (len + 1), (fresh, *priority)),
            _ if len == 0 => {}
            Edit::Delete(at) => {
                document.remove(at % len);
            }
            Edit::Move(from, to) => {
                let moved = document.remove(from % len);
                document.insert(to % len, moved);
            }
            Edit::Priority(at, priority) => document[at % len].1 = *priority,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_keys_ask_in_the_order_of_the_document_and_an_edit_changes_one_row(
            edits in proptest::collection::vec(edit(), 1..40)
        ) {
            let mut document: Vec<(usize, i64)> = (0..8).map(|n| (n, 0)).collect();
            let mut rows = stored(&document, &Inventory::default());
            let mut changed = 0;
            for (number, edit) in edits.iter().enumerate() {
                apply(&mut document, edit, 100 + number);
                let next = stored(&document, &rows);
                prop_assert_eq!(asked(&next), meant(&document));
                changed += rows.changes_to(&next).len();
                rows = next;
            }
            prop_assert!(changed <= edits.len() + edits.len() / 4, "{} of {}", changed, edits.len());
        }

        #[test]
        fn any_keys_that_a_document_had_are_taken_over_or_replaced(
            held in proptest::collection::vec(
                proptest::option::of(prop_oneof![
                    -5..5_i64, Just(i64::MIN), Just(i64::MAX), Just(KEY_MAX), Just(-KEY_MAX), any::<i64>()
                ]),
                0..24,
            )
        ) {
            let keys = keys(&held);
            prop_assert_eq!(keys.len(), held.len());
            prop_assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", keys);
        }

        #[test]
        fn the_longest_rising_choice_is_kept(held in proptest::collection::vec(0..12_i64, 0..12)) {
            let held: Vec<Option<i64>> = held.into_iter().map(Some).collect();
            let chosen = rising(&held);
            let kept: Vec<i64> = chosen.iter().flatten().copied().collect();
            prop_assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
            let mut longest = 0;
            for subset in 0..1_u32 << held.len() {
                let some: Vec<i64> = (0..held.len())
                    .filter(|place| subset >> place & 1 == 1)
                    .filter_map(|place| held[place])
                    .collect();
                if some.windows(2).all(|pair| pair[0] < pair[1]) {
                    longest = longest.max(some.len());
                }
            }
            prop_assert_eq!(kept.len(), longest);
        }
    }

    #[test]
    fn a_thousand_insertions_at_one_place_change_few_other_rows() {
        let mut document: Vec<(usize, i64)> = (0..50).map(|n| (n, 0)).collect();
        let mut rows = stored(&document, &Inventory::default());
        let mut changed = 0;
        for number in 0..1000 {
            document.insert(25, (100 + number, 0));
            let next = stored(&document, &rows);
            changed += rows.changes_to(&next).len();
            rows = next;
        }
        assert_eq!(asked(&rows), meant(&document));
        assert!(changed < 3000, "{changed}");
    }

    #[test]
    fn a_rule_moved_past_rules_of_another_priority_changes_nothing() {
        let rows = stored(&[(0, 0), (1, 5), (2, 0)], &Inventory::default());
        let moved = stored(&[(1, 5), (0, 0), (2, 0)], &rows);
        assert!(rows.changes_to(&moved).is_empty());
    }

    #[test]
    fn a_document_that_names_an_order_is_taken_as_written() {
        let mut rows = Rows {
            rules: vec![rule(0, 0), rule(1, 0)],
            ..Rows::default()
        };
        rows.rules[1].order = Some(Located {
            value: -7,
            ..Located::default()
        });
        keep_order(&mut rows, &Inventory::default()).unwrap();
        let orders: Vec<_> = rows.rules.iter().map(|rule| rule.order.clone()).collect();
        assert_eq!(orders[0], None);
        assert_eq!(orders[1].as_ref().map(|order| order.value), Some(-7));
    }
}
