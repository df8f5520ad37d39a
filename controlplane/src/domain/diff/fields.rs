//! The fields of rows under their names in the YAML document, with values as a person would write them there.
//!
//! Closed lists, in the order of the document: a field that is not here is not shown, so a new one is added here too.

use foldhash::HashSet;
use sluice_proto::v1::{self, row::Kind};

use super::FieldDiff;

/// Longest value shown, in bytes.
const VALUE_BYTES_MAX: usize = 1000;
/// Values of a long list shown, of those that only one side has.
const VALUES_MAX: usize = 10;

/// What a field says.
#[derive(PartialEq, Eq)]
enum Value {
    Text(String),
    /// One of many.
    List(Vec<String>),
    /// Never shown.
    Secret(String),
}

type Field = (&'static str, Option<Value>);

/// The fields that differ; all that are set where one side is missing.
pub(super) fn differing(before: Option<&v1::Row>, after: Option<&v1::Row>) -> Vec<FieldDiff> {
    let kind = |row: Option<&v1::Row>| row.and_then(|row| row.kind.clone());
    let (old, new) = (kind(before), kind(after));
    // One list of names for both: what is missing on one side is there with no value.
    let Some(like) = new.as_ref().or(old.as_ref()) else {
        return Vec::new();
    };
    let features = |row: Option<&v1::Row>| row.map_or_else(Vec::new, |row| row.features.clone());
    let old = fields(old.as_ref().unwrap_or(&empty(like)), &features(before));
    let new = fields(new.as_ref().unwrap_or(&empty(like)), &features(after));
    let pairs = old.into_iter().zip(new);
    pairs
        .filter(|((_, old), (_, new))| old != new)
        .map(|((field, old), (_, new))| {
            let (before, after) = shown(old, new);
            FieldDiff {
                field,
                before,
                after,
            }
        })
        .collect()
}

/// A row of the same kind that says nothing.
fn empty(like: &Kind) -> Kind {
    match like {
        Kind::Settings(_) => Kind::Settings(v1::Settings::default()),
        Kind::Listener(_) => Kind::Listener(v1::Listener::default()),
        Kind::Upstream(_) => Kind::Upstream(v1::Upstream::default()),
        Kind::Group(_) => Kind::Group(v1::Group::default()),
        Kind::User(_) => Kind::User(v1::User::default()),
        Kind::Rule(_) => Kind::Rule(v1::Rule::default()),
    }
}

/// A kind's fields, always the same names in the same order.
fn fields(kind: &Kind, features: &[String]) -> Vec<Field> {
    match kind {
        Kind::Settings(row) => vec![
            ("requires", list(features)),
            ("default", word(effect, row.default_effect)),
            ("on_deny", word(on_deny, row.on_deny)),
            ("narrow", text(row.narrow.as_ref())),
        ],
        Kind::Listener(row) => listener(row),
        Kind::Upstream(row) => upstream(row),
        Kind::Group(row) => vec![("users", list(&row.users))],
        Kind::User(row) => vec![
            (
                "password_hash",
                row.password_hash.clone().map(Value::Secret),
            ),
            ("groups", list(&row.groups)),
            ("client_id", text(row.client_id.as_ref())),
            ("client_id_pattern", text(row.client_id_pattern.as_ref())),
            ("networks", texts(row.networks.as_ref())),
            ("enabled", text(row.enabled.as_ref())),
        ],
        Kind::Rule(row) => rule(row),
    }
}

fn listener(row: &v1::Listener) -> Vec<Field> {
    let limits = row.limits.unwrap_or_default();
    vec![
        ("address", text(row.address.as_ref())),
        ("upstream", text(row.upstream.as_ref())),
        ("versions", texts(row.versions.as_ref())),
        ("anonymous.group", text(row.anonymous_group.as_ref())),
        ("client_id.pattern", text(row.client_id_pattern.as_ref())),
        ("client_id.bytes_max", bytes(row.client_id_bytes_max)),
        ("upstream_auth", word(upstream_auth, row.upstream_auth)),
        ("drain_wills", word(drain_wills, row.drain_wills)),
        ("username", word(username, row.username)),
        ("reason_strings", word(reason_strings, row.reason_strings)),
        ("limits.connections_max", count(limits.connections_max)),
        (
            "limits.connections_per_address_max",
            count(limits.connections_per_address_max),
        ),
        ("limits.packet_bytes_max", bytes(limits.packet_bytes_max)),
        ("limits.connect_bytes_max", bytes(limits.connect_bytes_max)),
        (
            "limits.topic_alias_max",
            text(limits.topic_alias_max.as_ref()),
        ),
        ("limits.receive_max", text(limits.receive_max.as_ref())),
        ("limits.keep_alive_max", time(limits.keep_alive_max_us)),
        ("limits.connect_timeout", time(limits.connect_timeout_us)),
        ("limits.packet_timeout", time(limits.packet_timeout_us)),
        (
            "limits.write_stall_timeout",
            time(limits.write_stall_timeout_us),
        ),
        (
            "limits.backlog_bytes_high",
            bytes(limits.backlog_bytes_high),
        ),
        ("limits.backlog_bytes_low", bytes(limits.backlog_bytes_low)),
        ("limits.latency_budget", time(limits.latency_budget_us)),
        ("limits.tcp_keep_alive", time(limits.tcp_keep_alive_us)),
    ]
}

fn upstream(row: &v1::Upstream) -> Vec<Field> {
    vec![
        ("endpoints", list(&row.endpoints)),
        ("balance", word(balance, row.balance)),
        ("dial.timeout", time(row.dial_timeout_us)),
        ("dial.attempts_max", text(row.dial_attempts_max.as_ref())),
        ("dial.backoff", time(row.dial_backoff_us)),
        ("breaker.failures", text(row.breaker_failures.as_ref())),
        ("breaker.open", time(row.breaker_open_us)),
        ("health.interval", time(row.health_interval_us)),
        ("tcp_keep_alive", time(row.tcp_keep_alive_us)),
        ("dial.connack_timeout", time(row.connack_timeout_us)),
    ]
}

/// All but `order`, which is told by its neighbours.
fn rule(row: &v1::Rule) -> Vec<Field> {
    let who = row.who.clone().unwrap_or_default();
    let actions: Vec<String> = row
        .actions
        .iter()
        .map(|number| action(*number).map_or_else(|| number.to_string(), Into::into))
        .collect();
    vec![
        ("priority", text(row.priority.as_ref())),
        ("who.users", texts(who.users.as_ref())),
        ("who.user_patterns", texts(who.user_patterns.as_ref())),
        ("who.client_ids", texts(who.client_ids.as_ref())),
        (
            "who.client_id_patterns",
            texts(who.client_id_patterns.as_ref()),
        ),
        ("who.addresses", texts(who.addresses.as_ref())),
        ("who.groups", texts(who.groups.as_ref())),
        ("who.versions", texts(who.versions.as_ref())),
        ("who.listeners", texts(who.listeners.as_ref())),
        ("actions", list(&actions)),
        ("topics", list(&row.topics)),
        ("decision", word(effect, row.decision)),
        ("qos_max", text(row.qos_max.as_ref())),
        ("qos_over", word(qos_over, row.qos_over)),
        ("retain", word(retain, row.retain)),
        ("payload_bytes_max", bytes(row.payload_bytes_max)),
        ("narrow", text(row.narrow.as_ref())),
        ("on_deny", word(on_deny, row.on_deny)),
        ("mode", word(mode, row.mode)),
        ("enabled", text(row.enabled.as_ref())),
    ]
}

// --- values

fn text<T: ToString>(value: Option<&T>) -> Option<Value> {
    value.map(|value| Value::Text(value.to_string()))
}

fn list(values: &[String]) -> Option<Value> {
    (!values.is_empty()).then(|| Value::List(values.to_vec()))
}

fn texts(values: Option<&v1::Texts>) -> Option<Value> {
    values.map(|texts| Value::List(texts.values.clone()))
}

fn count(value: Option<u64>) -> Option<Value> {
    value.map(|value| match value {
        0xffff_ffff => Value::Text("unlimited".into()),
        number => Value::Text(number.to_string()),
    })
}

fn time(micros: Option<u64>) -> Option<Value> {
    let units = [
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
    ];
    micros.map(|micros| in_units(micros, &units, "us"))
}

fn bytes(value: Option<u64>) -> Option<Value> {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    value.map(|value| in_units(value, &units, ""))
}

/// In the largest unit of which it is a whole number.
fn in_units(value: u64, units: &[(&str, u64)], smallest: &str) -> Value {
    let fits = |(_, size): &&(&str, u64)| value > 0 && value.is_multiple_of(*size);
    Value::Text(match units.iter().find(fits) {
        Some((unit, size)) => format!("{}{unit}", value / size),
        None => format!("{value}{smallest}"),
    })
}

/// A choice by its word; 0 is unset, and a number that has no word is shown as it is.
fn word(words: fn(i32) -> Option<&'static str>, number: i32) -> Option<Value> {
    let text = || words(number).map_or_else(|| number.to_string(), Into::into);
    (number != 0).then(|| Value::Text(text()))
}

macro_rules! words {
    ($($name:ident = $message:ident { $($word:ident = $text:literal),+ })+) => {$(
        fn $name(number: i32) -> Option<&'static str> {
            match v1::$message::try_from(number).ok()? {
                v1::$message::Unspecified => None,
                $(v1::$message::$word => Some($text),)+
            }
        }
    )+};
}

