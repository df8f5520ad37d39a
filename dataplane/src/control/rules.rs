//! How often each rule decided, over all shards and across generations.
//!
//! A shard counts each generation apart, since a rule has another number there. Once every shard has moved on, what was
//! counted before is carried over: a row that is called and says the same keeps its count and the time since when it is
//! counted, one that is gone or changed does not. Until then the generation before is shown, complete. Carrying over looks
//! at every rule, so it happens on a thread of low priority.
//!
//! # Invariants
//!
//! - **A count never falls while its row stays**: counts of two generations are shown together only when they are added up.
//! - **What is carried over is final**: each of its shards counts in a later generation.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use sluice_policy::{Effect, Generation, RuleId, RulePlace, Snapshot};

use super::apply::RETIRED_MAX;
use super::{ControlHandle, NoAnswer};
use crate::metrics::{RuleCount, RuleCounts};
use crate::node::ShardId;

/// Rules looked at for one page.
const LOOK_MAX: usize = 20_000;
/// Times of generations that are remembered; of older ones the oldest of these.
const TIMES_MAX: usize = 4_096;

/// Counts of the generations in force, oldest first. See the module documentation.
pub(super) struct Tallies {
    shards: usize,
    eras: Vec<Era>,
    /// What was counted before the first era, by its numbers.
    before: Arc<RuleCounts>,
    times: Arc<[Since]>,
    is_carrying: bool,
}

/// One generation.
struct Era {
    snapshot: Arc<Snapshot>,
    fleet_generation: Option<u64>,
    /// By shard; `None`: it has not come to this generation, or passed it over.
    counts: Vec<Option<Arc<RuleCounts>>>,
    by_name: Arc<OnceLock<Box<[u32]>>>,
}

/// Rows below this number, and not below that of the entry before, are counted since then.
#[derive(Clone, Copy, Debug)]
struct Since {
    rows_end: u32,
    unix_ms: u64,
}

/// What is to be carried over, and what came of it.
pub(super) struct Carried {
    /// Eras that are over.
    eras: Vec<Era>,
    before: Arc<RuleCounts>,
    to: Arc<Snapshot>,
}

impl Tallies {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            shards,
            eras: Vec::new(),
            before: Arc::new(RuleCounts::new(0, 0)),
            times: Arc::default(),
            is_carrying: false,
        }
    }

    /// True exactly when another generation can be taken on.
    pub(super) fn has_room(&self) -> bool {
        self.eras.len() < RETIRED_MAX
    }

    /// The shards will count by this one.
    pub(super) fn delivered(
        &mut self,
        snapshot: Arc<Snapshot>,
        fleet_generation: Option<u64>,
        unix_ms: u64,
    ) {
        let rows_end = snapshot.rows_end();
        let last = self.times.last().map(|since| since.rows_end);
        let mut times: Vec<Since> = match last {
            Some(last) if rows_end < last => Vec::new(), // their numbers began again
            Some(_) | None => self.times.to_vec(),
        };
        if last != Some(rows_end) {
            times.push(Since { rows_end, unix_ms });
        }
        let surplus = times.len().saturating_sub(TIMES_MAX);
        times.drain(..surplus);
        self.times = times.into();
        self.eras.push(Era {
            snapshot,
            fleet_generation,
            counts: vec![None; self.shards],
            by_name: Arc::default(),
        });
    }

    /// A shard counts by a generation from here on. Gives what is to be carried over then.
    pub(super) fn counting(
        &mut self,
        shard: ShardId,
        generation: Generation,
        counts: Arc<RuleCounts>,
    ) -> Option<Carried> {
        let mut eras = self.eras.iter_mut();
        let era = eras.find(|era| era.snapshot.generation() == generation)?;
        *era.counts.get_mut(usize::from(shard.0))? = Some(counts);
        self.begin()
    }

    /// Every shard has left the first eras.
    fn begin(&mut self) -> Option<Carried> {
        let latest = |shard: usize| {
            let is_there = |era: &Era| era.counts.get(shard).is_some_and(Option::is_some);
            self.eras.iter().rposition(is_there)
        };
        let first = (0..self.shards).map(latest).min().flatten()?;
        if first == 0 || self.is_carrying {
            return None;
        }
        self.is_carrying = true;
        let to = Arc::clone(&self.eras.get(first)?.snapshot);
        Some(Carried {
            eras: self.eras.get(..first)?.iter().map(Era::shared).collect(),
            before: Arc::clone(&self.before),
            to,
        })
    }

    /// It was carried over. Gives what nothing needs any more, to be dropped where it is in no one's way; and what is to be
    /// carried over next.
    pub(super) fn carried(
        &mut self,
        before: RuleCounts,
        to: Generation,
    ) -> (Outlived, Option<Carried>) {
        self.is_carrying = false;
        let mut outlived = Outlived::default();
        let mut eras = self.eras.iter();
        if let Some(first) = eras.position(|era| era.snapshot.generation() == to) {
            outlived.eras = self.eras.drain(..first).collect();
            outlived.before = Some(std::mem::replace(&mut self.before, Arc::new(before)));
        }
        (outlived, self.begin())
    }

    /// What is shown; `None` before the first policy.
    pub(super) fn view(&self) -> Option<RuleView> {
        let era = self.eras.first()?;
        Some(RuleView {
            snapshot: Arc::clone(&era.snapshot),
            fleet_generation: era.fleet_generation,
            shards: era.counts.iter().flatten().map(Arc::clone).collect(),
            before: Arc::clone(&self.before),
            times: Arc::clone(&self.times),
            by_name: Arc::clone(&era.by_name),
        })
    }
}

