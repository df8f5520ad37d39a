//! A release through the control plane: what open sessions see of it, what becomes of bad documents, and that nothing is
//! lost or judged by a mixture meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::collections::BTreeSet;
use std::net::TcpListener;

use sluice_loadtest::client::{Client, Message};
use sluice_loadtest::harness::{Cell, Fleet, NODE, number_of};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::Publish;
use sluice_loadtest::stub::Script;
use sluice_wire::mqtt::{PacketKind, Version};

on_every_cell_alone!(
    a_release_and_its_rollback_reach_open_sessions,
    s18_a_bad_document_changes_nothing_anywhere,
    s18_a_generation_that_a_node_refuses_leaves_the_old_one,
    s19_releases_under_load_lose_nothing_and_mix_nothing,
);

const HEAD: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@STUB@"] }
groups:
  - { name: guests }
"##;

const OPEN: &str = r##"
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##;

const CLOSED: &str = r##"
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: secret, actions: [publish], topics: ["secret/#"], decision: deny }
  - { name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##;

fn open() -> String {
    format!("{HEAD}{OPEN}")
}

fn closed() -> String {
    format!("{HEAD}{CLOSED}")
}

/// What the control plane says that the node has: the number on every surface.
#[track_caller]
fn assert_active(fleet: &Fleet, number: u64) {
    let node = fleet.control.node(NODE);
    assert_eq!(node["state"], "active", "{node:#}");
    for what in ["desired", "delivered", "active"] {
        assert_eq!(node[what]["number"], number, "{what}: {node:#}");
    }
    let shards = node["shards"].as_array().unwrap();
    let expected = usize::from(fleet.dataplane.membership().unwrap().cell.shards);
    assert_eq!(shards.len(), expected);
    for shard in shards {
        assert_eq!(shard["active"]["number"], number, "{node:#}");
    }
}

fn a_release_and_its_rollback_reach_open_sessions(cell: Cell) {
    let fleet = Fleet::alone("release", cell, &[]);
    let first = fleet.put(&open());
    assert_active(&fleet, first);
    // Enough that every shard has some.
    let mut clients: Vec<Client> = (0..8)
        .map(|n| Client::open(fleet.listener("main"), Version::V5, &format!("c{n}")))
        .collect();
    let judged = |clients: &mut [Client], is_allowed: bool| {
        for client in clients {
            let code = client.publish_acked("secret/x", "x", 1);
            assert_eq!(code < 0x80, is_allowed, "PUBACK {code:#04x}");
            assert!(is_allowed || code == 0x87, "PUBACK {code:#04x}");
            assert!(client.publish_acked("plain", "x", 2) < 0x80);
        }
    };
    judged(&mut clients, true);

    // Applied is not released: nothing changes yet.
    let second = fleet.control.apply(&fleet.policy(&closed()));
    assert_eq!(second, first + 1);
    judged(&mut clients, true);
    assert_active(&fleet, first);

    fleet.control.release(second);
    judged(&mut clients, false);
    assert_active(&fleet, second);

    let back = fleet.control.ctl_json(&["rollback", "--wait"]);
    assert_eq!(number_of(&back), second + 1);
    judged(&mut clients, true);
    assert_active(&fleet, second + 1);
    let history = fleet.control.ctl_json(&["history"]);
    let states: Vec<_> = history["generations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|generation| generation["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["released", "superseded", "superseded"]);
    assert_eq!(history["generations"][0]["rollback_of"], first);
    for client in &mut clients {
        client.ping();
    }
}

fn s18_a_bad_document_changes_nothing_anywhere(cell: Cell) {
    let fleet = Fleet::alone("bad-document", cell, &[]);
    let first = fleet.put(&open());
    let mut client = Client::open(fleet.listener("main"), Version::V5, "s18");
    let history = fleet.control.ctl_json(&["history"]);
    let sent = || {
        let metrics = fleet.control.metrics().unwrap();
        metrics.sum("sluice_control_rows_sent_total", &[])
    };
    let sent_before = sent();
    assert!(sent_before > Some(0.0));
    // Good rows and bad ones: nothing of it may come into force, the good ones included.
    let bad = fleet.policy(&format!(
        "{HEAD}{}",
        r##"
rules:
  - { name: nobody-connects, actions: [connect], decision: deny }
  - { name: nobody-publishes, actions: [publish], topics: ["#"], decision: deny }
  - { name: broken-filter, actions: [publish], topics: ["a/#/b"], decision: allow }
  - { name: broken-key, actions: [publish], topics: ["a"], decison: allow }
"##
    ));
    let path = fleet.control.document(&bad).unwrap();
    for command in ["apply", "validate", "diff"] {
        let answer = fleet.control.ctl_code(1, &[command, "-f", &path]);
        let problems = if command == "validate" {
            &answer["problems"]
        } else {
            &answer["error"]["problems"]
        };
        let lines: BTreeSet<u64> = problems
            .as_array()
            .unwrap_or_else(|| panic!("{command}: {answer:#}"))
            .iter()
            .filter_map(|problem| problem["line"].as_u64())
            .collect();
        for what in ["broken-filter", "broken-key"] {
            let line = 1 + bad.lines().position(|line| line.contains(what)).unwrap();
            assert!(lines.contains(&(line as u64)), "{what}: {answer:#}");
        }
    }
    for text in [": not yaml [", "listeners: 7", "\u{0}"] {
        let path = fleet.control.document(text).unwrap();
        fleet.control.ctl_code(1, &["apply", "-f", &path]);
    }
    assert_eq!(fleet.control.ctl_json(&["history"]), history);
    assert_eq!(sent(), sent_before);
    assert_active(&fleet, first);
    assert!(client.publish_acked("x", "still", 1) < 0x80);
    Client::open(fleet.listener("main"), Version::V5, "s18-more").ping();
}

fn s18_a_generation_that_a_node_refuses_leaves_the_old_one(cell: Cell) {
    let fleet = Fleet::alone("node-refuses", cell, &[]);
    let first = fleet.put(&open());
    let mut client = Client::open(fleet.listener("main"), Version::V5, "s18");
    // The control plane cannot know that somebody has this port on the node.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let second_listener = format!(
        "  - {{ name: second, address: \"127.0.0.1:{port}\", upstream: broker, anonymous: {{ group: guests }} }}\nupstreams:"
    );
    let text = closed().replace("upstreams:", &second_listener);
    let second = fleet.control.apply(&fleet.policy(&text));
    let answer = fleet
        .control
        .ctl_code(1, &["release", &second.to_string(), "--wait"]);
    assert!(answer.to_string().contains(NODE), "{answer:#}");
    let node = fleet.control.node(NODE);
    assert_eq!(node["state"], "rejected", "{node:#}");
    assert_eq!(node["desired"]["number"], second);
    assert_eq!(node["active"]["number"], first);
    let rejection = &node["rejection"];
    assert_eq!(rejection["generation"]["number"], second, "{node:#}");
    assert!(
        rejection["problems"]
            .to_string()
            .contains(&port.to_string()),
        "{node:#}"
    );
    // Nothing of it is in force: neither its rules nor its listeners.
    assert!(client.publish_acked("secret/x", "still", 1) < 0x80);
    assert!(fleet.dataplane.listener("second").is_err());
    // Back to what the node can do.
    fleet.control.ctl_json(&["rollback", "--wait"]);
    assert_active(&fleet, second + 1);
    // The same rows once more, now that the port is free.
    drop(taken);
    let third = fleet.put(&text);
    assert_active(&fleet, third);
    assert_eq!(client.publish_acked("secret/x", "now", 2), 0x87);
    Client::open(fleet.listener("second"), Version::V5, "s18-second").ping();
}

