//! The will is a publish that happens later: judged at CONNECT, edited like one, and judged again when it is due.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Gates, Visit};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::{self, Connect, Props, VERSIONS, Will};
use sluice_loadtest::stub::Script;
use sluice_wire::mqtt::Version;

static GATES: Gates = Gates::new("will", POLICY, &[]);

on_every_cell!(GATES;
    m10_only_permitted_wills_are_accepted,
    m10_a_rules_limits_apply_to_the_will,
    m10_a_response_topic_of_a_will_is_judged,
    the_will_of_a_lost_client_is_published_and_of_a_polite_one_not,
);

const POLICY: &str = r##"
default: deny
listeners:
  - name: main
    address: 127.0.0.1:0
    upstream: broker
    anonymous: { group: guests }
  - name: stub
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
    limits: { packet_bytes_max: 268435460, receive_max: 65535 }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
  - { name: stub, endpoints: ["@STUB@"] }
groups:
  - name: guests
rules:
  - { name: everyone-connects, actions: [connect], decision: allow }
  - { name: data, actions: [publish, subscribe], topics: ["data/#"], decision: allow }
  - { name: own, actions: [publish], topics: ["own/${client_id}/#"], decision: allow }
  - { name: low, actions: [publish], topics: ["low/#"], qos_max: 1, retain: strip, decision: allow }
  - { name: strict, actions: [publish], topics: ["strict/#"], qos_max: 1, qos_over: refuse, retain: refuse, payload_bytes_max: 4, decision: allow }
"##;

fn m10_only_permitted_wills_are_accepted(gate: &Visit<'_>) {
    for version in VERSIONS {
        for (topic, is_allowed) in [
            ("data/gone", true),
            ("own/m10-own/gone", true),
            ("own/somebody/gone", false),
            ("secret/gone", false),
            ("$SYS/gone", false),
        ] {
            let connect = Connect::new(version, "m10-own").will(Will::new(topic, "gone"));
            let mut client = Client::start(gate.listener("main"), version);
            let code = client.connect(&connect);
            let refusal = if version == Version::V5 { 0x87 } else { 5 };
            assert_eq!(code, if is_allowed { 0 } else { refusal }, "{topic}");
        }
    }
}

fn m10_a_rules_limits_apply_to_the_will(gate: &Visit<'_>) {
    for version in VERSIONS {
        let id = format!("m10-edit-{}", version as u8);
        gate.stub.script(&id, Script::new().manual());
        let asked = Connect::new(version, &id).will(Will::new("low/w", "gone").qos(2).retain());
        Client::open_with(gate.listener("stub"), &asked);
        let edited = Connect::new(version, &id).will(Will::new("low/w", "gone").qos(1));
        gate.stub.peer(&id).expect_bytes(&edited.bytes());
        for (will, code) in [
            (Will::new("strict/w", "four"), 0),
            (Will::new("strict/w", "four").qos(2), 0x9b),
            (Will::new("strict/w", "four").retain(), 0x9a),
            (Will::new("strict/w", "five5"), 0x95),
        ] {
            let connect = Connect::new(version, "m10-strict").will(will.clone());
            let mut client = Client::start(gate.listener("main"), version);
            let got = client.connect(&connect);
            if version == Version::V5 {
                assert_eq!(got, code, "{will:?}: {got:#04x}");
            } else {
                assert_eq!(got, if code == 0 { 0 } else { 5 }, "{will:?}");
            }
        }
    }
}

fn m10_a_response_topic_of_a_will_is_judged(gate: &Visit<'_>) {
    for (topic, code) in [("data/reply", 0), ("secret/reply", 0x87)] {
        let will = Will::new("data/w", "gone").props(Props::new().text(0x08, topic));
        let connect = Connect::new(Version::V5, "m10-response").will(will);
        let mut client = Client::start(gate.listener("main"), Version::V5);
        assert_eq!(client.connect(&connect), code, "{topic}");
    }
}

fn the_will_of_a_lost_client_is_published_and_of_a_polite_one_not(gate: &Visit<'_>) {
    for version in VERSIONS {
        let topic = format!("data/lost/{}", version as u8);
        let mut watcher = Client::open(gate.listener("main"), version, "will-watcher");
        watcher.subscribe(&topic, 1);
        let connect = |payload: &str| {
            Connect::new(version, "will-lost").will(Will::new(&topic, payload).qos(1))
        };
        // Polite.
        let mut client = Client::open_with(gate.listener("main"), &connect("polite"));
        client.put(&packet::DISCONNECT);
        client.expect_end();
        // Reset, closed without a word, and thrown out for breaking the protocol.
        let client = Client::open_with(gate.listener("main"), &connect("reset"));
        client.reset().unwrap();
        watcher.expect_message(&topic, "reset");
        drop(Client::open_with(gate.listener("main"), &connect("closed")));
        watcher.expect_message(&topic, "closed");
        let mut client = Client::open_with(gate.listener("main"), &connect("violation"));
        client.put(&[0x00, 0x00]);
        watcher.expect_message(&topic, "violation");
        if version == Version::V5 {
            // Disconnect with will message.
            let mut client = Client::open_with(gate.listener("main"), &connect("asked for"));
            client.put(&packet::disconnect_with(0x04, &Props::new()));
            watcher.expect_message(&topic, "asked for");
        }
        watcher.ping();
    }
}
