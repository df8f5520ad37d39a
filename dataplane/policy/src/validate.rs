//! Rows to [`Model`]: names, references, numbers, patterns, addresses, filters and hashes are checked, defaults filled in.
//!
//! Goes on after every problem, so that all of them are reported at once. A setting that could not have an effect where
//! it stands is a problem too.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use sluice_wire::mqtt::{QoS, Version};

use crate::document::shown;
use crate::filter::TopicFilter;
use crate::model::{
    ActionSet, Cidr, ClientIdBinding, ListenerModel, Model, Pattern, RuleModel, UpstreamModel,
    UserModel, VersionSet, WhoPart,
};
use crate::password::Verifier;
use crate::problem::{Errors, Position, Problems};
use crate::rows::{
    DrainWills, GroupRow, LimitsRow, ListenerRow, Located, Mode, QosOver, Retain, Rows, RuleRow,
    Text, UpstreamAuth, UpstreamRow, UserRow, WhoRow,
};
use crate::{Action, Balance, Effect, Endpoint, FEATURES, Limits, OnDeny, units};

/// Most listeners, and most upstreams, of a document.
pub const LISTENERS_MAX: usize = 1_024;
/// Most endpoints of one upstream.
pub const ENDPOINTS_MAX: usize = 64;
/// Most rules of a document.
pub const RULES_MAX: usize = 4_000_000;
/// Most different regular expressions of a document.
pub const PATTERNS_MAX: usize = 4_096;
/// Longest regular expression, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1_024;
/// Largest compiled form of one regular expression, in bytes.
const PATTERN_COMPILED_BYTES_MAX: usize = 256 << 10;
/// Longest name of a row, in bytes. User names are strings of MQTT and may be longer.
const NAME_BYTES_MAX: usize = 128;
const MQTT_STRING_BYTES_MAX: usize = 65_535;
/// Longest path of a Unix socket on Linux, without the final NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Checks rows. `file` is only for the messages.
pub fn validate(rows: Rows, file: &str) -> Result<Model, Errors> {
    let mut problems = Problems::default();
    let model = check(rows, &mut problems);
    problems.finish(file, model)
}

/// Checks what can be checked and notes every problem. The model is only meaningful when none was noted.
pub(crate) fn check(rows: Rows, problems: &mut Problems) -> Model {
    let mut checker = Checker {
        upstreams: names(
            rows.upstreams.iter().map(|row| &row.name),
            "upstream",
            NAME_BYTES_MAX,
            problems,
        ),
        listeners: names(
            rows.listeners.iter().map(|row| &row.name),
            "listener",
            NAME_BYTES_MAX,
            problems,
        ),
        groups: names(
            rows.groups.iter().map(|row| &row.name),
            "group",
            NAME_BYTES_MAX,
            problems,
        ),
        users: names(
            rows.users.iter().map(|row| &row.name),
            "user",
            MQTT_STRING_BYTES_MAX,
            problems,
        ),
        patterns: HashMap::new(),
        who_parts: HashSet::new(),
        problems,
    };
    names(
        rows.rules.iter().map(|row| &row.name),
        "rule",
        NAME_BYTES_MAX,
        checker.problems,
    );
    checker.document(rows)
}

/// Where each name of a kind was first written.
type Names = HashMap<Box<str>, Position>;

fn names<'a>(
    rows: impl Iterator<Item = &'a Text>,
    kind: &str,
    bytes_max: usize,
    problems: &mut Problems,
) -> Names {
    let mut names = Names::new();
    for name in rows {
        if name.value.is_empty() {
            // A name that is missing altogether has been reported when the row was read.
            if name.at != Position::default() {
                problems.add(name.at, format!("the name of a {kind} must not be empty"));
            }
            continue;
        }
        if name.value.len() > bytes_max {
            problems.add(
                name.at,
                format!("the name of a {kind} has at most {bytes_max} bytes"),
            );
        }
        if name.value.chars().any(char::is_control) {
            problems.add(
                name.at,
                format!("the name of a {kind} must not contain control characters"),
            );
        }
        if let Some(first) = names.get(&name.value) {
            problems.add(
                name.at,
                format!(
                    "a second {kind} named `{}`; the first is in line {}",
                    shown(&name.value),
                    first.line
                ),
            );
        } else {
            names.insert(name.value.clone(), name.at);
        }
    }
    names
}

