//! The password pool: what it promises, counted in hashes, and each of its bounds reached.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use sluice_policy::Verifier;
use zeroize::Zeroizing;

use super::desk::{Desk, Limits, PLACE_BYTES, Work};
use super::*;
use crate::clock::Time;

const DEADLINE: Duration = Duration::from_secs(10);
const START: Time = Time(1);

fn limits() -> Limits {
    Limits {
        queue_max: 4,
        waiters_max: 64,
        waiters_per_address_max: 64,
        deadline: DEADLINE,
        cache_entries_max: 16,
        cache_lifetime: Duration::from_secs(60),
        known_entries_max: 16,
    }
}

/// The same with room for all.
fn many() -> Limits {
    Limits {
        queue_max: 4096,
        waiters_max: 4096,
        waiters_per_address_max: 4096,
        ..limits()
    }
}

fn address(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn check(user: &str, secret: &str, verifier: Option<&Verifier>) -> Check {
    Check {
        user: user.into(),
        secret: Zeroizing::new(secret.as_bytes().to_vec()),
        verifier: verifier.cloned(),
    }
}

/// A verifier of its own each time: the salt is fresh.
fn stored() -> Verifier {
    let hash = sluice_policy::hash_password(b"right").expect("randomness");
    Verifier::parse(&hash).expect("our own hash")
}

struct Bench {
    desk: Desk<u32>,
    answers: Vec<(u32, AuthOutcome)>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self::with_key(limits, 7)
    }

    /// Another key draws other lots.
    fn with_key(limits: Limits, byte: u8) -> Self {
        Self {
            desk: Desk::new(limits, [byte; 32]),
            answers: Vec::new(),
        }
    }

    fn submit(&mut self, now: Time, from: u8, origin: u32, check: Check) {
        self.desk
            .submit(now, address(from), origin, check, &mut self.answers);
    }

    fn next(&mut self, now: Time) -> Option<Work> {
        self.desk.next(now, &mut self.answers)
    }

    fn finish(&mut self, now: Time, work: &Work, verified: Option<bool>) {
        self.desk
            .finish(now, &work.key, verified, &mut self.answers);
    }

    /// Checks waiting, sessions waiting, successes remembered.
    fn lens(&self) -> (usize, usize, usize) {
        let gauges = self.desk.gauges();
        (gauges.queue_len, gauges.waiters_len, gauges.cache_len)
    }

    fn answers(&mut self) -> Vec<(u32, AuthOutcome)> {
        std::mem::take(&mut self.answers)
    }
}

#[test]
fn s12_a_reconnect_storm_costs_one_hash_and_then_none() {
    let mut bench = Bench::new(limits());
    let verifier = stored();
    for origin in 0..20 {
        bench.submit(START, 1, origin, check("u", "right", Some(&verifier)));
    }
    let work = bench.next(START).expect("one check");
    assert!(
        bench.next(START).is_none(),
        "the same check is not done twice"
    );
    bench.finish(START, &work, Some(true));
    let expected: Vec<_> = (0..20)
        .map(|origin| (origin, AuthOutcome::Verified))
        .collect();
    assert_eq!(bench.answers(), expected);

    bench.submit(START, 2, 99, check("u", "right", Some(&verifier)));
    assert_eq!(
        bench.answers(),
        [(99, AuthOutcome::Verified)],
        "from the cache"
    );
    assert!(bench.next(START).is_none());
}

#[test]
fn only_what_was_verified_hits_the_cache() {
    let mut bench = Bench::new(limits());
    let (old, new) = (stored(), stored());
    bench.submit(START, 1, 0, check("u", "right", Some(&old)));
    let work = bench.next(START).expect("a check");
    bench.finish(START, &work, Some(true));
    bench.answers();
    for (note, other) in [
        ("another secret", check("u", "wrong", Some(&old))),
        ("another user", check("v", "right", Some(&old))),
        ("a changed password", check("u", "right", Some(&new))),
        ("the user was removed", check("u", "right", None)),
    ] {
        bench.submit(START, 1, 1, other);
        let work = bench.next(START).expect(note);
        bench.finish(START, &work, Some(false));
        assert_eq!(bench.answers(), [(1, AuthOutcome::Refused)], "{note}");
    }
    let later = START.after(Duration::from_secs(60));
    bench.submit(later, 1, 2, check("u", "right", Some(&old)));
    assert!(bench.next(later).is_some(), "the lifetime is over");
}

