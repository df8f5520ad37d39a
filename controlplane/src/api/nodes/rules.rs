//! Pages of rules with their counts, added up over nodes, in the order in which rules are asked.
//!
//! Each node lists its rules in that order from the same place on. What all have told of is known as a whole; what lies
//! behind the place where one of them stopped is asked for again in the next round. Rows that differ between nodes, while a
//! generation is on its way, count for the same rule when they stand at the same place.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use sluice_proto::control::v1::{FleetRule, NodeAnswer, RulesRequest, RulesResponse};
use sluice_proto::v1::{RulePage, RulePlace, rule_page};
use tokio::time::Instant;
use tonic::Status;

use super::{answers, name};
use crate::domain::Name;
use crate::fleet::{Answer, Capability, Fleet, Question};

/// Rules of a page unless said otherwise, and at most.
const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1000;
/// Longest name of a rule that a node may pass on.
const NAME_BYTES_MAX: usize = 1024;

/// A request, checked.
pub(super) struct Wish {
    /// Only this one.
    pub(super) node: Option<Name>,
    only_unused: bool,
    only_shadow: bool,
    limit: u32,
    behind: Option<RulePlace>,
}

impl Wish {
    /// Checks it.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    pub(super) fn read(request: RulesRequest) -> Result<Self, Status> {
        let limit = request.limit.unwrap_or(LIMIT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Status::invalid_argument("`limit` must be 1 to 1000"));
        }
        let behind = request.behind.as_ref();
        if behind.is_some_and(|place| place.name.len() > NAME_BYTES_MAX) {
            return Err(Status::invalid_argument("`behind` is what `next` said"));
        }
        Ok(Self {
            node: request.node.as_deref().map(name).transpose()?,
            only_unused: request.only_unused,
            only_shadow: request.only_shadow,
            limit,
            behind: request.behind,
        })
    }
}

/// What rules are asked in the order of.
type Key = (Reverse<i64>, i64, u64, String);

fn key(place: &RulePlace) -> Key {
    let name = place.name.clone();
    (Reverse(place.priority), place.order, place.tie, name)
}

fn place((Reverse(priority), order, tie, name): &Key) -> RulePlace {
    RulePlace {
        priority: *priority,
        order: *order,
        tie: *tie,
        name: name.clone(),
    }
}

/// Asks all nodes, part by part, until the page is full, the last rule was seen, or it takes too long.
pub(super) async fn page(fleet: &Fleet, wish: Wish) -> RulesResponse {
    let until = Instant::now() + fleet.limits().page;
    let limit = usize::try_from(wish.limit).unwrap_or(usize::MAX);
    let mut page = RulesResponse {
        next: wish.behind.clone(),
        ..RulesResponse::default()
    };
    let mut nodes = members(fleet, &wish, &mut page);
    loop {
        let found = ask_all(fleet, &wish, page.next.take(), &mut nodes, &mut page).await;
        let round = Round::of(found);
        page.nodes = round.nodes;
        page.by_default = round.by_default;
        page.left_off = round.left_off;
        page.since_unix_ms = round.since_unix_ms;
        page.next = round.horizon.as_ref().map(place);
        let mut rules = round.rules.into_values();
        for rule in rules.by_ref() {
            if wish.only_unused && rule.decided > 0 {
                continue;
            }
            page.rules.push(rule);
            if page.rules.len() >= limit {
                break;
            }
        }
        if rules.next().is_some() {
            page.next = page.rules.last().and_then(|rule| rule.place.clone());
        }
        let is_full = page.rules.len() >= limit;
        if is_full || page.next.is_none() || Instant::now() >= until {
            return page;
        }
    }
}

/// The nodes that can be asked; those that cannot are noted.
fn members(fleet: &Fleet, wish: &Wish, page: &mut RulesResponse) -> Vec<Name> {
    let only = wish.node.clone().into_iter().collect::<Vec<_>>();
    let views = fleet.views(&only).unwrap_or_default();
    let mut nodes = Vec::new();
    for view in views {
        match fleet.can(&view.name, Capability::Rules) {
            Ok(()) => nodes.push(view.name),
            Err(error) => page.failed.push(failed(&view.name, error)),
        }
    }
    nodes
}

