//! What the fleet tells metrics and logs. Labels come from closed lists.

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use sluice_proto::v1::reject::Reason;

use std::collections::BTreeSet;
use std::sync::Mutex;

use sluice_proto::v1::EndpointTrouble;
use sluice_proto::v1::endpoint_trouble::Fault;

use super::history::lock;
use super::node::{Event, State};

const NODES: &str = "sluice_control_nodes";
const PROPAGATION: &str = "sluice_control_propagation_seconds";
const REJECTIONS: &str = "sluice_control_rejections_total";
const ENDPOINTS_DOWN: &str = "sluice_control_endpoints_down";
const ROWS_SENT: &str = "sluice_control_rows_sent_total";
const BYTES_SENT: &str = "sluice_control_bytes_sent_total";

/// Says what each metric means, and shows all of them from the start.
pub(super) fn describe() {
    describe_gauge!(
        NODES,
        "Members of the fleet, by where they stand on the way to the generation in force."
    );
    describe_histogram!(
        PROPAGATION,
        Unit::Seconds,
        "Time from the release of a generation until every shard of a node judges by it."
    );
    describe_counter!(
        REJECTIONS,
        "Generations that a node refused or cannot take, by reason."
    );
    describe_gauge!(
        ENDPOINTS_DOWN,
        "Nodes that cannot send clients to an endpoint of their policy, by endpoint and by what it failed at last."
    );
    describe_counter!(ROWS_SENT, "Changes of policy rows that were sent to nodes.");
    describe_counter!(
        BYTES_SENT,
        Unit::Bytes,
        "Length of the messages that were sent to nodes, before encryption."
    );
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

/// Endpoints named in metrics by one process, each with every fault; more of them are called `other`. Names come from
/// nodes, and a label that was used once stays.
const ENDPOINTS_NAMED_MAX: usize = 1000;

static NAMED: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());

/// The endpoints that do not work as a node sees it, as they are counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Troubles(BTreeSet<(String, String, &'static str)>);

impl Troubles {
    /// The node told these.
    pub(super) fn become_those(&mut self, told: &[EndpointTrouble]) {
        if self.0.is_empty() && told.is_empty() {
            return;
        }
        let told = told.iter().map(|trouble| {
            let (upstream, endpoint) = named(&trouble.upstream, &trouble.endpoint);
            (upstream, endpoint, fault_name(trouble.fault()))
        });
        let told: BTreeSet<_> = told.collect();
        for gone in self.0.difference(&told) {
            endpoints_down(gone).decrement(1.0);
        }
        for new in told.difference(&self.0) {
            endpoints_down(new).increment(1.0);
        }
        self.0 = told;
    }
}

fn endpoints_down((upstream, endpoint, reason): &(String, String, &'static str)) -> metrics::Gauge {
    gauge!(
        ENDPOINTS_DOWN,
        "upstream" => upstream.clone(),
        "endpoint" => endpoint.clone(),
        "reason" => *reason
    )
}

fn named(upstream: &str, endpoint: &str) -> (String, String) {
    let name = (upstream.to_owned(), endpoint.to_owned());
    let mut known = lock(&NAMED);
    if known.contains(&name) {
        return name;
    }
    if known.len() >= ENDPOINTS_NAMED_MAX {
        return ("other".to_owned(), "other".to_owned());
    }
    known.insert(name.clone());
    name
}

/// As nodes call it in their own metrics.
pub(super) fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::Unspecified => "unknown",
        Fault::Refused => "refused",
        Fault::Unreachable => "unreachable",
        Fault::TimedOut => "timed_out",
        Fault::NameNotFound => "name_not_found",
        Fault::NoConnack => "no_connack",
        Fault::ClosedBeforeConnack => "closed_before_connack",
        Fault::Unavailable => "unavailable",
        Fault::NotMqtt => "not_mqtt",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(endpoint: &str, fault: Fault) -> EndpointTrouble {
        EndpointTrouble {
            upstream: "test".into(),
            endpoint: endpoint.into(),
            fault: fault.into(),
            ..EndpointTrouble::default()
        }
    }

    #[test]
    fn an_endpoint_is_counted_once_for_each_node_and_names_are_bounded() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let shown = |endpoint: &str| {
            let page = handle.render();
            let line = page
                .lines()
                .find(|line| line.contains(&format!("endpoint=\"{endpoint}\"")));
            line.and_then(|line| line.rsplit(' ').next())
                .map(str::to_owned)
        };
        metrics::with_local_recorder(&recorder, || {
            let (mut one, mut other) = (Troubles::default(), Troubles::default());
            let twice = [
                trouble("tcp://a:1", Fault::Refused),
                trouble("tcp://a:1", Fault::Refused),
            ];
            one.become_those(&twice);
            other.become_those(&twice);
            assert_eq!(shown("tcp://a:1").as_deref(), Some("2"));
            one.become_those(&[]);
            assert_eq!(shown("tcp://a:1").as_deref(), Some("1"));
            other.become_those(&[]);
            assert_eq!(shown("tcp://a:1").as_deref(), Some("0"));
            let many: Vec<_> = (0..=ENDPOINTS_NAMED_MAX)
                .map(|number| trouble(&format!("tcp://b:{number}"), Fault::NoConnack))
                .collect();
            one.become_those(&many);
            assert_eq!(shown("other").as_deref(), Some("1"));
        });
    }
}
