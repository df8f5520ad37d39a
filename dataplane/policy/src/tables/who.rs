//! Who-parts, indexed: which classes is a session in?
//!
//! Each who-part is listed under one of its kinds only, the one whose lists are shortest, and the rest of it is checked on
//! the few that come up. So the cost follows the classes that nearly match, not the number of rules or users. A document can be
//! written in which very many do, and a client can have a very long id: a [`Search`] is left when its share of work is used
//! up, in the middle of a list or of a name, and gone on with later.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_wire::mqtt::Version;
use smallvec::SmallVec;

use super::cidr::{self, CidrTable};
use super::patterns::{Found, Matcher, Matching};
use super::shared::{Paged, Sharded};
use crate::Effort;
use crate::model::{Cidr, WhoPart};

/// What is known of a session.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) username: Option<&'a str>,
    pub(crate) client_id: &'a str,
    pub(crate) address: IpAddr,
    pub(crate) groups: &'a [Box<str>],
    pub(crate) version: Version,
    pub(crate) listener: &'a str,
}

/// See the file's header. A class keeps its number until it is taken out; then another may have it.
#[derive(Clone, Debug)]
pub(crate) struct WhoIndex {
    classes: Paged<Option<Class>, 8>,
    numbers: Sharded<Arc<WhoPart>, u32>,
    /// Numbers that no class has.
    free: Vec<u32>,
    users: Lists,
    client_ids: Lists,
    groups: Lists,
    listeners: Lists,
    addresses: CidrTable,
    user_patterns: Arc<Patterns>,
    client_id_patterns: Arc<Patterns>,
    /// Classes with no kind but perhaps versions.
    everyone: Vec<u32>,
}

/// Classes that stand under one value; mostly it is one.
pub(crate) type List = SmallVec<[u32; 2]>;
type Lists = Sharded<Box<str>, List>;

/// A who-part with its patterns by number.
#[derive(Clone, Debug)]
struct Class {
    who: Arc<WhoPart>,
    user_patterns: Box<[u32]>,
    client_id_patterns: Box<[u32]>,
    kind: Option<Kind>,
}

/// All patterns of one kind.
#[derive(Clone, Debug, Default)]
struct Patterns {
    matcher: Matcher,
    /// By number: the expression, the classes listed under it, and how many classes use it. One that none uses keeps its
    /// place until another needs one.
    used: Vec<(Box<str>, List, usize)>,
    numbers: HashMap<Box<str>, u32>,
    /// The matcher is that of other expressions.
    is_stale: bool,
}

/// The kinds a who-part can be listed under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Kind {
    Users,
    ClientIds,
    Groups,
    Addresses,
    UserPatterns,
    ClientIdPatterns,
    Listeners,
}

impl WhoIndex {
    /// An index with room for so many classes.
    pub(crate) fn with_capacity(classes: usize) -> Self {
        let lists = || Lists::with_capacity(0);
        Self {
            classes: Paged::default(),
            numbers: Sharded::with_capacity(classes),
            free: Vec::new(),
            users: lists(),
            client_ids: lists(),
            groups: lists(),
            listeners: lists(),
            addresses: CidrTable::default(),
            user_patterns: Arc::default(),
            client_id_patterns: Arc::default(),
            everyone: Vec::new(),
        }
    }

    /// An index of many who-parts, all different; they are numbered in their order.
    pub(crate) fn new(parts: &[Arc<WhoPart>], is_wanted: impl Fn() -> bool) -> Self {
        let mut index = Self::with_capacity(parts.len());
        index.classes = Paged::filled(&None, parts.len());
        for (number, part) in (0_u32..).zip(parts).take_while(|_| is_wanted()) {
            index.put(number, part);
        }
        index
    }

    /// The number of a who-part, and the part that stands in the index.
    pub(crate) fn number(&self, part: &WhoPart) -> Option<(u32, &Arc<WhoPart>)> {
        let number = *self.numbers.get(part)?;
        Some((number, self.part(number)?))
    }

    /// The who-part of a class.
    pub(crate) fn part(&self, number: u32) -> Option<&Arc<WhoPart>> {
        let class = self.classes.get(number as usize)?.as_ref()?;
        Some(&class.who)
    }

