//! Messages that policy refuses or edits: what the publisher is told, and what the broker sees of it.
//!
//! The broker is the stub in manual mode, so every byte upstream is the proxy's, and what must not arrive is shown by what
//! is sent after it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Gates, Visit};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::{self, Props, Publish, VERSIONS};
use sluice_loadtest::stub::{Peer, Script};
use sluice_wire::mqtt::{PacketKind, Version};

static GATES: Gates = Gates::new("denied", POLICY, &[]);

on_every_cell!(GATES;
    m9_a_denied_publish_is_answered_and_dropped,
    m9_a_denied_publish_closes_where_the_rule_says_so,
    m9_denied_and_allowed_in_one_write_are_told_apart,
    s8_illegal_topic_names_end_the_session,
    s14_qos_2_to_1_is_rewritten_and_its_handshake_ended_by_the_proxy,
    s14_qos_to_0_takes_the_identifier_off,
    s14_qos_over_the_rules_is_refused_where_it_says_so,
    s15_retain_is_allowed_stripped_or_refused,
    s15_payloads_over_the_rules_are_refused,
    response_topics_the_sender_may_not_receive_are_refused,
    aliases_are_judged_by_the_topic_they_stand_for,
);

const POLICY: &str = r##"
default: deny
on_deny: drop
listeners:
  - name: stub
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
upstreams:
  - { name: stub, endpoints: ["@STUB@"] }
groups:
  - name: guests
rules:
  - { name: everyone-connects, actions: [connect], decision: allow }
  - { name: data, actions: [publish, subscribe], topics: ["data/#"], decision: allow }
  - { name: closing, actions: [publish], topics: ["closing/#"], decision: deny, on_deny: close }
  - { name: qos-down-1, actions: [publish], topics: ["qos/down/1"], qos_max: 1, decision: allow }
  - { name: qos-down-0, actions: [publish], topics: ["qos/down/0"], qos_max: 0, decision: allow }
  - { name: qos-refuse, actions: [publish], topics: ["qos/refuse/1"], qos_max: 1, qos_over: refuse, decision: allow }
  - { name: qos-close, actions: [publish], topics: ["qos/close/0"], qos_max: 0, qos_over: refuse, on_deny: close, decision: allow }
  - { name: retain-strip, actions: [publish], topics: ["retain/strip"], retain: strip, decision: allow }
  - { name: retain-refuse, actions: [publish], topics: ["retain/refuse"], retain: refuse, decision: allow }
  - { name: retain-close, actions: [publish], topics: ["retain/close"], retain: refuse, on_deny: close, decision: allow }
  - { name: small, actions: [publish], topics: ["small/#"], payload_bytes_max: 10, decision: allow }
  - { name: tiny, actions: [publish], topics: ["tiny/#"], payload_bytes_max: 10, on_deny: close, decision: allow }
"##;

/// A client and the stub's view of it; the stub says nothing by itself.
fn pair(gate: &Visit<'_>, id: &str, version: Version) -> (Client, Peer) {
    let id = format!("{id}-{}", version as u8);
    gate.stub.script(&id, Script::new().manual());
    let client = Client::open(gate.listener("stub"), version, &id);
    let mut peer = gate.stub.peer(&id);
    peer.expect(PacketKind::Connect);
    (client, peer)
}

/// The next thing the broker sees is this ping: nothing was sent before it.
fn fence(client: &mut Client, peer: &mut Peer) {
    client.put(&packet::PINGREQ);
    peer.expect_bytes(&packet::PINGREQ);
    peer.send(&packet::PINGRESP);
    client.expect_bytes(&packet::PINGRESP);
}

/// The answer to a refused QoS 1 or 2 message: version 5 is told, the others are told that it arrived.
fn expect_refusal(client: &mut Client, qos: u8, id: u16) {
    let kind = if qos == 1 {
        PacketKind::Puback
    } else {
        PacketKind::Pubrec
    };
    if client.version() == Version::V5 {
        client.expect_bytes(&packet::ack_with(kind, id, 0x87, &Props::new()));
    } else {
        client.expect_bytes(&packet::ack(kind, id));
        if qos == 2 {
            client.put(&packet::ack(PacketKind::Pubrel, id));
            client.expect_bytes(&packet::ack(PacketKind::Pubcomp, id));
        }
    }
}

