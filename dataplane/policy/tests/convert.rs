//! Messages and YAML are two spellings of the same rows: what is written in one and read in the other is the same policy,
//! and what cannot be read as it was meant is refused, with every problem and its place.
#![allow(missing_docs, clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::sample::subsequence;
use sluice_policy::convert::{
    Refused, Wrong, compile_inventory, compile_messages, from_messages, note_locked_out,
    to_messages,
};
use sluice_policy::fleet::Inventory;
use sluice_policy::{Generation, LockedOut, PROBLEMS_MAX, Snapshot, compile, parse};
use sluice_proto::Message;
use sluice_proto::v1::{self, RowKind, row::Kind};

const HASH: &str = "$7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

const SMALL: &str = r"
listeners: [{name: l, address: '127.0.0.1:0', upstream: up}]
upstreams: [{name: up, endpoints: ['tcp://broker:1883']}]
groups: [{name: g}]
rules:
  - {name: first, actions: [connect], decision: allow}
  - {name: second, actions: publish, topics: 'a/#', decision: allow, order: 7}
";

fn messages(yaml: &str) -> Vec<v1::Row> {
    to_messages(&parse(yaml, "test").unwrap())
}

fn compiled(rows: Vec<v1::Row>) -> Result<Snapshot, Refused> {
    compile_messages(rows, Generation(1), None)
}

/// What a snapshot consists of: the digest covers every row, the rest is what it does not.
fn shown(snapshot: &Snapshot) -> String {
    format!(
        "{} {:?} {:?} {:?}",
        snapshot.digest(),
        rules(snapshot),
        snapshot.listeners(),
        snapshot.upstreams()
    )
}

/// Names of the rules in the order in which they are asked.
fn rules(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.rule_names().collect()
}

// --- the same in both spellings

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn yaml_and_messages_are_two_spellings((yaml, swaps) in (document(), any::<u64>())) {
        let expected = compile(&yaml, "test", Generation(1), None)
            .map_err(|errors| TestCaseError::fail(format!("{errors}\n{yaml}")))?;
        // Through the bytes, as between two processes.
        let sent: Vec<Vec<u8>> = messages(&yaml).iter().map(Message::encode_to_vec).collect();
        let received: Vec<v1::Row> = sent.iter().map(|row| v1::Row::decode(&**row).unwrap()).collect();

        let snapshot = compiled(received.clone()).unwrap();
        prop_assert_eq!(shown(&snapshot), shown(&expected), "{}", yaml);

        // Read and written again, not a byte differs: only then is a digest of a row worth anything. Rules come back in the
        // order in which they are asked, so the rows are compared as a set.
        let mut again: Vec<Vec<u8>> =
            to_messages(&from_messages(received.clone()).unwrap()).iter().map(Message::encode_to_vec).collect();
        let mut sent = sent;
        again.sort();
        sent.sort();
        prop_assert_eq!(again, sent);

        let mut shuffled = received;
        let count = shuffled.len();
        for index in 0..count {
            shuffled.swap(index, swaps.rotate_left(u32::try_from(index).unwrap()) as usize % count);
        }
        let snapshot = compiled(shuffled).unwrap();
        prop_assert_eq!(snapshot.digest(), expected.digest());
        prop_assert_eq!(rules(&snapshot), rules(&expected));
    }
}

#[test]
fn the_examples_survive() {
    for yaml in [
        include_str!("../../../deploy/examples/fleet.yaml"),
        include_str!("../../../deploy/examples/policy.yaml"),
        include_str!("../../../deploy/examples/trying-a-change.yaml"),
    ] {
        let expected = compile(yaml, "test", Generation(1), None).unwrap();
        assert_eq!(shown(&compiled(messages(yaml)).unwrap()), shown(&expected));
    }
}

