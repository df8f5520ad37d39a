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

use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::{self, Flags};
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, cqueue, opcode};
use rustix::net::SocketFlags;

use super::buffers::{BUFFER_GROUP, KernelPool, Scratch, resolve};
use super::enter::{Enter, MessageHeader, SocketAddress, message_header};
use super::lifecycle::{Line, Outbox, OwnedSend, OwnedSends, PIECES_MAX, Sending, Slots, Token};
use super::socket::{self, ACCEPT_PAUSE, Dial, Reserve};
use super::wake::EventWaker;
use super::{End, Event, Full, Lease, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Wake};
use crate::clock::{self, Time};

/// Entries of the submission queue. When a turn queues more, it submits early, without waiting.
const SUBMISSIONS: u32 = 1024;

/// Completions that end a latency budget before its time.
const BUDGET_COMPLETIONS: u32 = 32;

/// A turn gives its leases back before it waits when fewer than one in this many buffers is left.
const BUFFERS_LOW_FRACTION: usize = 4;

/// How often a submission that the kernel did not take whole is tried again before the turn fails.
const SUBMIT_TRIES: u32 = 8;

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
    generation: u32,
    fd: OwnedFd,
    is_unix: bool,
    accepting: Accepting,
}

/// Told at the next turn, if the socket still lives.
enum Note {
    Connected(SocketId),
    ConnectFailed(SocketId, i32),
    Paused(SocketId),
    SentOwned(SocketId, Vec<u8>, Result<usize, i32>),
}

