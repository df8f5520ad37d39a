//! Filters that a session may subscribe to, inside one that it may not: what to write instead.
//!
//! Candidates are what the filter has in common with filters that rules allow, and filters that end where it goes on. Each is
//! put to the check that grants subscriptions before it is shown. Everything is bounded, so there may be others.

use std::cmp::Reverse;

use sluice_wire::mqtt::QoS;

use crate::effort::Effort;
use crate::explain::Asked;
use crate::rows::Mode;
use crate::{Classes, Decision, Effect, Snapshot, Vars};

/// How many are shown.
const SHOWN_MAX: usize = 5;
/// How many are tried.
const TRIED_MAX: usize = 64;
/// How many filters of rules are looked at.
const LOOKED_AT_MAX: usize = 10_000;
/// Nodes that all checks together may visit: twenty of the most that one may.
const NODES_MAX: u32 = 200_000;
/// Levels put in the place of a `#`, at most.
const DEEPER_MAX: usize = 2;

/// The broadest that were found, none of them inside another.
pub(crate) fn find(
    snapshot: &Snapshot,
    classes: &Classes,
    vars: &Vars<'_>,
    filter: &str,
    qos: QoS,
) -> Vec<String> {
    let mut effort = Effort::new(NODES_MAX);
    let mut found: Vec<String> = Vec::new();
    for candidate in candidates(snapshot, classes, vars, filter) {
        if found.len() == SHOWN_MAX {
            break;
        }
        let asked = Asked::filter(&candidate);
        if found
            .iter()
            .any(|found| Asked::filter(found).contains(&asked))
        {
            continue;
        }
        let mut half = None;
        let verdict = snapshot.subscribe_within(
            classes,
            vars,
            &candidate,
            qos,
            false,
            &mut effort,
            &mut half,
        );
        match verdict {
            Some(verdict) if verdict.decision == Decision::Allow && !verdict.is_narrowed => {
                found.push(candidate);
            }
            Some(_) => {}
            None => break,
        }
    }
    found
}

/// What may be tried, the broadest first.
fn candidates(
    snapshot: &Snapshot,
    classes: &Classes,
    vars: &Vars<'_>,
    filter: &str,
) -> Vec<String> {
    let asked = Asked::filter(filter);
    let rules = &snapshot.rules;
    let allowed = classes
        .ids
        .iter()
        .flat_map(|class| rules.members_of(*class))
        .filter_map(|rank| rules.rule(rank))
        .filter(|rule| {
            rule.actions.subscribe && rule.effect == Effect::Allow && rule.mode == Mode::Enforce
        })
        .flat_map(|rule| rule.topics())
        .take(LOOKED_AT_MAX);
    let mut candidates: Vec<String> = allowed
        .filter_map(|topic| Asked::rule(topic, vars).meet(&asked))
        .collect();
    candidates.push(filter.to_owned());
    broadest_first(&mut candidates);
    candidates.truncate(TRIED_MAX);
    let ended: Vec<String> = candidates.iter().flat_map(|one| ends_of(one)).collect();
    candidates.extend(ended);
    candidates.retain(|candidate| candidate != filter);
    broadest_first(&mut candidates);
    candidates.truncate(TRIED_MAX);
    candidates
}

/// `a`, `a/+`, `a/+/+` for `a/#`.
fn ends_of(filter: &str) -> impl Iterator<Item = String> {
    let body = filter.strip_suffix("/#");
    let body = body.or((filter == "#").then_some("")).map(str::to_owned);
    body.into_iter().flat_map(|body| {
        (0..=DEEPER_MAX).filter_map(move |levels| {
            let deeper = ["+"; DEEPER_MAX].get(..levels)?.join("/");
            match (&*body, levels) {
                ("", 0) => None,
                ("", _) => Some(deeper),
                (body, 0) => Some(body.to_owned()),
                (body, _) => Some(format!("{body}/{deeper}")),
            }
        })
    })
}

fn broadest_first(filters: &mut Vec<String>) {
    let key = |filter: &String| {
        let count = |is: fn(&str) -> bool| filter.split('/').filter(|level| is(level)).count();
        let literals = count(|level| !matches!(level, "+" | "#"));
        let open = Reverse(count(|level| level == "+"));
        (!filter.ends_with('#'), literals, open, filter.clone())
    };
    filters.sort_by_cached_key(key);
    filters.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_with_a_hash_has_ends() {
        for (filter, expected) in [
            ("a/#", &["a", "a/+", "a/+/+"][..]),
            ("#", &["+", "+/+"]),
            ("a/+", &[]),
            ("a", &[]),
        ] {
            assert_eq!(ends_of(filter).collect::<Vec<_>>(), expected, "{filter}");
        }
    }

    #[test]
    fn what_two_filters_have_in_common() {
        for (left, right, expected) in [
            ("#", "a/b", Some("a/b")),
            ("a/#", "a", Some("a")),
            ("a/#", "+/b/#", Some("a/b/#")),
            ("a/+/c", "a/b/#", Some("a/b/c")),
            ("a/+", "a/b/c", None),
            ("a/b", "a/c", None),
            ("#", "$SYS/#", None),
            ("$SYS/#", "+/a", None),
            ("$SYS/#", "$SYS/a", Some("$SYS/a")),
            ("#", "#", Some("#")),
            ("/#", "+/+", Some("/+")),
        ] {
            for (one, other) in [(left, right), (right, left)] {
                let found = Asked::filter(one).meet(&Asked::filter(other));
                assert_eq!(found.as_deref(), expected, "{one} {other}");
            }
        }
    }
}
