//! A snapshot that came by changes answers like one made of the whole, however it came there.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sluice_proto::v1::{self, row::Kind};
use sluice_wire::mqtt::{QoS, Version};

use super::*;
use crate::convert::{compile_inventory, compile_messages};
use crate::{Action, Question, Request, RuleId, Vars, Who};

fn follow(previous: &Snapshot, rows: &Inventory, generation: Generation) -> Option<Snapshot> {
    super::follow(previous, rows, generation, &Cancel::new())
}

const KEY: &str =
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
const TOPICS: [&str; 8] = [
    "a",
    "a/b",
    "b/b",
    "a/c",
    "$s/a",
    "u0/a",
    "b/a-level-of-many-bytes",
    "a/a-level-of-many-bytez/x",
];
const FILTERS: [&str; 12] = [
    "a",
    "a/b",
    "+/b",
    "a/#",
    "#",
    "$s/#",
    "+/+",
    "${username}/a",
    "a/${client_id}/#",
    "b/a-level-of-many-bytes",
    "+/a-level-of-many-bytez/#",
    "b/+",
];
const ASKED: [&str; 7] = [
    "a/#",
    "+/b",
    "#",
    "a/b",
    "b/+",
    "+/a-level-of-many-bytes",
    "u0/a",
];

fn row(name: &str, kind: Kind) -> v1::Row {
    v1::Row {
        name: name.into(),
        features: Vec::new(),
        kind: Some(kind),
    }
}

fn frame() -> Vec<v1::Row> {
    let listener = |group: Option<&str>| {
        Kind::Listener(v1::Listener {
            address: Some("127.0.0.1:0".into()),
            upstream: Some("up".into()),
            anonymous_group: group.map(Into::into),
            ..v1::Listener::default()
        })
    };
    let upstream = v1::Upstream {
        endpoints: vec!["tcp://a:1".into(), "tcp://b:1".into()],
        balance: v1::Balance::RoundRobin.into(),
        ..v1::Upstream::default()
    };
    vec![
        row("", Kind::Settings(v1::Settings::default())),
        row("open", listener(Some("g0"))),
        row("closed", listener(None)),
        row("up", Kind::Upstream(upstream)),
        row("g0", Kind::Group(v1::Group::default())),
        row("g1", Kind::Group(v1::Group::default())),
        row("u0", user_of(&["g1"], None, true, 1)),
    ]
}

fn user_of(groups: &[&str], pattern: Option<&str>, enabled: bool, rounds: u32) -> Kind {
    Kind::User(v1::User {
        // Of 0 rounds is what an earlier version may have stored.
        password_hash: Some(format!("$7${rounds}$AAAA${KEY}")),
        groups: groups.iter().map(ToString::to_string).collect(),
        client_id_pattern: pattern.map(Into::into),
        enabled: Some(enabled),
        ..v1::User::default()
    })
}

// --- what is generated

/// What a row becomes; `None` is gone.
type Step = (&'static str, RowKind, Option<Kind>);

fn texts(values: &'static [&'static str]) -> impl Strategy<Value = Option<v1::Texts>> {
    let some = subsequence(values.to_vec(), 1..=values.len().min(2));
    let list = |values: Vec<&str>| {
        let values = values.into_iter().map(Into::into).collect();
        Some(v1::Texts { values })
    };
    prop_oneof![5 => Just(None), 1 => some.prop_map(list)]
}

