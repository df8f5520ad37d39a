//! A warm shard allocates nothing to forward a PUBLISH: policy, session, shard and flush, on a ring that only hands over
//! bytes. The allocator of this test program counts; it is the only `unsafe` outside the engines.
#![allow(clippy::expect_used)] // helpers of a test are a test
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::{Counter, Counters};
use sluice_dataplane::node::{
    DenialRing, Directory, Located, NameKey, ShardId, Table, TableConfig, ToShard, mailbox,
};
use sluice_dataplane::ring::{
    Event, Full, KeepAlive, Lease, ListenSlot, Piece, Ring, SocketId, Target, Wake,
};
use sluice_dataplane::shard::{Shard, ShardLimits, ShardParts};
use sluice_policy::{Generation, PolicyHandle, UpstreamId};

struct Counting;

thread_local! {
    // Constant and without a destructor: reading it never allocates.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory that it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` or `realloc` above, hence from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`, and the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A ring that hands over what the test gives it and keeps what it is given, in memory reserved before.
struct Feeder {
    next: Option<Event>,
    lease: Vec<u8>,
    scratch: Vec<u8>,
    sent: Vec<u8>,
    sockets: u32,
    now: Time,
}

impl Feeder {
    fn receive_next(&mut self, socket: SocketId, bytes: &[u8]) {
        self.lease.clear();
        self.lease.extend_from_slice(bytes);
        let lease = Lease {
            buffer: 0,
            len: bytes.len() as u32,
        };
        self.next = Some(Event::Received { socket, lease });
    }
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

impl Ring for Feeder {
    fn now(&self) -> Time {
        self.now
    }
    fn listen(&mut self, _: ListenSlot, _: OwnedFd) -> io::Result<()> {
        Ok(())
    }
    fn stop_listening(&mut self, _: ListenSlot) {}
    fn connect(&mut self, _: &Target) -> Result<SocketId, Full> {
        self.sockets += 1;
        let socket = socket(self.sockets);
        self.next = Some(Event::Connected { socket });
        Ok(socket)
    }
    fn receive(&mut self, _: SocketId) {}
    fn pause(&mut self, _: SocketId) {}
    fn scratch(&mut self, bytes: &[u8]) -> Piece {
        let start = self.scratch.len() as u32;
        self.scratch.extend_from_slice(bytes);
        Piece::Scratch {
            chunk: 0,
            range: start..self.scratch.len() as u32,
        }
    }
    fn send(&mut self, _: SocketId, pieces: &[Piece]) {
        for piece in pieces {
            let (bytes, range) = match piece {
                Piece::Lease { range, .. } => (&self.lease, range),
                Piece::Scratch { range, .. } => (&self.scratch, range),
            };
            self.sent
                .extend_from_slice(&bytes[range.start as usize..range.end as usize]);
        }
    }
    fn send_owned(&mut self, _: SocketId, _: Vec<u8>, _: usize) {}
    fn shutdown_write(&mut self, _: SocketId) {}
    fn close(&mut self, _: SocketId) {}
    fn reset(&mut self, _: SocketId) {}
    fn keep_alive(&mut self, _: SocketId, _: KeepAlive) {}
    fn turn(&mut self, _: Option<Time>, _: u32, events: &mut Vec<Event>) -> io::Result<()> {
        self.now = self.now.after(Duration::from_millis(1));
        self.scratch.clear();
        events.extend(self.next.take());
        Ok(())
    }
    fn lease(&mut self, lease: Lease) -> &mut [u8] {
        &mut self.lease[..lease.len as usize]
    }
    fn enters(&self) -> u64 {
        0
    }
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }
}

fn socket(index: u32) -> SocketId {
    SocketId { index, epoch: 1 }
}

const CLIENT: u32 = 0;
const BROKER: u32 = 1;

const POLICY: &str = "
default: deny
listeners:
  - {name: devices, address: '127.0.0.1:1883', upstream: broker, anonymous: {group: devices}}
upstreams: [{name: broker, endpoints: ['tcp://127.0.0.1:2001']}]
groups: [{name: devices}]
rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: own, actions: [publish, subscribe], topics: ['devices/${client_id}/#'], decision: allow}
";

