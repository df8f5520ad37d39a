//! The binary as an operator meets it: commands and their exit codes, start, reload, drain, the admin server.
//!
//! What devices see is tested with real brokers in `loadtest/tests/`; here a broker of three lines is enough.

#![allow(clippy::expect_used)] // a test that cannot go on says so

#[path = "process/crowds.rs"]
mod crowds;
#[path = "process/harness.rs"]
mod harness;
#[path = "process/upstreams.rs"]
mod upstreams;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;
use sluice_policy::Verifier;

use harness::{Device, PATIENCE, Running, ask, broker, data};

/// bcrypt, cost 4, of `secret`: real, and quick enough for a test.
const SECRET: &str = "$2b$04$CFhggLUUUgNKRKMvlo6Jiu62Cpzqn2hm2bQ1ReqPmYxLYVtUzrmDe";
/// The same of `other`.
const OTHER: &str = "$2b$04$utnzQO8M96s6Qv6cYCPbb.ipHdlClIUQn5c.x9c475EqfPpDTFYpS";
/// bcrypt, cost 12, of `secret`: slow enough for checks to pile up.
const SLOW_SECRET: &str = "$2b$12$CFhggLUUUgNKRKMvlo6Jiuob1bgO2WO858DEyOttyeyLiu49T6Gq6";

/// One listener in front of `upstream`, anonymous allowed, permit-all permitted.
fn open_policy(upstream: SocketAddr) -> String {
    format!(
        "listeners:
  - {{name: devices, address: '127.0.0.1:0', upstream: broker, anonymous: {{group: guests}}}}
groups:
  - {{name: guests}}
upstreams:
  - {{name: broker, endpoints: ['tcp://{upstream}']}}
rules:
  - {{name: permit-all, actions: [connect, publish, subscribe], topics: ['#'], decision: allow}}
"
    )
}

/// The same with one user, no anonymous devices.
fn login_policy(upstream: SocketAddr, hash: &str) -> String {
    open_policy(upstream).replace(", anonymous: {group: guests}", "")
        + &format!("users:\n  - {{name: u, password_hash: '{hash}'}}\n")
}

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

// ---- commands that need no sockets

#[test]
fn settings_come_from_flag_variable_file_or_default_and_it_is_shown_from_where() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("node.toml");
    let path = file.to_str().expect("text");
    let made = ask(&["config", "init", path], b"");
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let text = std::fs::read_to_string(&file).expect("made");
    for key in [
        "# shards = \"auto\"",
        "# drain_time = \"30s\"",
        "# unready_without_upstream = false",
    ] {
        assert!(text.lines().any(|line| line == key), "{key} in {text}");
    }
    assert_eq!(
        ask(&["config", "validate", "--config", path], b"")
            .status
            .code(),
        Some(0)
    );
    std::fs::write(&file, "shards = 2\nlog_level = \"warn\"\n").expect("written");
    let shown = ask(
        &["config", "show", "--config", path, "--log-level", "debug"],
        b"",
    );
    let shown = stdout(&shown);
    let row = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key));
        line.expect(key)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("shards "), format!("shards 2 file: {path}:1"));
    assert_eq!(row("log_level "), "log_level debug flag");
    assert_eq!(row("admin "), "admin 127.0.0.1:9090 default");
    std::fs::write(&file, "shard = 2\nengine = \"kqueue\"\n").expect("written");
    for words in [
        &["--config", path][..],
        &["config", "validate", "--config", path],
    ] {
        let refused = ask(words, b"");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        let expected = format!(
            "error: {path}:1:1: `shard` is no key; did you mean `shards`?\n\
             error: {path}:2:10: engine: invalid value 'kqueue' for '--engine <auto|uring|epoll>': \"kqueue\" is no engine: auto, uring or epoll\n"
        );
        assert_eq!(said, expected);
    }
    std::fs::write(
        &file,
        "policy = \"p\"\ncontrol_plane = \"http://127.0.0.1\"\nnode = \"n\"\n",
    )
    .expect("written");
    let refused = ask(&["--config", path], b"");
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    for text in [
        "--policy and --control-plane do not go together",
        "--control-plane needs --node and --state-dir",
    ] {
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn completion_and_man_pages_come_from_the_program() {
    let script = stdout(&ask(&["completion", "bash"], b""));
    assert!(
        script.contains("--drain-time") && script.contains("hash-password"),
        "{script}"
    );
    let page = stdout(&ask(&["man"], b""));
    assert!(page.contains(".TH sluice-dataplane 1"), "{page}");
}

#[test]
fn c17_check_lists_every_error_with_its_place_and_fails() {
    let bad = data("bad.yaml");
    let bad = bad.to_str().expect("text");
    let output = ask(&["check", bad], b"");
    let shown = stdout(&output).replace(bad, "bad.yaml");
    let expected = std::fs::read_to_string(data("bad.expected")).expect("the golden file");
    assert_eq!(shown, expected);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn check_as_json_has_the_same_places() {
    let output = ask(
        &[
            "check",
            "--output",
            "json",
            data("bad.yaml").to_str().expect("text"),
        ],
        b"",
    );
    assert_eq!(output.status.code(), Some(1));
    let page: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let problems = page["files"][0]["problems"].as_array().expect("a list");
    let golden = std::fs::read_to_string(data("bad.expected")).expect("the golden file");
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| {
            let message = problem["message"].as_str().expect("text");
            format!(
                "bad.yaml:{}:{}: {message}",
                problem["line"], problem["column"]
            )
        })
        .collect();
    assert_eq!(lines, golden.lines().collect::<Vec<_>>());
}

#[test]
fn brokers_that_may_not_share_sessions_are_a_warning_and_no_error() {
    let policy = open_policy(broker()).replace(
        "endpoints: [",
        "balance: round_robin, endpoints: ['tcp://127.0.0.1:9', ",
    );
    let mut running = Running::start_ready(&policy, &["--shards", "1"]);
    let text = "round_robin over 2 endpoints";
    assert!(running.wait_log(text).contains("WARN"));
    let file = running.policy_file();
    let file = file.to_str().expect("text");
    let output = ask(&["check", file], b"");
    assert_eq!(output.status.code(), Some(0));
    let page = stdout(&output);
    assert!(
        page.contains("warning: upstream `broker`") && page.contains(": ok ("),
        "{page}"
    );
    let output = ask(&["check", "--output", "json", file], b"");
    let page: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let warning = page["files"][0]["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains(text), "{warning}");
    assert_eq!(page["files"][0]["ok"], true);
}

#[test]
fn check_counts_rows_and_with_strict_a_warning_is_an_error() {
    let file = data("../../policy/tests/broken/shadowed_deny.yaml");
    let file = file.to_str().expect("text");
    let output = ask(&["check", file], b"");
    assert_eq!(output.status.code(), Some(0));
    let page = stdout(&output);
    let lines: Vec<&str> = page.lines().collect();
    let warning = "1 rule can never decide, because rules that are asked before decide about the same sessions and topics: \
                   `secrets stay where they are` (behind `devices use all topics`)";
    let good = "ok (1 listener, 1 upstream, 0 groups, 1 user, 3 rules)";
    assert_eq!(
        lines,
        [
            format!("{file}: warning: {warning}"),
            format!("{file}: {good}")
        ]
    );

    let output = ask(&["check", "--strict", file], b"");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), format!("{file}: error: {warning}\n"));

    for (strict, code) in [(&["--strict"][..], 1), (&[], 0)] {
        let words = [&["check", "--output", "json", file], strict].concat();
        let output = ask(&words, b"");
        assert_eq!(output.status.code(), Some(code));
        let page: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let page = &page["files"][0];
        assert_eq!(page["ok"], code == 0);
        assert_eq!(page["warnings"], serde_json::json!([warning]));
        let rows = serde_json::json!({"listeners": 1, "upstreams": 1, "groups": 0, "users": 1, "rules": 3});
        assert_eq!(page["rows"], rows);
    }
}

