//! A fast counting broker behind the target: one thread, epoll, no policy, QoS 0 deliveries.
//!
//! Answers CONNECT, acknowledges and stamps every PUBLISH, and passes it on to subscribers. Latency from device to broker
//! is measured here, with the clock of the generator. It is not a broker to test behaviour with: nothing is validated
//! and no session is kept. What a slow subscriber does not take is held up to a bound and then dropped and counted.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use super::clock;
use super::cpu;
use super::frame::{self, Frame, Publish, Stamp, Version, kind};
use super::lanes::Ledger;
use super::pace::Window;
use super::report::Latency;

/// Held for one subscriber that does not read; what would go beyond is dropped and counted.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Received at once.
const READ_BYTES: usize = 64 << 10;
/// Senders whose order is checked; a stamp beyond is counted without.
const SENDERS_MAX: usize = 1 << 20;

/// What the sink counts. Written by its thread only.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections open.
    pub open: AtomicU64,
    /// CONNECT packets answered.
    pub connects: AtomicU64,
    /// PUBLISH packets received.
    pub publishes: AtomicU64,
    /// Those of them that were due in the window.
    pub in_window: AtomicU64,
    /// Messages of one sender that came in another order than sent, or twice, or after a gap.
    pub out_of_order: AtomicU64,
    /// Deliveries handed to subscribers.
    pub delivered: AtomicU64,
    /// Deliveries dropped because a subscriber did not read.
    pub dropped: AtomicU64,
}

/// What generator and sink share.
#[derive(Debug, Default)]
struct Shared {
    counts: Counts,
    from_ns: AtomicU64,
    until_ns: AtomicU64,
    stop: AtomicBool,
    latency: Mutex<Latency>,
    ledger: Mutex<Ledger>,
}

/// A running sink; stops when dropped.
pub struct Sink {
    shared: Arc<Shared>,
    tcp: SocketAddr,
    unix: PathBuf,
    wake: OwnedFd,
    thread: Option<JoinHandle<io::Result<()>>>,
    _folder: tempfile::TempDir,
}

