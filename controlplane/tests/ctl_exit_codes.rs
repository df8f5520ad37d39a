//! `sluicectl` as scripts see it: exit codes, JSON, and what it really asks, against a scripted peer.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests too

mod ctl_peer;

use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;

use ctl_peer::{Ended, Peer, Script, TOKEN, sluicectl};
use sluice_proto::control::v1::*;
use sluice_proto::v1::{GenerationId, RulePlace};
use tonic::Code;

const GOOD: &str = "\
default: deny
listeners:
  - name: main
    address: 127.0.0.1:1883
    upstream: broker
upstreams:
  - name: broker
    endpoints: [tcp://127.0.0.1:1884]
";

fn id(number: u64) -> GenerationId {
    GenerationId {
        store: vec![1; 16],
        number,
        digest: vec![u8::try_from(number).unwrap(); 32],
    }
}

fn generation(number: u64, state: GenerationState) -> Generation {
    Generation {
        id: Some(id(number)),
        base: number - 1,
        state: state.into(),
        ..Generation::default()
    }
}

fn node(name: &str, state: NodeState, active: u64) -> Node {
    Node {
        name: name.into(),
        state: state.into(),
        connected: state != NodeState::Offline,
        desired: Some(id(7)),
        active: Some(id(active)),
        shards: vec![NodeShard {
            active: Some(id(active)),
            ..NodeShard::default()
        }],
        ..Node::default()
    }
}

fn seen(nodes: &[(&str, NodeState, u64)]) -> Option<NodesResponse> {
    Some(NodesResponse {
        nodes: nodes
            .iter()
            .map(|(name, state, active)| node(name, *state, *active))
            .collect(),
        released: Some(id(7)),
    })
}

/// A peer on which generation 6 is in force and 7 can be released.
fn releasing(watches: Vec<Vec<Option<NodesResponse>>>) -> Script {
    Script {
        history: HistoryResponse {
            generations: vec![generation(7, GenerationState::Applied)],
            newest: 7,
            released: 6,
        },
        apply: ApplyResponse {
            generation: Some(generation(7, GenerationState::Applied)),
            ..ApplyResponse::default()
        },
        release: ReleaseResponse {
            warnings: Vec::new(),
            generation: Some(generation(7, GenerationState::Released)),
        },
        watches: watches.into(),
        ..Script::default()
    }
}

fn run(script: Script, words: &[&str]) -> Ended {
    let peer = Peer::start(script);
    let ended = peer.run(words);
    peer.stop();
    ended
}

#[test]
fn every_refusal_has_its_exit_code_in_both_forms() {
    for (code, exit, word) in [
        (Code::Aborted, 4, "conflict"),
        (Code::Unauthenticated, 5, "unauthenticated"),
        (Code::PermissionDenied, 5, "permission_denied"),
        (Code::InvalidArgument, 2, "invalid_argument"),
        (Code::NotFound, 6, "not_found"),
        (Code::FailedPrecondition, 6, "failed_precondition"),
        (Code::ResourceExhausted, 6, "resource_exhausted"),
        (Code::Unavailable, 6, "unavailable"),
        (Code::Unimplemented, 6, "unimplemented"),
    ] {
        let script = || Script {
            failures: vec![("release", code, "said so")],
            ..releasing(vec![])
        };
        let text = run(script(), &["release", "7"]);
        assert_eq!(
            (text.code, text.out.as_str()),
            (exit, ""),
            "{code:?}: {}",
            text.err
        );
        assert!(
            text.err.starts_with("error: said so") && text.err.contains("(request r-1)"),
            "{}",
            text.err
        );
        let json = run(script(), &["release", "7", "--output", "json"]);
        let error = &json.json()["error"];
        assert_eq!(
            (json.code, error["code"].as_str()),
            (exit, Some(word)),
            "{code:?}"
        );
        assert_eq!(
            (error["exit"].as_i64(), error["request_id"].as_str()),
            (Some(exit.into()), Some("r-1"))
        );
        assert_eq!(json.err, "");
    }
}

#[test]
fn who_cannot_be_reached_is_exit_5_and_a_wrong_command_exit_2() {
    // A port that was free a moment ago, and a listener that nobody accepts from.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let gone = format!("http://127.0.0.1:{port}");
    let base = |server: &str| {
        let mut command = sluicectl();
        command.args(["--server", server, "status", "--connect-timeout", "2s"]);
        command
    };
    let unreachable = Ended::from_output(base(&gone).env("SLUICE_TOKEN", TOKEN).output().unwrap());
    assert_eq!(unreachable.code, 5, "{}", unreachable.err);
    assert!(
        unreachable.err.contains("cannot reach the control plane"),
        "{}",
        unreachable.err
    );
    let no_token = Ended::from_output(base(&gone).output().unwrap());
    assert_eq!(no_token.code, 5);
    assert!(no_token.err.contains("--token-file"), "{}", no_token.err);
    // Never a token in the clear beyond this machine: refused before anything is opened.
    let far = Ended::from_output(
        base("http://192.0.2.1:1")
            .env("SLUICE_TOKEN", TOKEN)
            .output()
            .unwrap(),
    );
    assert_eq!(far.code, 2, "{}", far.err);
    assert!(far.err.contains("a token is never sent there") && !far.err.contains(TOKEN));
    let words = Ended::from_output(
        sluicectl()
            .args(["relase", "7", "--output", "json"])
            .output()
            .unwrap(),
    );
    assert_eq!(
        (words.code, words.json()["error"]["code"].as_str()),
        (2, Some("usage"))
    );
    let help = Ended::from_output(sluicectl().arg("--help").output().unwrap());
    assert_eq!(help.code, 0);
    for exit in [
        "  0  ", "  1  ", "  2  ", "  3  ", "  4  ", "  5  ", "  6  ",
    ] {
        assert!(help.out.contains(exit), "{exit} is not in the help");
    }
}

#[test]
fn release_wait_ends_when_nothing_is_pending() {
    use NodeState::{Active, Delivering, Offline, Rejected, Sweeping};
    for (watches, exit, note) in [
        (
            vec![vec![
                seen(&[("a", Delivering, 6), ("b", Sweeping, 6)]),
                seen(&[("a", Active, 7), ("b", Sweeping, 6)]),
                seen(&[("a", Active, 7), ("b", Active, 7)]),
            ]],
            0,
            "all active",
        ),
        (
            vec![vec![seen(&[("a", Active, 7), ("b", Rejected, 6)])]],
            1,
            "one rejected",
        ),
        (
            vec![vec![seen(&[("a", Active, 7), ("b", Offline, 6)])]],
            3,
            "one offline",
        ),
        (
            vec![
                vec![seen(&[("a", Sweeping, 6)]), None],
                vec![seen(&[("a", Active, 7)])],
            ],
            0,
            "the control plane restarts in between",
        ),
        (vec![vec![seen(&[])]], 0, "no nodes"),
        (
            vec![vec![Some(NodesResponse {
                nodes: vec![],
                released: Some(id(9)),
            })]],
            4,
            "somebody released another",
        ),
    ] {
        let ended = run(
            releasing(watches),
            &["release", "7", "--wait", "--output", "json"],
        );
        assert_eq!(ended.code, exit, "{note}: {}{}", ended.out, ended.err);
        assert_eq!(ended.json()["generation"]["number"], 7, "{note}");
    }
}

#[test]
fn release_wait_names_those_who_are_not_there() {
    use NodeState::{Active, Offline, Rejected};
    let watches = vec![vec![seen(&[
        ("a", Active, 7),
        ("b", Offline, 6),
        ("c", Rejected, 6),
    ])]];
    let ended = run(releasing(watches.clone()), &["release", "7", "--wait"]);
    let expected = "\
generation 7 is in force
active on 1 node
c rejected generation 7: it lacks a feature that a row needs
offline: b; it goes on with generation 6
";
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (1, expected),
        "{}",
        ended.err
    );
    let wait = run(
        releasing(watches),
        &["release", "7", "--wait", "--output", "json"],
    )
    .json()["wait"]
        .clone();
    assert_eq!(wait["offline"][0], "b");
    assert_eq!(wait["rejected"][0]["name"], "c");
}

