//! Rows that are asked for next, most likely: those of the document applied last, for its release, and those that were in
//! force before, for a rollback. Reading them from the store would cost as much as the whole policy for every small change.
//!
//! Two sets of rows at most. They share what did not change with those in force; where that is little, they are forgotten
//! after a while.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashSet;
use sluice_policy::fleet::Inventory;
use tokio::time::Instant;

use super::{COSTLY_FOR, COSTLY_FROM_ROWS};
use crate::domain::GenerationId;

/// Rows of a generation, and the features they name.
#[derive(Clone)]
pub(super) struct Rows {
    /// Which generation's.
    pub(super) id: GenerationId,
    /// All of them.
    pub(super) rows: Inventory,
    /// What a node needs for them.
    pub(super) features: Arc<HashSet<String>>,
    /// See [`super::Released`].
    pub(super) warnings: Arc<[String]>,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct AtHand {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    applied: Option<(Rows, Instant)>,
    before: Option<(Rows, Instant)>,
}

impl AtHand {
    /// A document was stored.
    pub(super) fn applied(&self, rows: Rows) {
        self.lock().applied = Some((rows, Instant::now()));
    }

    /// Another generation came into force in the place of this one.
    pub(super) fn replaced(&self, rows: Rows) {
        self.lock().before = Some((rows, Instant::now()));
    }

    /// The rows of a generation, digest and all, if they are here.
    pub(super) fn get(&self, id: &GenerationId) -> Option<Rows> {
        let kept = self.lock();
        let found = [&kept.applied, &kept.before].into_iter().flatten();
        let mut found = found.into_iter().map(|(rows, _)| rows);
        found.find(|rows| rows.id == *id).cloned()
    }

    /// Gives back what has been kept for a while and takes much memory beside the rows in force, to be dropped.
    pub(super) fn forget(&self, in_force: &Inventory, now: Instant) -> [Option<Rows>; 2] {
        let mut kept = self.lock();
        let Kept { applied, before } = &mut *kept;
        [applied, before].map(|slot| {
            let is_outlived = |(rows, since): &mut (Rows, Instant)| {
                now.duration_since(*since) >= COSTLY_FOR
                    && rows.rows.rows_beside(in_force) >= COSTLY_FROM_ROWS
            };
            slot.take_if(is_outlived).map(|(rows, _)| rows)
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        // What is kept is whole whatever happened to who held the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
