//! What a socket did not take: bytes copied to session memory, drained by one owned send at a time.
//!
//! Owns the order of bytes: what is in flight goes first, what was appended follows. Keeps no bound by itself: the shard
//! stops reading the other side above the high mark, and ends the largest ones above its budget.

use crate::clock::Time;

/// See the module documentation. Never empty between calls of the shard.
#[derive(Debug)]
pub(super) struct Backlog {
    /// Bytes not yet taken of the buffer that the ring holds.
    in_flight: usize,
    /// Where they begin in it.
    from: usize,
    /// Bytes after those.
    pending: Vec<u8>,
    /// The start of the turn whose bytes came first: added latency is told when the backlog ends.
    pub(super) since: Time,
    /// When the socket last took a byte.
    pub(super) progress: Time,
}

/// What follows an owned send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Send this from there.
    Send(Vec<u8>, usize),
    /// Everything was taken.
    Empty,
}

impl Backlog {
    /// A backlog of bytes whose turn began at `since`; `rest` is to be sent at once, as an owned send.
    pub(super) fn begun(since: Time, now: Time, rest: &[u8]) -> Self {
        Self {
            in_flight: rest.len(),
            from: 0,
            pending: Vec::new(),
            since,
            progress: now,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.in_flight + self.pending.len()
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The owned send ended: `taken` more bytes of `buffer` were taken. Tells what to send next.
    pub(super) fn taken(&mut self, now: Time, buffer: Vec<u8>, taken: usize) -> After {
        debug_assert!(taken <= self.in_flight, "more was taken than was sent");
        if taken > 0 {
            self.progress = now;
        }
        self.from = self.from.saturating_add(taken);
        self.in_flight = self.in_flight.saturating_sub(taken);
        if self.in_flight > 0 {
            return After::Send(buffer, self.from);
        }
        if self.pending.is_empty() {
            return After::Empty;
        }
        self.from = 0;
        self.in_flight = self.pending.len();
        After::Send(std::mem::take(&mut self.pending), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_whatever_the_socket_takes() {
        let all: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for step in [1, 7, 64, 4999, 5000] {
            let mut backlog = Backlog::begun(Time(0), Time(0), &all[..100]);
            let (mut buffer, mut from) = (all[..100].to_vec(), 0);
            let (mut appended, mut seen) = (100, Vec::new());
            loop {
                let more = (appended + 333).min(all.len());
                backlog.append(&all[appended..more]);
                appended = more;
                assert_eq!(backlog.len(), appended - seen.len());
                let taken = step.min(buffer.len() - from);
                seen.extend_from_slice(&buffer[from..from + taken]);
                match backlog.taken(Time(1), buffer, taken) {
                    After::Send(next, at) => (buffer, from) = (next, at),
                    After::Empty => break,
                }
            }
            assert_eq!(seen, all, "steps of {step}");
        }
    }
}
