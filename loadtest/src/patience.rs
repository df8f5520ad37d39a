//! The one generous timeout of every test, and waiting under it.
//!
//! A test waits for an event and names it; how long that takes is never asserted. Nothing here sleeps for a fixed time.

use std::time::{Duration, Instant};

/// How long anything may take before a test calls it failed. Far above what a loaded two-core machine needs, so that
/// reaching it means the event never comes.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A point in time after which waiting is pointless.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// [`PATIENCE`] from here on.
    pub fn generous() -> Self {
        Self::after(PATIENCE)
    }

    /// `wait` from here on.
    #[expect(
        clippy::disallowed_methods,
        reason = "the test side has real peers and so real time; this is its only clock"
    )]
    pub fn after(wait: Duration) -> Self {
        Self(Instant::now() + wait)
    }

    /// What is left; zero when it has passed.
    #[expect(
        clippy::disallowed_methods,
        reason = "the test side has real peers and so real time; this is its only clock"
    )]
    pub fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// True exactly when nothing is left.
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// Asks `find` again and again until it gives something. For what tells nobody when it changes (an HTTP page, a file).
///
/// # Panics
/// When patience runs out; `what` says what was waited for.
#[track_caller]
#[allow(clippy::panic)] // a test fails by panicking
pub fn until<T>(what: &str, find: impl FnMut() -> Option<T>) -> T {
    match try_until(find) {
        Some(found) => found,
        None => panic!("waited in vain until {what}"),
    }
}

/// The same for programs that are no tests: `None` when patience runs out.
pub fn try_until<T>(mut find: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::generous();
    loop {
        let found = find();
        if found.is_some() || deadline.has_passed() {
            return found;
        }
        // Lets the one asked get on with its work on a machine with few cores; any length would be right.
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
