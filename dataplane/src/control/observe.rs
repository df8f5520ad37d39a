//! What the control thread knows at one moment, put together for operators.
//!
//! Plain values, no handles: the admin server renders them and knows nothing else of the control thread. Names of
//! listeners, upstreams and endpoints only; sessions are listed apart and never become metrics.

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use sluice_policy::Listener;

use super::apply::PolicyStatus;
use super::auth::PoolGauges;
use super::decisions::DecisionLogView;
use super::endpoints::EndpointView;
use super::fleet::FleetView;
use super::listeners::Listening;
use crate::clock::Time;
use crate::metrics::Counters;
use crate::node::{KeptOut, KickWho, ShardGauges, Table};

/// How long a shard may leave questions unanswered before the node is not ready.
pub const SHARD_SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a delivered generation may wait for a shard before the node is not ready.
pub const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(10);

/// See the module documentation.
pub struct Observed {
    /// Where every generation stands.
    pub policy: PolicyStatus,
    /// What is listened on.
    pub listeners: Vec<Listening>,
    /// Each shard.
    pub shards: Vec<ShardView>,
    /// Each endpoint in use.
    pub endpoints: Vec<EndpointView>,
    /// Connections of the node, by the table.
    pub connections: Crowd,
    /// The same by listener name.
    pub connections_by_listener: Vec<(Box<str>, Crowd)>,
    /// Most strangers of one address.
    pub strangers_per_address_max: u32,
    /// The password pool.
    pub auth: PoolGauges,
    /// Added latency in microseconds, all shards; `None` until one has reported.
    pub latency: Option<Histogram<u64>>,
    /// The shards' counters.
    pub counters: Vec<Arc<Counters>>,
    /// What is logged of decisions; `None`: nothing.
    pub decision_log: Option<DecisionLogView>,
    /// True exactly while the node takes no more connections: it ends, or the control plane drained it.
    pub is_draining: bool,
    /// Who is kept out by an operator.
    pub kept_out: Vec<KeptOutView>,
    /// The way to the control plane; `None` without one.
    pub fleet: Option<FleetView>,
    /// Why the node is not ready; empty exactly when it is.
    pub not_ready: Vec<String>,
    /// What does not work although the node may be ready: upstreams without an endpoint that does.
    pub degraded: Vec<String>,
}

/// How many connections there are, how many of them are strangers (their CONNECT has not come), and how many there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// Connections.
    pub connections: u32,
    /// Most connections.
    pub connections_max: u32,
    /// Of the connections, strangers.
    pub strangers: u32,
    /// Most strangers.
    pub strangers_max: u32,
}

/// A shard as seen from outside.
#[derive(Clone, Debug, Serialize)]
pub struct ShardView {
    /// Its number.
    pub shard: u16,
    /// The engine that drives it.
    pub engine: &'static str,
    /// The generation it acknowledged last.
    pub generation: Option<u64>,
    /// Sessions open.
    pub sessions: u32,
    /// Most sessions.
    pub sessions_max: u32,
    /// Sessions with an upstream connection.
    pub connected: u32,
    /// Bytes in backlogs.
    pub backlog_bytes: u64,
    /// Authentications waiting for an answer.
    pub authenticating: u32,
    /// Longest recent turn.
    pub loop_lag_micros: u64,
    /// Since its last answer.
    pub silent_for_ms: u64,
}