fn m9_a_denied_publish_is_answered_and_dropped(gate: &Visit<'_>) {
    let denied = [("direction", "up"), ("result", "denied")];
    for version in VERSIONS {
        let count = || {
            gate.dataplane
                .metrics()
                .unwrap()
                .sum("sluice_publish_total", &denied)
        };
        let before = count().unwrap_or(0.0);
        let (mut client, mut peer) = pair(gate, "m9-drop", version);
        for payload in [vec![], vec![b'x'; 10], vec![b'x'; 100_000]] {
            client.put(&Publish::new(version, "secret/x", payload.clone()).bytes());
            fence(&mut client, &mut peer);
            for qos in [1, 2] {
                let publish = Publish::new(version, "secret/x", payload.clone()).qos(qos, 21);
                client.put(&publish.bytes());
                expect_refusal(&mut client, qos, 21);
                fence(&mut client, &mut peer);
            }
        }
        gate.dataplane
            .wait_metric("sluice_publish_total", &denied, |now| now >= before + 9.0);
    }
}

fn m9_a_denied_publish_closes_where_the_rule_says_so(gate: &Visit<'_>) {
    for version in VERSIONS {
        for qos in 0..=2 {
            let (mut client, mut peer) = pair(gate, "m9-close", version);
            client.put(&Publish::new(version, "closing/x", "x").qos(qos, 5).bytes());
            client.expect_disconnect(0x87);
            peer.expect_end();
        }
    }
}

fn m9_denied_and_allowed_in_one_write_are_told_apart(gate: &Visit<'_>) {
    for version in VERSIONS {
        let (mut client, mut peer) = pair(gate, "m9-mixed", version);
        let mut sent = Vec::new();
        let mut allowed = Vec::new();
        for number in 0..300u16 {
            let is_allowed = number % 3 != 1;
            let topic = if is_allowed { "data/x" } else { "secret/x" };
            let payload = vec![b'p'; usize::from(number) * 31 % 5_000];
            let publish = Publish::new(version, topic, payload).bytes();
            sent.extend_from_slice(&publish);
            if is_allowed {
                allowed.push(publish);
            }
        }
        client.put(&sent);
        for publish in allowed {
            peer.expect_bytes(&publish);
        }
        fence(&mut client, &mut peer);
    }
}

fn s8_illegal_topic_names_end_the_session(gate: &Visit<'_>) {
    for version in VERSIONS {
        for topic in [
            &b"data/#"[..],
            b"data/+",
            b"#",
            b"",
            b"data/\0",
            b"data/\xed\xa0\x80", // a lone surrogate
            b"data/\xff",
            b"data/\xc0\x80", // an overlong NUL
        ] {
            let (mut client, mut peer) = pair(gate, "s8", version);
            client.put(&Publish::new(version, topic, "x").bytes());
            if version == Version::V5 {
                let frame = client.expect(PacketKind::Disconnect);
                let code = frame.body()[0];
                assert!(
                    matches!(code, 0x81 | 0x82 | 0x90),
                    "{topic:?}: reason {code:#04x}"
                );
            }
            client.expect_end();
            peer.expect_end();
        }
        // The longest topic there is.
        let (mut client, mut peer) = pair(gate, "s8-long", version);
        let longest = format!("data/{}", "x".repeat(65_530));
        let publish = Publish::new(version, &longest, "x").bytes();
        client.put(&publish);
        peer.expect_bytes(&publish);
    }
}

