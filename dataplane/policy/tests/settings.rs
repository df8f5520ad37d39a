//! Settings that do nothing do not exist: every documented key changes what a snapshot says or does, and every key that
//! is accepted is documented.
#![allow(clippy::unwrap_used)] // tests fail by panicking

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use sluice_policy::{Action, Generation, Request, Snapshot, Vars, Verifier, Who, compile};
use sluice_wire::mqtt::{QoS, Version};

const README: &str = include_str!("../README.md");
const HASH: &str = "$7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
const OTHER_HASH: &str = "$7$1$AAAA$BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

/// A section of the document, a key in it, and a value that must make a difference; then what else must be set for it to
/// have an effect, in both documents.
type Setting = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str, &'static str)],
);

const SETTINGS: &[Setting] = &[
    ("", "requires", "[rules, what_no_node_has]", &[]),
    ("", "default", "allow", &[]),
    ("", "on_deny", "close", &[]),
    ("", "narrow", "true", &[("rules", "order", "100")]),
    ("", "listeners", "[]", &[]),
    (
        "",
        "upstreams",
        "[{name: up, endpoints: [tcp://other:1]}]",
        &[],
    ),
    ("", "groups", "[{name: g, users: [u, v]}, {name: h}]", &[]),
    ("", "users", "[]", &[]),
    ("", "rules", "[]", &[]),
    ("listeners", "name", "m", &[]),
    ("listeners", "address", "127.0.0.1:7", &[]),
    ("listeners", "upstream", "up2", &[]),
    ("listeners", "versions", "[3.1.1]", &[]),
    ("listeners", "anonymous", "{group: g}", &[]),
    ("listeners", "client_id", "{bytes_max: 1}", &[]),
    ("listeners", "upstream_auth", "pass", &[]),
    ("listeners", "drain_wills", "suppress", &[]),
    ("listeners", "reason_strings", "short", &[]),
    (
        "listeners",
        "username",
        "ignore",
        &[("listeners", "anonymous", "{group: g}")],
    ),
    ("listeners", "limits", "{receive_max: 7}", &[]),
    (
        "listeners.anonymous",
        "group",
        "h",
        &[("listeners", "anonymous", "{group: g}")],
    ),
    ("listeners.client_id", "pattern", "c1", &[]),
    ("listeners.client_id", "bytes_max", "1", &[]),
    ("listeners.limits", "connections_max", "7", &[]),
    ("listeners.limits", "connections_per_address_max", "7", &[]),
    ("listeners.limits", "packet_bytes_max", "7KiB", &[]),
    ("listeners.limits", "connect_bytes_max", "7KiB", &[]),
    ("listeners.limits", "topic_alias_max", "7", &[]),
    ("listeners.limits", "receive_max", "7", &[]),
    ("listeners.limits", "keep_alive_max", "7s", &[]),
    ("listeners.limits", "connect_timeout", "7s", &[]),
    ("listeners.limits", "packet_timeout", "7s", &[]),
    ("listeners.limits", "write_stall_timeout", "7s", &[]),
    ("listeners.limits", "backlog_bytes_high", "77KiB", &[]),
    ("listeners.limits", "backlog_bytes_low", "7KiB", &[]),
    ("listeners.limits", "latency_budget", "7ms", &[]),
    ("listeners.limits", "tcp_keep_alive", "0s", &[]),
    ("upstreams", "name", "up3", &[]),
    ("upstreams", "endpoints", "[\"unix:///run/x\"]", &[]),
    ("upstreams", "balance", "round_robin", &[]),
    ("upstreams", "dial", "{timeout: 7s}", &[]),
    ("upstreams", "breaker", "{failures: 7}", &[]),
    ("upstreams", "health", "{interval: 7s}", &[]),
    ("upstreams", "tcp_keep_alive", "7s", &[]),
    ("upstreams.dial", "timeout", "7s", &[]),
    ("upstreams.dial", "attempts_max", "7", &[]),
    ("upstreams.dial", "backoff", "7ms", &[]),
    ("upstreams.dial", "connack_timeout", "7s", &[]),
    ("upstreams.breaker", "failures", "7", &[]),
    ("upstreams.breaker", "open", "7s", &[]),
    (
        "upstreams.health",
        "interval",
        "7s",
        &[("upstreams", "health", "{interval: 8s}")],
    ),
    ("groups", "name", "k", &[("rules.who", "groups", "[g]")]),
    ("groups", "users", "[v]", &[("rules.who", "groups", "[g]")]),
    ("users", "name", "w", &[]),
    ("users", "password_hash", OTHER_HASH, &[]),
    ("users", "groups", "[h]", &[("rules.who", "groups", "[h]")]),
    ("users", "client_id", "c1", &[]),
    ("users", "client_id_pattern", "c1", &[]),
    ("users", "networks", "[10.0.0.0/8]", &[]),
    ("users", "enabled", "false", &[]),
    ("rules", "name", "r2", &[]),
    ("rules", "priority", "-1", &[]),
    ("rules", "order", "100", &[]),
    ("rules", "who", "{users: [v]}", &[]),
    ("rules", "actions", "[publish]", &[]),
    ("rules", "topics", "[\"t/+\"]", &[]),
    ("rules", "decision", "deny", &[]),
    ("rules", "qos_max", "0", &[]),
    ("rules", "qos_over", "refuse", &[("rules", "qos_max", "0")]),
    ("rules", "retain", "strip", &[]),
    ("rules", "payload_bytes_max", "7", &[]),
    (
        "rules",
        "on_deny",
        "close",
        &[("rules", "payload_bytes_max", "7")],
    ),
    ("rules", "narrow", "true", &[("rules", "order", "100")]),
    ("rules", "mode", "shadow", &[]),
    ("rules", "enabled", "false", &[]),
    ("rules.who", "users", "[v]", &[]),
    ("rules.who", "user_patterns", "[v]", &[]),
    ("rules.who", "client_ids", "[c2]", &[]),
    ("rules.who", "client_id_patterns", "[\".2\"]", &[]),
    ("rules.who", "addresses", "[10.0.0.0/8]", &[]),
    ("rules.who", "groups", "[h]", &[]),
    ("rules.who", "versions", "[5]", &[]),
    ("rules.who", "listeners", "[other]", &[]),
];