words! {
    effect = Effect { Allow = "allow", Deny = "deny" }
    on_deny = OnDeny { Drop = "drop", Close = "close" }
    upstream_auth = UpstreamAuth { Pass = "pass", Refuse = "refuse" }
    drain_wills = DrainWills { Publish = "publish", Suppress = "suppress" }
    username = Usernames { Verify = "verify", Ignore = "ignore" }
    reason_strings = ReasonStrings { Off = "off", Short = "short", Rule = "rule" }
    balance = Balance {
        ClientId = "client_id", RoundRobin = "round_robin", LeastConnections = "least_connections"
    }
    action = Action {
        Connect = "connect", Publish = "publish", Subscribe = "subscribe", Receive = "receive"
    }
    qos_over = QosOver { Downgrade = "downgrade", Refuse = "refuse" }
    retain = Retain { Allow = "allow", Strip = "strip", Refuse = "refuse" }
    mode = Mode { Enforce = "enforce", Shadow = "shadow" }
}

// --- as text

fn shown(before: Option<Value>, after: Option<Value>) -> (Option<String>, Option<String>) {
    if let (Some(Value::Secret(_)), Some(Value::Secret(_))) = (&before, &after) {
        return (Some("set".into()), Some("changed".into()));
    }
    if let (Some(Value::List(before)), Some(Value::List(after))) = (&before, &after) {
        return (Some(listed(before, after)), Some(listed(after, before)));
    }
    (before.map(alone), after.map(alone))
}

fn alone(value: Value) -> String {
    match value {
        Value::Secret(_) => "set".into(),
        Value::Text(text) => bounded(text),
        Value::List(values) => listed(&values, &[]),
    }
}

/// A list as a whole when it is short, else by what only it has.
fn listed(values: &[String], other: &[String]) -> String {
    let length = |values: &[String]| values.iter().map(|value| value.len() + 2).sum::<usize>();
    if length(values) <= VALUE_BYTES_MAX && length(other) <= VALUE_BYTES_MAX {
        return values.join(", ");
    }
    let other: HashSet<&String> = other.iter().collect();
    let own = || values.iter().filter(|value| !other.contains(value));
    let some: Vec<&str> = own().take(VALUES_MAX).map(String::as_str).collect();
    let more = own().count() - some.len();
    let mut text = match some.as_slice() {
        [] => format!("{} values", values.len()),
        some => format!("{} values, here alone: {}", values.len(), some.join(", ")),
    };
    text = bounded(text);
    if more > 0 {
        text.push_str(&format!(", and {more} more"));
    }
    text
}

fn bounded(mut text: String) -> String {
    if text.len() > VALUE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(VALUE_BYTES_MAX));
        text.push_str("...");
    }
    text
}
