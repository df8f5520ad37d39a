//! The simulated engine: the same surface over an in-memory network, seeded, with a virtual clock. For tests.
//!
//! Owns no descriptor and makes no system call. The test holds the other end of every connection through [`Network`]; the
//! engine sees only what has arrived by the virtual time, which nothing but [`Ring::turn`] moves, and only when nothing is
//! ready: to the next thing that happens, to `until`, or to an alarm that the test has set.
//!
//! # Invariants
//!
//! - **Same seed, same calls, same events.** One generator decides everything; nothing depends on addresses or maps.
//! - **A turn ends when the test has something to look at**, even without events: bytes at a peer, a connection at a server.
//! - **A turn never hangs**: when nothing can ever happen it returns at once.

mod faults;
mod network;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use self::faults::{Faults, Random};
use self::network::{ConnId, News, Side};
pub use self::network::{Network, Peer, PeerState, Serve};
use super::buffers::{Scratch, UserPool, resolve};
use super::lifecycle::{self, Line, Note, Outbox, OwnedSend, OwnedSends, Sending, Slots};
use super::socket::ACCEPT_PAUSE;
use super::{
    Event, Full, KeepAlive, Lease, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Wake,
};
use crate::clock::Time;

/// Leases that one socket may get in one turn, at most.
const READS_PER_TURN: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Idle,
    Active,
    Waiting,
    Ended,
}

struct Socket {
    conn: ConnId,
    receiving: Receiving,
    in_ready: bool,
    in_line: bool,
    pause_noted: bool,
    sending: Sending,
}

struct Listener {
    slot: ListenSlot,
    resting: Option<Time>,
}

struct FlagWaker(AtomicBool);

impl Wake for FlagWaker {
    fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The simulated engine.
pub struct Simulated {
    network: Network,
    sockets: Slots<Socket>,
    listeners: Vec<Listener>,
    pool: UserPool,
    owned: OwnedSends,
    scratch: Scratch,
    outbox: Outbox,
    owned_ready: Vec<(u32, u32)>,
    fins: Vec<SocketId>,
    notes: Vec<Note>,
    ready: VecDeque<SocketId>,
    line: Line,
    enters: u64,
    waker: Arc<FlagWaker>,
    not_send: PhantomData<*const ()>,
}

impl Simulated {
    /// Makes the ring of `network`. A network has one.
    pub fn new(network: &Network, config: &RingConfig) -> io::Result<Self> {
        Ok(Self {
            network: network.clone(),
            sockets: Slots::new(config.sockets_max),
            listeners: Vec::new(),
            pool: UserPool::new(config)?,
            owned: OwnedSends::new(config.sockets_max),
            scratch: Scratch::default(),
            outbox: Outbox::default(),
            owned_ready: Vec::new(),
            fins: Vec::new(),
            notes: Vec::new(),
            ready: VecDeque::new(),
            line: Line::default(),
            enters: 0,
            waker: Arc::new(FlagWaker(AtomicBool::new(false))),
            not_send: PhantomData,
        })
    }

    /// Sockets open, for tests that look for what was left behind.
    pub fn sockets_open(&self) -> usize {
        self.sockets.len()
    }

    /// Starts accepting what the test connects to `listener`. Takes the place of [`Ring::listen`], which needs a socket.
    pub fn listen_simulated(&mut self, listener: ListenSlot) {
        if !self.listeners.iter().any(|found| found.slot == listener) {
            self.network.world().listening(listener, true);
            self.listeners.push(Listener {
                slot: listener,
                resting: None,
            });
        }
    }
}

impl Ring for Simulated {
    fn now(&self) -> Time {
        self.network.now()
    }

    /// The socket is only closed; connections come from [`Network::connect`].
    fn listen(&mut self, listener: ListenSlot, _socket: OwnedFd) -> io::Result<()> {
        self.listen_simulated(listener);
        Ok(())
    }

    fn stop_listening(&mut self, listener: ListenSlot) {
        self.listeners.retain(|found| found.slot != listener);
        self.network.world().listening(listener, false);
    }

    fn connect(&mut self, target: &Target) -> Result<SocketId, Full> {
        if self.sockets.is_full() {
            return Err(Full);
        }
        let mut world = self.network.world();
        let conn = world.dial(target);
        let socket = self.sockets.insert(Socket::new(conn))?;
        world.attach(conn, socket);
        Ok(socket)
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
        if matches!(found.receiving, Receiving::Active | Receiving::Waiting) {
            found.receiving = Receiving::Idle;
            if !found.pause_noted {
                found.pause_noted = true;
                self.notes.push(Note::Paused(socket));
            }
        }
    }

