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
//!
//! A filter that may not be subscribed to as a whole may still deliver something: asked for [`Mark::Narrow`], a check looks for a
//! topic in F that a rule allows which narrows subscriptions, and that may be delivered. Where a rule comes first for a topic, it also comes first for what its filter and F
//! have in common at that depth, since fewer rules contain that. So the same walk finds it: over what overlaps F, before the
//! rule of (1), but for rules that narrow.
//!
//! A check goes on node by node and may stop before any of them, when the share of work it was given is used up: a table
//! can be so large that no more than a few thousand nodes can be visited before others must have their turn. [`Walk`] is
//! where it stands then: numbers of nodes, nothing borrowed, so that it outlives the call; what it says holds for the same
//! tables, variables and filter only.

use smallvec::SmallVec;

use super::NO_RANK;
use super::level::{LEVELS_MAX, Level, split};
use super::topic_trie::{Bound, Edge, Mark, Node, Place, TopicTrie};
use crate::effort::Effort;

/// How many nodes one check may visit; beyond it the subscription is refused, and the caller counts that.
pub(crate) const SUBSCRIPTION_NODES_MAX: u32 = 10_000;

/// What a check costs besides nodes, each time it begins or goes on: the filter is split, the tries are put in order.
const BEGIN_NODES: u32 = 4;
/// Bytes of levels that are hashed at the cost of one node.
const BYTES_A_NODE: usize = 256;
/// What one search costs besides nodes: its pattern is put together.
const SEARCH_NODES: u32 = 2;
/// What it costs to find the next child below which such a rule lies: it is looked for in an ordered list.
const CHILD_NODES: u32 = 8;
/// Roots that are passed by, because nothing below can matter, at the cost of one node.
const ROOTS_A_NODE: usize = 8;

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
    /// No topic of those that were looked for.
    None,
    /// Topics that this rank decides ([`NO_RANK`]: the default).
    Found(u32),
    /// Not known within the bound.
    TooComplex,
}

/// Why a check does not go on.
enum Stop {
    /// The share of work is used up.
    Later,
    /// What is known is enough.
    Settled(Grant),
}

/// Where a check stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    visited: u32,
    search: Search,
    /// Condition 1: the rank that contains the filter at each depth so far.
    containing: SmallVec<[u32; 4]>,
    /// A rank that was found while the others of condition 1 are still wanted.
    found: Option<u32>,
    /// Condition 2: the trie that is being looked at, and the way from its root to the node that is.
    trie: usize,
    frames: SmallVec<[Frame; 4]>,
}

/// A search for the lowest rank that contains a pattern.
#[derive(Clone, Debug, Default)]
struct Search {
    is_under_way: bool,
    best: u32,
    /// The lowest rank of the tries before those for deliveries alone.
    asked: u32,
    trie: usize,
    /// Nodes to visit, the last one first.
    ahead: SmallVec<[(Place, u8); 16]>,
}

/// A node with rules that are looked for at or below it.
#[derive(Clone, Copy, Debug)]
struct Frame {
    place: Place,
    /// The depth at which the rule with `#` is judged next; one behind the last depth, the rule without.
    at: usize,
    /// The children before this one were looked at.
    next: (u32, u32),
}

/// The first rank that does not matter where `containing` contains all of the filter. A rule that narrows may contain the
/// filter and have another one inside it, of which another rule says that it is delivered.
fn behind(sought: Mark, containing: u32) -> u32 {
    match sought {
        Mark::Deny => containing,
        Mark::Narrow => containing.saturating_add(1),
    }
}

/// The ranks that decide about all topics of a pattern.
#[derive(Clone, Copy)]
pub(crate) struct First {
    /// Of the tries that are asked about.
    pub(crate) asked: u32,
    /// Of those and the ones for deliveries alone.
    pub(crate) delivered: u32,
}

