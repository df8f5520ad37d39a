//! The topics of the rules of one class for one action, compiled: which is the lowest rank that matches a topic?
//!
//! # Layout
//!
//! A node is one 32-byte slot of an open-addressing table; an edge is found by hashing the path (not the parent's place),
//! so the loads of the levels of a topic do not wait for one another. The slot holds the parent and the level, which decide
//! whether it is the right one, and all that the walk needs at the node. `+` and the variables are edges like others, behind
//! a flag, so a node without them costs no look-up. Children are listed apart, and only where a deny lies below: that is
//! what the check of subscriptions walks.
//!
//! # Invariants
//!
//! - A parent's `best` (`deny`) is at most its children's: a walk leaves a node whose `best` cannot improve the answer.
//! - The table has at least one empty slot, so every search ends.
//! - A topic visits a node at most once, and only nodes whose path generalises the topic: no more than the rules of the
//!   class have prefixes that match it, whatever the number of other rules.

use std::collections::HashMap;

use super::NO_RANK;
use super::level::{ANY, CLIENT_ID, LONG, Level, SHORT_BYTES_MAX, Short, USERNAME, fold, special};
use crate::filter::{self, TopicFilter, Variable};

/// How many nodes one verdict may visit. A topic of `n` levels under rules with `+` at every level can match `2^n`
/// prefixes: 4,096 lets eleven such levels through; real rules visit fewer than twenty. Beyond it the answer is a refusal.
pub(crate) const VERDICT_NODES_MAX: u32 = 4_096;

const HAS_LITERAL: u8 = 1;
const HAS_ANY: u8 = 2;
const HAS_CLIENT_ID: u8 = 4;
const HAS_USERNAME: u8 = 8;

/// The parent of the root's children.
pub(crate) const ROOT: u32 = u32::MAX - 1;
/// The parent in a slot that is empty.
const EMPTY: u32 = u32::MAX;
const ROOT_PATH: u64 = 0x243F_6A88_85A3_08D3;

/// A node. `exact`, `multi` and `best` are ranks or [`NO_RANK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
pub(crate) struct Slot {
    parent: u32,
    /// The rule that ends here.
    pub(crate) exact: u32,
    /// The rule that ends here with `#`.
    pub(crate) multi: u32,
    /// The lowest rank here and below.
    pub(crate) best: u32,
    /// The short form of the level that leads here, with the flags in its free byte. Of a long level, `head` holds its
    /// place in the text and its length.
    rest: u64,
    head: u64,
}

const VACANT: Slot = Slot {
    parent: EMPTY,
    exact: NO_RANK,
    multi: NO_RANK,
    best: NO_RANK,
    rest: 0,
    head: 0,
};

const FLAGS_SHIFT: u32 = 48;

impl Slot {
    #[inline]
    fn flags(&self) -> u8 {
        (self.rest >> FLAGS_SHIFT) as u8
    }

    #[inline]
    fn short(&self) -> Short {
        Short {
            head: self.head,
            rest: self.rest & !(0xFF << FLAGS_SHIFT),
        }
    }

    #[inline]
    fn tag(&self) -> u8 {
        self.short().tag()
    }
}

/// See the file's header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TopicTrie {
    slots: Box<[Slot]>,
    root: Slot,
    /// Levels too long for a slot, one after another.
    text: Box<[u8]>,
    denies: Option<Box<Denies>>,
    depth_max: u32,
}

/// Where denies lie; absent where there is none. Only the check of subscriptions looks here.
#[derive(Debug, PartialEq, Eq)]
struct Denies {
    /// For each slot, then for the root: the lowest rank of a deny here and below.
    best: Box<[u32]>,
    /// For each slot, then for the root: where its part of `children` begins; one more at the end.
    spans: Box<[u32]>,
    /// The children with a deny below, those of one node from the lowest rank of one.
    children: Box<[Child]>,
    /// The text of literal children, one after another.
    text: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Child {
    place: u32,
    text_start: u32,
    text_len: u32,
}

/// A node with its place, and the hash of its path.
#[derive(Clone, Copy)]
pub(crate) struct Node<'t> {
    pub(crate) id: u32,
    pub(crate) path: u64,
    pub(crate) slot: &'t Slot,
}

