//! Why a generation answers as it does, and the compiled policies kept for that.
//!
//! # Invariants
//!
//! - At most two compiled policies are kept: the one in force and the one asked about last. They are made when they are
//!   first asked about, one is made at a time, and one that is not asked about any more is forgotten.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_policy::fleet::Inventory;
use sluice_policy::{
    Action, Cancel, Generation, ListenerId, Question, Request, Snapshot, Who, convert,
};
use sluice_wire::mqtt::{FilterError, QoS, Version, is_topic_name, parse_filter};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{COSTLY_FOR, Failed, Releases, Share};
use crate::domain::TokenId;
use crate::store::StoreError;

/// What a compiled row takes with all that is made on the way, in bytes.
const COMPILED_ROW_COST_BYTES: usize = 1400;
/// How long the compiled policy that is in force is kept without a question: compiling it again may take half a minute.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// See [`Snapshots`].
const ANSWERS_MAX: usize = 4;

/// What is asked about.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Name of the listener; `None`: the only one.
    pub listener: Option<String>,
    /// Of the client.
    pub address: IpAddr,
    /// Of the protocol.
    pub version: Version,
    /// As it goes upstream.
    pub client_id: String,
    /// The verified user; `None`: anonymous.
    pub username: Option<String>,
    /// What the client wants to do.
    pub action: Action,
    /// A topic, or the filter of a subscription; not read for [`Action::Connect`].
    pub topic: String,
    /// Of the message or subscription.
    pub qos: QoS,
    /// Of the message.
    pub retain: bool,
    /// Of the message.
    pub payload_bytes: u32,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The number the store gave the generation.
    pub generation: u64,
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// For people.
    pub text: String,
    /// For programs.
    pub json: String,
}

/// Compiled policies by number; see the module documentation.
pub(super) struct Snapshots {
    kept: Mutex<Vec<Kept>>,
    /// Held while one is made.
    making: tokio::sync::Mutex<()>,
    /// Questions answered at once; each takes milliseconds, the next one waits.
    answers: Semaphore,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            answers: Semaphore::new(ANSWERS_MAX),
        }
    }
}

#[derive(Clone)]
struct Kept {
    number: u64,
    snapshot: Arc<Snapshot>,
    /// True exactly when it was made without another one. Numbers of listeners are never used again, so a long chain of
    /// snapshots, each made out of the one before, would use them up.
    is_fresh: bool,
    asked_at: Instant,
}

impl Snapshots {
    /// The one of a generation, if it is at hand.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Snapshot>> {
        self.find(number).map(|kept| kept.snapshot)
    }

    fn find(&self, number: u64) -> Option<Kept> {
        let mut kept = self.lock();
        let found = kept.iter_mut().find(|kept| kept.number == number)?;
        found.asked_at = Instant::now();
        Some(found.clone())
    }

    /// Gives back those that have not been asked about for a while, to be dropped.
    pub(super) fn forget(&self, in_force: u64, now: Instant) -> Vec<Arc<Snapshot>> {
        let is_outlived = |kept: &mut Kept| {
            let is_in_force = kept.number == in_force;
            let kept_for = if is_in_force { KEPT_FOR } else { COSTLY_FOR };
            now.duration_since(kept.asked_at) >= kept_for
        };
        let mut kept = self.lock();
        let outlived = kept.extract_if(.., is_outlived);
        outlived.map(|kept| kept.snapshot).collect()
    }

    /// Which there are.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.lock().iter().map(|kept| kept.number).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        // What is kept is whole whatever happened to who held the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, new: Kept, in_force: u64) {
        let mut kept = self.lock();
        kept.retain(|old| old.number == in_force && old.number != new.number);
        kept.push(new);
    }
}

impl Releases {
    /// Explains to a token what a generation answers; `None`: the one in force.
    pub async fn explain(
        &self,
        number: Option<u64>,
        asked: Asked,
        token: &TokenId,
    ) -> Result<Explained, Failed> {
        let (number, snapshot) = self.snapshot(number, token).await?;
        // The semaphore is never closed.
        let _turn = self.inner.snapshots.answers.acquire().await;
        let answer = self.slow(move || answer(&snapshot, number, &asked));
        answer.await?
    }