struct Checker<'p> {
    upstreams: Names,
    listeners: Names,
    groups: Names,
    users: Names,
    /// Each different expression is compiled once; `None` was reported as broken.
    patterns: HashMap<Box<str>, Option<Regex>>,
    /// Equal who-parts are kept once.
    who_parts: HashSet<Arc<WhoPart>>,
    problems: &'p mut Problems,
}

impl Checker<'_> {
    fn document(&mut self, rows: Rows) -> Model {
        for feature in &rows.requires {
            if !FEATURES.contains(&&*feature.value) {
                self.problem(
                    feature,
                    format!(
                        "this node does not have the feature `{}`; it has: {}",
                        shown(&feature.value),
                        FEATURES.join(", ")
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
        let on_deny = rows.on_deny.map_or(OnDeny::Drop, |located| located.value);
        let members = self.members(&rows.groups);
        let listeners = rows
            .listeners
            .iter()
            .map(|row| self.listener(row))
            .collect::<Vec<_>>();
        self.same_address_twice(&rows.listeners, &listeners);
        let mut rules: Vec<RuleModel> = Vec::with_capacity(rows.rules.len());
        for (position, row) in rows.rules.into_iter().enumerate() {
            rules.push(self.rule(row, position, on_deny));
        }
        // Stable: rows that tie in both keep their document order.
        rules.sort_by_key(|rule| (std::cmp::Reverse(rule.priority), rule.order));
        Model {
            default: rows.default.map_or(Effect::Deny, |located| located.value),
            on_deny,
            listeners,
            upstreams: rows
                .upstreams
                .iter()
                .map(|row| self.upstream(row))
                .collect(),
            groups: rows.groups.into_iter().map(|row| row.name.value).collect(),
            users: rows
                .users
                .into_iter()
                .map(|row| self.user(row, &members))
                .collect(),
            rules,
        }
    }

    // --- listeners

    fn listener(&mut self, row: &ListenerRow) -> ListenerModel {
        let mut versions = VersionSet::default();
        for version in row.versions.iter().flatten() {
            versions = self.version(version, versions);
        }
        if row.versions.as_ref().is_some_and(Vec::is_empty) {
            self.problems.add(
                row.at,
                format!(
                    "listener `{}`: `versions` must not be empty",
                    shown(&row.name.value)
                ),
            );
        }
        ListenerModel {
            name: row.name.value.clone(),
            address: self.address(row),
            upstream: self.upstream_of(row),
            versions: if row.versions.is_some() {
                versions
            } else {
                VersionSet::ALL
            },
            anonymous_group: row.anonymous_group.as_ref().map(|group| {
                self.known_group(group);
                group.value.clone()
            }),
            client_id_pattern: row
                .client_id_pattern
                .as_ref()
                .and_then(|pattern| self.pattern(pattern)),
            client_id_bytes_max: self.small(&row.client_id_bytes_max, "bytes_max", 1..=65_535, 256),
            upstream_auth_pass: matches!(
                &row.upstream_auth,
                Some(Located {
                    value: UpstreamAuth::Pass,
                    ..
                })
            ),
            drain_publishes_wills: !matches!(
                &row.drain_wills,
                Some(Located {
                    value: DrainWills::Suppress,
                    ..
                })
            ),
            limits: self.limits(&row.limits),
        }
    }

    fn address(&mut self, row: &ListenerRow) -> SocketAddr {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let Some(address) = &row.address else {
            self.missing(row.at, "listener", &row.name, "address");
            return nowhere;
        };
        address.value.parse().unwrap_or_else(|_| {
            self.problem(
                address,
                "expected an IP address with a port, such as `0.0.0.0:1883` or `[::]:1883`",
            );
            nowhere
        })
    }

    fn same_address_twice(&mut self, rows: &[ListenerRow], listeners: &[ListenerModel]) {
        let mut seen: HashMap<SocketAddr, &str> = HashMap::new();
        for (row, listener) in rows.iter().zip(listeners) {
            // Port 0 asks the system for a free one.
            if listener.address.port() == 0 {
                continue;
            }
            if let Some(first) = seen.insert(listener.address, &listener.name) {
                let at = row.address.as_ref().map_or(row.at, |address| address.at);
                self.problems.add(
                    at,
                    format!(
                        "the address {} belongs to listener `{}`",
                        listener.address,
                        shown(first)
                    ),
                );
            }
        }
    }

    fn upstream_of(&mut self, row: &ListenerRow) -> Box<str> {
        let Some(upstream) = &row.upstream else {
            self.missing(row.at, "listener", &row.name, "upstream");
            return Box::default();
        };
        if !self.upstreams.contains_key(&upstream.value) {
            self.problem(
                upstream,
                format!("there is no upstream `{}`", shown(&upstream.value)),
            );
        }
        upstream.value.clone()
    }

    fn limits(&mut self, row: &LimitsRow) -> Limits {
        const SECOND: Duration = Duration::from_secs(1);
        const U32_MAX: u64 = u32::MAX as u64;
        let default = Limits::default();
        let timeout = SECOND / 10..=3_600 * SECOND;
        let keep_alive_max = self.duration(
            &row.keep_alive_max,
            "keep_alive_max",
            SECOND..=65_535 * SECOND,
            SECOND * u32::from(default.keep_alive_secs_max),
        );
        if keep_alive_max.subsec_nanos() != 0
            && let Some(located) = &row.keep_alive_max
        {
            self.problem(located, "`keep_alive_max` must be whole seconds");
        }
        let limits = Limits {
            connections_max: self.small(
                &row.connections_max,
                "connections_max",
                1..=U32_MAX,
                default.connections_max,
            ),
            connections_per_address_max: self.small(
                &row.connections_per_address_max,
                "connections_per_address_max",
                1..=U32_MAX,
                default.connections_per_address_max,
            ),
            // 268,435,460: the longest packet MQTT can say, header included.
            packet_bytes_max: self.small(
                &row.packet_bytes_max,
                "packet_bytes_max",
                128..=268_435_460,
                default.packet_bytes_max,
            ),
            connect_bytes_max: self.small(
                &row.connect_bytes_max,
                "connect_bytes_max",
                128..=1 << 20,
                default.connect_bytes_max,
            ),
            topic_alias_max: self.small(
                &row.topic_alias_max,
                "topic_alias_max",
                0..=1_024,
                default.topic_alias_max,
            ),
            receive_max: self.small(
                &row.receive_max,
                "receive_max",
                1..=65_535,
                default.receive_max,
            ),
            keep_alive_secs_max: u16::try_from(keep_alive_max.as_secs()).unwrap_or(u16::MAX),
            connect_timeout: self.duration(
                &row.connect_timeout,
                "connect_timeout",
                timeout.clone(),
                default.connect_timeout,
            ),
            packet_timeout: self.duration(
                &row.packet_timeout,
                "packet_timeout",
                timeout.clone(),
                default.packet_timeout,
            ),
            write_stall_timeout: self.duration(
                &row.write_stall_timeout,
                "write_stall_timeout",
                timeout,
                default.write_stall_timeout,
            ),
            backlog_bytes_high: self.small(
                &row.backlog_bytes_high,
                "backlog_bytes_high",
                4_096..=1 << 30,
                default.backlog_bytes_high,
            ),
            backlog_bytes_low: self.small(
                &row.backlog_bytes_low,
                "backlog_bytes_low",
                0..=1 << 30,
                default.backlog_bytes_low,
            ),
            latency_budget: self.duration(
                &row.latency_budget,
                "latency_budget",
                Duration::ZERO..=SECOND / 10,
                default.latency_budget,
            ),
        };
        if limits.backlog_bytes_low >= limits.backlog_bytes_high {
            let at = row
                .backlog_bytes_low
                .as_ref()
                .or(row.backlog_bytes_high.as_ref());
            let at = at.map_or(Position::default(), |located| located.at);
            self.problems.add(
                at,
                format!(
                    "`backlog_bytes_low` ({}) must be less than `backlog_bytes_high` ({})",
                    limits.backlog_bytes_low, limits.backlog_bytes_high
                ),
            );
        }
        limits
    }

    // --- upstreams

    fn upstream(&mut self, row: &UpstreamRow) -> UpstreamModel {
        const MILLI: Duration = Duration::from_millis(1);
        let minute = 60_000 * MILLI;
        if row.endpoints.is_empty() || row.endpoints.len() > ENDPOINTS_MAX {
            self.problems.add(
                row.at,
                format!(
                    "upstream `{}`: from 1 to {ENDPOINTS_MAX} `endpoints`",
                    shown(&row.name.value)
                ),
            );
        }
        let mut endpoints = Vec::with_capacity(row.endpoints.len());
        for text in &row.endpoints {
            match endpoint(&text.value) {
                Ok(endpoint) if endpoints.contains(&endpoint) => {
                    self.problem(text, "the endpoint is there twice")
                }
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.problem(text, message),
            }
        }
        UpstreamModel {
            name: row.name.value.clone(),
            endpoints,
            balance: row
                .balance
                .as_ref()
                .map_or(Balance::ClientId, |located| located.value),
            dial_timeout: self.duration(
                &row.dial_timeout,
                "timeout",
                10 * MILLI..=minute,
                5_000 * MILLI,
            ),
            dial_attempts_max: self.small(&row.dial_attempts_max, "attempts_max", 1..=100, 3),
            dial_backoff: self.duration(&row.dial_backoff, "backoff", MILLI..=minute, 100 * MILLI),
            breaker_failures: self.small(&row.breaker_failures, "failures", 1..=1_000_000, 5),
            breaker_open: self.duration(
                &row.breaker_open,
                "open",
                10 * MILLI..=60 * minute,
                10_000 * MILLI,
            ),
            health_interval: row.health_interval.as_ref().map(|interval| {
                self.duration(
                    &Some(interval.clone()),
                    "interval",
                    100 * MILLI..=60 * minute,
                    minute,
                )
            }),
        }
    }

    // --- users and groups

    /// The groups of each user that group rows name.
    fn members(&mut self, groups: &[GroupRow]) -> HashMap<Box<str>, Vec<Box<str>>> {
        let mut members: HashMap<Box<str>, Vec<Box<str>>> = HashMap::new();
        for group in groups {
            for user in &group.users {
                if !self.users.contains_key(&user.value) {
                    self.problem(user, format!("there is no user `{}`", shown(&user.value)));
                }
                members
                    .entry(user.value.clone())
                    .or_default()
                    .push(group.name.value.clone());
            }
        }
        members
    }

    fn user(&mut self, row: UserRow, members: &HashMap<Box<str>, Vec<Box<str>>>) -> UserModel {
        let verifier = match &row.password_hash {
            Some(text) => Verifier::parse(&text.value).unwrap_or_else(|error| {
                self.problem(text, format!("user `{}`: {error}", shown(&row.name.value)));
                Verifier::dummy()
            }),
            None => {
                self.missing(row.at, "user", &row.name, "password_hash");
                Verifier::dummy()
            }
        };
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
            verifier,
            groups,
            client_id,
            enabled: row.enabled.is_none_or(|located| located.value),
        }
    }

    fn exact_client_id(&mut self, text: &Text, user: &str) -> Option<ClientIdBinding> {
        let value = text.value.replace("${username}", user);
        if value.contains("${") && !user.contains("${") {
            self.problem(
                text,
                "the only variable a `client_id` may use is `${username}`",
            );
        }
        if value.is_empty() || value.len() > MQTT_STRING_BYTES_MAX || value.contains('\0') {
            self.problem(text, "not a client id that a client could send");
        }
        Some(ClientIdBinding::Exactly(value.into()))
    }

    // --- rules

    fn rule(&mut self, row: RuleRow, position: usize, on_deny: OnDeny) -> RuleModel {
        let actions = self.actions(&row);
        let effect = match &row.decision {
            Some(decision) => decision.value,
            None => {
                self.missing(row.at, "rule", &row.name, "decision");
                Effect::Deny
            }
        };
        self.check_obligations(&row, actions, effect);
        if actions.needs_topics() && row.topics.is_empty() {
            self.missing(row.at, "rule", &row.name, "topics");
        }
        let mut topics = Vec::with_capacity(row.topics.len());
        for text in &row.topics {
            match TopicFilter::parse(&text.value) {
                Ok(filter) if topics.contains(&filter) => {
                    self.problem(text, "the filter is there twice")
                }
                Ok(filter) => topics.push(filter),
                Err(message) => self.problem(text, message),
            }
        }
        let qos_max = match row.qos_max.as_ref().map(|located| located.value) {
            Some(0) => QoS::AtMostOnce,
            Some(1) => QoS::AtLeastOnce,
            Some(_) | None => QoS::ExactlyOnce,
        };
        RuleModel {
            name: row.name.value,
            priority: row.priority.map_or(0, |located| located.value),
            order: row.order.map_or_else(
                || i64::try_from(position).unwrap_or(i64::MAX),
                |located| located.value,
            ),
            who: self.shared_who(row.at, row.who),
            actions,
            topics,
            effect,
            qos_max,
            qos_over: row
                .qos_over
                .map_or(QosOver::Downgrade, |located| located.value),
            retain: row.retain.map_or(Retain::Allow, |located| located.value),
            payload_bytes_max: row
                .payload_bytes_max
                .map(|located| u32::try_from(located.value).unwrap_or(u32::MAX)),
            on_deny: row.on_deny.map_or(on_deny, |located| located.value),
            mode: row.mode.map_or(Mode::Enforce, |located| located.value),
            enabled: row.enabled.is_none_or(|located| located.value),
        }
    }

    fn actions(&mut self, row: &RuleRow) -> ActionSet {
        let mut actions = ActionSet::default();
        for action in &row.actions {
            let bit = match action.value {
                Action::Connect => &mut actions.connect,
                Action::Publish => &mut actions.publish,
                Action::Subscribe => &mut actions.subscribe,
                Action::Receive => &mut actions.receive,
            };
            if std::mem::replace(bit, true) {
                self.problem(action, "the action is there twice");
            }
        }
        if row.actions.is_empty() {
            self.missing(row.at, "rule", &row.name, "actions");
        }
        actions
    }

    /// What a rule asks for must be able to happen.
    fn check_obligations(&mut self, row: &RuleRow, actions: ActionSet, effect: Effect) {
        if let Some(topic) = row.topics.first()
            && !actions.needs_topics()
        {
            self.problem(
                topic,
                "`topics` have no effect on a rule for `connect` alone",
            );
        }
        if let Some(qos_max) = &row.qos_max
            && qos_max.value > 2
        {
            self.problem(qos_max, "`qos_max` is 0, 1 or 2");
        }
        if let (Some(qos_over), true) = (
            &row.qos_over,
            row.qos_max.as_ref().is_none_or(|max| max.value >= 2),
        ) {
            self.problem(
                qos_over,
                "`qos_over` has no effect without a `qos_max` of 0 or 1",
            );
        }
        if let Some(max) = &row.payload_bytes_max
            && max.value > u64::from(u32::MAX)
        {
            self.problem(max, "`payload_bytes_max` is larger than any MQTT packet");
        }
        let settings = [
            ("qos_max", row.qos_max.as_ref().map(|located| located.at)),
            ("retain", row.retain.as_ref().map(|located| located.at)),
            (
                "payload_bytes_max",
                row.payload_bytes_max.as_ref().map(|located| located.at),
            ),
        ];
        for (key, at) in settings {
            let Some(at) = at else {
                continue;
            };
            if effect == Effect::Deny {
                self.problems
                    .add(at, format!("`{key}` has no effect on a rule that denies"));
            } else if !actions.needs_topics() {
                self.problems.add(
                    at,
                    format!("`{key}` has no effect on a rule for `connect` alone"),
                );
            }
        }
        let can_refuse = effect == Effect::Deny
            || row.payload_bytes_max.is_some()
            || row
                .retain
                .as_ref()
                .is_some_and(|retain| retain.value == Retain::Refuse)
            || row
                .qos_over
                .as_ref()
                .is_some_and(|over| over.value == QosOver::Refuse);
        if let Some(on_deny) = &row.on_deny
            && !(actions.publish && can_refuse)
        {
            self.problem(
                on_deny,
                "`on_deny` is about a refused publish, and this rule cannot refuse one",
            );
        }
    }

    fn shared_who(&mut self, at: Position, row: WhoRow) -> Arc<WhoPart> {
        let lists = [
            ("users", &row.users),
            ("user_patterns", &row.user_patterns),
            ("client_ids", &row.client_ids),
            ("client_id_patterns", &row.client_id_patterns),
            ("addresses", &row.addresses),
            ("groups", &row.groups),
            ("versions", &row.versions),
            ("listeners", &row.listeners),
        ];
        for (key, list) in lists {
            if list.as_ref().is_some_and(Vec::is_empty) {
                self.problems.add(
                    at,
                    format!("`{key}` of `who` must not be empty; leave it out to mean any"),
                );
            }
        }
        let who = Arc::new(self.who(row));
        if let Some(known) = self.who_parts.get(&who) {
            return Arc::clone(known);
        }
        self.who_parts.insert(Arc::clone(&who));
        who
    }

    fn who(&mut self, row: WhoRow) -> WhoPart {
        let patterns = row
            .user_patterns
            .iter()
            .chain(&row.client_id_patterns)
            .flatten();
        for text in patterns {
            self.pattern(text);
        }
        for group in row.groups.iter().flatten() {
            self.known_group(group);
        }
        for listener in row.listeners.iter().flatten() {
            if !self.listeners.contains_key(&listener.value) {
                self.problem(
                    listener,
                    format!("there is no listener `{}`", shown(&listener.value)),
                );
            }
        }
        let versions = row.versions.as_ref().map(|versions| {
            versions.iter().fold(VersionSet::default(), |set, version| {
                self.version(version, set)
            })
        });
        let addresses = row.addresses.as_ref().map(|addresses| {
            let mut blocks = Vec::with_capacity(addresses.len());
            for text in addresses {
                match Cidr::parse(&text.value) {
                    Ok(block) => blocks.push(block),
                    Err(message) => self.problem(text, message),
                }
            }
            blocks.sort();
            blocks.dedup();
            blocks.into_boxed_slice()
        });
        WhoPart {
            users: set(row.users),
            user_patterns: set(row.user_patterns),
            client_ids: set(row.client_ids),
            client_id_patterns: set(row.client_id_patterns),
            addresses,
            groups: set(row.groups),
            versions,
            listeners: set(row.listeners),
        }
    }

    // --- parts

    fn version(&mut self, text: &Text, set: VersionSet) -> VersionSet {
        match &*text.value {
            "3.1" => set.with(Version::V31),
            "3.1.1" => set.with(Version::V311),
            "5" | "5.0" => set.with(Version::V5),
            _ => {
                self.problem(text, "expected `3.1`, `3.1.1` or `5`");
                set
            }
        }
    }

    fn known_group(&mut self, group: &Text) {
        if !self.groups.contains_key(&group.value) {
            self.problem(
                group,
                format!("there is no group `{}`", shown(&group.value)),
            );
        }
    }

    fn pattern(&mut self, text: &Text) -> Option<Pattern> {
        if !self.patterns.contains_key(&text.value) {
            let compiled = self.compile_pattern(text);
            self.patterns.insert(text.value.clone(), compiled);
        }
        let regex = self.patterns.get(&text.value)?.clone()?;
        Some(Pattern::new(&text.value, regex))
    }

    fn compile_pattern(&mut self, text: &Text) -> Option<Regex> {
        if text.value.len() > PATTERN_BYTES_MAX {
            self.problem(
                text,
                format!("a pattern has at most {PATTERN_BYTES_MAX} bytes"),
            );
            return None;
        }
        if self.patterns.len() == PATTERNS_MAX {
            self.problem(
                text,
                format!("more than {PATTERNS_MAX} different patterns in the document"),
            );
        }
        if self.patterns.len() >= PATTERNS_MAX {
            return None;
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
                self.problem(text, format!("not a regular expression: {last_line}"));
            })
            .ok()
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
                    format!("`{key}` must be from {} to {}", range.start(), range.end()),
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
        self.problem(located, format!("`{key}` must be from {start} to {end}"));
        default
    }

    fn missing(&mut self, at: Position, kind: &str, name: &Text, key: &str) {
        self.problems.add(
            at,
            format!("{kind} `{}`: `{key}` is missing", shown(&name.value)),
        );
    }

    fn problem<T>(&mut self, located: &Located<T>, message: impl Into<String>) {
        self.problems.add(located.at, message);
    }
}

/// The expression as it is used: the whole value must match.
pub(crate) fn anchored(pattern: &str) -> String {
    format!(r"\A(?:{pattern})\z")
}

fn build(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern)
        .size_limit(PATTERN_COMPILED_BYTES_MAX)
        .build()
}

