//! What operators see of upstream endpoints: each with its trouble, and the upstreams of which none works.
//!
//! Plain values read off the node's table; decides nothing. Shards and health checks write the table.

use serde::Serialize;
use sluice_policy::{Snapshot, UpstreamId};

use crate::node::{Directory, Fault, Table};
use crate::ring::Target;

/// Endpoints named of an upstream of which none works.
const SHOWN_MAX: usize = 4;

/// An endpoint as the node counts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Upstream it belongs to.
    pub upstream: Box<str>,
    /// As the policy spells it.
    pub endpoint: Box<str>,
    /// Where that is; empty when its name has no address.
    pub address: String,
    /// Connections open.
    pub connections: u32,
    /// False when the last active check failed, or when there is no address that could be checked.
    pub healthy: bool,
    /// True exactly when its breaker is not closed.
    pub breaker_open: bool,
    /// True exactly when many CONNECTs in a row had no answer there.
    pub silent: bool,
    /// What it failed at last; `None` after an answer.
    #[serde(rename = "reason", serialize_with = "by_name")]
    pub fault: Option<Fault>,
    /// Failures that it was charged with.
    pub failures: u64,
}

// The signature is serde's.
#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)]
fn by_name<S: serde::Serializer>(fault: &Option<Fault>, to: S) -> Result<S::Ok, S::Error> {
    fault.map(Fault::name).serialize(to)
}

/// Why an endpoint does not work, or is used only when no other is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its name has no address.
    Unresolved,
    /// It failed too often in a row.
    BreakerOpen,
    /// The last health checks failed.
    Unhealthy,
    /// Clients are sent there, and many in a row had no answer.
    Silent,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Unresolved,
        Self::BreakerOpen,
        Self::Unhealthy,
        Self::Silent,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::BreakerOpen => "breaker_open",
            Self::Unhealthy => "unhealthy",
            Self::Silent => "silent",
        }
    }
}

impl EndpointView {
    /// The gravest that there is.
    pub fn trouble(&self) -> Option<Trouble> {
        if self.address.is_empty() {
            Some(Trouble::Unresolved)
        } else if self.breaker_open {
            Some(Trouble::BreakerOpen)
        } else if !self.healthy {
            Some(Trouble::Unhealthy)
        } else {
            self.silent.then_some(Trouble::Silent)
        }
    }

    /// True exactly when clients are sent there by choice.
    pub fn is_used(&self) -> bool {
        matches!(self.trouble(), None | Some(Trouble::Silent))
    }

    /// The endpoint, its address where that says more, and what it failed at.
    fn words(&self) -> String {
        let fault = self.fault.map_or("its breaker is open", Fault::words);
        let address = if self.address.is_empty() || self.endpoint.ends_with(&self.address) {
            String::new()
        } else {
            format!(" ({})", self.address)
        };
        format!("{}{address}: {fault}", self.endpoint)
    }
}

/// An upstream that no client can be sent to, or only in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// Its name.
    pub upstream: Box<str>,
    /// True exactly when none of its endpoints is used; false when one is, and answers nothing.
    pub is_down: bool,
    /// For operators.
    pub line: String,
}

/// The upstreams without an endpoint that works. The views of one upstream come together.
pub fn degraded(endpoints: &[EndpointView]) -> Vec<Degraded> {
    let upstreams = endpoints.chunk_by(|one, other| one.upstream == other.upstream);
    let troubled = upstreams.filter(|views| views.iter().all(|view| view.trouble().is_some()));
    troubled.filter_map(all_lost).collect()
}

fn all_lost(views: &[EndpointView]) -> Option<Degraded> {
    let upstream = views.first()?.upstream.clone();
    let shown = views.iter().take(SHOWN_MAX).map(EndpointView::words);
    let shown: Vec<_> = shown.collect();
    let more = match views.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let shown = shown.join(", ");
    Some(Degraded {
        is_down: !views.iter().any(EndpointView::is_used),
        line: format!("upstream `{upstream}` has no endpoint that works: {shown}{more}"),
        upstream,
    })
}

