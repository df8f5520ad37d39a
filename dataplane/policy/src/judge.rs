//! Judging rule by rule.

use std::collections::HashSet;

use sluice_wire::mqtt::QoS;

use crate::filter::{Level, TopicFilter, Variable};
use crate::model::{RuleModel, WhoPart};
use crate::rows::{Mode, QosOver, Retain};
use crate::{
    Action, Admission, Classes, Decision, Denial, Effect, OnDeny, Refusal, Request, RuleId,
    Snapshot, Vars, Verdict, Who,
};

pub(crate) fn admit(snapshot: &Snapshot, who: &Who<'_>) -> Result<Admission, Refusal> {
    let listener = snapshot
        .listener(who.listener)
        .ok_or(Refusal::ListenerGone)?;
    if !listener.versions.contains(&who.version) {
        return Err(Refusal::Version);
    }
    let mut groups: Vec<&str> = Vec::new();
    let user = match who.username {
        Some(name) => Some(snapshot.user(name).ok_or(Refusal::Credentials)?),
        None => None,
    };
    match user {
        Some(user) => groups.extend(user.groups.iter().map(|group| &**group)),
        None if !listener.anonymous => return Err(Refusal::Credentials),
        None => groups.extend(listener.anonymous_group.as_deref()),
    }
    let fits = who.client_id.len() <= usize::from(listener.client_id_bytes_max)
        && listener
            .client_id_pattern
            .as_ref()
            .is_none_or(|pattern| pattern.is_match(who.client_id))
        && user.is_none_or(|user| {
            user.client_id
                .as_ref()
                .is_none_or(|binding| binding.allows(who.client_id))
        });
    if !fits {
        return Err(Refusal::ClientIdentifier);
    }
    let mut ids = Vec::new();
    let mut connect = None;
    let mut shadow = None;
    for (index, rule) in snapshot.rules.iter().enumerate() {
        if !rule.enabled || !who_matches(&rule.who, who, &groups, &listener.name) {
            continue;
        }
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        if rule.actions.connect {
            match rule.mode {
                Mode::Enforce => connect = connect.or(Some((RuleId(id), rule.effect))),
                Mode::Shadow if connect.is_none() => {
                    shadow = shadow.or(Some((RuleId(id), rule.effect)))
                }
                Mode::Shadow => {}
            }
        }
        if rule.actions.needs_topics() {
            ids.push(id);
        }
        for (variable, value) in [
            (Variable::ClientId, who.client_id),
            (Variable::Username, who.username.unwrap_or("")),
        ] {
            if rule.topics.iter().any(|topic| topic.uses(variable)) && !is_usable(value) {
                return Err(Refusal::ClientIdentifier);
            }
        }
    }
    let effect = connect.map_or(snapshot.default, |(_, effect)| effect);
    if effect == Effect::Deny {
        return Err(Refusal::NotAuthorized);
    }
    Ok(Admission {
        classes: Classes { ids: ids.into() },
        rule: connect.map(|(id, _)| id),
        shadow: shadow
            .filter(|(_, other)| *other != effect)
            .map(|(id, _)| id),
    })
}

pub(crate) fn is_usable(value: &str) -> bool {
    !value.is_empty() && !value.contains(['/', '+', '#', '\0'])
}

fn any(list: &[Box<str>], value: &str) -> bool {
    list.iter().any(|entry| **entry == *value)
}

fn any_pattern(list: &[Box<str>], value: &str) -> bool {
    list.iter().any(|pattern| {
        regex::Regex::new(&crate::validate::anchored(pattern))
            .is_ok_and(|regex| regex.is_match(value))
    })
}

fn who_matches(part: &WhoPart, who: &Who<'_>, groups: &[&str], listener: &str) -> bool {
    part.listeners
        .as_ref()
        .is_none_or(|list| any(list, listener))
        && part
            .versions
            .is_none_or(|versions| versions.contains(who.version))
        && part
            .users
            .as_ref()
            .is_none_or(|list| who.username.is_some_and(|name| any(list, name)))
        && part
            .user_patterns
            .as_ref()
            .is_none_or(|list| who.username.is_some_and(|name| any_pattern(list, name)))
        && part
            .client_ids
            .as_ref()
            .is_none_or(|list| any(list, who.client_id))
        && part
            .client_id_patterns
            .as_ref()
            .is_none_or(|list| any_pattern(list, who.client_id))
        && part
            .addresses
            .as_ref()
            .is_none_or(|list| list.iter().any(|block| block.contains(who.address)))
        && part
            .groups
            .as_ref()
            .is_none_or(|list| groups.iter().any(|group| any(list, group)))
}

/// A level of what is asked: itself, or anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked<'a> {
    Exactly(&'a str),
    Any,
}

