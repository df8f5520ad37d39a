//! What the proxy owns between two hops of MQTT 5: aliases, limits, assigned names, keep alive, packet sizes.
//!
//! The broker is the stub, because Mosquitto 2.0 sends no aliases, assigns no keep alive, and never holds anything back.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::{Client, Ended};
use sluice_loadtest::harness::{Gates, Visit};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::{self, Connect, Frame, Props, Publish, VERSIONS};
use sluice_loadtest::stub::{OnConnect, Peer, Script};
use sluice_wire::mqtt::{PacketKind, Version};

static GATES: Gates = Gates::new("hop", POLICY, &[]);

on_every_cell!(GATES;
    outgoing_aliases_of_the_broker_are_resolved_and_checked,
    an_alias_first_used_in_a_dropped_message_is_spelled_out,
    a_refusal_in_another_versions_form_keeps_its_meaning,
    an_undefined_code_of_the_broker_does_not_end_the_session,
    the_clients_packet_size_binds_our_packets_too,
    a_session_expiry_raised_from_0_is_told,
    receive_maximum_1_passes_one_at_a_time,
    limits_are_the_lower_of_the_brokers_and_ours,
    limits_below_the_listeners_pass_untouched,
    deliveries_larger_than_the_client_takes_are_dropped_and_acknowledged,
    server_keep_alive_overrides_the_clients,
    keep_alive_beyond_the_listeners_maximum_is_lowered,
    a_ping_goes_up_when_everything_is_absorbed,
    an_assigned_client_identifier_of_the_broker_is_learned,
    refusing_connacks_pass_with_their_reason,
    a_broker_that_resets_or_closes_before_connack_ends_the_connection,
    a_broker_that_ends_the_session_is_told_to_the_client,
    a_broker_that_half_closes_or_breaks_the_protocol_ends_the_session,
    a_broker_that_stalls_holds_the_client_back_and_loses_nothing,
    a_client_that_stalls_holds_the_broker_back_and_loses_nothing,
);

const POLICY: &str = r##"
default: deny
listeners:
  - name: stub
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
    limits: { packet_bytes_max: 1MiB, receive_max: 100, topic_alias_max: 8 }
  - name: short
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
    limits: { keep_alive_max: 5s }
  - name: named
    address: 127.0.0.1:0
    upstream: stub-any
    anonymous: { group: guests }
upstreams:
  - { name: stub, endpoints: ["@STUB@"], dial: { attempts_max: 1 }, breaker: { failures: 1000000 } }
  - { name: stub-any, endpoints: ["@STUB_UNIX@"], balance: round_robin }
groups:
  - name: guests
rules:
  - { name: everyone-connects, actions: [connect], decision: allow }
  - { name: hidden, priority: 5, actions: [receive], topics: ["data/hidden"], decision: deny }
  - { name: data, actions: [publish, subscribe], topics: ["data/#"], decision: allow }
"##;

fn pair_with(gate: &Visit<'_>, connect: &Connect, script: Script) -> (Client, Peer) {
    gate.stub.script(&connect.client_id, script);
    let client = Client::open_with(gate.listener("stub"), connect);
    let mut peer = gate.stub.peer(&connect.client_id);
    peer.expect(PacketKind::Connect);
    (client, peer)
}

fn fence_down(client: &mut Client, peer: &mut Peer) {
    client.put(&packet::PINGREQ);
    peer.expect_bytes(&packet::PINGREQ);
    peer.send(&packet::PINGRESP);
    client.expect_bytes(&packet::PINGRESP);
}

fn aliased(topic: &str, alias: u16, payload: &str) -> Publish {
    Publish::new(Version::V5, topic, payload).props(Props::new().two(0x23, alias))
}