/// MQTT 3.1.1: CONNECT as `d1` without keep alive, and CONNACK.
const CONNECT: &[u8] = &[
    0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 2, b'd', b'1',
];
const CONNACK: &[u8] = &[0x20, 2, 0, 0];

/// PUBLISH, QoS 0.
fn publish(topic: &str) -> Vec<u8> {
    publish_with(topic, 0, &[])
}

/// PUBLISH with that QoS, and the bytes of its identifier.
fn publish_with(topic: &str, qos: u8, identifier: &[u8]) -> Vec<u8> {
    let payload = [b'x'; 100];
    let length = 2 + topic.len() + identifier.len() + payload.len();
    assert!(length < 128, "one byte of length");
    let first = 0x30 | qos << 1;
    let mut packet = vec![first, length as u8, 0, topic.len() as u8];
    packet.extend_from_slice(topic.as_bytes());
    packet.extend_from_slice(identifier);
    packet.extend_from_slice(&payload);
    packet
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
fn answer(first: u8, number: u8) -> [u8; 4] {
    [first, 2, 0, number]
}

fn shard(counters: &Arc<Counters>) -> Shard<Feeder> {
    let table = Arc::new(Table::new(&TableConfig::default()));
    let (to_shard, inbox) = mailbox(8);
    let (control, _from_shard) = mailbox(8);
    let policy = PolicyHandle::default();
    let snapshot = sluice_policy::compile(POLICY, "test", Generation(1), None).expect("a policy");
    let located = vec![Located {
        upstream: UpstreamId(0),
        name: "broker".into(),
        target: Target::Tcp(SocketAddr::from(([127, 0, 0, 1], 2001))),
    }];
    let directory = Directory::build(&Directory::default(), &table, located).expect("cells");
    assert!(
        to_shard
            .send(ToShard::Directory(Arc::new(directory)))
            .is_ok()
    );
    policy.swap(Arc::new(snapshot));
    let ring = Feeder {
        next: None,
        lease: Vec::with_capacity(1 << 16),
        scratch: Vec::with_capacity(1 << 16),
        sent: Vec::with_capacity(1 << 16),
        sockets: 0,
        now: Time(1_000_000_000),
    };
    let parts = ShardParts {
        shard: ShardId(0),
        inbox,
        control,
        policy,
        table,
        counters: Arc::clone(counters),
        limits: ShardLimits::default(),
        decisions: None,
        denials: Some(DenialRing::new(64, NameKey::default())),
        seed: 1,
    };
    Shard::new(ring, parts).expect("a shard")
}

/// One turn in which `socket` receives these bytes; what was sent is left in the ring.
fn turn_with(shard: &mut Shard<Feeder>, from: u32, bytes: &[u8]) {
    let ring = shard.ring_mut();
    ring.sent.clear();
    ring.receive_next(socket(from), bytes);
    shard.turn().expect("a turn");
}

/// A shard with one session that is open.
fn open(counters: &Arc<Counters>) -> Shard<Feeder> {
    let mut shard = shard(counters);
    shard.turn().expect("a turn");
    shard.ring_mut().next = Some(Event::Accepted {
        listener: ListenSlot(0),
        socket: socket(CLIENT),
        peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 1024)),
    });
    shard.turn().expect("a turn");
    turn_with(&mut shard, CLIENT, CONNECT);
    shard.turn().expect("the turn of the dial");
    assert_eq!(
        shard.ring_mut().sent.first(),
        Some(&0x10),
        "CONNECT went up"
    );
    turn_with(&mut shard, BROKER, CONNACK);
    assert_eq!(shard.ring_mut().sent, CONNACK);

    assert!(ALLOCATIONS.with(Cell::get) > 0, "the allocator counts");
    shard
}

