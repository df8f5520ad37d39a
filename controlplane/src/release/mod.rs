//! From documents to generations in force: check, compile on trial, compare, store, release, roll back.
//!
//! Owns what is in force: one value that everybody watches, changed only after the store has it. A caller who goes away
//! in the middle changes nothing about that: what was begun is finished.
//!
//! # Invariants
//!
//! - What is published as in force is what the store has in force, or had a moment ago; values are published in the order
//!   in which the store took them.
//! - Of two writers who saw the same state one wins; the store decides which, and the other is told.

mod apply;
mod at_hand;
mod desk;
mod document;
mod explain;
mod fault;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use foldhash::HashSet;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use sluice_policy::fleet::Inventory;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use crate::auth::Stay;
use crate::domain::diff::Summary;
use crate::domain::{
    AuditEntry, Generation, GenerationId, NewGeneration, State, TokenId, UnixMillis,
};
use crate::store::{Heads, Store, StoreError};

use at_hand::{AtHand, Rows};
use desk::Desk;
use explain::Snapshots;

pub use apply::{Against, Applied, Checked, Compared};
pub use desk::{Seat, Share};
pub use document::{COMMENT_BYTES_MAX, DOCUMENT_BYTES_MAX, Document, Draft, FILE_BYTES_MAX};
pub use explain::{Asked, Explained};
pub use fault::{Failed, Wrong};

/// Releases and rollbacks that are being made or wait for their turn; they are made one after the other.
const CHANGERS_MAX: usize = 16;

/// A generation that is not in force stays in memory while fewer rows than this (about 4 MB) differ from those in force.
/// One that differs more stays for a short time only, for the call that is likely to come next.
pub const COSTLY_FROM_ROWS: usize = 10_000;
/// How long a while is: a release follows its apply, a rollback its release, and a slow node catches up.
pub const COSTLY_FOR: Duration = Duration::from_secs(20);

/// What is in force.
#[derive(Clone, Debug)]
pub struct Released {
    /// Which generation.
    pub id: GenerationId,
    /// Its rows.
    pub rows: Inventory,
    /// The features that its rows name: a node that lacks one must not get it.
    pub features: Arc<HashSet<String>>,
    /// What an operator should know about its rows, which may be older than this version.
    pub warnings: Arc<[String]>,
    /// When it was released, or read from the store at start: where lag is counted from.
    pub since: Instant,
}

/// Where everybody watches what is in force; `None`: nothing.
pub type InForce = watch::Receiver<Option<Arc<Released>>>;

/// How much and how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long after it was made a generation can be released.
    pub release_within: Duration,
    /// Of calls that write.
    pub writers: Bounds,
    /// Of calls that only look.
    pub readers: Bounds,
}

/// How much one share of the calls may do at once.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Documents that are being received, wait, or are tried.
    pub seats_max: usize,
    /// Of these, of one token.
    pub seats_per_token_max: usize,
    /// Text of all documents held, in bytes.
    pub documents_bytes_max: usize,
    /// Documents tried at once, at least 1; each takes a processor.
    pub trials_max: usize,
    /// What one trial may take, in bytes of memory.
    pub trial_bytes_max: usize,
}

/// What calls that only look may take in all unless told otherwise: a trial of a million rules of ordinary size, and the
/// text of others meanwhile.
pub const READERS_BYTES_MAX: usize = 3 << 30;
/// The part of it that is for documents on their way.
const READERS_DOCUMENTS_PART: usize = 6;

impl Bounds {
    /// Of calls that only look, and may take so much memory in all. Each token has one at a time.
    pub fn readers(bytes_max: usize) -> Self {
        let documents_bytes_max = bytes_max / READERS_DOCUMENTS_PART;
        Self {
            seats_max: 64,
            seats_per_token_max: 1,
            documents_bytes_max,
            trials_max: 1,
            trial_bytes_max: bytes_max - documents_bytes_max,
        }
    }

    /// Of calls that write. Those who may write are trusted with memory.
    pub fn writers() -> Self {
        Self {
            seats_max: 16,
            seats_per_token_max: 4,
            documents_bytes_max: 2 * DOCUMENT_BYTES_MAX,
            trials_max: 1,
            trial_bytes_max: usize::MAX,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            release_within: Duration::from_secs(7 * 24 * 3600),
            writers: Bounds::writers(),
            readers: Bounds::readers(READERS_BYTES_MAX),
        }
    }
}

