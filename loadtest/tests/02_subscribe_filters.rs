//! Which subscriptions are granted, how a refusal is told, and the delivery check behind them.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Gates, Visit};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::{self, Connect, Publish, VERSIONS};
use sluice_loadtest::stub::Script;
use sluice_wire::mqtt::{Packet, PacketKind, PropertyId, Side, Version};

static GATES: Gates = Gates::new("subscribe", POLICY, &[]);

on_every_cell!(GATES;
    m8_only_the_forbidden_filter_is_refused,
    m8_what_is_refused_is_not_forwarded,
    m8_many_subscriptions_at_once_are_all_answered,
    s1_rule_filters_match_as_the_specification_says,
    s5_filters_that_overlap_a_deny_are_refused,
    s5_the_delivery_check_drops_the_message_and_keeps_the_client,
    s5_dropped_deliveries_are_acknowledged_in_their_turn,
    s6_the_filter_part_of_a_shared_subscription_is_judged,
    filters_that_are_none_end_the_session,
    older_versions_are_held_to_their_own_rules,
    max_qos_of_a_rule_lowers_the_subscription,
    a_narrowed_subscription_brings_everything_but_the_secrets,
    a_refusal_is_told_in_words_where_the_listener_says_so,
    unsubscribe_is_always_allowed,
);

const POLICY: &str = r##"
default: deny
listeners:
  - name: main
    address: 127.0.0.1:0
    upstream: broker
    anonymous: { group: guests }
  - name: telling
    address: 127.0.0.1:0
    upstream: broker
    anonymous: { group: guests }
    reason_strings: rule
  - name: stub
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
upstreams:
  - name: broker
    endpoints: ["@MOSQUITTO@"]
  - name: stub
    endpoints: ["@STUB@"]
groups:
  - name: guests
rules:
  - { name: everyone-connects, actions: [connect], decision: allow }
  # The inner network is closed, everything else open, for clients called s5...
  - name: internal-closed
    priority: 10
    who: { client_id_patterns: ["(s5|s6|m8).*"] }
    actions: [subscribe]
    topics: ["internal/#"]
    decision: deny
  - name: rest-open
    who: { client_id_patterns: ["(s5|s6|m8).*"] }
    actions: [subscribe]
    topics: ["#"]
    decision: allow
  # ... and one topic of an open tree may not be received.
  - name: private-not-received
    priority: 10
    actions: [receive]
    topics: ["open/+/private"]
    decision: deny
  # Everything of the sites but their secrets.
  - name: no-secrets
    priority: 10
    who: { client_id_patterns: ["narrow.*"] }
    actions: [subscribe]
    topics: ["site/+/secret/#"]
    decision: deny
  - name: sites
    who: { client_id_patterns: ["narrow.*"] }
    actions: [subscribe]
    topics: ["site/#"]
    decision: allow
    narrow: true
  - name: low
    who: { client_id_patterns: ["low.*"] }
    actions: [subscribe, publish]
    topics: ["low/#"]
    qos_max: 1
    decision: allow
  - name: writers
    who: { client_id_patterns: ["writer.*"] }
    actions: [publish, subscribe]
    topics: ["#"]
    decision: allow
  # One filter for each of the clients s1-..., who may publish what it matches.
  - { name: s1-plus,     who: { client_ids: [s1-plus] },     actions: [publish], topics: ["a/+/c"], decision: allow }
  - { name: s1-hash,     who: { client_ids: [s1-hash] },     actions: [publish], topics: ["a/#"], decision: allow }
  - { name: s1-all,      who: { client_ids: [s1-all] },      actions: [publish], topics: ["#"], decision: allow }
  - { name: s1-first,    who: { client_ids: [s1-first] },    actions: [publish], topics: ["+/x"], decision: allow }
  - { name: s1-empty,    who: { client_ids: [s1-empty] },    actions: [publish], topics: ["a//b"], decision: allow }
  - { name: s1-lead,     who: { client_ids: [s1-lead] },     actions: [publish], topics: ["/lead"], decision: allow }
  - { name: s1-dollar,   who: { client_ids: [s1-dollar] },   actions: [publish], topics: ["$SYS/#"], decision: allow }
  - { name: s1-one,      who: { client_ids: [s1-one] },      actions: [publish], topics: ["+"], decision: allow }
  - { name: s1-two,      who: { client_ids: [s1-two] },      actions: [publish], topics: ["+/+"], decision: allow }
  - { name: s1-last,     who: { client_ids: [s1-last] },     actions: [publish], topics: ["a/+"], decision: allow }
  - { name: s1-plushash, who: { client_ids: [s1-plushash] }, actions: [publish], topics: ["+/#"], decision: allow }
