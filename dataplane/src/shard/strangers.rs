//! Strangers: connections whose CONNECT has not come, and which of them makes room for a newcomer.
//!
//! Owns the order in which they give way: of the address with most strangers on this shard, the oldest, and none that is
//! younger than the grace. How many there may be is the node's table's. Everything costs the logarithm of their number;
//! what they are remembered with is part of the shard's memory budget.
//!
//! A connection is a stranger until its password is being verified or its upstream dialled: from there on the bounds of
//! the password queue and of the upstream hold. One that is refused before that, or breaks the protocol, stays a stranger
//! until it is closed, so that sending nonsense gains nothing over sending nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_policy::ListenerId;

use crate::clock::Time;
use crate::metrics::Counter;
use crate::node::Address;
use crate::ring::Ring;
use crate::session::{Cause, Side};

use super::slots::Open;
use super::{Core, Turn};

/// What the budget counts for one stranger: its entries in two orders, nodes of their trees half full.
const BYTES_EACH: usize = 256;
/// Addresses looked at for one newcomer, those with most strangers first. More than one, because a flood whose
/// connections are all within the grace must not shelter older ones of other addresses.
const ADDRESSES_LOOKED_AT: usize = 8;

/// Which strangers are asked to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Among {
    /// All of this shard.
    All,
    /// Those of a listener.
    Listener(ListenerId),
    /// Those of an address.
    Address(Address),
    /// Those of an address on a listener.
    AddressOn(ListenerId, Address),
}

/// The strangers of a shard.
pub(super) struct Strangers {
    grace: Duration,
    /// Every listener together.
    by_address: Crowds<()>,
    by_listener: Crowds<ListenerId>,
}

/// Strangers by address within a scope, in order of age; and the addresses in order of how many they have.
struct Crowds<S> {
    oldest_first: BTreeSet<(S, Address, Time, u32)>,
    counts: BTreeMap<(S, Address), u32>,
    largest_last: BTreeSet<(S, u32, Address)>,
}

/// What names a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stranger {
    slot: u32,
    listener: ListenerId,
    address: Address,
    opened: Time,
}

impl Stranger {
    pub(super) fn new(slot: u32, open: &Open) -> Self {
        Self {
            slot,
            listener: open.listener,
            address: Address::from(open.peer),
            opened: open.opened,
        }
    }
}

impl Strangers {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            by_address: Crowds::new(),
            by_listener: Crowds::new(),
        }
    }

    fn add(&mut self, stranger: Stranger) {
        self.by_address.add((), stranger);
        self.by_listener.add(stranger.listener, stranger);
    }

    fn remove(&mut self, stranger: Stranger) {
        self.by_address.remove((), stranger);
        self.by_listener.remove(stranger.listener, stranger);
    }

    /// The slot of the one that gives way; `None` when none may.
    fn gives_way(&self, among: Among, now: Time) -> Option<u32> {
        match among {
            Among::All => self.by_address.oldest_of_largest((), now, self.grace),
            Among::Listener(listener) => self
                .by_listener
                .oldest_of_largest(listener, now, self.grace),
            Among::Address(address) => self.by_address.oldest((), address, now, self.grace),
            Among::AddressOn(listener, address) => {
                self.by_listener.oldest(listener, address, now, self.grace)
            }
        }
    }
}

impl<S: Copy + Ord> Crowds<S> {
    fn new() -> Self {
        Self {
            oldest_first: BTreeSet::new(),
            counts: BTreeMap::new(),
            largest_last: BTreeSet::new(),
        }
    }

    fn add(&mut self, scope: S, stranger: Stranger) {
        let address = stranger.address;
        self.oldest_first
            .insert((scope, address, stranger.opened, stranger.slot));
        let count = self.counts.entry((scope, address)).or_default();
        self.largest_last.remove(&(scope, *count, address));
        *count += 1;
        self.largest_last.insert((scope, *count, address));
    }

    fn remove(&mut self, scope: S, stranger: Stranger) {
        let address = stranger.address;
        let entry = (scope, address, stranger.opened, stranger.slot);
        if !self.oldest_first.remove(&entry) {
            debug_assert!(false, "a stranger is removed once");
            return;
        }
        let Some(count) = self.counts.get_mut(&(scope, address)) else {
            return;
        };
        self.largest_last.remove(&(scope, *count, address));
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&(scope, address));
        } else {
            self.largest_last.insert((scope, *count, address));
        }
    }

    fn oldest(&self, scope: S, address: Address, now: Time, grace: Duration) -> Option<u32> {
        let first = (scope, address, Time(0), 0);
        let &(its_scope, its_address, opened, slot) = self.oldest_first.range(first..).next()?;
        let is_meant = its_scope == scope && its_address == address;
        (is_meant && now.since(opened) >= grace).then_some(slot)
    }

    fn oldest_of_largest(&self, scope: S, now: Time, grace: Duration) -> Option<u32> {
        let lowest = Address::LOWEST;
        let highest = Address::HIGHEST;
        self.largest_last
            .range((scope, 0, lowest)..=(scope, u32::MAX, highest))
            .rev()
            .take(ADDRESSES_LOOKED_AT)
            .find_map(|&(_, _, address)| self.oldest(scope, address, now, grace))
    }
}

