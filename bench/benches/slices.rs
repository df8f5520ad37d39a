//! How long is the longest step that a shard cannot interrupt? Judging a filter, finding out who a client is, and reading and
//! writing a packet of many filters go in slices of [`SLICE_NODES`]. Each is to take 250 us at most, on the worst tables that
//! can be written, hot and with nothing of them in a cache.

// A bench that cannot set up its case ends.
#![allow(clippy::expect_used)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use criterion::measurement::{Measurement, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use sluice_bench::fixtures::{Level, connack, connect_anonymous};
use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::Counters;
use sluice_dataplane::session::{
    Context, Dialled, Output, Outputs, SUBSCRIBE_FILTERS_MAX, Session, Side,
};
use sluice_policy::{Classes, Effort, Generation, SLICE_NODES, Snapshot, Vars, Who, compile};
use sluice_wire::mqtt::{QoS, Version, encode_fixed_header};

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
                        false,
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
            spoil(&mut other);
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
                            spoil(&mut other);
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

/// One slice of the answer to who a client is: the longest ids under the most patterns there may be, a pattern that no table
/// can be made of, and very many who-parts that nearly match.
fn who_in_slices(criterion: &mut Criterion) {
    let rule = |number: u32, who: &str| {
        format!(
            "  - {{ name: r{number}, who: {{ {who} }}, actions: [connect], decision: allow }}\n"
        )
    };
    let widest = (0..190).map(|n| rule(n, &format!("client_id_patterns: ['.*x{n}y.*z{n}']")));
    let heavy = rule(0, "client_id_patterns: ['(?:.*a.{100})\\b']");
    let crowd = (0..60_000).map(|n| {
        rule(
            n,
            &format!(
                "groups: [devices], addresses: ['127.0.0.0/8', '10.{}.{}.0/24']",
                n / 250,
                n % 250
            ),
        )
    });
    let long = FRAME.replace(
        "anonymous:",
        "client_id: { bytes_max: 65535 }\n    anonymous:",
    );
    let cases: [(&str, String, usize); 3] = [
        ("widest", widest.collect(), 65_535),
        ("heavy", heavy, 65_535),
        ("crowd", crowd.collect(), 24),
    ];
    for (name, rules, id_bytes) in cases {
        let snapshot = compiled(&format!("{long}{rules}"));
        let id = "x1y-ab-".repeat(id_bytes / 7 + 1);
        let id = id.get(..id_bytes).expect("an id of that length");
        let mut other = vec![0_u8; CACHES_BYTES];
        for is_cold in [false, true] {
            let temperature = if is_cold { "cold" } else { "hot" };
            criterion.bench_function(&format!("slice/who/{name}/{temperature}"), |bencher| {
                bencher.iter_custom(|slices| {
                    let clock = WallTime;
                    let (mut time, mut half, mut done) = (clock.zero(), None, 0);
                    while done < slices {
                        if is_cold {
                            spoil(&mut other);
                        }
                        let mut effort = Effort::new(SLICE_NODES);
                        let begin = clock.start();
                        let who = who(&snapshot, id);
                        let admitted = snapshot.admit_within(&who, &mut effort, &mut half);
                        let took = clock.end(begin);
                        // Time is that of slices that used up their share.
                        if black_box(admitted).is_none() {
                            time = clock.add(&time, &took);
                            done += 1;
                        }
                    }
                    time
                });
            });
        }
    }
}

/// Fills all caches with something else.
fn spoil(other: &mut [u8]) {
    for byte in other.iter_mut().step_by(64) {
        *byte = byte.wrapping_add(1);
    }
    black_box(other);
}

/// An open session that is sent packets of many filters.
struct Client {
    snapshot: Snapshot,
    counters: Counters,
    out: Outputs,
    session: Session,
    now: Time,
}

impl Client {
    fn open() -> Self {
        let text = format!(
            "{FRAME}  - {{ name: low, actions: [subscribe], topics: ['#'], qos_max: 0, decision: allow }}\n"
        );
        let snapshot = compiled(&text);
        let mut client = Self {
            counters: Counters::default(),
            out: Outputs::default(),
            now: Time(1),
            session: Self::accepted(&snapshot),
            snapshot,
        };
        client.call(|session, context| {
            let mut packet = connect_anonymous(Level::V311, "bench");
            session.handle_bytes(context, Side::Downstream, &mut packet);
            session.handle_dialled(
                context,
                Dialled::Connected {
                    another_after: None,
                },
            );
            session.handle_bytes(context, Side::Upstream, &mut connack(Level::V311));
        });
        assert!(client.session.is_open(), "the session of the bench opens");
        client
    }

