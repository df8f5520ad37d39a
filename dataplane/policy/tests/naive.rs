//! The compiled tables against a naive interpreter that reads the same rows and judges rule by rule.
//!
//! The interpreter shares no code with the crate: it has its own rows, its own matching of topics and its own idea of a
//! subscription, which is to list every topic over a small alphabet that the filter can deliver and to ask about each.
//! The alphabet has a value that no rule names, because level values are unbounded, and values beginning with `$`.
#![allow(clippy::unwrap_used)] // tests fail by panicking

use std::fmt::Write as _;
use std::net::IpAddr;

use proptest::prelude::*;
use sluice_policy::{
    Action, Classes, Decision, Denial, Effort, Generation, OnDeny, Refusal, Request, Snapshot,
    Vars, Verdict, Who, compile,
};
use sluice_wire::mqtt::{QoS, Version};

// --- rows

#[derive(Clone, Debug)]
struct Row {
    priority: i64,
    order: Option<i64>,
    who: WhoRow,
    connect: bool,
    publish: bool,
    subscribe: bool,
    receive: bool,
    topics: Vec<String>,
    allow: bool,
    qos_max: Option<u8>,
    qos_refuse: bool,
    narrow: Option<bool>,
    retain: usize,
    payload_bytes_max: Option<u32>,
    close: bool,
    shadow: bool,
    enabled: bool,
}

/// What stands at the top of a document.
#[derive(Clone, Copy, Debug)]
struct Settings {
    default_allow: bool,
    close: bool,
    narrow: bool,
}

#[derive(Clone, Debug, Default)]
struct WhoRow {
    users: Option<Vec<usize>>,
    user_patterns: Option<Vec<usize>>,
    client_ids: Option<Vec<usize>>,
    client_id_patterns: Option<Vec<usize>>,
    addresses: Option<Vec<usize>>,
    groups: Option<Vec<usize>>,
    versions: Option<Vec<usize>>,
    listeners: Option<Vec<usize>>,
}

const USERS: [&str; 4] = ["a", "u2", "$s", "off"];
const GROUPS: [&str; 3] = ["g1", "g2", "guests"];
/// The groups of each user.
const MEMBERS: [&[usize]; 4] = [&[0], &[0, 1], &[], &[1]];
const CLIENT_IDS: [&str; 7] = ["b", "c1", "a/b", "", "$s", "+", "a-client-with-a-long-name"];
const LISTENERS: [&str; 2] = ["open", "closed"];
const VERSIONS: [(&str, Version); 3] = [
    ("3.1", Version::V31),
    ("3.1.1", Version::V311),
    ("5", Version::V5),
];
const RETAIN: [&str; 3] = ["allow", "strip", "refuse"];

/// What a pattern means.
type Means = fn(&str) -> bool;
/// Patterns with their meanings.
const PATTERNS: [(&str, Means); 4] = [
    ("u", |_| false),
    (".*", |value| !value.contains('\n')),
    ("[a-c].?", |value| {
        let mut chars = value.chars();
        chars.next().is_some_and(|c| ('a'..='c').contains(&c)) && chars.count() <= 1
    }),
    ("a|u2|c1", |value| ["a", "u2", "c1"].contains(&value)),
];

/// Blocks, and the addresses of [`ADDRESSES`] in each.
const BLOCKS: [(&str, [bool; 4]); 5] = [
    ("10.0.0.0/8", [true, true, false, false]),
    ("10.1.0.0/16", [false, true, false, false]),
    ("0.0.0.0/0", [true, true, false, true]),
    ("2001:db8::/32", [false, false, true, false]),
    ("10.0.0.1", [true, false, false, false]),
];
const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.1.2.3", "2001:db8::1", "::ffff:192.0.2.1"];

// --- the document