#[test]
fn check_names_a_file_it_cannot_read_in_json_too() {
    let output = ask(
        &["check", "--output", "json", "/nonexistent/policy.yaml"],
        b"",
    );
    assert_eq!(output.status.code(), Some(2));
    let page: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(page["files"][0]["file"], "/nonexistent/policy.yaml");
    assert_eq!(page["files"][0]["ok"], false);
}

/// One file holds the questions and the answers, so that a change of wording is seen as a whole.
#[test]
fn explain_names_the_rule_and_those_passed_over() {
    let policy = data("explain.yaml");
    let policy = policy.to_str().expect("text");
    let questions: [&[&str]; 8] = [
        &["--user", "s7", "--client-id", "c", "publish", "site/s7/t"],
        &["--user", "s7", "publish", "secret/t"],
        &[
            "--user",
            "s7",
            "--qos",
            "1",
            "--retain",
            "--payload-bytes",
            "10",
            "publish",
            "site/s8/t",
        ],
        &[
            "--user",
            "s7",
            "--version",
            "3.1.1",
            "subscribe",
            "site/+/t",
        ],
        &["--user", "s7", "subscribe", "$share/g/#"],
        &["--user", "s7", "receive", "site/s8/t"],
        &["--user", "nobody", "connect"],
        &["connect"],
    ];
    let mut shown = String::new();
    for question in questions {
        let mut args = vec!["explain", "--policy", policy, "--listener", "devices"];
        args.extend(question);
        let output = ask(&args, b"");
        assert_eq!(output.status.code(), Some(0), "{question:?}: {output:?}");
        args.extend(["--output", "json"]);
        let page: serde_json::Value =
            serde_json::from_slice(&ask(&args, b"").stdout).expect("JSON");
        let decision = page["decision"].as_str().expect("a decision");
        assert!(stdout(&output).contains(&format!(": {decision}")), "{page}");
        let digest = page["digest"].as_str().expect("a digest");
        let text = stdout(&output).replace(digest, "DIGEST");
        shown += &format!("$ explain {}\n{text}\n", question.join(" "));
    }
    let golden = data("explain.expected");
    if std::env::var_os("SLUICE_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &shown).expect("written");
    }
    assert_eq!(
        shown,
        std::fs::read_to_string(&golden).expect("the golden file")
    );
}

