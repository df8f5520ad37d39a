//! Generations: numbered, immutable sets of rows, and which of them is in force.
//!
//! # Invariants
//!
//! - Numbers count from 1 without gaps and are never used again.
//! - Each generation that was released had as its base the one in force before, so the rows of the one in force are the
//!   changes of all that were released, one after the other.

use sluice_policy::fleet::{Change, Digest};
use sluice_proto::v1;

use super::UnixMillis;

/// Which store a generation is of. A store restored from a backup has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

/// A generation as nodes know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GenerationId {
    /// Whose.
    pub store: StoreId,
    /// From 1.
    pub number: u64,
    /// Of its rows.
    pub digest: Digest,
}

/// What the store keeps of a generation beside its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Which.
    pub id: GenerationId,
    /// The generation in force when it was made; 0: none.
    pub base: u64,
    /// For a rollback: whose rows it has.
    pub rollback_of: Option<u64>,
    /// How many rows.
    pub rows: u64,
    /// How many of them differ from `base`, removed ones included.
    pub changes: u64,
    /// Why it was made.
    pub comment: String,
    /// When it was made.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// When it was released.
    pub released_at: Option<UnixMillis>,
    /// By whom.
    pub released_by: Option<String>,
    /// Until when it can be released.
    pub expires_at: UnixMillis,
    /// False once its changes were removed, because it expired.
    pub has_rows: bool,
    /// What the check of its document warned of, bounded, on one line each; `None`: an earlier version made it.
    pub warnings: Option<Vec<String>>,
}

/// A generation before it has a number.
#[derive(Clone, Debug)]
pub struct NewGeneration {
    /// Of its rows.
    pub digest: Digest,
    /// See [`Generation::base`].
    pub base: u64,
    /// See [`Generation::rollback_of`].
    pub rollback_of: Option<u64>,
    /// How many rows.
    pub rows: u64,
    /// What makes it out of its base.
    pub changes: Vec<Change>,
    /// Why.
    pub comment: String,
    /// When.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// Until when it can be released.
    pub expires_at: UnixMillis,
    /// See [`Generation::warnings`].
    pub warnings: Option<Vec<String>>,
}

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Stored, not released, and can be.
    Applied,
    /// In force.
    Released,
    /// Was in force.
    Superseded,
    /// Was not released in time.
    Expired,
    /// Another came into force after it was made.
    Outdated,
}

impl Generation {
    /// Where it stands, given what is in force and the time.
    pub fn state(&self, in_force: u64, now: UnixMillis) -> State {
        match self.released_at {
            Some(_) if self.id.number == in_force => State::Released,
            Some(_) => State::Superseded,
            None if self.base != in_force => State::Outdated,
            None if !self.has_rows || now >= self.expires_at => State::Expired,
            None => State::Applied,
        }
    }
}

impl GenerationId {
    /// For the wire.
    pub fn to_wire(self) -> v1::GenerationId {
        v1::GenerationId {
            store: self.store.0.to_vec(),
            number: self.number,
            digest: self.digest.to_vec(),
        }
    }

    /// From the wire; `None` when a part has the wrong length.
    pub fn from_wire(id: &v1::GenerationId) -> Option<Self> {
        Some(Self {
            store: StoreId(id.store.as_slice().try_into().ok()?),
            number: id.number,
            digest: id.digest.as_slice().try_into().ok()?,
        })
    }
}
