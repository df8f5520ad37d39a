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
//! - **No socket starves another**: at most [`ready`]'s bound of buffers for each in a turn, then it goes to the back.

mod ready;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, SocketFlags};
use smallvec::SmallVec;

use super::buffers::{Pool, Scratch, UserPool, resolve};
use super::lifecycle::{self, Line, Note, Outbox, OwnedSend, OwnedSends, Sending, Slots, Token};
use super::socket::{self, Dial, Reserve};
use super::wake::EventWaker;
use super::{
    Event, Full, KeepAlive, Lease, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Wake,
};
use crate::clock::{self, Time};

/// Readiness events taken by one wait.
const EVENTS_PER_WAIT: usize = 1024;

/// Pieces in one system call; on the stack, so bounded.
const PIECES_PER_CALL: usize = 64;

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

impl lifecycle::Socket for Socket {
    fn sending(&mut self) -> &mut Sending {
        &mut self.sending
    }

    fn answer_pause(&mut self) -> bool {
        self.pause_noted = false;
        self.receiving == Receiving::Idle
    }
}

struct Listener {
    slot: ListenSlot,
    epoch: u32,
    fd: OwnedFd,
    is_unix: bool,
    readable: bool,
    /// Accepts again at this time, after a failure.
    resting: Option<Time>,
}

/// The epoll engine.
pub struct Epoll {
    epoll: OwnedFd,
    sockets: Slots<Socket>,
    listeners: Vec<Listener>,
    epoch: u32,
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
            epoch: 0,
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
        self.epoch = self.epoch.wrapping_add(1);
        let token = Token::Accept {
            index: u32::from(listener.0),
            epoch: self.epoch,
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
            epoch: self.epoch,
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
        if let Some((index, epoch)) = self.owned.in_flight(&found.sending) {
            self.owned.remove(index, epoch);
        }
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
    if let [piece] = pieces {
        // Most sends are of one piece; a vector of one costs the kernel more.
        let bytes = resolve(pool, scratch, piece).unwrap_or_default();
        return rustix::net::send(&socket.fd, bytes, flags).map_err(Errno::raw_os_error);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_legs_have_the_options_of_keep_alive() {
        let mut ring = Epoll::new(&RingConfig {
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
