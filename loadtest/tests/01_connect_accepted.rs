//! Sessions that open: every version, every kind of stored password, byte by byte; and what ends them again.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Gates, Visit};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::{self, Connect, Publish, VERSIONS};
use sluice_wire::mqtt::{PacketKind, Version};

static GATES: Gates = Gates::new("accepted", POLICY, &[]);

on_every_cell!(GATES;
    m7_right_password_opens_a_session,
    a_name_without_a_password_opens_a_session_where_the_policy_says_so,
    m11_a_second_connect_ends_the_session,
    m13_one_byte_at_a_time_loses_nothing,
    m13_many_packets_in_one_write_lose_nothing,
    m14_a_too_long_packet_ends_the_session_before_its_bytes,
    s7_broken_packets_end_the_session_with_their_reason,
    packets_sent_before_connack_are_kept_in_order,
    an_empty_client_id_is_given_a_name,
    a_begun_packet_must_finish,
    keep_alive_is_enforced,
);

const POLICY: &str = r##"
default: deny
listeners:
  - name: main
    address: 127.0.0.1:0
    upstream: broker
    anonymous: { group: guests }
    limits: { packet_bytes_max: 64KiB, packet_timeout: 20s }
  - name: hasty
    address: 127.0.0.1:0
    upstream: broker
    anonymous: { group: guests }
    limits: { packet_timeout: 300ms }
  - name: stub
    address: 127.0.0.1:0
    upstream: stub
    anonymous: { group: guests }
  - name: nameless
    address: 127.0.0.1:0
    upstream: broker
    anonymous: { group: guests }
    username: ignore
upstreams:
  - name: broker
    endpoints: ["@MOSQUITTO@"]
  - name: stub
    endpoints: ["@STUB@"]
groups:
  - name: guests
users:
  - name: argon
    password_hash: "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
  - name: bcrypt
    password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO"
  - name: mosquitto
    password_hash: "$7$101$t/gr3gXoJokt3oCJ$i5n8O5WA+Vp0CfQ5xyR2u/KdPRINW0auCYTzDDC3OvsFXyi1LkVnBfD/DCDiSnuN7Vsc9W5irKZOPk/cUDdl0g=="
  - name: meter
    networks: 127.0.0.1
  - name: far
    networks: 10.0.0.0/8
rules:
  - name: everyone-connects
    actions: [connect]
    decision: allow
  - name: all-topics
    actions: [publish, subscribe]
    topics: ["#"]
    decision: allow
  - name: own-name
    actions: [publish, subscribe]
    topics: ["$named/${client_id}/#"]
    decision: allow
"##;

fn m7_right_password_opens_a_session(gate: &Visit<'_>) {
    for version in VERSIONS {
        for (user, password) in [
            ("argon", "password"),
            ("bcrypt", "builder"),
            ("mosquitto", "wonderland"),
        ] {
            // Twice: the second is answered from the cache of verified passwords and must be told the same.
            for _ in 0..2 {
                let connect = Connect::new(version, "m7-right").user(user, password);
                Client::open_with(gate.listener("main"), &connect).ping();
            }
            // What is remembered is the right password, not the user.
            let wrong = Connect::new(version, "m7-right").user(user, "wrong");
            let code = Client::start(gate.listener("main"), version).connect(&wrong);
            assert_eq!(code, if version == Version::V5 { 0x86 } else { 4 });
        }
    }
}

fn a_name_without_a_password_opens_a_session_where_the_policy_says_so(gate: &Visit<'_>) {
    for version in VERSIONS {
        let claims = |name: &str| Connect {
            username: Some(name.into()),
            ..Connect::new(version, "no-password")
        };
        Client::open_with(gate.listener("main"), &claims("meter")).ping();
        for name in ["far", "bcrypt", "nobody"] {
            let code = Client::start(gate.listener("main"), version).connect(&claims(name));
            assert_eq!(
                code,
                if version == Version::V5 { 0x86 } else { 4 },
                "{name}"
            );
            Client::open_with(gate.listener("nameless"), &claims(name)).ping();
        }
    }
}

fn m11_a_second_connect_ends_the_session(gate: &Visit<'_>) {
    for version in VERSIONS {
        let mut client = Client::open(gate.listener("main"), version, "m11-twice");
        client.put(&Connect::new(version, "m11-twice").bytes());
        client.expect_disconnect(0x82);
    }
}

fn m13_one_byte_at_a_time_loses_nothing(gate: &Visit<'_>) {
    for version in VERSIONS {
        let mut client = Client::start(gate.listener("main"), version);
        let connect = Connect::new(version, "m13-bytes").user("bcrypt", "builder");
        let dribble = |client: &mut Client, bytes: &[u8]| {
            for byte in bytes {
                client.put(&[*byte]);
            }
        };
        dribble(&mut client, &connect.bytes());
        client.expect(PacketKind::Connack);
        dribble(
            &mut client,
            &packet::subscribe(version, 1, &[("m13/bytes", 1)]),
        );
        client.expect(PacketKind::Suback);
        let publish = Publish::new(version, "m13/bytes", vec![b'x'; 200]).qos(1, 9);
        dribble(&mut client, &publish.bytes());
        // PUBACK and the message come in either order.
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let frame = client.recv().unwrap();
            if frame.is(PacketKind::Publish) {
                assert!(frame.bytes.ends_with(&[b'x'; 200]));
            }
            kinds.push(frame.type_number());
        }
        kinds.sort_unstable();
        assert_eq!(kinds, [3, 4]);
    }
}

