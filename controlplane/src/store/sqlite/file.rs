//! The store's files: where they are, who may have them open, and whether this is a first start.
//!
//! In the data directory (0700): `store.db`, with `store.db-wal` and `store.db-shm` while in use, and `store.lock`. Whoever
//! works with the store holds `store.lock`, so a control plane and a restore never meet in one file. A new store is made as
//! `store.making` and renamed when it is whole, so a `store.db` without a whole store in it is always damage.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::failure::{Done, io as io_failure};
use crate::store::StoreError;

/// How long a statement waits for a lock of SQLite's own, which only a checkpoint or a recovery holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that the write-ahead log keeps on the disk after it was emptied.
const WAL_BYTES_KEPT: &str = "67108864";
/// Pages that each connection keeps in memory, in KiB (negative, as SQLite has it). What is read often fits; blobs of rows
/// are read once, and more of them would stay for as long as the connection does.
const CACHE_KIB: &str = "-256";
/// Rows read ahead; each may hold a blob of 1 MiB and more.
const ROWS_AHEAD: usize = 8;
/// How the store is called that a restore replaced; later ones have a number behind it.
const KEPT: &str = "store.db.before-restore";
/// Of these, at most.
const KEPT_MAX: u32 = 1000;
/// Written once, after the first store was made.
const FIRST_TOKEN: &str = "admin.token";
/// Bytes of a page, SQLite's own choice.
pub(super) const PAGE_BYTES: u64 = 4096;

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

    /// Makes the directory, readable for its owner alone. One that exists is left as it is, and refused when everybody may
    /// write to it: they could put another store in the place of this one.
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
        let looked_at = |error: io::Error| io_failure(&error, "looking at", &self.dir);
        let mode = |dir: &Path| Ok(fs::metadata(dir)?.permissions().mode());
        let (dir, own) = (self.dir.display(), mode(&self.dir).map_err(looked_at)?);
        let shown = format!("{:o}", own & 0o7777);
        match exposure(own) {
            Some(Exposure::All) => {
                return Err(StoreError::Unavailable(format!(
                    "everybody may write to the data directory {dir} (mode {shown}), so nothing in it can be trusted: \
                     `chmod 700 {dir}`, or name a folder of its own inside it"
                )));
            }
            Some(Exposure::Group) => {
                tracing::warn!(%dir, mode = shown, "the group may write to the data directory; `chmod 700` it");
            }
            Some(Exposure::Readers) => {
                tracing::warn!(%dir, mode = shown, "others may look into the data directory; `chmod 700` it");
            }
            None => {}
        }
        let whole = fs::canonicalize(&self.dir).map_err(looked_at)?;
        for above in whole.ancestors().skip(1) {
            if is_open_to_all(mode(above).map_err(looked_at)?) {
                tracing::warn!(
                    dir = %above.display(),
                    "everybody may write to a folder above the data directory, and so put another one in its place"
                );
            }
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

    /// Whether there is no store yet. [`StoreError::Corrupt`] when there was one and it is gone, or nothing is in it.
    pub(super) fn is_first_start(&self) -> Result<bool, StoreError> {
        let looked_at = |error: io::Error| io_failure(&error, "looking at", &self.db);
        match fs::metadata(&self.db) {
            Ok(found) if found.len() == 0 => Err(StoreError::Corrupt(format!(
                "{} is empty, and an empty file is no store",
                self.db.display()
            ))),
            Ok(_) => {
                let owner_only = fs::Permissions::from_mode(0o600);
                fs::set_permissions(&self.db, owner_only)
                    .map_err(|error| io_failure(&error, "setting the mode of", &self.db))?;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.left_behind()? {
                None => Ok(true),
                Some(left) => Err(StoreError::Corrupt(format!(
                    "{} is gone, and {} is there, which a store leaves behind: put the file back, or, to begin without it, \
                     move what it left away",
                    self.db.display(),
                    left.display()
                ))),
            },
            Err(error) => Err(looked_at(error)),
        }
    }

    /// What only a directory has that held a store: its log, copies of it, its first token. A log would be thrown away by
    /// SQLite, and with it what was last written.
    fn left_behind(&self) -> Result<Option<PathBuf>, StoreError> {
        let looked_at = |error: io::Error| io_failure(&error, "looking at", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(looked_at)? {
            let entry = entry.map_err(looked_at)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_left = ["store.db-wal", FIRST_TOKEN].contains(&&*name) || name.starts_with(KEPT);
            if is_left && entry.metadata().is_ok_and(|found| found.len() > 0) {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }

    /// The same directory, with the store under another name: one in the making.
    pub(super) fn named(&self, name: &str) -> Self {
        Self {
            dir: self.dir.clone(),
            db: self.dir.join(name),
        }
    }

    /// Gives what was made under another name the store's name.
    pub(super) fn take(&self, made: &Self) -> Result<(), StoreError> {
        File::open(&made.db)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&made.db, &self.db))
            .map_err(|error| io_failure(&error, "making", &self.db))?;
        sync_dir(&self.dir)
    }

    /// Removes the store and what SQLite puts beside it.
    pub(super) fn remove_all(&self) -> Result<(), StoreError> {
        remove(&self.db)?;
        remove(&beside(&self.db, "-journal"))?;
        remove(&self.wal())?;
        remove(&self.shm())
    }

    /// A name for the store that is to be replaced: the first in the row that is not taken.
    pub(super) fn free_kept_name(&self) -> Result<PathBuf, StoreError> {
        let first = self.dir.join(KEPT);
        let names = (1..=KEPT_MAX).map(|number| match number {
            1 => first.clone(),
            _ => beside(&first, &format!(".{number}")),
        });
        let is_taken = |name: &PathBuf| {
            let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
            exists(name) || exists(&beside(name, "-wal"))
        };
        let mut free = names.skip_while(is_taken);
        free.next().ok_or_else(|| {
            StoreError::Refused(format!(
                "{KEPT_MAX} stores that were replaced are kept in {}; remove some",
                self.dir.display()
            ))
        })
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

/// Who beside its owner can do something with a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exposure {
    /// Everybody may write, be it only files of their own (the sticky bit).
    All,
    /// The group may write.
    Group,
    /// Others may look.
    Readers,
}

fn exposure(mode: u32) -> Option<Exposure> {
    match mode {
        _ if mode & 0o002 != 0 => Some(Exposure::All),
        _ if mode & 0o020 != 0 => Some(Exposure::Group),
        _ if mode & 0o055 != 0 => Some(Exposure::Readers),
        _ => None,
    }
}

/// Whether everybody may rename what is in a directory: those with the sticky bit, like /tmp, keep what is another's.
fn is_open_to_all(mode: u32) -> bool {
    mode & 0o1002 == 0o002
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

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_failure(&error, "removing", path))
        }
        Ok(()) | Err(_) => Ok(()),
    }
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

/// Closes a store so that its file alone is all of it, without a log: one rename moves it.
pub(super) async fn close_as_one(mut connection: SqliteConnection) -> Done<()> {
    sqlx::query("PRAGMA journal_mode = DELETE")
        .execute(&mut connection)
        .await?;
    Ok(connection.close().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_judged_by_who_may_write() {
        for (mode, expected) in [
            (0o700, None),
            (0o711, Some(Exposure::Readers)),
            (0o755, Some(Exposure::Readers)),
            (0o770, Some(Exposure::Group)),
            (0o2775, Some(Exposure::Group)),
            (0o777, Some(Exposure::All)),
            (0o1777, Some(Exposure::All)),
            (0o702, Some(Exposure::All)),
        ] {
            assert_eq!(exposure(mode), expected, "{mode:o}");
        }
        for (mode, expected) in [(0o1777, false), (0o777, true), (0o775, false)] {
            assert_eq!(is_open_to_all(mode), expected, "{mode:o}");
        }
    }
}
