//! May a filter be subscribed to? It may exactly when every topic that it can deliver would be allowed.
//!
//! Level values are unbounded, so only a rule that contains a filter by itself covers it: a topic made of values that no
//! rule names is matched by exactly those. Hence two conditions for a filter F, asked at each depth that F can deliver, up
//! to one below the deepest rule (deeper topics are judged like that one):
//!
//! 1. the first rule that contains F at that depth is an allow (or there is none, and the default allows);
//! 2. for every deny that overlaps F there, the first rule that contains the overlap is an allow.
//!
//! A deny behind the rule of (1) cannot come first anywhere in F, so only denies before it are looked at: nodes carry the
//! lowest rank of a deny below them, and children are listed by it.

use smallvec::SmallVec;

use super::NO_RANK;
use super::level::{LEVELS_MAX, Level, split};
use super::topic_trie::{Bound, Edge, Node, TopicTrie};

/// How many nodes one check may visit; beyond it the subscription is refused, and the caller counts that.
pub(crate) const SUBSCRIPTION_NODES_MAX: u32 = 10_000;

/// A level of what is asked.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Exactly(Level<'a>),
    Any,
}

type Pattern<'a> = SmallVec<[Asked<'a>; LEVELS_MAX]>;

/// A filter, as far as rules can look into it.
struct Filter<'a> {
    levels: Pattern<'a>,
    is_multi: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// Every topic would be allowed.
    Granted,
    /// Topics that this rank decides ([`NO_RANK`]: the default) would be refused.
    Refused(u32),
    /// Not known within the bound.
    TooComplex,
}

/// Asks about one filter. The tries of all the session's classes take part together.
pub(crate) struct Check<'a, 'r> {
    tries: SmallVec<[&'a TopicTrie; 16]>,
    client_id: Level<'a>,
    username: Level<'a>,
    /// The outcome behind a rank.
    is_deny: &'r dyn Fn(u32) -> bool,
    /// Called with the rank that decides each question asked of the tables.
    decided: &'r mut dyn FnMut(u32),
    nodes_left: u32,
}

impl<'a, 'r> Check<'a, 'r> {
    /// `nodes_max`: how many nodes the check may visit, at most [`SUBSCRIPTION_NODES_MAX`].
    pub(crate) fn new(
        tries: impl Iterator<Item = &'a TopicTrie>,
        bound: Bound<'a>,
        is_deny: &'r dyn Fn(u32) -> bool,
        decided: &'r mut dyn FnMut(u32),
        nodes_max: u32,
    ) -> Self {
        let mut tries: SmallVec<[&TopicTrie; 16]> = tries.collect();
        // Classes are numbered as they come. By what they deny first, the same rules always name the same one in a refusal.
        tries.sort_unstable_by_key(|trie| trie.deny(trie.root()));
        Self {
            tries,
            client_id: Level::new(bound.client_id),
            username: Level::new(bound.username),
            is_deny,
            decided,
            nodes_left: nodes_max.min(SUBSCRIPTION_NODES_MAX),
        }
    }

    /// Judges the filter and tells how many nodes were visited. `covered` is called with the rank that contains it at
    /// each depth, the shallowest first.
    pub(crate) fn run(mut self, filter: &'a str, covered: impl FnMut(u32)) -> (Grant, u32) {
        let before = self.nodes_left;
        let grant = self.judge(filter, covered);
        (grant, before - self.nodes_left)
    }

