//! What the bare forwarders have in common: their options, and opening sockets.
//!
//! A forwarder is a floor: one thread that moves bytes between a client and an upstream and does nothing else. It does
//! not look at bytes, keeps no deadline, has no limits worth the name and drops what is in flight when a side closes.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use socket2::{Domain, SockAddr, Socket, Type};

/// Bytes one side may owe the other; a connection that owes more is closed.
pub const OWED_BYTES_MAX: usize = 1 << 20;

/// Options of a forwarder.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Options {
    /// Where to listen: tcp://host:port
    #[arg(long)]
    pub listen: Address,
    /// Where to forward to: tcp://host:port or unix:///path
    #[arg(long)]
    pub upstream: Address,
    /// io_uring only: wait up to so many microseconds for eight completions instead of one; 0 is off
    #[arg(long, default_value_t = 0)]
    pub min_wait: u32,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix stream socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        text.strip_prefix("tcp://")
            .and_then(|address| address.parse().ok())
            .map(Self::Tcp)
            .ok_or_else(|| format!("`{text}` is neither tcp://address:port nor unix:///path"))
    }
}

impl Options {
    /// A listening socket that does not block. Says on standard output where it listens.
    pub fn listen(&self) -> io::Result<TcpListener> {
        let Address::Tcp(address) = &self.listen else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "forwarders listen by TCP",
            ));
        };
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&(*address).into())?;
        socket.listen(4_096)?;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from(socket);
        writeln!(io::stdout(), "{}", listener.local_addr()?)?;
        Ok(listener)
    }

    /// Begins a connection to the upstream; it may not be finished yet. The socket does not block.
    pub fn dial(&self) -> io::Result<OwnedFd> {
        let (socket, address) = match &self.upstream {
            Address::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                socket.set_tcp_nodelay(true)?;
                (socket, SockAddr::from(*address))
            }
            Address::Unix(path) => (
                Socket::new(Domain::UNIX, Type::STREAM, None)?,
                SockAddr::unix(path)?,
            ),
        };
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Ok(socket.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        assert_eq!(
            "tcp://127.0.0.1:9".parse(),
            Ok(Address::Tcp(([127, 0, 0, 1], 9).into()))
        );
        assert_eq!("unix:///a".parse(), Ok(Address::Unix("/a".into())));
        assert!("127.0.0.1:9".parse::<Address>().is_err());
    }
}