/// Who sends what, in turns.
type Scene<'a> = &'a [(u32, &'a [u8])];

/// Plays the scene often enough to be warm, and then expects no allocation. Gives back what was sent in its last round.
fn warm(shard: &mut Shard<Feeder>, name: &str, scene: Scene<'_>) -> Vec<u8> {
    let mut sent = Vec::with_capacity(1 << 16);
    for round in 0..300 {
        if round == 100 {
            ALLOCATIONS.with(|count| count.set(0)); // warm from here on
        }
        sent.clear();
        for (from, bytes) in scene {
            turn_with(shard, *from, bytes);
            sent.extend_from_slice(&shard.ring_mut().sent);
        }
    }
    let allocations = ALLOCATIONS.with(Cell::get);
    assert_eq!(allocations, 0, "{name}: allocations in 200 rounds");
    sent
}

#[test]
fn a_warm_shard_forwards_without_allocating() {
    let counters = Arc::new(Counters::default());
    let mut shard = open(&counters);
    let (own, other) = (publish("devices/d1/t"), publish("devices/d2/t"));
    // One packet, many, with a refused one between, and one cut in two.
    let many = [&*own, &own, &other, &own].concat();
    let (head, tail) = own.split_at(50);
    let cases: [(&str, Scene<'_>, usize); 6] = [
        ("one up", &[(CLIENT, &own)], own.len()),
        ("many up, one refused", &[(CLIENT, &many)], own.len() * 3),
        (
            "one up, cut in its payload",
            &[(CLIENT, head), (CLIENT, tail)],
            own.len(),
        ),
        ("one down", &[(BROKER, &own)], own.len()),
        ("many down, one refused", &[(BROKER, &many)], own.len() * 3),
        ("refused only", &[(CLIENT, &other)], 0),
    ];
    for (name, scene, expected) in cases {
        let sent = warm(&mut shard, name, scene);
        assert_eq!(sent.len(), expected, "{name}: bytes forwarded");
    }
    assert!(counters.read(Counter::PublishForwarded) >= 300 * 5);
    assert!(counters.read(Counter::PublishDenied) >= 300 * 2);
}

#[test]
fn a_warm_shard_keeps_acknowledgements_in_order_without_allocating() {
    for (publisher, receiver) in [(CLIENT, BROKER), (BROKER, CLIENT)] {
        let counters = Arc::new(Counters::default());
        let mut shard = open(&counters);
        let publish = |device, qos, number| publish_with(device, qos, &[0, number]);
        let (own, other) = ("devices/d1/t", "devices/d2/t");
        let one = publish(own, 1, 1);
        let passed = [&*one, &answer(0x40, 1)].concat();
        let scene: Scene<'_> = &[(publisher, &one), (receiver, &answer(0x40, 1))];
        assert_eq!(warm(&mut shard, "QoS 1", scene), passed);

        // Every second one refused, and the others answered last to first, so that the table has to remember.
        let (mut mixed, mut forwarded) = (Vec::new(), Vec::new());
        for number in 1..=8 {
            let message = publish([other, own][usize::from(number % 2)], 1, number);
            if number % 2 == 1 {
                forwarded.extend_from_slice(&message);
            }
            mixed.extend_from_slice(&message);
        }
        let answers = [7, 5, 3, 1].map(|number| answer(0x40, number)).concat();
        let told = [7, 5, 3, 1, 2, 4, 6, 8].map(|number| answer(0x40, number));
        let scene: Scene<'_> = &[(publisher, &mixed), (receiver, &answers)];
        let sent = warm(&mut shard, "QoS 1, mixed", scene);
        assert_eq!(sent, [forwarded, told.concat()].concat());

        let refused = publish(other, 2, 9);
        let scene: Scene<'_> = &[(publisher, &refused), (publisher, &answer(0x62, 9))];
        let told = [answer(0x50, 9), answer(0x70, 9)].concat();
        assert_eq!(warm(&mut shard, "QoS 2, refused", scene), told);
    }
}
