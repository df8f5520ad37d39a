//! Connections from outside: bounded in number, and in the time that strangers may keep one.
//!
//! Places belong to those who proved who they are. A connection over which nobody has, within a deadline, is closed; and
//! when all places are taken, the oldest such connection gives way to a newcomer. So whoever opens connections and says
//! nothing keeps nobody out, nor does who was sent away and stays. Knows no protocol.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use metrics::{Counter, counter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use crate::auth::Peer;

/// Bounds of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Longest time until somebody proves who they are; a TLS handshake is part of it.
    pub stranger_max: Duration,
}

/// A listening socket with bounds.
pub struct Bounded {
    socket: TcpListener,
    limits: Limits,
    is_tls: bool,
    traffic: Traffic,
    free: Arc<Semaphore>,
    held: Arc<Held>,
    next_number: u64,
}

/// One connection and its place.
pub struct Connection {
    stream: TcpStream,
    peer: Peer,
    timer: Pin<Box<Sleep>>,
    stranger_max: Duration,
    was_proven: bool,
    /// Ends when the place was given to somebody else.
    evicted: oneshot::Receiver<()>,
    /// True exactly when `timer` or `evicted` has ended while the peer was a stranger.
    is_over: bool,
    traffic: Traffic,
    _place: Place,
}

impl Bounded {
    /// Takes over a socket that listens. `is_tls` is what is said of every connection, `server` the label of its bytes.
    pub fn new(socket: TcpListener, limits: Limits, is_tls: bool, server: &'static str) -> Self {
        Self {
            socket,
            limits,
            is_tls,
            traffic: Traffic::of(server),
            free: Arc::new(Semaphore::new(limits.connections_max)),
            held: Arc::default(),
            next_number: 0,
        }
    }

