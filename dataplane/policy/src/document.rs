//! YAML text to [`Rows`]: which keys exist and what kind of value each takes.
//!
//! An unknown key, a key written twice and a value of the wrong kind are problems; reading goes on after each, so that
//! all of them are reported at once. Whether names, patterns, numbers and references make sense is asked in `validate`.

use std::collections::HashMap;
use std::time::Duration;

use crate::problem::{Errors, Position, Problems};
use crate::rows::{
    DrainWills, GroupRow, LimitsRow, ListenerRow, Located, Mode, QosOver, Retain, Rows, RuleRow,
    Text, UpstreamAuth, UpstreamRow, UserRow, Usernames, WhoRow,
};
pub(crate) use crate::wording::shown;
use crate::wording::{nearest, quoted, suggestion};
use crate::yaml::{DOCUMENT_BYTES_MAX, Key, Node, Reader, Stopped, Top, Value};
use crate::{Action, Balance, Cancel, Effect, OnDeny, ReasonStrings, encoding, units};

/// Reads a document. `file` is only for the messages.
pub fn parse(document: &str, file: &str) -> Result<Rows, Errors> {
    parse_noted(document, file, Problems::default())
}

/// The same; an error as well when the flag is set before it is done.
pub fn parse_until(document: &str, file: &str, cancel: &Cancel) -> Result<Rows, Errors> {
    parse_noted(document, file, Problems::until(cancel))
}

fn parse_noted(document: &str, file: &str, mut problems: Problems) -> Result<Rows, Errors> {
    let rows = read(document, &mut problems);
    problems.finish(file, rows)
}

/// Reads what can be read and notes every problem.
pub(crate) fn read(document: &str, problems: &mut Problems) -> Rows {
    let mut rows = Rows::default();
    if document.len() > DOCUMENT_BYTES_MAX {
        problems.add(
            Position::default(),
            format!("the document is longer than {DOCUMENT_BYTES_MAX} bytes"),
        );
        return rows;
    }
    if encoding::note_odd_text(document, problems) {
        return rows;
    }
    // A syntax problem has been noted where it was met; what stands before it is still reported on.
    let _: Result<(), Stopped> = read_document(document, problems, &mut rows);
    rows
}

const TOP_KEYS: &[&str] = &[
    "requires",
    "default",
    "on_deny",
    "narrow",
    "listeners",
    "upstreams",
    "groups",
    "users",
    "rules",
];

fn read_document(document: &str, problems: &mut Problems, rows: &mut Rows) -> Result<(), Stopped> {
    let mut reader = Reader::new(document);
    if matches!(reader.open(problems)?, Top::Empty) {
        problems.add(Position { line: 1, column: 1 }, "the document is empty");
        return Ok(());
    }
    let mut seen = HashMap::new();
    while let Some(key) = reader.key(problems)? {
        let is_duplicate = note_duplicate(&mut seen, &key, problems);
        // The second of two is read for its own problems, then forgotten.
        let mut spare = Rows::default();
        let rows = if is_duplicate { &mut spare } else { &mut *rows };
        match &*key.text {
            "requires" => {
                rows.requires = texts(&reader.value(problems)?, problems).unwrap_or_default()
            }
            "default" => rows.default = word(&reader.value(problems)?, EFFECTS, problems),
            "on_deny" => rows.on_deny = word(&reader.value(problems)?, ON_DENY, problems),
            "narrow" => rows.narrow = word(&reader.value(problems)?, BOOLS, problems),
            "listeners" => read_rows(
                &mut reader,
                problems,
                &mut rows.listeners,
                "listener",
                listener,
            )?,
            "upstreams" => read_rows(
                &mut reader,
                problems,
                &mut rows.upstreams,
                "upstream",
                upstream,
            )?,
            "groups" => read_rows(&mut reader, problems, &mut rows.groups, "group", group)?,
            "users" => read_rows(&mut reader, problems, &mut rows.users, "user", user)?,
            "rules" => read_rows(&mut reader, problems, &mut rows.rules, "rule", rule)?,
            _ => {
                unknown_key(&key, TOP_KEYS, "the document", problems);
                reader.value(problems)?;
            }
        }
    }
    reader.close(problems)
}