/// To be dropped.
#[derive(Default)]
pub(super) struct Outlived {
    eras: Vec<Era>,
    before: Option<Arc<RuleCounts>>,
}

impl Outlived {
    pub(super) fn is_empty(&self) -> bool {
        self.eras.is_empty() && self.before.is_none()
    }
}

impl Era {
    fn shared(&self) -> Self {
        Self {
            snapshot: Arc::clone(&self.snapshot),
            fleet_generation: self.fleet_generation,
            counts: self.counts.clone(),
            by_name: Arc::clone(&self.by_name),
        }
    }
}

impl Carried {
    /// Adds up what was counted of rows that are still there, by their new numbers. Slow.
    pub(super) fn carry(self) -> (RuleCounts, Generation) {
        let sum = RuleCounts::new(self.to.rule_ids_end(), u64::MAX);
        let mut by_row: HashMap<u32, RuleCount> = HashMap::new();
        let Some(first) = self.eras.first() else {
            return (sum, self.to.generation());
        };
        let counted = self.eras.iter().flat_map(|era| {
            let counts = era.counts.iter().flatten();
            counts.map(move |counts| (&era.snapshot, counts))
        });
        let mut rows_end = 0;
        for (snapshot, counts) in std::iter::once((&first.snapshot, &self.before)).chain(counted) {
            if snapshot.rows_end() < rows_end {
                by_row.clear(); // rows of the same numbers are others now
            }
            rows_end = snapshot.rows_end();
            sum.add_rest(counts.by_default(), counts.left_off());
            for (rule, count) in counts.used() {
                if let Some(row) = snapshot.rule_row(RuleId(rule)) {
                    let known = by_row.entry(row).or_default();
                    known.decided += count.decided;
                    known.otherwise += count.otherwise;
                }
            }
        }
        if self.to.rows_end() < rows_end {
            by_row.clear();
        }
        for rule in self.to.rules_behind(None) {
            if let Some(count) = by_row.get(&rule.row()) {
                sum.add_count(rule.id.0, *count);
            }
        }
        (sum, self.to.generation())
    }
}

/// The counts of one moment, to be read on any thread. They go on counting.
#[derive(Clone)]
pub struct RuleView {
    snapshot: Arc<Snapshot>,
    fleet_generation: Option<u64>,
    shards: Vec<Arc<RuleCounts>>,
    before: Arc<RuleCounts>,
    times: Arc<[Since]>,
    by_name: Arc<OnceLock<Box<[u32]>>>,
}

/// Which rules are listed: those that match all that is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleFilter {
    /// Only those that decided nothing; in shadow: that would have decided nothing.
    pub unused: bool,
    /// Only those in shadow.
    pub shadow: bool,
}

