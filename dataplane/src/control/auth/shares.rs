//! Who holds how much of a bounded thing, and who holds most: fairness between addresses in two small tables.
//!
//! Used by the password queue and by the cache of verified passwords. Pure; counts only.

use std::collections::{BTreeSet, HashMap};

use crate::node::Address;

/// Portions by address (as the node counts addresses: an IPv6 host by its /64).
#[derive(Debug, Default)]
pub(super) struct Shares {
    held: HashMap<Address, usize>,
    order: BTreeSet<(usize, Address)>,
}

impl Shares {
    /// `portions` more are held by `address`.
    pub(super) fn add(&mut self, address: Address, portions: usize) {
        let before = self.of(address);
        self.order.remove(&(before, address));
        self.order.insert((before + portions, address));
        self.held.insert(address, before + portions);
    }

    /// `portions` less are held by `address`.
    pub(super) fn take(&mut self, address: Address, portions: usize) {
        let before = self.of(address);
        debug_assert!(before >= portions, "a portion is given back once");
        self.order.remove(&(before, address));
        if before > portions {
            self.order.insert((before - portions, address));
            self.held.insert(address, before - portions);
        } else {
            self.held.remove(&address);
        }
    }

    /// What `address` holds.
    pub(super) fn of(&self, address: Address) -> usize {
        self.held.get(&address).copied().unwrap_or(0)
    }

    /// The address that holds most, and how much.
    pub(super) fn largest(&self) -> Option<(Address, usize)> {
        self.order.last().map(|&(held, address)| (address, held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        let address: std::net::IpAddr = text.parse().expect("an address");
        address.into()
    }

    #[test]
    fn the_largest_holder_is_known_through_adding_and_taking() {
        let mut shares = Shares::default();
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        assert_eq!(shares.largest(), None);
        shares.add(a, 2);
        shares.add(b, 1);
        shares.add(b, 3);
        assert_eq!(shares.largest(), Some((b, 4)));
        shares.take(b, 1);
        shares.take(b, 3);
        assert_eq!(shares.largest(), Some((a, 2)));
        shares.take(a, 2);
        assert_eq!(shares.largest(), None);
        assert!(shares.held.is_empty() && shares.order.is_empty());
    }
}