/// The values of the variables.
#[derive(Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) client_id: &'a [u8],
    pub(crate) username: &'a [u8],
}

/// What leads to a child.
pub(crate) enum Edge<'t> {
    Literal(&'t [u8]),
    Any,
    ClientId,
    Username,
}

/// The answer so far while the tries of a session's classes are walked one after another.
pub(crate) struct Search {
    /// The lowest rank found.
    pub(crate) best: u32,
    /// Nodes that may still be visited; when none are left the answer is not known.
    pub(crate) nodes_left: u32,
}

impl Search {
    pub(crate) fn new(best: u32, nodes_max: u32) -> Self {
        Self {
            best,
            nodes_left: nodes_max,
        }
    }

    /// True exactly when the walk was given up.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.nodes_left == 0
    }
}

impl TopicTrie {
    /// Lowers `search.best` to the lowest rank that matches the topic.
    #[inline]
    pub(crate) fn search(&self, levels: &[Level<'_>], bound: &Bound<'_>, search: &mut Search) {
        if self.root.best < search.best {
            self.walk(self.root(), 0, levels, bound, search);
        }
    }

    /// Deepest rule, in levels.
    pub(crate) fn depth_max(&self) -> usize {
        self.depth_max as usize
    }

    pub(crate) fn root(&self) -> Node<'_> {
        Node {
            id: ROOT,
            path: ROOT_PATH,
            slot: &self.root,
        }
    }

    fn walk(
        &self,
        node: Node<'_>,
        depth: usize,
        levels: &[Level<'_>],
        bound: &Bound<'_>,
        search: &mut Search,
    ) {
        let mut node = node;
        let mut depth = depth;
        loop {
            if node.slot.best >= search.best || search.nodes_left == 0 {
                return;
            }
            search.nodes_left -= 1;
            // Only the first level of a topic can be reserved.
            let first = levels.get(depth);
            let is_reserved = depth == 0 && first.is_some_and(Level::is_reserved);
            if node.slot.multi < search.best && !is_reserved {
                search.best = node.slot.multi;
            }
            let Some(level) = first else {
                search.best = search.best.min(node.slot.exact);
                return;
            };
            if node.slot.flags() & !HAS_LITERAL != 0 {
                if let Some(child) = self.any(node)
                    && !is_reserved
                {
                    self.walk(child, depth + 1, levels, bound, search);
                }
                if let Some(child) = self.client_id(node)
                    && level.bytes == bound.client_id
                {
                    self.walk(child, depth + 1, levels, bound, search);
                }
                if let Some(child) = self.username(node)
                    && level.bytes == bound.username
                {
                    self.walk(child, depth + 1, levels, bound, search);
                }
            }
            let Some(child) = self.literal(node, level) else {
                return;
            };
            node = child;
            depth += 1;
        }
    }

    /// The child behind a literal level.
    #[inline]
    pub(crate) fn literal(&self, node: Node<'_>, level: &Level<'_>) -> Option<Node<'_>> {
        if node.slot.flags() & HAS_LITERAL == 0 {
            return None;
        }
        let path = fold(node.path, level.hash);
        if level.short.tag() == LONG {
            return self.find(node.id, path, |slot| {
                slot.tag() == LONG && self.long(slot) == level.bytes
            });
        }
        self.find(node.id, path, |slot| slot.short() == level.short)
    }

