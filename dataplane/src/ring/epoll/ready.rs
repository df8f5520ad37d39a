//! What is ready: one wait, then all that can be done without another.
//!
//! Readiness is remembered per socket, so each function here takes what is marked and leaves a mark for what remains.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::{Epoll, Receiving, Socket, make_ready, send_now, shut_down, stand_in_line};
use crate::clock::{self, Time};
use crate::ring::buffers::UserPool;
use crate::ring::lifecycle::{Line, Token};
use crate::ring::socket::{self, ACCEPT_PAUSE};
use crate::ring::{End, Event, ListenSlot, SocketId};

/// Buffers that one socket may fill in one turn.
const READS_PER_TURN: usize = 8;

/// Connections that one listener may accept in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Waits shorter than this are not rounded up to milliseconds.
const PRECISE_NANOS: i64 = 10_000_000;

/// Events that end a latency budget before its time.
const BUDGET_EVENTS: usize = 32;

impl Epoll {
    pub(super) fn register(&mut self, id: SocketId) -> Result<(), Errno> {
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
    pub(super) fn run_sends(&mut self, events: &mut Vec<Event>) {
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
        self.outbox
            .end_turn(&mut self.sockets, &mut self.fins, shut_down, events);
        self.scratch.clear();
        self.pool.give_back();
    }

    /// One wait, and all that is ready after it.
    pub(super) fn look(
        &mut self,
        until: Option<Time>,
        before: usize,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        self.run_owned(events);
        for note in std::mem::take(&mut self.notes) {
            note.tell(&mut self.sockets, events);
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
    pub(super) fn gather(
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
        self.enters += 1;
        let mut timeout = timeout.map(timespec);
        // epoll_pwait counts in milliseconds, and epoll_pwait2 is what a seccomp profile may not know; ppoll is everywhere.
        if let Some(precise) = timeout.as_mut().filter(|timeout| {
            timeout.tv_sec == 0 && timeout.tv_nsec > 0 && timeout.tv_nsec < PRECISE_NANOS
        }) {
            let mut fds = [PollFd::new(&self.epoll, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(precise)) {
                Ok(0) | Err(Errno::INTR) => return Ok(()),
                Ok(_) => *precise = timespec(Duration::ZERO),
                Err(errno) => return Err(errno.into()),
            }
        }
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
                    listener.readable |= listener.epoch == epoch;
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
        if writable && let Some(token) = self.owned.in_flight(&socket.sending) {
            self.owned_ready.push(token);
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
            Err(errno) => events.push(Event::ConnectFailed { socket: id, errno }),
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
        peer: SocketAddr,
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

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
