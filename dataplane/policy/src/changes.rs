//! An inventory to a snapshot: by the changes since the one before where it can be, else as a whole.
//!
//! Knows no problem by name: where anything is wrong there is no snapshot, and `convert` asks again the slow way, which
//! reports everything. So what is refused and why is decided in one place only.

use std::sync::Arc;

use sluice_proto::v1::RowKind;

use crate::convert::RowReader;
use crate::fleet::{Change, Digest, Inventory, RowKey};
use crate::model::{RuleModel, UserModel};
use crate::problem::Problems;
use crate::rows::Rows;
use crate::rulebook::Rulebook;
use crate::snapshot::Origin;
use crate::users::Users;
use crate::validate::{self, Ground, Source, Uses};
use crate::{Cancel, Generation, RULES_MAX, Snapshot, compile, crowd};

/// So many changes are always made one by one; more only while they are few beside all rows.
const CHANGES_MIN: usize = 64;
/// One change costs about as much as so many rows of a whole compile.
const CHANGE_IN_ROWS: usize = 8;

/// Compiles all rows, one after the other. `None`: something is wrong, or it was cancelled.
pub(crate) fn whole(
    inventory: &Inventory,
    generation: Generation,
    previous: Option<&Snapshot>,
    cancel: &Cancel,
) -> Option<Snapshot> {
    let mut problems = Problems::until(cancel);
    let (mut reader, mut has_settings) = (RowReader::default(), false);
    for (key, row) in inventory.iter() {
        if cancel.is_cancelled() {
            return None;
        }
        has_settings |= key.kind == RowKind::Settings;
        if key.kind != RowKind::Rule && !reader.read(row) {
            return None;
        }
    }
    if !has_settings {
        return None;
    }
    let rows = reader.rows();
    let places = Rows {
        listeners: rows.listeners.clone(),
        groups: rows.groups.clone(),
        ..Rows::default()
    };
    let mut model = validate::check(rows, Source::Stored, &mut problems);
    let mut ground = Ground::new(&places, &model);
    let mut reader = RowReader::default();
    let rules = inventory
        .iter()
        .filter(|(key, _)| key.kind == RowKind::Rule)
        .map(|(_, row)| {
            if reader.read(row) {
                reader.rule()
            } else {
                None
            }
        });
    model.rules = ground.rules(rules, &mut problems)?;
    if !problems.is_empty() || model.rules.len() > RULES_MAX {
        return None;
    }
    // No two rules are equal in this, since their names are not.
    model.rules.sort_unstable_by(RuleModel::asked_before);
    let users = model.users.iter().map(Uses::User);
    for row in users.chain(model.rules.iter().map(Uses::Rule)) {
        if cancel.is_cancelled() {
            return None;
        }
        ground.count(&row, true);
    }
    if !ground.is_within_bounds() {
        return None;
    }
    let digest = hex(&inventory.digest());
    let snapshot = compile::assemble(model, generation, digest, previous, &mut problems)?;
    let inventory = inventory.clone();
    let is_whole = problems.is_empty() && !cancel.is_cancelled();
    is_whole.then(|| Snapshot {
        origin: Some(Origin { inventory, ground }),
        ..snapshot
    })
}