/// Reads a list of rows one by one, so that the text of one row at most is held as nodes.
fn read_rows<T>(
    reader: &mut Reader<'_>,
    problems: &mut Problems,
    rows: &mut Vec<T>,
    kind: &'static str,
    convert: fn(Fields<'_>) -> T,
) -> Result<(), Stopped> {
    let mut take = |node: Node, problems: &mut Problems| {
        if let Some(fields) = Fields::of(node, kind, problems) {
            rows.push(convert(fields));
        }
    };
    if reader.enter_list(problems)? {
        while let Some(node) = reader.item(problems)? {
            take(node, problems);
        }
        return Ok(());
    }
    let node = reader.value(problems)?;
    match node.value {
        Value::Null => {}
        Value::List(items) => items.into_iter().for_each(|item| take(item, problems)),
        Value::Scalar(_) | Value::Map(_) => {
            problems.add(
                node.at,
                format!(
                    "expected a list of {kind} rows (`- name: ...`), not {}",
                    node.value.kind()
                ),
            );
        }
    }
    Ok(())
}

fn listener(mut fields: Fields<'_>) -> ListenerRow {
    let mut row = ListenerRow {
        at: fields.at,
        name: fields.name(),
        address: fields.text("address"),
        upstream: fields.text("upstream"),
        versions: fields.texts("versions"),
        upstream_auth: fields.word("upstream_auth", UPSTREAM_AUTH),
        drain_wills: fields.word("drain_wills", DRAIN_WILLS),
        username: fields.word("username", USERNAMES),
        reason_strings: fields.word("reason_strings", REASON_STRINGS),
        ..ListenerRow::default()
    };
    fields.map("anonymous", |anonymous| {
        row.anonymous_group = anonymous.required_text("group");
    });
    fields.map("client_id", |client_id| {
        row.client_id_pattern = client_id.text("pattern");
        row.client_id_bytes_max = client_id.bytes("bytes_max");
    });
    fields.map("limits", |limits| {
        row.limits = LimitsRow {
            connections_max: limits.count_or_unlimited("connections_max"),
            connections_per_address_max: limits.count_or_unlimited("connections_per_address_max"),
            packet_bytes_max: limits.bytes("packet_bytes_max"),
            connect_bytes_max: limits.bytes("connect_bytes_max"),
            topic_alias_max: limits.number("topic_alias_max"),
            receive_max: limits.number("receive_max"),
            keep_alive_max: limits.duration("keep_alive_max"),
            connect_timeout: limits.duration("connect_timeout"),
            packet_timeout: limits.duration("packet_timeout"),
            write_stall_timeout: limits.duration("write_stall_timeout"),
            backlog_bytes_high: limits.bytes("backlog_bytes_high"),
            backlog_bytes_low: limits.bytes("backlog_bytes_low"),
            latency_budget: limits.duration("latency_budget"),
            tcp_keep_alive: limits.duration("tcp_keep_alive"),
        };
    });
    fields.finish();
    row
}

fn upstream(mut fields: Fields<'_>) -> UpstreamRow {
    let mut row = UpstreamRow {
        at: fields.at,
        name: fields.name(),
        endpoints: fields.texts("endpoints").unwrap_or_default(),
        balance: fields.word("balance", BALANCES),
        tcp_keep_alive: fields.duration("tcp_keep_alive"),
        ..UpstreamRow::default()
    };
    fields.map("dial", |dial| {
        row.dial_timeout = dial.duration("timeout");
        row.dial_attempts_max = dial.number("attempts_max");
        row.dial_backoff = dial.duration("backoff");
        row.connack_timeout = dial.duration("connack_timeout");
    });
    fields.map("breaker", |breaker| {
        row.breaker_failures = breaker.number("failures");
        row.breaker_open = breaker.duration("open");
    });
    fields.map("health", |health| {
        row.health_interval = health.required_duration("interval")
    });
    fields.finish();
    row
}

fn group(mut fields: Fields<'_>) -> GroupRow {
    let row = GroupRow {
        at: fields.at,
        name: fields.name(),
        users: fields.texts("users").unwrap_or_default(),
    };
    fields.finish();
    row
}

fn user(mut fields: Fields<'_>) -> UserRow {
    let row = UserRow {
        at: fields.at,
        name: fields.name(),
        password_hash: fields.text("password_hash"),
        groups: fields.texts("groups").unwrap_or_default(),
        client_id: fields.text("client_id"),
        client_id_pattern: fields.text("client_id_pattern"),
        networks: fields.texts("networks"),
        enabled: fields.word("enabled", BOOLS),
    };
    fields.finish();
    row
}

fn rule(mut fields: Fields<'_>) -> RuleRow {
    let names_a_decision = fields.has("decision");
    let mut row = RuleRow {
        at: fields.at,
        name: fields.name(),
        priority: fields.integer("priority"),
        order: fields.integer("order"),
        actions: fields.words("actions", ACTIONS, Action::Publish),
        topics: fields.texts("topics").unwrap_or_default(),
        // One that cannot be read has been reported; it is not missing as well.
        decision: fields
            .word("decision", EFFECTS)
            .or(names_a_decision.then_some(Located {
                value: Effect::Allow,
                at: Position::default(),
            })),
        qos_max: fields.number("qos_max"),
        qos_over: fields.word("qos_over", QOS_OVER),
        retain: fields.word("retain", RETAIN),
        payload_bytes_max: fields.bytes("payload_bytes_max"),
        narrow: fields.word("narrow", BOOLS),
        on_deny: fields.word("on_deny", ON_DENY),
        mode: fields.word("mode", MODES),
        enabled: fields.word("enabled", BOOLS),
        who: WhoRow::default(),
    };
    fields.map("who", |who| {
        row.who = WhoRow {
            users: who.texts("users"),
            user_patterns: who.texts("user_patterns"),
            client_ids: who.texts("client_ids"),
            client_id_patterns: who.texts("client_id_patterns"),
            addresses: who.texts("addresses"),
            groups: who.texts("groups"),
            versions: who.texts("versions"),
            listeners: who.texts("listeners"),
        };
    });
    fields.finish();
    row
}

const EFFECTS: &[(&str, Effect)] = &[("allow", Effect::Allow), ("deny", Effect::Deny)];
const ON_DENY: &[(&str, OnDeny)] = &[("drop", OnDeny::Drop), ("close", OnDeny::Close)];
const UPSTREAM_AUTH: &[(&str, UpstreamAuth)] = &[
    ("pass", UpstreamAuth::Pass),
    ("refuse", UpstreamAuth::Refuse),
];
const DRAIN_WILLS: &[(&str, DrainWills)] = &[
    ("publish", DrainWills::Publish),
    ("suppress", DrainWills::Suppress),
];
const USERNAMES: &[(&str, Usernames)] =
    &[("verify", Usernames::Verify), ("ignore", Usernames::Ignore)];
const REASON_STRINGS: &[(&str, ReasonStrings)] = &[
    ("off", ReasonStrings::Off),
    ("short", ReasonStrings::Short),
    ("rule", ReasonStrings::Rule),
];
const BALANCES: &[(&str, Balance)] = &[
    ("client_id", Balance::ClientId),
    ("round_robin", Balance::RoundRobin),
    ("least_connections", Balance::LeastConnections),
];
const ACTIONS: &[(&str, Action)] = &[
    ("connect", Action::Connect),
    ("publish", Action::Publish),
    ("subscribe", Action::Subscribe),
    ("receive", Action::Receive),
];
const QOS_OVER: &[(&str, QosOver)] = &[
    ("downgrade", QosOver::Downgrade),
    ("refuse", QosOver::Refuse),
];
const RETAIN: &[(&str, Retain)] = &[
    ("allow", Retain::Allow),
    ("strip", Retain::Strip),
    ("refuse", Retain::Refuse),
];
const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("shadow", Mode::Shadow)];
const BOOLS: &[(&str, bool)] = &[("true", true), ("false", false)];

