//! Every scenario of the load generator, briefly and straight against its own sink, those about policies with real
//! processes: counts only, nothing about time.

// A helper that cannot set up its case ends the test, as in a test function itself.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sluice_loadtest::load::frame::Version;
use sluice_loadtest::load::plan::{Plan, Scenario};
use sluice_loadtest::load::scenario;
use sluice_loadtest::load::sink::Sink;
use sluice_loadtest::load::target::Target;

struct Case {
    numbers: BTreeMap<String, f64>,
    primary: String,
}

impl Case {
    /// A number of the report; -1 when it is not there, so that no assertion passes by absence.
    fn number(&self, name: &str) -> f64 {
        self.numbers.get(name).copied().unwrap_or(-1.0)
    }
}

fn run(scenario: Scenario, unix: bool, change: impl FnOnce(&mut Plan)) -> Case {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let sink = Sink::start(any, None).unwrap();
    let target = if unix {
        Target::Unix(sink.unix().to_path_buf())
    } else {
        Target::Tcp(sink.tcp())
    };
    let mut plan = Plan {
        connections: 10,
        rate: 400,
        duration: Duration::from_millis(500),
        warm_up: Duration::from_millis(100),
        ..Plan::new(scenario, target)
    };
    change(&mut plan);
    let report = scenario::run(&plan, Some(&sink)).unwrap();
    Case {
        numbers: report.numbers(),
        primary: report.primary,
    }
}

#[test]
fn devices_go_through_several_topics_each_in_its_own_order() {
    for scenario in [Scenario::Publish, Scenario::FanIn] {
        let case = run(scenario, false, |plan| plan.topics_per_device = 3);
        assert_eq!(case.number("at_broker"), 200.0);
        assert_eq!(case.number("out_of_order"), 0.0);
        // The one subscriber of fan-in asks for the further level, and gets everything.
        if scenario == Scenario::FanIn {
            assert_eq!(case.number("delivered"), 200.0);
        }
    }
}

#[test]
fn publish_arrives_once_and_in_order() {
    for unix in [false, true] {
        for version in [Version::V31, Version::V311, Version::V5] {
            let case = run(Scenario::Publish, unix, |plan| plan.version = version);
            assert_eq!(case.number("connected"), 10.0);
            // 400 a second for half a second: the schedule decides, not the machine.
            assert_eq!(case.number("sent"), 200.0);
            assert_eq!(case.number("at_broker"), 200.0);
            assert_eq!(case.number("to_broker.p50"), case.number("p50"));
            for none in [
                "lost",
                "unsent",
                "broken",
                "out_of_order",
                "connect_failures",
            ] {
                assert_eq!(case.number(none), 0.0, "{none}, {version:?}, unix {unix}");
            }
        }
    }
}

#[test]
fn bursts_keep_the_rate() {
    let case = run(Scenario::Publish, false, |plan| plan.burst = 20);
    assert_eq!(case.number("sent"), 200.0);
    assert_eq!(case.number("lost"), 0.0);
    assert_eq!(case.number("out_of_order"), 0.0);
}

#[test]
fn every_qos_is_acknowledged() {
    for qos in [1, 2] {
        let case = run(Scenario::Publish, false, |plan| plan.qos = qos);
        assert_eq!(case.number("acked"), 200.0, "QoS {qos}");
        assert_eq!(case.number("unacked"), 0.0);
        assert_eq!(case.number("lost"), 0.0);
        assert!(case.number("ack.p50") > 0.0);
    }
}

#[test]
fn fan_in_reaches_the_one_subscriber() {
    let case = run(Scenario::FanIn, false, |_| {});
    assert_eq!(case.number("connected"), 11.0);
    assert_eq!(case.number("delivered"), 200.0);
    assert_eq!(case.number("undelivered"), 0.0);
    assert_eq!(case.primary, "delivery");
}

#[test]
fn fan_out_reaches_every_subscriber() {
    let case = run(Scenario::FanOut, false, |plan| plan.rate = 100);
    assert_eq!(case.number("sent"), 50.0);
    assert_eq!(case.number("delivered"), 500.0);
    assert_eq!(case.number("undelivered"), 0.0);
}

#[test]
fn every_request_gets_its_response() {
    for version in [Version::V311, Version::V5] {
        let case = run(Scenario::RequestResponse, false, |plan| {
            plan.version = version
        });
        assert_eq!(case.number("sent"), 200.0);
        assert_eq!(case.number("delivered"), 200.0);
        assert_eq!(case.number("lost"), 0.0);
        assert_eq!(case.number("out_of_order"), 0.0);
    }
}

