//! Where everything is kept, behind one trait. Each method that writes is one transaction, with its audit record inside.
//! A caller who goes away in the middle leaves it done or not done, never half.
//!
//! A store keeps and compares; it decides nothing about policy. Conflicts are found here, inside the transaction, so that
//! of two callers who saw the same state one wins and the other is told.

pub mod sqlite;

use std::path::Path;

use async_trait::async_trait;
use sluice_policy::fleet::{Change, Inventory};

use crate::domain::{
    AuditEntry, AuditRecord, Generation, JoinToken, Name, NewGeneration, NodeRecord, SecretHash,
    StoreId, Token, TokenId, UnixMillis,
};

pub use sqlite::{Examined, Restored, Sqlite, restore};

/// What is newest and what is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// The highest number; 0: none.
    pub newest: u64,
    /// The number in force; 0: none.
    pub released: u64,
}

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Someone else was first: this is how things are now.
    #[error("generation {} is the newest and {} is in force", .0.newest, .0.released)]
    Conflict(Heads),
    /// There is none of that name, number or id.
    #[error("there is no {0}")]
    NotFound(String),
    /// There is one of that name already.
    #[error("there is {0} already")]
    Exists(String),
    /// A rule of the store forbids it; the text says which.
    #[error("{0}")]
    Refused(String),
    /// No room on the disk.
    #[error("the store has no room: {0}")]
    Full(String),
    /// What is in the file is not what was written there.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// It cannot be used.
    #[error("the store cannot be used: {0}")]
    Unavailable(String),
}

/// How a node's wish to join ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// It is a member from now on.
    Joined,
    /// It was already, with this secret and this token: a repeated call.
    Again,
}

/// Up to where the audit chain was read and found whole; by default nothing was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Of the record.
    pub number: u64,
    /// The same.
    pub hash: [u8; 32],
}

/// What reading a part of the audit chain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainPart {
    /// How far it is whole.
    pub upto: Verified,
    /// Number of the newest record, as the store notes it beside them.
    pub newest: u64,
    /// What comes then.
    pub found: Chain,
}

/// How the audit chain goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// It was not read to its end.
    More,
    /// That is its end, and it is whole.
    Whole,
    /// The next record does not follow, or is not there.
    Broken,
}

/// See the module documentation.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Which store this is.
    fn id(&self) -> StoreId;

    /// What is newest and what is in force.
    async fn heads(&self) -> Result<Heads, StoreError>;

    /// Stores a generation with the next number. [`StoreError::Conflict`] unless `expected_newest` is the newest and
    /// `new.base` is in force.
    async fn add(
        &self,
        new: NewGeneration,
        expected_newest: u64,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError>;

    /// Brings a generation into force. [`StoreError::Conflict`] unless `expected_released` is in force and the
    /// generation's base; [`StoreError::NotFound`]; [`StoreError::Refused`] when it was in force before, or has no rows.
    async fn release(
        &self,
        number: u64,
        expected_released: u64,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError>;

    /// Stores a generation with the next number and brings it into force, both or neither. [`StoreError::Conflict`] unless
    /// `new.base` is in force.
    async fn add_released(
        &self,
        new: NewGeneration,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError>;

    /// One generation.
    async fn generation(&self, number: u64) -> Result<Generation, StoreError>;

    /// Generations below `before`, newest first, at most `limit`.
    async fn generations(
        &self,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Generation>, StoreError>;

    /// All rows of a generation, checked against its digest; of 0: none. [`StoreError::Refused`] when they were removed,
    /// [`StoreError::Corrupt`] when they are not those that were stored.
    async fn rows(&self, number: u64) -> Result<Inventory, StoreError>;

    /// The changes of a generation to its base, which cost what they are and not what all rows are. They are as they were
    /// read: whoever makes them compares the digest. [`StoreError::Refused`] when they were removed,
    /// [`StoreError::Corrupt`] when they cannot be read.
    async fn changes(&self, number: u64) -> Result<Vec<Change>, StoreError>;

    /// Removes the rows of generations that were never released and cannot be any more, and records that it did. Gives how
    /// many.
    async fn prune(&self, now: UnixMillis) -> Result<u64, StoreError>;

    /// All tokens, also revoked ones, by name.
    async fn tokens(&self) -> Result<Vec<Token>, StoreError>;

    /// [`StoreError::Exists`] when a token of that name is not revoked.
    async fn add_token(&self, token: Token, audit: AuditEntry) -> Result<(), StoreError>;

    /// [`StoreError::Refused`] for the last admin token that works at that time. For one that was revoked before, nothing
    /// is done and nothing recorded.
    async fn revoke_token(
        &self,
        id: &TokenId,
        at: UnixMillis,
        audit: AuditEntry,
    ) -> Result<(), StoreError>;

    /// All join tokens, newest first.
    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError>;

    /// Stores one.
    async fn add_join_token(&self, token: JoinToken, audit: AuditEntry) -> Result<(), StoreError>;

    /// Nodes that have joined stay. For one that was revoked before, nothing is done and nothing recorded.
    async fn revoke_join_token(
        &self,
        id: &TokenId,
        at: UnixMillis,
        audit: AuditEntry,
    ) -> Result<(), StoreError>;

    /// All members, by name.
    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError>;

    /// Makes a node a member and uses the join token once, both or neither. The caller has compared the token's secret.
    /// [`StoreError::Exists`] for a member with another secret or join token, [`StoreError::Refused`] for a token that is
    /// revoked, expired at `node.enrolled_at`, used up or another node's.
    async fn enroll(&self, node: NodeRecord, audit: AuditEntry) -> Result<Enrolled, StoreError>;

    /// Ends a membership.
    async fn remove_node(&self, name: &Name, audit: AuditEntry) -> Result<(), StoreError>;

    /// The hash of a member's secret.
    async fn node_hash(&self, name: &Name) -> Result<Option<SecretHash>, StoreError>;

    /// Records what changed nothing in the store: a kick, a drain, a refusal.
    async fn note(&self, audit: AuditEntry) -> Result<(), StoreError>;

    /// Records below `before`, newest first, at most `limit`.
    async fn audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, StoreError>;

    /// True exactly when every audit record follows from the one before, from the first to the last that was written.
    /// Cheap when asked again: what was read once is read again only after another program wrote to the store.
    async fn audit_is_whole(&self) -> Result<bool, StoreError>;

    /// Reads a part of the audit chain from the disk, from where it was found whole; bounded, so that the caller can say how
    /// far it is.
    async fn verify_audit(&self, from: Verified) -> Result<ChainPart, StoreError>;

    /// Writes a consistent copy to a file that does not exist, mode 0600.
    async fn backup(&self, to: &Path) -> Result<(), StoreError>;

    /// Bytes on the disk.
    async fn size_bytes(&self) -> Result<u64, StoreError>;

    /// Whether it can be written to now.
    async fn check(&self) -> Result<(), StoreError>;
}
