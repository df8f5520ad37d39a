//! Filters come into a trie and go: a change costs the nodes that its filter leads through.
//!
//! The same steps make a trie from nothing ([`super::Builder`]). A node stays when no filter leads through it any more, since
//! others stand behind it in the table; it comes to life again with the next filter, or goes with a new table.

use smallvec::SmallVec;

use super::*;

/// What a level of a filter is in the table.
struct Step<'f> {
    flag: u8,
    hash: u64,
    short: Short,
    /// The bytes of a level that is too long for a slot.
    long: Option<&'f [u8]>,
}

impl<'f> Step<'f> {
    fn new(level: filter::Level<'f>) -> Self {
        let (flag, tag) = match level {
            filter::Level::Literal(text) => {
                let level = Level::new(text.as_bytes());
                return Self {
                    flag: HAS_LITERAL,
                    hash: level.hash,
                    short: level.short,
                    long: (level.short.tag() == LONG).then_some(text.as_bytes()),
                };
            }
            filter::Level::Any => (HAS_ANY, ANY),
            filter::Level::Variable(Variable::ClientId) => (HAS_CLIENT_ID, CLIENT_ID),
            filter::Level::Variable(Variable::Username) => (HAS_USERNAME, USERNAME),
        };
        Self {
            flag,
            hash: special_hash(tag),
            short: special(tag),
            long: None,
        }
    }
}

/// Places from the root down, with the hashes of their paths.
pub(super) type Path = SmallVec<[(u32, u64); FILTER_LEVELS_MAX + 1]>;

impl TopicTrie {
    pub(super) fn empty(slots: usize) -> Self {
        Self {
            slots: Paged::filled(&VACANT, slots),
            root: VACANT,
            text: Text::default(),
            listed: ByMark::default(),
            depth_max: 0,
            edits: None,
        }
    }

    /// A trie without rules that can be changed.
    pub(crate) fn editable() -> Self {
        Self {
            edits: Some(Box::default()),
            ..Self::empty(SLOTS_MIN)
        }
    }

    fn child(&self, parent: u32, path: u64, step: &Step<'_>) -> Option<u32> {
        let found = match step.long {
            Some(bytes) => self.find(parent, path, |slot| {
                slot.tag() == LONG && self.text.get(slot.head) == bytes
            }),
            None => self.find(parent, path, |slot| slot.short() == step.short),
        };
        found.map(|node| node.id)
    }

    /// The nodes that a filter leads through; `None` when one is not there.
    fn path_of(&self, filter: TopicFilter<'_>) -> Option<Path> {
        let mut places = Path::from_slice(&[(ROOT, ROOT_PATH)]);
        let (mut at, mut path) = (ROOT, ROOT_PATH);
        for level in filter.levels() {
            let step = Step::new(level);
            path = fold(path, step.hash);
            at = self.child(at, path, &step)?;
            places.push((at, path));
        }
        Some(places)
    }

    /// The same, with those that are missing made; `made` is told of them. There must be room.
    pub(super) fn enter(
        &mut self,
        filter: TopicFilter<'_>,
        mut made: impl FnMut(u32, u64),
    ) -> Path {
        let mut places = Path::from_slice(&[(ROOT, ROOT_PATH)]);
        let (mut at, mut path) = (ROOT, ROOT_PATH);
        for level in filter.levels() {
            let step = Step::new(level);
            path = fold(path, step.hash);
            at = match self.child(at, path, &step) {
                Some(place) => place,
                None => {
                    if self.slot(at).flags() & step.flag == 0 {
                        self.slot_mut(at).rest |= u64::from(step.flag) << FLAGS_SHIFT;
                    }
                    let head = step
                        .long
                        .map_or(step.short.head, |bytes| self.text.push(bytes));
                    let slot = Slot {
                        parent: at,
                        rest: step.short.rest,
                        head,
                        ..VACANT
                    };
                    let place = self.place(path, slot);
                    made(place, path);
                    place
                }
            };
            places.push((at, path));
        }
        places
    }

