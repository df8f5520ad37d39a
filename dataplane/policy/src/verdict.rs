//! The three questions a snapshot answers: may this session be, may this message pass, may this filter be subscribed to.
//!
//! `ruling` runs for every delivery, and for every published message whose topic is another than its session's last: it
//! allocates nothing and evaluates no expression. `admit` runs when a session begins and when it meets a new generation.

use std::cell::Cell;

use sluice_wire::mqtt::QoS;

use crate::rows::QosOver;
use crate::ruling::{Ranked, Ruling, rule};
use crate::snapshot::{Class, Outcome};
use crate::tables::NO_RANK;
use crate::tables::class::{ClassTable, Tries};
use crate::tables::level::{Level, Levels, split_into};
use crate::tables::subscription::{Check, Grant};
use crate::tables::topic_trie::{Bound, Search, TopicTrie, VERDICT_NODES_MAX};
use crate::tables::who::Facts;
use crate::{
    Action, Admission, Classes, Decision, Denial, Effect, Listener, OnDeny, Refusal, Snapshot,
    User, Vars, Verdict, Who,
};

/// How many classes with topic rules a session may be in; one more and it is refused. A document in which some session
/// certainly is in more is refused as a whole.
pub const SESSION_CLASSES_MAX: usize = 64;

/// How many nodes the checks of all filters of one SUBSCRIBE may visit together: about ten milliseconds of a shard. A
/// packet can carry a hundred thousand filters, and each could cost the bound of a single one.
pub const PACKET_NODES_MAX: u32 = 1_000_000;

/// What a filter costs at least, however few nodes its check visits.
const FILTER_NODES_MIN: u32 = 16;

/// What is left of the work that one SUBSCRIBE may cause.
#[derive(Clone, Debug)]
pub struct Effort {
    nodes_left: u32,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            nodes_left: PACKET_NODES_MAX,
        }
    }
}

/// A session that was recognised, before any rule was asked.
pub(crate) struct Recognised<'s> {
    pub(crate) listener: &'s Listener,
    pub(crate) groups: &'s [Box<str>],
}

/// Everything about a session that does not depend on rules.
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
    let is_bound = |user: &User| {
        user.client_id
            .as_ref()
            .is_none_or(|binding| binding.allows(who.client_id))
    };
    let is_allowed = who.client_id.len() <= usize::from(listener.client_id_bytes_max)
        && listener
            .client_id_pattern
            .as_ref()
            .is_none_or(|pattern| pattern.is_match(who.client_id))
        && user.is_none_or(is_bound);
    if !is_allowed {
        return Err(Refusal::ClientIdentifier);
    }
    let groups = user.map_or_else(|| listener.anonymous_group.as_slice(), |user| &*user.groups);
    Ok(Recognised { listener, groups })
}

/// The classes of a recognised session, those with connect rules only included.
pub(crate) fn classes_of(
    snapshot: &Snapshot,
    who: &Who<'_>,
    recognised: &Recognised<'_>,
) -> Vec<u32> {
    snapshot.rules.index().classes_of(&Facts {
        username: who.username,
        client_id: who.client_id,
        address: who.address,
        groups: recognised.groups,
        version: who.version,
        listener: &recognised.listener.name,
    })
}

/// The connect rules of some classes: the rank that decides, and the shadow rank before it.
pub(crate) fn connect_ranks(snapshot: &Snapshot, classes: &[u32]) -> (u32, u32) {
    let found = classes.iter().filter_map(|id| snapshot.rules.class(*id));
    let (enforce, shadow) = found.fold((NO_RANK, NO_RANK), |(enforce, shadow), class| {
        (enforce.min(class.connect), shadow.min(class.connect_shadow))
    });
    (enforce, if shadow < enforce { shadow } else { NO_RANK })
}

/// See [`Snapshot::admit`].
pub(crate) fn admit(snapshot: &Snapshot, who: &Who<'_>) -> Result<Admission, Refusal> {
    let recognised = recognise(snapshot, who)?;
    let mut ids = classes_of(snapshot, who, &recognised);
    let (connect, shadow) = connect_ranks(snapshot, &ids);
    ids.retain(|id| {
        snapshot
            .rules
            .class(*id)
            .is_some_and(|class| class.has_topics())
    });
    let classes = || ids.iter().filter_map(|id| snapshot.rules.class(*id));
    if !classes().all(|class| fits_variables(class, who)) {
        return Err(Refusal::ClientIdentifier);
    }
    let effect = snapshot.effect(connect);
    if effect == Effect::Deny || ids.len() > SESSION_CLASSES_MAX {
        return Err(Refusal::NotAuthorized);
    }
    let is_otherwise = shadow != NO_RANK && snapshot.effect(shadow) != effect;
    Ok(Admission {
        classes: Classes { ids: ids.into() },
        rule: rule(connect),
        shadow: if is_otherwise { rule(shadow) } else { None },
    })
}

