//! What needs a process of its own: running out of descriptors, and counting them.
//!
//! Each test runs this program again for itself alone, so that limits and counts concern nobody else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, and names only the events it is about"
)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sluice_dataplane::ring::{
    Epoll, Event, Full, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Uring, listen_tcp,
    local_address,
};

const PATIENCE: Duration = Duration::from_secs(30);

const CONFIG: RingConfig = RingConfig {
    sockets_max: 64,
    buffers: 64,
    buffer_bytes: 1024,
};

/// Set in the process that runs one test alone.
const ALONE: &str = "SLUICE_TEST_ALONE";

/// Runs `body` in a process of its own, which runs only the test `name`.
fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        body();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{name}: {told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

macro_rules! alone_on_both_engines {
    ($($case:ident)*) => {
        mod uring {
            $(#[test] fn $case() {
                super::alone(concat!("uring::", stringify!($case)), || super::$case(super::Uring::new));
            })*
        }
        mod epoll {
            $(#[test] fn $case() {
                super::alone(concat!("epoll::", stringify!($case)), || super::$case(super::Epoll::new));
            })*
        }
    };
}

alone_on_both_engines! {
    without_descriptors_clients_are_turned_away_and_the_listener_rests
    a_ring_that_is_dropped_leaves_no_descriptor
    closed_sockets_leave_no_descriptor
    a_message_costs_one_enter
}

fn without_descriptors_clients_are_turned_away_and_the_listener_rests<R: Ring>(
    make: impl FnOnce(&RingConfig) -> io::Result<R>,
) {
    const ROOM: u64 = 3;
    let mut ring = make(&CONFIG).unwrap();
    let address = listen(&mut ring);
    let mut clients: Vec<TcpStream> = (0..10)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let limit = getrlimit(Resource::Nofile);
    let next_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    set_limit(next_free + ROOM, limit);
    let (mut accepted, mut failed) = (Vec::new(), None);
    while failed.is_none() {
        for event in turn(&mut ring) {
            match event {
                Event::Accepted { socket, .. } => accepted.push(socket),
                Event::AcceptFailed { errno, .. } => failed = Some(errno),
                event => panic!("unexpected {event:?}"),
            }
        }
    }
    assert_eq!(failed, Some(libc::EMFILE));
    assert_eq!(accepted.len() as u64, ROOM, "as many as there was room for");
    assert_eq!(ring.connect(&Target::Tcp(address)), Err(Full));
    // Those beyond were not left hanging.
    for client in clients.split_off(accepted.len()) {
        read_until_closed(client);
    }
    // While it rests, the next one waits in the backlog, and no turn spins.
    let before = ring.enters();
    set_limit(next_free + 40, limit);
    let _late = TcpStream::connect(address).unwrap();
    let events = turn(&mut ring);
    assert!(matches!(events[..], [Event::Accepted { .. }]), "{events:?}");
    let enters = ring.enters() - before;
    assert!(enters <= 8, "{enters} enters for one rest");
    // Those accepted before live on.
    let [first, ..] = accepted[..] else {
        panic!("accepted")
    };
    let piece = ring.scratch(b"alive");
    ring.send(first, &[piece]);
    ring.turn(Some(ring.now()), 0, &mut Vec::new()).unwrap();
    let mut got = [0; 5];
    clients[0].read_exact(&mut got).unwrap();
    assert_eq!(&got, b"alive");
}

fn a_ring_that_is_dropped_leaves_no_descriptor<R: Ring>(
    make: impl Fn(&RingConfig) -> io::Result<R>,
) {
    // The first use of anything may open descriptors for good.
    drop(busy_ring(&make));
    let before = descriptors();
    for _ in 0..20 {
        let (ring, clients) = busy_ring(&make);
        drop(ring);
        for client in clients {
            read_until_closed(client);
        }
    }
    assert_eq!(descriptors(), before);
}

/// A ring with every kind of operation in flight, and the clients of its sockets.
fn busy_ring<R: Ring>(make: impl Fn(&RingConfig) -> io::Result<R>) -> (R, Vec<TcpStream>) {
    let mut ring = make(&CONFIG).unwrap();
    let address = listen(&mut ring);
    let mut clients = Vec::new();
    let mut sockets = Vec::new();
    for _ in 0..6 {
        let (client, socket) = accept(&mut ring, address);
        clients.push(client);
        sockets.push(socket);
    }
    let [idle, receiving, sending, closing, pausing, leased] = sockets[..] else {
        panic!("six sockets");
    };
    let _ = idle;
    ring.receive(receiving);
    ring.receive(pausing);
    ring.receive(closing);
    ring.receive(leased);
    fill(&mut ring, sending);
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..4 {
        ring.connect(&Target::Tcp(full.local_addr().unwrap()))
            .unwrap();
    }
    ring.turn(Some(ring.now()), 0, &mut Vec::new()).unwrap();
    ring.pause(pausing);
    ring.close(closing);
    clients[5].write_all(b"a lease at the end").unwrap();
    let mut events = turn(&mut ring);
    while !events
        .iter()
        .any(|event| matches!(event, Event::Received { .. }))
    {
        events = turn(&mut ring);
    }
    // Not accepted yet: one in the backlog, or in a completion that nobody reads.
    clients.push(TcpStream::connect(address).unwrap());
    let piece = ring.scratch(b"noted, never submitted");
    ring.send(receiving, &[piece]);
    (ring, clients)
}

