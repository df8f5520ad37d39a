//! The simulated engine: deterministic, virtual in time, and true to the surface under every fault.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, and names only the events it is about"
)]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use sluice_dataplane::clock::Time;
use sluice_dataplane::ring::simulated::{
    Faults, Network, Peer, PeerState, Random, Serve, Simulated,
};
use sluice_dataplane::ring::{End, Event, ListenSlot, Piece, Ring, RingConfig, SocketId, Target};

const LISTENER: ListenSlot = ListenSlot(0);

const CONFIG: RingConfig = RingConfig {
    sockets_max: 16,
    buffers: 8,
    buffer_bytes: 512,
};

/// Turns without progress after which a simulation counts as hung.
const IDLE_TURNS_MAX: u32 = 10_000;

fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
}

fn simulation(seed: u64, faults: Faults) -> (Network, Simulated) {
    let network = Network::new(seed, faults);
    let mut ring = Simulated::new(&network, &CONFIG).unwrap();
    ring.listen_simulated(LISTENER);
    (network, ring)
}

fn turn(ring: &mut Simulated) -> Vec<Event> {
    let mut events = Vec::new();
    ring.turn(None, 0, &mut events).unwrap();
    events
}

/// Turns until something is told.
fn next(ring: &mut Simulated) -> Vec<Event> {
    for _ in 0..IDLE_TURNS_MAX {
        let events = turn(ring);
        if !events.is_empty() {
            return events;
        }
    }
    panic!("nothing happens");
}

fn accept(network: &Network, ring: &mut Simulated) -> (Peer, SocketId) {
    let peer = network.connect(LISTENER, address(1));
    match next(ring)[..] {
        [
            Event::Accepted {
                socket, peer: from, ..
            },
        ] if from.ip() == address(1) => (peer, socket),
        ref events => panic!("unexpected {events:?}"),
    }
}

/// One client of the echo below.
struct Client {
    peer: Peer,
    send: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    finished: bool,
}

#[derive(Default)]
struct Echo {
    socket: Option<SocketId>,
    backlog: Vec<u8>,
    sending: bool,
    sent_this_turn: bool,
    ended: bool,
    paused: bool,
    closed: bool,
}

/// Echoes what some clients write, through all faults of `faults`; returns a log of what was told.
fn echo(seed: u64, faults: Faults) -> String {
    let (network, mut ring) = simulation(seed, faults);
    let mut random = Random::new(seed);
    let mut clients: Vec<Client> = (0..4)
        .map(|at| Client {
            peer: network.connect(LISTENER, address(at)),
            send: (0..random.below(3_000))
                .map(|_| random.next_u64() as u8)
                .collect(),
            sent: 0,
            got: Vec::new(),
            finished: false,
        })
        .collect();
    let mut echoes: Vec<Echo> = Vec::new();
    let mut log = String::new();
    for _ in 0..1_000_000 {
        for client in &mut clients {
            let rest = client.send.len() - client.sent;
            if rest > 0 {
                let len = random.length(rest);
                client.sent += network.write(client.peer, &client.send[client.sent..][..len]);
            } else if !client.finished {
                client.finished = true;
                network.finish(client.peer);
            }
            if random.chance(300) {
                client
                    .got
                    .extend(network.read(client.peer, random.length(600)));
            }
        }
        let alarm = ring.now().after(Duration::from_micros(500));
        network.set_alarm(Some(alarm));
        let events = turn(&mut ring);
        for event in &events {
            log += &format!("{:?} {event:?}\n", ring.now());
        }
        serve(&mut ring, &mut echoes, events, &mut random);
        if clients
            .iter()
            .all(|client| network.state(client.peer) == PeerState::Finished)
            && clients
                .iter()
                .all(|client| client.got.len() >= client.send.len())
        {
            break;
        }
    }
    for client in &clients {
        assert!(
            client.got == client.send,
            "seed {seed}: {} of {} bytes",
            client.got.len(),
            client.send.len()
        );
    }
    log
}

