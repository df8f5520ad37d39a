//! Passwords that were verified a short while ago, so that a device that reconnects costs no second hash.
//!
//! Holds keyed digests only: a key covers the user, the secret and the digest of the stored verifier, so a changed
//! password misses. Successes only, each for a lifetime that a hit does not extend. Bounded; when full, the oldest
//! entry of the address that holds most makes room, so one address cannot push the others out. Pure: time is given.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::shares::Shares;
use crate::clock::Time;
use crate::node::Address;

/// What was verified; made by [`super::desk::Desk`] with a key of this process.
pub(super) type Key = [u8; 32];

/// See the module documentation.
pub(super) struct Cache {
    entries_max: usize,
    lifetime: Duration,
    entries: HashMap<Key, Entry>,
    oldest_first: BTreeMap<(Address, u64), Key>,
    shares: Shares,
    stamp: u64,
}

struct Entry {
    expires: Time,
    address: Address,
    stamp: u64,
}

impl Cache {
    /// `entries_max` 0 remembers nothing.
    pub(super) fn new(entries_max: usize, lifetime: Duration) -> Self {
        Self {
            entries_max,
            lifetime,
            entries: HashMap::new(),
            oldest_first: BTreeMap::new(),
            shares: Shares::default(),
            stamp: 0,
        }
    }

    /// True exactly when this was verified within the lifetime.
    pub(super) fn contains(&mut self, now: Time, key: &Key) -> bool {
        match self.entries.get(key) {
            Some(entry) if now < entry.expires => true,
            Some(_) => {
                self.remove(key);
                false
            }
            None => false,
        }
    }

    /// Remembers a success.
    pub(super) fn insert(&mut self, now: Time, key: Key, address: Address) {
        if self.entries_max == 0 {
            return;
        }
        self.remove(&key);
        while self.entries.len() >= self.entries_max {
            let Some((largest, _)) = self.shares.largest() else {
                break;
            };
            let oldest = self.oldest_first.range((largest, 0)..).next();
            let Some(victim) = oldest.map(|(_, &key)| key) else {
                break;
            };
            self.remove(&victim);
        }
        self.stamp += 1;
        let entry = Entry {
            expires: now.after(self.lifetime),
            address,
            stamp: self.stamp,
        };
        self.oldest_first.insert((address, self.stamp), key);
        self.shares.add(address, 1);
        self.entries.insert(key, entry);
    }

    /// Gives back the memory of entries whose lifetime is over. Costs a walk; for a slow tick.
    pub(super) fn purge(&mut self, now: Time) {
        let expired: Vec<Key> = self
            .entries
            .iter()
            .filter(|(_, entry)| now >= entry.expires)
            .map(|(&key, _)| key)
            .collect();
        for key in &expired {
            self.remove(key);
        }
    }

    /// Entries held.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.oldest_first.remove(&(entry.address, entry.stamp));
            self.shares.take(entry.address, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(60);

    fn key(number: u8) -> Key {
        [number; 32]
    }

    fn address(last: u8) -> Address {
        std::net::IpAddr::from([10, 0, 0, last]).into()
    }

    #[test]
    fn an_entry_lives_its_lifetime_and_a_hit_does_not_extend_it() {
        let mut cache = Cache::new(4, LIFETIME);
        let start = Time(0);
        cache.insert(start, key(1), address(1));
        assert!(cache.contains(start.after(LIFETIME / 2), &key(1)));
        assert!(!cache.contains(start.after(LIFETIME), &key(1)));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn the_bound_holds_and_one_address_pushes_only_itself_out() {
        let mut cache = Cache::new(4, LIFETIME);
        cache.insert(Time(0), key(1), address(1));
        for number in 10..30 {
            cache.insert(Time(0), key(number), address(2));
            assert!(cache.len() <= 4);
        }
        assert!(
            cache.contains(Time(1), &key(1)),
            "the quiet address keeps its entry"
        );
        let of_the_loud = (10..30).filter(|&n| cache.contains(Time(1), &key(n)));
        assert_eq!(
            of_the_loud.collect::<Vec<_>>(),
            [27, 28, 29],
            "its oldest went first"
        );
    }

    #[test]
    fn purging_leaves_what_still_lives() {
        let mut cache = Cache::new(4, LIFETIME);
        cache.insert(Time(0), key(1), address(1));
        cache.insert(Time(0).after(LIFETIME / 2), key(2), address(1));
        cache.purge(Time(0).after(LIFETIME));
        assert_eq!(cache.len(), 1);
        assert!(cache.contains(Time(0).after(LIFETIME), &key(2)));
        assert_eq!(cache.oldest_first.len(), 1);
    }

    #[test]
    fn inserting_again_renews_and_counts_once() {
        let mut cache = Cache::new(2, LIFETIME);
        cache.insert(Time(0), key(1), address(1));
        cache.insert(Time(0).after(LIFETIME / 2), key(1), address(2));
        assert_eq!(cache.len(), 1);
        assert!(cache.contains(Time(0).after(LIFETIME), &key(1)));
        assert_eq!(
            (cache.shares.of(address(1)), cache.shares.of(address(2))),
            (0, 1)
        );
    }

    #[test]
    fn nothing_is_remembered_when_turned_off() {
        let mut cache = Cache::new(0, LIFETIME);
        cache.insert(Time(0), key(1), address(1));
        assert!(!cache.contains(Time(0), &key(1)));
    }
}