/// Asks about one filter. The tries of all the session's classes take part together.
pub(crate) struct Check<'a, 'r> {
    /// Topics that such a rule decides are looked for.
    sought: Mark,
    /// Those that are asked about, then those that only decide about deliveries.
    tries: SmallVec<[&'a TopicTrie; 16]>,
    asked: usize,
    client_id: Level<'a>,
    username: Level<'a>,
    /// What a rank is listed as.
    mark: &'r dyn Fn(u32) -> Option<Mark>,
    /// Called with the rank that decides each question asked of the tables.
    decided: &'r mut dyn FnMut(u32),
    effort: &'r mut Effort,
}

impl<'a, 'r> Check<'a, 'r> {
    pub(crate) fn new(
        sought: Mark,
        tries: impl Iterator<Item = &'a TopicTrie>,
        for_deliveries: impl Iterator<Item = &'a TopicTrie>,
        bound: Bound<'a>,
        mark: &'r dyn Fn(u32) -> Option<Mark>,
        decided: &'r mut dyn FnMut(u32),
        effort: &'r mut Effort,
    ) -> Self {
        let mut tries: SmallVec<[&TopicTrie; 16]> = tries.collect();
        // Classes are numbered as they come. By what is looked for first, the same rules always give the same answer.
        tries.sort_unstable_by_key(|trie| trie.marked(trie.root(), sought));
        let asked = tries.len();
        tries.extend(for_deliveries);
        Self {
            sought,
            tries,
            asked,
            client_id: Level::new(bound.client_id),
            username: Level::new(bound.username),
            mark,
            decided,
            effort,
        }
    }

    /// Judges the filter, or goes on judging it; `None` when the effort is used up before the answer is known. `covered`
    /// is called with the ranks that contain it at each depth, the shallowest first.
    pub(crate) fn run(
        mut self,
        walk: &mut Walk,
        filter: &'a str,
        covered: impl FnMut(First),
    ) -> Option<Grant> {
        let stop = self.judge(walk, &Filter::new(filter), covered);
        // Counted last, so that each call comes at least one node further however small its share is.
        self.effort
            .spend_for(BEGIN_NODES, filter.len() / BYTES_A_NODE + self.tries.len());
        match stop {
            Ok(()) => Some(Grant::None),
            Err(Stop::Settled(grant)) => Some(grant),
            Err(Stop::Later) => None,
        }
    }

    /// The rank that decides about the shallowest topics of a filter, when all of its topics are decided by ranks before
    /// `rank`, the other tables apart. `None`: they are not, or it takes too long to know.
    pub(crate) fn decided_before(mut self, filter: &'a str, rank: u32) -> Option<u32> {
        let filter = Filter::new(filter);
        let deepest = self.tries.iter().map(|trie| trie.depth_max()).max();
        let (from, to) = filter.depths(deepest.unwrap_or(0));
        let (mut walk, mut first) = (Walk::default(), None);
        for depth in from..=to {
            let found = self
                .first_containing(&mut walk, &filter.at(depth))
                .ok()?
                .asked;
            if found >= rank {
                return None;
            }
            first = first.or(Some(found));
        }
        first
    }

    fn judge(
        &mut self,
        walk: &mut Walk,
        filter: &Filter<'a>,
        mut covered: impl FnMut(First),
    ) -> Result<(), Stop> {
        let deepest = self
            .tries
            .iter()
            .map(|trie| trie.depth_max())
            .max()
            .unwrap_or(0);
        let (from, to) = filter.depths(deepest);
        // Condition 1; what contains the filter at each depth is kept for condition 2.
        while walk.containing.len() <= to - from {
            let pattern = filter.at(from + walk.containing.len());
            let first = self.first_containing(walk, &pattern)?;
            covered(first);
            walk.containing.push(first.asked);
            match (self.is_sought(first), self.sought) {
                (false, _) => {}
                (true, Mark::Deny) => return Err(Stop::Settled(Grant::Found(first.asked))),
                // What contains it at other depths is wanted all the same, for the QoS.
                (true, Mark::Narrow) => walk.found = walk.found.or(Some(first.asked)),
            }
        }
        if let Some(rank) = walk.found {
            return Err(Stop::Settled(Grant::Found(rank)));
        }
        let last = walk.containing.iter().copied().max().unwrap_or(NO_RANK);
        let asked = Overlaps {
            filter,
            from,
            to,
            // Behind all of them no rule matters at any depth.
            bound: behind(self.sought, last),
        };
        while walk.trie < self.asked
            && let Some(trie) = self.tries.get(walk.trie).copied()
        {
            self.overlaps(trie, walk, &asked)?;
            walk.trie += 1;
        }
        Ok(())
    }