/// The io_uring engine.
pub struct Uring {
    // Before `ring` in order of declaration: see `Drop`, which empties the ring first.
    sockets: Slots<Socket>,
    listeners: Vec<Listener>,
    generation: u32,
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
        let enter = Enter::new(&ring)?;
        Ok(Self {
            sockets: Slots::new(config.sockets_max),
            listeners: Vec::new(),
            generation: 0,
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
            reserve: Reserve::new()?,
            waker: Arc::new(EventWaker::new(false)?),
            wake_value: ManuallyDrop::new(Box::new(0)),
            wake_armed: false,
            enter,
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
        self.generation = self.generation.wrapping_add(1);
        self.listeners.push(Listener {
            slot: listener,
            generation: self.generation,
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
                    epoch: found.generation,
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
        if let Some(index) = found.sending.owned_index()
            && let Some(epoch) = self.owned.epoch(index)
        {
            self.cancels.push(Token::SendOwned { index, epoch });
        }
        // The descriptor stays open until the next submission, behind the sends of this turn that name it.
        self.closes.push(found.fd);
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

/// What a turn submits.
impl Uring {
    fn listening(&self, slot: ListenSlot) -> Option<usize> {
        self.listeners
            .iter()
            .position(|found| found.slot == slot && found.accepting != Accepting::Stopping)
    }

    /// Ends the rest of listeners whose time has come, and says when to wake for the others.
    fn rest_or_rearm(&mut self, now: Time, until: Option<Time>) -> Option<Time> {
        let mut wake_at = until;
        for listener in &mut self.listeners {
            if let Accepting::Resting(at) = listener.accepting {
                if at <= now {
                    listener.accepting = Accepting::Queued;
                } else {
                    wake_at = Some(wake_at.map_or(at, |until| until.min(at)));
                }
            }
        }
        wake_at
    }

    /// Whether this turn must learn how its sends went, or give its leases back, before it may wait.
    fn must_settle_first(&self) -> bool {
        !self.fins.is_empty()
            || self.outbox.has_refused()
            || !self.line.is_empty()
            || self.pool.free() < self.pool.count() / BUFFERS_LOW_FRACTION
    }

    /// Turns all notes into submission entries. Sends come first and closes last.
    fn submit_notes(&mut self) -> io::Result<()> {
        self.submit_sends()?;
        self.submit_connects()?;
        for at in 0..self.owned_queued.len() {
            if let Some(&(index, epoch)) = self.owned_queued.get(at) {
                self.submit_owned(index, epoch)?;
            }
        }
        self.owned_queued.clear();
        self.submit_accepts()?;
        self.submit_receives()?;
        for at in 0..self.cancels.len() {
            if let Some(token) = self.cancels.get(at).copied() {
                let entry = opcode::AsyncCancel::new(token.encode()).build();
                self.push(entry.flags(Flags::SKIP_SUCCESS), Token::Ignored)?;
            }
        }
        self.cancels.clear();
        while let Some(fd) = self.closes.pop() {
            let entry = opcode::Close::new(Fd(fd.as_raw_fd())).build();
            self.push(entry.flags(Flags::SKIP_SUCCESS), Token::Ignored)?;
            // The kernel owns the descriptor with the entry; only a ring that dies in between would leave it open.
            let _ = fd.into_raw_fd();
        }
        if !self.wake_armed {
            self.arm_wake()?;
        }
        Ok(())
    }

    fn submit_sends(&mut self) -> io::Result<()> {
        if self.outbox.sends().is_empty() || self.outbox.submitted {
            return Ok(());
        }
        self.outbox.submitted = true;
        // Nothing may move once an entry points to it, so both vectors have their full size before the first entry.
        self.vectors.clear();
        self.headers.clear();
        self.vectors.reserve(self.outbox.pieces_len());
        self.headers.reserve(self.outbox.sends().len());
        for at in 0..self.outbox.sends().len() {
            if let Some((entry, token)) = self.send_entry(at) {
                self.push(entry, token)?;
            }
        }
        Ok(())
    }

    /// The entry for the send `at` of the outbox.
    fn send_entry(&mut self, at: usize) -> Option<(squeue::Entry, Token)> {
        const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let send = self.outbox.sends().get(at)?;
        let token = Token::Send {
            index: u32::try_from(at).ok()?,
            epoch: self.turn,
        };
        let pieces = self.outbox.pieces(send);
        let fd = Fd(send.fd);
        let entry = if let [piece] = pieces {
            let bytes = resolve(&self.pool, &self.scratch, piece)?;
            let len = u32::try_from(bytes.len()).ok()?;
            opcode::Send::new(fd, bytes.as_ptr(), len)
                .flags(FLAGS)
                .build()
        } else {
            let first = self.vectors.len();
            for piece in pieces.iter().take(PIECES_MAX) {
                let bytes = resolve(&self.pool, &self.scratch, piece)?;
                self.vectors.push(libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                });
            }
            let vectors = self.vectors.get_mut(first..)?;
            debug_assert!(self.headers.len() < self.headers.capacity());
            self.headers.push(message_header(vectors));
            let header = self.headers.last()?;
            opcode::SendMsg::new(fd, header.as_ptr())
                .flags(FLAGS.cast_unsigned())
                .build()
        };
        Some((entry.flags(Flags::SKIP_SUCCESS), token))
    }

    fn submit_connects(&mut self) -> io::Result<()> {
        if self.connects.is_empty() {
            return Ok(());
        }
        self.addresses.clear();
        self.addresses.reserve(self.connects.len());
        let connects = std::mem::take(&mut self.connects);
        for &(id, address) in &connects {
            let Some(socket) = self.sockets.get(id) else {
                continue;
            };
            let fd = Fd(socket.fd.as_raw_fd());
            self.addresses.push(address);
            if let Some(address) = self.addresses.last() {
                let entry = opcode::Connect::new(fd, address.as_ptr(), address.len()).build();
                self.push(entry, Token::Connect(id))?;
                self.in_flight += 1;
            }
        }
        self.connects = connects;
        self.connects.clear();
        Ok(())
    }

    fn submit_owned(&mut self, index: u32, epoch: u32) -> io::Result<()> {
        let Some(send) = self.owned.get(index, epoch) else {
            return Ok(());
        };
        let Some(socket) = self.sockets.get(send.socket) else {
            // Closed before it was submitted: the kernel never saw the buffer.
            self.owned.remove(index, epoch);
            return Ok(());
        };
        let bytes = send.bytes();
        // A short send is progress and completes; so what does not fit the length is simply left for the next.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1);
        let entry = opcode::Send::new(Fd(socket.fd.as_raw_fd()), bytes.as_ptr(), len)
            .flags(libc::MSG_NOSIGNAL)
            .build();
        self.push(entry, Token::SendOwned { index, epoch })?;
        self.in_flight += 1;
        Ok(())
    }

    fn submit_accepts(&mut self) -> io::Result<()> {
        for at in 0..self.listeners.len() {
            let Some(listener) = self.listeners.get_mut(at) else {
                continue;
            };
            if listener.accepting != Accepting::Queued {
                continue;
            }
            listener.accepting = Accepting::Armed;
            let token = Token::Accept {
                index: u32::from(listener.slot.0),
                epoch: listener.generation,
            };
            let entry = opcode::AcceptMulti::new(Fd(listener.fd.as_raw_fd()))
                .flags(libc::SOCK_CLOEXEC)
                .build();
            self.push(entry, token)?;
            self.in_flight += 1;
        }
        Ok(())
    }

    /// Arms the receives asked for, and as many of those in line as there are free buffers.
    fn submit_receives(&mut self) -> io::Result<()> {
        for at in 0..self.receives.len() {
            if let Some(id) = self.receives.get(at).copied() {
                self.submit_receive(id, Receiving::Queued)?;
            }
        }
        self.receives.clear();
        let mut free = self.pool.free();
        while free > 0
            && let Some(id) = self.line.pop()
        {
            let Some(socket) = self.sockets.get_mut(id) else {
                continue;
            };
            socket.in_line = false;
            if socket.receiving == Receiving::Waiting {
                free -= 1;
                self.submit_receive(id, Receiving::Waiting)?;
            }
        }
        Ok(())
    }

    fn submit_receive(&mut self, id: SocketId, expected: Receiving) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(id) else {
            return Ok(());
        };
        if socket.receiving != expected {
            return Ok(());
        }
        socket.receiving = Receiving::Armed;
        let fd = Fd(socket.fd.as_raw_fd());
        self.push(
            opcode::RecvMulti::new(fd, BUFFER_GROUP).build(),
            Token::Receive(id),
        )?;
        self.in_flight += 1;
        Ok(())
    }

    fn arm_wake(&mut self) -> io::Result<()> {
        let fd = Fd(self.waker.fd().as_raw_fd());
        let value: *mut u64 = &raw mut **self.wake_value;
        self.push(opcode::Read::new(fd, value.cast(), 8).build(), Token::Wake)?;
        self.in_flight += 1;
        self.wake_armed = true;
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) -> io::Result<()> {
        let entry = entry.user_data(token.encode());
        if self.ring.submission().is_full() {
            self.enter_now()?;
        }
        // SAFETY: what an entry points to stays put until its submission returns (vectors, headers, addresses, leases,
        // scratch) or until its completion (owned sends, the value of the waker, the pool): see the invariants.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue stays full"))
    }
}

/// What a turn waits for and hears.
impl Uring {
    /// Submits without waiting, until the queue is empty.
    fn enter_now(&mut self) -> io::Result<()> {
        for _ in 0..SUBMIT_TRIES {
            let queued = self.ring.submission().len();
            self.enter
                .enter(&self.ring, queued, 0, Some(Duration::ZERO), 0)?;
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            // The kernel had no memory for a request, or wants its completions read.
            self.collect();
        }
        Err(io::Error::other("the kernel does not take submissions"))
    }

    /// Submits, and waits until something completed or `until`.
    fn wait(&mut self, now: Time, until: Option<Time>, budget_micros: u32) -> io::Result<()> {
        let timeout = until.map(|until| until.since(now));
        let nothing_to_wait_for = !self.notes.is_empty()
            || !self.completions.is_empty()
            || timeout.is_some_and(|timeout| timeout.is_zero());
        if nothing_to_wait_for {
            return self.enter_now();
        }
        let queued = self.ring.submission().len();
        if budget_micros == 0 {
            self.enter.enter(&self.ring, queued, 1, timeout, 0)?;
        } else if self.ring.params().is_feature_min_timeout() {
            let want = BUDGET_COMPLETIONS;
            // The kernel would wait for the whole budget, even where the timeout is shorter.
            let least = timeout.map_or(u128::MAX, |timeout| timeout.as_micros());
            let budget_micros =
                u32::try_from(least).map_or(budget_micros, |least| budget_micros.min(least));
            self.enter
                .enter(&self.ring, queued, want, timeout, budget_micros)?;
        } else {
            self.enter.enter(&self.ring, queued, 1, timeout, 0)?;
            if !self.ring.completion().is_empty() {
                let budget = Duration::from_micros(u64::from(budget_micros));
                let queued = self.ring.submission().len();
                let want = BUDGET_COMPLETIONS;
                self.enter
                    .enter(&self.ring, queued, want, Some(budget), 0)?;
            }
        }
        if self.ring.submission().is_empty() {
            Ok(())
        } else {
            self.enter_now()
        }
    }

    /// Takes the completions out of the kernel's queue.
    fn collect(&mut self) {
        let completion = self.ring.completion();
        self.completions.extend(completion.map(|entry| {
            (
                Token::decode(entry.user_data()),
                entry.result(),
                entry.flags(),
            )
        }));
    }

    /// Tells what completed: first the sends, then, with the leases back in the kernel, the rest.
    fn reap(&mut self, events: &mut Vec<Event>) {
        self.collect();
        self.settle_sends(events);
        let completions = std::mem::take(&mut self.completions);
        for &(token, result, flags) in &completions {
            self.complete(token, result, flags, events);
        }
        self.completions = completions;
        self.completions.clear();
        for note in std::mem::take(&mut self.notes) {
            self.tell(note, events);
        }
    }

    fn settle_sends(&mut self, events: &mut Vec<Event>) {
        if !self.outbox.is_empty() {
            for &(token, result, _) in &self.completions {
                if let Token::Send { index, epoch } = token
                    && epoch == self.turn
                {
                    let outcome = usize::try_from(result).map_err(|_| -result);
                    let socket = self
                        .outbox
                        .sends()
                        .get(index as usize)
                        .map(|send| send.socket);
                    let socket = socket.and_then(|socket| self.sockets.get_mut(socket));
                    let sending = socket.map(|socket| &mut socket.sending);
                    let (pool, scratch) = (&self.pool, &self.scratch);
                    self.outbox
                        .settle(index, outcome, sending, pool, scratch, events);
                }
            }
            let sockets = &mut self.sockets;
            self.outbox.clear(
                |id| {
                    sockets
                        .get_mut(id)
                        .map(|found| found.sending.unqueue())
                        .is_some()
                },
                events,
            );
            for id in self.fins.drain(..) {
                if let Some(found) = self.sockets.get_mut(id)
                    && found.sending.take_fin()
                {
                    shut_down(found);
                }
            }
        }
        self.turn = self.turn.wrapping_add(1);
        self.scratch.clear();
        self.pool.give_back();
    }

    fn tell(&mut self, note: Note, events: &mut Vec<Event>) {
        match note {
            Note::Connected(socket) if self.sockets.get(socket).is_some() => {
                events.push(Event::Connected { socket });
            }
            Note::ConnectFailed(socket, errno) => {
                if self.sockets.remove(socket).is_some() {
                    events.push(Event::ConnectFailed { socket, errno });
                }
            }
            Note::Paused(socket) => {
                if let Some(found) = self.sockets.get_mut(socket) {
                    found.pause_noted = false;
                    // A receive that was asked for since has taken the pause back.
                    if found.receiving == Receiving::Idle {
                        events.push(Event::Paused { socket });
                    }
                }
            }
            Note::SentOwned(socket, buffer, taken) if self.sockets.get(socket).is_some() => {
                events.push(Event::SentOwned {
                    socket,
                    buffer,
                    taken,
                });
            }
            Note::Connected(_) | Note::SentOwned(..) => {}
        }
    }

    fn complete(&mut self, token: Token, result: i32, flags: u32, events: &mut Vec<Event>) {
        let more = cqueue::more(flags);
        match token {
            Token::Accept { epoch, .. } => {
                self.ended_unless(more);
                self.accepted(epoch, result, more, events);
            }
            Token::Receive(socket) => {
                self.ended_unless(more);
                self.received(socket, result, flags, more, events);
            }
            Token::Connect(socket) => {
                self.ended_unless(more);
                self.connected(socket, result, events);
            }
            Token::SendOwned { index, epoch } => {
                self.ended_unless(more);
                self.sent_owned(index, epoch, result, events);
            }
            Token::Wake => {
                self.ended_unless(more);
                self.wake_armed = false;
                if result >= 0 {
                    self.waker.take();
                    events.push(Event::Woken);
                }
            }
            Token::Send { .. } | Token::Ignored => {}
        }
    }

    fn ended_unless(&mut self, more: bool) {
        if !more {
            debug_assert!(self.in_flight > 0);
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    fn accepted(&mut self, generation: u32, result: i32, more: bool, events: &mut Vec<Event>) {
        let fd = owned_fd(result);
        let at = self
            .listeners
            .iter()
            .position(|found| found.generation == generation);
        let Some(listener) = at.and_then(|at| self.listeners.get_mut(at)) else {
            return;
        };
        let (slot, is_unix) = (listener.slot, listener.is_unix);
        if !more {
            self.accept_ended(generation, result, events);
        }
        let Some(fd) = fd else {
            return;
        };
        let peer = if is_unix {
            Some(socket::peer_address(None))
        } else {
            socket::peer_of(fd.as_fd())
        };
        let Some(peer) = peer else {
            return; // reset before it was accepted; dropping it closes it
        };
        match self.sockets.insert(Socket::new(fd)) {
            Ok(socket) => events.push(Event::Accepted {
                listener: slot,
                socket,
                peer,
            }),
            Err(Full) => events.push(Event::AcceptFailed {
                listener: slot,
                errno: libc::ENOBUFS,
            }),
        }
    }

    /// The multishot accept of a listener is over: closes it if it was stopped, else accepts again, at once or later.
    fn accept_ended(&mut self, generation: u32, result: i32, events: &mut Vec<Event>) {
        let at = self
            .listeners
            .iter()
            .position(|found| found.generation == generation);
        let Some((at, listener)) = at.and_then(|at| Some((at, self.listeners.get_mut(at)?))) else {
            return;
        };
        if listener.accepting == Accepting::Stopping {
            self.listeners.swap_remove(at);
            return;
        }
        match -result {
            errno if errno <= 0 => listener.accepting = Accepting::Queued,
            libc::ECONNABORTED | libc::EINTR | libc::EPROTO => {
                listener.accepting = Accepting::Queued;
            }
            errno => {
                if matches!(errno, libc::EMFILE | libc::ENFILE) {
                    self.reserve.turn_away(listener.fd.as_fd());
                }
                listener.accepting = Accepting::Resting(clock::monotonic().after(ACCEPT_PAUSE));
                events.push(Event::AcceptFailed {
                    listener: listener.slot,
                    errno,
                });
            }
        }
    }

    fn received(
        &mut self,
        id: SocketId,
        result: i32,
        flags: u32,
        more: bool,
        events: &mut Vec<Event>,
    ) {
        let buffer = cqueue::buffer_select(flags);
        let Some(socket) = self.sockets.get_mut(id) else {
            if let Some(buffer) = buffer {
                self.pool.discard(buffer);
            }
            return;
        };
        if let Some(buffer) = buffer {
            match u32::try_from(result) {
                Ok(len) if len > 0 => {
                    if let Some(lease) = self.pool.lend(buffer, len) {
                        events.push(Event::Received { socket: id, lease });
                    }
                }
                Ok(_) | Err(_) => self.pool.discard(buffer),
            }
        }
        if more {
            return;
        }
        let was = socket.receiving;
        let end = match result {
            0 => Some(End::Eof),
            1.. => None,
            _ => match -result {
                libc::ENOBUFS | libc::EINTR | libc::EAGAIN => None,
                libc::ECANCELED if was != Receiving::Armed => None,
                errno => Some(End::Failed(errno)),
            },
        };
        if let Some(end) = end {
            socket.receiving = Receiving::Ended;
            events.push(Event::Ended { socket: id, end });
        } else if was == Receiving::Pausing {
            socket.receiving = Receiving::Idle;
            events.push(Event::Paused { socket: id });
        } else if result == -libc::ENOBUFS || !self.line.is_empty() {
            socket.receiving = Receiving::Waiting;
            if !socket.in_line {
                socket.in_line = true;
                self.line.push(id);
            }
        } else {
            socket.receiving = Receiving::Queued;
            self.receives.push(id);
        }
    }

    fn connected(&mut self, id: SocketId, result: i32, events: &mut Vec<Event>) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        socket.connecting = false;
        if result >= 0 {
            events.push(Event::Connected { socket: id });
        } else if self.sockets.remove(id).is_some() {
            events.push(Event::ConnectFailed {
                socket: id,
                errno: -result,
            });
        }
    }

    fn sent_owned(&mut self, index: u32, epoch: u32, result: i32, events: &mut Vec<Event>) {
        let Some(send) = self.owned.remove(index, epoch) else {
            return;
        };
        let Some(socket) = self.sockets.get_mut(send.socket) else {
            return;
        };
        let taken = usize::try_from(result).map_err(|_| -result);
        socket.sending.end_owned(taken);
        if socket.sending.take_fin() {
            shut_down(socket);
        }
        events.push(Event::SentOwned {
            socket: send.socket,
            buffer: send.buffer,
            taken,
        });
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
