//! The io_uring engine: multishot accept and receive, lease sends that complete in the submission, one enter per turn.
//!
//! Owns the kernel's ring, its buffer ring and the descriptors of all sockets. On the path of a message it is the first
//! and the last: [`Ring::turn`] submits what the last turn queued and waits, in the same system call. The calls between
//! two turns only take notes; nothing reaches the kernel before the next turn, except an FIN with nothing before it.
//!
//! # Invariants
//!
//! - **Memory named by a submission stays put until the submission returns.** Vectors of pieces, headers and addresses are
//!   built in full before the first entry that points into them, and cleared only when the submission queue is empty.
//! - **Lease sends are done when the submission returns.** They carry MSG_DONTWAIT, so the kernel never keeps one for
//!   later, and MSG_WAITALL, because with CQE_SKIP_SUCCESS alone a short send would complete in silence.
//! - **`in_flight` counts the operations whose last completion is due.** Memory they use is freed only when it is zero.
#![allow(unsafe_code)]

mod complete;
mod enter;
mod submit;

use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::CancelBuilder;
use io_uring::{IoUring, cqueue, opcode};
use rustix::net::SocketFlags;

use self::enter::{Enter, MessageHeader, SocketAddress};
use super::buffers::{KernelPool, Scratch};
use super::lifecycle::{self, Line, Note, Outbox, OwnedSend, OwnedSends, Sending, Slots, Token};
use super::socket::{self, Dial, Reserve};
use super::wake::EventWaker;
use super::{
    Event, Full, KeepAlive, Lease, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Wake,
};
use crate::clock::{self, Time};

/// Entries of the submission queue. When a turn queues more, it submits early, without waiting.
const SUBMISSIONS: u32 = 1024;

/// How long closing the ring waits for cancelled operations, in slices of 100 ms.
const DROP_SLICES: u32 = 20;

/// Where the receive of a socket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    /// Not asked for, or paused.
    Idle,
    /// To be armed by the next submission.
    Queued,
    /// Waiting in line for a free buffer.
    Waiting,
    /// In the kernel.
    Armed,
    /// In the kernel, cancelled by a pause; its last completion is due.
    Pausing,
    /// In the kernel, cancelled by a pause that was taken back; armed again after its last completion.
    Resuming,
    /// Over for good.
    Ended,
}

struct Socket {
    fd: OwnedFd,
    receiving: Receiving,
    /// True exactly while this socket has a place in the line for buffers.
    in_line: bool,
    /// True exactly while a note is due that answers a pause.
    pause_noted: bool,
    /// True exactly while a connect is in the kernel.
    connecting: bool,
    sending: Sending,
}

impl Socket {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            receiving: Receiving::Idle,
            in_line: false,
            pause_noted: false,
            connecting: false,
            sending: Sending::default(),
        }
    }
}

impl lifecycle::Socket for Socket {
    fn sending(&mut self) -> &mut Sending {
        &mut self.sending
    }