fn document(rows: &[Row], settings: Settings) -> String {
    let mut out = String::new();
    let word = if settings.default_allow {
        "allow"
    } else {
        "deny"
    };
    let on_deny = if settings.close { "close" } else { "drop" };
    let _ = writeln!(out, "default: {word}\non_deny: {on_deny}");
    let _ = writeln!(out, "narrow: {}", settings.narrow);
    out.push_str(
        "upstreams: [{name: up, endpoints: [tcp://127.0.0.1:1]}]\n\
         listeners:\n- {name: open, address: 127.0.0.1:0, upstream: up, anonymous: {group: guests}}\n\
         - {name: closed, address: 127.0.0.1:0, upstream: up, versions: [3.1.1, 5], client_id: {pattern: '[^+]*', bytes_max: 20}}\n\
         groups: [{name: g1, users: [a]}, {name: g2}, {name: guests}]\nusers:\n",
    );
    for (index, name) in USERS.iter().enumerate() {
        let groups: Vec<&str> = MEMBERS[index]
            .iter()
            .filter(|group| index != 0 || **group != 0)
            .map(|group| GROUPS[*group])
            .collect();
        let hash = "$7$1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
        let binding = if *name == "u2" {
            ", client_id_pattern: 'c1|a.*'"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "- {{name: \"{name}\", password_hash: \"{hash}\", groups: [{}], enabled: {}{binding}}}",
            groups.join(", "),
            *name != "off",
        );
    }
    out.push_str("rules:\n");
    for (index, row) in rows.iter().enumerate() {
        let _ = writeln!(out, "- name: r{index}");
        write_rule(&mut out, row);
    }
    out
}

fn write_rule(out: &mut String, row: &Row) {
    let quoted = |texts: Vec<&str>| {
        texts
            .into_iter()
            .map(|text| format!("'{text}'"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let pick = |list: &Option<Vec<usize>>, names: &[&str]| {
        list.as_ref()
            .map(|list| quoted(list.iter().map(|index| names[*index]).collect()))
    };
    let _ = writeln!(out, "  priority: {}", row.priority);
    if let Some(order) = row.order {
        let _ = writeln!(out, "  order: {order}");
    }
    let patterns: Vec<&str> = PATTERNS.iter().map(|(text, _)| *text).collect();
    let blocks: Vec<&str> = BLOCKS.iter().map(|(text, _)| *text).collect();
    let versions: Vec<&str> = VERSIONS.iter().map(|(text, _)| *text).collect();
    let kinds = [
        ("users", pick(&row.who.users, &USERS)),
        ("user_patterns", pick(&row.who.user_patterns, &patterns)),
        ("client_ids", pick(&row.who.client_ids, &CLIENT_IDS)),
        (
            "client_id_patterns",
            pick(&row.who.client_id_patterns, &patterns),
        ),
        ("addresses", pick(&row.who.addresses, &blocks)),
        ("groups", pick(&row.who.groups, &GROUPS)),
        ("versions", pick(&row.who.versions, &versions)),
        ("listeners", pick(&row.who.listeners, &LISTENERS)),
    ];
    if kinds.iter().any(|(_, list)| list.is_some()) {
        out.push_str("  who:\n");
        for (key, list) in kinds {
            if let Some(list) = list {
                let _ = writeln!(out, "    {key}: [{list}]");
            }
        }
    }
    let actions = [
        (row.connect, "connect"),
        (row.publish, "publish"),
        (row.subscribe, "subscribe"),
        (row.receive, "receive"),
    ];
    let actions: Vec<&str> = actions
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| *name)
        .collect();
    let _ = writeln!(out, "  actions: [{}]", actions.join(", "));
    let _ = writeln!(
        out,
        "  decision: {}",
        if row.allow { "allow" } else { "deny" }
    );
    if row.has_topics() {
        let _ = writeln!(
            out,
            "  topics: [{}]",
            quoted(row.topics.iter().map(String::as_str).collect())
        );
    }
    if let Some(qos_max) = row.qos_max() {
        let _ = writeln!(out, "  qos_max: {qos_max}");
        if row.qos_refuse() {
            out.push_str("  qos_over: refuse\n");
        }
    }
    if let Some(narrow) = row.narrow() {
        let _ = writeln!(out, "  narrow: {narrow}");
    }
    if row.has_obligations() {
        let _ = writeln!(out, "  retain: {}", RETAIN[row.retain]);
    }
    if let Some(max) = row.payload_bytes_max() {
        let _ = writeln!(out, "  payload_bytes_max: {max}");
    }
    if row.names_on_deny() {
        let _ = writeln!(
            out,
            "  on_deny: {}",
            if row.close { "close" } else { "drop" }
        );
    }
    let _ = writeln!(
        out,
        "  mode: {}\n  enabled: {}",
        if row.shadow { "shadow" } else { "enforce" },
        row.enabled
    );
}

/// A generated row may say more than its document: settings that could not have an effect are refused there.
impl Row {
    fn has_topics(&self) -> bool {
        self.publish || self.subscribe || self.receive
    }

    fn has_obligations(&self) -> bool {
        self.allow && self.has_topics()
    }

    fn qos_max(&self) -> Option<u8> {
        self.qos_max.filter(|_| self.has_obligations())
    }

    fn qos_refuse(&self) -> bool {
        self.qos_refuse && self.qos_max().is_some_and(|max| max < 2)
    }

    fn narrow(&self) -> Option<bool> {
        self.narrow.filter(|_| self.allow && self.subscribe)
    }

    fn retain(&self) -> &'static str {
        if self.has_obligations() {
            RETAIN[self.retain]
        } else {
            "allow"
        }
    }

    fn payload_bytes_max(&self) -> Option<u32> {
        self.payload_bytes_max.filter(|_| self.has_obligations())
    }

    fn names_on_deny(&self) -> bool {
        let can_refuse = !self.allow
            || self.retain() == "refuse"
            || self.payload_bytes_max().is_some()
            || self.qos_refuse();
        self.publish && can_refuse
    }
}

// --- the interpreter

#[derive(Clone, Debug)]
struct Session {
    user: Option<usize>,
    client_id: usize,
    address: usize,
    version: usize,
    listener: usize,
}

/// Places of rows with their filters.
type Rules = Vec<(usize, Vec<String>)>;

struct Oracle<'r> {
    rows: &'r [Row],
    /// Places of the rows in the order of decision.
    ranked: Vec<usize>,
    settings: Settings,
}

