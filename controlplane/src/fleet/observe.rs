//! What the fleet tells metrics and logs. Labels come from closed lists.

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use sluice_proto::v1::reject::Reason;

use super::node::{Event, State};

const NODES: &str = "sluice_control_nodes";
const PROPAGATION: &str = "sluice_control_propagation_seconds";
const REJECTIONS: &str = "sluice_control_rejections_total";
const ROWS_SENT: &str = "sluice_control_rows_sent_total";
const BYTES_SENT: &str = "sluice_control_bytes_sent_total";

/// Says what each metric means, and shows all of them from the start.
pub(super) fn describe() {
    describe_gauge!(NODES, "members of the fleet by state");
    describe_histogram!(
        PROPAGATION,
        Unit::Seconds,
        "from the release of a generation until every shard of a node judges by it"
    );
    describe_counter!(REJECTIONS, "generations that nodes refused or cannot take");
    describe_counter!(ROWS_SENT, "changes of rows sent to nodes");
    describe_counter!(BYTES_SENT, Unit::Bytes, "length of messages sent to nodes");
    for state in State::ALL {
        gauge!(NODES, "state" => state.name()).set(0.0);
    }
    for reason in REASONS {
        counter!(REJECTIONS, "reason" => reason_name(reason)).increment(0);
    }
    counter!(ROWS_SENT).increment(0);
    counter!(BYTES_SENT).increment(0);
}

/// A member is in another state; `None`: it was, or is, no member.
pub(super) fn moved(from: Option<State>, to: Option<State>) {
    if let Some(from) = from {
        gauge!(NODES, "state" => from.name()).decrement(1.0);
    }
    if let Some(to) = to {
        gauge!(NODES, "state" => to.name()).increment(1.0);
    }
}

/// A message left for a node.
pub(super) fn sent(rows: usize, bytes: usize) {
    counter!(ROWS_SENT).increment(rows as u64);
    counter!(BYTES_SENT).increment(bytes as u64);
}

/// Something happened to a node.
pub(super) fn event(node: &str, event: &Event) {
    match event {
        Event::Active { generation, took } => {
            if let Some(took) = took {
                histogram!(PROPAGATION).record(took.as_secs_f64());
            }
            let took_ms = took.map(|took| took.as_millis());
            tracing::info!(node, generation = generation.number, took_ms, "node active");
        }
        Event::Rejected { generation, reason } => {
            let reason = reason_name(*reason);
            counter!(REJECTIONS, "reason" => reason).increment(1);
            tracing::warn!(
                node,
                generation = generation.number,
                reason,
                "node rejected a generation and keeps what it has"
            );
        }
    }
}

const REASONS: [Reason; 6] = [
    Reason::Unspecified,
    Reason::Invalid,
    Reason::Features,
    Reason::BaseUnknown,
    Reason::Digest,
    Reason::TooLarge,
];

fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "unspecified",
        Reason::Invalid => "invalid",
        Reason::Features => "features",
        Reason::BaseUnknown => "base_unknown",
        Reason::Digest => "digest",
        Reason::TooLarge => "too_large",
    }
}
