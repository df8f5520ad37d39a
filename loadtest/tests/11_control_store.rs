//! The store as operators meet it: backups taken while it is written to, restores, damage, and what readiness says.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{
    Cell, ControlPlane, Engine, Finished, Fleet, NODE, Program, scratch, sibling,
};
use sluice_loadtest::patience::until;
use sluice_wire::mqtt::Version;

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
  - { name: mine, actions: [publish], topics: ["@MINE@"], decision: allow }
"##;

fn policy(mine: &str) -> String {
    POLICY.replace("@MINE@", mine)
}

/// Without a data plane any endpoint will do.
fn policy_alone(mine: &str) -> String {
    policy(mine).replace("@STUB@", "tcp://127.0.0.1:1884")
}

fn restore(input: &Path, data_dir: &Path, more: &[&str]) -> Finished {
    Program::new("sluicectl", sibling("sluicectl").unwrap())
        .arg("restore")
        .arg("--input")
        .arg(input)
        .arg("--data-dir")
        .arg(data_dir)
        .args(more)
        .finish()
        .unwrap()
}

fn backup(control: &ControlPlane, path: &Path) {
    let _ = std::fs::remove_file(path);
    let finished = control.ctl(&["backup", "--output", &path.display().to_string()]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

/// A control plane on a restored store in a folder of its own. Who may call is in the store.
fn on_copy(folder: &Path, token_file: &Path) -> ControlPlane {
    std::fs::copy(token_file, folder.join("control/admin.token")).unwrap();
    ControlPlane::start(folder, &[]).unwrap()
}

#[test]
fn c22_a_backup_taken_while_the_store_is_written_to_is_whole() {
    let folder = scratch("c22-writing").unwrap();
    let control = ControlPlane::start(&folder, &[]).unwrap();
    control.put(&policy_alone("first"));
    let is_over = AtomicBool::new(false);
    let backups: Vec<PathBuf> = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut written = 0;
            while !is_over.load(Ordering::Acquire) {
                control.apply(&policy_alone(&format!("topic/{written}")));
                written += 1;
            }
            written
        });
        // Each after another write, so that they differ.
        let backups: Vec<PathBuf> = (0..4)
            .map(|n| {
                let newest = || control.ctl_json(&["status"])["newest"].as_u64().unwrap();
                let before = newest();
                until("another generation was stored", || {
                    (newest() > before).then_some(())
                });
                let path = folder.join(format!("backup-{n}.db"));
                backup(&control, &path);
                path
            })
            .collect();
        is_over.store(true, Ordering::Release);
        assert!(writing.join().unwrap() >= backups.len());
        backups
    });
    let original = control.ctl_json(&["history", "--limit", "1000"]);
    let mut newest_before = 0;
    for (n, path) in backups.iter().enumerate() {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let folder = scratch(&format!("c22-copy-{n}")).unwrap();
        let finished = restore(path, &folder.join("control"), &[]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let copy = on_copy(&folder, &control.token_file());
        let history = copy.ctl_json(&["history", "--limit", "1000"]);
        let newest = history["newest"].as_u64().unwrap();
        assert!(newest > newest_before, "a backup is as new as its moment");
        newest_before = newest;
        // A true moment: the same generations as in the original up to the newest there was, and the rows of it whole.
        for generation in history["generations"].as_array().unwrap() {
            let same = original["generations"].as_array().unwrap().iter();
            let mut same = same.filter(|other| other["number"] == generation["number"]);
            let same = same.next().unwrap();
            assert_eq!(generation["rows"], same["rows"]);
            assert_eq!(generation["id"]["digest"], same["id"]["digest"]);
        }
        let diff = copy.ctl_json(&["diff", &newest.to_string()]);
        assert_eq!(diff["summary"]["changed"], 1, "{diff:#}");
        let audit = copy.ctl_json(&["audit"]);
        assert_eq!(audit["chain_is_whole"], true);
        // What comes from it is told from what comes from the original.
        let [id, original_id] = [&copy, &control].map(|c| c.ctl_json(&["status"])["store"].clone());
        assert_ne!(id, original_id);
        // And it is a store like any other.
        copy.put(&policy_alone("after"));
    }
}

