//! Counts that hold for the whole node: connections in all, by listener and by address, and a cell for each upstream
//! endpoint (see `endpoints.rs`).
//!
//! A fixed table of padded atomics, allocated once. Touched when a connection opens or closes, is dialled or probed;
//! never per packet. It holds no limits: those come with the snapshot, and the caller passes them in.
//!
//! # Invariants
//!
//! - **A limit is never exceeded.** Counting comes before comparing, and who is over takes its count back; two shards that
//!   race for the last place may both be refused, never both be admitted.
//! - **What was counted is given back exactly once.** [`Table::admit`] returns a [`Permit`] that names the cells; the
//!   holder gives it to [`Table::release`].
//! - **No address is ever forgotten while it is connected.** The address part evicts nothing. When a bucket is full, further
//!   addresses of that bucket are counted together, as if they were one: the limit then refuses too early, never too late.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use foldhash::quality::FixedState;
use sluice_policy::ListenerId;

use super::directory::EndpointCell;
use super::endpoints::EndpointState;

/// Sizes of the table. All are bounds.
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// Connections of the node.
    pub connections_max: u32,
    /// Listeners ever numbered by this process; connections on others are refused.
    pub listeners_max: u16,
    /// Addresses counted apart at once, rounded up to a power of two.
    pub addresses_max: u32,
    /// Upstream endpoints at once.
    pub endpoints_max: u16,
    /// Seed of the address hash; random, so that nobody can aim at a bucket.
    pub seed: u64,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            listeners_max: 256,
            addresses_max: 1 << 17,
            endpoints_max: 1024,
            seed: 0,
        }
    }
}

/// One cache line, so that two shards counting different things do not slow each other down.
#[derive(Default)]
#[repr(align(64))]
struct Padded<T>(T);

/// The table.
pub struct Table {
    connections_max: u32,
    connections: Padded<AtomicU32>,
    listeners: Box<[Padded<AtomicU32>]>,
    addresses: Box<[Bucket]>,
    hasher: FixedState,
    endpoints: Box<[Padded<EndpointState>]>,
    /// Written when the log level changes, read when a session ends.
    logs_ended: Padded<AtomicBool>,
}

/// What is counted as one address: an IPv4 address, or the /64 of an IPv6 address (a household or a server is given a
/// whole /64, so counting single addresses would limit nobody).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u64);

/// A place taken by one connection. Not `Clone`: it is given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is dropped is a connection counted for ever"]
pub struct Permit {
    listener: ListenerId,
    /// Index of the address cell; `SHARED` is added for the shared one of the bucket.
    address: u32,
}

/// Why a connection gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The node holds as many as it may.
    Node,
    /// The listener does (or is not in the table).
    Listener,
    /// The address does.
    Address,
}

/// Cells of one bucket. A cell is a fingerprint (40 bits) over a count (24 bits); 0 is free.
const BUCKET_CELLS: usize = 8;
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// Cell number, within a bucket, of the count that addresses without a cell of their own share.
const SHARED: u32 = BUCKET_CELLS as u32;
/// Cell numbers per bucket, the shared one included, as a power of two.
const BUCKET_STRIDE: u32 = 16;

#[derive(Default)]
#[repr(align(64))]
struct Bucket {
    cells: [AtomicU64; BUCKET_CELLS],
    shared: AtomicU32,
}

impl Table {
    /// A table of these sizes, all zero.
    pub fn new(config: &TableConfig) -> Self {
        let buckets = config.addresses_max.div_ceil(BUCKET_CELLS as u32).max(1);
        let buckets = buckets.next_power_of_two().min(1 << 24) as usize;
        Self {
            connections_max: config.connections_max,
            connections: Padded::default(),
            listeners: many(usize::from(config.listeners_max)),
            addresses: many(buckets),
            hasher: FixedState::with_seed(config.seed),
            endpoints: many(usize::from(config.endpoints_max)),
            logs_ended: Padded::default(),
        }
    }

