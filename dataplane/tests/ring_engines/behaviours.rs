//! What every engine must do. Each function takes the maker of an engine.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;
use sluice_dataplane::ring::{
    End, Event, Full, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, listen_unix,
};

use crate::driver::*;

type Made<R> = io::Result<R>;

pub(crate) fn echo_keeps_every_byte_in_order<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    const CLIENTS: u64 = 4;
    const BYTES: usize = 2 << 20;
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|seed| {
            let stream = TcpStream::connect(address).unwrap();
            let sent = pattern(BYTES, seed);
            let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
            let write = thread::spawn(move || {
                let (mut rest, mut state) = (&bytes[..], seed);
                while !rest.is_empty() {
                    let most = [1, 7, 1500, 70_000][random(&mut state) as usize % 4];
                    let len = (1 + random(&mut state) as usize % most).min(rest.len());
                    writer.write_all(&rest[..len]).unwrap();
                    rest = &rest[len..];
                }
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let read = thread::spawn(move || read_to_end(stream));
            (sent, write, read)
        })
        .collect();
    let mut echo = Echo::default();
    while echo.closed < clients.len() {
        echo.turn(&mut driver);
    }
    driver.poll();
    for (sent, write, read) in clients {
        write.join().unwrap();
        assert_same(&read.join().unwrap(), &sent);
    }
}

pub(crate) fn short_sends_lose_nothing_with_a_slow_reader<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    const BYTES: usize = 24 << 20;
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let stream = TcpStream::connect(address).unwrap();
    let sent = pattern(BYTES, 1);
    let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
    let write = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // Reads only once the echo has had to hold bytes back and to stop reading.
    let (held_back, wait_until_held_back) = std::sync::mpsc::channel();
    let read = thread::spawn(move || {
        wait_until_held_back.recv().unwrap();
        read_to_end(stream)
    });
    let mut echo = Echo::default();
    let mut told = false;
    while echo.closed == 0 {
        echo.turn(&mut driver);
        if !told && echo.shorts > 0 && echo.pauses > 0 {
            told = true;
            held_back.send(()).unwrap();
        }
    }
    driver.poll();
    assert!(echo.shorts > 0, "the reader was slow enough to matter");
    write.join().unwrap();
    assert_same(&read.join().unwrap(), &sent);
}

pub(crate) fn many_pieces_leave_as_one_send<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut client, socket) = driver.accept(address);
    for count in [1, 2, 63, 65, 1023, 1024, 1025, 3000] {
        let mut expected = Vec::new();
        let mut pieces = Vec::new();
        for at in 0..count {
            let bytes = pattern(1 + at % 13, at as u64);
            let other = driver
                .ring
                .scratch(b"between: not sent, so that neighbours cannot be joined");
            pieces.push(driver.ring.scratch(&bytes));
            expected.extend(bytes);
            assert!(matches!(other, Piece::Scratch { .. }));
        }
        driver.ring.send(socket, &pieces);
        assert!(driver.poll().is_empty(), "all was taken");
        assert_same(&read_exactly(&mut client, expected.len()), &expected);
    }
}

pub(crate) fn two_sends_in_one_turn_join<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut first, a) = driver.accept(address);
    let (mut second, b) = driver.accept(address);
    for (socket, text) in [
        (a, "one "),
        (b, "uno "),
        (a, "two "),
        (a, "three "),
        (b, "due"),
    ] {
        let piece = driver.ring.scratch(text.as_bytes());
        driver.ring.send(socket, &[piece]);
    }
    driver.poll();
    assert_eq!(read_exactly(&mut first, 14), b"one two three ");
    assert_eq!(read_exactly(&mut second, 7), b"uno due");
}