"##;

/// The code for a refused filter.
fn refusal(version: Version) -> u8 {
    if version == Version::V5 { 0x87 } else { 0x80 }
}

fn m8_only_the_forbidden_filter_is_refused(gate: &Visit<'_>) {
    for version in [Version::V311, Version::V5] {
        let mut client = Client::open(gate.listener("main"), version, "m8-main");
        let codes = client.subscribe_all(&[("m8/a", 1), ("internal/x", 1), ("m8/b", 2)]);
        assert_eq!(codes, [1, refusal(version), 2]);
        let all = client.subscribe_all(&[("internal/x", 1), ("internal/y", 0)]);
        assert_eq!(all, [refusal(version); 2]);
        let mut writer = Client::open(gate.listener("main"), version, "writer-m8");
        for topic in ["internal/x", "m8/a", "m8/b"] {
            writer.publish_acked(topic, "here", 1);
        }
        client.expect_message("m8/a", "here");
        client.expect_message("m8/b", "here");
    }
    // 3.1 has no code for a failure: the client is told the QoS it asked for, and nothing comes.
    let mut client = Client::open(gate.listener("main"), Version::V31, "m8-old");
    assert_eq!(
        client.subscribe_all(&[("m8/a", 1), ("internal/x", 2)]),
        [1, 2]
    );
    let mut writer = Client::open(gate.listener("main"), Version::V31, "writer-m8");
    writer.publish_acked("internal/x", "here", 1);
    writer.publish_acked("m8/a", "here", 2);
    client.expect_message("m8/a", "here");
}

fn m8_what_is_refused_is_not_forwarded(gate: &Visit<'_>) {
    for version in VERSIONS {
        let id = format!("m8-stub-{}", version as u8);
        gate.stub.script(&id, Script::new().manual());
        let mut client = Client::open(gate.listener("stub"), version, &id);
        let mut peer = gate.stub.peer(&id);
        peer.expect(PacketKind::Connect);
        client.put(&packet::subscribe(
            version,
            77,
            &[("m8/a", 1), ("internal/x", 1), ("m8/b", 2)],
        ));
        peer.expect_bytes(&packet::subscribe(version, 77, &[("m8/a", 1), ("m8/b", 2)]));
        // The broker's own refusal of one of the others is kept in its place.
        // 3.1 knows no failure: there it grants less.
        let broker_code = match version {
            Version::V31 => 0,
            Version::V311 => 0x80,
            Version::V5 => 0x97,
        };
        peer.send(&packet::suback(version, 77, &[broker_code, 2]));
        let own = if version == Version::V31 {
            1
        } else {
            refusal(version)
        };
        client.expect_bytes(&packet::suback(version, 77, &[broker_code, own, 2]));
        // When nothing is left, nothing is forwarded and the proxy answers alone.
        client.put(&packet::subscribe(version, 78, &[("internal/x", 1)]));
        client.expect_bytes(&packet::suback(version, 78, &[own]));
        client.put(&packet::PINGREQ);
        peer.expect_bytes(&packet::PINGREQ);
    }
}

fn m8_many_subscriptions_at_once_are_all_answered(gate: &Visit<'_>) {
    for version in VERSIONS {
        let mut client = Client::open(gate.listener("main"), version, "m8-many");
        let own = if version == Version::V31 {
            1
        } else {
            refusal(version)
        };
        let filters = [("m8/a", 1), ("internal/x", 1)];
        let all = (1..=500).flat_map(|number| packet::subscribe(version, number, &filters));
        client.put(&all.collect::<Vec<u8>>());
        for number in 1..=500 {
            client.expect_bytes(&packet::suback(version, number, &[1, own]));
        }
        client.ping();
    }
}

