//! Messages of the contract between the planes <-> [`Rows`]: the one conversion, used by control plane and node alike.
//!
//! A set of messages has no lines and no order. A problem names its place as `kind name: field`, and rules come into the
//! order that their keys say, so the same set means the same however it was delivered. What this build does not know (a
//! kind of row, a number of an enum, a feature) is refused, never passed over: an old node must not read "allow if X" as
//! "allow". Whether names, patterns, numbers and references make sense is asked in `validate`, as for YAML.

mod problems;

use std::time::Duration;

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use sluice_proto::{
    Message,
    v1::{self, RowKind, row::Kind},
};

use crate::compile::compile_stored;
use crate::fleet::Inventory;
use crate::password::Verifier;
use crate::problem::Problems;
use crate::rows::{
    DrainWills, GroupRow, LimitsRow, ListenerRow, Located, Mode, QosOver, Retain, Rows, RuleRow,
    Text, UpstreamAuth, UpstreamRow, UserRow, Usernames, WhoRow,
};
use crate::users::LockedOut;
use crate::validate::{self, Source};
use crate::{
    Action, Balance, Cancel, Effect, FEATURES, Generation, OnDeny, Position, ReasonStrings,
    Snapshot, changes,
};

use problems::Notes;
pub use problems::{Refused, RowProblem, Wrong};

/// Writes rows, checked or not. What they leave out is left out; only a rule's place in the document becomes a key.
pub fn to_messages(rows: &Rows) -> Vec<v1::Row> {
    messages(rows).collect()
}

/// The same, one by one: all messages of a large document take more memory than its rows.
pub fn messages(rows: &Rows) -> impl Iterator<Item = v1::Row> {
    let settings = v1::Settings {
        default_effect: number_of(&rows.default),
        on_deny: number_of(&rows.on_deny),
        narrow: plain(&rows.narrow),
    };
    let settings = v1::Row {
        name: String::new(),
        features: settings_features(rows),
        kind: Some(Kind::Settings(settings)),
    };
    let mut ties = HashMap::new();
    let rules = rows.rules.iter().enumerate().map(move |(place, row)| {
        let place = i64::try_from(place).unwrap_or(i64::MAX);
        let order = row.order.as_ref().map_or(place, |order| order.value);
        let priority = row.priority.as_ref().map_or(0, |priority| priority.value);
        let tie: &mut u64 = ties.entry((priority, order)).or_default();
        let rule = write_rule(row, order, *tie);
        *tie += 1;
        rule
    });
    std::iter::once(settings)
        .chain(rows.listeners.iter().map(write_listener))
        .chain(rows.upstreams.iter().map(write_upstream))
        .chain(rows.groups.iter().map(write_group))
        .chain(rows.users.iter().map(write_user))
        .chain(rules)
}

/// Reads messages. What only `validate` can see is not asked yet; the positions in the rows mean nothing to others.
pub fn from_messages(messages: impl IntoIterator<Item = v1::Row>) -> Result<Rows, Refused> {
    let (rows, notes) = Reader::read(messages);
    if notes.problems.is_empty() {
        return Ok(rows);
    }
    Err(notes.refused())
}