pub(crate) fn fast_senders_without_buffers_wait_in_turn<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    const CLIENTS: u64 = 24;
    const BYTES: usize = 256 * 1024;
    let config = RingConfig {
        buffers: 4,
        ..CONFIG
    };
    let mut driver = Driver::new(make, &config);
    let address = driver.listen();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|seed| {
            let mut stream = TcpStream::connect(address).unwrap();
            thread::spawn(move || stream.write_all(&pattern(BYTES, seed)).unwrap())
        })
        .collect();
    let mut got: Vec<(SocketId, Vec<u8>)> = Vec::new();
    let (mut ended, mut most, mut widest_lead) = (0, 0, 0);
    while ended < CLIENTS {
        let events = driver.turn();
        let leases = events
            .iter()
            .filter(|event| matches!(event, Event::Received { .. }))
            .count();
        most = most.max(leases);
        for event in events {
            match event {
                Event::Accepted { socket, .. } => {
                    got.push((socket, Vec::new()));
                    driver.ring.receive(socket);
                }
                Event::Received { socket, lease } => {
                    let bytes = driver.ring.lease(lease).to_vec();
                    assert!(!bytes.is_empty());
                    let (_, all) = got.iter_mut().find(|(at, _)| *at == socket).unwrap();
                    all.extend(bytes);
                }
                Event::Ended { socket, end } => {
                    assert_eq!(end, End::Eof);
                    driver.ring.close(socket);
                    ended += 1;
                }
                event => panic!("unexpected {event:?}"),
            }
        }
        let lengths = || got.iter().map(|(_, bytes)| bytes.len());
        if got.len() as u64 == CLIENTS && lengths().all(|len| len < BYTES) {
            widest_lead = widest_lead.max(lengths().max().unwrap() - lengths().min().unwrap());
        }
    }
    for client in clients {
        client.join().unwrap();
    }
    assert!(most <= 4, "no more leases than buffers, but {most}");
    // Which client got which socket is not known, so the bytes are matched by their first eight.
    for (_, bytes) in &got {
        let seed = (0..CLIENTS)
            .find(|seed| pattern(8, *seed) == bytes[..8])
            .unwrap();
        assert_same(bytes, &pattern(BYTES, seed));
    }
    // First in, first out: once all are connected none is left behind by more than its share of turns.
    assert!(widest_lead < BYTES, "one client was starved: {widest_lead}");
}

pub(crate) fn a_waiting_socket_is_armed_when_leases_return<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    let config = RingConfig {
        buffers: 1,
        ..CONFIG
    };
    let mut driver = Driver::new(make, &config);
    let address = driver.listen();
    let mut pairs: Vec<(TcpStream, SocketId)> = (0..5).map(|_| driver.accept(address)).collect();
    for (client, socket) in &mut pairs {
        client.write_all(b"x").unwrap();
        driver.ring.receive(*socket);
    }
    // One buffer: one socket in each turn, and each of them before any comes twice.
    let mut order = Vec::new();
    for round in 0..3 {
        let mut seen = Vec::new();
        for _ in 0..pairs.len() {
            let (socket, lease) = driver.wait_for(nothing_else, |event| match event {
                Event::Received { socket, lease } => Some((*socket, *lease)),
                _ => None,
            });
            assert_eq!(driver.ring.lease(lease), b"x");
            let (client, _) = pairs.iter_mut().find(|(_, at)| *at == socket).unwrap();
            client.write_all(b"x").unwrap();
            seen.push(socket);
        }
        let mut distinct = seen.clone();
        distinct.sort_by_key(|socket| socket.index);
        distinct.dedup();
        assert_eq!(distinct.len(), pairs.len(), "round {round}: {seen:?}");
        order.push(seen);
    }
    assert_eq!(order[1], order[2], "the line keeps its order");
}

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

pub(crate) fn a_pause_is_answered_once<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut client, socket) = driver.accept(address);
    driver.ring.pause(socket);
    driver.poll();
    assert!(driver.poll().is_empty(), "not receiving: no answer");
    driver.ring.receive(socket);
    client.write_all(b"before").unwrap();
    assert_eq!(driver.received(socket), b"before");
    for _ in 0..3 {
        driver.ring.pause(socket);
    }
    assert_paused(&mut driver, socket);
    client.write_all(b"meanwhile").unwrap();
    driver.ring.pause(socket);
    assert!(driver.poll().is_empty(), "paused: nothing comes");
    driver.ring.receive(socket);
    assert_eq!(driver.received(socket), b"meanwhile");
}