fn s1_rule_filters_match_as_the_specification_says(gate: &Visit<'_>) {
    #[rustfmt::skip]
    let table: &[(&str, &[&str], &[&str])] = &[
        // (client = its rule's filter, matches, does not match)
        ("s1-plus", &["a/b/c", "a//c", "a/$x/c"], &["a/c", "a/b/d", "a/b/c/d", "/a/b/c"]), // a/+/c
        ("s1-hash", &["a", "a/", "a/b", "a/b/c", "a//"], &["ab", "A/b", "/a", "b/a"]), // a/#
        ("s1-all", &["x", "/", "/x", "a//b", "a/$b"], &["$SYS", "$SYS/x", "$x"]), // #
        ("s1-first", &["a/x", "/x"], &["x", "$SYS/x", "a/x/y", "a//x"]), // +/x
        ("s1-empty", &["a//b"], &["a/b", "a/x/b", "a///b"]), // a//b
        ("s1-lead", &["/lead"], &["lead", "//lead", "/lead/"]), // /lead
        ("s1-dollar", &["$SYS", "$SYS/x", "$SYS/x/y"], &["SYS/x", "$SYSx", "$sys/x"]), // $SYS/#
        ("s1-one", &["x"], &["/", "x/", "/x", "$x"]), // +
        ("s1-two", &["/", "a/", "/x", "a/b"], &["a", "a/b/", "$a/b"]), // +/+
        ("s1-last", &["a/", "a/b"], &["a", "a/b/", "b/a"]), // a/+
        ("s1-plushash", &["a", "a/b", "/"], &["$a", "$a/b"]), // +/#
    ];
    for (id, matches, others) in table {
        let mut client = Client::open(gate.listener("stub"), Version::V5, id);
        for (topics, code) in [(matches, 0), (others, 0x87)] {
            for topic in *topics {
                let got = client.publish_acked(topic, "", 1);
                assert_eq!(got, code, "{id}: {topic:?} was answered {got:#04x}");
            }
        }
    }
}

fn s5_filters_that_overlap_a_deny_are_refused(gate: &Visit<'_>) {
    for version in [Version::V311, Version::V5] {
        let mut client = Client::open(gate.listener("main"), version, "s5-overlap");
        for filter in [
            "#",
            "+",
            "+/secret",
            "+/+/x",
            "+/#",
            "internal",
            "internal/+",
            "internal/#",
            "internal/a/b",
            "internal/+/#",
        ] {
            let code = client.subscribe(filter, 0);
            assert_eq!(code, refusal(version), "{filter}: {code:#04x}");
        }
        for filter in [
            "s5/#",
            "s5/+/x",
            "/internal/#",
            "internally",
            "/+",
            "Internal/#",
        ] {
            assert_eq!(client.subscribe(filter, 0), 0, "{filter}");
        }
        // No rule speaks of topics that begin with `$`, and `#` does not.
        assert_eq!(client.subscribe("$SYS/#", 0), refusal(version));
    }
}

fn s5_the_delivery_check_drops_the_message_and_keeps_the_client(gate: &Visit<'_>) {
    for version in VERSIONS {
        for qos in 0..=2 {
            let id = format!("s5-net-{}-{qos}", version as u8);
            let tree = format!("open/{id}");
            // Through the proxy nobody gets this subscription, for it covers the private topic. The broker may have it
            // all the same: from before the rule, or, as here, made behind the proxy's back.
            let kept = Connect::new(version, &id).persistent();
            let mut client = Client::open_with(gate.mosquitto.address(), &kept);
            assert_eq!(client.subscribe(&format!("{tree}/+"), qos), qos);
            let mut client = Client::open_with(gate.listener("main"), &kept);
            let mut writer = Client::open(gate.listener("main"), version, "writer-s5");
            // More than Mosquitto has in flight: only finished handshakes let the last one through.
            for _ in 0..50 {
                writer.publish_exactly_once(&format!("{tree}/private"), "hidden", 1);
            }
            writer.publish_exactly_once(&format!("{tree}/public"), "seen", 2);
            let seen = client.expect_message(&format!("{tree}/public"), "seen");
            assert_eq!(seen.qos, qos);
            client.ping();
            drop(writer);
        }
    }
}

