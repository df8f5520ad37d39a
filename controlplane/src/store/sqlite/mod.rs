//! The store in one SQLite file.
//!
//! One connection writes and a few read: SQLite has one writer in any case, and in WAL mode readers see a consistent state
//! without waiting for it. Every change is one transaction begun with BEGIN IMMEDIATE, so what it compares cannot change
//! under it; a caller who goes away in the middle leaves a transaction that is rolled back, or one that is whole. Synced
//! at each commit: what was answered survives a loss of power.

mod audit;
mod backup;
mod examine;
mod failure;
mod file;
mod generations;
mod members;
mod observe;
mod restore;
mod rows;
mod schema;
mod value;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sluice_policy::fleet::{Change, Inventory};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::failure::Done;
use self::file::Files;
use self::schema::Care;
use super::{Chain, ChainPart, Enrolled, Heads, Store, StoreError, Verified};
use crate::domain::{
    AuditEntry, AuditRecord, Generation, JoinToken, Name, NewGeneration, NodeRecord, SecretHash,
    StoreId, Token, TokenId, UnixMillis,
};

pub use examine::Examined;
pub use restore::{Restored, restore};

/// Connections that read at the same time; the next one waits.
const READERS_MAX: u32 = 4;
/// How long a call waits for its turn. A change of a million rows before it takes a few seconds.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// With less room on the disk than this the store says that it has none: the log of a small change, and some.
const FREE_BYTES_MIN: u64 = 4 << 20;

/// See the module documentation. Cheap to clone; the store is free for others when the last copy is gone.
#[derive(Clone)]
pub struct Sqlite {
    inner: Arc<Inner>,
}

struct Inner {
    files: Files,
    id: StoreId,
    writer: SqlitePool,
    readers: SqlitePool,
    /// Connections that the writer was so far, to tell their data versions apart.
    writers_opened: Arc<AtomicU64>,
    verified: Mutex<Option<Checked>>,
    /// The file at the path when it was opened: device and inode.
    place: (u64, u64),
    // Last, so that it is let go after the pools.
    _lock: File,
}

/// What was found out about the audit chain, and of which state of the file.
#[derive(Clone, Copy)]
struct Checked {
    writer: u64,
    data_version: i64,
    upto: Verified,
}

type Writing = Transaction<'static, sqlx::Sqlite>;

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sqlite").field(&self.inner.files.db).finish()
    }
}