pub(crate) fn a_pause_races_with_the_end<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let config = RingConfig {
        buffers: 2,
        ..CONFIG
    };
    let mut driver = Driver::new(make, &config);
    let address = driver.listen();
    let (mut ends, mut pauses) = (0, 0);
    for round in 0..200_u32 {
        let (mut client, socket) = driver.accept(address);
        driver.ring.receive(socket);
        if round % 2 == 0 {
            driver.poll(); // armed
        }
        let bytes = pattern(round as usize * 17 % 3000, u64::from(round));
        client.write_all(&bytes).unwrap();
        if round % 3 == 0 {
            client.shutdown(Shutdown::Write).unwrap();
        }
        driver.ring.pause(socket);
        let mut got = Vec::new();
        let mut answers = 0;
        while answers == 0 {
            for event in driver.turn() {
                match event {
                    Event::Received { socket: at, lease } if at == socket => {
                        assert_eq!(answers, 0, "bytes after the answer");
                        got.extend_from_slice(driver.ring.lease(lease));
                    }
                    Event::Paused { socket: at } if at == socket => {
                        answers += 1;
                        pauses += 1;
                    }
                    Event::Ended { socket: at, end } if at == socket => {
                        assert_eq!(end, End::Eof);
                        answers += 1;
                        ends += 1;
                    }
                    event => panic!("unexpected {event:?}"),
                }
            }
        }
        assert_eq!(answers, 1);
        assert!(driver.poll().is_empty(), "one answer only");
        assert_eq!(got, bytes[..got.len()], "a prefix in order");
        driver.ring.close(socket);
    }
    assert_eq!(ends + pauses, 200);
    assert!(pauses > 0);
}

pub(crate) fn a_pause_taken_back_is_not_answered<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut client, socket) = driver.accept(address);
    driver.ring.receive(socket);
    driver.poll();
    driver.ring.pause(socket);
    driver.ring.receive(socket);
    client.write_all(b"on").unwrap();
    assert_eq!(driver.received(socket), b"on");
    for _ in 0..3 {
        driver.ring.pause(socket);
        driver.ring.receive(socket);
    }
    driver.ring.pause(socket);
    assert_paused(&mut driver, socket);
    assert!(driver.poll().is_empty());
}

pub(crate) fn pausing_a_waiting_receive_is_answered<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    let config = RingConfig {
        buffers: 1,
        ..CONFIG
    };
    let mut driver = Driver::new(make, &config);
    let address = driver.listen();
    let (mut fast, a) = driver.accept(address);
    let (mut slow, b) = driver.accept(address);
    driver.ring.receive(a);
    fast.write_all(b"takes the only buffer").unwrap();
    assert_eq!(driver.received(a), b"takes the only buffer");
    slow.write_all(b"waits").unwrap();
    driver.ring.receive(b);
    driver.ring.pause(b);
    assert_paused(&mut driver, b);
    driver.ring.receive(b);
    assert_eq!(driver.received(b), b"waits");
}

pub(crate) fn nothing_is_heard_after_close_with_an_owned_send_in_flight<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    for _ in 0..20 {
        let (client, socket) = driver.accept(address);
        driver.ring.receive(socket);
        // Fill the socket, so that the next send must wait.
        let mut rest = pattern(1 << 16, 9);
        loop {
            driver.ring.send_owned(socket, rest, 0);
            let events = driver.poll();
            let Some(Event::SentOwned { buffer, taken, .. }) = events.into_iter().next() else {
                break;
            };
            assert!(taken.unwrap() > 0);
            rest = buffer;
        }
        driver.ring.close(socket);
        assert!(driver.poll().is_empty());
        // The peer reads what was taken, then the end: the descriptor is really closed.
        read_until_closed(client);
        assert!(driver.poll().is_empty());
    }
}

pub(crate) fn a_reset_in_mid_send_is_told<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    // With an owned send waiting.
    let (client, socket) = driver.accept(address);
    let mut buffer = pattern(1 << 20, 4);
    loop {
        driver.ring.send_owned(socket, buffer, 0);
        match driver.poll().pop() {
            Some(Event::SentOwned { buffer: back, .. }) => buffer = back,
            None => break,
            Some(event) => panic!("unexpected {event:?}"),
        }
    }
    reset(client);
    let (len, errno) = driver.wait_for(nothing_else, |event| match event {
        Event::SentOwned { buffer, taken, .. } => Some((buffer.len(), taken.unwrap_err())),
        _ => None,
    });
    assert_eq!(len, 1 << 20, "the buffer comes back");
    assert!([libc::ECONNRESET, libc::EPIPE].contains(&errno), "{errno}");
    driver.ring.close(socket);
    // With a lease send.
    let (client, socket) = driver.accept(address);
    driver.ring.receive(socket);
    reset(client);
    let end = driver.wait_for(nothing_else, |event| match event {
        Event::Ended { end, .. } => Some(*end),
        _ => None,
    });
    assert_eq!(end, End::Failed(libc::ECONNRESET));
    let piece = driver.ring.scratch(b"too late");
    driver.ring.send(socket, &[piece]);
    let errno = driver.wait_for(nothing_else, |event| match event {
        Event::SendFailed { socket: at, errno } if *at == socket => Some(*errno),
        _ => None,
    });
    assert_eq!(errno, libc::EPIPE);
    driver.ring.shutdown_write(socket);
    driver.ring.close(socket);
    assert!(driver.poll().is_empty());
}

