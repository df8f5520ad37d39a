//! One node as the control plane sees it: what it should have, what it holds, what was sent, what its shards judge by.
//!
//! Pure: messages, what is in force and the time come in; what to send and what to show come out. It knows no stream, no
//! store and no clock. Its shell ([`super::stream`]) calls [`Node::hello`], then after each input [`Node::next_plan`] and, as long
//! as the stream takes messages, [`Node::next_message`]; in the end [`Node::close`].
//!
//! # Invariants
//!
//! - Chunks of one generation are sent whole and in order, or not to their end; never with those of another between them.
//! - Changes are made to what the node said or acknowledged that it holds, never to what was merely sent.
//! - A generation that a node refused, or that needs a feature it lacks, is not sent to it.
//! - What is begun is finished: a newer generation waits for the node's answer, and only the newest waits. The wait ends:
//!   a node that does not answer loses its stream, and begins anew with the newest.

use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashSet};
use sluice_policy::fleet::{Change, Chunks, Digest, Inventories, RowKey};
use sluice_proto::v1::{self, from_node, reject::Reason};
use tokio::time::Instant;

use super::told::{BadHello, Capability, Hello, Refusal, Told};
use crate::domain::GenerationId;
use crate::release::Released;

/// Where a node stands on its way to what is in force; the same as `NodeState` in `control.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not connected.
    Offline,
    /// Connected, and nothing is in force.
    Idle,
    /// It does not judge by it yet.
    Delivering,
    /// Some shards do.
    Sweeping,
    /// Every shard does.
    Active,
    /// It refused it, or lacks a feature.
    Rejected,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Offline,
        Self::Idle,
        Self::Delivering,
        Self::Sweeping,
        Self::Active,
        Self::Rejected,
    ];

    /// In metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Idle => "idle",
            Self::Delivering => "delivering",
            Self::Sweeping => "sweeping",
            Self::Active => "active",
            Self::Rejected => "rejected",
        }
    }
}

/// Something that happened, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Every shard judges by the desired generation, for the first time.
    Active {
        /// Which.
        generation: GenerationId,
        /// Since its release; `None` when the node had it before it connected.
        took: Option<Duration>,
    },
    /// A generation was refused, or cannot be sent.
    Rejected {
        /// Which.
        generation: GenerationId,
        /// Why.
        reason: Reason,
    },
}

/// What changes are made to.
#[derive(Debug)]
pub enum Base {
    /// The node holds nothing, or nothing that could be built on.
    Nothing,
    /// A generation that was in force lately.
    Generation(GenerationId),
    /// What the node said row by row.
    Rows {
        /// Its name for it.
        held: GenerationId,
        /// Digests of all rows.
        rows: HashMap<RowKey, Digest>,
    },
}

/// A comparison to be made, the one costly thing: answered with [`Node::planned`].
#[derive(Debug)]
pub struct Plan {
    /// From.
    pub base: Base,
    /// To.
    pub target: Arc<Released>,
}

/// What a node holds, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Generation(GenerationId),
    /// It was wrong about it, or was misunderstood: only the whole is safe.
    Unsure,
}

/// How long a node may keep silent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Without any message.
    pub heartbeats: Duration,
    /// Until the inventory is there, once asked for.
    pub inventory: Duration,
    /// Until the first shard acknowledges a generation, or the node refuses it, once its last chunk was sent.
    pub answer: Duration,
}

/// How far the delivery of one generation is.
enum Stage {
    /// None is under way.
    Rest,
    /// The node was asked what it holds.
    Asked {
        held: GenerationId,
        inventory: Inventories,
        since: Instant,
    },
    /// It has answered.
    Answered {
        held: GenerationId,
        rows: HashMap<RowKey, Digest>,
    },
    /// The comparison is being made.
    Planning {
        target: Arc<Released>,
        base: Option<GenerationId>,
    },
    /// Chunks are sent as the node takes them.
    Sending {
        id: GenerationId,
        is_whole: bool,
        chunks: Chunks,
    },
    /// All were sent; the node has not answered.
    Sent {
        id: GenerationId,
        is_whole: bool,
        since: Instant,
    },
}

/// A stream that has said Hello.
struct Link {
    hello: Hello,
    held: Held,
    heard_at: Instant,
    stage: Stage,
}