    /// One more than the highest number that a class had.
    pub(crate) fn len(&self) -> usize {
        self.classes.len()
    }

    /// Adds a who-part that is not in the index. [`Self::settle`] must follow.
    pub(crate) fn add(&mut self, part: &Arc<WhoPart>) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.classes.push(None);
            (self.classes.len() - 1) as u32
        });
        self.put(number, part);
        number
    }

    fn put(&mut self, number: u32, part: &Arc<WhoPart>) {
        let enter = |patterns: &mut Arc<Patterns>, list: &Option<Box<[Box<str>]>>| match list {
            Some(list) => Arc::make_mut(patterns).enter(list),
            None => Box::default(),
        };
        let class = Class {
            user_patterns: enter(&mut self.user_patterns, &part.user_patterns),
            client_id_patterns: enter(&mut self.client_id_patterns, &part.client_id_patterns),
            kind: self.best_kind(part),
            who: Arc::clone(part),
        };
        self.list(number, &class, true);
        self.numbers
            .update(Arc::clone(part), |slot| *slot = Some(number));
        if let Some(slot) = self.classes.get_mut(number as usize) {
            *slot = Some(class);
        }
    }

    /// Takes a class out; its number is free.
    pub(crate) fn remove(&mut self, number: u32) {
        let slot = self.classes.get_mut(number as usize);
        let Some(class) = slot.and_then(Option::take) else {
            return;
        };
        self.list(number, &class, false);
        for (patterns, numbers) in [
            (&mut self.user_patterns, &class.user_patterns),
            (&mut self.client_id_patterns, &class.client_id_patterns),
        ] {
            if !numbers.is_empty() {
                Arc::make_mut(patterns).leave(numbers);
            }
        }
        self.numbers.update(class.who, |slot| *slot = None);
        self.free.push(number);
    }

    /// Compiles the patterns, where there are others than before. The error is for the writer of the patterns: together
    /// they are too large.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        for (patterns, kind) in [
            (&mut self.user_patterns, "user_patterns"),
            (&mut self.client_id_patterns, "client_id_patterns"),
        ] {
            if patterns.is_stale {
                Arc::make_mut(patterns).compile(kind)?;
            }
        }
        Ok(())
    }

    /// Lists a class under its kind, or takes it off the lists.
    fn list(&mut self, number: u32, class: &Class, is_added: bool) {
        let by_name = |lists: &mut Lists, names: &Option<Box<[Box<str>]>>| {
            for name in names.iter().flatten() {
                if is_added {
                    put(lists, name.clone(), number);
                } else {
                    take(lists, name.clone(), number);
                }
            }
        };
        let by_pattern = |patterns: &mut Arc<Patterns>, numbers: &[u32]| {
            let patterns = Arc::make_mut(patterns);
            for pattern in numbers {
                if let Some((_, list, _)) = patterns.used.get_mut(*pattern as usize) {
                    if is_added {
                        list.push(number);
                    } else {
                        list.retain(|listed| *listed != number);
                    }
                }
            }
        };
        let part = &class.who;
        match class.kind {
            None if is_added => self.everyone.push(number),
            None => self.everyone.retain(|listed| *listed != number),
            Some(Kind::Users) => by_name(&mut self.users, &part.users),
            Some(Kind::ClientIds) => by_name(&mut self.client_ids, &part.client_ids),
            Some(Kind::Groups) => by_name(&mut self.groups, &part.groups),
            Some(Kind::Listeners) => by_name(&mut self.listeners, &part.listeners),
            Some(Kind::Addresses) => {
                for block in part.addresses.iter().flatten() {
                    if is_added {
                        self.addresses.add(*block, number);
                    } else {
                        self.addresses.remove(*block, number);
                    }
                }
            }
            Some(Kind::UserPatterns) => by_pattern(&mut self.user_patterns, &class.user_patterns),
            Some(Kind::ClientIdPatterns) => {
                by_pattern(&mut self.client_id_patterns, &class.client_id_patterns);
            }
        }
    }

    /// The kind of a who-part under which the longest list it joins is shortest, as the lists are when it comes.
    fn best_kind(&self, part: &WhoPart) -> Option<Kind> {
        let by_name = |lists: &Lists, names: &[Box<str>]| {
            let crowd = |name: &str| lists.get(name).map_or(0, |list| list.len());
            names.iter().map(|name| crowd(name)).max().unwrap_or(0)
        };
        let by_pattern = |patterns: &Patterns, texts: &[Box<str>]| {
            let crowds = texts.iter().map(|text| patterns.crowd(text));
            crowds.max().unwrap_or(0)
        };
        let kinds = [
            (&part.users, Kind::Users),
            (&part.client_ids, Kind::ClientIds),
            (&part.groups, Kind::Groups),
            (&part.user_patterns, Kind::UserPatterns),
            (&part.client_id_patterns, Kind::ClientIdPatterns),
            (&part.listeners, Kind::Listeners),
        ];
        let crowd = |kind: Kind, names: &[Box<str>]| match kind {
            Kind::Users => by_name(&self.users, names),
            Kind::ClientIds => by_name(&self.client_ids, names),
            Kind::Groups => by_name(&self.groups, names),
            Kind::Listeners => by_name(&self.listeners, names),
            Kind::UserPatterns => by_pattern(&self.user_patterns, names),
            Kind::ClientIdPatterns => by_pattern(&self.client_id_patterns, names),
            Kind::Addresses => usize::MAX,
        };
        let texts = kinds
            .into_iter()
            .filter_map(|(names, kind)| Some((crowd(kind, names.as_deref()?), kind)));
        let blocks = part.addresses.as_ref().map(|blocks| {
            let crowd = blocks.iter().map(|block| self.addresses.crowd(block)).max();
            (crowd.unwrap_or(0), Kind::Addresses)
        });
        texts.chain(blocks).min().map(|(_, kind)| kind)
    }

    /// The classes a session is in, in order.
    pub(crate) fn classes_of(&self, facts: &Facts<'_>) -> Vec<u32> {
        let mut search = Search::default();
        let mut found = Vec::new();
        let mut is_over = false;
        while !is_over {
            let mut effort = Effort::new(u32::MAX);
            let add = |class| found.push(class);
            is_over = self.go_on(facts, &mut search, &mut effort, add).is_some();
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Goes on with a search: tells the classes the session is in, some of them perhaps twice. `None` when the share of work
    /// is used up before all were found.
    pub(crate) fn go_on(
        &self,
        facts: &Facts<'_>,
        search: &mut Search,
        effort: &mut Effort,
        mut found: impl FnMut(u32),
    ) -> Option<()> {
        if let Some(name) = facts.username {
            let matcher = &self.user_patterns.matcher;
            matcher.go_on(name, &mut search.users, effort)?;
        }
        let matcher = &self.client_id_patterns.matcher;
        matcher.go_on(facts.client_id, &mut search.client_ids, effort)?;
        while search.source != Source::End {
            let (list, next) = self.list_of(facts, search);
            while let Some(number) = list.get(search.at) {
                if effort.is_used_up() {
                    return None;
                }
                effort.spend(CANDIDATE_NODES);
                let class = self.classes.get(*number as usize);
                if let Some(class) = class.and_then(Option::as_ref)
                    && class.matches(facts, search, effort)?
                {
                    found(*number);
                }
                search.within = 0;
                search.at += 1;
            }
            search.at = 0;
            effort.spend(self.look_up_nodes(search.source, next));
            search.source = next;
            if effort.is_used_up() {
                return None;
            }
        }
        Some(())
    }

    /// The list that a search is at, and where the next one is.
    fn list_of<'i>(&'i self, facts: &Facts<'_>, search: &Search) -> (&'i [u32], Source) {
        let listed = |lists: &'i Lists, name: &str| lists.get(name).map(|list| list.as_slice());
        let (list, next) = match search.source {
            Source::Everyone => (Some(self.everyone.as_slice()), Source::User),
            Source::User => {
                let list = facts.username.and_then(|name| listed(&self.users, name));
                (list, Source::ClientId)
            }
            Source::ClientId => (listed(&self.client_ids, facts.client_id), Source::Listener),
            Source::Listener => (listed(&self.listeners, facts.listener), Source::Group(0)),
            Source::Group(place) => match facts.groups.get(place) {
                Some(group) => (listed(&self.groups, group), Source::Group(place + 1)),
                None => (None, Source::Address(0)),
            },
            Source::Address(from) => match self.addresses.containing(facts.address, from) {
                Some((length, list)) => (Some(list), Source::Address(length + 1)),
                None => (None, Source::UserPattern(0)),
            },
            Source::UserPattern(place) => match search.users.found().get(place) {
                Some(number) => (
                    self.user_patterns.list(*number),
                    Source::UserPattern(place + 1),
                ),
                None => (None, Source::ClientIdPattern(0)),
            },
            Source::ClientIdPattern(place) => match search.client_ids.found().get(place) {
                Some(number) => (
                    self.client_id_patterns.list(*number),
                    Source::ClientIdPattern(place + 1),
                ),
                None => (None, Source::End),
            },
            Source::End => (None, Source::End),
        };
        (list.unwrap_or_default(), next)
    }

    /// What it costs to find a list, besides what is in it. Those that there is one of are part of what any search costs.
    fn look_up_nodes(&self, source: Source, next: Source) -> u32 {
        match (source, next) {
            (Source::Group(_), Source::Group(_))
            | (Source::UserPattern(_), Source::UserPattern(_))
            | (Source::ClientIdPattern(_), Source::ClientIdPattern(_)) => 1,
            (Source::Address(_), _) => (self.addresses.lengths() / LENGTHS_A_NODE) as u32,
            (_, _) => 0,
        }
    }
}

