//! Rows to [`Model`]: names, references, numbers, patterns, addresses, filters and hashes are checked, defaults filled in.
//!
//! Goes on after every problem, so that all of them are reported at once. A setting that could not have an effect where
//! it stands is a problem too.

mod names;
mod places;
mod rules;

pub use places::ENDPOINTS_MAX;
use rules::Defaults;

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use regex::RegexBuilder;
use sluice_wire::mqtt::Version;

use crate::document::shown;
use crate::model::{
    Cidr, ClientIdBinding, Model, Password, Pattern, RuleModel, UserModel, VersionSet, WhoPart,
};
use crate::password::{self, Verifier};
use crate::problem::{Errors, Position, Problems};
use crate::rows::{GroupRow, Located, Rows, RuleRow, Text, UserRow};
use crate::tables::expression::Expression;
use crate::wording::{quoted, suggestion};
use crate::{Effect, FEATURES, OnDeny, units};

use names::{NAME_BYTES_MAX, Names, Nearby, names};

/// Most listeners, and most upstreams, of a document.
pub const LISTENERS_MAX: usize = 1_024;
/// Most rules of a document.
pub const RULES_MAX: usize = 4_000_000;
/// Most different regular expressions of a document.
pub const PATTERNS_MAX: usize = 4_096;
/// Longest regular expression, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1_024;
/// Largest compiled form of one regular expression, in bytes.
pub(crate) const PATTERN_COMPILED_BYTES_MAX: usize = 256 << 10;
/// Most networks of one user: each is looked at when a client comes with the name.
const NETWORKS_MAX: usize = 64;
const MQTT_STRING_BYTES_MAX: usize = 65_535;

/// Where rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A document: everything that is wrong with it is refused.
    Document,
    /// A store, the fleet or a disk, where they were once good. What an earlier version took for a password hash and is none
    /// locks its user out and is no problem: else a node could not start, nor a fleet go back.
    Stored,
}

/// Checks rows of a document. `file` is only for the messages.
pub fn validate(rows: Rows, file: &str) -> Result<Model, Errors> {
    let mut problems = Problems::default();
    let model = check(rows, Source::Document, &mut problems);
    problems.finish(file, model)
}

/// Checks what can be checked and notes every problem. The model is only meaningful when none was noted.
pub(crate) fn check(rows: Rows, source: Source, problems: &mut Problems) -> Model {
    rule_names(rows.rules.iter().map(|row| &row.name), source, problems);
    Checker::new(&rows, source, problems).document(rows)
}

fn rule_names<'a>(
    names_of: impl Iterator<Item = &'a Text>,
    source: Source,
    problems: &mut Problems,
) {
    names(names_of, "rule", NAME_BYTES_MAX, source, problems);
}

/// What is known of a document without its rules and users, so that these can be checked one by one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ground {
    listeners: Arc<Names>,
    groups: Arc<Names>,
    /// The groups that group rows name for each user.
    members: Arc<HashMap<Box<str>, Vec<Box<str>>>>,
    defaults: Defaults,
    patterns: PatternBook,
}

/// The expressions of a document, each compiled once, with how many rows use it.
#[derive(Clone, Debug, Default)]
pub(crate) struct PatternBook {
    by_text: Arc<HashMap<Box<str>, Counted>>,
}

/// An expression, and how many rows use it.
type Counted = (Arc<Expression>, usize);

impl PatternBook {
    fn get(&self, text: &str) -> Option<&Arc<Expression>> {
        self.by_text.get(text).map(|(expression, _)| expression)
    }

    /// False: there are too many.
    fn is_within_bounds(&self) -> bool {
        self.by_text.len() <= PATTERNS_MAX
    }

    fn count(&mut self, text: &str, made: impl FnOnce() -> Arc<Expression>, is_added: bool) {
        let book = Arc::make_mut(&mut self.by_text);
        match book.get_mut(text) {
            Some((_, count)) if is_added => *count += 1,
            Some((_, 2..)) => {
                if let Some((_, count)) = book.get_mut(text) {
                    *count -= 1;
                }
            }
            Some(_) => {
                book.remove(text);
            }
            None if is_added => {
                book.insert(text.into(), (made(), 1));
            }
            None => {}
        }
    }
}

