//! Many filters to a trie: the table first, and what nodes know of those below them in one pass at the end.

use super::*;

/// Makes a trie of many filters.
pub(crate) struct Builder {
    trie: TopicTrie,
    /// In the order in which they were made, so every parent before its children.
    nodes: Vec<(u32, u64)>,
    behind: Vec<Behind>,
    depths: Depths,
    has: ByMark<bool>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            trie: TopicTrie::empty(8),
            nodes: Vec::new(),
            behind: Vec::new(),
            depths: Depths::default(),
            has: ByMark::default(),
        }
    }
}

impl Builder {
    /// Adds a filter of the rule of that rank.
    pub(crate) fn add(&mut self, filter: TopicFilter<'_>, rank: u32, mark: Option<Mark>) {
        let levels = filter.levels().count();
        if (self.nodes.len() + levels) * 4 >= self.trie.slots.len() * 3 {
            self.widen(levels);
        }
        let nodes = &mut self.nodes;
        let places = self
            .trie
            .enter(filter, |place, path| nodes.push((place, path)));
        let (place, _) = places.last().copied().unwrap_or((ROOT, ROOT_PATH));
        let loser = self.trie.slot_mut(place).end(filter.is_multi(), rank, mark);
        if let Some((rank, mark)) = loser {
            self.behind.push((place, filter.is_multi(), rank, mark));
        }
        if let Some(count) = self.depths.at(levels) {
            *count += 1;
        }
        if let Some(mark) = mark {
            *self.has.of_mut(mark) = true;
        }
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
            has,
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
                has,
            };
            wider.widen(SLOTS_MIN / 2);
            return wider.build(true);
        }
        let mut listed = Vec::with_capacity(if is_editable { nodes.len() } else { 0 });
        let mut marked = Mark::ALL.map(|mark| {
            let listed = has.of(mark).then(|| Listed::new(trie.slots.len()));
            (mark, listed, Vec::new())
        });
        // Children stand behind their parents, so one pass from the end fills everything in.
        let places = nodes.iter().rev().map(|(place, _)| *place).chain([ROOT]);
        for place in places {
            let slot = trie.slot_mut(place);
            slot.best = slot.best.min(slot.exact).min(slot.multi);
            let slot = *slot;
            if place != ROOT {
                let above = trie.slot_mut(slot.parent);
                above.best = above.best.min(slot.best);
                if is_editable {
                    listed.push((slot.parent, slot.best, place));
                }
            }
            for (mark, listed, children) in &mut marked {
                let Some(listed) = listed else {
                    continue;
                };
                let rank = slot.marked(*mark).min(listed.of(place));
                if rank != NO_RANK {
                    listed.set(place, rank);
                    if place != ROOT {
                        listed.set(slot.parent, rank.min(listed.of(slot.parent)));
                        children.push((slot.parent, rank, place));
                    }
                }
            }
        }
        for (mark, listed, children) in marked {
            *trie.listed.of_mut(mark) = listed.map(|listed| {
                Box::new(Listed {
                    children: Sorted::new(children),
                    ..listed
                })
            });
        }
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
