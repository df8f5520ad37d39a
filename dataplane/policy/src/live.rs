//! The one pointer through which a new snapshot reaches the shards (one writer, one load per turn).

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Cache};

use crate::Snapshot;

/// Written by the control thread, read by every shard. Empty until the first policy is applied.
#[derive(Clone, Default)]
pub struct PolicyHandle {
    active: Arc<ArcSwapOption<Snapshot>>,
}

/// A shard's view: about a nanosecond per load while nothing changes.
pub struct PolicyCache {
    cache: Cache<Arc<ArcSwapOption<Snapshot>>, Option<Arc<Snapshot>>>,
}

impl PolicyHandle {
    /// Replaces the snapshot in one step. The caller keeps the old one alive until every shard has moved on, so that
    /// no shard pays for dropping it.
    pub fn swap(&self, snapshot: Arc<Snapshot>) -> Option<Arc<Snapshot>> {
        self.active.swap(Some(snapshot))
    }

    /// The snapshot, for the slow path.
    pub fn load(&self) -> Option<Arc<Snapshot>> {
        self.active.load_full()
    }

    /// A cache for one shard.
    pub fn cache(&self) -> PolicyCache {
        PolicyCache {
            cache: Cache::new(Arc::clone(&self.active)),
        }
    }
}

impl PolicyCache {
    /// The snapshot; called exactly once per turn.
    pub fn load(&mut self) -> Option<&Arc<Snapshot>> {
        self.cache.load().as_ref()
    }
}
