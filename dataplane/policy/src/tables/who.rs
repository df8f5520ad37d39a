//! Who-parts, indexed: which classes is a session in?
//!
//! Each who-part is listed under one of its kinds only, the one whose lists are shortest, and the rest of it is checked on
//! the few that come up. So the cost follows the classes that nearly match, not the number of rules or users.

use std::collections::HashMap;
use std::net::IpAddr;

use regex::{RegexSet, RegexSetBuilder, SetMatches};
use sluice_wire::mqtt::Version;

use super::cidr::CidrTable;
use crate::model::{Cidr, VersionSet, WhoPart};
use crate::validate::anchored;

/// Largest compiled form of all patterns of one kind together, in bytes.
const PATTERNS_COMPILED_BYTES_MAX: usize = 128 << 20;

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

/// See the file's header. Classes count from 0 in the order they were given.
#[derive(Debug)]
pub(crate) struct WhoIndex {
    classes: Box<[Class]>,
    users: Lists,
    client_ids: Lists,
    groups: Lists,
    listeners: Lists,
    addresses: CidrTable,
    user_patterns: Patterns,
    client_id_patterns: Patterns,
    /// Classes with no kind but perhaps versions.
    everyone: Vec<u32>,
}

type Lists = HashMap<Box<str>, Vec<u32>>;

/// A who-part with its patterns by number.
#[derive(Debug)]
struct Class {
    users: Option<Box<[Box<str>]>>,
    user_patterns: Option<Box<[u32]>>,
    client_ids: Option<Box<[Box<str>]>>,
    client_id_patterns: Option<Box<[u32]>>,
    addresses: Option<Box<[Cidr]>>,
    groups: Option<Box<[Box<str>]>>,
    versions: Option<VersionSet>,
    listeners: Option<Box<[Box<str>]>>,
}

/// All patterns of one kind in one automaton.
#[derive(Debug)]
struct Patterns {
    set: RegexSet,
    lists: Vec<Vec<u32>>,
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
    /// Indexes who-parts. The error is for the writer of the patterns: together they are too large.
    pub(crate) fn new(parts: &[&WhoPart]) -> Result<Self, String> {
        let user_patterns = Interned::new(
            parts
                .iter()
                .filter_map(|part| part.user_patterns.as_deref()),
        );
        let client_id_patterns = Interned::new(
            parts
                .iter()
                .filter_map(|part| part.client_id_patterns.as_deref()),
        );
        let crowds = Crowds::new(parts);
        let mut index = Self {
            classes: parts
                .iter()
                .map(|part| Class {
                    users: part.users.clone(),
                    user_patterns: part
                        .user_patterns
                        .as_deref()
                        .map(|list| user_patterns.numbers(list)),
                    client_ids: part.client_ids.clone(),
                    client_id_patterns: part
                        .client_id_patterns
                        .as_deref()
                        .map(|list| client_id_patterns.numbers(list)),
                    addresses: part.addresses.clone(),
                    groups: part.groups.clone(),
                    versions: part.versions,
                    listeners: part.listeners.clone(),
                })
                .collect(),
            users: Lists::new(),
            client_ids: Lists::new(),
            groups: Lists::new(),
            listeners: Lists::new(),
            addresses: CidrTable::default(),
            user_patterns: user_patterns.compile("user_patterns")?,
            client_id_patterns: client_id_patterns.compile("client_id_patterns")?,
            everyone: Vec::new(),
        };
        for (class, part) in (0_u32..).zip(parts) {
            index.list(class, part, crowds.best_kind(part));
        }
        Ok(index)
    }

    fn list(&mut self, class: u32, part: &WhoPart, kind: Option<Kind>) {
        let by_name = |lists: &mut Lists, names: &Option<Box<[Box<str>]>>| {
            for name in names.iter().flatten() {
                lists.entry(name.clone()).or_default().push(class);
            }
        };
        let by_pattern = |patterns: &mut Patterns, numbers: Option<&[u32]>| {
            for number in numbers.unwrap_or_default() {
                if let Some(list) = patterns.lists.get_mut(*number as usize) {
                    list.push(class);
                }
            }
        };
        let numbers = self.classes.get(class as usize);
        match kind {
            None => self.everyone.push(class),
            Some(Kind::Users) => by_name(&mut self.users, &part.users),
            Some(Kind::ClientIds) => by_name(&mut self.client_ids, &part.client_ids),
            Some(Kind::Groups) => by_name(&mut self.groups, &part.groups),
            Some(Kind::Listeners) => by_name(&mut self.listeners, &part.listeners),
            Some(Kind::Addresses) => {
                for block in part.addresses.iter().flatten() {
                    self.addresses.add(*block, class);
                }
            }
            Some(Kind::UserPatterns) => by_pattern(
                &mut self.user_patterns,
                numbers.and_then(|class| class.user_patterns.as_deref()),
            ),
            Some(Kind::ClientIdPatterns) => by_pattern(
                &mut self.client_id_patterns,
                numbers.and_then(|class| class.client_id_patterns.as_deref()),
            ),
        }
    }