/// What a row brings along that others may have as well.
pub(crate) enum Uses<'m> {
    Rule(&'m RuleModel),
    User(&'m UserModel),
}

impl Ground {
    /// Of a document that has been checked; rules and users are still to be counted.
    pub(crate) fn new(rows: &Rows, model: &Model) -> Self {
        let mut problems = Problems::default();
        let mut checker = Checker::new(rows, Source::Stored, &mut problems);
        let members = Arc::new(checker.members(&rows.groups));
        let mut ground = Self {
            listeners: checker.listeners,
            groups: checker.groups,
            members,
            defaults: Defaults {
                on_deny: model.on_deny,
                narrow: model.narrow,
            },
            patterns: PatternBook::default(),
        };
        for listener in &model.listeners {
            if let Some(pattern) = &listener.client_id_pattern {
                let made = || Arc::clone(pattern.expression());
                ground.patterns.count(&pattern.text, made, true);
            }
        }
        ground
    }

    /// Notes that a row is there, or that it is not there any more.
    pub(crate) fn count(&mut self, row: &Uses<'_>, is_added: bool) {
        match row {
            Uses::Rule(rule) => {
                let lists = [&rule.who.user_patterns, &rule.who.client_id_patterns];
                for text in lists.into_iter().flatten().flatten() {
                    let made = || Arc::new(Expression::new(text));
                    self.patterns.count(text, made, is_added);
                }
            }
            Uses::User(user) => {
                if let Some(ClientIdBinding::Matching(pattern)) = &user.client_id {
                    let made = || Arc::clone(pattern.expression());
                    self.patterns.count(&pattern.text, made, is_added);
                }
            }
        }
    }

    /// True exactly when the document, with what was counted, keeps the bounds on patterns.
    pub(crate) fn is_within_bounds(&self) -> bool {
        self.patterns.is_within_bounds()
    }

    /// True exactly when a group row names the user.
    pub(crate) fn names_user(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Checks one rule by itself.
    pub(crate) fn rule(&self, row: RuleRow, problems: &mut Problems) -> RuleModel {
        rule_names(std::iter::once(&row.name), Source::Stored, problems);
        self.checker(problems).rule(row, 0, self.defaults)
    }

    /// The same for many, which share their who-parts. `None`: one of them is not there, or it was cancelled.
    pub(crate) fn rules(
        &self,
        rows: impl Iterator<Item = Option<(RuleRow, u64)>>,
        problems: &mut Problems,
    ) -> Option<Vec<RuleModel>> {
        let mut checker = self.checker(problems);
        rows.map(|row| {
            let (row, tie) = row.filter(|_| !checker.problems.is_cancelled())?;
            rule_names(std::iter::once(&row.name), Source::Stored, checker.problems);
            let rule = checker.rule(row, 0, self.defaults);
            Some(RuleModel { tie, ..rule })
        })
        .collect()
    }

    /// Checks one user by itself.
    pub(crate) fn user(&self, row: UserRow, problems: &mut Problems) -> UserModel {
        names(
            std::iter::once(&row.name),
            "user",
            MQTT_STRING_BYTES_MAX,
            Source::Stored,
            problems,
        );
        self.checker(problems).user(row, &self.members)
    }

    fn checker<'p>(&self, problems: &'p mut Problems) -> Checker<'p> {
        Checker {
            source: Source::Stored,
            upstreams: Names::new(),
            listeners: Arc::clone(&self.listeners),
            groups: Arc::clone(&self.groups),
            users: Names::new(),
            known: self.patterns.clone(),
            patterns: HashMap::new(),
            who_parts: HashSet::new(),
            nearby: Nearby::default(),
            problems,
        }
    }
}