/// Who asks for a write, for history and audit, and when.
#[derive(Clone, Debug)]
pub struct Author {
    /// Name of the token.
    pub who: String,
    /// Of the call.
    pub request_id: String,
    /// Address and port of the caller's end of the connection.
    pub peer: String,
    /// Now, for lifetimes and records.
    pub at: UnixMillis,
    /// Why, in the author's words.
    pub comment: String,
    /// How long the author is welcome: asked once more before the store is written, however long the work before took.
    /// `None`: for ever.
    pub stay: Option<Stay>,
}

impl Author {
    fn is_welcome(&self) -> Result<(), Failed> {
        let is_over = self.stay.as_ref().is_some_and(Stay::is_over);
        if is_over {
            return Err(Failed::Unwelcome);
        }
        Ok(())
    }
}

/// A page of generations.
#[derive(Clone, Debug)]
pub struct History {
    /// Newest first.
    pub generations: Vec<Generation>,
    /// What is newest and what is in force.
    pub heads: Heads,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Releases {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    limits: Limits,
    in_force: watch::Sender<Option<Arc<Released>>>,
    /// Held by whoever changes what is in force, from the store's answer to the publication.
    changing: Mutex<()>,
    /// Taken by whoever wants to: the line before `changing` has an end.
    changers: Arc<Semaphore>,
    desk: Desk,
    snapshots: Snapshots,
    at_hand: AtHand,
}

impl Releases {
    /// Reads what is in force from the store and publishes it.
    pub async fn open(store: Arc<dyn Store>, limits: Limits) -> Result<Self, Failed> {
        let releases = Self {
            inner: Arc::new(Inner {
                desk: Desk::new(&limits),
                store,
                limits,
                in_force: watch::Sender::new(None),
                changing: Mutex::new(()),
                changers: Arc::new(Semaphore::new(CHANGERS_MAX)),
                snapshots: Snapshots::default(),
                at_hand: AtHand::default(),
            }),
        };
        describe_metrics();
        let heads = releases.settled().await?;
        gauge!("sluice_control_generation", "which" => "newest").set(heads.newest as f64);
        show_released(heads.released);
        Ok(releases)
    }

    /// A seat for a call of this token; [`Failed::Busy`] when it has none to spare, or too many are taken.
    pub fn seat(&self, share: Share, token: &TokenId) -> Result<Seat, Failed> {
        self.inner.desk.seat(share, token)
    }

    /// Where to watch what is in force.
    pub fn in_force(&self) -> InForce {
        self.inner.in_force.subscribe()
    }

    /// Lets go of what is kept only because it may be asked for, where that takes much memory and has become unlikely. May
    /// take a second; to be called every few seconds on a thread that may block.
    pub fn forget(&self) {
        let now = Instant::now();
        let in_force = self.inner.in_force.borrow().clone();
        let in_force = in_force.as_deref();
        let rows = in_force.map(|released| released.rows.clone());
        let rows = self.inner.at_hand.forget(&rows.unwrap_or_default(), now);
        let number = in_force.map_or(0, |released| released.id.number);
        let snapshots = self.inner.snapshots.forget(number, now);
        drop((rows, snapshots));
    }

    /// Brings a generation into force.
    pub async fn release(
        &self,
        number: u64,
        expected_released: u64,
        author: Author,
    ) -> Result<Generation, Failed> {
        let this = self.clone();
        let work = async move { this.release_now(number, expected_released, author).await };
        self.to_the_end("release", work).await
    }

    /// Makes a generation with the rows of one that was in force, and brings it into force; `None`: of the one before.
    pub async fn rollback(
        &self,
        number: Option<u64>,
        expected_released: u64,
        author: Author,
    ) -> Result<Generation, Failed> {
        let this = self.clone();
        let work = async move { this.rollback_now(number, expected_released, author).await };
        self.to_the_end("rollback", work).await
    }

    /// Generations below `before`, newest first, at most `limit`.
    pub async fn history(&self, before: Option<u64>, limit: u32) -> Result<History, Failed> {
        let heads = self.inner.store.heads().await?;
        let generations = self.inner.store.generations(before, limit).await?;
        Ok(History { generations, heads })
    }

