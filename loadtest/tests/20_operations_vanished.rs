//! Machines that vanish: a client with keep alive 0, and a broker, whose cable is pulled. TCP keep-alive finds out.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::net::SocketAddr;

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Cell, FAR, Far, Gate, NEAR, is_in_own_network};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::{Connect, VERSIONS, Will};
use sluice_loadtest::patience::until;
use sluice_loadtest::stub::Stub;
use sluice_wire::mqtt::Version;

on_every_cell_alone!(
    a_client_whose_machine_vanished_is_gone_and_its_will_published,
    a_broker_whose_machine_vanished_ends_its_sessions,
);

/// A listener that the far machine reaches, and one for clients here.
fn policy(endpoint: &str) -> String {
    format!(
        r##"
listeners:
  - name: near
    address: "{NEAR}:0"
    upstream: broker
    anonymous: {{ group: guests }}
    limits: {{ tcp_keep_alive: 1s, write_stall_timeout: 1s }}
upstreams:
  - {{ name: broker, endpoints: ["{endpoint}"], tcp_keep_alive: 1s }}
groups:
  - {{ name: guests }}
rules:
  - {{ name: connects, actions: [connect], decision: allow }}
  - {{ name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }}
"##
    )
}

/// The name by which the test runner knows this one.
fn name(scenario: &str, cell: Cell) -> String {
    format!("{scenario}::{}_{}", cell.engine.name(), cell.shards)
}

fn connections(gate: &Gate) -> Option<f64> {
    gate.dataplane
        .metrics()
        .ok()?
        .sum("sluice_connections", &[])
}

fn a_client_whose_machine_vanished_is_gone_and_its_will_published(cell: Cell) {
    let test = "a_client_whose_machine_vanished_is_gone_and_its_will_published";
    if !is_in_own_network(&name(test, cell)) {
        return;
    }
    let far = Far::start();
    let gate = Gate::alone("vanished-client", cell, &policy("@MOSQUITTO@"), &[]);
    let gate = gate.visit();
    let mut watcher = Client::open(gate.mosquitto.address(), Version::V5, "watcher");
    watcher.subscribe("vanished", 1);
    let mut stays = Client::open(gate.listener("near"), Version::V311, "stays");
    let listener = gate.listener("near");
    let open = |version| {
        let will = Will::new("vanished", "gone").qos(1);
        let id = format!("vanishing-{}", version as u8);
        let connect = Connect::new(version, &id).keep_alive(0).will(will);
        Client::open_with(listener.clone(), &connect)
    };
    let vanishing = far.there(|| VERSIONS.map(open));
    assert_eq!(connections(&gate), Some(4.0));
    far.vanish();
    for _ in &vanishing {
        watcher.expect_message("vanished", "gone");
    }
    until("only the client that is there is connected", || {
        (connections(&gate) == Some(1.0)).then_some(())
    });
    stays.ping();
    // Their sockets lived until here.
    drop(vanishing);
}

fn a_broker_whose_machine_vanished_ends_its_sessions(cell: Cell) {
    let test = "a_broker_whose_machine_vanished_ends_its_sessions";
    if !is_in_own_network(&name(test, cell)) {
        return;
    }
    let far = Far::start();
    let stub = Stub::new();
    let listening = far
        .there(|| stub.listen(SocketAddr::from((FAR, 0))))
        .unwrap();
    let endpoint = format!("tcp://{}", listening.address());
    let gate = Gate::alone("vanished-broker", cell, &policy(&endpoint), &[]);
    let gate = gate.visit();
    let mut clients = VERSIONS.map(|version| {
        let id = format!("left-{}", version as u8);
        let connect = Connect::new(version, &id).keep_alive(0);
        Client::open_with(gate.listener("near"), &connect)
    });
    assert_eq!(stub.accepted_count(), 3);
    far.vanish();
    for client in &mut clients {
        client.expect_disconnect(0x80);
    }
    until("none is connected", || {
        (connections(&gate) == Some(0.0)).then_some(())
    });
}
