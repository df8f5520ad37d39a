//! A new policy under open sessions: what is judged anew, what is refused whole, and that no message is lost meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::{Client, Message};
use sluice_loadtest::harness::{Cell, Gate};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::{Connect, Publish, VERSIONS, Will};
use sluice_wire::mqtt::{PacketKind, Version};

on_every_cell_alone!(
    open_sessions_are_judged_by_the_new_policy,
    s12_users_change_while_running,
    s18_a_bad_policy_is_refused_whole,
    s19_a_policy_change_under_load_loses_and_doubles_nothing,
    listeners_come_and_go_with_the_policy,
);

const HEAD: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
groups:
  - { name: guests }
"##;

const OPEN: &str = r##"
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##;

fn open_sessions_are_judged_by_the_new_policy(cell: Cell) {
    let gate = Gate::alone("judged-anew", cell, &format!("{HEAD}{OPEN}"), &[]);
    let gate = gate.visit();
    let listener = || gate.listener("main");
    let mut reporter = Client::open(gate.mosquitto.address(), Version::V5, "reporter");
    reporter.subscribe("wills/#", 0);
    for version in VERSIONS {
        gate.reload(&format!("{HEAD}{OPEN}"));
        let mut writer = Client::open(listener(), version, "writer");
        let mut reader = Client::open(listener(), version, "reader");
        assert_eq!(
            reader.subscribe_all(&[("news/#", 1), ("private/#", 1)]),
            [1, 1]
        );
        let will = Will::new(&format!("wills/{}", version as u8), "gone");
        let banned = Connect::new(version, "banned").will(will);
        let mut banned = Client::open_with(listener(), &banned);
        assert_eq!(writer.publish_acked("private/x", "before", 1), 0);
        reader.expect_message("private/x", "before");
        banned.ping();
        let mark = gate.mosquitto.running().log_mark();

        // Allowed turns into denied: one client, one topic, one subscription.
        gate.reload(&format!(
            "{HEAD}{}",
            r##"
rules:
  - { name: banned, who: { client_ids: [banned] }, actions: [connect], decision: deny }
  - { name: connects, actions: [connect], decision: allow }
  - { name: not-private, who: { client_ids: [reader] }, actions: [subscribe, receive], topics: ["private/#"], decision: deny }
  - { name: not-closed, who: { client_ids: [writer] }, actions: [publish], topics: ["closed"], decision: deny }
  - { name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##
        ));
        banned.expect_disconnect(0x87);
        // Who may not connect may not publish either: the proxy takes the will back with a DISCONNECT.
        let taken_back = "Client banned disconnected";
        let broker = gate.mosquitto.running();
        let told = |line: &str| line.contains(taken_back).then_some(());
        broker.wait_log(mark, taken_back, told).unwrap();
        reporter.ping();
        let mut again = Client::start(listener(), version);
        let code = again.connect(&Connect::new(version, "banned"));
        assert_eq!(code, if version == Version::V5 { 0x87 } else { 5 });
        // The open subscription delivers what is still allowed and nothing else.
        writer.publish_acked("private/x", "hidden", 2);
        writer.publish_acked("news/x", "seen", 3);
        reader.expect_message("news/x", "seen");
        let code = writer.publish_acked("closed", "no", 4);
        assert_eq!(code, if version == Version::V5 { 0x87 } else { 0 });

        // And back: denied turns into allowed, without the client doing anything.
        gate.reload(&format!("{HEAD}{OPEN}"));
        assert!(writer.publish_acked("closed", "yes", 5) < 0x80);
        writer.publish_acked("news/x", "again", 6);
        reader.expect_message("news/x", "again");
        reader.ping();
    }
}

fn s12_users_change_while_running(cell: Cell) {
    const BUILDER: &str = "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO";
    const PASSWORD: &str =
        "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
    let with = |users: &str| format!("{HEAD}users:\n{users}{OPEN}");
    let first = with(&format!(
        "  - {{ name: alice, password_hash: \"{BUILDER}\" }}\n  - {{ name: carol, password_hash: \"{BUILDER}\" }}\n"
    ));
    let gate = Gate::alone("users", cell, &first, &[]);
    let gate = gate.visit();
    let login = |user: &str, password: &str| {
        let mut client = Client::start(gate.listener("main"), Version::V5);
        let id = format!("s12-{user}-{password}");
        let code = client.connect(&Connect::new(Version::V5, &id).user(user, password));
        (client, code)
    };
    assert_eq!(login("alice", "builder").1, 0);
    let (mut carol, code) = login("carol", "builder");
    assert_eq!(code, 0);
    // A stranger costs a hash like anybody else, so the time tells nothing; who is known already costs none.
    let hashes = |at_least: f64| {
        let name = "sluice_auth_hashes_total";
        gate.dataplane.wait_metric(name, &[], |now| now >= at_least)
    };
    assert_eq!(hashes(2.0), 2.0);
    assert_eq!(login("bob", "password").1, 0x86);
    assert_eq!(hashes(3.0), 3.0, "an unknown user");
    assert_eq!(login("alice", "wrong").1, 0x86);
    assert_eq!(hashes(4.0), 4.0, "a wrong password");
    let (mut alice, code) = login("alice", "builder");
    assert_eq!(code, 0);
    assert_eq!(login("bob", "password").1, 0x86);
    assert_eq!(hashes(5.0), 5.0, "a second login is answered from memory");
    // Alice's password changes, Carol is switched off, Bob comes.
    gate.reload(&with(&format!(
        "  - {{ name: alice, password_hash: \"{PASSWORD}\" }}\n  - {{ name: bob, password_hash: \"{PASSWORD}\" }}\n  \
         - {{ name: carol, password_hash: \"{BUILDER}\", enabled: false }}\n"
    )));
    // What was remembered as verified was verified against the old hash.
    assert_eq!(login("alice", "builder").1, 0x86);
    assert_eq!(login("alice", "password").1, 0);
    assert_eq!(login("bob", "password").1, 0);
    assert_eq!(login("carol", "builder").1, 0x86);
    alice.ping();
    carol.expect_disconnect(0x87);
}

fn s18_a_bad_policy_is_refused_whole(cell: Cell) {
    let gate = Gate::alone("refused-whole", cell, &format!("{HEAD}{OPEN}"), &[]);
    let gate = gate.visit();
    let mut client = Client::open(gate.listener("main"), Version::V5, "s18");
    // 0x10: the broker has taken it, and nobody has subscribed.
    assert_eq!(client.publish_acked("x", "before", 1), 0x10);
    let good = gate.policy(&format!("{HEAD}{OPEN}"));
    let active = [("stage", "active")];
    let metrics = gate.dataplane.metrics().unwrap();
    let generation = metrics.sum("sluice_policy_generation", &active);
    let mark = gate.dataplane.running().log_mark();
    // Good rows and bad ones: nothing of it may come into force, the good ones included.
    let bad = gate.policy(&format!(
        "{HEAD}{}",
        r##"
rules:
  - { name: nobody-connects, actions: [connect], decision: deny }
  - { name: nobody-publishes, actions: [publish], topics: ["#"], decision: deny }
  - { name: broken-filter, actions: [publish], topics: ["a/#/b"], decision: allow }
  - { name: broken-key, actions: [publish], topics: ["a"], decison: allow }
"##
    ));
    for text in [&bad, "", ": not yaml [", "listeners: 7"] {
        gate.dataplane.reload_refused(text);
        assert_eq!(client.publish_acked("x", "still", 2), 0x10);
        Client::open(gate.listener("main"), Version::V5, "s18-more").ping();
        let metrics = gate.dataplane.metrics().unwrap();
        assert_eq!(metrics.sum("sluice_policy_generation", &active), generation);
        assert_eq!(gate.dataplane.get("/readyz").unwrap().status, 200);
    }
    // All errors are told, with file, line and column.
    for (line, what) in [("11", "broken-filter"), ("12", "broken-key")] {
        let place = format!("policy.yaml:{}:", line_of(&bad, what));
        gate.dataplane
            .running()
            .wait_log(mark, &place, |text| text.contains(&place).then_some(()))
            .unwrap_or_else(|error| panic!("line {line} ({what}): {error:#}"));
    }
    gate.dataplane.reload(&good);
    client.ping();
}

fn line_of(text: &str, what: &str) -> usize {
    1 + text.lines().position(|line| line.contains(what)).unwrap()
}

fn s19_a_policy_change_under_load_loses_and_doubles_nothing(cell: Cell) {
    const MESSAGES: u32 = 12_000;
    const CHANGES: usize = 12;
    // `steady` is allowed by both policies and must arrive whole and in order; `turning` by one of them.
    let turned = format!(
        "{HEAD}{}",
        r##"
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: turned, actions: [publish], topics: ["turning/#"], decision: deny }
  - { name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##
    );
    let open = format!("{HEAD}{OPEN}");
    // Mosquitto drops QoS 0 messages of a subscriber that falls behind; the stub does not.
    let at_stub = |text: &str| text.replace("@MOSQUITTO@", "@STUB@");
    let gate = Gate::alone("under-load", cell, &at_stub(&open), &[]);
    let gate = gate.visit();
    let version = Version::V5;
    let script = sluice_loadtest::stub::Script::new().manual();
    gate.stub.script("s19-sender", script.clone());
    gate.stub.script("s19-receiver", script);
    let mut sender = Client::open(gate.listener("main"), version, "s19-sender");
    let mut receiver = Client::open(gate.listener("main"), version, "s19-receiver");
    let mut up = gate.stub.peer("s19-sender");
    let down = gate.stub.peer("s19-receiver");
    let steady = |number: u32| Publish::new(version, "steady/x", number.to_string()).bytes();
    let turning = |number: u32| Publish::new(version, "turning/x", number.to_string()).bytes();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            for number in 0..MESSAGES {
                sender.put(&[steady(number), turning(number)].concat());
            }
            sender
        });
        scope.spawn(|| {
            for number in 0..MESSAGES {
                down.send(&steady(number));
                if number % 1_000 == 999 {
                    // Does not run ahead of what the connection's queue takes.
                    receiver_keeps_up(&mut receiver, version, number - 999..=number);
                }
            }
        });
        for change in 0..CHANGES {
            gate.reload(&at_stub(if change % 2 == 0 { &turned } else { &open }));
        }
        let mut expected_steady = 0;
        let mut last_turning = None;
        up.expect(PacketKind::Connect);
        while expected_steady < MESSAGES {
            let frame = up.expect(PacketKind::Publish);
            let message = Message::read(version, &frame);
            let number: u32 = String::from_utf8(message.payload).unwrap().parse().unwrap();
            if message.topic == "steady/x" {
                assert_eq!(number, expected_steady, "lost, doubled or out of order");
                expected_steady += 1;
            } else {
                // Some are refused; those that pass come once and right behind their twin.
                assert_eq!(number + 1, expected_steady);
                assert!(last_turning < Some(number), "{number} came twice");
                last_turning = Some(number);
            }
        }
        // CHANGES is even: by now the open policy is in force.
        let mut sender = sending.join().unwrap();
        sender.put(&turning(MESSAGES));
        loop {
            let message = Message::read(version, &up.expect(PacketKind::Publish));
            if message.payload == MESSAGES.to_string().into_bytes() {
                break;
            }
        }
    });
}