#[test]
fn release_wait_gives_up_when_the_time_is_over() {
    let watches = vec![vec![seen(&[("a", NodeState::Sweeping, 6)])]];
    let words = [
        "release",
        "7",
        "--wait",
        "--timeout",
        "200ms",
        "--output",
        "json",
    ];
    let ended = run(releasing(watches), &words);
    assert_eq!(ended.code, 3, "{}", ended.err);
    assert_eq!(ended.json()["wait"]["end"], "timed_out");
    assert_eq!(ended.json()["wait"]["pending"][0], "a");
    // Progress is a line of its own where nobody sits at a terminal.
    assert!(
        ended
            .err
            .starts_with("active on 0 of 1 connected nodes, waiting for a (sweeping)\n"),
        "{}",
        ended.err
    );
}

#[test]
fn a_release_names_the_state_that_its_author_saw() {
    let peer = Peer::start(releasing(vec![]));
    assert_eq!(peer.run(&["release", "7"]).code, 0);
    assert_eq!(peer.run(&["release", "7", "--expect", "3"]).code, 0);
    assert_eq!(peer.run(&["rollback", "5"]).code, 0);
    let asked: Vec<_> = peer
        .asked()
        .into_iter()
        .filter(|(call, _)| *call != "history")
        .collect();
    for ((call, what), (expected_call, expected)) in asked.iter().zip([
        ("release", "expected_released: Some(6)"),
        ("release", "expected_released: Some(3)"),
        ("rollback", "expected_released: Some(6)"),
    ]) {
        assert!(
            *call == expected_call && what.contains(expected),
            "{call} {what}"
        );
    }
    assert_eq!(asked.len(), 3);
    peer.stop();
}

