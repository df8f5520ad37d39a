//! What is refused, where and how; and what a document may be.
#![allow(clippy::unwrap_used)] // tests fail by panicking

use std::fmt::Write as _;
use std::net::IpAddr;

use sluice_policy::{
    ALIAS_NODES_MAX, DEPTH_MAX, Endpoint, Errors, Generation, ListenerId, PATTERNS_MAX,
    PROBLEMS_MAX, Refusal, SESSION_CLASSES_MAX, Snapshot, Who, compile,
};
use sluice_wire::mqtt::Version;

const HASH: &str = "$7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

fn load(text: &str) -> Result<Snapshot, Errors> {
    compile(text, "p.yaml", Generation(1), None)
}

fn errors(text: &str) -> String {
    match load(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => errors.to_string(),
    }
}

/// C17: an unknown key and every other mistake in one document are reported together, each with its place.
#[test]
fn c17_all_mistakes_are_reported_at_once_with_their_places() {
    let text = r##"listeners:
  - name: mqtt
    adress: 127.0.0.1:1883
    upstream: brokr
    versions: ["4"]
    limits:
      packet_bytes_max: 1TB
      connect_timeout: 10
  - name: mqtt
    address: nowhere
    upstream: broker
upstreams:
  - name: broker
    endpoints: ["http://x", "tcp://host:0"]
    endpoints: ["tcp://host:1"]
users:
  - name: plain
    password_hash: hunter2
    groups: [nobody]
rules:
  - name: broken
    who: {groups: [staff], addresses: [10.0.0.1/8], user_patterns: ["("], listeners: [x]}
    actions: [publish, fly]
    topics: ["a/#/b", "x${client_id}", "a"]
    decision: maybe
    qos_max: 3
colour: blue
"##;
    let expected = [
        "p.yaml:2:5: listener `mqtt`: `address` is missing",
        "p.yaml:3:5: listener `mqtt`: unknown key `adress`; did you mean `address`?",
        "p.yaml:4:15: there is no upstream `brokr`; did you mean `broker`?",
        "p.yaml:5:16: expected `3.1`, `3.1.1` or `5`, not `4`; did you mean `3.1.1`?",
        "p.yaml:7:25: expected a size such as `512`, `64KiB` or `1MiB` (a whole number of bytes, KiB, MiB or GiB), not `1TB`",
        "p.yaml:8:24: expected a duration such as `250ms`, `10s`, `5m` or `1h` (a whole number with its unit), not `10`",
        "p.yaml:9:11: a second listener named `mqtt`; the first is in line 2",
        "p.yaml:10:14: expected an IP address with a port, such as `0.0.0.0:1883` or `[::]:1883`, not `nowhere`",
        "p.yaml:14:17: `http://x`: expected `tcp://host:port` or `unix:///path`",
        "p.yaml:14:29: `tcp://host:0`: the port must be from 1 to 65535",
        "p.yaml:15:5: the key `endpoints` stands twice; first in line 14",
        "p.yaml:18:20: user `plain`: not a password hash; never write the password itself here: store the output of \
         `sluice-dataplane hash-password` (argon2id), a bcrypt hash, or a `$7$` hash of mosquitto_passwd",
        "p.yaml:19:14: there is no group `nobody`",
        "p.yaml:22:20: there is no group `staff`",
        "p.yaml:22:40: `10.0.0.1/8`: the address has bits set beyond the prefix length; write the first address of the block",
        "p.yaml:22:69: `(`: not a regular expression: unclosed group",
        "p.yaml:22:87: there is no listener `x`",
        "p.yaml:23:24: expected `connect` or `publish` or `subscribe` or `receive`, not `fly`",
        "p.yaml:24:14: `a/#/b`: `#` must be a whole level, the last one",
        "p.yaml:24:23: `x${client_id}`: a variable must be a whole level, and one of `${client_id}` and `${username}`",
        "p.yaml:25:15: expected `allow` or `deny`, not `maybe`",
        "p.yaml:26:14: `qos_max` is 0, 1 or 2, not 3",
        "p.yaml:27:1: the document: unknown key `colour`; known keys: ",
    ];
    let found = errors(text);
    let lines: Vec<&str> = found.lines().collect();
    for (line, expected) in lines.iter().zip(expected) {
        assert!(
            line.starts_with(expected),
            "\n found {line}\nwanted {expected}\n\n{found}"
        );
    }
    assert_eq!(lines.len(), expected.len(), "{found}");
    assert!(
        !found.contains("hunter2"),
        "a password must never be repeated"
    );
}