    /// Says whether shards are to report how sessions end.
    pub fn set_logs_ended(&self, wanted: bool) {
        self.logs_ended.0.store(wanted, Ordering::Relaxed);
    }

    /// True exactly when somebody wants to know how sessions end. May lag behind; nothing depends on it but log lines.
    pub fn logs_ended(&self) -> bool {
        self.logs_ended.0.load(Ordering::Relaxed)
    }

    /// Takes a place for one connection, or says which limit is reached.
    pub fn admit(
        &self,
        listener: ListenerId,
        listener_max: u32,
        address: Address,
        address_max: u32,
    ) -> Result<Permit, Refused> {
        if !take(&self.connections.0, self.connections_max) {
            return Err(Refused::Node);
        }
        let Some(of_listener) = self.listeners.get(usize::from(listener.0)) else {
            give_back(&self.connections.0);
            return Err(Refused::Listener);
        };
        if !take(&of_listener.0, listener_max) {
            give_back(&self.connections.0);
            return Err(Refused::Listener);
        }
        match self.take_address(address, address_max) {
            Some(address) => Ok(Permit { listener, address }),
            None => {
                give_back(&of_listener.0);
                give_back(&self.connections.0);
                Err(Refused::Address)
            }
        }
    }

    /// Gives a place back.
    #[allow(clippy::needless_pass_by_value)] // taking the permit is the point: it cannot be given back twice
    pub fn release(&self, permit: Permit) {
        give_back(&self.connections.0);
        if let Some(of_listener) = self.listeners.get(usize::from(permit.listener.0)) {
            give_back(&of_listener.0);
        }
        self.release_address(permit.address);
    }

    /// Connections of the node.
    pub fn connections(&self) -> u32 {
        self.connections.0.load(Ordering::Relaxed)
    }

    /// Connections of a listener.
    pub fn connections_of(&self, listener: ListenerId) -> u32 {
        self.listeners
            .get(usize::from(listener.0))
            .map_or(0, |count| count.0.load(Ordering::Relaxed))
    }

    /// Connections counted for an address; the shared count when it has no cell of its own.
    pub fn connections_from(&self, address: Address) -> u32 {
        let (bucket, fingerprint) = self.place(address);
        let Some(bucket) = self.addresses.get(bucket) else {
            return 0;
        };
        match bucket.count(fingerprint) {
            0 => bucket.shared.load(Ordering::Relaxed),
            count => count,
        }
    }

    /// True exactly when nothing at all is counted: no connection, no address, no connection to an endpoint.
    pub fn is_empty(&self) -> bool {
        self.connections() == 0
            && self
                .listeners
                .iter()
                .all(|count| count.0.load(Ordering::Relaxed) == 0)
            && self.addresses.iter().all(Bucket::is_empty)
            && self.endpoints.iter().all(|endpoint| endpoint.0.open() == 0)
    }

    /// The state of an endpoint; `None` for a cell that the table does not have.
    pub fn endpoint(&self, cell: EndpointCell) -> Option<&EndpointState> {
        self.endpoints
            .get(usize::from(cell.0))
            .map(|padded| &padded.0)
    }

    /// How many endpoint cells there are.
    pub fn endpoint_cells(&self) -> usize {
        self.endpoints.len()
    }

    fn place(&self, address: Address) -> (usize, u64) {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(address.0);
        let hash = hasher.finish();
        let bucket = hash as usize & (self.addresses.len() - 1);
        // Never 0, so that a taken cell differs from a free one even with a count of 0.
        (bucket, (hash >> COUNT_BITS) | 1)
    }

