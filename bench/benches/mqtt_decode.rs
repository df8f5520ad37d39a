//! How long does it take to understand a packet? Ours beside mqttbytes and mqtt-proto, on input that all three accept.
//!
//! Ours reads a PUBLISH as the proxy does: framer, then the head; the payload is not looked at. The others decode whole
//! packets and allocate what they return; that is their interface, not a fault, and the reason why ours has another.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sluice_bench::fixtures::{Level, connect, publish};
use sluice_wire::mqtt::{Framer, Side, Step, Version, decode, decode_publish_head};

/// Message expiry, content type and a user property.
const PROPERTIES: &[u8] = b"\x02\x00\x00\x00\x3c\x03\x00\x04json\x26\x00\x01k\x00\x05value";

fn ours_publish(framer: &mut Framer, version: Version, input: &[u8]) -> usize {
    let mut left = input;
    let mut topic_bytes = 0;
    loop {
        match framer.next(left) {
            Ok(Step::PublishHead {
                bytes, consumed, ..
            }) => {
                if let Ok(head) = decode_publish_head(version, Side::Client, bytes) {
                    topic_bytes += head.topic.len();
                }
                left = &left[consumed..];
            }
            Ok(Step::Payload { consumed, .. } | Step::Packet { consumed, .. }) => {
                left = &left[consumed..];
            }
            Ok(Step::Incomplete) | Err(_) => return topic_bytes,
        }
    }
}

fn publishes(criterion: &mut Criterion) {
    let cases = [
        ("publish_v311_128B", Level::V311, Version::V311, &[][..]),
        (
            "publish_v5_128B_3_properties",
            Level::V5,
            Version::V5,
            PROPERTIES,
        ),
    ];
    for (name, level, version, properties) in cases {
        let packet = publish(level, "devices/4711/telemetry", properties, 128);
        let mut group = criterion.benchmark_group(name);
        let mut framer = Framer::new(Side::Client, 1 << 20);
        framer.set_version(version);
        assert_eq!(ours_publish(&mut framer, version, &packet), 22);
        group.bench_function("ours", |bencher| {
            bencher.iter(|| ours_publish(&mut framer, version, black_box(&packet)));
        });
        group.bench_function("mqttbytes", |bencher| {
            bencher.iter_batched_ref(
                || BytesMut::from(&packet[..]),
                |stream| match level {
                    Level::V311 => mqttbytes::v4::read(stream, 1 << 20).is_ok(),
                    Level::V5 => mqttbytes::v5::read(stream, 1 << 20).is_ok(),
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("mqtt_proto", |bencher| {
            bencher.iter(|| match level {
                Level::V311 => mqtt_proto::v3::Packet::decode(black_box(&packet)).is_ok(),
                Level::V5 => mqtt_proto::v5::Packet::decode(black_box(&packet)).is_ok(),
            });
        });
        group.finish();
    }
}

/// Thirty messages in one receive: what the framer costs once it runs.
fn coalesced(criterion: &mut Criterion) {
    let packet = publish(Level::V311, "devices/4711/telemetry", &[], 128);
    let stream = packet.repeat(30);
    let mut framer = Framer::new(Side::Client, 1 << 20);
    framer.set_version(Version::V311);
    assert_eq!(ours_publish(&mut framer, Version::V311, &stream), 30 * 22);
    criterion.bench_function("publish_v311_128B_x30/ours", |bencher| {
        bencher.iter(|| ours_publish(&mut framer, Version::V311, black_box(&stream)));
    });
}

fn connects(criterion: &mut Criterion) {
    let packet = connect(Level::V311, "sensor-4711", "sensor");
    let mut group = criterion.benchmark_group("connect_v311");
    assert!(decode(Version::V311, Side::Client, &packet).is_ok());
    group.bench_function("ours", |bencher| {
        bencher.iter(|| decode(Version::V311, Side::Client, black_box(&packet)).is_ok());
    });
    group.bench_function("mqttbytes", |bencher| {
        bencher.iter_batched_ref(
            || BytesMut::from(&packet[..]),
            |stream| mqttbytes::v4::read(stream, 1 << 20).is_ok(),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("mqtt_proto", |bencher| {
        bencher.iter(|| mqtt_proto::v3::Packet::decode(black_box(&packet)).is_ok());
    });
    group.finish();
}

criterion_group!(benches, publishes, coalesced, connects);
criterion_main!(benches);
