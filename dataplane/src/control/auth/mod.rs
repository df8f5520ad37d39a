//! Password checks off the shards: a few threads at low priority behind a bounded, fair queue and a cache of successes.
//!
//! Owns the threads and the delivery of answers; who waits for what is [`desk`]'s. The threads run at a higher nice
//! value than anything else in the process, so that a storm of logins cannot take a shard's processor. Counts hashes,
//! because "costs no second hash" and "an unknown user costs the same" are promises that can be counted.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::session::AuthOutcome;

mod cache;
mod desk;
mod guesses;
mod queue;
mod shares;
#[cfg(test)]
mod tests;

use desk::Desk;
pub use desk::{Check, Limits};
pub use guesses::Guessing;

/// What verifies: the check in, true when the password is right. Slow on purpose.
pub type Verify = dyn Fn(&Check) -> bool + Send + Sync;

/// Where answers go; called from pool threads and from whoever submits.
pub type Answer<O> = dyn Fn(O, AuthOutcome) + Send + Sync;

/// The pool. Dropping it stops the threads after the check they are at; nothing waits for them.
pub struct Pool<O: Send + 'static> {
    shared: Arc<Shared<O>>,
}

/// What can be read about a pool at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolGauges {
    /// Hashes computed since the start.
    pub hashes: u64,
    /// Sessions whose password was wrong, or whose user does not exist, since the start.
    pub failures: u64,
    /// Checks waiting for a thread.
    pub queue_len: usize,
    /// What they take of the queue.
    pub queue_places: usize,
    /// What there is of it.
    pub queue_places_max: usize,
    /// Sessions waiting for an answer.
    pub waiters_len: usize,
    /// Successes remembered.
    pub cache_len: usize,
    /// Successes remembered for their place in the queue.
    pub known_len: usize,
}

struct Shared<O> {
    state: Mutex<State<O>>,
    work: Condvar,
    hashes: AtomicU64,
    verify: Box<Verify>,
    answer: Box<Answer<O>>,
}

struct State<O> {
    desk: Desk<O>,
    stopping: bool,
}

impl<O: Send + 'static> Pool<O> {
    /// Starts `threads` threads.
    pub fn start(
        threads: u16,
        limits: Limits,
        secret_key: [u8; 32],
        verify: Box<Verify>,
        answer: Box<Answer<O>>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                desk: Desk::new(limits, secret_key),
                stopping: false,
            }),
            work: Condvar::new(),
            hashes: AtomicU64::new(0),
            verify,
            answer,
        });
        let pool = Self { shared };
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            std::thread::Builder::new()
                .name(format!("auth-{number}"))
                .spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Takes a check; the answer comes through `answer`, possibly before this returns. Never blocks on a hash.
    pub fn submit(&self, address: IpAddr, origin: O, check: Check) {
        let mut answers = Vec::new();
        let wake = self.shared.lock().desk.submit(
            clock::monotonic(),
            address,
            origin,
            check,
            &mut answers,
        );
        if wake {
            self.shared.work.notify_one();
        }
        self.shared.deliver(answers);
    }

    /// Answers those who have waited too long; call a few times per deadline.
    pub fn expire(&self) {
        let mut answers = Vec::new();
        self.shared
            .lock()
            .desk
            .expire(clock::monotonic(), &mut answers);
        self.shared.deliver(answers);
    }

    /// Gives back the memory of outlived cache entries; call once in a while.
    pub fn purge(&self) {
        self.shared.lock().desk.purge(clock::monotonic());
    }

    /// What the log should say about guessing, at most once a second.
    pub fn guessing(&self) -> Option<Guessing> {
        self.shared.lock().desk.guessing(clock::monotonic())
    }

    /// What there is to say about it.
    pub fn gauges(&self) -> PoolGauges {
        PoolGauges {
            hashes: self.shared.hashes.load(Ordering::Relaxed),
            ..self.shared.lock().desk.gauges()
        }
    }
}

/// Writes the line. What the names were is not logged: a client may claim anything, its password included.
pub(super) fn tell(seen: &Guessing) {
    tracing::warn!(
        failures = seen.failures,
        most_from = %seen.address,
        of_address = seen.of_address,
        names = seen.names,
        "passwords are guessed: these checks failed within a second"
    );
}

impl<O: Send + 'static> Drop for Pool<O> {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_all();
    }
}

impl<O: Send> Shared<O> {
    fn lock(&self) -> MutexGuard<'_, State<O>> {
        // Nothing panics between lock and unlock that could leave the desk half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, answers: Vec<(O, AuthOutcome)>) {
        for (origin, outcome) in answers {
            (self.answer)(origin, outcome);
        }
    }

    /// A pool thread: next check, hash, answer, until stopped.
    fn work(&self) {
        super::priority::lower();
        let mut answers = Vec::new();
        loop {
            let mut state = self.lock();
            let work = loop {
                if state.stopping {
                    return;
                }
                if let Some(work) = state.desk.next(clock::monotonic(), &mut answers) {
                    break Some(work);
                }
                if !answers.is_empty() {
                    break None; // late ones were found: tell them before waiting
                }
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            if let Some(work) = work {
                self.hashes.fetch_add(1, Ordering::Relaxed);
                // A fault in a hash library must cost one answer, not the pool.
                let verified = catch_unwind(AssertUnwindSafe(|| (self.verify)(&work.check))).ok();
                let now = clock::monotonic();
                self.lock()
                    .desk
                    .finish(now, &work.key, verified, &mut answers);
            }
            self.deliver(std::mem::take(&mut answers));
        }
    }
}