    /// The child behind `+`.
    #[inline]
    pub(crate) fn any(&self, node: Node<'_>) -> Option<Node<'_>> {
        self.special(node, HAS_ANY, ANY)
    }

    /// The child behind `${client_id}`.
    #[inline]
    pub(crate) fn client_id(&self, node: Node<'_>) -> Option<Node<'_>> {
        self.special(node, HAS_CLIENT_ID, CLIENT_ID)
    }

    /// The child behind `${username}`.
    #[inline]
    pub(crate) fn username(&self, node: Node<'_>) -> Option<Node<'_>> {
        self.special(node, HAS_USERNAME, USERNAME)
    }

    #[inline]
    fn special(&self, node: Node<'_>, flag: u8, tag: u8) -> Option<Node<'_>> {
        if node.slot.flags() & flag == 0 {
            return None;
        }
        self.find(node.id, fold(node.path, special_hash(tag)), |slot| {
            slot.tag() == tag
        })
    }

    #[inline]
    fn find(&self, parent: u32, path: u64, is_level: impl Fn(&Slot) -> bool) -> Option<Node<'_>> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut index = path as usize & mask;
        loop {
            let slot = self.slots.get(index)?;
            if slot.parent == parent && is_level(slot) {
                return Some(Node {
                    id: index as u32,
                    path,
                    slot,
                });
            }
            if slot.parent == EMPTY {
                return None;
            }
            index = (index + 1) & mask;
        }
    }

    /// The lowest rank of a deny at or below a node.
    pub(crate) fn deny(&self, node: Node<'_>) -> u32 {
        let best = self
            .denies
            .as_ref()
            .and_then(|denies| denies.best.get(self.place_of(node)));
        best.copied().unwrap_or(NO_RANK)
    }

    /// The children of a node below which a deny lies, from the lowest rank of one.
    pub(crate) fn children_with_deny(
        &self,
        node: Node<'_>,
    ) -> impl Iterator<Item = (Edge<'_>, Node<'_>)> {
        let denies = self.denies.as_deref();
        let listed = denies.map_or(&[][..], |denies| denies.children_of(self.place_of(node)));
        let parent_path = node.path;
        listed.iter().filter_map(move |child| {
            let slot = self.slots.get(child.place as usize)?;
            let edge = match slot.tag() {
                ANY => Edge::Any,
                CLIENT_ID => Edge::ClientId,
                USERNAME => Edge::Username,
                _ => Edge::Literal(denies.map_or(&[][..], |denies| denies.text_of(child))),
            };
            let path = fold(parent_path, edge_hash(&edge));
            let id = child.place;
            Some((edge, Node { id, path, slot }))
        })
    }

    fn place_of(&self, node: Node<'_>) -> usize {
        if node.id == ROOT {
            self.slots.len()
        } else {
            node.id as usize
        }
    }

    /// The text of a long level.
    fn long(&self, slot: &Slot) -> &[u8] {
        let start = (slot.head & 0xFFFF_FFFF) as usize;
        let length = (slot.head >> 32) as usize;
        self.text.get(start..start + length).unwrap_or_default()
    }
}

const fn special_hash(tag: u8) -> u64 {
    0xA409_3822_299F_31D0_u64.wrapping_mul(tag as u64 | 1)
}

fn edge_hash(edge: &Edge<'_>) -> u64 {
    match edge {
        Edge::Literal(bytes) => Level::new(bytes).hash,
        Edge::Any => special_hash(ANY),
        Edge::ClientId => special_hash(CLIENT_ID),
        Edge::Username => special_hash(USERNAME),
    }
}

/// Collects the filters of one trie.
#[derive(Default)]
pub(crate) struct Builder<'f> {
    nodes: Vec<Draft<'f>>,
    root: Option<Draft<'f>>,
    edges: HashMap<(u32, &'f filter::Level), u32, foldhash::fast::RandomState>,
    depth_max: usize,
}

struct Draft<'f> {
    parent: u32,
    level: Option<&'f filter::Level>,
    path: u64,
    flags: u8,
    exact: Terminal,
    multi: Terminal,
    best: u32,
    deny: u32,
}

/// The best rule that ends at a place.
#[derive(Clone, Copy)]
struct Terminal {
    rank: u32,
    is_deny: bool,
}

impl Terminal {
    const NONE: Self = Self {
        rank: NO_RANK,
        is_deny: false,
    };

    fn deny(self) -> u32 {
        if self.is_deny { self.rank } else { NO_RANK }
    }
}

impl<'f> Builder<'f> {
    /// Adds a filter of the rule of that rank. Of two equal filters the lower rank stays: it decides wherever the other
    /// could.
    pub(crate) fn add(&mut self, filter: &'f TopicFilter, rank: u32, is_deny: bool) {
        self.depth_max = self.depth_max.max(filter.levels.len());
        let mut at = ROOT;
        for level in &filter.levels {
            at = self.child(at, level);
        }
        let node = self.node(at);
        let terminal = if filter.is_multi {
            &mut node.multi
        } else {
            &mut node.exact
        };
        if rank < terminal.rank {
            *terminal = Terminal { rank, is_deny };
        }
    }

    fn node(&mut self, id: u32) -> &mut Draft<'f> {
        let root = self.root.get_or_insert(Draft::new(EMPTY, None, ROOT_PATH));
        self.nodes.get_mut(id as usize).unwrap_or(root)
    }

    fn child(&mut self, parent: u32, level: &'f filter::Level) -> u32 {
        if let Some(child) = self.edges.get(&(parent, level)) {
            return *child;
        }
        let id = self.nodes.len() as u32;
        let (flag, hash) = match level {
            filter::Level::Literal(text) => (HAS_LITERAL, Level::new(text.as_bytes()).hash),
            filter::Level::Any => (HAS_ANY, special_hash(ANY)),
            filter::Level::Variable(Variable::ClientId) => (HAS_CLIENT_ID, special_hash(CLIENT_ID)),
            filter::Level::Variable(Variable::Username) => (HAS_USERNAME, special_hash(USERNAME)),
        };
        let above = self.node(parent);
        above.flags |= flag;
        let path = fold(above.path, hash);
        self.nodes.push(Draft::new(parent, Some(level), path));
        self.edges.insert((parent, level), id);
        id
    }

    /// The trie; `None` when nothing was added.
    pub(crate) fn build(mut self) -> Option<TopicTrie> {
        let mut root = self.root.take()?;
        self.edges = HashMap::default();
        propagate(&mut self.nodes, &mut root);
        let mut trie = TopicTrie {
            slots: vec![VACANT; table_len(self.nodes.len())].into(),
            root: VACANT,
            text: Box::default(),
            denies: None,
            depth_max: self.depth_max as u32,
        };
        let mut text = Vec::new();
        let mut places: Vec<u32> = Vec::with_capacity(self.nodes.len());
        // A parent stands before its children, so its place is known when theirs are chosen.
        for draft in &self.nodes {
            let parent = places.get(draft.parent as usize).copied().unwrap_or(ROOT);
            let slot = draft.slot(parent, &mut text);
            places.push(place(&mut trie.slots, draft.path, slot));
        }
        trie.root = root.slot(EMPTY, &mut text);
        trie.text = text.into();
        trie.denies = Denies::new(trie.slots.len(), &self.nodes, &places, root.deny).map(Box::new);
        Some(trie)
    }
}

impl<'f> Draft<'f> {
    fn new(parent: u32, level: Option<&'f filter::Level>, path: u64) -> Self {
        Self {
            parent,
            level,
            path,
            flags: 0,
            exact: Terminal::NONE,
            multi: Terminal::NONE,
            best: NO_RANK,
            deny: NO_RANK,
        }
    }

