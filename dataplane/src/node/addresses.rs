//! Counts by client address, or by client address and listener, for all shards, in a fixed table of atomics.
//!
//! Evicts nothing: when a bucket is full, further addresses of that bucket are counted together, as if they were one. A
//! limit then refuses too early, never too late.

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use foldhash::quality::FixedState;
use sluice_policy::ListenerId;

use super::table::{give_back, many, take};

/// What is counted as one address: an IPv4 address, or the /64 of an IPv6 address (a household or a server is given a
/// whole /64, so a limit on single addresses would have no effect).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u64);

impl Address {
    /// Orders before all others, or is equal.
    pub const LOWEST: Self = Self(0);
    /// Orders after all others, or is equal.
    pub const HIGHEST: Self = Self(u64::MAX);
}

/// What has a count of its own.
#[derive(Clone, Copy)]
pub(super) struct Counted {
    pub(super) address: Address,
    /// The listener that its connections came in on; `None` is any.
    pub(super) listener: Option<ListenerId>,
}

impl From<Address> for Counted {
    fn from(address: Address) -> Self {
        Self {
            address,
            listener: None,
        }
    }
}

/// Cells of one bucket. A cell is a fingerprint (40 bits) over a count (24 bits); 0 is free.
const BUCKET_CELLS: usize = 8;
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// Cell number, within a bucket, of the count that addresses without a cell of their own share.
const SHARED: u32 = BUCKET_CELLS as u32;
/// Cell numbers per bucket, the shared one included, as a power of two.
const BUCKET_STRIDE: u32 = 16;

/// See the module documentation.
pub(super) struct Addresses {
    buckets: Box<[Bucket]>,
    hasher: FixedState,
}

#[derive(Default)]
#[repr(align(64))]
struct Bucket {
    cells: [AtomicU64; BUCKET_CELLS],
    shared: AtomicU32,
}

impl Addresses {
    /// Room for `addresses_max` addresses, rounded up to a power of two.
    pub(super) fn new(addresses_max: u32, seed: u64) -> Self {
        let buckets = addresses_max.div_ceil(BUCKET_CELLS as u32).max(1);
        let buckets = buckets.next_power_of_two().min(1 << 24) as usize;
        Self {
            buckets: many(buckets),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Counts one and tells its cell; `None` when there are `max` already.
    pub(super) fn take(&self, counted: Counted, max: u32) -> Option<u32> {
        let (number, fingerprint) = self.place(counted);
        let bucket = self.buckets.get(number)?;
        let base = u32::try_from(number).ok()?.checked_mul(BUCKET_STRIDE)?;
        match bucket.add(fingerprint) {
            Some(cell) => {
                if bucket.count(fingerprint) > max {
                    bucket.subtract(cell);
                    return None;
                }
                Some(base + cell)
            }
            None => take(&bucket.shared, max).then_some(base + SHARED),
        }
    }

    /// Takes back what was counted in this cell.
    pub(super) fn release(&self, cell: u32) {
        let Some(bucket) = self.buckets.get((cell / BUCKET_STRIDE) as usize) else {
            return;
        };
        match cell % BUCKET_STRIDE {
            SHARED => give_back(&bucket.shared),
            cell => bucket.subtract(cell),
        }
    }

    /// How many are counted; with others, where they share a count.
    pub(super) fn count(&self, counted: Counted) -> u32 {
        let (number, fingerprint) = self.place(counted);
        let Some(bucket) = self.buckets.get(number) else {
            return 0;
        };
        match bucket.count(fingerprint) {
            0 if bucket.is_full() => bucket.shared.load(Ordering::Acquire),
            own => own,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buckets.iter().all(Bucket::is_empty)
    }

    /// A hash that cannot be foreseen from outside.
    pub(super) fn hash(&self, counted: Counted) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(counted.address.0);
        if let Some(listener) = counted.listener {
            hasher.write_u16(listener.0);
        }
        hasher.finish()
    }

    fn place(&self, counted: Counted) -> (usize, u64) {
        let hash = self.hash(counted);
        let bucket = hash as usize & (self.buckets.len() - 1);
        // Never 0, so that a taken cell differs from a free one even with a count of 0.
        (bucket, (hash >> COUNT_BITS) | 1)
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(u32::from(v4))),
            // Global unicast begins with 2 or 3, link-local with fe80: no /64 collides with an IPv4 address except ::/96,
            // which is not routed.
            IpAddr::V6(v6) => Self(prefix(v6)),
        }
    }
}