#[test]
fn a_second_rollback_says_where_it_goes_and_wants_to_be_told() {
    let script = || Script {
        history: HistoryResponse {
            generations: vec![Generation {
                base: 5,
                rollback_of: Some(4),
                ..generation(6, GenerationState::Released)
            }],
            newest: 6,
            released: 6,
        },
        release: ReleaseResponse {
            generation: Some(generation(7, GenerationState::Released)),
            warnings: vec![],
        },
        ..Script::default()
    };
    for words in [
        &["rollback"][..],
        &["rollback", "--output", "json"],
        &["rollback", "--expect", "6"],
    ] {
        let peer = Peer::start(script());
        let ended = peer.run(words);
        assert_eq!(ended.code, 2, "{words:?}: {}", ended.out);
        let said = ended.out + &ended.err;
        for part in [
            "generation 6",
            "left generation 5",
            "generation 4",
            "--to N",
            "--yes",
        ] {
            assert!(said.contains(part), "{words:?}: {part}: {said}");
        }
        let asked = peer.asked();
        assert!(
            !asked.iter().any(|(name, _)| *name == "rollback"),
            "{words:?}: {asked:?}"
        );
        peer.stop();
    }
    for (words, target) in [
        (&["rollback", "--yes"][..], "generation: None"),
        (&["rollback", "--to", "4"], "generation: Some(4)"),
        (&["rollback", "4"], "generation: Some(4)"),
    ] {
        let peer = Peer::start(script());
        assert_eq!(peer.run(words).code, 0, "{words:?}");
        let asked = peer.asked();
        let (_, what) = asked
            .iter()
            .find(|(name, _)| *name == "rollback")
            .expect("asked");
        assert!(what.contains(target), "{words:?}: {what}");
        peer.stop();
    }
}

#[test]
fn a_node_that_there_is_not_is_found_before_anything_is_released() {
    let script = Script {
        failures: vec![("list", Code::NotFound, "there is no node x")],
        ..releasing(vec![])
    };
    let peer = Peer::start(script);
    assert_eq!(peer.run(&["release", "7", "--wait", "--node", "x"]).code, 6);
    assert!(!peer.asked().iter().any(|(call, _)| *call == "release"));
    peer.stop();
}