pub(crate) fn refused_connects_fail<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    // A port that was free a moment ago; nothing listens there while the listener is bound and not listening.
    let bound = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    rustix::net::bind(&bound, &any).unwrap();
    let address = sluice_dataplane::ring::local_address(std::os::fd::AsFd::as_fd(&bound));
    let targets = [
        (Target::Tcp(address.unwrap().unwrap()), libc::ECONNREFUSED),
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
        assert!(driver.poll().is_empty(), "the id is closed already");
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

pub(crate) fn fin_comes_after_all_bytes<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    for round in 0..50 {
        let (client, socket) = driver.accept(address);
        let bytes = pattern(round * 700, 5);
        let piece = driver.ring.scratch(&bytes);
        driver.ring.send(socket, &[piece]);
        driver.ring.shutdown_write(socket);
        driver.ring.shutdown_write(socket);
        if round % 2 == 0 {
            driver.ring.close(socket);
        }
        driver.poll();
        assert_same(&read_to_end(client), &bytes);
        driver.ring.close(socket);
    }
}

pub(crate) fn fin_waits_for_an_owned_send<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    const BYTES: usize = 16 << 20;
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (client, socket) = driver.accept(address);
    let bytes = pattern(BYTES, 6);
    let piece = driver.ring.scratch(&bytes);
    driver.ring.send(socket, &[piece]);
    // Asked for at once; it must wait for what the send leaves over.
    driver.ring.shutdown_write(socket);
    let rest = driver.wait_for(nothing_else, |event| match event {
        Event::SendShort { rest, .. } => Some(rest.clone()),
        _ => None,
    });
    assert!(rest.len() < BYTES && rest == bytes[BYTES - rest.len()..]);
    let read = thread::spawn(move || read_to_end(client));
    let (mut buffer, mut from) = (rest, 0);
    while from < buffer.len() {
        driver.ring.send_owned(socket, buffer, from);
        let taken;
        (buffer, taken) = driver.wait_for(nothing_else, |event| match event {
            Event::SentOwned { buffer, taken, .. } => Some((buffer.clone(), taken.unwrap())),
            _ => None,
        });
        assert!(taken > 0);
        from += taken;
    }
    assert_same(&read.join().unwrap(), &bytes);
}

pub(crate) fn both_directions_end_apart<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut client, socket) = driver.accept(address);
    driver.ring.receive(socket);
    // Ours first: the peer goes on sending.
    driver.ring.shutdown_write(socket);
    driver.poll();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    client.write_all(b"still here").unwrap();
    assert_eq!(driver.received(socket), b"still here");
    client.shutdown(Shutdown::Write).unwrap();
    let end = driver.wait_for(nothing_else, |event| match event {
        Event::Ended { end, .. } => Some(*end),
        _ => None,
    });
    assert_eq!(end, End::Eof);
    driver.ring.receive(socket);
    driver.ring.pause(socket);
    assert!(driver.poll().is_empty(), "the end is told once");
    // Theirs first: we go on sending.
    let (mut client, socket) = driver.accept(address);
    driver.ring.receive(socket);
    client.write_all(b"all").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.received_then_ended(socket), b"all");
    let piece = driver.ring.scratch(b"answer");
    driver.ring.send(socket, &[piece]);
    driver.ring.shutdown_write(socket);
    driver.poll();
    assert_eq!(read_to_end(client), b"answer");
}

pub(crate) fn another_thread_wakes_a_turn<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let waker = driver.ring.waker();
    // Several uses before a turn are one event.
    for _ in 0..100 {
        waker.wake();
    }
    assert!(matches!(driver.turn()[..], [Event::Woken]));
    assert!(driver.poll().is_empty());
    // Each message put down before a wake is seen after the Woken that answers it.
    let (message, messages) = std::sync::mpsc::channel();
    let sender = thread::spawn(move || {
        for number in 0..10_000 {
            message.send(number).unwrap();
            waker.wake();
        }
    });
    let mut seen = 0;
    while seen < 10_000 {
        assert!(matches!(driver.turn()[..], [Event::Woken]));
        seen += messages.try_iter().count();
    }
    sender.join().unwrap();
}

