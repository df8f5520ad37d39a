//! A consistent copy of the store, taken while it is written to.
//!
//! Whole or not there: the copy is written under another name, synced, and renamed. A name that exists is never touched.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions, Connection};

use super::failure::{io as io_failure, sql};
use super::file::{beside, create_new, options, sync_dir};
use crate::store::StoreError;

/// Copies the store in `db` to the new file `to`.
pub(super) async fn write(db: &Path, to: &Path) -> Result<(), StoreError> {
    let taken = Reserved::new(to)?;
    let text = taken.partial.to_str().ok_or_else(|| {
        StoreError::Refused(format!(
            "{} is not UTF-8; choose another name",
            to.display()
        ))
    })?;
    // A connection of its own: it reads one state for as long as it takes, and nobody waits for it.
    let mut connection = options(db, None)
        .connect()
        .await
        .map_err(|error| sql(&error, db))?;
    let copied = sqlx::query("VACUUM INTO ?1")
        .bind(text)
        .execute(&mut connection)
        .await;
    // Whether reading or writing failed SQLite does not say; a full disk is always that of the copy.
    if let Err(error) = copied {
        let told = sql(&error, db);
        let is_full = matches!(told, StoreError::Full(_));
        return Err(if is_full { sql(&error, to) } else { told });
    }
    connection.close().await.map_err(|error| sql(&error, db))?;
    taken.keep()
}

/// The name of the copy, taken by an empty file, and the file beside it that is written to. Dropped, both are gone.
struct Reserved {
    to: PathBuf,
    partial: PathBuf,
    is_kept: bool,
}

impl Reserved {
    fn new(to: &Path) -> Result<Self, StoreError> {
        let make = |path: &Path| {
            create_new(path).map_err(|error| {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    StoreError::Exists(path.display().to_string())
                } else {
                    io_failure(&error, "making", path)
                }
            })
        };
        make(to)?;
        let mut reserved = Self {
            to: to.to_owned(),
            partial: to.to_owned(),
            is_kept: false,
        };
        // SQLite writes into an empty file that is there, so that its mode is ours from the beginning.
        let partial = beside(to, ".partial");
        make(&partial)?;
        reserved.partial = partial;
        Ok(reserved)
    }

    fn keep(mut self) -> Result<(), StoreError> {
        File::open(&self.partial)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.partial, &self.to))
            .map_err(|error| io_failure(&error, "writing", &self.to))?;
        self.is_kept = true;
        match self.to.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => sync_dir(dir),
            _ => sync_dir(Path::new(".")),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.is_kept {
            // Nothing to be done about a file that cannot be removed; it is no backup, and says so when restored.
            let _ = fs::remove_file(&self.partial);
            let _ = fs::remove_file(&self.to);
        }
    }
}