/// One round. A node that does not answer is noted and asked no more: a part of its counts would be no sum.
async fn ask_all(
    fleet: &Fleet,
    wish: &Wish,
    behind: Option<RulePlace>,
    nodes: &mut Vec<Name>,
    page: &mut RulesResponse,
) -> Vec<RulePage> {
    // All are asked before the first is waited for, so a silent one delays nobody.
    let asked: Vec<_> = nodes
        .iter()
        .map(|node| {
            let question = Question::Rules {
                behind: behind.clone(),
                limit: LIMIT_MAX,
                only_shadow: wish.only_shadow,
            };
            fleet.ask(node, Capability::Rules, question)
        })
        .collect();
    let (mut found, mut answering) = (Vec::new(), Vec::new());
    for (node, pending) in std::mem::take(nodes).into_iter().zip(asked) {
        let answer = match pending {
            Ok(pending) => fleet.answer(pending).await,
            Err(why) => Err(why),
        };
        match answer.and_then(|answer| checked(answer, behind.as_ref())) {
            Ok(of_node) => {
                found.push(of_node);
                answering.push(node);
            }
            Err(error) => page.failed.push(failed(&node, error)),
        }
    }
    *nodes = answering;
    found
}

fn failed(node: &Name, error: String) -> NodeAnswer {
    NodeAnswer {
        node: node.as_str().to_owned(),
        sessions: 0,
        error,
    }
}

/// The page of a node, when it is one: in order, from the place asked for on, and nearer to the end.
fn checked(answer: Answer, behind: Option<&RulePlace>) -> Result<RulePage, String> {
    let page = match answer {
        Answer::Rules(page) => page,
        Answer::Done(_) | Answer::Sessions(_) | Answer::Denials(_) => {
            return Err("the node answered something else".to_owned());
        }
    };
    if !page.error.is_empty() {
        return Err(answers::line(page.error));
    }
    let places = page.rules.iter().map(|rule| rule.place.as_ref());
    let places: Option<Vec<&RulePlace>> = behind.map(Some).into_iter().chain(places).collect();
    let is_good = places.is_some_and(|places| {
        let is_short = places
            .iter()
            .all(|place| place.name.len() <= NAME_BYTES_MAX);
        let is_sorted = places.is_sorted_by(|one, other| key(one) < key(other));
        let next = page.next.as_ref().map(key);
        let last = places.last().map(|place| key(place));
        let is_ahead = next.is_none_or(|next| {
            last.is_none_or(|last| next >= last) && Some(&next) != behind.map(key).as_ref()
        });
        is_short && is_sorted && is_ahead && page.rules.len() <= LIMIT_MAX as usize
    });
    if is_good {
        Ok(page)
    } else {
        Err("the node answered with rules that were not asked for".to_owned())
    }
}

/// What all nodes have told of, added up.
#[derive(Default)]
struct Round {
    rules: BTreeMap<Key, FleetRule>,
    /// The first place where a node stopped; `None`: all have come to the end.
    horizon: Option<Key>,
    nodes: u32,
    by_default: u64,
    left_off: u64,
    since_unix_ms: u64,
}

impl Round {
    fn of(pages: Vec<RulePage>) -> Self {
        let mut round = Self {
            horizon: pages
                .iter()
                .filter_map(|page| page.next.as_ref().map(key))
                .min(),
            ..Self::default()
        };
        for page in pages {
            round.nodes += 1;
            round.by_default += page.by_default;
            round.left_off += page.left_off;
            round.since_unix_ms = round.since_unix_ms.max(page.since_unix_ms);
            for rule in page.rules {
                round.add(rule);
            }
        }
        round
    }