/// Two policies that differ in two topics each, so that every single message tells which of them judged it.
fn one_of_two(which: usize) -> String {
    let (yes, no) = [("left", "right"), ("right", "left")][which % 2];
    format!(
        "{HEAD}{}",
        r##"
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: yes, actions: [publish], topics: ["@YES@/1", "@YES@/2"], decision: allow }
  - { name: no, actions: [publish], topics: ["@NO@/1", "@NO@/2"], decision: deny }
"##
    )
    .replace("@YES@", yes)
    .replace("@NO@", no)
}

fn s19_releases_under_load_lose_nothing_and_mix_nothing(cell: Cell) {
    const RELEASES: usize = 6;
    const SENDERS: usize = 3;
    /// Messages sent before an answer is waited for.
    const BURST: u16 = 40;
    const TOPICS: [&str; 4] = ["left/1", "right/1", "left/2", "right/2"];
    let fleet = Fleet::alone("under-load", cell, &[]);
    fleet.put(&one_of_two(0));
    for sender in 0..SENDERS {
        // It must not answer a subscription nobody made; it acknowledges what it is sent.
        fleet.stub.script(&format!("s19-{sender}"), Script::new());
    }
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let (fleet, is_over) = (&fleet, &is_over);
                scope.spawn(move || {
                    let id = format!("s19-{sender}");
                    let mut client = Client::open(fleet.listener("main"), Version::V5, &id);
                    let mut codes = Vec::new();
                    // One burst more after the last release: the last policy must be seen.
                    let mut is_last = false;
                    while !is_last {
                        is_last = is_over.load(std::sync::atomic::Ordering::Acquire);
                        codes.extend(burst(&mut client, BURST, codes.len(), &TOPICS));
                    }
                    client.ping();
                    codes
                })
            })
            .collect();
        for release in 1..=RELEASES {
            fleet.put(&one_of_two(release));
        }
        is_over.store(true, std::sync::atomic::Ordering::Release);
        for (sender, handle) in senders.into_iter().enumerate() {
            let codes = handle.join().unwrap();
            let allowed = judged_in_order(&codes, &TOPICS, RELEASES);
            // What was acknowledged has reached the broker, once and in order, and nothing else has.
            let mut up = fleet.stub.peer(&format!("s19-{sender}"));
            up.expect(PacketKind::Connect);
            for number in allowed {
                let message = Message::read(Version::V5, &up.expect(PacketKind::Publish));
                assert_eq!(message.payload, number.to_string().into_bytes());
                assert_eq!(message.topic, TOPICS[number % TOPICS.len()]);
            }
            up.expect(PacketKind::Pingreq);
        }
    });
}

