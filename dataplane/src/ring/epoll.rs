//! The epoll engine: the same results from the same calls where io_uring is not to be had.
//!
//! Owns an epoll instance, its own receive buffers and the descriptors of all sockets. Sockets are registered once, edge
//! triggered, and the engine remembers what they are ready for; so pausing and resuming cost no system call. Sends run at
//! the start of [`Ring::turn`], exactly when io_uring would submit them, so leases live equally long.
//!
//! # Invariants
//!
//! - **`readable` is true from an edge until a receive finds nothing**, also while the socket is not receiving.
//! - **A socket is in `ready` at most once**, exactly while `in_ready` is true.
//! - **No socket starves another**: at most [`READS_PER_TURN`] buffers for each in a turn, then it goes to the back.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};
use smallvec::SmallVec;

use super::buffers::{Pool, Scratch, UserPool, resolve};
use super::lifecycle::{Line, Outbox, OwnedSend, OwnedSends, Sending, Slots, Token};
use super::socket::{self, ACCEPT_PAUSE, Dial, Reserve};
use super::wake::EventWaker;
use super::{End, Event, Full, Lease, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Wake};
use crate::clock::{self, Time};

/// Buffers that one socket may fill in one turn.
const READS_PER_TURN: usize = 8;

/// Connections that one listener may accept in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Readiness events taken by one wait.
const EVENTS_PER_WAIT: usize = 1024;

/// Pieces in one system call; on the stack, so bounded.
const PIECES_PER_CALL: usize = 64;

/// Events that end a latency budget before its time.
const BUDGET_EVENTS: usize = 32;

/// Where the receive of a socket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    /// Not asked for, or paused.
    Idle,
    Active,
    /// Waiting in line for a free buffer.
    Waiting,
    /// Over for good.
    Ended,
}

struct Socket {
    fd: OwnedFd,
    connecting: bool,
    receiving: Receiving,
    readable: bool,
    /// The peer has sent FIN: there is an end to be read behind the bytes, without a further edge.
    hung_up: bool,
    in_ready: bool,
    in_line: bool,
    /// True exactly while a note is due that answers a pause.
    pause_noted: bool,
    sending: Sending,
}

impl Socket {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            connecting: false,
            receiving: Receiving::Idle,
            readable: false,
            hung_up: false,
            in_ready: false,
            in_line: false,
            pause_noted: false,
            sending: Sending::default(),
        }
    }
}

struct Listener {
    slot: ListenSlot,
    generation: u32,
    fd: OwnedFd,
    is_unix: bool,
    readable: bool,
    /// Accepts again at this time, after a failure.
    resting: Option<Time>,
}

/// Told at the next turn, if the socket still lives.
enum Note {
    Connected(SocketId),
    ConnectFailed(SocketId, i32),
    Paused(SocketId),
    SentOwned(SocketId, Vec<u8>, Result<usize, i32>),
}

/// The epoll engine.
pub struct Epoll {
    epoll: OwnedFd,
    sockets: Slots<Socket>,
    listeners: Vec<Listener>,
    generation: u32,
    pool: UserPool,
    owned: OwnedSends,
    scratch: Scratch,
    outbox: Outbox,
    /// Owned sends to be tried: new ones, and those whose socket has room again.
    owned_ready: Vec<(u32, u32)>,
    fins: Vec<SocketId>,
    notes: Vec<Note>,
    ready: VecDeque<SocketId>,
    line: Line,
    readiness: Vec<epoll::Event>,
    enters: u64,
    reserve: Reserve,
    waker: Arc<EventWaker>,
    /// As io_uring: only the thread that made the ring may use it.
    not_send: PhantomData<*const ()>,
}

