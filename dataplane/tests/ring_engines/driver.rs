//! What the behaviours share: a ring with a listener, waiting for events, clients on plain sockets.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt;
use sluice_dataplane::ring::{
    End, Event, Lease, ListenSlot, Piece, Ring, RingConfig, SocketId, listen_tcp, local_address,
};

/// What makes an engine.
pub(crate) type Made<R> = io::Result<R>;

/// How long any wait may take before the test fails. Far beyond what a loaded machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const LISTENER: ListenSlot = ListenSlot(3);

pub(crate) const CONFIG: RingConfig = RingConfig {
    sockets_max: 64,
    buffers: 64,
    buffer_bytes: 1024,
};

/// A ring under test.
pub(crate) struct Driver<R> {
    pub(crate) ring: R,
    events: Vec<Event>,
}

impl<R: Ring> Driver<R> {
    pub(crate) fn new(
        make: impl FnOnce(&RingConfig) -> io::Result<R>,
        config: &RingConfig,
    ) -> Self {
        let ring = make(config).expect("the engine starts");
        Self {
            ring,
            events: Vec::new(),
        }
    }

    /// Starts listening on a free port.
    pub(crate) fn listen(&mut self) -> SocketAddr {
        self.listen_with(|_| {})
    }

    /// Starts listening on a free port, with options that accepted sockets inherit.
    pub(crate) fn listen_with(&mut self, options: impl FnOnce(&OwnedFd)) -> SocketAddr {
        let socket = listen_tcp("127.0.0.1:0".parse().unwrap(), 1024).unwrap();
        options(&socket);
        let address = local_address(socket.as_fd()).unwrap().unwrap();
        self.ring.listen(LISTENER, socket).unwrap();
        address
    }

    /// One turn under the bound; its events.
    pub(crate) fn turn(&mut self) -> Vec<Event> {
        let until = self.ring.now().after(PATIENCE);
        let mut events = std::mem::take(&mut self.events);
        self.ring.turn(Some(until), 0, &mut events).expect("a turn");
        assert!(
            !events.is_empty() && self.ring.now() < until,
            "nothing happened for {PATIENCE:?}, or only its end told of it: {events:?}"
        );
        short_sends_come_first(&events);
        events
    }

    /// A turn that waits for nothing; its events, maybe none.
    pub(crate) fn poll(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let now = self.ring.now();
        self.ring.turn(Some(now), 0, &mut events).expect("a turn");
        short_sends_come_first(&events);
        events
    }

    /// Turns until there is an event that `pick` takes; all other events go to `other`.
    pub(crate) fn wait_for<T>(
        &mut self,
        mut other: impl FnMut(&mut R, Event),
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> T {
        let limit = self.ring.now().after(PATIENCE);
        loop {
            let mut found = None;
            for event in self.turn() {
                match pick(&event) {
                    Some(picked) if found.is_none() => found = Some(picked),
                    _ => other(&mut self.ring, event),
                }
            }
            if let Some(found) = found {
                return found;
            }
            assert!(self.ring.now() < limit, "the event did not come");
        }
    }

    /// Turns until a client has connected and its socket is accepted.
    pub(crate) fn accept(&mut self, address: SocketAddr) -> (TcpStream, SocketId) {
        let client = TcpStream::connect(address).unwrap();
        let socket = self.accepted();
        (client, socket)
    }

    pub(crate) fn accepted(&mut self) -> SocketId {
        self.wait_for(nothing_else, |event| match event {
            Event::Accepted {
                listener,
                socket,
                peer,
            } => {
                assert_eq!(*listener, LISTENER);
                assert!(peer.ip().is_loopback());
                Some(*socket)
            }
            _ => None,
        })
    }

    /// Turns until bytes have come on `socket`; they are copied.
    pub(crate) fn received(&mut self, socket: SocketId) -> Vec<u8> {
        let lease = self.wait_for(nothing_else, |event| match event {
            Event::Received { socket: at, lease } if *at == socket => Some(*lease),
            _ => None,
        });
        self.ring.lease(lease).to_vec()
    }
}

pub(crate) fn nothing_else<R>(_: &mut R, event: Event) {
    panic!("unexpected {event:?}");
}

/// All of a lease.
pub(crate) fn whole(lease: Lease) -> Piece {
    Piece::Lease {
        buffer: lease.buffer,
        range: 0..lease.len,
    }
}

fn short_sends_come_first(events: &[Event]) {
    let is_send =
        |event: &Event| matches!(event, Event::SendShort { .. } | Event::SendFailed { .. });
    let sends = events.iter().take_while(|event| is_send(event)).count();
    assert!(
        !events.iter().skip(sends).any(is_send),
        "short and failed sends come first: {events:?}"
    );
}

/// Bytes that tell their position: any loss, repetition or exchange shows.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random(&mut state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// splitmix64.
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Compares long byte strings without printing them.
pub(crate) fn assert_same(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "length");
    if got != expected {
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        panic!("bytes differ first at {at:?} of {}", expected.len());
    }
}

