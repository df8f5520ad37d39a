//! A store that does as another does, until it is told to stop before a write or to lie after it.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use sluice_policy::fleet::{Change, Inventory};
use tokio::sync::Semaphore;

use crate::domain::{
    AuditEntry, AuditRecord, Generation, JoinToken, Name, NewGeneration, NodeRecord, SecretHash,
    StoreId, Token, TokenId, UnixMillis,
};
use crate::store::{ChainPart, Enrolled, Heads, Sqlite, Store, StoreError, Verified};

/// What happens to the next write of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing special.
    None,
    /// It is done, and said not to be.
    DoneAndDenied,
    /// The same, and from then on it cannot be asked what is in force either.
    DoneAndSilent,
}

pub(super) struct Troubled {
    store: Sqlite,
    /// A write of a generation takes one of these first.
    pub(super) may_write: Semaphore,
    /// Gets one for each write that came.
    pub(super) came: Semaphore,
    /// Gets one for each write that ended.
    pub(super) ended: Semaphore,
    /// The last change of a generation is lost when it is read.
    pub(super) loses_a_change: AtomicBool,
    trouble: Mutex<Trouble>,
    is_silent: AtomicBool,
    /// How often all rows of a generation were read.
    pub(super) reads: AtomicU64,
}

impl Troubled {
    pub(super) fn new(store: Sqlite) -> Self {
        Self {
            store,
            may_write: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            came: Semaphore::new(0),
            ended: Semaphore::new(0),
            loses_a_change: AtomicBool::new(false),
            trouble: Mutex::new(Trouble::None),
            is_silent: AtomicBool::new(false),
            reads: AtomicU64::new(0),
        }
    }

    pub(super) fn set(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap() = trouble;
        self.is_silent.store(false, Ordering::Relaxed);
    }

    fn trouble(&self) -> Trouble {
        *self.trouble.lock().unwrap()
    }

    async fn wait(&self) {
        self.came.add_permits(1);
        self.may_write.acquire().await.unwrap().forget();
    }

    fn told(&self, done: Result<Generation, StoreError>) -> Result<Generation, StoreError> {
        self.ended.add_permits(1);
        let trouble = self.trouble();
        let is_silent = trouble == Trouble::DoneAndSilent;
        self.is_silent.store(is_silent, Ordering::Relaxed);
        match trouble {
            Trouble::None => done,
            Trouble::DoneAndDenied | Trouble::DoneAndSilent => {
                done.and(Err(StoreError::Unavailable("a cable is loose".into())))
            }
        }
    }
}

#[async_trait]
impl Store for Troubled {
    fn id(&self) -> StoreId {
        self.store.id()
    }
    async fn heads(&self) -> Result<Heads, StoreError> {
        if self.is_silent.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("a cable is loose".into()));
        }
        self.store.heads().await
    }
    async fn add(
        &self,
        new: NewGeneration,
        expected_newest: u64,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError> {
        self.wait().await;
        self.told(self.store.add(new, expected_newest, audit).await)
    }
    async fn release(
        &self,
        number: u64,
        expected_released: u64,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError> {
        self.wait().await;
        self.told(self.store.release(number, expected_released, audit).await)
    }
    async fn add_released(
        &self,
        new: NewGeneration,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError> {
        self.wait().await;
        self.told(self.store.add_released(new, audit).await)
    }
    async fn generation(&self, number: u64) -> Result<Generation, StoreError> {
        self.store.generation(number).await
    }
    async fn generations(
        &self,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Generation>, StoreError> {
        self.store.generations(before, limit).await
    }
    async fn rows(&self, number: u64) -> Result<Inventory, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.store.rows(number).await
    }
    async fn changes(&self, number: u64) -> Result<Vec<Change>, StoreError> {
        let mut changes = self.store.changes(number).await?;
        if self.loses_a_change.load(Ordering::Relaxed) {
            changes.pop();
        }
        Ok(changes)
    }
    async fn prune(&self, now: UnixMillis) -> Result<u64, StoreError> {
        self.store.prune(now).await
    }
    async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        self.store.tokens().await
    }
    async fn add_token(&self, token: Token, audit: AuditEntry) -> Result<(), StoreError> {
        self.store.add_token(token, audit).await
    }
    async fn revoke_token(
        &self,
        id: &TokenId,
        at: UnixMillis,
        audit: AuditEntry,
    ) -> Result<(), StoreError> {
        self.store.revoke_token(id, at, audit).await
    }
    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        self.store.join_tokens().await
    }
    async fn add_join_token(&self, token: JoinToken, audit: AuditEntry) -> Result<(), StoreError> {
        self.store.add_join_token(token, audit).await
    }
    async fn revoke_join_token(
        &self,
        id: &TokenId,
        at: UnixMillis,
        audit: AuditEntry,
    ) -> Result<(), StoreError> {
        self.store.revoke_join_token(id, at, audit).await
    }
    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        self.store.nodes().await
    }
    async fn enroll(&self, node: NodeRecord, audit: AuditEntry) -> Result<Enrolled, StoreError> {
        self.store.enroll(node, audit).await
    }
    async fn remove_node(&self, name: &Name, audit: AuditEntry) -> Result<(), StoreError> {
        self.store.remove_node(name, audit).await
    }
    async fn node_hash(&self, name: &Name) -> Result<Option<SecretHash>, StoreError> {
        self.store.node_hash(name).await
    }
    async fn note(&self, audit: AuditEntry) -> Result<(), StoreError> {
        self.store.note(audit).await
    }
    async fn audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        self.store.audit(before, limit).await
    }
    async fn audit_is_whole(&self) -> Result<bool, StoreError> {
        self.store.audit_is_whole().await
    }
    async fn verify_audit(&self, from: Verified) -> Result<ChainPart, StoreError> {
        self.store.verify_audit(from).await
    }
    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.store.backup(to).await
    }
    async fn size_bytes(&self) -> Result<u64, StoreError> {
        self.store.size_bytes().await
    }
    async fn check(&self) -> Result<(), StoreError> {
        self.store.check().await
    }
}
