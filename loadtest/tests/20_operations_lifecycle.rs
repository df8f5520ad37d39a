//! Running it: brokers that go and come back, the end by drain, limits on connections, and what is left afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::net::{IpAddr, Ipv4Addr};

use rustix::process::Signal;
use sluice_loadtest::client::{Client, Ended};
use sluice_loadtest::harness::{Cell, Gate, Visit};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::{Connect, Publish, VERSIONS, Will};
use sluice_loadtest::patience::until;
use sluice_loadtest::stream::Address;
use sluice_wire::mqtt::{PacketKind, Version};

on_every_cell_alone!(
    m27_upstream_down_is_told_and_up_again_is_found,
    m27_an_upstream_with_one_dead_endpoint_uses_the_other,
    m27_health_checks_see_what_no_client_tells,
    m27_the_real_broker_may_be_restarted,
    m28_sigterm_drains_under_load,
    m28_wills_follow_the_listeners_word_at_a_drain,
    m28_a_second_sigterm_ends_at_once,
    m29_the_connection_after_the_last_is_refused_and_a_slot_comes_free,
    m29_connections_of_one_address_are_limited,
    s20_abrupt_ends_leave_nothing,
    secrets_and_payloads_are_never_logged,
    a_latency_budget_loses_nothing,
);

const RULES: &str = r##"
groups:
  - { name: guests }
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##;

fn document(listeners_and_upstreams: &str) -> String {
    format!("{listeners_and_upstreams}{RULES}")
}

fn m27_upstream_down_is_told_and_up_again_is_found(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: stub, anonymous: { group: guests } }
  - { name: other, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - name: stub
    endpoints: ["@STUB@"]
    dial: { attempts_max: 2, backoff: 10ms, timeout: 5s }
    breaker: { failures: 3, open: 200ms }
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let mut gate = Gate::alone("down-and-up", cell, &policy, &[]);
    let open = [("upstream", "stub"), ("state", "breaker_open")];
    let usable = [("upstream", "stub"), ("state", "usable")];
    let mut survivor = Client::open(gate.listener("main"), Version::V5, "m27-survivor");
    gate.stub_down();
    {
        let gate = gate.visit();
        let refused = |version: Version| {
            let mut client = Client::start(gate.listener("main"), version);
            let code = client.connect(&Connect::new(version, "m27"));
            assert_eq!(code, if version == Version::V5 { 0x88 } else { 3 });
            client.expect_end();
        };
        for version in VERSIONS {
            refused(version);
        }
        // Attempts go on failing until the breaker is seen open; then they are refused without a dial.
        until("the breaker is open", || {
            refused(Version::V5);
            let metrics = gate.dataplane.metrics().unwrap();
            (metrics.sum("sluice_upstream_endpoints", &open) == Some(1.0)).then_some(())
        });
        let failures = [("upstream", "stub")];
        gate.dataplane
            .wait_metric("sluice_upstream_dial_failures_total", &failures, |now| {
                now >= 3.0
            });
        // Sessions that are open, and other upstreams, know nothing of it.
        survivor.ping();
        Client::open(gate.listener("other"), Version::V5, "m27-other").ping();
        assert_eq!(gate.dataplane.get("/livez").unwrap().status, 200);
    }
    gate.stub_up();
    let gate = gate.visit();
    let mut client = until("the broker is found again", || {
        let mut client = Client::start(gate.listener("main"), Version::V5);
        let code = client.connect(&Connect::new(Version::V5, "m27-again"));
        (code == 0).then_some(client)
    });
    client.ping();
    gate.dataplane
        .wait_metric("sluice_upstream_endpoints", &usable, |now| now == 1.0);
    gate.dataplane
        .wait_metric("sluice_upstream_endpoints", &open, |now| now == 0.0);
    survivor.ping();
}

fn m27_an_upstream_with_one_dead_endpoint_uses_the_other(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: pair, anonymous: { group: guests } }
upstreams:
  - name: pair
    endpoints: ["@STUB@", "@STUB_UNIX@"]
    dial: { attempts_max: 4, backoff: 5ms, timeout: 5s }
    breaker: { failures: 2, open: 1m }
