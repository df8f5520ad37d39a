//! The test peers themselves, without the data plane: the raw client against Mosquitto, and against the stub in normal
//! mode. What the other files rely on.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Mosquitto, scratch};
use sluice_loadtest::packet::{Connect, PINGREQ, Props, Publish, VERSIONS, Will, ack};
use sluice_loadtest::stream::Address;
use sluice_loadtest::stub::{End, OnConnect, Script, Stub};
use sluice_wire::mqtt::{PacketKind, Version};

fn any_port() -> Address {
    Address::Tcp(([127, 0, 0, 1], 0).into())
}

/// Talks to a broker in every way the scenarios need; both brokers must be able to hold up.
fn converses(address: &Address) {
    for version in VERSIONS {
        let mut subscriber = Client::open(address.clone(), version, "peers-sub");
        let codes = subscriber.subscribe_all(&[("peers/+/x", 2), ("peers/low", 0)]);
        assert_eq!(codes, [2, 0]);
        let mut publisher = Client::open(address.clone(), version, "peers-pub");
        publisher.publish("peers/a/x", "zero");
        assert_eq!(publisher.publish_acked("peers/b/x", "one", 7), 0);
        assert_eq!(publisher.publish_exactly_once("peers/c/x", "two", 8), 0);
        assert_eq!(publisher.publish_exactly_once("peers/low", "low", 9), 0);
        for (topic, payload, qos) in [
            ("peers/a/x", "zero", 0),
            ("peers/b/x", "one", 1),
            ("peers/c/x", "two", 2),
            ("peers/low", "low", 0),
        ] {
            assert_eq!(subscriber.expect_message(topic, payload).qos, qos);
        }
        subscriber.ping();
    }
}

fn keeps_retained_wills_and_sessions(address: &Address) {
    for version in VERSIONS {
        let topic = format!("kept/{}", version as u8);
        let retained = Publish::new(version, &topic, "kept").retain();
        let mut publisher = Client::open(address.clone(), version, "kept-pub");
        publisher.put(&retained.bytes());
        publisher.ping();
        let asleep = Connect::new(version, "kept-asleep").persistent();
        let mut sleeper = Client::open_with(address.clone(), &asleep);
        assert_eq!(sleeper.subscribe(&topic, 1), 1);
        assert!(sleeper.expect_message(&topic, "kept").retain);
        drop(sleeper);
        let mut watcher = Client::open(address.clone(), version, "kept-watch");
        watcher.subscribe(&topic, 0);
        watcher.expect_message(&topic, "kept");
        let dying = Connect::new(version, "kept-dying").will(Will::new(&topic, "will").qos(1));
        let dying = Client::open_with(address.clone(), &dying);
        dying.reset().unwrap();
        watcher.expect_message(&topic, "will");
        assert_eq!(publisher.publish_acked(&topic, "later", 1), 0);
        let mut sleeper = Client::start(address.clone(), version);
        sleeper.put(&asleep.bytes());
        let connack = sleeper.expect(PacketKind::Connack);
        let session_present = u8::from(version != Version::V31);
        assert_eq!(connack.body()[0], session_present, "session present");
        let first = sleeper.expect_message(&topic, "will");
        assert_eq!(first.qos, 1);
        sleeper.expect_message(&topic, "later");
        publisher.put(&Publish::new(version, &topic, "").retain().bytes());
        publisher.ping();
        drop(Client::open(address.clone(), version, "kept-asleep"));
    }
}

#[test]
fn mosquitto_serves_the_client_over_tcp_and_unix() {
    let mosquitto = Mosquitto::start(&scratch("peers-mosquitto").unwrap()).unwrap();
    converses(&mosquitto.address());
    converses(&Address::Unix(mosquitto.unix().to_owned()));
    keeps_retained_wills_and_sessions(&mosquitto.address());
}

#[test]
fn stub_in_normal_mode_serves_the_client_over_tcp_and_unix() {
    let stub = Stub::new();
    let tcp = stub.listen(any_port()).unwrap();
    let path = scratch("peers-stub").unwrap().join("stub.sock");
    let unix = stub.listen(Address::Unix(path)).unwrap();
    converses(tcp.address());
    converses(unix.address());
    keeps_retained_wills_and_sessions(tcp.address());
}

