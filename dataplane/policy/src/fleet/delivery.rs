//! Changes in chunks, and chunks back into changes.
//!
//! Owns the bounds of a chunk and the rules of their order (`fleet.proto`, GenerationChunk). What is put together here is
//! complete and ordered; whether it adds up to the promised digest is seen when it is applied.

use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use sluice_proto::v1;

use super::inventory::{BadRow, Change, Digest, Inventory, RowKey};

/// Rows in one chunk take no more than this, unless one row alone does.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Rows in one chunk of an inventory.
pub const INVENTORY_CHUNK_ROWS_MAX: usize = 4096;
/// Rows of a generation, all kinds together: what the compiler takes, and room for users.
const ROWS_MAX: usize = 8_000_000;
/// Bytes of a generation's rows.
const BYTES_MAX: usize = 2 << 30;
/// What a change weighs beside name and row: field numbers and lengths.
const CHANGE_OVERHEAD_BYTES: usize = 24;

/// Changes on their way: what generation they make, and out of what.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The generation that they make.
    pub generation: v1::GenerationId,
    /// What they are made to; `None`: to nothing.
    pub base: Option<v1::GenerationId>,
    /// The changes.
    pub changes: Vec<Change>,
}

impl Delivery {
    /// The chunks, at least one.
    pub fn into_chunks(self) -> Chunks {
        Chunks::new(self.generation, self.base, self.changes.into())
    }
}

/// Changes in chunks, at least one, made as they are asked for.
pub struct Chunks {
    generation: v1::GenerationId,
    base: Option<v1::GenerationId>,
    changes: Arc<[Change]>,
    next: usize,
    index: u32,
    is_over: bool,
}

impl Chunks {
    /// Of changes that several nodes may share; the other two as in [`Delivery`].
    pub fn new(
        generation: v1::GenerationId,
        base: Option<v1::GenerationId>,
        changes: Arc<[Change]>,
    ) -> Self {
        Self {
            generation,
            base,
            changes,
            next: 0,
            index: 0,
            is_over: false,
        }
    }
}

impl Iterator for Chunks {
    type Item = v1::GenerationChunk;

    fn next(&mut self) -> Option<v1::GenerationChunk> {
        if self.is_over {
            return None;
        }
        let mut changes = Vec::new();
        let mut bytes = 0;
        let left = self.changes.get(self.next..).unwrap_or_default();
        for change in left {
            if !changes.is_empty() && bytes + weight(change) > CHUNK_BYTES_MAX {
                break;
            }
            bytes += weight(change);
            changes.push(change.to_wire());
        }
        self.is_over = changes.len() == left.len();
        self.next += changes.len();
        let index = self.index;
        self.index += 1;
        Some(v1::GenerationChunk {
            generation: Some(self.generation.clone()),
            base: self.base.clone(),
            index,
            is_last: self.is_over,
            changes,
        })
    }
}

fn weight(change: &Change) -> usize {
    let row = change.row.as_ref().map_or(0, bytes::Bytes::len);
    CHANGE_OVERHEAD_BYTES + change.key.name.len() + row
}

/// Puts chunks together. One for each stream.
#[derive(Debug, Default)]
pub struct Assembly {
    begun: Option<Begun>,
    /// True exactly when the rest of a delivery is passed over, because it was refused.
    is_skipping: bool,
}

#[derive(Debug)]
struct Begun {
    delivery: Delivery,
    next_index: u32,
    keys: HashSet<RowKey>,
    bytes: usize,
}

/// What a chunk led to.
#[derive(Clone, Debug)]
pub enum Delivered {
    /// More chunks are to come; or this one was passed over, because its delivery is refused already.
    Part,
    /// All are there.
    Whole(Delivery),
    /// The generation is refused; what came of it is dropped.
    Refused {
        /// Which, as far as the chunk said.
        generation: v1::GenerationId,
        /// Why, for the answer.
        reason: v1::reject::Reason,
        /// The row it is about.
        row: Option<RowKey>,
        /// In words.
        message: String,
    },
}

