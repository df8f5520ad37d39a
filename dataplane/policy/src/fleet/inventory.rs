//! A set of rows, each a serialized message under its key, with the digest of the whole.
//!
//! Owns the digest's definition (`fleet.proto`, GenerationId.digest). Copies share what they have in common, so keeping
//! several generations costs what differs; comparing two costs the buckets that differ.
//!
//! # Invariants
//!
//! - A row's digest is that of the bytes it came in, never of a rewriting.
//! - A row stands in the bucket that its key says, and the bucket's digest is right whenever a method has returned.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::HashMap;
use sluice_proto::{
    Message,
    v1::{self, RowKind, row::Kind},
};

/// Longest row.
pub const ROW_BYTES_MAX: usize = 3 << 20;
const BUCKETS: usize = 4096;

/// 32 bytes of BLAKE3.
pub type Digest = [u8; 32];

/// What a row is known by. Ordered by kind, then by the bytes of the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// Never unspecified.
    pub kind: RowKind,
    /// Empty for settings, and only there.
    pub name: Box<str>,
}

/// A row put in, replaced or taken out.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: RowKey,
    /// A serialized `Row`; `None` takes it out.
    pub row: Option<Bytes>,
}

impl std::fmt::Debug for Change {
    /// Leaves the row out, which may hold a password's hash.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change")
            .field("key", &self.key)
            .field("bytes", &self.row.as_ref().map(Bytes::len))
            .finish()
    }
}

/// A row that cannot be taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadRow {
    /// No key, or a kind that this build does not know.
    NoKey,
    /// The row inside has another key, or cannot be read.
    OtherKey(RowKey),
    /// Longer than [`ROW_BYTES_MAX`].
    TooLong(RowKey),
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoKey => f.write_str("a row without a key, or of a kind that is not known"),
            Self::OtherKey(key) => {
                write!(f, "{:?} `{}`: not the row of that key", key.kind, key.name)
            }
            Self::TooLong(key) => write!(
                f,
                "{:?} `{}`: longer than {ROW_BYTES_MAX} bytes",
                key.kind, key.name
            ),
        }
    }
}

impl std::error::Error for BadRow {}

