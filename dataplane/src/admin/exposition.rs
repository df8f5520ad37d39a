//! `/metrics`: what is known at one moment, in the text form Prometheus reads.
//!
//! A recorder is made for each scrape and thrown away, so a label value that is gone (an upstream that was removed)
//! leaves nothing behind. Label values come from closed lists and from names in the policy; never from what a client
//! says. The histogram of added latency is written by hand: its buckets are already counted.

use std::fmt::Write;

use hdrhistogram::Histogram;
use metrics::{Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use crate::clock;
use crate::control::endpoints::Trouble;
use crate::control::fleet::LinkState;
use crate::control::observe::{Crowd, Observed, ShardView};
use crate::control::vitals::Vitals;
use crate::metrics::{Counter, RuleCount};

/// Upper bounds of the added-latency buckets, in microseconds.
const LATENCY_BUCKETS_MICROS: &[u64] = &[
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000, 1_000_000,
];
const LATENCY: &str = "sluice_added_latency_seconds";
const METADATA: Metadata<'static> = Metadata::new("sluice", Level::INFO, None);

/// The whole page.
pub fn render(observed: &Observed, rules: &RuleSeries) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = Page {
        recorder: &recorder,
    };
    counters(&page, observed);
    policy(&page, observed);
    fleet(&page, observed);
    connections(&page, observed);
    shards(&page, observed);
    upstreams(&page, observed);
    auth(&page, observed);
    rules_counted(&page, rules);
    process(&page);
    let mut text = sorted(&recorder.handle().render());
    // Writing to a String cannot fail.
    let _ = write_cpu(&mut text);
    let _ = write_latency(&mut text, observed.latency.as_ref());
    text
}

/// Families by name and series by label, so that two pages can be compared by eye.
fn sorted(text: &str) -> String {
    let mut families: Vec<Vec<&str>> = text
        .split("\n\n")
        .map(|family| family.lines().filter(|line| !line.is_empty()).collect())
        .filter(|family: &Vec<&str>| !family.is_empty())
        .collect();
    // `# HELP` sorts before `# TYPE`, and both before any series.
    families
        .iter_mut()
        .for_each(|family| family.sort_unstable());
    families.sort_unstable();
    let lines: Vec<&str> = families.into_iter().flatten().collect();
    lines.join("\n") + "\n"
}

/// Shards count apart; the node shows the sum.
fn counters(page: &Page<'_>, observed: &Observed) {
    for &counter in Counter::ALL {
        let sum = observed.counters.iter().map(|cells| cells.read(counter));
        let sum = sum.fold(0, u64::wrapping_add);
        page.describe_counter(counter.name(), counter.help());
        page.counter(counter.name(), counter.labels(), sum);
    }
}

fn policy(page: &Page<'_>, observed: &Observed) {
    let policy = &observed.policy;
    let name = "sluice_policy_generation";
    page.describe_gauge(
        name,
        "Generation of the policy by stage; 0 before the first.",
    );
    for (stage, seen) in [
        ("desired", &policy.desired),
        ("compiled", &policy.compiled),
        ("delivered", &policy.delivered),
        ("active", &policy.active),
    ] {
        let generation = seen.as_ref().map_or(0, |stage| stage.generation);
        page.gauge(name, &[("stage", stage)], generation as f64);
    }
    let name = "sluice_policy_rejected_total";
    page.describe_counter(name, "Policies that were refused as a whole.");
    page.counter(name, &[], policy.rejections);
    let name = "sluice_decision_log";
    page.describe_gauge(
        name,
        "1 while decisions are logged, with topics, client ids and users.",
    );
    let is_on = f64::from(u8::from(observed.decision_log.is_some()));
    page.gauge(name, &[], is_on);
    let name = "sluice_ready";
    page.describe_gauge(name, "1 when the node should get traffic, as /readyz says.");
    page.gauge(
        name,
        &[],
        f64::from(u8::from(observed.not_ready.is_empty())),
    );
}