    fn slot(&self, parent: u32, text: &mut Vec<u8>) -> Slot {
        let short = match self.level {
            None => Short::default(),
            Some(filter::Level::Any) => special(ANY),
            Some(filter::Level::Variable(Variable::ClientId)) => special(CLIENT_ID),
            Some(filter::Level::Variable(Variable::Username)) => special(USERNAME),
            Some(filter::Level::Literal(literal)) => short_of(literal.as_bytes(), text),
        };
        Slot {
            parent,
            exact: self.exact.rank,
            multi: self.multi.rank,
            best: self.best,
            rest: short.rest | u64::from(self.flags) << FLAGS_SHIFT,
            head: short.head,
        }
    }
}

/// The short form of a literal of a rule; a long one is appended to the text, and the form says where.
fn short_of(bytes: &[u8], text: &mut Vec<u8>) -> Short {
    if bytes.len() <= SHORT_BYTES_MAX {
        return Level::new(bytes).short;
    }
    let head = text.len() as u64 | (bytes.len() as u64) << 32;
    text.extend_from_slice(bytes);
    Short {
        head,
        ..special(LONG)
    }
}

/// Fills in `best` and `deny` from below. Children stand after their parents, so one pass from the end is enough.
fn propagate<'f>(nodes: &mut [Draft<'f>], root: &mut Draft<'f>) {
    for index in (0..nodes.len()).rev() {
        let Some(node) = nodes.get_mut(index) else {
            continue;
        };
        settle(node);
        let (best, deny, parent) = (node.best, node.deny, node.parent);
        let above = nodes.get_mut(parent as usize).unwrap_or(&mut *root);
        above.best = above.best.min(best);
        above.deny = above.deny.min(deny);
    }
    settle(root);
}

