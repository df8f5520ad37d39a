//! How long is the longest step of the policy that a shard cannot interrupt? Judging a filter goes in slices of
//! [`SLICE_NODES`], and who a client is, is asked in one. Both are to take 250 us at most, on the worst tables that can be
//! written, hot and with nothing of them in a cache.

// A bench that cannot set up its case ends.
#![allow(clippy::expect_used)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::measurement::{Measurement, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use sluice_policy::{Classes, Effort, Generation, SLICE_NODES, Snapshot, Vars, Who, compile};
use sluice_wire::mqtt::{QoS, Version};

/// More than the caches of the machine hold.
const CACHES_BYTES: usize = 64 << 20;

/// A session under a policy.
struct Bench {
    snapshot: Snapshot,
    classes: Classes,
}

const FRAME: &str = "listeners:\n  - name: devices\n    address: 127.0.0.1:1883\n    upstream: broker\n    anonymous: { group: devices }\n\
     upstreams:\n  - name: broker\n    endpoints: [\"tcp://127.0.0.1:1884\"]\n\
     groups:\n  - name: devices\n\
     rules:\n  - { name: connect, actions: [connect], decision: allow }\n";

const VARS: Vars<'_> = Vars {
    client_id: "sensor-4711",
    username: "",
};

impl Bench {
    /// A policy of rules for subscriptions: filter, priority, what it says.
    fn new(rules: impl Iterator<Item = (String, u32, &'static str)>) -> Self {
        let mut text = String::from(FRAME);
        for (index, (filter, priority, decision)) in rules.enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "  - {{ name: r{index}, priority: {priority}, actions: [subscribe], topics: [\"{filter}\"], decision: {decision} }}"
            );
        }
        let snapshot = compiled(&text);
        let admission = snapshot
            .admit(&who(&snapshot, VARS.client_id))
            .expect("the client of the bench may connect");
        Self {
            classes: admission.classes,
            snapshot,
        }
    }

    /// Judges the filter again and again; `between` happens before each slice and is not measured. Time is that of the
    /// longest kind of slice: those that used up their share.
    fn run(&self, criterion: &mut Criterion, name: &str, filter: &str, mut between: impl FnMut()) {
        criterion.bench_function(&format!("slice/{name}"), |bencher| {
            bencher.iter_custom(|slices| {
                let clock = WallTime;
                let mut time = clock.zero();
                let mut half = None;
                let (mut done, mut asked) = (0, 0);
                while done < slices {
                    asked += 1;
                    assert!(
                        asked <= 10 * (slices + 1),
                        "the filter takes less than a slice"
                    );
                    let mut effort = Effort::new(SLICE_NODES);
                    between();
                    let begin = clock.start();
                    let verdict = black_box(self.snapshot.subscribe_within(
                        &self.classes,
                        &VARS,
                        black_box(filter),
                        QoS::AtMostOnce,
                        &mut effort,
                        &mut half,
                    ));
                    let took = clock.end(begin);
                    if verdict.is_none() {
                        time = clock.add(&time, &took);
                        done += 1;
                    }
                }
                time
            });
        });
    }

    /// Hot, and with all caches full of something else.
    fn hot_and_cold(&self, criterion: &mut Criterion, name: &str, filter: &str) {
        self.run(criterion, &format!("{name}/hot"), filter, || {});
        let mut other = vec![0_u8; CACHES_BYTES];
        self.run(criterion, &format!("{name}/cold"), filter, || {
            for byte in other.iter_mut().step_by(64) {
                *byte = byte.wrapping_add(1);
            }
            black_box(&mut other);
        });
    }
}

fn compiled(text: &str) -> Snapshot {
    compile(text, "bench.yaml", Generation(1), None).expect("the policy of the bench compiles")
}

fn who<'a>(snapshot: &Snapshot, client_id: &'a str) -> Who<'a> {
    Who {
        listener: snapshot
            .listener_by_name("devices")
            .expect("the listener of the bench")
            .id,
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        version: Version::V311,
        client_id,
        username: None,
    }
}

/// Every filter of twelve levels made of `a` and `+`: all 8,191 nodes contain the one that is asked about.
fn either_at_every_level(criterion: &mut Criterion) {
    let levels = 12;
    let filter = |bits: u32| {
        let level = |level: u32| if bits >> level & 1 == 1 { "a" } else { "+" };
        let levels: Vec<&str> = (0..levels).rev().map(level).collect();
        levels.join("/")
    };
    // The one that is found last decides first, so that no branch can be left out.
    let bench = Bench::new((0..1 << levels).map(|bits| (filter(bits), 0, "allow")));
    bench.hot_and_cold(criterion, "either_at_every_level", &["a"; 12].join("/"));
}