fn who() -> impl Strategy<Value = v1::Who> {
    (
        texts(&["u0", "u1", "u2"]),
        texts(&["u.", ".*", "x|u1"]),
        texts(&["c0", "c1"]),
        texts(&["c.", "[a-c]1", ".*"]),
        texts(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"]),
        texts(&["g0", "g1"]),
        texts(&["3.1.1", "5"]),
        texts(&["open", "closed"]),
    )
        .prop_map(|parts| v1::Who {
            users: parts.0,
            user_patterns: parts.1,
            client_ids: parts.2,
            client_id_patterns: parts.3,
            addresses: parts.4,
            groups: parts.5,
            versions: parts.6,
            listeners: parts.7,
        })
}

fn rule() -> impl Strategy<Value = v1::Rule> {
    let place = (-1_i64..2, 0_i64..4, 0_u64..2);
    let who = prop_oneof![3 => Just(v1::Who::default()), 2 => who()];
    let actions = subsequence(vec![1, 2, 3, 4], 1..4);
    let topics = subsequence(FILTERS.to_vec(), 1..4);
    let more = (
        prop::bool::weighted(0.6),
        prop::option::weighted(0.2, 0_u32..2),
        prop::option::weighted(0.2, 0_u64..20),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.9),
        prop::option::weighted(0.3, prop::bool::ANY),
    );
    (place, who, actions, topics, more).prop_map(|(place, who, actions, topics, more)| {
        let (allow, qos_max, payload, is_shadow, enabled, narrow) = more;
        let may_narrow = allow && actions.contains(&3);
        let has_topics = actions != [1];
        let mode = if is_shadow {
            v1::Mode::Shadow
        } else {
            v1::Mode::Enforce
        };
        let decision = if allow {
            v1::Effect::Allow
        } else {
            v1::Effect::Deny
        };
        let topics = if has_topics { topics } else { Vec::new() };
        v1::Rule {
            priority: Some(place.0),
            order: Some(place.1),
            tie: place.2,
            who: Some(who),
            actions,
            topics: topics.into_iter().map(Into::into).collect(),
            decision: decision.into(),
            qos_max: qos_max.filter(|_| allow && has_topics).map(Into::into),
            payload_bytes_max: payload.filter(|_| allow && has_topics),
            mode: mode.into(),
            enabled: Some(enabled),
            narrow: narrow.filter(|_| may_narrow),
            ..v1::Rule::default()
        }
    })
}

/// Rules that are refused, each for another reason.
fn bad_rule() -> impl Strategy<Value = v1::Rule> {
    (rule(), 0..6).prop_map(|(mut rule, how)| {
        let list = |text: &str| {
            Some(v1::Texts {
                values: vec![text.into()],
            })
        };
        let mut who = rule.who.clone().unwrap_or_default();
        match how {
            0 => rule.topics = vec!["a#".into()],
            1 => rule.decision = 0,
            2 => rule.order = None,
            3 => who.groups = list("nowhere"),
            4 => who.user_patterns = list("("),
            _ => rule.actions = vec![2, 2, 77],
        }
        rule.who = Some(who);
        rule
    })
}

fn user() -> impl Strategy<Value = Kind> {
    let groups = prop_oneof![
        9 => subsequence(vec!["g0", "g1"], 0..3),
        1 => Just(vec!["nowhere"]),
    ];
    let pattern = prop::option::weighted(0.3, select(vec!["c.", "c0", "."]));
    let networks = texts(&["10.1.0.0/16", "192.0.2.1", "2001:db8::/32"]);
    (
        groups,
        pattern,
        prop::bool::weighted(0.8),
        0_u32..3,
        networks,
    )
        .prop_map(|(groups, pattern, enabled, rounds, networks)| {
            let user = user_of(&groups, pattern, enabled, rounds);
            match (user, networks) {
                (Kind::User(user), Some(networks)) => Kind::User(v1::User {
                    // Some have a password as well.
                    password_hash: user.password_hash.filter(|_| rounds > 1),
                    networks: Some(networks),
                    ..user
                }),
                (user, _) => user,
            }
        })
}

fn step() -> impl Strategy<Value = Step> {
    const RULES: [&str; 14] = [
        "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "ra", "rb", "rc", "rd",
    ];
    let rule = prop_oneof![
        12 => rule().prop_map(|rule| Some(Kind::Rule(rule))),
        1 => bad_rule().prop_map(|rule| Some(Kind::Rule(rule))),
        4 => Just(None),
    ];
    let user = prop_oneof![4 => user().prop_map(Some), 1 => Just(None)];
    let group = prop_oneof![
        Just(None),
        subsequence(vec!["u0", "u1"], 0..2).prop_map(|users| {
            let users = users.into_iter().map(Into::into).collect();
            Some(Kind::Group(v1::Group { users }))
        })
    ];
    prop_oneof![
        12 => (select(RULES.to_vec()), rule).prop_map(|(name, kind)| (name, RowKind::Rule, kind)),
        4 => (select(vec!["u0", "u1", "u2"]), user).prop_map(|(name, kind)| (name, RowKind::User, kind)),
        1 => (select(vec!["g0", "g1", "g2"]), group).prop_map(|(name, kind)| (name, RowKind::Group, kind)),
    ]
}