/// Digest of a serialized row.
pub fn row_digest(row: &[u8]) -> Digest {
    *blake3::hash(row).as_bytes()
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Inventory {
    buckets: Arc<[Arc<Bucket>]>,
    rows: usize,
    bytes: usize,
}

#[derive(Clone, Default)]
struct Bucket {
    rows: BTreeMap<RowKey, Held>,
    digest: Digest,
}

#[derive(Clone)]
struct Held {
    row: Bytes,
    digest: Digest,
}

impl Default for Inventory {
    fn default() -> Self {
        let empty = Arc::new(Bucket::default());
        Self {
            buckets: vec![empty; BUCKETS].into(),
            rows: 0,
            bytes: 0,
        }
    }
}

impl std::fmt::Debug for Inventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inventory")
            .field("rows", &self.rows)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Inventory {
    /// A set of messages. A key that comes twice is refused by the compiler, not here: the last one stays.
    pub fn from_messages<'a>(rows: impl IntoIterator<Item = &'a v1::Row>) -> Result<Self, BadRow> {
        let changes: Result<Vec<Change>, BadRow> =
            rows.into_iter().map(Change::from_message).collect();
        Ok(Self::default().with(changes?))
    }

    /// This set with changes made to it; of two changes to one row the later counts. Costs the buckets touched.
    pub fn with(&self, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut next = self.clone();
        let mut buckets: Vec<Arc<Bucket>> = next.buckets.to_vec();
        let mut touched = vec![false; BUCKETS];
        for change in changes {
            let number = bucket_of(&change.key);
            let (Some(bucket), Some(touched)) = (buckets.get_mut(number), touched.get_mut(number))
            else {
                continue; // never: the number has twelve bits
            };
            *touched = true;
            let rows = &mut Arc::make_mut(bucket).rows;
            let before = match change.row {
                Some(row) => {
                    next.rows += 1;
                    next.bytes += row.len();
                    let digest = row_digest(&row);
                    rows.insert(change.key, Held { row, digest })
                }
                None => rows.remove(&change.key),
            };
            if let Some(before) = before {
                next.rows -= 1;
                next.bytes -= before.row.len();
            }
        }
        for (bucket, _) in buckets
            .iter_mut()
            .zip(touched)
            .filter(|(_, touched)| *touched)
        {
            Arc::make_mut(bucket).seal();
        }
        next.buckets = buckets.into();
        next
    }

    /// Digest of the whole.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for bucket in self.buckets.iter() {
            hasher.update(&bucket.digest);
        }
        *hasher.finalize().as_bytes()
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// How many rows are held for this set beside those that it shares with another one; some that both have are counted
    /// as well, when they lie beside one that differs.
    pub fn rows_beside(&self, other: &Self) -> usize {
        let buckets = self.buckets.iter().zip(other.buckets.iter());
        let own = buckets.filter(|(own, theirs)| !Arc::ptr_eq(own, theirs));
        own.map(|(own, _)| own.rows.len()).sum()
    }

    /// True exactly when there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Length of all rows.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// One row.
    pub fn get(&self, key: &RowKey) -> Option<&Bytes> {
        let bucket = self.buckets.get(bucket_of(key))?;
        bucket.rows.get(key).map(|held| &held.row)
    }

    /// All rows; in no order that means anything, the same for the same set.
    pub fn iter(&self) -> impl Iterator<Item = (&RowKey, &Bytes)> {
        let buckets = self.buckets.iter();
        buckets
            .flat_map(|bucket| bucket.rows.iter())
            .map(|(key, held)| (key, &held.row))
    }

    /// Key and digest of all rows.
    pub fn digests(&self) -> impl Iterator<Item = (&RowKey, &Digest)> {
        let buckets = self.buckets.iter();
        buckets
            .flat_map(|bucket| bucket.rows.iter())
            .map(|(key, held)| (key, &held.digest))
    }

    /// All rows, decoded.
    pub fn messages(&self) -> Result<Vec<v1::Row>, BadRow> {
        self.iter()
            .map(|(key, row)| {
                v1::Row::decode(row.clone()).map_err(|_| BadRow::OtherKey(key.clone()))
            })
            .collect()
    }

    /// The changes that make `newer` out of this.
    pub fn changes_to(&self, newer: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (old, new) in self.buckets.iter().zip(newer.buckets.iter()) {
            if Arc::ptr_eq(old, new) || old.digest == new.digest {
                continue;
            }
            for (key, held) in &new.rows {
                if old
                    .rows
                    .get(key)
                    .is_none_or(|before| before.digest != held.digest)
                {
                    changes.push(Change::put(key, held));
                }
            }
            for key in old.rows.keys().filter(|key| !new.rows.contains_key(key)) {
                changes.push(Change::take(key));
            }
        }
        changes
    }

    /// The changes that make this out of what someone else holds, of which only the digests are known.
    pub fn changes_from(&self, held: &HashMap<RowKey, Digest>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (key, row) in self.buckets.iter().flat_map(|bucket| bucket.rows.iter()) {
            if held.get(key) != Some(&row.digest) {
                changes.push(Change::put(key, row));
            }
        }
        let gone = held.keys().filter(|key| self.get(key).is_none());
        let mut gone: Vec<Change> = gone.map(Change::take).collect();
        gone.sort_by(|a, b| a.key.cmp(&b.key));
        changes.append(&mut gone);
        changes
    }
}

impl Bucket {
    /// Makes the digest right after a change.
    fn seal(&mut self) {
        if self.rows.is_empty() {
            self.digest = Digest::default();
            return;
        }
        let mut hasher = blake3::Hasher::new();
        for (key, held) in &self.rows {
            hasher.update(&[kind_byte(key.kind)]);
            hasher.update(&(key.name.len() as u64).to_le_bytes());
            hasher.update(key.name.as_bytes());
            hasher.update(&held.digest);
        }
        self.digest = *hasher.finalize().as_bytes();
    }
}

