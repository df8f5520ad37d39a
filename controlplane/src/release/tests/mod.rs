//! Releasing over a real store: lifetimes, callers who go away, a store in trouble, and the bounds.

mod shares;
mod stored;
mod troubled;

use std::sync::atomic::Ordering;

use tempfile::TempDir;

use super::*;
use crate::store::Sqlite;
use troubled::{Trouble, Troubled};

const TEXT: &str = "
rules:
  - {name: c, actions: connect, decision: allow}
  - {name: p, actions: publish, topics: [a], decision: allow}
";

struct Bench {
    dir: TempDir,
    store: Arc<Troubled>,
    releases: Releases,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    async fn start_with(limits: Limits) -> Self {
        let dir = TempDir::new().unwrap();
        let store = Arc::new(Troubled::new(Sqlite::open(dir.path()).await.unwrap()));
        let shared: Arc<dyn Store> = Arc::<Troubled>::clone(&store);
        let releases = Releases::open(shared, limits).await.unwrap();
        Self {
            dir,
            store,
            releases,
        }
    }

    fn seat(&self, share: Share, token: &str) -> Result<Seat, Failed> {
        self.releases.seat(share, &TokenId(token.into()))
    }

    fn document(&self, text: &str) -> Document {
        self.document_of(Share::Writers, "ann", text)
    }

    fn document_of(&self, share: Share, token: &str, text: &str) -> Document {
        let seat = self.seat(share, token).unwrap();
        let mut draft = Draft::new(seat, None).unwrap();
        draft.push(text.as_bytes()).unwrap();
        draft.finish().unwrap()
    }

    /// Applies [`TEXT`] with another topic.
    async fn apply(&self, topic: &str, newest: u64, at: u64) -> Result<u64, Failed> {
        let document = self.document(&TEXT.replace("[a]", &format!("[{topic}]")));
        let applied = self.releases.apply(document, newest, author(at)).await?;
        Ok(applied.generation.id.number)
    }

    fn in_force(&self) -> u64 {
        self.releases.in_force_number()
    }

    /// What is published is what the store has, rows and all.
    async fn assert_agrees(&self) {
        let heads = self.store.heads().await.unwrap();
        assert_eq!(self.in_force(), heads.released);
        let released = self.releases.in_force().borrow().clone();
        let released = released.expect("something is in force");
        let stored = self.store.rows(heads.released).await.unwrap();
        assert_eq!(released.rows.digest(), stored.digest());
        assert_eq!(released.id.digest, stored.digest());
    }
}