/// Nothing without a control plane.
fn fleet(page: &Page<'_>, observed: &Observed) {
    let Some(fleet) = &observed.fleet else {
        return;
    };
    let name = "sluice_fleet_link";
    page.describe_gauge(
        name,
        "Where the link to the control plane is: 1 for one state.",
    );
    for state in LinkState::ALL {
        let is = f64::from(u8::from(state == fleet.state));
        page.gauge(name, &[("state", state.name())], is);
    }
    let name = "sluice_fleet_streams_total";
    page.describe_counter(name, "Streams to the control plane that were opened.");
    page.counter(name, &[], fleet.connects);
    let name = "sluice_fleet_disconnects_total";
    page.describe_counter(
        name,
        "Streams to the control plane that ended, and attempts that failed.",
    );
    page.counter(name, &[], fleet.disconnects);
    let name = "sluice_fleet_generation";
    page.describe_gauge(
        name,
        "Generation of the fleet by stage, as the control plane counts; 0 before the first.",
    );
    let policy = &observed.policy;
    let stages = [
        ("desired", &policy.desired),
        ("compiled", &policy.compiled),
        ("delivered", &policy.delivered),
        ("active", &policy.active),
    ];
    for (stage, seen) in stages {
        let number = seen.as_ref().and_then(|seen| seen.fleet_generation);
        page.gauge(name, &[("stage", stage)], number.unwrap_or(0) as f64);
    }
    page.gauge(
        name,
        &[("stage", "on_disk")],
        fleet.on_disk.unwrap_or(0) as f64,
    );
}

fn connections(page: &Page<'_>, observed: &Observed) {
    type Read = fn(&Crowd) -> u32;
    let by_listener: [(&str, &str, Read); 4] = [
        (
            "sluice_connections",
            "Client connections open, by listener.",
            |crowd| crowd.connections,
        ),
        (
            "sluice_connections_limit",
            "Most client connections, by listener; the node's where the listener has no limit.",
            |crowd| crowd.connections_max,
        ),
        (
            "sluice_listener_strangers",
            "Client connections whose CONNECT has not come, by listener.",
            |crowd| crowd.strangers,
        ),
        (
            "sluice_listener_strangers_limit",
            "Most client connections whose CONNECT has not come, by listener.",
            |crowd| crowd.strangers_max,
        ),
    ];
    for (name, help, read) in by_listener {
        page.describe_gauge(name, help);
        for (listener, crowd) in &observed.connections_by_listener {
            page.gauge(name, &[("listener", listener)], f64::from(read(crowd)));
        }
    }
    let node = &observed.connections;
    for (name, help, value) in [
        (
            "sluice_connections_open",
            "Client connections open on this node.",
            node.connections,
        ),
        (
            "sluice_connections_open_limit",
            "Most client connections of this node.",
            node.connections_max,
        ),
        (
            "sluice_strangers",
            "Client connections of this node whose CONNECT has not come.",
            node.strangers,
        ),
        (
            "sluice_strangers_limit",
            "Most client connections of this node whose CONNECT has not come.",
            node.strangers_max,
        ),
        (
            "sluice_strangers_per_address_limit",
            "Most client connections of one address whose CONNECT has not come.",
            observed.strangers_per_address_max,
        ),
    ] {
        page.describe_gauge(name, help);
        page.gauge(name, &[], f64::from(value));
    }
}

