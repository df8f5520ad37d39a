//! Who a rule is about, which of several rules decides, and what happens when none does: a table of sessions and answers.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use std::net::{IpAddr, Ipv4Addr};

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Gates, Visit};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::packet::Connect;
use sluice_loadtest::stream::Address;
use sluice_wire::mqtt::Version;

static GATES: Gates = Gates::new("golden", POLICY, &[]);

on_every_cell!(GATES;
    s9_rules_match_by_user_client_address_group_version_and_listener,
    s9_priority_then_order_then_place_decide,
    s10_patterns_are_anchored,
    variables_stand_for_exactly_one_level,
    client_ids_that_would_break_a_variable_are_refused,
    shadow_rules_are_counted_and_decide_nothing,
    default_allow_is_possible,
);

const POLICY: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: stub, anonymous: { group: guests } }
  - { name: side, address: "127.0.0.1:0", upstream: stub, anonymous: { group: guests } }
upstreams:
  - { name: stub, endpoints: ["@STUB@"] }
groups:
  - { name: guests }
  - { name: staff, users: [alice] }
users:
  - { name: alice, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
  - { name: admin, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
  - { name: notadmin, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
  - { name: administrator, password_hash: "$2b$05$Vhupu.h2xDtbdrs0jx2I3uyEDaCzW38m0vGRZA21DYEoHSwZq4xoO" }
rules:
  - { name: connects, actions: [connect], decision: allow }
  # Each topic below by/ is open to exactly one kind of session.
  - { name: by-user, who: { users: [alice] }, actions: [publish, subscribe], topics: ["by/user"], decision: allow }
  - { name: by-pattern, who: { user_patterns: ["admin"] }, actions: [publish, subscribe], topics: ["by/pattern"], decision: allow }
  - { name: by-client, who: { client_ids: [golden-one] }, actions: [publish, subscribe], topics: ["by/client"], decision: allow }
  - { name: by-client-pattern, who: { client_id_patterns: ["golden-[0-9]+"] }, actions: [publish, subscribe], topics: ["by/client-pattern"], decision: allow }
  - { name: by-address, who: { addresses: ["127.0.0.2"] }, actions: [publish, subscribe], topics: ["by/address"], decision: allow }
  - { name: by-network, who: { addresses: ["127.0.8.0/21", "10.0.0.0/8"] }, actions: [publish, subscribe], topics: ["by/network"], decision: allow }
  - { name: by-group, who: { groups: [staff] }, actions: [publish, subscribe], topics: ["by/group"], decision: allow }
  - { name: by-guests, who: { groups: [guests] }, actions: [publish, subscribe], topics: ["by/guests"], decision: allow }
  - { name: by-version, who: { versions: ["3.1.1"] }, actions: [publish, subscribe], topics: ["by/version"], decision: allow }
  - { name: by-listener, who: { listeners: [side] }, actions: [publish, subscribe], topics: ["by/listener"], decision: allow }
  - { name: by-both, who: { users: [alice], listeners: [side] }, actions: [publish, subscribe], topics: ["by/both"], decision: allow }
  - { name: off, enabled: false, actions: [publish, subscribe], topics: ["by/disabled"], decision: allow }
  # The first of several wins: by priority, then by order, then by place.
  - { name: tie-1, actions: [subscribe], topics: ["tie/place"], decision: allow }
  - { name: tie-2, actions: [subscribe], topics: ["tie/#"], decision: deny }
  - { name: tie-3, actions: [subscribe], topics: ["tie/late"], decision: allow }
  - { name: tie-4, order: -1, actions: [subscribe], topics: ["tie/early"], decision: allow }
  - { name: tie-5, priority: 1, order: 99, actions: [subscribe], topics: ["tie/high"], decision: allow }
  - { name: tie-6, priority: -1, order: -99, actions: [subscribe], topics: ["tie/low"], decision: allow }
  - { name: own-client, actions: [publish, subscribe], topics: ["own/${client_id}/+"], decision: allow }
  - { name: own-user, actions: [publish, subscribe], topics: ["user/${username}/#"], who: { groups: [staff] }, decision: allow }
  # Would decide otherwise, but only watches.
  - { name: watching-deny, mode: shadow, priority: 100, actions: [publish, subscribe], topics: ["by/guests"], decision: deny }
  - { name: watching-allow, mode: shadow, priority: 100, actions: [publish, subscribe], topics: ["shadow/only"], decision: allow }
  - { name: rest, who: { client_ids: [golden-default] }, actions: [publish, subscribe], topics: ["#"], decision: allow }
"##;

#[derive(Clone, Copy, Debug)]
struct Session {
    listener: &'static str,
    version: Version,
    user: &'static str,
    client_id: &'static str,
    source: [u8; 4],
}

/// An anonymous session of version 5 on the main listener.
const PLAIN: Session = Session {
    listener: "main",
    version: Version::V5,
    user: "",
    client_id: "golden",
    source: [127, 0, 0, 1],
};

fn open(gate: &Visit<'_>, session: Session) -> Client {
    let Address::Tcp(address) = gate.listener(session.listener) else {
        panic!("listeners are TCP");
    };
    let source = IpAddr::V4(Ipv4Addr::from(session.source));
    let mut client = Client::dial_from(source, address, session.version).unwrap();
    let mut connect = Connect::new(session.version, session.client_id);
    if !session.user.is_empty() {
        connect = connect.user(session.user, "builder");
    }
    assert_eq!(client.connect(&connect), 0);
    client
}

fn refusal(version: Version) -> u8 {
    if version == Version::V5 { 0x87 } else { 0x80 }
}

fn s9_rules_match_by_user_client_address_group_version_and_listener(gate: &Visit<'_>) {
    let all = [
        "by/user",
        "by/pattern",
        "by/client",
        "by/client-pattern",
        "by/address",
        "by/network",
        "by/group",
        "by/guests",
        "by/version",
        "by/listener",
        "by/both",
        "by/disabled",
        "by/nobody",
    ];
    #[rustfmt::skip]
    let table: &[(Session, &[&str])] = &[
        (PLAIN, &["by/guests"]),
        (Session { user: "alice", ..PLAIN }, &["by/user", "by/group"]),
        (Session { user: "admin", ..PLAIN }, &["by/pattern"]),
        (Session { client_id: "golden-one", ..PLAIN }, &["by/guests", "by/client"]),
        (Session { client_id: "golden-17", ..PLAIN }, &["by/guests", "by/client-pattern"]),
        (Session { client_id: "golden-17x", ..PLAIN }, &["by/guests"]),
        (Session { source: [127, 0, 0, 2], ..PLAIN }, &["by/guests", "by/address"]),
        (Session { source: [127, 0, 8, 0], ..PLAIN }, &["by/guests", "by/network"]),
        (Session { source: [127, 0, 15, 255], ..PLAIN }, &["by/guests", "by/network"]),
        (Session { source: [127, 0, 16, 0], ..PLAIN }, &["by/guests"]),
        (Session { version: Version::V311, ..PLAIN }, &["by/guests", "by/version"]),
        (Session { listener: "side", ..PLAIN }, &["by/guests", "by/listener"]),
        (Session { listener: "side", user: "alice", ..PLAIN }, &["by/user", "by/group", "by/listener", "by/both"]),
    ];
    for (session, allowed) in table {
        let mut client = open(gate, *session);
        for topic in all {
            let code = client.subscribe(topic, 0);
            let is_allowed = allowed.contains(&topic);
            let wanted = if is_allowed {
                0
            } else {
                refusal(session.version)
            };
            assert_eq!(code, wanted, "subscribe {topic}: {session:?}");
        }
        if session.version == Version::V5 {
            // A new session, which hears nothing of what it publishes.
            let mut client = open(gate, *session);
            for topic in all {
                let code = client.publish_acked(topic, "", 1);
                let is_allowed = allowed.contains(&topic);
                assert_eq!(code == 0, is_allowed, "publish {topic}: {session:?}");
            }
        }
    }
}

fn s9_priority_then_order_then_place_decide(gate: &Visit<'_>) {
    for version in [Version::V311, Version::V5] {
        let mut client = open(
            gate,
            Session {
                client_id: "golden-order",
                version,
                ..PLAIN
            },
        );
        for (filter, is_allowed) in [
            ("tie/place", true),
            ("tie/late", false),
            ("tie/early", true),
            ("tie/high", true),
            ("tie/low", false),
            ("tie/other", false),
        ] {
            let code = client.subscribe(filter, 0);
            assert_eq!(
                code,
                if is_allowed { 0 } else { refusal(version) },
                "{filter}"
            );
        }
    }
}

fn s10_patterns_are_anchored(gate: &Visit<'_>) {
    for (user, is_allowed) in [
        ("admin", true),
        ("notadmin", false),
        ("administrator", false),
    ] {
        let mut client = open(
            gate,
            Session {
                client_id: "golden-anchor",
                user,
                ..PLAIN
            },
        );
        let code = client.subscribe("by/pattern", 0);
        assert_eq!(code, if is_allowed { 0 } else { 0x87 }, "{user}");
    }
}

fn variables_stand_for_exactly_one_level(gate: &Visit<'_>) {
    let mut client = open(
        gate,
        Session {
            client_id: "golden-7",
            user: "alice",
            ..PLAIN
        },
    );
    for (filter, is_allowed) in [
        ("own/golden-7/x", true),
        ("own/golden-7/+", true),
        ("own/golden-7", false),
        ("own/golden-7/x/y", false),
        ("own/golden-8/x", false),
        ("own/+/x", false),
        ("own/${client_id}/x", false),
        ("user/alice", true),
        ("user/alice/x/y", true),
        ("user/admin/x", false),
    ] {
        let code = client.subscribe(filter, 0);
        assert_eq!(code, if is_allowed { 0 } else { 0x87 }, "{filter}");
    }
}

fn client_ids_that_would_break_a_variable_are_refused(gate: &Visit<'_>) {
    for version in [Version::V31, Version::V311, Version::V5] {
        for client_id in ["a/b", "+", "#", "golden/+"] {
            let mut client = Client::start(gate.listener("main"), version);
            let code = client.connect(&Connect::new(version, client_id));
            assert_eq!(
                code,
                if version == Version::V5 { 0x85 } else { 2 },
                "{client_id}"
            );
            client.expect_end();
        }
    }
}

fn shadow_rules_are_counted_and_decide_nothing(gate: &Visit<'_>) {
    let shadowed = [("action", "publish")];
    let metrics = gate.dataplane.metrics().unwrap();
    let before = metrics.sum("sluice_shadow_total", &shadowed).unwrap_or(0.0);
    let mut client = open(
        gate,
        Session {
            client_id: "golden-shadow",
            ..PLAIN
        },
    );
    assert_eq!(client.publish_acked("by/guests", "", 1), 0);
    assert_eq!(client.publish_acked("shadow/only", "", 2), 0x87);
    gate.dataplane
        .wait_metric("sluice_shadow_total", &shadowed, |now| now >= before + 2.0);
}

fn default_allow_is_possible(gate: &Visit<'_>) {
    // By a last rule for `#`, for one client; what begins with `$` still needs a word of its own.
    let mut client = open(
        gate,
        Session {
            client_id: "golden-default",
            ..PLAIN
        },
    );
    assert_eq!(client.subscribe("anything/at/all", 0), 0);
    assert_eq!(client.subscribe("$SYS/x", 0), 0x87);
}