    async fn release_now(
        &self,
        number: u64,
        expected_released: u64,
        author: Author,
    ) -> Result<Generation, Failed> {
        let generation = self.generation(number).await?;
        let _changing = self.inner.changing.lock().await;
        let heads = self.settle().await?;
        if heads.released != expected_released {
            return Err(StoreError::Conflict(heads).into());
        }
        may_be_released(&generation, heads.released, author.at)?;
        let wanted = self.rows_to_release(&generation).await?;
        let in_force = self.inner.in_force.borrow().clone();
        let base = in_force.map(|released| released.rows.clone());
        let (summary, wanted) = self
            .slow(move || {
                let base = base.unwrap_or_default();
                let changes = base.changes_to(&wanted.rows);
                (Summary::of(&base, &changes), wanted)
            })
            .await?;
        author.is_welcome()?;
        let audit = AuditEntry {
            at: author.at,
            who: author.who,
            action: "policy.release",
            what: format!("generation {number}"),
            before: in_words(expected_released),
            after: with_comment(format!("generation {number}: {summary}"), &author.comment),
            request_id: author.request_id,
            peer: author.peer,
        };
        let stored = self
            .inner
            .store
            .release(number, expected_released, audit)
            .await;
        self.published(stored, wanted).await
    }

    async fn rollback_now(
        &self,
        number: Option<u64>,
        expected_released: u64,
        author: Author,
    ) -> Result<Generation, Failed> {
        let _changing = self.inner.changing.lock().await;
        let heads = self.settle().await?;
        if heads.released != expected_released {
            return Err(StoreError::Conflict(heads).into());
        }
        let in_force = self.inner.in_force.borrow().clone();
        let Some(in_force) = in_force else {
            return Err(Failed::Refused(
                "nothing is released: there is nothing to go back from".into(),
            ));
        };
        let target = self.rollback_target(number, &in_force).await?;
        let number = target.id.number;
        let wanted = self.rows_with_features(&target).await?;
        let base = in_force.rows.clone();
        let (changes, summary, wanted) = self
            .slow(move || {
                let changes = base.changes_to(&wanted.rows);
                let summary = Summary::of(&base, &changes);
                (changes, summary, wanted)
            })
            .await?;
        author.is_welcome()?;
        let after = format!("a generation with the rows of generation {number}: {summary}");
        let audit = AuditEntry {
            at: author.at,
            who: author.who.clone(),
            action: "policy.rollback",
            what: "generation".into(),
            before: in_words(expected_released),
            after: with_comment(after, &author.comment),
            request_id: author.request_id,
            peer: author.peer,
        };
        let new = NewGeneration {
            digest: wanted.rows.digest(),
            base: expected_released,
            rollback_of: Some(number),
            rows: wanted.rows.len() as u64,
            changes,
            comment: author.comment,
            created_at: author.at,
            created_by: author.who,
            expires_at: author.at, // it is released as it is made
            warnings: target.warnings,
        };
        let stored = self.inner.store.add_released(new, audit).await;
        self.published(stored, wanted).await
    }

    /// The generation whose rows a rollback takes.
    async fn rollback_target(
        &self,
        number: Option<u64>,
        in_force: &Released,
    ) -> Result<Generation, Failed> {
        let present = in_force.id.number;
        let number = match number {
            Some(number) => number,
            None => self.generation(present).await?.base,
        };
        if number == 0 {
            return Err(Failed::Refused(format!(
                "nothing was in force before generation {present}"
            )));
        }
        let target = self.generation(number).await?;
        if target.released_at.is_none() {
            return Err(Failed::Refused(format!(
                "generation {number} was never in force; release it instead"
            )));
        }
        if target.id.digest == in_force.id.digest {
            return Err(Failed::Refused(format!(
                "generation {number} says what generation {present} says, which is in force"
            )));
        }
        Ok(target)
    }