#[test]
fn slow_readers_do_not_take_from_the_others() {
    let case = run(Scenario::SlowReader, false, |plan| {
        plan.rate = 200;
        plan.slow_every = 5;
        plan.slow_bytes_per_sec = 500;
    });
    // Two of ten are slow.
    assert_eq!(case.number("delivered"), 800.0);
    assert_eq!(case.number("undelivered"), 0.0);
    assert!(case.number("slow_bytes") > 0.0);
}

#[test]
fn a_storm_counts_every_connection_due() {
    let case = run(Scenario::ConnectStorm, false, |plan| plan.rate = 100);
    assert_eq!(case.number("due"), 50.0);
    assert_eq!(case.number("connect.p50"), case.number("p50"));
    for none in ["connect_failures", "unsent"] {
        assert_eq!(case.number(none), 0.0, "{none}");
    }
}

#[test]
fn idle_connections_report_the_cost_of_a_process() {
    let case = run(Scenario::Idle, false, |plan| {
        plan.pids = vec![std::process::id()];
    });
    assert_eq!(case.number("connected"), 10.0);
    assert!(case.number("rss_kib_connected") > 0.0);
    assert!(case.numbers.contains_key("cpu_us_per_connection"));
}

#[test]
fn nobody_listening_is_an_error() {
    // Bound and closed again: nothing listens there.
    let gone = std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .unwrap();
    let plan = Plan {
        connections: 2,
        ..Plan::new(Scenario::Publish, Target::Tcp(gone))
    };
    let error = scenario::run(&plan, None).unwrap_err();
    assert!(
        format!("{error:#}").contains("nobody could connect"),
        "{error:#}"
    );
}

/// With real processes, small: what must hold holds, and policies did change.
fn churn(words: &[&str]) {
    use clap::Parser as _;
    use sluice_loadtest::load::args::{Cli, Command};
    use sluice_loadtest::load::churn;
    use sluice_loadtest::load::expect::Outcome;

    let dataplane = sluice_loadtest::harness::sibling("sluice-dataplane").unwrap();
    let programs = dataplane.parent().unwrap().to_str().unwrap();
    let line = ["sluice-loadtest", "policy-churn", "--quiet"];
    let small = "--connections 4 --rate 1600 --duration 3 --rules 50 --every 0.1 --programs";
    let line = line.into_iter().chain(small.split(' ')).chain([programs]);
    let cli = Cli::parse_from(line.chain(words.iter().copied()));
    let Command::PolicyChurn(args) = cli.command else {
        panic!("another command");
    };
    let numbers = churn::run(&args).unwrap().numbers();
    for expectation in args.all_expectations() {
        let outcome = expectation.check(&numbers);
        assert_eq!(outcome, Outcome::Holds, "{expectation}: {numbers:?}");
    }
    // One of the two sides and what both allow.
    assert_eq!(numbers.get("sent"), Some(&4_800.0));
    let arrived = numbers.get("at_broker").copied().unwrap_or_default();
    let torn_at_most = 4.0 * numbers.get("changes").copied().unwrap_or_default();
    assert!((arrived - 2_400.0).abs() <= torn_at_most, "{arrived}");
}

#[test]
fn c9_policies_that_change_by_sighup_are_never_mixed() {
    churn(&[]);
}

#[test]
fn c9_policies_that_a_control_plane_releases_are_never_mixed() {
    churn(&["--control-plane"]);
}

#[test]
fn a_release_is_followed_until_it_is_active() {
    use clap::Parser as _;
    use sluice_loadtest::load::args::{Cli, Command};
    use sluice_loadtest::load::release;

    let dataplane = sluice_loadtest::harness::sibling("sluice-dataplane").unwrap();
    let programs = dataplane.parent().unwrap().to_str().unwrap();
    for nodes in ["0", "3"] {
        let line = "sluice-loadtest release --quiet --every 0.1 --rules 1,20 --changes 1 --rollbacks 1 --nodes";
        let line = line.split(' ').chain([nodes, "--programs", programs]);
        let Command::Release(args) = Cli::parse_from(line).command else {
            panic!("another command");
        };
        let numbers = release::run(&args).unwrap().numbers();
        for kind in ["first", "change", "rollback"] {
            for rules in [1, 20] {
                let number = |name: &str| {
                    let found = numbers.get(&format!("{kind}/{rules}/{name}"));
                    found.copied().unwrap_or(f64::NAN)
                };
                // In the order in which it happens; that of two processes' logs is not known to the microsecond.
                assert!(number("in_force") > 0.0, "{numbers:?}");
                assert!(number("active") >= number("in_force"), "{numbers:?}");
                assert!(number("watch") > 0.0, "{numbers:?}");
            }
        }
    }
}
