//! How long does the policy take to judge one PUBLISH? Hot (64 topics again and again), cold (200,000 topics in no order),
//! from 10 to 1,000,000 rules, and the worst rules that can be written: `+` or a text at every level.
//!
//! Times are those of one verdict: each iteration asks about every topic of the case, and its time is divided by their
//! number. 1,000,000 rules take long to compile, so they are left out unless `SLUICE_BENCH_MILLION` is set.

// A bench that cannot set up its case ends.
#![allow(clippy::expect_used)]

use std::env;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::measurement::{Measurement, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use sluice_policy::{Action, Classes, Decision, Generation, Request, Snapshot, Vars, Who, compile};
use sluice_wire::mqtt::{QoS, Version};

const HOT_TOPICS: u32 = 64;
const COLD_TOPICS: u32 = 200_000;

/// Levels of the worst case: `2^10` rules, and a verdict that visits `2^11 - 1` nodes, half of what it may.
const WORST_LEVELS: usize = 10;

/// A session under a policy.
struct Bench {
    snapshot: Snapshot,
    classes: Classes,
}

/// Topics in the order of asking, one after another in memory: in the proxy they stand in a buffer just received.
struct Topics {
    text: String,
    ends: Vec<usize>,
}

impl Bench {
    /// A policy that allows publishing to each of these filters; the first one decides first.
    fn new(filters: impl Iterator<Item = String>) -> Self {
        let mut text = String::from(
            "listeners:\n  - name: devices\n    address: 127.0.0.1:1883\n    upstream: broker\n    anonymous: { group: devices }\n\
             upstreams:\n  - name: broker\n    endpoints: [\"tcp://127.0.0.1:1884\"]\n\
             groups:\n  - name: devices\n\
             rules:\n  - { name: connect, actions: [connect], decision: allow }\n",
        );
        for (index, filter) in filters.enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "  - {{ name: r{index}, who: {{ groups: [devices] }}, actions: [publish], topics: [\"{filter}\"], decision: allow }}"
            );
        }
        let snapshot = compile(&text, "bench.yaml", Generation(1), None)
            .expect("the policy of the bench compiles");
        let listener = snapshot
            .listener_by_name("devices")
            .expect("the listener of the bench")
            .id;
        let admission = snapshot
            .admit(&Who {
                listener,
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                version: Version::V311,
                client_id: "sensor-4711",
                username: None,
            })
            .expect("the client of the bench may connect");
        Self {
            classes: admission.classes,
            snapshot,
        }
    }

    /// One rule for each device.
    fn devices(rules: u32) -> Self {
        Self::new((0..rules).map(|device| format!("devices/{device}/telemetry/#")))
    }

    /// Asks about every topic once and counts what is allowed. Not inlined, so that a profiler can count in here only.
    #[inline(never)]
    fn ask_all(&self, topics: &Topics) -> u32 {
        let vars = Vars {
            client_id: "sensor-4711",
            username: "",
        };
        let mut allowed = 0;
        let mut start = 0;
        for end in &topics.ends {
            let request = Request {
                action: Action::Publish,
                topic: black_box(topics.text.get(start..*end).unwrap_or_default()),
                qos: QoS::AtMostOnce,
                retain: false,
                payload_bytes: 128,
            };
            let verdict = self.snapshot.verdict(&self.classes, &vars, &request);
            allowed += u32::from(verdict.decision == Decision::Allow);
            start = *end;
        }
        allowed
    }

    fn run(&self, criterion: &mut Criterion, name: &str, topics: &Topics) {
        let count = topics.ends.len() as u32;
        assert_eq!(self.ask_all(topics), count, "every topic is allowed");
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|passes| {
                let clock = WallTime;
                let begin = clock.start();
                for _ in 0..passes {
                    black_box(self.ask_all(topics));
                }
                clock.end(begin) / count
            });
        });
    }
}

impl Topics {
    fn new(topics: impl Iterator<Item = String>) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for topic in topics {
            text.push_str(&topic);
            ends.push(text.len());
        }
        Self { text, ends }
    }

    /// Different topics, spread over the rules so that neighbours in time are none in memory.
    fn of_devices(topics: u32, rules: u32) -> Self {
        // A prime, so that the products go through all rules before one comes again.
        let device = |index: u32| u64::from(index) * 611_953 % u64::from(rules);
        Self::new((0..topics).map(|index| {
            let sensor = index / rules;
            format!("devices/{}/telemetry/{sensor}", device(index))
        }))
    }
}

fn by_rules(criterion: &mut Criterion) {
    let mut sizes = vec![10, 100, 1_000, 10_000, 100_000];
    if env::var_os("SLUICE_BENCH_MILLION").is_some() {
        sizes.push(1_000_000);
    }
    for rules in sizes {
        let bench = Bench::devices(rules);
        let hot = Topics::of_devices(HOT_TOPICS, rules);
        bench.run(criterion, &format!("verdict_hot/{rules}"), &hot);
        let cold = Topics::of_devices(COLD_TOPICS, rules);
        bench.run(criterion, &format!("verdict_cold/{rules}"), &cold);
    }
}

/// Every filter of ten levels made of `a` and `+`, the one found last deciding first, so that no branch can be left out.
fn worst(criterion: &mut Criterion) {
    let filter = |bits: u32| {
        let levels = (0..WORST_LEVELS).rev();
        let levels: Vec<&str> = levels
            .map(|level| if bits >> level & 1 == 1 { "a" } else { "+" })
            .collect();
        levels.join("/")
    };
    let bench = Bench::new((0..1 << WORST_LEVELS).rev().map(filter));
    let topics = Topics::new(std::iter::once(["a"; WORST_LEVELS].join("/")));
    bench.run(criterion, "verdict_worst/2047_nodes", &topics);
}

criterion_group!(benches, by_rules, worst);
criterion_main!(benches);
