//! What is told of an answer that a client got: who it was, what it wanted, and why it did not get it.
//!
//! Owns the closed list of reasons and the rule that each refusal is told once. A record is made of borrowed names, and only
//! when there is a reader for it: an allowed message costs a branch. Never holds a payload or a secret; a user name that was
//! not verified is marked, since clients send tokens and passwords as names.

use std::net::SocketAddr;

use sluice_policy::{
    Action, Admission, Decision, Denial, ListenerId, Message, Refusal, Refused, RuleId, Verdict,
};
use sluice_wire::mqtt::{QoS, ReasonCode, Version, Violation};

use super::{Cause, Context, Phase, Session};
use crate::metrics::Counter;

/// One answer to a client.
#[derive(Clone, Copy, Debug)]
pub struct DecisionRecord<'a> {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Where it came in.
    pub listener: ListenerId,
    /// Of its CONNECT; `None` before that.
    pub version: Option<Version>,
    /// Empty when the id is not known.
    pub client_id: &'a str,
    /// Which user it is.
    pub user: User<'a>,
    /// What it wanted.
    pub wanted: Wanted<'a>,
    /// Why it does not get it; `None` when it does.
    pub refused: Option<Reason>,
    /// The rule that decided; `None` is the default decision, or something other than a rule.
    pub rule: Option<RuleId>,
    /// The shadow rule that would have decided otherwise.
    pub shadow: Option<RuleId>,
}

/// The user of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User<'a> {
    /// None was named.
    Nobody,
    /// The name was verified.
    Verified(&'a str),
    /// The name is only what the client says: it may be a secret.
    Claimed(&'a str),
}

/// What a client wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The kind.
    pub act: Act,
    /// Topic name or filter; empty where there is none.
    pub topic: &'a str,
    /// Of a message or filter.
    pub qos: Option<QoS>,
    /// Of a message.
    pub retain: bool,
    /// Of a message.
    pub payload_bytes: Option<u32>,
}

impl<'a> Wanted<'a> {
    /// Something without a topic.
    pub fn only(act: Act) -> Self {
        Self {
            act,
            topic: "",
            qos: None,
            retain: false,
            payload_bytes: None,
        }
    }

    pub(super) fn message(act: Act, topic: &'a str, message: Message) -> Self {
        Self {
            act,
            topic,
            qos: Some(message.qos),
            retain: message.retain,
            payload_bytes: Some(message.payload_bytes),
        }
    }

    pub(super) fn filter(topic: &'a str, qos: QoS) -> Self {
        Self {
            topic,
            qos: Some(qos),
            ..Self::only(Act::Subscribe)
        }
    }
}

/// Kinds of what a client may want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// A connection, before anything was read from it.
    Accept,
    /// A session: CONNECT, and to stay when the policy changes.
    Connect,
    /// The will of a CONNECT.
    Will,
    /// To send a message.
    Publish,
    /// To name the Response Topic of a message or will.
    ResponseTopic,
    /// One filter of a SUBSCRIBE.
    Subscribe,
    /// A message of the broker.
    Receive,
    /// To go on with an open session.
    Session,
}

impl Act {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Accept,
        Self::Connect,
        Self::Will,
        Self::Publish,
        Self::ResponseTopic,
        Self::Subscribe,
        Self::Receive,
        Self::Session,
    ];

    /// Its name in logs, pages and commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Will => "will",
            Self::Publish => "publish",
            Self::ResponseTopic => "response_topic",
            Self::Subscribe => "subscribe",
            Self::Receive => "receive",
            Self::Session => "session",
        }
    }

    /// What the rules are asked about it.
    pub(super) fn action(self) -> Action {
        match self {
            Self::Accept | Self::Connect | Self::Session => Action::Connect,
            Self::Will | Self::Publish => Action::Publish,
            Self::Subscribe => Action::Subscribe,
            Self::ResponseTopic | Self::Receive => Action::Receive,
        }
    }
}

