//! Counts that hold for the whole node: connections in all, by listener, and by address on a listener, the same for
//! strangers, these also by address on the node, and a cell for each upstream endpoint (see `endpoints.rs`).
//!
//! A fixed table of padded atomics, allocated once. Touched when a connection opens or closes, when its CONNECT has come,
//! when an endpoint is dialled or probed; never per packet. Limits of listeners come with the snapshot, and the caller
//! passes them in.
//!
//! A stranger is a connection whose CONNECT has not come. Strangers are counted twice, among all connections and apart:
//! they may hold three quarters of the places at most, whether of the node or of a listener, so that connections that say
//! nothing never take the last ones. A listener's limits are compared with what came in on that listener alone: a crowd on
//! a large one does not close a small one.
//!
//! # Invariants
//!
//! - **A limit is never exceeded.** Counting comes before comparing, and who is over takes its count back; two shards that
//!   race for the last place may both be refused, never both be admitted.
//! - **What was counted is given back exactly once.** [`Table::admit`] returns a [`Permit`] that names the cells; the
//!   holder gives it to [`Table::release`].
//! - **No address is ever forgotten while it is connected.** The address part evicts nothing (see `addresses.rs`).

use std::cmp;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sluice_policy::ListenerId;

use super::addresses::{Address, Addresses, Counted};
use super::directory::EndpointCell;
use super::endpoints::{Doubter, EndpointState};

/// Strangers of one address unless the node is told otherwise: a fleet of 5,000 behind one address reconnects at once,
/// and some more.
pub const STRANGERS_PER_ADDRESS: u32 = 6_000;

/// Sizes of the table. All are bounds.
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// Connections of the node.
    pub connections_max: u32,
    /// Of these, strangers.
    pub strangers_max: u32,
    /// Strangers of one address.
    pub strangers_per_address_max: u32,
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
        let connections_max = 100_000;
        Self {
            connections_max,
            strangers_max: strangers_share(connections_max),
            strangers_per_address_max: STRANGERS_PER_ADDRESS,
            listeners_max: 256,
            addresses_max: 1 << 17,
            endpoints_max: 1024,
            seed: 0,
        }
    }
}

/// How many of `places` strangers may hold: three quarters, rounded up.
pub fn strangers_share(places: u32) -> u32 {
    places - places / 4
}

/// One cache line, so that two shards counting different things do not slow each other down.
#[derive(Default)]
#[repr(align(64))]
struct Padded<T>(T);

/// The table.
pub struct Table {
    connections_max: u32,
    strangers_max: u32,
    strangers_per_address_max: u32,
    connections: Counts,
    strangers: Counts,
    /// Strangers of an address on all listeners together.
    strangers_by_address: Addresses,
    endpoints: Box<[Padded<EndpointState>]>,
    /// Written when the log level changes, read when a session ends.
    logs_ended: Padded<AtomicBool>,
}

/// One thing counted three ways.
struct Counts {
    node: Padded<AtomicU32>,
    listeners: Box<[Padded<AtomicU32>]>,
    /// Each address on each listener.
    addresses: Addresses,
}

/// The three limits of a thing counted three ways.
#[derive(Clone, Copy)]
struct Limits {
    node: u32,
    listener: u32,
    address: u32,
}

/// A place taken by one connection. Not `Clone`: it is given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is dropped is a connection counted for ever"]
pub struct Permit {
    listener: ListenerId,
    /// Cell of the address on the listener.
    address: u32,
    /// `None` once it is no stranger.
    stranger: Option<StrangerCells>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StrangerCells {
    /// Of the address on the listener, and on the node.
    on_listener: u32,
    on_node: u32,
}

impl Permit {
    /// True exactly while the connection counts as a stranger.
    pub fn is_stranger(&self) -> bool {
        self.stranger.is_some()
    }
}

/// Why a connection gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The limit on open connections is reached.
    Connections(Scope),
    /// The limit on strangers is reached.
    Strangers(Scope),
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The node's.
    Node,
    /// The listener's (or it is not in the table).
    Listener,
    /// That of one address on the listener.
    Address,
    /// That of one address on the node.
    AddressOnNode,
}

