//! The in-memory network: connections between the ring and the peers that a test plays, and the schedule of what arrives.
//!
//! [`Network`] is the test's handle. Time moves only through the ring. What a peer or the ring writes is cut into segments
//! that arrive after a delay, in order; a direction holds a bounded number of bytes.

use std::cell::{RefCell, RefMut};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::faults::{Faults, Random};
use crate::clock::Time;
use crate::ring::{End, KeepAlive, ListenSlot, SocketId, Target};

/// The test's handle of a simulated network; clones are the same network.
#[derive(Clone)]
pub struct Network {
    world: Rc<RefCell<World>>,
}

/// The test's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer(ConnId);

/// Where a connection stands, as its peer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// On its way to the listener, or waiting in its backlog.
    Connecting,
    /// Nobody listened, or the connection was turned away.
    Refused,
    /// Both sides may send.
    Open,
    /// The ring has finished sending (and all of it has been read or is there to be read).
    Finished,
    /// Broken by the ring or by a fault.
    Reset,
    /// Closed by this peer.
    Closed,
}

/// How a simulated server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// Connections wait for [`Network::accept`].
    Accept,
    /// Refuses with this errno.
    Refuse(i32),
    /// Never answers.
    Blackhole,
}

impl Network {
    /// A network whose faults and delays are decided by `seed`. The clock starts at one second.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self {
            world: Rc::new(RefCell::new(World {
                now: Time(1_000_000_000),
                random: Random::new(seed),
                faults,
                conns: Vec::new(),
                backlogs: Vec::new(),
                servers: Vec::new(),
                schedule: BinaryHeap::new(),
                scheduled: 0,
                alarm: None,
                looked_for: false,
            })),
        }
    }

    /// The virtual time.
    pub fn now(&self) -> Time {
        self.world().now
    }

    /// Ends turns at `time` (or at once, when it has passed), so that the test can act then. One at a time.
    pub fn set_alarm(&self, time: Option<Time>) {
        self.world().alarm = time;
    }

    /// Changes what goes wrong from here on.
    pub fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// Connects to a listener of the ring, from `address`.
    pub fn connect(&self, listener: ListenSlot, address: IpAddr) -> Peer {
        let mut world = self.world();
        let conn = world.new_conn(Stage::Connecting);
        let at = world.arrival();
        world.plan(
            at,
            Happening::Knock {
                conn,
                listener,
                address,
            },
        );
        Peer(conn)
    }

    /// How connects of the ring to `target` are answered from here on. Without this they are refused.
    pub fn serve(&self, target: &Target, serve: Serve) {
        let mut world = self.world();
        match world
            .servers
            .iter_mut()
            .find(|server| server.target == *target)
        {
            Some(server) => server.serve = serve,
            None => world.servers.push(Server {
                target: target.clone(),
                serve,
                accepted: VecDeque::new(),
            }),
        }
    }

    /// The next connection that the ring made to `target`.
    pub fn accept(&self, target: &Target) -> Option<Peer> {
        let mut world = self.world();
        let server = world
            .servers
            .iter_mut()
            .find(|server| server.target == *target)?;
        server.accepted.pop_front().map(Peer)
    }

    /// Writes as much as there is room for; returns how much. 0 when the connection is not open.
    pub fn write(&self, peer: Peer, bytes: &[u8]) -> usize {
        self.world().write(peer.0, Side::Peer, bytes).unwrap_or(0)
    }

    /// Reads at most `most` bytes of what has arrived. A test that does not read fills the connection.
    pub fn read(&self, peer: Peer, most: usize) -> Vec<u8> {
        self.world().read(peer.0, most)
    }

    /// Where the connection stands.
    pub fn state(&self, peer: Peer) -> PeerState {
        self.world().state(peer.0)
    }

    /// Sends FIN; the peer may go on reading.
    pub fn finish(&self, peer: Peer) {
        self.world().finish(peer.0, Side::Peer);
    }

    /// Closes. With bytes unread the ring sees a reset, as with real sockets.
    pub fn close(&self, peer: Peer) {
        self.world().close(peer.0, Side::Peer);
    }

    /// What the ring makes the kernel do should this peer's machine vanish.
    pub fn keep_alive(&self, peer: Peer) -> Option<KeepAlive> {
        self.world().conn(peer.0).and_then(|conn| conn.keep_alive)
    }

    /// Breaks the connection.
    pub fn reset(&self, peer: Peer) {
        let mut world = self.world();
        if let Some(conn) = world.conn(peer.0) {
            conn.peer_closed = true;
        }
        world.send_segment(peer.0, Side::Ring, Segment::Reset);
    }

    pub(super) fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnId(u32);