#[test]
fn apply_sends_the_document_in_pieces_and_releases_against_what_it_was_compared_with() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, format!("{GOOD}#{}", "x".repeat(3 << 20))).unwrap();
    let peer = Peer::start(releasing(vec![vec![seen(&[("a", NodeState::Active, 7)])]]));
    let file = file.to_str().unwrap();
    let ended = peer.run(&[
        "apply",
        "-f",
        file,
        "--release",
        "--wait",
        "--comment",
        "why",
    ]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let asked = peer.asked();
    let find = |name| {
        asked
            .iter()
            .find(|(call, _)| *call == name)
            .map(|(_, what)| what.as_str())
            .unwrap()
    };
    let apply = find("apply");
    assert!(
        apply.contains("expected_newest: Some(7)")
            && apply.contains("[1048576][1048576][1048576]["),
        "{apply}"
    );
    assert!(apply.contains("comment: Some(\"why\")"));
    assert!(
        find("release").contains("expected_released: Some(6)"),
        "{}",
        find("release")
    );
    peer.stop();
}

#[test]
fn a_wrong_document_is_exit_1_with_every_place_online_and_offline() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    let text = "default: maybe\nlisteners:\n  - nmae: x\nrulez: []\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let errors =
        sluice_policy::compile(text, file, sluice_policy::Generation(1), None).unwrap_err();
    assert!(errors.problems().len() > 2, "{errors}");
    let offline = Ended::from_output(sluicectl().args(["validate", "-f", file]).output().unwrap());
    assert_eq!(
        (offline.code, offline.out.trim_end()),
        (1, errors.to_string().as_str())
    );
    let problem = |problem: &sluice_policy::Problem| DocumentProblem {
        line: problem.at.line,
        column: problem.at.column,
        message: problem.message.clone(),
    };
    let problems = DocumentProblems {
        problems: errors.problems().iter().map(problem).collect(),
        left_off: 0,
    };
    let script = Script {
        problems: Some(problems.clone()),
        validate: ValidateResponse {
            problems: Some(problems),
            ..ValidateResponse::default()
        },
        ..Script::default()
    };
    let peer = Peer::start(script);
    let online = peer.run(&["validate", "-f", file]);
    assert_eq!((online.code, online.out), (1, offline.out.clone()));
    let applied = peer.run(&["apply", "-f", file]);
    assert_eq!((applied.code, applied.out.as_str()), (1, ""));
    assert!(applied.err.starts_with(&offline.out), "{}", applied.err);
    let json = peer.run(&["apply", "-f", file, "--output", "json"]).json();
    assert_eq!(
        json["error"]["problems"].as_array().map(Vec::len),
        Some(errors.problems().len())
    );
    peer.stop();
}

#[test]
fn the_problems_of_a_hopeless_document_fit_into_one_answer() {
    let problem = |line| DocumentProblem {
        line,
        column: 3,
        message:
            "unknown key `something-rather-long-to-be-read`; known are: address, name, upstream"
                .into(),
    };
    let problems = DocumentProblems {
        problems: (1..=1000).map(problem).collect(),
        left_off: 5,
    };
    let script = Script {
        problems: Some(problems),
        ..Script::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, GOOD).unwrap();
    let ended = run(script, &["apply", "-f", file.to_str().unwrap()]);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert_eq!(ended.err.lines().count(), 1002);
}

/// Warned of by itself or by the control plane, or refused by a node: with `--strict` that is an error.
#[test]
fn validate_takes_warnings_for_errors_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    // Good, and no client can connect.
    std::fs::write(&file, "default: deny\n").unwrap();
    let file = file.to_str().unwrap();
    for (strict, code, word) in [(&[][..], 0, "warning: "), (&["--strict"], 1, "error: ")] {
        let words = [&["validate", "-f", file][..], strict].concat();
        let output = sluicectl().args(&words).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let text = String::from_utf8(output.stdout).unwrap();
        let line = format!("{word}no client can connect: there is no listener\n");
        assert!(text.starts_with(&line), "{text}");
        assert_eq!(text.contains(": ok (1 row)"), code == 0, "{text}");
    }
}