/// S18: one bad section, and nothing of the document takes effect.
#[test]
fn s18_a_document_with_one_bad_section_is_refused_whole() {
    let good = "groups: [{name: a}]\nrules: [{name: r, actions: [connect], decision: allow}]\n";
    let first = load(good).unwrap();
    let bad = "groups: [{name: a}, {name: b}]\nrules: [{name: r, actions: [connect], decision: perhaps}]\n";
    let refused = compile(bad, "next.yaml", Generation(2), Some(&first)).unwrap_err();
    assert_eq!(refused.problems().len(), 1, "{refused}");
    assert_eq!(refused.file(), "next.yaml");
    assert_eq!(
        (first.generation(), first.digest()),
        (Generation(1), load(good).unwrap().digest())
    );
}

#[test]
fn what_is_refused_and_what_it_is_called() {
    let table: &[(&str, &str)] = &[
        ("", "p.yaml:1:1: the document is empty"),
        ("~", "the document is empty"),
        ("- a", "p.yaml:1:1: a policy document is a map"),
        ("just text", "a policy document is a map"),
        (
            "default: [",
            "not YAML: while parsing a node, did not find expected node content; the `[` of line 1, column 10 is still open",
        ),
        (
            "rules:\n- {name: r, actions: [publish, topics: [a]}\n- {name: s}\n",
            "p.yaml:3:1: not YAML: \"-\" is only valid inside a block; the `[` of line 2, column 22 is still open there",
        ),
        (
            "rules:\n- name: r\n  who: {users: [a]\n  topics: [a]\nusers: []\n",
            "; the `{` of line 3, column 8 is still open there",
        ),
        (
            "d\0e\0f\0a\0",
            "p.yaml:1:1: this looks like UTF-16 (little-endian) without a byte order mark",
        ),
        (
            "default: deny\n\tx: y",
            "p.yaml:1:10: not YAML: while scanning a plain scalar, found a tab",
        ),
        (
            "default: deny\n---\ndefault: allow",
            "p.yaml:2:1: a second document in the same file",
        ),
        (
            "default: deny\ndefault: allow",
            "p.yaml:2:1: the key `default` stands twice; first in line 1",
        ),
        ("default: !!str deny", "YAML tags"),
        ("<<: {a: b}", "merge keys are not supported"),
        ("{[a]: b}", "a key must be a plain word"),
        ("default: *nowhere", "not YAML"),
        (
            "requires: [time_travel]",
            "p.yaml:1:12: this node does not have the feature `time_travel`",
        ),
        (
            "listeners: {name: x}",
            "p.yaml:1:12: expected a list of listener rows",
        ),
        (
            "listeners: [x]",
            "p.yaml:1:13: expected a listener: keys with values",
        ),
        (
            "groups: [{users: []}]",
            "p.yaml:1:11: group: `name` is missing",
        ),
        (
            "groups: [{name: \"\"}]",
            "p.yaml:1:17: the name of a group must not be empty",
        ),
        (
            "groups: [{name: \"a\\nb\"}]",
            "p.yaml:1:17: the name of a group must not contain control characters: U+000A is its character 2",
        ),
        (
            "users: [{name: \"ab\\u202Ec\"}]",
            "p.yaml:1:16: the name of a user must not contain characters that turn the direction of writing or end a line: \
             U+202E is its character 3",
        ),
        (
            "upstreams: [{name: \"\\u2067a\", endpoints: [tcp://a:1]}]",
            "the name of an upstream must not contain",
        ),
        (
            "groups: [{name: a, users: [\"ann:$2b$10$CCCCCCCCCCCCCCCCCCCCC.\"]}]",
            "there is no user a text that looks like a password hash",
        ),
        (
            "default: ~",
            "expected `allow` or `deny`, not an empty value",
        ),
        ("default: {a: b}", "expected `allow` or `deny`, not a map"),
        ("default: DENY", "not `DENY`; did you mean `deny`?"),
        ("groups: [{name: ~}]", "p.yaml:1:17: expected a text"),
        (
            "groups: [{name: a, users: [ghost]}]",
            "p.yaml:1:28: there is no user `ghost`",
        ),
        (
            "users: [{name: a, password: secret}]",
            "unknown key `password`; passwords are stored as `password_hash`",
        ),
        (
            "users: [{name: a}]",
            "user `a`: `password_hash` is missing; only a user with `networks` may have none",
        ),
        (
            "users: [{name: a, networks: []}]",
            "user `a`: from 1 to 64 `networks`",
        ),
        (
            "users: [{name: a, networks: [10.0.0.1/8]}]",
            "p.yaml:1:30: `10.0.0.1/8`: the address has bits set beyond the prefix length",
        ),
        (
            "listeners: [{name: a, username: ignore}]",
            "p.yaml:1:33: `username: ignore` makes every client anonymous, so `anonymous` is needed too",
        ),
        (
            "users: [{name: a, password_hash: \"!$7$1$AAAA$AAAA\"}]",
            "p.yaml:1:34: user `a`: a locked account (`!` or `*`): use `enabled: false`",
        ),
        (
            "users: [{name: a, password_hash: \"a:$7$1$AAAA$AAAA\", enabled: false}]",
            "user `a`: it looks like a line of a password file: give only the part after the colon",
        ),
        (
            "users: [{name: a, password_hash: \"$7$1$AAAA$AAAA\\r\"}]",
            "user `a`: a carriage return after the hash",
        ),
        (
            "upstreams: [{name: a}]",
            "upstream `a`: from 1 to 64 `endpoints`",
        ),
        (
            "upstreams: [{name: a, endpoints: [tcp://a:1, tcp://a:1]}]",
            "the endpoint is there twice",
        ),
        (
            "upstreams: [{name: a, endpoints: [\"unix://relative\"]}]",
            "an absolute path",
        ),
        (
            "upstreams: [{name: a, endpoints: [\"tcp://a b:1\"]}]",
            "expected `tcp://host:port`",
        ),
        (
            "upstreams: [{name: a, endpoints: [\"tcp://[::g]:1\"]}]",
            "expected an IPv6 address in the brackets",
        ),
        (
            "upstreams: [{name: a, endpoints: [\"tcp://::1:1\"]}]",
            "expected `tcp://host:port`",
        ),
        (
            "upstreams: [{name: a, endpoints: [tcp://a:1], dial: {attempts_max: 0}}]",
            "`attempts_max` must be from 1 to 100",
        ),
        (
            "upstreams: [{name: a, endpoints: [tcp://a:1], health: {}}]",
            "`interval` is missing",
        ),
        (
            "rules: [{name: r, actions: [connect], decision: allow, topics: [a]}]",
            "`topics` have no effect",
        ),
        (
            "rules: [{name: r, actions: [connect], decision: allow, retain: strip}]",
            "`retain` has no effect",
        ),
        (
            "rules: [{name: r, actions: [publish], decision: allow}]",
            "`topics` is missing",
        ),
        (
            "rules: [{name: r, decision: allow}]",
            "`actions` is missing",
        ),
        (
            "rules: [{name: r, actions: [publish], topics: [a], decision: deny, payload_bytes_max: 1}]",
            "has no effect on a rule that denies",
        ),
        (
            "rules: [{name: r, actions: [publish], topics: [a], decision: allow, qos_over: refuse}]",
            "`qos_over` has no effect without",
        ),
        (
            "rules: [{name: r, actions: [publish], topics: [a], decision: allow, on_deny: close}]",
            "this rule cannot refuse one",
        ),
        (
            "rules: [{name: r, actions: [publish, publish], topics: [a], decision: allow}]",
            "the action is there twice",
        ),
        (
            "rules: [{name: r, actions: [publish], topics: [a, a], decision: allow}]",
            "the filter is there twice",
        ),
        (
            "rules: [{name: r, actions: [publish], topics: [\"$share/g/a\"], decision: allow}]",
            "write the filter without `$share/<group>/`",
        ),
        (
            "rules: [{name: r, actions: [connect], who: {users: []}, decision: allow}]",
            "`users` of `who` must not be empty",
        ),
        (
            "rules: [{name: r, actions: [connect], who: {user_patterns: [\"a)|(b\"]}, decision: allow}]",
            "not a regular expression",
        ),
        (
            "rules: [{name: r, actions: [connect], who: {user_patterns: [\"(a{1000}){1000}\"]}, decision: allow}]",
            "not a regular expression",
        ),
    ];
    for (text, expected) in table {
        let found = errors(text);
        assert!(
            found.contains(expected),
            "\n{text}\n found {found}\nwanted {expected}"
        );
    }
}

