//! From documents to generations in force: check, compile on trial, compare, store, release, roll back.
//!
//! Owns what is in force: one value that everybody watches, changed only after the store has it. A caller who goes away
//! in the middle changes nothing about that: what was begun is finished.

use std::sync::Arc;

use foldhash::HashSet;
use sluice_policy::fleet::Inventory;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::GenerationId;

/// What is in force.
#[derive(Clone, Debug)]
pub struct Released {
    /// Which generation.
    pub id: GenerationId,
    /// Its rows.
    pub rows: Inventory,
    /// The features that its rows name: a node that lacks one must not get it.
    pub features: Arc<HashSet<String>>,
    /// When it was released, or read from the store at start: where lag is counted from.
    pub since: Instant,
}

/// Where everybody watches what is in force; `None`: nothing.
pub type InForce = watch::Receiver<Option<Arc<Released>>>;

/// See the module documentation.
pub struct Releases {
    in_force: watch::Sender<Option<Arc<Released>>>,
}

impl Releases {
    /// Reads what is in force from the store.
    pub async fn open(
        _store: Arc<dyn crate::store::Store>,
    ) -> Result<Self, crate::store::StoreError> {
        Ok(Self {
            in_force: watch::Sender::new(None),
        })
    }

    /// Where to watch what is in force.
    pub fn in_force(&self) -> InForce {
        self.in_force.subscribe()
    }
}