impl Epoll {
    /// Makes a ring for the calling thread.
    pub fn new(config: &RingConfig) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = Arc::new(EventWaker::new(true)?);
        let data = epoll::EventData::new_u64(Token::Wake.encode());
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, waker.fd(), data, flags)?;
        Ok(Self {
            epoll,
            sockets: Slots::new(config.sockets_max),
            listeners: Vec::new(),
            generation: 0,
            pool: UserPool::new(config)?,
            owned: OwnedSends::new(config.sockets_max),
            scratch: Scratch::default(),
            outbox: Outbox::default(),
            owned_ready: Vec::new(),
            fins: Vec::new(),
            notes: Vec::new(),
            ready: VecDeque::new(),
            line: Line::default(),
            readiness: Vec::with_capacity(EVENTS_PER_WAIT),
            enters: 0,
            reserve: Reserve::new()?,
            waker,
            not_send: PhantomData,
        })
    }
}

impl Ring for Epoll {
    fn now(&self) -> Time {
        clock::monotonic()
    }

    fn listen(&mut self, listener: ListenSlot, socket: OwnedFd) -> io::Result<()> {
        if self.listeners.iter().any(|found| found.slot == listener) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        socket::set_nonblocking(socket.as_fd(), true)?;
        let is_unix = socket::local_address(socket.as_fd())?.is_none();
        self.generation = self.generation.wrapping_add(1);
        let token = Token::Accept {
            index: u32::from(listener.0),
            epoch: self.generation,
        };
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(
            &self.epoll,
            &socket,
            epoll::EventData::new_u64(token.encode()),
            flags,
        )?;
        self.listeners.push(Listener {
            slot: listener,
            generation: self.generation,
            fd: socket,
            is_unix,
            readable: true,
            resting: None,
        });
        Ok(())
    }

    fn stop_listening(&mut self, listener: ListenSlot) {
        self.listeners.retain(|found| found.slot != listener);
    }

    fn connect(&mut self, target: &Target) -> Result<SocketId, Full> {
        if self.sockets.is_full() {
            return Err(Full);
        }
        let (fd, connected) = match socket::begin_connect(target, SocketFlags::NONBLOCK) {
            Dial::Tcp(fd, address) => {
                let connected = rustix::net::connect(&fd, &address).map_err(Errno::raw_os_error);
                (fd, connected)
            }
            Dial::Unix(fd, connected) => (fd, connected),
            Dial::Failed(fd, errno) => (fd, Err(errno)),
            Dial::Full => return Err(Full),
        };
        let id = self.sockets.insert(Socket::new(fd))?;
        let outcome = match connected {
            Ok(()) => self.register(id).map(|()| Some(Note::Connected(id))),
            Err(libc::EINPROGRESS) => {
                if let Some(socket) = self.sockets.get_mut(id) {
                    socket.connecting = true;
                }
                self.register(id).map(|()| None)
            }
            Err(errno) => Ok(Some(Note::ConnectFailed(id, errno))),
        };
        let failed = |errno: Errno| Some(Note::ConnectFailed(id, errno.raw_os_error()));
        self.notes.extend(outcome.unwrap_or_else(failed));
        Ok(id)
    }

    fn receive(&mut self, socket: SocketId) {
        let Some(found) = self.sockets.get_mut(socket) else {
            return;
        };
        if found.receiving != Receiving::Idle {
            return;
        }
        if self.line.is_empty() {
            found.receiving = Receiving::Active;
            make_ready(&mut self.ready, found, socket);
        } else {
            stand_in_line(&mut self.line, found, socket);
        }
    }

    fn pause(&mut self, socket: SocketId) {
        let Some(found) = self.sockets.get_mut(socket) else {
            return;
        };
        match found.receiving {
            Receiving::Active | Receiving::Waiting => {
                found.receiving = Receiving::Idle;
                if !found.pause_noted {
                    found.pause_noted = true;
                    self.notes.push(Note::Paused(socket));
                }
            }
            Receiving::Idle | Receiving::Ended => {}
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
            Ok(token) => self.owned_ready.push(token),
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
        // What was queued before goes out before; closing the descriptor takes it out of the epoll instance too.
        if let Some(send) = self.outbox.queued(&found.sending) {
            let _ = send_now(&found, self.outbox.pieces(send), &self.pool, &self.scratch);
        }
        if let Some(index) = found.sending.owned_index()
            && let Some(epoch) = self.owned.epoch(index)
        {
            self.owned.remove(index, epoch);
        }
    }

    fn turn(
        &mut self,
        until: Option<Time>,
        latency_budget_micros: u32,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let before = events.len();
        self.run_sends(events);
        loop {
            self.look(until, before, events)?;
            if events.len() > before || until.is_some_and(|until| clock::monotonic() >= until) {
                break;
            }
        }
        if latency_budget_micros > 0 && events.len() > before {
            self.gather(latency_budget_micros, until, before, events)?;
        }
        Ok(())
    }

    fn lease(&mut self, lease: Lease) -> &mut [u8] {
        self.pool.bytes(lease)
    }

    fn enters(&self) -> u64 {
        self.enters
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }
}

impl Epoll {
    fn register(&mut self, id: SocketId) -> Result<(), Errno> {
        let Some(socket) = self.sockets.get(id) else {
            return Ok(());
        };
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(Token::Receive(id).encode());
        epoll::add(&self.epoll, &socket.fd, data, flags)
    }