/// Whose leaving makes room for a newcomer where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaver {
    /// It must have come in on the newcomer's listener.
    pub is_on_listener: bool,
    /// It must be of the newcomer's address.
    pub is_of_address: bool,
}

impl Table {
    /// A table of these sizes, all zero.
    pub fn new(config: &TableConfig) -> Self {
        Self {
            connections_max: config.connections_max,
            strangers_max: config.strangers_max,
            strangers_per_address_max: config.strangers_per_address_max,
            connections: Counts::new(config),
            strangers: Counts::new(config),
            strangers_by_address: Addresses::new(config.addresses_max, config.seed),
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

    /// Takes a place for one connection, a stranger so far, or says which limit is reached.
    pub fn admit(
        &self,
        listener: ListenerId,
        listener_max: u32,
        address: Address,
        address_max: u32,
    ) -> Result<Permit, Refused> {
        let [connections, strangers] = self.limits(listener_max, address_max);
        let cell = self
            .connections
            .take(listener, address, connections)
            .map_err(Refused::Connections)?;
        match self.take_stranger(listener, address, strangers) {
            Ok(stranger) => Ok(Permit {
                listener,
                address: cell,
                stranger: Some(stranger),
            }),
            Err(scope) => {
                self.connections.give_back(listener, cell);
                Err(Refused::Strangers(scope))
            }
        }
    }

    /// Which stranger has to leave so that one that was refused gets in, asked with the same limits. Several may be reached:
    /// one that leaves must free a place of each. `None` when no single one can, as after limits were lowered.
    pub fn who_makes_room(
        &self,
        listener: ListenerId,
        listener_max: u32,
        address: Address,
        address_max: u32,
    ) -> Option<Leaver> {
        self.connections.listeners.get(usize::from(listener.0))?;
        let [connections, strangers] = self.limits(listener_max, address_max);
        let on_node = self.strangers_by_address.count(address.into());
        let leaver = Leaver::default()
            .frees(&self.connections, connections, listener, address)?
            .frees(&self.strangers, strangers, listener, address)?;
        match on_node.cmp(&self.strangers_per_address_max()) {
            cmp::Ordering::Less => Some(leaver),
            cmp::Ordering::Equal => Some(Leaver {
                is_of_address: true,
                ..leaver
            }),
            cmp::Ordering::Greater => None,
        }
    }

    /// Those of connections, and those of strangers.
    fn limits(&self, listener_max: u32, address_max: u32) -> [Limits; 2] {
        let connections = Limits {
            node: self.connections_max,
            listener: listener_max,
            address: address_max,
        };
        let of_listener = self.strangers_max_of(listener_max);
        let strangers = Limits {
            node: self.strangers_max,
            listener: of_listener,
            address: strangers_share(of_listener),
        };
        [connections, strangers]
    }

    fn take_stranger(
        &self,
        listener: ListenerId,
        address: Address,
        limits: Limits,
    ) -> Result<StrangerCells, Scope> {
        let on_node = self
            .strangers_by_address
            .take(address.into(), self.strangers_per_address_max())
            .ok_or(Scope::AddressOnNode)?;
        match self.strangers.take(listener, address, limits) {
            Ok(on_listener) => Ok(StrangerCells {
                on_listener,
                on_node,
            }),
            Err(scope) => {
                self.strangers_by_address.release(on_node);
                Err(scope)
            }
        }
    }

    /// Its CONNECT has come: no stranger any more.
    pub fn introduced(&self, permit: &mut Permit) {
        if let Some(cells) = permit.stranger.take() {
            self.strangers.give_back(permit.listener, cells.on_listener);
            self.strangers_by_address.release(cells.on_node);
        }
    }

    /// Gives a place back.
    pub fn release(&self, mut permit: Permit) {
        self.introduced(&mut permit);
        self.connections.give_back(permit.listener, permit.address);
    }

    /// Connections of the node.
    pub fn connections(&self) -> u32 {
        self.connections.node.0.load(Ordering::Relaxed)
    }

    /// Most connections of the node.
    pub fn connections_max(&self) -> u32 {
        self.connections_max
    }

    /// Connections of a listener.
    pub fn connections_of(&self, listener: ListenerId) -> u32 {
        self.connections.of(listener)
    }

    /// Strangers of the node.
    pub fn strangers(&self) -> u32 {
        self.strangers.node.0.load(Ordering::Relaxed)
    }

    /// Most strangers of the node.
    pub fn strangers_max(&self) -> u32 {
        self.strangers_max
    }

    /// Strangers of a listener.
    pub fn strangers_of(&self, listener: ListenerId) -> u32 {
        self.strangers.of(listener)
    }

    /// Most strangers of a listener with this limit on connections.
    pub fn strangers_max_of(&self, listener_max: u32) -> u32 {
        strangers_share(listener_max).min(self.strangers_max)
    }

    /// Most strangers of one address: one alone never takes all the places that there are for strangers.
    pub fn strangers_per_address_max(&self) -> u32 {
        strangers_share(self.strangers_max).min(self.strangers_per_address_max)
    }

    /// True exactly when nothing at all is counted: no connection, no address, no connection to an endpoint.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
            && self.strangers.is_empty()
            && self.strangers_by_address.is_empty()
            && self.endpoints.iter().all(|endpoint| endpoint.0.open() == 0)
    }

    /// The state of an endpoint; `None` for a cell that the table does not have.
    pub fn endpoint(&self, cell: EndpointCell) -> Option<&EndpointState> {
        self.endpoints
            .get(usize::from(cell.0))
            .map(|padded| &padded.0)
    }

    /// What stands for an address among those at which an endpoint gave no answer.
    pub fn doubter(&self, address: Address) -> Doubter {
        Doubter::new(self.connections.addresses.hash(address.into()))
    }

    /// How many endpoint cells there are.
    pub fn endpoint_cells(&self) -> usize {
        self.endpoints.len()
    }
}

impl Leaver {
    /// The same, and its leaving also frees a place of each of these limits that is reached.
    fn frees(
        self,
        counts: &Counts,
        limits: Limits,
        listener: ListenerId,
        address: Address,
    ) -> Option<Self> {
        let of_address = counts.addresses.count(on(listener, address));
        let of_listener = counts.of(listener);
        let of_node = counts.node.0.load(Ordering::Acquire);
        if of_node > limits.node || of_listener > limits.listener || of_address > limits.address {
            return None;
        }
        let is_of_address = of_address == limits.address;
        let is_on_listener = is_of_address || of_listener == limits.listener;
        Some(Self {
            is_on_listener: self.is_on_listener || is_on_listener,
            is_of_address: self.is_of_address || is_of_address,
        })
    }
}

fn on(listener: ListenerId, address: Address) -> Counted {
    Counted {
        address,
        listener: Some(listener),
    }
}

impl Counts {
    fn new(config: &TableConfig) -> Self {
        Self {
            node: Padded::default(),
            listeners: many(usize::from(config.listeners_max)),
            addresses: Addresses::new(config.addresses_max, config.seed),
        }
    }

