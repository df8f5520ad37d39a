//! How long does it take to match one filter with one topic? Ours beside mqttbytes, on pairs that both judge alike.
//!
//! The proxy decides by tables, not by matching one filter after another: this is the price of the naive way, and of the
//! few places that match a single filter.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice_wire::mqtt::filter_matches;

const PAIRS: [(&str, &str, &str); 5] = [
    ("exact", "devices/4711/telemetry", "devices/4711/telemetry"),
    ("plus", "devices/+/telemetry", "devices/4711/telemetry"),
    ("hash", "devices/#", "devices/4711/telemetry"),
    (
        "late_miss",
        "devices/4711/telemetrx",
        "devices/4711/telemetry",
    ),
    (
        "deep",
        "a/+/c/+/e/+/g/+/i/+",
        "a/bbbb/c/dddd/e/ffff/g/hhhh/i/jjjj",
    ),
];

fn matches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("topic_match");
    for (name, filter, topic) in PAIRS {
        assert_eq!(
            filter_matches(filter, topic),
            mqttbytes::matches(topic, filter),
            "{name}: the two do not agree"
        );
        group.bench_function(BenchmarkId::new("ours", name), |bencher| {
            bencher.iter(|| filter_matches(black_box(filter), black_box(topic)));
        });
        group.bench_function(BenchmarkId::new("mqttbytes", name), |bencher| {
            bencher.iter(|| mqttbytes::matches(black_box(topic), black_box(filter)));
        });
    }
    group.finish();
}

criterion_group!(benches, matches);
criterion_main!(benches);