    /// Sends what the last turn queued, then ends its leases.
    fn run_sends(&mut self, events: &mut Vec<Event>) {
        for at in 0..self.outbox.sends().len() {
            let Some(send) = self.outbox.sends().get(at) else {
                continue;
            };
            let Some(socket) = self.sockets.get_mut(send.socket) else {
                continue;
            };
            let outcome = send_now(socket, self.outbox.pieces(send), &self.pool, &self.scratch);
            let index = u32::try_from(at).unwrap_or(u32::MAX);
            let sending = Some(&mut socket.sending);
            let (pool, scratch) = (&self.pool, &self.scratch);
            self.outbox
                .settle(index, outcome, sending, pool, scratch, events);
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
        self.scratch.clear();
        self.pool.give_back();
    }

    /// One wait, and all that is ready after it.
    fn look(
        &mut self,
        until: Option<Time>,
        before: usize,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        self.run_owned(events);
        for note in std::mem::take(&mut self.notes) {
            self.tell(note, events);
        }
        self.serve_line();
        let now = clock::monotonic();
        let wake_at = self.end_rests(now, until);
        let busy = events.len() > before
            || !self.ready.is_empty()
            || self
                .listeners
                .iter()
                .any(|found| found.readable && found.resting.is_none());
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            wake_at.map(|until| until.since(now))
        };
        self.wait(timeout, events)?;
        self.run_owned(events);
        self.accept_ready(events);
        self.read_ready(events);
        Ok(())
    }

    /// Goes on looking until the latency budget is used up or enough has come.
    fn gather(
        &mut self,
        budget_micros: u32,
        until: Option<Time>,
        before: usize,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let budget = Duration::from_micros(u64::from(budget_micros));
        let end = clock::monotonic().after(budget);
        let end = until.map_or(end, |until| until.min(end));
        while events.len() - before < BUDGET_EVENTS && clock::monotonic() < end {
            self.look(Some(end), events.len(), events)?;
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.enters += 1;
        self.readiness.clear();
        let buffer = rustix::buffer::spare_capacity(&mut self.readiness);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let readiness = std::mem::take(&mut self.readiness);
        for event in &readiness {
            self.note_readiness(Token::decode(event.data.u64()), event.flags, events);
        }
        self.readiness = readiness;
        Ok(())
    }

    fn note_readiness(&mut self, token: Token, flags: epoll::EventFlags, events: &mut Vec<Event>) {
        match token {
            Token::Receive(id) => self.socket_ready(id, flags, events),
            Token::Accept { epoch, .. } => {
                for listener in &mut self.listeners {
                    listener.readable |= listener.generation == epoch;
                }
            }
            Token::Wake => {
                let mut value = [0; 8];
                // Edge triggered, so reading only resets the counter; it cannot be empty after an edge.
                let _ = rustix::io::read(self.waker.fd(), &mut value);
                self.waker.take();
                events.push(Event::Woken);
            }
            Token::Connect(_) | Token::Send { .. } | Token::SendOwned { .. } | Token::Ignored => {}
        }
    }

    fn socket_ready(&mut self, id: SocketId, flags: epoll::EventFlags, events: &mut Vec<Event>) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        let writable = broken || flags.contains(epoll::EventFlags::OUT);
        if socket.connecting {
            if writable {
                self.connected(id, events);
            }
            return;
        }
        let hung_up = broken || flags.contains(epoll::EventFlags::RDHUP);
        socket.hung_up |= hung_up;
        if hung_up || flags.contains(epoll::EventFlags::IN) {
            socket.readable = true;
            make_ready(&mut self.ready, socket, id);
        }
        if writable
            && let Some(index) = socket.sending.owned_index()
            && let Some(epoch) = self.owned.epoch(index)
        {
            self.owned_ready.push((index, epoch));
        }
    }