#[test]
fn listeners_have_bounds_too() {
    let with = |extra: &str| {
        format!(
            "upstreams: [{{name: u, endpoints: [tcp://a:1]}}]\nlisteners: [{{name: l, address: 127.0.0.1:1883, upstream: u, {extra}}}]\n"
        )
    };
    load(&with("")).unwrap();
    let table = [
        (
            "limits: {connections_max: 0}",
            "`connections_max` must be from 1 to",
        ),
        (
            "limits: {topic_alias_max: 70000}",
            "`topic_alias_max` must be from 0 to 1024",
        ),
        ("limits: {keep_alive_max: 1500ms}", "must be whole seconds"),
        (
            "limits: {keep_alive_max: 19h}",
            "`keep_alive_max` must be from 1s to 65535s",
        ),
        (
            "limits: {latency_budget: 1s}",
            "`latency_budget` must be from 0s to 100ms",
        ),
        (
            "limits: {tcp_keep_alive: 10h}",
            "`tcp_keep_alive` must be from 0s to 32767s",
        ),
        ("limits: {tcp_keep_alive: 1500ms}", "must be whole seconds"),
        (
            "limits: {backlog_bytes_low: 1MiB}",
            "`backlog_bytes_low` (1048576) must be less than `backlog_bytes_high` (262144)",
        ),
        (
            "client_id: {bytes_max: 0}",
            "`bytes_max` must be from 1 to 65535",
        ),
        ("versions: []", "`versions` must not be empty"),
        ("anonymous: {}", "`group` is missing"),
        ("anonymous: {group: x}", "there is no group `x`"),
        ("anonymous: true", "expected a `anonymous` of listener `l`"),
        ("upstream_auth: maybe", "expected `pass` or `refuse`"),
    ];
    for (extra, expected) in table {
        let found = errors(&with(extra));
        assert!(
            found.contains(expected),
            "\n{extra}\n found {found}\nwanted {expected}"
        );
    }
    let twice = with("") + "  # the same address\n";
    let twice = twice.replace(
        "upstream: u, }]",
        "upstream: u}, {name: m, address: 127.0.0.1:1883, upstream: u}]",
    );
    assert!(
        errors(&twice).contains("the address 127.0.0.1:1883 belongs to listener `l`"),
        "{}",
        errors(&twice)
    );
}

