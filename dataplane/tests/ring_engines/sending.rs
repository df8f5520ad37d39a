//! Bytes out: order, short sends, owned sends, FIN. Each function takes the maker of an engine.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread;

use sluice_dataplane::ring::{End, Event, Piece, Ring, RingConfig};

use crate::driver::*;

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
