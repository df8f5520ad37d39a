//! What a node decides about what its control plane says: a state machine without a stream, a disk or a clock.
//!
//! Put in: messages, and how far the generations offered have come. Taken out: [`Output`]s, which the shell
//! ([`super::node`]) carries out in order. Owns which generation is held, which are on their way, and which
//! acknowledgement belongs to which.
//!
//! # Invariants
//!
//! - **`held` is what was swapped in last**, never what was only received: it is the base that changes are made to, what
//!   goes to the disk, and what the node says it has.
//! - **One answer for each generation**: refused once, or acknowledged once by each shard.

use std::collections::VecDeque;
use std::time::Duration;

use sluice_policy::fleet::{Assembly, Delivered, Delivery, Inventory};
use sluice_policy::{FEATURES, RulePlace};
use sluice_proto::v1::{self, from_node, reject::Reason, to_node};

use super::denials;
use super::disk::Held;
use crate::control::compile::Refusal;
use crate::control::rules::RuleFilter;
use crate::node::{DenialFilter, KickWho, SessionFilter};

/// Generations whose acknowledgements may be on their way; the control thread takes on fewer.
const RELEASES_MAX: usize = 64;
/// Sessions, and rules, in one page.
const PAGE_MAX: u32 = 1000;

/// What is to be done.
#[derive(Debug)]
pub(super) enum Output {
    /// Say this.
    Send(from_node::Message),
    /// Send the digests of these rows.
    SendInventory(Inventory),
    /// Put these changes to these rows (see [`prepare`]); the answer goes to [`Agent::prepared`].
    Prepare {
        /// The rows.
        base: Inventory,
        /// The changes.
        delivery: Delivery,
    },
    /// Compile this and swap it in; the answer goes to [`Agent::answered`].
    Offer(Held),
    /// Keep this on the disk.
    Keep(Held),
    /// End sessions, and answer.
    Kick {
        /// Names the answer.
        request: u64,
        /// Whose.
        who: KickWho,
        /// Keep them out for so long, too.
        keep_out: Option<Duration>,
    },
    /// Drain, and answer.
    Drain(v1::Drain),
    /// List sessions, and answer.
    List {
        /// Names the answer.
        request: u64,
        /// Where to go on.
        after: Option<String>,
        /// At most so many.
        limit: u32,
        /// Which.
        filter: SessionFilter,
    },
    /// List rules, and answer.
    Rules {
        /// Names the answer.
        request: u64,
        /// Where to go on.
        behind: Option<RulePlace>,
        /// At most so many.
        limit: u32,
        /// Which.
        filter: RuleFilter,
    },
    /// List recent refusals, and answer.
    ListDenials {
        /// Names the answer.
        request: u64,
        /// Where to go on.
        after: Option<String>,
        /// At most so many.
        limit: u32,
        /// Which; or what of it cannot be.
        filter: Result<DenialFilter, String>,
    },
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Agent {
    node: String,
    shards: u32,
    held: Option<Held>,
    /// Offered last, and not answered yet.
    offered: Option<Held>,
    assembly: Assembly,
    /// The snapshot's own number and the fleet's, oldest first.
    releases: VecDeque<(u64, v1::GenerationId)>,
    /// By shard: the snapshot's number that was told last.
    told: Vec<Option<u64>>,
    is_connected: bool,
}

/// Changes put to rows.
#[derive(Debug)]
pub(super) struct Prepared {
    /// What came of it.
    pub(super) held: Held,
    /// True exactly when it is what was promised.
    pub(super) is_right: bool,
}

/// Puts the changes of a delivery to the rows they are made to. Costs what it changes, and a look at the whole digest.
pub(super) fn prepare(base: &Inventory, delivery: Delivery) -> Prepared {
    let rows = base.with(delivery.changes);
    let is_right = rows.digest().as_slice() == delivery.generation.digest;
    Prepared {
        held: Held {
            id: delivery.generation,
            rows,
        },
        is_right,
    }
}

impl Agent {
    /// A node of so many shards that holds nothing yet.
    pub(super) fn new(node: String, shards: u32) -> Self {
        Self {
            node,
            shards,
            held: None,
            offered: None,
            assembly: Assembly::default(),
            releases: VecDeque::new(),
            told: vec![None; usize::try_from(shards).unwrap_or(0)],
            is_connected: false,
        }
    }