#[test]
fn documents_cannot_blow_up() {
    let deep = format!(
        "default: {}x{}",
        "[".repeat(DEPTH_MAX + 1),
        "]".repeat(DEPTH_MAX + 1)
    );
    assert!(errors(&deep).contains("nested deeper"), "{}", errors(&deep));
    let very_deep = format!("default: {}", "[".repeat(100_000));
    assert!(!errors(&very_deep).is_empty());
    // Each level stands for nine of the one before: the billion laughs.
    let mut bomb = String::from("default: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let above = format!("*a{}", level - 1);
        let _ = writeln!(bomb, "k{level}: &a{level} [{}]", vec![above; 9].join(", "));
    }
    let found = errors(&bomb);
    assert!(
        found.contains(&format!("more than {ALIAS_NODES_MAX} values")),
        "{found}"
    );
    let long = format!(
        "on_deny: &a \"{}\"\nrules: [{}]\n",
        "x".repeat(1 << 20),
        "*a,".repeat(200)
    );
    let found = errors(&long);
    assert!(
        found.contains(&format!("more than {ALIAS_NODES_MAX} values")),
        "a long text counts by its bytes: {}",
        &found[found.len().saturating_sub(200)..]
    );
    let cycle = "default: &a [*a]";
    assert!(
        errors(cycle).contains("inside the value it stands for"),
        "{}",
        errors(cycle)
    );
}

