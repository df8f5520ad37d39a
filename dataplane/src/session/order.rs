//! The order in which a publisher hears the acknowledgements of its messages.
//!
//! PUBACKs come in the order of the messages with QoS 1 [MQTT-4.6.0-2], PUBRECs in the order of those with QoS 2
//! [MQTT-4.6.0-3]. The receiver sees to that for what it answers; this file for the answers that we put in between. Owns
//! the identifiers of one direction that are in flight, and for each where its flow stands. A session of which we answer
//! nothing pays a [`Run`], a few bytes in the session itself; the table comes with the first message that does not fit.
//!
//! # Invariants
//!
//! - *One of both*: a run holds something only while the table of its direction is empty.
//! - *Line*: what was not acknowledged yet stands in the line of its kind, in the order in which it was published. An
//!   identifier has one place, so a line is never longer than there are identifiers.
//! - *Front*: what we answer leaves as soon as it is first. So nothing waits but for a receiver that has not answered
//!   an earlier message, and what is not in the table waits for nothing and lets nothing wait.

use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use sluice_wire::mqtt::{PacketId, PacketKind, QoS};

use crate::clock::Time;

/// An empty table keeps its memory for so long: a session that needs it for each message allocates once.
const KEPT: Duration = Duration::from_secs(1);

/// A table that has room for more than this gives memory back when it is nearly empty.
const CAPACITY_KEPT: usize = 1024;

/// A longer run goes to the table, so that this is never much work at once.
const RUN_LEN_MAX: u16 = 256;

/// What a publisher hears first about a message. Each kind has an order of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Answer {
    /// To QoS 1.
    #[default]
    Puback,
    /// To QoS 2.
    Pubrec,
}

impl Answer {
    pub(super) const ALL: [Self; 2] = [Self::Puback, Self::Pubrec];

    /// What a message of that QoS is answered with.
    #[inline]
    pub(super) fn to(qos: QoS) -> Option<Self> {
        match qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => Some(Self::Puback),
            QoS::ExactlyOnce => Some(Self::Pubrec),
        }
    }

    pub(super) fn kind(self) -> PacketKind {
        match self {
            Self::Puback => PacketKind::Puback,
            Self::Pubrec => PacketKind::Pubrec,
        }
    }
}

/// Messages in flight that have consecutive identifiers, one kind, and receivers that answer them in order.
#[derive(Clone, Copy, Default)]
pub(super) struct Run {
    first: u16,
    len: u16,
    answer: Answer,
}

impl Run {
    /// True exactly when a message that is to be answered like this is in flight.
    pub(super) fn has(self, answer: Answer) -> bool {
        self.len > 0 && self.answer == answer
    }

    #[inline]
    pub(super) fn contains(self, packet_id: PacketId) -> bool {
        self.offset(packet_id) < self.len
    }

    pub(super) fn len(self) -> usize {
        usize::from(self.len)
    }

    pub(super) fn answer(self) -> Answer {
        self.answer
    }

    /// A message goes on. One that is sent again keeps its place. False when it does not fit.
    #[inline]
    pub(super) fn push(&mut self, answer: Answer, packet_id: PacketId, is_again: bool) -> bool {
        if self.len == 0 {
            *self = Self {
                first: packet_id.get(),
                len: 1,
                answer,
            };
            return true;
        }
        let offset = self.offset(packet_id);
        if self.answer != answer || offset > self.len || offset >= RUN_LEN_MAX {
            return false;
        }
        if offset < self.len {
            return is_again;
        }
        self.len += 1;
        true
    }

    /// The first message is acknowledged. False when it is not the first.
    #[inline]
    pub(super) fn pop(&mut self, answer: Answer, packet_id: PacketId) -> bool {
        if !self.has(answer) || self.first != packet_id.get() {
            return false;
        }
        self.first = after(self.first, 1);
        self.len -= 1;
        true
    }

    pub(super) fn ids(self) -> impl Iterator<Item = PacketId> {
        (0..self.len).filter_map(move |offset| PacketId::new(after(self.first, offset)))
    }