fn shards(page: &Page<'_>, observed: &Observed) {
    type Read = fn(&ShardView) -> f64;
    let gauges: [(&str, &str, Read); 7] = [
        ("sluice_sessions", "Sessions open, by shard.", |view| {
            f64::from(view.sessions)
        }),
        (
            "sluice_sessions_limit",
            "Most sessions, by shard.",
            |view| f64::from(view.sessions_max),
        ),
        (
            "sluice_sessions_connected",
            "Sessions with an upstream connection, by shard.",
            |view| f64::from(view.connected),
        ),
        (
            "sluice_backlog_bytes",
            "Bytes that sockets did not take yet, and what sessions keep (half packets, held bytes) beyond 4 KiB each, by shard.",
            |view| view.backlog_bytes as f64,
        ),
        (
            "sluice_authenticating",
            "Sessions that wait for a password check, by shard.",
            |view| f64::from(view.authenticating),
        ),
        (
            "sluice_loop_lag_seconds",
            "Longest recent turn of a shard's loop.",
            |view| view.loop_lag_micros as f64 / 1e6,
        ),
        (
            "sluice_shard_generation",
            "Generation of the policy that a shard acknowledged last; 0 before the first.",
            |view| view.generation.unwrap_or(0) as f64,
        ),
    ];
    for (name, help, read) in gauges {
        page.describe_gauge(name, help);
        for view in &observed.shards {
            page.gauge(name, &[("shard", &view.shard.to_string())], read(view));
        }
    }
    let name = "sluice_shard_info";
    page.describe_gauge(
        name,
        "Always 1, with the engine that drives the shard as a label.",
    );
    for view in &observed.shards {
        page.gauge(
            name,
            &[("shard", &view.shard.to_string()), ("engine", view.engine)],
            1.0,
        );
    }
}

/// By upstream and state, so that the number of series follows the policy, not the resolver's answers.
fn upstreams(page: &Page<'_>, observed: &Observed) {
    let states = "sluice_upstream_endpoints";
    page.describe_gauge(
        states,
        "Endpoints by upstream and state (usable, unresolved, breaker_open, unhealthy, silent).",
    );
    let down = "sluice_upstream_endpoint_down";
    page.describe_gauge(
        down,
        "Addresses of an endpoint that do not work, by what they failed at; absent while all do.",
    );
    let open = "sluice_upstream_connections";
    page.describe_gauge(open, "Connections open to an upstream.");
    let failures = "sluice_upstream_dial_failures_total";
    page.describe_counter(
        failures,
        "Failures of the endpoints in use that they were charged with: dials, and CONNECTs without an answer.",
    );
    let mut names: Vec<&str> = observed
        .endpoints
        .iter()
        .map(|view| &*view.upstream)
        .collect();
    names.dedup(); // they come grouped by upstream
    for name in names {
        let views = || {
            observed
                .endpoints
                .iter()
                .filter(|view| &*view.upstream == name)
        };
        let usable = views().filter(|view| view.trouble().is_none()).count();
        page.gauge(
            states,
            &[("upstream", name), ("state", "usable")],
            usable as f64,
        );
        for trouble in Trouble::ALL {
            let count = views()
                .filter(|view| view.trouble() == Some(trouble))
                .count();
            let labels = [("upstream", name), ("state", trouble.name())];
            page.gauge(states, &labels, count as f64);
        }
        for view in views() {
            if let (Some(_), Some(fault)) = (view.trouble(), view.fault) {
                let same = views().filter(|other| {
                    other.trouble().is_some()
                        && other.endpoint == view.endpoint
                        && other.fault == Some(fault)
                });
                let labels = [
                    ("upstream", name),
                    ("endpoint", &*view.endpoint),
                    ("reason", fault.name()),
                ];
                page.gauge(down, &labels, same.count() as f64);
            }
        }
        let connections: u64 = views().map(|view| u64::from(view.connections)).sum();
        page.gauge(open, &[("upstream", name)], connections as f64);
        page.counter(
            failures,
            &[("upstream", name)],
            views().map(|view| view.failures).sum(),
        );
    }
}