/// True exactly when every variable that the class's filters use has a value that is one level. A session that lacks one
/// is refused: leaving the rules out would weaken denies.
pub(crate) fn fits_variables(class: &Class, who: &Who<'_>) -> bool {
    class.client_id.fits(who.client_id) && class.username.fits(who.username.unwrap_or_default())
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

/// See [`Snapshot::subscribe`].
pub(crate) fn subscribe(
    snapshot: &Snapshot,
    classes: &Classes,
    vars: &Vars<'_>,
    filter: &str,
    qos: QoS,
    effort: &mut Effort,
) -> Verdict {
    let asked = Subscription {
        snapshot,
        classes,
        bound: bound(vars),
        filter,
        qos,
        nodes_left: Cell::new(effort.nodes_left.saturating_sub(FILTER_NODES_MIN)),
    };
    let (mut verdict, _) = asked.judge(false);
    let has_shadow = asked.tables().any(|table| table.shadow.is_some());
    if has_shadow {
        let (other, shadow) = asked.judge(true);
        let is_same = other.decision == verdict.decision
            && other.qos_max.min(qos) == verdict.qos_max.min(qos);
        verdict.shadow = if is_same { None } else { rule(shadow) };
    }
    effort.nodes_left = asked.nodes_left.get();
    verdict
}

struct Subscription<'a> {
    snapshot: &'a Snapshot,
    classes: &'a Classes,
    bound: Bound<'a>,
    filter: &'a str,
    qos: QoS,
    /// Of the whole packet.
    nodes_left: Cell<u32>,
}

impl<'a> Subscription<'a> {
    fn tables(&self) -> impl Iterator<Item = &'a ClassTable> {
        let snapshot = self.snapshot;
        self.classes
            .ids
            .iter()
            .filter_map(move |id| snapshot.rules.table(*id))
    }

    /// Both what may be subscribed to and what may be delivered must cover the filter: `subscribe` implies `receive`, and
    /// `receive` by itself only takes away. The second value is the lowest shadow rank that decided anything.
    fn judge(&self, with_shadow: bool) -> (Verdict, u32) {
        let tries = |table: &'a ClassTable| {
            let shadow = table.shadow.as_deref().filter(|_| with_shadow);
            [Some(&table.enforce), shadow].into_iter().flatten()
        };
        let is_apart = |tries: &Tries| tries.receive_alone.is_some();
        let is_apart = self.tables().flat_map(tries).any(is_apart);
        let mut shadow = NO_RANK;
        let asked = self
            .tables()
            .flat_map(tries)
            .filter_map(|tries| tries.subscribe.as_ref());
        let mut verdict = self.grant(asked, &mut shadow);
        let qos_refused = Decision::Deny(Denial::QosRefused);
        if is_apart && (verdict.decision == Decision::Allow || verdict.decision == qos_refused) {
            let delivered = self.tables().flat_map(tries).flat_map(Tries::receive);
            let delivered = self.grant(delivered, &mut shadow);
            // That it is not allowed at all is said before that it is not allowed at this QoS.
            if delivered.decision == Decision::Allow {
                verdict.qos_max = verdict.qos_max.min(delivered.qos_max);
            } else if delivered.decision != qos_refused || verdict.decision == Decision::Allow {
                verdict = delivered;
            }
        }
        (verdict, shadow)
    }

    fn grant(&self, tries: impl Iterator<Item = &'a TopicTrie>, shadow: &mut u32) -> Verdict {
        let snapshot = self.snapshot;
        let mut verdict = Verdict {
            decision: Decision::Allow,
            rule: None,
            qos_max: QoS::ExactlyOnce,
            strip_retain: false,
            on_deny: OnDeny::Drop,
            shadow: None,
        };
        let mut qos_refused_by = NO_RANK;
        let is_deny = |rank: u32| snapshot.effect(rank) == Effect::Deny;
        let mut decided = |rank: u32| {
            if rank < *shadow && snapshot.outcome(rank).is_shadow {
                *shadow = rank;
            }
        };
        let nodes_left = self.nodes_left.get();
        let check = Check::new(tries, self.bound, &is_deny, &mut decided, nodes_left);
        let (grant, visited) = check.run(self.filter, |rank| {
            let outcome = snapshot.outcome(rank);
            verdict.rule = verdict.rule.or(rule(rank));
            verdict.qos_max = verdict.qos_max.min(outcome.qos_max);
            if self.qos > outcome.qos_max && outcome.qos_over == QosOver::Refuse {
                qos_refused_by = qos_refused_by.min(rank);
            }
        });
        self.nodes_left.set(nodes_left.saturating_sub(visited));
        let (denial, rank) = match grant {
            Grant::Granted if qos_refused_by == NO_RANK => return verdict,
            Grant::Granted => (Denial::QosRefused, qos_refused_by),
            Grant::Refused(rank) => (Denial::NotAuthorized, rank),
            Grant::TooComplex => (Denial::TooComplex, NO_RANK),
        };
        Verdict {
            decision: Decision::Deny(denial),
            rule: rule(rank),
            qos_max: QoS::ExactlyOnce,
            ..verdict
        }
    }
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

fn bound<'a>(vars: &Vars<'a>) -> Bound<'a> {
    Bound {
        client_id: vars.client_id.as_bytes(),
        username: vars.username.as_bytes(),
    }
}