impl Change {
    fn put(key: &RowKey, held: &Held) -> Self {
        Self {
            key: key.clone(),
            row: Some(held.row.clone()),
        }
    }

    fn take(key: &RowKey) -> Self {
        Self {
            key: key.clone(),
            row: None,
        }
    }

    /// Puts a row in.
    pub fn from_message(row: &v1::Row) -> Result<Self, BadRow> {
        let key = RowKey::of(row).ok_or(BadRow::NoKey)?;
        let row = row.encode_to_vec();
        if row.len() > ROW_BYTES_MAX {
            return Err(BadRow::TooLong(key));
        }
        Ok(Self {
            key,
            row: Some(row.into()),
        })
    }

    /// From the wire, checked: the key is known, and is that of the row inside. The row is copied out of the message it
    /// came in: a slice would keep all of a message alive as long as one of its rows is held.
    pub fn from_wire(change: v1::RowChange) -> Result<Self, BadRow> {
        let key = change.key.and_then(RowKey::from_wire);
        let key = key.ok_or(BadRow::NoKey)?;
        if let Some(row) = &change.row {
            if row.len() > ROW_BYTES_MAX {
                return Err(BadRow::TooLong(key));
            }
            let inside = v1::Row::decode(row.clone()).ok();
            if inside.as_ref().and_then(RowKey::of).as_ref() != Some(&key) {
                return Err(BadRow::OtherKey(key));
            }
        }
        Ok(Self {
            key,
            row: change.row.map(|row| Bytes::copy_from_slice(&row)),
        })
    }

    /// For the wire.
    pub fn to_wire(&self) -> v1::RowChange {
        v1::RowChange {
            key: Some(self.key.to_wire()),
            row: self.row.clone(),
        }
    }
}

impl RowKey {
    /// The key of a row; `None` when it says nothing, or is of a kind that is not known.
    pub fn of(row: &v1::Row) -> Option<Self> {
        let kind = match row.kind.as_ref()? {
            Kind::Settings(_) => RowKind::Settings,
            Kind::Listener(_) => RowKind::Listener,
            Kind::Upstream(_) => RowKind::Upstream,
            Kind::Group(_) => RowKind::Group,
            Kind::User(_) => RowKind::User,
            Kind::Rule(_) => RowKind::Rule,
        };
        Some(Self {
            kind,
            name: row.name.as_str().into(),
        })
    }

    /// From the wire; `None` for a kind that is not known.
    pub fn from_wire(key: v1::RowKey) -> Option<Self> {
        let kind = RowKind::try_from(key.kind).ok()?;
        (kind != RowKind::Unspecified).then(|| Self {
            kind,
            name: key.name.into(),
        })
    }

    /// For the wire.
    pub fn to_wire(&self) -> v1::RowKey {
        v1::RowKey {
            kind: self.kind.into(),
            name: self.name.as_ref().into(),
        }
    }
}

fn kind_byte(kind: RowKind) -> u8 {
    // All numbers of the closed list are below 256.
    u8::try_from(i32::from(kind)).unwrap_or(u8::MAX)
}