impl Assembly {
    /// Takes a chunk. A chunk of another generation that begins at 0 discards what came before. A delivery is refused
    /// once: chunks of it that are on their way already are passed over, up to the next that begins at 0, which may be
    /// the same generation once more.
    pub fn take(&mut self, chunk: v1::GenerationChunk) -> Delivered {
        if self.is_skipping && chunk.index > 0 {
            return Delivered::Part;
        }
        self.is_skipping = false;
        let generation = chunk.generation.clone().unwrap_or_default();
        match self.add(chunk) {
            Ok(true) => match self.begun.take() {
                Some(begun) => Delivered::Whole(begun.delivery),
                None => Delivered::Part,
            },
            Ok(false) => Delivered::Part,
            Err((reason, row, message)) => {
                self.begun = None;
                self.is_skipping = true;
                Delivered::Refused {
                    generation,
                    reason,
                    row,
                    message,
                }
            }
        }
    }

    fn add(&mut self, chunk: v1::GenerationChunk) -> Result<bool, Wrong> {
        use v1::reject::Reason;
        let whole = |reason, message: &str| (reason, None, message.to_owned());
        let generation = chunk
            .generation
            .filter(|id| id.digest.len() == 32 && id.store.len() == 16)
            .ok_or_else(|| whole(Reason::Digest, "a chunk without a whole generation id"))?;
        if chunk.index == 0 {
            self.begun = Some(Begun {
                delivery: Delivery {
                    generation,
                    base: chunk.base,
                    changes: Vec::new(),
                },
                next_index: 0,
                keys: HashSet::default(),
                bytes: 0,
            });
        } else if self.begun.as_ref().is_none_or(|begun| {
            begun.delivery.generation != generation
                || begun.delivery.base != chunk.base
                || begun.next_index != chunk.index
        }) {
            return Err(whole(Reason::Digest, "chunks are missing or mixed up"));
        }
        let Some(begun) = self.begun.as_mut() else {
            return Err(whole(Reason::Digest, "chunks are missing"));
        };
        begun.next_index += 1;
        for change in chunk.changes {
            let change = Change::from_wire(change).map_err(|error| {
                let (reason, key) = match &error {
                    BadRow::NoKey => (Reason::Invalid, None),
                    BadRow::OtherKey(key) => (Reason::Invalid, Some(key.clone())),
                    BadRow::TooLong(key) => (Reason::TooLarge, Some(key.clone())),
                };
                (reason, key, error.to_string())
            })?;
            begun.bytes += weight(&change);
            if begun.delivery.changes.len() >= ROWS_MAX || begun.bytes > BYTES_MAX {
                return Err(whole(
                    Reason::TooLarge,
                    "more rows or bytes than a generation may have",
                ));
            }
            if !begun.keys.insert(change.key.clone()) {
                return Err((
                    Reason::Invalid,
                    Some(change.key),
                    "the row comes twice in one generation".to_owned(),
                ));
            }
            begun.delivery.changes.push(change);
        }
        Ok(chunk.is_last)
    }
}

type Wrong = (v1::reject::Reason, Option<RowKey>, String);

/// The digests of all rows held, in chunks; at least one.
pub fn inventory_chunks(inventory: &Inventory) -> Vec<v1::InventoryChunk> {
    let rows: Vec<v1::RowDigest> = inventory
        .digests()
        .map(|(key, digest)| v1::RowDigest {
            key: Some(key.to_wire()),
            digest: digest.to_vec(),
        })
        .collect();
    let count = rows.len().div_ceil(INVENTORY_CHUNK_ROWS_MAX).max(1);
    let mut rows = rows.into_iter();
    (0..count)
        .map(|index| v1::InventoryChunk {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            is_last: index + 1 == count,
            rows: rows.by_ref().take(INVENTORY_CHUNK_ROWS_MAX).collect(),
        })
        .collect()
}

/// Puts the chunks of a node's inventory together. One for each question.
#[derive(Debug, Default)]
pub struct Inventories {
    rows: HashMap<RowKey, Digest>,
    next_index: u32,
}

