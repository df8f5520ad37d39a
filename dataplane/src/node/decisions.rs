//! The decision log on its way from a shard to the control thread, which writes it.
//!
//! A shard notes one of every N decisions that are wanted into a small batch and posts the batch at the end of its turn.
//! Bounded in lines, in bytes, and in lines a second; what does not fit is counted. Ends by itself when it was switched on for
//! a time. Names and topics only: no payload, no secret.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use sluice_policy::Snapshot;
use sluice_wire::mqtt::{QoS, Violation, filter_matches};

use super::names::{NameKey, ShownUser};
use crate::clock::Time;
use crate::session::{Act, DecisionRecord, Reason, User};

/// Lines of one batch; more decisions of one turn are counted only.
pub const BATCH_LINES_MAX: usize = 128;
/// Lines of one second, for each shard; more decisions are counted only.
pub const LINES_A_SECOND_MAX: u32 = 200;
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

/// Which decisions are logged: those that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionFilter {
    /// Only refusals.
    pub denials: bool,
    /// Only of this listener.
    pub listener: Option<Box<str>>,
    /// Only of this client id.
    pub client_id: Option<Box<str>>,
    /// Only of this user, verified or claimed.
    pub user: Option<Box<str>>,
    /// Only of topics that this filter matches, and of the subscription to it.
    pub topic: Option<Box<str>>,
}

impl DecisionFilter {
    fn wants(&self, snapshot: &Snapshot, record: &DecisionRecord<'_>) -> bool {
        let is = |wanted: &Option<Box<str>>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        let user = match record.user {
            User::Nobody => "",
            User::Verified(name) | User::Claimed(name) => name,
        };
        let topic = record.wanted.topic;
        let is_topic = |filter: &str| filter == topic || is_on(filter, topic);
        (!self.denials || record.refused.is_some())
            && is(&self.client_id, record.client_id)
            && is(&self.user, user)
            && self.topic.as_deref().is_none_or(is_topic)
            && self.listener.as_deref().is_none_or(|name| {
                let listener = snapshot.listener(record.listener);
                listener.is_some_and(|listener| &*listener.name == name)
            })
    }
}

/// A CONNECT is on no topic.
fn is_on(filter: &str, topic: &str) -> bool {
    !topic.is_empty() && filter_matches(filter, topic)
}

/// What is logged, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionLog {
    /// One of so many that the filter wants, the first included.
    pub every: NonZeroU32,
    /// Which.
    pub filter: DecisionFilter,
    /// Nothing more from then on; `None`: it was asked for at the start of the process.
    pub until: Option<Time>,
}

/// A shard's sampler.
#[derive(Debug)]
pub struct DecisionSampler {
    log: DecisionLog,
    until_next: u32,
    /// The second that lines are counted in, and how many it has.
    second: (u64, u32),
    names: NameKey,
    batch: DecisionBatch,
}

impl DecisionSampler {
    /// Takes what the log wants.
    pub fn new(log: DecisionLog, names: NameKey) -> Self {
        Self {
            log,
            until_next: 0,
            second: (0, 0),
            names,
            batch: DecisionBatch::default(),
        }
    }