#[test]
fn validate_needs_no_server() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, GOOD).unwrap();
    let output = sluicectl()
        .args(["validate", "--output", "json", "-f"])
        .arg(&file)
        .output()
        .unwrap();
    let ended = Ended::from_output(output);
    assert_eq!(
        (ended.code, &ended.json()["online"]),
        (0, &serde_json::json!(false)),
        "{}",
        ended.err
    );
    assert_eq!(ended.json()["rows"], 3);
    let missing = Ended::from_output(
        sluicectl()
            .args(["validate", "-f", "/no/such/file"])
            .output()
            .unwrap(),
    );
    assert_eq!(missing.code, 2);
}

#[test]
fn secrets_go_where_they_were_asked_for_and_nowhere_else() {
    const SECRET: &str = "slc_aaaa_verysecret";
    let script = || Script {
        token: CreateTokenResponse {
            token: Some(Token {
                id: "aaaa".into(),
                ..Token::default()
            }),
            secret: SECRET.into(),
        },
        ..Script::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ci.token");
    let path = file.to_str().unwrap();
    let create = [
        "token",
        "create",
        "ci",
        "--role",
        "operator",
        "--lifetime",
        "7d",
    ];
    let peer = Peer::start(script());
    let filed = peer.run(&[&create[..], &["--output-file", path, "--output", "json"]].concat());
    assert_eq!(filed.code, 0, "{}", filed.err);
    assert!(!filed.out.contains("verysecret") && !filed.err.contains("verysecret"));
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!("{SECRET}\n")
    );
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let shown = peer.run(&[&create[..], &["--print"]].concat());
    assert_eq!(shown.out, format!("{SECRET}\n"));
    // A file that is there is seen before a token is made.
    let before = peer.asked().len();
    assert_eq!(
        peer.run(&[&create[..], &["--output-file", path]].concat())
            .code,
        2
    );
    assert_eq!(peer.asked().len(), before);
    assert!(
        peer.asked()[0].1.contains("lifetime_secs: Some(604800)"),
        "{:?}",
        peer.asked()
    );
    peer.stop();
    // And none is left when no token was made.
    let other = dir.path().join("other");
    let refused = Script {
        failures: vec![("create_token", Code::AlreadyExists, "there is one")],
        ..script()
    };
    let ended = run(
        refused,
        &[&create[..], &["--output-file", other.to_str().unwrap()]].concat(),
    );
    assert_eq!(ended.code, 6);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_backup_is_whole_and_private_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.db");
    let path = file.to_str().unwrap();
    let parts = vec![b"one ".to_vec(), b"two".to_vec()];
    let script = |backup| Script {
        backup,
        ..Script::default()
    };
    let ended = run(
        script(parts.clone()),
        &["--output", "json", "backup", "--output", path],
    );
    assert_eq!(
        (ended.code, &ended.json()["bytes"]),
        (0, &serde_json::json!(7)),
        "{}",
        ended.err
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"one two");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(script(parts), &["backup", "--output", path]).code, 2);
    let broken = dir.path().join("c.db");
    for (parts, note) in [(vec![b"one ".to_vec(), vec![]], "broke"), (vec![], "empty")] {
        let ended = run(
            script(parts),
            &["backup", "--output", broken.to_str().unwrap()],
        );
        assert_eq!(ended.code, 6, "{note}: {}", ended.err);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{note}");
    }
}