#[test]
fn explain_says_what_is_wrong_with_a_question() {
    let policy = data("explain.yaml");
    let policy = policy.to_str().expect("text");
    for (question, complaint) in [
        (
            &["publish", "t"][..],
            "--listener is needed, one of: devices, guests",
        ),
        (&["--listener", "x", "publish", "t"], "no listener `x`"),
        (
            &["--listener", "devices", "publish", "a/#"],
            "no topic name",
        ),
        (
            &["--listener", "devices", "subscribe", "a/#/b"],
            "no topic filter",
        ),
        (&["--listener", "devices", "publish"], "<TOPIC>"),
    ] {
        let mut args = vec!["explain", "--policy", policy];
        args.extend(question);
        let output = ask(&args, b"");
        assert_eq!(output.status.code(), Some(2), "{question:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(complaint), "{question:?}: {said}");
    }
}

#[test]
fn exit_codes_tell_a_bad_policy_from_a_bad_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = folder.path().join("good.yaml");
    std::fs::write(&good, open_policy(SocketAddr::from(([127, 0, 0, 1], 1)))).expect("written");
    let good = good.to_str().expect("text");
    let bad = data("bad.yaml");
    let bad = bad.to_str().expect("text");
    let long = "9".repeat(30);
    let cases: [(&[&str], i32); 12] = [
        (&["check", good], 0),
        (&["check", good, good], 0),
        (&["check", good, bad], 1),
        (&["check", bad, "/nonexistent.yaml"], 2),
        (&["check"], 2),
        (&["check", "--unknown", good], 2),
        (&["unknown"], 2),
        (&["--shards", "0"], 2),
        (&["--drain-time", &long], 2),
        (&["--log-level", "inof"], 2),
        (&["explain", "--policy", bad, "publish", "t"], 1),
        (
            &["explain", "--policy", "/nonexistent.yaml", "publish", "t"],
            2,
        ),
    ];
    for (args, expected) in cases {
        let output = ask(args, b"");
        assert_eq!(output.status.code(), Some(expected), "{args:?}: {output:?}");
        assert!(
            !output.stdout.is_empty() || !output.stderr.is_empty(),
            "{args:?} says why"
        );
    }
}

#[test]
fn a_password_is_hashed_from_standard_input_only() {
    let output = ask(&["hash-password"], b"correct horse\r\n");
    assert_eq!(output.status.code(), Some(0));
    let hash = stdout(&output);
    let verifier = Verifier::parse(hash.trim_end()).expect("a hash the policy takes");
    assert!(verifier.verify(b"correct horse"));
    assert!(!hash.contains("horse"));

    for (args, stdin) in [
        (&["hash-password"][..], &b""[..]),
        (&["hash-password"], b"\n"),
        (&["hash-password"], &[b'x'; 70_000]),
        (&["hash-password", "secret"], b"secret\n"),
    ] {
        let output = ask(args, stdin);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?} with {} bytes",
            stdin.len()
        );
        assert!(output.stdout.is_empty());
    }
}

// ---- start

#[test]
fn without_a_policy_it_lives_and_is_not_ready() {
    let running = Running::start(None, &["--shards", "2"]);
    assert_eq!(running.get("/livez").status, 200);
    let ready = running.get("/readyz?verbose");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("no policy is active"), "{}", ready.body);
    assert_eq!(running.metric("sluice_ready "), Some(0.0));
    assert_eq!(running.json("/policy")["active"], serde_json::Value::Null);
    running.signal(Signal::TERM);
    assert_eq!(running.end().0.code(), Some(0));
}

#[test]
fn a_bad_policy_at_start_is_refused_and_a_good_one_is_taken_later() {
    let mut running = Running::start(Some("listeners: 7\n"), &["--shards", "1"]);
    let line = running.wait_log("policy.yaml:1:");
    assert!(line.contains("ERROR"), "{line}");
    running.wait_for("/policy", |answer| answer.body.contains("policy.yaml:1:"));
    assert_eq!(running.get("/readyz").status, 503);
    running.replace_policy(&open_policy(broker()));
    running.wait_for("/readyz", |answer| answer.status == 200);
    let policy = running.json("/policy");
    assert_eq!(
        policy["active"]["generation"], 2,
        "the refused one keeps its number: {policy}"
    );
    assert_eq!(policy["rejected"], serde_json::Value::Null);
}

#[test]
fn an_admin_address_in_use_is_a_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = ask(&["--admin", &address], b"");
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(&address) && log.contains("--admin"), "{log}");
}

#[test]
fn the_service_manager_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let policy = open_policy(broker());
    let running = Running::start_with(Some(&policy), &["--shards", "1"], |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let wait_for = |text: &str| {
        let mut buffer = [0; 512];
        loop {
            let len = manager.recv(&mut buffer).expect("told in time");
            if String::from_utf8_lossy(&buffer[..len]).contains(text) {
                return;
            }
        }
    };
    wait_for("READY=1\nSTATUS=generation 1 is active");
    running.replace_policy(&policy);
    wait_for("RELOADING=1\nMONOTONIC_USEC=");
    wait_for("READY=1\nSTATUS=generation 2 is active");
    running.signal(Signal::TERM);
    wait_for("STOPPING=1");
    assert_eq!(running.end().0.code(), Some(0));
}

// ---- every flag changes something

#[test]
fn connections_max_refuses_the_next_device() {
    let running = Running::start_ready(
        &open_policy(broker()),
        &["--shards", "1", "--connections-max", "1"],
    );
    let port = running.listener("devices");
    let mut first = Device::connect(port, "first", None);
    assert_eq!(first.connack(), 0);
    Device::connect(port, "second", None).closed();
    assert_eq!(running.metric("sluice_connections_open "), Some(1.0));
}