impl Sink {
    /// Listens on `tcp` (port 0 for any) and on a Unix socket in a folder of its own.
    pub fn start(tcp: SocketAddr, core: Option<usize>) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("sluice-sink").tempdir()?;
        let unix = folder.path().join("sink.sock");
        let tcp_listener = listen_tcp(tcp)?;
        let tcp = tcp_listener.local_addr()?;
        let unix_listener = UnixListener::bind(&unix)?;
        unix_listener.set_nonblocking(true)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared::default());
        let mut server = Server::new(
            Arc::clone(&shared),
            tcp_listener.into(),
            unix_listener.into(),
            wake.try_clone()?,
        )?;
        let thread = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || {
                if let Some(core) = core {
                    cpu::pin_this_thread(core)?;
                }
                server.run()
            })?;
        Ok(Self {
            shared,
            tcp,
            unix,
            wake,
            thread: Some(thread),
            _folder: folder,
        })
    }

    /// Where it listens by TCP.
    pub fn tcp(&self) -> SocketAddr {
        self.tcp
    }

    /// Where it listens by Unix socket.
    pub fn unix(&self) -> &Path {
        &self.unix
    }

    /// Its counters.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Begins a new measurement: latencies, what is in the window, disorder and drops are counted anew.
    pub fn measure(&self, window: Window) {
        let mut latency = self.lock();
        latency.clear();
        let counts = &self.shared.counts;
        for counter in [&counts.in_window, &counts.out_of_order, &counts.dropped] {
            counter.store(0, Ordering::Relaxed);
        }
        self.shared.from_ns.store(window.from_ns, Ordering::Relaxed);
        self.shared
            .until_ns
            .store(window.until_ns, Ordering::Relaxed);
    }

    /// Latency from the due time to the sink, of messages due in the window.
    pub fn latency(&self) -> Latency {
        self.lock().clone()
    }

    /// Begins to keep a ledger of lanes for so many devices, from their first message on; 0: none.
    pub fn keep_ledger(&self, devices: u32) {
        *self.ledger() = Ledger::new(devices);
    }

    /// The ledger as it is now.
    pub fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        let ledger = &self.shared.ledger;
        ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Latency> {
        // A poisoned lock only means that a thread died while counting; the counts are still counts.
        self.shared
            .latency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4_096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Epoll data of what is not a connection; connections use their index.
const TCP: u64 = u64::MAX;
const UNIX: u64 = u64::MAX - 1;
const WAKE: u64 = u64::MAX - 2;

struct Connection {
    socket: OwnedFd,
    version: Version,
    /// Front of a packet that has not arrived whole.
    carry: Vec<u8>,
    /// What is to be sent.
    out: Vec<u8>,
    waits_for_room: bool,
    is_dirty: bool,
}

struct Server {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    listeners: [OwnedFd; 2],
    _wake: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Connections with something to send, flushed at the end of each batch of events.
    dirty: Vec<usize>,
    subscriptions: Subscriptions,
    /// The next sequence number of each sender.
    next: Vec<u32>,
    window: Window,
}

impl Server {
    fn new(shared: Arc<Shared>, tcp: OwnedFd, unix: OwnedFd, wake: OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (fd, data) in [(&tcp, TCP), (&unix, UNIX), (&wake, WAKE)] {
            epoll::add(&epoll, fd, EventData::new_u64(data), EventFlags::IN)?;
        }
        Ok(Self {
            shared,
            epoll,
            listeners: [tcp, unix],
            _wake: wake,
            connections: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            subscriptions: Subscriptions::default(),
            next: Vec::new(),
            window: Window::default(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1_024);
        let mut buffer = vec![MaybeUninit::uninit(); READ_BYTES];
        loop {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.shared.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            self.window = Window {
                from_ns: self.shared.from_ns.load(Ordering::Relaxed),
                until_ns: self.shared.until_ns.load(Ordering::Relaxed),
            };
            for event in &events {
                // The kernel's structure is packed: its fields are copied, never borrowed.
                let (data, flags) = (event.data, event.flags);
                match data.u64() {
                    TCP => self.accept(0)?,
                    UNIX => self.accept(1)?,
                    WAKE => {}
                    index => {
                        let index = usize::try_from(index).unwrap_or(usize::MAX);
                        if flags.contains(EventFlags::OUT) {
                            self.mark_dirty(index);
                        }
                        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                            self.read(index, &mut buffer);
                        }
                    }
                }
            }
            self.flush();
        }
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        let Some(listener) = self.listeners.get(listener) else {
            return Ok(());
        };
        loop {
            let socket = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            // A Unix socket has no such option, and needs none.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            epoll::add(
                &self.epoll,
                &socket,
                EventData::new_u64(index as u64),
                EventFlags::IN,
            )?;
            if let Some(slot) = self.connections.get_mut(index) {
                *slot = Some(Connection {
                    socket,
                    version: Version::V311,
                    carry: Vec::new(),
                    out: Vec::new(),
                    waits_for_room: false,
                    is_dirty: false,
                });
            }
            self.shared.counts.open.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&mut self, index: usize, buffer: &mut [MaybeUninit<u8>]) {
        // Taken out while its packets are handled, because they may touch other connections.
        let Some(mut connection) = self.connections.get_mut(index).and_then(Option::take) else {
            return;
        };
        let alive = match recv(&connection.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((([], _), _)) => false,
            Ok(((initialised, _), _)) => self.bytes(index, &mut connection, initialised),
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        };
        let owes = !connection.out.is_empty();
        if alive {
            if let Some(slot) = self.connections.get_mut(index) {
                *slot = Some(connection);
            }
            if owes {
                self.mark_dirty(index);
            }
        } else {
            // What it is still owed (a CONNACK before an early close) is of no use to anyone.
            drop(connection);
            self.subscriptions.forget(index);
            self.free.push(index);
            self.shared.counts.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Handles what arrived; false when the connection is over.
    fn bytes(&mut self, index: usize, connection: &mut Connection, arrived: &[u8]) -> bool {
        let mut carry = std::mem::take(&mut connection.carry);
        let was_cut = !carry.is_empty();
        if was_cut {
            carry.extend_from_slice(arrived);
        }
        let joined = if was_cut { carry.as_slice() } else { arrived };
        let now = clock::now();
        let mut rest = joined;
        let alive = loop {
            match frame::cut(rest) {
                Ok(Some(packet)) => {
                    rest = rest.get(packet.total..).unwrap_or(&[]);
                    if !self.packet(index, connection, packet, now) {
                        break false;
                    }
                }
                Ok(None) => break true,
                Err(frame::NotMqtt) => break false,
            }
        };
        let handled = joined.len() - rest.len();
        if was_cut {
            carry.drain(..handled);
        } else {
            carry.extend_from_slice(arrived.get(handled..).unwrap_or(&[]));
        }
        connection.carry = carry;
        alive
    }

    fn packet(
        &mut self,
        index: usize,
        connection: &mut Connection,
        packet: Frame<'_>,
        now: u64,
    ) -> bool {
        let out = &mut connection.out;
        match packet.kind() {
            kind::CONNECT => {
                connection.version = version_of(packet.body);
                let properties: &[u8] = match connection.version {
                    Version::V5 => &[0, 0, 0],
                    Version::V31 | Version::V311 => &[0, 0],
                };
                frame::push_packet(kind::CONNACK << 4, properties, out);
                self.shared.counts.connects.fetch_add(1, Ordering::Relaxed);
            }
            kind::PUBLISH => {
                let Some(publish) = packet.publish(connection.version) else {
                    return false;
                };
                match publish.qos {
                    1 => frame::push_ack(kind::PUBACK, publish.packet_id, out),
                    2 => frame::push_ack(kind::PUBREC, publish.packet_id, out),
                    _ => {}
                }
                self.stamp(publish, now);
                self.deliver(index, connection, publish);
            }
            kind::PUBREL => {
                frame::push_ack(kind::PUBCOMP, packet.packet_id().unwrap_or(0), out);
            }
            kind::SUBSCRIBE => {
                if let Some(filter) = first_filter(packet.body, connection.version) {
                    self.subscriptions.add(index, filter);
                }
                let id = packet.packet_id().unwrap_or(0).to_be_bytes();
                match connection.version {
                    Version::V5 => {
                        frame::push_packet(kind::SUBACK << 4, &[id[0], id[1], 0, 0], out)
                    }
                    Version::V31 | Version::V311 => {
                        frame::push_packet(kind::SUBACK << 4, &[id[0], id[1], 0], out);
                    }
                }
            }
            kind::PINGREQ => frame::push_packet(kind::PINGRESP << 4, &[], out),
            kind::DISCONNECT => return false,
            _ => {}
        }
        true
    }

    fn stamp(&mut self, publish: Publish<'_>, now: u64) {
        let counts = &self.shared.counts;
        counts.publishes.fetch_add(1, Ordering::Relaxed);
        let Some(stamp) = Stamp::read(publish.payload) else {
            return;
        };
        let ledger = &self.shared.ledger;
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.note(stamp.sender, stamp.sequence);
        drop(ledger);
        let sender = stamp.sender as usize;
        if sender < SENDERS_MAX {
            if self.next.len() <= sender {
                self.next.resize(sender + 1, 0);
            }
            if let Some(next) = self.next.get_mut(sender) {
                // Sequence 0 is a sender that has begun anew.
                if stamp.sequence != *next && stamp.sequence != 0 {
                    counts.out_of_order.fetch_add(1, Ordering::Relaxed);
                }
                *next = stamp.sequence.wrapping_add(1);
            }
        }
        if self.window.holds(stamp.due_ns) {
            counts.in_window.fetch_add(1, Ordering::Relaxed);
            self.shared
                .latency
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .record_ns(now.saturating_sub(stamp.due_ns));
        }
    }

    fn deliver(&mut self, from: usize, sender: &mut Connection, publish: Publish<'_>) {
        if self.subscriptions.is_empty() {
            return;
        }
        let mut body = Vec::with_capacity(2 + publish.topic.len() + publish.after_id.len());
        body.extend_from_slice(&(publish.topic.len() as u16).to_be_bytes());
        body.extend_from_slice(publish.topic);
        body.extend_from_slice(publish.after_id);
        let mut whole = Vec::with_capacity(body.len() + 5);
        frame::push_packet(kind::PUBLISH << 4, &body, &mut whole);
        let to = self.subscriptions.matching(publish.topic);
        for index in to {
            let out = if index == from {
                Some(&mut sender.out)
            } else {
                self.connections
                    .get_mut(index)
                    .and_then(Option::as_mut)
                    .map(|connection| &mut connection.out)
            };
            let Some(out) = out else { continue };
            let counts = &self.shared.counts;
            if out.len() + whole.len() > BACKLOG_BYTES_MAX {
                counts.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            out.extend_from_slice(&whole);
            counts.delivered.fetch_add(1, Ordering::Relaxed);
            self.mark_dirty(index);
        }
    }

    fn mark_dirty(&mut self, index: usize) {
        if let Some(Some(connection)) = self.connections.get_mut(index)
            && !connection.is_dirty
        {
            connection.is_dirty = true;
            self.dirty.push(index);
        }
    }

    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let Some(Some(connection)) = self.connections.get_mut(index) else {
                continue;
            };
            connection.is_dirty = false;
            if !connection.out.is_empty() {
                // The end of a broken connection is seen by reading it.
                if let Ok(sent) = send(&connection.socket, &connection.out, SendFlags::NOSIGNAL) {
                    connection.out.drain(..sent);
                }
            }
            let must_wait = !connection.out.is_empty();
            if must_wait != connection.waits_for_room {
                connection.waits_for_room = must_wait;
                let flags = if must_wait {
                    EventFlags::IN | EventFlags::OUT
                } else {
                    EventFlags::IN
                };
                let data = EventData::new_u64(index as u64);
                let _ = epoll::modify(&self.epoll, connection.socket.as_fd(), data, flags);
            }
        }
        self.dirty = dirty;
    }
}

/// The version a CONNECT names; anything unknown is read as 3.1.1.
fn version_of(body: &[u8]) -> Version {
    match frame::text(body).and_then(|(_, rest)| rest.first()) {
        Some(3) => Version::V31,
        Some(5) => Version::V5,
        _ => Version::V311,
    }
}

/// The first filter of a SUBSCRIBE; the load tester never sends more, nor properties.
fn first_filter(body: &[u8], version: Version) -> Option<&[u8]> {
    let at = if version == Version::V5 { 3 } else { 2 };
    frame::text(body.get(at..)?).map(|(filter, _)| filter)
}

/// Who wants what: exact topics by hash, filters with wildcards one by one.
#[derive(Default)]
struct Subscriptions {
    exact: HashMap<Vec<u8>, Vec<usize>>,
    wild: Vec<(Vec<u8>, usize)>,
}

impl Subscriptions {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wild.is_empty()
    }

    fn add(&mut self, connection: usize, filter: &[u8]) {
        if filter.iter().any(|byte| matches!(byte, b'+' | b'#')) {
            self.wild.push((filter.to_vec(), connection));
        } else {
            self.exact
                .entry(filter.to_vec())
                .or_default()
                .push(connection);
        }
    }

    fn forget(&mut self, connection: usize) {
        if self.is_empty() {
            return;
        }
        self.wild.retain(|(_, holder)| *holder != connection);
        self.exact.retain(|_, holders| {
            holders.retain(|holder| *holder != connection);
            !holders.is_empty()
        });
    }

    fn matching(&self, topic: &[u8]) -> Vec<usize> {
        let mut found = self.exact.get(topic).cloned().unwrap_or_default();
        found.extend(
            self.wild
                .iter()
                .filter(|(filter, _)| matches(filter, topic))
                .map(|(_, connection)| *connection),
        );
        found
    }
}

/// Whether a filter with wildcards matches a topic, level by level.
fn matches(filter: &[u8], topic: &[u8]) -> bool {
    let mut levels = topic.split(|byte| *byte == b'/');
    for wanted in filter.split(|byte| *byte == b'/') {
        if wanted == b"#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == b"+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_level_by_level() {
        let cases = [
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("a/+", "a", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a/b", true),
            ("+/b", "a/b", true),
            ("+/b", "a/c", false),
        ];
        for (filter, topic, expected) in cases {
            assert_eq!(
                matches(filter.as_bytes(), topic.as_bytes()),
                expected,
                "{filter} on {topic}"
            );
        }
    }

    #[test]
    fn a_closed_connection_is_forgotten() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.add(1, b"a");
        subscriptions.add(2, b"a");
        subscriptions.add(1, b"#");
        assert_eq!(subscriptions.matching(b"a"), [1, 2, 1]);
        subscriptions.forget(1);
        assert_eq!(subscriptions.matching(b"a"), [2]);
        subscriptions.forget(2);
        assert!(subscriptions.is_empty());
    }
}
