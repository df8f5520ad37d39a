//! The audit log: appended to inside the transaction of what it tells, read in pages, and checked as a chain.

use sqlx::{Connection, Row, SqliteConnection};
use tokio_stream::StreamExt;

use super::failure::{Done, damaged};
use super::value::{bytes, count, instant, number, text, time};
use crate::domain::{AuditEntry, AuditRecord, UnixMillis};

/// Up to where the chain was read and found whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verified {
    number: u64,
    hash: [u8; 32],
}

/// Appends a record to the chain. The caller's transaction makes it and what it tells one.
pub(super) async fn append(connection: &mut SqliteConnection, mut entry: AuditEntry) -> Done<()> {
    let newest = newest(connection).await?;
    // What is hashed must be what is read back.
    entry.at = UnixMillis(entry.at.0.min(i64::MAX.unsigned_abs()));
    let record = AuditRecord::following(&newest.hash, newest.number + 1, entry);
    sqlx::query(
        "INSERT INTO audit (number, at, who, action, what, before, after, request_id, hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .bind(number(record.number))
    .bind(time(record.at))
    .bind(record.who)
    .bind(record.action)
    .bind(record.what)
    .bind(record.before)
    .bind(record.after)
    .bind(record.request_id)
    .bind(record.hash.as_slice())
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE store SET audit_number = ?1, audit_hash = ?2")
        .bind(number(record.number))
        .bind(record.hash.as_slice())
        .execute(connection)
        .await?;
    Ok(())
}

/// What the store says is the newest record.
async fn newest(connection: &mut SqliteConnection) -> Done<Verified> {
    let row = sqlx::query("SELECT audit_number, audit_hash FROM store")
        .fetch_one(connection)
        .await?;
    Ok(Verified {
        number: count(&row, "audit_number")?,
        hash: bytes(&row, "audit_hash")?,
    })
}

/// Records below `before`, newest first.
pub(super) async fn page(
    connection: &mut SqliteConnection,
    before: Option<u64>,
    limit: u32,
) -> Done<Vec<AuditRecord>> {
    let rows = sqlx::query("SELECT * FROM audit WHERE number < ?1 ORDER BY number DESC LIMIT ?2")
        .bind(before.map_or(i64::MAX, number))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(record).collect()
}

fn record(row: &sqlx::sqlite::SqliteRow) -> Done<AuditRecord> {
    Ok(AuditRecord {
        number: count(row, "number")?,
        at: instant(row, "at")?,
        who: text(row, "who")?,
        action: text(row, "action")?,
        what: text(row, "what")?,
        before: text(row, "before")?,
        after: text(row, "after")?,
        request_id: text(row, "request_id")?,
        hash: bytes(row, "hash")?,
    })
}

/// Reads the chain from where it was found whole to its end; gives how far it is whole, or `None` when it is not. One
/// record at a time: memory does not grow with the log.
pub(super) async fn verify(
    connection: &mut SqliteConnection,
    from: Verified,
) -> Done<Option<Verified>> {
    let mut snapshot = connection.begin().await?;
    let newest = newest(&mut snapshot).await?;
    let mut at = from;
    {
        let mut rows = sqlx::query("SELECT * FROM audit WHERE number > ?1 ORDER BY number")
            .bind(number(from.number))
            .fetch(&mut *snapshot);
        while let Some(row) = rows.next().await {
            let record = record(&row?)?;
            if record.number != at.number + 1 || !record.follows(&at.hash) {
                return Ok(None);
            }
            at = Verified {
                number: record.number,
                hash: record.hash,
            };
        }
    }
    // Records taken off the end leave a chain that is whole but too short.
    Ok((at == newest).then_some(at))
}

/// A number that changes when a program other than this one has written to the file.
pub(super) async fn data_version(connection: &mut SqliteConnection) -> Done<i64> {
    let row = sqlx::query("PRAGMA data_version")
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| damaged("SQLite gave no data version"))?;
    Ok(row.try_get(0)?)
}