/// One rule in force, and its counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTally {
    /// Where it stands in the order, with its name.
    pub place: RulePlace,
    /// It decides nothing: what it would have decided is counted.
    pub is_shadow: bool,
    /// What it says.
    pub effect: Effect,
    /// How often.
    pub count: RuleCount,
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// Rules in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulePage {
    /// The fleet's number of the generation whose rules these are, else the node's own.
    pub generation: u64,
    /// The rules.
    pub rules: Vec<RuleTally>,
    /// What was looked at last, to go on behind it; `None` at the end.
    pub next: Option<RulePlace>,
    /// Decisions of the default.
    pub by_default: u64,
    /// Decisions that were not counted for want of memory.
    pub left_off: u64,
    /// Since when these two are counted.
    pub since_unix_ms: u64,
}

impl RuleView {
    /// A part of the rules. It may hold fewer than `limit`, and even none, and still have a `next`.
    pub fn page(&self, behind: Option<&RulePlace>, limit: usize, filter: RuleFilter) -> RulePage {
        let mut page = RulePage {
            generation: self
                .fleet_generation
                .unwrap_or(self.snapshot.generation().0),
            by_default: self.sum(RuleCounts::by_default),
            left_off: self.sum(RuleCounts::left_off),
            since_unix_ms: self.since(0),
            ..RulePage::default()
        };
        let mut rules = self.snapshot.rules_behind(behind).peekable();
        for looked in 1.. {
            let Some(rule) = rules.next() else {
                break;
            };
            let count = self.count(rule.id.0);
            let is_unwanted = !rule.is_enabled()
                || (filter.unused && count.decided > 0)
                || (filter.shadow && !rule.is_shadow());
            if !is_unwanted {
                page.rules.push(RuleTally {
                    place: rule.place(),
                    is_shadow: rule.is_shadow(),
                    effect: rule.effect(),
                    count,
                    since_unix_ms: self.since(rule.row()),
                });
            }
            let is_full = page.rules.len() >= limit || looked >= LOOK_MAX;
            if is_full && rules.peek().is_some() {
                page.next = Some(rule.place());
                break;
            }
        }
        page
    }

    /// The first rules by name, at most `max`, with their counts. The first call for a generation looks at every rule.
    pub fn by_name(&self, max: usize) -> impl Iterator<Item = (&str, bool, RuleCount)> {
        let numbers = self.by_name.get_or_init(|| {
            let rules = self.snapshot.rules_behind(None);
            let rules = rules.filter(|rule| rule.is_enabled());
            let mut first = std::collections::BinaryHeap::new();
            for rule in rules {
                first.push((rule.name(), rule.id.0));
                if first.len() > max {
                    first.pop();
                }
            }
            let sorted = first.into_sorted_vec();
            sorted.into_iter().map(|(_, number)| number).collect()
        });
        numbers.iter().filter_map(|number| {
            let (name, is_shadow) = self.snapshot.rule_kind(RuleId(*number))?;
            Some((name, is_shadow, self.count(*number)))
        })
    }

    /// Memory that counting takes, on all shards and for what was counted before.
    pub fn heap_bytes(&self) -> u64 {
        self.sum(RuleCounts::heap_bytes)
    }

    /// Decisions of the default, and those not counted for want of memory.
    pub fn rest(&self) -> (u64, u64) {
        let by_default = self.sum(RuleCounts::by_default);
        (by_default, self.sum(RuleCounts::left_off))
    }

    fn all(&self) -> impl Iterator<Item = &RuleCounts> {
        let shards = self.shards.iter().map(|counts| &**counts);
        std::iter::once(&*self.before).chain(shards)
    }

    fn sum(&self, read: impl Fn(&RuleCounts) -> u64) -> u64 {
        self.all().map(read).fold(0, u64::wrapping_add)
    }

    fn count(&self, rule: u32) -> RuleCount {
        let counts = self.all().map(|counts| counts.read(rule));
        counts.fold(RuleCount::default(), |sum, count| RuleCount {
            decided: sum.decided.wrapping_add(count.decided),
            otherwise: sum.otherwise.wrapping_add(count.otherwise),
        })
    }