    fn keep_alive(&mut self, socket: SocketId, keep_alive: KeepAlive) {
        if let Some(found) = self.sockets.get_mut(socket) {
            self.network.world().keep_alive(found.conn, keep_alive);
        }
    }

    fn scratch(&mut self, bytes: &[u8]) -> Piece {
        self.scratch.add(bytes)
    }

    fn send(&mut self, socket: SocketId, pieces: &[Piece]) {
        if let Some(found) = self.sockets.get_mut(socket) {
            let (pool, scratch) = (&self.pool, &mut self.scratch);
            self.outbox
                .add(socket, -1, &mut found.sending, pieces, pool, scratch);
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
            self.network.world().finish(found.conn, Side::Ring);
        } else if found.sending.is_queued() {
            self.fins.push(socket);
        }
    }

    fn close(&mut self, socket: SocketId) {
        let Some(found) = self.sockets.remove(socket) else {
            return;
        };
        let mut world = self.network.world();
        if let Some(send) = self.outbox.queued(&found.sending) {
            let bytes = joined(self.outbox.pieces(send), &self.pool, &self.scratch);
            let _ = world.write(found.conn, Side::Ring, &bytes);
        }
        if let Some((index, epoch)) = self.owned.in_flight(&found.sending) {
            self.owned.remove(index, epoch);
        }
        world.close(found.conn, Side::Ring);
    }

