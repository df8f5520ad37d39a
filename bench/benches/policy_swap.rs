//! What does a changed row cost? From rows to a finished snapshot: all of them, and one change to a snapshot there is; and
//! what the control thread pays for letting go of the snapshot before. At 10, 10,000 and (with `SLUICE_BENCH_MILLION`)
//! 1,000,000 rules, all with one `who`, or ten with each.
//!
//! Not criterion: a whole compile of a million rules is measured a few times, not a hundred, and each change follows the one
//! before. A line for each question: smallest, median and largest of the rounds, in CPU time of the thread, and the smallest
//! in wall time.

// A bench that cannot set up its case ends, and its output is its purpose.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::env;
use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};
use sluice_policy::convert::compile_inventory;
use sluice_policy::fleet::{Change, Inventory};
use sluice_policy::{Generation, Snapshot};
use sluice_proto::v1::{self, row::Kind};

const CHANGES: u64 = 25;
const HASH: &str = "$7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

fn main() {
    let mut sizes = vec![10, 10_000];
    if env::var_os("SLUICE_BENCH_MILLION").is_some() {
        sizes.push(1_000_000);
    }
    for rules in sizes {
        for (shape, of_class) in [("one class", rules), ("10 a class", 10)] {
            run(&format!("{rules} rules, {shape}"), rules, of_class);
        }
    }
}

fn run(name: &str, rules: u64, of_class: u64) {
    let rows = (0..rules)
        .map(|rule| rule_row(rule, of_class, 0))
        .chain(frame());
    let rows: Vec<v1::Row> = rows.collect();
    let inventory = Inventory::from_messages(&rows).expect("rows that can be sent");
    drop(rows);
    let before = resident_kib();
    let mut whole = Rounds::default();
    let mut snapshot = None;
    for _ in 0..if rules > 100_000 { 3 } else { 11 } {
        drop(snapshot.take());
        snapshot = Some(whole.time(|| compiled(&inventory, None)));
    }
    whole.print(name, "whole");
    let after = resident_kib();
    println!(
        "{name:>28}  memory of the snapshot        {:>8} KiB",
        after.saturating_sub(before)
    );
    let mut at = (inventory, snapshot.expect("it was compiled"));
    let middle = rules / 2;
    let kinds: [(&str, &dyn Fn(u64) -> v1::Row); 4] = [
        ("change a rule", &|round| {
            rule_row(middle, of_class, 1 + round)
        }),
        ("add a rule", &|round| {
            let mut row = rule_row(middle, of_class, 1_000 + round);
            row.name = format!("added-{round}");
            row
        }),
        ("change a user", &|round| {
            user(&["devices", "others"], round)
        }),
        ("take a rule out", &|round| {
            let mut row = rule_row(middle, of_class, 0);
            row.name = format!("added-{round}");
            row
        }),
    ];
    for (kind, row) in kinds {
        let (mut changing, mut dropping) = (Rounds::default(), Rounds::default());
        for round in 0..CHANGES {
            let mut change = Change::from_message(&row(round)).expect("a row that can be sent");
            if kind == "take a rule out" {
                change.row = None;
            }
            let rows = at.0.with([change]);
            let next = changing.time(|| compiled(&rows, Some(&at.1)));
            let old = std::mem::replace(&mut at, (rows, next));
            dropping.time(|| drop(old));
        }
        changing.print(name, kind);
        dropping.print(name, "  drop the one before");
    }
}

fn compiled(rows: &Inventory, previous: Option<&Snapshot>) -> Snapshot {
    black_box(compile_inventory(rows, Generation(1), previous)).expect("rows that compile")
}

// --- rows

fn row(name: &str, kind: Kind) -> v1::Row {
    v1::Row {
        name: name.into(),
        features: Vec::new(),
        kind: Some(kind),
    }
}

fn frame() -> Vec<v1::Row> {
    let listener = v1::Listener {
        address: Some("127.0.0.1:1883".into()),
        upstream: Some("broker".into()),
        anonymous_group: Some("devices".into()),
        ..v1::Listener::default()
    };
    let upstream = v1::Upstream {
        endpoints: vec!["tcp://127.0.0.1:1884".into()],
        ..v1::Upstream::default()
    };
    vec![
        row("", Kind::Settings(v1::Settings::default())),
        row("devices", Kind::Listener(listener)),
        row("broker", Kind::Upstream(upstream)),
        row("devices", Kind::Group(v1::Group::default())),
        row("others", Kind::Group(v1::Group::default())),
        user(&["devices"], 0),
    ]
}

fn user(groups: &[&str], round: u64) -> v1::Row {
    let groups = groups.iter().map(ToString::to_string).collect();
    let user = v1::User {
        password_hash: Some(HASH.into()),
        groups,
        enabled: Some(round.is_multiple_of(2)),
        ..v1::User::default()
    };
    row("someone", Kind::User(user))
}

/// A rule for a device; another `version` publishes elsewhere.
fn rule_row(number: u64, of_class: u64, version: u64) -> v1::Row {
    let texts = |value: String| {
        Some(v1::Texts {
            values: vec![value],
        })
    };
    let who = if of_class == 10 {
        v1::Who {
            client_ids: texts(format!("device-{}", number / 10)),
            ..v1::Who::default()
        }
    } else {
        v1::Who {
            groups: texts("devices".into()),
            ..v1::Who::default()
        }
    };
    let suffix = if version == 0 {
        String::new()
    } else {
        format!("/{version}")
    };
    let rule = v1::Rule {
        order: i64::try_from(number).ok(),
        who: Some(who),
        actions: vec![v1::Action::Publish.into()],
        topics: vec![format!("devices/{number}/telemetry{suffix}/#")],
        decision: v1::Effect::Allow.into(),
        ..v1::Rule::default()
    };
    row(&format!("rule-{number}"), Kind::Rule(rule))
}

// --- measuring

#[derive(Default)]
struct Rounds {
    cpu_us: Vec<f64>,
    wall_us: Vec<f64>,
}

impl Rounds {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (cpu, wall) = (now_us(ClockId::ThreadCPUTime), now_us(ClockId::Monotonic));
        let result = work();
        self.wall_us.push(now_us(ClockId::Monotonic) - wall);
        self.cpu_us.push(now_us(ClockId::ThreadCPUTime) - cpu);
        result
    }

    fn print(mut self, name: &str, what: &str) {
        self.cpu_us.sort_by(f64::total_cmp);
        self.wall_us.sort_by(f64::total_cmp);
        let of = |list: &[f64], place: usize| list.get(place).copied().unwrap_or(f64::NAN) / 1e3;
        let last = self.cpu_us.len().saturating_sub(1);
        println!(
            "{name:>28}  {what:<22} cpu {:>10.3} {:>10.3} {:>10.3} ms   wall {:>10.3} ms",
            of(&self.cpu_us, 0),
            of(&self.cpu_us, last / 2),
            of(&self.cpu_us, last),
            of(&self.wall_us, 0),
        );
    }
}

fn now_us(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