/// An echo server on sockets of a ring, with the backlog rules of a session.
#[derive(Default)]
pub(crate) struct Echo {
    sockets: Vec<(SocketId, EchoSocket)>,
    pub(crate) closed: usize,
    pub(crate) shorts: usize,
    pub(crate) pauses: usize,
}

#[derive(Default)]
struct EchoSocket {
    backlog: Vec<u8>,
    /// A send of this turn may still fall short; closing would lose the rest.
    sent_this_turn: bool,
    sending: bool,
    pausing: bool,
    paused: bool,
    ended: bool,
    done: bool,
}

impl Echo {
    const BACKLOG_HIGH: usize = 64 * 1024;

    /// Handles the events of one turn as a shard would: notes first, then one send for each socket.
    fn handle<R: Ring>(&mut self, ring: &mut R, events: Vec<Event>) {
        let mut leases: Vec<(SocketId, Vec<Piece>)> = Vec::new();
        for event in events {
            match event {
                Event::Accepted { socket, .. } => {
                    self.sockets.push((socket, EchoSocket::default()));
                    ring.receive(socket);
                }
                Event::Received { socket, lease } => {
                    let echo = self.socket(socket);
                    if echo.sending || !echo.backlog.is_empty() {
                        let bytes = ring.lease(lease).to_vec();
                        self.socket(socket).backlog.extend(bytes);
                    } else if let Some((_, pieces)) =
                        leases.iter_mut().find(|(at, _)| *at == socket)
                    {
                        pieces.push(whole(lease));
                    } else {
                        leases.push((socket, vec![whole(lease)]));
                    }
                }
                Event::SendShort { socket, rest } => {
                    self.shorts += 1;
                    self.socket(socket).backlog.extend(rest);
                }
                Event::SentOwned {
                    socket,
                    buffer,
                    taken,
                } => {
                    let taken = taken.expect("the client reads on");
                    let echo = self.socket(socket);
                    echo.sending = false;
                    let mut rest = buffer[taken..].to_vec();
                    rest.append(&mut echo.backlog);
                    echo.backlog = rest;
                }
                Event::Paused { socket } => {
                    let echo = self.socket(socket);
                    echo.pausing = false;
                    echo.paused = true;
                }
                Event::Ended { socket, .. } => self.socket(socket).ended = true,
                event => panic!("unexpected {event:?}"),
            }
        }
        for (socket, pieces) in leases {
            ring.send(socket, &pieces);
            self.socket(socket).sent_this_turn = true;
        }
        self.drain(ring);
    }

    fn drain<R: Ring>(&mut self, ring: &mut R) {
        for (socket, echo) in &mut self.sockets {
            if !echo.sending && !echo.backlog.is_empty() {
                echo.sending = true;
                ring.send_owned(*socket, std::mem::take(&mut echo.backlog), 0);
            }
            let idle = !echo.sending && echo.backlog.is_empty();
            if echo.backlog.len() > Self::BACKLOG_HIGH
                && !echo.pausing
                && !echo.paused
                && !echo.ended
            {
                echo.pausing = true;
                self.pauses += 1;
                ring.pause(*socket);
            } else if echo.paused && idle {
                echo.paused = false;
                ring.receive(*socket);
            }
            echo.done = echo.ended && idle && !std::mem::take(&mut echo.sent_this_turn);
            if echo.done {
                ring.shutdown_write(*socket);
                ring.close(*socket);
                self.closed += 1;
            }
        }
        self.sockets.retain(|(_, echo)| !echo.done);
    }

    /// The next turn: one that does not wait when a socket has only to learn that its last send was taken.
    pub(crate) fn turn<R: Ring>(&mut self, driver: &mut Driver<R>) {
        let closing = |echo: &EchoSocket| echo.ended && !echo.sending && echo.backlog.is_empty();
        let events = if self.sockets.iter().any(|(_, echo)| closing(echo)) {
            driver.poll()
        } else {
            driver.turn()
        };
        self.handle(&mut driver.ring, events);
    }

    fn socket(&mut self, socket: SocketId) -> &mut EchoSocket {
        self.sockets
            .iter_mut()
            .find_map(|(at, echo)| (*at == socket).then_some(echo))
            .expect("an open socket")
    }
}

pub(crate) fn assert_paused<R: Ring>(driver: &mut Driver<R>, socket: SocketId) {
    driver.wait_for(nothing_else, |event| match event {
        Event::Paused { socket: at } if *at == socket => Some(()),
        _ => None,
    });
}

impl<R: Ring> Driver<R> {
    /// Turns until `socket` has ended; the bytes before that.
    pub(crate) fn received_then_ended(&mut self, socket: SocketId) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            for event in self.turn() {
                match event {
                    Event::Received { socket: at, lease } if at == socket => {
                        bytes.extend_from_slice(self.ring.lease(lease));
                    }
                    Event::Ended { socket: at, end } if at == socket => {
                        assert_eq!(end, End::Eof);
                        return bytes;
                    }
                    event => panic!("unexpected {event:?}"),
                }
            }
        }
    }
}

pub(crate) fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

pub(crate) fn read_exactly(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads until FIN or reset; how many bytes came.
pub(crate) fn read_until_closed(mut stream: TcpStream) -> usize {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    bytes.len()
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}