/// Why a client does not get what it wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No rule allows it, and the default decision is to deny.
    NoRule,
    /// A rule denies it.
    DeniedByRule,
    /// The filter, or the client's groups, need more work to judge than is done for one question.
    TooComplex,
    /// The rule allows it without RETAIN only, and says to refuse.
    RetainRefused,
    /// The rule allows it at a lower QoS only, and says to refuse.
    QosRefused,
    /// The payload is longer than the rule allows.
    PayloadTooLarge,
    /// A packet is longer than the listener, or the broker, takes.
    PacketTooLarge,
    /// A message for the client is longer than it takes, or than the listener lets through.
    DeliveryTooLarge,
    /// The client takes no packet as long as one it must be sent.
    ClientNoRoom,
    /// A SUBSCRIBE has more filters than one may have.
    FiltersTooMany,
    /// A filter of a SUBSCRIBE is not well formed.
    FilterMalformed,
    /// More messages await their acknowledgement than may.
    ReceiveMaximum,
    /// Anonymous clients are not let in, and no user was named.
    UserMissing,
    /// No enabled user has that name.
    UserUnknown,
    /// The user may not come from that address.
    UserAddress,
    /// A user with a password sent none.
    PasswordMissing,
    /// The password is wrong.
    PasswordWrong,
    /// Too many passwords are being verified, or it took too long.
    PasswordBusy,
    /// The client id is missing, or is not what the listener, the user or the rules let it be.
    ClientId,
    /// The protocol version is not accepted.
    Version,
    /// Authentication by AUTH packets is not accepted on the listener.
    AuthMethod,
    /// The policy has no such listener any more.
    ListenerGone,
    /// The connection was closed at accept; this counter has the reason.
    TurnedAway(Counter),
    /// No CONNECT came in time.
    ConnectTimeout,
    /// No CONNECT had come, and another connection needed the place.
    GaveWay,
    /// The first bytes are those of a PROXY header.
    ProxyHeader,
    /// The first bytes are those of a TLS handshake.
    Tls,
    /// The first bytes are those of an HTTP request.
    Http,
    /// The client broke this clause of the protocol.
    Violation(Violation),
    /// A packet once begun was not finished in time.
    PacketTimeout,
    /// The client did not take what it was owed.
    WriteStall,
    /// The memory budget was exceeded, or another bound of the node.
    Overload,
    /// An operator ended the session.
    Kicked,
    /// An operator keeps the client out.
    KeptOut,
    /// The node was draining.
    Drained,
    /// No endpoint of the upstream could be reached, or none answered.
    UpstreamUnavailable,
    /// The broker refused the CONNECT.
    UpstreamRefused,
    /// The broker closed the connection in the place of a CONNACK.
    UpstreamClosed,
    /// The broker began a packet and did not finish it in time, or did not answer.
    UpstreamStalled,
    /// The broker broke this clause of the protocol.
    UpstreamViolation(Violation),
}

impl Reason {
    /// Those that carry nothing.
    const PLAIN: [Self; 37] = [
        Self::NoRule,
        Self::DeniedByRule,
        Self::TooComplex,
        Self::RetainRefused,
        Self::QosRefused,
        Self::PayloadTooLarge,
        Self::PacketTooLarge,
        Self::DeliveryTooLarge,
        Self::ClientNoRoom,
        Self::FiltersTooMany,
        Self::FilterMalformed,
        Self::ReceiveMaximum,
        Self::UserMissing,
        Self::UserUnknown,
        Self::UserAddress,
        Self::PasswordMissing,
        Self::PasswordWrong,
        Self::PasswordBusy,
        Self::ClientId,
        Self::Version,
        Self::AuthMethod,
        Self::ListenerGone,
        Self::ConnectTimeout,
        Self::GaveWay,
        Self::ProxyHeader,
        Self::Tls,
        Self::Http,
        Self::PacketTimeout,
        Self::WriteStall,
        Self::Overload,
        Self::Kicked,
        Self::KeptOut,
        Self::Drained,
        Self::UpstreamUnavailable,
        Self::UpstreamRefused,
        Self::UpstreamClosed,
        Self::UpstreamStalled,
    ];