fn serve(ring: &mut Simulated, echoes: &mut Vec<Echo>, events: Vec<Event>, random: &mut Random) {
    let mut sends: Vec<(SocketId, Vec<Piece>)> = Vec::new();
    for event in events {
        let id = match &event {
            Event::Accepted { socket, .. } => {
                echoes.push(Echo {
                    socket: Some(*socket),
                    ..Echo::default()
                });
                ring.receive(*socket);
                continue;
            }
            Event::Received { socket, .. }
            | Event::SendShort { socket, .. }
            | Event::SentOwned { socket, .. }
            | Event::Paused { socket }
            | Event::Ended { socket, .. } => *socket,
            Event::Woken => continue,
            event => panic!("unexpected {event:?}"),
        };
        let echo = echoes
            .iter_mut()
            .find(|echo| echo.socket == Some(id))
            .expect("a live socket");
        match event {
            Event::Received { lease, .. } => {
                assert!(lease.len > 0);
                if echo.sending || !echo.backlog.is_empty() {
                    echo.backlog.extend_from_slice(ring.lease(lease));
                } else {
                    let piece = Piece::Lease {
                        buffer: lease.buffer,
                        range: 0..lease.len,
                    };
                    echo.sent_this_turn = true;
                    match sends.iter_mut().find(|(at, _)| *at == id) {
                        Some((_, pieces)) => pieces.push(piece),
                        None => sends.push((id, vec![piece])),
                    }
                }
            }
            Event::SendShort { rest, .. } => echo.backlog.extend(rest),
            Event::SentOwned { buffer, taken, .. } => {
                echo.sending = false;
                let mut rest = buffer[taken.unwrap()..].to_vec();
                rest.append(&mut echo.backlog);
                echo.backlog = rest;
            }
            Event::Paused { .. } => echo.paused = true,
            Event::Ended { end, .. } => {
                assert_eq!(end, End::Eof);
                echo.ended = true;
            }
            event => panic!("unexpected {event:?}"),
        }
    }
    for (socket, pieces) in sends {
        ring.send(socket, &pieces);
        if random.chance(100) {
            ring.pause(socket);
        }
    }
    for echo in echoes.iter_mut().filter(|echo| !echo.closed) {
        let Some(socket) = echo.socket else { continue };
        if std::mem::take(&mut echo.paused) {
            ring.receive(socket);
        }
        if !echo.sending && !echo.backlog.is_empty() {
            echo.sending = true;
            ring.send_owned(socket, std::mem::take(&mut echo.backlog), 0);
        }
        // A send of this turn may still fall short; closing would lose the rest.
        let sent = std::mem::take(&mut echo.sent_this_turn);
        if echo.ended && !echo.sending && !sent {
            echo.closed = true;
            echo.socket = None;
            ring.shutdown_write(socket);
            ring.close(socket);
        }
    }
}

#[test]
fn every_byte_comes_back_in_order_through_all_lossless_faults() {
    for seed in 0..150 {
        echo(seed, Faults::lossless(seed));
    }
    echo(1, Faults::none());
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 0..20 {
        let first = echo(seed, Faults::lossless(seed));
        assert_eq!(first, echo(seed, Faults::lossless(seed)), "seed {seed}");
    }
    assert_ne!(echo(1, Faults::lossless(9)), echo(2, Faults::lossless(9)));
}

#[test]
fn time_moves_only_as_far_as_needed() {
    let (network, mut ring) = simulation(1, Faults::none());
    let start = ring.now();
    assert!(turn(&mut ring).is_empty(), "nothing can ever happen");
    assert_eq!(ring.now(), start);
    let later = start.after(Duration::from_secs(3600));
    let mut events = Vec::new();
    ring.turn(Some(later), 0, &mut events).unwrap();
    assert_eq!((events.len(), ring.now()), (0, later), "an hour in no time");
    network.connect(LISTENER, address(1));
    ring.turn(Some(later.after(Duration::from_secs(1))), 0, &mut events)
        .unwrap();
    assert_eq!(
        (events.len(), ring.now()),
        (1, later),
        "what is ready takes no time"
    );
    let alarm = later.after(Duration::from_secs(5));
    network.set_alarm(Some(alarm));
    events.clear();
    ring.turn(None, 0, &mut events).unwrap();
    assert_eq!((events.len(), ring.now()), (0, alarm));
}