    fn answer_pause(&mut self) -> bool {
        self.pause_noted = false;
        self.receiving == Receiving::Idle
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    /// To be armed by the next submission.
    Queued,
    Armed,
    /// Resting until the time, after a failure.
    Resting(Time),
    /// Cancelled; its last completion is due, then the descriptor is closed.
    Stopping,
}

struct Listener {
    slot: ListenSlot,
    epoch: u32,
    fd: OwnedFd,
    is_unix: bool,
    accepting: Accepting,
}

/// The io_uring engine.
pub struct Uring {
    // Before `ring` in order of declaration: see `Drop`, which empties the ring first.
    sockets: Slots<Socket>,
    listeners: Vec<Listener>,
    epoch: u32,
    pool: ManuallyDrop<KernelPool>,
    owned: ManuallyDrop<OwnedSends>,
    scratch: Scratch,
    outbox: Outbox,
    /// Work noted for the next submission, in the order in which it is submitted.
    connects: Vec<(SocketId, SocketAddress)>,
    owned_queued: Vec<(u32, u32)>,
    receives: Vec<SocketId>,
    cancels: Vec<Token>,
    closes: Vec<OwnedFd>,
    fins: Vec<SocketId>,
    notes: Vec<Note>,
    line: Line,
    /// Memory that the entries being submitted point to; see the invariants.
    vectors: Vec<libc::iovec>,
    headers: Vec<MessageHeader>,
    addresses: Vec<SocketAddress>,
    completions: Vec<(Token, i32, u32)>,
    turn: u32,
    in_flight: usize,
    reserve: Reserve,
    waker: Arc<EventWaker>,
    wake_value: ManuallyDrop<Box<u64>>,
    wake_armed: bool,
    enter: Enter,
    /// Whether one enter can wait for a latency budget and then for one completion (IORING_FEAT_MIN_TIMEOUT).
    min_wait: bool,
    ring: IoUring,
    /// SINGLE_ISSUER: only the thread that made the ring may use it.
    not_send: PhantomData<*const ()>,
}

impl Uring {
    /// Makes a ring for the calling thread.
    pub fn new(config: &RingConfig) -> io::Result<Self> {
        // Each buffer and each slot can complete once in a turn, a slot that is closed and used again twice; listeners
        // come on top. Should it overflow all the same, the kernel keeps what does not fit and ends the multishots.
        let completions = u32::from(config.buffers)
            .saturating_add(config.sockets_max.saturating_mul(2))
            .max(2 * SUBMISSIONS);
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completions.checked_next_power_of_two().unwrap_or(u32::MAX))
            .build(SUBMISSIONS)?;
        let params = ring.params();
        if !(params.is_feature_nodrop()
            && params.is_feature_ext_arg()
            && params.is_feature_skip_cqe_on_success()
            && params.is_feature_submit_stable())
        {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel's io_uring lacks NODROP, EXT_ARG, CQE_SKIP or SUBMIT_STABLE",
            ));
        }
        let pool = KernelPool::new(config, &ring)?;
        let reserve = Reserve::new()?;
        let waker = Arc::new(EventWaker::new(false)?);
        // Last of all that can fail: the registration is given back only by `drop`.
        let enter = Enter::new(&ring)?;
        Ok(Self {
            sockets: Slots::new(config.sockets_max),
            listeners: Vec::new(),
            epoch: 0,
            pool: ManuallyDrop::new(pool),
            owned: ManuallyDrop::new(OwnedSends::new(config.sockets_max)),
            scratch: Scratch::default(),
            outbox: Outbox::default(),
            connects: Vec::new(),
            owned_queued: Vec::new(),
            receives: Vec::new(),
            cancels: Vec::new(),
            closes: Vec::new(),
            fins: Vec::new(),
            notes: Vec::new(),
            line: Line::default(),
            vectors: Vec::new(),
            headers: Vec::new(),
            addresses: Vec::new(),
            completions: Vec::new(),
            turn: 0,
            in_flight: 0,
            reserve,
            waker,
            wake_value: ManuallyDrop::new(Box::new(0)),
            wake_armed: false,
            enter,
            min_wait: ring.params().is_feature_min_timeout(),
            ring,
            not_send: PhantomData,
        })
    }
}

impl Ring for Uring {
    fn now(&self) -> Time {
        clock::monotonic()
    }

    fn enters(&self) -> u64 {
        self.enter.count()
    }

    fn listen(&mut self, listener: ListenSlot, socket: OwnedFd) -> io::Result<()> {
        if self.listening(listener).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        socket::set_nonblocking(socket.as_fd(), false)?;
        let is_unix = socket::local_address(socket.as_fd())?.is_none();
        self.epoch = self.epoch.wrapping_add(1);
        self.listeners.push(Listener {
            slot: listener,
            epoch: self.epoch,
            fd: socket,
            is_unix,
            accepting: Accepting::Queued,
        });
        Ok(())
    }

    fn stop_listening(&mut self, listener: ListenSlot) {
        let Some(at) = self.listening(listener) else {
            return;
        };
        let Some(found) = self.listeners.get_mut(at) else {
            return;
        };
        match found.accepting {
            Accepting::Armed => {
                found.accepting = Accepting::Stopping;
                self.cancels.push(Token::Accept {
                    index: u32::from(listener.0),
                    epoch: found.epoch,
                });
            }
            Accepting::Queued | Accepting::Resting(_) => {
                self.listeners.swap_remove(at);
            }
            Accepting::Stopping => {}
        }
    }

    fn connect(&mut self, target: &Target) -> Result<SocketId, Full> {
        if self.sockets.is_full() {
            return Err(Full);
        }
        match socket::begin_connect(target, SocketFlags::empty()) {
            Dial::Tcp(fd, address) => {
                let mut socket = Socket::new(fd);
                socket.connecting = true;
                let id = self.sockets.insert(socket)?;
                self.connects.push((id, SocketAddress::new(address)));
                Ok(id)
            }
            Dial::Unix(fd, connected) => {
                let id = self.sockets.insert(Socket::new(fd))?;
                self.notes.push(match connected {
                    Ok(()) => Note::Connected(id),
                    Err(errno) => Note::ConnectFailed(id, errno),
                });
                Ok(id)
            }
            Dial::Failed(fd, errno) => {
                let id = self.sockets.insert(Socket::new(fd))?;
                self.notes.push(Note::ConnectFailed(id, errno));
                Ok(id)
            }
            Dial::Full => Err(Full),
        }
    }

