//! The admin server's connections: bounded in number, in idleness, and in the time a request may take to arrive.
//!
//! Descriptors belong to devices. Whoever holds admin connections open, by accident or not, holds a few, and not for
//! ever; and nobody keeps a probe out: when all places are taken, the longest idle connection gives way to the newcomer.
//! Idle is who draws no answer: bytes that trickle in are no progress.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep};

/// Bounds of the admin server's connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections_max: usize,
    /// Longest time from a request's first byte (for the first one: from the beginning of the connection) to the first
    /// byte of its answer.
    pub(super) request_max: Duration,
    /// Longest silence after an answer.
    pub(super) idle_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Scrapers, probes, a few people.
            connections_max: 64,
            // A request is one small packet, and every answer is at hand or given up within seconds.
            request_max: Duration::from_secs(10),
            // Longer than the usual pause between two scrapes.
            idle_max: Duration::from_secs(75),
        }
    }
}

/// See the module documentation.
pub(super) struct Bounded {
    socket: TcpListener,
    limits: Limits,
    free: Arc<Semaphore>,
    held: Arc<Held>,
    next_number: u64,
}

/// One connection and its place.
pub(super) struct Connection {
    stream: TcpStream,
    patience: Patience,
    timer: Pin<Box<Sleep>>,
    /// Ends when the place was given to somebody else.
    evicted: oneshot::Receiver<()>,
    /// True exactly when `timer` or `evicted` has ended.
    is_over: bool,
    place: Place,
}

impl Bounded {
    pub(super) fn new(socket: TcpListener, limits: Limits) -> Self {
        Self {
            socket,
            limits,
            free: Arc::new(Semaphore::new(limits.connections_max)),
            held: Arc::default(),
            next_number: 0,
        }
    }

