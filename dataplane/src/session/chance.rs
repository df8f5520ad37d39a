//! The second chance of a CONNECT: a broker that gives no usable answer to it is left, once, for another one.
//!
//! Owns what "no usable answer" is and what the client hears when no broker gave one. Which other broker is asked,
//! and which one is charged, is the shard's to decide.
//!
//! # How a broker is left
//!
//! A broker that was merely slow, or stopped, reads what its kernel took for it when it wakes up: CONNECT, and then the
//! client's session would be taken over from where it is by now. What a broker makes of that was tried with Mosquitto, stopped by
//! SIGSTOP before it had accepted the connection: after FIN it takes the session over, whether DISCONNECT came first or
//! not; after a reset the connection is gone when it asks who its peer is, and it drops it unread. So a broker is left by a
//! reset. When it has accepted the connection before, nothing keeps it from reading CONNECT; then a reset would even make
//! it publish the will, since its CONNACK cannot be written, and only DISCONNECT before a FIN prevents that. So for a CONNECT with a
//! will DISCONNECT is written, then FIN, and the reset comes when the broker has not closed after the time that every
//! closing connection has.

use std::time::Duration;

use sluice_wire::mqtt::{Version, Violation};

use super::{Cause, Context, Dialled, Output, Phase, Session, Side, lane, packets};
use crate::clock::Time;
use crate::metrics::Counter;

/// What a broker did in the place of giving a clear answer to CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// No CONNACK in time.
    Silent,
    /// It closed the connection.
    Closed,
    /// CONNACK 3 of 3.x, 0x88 or 0x89 of 5: this code.
    Unavailable(u8),
    /// It sent something else than an answer: another protocol speaks there, or none that can be followed.
    Broken(Violation),
}

/// Where the second chance of a CONNECT stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Chance {
    /// There is none, or there is no need for one any more.
    #[default]
    None,
    /// The first broker is being asked, and CONNECT is kept for another one. The client must have an answer by then.
    Kept(Time),
    /// CONNECT goes to the second broker, because of what the first one did.
    Taken(Unanswered),
}

impl Session {
    fn chance(&self) -> Chance {
        self.rare.as_ref().map_or(Chance::None, |rare| rare.chance)
    }

    /// True exactly when another broker was given CONNECT, or is about to be.
    pub(super) fn is_second_chance(&self) -> bool {
        matches!(self.chance(), Chance::Taken(_))
    }

    /// CONNECT went upstream.
    pub(super) fn begin_chance(&mut self, context: &Context<'_>, another_after: Option<Duration>) {
        if self.phase != Phase::Connack || self.is_second_chance() {
            return;
        }
        let overall = self.timers.awaiting_connack(context.now, another_after);
        if another_after.is_some() {
            self.rare().chance = Chance::Kept(overall);
        }
    }

    /// There is no way back: the broker has given a clear answer, or has begun to authenticate the client by AUTH packets, which
    /// another broker has not seen.
    pub(super) fn end_chance(&mut self) {
        self.forget_connect();
        if let Some(rare) = self.rare.as_mut()
            && matches!(rare.chance, Chance::Kept(_))
        {
            rare.chance = Chance::None;
        }
    }

    /// An AUTH packet goes on. One of the broker shows that it works: if no CONNACK follows, the client may be the reason,
    /// who owes the next AUTH, or sent one that the broker closes on.
    pub(super) fn auth_passes(&mut self, context: &mut Context<'_>, from: Side) {
        self.end_chance();
        if from == Side::Upstream && self.phase == Phase::Connack {
            context.out.list.push(Output::Answered);
        }
    }

    /// The deadline for CONNACK has passed, of this broker or of all.
    pub(super) fn connack_overdue(&mut self, context: &mut Context<'_>) {
        match (self.phase, self.chance()) {
            (Phase::Dialling, Chance::Taken(why)) => self.end_unanswered(context, why),
            _ => self.unanswered(context, Unanswered::Silent),
        }
    }

    /// The broker that was asked gives no usable answer.
    pub(super) fn unanswered(&mut self, context: &mut Context<'_>, why: Unanswered) {
        if self.goes_elsewhere(context, why) || self.phase == Phase::Ended {
            return;
        }
        self.leave_broker(context, why, false);
        // A broker that may publish it has been told not to; what follows is said to none.
        self.will = None;
        self.end_unanswered(context, why);
    }

    /// True exactly when another broker is asked instead.
    pub(super) fn goes_elsewhere(&mut self, context: &mut Context<'_>, why: Unanswered) -> bool {
        let Chance::Kept(overall) = self.chance() else {
            return false;
        };
        if context.now >= overall || !self.may_bring_will(context) {
            return false;
        }
        self.leave_broker(context, why, true);
        self.phase = Phase::Dialling;
        self.timers.awaiting_another(overall);
        self.rare().chance = Chance::Taken(why);
        self.up = lane::Lane::server();
        context.counters.add(Counter::SecondChances, 1);
        true
    }

    /// Tells the shard to leave the broker; see the module documentation for how.
    pub(super) fn leave_broker(&self, context: &mut Context<'_>, why: Unanswered, again: bool) {
        context.counters.add(why.counter(), 1);
        if let (Unanswered::Broken(violation), true) = (why, again) {
            self.note_fault(context, violation, Counter::BrokerPacketsDropped);
        }
        let may_read_on = matches!(why, Unanswered::Silent | Unanswered::Broken(_));
        let says_goodbye = may_read_on && self.will.is_some();
        if says_goodbye {
            let goodbye = packets::disconnect(self.version, 0);
            context.out.write(Side::Upstream, &goodbye);
        }
        context.out.list.push(Output::LeaveUpstream {
            why,
            says_goodbye,
            again,
        });
    }

    /// No broker gave an answer.
    pub(super) fn end_unanswered(&mut self, context: &mut Context<'_>, why: Unanswered) {
        match why {
            Unanswered::Silent => self.end(context, Cause::UpstreamUnavailable),
            Unanswered::Closed => self.end(context, Cause::UpstreamClosed),
            Unanswered::Unavailable(code) => self.refuse_unavailable(context, code),
            Unanswered::Broken(violation) => {
                self.end(context, Cause::UpstreamViolation(violation));
            }
        }
    }

    /// The upstream is there, or is not.
    pub(super) fn dialled(&mut self, context: &mut Context<'_>, dialled: Dialled) {
        match dialled {
            _ if self.phase != Phase::Dialling => {}
            Dialled::Connected { another_after } => self.send_connect(context, another_after),
            Dialled::Failed => self.dial_failed(context),
        }
    }

    /// No broker could be reached; the second one perhaps.
    pub(super) fn dial_failed(&mut self, context: &mut Context<'_>) {
        match self.chance() {
            Chance::Taken(why) => self.end_unanswered(context, why),
            Chance::None | Chance::Kept(_) => self.end(context, Cause::UpstreamUnavailable),
        }
    }
}

impl Unanswered {
    /// CONNACK says that the broker, and not the client, is the reason.
    pub(super) fn of_code(version: Version, code: u8) -> Option<Self> {
        match (version, code) {
            (Version::V31 | Version::V311, 3) | (Version::V5, 0x88 | 0x89) => {
                Some(Self::Unavailable(code))
            }
            (_, _) => None,
        }
    }

    fn counter(self) -> Counter {
        match self {
            Self::Silent => Counter::UnansweredSilent,
            Self::Closed => Counter::UnansweredClosed,
            Self::Unavailable(_) => Counter::UnansweredUnavailable,
            Self::Broken(_) => Counter::UnansweredBroken,
        }
    }
}