    fn reset(&mut self, socket: SocketId) {
        if let Some(found) = self.sockets.get_mut(socket) {
            self.network.world().reset_when_closed(found.conn);
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
        self.enters += 1;
        self.run_sends(events);
        loop {
            self.look(before, events);
            let now = self.now();
            let looked_for = self.network.world().take_news();
            let done = events.len() > before || until.is_some_and(|until| now >= until);
            // Whoever found no buffer by chance is served by the next turn.
            let held_up = !self.line.is_empty();
            if done || looked_for || held_up || !self.jump(until) {
                break;
            }
        }
        if latency_budget_micros > 0 && events.len() > before {
            let budget = Duration::from_micros(u64::from(latency_budget_micros));
            let end = self.now().after(budget);
            let end = until.map_or(end, |until| until.min(end));
            while self.now() < end && self.jump(Some(end)) {
                self.look(events.len(), events);
            }
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

impl Socket {
    fn new(conn: ConnId) -> Self {
        Self {
            conn,
            receiving: Receiving::Idle,
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

impl Simulated {
    /// Moves the clock to the next thing that happens, at most to `until`. False when the turn must end there.
    fn jump(&mut self, until: Option<Time>) -> bool {
        let mut world = self.network.world();
        let rest = self
            .listeners
            .iter()
            .filter_map(|found| found.resting)
            .min();
        let next = [world.next_time(), world.alarm(), rest, until];
        let next = next.into_iter().flatten().min();
        match next {
            Some(next) => {
                let alarm = world.advance(next);
                !alarm
            }
            None => false,
        }
    }

    fn run_sends(&mut self, events: &mut Vec<Event>) {
        let mut world = self.network.world();
        for at in 0..self.outbox.sends().len() {
            let Some(send) = self.outbox.sends().get(at) else {
                continue;
            };
            let Some(socket) = self.sockets.get_mut(send.socket) else {
                continue;
            };
            let bytes = joined(self.outbox.pieces(send), &self.pool, &self.scratch);
            let outcome = world.write(socket.conn, Side::Ring, &bytes);
            let index = u32::try_from(at).unwrap_or(u32::MAX);
            let sending = Some(&mut socket.sending);
            let (pool, scratch) = (&self.pool, &self.scratch);
            self.outbox
                .settle(index, outcome, sending, pool, scratch, events);
        }
        self.outbox.end_turn(
            &mut self.sockets,
            &mut self.fins,
            |socket| world.finish(socket.conn, Side::Ring),
            events,
        );
        drop(world);
        self.scratch.clear();
        self.pool.give_back();
    }

    /// All that is ready at this time.
    fn look(&mut self, before: usize, events: &mut Vec<Event>) {
        for note in std::mem::take(&mut self.notes) {
            note.tell(&mut self.sockets, events);
        }
        self.serve_line();
        self.hear(events);
        self.run_owned(events);
        self.accept(events);
        self.read_ready(events);
        let spurious = events.len() > before && self.network.world().spurious_wake();
        if self.waker.0.swap(false, Ordering::AcqRel) || spurious {
            events.push(Event::Woken);
        }
    }

    /// What has happened to our sockets by now.
    fn hear(&mut self, events: &mut Vec<Event>) {
        let news = self.network.world().run_due();
        for news in news {
            match news {
                News::Readable(id) => {
                    if let Some(socket) = self.sockets.get_mut(id) {
                        make_ready(&mut self.ready, socket, id);
                    }
                }
                News::Room(id) => {
                    if let Some(socket) = self.sockets.get(id)
                        && let Some(token) = self.owned.in_flight(&socket.sending)
                    {
                        self.owned_ready.push(token);
                    }
                }
                News::Connected(socket) => {
                    if self.sockets.get(socket).is_some() {
                        events.push(Event::Connected { socket });
                    }
                }
                News::ConnectFailed(socket, errno) => {
                    if self.sockets.get(socket).is_some() {
                        events.push(Event::ConnectFailed { socket, errno });
                    }
                }
            }
        }
    }

    fn run_owned(&mut self, events: &mut Vec<Event>) {
        let mut world = self.network.world();
        for (index, epoch) in std::mem::take(&mut self.owned_ready) {
            let Some(send) = self.owned.get(index, epoch) else {
                continue;
            };
            let Some(socket) = self.sockets.get_mut(send.socket) else {
                continue;
            };
            let taken = world.write_waiting(socket.conn, send.bytes());
            if taken == Ok(0) {
                continue; // the world tells when there is room
            }
            socket.sending.end_owned(taken);
            if socket.sending.take_fin() {
                world.finish(socket.conn, Side::Ring);
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

    fn accept(&mut self, events: &mut Vec<Event>) {
        let mut world = self.network.world();
        let now = world.now();
        for listener in &mut self.listeners {
            if listener.resting.is_some_and(|at| at > now) {
                continue;
            }
            listener.resting = None;
            while let Some((conn, peer)) = world.take_waiting(listener.slot) {
                if world.accept_fails() {
                    world.close(conn, Side::Ring);
                    while let Some((conn, _)) = world.take_waiting(listener.slot) {
                        world.close(conn, Side::Ring);
                    }
                    listener.resting = Some(now.after(ACCEPT_PAUSE));
                    events.push(Event::AcceptFailed {
                        listener: listener.slot,
                        errno: libc::EMFILE,
                    });
                    break;
                }
                match self.sockets.insert(Socket::new(conn)) {
                    Ok(socket) => {
                        world.attach(conn, socket);
                        events.push(Event::Accepted {
                            listener: listener.slot,
                            socket,
                            peer,
                        });
                    }
                    Err(Full) => {
                        world.close(conn, Side::Ring);
                        events.push(Event::AcceptFailed {
                            listener: listener.slot,
                            errno: libc::ENOBUFS,
                        });
                    }
                }
            }
        }
    }

    fn read_ready(&mut self, events: &mut Vec<Event>) {
        let mut world = self.network.world();
        world.shuffle(self.ready.make_contiguous());
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let Some(socket) = self.sockets.get_mut(id) else {
                continue;
            };
            socket.in_ready = false;
            for _ in 0..world.up_to(READS_PER_TURN) {
                if socket.receiving != Receiving::Active || !world.readable(socket.conn) {
                    break;
                }
                if world.buffers_run_out() {
                    stand_in_line(&mut self.line, socket, id);
                    break;
                }
                let conn = socket.conn;
                match self.pool.fill(|space| world.read_into(conn, space)) {
                    None => stand_in_line(&mut self.line, socket, id),
                    Some(Ok(Some(lease))) => events.push(Event::Received { socket: id, lease }),
                    Some(Ok(None)) => {}
                    Some(Err(end)) => {
                        socket.receiving = Receiving::Ended;
                        events.push(Event::Ended { socket: id, end });
                    }
                }
            }
            if world.readable(socket.conn) {
                make_ready(&mut self.ready, socket, id);
            }
        }
    }
}

fn make_ready(ready: &mut VecDeque<SocketId>, socket: &mut Socket, id: SocketId) {
    if socket.receiving == Receiving::Active && !socket.in_ready {
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

fn joined(pieces: &[Piece], pool: &UserPool, scratch: &Scratch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(resolve(pool, scratch, piece).unwrap_or(&[]));
    }
    bytes
}
