//! Who waits for which password check: the state of the pool, without its threads.
//!
//! Owns the queue, the checks in work, who waits for each, and the cache. Pure: time is given, answers are appended to a
//! list the caller delivers. A check that is asked for twice at once is done once. Nothing here depends on whether the
//! user exists: an unknown user queues, waits and is hashed exactly like a known one.
//!
//! A client may claim a user name and a password of 64 KiB each, and everything that waits is memory: the queue is
//! bounded in places, and a long claim takes many.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use sluice_policy::Verifier;
use zeroize::Zeroizing;

use super::cache::{Cache, Key};
use super::shares::Shares;
use crate::clock::Time;
use crate::node::Address;
use crate::session::AuthOutcome;

/// What one place of the queue holds of a user name and a password. Ordinary ones (tokens too) fit one place or a few;
/// with the usual queue of 4,096 places, strangers hold at most 2 MiB, not half a gigabyte.
pub(super) const PLACE_BYTES: usize = 512;

/// Bounds of the pool. All are reached by a test.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Places for checks that wait for a thread; a check takes one for each 512 bytes of user name and password.
    pub queue_max: usize,
    /// Sessions waiting for an answer, over all checks.
    pub waiters_max: usize,
    /// Longest wait of one session.
    pub deadline: Duration,
    /// Successes remembered.
    pub cache_entries_max: usize,
    /// How long.
    pub cache_lifetime: Duration,
}

/// A password to check.
pub struct Check {
    /// User name.
    pub user: Box<str>,
    /// What the client claims; wiped when dropped.
    pub secret: Zeroizing<Vec<u8>>,
    /// What is stored, with its digest; `None` when the user is unknown.
    pub verifier: Option<Verifier>,
}

impl Check {
    /// What it takes of the queue.
    fn places(&self) -> usize {
        (self.user.len() + self.secret.len())
            .div_ceil(PLACE_BYTES)
            .max(1)
    }
}

/// A check given to a thread.
pub(super) struct Work {
    pub(super) key: Key,
    pub(super) check: Check,
}

/// See the module documentation. `O` says where an answer goes.
pub(super) struct Desk<O> {
    limits: Limits,
    secret_key: [u8; 32],
    cache: Cache,
    flights: HashMap<Key, Flight<O>>,
    queue: FairQueue,
    waiters_len: usize,
}

/// One check and all who wait for it.
struct Flight<O> {
    address: Address,
    waiters: Vec<Waiter<O>>,
    /// `None` exactly while a thread works on it.
    check: Option<Check>,
}

struct Waiter<O> {
    origin: O,
    deadline: Time,
}

impl<O> Desk<O> {
    /// `secret_key` is random per process: digests of secrets mean nothing outside of it.
    pub(super) fn new(limits: Limits, secret_key: [u8; 32]) -> Self {
        Self {
            cache: Cache::new(limits.cache_entries_max, limits.cache_lifetime),
            limits,
            secret_key,
            flights: HashMap::new(),
            queue: FairQueue::default(),
            waiters_len: 0,
        }
    }