    fn judge(&mut self, filter: &'a str, mut covered: impl FnMut(u32)) -> Grant {
        if self.is_exhausted() {
            return Grant::TooComplex;
        }
        let filter = Filter::new(filter);
        let deepest = self
            .tries
            .iter()
            .map(|trie| trie.depth_max())
            .max()
            .unwrap_or(0);
        let (from, to) = filter.depths(deepest);
        // Condition 1; what contains the filter at each depth is kept for condition 2.
        let mut containing: SmallVec<[u32; LEVELS_MAX + 1]> = SmallVec::new();
        for depth in from..=to {
            let rank = self.first_containing(&filter.at(depth));
            if self.is_exhausted() {
                return Grant::TooComplex;
            }
            if (self.is_deny)(rank) {
                return Grant::Refused(rank);
            }
            covered(rank);
            containing.push(rank);
        }
        let overlaps = Overlaps {
            filter: &filter,
            from,
            to,
            // Behind all of them no deny matters at any depth.
            bound: containing.iter().copied().max().unwrap_or(NO_RANK),
            containing: &containing,
        };
        for index in 0..self.tries.len() {
            let Some(trie) = self.tries.get(index).copied() else {
                break;
            };
            let mut path = Pattern::new();
            if let Err(grant) = self.overlaps(trie, trie.root(), &mut path, &overlaps) {
                return grant;
            }
        }
        Grant::Granted
    }