/// The endpoints of the snapshot's upstreams, in its order; of each upstream those without an address come last.
pub(super) fn endpoints(
    snapshot: &Snapshot,
    directory: &Directory,
    table: &Table,
    missing: &[(UpstreamId, String)],
) -> Vec<EndpointView> {
    let mut views = Vec::new();
    for upstream in snapshot.upstreams() {
        for endpoint in directory.endpoints(upstream.id) {
            let Some(state) = table.endpoint(endpoint.cell) else {
                continue;
            };
            views.push(EndpointView {
                upstream: upstream.name.clone(),
                endpoint: endpoint.name().into(),
                address: match &endpoint.target {
                    Target::Tcp(address) => address.to_string(),
                    Target::Unix(path) => path.display().to_string(),
                },
                connections: state.open(),
                healthy: state.is_healthy(),
                breaker_open: state.is_open(),
                silent: state.is_silent(),
                fault: state.fault(),
                failures: state.failures(),
            });
        }
        let unresolved = missing.iter().filter(|(id, _)| *id == upstream.id);
        views.extend(unresolved.map(|(_, endpoint)| EndpointView {
            upstream: upstream.name.clone(),
            endpoint: endpoint.as_str().into(),
            address: String::new(),
            connections: 0,
            healthy: false,
            breaker_open: false,
            silent: false,
            fault: Some(Fault::NameNotFound),
            failures: 0,
        }));
    }
    views
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_whose_name_has_no_address_is_not_healthy() {
        let policy = "listeners: [{name: l, address: '127.0.0.1:0', upstream: u}]\n\
                      upstreams: [{name: u, endpoints: ['tcp://broker.example:1883']}]\n";
        let snapshot = sluice_policy::compile(policy, "test", sluice_policy::Generation(1), None);
        let snapshot = snapshot.expect("it compiles");
        let missing = [(
            snapshot.upstreams()[0].id,
            "tcp://broker.example:1883".to_owned(),
        )];
        let table = Table::new(&crate::node::TableConfig::default());
        let views = endpoints(&snapshot, &Directory::default(), &table, &missing);
        let [view] = &views[..] else {
            panic!("{views:?}");
        };
        assert!(!view.healthy && !view.is_used());
        assert_eq!(view.trouble(), Some(Trouble::Unresolved));
    }

    #[test]
    fn an_upstream_is_degraded_when_none_of_its_endpoints_works() {
        let view = |upstream: &str, port: u16, breaker_open, silent, fault| EndpointView {
            upstream: upstream.into(),
            endpoint: format!("tcp://127.0.0.1:{port}").into(),
            address: format!("127.0.0.1:{port}"),
            connections: 0,
            healthy: true,
            breaker_open,
            silent,
            fault,
            failures: 0,
        };
        let unresolved = EndpointView {
            endpoint: "tcp://broker.example:1883".into(),
            address: String::new(),
            ..view("c", 1, false, false, Some(Fault::NameNotFound))
        };
        let views = [
            view("a", 1, true, false, Some(Fault::Refused)),
            view("a", 2, false, false, Some(Fault::NoConnack)),
            view("b", 1, true, false, Some(Fault::Refused)),
            view("b", 2, false, true, Some(Fault::ClosedEarly)),
            unresolved,
        ];
        let found: Vec<_> = degraded(&views)
            .into_iter()
            .map(|degraded| (degraded.is_down, degraded.line))
            .collect();
        let lost = |upstream: &str, endpoints: &str| {
            format!("upstream `{upstream}` has no endpoint that works: {endpoints}")
        };
        let both = "tcp://127.0.0.1:1: refused, tcp://127.0.0.1:2: closed before CONNACK";
        let expected = [
            (false, lost("b", both)),
            (true, lost("c", "tcp://broker.example:1883: name not found")),
        ];
        assert_eq!(found, expected);
    }
}
