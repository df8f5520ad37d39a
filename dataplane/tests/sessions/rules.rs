//! How often each rule decides is counted where it decides: for every action, allowed or not, at the first message on a topic
//! and at every later one.

use sluice_dataplane::metrics::RuleCount;
use sluice_wire::mqtt::{Packet, QoS, Version};

use crate::harness::{Rig, bytes, connack, connect, document, publish, subscribe};

const RULES: &str = r##"
rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: open, actions: [publish, subscribe], topics: ["open/#"], decision: allow}
  - {name: closed, actions: [publish], topics: ["closed/#"], decision: deny}
  - {name: other, priority: 10, mode: shadow, actions: [publish, subscribe], topics: ["open/shadow/#"], decision: deny}
  - {name: same, priority: 10, mode: shadow, actions: [publish], topics: ["open/#"], decision: allow}
  - {name: never, actions: [publish], topics: ["never"], decision: allow}
"##;

const REFUSED: &str = r##"
rules:
  - {name: nobody, actions: [connect], decision: deny}
  - {name: would, priority: 1, mode: shadow, actions: [connect], decision: allow}
"##;

#[test]
fn a_connect_that_a_rule_refuses_is_its_decision() {
    let mut rig = Rig::new(&document("", REFUSED));
    let packet = Packet::Connect(connect(Version::V311, "dev"));
    rig.client(&bytes(Version::V311, &packet));
    assert_eq!(rig.rule_count("nobody"), count(1, 0));
    assert_eq!(rig.rule_count("would"), count(1, 1));
    assert_eq!(rig.by_default(), 0);
}

fn count(decided: u64, otherwise: u64) -> RuleCount {
    RuleCount { decided, otherwise }
}

#[test]
fn every_decision_is_counted_for_the_rule_that_made_it() {
    let version = Version::V311;
    let mut rig = Rig::dialled(version, &document("", RULES), &connect(version, "dev"));
    rig.broker(&connack(version, 0, &[]));
    assert_eq!(rig.rule_count("connect"), count(1, 0));
    let sends = |rig: &mut Rig, topic| {
        rig.client_sends(&Packet::Publish(publish(topic, QoS::AtMostOnce, 0, b"x")));
    };
    for topic in ["open/a", "open/a", "open/shadow/a", "closed/a", "nowhere"] {
        sends(&mut rig, topic);
    }
    assert_eq!(rig.rule_count("open"), count(3, 0));
    assert_eq!(rig.rule_count("closed"), count(1, 0));
    assert_eq!(rig.by_default(), 1);
    // Of two in shadow the first one would have decided; it says what the policy says, or not.
    assert_eq!(rig.rule_count("other"), count(1, 1));
    assert_eq!(rig.rule_count("same"), count(2, 0));

    rig.client(&subscribe(
        version,
        1,
        &[
            ("open/a", QoS::AtMostOnce),
            ("open/shadow/a", QoS::AtMostOnce),
        ],
    ));
    assert_eq!(rig.rule_count("open"), count(5, 0));
    assert_eq!(rig.rule_count("other"), count(2, 2));
    rig.broker_sends(&Packet::Publish(publish(
        "open/a",
        QoS::AtMostOnce,
        0,
        b"x",
    )));
    assert_eq!(rig.rule_count("open"), count(6, 0));
    assert_eq!(rig.rule_count("never"), count(0, 0));
}