#[test]
fn rules_are_read_to_the_last_page_and_say_which_nodes_are_missing() {
    let page = |names: &[&str], next: Option<&str>| RulesResponse {
        rules: names
            .iter()
            .map(|name| FleetRule {
                place: Some(place(name)),
                nodes: 1,
                ..FleetRule::default()
            })
            .collect(),
        next: next.map(place),
        nodes: 1,
        by_default: 7,
        ..RulesResponse::default()
    };
    fn place(name: &str) -> RulePlace {
        RulePlace {
            name: name.into(),
            ..RulePlace::default()
        }
    }
    let last = RulesResponse {
        failed: vec![NodeAnswer {
            node: "b".into(),
            sessions: 0,
            error: "no answer in time".into(),
        }],
        left_off: 2,
        ..page(&["z"], None)
    };
    let pages = [page(&["x", "y"], Some("y")), page(&[], Some("yy")), last];
    let script = || Script {
        rules: VecDeque::from(pages.to_vec()),
        ..Script::default()
    };
    let peer = Peer::start(script());
    let ended = peer.run(&["rules", "--output", "json", "--unused", "--shadow"]);
    let json = ended.json();
    assert_eq!(
        (ended.code, json["rules"].as_array().map(Vec::len)),
        (3, Some(3))
    );
    assert_eq!(
        (
            &json["rules"][2]["name"],
            &json["failed"][0]["node"],
            &json["by_default"]
        ),
        (&"z".into(), &"b".into(), &7.into())
    );
    let asked = peer.asked();
    let flags = "only_unused: true, only_shadow: true";
    assert!(
        asked[2].1.contains("yy") && asked[2].1.contains(flags),
        "{asked:?}"
    );
    peer.stop();
    let ended = run(script(), &["rules"]);
    assert_eq!(ended.code, 3, "{}", ended.out);
    assert!(
        ended
            .out
            .contains("default decision was taken 7 times; counted on 1 node"),
        "{}",
        ended.out
    );
    for said in [
        "b is not counted: no answer in time",
        "2 decisions were not counted",
    ] {
        assert!(ended.err.contains(said), "{}", ended.err);
    }
    let none = run(
        Script {
            rules: VecDeque::from([page(&[], None)]),
            ..Script::default()
        },
        &["rules", "--unused"],
    );
    assert_eq!(none.code, 0);
    assert!(
        none.out.starts_with("every rule decided something\n"),
        "{}",
        none.out
    );
}

#[test]
fn denials_are_shown_with_what_is_missing() {
    let entry = |unix_ms: u64, client_id: &str| NodeDenial {
        node: "a".into(),
        denial: Some(sluice_proto::v1::Denial {
            unix_ms,
            peer: "192.0.2.7:4711".into(),
            client_id: client_id.into(),
            action: "publish".into(),
            reason: "no_rule".into(),
            topic: "x/y".into(),
            ..Default::default()
        }),
    };
    let first = DenialsResponse {
        denials: vec![entry(1000, "dev-1"), entry(2000, "dev-2")],
        left_off: 3,
        lost: 1,
        failed: vec![NodeAnswer {
            node: "b".into(),
            sessions: 0,
            error: "no answer in time".into(),
        }],
    };
    let script = |denials: &[DenialsResponse]| Script {
        denials: denials.to_vec(),
        ..Script::default()
    };
    let peer = Peer::start(script(std::slice::from_ref(&first)));
    let filters = [
        "--user",
        "ann",
        "--client-id",
        "dev-1",
        "--reason",
        "rules",
        "--node",
        "a",
    ];
    let words = [
        &["denials", "--address", "192.0.2.7", "--limit", "7"][..],
        &filters,
    ]
    .concat();
    let ended = peer.run(&words);
    assert_eq!(ended.code, 3, "{}", ended.err);
    assert!(
        ended.out.contains("CLIENT ID") && ended.out.contains("dev-2"),
        "{}",
        ended.out
    );
    for missing in [
        "3 refusals not shown",
        "1 refusal dropped",
        "b: no answer in time",
    ] {
        assert!(ended.err.contains(missing), "{missing} in {}", ended.err);
    }
    let asked = peer.asked();
    for sent in [
        "\"ann\"",
        "\"dev-1\"",
        "\"rules\"",
        "\"192.0.2.7\"",
        "Some(7)",
        "follow: false",
    ] {
        assert!(asked[0].1.contains(sent), "{sent} in {asked:?}");
    }
    peer.stop();

    let ended = run(
        script(std::slice::from_ref(&first)),
        &["denials", "--output", "json"],
    );
    let json = ended.json();
    assert_eq!(
        (ended.code, &json["lost"], &json["left_off"]),
        (3, &1.into(), &3.into())
    );
    assert_eq!(json["denials"][1]["client_id"], "dev-2");

    let none = run(script(&[DenialsResponse::default()]), &["denials"]);
    assert_eq!((none.code, &*none.out), (0, "no refusals\n"));
    assert_eq!(run(script(&[]), &["denials", "--address", "here"]).code, 2);
    assert_eq!(run(script(&[]), &["denials", "--limit", "501"]).code, 2);
}

