//! The audit log: appended to inside the transaction of what it tells, read in pages, and checked as a chain.

use sqlx::{Connection, Row, SqliteConnection};
use tokio_stream::StreamExt;

use super::failure::{Done, damaged};
use super::value::{bytes, count, instant, number, text, time};
use crate::domain::{AuditEntry, AuditRecord, UnixMillis};
use crate::store::{Chain, ChainPart, Verified};

/// Records that are read of the chain at once: some tens of milliseconds.
const PART_RECORDS: u32 = 10_000;

/// Appends a record to the chain. The caller's transaction makes it and what it tells one.
pub(super) async fn append(connection: &mut SqliteConnection, mut entry: AuditEntry) -> Done<()> {
    let newest = newest(connection).await?;
    // What is hashed must be what is read back.
    entry.at = UnixMillis(entry.at.0.min(i64::MAX.unsigned_abs()));
    let record = AuditRecord::following(&newest.hash, newest.number + 1, entry);
    sqlx::query(
        "INSERT INTO audit (number, at, who, action, what, before, after, request_id, peer, hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )
    .bind(number(record.number))
    .bind(time(record.at))
    .bind(record.who)
    .bind(record.action)
    .bind(record.what)
    .bind(record.before)
    .bind(record.after)
    .bind(record.request_id)
    .bind(record.peer)
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
        peer: peer(row)?,
        hash: bytes(row, "hash")?,
    })
}

/// There is no such column in a store of an earlier version that is only looked at.
fn peer(row: &sqlx::sqlite::SqliteRow) -> Done<Option<String>> {
    match row.try_get("peer") {
        Err(sqlx::Error::ColumnNotFound(_)) => Ok(None),
        found => Ok(found?),
    }
}

/// Reads a part of the chain from where it was found whole. One record at a time: memory does not grow with the log.
pub(super) async fn verify(connection: &mut SqliteConnection, from: Verified) -> Done<ChainPart> {
    let mut snapshot = connection.begin().await?;
    let newest = newest(&mut snapshot).await?;
    let (mut upto, mut count) = (from, 0);
    let mut is_broken = false;
    {
        let mut rows =
            sqlx::query("SELECT * FROM audit WHERE number > ?1 ORDER BY number LIMIT ?2")
                .bind(number(from.number))
                .bind(PART_RECORDS)
                .fetch(&mut *snapshot);
        while let Some(row) = rows.next().await {
            let record = record(&row?)?;
            if record.number != upto.number + 1 || !record.follows(&upto.hash) {
                is_broken = true;
                break;
            }
            count += 1;
            upto = Verified {
                number: record.number,
                hash: record.hash,
            };
        }
    }
    let found = match (is_broken, count == PART_RECORDS) {
        (true, _) => Chain::Broken,
        (false, true) => Chain::More,
        // Records taken off the end leave a chain that is whole but too short.
        (false, false) if upto == newest => Chain::Whole,
        (false, false) => Chain::Broken,
    };
    Ok(ChainPart {
        upto,
        newest: newest.number,
        found,
    })
}

/// A number that changes when a program other than this one has written to the file.
pub(super) async fn data_version(connection: &mut SqliteConnection) -> Done<i64> {
    let row = sqlx::query("PRAGMA data_version")
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| damaged("SQLite gave no data version"))?;
    Ok(row.try_get(0)?)
}