impl ConnId {
    /// The port that its peer connects from.
    fn port(self) -> u16 {
        u16::try_from(1024 + self.0 % 64_000).unwrap_or(u16::MAX)
    }
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Ring,
    Peer,
}

/// What the ring hears of the network.
pub(super) enum News {
    Readable(SocketId),
    Room(SocketId),
    Connected(SocketId),
    ConnectFailed(SocketId, i32),
}

pub(super) struct World {
    now: Time,
    random: Random,
    faults: Faults,
    conns: Vec<Conn>,
    backlogs: Vec<(ListenSlot, VecDeque<(ConnId, IpAddr)>)>,
    servers: Vec<Server>,
    schedule: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    /// Numbers the plans, so that what is planned first for a time happens first.
    scheduled: u64,
    alarm: Option<Time>,
    /// True from the time when a test has something to look at until a turn has ended for it.
    looked_for: bool,
}

struct Server {
    target: Target,
    serve: Serve,
    accepted: VecDeque<ConnId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Open,
    Refused,
}

struct Conn {
    stage: Stage,
    socket: Option<SocketId>,
    to_ring: Pipe,
    to_peer: Pipe,
    ring_closed: bool,
    peer_closed: bool,
    /// The ring closes with a reset.
    resets: bool,
    /// What the ring has asked for. Machines never vanish here.
    keep_alive: Option<KeepAlive>,
}

/// One direction.
#[derive(Default)]
struct Pipe {
    flying: VecDeque<(Time, Segment)>,
    last_arrival: Time,
    arrived: VecDeque<u8>,
    end: Option<End>,
    /// Bytes written and not read.
    occupied: usize,
    finished: bool,
    /// The writer found no room, and is told when there is some.
    starved: bool,
}

enum Segment {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// Segments have come to the end of their way to this side.
    Arrive {
        conn: ConnId,
        to: Side,
    },
    /// The peer has read, and the ring learns of the room.
    Room {
        conn: ConnId,
    },
    /// A peer's connection comes to a listener.
    Knock {
        conn: ConnId,
        listener: ListenSlot,
        address: IpAddr,
    },
    /// A connect of the ring comes to a server (by index), or nowhere.
    Dial {
        conn: ConnId,
        server: Option<usize>,
    },
    DialFail {
        conn: ConnId,
        errno: i32,
    },
}

/// For the ring: time and chance.
impl World {
    pub(super) fn now(&self) -> Time {
        self.now
    }

    pub(super) fn next_time(&self) -> Option<Time> {
        self.schedule.peek().map(|Reverse((at, ..))| *at)
    }

    pub(super) fn alarm(&self) -> Option<Time> {
        self.alarm
    }

    /// Moves the clock to `time`, but not beyond the alarm. True when the alarm went off.
    pub(super) fn advance(&mut self, time: Time) -> bool {
        match self.alarm {
            Some(alarm) if alarm <= time => {
                self.now = self.now.max(alarm);
                self.alarm = None;
                true
            }
            _ => {
                self.now = self.now.max(time);
                false
            }
        }
    }

