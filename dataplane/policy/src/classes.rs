//! Rules to classes: rules with the same who-part share an id, a place in the index and a table.

use std::collections::HashMap;
use std::sync::Arc;

use crate::filter::{Level, Variable};
use crate::model::{Model, RuleModel, WhoPart};
use crate::problem::{Position, Problems};
use crate::rows::Mode;
use crate::snapshot::{Class, VariableUse};
use crate::tables::NO_RANK;
use crate::tables::class::ClassTable;
use crate::tables::who::{Facts, WhoIndex};
use crate::verdict::SESSION_CLASSES_MAX;
use crate::{Snapshot, document};

/// All classes of a document.
pub(crate) struct Classes {
    pub(crate) index: WhoIndex,
    pub(crate) classes: Box<[Class]>,
    pub(crate) tables: Box<[Arc<ClassTable>]>,
}

/// Groups the enabled rules; a table that `previous` has already is shared with it.
pub(crate) fn build(
    model: &Model,
    previous: Option<&Snapshot>,
    problems: &mut Problems,
) -> Option<Classes> {
    let (parts, members) = group(&model.rules);
    let index = WhoIndex::new(&parts)
        .map_err(|message| problems.add(Position::default(), message))
        .ok()?;
    let known: HashMap<&[u8; 32], &Arc<ClassTable>> = previous
        .map(|snapshot| {
            snapshot
                .classes
                .iter()
                .map(|class| &class.key)
                .zip(&snapshot.tables)
                .collect()
        })
        .unwrap_or_default();
    let rules_of = |ranks: &[u32]| -> Vec<(u32, &RuleModel)> {
        ranks
            .iter()
            .filter_map(|rank| Some((*rank, model.rules.get(*rank as usize)?)))
            .collect()
    };
    let mut classes = Vec::with_capacity(parts.len());
    let mut tables = Vec::with_capacity(parts.len());
    for ranks in &members {
        let rules = rules_of(ranks);
        let class = class(&rules);
        tables.push(match known.get(&class.key) {
            Some(table) => Arc::clone(table),
            None => Arc::new(ClassTable::new(rules.into_iter())),
        });
        classes.push(class);
    }
    too_many_for_a_user(model, &parts, &classes, problems);
    Some(Classes {
        index,
        classes: classes.into(),
        tables: tables.into(),
    })
}

/// The different who-parts of enabled rules, in rank order, and the ranks of each.
fn group(rules: &[RuleModel]) -> (Vec<&WhoPart>, Vec<Vec<u32>>) {
    let mut parts: Vec<&WhoPart> = Vec::new();
    let mut members: Vec<Vec<u32>> = Vec::new();
    let mut places: HashMap<&WhoPart, usize> = HashMap::new();
    for (rank, rule) in (0_u32..).zip(rules).filter(|(_, rule)| rule.enabled) {
        let place = *places.entry(&*rule.who).or_insert_with(|| {
            parts.push(&rule.who);
            members.push(Vec::new());
            parts.len() - 1
        });
        if let Some(ranks) = members.get_mut(place) {
            ranks.push(rank);
        }
    }
    (parts, members)
}

fn class(rules: &[(u32, &RuleModel)]) -> Class {
    let mut class = Class {
        connect: NO_RANK,
        connect_shadow: NO_RANK,
        has_topics: false,
        client_id: VariableUse::default(),
        username: VariableUse::default(),
        key: key(rules),
    };
    for (rank, rule) in rules {
        if rule.actions.connect {
            let slot = match rule.mode {
                Mode::Enforce => &mut class.connect,
                Mode::Shadow => &mut class.connect_shadow,
            };
            *slot = (*slot).min(*rank);
        }
        if !rule.actions.needs_topics() {
            continue;
        }
        class.has_topics = true;
        for (depth, level) in rule
            .topics
            .iter()
            .flat_map(|topic| topic.levels.iter().enumerate())
        {
            let Level::Variable(variable) = level else {
                continue;
            };
            let used = match variable {
                Variable::ClientId => &mut class.client_id,
                Variable::Username => &mut class.username,
            };
            used.anywhere = true;
            used.first |= depth == 0;
        }
    }
    class
}