    fn since(&self, row: u32) -> u64 {
        let entry = self.times.partition_point(|since| since.rows_end <= row);
        let entry = self.times.get(entry).or_else(|| self.times.last());
        entry.map_or(0, |since| since.unix_ms)
    }
}

impl ControlHandle {
    /// A part of the rules in force with their counts, added up on another thread; `None` before the first policy.
    pub async fn rule_page(
        &self,
        behind: Option<RulePlace>,
        limit: usize,
        filter: RuleFilter,
    ) -> Result<Option<RulePage>, NoAnswer> {
        let Some(view) = self.rules().await? else {
            return Ok(None);
        };
        let page = move || view.page(behind.as_ref(), limit, filter);
        let page = tokio::task::spawn_blocking(page).await;
        page.map(Some).map_err(|_| NoAnswer)
    }
}

#[cfg(test)]
mod tests {
    use sluice_policy::compile;

    use super::*;

    const A: &str = "{name: a, actions: [publish], topics: [a], decision: allow}";
    const B: &str = "{name: b, mode: shadow, actions: [publish], topics: [b], decision: deny}";
    const C: &str = "{name: c, actions: [publish], topics: [c], decision: allow}";
    const OFF: &str = "{name: off, enabled: false, actions: [connect], decision: allow}";

    fn snapshot(generation: u64, rules: &[&str], previous: Option<&Snapshot>) -> Arc<Snapshot> {
        let rules: String = rules.iter().map(|rule| format!("  - {rule}\n")).collect();
        let document = format!("rules:\n{rules}");
        let compiled = compile(&document, "p.yaml", Generation(generation), previous);
        Arc::new(compiled.unwrap_or_else(|errors| panic!("{errors}")))
    }

    fn counts_of(snapshot: &Snapshot) -> Arc<RuleCounts> {
        Arc::new(RuleCounts::new(snapshot.rule_ids_end(), u64::MAX))
    }

    fn id(snapshot: &Snapshot, name: &str) -> u32 {
        let mut rules = snapshot.rules_behind(None);
        rules.find(|rule| rule.name() == name).expect("a rule").id.0
    }

    /// Name, decided, otherwise, since.
    fn shown(tallies: &Tallies, filter: RuleFilter) -> Vec<(String, u64, u64, u64)> {
        let page = tallies.view().expect("a policy").page(None, 100, filter);
        assert_eq!(page.next, None);
        let rules = page.rules.iter().map(|rule| {
            let name = rule.place.name.to_string();
            let RuleCount { decided, otherwise } = rule.count;
            (name, decided, otherwise, rule.since_unix_ms)
        });
        rules.collect()
    }

    fn row(name: &str, decided: u64, otherwise: u64, since: u64) -> (String, u64, u64, u64) {
        (name.to_owned(), decided, otherwise, since)
    }

    #[test]
    fn counts_stay_with_the_row_across_generations_and_go_with_it() {
        let all = RuleFilter::default();
        let mut tallies = Tallies::new(2);
        assert!(tallies.view().is_none());
        let first = snapshot(1, &[A, B, C, OFF], None);
        tallies.delivered(Arc::clone(&first), None, 100);
        let shards = [counts_of(&first), counts_of(&first)];
        for (shard, counts) in (0..).zip(&shards) {
            let told = tallies.counting(ShardId(shard), Generation(1), Arc::clone(counts));
            assert!(told.is_none());
            counts.decided(Some(id(&first, "a")));
            counts.decided(None);
        }
        shards[1].would_decide(id(&first, "b"), true);
        shards[1].would_decide(id(&first, "b"), false);
        let before = [
            row("a", 2, 0, 100),
            row("b", 2, 1, 100),
            row("c", 0, 0, 100),
        ];
        assert_eq!(shown(&tallies, all), before);

        // `c` goes, `a` says something else, `b` has another place, `d` is new.
        let other_a = A.replace("allow", "deny");
        let d = "{name: d, actions: [publish], topics: [d], decision: allow}";
        let second = snapshot(2, &[d, B, &other_a], Some(&first));
        tallies.delivered(Arc::clone(&second), None, 200);
        let later = [counts_of(&second), counts_of(&second)];
        assert!(
            tallies
                .counting(ShardId(0), Generation(2), Arc::clone(&later[0]))
                .is_none()
        );
        later[0].decided(Some(id(&second, "d")));
        // The other shard still counts by the first: nothing of it is lost, and nothing is shown twice.
        shards[1].would_decide(id(&first, "b"), false);
        let meanwhile = [
            row("a", 2, 0, 100),
            row("b", 3, 1, 100),
            row("c", 0, 0, 100),
        ];
        assert_eq!(shown(&tallies, all), meanwhile);
        let carried = tallies.counting(ShardId(1), Generation(2), Arc::clone(&later[1]));
        let (sum, to) = carried.expect("both have moved on").carry();
        let (outlived, next) = tallies.carried(sum, to);
        assert!(!outlived.is_empty() && next.is_none());
        later[1].would_decide(id(&second, "b"), true);
        let after = [
            row("d", 1, 0, 200),
            row("b", 4, 2, 100),
            row("a", 0, 0, 200),
        ];
        assert_eq!(shown(&tallies, all), after);
        let unused = RuleFilter {
            unused: true,
            ..all
        };
        assert_eq!(shown(&tallies, unused), [row("a", 0, 0, 200)]);
        let shadow = RuleFilter {
            shadow: true,
            ..all
        };
        assert_eq!(shown(&tallies, shadow), [row("b", 4, 2, 100)]);
        let page = tallies.view().expect("a policy").page(None, 1, all);
        assert_eq!(
            (page.by_default, page.left_off, page.since_unix_ms),
            (2, 0, 100)
        );
    }

