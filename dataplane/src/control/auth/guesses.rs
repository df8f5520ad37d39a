//! Checks that failed, added up for a line of the log: how many, from where most of them, under how many names.
//!
//! Names are digests and stay in here: what a client claims is not logged. Bounded: of addresses and of an address' names
//! the first few hundred since the last line are followed; failures are counted all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::queue::Name;
use crate::clock::Time;
use crate::node::Address;

/// Between two lines, and what a line is about.
const WINDOW: Duration = Duration::from_secs(1);
/// Failures of one address in that time that are worth a line: fewer are people who mistype.
const WORTH_A_LINE: usize = 5;
/// Addresses followed in that time.
const ADDRESSES_MAX: usize = 256;
/// Names of one address told apart in that time.
const NAMES_MAX: usize = 256;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    by_address: BTreeMap<Address, OfAddress>,
    in_window: usize,
    /// When the window began.
    since: Option<Time>,
    failures: u64,
}

#[derive(Debug, Default)]
struct OfAddress {
    failures: usize,
    names: BTreeSet<Name>,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guessing {
    /// Sessions whose password was wrong, or whose user does not exist, from everywhere.
    pub failures: usize,
    /// Where most of them came from.
    pub address: Address,
    /// Of these.
    pub of_address: usize,
    /// Under how many different names; there may have been more.
    pub names: usize,
}

impl Guesses {
    /// A check failed that `sessions` sessions waited for. That all of them have left meanwhile makes it no less of a guess.
    pub(super) fn note(&mut self, address: Address, name: Name, sessions: usize) {
        let sessions = sessions.max(1);
        self.failures = self.failures.saturating_add(sessions as u64);
        self.in_window += sessions;
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&address) {
            return;
        }
        let of_address = self.by_address.entry(address).or_default();
        of_address.failures += sessions;
        if of_address.names.len() < NAMES_MAX {
            of_address.names.insert(name);
        }
    }

    /// Failures since the start.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Ends the window if it is over, and tells what is worth it. Called a few times in each.
    pub(super) fn take(&mut self, now: Time) -> Option<Guessing> {
        let since = *self.since.get_or_insert(now);
        if now.since(since) < WINDOW {
            return None;
        }
        self.since = Some(now);
        let failures = std::mem::take(&mut self.in_window);
        let by_address = std::mem::take(&mut self.by_address);
        let most = by_address.iter().max_by_key(|(_, seen)| seen.failures);
        let (&address, seen) = most.filter(|(_, seen)| seen.failures >= WORTH_A_LINE)?;
        Some(Guessing {
            failures,
            address,
            of_address: seen.failures,
            names: seen.names.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(number: u32) -> Address {
        IpAddr::from(number.to_be_bytes()).into()
    }

    #[test]
    fn a_line_names_the_loudest_address_once_a_second_and_mistakes_are_not_worth_one() {
        let mut guesses = Guesses::default();
        let at = |millis| Time(0).after(Duration::from_millis(millis));
        assert_eq!(guesses.take(at(0)), None);
        guesses.note(address(1), Name(1), 4);
        assert_eq!(guesses.take(at(1000)), None, "four mistakes");
        for n in 0..20 {
            guesses.note(address(1), Name(n % 3), 1);
            guesses.note(address(2), Name(n), 0);
        }
        guesses.note(address(1), Name(1), 10);
        assert_eq!(guesses.take(at(1500)), None, "within the second");
        let expected = Guessing {
            failures: 50,
            address: address(1),
            of_address: 30,
            names: 3,
        };
        assert_eq!(guesses.take(at(2000)), Some(expected));
        assert_eq!(guesses.take(at(3000)), None, "it is over");
        assert_eq!(guesses.failures(), 54);
    }

    #[test]
    fn what_is_followed_is_bounded() {
        let mut guesses = Guesses::default();
        for n in 0..1000 {
            guesses.note(address(1), Name(n), 1);
            guesses.note(address(n as u32), Name(0), 1);
        }
        assert_eq!(guesses.by_address.len(), ADDRESSES_MAX);
        assert_eq!(guesses.take(Time(0)), None);
        let told = guesses.take(Time(0).after(WINDOW)).expect("a line");
        assert_eq!((told.failures, told.names), (2000, NAMES_MAX));
    }
}