/// `+` at 31 levels, and denies behind an allow: each of them is one more search through all levels.
fn thirty_one_levels(criterion: &mut Criterion) {
    let between = ["+"; 29].join("/");
    let denies = (0..5_000).map(|deny| (format!("a/{between}/x{deny}"), 1, "deny"));
    let allows = [
        (format!("a/{between}/+"), 2, "allow"),
        ("#".into(), 0, "allow"),
    ];
    let bench = Bench::new(allows.into_iter().chain(denies));
    bench.hot_and_cold(criterion, "thirty_one_levels", &format!("+/{between}/+"));
}

/// Denies with `#`, which are judged at each of 33 depths, in a table that no cache holds.
fn denies_at_every_depth(criterion: &mut Criterion) {
    let denies = (0..200_000).map(|deny| (format!("t/{deny}/#"), 1, "deny"));
    let deepest = ["+"; 31].join("/");
    let allows = [
        ("t/+/#".into(), 2, "allow"),
        (deepest, 0, "allow"),
        ("#".into(), 0, "allow"),
    ];
    let bench = Bench::new(allows.into_iter().chain(denies));
    bench.hot_and_cold(criterion, "denies_at_every_depth", "+/#");
}

/// 200,000 devices' denies, each behind an allow of its own.
fn a_large_table(criterion: &mut Criterion) {
    let rules = (0..200_000).flat_map(|device| {
        let device = device * 611_953_u64 % 1_000_003;
        [
            (format!("d/{device}/hidden"), 1, "deny"),
            (format!("d/+/hidden/{device}"), 2, "allow"),
        ]
    });
    let allows = [("d/+/hidden".into(), 2, "allow"), ("#".into(), 0, "allow")];
    let bench = Bench::new(allows.into_iter().chain(rules));
    bench.hot_and_cold(criterion, "a_large_table", "d/#");
}

/// A shape of patterns: its name, and the pattern of a number.
type Shape = (&'static str, fn(u32) -> String);

const SHAPES: [Shape; 6] = [
    ("prefix", |n| format!("plant-{n}-[a-z0-9]+")),
    ("digits", |n| format!("site{n}-\\d{{6}}")),
    ("suffix", |n| format!(".*-gw{n}")),
    ("words", |n| format!("\\w+-{}-\\w+-{}", n % 40, n / 40)),
    ("spread", |n| format!(".*{n}.*")),
    ("widest", |n| format!(".*x{n}y.*z{n}")),
];

/// Who is a client: 2,000 patterns of client ids of one shape, or as many as there may be. No id is like another.
fn client_id_patterns(criterion: &mut Criterion) {
    for (shape, pattern) in SHAPES {
        let rule = |number: u32| {
            let pattern = pattern(number);
            format!(
                "  - {{ name: r{number}, who: {{ client_id_patterns: ['{pattern}'] }}, actions: [connect], decision: allow }}\n"
            )
        };
        let text = |rules: u32| format!("{FRAME}{}", (0..rules).map(rule).collect::<String>());
        let fits = |rules: &u32| compile(&text(*rules), "bench.yaml", Generation(1), None).is_ok();
        let rules = [2_000, 1_000, 500, 300, 200, 100]
            .into_iter()
            .find(fits)
            .expect("some patterns");
        let snapshot = compiled(&text(rules));
        criterion.bench_function(&format!("compile/{shape}/{rules}"), |bencher| {
            bencher.iter(|| compiled(&text(rules)));
        });
        let mut number = 0_u64;
        let mut next_id = |len: usize| {
            number = number
                .wrapping_add(1)
                .wrapping_mul(6_364_136_223_846_793_005);
            let part = format!("plant-{}-x{}y-", number % 2_000, number >> 40);
            let mut id = part.repeat(len / part.len() + 1);
            id.truncate(len);
            id
        };
        let mut other = vec![0_u8; CACHES_BYTES];
        for (len, is_cold) in [(24, false), (256, false), (24, true), (256, true)] {
            let name = if is_cold { "cold" } else { "hot" };
            criterion.bench_function(&format!("admit/{shape}/{rules}/{len}/{name}"), |bencher| {
                bencher.iter_batched(
                    || {
                        if is_cold {
                            for byte in other.iter_mut().step_by(64) {
                                *byte = byte.wrapping_add(1);
                            }
                            black_box(&mut other);
                        }
                        next_id(len)
                    },
                    |id| black_box(snapshot.admit(&who(&snapshot, &id)).is_ok()),
                    criterion::BatchSize::PerIteration,
                );
            });
        }
    }
}

criterion_group!(
    benches,
    either_at_every_level,
    thirty_one_levels,
    denies_at_every_depth,
    a_large_table,
    client_id_patterns
);
criterion_main!(benches);