#[test]
fn threads_are_named_pinned_and_nice() {
    let policy = open_policy(broker());
    let running = Running::start_ready(
        &policy,
        &["--shards", "1", "--cpus", "0", "--auth-threads", "3"],
    );
    let port = running.listener("devices");
    assert_eq!(Device::connect(port, "c", None).connack(), 0);
    let threads = running.threads();
    let named = |prefix: &str| -> Vec<_> {
        let mut found: Vec<_> = threads
            .iter()
            .filter(|t| t.name.starts_with(prefix))
            .collect();
        found.sort_by_key(|thread| &thread.name);
        found
    };
    let shards = named("shard-");
    assert_eq!(shards.len(), 1);
    assert!(shards.iter().all(|thread| thread.cpus == "0"));
    // As nice as whoever started us; 19 is the nicest there is.
    let nice = (shards[0].nice + 10).min(19);
    assert_eq!(named("auth-").len(), 3);
    // They lower themselves before they take their first check.
    running.wait_for("/livez", |_| {
        let threads = running.threads();
        let mut auth = threads
            .iter()
            .filter(|thread| thread.name.starts_with("auth-"));
        auth.all(|thread| thread.nice == nice)
    });
}

#[test]
fn a_processor_outside_of_the_allowed_set_is_an_error() {
    let output = ask(&["--cpus", "1023", "--admin", "127.0.0.1:0"], b"");
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("processor 1023 is not in the set"), "{log}");
}

#[test]
fn settings_can_come_from_the_environment_and_flags_win() {
    let running = Running::start_with(None, &["--engine", "epoll"], |command| {
        command
            .env("SLUICE_SHARDS", "3")
            .env("SLUICE_ENGINE", "auto");
    });
    let page = running.json("/shards");
    let shards = page["shards"].as_array().expect("a list");
    assert_eq!(shards.len(), 3);
    assert!(
        shards.iter().all(|shard| shard["engine"] == "epoll"),
        "{page}"
    );
}

#[test]
fn the_log_can_be_json() {
    let mut running = Running::start_with(None, &["--shards", "1"], |command| {
        command.env("SLUICE_LOG_FORMAT", "json");
    });
    let line = running.wait_log("admin server is listening");
    let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
    assert_eq!(line["message"], "admin server is listening");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["address"], running.admin.to_string());
}

#[test]
fn the_password_cache_can_be_turned_off_and_outlived() {
    let policy = login_policy(broker(), SECRET);
    for flags in [["--auth-cache", "0"], ["--auth-cache-time", "0s"]] {
        let running = Running::start_ready(&policy, &["--shards", "1", flags[0], flags[1]]);
        let port = running.listener("devices");
        for round in 1..=3 {
            let mut device = Device::connect(port, "c", Some(("u", "secret")));
            assert_eq!(device.connack(), 0);
            assert_eq!(hashes(&running), f64::from(round), "{flags:?}");
        }
    }
}

#[test]
fn a_password_that_waits_too_long_is_told_busy() {
    let policy = login_policy(broker(), &SLOW_SECRET.replace("$12$", "$14$"));
    let args = ["--shards", "1", "--auth-threads", "1"];
    let running = Running::start_ready(
        &policy,
        &[&args[..], &["--auth-deadline", "100ms"]].concat(),
    );
    let port = running.listener("devices");
    let mut devices =
        ["one", "another"].map(|password| Device::connect(port, password, Some(("u", password))));
    for device in &mut devices {
        assert_eq!(device.connack(), 3, "server unavailable");
    }
    assert_eq!(
        hashes(&running),
        1.0,
        "nobody waited for the second any more"
    );
}

// ---- reload

#[test]
fn s18_a_bad_file_is_refused_whole_and_the_old_generation_stays() {
    let policy = open_policy(broker());
    let mut running = Running::start_ready(&policy, &["--shards", "2"]);
    let before = running.json("/policy")["active"].clone();
    let port = running.listener("devices");

    let worse = policy
        .replace("decision: allow", "decision: maybe")
        .replace("anonymous:", "anonymus:");
    running.replace_policy(&worse);
    let answer = running.wait_for("/policy", |answer| {
        !answer.body.contains("\"rejected\":null")
    });
    let page: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(page["active"], before);
    assert_eq!(page["delivered"], before);
    assert_eq!(page["desired"]["generation"], 2);
    assert_eq!(page["rejected"]["generation"], 2);
    let errors = page["rejected"]["errors"].as_array().expect("a list");
    assert_eq!(errors.len(), 2, "all errors at once: {errors:?}");
    for (place, error) in [(":2:", &errors[0]), (":8:", &errors[1])] {
        let error = error.as_str().expect("text");
        assert!(error.contains(&format!("policy.yaml{place}")), "{error}");
        running.wait_log(error);
    }
    assert_eq!(running.metric("sluice_policy_rejected_total "), Some(1.0));
    assert_eq!(
        running.metric("sluice_policy_generation{stage=\"active\"} "),
        Some(1.0)
    );
    assert_eq!(running.get("/readyz").status, 200);
    assert_eq!(running.listener("devices"), port);
    assert_eq!(Device::connect(port, "still-served", None).connack(), 0);
}

