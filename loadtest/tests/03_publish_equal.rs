//! Where policy changes nothing, nothing is changed: the bytes of both directions, through the proxy and without it.
//!
//! Against the stub every packet is compared one by one; against Mosquitto a whole conversation is held twice, directly
//! and through the proxy, and what each client received is compared.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Gates, Program, Visit, find_on_path};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::{self, Connect, Frame, Props, Publish, VERSIONS, Will};
use sluice_loadtest::stream::Address;
use sluice_loadtest::stub::{OnConnect, Script};
use sluice_wire::mqtt::{PacketKind, Version};

static GATES: Gates = Gates::new("equal", POLICY, &[]);

on_every_cell!(GATES;
    m1_every_packet_arrives_byte_for_byte_at_both_ends,
    m1_conversations_with_mosquitto_are_equal_with_and_without_the_proxy,
    m1_retained_wills_and_kept_sessions_are_equal_with_and_without_the_proxy,
    m1_versions_talk_to_each_other_over_tcp_and_unix_upstreams,
    m1_mosquitto_pub_and_sub_work_through_the_proxy,
    m1_large_payloads_arrive_whole_in_both_directions,
    m12_every_property_passes_untouched,
    m12_auth_exchange_passes_where_the_listener_allows_it,
);

const POLICY: &str = r##"
default: deny
listeners:
  - name: main
    address: 127.0.0.1:0
    upstream: broker
    anonymous: { group: guests }
    limits: { packet_bytes_max: 268435460, receive_max: 65535, topic_alias_max: 1024 }
  - name: unix
    address: 127.0.0.1:0
    upstream: broker-unix
    anonymous: { group: guests }
    limits: { packet_bytes_max: 268435460, receive_max: 65535, topic_alias_max: 1024 }
  - name: stub
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
    upstream_auth: pass
    limits: { packet_bytes_max: 268435460, receive_max: 65535, topic_alias_max: 1024 }
  - name: stub-unix
    address: 127.0.0.1:0
    upstream: stub-unix
    anonymous: { group: guests }
    limits: { packet_bytes_max: 268435460, receive_max: 65535, topic_alias_max: 1024 }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
  - { name: broker-unix, endpoints: ["@MOSQUITTO_UNIX@"] }
  - { name: stub, endpoints: ["@STUB@"] }
  - { name: stub-unix, endpoints: ["@STUB_UNIX@"] }
groups:
  - name: guests
rules:
  - name: everything
    actions: [connect, publish, subscribe]
    topics: ["#", "$SYS/#", "$private/#"]
    decision: allow
"##;

/// What a client may send once it is connected, one of each kind and form.
fn upward(version: Version) -> Vec<Vec<u8>> {
    let mut packets = vec![
        Publish::new(version, "a/b", "zero").bytes(),
        Publish::new(version, "a/b", "").retain().bytes(),
        Publish::new(version, "a/b", "one").qos(1, 1).bytes(),
        Publish::new(version, "a/b", "again")
            .qos(1, 1)
            .dup()
            .bytes(),
        Publish::new(version, "ä/\u{1f980}", vec![0, 255, 10])
            .qos(2, 65_535)
            .retain()
            .bytes(),
        packet::ack(PacketKind::Pubrel, 65_535),
        packet::ack(PacketKind::Puback, 3),
        packet::ack(PacketKind::Pubrec, 4),
        packet::ack(PacketKind::Pubcomp, 4),
        packet::subscribe(version, 9, &[("a/+", 0), ("#", 2), ("$SYS/#", 1)]),
        packet::unsubscribe(version, 10, &["a/+", "#"]),
        packet::PINGREQ.to_vec(),
    ];
    if version == Version::V5 {
        packets.extend([
            Publish::new(version, "p", "props")
                .qos(1, 11)
                .props(publish_props())
                .bytes(),
            packet::ack_with(PacketKind::Puback, 3, 0x80, &Props::new()),
            packet::ack_with(PacketKind::Puback, 3, 0x87, &explained()),
            packet::ack_with(PacketKind::Pubrec, 3, 0x83, &explained()),
            packet::ack_with(PacketKind::Pubrel, 3, 0x92, &explained()),
            packet::ack_with(PacketKind::Pubcomp, 3, 0, &explained()),
            packet::subscribe_with(
                version,
                12,
                &[("a/+", 0x2d), ("$share/g/b", 0x12)],
                &Props::new().variable(0x0b, 268_435_455).user("k", "v"),
            ),
            packet::disconnect_with(
                0x04,
                &Props::new().four(0x11, 5).text(0x1f, "bye").user("", ""),
            ),
        ]);
    } else {
        packets.push(packet::DISCONNECT.to_vec());
    }
    packets
}

