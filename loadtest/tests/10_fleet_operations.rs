//! What operators do to a node through the control plane: list its sessions, end some, take it out of service and back.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::collections::BTreeMap;

use serde_json::Value;
use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Cell, Fleet, NODE};
use sluice_loadtest::on_every_cell_alone;
use sluice_loadtest::packet::{Connect, VERSIONS};
use sluice_loadtest::patience::until;
use sluice_wire::mqtt::Version;

on_every_cell_alone!(
    sessions_are_listed_and_kicked_by_client_id_and_by_user,
    a_node_is_drained_and_taken_back,
);

// The password is `builder`.
const POLICY: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: guests } }
upstreams:
  - { name: broker, endpoints: ["@STUB@"] }
groups:
  - { name: guests }
users:
  - { name: alice, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
  - { name: bob, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
rules:
  - { name: connects, actions: [connect], decision: allow }
  - { name: all, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##;

/// Who has a session: client id, user.
type Who = (String, Option<String>);

fn listed(fleet: &Fleet, filter: &[&str]) -> Vec<Value> {
    let args = [&["sessions"], filter].concat();
    let answer = fleet.control.ctl_json(&args);
    answer["sessions"].as_array().unwrap().clone()
}

fn who(session: &Value) -> Who {
    let user = session["username"].as_str().map(str::to_owned);
    (session["client_id"].as_str().unwrap().to_owned(), user)
}

fn sessions_are_listed_and_kicked_by_client_id_and_by_user(cell: Cell) {
    let fleet = Fleet::alone("kick", cell, &[]);
    fleet.put(POLICY);
    let mut clients: BTreeMap<Who, Client> = BTreeMap::new();
    for n in 0..12 {
        let version = VERSIONS[n % VERSIONS.len()];
        let id = format!("c{n}");
        let user = [Some("alice"), Some("bob"), None][n / 4];
        let connect = Connect::new(version, &id);
        let connect = match user {
            Some(user) => connect.user(user, "builder"),
            None => connect,
        };
        let client = Client::open_with(fleet.listener("main"), &connect);
        clients.insert((id, user.map(str::to_owned)), client);
    }
    let expect = |clients: &BTreeMap<Who, Client>| {
        let expected: Vec<Who> = clients.keys().cloned().collect();
        until("the list has exactly the open sessions", || {
            let mut found: Vec<Who> = listed(&fleet, &[]).iter().map(who).collect();
            found.sort();
            (found == expected).then_some(())
        });
    };
    expect(&clients);
    for session in listed(&fleet, &[]) {
        assert_eq!(session["node"], NODE, "{session:#}");
        assert_eq!(session["listener"], "main", "{session:#}");
        assert_eq!(session["peer"], "127.0.0.1", "{session:#}");
        assert!(session["shard"].as_u64().unwrap() < u64::from(cell.shards));
    }
    let bobs = listed(&fleet, &["--user", "bob"]);
    assert_eq!(bobs.len(), 4, "{bobs:#?}");
    let one = listed(&fleet, &["--client-id", "c2", "--node", NODE]);
    assert_eq!(one.len(), 1, "{one:#?}");
    assert_eq!(listed(&fleet, &["--limit", "5"]).len(), 5);

    let kick = |args: &[&str]| {
        let answer = fleet.control.ctl_json(&[&["kick"], args].concat());
        let answers = answer["answers"].as_array().unwrap();
        assert_eq!(answers.len(), 1, "{answer:#}");
        assert_eq!(answers[0]["node"], NODE);
        answers[0]["sessions"].as_u64().unwrap()
    };
    assert_eq!(kick(&["--client-id", "c2"]), 1);
    let mut kicked = clients
        .remove(&("c2".to_owned(), Some("alice".to_owned())))
        .unwrap();
    kicked.expect_disconnect(0x98);
    expect(&clients);
    assert_eq!(kick(&["--user", "bob", "--node", NODE]), 4);
    for n in 4..8 {
        let key = (format!("c{n}"), Some("bob".to_owned()));
        clients.remove(&key).unwrap().expect_disconnect(0x98);
    }
    expect(&clients);
    // Nobody of that name: done all the same. Those not meant have noticed nothing.
    assert_eq!(kick(&["--client-id", "nobody"]), 0);
    for client in clients.values_mut() {
        client.ping();
    }
    // A kick is no ban.
    let connect = Connect::new(Version::V5, "c2").user("alice", "builder");
    let mut back = Client::open_with(fleet.listener("main"), &connect);
    back.ping();
    // Unless it is asked for: the client hears why, and others of that user do not come in either.
    assert_eq!(kick(&["--client-id", "c2", "--keep-out", "1h"]), 1);
    back.expect_disconnect(0x98);
    assert_eq!(kick(&["--user", "bob", "--keep-out", "1h"]), 0);
    let is_let_in = |id: &str, user: &str| {
        let connect = Connect::new(Version::V5, id).user(user, "builder");
        let mut client = Client::start(fleet.listener("main"), Version::V5);
        client.connect(&connect)
    };
    assert_eq!(is_let_in("c2", "alice"), 0x8a);
    assert_eq!(is_let_in("any", "bob"), 0x8a);
    assert_eq!(is_let_in("any", "alice"), 0);
    let page = fleet.dataplane.get("/kept-out").unwrap().body;
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["kept_out"][0]["client_id"], "c2", "{page:#}");
    assert_eq!(page["kept_out"][1]["username"], "bob", "{page:#}");
    assert_eq!(kick(&["--client-id", "c2", "--keep-out", "0s"]), 0);
    assert_eq!(is_let_in("c2", "alice"), 0);
    let unknown = fleet
        .control
        .ctl_code(6, &["kick", "--user", "bob", "--node", "no-such-node"]);
    assert_eq!(unknown["error"]["code"], "not_found", "{unknown:#}");
}

fn a_node_is_drained_and_taken_back(cell: Cell) {
    let fleet = Fleet::alone("drain", cell, &[]);
    fleet.put(POLICY);
    let address = fleet.listener("main");
    let mut clients: Vec<Client> = (0..6)
        .map(|n| {
            let version = VERSIONS[n % VERSIONS.len()];
            Client::open(address.clone(), version, &format!("c{n}"))
        })
        .collect();
    fleet.control.ctl_json(&["drain", NODE, "--within", "0s"]);
    for client in &mut clients {
        client.expect_disconnect(0x8b);
    }
    until("the node says that it drains", || {
        (fleet.control.node(NODE)["is_draining"] == true).then_some(())
    });
    until("the node is not ready", || {
        let answer = fleet.dataplane.get("/readyz").ok()?;
        (answer.status == 503).then_some(())
    });
    // Nobody comes in: the port does not answer, or the connection ends without an answer to CONNECT.
    if let Ok(mut late) = Client::dial(address, Version::V5) {
        let _ = late.send(&Connect::new(Version::V5, "late").bytes());
        let answer = late.recv();
        assert!(
            !matches!(&answer, Ok(frame) if frame.body().get(1) == Some(&0)),
            "{answer:?}"
        );
    }
    // It is still a member of the fleet, and takes policy.
    fleet.put(&POLICY.replace("name: all,", "name: everything,"));

    fleet.control.ctl_json(&["drain", NODE, "--undo"]);
    until("the node does not drain any more", || {
        (fleet.control.node(NODE)["is_draining"] == false).then_some(())
    });
    for client in &clients {
        let mut again = Client::open(fleet.listener("main"), client.version(), "again");
        again.ping();
    }
    until("the node is ready", || {
        let answer = fleet.dataplane.get("/readyz").ok()?;
        (answer.status == 200).then_some(())
    });
}