    /// True exactly when topics that these ranks decide are looked for.
    fn is_sought(&self, first: First) -> bool {
        let is_delivered = || (self.mark)(first.delivered) != Some(Mark::Deny);
        (self.mark)(first.asked) == Some(self.sought)
            && (self.sought == Mark::Deny || is_delivered())
    }

    /// The lowest ranks of rules that contain the pattern.
    fn first_containing(&mut self, walk: &mut Walk, pattern: &[Asked<'a>]) -> Result<First, Stop> {
        if !walk.search.is_under_way {
            self.effort
                .spend_for(SEARCH_NODES, self.tries.len() / ROOTS_A_NODE);
            walk.search.begin();
        }
        while let Some(trie) = self.tries.get(walk.search.trie).copied() {
            self.contains(trie, walk, pattern)?;
            walk.search.enter(walk.search.trie + 1);
            if walk.search.trie == self.asked {
                walk.search.asked = walk.search.best;
            }
        }
        walk.search.is_under_way = false;
        let first = First {
            asked: walk.search.asked,
            delivered: walk.search.best,
        };
        (self.decided)(first.asked);
        if first.delivered != first.asked {
            (self.decided)(first.delivered);
        }
        Ok(first)
    }

    /// The same in one trie.
    fn contains(
        &mut self,
        trie: &'a TopicTrie,
        walk: &mut Walk,
        pattern: &[Asked<'a>],
    ) -> Result<(), Stop> {
        while let Some((place, depth)) = walk.search.ahead.last().copied() {
            let node = trie
                .at(place)
                .filter(|node| node.slot.best < walk.search.best);
            let Some(node) = node else {
                walk.search.ahead.pop();
                continue;
            };
            self.visit(&mut walk.visited)?;
            let search = &mut walk.search;
            search.ahead.pop();
            let is_reserved = depth == 0
                && matches!(pattern.first(), Some(Asked::Exactly(level)) if level.is_reserved());
            if !is_reserved {
                search.best = search.best.min(node.slot.multi);
            }
            let Some(asked) = pattern.get(usize::from(depth)) else {
                search.best = search.best.min(node.slot.exact);
                continue;
            };
            // What comes last is visited first.
            if let Some(child) = trie.any(node)
                && !is_reserved
            {
                search.ahead.push((child.place(), depth + 1));
            }
            if let Asked::Exactly(level) = asked {
                let children = [
                    trie.username(node).filter(|_| level.is(&self.username)),
                    trie.client_id(node).filter(|_| level.is(&self.client_id)),
                    trie.literal(node, level),
                ];
                for child in children.into_iter().flatten() {
                    search.ahead.push((child.place(), depth + 1));
                }
            }
        }
        Ok(())
    }

    /// Condition 2 for the rules of one trie.
    fn overlaps(
        &mut self,
        trie: &'a TopicTrie,
        walk: &mut Walk,
        asked: &Overlaps<'a, '_>,
    ) -> Result<(), Stop> {
        if walk.frames.is_empty() {
            self.enter(trie, trie.root(), walk, asked)?;
        }
        let mut path = self.path(trie, walk, asked.filter);
        while let Some(frame) = walk.frames.last().copied() {
            let depth = walk.frames.len() - 1;
            let Some(node) = trie.at(frame.place) else {
                walk.frames.clear(); // never: it was there when it was entered
                break;
            };
            self.judge_node(node, walk, &path, asked)?;
            // Spent behind the step that it is for, so that each call comes further however small its share is.
            let search_nodes = match asked.filter.level(depth) {
                Some(Asked::Any) => CHILD_NODES,
                // What need not be entered costs less than a visit, but there may be very many.
                Some(Asked::Exactly(_)) | None => 1,
            };
            let Some((next, child)) = self.next_child(trie, node, frame.next, depth, asked) else {
                walk.frames.pop();
                path.pop();
                self.effort.spend(search_nodes);
                continue;
            };
            let mut is_entered = false;
            if let Some(child) = child {
                is_entered = self.enter(trie, child, walk, asked)?;
                if is_entered {
                    path.push(self.level_into(trie, child, depth, asked.filter));
                }
            }
            if let Some(frame) = walk.frames.get_mut(depth) {
                frame.next = next;
            }
            self.effort.spend(search_nodes);
            if !is_entered {
                self.go_on()?;
            }
        }
        Ok(())
    }

    /// Steps onto a node, unless nothing at or below it matters.
    fn enter(
        &mut self,
        trie: &'a TopicTrie,
        node: Node<'a>,
        walk: &mut Walk,
        asked: &Overlaps<'a, '_>,
    ) -> Result<bool, Stop> {
        if trie.marked(node, self.sought) >= asked.bound {
            return Ok(false);
        }
        self.visit(&mut walk.visited)?;
        let depth = walk.frames.len();
        walk.frames.push(Frame {
            place: node.place(),
            at: asked.from.max(depth),
            next: (0, 0),
        });
        Ok(true)
    }

    /// The levels on the way to the node that is being looked at.
    fn path(&self, trie: &'a TopicTrie, walk: &Walk, filter: &Filter<'a>) -> Pattern<'a> {
        let below = walk.frames.iter().skip(1).enumerate();
        below
            .filter_map(|(depth, frame)| {
                let node = trie.at(frame.place)?;
                Some(self.level_into(trie, node, depth, filter))
            })
            .collect()
    }

    /// The level of the overlap that leads into a node: the filter's, or the rule's where the filter leaves it open.
    fn level_into(
        &self,
        trie: &'a TopicTrie,
        node: Node<'a>,
        depth: usize,
        filter: &Filter<'a>,
    ) -> Asked<'a> {
        match (filter.level(depth), trie.edge(node)) {
            (Some(Asked::Exactly(level)), _) => Asked::Exactly(level),
            (_, Edge::Any) => Asked::Any,
            (_, Edge::Literal(level)) => Asked::Exactly(level),
            (_, Edge::ClientId) => Asked::Exactly(self.client_id),
            (_, Edge::Username) => Asked::Exactly(self.username),
        }
    }