/// A class that comes up lies somewhere else in memory than the one before, and so does its who-part.
const CANDIDATE_NODES: u32 = 2;
/// Prefix lengths that are looked up at the cost of a node.
const LENGTHS_A_NODE: usize = 8;
/// Entries of a list of numbers that are looked at at the cost of a node.
const ENTRIES_A_NODE: usize = 16;
/// Bytes of a name that are compared at the cost of a node, in a search through a list of names.
const NAME_BYTES_A_NODE: usize = 256;

/// A search for the classes of a session; of one index and the same facts.
#[derive(Debug, Default)]
pub(crate) struct Search {
    users: Matching,
    client_ids: Matching,
    source: Source,
    /// The next candidate on the list, and the place in the longest of its own lists.
    at: usize,
    within: usize,
}

/// Where candidates are listed, in the order in which they are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    #[default]
    Everyone,
    User,
    ClientId,
    Listener,
    /// By the place among the groups of the session.
    Group(usize),
    /// From this prefix length on.
    Address(u8),
    /// By the place among the expressions that match.
    UserPattern(usize),
    ClientIdPattern(usize),
    End,
}

impl Search {
    pub(crate) fn heap_bytes(&self) -> usize {
        self.users.heap_bytes() + self.client_ids.heap_bytes()
    }
}

