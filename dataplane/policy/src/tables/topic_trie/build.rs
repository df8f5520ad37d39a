//! Many filters to a trie: the table first, and what nodes know of those below them in one pass at the end.

use super::*;

/// Makes a trie of many filters.
pub(crate) struct Builder {
    trie: TopicTrie,
    /// In the order in which they were made, so every parent before its children.
    nodes: Vec<(u32, u64)>,
    behind: Vec<(u32, bool, u32, bool)>,
    depths: Depths,
    has_deny: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            trie: TopicTrie::empty(8),
            nodes: Vec::new(),
            behind: Vec::new(),
            depths: Depths::default(),
            has_deny: false,
        }
    }
}

impl Builder {
    /// Adds a filter of the rule of that rank.
    pub(crate) fn add(&mut self, filter: TopicFilter<'_>, rank: u32, is_deny: bool) {
        let levels = filter.levels().count();
        if (self.nodes.len() + levels) * 4 >= self.trie.slots.len() * 3 {
            self.widen(levels);
        }
        let nodes = &mut self.nodes;
        let places = self
            .trie
            .enter(filter, |place, path| nodes.push((place, path)));
        let (place, _) = places.last().copied().unwrap_or((ROOT, ROOT_PATH));
        let loser = self
            .trie
            .slot_mut(place)
            .end(filter.is_multi(), rank, is_deny);
        if let Some((rank, is_deny)) = loser {
            self.behind.push((place, filter.is_multi(), rank, is_deny));
        }
        if let Some(count) = self.depths.at(levels) {
            *count += 1;
        }
        self.has_deny |= is_deny;
    }

    /// A larger table: every node finds a new place.
    fn widen(&mut self, more: usize) {
        let len = ((self.nodes.len() + more) * 4 / 3 + 1).next_power_of_two();
        let len = len.max(2 * self.trie.slots.len());
        let before = std::mem::take(&mut self.trie.slots);
        self.trie.slots = Paged::filled(&VACANT, len);
        let mut moved = vec![ROOT; before.len()];
        for (place, path) in &mut self.nodes {
            let Some(slot) = before.get(*place as usize) else {
                continue; // never: every node has a slot
            };
            let parent = moved.get(slot.parent as usize).copied().unwrap_or(ROOT);
            let to = self.trie.place(*path, Slot { parent, ..*slot });
            if let Some(moved) = moved.get_mut(*place as usize) {
                *moved = to;
            }
            *place = to;
        }
        for (place, ..) in &mut self.behind {
            *place = moved.get(*place as usize).copied().unwrap_or(ROOT);
        }
    }

    /// The trie; `None` when nothing was added. `is_editable`: it can be changed, which takes some memory.
    pub(crate) fn build(self, is_editable: bool) -> Option<TopicTrie> {
        let Self {
            mut trie,
            nodes,
            behind,
            depths,
            has_deny,
        } = self;
        if depths.is_empty() {
            return None;
        }
        if is_editable && trie.slots.len() < SLOTS_MIN {
            let mut wider = Self {
                trie,
                nodes,
                behind,
                depths,
                has_deny,
            };
            wider.widen(SLOTS_MIN / 2);
            return wider.build(true);
        }
        let mut listed = Vec::with_capacity(if is_editable { nodes.len() } else { 0 });
        let mut denies = has_deny.then(|| Denies::new(trie.slots.len()));
        let mut denying = Vec::new();
        // Children stand behind their parents, so one pass from the end fills everything in.
        let places = nodes.iter().rev().map(|(place, _)| *place).chain([ROOT]);
        for place in places {
            let slot = trie.slot_mut(place);
            slot.best = slot.best.min(slot.exact).min(slot.multi);
            let (best, deny, parent) = (slot.best, slot.deny(), slot.parent);
            if place != ROOT {
                let above = trie.slot_mut(parent);
                above.best = above.best.min(best);
                if is_editable {
                    listed.push((parent, best, place));
                }
            }
            let Some(denies) = &mut denies else {
                continue;
            };
            let deny = deny.min(denies.of(place));
            if deny != NO_RANK {
                denies.set(place, deny);
                if place != ROOT {
                    denies.set(parent, deny.min(denies.of(parent)));
                    denying.push((parent, deny, place));
                }
            }
        }
        if let Some(denies) = &mut denies {
            denies.children = Sorted::new(denying);
        }
        trie.denies = denies.map(Box::new);
        trie.depth_max = depths.max();
        trie.text.built = trie.text.added.as_slice().into();
        trie.text.added = Arc::default();
        trie.edits = is_editable.then(|| {
            Box::new(Edits {
                children: Sorted::new(listed),
                behind: Sorted::new(behind),
                depths,
                used: nodes.len(),
                dead: 0,
            })
        });
        Some(trie)
    }
}