/// What the interpreter says to a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subscribed {
    denial: Option<Denial>,
    qos_max: QoS,
    is_narrowed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Connect,
    Publish,
    Receive,
    Subscribe,
}

impl<'r> Oracle<'r> {
    fn new(rows: &'r [Row], settings: Settings) -> Self {
        let mut ranked: Vec<usize> = (0..rows.len()).collect();
        ranked.sort_by_key(|index| {
            (
                -rows[*index].priority,
                rows[*index].order.unwrap_or(*index as i64),
            )
        });
        Self {
            rows,
            ranked,
            settings,
        }
    }

    /// The rules that match the session, in the order of decision, with the variables in their filters filled in.
    fn rules(&self, session: &Session) -> Rules {
        let groups: Vec<usize> = session.user.map_or(vec![2], |user| MEMBERS[user].to_vec());
        let client_id = CLIENT_IDS[session.client_id];
        let any = |list: &Option<Vec<usize>>, test: &dyn Fn(usize) -> bool| {
            list.as_ref()
                .is_none_or(|list| list.iter().any(|index| test(*index)))
        };
        let matches = |row: &Row| {
            let who = &row.who;
            row.enabled
                && any(&who.users, &|index| session.user == Some(index))
                && any(&who.user_patterns, &|index| {
                    session
                        .user
                        .is_some_and(|user| PATTERNS[index].1(USERS[user]))
                })
                && any(&who.client_ids, &|index| session.client_id == index)
                && any(&who.client_id_patterns, &|index| {
                    PATTERNS[index].1(client_id)
                })
                && any(&who.addresses, &|index| BLOCKS[index].1[session.address])
                && any(&who.groups, &|index| groups.contains(&index))
                && any(&who.versions, &|index| session.version == index)
                && any(&who.listeners, &|index| session.listener == index)
        };
        let filters = |index: usize| {
            self.rows[index]
                .topics
                .iter()
                .map(|filter| filled_in(filter, session))
                .collect()
        };
        self.ranked
            .iter()
            .filter(|index| matches(&self.rows[**index]))
            .map(|index| (*index, filters(*index)))
            .collect()
    }