#[test]
fn stub_script_holds_refuses_resets_and_closes() {
    let stub = Stub::new();
    let listening = stub.listen(any_port()).unwrap();
    let address = listening.address().clone();
    let version = Version::V5;

    stub.script("refused", Script::new().on_connect(OnConnect::Refuse(0x9d)));
    let mut client = Client::start(address.clone(), version);
    assert_eq!(client.connect(&Connect::new(version, "refused")), 0x9d);
    client.expect_end();

    for on_connect in [OnConnect::Reset, OnConnect::Close] {
        stub.script("cut", Script::new().on_connect(on_connect));
        let mut client = Client::start(address.clone(), version);
        client.put(&Connect::new(version, "cut").bytes());
        client.expect_end();
    }

    stub.script(
        "held",
        Script::new()
            .on_connect(OnConnect::Hold)
            .connack_props(Props::new().two(0x21, 1)),
    );
    let mut client = Client::start(address, version);
    client.put(&Connect::new(version, "held").bytes());
    let mut peer = stub.peer("held");
    peer.expect(PacketKind::Connect);
    peer.release();
    client.expect_bytes(b"\x20\x06\x00\x00\x03\x21\x00\x01");
    client.ping();
    peer.expect_bytes(&PINGREQ);
    peer.reset();
    client.expect_end();
    assert_eq!(peer.expect_end(), End::Closed);
}

#[test]
fn stub_in_manual_mode_says_only_what_it_is_told_and_records_all() {
    let stub = Stub::new();
    let listening = stub.listen(any_port()).unwrap();
    stub.script("manual", Script::new().manual());
    let connect = Connect::new(Version::V311, "manual").user("u", "p");
    let mut client = Client::open_with(listening.address().clone(), &connect);
    let mut peer = stub.peer("manual");
    peer.expect_bytes(&connect.bytes());
    let publish = Publish::new(Version::V311, "t", "p").qos(1, 5).bytes();
    client.put(&publish);
    peer.expect_bytes(&publish);
    peer.send(&ack(PacketKind::Puback, 5));
    client.expect_bytes(&ack(PacketKind::Puback, 5));
    peer.finish();
    client.expect_end();
    client.put(&PINGREQ);
    drop(client);
    peer.expect_bytes(&PINGREQ);
    peer.expect_end();
    assert_eq!(
        peer.received(),
        [connect.bytes(), publish, PINGREQ.to_vec()].concat()
    );
}

#[test]
fn stub_that_stalls_reads_nothing_until_told() {
    let stub = Stub::new();
    let listening = stub.listen(any_port()).unwrap();
    stub.script("stalled", Script::new().stalled());
    let mut client = Client::open(listening.address().clone(), Version::V311, "stalled");
    client.put(&PINGREQ);
    let peer = stub.peer("stalled");
    assert_eq!(peer.count(PacketKind::Pingreq), 0);
    peer.resume();
    client.expect(PacketKind::Pingresp);
    assert_eq!(peer.count(PacketKind::Pingreq), 1);
}

#[test]
fn stub_honours_receive_maximum_and_shares() {
    let stub = Stub::new();
    let listening = stub.listen(any_port()).unwrap();
    let address = listening.address().clone();
    let one = Connect::new(Version::V5, "one").props(Props::new().two(0x21, 1));
    let mut one = Client::open_with(address.clone(), &one);
    assert_eq!(one.subscribe("t", 1), 1);
    let mut publisher = Client::open(address.clone(), Version::V5, "pub");
    publisher.publish_acked("t", "a", 1);
    publisher.publish_acked("t", "b", 2);
    let first = one.expect(PacketKind::Publish);
    one.ping(); // the second is held back until the first is acknowledged
    let id = u16::from_be_bytes([first.body()[3], first.body()[4]]);
    one.put(&ack(PacketKind::Puback, id));
    one.expect_message("t", "b");

    let mut members: Vec<Client> = ["m0", "m1"]
        .iter()
        .map(|id| {
            let mut member = Client::open(address.clone(), Version::V5, id);
            assert_eq!(member.subscribe("$share/g/s", 0), 0);
            member
        })
        .collect();
    for turn in ["0", "1", "2"] {
        publisher.publish_acked("s", turn, 3);
    }
    members[0].expect_message("s", "0");
    members[1].expect_message("s", "1");
    members[0].expect_message("s", "2");
}

#[test]
fn a_stub_that_stops_listening_frees_its_port() {
    let stub = Stub::new();
    // An address that no other test has: on theirs somebody may take the port as soon as it is free.
    let apart = Address::Tcp(([127, 86, 0, 1], 0).into());
    let listening = stub.listen(apart).unwrap();
    let address = listening.address().clone();
    Client::open(address.clone(), Version::V5, "before");
    drop(listening);
    assert!(Client::dial(address.clone(), Version::V5).is_err());
    let _again = stub.listen(address.clone()).unwrap();
    Client::open(address, Version::V5, "after");
}
