//! A generation's rows: its changes cut into blobs, and blobs folded into an inventory.
//!
//! A million rows are a few hundred blobs. Folding goes through a short channel into one pass over the inventory on a
//! blocking thread: memory is the inventory and a few blobs, and no bucket is sealed twice.

use bytes::Bytes;
use sluice_policy::fleet::{Change, Delivery, Inventory, RowKey};
use sluice_proto::{Message, v1};
use sqlx::{Row, SqliteConnection};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::failure::{Done, Failed, damaged};
use super::value::number;
use crate::domain::Generation;
use crate::store::StoreError;

/// Blobs on their way from the reader to the fold.
const BLOBS_QUEUED: usize = 4;

/// Writes the changes of a generation.
pub(super) async fn put(
    connection: &mut SqliteConnection,
    generation: u64,
    changes: Vec<Change>,
) -> Done<()> {
    let delivery = Delivery {
        generation: v1::GenerationId::default(),
        base: None,
        changes,
    };
    for mut chunk in delivery.into_chunks() {
        chunk.generation = None; // the row of the table says it
        sqlx::query(
            "INSERT INTO generation_chunk (generation, place, changes) VALUES (?1, ?2, ?3)",
        )
        .bind(number(generation))
        .bind(chunk.index)
        .bind(chunk.encode_to_vec())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// All rows of a generation: the changes of all released up to its base, then its own.
pub(super) async fn fold(
    connection: &mut SqliteConnection,
    generation: &Generation,
) -> Done<Inventory> {
    let wanted = generation.id.number;
    if !generation.has_rows {
        return Err(removed(wanted).into());
    }
    let (sender, receiver) = mpsc::channel(BLOBS_QUEUED);
    let folding = tokio::task::spawn_blocking(move || fold_blobs(receiver));
    read_blobs(connection, generation, sender).await?;
    let folded = folding
        .await
        .map_err(|_| StoreError::Unavailable("the program is ending".to_owned()))?;
    let digest = generation.id.digest;
    match folded {
        Some(rows) if rows.digest() == digest && rows.len() as u64 == generation.rows => Ok(rows),
        Some(_) | None => Err(damaged(format!(
            "the rows of generation {wanted} are not those that were stored; restore a backup"
        ))),
    }
}

/// The changes of a generation to its base.
pub(super) async fn changes(
    connection: &mut SqliteConnection,
    generation: &Generation,
) -> Done<Vec<Change>> {
    let wanted = generation.id.number;
    if !generation.has_rows {
        return Err(removed(wanted).into());
    }
    let blobs: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT changes FROM generation_chunk WHERE generation = ?1 ORDER BY place",
    )
    .bind(number(wanted))
    .fetch_all(connection)
    .await?;
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut changes = Vec::new();
        for blob in blobs {
            let chunk = v1::GenerationChunk::decode(Bytes::from(blob)).ok()?;
            for change in chunk.changes {
                changes.push(unpack(change)?);
            }
        }
        Some(changes)
    });
    let unpacked = unpacking
        .await
        .map_err(|_| StoreError::Unavailable("the program is ending".to_owned()))?;
    unpacked.ok_or_else(|| {
        damaged(format!(
            "the changes of generation {wanted} cannot be read; restore a backup"
        ))
    })
}

fn removed(wanted: u64) -> StoreError {
    StoreError::Refused(format!(
        "generation {wanted} expired and its rows were removed"
    ))
}

async fn read_blobs(
    connection: &mut SqliteConnection,
    generation: &Generation,
    sender: mpsc::Sender<Vec<u8>>,
) -> Done<()> {
    let mut blobs = sqlx::query(
        "SELECT c.changes FROM generation_chunk c JOIN generation g ON g.number = c.generation
         WHERE c.generation <= ?1
           AND (c.generation = ?1 OR (c.generation <= ?2 AND g.released_at IS NOT NULL))
         ORDER BY c.generation, c.place",
    )
    .bind(number(generation.id.number))
    .bind(number(generation.base))
    .fetch(connection);
    while let Some(row) = blobs.next().await {
        let blob: Vec<u8> = row?.try_get(0).map_err(Failed::from)?;
        if sender.send(blob).await.is_err() {
            break; // the fold met a blob that it could not read, and says so
        }
    }
    Ok(())
}

/// `None` when a blob cannot be read. What a blob says is checked by the digest, so rows are not decoded here.
fn fold_blobs(receiver: mpsc::Receiver<Vec<u8>>) -> Option<Inventory> {
    let mut blobs = Blobs {
        receiver,
        changes: Vec::new().into_iter(),
        is_bad: false,
    };
    let rows = Inventory::default().with(&mut blobs);
    (!blobs.is_bad).then_some(rows)
}

/// The changes of one blob after the other.
struct Blobs {
    receiver: mpsc::Receiver<Vec<u8>>,
    changes: std::vec::IntoIter<v1::RowChange>,
    is_bad: bool,
}

impl Iterator for Blobs {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.changes.next() {
                let change = unpack(change);
                self.is_bad = change.is_none();
                return change;
            }
            let blob = self.receiver.blocking_recv()?;
            match v1::GenerationChunk::decode(Bytes::from(blob)) {
                Ok(chunk) => self.changes = chunk.changes.into_iter(),
                Err(_) => {
                    self.is_bad = true;
                    return None;
                }
            }
        }
    }
}

fn unpack(change: v1::RowChange) -> Option<Change> {
    Some(Change {
        key: RowKey::from_wire(change.key?)?,
        // A copy of its own: a slice would keep the whole blob for as long as one of its rows is in force.
        row: change.row.map(|row| Bytes::copy_from_slice(&row)),
    })
}
