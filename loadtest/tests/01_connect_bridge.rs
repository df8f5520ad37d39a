//! A real Mosquitto that bridges to another one through the data plane.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use sluice_loadtest::client::Client;
use sluice_loadtest::harness::{Gates, Mosquitto, Visit, scratch};
use sluice_loadtest::on_every_cell;
use sluice_loadtest::stream::Address;
use sluice_wire::mqtt::Version;

static GATES: Gates = Gates::new("bridge", POLICY, &[]);

on_every_cell!(GATES; a_mosquitto_bridge_passes_in_every_version_and_is_no_loop);

const POLICY: &str = r##"
default: deny
listeners:
  - { name: main, address: "127.0.0.1:0", upstream: broker, anonymous: { group: bridges } }
upstreams:
  - { name: broker, endpoints: ["@MOSQUITTO@"] }
groups:
  - name: bridges
rules:
  - { name: connect, actions: [connect], decision: allow }
  - { name: shared, actions: [publish, subscribe], topics: ["shared/#"], decision: allow }
"##;

/// By default a bridge says in its protocol level that it is one. The broker that knows it sends nothing back to where it came
/// from; a bridge that is refused for its level would come again without, a while later.
fn a_mosquitto_bridge_passes_in_every_version_and_is_no_loop(visit: &Visit<'_>) {
    let Address::Tcp(listener) = visit.listener("main") else {
        panic!("the listener is TCP");
    };
    for version in ["mqttv31", "mqttv311", "mqttv50"] {
        let folder = scratch(&format!("bridge-{version}-{}", listener.port())).unwrap();
        let config = format!(
            "connection out\naddress {listener}\ntopic shared/# both 1\nbridge_protocol_version {version}\n\
             remote_clientid bridge-{version}\nnotifications false\nrestart_timeout 1"
        );
        let before = connects(visit);
        let remote = Mosquitto::start_with(&folder, None, &config).unwrap();
        let mut here = Client::open(visit.mosquitto.address(), Version::V311, "here");
        let mut there = Client::open(remote.address(), Version::V311, "there");
        here.subscribe("shared/up", 1);
        there.subscribe("shared/down", 1);
        // The bridge has subscribed when what goes down arrives; a retained message waits for that.
        let retained = sluice_loadtest::packet::Publish::new(Version::V311, "shared/down", version)
            .qos(1, 1)
            .retain();
        here.put(&retained.bytes());
        here.expect(sluice_wire::mqtt::PacketKind::Puback);
        there.expect_message("shared/down", version);
        assert_eq!(there.publish_acked("shared/up", version, 2), 0);
        here.expect_message("shared/up", version);
        // Nothing comes twice, on either side.
        assert_eq!(here.publish_acked("shared/down", "again", 3), 0);
        there.expect_message("shared/down", "again");
        assert_eq!(there.publish_acked("shared/up", "again", 4), 0);
        here.expect_message("shared/up", "again");
        there.ping();
        here.ping();
        assert_eq!(
            connects(visit),
            before + 1.0,
            "{version}: let in at its first attempt"
        );
        let forget =
            sluice_loadtest::packet::Publish::new(Version::V311, "shared/down", "").retain();
        here.put(&forget.bytes());
        here.ping();
    }
}

fn connects(visit: &Visit<'_>) -> f64 {
    let metrics = visit.dataplane.metrics().unwrap();
    metrics
        .sum("sluice_connect_received_total", &[])
        .unwrap_or(0.0)
}
