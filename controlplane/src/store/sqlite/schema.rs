//! What is in a store's file: the steps to the tables of this version, and whether all of it is there.
//!
//! Refuses what is not a whole store and changes nothing of it; brings a whole one of an older version to this one.

use std::path::Path;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Row, SqlSafeStr, SqliteConnection};

use super::failure::{Done, Failed, damaged, sql};
use crate::store::StoreError;

/// By this number in its header a file is known as a store of Sluice; see the first migration.
const APPLICATION_ID: i64 = 0x536c_7563;

/// Steps from nothing to the tables of this version, in order. A step that was ever released is never changed.
const STEPS: [(i64, &str, &str); 4] = [
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
    (
        3,
        "audit_peer",
        include_str!("../../../migrations/sqlite/0003_audit_peer.sql"),
    ),
    (
        4,
        "warnings",
        include_str!("../../../migrations/sqlite/0004_warnings.sql"),
    ),
];

/// How much of a file is read to see that it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Every page; at each start.
    Quick,
    /// And every index against its table; before a restore.
    Full,
}

/// Makes the tables in an empty file.
pub(super) async fn make(connection: &mut SqliteConnection, db: &Path) -> Result<(), StoreError> {
    migrate(connection, db, STEPS.len()).await
}

/// Refuses a file that is not a whole store of this version or an older one, and brings an older one to this version.
pub(super) async fn make_ready(
    connection: &mut SqliteConnection,
    db: &Path,
    care: Care,
) -> Result<(), StoreError> {
    check(connection, db, care).await?;
    migrate(connection, db, STEPS.len()).await
}

/// Refuses a file that is not a whole store of this version or an older one. Writes nothing.
pub(super) async fn check(
    connection: &mut SqliteConnection,
    db: &Path,
    care: Care,
) -> Result<(), StoreError> {
    let checked = async {
        is_ours(connection, db).await?;
        is_sound(connection, db, care).await?;
        has_all(connection, db).await
    };
    checked.await.map_err(|failed: Failed| failed.told(db))
}

async fn is_ours(connection: &mut SqliteConnection, db: &Path) -> Done<()> {
    let id: i64 = sqlx::query("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if id == APPLICATION_ID {
        return Ok(());
    }
    let db = db.display();
    Err(if id == 0 && names(connection).await?.is_empty() {
        damaged(format!("{db}: all its tables are missing"))
    } else {
        damaged(format!(
            "{db} is a database, but no store of a control plane; move it away"
        ))
    })
}

async fn is_sound(connection: &mut SqliteConnection, db: &Path, care: Care) -> Done<()> {
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
    Err(damaged(format!("{}: {found}", db.display())))
}

/// Compares the tables and indexes with what the steps that were made leave.
async fn has_all(connection: &mut SqliteConnection, db: &Path) -> Done<()> {
    let found = names(connection).await?;
    let db = db.display();
    if !found.iter().any(|name| name == STEPS_MADE) {
        return Err(damaged(format!("{db}: the table {STEPS_MADE} is missing")));
    }
    let newest: Option<i64> =
        sqlx::query("SELECT max(version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&mut *connection)
            .await?
            .try_get(0)?;
    let newest = newest.ok_or_else(|| damaged(format!("{db}: the table {STEPS_MADE} is empty")))?;
    let made = usize::try_from(newest).unwrap_or(0);
    if made > STEPS.len() {
        return Err(newer(&db.to_string(), newest).into());
    }
    let missing: Vec<_> = names_after(made)
        .await?
        .into_iter()
        .filter(|name| !found.contains(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(damaged(format!(
        "{db}: of its tables and indexes are missing: {}",
        missing.join(", ")
    )))
}

fn newer(name: &str, step: i64) -> StoreError {
    let known = STEPS.len();
    StoreError::Unavailable(format!(
        "{name} is of a newer version (step {step}; this program knows {known}): start that version, or restore a backup of this one"
    ))
}

/// In which sqlx notes the steps that were made.
const STEPS_MADE: &str = "_sqlx_migrations";

/// Tables and indexes that have a name of their own.
async fn names(connection: &mut SqliteConnection) -> Done<Vec<String>> {
    let rows =
        sqlx::query("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
            .fetch_all(connection)
            .await?;
    let names = rows.iter().map(|row| Ok(row.try_get(0)?));
    names.collect()
}

/// The same, of a store in memory after so many steps.
async fn names_after(steps: usize) -> Done<Vec<String>> {
    let memory = Path::new(":memory:");
    let mut connection = SqliteConnectOptions::new()
        .filename(memory)
        .connect()
        .await?;
    migrate(&mut connection, memory, steps).await?;
    let found = names(&mut connection).await;
    connection.close().await?;
    found
}

/// Makes those of the first `known` steps that were not made.
async fn migrate(
    connection: &mut SqliteConnection,
    db: &Path,
    known: usize,
) -> Result<(), StoreError> {
    let steps = STEPS.iter().take(known).map(|(version, name, step)| {
        Migration::new(
            *version,
            (*name).into(),
            MigrationType::Simple,
            step.into_sql_str(),
            false,
        )
    });
    let migrator = Migrator::with_migrations(steps.collect());
    let done = migrator.run_direct(None, connection, false);
    let name = db.display();
    #[allow(clippy::wildcard_enum_match_arm)] // sqlx's list is open
    done.await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => newer(&name.to_string(), version),
        MigrateError::VersionMismatch(version) => StoreError::Corrupt(format!(
            "{name}: step {version} was made by another program than this one"
        )),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => sql(&error, db),
        error => StoreError::Unavailable(format!("{name}: {error}")),
    })
}