    /// Puts a node into the first free slot of its path.
    pub(super) fn place(&mut self, path: u64, slot: Slot) -> u32 {
        let mask = self.slots.len().wrapping_sub(1);
        let mut index = path as usize & mask;
        while self
            .slots
            .get(index)
            .is_some_and(|found| found.parent != EMPTY)
        {
            index = (index + 1) & mask;
        }
        if let Some(found) = self.slots.get_mut(index) {
            *found = slot;
        }
        index as u32
    }

    fn slot(&self, place: u32) -> &Slot {
        self.slots.get(place as usize).unwrap_or(&self.root)
    }

    pub(super) fn slot_mut(&mut self, place: u32) -> &mut Slot {
        // Not in one expression: the slots would be taken for borrowed where there is none.
        if (place as usize) < self.slots.len()
            && let Some(slot) = self.slots.get_mut(place as usize)
        {
            return slot;
        }
        &mut self.root
    }

    /// Adds a filter of the rule of that rank. False: there is no room; the trie is as before.
    pub(crate) fn add(&mut self, filter: TopicFilter<'_>, rank: u32, mark: Option<Mark>) -> bool {
        let len = self.slots.len();
        let has_room = |edits: &Edits| edits.used + FILTER_LEVELS_MAX < room(len);
        // Long levels of nodes that are gone stay until then.
        if self.text.added.len() > ADDED_TEXT_MAX.max(self.text.built.len()) {
            return false;
        }
        let Some(mut edits) = self.edits.take_if(|edits| has_room(edits)) else {
            return false;
        };
        let places = self.enter(filter, |_, _| {
            edits.used += 1;
            edits.dead += 1;
        });
        let (place, _) = places.last().copied().unwrap_or((ROOT, ROOT_PATH));
        let loser = self.slot_mut(place).end(filter.is_multi(), rank, mark);
        if let Some((rank, mark)) = loser {
            edits.behind.insert((place, filter.is_multi(), rank, mark));
        }
        if let Some(count) = edits.depths.at(places.len() - 1) {
            *count += 1;
        }
        if let Some(mark) = mark {
            let listed = self.listed.of_mut(mark);
            listed.get_or_insert_with(|| Box::new(Listed::new(len)));
        }
        self.refresh(&places, &mut edits);
        self.edits = Some(edits);
        true
    }

    /// Takes a filter of a rule out. False: it is not there.
    pub(crate) fn remove(
        &mut self,
        filter: TopicFilter<'_>,
        rank: u32,
        mark: Option<Mark>,
    ) -> bool {
        let Some(places) = self.path_of(filter) else {
            return false;
        };
        let Some(mut edits) = self.edits.take() else {
            return false;
        };
        let is_multi = filter.is_multi();
        let (place, _) = places.last().copied().unwrap_or((ROOT, ROOT_PATH));
        let mut was_there = true;
        if self.slot(place).terminal(is_multi) == rank {
            let next = edits.behind.from((place, is_multi, 0, None)).next();
            let next = next.filter(|next| (next.0, next.1) == (place, is_multi));
            let (rank, mark) = next.map_or((NO_RANK, None), |next| (next.2, next.3));
            if let Some(next) = next {
                edits.behind.remove(&next);
            }
            self.slot_mut(place).set_terminal(is_multi, rank, mark);
        } else {
            was_there = edits.behind.remove(&(place, is_multi, rank, mark));
        }
        if was_there && let Some(count) = edits.depths.at(places.len() - 1) {
            *count = count.saturating_sub(1);
        }
        self.refresh(&places, &mut edits);
        self.edits = Some(edits);
        was_there
    }