#[test]
fn c22_a_restore_overwrites_nothing_unasked_and_takes_no_damaged_backup() {
    let folder = scratch("c22-refused").unwrap();
    let mut control = ControlPlane::start(&folder, &[]).unwrap();
    control.put(&policy_alone("one"));
    let good = folder.join("good.db");
    backup(&control, &good);
    let again = control.ctl(&["backup", "--output", &good.display().to_string()]);
    assert_eq!(again.code, Some(2), "a file is not overwritten: {again:?}");
    control.put(&policy_alone("two"));
    let data_dir = control.data_dir();
    let in_use = restore(&good, &data_dir, &["--force"]);
    assert!(!matches!(in_use.code, Some(0) | None), "{in_use:?}");
    assert!(in_use.stderr.contains("in use"), "{in_use:?}");
    control.kill();
    let there = restore(&good, &data_dir, &[]);
    assert!(!matches!(there.code, Some(0) | None), "{there:?}");
    assert!(there.stderr.contains("--force"), "{there:?}");
    // Damaged in one way and another: the store stays what it is.
    let bytes = std::fs::read(&good).unwrap();
    let middle = bytes.len() / 2;
    let mut flipped = bytes.clone();
    flipped[middle..middle + 2048].fill(0xa5);
    let damaged: [(&str, &[u8]); 4] = [
        ("cut", &bytes[..middle]),
        ("flipped", &flipped),
        ("empty", &[]),
        ("something else", b"not a store at all"),
    ];
    for (what, bytes) in damaged {
        let path = folder.join("damaged.db");
        std::fs::write(&path, bytes).unwrap();
        let finished = restore(&path, &data_dir, &["--force"]);
        assert!(
            !matches!(finished.code, Some(0) | None),
            "{what}: {finished:?}"
        );
        assert!(!finished.stderr.is_empty(), "{what}");
    }
    let missing = restore(&folder.join("missing.db"), &data_dir, &["--force"]);
    assert!(!matches!(missing.code, Some(0) | None), "{missing:?}");
    control.restart().unwrap();
    assert_eq!(control.ctl_json(&["history"])["released"], 2);
    control.kill();
    let done = restore(&good, &data_dir, &["--force"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    control.restart().unwrap();
    assert_eq!(control.ctl_json(&["history"])["released"], 1);
}

#[test]
fn c22_after_a_restore_the_node_has_what_the_restored_store_says() {
    let cell = Cell {
        engine: Engine::Uring,
        shards: 3,
    };
    let mut fleet = Fleet::alone("c22-node", cell, &[]);
    fleet.put(&policy("one"));
    let path = fleet.folder.join("backup.db");
    backup(&fleet.control, &path);
    fleet.put(&policy("two"));
    let mut device = Client::open(fleet.listener("main"), Version::V5, "device");
    assert!(device.publish_acked("two", "x", 1) < 0x80);
    fleet.control.kill();
    let finished = restore(&path, &fleet.control.data_dir(), &["--force"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    fleet.control.restart().unwrap();
    until("the node has what the restored store says", || {
        let node = fleet.control.node(NODE);
        (node["state"] == "active" && node["active"]["number"] == 1).then_some(())
    });
    assert_eq!(device.publish_acked("two", "x", 2), 0x87);
    assert!(device.publish_acked("one", "x", 3) < 0x80);
    // Number 2 of the restored store is another than number 2 was before.
    let number = fleet.put(&policy("three"));
    assert_eq!(number, 2);
    assert_eq!(device.publish_acked("two", "x", 4), 0x87);
    assert!(device.publish_acked("three", "x", 5) < 0x80);
}

#[test]
fn c22_a_damaged_store_is_refused_at_start() {
    let folder = scratch("c22-damaged").unwrap();
    let mut control = ControlPlane::start(&folder, &[]).unwrap();
    control.put(&policy_alone("one"));
    // Ended in order, so that all is in one file.
    control
        .running()
        .signal(rustix::process::Signal::TERM)
        .unwrap();
    assert!(control.running_mut().wait_exit().unwrap().success());
    let store = control.data_dir().join("store.db");
    let good = std::fs::read(&store).unwrap();
    let mut overwritten = good.clone();
    let middle = good.len() / 2;
    overwritten[middle..].fill(0xa5);
    let cut = &good[..middle];
    let something_else = "not a store at all\n".repeat(1000).into_bytes();
    for (what, bytes) in [
        ("overwritten", overwritten.as_slice()),
        ("cut", cut),
        ("something else", &something_else),
    ] {
        for beside in ["store.db-wal", "store.db-shm"] {
            let _ = std::fs::remove_file(control.data_dir().join(beside));
        }
        std::fs::write(&store, bytes).unwrap();
        let mut refused = ControlPlane::program(&folder).unwrap().start().unwrap();
        let (status, said) = refused.output().unwrap();
        assert_eq!(status.code(), Some(1), "{what}: {said}");
        assert!(said.contains("store.db"), "{what}: {said}");
        let is_unchanged = std::fs::read(&store).unwrap() == bytes;
        assert!(is_unchanged, "{what}: it was changed");
    }
    std::fs::write(&store, &good).unwrap();
    control.restart().unwrap();
    assert_eq!(control.ctl_json(&["history"])["released"], 1);
}

#[test]
fn c23_readiness_tells_of_the_store_and_not_of_nodes() {
    let cell = Cell {
        engine: Engine::Epoll,
        shards: 1,
    };
    let mut fleet = Fleet::alone("c23", cell, &[]);
    fleet.put(&policy("one"));
    // A node that is away is a matter of that node.
    fleet.dataplane.kill();
    fleet.control.wait_node(NODE, "offline");
    assert_eq!(fleet.control.get("/readyz").unwrap().status, 200);
    // A store that is gone is not.
    let store = fleet.control.data_dir().join("store.db");
    let aside = store.with_extension("aside");
    std::fs::rename(&store, &aside).unwrap();
    until("it is not ready", || {
        (fleet.control.get("/readyz").ok()?.status == 503).then_some(())
    });
    let verbose = fleet.control.get("/readyz?verbose").unwrap();
    assert!(verbose.body.contains("store"), "{verbose:?}");
    assert_eq!(fleet.control.get("/livez").unwrap().status, 200);
    std::fs::rename(&aside, &store).unwrap();
    until("it is ready again", || {
        (fleet.control.get("/readyz").ok()?.status == 200).then_some(())
    });
    fleet.control.apply(&fleet.policy(&policy("two")));
}
