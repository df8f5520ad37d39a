//! The store's files: where they are, who may have them open, and whether what is in them is a whole store.
//!
//! In the data directory (0700): `store.db`, with `store.db-wal` and `store.db-shm` while in use, and `store.lock`. Whoever
//! works with the store holds `store.lock`, so a control plane and a restore never meet in one file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Row, SqlSafeStr, SqliteConnection};

use super::failure::{Done, Failed, io as io_failure, sql};
use crate::store::StoreError;

/// By this number in its header a file is known as a store of Sluice; see the first migration.
const APPLICATION_ID: i64 = 0x536c_7563;
/// How long a statement waits for a lock of SQLite's own, which only a checkpoint or a recovery holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that the write-ahead log keeps on the disk after it was emptied.
const WAL_BYTES_KEPT: &str = "67108864";
/// Pages that each connection keeps in memory, in KiB (negative, as SQLite has it). What is read often fits; blobs of rows
/// are read once, and more of them would stay for as long as the connection does.
const CACHE_KIB: &str = "-256";
/// Rows read ahead; each may hold a blob of 1 MiB and more.
const ROWS_AHEAD: usize = 8;
/// Bytes of a page, SQLite's own choice.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Steps from nothing to the tables of this version, in order. A step that was ever released is never changed.
const STEPS: [(i64, &str, &str); 2] = [
    (
        1,
        "generations",
        include_str!("../../../migrations/sqlite/0001_generations.sql"),
    ),
    (
        2,
        "members",
        include_str!("../../../migrations/sqlite/0002_members.sql"),
    ),
];

/// Where the files of a store are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The directory.
    pub(super) dir: PathBuf,
    /// The store itself.
    pub(super) db: PathBuf,
}

impl Files {
    /// In a data directory.
    pub(super) fn of(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.to_owned(),
            db: data_dir.join("store.db"),
        }
    }

    /// The write-ahead log of the store.
    pub(super) fn wal(&self) -> PathBuf {
        beside(&self.db, "-wal")
    }

    /// What readers of the store share.
    pub(super) fn shm(&self) -> PathBuf {
        beside(&self.db, "-shm")
    }

    /// Makes the directory, readable for its owner alone. One that exists is left as it is.
    pub(super) fn make_dir(&self) -> Result<(), StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| {
                io_failure(
                    &error,
                    "the data directory must be one that this user can make or write to; making",
                    &self.dir,
                )
            })?;
        let mode = fs::metadata(&self.dir)
            .map_err(|error| io_failure(&error, "looking at", &self.dir))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            tracing::warn!(
                dir = %self.dir.display(),
                mode = format!("{:o}", mode & 0o777),
                "others may look into the data directory; `chmod 700` it"
            );
        }
        Ok(())
    }

    /// Takes the store for this process alone, until the file is closed.
    pub(super) fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join("store.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io_failure(&error, "opening", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Unavailable(format!(
                "{} is in use: a control plane runs on it, or a restore; end that one first",
                self.db.display()
            ))),
            Err(error) => Err(io_failure(&error.into(), "locking", &path)),
        }
    }

    /// Makes an empty file for a store that does not exist. True exactly when it did not.
    pub(super) fn make_db(&self) -> Result<bool, StoreError> {
        if self.db.exists() {
            let owner_only = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&self.db, owner_only)
                .map_err(|error| io_failure(&error, "setting the mode of", &self.db))?;
            return Ok(false);
        }
        // SQLite would throw the log away, and with it what was last written.
        if fs::metadata(self.wal()).is_ok_and(|wal| wal.len() > 0) {
            return Err(StoreError::Corrupt(format!(
                "{} is there without {}; put the file back, or move the log away to begin anew",
                self.wal().display(),
                self.db.display()
            )));
        }
        create_new(&self.db).map_err(|error| io_failure(&error, "making", &self.db))?;
        sync_dir(&self.dir)?;
        Ok(true)
    }

    /// Bytes of the store and its log.
    pub(super) fn size_bytes(&self) -> Result<u64, StoreError> {
        let length = |path: &Path| match fs::metadata(path) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(io_failure(&error, "looking at", path)),
        };
        Ok(length(&self.db)? + length(&self.wal())?)
    }
}