    /// What is in force.
    pub(super) fn held(&self) -> Option<&v1::GenerationId> {
        self.held.as_ref().map(|held| &held.id)
    }

    /// A generation from the disk, before any stream.
    pub(super) fn begin_with(&mut self, held: Held) -> Output {
        self.offered = Some(held.clone());
        Output::Offer(held)
    }

    /// A stream is open. The heartbeat that follows at once is the shell's.
    pub(super) fn connected(&mut self) -> from_node::Message {
        self.assembly = Assembly::default();
        self.is_connected = true;
        from_node::Message::Hello(v1::Hello {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            features: FEATURES.iter().map(ToString::to_string).collect(),
            capabilities: ["kick", "keep_out", "drain", "sessions", "rules", "denials"]
                .map(String::from)
                .to_vec(),
            shards: self.shards,
            held: self.held().cloned(),
        })
    }

    /// The stream is over. What came of a generation in parts is dropped.
    pub(super) fn disconnected(&mut self) {
        self.assembly = Assembly::default();
        self.is_connected = false;
    }

    /// A message has come. At most one thing is to be done about it.
    pub(super) fn take(&mut self, message: to_node::Message) -> Option<Output> {
        match message {
            to_node::Message::AskInventory(v1::AskInventory {}) => {
                let held = self.held.as_ref();
                let rows = held.map(|held| held.rows.clone()).unwrap_or_default();
                Some(Output::SendInventory(rows))
            }
            to_node::Message::Generation(chunk) => self.take_chunk(chunk),
            to_node::Message::Kick(kick) => Some(begin_kick(kick)),
            to_node::Message::Drain(drain) => Some(Output::Drain(drain)),
            to_node::Message::ListSessions(list) => Some(Output::List {
                request: list.request,
                after: list.after,
                limit: list.limit.clamp(1, PAGE_MAX),
                filter: SessionFilter {
                    client_id: list.client_id.map(Into::into),
                    username: list.username.map(Into::into),
                },
            }),
            to_node::Message::ListRules(list) => Some(Output::Rules {
                request: list.request,
                behind: list.behind.map(|place| RulePlace {
                    priority: place.priority,
                    order: place.order,
                    tie: place.tie,
                    name: place.name.into(),
                }),
                limit: list.limit.clamp(1, PAGE_MAX),
                filter: RuleFilter {
                    unused: false,
                    shadow: list.only_shadow,
                },
            }),
            to_node::Message::ListDenials(list) => Some(denials::question(list)),
        }
    }

    fn take_chunk(&mut self, chunk: v1::GenerationChunk) -> Option<Output> {
        match self.assembly.take(chunk) {
            Delivered::Part => None,
            Delivered::Whole(delivery) => self.take_delivery(delivery),
            Delivered::Refused {
                generation,
                reason,
                row,
                message,
            } => {
                let problem = v1::Problem {
                    row: row.map(|key| key.to_wire()),
                    field: String::new(),
                    message,
                };
                self.reject(generation, Refusal::one(reason, problem))
            }
        }
    }

    fn take_delivery(&mut self, delivery: Delivery) -> Option<Output> {
        let id = &delivery.generation;
        if self.offered.as_ref().is_some_and(|held| held.id == *id) {
            return None; // at work: its answer is on its way
        }
        if self.offered.is_none() && self.held() == Some(id) {
            // Said again by one who did not hear the acknowledgements: they are said again as well.
            self.told.fill(None);
            return None;
        }
        let base = match &delivery.base {
            None => Some(Inventory::default()),
            Some(base) => [&self.offered, &self.held]
                .into_iter()
                .flatten()
                .find(|held| held.id == *base)
                .map(|held| held.rows.clone()),
        };
        match base {
            Some(base) => Some(Output::Prepare { base, delivery }),
            None => {
                let text = "this node does not hold the generation that the changes are made to";
                let refusal = Refusal::one(Reason::BaseUnknown, whole(text));
                self.reject(delivery.generation, refusal)
            }
        }
    }