/// See the module documentation.
#[derive(Default)]
pub struct Node {
    link: Option<Link>,
    told: Told,
    desired: Option<Arc<Released>>,
    refusal: Option<Refusal>,
    delivered: Option<GenerationId>,
    /// The last generation whose last chunk this process sent.
    sent: Option<GenerationId>,
    /// The last generation of which [`Event::Active`] was given.
    settled: Option<GenerationId>,
}

/// Inputs.
impl Node {
    /// A stream said Hello. What an earlier stream left behind is forgotten.
    pub fn hello(
        &mut self,
        hello: v1::Hello,
        desired: Option<Arc<Released>>,
        now: Instant,
    ) -> Result<Option<Event>, BadHello> {
        let (hello, held) = Hello::read(hello)?;
        let held = match held {
            None => Held::Nothing,
            Some(id) => GenerationId::from_wire(&id).map_or(Held::Unsure, Held::Generation),
        };
        self.delivered = match held {
            Held::Generation(id) => Some(id),
            Held::Nothing | Held::Unsure => None,
        };
        let is_other = |refusal: &Refusal| {
            refusal.version != hello.version || refusal.features != hello.features
        };
        if self.refusal.as_ref().is_some_and(is_other) {
            self.refusal = None;
        }
        self.told.begin(&hello);
        self.link = Some(Link {
            hello,
            held,
            heard_at: now,
            stage: Stage::Rest,
        });
        Ok(self.desire(desired, now))
    }

    /// The stream is over.
    pub fn close(&mut self) {
        self.link = None;
    }

    /// Something else is in force.
    pub fn desire(&mut self, desired: Option<Arc<Released>>, now: Instant) -> Option<Event> {
        let id = desired.as_ref().map(|desired| desired.id);
        if self.refusal.as_ref().map(|refusal| refusal.generation) != id {
            self.refusal = None;
        }
        self.desired = desired;
        self.settle(now)
    }

    /// The node said something. Answers to requests are the shell's.
    pub fn receive(&mut self, message: from_node::Message, now: Instant) -> Option<Event> {
        let link = self.link.as_mut()?;
        // Whatever it says, it is there: a heartbeat may be late behind a long inventory.
        link.heard_at = now;
        match message {
            from_node::Message::Inventory(chunk) => link.take_inventory(chunk),
            from_node::Message::Ack(ack) => self.take_ack(&ack),
            from_node::Message::Reject(reject) => return self.take_reject(reject),
            from_node::Message::Heartbeat(heartbeat) => self.told.take(heartbeat),
            from_node::Message::Hello(_)
            | from_node::Message::Done(_)
            | from_node::Message::Sessions(_)
            | from_node::Message::Rules(_)
            | from_node::Message::Denials(_) => {}
        }
        self.settle(now)
    }

    /// The changes that [`Node::next_plan`] asked for.
    pub fn planned(&mut self, changes: Arc<[Change]>) {
        let Some(link) = self.link.as_mut() else {
            return;
        };
        if let Stage::Planning { target, base } = &link.stage {
            let id = target.id;
            let is_whole = base.is_none();
            let chunks = Chunks::new(id.to_wire(), base.map(GenerationId::to_wire), changes);
            link.stage = Stage::Sending {
                id,
                is_whole,
                chunks,
            };
        }
    }

    fn take_ack(&mut self, ack: &v1::Ack) {
        let generation = ack.generation.as_ref().and_then(GenerationId::from_wire);
        let (Some(generation), Some(link)) = (generation, self.link.as_mut()) else {
            return;
        };
        self.told.acknowledge(ack.shard, generation);
        if link.stage.generation() == Some(generation) {
            link.held = Held::Generation(generation);
            link.stage = Stage::Rest;
            self.delivered = Some(generation);
        }
    }

    fn take_reject(&mut self, reject: v1::Reject) -> Option<Event> {
        let generation = reject.generation.as_ref();
        let generation = generation.and_then(GenerationId::from_wire)?;
        let link = self.link.as_mut()?;
        let is_whole = link.stage.is_whole_of(generation)?;
        link.stage = Stage::Rest;
        let reason = reject.reason();
        if matches!(reason, Reason::BaseUnknown | Reason::Digest) {
            link.held = Held::Unsure;
            if !is_whole {
                return None; // the whole may still do
            }
        }
        if self.desired.as_ref().map(|desired| desired.id) == Some(generation) {
            self.refusal = Some(Refusal::read(generation, reject, &link.hello));
        }
        Some(Event::Rejected { generation, reason })
    }