#[test]
fn delays_are_kept() {
    let faults = Faults {
        delay_max: Duration::from_millis(100),
        ..Faults::none()
    };
    let (network, mut ring) = simulation(7, faults);
    let (peer, socket) = accept(&network, &mut ring);
    ring.receive(socket);
    let sent_at = ring.now();
    assert_eq!(network.write(peer, b"x"), 1);
    assert!(matches!(next(&mut ring)[..], [Event::Received { .. }]));
    let took = ring.now().since(sent_at);
    assert!(
        took > Duration::ZERO && took <= Duration::from_millis(100),
        "{took:?}"
    );
}

#[test]
fn a_full_direction_holds_back_the_writer() {
    let faults = Faults {
        capacity_bytes: 10,
        ..Faults::none()
    };
    let (network, mut ring) = simulation(1, faults);
    let (peer, socket) = accept(&network, &mut ring);
    assert_eq!(network.write(peer, &[1; 100]), 10);
    assert_eq!(network.write(peer, &[1; 100]), 0);
    let piece = ring.scratch(&[2; 25]);
    ring.send(socket, &[piece]);
    ring.shutdown_write(socket);
    match &next(&mut ring)[..] {
        [Event::SendShort { rest, .. }] => assert_eq!(rest.len(), 15),
        events => panic!("unexpected {events:?}"),
    }
    ring.send_owned(socket, vec![2; 15], 0);
    assert!(turn(&mut ring).is_empty());
    assert_eq!(network.state(peer), PeerState::Open, "FIN waits");
    assert_eq!(network.read(peer, 4).len(), 4);
    match &next(&mut ring)[..] {
        [
            Event::SentOwned {
                taken: Ok(4),
                buffer,
                ..
            },
        ] => assert_eq!(buffer.len(), 15),
        events => panic!("unexpected {events:?}"),
    }
    ring.send_owned(socket, vec![2; 15], 4);
    turn(&mut ring);
    assert_eq!(network.read(peer, 10).len(), 10);
    assert!(matches!(
        next(&mut ring)[..],
        [Event::SentOwned { taken: Ok(10), .. }]
    ));
    ring.send_owned(socket, vec![2; 1], 0);
    turn(&mut ring);
    assert_eq!(network.read(peer, 10).len(), 10);
    assert!(matches!(
        next(&mut ring)[..],
        [Event::SentOwned { taken: Ok(1), .. }]
    ));
    turn(&mut ring);
    assert_eq!(network.read(peer, 10).len(), 1);
    assert_eq!(network.state(peer), PeerState::Finished);
}

#[test]
fn servers_accept_refuse_or_stay_silent() {
    let (network, mut ring) = simulation(1, Faults::none());
    let target = Target::Tcp("192.0.2.1:1883".parse().unwrap());
    let silent = Target::Unix("/run/silent".into());
    let unknown = Target::Unix("/run/unknown".into());
    network.serve(&target, Serve::Accept);
    network.serve(&silent, Serve::Blackhole);
    let socket = ring.connect(&target).unwrap();
    let other = ring.connect(&silent).unwrap();
    let third = ring.connect(&unknown).unwrap();
    let told = next(&mut ring);
    assert!(
        matches!(
            told[..],
            [Event::Connected { socket: a }, Event::ConnectFailed { socket: b, errno: libc::ECONNREFUSED }]
            if a == socket && b == third
        ),
        "{told:?}"
    );
    let server = network.accept(&target).expect("a connection");
    assert_eq!(network.accept(&target), None);
    ring.receive(socket);
    network.write(server, b"hello");
    match next(&mut ring)[..] {
        [Event::Received { lease, .. }] => assert_eq!(ring.lease(lease), b"hello"),
        ref events => panic!("unexpected {events:?}"),
    }
    let much_later = ring.now().after(Duration::from_secs(60));
    let mut events = Vec::new();
    ring.turn(Some(much_later), 0, &mut events).unwrap();
    assert!(events.is_empty(), "no answer, ever");
    ring.close(other);
    network.serve(&target, Serve::Refuse(libc::EHOSTUNREACH));
    let fourth = ring.connect(&target).unwrap();
    assert!(matches!(
        next(&mut ring)[..],
        [Event::ConnectFailed { socket, errno: libc::EHOSTUNREACH }] if socket == fourth
    ));
    assert_ne!(ring.connect(&target).unwrap().index, fourth.index);
    ring.close(fourth);
    assert_eq!(ring.connect(&target).unwrap().index, fourth.index);
}

