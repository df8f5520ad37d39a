//! Rules that can never decide: no session is one they are about, or rules of higher rank have decided before.
//!
//! A rule is behind others exactly when each of its actions is, on all its topics: by rules whose who-part holds for all
//! sessions that its own holds for. Which rules these may be is found by asking the index about one such session.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_wire::mqtt::Version;

use super::sessions::{Client, Fit, Sessions, contains};
use super::{Few, Unfinished, Work};
use crate::Listener;
use crate::effort::Effort;
use crate::filter::{TopicFilter, Variable};
use crate::model::{Cidr, RuleModel, VersionSet, WhoPart};
use crate::rows::Mode;
use crate::snapshot::Class;
use crate::tables::NO_RANK;
use crate::tables::class::{ClassTable, Tries};
use crate::tables::subscription::Check;
use crate::tables::topic_trie::{Bound, Mark, TopicTrie};
use crate::tables::who::Facts;
use crate::wording::{shown, suggestion};

/// Users of a group, or of the document, that are tried for a who-part; with more it is not certain that none fits.
const TRIED_MAX: usize = 64;
/// Classes that are looked at for one class.
const OUTER_MAX: usize = 256;
/// Names that are looked through for one near a name that is not there.
const NEAR_NAMES_MAX: usize = 100_000;

/// Looks at all rules in the order in which they are asked.
pub(super) fn review(sessions: &mut Sessions<'_>, work: &mut Work<'_>) -> Vec<String> {
    let snapshot = sessions.snapshot;
    let mut asked = Asked {
        members: members(sessions),
        sessions,
        classes: HashMap::new(),
    };
    let (mut without_sessions, mut behind) = (Few::default(), Few::default());
    let mut left_at = None;
    for (rank, rule) in snapshot.rules.iter().filter(|(_, rule)| rule.enabled) {
        match asked.why_dead(rank, rule, work) {
            Ok(None) => {}
            Ok(Some(Dead::WithoutSessions(why))) => {
                without_sessions.add(rule.name(), || format!("({why})"));
            }
            Ok(Some(Dead::Behind(before))) => {
                let before = snapshot.rules.rule(before).map_or("", |rule| rule.name());
                behind.add(rule.name(), || format!("(behind `{}`)", shown(before)));
            }
            Err(Unfinished) => {
                left_at = Some(rule.name());
                break;
            }
        }
    }
    let mut warnings = Vec::new();
    if without_sessions.count > 0 {
        warnings.push(format!(
            "{} can never decide, because no client there can be is matched by the `who`: {}",
            rules(without_sessions.count),
            without_sessions.text()
        ));
    }
    if behind.count > 0 {
        warnings.push(format!(
            "{} can never decide, because rules that are asked before decide about the same sessions and topics: {}",
            rules(behind.count),
            behind.text()
        ));
    }
    if let Some(name) = left_at {
        warnings.push(format!(
            "the document is too large to find out for every rule whether it can ever decide; looked at were those that are \
             asked before `{}`",
            shown(name)
        ));
    }
    warnings
}

fn rules(count: usize) -> String {
    match count {
        1 => "1 rule".into(),
        count => format!("{count} rules"),
    }
}

/// Why a rule never decides.
enum Dead {
    WithoutSessions(Cow<'static, str>),
    /// One of the rules that decide before it.
    Behind(u32),
}

/// What is known of a class, found when its first rule is looked at.
#[derive(Clone)]
struct Known {
    dead: Option<Cow<'static, str>>,
    /// The classes that hold for all of its sessions, itself included.
    outer: Vec<u32>,
}

struct Asked<'a, 's> {
    sessions: &'a mut Sessions<'s>,
    /// Of each group the first few enabled users, and whether there are more.
    members: HashMap<&'s str, (Vec<Client<'s>>, bool)>,
    classes: HashMap<u32, Known>,
}