    /// The lowest rank of a rule that contains the pattern.
    fn first_containing(&mut self, pattern: &[Asked<'a>]) -> u32 {
        let mut best = NO_RANK;
        for index in 0..self.tries.len() {
            if let Some(trie) = self.tries.get(index).copied() {
                self.contains(trie, trie.root(), 0, pattern, &mut best);
            }
        }
        (self.decided)(best);
        best
    }

    fn contains(
        &mut self,
        trie: &'a TopicTrie,
        node: Node<'a>,
        depth: usize,
        pattern: &[Asked<'a>],
        best: &mut u32,
    ) {
        if node.slot.best >= *best || !self.visit() {
            return;
        }
        let is_reserved = depth == 0
            && matches!(pattern.first(), Some(Asked::Exactly(level)) if level.is_reserved());
        if !is_reserved {
            *best = (*best).min(node.slot.multi);
        }
        let Some(asked) = pattern.get(depth) else {
            *best = (*best).min(node.slot.exact);
            return;
        };
        if let Asked::Exactly(level) = asked {
            let children = [
                trie.literal(node, level),
                trie.client_id(node).filter(|_| level.is(&self.client_id)),
                trie.username(node).filter(|_| level.is(&self.username)),
            ];
            for child in children.into_iter().flatten() {
                self.contains(trie, child, depth + 1, pattern, best);
            }
        }
        if let Some(child) = trie.any(node)
            && !is_reserved
        {
            self.contains(trie, child, depth + 1, pattern, best);
        }
    }

    /// Condition 2 for the denies at and below a node that `path` leads to.
    fn overlaps(
        &mut self,
        trie: &'a TopicTrie,
        node: Node<'a>,
        path: &mut Pattern<'a>,
        asked: &Overlaps<'a, '_>,
    ) -> Result<(), Grant> {
        if trie.deny(node) >= asked.bound {
            return Ok(());
        }
        if !self.visit() {
            return Err(Grant::TooComplex);
        }
        let depth = path.len();
        if !(depth == 0 && asked.filter.is_first_reserved()) {
            for at in asked.from.max(depth)..=asked.to {
                self.judge_overlap(node.slot.multi, path, at, asked)?;
            }
        }
        if (asked.from..=asked.to).contains(&depth) {
            self.judge_overlap(node.slot.exact, path, depth, asked)?;
        }
        match asked.filter.level(depth) {
            None => Ok(()),
            Some(Asked::Exactly(level)) => {
                let is_reserved = depth == 0 && level.is_reserved();
                let children = [
                    (trie.literal(node, &level), true),
                    (trie.any(node), !is_reserved),
                    (trie.client_id(node), level.is(&self.client_id)),
                    (trie.username(node), level.is(&self.username)),
                ];
                for child in children
                    .into_iter()
                    .filter_map(|(child, is_overlapping)| child.filter(|_| is_overlapping))
                {
                    self.overlaps_below(trie, child, Asked::Exactly(level), path, asked)?;
                }
                Ok(())
            }
            Some(Asked::Any) => {
                for (edge, child) in trie.children_with_deny(node) {
                    if trie.deny(child) >= asked.bound {
                        break;
                    }
                    let level = match edge {
                        Edge::Any => Asked::Any,
                        Edge::Literal(level) => Asked::Exactly(level),
                        Edge::ClientId => Asked::Exactly(self.client_id),
                        Edge::Username => Asked::Exactly(self.username),
                    };
                    // A leading wildcard of the filter does not deliver `$` topics.
                    let is_apart =
                        depth == 0 && matches!(level, Asked::Exactly(level) if level.is_reserved());
                    if !is_apart {
                        self.overlaps_below(trie, child, level, path, asked)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn overlaps_below(
        &mut self,
        trie: &'a TopicTrie,
        child: Node<'a>,
        level: Asked<'a>,
        path: &mut Pattern<'a>,
        asked: &Overlaps<'a, '_>,
    ) -> Result<(), Grant> {
        path.push(level);
        let result = self.overlaps(trie, child, path, asked);
        path.pop();
        result
    }

    /// Is the deny of that rank, which overlaps the filter in `path` at a depth, behind an allow that contains the overlap?
    fn judge_overlap(
        &mut self,
        rank: u32,
        path: &[Asked<'a>],
        depth: usize,
        asked: &Overlaps<'a, '_>,
    ) -> Result<(), Grant> {
        let containing = asked
            .containing
            .get(depth - asked.from)
            .copied()
            .unwrap_or(NO_RANK);
        if rank >= containing || !(self.is_deny)(rank) {
            return Ok(());
        }
        let mut pattern: Pattern<'a> = SmallVec::from_slice(path);
        pattern.extend((path.len()..depth).filter_map(|index| asked.filter.level(index)));
        let first = self.first_containing(&pattern);
        if self.is_exhausted() {
            return Err(Grant::TooComplex);
        }
        if (self.is_deny)(first) {
            return Err(Grant::Refused(first));
        }
        Ok(())
    }

    fn visit(&mut self) -> bool {
        self.nodes_left = self.nodes_left.saturating_sub(1);
        !self.is_exhausted()
    }

    fn is_exhausted(&self) -> bool {
        self.nodes_left == 0
    }
}

/// What condition 2 needs to know.
struct Overlaps<'a, 'c> {
    filter: &'c Filter<'a>,
    from: usize,
    to: usize,
    containing: &'c [u32],
    bound: u32,
}

impl<'a> Filter<'a> {
    fn new(text: &'a str) -> Self {
        let (body, is_multi) = match text.strip_suffix('#') {
            Some("") => (None, true),
            Some(body) if body.ends_with('/') => (body.strip_suffix('/'), true),
            Some(_) | None => (Some(text), false),
        };
        let levels: Pattern<'a> = body
            .map(|body| {
                split(body).into_iter().map(|level| {
                    if level.bytes == b"+" {
                        Asked::Any
                    } else {
                        Asked::Exactly(level)
                    }
                })
            })
            .into_iter()
            .flatten()
            .collect();
        Self { levels, is_multi }
    }

    /// The depths at which it can deliver, up to the last that can make a difference.
    fn depths(&self, deepest: usize) -> (usize, usize) {
        let len = self.levels.len();
        if self.is_multi {
            // `#` alone delivers no empty topic. Nothing changes below the deepest rule, nor where no rule can look.
            let from = len.max(1);
            (from, (len.max(deepest) + 1).clamp(from, LEVELS_MAX))
        } else {
            (len, len)
        }
    }

    /// One level, counted from 0; `None` below the end.
    fn level(&self, index: usize) -> Option<Asked<'a>> {
        self.levels
            .get(index)
            .copied()
            .or(self.is_multi.then_some(Asked::Any))
    }

    /// The filter at one depth.
    fn at(&self, depth: usize) -> Pattern<'a> {
        (0..depth).filter_map(|index| self.level(index)).collect()
    }

    fn is_first_reserved(&self) -> bool {
        matches!(self.level(0), Some(Asked::Exactly(level)) if level.is_reserved())
    }
}
