//! Memory comes back: a large policy is released, looked at and rolled back, and soon both planes take about what they took
//! when they had only known a small one.
//!
//! `RULES=1000000 cargo test --release -p sluice-loadtest --test 11_control_memory` is the same with a million rules; build
//! the programs with `--release` first, and have 8 GB.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::fmt::Write as _;

use sluice_loadtest::harness::{Cell, Engine, Fleet, NODE, Running};
use sluice_loadtest::patience::until;

/// Enough for either plane to take several times what it takes without them.
const RULES: usize = 100_000;
const SMALL: usize = 20;

/// What is compiled at low priority waits for whatever else runs on the machine.
const PATIENT: [&str; 5] = ["--wait", "--timeout", "30m", "--call-timeout", "10m"];

fn document(rules: usize) -> String {
    let mut text = String::with_capacity(rules * 128 + 1024);
    text.push_str(
        r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: devices } }
upstreams:
  - { name: broker, endpoints: ["@STUB@"] }
groups: [{ name: devices }]
rules:
"##,
    );
    for rule in 0..rules {
        let (site, line) = (rule % 100, rule % 1000);
        writeln!(
            text,
            "  - {{ name: rule-{rule}, actions: [publish], topics: [\"site/{site}/line/{line}/{rule}\"], decision: allow }}"
        )
        .unwrap();
    }
    text
}

fn put(fleet: &Fleet, rules: usize) {
    let text = fleet.policy(&document(rules));
    let path = fleet.control.document(&text).unwrap();
    let args = [&["apply", "-f", &path, "--release"], &PATIENT[..]].concat();
    fleet.control.ctl_json(&args);
}

fn resident(running: &Running) -> u64 {
    running.resident_kib().expect("a process that runs")
}

#[test]
fn a_large_policy_that_was_rolled_back_leaves_no_memory_behind() {
    let rules = std::env::var("RULES").map_or(RULES, |text| text.parse().expect("a number"));
    let cell = Cell {
        engine: Engine::Uring,
        shards: 1,
    };
    let fleet = Fleet::alone("memory", cell, &[]);
    fleet.control.wait_connected(NODE);
    put(&fleet, SMALL);
    let planes = [fleet.control.running(), fleet.dataplane.running()];
    let fresh = planes.map(resident);
    put(&fleet, rules);
    // Keeps a compiled policy in the control plane as well.
    let explained = fleet
        .control
        .ctl_json(&["explain", "connect", "--call-timeout", "10m"]);
    assert_eq!(explained["generation"], 2, "{explained:#}");
    let large = planes.map(resident);
    for (large, fresh) in large.into_iter().zip(fresh) {
        assert!(
            large > 2 * fresh,
            "{large} KiB is no large policy, {fresh} KiB without it"
        );
    }
    let args = [&["rollback"], &PATIENT[..]].concat();
    fleet.control.ctl_json(&args);
    until(&format!("twice {fresh:?} KiB, from {large:?}"), || {
        let now = planes.map(resident);
        let is_back = |(now, fresh): (u64, u64)| now < 2 * fresh;
        now.into_iter().zip(fresh).all(is_back).then_some(())
    });
}
