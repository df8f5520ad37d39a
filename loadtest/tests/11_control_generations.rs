//! Generations as operators meet them: previews, what can be released and what cannot any more, a restart in between, and
//! two operators at once. No data plane takes part.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use serde_json::Value;
use sluice_loadtest::harness::{ControlPlane, Program, number_of, scratch};
use sluice_loadtest::patience::until;

const HEAD: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:1883", upstream: broker }
upstreams:
  - { name: broker, endpoints: ["tcp://127.0.0.1:1884"] }
users:
  - { name: alice, password_hash: "@HASH@" }
rules:
  - { name: connects, actions: [connect], decision: allow }
"##;

const HASH: &str = "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO";
const OTHER_HASH: &str =
    "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

fn policy(topic: &str) -> String {
    let rule = format!(
        "  - {{ name: mine, actions: [publish], topics: [\"{topic}\"], decision: allow }}\n"
    );
    HEAD.replace("@HASH@", HASH) + &rule
}

fn control(name: &str) -> ControlPlane {
    ControlPlane::start(&scratch(name).unwrap(), &[]).unwrap()
}

fn history(control: &ControlPlane) -> Value {
    control.ctl_json(&["history"])
}

fn state_of(control: &ControlPlane, number: u64) -> String {
    history(control)["generations"]
        .as_array()
        .unwrap()
        .iter()
        .find(|generation| generation["number"] == number)
        .and_then(|generation| generation["state"].as_str())
        .unwrap()
        .to_owned()
}

#[test]
fn c9_a_preview_of_what_is_in_force_shows_no_change_and_makes_no_generation() {
    let control = control("c9");
    let path = control.document(&policy("a")).unwrap();
    // Against nothing everything is new.
    let diff = control.ctl_json(&["diff", "-f", &path]);
    assert_eq!(diff["summary"]["added"], 6, "{diff:#}");
    assert_eq!(history(&control)["newest"], 0);
    let number = control.put(&policy("a"));
    let before = history(&control);
    let diff = control.ctl_json(&["diff", "-f", &path]);
    assert_eq!(diff["rows"].as_array().unwrap().len(), 0, "{diff:#}");
    // Said in other words, and in another layout.
    let same = format!(
        "# the same\n{}\n\n",
        policy("a").replace("actions: [connect]", "actions: [ \"connect\" ]")
    );
    for text in [policy("a"), same] {
        let path = control.document(&text).unwrap();
        let answer = control.ctl_json(&["apply", "-f", &path]);
        assert_eq!(answer["unchanged"], true, "{answer:#}");
        assert_eq!(number_of(&answer), number);
    }
    assert_eq!(history(&control), before);
    // And it does show what changes, without the secret.
    let text = policy("b").replace(HASH, OTHER_HASH);
    let path = control.document(&text).unwrap();
    let diff = control.ctl(&["diff", "-f", &path]);
    assert_eq!(diff.code, Some(0));
    assert!(
        diff.stdout.contains("alice") && diff.stdout.contains("mine"),
        "{diff:?}"
    );
    let json = control.ctl_json(&["diff", "-f", &path]);
    assert_eq!(json["summary"]["changed"], 2, "{json:#}");
    for secret in [HASH, OTHER_HASH] {
        assert!(!diff.stdout.contains(secret) && !json.to_string().contains(secret));
    }
    assert_eq!(history(&control), before);
}

#[test]
fn c10_what_cannot_be_released_is_refused_with_the_reason() {
    let control = control("c10");
    let refused = |number: u64, code: &str| {
        let answer = control.ctl_code(6, &["release", &number.to_string()]);
        assert_eq!(answer["error"]["code"], code, "{answer:#}");
    };
    refused(1, "not_found");
    let first = control.apply(&policy("a"));
    let second = control.apply(&policy("b"));
    refused(second + 1, "not_found");
    // Someone saw another state than there is.
    let answer = control.ctl_code(4, &["release", "1", "--expect", "7"]);
    assert_eq!(answer["error"]["code"], "conflict", "{answer:#}");
    let path = control.document(&policy("c")).unwrap();
    control.ctl_code(4, &["apply", "-f", &path, "--expect", "1"]);
    control.ctl_json(&["release", &first.to_string(), "--expect", "0"]);
    // Made when nothing was in force: applying it again is the way.
    refused(second, "failed_precondition");
    assert_eq!(state_of(&control, second), "outdated");
    // A generation is released once; afterwards there is rollback.
    refused(first, "failed_precondition");
    let third = control.put(&policy("b"));
    assert_eq!(third, second + 1);
    refused(first, "failed_precondition");
    assert_eq!(state_of(&control, first), "superseded");
    // Rolling back to what is in force, to what never was, to what there is not.
    for (number, code) in [
        (third, "failed_precondition"),
        (second, "failed_precondition"),
        (99, "not_found"),
    ] {
        let answer = control.ctl_code(6, &["rollback", &number.to_string()]);
        assert_eq!(answer["error"]["code"], code, "{answer:#}");
    }
    let back = control.ctl_json(&["rollback", &first.to_string()]);
    assert_eq!(number_of(&back), third + 1);
    assert_eq!(history(&control)["released"], third + 1);
}