/// What a broker may send after CONNACK.
fn downward(version: Version) -> Vec<Vec<u8>> {
    let mut packets = vec![
        Publish::new(version, "a/b", "zero").bytes(),
        Publish::new(version, "a/b", "kept").retain().bytes(),
        Publish::new(version, "a/b", "one").qos(1, 1).dup().bytes(),
        Publish::new(version, "ä/\u{1f980}", vec![0, 255, 10])
            .qos(2, 65_535)
            .bytes(),
        packet::ack(PacketKind::Pubrel, 65_535),
        packet::PINGRESP.to_vec(),
    ];
    if version == Version::V5 {
        packets.extend([
            Publish::new(version, "p", "props")
                .qos(1, 11)
                .props(Props(
                    [
                        publish_props().0,
                        Props::new().variable(0x0b, 1).variable(0x0b, 300).0,
                    ]
                    .concat(),
                ))
                .bytes(),
            packet::ack_with(PacketKind::Pubrel, 11, 0x92, &explained()),
            packet::disconnect_with(0x9d, &explained().text(0x1c, "elsewhere:1883")),
        ]);
    }
    packets
}

fn publish_props() -> Props {
    Props::new()
        .byte(0x01, 1)
        .four(0x02, 3_600)
        .text(0x03, "text/plain")
        .text(0x08, "reply/here")
        .text(0x09, [0, 1, 255])
        .user("name", "value")
        .user("name", "second")
        .user("", "ü")
}

fn explained() -> Props {
    Props::new().text(0x1f, "because").user("who", "me")
}

fn m1_every_packet_arrives_byte_for_byte_at_both_ends(gate: &Visit<'_>) {
    for listener in ["stub", "stub-unix"] {
        for version in VERSIONS {
            let id = format!("m1-wire-{listener}-{}", version as u8);
            gate.stub.script(&id, Script::new().manual());
            let mut connect =
                Connect::new(version, &id).will(Will::new("will/topic", [1, 2, 3]).qos(2).retain());
            if version == Version::V5 {
                // Only a session that is kept at all may say at its end for how long.
                connect.props = connect.props.four(0x11, 60);
            }
            let mut client = Client::open_with(gate.listener(listener), &connect);
            let mut peer = gate.stub.peer(&id);
            peer.expect_bytes(&connect.bytes());
            // Broker first: a client's DISCONNECT ends everything.
            let down = downward(version);
            let (last, others) = down.split_last().unwrap();
            for bytes in others {
                peer.send(bytes);
                client.expect_bytes(bytes);
            }
            // All at once, and split in odd places.
            let all = others.concat();
            for part in all.chunks(7) {
                peer.send(part);
            }
            for bytes in others {
                client.expect_bytes(bytes);
            }
            for bytes in upward(version) {
                client.put(&bytes);
                peer.expect_bytes(&bytes);
            }
            peer.expect_end();
            drop(client);

            let mut client = Client::open_with(gate.listener(listener), &connect);
            let mut peer = gate.stub.peer(&id);
            peer.expect_bytes(&connect.bytes());
            client.put(&upward(version).concat());
            for bytes in upward(version) {
                peer.expect_bytes(&bytes);
            }
            peer.expect_end();
            if version == Version::V5 {
                // The broker's good-bye with its reason.
                let mut client = Client::open_with(gate.listener(listener), &connect);
                let mut peer = gate.stub.peer(&id);
                peer.expect(PacketKind::Connect);
                peer.send(last);
                peer.close();
                client.expect_bytes(last);
                client.expect_end();
            }
        }
    }
}