fn prefix(address: Ipv6Addr) -> u64 {
    match u64::try_from(u128::from(address) >> 64) {
        // ::1 and other addresses of ::/64 share one count that no IPv4 address has.
        Ok(0) | Err(_) => u64::MAX,
        Ok(prefix) => prefix,
    }
}

impl fmt::Display for Address {
    /// As operators write it: `192.0.2.1`, `2001:db8::/64`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (u32::try_from(self.0), self.0) {
            (Ok(v4), _) => Ipv4Addr::from(v4).fmt(f),
            (Err(_), u64::MAX) => f.write_str("::/64"),
            (Err(_), prefix) => write!(f, "{}/64", Ipv6Addr::from(u128::from(prefix) << 64)),
        }
    }
}

impl Bucket {
    /// Adds one for the fingerprint and tells the cell; `None` when it has no cell and none is free.
    fn add(&self, fingerprint: u64) -> Option<u32> {
        loop {
            let found = self.cells.iter().zip(0_u32..).find_map(|(cell, number)| {
                let seen = cell.load(Ordering::Acquire);
                (seen >> COUNT_BITS == fingerprint).then_some((cell, number, seen))
            });
            let free = || {
                self.cells.iter().zip(0_u32..).find_map(|(cell, number)| {
                    let seen = cell.load(Ordering::Acquire);
                    (seen == 0).then_some((cell, number, fingerprint << COUNT_BITS))
                })
            };
            let taken = found.is_some();
            let (cell, number, seen) = found.or_else(free)?;
            if seen & COUNT_MASK == COUNT_MASK {
                return None; // 16 million of one address: the shared count then refuses them
            }
            let expected = if taken { seen } else { 0 };
            if cell
                .compare_exchange(expected, seen + 1, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                return Some(number);
            }
        }
    }

    fn subtract(&self, number: u32) {
        let Some(cell) = self.cells.get(number as usize) else {
            return;
        };
        let _ = cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, |seen| {
            debug_assert!(seen & COUNT_MASK > 0, "a place given back twice");
            Some(if seen & COUNT_MASK <= 1 { 0 } else { seen - 1 })
        });
    }

    /// The sum over the cells of the fingerprint: two shards that meet an address for the first time at once may have
    /// given it two cells.
    fn count(&self, fingerprint: u64) -> u32 {
        self.cells
            .iter()
            .map(|cell| cell.load(Ordering::Acquire))
            .filter(|seen| seen >> COUNT_BITS == fingerprint)
            .map(|seen| (seen & COUNT_MASK) as u32)
            .fold(0, u32::saturating_add)
    }

    fn is_full(&self) -> bool {
        self.cells
            .iter()
            .all(|cell| cell.load(Ordering::Acquire) != 0)
    }

    fn is_empty(&self) -> bool {
        self.shared.load(Ordering::Relaxed) == 0
            && self
                .cells
                .iter()
                .all(|cell| cell.load(Ordering::Relaxed) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_counted_by_its_64_bit_prefix_and_mapped_ipv4_as_ipv4() {
        let cases = [
            ("2001:db8::1", "2001:db8::ffff", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("::1", "0.0.0.0", false),
        ];
        for (one, other, same) in cases {
            let one = Address::from(one.parse::<IpAddr>().unwrap());
            let other = Address::from(other.parse::<IpAddr>().unwrap());
            assert_eq!(one == other, same);
        }
    }

    #[test]
    fn addresses_read_as_operators_write_them() {
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
            ("::1", "::/64"),
        ] {
            let address = Address::from(address.parse::<IpAddr>().unwrap());
            assert_eq!(address.to_string(), expected);
        }
    }
}