/// A file's name with something after it.
pub(super) fn beside(path: &Path, after: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(after);
    name.into()
}

/// A new file that only its owner can read; an error when there is one.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Makes what was created, renamed or removed in a directory last.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| io_failure(&error, "writing", dir))
}

/// How a store's file is opened. `pages_max` bounds its size.
pub(super) fn options(db: &Path, pages_max: Option<u64>) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new()
        .filename(db)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ROWS_AHEAD)
        .thread_name(|id| format!("store-{id}"))
        .pragma("journal_size_limit", WAL_BYTES_KEPT)
        .pragma("cache_size", CACHE_KIB)
        .pragma("trusted_schema", "OFF")
        .pragma("cell_size_check", "ON")
        .disable_statement_logging();
    match pages_max {
        Some(pages) => options.pragma("max_page_count", pages.to_string()),
        None => options,
    }
}

/// How much of a file is read to see that it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Every page; at each start.
    Quick,
    /// And every index against its table; before a restore.
    Full,
}

/// Refuses a file that is not a whole store of this version or an older one, and brings an older one to this version.
pub(super) async fn make_ready(
    connection: &mut SqliteConnection,
    db: &Path,
    care: Care,
) -> Result<(), StoreError> {
    is_ours(connection, db)
        .await
        .map_err(|failed| failed.told(db))?;
    is_whole(connection, db, care)
        .await
        .map_err(|failed| failed.told(db))?;
    migrate(connection, db).await
}

async fn is_ours(connection: &mut SqliteConnection, db: &Path) -> Done<()> {
    let id: i64 = sqlx::query("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    // A first start that was cut short leaves at most the table in which steps are noted.
    let tables: i64 = sqlx::query(
        "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE '%\\_sqlx\\_migrations%' ESCAPE '\\'",
    )
    .fetch_one(connection)
    .await?
    .try_get(0)?;
    if id == APPLICATION_ID || (id == 0 && tables == 0) {
        return Ok(());
    }
    Err(Failed::Told(StoreError::Corrupt(format!(
        "{} is a database, but no store of a control plane; move it away",
        db.display()
    ))))
}

async fn is_whole(connection: &mut SqliteConnection, db: &Path, care: Care) -> Done<()> {
    let check = match care {
        Care::Quick => "PRAGMA quick_check(1)",
        Care::Full => "PRAGMA integrity_check(1)",
    };
    let found: String = sqlx::query(check)
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if found == "ok" {
        return Ok(());
    }
    Err(Failed::Told(StoreError::Corrupt(format!(
        "{}: {found}; restore a backup",
        db.display()
    ))))
}

async fn migrate(connection: &mut SqliteConnection, db: &Path) -> Result<(), StoreError> {
    let steps = STEPS.map(|(version, name, step)| {
        Migration::new(
            version,
            name.into(),
            MigrationType::Simple,
            step.into_sql_str(),
            false,
        )
    });
    let known = steps.len();
    let migrator = Migrator::with_migrations(steps.into());
    let done = migrator.run_direct(None, connection, false);
    let name = db.display();
    #[allow(clippy::wildcard_enum_match_arm)] // sqlx's list is open
    done.await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => StoreError::Unavailable(format!(
            "{name} is of a newer version (step {version}; this program knows {known}): start that version, or restore a backup of this one"
        )),
        MigrateError::VersionMismatch(version) => StoreError::Corrupt(format!(
            "{name}: step {version} was made by another program than this one"
        )),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => sql(&error, db),
        error => StoreError::Unavailable(format!("{name}: {error}")),
    })
}
