//! Where the load goes: `tcp://host:port` or `unix:///path`, and connecting to it.
//!
//! Owns the addresses. TCP clients of a loopback target rotate their source address through 127.0.0.0/8, so that a
//! storm does not run out of the 28,000 ports of one address.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use monoio::net::TcpStream;
use socket2::{Domain, SockAddr, Socket, Type};

/// An address to connect to or listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix stream socket.
    Unix(PathBuf),
}

/// Why an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither tcp://host:port nor unix:///path")]
pub struct NoTarget(String);

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let unusable = || NoTarget(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.is_empty() {
                Err(unusable())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let address = text.strip_prefix("tcp://").ok_or_else(unusable)?;
        address
            .to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next())
            .map(Self::Tcp)
            .ok_or_else(unusable)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Connections from one source address before the next is taken; below the smallest usual port range.
const PER_SOURCE: u32 = 8_000;

impl Target {
    /// Connects as connection `index` on the current runtime.
    ///
    /// A Unix stream comes back in the same type: the runtime only sends, receives and polls, which is the same for both.
    pub async fn connect(&self, index: u32) -> io::Result<TcpStream> {
        let (socket, address) = match self {
            Self::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                socket.set_tcp_nodelay(true)?;
                if address.ip().is_loopback() && address.is_ipv4() {
                    let step = index / PER_SOURCE % 250;
                    let source = Ipv4Addr::new(127, 0, 0, 1 + step as u8);
                    socket.set_reuse_address(true)?;
                    socket.bind(&SocketAddr::from((source, 0)).into())?;
                }
                (socket, SockAddr::from(*address))
            }
            Self::Unix(path) => (
                Socket::new(Domain::UNIX, Type::STREAM, None)?,
                SockAddr::unix(path)?,
            ),
        };
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => {}
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        // io_uring waits by itself, but not on a descriptor that says it must not; the epoll driver needs it to say so.
        socket.set_nonblocking(monoio::utils::is_legacy())?;
        let stream = TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(socket)))?;
        // A connection that failed shows at the first send.
        stream.writable(false).await?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for text in [
            "tcp://127.0.0.1:1883",
            "tcp://[::1]:1883",
            "unix:///run/b.sock",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "127.0.0.1:1883",
            "tcp://",
            "tcp://127.0.0.1",
            "unix://",
            "http://a",
        ] {
            assert_eq!(text.parse::<Target>(), Err(NoTarget(text.into())));
        }
    }
}
