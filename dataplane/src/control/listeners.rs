//! Listening sockets: opened here, one per shard, and handed over; shards never bind.
//!
//! Owns what is open under which name. A generation's new sockets are all opened before it is swapped in
//! ([`Listeners::prepare`]), so that a port that is taken refuses the generation as a whole and changes nothing.
//!
//! Several shards listen on one address by `SO_REUSEPORT`, each with its own queue of the kernel. A socket that systemd
//! holds for us is one queue: it is duplicated, and all shards accept from it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use serde::Serialize;
use sluice_policy::ListenerId;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel keeps for us while a shard is busy; a burst of reconnecting devices fits.
const BACKLOG: i32 = 4096;

/// What is listened on, and where it really is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listening {
    /// Name in the policy.
    pub name: Box<str>,
    /// Address in the policy; its port may be 0.
    pub requested: SocketAddr,
    /// Address bound.
    pub address: SocketAddr,
    /// True exactly when the socket came from the service manager.
    pub activated: bool,
    #[serde(skip)]
    id: ListenerId,
}

/// Why an address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listener `{name}`: cannot listen on {address}: {error}")]
pub struct ListenFailed {
    /// The listener.
    pub name: Box<str>,
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub error: io::Error,
}

/// See the module documentation.
pub struct Listeners {
    shards: usize,
    open: BTreeMap<ListenerId, Listening>,
    /// What was open before the node was drained; the shards may still be closing it.
    resting: BTreeMap<ListenerId, Listening>,
    activated: Vec<TcpListener>,
}

/// Sockets opened for a generation that is not active yet. Dropping it closes them.
#[derive(Default)]
pub struct Prepared {
    /// One entry per listener that is new or moved: one socket per shard.
    pub start: Vec<(Listening, Vec<OwnedFd>)>,
    /// Listeners that are gone or moved.
    pub stop: Vec<ListenerId>,
}

/// A listener a generation wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its number.
    pub id: ListenerId,
    /// Its name.
    pub name: &'a str,
    /// Where.
    pub address: SocketAddr,
}

impl Listening {
    /// Its number.
    pub fn id(&self) -> ListenerId {
        self.id
    }
}

impl Listeners {
    /// For so many shards, with what the service manager passed.
    pub fn new(shards: usize, activated: Vec<TcpListener>) -> Self {
        Self {
            shards,
            open: BTreeMap::new(),
            resting: BTreeMap::new(),
            activated,
        }
    }