fn m13_many_packets_in_one_write_lose_nothing(gate: &Visit<'_>) {
    // The broker is the stub: Mosquitto drops QoS 0 messages of a subscriber that falls behind.
    const COUNT: usize = 500;
    for version in VERSIONS {
        let topic = format!("m13/many/{}", version as u8);
        let mut subscriber = Client::open(gate.listener("stub"), version, "m13-many-sub");
        subscriber.subscribe(&topic, 0);
        let mut publisher = Client::open(gate.listener("stub"), version, "m13-many");
        let mut all = Vec::new();
        for number in 0..COUNT {
            // Sizes around the borders of buffers and of one-, two- and three-byte lengths.
            let payload = format!("{number:0width$}", width = 8 + number * 37 % 20_000);
            all.extend(Publish::new(version, &topic, payload).bytes());
        }
        // Reading and writing go on at once, or both sides would wait for each other with full buffers.
        std::thread::scope(|scope| {
            scope.spawn(|| publisher.put(&all));
            for number in 0..COUNT {
                let payload = format!("{number:0width$}", width = 8 + number * 37 % 20_000);
                subscriber.expect_message(&topic, &payload);
            }
        });
        publisher.ping();
    }
}

fn m14_a_too_long_packet_ends_the_session_before_its_bytes(gate: &Visit<'_>) {
    for version in VERSIONS {
        for first in [0x30, 0x82] {
            let mut client = Client::open(gate.listener("main"), version, "m14");
            client.put(&[first, 0xff, 0xff, 0xff, 0x7f]);
            client.expect_disconnect(0x95);
        }
        // The longest that is allowed, fixed header included, passes; one byte more does not.
        let topic = format!("m14/{}", version as u8);
        let room = 64 * 1024 - 4 - 2 - topic.len() - usize::from(version == Version::V5);
        let mut client = Client::open(gate.listener("main"), version, "m14-edge");
        client.put(&Publish::new(version, &topic, vec![0; room]).bytes());
        client.ping();
        client.put(&Publish::new(version, &topic, vec![0; room + 1]).bytes());
        client.expect_disconnect(0x95);
    }
}

fn s7_broken_packets_end_the_session_with_their_reason(gate: &Visit<'_>) {
    // (packet, reason for version 5); below it the connection just ends.
    let table: &[(&[u8], u8)] = &[
        (&[0x00, 0x00], 0x81),                         // packet type 0 is reserved
        (&[0x36, 0x03, 0x00, 0x01, b'a'], 0x81),       // QoS 3 [MQTT-3.3.1-4]
        (&[0x80, 0x02, 0x00, 0x01], 0x81),             // SUBSCRIBE with flags 0 [MQTT-3.8.1-1]
        (&[0x60, 0x02, 0x00, 0x01], 0x81),             // PUBREL with flags 0 [MQTT-3.6.1-1]
        (&[0xc1, 0x00], 0x81),                         // PINGREQ with a flag [MQTT-2.1.3-1]
        (&[0x30, 0x01, 0x00], 0x81),                   // topic cut off
        (&[0x20, 0x02, 0x00, 0x00], 0x82),             // a server's packet
        (&[0xd0, 0x00], 0x82),                         // another
        (&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], 0x81), // length of five bytes
    ];
    for version in VERSIONS {
        for (bytes, code) in table {
            // 3.1 does not use these flags: the rules for them are later.
            if version == Version::V31 && matches!(bytes[0], 0x80 | 0x60 | 0xc1) {
                continue;
            }
            let mut client = Client::open(gate.listener("main"), version, "s7");
            client.put(bytes);
            let context = format!("{bytes:02x?}");
            if version == Version::V5 {
                let frame = client.expect(PacketKind::Disconnect);
                let got = frame.body().first().copied().unwrap_or(0);
                assert!(
                    got == *code || (matches!(got, 0x81 | 0x82) && matches!(code, 0x81 | 0x82)),
                    "{context}: reason {got:#04x}"
                );
            }
            client.expect_end();
        }
        // Every packet cut at every byte, with a length that says so.
        for whole in [
            Publish::new(version, "t/x", "").qos(1, 1).bytes(),
            packet::subscribe(version, 1, &[("a/b", 1)]),
            packet::unsubscribe(version, 1, &["a/b"]),
            packet::ack(PacketKind::Puback, 1),
        ] {
            for cut in 2..whole.len() {
                let short = packet::raw(whole[0], &whole[2..cut]);
                let mut client = Client::open(gate.listener("main"), version, "s7-cut");
                client.put(&short);
                if !is_also_legal(version, &short) {
                    ended_by_violation(&mut client);
                }
            }
        }
    }
}

