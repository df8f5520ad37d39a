//! The question that is asked most: may this message pass. Whether a session may be is in `admitting.rs`, whether a filter may
//! be subscribed to in `granting.rs`; this file has what they share.
//!
//! `ruling` runs for every delivery, and for every published message whose topic is another than its session's last: it
//! allocates nothing and evaluates no expression.

use crate::ruling::{Ranked, Ruling};
use crate::snapshot::{Class, Outcome, Value};
use crate::tables::NO_RANK;
use crate::tables::class::Tries;
use crate::tables::level::{Level, Levels, split_into};
use crate::tables::topic_trie::{Bound, Search, TopicTrie, VERDICT_NODES_MAX};
use crate::tables::who::Facts;
use crate::{Action, Classes, Effect, Listener, Refusal, Snapshot, User, Vars, Who};

/// How many classes with topic rules a session may be in; one more and it is refused. A document in which some session
/// certainly is in more is refused as a whole.
pub const SESSION_CLASSES_MAX: usize = 64;

/// A session that was recognised, before any rule was asked.
pub(crate) struct Recognised<'s> {
    pub(crate) listener: &'s Listener,
    pub(crate) user: Option<&'s User>,
    pub(crate) groups: &'s [Box<str>],
}

/// Everything about a session that depends neither on rules nor on what its client id is like.
pub(crate) fn recognise<'s>(
    snapshot: &'s Snapshot,
    who: &Who<'_>,
) -> Result<Recognised<'s>, Refusal> {
    let listener = snapshot
        .listener(who.listener)
        .ok_or(Refusal::ListenerGone)?;
    if !listener.versions.contains(&who.version) {
        return Err(Refusal::Version);
    }
    let user: Option<&User> = match who.username {
        Some(name) => Some(
            snapshot
                .user(name)
                .filter(|user| user.may_come_from(who.address))
                .ok_or(Refusal::Credentials)?,
        ),
        None if !listener.anonymous => return Err(Refusal::Credentials),
        None => None,
    };
    if who.client_id.len() > usize::from(listener.client_id_bytes_max) {
        return Err(Refusal::ClientIdentifier);
    }
    let groups = user.map_or_else(|| listener.anonymous_group.as_slice(), |user| &*user.groups);
    Ok(Recognised {
        listener,
        user,
        groups,
    })
}

/// The classes of a recognised session, those with connect rules only included.
pub(crate) fn classes_of(
    snapshot: &Snapshot,
    who: &Who<'_>,
    recognised: &Recognised<'_>,
) -> Vec<u32> {
    snapshot.rules.index().classes_of(&facts(who, recognised))
}

/// What the index is asked with.
pub(crate) fn facts<'a>(who: &Who<'a>, recognised: &Recognised<'a>) -> Facts<'a> {
    Facts {
        username: who.username,
        client_id: who.client_id,
        address: who.address,
        groups: recognised.groups,
        version: who.version,
        listener: &recognised.listener.name,
    }
}

/// The connect rules of some classes: the rank that decides, and the shadow rank before it.
pub(crate) fn connect_ranks(snapshot: &Snapshot, classes: &[u32]) -> (u32, u32) {
    let found = classes.iter().filter_map(|id| snapshot.rules.class(*id));
    let (enforce, shadow) = found.fold((NO_RANK, NO_RANK), |(enforce, shadow), class| {
        (enforce.min(class.connect), shadow.min(class.connect_shadow))
    });
    (enforce, if shadow < enforce { shadow } else { NO_RANK })
}

/// True exactly when every variable that the class's filters use has a value that is one level. A session that lacks one
/// is refused: leaving the rules out would weaken denies.
pub(crate) fn fits_variables(class: &Class, client_id: Value, username: Value) -> bool {
    class.client_id.fits(client_id) && class.username.fits(username)
}

/// See [`Snapshot::ruling`].
#[inline]
pub(crate) fn ruling(
    snapshot: &Snapshot,
    classes: &Classes,
    vars: &Vars<'_>,
    action: Action,
    topic: &str,
) -> Ruling {
    let mut levels = Levels::new();
    split_into(topic, &mut levels);
    let bound = bound(vars);
    let mut search = Search::new(NO_RANK, VERDICT_NODES_MAX);
    for id in &classes.ids {
        if let Some(table) = snapshot.rules.table(*id) {
            for trie in table.enforce.of(action).into_iter().flatten() {
                trie.search(&levels, &bound, &mut search);
            }
        }
    }
    let is_too_complex = search.is_exhausted();
    let rank = if is_too_complex { NO_RANK } else { search.best };
    let enforced = snapshot.ranked(rank);
    let mut ruling = Ruling {
        enforced,
        shadow: enforced,
        is_too_complex,
    };
    if snapshot.rules.has_shadow() && !is_too_complex {
        ruling.shadow = shadow(snapshot, classes, &levels, &bound, action, enforced);
    }
    ruling
}

/// The shadow rule before the one that decided; that one where there is none, or none can be found in time.
#[inline(never)]
fn shadow(
    snapshot: &Snapshot,
    classes: &Classes,
    levels: &[Level<'_>],
    bound: &Bound<'_>,
    action: Action,
    enforced: Ranked,
) -> Ranked {
    let mut search = Search::new(enforced.rank, VERDICT_NODES_MAX);
    for id in &classes.ids {
        if let Some(shadow) = snapshot
            .rules
            .table(*id)
            .and_then(|table| table.shadow.as_ref())
        {
            for trie in shadow.of(action).into_iter().flatten() {
                trie.search(levels, bound, &mut search);
            }
        }
    }
    if search.is_exhausted() {
        return enforced;
    }
    snapshot.ranked(search.best)
}

impl Tries {
    #[inline]
    fn of(&self, action: Action) -> [Option<&TopicTrie>; 2] {
        match action {
            Action::Publish => [self.publish.as_ref(), None],
            Action::Receive => [self.subscribe.as_ref(), self.receive_alone.as_ref()],
            // Not asked about one topic: nothing matches, so the default decides.
            Action::Connect | Action::Subscribe => [None, None],
        }
    }
}

impl Snapshot {
    /// What the rule of a rank asks for; the default's for no rank.
    #[inline]
    pub(crate) fn outcome(&self, rank: u32) -> Outcome {
        self.rules.outcome(rank)
    }

    pub(crate) fn effect(&self, rank: u32) -> Effect {
        self.outcome(rank).effect
    }

    #[inline]
    fn ranked(&self, rank: u32) -> Ranked {
        Ranked {
            rank,
            outcome: self.outcome(rank),
        }
    }
}

pub(crate) fn bound<'a>(vars: &Vars<'a>) -> Bound<'a> {
    Bound {
        client_id: vars.client_id.as_bytes(),
        username: vars.username.as_bytes(),
    }
}