impl<'p> Checker<'p> {
    fn new(rows: &Rows, source: Source, problems: &'p mut Problems) -> Self {
        Checker {
            source,
            upstreams: names(
                rows.upstreams.iter().map(|row| &row.name),
                "upstream",
                NAME_BYTES_MAX,
                source,
                problems,
            ),
            listeners: Arc::new(names(
                rows.listeners.iter().map(|row| &row.name),
                "listener",
                NAME_BYTES_MAX,
                source,
                problems,
            )),
            groups: Arc::new(names(
                rows.groups.iter().map(|row| &row.name),
                "group",
                NAME_BYTES_MAX,
                source,
                problems,
            )),
            users: names(
                rows.users.iter().map(|row| &row.name),
                "user",
                MQTT_STRING_BYTES_MAX,
                source,
                problems,
            ),
            known: PatternBook::default(),
            patterns: HashMap::new(),
            who_parts: HashSet::new(),
            nearby: Nearby::default(),
            problems,
        }
    }
}

struct Checker<'p> {
    source: Source,
    upstreams: Names,
    listeners: Arc<Names>,
    groups: Arc<Names>,
    users: Names,
    /// Expressions that other rows of the document have brought.
    known: PatternBook,
    /// Each different expression is checked once; `None` was reported as broken.
    patterns: HashMap<Box<str>, Option<Arc<Expression>>>,
    /// Equal who-parts are kept once.
    who_parts: HashSet<Arc<WhoPart>>,
    nearby: Nearby,
    problems: &'p mut Problems,
}