    /// The answer to [`Output::Prepare`].
    pub(super) fn prepared(&mut self, prepared: Prepared) -> Option<Output> {
        let Prepared { held, is_right } = prepared;
        if !is_right {
            let text = "the rows do not add up to the digest of the generation";
            return self.reject(held.id, Refusal::one(Reason::Digest, whole(text)));
        }
        self.offered = Some(held.clone());
        Some(Output::Offer(held))
    }

    /// A generation that the machine could not take is offered again, unless another is at work.
    pub(super) fn offer_again(&mut self, held: Held) -> Option<Output> {
        if self.offered.is_some() {
            return None;
        }
        self.offered = Some(held.clone());
        Some(Output::Offer(held))
    }

    /// What became of an offer: the snapshot's own number once it is swapped in, a refusal, or `None` when a newer one
    /// has taken its place.
    pub(super) fn answered(
        &mut self,
        held: Held,
        outcome: Option<Result<u64, Refusal>>,
    ) -> Option<Output> {
        if self.offered.as_ref().is_some_and(|last| last.id == held.id) {
            self.offered = None;
        }
        match outcome? {
            Ok(number) => {
                self.releases.push_back((number, held.id.clone()));
                if self.releases.len() > RELEASES_MAX {
                    self.releases.pop_front();
                }
                self.held = Some(held.clone());
                Some(Output::Keep(held))
            }
            Err(refusal) => self.reject(held.id, refusal),
        }
    }

    /// What each shard judges by, as the snapshots count. Says what is new about it.
    pub(super) fn acknowledged(&mut self, shards: &[Option<u64>]) -> Vec<from_node::Message> {
        let mut acks = Vec::new();
        for ((seen, told), shard) in shards.iter().zip(&mut self.told).zip(0_u32..) {
            if seen == told {
                continue;
            }
            let Some(generation) = of_fleet(&self.releases, *seen) else {
                continue; // the answer to its offer is on its way
            };
            *told = *seen;
            acks.push(from_node::Message::Ack(v1::Ack {
                generation: Some(generation.clone()),
                shard,
            }));
        }
        if let Some(oldest) = shards.iter().copied().min().flatten() {
            self.releases.retain(|(number, _)| *number >= oldest);
        }
        if self.is_connected { acks } else { Vec::new() }
    }

    /// The fleet's name of a snapshot's number.
    pub(super) fn generation(&self, number: Option<u64>) -> Option<&v1::GenerationId> {
        of_fleet(&self.releases, number)
    }

    fn reject(&self, generation: v1::GenerationId, refusal: Refusal) -> Option<Output> {
        tracing::warn!(
            generation = generation.number,
            reason = refusal.reason.as_str_name(),
            problems = refusal.problems.len(),
            first = refusal.problems.first().map_or("", |first| &first.message),
            "a generation of the control plane is refused"
        );
        self.is_connected.then(|| {
            Output::Send(from_node::Message::Reject(v1::Reject {
                generation: Some(generation),
                reason: refusal.reason.into(),
                problems: refusal.problems,
                left_off: refusal.left_off,
            }))
        })
    }
}

fn of_fleet(
    releases: &VecDeque<(u64, v1::GenerationId)>,
    number: Option<u64>,
) -> Option<&v1::GenerationId> {
    let number = number?;
    let mut releases = releases.iter().rev();
    releases
        .find(|(own, _)| *own == number)
        .map(|(_, generation)| generation)
}

fn begin_kick(kick: v1::Kick) -> Output {
    let who = match kick.who {
        Some(v1::kick::Who::ClientId(client_id)) => KickWho::ClientId(client_id.into()),
        Some(v1::kick::Who::Username(username)) => KickWho::Username(username.into()),
        None => {
            return Output::Send(from_node::Message::Done(v1::Done {
                request: kick.request,
                sessions: 0,
                error: "whom to kick is not said: name a client id or a user".into(),
            }));
        }
    };
    Output::Kick {
        request: kick.request,
        who,
        keep_out: kick.keep_out_ms.map(Duration::from_millis),
    }
}

/// A problem of the document as a whole.
fn whole(message: &str) -> v1::Problem {
    v1::Problem {
        row: None,
        field: String::new(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests;