fn s5_dropped_deliveries_are_acknowledged_in_their_turn(gate: &Visit<'_>) {
    for version in VERSIONS {
        let id = format!("s5-order-{}", version as u8);
        gate.stub.script(&id, Script::new().manual());
        let mut client = Client::open(gate.listener("stub"), version, &id);
        let mut peer = gate.stub.peer(&id);
        peer.expect(PacketKind::Connect);
        for number in 1..=4 {
            let topic = ["open/x/private", "open/x/public"][usize::from(number % 2)];
            let message = Publish::new(version, topic, "payload").qos(1, number);
            let message = message.bytes();
            peer.send(&message);
            if number % 2 == 1 {
                client.expect_bytes(&message);
            }
        }
        // The proxy has dropped all that it will when the answer to this comes.
        client.put(&packet::PINGREQ);
        peer.expect_bytes(&packet::PINGREQ);
        peer.send(&packet::PINGRESP);
        client.expect_bytes(&packet::PINGRESP);
        for number in [1, 3] {
            client.put(&packet::ack(PacketKind::Puback, number));
        }
        for number in 1..=4 {
            peer.expect_bytes(&packet::ack(PacketKind::Puback, number));
        }
    }
}

fn s6_the_filter_part_of_a_shared_subscription_is_judged(gate: &Visit<'_>) {
    for version in [Version::V311, Version::V5] {
        let mut client = Client::open(gate.listener("main"), version, "s6");
        for filter in [
            "$share/g/internal/x",
            "$share/g/#",
            "$share/internal/internal/#",
        ] {
            assert_eq!(client.subscribe(filter, 1), refusal(version), "{filter}");
        }
        let topic = format!("s6/{}", version as u8);
        assert_eq!(client.subscribe(&format!("$share/g/{topic}"), 1), 1);
        let mut writer = Client::open(gate.listener("main"), version, "writer-s6");
        writer.publish_acked(&topic, "shared", 1);
        client.expect_message(&topic, "shared");
    }
}

/// Retained messages too; a share is refused as a whole.
fn a_narrowed_subscription_brings_everything_but_the_secrets(gate: &Visit<'_>) {
    for version in VERSIONS {
        let site = format!("site/{}", version as u8);
        let (secret, open) = (format!("{site}/secret/key"), format!("{site}/open"));
        let mut writer = Client::open(gate.listener("main"), version, "writer-narrow");
        for topic in [&secret, &open] {
            let retained = Publish::new(version, topic.as_str(), "kept")
                .qos(1, 9)
                .retain();
            writer.put(&retained.bytes());
            writer.expect(PacketKind::Puback);
        }
        let mut client = Client::open(gate.listener("main"), version, "narrow");
        assert_eq!(client.subscribe(&format!("{site}/#"), 1), 1);
        client.expect_message(&open, "kept");
        writer.publish_acked(&secret, "new", 10);
        writer.publish_acked(&open, "new", 11);
        client.expect_message(&open, "new");
        let shared = client.subscribe(&format!("$share/g/{site}/#"), 0);
        if version != Version::V31 {
            assert_eq!(shared, refusal(version));
        }
        assert_eq!(
            client.subscribe(&secret, 0),
            match version {
                Version::V31 => 0,
                Version::V311 | Version::V5 => refusal(version),
            }
        );
        client.ping();
    }
}

fn a_refusal_is_told_in_words_where_the_listener_says_so(gate: &Visit<'_>) {
    let version = Version::V5;
    for (listener, subscribe_text, publish_text) in [
        ("main", None, None),
        (
            "telling",
            Some("denied by rule `internal-closed`"),
            Some("no rule allows it"),
        ),
    ] {
        let mut client = Client::open(gate.listener(listener), version, "m8-told");
        client.put(&packet::subscribe(
            version,
            5,
            &[("m8/a", 1), ("internal/x", 1)],
        ));
        let frame = client.expect(PacketKind::Suback);
        let Ok(Packet::Suback(suback)) = frame.decode(version, Side::Server) else {
            panic!("{frame:?}");
        };
        assert_eq!(suback.codes, [1, 0x87]);
        let text = suback.properties.text(PropertyId::ReasonString);
        assert_eq!(text, subscribe_text, "{listener}");

        client.put(&Publish::new(version, "m8/a", "x").qos(1, 6).bytes());
        let frame = client.expect(PacketKind::Puback);
        let Ok(Packet::Puback(ack)) = frame.decode(version, Side::Server) else {
            panic!("{frame:?}");
        };
        assert_eq!((ack.packet_id.get(), ack.code), (6, 0x87));
        let text = ack.properties.text(PropertyId::ReasonString);
        assert_eq!(text, publish_text, "{listener}");
    }
}

