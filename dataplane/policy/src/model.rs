//! The validated model: what a document means, with all references resolved and all defaults filled in.
//!
//! Plain data. Nothing here is compiled for speed, and nothing here can be wrong: `validate` is the only maker.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sluice_wire::mqtt::{QoS, Version};

use crate::filter::TopicFilter;
use crate::password::{HashError, Verifier};
use crate::rows::{Mode, QosOver, Retain};
use crate::tables::expression::Expression;
use crate::{Balance, Effect, Endpoint, Limits, OnDeny, ReasonStrings};

/// A whole validated document.
#[derive(Clone, Debug)]
pub struct Model {
    /// What is decided when no rule matches.
    pub default: Effect,
    /// What is done about a PUBLISH that the default decision refuses.
    pub on_deny: OnDeny,
    /// Whether the default, where it allows, narrows subscriptions.
    pub narrow: bool,
    /// Listeners by name.
    pub listeners: Vec<ListenerModel>,
    /// Upstreams.
    pub upstreams: Vec<UpstreamModel>,
    /// Names of the groups, in document order.
    pub groups: Vec<Box<str>>,
    /// Users, disabled ones included.
    pub users: Vec<UserModel>,
    /// Rules in rank order (priority, order key, position), disabled ones included.
    pub rules: Vec<RuleModel>,
}

/// See [`crate::Listener`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ListenerModel {
    pub name: Box<str>,
    pub address: SocketAddr,
    pub upstream: Box<str>,
    pub versions: VersionSet,
    pub anonymous_group: Option<Box<str>>,
    pub client_id_pattern: Option<Pattern>,
    pub client_id_bytes_max: u16,
    pub upstream_auth_pass: bool,
    pub drain_publishes_wills: bool,
    pub ignores_usernames: bool,
    pub reason_strings: ReasonStrings,
    pub limits: Limits,
}

/// See [`crate::Upstream`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct UpstreamModel {
    pub name: Box<str>,
    pub endpoints: Vec<Endpoint>,
    pub balance: Balance,
    pub dial_timeout: Duration,
    pub dial_attempts_max: u8,
    pub dial_backoff: Duration,
    pub breaker_failures: u32,
    pub breaker_open: Duration,
    pub health_interval: Option<Duration>,
    pub tcp_keep_alive: Duration,
    pub connack_timeout: Duration,
}

/// See [`crate::User`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct UserModel {
    pub name: Box<str>,
    pub password: Password,
    /// Sorted names, from the user row and the group rows.
    pub groups: Vec<Box<str>>,
    pub client_id: Option<ClientIdBinding>,
    /// Where the user may come from; `None` is anywhere. Never empty.
    pub networks: Option<Box<[Cidr]>>,
    pub enabled: bool,
}

/// What is stored of a user's password.
#[derive(Clone, Debug)]
pub enum Password {
    /// Its hash.
    Hash(Verifier),
    /// Nothing: the networks prove the name.
    Absent,
    /// What an earlier version took for a hash. No password is right, and the user cannot log in.
    Broken {
        /// What is wrong with it.
        error: HashError,
        /// Of what is stored.
        digest: [u8; 32],
    },
}

/// The client ids a user may come with.
#[derive(Clone, Debug)]
pub enum ClientIdBinding {
    /// This one; `${username}` has been filled in.
    Exactly(Box<str>),
    /// All that match.
    Matching(Pattern),
}

impl ClientIdBinding {
    /// True exactly when the user may come with `client_id`.
    pub fn allows(&self, client_id: &str) -> bool {
        match self {
            Self::Exactly(expected) => **expected == *client_id,
            Self::Matching(pattern) => pattern.is_match(client_id),
        }
    }
}

/// A regular expression that must match the whole value.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As written.
    pub text: Box<str>,
    /// It, compiled; shared by all that are written alike.
    expression: Arc<Expression>,
}

impl Pattern {
    pub(crate) fn new(text: &str, expression: Arc<Expression>) -> Self {
        Self {
            text: text.into(),
            expression,
        }
    }

    pub(crate) fn expression(&self) -> &Arc<Expression> {
        &self.expression
    }