impl ShardView {
    pub(super) fn new(
        shard: u16,
        engine: &'static str,
        generation: Option<u64>,
        gauges: &ShardGauges,
        silent_for: Duration,
    ) -> Self {
        Self {
            shard,
            engine,
            generation,
            sessions: gauges.sessions,
            sessions_max: gauges.sessions_max,
            connected: gauges.connected,
            backlog_bytes: gauges.backlog_bytes,
            authenticating: gauges.authenticating,
            loop_lag_micros: gauges.loop_lag_micros,
            silent_for_ms: u64::try_from(silent_for.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The connections of the node.
pub(super) fn crowd(table: &Table) -> Crowd {
    Crowd {
        connections: table.connections(),
        connections_max: table.connections_max(),
        strangers: table.strangers(),
        strangers_max: table.strangers_max(),
    }
}

/// The connections of a listener, and its limit or the node's where that is lower.
pub(super) fn crowd_of(table: &Table, listener: &Listener) -> Crowd {
    let connections_max = listener.limits.connections_max;
    Crowd {
        connections: table.connections_of(listener.id),
        connections_max: connections_max.min(table.connections_max()),
        strangers: table.strangers_of(listener.id),
        strangers_max: table.strangers_max_of(connections_max),
    }
}

/// A client that is kept out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptOutView {
    /// By this client id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<Box<str>>,
    /// Or by this verified user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<Box<str>>,
    /// For so long yet.
    pub seconds_left: u64,
}

pub(super) fn kept_out(list: &KeptOut, now: Time) -> Vec<KeptOutView> {
    let views = list.list(now).into_iter().map(|(who, left)| {
        let (client_id, username) = match who {
            KickWho::ClientId(client_id) => (Some(client_id), None),
            KickWho::Username(username) => (None, Some(username)),
        };
        KeptOutView {
            client_id,
            username,
            seconds_left: left.as_secs(),
        }
    });
    views.collect()
}

/// Why the node should get no traffic.
pub(super) fn not_ready(
    policy: &PolicyStatus,
    shards: &[ShardView],
    draining: bool,
    delivered_for: Duration,
    deaf: &[String],
) -> Vec<String> {
    let mut reasons = Vec::new();
    if draining {
        reasons.push("draining".to_owned());
    }
    if policy.active.is_none() {
        reasons.push("no policy is active".to_owned());
    }
    if let Some(delivered) = &policy.delivered
        && delivered_for > ACKNOWLEDGE_MAX
    {
        let behind = policy.shards.iter().zip(0_u16..);
        for (_, shard) in behind.filter(|(seen, _)| **seen < Some(delivered.generation)) {
            let generation = delivered.generation;
            reasons.push(format!(
                "shard {shard} has not acknowledged generation {generation}"
            ));
        }
    }
    for view in shards {
        if Duration::from_millis(view.silent_for_ms) > SHARD_SILENCE_MAX {
            reasons.push(format!("shard {} does not answer", view.shard));
        }
    }
    reasons.extend_from_slice(deaf);
    reasons
}

#[cfg(test)]
mod tests {
    use super::super::apply::Stage;
    use super::*;

    fn stage(generation: u64) -> Option<Stage> {
        Some(Stage {
            generation,
            source: "file:p.yaml".into(),
            digest: None,
            fleet_generation: None,
        })
    }

    fn view(shard: u16, silent_for: Duration) -> ShardView {
        ShardView::new(shard, "epoll", Some(1), &ShardGauges::default(), silent_for)
    }

    #[test]
    fn every_reason_not_to_be_ready_is_said() {
        let good = PolicyStatus {
            delivered: stage(2),
            active: stage(1),
            shards: vec![Some(2), Some(1)],
            ..PolicyStatus::default()
        };
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(60));
        let deaf = ["shard 0 cannot listen on `devices`".to_owned()];
        let quiet = [view(0, short), view(1, long)];
        type Case<'a> = (
            &'a PolicyStatus,
            &'a [ShardView],
            bool,
            Duration,
            &'a [String],
            &'a [&'a str],
        );
        let cases: [Case<'_>; 6] = [
            (&good, &quiet[..1], false, short, &[], &[]),
            (
                &PolicyStatus::default(),
                &[],
                false,
                short,
                &[],
                &["no policy is active"],
            ),
            (&good, &[], true, short, &[], &["draining"]),
            (
                &good,
                &[],
                false,
                long,
                &[],
                &["shard 1 has not acknowledged generation 2"],
            ),
            (
                &good,
                &quiet,
                false,
                short,
                &[],
                &["shard 1 does not answer"],
            ),
            (
                &good,
                &[],
                false,
                short,
                &deaf,
                &["shard 0 cannot listen on `devices`"],
            ),
        ];
        for (policy, shards, draining, delivered_for, deaf, expected) in cases {
            assert_eq!(
                not_ready(policy, shards, draining, delivered_for, deaf),
                expected
            );
        }
    }
}
