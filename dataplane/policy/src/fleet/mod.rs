//! What a generation is made of, and how it travels: rows as bytes with their digests, changes between two sets of them,
//! and the chunks in which changes are sent.
//!
//! Control plane and node share this, so that both mean the same by "the digest is right". Rows are carried, never read:
//! what they say is [`crate::convert`]'s. Pure; it knows no stream and no disk.

mod delivery;
mod inventory;

pub use delivery::{
    Assembly, CHUNK_BYTES_MAX, Chunks, Delivered, Delivery, INVENTORY_CHUNK_ROWS_MAX, Inventories,
    inventory_chunks,
};
pub use inventory::{BadRow, Change, Digest, Inventory, ROW_BYTES_MAX, RowKey, row_digest};