impl Class {
    /// True exactly when a session is in the class. `None` when the share of work is used up before that is known.
    fn matches(&self, facts: &Facts<'_>, search: &mut Search, effort: &mut Effort) -> Option<bool> {
        let is_plainly = search.within > 0 || self.matches_plainly(facts, search, effort);
        if !is_plainly {
            return Some(false);
        }
        let Some(list) = self.who.groups.as_deref() else {
            return Some(true);
        };
        // Both are in order, so the shorter one is gone through.
        let (few, many) = if list.len() < facts.groups.len() {
            (list, facts.groups)
        } else {
            (facts.groups, list)
        };
        while let Some(group) = few.get(search.within) {
            search.within += 1;
            effort.spend(1);
            if has(many, group) {
                return Some(true);
            }
            if effort.is_used_up() {
                return None;
            }
        }
        Some(false)
    }

    /// The same for everything but groups.
    fn matches_plainly(&self, facts: &Facts<'_>, search: &Search, effort: &mut Effort) -> bool {
        let mut has_name = |list: &[Box<str>], name: &str| {
            effort.spend_for(0, name.len() / NAME_BYTES_A_NODE);
            has(list, name)
        };
        let part = &*self.who;
        let are_names = part
            .versions
            .is_none_or(|versions| versions.contains(facts.version))
            && part
                .listeners
                .as_deref()
                .is_none_or(|list| has(list, facts.listener))
            && part
                .users
                .as_deref()
                .is_none_or(|list| facts.username.is_some_and(|name| has_name(list, name)))
            && part
                .client_ids
                .as_deref()
                .is_none_or(|list| has_name(list, facts.client_id));
        let mut has_pattern = |list: &[u32], found: &Found| {
            effort.spend_for(0, list.len() / ENTRIES_A_NODE);
            list.iter()
                .any(|number| found.binary_search(number).is_ok())
        };
        let is_address = |list: &[Cidr]| cidr::contains(list, facts.address);
        are_names
            && (part.user_patterns.is_none()
                || facts.username.is_some()
                    && has_pattern(&self.user_patterns, search.users.found()))
            && (part.client_id_patterns.is_none()
                || has_pattern(&self.client_id_patterns, search.client_ids.found()))
            && part.addresses.as_deref().is_none_or(is_address)
    }
}