impl Sqlite {
    /// Opens the store in a data directory, which is made if need be. [`StoreError::Unavailable`] when another process has
    /// it open or when it is of a newer version, [`StoreError::Corrupt`] when it is damaged.
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        Self::open_bounded(data_dir, None).await
    }

    /// The same, with a bound on the size of the store's file: what would grow beyond is [`StoreError::Full`]. A file that
    /// is longer already grows no more.
    pub async fn open_bounded(data_dir: &Path, bytes_max: Option<u64>) -> Result<Self, StoreError> {
        let files = Files::of(data_dir);
        files.make_dir()?;
        let lock = files.lock()?;
        let opened = Self::open_locked(&files, lock, bytes_max).await;
        opened.map_err(|error| advised(error, &files.dir))
    }

    async fn open_locked(
        files: &Files,
        lock: File,
        bytes_max: Option<u64>,
    ) -> Result<Self, StoreError> {
        if files.is_first_start()? {
            make_new(files).await?;
            tracing::info!(file = %files.db.display(), "made a new store");
        }
        let pages_max = bytes_max.map(|bytes| (bytes / file::PAGE_BYTES).max(1));
        let told = |error: sqlx::Error| failure::sql(&error, &files.db);
        let mut first = file::options(&files.db, pages_max)
            .connect()
            .await
            .map_err(told)?;
        schema::make_ready(&mut first, &files.db, Care::Quick).await?;
        let id = store_id(&mut first)
            .await
            .map_err(|failed| failed.told(&files.db))?;
        first.close().await.map_err(told)?;
        let writers_opened = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&writers_opened);
        let writer = pool_of(1)
            .after_connect(move |_, _| {
                counter.fetch_add(1, Ordering::Relaxed);
                Box::pin(std::future::ready(Ok(())))
            })
            .connect_with(file::options(&files.db, pages_max))
            .await
            .map_err(told)?;
        let readers = pool_of(READERS_MAX)
            .connect_lazy_with(file::options(&files.db, None).pragma("query_only", "ON"));
        let place = place_of(&files.db)?;
        observe::describe();
        observe::size(files);
        Ok(Self {
            inner: Arc::new(Inner {
                files: files.clone(),
                id,
                writer,
                readers,
                writers_opened,
                verified: Mutex::new(None),
                place,
                _lock: lock,
            }),
        })
    }

    /// Waits for what is under way, writes the log into the store's file and closes it. Calls that come later fail with
    /// [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.inner.readers.close().await;
        self.inner.writer.close().await;
    }

    /// Begins a change. Dropped without a commit, it never happened.
    async fn begin(&self) -> Done<Writing> {
        let begun = self.inner.writer.begin_with("BEGIN IMMEDIATE").await;
        let Err(sqlx::Error::InvalidSavePointStatement | sqlx::Error::BeginFailed) = begun else {
            return Ok(begun?);
        };
        // SQLite itself rolls back when the disk is full; sqlx then takes the connection for one in a transaction for
        // ever. A new connection knows better.
        let lost = self.inner.writer.acquire().await?;
        lost.detach().close_hard().await?;
        Ok(self.inner.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A connection that sees what was committed.
    async fn reader(&self) -> Done<PoolConnection<sqlx::Sqlite>> {
        Ok(self.inner.readers.acquire().await?)
    }

    fn told<T>(&self, done: Done<T>) -> Result<T, StoreError> {
        let files = &self.inner.files;
        done.map_err(|failed| advised(failed.told(&files.db), &files.dir))
    }

    async fn add_new(
        &self,
        new: NewGeneration,
        expected_newest: u64,
        audit: AuditEntry,
    ) -> Done<Generation> {
        let mut change = self.begin().await?;
        let heads = generations::heads(&mut change).await?;
        if expected_newest != heads.newest || new.base != heads.released {
            return Err(StoreError::Conflict(heads).into());
        }
        let added = generations::add(&mut change, new, heads).await?;
        self.finish_generation(change, added, audit).await
    }

    async fn release_one(
        &self,
        number: u64,
        expected_released: u64,
        audit: AuditEntry,
    ) -> Done<Generation> {
        let mut change = self.begin().await?;
        let heads = generations::heads(&mut change).await?;
        let found = generations::find(&mut change, self.inner.id, number).await?;
        generations::may_be_released(&found, expected_released, heads)?;
        generations::set_released(&mut change, number, &audit).await?;
        self.finish_generation(change, number, audit).await
    }

    async fn add_and_release(&self, new: NewGeneration, audit: AuditEntry) -> Done<Generation> {
        let mut change = self.begin().await?;
        let heads = generations::heads(&mut change).await?;
        if new.base != heads.released {
            return Err(StoreError::Conflict(heads).into());
        }
        let added = generations::add(&mut change, new, heads).await?;
        generations::set_released(&mut change, added, &audit).await?;
        self.finish_generation(change, added, audit).await
    }

    async fn finish_generation(
        &self,
        mut change: Writing,
        number: u64,
        mut audit: AuditEntry,
    ) -> Done<Generation> {
        if audit.what == "generation" {
            audit.what = format!("generation {number}");
        }
        let generation = generations::find(&mut change, self.inner.id, number).await?;
        commit(change, audit).await?;
        observe::size(&self.inner.files);
        Ok(generation)
    }

    async fn read_rows(&self, number: u64) -> Done<Inventory> {
        if number == 0 {
            return Ok(Inventory::default());
        }
        let mut reader = self.reader().await?;
        let mut snapshot = reader.begin().await?;
        let generation = generations::find(&mut snapshot, self.inner.id, number).await?;
        rows::fold(&mut snapshot, &generation).await
    }

    async fn read_changes(&self, number: u64) -> Done<Vec<Change>> {
        let mut reader = self.reader().await?;
        let mut snapshot = reader.begin().await?;
        let generation = generations::find(&mut snapshot, self.inner.id, number).await?;
        rows::changes(&mut snapshot, &generation).await
    }

    async fn prune_all(&self, now: UnixMillis) -> Done<u64> {
        let mut change = self.begin().await?;
        let heads = generations::heads(&mut change).await?;
        let numbers = generations::prune(&mut change, heads, now).await?;
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            return Ok(0);
        };
        let count = numbers.len();
        let entry = AuditEntry {
            at: now,
            who: "control plane".to_owned(),
            action: "policy.prune",
            what: if count == 1 {
                format!("generation {first}")
            } else {
                format!("{count} generations from {first} to {last}")
            },
            before: "not released".to_owned(),
            after: "rows removed".to_owned(),
            request_id: String::new(),
            peer: String::new(),
        };
        commit(change, entry).await?;
        observe::size(&self.inner.files);
        Ok(count as u64)
    }

    /// What was read once is not read again for as long as nobody but this process writes to the file; a change made
    /// around SQLite is seen at the next start.
    async fn chain_is_whole(&self) -> Done<bool> {
        let mut known = self.inner.verified.lock().await;
        let (writer, data_version) = {
            let mut connection = self.inner.writer.acquire().await?;
            let version = audit::data_version(&mut connection).await?;
            (self.inner.writers_opened.load(Ordering::Relaxed), version)
        };
        let is_same =
            |checked: &Checked| checked.writer == writer && checked.data_version == data_version;
        let mut upto = known.filter(is_same).map(|checked| checked.upto);
        let mut reader = self.reader().await?;
        loop {
            let part = audit::verify(&mut reader, upto.unwrap_or_default()).await?;
            upto = Some(part.upto);
            // Kept after each part: a caller whose deadline comes before the end of a long chain leaves the rest to the next.
            *known = (part.found != Chain::Broken).then_some(Checked {
                writer,
                data_version,
                upto: part.upto,
            });
            match part.found {
                Chain::More => {}
                Chain::Whole => return Ok(true),
                Chain::Broken => return Ok(false),
            }
        }
    }

    async fn check_room(&self) -> Done<()> {
        let files = &self.inner.files;
        if place_of(&files.db)? != self.inner.place {
            return Err(StoreError::Unavailable(format!(
                "{} was replaced while in use; restart the control plane",
                files.db.display()
            ))
            .into());
        }
        let disk = rustix::fs::statvfs(&files.dir)
            .map_err(|error| failure::io(&error.into(), "looking at the disk of", &files.dir))?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < FREE_BYTES_MIN {
            return Err(StoreError::Full(format!(
                "less than {FREE_BYTES_MIN} bytes are free on the disk of {}",
                files.dir.display()
            ))
            .into());
        }
        if disk.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(StoreError::Unavailable(format!(
                "the disk of {} is mounted read-only",
                files.dir.display()
            ))
            .into());
        }
        let mut change = self.begin().await?;
        sqlx::query("UPDATE store SET id = id")
            .execute(&mut *change)
            .await?;
        change.rollback().await?;
        observe::size(files);
        Ok(())
    }
}