    /// Opens what `wanted` needs beyond what is open. Changes nothing that is in use; all or nothing.
    pub fn prepare(&self, wanted: &[Wanted<'_>]) -> Result<Prepared, ListenFailed> {
        let mut prepared = Prepared {
            start: Vec::new(),
            stop: Vec::new(),
        };
        for listener in wanted {
            match self.open.get(&listener.id) {
                Some(open) if open.requested == listener.address => continue,
                Some(_) => prepared.stop.push(listener.id),
                None => {}
            }
            let opened = self.open_one(listener).map_err(|error| ListenFailed {
                name: listener.name.into(),
                address: listener.address,
                error,
            })?;
            prepared.start.push(opened);
        }
        let is_gone = |id: &&ListenerId| !wanted.iter().any(|listener| listener.id == **id);
        prepared.stop.extend(self.open.keys().filter(is_gone));
        Ok(prepared)
    }

    /// Takes note of what the caller hands to the shards.
    pub fn commit(&mut self, prepared: &Prepared) {
        for id in &prepared.stop {
            self.open.remove(id);
        }
        for (listening, _) in &prepared.start {
            self.resting.remove(&listening.id);
            self.open.insert(listening.id, listening.clone());
        }
    }

    /// Nothing is open any more: the shards close it all. Where it was is remembered, so that a port that the system
    /// chose is the same when it is opened again.
    pub fn rest(&mut self) {
        self.resting.append(&mut self.open);
    }

    /// What is open, by number.
    pub fn list(&self) -> Vec<Listening> {
        self.open.values().cloned().collect()
    }

    fn open_one(&self, wanted: &Wanted<'_>) -> io::Result<(Listening, Vec<OwnedFd>)> {
        let listening = |address, activated| Listening {
            name: wanted.name.into(),
            requested: wanted.address,
            address,
            activated,
            id: wanted.id,
        };
        if let Some(socket) = self.activated_on(wanted.address) {
            socket.set_nonblocking(true)?;
            let sockets = (0..self.shards)
                .map(|_| socket.try_clone().map(OwnedFd::from))
                .collect::<io::Result<Vec<_>>>()?;
            return Ok((listening(wanted.address, true), sockets));
        }
        let first = self.bind_first(self.address_before(wanted))?;
        let address = first.local_addr()?.as_socket().unwrap_or(wanted.address);
        let mut sockets = vec![OwnedFd::from(first)];
        for _ in 1..self.shards {
            sockets.push(bind(address, true)?.into());
        }
        Ok((listening(address, false), sockets))
    }

    /// With `SO_REUSEPORT` set, a second process of the same user could take the same port without either noticing. A
    /// first socket without it finds out. What we listen on ourselves (a listener that changed its name) is no conflict.
    fn bind_first(&self, address: SocketAddr) -> io::Result<Socket> {
        let mut known = self.open.values().chain(self.resting.values());
        let ours = known.any(|open| open.address == address);
        if !ours && address.port() != 0 {
            drop(bind(address, false)?);
        }
        bind(address, true)
    }

    fn address_before(&self, wanted: &Wanted<'_>) -> SocketAddr {
        match self.resting.get(&wanted.id) {
            Some(resting) if resting.requested == wanted.address => resting.address,
            Some(_) | None => wanted.address,
        }
    }

    fn activated_on(&self, address: SocketAddr) -> Option<&TcpListener> {
        self.activated
            .iter()
            .find(|socket| socket.local_addr().is_ok_and(|local| local == address))
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners, as written; nothing is taken that the policy does not name.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: &str = "127.0.0.1:0";

    fn wanted(id: u16, address: &str) -> Wanted<'static> {
        Wanted {
            id: ListenerId(id),
            name: "devices",
            address: address.parse().expect("an address"),
        }
    }

    fn started(prepared: &Prepared) -> Vec<(u16, usize)> {
        let entry =
            |(listening, sockets): &(Listening, Vec<OwnedFd>)| (listening.id.0, sockets.len());
        prepared.start.iter().map(entry).collect()
    }

    #[test]
    fn port_zero_is_one_port_for_all_shards_and_stays_across_generations() {
        let mut listeners = Listeners::new(3, Vec::new());
        let prepared = listeners.prepare(&[wanted(1, ANY)]).expect("opened");
        assert_eq!(started(&prepared), [(1, 3)]);
        let ports: Vec<_> = prepared.start[0]
            .1
            .iter()
            .map(|socket| {
                TcpListener::from(socket.try_clone().expect("a copy"))
                    .local_addr()
                    .expect("bound")
            })
            .collect();
        assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
        listeners.commit(&prepared);
        assert_eq!(listeners.list()[0].address, ports[0]);

        let again = listeners.prepare(&[wanted(1, ANY)]).expect("nothing to do");
        assert!(again.start.is_empty() && again.stop.is_empty());
    }

    /// Measured, because the default of the kernel is the other one (net.ipv6.bindv6only = 0).
    #[test]
    fn every_address_is_its_own_family_and_both_may_have_one_port() {
        use std::net::TcpStream;
        let mut listeners = Listeners::new(2, Vec::new());
        let six = listeners.prepare(&[wanted(1, "[::]:0")]).expect("IPv6");
        listeners.commit(&six);
        let port = listeners.list()[0].address.port();
        let dial = |host: &str| TcpStream::connect(format!("{host}:{port}"));
        dial("[::1]").expect("IPv6 is served");
        let refused = dial("127.0.0.1").expect_err("IPv4 is not");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let four = format!("0.0.0.0:{port}");
        let both = listeners
            .prepare(&[wanted(1, "[::]:0"), wanted(2, &four)])
            .expect("both with one port");
        assert_eq!(started(&both), [(2, 2)]);
        dial("127.0.0.1").expect("IPv4 is served by the other listener");
    }

    #[test]
    fn a_taken_port_refuses_and_changes_nothing() {
        let taken = TcpListener::bind(ANY).expect("a port");
        let address = taken.local_addr().expect("bound").to_string();
        let mut listeners = Listeners::new(2, Vec::new());
        let prepared = listeners.prepare(&[wanted(1, ANY)]).expect("opened");
        listeners.commit(&prepared);
        let before = listeners.list();

        let refused = listeners.prepare(&[wanted(2, ANY), wanted(3, &address)]);
        let error = refused.err().expect("the port is taken");
        assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(listeners.list(), before);
    }

    #[test]
    fn another_process_with_the_same_port_is_noticed_despite_reuse_port() {
        let other = Listeners::new(1, Vec::new());
        let theirs = other.prepare(&[wanted(1, ANY)]).expect("opened");
        let address = theirs.start[0].0.address.to_string();
        let ours = Listeners::new(1, Vec::new());
        let error = ours.prepare(&[wanted(1, &address)]).err().expect("in use");
        assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn moved_and_removed_listeners_stop_and_a_renamed_one_keeps_its_port() {
        let mut listeners = Listeners::new(1, Vec::new());
        let prepared = listeners
            .prepare(&[wanted(1, ANY), wanted(2, ANY)])
            .expect("opened");
        listeners.commit(&prepared);
        let port_of_2 = listeners.list()[1].address.to_string();

        let next = [wanted(1, "[::1]:0"), wanted(3, &port_of_2)];
        let prepared = listeners.prepare(&next).expect("opened");
        assert_eq!(started(&prepared), [(1, 1), (3, 1)]);
        assert_eq!(prepared.stop, [ListenerId(1), ListenerId(2)]);
        listeners.commit(&prepared);
        let names: Vec<_> = listeners.list().iter().map(|open| open.id.0).collect();
        assert_eq!(names, [1, 3]);
    }

    #[test]
    fn a_socket_of_the_service_manager_is_shared_by_all_shards() {
        let given = TcpListener::bind(ANY).expect("a port");
        let address = given.local_addr().expect("bound").to_string();
        let listeners = Listeners::new(2, vec![given]);
        let prepared = listeners
            .prepare(&[wanted(1, &address)])
            .expect("taken over");
        assert_eq!(started(&prepared), [(1, 2)]);
        assert!(prepared.start[0].0.activated);
    }
}
