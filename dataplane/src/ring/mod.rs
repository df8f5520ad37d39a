//! Sockets and bytes: three engines (io_uring, epoll, simulated) behind one surface.
//!
//! Owns descriptors, kernel buffers and every operation in flight. It does not know what the bytes mean, keeps no
//! deadlines and never blocks except in [`Ring::turn`]. It is the only module that may hold `unsafe`.
//!
//! # Invariants
//!
//! - **A lease never survives its turn.** The bytes of [`Event::Received`] are valid until the next call of
//!   [`Ring::turn`], which first submits the sends that refer to them, and only then gives the buffers back.
//! - **At most one send per socket is in flight.** The caller joins what a socket is owed in a turn into one
//!   [`Ring::send`]; while a [`Ring::send_owned`] is in flight it appends to its own backlog instead.
//! - **After [`Ring::close`] nothing more is heard of that [`SocketId`]**, whatever the kernel still completes. Memory of
//!   an owned send stays put until the kernel is done with it.
//! - **A pause is answered once**, by [`Event::Paused`] or, when the receive ended by itself, by [`Event::Ended`]; not at all
//!   when [`Ring::receive`] took it back or the socket was closed before.
//! - **FIN comes last.** It waits for the send of its turn, for an owned send in flight, and for what came back as short
//!   until owned sends have taken that much.
//! - **Short sends are told first.** All [`Event::SendShort`] and [`Event::SendFailed`] of a turn come before its other
//!   events, with what the socket did not take already copied out of the leases.

mod buffers;
mod epoll;
mod lifecycle;
mod probe;
pub mod simulated;
mod socket;
mod uring;
mod wake;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

pub use self::epoll::Epoll;
pub use self::probe::{Decision, Engine, EngineChoice, probe};
pub use self::socket::{listen_tcp, listen_unix, local_address};
pub use self::uring::Uring;
use crate::clock::Time;

/// One open socket of this ring. The epoch tells a reused index apart; stale ids are ignored everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Index, dense, bounded by `RingConfig::sockets_max`; the caller may use it for tables of its own.
    pub index: u32,
    /// Reuse counter of the index.
    pub epoch: u32,
}

/// A listening socket handed to the ring, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenSlot(pub u16);

/// A kernel buffer with received bytes, valid until the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Buffer number.
    pub buffer: u32,
    /// Bytes received.
    pub len: u32,
}

/// Part of a send: bytes that the ring already holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A range of a lease of this turn.
    Lease { buffer: u32, range: Range<u32> },
    /// Bytes copied by [`Ring::scratch`] this turn.
    Scratch { chunk: u32, range: Range<u32> },
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix stream socket.
    Unix(PathBuf),
}

/// What the kernel does to find out that a peer's machine is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence after which it asks, in whole seconds; at least one.
    pub idle: Duration,
    /// How long a peer may answer nothing, neither questions nor data, before the connection fails.
    pub give_up: Duration,
}

impl KeepAlive {
    /// Asks after `idle`, and gives up half of that later, but never before `write_stall`: how long a peer may leave data where it
    /// is is decided by the one deadline that there is for it. `None` when `idle` is zero, which is off.
    pub fn new(idle: Duration, write_stall: Duration) -> Option<Self> {
        let keep_alive = Self {
            idle,
            give_up: (idle + idle / 2 + QUESTION_MIN).max(write_stall),
        };
        (!idle.is_zero()).then_some(keep_alive)
    }

    /// Between two questions: three fit in before it gives up.
    fn interval(self) -> Duration {
        (self.idle / 6).max(QUESTION_MIN)
    }
}

/// The kernel's shortest time between two questions.
const QUESTION_MIN: Duration = Duration::from_secs(1);

/// Why no more bytes will be received on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer finished sending (FIN). Also how a reset ends that a send was told of first.
    Eof,
    /// The connection failed, by errno.
    Failed(i32),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A [`Ring::send`] was taken only in part (possibly not at all); `rest` is what is still owed, in order.
    SendShort { socket: SocketId, rest: Vec<u8> },
    /// A send failed for good; the socket is still open for [`Ring::close`].
    SendFailed { socket: SocketId, errno: i32 },
    /// A [`Ring::send_owned`] ended: how many bytes from its start were taken (at least 1, or 0 of
    /// nothing), or errno. The buffer comes back.
    SentOwned {
        socket: SocketId,
        buffer: Vec<u8>,
        taken: Result<usize, i32>,
    },
    /// A connection was accepted. Nothing is received on it until [`Ring::receive`]. A Unix peer counts as 127.0.0.1 with
    /// port 0, an IPv4-mapped IPv6 address as IPv4.
    Accepted {
        listener: ListenSlot,
        socket: SocketId,
        peer: SocketAddr,
    },
    /// Accepting failed. The ring accepts again by itself: after a pause (EMFILE, ENFILE, ENOMEM: meanwhile what waited was
    /// turned away), or at once (ENOBUFS: this one connection found no free slot and was closed).
    AcceptFailed { listener: ListenSlot, errno: i32 },
    /// A [`Ring::connect`] succeeded.
    Connected { socket: SocketId },
    /// A [`Ring::connect`] failed. The id stays until [`Ring::close`]: a connect that begins before this event is looked at
    /// must not get it.
    ConnectFailed { socket: SocketId, errno: i32 },
    /// Bytes arrived.
    Received { socket: SocketId, lease: Lease },
    /// No more bytes will arrive.
    Ended { socket: SocketId, end: End },
    /// A [`Ring::pause`] took effect: nothing is received until [`Ring::receive`]. Bytes may have come before this.
    Paused { socket: SocketId },
    /// A [`Waker`] was used since the last turn.
    Woken,
}

