//! The topics of the rules of one class for one action, compiled: which is the lowest rank that matches a topic?
//!
//! # Layout
//!
//! A node is one 32-byte slot of an open-addressing table; an edge is found by hashing the path (not the parent's place),
//! so the loads of the levels of a topic do not wait for one another. The slot holds the parent and the level, which decide
//! whether it is the right one, and all that the walk needs at the node. `+` and the variables are edges like others, behind
//! a flag, so a node without them costs no look-up. Children are listed apart, and only where a deny (or a rule that narrows) lies at
//! or below them: that is what the check of subscriptions walks.
//!
//! # Invariants
//!
//! - A parent's `best` (and what is listed of it) is at most its children's: a walk leaves a node whose `best` cannot improve the answer.
//! - The table has at least one empty slot, so every search ends.
//! - A topic visits a node at most once, and only nodes whose path generalises the topic: no more than the rules of the
//!   class have prefixes that match it, whatever the number of other rules.

use std::sync::Arc;

mod build;
mod change;

pub(crate) use build::Builder;

use super::NO_RANK;
use super::level::{ANY, CLIENT_ID, LONG, Level, Short, USERNAME, fold, special};
use super::shared::{Paged, Sorted};
use crate::filter::{self, FILTER_LEVELS_MAX, TopicFilter, Variable};

/// Logarithm of the slots of a page: 128 KiB, so that the list of pages of a large table fits into the nearest cache, and
/// a change copies a page for each level.
const PAGE_BITS: u32 = if cfg!(test) { 4 } else { 12 };
/// Text of long levels that a change may add to a table with little of it.
const ADDED_TEXT_MAX: usize = 256 << 10;
/// Slots of the smallest table that can be changed.
const SLOTS_MIN: usize = 256;

/// How many nodes one verdict may visit. A topic of `n` levels under rules with `+` at every level can match `2^n`
/// prefixes: 4,096 lets eleven such levels through; real rules visit fewer than twenty. Beyond it the answer is a refusal.
pub(crate) const VERDICT_NODES_MAX: u32 = 4_096;

const HAS_LITERAL: u8 = 1;
const HAS_ANY: u8 = 2;
const HAS_CLIENT_ID: u8 = 4;
const HAS_USERNAME: u8 = 8;
const HAS_SPECIAL: u8 = HAS_ANY | HAS_CLIENT_ID | HAS_USERNAME;
/// What the rule that ends here is listed as, and what the one that ends here with `#` is.
const EXACT_DENIES: u8 = 16;
const MULTI_DENIES: u8 = 32;
const EXACT_NARROWS: u8 = 64;
const MULTI_NARROWS: u8 = 128;

/// The parent of the root's children.
pub(crate) const ROOT: u32 = u32::MAX - 1;
/// The parent in a slot that is empty.
const EMPTY: u32 = u32::MAX;
const ROOT_PATH: u64 = 0x243F_6A88_85A3_08D3;

/// What the check of subscriptions looks for. Nodes know the lowest rank of each at or below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// The rule denies.
    Deny,
    /// The rule allows, and narrows subscriptions.
    Narrow,
}

impl Mark {
    const ALL: [Self; 2] = [Self::Deny, Self::Narrow];

    fn flag(self, is_multi: bool) -> u8 {
        match (self, is_multi) {
            (Self::Deny, false) => EXACT_DENIES,
            (Self::Deny, true) => MULTI_DENIES,
            (Self::Narrow, false) => EXACT_NARROWS,
            (Self::Narrow, true) => MULTI_NARROWS,
        }
    }
}

/// One thing for each mark.
#[derive(Clone, Debug, Default)]
struct ByMark<T> {
    deny: T,
    narrow: T,
}

impl<T> ByMark<T> {
    fn of(&self, mark: Mark) -> &T {
        match mark {
            Mark::Deny => &self.deny,
            Mark::Narrow => &self.narrow,
        }
    }

    fn of_mut(&mut self, mark: Mark) -> &mut T {
        match mark {
            Mark::Deny => &mut self.deny,
            Mark::Narrow => &mut self.narrow,
        }
    }
}

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
#[derive(Clone, Debug)]
pub(crate) struct TopicTrie {
    slots: Paged<Slot, PAGE_BITS>,
    root: Slot,
    text: Text,
    /// Absent where no rule has the mark.
    listed: ByMark<Option<Box<Listed>>>,
    depth_max: u32,
    edits: Option<Box<Edits>>,
}

/// Where rules with one mark lie. Only the check of subscriptions looks here.
#[derive(Clone, Debug)]
struct Listed {
    /// For each slot: the lowest rank of one here and below.
    best: Paged<u32, PAGE_BITS>,
    root: u32,
    /// The children with one at or below them: parent, lowest rank of one, place.
    children: Sorted<(u32, u32, u32)>,
}

/// A rule behind another with the same filter: place, whether it ends with `#`, rank, mark.
type Behind = (u32, bool, u32, Option<Mark>);

/// What changing a trie needs beside it. No question is answered from here.
#[derive(Clone, Debug, Default)]
struct Edits {
    /// Every node with a rank here or below: parent, `best`, place.
    children: Sorted<(u32, u32, u32)>,
    behind: Sorted<Behind>,
    /// How many filters there are of each depth.
    depths: Depths,
    /// Slots in use, those of nodes that no filter leads through any more included.
    used: usize,
    /// Nodes that no filter leads through any more.
    dead: usize,
}