fn auth(page: &Page<'_>, observed: &Observed) {
    let auth = &observed.auth;
    let name = "sluice_auth_hashes_total";
    page.describe_counter(
        name,
        "Password hashes computed; a check answered from the cache computes none.",
    );
    page.counter(name, &[], auth.hashes);
    let name = "sluice_auth_failures_total";
    page.describe_counter(
        name,
        "Sessions refused by a password check: a wrong password, or a user that does not exist.",
    );
    page.counter(name, &[], auth.failures);
    for (name, help, value) in [
        (
            "sluice_auth_queue",
            "Password checks waiting for a thread.",
            auth.queue_len,
        ),
        (
            "sluice_auth_queue_places",
            "Places of the queue of password checks that are taken: one for each 512 bytes of user name and password.",
            auth.queue_places,
        ),
        (
            "sluice_auth_queue_places_limit",
            "Places that the queue of password checks has.",
            auth.queue_places_max,
        ),
        (
            "sluice_auth_known_entries",
            "Verified passwords remembered, as digests, for their place in the queue.",
            auth.known_len,
        ),
        (
            "sluice_auth_waiters",
            "Sessions waiting for a password check.",
            auth.waiters_len,
        ),
        (
            "sluice_auth_cache_entries",
            "Verified passwords remembered, as digests.",
            auth.cache_len,
        ),
    ] {
        page.describe_gauge(name, help);
        page.gauge(name, &[], value as f64);
    }
}

/// What is shown of rules: those whose names were chosen, and what is known without their names.
#[derive(Clone, Debug, Default)]
pub struct RuleSeries {
    /// Name, whether in shadow, and counts.
    pub rules: Vec<(String, bool, RuleCount)>,
    /// Decisions of the default.
    pub by_default: u64,
    /// Decisions that were not counted for want of memory.
    pub left_off: u64,
    /// Memory that counting takes.
    pub bytes: u64,
}

fn rules_counted(page: &Page<'_>, rules: &RuleSeries) {
    let name = "sluice_rule_default_decisions_total";
    page.describe_counter(
        name,
        "Decisions that no rule made but the policy's default.",
    );
    page.counter(name, &[], rules.by_default);
    let name = "sluice_rule_counts_left_off_total";
    page.describe_counter(
        name,
        "Decisions that were not counted for their rule because --rule-counts-mib was used up.",
    );
    page.counter(name, &[], rules.left_off);
    let name = "sluice_rule_counts_bytes";
    page.describe_gauge(name, "Memory for counting how often each rule decides.");
    page.gauge(name, &[], rules.bytes as f64);
    let decided = "sluice_rule_decisions_total";
    page.describe_counter(
        decided,
        "Decisions by rule, in shadow those that it would have made; the first rules by name, as many as --rule-metrics says.",
    );
    let otherwise = "sluice_rule_shadow_otherwise_total";
    page.describe_counter(
        otherwise,
        "Decisions that a rule in shadow would have made otherwise, for the rules of sluice_rule_decisions_total.",
    );
    for (rule, is_shadow, count) in &rules.rules {
        let mode = if *is_shadow { "shadow" } else { "enforce" };
        page.counter(decided, &[("rule", rule), ("mode", mode)], count.decided);
        if *is_shadow {
            page.counter(otherwise, &[("rule", rule)], count.otherwise);
        }
    }
}

/// The names that client libraries of Prometheus use. What the kernel does not say is left out, not told as 0.
fn process(page: &Page<'_>) {
    let name = "sluice_build_info";
    page.describe_gauge(name, "Always 1, with the version that runs as a label.");
    page.gauge(name, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let vitals = Vitals::read();
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Resident memory of the process.",
            vitals.resident_bytes.map(|bytes| bytes as f64),
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory of the process.",
            vitals.virtual_bytes.map(|bytes| bytes as f64),
        ),
        (
            "process_open_fds",
            "File descriptors that the process has open.",
            vitals.descriptors_open.map(|count| count as f64),
        ),
        (
            "process_max_fds",
            "File descriptors that the process may have open.",
            vitals.descriptors_max.map(|count| count as f64),
        ),
        (
            "process_threads",
            "Threads of the process.",
            vitals.threads.map(|count| count as f64),
        ),
        (
            "process_start_time_seconds",
            "When the process was started, in seconds since 1970.",
            vitals.started_unix_secs,
        ),
    ] {
        if let Some(value) = value {
            page.describe_gauge(name, help);
            page.gauge(name, &[], value);
        }
    }
}