    /// The end of a change: publishes what the store took. When it is not known whether the store took it, asks.
    async fn published(
        &self,
        stored: Result<Generation, StoreError>,
        rows: Rows,
    ) -> Result<Generation, Failed> {
        match stored {
            Ok(generation) => {
                self.publish(Rows {
                    id: generation.id,
                    ..rows
                });
                let newest = gauge!("sluice_control_generation", "which" => "newest");
                if generation.rollback_of.is_some() {
                    newest.set(generation.id.number as f64);
                }
                Ok(generation)
            }
            Err(error) => {
                if let Err(error) = self.settle().await {
                    warn!(%error, "it is not known what is in force; asked again with the next write");
                }
                Err(error.into())
            }
        }
    }

    fn publish(&self, rows: Rows) {
        let Rows {
            id,
            rows,
            features,
            warnings,
        } = rows;
        info!(generation = id.number, rows = rows.len(), "in force");
        for warning in warnings.iter() {
            warn!(generation = id.number, "{warning}");
        }
        show_released(id.number);
        let before = self.inner.in_force.send_replace(Some(Arc::new(Released {
            id,
            rows,
            features,
            warnings,
            since: Instant::now(),
        })));
        if let Some(before) = before {
            self.inner.at_hand.replaced(Rows {
                id: before.id,
                rows: before.rows.clone(),
                features: Arc::clone(&before.features),
                warnings: Arc::clone(&before.warnings),
            });
        }
    }

    /// What is newest and in force; what is published agrees with it.
    async fn settled(&self) -> Result<Heads, Failed> {
        let heads = self.inner.store.heads().await?;
        if heads.released == self.in_force_number() {
            return Ok(heads);
        }
        let _changing = self.inner.changing.lock().await;
        self.settle().await
    }

    /// The same for whoever holds `changing`.
    async fn settle(&self) -> Result<Heads, Failed> {
        let heads = self.inner.store.heads().await?;
        if heads.released != self.in_force_number() {
            let generation = self.inner.store.generation(heads.released).await?;
            let rows = self.inner.store.rows(heads.released).await?;
            self.publish(self.with_features(generation.id, rows).await?);
        }
        Ok(heads)
    }

    fn in_force_number(&self) -> u64 {
        let in_force = self.inner.in_force.borrow();
        in_force.as_ref().map_or(0, |released| released.id.number)
    }

    async fn generation(&self, number: u64) -> Result<Generation, Failed> {
        if number == 0 {
            return Err(Failed::NotFound("there is no generation 0".into()));
        }
        Ok(self.inner.store.generation(number).await?)
    }

    /// Rows of a generation that still has them.
    async fn rows_of(&self, number: u64) -> Result<Inventory, Failed> {
        let in_force = self.inner.in_force.borrow().clone();
        if let Some(released) = in_force.filter(|released| released.id.number == number) {
            return Ok(released.rows.clone());
        }
        if !self.generation(number).await?.has_rows {
            return Err(Failed::NotFound(format!(
                "the rows of generation {number} were removed after it expired"
            )));
        }
        Ok(self.inner.store.rows(number).await?)
    }

    /// Rows of a generation whose base is in force, with the features they name. When they are not at hand, only its
    /// changes are read, not the history.
    async fn rows_to_release(&self, generation: &Generation) -> Result<Rows, Failed> {
        if let Some(rows) = self.inner.at_hand.get(&generation.id) {
            return Ok(rows);
        }
        let id = generation.id;
        let changes = self.inner.store.changes(id.number).await?;
        let in_force = self.inner.in_force.borrow().clone();
        let base = in_force.map(|released| released.rows.clone());
        let made = self.slow(move || base.unwrap_or_default().with(changes));
        let rows = made.await?;
        if rows.digest() != id.digest {
            return Err(trial::unreadable());
        }
        self.with_features(id, rows).await
    }

    /// Rows of any generation, with the features they name; read from the store only when they are not at hand.
    async fn rows_with_features(&self, generation: &Generation) -> Result<Rows, Failed> {
        match self.inner.at_hand.get(&generation.id) {
            Some(rows) if generation.has_rows => Ok(rows),
            Some(_) | None => {
                let rows = self.rows_of(generation.id.number).await?;
                self.with_features(generation.id, rows).await
            }
        }
    }

    async fn with_features(&self, id: GenerationId, rows: Inventory) -> Result<Rows, Failed> {
        let read = self.slow(move || trial::look_through(&rows).map(|found| (found, rows)));
        let ((features, warnings), rows) = read.await??;
        Ok(Rows {
            id,
            rows,
            features: Arc::new(features),
            warnings,
        })
    }