    pub(super) async fn snapshot(
        &self,
        number: Option<u64>,
        token: &TokenId,
    ) -> Result<(u64, Arc<Snapshot>), Failed> {
        let in_force_number = self.in_force_number();
        let number = number.unwrap_or(in_force_number);
        if number == 0 {
            return Err(Failed::NotFound("nothing is released yet".into()));
        }
        if let Some(snapshot) = self.inner.snapshots.get(number) {
            return Ok((number, snapshot));
        }
        let seat = self.seat(Share::Readers, token)?;
        let rows = usize::try_from(self.generation(number).await?.rows);
        let cost = rows
            .unwrap_or(usize::MAX)
            .saturating_mul(COMPILED_ROW_COST_BYTES);
        let turn = seat.turn(cost).await?;
        let _making = self.inner.snapshots.making.lock().await;
        if let Some(snapshot) = self.inner.snapshots.get(number) {
            return Ok((number, snapshot));
        }
        let rows = self.rows_of(number).await?;
        let previous = self.inner.snapshots.find(in_force_number);
        let previous = previous.filter(|kept| kept.is_fresh);
        let kept = turn.run(move |cancel| compile(&rows, number, previous.as_ref(), cancel));
        let kept = kept.await??;
        let snapshot = Arc::clone(&kept.snapshot);
        self.inner.snapshots.keep(kept, in_force_number);
        Ok((number, snapshot))
    }
}

/// Compiles stored rows.
fn compile(
    rows: &Inventory,
    number: u64,
    previous: Option<&Kept>,
    cancel: &Cancel,
) -> Result<Kept, Failed> {
    let like = previous.map(|kept| &*kept.snapshot);
    let snapshot = convert::compile_inventory_until(rows, Generation(number), like, cancel);
    if cancel.is_cancelled() {
        return Err(Failed::Stopped);
    }
    let snapshot = snapshot.map_err(|refused| {
        let first = refused.problems().first();
        let first = first.map_or_else(String::new, |problem| format!(": {problem}"));
        StoreError::Corrupt(format!("the rows do not compile{first}"))
    })?;
    Ok(Kept {
        number,
        snapshot: Arc::new(snapshot),
        is_fresh: previous.is_none(),
        asked_at: Instant::now(),
    })
}

fn answer(snapshot: &Snapshot, number: u64, asked: &Asked) -> Result<Explained, Failed> {
    let who = Who {
        listener: listener(snapshot, asked.listener.as_deref()).map_err(Failed::Invalid)?,
        address: asked.address,
        version: asked.version,
        client_id: &asked.client_id,
        username: asked.username.as_deref(),
    };
    let question = question(asked).map_err(Failed::Invalid)?;
    let explanation = snapshot.explain(&who, &question);
    let json = serde_json::to_string_pretty(&explanation);
    let json = json.map_err(|error| Failed::Invalid(error.to_string()))?;
    Ok(Explained {
        generation: number,
        decision: explanation.decision,
        text: explanation.to_string(),
        json,
    })
}

fn listener(snapshot: &Snapshot, name: Option<&str>) -> Result<ListenerId, String> {
    let names = || {
        let names: Vec<&str> = snapshot.listeners().iter().map(|l| &*l.name).collect();
        names.join(", ")
    };
    match (name, snapshot.listeners()) {
        (Some(name), _) => snapshot
            .listener_by_name(name)
            .map(|listener| listener.id)
            .ok_or_else(|| format!("no listener `{name}`; the policy has: {}", names())),
        (None, [only]) => Ok(only.id),
        (None, []) => Err("the policy has no listener".into()),
        (None, _) => Err(format!("`listener` is needed, one of: {}", names())),
    }
}

fn question(asked: &Asked) -> Result<Question<'_>, String> {
    let topic = asked.topic.as_str();
    match asked.action {
        Action::Connect => Ok(Question::Connect),
        Action::Publish | Action::Receive => {
            if !is_topic_name(topic) {
                return Err(format!(
                    "`{topic}` is no topic name (not empty, no `+`, `#` or NUL)"
                ));
            }
            Ok(Question::Message(Request {
                action: asked.action,
                topic,
                qos: asked.qos,
                retain: asked.retain,
                payload_bytes: asked.payload_bytes,
            }))
        }
        Action::Subscribe => {
            let parsed = parse_filter(topic)
                .map_err(|error| format!("`{topic}` is no topic filter: {}", fault(error)))?;
            Ok(Question::Subscribe {
                filter: parsed.filter,
                qos: asked.qos,
                shared: parsed.share_group.is_some(),
            })
        }
    }
}

/// What is wrong with a filter, in words.
fn fault(error: FilterError) -> &'static str {
    match error {
        FilterError::Empty => "it is empty",
        FilterError::TooLong => "it is longer than 65535 bytes",
        FilterError::Nul => "it contains NUL",
        FilterError::MultiLevelNotLast => "`#` must be the last level",
        FilterError::MultiLevelNotAlone => "`#` must be a whole level",
        FilterError::WildcardNotAlone => "`+` must be a whole level",
        FilterError::ShareGroup => "the name of the share is empty or has a wildcard",
        FilterError::ShareWithoutFilter => "no filter follows the name of the share",
    }
}
