//! Collections that a snapshot shares with the one before it: what is changed is copied, by pages, and the rest is not
//! touched. Cloning costs the list of pages, so does dropping.
//!
//! Three forms, because three questions are asked: by number ([`Paged`]), in order ([`Sorted`]), by name ([`Sharded`]).

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::FixedState;
use foldhash::{HashMap, HashMapExt};

/// A list whose elements are found by number. `BITS`: the logarithm of the elements of a page.
#[derive(Clone, Debug)]
pub(crate) struct Paged<T, const BITS: u32> {
    pages: Box<[Arc<[T]>]>,
    len: usize,
}

impl<T, const BITS: u32> Default for Paged<T, BITS> {
    fn default() -> Self {
        Self {
            pages: Box::default(),
            len: 0,
        }
    }
}

impl<T: Clone, const BITS: u32> Paged<T, BITS> {
    const PAGE: usize = 1 << BITS;

    /// A list of equal elements, which costs one page.
    pub(crate) fn filled(value: &T, len: usize) -> Self {
        let page: Arc<[T]> = vec![value.clone(); Self::PAGE.min(len)].into();
        let rest: Arc<[T]> = vec![value.clone(); len % Self::PAGE].into();
        let mut pages = vec![page; len >> BITS];
        if !rest.is_empty() {
            pages.push(rest);
        }
        Self {
            pages: pages.into(),
            len,
        }
    }

    pub(crate) fn new(values: impl IntoIterator<Item = T>) -> Self {
        let mut values = values.into_iter();
        let (mut pages, mut len) = (Vec::new(), 0);
        loop {
            let page: Vec<T> = values.by_ref().take(Self::PAGE).collect();
            len += page.len();
            let is_last = page.len() < Self::PAGE;
            if !page.is_empty() {
                pages.push(page.into());
            }
            if is_last {
                break;
            }
        }
        Self {
            pages: pages.into(),
            len,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.pages.get(index >> BITS)?.get(index & (Self::PAGE - 1))
    }

    /// An element to change; its page is copied when others use it.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        let page = self.pages.get_mut(index >> BITS)?;
        Arc::make_mut(page).get_mut(index & (Self::PAGE - 1))
    }

    pub(crate) fn push(&mut self, value: T) {
        self.grow(self.len + 1, &value);
    }

    /// Makes the list at least so long.
    pub(crate) fn grow(&mut self, len: usize, value: &T) {
        if len <= self.len {
            return;
        }
        let mut pages = std::mem::take(&mut self.pages).into_vec();
        let mut missing = len - self.len;
        if self.len & (Self::PAGE - 1) != 0
            && let Some(last) = pages.pop()
        {
            let mut page = last.to_vec();
            let more = missing.min(Self::PAGE - page.len());
            page.resize(page.len() + more, value.clone());
            pages.push(page.into());
            missing -= more;
        }
        let more = Self::filled(value, missing);
        pages.extend(more.pages);
        self.pages = pages.into();
        self.len = len;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter())
    }
}

