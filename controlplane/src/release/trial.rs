//! A document tried: read, given its order keys, written as rows, compiled as a node would, and compared with other rows.
//!
//! Slow and pure; runs where the [`desk`](super::desk) puts it. Nothing of it is kept but the rows.

use std::sync::Arc;

use foldhash::{HashSet, HashSetExt};
use sluice_policy::fleet::{BadRow, Change, Inventory, ROW_BYTES_MAX};
use sluice_policy::rows::Rows;
use sluice_policy::{
    Cancel, Generation, LockedOut, Position, Snapshot, compile_rows_until, compile_until, convert,
    parse_until,
};
use sluice_proto::Message;
use sluice_proto::v1;

use super::fault::{Failed, Wrong};
use crate::domain::diff::Summary;
use crate::domain::order::keep_order;
use crate::store::StoreError;

/// Most warnings about one document that are kept, and their length together. `sluicectl validate --offline` shows all.
const WARNINGS_MAX: usize = 32;
const WARNINGS_BYTES_MAX: usize = 16 << 10;

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
/// whose tables can be shared. [`Failed::Stopped`] soon after it is cancelled: no stretch without a look at the flag is
/// longer than one pass over all rows.
pub(super) fn run(
    text: String,
    file: &str,
    base: &Inventory,
    previous: Option<&Snapshot>,
    cancel: &Cancel,
) -> Result<Trial, Failed> {
    let mut rows = match parse_until(&text, file, cancel) {
        Ok(rows) => rows,
        Err(errors) => {
            // Once more with what could be read, so that everything that is wrong is reported at once.
            let all = compile_until(&text, file, Generation(0), None, cancel).err();
            is_wanted(cancel)?;
            return Err(Failed::Document(Wrong::from(&all.unwrap_or(errors))));
        }
    };
    drop(text);
    keep_order(&mut rows, base).map_err(|_| unreadable())?;
    let (inventory, features, mut wrong) = written(&rows, cancel);
    let compiled = compile_rows_until(rows, file, Generation(0), previous, cancel);
    is_wanted(cancel)?;
    match compiled {
        Ok(snapshot) if wrong.problems.is_empty() => {
            let warnings = bounded(snapshot.review(cancel));
            is_wanted(cancel)?;
            // Each of these takes hundreds of megabytes for a million rows, and what follows as well.
            drop(snapshot);
            let changes = base.changes_to(&inventory);
            drop(inventory);
            Ok(Trial {
                summary: Summary::of(base, &changes),
                // The same rows; what did not change is shared with `base`, for as long as both are kept.
                rows: base.with(changes.iter().cloned()),
                changes,
                features,
                warnings,
            })
        }
        Ok(_) => Err(Failed::Document(wrong)),
        Err(errors) => {
            wrong.join(&errors);
            Err(Failed::Document(wrong))
        }
    }
}

/// What is stored and shown of warnings: the first ones, a line each, and how many more there are.
fn bounded(warnings: Vec<String>) -> Vec<String> {
    let mut bytes = 0;
    let count = warnings.len();
    let fits = |warning: &String| {
        bytes += warning.len();
        bytes <= WARNINGS_BYTES_MAX
    };
    let mut kept: Vec<String> = warnings
        .into_iter()
        .take(WARNINGS_MAX)
        .take_while(fits)
        .collect();
    match count - kept.len() {
        0 => {}
        1 => kept.push("and 1 more warning".into()),
        more => kept.push(format!("and {more} more warnings")),
    }
    kept
}

fn is_wanted(cancel: &Cancel) -> Result<(), Failed> {
    if cancel.is_cancelled() {
        return Err(Failed::Stopped);
    }
    Ok(())
}

/// The rows as they are stored and sent, the features they name, and those that are too long. Cancelled, fewer of them.
fn written(rows: &Rows, cancel: &Cancel) -> (Inventory, HashSet<String>, Wrong) {
    let mut features = HashSet::new();
    let mut wrong = Wrong::default();
    let messages = convert::messages(rows).zip(places(rows));
    let changes = messages
        .take_while(|_| !cancel.is_cancelled())
        .filter_map(|(row, at)| {
            let change = Change::from_message(&row)
                .map_err(|bad| wrong.add(at, told(&bad)))
                .ok();
            note_features(&mut features, row.features);
            change
        });
    let inventory = Inventory::default().with(changes);
    (inventory, features, wrong)
}

fn told(bad: &BadRow) -> String {
    match bad {
        BadRow::TooLong(key) => format!(
            "the row of `{}` is longer than {ROW_BYTES_MAX} bytes; split its lists",
            key.name
        ),
        // Never: what was written from rows has a key.
        BadRow::NoKey | BadRow::OtherKey(_) => bad.to_string(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded_in_number_and_length() {
        let many = |count: usize, bytes: usize| vec!["x".repeat(bytes); count];
        let third = WARNINGS_BYTES_MAX / 3;
        for (count, bytes, kept) in [
            (0, 1, 0),
            (WARNINGS_MAX, 1, WARNINGS_MAX),
            (WARNINGS_MAX + 1, 1, WARNINGS_MAX),
            (3, third, 3),
            (9, third, 3),
            (1, WARNINGS_BYTES_MAX + 1, 0),
        ] {
            let found = bounded(many(count, bytes));
            let said = found.last().filter(|last| last.starts_with("and "));
            assert_eq!(
                found.len() - usize::from(said.is_some()),
                kept,
                "{count} {bytes}"
            );
            let more = (count > kept).then(|| match count - kept {
                1 => "and 1 more warning".to_owned(),
                more => format!("and {more} more warnings"),
            });
            assert_eq!(said, more.as_ref());
        }
    }
}