    /// True exactly when the whole of `value` matches.
    pub fn is_match(&self, value: &str) -> bool {
        self.expression.is_match(value)
    }
}

/// See [`crate::rows::RuleRow`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct RuleModel {
    /// Name and filters, NUL between them: neither can hold one, and there may be a million rules.
    pub(crate) text: Box<str>,
    pub priority: i64,
    pub order: i64,
    /// Among rules that tie in both; 0 where rows come in an order.
    pub tie: u64,
    /// Shared by the rules with the same one.
    pub who: Arc<WhoPart>,
    pub payload_bytes_max: Option<u32>,
    /// Its row by number: the same in the next snapshot exactly while the row is ([`Self::is_same_row`]). 0 until it is in a
    /// book.
    pub(crate) row: u32,
    pub actions: ActionSet,
    pub effect: Effect,
    pub qos_max: QoS,
    pub qos_over: QosOver,
    pub retain: Retain,
    pub narrow: bool,
    pub on_deny: OnDeny,
    pub mode: Mode,
    pub enabled: bool,
}

impl RuleModel {
    /// What [`Self::name`] and [`Self::topics`] read.
    pub(crate) fn text(name: &str, topics: &[TopicFilter<'_>]) -> Box<str> {
        let bytes: usize = topics.iter().map(|topic| 1 + topic.as_str().len()).sum();
        let mut text = String::with_capacity(name.len() + bytes);
        text.push_str(name);
        for topic in topics {
            text.push('\0');
            text.push_str(topic.as_str());
        }
        text.into()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.text.split('\0').next().unwrap_or_default()
    }

    /// Its filters, in the order of the row.
    pub fn topics(&self) -> impl Iterator<Item = TopicFilter<'_>> {
        self.text.split('\0').skip(1).map(TopicFilter::checked)
    }

    /// True exactly when it says the same about topics as another, so that a table of one serves the other.
    pub(crate) fn is_same_in_tables(&self, other: &Self) -> bool {
        self.effect == other.effect
            && self.narrow == other.narrow
            && self.mode == other.mode
            && self.actions == other.actions
            && self.topics().eq(other.topics())
    }

    /// True exactly when it is called and says the same as another. Its place among rules of its priority is no part of it:
    /// a row that comes before it in a document moves it.
    pub(crate) fn is_same_row(&self, other: &Self) -> bool {
        // Every field is named, so that a new one cannot be forgotten.
        let Self {
            text,
            priority,
            order: _,
            tie: _,
            who,
            payload_bytes_max,
            row: _,
            actions,
            effect,
            narrow,
            qos_max,
            qos_over,
            retain,
            on_deny,
            mode,
            enabled,
        } = self;
        *text == other.text
            && *priority == other.priority
            && *who == other.who
            && *payload_bytes_max == other.payload_bytes_max
            && *actions == other.actions
            && *effect == other.effect
            && *narrow == other.narrow
            && *qos_max == other.qos_max
            && *qos_over == other.qos_over
            && *retain == other.retain
            && *on_deny == other.on_deny
            && *mode == other.mode
            && *enabled == other.enabled
    }
}

impl RuleModel {
    /// Which of two rules is asked first. Of rows that come in an order only priority and order count, and those that tie
    /// keep theirs.
    pub(crate) fn asked_before(&self, other: &Self) -> std::cmp::Ordering {
        let key = |rule: &Self| (std::cmp::Reverse(rule.priority), rule.order, rule.tie);
        let order = key(self).cmp(&key(other));
        order.then_with(|| self.name().cmp(other.name()))
    }
}

/// The sessions a rule is about. `None` is any; lists are sorted and without doubles, so that equal parts compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct WhoPart {
    pub users: Option<Box<[Box<str>]>>,
    pub user_patterns: Option<Box<[Box<str>]>>,
    pub client_ids: Option<Box<[Box<str>]>>,
    pub client_id_patterns: Option<Box<[Box<str>]>>,
    pub addresses: Option<Box<[Cidr]>>,
    pub groups: Option<Box<[Box<str>]>>,
    pub versions: Option<VersionSet>,
    pub listeners: Option<Box<[Box<str>]>>,
}

