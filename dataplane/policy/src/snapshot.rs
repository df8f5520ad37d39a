//! The compiled policy as the data plane asks it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_wire::mqtt::{QoS, Version};

use crate::admitting::{self, HalfAdmitted};
use crate::effort::Effort;
use crate::fleet::Inventory;
use crate::granting::{self, HalfJudged, Subscription};
use crate::model::{Cidr, ClientIdBinding, Pattern, RuleModel};
use crate::password::Verifier;
use crate::rows::{Mode, QosOver, Retain};
use crate::rulebook::Rulebook;
use crate::ruling::Ruling;
use crate::tables::NO_RANK;
use crate::tables::topic_trie::Mark;
use crate::users::Users;
use crate::validate::Ground;
use crate::verdict;

/// The number of a released policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// A listener by number. The same name keeps its number across generations of one process; a number is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u16);

/// An upstream by number; stable like [`ListenerId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(pub u16);

/// A rule by number, valid within one snapshot; [`Snapshot::rule_name`] names it. Of two rules the one asked first has the
/// lower number; there are gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Open a session.
    Connect,
    /// Send a message (a will included).
    Publish,
    /// Ask for messages.
    Subscribe,
    /// Be given a message.
    Receive,
}

/// Who asks; verified facts only.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Listener the connection came in on.
    pub listener: ListenerId,
    /// Peer address.
    pub address: IpAddr,
    /// Protocol version.
    pub version: Version,
    /// Client identifier as it goes upstream.
    pub client_id: &'a str,
    /// The user who proved the name; `None` is anonymous.
    pub username: Option<&'a str>,
}

/// The classes a session belongs to: opaque, small, valid for the snapshot that gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    pub(crate) ids: Box<[u32]>,
}

/// The values of `${client_id}` and `${username}` for one session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vars<'a> {
    /// `${client_id}`
    pub client_id: &'a str,
    /// `${username}`; empty when anonymous.
    pub username: &'a str,
}

/// What is asked of a topic.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Publish or Receive. Subscriptions go through [`Snapshot::subscribe`].
    pub action: Action,
    /// The effective topic name.
    pub topic: &'a str,
    /// QoS of the message.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Payload length in bytes.
    pub payload_bytes: u32,
}

/// What a verdict needs to know of a message besides its topic.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// QoS of the message.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Payload length in bytes.
    pub payload_bytes: u32,
}

impl Request<'_> {
    fn message(&self) -> Message {
        Message {
            qos: self.qos,
            retain: self.retain,
            payload_bytes: self.payload_bytes,
        }
    }
}

/// What a rule, or the default, says when it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Yes.
    Allow,
    /// No.
    Deny,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse.
    Deny(Denial),
}

/// Why an otherwise well-formed request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// A rule or the default decision says no.
    NotAuthorized,
    /// The rule allows it without RETAIN only, and says to refuse.
    RetainRefused,
    /// The rule allows it at a lower QoS only, and says to refuse.
    QosRefused,
    /// The payload is longer than the rule allows.
    PayloadTooLarge,
    /// A subscription check visited too many nodes.
    TooComplex,
}

/// What is done about a refused PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnDeny {
    /// Acknowledge as the protocol allows and drop the message; the session stays.
    Drop,
    /// End the session with a reason.
    Close,
}

/// Which Reason Strings clients of version 5 are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasonStrings {
    /// None.
    Off,
    /// Words that say no more than the code.
    Short,
    /// The same, and in an open session the name of the rule.
    Rule,
}

/// The answer, with what must be changed when it is an allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allow or deny.
    pub decision: Decision,
    /// The rule that decided; `None` is the default decision.
    pub rule: Option<RuleId>,
    /// Deliver or grant at most this QoS.
    pub qos_max: QoS,
    /// Clear the RETAIN flag.
    pub strip_retain: bool,
    /// Of a subscription: some of what it can deliver is refused, and is left out by the check of deliveries.
    pub is_narrowed: bool,
    /// What to do about a deny.
    pub on_deny: OnDeny,
    /// The shadow rule that would have decided otherwise, when there is one.
    pub shadow: Option<RuleId>,
    /// The shadow rule that would have decided, otherwise or not.
    pub shadow_first: Option<RuleId>,
}

