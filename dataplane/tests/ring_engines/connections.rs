//! Connections: accept, connect, refusal, slots and their epochs. Each function takes the maker of an engine.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use sluice_dataplane::ring::{Event, Full, ListenSlot, Ring, RingConfig, Target, listen_unix};

use crate::driver::*;

pub(crate) fn stale_ids_are_silent<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut old_client, old) = driver.accept(address);
    driver.ring.receive(old);
    old_client.write_all(b"never read").unwrap();
    driver.ring.close(old);
    driver.poll();
    let (mut client, socket) = driver.accept(address);
    assert_eq!(socket.index, old.index, "the slot is used again");
    assert_ne!(socket.epoch, old.epoch);
    let piece = driver.ring.scratch(b"to nobody");
    driver.ring.send(old, &[piece]);
    driver.ring.send_owned(old, b"to nobody".to_vec(), 0);
    driver.ring.receive(old);
    driver.ring.pause(old);
    driver.ring.shutdown_write(old);
    driver.ring.close(old);
    driver.ring.receive(socket);
    client.write_all(b"hello").unwrap();
    assert_eq!(driver.received(socket), b"hello");
    let piece = driver.ring.scratch(b"answer");
    driver.ring.send(socket, &[piece]);
    driver.poll();
    assert_eq!(read_exactly(&mut client, 6), b"answer");
}

/// A socket that is bound and does not listen, and its address: a connect to it is refused.
fn refusing_port() -> (OwnedFd, SocketAddr) {
    let bound = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    rustix::net::bind(&bound, &any).unwrap();
    let address = sluice_dataplane::ring::local_address(bound.as_fd()).unwrap();
    (bound, address.unwrap())
}

/// A connect that begins while the refusal of another is still to be looked at does not take over its id.
pub(crate) fn a_refused_connect_keeps_its_id<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let (_bound, refusing) = refusing_port();
    let targets = [Target::Tcp(refusing), Target::Unix("/nonexistent".into())];
    for target in targets {
        let first = driver.ring.connect(&target).unwrap();
        let mut waiting = vec![first];
        let mut second = None;
        while let Some(waited) = waiting.pop() {
            let refused = driver.wait_for(nothing_else, |event| match event {
                Event::ConnectFailed { socket, .. } => Some(*socket),
                _ => None,
            });
            assert_eq!(refused, waited);
            if second.is_none() {
                let socket = driver.ring.connect(&target).unwrap();
                assert_ne!(socket.index, first.index);
                waiting.push(socket);
                second = Some(socket);
            }
        }
        driver.ring.close(first);
        let third = driver.ring.connect(&target).unwrap();
        assert_eq!(third.index, first.index, "closed, the number is free");
        second
            .into_iter()
            .chain([third])
            .for_each(|socket| driver.ring.close(socket));
        assert!(driver.poll().is_empty());
    }
}

pub(crate) fn refused_connects_fail<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let (_bound, refusing) = refusing_port();
    let targets = [
        (Target::Tcp(refusing), libc::ECONNREFUSED),
        (Target::Unix("/nonexistent/socket".into()), libc::ENOENT),
        (Target::Unix("/x".repeat(100).into()), libc::ENAMETOOLONG),
    ];
    for (target, expected) in targets {
        let socket = driver.ring.connect(&target).unwrap();
        let errno = driver.wait_for(nothing_else, |event| match event {
            Event::ConnectFailed { socket: at, errno } if *at == socket => Some(*errno),
            _ => None,
        });
        assert_eq!(errno, expected, "{target:?}");
        driver.ring.close(socket);
        assert!(driver.poll().is_empty());
    }
}

pub(crate) fn a_pending_connect_can_be_closed<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    // A listener whose backlog is full and not accepted: further connects wait.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let mut pending = Vec::new();
    for _ in 0..8 {
        pending.push(driver.ring.connect(&target).unwrap());
    }
    let events: Vec<Event> = (0..50).flat_map(|_| driver.poll()).collect();
    pending.retain(|id| {
        !events
            .iter()
            .any(|event| matches!(event, Event::Connected { socket } if socket == id))
    });
    assert!(!pending.is_empty(), "the backlog holds back some");
    let closed = pending.pop().unwrap();
    driver.ring.close(closed);
    let again = driver.ring.connect(&target).unwrap();
    assert_eq!(again.index, closed.index);
    driver.ring.close(again);
    for id in pending {
        driver.ring.close(id);
    }
    assert!(driver.poll().is_empty());
}