    /// Makes `best` and what is listed right along a path whose last node has changed.
    fn refresh(&mut self, places: &Path, edits: &mut Edits) {
        self.depth_max = edits.depths.max();
        for (place, _) in places.iter().rev() {
            let place = *place;
            let slot = *self.slot(place);
            let below = first_below(&edits.children, place);
            let best = slot.exact.min(slot.multi).min(below);
            if best != slot.best {
                if place != ROOT {
                    list(&mut edits.children, slot.parent, place, slot.best, best);
                    edits.dead -= usize::from(slot.best == NO_RANK);
                    edits.dead += usize::from(best == NO_RANK);
                }
                self.slot_mut(place).best = best;
            }
            for mark in Mark::ALL {
                let Some(listed) = self.listed.of_mut(mark) else {
                    continue;
                };
                let before = listed.of(place);
                let rank = slot.marked(mark).min(first_below(&listed.children, place));
                if rank != before {
                    if place != ROOT {
                        list(&mut listed.children, slot.parent, place, before, rank);
                    }
                    listed.set(place, rank);
                }
            }
        }
        for mark in Mark::ALL {
            let listed = self.listed.of_mut(mark);
            listed.take_if(|listed| listed.root == NO_RANK);
        }
    }

    /// True exactly when no rule is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.edits
            .as_ref()
            .is_some_and(|edits| edits.depths.is_empty())
    }

    /// Slots and long text, to see that they do not grow.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.slots.len() + self.text.added.len() + self.text.built.len()
    }

    /// True exactly when most of a large table is not needed any more, so that it should be built anew.
    pub(crate) fn is_wasteful(&self) -> bool {
        self.edits.as_ref().is_some_and(|edits| {
            self.slots.len() > 16 * SLOTS_MIN && (edits.used - edits.dead) * 16 < self.slots.len()
        })
    }
}

/// The lowest rank listed for a node's children.
fn first_below(children: &Sorted<(u32, u32, u32)>, parent: u32) -> u32 {
    let first = children.from((parent, 0, 0)).next();
    first
        .filter(|(found, _, _)| *found == parent)
        .map_or(NO_RANK, |(_, rank, _)| rank)
}

/// Lists a child under another rank.
fn list(children: &mut Sorted<(u32, u32, u32)>, parent: u32, place: u32, before: u32, after: u32) {
    if before != NO_RANK {
        children.remove(&(parent, before, place));
    }
    if after != NO_RANK {
        children.insert((parent, after, place));
    }
}

impl Slot {
    fn terminal(&self, is_multi: bool) -> u32 {
        if is_multi { self.multi } else { self.exact }
    }

    fn set_terminal(&mut self, is_multi: bool, rank: u32, mark: Option<Mark>) {
        if is_multi {
            self.multi = rank;
        } else {
            self.exact = rank;
        }
        let bits = |mark: Mark| u64::from(mark.flag(is_multi)) << FLAGS_SHIFT;
        self.rest &= !(bits(Mark::Deny) | bits(Mark::Narrow));
        self.rest |= mark.map_or(0, bits);
    }

    fn mark(&self, is_multi: bool) -> Option<Mark> {
        let has = |mark: &Mark| self.flags() & mark.flag(is_multi) != 0;
        Mark::ALL.into_iter().find(has)
    }

    /// Lets a rule end here. Of two equal filters the lower rank stays: it decides wherever the other could. The answer is
    /// the rule that does not stay.
    pub(super) fn end(
        &mut self,
        is_multi: bool,
        rank: u32,
        mark: Option<Mark>,
    ) -> Option<(u32, Option<Mark>)> {
        let there = self.terminal(is_multi);
        if there < rank {
            return Some((rank, mark));
        }
        let loser = (there != NO_RANK).then(|| (there, self.mark(is_multi)));
        self.set_terminal(is_multi, rank, mark);
        loser
    }

    /// The lowest rank with that mark that ends here.
    pub(super) fn marked(&self, mark: Mark) -> u32 {
        let of = |is_multi| {
            if self.mark(is_multi) == Some(mark) {
                self.terminal(is_multi)
            } else {
                NO_RANK
            }
        };
        of(false).min(of(true))
    }
}

/// How many nodes a table may have: beyond it searches take long.
const fn room(slots: usize) -> usize {
    slots / 5 * 4
}
