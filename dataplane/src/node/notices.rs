//! What a shard tells the log about single sessions, on its way to the control thread, which writes it: how each session
//! ended, when somebody wants to know, and which kept MQTT sessions were sent to another endpoint than their own.
//!
//! Travels as sampled decisions do: a small batch at the end of a turn, bounded in lines and in bytes; what does not fit
//! is counted. Names, addresses and causes only: no payload, no secret.

use std::net::IpAddr;
use std::time::Duration;

use super::decisions::shortened;
use crate::clock::Time;
use crate::session::Cause;

/// Ended sessions of one batch; more of one turn are counted only.
pub const ENDED_MAX: usize = 128;
/// Failovers told in [`FAILOVER_WINDOW`]; more are counted only. They are told whether anybody asked or not, so a fleet
/// that loses its broker must not become a flood of lines.
pub const FAILOVERS_MAX: usize = 8;
/// The time that [`FAILOVERS_MAX`] is for.
pub const FAILOVER_WINDOW: Duration = Duration::from_secs(1);

/// One ended session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedLine {
    /// Why it ended.
    pub cause: Cause,
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
}

/// What a shard notes until the end of its turn.
#[derive(Debug, Default)]
pub struct Notices {
    batch: NoticeBatch,
    window_began: Option<Time>,
    in_window: usize,
}

impl Notices {
    /// A session ended. Asked for only when somebody wants to know.
    pub fn ended(
        &mut self,
        cause: Cause,
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
            client_id: shortened(client_id),
            peer,
            listener: shortened(listener),
            open_for,
        });
    }

    /// A kept session is dialled at an endpoint that is not its own.
    pub fn failover(&mut self, now: Time, client_id: &str, upstream: &str, endpoint: &str) {
        let is_over = |began: Time| now.since(began) >= FAILOVER_WINDOW;
        if self.window_began.is_none_or(is_over) {
            self.window_began = Some(now);
            self.in_window = 0;
        }
        if self.in_window >= FAILOVERS_MAX {
            self.batch.failovers_left_off = self.batch.failovers_left_off.saturating_add(1);
            return;
        }
        self.in_window += 1;
        self.batch.failovers.push(FailoverLine {
            client_id: shortened(client_id),
            upstream: shortened(upstream),
            endpoint: shortened(endpoint),
        });
    }

    /// What was noted since the last call; `None` when nothing was. Counts alone wait for the next line.
    pub fn take(&mut self) -> Option<NoticeBatch> {
        let is_empty = self.batch.ended.is_empty() && self.batch.failovers.is_empty();
        (!is_empty).then(|| std::mem::take(&mut self.batch))
    }

    /// The batch found no room in the mailbox: its lines count as left off.
    pub fn undelivered(&mut self, batch: &NoticeBatch) {
        let lost = |lines: usize, left_off: u32| {
            left_off.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX))
        };
        let ended = lost(batch.ended.len(), batch.ended_left_off);
        let failovers = lost(batch.failovers.len(), batch.failovers_left_off);
        self.batch.ended_left_off = self.batch.ended_left_off.saturating_add(ended);
        self.batch.failovers_left_off = self.batch.failovers_left_off.saturating_add(failovers);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::decisions::TEXT_BYTES_MAX;
    use super::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn end(notices: &mut Notices, client_id: &str) {
        let open_for = Duration::from_secs(1);
        notices.ended(Cause::KeepAlive, client_id, PEER, "devices", open_for);
    }

    #[test]
    fn ended_sessions_are_bounded_and_what_is_left_off_is_said() {
        let mut notices = Notices::default();
        assert_eq!(notices.take(), None);
        let long = "é".repeat(TEXT_BYTES_MAX);
        for _ in 0..ENDED_MAX + 3 {
            end(&mut notices, &long);
        }
        let batch = notices.take().expect("lines");
        assert_eq!((batch.ended.len(), batch.ended_left_off), (ENDED_MAX, 3));
        assert!(
            batch
                .ended
                .iter()
                .all(|line| line.client_id.len() == TEXT_BYTES_MAX)
        );
        notices.undelivered(&batch);
        assert_eq!(notices.take(), None, "a count waits for a line");
        end(&mut notices, "next");
        let next = notices.take().expect("a line");
        assert_eq!(next.ended_left_off as usize, ENDED_MAX + 3);
    }

    #[test]
    fn failovers_are_bounded_by_time_over_any_number_of_batches() {
        let mut notices = Notices::default();
        let mut told = 0;
        for turn in 0..100 {
            notices.failover(Time(turn), "c", "brokers", "tcp://b:1883");
            told += notices.take().map_or(0, |batch| batch.failovers.len());
        }
        assert_eq!(told, FAILOVERS_MAX);
        let later = Time(0).after(FAILOVER_WINDOW);
        notices.failover(later, "c", "brokers", "tcp://b:1883");
        let batch = notices.take().expect("a new window");
        assert_eq!(batch.failovers.len(), 1);
        assert_eq!(batch.failovers_left_off as usize, 100 - FAILOVERS_MAX);
    }
}
