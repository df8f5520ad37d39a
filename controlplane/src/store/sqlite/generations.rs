//! Generations: added, released, found, pruned. Their rows are `rows`'s.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::failure::Done;
use super::rows;
use super::value::{bytes, count, count_if, instant, instant_if, number, storable, text, time};
use crate::domain::{AuditEntry, Generation, GenerationId, NewGeneration, StoreId, UnixMillis};
use crate::store::{Heads, StoreError};

/// What is newest and what is in force. Numbers only grow, and so do those in force: see `domain::Generation`.
pub(super) async fn heads(connection: &mut SqliteConnection) -> Done<Heads> {
    let row = sqlx::query(
        "SELECT (SELECT coalesce(max(number), 0) FROM generation) AS newest,
                (SELECT coalesce(max(number), 0) FROM generation WHERE released_at IS NOT NULL) AS released",
    )
    .fetch_one(connection)
    .await?;
    Ok(Heads {
        newest: count(&row, "newest")?,
        released: count(&row, "released")?,
    })
}

/// One generation.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    store: StoreId,
    wanted: u64,
) -> Done<Generation> {
    let row = sqlx::query("SELECT * FROM generation WHERE number = ?1")
        .bind(number(wanted))
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| StoreError::NotFound(format!("generation {wanted}")))?;
    generation(&row, store)
}

/// Generations below `before`, newest first.
pub(super) async fn page(
    connection: &mut SqliteConnection,
    store: StoreId,
    before: Option<u64>,
    limit: u32,
) -> Done<Vec<Generation>> {
    let rows =
        sqlx::query("SELECT * FROM generation WHERE number < ?1 ORDER BY number DESC LIMIT ?2")
            .bind(before.map_or(i64::MAX, number))
            .bind(limit)
            .fetch_all(connection)
            .await?;
    rows.iter().map(|row| generation(row, store)).collect()
}

fn generation(row: &SqliteRow, store: StoreId) -> Done<Generation> {
    Ok(Generation {
        id: GenerationId {
            store,
            number: count(row, "number")?,
            digest: bytes(row, "digest")?,
        },
        base: count(row, "base")?,
        rollback_of: count_if(row, "rollback_of")?,
        rows: count(row, "rows")?,
        changes: count(row, "changes")?,
        comment: text(row, "comment")?,
        created_at: instant(row, "created_at")?,
        created_by: text(row, "created_by")?,
        released_at: instant_if(row, "released_at")?,
        released_by: row.try_get("released_by")?,
        expires_at: instant(row, "expires_at")?,
        has_rows: row.try_get("has_rows")?,
        warnings: row
            .try_get::<Option<&str>, _>("warnings")?
            .map(|lines| lines.lines().map(str::to_owned).collect()),
    })
}

/// Stores a generation with the number after `heads.newest`, not released. The caller has compared what it expected.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    new: NewGeneration,
    heads: Heads,
) -> Done<u64> {
    let added = heads.newest + 1;
    if let Some(of) = new.rollback_of
        && !(1..added).contains(&of)
    {
        return Err(StoreError::NotFound(format!("generation {of}")).into());
    }
    let changes = new.changes.len() as u64;
    sqlx::query(
        "INSERT INTO generation (number, digest, base, rollback_of, rows, changes, comment, created_at, created_by,
                                 expires_at, warnings, has_rows)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 1)",
    )
    .bind(number(added))
    .bind(new.digest.as_slice())
    .bind(number(new.base))
    .bind(new.rollback_of.map(number))
    .bind(storable(new.rows, "rows")?)
    .bind(storable(changes, "changes")?)
    .bind(new.comment)
    .bind(time(new.created_at))
    .bind(new.created_by)
    .bind(time(new.expires_at))
    .bind(new.warnings.map(|warnings| warnings.join("\n")))
    .execute(&mut *connection)
    .await?;
    rows::put(connection, added, new.changes).await?;
    Ok(added)
}

/// Whether a generation may come into force.
pub(super) fn may_be_released(
    generation: &Generation,
    expected_released: u64,
    heads: Heads,
) -> Result<(), StoreError> {
    let wanted = generation.id.number;
    if expected_released != heads.released {
        return Err(StoreError::Conflict(heads));
    }
    if generation.released_at.is_some() {
        return Err(StoreError::Refused(format!(
            "generation {wanted} was in force already; roll back to it instead"
        )));
    }
    if generation.base != heads.released {
        return Err(StoreError::Conflict(heads));
    }
    if !generation.has_rows {
        return Err(StoreError::Refused(format!(
            "generation {wanted} expired and its rows were removed; apply its document again"
        )));
    }
    Ok(())
}

/// Brings it into force.
pub(super) async fn set_released(
    connection: &mut SqliteConnection,
    wanted: u64,
    audit: &AuditEntry,
) -> Done<()> {
    sqlx::query("UPDATE generation SET released_at = ?2, released_by = ?3 WHERE number = ?1")
        .bind(number(wanted))
        .bind(time(audit.at))
        .bind(audit.who.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes the changes of those that cannot be released any more; gives their numbers, lowest first.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    heads: Heads,
    now: UnixMillis,
) -> Done<Vec<u64>> {
    let rows = sqlx::query(
        "SELECT number FROM generation
         WHERE released_at IS NULL AND has_rows = 1 AND (base <> ?1 OR expires_at <= ?2)
         ORDER BY number",
    )
    .bind(number(heads.released))
    .bind(time(now))
    .fetch_all(&mut *connection)
    .await?;
    let numbers: Vec<u64> = rows
        .iter()
        .map(|row| count(row, "number"))
        .collect::<Done<_>>()?;
    for wanted in &numbers {
        sqlx::query("DELETE FROM generation_chunk WHERE generation = ?1")
            .bind(number(*wanted))
            .execute(&mut *connection)
            .await?;
        sqlx::query("UPDATE generation SET has_rows = 0 WHERE number = ?1")
            .bind(number(*wanted))
            .execute(&mut *connection)
            .await?;
    }
    Ok(numbers)
}
