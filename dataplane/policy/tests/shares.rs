//! Who a client is, is found in shares: however long its id, however heavy the patterns and however many who-parts nearly
//! match, a share is kept to and the answer is the same.

#![allow(clippy::unwrap_used)] // tests fail by panicking

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use sluice_policy::{Admission, Effort, Generation, Refused, SLICE_NODES, Snapshot, Who, compile};
use sluice_wire::mqtt::Version;

const LONG_ID: &str = ", client_id: {bytes_max: 65535}";

fn document(listener: &str, rest: &str) -> String {
    format!(
        "default: deny\n\
         listeners: [{{name: l, address: \"127.0.0.1:1\", upstream: b, anonymous: {{group: g}}{listener}}}]\n\
         upstreams: [{{name: b, endpoints: [\"tcp://127.0.0.1:2\"]}}]\n{rest}"
    )
}

fn snapshot(document: &str) -> Snapshot {
    compile(document, "test.yaml", Generation(1), None).unwrap()
}

fn who<'a>(snapshot: &Snapshot, client_id: &'a str, username: Option<&'a str>) -> Who<'a> {
    Who {
        listener: snapshot.listener_by_name("l").unwrap().id,
        address: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
        version: Version::V5,
        client_id,
        username,
    }
}

/// The answer in slices, how many there were, and the most that one did.
fn in_slices(snapshot: &Snapshot, who: &Who<'_>) -> (Result<Admission, Refused>, u32, u32) {
    let (mut half, mut slices, mut most) = (None, 0, 0);
    loop {
        let mut effort = Effort::new(SLICE_NODES);
        let admitted = snapshot.admit_within(who, &mut effort, &mut half);
        slices += 1;
        most = most.max(effort.spent());
        if let Some(admitted) = admitted {
            return (admitted, slices, most);
        }
        assert!(effort.is_used_up());
    }
}

/// Asserts that it takes at least so many slices, each of them with no more work than it may do.
fn assert_divided(snapshot: &Snapshot, who: &Who<'_>, slices: std::ops::Range<u32>, beyond: u32) {
    let (admitted, taken, most) = in_slices(snapshot, who);
    assert_eq!(admitted, snapshot.admit(who));
    assert!(slices.contains(&taken), "{taken} slices");
    assert!(most <= SLICE_NODES + beyond, "{most} nodes in a slice");
}

fn rules(of: impl Iterator<Item = String>) -> String {
    let mut text = String::from("rules:\n");
    for (number, who) in of.enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  - {{name: r{number}, who: {{{who}}}, actions: [connect], decision: allow}}"
        );
    }
    text
}

#[test]
fn a_usual_session_takes_little_of_a_slice() {
    let snapshot = snapshot(&document(
        "",
        "groups: [{name: g}]\n\
         rules:\n\
           - {name: a, who: {groups: [g]}, actions: [connect], decision: allow}\n\
           - {name: b, actions: [publish], topics: ['d/${client_id}/#'], decision: allow}\n",
    ));
    let mut effort = Effort::new(SLICE_NODES);
    let who = who(&snapshot, "sensor-4711", None);
    let admitted = snapshot.admit_within(&who, &mut effort, &mut None);
    assert!(matches!(admitted, Some(Ok(_))));
    assert!(effort.spent() <= 12, "{}", effort.spent());
}

#[test]
fn a_long_id_under_many_patterns() {
    let patterns = rules((0..400).map(|n| format!("client_id_patterns: ['(ab|x)*{n}(ab)*']")));
    let snapshot = snapshot(&document(
        LONG_ID,
        &format!("groups: [{{name: g}}]\n{patterns}"),
    ));
    let id = format!("{}7{}", "ab".repeat(16_000), "ab".repeat(16_000));
    let who = who(&snapshot, &id, None);
    assert!(snapshot.admit(&who).is_ok());
    // Names are looked up and checked in one go: 64 bytes a node.
    assert_divided(&snapshot, &who, 10..20_000, 1_024);
}

/// Patterns of a listener and of rules: one that is a table, and one that none can be made of.
#[test]
fn a_long_id_under_single_patterns() {
    let id = format!("{} b", "a".repeat(60_000));
    for pattern in ["a* b", r"a+\b b"] {
        let of_listener = format!(", client_id: {{bytes_max: 65535, pattern: '{pattern}'}}");
        let of_rule = format!("client_id_patterns: ['{pattern}']");
        for (listener, rule) in [(&*of_listener, "listeners: [l]"), (LONG_ID, &*of_rule)] {
            let rules = rules(std::iter::once(rule.to_owned()));
            let text = document(listener, &format!("groups: [{{name: g}}]\n{rules}"));
            let snapshot = snapshot(&text);
            for (id, is_in) in [(&*id, true), (&id[..60_001], false)] {
                let who = who(&snapshot, id, None);
                assert_eq!(snapshot.admit(&who).is_ok(), is_in, "{pattern}");
                assert_divided(&snapshot, &who, 4..1_000, 1_024);
            }
        }
    }
}

/// A pattern whose every character leaves it in hundreds of states.
#[test]
fn a_heavy_pattern() {
    let snapshot = snapshot(&document(
        ", client_id: {bytes_max: 4096, pattern: '.*a.{150}'}",
        "groups: [{name: g}]\nrules: [{name: r, actions: [connect], decision: allow}]\n",
    ));
    let id = "a".repeat(250) + &"é".repeat(3);
    assert_divided(&snapshot, &who(&snapshot, &id, None), 2..10_000, 64);
}

/// Who-parts that differ in an address each, all of the same group: one list of thousands.
#[test]
fn many_who_parts_that_nearly_match() {
    let parts = (0..5_000).map(|number| {
        let last = number % 250;
        format!(
            "groups: [g], addresses: ['10.{}.{}.0/24', '10.1.2.{last}']",
            number / 250,
            number % 250
        )
    });
    let snapshot = snapshot(&document(
        "",
        &format!("groups: [{{name: g}}]\n{}", rules(parts)),
    ));
    assert_divided(&snapshot, &who(&snapshot, "c", None), 1..200, 64);
    let parts = (0..5_000).map(|number| format!("groups: [g], client_ids: ['x{number}', c]"));
    let snapshot = self::snapshot(&document(
        "",
        &format!("groups: [{{name: g}}]\n{}", rules(parts)),
    ));
    assert_divided(&snapshot, &who(&snapshot, "c", None), 12..50, 64);
}

/// A user in thousands of groups under a rule for thousands of others.
#[test]
fn many_groups() {
    let names = |from: u32| {
        (from..from + 4_000)
            .map(|n| format!("g{n}"))
            .collect::<Vec<_>>()
    };
    let (theirs, asked) = (names(0), names(4_000));
    let all = theirs
        .iter()
        .chain(&asked)
        .map(|name| format!("{{name: {name}}}"));
    let all = all.collect::<Vec<_>>().join(", ");
    let user = format!(
        "{{name: u, networks: ['10.0.0.0/8'], groups: [{}]}}",
        theirs.join(", ")
    );
    for (last, is_in) in [("g3999", true), ("g4000", false)] {
        let rule = format!(
            "listeners: [l], users: [u], groups: [{}, {last}]",
            asked.join(", ")
        );
        let text = document(
            "",
            &format!(
                "groups: [{{name: g}}, {all}]\nusers: [{user}]\n{}",
                rules(std::iter::once(rule))
            ),
        );
        let snapshot = snapshot(&text);
        let who = who(&snapshot, "c", Some("u"));
        assert_eq!(snapshot.admit(&who).is_ok(), is_in);
        assert_divided(&snapshot, &who, 8..40, 64);
    }
}
