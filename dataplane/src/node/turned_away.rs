//! Which connections were turned away, added up for one line of the log: how many for each reason, and which address
//! they came from most.
//!
//! Bounded: reasons are a closed list, and of the addresses the heaviest few are followed. An address that is met when
//! all rows are taken takes over the row with the smallest count and that count with it, so an address with more than
//! one in [`ADDRESSES_MAX`] of all is always among them; its count may be too high by the smallest.

use super::addresses::Address;
use crate::metrics::Counter;

/// Addresses followed at once.
pub const ADDRESSES_MAX: usize = 8;

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TurnedAway {
    reasons: Vec<(Counter, u32)>,
    addresses: Vec<(Address, u32)>,
}

impl TurnedAway {
    /// One more.
    pub fn note(&mut self, reason: Counter, address: Address) {
        self.add_reason(reason, 1);
        self.add_address(address, 1);
    }

    /// What another has seen.
    pub fn merge(&mut self, other: &Self) {
        for &(reason, count) in &other.reasons {
            self.add_reason(reason, count);
        }
        for &(address, count) in &other.addresses {
            self.add_address(address, count);
        }
    }

    /// True exactly when nothing was noted.
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// By reason, in order of their first appearance.
    pub fn reasons(&self) -> &[(Counter, u32)] {
        &self.reasons
    }

    /// In all.
    pub fn total(&self) -> u64 {
        self.reasons
            .iter()
            .map(|(_, count)| u64::from(*count))
            .sum()
    }

    /// The address with most, and about how many.
    pub fn most(&self) -> Option<(Address, u32)> {
        self.addresses
            .iter()
            .copied()
            .max_by_key(|(_, count)| *count)
    }

    fn add_reason(&mut self, reason: Counter, count: u32) {
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => self.reasons.push((reason, count)),
        }
    }

    fn add_address(&mut self, address: Address, count: u32) {
        if let Some((_, sum)) = self
            .addresses
            .iter_mut()
            .find(|(known, _)| *known == address)
        {
            *sum = sum.saturating_add(count);
        } else if self.addresses.len() < ADDRESSES_MAX {
            self.addresses.push((address, count));
        } else if let Some(least) = self.addresses.iter_mut().min_by_key(|(_, count)| *count) {
            *least = (address, least.1.saturating_add(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(last: u8) -> Address {
        IpAddr::from([10, 0, 0, last]).into()
    }

    #[test]
    fn the_heaviest_address_is_found_among_many_and_rows_are_bounded() {
        let mut seen = TurnedAway::default();
        for round in 0..100_u8 {
            seen.note(Counter::RefusedNode, address(round));
            seen.note(Counter::RefusedAddress, address(200));
        }
        assert_eq!(seen.addresses.len(), ADDRESSES_MAX);
        let (most, count) = seen.most().expect("an address");
        assert_eq!(most, address(200));
        assert!(count >= 100, "{count}: never too low");
        assert_eq!(
            seen.reasons(),
            [(Counter::RefusedNode, 100), (Counter::RefusedAddress, 100)]
        );
    }

    #[test]
    fn two_shards_are_added_up() {
        let (mut one, mut other) = (TurnedAway::default(), TurnedAway::default());
        assert!(one.is_empty());
        one.note(Counter::RefusedNode, address(1));
        other.note(Counter::RefusedNode, address(2));
        other.note(Counter::RefusedLag, address(2));
        one.merge(&other);
        assert_eq!((one.total(), one.most()), (3, Some((address(2), 2))));
    }
}