"##,
    );
    let mut gate = Gate::alone("one-dead", cell, &policy, &[]);
    gate.stub_down();
    let gate = gate.visit();
    for number in 0..20 {
        for version in VERSIONS {
            let id = format!("m27-pair-{number}");
            Client::open(gate.listener("main"), version, &id).ping();
        }
    }
}

fn m27_health_checks_see_what_no_client_tells(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: stub, anonymous: { group: guests } }
upstreams:
  - { name: stub, endpoints: ["@STUB@"], health: { interval: 100ms } }
"##,
    );
    let mut gate = Gate::alone("health", cell, &policy, &[]);
    let state = |gate: &Gate, state: &str| {
        let labels = [("upstream", "stub"), ("state", state)];
        gate.dataplane
            .wait_metric("sluice_upstream_endpoints", &labels, |now| now == 1.0);
    };
    state(&gate, "usable");
    gate.stub_down();
    until("the endpoint is seen to be down", || {
        let metrics = gate.dataplane.metrics().ok()?;
        let labels = [("upstream", "stub"), ("state", "usable")];
        (metrics.sum("sluice_upstream_endpoints", &labels) == Some(0.0)).then_some(())
    });
    gate.stub_up();
    state(&gate, "usable");
    Client::open(gate.listener("main"), Version::V5, "m27-health").ping();
}

fn m27_the_real_broker_may_be_restarted(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"], dial: { backoff: 10ms }, breaker: { failures: 3, open: 100ms } }
"##,
    );
    let mut gate = Gate::alone("restart", cell, &policy, &[]);
    let mut before: Vec<Client> = VERSIONS
        .iter()
        .map(|version| {
            let id = format!("m27-before-{}", *version as u8);
            Client::open(gate.listener("main"), *version, &id)
        })
        .collect();
    gate.restart_mosquitto();
    for client in &mut before {
        client.expect_disconnect(0x80);
    }
    for version in VERSIONS {
        let mut client = until("the broker is found again", || {
            let mut client = Client::start(gate.listener("main"), version);
            let code = client.connect(&Connect::new(version, "m27-after"));
            (code == 0).then_some(client)
        });
        client.subscribe("m27/x", 1);
        client.publish("m27/x", "back");
        client.expect_message("m27/x", "back");
    }
}

fn m28_sigterm_drains_under_load(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let mut gate = Gate::alone("drain", cell, &policy, &["--drain-time", "1s"]);
    let address = gate.listener("main");
    let mut quiet: Vec<Client> = (0..60)
        .map(|number| {
            let version = VERSIONS[number % 3];
            let mut client = Client::open(address.clone(), version, &format!("quiet-{number}"));
            client.subscribe("nothing/here", 0);
            client
        })
        .collect();
    let busy: Vec<Client> = (0..6)
        .map(|number| {
            let version = VERSIONS[number % 3];
            Client::open(address.clone(), version, &format!("busy-{number}"))
        })
        .collect();
    {
        let gate = gate.visit();
        std::thread::scope(|scope| {
            for mut client in busy {
                scope.spawn(move || {
                    let publish = Publish::new(client.version(), "load/x", "x".repeat(500)).bytes();
                    // Until the drain takes the connection away.
                    while client.send(&publish).is_ok() {}
                });
            }
            gate.dataplane.running().signal(Signal::TERM).unwrap();
            for client in &mut quiet {
                client.expect_disconnect(0x8b);
            }
        });
        // Nobody new.
        let refused = match Client::dial(address, Version::V5) {
            Err(_) => true,
            Ok(mut client) => {
                let _ = client.send(&Connect::new(Version::V5, "late").bytes());
                match client.recv() {
                    Ok(frame) => frame.body().get(1) != Some(&0),
                    Err(ended) => ended != Ended::Silent,
                }
            }
        };
        assert!(refused, "a drained node took a new session");
    }
    let status = gate.dataplane.running_mut().wait_exit().unwrap();
    assert_eq!(status.code(), Some(0), "{}", gate.logs());
}