    /// The next child of a node below which what is looked for may lie, from `next` on, and what is next then. It is left
    /// out where it does not overlap.
    #[allow(clippy::type_complexity)] // said in the sentence above
    fn next_child(
        &self,
        trie: &'a TopicTrie,
        node: Node<'a>,
        next: (u32, u32),
        depth: usize,
        asked: &Overlaps<'a, '_>,
    ) -> Option<((u32, u32), Option<Node<'a>>)> {
        match asked.filter.level(depth)? {
            Asked::Exactly(level) => {
                let is_reserved = depth == 0 && level.is_reserved();
                let child = match next.0 {
                    0 => trie.literal(node, &level),
                    1 => trie.any(node).filter(|_| !is_reserved),
                    2 => trie.client_id(node).filter(|_| level.is(&self.client_id)),
                    3 => trie.username(node).filter(|_| level.is(&self.username)),
                    _ => return None,
                };
                Some(((next.0 + 1, 0), child))
            }
            Asked::Any => {
                let (rank, child) = trie.child_with(self.sought, node, next)?;
                if rank >= asked.bound {
                    return None;
                }
                // A leading wildcard of the filter does not deliver `$` topics.
                let is_apart = depth == 0
                    && matches!(self.level_into(trie, child, depth, asked.filter), Asked::Exactly(level) if level.is_reserved());
                Some(((rank, child.id + 1), Some(child).filter(|_| !is_apart)))
            }
        }
    }

