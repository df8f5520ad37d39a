//! A backup put in the place of a store.
//!
//! Nothing of the store is touched before a copy of the backup was found good and made ready beside it. What was replaced
//! is kept. Killed at any step, there is the old store or the new one under the store's name, and never a part of one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::failure::{Done, Failed, io as io_failure, sql};
use super::file::{Files, beside, close_as_one, create_new, options, remove, sync_dir};
use super::schema::{self, Care};
use super::{audit, generations, random_id, rows, store_id};
use crate::domain::{AuditEntry, StoreId, UnixMillis};
use crate::store::{Heads, StoreError};

/// What a restore led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The new id of the store: what nodes hold from the old one is compared row by row, not believed.
    pub id: StoreId,
    /// What is newest and in force in it.
    pub heads: Heads,
    /// Where the store is that was there before.
    pub replaced: Option<PathBuf>,
}

/// Puts a copy of the backup `from` in the place of the store in `data_dir`, brought to this version, under a new id and
/// with an audit record. What was there is kept beside it, under a name of its own. [`StoreError::Unavailable`] while a
/// control plane runs on it; [`StoreError::Refused`] when there is a store and not `force`; [`StoreError::Corrupt`] when the
/// backup is damaged.
pub async fn restore(
    from: &Path,
    data_dir: &Path,
    force: bool,
    at: UnixMillis,
) -> Result<Restored, StoreError> {
    let files = Files::of(data_dir);
    files.make_dir()?;
    let _lock = files.lock()?;
    let is_there = files.db.exists() || files.wal().exists();
    if is_there && !force {
        return Err(StoreError::Refused(format!(
            "there is a store in {}",
            data_dir.display()
        )));
    }
    let kept = files.free_kept_name()?;
    let copy = files.named("store.restoring");
    copy.remove_all()?;
    let prepared = prepare(from, &copy, at).await;
    let (id, heads) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            copy.remove_all()?;
            return Err(error);
        }
    };
    if is_there {
        settle(&files).await;
        keep_old(&files, &kept)?;
    }
    files.take(&copy)?;
    Ok(Restored {
        id,
        heads,
        replaced: is_there.then_some(kept),
    })
}

/// Copies the backup and makes the copy a store of this version that can be trusted.
async fn prepare(
    from: &Path,
    copy: &Files,
    at: UnixMillis,
) -> Result<(StoreId, Heads), StoreError> {
    let (source, target) = (from.to_owned(), copy.db.clone());
    let copied = tokio::task::spawn_blocking(move || copy_file(&source, &target)).await;
    copied.map_err(|_| StoreError::Unavailable("the program is ending".to_owned()))??;
    let made = make_new(&copy.db, at).await;
    // The copy is of no interest to the operator; what is wrong with it is wrong with the backup.
    made.map_err(|failed| {
        let error = failed.told(&copy.db);
        let StoreError::Corrupt(why) = error else {
            return error;
        };
        let why = why.replace(&copy.db.display().to_string(), &from.display().to_string());
        StoreError::Corrupt(format!("the backup: {why}"))
    })
}

fn copy_file(from: &Path, to: &Path) -> Result<(), StoreError> {
    let mut source = File::open(from).map_err(|error| io_failure(&error, "opening", from))?;
    let length = source
        .metadata()
        .map_err(|error| io_failure(&error, "looking at", from))?
        .len();
    if length == 0 {
        return Err(StoreError::Corrupt(format!(
            "the backup {} is empty",
            from.display()
        )));
    }
    let mut target = create_new(to).map_err(|error| io_failure(&error, "making", to))?;
    io::copy(&mut source, &mut target).map_err(|error| io_failure(&error, "copying to", to))?;
    Ok(())
}

async fn make_new(db: &Path, at: UnixMillis) -> Done<(StoreId, Heads)> {
    let mut connection = options(db, None)
        .connect()
        .await
        .map_err(|error| Failed::Told(sql(&error, db)))?;
    schema::make_ready(&mut connection, db, Care::Full).await?;
    let old = store_id(&mut connection).await?;
    let heads = generations::heads(&mut connection).await?;
    if heads.released > 0 {
        let generation = generations::find(&mut connection, old, heads.released).await?;
        rows::fold(&mut connection, &generation).await?;
    }
    let new = rename_store(&mut connection, old, at).await?;
    close_as_one(connection).await?;
    Ok((new, heads))
}

/// Gives the store a new id, and says so in its audit log.
async fn rename_store(
    connection: &mut SqliteConnection,
    old: StoreId,
    at: UnixMillis,
) -> Done<StoreId> {
    let new = random_id()?;
    let mut change = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("UPDATE store SET id = ?1")
        .bind(new.0.as_slice())
        .execute(&mut *change)
        .await?;
    let entry = AuditEntry {
        at,
        who: "sluicectl".to_owned(),
        action: "store.restore",
        what: "store".to_owned(),
        before: hex(old),
        after: hex(new),
        request_id: String::new(),
        peer: String::new(),
    };
    audit::append(&mut change, entry).await?;
    change.commit().await?;
    Ok(new)
}

fn hex(id: StoreId) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(32);
    for byte in id.0 {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Writes the log of the store that goes into its file. It may be damaged, which may be why there is a restore: then its
/// log is kept beside it as it is.
async fn settle(files: &Files) {
    let settled = async {
        let mut connection = options(&files.db, None).connect().await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut connection)
            .await?;
        connection.close().await
    };
    if let Err(error) = settled.await {
        tracing::warn!(file = %files.db.display(), %error, "the store that is replaced could not be read");
    }
}

/// Gives the old files their new names beside the old ones, then takes the log away from the old name: a log of the old
/// store would be written into the new one.
fn keep_old(files: &Files, kept: &Path) -> Result<(), StoreError> {
    let link = |from: &Path, to: &Path| match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_failure(&error, "keeping", from))
        }
        Ok(()) | Err(_) => Ok(()),
    };
    link(&files.db, kept)?;
    link(&files.wal(), &beside(kept, "-wal"))?;
    sync_dir(&files.dir)?;
    remove(&files.wal())?;
    remove(&files.shm())?;
    sync_dir(&files.dir)
}
