//! A node whose control plane is away: it goes on with the last policy it had, also across its own sudden end, and never
//! with half of one.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::path::{Path, PathBuf};

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Cell, DataPlane, Engine, Fleet, NODE};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::Connect;
use sluice_loadtest::patience::until;
use sluice_wire::mqtt::Version;

on_every_cell_alone!(c26_the_last_policy_stays_while_the_control_plane_is_away);

const POLICY: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@STUB@"] }
groups:
  - { name: guests }
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: mine, actions: [publish], topics: ["@MINE@/#"], decision: allow }
"##;

fn policy(mine: &str) -> String {
    POLICY.replace("@MINE@", mine)
}

/// A client may publish to `yes` and to none of `no`.
#[track_caller]
fn assert_judged(client: &mut Client, yes: &str, no: &[&str]) {
    let code = client.publish_acked(&format!("{yes}/x"), "x", 1);
    assert!(code < 0x80, "{yes}: PUBACK {code:#04x}");
    for no in no {
        assert_eq!(client.publish_acked(&format!("{no}/x"), "x", 2), 0x87);
    }
}

fn wait_ready(dataplane: &DataPlane) {
    until("the node is ready", || {
        let answer = dataplane.get("/readyz").ok()?;
        (answer.status == 200).then_some(())
    });
}

/// Active comes first; then it is written, under another name until it is whole.
fn wait_on_disk(dataplane: &DataPlane, number: u64) {
    until("the generation is on the disk", || {
        let page = dataplane.get("/fleet").ok()?.body;
        let page: serde_json::Value = serde_json::from_str(&page).ok()?;
        (page["fleet"]["on_disk"] == number).then_some(())
    });
}

fn c26_the_last_policy_stays_while_the_control_plane_is_away(cell: Cell) {
    let mut fleet = Fleet::alone("c26", cell, &[]);
    fleet.put(&policy("one"));
    let second = fleet.put(&policy("two"));
    wait_on_disk(&fleet.dataplane, second);
    let mut client = Client::open(fleet.listener("main"), Version::V5, "stays");
    assert_judged(&mut client, "two", &["one"]);

    // The control plane goes; open sessions and new ones are judged as before.
    fleet.control.kill();
    let mark = fleet.control.relay().dialled();
    assert_judged(&mut client, "two", &["one"]);
    let mut more = Client::open(fleet.listener("main"), Version::V5, "comes");
    assert_judged(&mut more, "two", &["one"]);
    fleet.control.relay().wait_dialled(mark);
    assert_judged(&mut client, "two", &["one"]);

    // So do those of the process that follows a sudden end, twice.
    for round in 0..2 {
        fleet.dataplane.restart().unwrap();
        wait_ready(&fleet.dataplane);
        let id = format!("after-{round}");
        let mut after = Client::open(fleet.listener("main"), Version::V5, &id);
        assert_judged(&mut after, "two", &["one"]);
    }

    // Back: the node tells what it has, and nothing is sent that it has already.
    let mut after = Client::open(fleet.listener("main"), Version::V5, "waits");
    fleet.control.restart().unwrap();
    let node = fleet.control.wait_node(NODE, "active");
    assert_eq!(node["active"]["number"], second, "{node:#}");
    let metrics = fleet.control.metrics().unwrap();
    let sent = metrics.sum("sluice_control_rows_sent_total", &[]);
    assert_eq!(sent.unwrap_or(0.0), 0.0);
    fleet.put(&policy("three"));
    let metrics = fleet.control.metrics().unwrap();
    let sent = metrics.sum("sluice_control_rows_sent_total", &[]);
    assert_eq!(sent, Some(1.0), "one row differs");
    assert_judged(&mut after, "three", &["one", "two"]);
}

const CELL: Cell = Cell {
    engine: Engine::Uring,
    shards: 3,
};

