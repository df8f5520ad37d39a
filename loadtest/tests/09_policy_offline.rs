//! The command line without a running data plane: `check` and `explain`, and what a broken start says.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::path::PathBuf;

use sluice_loadtest::harness::{CELLS, DataPlane, Program, Setup, scratch, sibling};

const BROKEN: &str = r##"default: deny
listeners:
  - { name: main, address: nowhere, upstream: missing }
  - { name: main, address: "127.0.0.1:0", upstream: broker, surprise: 1 }
upstreams:
  - { name: broker, endpoints: ["ftp://127.0.0.1:1"] }
users:
  - { name: alice, password_hash: "secret" }
  - { name: bob, password_hash: "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$YWJj" }
rules:
  - { name: a, actions: [publish], topics: ["a/#/b"], decision: allow }
  - { name: b, actions: [flying], topics: ["a"], decision: perhaps }
  - { name: c, who: { user_patterns: ["("], addresses: ["10.0.0.0/33"], groups: [ghosts] }, actions: [connect], decision: allow }
"##;

fn write(name: &str, text: &str) -> PathBuf {
    let path = scratch("offline").unwrap().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn run(args: &[&str]) -> (i32, String) {
    let mut running = Program::new("sluice-dataplane", sibling("sluice-dataplane").unwrap())
        .args(args)
        .start()
        .unwrap();
    let (status, output) = running.output().unwrap();
    (status.code().unwrap_or(-1), output)
}

#[test]
fn c17_check_lists_every_error_with_its_place_and_fails() {
    let path = write("broken.yaml", BROKEN);
    let (code, output) = run(&["check", path.to_str().unwrap()]);
    assert_ne!(code, 0, "{output}");
    for (line, what) in [
        (3, "nowhere as an address"),
        (3, "the unknown upstream"),
        (4, "the second listener of that name"),
        (4, "the unknown key"),
        (6, "the scheme"),
        (8, "the plain password"),
        (9, "the hash that is cut off"),
        (11, "the filter"),
        (12, "the action"),
        (13, "the pattern"),
    ] {
        let place = format!("broken.yaml:{line}:");
        assert!(output.contains(&place), "{what} is not reported:\n{output}");
    }
    assert!(output.contains("surprise"), "{output}");
    // Secrets are not repeated in messages.
    assert!(!output.contains("YWJj"), "{output}");
}

#[test]
fn c17_a_broken_flag_or_file_is_told_and_fails() {
    let missing = ["check", "/nonexistent/policy.yaml"];
    for args in [
        &missing[..],
        &["--shards", "none"],
        &["--engine", "steam"],
        &["--surprise"],
    ] {
        let (code, output) = run(args);
        assert_ne!(code, 0, "{args:?}");
        assert!(!output.trim().is_empty(), "{args:?} says nothing");
    }
}

#[test]
fn c17_the_example_policies_pass_the_check() {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut checked = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let (code, output) = run(&["check", path.to_str().unwrap()]);
            assert_eq!(code, 0, "{}: {output}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 0, "no example policy found");
}

#[test]
fn a_broken_policy_at_start_is_told_and_devices_are_refused() {
    for cell in CELLS {
        let folder = scratch(&format!("broken-start-{cell}")).unwrap();
        let setup = Setup {
            cell,
            policy: BROKEN,
            args: &[],
        };
        // Whether it ends at once or waits for a better file, it says why and is never ready.
        match DataPlane::start_unready(&folder, &setup) {
            Ok(mut dataplane) => {
                let told = dataplane.running().wait_log(0, "the errors", |line| {
                    line.contains("policy.yaml:3:").then_some(())
                });
                told.unwrap();
                if !dataplane.running_mut().has_ended() {
                    let ready = dataplane.get("/readyz").unwrap();
                    assert_eq!(ready.status, 503);
                }
            }
            Err(error) => {
                assert!(format!("{error:#}").contains("policy.yaml:3:"), "{error:#}");
            }
        }
    }
}

#[test]
fn explain_names_the_rule_that_decided() {
    let path = write(
        "explained.yaml",
        r##"default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["tcp://127.0.0.1:1"] }
groups:
  - { name: guests }
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: not-secret, priority: 5, actions: [publish], topics: ["secret/#"], decision: deny }
  - { name: everything, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##,
    );
    let policy = path.to_str().unwrap();
    let explain = |action: &str, topic: &str| {
        let mut args = vec!["explain", "--policy", policy, "--client-id", "me", action];
        if !topic.is_empty() {
            args.push(topic);
        }
        run(&args).1
    };
    assert!(explain("connect", "").contains("connects"));
    let denied = explain("publish", "secret/x");
    assert!(
        denied.contains("not-secret") && denied.contains("deny"),
        "{denied}"
    );
    let allowed = explain("publish", "open/x");
    assert!(
        allowed.contains("everything") && allowed.contains("allow"),
        "{allowed}"
    );
    let default = explain("publish", "$SYS/x");
    assert!(default.contains("default"), "{default}");
}