    fn applies(row: &Row, asks: Asks) -> bool {
        match asks {
            Asks::Connect => row.connect,
            Asks::Publish => row.publish,
            Asks::Receive => row.receive || row.subscribe,
            Asks::Subscribe => row.subscribe,
        }
    }

    /// The rule that decides about one topic.
    fn first(&self, rules: &Rules, asks: Asks, topic: &str, with_shadow: bool) -> Option<usize> {
        let found = rules.iter().find(|(index, filters)| {
            let row = &self.rows[*index];
            Self::applies(row, asks)
                && (with_shadow || !row.shadow)
                && (asks == Asks::Connect || filters.iter().any(|filter| matches(filter, topic)))
        });
        found.map(|(index, _)| *index)
    }

    fn allows(&self, rule: Option<usize>) -> bool {
        rule.map_or(self.settings.default_allow, |index| self.rows[index].allow)
    }

    fn narrows(&self, rule: Option<usize>) -> bool {
        let narrow = rule.and_then(|index| self.rows[index].narrow);
        self.allows(rule) && narrow.unwrap_or(self.settings.narrow)
    }

    fn admit(&self, session: &Session) -> Result<(Rules, Option<usize>, Option<usize>), Refusal> {
        let client_id = CLIENT_IDS[session.client_id];
        let is_closed = session.listener == 1;
        if is_closed && session.version == 0 {
            return Err(Refusal::Version);
        }
        if session.user.map_or(is_closed, |user| USERS[user] == "off") {
            return Err(Refusal::Credentials);
        }
        if is_closed && (client_id.contains('+') || client_id.len() > 20) {
            return Err(Refusal::ClientIdentifier);
        }
        if session.user == Some(1) && !(client_id == "c1" || client_id.starts_with('a')) {
            return Err(Refusal::ClientIdentifier);
        }
        let rules = self.rules(session);
        for filter in rules
            .iter()
            .map(|(index, _)| &self.rows[*index])
            .filter(|row| row.has_topics())
            .flat_map(|row| &row.topics)
        {
            for (place, level) in filter.split('/').enumerate() {
                let value = match level {
                    "${client_id}" => client_id,
                    "${username}" => session.user.map_or("", |user| USERS[user]),
                    _ => continue,
                };
                if value.is_empty()
                    || value.contains(['/', '+', '#', '\0'])
                    || (place == 0 && value.starts_with('$'))
                {
                    return Err(Refusal::ClientIdentifier);
                }
            }
        }
        let decided = self.first(&rules, Asks::Connect, "", false);
        if !self.allows(decided) {
            return Err(Refusal::NotAuthorized);
        }
        let shadow = self
            .first(&rules, Asks::Connect, "", true)
            .filter(|index| self.rows[*index].shadow && !self.rows[*index].allow);
        Ok((rules, decided, shadow))
    }

    fn verdict(
        &self,
        rules: &Rules,
        asks: Asks,
        request: &Request<'_>,
    ) -> (Verdict, Option<usize>, [Option<usize>; 2]) {
        let decided = self.first(rules, asks, request.topic, false);
        let mut verdict = self.judge(decided, request);
        let first = self
            .first(rules, asks, request.topic, true)
            .filter(|index| self.rows[*index].shadow);
        let shadow = first.filter(|index| {
            let other = self.judge(Some(*index), request);
            other.decision != verdict.decision
                || other.qos_max.min(request.qos) != verdict.qos_max.min(request.qos)
                || other.strip_retain != verdict.strip_retain
        });
        verdict.shadow = None;
        (verdict, decided, [first, shadow])
    }

