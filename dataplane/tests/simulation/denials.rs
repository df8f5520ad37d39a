//! Why devices were refused: what a shard keeps of it, who drives out whose, what the log is told, and what memory it takes.

use std::time::Duration;

use sluice_dataplane::node::{DenialFilter, DenialList, DenialQuery, ToShard};
use sluice_dataplane::session::Act;
use sluice_wire::mqtt::Version;

use crate::basics::{POLICY, address, broker, connect, hear, knock, open, say};
use crate::packets;
use crate::stage::{Options, Stage};

fn stage(denials_max: u32) -> Stage {
    let options = Options {
        denials_max,
        ..Options::quiet()
    };
    Stage::with_policy(&options, POLICY)
}

fn list(stage: &mut Stage, filter: DenialFilter) -> DenialList {
    let query = Box::new(DenialQuery {
        after: None,
        limit: 100,
        filter,
    });
    let question = ToShard::ListDenials { request: 1, query };
    assert!(stage.to_shard.send(question).is_ok());
    stage.run_for(Duration::from_millis(1));
    stage.denials.take().expect("an answer")
}

/// Who was refused what and why, in order.
fn told(stage: &mut Stage) -> Vec<(String, &'static str, &'static str)> {
    let list = list(stage, DenialFilter::default());
    let line = |line: &sluice_dataplane::node::DenialLine| {
        let who = format!("{} {}", line.peer.ip(), line.client_id);
        (who, line.act.name(), line.reason.name())
    };
    list.lines.iter().map(line).collect()
}

#[test]
fn each_refusal_of_a_shard_is_kept() {
    let mut stage = stage(64);
    let (client, _) = open(&mut stage, Version::V5, 1);
    let refused = packets::publish(Version::V5, "shut/a", 0, 0, b"payload");
    say(&mut stage, client, &refused);
    // One more than the address may have.
    knock(&mut stage, 1);
    knock(&mut stage, 1);
    knock(&mut stage, 1);
    let stranger = knock(&mut stage, 2);
    say(&mut stage, stranger, b"GET / HTTP/1.1\r\n\r\n");
    let line = |who: &str, act, reason| (who.to_owned(), act, reason);
    assert_eq!(
        told(&mut stage),
        [
            line("10.0.0.1 client-1", "publish", "no_rule"),
            line("10.0.0.1 ", "accept", "address_full"),
            line("10.0.0.2 ", "connect", "http"),
        ]
    );
    stage.run_for(Duration::from_secs(6));
    let all = told(&mut stage);
    assert_eq!(all.len(), 5);
    assert!(
        all[3..]
            .iter()
            .all(|(_, act, reason)| (*act, *reason) == ("connect", "connect_timeout"))
    );
    let of_address = DenialFilter {
        address: Some(address(2)),
        ..DenialFilter::default()
    };
    let found = list(&mut stage, of_address);
    assert_eq!(found.lines.len(), 1);
    let line = &found.lines[0];
    assert_eq!((&*line.listener, line.act), ("devices", Act::Connect));
    assert!(line.peer.port() > 0);
}

#[test]
fn an_address_that_floods_drives_out_its_own_and_memory_is_accounted_for() {
    let mut stage = stage(16);
    assert_eq!(stage.shard.backlog_bytes(), 0);
    let (quiet, _) = open(&mut stage, Version::V5, 1);
    let refused = packets::publish(Version::V5, "shut/a", 0, 0, b"payload");
    say(&mut stage, quiet, &refused);
    let (client, _) = open(&mut stage, Version::V5, 2);
    for _ in 0..50 {
        say(&mut stage, client, &refused);
    }
    let taken = stage.shard.backlog_bytes();
    assert!(taken > 0, "what is kept counts in the shard's budget");
    for _ in 0..500 {
        say(&mut stage, client, &refused);
    }
    assert_eq!(stage.shard.backlog_bytes(), taken, "bounded");
    let list = list(&mut stage, DenialFilter::default());
    assert_eq!((list.lines.len(), list.lost), (16, 551 - 16));
    assert_eq!(list.lines[0].peer.ip(), address(1), "still there");
}

