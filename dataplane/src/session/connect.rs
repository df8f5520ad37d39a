//! CONNECT: who is it, may it open a session, and what is told to the upstream.
//!
//! Owns the order of questions: parse, listener, version, client id, enhanced authentication, credentials (off the
//! shard), connect rules, will; only then is the upstream dialled. Credentials go upstream as the client sent them.

use std::time::Duration;

use sluice_policy::{Decision, Denial, Refusal, Refused, Verdict, Verifier};
use sluice_wire::mqtt::{
    Connect, Property, PropertyEdit, PropertyId, QoS, ReasonCode, Version, Violation, Will,
    decode_connect, encode_connect,
};

use super::lane::{self, Route};
use super::record::other_protocol;
use super::{
    Act, AuthOutcome, Cause, Context, Credentials, Identity, Message, Output, Phase, Reason,
    Session, Side,
};
use crate::metrics::Counter;

/// The bytes of a CONNECT with whatever password is in it; wiped when dropped.
#[derive(Default)]
pub(super) struct KeptConnect {
    bytes: Vec<u8>,
}

impl KeptConnect {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Drop for KeptConnect {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.bytes);
    }
}

/// What is kept of a will, to judge it again: a later generation may forbid it. QoS and RETAIN are as sent upstream.
pub(super) struct WillRecord {
    topic: Box<str>,
    response_topic: Option<Box<str>>,
    message: Message,
}

impl WillRecord {
    pub(super) fn heap_bytes(&self) -> usize {
        let response_topic = self.response_topic.as_ref().map_or(0, |topic| topic.len());
        size_of::<Self>() + self.topic.len() + response_topic
    }

    fn of(will: &Will<'_>) -> Self {
        Self {
            topic: will.topic.into(),
            response_topic: will
                .properties
                .text(PropertyId::ResponseTopic)
                .map(Into::into),
            message: Message {
                qos: will.qos,
                retain: will.retain,
                payload_bytes: u32::try_from(will.payload.len()).unwrap_or(u32::MAX),
            },
        }
    }
}