fn s14_qos_2_to_1_is_rewritten_and_its_handshake_ended_by_the_proxy(gate: &Visit<'_>) {
    for version in VERSIONS {
        let (mut client, mut peer) = pair(gate, "s14-one", version);
        let publish = Publish::new(version, "qos/down/1", "x");
        client.put(&publish.clone().qos(2, 5).bytes());
        peer.expect_bytes(&publish.clone().qos(1, 5).bytes());
        // A repetition of what is being handled is not sent on again [MQTT-4.3.3].
        client.put(&publish.clone().qos(2, 5).dup().bytes());
        fence(&mut client, &mut peer);
        peer.send(&packet::ack(PacketKind::Puback, 5));
        client.expect_bytes(&packet::ack(PacketKind::Pubrec, 5));
        client.put(&packet::ack(PacketKind::Pubrel, 5));
        client.expect_bytes(&packet::ack(PacketKind::Pubcomp, 5));
        fence(&mut client, &mut peer);
        // The identifier is free again, and QoS 1 passes as it is.
        client.put(&publish.clone().qos(1, 5).bytes());
        peer.expect_bytes(&publish.clone().qos(1, 5).bytes());
        peer.send(&packet::ack(PacketKind::Puback, 5));
        client.expect_bytes(&packet::ack(PacketKind::Puback, 5));
        // QoS 2 elsewhere keeps its own handshake.
        let other = Publish::new(version, "data/x", "x").qos(2, 6).bytes();
        client.put(&other);
        peer.expect_bytes(&other);
        peer.send(&packet::ack(PacketKind::Pubrec, 6));
        client.expect_bytes(&packet::ack(PacketKind::Pubrec, 6));
        client.put(&packet::ack(PacketKind::Pubrel, 6));
        peer.expect_bytes(&packet::ack(PacketKind::Pubrel, 6));
    }
    // The broker's refusal ends the flow: its code becomes that of PUBREC.
    let (mut client, mut peer) = pair(gate, "s14-no", Version::V5);
    let publish = Publish::new(Version::V5, "qos/down/1", "x");
    client.put(&publish.clone().qos(2, 7).bytes());
    peer.expect_bytes(&publish.qos(1, 7).bytes());
    peer.send(&packet::ack_with(
        PacketKind::Puback,
        7,
        0x97,
        &Props::new(),
    ));
    client.expect_bytes(&packet::ack_with(
        PacketKind::Pubrec,
        7,
        0x97,
        &Props::new(),
    ));
    fence(&mut client, &mut peer);
}

fn s14_qos_to_0_takes_the_identifier_off(gate: &Visit<'_>) {
    for version in VERSIONS {
        let (mut client, mut peer) = pair(gate, "s14-zero", version);
        let publish = Publish::new(version, "qos/down/0", "x");
        for number in 0..200 {
            client.put(&publish.clone().qos(1, 8).bytes());
            peer.expect_bytes(&publish.bytes());
            client.expect_bytes(&packet::ack(PacketKind::Puback, 8));
            client.put(&publish.clone().qos(2, 9).bytes());
            peer.expect_bytes(&publish.bytes());
            client.expect_bytes(&packet::ack(PacketKind::Pubrec, 9));
            if number % 2 == 0 {
                client.put(&publish.clone().qos(2, 9).dup().bytes());
                client.expect_bytes(&packet::ack(PacketKind::Pubrec, 9));
            }
            client.put(&packet::ack(PacketKind::Pubrel, 9));
            client.expect_bytes(&packet::ack(PacketKind::Pubcomp, 9));
        }
        // DUP goes with the identifier [MQTT-3.3.1-2].
        client.put(&publish.clone().qos(1, 10).dup().bytes());
        peer.expect_bytes(&publish.bytes());
        client.expect_bytes(&packet::ack(PacketKind::Puback, 10));
        fence(&mut client, &mut peer);
    }
}

fn s14_qos_over_the_rules_is_refused_where_it_says_so(gate: &Visit<'_>) {
    for version in VERSIONS {
        let (mut client, mut peer) = pair(gate, "s14-refuse", version);
        client.put(&Publish::new(version, "qos/refuse/1", "x").qos(2, 5).bytes());
        expect_refusal(&mut client, 2, 5);
        let allowed = Publish::new(version, "qos/refuse/1", "x").qos(1, 6).bytes();
        client.put(&allowed);
        peer.expect_bytes(&allowed);
        client.put(&Publish::new(version, "qos/close/0", "x").qos(1, 7).bytes());
        client.expect_disconnect(0x9b);
        peer.expect_end();
    }
}

