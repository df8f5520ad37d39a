//! How a session ends: one table from cause to bytes down, bytes up, and what becomes of the will.
//!
//! Owns the only place that outputs [`Output::Close`]. The will is the broker's to publish: closing the upstream without
//! DISCONNECT publishes it, a DISCONNECT sent first suppresses it. So the table only says when DISCONNECT goes up first:
//! when the current generation would refuse the will as a message, and when a drain is set to suppress wills.

use sluice_policy::{Decision, Refusal};
use sluice_wire::mqtt::{
    Connack, Disconnect, Packet, Properties, PropertyId, ReasonCode, Version, Violation, encode,
};

use super::lane::Route;
use super::reason_string::Why;
use super::{Context, Output, Phase, Reason, Session, Side, Unanswered, packets};
use crate::metrics::Counter;

/// Why a session ended: the rows of the table below. One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// DISCONNECT from the client.
    ClientDisconnect,
    /// FIN or reset from the client without DISCONNECT.
    ClientGone,
    /// FIN or reset from the broker after CONNACK, without DISCONNECT.
    UpstreamGone,
    /// DISCONNECT from the broker, which was passed on.
    UpstreamDisconnect,
    /// The broker refused the CONNECT; its CONNACK was passed on.
    UpstreamRefused,
    /// No upstream could be reached, or it gave no CONNACK: 3 / 0x88.
    UpstreamUnavailable,
    /// The broker closed the connection in the place of a CONNACK: 0x80, or the end.
    UpstreamClosed,
    /// The broker began a packet and did not finish it in time, or did not answer.
    UpstreamStalled,
    /// The client broke the protocol.
    Violation(Violation),
    /// The broker broke the protocol.
    UpstreamViolation(Violation),
    /// CONNECT was refused: credentials.
    Unauthenticated,
    /// CONNECT was refused, or the session was ended, by policy.
    Denied,
    /// Client id, version or authentication method refused at CONNECT.
    Refused,
    /// The listener is gone from the policy.
    ListenerGone,
    /// Hashing queue full: 3 / 0x89.
    Busy,
    /// No CONNECT in time.
    ConnectTimeout,
    /// No CONNECT yet, and another connection needed the place.
    GaveWay,
    /// A packet once begun was not finished in time.
    PacketTimeout,
    /// Keep alive ran out: 0x8d.
    KeepAlive,
    /// The client does not take what it is owed.
    WriteStall,
    /// Kick: 0x98.
    Kicked,
    /// CONNECT of a client that an operator keeps out: 5 / 0x8a.
    KeptOut,
    /// Drain: 0x8b.
    Drained,
    /// The client takes no packet as long as one it had to be sent [MQTT-3.1.2-24]: 0x95.
    ClientNoRoom,
    /// A bound of ours was reached: the memory budget, messages in flight.
    Overload,
}

/// What a client is told: before CONNACK a return code (3.x) or reason code (5), afterwards a DISCONNECT (5 only).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Farewell {
    /// CONNACK of 3.1 and 3.1.1; `None` closes without a word.
    connack_3: Option<u8>,
    /// CONNACK of 5.
    connack_5: Option<ReasonCode>,
    /// DISCONNECT of 5.
    disconnect_5: Option<ReasonCode>,
    /// The message that was to blame.
    why: Option<Why>,
}

impl Farewell {
    const SILENT: Self = Self {
        connack_3: None,
        connack_5: None,
        disconnect_5: None,
        why: None,
    };

    const fn new(connack_3: u8, connack_5: ReasonCode, disconnect_5: ReasonCode) -> Self {
        Self {
            connack_3: Some(connack_3),
            connack_5: Some(connack_5),
            disconnect_5: Some(disconnect_5),
            why: None,
        }
    }
}

