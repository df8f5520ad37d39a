//! A node under a control plane, as the control plane meets it: the real binary, and a control plane that plays a script.

#![allow(clippy::expect_used)] // a test that cannot go on says so
#![allow(clippy::wildcard_enum_match_arm)] // a test looks for one kind of message

#[path = "fleet/control_plane.rs"]
mod control_plane;
#[path = "process/harness.rs"]
#[allow(dead_code)] // each test binary uses its part
mod harness;
#[path = "fleet/secure.rs"]
mod secure;
#[path = "fleet/stored.rs"]
mod stored;

use std::net::SocketAddr;
use std::path::Path;

use rustix::process::Signal;
use sluice_policy::fleet::Inventory;
use sluice_proto::v1::{self, from_node, reject::Reason, to_node};

use control_plane::{ControlPlane, Stream, generation, rows};
use harness::{Device, Running, ask, broker};

/// Devices may log in anonymously or as `u`; `permit-all` allows what is asked, unless `decision` says otherwise.
fn policy(upstream: SocketAddr, decision: &str) -> Inventory {
    rows(&format!(
        "listeners:
  - {{name: devices, address: '127.0.0.1:0', upstream: broker, anonymous: {{group: guests}}}}
groups:
  - {{name: guests}}
users:
  - {{name: u, password_hash: '$2b$04$CFhggLUUUgNKRKMvlo6Jiu62Cpzqn2hm2bQ1ReqPmYxLYVtUzrmDe'}}
upstreams:
  - {{name: broker, endpoints: ['tcp://{upstream}']}}
rules:
  - {{name: permit-all, actions: [connect, publish, subscribe], topics: ['#'], decision: {decision}}}
"
    ))
}

/// Everyone may connect, and a rule in shadow would let nobody.
fn counted(upstream: SocketAddr) -> String {
    format!(
        "listeners:
  - {{name: devices, address: '127.0.0.1:0', upstream: broker, anonymous: {{group: guests}}}}
groups: [{{name: guests}}]
upstreams: [{{name: broker, endpoints: ['tcp://{upstream}']}}]
rules:
  - {{name: b-all, actions: [connect], decision: allow}}
  - {{name: a-tried, priority: -1, mode: shadow, actions: [connect], decision: deny}}
  - {{name: c-tried, priority: 1, mode: shadow, actions: [connect], decision: deny}}
"
    )
}

/// Starts a node; what outlives it is in `folder`.
fn start(folder: &Path, url: &str, args: &[&str]) -> Running {
    let token = folder.join("token");
    std::fs::write(&token, "slj_1_secret\n").expect("written");
    Running::start_with(None, args, |command| {
        command
            .args(["--control-plane", url, "--node", "edge-1"])
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--join-token-file")
            .arg(token);
    })
}

/// A node with this generation active.
fn start_active(
    control_plane: &ControlPlane,
    folder: &Path,
    rows: &Inventory,
    args: &[&str],
) -> (Running, Stream) {
    let running = start(folder, &control_plane.url, args);
    let mut stream = control_plane.stream();
    stream.hello();
    stream.deliver(
        &generation(1, rows),
        None,
        Inventory::default().changes_to(rows),
    );
    stream.active(&generation(1, rows));
    running.wait_for("/readyz", |answer| answer.status == 200);
    (running, stream)
}

fn done(stream: &mut Stream) -> v1::Done {
    stream.next(|message| match message {
        from_node::Message::Done(done) => Some(done),
        _ => None,
    })
}

fn rejected(stream: &mut Stream) -> v1::Reject {
    stream.next(|message| match message {
        from_node::Message::Reject(reject) => Some(reject),
        _ => None,
    })
}

fn rules(stream: &mut Stream, list: v1::ListRules) -> v1::RulePage {
    stream.say(to_node::Message::ListRules(list));
    stream.next(|message| match message {
        from_node::Message::Rules(page) => Some(page),
        _ => None,
    })
}