fn change((name, kind, value): Step) -> Change {
    match value {
        Some(value) => Change::from_message(&row(name, value)).unwrap(),
        None => Change {
            key: RowKey {
                kind,
                name: name.into(),
            },
            row: None,
        },
    }
}

// --- what is asked

fn sessions(snapshot: &Snapshot) -> Vec<Who<'static>> {
    let listener = |name| snapshot.listener_by_name(name).unwrap().id;
    let (open, closed) = (listener("open"), listener("closed"));
    let who = |listener, address: &str, version, client_id, username| Who {
        listener,
        address: address.parse::<IpAddr>().unwrap(),
        version,
        client_id,
        username,
    };
    vec![
        who(open, "10.0.0.1", Version::V5, "c0", None),
        who(open, "10.1.0.1", Version::V311, "c1", Some("u0")),
        who(closed, "2001:db8::1", Version::V5, "c0", Some("u1")),
        who(closed, "192.0.2.1", Version::V31, "b1", Some("u2")),
        who(open, "192.0.2.1", Version::V5, "+", Some("u0")),
    ]
}

/// True exactly when every rule has the number of its row before where it says the same, else one that is new.
fn numbers_follow(before: &Snapshot, after: &Snapshot) -> bool {
    let rule = |name: &str| before.rules.iter().find(|(_, rule)| rule.name() == name);
    after.rules.iter().all(|(_, new)| match rule(new.name()) {
        Some((_, old)) if old.is_same_row(new) => old.row == new.row,
        Some(_) | None => (before.rows_end()..after.rows_end()).contains(&new.row),
    })
}

