//! A shard that is too slow: new connections are shed before old ones suffer, and let in again when it has caught up.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::{Counter, Counters};
use sluice_dataplane::node::{ShardId, Table, TableConfig, mailbox};
use sluice_dataplane::ring::simulated::{Faults, Network, Simulated};
use sluice_dataplane::ring::{
    Event, Full, KeepAlive, Lease, ListenSlot, Piece, Ring, RingConfig, SocketId, Target, Wake,
};
use sluice_dataplane::shard::{Shard, ShardLimits, ShardParts};
use sluice_policy::{Generation, PolicyHandle};

use crate::basics::{POLICY, address};

/// The simulated engine on a machine where looking at bytes takes time.
struct Slow {
    inner: Simulated,
    lost: Cell<Duration>,
    per_lease: Duration,
}

impl Ring for Slow {
    fn now(&self) -> Time {
        self.inner.now().after(self.lost.get())
    }
    fn lease(&mut self, lease: Lease) -> &mut [u8] {
        self.lost.set(self.lost.get() + self.per_lease);
        self.inner.lease(lease)
    }
    fn listen(&mut self, listener: ListenSlot, socket: OwnedFd) -> io::Result<()> {
        self.inner.listen(listener, socket)
    }
    fn stop_listening(&mut self, listener: ListenSlot) {
        self.inner.stop_listening(listener);
    }
    fn connect(&mut self, target: &Target) -> Result<SocketId, Full> {
        self.inner.connect(target)
    }
    fn receive(&mut self, socket: SocketId) {
        self.inner.receive(socket);
    }
    fn pause(&mut self, socket: SocketId) {
        self.inner.pause(socket);
    }
    fn scratch(&mut self, bytes: &[u8]) -> Piece {
        self.inner.scratch(bytes)
    }
    fn send(&mut self, socket: SocketId, pieces: &[Piece]) {
        self.inner.send(socket, pieces);
    }
    fn send_owned(&mut self, socket: SocketId, buffer: Vec<u8>, from: usize) {
        self.inner.send_owned(socket, buffer, from);
    }
    fn shutdown_write(&mut self, socket: SocketId) {
        self.inner.shutdown_write(socket);
    }
    fn close(&mut self, socket: SocketId) {
        self.inner.close(socket);
    }
    fn keep_alive(&mut self, socket: SocketId, keep_alive: KeepAlive) {
        self.inner.keep_alive(socket, keep_alive);
    }
    fn reset(&mut self, socket: SocketId) {
        self.inner.reset(socket);
    }
    fn turn(
        &mut self,
        until: Option<Time>,
        budget: u32,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        self.inner.turn(until, budget, events)
    }
    fn enters(&self) -> u64 {
        self.inner.enters()
    }
    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}

#[test]
fn a_slow_shard_sheds_new_connections_until_it_has_caught_up() {
    let network = Network::new(1, Faults::none());
    let config = RingConfig {
        sockets_max: 16,
        buffers: 4,
        buffer_bytes: 256,
    };
    let mut inner = Simulated::new(&network, &config).expect("a ring");
    inner.listen_simulated(ListenSlot(0));
    let counters = Arc::new(Counters::default());
    let policy = PolicyHandle::default();
    let snapshot = sluice_policy::compile(POLICY, "test", Generation(1), None).expect("a policy");
    policy.swap(Arc::new(snapshot));
    let parts = ShardParts {
        shard: ShardId(0),
        inbox: mailbox(4).1,
        control: mailbox(4).0,
        policy,
        table: Arc::new(Table::new(&TableConfig::default())),
        counters: Arc::clone(&counters),
        limits: ShardLimits {
            turn_time_max: Duration::from_millis(100),
            ..ShardLimits::default()
        },
        decisions: None,
        denials: None,
        seed: 1,
    };
    let ring = Slow {
        inner,
        lost: Cell::default(),
        per_lease: Duration::ZERO,
    };
    let mut shard = Shard::new(ring, parts).expect("a shard");
    let turns = |shard: &mut Shard<Slow>, time: Duration| {
        let end = network.now().after(time);
        while network.now() < end {
            network.set_alarm(Some(end));
            shard.turn().expect("a turn");
        }
    };
    let client = network.connect(ListenSlot(0), address(1));
    turns(&mut shard, Duration::from_millis(1));
    assert_eq!(shard.sessions(), 1);

    shard.ring_mut().per_lease = Duration::from_millis(300);
    network.write(client, &[0x10]);
    turns(&mut shard, Duration::from_millis(1));
    network.connect(ListenSlot(0), address(2));
    turns(&mut shard, Duration::from_millis(1));
    assert_eq!(
        (counters.read(Counter::RefusedLag), shard.sessions()),
        (1, 1)
    );

    // 300 ms fade to less than 100 within two half-lives.
    turns(&mut shard, Duration::from_millis(250));
    network.connect(ListenSlot(0), address(3));
    turns(&mut shard, Duration::from_millis(1));
    assert_eq!(
        (counters.read(Counter::RefusedLag), shard.sessions()),
        (1, 2)
    );
}
