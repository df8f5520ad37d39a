//! How long does a PUBLISH take through a whole shard: kernel, ring, session, policy, kernel, over loopback?
//!
//! Client and broker are this thread, the shard has a thread of its own, so one iteration is: write, the shard's turn,
//! read. On each engine, at one message and at thirty in one write. `direct` is the same without a shard between, so the
//! difference is what the shard and its wake-up add.

// A bench that cannot set up its case ends.
#![allow(clippy::expect_used)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_bench::fixtures::{Level, connack, connect_anonymous, policy, publish};
use sluice_dataplane::metrics::Counters;
use sluice_dataplane::node::{
    AfterDrain, Directory, Located, Post, ShardId, Table, TableConfig, ToControl, ToShard, mailbox,
};
use sluice_dataplane::ring::{Epoll, Ring, RingConfig, Target, Uring};
use sluice_dataplane::shard::{Shard, ShardLimits, ShardParts};
use sluice_policy::{Generation, PolicyHandle, compile};

const RULES: u32 = 10_000;
const MAILBOX_LEN: usize = 16;

/// A pair of sockets: what is written at one end is read at the other.
struct Path {
    client: TcpStream,
    broker: TcpStream,
    _shard: Option<Running>,
}

/// A shard on its thread; drained when dropped.
struct Running {
    post: Post<ToShard>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let within = Duration::ZERO;
        let _ = self.post.send(ToShard::Drain {
            within,
            then: AfterDrain::End,
        });
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ring_config() -> RingConfig {
    RingConfig {
        sockets_max: 64,
        buffers: 64,
        buffer_bytes: 8_192,
    }
}

/// Nothing between client and broker.
fn direct() -> Path {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let client = TcpStream::connect(address).expect("it accepts");
    client.set_nodelay(true).expect("TCP");
    let (broker, _) = listener.accept().expect("it connects");
    Path {
        client,
        broker,
        _shard: None,
    }
}

/// A shard between, with one open session.
fn through<R: Ring + 'static>(make: fn(&RingConfig) -> std::io::Result<R>) -> Path {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("bound");
    let shard = start(make, listener.into(), upstream.local_addr().expect("bound"));
    let mut client = TcpStream::connect(address).expect("it accepts");
    client.set_nodelay(true).expect("TCP");
    client
        .write_all(&connect_anonymous(Level::V5, "bench"))
        .expect("it takes a CONNECT");
    let (mut broker, _) = upstream.accept().expect("it dials");
    skip_packet(&mut broker);
    broker
        .write_all(&connack(Level::V5))
        .expect("it takes a CONNACK");
    skip_packet(&mut client);
    Path {
        client,
        broker,
        _shard: Some(shard),
    }
}

/// The proxy writes its limits into CONNECT and CONNACK, so only they say how long they are: in their second byte.
fn skip_packet(socket: &mut TcpStream) {
    let mut head = [0; 2];
    socket.read_exact(&mut head).expect("a packet");
    let mut rest = vec![0; usize::from(head[1])];
    socket.read_exact(&mut rest).expect("a whole packet");
}

fn start<R: Ring + 'static>(
    make: fn(&RingConfig) -> std::io::Result<R>,
    socket: OwnedFd,
    upstream: SocketAddr,
) -> Running {
    let snapshot = compile(&policy(RULES), "bench.yaml", Generation(1), None)
        .expect("the policy of the bench compiles");
    let listener = snapshot.listeners().first().expect("one").id;
    let table = Arc::new(Table::new(&TableConfig::default()));
    let located = Located {
        upstream: snapshot.upstreams().first().expect("one").id,
        name: "bench".into(),
        target: Target::Tcp(upstream),
    };
    let directory = Directory::build(&Directory::default(), &table, vec![located]);
    let handle = PolicyHandle::default();
    handle.swap(Arc::new(snapshot));
    let (post, inbox) = mailbox(MAILBOX_LEN);
    // Nobody reads what it tells; a shard without a reader drops that.
    let (control, _): (Post<ToControl>, _) = mailbox(MAILBOX_LEN);
    for message in [
        ToShard::Directory(Arc::new(directory.expect("one endpoint fits"))),
        ToShard::Listen { listener, socket },
    ] {
        assert!(post.send(message).is_ok(), "the mailbox has room");
    }
    let thread = std::thread::spawn(move || {
        let ring = make(&ring_config()).expect("the engine runs here");
        let parts = ShardParts {
            shard: ShardId(0),
            inbox,
            control,
            policy: handle,
            table,
            counters: Arc::new(Counters::default()),
            limits: ShardLimits {
                sessions_max: 16,
                ..ShardLimits::default()
            },
            decisions: None,
            denials: None,
            seed: 7,
        };
        let shard = Shard::new(ring, parts).expect("a shard");
        shard.run().expect("it ends by its drain");
    });
    Running {
        post,
        thread: Some(thread),
    }
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shard_loopback_128B");
    type Make = fn() -> Path;
    let paths: [(&str, Make); 3] = [
        ("direct", direct),
        ("epoll", || through(Epoll::new)),
        ("uring", || through(Uring::new)),
    ];
    for (name, make) in paths {
        for count in [1usize, 30] {
            let mut path = make();
            let bytes = publish(Level::V5, "devices/9/telemetry", &[], 128).repeat(count);
            let mut seen = vec![0; bytes.len()];
            let mut exchange = || {
                path.client.write_all(&bytes).expect("it takes messages");
                path.broker.read_exact(&mut seen).expect("it forwards them");
            };
            exchange();
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(&mut exchange);
            });
            assert!(seen == bytes, "what arrives is what was sent");
        }
    }
    group.finish();
}

criterion_group!(benches, messages);
criterion_main!(benches);
