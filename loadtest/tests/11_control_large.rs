//! A large policy through everything: 100,000 users and 100,000 rules released to a node, then one row changed, of which
//! exactly that row travels.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::fmt::Write as _;

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Cell, Engine, Fleet, NODE, number_of};
use sluice_loadtest::packet::Connect;
use sluice_wire::mqtt::Version;

const USERS: usize = 100_000;
const RULES: usize = 100_000;
/// The user whose rule changes.
const DEVICE: usize = 77_777;
/// Of `builder`; cheap to verify.
const HASH: &str = "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO";

/// What is compiled at low priority waits for whatever else runs on the machine.
const PATIENT: [&str; 5] = ["--wait", "--timeout", "10m", "--call-timeout", "60s"];

/// Every user has a rule of their own; that of [`DEVICE`] decides `decision`.
fn document(decision: &str) -> String {
    let mut text = String::with_capacity(32 << 20);
    text.push_str(
        r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker }
upstreams:
  - { name: broker, endpoints: ["@STUB@"] }
users:
"##,
    );
    for user in 0..USERS {
        writeln!(text, "  - {{ name: u{user}, password_hash: \"{HASH}\" }}").unwrap();
    }
    text.push_str("rules:\n  - { name: connects, actions: [connect], decision: allow }\n");
    for rule in 1..RULES {
        let decision = if rule == DEVICE { decision } else { "allow" };
        writeln!(
            text,
            "  - {{ name: r{rule}, who: {{ users: [u{rule}] }}, actions: [publish], topics: [\"site/{rule}/#\"], decision: {decision} }}"
        )
        .unwrap();
    }
    text
}

#[test]
fn of_100_000_users_and_100_000_rules_one_changed_row_travels_alone() {
    let cell = Cell {
        engine: Engine::Uring,
        shards: 3,
    };
    let fleet = Fleet::alone("large", cell, &[]);
    fleet.control.wait_connected(NODE);
    let sent = || {
        let metrics = fleet.control.metrics().unwrap();
        metrics
            .sum("sluice_control_rows_sent_total", &[])
            .unwrap_or(0.0)
    };
    let put = |decision: &str| {
        let path = fleet
            .control
            .document(&fleet.policy(&document(decision)))
            .unwrap();
        let args = [&["apply", "-f", &path, "--release"], &PATIENT[..]].concat();
        number_of(&fleet.control.ctl_json(&args))
    };
    let first = put("allow");
    // The rows of the document and its settings.
    let rows = (USERS + RULES + 3) as f64;
    assert_eq!(sent(), rows);
    let user = format!("u{DEVICE}");
    let connect = Connect::new(Version::V5, "device").user(&user, "builder");
    let mut device = Client::open_with(fleet.listener("main"), &connect);
    let own = format!("site/{DEVICE}/x");
    assert!(device.publish_acked(&own, "x", 1) < 0x80);
    assert_eq!(device.publish_acked("site/5/x", "x", 2), 0x87);

    let second = put("deny");
    assert_eq!(second, first + 1);
    assert_eq!(sent(), rows + 1.0);
    assert_eq!(device.publish_acked(&own, "x", 3), 0x87);
    let node = fleet.control.node(NODE);
    assert_eq!(node["active"]["number"], second, "{node:#}");
    let back = [&["rollback"], &PATIENT[..]].concat();
    let back = fleet.control.ctl_json(&back);
    assert_eq!(number_of(&back), second + 1);
    assert_eq!(sent(), rows + 2.0);
    assert!(device.publish_acked(&own, "x", 4) < 0x80);
}