#[test]
fn refusals_are_not_remembered_and_an_unknown_user_is_worked_on_like_a_known_one() {
    let mut bench = Bench::new(limits());
    let verifier = stored();
    for (user, verifier) in [("known", Some(&verifier)), ("unknown", None)] {
        for round in 0..2 {
            bench.submit(START, 1, round, check(user, "wrong", verifier));
            let work = bench.next(START).expect("a hash each time");
            bench.finish(START, &work, Some(false));
            assert_eq!(bench.answers(), [(round, AuthOutcome::Refused)]);
        }
    }
    assert_eq!(bench.lens(), (0, 0, 0));
}

#[test]
fn a_full_queue_says_busy_and_the_loudest_address_gives_way() {
    let mut bench = Bench::new(limits());
    for origin in 0..4 {
        bench.submit(START, 1, origin, check(&format!("u{origin}"), "x", None));
    }
    bench.submit(START, 1, 4, check("u4", "x", None));
    assert_eq!(
        bench.answers(),
        [(4, AuthOutcome::Busy)],
        "no room, and it is the loudest itself"
    );
    bench.submit(START, 2, 5, check("u5", "x", None));
    assert_eq!(
        bench.answers(),
        [(3, AuthOutcome::Busy)],
        "the newest of the loudest gives way"
    );
    bench.submit(START, 3, 6, check("u6", "x", None));
    assert_eq!(bench.answers(), [(2, AuthOutcome::Busy)]);
    bench.submit(START, 4, 7, check("u7", "x", None));
    assert_eq!(bench.answers(), [(1, AuthOutcome::Busy)]);
    bench.submit(START, 5, 8, check("u8", "x", None));
    assert_eq!(
        bench.answers(),
        [(8, AuthOutcome::Busy)],
        "all have the same"
    );
    let order: Vec<String> = std::iter::from_fn(|| bench.next(START))
        .map(|work| work.check.user.into())
        .collect();
    assert_eq!(order, ["u0", "u5", "u6", "u7"], "addresses take turns");
}

#[test]
fn a_long_claim_takes_many_places_of_the_queue() {
    let mut bench = Bench::new(Limits {
        queue_max: 8,
        ..limits()
    });
    let long = |places: usize| "x".repeat(places * PLACE_BYTES - 2);
    bench.submit(START, 1, 0, check("u0", &long(4), None));
    bench.submit(START, 2, 1, check(&long(4), "u1", None));
    bench.submit(START, 3, 2, check("u2", &long(5), None));
    assert_eq!(bench.answers(), [(2, AuthOutcome::Busy)], "too long by now");
    bench.submit(START, 3, 3, check("u3", "x", None));
    assert_eq!(
        bench.answers(),
        [(1, AuthOutcome::Busy)],
        "a short one makes a long one give way"
    );
    bench.submit(START, 3, 4, check("u4", &long(2), None));
    assert_eq!(bench.answers(), [], "what it held is free");
    assert_eq!(std::iter::from_fn(|| bench.next(START)).count(), 3);
    // Everything is given back: the longest there can be, which no queue of this length could hold, has its turn.
    bench.submit(START, 1, 5, check(&long(128), &long(128), None));
    assert_eq!(bench.answers(), []);
    bench.submit(START, 2, 6, check("u6", "x", None));
    assert_eq!(bench.answers(), [(5, AuthOutcome::Busy)]);
    assert_eq!(bench.lens().0, 1);
}

