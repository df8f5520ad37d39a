//! One connection of a session: is it read, what is it owed, is it closing.

use super::backlog::Backlog;
use crate::clock::Time;
use crate::ring::SocketId;

/// See the module documentation.
pub(super) struct Leg {
    /// `None` before a connection is begun and after it was closed.
    pub(super) socket: Option<SocketId>,
    /// While closing: when to close without waiting longer.
    pub(super) until: Time,
    /// Bytes the socket did not take. `Some` exactly while there are any: every new byte is then appended here.
    pub(super) backlog: Option<Box<Backlog>>,
    /// The turn's pieces for this socket, in the shard's outbox. Empty whenever there is a backlog.
    pub(super) pieces: Chain,
    pub(super) reading: Reading,
    pub(super) closing: Closing,
    /// True unless the session asked to pause.
    pub(super) wanted: bool,
    /// True exactly when backpressure holds reading back.
    pub(super) held: bool,
}

/// What the ring was told about reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// There is no connection yet.
    Unconnected,
    /// Not reading.
    Idle,
    /// Reading.
    Receiving,
    /// Asked to pause, not answered yet.
    Pausing,
    /// Nothing more will come.
    Ended,
}

/// How far a close is. Send, shutdown(write), discard until FIN or the deadline, close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// It is not closing.
    Not,
    /// What is owed is being sent.
    Flushing,
    /// FIN was sent; what comes is discarded.
    Lingering,
}

/// A list of pieces in the outbox, by their numbers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl Chain {
    pub(super) const EMPTY: Self = Self {
        first: u32::MAX,
        last: u32::MAX,
    };
}

impl Leg {
    /// A leg without a connection.
    pub(super) fn none() -> Self {
        Self {
            socket: None,
            until: Time(u64::MAX),
            backlog: None,
            pieces: Chain::EMPTY,
            reading: Reading::Unconnected,
            closing: Closing::Not,
            wanted: true,
            held: false,
        }
    }

    /// A leg that is connected already.
    pub(super) fn connected(socket: SocketId) -> Self {
        Self {
            socket: Some(socket),
            reading: Reading::Idle,
            ..Self::none()
        }
    }

    /// Bytes of the backlog.
    pub(super) fn backlog_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.len())
    }
}