/// A set in order.
#[derive(Clone, Debug)]
pub(crate) struct Sorted<K> {
    /// None is empty.
    leaves: Vec<Leaf<K>>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Leaf<K> {
    first: K,
    keys: Arc<Vec<K>>,
}

/// Keys of a leaf when it is made from many; twice as many split it.
const LEAF: usize = if cfg!(test) { 8 } else { 512 };

impl<K> Default for Sorted<K> {
    fn default() -> Self {
        Self {
            leaves: Vec::new(),
            len: 0,
        }
    }
}

impl<K: Ord + Copy> Sorted<K> {
    /// The set of these keys, none of which may come twice.
    pub(crate) fn new(mut keys: Vec<K>) -> Self {
        keys.sort_unstable();
        let leaf = |keys: &[K]| {
            Some(Leaf {
                first: *keys.first()?,
                keys: Arc::new(keys.to_vec()),
            })
        };
        Self {
            leaves: keys.chunks(LEAF).filter_map(leaf).collect(),
            len: keys.len(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number of the leaf where a key stands or would stand.
    fn leaf_of(&self, key: &K) -> usize {
        self.leaves
            .partition_point(|leaf| leaf.first <= *key)
            .saturating_sub(1)
    }

    /// False: it was there.
    pub(crate) fn insert(&mut self, key: K) -> bool {
        let number = self.leaf_of(&key);
        let Some(leaf) = self.leaves.get_mut(number) else {
            self.leaves.push(Leaf {
                first: key,
                keys: Arc::new(vec![key]),
            });
            self.len += 1;
            return true;
        };
        let Err(place) = leaf.keys.binary_search(&key) else {
            return false;
        };
        let keys = Arc::make_mut(&mut leaf.keys);
        keys.insert(place, key);
        leaf.first = leaf.first.min(key);
        self.len += 1;
        if keys.len() >= 2 * LEAF {
            let behind = keys.split_off(LEAF);
            if let Some(first) = behind.first().copied() {
                let keys = Arc::new(behind);
                self.leaves.insert(number + 1, Leaf { first, keys });
            }
        }
        true
    }

    /// False: it was not there.
    pub(crate) fn remove(&mut self, key: &K) -> bool {
        let number = self.leaf_of(key);
        let Some(leaf) = self.leaves.get_mut(number) else {
            return false;
        };
        let Ok(place) = leaf.keys.binary_search(key) else {
            return false;
        };
        let keys = Arc::make_mut(&mut leaf.keys);
        keys.remove(place);
        self.len -= 1;
        match keys.first() {
            Some(first) => leaf.first = *first,
            None => {
                self.leaves.remove(number);
                return true;
            }
        }
        self.join(number);
        true
    }

    /// Joins a leaf with the next one where both are small, so that what is left of a large set is small.
    fn join(&mut self, number: usize) {
        if let [.., left, right] = self.leaves.get_mut(..number + 2).unwrap_or_default()
            && left.keys.len() + right.keys.len() <= LEAF / 2
        {
            Arc::make_mut(&mut left.keys).extend_from_slice(&right.keys);
            self.leaves.remove(number + 1);
        }
    }

    /// The last key that is before a place and the first that is not; all keys before it come first.
    pub(crate) fn around(&self, is_before: impl Fn(&K) -> bool) -> (Option<K>, Option<K>) {
        let number = self.leaves.partition_point(|leaf| is_before(&leaf.first));
        let Some(number) = number.checked_sub(1) else {
            return (None, self.leaves.first().map(|leaf| leaf.first));
        };
        let keys = self.leaves.get(number).map_or(&[][..], |leaf| &leaf.keys);
        let (before, behind) = keys.split_at(keys.partition_point(is_before));
        let next = self.leaves.get(number + 1).map(|leaf| leaf.first);
        (before.last().copied(), behind.first().copied().or(next))
    }

    /// From a key on, in order.
    pub(crate) fn from(&self, key: K) -> impl Iterator<Item = K> {
        let number = self.leaf_of(&key);
        let leaves = self.leaves.get(number..).unwrap_or_default();
        let skipped = leaves
            .first()
            .map_or(0, |leaf| leaf.keys.partition_point(|found| *found < key));
        leaves
            .iter()
            .flat_map(|leaf| leaf.keys.iter().copied())
            .skip(skipped)
    }
}

/// A map by name, in parts chosen by a hash. `K` is cloned with the part it is in, so it should be small.
#[derive(Clone, Debug)]
pub(crate) struct Sharded<K, V> {
    shards: Box<[Arc<HashMap<K, V>>]>,
    len: usize,
}

/// Entries of a part, about.
const SHARD: usize = if cfg!(test) { 2 } else { 128 };
const SHARDS_MAX: usize = 4_096;

impl<K: Hash + Eq + Clone, V: Clone> Sharded<K, V> {
    /// An empty map with room for `len` entries; more make it slower to change, not wrong.
    pub(crate) fn with_capacity(len: usize) -> Self {
        let shards = (len / SHARD).next_power_of_two().min(SHARDS_MAX);
        let empty = Arc::new(HashMap::new());
        Self {
            shards: vec![empty; shards].into(),
            len: 0,
        }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The high bits, since the maps inside take the low ones.
        (FixedState::with_seed(0x5A).hash_one(key) >> 40) as usize & (self.shards.len() - 1)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shards.get(self.shard(key))?.get(key)
    }

    /// Sets, changes or takes out what stands under a key.
    pub(crate) fn update<R>(&mut self, key: K, change: impl FnOnce(&mut Option<V>) -> R) -> R {
        self.widen();
        let number = self.shard(&key);
        let mut value = None;
        let Some(shard) = self.shards.get_mut(number).map(Arc::make_mut) else {
            return change(&mut value); // never: there is a part for every hash
        };
        value = shard.remove(&key);
        let was_there = value.is_some();
        let result = change(&mut value);
        let is_there = value.is_some();
        if let Some(value) = value {
            shard.insert(key, value);
        }
        self.len = self.len + usize::from(is_there) - usize::from(was_there);
        result
    }

    /// Keeps the parts small while the map grows.
    fn widen(&mut self) {
        if self.shards.len() == SHARDS_MAX || self.len < 2 * SHARD * self.shards.len() {
            return;
        }
        let mut wider = Self::with_capacity(2 * SHARD * self.shards.len());
        for shard in std::mem::take(&mut self.shards) {
            for (key, value) in Arc::unwrap_or_clone(shard) {
                let number = wider.shard(&key);
                if let Some(shard) = wider.shards.get_mut(number) {
                    Arc::make_mut(shard).insert(key, value);
                }
            }
        }
        self.shards = wider.shards;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sorted_set_is_a_set_in_order(start in prop::collection::btree_set(0_u32..4_000, 0..3_000), steps in prop::collection::vec((any::<bool>(), 0_u32..4_000), 0..300), from in 0_u32..4_000) {
            let mut expected: BTreeSet<u32> = start.clone();
            let before = Sorted::new(start.iter().copied().collect());
            let mut set = before.clone();
            for (is_added, key) in steps {
                if is_added {
                    prop_assert_eq!(set.insert(key), expected.insert(key));
                } else {
                    prop_assert_eq!(set.remove(&key), expected.remove(&key));
                }
                prop_assert_eq!(set.len(), expected.len());
            }
            prop_assert!(set.from(from).eq(expected.range(from..).copied()));
            let around = (expected.range(..from).next_back().copied(), expected.range(from..).next().copied());
            prop_assert_eq!(set.around(|key| *key < from), around);
            prop_assert!(before.from(0).eq(start.iter().copied()));
        }

        #[test]
        fn a_sharded_map_is_a_map(steps in prop::collection::vec((0_u32..600, prop::option::of(any::<u8>())), 0..900)) {
            let mut expected = BTreeMap::new();
            let empty: Sharded<u32, u8> = Sharded::with_capacity(0);
            let mut map = empty.clone();
            for (key, value) in steps {
                map.update(key, |slot| *slot = value);
                match value {
                    Some(value) => expected.insert(key, value),
                    None => expected.remove(&key),
                };
                prop_assert_eq!(map.len(), expected.len());
                prop_assert_eq!(map.get(&key), expected.get(&key));
            }
            let mut all: Vec<(u32, u8)> = map.iter().map(|(key, value)| (*key, *value)).collect();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(expected));
            prop_assert_eq!(empty.len(), 0);
        }

        #[test]
        fn a_paged_list_is_a_list(start in prop::collection::vec(any::<u8>(), 0..40), steps in prop::collection::vec((0_usize..60, any::<u8>()), 0..40)) {
            let before: Paged<u8, 3> = Paged::new(start.iter().copied());
            let (mut list, mut expected) = (before.clone(), start.clone());
            for (index, value) in steps {
                match index {
                    50.. => {
                        list.grow(index, &value);
                        expected.resize(expected.len().max(index), value);
                    }
                    40..50 => {
                        list.push(value);
                        expected.push(value);
                    }
                    _ => {
                        if let Some(slot) = expected.get_mut(index) {
                            *slot = value;
                        }
                        if let Some(slot) = list.get_mut(index) {
                            *slot = value;
                        }
                    }
                }
                prop_assert_eq!(list.len(), expected.len());
            }
            prop_assert!(list.iter().eq(&expected));
            prop_assert_eq!(list.get(expected.len()), None);
            prop_assert!(before.iter().eq(&start));
            let filled = Paged::<u8, 3>::filled(&7, start.len());
            prop_assert!(filled.iter().eq(&vec![7; start.len()]));
        }
    }
}
