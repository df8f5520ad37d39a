//! Active health checks: when each endpoint is to be probed, and what the results add up to.
//!
//! Owns no socket: the control thread, the one owner per node, connects and reports. The result goes to the node's table,
//! where the shards' dials read it. A check is a TCP (or Unix) connect within the upstream's dial timeout.

use std::time::Duration;

use sluice_policy::{Snapshot, Upstream};

use crate::clock::Time;
use crate::node::{Directory, EndpointCell, Table};
use crate::ring::Target;

/// Failures in a row that make an endpoint unhealthy: one lost packet must not.
const FALL: u8 = 3;
/// Successes in a row that make it healthy again.
const RISE: u8 = 2;

/// The checks of all endpoints.
#[derive(Debug, Default)]
pub struct Checker {
    checks: Vec<Check>,
}

/// A probe that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Comes back in [`Checker::report`].
    pub cell: EndpointCell,
    /// Where to connect.
    pub target: Target,
    /// How long to wait.
    pub timeout: Duration,
}

#[derive(Debug)]
struct Check {
    cell: EndpointCell,
    target: Target,
    interval: Duration,
    timeout: Duration,
    due: Time,
    under_way: bool,
    healthy: bool,
    /// Results in a row against the present state.
    against: u8,
}

impl Checker {
    /// Checks the endpoints of this directory as this snapshot says from here on. Endpoints that are checked no more
    /// count as healthy; results of probes under way for them are ignored.
    pub fn follow(&mut self, snapshot: &Snapshot, directory: &Directory, table: &Table, now: Time) {
        self.follow_upstreams(snapshot.upstreams(), directory, table, now);
    }

    fn follow_upstreams(
        &mut self,
        upstreams: &[Upstream],
        directory: &Directory,
        table: &Table,
        now: Time,
    ) {
        let before = std::mem::take(&mut self.checks);
        for upstream in upstreams {
            let Some(interval) = upstream.health_interval else {
                continue;
            };
            for endpoint in directory.endpoints(upstream.id) {
                let known = before
                    .iter()
                    .find(|check| check.cell == endpoint.cell && check.target == endpoint.target);
                self.checks.push(Check {
                    cell: endpoint.cell,
                    target: endpoint.target.clone(),
                    interval,
                    timeout: upstream.dial_timeout,
                    due: known.map_or(now, |check| check.due),
                    under_way: known.is_some_and(|check| check.under_way),
                    healthy: known.is_none_or(|check| check.healthy),
                    against: known.map_or(0, |check| check.against),
                });
            }
        }
        for gone in &before {
            if !self.checks.iter().any(|check| check.cell == gone.cell)
                && let Some(state) = table.endpoint(gone.cell)
            {
                state.set_healthy(true);
            }
        }
    }

    /// A probe that is due, if any; call until `None`.
    pub fn due(&mut self, now: Time) -> Option<Probe> {
        let check = self
            .checks
            .iter_mut()
            .find(|check| !check.under_way && check.due <= now)?;
        check.under_way = true;
        Some(Probe {
            cell: check.cell,
            target: check.target.clone(),
            timeout: check.timeout,
        })
    }

    /// When [`Checker::due`] is worth asking again.
    pub fn next_due(&self) -> Option<Time> {
        self.checks
            .iter()
            .filter(|check| !check.under_way)
            .map(|check| check.due)
            .min()
    }

    /// How a probe went. True when the state of the endpoint changed, which is worth a line in the log.
    pub fn report(&mut self, table: &Table, probe: &Probe, reachable: bool, now: Time) -> bool {
        let Some(check) = self
            .checks
            .iter_mut()
            .find(|check| check.cell == probe.cell && check.target == probe.target)
        else {
            return false;
        };
        check.under_way = false;
        check.due = now.after(check.interval);
        if reachable == check.healthy {
            check.against = 0;
            return false;
        }
        check.against = check.against.saturating_add(1);
        let enough = if check.healthy { FALL } else { RISE };
        if check.against < enough {
            return false;
        }
        check.healthy = reachable;
        check.against = 0;
        if let Some(state) = table.endpoint(check.cell) {
            state.set_healthy(reachable);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sluice_policy::{Balance, UpstreamId};

    use super::*;
    use crate::node::{Located, TableConfig};

    fn upstream(health_interval: Option<Duration>) -> Upstream {
        Upstream {
            id: UpstreamId(0),
            name: "brokers".into(),
            endpoints: Box::default(),
            balance: Balance::RoundRobin,
            dial_timeout: Duration::from_secs(1),
            dial_attempts_max: 1,
            dial_backoff: Duration::ZERO,
            breaker_failures: 1,
            breaker_open: Duration::ZERO,
            health_interval,
        }
    }

    fn world() -> (Table, Directory) {
        let table = Table::new(&TableConfig::default());
        let located = (1..=2)
            .map(|port| Located {
                upstream: UpstreamId(0),
                name: format!("tcp://b:{port}").into(),
                target: Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port))),
            })
            .collect();
        let directory = Directory::build(&Directory::default(), &table, located).unwrap();
        (table, directory)
    }

    #[test]
    fn three_failures_make_an_endpoint_unhealthy_and_two_successes_healthy() {
        let (table, directory) = world();
        let mut checker = Checker::default();
        let interval = Duration::from_secs(5);
        let mut now = Time(0);
        checker.follow_upstreams(&[upstream(Some(interval))], &directory, &table, now);
        let state = table.endpoint(EndpointCell(0)).unwrap();
        let results = [
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ];
        for (step, (reachable, healthy)) in results.into_iter().enumerate() {
            let first = checker.due(now).unwrap();
            let second = checker.due(now).unwrap();
            assert!(checker.due(now).is_none(), "one probe each at a time");
            assert_eq!(first.cell, EndpointCell(0));
            checker.report(&table, &first, reachable, now);
            checker.report(&table, &second, true, now);
            assert_eq!(state.is_healthy(), healthy, "step {step}");
            assert_eq!(checker.next_due(), Some(now.after(interval)));
            now = now.after(interval);
        }
        assert!(table.endpoint(EndpointCell(1)).unwrap().is_healthy());
    }

    #[test]
    fn an_endpoint_checked_no_more_counts_as_healthy() {
        let (table, directory) = world();
        let mut checker = Checker::default();
        checker.follow_upstreams(
            &[upstream(Some(Duration::ZERO))],
            &directory,
            &table,
            Time(0),
        );
        for _ in 0..FALL {
            let probe = checker.due(Time(0)).unwrap();
            assert_eq!(probe.cell, EndpointCell(0));
            checker.report(&table, &probe, false, Time(0));
        }
        assert!(!table.endpoint(EndpointCell(0)).unwrap().is_healthy());
        let late = checker.due(Time(0)).unwrap();
        checker.follow_upstreams(&[upstream(None)], &directory, &table, Time(0));
        assert!(table.endpoint(EndpointCell(0)).unwrap().is_healthy());
        assert!(
            !checker.report(&table, &late, false, Time(0)),
            "a late result is ignored"
        );
        assert_eq!(checker.next_due(), None);
    }
}
