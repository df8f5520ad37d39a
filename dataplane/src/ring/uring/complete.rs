//! What a turn waits for and hears: the one enter, then the completions, sends before all others.
//!
//! Every completion is matched here; what belongs to a socket that was closed finds no slot and is dropped.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use io_uring::cqueue;

use super::{Accepting, Receiving, Socket, Uring, owned_fd, shut_down};
use crate::clock::{self, Time};
use crate::ring::lifecycle::Token;
use crate::ring::socket::{self, ACCEPT_PAUSE};
use crate::ring::{End, Event, Full, SocketId};

/// Completions that end a latency budget before its time. The kernel wakes for as many sockets with something to tell; many
/// completions of one socket are not yet posted while it waits.
const BUDGET_COMPLETIONS: u32 = 32;

/// How often a submission that the kernel did not take whole is tried again before the turn fails.
const SUBMIT_TRIES: u32 = 8;

/// What a turn waits for and hears.
impl Uring {
    /// Submits without waiting, until the queue is empty.
    pub(super) fn enter_now(&mut self) -> io::Result<()> {
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
    pub(super) fn wait(
        &mut self,
        now: Time,
        until: Option<Time>,
        budget_micros: u32,
    ) -> io::Result<()> {
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
        } else if self.min_wait {
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
    pub(super) fn collect(&mut self) {
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
    pub(super) fn reap(&mut self, events: &mut Vec<Event>) {
        self.collect();
        self.settle_sends(events);
        let completions = std::mem::take(&mut self.completions);
        for &(token, result, flags) in &completions {
            self.complete(token, result, flags, events);
        }
        self.completions = completions;
        self.completions.clear();
        for note in std::mem::take(&mut self.notes) {
            note.tell(&mut self.sockets, events);
        }
    }

    pub(super) fn settle_sends(&mut self, events: &mut Vec<Event>) {
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
            self.outbox
                .end_turn(&mut self.sockets, &mut self.fins, shut_down, events);
        }
        self.turn = self.turn.wrapping_add(1);
        self.scratch.clear();
        self.pool.give_back();
    }

    pub(super) fn complete(
        &mut self,
        token: Token,
        result: i32,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
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

    pub(super) fn ended_unless(&mut self, more: bool) {
        if !more {
            debug_assert!(self.in_flight > 0);
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    pub(super) fn accepted(
        &mut self,
        epoch: u32,
        result: i32,
        more: bool,
        events: &mut Vec<Event>,
    ) {
        let fd = owned_fd(result);
        let at = self.listeners.iter().position(|found| found.epoch == epoch);
        let Some(listener) = at.and_then(|at| self.listeners.get_mut(at)) else {
            return;
        };
        let (slot, is_unix) = (listener.slot, listener.is_unix);
        if !more {
            self.accept_ended(epoch, result, events);
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
    pub(super) fn accept_ended(&mut self, epoch: u32, result: i32, events: &mut Vec<Event>) {
        let at = self.listeners.iter().position(|found| found.epoch == epoch);
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

    pub(super) fn received(
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

    pub(super) fn connected(&mut self, id: SocketId, result: i32, events: &mut Vec<Event>) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        socket.connecting = false;
        if result >= 0 {
            events.push(Event::Connected { socket: id });
        } else {
            events.push(Event::ConnectFailed {
                socket: id,
                errno: -result,
            });
        }
    }

    pub(super) fn sent_owned(
        &mut self,
        index: u32,
        epoch: u32,
        result: i32,
        events: &mut Vec<Event>,
    ) {
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