#[test]
fn resets_and_ends_are_told_once() {
    let (network, mut ring) = simulation(1, Faults::none());
    let (peer, socket) = accept(&network, &mut ring);
    ring.receive(socket);
    network.write(peer, b"last words");
    network.reset(peer);
    let mut told = next(&mut ring);
    while !matches!(told.last(), Some(Event::Ended { .. })) {
        told.extend(next(&mut ring));
    }
    assert!(matches!(
        told[..],
        [
            Event::Received { .. },
            ..,
            Event::Ended {
                end: End::Failed(libc::ECONNRESET),
                ..
            }
        ]
    ));
    let piece = ring.scratch(b"too late");
    ring.send(socket, &[piece]);
    assert!(matches!(
        turn(&mut ring)[..],
        [Event::SendFailed {
            errno: libc::EPIPE,
            ..
        }]
    ));
    ring.close(socket);
    assert!(turn(&mut ring).is_empty());

    let (peer, socket) = accept(&network, &mut ring);
    network.write(peer, b"unread");
    turn(&mut ring);
    ring.close(socket);
    turn(&mut ring);
    assert_eq!(
        network.state(peer),
        PeerState::Reset,
        "closed with bytes unread"
    );
}

#[test]
fn a_waiting_send_learns_of_a_reset() {
    let faults = Faults {
        capacity_bytes: 4,
        ..Faults::none()
    };
    let (network, mut ring) = simulation(1, faults);
    let (peer, socket) = accept(&network, &mut ring);
    ring.send_owned(socket, vec![1; 8], 0);
    assert!(matches!(
        next(&mut ring)[..],
        [Event::SentOwned { taken: Ok(4), .. }]
    ));
    ring.send_owned(socket, vec![1; 8], 4);
    assert!(turn(&mut ring).is_empty());
    network.reset(peer);
    assert!(matches!(
        next(&mut ring)[..],
        [Event::SentOwned {
            taken: Err(libc::EPIPE),
            ..
        }]
    ));
}

#[test]
fn accept_failures_turn_away_and_rest() {
    let faults = Faults {
        accept_failure: 1000,
        ..Faults::none()
    };
    let (network, mut ring) = simulation(1, faults);
    let peers = [
        network.connect(LISTENER, address(1)),
        network.connect(LISTENER, address(2)),
    ];
    assert!(matches!(
        next(&mut ring)[..],
        [Event::AcceptFailed {
            errno: libc::EMFILE,
            ..
        }]
    ));
    network.set_faults(Faults::none());
    let failed_at = ring.now();
    network.connect(LISTENER, address(3));
    let told = next(&mut ring);
    assert!(matches!(told[..], [Event::Accepted { .. }]), "{told:?}");
    assert_eq!(ring.now().since(failed_at), Duration::from_millis(100));
    turn(&mut ring);
    for peer in peers {
        assert_eq!(
            network.state(peer),
            PeerState::Finished,
            "accepted and closed"
        );
    }
}

#[test]
fn slots_and_listeners_are_bounded_as_in_the_real_engines() {
    let (network, mut ring) = simulation(1, Faults::none());
    for last in 0..CONFIG.sockets_max + 1 {
        network.connect(LISTENER, address(last as u8));
    }
    let told = next(&mut ring);
    let accepted = told
        .iter()
        .filter(|event| matches!(event, Event::Accepted { .. }))
        .count();
    assert_eq!(accepted as u32, CONFIG.sockets_max);
    assert!(matches!(
        told.last(),
        Some(Event::AcceptFailed {
            errno: libc::ENOBUFS,
            ..
        })
    ));
    assert!(ring.connect(&Target::Unix("/x".into())).is_err());
    ring.stop_listening(LISTENER);
    let late = network.connect(LISTENER, address(99));
    turn(&mut ring);
    assert_eq!(network.state(late), PeerState::Refused);
    ring.listen(ListenSlot(5), File::open("/dev/null").unwrap().into())
        .unwrap();
    network.connect(ListenSlot(5), address(98));
    assert!(matches!(
        next(&mut ring)[..],
        [Event::AcceptFailed {
            listener: ListenSlot(5),
            ..
        }]
    ));
}