    fn add(&mut self, rule: rule_page::Rule) {
        let place = rule.place.unwrap_or_default();
        let key = key(&place);
        if self.horizon.as_ref().is_some_and(|horizon| key > *horizon) {
            return; // another node has not told of it yet
        }
        let sum = self.rules.entry(key).or_default();
        sum.place = Some(place);
        sum.is_shadow |= rule.is_shadow;
        sum.denies |= rule.denies;
        sum.decided += rule.decided;
        sum.otherwise += rule.otherwise;
        sum.since_unix_ms = sum.since_unix_ms.max(rule.since_unix_ms);
        sum.nodes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(priority: i64, name: &str) -> RulePlace {
        RulePlace {
            priority,
            name: name.into(),
            ..RulePlace::default()
        }
    }

    fn rule(place: RulePlace, decided: u64, since_unix_ms: u64) -> rule_page::Rule {
        rule_page::Rule {
            place: Some(place),
            decided,
            since_unix_ms,
            ..rule_page::Rule::default()
        }
    }

    #[test]
    fn nodes_are_added_up_as_far_as_all_have_told() {
        let ended = RulePage {
            rules: vec![
                rule(at(9, "a"), 1, 50),
                rule(at(0, "b"), 0, 50),
                rule(at(0, "d"), 7, 50),
            ],
            by_default: 3,
            since_unix_ms: 50,
            ..RulePage::default()
        };
        let stopped = RulePage {
            rules: vec![rule(at(9, "a"), 2, 60), rule(at(0, "c"), 4, 60)],
            next: Some(at(0, "c")),
            by_default: 4,
            since_unix_ms: 40,
            ..RulePage::default()
        };
        let round = Round::of(vec![ended, stopped]);
        let found: Vec<_> = round
            .rules
            .values()
            .map(|rule| {
                let name = rule.place.as_ref().map_or("", |place| &place.name);
                (name, rule.decided, rule.since_unix_ms, rule.nodes)
            })
            .collect();
        assert_eq!(found, [("a", 3, 60, 2), ("b", 0, 50, 1), ("c", 4, 60, 1)]);
        assert_eq!(round.horizon, Some(key(&at(0, "c"))));
        assert_eq!(
            (round.nodes, round.by_default, round.since_unix_ms),
            (2, 7, 50)
        );
    }

    #[test]
    fn a_node_that_repeats_itself_or_goes_back_is_not_believed() {
        let page = |places: &[RulePlace], next: Option<RulePlace>| {
            Answer::Rules(RulePage {
                rules: places
                    .iter()
                    .map(|place| rule(place.clone(), 0, 0))
                    .collect(),
                next,
                ..RulePage::default()
            })
        };
        let of = |names: &[&str], next: Option<&str>| {
            let places: Vec<RulePlace> = names.iter().map(|name| at(0, name)).collect();
            let behind = at(0, "a");
            checked(page(&places, next.map(|name| at(0, name))), Some(&behind)).is_ok()
        };
        assert!(of(&["b", "c"], Some("c")));
        assert!(of(&[], Some("b")) && of(&[], None));
        assert!(!of(&[], Some("a")), "no end");
        assert!(!of(&["a"], None), "again");
        assert!(!of(&["c", "b"], None), "order");
        assert!(!of(&["c"], Some("b")), "back");
        let long = at(0, &"x".repeat(NAME_BYTES_MAX + 1));
        assert!(checked(page(std::slice::from_ref(&long), None), None).is_err());
        let refused = RulePage {
            error: "busy\n".into(),
            ..RulePage::default()
        };
        assert_eq!(
            checked(Answer::Rules(refused), None),
            Err("busy ".to_owned())
        );
    }

    #[test]
    fn a_request_beyond_its_bounds_is_refused() {
        for limit in [0, 1001] {
            let request = RulesRequest {
                limit: Some(limit),
                ..RulesRequest::default()
            };
            assert!(Wish::read(request).is_err());
        }
        let request = RulesRequest {
            behind: Some(at(0, &"x".repeat(NAME_BYTES_MAX + 1))),
            ..RulesRequest::default()
        };
        assert!(Wish::read(request).is_err());
        assert!(Wish::read(RulesRequest::default()).is_ok());
    }
}
