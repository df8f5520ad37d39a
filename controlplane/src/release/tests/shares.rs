//! Who waits for whom: calls that write never for calls that only look, and of these no token for more than its share.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use sluice_policy::Cancel;
use tokio::task::JoinHandle;

use super::*;

fn limits(writers: Bounds, readers: Bounds) -> Limits {
    Limits {
        writers,
        readers,
        ..Limits::default()
    }
}

fn busy<T: std::fmt::Debug>(result: Result<T, Failed>) -> String {
    match result {
        Err(Failed::Busy(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// Work that goes on until it is told to end.
struct Held {
    end: mpsc::Sender<()>,
    task: JoinHandle<Result<bool, Failed>>,
}

impl Held {
    /// Takes the turn of a share, and gives whether it was cancelled when it is told to end.
    async fn begin(bench: &Bench, share: Share, token: &str) -> Self {
        let turn = bench.seat(share, token).unwrap().turn(0).await.unwrap();
        let (end, until) = mpsc::channel();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            turn.run(move |cancel| {
                began.send(()).unwrap();
                let _ = until.recv();
                cancel.is_cancelled()
            })
            .await
        });
        has_begun.await.unwrap();
        Self { end, task }
    }

    async fn end(self) -> bool {
        self.end.send(()).unwrap();
        self.task.await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn readers_who_fill_their_share_do_not_keep_an_apply_from_starting() {
    let bench = Bench::start().await;
    let readers = Bounds::readers(READERS_BYTES_MAX);
    // One is tried and does not end; the next waits; the others upload and take all memory for documents.
    let held = Held::begin(&bench, Share::Readers, "r0").await;
    let waiting = bench.document_of(Share::Readers, "r1", TEXT);
    let waiting = tokio::spawn({
        let releases = bench.releases.clone();
        async move { releases.validate(waiting).await }
    });
    let mut uploads = Vec::new();
    for number in 2..readers.seats_max {
        let seat = bench.seat(Share::Readers, &format!("r{number}")).unwrap();
        let mut draft = Draft::new(seat, None).unwrap();
        draft.push(b"r").unwrap();
        uploads.push(draft);
    }
    let none_free = busy(bench.seat(Share::Readers, "late").map(drop));
    assert!(none_free.contains("try again later"), "{none_free}");
    let piece = vec![b' '; 1 << 20];
    while uploads.iter_mut().any(|draft| draft.push(&piece).is_ok()) {}

    assert_eq!(bench.apply("a", 0, 1).await.unwrap(), 1);
    bench.releases.release(1, 0, author(2)).await.unwrap();
    assert_eq!(bench.apply("b", 1, 3).await.unwrap(), 2);
    assert!(!waiting.is_finished(), "the readers' share is still taken");
    assert!(!held.end().await, "nobody cancelled it");
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upload_that_does_not_end_holds_no_place_among_the_trials() {
    let bench = Bench::start().await;
    let mut slow: Vec<Draft> = Vec::new();
    for share in [Share::Readers, Share::Writers] {
        slow.push(Draft::new(bench.seat(share, "slow").unwrap(), None).unwrap());
    }
    for byte in TEXT.bytes() {
        slow.iter_mut()
            .for_each(|draft| draft.push(&[byte]).unwrap());
    }
    let document = bench.document_of(Share::Readers, "quick", TEXT);
    bench.releases.validate(document).await.unwrap();
    assert_eq!(bench.apply("a", 0, 1).await.unwrap(), 1);
    // What came a byte at a time is a document as well.
    let whole = slow.remove(0).finish().unwrap();
    assert_eq!(bench.releases.validate(whole).await.unwrap().rows, 3);
}

#[tokio::test]
async fn a_token_looks_at_one_thing_at_a_time() {
    let bench = Bench::start().await;
    bench.apply("a", 0, 1).await.unwrap();
    bench.releases.release(1, 0, author(2)).await.unwrap();
    let held = Held::begin(&bench, Share::Readers, "bob").await;
    let refused = busy(bench.seat(Share::Readers, "bob").map(drop));
    assert!(refused.contains("wait for that call to end"), "{refused}");
    let bob = TokenId("bob".into());
    busy(bench.releases.snapshot(None, &bob).await.map(drop));
    // Another token has a seat, and so has the same one for what it writes.
    bench.seat(Share::Readers, "eve").unwrap();
    bench.seat(Share::Writers, "bob").unwrap();
    held.end().await;
    bench.seat(Share::Readers, "bob").unwrap();
    assert_eq!(bench.releases.snapshot(None, &bob).await.unwrap().0, 1);
    // What was compiled is at hand: asking about it takes no seat.
    let held = Held::begin(&bench, Share::Readers, "bob").await;
    assert_eq!(bench.releases.snapshot(None, &bob).await.unwrap().0, 1);
    held.end().await;
}

#[tokio::test]
async fn the_place_of_a_caller_who_leaves_comes_back_and_the_work_is_cancelled() {
    let bench = Bench::start().await;
    let turn = bench.seat(Share::Readers, "bob").unwrap();
    let turn = turn.turn(0).await.unwrap();
    let saw_cancel = Arc::new(AtomicBool::new(false));
    let saw = Arc::clone(&saw_cancel);
    let (began, has_begun) = tokio::sync::oneshot::channel();
    let call = tokio::spawn(async move {
        turn.run(move |cancel: &Cancel| {
            began.send(()).unwrap();
            while !cancel.is_cancelled() {
                std::thread::yield_now();
            }
            saw.store(true, Ordering::Relaxed);
        })
        .await
    });
    has_begun.await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // Both come back when the work has ended, and not before.
    let next = bench.document_of_when_free("bob").await;
    assert!(saw_cancel.load(Ordering::Relaxed));
    bench.releases.validate(next).await.unwrap();
}

#[tokio::test]
async fn a_caller_who_leaves_the_line_leaves_nothing_behind() {
    let bench = Bench::start().await;
    let held = Held::begin(&bench, Share::Readers, "r0").await;
    let document = bench.document_of(Share::Readers, "bob", TEXT);
    let mut waiting = Box::pin(bench.releases.validate(document));
    assert!(futures_now(&mut waiting).await.is_none(), "it waits");
    drop(waiting);
    let document = bench.document_of(Share::Readers, "bob", TEXT);
    held.end().await;
    bench.releases.validate(document).await.unwrap();
}

#[tokio::test]
async fn documents_beyond_the_bounds_are_turned_away_and_their_room_is_given_back() {
    for share in [Share::Readers, Share::Writers] {
        let bounds = Bounds {
            seats_max: 2,
            seats_per_token_max: 1,
            documents_bytes_max: 10 * 1024,
            trials_max: 1,
            trial_bytes_max: usize::MAX,
        };
        let bench = Bench::start_with(limits(bounds.clone(), bounds)).await;
        let draft = |token: &str| Draft::new(bench.seat(share, token)?, None);
        let mut first = draft("a").unwrap();
        let mut second = draft("b").unwrap();
        busy(draft("c").map(drop));
        first.push(&[b' '; 1000]).unwrap();
        first.push(&[b' '; 24]).unwrap();
        second.push(&[b' '; 8 * 1024]).unwrap();
        busy(second.push(&[b' '; 1024 + 1]));
        busy(first.push(&[b' '; 2 * 1024]));
        drop(second);
        first.push(&[b' '; 9 * 1024]).unwrap();
        busy(first.push(b" "));
        let whole = first.finish().unwrap();
        let empty = bench.releases.validate(whole).await;
        assert!(matches!(empty, Err(Failed::Document(_))), "{empty:?}");
        let mut third = draft("c").unwrap();
        third.push(&[b' '; 10 * 1024]).unwrap();
    }
}

#[tokio::test]
async fn what_would_take_more_memory_than_readers_have_is_refused_before_it_is_begun() {
    let readers = Bounds {
        trial_bytes_max: 100_000,
        ..Bounds::readers(READERS_BYTES_MAX)
    };
    let bench = Bench::start_with(limits(Bounds::writers(), readers)).await;
    let many = |values: usize| {
        let topics: Vec<String> = (0..values).map(|n| format!("t{n}")).collect();
        TEXT.replace("[a]", &format!("[{}]", topics.join(",")))
    };
    let draft = |text: &str| {
        let mut draft = Draft::new(bench.seat(Share::Readers, "bob")?, None)?;
        draft.push(text.as_bytes())?;
        draft.finish()
    };
    let refused = busy(draft(&many(500)).map(drop));
    for part in ["--readers-memory-mib", "sluicectl validate -f"] {
        assert!(refused.contains(part), "{refused}");
    }
    bench
        .releases
        .validate(draft(&many(50)).unwrap())
        .await
        .unwrap();
    // Those who write are not bound by it; a generation that is too large to look at is refused as well.
    let document = bench.document(&many(500));
    bench.releases.apply(document, 0, author(1)).await.unwrap();
    let long: Vec<String> = (0..400)
        .map(|n| format!("  - {{name: c{n}, actions: connect, decision: allow}}\n"))
        .collect();
    let document = bench.document(&format!("{TEXT}{}", long.concat()));
    bench.releases.apply(document, 1, author(1)).await.unwrap();
    let bob = TokenId("bob".into());
    busy(bench.releases.snapshot(Some(2), &bob).await.map(drop));
    let against = Against::Generation(2, bench.seat(Share::Readers, "bob").unwrap());
    busy(bench.releases.diff(Some(1), against, 10).await.map(drop));
    assert_eq!(bench.releases.snapshot(Some(1), &bob).await.unwrap().0, 1);
}

impl Bench {
    /// A document of this token, as soon as it has a seat.
    async fn document_of_when_free(&self, token: &str) -> Document {
        while self.seat(Share::Readers, token).is_err() {
            tokio::task::yield_now().await;
        }
        self.document_of(Share::Readers, token, TEXT)
    }
}

/// What a future gives when it is polled once.
async fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
