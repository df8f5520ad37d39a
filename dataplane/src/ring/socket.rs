//! Sockets and their options: listeners for `boot`, connections and peer addresses for the engines, and the reserve
//! descriptor.
//!
//! Owns no state but the [`Reserve`]. Everything here is a cold path: once for each listener or connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::{KeepAlive, Target};

/// How long a listener rests after accepting failed for want of a resource. Short enough that a client in the backlog
/// hardly notices, long enough that a full process does not spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most waiting connections turned away in one go while descriptors are short, so that a flood cannot hold a turn.
const TURN_AWAY_MAX: usize = 64;

/// Opens a TCP listener for one shard: non-blocking, SO_REUSEADDR, SO_REUSEPORT (each shard has its own socket on the
/// same address), and TCP_NODELAY, which accepted connections inherit.
pub fn listen_tcp(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Opens a non-blocking Unix stream listener. The path must not exist.
pub fn listen_unix(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// The address that a listening socket is bound to; `None` for a Unix socket.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?).ok())
}

/// The address that stands for a peer in policy and limits.
///
/// A Unix peer has no address and counts as 127.0.0.1 with port 0, because it is on this machine; an IPv4-mapped IPv6
/// address counts as the IPv4 address that it is, so that one CIDR matches it on every listener.
pub(super) fn peer_address(address: Option<SocketAddrAny>) -> SocketAddr {
    address
        .and_then(|address| SocketAddr::try_from(address).ok())
        .map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |address| {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        })
}

/// Asks the kernel for the peer. `None` when the connection is gone already.
pub(super) fn peer_of(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    rustix::net::getpeername(socket).ok().map(peer_address)
}

/// How far [`begin_connect`] came.
pub(super) enum Dial {
    /// A TCP socket, not connected yet: the engine connects it.
    Tcp(OwnedFd, SocketAddr),
    /// A Unix socket, on which connecting has succeeded or failed already.
    Unix(OwnedFd, Result<(), i32>),
    /// There is no socket for this target (the family is not supported...); the descriptor only stands in for one.
    Failed(OwnedFd, i32),
    /// No descriptor or no memory left.
    Full,
}

/// Makes a socket for `target`; a Unix socket is connected at once, which never waits.
pub(super) fn begin_connect(target: &Target, flags: SocketFlags) -> Dial {
    let opened = match target {
        Target::Tcp(address) => open_tcp(*address, flags).map(|fd| Dial::Tcp(fd, *address)),
        Target::Unix(path) => open_unix(path, flags),
    };
    match opened {
        Ok(dial) => dial,
        Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Dial::Full,
        Err(errno) => match take() {
            Ok(stand_in) => Dial::Failed(stand_in, errno.raw_os_error()),
            Err(_) => Dial::Full,
        },
    }
}

fn open_tcp(address: SocketAddr, flags: SocketFlags) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

fn open_unix(path: &Path, flags: SocketFlags) -> Result<Dial, Errno> {
    let address = SocketAddrUnix::new(path)?;
    // Non-blocking while it connects: a full backlog answers EAGAIN, which the caller retries like any refusal.
    let open = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, open, None)?;
    let connected = rustix::net::connect(&socket, &address).map_err(Errno::raw_os_error);
    if !flags.contains(SocketFlags::NONBLOCK) {
        set_nonblocking(socket.as_fd(), false)?;
    }
    Ok(Dial::Unix(socket, connected))
}

/// Sets or clears O_NONBLOCK.
///
/// io_uring fails an operation on a non-blocking description with EAGAIN where it would otherwise wait for readiness;
/// the epoll engine needs the opposite.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    let mut wanted = flags;
    wanted.set(OFlags::NONBLOCK, nonblocking);
    if wanted != flags {
        rustix::fs::fcntl_setfl(fd, wanted)?;
    }
    Ok(())
}

/// Makes the kernel send a reset when the descriptor is closed, and drop what it has not sent. A socket that has none (Unix)
/// is closed as always.
pub(super) fn reset_when_closed(fd: BorrowedFd<'_>) {
    // It fails only for what is no socket.
    let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
}