    /// Work too slow for the runtime's threads and too small for a line. It changes nothing.
    async fn slow<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Failed::Stopped)
    }

    /// Does a change on a task of its own, so that it is finished when the caller goes away.
    async fn to_the_end<T: Send + 'static>(
        &self,
        kind: &'static str,
        work: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Result<T, Failed> {
        let busy = |_| {
            let text = "too many releases and rollbacks wait for each other; look at the history and try again";
            Failed::Busy(text.into())
        };
        let place = Arc::clone(&self.inner.changers).try_acquire_owned();
        let place = place.map_err(busy)?;
        let counted = async move {
            let _place = place;
            let done = work.await;
            if done.is_ok() {
                counter!("sluice_control_releases_total", "kind" => kind).increment(1);
            }
            done
        };
        finished(counted).await
    }
}

/// What a task of its own gives.
async fn finished<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failed>> + Send + 'static,
) -> Result<T, Failed> {
    let task = tokio::spawn(work.in_current_span());
    task.await.unwrap_or(Err(Failed::Interrupted))
}

/// The rules of `Release`, for a caller who knows what is in force.
fn may_be_released(generation: &Generation, in_force: u64, now: UnixMillis) -> Result<(), Failed> {
    let number = generation.id.number;
    let base = generation.base;
    let why = match generation.state(in_force, now) {
        State::Applied => return Ok(()),
        State::Released => format!("generation {number} is in force already"),
        State::Superseded => format!(
            "generation {number} was released before; a rollback makes a new generation of it"
        ),
        State::Expired => {
            format!("generation {number} was not released in time; apply the document again")
        }
        State::Outdated => format!(
            "generation {number} was made when {} was in force, and {} is; apply the document again",
            in_words(base),
            in_words(in_force)
        ),
    };
    Err(Failed::Refused(why))
}

/// Nodes show theirs under the same name, so that the two can be compared.
const FLEET_GENERATION: &str = "sluice_fleet_generation";

fn show_released(number: u64) {
    gauge!("sluice_control_generation", "which" => "released").set(number as f64);
    gauge!(FLEET_GENERATION, "stage" => "desired").set(number as f64);
}

fn describe_metrics() {
    describe_counter!(
        "sluice_control_applies_total",
        "Documents that were to become generations, by how that ended (stored, unchanged, refused, conflict or failed)."
    );
    describe_counter!(
        "sluice_control_releases_total",
        "Generations that were brought into force, by kind (release or rollback)."
    );
    describe_counter!(
        "sluice_control_trials_total",
        "Trials of a document or a stored generation that ended, by share (readers or writers) and by end (done, or cancelled because the caller had gone)."
    );
    describe_gauge!(
        "sluice_control_trials_underway",
        "Trials of a document or a stored generation that are at work, by share (readers or writers)."
    );
    describe_counter!(
        "sluice_control_trials_refused_total",
        "Trials of a document or a stored generation that were refused before they began, by share (readers or writers) and by what was used up (token, seats, memory or size)."
    );
    describe_histogram!(
        "sluice_control_compile_seconds",
        Unit::Seconds,
        "Time to read, compile and compare a document."
    );
    describe_gauge!(
        "sluice_control_generation",
        "Number of the newest or of the released generation; 0 for none."
    );
    describe_gauge!(
        FLEET_GENERATION,
        "Generation of the fleet by stage, as the control plane counts; here only the one that nodes should have; 0 before the first."
    );
    for result in apply::RESULTS {
        counter!("sluice_control_applies_total", "result" => result).increment(0);
    }
    for kind in ["release", "rollback"] {
        counter!("sluice_control_releases_total", "kind" => kind).increment(0);
    }
    desk::count_from_zero();
}

/// A number in words, for audit.
fn in_words(number: u64) -> String {
    match number {
        0 => "nothing".into(),
        number => format!("generation {number}"),
    }
}

fn with_comment(mut text: String, comment: &str) -> String {
    if !comment.is_empty() {
        text.push_str("; ");
        text.push_str(comment);
    }
    text
}

#[cfg(test)]
mod tests;