/// The sections that are maps within a row, or rows: key by key.
const BASE: &[(&str, &str, &str)] = &[
    ("listeners", "name", "l"),
    ("listeners", "address", "127.0.0.1:0"),
    ("listeners", "upstream", "up"),
    ("upstreams", "name", "up"),
    ("upstreams", "endpoints", "[tcp://a:1]"),
    ("groups", "name", "g"),
    ("users", "name", "u"),
    ("users", "password_hash", HASH),
    ("rules", "name", "r"),
    ("rules", "actions", "[connect, publish, subscribe]"),
    ("rules", "topics", "[\"t/#\"]"),
    ("rules", "decision", "allow"),
];

/// The rows beside the ones that change.
const FIXED: &[(&str, &str)] = &[
    (
        "listeners",
        "{name: other, address: 127.0.0.1:0, upstream: up2, anonymous: {group: g2}}",
    ),
    ("upstreams", "{name: up2, endpoints: [tcp://b:1]}"),
    ("groups", "{name: g2}, {name: h}"),
    (
        "rules",
        "{name: rival, order: 50, actions: [publish, subscribe], topics: [\"t/x\"], decision: deny}, {name: connect, order: 60, actions: [connect], decision: allow}",
    ),
];

/// The base document with some settings made; a later one replaces an earlier one.
fn document(settings: &[(&str, &str, &str)]) -> String {
    let find = |section: &str, key: &str| {
        settings
            .iter()
            .rev()
            .find(|(s, k, _)| *s == section && *k == key)
    };
    let body = |section: &str| -> String {
        let mut keys: Vec<&str> = Vec::new();
        let named = BASE
            .iter()
            .chain(settings)
            .filter(|(s, ..)| *s == section)
            .map(|(_, key, _)| *key);
        named.for_each(|key| {
            if !keys.contains(&key) {
                keys.push(key)
            }
        });
        let value = |key: &str| {
            let set = find(section, key)
                .or_else(|| BASE.iter().find(|(s, k, _)| *s == section && *k == key));
            set.map(|(.., value)| *value).unwrap_or_default().to_owned()
        };
        keys.iter()
            .map(|key| format!("{key}: {}", quoted(&value(key))))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut out = String::new();
    for key in ["requires", "default", "on_deny", "narrow"] {
        if let Some((.., value)) = find("", key) {
            let _ = writeln!(out, "{key}: {value}");
        }
    }
    for section in ["listeners", "upstreams", "groups", "users", "rules"] {
        if let Some((.., value)) = find("", section) {
            let _ = writeln!(out, "{section}: {value}");
            continue;
        }
        let mut row = body(section);
        for inner in [
            "anonymous",
            "client_id",
            "limits",
            "dial",
            "breaker",
            "health",
            "who",
        ] {
            let path = format!("{section}.{inner}");
            if settings.iter().any(|(s, ..)| *s == path) {
                // The whole map may have been set as one key as well; the inner keys win.
                if let Some(start) = row.find(&format!(", {inner}: {{")) {
                    row.truncate(start);
                }
                let _ = write!(row, ", {inner}: {{{}}}", body(&path));
            }
        }
        let rest: Vec<&str> = FIXED
            .iter()
            .filter(|(s, _)| *s == section)
            .map(|(_, rows)| *rows)
            .collect();
        let rest = if rest.is_empty() {
            String::new()
        } else {
            format!(", {}", rest.join(", "))
        };
        let _ = writeln!(out, "{section}: [{{{row}}}{rest}]");
    }
    out
}

fn quoted(value: &str) -> String {
    if value.starts_with('$') {
        format!("\"{value}\"")
    } else {
        value.to_owned()
    }
}

/// Everything a snapshot says and does that someone could notice, but the digest, which covers every row by itself.
fn fingerprint(text: &str) -> String {
    match compile(text, "p.yaml", Generation(1), None) {
        Ok(snapshot) => answers(&snapshot),
        Err(errors) => errors.to_string(),
    }
}

fn answers(snapshot: &Snapshot) -> String {
    let mut out = format!("{:?}\n{:?}\n", snapshot.listeners(), snapshot.upstreams());
    for name in ["u", "v", "w"] {
        if let Some(user) = snapshot.user(name) {
            let _ = writeln!(
                out,
                "{user:?} {:?}",
                user.verifier.as_ref().map(Verifier::digest)
            );
        }
    }
    for listener in snapshot.listeners() {
        for (username, client_id) in [(None, "c1"), (Some("u"), "c1"), (Some("u"), "c2")] {
            for (address, version) in [
                ([127, 0, 0, 1], Version::V311),
                ([10, 0, 0, 1], Version::V5),
            ] {
                let address = IpAddr::from(address);
                let who = Who {
                    listener: listener.id,
                    address,
                    version,
                    client_id,
                    username,
                };
                session(snapshot, &who, &mut out);
            }
        }
    }
    out
}

fn session(snapshot: &Snapshot, who: &Who<'_>, out: &mut String) {
    let name = |rule: Option<_>| rule.map(|rule| snapshot.rule_name(rule));
    let admission = match snapshot.admit(who) {
        Ok(admission) => admission,
        Err(refused) => {
            let refusal = refused.refusal;
            let _ = writeln!(out, "{who:?} {refusal:?} {:?}", name(refused.rule));
            return;
        }
    };
    let _ = writeln!(
        out,
        "{who:?} {:?} {:?}",
        name(admission.rule),
        name(admission.shadow)
    );
    let vars = Vars {
        client_id: who.client_id,
        username: who.username.unwrap_or_default(),
    };
    for topic in ["t/x", "t/y", "t/y/z", "none"] {
        for action in [Action::Publish, Action::Receive] {
            let request = Request {
                action,
                topic,
                qos: QoS::ExactlyOnce,
                retain: true,
                payload_bytes: 10,
            };
            let verdict = snapshot.verdict(&admission.classes, &vars, &request);
            let _ = writeln!(
                out,
                "{request:?} {:?} {verdict:?} {:?}",
                name(verdict.rule),
                name(verdict.shadow)
            );
        }
    }
    let verdict = snapshot.subscribe(&admission.classes, &vars, "t/#", QoS::ExactlyOnce, false);
    let _ = writeln!(
        out,
        "{:?} {verdict:?} {:?}",
        name(verdict.rule),
        name(verdict.shadow)
    );
}

#[test]
fn every_setting_changes_something() {
    let mut idle = Vec::new();
    for (section, key, value, needs) in SETTINGS {
        let without = document(needs);
        let with = document(&[*needs, &[(*section, *key, *value)]].concat());
        assert!(
            compile(&without, "p.yaml", Generation(1), None).is_ok(),
            "{section}.{key}: {}\n{without}",
            fingerprint(&without)
        );
        let refusal = compile(&with, "p.yaml", Generation(1), None)
            .err()
            .map(|errors| errors.to_string());
        // Taking away a row that others name is refused, and that is the change; all else must compile.
        let may_be_refused = [
            "requires",
            "upstreams",
            "groups",
            "users",
            "name",
            "listeners",
        ]
        .contains(key);
        assert!(
            refusal.is_none() || may_be_refused,
            "{section}.{key}: {refusal:?}\n{with}"
        );
        assert!(
            !refusal.is_some_and(|text| text.contains("unknown key")),
            "{section}.{key}\n{with}"
        );
        if fingerprint(&without) == fingerprint(&with) {
            idle.push(format!("{section}.{key}"));
        }
    }
    assert_eq!(idle, Vec::<String>::new(), "settings that do nothing");
}

#[test]
fn every_setting_is_documented_tested_and_accepted() {
    let tested: BTreeSet<(String, String)> = SETTINGS
        .iter()
        .map(|(section, key, ..)| ((*section).to_owned(), (*key).to_owned()))
        .collect();
    assert_eq!(tested.len(), SETTINGS.len());
    let documented = documented();
    assert_eq!(
        documented.difference(&tested).collect::<Vec<_>>(),
        Vec::<&(String, String)>::new(),
        "documented, not tested"
    );
    assert_eq!(
        tested.difference(&documented).collect::<Vec<_>>(),
        Vec::<&(String, String)>::new(),
        "tested, not documented"
    );
    let accepted = accepted();
    assert_eq!(
        accepted.difference(&tested).collect::<Vec<_>>(),
        Vec::<&(String, String)>::new(),
        "accepted, not tested"
    );
    assert_eq!(accepted.len(), tested.len());
}

/// The keys of the tables of the README, by section.
fn documented() -> BTreeSet<(String, String)> {
    let mut section = None;
    let mut found = BTreeSet::new();
    for line in README.lines() {
        if let Some(title) = line.strip_prefix('#') {
            let title = title.trim_start_matches(['#', ' ']);
            section = if title == "At the top" {
                Some(String::new())
            } else {
                title
                    .strip_prefix('`')
                    .and_then(|title| title.strip_suffix('`'))
                    .map(str::to_owned)
            };
        }
        let key = line
            .strip_prefix("| `")
            .and_then(|rest| rest.split_once('`'))
            .map(|(key, _)| key);
        if let (Some(section), Some(key)) = (&section, key) {
            found.insert((section.clone(), key.to_owned()));
        }
    }
    found
}

/// The keys the reader knows: it lists them where it meets one it does not.
fn accepted() -> BTreeSet<(String, String)> {
    const STRANGE: &str = "zzzzzzzzzzzz";
    let mut found = BTreeSet::new();
    let sections: BTreeSet<&str> = SETTINGS.iter().map(|(section, ..)| *section).collect();
    for section in sections {
        let text = match section.split_once('.') {
            None if section.is_empty() => format!("{STRANGE}: 1"),
            None => format!("{section}: [{{name: x, {STRANGE}: 1}}]"),
            Some((rows, inner)) => format!("{rows}: [{{name: x, {inner}: {{{STRANGE}: 1}}}}]"),
        };
        let errors = compile(&text, "p.yaml", Generation(1), None)
            .unwrap_err()
            .to_string();
        let line = errors
            .lines()
            .find(|line| line.contains(STRANGE))
            .unwrap_or_else(|| panic!("{section}: {errors}"));
        let (_, keys) = line.split_once("known keys: ").unwrap();
        found.extend(
            keys.split(", ")
                .map(|key| (section.to_owned(), key.to_owned())),
        );
    }
    found
}

#[test]
fn several_endpoints_that_the_client_id_does_not_choose_between_are_a_warning() {
    let one = "['tcp://a:1']";
    let two = "['tcp://a:1', 'unix:///b']";
    for (balance, endpoints, expected) in [
        ("client_id", two, false),
        ("round_robin", one, false),
        ("least_connections", one, false),
        ("round_robin", two, true),
        ("least_connections", two, true),
    ] {
        let document = format!(
            "listeners: [{{name: l, address: '127.0.0.1:0', upstream: up}}]\nupstreams: [{{name: up, endpoints: {endpoints}, balance: {balance}}}]\n"
        );
        let snapshot = compile(&document, "test", Generation(1), None).unwrap();
        let warnings = snapshot.warnings();
        assert_eq!(warnings.len(), usize::from(expected), "{warnings:?}");
        let names = |warning: &String| warning.contains("`up`") && warning.contains(balance);
        assert!(warnings.iter().all(names), "{warnings:?}");
    }
}

#[test]
fn a_connack_timeout_that_a_listener_cuts_short_is_warned_of() {
    let two = "['tcp://a:1', 'tcp://b:1']";
    for (connect, connack, endpoints, expected) in [
        ("10s", "5s", two, false),
        ("10s", "6s", two, true),
        ("9s", "5s", two, true),
        ("9s", "4500ms", two, false),
        ("10s", "6s", "['tcp://a:1']", false),
    ] {
        let document = format!(
            "listeners: [{{name: l, address: '127.0.0.1:0', upstream: up, limits: {{connect_timeout: {connect}}}}}]\nupstreams: [{{name: up, endpoints: {endpoints}, dial: {{connack_timeout: {connack}}}}}]\n"
        );
        let snapshot = compile(&document, "test", Generation(1), None).unwrap();
        let warnings = snapshot.warnings();
        assert_eq!(
            warnings.len(),
            usize::from(expected),
            "{connect} {connack}: {warnings:?}"
        );
        let names = |warning: &String| warning.contains("`l`") && warning.contains("`up`");
        assert!(warnings.iter().all(names), "{warnings:?}");
    }
}
