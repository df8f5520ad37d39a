//! Who waits for which password check: the state of the pool, without its threads.
//!
//! Owns the queue, the checks in work, who waits for each, and the cache. Pure: time is given, answers are appended to a
//! list the caller delivers. A check that is asked for twice at once is done once. Nothing here depends on whether the
//! user exists: an unknown user queues, waits and is hashed exactly like a known one.

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

/// Bounds of the pool. All are reached by a test.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Checks waiting for a thread.
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
        if self.queue.len() >= self.limits.queue_max && !self.make_room(address, answers) {
            answers.push((waiter.origin, AuthOutcome::Busy));
            return false;
        }
        self.queue.push(address, key);
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

    /// Longest queue gives way: the newest check of the address that waits for most is answered Busy, unless that is
    /// the address that asks.
    fn make_room(&mut self, address: Address, answers: &mut Vec<(O, AuthOutcome)>) -> bool {
        let Some((largest, held)) = self.queue.shares.largest() else {
            return false;
        };
        if self.queue.shares.of(address) + 1 > held.saturating_sub(1) {
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
    by_address: HashMap<Address, VecDeque<Key>>,
    turns: VecDeque<Address>,
    shares: Shares,
    len: usize,
}

impl FairQueue {
    fn len(&self) -> usize {
        self.len
    }

    fn push(&mut self, address: Address, key: Key) {
        let keys = self.by_address.entry(address).or_default();
        if keys.is_empty() {
            self.turns.push_back(address);
        }
        keys.push_back(key);
        self.shares.add(address);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<Key> {
        let address = self.turns.pop_front()?;
        let keys = self.by_address.get_mut(&address)?;
        let key = keys.pop_front()?;
        if keys.is_empty() {
            self.by_address.remove(&address);
        } else {
            self.turns.push_back(address);
        }
        self.shares.take(address);
        self.len -= 1;
        Some(key)
    }

    fn pop_newest(&mut self, address: Address) -> Option<Key> {
        let keys = self.by_address.get_mut(&address)?;
        let key = keys.pop_back()?;
        if keys.is_empty() {
            self.by_address.remove(&address);
            self.turns.retain(|&waiting| waiting != address);
        }
        self.shares.take(address);
        self.len -= 1;
        Some(key)
    }
}