fn sessions(stream: &mut Stream, list: v1::ListSessions) -> v1::SessionPage {
    stream.say(to_node::Message::ListSessions(list));
    stream.next(|message| match message {
        from_node::Message::Sessions(page) => Some(page),
        _ => None,
    })
}

#[test]
fn a_node_joins_takes_a_policy_and_every_change_to_it_and_each_shard_acknowledges() {
    let folder = tempfile::tempdir().expect("a folder");
    let control_plane = ControlPlane::start(None);
    let broker = broker();
    let first = policy(broker, "allow");
    let running = start(folder.path(), &control_plane.url, &["--shards", "2"]);
    let mut stream = control_plane.stream();
    let hello = stream.hello();
    assert_eq!(
        (hello.node.as_str(), hello.shards, &hello.held),
        ("edge-1", 2, &None)
    );
    assert_eq!(
        hello.capabilities,
        ["kick", "keep_out", "drain", "sessions", "rules", "denials"]
    );
    let features: Vec<&str> = hello.features.iter().map(String::as_str).collect();
    assert_eq!(features, sluice_policy::FEATURES);
    let heartbeat = stream.heartbeat();
    assert!(heartbeat.shards.iter().all(|shard| shard.active.is_none()));
    assert_eq!(heartbeat.not_ready, ["no policy is active"]);
    assert!(heartbeat.memory_bytes > 0);

    let enrolled = control_plane.enrolled();
    assert_eq!(enrolled[0].join_token, "slj_1_secret");
    let secret: String = enrolled[0]
        .secret
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(stream.bearer, format!("Bearer sln_edge-1_{secret}"));

    let one = generation(1, &first);
    stream.deliver(&one, None, Inventory::default().changes_to(&first));
    assert_eq!(stream.active(&one), [0, 1], "each shard, once");
    running.wait_for("/readyz", |answer| answer.status == 200);
    let port = running.listener("devices");
    assert_eq!(Device::connect(port, "a", None).connack(), 0);

    // One row changes, one row travels; the allowed device is refused from then on.
    let second = policy(broker, "deny");
    let two = generation(2, &second);
    let changes = first.changes_to(&second);
    assert_eq!(changes.len(), 1);
    stream.deliver(&two, Some(&one), changes);
    assert_eq!(stream.active(&two), [0, 1]);
    assert_ne!(Device::connect(port, "a", None).connack(), 0);
    let page = running.json("/policy");
    assert_eq!(page["active"]["source"], "control plane");
    assert_eq!(page["active"]["fleet_generation"], 2);
    assert_eq!(
        running.metric("sluice_fleet_generation{stage=\"active\"}"),
        Some(2.0)
    );
    assert_eq!(
        running.metric("sluice_fleet_link{state=\"connected\"}"),
        Some(1.0)
    );
    assert_eq!(running.json("/fleet")["fleet"]["node"], "edge-1");

    // What it holds, row by row.
    stream.say(to_node::Message::AskInventory(v1::AskInventory {}));
    let chunk = stream.next(|message| match message {
        from_node::Message::Inventory(chunk) => Some(chunk),
        _ => None,
    });
    assert!(chunk.is_last);
    assert_eq!(chunk.rows.len(), second.len());
}

