//! A document tried: read, given its order keys, written as rows, compiled as a node would, and compared with other rows.
//!
//! Slow and pure; runs where the [`desk`](super::desk) puts it. Nothing of it is kept but the rows.

use std::sync::Arc;

use foldhash::{HashSet, HashSetExt};
use sluice_policy::fleet::{BadRow, Change, Inventory, ROW_BYTES_MAX};
use sluice_policy::rows::Rows;
use sluice_policy::{Generation, LockedOut, Position, Snapshot, compile_rows, convert};
use sluice_proto::Message;
use sluice_proto::v1;

use super::fault::{Failed, Wrong};
use crate::domain::diff::Summary;
use crate::domain::order::keep_order;
use crate::store::StoreError;

/// What became of a good document.
pub(super) struct Trial {
    /// Its rows.
    pub(super) rows: Inventory,
    /// What its rows need of a node.
    pub(super) features: HashSet<String>,
    /// What an operator should know.
    pub(super) warnings: Vec<String>,
    /// What makes it out of the rows it was compared with.
    pub(super) changes: Vec<Change>,
    /// Of the changes.
    pub(super) summary: Summary,
}

/// Tries a document. `base` are the rows whose order keys are kept and that it is compared with; `previous` is a snapshot
/// whose tables can be shared.
pub(super) fn run(
    text: String,
    file: &str,
    base: &Inventory,
    previous: Option<&Snapshot>,
) -> Result<Trial, Failed> {
    let mut rows = match sluice_policy::parse(&text, file) {
        Ok(rows) => rows,
        Err(errors) => {
            // Once more with what could be read, so that everything that is wrong is reported at once.
            let all = sluice_policy::compile(&text, file, Generation(0), None).err();
            return Err(Failed::Document(Wrong::from(&all.unwrap_or(errors))));
        }
    };
    drop(text);
    keep_order(&mut rows, base).map_err(|_| unreadable())?;
    let (inventory, features, mut wrong) = written(&rows);
    match compile_rows(rows, file, Generation(0), previous) {
        Ok(snapshot) if wrong.problems.is_empty() => {
            let changes = base.changes_to(&inventory);
            Ok(Trial {
                summary: Summary::of(base, &changes),
                // The same rows; what did not change is shared with `base`, for as long as both are kept.
                rows: base.with(changes.iter().cloned()),
                changes,
                features,
                warnings: snapshot.warnings(),
            })
        }
        Ok(_) => Err(Failed::Document(wrong)),
        Err(errors) => {
            wrong.join(&errors);
            Err(Failed::Document(wrong))
        }
    }
}

/// The rows as they are stored and sent, the features they name, and those that are too long.
fn written(rows: &Rows) -> (Inventory, HashSet<String>, Wrong) {
    let mut features = HashSet::new();
    let mut wrong = Wrong::default();
    let mut changes = Vec::new();
    for (row, at) in convert::to_messages(rows).into_iter().zip(places(rows)) {
        match Change::from_message(&row) {
            Ok(change) => changes.push(change),
            Err(BadRow::TooLong(key)) => wrong.add(
                at,
                format!(
                    "the row of `{}` is longer than {ROW_BYTES_MAX} bytes; split its lists",
                    key.name
                ),
            ),
            // Never: what was written from rows has a key.
            Err(bad) => wrong.add(at, bad.to_string()),
        }
        note_features(&mut features, row.features);
    }
    (Inventory::default().with(changes), features, wrong)
}

/// Where each row stands, in the order in which rows are written.
fn places(rows: &Rows) -> impl Iterator<Item = Position> {
    let listeners = rows.listeners.iter().map(|row| row.at);
    let upstreams = rows.upstreams.iter().map(|row| row.at);
    let groups = rows.groups.iter().map(|row| row.at);
    let users = rows.users.iter().map(|row| row.at);
    let rules = rows.rules.iter().map(|row| row.at);
    std::iter::once(Position::default())
        .chain(listeners)
        .chain(upstreams)
        .chain(groups)
        .chain(users)
        .chain(rules)
}

/// What stored rows need of a node, and what an operator should know about them: they may have been stored by a version that
/// took for a password hash what is none.
pub(super) fn look_through(rows: &Inventory) -> Result<(HashSet<String>, Arc<[String]>), Failed> {
    let (mut features, mut locked_out) = (HashSet::new(), LockedOut::default());
    for (_, row) in rows.iter() {
        let row = v1::Row::decode(row.clone()).map_err(|_| unreadable())?;
        convert::note_locked_out(&row, &mut locked_out);
        note_features(&mut features, row.features);
    }
    Ok((features, locked_out.warnings().into()))
}

fn note_features(features: &mut HashSet<String>, named: Vec<String>) {
    for feature in named {
        if !features.contains(&feature) {
            features.insert(feature);
        }
    }
}

pub(super) fn unreadable() -> Failed {
    StoreError::Corrupt("a row cannot be read".into()).into()
}
