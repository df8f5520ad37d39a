//! A TCP relay between two programs under test: it counts what passes, holds it back, cuts it, and has an address that
//! stays when the program behind it is started again on another port.
//!
//! Owns its connections and nothing of what is said on them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::patience::Deadline;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever dialled to the program behind.
    Up,
    /// Back.
    Down,
}

/// See the module documentation. Its connections end when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    target: Option<SocketAddr>,
    is_over: bool,
    open: Vec<TcpStream>,
    /// Counts cuts: a connection of an earlier one is over.
    cuts: u64,
    dialled: u64,
    up: Lane,
    down: Lane,
}

#[derive(Debug, Default)]
struct Lane {
    passed: u64,
    /// What may pass in all; `None`: everything.
    limit: Option<u64>,
    /// Bytes that were read and wait for the limit.
    held: u64,
}

impl State {
    fn lane(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

impl Relay {
    /// Listens on a free port; connections are ended at once while there is no target.
    pub fn start(target: Option<SocketAddr>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        shared.lock().target = target;
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection; the next ones go to `target`.
    pub fn set_target(&self, target: Option<SocketAddr>) {
        let mut state = self.shared.lock();
        state.target = target;
        state.cut();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// How many connections were dialled.
    pub fn dialled(&self) -> u64 {
        self.shared.lock().dialled
    }

    /// Bytes that were let pass; the last of them may still be on their way.
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.lock().lane(way).passed
    }

    /// Lets `more` bytes pass from here on and holds back what follows.
    pub fn hold_after(&self, way: Way, more: u64) {
        let mut state = self.shared.lock();
        let lane = state.lane(way);
        lane.limit = Some(lane.passed + more);
    }

    /// Holds nothing back any more.
    pub fn release(&self, way: Way) {
        self.shared.lock().lane(way).limit = None;
        self.shared.changed.notify_all();
    }

    /// True exactly when bytes are held back.
    pub fn is_held(&self, way: Way) -> bool {
        self.shared.lock().lane(way).held > 0
    }

    /// Waits until bytes are held back.
    #[track_caller]
    pub fn wait_held(&self, way: Way) {
        self.wait(&format!("something is held on its way {way:?}"), |state| {
            state.lane(way).held > 0
        });
    }

    /// Waits until more connections than `mark`, a value of [`Relay::dialled`], were dialled.
    #[track_caller]
    pub fn wait_dialled(&self, mark: u64) {
        self.wait("another connection is dialled", |state| {
            state.dialled > mark
        });
    }

    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    fn wait(&self, what: &str, mut is_so: impl FnMut(&mut State) -> bool) {
        let deadline = Deadline::generous();
        let mut state = self.shared.lock();
        while !is_so(&mut state) {
            if deadline.has_passed() {
                drop(state);
                panic!("waited in vain until {what}");
            }
            let waited = self.shared.changed.wait_timeout(state, deadline.left());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_over = true;
        state.target = None;
        state.cut();
        drop(state);
        self.shared.changed.notify_all();
        // The listening thread wakes for this one and goes.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn cut(&mut self) {
        self.cuts += 1;
        for stream in self.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            let mut state = self.lock();
            if state.is_over {
                return;
            }
            state.dialled += 1;
            let (target, cut) = (state.target, state.cuts);
            drop(state);
            self.changed.notify_all();
            // Dropping the client ends its connection.
            let Some(server) = target.and_then(|target| TcpStream::connect(target).ok()) else {
                continue;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
                continue;
            };
            let mut state = self.lock();
            if state.cuts != cut {
                continue;
            }
            state.open.extend([client_too, server_too]);
            drop(state);
            let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else {
                continue;
            };
            let (up, down) = (Arc::clone(self), Arc::clone(self));
            thread::spawn(move || up.carry(Way::Up, cut, from_client, to_server));
            thread::spawn(move || down.carry(Way::Down, cut, server, client));
        }
    }

    fn carry(&self, way: Way, cut: u64, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut rest = buffer.get(..count).unwrap_or(&[]);
            while !rest.is_empty() {
                let Some(share) = self.share(way, rest.len(), cut) else {
                    return;
                };
                let (now, later) = rest.split_at(share.min(rest.len()));
                if to.write_all(now).is_err() {
                    return;
                }
                rest = later;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// How many of `wanted` bytes may go now, at least one. `None` when the connection was cut meanwhile.
    fn share(&self, way: Way, wanted: usize, cut: u64) -> Option<usize> {
        let mut state = self.lock();
        let mut is_held = false;
        loop {
            if is_held {
                state.lane(way).held -= wanted as u64;
            }
            let lane = state.lane(way);
            let left = lane
                .limit
                .map_or(u64::MAX, |limit| limit.saturating_sub(lane.passed));
            if left > 0 {
                let share = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
                // Counted before they are written: a test that has the answer to a byte finds the byte counted, and two
                // connections never pass more than the limit between them.
                lane.passed += share as u64;
                self.changed.notify_all();
                return Some(share);
            }
            if state.cuts != cut {
                return None;
            }
            state.lane(way).held += wanted as u64;
            is_held = true;
            self.changed.notify_all();
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use super::*;

    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut &stream, &mut &stream);
                });
            }
        });
        address
    }

    #[test]
    fn bytes_pass_are_counted_held_and_cut() {
        let relay = Relay::start(Some(echo())).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        let mut answer = [0; 5];
        client.write_all(b"hello").unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!((&answer, relay.passed(Way::Up)), (b"hello", 5));

        relay.hold_after(Way::Up, 2);
        client.write_all(b"world").unwrap();
        relay.wait_held(Way::Up);
        client.read_exact(&mut answer[..2]).unwrap();
        assert_eq!((&answer[..2], relay.passed(Way::Up)), (&b"wo"[..], 7));
        relay.release(Way::Up);
        client.read_exact(&mut answer[..3]).unwrap();
        assert_eq!(&answer[..3], b"rld");

        relay.set_target(None);
        assert!(!matches!(client.read(&mut answer), Ok(1..)));
        let mut refused = TcpStream::connect(relay.address()).unwrap();
        assert!(!matches!(refused.read(&mut answer), Ok(1..)));
        relay.set_target(Some(echo()));
        let mut again = TcpStream::connect(relay.address()).unwrap();
        again.write_all(b"again").unwrap();
        again.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"again");
        assert_eq!(relay.dialled(), 3);
    }
}
