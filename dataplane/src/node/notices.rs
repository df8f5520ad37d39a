//! What a shard tells the log about single sessions, on its way to the control thread, which writes it: how each session
//! ended, when somebody wants to know, which kept MQTT sessions were sent to another endpoint than their own, which rules
//! brokers broke, which clients do not speak MQTT, which deliveries were too long, and how many connections were turned away.
//!
//! Travels as sampled decisions do: a small batch at the end of a turn, bounded in lines and in bytes; what does not fit
//! is counted. Names, addresses and causes only: no payload, no secret.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::addresses::Address;
use super::decisions::shortened;
use super::turned_away::TurnedAway;
use crate::clock::Time;
use crate::metrics::Counter;
use crate::session::Cause;
use sluice_wire::mqtt::Violation;

/// Ended sessions of one batch; more of one turn are counted only.
pub const ENDED_MAX: usize = 128;
/// Failovers told in [`WINDOW`]; more are counted only. They are told whether anybody asked or not, so a fleet that loses
/// its broker must not become a flood of lines.
pub const FAILOVERS_MAX: usize = 8;
/// Faults of brokers told in [`WINDOW`]; more are counted only, for the same reason.
pub const FAULTS_MAX: usize = 8;
/// Lines of each other kind told in [`WINDOW`], for the same reason.
pub const FEW_MAX: usize = 8;
/// The time that [`FAILOVERS_MAX`], [`FAULTS_MAX`] and [`FEW_MAX`] are for.
pub const WINDOW: Duration = Duration::from_secs(1);
/// Connections turned away are told of at most this often, unless something else is told anyway.
pub const TURNED_AWAY_WINDOW: Duration = Duration::from_secs(1);

/// One ended session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedLine {
    /// Why it ended.
    pub cause: Cause,
    /// The clause that was broken, of the session's version; empty when none was.
    pub clause: &'static str,
    /// Who it was; empty when not known.
    pub client_id: Box<str>,
    /// From where.
    pub peer: IpAddr,
    /// Where it came in; empty when the policy has that listener no more.
    pub listener: Box<str>,
    /// How long it was open.
    pub open_for: Duration,
}

/// A kept MQTT session that is dialled elsewhere: its state may not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverLine {
    /// Whose.
    pub client_id: Box<str>,
    /// Name of the upstream.
    pub upstream: Box<str>,
    /// The endpoint dialled, as the policy spells it.
    pub endpoint: Box<str>,
}

/// A client that speaks something else than MQTT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherProtocolLine {
    /// From where.
    pub peer: SocketAddr,
    /// Where it came in.
    pub listener: Box<str>,
    /// What it speaks: the name of the reason of its refusal.
    pub protocol: &'static str,
}

/// A message that was dropped because it is longer than its client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLargeLine {
    /// Whose; empty when not known.
    pub client_id: Box<str>,
    /// Where the client came in.
    pub listener: Box<str>,
    /// Length of the packet.
    pub packet_bytes: u32,
    /// What the client, or the listener's `packet_bytes_max`, allows.
    pub packet_bytes_max: u32,
}

/// A rule that a broker broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultLine {
    /// Whose session; empty when not known.
    pub client_id: Box<str>,
    /// Name of the upstream.
    pub upstream: Box<str>,
    /// What was broken.
    pub violation: Violation,
    /// Its clause in the session's version.
    pub clause: &'static str,
    /// True exactly when the session could not go on.
    pub has_ended: bool,
}

/// What a shard posts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoticeBatch {
    /// In order.
    pub ended: Vec<EndedLine>,
    /// Ended sessions that found no room.
    pub ended_left_off: u32,
    /// In order.
    pub failovers: Vec<FailoverLine>,
    /// Failovers beyond the rate, or that found no room.
    pub failovers_left_off: u32,
    /// In order.
    pub faults: Vec<FaultLine>,
    /// Faults beyond the rate, or that found no room.
    pub faults_left_off: u32,
    /// In order.
    pub others: Few<OtherProtocolLine>,
    /// In order.
    pub too_large: Few<TooLargeLine>,
    /// Connections that were closed at accept, or gave way to another.
    pub turned_away: TurnedAway,
}

/// Lines of one kind, at most [`FEW_MAX`] in a [`WINDOW`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<T> {
    /// In order.
    pub lines: Vec<T>,
    /// Those beyond the rate, or that found no room.
    pub left_off: u32,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            left_off: 0,
        }
    }
}

impl<T> Few<T> {
    fn add(&mut self, now: Time, rate: &mut Rate, line: impl FnOnce() -> T) {
        if rate.admits(now, FEW_MAX) {
            self.lines.push(line());
        } else {
            self.left_off = self.left_off.saturating_add(1);
        }
    }

    fn lose(&mut self, other: &Self) {
        let lines = u32::try_from(other.lines.len()).unwrap_or(u32::MAX);
        let lost = other.left_off.saturating_add(lines);
        self.left_off = self.left_off.saturating_add(lost);
    }
}