#[test]
fn a_port_in_use_refuses_the_whole_generation() {
    let upstream = broker();
    let policy = open_policy(upstream);
    let running = Running::start_ready(&policy, &["--shards", "2"]);
    let before = running.json("/listeners");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound");
    let second = format!(
        "listeners:\n  - {{name: second, address: '{address}', upstream: broker, anonymous: {{group: guests}}}}"
    );
    running.replace_policy(&policy.replace("listeners:", &second));
    let answer = running.wait_for("/policy", |answer| {
        !answer.body.contains("\"rejected\":null")
    });
    assert!(
        answer.body.contains("second") && answer.body.contains(&address.to_string()),
        "{}",
        answer.body
    );
    assert_eq!(running.json("/listeners"), before);
    assert_eq!(
        running.metric("sluice_policy_generation{stage=\"delivered\"} "),
        Some(1.0)
    );
}

#[test]
fn listeners_come_and_go_with_the_generations() {
    let policy = open_policy(broker());
    let running = Running::start_ready(&policy, &["--shards", "2"]);
    let first = running.listener("devices");
    let two = policy.replace(
        "groups:",
        "  - {name: second, address: '127.0.0.1:0', upstream: broker, anonymous: {group: guests}}\ngroups:",
    );
    running.replace_policy(&two);
    running.wait_for("/policy", |answer| {
        answer.body.contains("\"active\":{\"generation\":2")
    });
    let second = running.listener("second");
    assert_eq!(
        running.listener("devices"),
        first,
        "what stays is not disturbed"
    );
    assert_eq!(Device::connect(second, "a", None).connack(), 0);
    let mut stays = Device::connect(first, "stays", None);
    assert_eq!(stays.connack(), 0);
    let mut goes = Device::connect(second, "goes", None);
    assert_eq!(goes.connack(), 0);

    running.replace_policy(&policy);
    goes.closed();
    running.wait_for("/policy", |answer| {
        answer.body.contains("\"active\":{\"generation\":3")
    });
    running.wait_for("/sessions", |_| {
        std::net::TcpStream::connect(second).is_err()
    });
    assert_eq!(Device::connect(first, "b", None).connack(), 0);
    stays.stream.write_all(&[0xc0, 0]).expect("still open");
}

#[test]
fn a_listener_moves_to_another_address() {
    let policy = open_policy(broker());
    for engine in ["auto", "epoll"] {
        let running = Running::start_ready(&policy, &["--shards", "2", "--engine", engine]);
        let before = running.listener("devices");
        let mut stays = Device::connect(before, "stays", None);
        assert_eq!(stays.connack(), 0);
        running.replace_policy(&policy.replace("127.0.0.1:0", "127.0.0.2:0"));
        running.wait_for("/policy", |answer| {
            answer.body.contains("\"active\":{\"generation\":2")
        });
        let after = running.listener("devices");
        assert_eq!(after.ip().to_string(), "127.0.0.2");
        for number in 0..8 {
            let mut device = Device::connect(after, &format!("c{number}"), None);
            assert_eq!(device.connack(), 0, "every shard accepts");
        }
        running.wait_for("/readyz", |_| std::net::TcpStream::connect(before).is_err());
        let ready = running.get("/readyz?verbose").body;
        for said in ["\"ready\":true", "\"reasons\":[]", "\"degraded\":[]"] {
            assert!(ready.contains(said), "{said} in {ready}");
        }
        stays.stream.write_all(&[0xc0, 0]).expect("still open");
    }
}

// ---- passwords

fn hashes(running: &Running) -> f64 {
    running
        .metric("sluice_auth_hashes_total ")
        .expect("the metric")
}

#[test]
fn s12_an_unknown_user_costs_the_same_work_and_a_reconnect_costs_none() {
    let running = Running::start_ready(&login_policy(broker(), SECRET), &["--shards", "2"]);
    let port = running.listener("devices");
    for (note, login, code, cost) in [
        ("the first time", ("u", "secret"), 0, 1.0),
        ("again: no second hash", ("u", "secret"), 0, 0.0),
        ("wrong", ("u", "wrong"), 4, 1.0),
        (
            "wrong again: refusals are not remembered",
            ("u", "wrong"),
            4,
            1.0,
        ),
        ("unknown: the same work", ("nobody", "secret"), 4, 1.0),
        ("unknown again", ("nobody", "secret"), 4, 1.0),
    ] {
        let before = hashes(&running);
        let mut device = Device::connect(port, "c", Some(login));
        assert!(matches!(device.connack(), got if got == code), "{note}");
        assert_eq!(hashes(&running) - before, cost, "{note}");
    }
}

#[test]
fn s12_a_reconnect_storm_costs_no_second_hash() {
    let running = Running::start_ready(&login_policy(broker(), SECRET), &["--shards", "2"]);
    let port = running.listener("devices");
    assert_eq!(
        Device::connect(port, "first", Some(("u", "secret"))).connack(),
        0
    );
    assert_eq!(hashes(&running), 1.0);
    let mut storm: Vec<Device> = (0..100)
        .map(|number| Device::connect(port, &format!("c{number}"), Some(("u", "secret"))))
        .collect();
    assert!(storm.iter_mut().all(|device| device.connack() == 0));
    assert_eq!(hashes(&running), 1.0);
}