fn m12_every_property_passes_untouched(gate: &Visit<'_>) {
    let id = "m12-connect";
    let connack = Props::new()
        .four(0x11, 60)
        .two(0x21, 10)
        .byte(0x24, 1)
        .byte(0x25, 1)
        .four(0x27, 100_000)
        .two(0x22, 10)
        .text(0x1f, "welcome")
        .user("server", "stub")
        .byte(0x28, 1)
        .byte(0x29, 1)
        .byte(0x2a, 1)
        .two(0x13, 30)
        .text(0x1a, "response/info");
    gate.stub
        .script(id, Script::new().manual().connack_props(connack.clone()));
    let connect = Connect::new(Version::V5, id)
        .props(
            Props::new()
                .four(0x11, 3_600)
                .two(0x21, 20)
                .four(0x27, 100_000)
                .two(0x22, 5)
                .byte(0x19, 1)
                .byte(0x17, 1)
                .user("device", "thermometer")
                .user("device", "twice"),
        )
        .will(
            Will::new("will/topic", "gone").qos(1).props(
                Props::new()
                    .four(0x18, 5)
                    .byte(0x01, 1)
                    .four(0x02, 60)
                    .text(0x03, "text/plain")
                    .text(0x08, "reply/here")
                    .text(0x09, "id")
                    .user("k", "v"),
            ),
        );
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&connect.bytes());
    let mut peer = gate.stub.peer(id);
    peer.expect_bytes(&connect.bytes());
    client.expect_bytes(&packet::connack(Version::V5, false, 0, &connack));
    // Aliases that both sides agreed on pass as they are, once their topics are known.
    for bytes in [
        Publish::new(Version::V5, "aliased", "1")
            .props(Props::new().two(0x23, 1))
            .bytes(),
        Publish::new(Version::V5, "", "2")
            .props(Props::new().two(0x23, 1))
            .bytes(),
        Publish::new(Version::V5, "", "3")
            .props(Props::new().two(0x23, 1).user("k", "v"))
            .bytes(),
    ] {
        client.put(&bytes);
        peer.expect_bytes(&bytes);
        peer.send(&bytes);
        client.expect_bytes(&bytes);
    }
}

fn m12_auth_exchange_passes_where_the_listener_allows_it(gate: &Visit<'_>) {
    let id = "m12-auth";
    gate.stub
        .script(id, Script::new().on_connect(OnConnect::Hold));
    let method = |data: &str| Props::new().text(0x15, "SCRAM-SHA-256").text(0x16, data);
    let connect = Connect::new(Version::V5, id).props(method("client-first"));
    let mut client = Client::start(gate.listener("stub"), Version::V5);
    client.put(&connect.bytes());
    let mut peer = gate.stub.peer(id);
    peer.expect_bytes(&connect.bytes());
    let challenge = packet::auth(0x18, &method("server-first"));
    peer.send(&challenge);
    client.expect_bytes(&challenge);
    let answer = packet::auth(0x18, &method("client-final").user("k", "v"));
    client.put(&answer);
    peer.expect_bytes(&answer);
    let connack = packet::connack(Version::V5, false, 0, &method("server-final"));
    peer.send(&connack);
    client.expect_bytes(&connack);
    // Re-authentication of an open session.
    let again = packet::auth(0x19, &method("client-first"));
    client.put(&again);
    peer.expect_bytes(&again);
    let done = packet::auth(0x00, &method("server-final"));
    peer.send(&done);
    client.expect_bytes(&done);
    client.put(&packet::PINGREQ);
    peer.expect_bytes(&packet::PINGREQ);
    // Where the listener does not say so, the method is refused and nothing is dialled.
    let refused = Connect::new(Version::V5, "m12-no-auth").props(method("client-first"));
    let mut client = Client::start(gate.listener("main"), Version::V5);
    assert_eq!(client.connect(&refused), 0x8c);
    client.expect_end();
}

/// Everything a client received in a conversation.
type Heard = Vec<Vec<u8>>;

/// Holds a conversation that uses every packet kind; gives what each client heard.
fn conversation(address: &Address, version: Version) -> Heard {
    let prefix = "m1/talk";
    let mut subscriber = Client::open(address.clone(), version, "m1-talk-sub");
    let mut publisher = Client::open(address.clone(), version, "m1-talk-pub");
    subscriber.subscribe_all(&[
        ("m1/talk/+/exact", 2),
        ("m1/talk/low/#", 0),
        ("m1/talk/mid/#", 1),
    ]);
    let mut id = 0;
    for branch in ["a/exact", "low/x", "mid/x/y"] {
        for qos in 0..=2u8 {
            for payload in ["", "short", &"long".repeat(5_000)] {
                let topic = format!("{prefix}/{branch}");
                id += 1;
                match qos {
                    0 => publisher.publish(&topic, payload),
                    1 => assert_eq!(publisher.publish_acked(&topic, payload, id), 0),
                    _ => assert_eq!(publisher.publish_exactly_once(&topic, payload, id), 0),
                }
                subscriber.expect_message(&topic, payload);
            }
        }
    }
    if version == Version::V5 {
        // All but Message Expiry Interval, which a broker counts down.
        let props = Props::new()
            .byte(0x01, 1)
            .text(0x03, "text/plain")
            .user("k", "v");
        let publish = Publish::new(version, "m1/talk/p/exact", "props")
            .props(props.text(0x08, "m1/talk/reply").text(0x09, "id"));
        publisher.put(&publish.bytes());
        subscriber.expect_message("m1/talk/p/exact", "props");
    }
    publisher.put(&packet::unsubscribe(version, 3, &["never/there"]));
    publisher.expect(PacketKind::Unsuback);
    subscriber.put(&packet::unsubscribe(version, 4, &["m1/talk/+/exact"]));
    subscriber.expect(PacketKind::Unsuback);
    publisher.publish_acked("m1/talk/a/exact", "nobody hears this", 900);
    subscriber.ping();
    publisher.ping();
    let mut heard = Vec::new();
    for mut client in [publisher, subscriber] {
        client.put(&packet::DISCONNECT);
        client.expect_end();
        heard.push(client.received().to_vec());
    }
    heard
}