/// Makes the changes since the snapshot before. `None`: it takes more than changed rules and users, something is wrong, or
/// it was cancelled.
pub(crate) fn follow(
    previous: &Snapshot,
    inventory: &Inventory,
    generation: Generation,
    cancel: &Cancel,
) -> Option<Snapshot> {
    let origin = previous.origin.as_ref()?;
    let changes = origin.inventory.changes_to(inventory);
    let is_few = changes.len() <= CHANGES_MIN || changes.len() * CHANGE_IN_ROWS <= inventory.len();
    if !is_few {
        return None;
    }
    let mut next = Next {
        before: &origin.inventory,
        ground: origin.ground.clone(),
        rules: previous.rules.clone(),
        users: previous.users.clone(),
        inserted: Vec::new(),
        changed_users: Vec::new(),
    };
    for change in &changes {
        if cancel.is_cancelled() {
            return None;
        }
        match change.key.kind {
            RowKind::Rule => next.rule(change)?,
            RowKind::User => next.user(change)?,
            RowKind::Unspecified
            | RowKind::Settings
            | RowKind::Listener
            | RowKind::Upstream
            | RowKind::Group => return None,
        }
    }
    let Next {
        ground,
        mut rules,
        mut users,
        inserted,
        changed_users,
        ..
    } = next;
    for rule in inserted {
        if !rules.insert(rule) {
            return None;
        }
    }
    if rules.len() > RULES_MAX || !ground.is_within_bounds() {
        return None;
    }
    if rules.is_wasteful() {
        return None;
    }
    let came = rules.settle().ok()?;
    users.settle();
    let listeners = &previous.frame.listeners;
    let crowd = crowd::recount(
        previous.crowd_max,
        &came,
        &changed_users,
        &rules,
        &users,
        listeners,
    );
    let inventory = inventory.clone();
    crowd.problems.is_empty().then(|| Snapshot {
        generation,
        digest: hex(&inventory.digest()),
        frame: Arc::clone(&previous.frame),
        users,
        rules,
        crowd_max: crowd.max,
        origin: Some(Origin { inventory, ground }),
    })
}

/// A snapshot on its way from the one before.
struct Next<'p> {
    before: &'p Inventory,
    ground: Ground,
    rules: Rulebook,
    users: Users,
    /// Rules that come to a place where none was; they come when all that go are gone.
    inserted: Vec<Arc<RuleModel>>,
    changed_users: Vec<Box<str>>,
}

impl Next<'_> {
    fn rule(&mut self, change: &Change) -> Option<()> {
        let mut place: Option<(u32, Arc<RuleModel>)> = None;
        if let Some(row) = self.before.get(&change.key) {
            let old = read_rule(&self.ground, row, &change.key)?;
            let rank = self.rules.find(&old)?;
            let old = self.rules.take(rank)?;
            self.ground.count(&Uses::Rule(&old), false);
            place = Some((rank, old));
        }
        let Some(row) = &change.row else {
            return Some(());
        };
        let mut rule = read_rule(&self.ground, row, &change.key)?;
        let before = place.as_ref().map(|(_, old)| old);
        rule.row = match before.filter(|old| old.is_same_row(&rule)) {
            Some(old) => old.row,
            None => self.rules.new_row()?,
        };
        let rule = Arc::new(rule);
        self.ground.count(&Uses::Rule(&rule), true);
        match place {
            Some((rank, old)) if old.asked_before(&rule).is_eq() => self.rules.put(rank, rule),
            Some(_) | None => self.inserted.push(rule),
        }
        Some(())
    }

    fn user(&mut self, change: &Change) -> Option<()> {
        if let Some(row) = self.before.get(&change.key) {
            let old = read_user(&self.ground, row, &change.key)?;
            self.ground.count(&Uses::User(&old), false);
        }
        self.changed_users.push(change.key.name.clone());
        let Some(row) = &change.row else {
            self.users.remove(&change.key.name);
            // A group row still names it: that is for the whole to say.
            return (!self.ground.names_user(&change.key.name)).then_some(());
        };
        let user = read_user(&self.ground, row, &change.key)?;
        self.ground.count(&Uses::User(&user), true);
        self.users.set(user);
        Some(())
    }
}

fn read_rule(ground: &Ground, row: &bytes::Bytes, key: &RowKey) -> Option<RuleModel> {
    let mut reader = RowReader::default();
    let (row, tie) = reader.read(row).then(|| reader.rule())??;
    let mut problems = Problems::default();
    let rule = RuleModel {
        tie,
        ..ground.rule(row, &mut problems)
    };
    (problems.is_empty() && rule.name() == &*key.name).then_some(rule)
}

fn read_user(ground: &Ground, row: &bytes::Bytes, key: &RowKey) -> Option<UserModel> {
    let mut reader = RowReader::default();
    let row = reader.read(row).then(|| reader.user())??;
    let mut problems = Problems::default();
    let user = ground.user(row, &mut problems);
    (problems.is_empty() && user.name == key.name).then_some(user)
}

fn hex(digest: &Digest) -> Box<str> {
    blake3::Hash::from_bytes(*digest).to_hex().as_str().into()
}

#[cfg(test)]
mod tests;
