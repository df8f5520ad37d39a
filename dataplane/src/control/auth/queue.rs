//! The checks that wait for a thread: which is next, and which gives way when there is no room.
//!
//! Two lines. In the first stand checks of just that user, password and stored hash that were right once before: devices
//! that come back. In the second stand all others, be they first logins, mistakes or guesses, users that exist or not;
//! nothing in here tells these apart. Of five turns the first line has four, as long as both have somebody.
//!
//! In each line addresses take turns; within an address, user names do; within a name, the first comes first. So any
//! number of guesses at one name costs another name one turn. Against many invented names that helps little: hence every
//! second turn of an address goes to the name that came last and has had no turn yet, and a first login among a thousand
//! names that wait already is next or next but one. Guessers that are refused and come back at once do not get these
//! turns: of those that come from an address, as many are taken to be back as were refused there.
//!
//! When there is no room, the newest check of the largest name of the largest address gives way, one of the second line
//! before one of the first. Everything costs the logarithm of what waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::cache::Key;
use super::shares::Shares;
use crate::node::Address;

/// Turns in a row of the first line while somebody waits in the second.
const KNOWN_IN_A_ROW: u8 = 4;

/// A user name, as a digest that means nothing outside of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name(pub(super) u64);

/// Where a check stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) address: Address,
    pub(super) name: Name,
    /// True exactly when the very same was verified before.
    pub(super) is_known: bool,
    /// True exactly when it is taken for one that was refused a moment ago.
    pub(super) is_back: bool,
    /// What it takes of the room.
    pub(super) places: usize,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Queue {
    known: Line,
    others: Line,
    known_in_a_row: u8,
    /// Of the places, over both lines.
    shares: Shares,
    places: usize,
    len: usize,
    /// Numbers turns and checks in order of their coming.
    stamp: u64,
}

#[derive(Default)]
struct Line {
    addresses: HashMap<Address, Names>,
    turns: BTreeMap<u64, Address>,
}

/// The checks of one address in one line.
#[derive(Default)]
struct Names {
    lanes: HashMap<Name, Lane>,
    turns: BTreeMap<u64, Name>,
    /// Of the turns, those of names that have had none since they came, and did not come back.
    fresh: BTreeMap<u64, Name>,
    /// By places, then by the newest check.
    largest_last: BTreeSet<(usize, u64, Name)>,
    /// True exactly when the next turn goes to the name that came last.
    serves_newest: bool,
    turn: u64,
}

/// The checks of one name; never empty.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Queued>,
    places: usize,
    turn: u64,
}

struct Queued {
    key: Key,
    places: usize,
    stamp: u64,
}

impl Queue {
    /// Checks that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What they take of the room.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    pub(super) fn push(&mut self, place: Place, key: Key) {
        self.stamp += 1;
        let queued = Queued {
            key,
            places: place.places,
            stamp: self.stamp,
        };
        self.shares.add(place.address, place.places);
        self.places += place.places;
        self.len += 1;
        let line = if place.is_known {
            &mut self.known
        } else {
            &mut self.others
        };
        line.push(place, queued);
    }

    /// The next check.
    pub(super) fn pop(&mut self) -> Option<Key> {
        let is_second = self.known.turns.is_empty()
            || (self.known_in_a_row >= KNOWN_IN_A_ROW && !self.others.turns.is_empty());
        self.stamp += 1;
        let (address, queued) = if is_second {
            self.known_in_a_row = 0;
            self.others.pop(self.stamp)?
        } else {
            self.known_in_a_row = self.known_in_a_row.saturating_add(1);
            self.known.pop(self.stamp)?
        };
        Some(self.left(address, &queued))
    }

    /// Takes out a check that gives way to a newcomer; `None` when the newcomer has to give way itself, because its
    /// address would hold as much as any other, and its name as much as any other of that address.
    pub(super) fn give_way(&mut self, newcomer: Place) -> Option<Key> {
        let Place {
            address, places, ..
        } = newcomer;
        let (largest, held) = self.shares.largest()?;
        let (from, queued) = if self.shares.of(address) + places < held {
            let of_others = self.others.pop_newest(largest, 0);
            (
                largest,
                of_others.or_else(|| self.known.pop_newest(largest, 0))?,
            )
        } else {
            return self.give_way_at_home(newcomer);
        };
        Some(self.left(from, &queued))
    }

    /// The same within the newcomer's own address.
    pub(super) fn give_way_at_home(&mut self, newcomer: Place) -> Option<Key> {
        let Place { address, name, .. } = newcomer;
        let would_hold = |line: &Line| line.held_by(address, name) + newcomer.places;
        let queued = if newcomer.is_known {
            let of_others = self.others.pop_newest(address, 0);
            of_others.or_else(|| {
                let would_hold = would_hold(&self.known);
                self.known.pop_newest(address, would_hold)
            })
        } else {
            let would_hold = would_hold(&self.others);
            self.others.pop_newest(address, would_hold)
        }?;
        Some(self.left(address, &queued))
    }

    fn left(&mut self, address: Address, queued: &Queued) -> Key {
        self.shares.take(address, queued.places);
        self.places -= queued.places;
        self.len -= 1;
        queued.key
    }
}