    /// True exactly when one more line may be written in this second.
    fn may_write(&mut self, now: Time) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        self.second.1 += 1;
        self.second.1 <= LINES_A_SECOND_MAX && self.batch.lines.len() < BATCH_LINES_MAX
    }

    /// Told of every decision.
    pub fn note(&mut self, now: Time, snapshot: &Snapshot, record: &DecisionRecord<'_>) {
        let is_over = self.log.until.is_some_and(|until| now >= until);
        if is_over || !self.log.filter.wants(snapshot, record) {
            return;
        }
        if self.until_next > 0 {
            self.until_next -= 1;
            return;
        }
        self.until_next = self.log.every.get() - 1;
        if !self.may_write(now) {
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
        logging(DecisionFilter::default(), every, None)
    }

    fn logging(filter: DecisionFilter, every: u32, until: Option<Time>) -> DecisionSampler {
        let every = NonZeroU32::new(every).expect("not zero");
        let log = DecisionLog {
            every,
            filter,
            until,
        };
        DecisionSampler::new(log, NameKey::default())
    }

    const NOW: Time = Time(7_000_000_000);

    #[test]
    fn only_what_is_wanted_is_taken_and_the_sample_is_of_that() {
        let text = |text: &str| Some(Box::from(text));
        let all = DecisionFilter::default;
        let snapshot = snapshot();
        let wanted = |filter: DecisionFilter, record: &DecisionRecord<'_>| {
            let mut sampler = logging(filter, 1, None);
            sampler.note(NOW, &snapshot, record);
            sampler.take().is_some()
        };
        let listener = snapshot.listeners()[0].id;
        let mut one = DecisionRecord {
            listener,
            user: User::Claimed("u"),
            ..record("a/b")
        };
        for (filter, expected) in [
            (
                DecisionFilter {
                    listener: text("mqtt"),
                    ..all()
                },
                true,
            ),
            (
                DecisionFilter {
                    listener: text("other"),
                    ..all()
                },
                false,
            ),
            (
                DecisionFilter {
                    client_id: text("c"),
                    ..all()
                },
                true,
            ),
            (
                DecisionFilter {
                    client_id: text("d"),
                    ..all()
                },
                false,
            ),
            (
                DecisionFilter {
                    user: text("u"),
                    ..all()
                },
                true,
            ),
            (
                DecisionFilter {
                    user: text("v"),
                    ..all()
                },
                false,
            ),
            (
                DecisionFilter {
                    topic: text("a/+"),
                    ..all()
                },
                true,
            ),
            (
                DecisionFilter {
                    topic: text("b/#"),
                    ..all()
                },
                false,
            ),
            (
                DecisionFilter {
                    topic: text("a/+"),
                    user: text("v"),
                    ..all()
                },
                false,
            ),
            (
                DecisionFilter {
                    denials: true,
                    ..all()
                },
                false,
            ),
        ] {
            assert_eq!(wanted(filter.clone(), &one), expected, "{filter:?}");
        }
        one.refused = Some(Reason::ClientId);
        assert!(wanted(
            DecisionFilter {
                denials: true,
                ..all()
            },
            &one
        ));
        one.wanted.topic = "";
        assert!(
            !wanted(
                DecisionFilter {
                    topic: text("#"),
                    ..all()
                },
                &one
            ),
            "no topic"
        );

        let filter = DecisionFilter {
            topic: text("x"),
            ..all()
        };
        let mut sampler = logging(filter, 2, None);
        for topic in ["x", "y", "x", "y", "x"] {
            sampler.note(NOW, &snapshot, &record(topic));
        }
        assert_eq!(sampler.take().map(|batch| batch.lines.len()), Some(2));
    }

    #[test]
    fn a_second_has_so_many_lines_and_a_log_has_an_end() {
        let snapshot = snapshot();
        let end = NOW.after(std::time::Duration::from_secs(2));
        let mut sampler = logging(DecisionFilter::default(), 1, Some(end));
        let mut lines = 0;
        for _ in 0..LINES_A_SECOND_MAX + 9 {
            sampler.note(NOW, &snapshot, &record("a"));
            lines += sampler.take().map_or(0, |batch| batch.lines.len());
        }
        assert_eq!(lines, LINES_A_SECOND_MAX as usize);
        let later = NOW.after(std::time::Duration::from_secs(1));
        sampler.note(later, &snapshot, &record("a"));
        assert_eq!(
            sampler
                .take()
                .map(|batch| (batch.lines.len(), batch.left_off)),
            Some((1, 9))
        );
        sampler.note(end, &snapshot, &record("a"));
        assert_eq!(sampler.take(), None);
    }

    #[test]
    fn one_of_every_n_is_taken() {
        let (snapshot, mut sampler) = (snapshot(), sampler(3));
        for topic in ["0", "1", "2", "3", "4", "5", "6"] {
            sampler.note(NOW, &snapshot, &record(topic));
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
            sampler.note(NOW, &snapshot, &record(&long));
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
        sampler.note(NOW, &snapshot, &record("next"));
        let left_off = sampler.take().expect("a line").left_off;
        assert_eq!(left_off as usize, BATCH_LINES_MAX + 5);
    }
}