impl<'s> Asked<'_, 's> {
    fn why_dead(
        &mut self,
        rank: u32,
        rule: &'s RuleModel,
        work: &mut Work<'_>,
    ) -> Result<Option<Dead>, Unfinished> {
        work.spend(1)?;
        let Some((number, part)) = self.sessions.snapshot.rules.index().number(&rule.who) else {
            return Ok(None);
        };
        if !self.classes.contains_key(&number) {
            let known = Known {
                dead: self.without_sessions(part, work)?,
                outer: self.outer(number, part, work)?,
            };
            self.classes.insert(number, known);
        }
        let Some(known) = self.classes.get(&number) else {
            return Ok(None);
        };
        if let Some(why) = &known.dead {
            return Ok(Some(Dead::WithoutSessions(why.clone())));
        }
        let before = self.behind(rank, rule, &known.outer, work)?;
        Ok(before.map(Dead::Behind))
    }

    // --- sessions

    /// Why no session there can be is in a class; `None`: one may be.
    fn without_sessions(
        &mut self,
        part: &'s WhoPart,
        work: &mut Work<'_>,
    ) -> Result<Option<Cow<'static, str>>, Unfinished> {
        let snapshot = self.sessions.snapshot;
        let (users, is_all) = self.candidates(part, work)?;
        if part.users.is_some() && users.is_empty() {
            return Ok(Some(self.no_such_user(part).into()));
        }
        let is_there = |listener: &&'s Listener| {
            part.listeners
                .as_deref()
                .is_none_or(|list| contains(list, &listener.name))
        };
        let mut has_anonymous = false;
        for listener in snapshot.listeners().iter().filter(is_there) {
            let anonymous = Client::anonymous(listener);
            has_anonymous |= anonymous.is_some();
            let users = users
                .iter()
                .copied()
                .filter(|_| !listener.ignores_usernames);
            for client in anonymous.into_iter().chain(users) {
                let fit = self.sessions.fit(part, listener, &client, work)?;
                if fit != Fit::Never && client.has_an_id(listener) {
                    return Ok(None);
                }
            }
        }
        if !is_all {
            return Ok(None);
        }
        Ok(Some(match (&part.groups, users.is_empty()) {
            (Some(_), true) if !has_anonymous => "its `groups` have no enabled user".into(),
            _ => "no user and listener there is fits all of it".into(),
        }))
    }

    /// Enabled users who may be matched, and whether they are all there are.
    fn candidates(
        &self,
        part: &'s WhoPart,
        work: &mut Work<'_>,
    ) -> Result<(Vec<Client<'s>>, bool), Unfinished> {
        let snapshot = self.sessions.snapshot;
        if let Some(names) = &part.users {
            work.spend(names.len())?;
            let users = names.iter().filter_map(|name| snapshot.users.get(name));
            return Ok((users.map(Client::of_user).collect(), true));
        }
        if let Some(groups) = &part.groups {
            work.spend(groups.len())?;
            let members = groups.iter().filter_map(|group| self.members.get(&**group));
            let (mut users, mut is_all) = (Vec::new(), true);
            for (some, is_whole) in members {
                users.extend_from_slice(some);
                is_all &= is_whole;
            }
            return Ok((users, is_all));
        }
        let users: Vec<_> = self.sessions.users().take(TRIED_MAX + 1).collect();
        let is_all = users.len() <= TRIED_MAX;
        Ok((users, is_all))
    }

    fn no_such_user(&self, part: &WhoPart) -> String {
        let users = &self.sessions.snapshot.users;
        match part.users.as_deref() {
            Some([name]) if users.len() <= NEAR_NAMES_MAX => {
                let near = suggestion(name, users.iter().map(|user| &*user.name));
                format!("there is no enabled user `{}`{near}", shown(name))
            }
            _ => "none of its `users` is an enabled user".into(),
        }
    }

    // --- who-parts

    /// The classes that hold for all sessions of one, itself included.
    fn outer(
        &mut self,
        number: u32,
        part: &'s WhoPart,
        work: &mut Work<'_>,
    ) -> Result<Vec<u32>, Unfinished> {
        let snapshot = self.sessions.snapshot;
        let index = snapshot.rules.index();
        let found = index.classes_of(&self.one_of(part));
        work.spend(1 + found.len())?;
        let mut outer = vec![number];
        for class in found
            .into_iter()
            .filter(|class| *class != number)
            .take(OUTER_MAX)
        {
            if let Some(other) = index.part(class)
                && self.holds(other, part, work)?
            {
                outer.push(class);
            }
        }
        Ok(outer)
    }

    /// A session that a class is about, as far as one can be made up: what holds for all of them holds for this one.
    fn one_of(&self, part: &'s WhoPart) -> Facts<'s> {
        let snapshot = self.sessions.snapshot;
        let first = |list: &'s Option<Box<[Box<str>]>>| list.as_deref().and_then(<[_]>::first);
        let username = first(&part.users).map(|name| &**name);
        let user = username.and_then(|name| snapshot.users.get(name));
        let group = part.groups.as_deref().and_then(|groups| groups.get(..1));
        let listener = snapshot.listeners().first().map(|listener| &*listener.name);
        let versions = part.versions.unwrap_or(VersionSet::ALL);
        let block = part.addresses.as_deref().and_then(<[_]>::first);
        Facts {
            username,
            client_id: first(&part.client_ids).map_or("", |id| &**id),
            address: block.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), first_address),
            groups: user.map(|user| &*user.groups).or(group).unwrap_or_default(),
            version: versions.iter().next().unwrap_or(Version::V5),
            listener: first(&part.listeners)
                .map(|name| &**name)
                .or(listener)
                .unwrap_or_default(),
        }
    }

    /// True: every session that `inner` is about, `outer` is about too.
    fn holds(
        &mut self,
        outer: &'s WhoPart,
        inner: &'s WhoPart,
        work: &mut Work<'_>,
    ) -> Result<bool, Unfinished> {
        let snapshot = self.sessions.snapshot;
        let all =
            |outer: &Option<Box<[Box<str>]>>, inner: &Option<Box<[Box<str>]>>| match (outer, inner)
            {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(outer), Some(inner)) => inner.iter().all(|value| contains(outer, value)),
            };
        let lists = [
            &outer.users,
            &outer.client_ids,
            &outer.groups,
            &outer.listeners,
            &inner.users,
        ];
        work.spend(lists.into_iter().flatten().map(|list| list.len()).sum())?;
        let in_groups = |groups: &[Box<str>]| {
            let is_in = |name: &str| {
                let user = snapshot.users.get(name);
                user.is_none_or(|user| user.groups.iter().any(|group| contains(groups, group)))
            };
            inner
                .users
                .as_deref()
                .is_some_and(|users| users.iter().all(|name| is_in(name)))
        };
        let is_everywhere = |names: &[Box<str>]| {
            snapshot
                .listeners()
                .iter()
                .all(|listener| contains(names, &listener.name))
        };
        let is_within = all(&outer.users, &inner.users)
            && all(&outer.client_ids, &inner.client_ids)
            && (all(&outer.groups, &inner.groups)
                || outer.groups.as_deref().is_some_and(in_groups))
            && (all(&outer.listeners, &inner.listeners)
                || outer.listeners.as_deref().is_some_and(is_everywhere))
            && versions_hold(outer.versions, inner.versions)
            && addresses_hold(outer.addresses.as_deref(), inner.addresses.as_deref(), work)?;
        if !is_within {
            return Ok(false);
        }
        let users = (
            all(&outer.user_patterns, &inner.user_patterns),
            &outer.user_patterns,
            &inner.users,
        );
        let ids = (
            all(&outer.client_id_patterns, &inner.client_id_patterns),
            &outer.client_id_patterns,
            &inner.client_ids,
        );
        for (is_same, patterns, values) in [users, ids] {
            let (false, Some(patterns)) = (is_same, patterns.as_deref()) else {
                continue;
            };
            // Values that are written out may all match.
            let Some(values) = values.as_deref() else {
                return Ok(false);
            };
            for value in values {
                if self.sessions.is_match(patterns, value, work)? != Fit::Always {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    // --- topics

    /// One of the rules that decide wherever a rule could; `None`: it may decide.
    fn behind(
        &self,
        rank: u32,
        rule: &RuleModel,
        outer: &[u32],
        work: &mut Work<'_>,
    ) -> Result<Option<u32>, Unfinished> {
        let rules = &self.sessions.snapshot.rules;
        let is_shadow = rule.mode == Mode::Shadow;
        let mut before = NO_RANK;
        if rule.actions.connect {
            let classes = outer.iter().filter_map(|class| rules.class(*class));
            let first = classes.map(|class| first_connect(class, is_shadow)).min();
            match first.filter(|first| *first < rank) {
                Some(first) => before = first,
                None => return Ok(None),
            }
        }
        if !rule.actions.needs_topics() {
            return Ok(Some(before));
        }
        let tables: Vec<&ClassTable> = outer
            .iter()
            .filter_map(|class| rules.table(*class))
            .collect();
        let of = |pick: fn(&Tries) -> Vec<&TopicTrie>| -> Vec<&TopicTrie> {
            let tries = tables.iter().flat_map(|table| {
                let shadow = table.shadow.as_deref().filter(|_| is_shadow);
                [Some(&table.enforce), shadow].into_iter().flatten()
            });
            tries.flat_map(pick).collect()
        };
        let mut questions = Vec::new();
        if rule.actions.publish {
            questions.push(of(|tries| tries.publish.iter().collect()));
        }
        if rule.actions.subscribe {
            questions.push(of(|tries| tries.subscribe.iter().collect()));
        } else if rule.actions.receive {
            questions.push(of(|tries| tries.receive().collect()));
        }
        for tries in questions {
            for topic in rule.topics() {
                match decided_before(&tries, topic, rank, work)? {
                    Some(first) => before = before.min(first),
                    None => return Ok(None),
                }
            }
        }
        Ok((before != NO_RANK).then_some(before))
    }
}

/// Of each group the first few enabled users, and whether these are all.
fn members<'s>(sessions: &Sessions<'s>) -> HashMap<&'s str, (Vec<Client<'s>>, bool)> {
    let mut members: HashMap<&str, (Vec<Client<'s>>, bool)> = HashMap::new();
    for user in sessions.snapshot.users.iter() {
        for group in &user.groups {
            let (some, is_whole) = members.entry(group).or_insert_with(|| (Vec::new(), true));
            if some.len() < TRIED_MAX {
                some.push(Client::of_user(user));
            } else {
                *is_whole = false;
            }
        }
    }
    members
}

fn first_connect(class: &Class, is_shadow: bool) -> u32 {
    let shadow = if is_shadow {
        class.connect_shadow
    } else {
        NO_RANK
    };
    class.connect.min(shadow)
}

/// The rule that decides about a filter's topics before that rank; `None`: not all of them are decided, or it takes too long
/// to know. A variable is a level of its own: no rule can name the text that stands for it here.
fn decided_before(
    tries: &[&TopicTrie],
    topic: TopicFilter<'_>,
    rank: u32,
    work: &mut Work<'_>,
) -> Result<Option<u32>, Unfinished> {
    const CLIENT_ID: &str = "\0c";
    const USERNAME: &str = "\0u";
    let mut text = Cow::Borrowed(topic.as_str());
    for (variable, stands) in [
        (Variable::ClientId, CLIENT_ID),
        (Variable::Username, USERNAME),
    ] {
        if topic.uses(variable) {
            text = text.replace(variable.as_str(), stands).into();
        }
    }
    let bound = Bound {
        client_id: CLIENT_ID.as_bytes(),
        username: USERNAME.as_bytes(),
    };
    let mut effort = Effort::new(u32::MAX);
    let found = Check::new(
        Mark::Deny,
        tries.iter().copied(),
        std::iter::empty(),
        bound,
        &|_| None,
        &mut |_| {},
        &mut effort,
    )
    .decided_before(&text, rank);
    work.spend(1 + effort.spent() as usize)?;
    Ok(found)
}

fn versions_hold(outer: Option<VersionSet>, inner: Option<VersionSet>) -> bool {
    let inner = inner.unwrap_or(VersionSet::ALL);
    outer.is_none_or(|outer| inner.iter().all(|version| outer.contains(version)))
}

fn addresses_hold(
    outer: Option<&[Cidr]>,
    inner: Option<&[Cidr]>,
    work: &mut Work<'_>,
) -> Result<bool, Unfinished> {
    match (outer, inner) {
        (None, _) => Ok(true),
        (Some(_), None) => Ok(false),
        (Some(outer), Some(inner)) => {
            work.spend(outer.len() * inner.len())?;
            let is_in = |block: &Cidr| outer.iter().any(|outer| outer.covers(block));
            Ok(inner.iter().all(is_in))
        }
    }
}

fn first_address(block: &Cidr) -> IpAddr {
    if block.is_v6 {
        IpAddr::V6(Ipv6Addr::from_bits(block.bits))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits((block.bits >> 96) as u32))
    }
}