    /// Its name in logs, pages and commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRule => "no_rule",
            Self::DeniedByRule => "denied_by_rule",
            Self::TooComplex => "too_complex",
            Self::RetainRefused => "retain_refused",
            Self::QosRefused => "qos_refused",
            Self::PayloadTooLarge => "payload_too_large",
            Self::PacketTooLarge => "packet_too_large",
            Self::DeliveryTooLarge => "delivery_too_large",
            Self::ClientNoRoom => "client_no_room",
            Self::FiltersTooMany => "filters_too_many",
            Self::FilterMalformed => "filter_malformed",
            Self::ReceiveMaximum => "receive_maximum",
            Self::UserMissing => "user_missing",
            Self::UserUnknown => "user_unknown",
            Self::UserAddress => "user_address",
            Self::PasswordMissing => "password_missing",
            Self::PasswordWrong => "password_wrong",
            Self::PasswordBusy => "password_busy",
            Self::ClientId => "client_id",
            Self::Version => "version",
            Self::AuthMethod => "auth_method",
            Self::ListenerGone => "listener_gone",
            Self::TurnedAway(counter) => counter.labels().first().map_or("", |(_, value)| value),
            Self::ConnectTimeout => "connect_timeout",
            Self::GaveWay => "gave_way",
            Self::ProxyHeader => "proxy_header",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Violation(_) => "violation",
            Self::PacketTimeout => "packet_timeout",
            Self::WriteStall => "write_stall",
            Self::Overload => "overload",
            Self::Kicked => "kicked",
            Self::KeptOut => "kept_out",
            Self::Drained => "drained",
            Self::UpstreamUnavailable => "upstream_unavailable",
            Self::UpstreamRefused => "upstream_refused",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamStalled => "upstream_stalled",
            Self::UpstreamViolation(_) => "upstream_violation",
        }
    }

    /// What its kind is called.
    pub fn kind(self) -> ReasonKind {
        match self {
            Self::NoRule
            | Self::DeniedByRule
            | Self::TooComplex
            | Self::RetainRefused
            | Self::QosRefused => ReasonKind::Rules,
            Self::PayloadTooLarge
            | Self::PacketTooLarge
            | Self::DeliveryTooLarge
            | Self::ClientNoRoom => ReasonKind::TooLarge,
            Self::UserMissing
            | Self::UserUnknown
            | Self::UserAddress
            | Self::PasswordMissing
            | Self::PasswordWrong => ReasonKind::Credentials,
            Self::ClientId => ReasonKind::ClientId,
            Self::FiltersTooMany
            | Self::ReceiveMaximum
            | Self::PasswordBusy
            | Self::TurnedAway(_)
            | Self::ConnectTimeout
            | Self::GaveWay
            | Self::PacketTimeout
            | Self::WriteStall
            | Self::Overload => ReasonKind::Limits,
            Self::FilterMalformed
            | Self::Version
            | Self::AuthMethod
            | Self::ProxyHeader
            | Self::Tls
            | Self::Http
            | Self::Violation(_) => ReasonKind::Protocol,
            Self::ListenerGone | Self::Kicked | Self::KeptOut | Self::Drained => {
                ReasonKind::Operator
            }
            Self::UpstreamUnavailable
            | Self::UpstreamRefused
            | Self::UpstreamClosed
            | Self::UpstreamStalled
            | Self::UpstreamViolation(_) => ReasonKind::Upstream,
        }
    }

    /// The clause that was broken, by either side, if one was.
    pub fn violation(self) -> Option<Violation> {
        if let Self::Violation(violation) | Self::UpstreamViolation(violation) = self {
            Some(violation)
        } else {
            None
        }
    }

    /// The names of all reasons, each once.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let turned_away = Counter::ALL.iter().filter(|counter| counter.is_refusal());
        let any = Violation::SecondConnect;
        Self::PLAIN
            .into_iter()
            .chain([Self::Violation(any), Self::UpstreamViolation(any)])
            .chain(turned_away.map(|counter| Self::TurnedAway(*counter)))
            .filter(|reason| *reason != Self::TurnedAway(Counter::RefusedListenerGone))
            .map(Self::name)
    }

    /// Why the rules refuse.
    fn of_denial(denial: Denial, rule: Option<RuleId>) -> Self {
        match (denial, rule) {
            (Denial::NotAuthorized, None) => Self::NoRule,
            (Denial::NotAuthorized, Some(_)) => Self::DeniedByRule,
            (Denial::RetainRefused, _) => Self::RetainRefused,
            (Denial::QosRefused, _) => Self::QosRefused,
            (Denial::PayloadTooLarge, _) => Self::PayloadTooLarge,
            (Denial::TooComplex, _) => Self::TooComplex,
        }
    }

    /// What a client did wrong.
    fn of_violation(violation: Violation) -> Self {
        let code = violation.reason_code();
        if code == ReasonCode::UnsupportedProtocolVersion {
            Self::Version
        } else if code == ReasonCode::PacketTooLarge {
            Self::PacketTooLarge
        } else {
            Self::Violation(violation)
        }
    }

    /// Why a session ended, when that was a refusal that is told nowhere else: not a client that left, was silent or lost
    /// its broker.
    pub(super) fn of_end(cause: Cause, is_open: bool) -> Option<Self> {
        Some(match cause {
            Cause::ClientDisconnect
            | Cause::ClientGone
            | Cause::UpstreamGone
            | Cause::UpstreamDisconnect
            | Cause::KeepAlive
            | Cause::Unauthenticated
            | Cause::Denied
            | Cause::Refused
            | Cause::ListenerGone
            | Cause::Busy => return None,
            Cause::Drained if is_open => return None,
            Cause::Drained => Self::Drained,
            Cause::UpstreamRefused => Self::UpstreamRefused,
            Cause::UpstreamUnavailable => Self::UpstreamUnavailable,
            Cause::UpstreamClosed => Self::UpstreamClosed,
            Cause::UpstreamStalled => Self::UpstreamStalled,
            Cause::Violation(violation) => Self::of_violation(violation),
            Cause::UpstreamViolation(violation) => Self::UpstreamViolation(violation),
            Cause::ConnectTimeout => Self::ConnectTimeout,
            Cause::GaveWay => Self::GaveWay,
            Cause::PacketTimeout => Self::PacketTimeout,
            Cause::WriteStall => Self::WriteStall,
            Cause::Kicked => Self::Kicked,
            Cause::KeptOut => Self::KeptOut,
            Cause::ClientNoRoom => Self::ClientNoRoom,
            Cause::Overload => Self::Overload,
        })
    }
}