fn asked(text: &str) -> Asked<'_> {
    if text == "+" {
        Asked::Any
    } else {
        Asked::Exactly(text)
    }
}

fn bound<'a>(level: &'a Level, vars: &Vars<'a>) -> Asked<'a> {
    match level {
        Level::Any => Asked::Any,
        Level::Literal(text) => Asked::Exactly(text),
        Level::Variable(Variable::ClientId) => Asked::Exactly(vars.client_id),
        Level::Variable(Variable::Username) => Asked::Exactly(vars.username),
    }
}

/// The filter cut or padded to `depth` levels.
fn at_depth<'a>(filter: &'a TopicFilter, vars: &Vars<'a>, depth: usize) -> Option<Vec<Asked<'a>>> {
    if filter.levels.len() > depth || (!filter.is_multi && filter.levels.len() != depth) {
        return None;
    }
    let mut levels: Vec<Asked<'_>> = filter
        .levels
        .iter()
        .map(|level| bound(level, vars))
        .collect();
    levels.resize(depth, Asked::Any);
    Some(levels)
}

fn contains(outer: &[Asked<'_>], inner: &[Asked<'_>]) -> bool {
    let is_reserved = matches!(inner.first(), Some(Asked::Exactly(text)) if text.starts_with('$'));
    !(is_reserved && outer.first() == Some(&Asked::Any))
        && outer
            .iter()
            .zip(inner)
            .all(|(outer, inner)| *outer == Asked::Any || outer == inner)
}

