//! Active health checks: one small connection per interval to each endpoint whose upstream asks for it.
//!
//! Owns one task per checked endpoint and is the only writer of the health bit in the node's table. An endpoint is
//! called unhealthy after [`FAILURES`] failed probes in a row, healthy after one good one. Shards only read the bit.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy::Snapshot;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;

use crate::clock;
use crate::node::{Directory, EndpointCell, Fault, Table};
use crate::ring::Target;

/// One lost SYN must not move a fleet.
const FAILURES: u32 = 2;
/// Whatever the policy says, checking must not become a load of its own.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The checks that run.
pub struct Health {
    table: Arc<Table>,
    running: BTreeMap<EndpointCell, (Plan, AbortHandle)>,
}

/// What is checked and how.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    upstream: Box<str>,
    target: Target,
    interval: Duration,
    timeout: Duration,
}

impl Health {
    /// Nothing is checked yet.
    pub fn new(table: Arc<Table>) -> Self {
        Self {
            table,
            running: BTreeMap::new(),
        }
    }

    /// Starts and stops checks as the policy and the directory ask for; those that stay are not disturbed.
    pub fn follow(&mut self, snapshot: &Snapshot, directory: &Directory) {
        let mut plans = plans(snapshot, directory);
        let table = &self.table;
        self.running.retain(|cell, (plan, task)| {
            let stays = plans.get(cell) == Some(plan);
            if stays {
                plans.remove(cell);
            } else {
                task.abort();
                // Who is not checked is trusted until a dial says otherwise.
                mark(table, *cell, true);
            }
            stays
        });
        for (cell, plan) in plans {
            let task = tokio::spawn(check(Arc::clone(&self.table), cell, plan.clone()));
            self.running.insert(cell, (plan, task.abort_handle()));
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

fn plans(snapshot: &Snapshot, directory: &Directory) -> BTreeMap<EndpointCell, Plan> {
    let mut plans = BTreeMap::new();
    for upstream in snapshot.upstreams() {
        let Some(interval) = upstream.health_interval else {
            continue;
        };
        for endpoint in directory.endpoints(upstream.id) {
            let plan = Plan {
                upstream: upstream.name.clone(),
                target: endpoint.target.clone(),
                interval,
                timeout: upstream.dial_timeout,
            };
            plans.insert(endpoint.cell, plan);
        }
    }
    plans
}

/// Probes for ever; aborted when the plan changes.
async fn check(table: Arc<Table>, cell: EndpointCell, plan: Plan) {
    let mut ticks = tokio::time::interval(plan.interval.max(INTERVAL_MIN));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failures = 0_u32;
    loop {
        ticks.tick().await;
        let probe = tokio::time::timeout(plan.timeout, probe(&plan.target)).await;
        let result = probe.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let was_healthy = table.endpoint(cell).is_some_and(|state| state.is_healthy());
        match result {
            Ok(()) => {
                failures = 0;
                if !was_healthy {
                    tracing::info!(upstream = %plan.upstream, endpoint = place(&plan.target), "endpoint is healthy again");
                    mark(&table, cell, true);
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if let Some(state) = table.endpoint(cell) {
                    state.noticed(clock::monotonic(), fault_of(&error));
                }
                if was_healthy && failures >= FAILURES {
                    tracing::warn!(upstream = %plan.upstream, endpoint = place(&plan.target), %error, "endpoint fails its health check");
                    mark(&table, cell, false);
                }
            }
        }
    }
}

/// As policies write it.
fn place(target: &Target) -> String {
    match target {
        Target::Tcp(address) => format!("tcp://{address}"),
        Target::Unix(path) => format!("unix://{}", path.display()),
    }
}

async fn probe(target: &Target) -> io::Result<()> {
    match target {
        Target::Tcp(address) => TcpStream::connect(address).await.map(drop),
        Target::Unix(path) => UnixStream::connect(path).await.map(drop),
    }
}

fn fault_of(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        Some(errno) => Fault::of_errno(errno),
        None => Fault::TimedOut,
    }
}

fn mark(table: &Table, cell: EndpointCell, healthy: bool) {
    if let Some(state) = table.endpoint(cell) {
        state.set_healthy(healthy);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use sluice_policy::{Generation, UpstreamId};

    use super::*;
    use crate::node::{Located, TableConfig};

    fn snapshot(endpoint: SocketAddr, health: &str) -> Snapshot {
        let document = format!(
            "listeners: [{{name: l, address: '127.0.0.1:0', upstream: u}}]
upstreams: [{{name: u, endpoints: ['tcp://{endpoint}']{health}}}]\n"
        );
        sluice_policy::compile(&document, "test", Generation(1), None).expect("a good document")
    }

    fn directory(table: &Table, endpoint: SocketAddr) -> Directory {
        let located = Located {
            upstream: UpstreamId(0),
            name: "broker".into(),
            target: Target::Tcp(endpoint),
        };
        Directory::build(&Directory::default(), table, vec![located]).expect("room")
    }

    /// Waits for a probe to change the bit, under a bound that only a failure reaches.
    async fn becomes(table: &Table, healthy: bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(1));
        let changed = async {
            while table
                .endpoint(EndpointCell(0))
                .map(|state| state.is_healthy())
                != Some(healthy)
            {
                looks.tick().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), changed).await;
        assert!(waited.is_ok(), "healthy does not become {healthy}");
    }

    #[tokio::test]
    async fn an_endpoint_falls_and_rises_with_its_socket_and_is_trusted_when_unchecked() {
        let table = Arc::new(Table::new(&TableConfig::default()));
        let broker = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = broker.local_addr().expect("bound");
        let directory = directory(&table, address);
        let checked = snapshot(address, ", health: {interval: 100ms}");
        let mut health = Health::new(Arc::clone(&table));
        health.follow(&checked, &directory);
        assert_eq!(health.running.len(), 1);

        drop(broker);
        becomes(&table, false).await;
        let again = TcpListener::bind(address).expect("the port is free");
        becomes(&table, true).await;
        drop(again);
        becomes(&table, false).await;

        health.follow(&snapshot(address, ""), &directory);
        assert!(health.running.is_empty());
        assert!(
            table
                .endpoint(EndpointCell(0))
                .is_some_and(|state| state.is_healthy())
        );
    }

    #[tokio::test]
    async fn a_check_that_stays_is_not_started_again() {
        let table = Arc::new(Table::new(&TableConfig::default()));
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let directory = directory(&table, address);
        let checked = snapshot(address, ", health: {interval: 1h}");
        let mut health = Health::new(Arc::clone(&table));
        health.follow(&checked, &directory);
        let before = health.running.values().next().map(|(_, task)| task.id());
        health.follow(&checked, &directory);
        let after = health.running.values().next().map(|(_, task)| task.id());
        assert_eq!(before, after);
        assert!(before.is_some());
    }
}