/// The entries of one map; each is taken once, and what is left at the end is unknown.
struct Fields<'p> {
    at: Position,
    what: String,
    entries: Vec<(Key, Node)>,
    known: Vec<&'static str>,
    problems: &'p mut Problems,
}

impl<'p> Fields<'p> {
    fn of(node: Node, what: &str, problems: &'p mut Problems) -> Option<Self> {
        let Value::Map(entries) = node.value else {
            // What stands there is not repeated: it may be a line of a password file.
            let kind = node.value.kind();
            problems.add(
                node.at,
                format!("expected a {what}: keys with values, not {kind}"),
            );
            return None;
        };
        let mut seen = HashMap::with_capacity(entries.len());
        for (key, _) in &entries {
            note_duplicate(&mut seen, key, problems);
        }
        let at = entries.first().map_or(node.at, |(key, _)| key.at);
        Some(Self {
            at,
            what: what.into(),
            entries,
            known: Vec::new(),
            problems,
        })
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let index = self
            .entries
            .iter()
            .position(|(found, _)| &*found.text == key)?;
        let (_, node) = self.entries.remove(index);
        // A second entry of that name has been reported; it is not unknown as well.
        self.entries.retain(|(found, _)| &*found.text != key);
        Some(node)
    }

    fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(found, _)| &*found.text == key)
    }

    fn finish(self) {
        for (key, _) in &self.entries {
            unknown_key(key, &self.known, &self.what, self.problems);
        }
    }

    /// The name every row has.
    fn name(&mut self) -> Text {
        let name = self.required_text("name").unwrap_or_default();
        if !name.value.is_empty() {
            self.what = format!("{} `{}`", self.what, shown(&name.value));
        }
        name
    }

    fn required_text(&mut self, key: &'static str) -> Option<Text> {
        let node = self.required(key)?;
        text(&node, self.problems)
    }

    fn required_duration(&mut self, key: &'static str) -> Option<Located<Duration>> {
        let node = self.required(key)?;
        scalar(&node, units::duration, self.problems)
    }

    fn required(&mut self, key: &'static str) -> Option<Node> {
        let node = self.take(key);
        if node.is_none() {
            self.problems
                .add(self.at, format!("{}: `{key}` is missing", self.what));
        }
        node
    }

    fn text(&mut self, key: &'static str) -> Option<Text> {
        let node = self.take(key)?;
        text(&node, self.problems)
    }

    fn texts(&mut self, key: &'static str) -> Option<Vec<Text>> {
        let node = self.take(key)?;
        texts(&node, self.problems)
    }

    fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<Located<T>> {
        let node = self.take(key)?;
        word(&node, words, self.problems)
    }

    /// A list of words. Where there are some and none can be read, that has been reported, and `instead` stands for them so
    /// that they are not missing as well.
    fn words<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        instead: T,
    ) -> Vec<Located<T>> {
        let Some(node) = self.take(key) else {
            return Vec::new();
        };
        let is_empty = matches!(&node.value, Value::List(items) if items.is_empty());
        let read: Vec<Located<T>> = match &node.value {
            Value::List(items) => items
                .iter()
                .filter_map(|item| word(item, words, self.problems))
                .collect(),
            Value::Null | Value::Scalar(_) | Value::Map(_) => {
                word(&node, words, self.problems).into_iter().collect()
            }
        };
        if read.is_empty() && !is_empty {
            return vec![Located {
                value: instead,
                at: Position::default(),
            }];
        }
        read
    }

    fn duration(&mut self, key: &'static str) -> Option<Located<Duration>> {
        let node = self.take(key)?;
        scalar(&node, units::duration, self.problems)
    }

    fn bytes(&mut self, key: &'static str) -> Option<Located<u64>> {
        let node = self.take(key)?;
        scalar(&node, units::bytes, self.problems)
    }

    fn number(&mut self, key: &'static str) -> Option<Located<u64>> {
        let node = self.take(key)?;
        scalar(
            &node,
            |text| text.parse().map_err(|_| "a whole number"),
            self.problems,
        )
    }

    fn integer(&mut self, key: &'static str) -> Option<Located<i64>> {
        let node = self.take(key)?;
        scalar(
            &node,
            |text| text.parse().map_err(|_| "a whole number"),
            self.problems,
        )
    }

    fn count_or_unlimited(&mut self, key: &'static str) -> Option<Located<u64>> {
        let node = self.take(key)?;
        let read = |text: &str| match text {
            "unlimited" => Ok(u64::from(u32::MAX)),
            number => number.parse().map_err(|_| "a whole number or `unlimited`"),
        };
        scalar(&node, read, self.problems)
    }

    /// Reads a map inside the row; absent is fine.
    fn map(&mut self, key: &'static str, read: impl FnOnce(&mut Fields<'_>)) {
        let Some(node) = self.take(key) else {
            return;
        };
        let what = format!("`{key}` of {}", self.what);
        if let Some(mut inner) = Fields::of(node, &what, self.problems) {
            read(&mut inner);
            inner.finish();
        }
    }
}

