//! The rows of a policy document before anything about them has been checked, whatever they were written in.
//!
//! A row has a kind (the struct), a name and, for rules, an order key. YAML ends here and another spelling of the same
//! rows can start here; [`crate::validate`] takes them on. Values know their place so that errors can name it.

use std::time::Duration;

use crate::problem::Position;
use crate::{Action, Balance, Effect, OnDeny, ReasonStrings};

/// A value and where it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where; [`Position::default`] when it did not come from a text.
    pub at: Position,
}

/// Text with its place.
pub type Text = Located<Box<str>>;

/// A whole document.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)] // each field is the key of that name, documented in the README
pub struct Rows {
    pub requires: Vec<Text>,
    pub default: Option<Located<Effect>>,
    pub on_deny: Option<Located<OnDeny>>,
    pub narrow: Option<Located<bool>>,
    pub listeners: Vec<ListenerRow>,
    pub upstreams: Vec<UpstreamRow>,
    pub groups: Vec<GroupRow>,
    pub users: Vec<UserRow>,
    pub rules: Vec<RuleRow>,
}

/// Where clients come in.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct ListenerRow {
    pub at: Position,
    pub name: Text,
    pub address: Option<Text>,
    pub upstream: Option<Text>,
    pub versions: Option<Vec<Text>>,
    pub anonymous_group: Option<Text>,
    pub client_id_pattern: Option<Text>,
    pub client_id_bytes_max: Option<Located<u64>>,
    pub upstream_auth: Option<Located<UpstreamAuth>>,
    pub drain_wills: Option<Located<DrainWills>>,
    pub username: Option<Located<Usernames>>,
    pub reason_strings: Option<Located<ReasonStrings>>,
    pub limits: LimitsRow,
}

/// What is done with the user name and the password of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usernames {
    /// The user must be there, and prove the name.
    Verify,
    /// Every session is anonymous, whatever name it claims.
    Ignore,
}

/// What is done with MQTT 5 enhanced authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamAuth {
    /// Handed to the upstream.
    Pass,
    /// Refused with 0x8C.
    Refuse,
}

/// What becomes of wills when the node drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainWills {
    /// The broker publishes them, as when a client is lost.
    Publish,
    /// DISCONNECT goes up first, so that they are not published.
    Suppress,
}

/// Limits and deadlines of a listener; what is absent has its default.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct LimitsRow {
    pub connections_max: Option<Located<u64>>,
    pub connections_per_address_max: Option<Located<u64>>,
    pub packet_bytes_max: Option<Located<u64>>,
    pub connect_bytes_max: Option<Located<u64>>,
    pub topic_alias_max: Option<Located<u64>>,
    pub receive_max: Option<Located<u64>>,
    pub keep_alive_max: Option<Located<Duration>>,
    pub connect_timeout: Option<Located<Duration>>,
    pub packet_timeout: Option<Located<Duration>>,
    pub write_stall_timeout: Option<Located<Duration>>,
    pub backlog_bytes_high: Option<Located<u64>>,
    pub backlog_bytes_low: Option<Located<u64>>,
    pub latency_budget: Option<Located<Duration>>,
    pub tcp_keep_alive: Option<Located<Duration>>,
}

/// Where sessions go.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct UpstreamRow {
    pub at: Position,
    pub name: Text,
    pub endpoints: Vec<Text>,
    pub balance: Option<Located<Balance>>,
    pub dial_timeout: Option<Located<Duration>>,
    pub dial_attempts_max: Option<Located<u64>>,
    pub dial_backoff: Option<Located<Duration>>,
    pub breaker_failures: Option<Located<u64>>,
    pub breaker_open: Option<Located<Duration>>,
    pub health_interval: Option<Located<Duration>>,
    pub tcp_keep_alive: Option<Located<Duration>>,
    pub connack_timeout: Option<Located<Duration>>,
}

/// A name for a set of users.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct GroupRow {
    pub at: Position,
    pub name: Text,
    pub users: Vec<Text>,
}

/// Someone with a password, or with an address.
#[derive(Clone, Default)]
#[allow(missing_docs)]
pub struct UserRow {
    pub at: Position,
    pub name: Text,
    pub password_hash: Option<Text>,
    pub groups: Vec<Text>,
    pub client_id: Option<Text>,
    pub client_id_pattern: Option<Text>,
    pub networks: Option<Vec<Text>>,
    pub enabled: Option<Located<bool>>,
}

impl std::fmt::Debug for UserRow {
    /// Leaves the hash out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserRow")
            .field("name", &self.name.value)
            .field("groups", &self.groups)
            .field("client_id", &self.client_id)
            .field("client_id_pattern", &self.client_id_pattern)
            .field("networks", &self.networks)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

/// Who may do what.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct RuleRow {
    pub at: Position,
    pub name: Text,
    pub priority: Option<Located<i64>>,
    pub order: Option<Located<i64>>,
    pub who: WhoRow,
    pub actions: Vec<Located<Action>>,
    pub topics: Vec<Text>,
    pub decision: Option<Located<Effect>>,
    pub qos_max: Option<Located<u64>>,
    pub qos_over: Option<Located<QosOver>>,
    pub retain: Option<Located<Retain>>,
    pub payload_bytes_max: Option<Located<u64>>,
    pub narrow: Option<Located<bool>>,
    pub on_deny: Option<Located<OnDeny>>,
    pub mode: Option<Located<Mode>>,
    pub enabled: Option<Located<bool>>,
}

/// The sessions a rule is about: every kind given must match, and any value within a kind is enough.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct WhoRow {
    pub users: Option<Vec<Text>>,
    pub user_patterns: Option<Vec<Text>>,
    pub client_ids: Option<Vec<Text>>,
    pub client_id_patterns: Option<Vec<Text>>,
    pub addresses: Option<Vec<Text>>,
    pub groups: Option<Vec<Text>>,
    pub versions: Option<Vec<Text>>,
    pub listeners: Option<Vec<Text>>,
}

/// What happens to a message above a rule's QoS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosOver {
    /// Its QoS is lowered.
    Downgrade,
    /// It is refused.
    Refuse,
}

/// What a rule does with the RETAIN flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// Nothing.
    Allow,
    /// Clears it.
    Strip,
    /// Refuses the message.
    Refuse,
}

/// Whether a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It decides.
    Enforce,
    /// It is only noted that it would have decided otherwise.
    Shadow,
}
