//! What never reaches the broker: bad credentials, broken or missing CONNECTs, too long packets.
//!
//! The upstream is the stub, and every test of this file ends by looking that no connection was ever made to it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::{Client, Ended};
use sluice_loadtest::harness::{Gates, Visit};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::{self, Connect, PINGREQ, Props, Publish, VERSIONS, Will};
use sluice_wire::mqtt::{PacketKind, Version};

static GATES: Gates = Gates::new("refused", POLICY, &[]);

on_every_cell!(GATES;
    m7_wrong_password_is_answered_in_the_clients_version,
    m7_denied_connect_is_answered_in_the_clients_version,
    s12_unknown_disabled_and_wrong_are_told_alike,
    m10_forbidden_will_is_refused_at_connect,
    m11_packets_before_connect_end_the_connection,
    m14_a_declared_length_beyond_the_limit_is_refused_before_its_bytes,
    m15_a_connection_without_connect_is_closed_at_the_deadline,
    s7_truncated_and_flipped_connects_end_the_connection,
    s8_connect_with_illegal_strings_is_refused,
    client_ids_are_judged_by_pattern_length_and_binding,
    versions_not_allowed_on_the_listener_are_refused,
);

const POLICY: &str = r##"
default: deny
listeners:
  - name: main
    address: 127.0.0.1:0
    upstream: stub
    client_id: { pattern: "[a-z0-9-]*", bytes_max: 32 }
    limits: { connect_bytes_max: 16KiB, connect_timeout: 30s }
  - name: hasty
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
    limits: { connect_timeout: 300ms }
  - name: five
    address: 127.0.0.1:0
    upstream: stub
    versions: ["5"]
    anonymous: { group: guests }
  - name: three
    address: 127.0.0.1:0
    upstream: stub
    versions: ["3.1", "3.1.1"]
    anonymous: { group: guests }
upstreams:
  - name: stub
    endpoints: ["@STUB@"]
groups:
  - name: guests
  - name: barred
users:
  - name: alice
    password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO"
  - name: bound
    password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO"
    client_id: the-only-one
  - name: switched-off
    password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO"
    enabled: false
  - name: mallory
    password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO"
    groups: [barred]
rules:
  - name: barred-stay-out
    priority: 10
    who: { groups: [barred] }
    actions: [connect]
    decision: deny
  - name: everyone-connects
    actions: [connect]
    decision: allow
  - name: own-topics
    actions: [publish, subscribe]
    topics: ["data/#"]
    decision: allow
"##;

/// The password of every user above.
const PASSWORD: &str = "builder";

/// CONNACK codes of a refusal: for 3.x and for 5.
fn refused(gate: &Visit<'_>, listener: &str, connect: &Connect, code_v3: u8, code_v5: u8) {
    let mut client = Client::start(gate.listener(listener), connect.version);
    let code = client.connect(connect);
    let expected = if connect.version == Version::V5 {
        code_v5
    } else {
        code_v3
    };
    assert_eq!(
        code, expected,
        "CONNACK code {code:#04x} for {connect:?}, expected {expected:#04x}"
    );
    client.expect_end();
    nothing_was_dialled(gate);
}

/// Whatever the client says, the answer is the end of the connection, with nothing sent before.
fn cut_off(gate: &Visit<'_>, listener: &str, bytes: &[u8]) {
    let mut client = Client::start(gate.listener(listener), Version::V311);
    // The connection may end before all is written; that is an end too.
    let _ = client.send(bytes);
    client.expect_end();
    nothing_was_dialled(gate);
}

fn nothing_was_dialled(gate: &Visit<'_>) {
    assert_eq!(
        gate.stub.accepted_count(),
        0,
        "the broker was dialled for a stranger"
    );
}

fn m7_wrong_password_is_answered_in_the_clients_version(gate: &Visit<'_>) {
    for version in VERSIONS {
        let wrong = Connect::new(version, "m7").user("alice", "guess");
        refused(gate, "main", &wrong, 4, 0x86);
        let none = Connect::new(version, "m7");
        refused(gate, "main", &none, 4, 0x86);
        let mut no_password = Connect::new(version, "m7");
        no_password.username = Some("alice".into());
        refused(gate, "main", &no_password, 4, 0x86);
    }
}

fn m7_denied_connect_is_answered_in_the_clients_version(gate: &Visit<'_>) {
    for version in VERSIONS {
        let barred = Connect::new(version, "m7-barred").user("mallory", PASSWORD);
        refused(gate, "main", &barred, 5, 0x87);
    }
}

fn s12_unknown_disabled_and_wrong_are_told_alike(gate: &Visit<'_>) {
    for version in VERSIONS {
        for (user, password) in [
            ("nobody", PASSWORD),
            ("switched-off", PASSWORD),
            ("alice", "builde"),
            ("alice", "builder2"),
            ("alice", ""),
            ("Alice", PASSWORD),
        ] {
            let connect = Connect::new(version, "s12").user(user, password);
            refused(gate, "main", &connect, 4, 0x86);
        }
    }
}

fn m10_forbidden_will_is_refused_at_connect(gate: &Visit<'_>) {
    for version in VERSIONS {
        for topic in ["secret/x", "$SYS/x", "dat"] {
            let connect = Connect::new(version, "m10")
                .user("alice", PASSWORD)
                .will(Will::new(topic, "bye"));
            refused(gate, "main", &connect, 5, 0x87);
        }
    }
}

