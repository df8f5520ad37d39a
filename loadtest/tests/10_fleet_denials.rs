//! Why devices were refused: each is refused for a reason of its own, and an operator finds it with `sluicectl denials` alone.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use serde_json::Value;
use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Cell, Fleet, NODE};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::{Connect, Publish, Will};
use sluice_loadtest::patience::until;
use sluice_wire::mqtt::Version;

on_every_cell_alone!(
    every_reason_is_found_by_the_tool,
    refusals_are_followed_and_asking_is_recorded,
);

// The password is `builder`.
const POLICY: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests }, client_id: { pattern: "[a-z0-9-]*" } }
  - { name: strict, address: "127.0.0.1:0", upstream: broker, versions: ["5"] }
  - name: narrow
    address: "127.0.0.1:0"
    upstream: broker
    anonymous: { group: guests }
    limits: { connections_per_address_max: 1 }
  - { name: slim, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests }, limits: { packet_bytes_max: 128 } }
upstreams:
  - { name: broker, endpoints: ["@STUB@"] }
groups:
  - { name: guests }
users:
  - { name: alice, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: never, priority: 10, actions: [publish, subscribe], topics: ["secret/#"], decision: deny }
  - { name: small, actions: [publish], topics: ["small/#"], payload_bytes_max: 4, decision: allow }
  - { name: bare, actions: [publish], topics: ["bare/#"], retain: refuse, decision: allow }
  - { name: once, actions: [publish], topics: ["once/#"], qos_max: 0, qos_over: refuse, decision: allow }
  - { name: open, actions: [publish, subscribe], topics: ["open/#"], decision: allow }
"##;

fn denials(fleet: &Fleet, filter: &[&str]) -> Vec<Value> {
    let args = [&["denials"], filter].concat();
    let answer = fleet.control.ctl_json(&args);
    assert_eq!(answer["failed"], serde_json::json!([]), "{answer:#}");
    answer["denials"].as_array().unwrap().clone()
}

/// The one refusal that matches.
#[track_caller]
fn only(fleet: &Fleet, filter: &[&str]) -> Value {
    let found = until("the refusal is found", || {
        let found = denials(fleet, filter);
        (!found.is_empty()).then_some(found)
    });
    assert_eq!(found.len(), 1, "{filter:?}: {found:#?}");
    found[0].clone()
}

