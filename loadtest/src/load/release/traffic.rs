//! Devices that publish through the node while its policy changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;

use super::super::beside::Beside;
use super::super::plan::{Plan, Scenario};
use super::super::report::Report;
use super::super::sink::Sink;
use super::super::target::Target;
use super::{ReleaseArgs, policy};

/// The broker behind the node.
pub(super) struct Traffic {
    sink: Option<Arc<Sink>>,
}

impl Traffic {
    /// Starts a broker where one is needed.
    pub(super) fn new(args: &ReleaseArgs) -> anyhow::Result<Self> {
        let sink = if args.traffic_rate > 0 {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            Some(Arc::new(Sink::start(any, None)?))
        } else {
            None
        };
        Ok(Self { sink })
    }

    /// The broker as policies name it; one that nobody dials where there is none.
    pub(super) fn upstream(&self) -> String {
        let address = self
            .sink
            .as_ref()
            .map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 1)), |sink| sink.tcp());
        format!("tcp://{address}")
    }

    /// Begins to send.
    pub(super) fn send(
        &self,
        args: &ReleaseArgs,
        listener: SocketAddr,
        rules: u32,
    ) -> anyhow::Result<Beside> {
        // The last rule is the one that changes; nobody uses it.
        anyhow::ensure!(
            args.connections < rules,
            "traffic needs more rules than --connections"
        );
        let plan = Plan {
            connections: args.connections,
            rate: args.traffic_rate,
            duration: args.duration,
            topics: policy::TOPICS.into(),
            ..Plan::new(Scenario::Publish, Target::Tcp(listener))
        };
        let sink = self.sink.clone().context("there is no broker")?;
        Ok(Beside::start(plan, sink))
    }
}

/// The numbers that matter, with a word before each.
pub(super) fn named(report: &Report, when: &str) -> BTreeMap<String, f64> {
    let numbers = report.numbers();
    [
        "p50",
        "p99",
        "p99.9",
        "max",
        "sent",
        "lost",
        "lateness.p99.9",
    ]
    .into_iter()
    .filter_map(|name| Some((format!("{when}.{name}"), *numbers.get(name)?)))
    .collect()
}