#[test]
fn rules_that_tie_keep_the_order_of_the_document() {
    let rule = |name: &str, order: &str| {
        format!("  - {{name: {name}, actions: [connect], decision: allow{order}}}\n")
    };
    let yaml = format!(
        "rules:\n{}{}{}",
        rule("z", ", order: 2"),
        rule("y", ", order: 2"),
        rule("x", "")
    );
    let mut rows = messages(&yaml);
    rows.reverse();
    assert_eq!(rules(&compiled(rows).unwrap()), ["z", "y", "x"]);
}

#[test]
fn every_row_names_the_features_it_needs() {
    let rows = messages(
        "listeners: [{name: l, username: ignore, limits: {tcp_keep_alive: 1s}}]\nupstreams: [{name: up, tcp_keep_alive: 1s, dial: {connack_timeout: 1s}}]\nusers: [{name: u, password_hash: x, client_id: c, networks: [10.0.0.0/8]}]\nrules: [{name: r, mode: shadow, qos_max: 1, retain: strip, payload_bytes_max: 1}]",
    );
    let features: Vec<String> = rows.iter().map(|row| row.features.join(" ")).collect();
    assert_eq!(
        features,
        [
            "",
            "mqtt listeners.username tcp_keep_alive",
            "mqtt tcp_keep_alive upstreams.connack_timeout",
            "users client_id_binding users.networks",
            "rules rules.shadow rules.qos rules.retain rules.payload"
        ]
    );
}

#[test]
fn a_length_of_time_beyond_the_field_stays_refused() {
    let longest = format!("{}ms", u64::MAX);
    let yaml = SMALL.replace(
        "upstream: up}",
        &format!("upstream: up, limits: {{keep_alive_max: {longest}}}}}"),
    );
    assert!(compile(&yaml, "test", Generation(1), None).is_err());
    assert_eq!(
        compiled(messages(&yaml)).unwrap_err().to_string(),
        "listener l: limits.keep_alive_max_us: `keep_alive_max` must be from 1s to 65535s, not 18446744073709551615us"
    );
}

// --- what is refused

/// The row of that kind and name.
fn row<'a>(rows: &'a mut [v1::Row], name: &str) -> &'a mut v1::Row {
    rows.iter_mut().find(|row| row.name == name).unwrap()
}

fn rule(rows: &mut [v1::Row]) -> &mut v1::Rule {
    match &mut row(rows, "second").kind {
        Some(Kind::Rule(rule)) => rule,
        other => panic!("{other:?}"),
    }
}

fn listener(rows: &mut [v1::Row]) -> &mut v1::Listener {
    match &mut row(rows, "l").kind {
        Some(Kind::Listener(listener)) => listener,
        other => panic!("{other:?}"),
    }
}

fn settings(rows: &mut [v1::Row]) -> &mut v1::Settings {
    match &mut row(rows, "").kind {
        Some(Kind::Settings(settings)) => settings,
        other => panic!("{other:?}"),
    }
}

fn upstream(rows: &mut [v1::Row]) -> &mut v1::Upstream {
    match &mut row(rows, "up").kind {
        Some(Kind::Upstream(upstream)) => upstream,
        other => panic!("{other:?}"),
    }
}

type Harm = fn(&mut Vec<v1::Row>);