    /// Whether the test has something to look at. Answers yes once.
    pub(super) fn take_news(&mut self) -> bool {
        let alarm = self.alarm.is_some_and(|alarm| alarm <= self.now);
        if alarm {
            self.alarm = None;
        }
        std::mem::take(&mut self.looked_for) || alarm
    }

    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        if self.faults.reorder {
            self.random.shuffle(values);
        }
    }

    pub(super) fn up_to(&mut self, most: u64) -> u64 {
        self.random.below(most) + 1
    }

    pub(super) fn accept_fails(&mut self) -> bool {
        self.random.chance(self.faults.accept_failure)
    }

    pub(super) fn buffers_run_out(&mut self) -> bool {
        self.random.chance(self.faults.no_buffers)
    }

    pub(super) fn spurious_wake(&mut self) -> bool {
        self.random.chance(self.faults.spurious_wake)
    }

    /// Everything planned up to now happens; what concerns the ring is returned.
    pub(super) fn run_due(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        while let Some(Reverse((at, ..))) = self.schedule.peek()
            && *at <= self.now
            && let Some(Reverse((_, _, happening))) = self.schedule.pop()
        {
            news.extend(self.happen(happening));
        }
        news
    }

    fn happen(&mut self, happening: Happening) -> Option<News> {
        match happening {
            Happening::Arrive { conn, to } => self.arrive(conn, to),
            Happening::Room { conn } => {
                let socket = self.conn(conn)?.socket?;
                Some(News::Room(socket))
            }
            Happening::Knock {
                conn,
                listener,
                address,
            } => {
                self.looked_for = true;
                match self.backlogs.iter_mut().find(|(slot, _)| *slot == listener) {
                    Some((_, backlog)) => backlog.push_back((conn, address)),
                    None => self.conn(conn)?.stage = Stage::Refused,
                }
                None
            }
            Happening::Dial { conn, server } => {
                let index = server?;
                let serve = self.servers.get(index)?.serve;
                match serve {
                    Serve::Blackhole => None,
                    Serve::Refuse(errno) => self.dial_failed(conn, errno),
                    Serve::Accept => {
                        let found = self.conn(conn)?;
                        let socket = found.socket?;
                        found.stage = Stage::Open;
                        self.servers.get_mut(index)?.accepted.push_back(conn);
                        self.looked_for = true;
                        Some(News::Connected(socket))
                    }
                }
            }
            Happening::DialFail { conn, errno } => self.dial_failed(conn, errno),
        }
    }

    fn dial_failed(&mut self, conn: ConnId, errno: i32) -> Option<News> {
        let found = self.conn(conn)?;
        found.stage = Stage::Refused;
        let socket = found.socket.take()?;
        Some(News::ConnectFailed(socket, errno))
    }

    /// Moves what has come to its end into the pipe's received bytes.
    fn arrive(&mut self, id: ConnId, to: Side) -> Option<News> {
        let now = self.now;
        let found = self.conn(id)?;
        let closed = match to {
            Side::Ring => found.ring_closed,
            Side::Peer => found.peer_closed,
        };
        let pipe = found.pipe(to);
        let (mut came, mut broken) = (false, false);
        while pipe.flying.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, segment)) = pipe.flying.pop_front()
        {
            came = true;
            match segment {
                Segment::Bytes(_) if pipe.end.is_some() => {}
                Segment::Bytes(bytes) if !closed => pipe.arrived.extend(bytes),
                Segment::Bytes(_) => broken = true,
                Segment::Fin => pipe.end = pipe.end.or(Some(End::Eof)),
                Segment::Reset => pipe.end = Some(End::Failed(libc::ECONNRESET)),
            }
        }
        let reset = matches!(pipe.end, Some(End::Failed(_)));
        if broken {
            // Bytes for an end that is closed are answered by a reset.
            self.send_segment(id, to.other(), Segment::Reset);
        }
        let found = self.conn(id)?;
        if !came {
            return None;
        }
        match to {
            Side::Peer => {
                self.looked_for = true;
                None
            }
            Side::Ring => {
                let socket = found.socket?;
                if reset && found.to_peer.starved {
                    // The waiting send of the ring learns of the reset as well.
                    self.plan(now, Happening::Room { conn: id });
                }
                Some(News::Readable(socket))
            }
        }
    }
}

/// For the ring: its ends of the connections.
impl World {
    pub(super) fn listening(&mut self, listener: ListenSlot, on: bool) {
        let at = self.backlogs.iter().position(|(slot, _)| *slot == listener);
        match at {
            None if on => self.backlogs.push((listener, VecDeque::new())),
            Some(at) if !on => {
                let (_, backlog) = self.backlogs.remove(at);
                for (conn, _) in backlog {
                    self.close(conn, Side::Ring);
                }
            }
            None | Some(_) => {}
        }
    }

    pub(super) fn take_waiting(&mut self, listener: ListenSlot) -> Option<(ConnId, SocketAddr)> {
        let (_, backlog) = self
            .backlogs
            .iter_mut()
            .find(|(slot, _)| *slot == listener)?;
        let (conn, address) = backlog.pop_front()?;
        self.looked_for = true;
        let found = self.conn(conn)?;
        found.stage = Stage::Open;
        Some((conn, SocketAddr::new(address, conn.port())))
    }