    fn connected(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        socket.connecting = false;
        let outcome = match rustix::net::sockopt::socket_error(&socket.fd) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) | Err(errno) => Err(errno.raw_os_error()),
        };
        match outcome {
            Ok(()) => {
                // The edge may have told of bytes as well.
                socket.readable = true;
                events.push(Event::Connected { socket: id });
            }
            Err(errno) => {
                self.sockets.remove(id);
                events.push(Event::ConnectFailed { socket: id, errno });
            }
        }
    }

    /// Tries the owned sends that are new or have room. What finds none waits for the next edge.
    fn run_owned(&mut self, events: &mut Vec<Event>) {
        for (index, epoch) in std::mem::take(&mut self.owned_ready) {
            let Some(send) = self.owned.get(index, epoch) else {
                continue;
            };
            let Some(socket) = self.sockets.get_mut(send.socket) else {
                continue;
            };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let taken = match rustix::net::send(&socket.fd, send.bytes(), flags) {
                Ok(0) | Err(Errno::AGAIN) => continue,
                Err(Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => {
                    self.owned_ready.push((index, epoch));
                    continue;
                }
                taken => taken.map_err(Errno::raw_os_error),
            };
            socket.sending.end_owned(taken);
            if socket.sending.take_fin() {
                shut_down(socket);
            }
            if let Some(send) = self.owned.remove(index, epoch) {
                events.push(Event::SentOwned {
                    socket: send.socket,
                    buffer: send.buffer,
                    taken,
                });
            }
        }
    }

    /// Lets as many sockets in line receive as there are free buffers.
    fn serve_line(&mut self) {
        let mut free = self.pool.free();
        while free > 0
            && let Some(id) = self.line.pop()
        {
            let Some(socket) = self.sockets.get_mut(id) else {
                continue;
            };
            socket.in_line = false;
            if socket.receiving == Receiving::Waiting {
                socket.receiving = Receiving::Active;
                make_ready(&mut self.ready, socket, id);
                free -= 1;
            }
        }
    }

    fn end_rests(&mut self, now: Time, until: Option<Time>) -> Option<Time> {
        let mut wake_at = until;
        for listener in &mut self.listeners {
            match listener.resting {
                Some(at) if at <= now => listener.resting = None,
                Some(at) => wake_at = Some(wake_at.map_or(at, |until| until.min(at))),
                None => {}
            }
        }
        wake_at
    }

    fn accept_ready(&mut self, events: &mut Vec<Event>) {
        for at in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.accept_one(at, events) {
                    break;
                }
            }
        }
    }

    /// Accepts one connection; false when there is no more to accept now.
    fn accept_one(&mut self, at: usize, events: &mut Vec<Event>) -> bool {
        let Some(listener) = self.listeners.get_mut(at) else {
            return false;
        };
        if !listener.readable || listener.resting.is_some() {
            return false;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::acceptfrom_with(&listener.fd, flags) {
            Ok((fd, address)) => {
                let (slot, is_unix) = (listener.slot, listener.is_unix);
                if is_unix || address.is_some() {
                    let peer = socket::peer_address(address);
                    self.accepted(slot, fd, peer, events);
                }
                true
            }
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => true,
            Err(Errno::AGAIN) => {
                listener.readable = false;
                false
            }
            Err(errno) => {
                if matches!(errno, Errno::MFILE | Errno::NFILE) {
                    self.reserve.turn_away(listener.fd.as_fd());
                }
                listener.resting = Some(clock::monotonic().after(ACCEPT_PAUSE));
                events.push(Event::AcceptFailed {
                    listener: listener.slot,
                    errno: errno.raw_os_error(),
                });
                false
            }
        }
    }

    fn accepted(
        &mut self,
        listener: ListenSlot,
        fd: OwnedFd,
        peer: IpAddr,
        events: &mut Vec<Event>,
    ) {
        let Ok(socket) = self.sockets.insert(Socket::new(fd)) else {
            let errno = libc::ENOBUFS;
            events.push(Event::AcceptFailed { listener, errno });
            return;
        };
        if let Err(errno) = self.register(socket) {
            self.sockets.remove(socket);
            let errno = errno.raw_os_error();
            events.push(Event::AcceptFailed { listener, errno });
            return;
        }
        events.push(Event::Accepted {
            listener,
            socket,
            peer,
        });
    }

    /// Reads from each socket that is ready, once around.
    fn read_ready(&mut self, events: &mut Vec<Event>) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let Some(socket) = self.sockets.get_mut(id) else {
                continue;
            };
            socket.in_ready = false;
            for _ in 0..READS_PER_TURN {
                if socket.receiving != Receiving::Active || !socket.readable {
                    break;
                }
                read_once(&mut self.pool, &mut self.line, socket, id, events);
            }
            make_ready(&mut self.ready, socket, id);
        }
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
}