    fn judge(&self, decided: Option<usize>, request: &Request<'_>) -> Verdict {
        let mut verdict = Verdict {
            decision: Decision::Allow,
            rule: None,
            qos_max: QoS::ExactlyOnce,
            strip_retain: false,
            is_narrowed: false,
            on_deny: if self.settings.close {
                OnDeny::Close
            } else {
                OnDeny::Drop
            },
            shadow: None,
            shadow_first: None,
        };
        if !self.allows(decided) {
            verdict.decision = Decision::Deny(Denial::NotAuthorized);
        }
        let Some(row) = decided.map(|index| &self.rows[index]) else {
            return verdict;
        };
        if row.names_on_deny() {
            verdict.on_deny = if row.close {
                OnDeny::Close
            } else {
                OnDeny::Drop
            };
        }
        verdict.qos_max = qos(row.qos_max().unwrap_or(2));
        if row.allow {
            if row
                .payload_bytes_max()
                .is_some_and(|max| request.payload_bytes > max)
            {
                verdict.decision = Decision::Deny(Denial::PayloadTooLarge);
            } else if request.retain && row.retain() == "refuse" {
                verdict.decision = Decision::Deny(Denial::RetainRefused);
            } else if request.qos > verdict.qos_max && row.qos_refuse() {
                verdict.decision = Decision::Deny(Denial::QosRefused);
            } else {
                verdict.strip_retain = request.retain && row.retain() == "strip";
            }
        }
        verdict
    }

    /// Granted exactly when no topic that the filter can deliver is denied, whether asked as a subscription or as a
    /// delivery; with the highest QoS of the allows that cover the filter as such. Else narrowed, unless it is shared, exactly
    /// when the rule that decides about subscribing to some topic narrows, that may be delivered, and all of the topic is
    /// fresh where neither the filter nor one of the rule's names a value.
    fn subscribe(
        &self,
        rules: &Rules,
        filter: &str,
        asked: QoS,
        is_shared: bool,
        with_shadow: bool,
    ) -> Subscribed {
        let all = rules.iter().flat_map(|(_, filters)| filters);
        let deepest = all
            .map(String::as_str)
            .chain([filter])
            .map(|text| text.trim_end_matches('#').split('/').count())
            .max();
        let mut values: Vec<String> = vec!["fresh".into(), "$fresh".into()];
        let texts = rules
            .iter()
            .flat_map(|(_, filters)| filters.clone())
            .chain([filter.to_owned()]);
        for text in texts {
            values.extend(
                text.split('/')
                    .filter(|level| !["+", "#"].contains(level))
                    .map(str::to_owned),
            );
        }
        values.sort();
        values.dedup();
        let mut is_granted = true;
        let mut topics = Vec::new();
        every_topic(
            &values,
            filter,
            deepest.unwrap_or(0) + 1,
            &mut Vec::new(),
            &mut topics,
        );
        for topic in &topics {
            assert!(matches(filter, topic), "{filter} {topic}");
            for asks in [Asks::Subscribe, Asks::Receive] {
                is_granted &= self.allows(self.first(rules, asks, topic, with_shadow));
            }
        }
        let is_witness = |topic: &String| {
            let first = self.first(rules, Asks::Subscribe, topic, with_shadow);
            let is_fresh_for_it = || match rules.iter().find(|(index, _)| Some(*index) == first) {
                Some((_, filters)) => filters
                    .iter()
                    .any(|own| matches(own, topic) && is_fresh(&[filter, own], topic)),
                None => is_fresh(&[filter], topic),
            };
            self.narrows(first)
                && is_fresh_for_it()
                && self.allows(self.first(rules, Asks::Receive, topic, with_shadow))
        };
        let is_narrowed = !is_granted && !is_shared && topics.iter().any(is_witness);
        let refused = |denial| Subscribed {
            denial: Some(denial),
            qos_max: QoS::ExactlyOnce,
            is_narrowed: false,
        };
        if !is_granted && !is_narrowed {
            return refused(Denial::NotAuthorized);
        }
        // A topic of fresh values is decided by the rules that cover the filter itself.
        let mut qos_max = QoS::ExactlyOnce;
        let mut is_refused = false;
        for topic in topics.iter().filter(|topic| is_fresh(&[filter], topic)) {
            for asks in [Asks::Subscribe, Asks::Receive] {
                let first = self.first(rules, asks, topic, with_shadow);
                if let Some(index) = first.filter(|_| self.allows(first)) {
                    let row = &self.rows[index];
                    let max = qos(row.qos_max().unwrap_or(2));
                    qos_max = qos_max.min(max);
                    is_refused |= asked > max && row.qos_refuse();
                }
            }
        }
        if is_refused {
            return refused(Denial::QosRefused);
        }
        Subscribed {
            denial: None,
            qos_max,
            is_narrowed,
        }
    }
}