fn pool_of(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(TURN_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// Which file is at a path: device and inode.
fn place_of(path: &Path) -> Result<(u64, u64), StoreError> {
    let found = std::fs::metadata(path).map_err(|error| failure::io(&error, "looking at", path))?;
    Ok((found.dev(), found.ino()))
}

/// Appends the record of a change and makes both last.
async fn commit(mut change: Writing, audit: AuditEntry) -> Done<()> {
    let begun = Instant::now();
    audit::append(&mut change, audit).await?;
    change.commit().await?;
    observe::committed(begun.elapsed());
    Ok(())
}

/// Says what to do about a damaged store.
fn advised(error: StoreError, dir: &Path) -> StoreError {
    let StoreError::Corrupt(why) = error else {
        return error;
    };
    let dir = dir.display();
    StoreError::Corrupt(format!(
        "{why}; nothing was changed. Stop the control plane and restore a backup, which keeps what is there under another \
         name: `sluicectl restore --input BACKUP --data-dir {dir} --force`"
    ))
}

/// Makes a whole store under another name, then gives it its own: cut short, there is none.
async fn make_new(files: &Files) -> Result<(), StoreError> {
    let making = files.named("store.making");
    making.remove_all()?;
    file::create_new(&making.db).map_err(|error| failure::io(&error, "making", &making.db))?;
    let made = async {
        let mut connection = file::options(&making.db, None).connect().await?;
        schema::make(&mut connection, &making.db).await?;
        sqlx::query(
            "INSERT INTO store (only_row, id, audit_number, audit_hash) VALUES (1, ?1, 0, ?2)",
        )
        .bind(random_id()?.0.as_slice())
        .bind([0_u8; 32].as_slice())
        .execute(&mut connection)
        .await?;
        file::close_as_one(connection).await
    };
    let made: Done<()> = made.await;
    if let Err(failed) = made {
        making.remove_all()?;
        return Err(failed.told(&making.db));
    }
    files.take(&making)
}

/// The store's id, which it got when it was made.
async fn store_id(connection: &mut SqliteConnection) -> Done<StoreId> {
    let row = sqlx::query("SELECT id FROM store")
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| failure::damaged("the store has lost its id"))?;
    Ok(StoreId(value::bytes(&row, "id")?))
}

fn random_id() -> Result<StoreId, StoreError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| StoreError::Unavailable(format!("no random bytes: {error}")))?;
    Ok(StoreId(id))
}

#[async_trait]
impl Store for Sqlite {
    fn id(&self) -> StoreId {
        self.inner.id
    }

    async fn heads(&self) -> Result<Heads, StoreError> {
        let work = async { generations::heads(&mut *self.reader().await?).await };
        self.told(work.await)
    }