/// No free socket slot or descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Wakes a ring from another thread; cheap to clone, coalesces.
pub trait Wake: Send + Sync {
    /// Makes the current or next [`Ring::turn`] return with [`Event::Woken`].
    fn wake(&self);
}

/// The surface of an engine. Made on the thread that uses it; not `Send` once made.
pub trait Ring {
    /// Reads the clock of this engine.
    fn now(&self) -> Time;

    /// Starts accepting on a bound, listening, non-blocking socket.
    fn listen(&mut self, listener: ListenSlot, socket: OwnedFd) -> io::Result<()>;
    /// Stops accepting and closes the descriptor. Connections that were accepted by then are still delivered.
    fn stop_listening(&mut self, listener: ListenSlot);

    /// Begins a connection.
    fn connect(&mut self, target: &Target) -> Result<SocketId, Full>;
    /// Receives until paused or ended. No effect when receiving already, or after [`Event::Ended`]. Takes back a pause that
    /// was not answered yet. While buffers are short, sockets wait in turn.
    fn receive(&mut self, socket: SocketId);
    /// Stops receiving; what arrived before is still delivered, then [`Event::Paused`]. No effect, and no answer, when not
    /// receiving.
    fn pause(&mut self, socket: SocketId);

    /// Makes the kernel find out that the peer's machine is gone: the connection then fails as if it were reset. No effect on
    /// sockets that know no such thing (Unix).
    fn keep_alive(&mut self, socket: SocketId, keep_alive: KeepAlive);

    /// Copies bytes into memory that stays valid until the sends of this turn are done.
    fn scratch(&mut self, bytes: &[u8]) -> Piece;
    /// Sends the pieces in order, without waiting. Silent when everything is taken; see [`Event::SendShort`].
    ///
    /// A second call for the same socket in one turn joins the first. While an owned send is in flight nothing is sent and
    /// all of it comes back as short. Pieces that name nothing of this turn are left out.
    fn send(&mut self, socket: SocketId, pieces: &[Piece]);
    /// Sends `buffer[from..]`, waiting for room; completes after any progress with [`Event::SentOwned`]. Must not follow a
    /// [`Ring::send`] of the same socket in the same turn.
    fn send_owned(&mut self, socket: SocketId, buffer: Vec<u8>, from: usize);
    /// Sends FIN after what was sent before; see the invariants. Asking again has no effect.
    fn shutdown_write(&mut self, socket: SocketId);
    /// Closes, after the sends of this turn, whose rest is lost if they fall short; see the invariants.
    fn close(&mut self, socket: SocketId);
    /// Closes like [`Ring::close`], with a reset in the place of FIN where the kernel has one (TCP): a peer that has not accepted
    /// the connection yet will not find it.
    fn reset(&mut self, socket: SocketId);

    /// One turn: submits, waits until something happens or `until` has passed (`None`: no limit), and appends events.
    ///
    /// `latency_budget_micros` above 0 lets the engine wait that long for further events, unless many sockets are ready before.
    fn turn(
        &mut self,
        until: Option<Time>,
        latency_budget_micros: u32,
        events: &mut Vec<Event>,
    ) -> io::Result<()>;

    /// The bytes of a lease of this turn.
    fn lease(&mut self, lease: Lease) -> &mut [u8];

    /// How often this engine has waited in the kernel (or, simulated, would have).
    fn enters(&self) -> u64;

    /// A waker for other threads.
    fn waker(&self) -> std::sync::Arc<dyn Wake>;
}

/// Sizes of a ring. All are bounds.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Sockets open at once (two for each session).
    pub sockets_max: u32,
    /// Receive buffers; a power of two.
    pub buffers: u16,
    /// Bytes of each receive buffer.
    pub buffer_bytes: u32,
}