fn filters_that_are_none_end_the_session(gate: &Visit<'_>) {
    for version in VERSIONS {
        for filter in ["", "a#", "a/#/b", "a/b+", "+a", "a\0", "#/a"] {
            let mut client = Client::open(gate.listener("main"), version, "s5-malformed");
            client.put(&packet::subscribe(version, 1, &[("fine", 0), (filter, 0)]));
            if version == Version::V5 {
                let frame = client.expect(PacketKind::Disconnect);
                let code = frame.body()[0];
                assert!(
                    matches!(code, 0x81 | 0x82 | 0x8f),
                    "{filter:?}: {code:#04x}"
                );
            }
            client.expect_end();
        }
        // No filter at all [MQTT-3.8.3-2], which 3.1 does not forbid.
        let none = packet::subscribe(version, 1, &[]);
        if version == Version::V31 {
            let mut client = Client::open(gate.listener("main"), version, "s5-none");
            client.put(&none);
            client.expect_bytes(&[0x90, 2, 0, 1]);
            client.ping();
        }
        // A QoS that is none, an identifier that is none.
        for bad in [
            (version > Version::V31).then_some(none),
            Some(packet::subscribe(version, 1, &[("a", 3)])),
            Some(packet::subscribe(version, 0, &[("a", 0)])),
        ]
        .into_iter()
        .flatten()
        {
            let mut client = Client::open(gate.listener("main"), version, "s5-malformed");
            client.put(&bad);
            if version == Version::V5 {
                client.expect(PacketKind::Disconnect);
            }
            client.expect_end();
        }
    }
}

/// Below version 5 a length may take more bytes than it needs, and 3.1 has bits that are not used. Mosquitto takes the
/// first and not all of the second, so what goes on is plain.
fn older_versions_are_held_to_their_own_rules(gate: &Visit<'_>) {
    for version in [Version::V31, Version::V311] {
        let mut client = Client::open(gate.listener("main"), version, "s5-older");
        client.put(b"\x82\x88\x00\x00\x06\x00\x03a/b\x00");
        client.expect_bytes(b"\x90\x03\x00\x06\x00");
        client.ping();
    }
    let mut client = Client::open(gate.listener("main"), Version::V31, "s5-older");
    client.put(b"\xc2\x00");
    client.expect_bytes(&packet::PINGRESP);
    client.put(b"\x42\x02\x00\x01");
    client.put(b"\x80\x08\x00\x07\x00\x03a/b\xfc");
    client.expect_bytes(b"\x90\x03\x00\x07\x00");
    client.ping();
    let mut writer = Client::open(gate.listener("main"), Version::V31, "writer-older");
    writer.put(b"\x38\x06\x00\x03a/bx");
    client.expect_message("a/b", "x");
    writer.ping();
}

fn max_qos_of_a_rule_lowers_the_subscription(gate: &Visit<'_>) {
    for version in VERSIONS {
        let id = format!("low-{}", version as u8);
        gate.stub.script(&id, Script::new());
        let mut client = Client::open(gate.listener("stub"), version, &id);
        let mut peer = gate.stub.peer(&id);
        assert_eq!(client.subscribe_all(&[("low/a", 2), ("low/b", 0)]), [1, 0]);
        peer.expect(PacketKind::Connect);
        peer.expect_bytes(&packet::subscribe(
            version,
            1,
            &[("low/a", 1), ("low/b", 0)],
        ));
    }
}

fn unsubscribe_is_always_allowed(gate: &Visit<'_>) {
    for version in VERSIONS {
        let id = format!("s5-unsub-{}", version as u8);
        let mut client = Client::open(gate.listener("stub"), version, &id);
        let mut peer = gate.stub.peer(&id);
        peer.expect(PacketKind::Connect);
        let unsubscribe = packet::unsubscribe(version, 5, &["internal/#", "never/there"]);
        client.put(&unsubscribe);
        peer.expect_bytes(&unsubscribe);
        let codes: &[u8] = if version == Version::V5 {
            &[0x11, 0x11]
        } else {
            &[]
        };
        client.expect_bytes(&packet::unsuback(version, 5, codes));
    }
}