/// The files of a folder and those below it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Names a damage and does it.
type Damage = (&'static str, fn(&mut Vec<u8>));

const DAMAGES: [Damage; 7] = [
    ("cut in the middle", |bytes| bytes.truncate(bytes.len() / 2)),
    ("one byte short", |bytes| {
        bytes.pop();
    }),
    ("empty", Vec::clear),
    ("a flipped bit in the middle", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    }),
    ("a flipped bit at the end", |bytes| {
        *bytes.last_mut().unwrap() ^= 1;
    }),
    ("a flipped bit at the start", |bytes| bytes[0] ^= 1),
    ("more than was written", |bytes| bytes.push(0)),
];

#[test]
fn a_damaged_snapshot_is_refused_and_asked_for_again() {
    let mut fleet = Fleet::alone("damaged", CELL, &[]);
    let number = fleet.put(&policy("one"));
    let state_dir = fleet.dataplane.membership().unwrap().state_dir.clone();
    wait_on_disk(&fleet.dataplane, number);
    let snapshot = snapshot_file(&state_dir);
    let good = std::fs::read(&snapshot).unwrap();
    for (damage, damage_it) in DAMAGES {
        fleet.control.kill();
        fleet.dataplane.kill();
        let mut bytes = good.clone();
        damage_it(&mut bytes);
        std::fs::write(&snapshot, bytes).unwrap();
        fleet.dataplane.restart().unwrap();
        // Says so, with the file's name; runs on without a policy rather than with half of one.
        let name = snapshot.file_name().unwrap().to_str().unwrap();
        fleet
            .dataplane
            .running()
            .wait_log(0, damage, |line| {
                let is_warning = line.contains("WARN") || line.contains("ERROR");
                (is_warning && line.contains(name)).then_some(())
            })
            .unwrap();
        assert_eq!(fleet.dataplane.get("/readyz").unwrap().status, 503);
        assert!(fleet.dataplane.listener("main").is_err(), "{damage}");
        // The whole comes again.
        fleet.control.restart().unwrap();
        let node = fleet.control.wait_node(NODE, "active");
        assert_eq!(node["active"]["number"], number, "{damage}: {node:#}");
        let mut client = Client::open(fleet.listener("main"), Version::V5, "again");
        assert_judged(&mut client, "one", &["two"]);
    }
}

/// The file with the rows: what changes when a policy does.
fn snapshot_file(state_dir: &Path) -> PathBuf {
    let mut files = files(state_dir);
    files.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    files.pop().unwrap()
}

#[test]
fn state_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let fleet = Fleet::alone("modes", CELL, &[]);
    fleet.put(&policy("one"));
    for folder in [
        fleet.dataplane.membership().unwrap().state_dir.clone(),
        fleet.control.data_dir(),
    ] {
        let files = files(&folder);
        assert!(!files.is_empty());
        for path in files {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
}

#[test]
fn a_second_node_in_the_same_state_directory_is_refused() {
    let fleet = Fleet::alone("twins", CELL, &[]);
    fleet.put(&policy("one"));
    let mut client = Client::open(fleet.listener("main"), Version::V5, "first");
    let membership = fleet.dataplane.membership().unwrap().clone();
    let finished = membership.program().unwrap().finish().unwrap();
    assert!(!matches!(finished.code, Some(0) | None), "{finished:?}");
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(
        said.contains(&membership.state_dir.display().to_string()),
        "{said}"
    );
    // The first has noticed nothing.
    assert_judged(&mut client, "one", &["two"]);
    let node = fleet.control.node(NODE);
    assert_eq!(node["state"], "active", "{node:#}");
}

#[test]
fn a_node_without_any_policy_refuses_everybody_until_one_is_released() {
    let fleet = Fleet::alone("nothing-yet", CELL, &[]);
    fleet.control.wait_connected(NODE);
    assert_eq!(fleet.control.node(NODE)["state"], "idle");
    assert_eq!(fleet.dataplane.get("/readyz").unwrap().status, 503);
    fleet.put(&policy("one"));
    wait_ready(&fleet.dataplane);
    let mut client = Client::start(fleet.listener("main"), Version::V311);
    assert_eq!(client.connect(&Connect::new(Version::V311, "now")), 0);
}