/// One receive into a free buffer, or into the line when there is none.
fn read_once(
    pool: &mut UserPool,
    line: &mut Line,
    socket: &mut Socket,
    id: SocketId,
    events: &mut Vec<Event>,
) {
    let mut short = false;
    let fd = &socket.fd;
    let filled = pool.fill(|space| {
        let (received, _) = rustix::net::recv(fd, &mut *space, RecvFlags::DONTWAIT)?;
        short = received < space.len();
        Ok(received)
    });
    let end = match filled {
        None => {
            stand_in_line(line, socket, id);
            return;
        }
        Some(Ok(Some(lease))) => {
            // A short receive has drained the socket, and more bytes would make a new edge.
            socket.readable = !short || socket.hung_up;
            events.push(Event::Received { socket: id, lease });
            return;
        }
        Some(Err(Errno::AGAIN)) => {
            socket.readable = false;
            return;
        }
        Some(Err(Errno::INTR)) => return,
        Some(Ok(None)) => End::Eof,
        Some(Err(errno)) => End::Failed(errno.raw_os_error()),
    };
    socket.receiving = Receiving::Ended;
    events.push(Event::Ended { socket: id, end });
}

fn make_ready(ready: &mut VecDeque<SocketId>, socket: &mut Socket, id: SocketId) {
    if socket.receiving == Receiving::Active && socket.readable && !socket.in_ready {
        socket.in_ready = true;
        ready.push_back(id);
    }
}

fn stand_in_line(line: &mut Line, socket: &mut Socket, id: SocketId) {
    socket.receiving = Receiving::Waiting;
    if !socket.in_line {
        socket.in_line = true;
        line.push(id);
    }
}

/// Sends without waiting; how much was taken.
fn send_now(
    socket: &Socket,
    pieces: &[Piece],
    pool: &Pool,
    scratch: &Scratch,
) -> Result<usize, i32> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut taken = 0;
    for pieces in pieces.chunks(PIECES_PER_CALL) {
        let mut slices: SmallVec<[IoSlice<'_>; PIECES_PER_CALL]> = SmallVec::new();
        slices.extend(
            pieces
                .iter()
                .filter_map(|piece| resolve(pool, scratch, piece))
                .map(IoSlice::new),
        );
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut control = SendAncillaryBuffer::default();
        match rustix::net::sendmsg(&socket.fd, &slices, &mut control, flags) {
            Ok(sent) => {
                taken += sent;
                if sent < len {
                    break;
                }
            }
            // What went before is told; the error comes again with the next send.
            Err(_) if taken > 0 => break,
            Err(errno) => return Err(errno.raw_os_error()),
        }
    }
    Ok(taken)
}

/// Sends FIN. It fails only when the connection is gone, which its receive tells.
fn shut_down(socket: &Socket) {
    let _ = rustix::net::shutdown(&socket.fd, rustix::net::Shutdown::Write);
}