/// Sends `count` messages, numbered from `first`, over the topics in turn, and gives the code of each PUBACK.
fn burst(client: &mut Client, count: u16, first: usize, topics: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet_id in 1..=count {
        let number = first + usize::from(packet_id) - 1;
        let topic = topics[number % topics.len()];
        let publish = Publish::new(Version::V5, topic, number.to_string()).qos(1, packet_id);
        bytes.extend(publish.bytes());
    }
    client.put(&bytes);
    // Refusals come from the proxy at once and the rest from the broker: the order is not that of the messages.
    let mut codes = vec![None; usize::from(count)];
    for _ in 0..count {
        let puback = client.expect(PacketKind::Puback);
        let body = puback.body();
        let packet_id = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let code = body.get(2).copied().unwrap_or(0);
        let slot = &mut codes[packet_id - 1];
        assert_eq!(*slot, None, "acknowledged twice: {packet_id}");
        *slot = Some(code);
    }
    codes.into_iter().map(|code| code.unwrap()).collect()
}

/// Each message tells by its topic and its code which policy judged it; that turns at most once for each release, and
/// ends with the last one. Gives the numbers of those allowed.
fn judged_in_order(codes: &[u8], topics: &[&str], releases: usize) -> Vec<usize> {
    let mut turns = 0;
    let mut policy = 0;
    let mut allowed = Vec::new();
    for (number, code) in codes.iter().enumerate() {
        let is_allowed = *code < 0x80;
        assert!(is_allowed || *code == 0x87, "PUBACK {code:#04x}");
        if is_allowed {
            allowed.push(number);
        }
        let is_left = topics[number % topics.len()].starts_with("left");
        // Policy 0 allows left and nothing else, policy 1 right.
        let judged_by = usize::from(is_left != is_allowed);
        if judged_by != policy {
            policy = judged_by;
            turns += 1;
        }
    }
    assert!(turns <= releases, "{turns} turns for {releases} releases");
    assert_eq!(policy, releases % 2, "the last release is not in force");
    assert!(codes.len() > releases, "too few messages to show anything");
    allowed
}