    /// How far behind the first it comes, 65,535 being followed by 1.
    fn offset(self, packet_id: PacketId) -> u16 {
        let packet_id = packet_id.get();
        match packet_id.checked_sub(self.first) {
            Some(offset) => offset,
            None => packet_id + (u16::MAX - self.first),
        }
    }
}

/// The identifier that comes `offset`, which is small, behind `packet_id`.
fn after(packet_id: u16, offset: u16) -> u16 {
    match packet_id.checked_add(offset) {
        Some(sum) => sum,
        None => packet_id.wrapping_add(offset) + 1,
    }
}

/// Where the flow of a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// In line: the receiver has the message as it was sent, and its answer passes.
    Passes,
    /// In line: the receiver has answered PUBREC, with this code, before its turn had come.
    Held(u8),
    /// In line: the receiver has the message at QoS 1; its PUBACK becomes the publisher's PUBREC.
    AwaitPuback,
    /// In line: we answer, with this code.
    Answered(u8),
    /// The publisher has its PUBREC; its PUBREL is answered by us.
    AwaitPubrel,
    /// The publisher gave the flow up before the receiver's PUBACK, which is swallowed.
    SwallowPuback,
}

impl Flow {
    pub(super) fn is_in_line(self) -> bool {
        match self {
            Self::Passes | Self::Held(_) | Self::AwaitPuback | Self::Answered(_) => true,
            Self::AwaitPubrel | Self::SwallowPuback => false,
        }
    }

    /// True exactly when what passes would overtake it.
    fn is_overtaken(self) -> bool {
        matches!(self, Self::Held(_) | Self::AwaitPuback)
    }
}

#[derive(Clone, Copy)]
struct Entry {
    flow: Flow,
    answer: Answer,
    /// Neighbours in line.
    previous: Option<PacketId>,
    next: Option<PacketId>,
}

#[derive(Clone, Copy, Default)]
struct Line {
    first: Option<PacketId>,
    last: Option<PacketId>,
    /// How many in it would be overtaken.
    overtaken: u16,
}

/// The table of one direction. Allocates with the first entry.
#[derive(Default)]
pub(super) struct Flows {
    entries: HashMap<PacketId, Entry, FixedState>,
    pubacks: Line,
    pubrecs: Line,
    /// From when on its memory is of no use while it is empty.
    kept_until: Time,
}

impl Flows {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True exactly when it is empty and its memory is not kept for the next message.
    pub(super) fn is_unused(&self, now: Time) -> bool {
        self.is_empty() && self.kept_until <= now
    }

    /// The next message is not expected soon.
    pub(super) fn rest(&mut self, now: Time) {
        self.kept_until = now;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.allocation_size()
    }

    /// Where the flow with this identifier stands, and what its publisher hears first.
    pub(super) fn flow(&self, packet_id: PacketId) -> Option<(Flow, Answer)> {
        let entry = self.entries.get(&packet_id)?;
        Some((entry.flow, entry.answer))
    }

    /// True exactly when a message that is to be answered like this is in line.
    pub(super) fn has(&self, answer: Answer) -> bool {
        self.line(answer).first.is_some()
    }

    /// True exactly when an answer that passes would overtake another.
    pub(super) fn would_overtake(&self, answer: Answer, packet_id: PacketId) -> bool {
        let line = self.line(answer);
        line.overtaken > 0 && line.first != Some(packet_id)
    }

    /// A flow begins, at the end of its line, in the place of any other with its identifier.
    pub(super) fn put(&mut self, now: Time, packet_id: PacketId, answer: Answer, flow: Flow) {
        self.remove(now, packet_id);
        let mut entry = Entry {
            flow,
            answer,
            previous: None,
            next: None,
        };
        if flow.is_in_line() {
            let line = self.line_mut(answer);
            line.overtaken += u16::from(flow.is_overtaken());
            entry.previous = line.last.replace(packet_id);
            match entry.previous {
                Some(previous) => self.link(previous, |entry| entry.next = Some(packet_id)),
                None => line.first = Some(packet_id),
            }
        }
        self.entries.insert(packet_id, entry);
    }