fn outgoing_aliases_of_the_broker_are_resolved_and_checked(gate: &Visit<'_>) {
    let connect = Connect::new(Version::V5, "hop-alias").props(Props::new().two(0x22, 4));
    let (mut client, mut peer) = pair_with(gate, &connect, Script::new().manual());
    for publish in [
        aliased("data/a", 1, "1"),
        aliased("", 1, "2"),
        aliased("data/b", 1, "3"),
        aliased("", 1, "4"),
    ] {
        peer.send(&publish.bytes());
        client.expect_bytes(&publish.bytes());
    }
    // What the alias stands for decides: the alias is moved to a topic the client may not receive, and back.
    peer.send(&aliased("data/hidden", 2, "no").bytes());
    peer.send(&aliased("", 2, "no").bytes());
    peer.send(&aliased("", 2, "no").qos(1, 9).bytes());
    peer.send(&aliased("", 1, "yes").bytes());
    client.expect_bytes(&aliased("", 1, "yes").bytes());
    peer.expect_bytes(&packet::ack(PacketKind::Puback, 9));
    fence_down(&mut client, &mut peer);
    // The broker may not use more than the client allows: such a delivery is dropped with its acknowledgement.
    peer.send(&aliased("data/a", 5, "beyond").qos(1, 10).bytes());
    peer.expect_bytes(&packet::ack(PacketKind::Puback, 10));
    fence_down(&mut client, &mut peer);
}

fn a_refusal_in_another_versions_form_keeps_its_meaning(gate: &Visit<'_>) {
    let table: [(Version, &[u8], &[u8]); 3] = [
        (Version::V5, b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00"),
        (Version::V5, b"\x20\x02\x00\x05", b"\x20\x03\x00\x87\x00"),
        (Version::V311, b"\x20\x03\x00\x86\x00", b"\x20\x02\x00\x04"),
    ];
    for (version, answer, told) in table {
        let connect = Connect::new(version, "hop-form");
        let script = Script::new().on_connect(OnConnect::Hold);
        gate.stub.script(&connect.client_id, script);
        let mut client = Client::start(gate.listener("stub"), version);
        client.put(&connect.bytes());
        let mut peer = gate.stub.peer(&connect.client_id);
        peer.expect(PacketKind::Connect);
        peer.send(answer);
        client.expect_bytes(told);
        client.expect_end();
    }
}

fn an_undefined_code_of_the_broker_does_not_end_the_session(gate: &Visit<'_>) {
    let connect = Connect::new(Version::V5, "hop-code");
    let (mut client, mut peer) = pair_with(gate, &connect, Script::new().manual());
    let publish = Publish::new(Version::V5, "data/x", "x").qos(1, 1).bytes();
    client.put(&publish);
    peer.expect_bytes(&publish);
    // What Mosquitto with a message size limit answers.
    peer.send(b"\x40\x03\x00\x01\x95");
    client.expect_bytes(b"\x40\x03\x00\x01\x80");
    fence_down(&mut client, &mut peer);
}

fn the_clients_packet_size_binds_our_packets_too(gate: &Visit<'_>) {
    let tiny = Connect::new(Version::V5, "hop-tiny").props(Props::new().four(0x27, 2));
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&tiny.bytes());
    client.expect_end();
    let small = Connect::new(Version::V5, "hop-small").props(Props::new().four(0x27, 20));
    let (mut client, _peer) = pair_with(gate, &small, Script::new().manual());
    client.put(&packet::subscribe(Version::V5, 1, &[("secret", 0); 30]));
    client.expect_disconnect(0x95);
}

fn a_session_expiry_raised_from_0_is_told(gate: &Visit<'_>) {
    let connect = Connect::new(Version::V5, "hop-expiry");
    let (mut client, mut peer) = pair_with(gate, &connect, Script::new().manual());
    client.put(b"\xe0\x07\x00\x05\x11\x00\x00\x00\x01");
    client.expect_bytes(b"\xe0\x01\x82");
    client.expect_end();
    // Nothing came upstream, so that the broker publishes the will.
    assert!(peer.try_next().is_none());
}

fn an_alias_first_used_in_a_dropped_message_is_spelled_out(gate: &Visit<'_>) {
    // Upward: the first use is refused for its size, so the broker has never seen the alias.
    let connect =
        Connect::new(Version::V5, "hop-alias-up").props(Props::new().two(0x22, 4).four(0x27, 200));
    let script = Script::new()
        .manual()
        .connack_props(Props::new().two(0x22, 4));
    let (mut client, mut peer) = pair_with(gate, &connect, script);
    // Downward: dropped because the client takes no packet of that length.
    peer.send(&aliased("data/a", 3, &"x".repeat(300)).bytes());
    peer.send(&aliased("", 3, "short").bytes());
    client.expect_bytes(&aliased("data/a", 3, "short").bytes());
    peer.send(&aliased("", 3, "again").bytes());
    client.expect_bytes(&aliased("", 3, "again").bytes());
    fence_down(&mut client, &mut peer);
}