fn bucket_of(key: &RowKey) -> usize {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind_byte(key.kind)]);
    hasher.update(key.name.as_bytes());
    let [first, second, ..] = *hasher.finalize().as_bytes();
    usize::from(u16::from_be_bytes([first, second]) >> 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, order: i64) -> v1::Row {
        v1::Row {
            name: name.into(),
            kind: Some(Kind::Rule(v1::Rule {
                order: Some(order),
                ..v1::Rule::default()
            })),
            ..v1::Row::default()
        }
    }

    fn set(rows: &[v1::Row]) -> Inventory {
        Inventory::from_messages(rows).expect("good rows")
    }

    #[test]
    fn the_digest_depends_on_the_rows_and_on_nothing_else() {
        let many: Vec<v1::Row> = (0..5000).map(|n| rule(&format!("r{n}"), n)).collect();
        let mut backwards = many.clone();
        backwards.reverse();
        let whole = set(&many);
        assert_eq!(whole.len(), 5000);
        assert_eq!(whole.digest(), set(&backwards).digest());
        let detour = whole.with([Change::from_message(&rule("r7", -1)).unwrap()]);
        assert_ne!(detour.digest(), whole.digest());
        let back = detour.with([Change::from_message(&rule("r7", 7)).unwrap()]);
        assert_eq!(back.digest(), whole.digest());
        assert_eq!((back.len(), back.bytes()), (whole.len(), whole.bytes()));
        let emptied = whole.with(many.iter().map(|row| Change {
            key: RowKey::of(row).unwrap(),
            row: None,
        }));
        assert_eq!(emptied.digest(), Inventory::default().digest());
        assert_eq!((emptied.len(), emptied.bytes()), (0, 0));
    }

    #[test]
    fn the_digest_is_what_the_contract_says() {
        let row = rule("a", 1);
        let mut bucket = blake3::Hasher::new();
        bucket.update(&[6]);
        bucket.update(&1_u64.to_le_bytes());
        bucket.update(b"a");
        bucket.update(blake3::hash(&row.encode_to_vec()).as_bytes());
        let number = {
            let hash = blake3::hash(&[6, b'a']);
            let [first, second, ..] = *hash.as_bytes();
            usize::from(first) << 4 | usize::from(second >> 4)
        };
        let mut whole = blake3::Hasher::new();
        for index in 0..4096 {
            if index == number {
                whole.update(bucket.finalize().as_bytes());
            } else {
                whole.update(&[0; 32]);
            }
        }
        assert_eq!(set(&[row]).digest(), *whole.finalize().as_bytes());
    }

    #[test]
    fn changes_lead_from_one_set_to_another_and_are_no_more_than_needed() {
        let old = set(&[rule("same", 1), rule("other", 2), rule("gone", 3)]);
        let new = set(&[rule("same", 1), rule("other", 9), rule("new", 4)]);
        let changes = old.changes_to(&new);
        assert_eq!(changes.len(), 3);
        assert_eq!(old.with(changes).digest(), new.digest());
        let held: HashMap<RowKey, Digest> = old
            .digests()
            .map(|(key, digest)| (key.clone(), *digest))
            .collect();
        let changes = new.changes_from(&held);
        assert_eq!(changes.len(), 3);
        assert_eq!(old.with(changes).digest(), new.digest());
        assert!(new.changes_to(&new.clone()).is_empty());
    }

    #[test]
    fn a_row_under_a_key_that_is_not_its_own_is_refused() {
        let change = Change::from_message(&rule("a", 1)).unwrap().to_wire();
        assert!(Change::from_wire(change.clone()).is_ok());
        let mut other_name = change.clone();
        other_name.key = Some(v1::RowKey {
            kind: RowKind::Rule.into(),
            name: "b".into(),
        });
        let mut other_kind = change.clone();
        other_kind.key = Some(v1::RowKey {
            kind: RowKind::User.into(),
            name: "a".into(),
        });
        let mut garbage = change.clone();
        garbage.row = Some(Bytes::from_static(&[0xff]));
        for bad in [other_name, other_kind, garbage] {
            assert!(matches!(Change::from_wire(bad), Err(BadRow::OtherKey(_))));
        }
        for key in [
            None,
            Some(v1::RowKey {
                kind: 77,
                name: "a".into(),
            }),
        ] {
            let mut bad = change.clone();
            bad.key = key;
            assert_eq!(Change::from_wire(bad), Err(BadRow::NoKey));
        }
        let mut long = change;
        long.row = Some(vec![0; ROW_BYTES_MAX + 1].into());
        assert!(matches!(Change::from_wire(long), Err(BadRow::TooLong(_))));
    }
}