/// Why a session may not open (or stay open).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 2 / 0x85: pattern, length, binding, or a variable that a rule needs is empty or contains `/`, `+`, `#`, NUL.
    ClientIdentifier,
    /// 1 / 0x84: version not allowed on the listener.
    Version,
    /// 4 / 0x86: anonymous is not allowed, user unknown, disabled or at an address that is not the user's.
    Credentials,
    /// 5 / 0x87: a connect rule or the default decision.
    NotAuthorized,
    /// The listener is gone from this generation: 3 / 0x98.
    ListenerGone,
}

/// A session that is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The connect rule that denied it; `None` when another thing did, or the default decision.
    pub rule: Option<RuleId>,
    /// A shadow connect rule that would have decided otherwise.
    pub shadow: Option<RuleId>,
    /// The one that would have decided, otherwise or not.
    pub shadow_first: Option<RuleId>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            rule: None,
            shadow: None,
            shadow_first: None,
        }
    }
}

/// An admitted session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Its classes.
    pub classes: Classes,
    /// The connect rule that allowed it.
    pub rule: Option<RuleId>,
    /// A shadow connect rule that would have decided otherwise.
    pub shadow: Option<RuleId>,
    /// The one that would have decided, otherwise or not.
    pub shadow_first: Option<RuleId>,
}

/// Where a listener listens and what it demands. Limits only; nothing here counts.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Number.
    pub id: ListenerId,
    /// Name in the document.
    pub name: Box<str>,
    /// Address to bind.
    pub address: std::net::SocketAddr,
    /// Upstream its sessions go to.
    pub upstream: UpstreamId,
    /// Versions accepted.
    pub versions: Box<[Version]>,
    /// True exactly when sessions without a user name may open.
    pub anonymous: bool,
    /// The group such sessions are in.
    pub anonymous_group: Option<Box<str>>,
    /// What a client id must match.
    pub client_id_pattern: Option<Pattern>,
    /// Longest client id, in bytes.
    pub client_id_bytes_max: u16,
    /// True exactly when enhanced authentication is passed to the upstream.
    pub upstream_auth_pass: bool,
    /// What happens to wills when we drain.
    pub drain_publishes_wills: bool,
    /// True exactly when every session is anonymous, whatever name it claims.
    pub ignores_usernames: bool,
    /// What clients of version 5 are told besides reason codes.
    pub reason_strings: ReasonStrings,
    /// Limits and deadlines.
    pub limits: Limits,
}

/// Limits and deadlines of a listener's sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Limits {
    pub connections_max: u32,
    pub connections_per_address_max: u32,
    pub packet_bytes_max: u32,
    pub connect_bytes_max: u32,
    pub topic_alias_max: u16,
    pub receive_max: u16,
    pub keep_alive_secs_max: u16,
    pub connect_timeout: Duration,
    pub packet_timeout: Duration,
    pub write_stall_timeout: Duration,
    pub backlog_bytes_high: u32,
    pub backlog_bytes_low: u32,
    pub latency_budget: Duration,
    /// Zero is off.
    pub tcp_keep_alive: Duration,
}

impl Default for Limits {
    /// What a listener has that names none.
    fn default() -> Self {
        Self {
            connections_max: u32::MAX,
            connections_per_address_max: u32::MAX,
            packet_bytes_max: 1 << 20,
            connect_bytes_max: 64 << 10,
            topic_alias_max: 32,
            receive_max: 1_024,
            keep_alive_secs_max: u16::MAX,
            connect_timeout: Duration::from_secs(10),
            packet_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(30),
            backlog_bytes_high: 256 << 10,
            backlog_bytes_low: 64 << 10,
            latency_budget: Duration::ZERO,
            tcp_keep_alive: Duration::from_secs(60),
        }
    }
}

/// A named set of endpoints.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Number.
    pub id: UpstreamId,
    /// Name in the document.
    pub name: Box<str>,
    /// Its endpoints in document order.
    pub endpoints: Box<[Endpoint]>,
    /// How one is chosen.
    pub balance: Balance,
    /// Time for one dial.
    pub dial_timeout: Duration,
    /// Attempts before the client is told 3 / 0x88.
    pub dial_attempts_max: u8,
    /// First pause between attempts; doubles.
    pub dial_backoff: Duration,
    /// Consecutive failures that open the breaker of an endpoint.
    pub breaker_failures: u32,
    /// How long it stays open before a single probe.
    pub breaker_open: Duration,
    /// Interval of active health checks; `None` is off.
    pub health_interval: Option<Duration>,
    /// Silence after which the kernel asks whether an endpoint's machine is still there; zero is off.
    pub tcp_keep_alive: Duration,
    /// How long an endpoint may take for CONNACK before another one is asked.
    pub connack_timeout: Duration,
}