/// A block of addresses. IPv4 addresses mapped into IPv6 are taken as the IPv4 addresses they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// Network bits, left-aligned in 128; the rest is zero.
    pub(crate) bits: u128,
    /// How many bits count.
    pub(crate) prefix_len: u8,
    pub(crate) is_v6: bool,
}

impl Cidr {
    /// Reads `10.0.0.0/8`, `2001:db8::/32` or a single address.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str =
            "expected an address or a block such as `10.0.0.0/8` or `2001:db8::/32`";
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| WANTED)?;
        let (bits, is_v6) = left_aligned(address);
        let is_mapped = address.is_ipv6() && !is_v6;
        let length_max: u8 = if is_v6 { 128 } else { 32 };
        let prefix_len = match length {
            None => length_max,
            Some(digits)
                if digits.is_empty()
                    || digits.len() > 3
                    || !digits.bytes().all(|b| b.is_ascii_digit()) =>
            {
                return Err(WANTED);
            }
            Some(digits) => {
                let length: u8 = digits.parse().map_err(|_| WANTED)?;
                // A block of mapped addresses counts its length in the 128 bits of IPv6.
                if is_mapped {
                    length.checked_sub(96).ok_or(WANTED)?
                } else {
                    length
                }
            }
        };
        if prefix_len > length_max {
            return Err(WANTED);
        }
        if bits & !mask(prefix_len) != 0 {
            return Err(
                "the address has bits set beyond the prefix length; write the first address of the block",
            );
        }
        Ok(Self {
            bits,
            prefix_len,
            is_v6,
        })
    }

    /// True exactly when every address of `other` is in the block.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.is_v6 == other.is_v6
            && self.prefix_len <= other.prefix_len
            && other.bits & mask(self.prefix_len) == self.bits
    }

    /// True exactly when `address` is in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (bits, is_v6) = left_aligned(address);
        is_v6 == self.is_v6 && bits & mask(self.prefix_len) == self.bits
    }
}

/// The bits of an address at the top of 128, and whether it is IPv6; mapped IPv4 is IPv4.
pub(crate) fn left_aligned(address: IpAddr) -> (u128, bool) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, false),
        IpAddr::V6(v6) => (v6.to_bits(), true),
    }
}

pub(crate) fn mask(prefix_len: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(prefix_len.min(128)))
        .unwrap_or(0)
}

/// A set of protocol versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionSet(u8);

impl VersionSet {
    /// All of them.
    pub const ALL: Self = Self(0b111);

    /// With one more.
    #[must_use]
    pub fn with(self, version: Version) -> Self {
        Self(self.0 | version_bit(version))
    }

    /// True exactly when `version` is in it.
    pub fn contains(self, version: Version) -> bool {
        self.0 & version_bit(version) != 0
    }

    /// The versions in it.
    pub fn iter(self) -> impl Iterator<Item = Version> {
        [Version::V31, Version::V311, Version::V5]
            .into_iter()
            .filter(move |version| self.contains(*version))
    }
}

fn version_bit(version: Version) -> u8 {
    match version {
        Version::V31 => 1,
        Version::V311 => 2,
        Version::V5 => 4,
    }
}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct ActionSet {
    pub connect: bool,
    pub publish: bool,
    pub subscribe: bool,
    pub receive: bool,
}

impl ActionSet {
    /// True exactly when the rule's topics are looked at.
    pub fn needs_topics(self) -> bool {
        self.publish || self.subscribe || self.receive
    }

    /// True exactly when the rule judges deliveries: `subscribe` implies `receive`.
    pub fn judges_deliveries(self) -> bool {
        self.subscribe || self.receive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_addresses() {
        let table = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("2001:db8::1/128", "2001:db8::1", true),
        ];
        for (block, address, expected) in table {
            assert_eq!(
                Cidr::parse(block)
                    .unwrap()
                    .contains(address.parse().unwrap()),
                expected,
                "{block} {address}"
            );
        }
    }

    #[test]
    fn what_is_not_a_block() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "::ffff:0.0.0.0/95",
            "x",
        ] {
            assert!(Cidr::parse(text).is_err(), "{text}");
        }
    }
}
