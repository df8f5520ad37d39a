//! Decisions by table.
#![allow(missing_docs)]

use std::net::IpAddr;

use sluice_policy::{Action, Decision, Denial, Generation, Refusal, Request, Vars, Who, compile};
use sluice_wire::mqtt::{QoS, Version};

const EXAMPLE: &str = include_str!("../../../deploy/examples/policy.yaml");

#[test]
fn the_example_says_what_its_readers_are_told() {
    let snapshot = compile(EXAMPLE, "policy.yaml", Generation(1), None)
        .unwrap_or_else(|errors| panic!("{errors}"));
    for (name, password) in [
        ("sensor-1", "sensor-1-secret"),
        ("dashboard", "dashboard-secret"),
        ("intruder", "intruder-secret"),
        ("device-1", "device-1-secret"),
        ("device-2", "device-2-secret"),
    ] {
        let user = snapshot.user(name).unwrap();
        assert!(user.verifier.verify(password.as_bytes()), "{name}");
    }
    let listener = snapshot.listener_by_name("mqtt").unwrap().id;
    let admit = |username, client_id| {
        snapshot.admit(&Who {
            listener,
            address: IpAddr::from([127, 0, 0, 1]),
            version: Version::V5,
            client_id,
            username,
        })
    };
    assert_eq!(admit(None, "x").unwrap_err(), Refusal::Credentials);
    assert_eq!(
        admit(Some("device-1"), "device-2").unwrap_err(),
        Refusal::ClientIdentifier
    );
    let denied = Decision::Deny(Denial::NotAuthorized);
    let publishes = [
        (
            "sensor-1",
            "c",
            "sensors/sensor-1/temperature",
            Decision::Allow,
        ),
        ("sensor-1", "c", "sensors/sensor-2/temperature", denied),
        ("dashboard", "c", "sensors/sensor-1/temperature", denied),
        ("intruder", "c", "sensors/intruder/temperature", denied),
        (
            "device-1",
            "device-1",
            "devices/device-1/up",
            Decision::Allow,
        ),
        ("device-1", "device-1", "devices/device-2/up", denied),
    ];
    for (username, client_id, topic, expected) in publishes {
        let classes = admit(Some(username), client_id).unwrap().classes;
        let request = Request {
            action: Action::Publish,
            topic,
            qos: QoS::AtLeastOnce,
            retain: false,
            payload_bytes: 1,
        };
        let verdict = snapshot.verdict(
            &classes,
            &Vars {
                client_id,
                username,
            },
            &request,
        );
        assert_eq!(verdict.decision, expected, "{username} {topic}");
    }
    let filters = [
        ("sensor-1", "commands/sensor-1/#", Decision::Allow),
        ("sensor-1", "commands/#", denied),
        ("sensor-1", "sensors/sensor-1/#", denied),
        ("dashboard", "sensors/#", Decision::Allow),
        ("dashboard", "sensors/+/temperature", Decision::Allow),
        ("dashboard", "#", denied),
        ("intruder", "sensors/#", denied),
    ];
    for (username, filter, expected) in filters {
        let classes = admit(Some(username), "c").unwrap().classes;
        let verdict = snapshot.subscribe(
            &classes,
            &Vars {
                client_id: "c",
                username,
            },
            filter,
            QoS::AtMostOnce,
            false,
        );
        assert_eq!(verdict.decision, expected, "{username} {filter}");
    }
}
