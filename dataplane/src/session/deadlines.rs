//! Keep alive and every other timer of a session.
//!
//! Owns the times; sets no timer. A packet costs a store of `now`; the deadline is computed when it is asked for, and
//! one that is checked early does nothing. Everything is measured from bytes that arrived, so a side whose reading we
//! hold back is not blamed for its silence.

use std::time::Duration;

use sluice_policy::Limits;

use super::{Cause, Context, Phase, Session, Side, packets};
use crate::clock::Time;
use crate::metrics::Counter;

/// What a deadline of [`Session::poll_timeout`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// CONNECT must have arrived.
    Connect,
    /// The broker must have answered CONNECT.
    Connack,
    /// A packet that the client began must be finished.
    Packet,
    /// A packet that the broker began must be finished.
    UpstreamPacket,
    /// Keep alive, one and a half times.
    KeepAlive,
    /// Nothing went upstream for the interval: send PINGREQ.
    UpstreamPing,
    /// The broker must give an answer that the client's next packets wait for.
    UpstreamAnswer,
    /// The session's allowance lets a SUBSCRIBE be judged further.
    Judging,
}

/// The stored times.
pub(super) struct Timers {
    /// CONNECT must have arrived, later CONNACK.
    opening: Time,
    /// When bytes last came from the client.
    heard: Time,
    /// When bytes last went to the broker.
    spoke: Time,
    packet_timeout: Micros,
    connect_timeout: Micros,
    keep_alive_secs: u16,
    is_down_held: bool,
    is_up_held: bool,
}

/// A duration of up to an hour, in a quarter of the memory.
#[derive(Clone, Copy)]
struct Micros(u32);

impl Micros {
    fn of(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX))
    }

    fn get(self) -> Duration {
        Duration::from_micros(u64::from(self.0))
    }
}

impl Timers {
    pub(super) fn accepted(now: Time, limits: Option<&Limits>) -> Self {
        let timeout = |of: fn(&Limits) -> Duration| Micros::of(limits.map_or(Duration::ZERO, of));
        let connect_timeout = timeout(|limits| limits.connect_timeout);
        Self {
            opening: now.after(connect_timeout.get()),
            heard: now,
            spoke: now,
            packet_timeout: timeout(|limits| limits.packet_timeout),
            connect_timeout,
            keep_alive_secs: 0,
            is_down_held: false,
            is_up_held: false,
        }
    }

    pub(super) fn heard(&mut self, now: Time) {
        self.heard = now;
    }

    pub(super) fn spoke(&mut self, now: Time) {
        self.spoke = now;
    }

    /// CONNECT went upstream for the first time; its answer gets as long as the client had for CONNECT, the second broker's
    /// included. `first` is how long the first one has while there is another; never more than half of it all.
    pub(super) fn awaiting_connack(&mut self, now: Time, first: Option<Duration>) -> Time {
        let timeout = self.connect_timeout.get();
        let overall = now.after(timeout);
        self.opening = match first {
            Some(first) => now.after(first.min(timeout / 2)),
            None => overall,
        };
        overall
    }

    /// CONNECT is to go to another broker; both it and the way there have until then.
    pub(super) fn awaiting_another(&mut self, overall: Time) {
        self.opening = overall;
    }

    /// CONNACK shows that the broker has heard the client, who begins to count now.
    pub(super) fn opened(&mut self, now: Time) {
        self.heard = now;
        self.spoke = now;
    }

    pub(super) fn keep_alive_secs(&self) -> u16 {
        self.keep_alive_secs
    }

    pub(super) fn set_keep_alive(&mut self, secs: u16) {
        self.keep_alive_secs = secs;
    }

    fn keep_alive(&self) -> Option<Duration> {
        (self.keep_alive_secs > 0).then(|| Duration::from_secs(u64::from(self.keep_alive_secs)))
    }

    /// The client has one and a half times the interval [MQTT-3.1.2-22].
    fn client_deadline(&self, is_down_held: bool) -> Option<Time> {
        let interval = self.keep_alive()?;
        (!is_down_held).then(|| self.heard.after(interval + interval / 2))
    }

    /// The broker must hear something within the interval. A client that is silent itself is not covered up for: only
    /// when it sent something that we absorbed, or would have if we had read it, do we speak in its place.
    fn ping_deadline(&self, is_down_held: bool) -> Option<Time> {
        let interval = self.keep_alive()?;
        (self.heard > self.spoke || is_down_held).then(|| self.spoke.after(interval))
    }
}