impl Upstream {
    /// A client comes back to its MQTT session by its id only when the id chooses the endpoint.
    fn warning(&self) -> Option<String> {
        let balance = match self.balance {
            Balance::ClientId => return None,
            Balance::RoundRobin => "round_robin",
            Balance::LeastConnections => "least_connections",
        };
        let count = self.endpoints.len();
        (count > 1).then(|| {
            format!(
                "upstream `{}`: {balance} over {count} endpoints does not bring a client back to its MQTT session; use it \
                 with brokers that share sessions (a cluster), else `balance: client_id`",
                self.name
            )
        })
    }
}

/// One address inside an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `tcp://host:port`; the control thread resolves the name.
    Tcp {
        /// Name or address, IPv6 without brackets.
        host: Box<str>,
        /// Port, never 0.
        port: u16,
    },
    /// `unix:///path`
    Unix {
        /// Absolute path.
        path: Box<str>,
    },
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Rendezvous hash of the client id with bounded load.
    ClientId,
    /// In turn.
    RoundRobin,
    /// The fewest open connections.
    LeastConnections,
}

/// A user row as compiled.
#[derive(Clone, Debug)]
pub struct User {
    /// Name.
    pub name: Box<str>,
    /// What a password is verified against. `None`: there is no password, the address proves the name.
    pub verifier: Option<Verifier>,
    /// Names of its groups, sorted.
    pub groups: Box<[Box<str>]>,
    /// The client ids it may come with; `None` is any.
    pub client_id: Option<ClientIdBinding>,
    /// The addresses it may come from; `None` is any.
    pub networks: Option<Box<[Cidr]>>,
}

impl User {
    /// True exactly when a client at `address` may be this user.
    pub fn may_come_from(&self, address: IpAddr) -> bool {
        let is_within =
            |networks: &[Cidr]| networks.iter().any(|network| network.contains(address));
        self.networks.as_deref().is_none_or(is_within)
    }
}

/// The compiled policy of one generation. Holds what it has in common with the one before it only once.
pub struct Snapshot {
    pub(crate) generation: Generation,
    pub(crate) digest: Box<str>,
    pub(crate) frame: Arc<Frame>,
    pub(crate) users: Users,
    pub(crate) rules: Rulebook,
    /// No user is certainly in more classes than this; `None` where it was not counted.
    pub(crate) crowd_max: Option<usize>,
    pub(crate) origin: Option<Origin>,
}

/// What neither a user nor a rule changes.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) listeners: Box<[Listener]>,
    pub(crate) listener_numbers: Numbers,
    pub(crate) upstreams: Box<[Upstream]>,
    pub(crate) upstream_numbers: Numbers,
    /// By the place of the listener: its pattern or its upstream needs the client id.
    pub(crate) needs_client_id: Box<[bool]>,
}

/// The rows of a snapshot that came as an inventory, and what the next ones are checked against.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) inventory: Inventory,
    pub(crate) ground: Ground,
}

/// What one rule asks for when it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) payload_bytes_max: u32,
    pub(crate) effect: Effect,
    pub(crate) qos_max: QoS,
    pub(crate) qos_over: QosOver,
    pub(crate) retain: Retain,
    pub(crate) on_deny: OnDeny,
    pub(crate) is_shadow: bool,
    /// Of an allow: a subscription of which it allows a part is narrowed to what may be delivered.
    pub(crate) narrows: bool,
}

impl Outcome {
    /// What the check of subscriptions knows it by.
    pub(crate) fn mark(&self) -> Option<Mark> {
        match self.effect {
            Effect::Deny => Some(Mark::Deny),
            Effect::Allow => self.narrows.then_some(Mark::Narrow),
        }
    }