impl Checker<'_> {
    fn document(&mut self, rows: Rows) -> Model {
        for feature in &rows.requires {
            if !FEATURES.contains(&&*feature.value) {
                self.problem(
                    feature,
                    format!(
                        "this node does not have the feature `{}`; it has: {}{}",
                        shown(&feature.value),
                        FEATURES.join(", "),
                        suggestion(&feature.value, FEATURES.iter().copied())
                    ),
                );
            }
        }
        for (kind, count, max) in [
            ("listeners", rows.listeners.len(), LISTENERS_MAX),
            ("upstreams", rows.upstreams.len(), LISTENERS_MAX),
            ("rules", rows.rules.len(), RULES_MAX),
        ] {
            if count > max {
                self.problems.add(
                    Position::default(),
                    format!("{count} {kind}; at most {max}"),
                );
            }
        }
        let defaults = Defaults {
            on_deny: rows.on_deny.map_or(OnDeny::Drop, |located| located.value),
            narrow: rows.narrow.is_some_and(|located| located.value),
        };
        let members = self.members(&rows.groups);
        let listeners = rows
            .listeners
            .iter()
            .map(|row| self.listener(row))
            .collect::<Vec<_>>();
        self.same_address_twice(&rows.listeners, &listeners);
        let mut rules: Vec<RuleModel> = Vec::with_capacity(rows.rules.len());
        for (position, row) in rows.rules.into_iter().enumerate() {
            if self.problems.is_cancelled() {
                break;
            }
            rules.push(self.rule(row, position, defaults));
        }
        // Stable: rows that tie in both keep their document order.
        rules.sort_by_key(|rule| (std::cmp::Reverse(rule.priority), rule.order));
        Model {
            default: rows.default.map_or(Effect::Deny, |located| located.value),
            on_deny: defaults.on_deny,
            narrow: defaults.narrow,
            listeners,
            upstreams: rows
                .upstreams
                .iter()
                .map(|row| self.upstream(row))
                .collect(),
            groups: rows.groups.into_iter().map(|row| row.name.value).collect(),
            users: self.users(rows.users, &members),
            rules,
        }
    }

    /// The groups of each user that group rows name.
    fn members(&mut self, groups: &[GroupRow]) -> HashMap<Box<str>, Vec<Box<str>>> {
        let mut members: HashMap<Box<str>, Vec<Box<str>>> = HashMap::new();
        for group in groups {
            for user in &group.users {
                if self.problems.is_cancelled() {
                    return members;
                }
                if !self.users.contains_key(&user.value) {
                    let near = self.nearby.suggestion(&user.value, &self.users);
                    let name = quoted(&user.value);
                    self.problem(user, format!("there is no user {name}{near}"));
                }
                members
                    .entry(user.value.clone())
                    .or_default()
                    .push(group.name.value.clone());
            }
        }
        members
    }

    fn users(
        &mut self,
        rows: Vec<UserRow>,
        members: &HashMap<Box<str>, Vec<Box<str>>>,
    ) -> Vec<UserModel> {
        let mut users = Vec::with_capacity(rows.len());
        for row in rows {
            if self.problems.is_cancelled() {
                break;
            }
            users.push(self.user(row, members));
        }
        users
    }

    fn user(&mut self, row: UserRow, members: &HashMap<Box<str>, Vec<Box<str>>>) -> UserModel {
        let password = self.password(&row);
        let networks = row.networks.as_ref();
        let networks = networks.map(|texts| self.networks(row.at, texts, &row.name));
        for group in &row.groups {
            self.known_group(group);
        }
        let mut groups: Vec<Box<str>> = row.groups.into_iter().map(|group| group.value).collect();
        groups.extend(members.get(&row.name.value).into_iter().flatten().cloned());
        groups.sort();
        groups.dedup();
        if let (Some(_), Some(pattern)) = (&row.client_id, &row.client_id_pattern) {
            self.problem(
                pattern,
                "`client_id` and `client_id_pattern` exclude each other",
            );
        }
        let client_id = match (&row.client_id, &row.client_id_pattern) {
            (Some(exactly), _) => self.exact_client_id(exactly, &row.name.value),
            (None, Some(pattern)) => self.pattern(pattern).map(ClientIdBinding::Matching),
            (None, None) => None,
        };
        UserModel {
            name: row.name.value,
            password,
            groups,
            client_id,
            networks,
            enabled: row.enabled.is_none_or(|located| located.value),
        }
    }

    fn password(&mut self, row: &UserRow) -> Password {
        let Some(text) = &row.password_hash else {
            if row.networks.is_none() {
                let name = shown(&row.name.value);
                let message = format!(
                    "user `{name}`: `password_hash` is missing; only a user with `networks` may have none"
                );
                self.problems.add(row.at, message);
            }
            return Password::Absent;
        };
        let error = match Verifier::parse(&text.value) {
            Ok(verifier) => return Password::Hash(verifier),
            Err(error) => error,
        };
        if self.source == Source::Document || !error.may_be_stored() {
            self.problem(text, format!("user `{}`: {error}", shown(&row.name.value)));
        }
        Password::Broken {
            error,
            digest: password::digest(&text.value),
        }
    }

    fn networks(&mut self, at: Position, texts: &[Text], name: &Text) -> Box<[Cidr]> {
        if !(1..=NETWORKS_MAX).contains(&texts.len()) {
            let name = shown(&name.value);
            let message = format!("user `{name}`: from 1 to {NETWORKS_MAX} `networks`");
            self.problems.add(at, message);
        }
        self.blocks(texts)
    }

    /// Blocks of addresses, sorted and without doubles.
    fn blocks(&mut self, texts: &[Text]) -> Box<[Cidr]> {
        let mut blocks = Vec::with_capacity(texts.len());
        for text in texts {
            match Cidr::parse(&text.value) {
                Ok(block) => blocks.push(block),
                Err(message) => self.wrong(text, message),
            }
        }
        blocks.sort();
        blocks.dedup();
        blocks.into()
    }

    fn exact_client_id(&mut self, text: &Text, user: &str) -> Option<ClientIdBinding> {
        let value = text.value.replace("${username}", user);
        if value.contains("${") && !user.contains("${") {
            self.wrong(
                text,
                "the only variable a `client_id` may use is `${username}`",
            );
        }
        if value.is_empty() || value.len() > MQTT_STRING_BYTES_MAX || value.contains('\0') {
            self.wrong(text, "not a client id that a client could send");
        }
        Some(ClientIdBinding::Exactly(value.into()))
    }

    fn version(&mut self, text: &Text, set: VersionSet) -> VersionSet {
        match &*text.value {
            "3.1" => set.with(Version::V31),
            "3.1.1" => set.with(Version::V311),
            "5" | "5.0" => set.with(Version::V5),
            other => {
                let advice = match other {
                    "4" | "3.11" => "; did you mean `3.1.1`?",
                    _ => "",
                };
                let found = quoted(other);
                self.problem(
                    text,
                    format!("expected `3.1`, `3.1.1` or `5`, not {found}{advice}"),
                );
                set
            }
        }
    }

    fn known_group(&mut self, group: &Text) {
        if !self.groups.contains_key(&group.value) {
            let near = self.nearby.suggestion(&group.value, &self.groups);
            let name = quoted(&group.value);
            self.problem(group, format!("there is no group {name}{near}"));
        }
    }

    /// A pattern that is asked by itself.
    fn pattern(&mut self, text: &Text) -> Option<Pattern> {
        let expression = self.expression(text)?;
        if !expression.prepare() {
            self.problem(text, "this regular expression is too large");
            return None;
        }
        Some(Pattern::new(&text.value, expression))
    }

    /// An expression that compiles.
    fn expression(&mut self, text: &Text) -> Option<Arc<Expression>> {
        if let Some(expression) = self.known.get(&text.value) {
            return Some(Arc::clone(expression));
        }
        if !self.patterns.contains_key(&text.value) {
            let is_one = self.is_expression(text);
            let expression = is_one.then(|| Arc::new(Expression::new(&text.value)));
            self.patterns.insert(text.value.clone(), expression);
        }
        self.patterns.get(&text.value)?.clone()
    }

    fn is_expression(&mut self, text: &Text) -> bool {
        if text.value.len() > PATTERN_BYTES_MAX {
            self.problem(
                text,
                format!("a pattern has at most {PATTERN_BYTES_MAX} bytes"),
            );
            return false;
        }
        if self.patterns.len() == PATTERNS_MAX {
            self.problem(
                text,
                format!("more than {PATTERNS_MAX} different patterns in the document"),
            );
        }
        if self.patterns.len() >= PATTERNS_MAX {
            return false;
        }
        // The expression must be one by itself first, or `a)|(b` would become one by being put in a group.
        let compiled = build(&text.value).and_then(|_| build(&anchored(&text.value)));
        compiled
            .map_err(|error| {
                let reason = error.to_string();
                let last_line = reason
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ");
                self.wrong(text, format!("not a regular expression: {last_line}"));
            })
            .is_ok()
    }

    fn small<T: TryFrom<u64>>(
        &mut self,
        located: &Option<Located<u64>>,
        key: &str,
        range: RangeInclusive<u64>,
        default: T,
    ) -> T {
        let Some(located) = located else {
            return default;
        };
        match T::try_from(located.value) {
            Ok(value) if range.contains(&located.value) => value,
            Ok(_) | Err(_) => {
                self.problem(
                    located,
                    format!(
                        "`{key}` must be from {} to {}, not {}",
                        range.start(),
                        range.end(),
                        located.value
                    ),
                );
                default
            }
        }
    }

    fn duration(
        &mut self,
        located: &Option<Located<Duration>>,
        key: &str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(located) = located else {
            return default;
        };
        if range.contains(&located.value) {
            return located.value;
        }
        let (start, end) = (
            units::show_duration(*range.start()),
            units::show_duration(*range.end()),
        );
        let found = units::show_duration(located.value);
        self.problem(
            located,
            format!("`{key}` must be from {start} to {end}, not {found}"),
        );
        default
    }

    fn missing(&mut self, at: Position, kind: &str, name: &Text, key: &str) {
        self.problems.add(
            at,
            format!("{kind} `{}`: `{key}` is missing", shown(&name.value)),
        );
    }

    /// Repeats the value before what is wrong with it.
    fn wrong(&mut self, text: &Text, message: impl std::fmt::Display) {
        let value = quoted(&text.value);
        self.problem(text, format!("{value}: {message}"));
    }

    fn problem<T>(&mut self, located: &Located<T>, message: impl Into<String>) {
        self.problems.add(located.at, message);
    }
}

/// The expression as it is used: the whole value must match.
pub(crate) fn anchored(pattern: &str) -> String {
    format!(r"\A(?:{pattern})\z")
}

fn build(pattern: &str) -> Result<(), regex::Error> {
    RegexBuilder::new(pattern)
        .size_limit(PATTERN_COMPILED_BYTES_MAX)
        .build()
        .map(drop)
}