pub(crate) fn a_turn_returns_at_its_deadline<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    driver.listen();
    for millis in [0, 1, 7, 20] {
        for budget in [0, 300] {
            let until = driver.ring.now().after(Duration::from_millis(millis));
            let mut events = Vec::new();
            driver.ring.turn(Some(until), budget, &mut events).unwrap();
            assert!(events.is_empty(), "{events:?}");
            assert!(driver.ring.now() >= until, "not before its time");
        }
    }
}

pub(crate) fn a_latency_budget_gathers_events<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut first, a) = driver.accept(address);
    let (second, b) = driver.accept(address);
    driver.ring.receive(a);
    driver.ring.receive(b);
    driver.poll();
    first.write_all(b"first").unwrap();
    // The other sends only once it has seen that the first was written; the budget is long enough to wait for it.
    let late = thread::spawn(move || (&second).write_all(b"second").map(|()| second).unwrap());
    let until = driver.ring.now().after(PATIENCE);
    let mut events = Vec::new();
    driver.ring.turn(Some(until), 500_000, &mut events).unwrap();
    late.join().unwrap();
    let received = events
        .iter()
        .filter(|event| matches!(event, Event::Received { .. }))
        .count();
    assert_eq!(received, 2, "both in one turn: {events:?}");
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

pub(crate) fn edits_of_a_lease_are_sent<R: Ring>(make: impl FnOnce(&RingConfig) -> Made<R>) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (mut client, socket) = driver.accept(address);
    driver.ring.receive(socket);
    client.write_all(b"edit me").unwrap();
    let lease = driver.wait_for(nothing_else, |event| match event {
        Event::Received { lease, .. } => Some(*lease),
        _ => None,
    });
    driver.ring.lease(lease)[..4].copy_from_slice(b"sent");
    driver.ring.send(socket, &[whole(lease)]);
    driver.poll();
    assert_eq!(read_exactly(&mut client, 7), b"sent me");
    assert!(
        driver.ring.lease(lease).is_empty(),
        "a lease never survives its turn"
    );
}

pub(crate) fn a_send_during_an_owned_send_comes_back<R: Ring>(
    make: impl FnOnce(&RingConfig) -> Made<R>,
) {
    let mut driver = Driver::new(make, &CONFIG);
    let address = driver.listen();
    let (client, socket) = driver.accept(address);
    let mut sent = 0;
    let mut buffer = vec![1; 1 << 20];
    loop {
        driver.ring.send_owned(socket, buffer, 0);
        match driver.poll().pop() {
            Some(Event::SentOwned {
                buffer: back,
                taken,
                ..
            }) => {
                sent += taken.unwrap();
                buffer = back;
            }
            None => break,
            Some(event) => panic!("unexpected {event:?}"),
        }
    }
    let piece = driver.ring.scratch(b"behind it");
    driver.ring.send(socket, &[piece]);
    let rest = driver.wait_for(nothing_else, |event| match event {
        Event::SendShort { rest, .. } => Some(rest.clone()),
        _ => None,
    });
    assert_eq!(rest, b"behind it");
    driver.ring.close(socket);
    driver.poll();
    let got = read_until_closed(client);
    assert_eq!(got, sent, "what was told as taken, and no more");
}

fn assert_paused<R: Ring>(driver: &mut Driver<R>, socket: SocketId) {
    driver.wait_for(nothing_else, |event| match event {
        Event::Paused { socket: at } if *at == socket => Some(()),
        _ => None,
    });
}

impl<R: Ring> Driver<R> {
    /// Turns until `socket` has ended; the bytes before that.
    fn received_then_ended(&mut self, socket: SocketId) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            for event in self.turn() {
                match event {
                    Event::Received { socket: at, lease } if at == socket => {
                        bytes.extend_from_slice(self.ring.lease(lease));
                    }
                    Event::Ended { socket: at, end } if at == socket => {
                        assert_eq!(end, End::Eof);
                        return bytes;
                    }
                    event => panic!("unexpected {event:?}"),
                }
            }
        }
    }
}

fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn read_exactly(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads until FIN or reset; how many bytes came.
fn read_until_closed(mut stream: TcpStream) -> usize {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    bytes.len()
}

/// Closes with a reset.
fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}
