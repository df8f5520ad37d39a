//! How the node is, in the words of the contract: heartbeats, pages of sessions and of rules, cursors.
//!
//! Pure: what is known comes in, a message comes out.

use sluice_policy::{Effect, RulePlace};
use sluice_proto::v1;
use sluice_proto::v1::endpoint_trouble::Fault as Told;

use super::agent::Agent;
use crate::control::endpoints::{self, EndpointView};
use crate::control::observe::Observed;
use crate::control::rules::{RulePage, RuleTally};
use crate::control::{SessionCursor, SessionPage};
use crate::metrics::{Counter, Counters};
use crate::node::{Fault, SessionInfo};

/// Reasons not to be ready in one heartbeat.
const REASONS_MAX: usize = 100;
/// Endpoints that do not work in one heartbeat.
const TROUBLES_MAX: usize = 100;
/// A page of sessions stays below this, unless one alone is longer; the control plane takes messages of 4 MiB.
const PAGE_BYTES_MAX: usize = 2 << 20;
/// What a session weighs beside its names: address, numbers, and what is around them.
const SESSION_OVERHEAD_BYTES: usize = 96;

/// Messages judged, whatever became of them.
const MESSAGES: [Counter; 5] = [
    Counter::PublishForwarded,
    Counter::PublishDenied,
    Counter::DeliveryForwarded,
    Counter::DeliveryDenied,
    Counter::DeliveryTooLarge,
];
/// What policy refused: messages, filters, wills, and sessions.
const DENIALS: [Counter; 5] = [
    Counter::PublishDenied,
    Counter::DeliveryDenied,
    Counter::SubscribeDenied,
    Counter::WillDenied,
    Counter::EndedDenied,
];

/// The heartbeat of this moment. Begins the longest turns anew.
pub(super) fn heartbeat(observed: &Observed, agent: &Agent, memory_bytes: u64) -> v1::Heartbeat {
    let shards = observed.shards.iter().zip(&observed.counters);
    let used = observed.endpoints.iter().filter(|view| view.is_used());
    let (troubles, troubles_left_off) = troubles(&observed.endpoints);
    v1::Heartbeat {
        shards: shards
            .map(|(view, cells)| v1::heartbeat::Shard {
                active: agent.generation(view.generation).cloned(),
                sessions: view.sessions.into(),
                messages: sum(cells, &MESSAGES),
                denials: sum(cells, &DENIALS),
                turn_max_us: cells.take_turn_max(),
                backlog_bytes: view.backlog_bytes,
            })
            .collect(),
        is_draining: observed.is_draining,
        endpoints: count(observed.endpoints.len()),
        endpoints_healthy: count(used.count()),
        memory_bytes,
        not_ready: observed
            .not_ready
            .iter()
            .take(REASONS_MAX)
            .cloned()
            .collect(),
        troubles,
        troubles_left_off,
    }
}

/// Endpoints that do not work, those of upstreams without another first; and how many more there are.
fn troubles(views: &[EndpointView]) -> (Vec<v1::EndpointTrouble>, u64) {
    let degraded = endpoints::degraded(views);
    let is_last = |view: &EndpointView| degraded.iter().any(|lost| lost.upstream == view.upstream);
    let troubled = views.iter().filter(|view| view.trouble().is_some());
    let (last, others): (Vec<_>, Vec<_>) = troubled.partition(|view| is_last(view));
    let told = last.iter().chain(&others).take(TROUBLES_MAX);
    let told: Vec<_> = told
        .map(|view| v1::EndpointTrouble {
            upstream: view.upstream.as_ref().into(),
            endpoint: view.endpoint.as_ref().into(),
            address: view.address.clone(),
            fault: view.fault.map_or(Told::Unspecified, in_contract).into(),
            is_last: is_last(view),
        })
        .collect();
    let left_off = last.len() + others.len() - told.len();
    (told, left_off as u64)
}

fn in_contract(fault: Fault) -> Told {
    match fault {
        Fault::Refused => Told::Refused,
        Fault::Unreachable => Told::Unreachable,
        Fault::TimedOut => Told::TimedOut,
        Fault::NameNotFound => Told::NameNotFound,
        Fault::NoConnack => Told::NoConnack,
        Fault::ClosedEarly => Told::ClosedBeforeConnack,
        Fault::Unavailable => Told::Unavailable,
        Fault::NotMqtt => Told::NotMqtt,
    }
}

/// The answer to a question for sessions: as many of them as fit, and at least one. Names may have 64 KiB each where the
/// policy says so.
pub(super) fn page(request: u64, page: &SessionPage) -> v1::SessionPage {
    let mut bytes = 0;
    let fits = |(_, info, listener): &&(u16, SessionInfo, Box<str>)| {
        let names = [info.client_id.as_ref(), info.username.as_ref()];
        let names: usize = names.into_iter().flatten().map(|name| name.len()).sum();
        let is_first = bytes == 0;
        bytes += SESSION_OVERHEAD_BYTES + names + listener.len();
        is_first || bytes <= PAGE_BYTES_MAX
    };
    let fitting = page.sessions.iter().take_while(fits).count();
    let (sessions, left_off) = page.sessions.split_at(fitting);
    let left_off = left_off.first().map(|(shard, info, _)| SessionCursor {
        shard: *shard,
        slot: info.session.slot,
    });
    let session =
        |(shard, info, listener): &(u16, SessionInfo, Box<str>)| v1::session_page::Session {
            client_id: info.client_id.as_deref().unwrap_or_default().into(),
            username: info.username.as_deref().map(Into::into),
            peer: info.peer.to_string(),
            listener: listener.as_ref().into(),
            open_secs: info.open_for.as_secs(),
            shard: (*shard).into(),
        };
    v1::SessionPage {
        request,
        sessions: sessions.iter().map(session).collect(),
        next: left_off.or(page.next).map(|next| next.to_string()),
        error: String::new(),
    }
}