impl Line {
    fn push(&mut self, place: Place, queued: Queued) {
        let names = self.addresses.entry(place.address).or_default();
        if names.lanes.is_empty() {
            names.turn = queued.stamp;
            self.turns.insert(names.turn, place.address);
        }
        names.push(place.name, place.is_back, queued);
    }

    /// `stamp` is the number of the turn that the address has next, if it has more.
    fn pop(&mut self, stamp: u64) -> Option<(Address, Queued)> {
        let (_, address) = self.turns.pop_first()?;
        let names = self.addresses.get_mut(&address)?;
        let queued = names.pop(stamp)?;
        if names.lanes.is_empty() {
            self.addresses.remove(&address);
        } else {
            names.turn = stamp;
            self.turns.insert(stamp, address);
        }
        Some((address, queued))
    }

    /// The newest check of the address' largest name, if that holds more than `above` places.
    fn pop_newest(&mut self, address: Address, above: usize) -> Option<Queued> {
        let names = self.addresses.get_mut(&address)?;
        let queued = names.pop_newest(above)?;
        if names.lanes.is_empty() {
            self.turns.remove(&names.turn);
            self.addresses.remove(&address);
        }
        Some(queued)
    }

    fn held_by(&self, address: Address, name: Name) -> usize {
        let names = self.addresses.get(&address);
        let lane = names.and_then(|names| names.lanes.get(&name));
        lane.map_or(0, |lane| lane.places)
    }
}

impl Names {
    fn push(&mut self, name: Name, is_back: bool, queued: Queued) {
        let mut lane = self.take_out(name).unwrap_or_else(|| {
            self.turns.insert(queued.stamp, name);
            if !is_back {
                self.fresh.insert(queued.stamp, name);
            }
            Lane {
                turn: queued.stamp,
                ..Lane::default()
            }
        });
        lane.places += queued.places;
        lane.waiting.push_back(queued);
        self.keep(name, lane);
    }

    fn pop(&mut self, stamp: u64) -> Option<Queued> {
        let newest = self.fresh.last_key_value().filter(|_| self.serves_newest);
        let (&turn, &name) = newest.or_else(|| self.turns.first_key_value())?;
        self.serves_newest = !self.serves_newest;
        let mut lane = self.take_out(name)?;
        let queued = lane.waiting.pop_front()?;
        lane.places -= queued.places;
        self.turns.remove(&turn);
        self.fresh.remove(&turn);
        if !lane.waiting.is_empty() {
            lane.turn = stamp;
            self.turns.insert(stamp, name);
            self.keep(name, lane);
        }
        Some(queued)
    }

    fn pop_newest(&mut self, above: usize) -> Option<Queued> {
        let &(places, _, name) = self.largest_last.last()?;
        if places <= above {
            return None;
        }
        let mut lane = self.take_out(name)?;
        let queued = lane.waiting.pop_back()?;
        lane.places -= queued.places;
        if lane.waiting.is_empty() {
            self.turns.remove(&lane.turn);
            self.fresh.remove(&lane.turn);
        } else {
            self.keep(name, lane);
        }
        Some(queued)
    }

    fn take_out(&mut self, name: Name) -> Option<Lane> {
        let lane = self.lanes.remove(&name)?;
        self.largest_last.remove(&lane.rank(name));
        Some(lane)
    }

    fn keep(&mut self, name: Name, lane: Lane) {
        self.largest_last.insert(lane.rank(name));
        self.lanes.insert(name, lane);
    }
}