    /// Accepts until the receiver is dropped; then the socket is closed.
    pub fn into_channel(mut self) -> mpsc::Receiver<io::Result<Connection>> {
        let (accepted, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let connection = tokio::select! {
                    () = accepted.closed() => return,
                    (connection, _) = self.accept() => connection,
                };
                if accepted.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }

    /// A place for one more connection, if need be that of a stranger.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(permit);
        }
        self.held.evict_oldest_stranger();
        Arc::clone(&self.free).acquire_owned().await.ok()
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // Retries by itself, with a pause when descriptors are short.
            let (stream, address) = Listener::accept(&mut self.socket).await;
            // The semaphore is never closed; were it, nobody could be served any more.
            let Some(permit) = self.place().await else {
                continue;
            };
            // Answers are small and waited for. A socket that refuses this is as good without.
            let _ = stream.set_nodelay(true);
            let peer = Peer::new(address, self.is_tls);
            let number = self.next_number;
            self.next_number += 1;
            let connection = Connection {
                stream,
                timer: Box::pin(tokio::time::sleep(self.limits.stranger_max)),
                stranger_max: self.limits.stranger_max,
                was_proven: false,
                evicted: self.held.enter(number, peer.clone()),
                is_over: false,
                traffic: self.traffic.clone(),
                peer,
                _place: Place {
                    number,
                    held: Arc::clone(&self.held),
                    _permit: permit,
                },
            };
            return (connection, address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Connection {
    /// Asked before every read and write, so that whoever is over learns it however busy the other side keeps us.
    fn go_on(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.peer.is_proven() {
            self.was_proven = true;
            return Ok(());
        }
        // Revoked or expired: time enough to come with another secret.
        if std::mem::take(&mut self.was_proven) {
            let until = Instant::now() + self.stranger_max;
            self.timer.as_mut().reset(until);
        }
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
        let bytes = buffer.filled().len() - before;
        self.traffic.received.increment(bytes as u64);
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
        self.traffic.count_sent(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.go_on(context)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.traffic.count_sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Counts the bytes of a listener's connections.
#[derive(Clone)]
struct Traffic {
    received: Counter,
    sent: Counter,
}

impl Traffic {
    fn of(server: &'static str) -> Self {
        let traffic = Self {
            received: counter!("sluice_control_received_bytes_total", "server" => server),
            sent: counter!("sluice_control_sent_bytes_total", "server" => server),
        };
        traffic.received.increment(0);
        traffic.sent.increment(0);
        traffic
    }

    fn count_sent(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.sent.increment(*bytes as u64);
        }
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

/// The connections that have a place, oldest first.
#[derive(Default)]
struct Held {
    connections: Mutex<BTreeMap<u64, Holder>>,
}

struct Holder {
    peer: Peer,
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

    fn enter(&self, number: u64, peer: Peer) -> oneshot::Receiver<()> {
        let (stay, evicted) = oneshot::channel();
        let holder = Holder { peer, _stay: stay };
        self.lock().insert(number, holder);
        evicted
    }

    fn evict_oldest_stranger(&self) {
        let mut connections = self.lock();
        let mut strangers = connections
            .iter()
            .filter(|(_, holder)| !holder.peer.is_proven());
        if let Some(number) = strangers.next().map(|(number, _)| *number) {
            connections.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::sync::watch;

    use super::*;
    use crate::auth::Stay;

    /// Longest wait for anything; reached only by a failing test.
    const PATIENCE: Duration = Duration::from_secs(20);
    const NEVER: Duration = Duration::from_secs(3600);

    async fn bounded(connections_max: usize, stranger_max: Duration) -> (Bounded, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let limits = Limits {
            connections_max,
            stranger_max,
        };
        let bounded = Bounded::new(socket, limits, false, "grpc");
        let address = bounded.local_addr().expect("bound");
        (bounded, address)
    }

    async fn accept(bounded: &mut Bounded, address: SocketAddr) -> (Connection, TcpStream) {
        let stream = TcpStream::connect(address).await.expect("a queue");
        let accepted = tokio::time::timeout(PATIENCE, bounded.accept()).await;
        (accepted.expect("a place").0, stream)
    }

    async fn read(connection: &mut Connection) -> io::ErrorKind {
        let read = tokio::time::timeout(PATIENCE, connection.read(&mut [0; 1])).await;
        read.expect("in time").expect_err("over").kind()
    }

    /// Somebody proves who they are over it, until the sender is dropped.
    fn prove(connection: &Connection) -> watch::Sender<()> {
        let (welcome, gone) = watch::channel(());
        connection.peer.prove(Stay::new(gone, None));
        welcome
    }

    #[tokio::test]
    async fn strangers_give_way_and_members_stay() {
        let (mut bounded, address) = bounded(2, NEVER).await;
        let (mut member, member_end) = accept(&mut bounded, address).await;
        let _welcome = prove(&member);
        let (mut stranger, _end) = accept(&mut bounded, address).await;
        // The third finds no place free; the stranger learns it, goes, and makes room.
        let newcomer = tokio::spawn(async move {
            let accepted = accept(&mut bounded, address).await;
            (bounded, accepted)
        });
        assert_eq!(read(&mut stranger).await, io::ErrorKind::TimedOut);
        drop(stranger);
        let (bounded, _newcomer) = newcomer.await.expect("accepted");
        assert_eq!(bounded.held.lock().len(), 2, "the bound holds");
        drop(member_end);
        let left = tokio::time::timeout(PATIENCE, member.read(&mut [0; 1])).await;
        assert_eq!(left.expect("in time").expect("its own end"), 0);
    }

    #[tokio::test]
    async fn silence_is_closed_unless_somebody_proved_who_they_are() {
        let (mut bounded, address) = bounded(2, Duration::from_millis(20)).await;
        let (mut stranger, _end) = accept(&mut bounded, address).await;
        assert_eq!(read(&mut stranger).await, io::ErrorKind::TimedOut);
        let (mut member, end) = accept(&mut bounded, address).await;
        let _welcome = prove(&member);
        member.timer.as_mut().await;
        drop(end);
        assert_eq!(member.read(&mut [0; 1]).await.expect("its own end"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_sent_away_is_a_stranger_again() {
        let (mut bounded, address) = bounded(1, NEVER).await;
        let (mut member, _end) = accept(&mut bounded, address).await;
        let welcome = prove(&member);
        member.timer.as_mut().await;
        let mut bytes = [0; 1];
        let nothing = tokio::time::timeout(Duration::from_secs(1), member.read(&mut bytes));
        assert!(nothing.await.is_err(), "it stays as long as it is welcome");
        drop(welcome);
        let nothing = tokio::time::timeout(NEVER / 2, member.read(&mut bytes));
        assert!(nothing.await.is_err(), "time to come with another secret");
        let over = tokio::time::timeout(NEVER, member.read(&mut bytes)).await;
        let over = over.expect("in time").expect_err("over");
        assert_eq!(over.kind(), io::ErrorKind::TimedOut);
        drop(member);
        let (member, _end) = accept(&mut bounded, address).await;
        drop(prove(&member));
        bounded.held.evict_oldest_stranger();
        assert_eq!(bounded.held.lock().len(), 0, "it gives way to newcomers");
    }
}