#[test]
fn c10_what_was_not_released_in_time_is_applied_again() {
    let folder = scratch("c10-expired").unwrap();
    let control = ControlPlane::start(&folder, &["--release-within", "1s"]).unwrap();
    let first = control.apply(&policy("a"));
    until("it has expired", || {
        (state_of(&control, first) == "expired").then_some(())
    });
    let answer = control.ctl_code(6, &["release", &first.to_string()]);
    assert_eq!(answer["error"]["code"], "failed_precondition", "{answer:#}");
    assert_eq!(history(&control)["released"], 0);
    // The same document makes a new one, which can be released.
    let path = control.document(&policy("a")).unwrap();
    let again = control.ctl_json(&["apply", "-f", &path, "--release"]);
    assert_eq!(number_of(&again), first + 1, "{again:#}");
    assert_eq!(history(&control)["released"], first + 1);
}

#[test]
fn c13_what_was_applied_before_a_restart_can_be_released_after_it() {
    let mut control = control("c13");
    let first = control.put(&policy("a"));
    let second = control.apply(&policy("b"));
    let before = history(&control);
    control.restart().unwrap();
    assert_eq!(history(&control), before);
    assert_eq!(state_of(&control, second), "applied");
    control.release(second);
    control.restart().unwrap();
    assert_eq!(history(&control)["released"], second);
    let back = control.ctl_json(&["rollback"]);
    assert_eq!(back["generation"]["rollback_of"], first, "{back:#}");
    let path = control.document(&policy("a")).unwrap();
    let diff = control.ctl_json(&["diff", "-f", &path]);
    assert_eq!(diff["rows"].as_array().unwrap().len(), 0, "{diff:#}");
}

/// Runs the same command of several operators at once and gives their exit codes, sorted.
fn at_once(programs: Vec<Program>) -> Vec<Option<i32>> {
    let running: Vec<_> = programs
        .into_iter()
        .map(|program| std::thread::spawn(move || program.finish().unwrap().code))
        .collect();
    let mut codes: Vec<_> = running
        .into_iter()
        .map(|running| running.join().unwrap())
        .collect();
    codes.sort_unstable();
    codes
}

#[test]
fn c14_of_two_operators_at_once_one_wins_and_the_other_is_told() {
    let control = control("c14");
    let folder = scratch("c14-documents").unwrap();
    let mut newest = 0;
    let mut released = 0;
    for round in 0..3 {
        let programs = (0..3)
            .map(|who| {
                let path = folder.join(format!("{round}-{who}.yaml"));
                std::fs::write(&path, policy(&format!("{round}/{who}"))).unwrap();
                let (path, expect) = (path.display().to_string(), format!("{newest}"));
                control
                    .ctl_program(&["apply", "-f", &path, "--expect", &expect])
                    .unwrap()
            })
            .collect();
        assert_eq!(at_once(programs), [Some(0), Some(4), Some(4)]);
        let found = history(&control);
        assert_eq!(found["newest"], newest + 1, "exactly one was stored");
        // Two may be released now; both saw the same thing in force.
        newest = control.apply(&policy(&format!("{round}/late")));
        let programs = [newest - 1, newest]
            .map(|number| {
                let (number, expect) = (number.to_string(), format!("{released}"));
                control
                    .ctl_program(&["release", &number, "--expect", &expect])
                    .unwrap()
            })
            .into();
        assert_eq!(at_once(programs), [Some(0), Some(4)]);
        released = history(&control)["released"].as_u64().unwrap();
        assert!([newest - 1, newest].contains(&released));
    }
}