#[test]
fn what_cannot_be_taken_is_refused_with_its_reason_and_the_old_one_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let control_plane = ControlPlane::start(None);
    let good = policy(broker(), "allow");
    let (running, mut stream) = start_active(&control_plane, folder.path(), &good, &[]);
    let one = generation(1, &good);
    let port = running.listener("devices");

    let none = Inventory::default();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").port();
    let bad = rows(&format!(
        "listeners: [{{name: devices, address: '127.0.0.1:{taken}', upstream: nowhere}}]\nupstreams: [{{name: broker, endpoints: ['tcp://127.0.0.1:1']}}]\n"
    ));
    let mut needs_more = v1::Row {
        name: "future".into(),
        features: vec!["rules".into(), "time_travel".into()],
        kind: Some(v1::row::Kind::Rule(v1::Rule {
            actions: vec![v1::Action::Publish.into()],
            topics: vec!["a".into()],
            decision: v1::Effect::Allow.into(),
            order: Some(1000),
            ..v1::Rule::default()
        })),
    };
    let lacking =
        good.with([sluice_policy::fleet::Change::from_message(&needs_more).expect("a row")]);
    needs_more.features.clear();
    let mut wrong_digest = generation(5, &good);
    wrong_digest.digest = vec![9; 32];
    let cases = [
        (
            generation(2, &bad),
            Some(generation(77, &good)),
            Reason::BaseUnknown,
        ),
        (wrong_digest, None, Reason::Digest),
        (generation(3, &bad), None, Reason::Invalid),
        (generation(4, &lacking), None, Reason::Features),
    ];
    for (id, base, reason) in cases {
        let rows = match reason {
            Reason::Invalid => &bad,
            Reason::Features => &lacking,
            _ => &good,
        };
        stream.deliver(&id, base.as_ref(), none.changes_to(rows));
        let reject = rejected(&mut stream);
        assert_eq!(reject.generation.as_ref(), Some(&id));
        assert_eq!(reject.reason(), reason, "{reject:?}");
        assert!(!reject.problems.is_empty());
        if reason == Reason::Invalid {
            let row = reject.problems[0].row.as_ref().expect("a row");
            assert_eq!(
                (row.kind(), row.name.as_str()),
                (v1::RowKind::Listener, "devices")
            );
        }
        assert_eq!(Device::connect(port, "a", None).connack(), 0, "{reason:?}");
    }

    // A port that is taken is known only here.
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port_taken = holder.local_addr().expect("bound");
    let conflict = rows(&format!(
        "listeners: [{{name: other, address: '{port_taken}', upstream: broker}}]\nupstreams: [{{name: broker, endpoints: ['tcp://127.0.0.1:1']}}]\n"
    ));
    stream.deliver(&generation(6, &conflict), None, none.changes_to(&conflict));
    let reject = rejected(&mut stream);
    assert_eq!(reject.reason(), Reason::Invalid);
    assert!(
        reject.problems[0]
            .message
            .contains(&port_taken.port().to_string()),
        "{reject:?}"
    );

    // And a good one is taken after all of these, on the base that stayed.
    let next = policy(broker(), "allow");
    let seven = generation(7, &next);
    stream.deliver(&seven, Some(&one), good.changes_to(&next));
    stream.active(&seven);
    assert_eq!(running.json("/policy")["active"]["fleet_generation"], 7);
}