fn receiver_keeps_up(
    receiver: &mut Client,
    version: Version,
    numbers: std::ops::RangeInclusive<u32>,
) {
    for number in numbers {
        let bytes = Publish::new(version, "steady/x", number.to_string()).bytes();
        receiver.expect_bytes(&bytes);
    }
}

fn listeners_come_and_go_with_the_policy(cell: Cell) {
    let gate = Gate::alone("listeners", cell, &format!("{HEAD}{OPEN}"), &[]);
    let gate = gate.visit();
    let both = HEAD.replace(
        "upstreams:",
        "  - { name: second, address: \"127.0.0.1:0\", upstream: broker, anonymous: { group: guests } }\nupstreams:",
    );
    let mut first = Client::open(gate.listener("main"), Version::V5, "first");
    gate.reload(&format!("{both}{OPEN}"));
    let mut second = Client::open(gate.listener("second"), Version::V5, "second");
    second.ping();
    let address = gate.listener("second");
    // A port of its own is kept: the first listener is where it was.
    first.ping();
    gate.reload(&format!("{HEAD}{OPEN}"));
    second.expect_disconnect(0x98);
    assert!(Client::dial(address, Version::V5).is_err());
    first.ping();
    Client::open(gate.listener("main"), Version::V5, "third").ping();
}