    pub(crate) fn of(rule: &RuleModel) -> Self {
        Self {
            payload_bytes_max: rule.payload_bytes_max.unwrap_or(u32::MAX),
            effect: rule.effect,
            qos_max: rule.qos_max,
            qos_over: rule.qos_over,
            retain: rule.retain,
            on_deny: rule.on_deny,
            is_shadow: rule.mode == Mode::Shadow,
            narrows: rule.narrow,
        }
    }
}

/// The rules with one who-part, apart from their topics.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    /// The connect rule with the lowest rank.
    pub(crate) connect: u32,
    /// The same among shadow rules.
    pub(crate) connect_shadow: u32,
    /// How many there are.
    pub(crate) rules: u32,
    pub(crate) with_topics: u32,
    pub(crate) client_id: VariableUse,
    pub(crate) username: VariableUse,
}

impl Default for Class {
    fn default() -> Self {
        Self {
            connect: NO_RANK,
            connect_shadow: NO_RANK,
            rules: 0,
            with_topics: 0,
            client_id: VariableUse::default(),
            username: VariableUse::default(),
        }
    }
}

impl Class {
    pub(crate) fn has_topics(&self) -> bool {
        self.with_topics > 0
    }
}

/// How often the filters of a class use a variable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VariableUse {
    pub(crate) anywhere: u32,
    /// As the first level, where a value with `$` would reach the broker's own topics.
    pub(crate) first: u32,
}

impl VariableUse {
    /// True exactly when a value can stand where the variable is used: as one level, and a plain one.
    pub(crate) fn fits(self, value: Value) -> bool {
        self.anywhere == 0 || (value.is_level && !(self.first > 0 && value.begins_with_dollar))
    }
}

/// What matters of the value of a variable. It may be long, so it is looked at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Value {
    is_level: bool,
    begins_with_dollar: bool,
}

impl Value {
    pub(crate) fn of(value: &str) -> Self {
        Self {
            is_level: !value.is_empty() && !value.contains(['/', '+', '#', '\0']),
            begins_with_dollar: value.starts_with('$'),
        }
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("digest", &self.digest)
            .field("rules", &self.rules.len())
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

/// Which number belongs to which name: kept for every name ever seen, so that a number is never reused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    /// By name.
    pub(crate) by_name: HashMap<Box<str>, u16>,
    /// By number: the place in the list of this generation.
    pub(crate) places: Vec<Option<u16>>,
}

impl Numbers {
    fn place(&self, number: u16) -> Option<usize> {
        self.places
            .get(usize::from(number))
            .copied()
            .flatten()
            .map(usize::from)
    }
}

impl Snapshot {
    /// Its number.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Digest of its rows, hex. That of an inventory where the rows came as one; else it depends on what the rows say, not
    /// on how the document is written.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// All listeners.
    pub fn listeners(&self) -> &[Listener] {
        &self.frame.listeners
    }

    /// One listener; `None` when this generation has it no more.
    pub fn listener(&self, id: ListenerId) -> Option<&Listener> {
        self.frame
            .listeners
            .get(self.frame.listener_numbers.place(id.0)?)
    }

    /// One listener by the name in the document.
    pub fn listener_by_name(&self, name: &str) -> Option<&Listener> {
        self.listener(ListenerId(*self.frame.listener_numbers.by_name.get(name)?))
    }

    /// All upstreams.
    pub fn upstreams(&self) -> &[Upstream] {
        &self.frame.upstreams
    }

    /// One upstream.
    pub fn upstream(&self, id: UpstreamId) -> Option<&Upstream> {
        self.frame
            .upstreams
            .get(self.frame.upstream_numbers.place(id.0)?)
    }

    /// What an operator should know although it is no error: one sentence each, upstreams first.
    pub fn warnings(&self) -> Vec<String> {
        let upstreams = self.frame.upstreams.iter();
        let mut warnings: Vec<String> = upstreams.filter_map(Upstream::warning).collect();
        let listeners = self.frame.listeners.iter();
        warnings.extend(listeners.filter_map(|listener| self.impatience_warning(listener)));
        warnings.extend(self.users.locked_out().warnings());
        warnings.extend(self.users.password_warning());
        warnings
    }