fn m28_wills_follow_the_listeners_word_at_a_drain(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: loud, address: "127.0.0.1:0", upstream: broker, drain_wills: publish, anonymous: { group: guests } }
  - { name: still, address: "127.0.0.1:0", upstream: broker, drain_wills: suppress, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let mut gate = Gate::alone("drain-wills", cell, &policy, &["--drain-time", "200ms"]);
    let mut watcher = Client::open(gate.mosquitto.address(), Version::V5, "watcher");
    watcher.subscribe("wills/#", 1);
    let mut clients = Vec::new();
    for version in VERSIONS {
        for listener in ["loud", "still"] {
            let id = format!("{listener}-{}", version as u8);
            let will = Will::new(&format!("wills/{id}"), "gone").qos(1);
            let connect = Connect::new(version, &id).will(will);
            clients.push(Client::open_with(gate.listener(listener), &connect));
        }
    }
    gate.dataplane.running().signal(Signal::TERM).unwrap();
    for client in &mut clients {
        client.expect_disconnect(0x8b);
    }
    let status = gate.dataplane.running_mut().wait_exit().unwrap();
    assert_eq!(status.code(), Some(0));
    // The broker's own words: who said good-bye, and who did not.
    for version in VERSIONS {
        for (id, end) in [("loud", "closed its connection"), ("still", "disconnected")] {
            let line = format!("Client {id}-{} {end}", version as u8);
            let broker = gate.mosquitto.running();
            broker
                .wait_log(0, &line, |text| text.contains(&line).then_some(()))
                .unwrap();
        }
    }
    let mut published: Vec<String> = (0..3)
        .map(|_| {
            let frame = watcher.expect(PacketKind::Publish);
            let message = sluice_loadtest::client::Message::read(Version::V5, &frame);
            watcher.put(&sluice_loadtest::packet::ack(
                PacketKind::Puback,
                message.packet_id,
            ));
            message.topic
        })
        .collect();
    published.sort();
    assert_eq!(published, ["wills/loud-0", "wills/loud-1", "wills/loud-2"]);
    watcher.ping();
}

fn m28_a_second_sigterm_ends_at_once(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let mut gate = Gate::alone("drain-twice", cell, &policy, &["--drain-time", "1h"]);
    let mut clients: Vec<Client> = (0..10)
        .map(|number| {
            Client::open(
                gate.listener("main"),
                Version::V5,
                &format!("twice-{number}"),
            )
        })
        .collect();
    gate.dataplane.running().signal(Signal::TERM).unwrap();
    until("readiness is false", || {
        let answer = gate.dataplane.get("/readyz").ok()?;
        (answer.status == 503).then_some(())
    });
    assert_eq!(gate.dataplane.get("/livez").unwrap().status, 200);
    gate.dataplane.running().signal(Signal::TERM).unwrap();
    let status = gate.dataplane.running_mut().wait_exit().unwrap();
    assert!(
        status.code() != Some(0),
        "cut short is not drained: {status}"
    );
    for client in &mut clients {
        while client.recv().is_ok() {}
    }
}

/// The connection is ended without a session; what exactly is said first is the limit's own business.
fn is_refused(mut client: Client, connect: &Connect) {
    let _ = client.send(&connect.bytes());
    match client.recv() {
        Ok(frame) => {
            assert!(frame.is(PacketKind::Connack), "{frame:?}");
            assert_ne!(frame.body()[1], 0, "a session beyond the limit was opened");
            client.expect_end();
        }
        Err(ended) => assert!(matches!(ended, Ended::Closed | Ended::Reset), "{ended}"),
    }
}

