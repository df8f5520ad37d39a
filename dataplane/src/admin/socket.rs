//! The admin server's connections: bounded in number and in idleness.
//!
//! Descriptors belong to devices. Whoever holds admin connections open, by accident or not, holds a few, and not for
//! ever. One more than the bound waits in the kernel's queue until one ends.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections at once: scrapers, probes, a few people.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Longest silence of a connection; longer than the usual pause between two scrapes.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(75);

/// See the module documentation.
pub(super) struct Bounded {
    socket: TcpListener,
    places: Arc<Semaphore>,
    idle_max: Duration,
}

/// One connection and its place.
pub(super) struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    idle_max: Duration,
    _place: OwnedSemaphorePermit,
}

impl Bounded {
    pub(super) fn new(socket: TcpListener, connections_max: usize, idle_max: Duration) -> Self {
        Self {
            socket,
            places: Arc::new(Semaphore::new(connections_max)),
            idle_max,
        }
    }
}

impl Connection {
    /// Progress starts the idle time anew; without progress it runs.
    fn or_idle<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            let until = Instant::now() + self.idle_max;
            self.idle.as_mut().reset(until);
            return progress;
        }
        match self.idle.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // The semaphore is never closed; were it, nothing could be accepted any more.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            // Retries by itself, with a pause when descriptors are short.
            let (stream, peer) = Listener::accept(&mut self.socket).await;
            let connection = Connection {
                stream,
                idle: Box::pin(tokio::time::sleep(self.idle_max)),
                idle_max: self.idle_max,
                _place: place,
            };
            return (connection, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.or_idle(context, read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.or_idle(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    async fn server(connections_max: usize, idle_max: Duration) -> SocketAddr {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let router = Router::new().route("/", get(|| async { "here" }));
        let bounded = Bounded::new(socket, connections_max, idle_max);
        tokio::spawn(async move { axum::serve(bounded, router).await });
        address
    }

    async fn answered(stream: &mut TcpStream) {
        let mut buffer = [0; 512];
        let len = stream.read(&mut buffer).await.expect("an answer");
        assert!(
            buffer
                .get(..len)
                .is_some_and(|text| text.ends_with(b"here"))
        );
    }

    #[tokio::test]
    async fn one_more_than_the_bound_waits_until_one_ends() {
        let address = server(2, IDLE_MAX).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.expect("accepted");
            stream.write_all(REQUEST).await.expect("sent");
            answered(&mut stream).await;
            held.push(stream);
        }
        let mut third = TcpStream::connect(address).await.expect("in the queue");
        third.write_all(REQUEST).await.expect("sent");
        // While the two are held, they are served and the third is not: its answer cannot be there yet.
        for stream in &mut held {
            stream.write_all(REQUEST).await.expect("sent");
            answered(stream).await;
        }
        let mut none = [0; 1];
        assert!(third.try_read(&mut none).is_err(), "the third waits");
        held.pop();
        answered(&mut third).await;
    }

    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        let address = server(1, Duration::from_millis(20)).await;
        let mut silent = TcpStream::connect(address).await.expect("accepted");
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).await.expect("closed");
        assert!(rest.is_empty());
        let mut next = TcpStream::connect(address).await.expect("accepted");
        next.write_all(REQUEST).await.expect("sent");
        answered(&mut next).await;
    }
}
