//! The decision log, switched on and off at run time: what is logged, and until when.
//!
//! Owns the switch. It always has an end, unless the process was started with it, so that it is not left on unknowingly; while
//! it is on, readiness, metrics and the log say so.

use std::time::Duration;

use serde::Serialize;

use super::*;
use crate::node::{DecisionLog, DecisionSampler, NameKey};

/// Longest time for which it can be switched on.
pub const DECISION_LOG_MAX: Duration = Duration::from_secs(24 * 3600);

/// The switch, on the control thread.
pub(super) struct Switch {
    names: NameKey,
    log: Option<DecisionLog>,
    until_unix_ms: Option<u64>,
}

/// The decision log as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DecisionLogView {
    /// One of so many is logged.
    pub every: u32,
    /// Only refusals.
    pub denials: bool,
    /// Only of this listener.
    pub listener: Option<Box<str>>,
    /// Only of this client id.
    pub client_id: Option<Box<str>>,
    /// Only of this user.
    pub user: Option<Box<str>>,
    /// Only of these topics.
    pub topic: Option<Box<str>>,
    /// When it ends by itself; `None`: with the process, which was started with it.
    pub until_unix_ms: Option<u64>,
}

impl Switch {
    pub(super) fn new(names: NameKey, log: Option<DecisionLog>) -> Self {
        Self {
            names,
            log,
            until_unix_ms: None,
        }
    }

    pub(super) fn view(&self) -> Option<DecisionLogView> {
        let log = self.log.as_ref()?;
        let filter = log.filter.clone();
        Some(DecisionLogView {
            every: log.every.get(),
            denials: filter.denials,
            listener: filter.listener,
            client_id: filter.client_id,
            user: filter.user,
            topic: filter.topic,
            until_unix_ms: self.until_unix_ms,
        })
    }
}

impl Control {
    /// On for a time, or off.
    pub(super) fn switch_decisions(&mut self, wanted: Option<(DecisionLog, Duration)>) {
        self.decisions.until_unix_ms = None;
        self.decisions.log = wanted.map(|(log, time)| {
            let time = time.min(DECISION_LOG_MAX);
            let millis = u64::try_from(time.as_millis()).unwrap_or(0);
            self.decisions.until_unix_ms = Some(clock::unix_millis().saturating_add(millis));
            DecisionLog {
                until: Some(clock::monotonic().after(time)),
                ..log
            }
        });
        match self.decisions.view() {
            Some(view) => {
                tracing::warn!(?view, "decisions are logged: topics, client ids and users")
            }
            None => tracing::info!("decisions are not logged any more"),
        }
        for link in self.links.iter() {
            let sampler = self.decisions.log.clone().map(|log| {
                let names = self.decisions.names.clone();
                Box::new(DecisionSampler::new(log, names))
            });
            let _ = link.send(ToShard::LogDecisions(sampler)); // a shard that is gone decides nothing
        }
    }

    /// Switches it off when its time is over. Shards stop by themselves at that time.
    pub(super) fn end_decisions(&mut self, now: Time) {
        let until = self.decisions.log.as_ref().and_then(|log| log.until);
        if until.is_some_and(|until| now >= until) {
            self.switch_decisions(None);
        }
    }
}