#[test]
fn problems_patterns_and_classes_are_bounded() {
    let mut many = String::from("groups:\n");
    (0..PROBLEMS_MAX + 50).for_each(|_| many.push_str("- {nam: x}\n"));
    let found = load(&many).unwrap_err();
    assert_eq!(found.problems().len(), PROBLEMS_MAX);
    assert!(found.to_string().contains("more problems"), "{found}");

    let patterns: Vec<String> = (0..=PATTERNS_MAX)
        .map(|index| format!("a{index}"))
        .collect();
    let text = format!(
        "rules: [{{name: r, actions: [connect], decision: allow, who: {{user_patterns: [{}]}}}}]",
        patterns.join(", ")
    );
    assert!(errors(&text).contains(&format!("more than {PATTERNS_MAX} different patterns")));

    let rules = |count: usize, who: &str| -> String {
        let rule = |index| {
            format!(
                "- {{name: r{index}, actions: [publish], topics: [a], decision: allow, who: {{users: [u, x{index}]{who}}}}}\n"
            )
        };
        let listener = "upstreams: [{name: up, endpoints: [tcp://a:1]}]\nlisteners: [{name: l, address: 127.0.0.1:0, upstream: up}]\n";
        format!(
            "default: allow\n{listener}users: [{{name: u, password_hash: {HASH}}}]\nrules:\n{}",
            (0..count).map(rule).collect::<String>()
        )
    };
    let who = Who {
        listener: ListenerId(0),
        address: IpAddr::from([127, 0, 0, 1]),
        version: Version::V5,
        client_id: "c",
        username: Some("u"),
    };
    assert!(
        load(&rules(SESSION_CLASSES_MAX, ""))
            .unwrap()
            .admit(&who)
            .is_ok()
    );
    let provable = errors(&rules(SESSION_CLASSES_MAX + 1, ""));
    assert!(
        provable.contains("user `u` is matched by rules with 65 different `who` parts, at most 64"),
        "{provable}"
    );
    // Whether a client id will match is not known before it comes.
    let possible = load(&rules(SESSION_CLASSES_MAX + 1, ", client_ids: [c]")).unwrap();
    assert_eq!(
        possible.admit(&who).unwrap_err(),
        Refusal::NotAuthorized.into()
    );
    assert!(
        possible
            .admit(&Who {
                client_id: "d",
                ..who
            })
            .is_ok()
    );
}

/// A client chooses its id: what asking all patterns about it costs is bounded, and a document beyond that is refused.
#[test]
fn patterns_that_would_take_too_long_together_are_refused() {
    let rules = |key: &str, count: usize| -> String {
        let patterns: Vec<String> = (0..count).map(|n| format!(r"'\bgw{n}\b.*'")).collect();
        format!(
            "rules: [{{name: r, actions: [connect], decision: allow, who: {{{key}: [{}]}}}}]",
            patterns.join(", ")
        )
    };
    for key in ["user_patterns", "client_id_patterns"] {
        assert!(load(&rules(key, 8)).is_ok(), "a few may be");
        let found = errors(&rules(key, 9));
        assert!(
            found.contains(&format!(
                "`{key}` of the document: too many of them are too complex"
            )),
            "{found}"
        );
    }
}

#[test]
fn listeners_and_upstreams_keep_their_numbers() {
    let document = |names: &[&str]| {
        let rows = |prefix: &str, rest: &str| -> String {
            names
                .iter()
                .map(|name| format!("- {{name: {prefix}{name}, {}}}\n", rest.replace('@', name)))
                .collect()
        };
        format!(
            "listeners:\n{}upstreams:\n{}",
            rows("l", "address: 127.0.0.1:0, upstream: u@"),
            rows("u", "endpoints: [tcp://@:1]")
        )
    };
    let first = load(&document(&["a", "b"])).unwrap();
    let second = compile(
        &document(&["c", "b"]),
        "p.yaml",
        Generation(2),
        Some(&first),
    )
    .unwrap();
    let third = compile(
        &document(&["a", "d"]),
        "p.yaml",
        Generation(3),
        Some(&second),
    )
    .unwrap();
    let id =
        |snapshot: &Snapshot, name| snapshot.listener_by_name(name).map(|listener| listener.id);
    assert_eq!(id(&first, "lb"), id(&second, "lb"));
    assert_eq!(id(&first, "la"), id(&third, "la"));
    assert_eq!(id(&second, "la"), None);
    let known = [id(&first, "la"), id(&first, "lb"), id(&second, "lc")];
    assert!(
        !known.contains(&id(&third, "ld")),
        "a number is never reused"
    );
    for snapshot in [&first, &second, &third] {
        for listener in snapshot.listeners() {
            assert_eq!(snapshot.listener(listener.id).unwrap().name, listener.name);
            let upstream = snapshot.upstream(listener.upstream).unwrap();
            assert_eq!(
                upstream.name.trim_start_matches('u'),
                listener.name.trim_start_matches('l')
            );
            assert!(matches!(
                upstream.endpoints.first(),
                Some(Endpoint::Tcp { port: 1, .. })
            ));
        }
    }
    assert!(second.listener(id(&first, "la").unwrap()).is_none());
}