fn filled_in(filter: &str, session: &Session) -> String {
    filter
        .replace("${client_id}", CLIENT_IDS[session.client_id])
        .replace("${username}", session.user.map_or("", |user| USERS[user]))
}

/// MQTT 5 section 4.7, as plainly as it can be written.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(level), Some(value)) if level == value => {}
            // `a/#` matches `a`.
            (Some(level), None) => return level == "#" && filter.next().is_none(),
            (Some(_) | None, Some(_)) => return false,
        }
    }
}

/// Every topic over the values that the filter matches, up to a depth.
fn every_topic(
    values: &[String],
    filter: &str,
    depth: usize,
    path: &mut Vec<String>,
    out: &mut Vec<String>,
) {
    let levels: Vec<&str> = filter.split('/').collect();
    let topic = path.join("/");
    // One empty level alone is no topic.
    if !topic.is_empty() && matches(filter, &topic) {
        out.push(topic);
    }
    if path.len() == depth {
        return;
    }
    let Some(here) = levels
        .get(path.len())
        .copied()
        .or(filter.ends_with('#').then_some("#"))
    else {
        return;
    };
    for value in values {
        if here == "#" || here == "+" || here == value {
            path.push(value.clone());
            every_topic(values, filter, depth, path, out);
            path.pop();
        }
    }
}

/// True exactly when the value of each level that none of the filters, all of which match the topic, names is fresh.
fn is_fresh(filters: &[&str], topic: &str) -> bool {
    let names = |filter: &str, index: usize| {
        let level = filter.split('/').nth(index);
        level.is_some_and(|level| !["+", "#"].contains(&level))
    };
    topic
        .split('/')
        .enumerate()
        .all(|(index, value)| value == "fresh" || filters.iter().any(|filter| names(filter, index)))
}

fn qos(value: u8) -> QoS {
    match value {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

// --- what is generated

fn level() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b"]),
        3 => Just("+"),
        1 => prop::sample::select(vec!["", "$s", "c1", "a-level-of-many-bytes"]),
        1 => prop::sample::select(vec!["${client_id}", "${username}"]),
    ]
}

fn rule_filter() -> impl Strategy<Value = String> {
    (prop::collection::vec(level(), 0..4), any::<bool>()).prop_filter_map(
        "a filter",
        |(mut levels, is_multi)| {
            if is_multi {
                levels.push("#");
            }
            let text = levels.join("/");
            (!text.is_empty()).then_some(text)
        },
    )
}

fn filter() -> impl Strategy<Value = String> {
    rule_filter().prop_map(|text| {
        text.replace("${client_id}", "c1")
            .replace("${username}", "a")
    })
}

fn topic() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec![
        "a",
        "b",
        "c1",
        "",
        "$s",
        "u2",
        "a-level-of-many-bytes",
        "a-level-of-many-bytez",
        "x",
    ]);
    prop::collection::vec(level, 1..6)
        .prop_map(|levels| levels.join("/"))
        .prop_filter("a topic", |topic| !topic.is_empty())
}

fn some_of(count: usize) -> impl Strategy<Value = Option<Vec<usize>>> {
    prop_oneof![
        4 => Just(None),
        1 => prop::sample::subsequence((0..count).collect::<Vec<_>>(), 1..=count).prop_map(Some),
    ]
}

fn who() -> impl Strategy<Value = WhoRow> {
    (
        some_of(USERS.len()),
        some_of(PATTERNS.len()),
        some_of(CLIENT_IDS.len()),
        some_of(PATTERNS.len()),
        some_of(BLOCKS.len()),
        some_of(GROUPS.len()),
        some_of(VERSIONS.len()),
        some_of(LISTENERS.len()),
    )
        .prop_map(
            |(
                users,
                user_patterns,
                client_ids,
                client_id_patterns,
                addresses,
                groups,
                versions,
                listeners,
            )| WhoRow {
                users,
                user_patterns,
                client_ids,
                client_id_patterns,
                addresses,
                groups,
                versions,
                listeners,
            },
        )
}

