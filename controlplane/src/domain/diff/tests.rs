//! Every change once, in the words of the document, and nothing that must stay secret.

use super::*;
use proptest::prelude::*;
use sluice_policy::convert;

fn rows(document: &str) -> Inventory {
    let rows = sluice_policy::parse(document, "test").expect("a good document");
    Inventory::from_messages(&convert::to_messages(&rows)).expect("good rows")
}

/// `kind name: field: before -> after`, one line for each.
fn lines(from: &str, to: &str) -> Vec<String> {
    let diff = Diff::between(&rows(from), &rows(to), 1000);
    let mut lines = Vec::new();
    for row in diff.rows {
        for field in row.fields {
            let text = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            let (before, after) = (text(field.before), text(field.after));
            lines.push(format!(
                "{}: {}: {before} -> {after}",
                row.title, field.field
            ));
        }
    }
    lines
}

const BASE: &str = "
default: deny
listeners:
  - {name: main, address: '0.0.0.0:1883', upstream: b, anonymous: {group: guests}, limits: {connect_timeout: 5s, packet_bytes_max: 2MiB}}
upstreams: [{name: b, endpoints: 'tcp://x:1', dial: {timeout: 250ms}, health: {interval: 2m}}]
groups: [{name: guests, users: [a, b]}]
users: [{name: ann, password_hash: '$7$1$c2FsdA==$aGFzaA=='}]
rules:
  - {name: r1, actions: [publish], topics: ['a/#'], decision: allow}
  - {name: r2, actions: [publish, subscribe], topics: ['b/#'], decision: allow, who: {users: [ann]}}
  - {name: r3, actions: [publish], topics: ['c/#'], decision: deny}
";

#[test]
fn fields_are_called_and_written_as_in_the_document() {
    let table: [(&str, &str, &[&str]); 14] = [
        (
            "default: deny",
            "default: allow",
            &["settings: default: deny -> allow"],
        ),
        (
            "default: deny",
            "requires: rules",
            &[
                "settings: requires: - -> rules",
                "settings: default: deny -> -",
            ],
        ),
        (
            "0.0.0.0:1883",
            "0.0.0.0:1884",
            &["listener main: address: 0.0.0.0:1883 -> 0.0.0.0:1884"],
        ),
        (
            "anonymous: {group: guests}, ",
            "",
            &["listener main: anonymous.group: guests -> -"],
        ),
        (
            "connect_timeout: 5s",
            "connections_max: unlimited",
            &[
                "listener main: limits.connections_max: - -> unlimited",
                "listener main: limits.connect_timeout: 5s -> -",
            ],
        ),
        (
            "2MiB",
            "1536",
            &["listener main: limits.packet_bytes_max: 2MiB -> 1536"],
        ),
        ("250ms", "61s", &["upstream b: dial.timeout: 250ms -> 61s"]),
        (
            ", health: {interval: 2m}",
            ", balance: round_robin",
            &[
                "upstream b: balance: - -> round_robin",
                "upstream b: health.interval: 2m -> -",
            ],
        ),
        (
            "users: [a, b]",
            "users: [a]",
            &["group guests: users: a, b -> a"],
        ),
        (
            "$7$1$c2FsdA==$aGFzaA==",
            "$7$1$c2FsdA==$b3RoZXI=",
            &["user ann: password_hash: set -> changed"],
        ),
        (
            "aGFzaA=='",
            "aGFzaA==', enabled: false",
            &["user ann: enabled: - -> false"],
        ),
        (
            "who: {users: [ann]}",
            "who: {addresses: [10.0.0.0/8]}, mode: shadow",
            &[
                "rule r2: who.users: ann -> -",
                "rule r2: who.addresses: - -> 10.0.0.0/8",
                "rule r2: mode: - -> shadow",
            ],
        ),
        (
            "[publish, subscribe]",
            "[publish]",
            &["rule r2: actions: publish, subscribe -> publish"],
        ),
        (
            "decision: deny}",
            "decision: allow, priority: 3, qos_max: 1, payload_bytes_max: 64KiB}",
            &[
                "rule r3: priority: - -> 3",
                "rule r3: decision: deny -> allow",
                "rule r3: qos_max: - -> 1",
                "rule r3: payload_bytes_max: - -> 64KiB",
            ],
        ),
    ];
    for (old, new, expected) in table {
        assert!(BASE.contains(old), "{old}");
        assert_eq!(
            lines(BASE, &BASE.replace(old, new)),
            expected,
            "{old} -> {new}"
        );
    }
}

#[test]
fn a_moved_rule_is_told_by_its_neighbours() {
    let rule = |name: &str, order: i64| {
        format!("  - {{name: {name}, order: {order}, actions: connect, decision: allow}}\n")
    };
    let document = |rules: &[(&str, i64)]| {
        let rules: String = rules
            .iter()
            .map(|(name, order)| rule(name, *order))
            .collect();
        format!("rules:\n{rules}")
    };
    let before = document(&[("a", 1), ("b", 5), ("c", 9)]);
    let table = [
        (
            document(&[("a", 10), ("b", 5), ("c", 9)]),
            "rule a: order: first of its priority -> after `c`",
        ),
        (
            document(&[("a", 1), ("b", 6), ("c", 9)]),
            "rule b: order: after `a` -> after `a`, with another number",
        ),
        (
            document(&[("a", 1), ("b", 5), ("c", 2)]),
            "rule c: order: after `b` -> after `a`",
        ),
    ];
    for (after, expected) in table {
        assert_eq!(lines(&before, &after), [expected]);
    }
    let added = lines(
        &before,
        &document(&[("a", 1), ("x", 4), ("b", 5), ("c", 9)]),
    );
    assert!(
        added.contains(&"rule x: order: - -> after `a`".into()),
        "{added:?}"
    );
}