impl Cause {
    /// The table. MQTT 3.1.1 [MQTT-3.1.4-1] wants no CONNACK for a malformed CONNECT, hence no code for violations.
    fn farewell(self) -> Farewell {
        use ReasonCode as R;
        match self {
            Self::ClientDisconnect
            | Self::ClientGone
            | Self::UpstreamDisconnect
            | Self::UpstreamRefused => Farewell::SILENT,
            // Nothing was said yet, or nothing is taken any more.
            Self::ConnectTimeout | Self::GaveWay | Self::WriteStall => Farewell::SILENT,
            // As the broker did it: a client of 3.x hears no code that the broker did not say.
            Self::UpstreamClosed => Farewell {
                connack_3: None,
                connack_5: Some(R::UnspecifiedError),
                disconnect_5: Some(R::UnspecifiedError),
                why: None,
            },
            Self::UpstreamGone
            | Self::UpstreamUnavailable
            | Self::UpstreamStalled
            | Self::UpstreamViolation(_) => {
                Farewell::new(3, R::ServerUnavailable, R::UnspecifiedError)
            }
            Self::Violation(violation) => Farewell {
                connack_3: None,
                connack_5: Some(violation.reason_code()),
                disconnect_5: Some(violation.reason_code()),
                why: None,
            },
            Self::Unauthenticated => Farewell::new(4, R::BadUserNameOrPassword, R::NotAuthorized),
            Self::Denied => Farewell::new(5, R::NotAuthorized, R::NotAuthorized),
            Self::Refused => Farewell::new(2, R::ClientIdentifierNotValid, R::NotAuthorized),
            Self::ListenerGone => Farewell::new(3, R::ServerUnavailable, R::AdministrativeAction),
            Self::Busy => Farewell::new(3, R::ServerBusy, R::ServerBusy),
            Self::PacketTimeout => Farewell::new(3, R::UnspecifiedError, R::UnspecifiedError),
            Self::KeepAlive => Farewell::new(3, R::UnspecifiedError, R::KeepAliveTimeout),
            Self::Kicked => Farewell::new(5, R::NotAuthorized, R::AdministrativeAction),
            Self::KeptOut => Farewell::new(5, R::Banned, R::Banned),
            Self::Drained => Farewell::new(3, R::ServerUnavailable, R::ServerShuttingDown),
            Self::ClientNoRoom => Farewell::new(3, R::PacketTooLarge, R::PacketTooLarge),
            Self::Overload => Farewell::new(3, R::ServerBusy, R::QuotaExceeded),
        }
    }

    /// Its name in the log: the `cause` label of its counter.
    pub fn name(self) -> &'static str {
        self.counter()
            .labels()
            .first()
            .map_or("", |(_, value)| value)
    }

    /// The clause that was broken, by either side, if one was.
    pub fn violation(self) -> Option<Violation> {
        match self {
            Self::Violation(violation) | Self::UpstreamViolation(violation) => Some(violation),
            Self::ClientDisconnect
            | Self::ClientGone
            | Self::UpstreamGone
            | Self::UpstreamDisconnect
            | Self::UpstreamRefused
            | Self::UpstreamUnavailable
            | Self::UpstreamClosed
            | Self::UpstreamStalled
            | Self::Unauthenticated
            | Self::Denied
            | Self::Refused
            | Self::ListenerGone
            | Self::Busy
            | Self::ConnectTimeout
            | Self::GaveWay
            | Self::PacketTimeout
            | Self::KeepAlive
            | Self::WriteStall
            | Self::Kicked
            | Self::KeptOut
            | Self::Drained
            | Self::ClientNoRoom
            | Self::Overload => None,
        }
    }

    /// Its counter.
    pub fn counter(self) -> Counter {
        match self {
            Self::ClientDisconnect => Counter::EndedClientDisconnect,
            Self::ClientGone => Counter::EndedClientGone,
            Self::UpstreamGone => Counter::EndedUpstreamGone,
            Self::UpstreamDisconnect => Counter::EndedUpstreamDisconnect,
            Self::UpstreamRefused => Counter::EndedUpstreamRefused,
            Self::UpstreamUnavailable => Counter::EndedUpstreamUnavailable,
            Self::UpstreamClosed => Counter::EndedUpstreamClosed,
            Self::UpstreamStalled => Counter::EndedUpstreamStalled,
            Self::Violation(_) => Counter::EndedViolation,
            Self::UpstreamViolation(_) => Counter::EndedUpstreamViolation,
            Self::Unauthenticated => Counter::EndedUnauthenticated,
            Self::Denied => Counter::EndedDenied,
            Self::Refused => Counter::EndedRefused,
            Self::ListenerGone => Counter::EndedListenerGone,
            Self::Busy => Counter::EndedBusy,
            Self::ConnectTimeout => Counter::EndedConnectTimeout,
            Self::GaveWay => Counter::EndedGaveWay,
            Self::PacketTimeout => Counter::EndedPacketTimeout,
            Self::KeepAlive => Counter::EndedKeepAlive,
            Self::WriteStall => Counter::EndedWriteStall,
            Self::Kicked => Counter::EndedKicked,
            Self::KeptOut => Counter::EndedKeptOut,
            Self::Drained => Counter::EndedDrained,
            Self::ClientNoRoom => Counter::EndedClientNoRoom,
            Self::Overload => Counter::EndedOverload,
        }
    }
}