#[test]
fn the_bound_on_waiting_sessions_holds() {
    let mut bench = Bench::new(Limits {
        waiters_max: 3,
        ..limits()
    });
    for origin in 0..5 {
        bench.submit(START, 1, origin, check("u", "x", None));
    }
    assert_eq!(
        bench.answers(),
        [(3, AuthOutcome::Busy), (4, AuthOutcome::Busy)]
    );
    let work = bench.next(START).expect("a check");
    bench.finish(START, &work, Some(false));
    assert_eq!(bench.answers().len(), 3);
    assert_eq!(bench.lens(), (0, 0, 0));
}

/// One check may have many who wait for it; those of one address are not all there may be.
#[test]
fn one_address_does_not_take_all_there_may_wait() {
    let mut bench = Bench::new(Limits {
        waiters_max: 4,
        waiters_per_address_max: 3,
        ..limits()
    });
    for origin in 0..4 {
        bench.submit(START, 1, origin, check("u", "x", None));
    }
    assert_eq!(bench.answers(), [(3, AuthOutcome::Busy)]);
    bench.submit(START, 2, 4, check("u", "x", None));
    assert_eq!(bench.answers(), []);
    let work = bench.next(START).expect("a check");
    bench.finish(START, &work, Some(false));
    assert_eq!((bench.answers().len(), bench.lens().1), (4, 0));
    // Its share came back; another name of it is let in at the cost of the one that takes it up.
    for origin in 5..8 {
        bench.submit(START, 1, origin, check("u", &origin.to_string(), None));
    }
    assert_eq!(bench.answers(), []);
    bench.submit(START, 1, 8, check("v", "x", None));
    assert_eq!(bench.answers(), [(7, AuthOutcome::Busy)]);
    bench.submit(START, 1, 9, check("u", "9", None));
    assert_eq!(bench.answers(), [(9, AuthOutcome::Busy)]);
}

#[test]
fn who_waits_beyond_the_deadline_is_told_busy_and_costs_no_hash() {
    let mut bench = Bench::new(limits());
    let half = START.after(DEADLINE / 2);
    bench.submit(START, 1, 0, check("u", "x", None));
    bench.submit(half, 1, 1, check("u", "x", None));
    bench.submit(START, 1, 2, check("v", "x", None));
    bench.desk.expire(half, &mut bench.answers);
    assert_eq!(bench.answers(), []);
    let late = START.after(DEADLINE);
    bench.desk.expire(late, &mut bench.answers);
    let mut told = bench.answers();
    told.sort_by_key(|(origin, _)| *origin);
    assert_eq!(told, [(0, AuthOutcome::Busy), (2, AuthOutcome::Busy)]);
    let work = bench.next(late).expect("one still waits");
    assert_eq!(&*work.check.user, "u");
    assert!(bench.next(late).is_none(), "nobody waits for the other");
}

#[test]
fn a_success_nobody_waits_for_any_more_is_remembered() {
    let mut bench = Bench::new(limits());
    let verifier = stored();
    bench.submit(START, 1, 0, check("u", "right", Some(&verifier)));
    let work = bench.next(START).expect("a check");
    let late = START.after(DEADLINE);
    bench.desk.expire(late, &mut bench.answers);
    assert_eq!(bench.answers(), [(0, AuthOutcome::Busy)]);
    bench.finish(late, &work, Some(true));
    bench.submit(late, 1, 1, check("u", "right", Some(&verifier)));
    assert_eq!(bench.answers(), [(1, AuthOutcome::Verified)]);
}

/// Works through the queue until it is this origin's turn, every password being wrong; says how many came before.
fn verifications_ahead(bench: &mut Bench, now: Time, origin: u32) -> usize {
    for ahead in 0.. {
        let work = bench.next(now).expect("a check");
        bench.finish(now, &work, Some(false));
        if bench.answers().iter().any(|(told, _)| *told == origin) {
            return ahead;
        }
    }
    unreachable!("it was in the queue")
}

const VICTIM: u32 = 9999;

