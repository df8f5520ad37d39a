//! The checks that wait for a thread: which is next, and which gives way when there is no room.
//!
//! Two lines. In the first stand checks of just that user, password and stored hash that were right once before: devices
//! that come back. In the second stand all others, be they first logins, mistakes or guesses, users that exist or not;
//! nothing in here tells these apart. Of five turns the first line has four, as long as both have somebody.
//!
//! In each line addresses take turns; within an address, user names do; within a name, its checks. So any number of guesses
//! at one name costs another name one turn. Names that were just invented cannot be told from a first login, though, and
//! 800 connections that guess keep 800 of them waiting. In order of coming, a first login would be behind all of these;
//! newest first, those that come after it would be before it, for ever. So of eight turns of an address ([`Order`]) seven go
//! to one of the newest few names, drawn by lot, and the eighth to the name whose last turn is longest ago.
//!
//! What that is worth: guessers that are answered and come back are at most one for each turn, and seven of eight turns
//! serve the newest few. So seven of eight first logins are served from there, within some thirty turns, however the
//! guessers time it; none could do better than the others, since the lot is drawn when the turn is given. One that is pushed
//! out of there waits for at most eight turns for each name that waited when it came, whatever comes later. The checks of a
//! name, one of which may be the right one among guesses, have the same order.
//!
//! When there is no room, the newest check of the largest name of the largest address gives way, one of the second line
//! before one of the first. Everything costs the logarithm of what waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;

use foldhash::quality::FixedState;

use super::cache::Key;
use super::shares::Shares;
use crate::node::Address;

/// Turns in a row of the first line while somebody waits in the second.
const KNOWN_IN_A_ROW: u8 = 4;
/// Of so many turns one goes to what has waited longest. More would serve more of the guesses that wait, whose clients
/// then come back; fewer, and what was pushed out of the newest would wait longer.
const OLDEST_EVERY: u8 = 8;
/// So many of the newest have the same chance. With one, a guesser that comes just before each turn has them all; with
/// very many the lot takes as long as the line.
const NEWEST: usize = 8;

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
    /// What it takes of the room.
    pub(super) places: usize,
}

/// See the module documentation.
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
    /// The number of a turn by this is its lot: nobody else can foresee it.
    lots: FixedState,
}

/// The number of a turn of an address, and what chance has drawn for it.
#[derive(Clone, Copy)]
struct Turn {
    stamp: u64,
    lot: u64,
}

/// Whether a turn goes to what has waited longest, or to one of the newest; see the module documentation.
#[derive(Default)]
struct Order {
    turns: u8,
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
    /// Names of which a check has come since their last turn, by the newest of these.
    fresh: BTreeMap<u64, Name>,
    /// By places, then by the newest check.
    largest_last: BTreeSet<(usize, u64, Name)>,
    order: Order,
    turn: u64,
}

/// The checks of one name; never empty.
#[derive(Default)]
struct Lane {
    /// In order of their coming.
    waiting: VecDeque<Queued>,
    places: usize,
    order: Order,
    turn: u64,
    /// Among the names that are fresh; not, if that is the number of a check that had its turn.
    fresh: u64,
}

struct Queued {
    key: Key,
    places: usize,
    stamp: u64,
}

impl Order {
    fn is_for_oldest(&mut self) -> bool {
        self.turns = (self.turns + 1) % OLDEST_EVERY;
        self.turns == 0
    }
}

impl Turn {
    /// How many of `len`, from the newest on, are passed over for the one that is drawn.
    fn passed_over(self, len: usize) -> usize {
        (self.lot % NEWEST.min(len).max(1) as u64) as usize
    }
}