fn every_reason_is_found_by_the_tool(cell: Cell) {
    let fleet = Fleet::alone("denials", cell, &[]);
    fleet.put(POLICY);
    assert_eq!(fleet.control.ctl(&["denials"]).stdout, "no refusals\n");
    let (main, strict) = (fleet.listener("main"), fleet.listener("strict"));
    let v5 = Version::V5;
    let publishes = [
        (
            "dev-rule",
            Publish::new(v5, "secret/x", "x"),
            "denied_by_rule",
            Some("never"),
        ),
        (
            "dev-none",
            Publish::new(v5, "nowhere", "x"),
            "no_rule",
            None,
        ),
        (
            "dev-size",
            Publish::new(v5, "small/x", "12345"),
            "payload_too_large",
            Some("small"),
        ),
        (
            "dev-retain",
            Publish::new(v5, "bare/x", "x").retain(),
            "retain_refused",
            Some("bare"),
        ),
        (
            "dev-qos",
            Publish::new(v5, "once/x", "x").qos(1, 7),
            "qos_refused",
            Some("once"),
        ),
    ];
    for (id, publish, reason, rule) in publishes {
        let mut client = Client::open(main.clone(), v5, id);
        client.put(&publish.bytes());
        let line = only(&fleet, &["--client-id", id]);
        assert_eq!(line["reason"], reason, "{line:#}");
        assert_eq!(line["rule"].as_str(), rule, "{line:#}");
        assert_eq!(
            (&line["action"], &line["node"]),
            (&"publish".into(), &NODE.into())
        );
        assert_eq!(line["listener"], "main");
    }
    let mut client = Client::open(main.clone(), Version::V311, "dev-filter");
    assert_eq!(client.subscribe("secret/#", 1), 0x80);
    let line = only(&fleet, &["--client-id", "dev-filter"]);
    assert_eq!(
        (&line["action"], &line["topic"]),
        (&"subscribe".into(), &"secret/#".into())
    );
    assert_eq!(
        (&line["reason"], &line["qos"]),
        (&"denied_by_rule".into(), &1.into())
    );

    // A message in a packet that the listener does not let through. Before version 5 a broker cannot be told.
    let mut receiver = Client::open(fleet.listener("slim"), Version::V311, "dev-tiny");
    assert_eq!(receiver.subscribe("open/long", 0), 0);
    Client::open(main.clone(), v5, "sender").publish("open/long", &"x".repeat(200));
    let line = only(&fleet, &["--client-id", "dev-tiny"]);
    assert_eq!(
        (&line["action"], &line["reason"]),
        (&"receive".into(), &"delivery_too_large".into())
    );
    assert_eq!(line["payload_bytes"], 200);

    let connects = [
        (
            &main,
            Connect::new(v5, "dev-password").user("alice", "wrong"),
            "password_wrong",
        ),
        (
            &main,
            Connect::new(v5, "dev-unknown").user("eyJ.token", "x"),
            "user_unknown",
        ),
        (&main, Connect::new(v5, "NOT GOOD"), "client_id"),
        (&strict, Connect::new(v5, "dev-anonymous"), "user_missing"),
        (
            &strict,
            Connect::new(Version::V311, "dev-old").user("alice", "builder"),
            "version",
        ),
    ];
    for (listener, connect, reason) in connects {
        let mut client = Client::start(listener.clone(), connect.version);
        assert_ne!(client.connect(&connect), 0);
        let line = only(&fleet, &["--client-id", &connect.client_id]);
        assert_eq!(
            (&line["action"], &line["reason"]),
            (&"connect".into(), &reason.into())
        );
    }
    let with_will = Connect::new(v5, "dev-will").will(Will::new("secret/will", "gone"));
    assert_eq!(Client::start(main.clone(), v5).connect(&with_will), 0x87);
    let line = only(&fleet, &["--client-id", "dev-will"]);
    assert_eq!(
        (&line["action"], &line["topic"]),
        (&"will".into(), &"secret/will".into())
    );

    let mut tls = Client::start(main.clone(), v5);
    tls.put(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03");
    tls.expect_end();
    assert_eq!(only(&fleet, &["--reason", "tls"])["listener"], "main");

    let narrow = fleet.listener("narrow");
    let _first = Client::open(narrow.clone(), v5, "first");
    Client::start(narrow, v5).expect_end();
    let line = only(&fleet, &["--reason", "address_full"]);
    assert_eq!(
        (&line["action"], &line["listener"]),
        (&"accept".into(), &"narrow".into())
    );

    // A name that is no user's is told to nobody, but who knows it finds it.
    let line = only(&fleet, &["--user", "eyJ.token"]);
    assert_eq!(
        (&line["client_id"], &line["user"]),
        (&"dev-unknown".into(), &Value::Null)
    );
    assert_eq!(
        (&line["user_kind"], &line["user_bytes"]),
        (&"hidden".into(), &9.into())
    );
    let everything = fleet.control.ctl(&["denials"]).stdout;
    assert!(
        everything.contains("dev-unknown") && !everything.contains("eyJ"),
        "{everything}"
    );
    assert_eq!(
        only(&fleet, &["--user", "alice", "--reason", "credentials"])["user_kind"],
        "claimed"
    );
    assert_eq!(
        denials(&fleet, &["--address", "127.0.0.1", "--limit", "3"]).len(),
        3
    );
    assert_eq!(
        denials(&fleet, &["--address", "127.0.0.2", "--node", NODE]).len(),
        0
    );
    let unknown = fleet
        .control
        .ctl_code(3, &["denials", "--reason", "norule"]);
    let error = unknown["failed"][0]["error"].as_str().unwrap();
    assert!(
        error.contains("no such reason") && error.contains("credentials"),
        "{error}"
    );
}

fn refusals_are_followed_and_asking_is_recorded(cell: Cell) {
    let fleet = Fleet::alone("follow", cell, &[]);
    fleet.put(POLICY);
    let main = fleet.listener("main");
    let mut client = Client::open(main, Version::V5, "follower");
    client.publish("nowhere/before", "x");
    only(&fleet, &["--client-id", "follower"]);
    let program = fleet
        .control
        .ctl_program(&["denials", "--follow", "--reason", "rules"]);
    let following = program.unwrap().start().unwrap();
    let waits_for = |topic: &str| {
        let found = following.wait_log(0, topic, |line| line.contains(topic).then_some(()));
        found.unwrap();
    };
    waits_for("nowhere/before");
    for topic in ["nowhere/one", "nowhere/two"] {
        client.publish(topic, "x");
        waits_for(topic);
    }
    let records = fleet.control.ctl_json(&["audit"]);
    let text = records.to_string();
    assert!(
        text.contains("denials.follow") && text.contains("reason `rules`"),
        "{records:#}"
    );
}