fn row() -> impl Strategy<Value = Row> {
    let actions = prop_oneof![
        Just([true, false, false, false]),
        Just([false, true, false, false]),
        Just([false, false, true, false]),
        Just([false, false, false, true]),
        Just([false, true, true, false]),
        Just([true, true, true, true]),
    ];
    let topics =
        prop::collection::btree_set(rule_filter(), 1..4).prop_map(|set| set.into_iter().collect());
    let place = (
        -1_i64..2,
        prop::option::weighted(0.2, 0_i64..4),
        prop_oneof![1 => who(), 1 => Just(WhoRow::default())],
    );
    let obligations = (
        prop::option::weighted(0.3, 0_u8..3),
        any::<bool>(),
        prop_oneof![3 => Just(0_usize), 1 => Just(1), 1 => Just(2)],
        prop::option::weighted(0.2, 0_u32..20),
        any::<bool>(),
        prop::option::weighted(0.5, any::<bool>()),
    );
    let switches = (
        prop::bool::weighted(0.6),
        prop::bool::weighted(0.15),
        prop::bool::weighted(0.9),
    );
    (place, actions, topics, obligations, switches).prop_map(
        |(
            (priority, order, who),
            [connect, publish, subscribe, receive],
            topics,
            (qos_max, qos_refuse, retain, payload_bytes_max, close, narrow),
            (allow, shadow, enabled),
        )| Row {
            priority,
            order,
            who,
            connect,
            publish,
            subscribe,
            receive,
            topics,
            allow,
            qos_max,
            qos_refuse,
            narrow,
            retain,
            payload_bytes_max,
            close,
            shadow,
            enabled,
        },
    )
}

fn session() -> impl Strategy<Value = Session> {
    (
        prop::option::weighted(0.8, 0..USERS.len()),
        0..CLIENT_IDS.len(),
        0..ADDRESSES.len(),
        0..VERSIONS.len(),
        prop_oneof![3 => Just(0_usize), 1 => Just(1)],
    )
        .prop_map(|(user, client_id, address, version, listener)| Session {
            user,
            client_id,
            address,
            version,
            listener,
        })
}

// --- the comparison

fn compiled(rows: &[Row], settings: Settings) -> Snapshot {
    let text = document(rows, settings);
    compile(&text, "generated.yaml", Generation(1), None)
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// As it is found in shares of so many nodes, one after the other.
fn admit(
    snapshot: &Snapshot,
    session: &Session,
    slice: u32,
) -> Result<(Classes, Option<String>, Option<String>), Refusal> {
    let name = |rule| snapshot.rule_name(rule).to_owned();
    let address: IpAddr = ADDRESSES[session.address].parse().unwrap();
    let who = Who {
        listener: snapshot
            .listener_by_name(LISTENERS[session.listener])
            .unwrap()
            .id,
        address,
        version: VERSIONS[session.version].1,
        client_id: CLIENT_IDS[session.client_id],
        username: session.user.map(|user| USERS[user]),
    };
    let mut half = None;
    let admitted = loop {
        let mut effort = Effort::new(slice);
        if let Some(admitted) = snapshot.admit_within(&who, &mut effort, &mut half) {
            break admitted;
        }
        assert!(effort.is_used_up() && half.is_some());
    };
    assert!(half.is_none());
    let admission = admitted.map_err(|refused| refused.refusal)?;
    Ok((
        admission.classes,
        admission.rule.map(name),
        admission.shadow.map(name),
    ))
}

fn vars(session: &Session) -> Vars<'static> {
    Vars {
        client_id: CLIENT_IDS[session.client_id],
        username: session.user.map_or("", |user| USERS[user]),
    }
}

