//! What is done with a document: check it, make a generation of it, compare it.

use std::sync::Arc;

use foldhash::HashSet;
use metrics::{counter, gauge, histogram};
use sluice_policy::fleet::Inventory;
use tokio::time::Instant;
use tracing::{info, warn};

use super::at_hand::Rows;
use super::desk::Turn;
use super::trial::{self, Trial};
use super::{Author, Document, Failed, Released, Releases, Seat, finished, in_words, with_comment};
use crate::domain::diff::{Diff, Summary};
use crate::domain::{AuditEntry, Generation, NewGeneration, State, UnixMillis};
use crate::store::{Heads, StoreError};

/// What a row takes that is read from the store, in bytes: itself, its key and digest, and its share of a bucket.
const ROW_COST_BYTES: usize = 400;

/// A good document.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// How many.
    pub rows: u64,
    /// What its rows need of a node.
    pub features: HashSet<String>,
}

/// A document that became a generation, or says what one says.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The new one, or the newest.
    pub generation: Generation,
    /// What was in force.
    pub in_force: u64,
    /// True exactly when none was made.
    pub unchanged: bool,
    /// Against what is in force.
    pub summary: Summary,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// What its rows need of a node.
    pub features: HashSet<String>,
}

/// What is compared.
pub enum Against {
    /// A document that was not applied.
    Document(Document),
    /// A generation by its number, and the seat of the call.
    Generation(u64, Seat),
}

/// A comparison.
#[derive(Clone, Debug)]
pub struct Compared {
    /// What differs.
    pub diff: Diff,
    /// The first of the two; 0: nothing.
    pub from: u64,
    /// What an operator should know about the second.
    pub warnings: Vec<String>,
}

impl Releases {
    /// Tries a document and changes nothing.
    pub async fn validate(&self, document: Document) -> Result<Checked, Failed> {
        let in_force = self.in_force().borrow().clone();
        let (_, base) = base_of(in_force.as_ref());
        let checked = |trial: Trial| Checked {
            warnings: trial.warnings,
            rows: trial.rows.len() as u64,
            features: trial.features,
        };
        let (document, turn) = self.turn(document, 0).await?;
        self.trial(document, base, in_force, &turn, checked).await
    }

    /// Makes a generation of a document.
    pub async fn apply(
        &self,
        document: Document,
        expected_newest: u64,
        author: Author,
    ) -> Result<Applied, Failed> {
        let this = self.clone();
        let applied = finished(async move {
            let applied = this.apply_now(document, expected_newest, author).await;
            counter!("sluice_control_applies_total", "result" => result(&applied)).increment(1);
            applied
        });
        applied.await
    }

    async fn apply_now(
        &self,
        document: Document,
        expected_newest: u64,
        author: Author,
    ) -> Result<Applied, Failed> {
        let heads = self.settled().await?;
        if heads.newest != expected_newest {
            return Err(StoreError::Conflict(heads).into());
        }
        let in_force = self.in_force().borrow().clone();
        let (base, base_rows) = base_of(in_force.as_ref());
        let (document, turn) = self.turn(document, 0).await?;
        let trial = self.trial(document, base_rows, in_force, &turn, |trial| trial);
        let trial = trial.await?;
        drop(turn);
        if let Some(generation) = self.same_as_newest(heads, &trial, base, author.at).await? {
            return Ok(applied(generation, base, trial, true));
        }
        let generation = self
            .store_trial(&trial, base, expected_newest, author)
            .await?;
        Ok(applied(generation, base, trial, false))
    }

    async fn store_trial(
        &self,
        trial: &Trial,
        base: u64,
        expected_newest: u64,
        author: Author,
    ) -> Result<Generation, Failed> {
        author.is_welcome()?;
        let within = self.inner.limits.release_within.as_millis();
        let within = u64::try_from(within).unwrap_or(u64::MAX);
        let summary = trial.summary;
        let audit = AuditEntry {
            at: author.at,
            who: author.who.clone(),
            action: "policy.apply",
            what: "generation".into(),
            before: format!("{} is in force", in_words(base)),
            after: with_comment(summary.to_string(), &author.comment),
            request_id: author.request_id,
            peer: author.peer,
        };
        let new = NewGeneration {
            digest: trial.rows.digest(),
            base,
            rollback_of: None,
            rows: trial.rows.len() as u64,
            changes: trial.changes.clone(),
            comment: author.comment,
            created_at: author.at,
            created_by: author.who,
            expires_at: UnixMillis(author.at.0.saturating_add(within)),
            warnings: Some(trial.warnings.clone()),
        };
        let generation = self.inner.store.add(new, expected_newest, audit).await?;
        let number = generation.id.number;
        info!(generation = number, base, %summary, "stored");
        self.inner.at_hand.applied(Rows {
            id: generation.id,
            rows: trial.rows.clone(),
            features: Arc::new(trial.features.clone()),
            // A document with a stored hash that is none is refused.
            warnings: Arc::default(),
        });
        gauge!("sluice_control_generation", "which" => "newest").set(number as f64);
        if let Err(error) = self.inner.store.prune(author.at).await {
            warn!(%error, "rows of expired generations stay");
        }
        Ok(generation)
    }