#[test]
fn a_stored_password_is_in_no_answer() {
    let empty = Inventory::default();
    let base = rows(BASE);
    let other = rows(&BASE.replace("c2FsdA==$aGFzaA", "cGVwcGVy$b3RoZXI"));
    for (from, to) in [
        (&empty, &base),
        (&base, &empty),
        (&base, &other),
        (&other, &base),
    ] {
        let shown = format!("{:?}", Diff::between(from, to, 1000));
        assert!(shown.contains("password_hash"), "{shown}");
        for secret in ["$7$", "c2FsdA", "aGFzaA", "cGVwcGVy", "b3RoZXI"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[test]
fn a_long_list_is_told_by_what_differs_and_a_long_answer_is_cut() {
    let group = |users: usize| {
        let users: Vec<String> = (0..users).map(|n| format!("user-{n:06}")).collect();
        format!("groups: [{{name: g, users: [{}]}}]", users.join(", "))
    };
    assert_eq!(
        lines(&group(5000), &group(5001)),
        ["group g: users: 5000 values -> 5001 values, here alone: user-005000"]
    );
    let long = "x".repeat(3000);
    let rules: String = (0..2000)
        .map(|n| {
            format!("  - {{name: r{n}, actions: publish, topics: [{long}], decision: allow}}\n")
        })
        .collect();
    let many = rows(&format!("rules:\n{rules}"));
    let diff = Diff::between(&Inventory::default(), &many, 10_000);
    assert_eq!(diff.summary.added, 2001);
    assert!(diff.rows.len() > 500 && diff.rows.len() < 2001);
    assert_eq!(diff.rows.len() as u64 + diff.left_off, 2001);
    let bytes: usize = diff.rows.iter().map(RowDiff::bytes).sum();
    assert!(bytes <= DIFF_BYTES_MAX);
}

#[test]
fn a_row_written_in_another_way_is_there() {
    let row = |limits| v1::Row {
        name: "main".into(),
        kind: Some(Kind::Listener(v1::Listener {
            limits,
            ..v1::Listener::default()
        })),
        ..v1::Row::default()
    };
    let from = Inventory::from_messages(&[row(None)]).unwrap();
    let to = Inventory::from_messages(&[row(Some(v1::Limits::default()))]).unwrap();
    let diff = Diff::between(&from, &to, 10);
    assert_eq!(diff.summary.changed, 1);
    assert_eq!(diff.rows[0].fields[0].field, "row");
}

/// A few rows of each kind, with few names, so that two sets have some in common.
fn some_rows() -> impl Strategy<Value = Inventory> {
    let row = (0..6_u8, 0..5_u8, 0..3_u8).prop_map(|(kind, name, says)| {
        let text = Some(format!("v{says}"));
        let kind = match kind {
            0 => Kind::Settings(v1::Settings {
                default_effect: says.into(),
                ..v1::Settings::default()
            }),
            1 => Kind::Listener(v1::Listener {
                address: text,
                ..v1::Listener::default()
            }),
            2 => Kind::Upstream(v1::Upstream {
                endpoints: text.into_iter().collect(),
                ..v1::Upstream::default()
            }),
            3 => Kind::Group(v1::Group {
                users: text.into_iter().collect(),
            }),
            4 => Kind::User(v1::User {
                password_hash: text,
                ..v1::User::default()
            }),
            _ => Kind::Rule(v1::Rule {
                order: Some(says.into()),
                ..v1::Rule::default()
            }),
        };
        let is_settings = matches!(kind, Kind::Settings(_));
        let name = if is_settings {
            String::new()
        } else {
            format!("n{name}")
        };
        v1::Row {
            name,
            kind: Some(kind),
            ..v1::Row::default()
        }
    });
    proptest::collection::vec(row, 0..20).prop_map(|rows| Inventory::from_messages(&rows).unwrap())
}

proptest! {
    #[test]
    fn every_change_is_there_once_and_nothing_else(from in some_rows(), to in some_rows(), limit in 0..30_usize) {
        let mut keys: Vec<RowKey> = from.changes_to(&to).into_iter().map(|change| change.key).collect();
        keys.sort();
        let diff = Diff::between(&from, &to, limit);
        let listed: Vec<RowKey> = diff.rows.iter().map(|row| row.key.clone()).collect();
        prop_assert_eq!(&listed[..], &keys[..keys.len().min(limit)]);
        prop_assert_eq!(listed.len() as u64 + diff.left_off, keys.len() as u64);
        let Summary { added, changed, removed } = diff.summary;
        prop_assert_eq!(added + changed + removed, keys.len() as u64);
        prop_assert!(diff.rows.iter().all(|row| row.became != Became::Changed || !row.fields.is_empty()));
        prop_assert_eq!(Diff::between(&to, &to, 10), Diff::default());
    }
}