#[test]
fn the_digest_follows_the_rows_and_not_their_writing() {
    let block = "groups:\n  - name: a\n  - name: b\nrules:\n  - name: r\n    order: 1\n    actions: [connect]\n    decision: allow\n  - name: s\n    order: 2\n    actions: [connect]\n    decision: deny\n";
    let flow = "# a comment\nrules: [{name: s, decision: 'deny', order: 2, actions: connect}, {name: r, order: 1, decision: allow, actions: [connect], enabled: true}]\ngroups: [{name: b}, {name: \"a\"}]\ndefault: deny\n";
    let digest = |text: &str| load(text).unwrap().digest().to_owned();
    assert_eq!(digest(block), digest(flow));
    assert_eq!(digest(block).len(), 64);
    for (from, to) in [
        ("name: b", "name: c"),
        ("order: 2", "order: 0"),
        ("allow", "deny"),
        ("name: s", "name: t"),
    ] {
        assert_ne!(digest(block), digest(&block.replacen(from, to, 1)), "{to}");
    }
}

#[test]
fn aliases_and_anchors_may_be_used() {
    let text = format!(
        "users:\n- &base {{name: a, password_hash: &hash \"{HASH}\"}}\n- {{name: b, password_hash: *hash}}\n- {{name: c, password_hash: *hash, enabled: &no false}}\n- {{name: d, password_hash: *hash, enabled: *no}}\n"
    );
    let snapshot = load(&text).unwrap();
    let enabled: Vec<bool> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| snapshot.user(name).is_some())
        .collect();
    assert_eq!(enabled, [true, true, false, false]);
}

/// No clock: what is asserted is that it compiles, answers, and takes memory in proportion to its rows.
#[test]
fn a_large_document_compiles() {
    const COUNT: usize = 100_000;
    let mut text = String::with_capacity(40 << 20);
    text.push_str("upstreams: [{name: up, endpoints: [tcp://a:1]}]\nlisteners: [{name: l, address: 127.0.0.1:0, upstream: up}]\nusers:\n");
    for index in 0..COUNT {
        let _ = writeln!(text, "- {{name: u{index}, password_hash: {HASH}}}");
    }
    text.push_str("rules:\n- {name: connect, actions: [connect], decision: allow}\n");
    for index in 1..COUNT {
        // Half of them for everyone, half for one user each.
        let who = if index % 2 == 0 {
            String::new()
        } else {
            format!("who: {{users: [u{index}]}}, ")
        };
        let _ = writeln!(
            text,
            "- {{name: r{index}, {who}actions: [publish], topics: [site/{}/device/{index}], decision: allow}}",
            index % 100
        );
    }
    let snapshot = load(&text).unwrap();
    assert_eq!(snapshot.rule_count(), COUNT);
    let who = Who {
        listener: snapshot.listeners().first().unwrap().id,
        address: IpAddr::from([127, 0, 0, 1]),
        version: Version::V5,
        client_id: "c",
        username: Some("u77777"),
    };
    let classes = snapshot.admit(&who).unwrap().classes;
    let vars = sluice_policy::Vars {
        client_id: "c",
        username: "u77777",
    };
    for (topic, expected) in [
        ("site/77/device/77777", true),
        ("site/76/device/77776", true),
        ("site/75/device/77775", false),
    ] {
        let request = sluice_policy::Request {
            action: sluice_policy::Action::Publish,
            topic,
            qos: sluice_wire::mqtt::QoS::AtMostOnce,
            retain: false,
            payload_bytes: 0,
        };
        let decision = snapshot.verdict(&classes, &vars, &request).decision;
        assert_eq!(
            decision == sluice_policy::Decision::Allow,
            expected,
            "{topic}"
        );
    }
}