    /// The newest generation, if it says the same and can still be released, or is in force.
    async fn same_as_newest(
        &self,
        heads: Heads,
        trial: &Trial,
        in_force: u64,
        now: UnixMillis,
    ) -> Result<Option<Generation>, Failed> {
        if heads.newest == 0 {
            return Ok(None);
        }
        let newest = self.inner.store.generation(heads.newest).await?;
        let is_usable = match newest.state(in_force, now) {
            State::Applied | State::Released => true,
            State::Superseded | State::Expired | State::Outdated => false,
        };
        let is_same = newest.id.digest == trial.rows.digest();
        Ok((is_usable && is_same).then_some(newest))
    }

    /// Compares a generation (`None`: what is in force) with something; at most `limit` rows are listed.
    pub async fn diff(
        &self,
        from: Option<u64>,
        to: Against,
        limit: usize,
    ) -> Result<Compared, Failed> {
        let in_force = self.in_force().borrow().clone();
        let (number, rows) = base_of(in_force.as_ref());
        let from_cost = match from {
            Some(from) => self.cost_of_rows(from).await?,
            None => 0,
        };
        let base = async {
            match from {
                Some(from) => self.rows_or_nothing(from).await,
                None => Ok(rows),
            }
        };
        let (diff, warnings) = match to {
            Against::Generation(to, seat) => {
                let cost = from_cost + self.cost_of_rows(to).await?;
                let turn = seat.turn(cost).await?;
                let (base, rows) = (base.await?, self.rows_or_nothing(to).await?);
                let diff = turn.run(move |_| Diff::between(&base, &rows, limit));
                (diff.await?, self.warnings_of(to).await?)
            }
            Against::Document(document) => {
                let (document, turn) = self.turn(document, from_cost).await?;
                let base = base.await?;
                let before = base.clone();
                let compared = move |trial: Trial| {
                    let diff = Diff::between(&before, &trial.rows, limit);
                    (diff, trial.warnings)
                };
                let trial = self.trial(document, base, in_force, &turn, compared);
                trial.await?
            }
        };
        Ok(Compared {
            diff,
            from: from.unwrap_or(number),
            warnings,
        })
    }

    /// What was warned of when a generation was made.
    async fn warnings_of(&self, number: u64) -> Result<Vec<String>, Failed> {
        match number {
            0 => Ok(Vec::new()),
            number => Ok(self.generation(number).await?.warnings.unwrap_or_default()),
        }
    }

    async fn rows_or_nothing(&self, number: u64) -> Result<Inventory, Failed> {
        match number {
            0 => Ok(Inventory::default()),
            number => self.rows_of(number).await,
        }
    }

    /// What the rows of a generation take when they are read from the store, in bytes.
    async fn cost_of_rows(&self, number: u64) -> Result<usize, Failed> {
        if number == 0 || number == self.in_force_number() {
            return Ok(0);
        }
        let rows = usize::try_from(self.generation(number).await?.rows);
        Ok(rows.unwrap_or(usize::MAX).saturating_mul(ROW_COST_BYTES))
    }

    /// Waits for the turn of a document and what else is read for it. The turn keeps its seat.
    async fn turn(&self, document: Document, more: usize) -> Result<(Text, Turn), Failed> {
        let Document {
            seat,
            file,
            text,
            cost,
        } = document;
        let turn = seat.turn(cost.saturating_add(more)).await?;
        Ok((Text { file, text }, turn))
    }

    /// Tries a document whose turn has come, and does what is to be done with it while the turn lasts.
    async fn trial<T: Send + 'static>(
        &self,
        document: Text,
        base: Inventory,
        in_force: Option<Arc<Released>>,
        turn: &Turn,
        then: impl FnOnce(Trial) -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let number = in_force.map_or(0, |released| released.id.number);
        let previous = self.inner.snapshots.get(number);
        let trial = turn.run(move |cancel| {
            let begun = Instant::now();
            let Text { file, text } = document;
            let trial = trial::run(text, &file, &base, previous.as_deref(), cancel);
            histogram!("sluice_control_compile_seconds").record(begun.elapsed().as_secs_f64());
            trial.map(then)
        });
        trial.await?
    }
}

/// A document apart from its seat.
struct Text {
    file: String,
    text: String,
}

/// What is in force: its number and rows.
fn base_of(in_force: Option<&Arc<Released>>) -> (u64, Inventory) {
    in_force.map_or_else(Default::default, |released| {
        (released.id.number, released.rows.clone())
    })
}

fn applied(generation: Generation, in_force: u64, trial: Trial, unchanged: bool) -> Applied {
    Applied {
        generation,
        in_force,
        unchanged,
        summary: trial.summary,
        warnings: trial.warnings,
        features: trial.features,
    }
}

/// How it ended, for counting.
/// How an apply may end, as metrics call it.
pub(super) const RESULTS: [&str; 5] = ["unchanged", "stored", "refused", "conflict", "failed"];

fn result(applied: &Result<Applied, Failed>) -> &'static str {
    match applied {
        Ok(applied) if applied.unchanged => "unchanged",
        Ok(_) => "stored",
        Err(Failed::Document(_) | Failed::Invalid(_)) => "refused",
        Err(Failed::Store(StoreError::Conflict(_))) => "conflict",
        Err(_) => "failed",
    }
}
