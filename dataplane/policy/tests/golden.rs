//! Decisions by table: who is asked, what they ask for, what the answer is and which rule gave it.
#![allow(clippy::unwrap_used)] // tests fail by panicking

use std::net::IpAddr;

use sluice_policy::{
    Action, Admission, Decision, Denial, Generation, OnDeny, Question, Refusal, Request, Snapshot,
    Vars, Who, compile,
};
use sluice_wire::mqtt::{QoS, Version};

const HASH: &str = "$7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
const DENIED: Decision = Decision::Deny(Denial::NotAuthorized);
const LOCALHOST: &str = "127.0.0.1";

/// A document with two listeners, a few users, and the given rules.
fn with_rules(rules: &str) -> Snapshot {
    let text = format!(
        "listeners:
- {{name: plain, address: 127.0.0.1:0, upstream: up, anonymous: {{group: guests}}}}
- {{name: other, address: 127.0.0.1:0, upstream: up}}
upstreams: [{{name: up, endpoints: [tcp://127.0.0.1:1]}}]
groups: [{{name: staff}}, {{name: guests}}]
users:
- {{name: admin, password_hash: {HASH}, groups: [staff]}}
- {{name: notadmin, password_hash: {HASH}}}
- {{name: bound, password_hash: {HASH}, client_id: \"${{username}}-1\"}}
- {{name: gone, password_hash: {HASH}, enabled: false}}
rules:
- {{name: anyone connects, priority: -100, actions: [connect], decision: allow}}
{rules}"
    );
    compiled(&text)
}

fn compiled(text: &str) -> Snapshot {
    compile(text, "policy.yaml", Generation(1), None).unwrap_or_else(|errors| panic!("{errors}"))
}

fn who<'a>(snapshot: &Snapshot, username: &'a str, client_id: &'a str) -> Who<'a> {
    Who {
        listener: snapshot.listeners().first().unwrap().id,
        address: LOCALHOST.parse().unwrap(),
        version: Version::V5,
        client_id,
        username: (!username.is_empty()).then_some(username),
    }
}

fn admit(snapshot: &Snapshot, who: &Who<'_>) -> Admission {
    snapshot
        .admit(who)
        .unwrap_or_else(|refusal| panic!("{who:?} {refusal:?}"))
}

fn vars<'a>(who: &Who<'a>) -> Vars<'a> {
    Vars {
        client_id: who.client_id,
        username: who.username.unwrap_or_default(),
    }
}

fn publish(topic: &str) -> Request<'_> {
    Request {
        action: Action::Publish,
        topic,
        qos: QoS::AtMostOnce,
        retain: false,
        payload_bytes: 10,
    }
}

/// The decision and the name of the rule that gave it.
fn ask(snapshot: &Snapshot, who: &Who<'_>, request: &Request<'_>) -> (Decision, String) {
    let verdict = snapshot.verdict(&admit(snapshot, who).classes, &vars(who), request);
    let rule = verdict
        .rule
        .map_or("default", |rule| snapshot.rule_name(rule));
    (verdict.decision, rule.to_owned())
}

fn subscribe(snapshot: &Snapshot, who: &Who<'_>, filter: &str) -> (Decision, String) {
    let classes = admit(snapshot, who).classes;
    let verdict = snapshot.subscribe(&classes, &vars(who), filter, QoS::AtMostOnce, false);
    let rule = verdict
        .rule
        .map_or("default", |rule| snapshot.rule_name(rule));
    (verdict.decision, rule.to_owned())
}

#[test]
fn a_deny_that_overlaps_in_the_empty_topic_alone_refuses_nothing() {
    let snapshot = compiled(
        r##"
default: allow
upstreams: [{name: broker, endpoints: ["tcp://127.0.0.1:1883"]}]
listeners: [{name: plain, address: "127.0.0.1:1884", upstream: broker, anonymous: {group: guests}}]
groups: [{name: guests}]
rules:
  - {name: below, who: {client_ids: [below]}, actions: [subscribe], topics: ["/#"], decision: deny}
  - {name: one, who: {client_ids: [one]}, actions: [subscribe], topics: ["+"], decision: deny}
"##,
    );
    for (client_id, filter, expected) in [
        ("below", "+", Decision::Allow),
        ("below", "a", Decision::Allow),
        ("below", "#", DENIED),
        ("below", "+/#", DENIED),
        ("below", "+/+", DENIED),
        ("below", "/", DENIED),
        ("one", "/#", Decision::Allow),
        ("one", "/+", Decision::Allow),
        ("one", "#", DENIED),
        ("one", "+/#", DENIED),
    ] {
        let who = who(&snapshot, "", client_id);
        let found = subscribe(&snapshot, &who, filter).0;
        assert_eq!(found, expected, "{client_id} {filter}");
    }
}

#[test]
fn the_example_says_what_its_readers_are_told() {
    let snapshot = compiled(include_str!("../../../deploy/examples/policy.yaml"));
    for name in ["sensor-1", "dashboard", "intruder", "device-1", "device-2"] {
        let user = snapshot.user(name).unwrap();
        assert!(
            user.verifier
                .as_ref()
                .unwrap()
                .verify(format!("{name}-secret").as_bytes()),
            "{name}"
        );
    }
    let refused = |name, client_id| {
        snapshot
            .admit(&who(&snapshot, name, client_id))
            .unwrap_err()
            .refusal
    };
    assert_eq!(refused("", "x"), Refusal::Credentials);
    assert_eq!(refused("device-1", "device-2"), Refusal::ClientIdentifier);
    let publishes = [
        (
            "sensor-1",
            "c",
            "sensors/sensor-1/temperature",
            Decision::Allow,
        ),
        ("sensor-1", "c", "sensors/sensor-2/temperature", DENIED),
        ("dashboard", "c", "sensors/sensor-1/temperature", DENIED),
        ("intruder", "c", "sensors/intruder/temperature", DENIED),
        (
            "device-1",
            "device-1",
            "devices/device-1/up",
            Decision::Allow,
        ),
        ("device-1", "device-1", "devices/device-2/up", DENIED),
    ];
    for (name, client_id, topic, expected) in publishes {
        assert_eq!(
            ask(&snapshot, &who(&snapshot, name, client_id), &publish(topic)).0,
            expected,
            "{name} {topic}"
        );
    }
    let filters = [
        ("sensor-1", "commands/sensor-1/#", Decision::Allow),
        ("sensor-1", "commands/#", DENIED),
        ("sensor-1", "sensors/sensor-1/#", DENIED),
        ("dashboard", "sensors/#", Decision::Allow),
        ("dashboard", "sensors/+/temperature", Decision::Allow),
        ("dashboard", "#", DENIED),
        ("intruder", "sensors/#", DENIED),
    ];
    for (name, filter, expected) in filters {
        assert_eq!(
            subscribe(&snapshot, &who(&snapshot, name, "c"), filter).0,
            expected,
            "{name} {filter}"
        );
    }
}

#[test]
fn every_example_compiles() {
    for text in [
        include_str!("../../../deploy/examples/policy.yaml"),
        include_str!("../../../deploy/examples/fleet.yaml"),
        include_str!("../../../deploy/examples/trying-a-change.yaml"),
    ] {
        compiled(text);
    }
}

/// S9: each kind of who-part, priorities, ties, disabled rules and the default.
#[test]
fn s9_rules_match_by_every_kind() {
    let snapshot = with_rules(
        r##"
- {name: by user, who: {users: [admin]}, actions: [publish], topics: [user], decision: allow}
- {name: by user pattern, who: {user_patterns: ["ad.*"]}, actions: [publish], topics: [userpattern], decision: allow}
- {name: by client id, who: {client_ids: [c1]}, actions: [publish], topics: [client], decision: allow}
- {name: by client id pattern, who: {client_id_patterns: ["c[0-9]+"]}, actions: [publish], topics: [clientpattern], decision: allow}
- {name: by address, who: {addresses: [10.0.0.0/8, "2001:db8::/32"]}, actions: [publish], topics: [address], decision: allow}
- {name: by group, who: {groups: [staff]}, actions: [publish], topics: [group], decision: allow}
- {name: by version, who: {versions: ["3.1.1"]}, actions: [publish], topics: [version], decision: allow}
- {name: by listener, who: {listeners: [other]}, actions: [publish], topics: [listener], decision: allow}
- {name: by two kinds, who: {users: [admin, notadmin], groups: [staff]}, actions: [publish], topics: [both], decision: allow}
- {name: low, priority: 1, actions: [publish], topics: [order], decision: allow}
- {name: high, priority: 2, actions: [publish], topics: [order], decision: deny}
- {name: tie first, actions: [publish], topics: [tie], decision: allow}
- {name: tie second, actions: [publish], topics: [tie], decision: deny}
- {name: keyed late, order: 200, actions: [publish], topics: [keyed], decision: allow}
- {name: keyed early, order: 100, actions: [publish], topics: [keyed], decision: deny}
- {name: switched off, priority: 9, actions: [publish], topics: [off], decision: allow, enabled: false}
"##,
    );
    let admin = who(&snapshot, "admin", "c1");
    let other = who(&snapshot, "notadmin", "x1");
    let from = |address: &str| Who {
        address: address.parse::<IpAddr>().unwrap(),
        ..other
    };
    let with = |version| Who { version, ..other };
    let elsewhere = Who {
        listener: snapshot.listener_by_name("other").unwrap().id,
        ..other
    };
    let allow = Decision::Allow;
    let table = [
        (admin, "user", allow, "by user"),
        (other, "user", DENIED, "default"),
        (admin, "userpattern", allow, "by user pattern"),
        (other, "userpattern", DENIED, "default"),
        (who(&snapshot, "", "x"), "userpattern", DENIED, "default"),
        (admin, "client", allow, "by client id"),
        (other, "client", DENIED, "default"),
        (admin, "clientpattern", allow, "by client id pattern"),
        (other, "clientpattern", DENIED, "default"),
        (from("10.9.8.7"), "address", allow, "by address"),
        (from("::ffff:10.9.8.7"), "address", allow, "by address"),
        (from("2001:db8::7"), "address", allow, "by address"),
        (from("11.0.0.1"), "address", DENIED, "default"),
        (admin, "group", allow, "by group"),
        (other, "group", DENIED, "default"),
        (with(Version::V311), "version", allow, "by version"),
        (with(Version::V31), "version", DENIED, "default"),
        (elsewhere, "listener", allow, "by listener"),
        (other, "listener", DENIED, "default"),
        (admin, "both", allow, "by two kinds"),
        (other, "both", DENIED, "default"),
        (admin, "order", DENIED, "high"),
        (admin, "tie", allow, "tie first"),
        (admin, "keyed", DENIED, "keyed early"),
        (admin, "off", DENIED, "default"),
        (admin, "nothing", DENIED, "default"),
    ];
    for (who, topic, decision, rule) in table {
        assert_eq!(
            ask(&snapshot, &who, &publish(topic)),
            (decision, rule.to_owned()),
            "{topic} {who:?}"
        );
    }
}

/// S10: patterns match the whole value.
#[test]
fn s10_patterns_are_anchored() {
    let snapshot = with_rules(
        r##"
- {name: one, who: {user_patterns: [admin]}, actions: [publish], topics: [one], decision: allow}
- {name: either, who: {user_patterns: ["x|admi"]}, actions: [publish], topics: [either], decision: allow}
- {name: lines, who: {client_id_patterns: ["(?m)^a$"]}, actions: [publish], topics: [lines], decision: allow}
"##,
    );
    let table = [
        ("admin", "c", "one", Decision::Allow),
        ("notadmin", "c", "one", DENIED),
        ("admin", "c", "either", DENIED),
        ("admin", "a", "lines", Decision::Allow),
        ("admin", "a\nb", "lines", DENIED),
    ];
    for (name, client_id, topic, expected) in table {
        assert_eq!(
            ask(&snapshot, &who(&snapshot, name, client_id), &publish(topic)).0,
            expected,
            "{name} {topic}"
        );
    }
}

/// S5 and S6: a filter that reaches into what is denied is refused, however it is written. The share group of a shared
/// subscription is taken off by the caller, so the same filters are asked.
#[test]
fn s5_s6_subscriptions_do_not_reach_around_a_deny() {
    let snapshot = with_rules(
        r##"
- {name: secret, priority: 10, actions: [subscribe], topics: ["internal/#"], decision: deny}
- {name: all, actions: [subscribe], topics: ["#"], decision: allow}
- {name: system, actions: [subscribe], topics: ["$SYS/broker/uptime"], decision: allow}
"##,
    );
    let admin = who(&snapshot, "admin", "c");
    let table = [
        ("#", DENIED, "secret"),
        ("+/secret", DENIED, "secret"),
        ("internal/+", DENIED, "secret"),
        ("internal", DENIED, "secret"),
        ("internal/x", DENIED, "secret"),
        ("+", DENIED, "secret"),
        ("+/+", DENIED, "secret"),
        ("public/#", Decision::Allow, "all"),
        ("public/+/x", Decision::Allow, "all"),
        ("$SYS/#", DENIED, "default"),
        ("$SYS/broker/+", DENIED, "default"),
        ("$SYS/broker/uptime", Decision::Allow, "system"),
    ];
    for (filter, decision, rule) in table {
        assert_eq!(
            subscribe(&snapshot, &admin, filter),
            (decision, rule.to_owned()),
            "{filter}"
        );
    }
    // The second net: whatever was subscribed to, each delivery is judged.
    let delivery = |topic| Request {
        action: Action::Receive,
        ..publish(topic)
    };
    assert_eq!(
        ask(&snapshot, &admin, &delivery("internal/x")),
        (DENIED, "secret".into())
    );
    assert_eq!(
        ask(&snapshot, &admin, &delivery("public/x")),
        (Decision::Allow, "all".into())
    );
}

#[test]
fn an_allow_before_a_deny_opens_a_hole_in_it() {
    let snapshot = with_rules(
        r##"
- {name: hole, priority: 20, actions: [subscribe], topics: ["a/+/open"], decision: allow}
- {name: wall, priority: 10, actions: [subscribe], topics: ["a/#"], decision: deny}
- {name: rest, actions: [subscribe], topics: ["+/+/open", "b/#"], decision: allow}
"##,
    );
    let admin = who(&snapshot, "admin", "c");
    for (filter, expected) in [
        ("a/1/open", Decision::Allow),
        ("a/+/open", Decision::Allow),
        ("+/+/open", Decision::Allow),
        ("a/+/shut", DENIED),
        ("a/#", DENIED),
        ("+/1/open", Decision::Allow),
        ("b/#", Decision::Allow),
    ] {
        assert_eq!(subscribe(&snapshot, &admin, filter).0, expected, "{filter}");
    }
}

#[test]
fn receive_alone_only_takes_away() {
    let snapshot = with_rules(
        r##"
- {name: not this, priority: 1, actions: [receive], topics: [a/b], decision: deny}
- {name: all of a, actions: [subscribe], topics: ["a/#"], decision: allow}
- {name: delivered only, actions: [receive], topics: ["x/#"], decision: allow}
"##,
    );
    let admin = who(&snapshot, "admin", "c");
    for (filter, expected) in [
        ("a/c", Decision::Allow),
        ("a/b", DENIED),
        ("a/#", DENIED),
        ("x/#", DENIED),
    ] {
        assert_eq!(subscribe(&snapshot, &admin, filter).0, expected, "{filter}");
    }
    for (topic, expected) in [
        ("a/c", Decision::Allow),
        ("a/b", DENIED),
        ("x/y", Decision::Allow),
    ] {
        let request = Request {
            action: Action::Receive,
            ..publish(topic)
        };
        assert_eq!(ask(&snapshot, &admin, &request).0, expected, "{topic}");
    }
}

#[test]
fn what_an_allow_asks_for() {
    let snapshot = with_rules(
        r##"
- {name: lower, actions: [publish, subscribe], topics: [lower], decision: allow, qos_max: 1}
- {name: refuse, actions: [publish, subscribe], topics: [refuse], decision: allow, qos_max: 1, qos_over: refuse, on_deny: close}
- {name: strip, actions: [publish], topics: [strip], decision: allow, retain: strip}
- {name: keep, actions: [publish], topics: [keep], decision: allow, retain: refuse}
- {name: small, actions: [publish], topics: [small], decision: allow, payload_bytes_max: 10}
"##,
    );
    let admin = who(&snapshot, "admin", "c");
    let classes = admit(&snapshot, &admin).classes;
    let ask = |topic, qos, retain, payload_bytes| {
        let request = Request {
            action: Action::Publish,
            topic,
            qos,
            retain,
            payload_bytes,
        };
        snapshot.verdict(&classes, &vars(&admin), &request)
    };
    let lowered = ask("lower", QoS::ExactlyOnce, false, 0);
    assert_eq!(
        (lowered.decision, lowered.qos_max),
        (Decision::Allow, QoS::AtLeastOnce)
    );
    let refused = ask("refuse", QoS::ExactlyOnce, false, 0);
    assert_eq!(
        (refused.decision, refused.on_deny),
        (Decision::Deny(Denial::QosRefused), OnDeny::Close)
    );
    assert_eq!(
        ask("refuse", QoS::AtLeastOnce, false, 0).decision,
        Decision::Allow
    );
    assert!(ask("strip", QoS::AtMostOnce, true, 0).strip_retain);
    assert!(!ask("strip", QoS::AtMostOnce, false, 0).strip_retain);
    assert_eq!(
        ask("keep", QoS::AtMostOnce, true, 0).decision,
        Decision::Deny(Denial::RetainRefused)
    );
    assert_eq!(
        ask("keep", QoS::AtMostOnce, false, 0).decision,
        Decision::Allow
    );
    assert_eq!(
        ask("small", QoS::AtMostOnce, false, 10).decision,
        Decision::Allow
    );
    assert_eq!(
        ask("small", QoS::AtMostOnce, false, 11).decision,
        Decision::Deny(Denial::PayloadTooLarge)
    );
    let grant =
        |filter| snapshot.subscribe(&classes, &vars(&admin), filter, QoS::ExactlyOnce, false);
    assert_eq!(
        (grant("lower").decision, grant("lower").qos_max),
        (Decision::Allow, QoS::AtLeastOnce)
    );
    assert_eq!(grant("refuse").decision, Decision::Deny(Denial::QosRefused));
}

#[test]
fn a_shadow_rule_is_noted_and_does_not_decide() {
    let snapshot = with_rules(
        r##"
- {name: trial, priority: 5, actions: [publish, subscribe, connect], topics: ["a/#"], decision: deny, mode: shadow}
- {name: same, priority: 4, actions: [publish], topics: ["b/#"], decision: allow, mode: shadow}
- {name: all, actions: [publish, subscribe], topics: ["#"], decision: allow}
- {name: late, priority: -1, actions: [publish], topics: ["#"], decision: deny, mode: shadow}
"##,
    );
    let admin = who(&snapshot, "admin", "c");
    let admission = admit(&snapshot, &admin);
    let name = |rule: Option<_>| rule.map(|rule| snapshot.rule_name(rule).to_owned());
    assert_eq!(name(admission.shadow).as_deref(), Some("trial"));
    for (topic, shadow) in [("a/x", Some("trial")), ("b/x", None), ("c", None)] {
        let verdict = snapshot.verdict(&admission.classes, &vars(&admin), &publish(topic));
        assert_eq!(
            (verdict.decision, name(verdict.rule).as_deref()),
            (Decision::Allow, Some("all")),
            "{topic}"
        );
        assert_eq!(name(verdict.shadow).as_deref(), shadow, "{topic}");
    }
    let granted = snapshot.subscribe(
        &admission.classes,
        &vars(&admin),
        "a/+",
        QoS::AtMostOnce,
        false,
    );
    assert_eq!(
        (granted.decision, name(granted.shadow).as_deref()),
        (Decision::Allow, Some("trial"))
    );
}

#[test]
fn sessions_are_refused_for_what_they_are() {
    let snapshot = with_rules(
        r##"
- {name: own, actions: [publish], topics: ["d/${client_id}/#"], decision: allow}
- {name: first, who: {users: [notadmin]}, actions: [publish], topics: ["${client_id}/#"], decision: deny}
- {name: not from there, actions: [connect], who: {addresses: [192.0.2.0/24]}, decision: deny}
"##,
    );
    let table = [
        ("admin", "c", None),
        ("nobody", "c", Some(Refusal::Credentials)),
        ("gone", "c", Some(Refusal::Credentials)),
        ("bound", "bound-1", None),
        ("bound", "bound-2", Some(Refusal::ClientIdentifier)),
        ("admin", "", Some(Refusal::ClientIdentifier)),
        ("admin", "a/b", Some(Refusal::ClientIdentifier)),
        ("admin", "a+", Some(Refusal::ClientIdentifier)),
        ("admin", "#", Some(Refusal::ClientIdentifier)),
        ("admin", "a\0", Some(Refusal::ClientIdentifier)),
        ("admin", "$SYS", None),
        ("notadmin", "$SYS", Some(Refusal::ClientIdentifier)),
    ];
    for (name, client_id, expected) in table {
        let found = snapshot.admit(&who(&snapshot, name, client_id)).err();
        let found = found.map(|refused| refused.refusal);
        assert_eq!(found, expected, "{name} {client_id:?}");
    }
    let admin = who(&snapshot, "admin", "c");
    let elsewhere = snapshot.listener_by_name("other").unwrap().id;
    let gone = sluice_policy::ListenerId(99);
    assert_eq!(
        snapshot
            .admit(&Who {
                listener: gone,
                ..admin
            })
            .err(),
        Some(Refusal::ListenerGone.into())
    );
    assert_eq!(
        snapshot
            .admit(&Who {
                listener: elsewhere,
                username: None,
                ..admin
            })
            .err(),
        Some(Refusal::Credentials.into())
    );
    let address = "192.0.2.9".parse().unwrap();
    assert_eq!(
        snapshot
            .admit(&Who { address, ..admin })
            .err()
            .map(|refused| refused.refusal),
        Some(Refusal::NotAuthorized)
    );
    // Somebody else's messages stay out of reach, the own ones do not.
    assert_eq!(ask(&snapshot, &admin, &publish("d/c/x")).0, Decision::Allow);
    assert_eq!(ask(&snapshot, &admin, &publish("d/other/x")).0, DENIED);
}

#[test]
fn explanations_name_the_rule_and_the_ones_passed_over() {
    let snapshot = with_rules(
        r##"
- {name: off, priority: 9, actions: [publish], topics: ["#"], decision: deny, enabled: false}
- {name: shadowed, priority: 8, actions: [publish], topics: ["#"], decision: deny, mode: shadow}
- {name: for guests, priority: 7, who: {groups: [guests]}, actions: [publish], topics: ["#"], decision: deny}
- {name: elsewhere, priority: 6, actions: [publish], topics: ["b/#"], decision: deny}
- {name: deliveries, priority: 5, actions: [subscribe], topics: ["#"], decision: allow}
- {name: winner, actions: [publish], topics: ["a/#"], decision: allow, qos_max: 0}
- {name: too late, actions: [publish], topics: ["+/x"], decision: deny}
"##,
    );
    let admin = who(&snapshot, "admin", "c");
    let request = Request {
        qos: QoS::AtLeastOnce,
        ..publish("a/x")
    };
    let explanation = snapshot.explain(&admin, &Question::Message(request));
    assert_eq!(
        (explanation.decision, explanation.rule.as_deref()),
        ("allow", Some("winner"))
    );
    assert_eq!(explanation.shadow.as_deref(), Some("shadowed"));
    assert_eq!(explanation.obligations, ["QoS is lowered to 0"]);
    let passed: Vec<(&str, &str)> = explanation
        .passed_over
        .iter()
        .map(|passed| (&*passed.rule, &*passed.why))
        .collect();
    let expected = [
        ("off", "is disabled"),
        ("shadowed", "matches, but is a shadow rule"),
        ("for guests", "its `groups` do not match the session"),
        ("elsewhere", "none of its filters matches the topic"),
        ("deliveries", "is not about publish"),
        ("too late", "matches as well, but is asked later"),
    ];
    assert_eq!(passed, expected);
    let text = explanation.to_string();
    assert!(
        text.starts_with(
            "publish to `a/x` at QoS 1, 10 bytes: allow\n  because rule `winner` says allow"
        ),
        "{text}"
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["rule"], "winner");
    assert_eq!(json["passed_over"][0]["why"], "is disabled");

    let refused = snapshot.explain(&who(&snapshot, "nobody", "c"), &Question::Connect);
    assert_eq!((refused.decision, refused.rule), ("deny", None));
    assert!(
        refused.reason.contains("no such enabled user"),
        "{}",
        refused.reason
    );
    let subscription = Question::Subscribe {
        filter: "a/#",
        qos: QoS::AtMostOnce,
        shared: false,
    };
    let granted = snapshot.explain(&admin, &subscription);
    assert_eq!(
        (granted.decision, granted.rule.as_deref()),
        ("allow", Some("deliveries"))
    );
    let connect = snapshot.explain(&admin, &Question::Connect);
    assert_eq!(
        (connect.decision, connect.rule.as_deref()),
        ("allow", Some("anyone connects"))
    );
}

#[test]
fn the_default_can_be_to_allow() {
    let text = "default: allow\non_deny: close\nlisteners: [{name: l, address: 127.0.0.1:0, upstream: u, anonymous: {group: g}}]\n\
                upstreams: [{name: u, endpoints: [unix:///run/broker.sock]}]\ngroups: [{name: g}]\n\
                rules: [{name: not this, actions: [publish, subscribe], topics: [a], decision: deny}]\n";
    let snapshot = compiled(text);
    let guest = who(&snapshot, "", "c");
    assert_eq!(
        ask(&snapshot, &guest, &publish("b")),
        (Decision::Allow, "default".into())
    );
    assert_eq!(
        ask(&snapshot, &guest, &publish("a")),
        (DENIED, "not this".into())
    );
    assert_eq!(
        subscribe(&snapshot, &guest, "b/#"),
        (Decision::Allow, "default".into())
    );
    assert_eq!(
        subscribe(&snapshot, &guest, "#"),
        (DENIED, "not this".into())
    );
    let verdict = snapshot.verdict(
        &admit(&snapshot, &guest).classes,
        &vars(&guest),
        &publish("a"),
    );
    assert_eq!(verdict.on_deny, OnDeny::Close);
}

/// `+` and a literal at every level: a topic matches all `2^n` filters, and each better rule is met after all worse ones,
/// so that none of the `2^(n+1) - 1` nodes can be left out.
fn rules_all_of_which_match(levels: usize, keys: &str) -> String {
    let filter = |bits: u32| {
        let level = |level: usize| {
            if bits >> (levels - 1 - level) & 1 == 1 {
                "+"
            } else {
                "a"
            }
        };
        (0..levels).map(level).collect::<Vec<_>>().join("/")
    };
    let rule = |bits| {
        format!(
            "- {{name: r{bits}, actions: [publish], topics: [{}], {keys}}}\n",
            filter(bits)
        )
    };
    (0..1_u32 << levels).map(rule).collect()
}

#[test]
fn a_topic_that_matches_too_many_prefixes_is_refused_at_the_bound() {
    for (levels, expected) in [
        (11, (Decision::Allow, "r0")),
        (12, (Decision::Deny(Denial::TooComplex), "default")),
    ] {
        let snapshot = with_rules(&rules_all_of_which_match(levels, "decision: allow"));
        let topic = vec!["a"; levels].join("/");
        let found = ask(&snapshot, &who(&snapshot, "admin", "c"), &publish(&topic));
        assert_eq!(
            found,
            (expected.0, expected.1.to_owned()),
            "{levels} levels"
        );
    }
}

/// What is only tried must not make a message impossible to judge; that it would is not known either.
#[test]
fn shadow_rules_that_match_too_many_prefixes_change_nothing() {
    let last =
        "- {name: all, priority: -1, actions: [publish], topics: [\"#\"], decision: allow}\n";
    for (levels, is_known) in [(11, true), (12, false)] {
        let tried = rules_all_of_which_match(levels, "mode: shadow, decision: deny");
        let snapshot = with_rules(&(tried + last));
        let admin = who(&snapshot, "admin", "c");
        let topic = vec!["a"; levels].join("/");
        let classes = admit(&snapshot, &admin).classes;
        let verdict = snapshot.verdict(&classes, &vars(&admin), &publish(&topic));
        assert_eq!(verdict.decision, Decision::Allow, "{levels} levels");
        assert_eq!(verdict.shadow.is_some(), is_known, "{levels} levels");
    }
    // Enforced rules that are too many refuse, whatever the default says and whatever is tried beside them.
    let enforced = rules_all_of_which_match(12, "decision: allow");
    let tried = "- {name: tried, priority: 1, mode: shadow, actions: [publish], topics: [\"#\"], decision: allow}\n";
    let snapshot = with_rules(&(enforced + tried));
    let admin = who(&snapshot, "admin", "c");
    let classes = admit(&snapshot, &admin).classes;
    let topic = ["a"; 12].join("/");
    let verdict = snapshot.verdict(&classes, &vars(&admin), &publish(&topic));
    assert_eq!(verdict.decision, Decision::Deny(Denial::TooComplex));
    assert_eq!((verdict.rule, verdict.shadow), (None, None));
}

/// Each deny has an allow before it, so all of them must be looked at to grant the whole.
/// Where nothing is allowed that the filter asks for, where the group would lose what is left out, and where no rule says so,
/// a subscription is refused as it is without `narrow`.
#[test]
fn a_subscription_is_narrowed_when_something_in_it_is_allowed() {
    let snapshot = with_rules(
        r##"- {name: no secrets, priority: 20, actions: [subscribe], topics: ["site/+/secret/#"], decision: deny}
- {name: no news, priority: 20, actions: [receive], topics: ["news/#"], decision: deny}
- {name: sites, actions: [subscribe], topics: ["site/#"], qos_max: 1, decision: allow, narrow: true}
- {name: news, actions: [subscribe], topics: ["news/#"], decision: allow, narrow: true}
- {name: whole, actions: [subscribe], topics: ["whole/#"], decision: allow}
- {name: own, actions: [subscribe], topics: ["own/${client_id}/#"], decision: allow, narrow: true}
- {name: strict, actions: [subscribe], topics: ["strict/+/x"], qos_max: 0, qos_over: refuse, decision: allow, narrow: true}
- {name: wall, priority: -1, actions: [subscribe], topics: ["strict/a/#"], decision: deny}
"##,
    );
    let admin = who(&snapshot, "admin", "c1");
    let classes = admit(&snapshot, &admin).classes;
    let ask = |filter: &str, shared| {
        let verdict = snapshot.subscribe(&classes, &vars(&admin), filter, QoS::ExactlyOnce, shared);
        let rule = verdict.rule.map(|rule| snapshot.rule_name(rule));
        (
            verdict.decision,
            rule,
            verdict.is_narrowed,
            verdict.qos_max as u8,
        )
    };
    let narrowed = |rule, qos_max| (Decision::Allow, Some(rule), true, qos_max);
    let granted = |rule, qos_max| (Decision::Allow, Some(rule), false, qos_max);
    let refused = |rule| (DENIED, rule, false, 2);
    for (filter, expected) in [
        ("site/#", narrowed("sites", 1)),
        ("site/+/open", granted("sites", 1)),
        ("site/+/+", narrowed("sites", 1)),
        // Each delivery is lowered by its own rule: none contains the filter.
        ("#", narrowed("sites", 2)),
        ("+/1/#", narrowed("sites", 2)),
        ("site/1/secret/#", refused(Some("no secrets"))),
        ("site/+/secret/+", refused(Some("no secrets"))),
        // It may be subscribed to, but nothing of it is delivered.
        ("news/#", refused(Some("no news"))),
        ("whole/#", granted("whole", 2)),
        // Only a rule without `narrow` allows a part.
        ("+/y/z", narrowed("sites", 2)),
        ("own/+/x", narrowed("own", 2)),
        ("own/c2/x", refused(None)),
        ("own/+", narrowed("own", 2)),
        ("other/#", refused(None)),
        ("$SYS/#", refused(None)),
        (
            "strict/+/x",
            (Decision::Deny(Denial::QosRefused), Some("strict"), false, 2),
        ),
        ("strict/a/+", (Decision::Allow, Some("strict"), true, 2)),
    ] {
        assert_eq!(ask(filter, false), expected, "{filter}");
    }
    // A member of a group that drops a message takes it from the others.
    assert_eq!(ask("site/#", true), refused(Some("no secrets")));
    assert_eq!(ask("whole/#", true), granted("whole", 2));
}

#[test]
fn the_document_says_narrow_for_rules_that_do_not_and_for_the_default() {
    let text = |settings: &str, key: &str| {
        compiled(&format!(
            "{settings}\nlisteners: [{{name: l, address: 127.0.0.1:0, upstream: up, anonymous: {{group: g}}}}]\n\
             upstreams: [{{name: up, endpoints: [tcp://127.0.0.1:1]}}]\ngroups: [{{name: g}}]\n\
             rules:\n- {{name: connect, actions: [connect], decision: allow}}\n\
             - {{name: secret, actions: [subscribe], topics: [a/secret], decision: deny}}\n\
             - {{name: some, actions: [subscribe], topics: [\"a/#\"], decision: allow{key}}}\n"
        ))
    };
    for (settings, key, filter, is_narrowed) in [
        ("", "", "a/#", false),
        ("", ", narrow: true", "a/#", true),
        ("narrow: true", "", "a/#", true),
        ("narrow: true", ", narrow: false", "a/#", false),
        ("narrow: true", ", narrow: false", "+/#", false),
        (
            "default: allow\nnarrow: true",
            ", narrow: false",
            "+/#",
            true,
        ),
        ("default: allow", ", narrow: true", "+/#", true),
        ("default: allow", "", "+/#", false),
    ] {
        let snapshot = text(settings, key);
        let guest = who(&snapshot, "", "c");
        let classes = admit(&snapshot, &guest).classes;
        let verdict = snapshot.subscribe(&classes, &vars(&guest), filter, QoS::AtMostOnce, false);
        assert_eq!(
            (verdict.is_narrowed, verdict.decision == Decision::Allow),
            (is_narrowed, is_narrowed),
            "{settings} {key} {filter}"
        );
    }
}

#[test]
fn an_explanation_names_what_a_narrowed_subscription_loses_and_to_whom() {
    let snapshot = with_rules(
        r##"- {name: hole, priority: 30, actions: [subscribe], topics: ["site/1/secret/open"], decision: allow}
- {name: no secrets, priority: 20, actions: [subscribe], topics: ["site/+/secret/#"], decision: deny}
- {name: no open, priority: 20, actions: [subscribe], topics: ["site/1/secret/open"], decision: deny}
- {name: no tmp, priority: 20, actions: [receive], topics: ["site/+/tmp"], decision: deny}
- {name: not ours, priority: 20, who: {users: [bound]}, actions: [subscribe], topics: ["site/x"], decision: deny}
- {name: elsewhere, priority: 20, actions: [subscribe], topics: ["else/#"], decision: deny}
- {name: too late, priority: -1, actions: [subscribe], topics: ["site/#"], decision: deny}
- {name: sites, actions: [subscribe], topics: ["site/#"], decision: allow, narrow: true}
"##,
    );
    let admin = who(&snapshot, "admin", "c1");
    let explain = |filter| {
        let question = Question::Subscribe {
            filter,
            qos: QoS::AtMostOnce,
            shared: false,
        };
        snapshot.explain(&admin, &question)
    };
    let explained = explain("site/#");
    assert_eq!(explained.decision, "allow");
    assert_eq!(
        explained.reason,
        "rule `sites` allows a part of it, and narrows"
    );
    let narrowed = explained.narrowed.clone().unwrap();
    assert_eq!(narrowed.by, ["no secrets", "no tmp"]);
    assert!(!narrowed.by_default);
    let said = "narrowed: what is refused by `no secrets`, `no tmp` is not delivered";
    assert!(explained.to_string().contains(said), "{explained}");

    let narrowed = explain("#").narrowed.unwrap();
    assert_eq!(narrowed.by, ["no secrets", "no tmp", "elsewhere"]);
    assert!(narrowed.by_default);
    assert_eq!(explain("site/1/x").narrowed, None);
}

/// Rules that narrow are looked at from the one asked first; here none comes first by itself but the last, or one before all.
#[test]
fn a_part_that_is_not_found_within_the_bound_is_no_part() {
    let decision = |count: usize, last: &str| {
        let mut rules: String = (0..count)
            .map(|index| {
                format!(
                    "- {{name: d{index}, priority: 1, actions: [subscribe], topics: [t/{index}/x], decision: deny}}\n\
                     - {{name: a{index}, who: {{users: [admin]}}, actions: [subscribe], topics: [t/{index}/x], narrow: true, decision: allow}}\n"
                )
            })
            .collect();
        rules += last;
        let snapshot = with_rules(&rules);
        subscribe(&snapshot, &who(&snapshot, "admin", "c"), "t/+/x").0
    };
    let behind = "- {name: one, priority: -1, who: {users: [admin]}, actions: [subscribe], topics: [t/77/x, t/y/x], narrow: true, decision: allow}\n";
    let before = behind.replace("priority: -1", "priority: 2");
    for (count, last, expected) in [
        (100, "", DENIED),
        (100, behind, Decision::Allow),
        (10_000, behind, DENIED),
        (10_000, &before, Decision::Allow),
    ] {
        assert_eq!(decision(count, last), expected, "{count} {last}");
    }
}

#[test]
fn a_subscription_too_complex_to_judge_is_refused() {
    let rules = |denies: usize| -> String {
        let deny = |index| {
            format!(
                "- {{name: d{index}, priority: 1, actions: [subscribe], topics: [t/{index}/x], decision: deny}}\n"
            )
        };
        "- {name: hole, priority: 2, actions: [subscribe], topics: [t/+/x], decision: allow}\n\
         - {name: all, actions: [subscribe], topics: [\"#\"], decision: allow}\n"
            .to_owned()
            + &(0..denies).map(deny).collect::<String>()
    };
    let snapshot = with_rules(&rules(1_000));
    assert_eq!(
        subscribe(&snapshot, &who(&snapshot, "admin", "c"), "t/#").0,
        Decision::Allow
    );
    let snapshot = with_rules(&rules(6_000));
    let admin = who(&snapshot, "admin", "c");
    assert_eq!(
        subscribe(&snapshot, &admin, "t/#"),
        (Decision::Deny(Denial::TooComplex), "default".into())
    );
    assert_eq!(subscribe(&snapshot, &admin, "t/5/+").0, Decision::Allow);
}

#[test]
fn an_address_proves_or_narrows_a_name_and_a_warning_names_who_has_no_password() {
    let devices: String = (0..22)
        .map(|n| format!("- {{name: d{n:02}, networks: [192.0.2.{n}]}}\n"))
        .collect();
    let text = format!(
        "listeners:
- {{name: plain, address: 127.0.0.1:0, upstream: up}}
- {{name: nameless, address: 127.0.0.1:0, upstream: up, anonymous: {{group: g}}, username: ignore}}
upstreams: [{{name: up, endpoints: [tcp://127.0.0.1:1]}}]
groups: [{{name: g}}]
users:
- {{name: careful, password_hash: {HASH}, networks: [10.0.0.0/8, '2001:db8::/32']}}
- {{name: off, networks: [10.0.0.0/8], enabled: false}}
{devices}
rules:
- {{name: anyone, actions: [connect], decision: allow}}
- {{name: careful only, who: {{users: [careful]}}, actions: [publish], topics: [a], decision: allow}}
"
    );
    let snapshot = compiled(&text);
    let [warning] = &*snapshot.warnings() else {
        panic!("{:?}", snapshot.warnings());
    };
    assert!(
        warning.starts_with(
            "without a password, by their address (`networks`) alone, come in: `d00`, `d01`, "
        ) && warning.ends_with("`d19` and 2 more"),
        "{warning}"
    );
    let at = |name: &'static str, address: &str| Who {
        address: address.parse().unwrap(),
        ..who(&snapshot, name, "c")
    };
    for (name, address, may) in [
        ("careful", "10.9.9.9", true),
        ("careful", "::ffff:10.9.9.9", true),
        ("careful", "2001:db8::9", true),
        ("careful", "11.0.0.1", false),
        ("d03", "192.0.2.3", true),
        ("d03", "192.0.2.4", false),
        ("off", "10.0.0.1", false),
    ] {
        let who = at(name, address);
        assert_eq!(snapshot.admit(&who).is_ok(), may, "{name} {address}");
        let explanation = snapshot.explain(&who, &Question::Connect);
        assert_eq!(explanation.decision == "allow", may, "{explanation}");
    }
    let why = snapshot.explain(&at("careful", "11.0.0.1"), &Question::Connect);
    let expected =
        "the session may not open: the address is in none of the `networks` of this user";
    assert_eq!(why.reason, expected);

    // Where names are ignored, the question is answered as for a client without one.
    let nameless = snapshot.listener_by_name("nameless").unwrap().id;
    let named = Who {
        listener: nameless,
        ..at("careful", "10.0.0.1")
    };
    let answer = snapshot.explain(&named, &Question::Message(publish("a")));
    assert_eq!(answer.decision, "deny", "{answer}");
    let said = answer
        .question
        .ends_with("without the user name, which the listener ignores");
    assert!(said, "{answer}");
}

/// What is suggested instead of a refused filter is granted, and nothing is suggested where nothing would be.
#[test]
fn a_refused_subscription_names_narrower_filters() {
    let snapshot = with_rules(
        r##"
- {name: secrets, actions: [subscribe], topics: ["site/+/secret/#"], decision: deny}
- {name: sites, actions: [subscribe], topics: ["site/#", "own/${client_id}/#"], decision: allow}
- {name: news, actions: [subscribe], topics: ["news/+/today"], decision: allow}
- {name: staff, who: {groups: [staff]}, actions: [subscribe], topics: ["staff/#"], decision: allow}
"##,
    );
    let guest = who(&snapshot, "", "c1");
    let table: [(&str, &[&str]); 8] = [
        ("site/#", &["site/+", "site"]),
        ("own/#", &["own/c1/#"]),
        ("own/+", &["own/c1"]),
        ("#", &["own/c1/#", "site/+", "site", "news/+/today"]),
        ("news/#", &["news/+/today"]),
        ("site/a/secret/#", &[]),
        ("staff/#", &[]),
        ("site/+", &[]),
    ];
    for (filter, expected) in table {
        let question = Question::Subscribe {
            filter,
            qos: QoS::AtMostOnce,
            shared: false,
        };
        let explanation = snapshot.explain(&guest, &question);
        assert_eq!(explanation.narrower, expected, "{filter}");
        for narrower in &explanation.narrower {
            assert_eq!(subscribe(&snapshot, &guest, narrower).0, Decision::Allow);
        }
        let text = explanation.to_string();
        let line = "  narrower filters that would pass: `";
        assert_eq!(text.contains(line), !expected.is_empty(), "{text}");
    }
    // The same rules give others to others.
    let admin = who(&snapshot, "admin", "c2");
    let question = Question::Subscribe {
        filter: "own/#",
        qos: QoS::AtMostOnce,
        shared: false,
    };
    assert_eq!(snapshot.explain(&admin, &question).narrower, ["own/c2/#"]);
}

#[test]
fn narrower_filters_are_few_however_many_rules_there_are() {
    let topics: Vec<String> = (0..20_000).map(|n| format!("t/{n}/#")).collect();
    let rules = format!(
        "- {{name: many, actions: [subscribe], topics: [{}], decision: allow}}",
        topics.join(", ")
    );
    let snapshot = with_rules(&rules);
    let guest = who(&snapshot, "", "c1");
    let question = Question::Subscribe {
        filter: "t/#",
        qos: QoS::AtMostOnce,
        shared: false,
    };
    assert_eq!(snapshot.explain(&guest, &question).narrower.len(), 5);
}