    /// A flow that stands in line comes forward, and keeps its place.
    pub(super) fn change(&mut self, packet_id: PacketId, flow: Flow) {
        let Some(entry) = self.entries.get_mut(&packet_id) else {
            return;
        };
        let before = std::mem::replace(&mut entry.flow, flow);
        let answer = entry.answer;
        let line = self.line_mut(answer);
        line.overtaken += u16::from(flow.is_overtaken());
        line.overtaken -= u16::from(before.is_overtaken());
    }

    /// The flow is over.
    pub(super) fn remove(&mut self, now: Time, packet_id: PacketId) {
        self.kept_until = now.after(KEPT);
        let Some(entry) = self.entries.remove(&packet_id) else {
            return;
        };
        if entry.flow.is_in_line() {
            self.unlink(entry);
        }
        let (len, capacity) = (self.entries.len(), self.entries.capacity());
        if capacity > CAPACITY_KEPT && len < capacity / 16 {
            self.entries.shrink_to(len * 2);
        }
    }

    /// The next answer of that kind whose turn it is, and its code. It leaves the line.
    pub(super) fn next_answer(&mut self, now: Time, answer: Answer) -> Option<(PacketId, u8)> {
        let first = self.line(answer).first?;
        let code = match self.flow(first)?.0 {
            Flow::Held(code) => {
                self.remove(now, first);
                code
            }
            // An error code in PUBREC ends the flow: no PUBREL follows it (MQTT 5 section 4.3.3).
            Flow::Answered(code) if answer == Answer::Pubrec && code < 0x80 => {
                self.put(now, first, answer, Flow::AwaitPubrel);
                code
            }
            Flow::Answered(code) => {
                self.remove(now, first);
                code
            }
            Flow::Passes | Flow::AwaitPuback | Flow::AwaitPubrel | Flow::SwallowPuback => {
                return None;
            }
        };
        Some((first, code))
    }

    fn unlink(&mut self, entry: Entry) {
        match entry.previous {
            Some(previous) => self.link(previous, |neighbour| neighbour.next = entry.next),
            None => self.line_mut(entry.answer).first = entry.next,
        }
        match entry.next {
            Some(next) => self.link(next, |neighbour| neighbour.previous = entry.previous),
            None => self.line_mut(entry.answer).last = entry.previous,
        }
        self.line_mut(entry.answer).overtaken -= u16::from(entry.flow.is_overtaken());
    }

    fn link(&mut self, packet_id: PacketId, change: impl FnOnce(&mut Entry)) {
        match self.entries.get_mut(&packet_id) {
            Some(entry) => change(entry),
            None => debug_assert!(false, "{packet_id} is in line and not in the table"),
        }
    }

    fn line(&self, answer: Answer) -> &Line {
        match answer {
            Answer::Puback => &self.pubacks,
            Answer::Pubrec => &self.pubrecs,
        }
    }

    fn line_mut(&mut self, answer: Answer) -> &mut Line {
        match answer {
            Answer::Puback => &mut self.pubacks,
            Answer::Pubrec => &mut self.pubrecs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> PacketId {
        PacketId::new(number).unwrap()
    }

    #[test]
    fn a_run_goes_on_behind_the_last_identifier_and_is_bounded() {
        let mut run = Run::default();
        for number in [65_534, 65_535, 1, 2] {
            assert!(run.push(Answer::Puback, id(number), false), "{number}");
        }
        assert!(!run.push(Answer::Puback, id(4), false), "a gap");
        assert!(!run.push(Answer::Pubrec, id(3), false), "another kind");
        assert!(!run.push(Answer::Puback, id(1), false), "another message");
        assert!(run.push(Answer::Puback, id(1), true), "the same again");
        let ids: Vec<u16> = run.ids().map(PacketId::get).collect();
        assert_eq!(ids, [65_534, 65_535, 1, 2]);
        assert!(!run.pop(Answer::Puback, id(1)), "not the first");
        for number in [65_534, 65_535, 1] {
            assert!(run.contains(id(number)) && run.pop(Answer::Puback, id(number)));
            assert!(!run.contains(id(number)));
        }
        let more = (3..).take_while(|number| run.push(Answer::Puback, id(*number), false));
        assert_eq!(more.count() + 1, usize::from(RUN_LEN_MAX));
    }
}
