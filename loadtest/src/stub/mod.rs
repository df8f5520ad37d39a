//! A broker that does what it is told: the upstream of tests that Mosquitto 2.0 cannot play.
//!
//! Owns the listening sockets and one reading and one writing thread for each connection. Without a script a connection
//! is served by the tiny broker of [`broker`]; a [`Script`], chosen by client id, changes what happens at CONNECT and
//! whether anything is answered at all. Everything received is recorded, byte for byte, for assertions.
//!
//! A test takes hold of a connection with [`Stub::peer`] and then waits for packets, sends bytes, stalls, half-closes or
//! resets it.

pub mod broker;
mod link;
mod peer;
mod script;

pub use broker::LinkId;
pub use peer::{End, Peer};
pub use script::{OnConnect, Script};

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::patience::Deadline;
use crate::stream::{Address, Stream};
use broker::{Broker, Effect};
use link::Link;

/// A running stub. Clones are the same stub.
#[derive(Clone, Debug, Default)]
pub struct Stub {
    shared: Arc<Shared>,
}

/// One listening socket of a stub; dropping it closes the socket and leaves open connections alone.
#[derive(Debug)]
pub struct Listening {
    shared: Arc<Shared>,
    address: Address,
    number: u64,
    /// The listening socket once more, to shut it down.
    socket: OwnedFd,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified at every change of `state`.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    broker: Broker,
    links: BTreeMap<LinkId, Link>,
    /// How many connections were ever accepted.
    accepted: u64,
    /// Scripts by client id; `None` is for everyone else.
    scripts: HashMap<Option<String>, Script>,
    listening: Vec<u64>,
    listening_next: u64,
    assigned_next: u64,
    /// A stub that runs for long keeps no packets and forgets connections that ended.
    is_forgetful: bool,
}

impl Stub {
    /// A stub that does not listen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records nothing: for running long.
    pub fn without_records(self) -> Self {
        self.shared.lock().is_forgetful = true;
        self
    }

    /// Listens on a TCP address (port 0 is a free one) or a Unix path.
    pub fn listen(&self, address: impl Into<Address>) -> io::Result<Listening> {
        let number = {
            let mut state = self.shared.lock();
            state.listening_next += 1;
            let number = state.listening_next;
            state.listening.push(number);
            number
        };
        let shared = Arc::clone(&self.shared);
        let (address, socket, acceptor) = match address.into() {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                let address = listener.local_addr()?;
                let socket = OwnedFd::from(listener.try_clone()?);
                let next = move || {
                    let stream = listener.accept()?.0;
                    stream.set_nodelay(true)?;
                    Ok(Stream::Tcp(stream))
                };
                let acceptor = spawn(move || link::accept(&shared, number, next))?;
                (Address::Tcp(address), socket, acceptor)
            }
            Address::Unix(path) => {
                let listener = UnixListener::bind(&path)?;
                let socket = OwnedFd::from(listener.try_clone()?);
                let next = move || Ok(Stream::Unix(listener.accept()?.0));
                let acceptor = spawn(move || link::accept(&shared, number, next))?;
                (Address::Unix(path), socket, acceptor)
            }
        };
        Ok(Listening {
            shared: Arc::clone(&self.shared),
            address,
            number,
            socket,
            acceptor: Some(acceptor),
        })
    }

    /// What happens to the next connections of this client id.
    pub fn script(&self, client_id: &str, script: Script) {
        let mut state = self.shared.lock();
        state.scripts.insert(Some(client_id.to_owned()), script);
    }

    /// What happens to connections whose client id has no script of its own.
    pub fn script_for_all(&self, script: Script) {
        self.shared.lock().scripts.insert(None, script);
    }

    /// Waits for a connection of this client id that no earlier call has taken.
    #[track_caller]
    pub fn peer(&self, client_id: &str) -> Peer {
        let found = self.shared.wait(|state| {
            let mut links = state.links.iter_mut();
            let (id, link) = links
                .find(|(_, link)| !link.is_taken && link.client_id.as_deref() == Some(client_id))?;
            link.is_taken = true;
            Some(*id)
        });
        match found {
            Some(id) => Peer::new(Arc::clone(&self.shared), id),
            #[allow(clippy::panic)] // a test fails by panicking
            None => panic!("no connection of client {client_id:?} reached the stub"),
        }
    }

    /// True exactly when a CONNECT with this client id has ever arrived.
    pub fn has_seen(&self, client_id: &str) -> bool {
        let state = self.shared.lock();
        let mut links = state.links.values();
        links.any(|link| link.client_id.as_deref() == Some(client_id))
    }

    /// Connections ever accepted, whether or not they said anything.
    pub fn accepted_count(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// Connections open at the moment.
    pub fn open_count(&self) -> usize {
        let state = self.shared.lock();
        state
            .links
            .values()
            .filter(|link| link.end.is_none())
            .count()
    }

    /// Waits until `count` connections are open.
    #[track_caller]
    pub fn wait_open(&self, count: usize) {
        let reached = self.shared.wait(|state| {
            let open = state
                .links
                .values()
                .filter(|link| link.end.is_none())
                .count();
            (open == count).then_some(())
        });
        assert!(
            reached.is_some(),
            "{} connections are open at the stub, expected {count}",
            self.open_count()
        );
    }

    /// Ends every open connection.
    pub fn close_all(&self) {
        let mut state = self.shared.lock();
        for link in state.links.values_mut() {
            link.close();
        }
        self.shared.changed.notify_all();
    }
}

impl Listening {
    /// Where.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The TCP port; 0 for a Unix socket.
    pub fn port(&self) -> u16 {
        match &self.address {
            Address::Tcp(address) => address.port(),
            Address::Unix(_) => 0,
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.shared
            .lock()
            .listening
            .retain(|number| *number != self.number);
        // Closing would not do: a program that another test is just starting holds a copy of the socket until its exec.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
        // Its accept has failed; when it is gone, so is its copy.
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of one test while it holds the lock must not hide the others' results.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `find` gives something; `None` when patience ran out.
    fn wait<T>(&self, mut find: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = Deadline::generous();
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&mut state) {
                return Some(found);
            }
            if deadline.has_passed() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, deadline.left());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn carry_out(&mut self) {
        for effect in self.broker.take_effects() {
            match effect {
                Effect::Send(id, bytes) => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.send(bytes);
                    }
                }
                Effect::Close(id) => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.close();
                    }
                }
            }
        }
    }
}

/// Threads are many and shallow.
fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().stack_size(128 * 1024).spawn(run)
}