impl Session {
    /// Reading of `side` is held, or goes on: then every deadline of that side begins anew.
    pub(super) fn hold_timers(&mut self, now: Time, side: Side, held: bool) {
        match side {
            Side::Downstream => {
                self.timers.is_down_held = held;
                self.down.restart(now);
                if !held {
                    self.timers.heard = now;
                }
            }
            Side::Upstream => {
                self.timers.is_up_held = held;
                self.up.restart(now);
                self.restart_waiting(now);
            }
        }
    }

    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<(Time, Deadline)> {
        self.deadlines()
            .into_iter()
            .flatten()
            .min_by_key(|(time, _)| *time)
    }

    fn deadlines(&self) -> [Option<(Time, Deadline)>; 7] {
        let timers = &self.timers;
        let is_down_held = timers.is_down_held || self.is_holding();
        let opening = match self.phase {
            Phase::Connecting => Some((timers.opening, Deadline::Connect)),
            Phase::Connack => Some((timers.opening, Deadline::Connack)),
            Phase::Dialling if self.is_second_chance() => Some((timers.opening, Deadline::Connack)),
            // The hashing pool and the dial have deadlines of their own.
            Phase::Authenticating | Phase::Dialling | Phase::Open | Phase::Ended => None,
        };
        let packet = |begun: Option<Time>, held: bool, deadline| match begun {
            Some(begun) if !held => Some((begun.after(timers.packet_timeout.get()), deadline)),
            Some(_) | None => None,
        };
        let open = self.phase == Phase::Open;
        [
            opening,
            packet(self.down.begun(), is_down_held, Deadline::Packet),
            packet(self.up.begun(), timers.is_up_held, Deadline::UpstreamPacket),
            timers
                .client_deadline(is_down_held)
                .filter(|_| open)
                .map(|time| (time, Deadline::KeepAlive)),
            timers
                .ping_deadline(is_down_held)
                .filter(|_| open)
                .map(|time| (time, Deadline::UpstreamPing)),
            self.waits_for_answers_since()
                .filter(|_| !timers.is_up_held)
                .map(|since| {
                    (
                        since.after(timers.packet_timeout.get()),
                        Deadline::UpstreamAnswer,
                    )
                }),
            self.judging_deadline()
                .map(|time| (time, Deadline::Judging)),
        ]
    }

    /// Acts on every deadline that has passed.
    pub(super) fn check_deadlines(&mut self, context: &mut Context<'_>) {
        for (time, deadline) in self.deadlines().into_iter().flatten() {
            if time > context.now || self.phase == Phase::Ended {
                continue;
            }
            match deadline {
                Deadline::Connect => self.end(context, Cause::ConnectTimeout),
                Deadline::Connack => self.connack_overdue(context),
                Deadline::Packet => self.end(context, Cause::PacketTimeout),
                Deadline::UpstreamPacket if self.phase == Phase::Connack => {
                    self.connack_overdue(context);
                }
                // It was left a moment ago, for the deadline before.
                Deadline::UpstreamPacket if self.phase == Phase::Dialling => {}
                Deadline::UpstreamPacket | Deadline::UpstreamAnswer => {
                    self.end(context, Cause::UpstreamStalled);
                }
                Deadline::KeepAlive => self.end(context, Cause::KeepAlive),
                Deadline::UpstreamPing => self.ping_upstream(context),
                Deadline::Judging => self.go_on_judging(context),
            }
        }
    }

    /// Keeps the broker from giving up on a client that is alive but had nothing forwarded.
    fn ping_upstream(&mut self, context: &mut Context<'_>) {
        // In mid-packet the payload itself is what the broker hears.
        if !self.is_at_boundary(Side::Upstream) {
            return self.timers.spoke(context.now);
        }
        // A broker that has not answered any of so many does not answer [MQTT-3.12.4-1], so the client need not stay.
        let Some(pings_owned) = self.rare().pings_owned.checked_add(1) else {
            return self.end(context, Cause::UpstreamStalled);
        };
        self.rare().pings_owned = pings_owned;
        context.counters.add(Counter::PingsOriginated, 1);
        self.originate(context, Side::Upstream, &packets::PINGREQ);
    }

    /// True exactly when a PINGRESP of the broker answers a PINGREQ of ours. They look alike and come in order, so which
    /// of several is kept back makes no difference to the client.
    pub(super) fn swallows_pingresp(&mut self) -> bool {
        match self.rare.as_mut() {
            Some(rare) if rare.pings_owned > 0 => {
                rare.pings_owned -= 1;
                true
            }
            Some(_) | None => false,
        }
    }
}