impl Session {
    /// Ends the session as the table says.
    pub(super) fn end(&mut self, context: &mut Context<'_>, cause: Cause) {
        self.end_with(context, cause, cause.farewell());
    }

    /// `side` finished sending, and what it sent was taken up.
    pub(super) fn closed(&mut self, context: &mut Context<'_>, side: Side) {
        match (side, self.phase) {
            (Side::Downstream, _) => self.end(context, Cause::ClientGone),
            (Side::Upstream, Phase::Open) => self.end(context, Cause::UpstreamGone),
            (Side::Upstream, Phase::Connack) => self.unanswered(context, Unanswered::Closed),
            // There is no broker then.
            (
                Side::Upstream,
                Phase::Connecting | Phase::Authenticating | Phase::Dialling | Phase::Ended,
            ) => {}
        }
    }

    /// An operator, a drain or the shard ends the session.
    pub(super) fn finish(&mut self, context: &mut Context<'_>, cause: Cause) {
        match (cause, self.phase) {
            // It does not even take CONNECT.
            (Cause::UpstreamStalled, Phase::Connack) => {
                self.unanswered(context, Unanswered::Silent);
            }
            (_, _) => self.end(context, cause),
        }
    }

    /// The same for another reason than the cause has by itself.
    pub(super) fn end_because(
        &mut self,
        context: &mut Context<'_>,
        cause: Cause,
        reason: Option<Reason>,
    ) {
        self.end_for(context, cause, cause.farewell(), reason);
    }

    /// Ends the session with another DISCONNECT reason than the cause has by itself, and the message that was to blame.
    pub(super) fn end_telling(
        &mut self,
        context: &mut Context<'_>,
        cause: Cause,
        reason: ReasonCode,
        why: Option<Why>,
    ) {
        let farewell = Farewell {
            disconnect_5: Some(reason),
            why,
            ..cause.farewell()
        };
        let reason = if reason == ReasonCode::ReceiveMaximumExceeded {
            Some(Reason::ReceiveMaximum)
        } else {
            Reason::of_end(cause, self.phase == Phase::Open)
        };
        self.end_for(context, cause, farewell, reason);
    }

    /// Ends a session that has no CONNACK yet, with these codes.
    pub(super) fn refuse_connect(
        &mut self,
        context: &mut Context<'_>,
        cause: Cause,
        code_3: u8,
        code_5: ReasonCode,
    ) {
        self.end_with(context, cause, Farewell::new(code_3, code_5, code_5));
    }

    /// Ends the session with the code by which the first broker refused it, since the second could not be reached.
    pub(super) fn refuse_unavailable(&mut self, context: &mut Context<'_>, code: u8) {
        let code_5 = if code == ReasonCode::ServerBusy.byte() {
            ReasonCode::ServerBusy
        } else {
            ReasonCode::ServerUnavailable
        };
        self.refuse_connect(context, Cause::UpstreamRefused, 3, code_5);
    }