    /// The rules that end at a node, at each depth that the filter can deliver.
    fn judge_node(
        &mut self,
        node: Node<'a>,
        walk: &mut Walk,
        path: &[Asked<'a>],
        asked: &Overlaps<'a, '_>,
    ) -> Result<(), Stop> {
        let depth = path.len();
        let is_apart = depth == 0 && asked.filter.is_first_reserved();
        while let Some(at) = walk.frames.last().map(|frame| frame.at)
            && at <= asked.to + 1
        {
            if at > asked.to {
                if (asked.from..=asked.to).contains(&depth) {
                    self.judge_overlap(node.slot.exact, walk, path, depth, asked)?;
                }
            } else if !is_apart {
                self.judge_overlap(node.slot.multi, walk, path, at, asked)?;
            }
            if let Some(frame) = walk.frames.last_mut() {
                frame.at += 1;
            }
        }
        Ok(())
    }

    /// Does a rule that is looked for, of that rank or before it, decide about what overlaps the filter in `path` at a depth?
    fn judge_overlap(
        &mut self,
        rank: u32,
        walk: &mut Walk,
        path: &[Asked<'a>],
        depth: usize,
        asked: &Overlaps<'a, '_>,
    ) -> Result<(), Stop> {
        let containing = walk.containing.get(depth - asked.from).copied();
        let is_sought = || (self.mark)(rank) == Some(self.sought);
        if rank >= behind(self.sought, containing.unwrap_or(NO_RANK)) || !is_sought() {
            return Ok(());
        }
        let mut pattern: Pattern<'a> = SmallVec::from_slice(path);
        pattern.extend((path.len()..depth).filter_map(|index| asked.filter.level(index)));
        // `+` and `/#` overlap in the empty topic alone, which no one can publish to [MQTT-4.7.3-1].
        if matches!(pattern.as_slice(), [Asked::Exactly(level)] if level.is_empty()) {
            return Ok(());
        }
        let first = self.first_containing(walk, &pattern)?;
        // A rule that narrows must come first by itself: then nothing else is asked about the topics in question.
        let is_itself = self.sought == Mark::Deny || first.asked == rank;
        if is_itself && self.is_sought(first) {
            return Err(Stop::Settled(Grant::Found(first.asked)));
        }
        Ok(())
    }

    /// Before a node is visited. When it says [`Stop::Later`], nothing was done, and the same node comes next.
    fn visit(&mut self, visited: &mut u32) -> Result<(), Stop> {
        self.go_on()?;
        self.effort.spend(1);
        *visited += 1;
        if *visited >= SUBSCRIPTION_NODES_MAX {
            return Err(Stop::Settled(Grant::TooComplex));
        }
        Ok(())
    }

    fn go_on(&self) -> Result<(), Stop> {
        if self.effort.is_used_up() {
            return Err(Stop::Later);
        }
        Ok(())
    }
}

impl Search {
    fn begin(&mut self) {
        self.is_under_way = true;
        self.ahead.clear();
        self.best = NO_RANK;
        self.asked = NO_RANK;
        self.enter(0);
    }

    fn enter(&mut self, trie: usize) {
        self.trie = trie;
        self.ahead.push((Place::ROOT, 0));
    }
}

/// What condition 2 needs to know.
struct Overlaps<'a, 'c> {
    filter: &'c Filter<'a>,
    from: usize,
    to: usize,
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
            // Neither `#` nor `/#` delivers the empty topic. Nothing changes below the deepest rule, nor where no rule can
            // look.
            let is_empty_at_one =
                matches!(self.levels.as_slice(), [Asked::Exactly(level)] if level.is_empty());
            let from = if is_empty_at_one { 2 } else { len.max(1) };
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