/// Filters by their number of levels.
#[derive(Clone, Debug)]
struct Depths([u32; FILTER_LEVELS_MAX + 1]);

impl Default for Depths {
    fn default() -> Self {
        Self([0; FILTER_LEVELS_MAX + 1])
    }
}

impl Depths {
    fn at(&mut self, depth: usize) -> Option<&mut u32> {
        self.0.get_mut(depth)
    }

    fn max(&self) -> u32 {
        self.0.iter().rposition(|count| *count > 0).unwrap_or(0) as u32
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

/// Levels too long for a slot, one after another: those of the build, then those added since.
#[derive(Clone, Debug, Default)]
struct Text {
    built: Arc<[u8]>,
    added: Arc<Vec<u8>>,
}

/// In the head of a long level: where its text begins, and above that how long it is.
const TEXT_START_BITS: u32 = 40;

impl Text {
    fn get(&self, head: u64) -> &[u8] {
        let start = (head & ((1 << TEXT_START_BITS) - 1)) as usize;
        let length = (head >> TEXT_START_BITS) as usize;
        let (text, start) = match start.checked_sub(self.built.len()) {
            None => (&*self.built, start),
            Some(start) => (self.added.as_slice(), start),
        };
        text.get(start..start + length).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) -> u64 {
        let start = self.built.len() + self.added.len();
        Arc::make_mut(&mut self.added).extend_from_slice(bytes);
        start as u64 | (bytes.len() as u64) << TEXT_START_BITS
    }
}

/// A node with its place, and the hash of its path.
#[derive(Clone, Copy)]
pub(crate) struct Node<'t> {
    pub(crate) id: u32,
    pub(crate) path: u64,
    pub(crate) slot: &'t Slot,
}

/// A node by numbers: what is left of it between two looks at the same trie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    id: u32,
    path: u64,
}

impl Place {
    pub(crate) const ROOT: Self = Self {
        id: ROOT,
        path: ROOT_PATH,
    };
}

impl Node<'_> {
    pub(crate) fn place(self) -> Place {
        Place {
            id: self.id,
            path: self.path,
        }
    }
}

/// The values of the variables.
#[derive(Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) client_id: &'a [u8],
    pub(crate) username: &'a [u8],
}

/// What leads to a child.
pub(crate) enum Edge<'t> {
    /// Without its bytes where it is short.
    Literal(Level<'t>),
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
            if node.slot.flags() & HAS_SPECIAL != 0 {
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
                slot.tag() == LONG && self.text.get(slot.head) == level.bytes
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

    /// The lowest rank with that mark at or below a node.
    pub(crate) fn marked(&self, node: Node<'_>, mark: Mark) -> u32 {
        let listed = self.listed.of(mark).as_ref();
        listed.map_or(NO_RANK, |listed| listed.of(node.id))
    }

    /// The node that stands at a place of this trie.
    #[inline]
    pub(crate) fn at(&self, place: Place) -> Option<Node<'_>> {
        let slot = match place.id {
            ROOT => &self.root,
            id => self.slots.get(id as usize)?,
        };
        Some(Node {
            id: place.id,
            path: place.path,
            slot,
        })
    }

    /// Of the children of a node with such a rule at or below them, in the order of the lowest rank of one and of their
    /// numbers, the first from this rank and number on, with its rank.
    pub(crate) fn child_with(
        &self,
        mark: Mark,
        node: Node<'_>,
        (rank, id): (u32, u32),
    ) -> Option<(u32, Node<'_>)> {
        let listed = self.listed.of(mark).as_ref()?;
        let (parent, rank, id) = listed.children.from((node.id, rank, id)).next()?;
        if parent != node.id {
            return None;
        }
        let slot = self.slots.get(id as usize)?;
        let hash = match slot.tag() {
            ANY | CLIENT_ID | USERNAME => special_hash(slot.tag()),
            _ => self.level_of(slot).hash,
        };
        let path = fold(node.path, hash);
        Some((rank, Node { id, path, slot }))
    }

    /// What leads to a node that is not the root.
    pub(crate) fn edge(&self, node: Node<'_>) -> Edge<'_> {
        match node.slot.tag() {
            ANY => Edge::Any,
            CLIENT_ID => Edge::ClientId,
            USERNAME => Edge::Username,
            _ => Edge::Literal(self.level_of(node.slot)),
        }
    }

    fn level_of(&self, slot: &Slot) -> Level<'_> {
        match slot.tag() {
            LONG => Level::new(self.text.get(slot.head)),
            _ => Level::from_short(slot.short()),
        }
    }
}

impl Listed {
    fn new(slots: usize) -> Self {
        Self {
            best: Paged::filled(&NO_RANK, slots),
            root: NO_RANK,
            children: Sorted::default(),
        }
    }

    fn of(&self, id: u32) -> u32 {
        if id == ROOT {
            return self.root;
        }
        self.best.get(id as usize).copied().unwrap_or(NO_RANK)
    }

    fn set(&mut self, id: u32, rank: u32) {
        if id == ROOT {
            self.root = rank;
        } else if let Some(best) = self.best.get_mut(id as usize) {
            *best = rank;
        }
    }
}

const fn special_hash(tag: u8) -> u64 {
    0xA409_3822_299F_31D0_u64.wrapping_mul(tag as u64 | 1)
}
