//! The answers to Watch: the first at once, then one after each change, at most ten in a second. A few may follow each
//! other at once, so that one who waits for a release is told when it is active, and not a pause later.
//!
//! An answer is made when there is room for it, so one who does not read costs a place and one answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use sluice_proto::control::v1::NodesResponse;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::Stream;
use tonic::Status;

use super::answers;
use crate::domain::Name;
use crate::fleet::Fleet;

/// Between two answers when changes do not end.
const PAUSE: Duration = Duration::from_millis(200);
/// Answers that may be made without a pause after a quiet time. With the pause: ten in any second.
const AT_ONCE: u32 = 5;

/// See the module documentation.
pub(super) struct Watching {
    answers: mpsc::Receiver<Result<NodesResponse, Status>>,
}

impl Watching {
    /// Takes a place, until the caller goes away.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    pub(super) fn start(fleet: &Fleet, only: Vec<Name>) -> Result<Self, Status> {
        let place = fleet.watcher();
        let place = place.ok_or_else(|| {
            Status::resource_exhausted("too many watch already; end one, or list from time to time")
        })?;
        let (out, answers) = mpsc::channel(1);
        let fleet = fleet.clone();
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = answer(&fleet, &only, &out) => {}
                () = out.closed() => {}
                () = fleet.closed() => {
                    let stops = Status::unavailable("the control plane stops");
                    // One who does not read is told by the end of the connection.
                    let _ = out.try_send(Err(stops));
                }
            }
        });
        Ok(Self { answers })
    }
}

async fn answer(fleet: &Fleet, only: &[Name], out: &mpsc::Sender<Result<NodesResponse, Status>>) {
    let mut changes = fleet.changes();
    let mut in_force = fleet.in_force();
    let mut pace = Pace::new(Instant::now());
    loop {
        let Ok(room) = out.reserve().await else {
            return;
        };
        changes.mark_unchanged();
        in_force.mark_unchanged();
        let begun = Instant::now();
        let answer = answers::nodes(fleet, only);
        let is_over = answer.is_err(); // a node was removed
        room.send(answer);
        if is_over {
            return;
        }
        // Ten times what it took, so that watching a large fleet leaves most of a core to others.
        let rested = begun + begun.elapsed() * 10;
        sleep_until(pace.after(begun).max(rested)).await;
        let changed = tokio::select! {
            changed = changes.changed() => changed,
            changed = in_force.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Spends and earns answers.
struct Pace {
    /// When everything spent is earned again.
    earned_at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { earned_at: now }
    }

    /// An answer is made now: when the next may be.
    fn after(&mut self, now: Instant) -> Instant {
        self.earned_at = self.earned_at.max(now) + PAUSE;
        let ahead = PAUSE * (AT_ONCE - 1);
        self.earned_at.checked_sub(ahead).unwrap_or(now).max(now)
    }
}

impl Stream for Watching {
    type Item = Result<NodesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_once_and_ten_in_any_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        let mut made = Vec::new();
        for _ in 0..40 {
            made.push(now - start);
            now = pace.after(now);
        }
        let zero = Duration::ZERO;
        assert_eq!(
            made.get(..6),
            Some(&[zero, zero, zero, zero, zero, PAUSE][..])
        );
        for (index, first) in made.iter().enumerate() {
            let within = made.iter().skip(index);
            let within = within.take_while(|at| **at - *first < Duration::from_secs(1));
            assert!(within.count() <= 10, "from {first:?}");
        }
        // A quiet time earns all of it again, and no more.
        now += Duration::from_secs(60);
        let at_once = (0..10).take_while(|_| pace.after(now) == now).count();
        assert_eq!(at_once, AT_ONCE as usize - 1);
    }
}