impl Lane {
    fn rank(&self, name: Name) -> (usize, u64, Name) {
        let newest = self.waiting.back().map_or(0, |queued| queued.stamp);
        (self.places, newest, name)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn place(last: u8, name: u64, is_known: bool) -> Place {
        Place {
            address: IpAddr::from([10, 0, 0, last]).into(),
            name: Name(name),
            is_known,
            is_back: false,
            places: 1,
        }
    }

    fn key(number: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    /// How many checks leave before this one.
    fn ahead(queue: &mut Queue, of: usize) -> usize {
        std::iter::from_fn(|| queue.pop())
            .position(|popped| popped == key(of))
            .expect("it is in")
    }

    const ME: usize = 10_000;

    #[test]
    fn eight_hundred_guesses_from_its_own_address_hold_a_login_up_by_a_few_turns() {
        // What the guesses claim; who the victim is; how many may come before it.
        type Claim = fn(u64) -> u64;
        let cases: [(&str, Claim, Place, usize); 5] = [
            ("one other name", |_| 1, place(1, 7, false), 1),
            ("five other names", |n| n % 5, place(1, 7, false), 1),
            ("eight hundred names", |n| 1000 + n, place(1, 7, false), 1),
            ("its own name", |_| 7, place(1, 7, true), 0),
            (
                "eight hundred names, and it was here before",
                |n| 1000 + n,
                place(1, 7, true),
                0,
            ),
        ];
        for (note, claim, victim, at_most) in cases {
            let mut queue = Queue::default();
            for n in 0..800 {
                queue.push(place(1, claim(n), false), key(n as usize));
            }
            queue.push(victim, key(ME));
            let ahead = ahead(&mut queue, ME);
            assert!(ahead <= at_most, "{note}: {ahead} ahead");
        }
    }

    /// Each guesser that is answered guesses at once again, under a name of its own, before the next turn is given.
    #[test]
    fn guessers_that_come_back_at_once_hold_a_first_login_up_once_around_at_most() {
        let mut queue = Queue::default();
        let mut names = 0..;
        let mut guess = |queue: &mut Queue| {
            let n = names.next().expect("without end");
            queue.push(place(1, 1000 + n as u64, false), key(n));
        };
        (0..800).for_each(|_| guess(&mut queue));
        queue.push(place(1, 7, false), key(ME));
        guess(&mut queue);
        let mut ahead = 0;
        while queue.pop().expect("a check") != key(ME) {
            guess(&mut queue);
            ahead += 1;
        }
        assert!(ahead <= 2 * 800, "{ahead}");
    }

    #[test]
    fn devices_that_were_here_before_do_not_shut_first_logins_out() {
        let mut queue = Queue::default();
        for n in 0..100 {
            queue.push(place(n as u8, n, true), key(n as usize));
        }
        queue.push(place(200, 7, false), key(ME));
        assert_eq!(ahead(&mut queue, ME), usize::from(KNOWN_IN_A_ROW));
    }

    #[test]
    fn guesses_give_way_to_another_name_and_to_a_device_that_was_here_before() {
        let mut queue = Queue::default();
        for n in 0..4 {
            queue.push(place(1, 1, false), key(n));
        }
        queue.push(place(1, 2, true), key(4));
        assert_eq!(queue.give_way(place(1, 1, false)), None, "its own fault");
        assert_eq!(queue.give_way(place(1, 7, false)), Some(key(3)));
        assert_eq!(queue.give_way(place(1, 7, true)), Some(key(2)));
        assert_eq!(queue.give_way(place(2, 1, false)), Some(key(1)));
        assert_eq!(queue.give_way(place(2, 1, false)), Some(key(0)));
        assert_eq!(
            queue.give_way(place(2, 1, false)),
            None,
            "as many as anyone"
        );
        assert_eq!(queue.give_way(place(1, 7, true)), None, "no guess is left");
        assert_eq!((queue.len(), queue.places()), (1, 1));
    }

    proptest! {
        /// Whatever comes and goes, each check leaves once, and nothing is left of those that have left.
        #[test]
        fn every_check_leaves_once(steps in prop::collection::vec((0_u8..4, 0_u64..4, any::<bool>(), 0_u8..4), 1..200)) {
            let mut queue = Queue::default();
            let (mut inside, mut left) = (BTreeSet::new(), BTreeSet::new());
            for (number, (last, name, is_known, what)) in steps.into_iter().enumerate() {
                let place = Place { places: 1 + usize::from(last), ..place(last, name, is_known) };
                let gone = match what {
                    0 => queue.pop(),
                    1 => queue.give_way(place),
                    _ => {
                        queue.push(place, key(number));
                        inside.insert(key(number));
                        None
                    }
                };
                if let Some(gone) = gone {
                    prop_assert!(inside.remove(&gone) && left.insert(gone));
                }
                prop_assert_eq!(queue.len(), inside.len());
            }
            while let Some(gone) = queue.pop() {
                prop_assert!(inside.remove(&gone) && left.insert(gone));
            }
            prop_assert!(inside.is_empty());
            prop_assert_eq!((queue.len(), queue.places()), (0, 0));
            for line in [&queue.known, &queue.others] {
                prop_assert!(line.addresses.is_empty() && line.turns.is_empty());
            }
        }
    }
}
