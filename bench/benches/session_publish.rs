//! How long does a whole session take for one PUBLISH, without I/O: framing, decoding, verdict, counters, outputs?
//!
//! The difference to `compare` of the load tester is the kernel and the shard; the difference to `mqtt_decode` is policy.

// A bench that cannot set up its case ends.
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_bench::fixtures::{Level, connack, connect_anonymous, policy, publish};
use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::{Counters, RuleCounts};
use sluice_dataplane::session::{Context, Dialled, Output, Outputs, Session, Side};
use sluice_policy::{Effort, Generation, SLICE_NODES, Snapshot, compile};

struct Bench {
    snapshot: Snapshot,
    counters: Counters,
    rules: RuleCounts,
    out: Outputs,
    session: Session,
}

impl Bench {
    /// A session that is open, under a policy with so many rules.
    fn open(level: Level, rules: u32) -> Self {
        let snapshot = compile(&policy(rules), "bench.yaml", Generation(1), None)
            .expect("the policy of the bench compiles");
        let listener = snapshot
            .listener_by_name("devices")
            .expect("the listener of the bench")
            .id;
        let counters = Counters::default();
        let rules = RuleCounts::new(snapshot.rule_ids_end(), u64::MAX);
        let mut out = Outputs::default();
        let mut random = || 7;
        let mut context = Context {
            now: Time(1),
            snapshot: &snapshot,
            effort: &mut Effort::new(SLICE_NODES),
            out: &mut out,
            counters: &counters,
            rules: Some(&rules),
            random: &mut random,
            decisions: None,
            denials: None,
        };
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1024));
        let mut session = Session::accepted(&mut context, listener, peer);
        let mut packet = connect_anonymous(level, "bench");
        session.handle_bytes(&mut context, Side::Downstream, &mut packet);
        session.handle_dialled(
            &mut context,
            Dialled::Connected {
                another_after: None,
            },
        );
        session.handle_bytes(&mut context, Side::Upstream, &mut connack(level));
        assert!(session.is_open(), "the session of the bench opens");
        Self {
            snapshot,
            counters,
            rules,
            out,
            session,
        }
    }

    /// Handles what arrived; how many outputs came of it.
    fn handle(&mut self, bytes: &mut [u8]) -> usize {
        self.out.list.clear();
        self.out.bytes.clear();
        let mut random = || 7;
        let mut context = Context {
            now: Time(2),
            snapshot: &self.snapshot,
            effort: &mut Effort::new(SLICE_NODES),
            out: &mut self.out,
            counters: &self.counters,
            rules: Some(&self.rules),
            random: &mut random,
            decisions: None,
            denials: None,
        };
        self.session
            .handle_bytes(&mut context, Side::Downstream, bytes);
        self.out.list.len()
    }
}

/// What arrives: how it is named, and the topics of its messages in their order.
const ARRIVALS: [(&str, &[u32]); 3] = [
    ("x1", &[9]),
    ("x30", &[9; 30]),
    // A session keeps the ruling on its last topic, so this one asks the tables each time.
    ("two_topics", &[9, 8]),
];

fn publishes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session_publish_128B");
    for rules in [10, 10_000] {
        for (name, level) in [("v311", Level::V311), ("v5", Level::V5)] {
            for (arrival, devices) in ARRIVALS {
                let mut bench = Bench::open(level, rules);
                let message =
                    |device| publish(level, &format!("devices/{device}/telemetry"), &[], 128);
                let mut bytes: Vec<u8> = devices.iter().flat_map(message).collect();
                let length = bytes.len() as u32;
                bench.handle(&mut bytes);
                assert!(
                    matches!(
                        bench.out.list.as_slice(),
                        [Output::Forward { to: Side::Upstream, range }] if *range == (0..length)
                    ),
                    "the messages of the bench are allowed"
                );
                group.throughput(Throughput::Elements(devices.len() as u64));
                let id = BenchmarkId::new(format!("{name}_{arrival}"), rules);
                group.bench_function(id, |bencher| {
                    bencher.iter(|| bench.handle(black_box(&mut bytes)));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, publishes);
criterion_main!(benches);