/// The header stands once, in JSON each answer is a line, and an answer that ends is not a success.
#[test]
fn who_follows_denials_is_shown_each_once() {
    let answer = |client_id: &str| DenialsResponse {
        denials: vec![NodeDenial {
            node: "a".into(),
            denial: Some(sluice_proto::v1::Denial {
                client_id: client_id.into(),
                ..Default::default()
            }),
        }],
        ..DenialsResponse::default()
    };
    let answers = || Script {
        denials: vec![answer("one"), answer("two")],
        ..Script::default()
    };
    let text = run(answers(), &["denials", "--follow"]);
    assert_eq!(text.code, 5, "{}", text.err);
    assert_eq!(text.out.matches("CLIENT ID").count(), 1);
    assert!(text.out.contains("one") && text.out.contains("two"));
    let json = run(answers(), &["--output", "json", "denials", "--follow"]);
    for (line, client_id) in json.out.lines().zip(["one", "two"]) {
        let line: serde_json::Value = serde_json::from_str(line).expect("a document");
        assert_eq!(line["denials"][0]["client_id"], client_id);
    }
}

#[test]
fn sessions_are_read_to_the_last_page() {
    let page = |ids: &[&str], next: Option<&str>| SessionsResponse {
        sessions: ids
            .iter()
            .map(|id| NodeSession {
                node: "a".into(),
                session: Some(sluice_proto::v1::session_page::Session {
                    client_id: (*id).into(),
                    ..Default::default()
                }),
            })
            .collect(),
        next: next.map(Into::into),
        failed: vec![],
    };
    let failed = SessionsResponse {
        failed: vec![NodeAnswer {
            node: "b".into(),
            sessions: 0,
            error: "no answer in time".into(),
        }],
        ..page(&["z"], None)
    };
    let pages = [page(&["x", "y"], Some("1")), page(&[], Some("2")), failed];
    let script = |count: usize| Script {
        sessions: VecDeque::from(pages[..count].to_vec()),
        ..Script::default()
    };
    let peer = Peer::start(script(3));
    let ended = peer.run(&["sessions", "--output", "json", "--user", "ann"]);
    let json = ended.json();
    assert_eq!(
        (ended.code, json["sessions"].as_array().map(Vec::len)),
        (3, Some(3))
    );
    assert_eq!(
        (
            &json["sessions"][2]["client_id"],
            &json["failed"][0]["node"]
        ),
        (&"z".into(), &"b".into())
    );
    let asked = peer.asked();
    assert!(
        asked[2].1.contains("after: Some(\"2\")") && asked[2].1.contains("Some(\"ann\")"),
        "{asked:?}"
    );
    peer.stop();
    let limited = run(script(1), &["sessions", "--limit", "2"]);
    assert_eq!(
        (limited.code, limited.out.lines().count()),
        (0, 3),
        "{}",
        limited.out
    );
}

#[test]
fn kicks_and_drains_say_what_each_node_answered() {
    let answer = |node: &str, error: &str| NodeAnswer {
        node: node.into(),
        sessions: 2,
        error: error.into(),
    };
    let script = |answers| Script {
        answers: NodeAnswers { answers },
        ..Script::default()
    };
    let some = run(
        script(vec![answer("a", ""), answer("b", "gone")]),
        &["kick", "--user", "ann"],
    );
    let expected = "a: kicked, 2 sessions ended so far\nb: not done: gone\n";
    assert_eq!((some.code, some.out.as_str()), (3, expected));
    assert_eq!(
        run(script(vec![answer("a", "gone")]), &["drain", "a"]).code,
        6
    );
    let none = NodeAnswer {
        sessions: 0,
        ..answer("a", "")
    };
    let peer = Peer::start(script(vec![none]));
    let kicked = peer.run(&["kick", "--user", "ann", "--keep-out", "30m"]);
    let expected = "a: kicked and kept out, 0 sessions ended so far\n\
                    nothing was ended: no node that was asked has such a session\n";
    assert_eq!((kicked.code, kicked.out.as_str()), (0, expected));
    let asked = &peer.asked()[0].1;
    assert!(asked.contains("keep_out_ms: Some(1800000)"), "{asked}");
    assert_eq!(
        peer.run(&["kick", "--user", "ann", "--keep-out", "31d"])
            .code,
        2
    );
    peer.stop();
    let peer = Peer::start(script(vec![answer("a", "")]));
    assert_eq!(peer.run(&["drain", "a", "--within", "90s"]).code, 0);
    assert!(
        peer.asked()[0].1.contains("within_ms: Some(90000)"),
        "{:?}",
        peer.asked()
    );
    peer.stop();
}

