//! A file that is said to be a store, such as a backup, looked at without changing anything of it or beside it.

use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use super::failure::{Done, io as io_failure, sql};
use super::file::beside;
use super::schema::{self, Care};
use super::{audit, generations, rows, store_id};
use crate::domain::StoreId;
use crate::store::{ChainPart, Heads, StoreError, Verified};

/// See the module documentation.
pub struct Examined {
    file: PathBuf,
    connection: SqliteConnection,
}

impl Examined {
    /// Opens a whole store of this version or an older one. [`StoreError::Unavailable`] when it is in use or of a newer
    /// version, [`StoreError::Corrupt`] when it is damaged.
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        let found =
            std::fs::metadata(file).map_err(|error| io_failure(&error, "looking at", file))?;
        if found.len() == 0 {
            let text = format!("{} is empty", file.display());
            return Err(StoreError::Corrupt(text));
        }
        let log = beside(file, "-wal");
        if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            return Err(StoreError::Unavailable(format!(
                "{} is there: the store is in use, or was not closed; take a backup of it and look at that",
                log.display()
            )));
        }
        let told = |error: sqlx::Error| sql(&error, file);
        let mut connection = SqliteConnectOptions::new()
            .filename(file)
            .read_only(true)
            .immutable(true)
            .pragma("trusted_schema", "OFF")
            .pragma("cell_size_check", "ON")
            .disable_statement_logging()
            .connect()
            .await
            .map_err(told)?;
        schema::check(&mut connection, file, Care::Full).await?;
        Ok(Self {
            file: file.to_owned(),
            connection,
        })
    }

    /// Its id, and the rows of what is in force in it read against their digest.
    pub async fn in_force(&mut self) -> Result<(StoreId, Heads), StoreError> {
        let read: Done<_> = async {
            let connection = &mut self.connection;
            let id = store_id(connection).await?;
            let heads = generations::heads(connection).await?;
            if heads.released > 0 {
                let generation = generations::find(connection, id, heads.released).await?;
                rows::fold(connection, &generation).await?;
            }
            Ok((id, heads))
        }
        .await;
        read.map_err(|failed| failed.told(&self.file))
    }

    /// As [`Store::verify_audit`](crate::store::Store::verify_audit).
    pub async fn verify_audit(&mut self, from: Verified) -> Result<ChainPart, StoreError> {
        let read = audit::verify(&mut self.connection, from).await;
        read.map_err(|failed| failed.told(&self.file))
    }
}