fn receive_maximum_1_passes_one_at_a_time(gate: &Visit<'_>) {
    let script = Script::new()
        .manual()
        .connack_props(Props::new().two(0x21, 1));
    let connect = Connect::new(Version::V5, "hop-receive-1");
    gate.stub.script(&connect.client_id, script);
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&connect.bytes());
    let connack = client.expect(PacketKind::Connack);
    assert!(has(&connack, &[0x21, 0, 1]), "{connack:?}");
    let mut peer = gate.stub.peer(&connect.client_id);
    peer.expect(PacketKind::Connect);
    for id in 1..=20 {
        let publish = Publish::new(Version::V5, "data/x", "x").qos(1, id).bytes();
        client.put(&publish);
        peer.expect_bytes(&publish);
        peer.send(&packet::ack(PacketKind::Puback, id));
        client.expect_bytes(&packet::ack(PacketKind::Puback, id));
    }
}

/// True exactly when the bytes of a property stand in the packet.
fn has(frame: &Frame, property: &[u8]) -> bool {
    frame
        .bytes
        .windows(property.len())
        .any(|window| window == property)
}

fn limits_are_the_lower_of_the_brokers_and_ours(gate: &Visit<'_>) {
    let one_mebi = 1u32 << 20;
    let packet_size = |bytes: u32| [&[0x27][..], &bytes.to_be_bytes()].concat();
    // The broker sets none: ours are told, to the client and to the broker.
    let connect = Connect::new(Version::V5, "hop-limits-none").props(Props::new().two(0x22, 1_000));
    gate.stub.script(&connect.client_id, Script::new().manual());
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&connect.bytes());
    let connack = client.expect(PacketKind::Connack);
    assert!(has(&connack, &packet_size(one_mebi)), "{connack:?}");
    assert!(has(&connack, &[0x21, 0, 100]), "{connack:?}");
    let upward = gate
        .stub
        .peer(&connect.client_id)
        .expect(PacketKind::Connect);
    assert!(has(&upward, &packet_size(one_mebi)), "{upward:?}");
    assert!(has(&upward, &[0x22, 0, 8]), "{upward:?}");
    // The broker sets higher ones: ours are told.
    let high = Props::new()
        .two(0x21, 1_000)
        .four(0x27, one_mebi * 2)
        .two(0x22, 20);
    gate.stub.script(
        "hop-limits-high",
        Script::new().manual().connack_props(high),
    );
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&Connect::new(Version::V5, "hop-limits-high").bytes());
    let connack = client.expect(PacketKind::Connack);
    assert!(has(&connack, &packet_size(one_mebi)), "{connack:?}");
    assert!(has(&connack, &[0x21, 0, 100]), "{connack:?}");
    assert!(has(&connack, &[0x22, 0, 8]), "{connack:?}");
}

fn limits_below_the_listeners_pass_untouched(gate: &Visit<'_>) {
    let low = Props::new()
        .two(0x21, 5)
        .four(0x27, 5_000)
        .two(0x22, 3)
        .byte(0x24, 0)
        .byte(0x25, 0);
    let script = Script::new().manual().connack_props(low.clone());
    gate.stub.script("hop-limits-low", script);
    let connect = Connect::new(Version::V5, "hop-limits-low")
        .props(Props::new().two(0x21, 5).four(0x27, 5_000).two(0x22, 3));
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&connect.bytes());
    client.expect_bytes(&packet::connack(Version::V5, false, 0, &low));
    let mut peer = gate.stub.peer("hop-limits-low");
    peer.expect_bytes(&connect.bytes());
    // A packet longer than the broker takes is the client's fault.
    client.put(&Publish::new(Version::V5, "data/x", vec![0; 6_000]).bytes());
    client.expect_disconnect(0x95);
}

fn deliveries_larger_than_the_client_takes_are_dropped_and_acknowledged(gate: &Visit<'_>) {
    let connect = Connect::new(Version::V5, "hop-large").props(Props::new().four(0x27, 100));
    let (mut client, mut peer) = pair_with(gate, &connect, Script::new().manual());
    for payload_bytes in [101, 70_000] {
        let large = Publish::new(Version::V5, "data/x", vec![b'x'; payload_bytes]);
        peer.send(&large.bytes());
        peer.send(&large.clone().qos(1, 1).bytes());
        peer.expect_bytes(&packet::ack(PacketKind::Puback, 1));
        peer.send(&large.qos(2, 2).bytes());
        peer.expect_bytes(&packet::ack(PacketKind::Pubrec, 2));
        peer.send(&packet::ack(PacketKind::Pubrel, 2));
        peer.expect_bytes(&packet::ack(PacketKind::Pubcomp, 2));
        let small = Publish::new(Version::V5, "data/x", "fits").bytes();
        peer.send(&small);
        client.expect_bytes(&small);
    }
    // Exactly as long as allowed passes: two bytes of header, two of length, six of topic, one of properties.
    let edge = Publish::new(Version::V5, "data/x", vec![b'x'; 100 - 11]).bytes();
    assert_eq!(edge.len(), 100);
    peer.send(&edge);
    client.expect_bytes(&edge);
}