#[test]
fn a_broken_audit_chain_is_no_success() {
    let script = |chain_is_whole| Script {
        audit: AuditResponse {
            records: vec![],
            chain_is_whole,
        },
        ..Script::default()
    };
    assert_eq!(run(script(true), &["audit"]).code, 0);
    let broken = run(script(false), &["audit"]);
    assert_eq!(broken.code, 6);
    assert!(broken.out.contains("BROKEN"));
}

#[test]
fn doctor_goes_stage_by_stage() {
    use NodeState::{Active, Offline, Rejected};
    let script = |nodes: &[(&str, NodeState, u64)]| Script {
        nodes: seen(nodes).unwrap(),
        status: StatusResponse {
            caller: "ops".into(),
            role: Role::Viewer.into(),
            ..StatusResponse::default()
        },
        ..Script::default()
    };
    let healthy = run(script(&[("a", Active, 7)]), &["doctor", "--output", "json"]);
    assert_eq!(
        (healthy.code, &healthy.json()["ok"]),
        (0, &serde_json::json!(true)),
        "{}",
        healthy.out
    );
    let mut warned = script(&[("a", Active, 7)]);
    warned.status.warnings = vec!["user `locked` cannot log in".into()];
    let warned = run(warned, &["doctor"]);
    assert_eq!(warned.code, 0);
    let line = "WARN  policy   user `locked` cannot log in";
    assert!(warned.out.contains(line), "{}", warned.out);
    for (nodes, exit) in [
        (vec![("a", Rejected, 6), ("b", Offline, 6)], 1),
        (vec![("a", Active, 7), ("b", Offline, 6)], 3),
    ] {
        let ended = run(script(&nodes), &["doctor"]);
        assert_eq!(ended.code, exit, "{}", ended.out);
    }
    let part = |verified, is_done, broken_at| VerifyAuditProgress {
        verified,
        newest: 30_000,
        is_done,
        broken_at,
    };
    for (verified, exit, found) in [
        (
            vec![part(10_000, false, None), part(30_000, true, None)],
            0,
            "OK    audit    30000 records",
        ),
        (
            vec![part(10_000, false, None), part(17, true, Some(18))],
            6,
            "BROKEN at record 18",
        ),
        (
            vec![part(10_000, false, None)],
            6,
            "ended before the log did",
        ),
    ] {
        let mut script = script(&[("a", Active, 7)]);
        script.status.role = Role::Auditor.into();
        script.verified = verified;
        let ended = run(script, &["doctor"]);
        assert_eq!(ended.code, exit, "{}", ended.out);
        assert!(ended.out.contains(found), "{found}: {}", ended.out);
        assert!(ended.err.contains("10000 of 30000"), "{}", ended.err);
    }
    let refused = Script {
        failures: vec![("status", Code::Unauthenticated, "no such token")],
        ..Script::default()
    };
    let refused = run(refused, &["doctor"]);
    assert_eq!(refused.code, 5);
    assert!(
        refused.out.contains("OK    health") && refused.out.contains("FAIL  token"),
        "{}",
        refused.out
    );
    assert!(refused.out.contains("SKIP  nodes"), "{}", refused.out);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let gone = format!("http://127.0.0.1:{port}");
    let output = sluicectl()
        .args(["--server", &gone, "doctor"])
        .env("SLUICE_TOKEN", TOKEN)
        .output()
        .unwrap();
    let ended = Ended::from_output(output);
    assert_eq!(ended.code, 5);
    assert!(
        ended.out.contains("OK    address") && ended.out.contains("FAIL  tcp"),
        "{}",
        ended.out
    );
}