fn m29_the_connection_after_the_last_is_refused_and_a_slot_comes_free(cell: Cell) {
    const LIMIT: usize = 5;
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests }, limits: { connections_max: 5 } }
  - { name: other, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let gate = Gate::alone("limit", cell, &policy, &[]);
    let gate = gate.visit();
    for version in VERSIONS {
        let mut clients: Vec<Client> = (0..LIMIT)
            .map(|number| Client::open(gate.listener("main"), version, &format!("m29-{number}")))
            .collect();
        for _ in 0..4 {
            let client = Client::start(gate.listener("main"), version);
            is_refused(client, &Connect::new(version, "m29-too-many"));
        }
        // Another listener has room, and those inside stay.
        Client::open(gate.listener("other"), version, "m29-other").ping();
        for client in &mut clients {
            client.ping();
        }
        // Silent connections count as well, and give their places back.
        drop(clients.split_off(LIMIT - 2));
        let mut late = reopen(&gate, version, "m29-late-1");
        late.ping();
        let client = reopen(&gate, version, "m29-late-2");
        client.reset().unwrap();
        reopen(&gate, version, "m29-late-3").ping();
        drop(late);
        drop(clients);
        gate.dataplane
            .wait_metric("sluice_connections", &[("listener", "main")], |now| {
                now == 0.0
            });
    }
    let metrics = gate.dataplane.metrics().unwrap();
    let refused = metrics.sum("sluice_connections_refused_total", &[]);
    assert!(
        refused >= Some(12.0),
        "refusals counted: {refused:?}\n{}",
        metrics.text()
    );
}

/// A slot comes free when the proxy has seen the end of another connection, which nobody tells us.
fn reopen(gate: &Visit<'_>, version: Version, id: &str) -> Client {
    until("a slot is free", || {
        let mut client = Client::start(gate.listener("main"), version);
        client.send(&Connect::new(version, id).bytes()).ok()?;
        let frame = client.recv().ok()?;
        (frame.is(PacketKind::Connack) && frame.body()[1] == 0).then_some(client)
    })
}

fn m29_connections_of_one_address_are_limited(cell: Cell) {
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests }, limits: { connections_per_address_max: 2 } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let gate = Gate::alone("address-limit", cell, &policy, &[]);
    let gate = gate.visit();
    let Address::Tcp(address) = gate.listener("main") else {
        panic!("listeners are TCP");
    };
    let from = |last: u8| {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        Client::dial_from(source, address, Version::V5).unwrap()
    };
    let mut kept = Vec::new();
    for last in [2, 3] {
        for number in 0..2 {
            let mut client = from(last);
            let id = format!("m29-address-{last}-{number}");
            assert_eq!(client.connect(&Connect::new(Version::V5, &id)), 0);
            kept.push(client);
        }
        is_refused(from(last), &Connect::new(Version::V5, "m29-address-more"));
    }
    for client in &mut kept {
        client.ping();
    }
}

