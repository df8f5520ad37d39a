//! `make run`, without staying up: what it shows, and that nothing is left running however it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

use rustix::process::Signal;
use sluice_loadtest::harness::{Program, Running, sibling};
use sluice_loadtest::patience::until;

fn quickstart(args: &[&str]) -> Running {
    Program::new("sluice-quickstart", sibling("sluice-quickstart").unwrap())
        .arg("--free-ports")
        .args(args)
        .start()
        .unwrap()
}

/// The process ids it printed.
fn children(output: &str) -> Vec<u32> {
    output
        .split("(pid ")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap().parse().unwrap())
        .collect()
}

fn all_gone(children: &[u32]) {
    for id in children {
        until(&format!("process {id} is gone"), || {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
            // What nobody has reaped yet in a container without an init has ended all the same.
            let has_ended = stat.map_or(true, |stat| stat.contains(") Z "));
            has_ended.then_some(())
        });
    }
}

#[test]
fn shows_an_allowed_and_a_denied_device_with_either_broker() {
    for broker in ["mosquitto", "stub"] {
        let (status, output) = quickstart(&["--once", "--broker", broker])
            .output()
            .unwrap();
        assert!(status.success(), "{broker}: {status}\n{output}");
        for sentence in [
            "dashboard subscribes to sensors/#: SUBACK 0x01 (granted QoS 1)",
            "apply -f",
            "sensor-1 publishes 21.5 to sensors/sensor-1/temperature: PUBACK 0x00 (success)",
            "dashboard receives 21.5 on sensors/sensor-1/temperature",
            "intruder publishes 99.9 to sensors/sensor-1/temperature: PUBACK 0x87 (not authorized)",
            "intruder subscribes to sensors/#: SUBACK 0x87 (not authorized)",
            "CONNACK 0x86 (bad user name or password)",
            // The release and the rollback, on the sensor's one session.
            "sensor-1 publishes 22.0 to sensors/sensor-1/temperature: PUBACK 0x87 (not authorized)",
            "rollback --wait",
            "sensor-1 publishes 22.5 to sensors/sensor-1/temperature: PUBACK 0x00 (success)",
            "dashboard receives 22.5 on sensors/sensor-1/temperature",
            "sluicectl explain",
            "SLUICE_TOKEN_FILE=",
            "sluicectl nodes",
            "sluicectl history",
            "mosquitto_pub",
            "/metrics",
            "nothing is left running",
        ] {
            assert!(
                output.contains(sentence),
                "{sentence:?} is missing:\n{output}"
            );
        }
        assert_eq!(
            output.matches("sensor-1 connects: CONNACK 0x00").count(),
            1,
            "the session stays open:\n{output}"
        );
        let children = children(&output);
        assert_eq!(children.len(), 3);
        all_gone(&children);
    }
}

#[test]
fn stays_up_until_told_and_leaves_nothing_even_when_killed() {
    for (signal, is_clean) in [
        (Signal::TERM, true),
        (Signal::INT, true),
        (Signal::KILL, false),
    ] {
        let mut running = quickstart(&[]);
        let up = |line: &str| line.contains("Up until").then_some(());
        running.wait_log(0, "being up", up).unwrap();
        running.signal(signal).unwrap();
        let (status, output) = running.output().unwrap();
        assert_eq!(status.success(), is_clean, "{signal:?}: {status}\n{output}");
        let children = children(&output);
        assert_eq!(children.len(), 3);
        all_gone(&children);
    }
}