/// Kinds of reasons, for those who look for one and not for its exact name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasonKind {
    /// The rules say no.
    Rules,
    /// Something is longer than it may be.
    TooLarge,
    /// Who it is was not proven.
    Credentials,
    /// The client id.
    ClientId,
    /// A bound in number, time or memory.
    Limits,
    /// What was sent is not what is spoken there.
    Protocol,
    /// Something an operator did.
    Operator,
    /// The way to the broker, or the broker.
    Upstream,
}

impl ReasonKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Rules,
        Self::TooLarge,
        Self::Credentials,
        Self::ClientId,
        Self::Limits,
        Self::Protocol,
        Self::Operator,
        Self::Upstream,
    ];

    /// Its name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::TooLarge => "too_large",
            Self::Credentials => "credentials",
            Self::ClientId => "client_id",
            Self::Limits => "limits",
            Self::Protocol => "protocol",
            Self::Operator => "operator",
            Self::Upstream => "upstream",
        }
    }
}

/// Counts a decision for the rule that made it, and for the shadow rule that would have.
#[inline]
fn count_rules(
    context: &Context<'_>,
    rule: Option<RuleId>,
    first: Option<RuleId>,
    shadow: Option<RuleId>,
) {
    let Some(rules) = context.rules else {
        return;
    };
    rules.decided(rule.map(|rule| rule.0));
    if let Some(RuleId(first)) = first {
        rules.would_decide(first, shadow.is_some());
    }
}

