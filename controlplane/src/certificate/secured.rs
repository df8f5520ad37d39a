//! Connections with TLS around them, or without: what the gRPC server reads from.
//!
//! A handshake takes a connection's own place, so they are bounded as connections are, and has a deadline of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::Current;
use crate::auth::Peer;
use crate::connections::Connection;

/// A TLS handshake. The time until somebody proves who they are is longer, and holds for plaintext as well.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// See the module documentation.
pub enum Secured {
    /// As it came.
    Plain(Connection),
    /// Encrypted.
    Tls(Box<TlsStream<Connection>>),
}

type Accepted<T> = mpsc::Receiver<io::Result<T>>;

/// Without TLS.
pub fn plain(accepted: Accepted<Connection>) -> Accepted<Secured> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(pass(accepted, sender, |connection, sender| async move {
        // The server has ended when nobody takes it.
        let _ = sender.send(Ok(Secured::Plain(connection))).await;
    }));
    receiver
}

/// With the certificate that is newest when a connection comes.
pub fn secured(accepted: Accepted<Connection>, current: Current) -> Accepted<Secured> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(pass(accepted, sender, move |connection, sender| {
        let acceptor = TlsAcceptor::from(current.borrow().config.clone());
        async move {
            let shaken = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(connection)).await;
            match shaken {
                Ok(Ok(stream)) => {
                    let _ = sender.send(Ok(Secured::Tls(Box::new(stream)))).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
        }
    }));
    receiver
}

/// Prepares each connection in a task of its own, until nobody takes them any more.
async fn pass<F>(
    mut accepted: Accepted<Connection>,
    sender: mpsc::Sender<io::Result<Secured>>,
    prepare: impl Fn(Connection, mpsc::Sender<io::Result<Secured>>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let connection = tokio::select! {
            () = sender.closed() => return,
            connection = accepted.recv() => connection,
        };
        match connection {
            Some(Ok(connection)) => drop(tokio::spawn(prepare(connection, sender.clone()))),
            Some(Err(error)) => tracing::debug!(%error, "a connection could not be accepted"),
            None => return,
        }
    }
}

impl Connected for Secured {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Plain(connection) => connection.connect_info(),
            Self::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(connection) => connection.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
