//! Who waits for which password check: the state of the pool, without its threads.
//!
//! Owns the queue, the checks in work, who waits for each, and the cache. Pure: time is given, answers are appended to a
//! list the caller delivers. A check that is asked for twice at once is done once. Nothing here depends on whether the
//! user exists: an unknown user queues, waits and is hashed exactly like a known one.
//!
//! A client may claim a user name and a password of 64 KiB each, and everything that waits is memory: the queue is
//! bounded in places, and a long claim takes many.
//!
//! What was verified once is remembered twice, as the same digest: for minutes, to be let in without a hash, and for
//! weeks, to be ahead of those that never were. The second memory says nothing about a user by its name alone: to a
//! guess, a user that logs in every day from the same address is a user like any other, existing or not.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use sluice_policy::Verifier;
use zeroize::Zeroizing;

use super::PoolGauges;
use super::cache::{Cache, Key};
use super::guesses::{Guesses, Guessing};
use super::queue::{Name, Place, Queue};
use super::shares::Shares;
use crate::clock::Time;
use crate::node::Address;
use crate::session::AuthOutcome;

/// What one place of the queue holds of a user name and a password. Ordinary ones (tokens too) fit one place or a few;
/// with the usual queue of 8,192 places, which has room for a fleet of 5,000, all that wait hold at most 4 MiB, not a gigabyte.
pub(super) const PLACE_BYTES: usize = 512;

/// How long a success keeps its place in the queue.
const KNOWN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Bounds of the pool. All are reached by a test.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Places for checks that wait for a thread; a check takes one for each 512 bytes of user name and password.
    pub queue_max: usize,
    /// Sessions waiting for an answer, over all checks.
    pub waiters_max: usize,
    /// Of these, those of one address: many may wait for one check, which takes one place of the queue.
    pub waiters_per_address_max: usize,
    /// Longest wait of one session.
    pub deadline: Duration,
    /// Successes remembered.
    pub cache_entries_max: usize,
    /// How long.
    pub cache_lifetime: Duration,
    /// Successes remembered for their place in the queue, for a month each.
    pub known_entries_max: usize,
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
    /// What was right once, for its place in the queue.
    known: Cache,
    guesses: Guesses,
    flights: HashMap<Key, Flight<O>>,
    queue: Queue,
    waiters: Waiters,
}

/// How many wait.
#[derive(Default)]
struct Waiters {
    len: usize,
    by_address: Shares,
}

/// One check and all who wait for it.
struct Flight<O> {
    address: Address,
    name: Name,
    waiters: Vec<Waiter<O>>,
    /// `None` exactly while a thread works on it.
    check: Option<Check>,
}

struct Waiter<O> {
    origin: O,
    address: Address,
    deadline: Time,
}