fn text(node: &Node, problems: &mut Problems) -> Option<Text> {
    match &node.value {
        Value::Scalar(text) => Some(Located {
            value: text.clone(),
            at: node.at,
        }),
        Value::Null | Value::List(_) | Value::Map(_) => {
            let kind = node.value.kind();
            problems.add(node.at, format!("expected a text, not {kind}"));
            None
        }
    }
}

/// A list of texts; one value may stand without brackets.
fn texts(node: &Node, problems: &mut Problems) -> Option<Vec<Text>> {
    match &node.value {
        Value::List(items) => Some(
            items
                .iter()
                .filter_map(|item| text(item, problems))
                .collect(),
        ),
        Value::Scalar(_) => text(node, problems).map(|one| vec![one]),
        Value::Null | Value::Map(_) => {
            let kind = node.value.kind();
            problems.add(node.at, format!("expected a list of texts, not {kind}"));
            None
        }
    }
}

fn word<T: Copy>(node: &Node, words: &[(&str, T)], problems: &mut Problems) -> Option<Located<T>> {
    let found = match &node.value {
        Value::Scalar(text) => words.iter().find(|(word, _)| *word == &**text),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    };
    if let Some((_, value)) = found {
        return Some(Located {
            value: *value,
            at: node.at,
        });
    }
    let choices: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    let near = match &node.value {
        Value::Scalar(text) => suggestion(text, words.iter().map(|(word, _)| *word)),
        Value::Null | Value::List(_) | Value::Map(_) => String::new(),
    };
    let (choices, found) = (choices.join(" or "), wrong(&node.value));
    problems.add(node.at, format!("expected {choices}, not {found}{near}"));
    None
}