impl Queue {
    /// `seed` is random for each process, so that no client can foresee the lots.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            known: Line::default(),
            others: Line::default(),
            known_in_a_row: 0,
            shares: Shares::default(),
            places: 0,
            len: 0,
            stamp: 0,
            lots: FixedState::with_seed(seed),
        }
    }

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
        let turn = Turn {
            stamp: self.stamp,
            lot: self.lots.hash_one(self.stamp),
        };
        let (address, queued) = if is_second {
            self.known_in_a_row = 0;
            self.others.pop(turn)?
        } else {
            self.known_in_a_row = self.known_in_a_row.saturating_add(1);
            self.known.pop(turn)?
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
        names.push(place.name, queued);
    }

    fn pop(&mut self, turn: Turn) -> Option<(Address, Queued)> {
        let (_, address) = self.turns.pop_first()?;
        let names = self.addresses.get_mut(&address)?;
        let queued = names.pop(turn)?;
        if names.lanes.is_empty() {
            self.addresses.remove(&address);
        } else {
            names.turn = turn.stamp;
            self.turns.insert(turn.stamp, address);
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
    fn push(&mut self, name: Name, queued: Queued) {
        let mut lane = self.take_out(name).unwrap_or_else(|| {
            self.turns.insert(queued.stamp, name);
            Lane {
                turn: queued.stamp,
                ..Lane::default()
            }
        });
        self.fresh.remove(&lane.fresh);
        self.fresh.insert(queued.stamp, name);
        lane.fresh = queued.stamp;
        lane.places += queued.places;
        lane.waiting.push_back(queued);
        self.keep(name, lane);
    }

    fn pop(&mut self, turn: Turn) -> Option<Queued> {
        let drawn = if self.order.is_for_oldest() {
            None
        } else {
            let passed_over = turn.passed_over(self.fresh.len());
            self.fresh.values().nth_back(passed_over)
        };
        let &name = drawn.or_else(|| self.turns.values().next())?;
        let mut lane = self.take_out(name)?;
        let queued = lane.pop(turn)?;
        self.turns.remove(&lane.turn);
        self.fresh.remove(&lane.fresh);
        if !lane.waiting.is_empty() {
            lane.turn = turn.stamp;
            self.turns.insert(turn.stamp, name);
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
            self.fresh.remove(&lane.fresh);
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
    fn pop(&mut self, turn: Turn) -> Option<Queued> {
        let index = if self.order.is_for_oldest() {
            0
        } else {
            // Another part of the lot than the one that drew the name.
            let Turn { stamp, lot } = turn;
            let turn = Turn {
                stamp,
                lot: lot >> 32,
            };
            let passed_over = turn.passed_over(self.waiting.len());
            self.waiting.len().checked_sub(passed_over + 1)?
        };
        let queued = self.waiting.remove(index)?;
        self.places -= queued.places;
        Some(queued)
    }

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

    const SEED: u64 = 7;
    const GUESSERS: usize = 800;

    #[test]
    fn eight_hundred_guesses_that_wait_hold_a_login_of_their_address_up_by_a_few_turns() {
        // What the guesses claim; who the victim is; how many come before it at most, and half of the time.
        type Claim = fn(u64) -> u64;
        let cases: [(&str, Claim, Place, usize, usize); 5] = [
            ("one other name", |_| 1, place(1, 7, false), 8, 1),
            ("five other names", |n| n % 5, place(1, 7, false), 40, 5),
            ("800 names", |n| 1000 + n, place(1, 7, false), 80, 8),
            ("its own name", |_| 7, place(1, 7, false), 80, 8),
            (
                "800 names, and it was here before",
                |n| 1000 + n,
                place(1, 7, true),
                0,
                0,
            ),
        ];
        for (note, claim, victim, at_most, half) in cases {
            let mut seen: Vec<usize> = (0..101)
                .map(|seed| {
                    let mut queue = Queue::new(seed);
                    for n in 0..GUESSERS {
                        queue.push(place(1, claim(n as u64), false), key(n));
                    }
                    queue.push(victim, key(ME));
                    ahead(&mut queue, ME)
                })
                .collect();
            seen.sort_unstable();
            let (median, most) = (seen[seen.len() / 2], seen[seen.len() - 1]);
            assert!(median <= half && most <= at_most, "{note}: {median} {most}");
        }
    }

    /// Guessers that have nothing else to do: each that is answered comes back some turns later.
    struct Siege {
        queue: Queue,
        turn: u64,
        /// How many turns later.
        pause: u64,
        /// How many of them wait for each other, to come all at once.
        lump: usize,
        /// Under a name of its own each time, or all under this one.
        name: Option<u64>,
        /// When those that were answered come back.
        away: VecDeque<u64>,
        guesses: usize,
    }

    impl Siege {
        fn new(pause: u64, lump: usize, name: Option<u64>) -> Self {
            let mut siege = Self {
                queue: Queue::new(SEED),
                turn: 0,
                pause,
                lump,
                name,
                away: std::iter::repeat_n(0, GUESSERS).collect(),
                guesses: ME,
            };
            siege.come_back();
            for _ in 0..2 * GUESSERS {
                siege.step(|_| {});
            }
            siege
        }

        fn come_back(&mut self) {
            let ready = self.away.iter().take_while(|&&at| at <= self.turn).count();
            if ready >= self.lump {
                for _ in self.away.drain(..ready) {
                    self.guesses += 1;
                    let name = self.name.unwrap_or(self.guesses as u64);
                    self.queue.push(place(1, name, false), key(self.guesses));
                }
            }
        }

        /// A turn, and who has it; the guessers come before or behind who else comes, as chance has it.
        fn step(&mut self, others: impl FnOnce(&mut Queue)) -> Option<Key> {
            let guessers_first = FixedState::with_seed(SEED).hash_one(self.turn) & 1 == 0;
            if guessers_first {
                self.come_back();
            }
            others(&mut self.queue);
            if !guessers_first {
                self.come_back();
            }
            self.turn += 1;
            let popped = self.queue.pop()?;
            if popped != key(ME) {
                self.away.push_back(self.turn + self.pause);
            }
            Some(popped)
        }

        /// How many turns are given before that of a first login with this name that comes now; and how many names wait.
        fn first_login(&mut self, name: u64) -> (usize, usize) {
            let mut waiting = 0;
            let mut popped = self.step(|queue| {
                queue.push(place(1, name, false), key(ME));
                waiting = queue.len();
            });
            let mut ahead = 0;
            while popped != Some(key(ME)) {
                popped = self.step(|_| {});
                ahead += 1;
            }
            (ahead, waiting)
        }
    }

    const VICTIM: u64 = 7;

    #[test]
    fn most_first_logins_get_past_guessers_that_come_back_whenever_they_like() {
        let in_step = [0, 1, 2, 10, 100, 400].map(|pause| (pause, 1, None));
        let in_lumps = [10, 100, 400].map(|lump| (0, lump, None));
        let same_name = [0, 2, 400].map(|pause| (pause, 1, Some(VICTIM)));
        let cases = in_step.into_iter().chain(in_lumps).chain(same_name);
        for (pause, lump, name) in cases {
            let mut siege = Siege::new(pause, lump, name);
            let mut seen: Vec<usize> = (0..48)
                .map(|n| {
                    for _ in 0..n % 17 {
                        siege.step(|_| {});
                    }
                    let (ahead, waiting) = siege.first_login(VICTIM);
                    assert!(
                        ahead <= usize::from(OLDEST_EVERY) * waiting,
                        "{ahead} of {waiting}"
                    );
                    ahead
                })
                .collect();
            seen.sort_unstable();
            let (half, most) = (seen[seen.len() / 2], seen[seen.len() * 3 / 4]);
            assert!(
                half <= 10 && most <= 40,
                "{pause} {lump} {name:?}: {seen:?}"
            );
        }
    }

    #[test]
    fn devices_that_were_here_before_do_not_shut_first_logins_out() {
        let mut queue = Queue::new(SEED);
        for n in 0..100 {
            queue.push(place(n as u8, n, true), key(n as usize));
        }
        queue.push(place(200, 7, false), key(ME));
        assert_eq!(ahead(&mut queue, ME), usize::from(KNOWN_IN_A_ROW));
    }

    #[test]
    fn guesses_give_way_to_another_name_and_to_a_device_that_was_here_before() {
        let mut queue = Queue::new(SEED);
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
            let mut queue = Queue::new(SEED);
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
