//! Says in the log when an endpoint stops and starts being used: its breaker opens or closes, a health check turns.
//!
//! Owns what was last said of each endpoint. Changes nothing; shards and health checks write the node's table.

use std::collections::BTreeMap;

use super::endpoints::{EndpointView, Trouble};
use crate::node::Fault;

/// Lines of one look; more changes are counted in one. Looks are two seconds apart.
const LINES_MAX: usize = 16;

/// What was last said of each endpoint that is not usable, by upstream and address.
#[derive(Default)]
pub(super) struct Outages {
    known: BTreeMap<(Box<str>, Box<str>, String), Trouble>,
}

/// One line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change<'a> {
    pub(super) endpoint: &'a EndpointView,
    /// `None`: it is used again.
    pub(super) trouble: Option<Trouble>,
}

impl Outages {
    /// What changed since the last look. Endpoints that are gone are forgotten in silence.
    pub(super) fn changes<'a>(&mut self, endpoints: &'a [EndpointView]) -> Vec<Change<'a>> {
        let mut changes = Vec::new();
        let mut now = BTreeMap::new();
        for endpoint in endpoints {
            let name = endpoint.endpoint.clone();
            let key = (endpoint.upstream.clone(), name, endpoint.address.clone());
            let before = self.known.get(&key).copied();
            let trouble = endpoint.trouble();
            if trouble != before {
                changes.push(Change { endpoint, trouble });
            }
            if let Some(trouble) = trouble {
                now.insert(key, trouble);
            }
        }
        self.known = now;
        changes
    }
}

/// Writes the changes to the log.
pub(super) fn tell(changes: &[Change<'_>]) {
    for Change { endpoint, trouble } in changes.iter().take(LINES_MAX) {
        let (upstream, name) = (&endpoint.upstream, &endpoint.endpoint);
        let (address, failures) = (&endpoint.address, endpoint.failures);
        let reason = endpoint.fault.map_or("unknown", Fault::words);
        match trouble {
            Some(Trouble::Unresolved) => {
                tracing::warn!(%upstream, endpoint = %name, reason, "endpoint cannot be used: its name has no address");
            }
            Some(Trouble::BreakerOpen) => {
                tracing::warn!(%upstream, endpoint = %name, address, reason, failures, "endpoint is left alone: it failed too often in a row; one probe at a time until one succeeds");
            }
            Some(Trouble::Unhealthy) => {
                tracing::warn!(%upstream, endpoint = %name, address, reason, "endpoint is used only when no other is left: its health checks fail");
            }
            Some(Trouble::Silent) => {
                tracing::warn!(%upstream, endpoint = %name, address, reason, "endpoint is used, but answers no CONNECT");
            }
            None => {
                tracing::info!(%upstream, endpoint = %name, address, "endpoint is used again");
            }
        }
    }
    let left_off = changes.len().saturating_sub(LINES_MAX);
    if left_off > 0 {
        tracing::warn!(
            left_off,
            "more endpoints changed; /upstreams shows them all"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(port: u16, healthy: bool, breaker_open: bool) -> EndpointView {
        EndpointView {
            upstream: "broker".into(),
            endpoint: "tcp://broker".into(),
            address: format!("127.0.0.1:{port}"),
            connections: 0,
            healthy,
            breaker_open,
            silent: false,
            fault: None,
            failures: 5,
        }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut outages = Outages::default();
        let mut told = |views: &[EndpointView]| -> Vec<(String, Option<Trouble>)> {
            let changes = outages.changes(views);
            let pair = |change: &Change<'_>| (change.endpoint.address.clone(), change.trouble);
            changes.iter().map(pair).collect()
        };
        let one = |trouble| vec![("127.0.0.1:1".to_owned(), trouble)];
        assert_eq!(told(&[view(1, true, false), view(2, true, false)]), []);
        let broken = [view(1, true, true), view(2, true, false)];
        assert_eq!(told(&broken), one(Some(Trouble::BreakerOpen)));
        assert_eq!(told(&broken), []);
        // The health check finds out too; the breaker is the stronger word until it closes.
        assert_eq!(told(&[view(1, false, true), view(2, true, false)]), []);
        let ill = [view(1, false, false), view(2, true, false)];
        assert_eq!(told(&ill), one(Some(Trouble::Unhealthy)));
        let well = [view(1, true, false), view(2, true, false)];
        assert_eq!(told(&well), one(None));
        // An endpoint that left in trouble and comes back well is no news.
        assert_eq!(told(&broken), one(Some(Trouble::BreakerOpen)));
        assert_eq!(told(&[view(2, true, false)]), []);
        assert_eq!(told(&well), []);
    }
}