    /// Ends the session because policy does not admit it, whether at CONNECT or later.
    pub(super) fn refuse_admission(&mut self, context: &mut Context<'_>, refusal: Refusal) {
        use ReasonCode as R;
        let (cause, code_3, code_5, disconnect) = match refusal {
            Refusal::ClientIdentifier => (
                Cause::Refused,
                2,
                R::ClientIdentifierNotValid,
                R::NotAuthorized,
            ),
            Refusal::Version => (
                Cause::Refused,
                1,
                R::UnsupportedProtocolVersion,
                R::NotAuthorized,
            ),
            Refusal::Credentials => (
                Cause::Unauthenticated,
                4,
                R::BadUserNameOrPassword,
                R::NotAuthorized,
            ),
            Refusal::NotAuthorized => (Cause::Denied, 5, R::NotAuthorized, R::NotAuthorized),
            Refusal::ListenerGone => (
                Cause::ListenerGone,
                3,
                R::ServerUnavailable,
                R::AdministrativeAction,
            ),
        };
        // Whatever the reason was called at CONNECT, a session that is taken away is denied by policy.
        let cause = match (self.is_judged(), cause) {
            (true, Cause::Refused | Cause::Unauthenticated) => Cause::Denied,
            (_, cause) => cause,
        };
        self.end_with(context, cause, Farewell::new(code_3, code_5, disconnect));
    }

    /// A side broke the protocol.
    pub(super) fn broken(&mut self, context: &mut Context<'_>, side: Side, violation: Violation) {
        if (side, self.phase) == (Side::Upstream, Phase::Connack) {
            return self.unanswered(context, Unanswered::Broken(violation));
        }
        let cause = match side {
            Side::Downstream => Cause::Violation(violation),
            Side::Upstream => Cause::UpstreamViolation(violation),
        };
        self.end(context, cause);
    }

    /// DISCONNECT: the client's goes on as it is, unless it would set off a will that the current generation forbids.
    pub(super) fn disconnect(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        disconnect: &Disconnect<'_>,
    ) -> Route {
        if from == Side::Upstream {
            return Route::Last(Cause::UpstreamDisconnect);
        }
        // The broker would answer this, but nobody waits for an answer to DISCONNECT here (section 3.14.2.2.2).
        let expiry = disconnect
            .properties
            .number(PropertyId::SessionExpiryInterval);
        if self.expires_at_close && expiry.unwrap_or(0) > 0 {
            self.broken(context, from, Violation::SessionExpiryRaised);
            return Route::Absorb;
        }
        if disconnect.code == 0 || !self.is_will_forbidden(context) {
            return Route::Last(Cause::ClientDisconnect);
        }
        let harmless = Packet::Disconnect(Disconnect {
            code: 0,
            properties: disconnect.properties,
        });
        if !self.encode_to(context, Side::Upstream, |version, buffer| {
            encode(version, &harmless, buffer)
        }) {
            return Route::Absorb;
        }
        context.counters.add(Counter::WillSuppressed, 1);
        self.end(context, Cause::ClientDisconnect);
        Route::Absorb
    }

    fn end_with(&mut self, context: &mut Context<'_>, cause: Cause, farewell: Farewell) {
        let reason = Reason::of_end(cause, self.phase == Phase::Open);
        self.end_for(context, cause, farewell, reason);
    }

    fn end_for(
        &mut self,
        context: &mut Context<'_>,
        cause: Cause,
        farewell: Farewell,
        reason: Option<Reason>,
    ) {
        if self.phase == Phase::Ended {
            return;
        }
        if let Some(reason) = reason {
            self.note_end(context, reason);
        }
        if self.must_suppress_will(context, cause) && self.is_at_boundary(Side::Upstream) {
            let packet = packets::disconnect(self.version, 0);
            context.out.write(Side::Upstream, &packet);
            context.counters.add(Counter::WillSuppressed, 1);
        }
        if self.is_at_boundary(Side::Downstream)
            && let Some(packet) = self.last_words(context, cause, farewell)
            && self.is_taken(packet.len())
        {
            context.out.write(Side::Downstream, &packet);
        }
        context.counters.add(cause.counter(), 1);
        context.out.list.push(Output::Close(cause));
        self.phase = Phase::Ended;
        self.rare = None;
        self.will = None;
        self.down.clear();
        self.up.clear();
    }