    pub(super) fn dial(&mut self, target: &Target) -> ConnId {
        let conn = self.new_conn(Stage::Connecting);
        let at = self.arrival();
        if self.random.chance(self.faults.connect_hang) {
            return conn;
        }
        if self.random.chance(self.faults.connect_failure) {
            let errno =
                self.random
                    .pick(&[libc::ECONNREFUSED, libc::ETIMEDOUT, libc::EHOSTUNREACH]);
            self.plan(at, Happening::DialFail { conn, errno });
            return conn;
        }
        let server = self
            .servers
            .iter()
            .position(|server| server.target == *target);
        if server.is_none() {
            let errno = libc::ECONNREFUSED;
            self.plan(at, Happening::DialFail { conn, errno });
        } else {
            self.plan(at, Happening::Dial { conn, server });
        }
        conn
    }

    /// The ring uses this connection as `socket`.
    pub(super) fn attach(&mut self, conn: ConnId, socket: SocketId) {
        if let Some(found) = self.conn(conn) {
            found.socket = Some(socket);
        }
    }

    pub(super) fn readable(&self, conn: ConnId) -> bool {
        let found = self.conns.get(conn.0 as usize);
        found.is_some_and(|found| !found.to_ring.arrived.is_empty() || found.to_ring.end.is_some())
    }

    /// Reads what has arrived, or says why nothing more will.
    pub(super) fn read_into(&mut self, conn: ConnId, space: &mut [u8]) -> Result<usize, End> {
        let most = self.faults.segment_bytes_max.max(1).min(space.len());
        let len = self.random.length(most);
        let Some(found) = self.conn(conn) else {
            return Err(End::Eof);
        };
        let pipe = &mut found.to_ring;
        if pipe.arrived.is_empty() {
            return pipe.end.map_or(Ok(0), Err);
        }
        let len = len.min(pipe.arrived.len());
        for (to, byte) in space.iter_mut().zip(pipe.arrived.drain(..len)) {
            *to = byte;
        }
        pipe.occupied = pipe.occupied.saturating_sub(len);
        if std::mem::take(&mut pipe.starved) {
            self.looked_for = true;
        }
        Ok(len)
    }

    /// Writes for `from`, without waiting. How much was taken, or errno.
    pub(super) fn write(&mut self, id: ConnId, from: Side, bytes: &[u8]) -> Result<usize, i32> {
        if self.random.chance(self.faults.reset) {
            self.send_segment(id, Side::Ring, Segment::Reset);
            self.send_segment(id, Side::Peer, Segment::Reset);
        }
        let short = from == Side::Ring && self.random.chance(self.faults.short_send);
        let (capacity, segment_max) = (self.faults.capacity_bytes, self.faults.segment_bytes_max);
        let Some(found) = self.conn(id) else {
            return Err(libc::EPIPE);
        };
        let back_broken = matches!(found.pipe(from).end, Some(End::Failed(_)));
        let closed = match from {
            Side::Ring => found.ring_closed,
            Side::Peer => found.peer_closed,
        };
        let open =
            found.stage == Stage::Open || (from == Side::Peer && found.stage == Stage::Connecting);
        let pipe = found.pipe(from.other());
        if back_broken || closed || !open || pipe.finished {
            return Err(libc::EPIPE);
        }
        let room = capacity.saturating_sub(pipe.occupied);
        let mut taken = bytes.len().min(room);
        if short {
            let most = u64::try_from(taken).unwrap_or(u64::MAX);
            taken = usize::try_from(self.random.below(most.saturating_add(1))).unwrap_or(0);
        }
        let mut rest = bytes.get(..taken).unwrap_or(&[]);
        while !rest.is_empty() {
            let len = self.random.length(segment_max.max(1)).min(rest.len());
            let (segment, after) = rest.split_at(len);
            self.send_segment(id, from.other(), Segment::Bytes(segment.to_vec()));
            rest = after;
        }
        if let Some(found) = self.conn(id) {
            let pipe = found.pipe(from.other());
            pipe.occupied += taken;
            pipe.starved = taken < bytes.len();
        }
        Ok(taken)
    }

    /// As [`Self::write`] for a send of the ring that waits for room: Ok(0) means that the world tells when there is some.
    pub(super) fn write_waiting(&mut self, id: ConnId, bytes: &[u8]) -> Result<usize, i32> {
        let taken = self.write(id, Side::Ring, bytes)?;
        let capacity = self.faults.capacity_bytes;
        let occupied = self.conn(id).map_or(0, |found| found.to_peer.occupied);
        if taken == 0 && occupied < capacity {
            // Short by chance only; there is room, so try again a little later.
            let at = self.arrival();
            self.plan(at, Happening::Room { conn: id });
        }
        Ok(taken)
    }