#[test]
fn wrong_logins_from_one_address_lock_no_other_out() {
    const WRONG: usize = 16;
    let policy = login_policy(broker(), SLOW_SECRET);
    let args = ["--shards", "1", "--auth-threads", "1", "--auth-queue", "4"];
    let running = Running::start_ready(&policy, &[&args[..], &["--auth-deadline", "1h"]].concat());
    let port = running.listener("devices");
    let mut wrong: Vec<Device> = (0..WRONG)
        .map(|number| {
            let password = format!("wrong-{number}");
            let login = Some(("u", password.as_str()));
            Device::connect_from([127, 0, 0, 2], port, &format!("w{number}"), login)
        })
        .collect();
    let mut right = Device::connect(port, "right", Some(("u", "secret")));
    assert_eq!(right.connack(), 0, "another address has its turn");
    let codes: Vec<u8> = wrong.iter_mut().map(Device::connack).collect();
    let count = |code: u8| codes.iter().filter(|got| **got == code).count();
    assert!(count(3) > 0, "the queue was full: {codes:?}");
    assert_eq!(count(3) + count(4), WRONG, "{codes:?}");
}

#[test]
fn s12_a_changed_password_counts_at_once() {
    let upstream = broker();
    let running = Running::start_ready(&login_policy(upstream, SECRET), &["--shards", "1"]);
    let port = running.listener("devices");
    assert_eq!(
        Device::connect(port, "a", Some(("u", "secret"))).connack(),
        0
    );
    running.replace_policy(&login_policy(upstream, OTHER));
    running.wait_for("/policy", |answer| {
        answer.body.contains("\"active\":{\"generation\":2")
    });
    assert_eq!(
        Device::connect(port, "b", Some(("u", "secret"))).connack(),
        4,
        "the cache does not remember it"
    );
    assert_eq!(
        Device::connect(port, "c", Some(("u", "other"))).connack(),
        0
    );
}

// ---- the end

#[test]
fn sigterm_drains_and_ends_with_0() {
    let running = Running::start_ready(
        &open_policy(broker()),
        &["--shards", "2", "--drain-time", "200ms"],
    );
    let port = running.listener("devices");
    let mut devices: Vec<Device> = (0..4)
        .map(|n| Device::connect(port, &format!("c{n}"), None))
        .collect();
    assert!(devices.iter_mut().all(|device| device.connack() == 0));
    running.signal(Signal::TERM);
    devices.iter_mut().for_each(Device::closed);
    let (status, log) = running.end();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(
        std::net::TcpStream::connect(port).is_err(),
        "the port is free"
    );
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let mut running = Running::start_ready(
        &open_policy(broker()),
        &["--shards", "1", "--drain-time", "1h"],
    );
    let port = running.listener("devices");
    let mut devices: Vec<Device> = (0..4)
        .map(|n| Device::connect(port, &format!("c{n}"), None))
        .collect();
    assert!(devices.iter_mut().all(|device| device.connack() == 0));
    running.signal(Signal::TERM);
    running.wait_log("draining");
    let ready = running.wait_for("/readyz?verbose", |answer| answer.status == 503);
    assert!(ready.body.contains("draining"), "{}", ready.body);
    running.signal(Signal::TERM);
    let (status, log) = running.end();
    assert_eq!(status.code(), Some(143), "{log:#?}");
    assert_eq!(status.signal(), None);
}