fn scalar<T>(
    node: &Node,
    read: impl FnOnce(&str) -> Result<T, &'static str>,
    problems: &mut Problems,
) -> Option<Located<T>> {
    let result = match &node.value {
        Value::Scalar(text) => read(text),
        Value::Null | Value::List(_) | Value::Map(_) => Err("a single value"),
    };
    match result {
        Ok(value) => Some(Located { value, at: node.at }),
        Err(wanted) => {
            let found = wrong(&node.value);
            problems.add(node.at, format!("expected {wanted}, not {found}"));
            None
        }
    }
}

/// A wrong value as a message names it.
fn wrong(value: &Value) -> String {
    match value {
        Value::Scalar(text) => quoted(text),
        Value::Null | Value::List(_) | Value::Map(_) => value.kind().into(),
    }
}

/// Reports a key that stands twice in one map: YAML forbids it, and one of the two would do nothing.
fn note_duplicate(
    seen: &mut HashMap<Box<str>, Position>,
    key: &Key,
    problems: &mut Problems,
) -> bool {
    let Some(first) = seen.get(&key.text) else {
        seen.insert(key.text.clone(), key.at);
        return false;
    };
    problems.add(
        key.at,
        format!(
            "the key `{}` stands twice; first in line {}",
            shown(&key.text),
            first.line
        ),
    );
    true
}

fn unknown_key(key: &Key, known: &[&'static str], what: &str, problems: &mut Problems) {
    let advice = match &*key.text {
        "password" => {
            "; passwords are stored as `password_hash`, made by `sluice-dataplane hash-password`"
                .into()
        }
        "<<" => "; YAML merge keys are not supported".into(),
        other => nearest(other, known.iter().copied()).map_or_else(
            || format!("; known keys: {}", known.join(", ")),
            |near| format!("; did you mean `{near}`?"),
        ),
    };
    problems.add(
        key.at,
        format!("{what}: unknown key `{}`{advice}", shown(&key.text)),
    );
}