    /// The classes a session is in, in order.
    pub(crate) fn classes_of(&self, facts: &Facts<'_>) -> Vec<u32> {
        let users_matching = facts
            .username
            .map(|name| self.user_patterns.set.matches(name));
        let client_ids_matching = self.client_id_patterns.set.matches(facts.client_id);
        let mut found = self.everyone.clone();
        let listed = |lists: &Lists, name: &str, found: &mut Vec<u32>| {
            found.extend_from_slice(lists.get(name).map_or(&[][..], Vec::as_slice));
        };
        if let Some(name) = facts.username {
            listed(&self.users, name, &mut found);
        }
        listed(&self.client_ids, facts.client_id, &mut found);
        for group in facts.groups {
            listed(&self.groups, group, &mut found);
        }
        listed(&self.listeners, facts.listener, &mut found);
        self.addresses
            .containing(facts.address)
            .for_each(|list| found.extend_from_slice(list));
        if let Some(matches) = &users_matching {
            self.user_patterns.collect(matches, &mut found);
        }
        self.client_id_patterns
            .collect(&client_ids_matching, &mut found);
        found.sort_unstable();
        found.dedup();
        found.retain(|class| {
            self.classes.get(*class as usize).is_some_and(|class| {
                class.matches(facts, users_matching.as_ref(), &client_ids_matching)
            })
        });
        found
    }
}

impl Class {
    fn matches(
        &self,
        facts: &Facts<'_>,
        users: Option<&SetMatches>,
        client_ids: &SetMatches,
    ) -> bool {
        let has = |list: &[Box<str>], name: &str| {
            list.binary_search_by(|entry| (**entry).cmp(name)).is_ok()
        };
        let has_pattern = |list: &[u32], matches: &SetMatches| {
            list.iter().any(|number| matches.matched(*number as usize))
        };
        self.versions
            .is_none_or(|versions| versions.contains(facts.version))
            && self
                .listeners
                .as_deref()
                .is_none_or(|list| has(list, facts.listener))
            && self
                .users
                .as_deref()
                .is_none_or(|list| facts.username.is_some_and(|name| has(list, name)))
            && self
                .client_ids
                .as_deref()
                .is_none_or(|list| has(list, facts.client_id))
            && self
                .groups
                .as_deref()
                .is_none_or(|list| facts.groups.iter().any(|group| has(list, group)))
            && self
                .user_patterns
                .as_deref()
                .is_none_or(|list| users.is_some_and(|users| has_pattern(list, users)))
            && self
                .client_id_patterns
                .as_deref()
                .is_none_or(|list| has_pattern(list, client_ids))
            && self
                .addresses
                .as_deref()
                .is_none_or(|list| list.iter().any(|block| block.contains(facts.address)))
    }
}

impl Patterns {
    fn collect(&self, matches: &SetMatches, found: &mut Vec<u32>) {
        for number in matches {
            found.extend_from_slice(self.lists.get(number).map_or(&[][..], Vec::as_slice));
        }
    }
}

/// Patterns, each once, with numbers.
struct Interned<'p> {
    patterns: Vec<&'p str>,
    numbers: HashMap<&'p str, u32>,
}

impl<'p> Interned<'p> {
    fn new(lists: impl Iterator<Item = &'p [Box<str>]>) -> Self {
        let mut interned = Self {
            patterns: Vec::new(),
            numbers: HashMap::new(),
        };
        for pattern in lists.flatten() {
            let next = interned.patterns.len() as u32;
            interned.numbers.entry(pattern).or_insert_with(|| {
                interned.patterns.push(pattern);
                next
            });
        }
        interned
    }

    fn numbers(&self, list: &[Box<str>]) -> Box<[u32]> {
        list.iter()
            .filter_map(|pattern| self.numbers.get(&**pattern).copied())
            .collect()
    }

    fn compile(&self, kind: &str) -> Result<Patterns, String> {
        let set = RegexSetBuilder::new(self.patterns.iter().map(|pattern| anchored(pattern)))
            .size_limit(PATTERNS_COMPILED_BYTES_MAX)
            .build()
            .map_err(|_| {
                format!("all `{kind}` together are too large; write fewer or simpler ones")
            })?;
        Ok(Patterns {
            set,
            lists: vec![Vec::new(); self.patterns.len()],
        })
    }
}

/// How many who-parts name each value: the length its list would have if all were listed under that kind.
struct Crowds<'p> {
    by_text: HashMap<(Kind, &'p str), usize>,
    by_block: HashMap<Cidr, usize>,
}

impl Kind {
    /// The kinds whose values are texts.
    fn texts(part: &WhoPart) -> [(Self, Option<&[Box<str>]>); 6] {
        [
            (Self::Users, part.users.as_deref()),
            (Self::ClientIds, part.client_ids.as_deref()),
            (Self::Groups, part.groups.as_deref()),
            (Self::UserPatterns, part.user_patterns.as_deref()),
            (Self::ClientIdPatterns, part.client_id_patterns.as_deref()),
            (Self::Listeners, part.listeners.as_deref()),
        ]
    }
}

impl<'p> Crowds<'p> {
    fn new(parts: &[&'p WhoPart]) -> Self {
        let mut crowds = Self {
            by_text: HashMap::new(),
            by_block: HashMap::new(),
        };
        for part in parts {
            for (kind, list) in Kind::texts(part) {
                for text in list.into_iter().flatten() {
                    *crowds.by_text.entry((kind, text)).or_default() += 1;
                }
            }
            for block in part.addresses.iter().flatten() {
                *crowds.by_block.entry(*block).or_default() += 1;
            }
        }
        crowds
    }

    /// The kind of a who-part under which the longest list it joins is shortest.
    fn best_kind(&self, part: &WhoPart) -> Option<Kind> {
        let texts = Kind::texts(part).into_iter().filter_map(|(kind, list)| {
            let crowd = list?
                .iter()
                .filter_map(|text| self.by_text.get(&(kind, &**text)))
                .max();
            Some((crowd.copied().unwrap_or(0), kind))
        });
        let blocks = part.addresses.as_ref().map(|blocks| {
            let crowd = blocks
                .iter()
                .filter_map(|block| self.by_block.get(block))
                .max();
            (crowd.copied().unwrap_or(0), Kind::Addresses)
        });
        texts.chain(blocks).min().map(|(_, kind)| kind)
    }
}