#[test]
fn what_this_build_does_not_know_or_cannot_mean_is_refused() {
    const UNKNOWN: &str = "77 is no choice that this version knows";
    let table: &[(Harm, &str)] = &[
        (|rows| rule(rows).decision = 77, "rule second: decision: "),
        (|rows| rule(rows).actions.push(77), "rule second: actions: "),
        (|rows| rule(rows).qos_over = 77, "rule second: qos_over: "),
        (|rows| rule(rows).retain = 77, "rule second: retain: "),
        (|rows| rule(rows).on_deny = 77, "rule second: on_deny: "),
        (|rows| rule(rows).mode = 77, "rule second: mode: "),
        (
            |rows| listener(rows).upstream_auth = 77,
            "listener l: upstream_auth: ",
        ),
        (
            |rows| listener(rows).drain_wills = 77,
            "listener l: drain_wills: ",
        ),
        (
            |rows| listener(rows).reason_strings = 77,
            "listener l: reason_strings: ",
        ),
        (
            |rows| listener(rows).username = 77,
            "listener l: username: ",
        ),
        (|rows| upstream(rows).balance = 77, "upstream up: balance: "),
        (
            |rows| settings(rows).default_effect = 77,
            "settings: default_effect: ",
        ),
        (|rows| settings(rows).on_deny = 77, "settings: on_deny: "),
    ];
    for (harm, place) in table {
        refuses(*harm, &format!("{place}{UNKNOWN}"));
    }
    let table: &[(Harm, &str)] = &[
        (
            |rows| rule(rows).actions.push(0),
            "rule second: actions: UNSPECIFIED cannot stand in a list",
        ),
        (
            |rows| rule(rows).order = None,
            "rule second: order: it is required",
        ),
        (
            |rows| rule(rows).decision = 0,
            "rule second: `decision` is missing",
        ),
        (
            |rows| row(rows, "second").features.push("rules.moon".into()),
            "rule second: features: this node does not have `rules.moon`",
        ),
        (
            |rows| row(rows, "").features.push("moon".into()),
            "settings: features: this node does not have `moon`",
        ),
        (
            |rows| row(rows, "second").kind = None,
            "row second: it says nothing, or is of a kind that this version does not know",
        ),
        (
            |rows| row(rows, "first").name = "second".into(),
            "rule second: a second row of that kind and name",
        ),
        (
            |rows| row(rows, "first").name = String::new(),
            "rule: name: the name of a rule must not be empty",
        ),
        (
            |rows| row(rows, "").name = "x".into(),
            "settings: name: the settings row has no name",
        ),
        (
            |rows| rows.extend(rows.first().cloned()),
            "settings: a second row of that kind and name",
        ),
        (
            |rows| drop(rows.remove(0)),
            "the document: there is no settings row",
        ),
        (Vec::clear, "the document: there is no settings row"),
        (
            |rows| listener(rows).versions = Some(v1::Texts::default()),
            "listener l: `versions` must not be empty",
        ),
        (
            |rows| {
                rule(rows).who = Some(v1::Who {
                    users: Some(v1::Texts::default()),
                    ..v1::Who::default()
                })
            },
            "rule second: `users` of `who` must not be empty; leave it out to mean any",
        ),
        (
            |rows| rule(rows).topics = vec!["a/#/b".into()],
            "rule second: topics: `a/#/b`: `#` must be a whole level, the last one",
        ),
    ];
    for (harm, expected) in table {
        refuses(*harm, expected);
    }
}

fn refuses(harm: Harm, expected: &str) {
    let mut rows = messages(SMALL);
    assert!(compiled(rows.clone()).is_ok());
    harm(&mut rows);
    assert_eq!(compiled(rows).unwrap_err().to_string(), expected);
}

/// What another version wrote: a kind of row that came later is an unknown field here, and leaves the row empty.
#[test]
fn a_kind_of_row_from_the_future_is_refused() {
    let mut bytes = v1::Row {
        name: "later".into(),
        ..v1::Row::default()
    }
    .encode_to_vec();
    bytes.extend([0xa2, 0x01, 0x00]); // field 20, length-delimited, empty
    let mut rows = messages(SMALL);
    rows.push(v1::Row::decode(&*bytes).unwrap());
    let refused = from_messages(rows).unwrap_err();
    let [problem] = refused.problems() else {
        panic!("{refused}");
    };
    assert_eq!(
        (problem.kind, &problem.wrong),
        (RowKind::Unspecified, &Wrong::UnknownKind)
    );
}

#[test]
fn problems_of_every_stage_come_together_in_the_order_of_the_rows() {
    let mut rows = messages(SMALL);
    listener(&mut rows).upstream = Some("nowhere".into());
    upstream(&mut rows).balance = 77;
    rule(&mut rows).retain = 77;
    rule(&mut rows).qos_max = Some(3);
    row(&mut rows, "second").features.push("moon".into());
    assert_eq!(
        compiled(rows)
            .unwrap_err()
            .to_string()
            .lines()
            .collect::<Vec<_>>(),
        [
            "listener l: upstream: there is no upstream `nowhere`",
            "upstream up: balance: 77 is no choice that this version knows",
            "rule second: features: this node does not have `moon`",
            "rule second: retain: 77 is no choice that this version knows",
            "rule second: qos_max: `qos_max` is 0, 1 or 2, not 3",
        ]
    );
}