    /// A client that waits for two endpoints has `connect_timeout` for both.
    fn impatience_warning(&self, listener: &Listener) -> Option<String> {
        let upstream = self.upstream(listener.upstream)?;
        let half = listener.limits.connect_timeout / 2;
        (upstream.endpoints.len() > 1 && upstream.connack_timeout > half).then(|| {
            format!(
                "listener `{}`: an endpoint of upstream `{}` has {half:?} for CONNACK before another one is asked, half of \
                 `connect_timeout`; `connack_timeout` says {:?}",
                listener.name, upstream.name, upstream.connack_timeout
            )
        })
    }

    /// The enabled user of that name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// What to verify the password of an unknown user against, so that the answer takes as long as a wrong password
    /// takes: it costs what most hashes of the document cost. Its answer is never a yes.
    pub fn dummy_verifier(&self) -> &Verifier {
        self.users.dummy_verifier()
    }

    /// True exactly when a rule or a balance needs the client id, so that an empty one must be replaced.
    pub fn needs_client_id(&self, listener: ListenerId) -> bool {
        let Some(place) = self.frame.listener_numbers.place(listener.0) else {
            return false;
        };
        let (needs, listener) = (&self.frame.needs_client_id, &self.frame.listeners);
        needs.get(place).is_some_and(|needs| *needs)
            || self.users.has_binding()
            || listener
                .get(place)
                .is_some_and(|listener| self.rules.needs_client_id(&listener.name))
    }

    /// How many rules there are, disabled ones included.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The names of all rules, in the order in which they are asked.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|(_, rule)| rule.name())
    }

    /// The name of a rule; empty for an id of another snapshot.
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.rules.rule(rule.0).map_or("", RuleModel::name)
    }

    /// May this session open, or stay open? Also gives its classes.
    pub fn admit(&self, who: &Who<'_>) -> Result<Admission, Refused> {
        let mut half = None;
        loop {
            let mut effort = Effort::new(u32::MAX);
            if let Some(admitted) = self.admit_within(who, &mut effort, &mut half) {
                return admitted;
            }
        }
    }

    /// The same within a share of work. `None` when it is used up before the answer is known: then the same is asked again,
    /// with another share and with what was left in `half`, which is empty in the beginning and whenever there is an answer.
    pub fn admit_within(
        &self,
        who: &Who<'_>,
        effort: &mut Effort,
        half: &mut Option<Box<HalfAdmitted>>,
    ) -> Option<Result<Admission, Refused>> {
        admitting::admit(self, who, effort, half)
    }

    /// Judges one message. No allocation, no regular expression.
    pub fn verdict(&self, classes: &Classes, vars: &Vars<'_>, request: &Request<'_>) -> Verdict {
        self.ruling(classes, vars, request.action, request.topic)
            .verdict(request.message())
    }

    /// The part of a verdict that depends on the topic alone; `action` is Publish or Receive.
    pub fn ruling(
        &self,
        classes: &Classes,
        vars: &Vars<'_>,
        action: Action,
        topic: &str,
    ) -> Ruling {
        verdict::ruling(self, classes, vars, action, topic)
    }

    /// Judges one filter, share group taken off by the caller: granted exactly when every topic it can deliver is allowed, or
    /// when it may be narrowed to those that are.
    pub fn subscribe(
        &self,
        classes: &Classes,
        vars: &Vars<'_>,
        filter: &str,
        qos: QoS,
        shared: bool,
    ) -> Verdict {
        let asked = Subscription::new(self, classes, vars, filter, qos, shared);
        let mut half = None;
        loop {
            let mut effort = Effort::new(u32::MAX);
            if let Some(verdict) = granting::subscribe(&asked, &mut effort, &mut half) {
                return verdict;
            }
        }
    }

    /// The same within a share of work. `None` when it is used up before the answer is known: then the same is asked again,
    /// with another share and with what was left in `half`, which is empty in the beginning and whenever there is an answer.
    #[allow(clippy::too_many_arguments)] // a question in its parts, and what is left of work and of an earlier call
    pub fn subscribe_within(
        &self,
        classes: &Classes,
        vars: &Vars<'_>,
        filter: &str,
        qos: QoS,
        shared: bool,
        effort: &mut Effort,
        half: &mut Option<Box<HalfJudged>>,
    ) -> Option<Verdict> {
        let asked = Subscription::new(self, classes, vars, filter, qos, shared);
        granting::subscribe(&asked, effort, half)
    }
}