#[test]
fn c26_a_node_starts_with_what_was_good_last_without_its_control_plane() {
    let folder = tempfile::tempdir().expect("a folder");
    let control_plane = ControlPlane::start(None);
    let good = policy(broker(), "allow");
    let one = generation(1, &good);
    let (mut running, _stream) = start_active(
        &control_plane,
        folder.path(),
        &good,
        &["--log-level", "debug"],
    );
    running.wait_log("the generation is on the disk");
    running.signal(Signal::TERM);
    running.end();
    let address = control_plane.address;
    drop(control_plane);

    // Nobody answers on that port by now.
    let url = format!("http://{address}");
    let mut running = start(folder.path(), &url, &[]);
    running.wait_log("a generation is on the disk");
    running.wait_for("/readyz", |answer| answer.status == 200);
    let port = running.listener("devices");
    assert_eq!(Device::connect(port, "a", None).connack(), 0);
    running.wait_log("no stream to the control plane");

    // It comes back, and learns that the node has what it should have: nothing is sent.
    let control_plane = ControlPlane::start(Some(address));
    let mut stream = control_plane.stream();
    assert_eq!(stream.hello().held, Some(one.clone()));
    let heartbeat = stream.heartbeat();
    assert!(
        heartbeat
            .shards
            .iter()
            .all(|shard| shard.active.as_ref() == Some(&one))
    );
    assert!(
        control_plane.enrolled().is_empty(),
        "it is a member already"
    );
    running.signal(Signal::TERM);
    running.end();

    // A damaged file is moved aside and the whole is asked for.
    let file = folder.path().join("state/generation");
    let mut bytes = std::fs::read(&file).expect("the file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let mut running = start(folder.path(), &url, &[]);
    let line = running.wait_log("OF NO USE");
    assert!(line.contains("checksum"), "{line}");
    assert!(folder.path().join("state/generation.damaged").exists());
    let mut stream = control_plane.stream();
    assert_eq!(stream.hello().held, None);
    stream.deliver(&one, None, Inventory::default().changes_to(&good));
    stream.active(&one);
}

#[test]
fn rules_are_counted_over_shards_and_keep_their_counts_across_generations() {
    let folder = tempfile::tempdir().expect("a folder");
    let control_plane = ControlPlane::start(None);
    let document = counted(broker());
    let rows_with = |more: &str| rows(&format!("{document}{more}"));
    let first = rows_with("");
    let args = ["--shards", "2", "--rule-metrics", "1"];
    let (running, mut stream) = start_active(&control_plane, folder.path(), &first, &args);
    for number in 0..8 {
        let address = running.listener("devices");
        let mut device = Device::connect(address, &format!("c{number}"), None);
        assert_eq!(device.connack(), 0);
    }
    let list = |behind, only_shadow| v1::ListRules {
        request: 9,
        behind,
        limit: 1,
        only_shadow,
    };
    let told = |rule: &v1::rule_page::Rule| {
        let name = rule.place.clone().expect("a place").name;
        (name, rule.decided, rule.otherwise)
    };
    let (mut behind, mut found) = (None, Vec::new());
    loop {
        let page = rules(&mut stream, list(behind, false));
        assert_eq!(page.rules.len(), 1);
        found.extend(page.rules);
        behind = page.next;
        if behind.is_none() {
            break;
        }
    }
    let row = |name: &str, decided, otherwise| (name.to_owned(), decided, otherwise);
    let expected = [
        row("c-tried", 8, 8),
        row("b-all", 8, 0),
        row("a-tried", 0, 0),
    ];
    assert_eq!(found.iter().map(told).collect::<Vec<_>>(), expected);
    let tried = rules(&mut stream, list(None, true));
    assert_eq!(tried.rules, found[..1]);
    let since = found[1].since_unix_ms;

    let second = rows_with("  - {name: more, actions: [publish], topics: [x], decision: allow}\n");
    let change = first.changes_to(&second);
    stream.deliver(
        &generation(2, &second),
        Some(&generation(1, &first)),
        change,
    );
    stream.active(&generation(2, &second));
    let page = running.wait_for("/rules", |answer| answer.body.contains("\"more\""));
    let page: serde_json::Value = serde_json::from_str(&page.body).expect("JSON");
    assert_eq!(page["generation"], 2);
    let row = |name: &str| {
        let mut rows = page["rules"].as_array().expect("a list").iter();
        rows.find(|row| row["name"] == name).expect("a rule")
    };
    assert_eq!(row("b-all")["decided"], 8);
    assert_eq!(row("b-all")["since_unix_ms"].as_u64(), Some(since));
    assert!(
        row("more")["since_unix_ms"].as_u64() > Some(since),
        "{page}"
    );
    let unused = running.json("/rules?unused");
    let unused = unused["rules"].as_array().expect("a list").iter();
    let names: Vec<_> = unused
        .map(|row| row["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["more", "a-tried"]);
    let metrics = running.get("/metrics").body;
    let lines = metrics.lines();
    let lines: Vec<&str> = lines
        .filter(|line| line.starts_with("sluice_rule_decisions_total{"))
        .collect();
    assert_eq!(lines.len(), 1);
    assert!(
        lines[0].contains("rule=\"a-tried\"") && lines[0].ends_with(" 0"),
        "{lines:?}"
    );
}

#[test]
fn sessions_are_listed_and_ended_by_client_id_and_by_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let control_plane = ControlPlane::start(None);
    let good = policy(broker(), "allow");
    let (running, mut stream) =
        start_active(&control_plane, folder.path(), &good, &["--shards", "2"]);
    let port = running.listener("devices");
    let mut guests: Vec<Device> = (0..6)
        .map(|n| Device::connect(port, &format!("guest-{n}"), None))
        .collect();
    let mut users: Vec<Device> = (0..3)
        .map(|n| Device::connect(port, &format!("user-{n}"), Some(("u", "secret"))))
        .collect();
    for device in guests.iter_mut().chain(&mut users) {
        assert_eq!(device.connack(), 0);
    }
    // A page goes on from shard to shard; the whole is the pages put together.
    let mut found = Vec::new();
    let mut after = None;
    for request in 1.. {
        let list = v1::ListSessions {
            request,
            after,
            limit: 4,
            ..v1::ListSessions::default()
        };
        let page = sessions(&mut stream, list);
        assert_eq!((page.request, page.error.as_str()), (request, ""));
        assert!(page.sessions.len() <= 4);
        found.extend(page.sessions);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut names: Vec<&str> = found
        .iter()
        .map(|session| session.client_id.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "guest-0", "guest-1", "guest-2", "guest-3", "guest-4", "guest-5", "user-0", "user-1",
            "user-2"
        ]
    );
    let everybody = v1::ListSessions {
        request: 50,
        limit: 1000,
        ..v1::ListSessions::default()
    };
    let page = sessions(&mut stream, everybody.clone());
    assert_eq!(
        (page.sessions.len(), page.next),
        (9, None),
        "one page over both shards"
    );
    let list = v1::ListSessions {
        username: Some("u".into()),
        client_id: Some("user-1".into()),
        ..everybody.clone()
    };
    let page = sessions(&mut stream, list);
    assert_eq!(page.sessions.len(), 1);
    assert_eq!(page.sessions[0].username.as_deref(), Some("u"));
    assert_eq!(page.sessions[0].listener, "devices");
    let list = v1::ListSessions {
        after: Some("nonsense".into()),
        ..everybody
    };
    assert!(sessions(&mut stream, list).error.contains("after"));

    let kick = |request, who| {
        to_node::Message::Kick(v1::Kick {
            request,
            who,
            keep_out_ms: None,
        })
    };
    stream.say(kick(60, Some(v1::kick::Who::Username("u".into()))));
    let answer = done(&mut stream);
    assert_eq!(
        (answer.request, answer.sessions, answer.error.as_str()),
        (60, 3, "")
    );
    users.iter_mut().for_each(Device::closed);
    stream.say(kick(61, Some(v1::kick::Who::ClientId("guest-2".into()))));
    assert_eq!(done(&mut stream).sessions, 1);
    guests[2].closed();
    stream.say(kick(62, Some(v1::kick::Who::ClientId("nobody".into()))));
    let answer = done(&mut stream);
    assert_eq!((answer.sessions, answer.error.as_str()), (0, ""));
    stream.say(kick(63, None));
    assert!(
        !done(&mut stream).error.is_empty(),
        "everyone is not a whom"
    );
}

#[test]
fn a_drain_keeps_the_process_and_undoing_it_opens_the_same_port() {
    let folder = tempfile::tempdir().expect("a folder");
    let control_plane = ControlPlane::start(None);
    let upstream = broker();
    let good = policy(upstream, "allow");
    let (running, mut stream) =
        start_active(&control_plane, folder.path(), &good, &["--shards", "2"]);
    let port = running.listener("devices");
    let mut devices: Vec<Device> = (0..4)
        .map(|n| Device::connect(port, &format!("c{n}"), None))
        .collect();
    for device in &mut devices {
        assert_eq!(device.connack(), 0);
    }
    let drain = |request, undo| {
        to_node::Message::Drain(v1::Drain {
            request,
            within_us: Some(400_000),
            undo,
        })
    };
    stream.say(drain(1, false));
    devices.iter_mut().for_each(Device::closed);
    let answer = done(&mut stream);
    assert_eq!(
        (answer.request, answer.sessions, answer.error.as_str()),
        (1, 4, "")
    );
    // How the node is follows at once: it comes before the answer to what is asked next.
    stream.say(drain(9, false));
    let mut has_told = false;
    stream.next(|message| match message {
        from_node::Message::Heartbeat(beat) => {
            has_told |= beat.is_draining;
            None
        }
        from_node::Message::Done(done) => (done.request == 9).then_some(()),
        _ => None,
    });
    assert!(has_told, "a drain is not told before the next beat");
    let reasons = running.get("/readyz?verbose=1").body;
    assert!(reasons.contains("draining"), "{reasons}");
    assert!(
        std::net::TcpStream::connect(port).is_err(),
        "nothing listens"
    );
    // A generation is taken meanwhile, and opens nothing.
    let next = policy(upstream, "deny");
    let two = generation(2, &next);
    stream.deliver(&two, Some(&generation(1, &good)), good.changes_to(&next));
    stream.active(&two);
    assert!(std::net::TcpStream::connect(port).is_err(), "still nothing");
    let one_again = generation(3, &good);
    stream.deliver(&one_again, Some(&two), next.changes_to(&good));
    stream.active(&one_again);

    stream.say(drain(2, true));
    let answer = done(&mut stream);
    assert_eq!((answer.request, answer.error.as_str()), (2, ""));
    running.wait_for("/readyz", |answer| answer.status == 200);
    assert_eq!(running.listener("devices"), port);
    assert_eq!(Device::connect(port, "again", None).connack(), 0);

    // One that takes its time is answered before it is over, and can be undone.
    let _device = {
        let mut device = Device::connect(port, "stays", None);
        assert_eq!(device.connack(), 0);
        device
    };
    stream.say(to_node::Message::Drain(v1::Drain {
        request: 4,
        within_us: Some(3_600_000_000),
        undo: false,
    }));
    let answer = done(&mut stream);
    assert_eq!((answer.request, answer.error.as_str()), (4, ""));
    assert!(answer.sessions < 2, "so far: {answer:?}");
    let reasons = running.get("/readyz?verbose=1").body;
    assert!(reasons.contains("draining"), "{reasons}");
    stream.say(drain(5, true));
    assert_eq!(done(&mut stream).request, 5);
    running.wait_for("/readyz", |answer| answer.status == 200);

    // At once is at once.
    let mut device = Device::connect(port, "goes", None);
    assert_eq!(device.connack(), 0);
    stream.say(to_node::Message::Drain(v1::Drain {
        request: 6,
        within_us: Some(0),
        undo: false,
    }));
    device.closed();
    assert_eq!(done(&mut stream).request, 6);
    stream.say(drain(7, true));
    assert_eq!(done(&mut stream).request, 7);

    // SIGTERM during a drain ends the process as ever.
    stream.say(drain(3, false));
    done(&mut stream);
    running.signal(Signal::TERM);
    let (status, _) = running.end();
    assert!(status.success(), "{status:?}");
}

#[test]
fn a_command_line_that_cannot_be_meant_is_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let state = state.to_str().expect("text");
    let base = [
        "--node",
        "n",
        "--state-dir",
        state,
        "--admin",
        "127.0.0.1:0",
    ];
    for (args, expected) in [
        (
            vec!["--control-plane", "http://control.example:9400"],
            "plaintext",
        ),
        (
            vec!["--control-plane", "https://control.example:9400"],
            "--control-plane-ca",
        ),
        (
            vec![
                "--control-plane",
                "http://127.0.0.1:1",
                "--policy",
                "p.yaml",
            ],
            "--policy",
        ),
        (
            vec!["--control-plane", "http://127.0.0.1:1"],
            "--join-token-file",
        ),
        (
            vec![
                "--control-plane",
                "http://127.0.0.1:1",
                "--join-token-file",
                "/nowhere/join-token",
            ],
            "/nowhere/join-token: No such file",
        ),
        (vec![], "--control-plane"),
    ] {
        let args: Vec<&str> = args.into_iter().chain(base).collect();
        let output = ask(&args, b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(expected),
            "{args:?}: {said}"
        );
    }
}