    async fn add(
        &self,
        new: NewGeneration,
        expected_newest: u64,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError> {
        self.told(self.add_new(new, expected_newest, audit).await)
    }

    async fn release(
        &self,
        number: u64,
        expected_released: u64,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError> {
        self.told(self.release_one(number, expected_released, audit).await)
    }

    async fn add_released(
        &self,
        new: NewGeneration,
        audit: AuditEntry,
    ) -> Result<Generation, StoreError> {
        self.told(self.add_and_release(new, audit).await)
    }

    async fn generation(&self, number: u64) -> Result<Generation, StoreError> {
        let work =
            async { generations::find(&mut *self.reader().await?, self.inner.id, number).await };
        self.told(work.await)
    }

    async fn generations(
        &self,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Generation>, StoreError> {
        let work = async {
            generations::page(&mut *self.reader().await?, self.inner.id, before, limit).await
        };
        self.told(work.await)
    }

    async fn rows(&self, number: u64) -> Result<Inventory, StoreError> {
        self.told(self.read_rows(number).await)
    }

    async fn changes(&self, number: u64) -> Result<Vec<Change>, StoreError> {
        self.told(self.read_changes(number).await)
    }

    async fn prune(&self, now: UnixMillis) -> Result<u64, StoreError> {
        self.told(self.prune_all(now).await)
    }

    async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let work = async { members::tokens(&mut *self.reader().await?).await };
        self.told(work.await)
    }

    async fn add_token(&self, token: Token, audit: AuditEntry) -> Result<(), StoreError> {
        let work = async {
            let mut change = self.begin().await?;
            members::add_token(&mut change, token).await?;
            commit(change, audit).await
        };
        self.told(work.await)
    }

    async fn revoke_token(
        &self,
        id: &TokenId,
        at: UnixMillis,
        audit: AuditEntry,
    ) -> Result<(), StoreError> {
        let work = async {
            let mut change = self.begin().await?;
            if members::revoke_token(&mut change, id, at).await? {
                commit(change, audit).await?;
            }
            Ok(())
        };
        self.told(work.await)
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        let work = async { members::join_tokens(&mut *self.reader().await?).await };
        self.told(work.await)
    }

    async fn add_join_token(&self, token: JoinToken, audit: AuditEntry) -> Result<(), StoreError> {
        let work = async {
            let mut change = self.begin().await?;
            members::add_join_token(&mut change, token).await?;
            commit(change, audit).await
        };
        self.told(work.await)
    }

    async fn revoke_join_token(
        &self,
        id: &TokenId,
        at: UnixMillis,
        audit: AuditEntry,
    ) -> Result<(), StoreError> {
        let work = async {
            let mut change = self.begin().await?;
            if members::revoke_join_token(&mut change, id, at).await? {
                commit(change, audit).await?;
            }
            Ok(())
        };
        self.told(work.await)
    }

    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        let work = async { members::nodes(&mut *self.reader().await?).await };
        self.told(work.await)
    }

    async fn enroll(&self, node: NodeRecord, audit: AuditEntry) -> Result<Enrolled, StoreError> {
        let work = async {
            let mut change = self.begin().await?;
            let enrolled = members::enroll(&mut change, &node).await?;
            if enrolled == Enrolled::Joined {
                commit(change, audit).await?;
            }
            Ok(enrolled)
        };
        self.told(work.await)
    }

    async fn remove_node(&self, name: &Name, audit: AuditEntry) -> Result<(), StoreError> {
        let work = async {
            let mut change = self.begin().await?;
            members::remove_node(&mut change, name).await?;
            commit(change, audit).await
        };
        self.told(work.await)
    }

    async fn node_hash(&self, name: &Name) -> Result<Option<SecretHash>, StoreError> {
        let work = async {
            let node = members::find_node(&mut *self.reader().await?, name).await?;
            Ok(node.map(|node| node.hash))
        };
        self.told(work.await)
    }

    async fn note(&self, audit: AuditEntry) -> Result<(), StoreError> {
        let work = async { commit(self.begin().await?, audit).await };
        self.told(work.await)
    }

    async fn audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        let work = async { audit::page(&mut *self.reader().await?, before, limit).await };
        self.told(work.await)
    }

    async fn audit_is_whole(&self) -> Result<bool, StoreError> {
        self.told(self.chain_is_whole().await)
    }

    async fn verify_audit(&self, from: Verified) -> Result<ChainPart, StoreError> {
        let work = async { audit::verify(&mut *self.reader().await?, from).await };
        self.told(work.await)
    }

    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        backup::write(&self.inner.files.db, to).await
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        self.inner.files.size_bytes()
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.told(self.check_room().await)
    }
}