#[test]
fn problems_are_bounded_and_the_rest_is_counted() {
    let mut rows = messages(SMALL);
    rule(&mut rows).actions = vec![77; PROBLEMS_MAX + 5];
    let refused = from_messages(rows).unwrap_err();
    assert_eq!(refused.problems().len(), PROBLEMS_MAX);
    assert_eq!(refused.left_off(), 5);
    assert!(refused.to_string().ends_with("and 5 more problems"));
}

// --- what an earlier version stored

fn user(name: &str, password_hash: &str) -> v1::Row {
    v1::Row {
        name: name.into(),
        kind: Some(Kind::User(v1::User {
            password_hash: Some(password_hash.into()),
            ..v1::User::default()
        })),
        ..v1::Row::default()
    }
}

fn users(of: impl IntoIterator<Item = (&'static str, String)>) -> Vec<v1::Row> {
    let mut rows = messages(SMALL);
    rows.extend(of.into_iter().map(|(name, hash)| user(name, &hash)));
    rows
}

/// However the rows become a snapshot, the user of a broken hash is not in it and is named, and all else is as before.
#[test]
fn a_stored_row_with_a_broken_hash_locks_its_user_out_and_nothing_else() {
    let broken = [
        (
            "locked",
            format!("!{HASH}"),
            "a locked account (`!` or `*`)",
        ),
        (
            "starred",
            format!("*{HASH}"),
            "a locked account (`!` or `*`)",
        ),
        (
            "line",
            format!("line:{HASH}"),
            "it looks like a line of a password file",
        ),
        (
            "returned",
            format!("{HASH}\r"),
            "a carriage return after the hash",
        ),
        ("cut", HASH[..40].to_owned(), "broken `$7$` hash"),
    ];
    let named = |(name, hash, _): &(&'static str, String, &str)| (*name, hash.clone());
    let mut rows = users(broken.iter().map(named));
    rows.push(user("good", HASH));
    let mut disabled = user("off", &format!("!{HASH}"));
    if let Some(Kind::User(user)) = &mut disabled.kind {
        user.enabled = Some(false);
    }
    rows.push(disabled);

    let whole = Inventory::from_messages(&rows).unwrap();
    let before = Inventory::from_messages(&users([("good", HASH.to_owned())])).unwrap();
    let before = compile_inventory(&before, Generation(1), None).unwrap();
    let snapshots = [
        compiled(rows.clone()).unwrap(),
        compile_inventory(&whole, Generation(2), None).unwrap(),
        compile_inventory(&whole, Generation(2), Some(&before)).unwrap(),
    ];
    let mut noted = LockedOut::default();
    rows.iter().for_each(|row| note_locked_out(row, &mut noted));
    for snapshot in &snapshots {
        let warnings = snapshot.warnings();
        assert_eq!(warnings, noted.warnings());
        assert_eq!(warnings.len(), broken.len(), "{warnings:#?}");
        for (name, _, why) in &broken {
            assert!(snapshot.user(name).is_none(), "{name}");
            let start = format!(
                "user `{name}` cannot log in: the stored `password_hash` cannot be used: {why}"
            );
            assert!(
                warnings.iter().any(|text| text.starts_with(&start)),
                "{start} {warnings:#?}"
            );
        }
        assert!(snapshot.user("good").is_some() && snapshot.user("off").is_none());
    }

    // Another hash, and the user is there; no row, and nothing is said any more.
    let mended = rows
        .into_iter()
        .filter(|row| row.name != "cut")
        .map(|row| match &*row.name {
            "locked" => user("locked", HASH),
            _ => row,
        });
    let mended = Inventory::from_messages(&mended.collect::<Vec<_>>()).unwrap();
    let mended = compile_inventory(&mended, Generation(3), Some(&snapshots[2])).unwrap();
    assert!(mended.user("locked").is_some());
    assert_eq!(mended.warnings().len(), broken.len() - 2);
}

#[test]
fn warnings_about_locked_out_users_are_bounded() {
    let many = (0..25).map(|n| user(&format!("u{n:02}"), &format!("!{HASH}")));
    let mut rows = messages(SMALL);
    rows.extend(many);
    let warnings = compiled(rows).unwrap().warnings();
    assert_eq!(warnings.len(), 21);
    assert!(warnings[19].starts_with("user `u19`"), "{warnings:#?}");
    assert_eq!(warnings[20], "5 more users cannot log in for such reasons");
}

/// Version 0.1.0 took names that turn the direction of writing, so a store may hold some. A document may not.
#[test]
fn a_stored_row_with_a_deceptive_name_still_loads() {
    let rows = users([("an\u{202e}n", HASH.to_owned())]);
    let inventory = Inventory::from_messages(&rows).unwrap();
    let (whole, before) = (messages(SMALL), Generation(1));
    let before =
        compile_inventory(&Inventory::from_messages(&whole).unwrap(), before, None).unwrap();
    for snapshot in [
        compiled(rows).unwrap(),
        compile_inventory(&inventory, Generation(2), None).unwrap(),
        compile_inventory(&inventory, Generation(2), Some(&before)).unwrap(),
    ] {
        assert!(snapshot.user("an\u{202e}n").is_some());
    }
    let document = format!("users: [{{name: \"an\\u202En\", password_hash: {HASH}}}]");
    assert!(compile(&document, "p", Generation(1), None).is_err());
}

/// No version has stored these, so one that does not know them is too old for the rows.
#[test]
fn a_stored_row_with_what_was_never_a_hash_is_refused() {
    for hash in [
        "hunter2",
        "$9$later$format",
        "$6$salt$hash",
        "$2b$31$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
    ] {
        let rows = users([("u", hash.to_owned())]);
        let refused = compiled(rows.clone()).unwrap_err();
        let inventory = Inventory::from_messages(&rows).unwrap();
        let again = compile_inventory(&inventory, Generation(1), None).unwrap_err();
        for refused in [refused, again] {
            assert_eq!(
                (refused.problems()[0].field, refused.problems().len()),
                ("password_hash", 1)
            );
        }
    }
}

// --- documents

/// Documents that are right, with any of the settings given or left out.
fn document() -> impl Strategy<Value = String> {
    let top = some(&[
        "requires: [rules, mqtt]",
        "default: allow",
        "on_deny: close",
        "narrow: true",
    ]);
    let users = prop::collection::vec(user_of_document(), 0..3);
    let rules = prop::collection::vec(one_rule(), 0..7);
    (top, row_of(LISTENER), limits(), row_of(UPSTREAM), users, rules).prop_map(
        |(top, listener, limits, upstream, users, rules)| {
            let numbered = |rows: &[String], kind: &str| -> String {
                let rows: Vec<String> = rows
                    .iter()
                    .enumerate()
                    .map(|(index, row)| format!("  - {{name: {kind}{index}, {row}}}\n"))
                    .collect();
                rows.concat()
            };
            let list = |key: &str, rows: String| {
                if rows.is_empty() { String::new() } else { format!("{key}:\n{rows}") }
            };
            [
                top.join("\n"),
                "\nlisteners:\n".into(),
                format!("  - {{name: l0, address: '127.0.0.1:0', upstream: up, {listener} limits: {{{limits}}}}}\n"),
                "  - {name: a1, address: '[::1]:0', upstream: up}\n".into(),
                format!("upstreams:\n  - {{name: up, {upstream} endpoints: ['tcp://b:1', 'unix:///b']}}\n"),
                "groups:\n  - {name: g, users: []}\n  - {name: f}\n".into(),
                list("users", numbered(&users, "u")),
                list("rules", numbered(&rules, "r")),
            ]
            .concat()
        },
    )
}

const LISTENER: &[&str] = &[
    "versions: ['3.1', '5.0']",
    "anonymous: {group: g}",
    "client_id: {pattern: 'c.*', bytes_max: 64}",
    "upstream_auth: pass",
    "drain_wills: suppress",
    "username: verify",
    "reason_strings: rule",
];

const UPSTREAM: &[&str] = &[
    "balance: least_connections",
    "dial: {timeout: 1s, attempts_max: 2, backoff: 20ms, connack_timeout: 2s}",
    "tcp_keep_alive: 0s",
    "breaker: {failures: 3, open: 2s}",
    "health: {interval: 1s}",
];

fn limits() -> impl Strategy<Value = String> {
    some(&[
        "connections_max: 7",
        "connections_per_address_max: unlimited",
        "packet_bytes_max: 2MiB",
        "connect_bytes_max: 2KiB",
        "topic_alias_max: 0",
        "receive_max: 9",
        "keep_alive_max: 1m",
        "connect_timeout: 1s",
        "packet_timeout: 2s",
        "write_stall_timeout: 3s",
        "backlog_bytes_high: 128KiB",
        "backlog_bytes_low: 8KiB",
        "latency_budget: 300us",
        "tcp_keep_alive: 30s",
    ])
    .prop_map(|keys| keys.join(", "))
}

fn user_of_document() -> impl Strategy<Value = String> {
    let binding = prop::sample::select(vec![
        "",
        "client_id: 'c-${username}', ",
        "client_id_pattern: 'c.*', ",
    ]);
    let proof = prop::sample::select(vec![
        format!("password_hash: '{HASH}'"),
        format!("password_hash: '{HASH}', networks: ['10.0.0.0/8', '::1']"),
        "networks: 10.0.0.0/8".to_owned(),
    ]);
    (
        binding,
        row_of(&["groups: [g, f]", "enabled: false"]),
        proof,
    )
        .prop_map(|(binding, rest, proof)| format!("{binding}{rest} {proof}"))
}

fn one_rule() -> impl Strategy<Value = String> {
    let who = some(&[
        "users: [u0, x]",
        "user_patterns: 'u.*'",
        "client_ids: [c]",
        "client_id_patterns: ['c.*', 'd']",
        "addresses: ['10.0.0.0/8', '::1']",
        "groups: g",
        "versions: ['3.1.1', 5]",
        "listeners: [l0, a1]",
    ]);
    let decides = prop_oneof![
        row_of(&[
            "qos_max: 1, qos_over: refuse",
            "retain: strip",
            "payload_bytes_max: 1KiB, on_deny: close"
        ])
        .prop_map(|row| format!(
            "{row} actions: [publish, receive], topics: ['a/+', '${{username}}/#'], decision: allow"
        )),
        Just("actions: [subscribe], topics: b, decision: deny".into()),
        row_of(&["narrow: true", "qos_max: 1"])
            .prop_map(|row| format!("{row} actions: [subscribe], topics: c, decision: allow")),
        Just("actions: [connect], decision: allow".into()),
    ];
    let keys = (
        prop::option::of(-1_i64..2),
        prop::option::of(0_i64..4),
        row_of(&["mode: shadow", "enabled: false"]),
    );
    (who, decides, keys).prop_map(|(who, decides, (priority, order, rest))| {
        let priority = priority.map_or(String::new(), |key| format!("priority: {key}, "));
        let order = order.map_or(String::new(), |key| format!("order: {key}, "));
        format!(
            "{priority}{order}{rest} who: {{{}}}, {decides}",
            who.join(", ")
        )
    })
}

/// Any of the keys, each with its comma.
fn row_of(keys: &'static [&'static str]) -> impl Strategy<Value = String> {
    some(keys).prop_map(|keys| keys.iter().map(|key| format!("{key}, ")).collect())
}

fn some(keys: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(keys.to_vec(), 0..=keys.len())
}