pub(crate) fn unix_sockets_connect_and_accept<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(make, &CONFIG);
    // As a client of the ring.
    let path = directory.path().join("listener");
    driver
        .ring
        .listen(LISTENER, listen_unix(&path, 16).unwrap())
        .unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let socket = driver.accepted();
    driver.ring.receive(socket);
    client.write_all(b"up").unwrap();
    assert_eq!(driver.received(socket), b"up");
    // As an upstream of the ring.
    let path = directory.path().join("upstream");
    let upstream = UnixListener::bind(&path).unwrap();
    let socket = driver.ring.connect(&Target::Unix(path)).unwrap();
    driver.wait_for(nothing_else, |event| match event {
        Event::Connected { socket: at } if *at == socket => Some(()),
        _ => None,
    });
    let (mut server, _) = upstream.accept().unwrap();
    driver.ring.receive(socket);
    let piece = driver.ring.scratch(b"request");
    driver.ring.send(socket, &[piece]);
    driver.poll();
    let mut got = [0; 7];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"request");
    server.write_all(b"reply").unwrap();
    assert_eq!(driver.received(socket), b"reply");
}

pub(crate) fn an_accept_storm_is_accepted<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    const CLIENTS: usize = 500;
    let config = RingConfig {
        sockets_max: CLIENTS as u32,
        ..CONFIG
    };
    let mut driver = Driver::new(make, &config);
    let address = driver.listen();
    let storm = thread::spawn(move || -> Vec<TcpStream> {
        (0..CLIENTS)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect()
    });
    let mut sockets = Vec::new();
    while sockets.len() < CLIENTS {
        for event in driver.turn() {
            match event {
                Event::Accepted { socket, .. } => sockets.push(socket),
                event => panic!("unexpected {event:?}"),
            }
        }
    }
    let clients = storm.join().unwrap();
    for socket in &sockets {
        driver.ring.receive(*socket);
    }
    driver.poll();
    drop(clients);
    let mut ended = 0;
    while ended < CLIENTS {
        for event in driver.turn() {
            match event {
                Event::Ended { socket, .. } => {
                    driver.ring.close(socket);
                    ended += 1;
                }
                event => panic!("unexpected {event:?}"),
            }
        }
    }
    assert!(driver.poll().is_empty());
}

pub(crate) fn without_free_slots_connections_are_closed<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    let config = RingConfig {
        sockets_max: 2,
        ..CONFIG
    };
    let mut driver = Driver::new(make, &config);
    let address = driver.listen();
    let (_first, a) = driver.accept(address);
    let (_second, _b) = driver.accept(address);
    assert_eq!(driver.ring.connect(&Target::Tcp(address)), Err(Full));
    let third = TcpStream::connect(address).unwrap();
    let errno = driver.wait_for(nothing_else, |event| match event {
        Event::AcceptFailed { listener, errno } if *listener == LISTENER => Some(*errno),
        _ => None,
    });
    assert_eq!(errno, libc::ENOBUFS);
    read_until_closed(third);
    driver.ring.close(a);
    let (_fourth, socket) = driver.accept(address);
    assert_eq!(socket.index, a.index);
}

pub(crate) fn a_stopped_listener_refuses<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (_client, socket) = driver.accept(address);
    driver.ring.stop_listening(LISTENER);
    driver.ring.stop_listening(LISTENER);
    driver.ring.stop_listening(ListenSlot(99));
    driver.poll();
    driver.poll();
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    // The slot can listen again, and what was accepted lives on.
    let address = driver.listen();
    let (mut client, again) = driver.accept(address);
    assert_ne!(again, socket);
    driver.ring.receive(again);
    client.write_all(b"x").unwrap();
    assert_eq!(driver.received(again), b"x");
}

pub(crate) fn a_slot_is_used_again_with_a_new_epoch<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let mut last = None;
    for round in 0..300_u32 {
        let (mut client, socket) = driver.accept(address);
        driver.ring.receive(socket);
        if round % 2 == 0 {
            driver.poll();
        }
        client.write_all(&round.to_le_bytes()).unwrap();
        if round % 3 == 0 {
            // Closed with bytes on their way: they must not be heard, here or at the next user of the slot.
            driver.ring.close(socket);
            continue;
        }
        assert_eq!(driver.received(socket), round.to_le_bytes());
        if let Some(last) = last.replace(socket) {
            assert_ne!(last, socket);
        }
        driver.ring.close(socket);
    }
    assert!(driver.poll().is_empty());
}