impl Inventories {
    /// Takes a chunk; the rows held, once all are there. `Err` says in words what is wrong with it. A row of a kind that
    /// is not known is left out: the node will be told to drop it only by a control plane that knows it.
    pub fn take(
        &mut self,
        chunk: v1::InventoryChunk,
    ) -> Result<Option<HashMap<RowKey, Digest>>, &'static str> {
        if chunk.index != self.next_index {
            return Err("chunks of the inventory are missing or mixed up");
        }
        self.next_index += 1;
        if chunk.rows.len() > INVENTORY_CHUNK_ROWS_MAX || self.rows.len() > ROWS_MAX {
            return Err("more rows than an inventory may have");
        }
        for row in chunk.rows {
            let digest = Digest::try_from(row.digest.as_slice())
                .map_err(|_| "a digest is not 32 bytes long")?;
            if let Some(key) = row.key.and_then(RowKey::from_wire) {
                self.rows.insert(key, digest);
            }
        }
        Ok(chunk.is_last.then(|| std::mem::take(&mut self.rows)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use sluice_proto::Message;
    use sluice_proto::v1::row::Kind;

    use super::*;

    fn id(number: u64) -> v1::GenerationId {
        v1::GenerationId {
            store: vec![1; 16],
            number,
            digest: vec![u8::try_from(number).unwrap(); 32],
        }
    }

    fn changes(count: usize, topic_bytes: usize) -> Vec<Change> {
        (0..count)
            .map(|n| {
                let row = v1::Row {
                    name: format!("r{n}"),
                    kind: Some(Kind::Rule(v1::Rule {
                        topics: vec!["x".repeat(topic_bytes)],
                        ..v1::Rule::default()
                    })),
                    ..v1::Row::default()
                };
                Change::from_message(&row).unwrap()
            })
            .collect()
    }

    fn delivery(number: u64, changes: Vec<Change>) -> Delivery {
        Delivery {
            generation: id(number),
            base: None,
            changes,
        }
    }

    fn refused(delivered: &Delivered) -> v1::reject::Reason {
        match delivered {
            Delivered::Refused { reason, .. } => *reason,
            Delivered::Part | Delivered::Whole(_) => panic!("not refused: {delivered:?}"),
        }
    }

    #[test]
    fn chunks_are_bounded_and_come_together_again() {
        for (count, topic_bytes, expected) in [
            (0, 0, 1),
            (1, 10, 1),
            (1, 2 << 20, 1),
            (3, 2 << 20, 3),
            (30_000, 60, 3),
        ] {
            let sent = changes(count, topic_bytes);
            let chunks: Vec<_> = delivery(1, sent.clone()).into_chunks().collect();
            assert_eq!(chunks.len(), expected, "{count} of {topic_bytes}");
            let mut assembly = Assembly::default();
            for (place, chunk) in chunks.iter().enumerate() {
                assert!(
                    chunk.encoded_len() <= CHUNK_BYTES_MAX + 200 || chunk.changes.len() == 1,
                    "{}",
                    chunk.encoded_len()
                );
                match assembly.take(chunk.clone()) {
                    Delivered::Part => assert!(place + 1 < chunks.len()),
                    Delivered::Whole(whole) => {
                        assert_eq!(place + 1, chunks.len());
                        assert_eq!(whole.changes, sent);
                        assert_eq!(whole.generation, id(1));
                    }
                    Delivered::Refused { message, .. } => panic!("{message}"),
                }
            }
        }
    }

    #[test]
    fn a_gap_a_mixture_or_a_repetition_refuses_all_of_it() {
        use v1::reject::Reason;
        let chunks: Vec<_> = delivery(1, changes(3, 1 << 20)).into_chunks().collect();
        let mut assembly = Assembly::default();
        assembly.take(chunks[0].clone());
        assert_eq!(refused(&assembly.take(chunks[2].clone())), Reason::Digest);
        let mut other = chunks[1].clone();
        other.generation = Some(id(2));
        assembly.take(chunks[0].clone());
        assert_eq!(refused(&assembly.take(other)), Reason::Digest);
        let mut twice = chunks[0].clone();
        twice.changes.push(twice.changes[0].clone());
        assert_eq!(refused(&assembly.take(twice)), Reason::Invalid);
        let mut nameless = chunks[0].clone();
        nameless.generation = None;
        assert_eq!(refused(&assembly.take(nameless)), Reason::Digest);
    }

    #[test]
    fn what_is_left_of_a_refused_delivery_is_passed_over_and_the_same_generation_may_come_again() {
        use v1::reject::Reason;
        let chunks: Vec<_> = delivery(1, changes(4, 1 << 20)).into_chunks().collect();
        let mut assembly = Assembly::default();
        assembly.take(chunks[0].clone());
        let mut bad = chunks[1].clone();
        bad.changes.push(v1::RowChange::default());
        assert_eq!(refused(&assembly.take(bad)), Reason::Invalid);
        for left in &chunks[2..] {
            let taken = assembly.take(left.clone());
            assert!(matches!(taken, Delivered::Part), "refused twice: {taken:?}");
        }
        for (place, chunk) in chunks.iter().enumerate() {
            let taken = assembly.take(chunk.clone());
            let is_whole = matches!(taken, Delivered::Whole(_));
            assert_eq!(is_whole, place == 3, "{place}: {taken:?}");
        }
        let mut middle = Assembly::default();
        assert_eq!(
            refused(&middle.take(chunks[1].clone())),
            Reason::Digest,
            "a stream does not begin in the middle"
        );
    }

    #[test]
    fn a_newer_generation_discards_what_came_of_the_one_before() {
        let first: Vec<_> = delivery(1, changes(2, 1 << 20)).into_chunks().collect();
        let second: Vec<_> = delivery(2, changes(1, 5)).into_chunks().collect();
        let mut assembly = Assembly::default();
        assert!(matches!(assembly.take(first[0].clone()), Delivered::Part));
        match assembly.take(second[0].clone()) {
            Delivered::Whole(whole) => assert_eq!(whole.generation, id(2)),
            other @ (Delivered::Part | Delivered::Refused { .. }) => panic!("{other:?}"),
        }
    }

    /// A buffer that counts itself as long as a slice of it is alive.
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl Counted {
        fn new(bytes: Vec<u8>, alive: &Arc<AtomicUsize>) -> Self {
            alive.fetch_add(1, Ordering::Relaxed);
            Self(bytes, Arc::clone(alive))
        }
    }

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn rows_held_keep_no_message_alive_however_many_changes_they_came_in() {
        let alive = Arc::new(AtomicUsize::new(0));
        let mut assembly = Assembly::default();
        let mut held = Inventory::default();
        for (number, change) in changes(500, 10).into_iter().enumerate() {
            let row = change.row.clone().unwrap();
            let mut message = vec![0; 1 << 20];
            message[..row.len()].copy_from_slice(&row);
            let message = bytes::Bytes::from_owner(Counted::new(message, &alive));
            let chunk = v1::GenerationChunk {
                generation: Some(id(number as u64 % 200)),
                base: None,
                index: 0,
                is_last: true,
                changes: vec![v1::RowChange {
                    key: Some(change.key.to_wire()),
                    row: Some(message.slice(..row.len())),
                }],
            };
            drop(message);
            let Delivered::Whole(whole) = assembly.take(chunk) else {
                panic!("not whole");
            };
            held = held.with(whole.changes);
        }
        assert_eq!(held.len(), 500);
        assert_eq!(alive.load(Ordering::Relaxed), 0, "messages of 1 MiB");
    }

    #[test]
    fn inventories_come_together_again() {
        let inventory = Inventory::default().with(changes(10_000, 1));
        let chunks = inventory_chunks(&inventory);
        assert_eq!(chunks.len(), 3);
        let mut together = Inventories::default();
        let mut held = None;
        for chunk in chunks.clone() {
            held = together.take(chunk).expect("good");
        }
        let held = held.expect("all are there");
        assert!(inventory.changes_from(&held).is_empty());
        assert!(Inventories::default().take(chunks[1].clone()).is_err());
        assert_eq!(inventory_chunks(&Inventory::default()).len(), 1);
    }
}