    fn receive(&mut self, socket: SocketId) {
        let Some(found) = self.sockets.get_mut(socket) else {
            return;
        };
        match found.receiving {
            Receiving::Idle if self.line.is_empty() => {
                found.receiving = Receiving::Queued;
                self.receives.push(socket);
            }
            Receiving::Idle => {
                found.receiving = Receiving::Waiting;
                if !found.in_line {
                    found.in_line = true;
                    self.line.push(socket);
                }
            }
            Receiving::Pausing => found.receiving = Receiving::Resuming,
            Receiving::Queued
            | Receiving::Waiting
            | Receiving::Armed
            | Receiving::Resuming
            | Receiving::Ended => {}
        }
    }

    fn pause(&mut self, socket: SocketId) {
        let Some(found) = self.sockets.get_mut(socket) else {
            return;
        };
        match found.receiving {
            Receiving::Armed => {
                found.receiving = Receiving::Pausing;
                self.cancels.push(Token::Receive(socket));
            }
            Receiving::Resuming => found.receiving = Receiving::Pausing,
            Receiving::Queued | Receiving::Waiting => {
                found.receiving = Receiving::Idle;
                if !found.pause_noted {
                    found.pause_noted = true;
                    self.notes.push(Note::Paused(socket));
                }
            }
            Receiving::Idle | Receiving::Pausing | Receiving::Ended => {}
        }
    }

    fn keep_alive(&mut self, socket: SocketId, keep_alive: KeepAlive) {
        if let Some(found) = self.sockets.get_mut(socket) {
            socket::keep_alive(found.fd.as_fd(), keep_alive);
        }
    }

    fn scratch(&mut self, bytes: &[u8]) -> Piece {
        self.scratch.add(bytes)
    }

    fn send(&mut self, socket: SocketId, pieces: &[Piece]) {
        if let Some(found) = self.sockets.get_mut(socket) {
            let fd = found.fd.as_raw_fd();
            let (pool, scratch) = (&self.pool, &mut self.scratch);
            self.outbox
                .add(socket, fd, &mut found.sending, pieces, pool, scratch);
        }
    }

    fn send_owned(&mut self, socket: SocketId, buffer: Vec<u8>, from: usize) {
        let Some(found) = self.sockets.get_mut(socket) else {
            return;
        };
        match self
            .owned
            .begin(&mut found.sending, OwnedSend::new(socket, buffer, from))
        {
            Ok(token) => self.owned_queued.push(token),
            Err((buffer, taken)) => self.notes.push(Note::SentOwned(socket, buffer, taken)),
        }
    }

    fn shutdown_write(&mut self, socket: SocketId) {
        let Some(found) = self.sockets.get_mut(socket) else {
            return;
        };
        found.sending.fin_wanted = true;
        if found.sending.take_fin() {
            shut_down(found);
        } else if found.sending.is_queued() {
            self.fins.push(socket);
        }
    }

    fn close(&mut self, socket: SocketId) {
        let Some(found) = self.sockets.remove(socket) else {
            return;
        };
        match found.receiving {
            Receiving::Armed => self.cancels.push(Token::Receive(socket)),
            Receiving::Idle
            | Receiving::Queued
            | Receiving::Waiting
            | Receiving::Pausing
            | Receiving::Resuming
            | Receiving::Ended => {}
        }
        if found.connecting {
            self.cancels.push(Token::Connect(socket));
        }
        if let Some((index, epoch)) = self.owned.in_flight(&found.sending) {
            self.cancels.push(Token::SendOwned { index, epoch });
        }
        // The descriptor stays open until the next submission, behind the sends of this turn that name it.
        self.closes.push(found.fd);
    }

    fn reset(&mut self, socket: SocketId) {
        if let Some(found) = self.sockets.get_mut(socket) {
            socket::reset_when_closed(found.fd.as_fd());
        }
        self.close(socket);
    }

    fn turn(
        &mut self,
        until: Option<Time>,
        latency_budget_micros: u32,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let before = events.len();
        loop {
            let now = clock::monotonic();
            let wake_at = self.rest_or_rearm(now, until);
            self.submit_notes()?;
            let mut waited = false;
            if !self.must_settle_first() {
                waited = true;
                self.wait(now, wake_at, latency_budget_micros)?;
            } else {
                self.enter_now()?;
            }
            self.reap(events);
            if !waited && events.len() == before {
                // The leases are back; arm who waited for them, and wait with all buffers at hand.
                self.submit_notes()?;
                self.wait(clock::monotonic(), wake_at, latency_budget_micros)?;
                self.reap(events);
            }
            if events.len() > before || until.is_some_and(|until| clock::monotonic() >= until) {
                return Ok(());
            }
        }
    }

    fn lease(&mut self, lease: Lease) -> &mut [u8] {
        self.pool.bytes(lease)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }
}

/// Sends FIN. It fails only when the connection is gone, which its receive tells.
fn shut_down(socket: &Socket) {
    let _ = rustix::net::shutdown(&socket.fd, rustix::net::Shutdown::Write);
}

