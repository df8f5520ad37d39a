//! Users who are in more classes than a session can hold, whatever else is true of the session: a document that has one is
//! refused.
//!
//! Only rules that ask for nothing but the user count: whether others match is not known before a client connects. Counting
//! takes a pass over all users, so a change only counts where it could make a difference, and keeps a number that no user
//! is above.

use std::net::IpAddr;

use sluice_wire::mqtt::Version;

use crate::model::WhoPart;
use crate::rulebook::Rulebook;
use crate::tables::who::Facts;
use crate::users::Users;
use crate::verdict::SESSION_CLASSES_MAX;
use crate::{Cancel, Listener, document};

/// What was found.
pub(crate) struct Crowd {
    /// See [`crate::snapshot::Snapshot`].
    pub(crate) max: Option<usize>,
    /// A line for each user who is in too many.
    pub(crate) problems: Vec<String>,
}

/// Counts for all users, where there are enough classes for anyone to be in too many; for fewer when it is cancelled.
pub(crate) fn count(
    rules: &Rulebook,
    users: &Users,
    listeners: &[Listener],
    cancel: Option<&Cancel>,
) -> Crowd {
    let mut crowd = Crowd {
        max: None,
        problems: Vec::new(),
    };
    if rules.certain() <= SESSION_CLASSES_MAX {
        return crowd;
    }
    let named = users.iter().map(|user| (Some(&*user.name), &*user.groups));
    let anonymous = listeners
        .iter()
        .map(|listener| (None, listener.anonymous_group.as_slice()))
        .filter(|(_, groups): &(Option<&str>, &[Box<str>])| !groups.is_empty());
    let mut max = 0;
    for (name, groups) in named.chain(anonymous) {
        if cancel.is_some_and(Cancel::is_cancelled) {
            break;
        }
        let count = certain_classes(rules, name, groups);
        max = max.max(count);
        if count > SESSION_CLASSES_MAX {
            let who = name.map_or_else(
                || "an anonymous client".into(),
                |name| format!("user `{}`", document::shown(name)),
            );
            crowd.problems.push(format!(
                "{who} is matched by rules with {count} different `who` parts, at most {SESSION_CLASSES_MAX}; \
                 put rules for the same sessions under the same `who`"
            ));
        }
    }
    crowd.max = Some(max);
    crowd
}

/// The same after a change, from what was known before it: `came` are the classes that depend on the user alone since,
/// `changed` the users who are others since.
pub(crate) fn recount(
    before: Option<usize>,
    came: &[u32],
    changed: &[Box<str>],
    rules: &Rulebook,
    users: &Users,
    listeners: &[Listener],
) -> Crowd {
    let Some(mut max) = before.filter(|_| rules.certain() > SESSION_CLASSES_MAX) else {
        return count(rules, users, listeners, None);
    };
    let mut names: Vec<&str> = changed.iter().map(|name| &**name).collect();
    for part in came.iter().filter_map(|class| rules.index().part(*class)) {
        match &**part {
            WhoPart {
                users: Some(users), ..
            } => names.extend(users.iter().map(|name| &**name)),
            // It may be anyone, so everyone may be in one more.
            _ => max += 1,
        }
    }
    for user in names.into_iter().filter_map(|name| users.get(name)) {
        max = max.max(certain_classes(rules, Some(&user.name), &user.groups));
    }
    if max > SESSION_CLASSES_MAX {
        return count(rules, users, listeners, None);
    }
    Crowd {
        max: Some(max),
        problems: Vec::new(),
    }
}

fn certain_classes(rules: &Rulebook, username: Option<&str>, groups: &[Box<str>]) -> usize {
    let classes = rules.index().classes_of(&Facts {
        username,
        client_id: "",
        address: IpAddr::from([0, 0, 0, 0]),
        groups,
        version: Version::V311,
        listener: "",
    });
    classes
        .into_iter()
        .filter(|class| rules.is_certain(*class))
        .count()
}