/// True exactly when a list, which is in order, has a name.
fn has(list: &[Box<str>], name: &str) -> bool {
    list.binary_search_by(|entry| (**entry).cmp(name)).is_ok()
}

impl Patterns {
    /// The classes listed under an expression.
    fn list(&self, number: u32) -> Option<&[u32]> {
        let (_, list, _) = self.used.get(number as usize)?;
        Some(list.as_slice())
    }

    fn crowd(&self, text: &str) -> usize {
        let number = self.numbers.get(text);
        let used = number.and_then(|number| self.used.get(*number as usize));
        used.map_or(0, |(_, list, _)| list.len())
    }

    /// Numbers the expressions of a class.
    fn enter(&mut self, texts: &[Box<str>]) -> Box<[u32]> {
        let mut numbers = Vec::with_capacity(texts.len());
        for text in texts {
            let number = match self.numbers.get(text) {
                Some(number) => *number,
                None => self.number_new(text),
            };
            if let Some((_, _, count)) = self.used.get_mut(number as usize) {
                *count += 1;
            }
            numbers.push(number);
        }
        numbers.into()
    }

    fn number_new(&mut self, text: &str) -> u32 {
        self.is_stale = true;
        // Only while a class is changed; when all are made there is no unused one.
        let unused = match self.used.len() == self.numbers.len() {
            true => None,
            false => self.used.iter().position(|(_, _, count)| *count == 0),
        };
        let number = unused.unwrap_or(self.used.len());
        let entry = (Box::from(text), List::new(), 0);
        match self.used.get_mut(number) {
            Some(slot) => *slot = entry,
            None => self.used.push(entry),
        }
        self.numbers.insert(text.into(), number as u32);
        number as u32
    }

    /// A class does not use these any more.
    fn leave(&mut self, numbers: &[u32]) {
        for number in numbers {
            let Some((text, _, count)) = self.used.get_mut(*number as usize) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.numbers.remove(text);
                *text = Box::default();
                self.is_stale = true;
            }
        }
    }

    fn compile(&mut self, kind: &str) -> Result<(), String> {
        // A change often gives back the last places.
        while self.used.pop_if(|(_, _, count)| *count == 0).is_some() {}
        let used = (0..)
            .zip(&self.used)
            .filter(|(_, (_, _, count))| *count > 0);
        let used = used.map(|(number, (text, ..))| (number, &**text));
        self.matcher = self
            .matcher
            .compile(used)
            .map_err(|reason| format!("`{kind}` of the document: {reason}"))?;
        self.is_stale = false;
        Ok(())
    }
}

/// Lists a class under a value.
pub(crate) fn put<K: Hash + Eq + Clone>(lists: &mut Sharded<K, List>, key: K, class: u32) {
    lists.update(key, |list| list.get_or_insert_default().push(class));
}

/// Takes a class off the list of a value; a list that is empty then is gone.
pub(crate) fn take<K: Hash + Eq + Clone>(lists: &mut Sharded<K, List>, key: K, class: u32) {
    lists.update(key, |slot| {
        if let Some(list) = slot {
            list.retain(|listed| *listed != class);
            if list.is_empty() {
                *slot = None;
            }
        }
    });
}