    fn take_address(&self, address: Address, max: u32) -> Option<u32> {
        let (number, fingerprint) = self.place(address);
        let bucket = self.addresses.get(number)?;
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

    fn release_address(&self, address: u32) {
        let Some(bucket) = self.addresses.get((address / BUCKET_STRIDE) as usize) else {
            return;
        };
        match address % BUCKET_STRIDE {
            SHARED => give_back(&bucket.shared),
            cell => bucket.subtract(cell),
        }
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

    fn is_empty(&self) -> bool {
        self.shared.load(Ordering::Relaxed) == 0
            && self
                .cells
                .iter()
                .all(|cell| cell.load(Ordering::Relaxed) == 0)
    }
}

fn many<T: Default>(count: usize) -> Box<[T]> {
    std::iter::repeat_with(T::default).take(count).collect()
}

/// Counts one, and takes it back when that is over the limit.
fn take(count: &AtomicU32, max: u32) -> bool {
    let before = count.fetch_add(1, Ordering::AcqRel);
    if before >= max {
        give_back(count);
        return false;
    }
    true
}

pub(super) fn give_back(count: &AtomicU32) {
    let before = count.fetch_sub(1, Ordering::AcqRel);
    debug_assert!(before > 0, "a place given back twice");
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;

    const L: ListenerId = ListenerId(0);
    const MANY: u32 = 1000;

    fn small() -> Table {
        Table::new(&TableConfig {
            connections_max: 64,
            listeners_max: 2,
            addresses_max: 1,
            endpoints_max: 1,
            seed: 7,
        })
    }

    fn v4(last: u8) -> Address {
        Address::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)))
    }

    #[test]
    fn each_limit_refuses_by_its_own_name_and_gives_everything_back() {
        let cases: [(u32, u32, u32, ListenerId, Refused); 4] = [
            (1, MANY, MANY, L, Refused::Node),
            (MANY, 1, MANY, L, Refused::Listener),
            (MANY, MANY, 1, L, Refused::Address),
            (MANY, MANY, MANY, ListenerId(9), Refused::Listener),
        ];
        for (node, listener, address, second, expected) in cases {
            let table = Table::new(&TableConfig {
                connections_max: node,
                ..TableConfig::default()
            });
            let first = table.admit(L, listener, v4(1), address).unwrap();
            let number = if second == L { L } else { ListenerId(999) };
            assert_eq!(table.admit(number, listener, v4(1), address), Err(expected));
            assert_eq!(table.connections(), 1, "{expected:?}");
            table.release(first);
            assert!(table.is_empty(), "{expected:?}");
            let again = table.admit(L, listener, v4(1), address).unwrap();
            table.release(again);
        }
    }

    #[test]
    fn a_full_bucket_counts_the_rest_together_and_refuses_early_never_late() {
        let table = small();
        let mut permits: Vec<Permit> = (0..8)
            .map(|n| table.admit(L, MANY, v4(n), 2).unwrap())
            .collect();
        // Two more addresses share one count of 2, whichever they are.
        permits.push(table.admit(L, MANY, v4(100), 2).unwrap());
        permits.push(table.admit(L, MANY, v4(101), 2).unwrap());
        assert_eq!(table.admit(L, MANY, v4(102), 2), Err(Refused::Address));
        // Those with a cell of their own are still counted exactly.
        permits.push(table.admit(L, MANY, v4(0), 2).unwrap());
        assert_eq!(table.admit(L, MANY, v4(0), 2), Err(Refused::Address));
        for permit in permits {
            table.release(permit);
        }
        assert!(table.is_empty());
    }

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
    fn a_limit_holds_among_threads_and_nothing_is_left_over() {
        let table = Arc::new(small());
        let threads: Vec<_> = (0..4)
            .map(|thread: u8| {
                let table = Arc::clone(&table);
                std::thread::spawn(move || {
                    let mut over = 0_u32;
                    for round in 0..2000_u32 {
                        let address = v4(thread.wrapping_add((round % 11) as u8));
                        if let Ok(permit) = table.admit(L, 3, address, 2) {
                            over = over.max(u32::from(table.connections_of(L) > 3 + 4));
                            table.release(permit);
                        }
                    }
                    over
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 0);
        }
        assert!(table.is_empty());
    }
}