impl Session {
    /// The record of an answer to this session.
    fn record<'a>(&'a self, wanted: Wanted<'a>, refused: Option<Reason>) -> DecisionRecord<'a> {
        DecisionRecord {
            peer: self.peer(),
            listener: self.listener,
            version: self.version(),
            client_id: self.identity.client_id(),
            user: self
                .identity
                .username()
                .map_or(User::Nobody, User::Verified),
            wanted,
            refused,
            rule: None,
            shadow: None,
        }
    }

    /// Counts and records a verdict.
    #[inline]
    pub(super) fn note(&self, context: &mut Context<'_>, wanted: Wanted<'_>, verdict: &Verdict) {
        count_rules(context, verdict.rule, verdict.shadow_first, verdict.shadow);
        if verdict.shadow.is_some() {
            context.counters.add(shadow_counter(wanted.act), 1);
        }
        if context.decisions.is_some() || verdict.decision != Decision::Allow {
            self.note_verdict(context, wanted, verdict);
        }
    }

    #[inline(never)]
    fn note_verdict(&self, context: &mut Context<'_>, wanted: Wanted<'_>, verdict: &Verdict) {
        let refused = match verdict.decision {
            Decision::Allow => None,
            Decision::Deny(denial) => Some(Reason::of_denial(denial, verdict.rule)),
        };
        tell(
            context,
            &DecisionRecord {
                rule: verdict.rule,
                shadow: verdict.shadow,
                ..self.record(wanted, refused)
            },
        );
    }

    /// Records that the session may open, or stay.
    pub(super) fn note_admitted(&self, context: &mut Context<'_>, admission: &Admission) {
        let (rule, shadow) = (admission.rule, admission.shadow);
        count_rules(context, rule, admission.shadow_first, shadow);
        if shadow.is_some() {
            context.counters.add(Counter::ShadowConnect, 1);
        }
        let record = self.record(Wanted::only(Act::Connect), None);
        tell(
            context,
            &DecisionRecord {
                rule,
                shadow,
                ..record
            },
        );
    }

    /// Records that it may not; `claimed` is the user that it named and did not prove.
    pub(super) fn note_refused(
        &self,
        context: &mut Context<'_>,
        refused: Refused,
        claimed: Option<&str>,
    ) {
        let reason = match refused.refusal {
            Refusal::ClientIdentifier => Reason::ClientId,
            Refusal::Version => Reason::Version,
            Refusal::NotAuthorized => Reason::of_denial(Denial::NotAuthorized, refused.rule),
            Refusal::ListenerGone => Reason::ListenerGone,
            Refusal::Credentials => self.credentials_fault(context),
        };
        // Other refusals come before the rules are asked.
        if refused.refusal == Refusal::NotAuthorized {
            count_rules(context, refused.rule, refused.shadow_first, refused.shadow);
        }
        if refused.shadow.is_some() {
            context.counters.add(Counter::ShadowConnect, 1);
        }
        let record = self.record(Wanted::only(Act::Connect), Some(reason));
        tell(
            context,
            &DecisionRecord {
                user: claimed.map_or(record.user, User::Claimed),
                rule: refused.rule,
                shadow: refused.shadow,
                ..record
            },
        );
    }

    /// Why a session is refused that named no user, or one who was proven once.
    fn credentials_fault(&self, context: &Context<'_>) -> Reason {
        let Some(name) = self.identity.username() else {
            return Reason::UserMissing;
        };
        match context.snapshot.user(name) {
            None => Reason::UserUnknown,
            Some(user) if !user.may_come_from(self.peer) => Reason::UserAddress,
            // The address proved who it is, and that is not enough any more.
            Some(_) => Reason::PasswordMissing,
        }
    }

