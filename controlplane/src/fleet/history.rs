//! What was in force lately, and the changes from one such generation to another.
//!
//! Copies of an inventory share what they have in common, so the history costs what differs. Changes are found once and
//! shared by all nodes that need them, for as long as one of them does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sluice_policy::fleet::{Change, Inventory};
use tokio::sync::Semaphore;

use super::node::{Base, Plan};
use crate::domain::GenerationId;
use crate::release::Released;

/// Generations kept. A node that holds an older one is asked what it holds.
const GENERATIONS_MAX: usize = 16;
/// Comparisons made at once: each takes a thread, and memory for its result.
const COMPARISONS_MAX: usize = 2;

/// Which changes: from (`None`: from nothing), to.
type Way = (Option<GenerationId>, GenerationId);

/// See the module documentation.
pub(super) struct History {
    generations: Mutex<VecDeque<Arc<Released>>>,
    found: Mutex<Vec<(Way, Weak<[Change]>)>>,
    comparisons: Semaphore,
}

impl History {
    /// Nothing was in force.
    pub(super) fn new() -> Self {
        Self {
            generations: Mutex::default(),
            found: Mutex::default(),
            comparisons: Semaphore::new(COMPARISONS_MAX),
        }
    }

    /// This is in force. Seeing it again changes nothing.
    pub(super) fn see(&self, released: &Arc<Released>) {
        let mut generations = lock(&self.generations);
        if generations.iter().any(|known| known.id == released.id) {
            return;
        }
        if generations.len() == GENERATIONS_MAX {
            generations.pop_front();
        }
        generations.push_back(Arc::clone(released));
    }

    /// Whether the rows of a generation are at hand.
    pub(super) fn knows(&self, id: &GenerationId) -> bool {
        self.rows(id).is_some()
    }

    /// The changes of a plan. May take a second for a million rows, on a thread of its own.
    pub(super) async fn changes(self: Arc<Self>, plan: Plan) -> Arc<[Change]> {
        let way = match &plan.base {
            Base::Nothing => Some((None, plan.target.id)),
            Base::Generation(id) => Some((Some(*id), plan.target.id)),
            Base::Rows { .. } => None,
        };
        if let Some(found) = way.and_then(|way| self.found(way)) {
            return found;
        }
        // The semaphore is never closed.
        let _turn = self.comparisons.acquire().await;
        if let Some(found) = way.and_then(|way| self.found(way)) {
            return found;
        }
        let history = Arc::clone(&self);
        let compare = tokio::task::spawn_blocking(move || history.compare(&plan));
        // It neither panics nor is cancelled but at shutdown, when no one waits.
        let changes = compare.await.unwrap_or_default();
        if let Some(way) = way {
            let mut found = lock(&self.found);
            found.retain(|(_, changes)| changes.strong_count() > 0);
            found.push((way, Arc::downgrade(&changes)));
        }
        changes
    }

    /// The changes of a plan, found here and now.
    pub(super) fn compare(&self, plan: &Plan) -> Arc<[Change]> {
        let target = &plan.target.rows;
        let changes = match &plan.base {
            Base::Nothing => Inventory::default().changes_to(target),
            // One that has left the history meanwhile: the node will say that it is wrong, and gets the whole.
            Base::Generation(id) => self.rows(id).unwrap_or_default().changes_to(target),
            Base::Rows { rows, .. } => target.changes_from(rows),
        };
        changes.into()
    }

    fn rows(&self, id: &GenerationId) -> Option<Inventory> {
        let generations = lock(&self.generations);
        let known = generations.iter().find(|known| known.id == *id)?;
        Some(known.rows.clone())
    }

    fn found(&self, way: Way) -> Option<Arc<[Change]>> {
        let found = lock(&self.found);
        let (_, changes) = found.iter().find(|(found, _)| *found == way)?;
        changes.upgrade()
    }
}

/// A value that is never left half changed, whoever panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