fn set(values: Option<Vec<Text>>) -> Option<Box<[Box<str>]>> {
    values.map(|values| {
        let mut values: Vec<Box<str>> = values.into_iter().map(|text| text.value).collect();
        values.sort();
        values.dedup();
        values.into()
    })
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    const WANTED: &str = "expected `tcp://host:port` or `unix:///path`";
    if let Some(path) = text.strip_prefix("unix://") {
        if !path.starts_with('/') || path.len() > UNIX_PATH_BYTES_MAX || path.contains('\0') {
            return Err(format!(
                "expected `unix://` and an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes"
            ));
        }
        return Ok(Endpoint::Unix { path: path.into() });
    }
    let rest = text.strip_prefix("tcp://").ok_or(WANTED)?;
    let (host, port) = rest.rsplit_once(':').ok_or(WANTED)?;
    let port: u16 = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or("the port must be from 1 to 65535")?;
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(v6) => {
            v6.parse::<std::net::Ipv6Addr>()
                .map_err(|_| "expected an IPv6 address in the brackets")?;
            v6
        }
        None => host,
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok() && rest.starts_with('[');
    if host.is_empty() || host.len() > 253 || !(is_v6 || host.chars().all(is_host)) {
        return Err(WANTED.into());
    }
    Ok(Endpoint::Tcp {
        host: host.into(),
        port,
    })
}
