//! How the node is, in the words of the contract: heartbeats, pages of sessions, cursors.
//!
//! Pure: what is known comes in, a message comes out.

use sluice_proto::v1;

use super::agent::Agent;
use crate::control::observe::Observed;
use crate::control::{SessionCursor, SessionPage};
use crate::metrics::{Counter, Counters};

/// Reasons not to be ready in one heartbeat.
const REASONS_MAX: usize = 100;

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

/// The heartbeat of this moment.
pub(super) fn heartbeat(observed: &Observed, agent: &Agent, memory_bytes: u64) -> v1::Heartbeat {
    let shards = observed.shards.iter().zip(&observed.counters);
    let healthy = observed.endpoints.iter().filter(|view| view.healthy);
    v1::Heartbeat {
        shards: shards
            .map(|(view, cells)| v1::heartbeat::Shard {
                active: agent.generation(view.generation).cloned(),
                sessions: view.sessions.into(),
                messages: sum(cells, &MESSAGES),
                denials: sum(cells, &DENIALS),
                turn_max_us: view.loop_lag_micros,
                backlog_bytes: view.backlog_bytes,
            })
            .collect(),
        is_draining: observed.is_draining,
        endpoints: count(observed.endpoints.len()),
        endpoints_healthy: count(healthy.count()),
        memory_bytes,
        not_ready: observed
            .not_ready
            .iter()
            .take(REASONS_MAX)
            .cloned()
            .collect(),
    }
}

/// The answer to a question for sessions.
pub(super) fn page(request: u64, page: &SessionPage) -> v1::SessionPage {
    let session = |(shard, info, listener): &(u16, crate::node::SessionInfo, Box<str>)| {
        v1::session_page::Session {
            client_id: info.client_id.as_deref().unwrap_or_default().into(),
            username: info.username.as_deref().map(Into::into),
            peer: info.peer.to_string(),
            listener: listener.as_ref().into(),
            open_secs: info.open_for.as_secs(),
            shard: (*shard).into(),
        }
    };
    v1::SessionPage {
        request,
        sessions: page.sessions.iter().map(session).collect(),
        next: page.next.map(|next| next.to_string()),
        error: String::new(),
    }
}

/// The same, when there is none.
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