    /// Counts one and tells the cell of its address, or whose limit is reached: the address' first, so that no one else
    /// gives way for a connection that is refused after all.
    fn take(&self, listener: ListenerId, address: Address, limits: Limits) -> Result<u32, Scope> {
        let counted = on(listener, address);
        let Some(cell) = self.addresses.take(counted, limits.address) else {
            return Err(Scope::Address);
        };
        if !take(&self.node.0, limits.node) {
            self.addresses.release(cell);
            return Err(Scope::Node);
        }
        let of_listener = self.listeners.get(usize::from(listener.0));
        if of_listener.is_none_or(|count| !take(&count.0, limits.listener)) {
            give_back(&self.node.0);
            self.addresses.release(cell);
            return Err(Scope::Listener);
        }
        Ok(cell)
    }

    fn give_back(&self, listener: ListenerId, address: u32) {
        give_back(&self.node.0);
        if let Some(of_listener) = self.listeners.get(usize::from(listener.0)) {
            give_back(&of_listener.0);
        }
        self.addresses.release(address);
    }

    fn of(&self, listener: ListenerId) -> u32 {
        self.listeners
            .get(usize::from(listener.0))
            .map_or(0, |count| count.0.load(Ordering::Relaxed))
    }

    fn is_empty(&self) -> bool {
        let is_zero = |count: &Padded<AtomicU32>| count.0.load(Ordering::Relaxed) == 0;
        is_zero(&self.node) && self.listeners.iter().all(is_zero) && self.addresses.is_empty()
    }
}

pub(super) fn many<T: Default>(count: usize) -> Box<[T]> {
    std::iter::repeat_with(T::default).take(count).collect()
}

/// Counts one, and takes it back when that is over the limit.
pub(super) fn take(count: &AtomicU32, max: u32) -> bool {
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
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use super::*;

    const L: ListenerId = ListenerId(0);
    const MANY: u32 = 1000;

    fn small() -> Table {
        Table::new(&TableConfig {
            connections_max: 64,
            strangers_max: 64,
            listeners_max: 2,
            addresses_max: 1,
            endpoints_max: 1,
            seed: 7,
            ..TableConfig::default()
        })
    }

    fn v4(last: u8) -> Address {
        Address::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)))
    }

    #[test]
    fn each_limit_refuses_by_its_own_name_and_gives_everything_back() {
        let cases: [(u32, u32, u32, ListenerId, Refused); 4] = [
            (1, MANY, MANY, L, Refused::Connections(Scope::Node)),
            (MANY, 1, MANY, L, Refused::Connections(Scope::Listener)),
            (MANY, MANY, 1, L, Refused::Connections(Scope::Address)),
            (
                MANY,
                MANY,
                MANY,
                ListenerId(9),
                Refused::Connections(Scope::Listener),
            ),
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
        assert_eq!(
            table.admit(L, MANY, v4(102), 2),
            Err(Refused::Connections(Scope::Address))
        );
        // Those with a cell of their own are still counted exactly.
        permits.push(table.admit(L, MANY, v4(0), 2).unwrap());
        assert_eq!(
            table.admit(L, MANY, v4(0), 2),
            Err(Refused::Connections(Scope::Address))
        );
        for permit in permits {
            table.release(permit);
        }
        assert!(table.is_empty());
    }

    #[test]
    fn strangers_have_a_share_of_node_listener_and_address_and_leave_it_with_their_connect() {
        const S: fn(Scope) -> Refused = Refused::Strangers;
        // Node, listener, strangers of an address; how many strangers of one address, then of others, are let in.
        let (here, everywhere) = (S(Scope::Address), S(Scope::AddressOnNode));
        let cases: [(u32, u32, u32, u32, u32, Refused, Refused); 4] = [
            (8, MANY, MANY, 5, 1, everywhere, S(Scope::Node)),
            (MANY, 8, MANY, 5, 1, here, S(Scope::Listener)),
            (MANY, MANY, 2, 2, 100, everywhere, everywhere),
            (1, MANY, MANY, 1, 0, here, Refused::Connections(Scope::Node)),
        ];
        for (node, listener, address, of_one, of_others, of_address, refused) in cases {
            let table = Table::new(&TableConfig {
                connections_max: node,
                strangers_max: strangers_share(node),
                strangers_per_address_max: address,
                ..TableConfig::default()
            });
            let mut permits = Vec::new();
            let mut come = |last: u8| {
                let permit = table.admit(L, listener, v4(last), MANY)?;
                permits.push(permit);
                Ok(())
            };
            let of_first = (0..of_one).map(|_| come(1)).collect::<Result<Vec<()>, _>>();
            assert!(of_first.is_ok(), "{refused:?}");
            if of_others > 0 {
                assert_eq!(come(1), Err(of_address), "{refused:?}");
            }
            for last in 2..2 + of_others {
                assert_eq!(come(last as u8), Ok(()), "{refused:?} {last}");
            }
            if of_others < 100 {
                assert_eq!(come(200), Err(refused));
            }
            for permit in &mut permits {
                table.introduced(permit);
                table.introduced(permit); // once is what counts
            }
            assert_eq!((table.strangers(), table.strangers_of(L)), (0, 0));
            assert_eq!(table.connections(), of_one + of_others);
            permits.drain(..).for_each(|permit| table.release(permit));
            assert!(table.is_empty(), "{refused:?}");
        }
    }

    /// The limits of a listener are about that listener alone.
    #[test]
    fn a_crowd_on_a_large_listener_leaves_a_small_one_open() {
        let table = Table::new(&TableConfig::default());
        let small = ListenerId(1);
        let mut permits: Vec<Permit> = (0..100)
            .map(|_| table.admit(L, MANY, v4(1), MANY).unwrap())
            .collect();
        // 8 for the small one: 6 for strangers, 5 for those of one address; 7 connections of an address.
        for count in 0..5 {
            permits.push(table.admit(small, 8, v4(1), 7).expect("a place"));
            assert_eq!(table.strangers_of(small), count + 1);
        }
        let refused = table.admit(small, 8, v4(1), 7);
        assert_eq!(refused, Err(Refused::Strangers(Scope::Address)));
        permits
            .iter_mut()
            .for_each(|permit| table.introduced(permit));
        for _ in 5..7 {
            permits.push(table.admit(small, 8, v4(1), 7).expect("a place"));
        }
        let refused = table.admit(small, 8, v4(1), 7);
        assert_eq!(refused, Err(Refused::Connections(Scope::Address)));
        permits.push(table.admit(L, MANY, v4(1), MANY).expect("a place"));
        permits.drain(..).for_each(|permit| table.release(permit));
        assert!(table.is_empty());
    }

    #[test]
    fn who_makes_room_frees_a_place_of_every_limit_that_is_reached() {
        let other = ListenerId(1);
        let leaver = |is_on_listener, is_of_address| {
            Some(Leaver {
                is_on_listener,
                is_of_address,
            })
        };
        // Node, strangers of an address on the node; listener, address on it; who comes: of address 1 on listener 0, of
        // address 2 there, of address 1 on the other one. Then comes another one of the first kind.
        let cases = [
            ((MANY, MANY), (MANY, MANY), (3, 0, 0), leaver(false, false)),
            ((3, MANY), (MANY, MANY), (1, 1, 1), leaver(false, false)),
            ((MANY, MANY), (3, MANY), (1, 2, 0), leaver(true, false)),
            ((4, MANY), (3, MANY), (1, 2, 1), leaver(true, false)),
            ((MANY, MANY), (MANY, 2), (2, 1, 0), leaver(true, true)),
            ((MANY, 3), (MANY, MANY), (1, 1, 2), leaver(false, true)),
            ((MANY, 3), (4, MANY), (1, 2, 2), leaver(true, true)),
        ];
        for ((node, on_node), (listener, address), (first, second, third), expected) in cases {
            let table = Table::new(&TableConfig {
                connections_max: node,
                strangers_per_address_max: on_node,
                ..TableConfig::default()
            });
            let mut permits = Vec::new();
            for (count, listener, last) in [(first, L, 1), (second, L, 2), (third, other, 1)] {
                for _ in 0..count {
                    permits.push(table.admit(listener, MANY, v4(last), MANY).unwrap());
                }
            }
            let found = table.who_makes_room(L, listener, v4(1), address);
            assert_eq!(found, expected, "{node} {on_node} {listener} {address}");
            permits.drain(..).for_each(|permit| table.release(permit));
        }
        // No one alone can: the limit was lowered, or the table does not have the listener.
        let table = Table::new(&TableConfig::default());
        let permits = [(); 3].map(|()| table.admit(L, MANY, v4(1), MANY).unwrap());
        for (listener, address) in [(2, MANY), (MANY, 2)] {
            assert_eq!(table.who_makes_room(L, listener, v4(1), address), None);
        }
        assert_eq!(table.who_makes_room(ListenerId(999), 9, v4(1), 9), None);
        permits.into_iter().for_each(|permit| table.release(permit));
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