fn server_keep_alive_overrides_the_clients(gate: &Visit<'_>) {
    let script = Script::new().connack_props(Props::new().two(0x13, 1));
    let connect = Connect::new(Version::V5, "hop-keep-alive").keep_alive(3_600);
    let (mut client, _peer) = pair_with(gate, &connect, script);
    client.expect_disconnect(0x8d);
}

fn keep_alive_beyond_the_listeners_maximum_is_lowered(gate: &Visit<'_>) {
    for (asked, told) in [(60, true), (0, true), (5, false), (4, false)] {
        let id = format!("hop-short-{asked}");
        let mut client = Client::start(gate.listener("short"), Version::V5);
        client.put(&Connect::new(Version::V5, &id).keep_alive(asked).bytes());
        let connack = client.expect(PacketKind::Connack);
        assert_eq!(
            has(&connack, &[0x13, 0, 5]),
            told,
            "asked {asked}: {connack:?}"
        );
    }
}

fn a_ping_goes_up_when_everything_is_absorbed(gate: &Visit<'_>) {
    for version in VERSIONS {
        let id = format!("hop-absorbed-{}", version as u8);
        let connect = Connect::new(version, &id).keep_alive(1);
        let (mut client, mut peer) = pair_with(gate, &connect, Script::new().manual());
        // The client talks all the time, and nothing of it may go up: until the broker hears a ping.
        let mut pings = 0;
        while pings == 0 {
            client.put(&Publish::new(version, "secret/x", "x").qos(1, 1).bytes());
            client.expect(PacketKind::Puback);
            pings = peer.count(PacketKind::Pingreq);
        }
        peer.expect_bytes(&packet::PINGREQ);
        // Its answer is the proxy's.
        peer.send(&packet::PINGRESP);
        let marker = Publish::new(version, "data/x", "marker").bytes();
        peer.send(&marker);
        client.expect_bytes(&marker);
    }
}

fn an_assigned_client_identifier_of_the_broker_is_learned(gate: &Visit<'_>) {
    // Nothing in this policy needs a name, so the empty one goes up and the broker's comes down.
    let mut client = Client::start(gate.listener("named"), Version::V5);
    let connect = Connect::new(Version::V5, "");
    client.put(&connect.bytes());
    let connack = client.expect(PacketKind::Connack);
    assert!(has(&connack, b"stub-assigned-"), "{connack:?}");
    client.ping();
}

fn refusing_connacks_pass_with_their_reason(gate: &Visit<'_>) {
    let why = Props::new().text(0x1f, "moved").text(0x1c, "other:1883");
    let script = Script::new()
        .on_connect(OnConnect::Refuse(0x9d))
        .connack_props(why.clone());
    gate.stub.script("hop-refused", script);
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&Connect::new(Version::V5, "hop-refused").bytes());
    client.expect_bytes(&packet::connack(Version::V5, false, 0x9d, &why));
    client.expect_end();
    for version in [Version::V31, Version::V311] {
        for code in 1..=5 {
            let script = Script::new().on_connect(OnConnect::Refuse(code));
            gate.stub.script("hop-refused-3", script);
            let mut client = Client::start(gate.listener("stub"), version);
            assert_eq!(
                client.connect(&Connect::new(version, "hop-refused-3")),
                code
            );
            client.expect_end();
        }
    }
}

fn a_broker_that_resets_or_closes_before_connack_ends_the_connection(gate: &Visit<'_>) {
    for version in VERSIONS {
        for on_connect in [OnConnect::Reset, OnConnect::Close] {
            let id = format!("hop-gone-{}", version as u8);
            gate.stub.script(&id, Script::new().on_connect(on_connect));
            let mut client = Client::start(gate.listener("stub"), version);
            client.put(&Connect::new(version, &id).bytes());
            // Not "unavailable": it may be this CONNECT that the broker does not take.
            if version == Version::V5 {
                client.expect_bytes(&[0x20, 3, 0, 0x80, 0]);
            }
            client.expect_end();
        }
    }
}