fn s20_abrupt_ends_leave_nothing(cell: Cell) {
    /// Within the descriptor limit of an ordinary shell (1,024) for each of the three processes.
    const CLIENTS: usize = 300;
    const WAVES: usize = 5;
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let gate = Gate::alone("waves", cell, &policy, &[]);
    let gate = gate.visit();
    let address = gate.listener("main");
    let counts_are = |is_right: fn(f64) -> bool| {
        for name in [
            "sluice_connections_open",
            "sluice_sessions",
            "sluice_upstream_connections",
        ] {
            gate.dataplane.wait_metric(name, &[], is_right);
        }
    };
    let is_empty = || counts_are(|now| now == 0.0);
    let mut first = Client::open(address.clone(), Version::V5, "s20-first");
    first.ping();
    counts_are(|now| now == 1.0); // a count that is missing would be taken for 0
    drop(first);
    is_empty();
    let before = gate.dataplane.descriptor_count().unwrap();
    for wave in 0..WAVES {
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|number| {
                let version = VERSIONS[number % 3];
                let mut client = Client::start(address.clone(), version);
                let will = Will::new("s20/wills", "x").qos(1);
                let connect = Connect::new(version, &format!("s20-{number}")).will(will);
                // Some leave before CONNECT, some in the middle of it, some before the answer.
                match number % 10 {
                    0 => {}
                    1 => client.put(&connect.bytes()[..9]),
                    2 => client.put(&connect.bytes()),
                    _ => assert_eq!(client.connect(&connect), 0),
                }
                client
            })
            .collect();
        for (number, client) in clients.iter_mut().enumerate() {
            if number % 10 > 2 {
                client.subscribe("s20/#", 2);
                let publish = Publish::new(client.version(), "s20/x", vec![0; 2_000]).qos(2, 1);
                // Whole, cut in the head, cut in the payload.
                let cut = [usize::MAX, 5, 700][number % 3];
                let bytes = publish.bytes();
                client.put(&bytes[..cut.min(bytes.len())]);
            }
        }
        for (number, client) in clients.into_iter().enumerate() {
            if (number + wave) % 2 == 0 {
                client.reset().unwrap();
            }
        }
        is_empty();
    }
    let after = until("no descriptor is left behind", || {
        let now = gate.dataplane.descriptor_count().ok()?;
        (now <= before).then_some(now)
    });
    assert!(after <= before);
    Client::open(address, Version::V5, "s20-last").ping();
}

fn secrets_and_payloads_are_never_logged(cell: Cell) {
    let policy = r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
users:
  - { name: alice, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: data, actions: [publish, subscribe], topics: ["data/#"], decision: allow }
"##;
    let args = ["--log-level", "trace", "--decision-log-sample", "1"];
    let mut gate = Gate::alone("no-secrets", cell, policy, &args);
    for version in VERSIONS {
        let will = Will::new("data/will", "will-payload-to-hide");
        let connect = Connect::new(version, "discreet")
            .user("alice", "builder")
            .will(will);
        let mut client = Client::open_with(gate.listener("main"), &connect);
        client.subscribe("data/x", 1);
        client.put(&Publish::new(version, "data/x", "payload-to-hide").bytes());
        client.expect_message("data/x", "payload-to-hide");
        client.put(&Publish::new(version, "secret/x", "payload-to-hide").bytes());
        client.put(&[0x00, 0x0f]);
        client.put(b"payload-to-hide");
        let wrong = Connect::new(version, "discreet-2").user("alice", "wrong-password-to-hide");
        let mut client = Client::start(gate.listener("main"), version);
        assert_ne!(client.connect(&wrong), 0);
    }
    gate.dataplane.replace_policy("users: [").unwrap();
    gate.dataplane
        .wait_metric("sluice_policy_rejected_total", &[], |now| now > 0.0);
    gate.dataplane.running().signal(Signal::TERM).unwrap();
    let (_, log) = gate.dataplane.running_mut().output().unwrap();
    assert!(log.contains("admin server"), "the log was not read");
    for secret in ["to-hide", "builder", "Vhupu"] {
        assert!(!log.contains(secret), "{secret:?} is in the log:\n{log}");
    }
}

fn a_latency_budget_loses_nothing(cell: Cell) {
    // The ring may wait for more completions; whatever it waits for, everything arrives, and in order.
    let policy = document(
        r##"
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests }, limits: { latency_budget: 1ms } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
"##,
    );
    let gate = Gate::alone("budget", cell, &policy, &[]);
    let gate = gate.visit();
    for version in VERSIONS {
        let mut subscriber = Client::open(gate.listener("main"), version, "budget-sub");
        subscriber.subscribe("budget/x", 2);
        let mut publisher = Client::open(gate.listener("main"), version, "budget-pub");
        for round in 0..50u16 {
            publisher.publish("budget/x", &format!("{round}-0"));
            publisher.publish_acked("budget/x", &format!("{round}-1"), 1);
            publisher.publish_exactly_once("budget/x", &format!("{round}-2"), 2);
            for qos in 0..=2 {
                subscriber.expect_message("budget/x", &format!("{round}-{qos}"));
            }
        }
    }
}
