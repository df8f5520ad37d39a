//! What went wrong, said so that an operator knows which file and what to do.
//!
//! Owns the mapping of SQLite's result codes to [`StoreError`]. Texts name the file, never what stands in it.

use std::io;
use std::path::Path;

use crate::store::StoreError;

/// Why work inside the store stopped: either a rule of ours, or SQLite, whose error is mapped where the file is known.
#[derive(Debug)]
pub(super) enum Failed {
    /// Said already.
    Told(StoreError),
    /// Not yet.
    Sql(sqlx::Error),
}

/// What the parts of the store return.
pub(super) type Done<T> = Result<T, Failed>;

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Told(error)
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Failed {
    /// As callers of the store see it.
    pub(super) fn told(self, file: &Path) -> StoreError {
        match self {
            Self::Told(error) => error,
            Self::Sql(error) => sql(&error, file),
        }
    }
}

/// A value in the file that no version of this program writes.
pub(super) fn damaged(what: impl Into<String>) -> Failed {
    Failed::Told(StoreError::Corrupt(what.into()))
}

// Primary result codes: the low byte of the extended ones. https://www.sqlite.org/rescode.html
const PERM: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const TOOBIG: i32 = 18;
const NOTADB: i32 = 26;
/// SQLITE_IOERR_SHMSIZE: the file beside the store that readers share could not grow.
const IOERR_SHMSIZE: i32 = IOERR | 19 << 8;

/// A failure of SQLite or of sqlx.
pub(super) fn sql(error: &sqlx::Error, file: &Path) -> StoreError {
    let name = file.display();
    #[allow(clippy::wildcard_enum_match_arm)]
    // sqlx's list is open and mostly about other databases
    match error {
        sqlx::Error::Database(told) => {
            let code = told.code().and_then(|code| code.parse::<i32>().ok());
            result_code(code.unwrap_or(0), told.message(), file)
        }
        sqlx::Error::Io(error) => io(error, "using", file),
        sqlx::Error::PoolTimedOut => {
            StoreError::Unavailable(format!("{name}: another change took too long; try again"))
        }
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            StoreError::Unavailable(format!("{name} was closed"))
        }
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::RowNotFound => StoreError::Corrupt(format!("{name}: {error}")),
        _ => StoreError::Unavailable(format!("{name}: {error}")),
    }
}

fn result_code(code: i32, message: &str, file: &Path) -> StoreError {
    let name = file.display();
    match code & 0xff {
        _ if code == IOERR_SHMSIZE => no_room(file),
        FULL => no_room(file),
        CORRUPT | NOTADB => StoreError::Corrupt(format!("{name}: {message}")),
        BUSY | LOCKED => StoreError::Unavailable(format!(
            "{name} is in use by another program; end that one, or try again"
        )),
        IOERR => StoreError::Unavailable(format!(
            "{name} could not be read or written ({message}, code {code}); look at the disk and the kernel's log"
        )),
        CANTOPEN | PERM => StoreError::Unavailable(format!(
            "{name} could not be opened ({message}); look at the owner and the mode of the file and its folder"
        )),
        READONLY => StoreError::Unavailable(format!(
            "{name} cannot be written to ({message}); look at its mode and how the disk is mounted"
        )),
        TOOBIG => StoreError::Refused(format!("{name}: too long to be stored")),
        _ => StoreError::Unavailable(format!("{name}: {message} (code {code})")),
    }
}

fn no_room(file: &Path) -> StoreError {
    StoreError::Full(format!(
        "{}: free space on its disk, or raise the bound on its size; nothing was changed",
        file.display()
    ))
}

/// A failure of the file system.
pub(super) fn io(error: &io::Error, doing: &str, file: &Path) -> StoreError {
    let full = [
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        io::ErrorKind::FileTooLarge,
    ];
    if full.contains(&error.kind()) {
        no_room(file)
    } else {
        StoreError::Unavailable(format!("{doing} {}: {error}", file.display()))
    }
}