/// The facade counts in whole numbers; seconds have parts.
fn write_cpu(text: &mut String) -> std::fmt::Result {
    let name = "process_cpu_seconds_total";
    writeln!(text, "# HELP {name} Processor time used by the process.")?;
    writeln!(text, "# TYPE {name} counter")?;
    writeln!(text, "{name} {}", clock::process_cpu().as_secs_f64())
}

fn write_latency(text: &mut String, histogram: Option<&Histogram<u64>>) -> std::fmt::Result {
    writeln!(
        text,
        "# HELP {LATENCY} Time from the arrival of bytes to their sending, merged over the shards."
    )?;
    writeln!(text, "# TYPE {LATENCY} histogram")?;
    let (mut count, mut sum_micros) = (0_u64, 0.0_f64);
    let mut below = vec![0_u64; LATENCY_BUCKETS_MICROS.len()];
    for step in histogram
        .iter()
        .flat_map(|histogram| histogram.iter_recorded())
    {
        let (value, seen) = (step.value_iterated_to(), step.count_since_last_iteration());
        count += seen;
        sum_micros += value as f64 * seen as f64;
        for (bucket, bound) in below.iter_mut().zip(LATENCY_BUCKETS_MICROS) {
            *bucket += if value <= *bound { seen } else { 0 };
        }
    }
    for (bucket, bound) in below.iter().zip(LATENCY_BUCKETS_MICROS) {
        writeln!(
            text,
            "{LATENCY}_bucket{{le=\"{}\"}} {bucket}",
            *bound as f64 / 1e6
        )?;
    }
    writeln!(text, "{LATENCY}_bucket{{le=\"+Inf\"}} {count}")?;
    writeln!(text, "{LATENCY}_sum {}", sum_micros / 1e6)?;
    writeln!(text, "{LATENCY}_count {count}")
}

/// The recorder with the few calls needed.
struct Page<'a> {
    recorder: &'a PrometheusRecorder,
}

impl Page<'_> {
    fn describe_counter(&self, name: &'static str, help: &str) {
        let (name, help) = (KeyName::from(name), help.to_owned().into());
        self.recorder.describe_counter(name, None, help);
    }

    fn describe_gauge(&self, name: &'static str, help: &'static str) {
        self.recorder
            .describe_gauge(KeyName::from(name), None, help.into());
    }

    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)], value: u64) {
        let handle = self
            .recorder
            .register_counter(&key(name, labels), &METADATA);
        handle.absolute(value);
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let handle = self.recorder.register_gauge(&key(name, labels), &METADATA);
        handle.set(value);
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()));
    Key::from_parts(name, labels.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_buckets_are_cumulative_and_in_seconds() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 2).expect("good bounds");
        for micros in [5, 15, 15, 400, 2_000_000] {
            histogram.record(micros).expect("within the bounds");
        }
        let mut text = String::new();
        write_latency(&mut text, Some(&histogram)).expect("a String takes everything");
        for line in [
            "sluice_added_latency_seconds_bucket{le=\"0.00001\"} 1",
            "sluice_added_latency_seconds_bucket{le=\"0.00002\"} 3",
            "sluice_added_latency_seconds_bucket{le=\"0.0005\"} 4",
            "sluice_added_latency_seconds_bucket{le=\"1\"} 4",
            "sluice_added_latency_seconds_bucket{le=\"+Inf\"} 5",
            "sluice_added_latency_seconds_count 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn families_and_series_are_in_order() {
        let text = "# HELP b B\n# TYPE b gauge\nb{x=\"2\"} 1\nb{x=\"1\"} 1\n\n# HELP a A\n# TYPE a gauge\na 1\n\n";
        let expected = "# HELP a A\n# TYPE a gauge\na 1\n# HELP b B\n# TYPE b gauge\nb{x=\"1\"} 1\nb{x=\"2\"} 1\n";
        assert_eq!(sorted(text), expected);
    }

    #[test]
    fn every_counter_says_what_it_counts() {
        for &counter in Counter::ALL {
            assert!(!counter.help().is_empty(), "{}", counter.name());
            assert!(counter.name().starts_with("sluice_") && counter.name().ends_with("_total"));
        }
    }
}