impl<R: Ring> Core<R> {
    /// A connection begins as a stranger.
    pub(super) fn estrange(&mut self, slot: u32) {
        if let Some(open) = self.slots.get(slot) {
            self.strangers.add(Stranger::new(slot, open));
            self.budget.added(BYTES_EACH);
        }
    }

    /// Its CONNECT has come: it is no stranger any more, if it was one.
    pub(super) fn introduce(&mut self, slot: u32) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let Some(permit) = open.permit.as_mut().filter(|permit| permit.is_stranger()) else {
            return;
        };
        self.table.introduced(permit);
        let stranger = Stranger::new(slot, open);
        self.forget(stranger);
    }

    /// A stranger's slot is given back.
    pub(super) fn forget(&mut self, stranger: Stranger) {
        self.strangers.remove(stranger);
        self.budget.removed(BYTES_EACH);
    }

    /// Closes the stranger that gives way to a newcomer, at once; false when none may.
    pub(super) fn give_way(&mut self, turn: Turn<'_>, among: Among) -> bool {
        let Some(slot) = self.strangers.gives_way(among, turn.now) else {
            return false;
        };
        self.counters.add(Counter::StrangersGaveWay, 1);
        if let Some(open) = self.slots.get(slot) {
            let address = Address::from(open.peer);
            self.notices.turned_away(Counter::StrangersGaveWay, address);
        }
        self.drop_leg(slot, Side::Downstream);
        self.call(turn, slot, |session, context| {
            session.handle_end(context, Cause::GaveWay);
        });
        self.free_if_closed(slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(2);

    fn stranger(slot: u32, last: u8, listener: u16, opened: u64) -> Stranger {
        Stranger {
            slot,
            listener: ListenerId(listener),
            address: Address::from(IpAddr::from([10, 0, 0, last])),
            opened: Time(opened * 1_000_000_000),
        }
    }

    /// The rule, read off a list.
    fn expected(list: &[Stranger], among: Among, now: Time) -> Option<u32> {
        let is_meant = |one: &&Stranger| match among {
            Among::All => true,
            Among::Listener(listener) => one.listener == listener,
            Among::Address(address) => one.address == address,
            Among::AddressOn(listener, address) => {
                (one.listener, one.address) == (listener, address)
            }
        };
        let meant: Vec<Stranger> = list.iter().filter(is_meant).copied().collect();
        let mut addresses: Vec<(usize, Address)> = meant
            .iter()
            .map(|one| {
                let same = meant.iter().filter(|other| other.address == one.address);
                (same.count(), one.address)
            })
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let looked_at = addresses.iter().rev().take(ADDRESSES_LOOKED_AT);
        looked_at.copied().find_map(|(_, address)| {
            let of_address = meant.iter().filter(|one| one.address == address);
            let oldest = of_address.min_by_key(|one| (one.opened, one.slot))?;
            (now.since(oldest.opened) >= GRACE).then_some(oldest.slot)
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_list(steps in prop::collection::vec((0_u8..12, 0_u16..2, 0_u64..2, any::<bool>()), 1..120)) {
            let mut strangers = Strangers::new(GRACE);
            let (mut list, mut seconds) = (Vec::new(), 10);
            for (slot, (last, listener, pause, leaves)) in (0_u32..).zip(steps) {
                seconds += pause;
                if leaves && !list.is_empty() {
                    let gone: Stranger = list.swap_remove(usize::from(last) % list.len());
                    strangers.remove(gone);
                } else {
                    let one = stranger(slot, last, listener, seconds);
                    strangers.add(one);
                    list.push(one);
                }
                let now = Time(seconds * 1_000_000_000);
                for among in [
                    Among::All,
                    Among::Listener(ListenerId(listener)),
                    Among::Address(stranger(0, last, 0, 0).address),
                    Among::AddressOn(ListenerId(listener), stranger(0, last, 0, 0).address),
                ] {
                    prop_assert_eq!(strangers.gives_way(among, now), expected(&list, among, now));
                }
            }
            list.drain(..).for_each(|one| strangers.remove(one));
            prop_assert!(strangers.by_address.counts.is_empty() && strangers.by_address.largest_last.is_empty());
            prop_assert!(strangers.by_listener.oldest_first.is_empty());
        }
    }
}