    fn accepted(snapshot: &Snapshot) -> Session {
        let listener = snapshot.listener_by_name("devices");
        let context = &mut Context {
            now: Time(1),
            snapshot,
            effort: &mut Effort::new(SLICE_NODES),
            out: &mut Outputs::default(),
            counters: &Counters::default(),
            rules: None,
            random: &mut || 7,
            decisions: None,
            denials: None,
        };
        let listener = listener.expect("the listener of the bench").id;
        Session::accepted(
            context,
            listener,
            SocketAddr::from((Ipv4Addr::LOCALHOST, 1024)),
        )
    }

    /// Makes a call with a slice of work; how long it took, and whether work is left.
    fn call(&mut self, call: impl FnOnce(&mut Session, &mut Context<'_>)) -> (Duration, bool) {
        self.out.list.clear();
        self.out.bytes.clear();
        // The allowance of the session is not what is asked about.
        self.now = self.now.after(Duration::from_secs(1));
        let mut context = Context {
            now: self.now,
            snapshot: &self.snapshot,
            effort: &mut Effort::new(SLICE_NODES),
            out: &mut self.out,
            counters: &self.counters,
            rules: None,
            random: &mut || 7,
            decisions: None,
            denials: None,
        };
        let begin = WallTime.start();
        call(&mut self.session, &mut context);
        let took = WallTime.end(begin);
        let is_left = self
            .out
            .list
            .iter()
            .any(|output| matches!(output, Output::Later));
        (took, is_left)
    }

    /// The steps of one packet: when it arrives; the middle one of those between, since each of hundreds may be interrupted;
    /// and the last, which writes it.
    fn steps(&mut self, packet: &mut [u8]) -> [Duration; 3] {
        let (arrives, mut is_left) =
            self.call(|session, context| session.handle_bytes(context, Side::Downstream, packet));
        let mut shares = Vec::new();
        while is_left {
            let (took, more) = self.call(|session, context| session.handle_share(context));
            shares.push(took);
            is_left = more;
        }
        assert!(
            !self.session.is_ended() && !self.out.list.is_empty(),
            "it goes on"
        );
        let last = shares.pop().unwrap_or(arrives);
        shares.sort_unstable();
        let between = shares.get(shares.len() / 2).copied();
        [arrives, between.unwrap_or_default(), last]
    }
}

/// A SUBSCRIBE or UNSUBSCRIBE of these filters, no longer than a listener lets it be.
fn packet(is_subscribe: bool, filters: impl Iterator<Item = String>) -> Vec<u8> {
    const BYTES_MAX: usize = (1 << 20) - 64;
    let mut body = vec![0, 7];
    for filter in filters {
        if body.len() + filter.len() + 3 > BYTES_MAX {
            break;
        }
        let length = u16::try_from(filter.len()).expect("a filter of MQTT");
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(filter.as_bytes());
        if is_subscribe {
            body.push(1);
        }
    }
    let first = if is_subscribe { 0x82 } else { 0xa2 };
    let mut packet = Vec::new();
    let length = u32::try_from(body.len()).expect("a packet of MQTT");
    encode_fixed_header(first, length, &mut packet).expect("a packet of MQTT");
    packet.extend_from_slice(&body);
    packet
}

/// Reading, judging and writing the filters of one packet: as many as may be, as long as may be, and more than may be.
fn filters_of_a_packet(criterion: &mut Criterion) {
    let short = |number: usize| format!("t/{number}");
    let most = SUBSCRIBE_FILTERS_MAX;
    let long = || std::iter::repeat_with(|| "t".repeat(60_000));
    let letters = || std::iter::repeat_with(|| "t".to_owned());
    let packets = [
        ("subscribe/most", packet(true, (0..most).map(short))),
        ("subscribe/longest", packet(true, long())),
        ("subscribe/too_many", packet(true, letters())),
        ("unsubscribe/most", packet(false, letters())),
        ("unsubscribe/longest", packet(false, long())),
    ];
    let mut group = criterion.benchmark_group("slice");
    group.sample_size(10);
    for (name, packet) in packets {
        let mut client = Client::open();
        for (step, what) in ["arrives", "between", "last"].into_iter().enumerate() {
            group.bench_function(format!("{name}/{what}"), |bencher| {
                bencher.iter_custom(|packets| {
                    let each = |_| client.steps(&mut packet.clone()).get(step).copied();
                    (0..packets).filter_map(each).sum()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(
    benches,
    either_at_every_level,
    thirty_one_levels,
    denies_at_every_depth,
    a_large_table,
    client_id_patterns,
    who_in_slices,
    filters_of_a_packet
);
criterion_main!(benches);