fn s15_retain_is_allowed_stripped_or_refused(gate: &Visit<'_>) {
    for version in VERSIONS {
        let (mut client, mut peer) = pair(gate, "s15", version);
        for payload in ["x", ""] {
            for qos in 0..=2 {
                let plain = Publish::new(version, "retain/strip", payload).qos(qos, 5);
                client.put(&plain.clone().retain().bytes());
                peer.expect_bytes(&plain.bytes());
                let kept = Publish::new(version, "data/x", payload)
                    .qos(qos, 6)
                    .retain();
                client.put(&kept.bytes());
                peer.expect_bytes(&kept.bytes());
                if qos == 2 {
                    // Ends what the broker owns, so that the identifiers are free.
                    for id in [5, 6] {
                        client.put(&packet::ack(PacketKind::Pubrel, id));
                        peer.expect_bytes(&packet::ack(PacketKind::Pubrel, id));
                    }
                }
            }
            client.put(
                &Publish::new(version, "retain/refuse", payload)
                    .retain()
                    .bytes(),
            );
            fence(&mut client, &mut peer);
            let refused = Publish::new(version, "retain/refuse", payload).qos(1, 7);
            client.put(&refused.clone().retain().bytes());
            expect_refusal(&mut client, 1, 7);
            client.put(&refused.bytes());
            peer.expect_bytes(&refused.bytes());
        }
        client.put(&Publish::new(version, "retain/close", "x").retain().bytes());
        client.expect_disconnect(0x9a);
        peer.expect_end();
    }
}

fn s15_payloads_over_the_rules_are_refused(gate: &Visit<'_>) {
    for version in VERSIONS {
        let (mut client, mut peer) = pair(gate, "s15-size", version);
        let fits = Publish::new(version, "small/x", "0123456789")
            .qos(1, 1)
            .bytes();
        client.put(&fits);
        peer.expect_bytes(&fits);
        // Our answers wait for those before them.
        peer.send(&packet::ack(PacketKind::Puback, 1));
        client.expect_bytes(&packet::ack(PacketKind::Puback, 1));
        for payload in ["0123456789a", &"long".repeat(30_000)] {
            client.put(&Publish::new(version, "small/x", payload).qos(1, 2).bytes());
            expect_refusal(&mut client, 1, 2);
            client.put(&Publish::new(version, "small/x", payload).bytes());
            fence(&mut client, &mut peer);
        }
        client.put(&Publish::new(version, "tiny/x", "0123456789a").bytes());
        client.expect_disconnect(0x95);
        peer.expect_end();
    }
}

fn response_topics_the_sender_may_not_receive_are_refused(gate: &Visit<'_>) {
    let (mut client, mut peer) = pair(gate, "response", Version::V5);
    let asks = |topic: &str| {
        Publish::new(Version::V5, "data/x", "x")
            .qos(1, 3)
            .props(Props::new().text(0x08, topic))
            .bytes()
    };
    client.put(&asks("data/reply"));
    peer.expect_bytes(&asks("data/reply"));
    client.put(&asks("secret/reply"));
    expect_refusal(&mut client, 1, 3);
    fence(&mut client, &mut peer);
}

fn aliases_are_judged_by_the_topic_they_stand_for(gate: &Visit<'_>) {
    let id = "aliases-judged";
    let props = Props::new().two(0x22, 5);
    gate.stub
        .script(id, Script::new().manual().connack_props(props));
    let mut client = Client::open(gate.listener("stub"), Version::V5, id);
    let mut peer = gate.stub.peer(id);
    peer.expect(PacketKind::Connect);
    let with = |topic: &str, alias: u16| {
        Publish::new(Version::V5, topic, "x").props(Props::new().two(0x23, alias))
    };
    client.put(&with("secret/x", 1).qos(1, 1).bytes());
    expect_refusal(&mut client, 1, 1);
    client.put(&with("", 1).qos(1, 2).bytes());
    expect_refusal(&mut client, 1, 2);
    client.put(&with("data/x", 1).bytes());
    peer.expect_bytes(&with("data/x", 1).bytes());
    client.put(&with("", 1).bytes());
    peer.expect_bytes(&with("", 1).bytes());
    // An alias beyond the broker's maximum, and one never set.
    for bad in [with("data/x", 6), with("", 2), with("data/x", 0)] {
        let mut client = Client::open(gate.listener("stub"), Version::V5, id);
        client.put(&bad.bytes());
        let code = client.expect(PacketKind::Disconnect).body()[0];
        assert!(matches!(code, 0x81 | 0x82 | 0x94), "{bad:?}: {code:#04x}");
        client.expect_end();
    }
}