    fn last_words(
        &self,
        context: &Context<'_>,
        cause: Cause,
        farewell: Farewell,
    ) -> Option<packets::Small> {
        if self.version == Version::V5 {
            let (is_open, code) = match self.phase {
                Phase::Connecting | Phase::Ended => return None,
                Phase::Authenticating | Phase::Dialling | Phase::Connack => {
                    (false, farewell.connack_5?)
                }
                Phase::Open => (true, farewell.disconnect_5?),
            };
            let saying = self.last_words_saying(context, cause, code, farewell.why);
            return Some(saying.unwrap_or_else(|| {
                if is_open {
                    packets::disconnect(self.version, code.byte())
                } else {
                    packets::connack_refusal(self.version, code.byte())
                }
            }));
        }
        match self.phase {
            Phase::Connecting | Phase::Open | Phase::Ended => None,
            Phase::Authenticating | Phase::Dialling | Phase::Connack => {
                let code = farewell.connack_3?;
                Some(packets::connack_refusal(self.version, code))
            }
        }
    }

    /// The same with a Reason String, which both packets may have whatever the client wants [MQTT-3.1.2-29].
    fn last_words_saying(
        &self,
        context: &Context<'_>,
        cause: Cause,
        code: ReasonCode,
        why: Option<Why>,
    ) -> Option<packets::Small> {
        let text = self.end_text(context, cause, code, why)?;
        let code = code.byte();
        let packet = self.fitting(Properties::EMPTY, &text, |properties, out| {
            let packet = if self.phase == Phase::Open {
                Packet::Disconnect(Disconnect { code, properties })
            } else {
                Packet::Connack(Connack {
                    session_present: false,
                    code,
                    properties,
                })
            };
            encode(self.version, &packet, out)
        })?;
        Some(packet.into())
    }

    /// True exactly when the upstream would publish a will that it must not.
    fn must_suppress_will(&self, context: &mut Context<'_>, cause: Cause) -> bool {
        if self.will.is_none() || !matches!(self.phase, Phase::Connack | Phase::Open) {
            return false;
        }
        match cause {
            // The broker has the client's own DISCONNECT, or is not there to be told.
            Cause::ClientDisconnect
            | Cause::UpstreamGone
            | Cause::UpstreamDisconnect
            | Cause::UpstreamRefused
            | Cause::UpstreamUnavailable
            | Cause::UpstreamClosed
            | Cause::UpstreamStalled => false,
            Cause::Drained => {
                let publishes = context
                    .snapshot
                    .listener(self.listener)
                    .is_none_or(|listener| listener.drain_publishes_wills);
                !publishes || self.is_will_forbidden(context)
            }
            Cause::ClientGone
            | Cause::Violation(_)
            | Cause::UpstreamViolation(_)
            | Cause::Unauthenticated
            | Cause::Denied
            | Cause::Refused
            | Cause::ListenerGone
            | Cause::Busy
            | Cause::ConnectTimeout
            | Cause::GaveWay
            | Cause::PacketTimeout
            | Cause::KeepAlive
            | Cause::WriteStall
            | Cause::Kicked
            | Cause::KeptOut
            | Cause::ClientNoRoom
            | Cause::Overload => self.is_will_forbidden(context),
        }
    }

    /// Judges the will by the current generation. A session that the generation does not admit has no classes in it, and
    /// with them no right to publish anything; only a listener that was taken away says nothing about its sessions.
    pub(super) fn is_will_forbidden(&self, context: &mut Context<'_>) -> bool {
        let Some(will) = self.will.as_deref() else {
            return false;
        };
        if context.snapshot.listener(self.listener).is_none() {
            return false;
        }
        self.generation != context.snapshot.generation()
            || self.is_admitting()
            || self.judge_will(context, will).decision != Decision::Allow
    }
}