    /// What follows from an input: a feature that is missing, or that the node is where it should be.
    fn settle(&mut self, now: Instant) -> Option<Event> {
        let (link, desired) = (self.link.as_ref()?, self.desired.as_ref()?);
        let generation = desired.id;
        if self.told.active() == Some(generation) {
            self.refusal = None;
            if self.settled == Some(generation) {
                return None;
            }
            self.settled = Some(generation);
            let was_sent = self.sent == Some(generation);
            let took = was_sent.then(|| now.saturating_duration_since(desired.since));
            return Some(Event::Active { generation, took });
        }
        let lacks = desired.features.difference(&link.hello.features);
        let lacks: Vec<&str> = lacks.map(String::as_str).collect();
        if lacks.is_empty() || self.refusal.is_some() {
            return None;
        }
        self.refusal = Some(Refusal::lacking(generation, lacks, &link.hello));
        Some(Event::Rejected {
            generation,
            reason: Reason::Features,
        })
    }
}

/// What to do.
impl Node {
    /// The comparison to make before anything can be sent. `knows` tells whether the rows of a generation are at hand.
    pub fn next_plan(&mut self, knows: impl Fn(&GenerationId) -> bool) -> Option<Plan> {
        let target = self.lacks().map(Arc::clone);
        let link = self.link.as_mut()?;
        if let (Stage::Answered { .. }, None) = (&link.stage, &target) {
            link.stage = Stage::Rest; // nothing needs the answer any more
        }
        let target = target?;
        let (base, base_id) = match (std::mem::replace(&mut link.stage, Stage::Rest), link.held) {
            (Stage::Answered { held, rows }, _) => (Base::Rows { held, rows }, Some(held)),
            (_, Held::Generation(id)) if knows(&id) => (Base::Generation(id), Some(id)),
            (_, Held::Generation(_)) => return None,
            (_, Held::Nothing | Held::Unsure) => (Base::Nothing, None),
        };
        link.stage = Stage::Planning {
            target: Arc::clone(&target),
            base: base_id,
        };
        Some(Plan { base, target })
    }

    /// True exactly when the node has to be asked what it holds. To be called when [`Node::next_plan`] has none.
    pub fn wants_inventory(&self) -> bool {
        let held = self.link.as_ref().map(|link| link.held);
        self.lacks().is_some() && matches!(held, Some(Held::Generation(_)))
    }

    /// True exactly while an inventory is waited for or compared, which takes memory.
    pub fn is_comparing(&self) -> bool {
        let stage = self.link.as_ref().map(|link| &link.stage);
        matches!(
            stage,
            Some(Stage::Asked { .. } | Stage::Answered { .. } | Stage::Planning { .. })
        )
    }

    /// The node is asked what it holds.
    pub fn ask_inventory(&mut self, now: Instant) -> v1::AskInventory {
        if let Some(link) = self.link.as_mut()
            && let Held::Generation(held) = link.held
        {
            link.stage = Stage::Asked {
                held,
                inventory: Inventories::default(),
                since: now,
            };
        }
        v1::AskInventory {}
    }

    /// True exactly when there is a chunk to send.
    pub fn has_chunk(&self) -> bool {
        let stage = self.link.as_ref().map(|link| &link.stage);
        matches!(stage, Some(Stage::Sending { .. }))
    }

    /// The next chunk, made now. It counts as sent.
    pub fn next_chunk(&mut self, now: Instant) -> Option<v1::GenerationChunk> {
        let link = self.link.as_mut()?;
        let Stage::Sending {
            id,
            is_whole,
            chunks,
        } = &mut link.stage
        else {
            return None;
        };
        let (id, is_whole) = (*id, *is_whole);
        let chunk = chunks.next();
        if chunk.as_ref().is_none_or(|chunk| chunk.is_last) {
            link.stage = Stage::Sent {
                id,
                is_whole,
                since: now,
            };
            self.delivered = Some(id);
            self.sent = Some(id);
        }
        chunk
    }

    /// When to call [`Node::overdue`].
    pub fn deadline(&self, patience: &Patience) -> Option<Instant> {
        let link = self.link.as_ref()?;
        let heard_by = link.heard_at + patience.heartbeats;
        let due = link.stage.due(patience).map(|(due, _)| due);
        due.into_iter().chain([heard_by]).min()
    }