fn author(at: u64) -> Author {
    Author {
        who: "ann".into(),
        request_id: "req".into(),
        peer: "127.0.0.1:7".into(),
        at: UnixMillis(at),
        comment: String::new(),
        stay: None,
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Failed>) -> String {
    let failed = result.unwrap_err();
    let Failed::Refused(text) = failed else {
        panic!("{failed:?}");
    };
    text
}

#[tokio::test]
async fn c10_an_expired_generation_is_not_released_and_can_be_applied_again() {
    let limits = Limits {
        release_within: Duration::from_millis(500),
        ..Limits::default()
    };
    let bench = Bench::start_with(limits).await;
    bench.apply("a", 0, 1000).await.unwrap();
    let late = refused(bench.releases.release(1, 0, author(1500)).await);
    assert!(late.contains("not released in time"), "{late}");
    // The rows of the first are removed with the next.
    assert_eq!(bench.apply("a", 1, 1500).await.unwrap(), 2);
    assert_eq!(bench.apply("a", 2, 1999).await.unwrap(), 2);
    let against = Against::Generation(1, bench.seat(Share::Readers, "bob").unwrap());
    let gone = bench.releases.diff(None, against, 10).await;
    assert!(matches!(gone, Err(Failed::NotFound(_))), "{gone:?}");
    let released = bench.releases.release(2, 0, author(1999)).await.unwrap();
    assert_eq!(released.released_at, Some(UnixMillis(1999)));
    bench.assert_agrees().await;
}

#[tokio::test]
async fn c11_a_caller_who_goes_away_leaves_a_finished_call() {
    let bench = Bench::start().await;
    bench.apply("a", 0, 1).await.unwrap();
    let held = bench.store.may_write.forget_permits(usize::MAX);
    assert!(held > 0);
    bench.store.came.forget_permits(usize::MAX);
    let mut in_force = bench.releases.in_force();
    let release = tokio::spawn({
        let releases = bench.releases.clone();
        async move { releases.release(1, 0, author(2)).await }
    });
    bench.store.came.acquire().await.unwrap().forget();
    release.abort();
    assert!(release.await.unwrap_err().is_cancelled());
    assert_eq!(
        bench.in_force(),
        0,
        "nothing is published before the store has it"
    );
    bench.store.may_write.add_permits(1);
    in_force.changed().await.unwrap();
    assert_eq!(bench.in_force(), 1);
    bench.assert_agrees().await;

    let document = bench.document(&TEXT.replace("[a]", "[b]"));
    let apply = tokio::spawn({
        let releases = bench.releases.clone();
        async move { releases.apply(document, 1, author(3)).await.map(|_| ()) }
    });
    bench.store.came.acquire().await.unwrap().forget();
    apply.abort();
    assert!(apply.await.unwrap_err().is_cancelled());
    bench.store.ended.forget_permits(usize::MAX);
    bench.store.may_write.add_permits(1);
    bench.store.ended.acquire().await.unwrap().forget();
    assert_eq!(bench.store.heads().await.unwrap().newest, 2);
    let audit = bench.store.audit(None, 10).await.unwrap();
    let applied = audit
        .iter()
        .filter(|record| record.action == "policy.apply");
    assert_eq!(applied.count(), 2);
}

#[tokio::test]
async fn changes_that_do_not_make_what_was_promised_never_come_into_force() {
    let bench = Bench::start().await;
    bench.apply("a", 0, 1).await.unwrap();
    bench.apply("b", 1, 1).await.unwrap(); // the rows of the first are not at hand any more
    bench.store.loses_a_change.store(true, Ordering::Relaxed);
    let damaged = bench.releases.release(1, 0, author(2)).await;
    assert!(
        matches!(damaged, Err(Failed::Store(StoreError::Corrupt(_)))),
        "{damaged:?}"
    );
    assert_eq!(bench.in_force(), 0);
    assert_eq!(bench.store.heads().await.unwrap().released, 0);
    bench.store.loses_a_change.store(false, Ordering::Relaxed);
    bench.releases.release(1, 0, author(3)).await.unwrap();
    bench.assert_agrees().await;
}

#[tokio::test]
async fn the_line_of_those_who_release_has_an_end() {
    let bench = Bench::start().await;
    bench.apply("a", 0, 1).await.unwrap();
    bench.store.may_write.forget_permits(usize::MAX);
    bench.store.came.forget_permits(usize::MAX);
    let release = || {
        let releases = bench.releases.clone();
        tokio::spawn(async move { releases.release(1, 0, author(2)).await })
    };
    let line: Vec<_> = (0..CHANGERS_MAX).map(|_| release()).collect();
    bench.store.came.acquire().await.unwrap().forget();
    while bench.releases.inner.changers.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    for busy in [
        bench.releases.release(1, 0, author(2)).await,
        bench.releases.rollback(None, 0, author(2)).await,
    ] {
        assert!(matches!(busy, Err(Failed::Busy(_))), "{busy:?}");
    }
    bench.store.may_write.add_permits(CHANGERS_MAX);
    let mut released = 0;
    for one in line {
        match one.await.unwrap() {
            Ok(_) => released += 1,
            Err(Failed::Store(StoreError::Conflict(_))) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(released, 1, "the others were told who was first");
    assert_eq!(bench.in_force(), 1);
    let again = bench.releases.release(1, 0, author(3)).await;
    assert!(
        matches!(again, Err(Failed::Store(StoreError::Conflict(_)))),
        "the places are free again: {again:?}"
    );
}

#[tokio::test]
async fn c5_who_is_sent_away_while_the_work_goes_on_writes_nothing() {
    let bench = Bench::start().await;
    bench.apply("a", 0, 1).await.unwrap();
    bench.apply("b", 1, 1).await.unwrap();
    let author_until = |expires_at| {
        let (welcome, gone) = watch::channel(());
        let mut author = author(1);
        author.stay = Some(Stay::new(gone, expires_at));
        (welcome, author)
    };
    let (welcome, revoked) = author_until(None);
    drop(welcome);
    let (_welcome, expired) = author_until(Some(UnixMillis(1)));
    for gone in [revoked, expired] {
        let document = bench.document(&TEXT.replace("[a]", "[c]"));
        let applied = bench.releases.apply(document, 2, gone.clone()).await;
        assert!(matches!(applied, Err(Failed::Unwelcome)), "{applied:?}");
        let released = bench.releases.release(2, 0, gone).await;
        assert!(matches!(released, Err(Failed::Unwelcome)), "{released:?}");
    }
    bench.releases.release(2, 0, author(1)).await.unwrap();
    let document = bench.document(&TEXT.replace("[a]", "[d]"));
    bench.releases.apply(document, 2, author(1)).await.unwrap();
    bench.releases.release(3, 2, author(1)).await.unwrap();
    let (welcome, gone) = author_until(None);
    drop(welcome);
    let back = bench.releases.rollback(None, 3, gone).await;
    assert!(matches!(back, Err(Failed::Unwelcome)), "{back:?}");
    let (_welcome, welcome) = author_until(None);
    bench.releases.rollback(None, 3, welcome).await.unwrap();
    let heads = bench.store.heads().await.unwrap();
    assert_eq!((heads.newest, heads.released), (4, 4), "and nothing else");
}

#[tokio::test]
async fn what_is_in_force_agrees_with_a_store_that_says_the_wrong_thing() {
    let bench = Bench::start().await;
    bench.apply("a", 0, 1).await.unwrap();
    bench.store.set(Trouble::DoneAndDenied);
    let told = bench.releases.release(1, 0, author(2)).await;
    assert!(
        matches!(told, Err(Failed::Store(StoreError::Unavailable(_)))),
        "{told:?}"
    );
    bench.assert_agrees().await;
    assert_eq!(bench.in_force(), 1);

    bench.store.set(Trouble::None);
    bench.apply("b", 1, 3).await.unwrap();
    bench.store.set(Trouble::DoneAndSilent);
    bench.releases.release(2, 1, author(4)).await.unwrap_err();
    assert_eq!(bench.in_force(), 1, "nobody can know yet");
    bench.store.set(Trouble::None);
    // The next call that asks the store finds out, and compares with what is.
    let conflict = bench.releases.rollback(None, 1, author(5)).await;
    assert!(
        matches!(conflict, Err(Failed::Store(StoreError::Conflict(_)))),
        "{conflict:?}"
    );
    bench.assert_agrees().await;
    assert_eq!(bench.in_force(), 2);
}

#[tokio::test]
async fn what_was_in_force_is_in_force_after_a_restart() {
    let bench = Bench::start().await;
    bench.apply("a", 0, 1).await.unwrap();
    bench.releases.release(1, 0, author(2)).await.unwrap();
    let before = bench.releases.in_force().borrow().clone().unwrap();
    let Bench {
        dir,
        store,
        releases,
    } = bench;
    drop((store, releases));
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path()).await.unwrap());
    let releases = Releases::open(store, Limits::default()).await.unwrap();
    let after = releases.in_force().borrow().clone().unwrap();
    assert_eq!((after.id, &after.features), (before.id, &before.features));
    assert!(after.features.contains("rules"));
}

#[tokio::test]
async fn what_was_just_applied_or_in_force_is_not_read_from_the_store() {
    let bench = Bench::start().await;
    let reads = || bench.store.reads.load(Ordering::Relaxed);
    let opened = reads();
    for (number, topic) in [(1, "a"), (2, "b")] {
        bench.apply(topic, number - 1, 1).await.unwrap();
        let released = bench.releases.release(number, number - 1, author(2));
        released.await.unwrap();
    }
    bench.releases.rollback(None, 2, author(3)).await.unwrap();
    bench.releases.rollback(None, 3, author(4)).await.unwrap();
    assert_eq!(reads(), opened);
    bench.assert_agrees().await; // reads once, to compare
    // Not the one applied last: made of what is in force and its changes.
    bench.apply("c", 4, 5).await.unwrap();
    bench.apply("d", 4 + 1, 6).await.unwrap();
    bench.releases.release(5, 4, author(7)).await.unwrap();
    assert_eq!(reads(), opened + 1);
    bench.assert_agrees().await;
    let features = bench
        .releases
        .in_force()
        .borrow()
        .clone()
        .unwrap()
        .features
        .clone();
    assert!(features.contains("rules"));
}

#[tokio::test]
async fn at_most_two_compiled_policies_are_kept() {
    let bench = Bench::start().await;
    for (topic, newest) in [("a", 0), ("b", 1), ("c", 2)] {
        bench.apply(topic, newest, 1).await.unwrap();
    }
    bench.releases.release(3, 0, author(2)).await.unwrap();
    bench.apply("d", 3, 2).await.unwrap();
    bench.apply("e", 4, 2).await.unwrap();
    let kept = || {
        let kept = &bench.releases.inner.snapshots;
        let at_hand = (1..=6).filter(|number| kept.get(*number).is_some());
        at_hand.collect::<Vec<u64>>()
    };
    assert_eq!(kept(), [] as [u64; 0], "applying and releasing keeps none");
    for (asked, expected) in [
        (Some(4), vec![4]),
        (None, vec![3]),
        (Some(4), vec![3, 4]),
        (Some(5), vec![3, 5]),
        (Some(3), vec![3, 5]),
    ] {
        bench
            .releases
            .snapshot(asked, &TokenId("bob".into()))
            .await
            .unwrap();
        assert_eq!(kept(), expected, "{asked:?}");
    }
    bench.releases.release(5, 3, author(3)).await.unwrap();
    bench
        .releases
        .snapshot(Some(3), &TokenId("bob".into()))
        .await
        .unwrap();
    assert_eq!(kept(), [3, 5]);
}

#[tokio::test]
async fn what_takes_much_memory_is_kept_for_a_while_only() {
    let bench = Bench::start().await;
    let many: String = (0..COSTLY_FROM_ROWS)
        .map(|n| format!("  - {{name: c{n}, actions: connect, decision: allow}}\n"))
        .collect();
    let large = bench.document(&format!("{TEXT}{many}"));
    bench.releases.apply(large, 0, author(1)).await.unwrap();
    bench.releases.release(1, 0, author(1)).await.unwrap();
    bench.apply("a", 1, 1).await.unwrap();
    bench.releases.release(2, 1, author(1)).await.unwrap();
    bench.apply("b", 2, 1).await.unwrap();
    let bob = TokenId("bob".into());
    for asked in [None, Some(1)] {
        bench.releases.snapshot(asked, &bob).await.unwrap();
    }
    let mut ids = Vec::new();
    for number in 1..=3 {
        ids.push(bench.store.generation(number).await.unwrap().id);
    }
    let kept = || {
        let rows = ids
            .iter()
            .filter(|id| bench.releases.inner.at_hand.get(id).is_some());
        let rows: Vec<u64> = rows.map(|id| id.number).collect();
        let kept = bench.releases.inner.snapshots.numbers();
        (rows, kept)
    };
    tokio::time::pause();
    bench.releases.forget();
    assert_eq!(kept(), (vec![1, 3], vec![2, 1]));
    tokio::time::advance(COSTLY_FOR).await;
    bench.releases.forget();
    assert_eq!(
        kept(),
        (vec![3], vec![2]),
        "the one that shares nothing much"
    );
    tokio::time::advance(Duration::from_secs(600)).await;
    bench.releases.forget();
    assert_eq!(kept(), (vec![3], vec![]), "nobody has asked for long");
    tokio::time::resume();
    bench.releases.rollback(None, 2, author(2)).await.unwrap();
    bench.assert_agrees().await;
    let back = bench.releases.in_force().borrow().clone().unwrap();
    assert_eq!(back.rows.len(), COSTLY_FROM_ROWS + 3);
}

#[test]
fn problems_beyond_the_bound_are_counted() {
    let mut wrong = Wrong::default();
    for line in 0..1500 {
        wrong.add(sluice_policy::Position { line, column: 1 }, "bad".into());
    }
    let text: String = (0..1200).map(|n| format!("k{n}: 1\n")).collect();
    wrong.join(&sluice_policy::parse(&text, "test").unwrap_err());
    assert_eq!((wrong.problems.len(), wrong.left_off), (1000, 1700));
    assert!(
        wrong
            .to_string()
            .starts_with("the document has 2700 problems; the first: 0:1: bad")
    );
}