#[test]
fn guessing_from_its_own_address_holds_a_login_up_by_a_few_places() {
    let verifier = stored();
    for (note, guesses, was_here, at_most) in [
        ("a first login, one name is guessed at", "admin", false, 1),
        ("a first login, 800 names are tried", "", false, 80),
        ("it was here before, 800 names are tried", "", true, 0),
        (
            "it was here before, its own name is tried",
            "victim",
            true,
            0,
        ),
    ] {
        let mut bench = Bench::new(many());
        if was_here {
            // From another address even: what proves it is the password.
            bench.submit(START, 2, 0, check("victim", "right", Some(&verifier)));
            let work = bench.next(START).expect("a check");
            bench.finish(START, &work, Some(true));
            bench.answers();
        }
        // The cache has forgotten it by now.
        let now = START.after(Duration::from_secs(3600));
        for n in 0..800 {
            let name = match guesses {
                "" => format!("name-{n}"),
                name => name.to_owned(),
            };
            let known = (guesses == "victim").then_some(&verifier);
            bench.submit(now, 1, n, check(&name, &format!("guess-{n}"), known));
        }
        bench.submit(now, 1, VICTIM, check("victim", "right", Some(&verifier)));
        assert_eq!(bench.answers(), [], "{note}");
        let ahead = verifications_ahead(&mut bench, now, VICTIM);
        assert!(ahead <= at_most, "{note}: {ahead} ahead");
    }
}

/// A guess at a user that logs in from the same address gets the same place as a guess at an unknown user.
#[test]
fn a_guess_at_a_known_user_is_worked_on_no_sooner_than_one_at_nobody() {
    let verifier = stored();
    let ahead = |key, known: Option<&Verifier>| {
        let mut bench = Bench::with_key(many(), key);
        bench.submit(START, 1, 0, check("victim", "right", known));
        let work = bench.next(START).expect("a check");
        bench.finish(START, &work, Some(known.is_some()));
        bench.answers();
        for n in 0..8 {
            bench.submit(START, 1, n, check(&format!("nobody-{n}"), "guess", None));
        }
        bench.submit(START, 1, VICTIM, check("victim", "guess", known));
        verifications_ahead(&mut bench, START, VICTIM)
    };
    let as_known: Vec<usize> = (0..16).map(|key| ahead(key, Some(&verifier))).collect();
    let as_nobody: Vec<usize> = (0..16).map(|key| ahead(key, None)).collect();
    assert_eq!(as_known, as_nobody);
    assert!(as_known.iter().any(|&ahead| ahead > 0), "{as_known:?}");
}

#[test]
fn a_changed_hash_or_a_full_memory_makes_it_a_first_login() {
    let (old, new) = (stored(), stored());
    let later = START.after(Duration::from_secs(3600));
    for (note, known_entries_max, others, verifier, is_first) in [
        ("remembered", 16, 0, &old, false),
        ("pushed out", 16, 20, &old, true),
        ("turned off", 0, 0, &old, true),
        ("another hash", 16, 0, &new, true),
    ] {
        let ahead = |key| {
            let limits = Limits {
                known_entries_max,
                ..many()
            };
            let mut bench = Bench::with_key(limits, key);
            for n in 0..=others {
                let user = if n == 0 {
                    "me".to_owned()
                } else {
                    n.to_string()
                };
                bench.submit(START, 1, n, check(&user, "right", Some(&old)));
                let work = bench.next(START).expect("a check");
                bench.finish(START, &work, Some(true));
            }
            bench.answers();
            for n in 0..8 {
                bench.submit(later, 1, n, check(&format!("other-{n}"), "x", None));
            }
            bench.submit(later, 1, VICTIM, check("me", "right", Some(verifier)));
            verifications_ahead(&mut bench, later, VICTIM)
        };
        let most = (0..16).map(ahead).max();
        assert_eq!(most > Some(0), is_first, "{note}: {most:?}");
    }
}

