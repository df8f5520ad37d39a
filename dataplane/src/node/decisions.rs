//! The sampled decision log on its way from a shard to the control thread, which writes it.
//!
//! A shard notes one of every N decisions into a small batch and posts the batch at the end of its turn. Bounded in
//! lines and in bytes; what does not fit is counted. Names and topics only: no payload, no secret.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use sluice_policy::Snapshot;
use sluice_wire::mqtt::{QoS, Violation};

use super::names::{NameKey, ShownUser};
use crate::session::{Act, DecisionRecord, Reason};

/// Lines of one batch; more decisions of one turn are counted only.
pub const BATCH_LINES_MAX: usize = 128;
/// Bytes kept of a name or topic.
pub const TEXT_BYTES_MAX: usize = 256;

/// One decision, with the names it had when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionLine {
    /// Generation that decided.
    pub generation: u64,
    /// Where the client came from.
    pub peer: SocketAddr,
    /// Name of the listener; empty when the policy has it no more.
    pub listener: Box<str>,
    /// What was wanted.
    pub act: Act,
    /// By whom; empty when not known.
    pub client_id: Box<str>,
    /// Its user.
    pub user: ShownUser<Box<str>>,
    /// Topic name or filter; empty for a CONNECT.
    pub topic: Box<str>,
    /// Of a message or filter.
    pub qos: Option<QoS>,
    /// Of a message.
    pub retain: bool,
    /// Of a message.
    pub payload_bytes: Option<u32>,
    /// Why it was refused; `None`: it was allowed.
    pub refused: Option<Reason>,
    /// The rule that decided; `None` is the default decision.
    pub rule: Option<Box<str>>,
    /// The shadow rule that would have decided otherwise.
    pub shadow: Option<Box<str>>,
}

impl DecisionLine {
    /// The name of the reason why it was refused.
    pub fn reason(&self) -> Option<&'static str> {
        self.refused.map(Reason::name)
    }

    /// The name of what was broken of the protocol.
    pub fn broken(&self) -> Option<&'static str> {
        self.refused
            .and_then(Reason::violation)
            .map(Violation::name)
    }
}

/// What a shard posts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionBatch {
    /// The decisions, in order.
    pub lines: Vec<DecisionLine>,
    /// Sampled decisions that found no room.
    pub left_off: u32,
}

/// A shard's sampler.
#[derive(Debug)]
pub struct DecisionSampler {
    every: NonZeroU32,
    until_next: u32,
    names: NameKey,
    batch: DecisionBatch,
}

impl DecisionSampler {
    /// Takes one of `every` decisions, the first included.
    pub fn new(every: NonZeroU32, names: NameKey) -> Self {
        Self {
            every,
            until_next: 0,
            names,
            batch: DecisionBatch::default(),
        }
    }

    /// Told of every decision.
    pub fn note(&mut self, snapshot: &Snapshot, record: &DecisionRecord<'_>) {
        if self.until_next > 0 {
            self.until_next -= 1;
            return;
        }
        self.until_next = self.every.get() - 1;
        if self.batch.lines.len() >= BATCH_LINES_MAX {
            self.batch.left_off = self.batch.left_off.saturating_add(1);
            return;
        }
        let rule = |id| shortened(snapshot.rule_name(id));
        let listener = snapshot.listener(record.listener);
        self.batch.lines.push(DecisionLine {
            generation: snapshot.generation().0,
            peer: record.peer,
            listener: shortened(listener.map_or("", |row| &row.name)),
            act: record.wanted.act,
            client_id: shortened(record.client_id),
            user: self.names.shown(Some(snapshot), record.user).map(shortened),
            topic: shortened(record.wanted.topic),
            qos: record.wanted.qos,
            retain: record.wanted.retain,
            payload_bytes: record.wanted.payload_bytes,
            refused: record.refused,
            rule: record.rule.map(rule),
            shadow: record.shadow.map(rule),
        });
    }

    /// What was noted since the last call; `None` when nothing was.
    pub fn take(&mut self) -> Option<DecisionBatch> {
        (!self.batch.lines.is_empty()).then(|| std::mem::take(&mut self.batch))
    }

    /// The batch found no room in the mailbox: its lines count as left off.
    pub fn undelivered(&mut self, batch: &DecisionBatch) {
        let lines = u32::try_from(batch.lines.len()).unwrap_or(u32::MAX);
        self.batch.left_off = self
            .batch
            .left_off
            .saturating_add(batch.left_off)
            .saturating_add(lines);
    }
}

pub(super) fn shortened(text: &str) -> Box<str> {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX))
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use sluice_policy::{Generation, ListenerId};

    use super::*;
    use crate::session::{User, Wanted};

    fn snapshot() -> Snapshot {
        let document = "
listeners: [{name: mqtt, address: '127.0.0.1:0', upstream: broker}]
upstreams: [{name: broker, endpoints: ['tcp://127.0.0.1:1']}]
";
        sluice_policy::compile(document, "test", Generation(3), None).expect("a good document")
    }

    fn record(topic: &str) -> DecisionRecord<'_> {
        DecisionRecord {
            peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 1024)),
            listener: ListenerId(0),
            version: None,
            client_id: "c",
            user: User::Nobody,
            wanted: Wanted {
                topic,
                ..Wanted::only(Act::Publish)
            },
            refused: None,
            rule: None,
            shadow: None,
        }
    }

    fn sampler(every: u32) -> DecisionSampler {
        DecisionSampler::new(
            NonZeroU32::new(every).expect("not zero"),
            NameKey::default(),
        )
    }

    #[test]
    fn one_of_every_n_is_taken() {
        let (snapshot, mut sampler) = (snapshot(), sampler(3));
        for topic in ["0", "1", "2", "3", "4", "5", "6"] {
            sampler.note(&snapshot, &record(topic));
        }
        let batch = sampler.take().expect("lines");
        let topics: Vec<&str> = batch.lines.iter().map(|line| &*line.topic).collect();
        assert_eq!(topics, ["0", "3", "6"]);
        assert!(batch.lines.iter().all(|line| line.generation == 3));
        assert_eq!(sampler.take(), None);
    }

    #[test]
    fn a_batch_is_bounded_and_says_what_it_left_off() {
        let (snapshot, mut sampler) = (snapshot(), sampler(1));
        let long = "é".repeat(TEXT_BYTES_MAX);
        for _ in 0..BATCH_LINES_MAX + 5 {
            sampler.note(&snapshot, &record(&long));
        }
        let batch = sampler.take().expect("lines");
        assert_eq!((batch.lines.len(), batch.left_off), (BATCH_LINES_MAX, 5));
        assert!(
            batch
                .lines
                .iter()
                .all(|line| line.topic.len() == TEXT_BYTES_MAX)
        );
        sampler.undelivered(&batch);
        sampler.note(&snapshot, &record("next"));
        let left_off = sampler.take().expect("a line").left_off;
        assert_eq!(left_off as usize, BATCH_LINES_MAX + 5);
    }
}