/// How many lines of one kind were told since when.
#[derive(Debug, Default)]
struct Rate {
    window_began: Option<Time>,
    in_window: usize,
}

impl Rate {
    /// True exactly when one more line may be told.
    fn admits(&mut self, now: Time, max: usize) -> bool {
        if self
            .window_began
            .is_none_or(|began| now.since(began) >= WINDOW)
        {
            self.window_began = Some(now);
            self.in_window = 0;
        }
        let admits = self.in_window < max;
        self.in_window += usize::from(admits);
        admits
    }
}

/// What a shard notes until the end of its turn.
#[derive(Debug, Default)]
pub struct Notices {
    batch: NoticeBatch,
    failover_rate: Rate,
    fault_rate: Rate,
    other_rate: Rate,
    too_large_rate: Rate,
    told_turned_away: Option<Time>,
}

impl Notices {
    /// A session ended. Asked for only when somebody wants to know.
    pub fn ended(
        &mut self,
        (cause, clause): (Cause, &'static str),
        client_id: &str,
        peer: IpAddr,
        listener: &str,
        open_for: Duration,
    ) {
        if self.batch.ended.len() >= ENDED_MAX {
            self.batch.ended_left_off = self.batch.ended_left_off.saturating_add(1);
            return;
        }
        self.batch.ended.push(EndedLine {
            cause,
            clause,
            client_id: shortened(client_id),
            peer,
            listener: shortened(listener),
            open_for,
        });
    }

    /// A kept session is dialled at an endpoint that is not its own.
    pub fn failover(&mut self, now: Time, client_id: &str, upstream: &str, endpoint: &str) {
        if !self.failover_rate.admits(now, FAILOVERS_MAX) {
            self.batch.failovers_left_off = self.batch.failovers_left_off.saturating_add(1);
            return;
        }
        self.batch.failovers.push(FailoverLine {
            client_id: shortened(client_id),
            upstream: shortened(upstream),
            endpoint: shortened(endpoint),
        });
    }

    /// A connection was closed for this reason.
    pub fn turned_away(&mut self, reason: Counter, address: Address) {
        self.batch.turned_away.note(reason, address);
    }

    /// A client speaks something else than MQTT.
    pub fn other_protocol(
        &mut self,
        now: Time,
        peer: SocketAddr,
        listener: &str,
        protocol: &'static str,
    ) {
        let rate = &mut self.other_rate;
        self.batch.others.add(now, rate, || OtherProtocolLine {
            peer,
            listener: shortened(listener),
            protocol,
        });
    }

    /// A delivery was dropped because of its length.
    pub fn too_large(
        &mut self,
        now: Time,
        client_id: &str,
        listener: &str,
        (packet_bytes, packet_bytes_max): (u32, u32),
    ) {
        let rate = &mut self.too_large_rate;
        self.batch.too_large.add(now, rate, || TooLargeLine {
            client_id: shortened(client_id),
            listener: shortened(listener),
            packet_bytes,
            packet_bytes_max,
        });
    }

    /// A broker broke a rule.
    pub fn fault(
        &mut self,
        now: Time,
        client_id: &str,
        upstream: &str,
        (violation, clause): (Violation, &'static str),
        has_ended: bool,
    ) {
        if !self.fault_rate.admits(now, FAULTS_MAX) {
            self.batch.faults_left_off = self.batch.faults_left_off.saturating_add(1);
            return;
        }
        self.batch.faults.push(FaultLine {
            client_id: shortened(client_id),
            upstream: shortened(upstream),
            violation,
            clause,
            has_ended,
        });
    }

    /// What was noted since the last call; `None` when nothing was. Counts alone wait for the next line, and those of
    /// connections turned away until they were not told of for a while.
    pub fn take(&mut self, now: Time) -> Option<NoticeBatch> {
        let has_lines = !self.batch.ended.is_empty()
            || !self.batch.failovers.is_empty()
            || !self.batch.faults.is_empty()
            || !self.batch.others.lines.is_empty()
            || !self.batch.too_large.lines.is_empty();
        let is_over = |told: Time| now.since(told) >= TURNED_AWAY_WINDOW;
        let has_counts =
            !self.batch.turned_away.is_empty() && self.told_turned_away.is_none_or(is_over);
        if !has_lines && !has_counts {
            return None;
        }
        if !self.batch.turned_away.is_empty() {
            self.told_turned_away = Some(now);
        }
        Some(std::mem::take(&mut self.batch))
    }

    /// The batch found no room in the mailbox: its lines count as left off.
    pub fn undelivered(&mut self, batch: &NoticeBatch) {
        let lost = |lines: usize, left_off: u32| {
            left_off.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX))
        };
        let ended = lost(batch.ended.len(), batch.ended_left_off);
        let failovers = lost(batch.failovers.len(), batch.failovers_left_off);
        let faults = lost(batch.faults.len(), batch.faults_left_off);
        self.batch.faults_left_off = self.batch.faults_left_off.saturating_add(faults);
        self.batch.ended_left_off = self.batch.ended_left_off.saturating_add(ended);
        self.batch.failovers_left_off = self.batch.failovers_left_off.saturating_add(failovers);
        self.batch.others.lose(&batch.others);
        self.batch.too_large.lose(&batch.too_large);
        self.batch.turned_away.merge(&batch.turned_away);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::decisions::TEXT_BYTES_MAX;
    use super::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const NOW: Time = Time(0);

    fn end(notices: &mut Notices, client_id: &str) {
        let open_for = Duration::from_secs(1);
        notices.ended((Cause::KeepAlive, ""), client_id, PEER, "devices", open_for);
    }

    #[test]
    fn ended_sessions_are_bounded_and_what_is_left_off_is_said() {
        let mut notices = Notices::default();
        assert_eq!(notices.take(NOW), None);
        let long = "é".repeat(TEXT_BYTES_MAX);
        for _ in 0..ENDED_MAX + 3 {
            end(&mut notices, &long);
        }
        let batch = notices.take(NOW).expect("lines");
        assert_eq!((batch.ended.len(), batch.ended_left_off), (ENDED_MAX, 3));
        assert!(
            batch
                .ended
                .iter()
                .all(|line| line.client_id.len() == TEXT_BYTES_MAX)
        );
        notices.undelivered(&batch);
        assert_eq!(notices.take(NOW), None, "a count waits for a line");
        end(&mut notices, "next");
        let next = notices.take(NOW).expect("a line");
        assert_eq!(next.ended_left_off as usize, ENDED_MAX + 3);
    }

    #[test]
    fn failovers_are_bounded_by_time_over_any_number_of_batches() {
        let mut notices = Notices::default();
        let mut told = 0;
        for turn in 0..100 {
            notices.failover(Time(turn), "c", "brokers", "tcp://b:1883");
            told += notices.take(NOW).map_or(0, |batch| batch.failovers.len());
        }
        assert_eq!(told, FAILOVERS_MAX);
        let later = Time(0).after(WINDOW);
        notices.failover(later, "c", "brokers", "tcp://b:1883");
        let batch = notices.take(NOW).expect("a new window");
        assert_eq!(batch.failovers.len(), 1);
        assert_eq!(batch.failovers_left_off as usize, 100 - FAILOVERS_MAX);
    }

    #[test]
    fn connections_turned_away_are_added_up_for_a_second_and_none_is_lost() {
        let mut notices = Notices::default();
        let mut told = Vec::new();
        let away = |notices: &mut Notices| {
            notices.turned_away(Counter::RefusedNode, Address::from(PEER));
        };
        for millis in (0..2_500).step_by(100) {
            away(&mut notices);
            let now = NOW.after(Duration::from_millis(millis));
            told.extend(notices.take(now).map(|batch| batch.turned_away.total()));
        }
        assert_eq!(told, [1, 10, 10]);
        let now = NOW.after(Duration::from_secs(10));
        let batch = notices.take(now).expect("the rest");
        assert_eq!(batch.turned_away.total(), 4);
        notices.undelivered(&batch);
        away(&mut notices);
        let later = now.after(TURNED_AWAY_WINDOW);
        let batch = notices.take(later).expect("again");
        assert_eq!(batch.turned_away.total(), 5);
    }

    #[test]
    fn faults_are_bounded_by_time_apart_from_failovers() {
        let mut notices = Notices::default();
        let what = (Violation::PubackCodeUndefined, "MQTT-3.4.2-1");
        for turn in 0..100 {
            notices.fault(Time(turn), "c", "brokers", what, false);
        }
        let batch = notices.take(NOW).expect("lines");
        assert_eq!(batch.faults.len(), FAULTS_MAX);
        assert_eq!(batch.faults_left_off as usize, 100 - FAULTS_MAX);
        notices.undelivered(&batch);
        notices.failover(Time(101), "c", "brokers", "tcp://b:1883");
        let next = notices.take(NOW).expect("a line");
        assert_eq!((next.failovers.len(), next.faults.len()), (1, 0));
        assert_eq!(next.faults_left_off, 100);
    }

    #[test]
    fn other_protocols_and_long_deliveries_are_bounded_by_time_each_apart() {
        let mut notices = Notices::default();
        let peer = SocketAddr::new(PEER, 4711);
        for turn in 0..100 {
            notices.other_protocol(Time(turn), peer, "devices", "tls");
        }
        notices.too_large(Time(100), "c", "devices", (65, 64));
        let batch = notices.take(NOW).expect("lines");
        assert_eq!(
            (batch.others.lines.len(), batch.too_large.lines.len()),
            (FEW_MAX, 1)
        );
        assert_eq!(batch.others.left_off as usize, 100 - FEW_MAX);
        notices.undelivered(&batch);
        notices.too_large(Time(101), "c", "devices", (65, 64));
        let next = notices.take(NOW).expect("a line");
        assert_eq!((next.others.left_off, next.too_large.left_off), (100, 1));
    }
}