    #[test]
    fn a_shard_may_pass_generations_over() {
        let mut tallies = Tallies::new(2);
        let mut snapshots: Vec<Arc<Snapshot>> = Vec::new();
        let mut counts = Vec::new();
        for generation in 1..=4 {
            let previous = snapshots.last().map(|snapshot| &**snapshot);
            let next = snapshot(generation, &[A, B], previous);
            tallies.delivered(Arc::clone(&next), None, generation);
            // The second shard is busy between the first and the last.
            for shard in 0..if generation == 2 || generation == 3 {
                1
            } else {
                2
            } {
                let of = counts_of(&next);
                let told =
                    tallies.counting(ShardId(shard), Generation(generation), Arc::clone(&of));
                of.decided(Some(id(&next, "a")));
                counts.push(of);
                if let Some(carried) = told {
                    assert_eq!((generation, shard), (4, 1));
                    let (sum, to) = carried.carry();
                    assert!(tallies.carried(sum, to).1.is_none());
                }
            }
            snapshots.push(next);
        }
        assert_eq!(tallies.eras.len(), 1);
        let expected = [row("a", 6, 0, 1), row("b", 0, 0, 1)];
        assert_eq!(shown(&tallies, RuleFilter::default()), expected);
    }

    #[test]
    fn generations_that_wait_for_a_shard_are_bounded() {
        let mut tallies = Tallies::new(1);
        for generation in 1..=RETIRED_MAX as u64 {
            assert!(tallies.has_room());
            tallies.delivered(snapshot(generation, &[A], None), None, generation);
        }
        assert!(!tallies.has_room());
    }

    #[test]
    fn pages_go_on_where_the_one_before_ended() {
        let rules: Vec<String> = (0..25)
            .map(|n| format!("{{name: r{n:02}, actions: [connect], decision: allow}}"))
            .collect();
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let mut tallies = Tallies::new(1);
        tallies.delivered(snapshot(1, &rules, None), Some(9), 1);
        let view = tallies.view().expect("a policy");
        let (mut behind, mut found, mut pages) = (None, Vec::new(), 0);
        loop {
            let page = view.page(behind.as_ref(), 10, RuleFilter::default());
            found.extend(
                page.rules
                    .into_iter()
                    .map(|rule| rule.place.name.to_string()),
            );
            assert_eq!(page.generation, 9);
            pages += 1;
            match page.next {
                Some(next) => behind = Some(next),
                None => break,
            }
        }
        let expected: Vec<String> = (0..25).map(|n| format!("r{n:02}")).collect();
        assert_eq!((found, pages), (expected, 3));
        let first: Vec<&str> = view.by_name(3).map(|(name, ..)| name).collect();
        assert_eq!(first, ["r00", "r01", "r02"]);
    }
}