fn closed_sockets_leave_no_descriptor<R: Ring>(make: impl Fn(&RingConfig) -> io::Result<R>) {
    let mut ring = make(&CONFIG).unwrap();
    let address = listen(&mut ring);
    let mut before = None;
    for round in 0..1000 {
        let (client, socket) = accept(&mut ring, address);
        if round % 2 == 0 {
            ring.receive(socket);
        }
        if round % 5 == 0 {
            ring.turn(Some(ring.now()), 0, &mut Vec::new()).unwrap();
        }
        if round % 7 == 0 {
            fill(&mut ring, socket);
        }
        ring.close(socket);
        ring.turn(Some(ring.now()), 0, &mut Vec::new()).unwrap();
        read_until_closed(client);
        let count = descriptors();
        assert_eq!(*before.get_or_insert(count), count, "round {round}");
    }
}

/// A message in and out, one at a time: the engine waits once for each.
fn a_message_costs_one_enter<R: Ring>(make: impl Fn(&RingConfig) -> io::Result<R>) {
    const MESSAGES: u64 = 2_000;
    let mut ring = make(&CONFIG).unwrap();
    let address = listen(&mut ring);
    let (client, socket) = accept(&mut ring, address);
    ring.receive(socket);
    let echo = std::thread::spawn(move || {
        let mut client = client;
        for number in 0..MESSAGES {
            client.write_all(&number.to_le_bytes()).unwrap();
            let mut answer = [0; 8];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, number.to_le_bytes());
        }
    });
    let before = ring.enters();
    let mut done = false;
    while !done {
        for event in turn(&mut ring) {
            match event {
                Event::Received { socket, lease } => {
                    let range = 0..lease.len;
                    ring.send(
                        socket,
                        &[Piece::Lease {
                            buffer: lease.buffer,
                            range,
                        }],
                    );
                }
                Event::Ended { .. } => done = true,
                event => panic!("unexpected {event:?}"),
            }
        }
    }
    echo.join().unwrap();
    let enters = ring.enters() - before;
    // One for each message and one for the end; a segment that is cut in two may cost a few more.
    assert!(
        enters <= MESSAGES + MESSAGES / 50 + 2,
        "{enters} enters for {MESSAGES} messages"
    );
}

fn listen<R: Ring>(ring: &mut R) -> SocketAddr {
    let socket = listen_tcp("127.0.0.1:0".parse().unwrap(), 1024).unwrap();
    let address = local_address(socket.as_fd()).unwrap().unwrap();
    ring.listen(ListenSlot(0), socket).unwrap();
    address
}

fn turn<R: Ring>(ring: &mut R) -> Vec<Event> {
    let until = ring.now().after(PATIENCE);
    let mut events = Vec::new();
    ring.turn(Some(until), 0, &mut events).unwrap();
    assert!(ring.now() < until, "nothing happens");
    events
}

fn accept<R: Ring>(ring: &mut R, address: SocketAddr) -> (TcpStream, SocketId) {
    let client = TcpStream::connect(address).unwrap();
    loop {
        for event in turn(ring) {
            if let Event::Accepted { socket, .. } = event {
                return (client, socket);
            }
        }
    }
}

/// Sends until the socket takes no more; an owned send is then in flight.
fn fill<R: Ring>(ring: &mut R, socket: SocketId) {
    let mut buffer = vec![7; 1 << 20];
    loop {
        ring.send_owned(socket, buffer, 0);
        let mut events = Vec::new();
        ring.turn(Some(ring.now()), 0, &mut events).unwrap();
        let back = events.into_iter().find_map(|event| match event {
            Event::SentOwned { buffer, .. } => Some(buffer),
            _ => None,
        });
        match back {
            Some(back) => buffer = back,
            None => return,
        }
    }
}

fn set_limit(soft: u64, limit: Rlimit) {
    let current = Some(soft);
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn read_until_closed(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}
