//! What is counted, and how it is shown: the process-wide recorder, its buckets, and the help of each name that the gate
//! and the calls count under. Whoever else counts describes their own.

use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

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
        "Calls refused at the door, by reason"
    );
    metrics::describe_counter!(
        "sluice_control_calls_total",
        "Calls, by method and gRPC status code"
    );
    metrics::describe_histogram!(
        "sluice_control_call_seconds",
        Unit::Seconds,
        "Time from a call's headers to the end of its answer; of streams, how long they were open"
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