#[test]
fn a_full_queue_of_guesses_makes_room_for_another_name_of_the_same_address() {
    let mut bench = Bench::new(limits());
    for origin in 0..4 {
        bench.submit(
            START,
            1,
            origin,
            check("victim", &format!("guess-{origin}"), None),
        );
    }
    bench.submit(START, 1, 4, check("other", "x", None));
    assert_eq!(bench.answers(), [(3, AuthOutcome::Busy)]);
    assert!(verifications_ahead(&mut bench, START, 4) <= 1);
}

#[test]
fn guessing_is_counted_and_told() {
    let mut bench = Bench::new(limits());
    assert_eq!(bench.desk.guessing(START), None);
    for origin in 0..10 {
        bench.submit(
            START,
            1,
            origin,
            check(&format!("u{}", origin % 2), "x", None),
        );
        if let Some(work) = bench.next(START) {
            bench.finish(START, &work, Some(false));
        }
    }
    assert_eq!(bench.desk.gauges().failures, 10);
    let told = bench.desk.guessing(START.after(Duration::from_secs(1)));
    let told = told.expect("a line");
    assert_eq!(told.address, address(1).into());
    assert_eq!((told.failures, told.of_address, told.names), (10, 10, 2));
}

/// The pool with threads, and a hash that waits until it is told how to end.
struct Threads {
    pool: Pool<u32>,
    answers: Receiver<(u32, AuthOutcome)>,
    begun: Receiver<String>,
    verdicts: Sender<Option<bool>>,
}

fn threads() -> Threads {
    let (answer_in, answers) = channel();
    let (begin_in, begun) = channel();
    let (verdicts, verdict_out) = channel::<Option<bool>>();
    let verdict_out = Mutex::new(verdict_out);
    let answer_in = Mutex::new(answer_in);
    let begin_in = Mutex::new(begin_in);
    let pool = Pool::start(
        1,
        limits(),
        [7; 32],
        Box::new(move |check: &Check| {
            let begun = begin_in.lock().unwrap_or_else(PoisonError::into_inner);
            begun
                .send(check.user.to_string())
                .expect("the test listens");
            drop(begun);
            let verdict = verdict_out.lock().unwrap_or_else(PoisonError::into_inner);
            verdict
                .recv()
                .expect("the test decides")
                .expect("a fault of the library")
        }),
        Box::new(move |origin, outcome| {
            let answers = answer_in.lock().unwrap_or_else(PoisonError::into_inner);
            answers.send((origin, outcome)).expect("the test listens");
        }),
    );
    Threads {
        pool: pool.expect("threads"),
        answers,
        begun,
        verdicts,
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn threads_hash_count_and_survive_a_fault() {
    let threads = threads();
    for (origin, user, verdict, expected) in [
        (0, "a", Some(true), AuthOutcome::Verified),
        (1, "b", None, AuthOutcome::Busy),
        (2, "c", Some(false), AuthOutcome::Refused),
    ] {
        threads
            .pool
            .submit(address(1), origin, check(user, "x", None));
        assert_eq!(threads.begun.recv_timeout(PATIENCE).as_deref(), Ok(user));
        threads.verdicts.send(verdict).expect("the thread lives");
        let answer = threads.answers.recv_timeout(PATIENCE);
        assert_eq!(answer, Ok((origin, expected)), "{user}");
    }
    let gauges = threads.pool.gauges();
    assert_eq!((gauges.hashes, gauges.cache_len), (3, 1));
}

#[test]
fn submitting_never_waits_for_a_hash() {
    let threads = threads();
    for origin in 0..3 {
        threads
            .pool
            .submit(address(1), origin, check(&format!("u{origin}"), "x", None));
    }
    // The one thread stands in the first hash; the caller is here already.
    assert_eq!(threads.begun.recv_timeout(PATIENCE).as_deref(), Ok("u0"));
    assert_eq!(threads.pool.gauges().queue_len, 2);
    for _ in 0..3 {
        threads.verdicts.send(Some(true)).expect("the thread lives");
    }
    let mut told: Vec<u32> = (0..3)
        .map(|_| threads.answers.recv_timeout(PATIENCE).expect("an answer").0)
        .collect();
    told.sort_unstable();
    assert_eq!(told, [0, 1, 2]);
}