/// The answer to a question for rules. Their names are short, so as many as may be asked for fit.
pub(super) fn rules(request: u64, page: &RulePage) -> v1::RulePage {
    let rule = |rule: &RuleTally| v1::rule_page::Rule {
        place: Some(place(&rule.place)),
        is_shadow: rule.is_shadow,
        denies: rule.effect == Effect::Deny,
        decided: rule.count.decided,
        otherwise: rule.count.otherwise,
        since_unix_ms: rule.since_unix_ms,
    };
    v1::RulePage {
        request,
        rules: page.rules.iter().map(rule).collect(),
        next: page.next.as_ref().map(place),
        by_default: page.by_default,
        left_off: page.left_off,
        since_unix_ms: page.since_unix_ms,
        error: String::new(),
    }
}

fn place(place: &RulePlace) -> v1::RulePlace {
    v1::RulePlace {
        priority: place.priority,
        order: place.order,
        tie: place.tie,
        name: place.name.as_ref().into(),
    }
}

/// The same, when there are none.
pub(super) fn no_rules(request: u64, error: &str) -> v1::RulePage {
    v1::RulePage {
        request,
        error: error.into(),
        ..v1::RulePage::default()
    }
}

/// No page of sessions.
pub(super) fn no_page(request: u64, error: &str) -> v1::SessionPage {
    v1::SessionPage {
        request,
        error: error.into(),
        ..v1::SessionPage::default()
    }
}

/// Where a list goes on; from the beginning when nothing is said.
pub(super) fn cursor(after: Option<&str>) -> Option<SessionCursor> {
    match after {
        None => Some(SessionCursor::default()),
        Some(text) => text.parse().ok(),
    }
}

fn sum(cells: &Counters, counters: &[Counter]) -> u64 {
    let values = counters.iter().map(|counter| cells.read(*counter));
    values.fold(0, u64::wrapping_add)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use sluice_policy::ListenerId;
    use sluice_proto::Message;

    use super::*;
    use crate::node::SessionRef;

    fn session(shard: u16, slot: u32, name_bytes: usize) -> (u16, SessionInfo, Box<str>) {
        let info = SessionInfo {
            session: SessionRef { slot, epoch: 0 },
            listener: ListenerId(0),
            client_id: Some("c".repeat(name_bytes).into()),
            username: Some("u".repeat(name_bytes).into()),
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            open_for: Duration::ZERO,
        };
        (shard, info, "main".into())
    }

    #[test]
    fn a_heartbeat_names_the_endpoints_that_do_not_work_the_gravest_first() {
        let view = |upstream: &str, port: usize, breaker_open| EndpointView {
            upstream: upstream.into(),
            endpoint: format!("tcp://b:{port}").into(),
            address: format!("10.0.0.1:{port}"),
            connections: 0,
            healthy: true,
            breaker_open,
            silent: false,
            fault: breaker_open.then_some(Fault::Refused),
            failures: 0,
        };
        let mut views: Vec<_> = (0..120).map(|port| view("a", port, port > 0)).collect();
        views.push(view("b", 1, true));
        let (told, left_off) = troubles(&views);
        assert_eq!((told.len(), left_off), (TROUBLES_MAX, 20));
        let first = v1::EndpointTrouble {
            upstream: "b".into(),
            endpoint: "tcp://b:1".into(),
            address: "10.0.0.1:1".into(),
            fault: Told::Refused.into(),
            is_last: true,
        };
        assert_eq!(told.first(), Some(&first));
        assert!(told.iter().skip(1).all(|other| !other.is_last));
    }

    #[test]
    fn a_page_of_the_longest_names_fits_into_a_message_and_goes_on_where_it_was_cut() {
        let names_bytes = usize::from(u16::MAX);
        let all: Vec<_> = (0..1000)
            .map(|n| session(u16::from(n >= 10), n, names_bytes))
            .collect();
        let next = SessionCursor { shard: 9, slot: 9 };
        let mut from = 0;
        let mut pages = 0;
        while from < all.len() {
            let found = SessionPage {
                sessions: all[from..].to_vec(),
                next: Some(next),
            };
            let page = page(7, &found);
            assert!(page.encoded_len() <= PAGE_BYTES_MAX);
            assert!(!page.sessions.is_empty(), "it never ends");
            from += page.sessions.len();
            let left_off = all.get(from).map(|(shard, info, _)| SessionCursor {
                shard: *shard,
                slot: info.session.slot,
            });
            assert_eq!(page.next, Some(left_off.unwrap_or(next).to_string()));
            pages += 1;
        }
        assert_eq!(pages, 67, "fifteen sessions of 128 KiB in each");
        let short = SessionPage {
            sessions: (0..1000).map(|n| session(0, n, 20)).collect(),
            next: None,
        };
        let page = page(7, &short);
        assert_eq!((page.sessions.len(), page.next), (1000, None));
    }
}