    /// Why the stream has to end, if it has.
    pub fn overdue(&self, patience: &Patience, now: Instant) -> Option<&'static str> {
        let link = self.link.as_ref()?;
        if now >= link.heard_at + patience.heartbeats {
            return Some("three heartbeats are missing");
        }
        let (due, why) = link.stage.due(patience)?;
        (now >= due).then_some(why)
    }

    /// What is in force, when the node does not have it, may have it, and nothing else is under way.
    fn lacks(&self) -> Option<&Arc<Released>> {
        let (link, desired) = (self.link.as_ref()?, self.desired.as_ref()?);
        let is_free = matches!(link.stage, Stage::Rest | Stage::Answered { .. });
        let may_have = self.refusal.is_none() && desired.features.is_subset(&link.hello.features);
        let has = link.held == Held::Generation(desired.id);
        (is_free && may_have && !has).then_some(desired)
    }
}

/// What to show.
impl Node {
    /// Where it stands on its way to `desired`.
    pub fn state(&self, desired: Option<&Released>) -> State {
        let (Some(_), Some(desired)) = (self.link.as_ref(), desired) else {
            return match self.link {
                None => State::Offline,
                Some(_) => State::Idle,
            };
        };
        if self.told.active() == Some(desired.id) {
            return State::Active;
        }
        if self.refusal(Some(desired)).is_some() {
            return State::Rejected;
        }
        let has = |shard: &super::told::Shard| shard.active == Some(desired.id);
        if self.told.shards.iter().any(has) {
            State::Sweeping
        } else {
            State::Delivering
        }
    }

    /// What it last told.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// See `delivered` in `control.proto`.
    pub fn delivered(&self) -> Option<GenerationId> {
        self.delivered
    }

    /// Why it does not take `desired`.
    pub fn refusal(&self, desired: Option<&Released>) -> Option<&Refusal> {
        let desired = desired?;
        let refusal = self.refusal.as_ref();
        refusal.filter(|refusal| refusal.generation == desired.id)
    }

    /// Whether a stream has said Hello.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Whether it is connected and takes such messages.
    pub fn can(&self, capability: Capability) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| link.hello.can(capability))
    }

    /// Of these features those it lacks, sorted; `None` when it is not connected.
    pub fn lacking(&self, features: &HashSet<String>) -> Option<Vec<String>> {
        let link = self.link.as_ref()?;
        let lacks = features.difference(&link.hello.features);
        let mut lacks: Vec<String> = lacks.cloned().collect();
        lacks.sort();
        Some(lacks)
    }
}

impl Link {
    fn take_inventory(&mut self, chunk: v1::InventoryChunk) {
        let Stage::Asked {
            held, inventory, ..
        } = &mut self.stage
        else {
            return; // not asked for
        };
        let held = *held;
        match inventory.take(chunk) {
            Ok(None) => {}
            Ok(Some(rows)) => self.stage = Stage::Answered { held, rows },
            Err(_) => {
                self.held = Held::Unsure;
                self.stage = Stage::Rest;
            }
        }
    }
}

impl Stage {
    /// By when the node has to answer, and what to say when it does not.
    fn due(&self, patience: &Patience) -> Option<(Instant, &'static str)> {
        match self {
            Self::Asked { since, .. } => Some((
                *since + patience.inventory,
                "the inventory did not come in time",
            )),
            Self::Sent { since, .. } => Some((
                *since + patience.answer,
                "the node neither took nor refused a generation in time",
            )),
            Self::Rest | Self::Answered { .. } | Self::Planning { .. } | Self::Sending { .. } => {
                None
            }
        }
    }

    /// What is being delivered, or waits for the answer.
    fn generation(&self) -> Option<GenerationId> {
        match self {
            Self::Sending { id, .. } | Self::Sent { id, .. } => Some(*id),
            Self::Planning { target, .. } => Some(target.id),
            Self::Rest | Self::Asked { .. } | Self::Answered { .. } => None,
        }
    }

    /// Whether what was sent of this generation is the whole; `None` when nothing was.
    fn is_whole_of(&self, generation: GenerationId) -> Option<bool> {
        match self {
            Self::Sending { id, is_whole, .. } | Self::Sent { id, is_whole, .. }
                if *id == generation =>
            {
                Some(*is_whole)
            }
            Self::Sending { .. }
            | Self::Sent { .. }
            | Self::Rest
            | Self::Asked { .. }
            | Self::Answered { .. }
            | Self::Planning { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