/// The same verdict, found by going on again and again.
fn subscribe_in_slices(
    snapshot: &Snapshot,
    classes: &Classes,
    session: &Session,
    filter: &str,
    (qos, shared): (QoS, bool),
    slice: u32,
) -> Verdict {
    let mut half = None;
    loop {
        let mut effort = Effort::new(slice);
        let vars = vars(session);
        if let Some(verdict) =
            snapshot.subscribe_within(classes, &vars, filter, qos, shared, &mut effort, &mut half)
        {
            assert!(half.is_none());
            return verdict;
        }
        assert!(effort.is_used_up() && half.is_some());
    }
}

fn named(rule: Option<usize>) -> Option<String> {
    rule.map(|index| format!("r{index}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn compiled_answers_are_the_naive_ones(
        rows in prop::collection::vec(row(), 0..14),
        (default_allow, close, narrow) in any::<(bool, bool, bool)>(),
        sessions in prop::collection::vec(session(), 6),
        topics in prop::collection::vec(topic(), 12),
        filters in prop::collection::vec(filter(), 4),
        (asked_qos, retain, payload_bytes, shared) in (0_u8..3, any::<bool>(), 0_u32..25, prop::bool::weighted(0.2)),
        slice in 1_u32..30,
    ) {
        let settings = Settings { default_allow, close, narrow };
        let snapshot = compiled(&rows, settings);
        let oracle = Oracle::new(&rows, settings);
        let name = |rule| snapshot.rule_name(rule).to_owned();
        for session in &sessions {
            let expected = oracle.admit(session);
            let found = admit(&snapshot, session, u32::MAX);
            prop_assert_eq!(&admit(&snapshot, session, slice), &found, "{:?} {} nodes at a time", session, slice);
            prop_assert_eq!(
                found.as_ref().map(|(_, rule, shadow)| (rule.clone(), shadow.clone())).map_err(|refusal| *refusal),
                expected.as_ref().map(|(_, rule, shadow)| (named(*rule), named(*shadow))).map_err(|refusal| *refusal),
                "{:?}", session
            );
            let (Ok((classes, _, _)), Ok((rules, _, _))) = (found, expected) else {
                continue;
            };
            for topic in &topics {
                for (action, asks) in [(Action::Publish, Asks::Publish), (Action::Receive, Asks::Receive)] {
                    let request = Request { action, topic, qos: qos(asked_qos), retain, payload_bytes };
                    let found = snapshot.verdict(&classes, &vars(session), &request);
                    let (expected, rule, [first, shadow]) = oracle.verdict(&rules, asks, &request);
                    prop_assert_eq!(found.rule.map(name), named(rule), "{:?} {:?}", session, request);
                    prop_assert_eq!(found.shadow.map(name), named(shadow), "{:?} {:?}", session, request);
                    prop_assert_eq!(found.shadow_first.map(name), named(first), "{:?} {:?}", session, request);
                    let bare = Verdict { rule: None, shadow: None, shadow_first: None, ..found };
                    prop_assert_eq!(bare, expected, "{:?} {:?}", session, request);
                }
            }
            for filter in &filters {
                let qos = qos(asked_qos);
                let found = snapshot.subscribe(&classes, &vars(session), filter, qos, shared);
                let expected = oracle.subscribe(&rules, filter, qos, shared, false);
                prop_assert_eq!(found.decision, expected.denial.map_or(Decision::Allow, Decision::Deny), "{:?} {} {:?}", session, filter, found);
                prop_assert_eq!(found.qos_max, expected.qos_max, "{:?} {}", session, filter);
                prop_assert_eq!(found.is_narrowed, expected.is_narrowed, "{:?} {}", session, filter);
                let with_shadow = oracle.subscribe(&rules, filter, qos, shared, true);
                let what = |it: Subscribed| (it.denial, it.qos_max.min(qos), it.is_narrowed);
                prop_assert_eq!(found.shadow.is_some(), what(with_shadow) != what(expected), "{:?} {}", session, filter);
                prop_assert!(found.shadow.is_none() || found.shadow == found.shadow_first, "{:?} {}", session, filter);
                let in_slices = subscribe_in_slices(&snapshot, &classes, session, filter, (qos, shared), slice);
                prop_assert_eq!(in_slices, found, "{:?} {} {} nodes at a time", session, filter, slice);
            }
        }
    }
}