/// Right after SIGTERM one shard is drained and gone, the other still has the device: who is left can be asked.
#[test]
fn sessions_are_listed_during_a_drain() {
    let mut running = Running::start_ready(
        &open_policy(broker()),
        &["--shards", "2", "--drain-time", "600s"],
    );
    let mut device = Device::connect(running.listener("devices"), "last-one", None);
    assert_eq!(device.connack(), 0);
    running.signal(Signal::TERM);
    running.wait_log("shard is drained");
    let mut listed = Vec::new();
    let mut path = "/sessions".to_owned();
    loop {
        let answer = running.get(&path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let page: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        listed.extend(page["sessions"].as_array().expect("a list").clone());
        match page["next"].as_str() {
            Some(next) => path = format!("/sessions?after={next}"),
            None => break,
        }
    }
    assert!(listed.len() <= 1, "{listed:?}");
    running.signal(Signal::TERM);
}

// ---- the admin server

#[test]
fn metrics_parse_and_have_bounded_labels_only() {
    let running = Running::start_ready(&open_policy(broker()), &["--shards", "2"]);
    let port = running.listener("devices");
    let mut device = Device::connect(port, "client-id-of-a-device", None);
    assert_eq!(device.connack(), 0);
    device
        .stream
        .write_all(b"\x30\x0f\x00\x0bsecret/pathxx")
        .expect("sent");
    running.wait_for("/metrics", |answer| {
        answer
            .body
            .contains("sluice_publish_total{direction=\"up\",result=\"forwarded\"} 1")
    });
    let page = running.get("/metrics").body;
    let known = [
        "action",
        "cause",
        "direction",
        "edit",
        "engine",
        "event",
        "le",
        "leg",
        "limit",
        "listener",
        "outcome",
        "reason",
        "result",
        "shard",
        "side",
        "stage",
        "state",
        "upstream",
        "version",
    ];
    let mut described = std::collections::BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (kind, name, text) = (words.next(), words.next(), words.next());
            let text = text.unwrap_or_default();
            assert!(!text.is_empty(), "{line}");
            if kind == Some("HELP") {
                assert!(is_one_sentence(text), "{line}");
            }
            described
                .entry(name.expect("a name").to_owned())
                .or_insert_with(Vec::new)
                .push(kind.expect("a kind"));
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and its value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("closed")),
            None => (series, ""),
        };
        assert!(
            name.starts_with("sluice_") || name.starts_with("process_"),
            "{line}"
        );
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        assert_eq!(
            described.get(family).map(Vec::as_slice),
            Some(&["HELP", "TYPE"][..]),
            "{line}"
        );
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (label, _) = label.split_once('=').expect("a value");
            assert!(known.contains(&label), "{line}");
        }
    }
    for text in ["client-id-of-a-device", "secret/path", "permit-all"] {
        assert!(!page.contains(text), "{text} became a label");
    }
    assert!(page.lines().count() < 400, "{} lines", page.lines().count());
    for series in [
        "process_cpu_seconds_total ",
        "process_max_fds ",
        "process_open_fds ",
        "process_resident_memory_bytes ",
        "process_start_time_seconds ",
        "process_virtual_memory_bytes ",
        concat!(
            "sluice_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
        // Counters are there before anything was counted.
        "sluice_sessions_ended_total{cause=\"kicked\"} 0",
        "sluice_policy_rejected_total 0",
        "sluice_auth_failures_total 0",
    ] {
        let has = page.lines().any(|line| line.starts_with(series));
        assert!(has, "{series} in {page}");
    }
    // One CONNECT and one PUBLISH went up, one CONNACK came down: each leg carries the same bytes in and out.
    let bytes = |name: &str, leg: &str| -> u64 {
        let series = format!("sluice_{name}_bytes_total{{leg=\"{leg}\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&*series));
        value
            .and_then(|value| value.parse().ok())
            .expect("a number")
    };
    assert!(bytes("received", "downstream") > 30 && bytes("sent", "upstream") > 30);
    assert_eq!(bytes("received", "upstream"), bytes("sent", "downstream"));
    check_with_promtool(&page);
}

/// It ends, and no other begins in it or is needed to read it.
fn is_one_sentence(help: &str) -> bool {
    let leans = ["The same", "As above", "Of these", "Of them"];
    help.ends_with('.') && !help.contains(". ") && !leans.iter().any(|lean| help.starts_with(lean))
}

fn check_with_promtool(page: &str) {
    let mut promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool, which .ci/needs installs");
    let mut stdin = promtool.stdin.take().expect("piped");
    stdin.write_all(page.as_bytes()).expect("read");
    drop(stdin);
    let output = promtool.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn every_page_ends_with_a_line_end() {
    let running = Running::start_ready(&open_policy(broker()), &["--shards", "1"]);
    for page in [
        "/",
        "/livez",
        "/readyz",
        "/readyz?verbose",
        "/metrics",
        "/policy",
        "/fleet",
        "/listeners",
        "/upstreams",
        "/shards",
        "/sessions",
        "/sessions?after=x",
        "/log",
    ] {
        let body = running.get(page).body;
        assert!(
            body.ends_with('\n') && !body.ends_with("\n\n"),
            "{page}: {body:?}"
        );
    }
}

#[test]
fn the_log_level_changes_at_run_time() {
    let mut running = Running::start_ready(
        &open_policy(broker()),
        &[
            "--shards",
            "1",
            "--log-level",
            "warn,sluice_dataplane::admin=info",
        ],
    );
    assert_eq!(running.put("/log", "loud").status, 400);
    assert_eq!(running.put("/log", &"info,".repeat(2000)).status, 413);
    let answer = running.put("/log", "info");
    assert_eq!((answer.status, answer.body.as_str()), (200, "info\n"));
    assert_eq!(running.get("/log").body, "info\n");
    running.replace_policy(&open_policy(broker()));
    running.wait_log("policy is active on every shard");
}

#[test]
fn how_sessions_end_is_logged_as_soon_as_somebody_wants_to_know() {
    let mut running = Running::start_ready(
        &open_policy(broker()),
        &["--shards", "1", "--log-format", "text"],
    );
    let port = running.listener("devices");
    // Breaks the protocol with a second CONNECT, and waits for the end.
    let break_it = || {
        let mut device = Device::connect(port, "bad\nid", None);
        assert_eq!(device.connack(), 0);
        device
            .stream
            .write_all(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05again")
            .expect("sent");
        let _ = device.stream.read_to_end(&mut Vec::new());
    };
    break_it();
    assert_eq!(running.logged("session ended"), None);
    assert_eq!(
        running.put("/log", "info,sluice::session=debug").status,
        200
    );
    // Shards are told at the next tick of the control thread.
    let line = (0..10_000).find_map(|_| {
        break_it();
        running.logged("session ended")
    });
    let line = line.expect("a line");
    for text in [
        "DEBUG",
        "sluice::session",
        "cause=\"violation\"",
        "violation=\"SecondConnect\"",
        "clause=\"3.1.1 MQTT-3.1.0-2\"",
        "client_id=\"bad\\nid\"",
        "peer=127.0.0.1",
        "listener=\"devices\"",
        "open_for_ms=",
    ] {
        assert!(line.contains(text), "{text} in {line}");
    }
    assert!(!line.contains("again"), "nothing of what was sent");
}

#[test]
fn sessions_are_listed_in_pages() {
    let running = Running::start_ready(&open_policy(broker()), &["--shards", "2"]);
    let port = running.listener("devices");
    let mut devices: Vec<Device> = (0..7)
        .map(|n| Device::connect(port, &format!("c{n}"), None))
        .collect();
    assert!(devices.iter_mut().all(|device| device.connack() == 0));
    let mut seen = Vec::new();
    let mut path = "/sessions?limit=2".to_owned();
    for _ in 0..20 {
        let page = running.json(&path);
        let sessions = page["sessions"].as_array().expect("a list");
        assert!(sessions.len() <= 2, "{page}");
        for session in sessions {
            assert_eq!(session["listener"], "devices");
            seen.push(session["client_id"].as_str().expect("known").to_owned());
        }
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/sessions?limit=2&after={next}");
    }
    seen.sort();
    assert_eq!(seen, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);
    assert_eq!(running.get("/sessions?after=x").status, 400);
}

#[test]
fn decisions_are_logged_when_sampled() {
    let mut running = Running::start_ready(
        &open_policy(broker()),
        &[
            "--shards",
            "1",
            "--decision-log-sample",
            "1",
            "--log-format",
            "text",
        ],
    );
    let port = running.listener("devices");
    let mut device = Device::connect(port, "sampled", None);
    assert_eq!(device.connack(), 0);
    device
        .stream
        .write_all(b"\x30\x09\x00\x03a/bhush")
        .expect("sent");
    let line = running.wait_log("action=Publish");
    for text in [
        "sluice::decision",
        "client_id=\"sampled\"",
        "topic=\"a/b\"",
        "decision=\"allow\"",
        "peer=127.0.0.1:",
        "listener=\"devices\"",
        "qos=0",
        "payload_bytes=4",
        "rule=\"permit-all\"",
    ] {
        assert!(line.contains(text), "{text} in {line}");
    }
    assert!(!line.contains("hush"), "payloads are never logged");
}

#[test]
fn the_decision_log_is_switched_on_for_a_time_and_off() {
    let mut running = Running::start_ready(&open_policy(broker()), &["--shards", "1"]);
    let verbose = |running: &Running| running.json("/readyz?verbose")["decision_log"].clone();
    assert!(verbose(&running).is_null());
    let answer = running.put("/decisions", r#"{"for": "1h", "client_id": "wanted"}"#);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(verbose(&running)["client_id"], "wanted");
    assert!(verbose(&running)["until_unix_ms"].is_u64());
    assert_eq!(running.metric("sluice_decision_log"), Some(1.0));
    running.wait_log("decisions are logged");
    let port = running.listener("devices");
    for client_id in ["other", "wanted"] {
        let mut device = Device::connect(port, client_id, None);
        assert_eq!(device.connack(), 0);
    }
    let line = running.wait_log("sluice::decision");
    assert!(line.contains("wanted"), "the other is not logged: {line}");
    assert_eq!(running.put("/decisions", r#"{"denial": true}"#).status, 400);

    let ends = running.put("/decisions", r#"{"for": "1ms"}"#);
    assert_eq!(ends.status, 200);
    running.wait_log("decisions are not logged any more");
    assert!(verbose(&running).is_null());
    assert_eq!(running.metric("sluice_decision_log"), Some(0.0));
}

/// Text of clients comes out safe to show; a password never does, and a name that is no user's only as a length.
#[test]
fn refusals_are_shown_where_a_flag_enables_the_page() {
    let hidden = Running::start_ready(&open_policy(broker()), &[]);
    let answer = hidden.get("/denials");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("--admin-denials"), "{}", answer.body);

    let running = Running::start_ready(&open_policy(broker()), &["--admin-denials"]);
    let port = running.listener("devices");
    let login = Some(("token-ey.J", "hush-hush"));
    let mut device = Device::connect(port, "d\u{202e}\n1", login);
    assert_eq!(device.connack(), 4);
    let page = running.json("/denials");
    let denials = page["denials"].as_array().expect("a list");
    assert_eq!(denials.len(), 1, "{page}");
    let line = &denials[0];
    assert_eq!(line["reason"], "user_unknown");
    assert_eq!(line["action"], "connect");
    assert_eq!(line["listener"], "devices");
    assert_eq!(line["client_id"], "d\\u{202e}\\u{a}1");
    let user = line["user"].as_str().expect("a user");
    assert!(user.starts_with("(not shown: 10 bytes, mark "), "{user}");
    assert!(
        line["peer"]
            .as_str()
            .expect("a peer")
            .starts_with("127.0.0.1:")
    );
    for secret in ["token-ey.J", "hush"] {
        assert!(!page.to_string().contains(secret), "{page}");
    }
    let next = page["next"].as_str().expect("a cursor");
    let found = |query: &str| {
        let page = running.json(&format!("/denials?{query}"));
        page["denials"].as_array().expect("a list").len()
    };
    assert_eq!(found(&format!("after={next}")), 0, "nothing new");
    assert_eq!(found("username=token-ey.J"), 1, "found by one who knows it");
    assert_eq!(
        (found("reason=credentials"), found("reason=limits")),
        (1, 0)
    );
    assert_eq!(
        (found("address=127.0.0.1"), found("address=127.0.0.2")),
        (1, 0)
    );
    assert_eq!(running.get("/denials?after=x").status, 400);
}
