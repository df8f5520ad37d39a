//! What is wrong with the control plane's own settings, and with a document before anything is asked of a server.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::path::Path;

use sluice_loadtest::harness::{ControlPlane, Finished, Program, scratch, sibling};

fn run(folder: &Path, args: &[&str]) -> Finished {
    let program = ControlPlane::program(folder).unwrap();
    program.args(args).finish().unwrap()
}

#[track_caller]
fn assert_refused(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?}: {finished:?}");
    }
}

#[test]
fn c17_every_wrong_setting_is_named_and_nothing_is_started() {
    let folder = scratch("c17-settings").unwrap();
    let data_dir = folder.join("control");
    // What the settings contradict each other in, all at once.
    let wrong = [
        "--tls-key",
        "key.pem",
        "--tls-client-ca",
        "ca.pem",
        "--log-level",
        "sluice=loudly",
    ];
    assert_refused(
        &run(&folder, &wrong),
        2,
        &["--tls-cert", "--tls-client-ca", "--log-level"],
    );
    assert_refused(&run(&folder, &["--no-such-flag"]), 2, &["--no-such-flag"]);
    assert_refused(
        &run(&folder, &["--release-within", "soon"]),
        2,
        &["--release-within", "24h"],
    );
    let from_environment = ControlPlane::program(&folder)
        .unwrap()
        .env("SLUICE_CONTROL_RELEASE_WITHIN", "never")
        .finish()
        .unwrap();
    assert_refused(&from_environment, 2, &["release-within", "never"]);
    assert!(!data_dir.exists(), "nothing was made");

    let missing = folder.join("missing.pem").display().to_string();
    let tls = ["--tls-cert", missing.as_str(), "--tls-key", &missing];
    assert_refused(&run(&folder, &tls), 1, &[&missing]);
    let elsewhere = scratch("c17-file").unwrap();
    std::fs::write(elsewhere.join("control"), "a file, not a folder").unwrap();
    assert_refused(&run(&elsewhere, &[]), 1, &["control"]);
}

#[test]
fn c17_one_control_plane_at_a_time_uses_a_store() {
    let folder = scratch("c17-twins").unwrap();
    let control = ControlPlane::start(&folder, &[]).unwrap();
    assert_refused(&run(&folder, &[]), 1, &["in use"]);
    // The first has noticed nothing.
    assert_eq!(control.ctl_json(&["status"])["newest"], 0);
}

#[test]
fn c17_plaintext_beyond_loopback_is_warned_of() {
    let folder = scratch("c17-plaintext").unwrap();
    let program = sibling("sluice-controlplane").unwrap();
    Program::new("sluice-controlplane", program)
        .args(["--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(folder.join("control"))
        .start()
        .unwrap()
        .wait_log(0, "a warning", |line| {
            let is_it = line.contains("WARN") && line.to_lowercase().contains("tls");
            is_it.then_some(())
        })
        .unwrap();
}

#[test]
fn c17_a_document_is_told_all_that_is_wrong_with_it_with_and_without_a_server() {
    let folder = scratch("c17-document").unwrap();
    let control = ControlPlane::start(&folder, &[]).unwrap();
    let text = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:1883", upstream: nobody }
upstreams:
  - { name: broker, endpoints: ["tcp://127.0.0.1:1884"], colour: red }
users:
  - { name: alice, password_hash: "changeme" }
  - { name: bob, password_hash: "$6$salt$hash" }
rules:
  - { name: wrong-filter, actions: [publish], topics: ["a/#/b"], decision: allow }
  - { name: no-topic, actions: [publish], decision: allow }
"##;
    let path = control.document(text).unwrap();
    let offline = Program::new("sluicectl", sibling("sluicectl").unwrap())
        .args(["validate", "--offline", "--output", "json", "-f", &path])
        .finish()
        .unwrap();
    assert_eq!(offline.code, Some(1), "{offline:?}");
    let offline: serde_json::Value = serde_json::from_str(&offline.stdout).unwrap();
    let online = control.ctl_code(1, &["validate", "-f", &path]);
    assert_eq!(offline["problems"], online["problems"]);
    let lines: Vec<u64> = online["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem["line"].as_u64().unwrap())
        .collect();
    for line in [4, 6, 8, 9, 11, 12] {
        assert!(lines.contains(&line), "line {line}: {online:#}");
    }
    // A secret that somebody wrote where a hash belongs is not repeated.
    for shown in [
        online.to_string(),
        control.ctl(&["validate", "-f", &path]).stderr,
    ] {
        assert!(!shown.contains("changeme"), "{shown}");
    }
}