impl<O> Desk<O> {
    /// `secret_key` is random per process: digests of secrets mean nothing outside of it.
    pub(super) fn new(limits: Limits, secret_key: [u8; 32]) -> Self {
        Self {
            cache: Cache::new(limits.cache_entries_max, limits.cache_lifetime),
            known: Cache::new(limits.known_entries_max, KNOWN_LIFETIME),
            guesses: Guesses::default(),
            limits,
            secret_key,
            flights: HashMap::new(),
            queue: Queue::new(seed_of(&secret_key)),
            waiters: Waiters::default(),
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
        let address = Address::from(address);
        let waiter = Waiter {
            origin,
            address,
            deadline: now.after(self.limits.deadline),
        };
        if let Some(flight) = self.flights.get_mut(&key) {
            if self.waiters.has_room(&self.limits, address) {
                flight.waiters.push(waiter);
                self.waiters.came(address);
            } else {
                answers.push((waiter.origin, AuthOutcome::Busy));
            }
            return false;
        }
        let place = Place {
            address,
            name: self.name(&check.user),
            is_known: self.known.contains(now, &key),
            // The longest takes all of a short queue: it waits for a quiet moment, not for ever.
            places: check.places().min(self.limits.queue_max.max(1)),
        };
        if !self.make_room(place, answers) {
            answers.push((waiter.origin, AuthOutcome::Busy));
            return false;
        }
        self.queue.push(place, key);
        self.waiters.came(address);
        let flight = Flight {
            address,
            name: place.name,
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
            self.waiters.answer_late(now, &mut flight.waiters, answers);
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
        let outcome = match verified {
            Some(true) => {
                // Also when all who waited have given up: they come back, and then it costs nothing.
                self.cache.insert(now, *key, flight.address);
                self.known.insert(now, *key, flight.address);
                AuthOutcome::Verified
            }
            Some(false) => {
                let sessions = flight.waiters.len();
                self.guesses.note(flight.address, flight.name, sessions);
                AuthOutcome::Refused
            }
            None => AuthOutcome::Busy,
        };
        self.waiters.answer(flight.waiters, outcome, answers);
    }

    /// Answers those whose deadline has passed; for a tick of a fraction of the deadline.
    pub(super) fn expire(&mut self, now: Time, answers: &mut Vec<(O, AuthOutcome)>) {
        for flight in self.flights.values_mut() {
            self.waiters.answer_late(now, &mut flight.waiters, answers);
        }
    }

    /// Gives back the memory of outlived cache entries; for a slow tick.
    pub(super) fn purge(&mut self, now: Time) {
        self.cache.purge(now);
        self.known.purge(now);
    }

    /// What there is to say about guessing since the last time; `None` while that was just now, or nothing was guessed.
    pub(super) fn guessing(&mut self, now: Time) -> Option<Guessing> {
        self.guesses.take(now)
    }

    /// What it holds.
    pub(super) fn gauges(&self) -> PoolGauges {
        PoolGauges {
            hashes: 0,
            failures: self.guesses.failures(),
            queue_len: self.queue.len(),
            queue_places: self.queue.places(),
            queue_places_max: self.limits.queue_max,
            waiters_len: self.waiters.len,
            cache_len: self.cache.len(),
            known_len: self.known.len(),
        }
    }

    /// Makes others give way, who are answered Busy, until there is room for this one; false when it has to itself.
    fn make_room(&mut self, place: Place, answers: &mut Vec<(O, AuthOutcome)>) -> bool {
        loop {
            let is_full = self.queue.places() + place.places > self.limits.queue_max;
            let gives_way = if self.waiters.of(place.address) >= self.limits.waiters_per_address_max
            {
                self.queue.give_way_at_home(place)
            } else if is_full || self.waiters.len >= self.limits.waiters_max {
                self.queue.give_way(place)
            } else {
                return true;
            };
            let Some(flight) = gives_way.and_then(|key| self.flights.remove(&key)) else {
                return false;
            };
            self.waiters
                .answer(flight.waiters, AuthOutcome::Busy, answers);
        }
    }

    /// For the turns of names: tells nothing about the name outside of this process.
    fn name(&self, user: &str) -> Name {
        Name(first_bytes(&blake3::keyed_hash(
            &self.secret_key,
            user.as_bytes(),
        )))
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

/// Drawn from the key, which it tells nothing about.
fn seed_of(secret_key: &[u8; 32]) -> u64 {
    first_bytes(&blake3::keyed_hash(secret_key, b"the lots of the queue"))
}

fn first_bytes(digest: &blake3::Hash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl Waiters {
    fn of(&self, address: Address) -> usize {
        self.by_address.of(address)
    }

    fn has_room(&self, limits: &Limits, address: Address) -> bool {
        self.len < limits.waiters_max && self.of(address) < limits.waiters_per_address_max
    }

    fn came(&mut self, address: Address) {
        self.len += 1;
        self.by_address.add(address, 1);
    }

    fn answer<O>(
        &mut self,
        waiters: impl IntoIterator<Item = Waiter<O>>,
        outcome: AuthOutcome,
        answers: &mut Vec<(O, AuthOutcome)>,
    ) {
        for waiter in waiters {
            self.len -= 1;
            self.by_address.take(waiter.address, 1);
            answers.push((waiter.origin, outcome));
        }
    }

    /// Answers Busy to those whose deadline has passed. Waiters are in order of deadline.
    fn answer_late<O>(
        &mut self,
        now: Time,
        waiters: &mut Vec<Waiter<O>>,
        answers: &mut Vec<(O, AuthOutcome)>,
    ) {
        let late = waiters
            .iter()
            .take_while(|waiter| waiter.deadline <= now)
            .count();
        self.answer(waiters.drain(..late), AuthOutcome::Busy, answers);
    }
}