fn a_broker_that_ends_the_session_is_told_to_the_client(gate: &Visit<'_>) {
    for version in VERSIONS {
        for is_reset in [false, true] {
            let id = format!("hop-lost-{}", version as u8);
            let connect = Connect::new(version, &id);
            let (mut client, peer) = pair_with(gate, &connect, Script::new());
            if is_reset {
                peer.reset();
            } else {
                peer.close();
            }
            client.expect_disconnect(0x80);
        }
    }
    // Its own reason is passed on, not ours.
    let connect = Connect::new(Version::V5, "hop-bye");
    let (mut client, peer) = pair_with(gate, &connect, Script::new());
    let bye = packet::disconnect_with(0x9c, &Props::new().text(0x1c, "other:1883"));
    peer.send(&bye);
    peer.close();
    client.expect_bytes(&bye);
    client.expect_end();
}

fn a_broker_that_half_closes_or_breaks_the_protocol_ends_the_session(gate: &Visit<'_>) {
    for version in VERSIONS {
        let id = format!("hop-half-{}", version as u8);
        let (mut client, mut peer) = pair_with(gate, &Connect::new(version, &id), Script::new());
        peer.finish();
        client.expect_disconnect(0x80);
        while let Some(frame) = peer.try_next() {
            assert!(frame.is(PacketKind::Disconnect), "{frame:?}");
        }
        for nonsense in [
            &[0x00, 0x00][..],
            &[0x82, 0x02, 0, 1],
            &[0x36, 0x03, 0, 1, b'a'],
            &[0x10, 0],
        ] {
            let (mut client, peer) = pair_with(gate, &Connect::new(version, &id), Script::new());
            peer.send(nonsense);
            client.expect_disconnect(0x80);
        }
        // In the middle of a message no reason can be written.
        let (mut client, peer) = pair_with(gate, &Connect::new(version, &id), Script::new());
        let publish = Publish::new(version, "data/x", vec![b'x'; 10_000]).bytes();
        peer.send(&publish[..5_000]);
        peer.close();
        let ended = client.recv().expect_err("half a message");
        assert!(
            matches!(ended, Ended::ClosedInPacket | Ended::Reset),
            "{ended}"
        );
        // Behind the CONNACK there is a part of the message and nothing else.
        let connack_bytes = 2 + usize::from(client.received()[1]);
        let heard = &client.received()[connack_bytes..];
        assert!(
            publish[..5_000].starts_with(heard),
            "more than the broker sent"
        );
    }
}

/// Numbered messages of 10 KB, far more than the sockets and backlogs on the way can hold.
const STALLED_MESSAGES: usize = 3_000;

fn numbered(version: Version, number: usize) -> Vec<u8> {
    Publish::new(version, "data/x", format!("{number:010240}")).bytes()
}

fn a_broker_that_stalls_holds_the_client_back_and_loses_nothing(gate: &Visit<'_>) {
    let version = Version::V311;
    let connect = Connect::new(version, "hop-stall-up");
    let (mut client, mut peer) = pair_with(gate, &connect, Script::new().manual().stalled());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..STALLED_MESSAGES {
                client.put(&numbered(version, number));
            }
        });
        // Somebody else is served meanwhile, by whichever shard.
        for index in 0..6 {
            let other = format!("hop-stall-other-{index}");
            Client::open(gate.listener("stub"), version, &other).ping();
        }
        peer.resume();
        for number in 0..STALLED_MESSAGES {
            peer.expect_bytes(&numbered(version, number));
        }
    });
}

fn a_client_that_stalls_holds_the_broker_back_and_loses_nothing(gate: &Visit<'_>) {
    let version = Version::V5;
    let connect = Connect::new(version, "hop-stall-down");
    let (mut client, peer) = pair_with(gate, &connect, Script::new().manual());
    for number in 0..STALLED_MESSAGES {
        peer.send(&numbered(version, number));
    }
    for index in 0..6 {
        let other = format!("hop-stall-other-{index}");
        Client::open(gate.listener("stub"), version, &other).ping();
    }
    for number in 0..STALLED_MESSAGES {
        client.expect_bytes(&numbered(version, number));
    }
}