    /// A place for one more connection, if need be that of another.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(permit);
        }
        self.held.evict_longest_idle();
        Arc::clone(&self.free).acquire_owned().await.ok()
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // Retries by itself, with a pause when descriptors are short.
            let (stream, peer) = Listener::accept(&mut self.socket).await;
            // The semaphore is never closed; were it, nobody could be served any more.
            let Some(permit) = self.place().await else {
                continue;
            };
            let number = self.next_number;
            self.next_number += 1;
            let now = Instant::now();
            let patience = Patience::new(now, self.limits);
            let connection = Connection {
                stream,
                timer: Box::pin(tokio::time::sleep_until(patience.until)),
                patience,
                evicted: self.held.enter(number, now),
                is_over: false,
                place: Place {
                    number,
                    held: Arc::clone(&self.held),
                    _permit: permit,
                },
            };
            return (connection, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Connection {
    /// Asked before every read and write, so that whoever is over learns it however busy the other side keeps us.
    fn go_on(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_over = self.is_over
            || self.timer.as_mut().poll(context).is_ready()
            || Pin::new(&mut self.evicted).poll(context).is_ready();
        if self.is_over {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.go_on(context)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.patience.received(Instant::now());
            let until = self.patience.until;
            self.timer.as_mut().reset(until);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.go_on(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            let now = Instant::now();
            self.patience.answered(now);
            let until = self.patience.until;
            self.timer.as_mut().reset(until);
            self.place.held.answered(self.place.number, now);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// How long a connection is waited for. Time is given.
#[derive(Debug)]
struct Patience {
    limits: Limits,
    until: Instant,
    /// True from the first byte of a request to the first of its answer; more bytes buy no more time.
    awaits_request: bool,
}

impl Patience {
    fn new(now: Instant, limits: Limits) -> Self {
        Self {
            limits,
            until: now + limits.request_max,
            awaits_request: true,
        }
    }

    fn received(&mut self, now: Instant) {
        if !self.awaits_request {
            self.awaits_request = true;
            self.until = now + self.limits.request_max;
        }
    }

    fn answered(&mut self, now: Instant) {
        self.awaits_request = false;
        self.until = now + self.limits.idle_max;
    }
}

/// A place; given back when dropped.
struct Place {
    number: u64,
    held: Arc<Held>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held.lock().remove(&self.number);
    }
}

/// The connections that have a place, by number.
#[derive(Default)]
struct Held {
    connections: Mutex<BTreeMap<u64, Holder>>,
}

struct Holder {
    idle_since: Instant,
    /// Its end tells the connection to go.
    _stay: oneshot::Sender<()>,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Holder>> {
        // Nothing panics between lock and unlock.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, number: u64, now: Instant) -> oneshot::Receiver<()> {
        let (stay, evicted) = oneshot::channel();
        let holder = Holder {
            idle_since: now,
            _stay: stay,
        };
        self.lock().insert(number, holder);
        evicted
    }

    fn answered(&self, number: u64, now: Instant) {
        if let Some(holder) = self.lock().get_mut(&number) {
            holder.idle_since = now;
        }
    }

    fn evict_longest_idle(&self) {
        let mut connections = self.lock();
        let longest = connections
            .iter()
            .min_by_key(|(_, holder)| holder.idle_since)
            .map(|(number, _)| *number);
        if let Some(number) = longest {
            connections.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const PART: &[u8] = b"GET / HTTP/1.1\r\nHo";
    /// Longest wait for anything; reached only by a failing test.
    const PATIENCE: Duration = Duration::from_secs(20);
    const NEVER: Duration = Duration::from_secs(3600);

    async fn server(connections_max: usize, request_max: Duration, idle_max: Duration) -> Server {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let router = Router::new().route("/", get(|| async { "here" }));
        let limits = Limits {
            connections_max,
            request_max,
            idle_max,
        };
        let bounded = Bounded::new(socket, limits);
        let held = Arc::clone(&bounded.held);
        tokio::spawn(async move { axum::serve(bounded, router).await });
        Server { address, held }
    }

    struct Server {
        address: SocketAddr,
        held: Arc<Held>,
    }

    impl Server {
        async fn connect(&self, bytes: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.expect("a queue");
            stream.write_all(bytes).await.expect("sent");
            stream
        }
    }

    async fn answered(stream: &mut TcpStream) {
        let mut buffer = [0; 512];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
        let len = read.expect("in time").expect("an answer");
        assert!(
            buffer
                .get(..len)
                .is_some_and(|text| text.ends_with(b"here"))
        );
    }

    /// Ends without a byte; with bytes of ours unread, the kernel says so by a reset.
    async fn closed(stream: &mut TcpStream) {
        let mut buffer = [0; 1];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
        let read = read.expect("in time");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }

    #[tokio::test]
    async fn one_more_than_the_bound_takes_the_place_of_the_longest_idle() {
        let server = server(2, NEVER, NEVER).await;
        let mut first = server.connect(REQUEST).await;
        answered(&mut first).await;
        let mut second = server.connect(REQUEST).await;
        answered(&mut second).await;
        first.write_all(REQUEST).await.expect("sent");
        answered(&mut first).await;
        let mut third = server.connect(REQUEST).await;
        answered(&mut third).await;
        closed(&mut second).await;
        for stream in [&mut first, &mut third] {
            stream.write_all(REQUEST).await.expect("sent");
            answered(stream).await;
        }
        assert_eq!(server.held.lock().len(), 2, "the bound holds");
    }

    #[tokio::test]
    async fn parts_of_requests_keep_nobody_out() {
        let server = server(3, NEVER, NEVER).await;
        let mut parts = Vec::new();
        for _ in 0..3 {
            parts.push(server.connect(PART).await);
        }
        let mut probe = server.connect(REQUEST).await;
        answered(&mut probe).await;
        // More parts do not make the first ones less idle: whoever was answered last goes last.
        for _ in 0..2 {
            parts.push(server.connect(PART).await);
        }
        probe.write_all(REQUEST).await.expect("sent");
        answered(&mut probe).await;
        let mut other = server.connect(REQUEST).await;
        answered(&mut other).await;
        for part in parts.iter_mut().take(4) {
            closed(part).await;
        }
        probe.write_all(REQUEST).await.expect("sent");
        answered(&mut probe).await;
    }

    #[tokio::test]
    async fn silence_and_parts_of_requests_are_closed() {
        let short = Duration::from_millis(20);
        for (bytes, request_max, idle_max) in [
            (&b""[..], short, NEVER),
            (PART, short, NEVER),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET", NEVER, short),
            (REQUEST, NEVER, short),
        ] {
            let server = server(1, request_max, idle_max).await;
            let mut stream = server.connect(bytes).await;
            if idle_max == short {
                answered(&mut stream).await;
            }
            closed(&mut stream).await;
        }
    }

    #[test]
    fn only_answers_buy_time() {
        let limits = Limits::default();
        let begin = Instant::now();
        let at = |secs: u64| begin + Duration::from_secs(secs);
        let mut patience = Patience::new(begin, limits);
        assert_eq!(patience.until, at(10));
        for secs in 0..10 {
            patience.received(at(secs));
            assert_eq!(patience.until, at(10), "a byte now and then");
        }
        patience.answered(at(9));
        assert_eq!(patience.until, at(9 + 75));
        for secs in 60..70 {
            patience.received(at(secs));
            assert_eq!(patience.until, at(60 + 10), "also for the next request");
        }
        patience.answered(at(69));
        patience.answered(at(80));
        assert_eq!(patience.until, at(80 + 75), "an answer in pieces");
    }
}