/// A cut packet that is still one: PUBLISH with an empty rest, in 3.1 SUBSCRIBE and UNSUBSCRIBE without a filter.
fn is_also_legal(version: Version, bytes: &[u8]) -> bool {
    match bytes[0] {
        // topic "t/x", packet identifier, then (version 5) the property length
        0x32 => bytes.len() >= 2 + 5 + 2,
        0x82 | 0xa2 => version == Version::V31 && bytes.len() == 2 + 2,
        _ => false,
    }
}

fn ended_by_violation(client: &mut Client) {
    if client.version() == Version::V5 {
        let frame = client.expect(PacketKind::Disconnect);
        let code = frame.body().first().copied().unwrap_or(0);
        assert!(matches!(code, 0x81 | 0x82), "reason {code:#04x}");
    }
    client.expect_end();
}

fn packets_sent_before_connack_are_kept_in_order(gate: &Visit<'_>) {
    for version in VERSIONS {
        let mut client = Client::start(gate.listener("main"), version);
        let burst = [
            Connect::new(version, "eager").bytes(),
            packet::subscribe(version, 1, &[("eager", 0)]),
            Publish::new(version, "eager", "1").bytes(),
            Publish::new(version, "eager", "2").bytes(),
        ];
        client.put(&burst.concat());
        client.expect(PacketKind::Connack);
        client.expect(PacketKind::Suback);
        client.expect_message("eager", "1");
        client.expect_message("eager", "2");
        // More than the proxy's receive buffers hold: it must stop reading, and lose nothing of what came before.
        const COUNT: usize = 700;
        let mut subscriber = Client::open(gate.listener("stub"), version, "eager-sub");
        subscriber.subscribe("eager/more", 0);
        let mut client = Client::start(gate.listener("stub"), version);
        let mut burst = Connect::new(version, "eager-more").bytes();
        for number in 0..COUNT {
            burst.extend(Publish::new(version, "eager/more", format!("{number:08000}")).bytes());
        }
        std::thread::scope(|scope| {
            scope.spawn(|| client.put(&burst));
            for number in 0..COUNT {
                subscriber.expect_message("eager/more", &format!("{number:08000}"));
            }
        });
        client.expect(PacketKind::Connack);
        client.ping();
    }
}

fn an_empty_client_id_is_given_a_name(gate: &Visit<'_>) {
    // A rule of the policy uses `${client_id}`, so the proxy must know a name.
    let mut client = Client::start(gate.listener("main"), Version::V5);
    client.put(&Connect::new(Version::V5, "").bytes());
    let connack = client.expect(PacketKind::Connack);
    assert_eq!(connack.body()[1], 0);
    let name = assigned_client_id(connack.body()).expect("Assigned Client Identifier");
    let own = format!("$named/{name}/x");
    // 0x10: nobody has subscribed.
    assert_eq!(client.publish_acked(&own, "mine", 1), 0x10);
    assert_eq!(client.publish_acked("$named/other/x", "not mine", 2), 0x87);
    let mut client = Client::start(gate.listener("main"), Version::V311);
    assert_eq!(client.connect(&Connect::new(Version::V311, "")), 0);
    client.ping();
}

/// Finds property 0x12 in a CONNACK body.
fn assigned_client_id(body: &[u8]) -> Option<String> {
    // Only ever preceded by numbers in what Mosquitto and the proxy send: 0x22 and 0x21 (two bytes), 0x27 (four).
    let mut rest = body.get(3..)?;
    while let [id, tail @ ..] = rest {
        let skip = match id {
            0x12 => {
                let length = usize::from(u16::from_be_bytes([*tail.first()?, *tail.get(1)?]));
                return String::from_utf8(tail.get(2..2 + length)?.to_vec()).ok();
            }
            0x21 | 0x22 | 0x13 => 2,
            0x11 | 0x27 => 4,
            _ => 1,
        };
        rest = tail.get(skip..)?;
    }
    None
}

fn a_begun_packet_must_finish(gate: &Visit<'_>) {
    for version in VERSIONS {
        let mut client = Client::open(gate.listener("hasty"), version, "unfinished");
        client.put(&Publish::new(version, "unfinished", "payload").bytes()[..6]);
        // The reason is an implementation's choice; the end is not.
        while let Ok(frame) = client.recv() {
            assert!(frame.is(PacketKind::Disconnect), "{frame:?}");
        }
    }
}

fn keep_alive_is_enforced(gate: &Visit<'_>) {
    for version in VERSIONS {
        let connect = Connect::new(version, "drowsy").keep_alive(1);
        let mut client = Client::open_with(gate.listener("stub"), &connect);
        let mut peer = gate.stub.peer("drowsy");
        client.expect_disconnect(0x8d);
        // Upstream there is no DISCONNECT, so that a will is published.
        peer.expect(PacketKind::Connect);
        peer.expect_end();
    }
}