/// All answers, with the names of rules in place of their numbers.
fn answers(snapshot: &Snapshot) -> Vec<String> {
    let mut out = vec![
        format!("{:?}", snapshot.rule_names().collect::<Vec<_>>()),
        format!("{:?} {:?}", snapshot.warnings(), snapshot.dummy_verifier()),
    ];
    let name = |rule: Option<RuleId>| rule.map(|rule| snapshot.rule_name(rule));
    for who in sessions(snapshot) {
        out.push(format!("{}", snapshot.needs_client_id(who.listener)));
        let admission = match snapshot.admit(&who) {
            Ok(admission) => admission,
            Err(refused) => {
                let rules = (name(refused.rule), name(refused.shadow));
                out.push(format!("{:?} {rules:?}", refused.refusal));
                continue;
            }
        };
        let classes = admission.classes;
        out.push(format!(
            "{:?} {:?} {}",
            name(admission.rule),
            name(admission.shadow),
            classes.ids.len()
        ));
        let vars = Vars {
            client_id: who.client_id,
            username: who.username.unwrap_or_default(),
        };
        for (topic, action) in TOPICS
            .into_iter()
            .flat_map(|topic| [(topic, Action::Publish), (topic, Action::Receive)])
        {
            let request = Request {
                action,
                topic,
                qos: QoS::AtLeastOnce,
                retain: false,
                payload_bytes: 10,
            };
            let verdict = snapshot.verdict(&classes, &vars, &request);
            let rules = (name(verdict.rule), name(verdict.shadow));
            out.push(format!(
                "{topic} {action:?} {:?} {rules:?}",
                verdict.decision
            ));
            out.push(format!("{:?} {:?}", verdict.qos_max, verdict.on_deny));
        }
        for filter in ASKED {
            let verdict = snapshot.subscribe(&classes, &vars, filter, QoS::AtLeastOnce, false);
            let rules = (name(verdict.rule), name(verdict.shadow));
            out.push(format!(
                "{filter} {:?} {rules:?} {:?}",
                verdict.decision, verdict.qos_max
            ));
            out.push(format!("narrowed: {}", verdict.is_narrowed));
        }
        let question = Question::Subscribe {
            filter: "a/#",
            qos: QoS::AtLeastOnce,
            shared: false,
        };
        let explained = snapshot.explain(&who, &question).to_string();
        out.extend(
            explained
                .lines()
                .filter(|line| !line.contains("digest"))
                .map(Into::into),
        );
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn changes_lead_where_the_whole_leads(
        start in prop::collection::vec(step(), 0..24),
        batches in prop::collection::vec(prop::collection::vec(step(), 1..4), 1..12),
    ) {
        let mut at = Inventory::from_messages(&frame()).unwrap();
        let mut snapshot = compile_inventory(&at, Generation(1), None).unwrap();
        for batch in std::iter::once(start).chain(batches) {
            let rows = at.with(batch.into_iter().map(change));
            let is_short = at.changes_to(&rows).iter().all(|change| change.key.kind != RowKind::Group);
            let expected = compile_messages(rows.messages().unwrap(), Generation(2), None);
            let next = compile_inventory(&rows, Generation(2), Some(&snapshot));
            match (next, expected) {
                (Ok(next), Ok(expected)) => {
                    prop_assert_eq!(answers(&next), answers(&expected));
                    prop_assert_eq!(next.digest(), &*hex(&rows.digest()));
                    prop_assert_eq!(follow(&snapshot, &rows, Generation(2)).is_some(), is_short);
                    prop_assert!(numbers_follow(&snapshot, &next));
                    (at, snapshot) = (rows, next);
                }
                (Err(refused), Err(expected)) => prop_assert_eq!(refused, expected),
                (next, expected) => prop_assert!(false, "{:?} {:?}", next.err(), expected.err()),
            }
        }
    }
}

fn publish(who: v1::Who, order: i64, topic: String, payload_bytes_max: Option<u64>) -> Kind {
    Kind::Rule(v1::Rule {
        order: Some(order),
        who: Some(who),
        actions: vec![v1::Action::Publish.into()],
        topics: vec![topic],
        decision: v1::Effect::Allow.into(),
        payload_bytes_max,
        ..v1::Rule::default()
    })
}

/// Two denies of different classes refuse the same filter. Classes are numbered as they come, so which of the two is named
/// must not go by their numbers.
#[test]
fn the_rule_that_a_refusal_names_does_not_depend_on_the_order_of_changes() {
    let rule = |order, priority, topic: &str, decision: v1::Effect, listener: Option<&str>| {
        Kind::Rule(v1::Rule {
            priority: Some(priority),
            order: Some(order),
            who: Some(v1::Who {
                listeners: listener.map(|name| v1::Texts {
                    values: vec![name.into()],
                }),
                ..v1::Who::default()
            }),
            actions: vec![v1::Action::Subscribe.into()],
            topics: vec![topic.into()],
            decision: decision.into(),
            ..v1::Rule::default()
        })
    };
    let connect = v1::Rule {
        order: Some(9),
        actions: vec![v1::Action::Connect.into()],
        who: Some(v1::Who::default()),
        decision: v1::Effect::Allow.into(),
        ..v1::Rule::default()
    };
    let mut rows = frame();
    rows.push(row("connect", Kind::Rule(connect)));
    rows.push(row("wide", rule(0, -1, "+/b", v1::Effect::Allow, None)));
    let mut at = Inventory::from_messages(&rows).unwrap();
    let mut snapshot = compile_inventory(&at, Generation(1), None).unwrap();
    let second = rule(1, 0, "b/+", v1::Effect::Deny, None);
    let first = rule(0, 0, "a/#", v1::Effect::Deny, Some("open"));
    for (name, kind) in [("second", second), ("first", first)] {
        at = at.with([Change::from_message(&row(name, kind)).unwrap()]);
        snapshot = follow(&snapshot, &at, Generation(2)).expect("a change of a rule");
        let whole = compile_inventory(&at, Generation(2), None).unwrap();
        assert_eq!(answers(&snapshot), answers(&whole), "after {name}");
    }
    let named = "+/b Deny(NotAuthorized) (Some(\"first\"), None) ExactlyOnce";
    assert!(answers(&snapshot).iter().any(|line| line == named));
}

#[test]
fn two_thousand_changes_leave_no_more_than_the_whole_takes() {
    let mut rows = frame();
    for n in 0..300 {
        let kind = publish(v1::Who::default(), n, format!("d/{n}/x"), None);
        rows.push(row(&format!("rule-{n}"), kind));
    }
    let mut at = Inventory::from_messages(&rows).unwrap();
    let mut snapshot = compile_inventory(&at, Generation(1), None).unwrap();
    let mut by_changes = 0;
    for n in 0..2_000_i64 {
        // Comes at the end, in a class of its own now and then, with a pattern, a long level and another bound; the oldest
        // goes.
        let who = v1::Who {
            user_patterns: (n % 7 == 0).then(|| v1::Texts {
                values: vec![format!("u{n}")],
            }),
            ..v1::Who::default()
        };
        let topic = format!("d/{n}-a-level-that-is-too-long-for-a-slot/y");
        let kind = publish(who, 300 + n, topic, Some(n as u64));
        let come = Change::from_message(&row(&format!("rule-{}", 300 + n), kind)).unwrap();
        let go = Change {
            key: RowKey {
                kind: RowKind::Rule,
                name: format!("rule-{n}").into(),
            },
            row: None,
        };
        at = at.with([come, go]);
        let next = follow(&snapshot, &at, Generation(2));
        by_changes += usize::from(next.is_some());
        snapshot = match next {
            Some(next) => next,
            None => compile_inventory(&at, Generation(2), None).unwrap(),
        };
    }
    assert!(by_changes >= 1_990, "{by_changes}");
    let whole = compile_inventory(&at, Generation(2), None).unwrap();
    assert_eq!(answers(&snapshot), answers(&whole));
    let (grown, fresh) = (snapshot.rules.size(), whole.rules.size());
    // What is let lie is bounded: ranks, outcomes, long text, and twice the table.
    assert!(grown < 2 * fresh + 10_000 + (256 << 10), "{grown} {fresh}");
}

#[test]
fn a_rule_comes_between_two_others_again_and_again() {
    let first = row("first", publish(v1::Who::default(), 0, "a".into(), None));
    let last = row(
        "last",
        publish(v1::Who::default(), 9_999, "a/#".into(), None),
    );
    let mut at = Inventory::from_messages(frame().iter().chain([&first, &last])).unwrap();
    let mut snapshot = compile_inventory(&at, Generation(1), None).unwrap();
    let mut expected = vec!["first".to_owned()];
    for n in (0..400).rev() {
        let name = format!("n{n:03}");
        let between = row(
            &name,
            publish(v1::Who::default(), n, format!("b/{n}"), None),
        );
        at = at.with([Change::from_message(&between).unwrap()]);
        snapshot = follow(&snapshot, &at, Generation(2)).unwrap();
        expected.push(name);
    }
    expected.push("last".into());
    expected.sort_by_key(|name| match &**name {
        "first" => 0,
        "last" => 1_000,
        name => name.trim_start_matches('n').parse::<i32>().unwrap() + 1,
    });
    // `n000` ties with `first` in the order and stands behind it by its name.
    assert!(
        snapshot
            .rule_names()
            .eq(expected.iter().map(String::as_str))
    );
}

#[test]
fn a_user_in_too_many_classes_is_refused_whichever_row_puts_him_there() {
    let group = |n: usize| row(&format!("h{n}"), Kind::Group(v1::Group::default()));
    let of_group = |n: usize| v1::Who {
        groups: Some(v1::Texts {
            values: vec![format!("h{n}")],
        }),
        ..v1::Who::default()
    };
    let mut rows = frame();
    rows.extend((0..66).map(group));
    rows.extend((0..66_i64).map(|n| {
        row(
            &format!("rule-{n}"),
            publish(of_group(n as usize), n, "a".into(), None),
        )
    }));
    let at = Inventory::from_messages(&rows).unwrap();
    let snapshot = compile_inventory(&at, Generation(1), None).unwrap();
    let user = |count: usize| {
        let groups: Vec<String> = (0..count).map(|n| format!("h{n}")).collect();
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let user = row("u9", user_of(&groups, None, true, 1));
        Change::from_message(&user).unwrap()
    };
    let few = at.with([user(64)]);
    let next = follow(&snapshot, &few, Generation(2)).unwrap();
    let many = few.with([user(65)]);
    assert!(follow(&next, &many, Generation(3)).is_none());
    let refused = compile_inventory(&many, Generation(3), Some(&next)).unwrap_err();
    assert!(refused.to_string().contains("user `u9`"), "{refused}");
    // Or by a rule for everyone.
    let everyone = row("all", publish(v1::Who::default(), 99, "b".into(), None));
    let many = few.with([Change::from_message(&everyone).unwrap()]);
    assert!(follow(&next, &many, Generation(3)).is_none());
    assert!(compile_inventory(&many, Generation(3), Some(&next)).is_err());
    // That nobody is in too many is known without asking everyone: one more class for few.
    let another = v1::Who {
        users: Some(v1::Texts {
            values: vec!["u0".into()],
        }),
        ..v1::Who::default()
    };
    let another = row("one", publish(another, 99, "b".into(), None));
    let more = few.with([Change::from_message(&another).unwrap()]);
    let next = follow(&next, &more, Generation(3)).unwrap();
    assert_eq!(next.crowd_max, Some(64));
}