    /// Records a refusal by something other than the rules.
    pub(super) fn note_denial(
        &self,
        context: &mut Context<'_>,
        wanted: Wanted<'_>,
        reason: Reason,
    ) {
        tell(context, &self.record(wanted, Some(reason)));
    }

    /// The same for a CONNECT whose user is not proven.
    pub(super) fn note_login_failed(
        &self,
        context: &mut Context<'_>,
        username: &str,
        reason: Reason,
    ) {
        let record = self.record(Wanted::only(Act::Connect), Some(reason));
        tell(
            context,
            &DecisionRecord {
                user: User::Claimed(username),
                ..record
            },
        );
    }

    /// Records why the session ends.
    pub(super) fn note_end(&self, context: &mut Context<'_>, reason: Reason) {
        let act = match self.phase {
            Phase::Open => Act::Session,
            Phase::Connecting
            | Phase::Authenticating
            | Phase::Dialling
            | Phase::Connack
            | Phase::Ended => Act::Connect,
        };
        self.note_denial(context, Wanted::only(act), reason);
    }
}

/// Hands a record to those who want it.
fn tell(context: &mut Context<'_>, record: &DecisionRecord<'_>) {
    if let Some(decisions) = context.decisions.as_mut() {
        decisions(record);
    }
    if record.refused.is_some()
        && let Some(denials) = context.denials.as_mut()
    {
        denials(record);
    }
}

fn shadow_counter(act: Act) -> Counter {
    match act.action() {
        Action::Connect => Counter::ShadowConnect,
        Action::Publish => Counter::ShadowPublish,
        Action::Subscribe => Counter::ShadowSubscribe,
        Action::Receive => Counter::ShadowReceive,
    }
}

/// What else than MQTT the first bytes of a connection are, as far as they can tell.
pub(super) fn other_protocol(bytes: &[u8]) -> Option<Reason> {
    const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"POST ",
        b"PUT ",
        b"HEAD ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"PRI * ",
    ];
    let is_begin_of = |whole: &[u8], least: usize| {
        let len = bytes.len().min(whole.len());
        len >= least && bytes.get(..len) == whole.get(..len)
    };
    if is_begin_of(b"\x16\x03", 1) {
        Some(Reason::Tls)
    } else if is_begin_of(PROXY_V2, 2) || is_begin_of(b"PROXY ", 2) {
        Some(Reason::ProxyHeader)
    } else if METHODS.into_iter().any(|method| is_begin_of(method, 2)) {
        Some(Reason::Http)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_none_is_empty() {
        let names: Vec<&str> = Reason::names().collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        assert!(!distinct.contains(""));
        assert!(distinct.contains("node_full") && distinct.contains("violation"));
        assert_eq!(
            ReasonKind::ALL
                .map(ReasonKind::name)
                .into_iter()
                .collect::<BTreeSet<_>>()
                .len(),
            ReasonKind::ALL.len()
        );
        assert_eq!(
            Act::ALL
                .map(Act::name)
                .into_iter()
                .collect::<BTreeSet<_>>()
                .len(),
            Act::ALL.len()
        );
    }

    #[test]
    fn other_protocols_are_told_by_their_first_bytes() {
        let cases: [(&[u8], Option<Reason>); 12] = [
            (b"\x16\x03\x01\x02\x00\x01", Some(Reason::Tls)),
            (b"\x16", Some(Reason::Tls)),
            (b"GET /mqtt HTTP/1.1\r\n", Some(Reason::Http)),
            (b"PO", Some(Reason::Http)),
            (b"CONNECT broker:1883 HTTP/1.1", Some(Reason::Http)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Reason::Http)),
            (b"PROXY TCP4 192.0.2.1", Some(Reason::ProxyHeader)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", Some(Reason::ProxyHeader)),
            (b"P", None),
            (b"\x16\x00", None),
            (b"\x10\x0c\0\x04MQTT", None),
            (b"", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(other_protocol(bytes), expected, "{bytes:02x?}");
        }
    }
}
