//! One member of the fleet: its record, the machine that knows how it is, and its present stream.
//!
//! Whatever touches the machine does it here, under one short lock, and names the stream on whose behalf: one that was
//! taken over can change nothing any more.

use std::sync::Mutex;

use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::history::lock;
use super::node::{Node, State};
use super::observe::Troubles;
use super::requests::Command;
use crate::domain::{NodeRecord, UnixMillis};

/// See the module documentation.
pub struct Member {
    /// As it is in the store.
    pub record: NodeRecord,
    seat: Mutex<Seat>,
}

/// What is behind the lock.
pub struct Seat {
    /// How it is.
    pub node: Node,
    /// Address of the peer; empty before the first stream.
    pub address: String,
    /// When it last said something.
    pub last_seen: Option<UnixMillis>,
    /// The state that metrics count it under.
    pub counted: State,
    /// The troubles that metrics count for it.
    pub counted_troubles: Troubles,
    /// Counts streams; the present one, or the last.
    stream: u64,
    line: Option<Line>,
    is_removed: bool,
}

impl Seat {
    fn cut(&mut self, why: Status) {
        self.node.close();
        if let Some(line) = self.line.take() {
            // It may have ended by itself.
            let _ = line.cut.send(why);
        }
    }
}

/// What a stream ends with when another one of the same node came.
pub(super) fn taken_over() -> Status {
    Status::already_exists("a newer stream of the same node has taken over")
}

/// The way to a stream.
struct Line {
    cut: oneshot::Sender<Status>,
    commands: mpsc::Sender<Command>,
}

impl Member {
    /// Not connected.
    pub fn new(record: NodeRecord) -> Self {
        let seat = Seat {
            node: Node::default(),
            address: String::new(),
            last_seen: None,
            counted: State::Offline,
            counted_troubles: Troubles::default(),
            stream: 0,
            line: None,
            is_removed: false,
        };
        Self {
            record,
            seat: Mutex::new(seat),
        }
    }

    /// Whatever stream it has. Not to be held for long.
    pub fn look<R>(&self, look: impl FnOnce(&mut Seat) -> R) -> R {
        look(&mut lock(&self.seat))
    }

    /// On behalf of a stream; `None` when it was taken over or cut.
    pub fn act<R>(&self, stream: u64, act: impl FnOnce(&mut Seat) -> R) -> Option<R> {
        let mut seat = lock(&self.seat);
        (seat.stream == stream && seat.line.is_some()).then(|| act(&mut seat))
    }

    /// A new stream takes the seat; the one before ends. Gives its number; `None` when the node was removed.
    pub fn sit(
        &self,
        cut: oneshot::Sender<Status>,
        commands: mpsc::Sender<Command>,
    ) -> Option<u64> {
        let mut seat = lock(&self.seat);
        if seat.is_removed {
            return None;
        }
        seat.cut(taken_over());
        seat.stream += 1;
        seat.line = Some(Line { cut, commands });
        Some(seat.stream)
    }

    /// A stream gives its seat back; false when it was not its any more.
    pub fn leave(&self, stream: u64) -> bool {
        let left = self.act(stream, |seat| {
            seat.node.close();
            seat.line = None;
        });
        left.is_some()
    }

    /// Ends the present stream, if there is one.
    pub fn cut(&self, why: Status) {
        lock(&self.seat).cut(why);
    }

    /// Ends the present stream and lets no other sit.
    pub fn remove(&self, why: Status) {
        let mut seat = lock(&self.seat);
        seat.is_removed = true;
        seat.cut(why);
    }

    /// Hands a question to the stream; in words why not.
    pub fn ask(&self, command: Command) -> Result<(), &'static str> {
        let seat = lock(&self.seat);
        let line = seat.line.as_ref().filter(|_| seat.node.is_connected());
        let line = line.ok_or("the node is not connected")?;
        line.commands
            .try_send(command)
            .map_err(|_| "too many requests wait for this node already")
    }
}
