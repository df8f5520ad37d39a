//! What is counted, and how it is shown: the process-wide recorder, its buckets, and the help of each name that the gate,
//! the calls and the connections count under. Whoever else counts describes their own.
//!
//! What is only looked at when the page is asked for (the process, the nodes) is written behind what was counted.

mod nodes;
mod process;

use std::fmt::Write;
use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::domain::UnixMillis;
use crate::fleet::Fleet;

/// Upper bounds of histograms of seconds: from a look at memory to a document of a million rules.
const SECONDS: [f64; 16] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];
/// Between two moves of what histograms have gathered into their buckets: memory grows until then.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Installs the recorder. Everything counted before is lost, so this comes first.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    metrics::describe_counter!(
        "sluice_control_refused_total",
        "Calls refused because of their token or of how it travelled, by reason."
    );
    metrics::describe_counter!(
        "sluice_control_calls_total",
        "Calls that ended, by method and gRPC status code; a stream that has no end of its own is OK when its caller leaves."
    );
    metrics::describe_histogram!(
        "sluice_control_call_seconds",
        Unit::Seconds,
        "Time from a call's headers to the end of its answer; for a stream, how long it was open."
    );
    metrics::describe_counter!(
        "sluice_control_received_bytes_total",
        Unit::Bytes,
        "Bytes read from connections, encryption included, by server (grpc or admin)."
    );
    metrics::describe_counter!(
        "sluice_control_sent_bytes_total",
        Unit::Bytes,
        "Bytes written to connections, encryption included, by server (grpc or admin)."
    );
    Ok(handle)
}

/// Keeps the recorder's memory bounded, for as long as the process runs.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
    }
}

/// What a page is made of.
pub struct Page {
    handle: PrometheusHandle,
    fleet: Fleet,
    nodes_max: usize,
    started_at: UnixMillis,
}

impl Page {
    /// Of the nodes at most `nodes_max` have series of their own.
    pub fn new(
        handle: PrometheusHandle,
        fleet: Fleet,
        nodes_max: usize,
        started_at: UnixMillis,
    ) -> Self {
        Self {
            handle,
            fleet,
            nodes_max,
            started_at,
        }
    }

    /// In the text form that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        nodes::write(&mut text, &self.fleet, self.nodes_max);
        process::write(&mut text, self.started_at);
        text
    }
}

/// Says what the series that follow mean.
fn describe(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// One series without labels, and what it means.
fn single(text: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    describe(text, name, kind, help);
    let _ = writeln!(text, "{name} {value}");
}