    /// Takes a check. Returns true when a thread should be woken.
    pub(super) fn submit(
        &mut self,
        now: Time,
        address: IpAddr,
        origin: O,
        check: Check,
        answers: &mut Vec<(O, AuthOutcome)>,
    ) -> bool {
        let key = self.key(&check);
        if self.cache.contains(now, &key) {
            answers.push((origin, AuthOutcome::Verified));
            return false;
        }
        if self.waiters_len >= self.limits.waiters_max {
            answers.push((origin, AuthOutcome::Busy));
            return false;
        }
        let waiter = Waiter {
            origin,
            deadline: now.after(self.limits.deadline),
        };
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.waiters.push(waiter);
            self.waiters_len += 1;
            return false;
        }
        let address = Address::from(address);
        // The longest takes all of a short queue: it waits for a quiet moment, not for ever.
        let places = check.places().min(self.limits.queue_max.max(1));
        if !self.make_room(address, places, answers) {
            answers.push((waiter.origin, AuthOutcome::Busy));
            return false;
        }
        self.queue.push(address, Queued { key, places });
        self.waiters_len += 1;
        let flight = Flight {
            address,
            waiters: vec![waiter],
            check: Some(check),
        };
        self.flights.insert(key, flight);
        true
    }

    /// The next check for a thread. Checks that nobody waits for any more are skipped.
    pub(super) fn next(&mut self, now: Time, answers: &mut Vec<(O, AuthOutcome)>) -> Option<Work> {
        while let Some(key) = self.queue.pop() {
            let Some(flight) = self.flights.get_mut(&key) else {
                continue;
            };
            self.waiters_len -= answer_late(now, &mut flight.waiters, answers);
            if flight.waiters.is_empty() {
                self.flights.remove(&key);
                continue;
            }
            if let Some(check) = flight.check.take() {
                return Some(Work { key, check });
            }
        }
        None
    }

    /// A thread is done. `None` says that the check itself failed: nobody is admitted and nobody is called wrong.
    pub(super) fn finish(
        &mut self,
        now: Time,
        key: &Key,
        verified: Option<bool>,
        answers: &mut Vec<(O, AuthOutcome)>,
    ) {
        let Some(flight) = self.flights.remove(key) else {
            return;
        };
        self.waiters_len -= flight.waiters.len();
        let outcome = match verified {
            Some(true) => {
                // Also when all who waited have given up: they come back, and then it costs nothing.
                self.cache.insert(now, *key, flight.address);
                AuthOutcome::Verified
            }
            Some(false) => AuthOutcome::Refused,
            None => AuthOutcome::Busy,
        };
        let origins = flight.waiters.into_iter().map(|waiter| waiter.origin);
        answers.extend(origins.map(|origin| (origin, outcome)));
    }

    /// Answers those whose deadline has passed; for a tick of a fraction of the deadline.
    pub(super) fn expire(&mut self, now: Time, answers: &mut Vec<(O, AuthOutcome)>) {
        for flight in self.flights.values_mut() {
            self.waiters_len -= answer_late(now, &mut flight.waiters, answers);
        }
    }

    /// Gives back the memory of outlived cache entries; for a slow tick.
    pub(super) fn purge(&mut self, now: Time) {
        self.cache.purge(now);
    }

    /// Checks waiting for a thread, sessions waiting for an answer, successes remembered.
    pub(super) fn lens(&self) -> (usize, usize, usize) {
        (self.queue.len(), self.waiters_len, self.cache.len())
    }

    /// Longest queue gives way: the newest checks of the address that holds most places are answered Busy until there is
    /// room, unless the address that asks would hold as much itself.
    fn make_room(
        &mut self,
        address: Address,
        places: usize,
        answers: &mut Vec<(O, AuthOutcome)>,
    ) -> bool {
        while self.queue.places + places > self.limits.queue_max {
            let Some((largest, held)) = self.queue.shares.largest() else {
                return false;
            };
            if self.queue.shares.of(address) + places > held.saturating_sub(1) {
                return false;
            }
            let Some(flight) = self
                .queue
                .pop_newest(largest)
                .and_then(|key| self.flights.remove(&key))
            else {
                return false;
            };
            self.waiters_len -= flight.waiters.len();
            let origins = flight.waiters.into_iter().map(|waiter| waiter.origin);
            answers.extend(origins.map(|origin| (origin, AuthOutcome::Busy)));
        }
        true
    }

    /// Covers all that is verified: the user, the secret and the digest of what is stored.
    fn key(&self, check: &Check) -> Key {
        let secret = blake3::keyed_hash(&self.secret_key, &check.secret);
        let mut hasher = blake3::Hasher::new_keyed(&self.secret_key);
        hasher.update(&(check.user.len() as u64).to_le_bytes());
        hasher.update(check.user.as_bytes());
        hasher.update(secret.as_bytes());
        match &check.verifier {
            Some(verifier) => hasher.update(&[1]).update(&verifier.digest()),
            None => hasher.update(&[0]),
        };
        *hasher.finalize().as_bytes()
    }
}

/// Answers Busy to those whose deadline has passed and returns how many they were. Waiters are in order of deadline.
fn answer_late<O>(
    now: Time,
    waiters: &mut Vec<Waiter<O>>,
    answers: &mut Vec<(O, AuthOutcome)>,
) -> usize {
    let late = waiters
        .iter()
        .take_while(|waiter| waiter.deadline <= now)
        .count();
    let origins = waiters.drain(..late).map(|waiter| waiter.origin);
    answers.extend(origins.map(|origin| (origin, AuthOutcome::Busy)));
    late
}

/// First in, first out within an address; addresses take turns.
#[derive(Default)]
struct FairQueue {
    by_address: HashMap<Address, VecDeque<Queued>>,
    turns: VecDeque<Address>,
    /// Of the places.
    shares: Shares,
    len: usize,
    places: usize,
}

/// A check in the queue, and the places it takes there.
struct Queued {
    key: Key,
    places: usize,
}

impl FairQueue {
    fn len(&self) -> usize {
        self.len
    }

    fn push(&mut self, address: Address, queued: Queued) {
        self.shares.add(address, queued.places);
        self.len += 1;
        self.places += queued.places;
        let list = self.by_address.entry(address).or_default();
        if list.is_empty() {
            self.turns.push_back(address);
        }
        list.push_back(queued);
    }

    fn pop(&mut self) -> Option<Key> {
        let address = self.turns.pop_front()?;
        let list = self.by_address.get_mut(&address)?;
        let queued = list.pop_front()?;
        if list.is_empty() {
            self.by_address.remove(&address);
        } else {
            self.turns.push_back(address);
        }
        Some(self.popped(address, &queued))
    }

    fn pop_newest(&mut self, address: Address) -> Option<Key> {
        let list = self.by_address.get_mut(&address)?;
        let queued = list.pop_back()?;
        if list.is_empty() {
            self.by_address.remove(&address);
            self.turns.retain(|&waiting| waiting != address);
        }
        Some(self.popped(address, &queued))
    }

    fn popped(&mut self, address: Address, queued: &Queued) -> Key {
        self.shares.take(address, queued.places);
        self.len -= 1;
        self.places -= queued.places;
        queued.key
    }
}