#[test]
fn refusals_expire() {
    let mut stage = stage(16);
    let (client, _) = open(&mut stage, Version::V5, 1);
    say(
        &mut stage,
        client,
        &packets::publish(Version::V5, "shut/a", 0, 0, b"payload"),
    );
    assert_eq!(told(&mut stage).len(), 1);
    stage.run_for(Duration::from_secs(3600));
    assert_eq!(told(&mut stage).len(), 0);
}

#[test]
fn a_shard_that_keeps_none_says_so() {
    let mut stage = stage(0);
    let query = Box::default();
    let question = ToShard::ListDenials { request: 1, query };
    assert!(stage.to_shard.send(question).is_ok());
    stage.run_for(Duration::from_millis(1));
    assert!(stage.denials.is_none());
}

#[test]
fn other_protocols_on_a_plain_port_are_told_to_the_log_and_not_too_often() {
    let mut stage = stage(0);
    for (last, hello) in [
        (1, &b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..]),
        (2, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        (3, b"GET / HTTP/1.1\r\n\r\n"),
    ] {
        let client = knock(&mut stage, last);
        say(&mut stage, client, hello);
        stage.network.close(client);
    }
    let others = stage.notices.drain(..).flat_map(|batch| batch.others.lines);
    let others: Vec<_> = others
        .map(|line| (line.peer.ip(), line.listener.to_string(), line.protocol))
        .collect();
    let devices = || "devices".to_owned();
    assert_eq!(
        others,
        [
            (address(1), devices(), "tls"),
            (address(2), devices(), "proxy_header"),
            (address(3), devices(), "http"),
        ]
    );
    stage.run_for(Duration::from_secs(5));
    for _ in 0..40 {
        let client = knock(&mut stage, 1);
        say(&mut stage, client, b"\x16\x03\x01\x02\0\x01\0");
        stage.network.close(client);
        stage.run_for(Duration::from_millis(1));
    }
    let batches: Vec<_> = stage.notices.drain(..).collect();
    let told: usize = batches.iter().map(|batch| batch.others.lines.len()).sum();
    assert_eq!(told, 8);
}

#[test]
fn a_delivery_that_is_too_long_and_a_broker_that_ends_a_session_are_told_to_the_log() {
    let mut stage = stage(64);
    let document = POLICY.replace(
        "    limits:\n",
        "    limits:\n      packet_bytes_max: 128\n",
    );
    stage.apply(&document);
    stage.run_for(Duration::from_millis(10));
    let client = knock(&mut stage, 1);
    say(&mut stage, client, &connect(Version::V5, "client-1"));
    let broker = broker(&mut stage).expect("the shard dials");
    hear(&mut stage, broker);
    say(&mut stage, broker, &packets::connack(Version::V5, 0));
    stage.notices.clear();
    let long = packets::publish(Version::V5, "open/a", 0, 0, &[0; 200]);
    say(&mut stage, broker, &long);
    let lines: Vec<_> = stage
        .notices
        .drain(..)
        .flat_map(|batch| batch.too_large.lines)
        .collect();
    let [line] = &lines[..] else {
        panic!("one line: {lines:?}");
    };
    assert_eq!((&*line.client_id, &*line.listener), ("client-1", "devices"));
    assert_eq!(line.packet_bytes as usize, long.len());
    assert_eq!(line.packet_bytes_max, 128);

    // A length that cannot be: where the next packet begins is not known.
    say(&mut stage, broker, b"\x30\xff\xff\xff\xff\xff");
    let lines: Vec<_> = stage
        .notices
        .drain(..)
        .flat_map(|batch| batch.faults)
        .collect();
    let [line] = &lines[..] else {
        panic!("one line: {lines:?}");
    };
    assert!(line.has_ended, "{line:?}");
    assert_eq!(&*line.upstream, "broker");
    let reasons: Vec<_> = told(&mut stage)
        .into_iter()
        .map(|(.., reason)| reason)
        .collect();
    assert_eq!(reasons, ["delivery_too_large", "upstream_violation"]);
}
