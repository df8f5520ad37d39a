//! Tells systemd how the service is, when it asked to be told (`Type=notify-reload`).
//!
//! A datagram of a few lines to the socket named by `NOTIFY_SOCKET`; silence when there is none. Failures are of no
//! consequence to the service and are only logged.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::clock;

/// The service manager, if there is one.
pub struct Notifier {
    socket: Option<OsString>,
}

/// What can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The policy is active on every shard, or was refused and what was in force stays (the status says which: a
    /// service that waits for a better file must not be killed for it). Also ends [`State::Reloading`].
    Ready,
    /// SIGHUP is being obeyed.
    Reloading,
    /// A drain has begun.
    Stopping,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`.
    pub fn from_env() -> Self {
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()),
        }
    }

    /// Tells the state, with a line for `systemctl status`.
    pub fn tell(&self, state: State, status: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        let message = match state {
            State::Ready => format!("READY=1\nSTATUS={status}\n"),
            // notify-reload wants the moment, to tell this reload's READY=1 from an earlier one.
            State::Reloading => {
                let micros = clock::monotonic().0 / 1_000;
                format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS={status}\n")
            }
            State::Stopping => format!("STOPPING=1\nSTATUS={status}\n"),
        };
        if let Err(error) = send(socket, message.as_bytes()) {
            tracing::warn!(%error, ?state, "the service manager could not be told");
        }
    }
}

fn send(socket: &OsString, message: &[u8]) -> std::io::Result<()> {
    let bytes = socket.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(message, &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: State, status: &str) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let notifier = Notifier {
            socket: Some(path.into()),
        };
        notifier.tell(state, status);
        let mut buffer = [0; 256];
        let len = manager.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn each_state_is_told_in_the_words_systemd_expects() {
        assert_eq!(
            told(State::Ready, "generation 1"),
            "READY=1\nSTATUS=generation 1\n"
        );
        assert_eq!(
            told(State::Stopping, "draining"),
            "STOPPING=1\nSTATUS=draining\n"
        );
        let reloading = told(State::Reloading, "x");
        let micros = reloading
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .and_then(|rest| rest.strip_suffix("\nSTATUS=x\n"))
            .expect("the three lines");
        assert!(micros.parse::<u64>().is_ok(), "{micros:?}");
    }

    #[test]
    fn nobody_is_told_when_nobody_asked_or_listens() {
        Notifier { socket: None }.tell(State::Ready, "");
        let gone = Some("/nonexistent/notify".into());
        Notifier { socket: gone }.tell(State::Ready, "");
    }
}