fn m1_conversations_with_mosquitto_are_equal_with_and_without_the_proxy(gate: &Visit<'_>) {
    for version in VERSIONS {
        let direct = conversation(&gate.mosquitto.address(), version);
        for listener in ["main", "unix"] {
            let proxied = conversation(&gate.listener(listener), version);
            same(&direct, &proxied, version, listener);
        }
    }
}

/// Compares packet by packet, so that a difference can be read.
fn same(direct: &Heard, proxied: &Heard, version: Version, what: &str) {
    for (direct, proxied) in direct.iter().zip(proxied) {
        let (direct, proxied) = (frames(direct), frames(proxied));
        for (index, (left, right)) in direct.iter().zip(&proxied).enumerate() {
            assert_eq!(
                left, right,
                "{version:?} over {what}: packet {index} differs"
            );
        }
        assert_eq!(direct.len(), proxied.len(), "{version:?} over {what}");
    }
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut cutter = packet::Cutter::default();
    cutter.push(bytes);
    std::iter::from_fn(|| cutter.cut().expect("MQTT")).collect()
}

/// Retained messages, a will and a session that was away; gives what each client heard.
fn keeping(gate: &Visit<'_>, address: &Address, version: Version) -> Heard {
    let mut heard = Vec::new();
    let mut writer = Client::open(address.clone(), version, "m1-keep-writer");
    writer.put(
        &Publish::new(version, "m1/keep/r", "kept")
            .retain()
            .qos(1, 1)
            .bytes(),
    );
    writer.expect(PacketKind::Puback);
    let sleeper = Connect::new(version, "m1-keep-sleeper").persistent();
    let mut client = Client::open_with(address.clone(), &sleeper);
    client.subscribe_all(&[("m1/keep/#", 2)]);
    client.expect_message("m1/keep/r", "kept");
    let dying = Connect::new(version, "m1-keep-dying").will(Will::new("m1/keep/w", "gone").qos(1));
    let dying_client = Client::open_with(address.clone(), &dying);
    dying_client.reset().unwrap();
    client.expect_message("m1/keep/w", "gone");
    // A DISCONNECT takes the will back: what comes next is what is published next.
    let mut polite = Client::open_with(address.clone(), &dying);
    polite.put(&packet::DISCONNECT);
    polite.expect_end();
    writer.publish_acked("m1/keep/next", "next", 2);
    client.expect_message("m1/keep/next", "next");
    // A PINGRESP shows that every acknowledgement has arrived before the session goes to sleep.
    client.ping();
    heard.push(client.received().to_vec());
    client.reset().unwrap();
    // Who publishes only after the broker has noticed: the old connection is taken over by a short one.
    // Marked here, because the end of the session of the run before may have been logged late.
    let mark = gate.mosquitto.running().log_mark();
    let mut taker = Client::open_with(address.clone(), &sleeper);
    taker.put(&packet::DISCONNECT);
    taker.expect_end();
    let asleep = |line: &str| line.contains("m1-keep-sleeper disconnected").then_some(());
    let broker = gate.mosquitto.running();
    broker
        .wait_log(mark, "the session to go to sleep", asleep)
        .unwrap();
    for (qos, id) in [(1, 3), (2, 4)] {
        let topic = format!("m1/keep/{qos}");
        match qos {
            1 => writer.publish_acked(&topic, "while away", id),
            _ => writer.publish_exactly_once(&topic, "while away", id),
        };
    }
    let mut client = Client::start(address.clone(), version);
    client.put(&sleeper.bytes());
    client.expect(PacketKind::Connack);
    client.expect_message("m1/keep/1", "while away");
    client.expect_message("m1/keep/2", "while away");
    client.ping();
    heard.push(client.received().to_vec());
    writer.put(
        &Publish::new(version, "m1/keep/r", "")
            .retain()
            .qos(1, 5)
            .bytes(),
    );
    writer.expect(PacketKind::Puback);
    drop(client);
    // Ends the kept session.
    let mut clean = Client::open(address.clone(), version, "m1-keep-sleeper");
    clean.put(&packet::DISCONNECT);
    clean.expect_end();
    heard
}

