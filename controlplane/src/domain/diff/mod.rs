//! What changes between two sets of rows, as a person would say it: row by row and field by field.
//!
//! Every row that differs is there once, also when no field of it that a person writes does. Stored passwords are said to
//! be there, or to have changed; nothing is derived from them. Where a rule stands is told by the rule before it, not by a
//! number that nobody wrote.

mod fields;
mod place;

use foldhash::HashSet;
use sluice_policy::fleet::{Change, Inventory, RowKey};
use sluice_proto::Message;
use sluice_proto::v1::{self, RowKind, row::Kind};

use place::Places;

/// Longest text of a whole answer, in bytes; rows beyond it are counted only.
pub const DIFF_BYTES_MAX: usize = 2 << 20;

/// How many rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Not there before.
    pub added: u64,
    /// There before and after, and different.
    pub changed: u64,
    /// Not there after.
    pub removed: u64,
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Of all rows that differ.
    pub summary: Summary,
    /// Those that are listed, by kind and name.
    pub rows: Vec<RowDiff>,
    /// How many more there are.
    pub left_off: u64,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It was not there.
    Added,
    /// It says something else.
    Changed,
    /// It is not there.
    Removed,
}

/// One row that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDiff {
    /// Which.
    pub key: RowKey,
    /// What became of it.
    pub became: Became,
    /// What a person would call it.
    pub title: String,
    /// Never empty for a row that changed.
    pub fields: Vec<FieldDiff>,
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldDiff {
    /// As the YAML document calls it.
    pub field: &'static str,
    /// `None`: it was not there.
    pub before: Option<String>,
    /// `None`: it is not there.
    pub after: Option<String>,
}

impl Summary {
    /// Of changes made to a set of rows.
    pub fn of(from: &Inventory, changes: &[Change]) -> Self {
        let mut summary = Self::default();
        for change in changes {
            match became(from, change) {
                Became::Added => summary.added += 1,
                Became::Changed => summary.changed += 1,
                Became::Removed => summary.removed += 1,
            }
        }
        summary
    }
}

impl std::fmt::Display for Summary {
    /// `+3 ~1 -0 rows`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            added,
            changed,
            removed,
        } = self;
        write!(f, "+{added} ~{changed} -{removed} rows")
    }
}

impl Diff {
    /// What leads from one set of rows to another; at most `limit` rows are listed.
    pub fn between(from: &Inventory, to: &Inventory, limit: usize) -> Self {
        let mut changes = from.changes_to(to);
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        let summary = Summary::of(from, &changes);
        let total = changes.len();
        changes.truncate(limit);
        let wanted: HashSet<&str> = changes
            .iter()
            .filter(|change| change.key.kind == RowKind::Rule)
            .map(|change| &*change.key.name)
            .collect();
        let (before, after) = (Places::of(from, &wanted), Places::of(to, &wanted));
        let mut rows: Vec<RowDiff> = Vec::new();
        let mut bytes = 0;
        for change in &changes {
            let row = row_diff(from, change, &before, &after);
            bytes += row.bytes();
            if bytes > DIFF_BYTES_MAX {
                break;
            }
            rows.push(row);
        }
        let left_off = (total - rows.len()) as u64;
        Self {
            summary,
            rows,
            left_off,
        }
    }
}

impl RowDiff {
    fn bytes(&self) -> usize {
        let fields = self.fields.iter().map(|field| {
            let texts = [&field.before, &field.after];
            let texts = texts
                .iter()
                .map(|text| text.as_ref().map_or(0, String::len));
            field.field.len() + texts.sum::<usize>()
        });
        2 * self.title.len() + fields.sum::<usize>()
    }
}

fn became(from: &Inventory, change: &Change) -> Became {
    match (from.get(&change.key), &change.row) {
        (_, None) => Became::Removed,
        (None, Some(_)) => Became::Added,
        (Some(_), Some(_)) => Became::Changed,
    }
}

fn row_diff(from: &Inventory, change: &Change, before: &Places, after: &Places) -> RowDiff {
    let key = &change.key;
    let became = became(from, change);
    let read = |row: Option<&bytes::Bytes>| row.and_then(|row| v1::Row::decode(row.clone()).ok());
    let (old, new) = (read(from.get(key)), read(change.row.as_ref()));
    let mut fields = fields::differing(old.as_ref(), new.as_ref());
    if has_moved(old.as_ref(), new.as_ref()) {
        let place =
            |places: &Places, row: &Option<v1::Row>| row.as_ref().map(|_| places.before(&key.name));
        let (from, mut to) = (place(before, &old), place(after, &new));
        if let (true, Some(to)) = (from == to, &mut to) {
            to.push_str(", with another number");
        }
        fields.push(FieldDiff {
            field: "order",
            before: from,
            after: to,
        });
    }
    if fields.is_empty() && became == Became::Changed {
        fields.push(FieldDiff {
            field: "row",
            before: Some("written in one way".into()),
            after: Some("written in another way that says the same".into()),
        });
    }
    RowDiff {
        key: key.clone(),
        became,
        title: title(key),
        fields,
    }
}

/// True exactly when both or one of them is a rule, and it has not the key that it had.
fn has_moved(old: Option<&v1::Row>, new: Option<&v1::Row>) -> bool {
    let key = |row: Option<&v1::Row>| match row?.kind.as_ref()? {
        Kind::Rule(rule) => Some((rule.order, rule.tie)),
        Kind::Settings(_)
        | Kind::Listener(_)
        | Kind::Upstream(_)
        | Kind::Group(_)
        | Kind::User(_) => None,
    };
    key(old) != key(new)
}

fn title(key: &RowKey) -> String {
    let kind = match key.kind {
        RowKind::Settings => return "settings".into(),
        RowKind::Listener => "listener",
        RowKind::Upstream => "upstream",
        RowKind::Group => "group",
        RowKind::User => "user",
        RowKind::Rule => "rule",
        RowKind::Unspecified => "row", // never: a key has a kind
    };
    format!("{kind} {}", key.name)
}

#[cfg(test)]
mod tests;