fn settle(node: &mut Draft<'_>) {
    node.best = node.best.min(node.exact.rank).min(node.multi.rank);
    node.deny = node.deny.min(node.exact.deny()).min(node.multi.deny());
}

/// A power of two with at least a quarter of the slots empty.
fn table_len(nodes: usize) -> usize {
    (nodes + nodes / 3 + 1).next_power_of_two()
}

fn place(slots: &mut [Slot], path: u64, slot: Slot) -> u32 {
    let mask = slots.len().wrapping_sub(1);
    let mut index = path as usize & mask;
    while let Some(found) = slots.get_mut(index) {
        if found.parent == EMPTY {
            *found = slot;
            break;
        }
        index = (index + 1) & mask;
    }
    index as u32
}

impl Denies {
    fn new(slots: usize, nodes: &[Draft<'_>], places: &[u32], root_deny: u32) -> Option<Self> {
        if root_deny == NO_RANK {
            return None;
        }
        let mut best = vec![NO_RANK; slots + 1];
        let mut listed = Vec::new();
        for (draft, place) in nodes
            .iter()
            .zip(places)
            .filter(|(draft, _)| draft.deny != NO_RANK)
        {
            let parent = places
                .get(draft.parent as usize)
                .map_or(slots, |parent| *parent as usize);
            if let Some(best) = best.get_mut(*place as usize) {
                *best = draft.deny;
            }
            listed.push((parent, draft.deny, *place, draft.level));
        }
        if let Some(root) = best.last_mut() {
            *root = root_deny;
        }
        listed.sort_unstable_by_key(|(parent, deny, place, _)| (*parent, *deny, *place));
        let mut spans = vec![0_u32; slots + 2];
        let mut children = Vec::with_capacity(listed.len());
        let mut text = Vec::new();
        for (parent, _, place, level) in listed {
            if let Some(count) = spans.get_mut(parent + 1) {
                *count += 1;
            }
            let literal = match level {
                Some(filter::Level::Literal(literal)) => literal.as_bytes(),
                Some(filter::Level::Any | filter::Level::Variable(_)) | None => &[],
            };
            children.push(Child {
                place,
                text_start: text.len() as u32,
                text_len: literal.len() as u32,
            });
            text.extend_from_slice(literal);
        }
        let mut sum = 0;
        for span in &mut spans {
            sum += *span;
            *span = sum;
        }
        Some(Self {
            best: best.into(),
            spans: spans.into(),
            children: children.into(),
            text: text.into(),
        })
    }

    fn children_of(&self, place: usize) -> &[Child] {
        let span = match (self.spans.get(place), self.spans.get(place + 1)) {
            (Some(start), Some(end)) => *start as usize..*end as usize,
            _ => 0..0,
        };
        self.children.get(span).unwrap_or_default()
    }

    fn text_of(&self, child: &Child) -> &[u8] {
        let start = child.text_start as usize;
        self.text
            .get(start..start + child.text_len as usize)
            .unwrap_or_default()
    }
}