fn m1_retained_wills_and_kept_sessions_are_equal_with_and_without_the_proxy(gate: &Visit<'_>) {
    for version in VERSIONS {
        let direct = keeping(gate, &gate.mosquitto.address(), version);
        for listener in ["main", "unix"] {
            let proxied = keeping(gate, &gate.listener(listener), version);
            same(&direct, &proxied, version, listener);
        }
    }
}

fn m1_versions_talk_to_each_other_over_tcp_and_unix_upstreams(gate: &Visit<'_>) {
    for from in VERSIONS {
        for to in VERSIONS {
            for (up, down) in [("main", "unix"), ("unix", "main")] {
                let topic = format!("m1/mixed/{}/{}/{up}", from as u8, to as u8);
                let mut subscriber = Client::open(gate.listener(down), to, "m1-mixed-sub");
                subscriber.subscribe(&topic, 2);
                let mut publisher = Client::open(gate.listener(up), from, "m1-mixed-pub");
                publisher.publish(&topic, "0");
                publisher.publish_acked(&topic, "1", 1);
                publisher.publish_exactly_once(&topic, "2", 2);
                for qos in 0..=2 {
                    let message = subscriber.expect_message(&topic, &qos.to_string());
                    assert_eq!(message.qos, qos);
                }
            }
        }
    }
}

fn m1_mosquitto_pub_and_sub_work_through_the_proxy(gate: &Visit<'_>) {
    let program = |name: &str, listener: &str| {
        let Address::Tcp(address) = gate.listener(listener) else {
            panic!("listeners are TCP");
        };
        let path = find_on_path(name).expect("mosquitto-clients is installed");
        Program::new(name, path)
            .args(["-h", &address.ip().to_string()])
            .args(["-p", &address.port().to_string()])
    };
    for listener in ["main", "unix"] {
        for version in ["mqttv31", "mqttv311", "mqttv5"] {
            for qos in ["0", "1", "2"] {
                let topic = format!("m1/real/{listener}/{version}/{qos}");
                let mut subscriber = program("mosquitto_sub", listener)
                    .args(["-V", version, "-q", qos, "-t", &topic, "-C", "2"])
                    .start()
                    .unwrap();
                // The clients do not flush what they print; the broker says when it has subscribed.
                let subscribed = |line: &str| line.ends_with(&topic).then_some(());
                let broker = gate.mosquitto.running();
                broker.wait_log(0, &topic, subscribed).unwrap();
                for text in ["first message", "second message"] {
                    let mut publisher = program("mosquitto_pub", listener)
                        .args(["-V", version, "-q", qos, "-t", &topic, "-m", text])
                        .start()
                        .unwrap();
                    let (status, output) = publisher.output().unwrap();
                    assert!(status.success(), "mosquitto_pub: {status}\n{output}");
                }
                let (status, output) = subscriber.output().unwrap();
                assert!(status.success(), "mosquitto_sub: {status}\n{output}");
                // Two clients published: nothing orders them.
                let mut lines: Vec<&str> = output.lines().collect();
                lines.sort_unstable();
                assert_eq!(lines, ["first message", "second message"]);
            }
        }
    }
}

fn m1_large_payloads_arrive_whole_in_both_directions(gate: &Visit<'_>) {
    for listener in ["main", "unix"] {
        for version in VERSIONS {
            let topic = format!("m1/large/{listener}/{}", version as u8);
            let mut subscriber = Client::open(gate.listener(listener), version, "m1-large-sub");
            subscriber.subscribe(&topic, 1);
            let mut publisher = Client::open(gate.listener(listener), version, "m1-large-pub");
            // Longer than any buffer on the way; a pattern without a period that fits them.
            let payload: String = (0..3_000_000u32)
                .map(|index| char::from(b'a' + (index % 26 + index / 4_099 % 3) as u8 % 26))
                .collect();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    publisher.publish_acked(&topic, &payload, 1);
                    publisher.publish_exactly_once(&topic, &payload, 2);
                });
                for _ in 0..2 {
                    subscriber.expect_message(&topic, &payload);
                }
            });
        }
    }
}