fn owned_fd(result: i32) -> Option<OwnedFd> {
    // SAFETY: a non-negative result of an accept is a new descriptor that the kernel gave to us alone.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

impl Drop for Uring {
    /// Cancels all that is in flight and waits for it, because the kernel writes to memory that is freed here.
    fn drop(&mut self) {
        let _ = self.submit_notes().and_then(|()| self.enter_now());
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        let _ = self.push(cancel, Token::Ignored);
        for _ in 0..DROP_SLICES {
            self.collect();
            for (token, result, flags) in std::mem::take(&mut self.completions) {
                if matches!(token, Token::Accept { .. }) {
                    drop(owned_fd(result));
                }
                let ends = !matches!(token, Token::Send { .. } | Token::Ignored);
                self.ended_unless(cqueue::more(flags) || !ends);
            }
            let queued = self.ring.submission().len();
            if self.in_flight == 0 && queued == 0 {
                break;
            }
            let slice = Some(Duration::from_millis(100));
            if self.enter.enter(&self.ring, queued, 1, slice, 0).is_err() {
                break;
            }
        }
        self.enter.unregister(&self.ring);
        if self.in_flight == 0 {
            // SAFETY: nothing is in flight, so the kernel uses none of this any more; each is dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.pool) };
            // SAFETY: as above.
            unsafe { ManuallyDrop::drop(&mut self.owned) };
            // SAFETY: as above.
            unsafe { ManuallyDrop::drop(&mut self.wake_value) };
        }
        // Otherwise the memory is leaked on purpose: the kernel may still write to it.
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;

    /// A ring that receives on some sockets, and their clients.
    fn with_clients(count: usize) -> (Uring, Vec<TcpStream>) {
        let config = RingConfig {
            sockets_max: 64,
            buffers: 64,
            buffer_bytes: 64,
        };
        let mut ring = Uring::new(&config).unwrap();
        let listener = socket::listen_tcp("127.0.0.1:0".parse().unwrap(), 64).unwrap();
        let address = socket::local_address(listener.as_fd()).unwrap().unwrap();
        ring.listen(ListenSlot(0), listener).unwrap();
        let connect = |_| TcpStream::connect(address).unwrap();
        let clients: Vec<TcpStream> = (0..count).map(connect).collect();
        let mut accepted = 0;
        while accepted < count {
            let mut events = Vec::new();
            ring.turn(None, 0, &mut events).unwrap();
            for event in events {
                if let Event::Accepted { socket, .. } = event {
                    ring.receive(socket);
                    accepted += 1;
                }
            }
        }
        ring.turn(Some(ring.now()), 0, &mut Vec::new()).unwrap();
        (ring, clients)
    }

    #[test]
    fn kernels_without_minimum_wait_keep_the_latency_budget() {
        for min_wait in [true, false] {
            let (mut ring, mut clients) = with_clients(40);
            ring.min_wait &= min_wait;
            clients[0].write_all(b"first").unwrap();
            // Late, and enough to end a budget longer than anybody wants to wait.
            let late = std::thread::spawn(move || {
                for client in &mut clients[1..] {
                    client.write_all(b"late").unwrap();
                }
                clients
            });
            let mut events = Vec::new();
            ring.turn(None, 60_000_000, &mut events).unwrap();
            late.join().unwrap();
            let received = |event: &&Event| matches!(event, Event::Received { .. });
            assert!(events.iter().filter(received).count() >= 32, "{events:?}");
        }
    }

    #[test]
    fn more_work_than_the_submission_queue_holds_is_submitted_in_parts() {
        let (mut ring, _clients) = with_clients(2);
        let ids: Vec<SocketId> = (0..2).map(|index| SocketId { index, epoch: 0 }).collect();
        // Each pair leaves an arm and a cancel behind; far more than fit at once.
        let before = ring.enters();
        for _ in 0..SUBMISSIONS {
            for id in &ids {
                ring.cancels
                    .push(Token::Receive(SocketId { epoch: 7, ..*id }));
            }
        }
        let mut events = Vec::new();
        ring.turn(Some(ring.now()), 0, &mut events).unwrap();
        assert!(events.is_empty(), "{events:?}");
        assert!(ring.enters() - before >= 2);
        assert!(ring.ring.submission().is_empty());
    }

    #[test]
    fn both_legs_have_the_options_of_keep_alive() {
        let mut ring = Uring::new(&RingConfig {
            sockets_max: 4,
            buffers: 4,
            buffer_bytes: 4096,
        })
        .unwrap();
        socket::tests::keep_alive_on_both_legs(&mut ring, |ring, id| {
            socket::keep_alive_of(ring.sockets.get_mut(id).unwrap().fd.as_fd())
        });
    }
}
