//! What was in force lately, and the changes from one such generation to another.
//!
//! Copies of an inventory share what they have in common, so the history costs what differs; where that is much, it is
//! forgotten after a while. Changes are found once and shared by all nodes that need them, for as long as one of them does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sluice_policy::fleet::{Change, Inventory};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::node::{Base, Plan};
use crate::domain::GenerationId;
use crate::release::{COSTLY_FOR, COSTLY_FROM_ROWS, Released};

/// Generations kept. A node that holds an older one is asked what it holds.
const GENERATIONS_MAX: usize = 16;
/// Comparisons made at once: each takes a thread, and memory for its result.
const COMPARISONS_MAX: usize = 2;

/// Which changes: from (`None`: from nothing), to.
type Way = (Option<GenerationId>, GenerationId);

/// See the module documentation.
pub(super) struct History {
    /// The last one is in force.
    generations: Mutex<VecDeque<Arc<Released>>>,
    /// What no one has any more still takes its memory until it is taken off the list.
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

    /// Gives back generations that were replaced a while ago and together take much memory beside the one in force, to be
    /// dropped. Changes that no node needs any more are forgotten as well.
    pub(super) fn forget(&self, now: Instant) -> Vec<Arc<Released>> {
        self.forget_changes();
        let mut generations = lock(&self.generations);
        let Some(in_force) = generations.pop_back() else {
            return Vec::new();
        };
        let mut replaced_at = in_force.since;
        let mut rows = 0;
        let mut kept = VecDeque::new();
        let mut forgotten = Vec::new();
        while let Some(released) = generations.pop_back() {
            rows += released.rows.rows_beside(&in_force.rows);
            let is_costly = rows >= COSTLY_FROM_ROWS;
            let since = std::mem::replace(&mut replaced_at, released.since);
            if is_costly && now.duration_since(since) >= COSTLY_FOR {
                forgotten.push(released);
            } else {
                kept.push_front(released);
            }
        }
        kept.push_back(in_force);
        *generations = kept;
        forgotten
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
            self.forget_changes();
            lock(&self.found).push((way, Arc::downgrade(&changes)));
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

    fn forget_changes(&self) {
        lock(&self.found).retain(|(_, changes)| changes.strong_count() > 0);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use foldhash::HashSet;
    use sluice_policy::fleet::RowKey;
    use sluice_proto::v1::RowKind;

    use super::*;
    use crate::domain::StoreId;

    fn change(name: usize, value: u8) -> Change {
        Change {
            key: RowKey {
                kind: RowKind::Rule,
                name: format!("r{name}").into(),
            },
            row: Some(Bytes::copy_from_slice(&[value])),
        }
    }

    fn released(number: u64, rows: &Inventory) -> Arc<Released> {
        Arc::new(Released {
            id: GenerationId {
                store: StoreId([0; 16]),
                number,
                digest: rows.digest(),
            },
            rows: rows.clone(),
            features: Arc::new(HashSet::default()),
            warnings: Arc::default(),
            since: Instant::now(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn what_shares_little_with_what_is_in_force_is_forgotten_after_a_while() {
        let history = History::new();
        let large = Inventory::default().with((0..COSTLY_FROM_ROWS).map(|n| change(n, 0)));
        let mut ids = Vec::new();
        let mut see = |rows: &Inventory| {
            let released = released(ids.len() as u64 + 1, rows);
            history.see(&released);
            ids.push(released.id);
        };
        see(&large);
        see(&large.with([change(1, 1)]));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(
            history.forget(Instant::now()).is_empty(),
            "they share nearly all"
        );
        let small = Inventory::default().with([change(1, 1)]);
        see(&small);
        see(&small.with([change(1, 2)]));
        let numbers = |forgotten: Vec<Arc<Released>>| -> Vec<u64> {
            forgotten
                .iter()
                .map(|released| released.id.number)
                .collect()
        };
        tokio::time::advance(COSTLY_FOR - Duration::from_millis(1)).await;
        assert_eq!(
            numbers(history.forget(Instant::now())),
            [1],
            "replaced long ago"
        );
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(numbers(history.forget(Instant::now())), [2]);
        let plan = Plan {
            base: Base::Nothing,
            target: released(3, &small),
        };
        let history = Arc::new(history);
        let changes = Arc::clone(&history).changes(plan).await;
        assert!(history.forget(Instant::now()).is_empty());
        assert_eq!(lock(&history.found).len(), 1, "a node needs them");
        drop(changes);
        assert!(history.forget(Instant::now()).is_empty());
        assert!(
            lock(&history.found).is_empty(),
            "their memory is given back"
        );
        let known: Vec<bool> = ids.iter().map(|id| history.knows(id)).collect();
        assert_eq!(known, [false, false, true, true]);
    }
}