/// Compiles messages: either all of them, or every problem of every stage that could be reached is in the answer.
pub fn compile_messages(
    messages: impl IntoIterator<Item = v1::Row>,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Refused> {
    let (rows, mut notes) = Reader::read(messages);
    let result = if notes.problems.is_empty() {
        compile_stored(rows, generation, previous)
    } else {
        let mut problems = Problems::default();
        validate::check(rows, Source::Stored, &mut problems);
        if problems.is_empty() {
            return Err(notes.refused());
        }
        Err(problems.into_errors(""))
    };
    result.map_err(|errors| {
        notes.take(&errors);
        notes.refused()
    })
}

/// Compiles the rows of a generation, as far as they differ from those of the snapshot before: a changed rule or user costs
/// what it touches, and anything else costs the whole. The answers, refusals and warnings are those of
/// [`compile_messages`] on all rows; the digest is the inventory's.
pub fn compile_inventory(
    rows: &Inventory,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Refused> {
    compile_inventory_until(rows, generation, previous, &Cancel::new())
}

/// The same; refused as well when the flag is set before it is done.
pub fn compile_inventory_until(
    rows: &Inventory,
    generation: Generation,
    previous: Option<&Snapshot>,
    cancel: &Cancel,
) -> Result<Snapshot, Refused> {
    let short = previous.and_then(|previous| changes::follow(previous, rows, generation, cancel));
    if let Some(snapshot) = short.or_else(|| changes::whole(rows, generation, previous, cancel)) {
        return Ok(snapshot);
    }
    if cancel.is_cancelled() {
        return Err(Refused::cancelled());
    }
    // Something is wrong: the slow way finds all of it.
    let mut messages = Vec::with_capacity(rows.len());
    for (key, row) in rows.iter() {
        messages.push(v1::Row::decode(row.clone()).map_err(|_| Refused::unreadable(key))?);
    }
    compile_messages(messages, generation, previous)
}

/// Notes the user of a stored row who cannot log in with what is stored as password hash.
pub fn note_locked_out(row: &v1::Row, locked_out: &mut LockedOut) {
    let Some(Kind::User(user)) = &row.kind else {
        return;
    };
    if let Some(text) = user
        .password_hash
        .as_ref()
        .filter(|_| user.enabled.unwrap_or(true))
        && let Err(error) = Verifier::parse(text)
    {
        locked_out.note(row.name.as_str().into(), error);
    }
}

/// Reads rows one by one, for those who have no use for what is wrong.
#[derive(Default)]
pub(crate) struct RowReader {
    reader: Reader,
}

impl RowReader {
    /// Adds one to [`Self::rows`], or to [`Self::rule`]. False: it cannot be read.
    #[must_use]
    pub(crate) fn read(&mut self, row: &Bytes) -> bool {
        let Ok(message) = v1::Row::decode(row.clone()) else {
            return false;
        };
        // An inventory has no key twice.
        self.reader.notes.numbers.clear();
        self.reader.row(message);
        self.reader.notes.problems.is_empty()
    }

    /// The last rule read and not taken, with its tie.
    pub(crate) fn rule(&mut self) -> Option<(RuleRow, u64)> {
        let (tie, row) = self.reader.rules.pop()?;
        Some((row, tie))
    }

    /// The last user read and not taken.
    pub(crate) fn user(&mut self) -> Option<UserRow> {
        self.reader.rows.users.pop()
    }

    /// All that were read but rules.
    pub(crate) fn rows(self) -> Rows {
        self.reader.rows
    }
}

// --- choices

/// A closed choice that both spellings have. Both matches are exhaustive, so neither side can grow alone.
trait Choice: Copy {
    fn number(self) -> i32;
    /// `None` is unset.
    fn from_number(number: i32) -> Result<Option<Self>, Wrong>;
}

macro_rules! choices {
    ($($row:ty = $message:ty { $($word:ident),+ })+) => {$(
        impl Choice for $row {
            fn number(self) -> i32 {
                match self {
                    $(Self::$word => <$message>::$word.into(),)+
                }
            }

            fn from_number(number: i32) -> Result<Option<Self>, Wrong> {
                match <$message>::try_from(number) {
                    Ok(<$message>::Unspecified) => Ok(None),
                    $(Ok(<$message>::$word) => Ok(Some(Self::$word)),)+
                    Err(_) => Err(Wrong::UnknownChoice(number)),
                }
            }
        }
    )+};
}

choices! {
    Effect = v1::Effect { Allow, Deny }
    OnDeny = v1::OnDeny { Drop, Close }
    UpstreamAuth = v1::UpstreamAuth { Pass, Refuse }
    ReasonStrings = v1::ReasonStrings { Off, Short, Rule }
    DrainWills = v1::DrainWills { Publish, Suppress }
    Usernames = v1::Usernames { Verify, Ignore }
    Balance = v1::Balance { ClientId, RoundRobin, LeastConnections }
    Action = v1::Action { Connect, Publish, Subscribe, Receive }
    QosOver = v1::QosOver { Downgrade, Refuse }
    Retain = v1::Retain { Allow, Strip, Refuse }
    Mode = v1::Mode { Enforce, Shadow }
}

// --- rows to messages

fn write_listener(row: &ListenerRow) -> v1::Row {
    let limits = &row.limits;
    let listener = v1::Listener {
        address: string(&row.address),
        upstream: string(&row.upstream),
        versions: list(&row.versions),
        anonymous_group: string(&row.anonymous_group),
        client_id_pattern: string(&row.client_id_pattern),
        client_id_bytes_max: plain(&row.client_id_bytes_max),
        upstream_auth: number_of(&row.upstream_auth),
        drain_wills: number_of(&row.drain_wills),
        username: number_of(&row.username),
        reason_strings: number_of(&row.reason_strings),
        limits: Some(v1::Limits {
            connections_max: plain(&limits.connections_max),
            connections_per_address_max: plain(&limits.connections_per_address_max),
            packet_bytes_max: plain(&limits.packet_bytes_max),
            connect_bytes_max: plain(&limits.connect_bytes_max),
            topic_alias_max: plain(&limits.topic_alias_max),
            receive_max: plain(&limits.receive_max),
            keep_alive_max_us: micros(&limits.keep_alive_max),
            connect_timeout_us: micros(&limits.connect_timeout),
            packet_timeout_us: micros(&limits.packet_timeout),
            write_stall_timeout_us: micros(&limits.write_stall_timeout),
            backlog_bytes_high: plain(&limits.backlog_bytes_high),
            backlog_bytes_low: plain(&limits.backlog_bytes_low),
            latency_budget_us: micros(&limits.latency_budget),
            tcp_keep_alive_us: micros(&limits.tcp_keep_alive),
        }),
    };
    let features = features(
        "mqtt",
        [
            ("listeners.username", row.username.is_some()),
            ("listeners.reason_strings", row.reason_strings.is_some()),
            ("tcp_keep_alive", limits.tcp_keep_alive.is_some()),
        ],
    );
    message(&row.name, features, Kind::Listener(listener))
}

fn write_upstream(row: &UpstreamRow) -> v1::Row {
    let upstream = v1::Upstream {
        endpoints: strings(&row.endpoints),
        balance: number_of(&row.balance),
        dial_timeout_us: micros(&row.dial_timeout),
        dial_attempts_max: plain(&row.dial_attempts_max),
        dial_backoff_us: micros(&row.dial_backoff),
        breaker_failures: plain(&row.breaker_failures),
        breaker_open_us: micros(&row.breaker_open),
        health_interval_us: micros(&row.health_interval),
        tcp_keep_alive_us: micros(&row.tcp_keep_alive),
        connack_timeout_us: micros(&row.connack_timeout),
    };
    let features = features(
        "mqtt",
        [
            ("tcp_keep_alive", row.tcp_keep_alive.is_some()),
            ("upstreams.connack_timeout", row.connack_timeout.is_some()),
        ],
    );
    message(&row.name, features, Kind::Upstream(upstream))
}

fn write_group(row: &GroupRow) -> v1::Row {
    let group = v1::Group {
        users: strings(&row.users),
    };
    message(&row.name, features("users", []), Kind::Group(group))
}

fn write_user(row: &UserRow) -> v1::Row {
    let user = v1::User {
        password_hash: string(&row.password_hash),
        groups: strings(&row.groups),
        client_id: string(&row.client_id),
        client_id_pattern: string(&row.client_id_pattern),
        enabled: plain(&row.enabled),
        networks: list(&row.networks),
    };
    let is_bound = row.client_id.is_some() || row.client_id_pattern.is_some();
    let features = features(
        "users",
        [
            ("client_id_binding", is_bound),
            ("users.networks", row.networks.is_some()),
        ],
    );
    message(&row.name, features, Kind::User(user))
}

fn write_rule(row: &RuleRow, order: i64, tie: u64) -> v1::Row {
    let who = &row.who;
    let rule = v1::Rule {
        priority: plain(&row.priority),
        order: Some(order),
        tie,
        who: Some(v1::Who {
            users: list(&who.users),
            user_patterns: list(&who.user_patterns),
            client_ids: list(&who.client_ids),
            client_id_patterns: list(&who.client_id_patterns),
            addresses: list(&who.addresses),
            groups: list(&who.groups),
            versions: list(&who.versions),
            listeners: list(&who.listeners),
        }),
        actions: row
            .actions
            .iter()
            .map(|action| action.value.number())
            .collect(),
        topics: strings(&row.topics),
        decision: number_of(&row.decision),
        qos_max: plain(&row.qos_max),
        qos_over: number_of(&row.qos_over),
        retain: number_of(&row.retain),
        payload_bytes_max: plain(&row.payload_bytes_max),
        on_deny: number_of(&row.on_deny),
        narrow: plain(&row.narrow),
        mode: number_of(&row.mode),
        enabled: plain(&row.enabled),
    };
    let features = features(
        "rules",
        [
            ("rules.shadow", row.mode.is_some()),
            ("rules.qos", row.qos_max.is_some() || row.qos_over.is_some()),
            ("rules.retain", row.retain.is_some()),
            ("rules.payload", row.payload_bytes_max.is_some()),
            ("rules.narrow", row.narrow.is_some()),
        ],
    );
    message(&row.name, features, Kind::Rule(rule))
}

/// What the document requires, and what its settings need besides.
fn settings_features(rows: &Rows) -> Vec<String> {
    const NARROW: &str = "rules.narrow";
    let mut features = strings(&rows.requires);
    if rows.narrow.is_some() && !features.iter().any(|feature| feature == NARROW) {
        features.push(NARROW.into());
    }
    features
}

/// The feature of a kind of row, and those of the optional settings that the row uses.
fn features<const N: usize>(of_kind: &str, optional: [(&str, bool); N]) -> Vec<String> {
    let used = optional.iter().filter(|(_, is_used)| *is_used);
    std::iter::once(of_kind)
        .chain(used.map(|(name, _)| *name))
        .map(str::to_owned)
        .collect()
}

fn message(name: &Text, features: Vec<String>, kind: Kind) -> v1::Row {
    v1::Row {
        name: name.value.to_string(),
        features,
        kind: Some(kind),
    }
}

fn string(text: &Option<Text>) -> Option<String> {
    text.as_ref().map(|text| text.value.to_string())
}

fn strings(texts: &[Text]) -> Vec<String> {
    texts.iter().map(|text| text.value.to_string()).collect()
}

fn list(texts: &Option<Vec<Text>>) -> Option<v1::Texts> {
    texts.as_ref().map(|texts| v1::Texts {
        values: strings(texts),
    })
}

fn plain<T: Copy>(value: &Option<Located<T>>) -> Option<T> {
    value.as_ref().map(|located| located.value)
}

/// A duration too long for the field becomes the longest there is, which every check refuses as well.
fn micros(value: &Option<Located<Duration>>) -> Option<u64> {
    value
        .as_ref()
        .map(|located| u64::try_from(located.value.as_micros()).unwrap_or(u64::MAX))
}

fn number_of<T: Choice>(value: &Option<Located<T>>) -> i32 {
    // 0 is UNSPECIFIED in every enum.
    value.as_ref().map_or(0, |located| located.value.number())
}

// --- messages to rows

/// Reads one row after the other.
#[derive(Default)]
struct Reader {
    rows: Rows,
    /// With their ties, until all are there and can be sorted.
    rules: Vec<(u64, RuleRow)>,
    notes: Notes,
}

impl Reader {
    fn read(messages: impl IntoIterator<Item = v1::Row>) -> (Rows, Notes) {
        let mut reader = Self::default();
        for message in messages {
            reader.row(message);
        }
        let Self {
            mut rows,
            mut rules,
            mut notes,
        } = reader;
        if !notes.numbers.contains_key(&(RowKind::Settings, "".into())) {
            notes.begin_document();
            notes.add("", Wrong::NoSettings);
        }
        rules.sort_by(|(a_tie, a), (b_tie, b)| {
            let key = |row: &RuleRow| row.order.as_ref().map(|order| order.value);
            (key(a), a_tie, &a.name.value).cmp(&(key(b), b_tie, &b.name.value))
        });
        rows.rules = rules.into_iter().map(|(_, row)| row).collect();
        (rows, notes)
    }

    fn row(&mut self, message: v1::Row) {
        let Some(kind) = message.kind else {
            self.notes.begin(RowKind::Unspecified, &message.name);
            self.features(message.features);
            return self.notes.add("", Wrong::UnknownKind);
        };
        // A settings row with a name is still the settings row.
        let is_settings = matches!(kind, Kind::Settings(_));
        let known_by = if is_settings { "" } else { &*message.name };
        if !self.notes.begin(kind_of(&kind), known_by) {
            return self.notes.add("", Wrong::Twice);
        }
        if is_settings && !message.name.is_empty() {
            self.notes.add("name", Wrong::NamedSettings);
        }
        let features = self.features(message.features);
        let at = self.notes.at("");
        let name = Located {
            value: message.name.into(),
            at: self.notes.at("name"),
        };
        match kind {
            Kind::Settings(row) => {
                self.rows.requires = features;
                self.rows.default = self.choice("default_effect", row.default_effect);
                self.rows.on_deny = self.choice("on_deny", row.on_deny);
                self.rows.narrow = self.value("narrow", row.narrow);
            }
            Kind::Listener(row) => {
                let row = self.listener(at, name, row);
                self.rows.listeners.push(row);
            }
            Kind::Upstream(row) => {
                let row = self.upstream(at, name, row);
                self.rows.upstreams.push(row);
            }
            Kind::Group(row) => {
                let users = self.texts("users", row.users);
                self.rows.groups.push(GroupRow { at, name, users });
            }
            Kind::User(row) => {
                let row = UserRow {
                    at,
                    name,
                    password_hash: self.text("password_hash", row.password_hash),
                    groups: self.texts("groups", row.groups),
                    client_id: self.text("client_id", row.client_id),
                    client_id_pattern: self.text("client_id_pattern", row.client_id_pattern),
                    networks: self.list("networks", row.networks),
                    enabled: self.value("enabled", row.enabled),
                };
                self.rows.users.push(row);
            }
            Kind::Rule(row) => {
                let tie = row.tie;
                let row = self.rule(at, name, row);
                self.rules.push((tie, row));
            }
        }
    }

    /// Notes those that this build lacks.
    fn features(&mut self, features: Vec<String>) -> Vec<Text> {
        let (known, missing) = features
            .into_iter()
            .partition::<Vec<_>, _>(|feature| FEATURES.contains(&feature.as_str()));
        for feature in missing {
            self.notes
                .add("features", Wrong::MissingFeature(feature.into()));
        }
        self.texts("features", known)
    }

    fn listener(&mut self, at: Position, name: Text, row: v1::Listener) -> ListenerRow {
        let limits = row.limits.unwrap_or_default();
        ListenerRow {
            at,
            name,
            address: self.text("address", row.address),
            upstream: self.text("upstream", row.upstream),
            versions: self.list("versions", row.versions),
            anonymous_group: self.text("anonymous_group", row.anonymous_group),
            client_id_pattern: self.text("client_id_pattern", row.client_id_pattern),
            client_id_bytes_max: self.value("client_id_bytes_max", row.client_id_bytes_max),
            upstream_auth: self.choice("upstream_auth", row.upstream_auth),
            drain_wills: self.choice("drain_wills", row.drain_wills),
            username: self.choice("username", row.username),
            reason_strings: self.choice("reason_strings", row.reason_strings),
            limits: LimitsRow {
                connections_max: self.value("limits.connections_max", limits.connections_max),
                connections_per_address_max: self.value(
                    "limits.connections_per_address_max",
                    limits.connections_per_address_max,
                ),
                packet_bytes_max: self.value("limits.packet_bytes_max", limits.packet_bytes_max),
                connect_bytes_max: self.value("limits.connect_bytes_max", limits.connect_bytes_max),
                topic_alias_max: self.value("limits.topic_alias_max", limits.topic_alias_max),
                receive_max: self.value("limits.receive_max", limits.receive_max),
                keep_alive_max: self.time("limits.keep_alive_max_us", limits.keep_alive_max_us),
                connect_timeout: self.time("limits.connect_timeout_us", limits.connect_timeout_us),
                packet_timeout: self.time("limits.packet_timeout_us", limits.packet_timeout_us),
                write_stall_timeout: self.time(
                    "limits.write_stall_timeout_us",
                    limits.write_stall_timeout_us,
                ),
                backlog_bytes_high: self
                    .value("limits.backlog_bytes_high", limits.backlog_bytes_high),
                backlog_bytes_low: self.value("limits.backlog_bytes_low", limits.backlog_bytes_low),
                latency_budget: self.time("limits.latency_budget_us", limits.latency_budget_us),
                tcp_keep_alive: self.time("limits.tcp_keep_alive_us", limits.tcp_keep_alive_us),
            },
        }
    }

    fn upstream(&mut self, at: Position, name: Text, row: v1::Upstream) -> UpstreamRow {
        UpstreamRow {
            at,
            name,
            endpoints: self.texts("endpoints", row.endpoints),
            balance: self.choice("balance", row.balance),
            dial_timeout: self.time("dial_timeout_us", row.dial_timeout_us),
            dial_attempts_max: self.value("dial_attempts_max", row.dial_attempts_max),
            dial_backoff: self.time("dial_backoff_us", row.dial_backoff_us),
            breaker_failures: self.value("breaker_failures", row.breaker_failures),
            breaker_open: self.time("breaker_open_us", row.breaker_open_us),
            health_interval: self.time("health_interval_us", row.health_interval_us),
            tcp_keep_alive: self.time("tcp_keep_alive_us", row.tcp_keep_alive_us),
            connack_timeout: self.time("connack_timeout_us", row.connack_timeout_us),
        }
    }

    fn rule(&mut self, at: Position, name: Text, row: v1::Rule) -> RuleRow {
        if row.order.is_none() {
            self.notes.add("order", Wrong::Missing);
        }
        RuleRow {
            at,
            name,
            priority: self.value("priority", row.priority),
            order: self.value("order", row.order),
            who: self.who(row.who.unwrap_or_default()),
            actions: self.actions(&row.actions),
            topics: self.texts("topics", row.topics),
            decision: self.decision(row.decision),
            qos_max: self.value("qos_max", row.qos_max),
            qos_over: self.choice("qos_over", row.qos_over),
            retain: self.choice("retain", row.retain),
            payload_bytes_max: self.value("payload_bytes_max", row.payload_bytes_max),
            narrow: self.value("narrow", row.narrow),
            on_deny: self.choice("on_deny", row.on_deny),
            mode: self.choice("mode", row.mode),
            enabled: self.value("enabled", row.enabled),
        }
    }

    fn who(&mut self, who: v1::Who) -> WhoRow {
        WhoRow {
            users: self.list("who.users", who.users),
            user_patterns: self.list("who.user_patterns", who.user_patterns),
            client_ids: self.list("who.client_ids", who.client_ids),
            client_id_patterns: self.list("who.client_id_patterns", who.client_id_patterns),
            addresses: self.list("who.addresses", who.addresses),
            groups: self.list("who.groups", who.groups),
            versions: self.list("who.versions", who.versions),
            listeners: self.list("who.listeners", who.listeners),
        }
    }

    fn actions(&mut self, numbers: &[i32]) -> Vec<Located<Action>> {
        let at = self.notes.at("actions");
        let mut actions = Vec::with_capacity(numbers.len());
        for number in numbers {
            match Action::from_number(*number) {
                Ok(Some(value)) => actions.push(Located { value, at }),
                Ok(None) => self.notes.add("actions", Wrong::Unspecified),
                Err(wrong) => self.notes.add("actions", wrong),
            }
        }
        actions
    }

    /// One that cannot be read has been noted; it is not missing as well, nor are the obligations beside it wrong.
    fn decision(&mut self, number: i32) -> Option<Located<Effect>> {
        let decision = self.choice("decision", number);
        decision.or((number != 0).then_some(Located {
            value: Effect::Allow,
            at: Position::default(),
        }))
    }

    fn choice<T: Choice>(&mut self, field: &'static str, number: i32) -> Option<Located<T>> {
        match T::from_number(number) {
            Ok(value) => self.value(field, value),
            Err(wrong) => {
                self.notes.add(field, wrong);
                None
            }
        }
    }

    fn value<T>(&mut self, field: &'static str, value: Option<T>) -> Option<Located<T>> {
        let value = value?;
        let at = self.notes.at(field);
        Some(Located { value, at })
    }

    fn time(&mut self, field: &'static str, micros: Option<u64>) -> Option<Located<Duration>> {
        self.value(field, micros.map(Duration::from_micros))
    }

    fn text(&mut self, field: &'static str, text: Option<String>) -> Option<Text> {
        self.value(field, text.map(String::into_boxed_str))
    }

    fn list(&mut self, field: &'static str, list: Option<v1::Texts>) -> Option<Vec<Text>> {
        list.map(|list| self.texts(field, list.values))
    }

    fn texts(&mut self, field: &'static str, texts: Vec<String>) -> Vec<Text> {
        let at = self.notes.at(field);
        let locate = |text: String| Located {
            value: text.into_boxed_str(),
            at,
        };
        texts.into_iter().map(locate).collect()
    }
}

fn kind_of(kind: &Kind) -> RowKind {
    match kind {
        Kind::Settings(_) => RowKind::Settings,
        Kind::Listener(_) => RowKind::Listener,
        Kind::Upstream(_) => RowKind::Upstream,
        Kind::Group(_) => RowKind::Group,
        Kind::User(_) => RowKind::User,
        Kind::Rule(_) => RowKind::Rule,
    }
}