    pub(super) fn finish(&mut self, id: ConnId, from: Side) {
        if let Some(found) = self.conn(id) {
            let pipe = found.pipe(from.other());
            if !std::mem::replace(&mut pipe.finished, true) {
                self.send_segment(id, from.other(), Segment::Fin);
            }
        }
    }

    pub(super) fn keep_alive(&mut self, id: ConnId, keep_alive: KeepAlive) {
        if let Some(found) = self.conn(id) {
            found.keep_alive = Some(keep_alive);
        }
    }

    pub(super) fn reset_when_closed(&mut self, id: ConnId) {
        if let Some(found) = self.conn(id) {
            found.resets = true;
        }
    }

    pub(super) fn close(&mut self, id: ConnId, side: Side) {
        let Some(found) = self.conn(id) else {
            return;
        };
        let closed = match side {
            Side::Ring => &mut found.ring_closed,
            Side::Peer => &mut found.peer_closed,
        };
        if std::mem::replace(closed, true) {
            return;
        }
        if side == Side::Ring {
            found.socket = None;
            if found.stage == Stage::Connecting {
                found.stage = Stage::Refused;
                self.looked_for = true;
                return;
            }
        }
        let unread = !found.pipe(side).arrived.is_empty();
        let resets = side == Side::Ring && found.resets;
        found.pipe(side).arrived = VecDeque::new();
        if unread || resets {
            self.send_segment(id, side.other(), Segment::Reset);
        } else {
            self.finish(id, side);
        }
    }
}

/// For the peers, and the ways between.
impl World {
    fn read(&mut self, id: ConnId, most: usize) -> Vec<u8> {
        let at = self.arrival();
        let Some(found) = self.conn(id) else {
            return Vec::new();
        };
        let pipe = &mut found.to_peer;
        let len = most.min(pipe.arrived.len());
        let bytes: Vec<u8> = pipe.arrived.drain(..len).collect();
        pipe.occupied = pipe.occupied.saturating_sub(len);
        if len > 0 && std::mem::take(&mut pipe.starved) {
            self.plan(at, Happening::Room { conn: id });
        }
        bytes
    }

    fn state(&self, id: ConnId) -> PeerState {
        let Some(found) = self.conns.get(id.0 as usize) else {
            return PeerState::Closed;
        };
        match (found.stage, found.to_peer.end) {
            _ if found.peer_closed => PeerState::Closed,
            (Stage::Refused, _) => PeerState::Refused,
            (_, Some(End::Failed(_))) => PeerState::Reset,
            (_, Some(End::Eof)) => PeerState::Finished,
            (Stage::Connecting, None) => PeerState::Connecting,
            (Stage::Open, None) => PeerState::Open,
        }
    }

    fn new_conn(&mut self, stage: Stage) -> ConnId {
        let id = ConnId(u32::try_from(self.conns.len()).unwrap_or(u32::MAX));
        self.conns.push(Conn {
            stage,
            socket: None,
            to_ring: Pipe::default(),
            to_peer: Pipe::default(),
            ring_closed: false,
            peer_closed: false,
            resets: false,
            keep_alive: None,
        });
        id
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.0 as usize)
    }

    fn send_segment(&mut self, id: ConnId, to: Side, segment: Segment) {
        let at = self.arrival();
        if let Some(found) = self.conn(id) {
            let pipe = found.pipe(to);
            let at = at.max(pipe.last_arrival);
            pipe.last_arrival = at;
            pipe.flying.push_back((at, segment));
            self.plan(at, Happening::Arrive { conn: id, to });
        }
    }

    /// When something sent now arrives.
    fn arrival(&mut self) -> Time {
        let most = u64::try_from(self.faults.delay_max.as_nanos()).unwrap_or(u64::MAX);
        let nanos = self.random.below(most.saturating_add(1));
        Time(self.now.0.saturating_add(nanos))
    }

    fn plan(&mut self, at: Time, happening: Happening) {
        self.scheduled += 1;
        self.schedule.push(Reverse((at, self.scheduled, happening)));
    }
}

impl Conn {
    /// The direction towards `to`.
    fn pipe(&mut self, to: Side) -> &mut Pipe {
        match to {
            Side::Ring => &mut self.to_ring,
            Side::Peer => &mut self.to_peer,
        }
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Ring => Self::Peer,
            Self::Peer => Self::Ring,
        }
    }
}