#[test]
fn a_wake_is_told_and_coalesces() {
    let (_, mut ring) = simulation(1, Faults::none());
    let waker = ring.waker();
    for _ in 0..3 {
        waker.wake();
    }
    assert!(matches!(turn(&mut ring)[..], [Event::Woken]));
    assert!(turn(&mut ring).is_empty());
}

#[test]
fn a_latency_budget_gathers_what_comes_within_it() {
    let faults = Faults {
        delay_max: Duration::from_micros(200),
        ..Faults::none()
    };
    for seed in 0..20 {
        let (network, mut ring) = simulation(seed, faults.clone());
        let (first, a) = accept(&network, &mut ring);
        let (second, b) = accept(&network, &mut ring);
        ring.receive(a);
        ring.receive(b);
        network.write(first, b"1");
        network.write(second, b"2");
        let mut events = Vec::new();
        let until = ring.now().after(Duration::from_secs(1));
        while events.is_empty() {
            ring.turn(Some(until), 200, &mut events).unwrap();
        }
        let received = events
            .iter()
            .filter(|event| matches!(event, Event::Received { .. }))
            .count();
        assert_eq!(received, 2, "{events:?}");
    }
}

#[test]
fn hostile_networks_end_all_connections_and_leave_no_slot() {
    for seed in 0..200 {
        let (network, mut ring) = simulation(seed, Faults::hostile(seed));
        let mut random = Random::new(seed);
        let target = Target::Tcp("192.0.2.1:1883".parse().unwrap());
        network.serve(&target, Serve::Accept);
        let mut peers: Vec<Peer> = (0..6)
            .map(|at| network.connect(LISTENER, address(at)))
            .collect();
        let mut open: Vec<SocketId> = (0..3).map(|_| ring.connect(&target).unwrap()).collect();
        for _ in 0..300 {
            network.set_alarm(Some(Time(ring.now().0 + random.below(1_000_000))));
            peers.extend(network.accept(&target));
            for peer in &peers {
                network.write(*peer, &[1; 50][..random.length(50)]);
                network.read(*peer, random.length(100));
            }
            let before = open.clone();
            for event in turn(&mut ring) {
                match event {
                    Event::Accepted { socket, .. } | Event::Connected { socket } => {
                        if !open.contains(&socket) {
                            open.push(socket);
                        }
                        ring.receive(socket);
                    }
                    Event::Received { socket, lease } => {
                        assert!(
                            before.contains(&socket),
                            "seed {seed}: heard of a closed socket"
                        );
                        ring.send(
                            socket,
                            &[Piece::Lease {
                                buffer: lease.buffer,
                                range: 0..lease.len,
                            }],
                        );
                    }
                    Event::Ended { socket, .. }
                    | Event::SendFailed { socket, .. }
                    | Event::ConnectFailed { socket, .. } => {
                        if open.contains(&socket) {
                            open.retain(|at| *at != socket);
                            ring.close(socket);
                        }
                    }
                    Event::SendShort { socket, .. } => assert!(before.contains(&socket)),
                    Event::AcceptFailed { .. } | Event::Woken => {}
                    event => panic!("unexpected {event:?}"),
                }
            }
        }
        for socket in open.drain(..) {
            ring.close(socket);
        }
        // All slots are free again: as many connects as there are slots.
        let all: Vec<_> = (0..CONFIG.sockets_max)
            .map(|_| ring.connect(&target))
            .collect();
        assert!(all.iter().all(Result::is_ok), "seed {seed}");
    }
}