/// Everything a table is made of: equal keys, equal tables.
fn key(rules: &[(u32, &RuleModel)]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (rank, rule) in rules {
        let actions = rule.actions;
        hasher.update(&rank.to_le_bytes());
        hasher.update(&[
            rule.effect as u8,
            rule.mode as u8,
            u8::from(actions.publish),
            u8::from(actions.subscribe),
            u8::from(actions.receive),
        ]);
        hasher.update(&(rule.topics.len() as u64).to_le_bytes());
        for topic in &rule.topics {
            let text = topic.to_string();
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().into()
}

/// Reports users that are in more classes than a session can hold whatever else is true of the session. Only rules that
/// ask for nothing but the user count: whether others match is not known before a client connects.
fn too_many_for_a_user(
    model: &Model,
    parts: &[&WhoPart],
    classes: &[Class],
    problems: &mut Problems,
) {
    let certain: Vec<&WhoPart> = parts
        .iter()
        .zip(classes)
        .filter(|(part, class)| class.has_topics && depends_on_the_user_alone(part))
        .map(|(part, _)| *part)
        .collect();
    if certain.len() <= SESSION_CLASSES_MAX {
        return;
    }
    let Ok(index) = WhoIndex::new(&certain) else {
        return;
    };
    let users = model
        .users
        .iter()
        .filter(|user| user.enabled)
        .map(|user| (Some(&*user.name), user.groups.as_slice()));
    let anonymous = model
        .listeners
        .iter()
        .filter_map(|listener| Some((None, listener.anonymous_group.as_ref()?)));
    let anonymous = anonymous.map(|(name, group)| (name, std::slice::from_ref(group)));
    for (name, groups) in users.chain(anonymous) {
        let count = index
            .classes_of(&Facts {
                username: name,
                client_id: "",
                address: std::net::IpAddr::from([0, 0, 0, 0]),
                groups,
                version: sluice_wire::mqtt::Version::V311,
                listener: "",
            })
            .len();
        if count > SESSION_CLASSES_MAX {
            let who = name.map_or_else(
                || "an anonymous client".into(),
                |name| format!("user `{}`", document::shown(name)),
            );
            problems.add(
                Position::default(),
                format!(
                    "{who} is matched by rules with {count} different `who` parts, at most {SESSION_CLASSES_MAX}; \
                     put rules for the same sessions under the same `who`"
                ),
            );
        }
    }
}

fn depends_on_the_user_alone(part: &WhoPart) -> bool {
    part.client_ids.is_none()
        && part.client_id_patterns.is_none()
        && part.addresses.is_none()
        && part.versions.is_none()
        && part.listeners.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Generation, compile};

    #[test]
    fn unchanged_classes_share_their_tables_with_the_previous_snapshot() {
        let document = |users: &str, deny: &str| {
            format!(
                "groups: [{{name: g}}]\nusers: [{users}]\nrules:\n\
                 - {{name: one, order: 1, actions: [publish], topics: [a], decision: allow}}\n\
                 - {{name: two, order: 2, who: {{groups: [g]}}, actions: [publish], topics: [{deny}], decision: deny}}\n"
            )
        };
        let compiled = |text: &str, previous: Option<&Snapshot>| {
            compile(text, "p.yaml", Generation(1), previous)
                .unwrap_or_else(|errors| panic!("{errors}"))
        };
        let user = "{name: u, password_hash: $7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==}";
        let first = compiled(&document("", "b"), None);
        let more_users = compiled(&document(user, "b"), Some(&first));
        let other_rule = compiled(&document(user, "c"), Some(&more_users));
        let is_shared = |left: &Snapshot, right: &Snapshot| -> Vec<bool> {
            left.tables
                .iter()
                .zip(&right.tables)
                .map(|(left, right)| Arc::ptr_eq(left, right))
                .collect()
        };
        assert_eq!(is_shared(&first, &more_users), [true, true]);
        assert_eq!(is_shared(&more_users, &other_rule), [true, false]);
    }
}