fn m11_packets_before_connect_end_the_connection(gate: &Visit<'_>) {
    for version in VERSIONS {
        cut_off(
            gate,
            "main",
            &Publish::new(version, "data/x", "early").bytes(),
        );
        cut_off(gate, "main", &packet::subscribe(version, 1, &[("#", 0)]));
    }
    cut_off(gate, "main", &PINGREQ);
    cut_off(gate, "main", &packet::auth(0x18, &Props::new()));
    // A server's packets are no better, and a CONNECT behind them does not help.
    let connack = packet::connack(Version::V5, false, 0, &Props::new());
    let connect = Connect::new(Version::V5, "m11")
        .user("alice", PASSWORD)
        .bytes();
    cut_off(gate, "main", &[connack, connect].concat());
}

fn m14_a_declared_length_beyond_the_limit_is_refused_before_its_bytes(gate: &Visit<'_>) {
    // 268,435,455 bytes are announced and none follow: the answer must not wait for them.
    cut_off(gate, "main", &[0x10, 0xff, 0xff, 0xff, 0x7f]);
    cut_off(gate, "main", &[0x10, 0x81, 0x80, 0x01]);
    // A length of five bytes is none.
    cut_off(gate, "main", &[0x10, 0x80, 0x80, 0x80, 0x80, 0x01]);
}

fn m15_a_connection_without_connect_is_closed_at_the_deadline(gate: &Visit<'_>) {
    let connect = Connect::new(Version::V5, "m15").bytes();
    for sent in [&[][..], &connect[..1], &connect[..connect.len() - 1]] {
        cut_off(gate, "hasty", sent);
    }
}

fn s7_truncated_and_flipped_connects_end_the_connection(gate: &Visit<'_>) {
    for version in VERSIONS {
        let connect = Connect::new(version, "s7")
            .user("alice", PASSWORD)
            .will(Will::new("data/will", "w").qos(1))
            .bytes();
        // The body is cut while the remaining length says what is there: malformed, not unfinished.
        for cut in 2..connect.len() - 1 {
            let short = packet::raw(0x10, &connect[2..cut]);
            let mut client = Client::start(gate.listener("main"), version);
            client.put(&short);
            ends_with_refusal(&mut client);
        }
        // Flags of the fixed header are reserved [MQTT-2.1.3-1]; 3.1 does not use them.
        for bit in (0..4).filter(|_| version > Version::V31) {
            let mut flipped = connect.clone();
            flipped[0] ^= 1 << bit;
            let mut client = Client::start(gate.listener("main"), version);
            client.put(&flipped);
            ends_with_refusal(&mut client);
        }
    }
    nothing_was_dialled(gate);
}

/// The end, perhaps after a CONNACK that refuses.
fn ends_with_refusal(client: &mut Client) {
    match client.recv() {
        Ok(frame) => {
            assert!(frame.is(PacketKind::Connack), "{frame:?}");
            assert_ne!(frame.body()[1], 0, "a broken CONNECT was accepted");
            client.expect_end();
        }
        Err(ended) => assert!(matches!(ended, Ended::Closed | Ended::Reset), "{ended}"),
    }
}

fn s8_connect_with_illegal_strings_is_refused(gate: &Visit<'_>) {
    for version in VERSIONS {
        for topic in ["data/#", "data/+/x", "", "data/\0"] {
            let connect = Connect::new(version, "s8")
                .user("alice", PASSWORD)
                .will(Will::new(topic, "w"));
            let mut client = Client::start(gate.listener("main"), version);
            client.put(&connect.bytes());
            ends_with_refusal(&mut client);
        }
        // A lone surrogate in the client id: written as the three bytes UTF-8 must not have.
        let mut bytes = Connect::new(version, "AAA").user("alice", PASSWORD).bytes();
        let at = bytes
            .windows(3)
            .position(|window| window == b"AAA")
            .unwrap();
        bytes[at..at + 3].copy_from_slice(&[0xed, 0xa0, 0x80]);
        let mut client = Client::start(gate.listener("main"), version);
        client.put(&bytes);
        ends_with_refusal(&mut client);
    }
    nothing_was_dialled(gate);
}

fn client_ids_are_judged_by_pattern_length_and_binding(gate: &Visit<'_>) {
    for version in VERSIONS {
        for (client_id, user) in [
            ("Upper", "alice"),
            ("a-client-id-that-is-far-too-long-for-the-listener", "alice"),
            ("not-the-one", "bound"),
        ] {
            let connect = Connect::new(version, client_id).user(user, PASSWORD);
            refused(gate, "main", &connect, 2, 0x85);
        }
    }
    // Clean session 0 without an id [MQTT-3.1.3-8].
    let mut nameless = Connect::new(Version::V311, "").user("alice", PASSWORD);
    nameless.clean = false;
    refused(gate, "main", &nameless, 2, 0x85);
}

fn versions_not_allowed_on_the_listener_are_refused(gate: &Visit<'_>) {
    for version in VERSIONS {
        let listener = if version == Version::V5 {
            "three"
        } else {
            "five"
        };
        refused(gate, listener, &Connect::new(version, "old"), 1, 0x84);
    }
    // A level nobody knows.
    let mut bytes = Connect::new(Version::V311, "new").bytes();
    bytes[8] = 6;
    let mut client = Client::start(gate.listener("main"), Version::V311);
    client.put(&bytes);
    ends_with_refusal(&mut client);
    nothing_was_dialled(gate);
}