/// Sets the options of [`KeepAlive`]. The count of questions stays the kernel's: the user timeout stands in its place.
pub(super) fn keep_alive(fd: BorrowedFd<'_>, keep_alive: KeepAlive) {
    let set = || {
        let millis = u32::try_from(keep_alive.give_up.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_socket_keepalive(fd, true)?;
        sockopt::set_tcp_keepidle(fd, keep_alive.idle)?;
        sockopt::set_tcp_keepintvl(fd, keep_alive.interval())?;
        sockopt::set_tcp_user_timeout(fd, millis)
    };
    // It fails for what is no TCP socket, and for one that is gone already.
    let _: Result<(), Errno> = set();
}

/// What [`keep_alive`] has set: whether the kernel asks, after how long, how often, and when it gives up (in milliseconds).
#[cfg(test)]
pub(super) fn keep_alive_of(fd: BorrowedFd<'_>) -> (bool, Duration, Duration, u32) {
    (
        sockopt::socket_keepalive(fd).unwrap(),
        sockopt::tcp_keepidle(fd).unwrap(),
        sockopt::tcp_keepintvl(fd).unwrap(),
        sockopt::tcp_user_timeout(fd).unwrap(),
    )
}

/// A descriptor held back for the moment when there are no others.
///
/// When accepting fails with EMFILE or ENFILE, the connections already in the backlog would hang until their clients
/// lose patience, and their readiness would wake us for nothing. We give up the reserve, accept and close what waits
/// (bounded), and take the reserve back; then the listener rests for [`ACCEPT_PAUSE`].
pub(super) struct Reserve {
    held: Option<OwnedFd>,
}

impl Reserve {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            held: Some(take()?),
        })
    }

    /// Turns away what waits in the backlog of `listener`. Returns how many.
    pub(super) fn turn_away(&mut self, listener: BorrowedFd<'_>) -> usize {
        self.held = None;
        let was_nonblocking =
            rustix::fs::fcntl_getfl(listener).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        let mut turned_away = 0;
        if was_nonblocking || set_nonblocking(listener, true).is_ok() {
            while turned_away < TURN_AWAY_MAX
                && rustix::net::accept_with(listener, SocketFlags::CLOEXEC).is_ok()
            {
                turned_away += 1;
            }
        }
        if !was_nonblocking {
            // A listener left non-blocking would only make the next accept fail and come here again.
            let _ = set_nonblocking(listener, false);
        }
        // Another thread may have taken the descriptor; then there is no reserve until the next time.
        self.held = take().ok();
        turned_away
    }
}

/// A descriptor of no use but to be one.
fn take() -> Result<OwnedFd, Errno> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{SocketAddrV4, SocketAddrV6, TcpStream};

    use super::*;
    use crate::ring::{Event, ListenSlot, Ring, SocketId};

    type Options = (bool, Duration, Duration, u32);

    /// A connection from the ring to itself: neither end has the options before they are asked for, and both have them then.
    pub(in crate::ring) fn keep_alive_on_both_legs<R: Ring>(
        ring: &mut R,
        options_of: impl Fn(&mut R, SocketId) -> Options,
    ) {
        let listener = listen_tcp("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let address = local_address(listener.as_fd()).unwrap().unwrap();
        ring.listen(ListenSlot(0), listener).unwrap();
        let dialled = ring.connect(&Target::Tcp(address)).unwrap();
        let (mut accepted, mut is_connected) = (None, false);
        let mut events = Vec::new();
        while accepted.is_none() || !is_connected {
            ring.turn(None, 0, &mut events).unwrap();
            for event in events.drain(..) {
                if let Event::Accepted { socket, .. } = event {
                    accepted = Some(socket);
                } else if let Event::Connected { socket } = event {
                    is_connected = socket == dialled;
                }
            }
        }
        let stall = Duration::from_secs(30);
        for (idle, interval, give_up) in [(60, 10, 91_000), (1, 1, 30_000)] {
            let idle = Duration::from_secs(idle);
            let keep_alive = KeepAlive::new(idle, stall).unwrap();
            for socket in [accepted.unwrap(), dialled] {
                ring.keep_alive(socket, keep_alive);
                let expected = (true, idle, Duration::from_secs(interval), give_up);
                assert_eq!(options_of(ring, socket), expected);
            }
        }
        assert_eq!(KeepAlive::new(Duration::ZERO, stall), None, "off");
    }

    #[test]
    fn mapped_addresses_are_told_as_ipv4_and_unix_peers_as_loopback() {
        let mapped = "::ffff:192.0.2.7".parse().unwrap();
        let cases: [(Option<SocketAddrAny>, &str); 4] = [
            (
                Some(SocketAddrV6::new(mapped, 1, 0, 0).into()),
                "192.0.2.7:1",
            ),
            (
                Some(SocketAddrV6::new("2001:db8::1".parse().unwrap(), 1, 0, 0).into()),
                "[2001:db8::1]:1",
            ),
            (
                Some(SocketAddrV4::new("192.0.2.9".parse().unwrap(), 1).into()),
                "192.0.2.9:1",
            ),
            (
                Some(SocketAddrUnix::new("/x").unwrap().into()),
                "127.0.0.1:0",
            ),
        ];
        for (address, expected) in cases {
            assert_eq!(peer_address(address).to_string(), expected);
        }
    }

    #[test]
    fn the_reserve_turns_away_what_waits_and_leaves_the_listener_as_it_was() {
        for nonblocking in [true, false] {
            let listener = listen_tcp("127.0.0.1:0".parse().unwrap(), 16).unwrap();
            set_nonblocking(listener.as_fd(), nonblocking).unwrap();
            let address = local_address(listener.as_fd()).unwrap().unwrap();
            let clients: Vec<_> = (0..3)
                .map(|_| TcpStream::connect(address).unwrap())
                .collect();
            let mut reserve = Reserve::new().unwrap();
            assert_eq!(reserve.turn_away(listener.as_fd()), clients.len());
            assert_eq!(reserve.turn_away(listener.as_fd()), 0);
            assert!(reserve.held.is_some());
            let flags = rustix::fs::fcntl_getfl(&listener).unwrap();
            assert_eq!(flags.contains(OFlags::NONBLOCK), nonblocking);
        }
    }
}