fn intersection<'a>(left: &[Asked<'a>], right: &[Asked<'a>]) -> Option<Vec<Asked<'a>>> {
    let reserved = |levels: &[Asked<'a>]| matches!(levels.first(), Some(Asked::Exactly(text)) if text.starts_with('$'));
    let any_first = |levels: &[Asked<'a>]| levels.first() == Some(&Asked::Any);
    if (reserved(left) && any_first(right)) || (reserved(right) && any_first(left)) {
        return None;
    }
    left.iter()
        .zip(right)
        .map(|(left, right)| match (left, right) {
            (Asked::Any, other) | (other, Asked::Any) => Some(*other),
            (left, right) => (left == right).then_some(*left),
        })
        .collect()
}

fn rules<'s>(
    snapshot: &'s Snapshot,
    classes: &'s Classes,
) -> impl Iterator<Item = (RuleId, &'s RuleModel)> {
    classes
        .ids
        .iter()
        .filter_map(|id| Some((RuleId(*id), snapshot.rules.get(*id as usize)?)))
}

fn first<'s>(
    snapshot: &'s Snapshot,
    classes: &'s Classes,
    vars: &Vars<'_>,
    pattern: &[Asked<'_>],
    counts: impl Fn(&RuleModel) -> bool,
) -> Option<(RuleId, &'s RuleModel)> {
    rules(snapshot, classes).find(|(_, rule)| {
        counts(rule)
            && rule.topics.iter().any(|topic| {
                at_depth(topic, vars, pattern.len()).is_some_and(|outer| contains(&outer, pattern))
            })
    })
}

pub(crate) fn verdict(
    snapshot: &Snapshot,
    classes: &Classes,
    vars: &Vars<'_>,
    request: &Request<'_>,
) -> Verdict {
    let applies = |rule: &RuleModel| match request.action {
        Action::Publish => rule.actions.publish,
        Action::Receive => rule.actions.judges_deliveries(),
        Action::Connect | Action::Subscribe => false,
    };
    let topic: Vec<Asked<'_>> = request.topic.split('/').map(Asked::Exactly).collect();
    let enforced = first(snapshot, classes, vars, &topic, |rule| {
        applies(rule) && rule.mode == Mode::Enforce
    });
    let mut verdict = judge(snapshot, enforced, request);
    let shadow = first(snapshot, classes, vars, &topic, |rule| {
        applies(rule) && rule.mode == Mode::Shadow
    });
    if let Some((id, _)) = shadow
        && enforced.is_none_or(|(winner, _)| id < winner)
    {
        let other = judge(snapshot, shadow, request);
        let is_same = other.decision == verdict.decision
            && other.qos_max.min(request.qos) == verdict.qos_max.min(request.qos)
            && other.strip_retain == verdict.strip_retain;
        verdict.shadow = (!is_same).then_some(id);
    }
    verdict
}

fn judge(
    snapshot: &Snapshot,
    rule: Option<(RuleId, &RuleModel)>,
    request: &Request<'_>,
) -> Verdict {
    let Some((id, rule)) = rule else {
        return Verdict {
            decision: match snapshot.default {
                Effect::Allow => Decision::Allow,
                Effect::Deny => Decision::Deny(Denial::NotAuthorized),
            },
            rule: None,
            qos_max: QoS::ExactlyOnce,
            strip_retain: false,
            on_deny: snapshot.on_deny,
            shadow: None,
        };
    };
    let decision = if rule.effect == Effect::Deny {
        Decision::Deny(Denial::NotAuthorized)
    } else if rule
        .payload_bytes_max
        .is_some_and(|max| request.payload_bytes > max)
    {
        Decision::Deny(Denial::PayloadTooLarge)
    } else if request.retain && rule.retain == Retain::Refuse {
        Decision::Deny(Denial::RetainRefused)
    } else if request.qos > rule.qos_max && rule.qos_over == QosOver::Refuse {
        Decision::Deny(Denial::QosRefused)
    } else {
        Decision::Allow
    };
    Verdict {
        decision,
        rule: Some(id),
        qos_max: rule.qos_max,
        strip_retain: decision == Decision::Allow && request.retain && rule.retain == Retain::Strip,
        on_deny: rule.on_deny,
        shadow: None,
    }
}

pub(crate) fn subscribe(
    snapshot: &Snapshot,
    classes: &Classes,
    vars: &Vars<'_>,
    filter: &str,
    qos: QoS,
) -> Verdict {
    let enforced = |rule: &RuleModel| rule.mode == Mode::Enforce;
    let mut verdict = granted(snapshot, classes, vars, filter, qos, |rule| {
        enforced(rule) && rule.actions.subscribe
    });
    if verdict.decision == Decision::Allow {
        let delivered = granted(snapshot, classes, vars, filter, qos, |rule| {
            enforced(rule) && rule.actions.judges_deliveries()
        });
        if delivered.decision != Decision::Allow {
            verdict = delivered;
        } else {
            verdict.qos_max = verdict.qos_max.min(delivered.qos_max);
        }
    }
    verdict
}

fn granted(
    snapshot: &Snapshot,
    classes: &Classes,
    vars: &Vars<'_>,
    filter: &str,
    qos: QoS,
    counts: impl Fn(&RuleModel) -> bool,
) -> Verdict {
    let (levels, is_multi): (Vec<&str>, bool) = match filter {
        "#" => (Vec::new(), true),
        _ => match filter.strip_suffix("/#") {
            Some(body) => (body.split('/').collect(), true),
            None => (filter.split('/').collect(), false),
        },
    };
    let deepest = rules(snapshot, classes)
        .flat_map(|(_, rule)| rule.topics.iter())
        .map(|topic| topic.levels.len())
        .max()
        .unwrap_or(0);
    let mut verdict = judge(snapshot, None, &NO_MESSAGE);
    verdict.decision = Decision::Allow;
    verdict.on_deny = OnDeny::Drop;
    let refuse = |rule: Option<RuleId>, denial| Verdict {
        decision: Decision::Deny(denial),
        rule,
        ..verdict
    };
    let mut result = verdict;
    let depths = if is_multi {
        levels.len().max(1)..=levels.len().max(deepest) + 1
    } else {
        levels.len()..=levels.len()
    };
    for depth in depths {
        let mut wanted: Vec<Asked<'_>> = levels.iter().map(|level| asked(level)).collect();
        wanted.resize(depth, Asked::Any);
        let mut checked = HashSet::new();
        let overlaps = rules(snapshot, classes)
            .filter(|(_, rule)| counts(rule) && rule.effect == Effect::Deny)
            .flat_map(|(_, rule)| rule.topics.iter())
            .filter_map(|topic| intersection(&at_depth(topic, vars, depth)?, &wanted));
        for (index, pattern) in std::iter::once(wanted.clone()).chain(overlaps).enumerate() {
            let key: Vec<Option<&str>> = pattern
                .iter()
                .map(|level| {
                    if let Asked::Exactly(text) = level {
                        Some(*text)
                    } else {
                        None
                    }
                })
                .collect();
            if !checked.insert(format!("{key:?}")) {
                continue;
            }
            let found = first(snapshot, classes, vars, &pattern, &counts);
            let effect = found.map_or(snapshot.default, |(_, rule)| rule.effect);
            if effect == Effect::Deny {
                return refuse(found.map(|(id, _)| id), Denial::NotAuthorized);
            }
            if index == 0 {
                if let Some((id, rule)) = found {
                    if qos > rule.qos_max && rule.qos_over == QosOver::Refuse {
                        return refuse(Some(id), Denial::QosRefused);
                    }
                    result.rule = result.rule.or(Some(id));
                    result.qos_max = result.qos_max.min(rule.qos_max);
                }
            }
        }
    }
    result
}

const NO_MESSAGE: Request<'static> = Request {
    action: Action::Subscribe,
    topic: "",
    qos: QoS::AtMostOnce,
    retain: false,
    payload_bytes: 0,
};
