//! Brokers that are there and do not answer: clients get in at the other one, operators read why, and a broker that wakes up
//! late takes nothing over.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use rustix::process::Signal;
use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Cell, Gate, Mosquitto, scratch};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::{Connect, VERSIONS, Will};
use sluice_loadtest::patience::until;
use sluice_wire::mqtt::Version;

on_every_cell_alone!(
    m27_with_one_broker_stopped_every_login_succeeds,
    m27_a_broker_that_wakes_up_late_takes_nothing_over,
);

/// Two brokers that do not know of each other: the one at this port, and the harness's own.
fn pair(port: u16, balance: &str) -> String {
    format!(
        r##"
listeners:
  - {{ name: main, address: "127.0.0.1:0", upstream: pair, anonymous: {{ group: guests }} }}
upstreams:
  - name: pair
    endpoints: ["tcp://127.0.0.1:{port}", "@MOSQUITTO@"]
    balance: {balance}
    dial: {{ connack_timeout: 200ms }}
    breaker: {{ failures: 3, open: 1h }}
groups:
  - {{ name: guests }}
rules:
  - {{ name: connects, actions: [connect], decision: allow }}
  - {{ name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }}
"##
    )
}

fn m27_with_one_broker_stopped_every_login_succeeds(cell: Cell) {
    for balance in ["round_robin", "least_connections", "client_id"] {
        let folder = scratch(&format!("stopped-{balance}-{cell}")).unwrap();
        let stopped = Mosquitto::start(&folder).unwrap();
        let policy = pair(stopped.port(), balance);
        let gate = Gate::alone("stopped", cell, &policy, &["--unready-without-upstream"]);
        let gate = gate.visit();
        stopped.running().signal(Signal::STOP).unwrap();
        let mut clients = Vec::new();
        for number in 0..20 {
            let version = VERSIONS[number % 3];
            let id = format!("m27-stopped-{number}");
            clients.push(Client::open(gate.listener("main"), version, &id));
        }
        for client in &mut clients {
            client.ping();
        }
        let endpoint = format!("tcp://127.0.0.1:{}", stopped.port());
        until("what is down is said", || {
            let upstreams = gate.dataplane.get("/upstreams").ok()?.body;
            let is_said = upstreams.contains(&endpoint) && upstreams.contains("no_connack");
            is_said.then_some(())
        });
        if balance != "least_connections" {
            let line = |line: &str| {
                let is_it = line.contains("endpoint is left alone") && line.contains(&endpoint);
                is_it.then(|| line.contains("no CONNACK"))
            };
            let running = gate.dataplane.running();
            assert!(running.wait_log(0, "the endpoint", line).unwrap());
        }
        // One endpoint works, so the node is ready and not even degraded.
        let ready = gate.dataplane.get("/readyz").unwrap();
        assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));
    }
}

/// So many that some belong to either broker, whatever their ports.
const NAMES: usize = 16;

fn m27_a_broker_that_wakes_up_late_takes_nothing_over(cell: Cell) {
    let folder = scratch(&format!("late-broker-{cell}")).unwrap();
    let late = Mosquitto::start(&folder).unwrap();
    let mut watcher = Client::open(late.address(), Version::V5, "watcher");
    watcher.subscribe("m27/#", 1);
    // Whose session a broker that wakes up would take over: the same name, where the sessions are shared.
    let names: Vec<String> = (0..NAMES)
        .map(|number| format!("m27-late-{number}"))
        .collect();
    let open_there = |name: &String| Client::open(late.address(), Version::V311, name);
    let mut live: Vec<Client> = names.iter().map(open_there).collect();
    let policy = pair(late.port(), "client_id").replace("failures: 3", "failures: 1000");
    let gate = Gate::alone("late", cell, &policy, &[]);
    let gate = gate.visit();
    let taken = || {
        let metrics = gate.dataplane.metrics().unwrap();
        let taken = [("result", "taken")];
        metrics.sum("sluice_connect_second_chances_total", &taken)
    };
    late.running().signal(Signal::STOP).unwrap();
    let mut clients = Vec::new();
    for name in &names {
        clients.push(Client::open(gate.listener("main"), Version::V311, name));
    }
    let plain = taken().unwrap();
    assert!(
        plain >= 1.0,
        "none of {NAMES} names belongs to the stopped broker"
    );
    for name in &names {
        let will = Will::new("m27/will", "gone").qos(1);
        let connect = Connect::new(Version::V5, &format!("will-of-{name}")).will(will);
        clients.push(Client::open_with(gate.listener("main"), &connect));
    }
    assert!(taken().unwrap() > plain, "nor does one with a will");
    late.running().signal(Signal::CONT).unwrap();
    // It serves connections in the order in which they came.
    let mut after = Client::open(late.address(), Version::V5, "after");
    after.publish("m27/after", "all was read");
    watcher.expect_message("m27/after", "all was read");
    for client in live.iter_mut().chain(&mut clients) {
        client.ping();
    }
}
