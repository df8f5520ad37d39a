//! Bytes in: buffers that run out, pauses, ends; and what ends a wait. Each function takes the maker of an engine.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use sluice_dataplane::ring::{End, Event, Ring, RingConfig, SocketId};

use crate::driver::*;

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
    let (mut clients, sockets): (Vec<TcpStream>, Vec<SocketId>) =
        (0..40).map(|_| driver.accept(address)).unzip();
    for socket in &sockets {
        driver.ring.receive(*socket);
    }
    driver.poll();
    clients[0].write_all(b"first").unwrap();
    // The others are late by as long as a thread takes to start, and enough to end the budget, which is longer than
    // anybody wants to wait.
    let late = thread::spawn(move || {
        for client in &mut clients[1..] {
            client.write_all(b"late").unwrap();
        }
        clients
    });
    let until = driver.ring.now().after(PATIENCE);
    let mut events = Vec::new();
    let budget_micros = 2 * PATIENCE.as_micros() as u32;
    driver
        .ring
        .turn(Some(until), budget_micros, &mut events)
        .unwrap();
    assert!(driver.ring.now() < until, "enough events end the wait");
    late.join().unwrap();
    let heard = |event: &&Event| matches!(event, Event::Received { .. });
    let heard = events.iter().filter(heard).count();
    assert!(heard >= 32, "many in one turn: {events:?}");
}