impl Session {
    /// The first packet of the client.
    pub(super) fn connect(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Route {
        context.counters.add(Counter::ConnectReceived, 1);
        match decode_connect(bytes) {
            Ok(connect) => self.question(context, &connect, bytes),
            Err(violation) => self.refuse_undecodable(context, bytes, violation),
        }
        Route::Absorb
    }

    /// A first packet that cannot be read. Its sender is answered in the version it claims, as far as that can be told.
    pub(super) fn refuse_undecodable(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
        violation: Violation,
    ) {
        let cause = Cause::Violation(violation);
        if let Some(protocol) = other_protocol(bytes) {
            context.out.list.push(Output::OtherProtocol(protocol));
            return self.end_because(context, cause, Some(protocol));
        }
        let level = claimed_level(bytes);
        if violation.reason_code() == ReasonCode::UnsupportedProtocolVersion {
            // A level above ours is a later version, which may know the CONNACK of 5; one below can only know the old.
            self.version = match level {
                Some(6..=0x7f) => Version::V5,
                _ => Version::V311,
            };
            self.phase = Phase::Authenticating;
            return self.refuse_connect(context, cause, 1, ReasonCode::UnsupportedProtocolVersion);
        }
        match level {
            Some(3 | 0x83) => self.version = Version::V31,
            Some(5) => {
                self.version = Version::V5;
                self.phase = Phase::Authenticating;
            }
            _ => {}
        }
        self.end(context, cause);
    }

    /// Everything that can be asked without the password.
    fn question(&mut self, context: &mut Context<'_>, connect: &Connect<'_>, bytes: &[u8]) {
        self.version = connect.version;
        self.learn_client_limits(connect);
        // From here on the version is known, so that a refusal is a CONNACK.
        self.phase = Phase::Authenticating;
        if !self.is_taken(CONNACK_BYTES_MIN) {
            return self.end(context, Cause::ClientNoRoom);
        }
        let Some(listener) = context.snapshot.listener(self.listener) else {
            return self.refuse_early(context, connect, Refusal::ListenerGone);
        };
        if !listener.versions.contains(&connect.version) {
            return self.refuse_early(context, connect, Refusal::Version);
        }
        let Some(client_id) = self.effective_client_id(context, connect) else {
            return self.refuse_early(context, connect, Refusal::ClientIdentifier);
        };
        self.identity = Identity::new(&client_id, None);
        if let Some(username) = connect.username.filter(|name| name.contains('\0')) {
            self.note_login_failed(context, username, Reason::UserUnknown);
            return self.refuse_admission(context, Refusal::Credentials);
        }
        if connect
            .properties
            .text(PropertyId::AuthenticationMethod)
            .is_some()
        {
            if !listener.upstream_auth_pass {
                let code = ReasonCode::BadAuthenticationMethod;
                self.note_end(context, Reason::AuthMethod);
                return self.refuse_connect(context, Cause::Refused, 5, code);
            }
            // The upstream proves who this is, not we: without a user name that we verified it is anonymous here, and the
            // listener must let such sessions in.
            self.upstream_auth = true;
        }
        self.rare().connect.bytes = bytes.to_vec();
        match connect.username.filter(|_| !listener.ignores_usernames) {
            None => self.identified(context, connect),
            Some(username) => self.prove(context, connect, username),
        }
    }

    /// A name must be proven: by the address, for a user who has no password, else by the password, which the pool verifies.
    fn prove(&mut self, context: &mut Context<'_>, connect: &Connect<'_>, username: &str) {
        let user = context.snapshot.user(username);
        let user = user.filter(|user| user.may_come_from(self.peer));
        let password = connect.password.unwrap_or_default();
        // A password that nothing would verify is refused, so that no one takes it for one that is; many clients send an
        // empty one for none.
        if user.is_some_and(|user| user.verifier.is_none()) && password.is_empty() {
            self.identity = Identity::new(self.identity.client_id(), Some(username));
            self.is_proven_by_address = true;
            return self.identified(context, connect);
        }
        // Without a password, without such a user, or from elsewhere, nothing is proven: it is verified against nothing,
        // which takes as long.
        let verifier = user.and_then(|user| user.verifier.clone());
        let verifier = verifier.filter(|_| connect.password.is_some());
        self.rare().verified_against = verifier.as_ref().map(Verifier::digest);
        let credentials = Credentials {
            username: username.into(),
            password: password.to_vec(),
            verifier,
        };
        context
            .out
            .list
            .push(Output::Authenticate(Box::new(credentials)));
    }

    /// What the client says of its own end. From here on nothing longer than it takes is sent to it.
    fn learn_client_limits(&mut self, connect: &Connect<'_>) {
        let number = |id| connect.properties.number(id);
        if let Some(bytes) = number(PropertyId::MaximumPacketSize) {
            self.client_bytes_max = bytes;
        }
        self.wants_problems = number(PropertyId::RequestProblemInformation) != Some(0);
        self.expires_at_close = connect.version == Version::V5
            && number(PropertyId::SessionExpiryInterval).unwrap_or(0) == 0;
    }

    /// The client id as it goes upstream: the client's, or ours when it has none and one is needed. `None` refuses.
    fn effective_client_id(
        &mut self,
        context: &mut Context<'_>,
        connect: &Connect<'_>,
    ) -> Option<String> {
        // Only 3.1 lets U+0000 through. A receiver that ends the text there would see another id than the rules do.
        if connect.client_id.contains('\0') {
            return None;
        }
        if !connect.client_id.is_empty() {
            return Some(connect.client_id.to_owned());
        }
        match connect.version {
            Version::V31 => return None,
            // [MQTT-3.1.3-8] of 3.1.1: a session that is to be kept needs a name of the client's choice.
            Version::V311 if !connect.clean_start => return None,
            Version::V311 | Version::V5 => {}
        }
        if !context.snapshot.needs_client_id(self.listener) {
            return Some(String::new());
        }
        context.counters.add(Counter::ClientIdAssigned, 1);
        self.assigned_client_id = true;
        // 22 letters and digits: within what every server must take ([MQTT-3.1.3-5]).
        Some(format!("sluice{:016x}", (context.random)()))
    }

    /// The pool has verified the password, or has not.
    pub(super) fn authenticated(&mut self, context: &mut Context<'_>, outcome: AuthOutcome) {
        self.with_kept_connect(context, |session, context, connect| {
            let Some(username) = connect.username else {
                return session.end(context, Cause::Unauthenticated);
            };
            let is_proven = session.is_proven(context, username);
            let (cause, reason) = match outcome {
                AuthOutcome::Verified if is_proven => (None, Reason::UserUnknown),
                AuthOutcome::Verified | AuthOutcome::Refused => {
                    let reason = session.login_fault(context, connect, username);
                    (Some(Cause::Unauthenticated), reason)
                }
                AuthOutcome::Busy => (Some(Cause::Busy), Reason::PasswordBusy),
            };
            if let Some(cause) = cause {
                session.note_login_failed(context, username, reason);
                return session.end(context, cause);
            }
            session.identity = Identity::new(session.identity.client_id(), Some(username));
            session.identified(context, connect);
        });
    }

    /// Goes on with a CONNECT whose admission was left.
    pub(super) fn go_on_identifying(&mut self, context: &mut Context<'_>) {
        let rare = self.rare.as_deref();
        let is_left = rare.is_some_and(|rare| rare.admitting.is_some());
        if is_left && self.phase == Phase::Authenticating {
            self.with_kept_connect(context, Self::identified);
        }
    }

    /// What is wrong with a login that was refused.
    fn login_fault(&self, context: &Context<'_>, connect: &Connect<'_>, username: &str) -> Reason {
        match context.snapshot.user(username) {
            None => Reason::UserUnknown,
            Some(user) if !user.may_come_from(self.peer) => Reason::UserAddress,
            Some(_) if connect.password.is_none() => Reason::PasswordMissing,
            Some(_) => Reason::PasswordWrong,
        }
    }

    /// Ends a session that is not admitted, before the rules were asked.
    fn refuse_early(&mut self, context: &mut Context<'_>, connect: &Connect<'_>, refusal: Refusal) {
        if self.identity.client_id().is_empty() {
            self.identity = Identity::new(connect.client_id, None);
        }
        let claimed = connect
            .username
            .filter(|_| self.identity.username().is_none());
        self.note_refused(context, Refused::from(refusal), claimed);
        self.refuse_admission(context, refusal);
    }

    /// True exactly when what was verified is what is stored: while it was, the row may have gone, or have got another
    /// password.
    fn is_proven(&mut self, context: &Context<'_>, username: &str) -> bool {
        let against = self.rare().verified_against.take();
        let user = context.snapshot.user(username);
        let stored = user.and_then(|user| user.verifier.as_ref());
        against.is_some() && stored.map(Verifier::digest) == against
    }

    /// Lends the kept CONNECT to `then`, and keeps it further unless the session has ended.
    fn with_kept_connect(
        &mut self,
        context: &mut Context<'_>,
        then: impl FnOnce(&mut Self, &mut Context<'_>, &Connect<'_>),
    ) {
        let kept = std::mem::take(&mut self.rare().connect);
        match decode_connect(&kept.bytes) {
            Ok(connect) => then(self, context, &connect),
            // It was decoded when it came.
            Err(violation) => self.end(context, Cause::Violation(violation)),
        }
        if self.phase != Phase::Ended {
            self.rare().connect = kept;
        }
    }

    /// Who it is has been settled: ask the connect rules and judge the will, then dial.
    fn identified(&mut self, context: &mut Context<'_>, connect: &Connect<'_>) {
        let Some(listener) = context.snapshot.listener(self.listener) else {
            return self.refuse_early(context, connect, Refusal::ListenerGone);
        };
        if self.identity.username().is_none() && !listener.anonymous {
            return self.refuse_early(context, connect, Refusal::Credentials);
        }
        match self.admit(context) {
            Some(Ok(())) => self.end_admitting(),
            Some(Err(refusal)) => return self.refuse_admission(context, refusal),
            // A later turn begins here again.
            None => return,
        };
        if let Some(will) = &connect.will
            && let Err((code_3, code_5)) = self.admit_will(context, will)
        {
            context.counters.add(Counter::WillDenied, 1);
            return self.refuse_connect(context, Cause::Denied, code_3, code_5);
        }
        self.timers.set_keep_alive(connect.keep_alive_secs);
        self.phase = Phase::Dialling;
        let key = match self.identity.client_id() {
            "" => (context.random)(),
            client_id => balance_key(client_id),
        };
        context.out.list.push(Output::Dial {
            upstream: listener.upstream,
            key,
            kept: wants_state_kept(connect),
        });
    }

    /// Judges the will of a CONNECT that has not gone upstream.
    pub(super) fn admit_kept_will(&mut self, context: &mut Context<'_>) {
        self.with_kept_connect(context, |session, context, connect| {
            if let Some(will) = &connect.will
                && let Err((code_3, code_5)) = session.admit_will(context, will)
            {
                context.counters.add(Counter::WillDenied, 1);
                session.refuse_connect(context, Cause::Denied, code_3, code_5);
            }
        });
    }

    /// Judges the will again before CONNECT brings it to another broker: a later generation may forbid it, or want it with a
    /// lower QoS or without RETAIN, which is noted. False when it is forbidden.
    pub(super) fn may_bring_will(&mut self, context: &mut Context<'_>) -> bool {
        let mut may = true;
        self.with_kept_connect(context, |session, context, connect| {
            if let Some(will) = &connect.will {
                may = session.admit_will(context, will).is_ok();
            }
        });
        may
    }

    /// Judges a will as the message it will become. The error is what CONNACK says, for 3.x and 5.
    fn admit_will(
        &mut self,
        context: &mut Context<'_>,
        will: &Will<'_>,
    ) -> Result<(), (u8, ReasonCode)> {
        let mut record = WillRecord::of(will);
        let verdict = self.judge_will(context, &record);
        match verdict.decision {
            Decision::Allow => {}
            Decision::Deny(denial) => return Err((5, denial_reason(denial))),
        }
        if verdict.qos_max < record.message.qos {
            record.message.qos = verdict.qos_max;
            context.counters.add(Counter::QosLowered, 1);
        }
        if record.message.retain && verdict.strip_retain {
            record.message.retain = false;
            context.counters.add(Counter::RetainStripped, 1);
        }
        self.will = Some(Box::new(record));
        Ok(())
    }

    /// The verdict on a will; its Response Topic must be one the sender may receive.
    pub(super) fn judge_will(&self, context: &mut Context<'_>, will: &WillRecord) -> Verdict {
        let verdict = self.judge(context, Act::Will, &will.topic, will.message);
        match &will.response_topic {
            Some(topic) if verdict.decision == Decision::Allow => {
                self.judge_response_topic(context, topic, verdict)
            }
            _ => verdict,
        }
    }

    /// The upstream is there: CONNECT goes to it. It is kept exactly when another broker can be asked if this one gives no
    /// answer.
    pub(super) fn send_connect(
        &mut self,
        context: &mut Context<'_>,
        another_after: Option<Duration>,
    ) {
        self.with_kept_connect(context, |session, context, connect| {
            session.up = lane::Lane::server();
            session.up.set_version(session.version);
            session.phase = Phase::Connack;
            session.put_connect(context, connect);
            session.timers.spoke(context.now);
        });
        self.begin_chance(context, another_after);
        if another_after.is_none() {
            self.forget_connect();
        }
    }

    /// Wipes the kept CONNECT.
    pub(super) fn forget_connect(&mut self) {
        if let Some(rare) = self.rare.as_mut() {
            rare.connect = KeptConnect::default();
        }
    }

    fn put_connect(&mut self, context: &mut Context<'_>, connect: &Connect<'_>) {
        let mut edits: Vec<PropertyEdit<'_>> = Vec::new();
        if connect.version == Version::V5 {
            self.lower_connect_limits(context, connect, &mut edits);
        }
        let client_id = self.identity.client_id().to_owned();
        let mut changed = Connect {
            client_id: &client_id,
            ..connect.clone()
        };
        if let (Some(will), Some(record)) = (&mut changed.will, &self.will) {
            will.qos = record.message.qos;
            will.retain = record.message.retain;
        }
        // Encoded again even when nothing changes: older versions allow bits that a broker may not take.
        self.encode_to(context, Side::Upstream, |_, buffer| {
            encode_connect(&changed, &edits, buffer)
        });
    }

    /// What the broker may do on its hop is the lower of what the client takes and what we take.
    fn lower_connect_limits(
        &mut self,
        context: &Context<'_>,
        connect: &Connect<'_>,
        edits: &mut Vec<PropertyEdit<'_>>,
    ) {
        let number = |id| connect.properties.number(id);
        let mut lower = |id, theirs: u32, ours: u32| {
            if ours < theirs {
                edits.push(PropertyEdit::Set(Property::Number(id, ours)));
            }
            theirs.min(ours)
        };
        let listener = context.snapshot.listener(self.listener);
        let aliases = listener.map_or(0, |listener| listener.limits.topic_alias_max);
        lower(
            PropertyId::MaximumPacketSize,
            number(PropertyId::MaximumPacketSize).unwrap_or(PACKET_BYTES_MAX),
            self.packet_bytes_max,
        );
        lower(
            PropertyId::ReceiveMaximum,
            number(PropertyId::ReceiveMaximum).unwrap_or(65_535),
            u32::from(self.receive_max),
        );
        let aliases = lower(
            PropertyId::TopicAliasMaximum,
            number(PropertyId::TopicAliasMaximum).unwrap_or(0),
            u32::from(aliases),
        );
        self.alias_max_down = u16::try_from(aliases).unwrap_or(u16::MAX);
    }
}

/// The longest packet that can be written: five bytes of fixed header and the largest remaining length. Who sets no
/// maximum means this one, so a listener that allows it has nothing lower to say.
pub(super) const PACKET_BYTES_MAX: u32 = 5 + 268_435_455;

/// The shortest CONNACK of version 5, the only one in which a client can say how much it takes.
const CONNACK_BYTES_MIN: usize = 5;

/// The keep alive that both ends go by, in seconds; 0 is none. Only a client of version 5 can be told another value
/// than its own, so the listener's maximum binds it alone; the greatest maximum there is binds nobody.
pub(super) fn lower_keep_alive(version: Version, asked: u16, max: u16) -> u16 {
    match (version, asked, max) {
        (Version::V31 | Version::V311, _, _) | (Version::V5, _, 0 | u16::MAX) => asked,
        (Version::V5, 0, _) => max,
        (Version::V5, _, _) => asked.min(max),
    }
}

/// What a refused message is called where a reason code says more than "not authorized".
pub(super) fn denial_reason(denial: Denial) -> ReasonCode {
    match denial {
        Denial::NotAuthorized | Denial::TooComplex => ReasonCode::NotAuthorized,
        Denial::RetainRefused => ReasonCode::RetainNotSupported,
        Denial::QosRefused => ReasonCode::QosNotSupported,
        Denial::PayloadTooLarge => ReasonCode::PacketTooLarge,
    }
}

/// True exactly when there may be state to come back to: from before this connection, or after it.
fn wants_state_kept(connect: &Connect<'_>) -> bool {
    let expiry = connect
        .properties
        .number(PropertyId::SessionExpiryInterval)
        .unwrap_or(0);
    !connect.clean_start || expiry > 0
}

/// Where a client id lies among the endpoints: FNV-1a, which is the same on every node and in every build, so that a
/// client reaches the broker that has its MQTT session wherever it connects.
fn balance_key(client_id: &str) -> u64 {
    client_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// The protocol level a CONNECT claims, found without trusting anything else in it. `None` when this is no CONNECT, or
/// not enough of one.
fn claimed_level(bytes: &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    let length_bytes = rest.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let (name, rest) = rest.get(length_bytes..)?.split_at_checked(6)?;
    match (*first, name) {
        (0x10..=0x1f, b"\0\x04MQTT") => rest.first().copied(),
        // The longer name of 3.1.
        (0x10..=0x1f, b"\0\x06MQIs") => rest.get(2).copied(),
        _ => None,
    }
}

/// A will, or a message, of no interest but for its topic.
pub(super) const BARE: Message = Message {
    qos: QoS::AtMostOnce,
    retain: false,
    payload_bytes: 0,
};
