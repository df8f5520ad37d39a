//! The answers to Watch: the first at once, then one after each change, not more often than every 100 ms.
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

/// Between two answers.
const PAUSE: Duration = Duration::from_millis(100);

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
        let pause = PAUSE.max(begun.elapsed() * 10);
        sleep_until(begun + pause).await;
        let changed = tokio::select! {
            changed = changes.changed() => changed,
            changed = in_force.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

impl Stream for Watching {
    type Item = Result<NodesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_recv(context)
    }
}
