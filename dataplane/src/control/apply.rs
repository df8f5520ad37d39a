//! From a compiled snapshot to one that every shard judges by: the four stages, and what is kept alive meanwhile.
//!
//! Desired (the source asked for it), compiled (its tables exist), delivered (the pointer is swapped, sockets are on
//! their way), active (every shard has judged all its sessions by it) are four different things; [`PolicyStatus`] says
//! each by its number. Owns the policy pointer's writing end and the listening sockets. Compiling is [`super::compile`]'s.
//!
//! # Invariants
//!
//! - **All or nothing.** Whatever can fail (sockets, cells for endpoints) is done before the swap; a failure leaves the
//!   old generation, its sockets and its directory as they are.
//! - **Only this thread drops a snapshot**, and only after every shard acknowledged a later one.
//! - **A directory precedes the policy that needs it** into every mailbox.

use std::sync::Arc;

use serde::Serialize;
use sluice_policy::{Generation, PolicyHandle, Snapshot};

use super::link::Link;
use super::listeners::{Listeners, Listening, Wanted};
use crate::node::{Directory, ShardId, ToShard};

/// Replaced snapshots that may wait for a slow shard; beyond it no further generation is taken on.
pub const RETIRED_MAX: usize = 16;
/// Problems of a refused document that the status repeats; the log has them all.
const PROBLEMS_SHOWN_MAX: usize = 100;

/// What is known of a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Its number.
    pub generation: u64,
    /// Where it came from, for example `file:policy.yaml`.
    pub source: String,
    /// Digest of the document, as soon as it was read.
    pub digest: Option<String>,
}

/// A generation that was refused. The one before it stays in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// Its number.
    pub generation: u64,
    /// Where it came from.
    pub source: String,
    /// Why: `file:line:column: message` for what is wrong in the document.
    pub errors: Vec<String>,
    /// Errors beyond those listed.
    pub errors_left_off: usize,
}

/// Where every generation stands; shown as `/policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// The last one asked for.
    pub desired: Option<Stage>,
    /// The last one whose tables exist.
    pub compiled: Option<Stage>,
    /// The last one that was swapped in.
    pub delivered: Option<Stage>,
    /// The last one that every shard acknowledged.
    pub active: Option<Stage>,
    /// What each shard acknowledged last.
    pub shards: Vec<Option<u64>>,
    /// The last refusal, until a later generation is delivered.
    pub rejected: Option<Rejection>,
    /// Refusals since the start.
    pub rejections: u64,
}

/// See the module documentation.
pub struct Apply {
    handle: PolicyHandle,
    links: Vec<Link>,
    listeners: Listeners,
    directory: Arc<Directory>,
    acknowledged: Vec<Option<Generation>>,
    /// Replaced snapshots, oldest first.
    retired: Vec<Arc<Snapshot>>,
    status: PolicyStatus,
    last_number: u64,
}

impl Apply {
    /// Nothing is in force.
    pub fn new(handle: PolicyHandle, links: Vec<Link>, listeners: Listeners) -> Self {
        let shards = links.len();
        Self {
            handle,
            links,
            listeners,
            directory: Arc::default(),
            acknowledged: vec![None; shards],
            retired: Vec::new(),
            status: PolicyStatus {
                shards: vec![None; shards],
                ..PolicyStatus::default()
            },
            last_number: 0,
        }
    }

    /// A source wants another policy: gives it a number. Numbers of refused ones are not used again.
    pub fn desire(&mut self, source: &str) -> Generation {
        self.last_number += 1;
        self.status.desired = Some(Stage {
            generation: self.last_number,
            source: source.into(),
            digest: None,
        });
        Generation(self.last_number)
    }

    /// True exactly when another generation can be taken on.
    pub fn has_room(&self) -> bool {
        self.retired.len() < RETIRED_MAX
    }

    /// The tables exist.
    pub fn compiled(&mut self, generation: Generation, digest: &str) {
        self.status.compiled = self.desired(generation).map(|mut stage| {
            stage.digest = Some(digest.into());
            stage
        });
    }

    /// The generation is refused; what is in force stays.
    pub fn reject(&mut self, generation: Generation, mut errors: Vec<String>) {
        let errors_left_off = errors.len().saturating_sub(PROBLEMS_SHOWN_MAX);
        errors.truncate(PROBLEMS_SHOWN_MAX);
        let source = self
            .desired(generation)
            .map_or_else(String::new, |stage| stage.source);
        self.status.rejections += 1;
        self.status.rejected = Some(Rejection {
            generation: generation.0,
            source,
            errors,
            errors_left_off,
        });
    }

    /// Opens the sockets, swaps, and tells the shards; or refuses and changes nothing.
    pub fn deliver(&mut self, snapshot: Arc<Snapshot>, directory: Directory) -> Result<(), String> {
        let wanted: Vec<Wanted<'_>> = snapshot
            .listeners()
            .iter()
            .map(|listener| Wanted {
                id: listener.id,
                name: &listener.name,
                address: listener.address,
            })
            .collect();
        let prepared = self
            .listeners
            .prepare(&wanted)
            .map_err(|error| error.to_string())?;
        drop(wanted);
        let generation = snapshot.generation();

        self.send_directory(directory);
        self.retired.extend(self.handle.swap(snapshot));
        self.listeners.commit(&prepared);
        for &listener in &prepared.stop {
            self.send_all(|| ToShard::StopListening { listener });
        }
        for (listening, sockets) in prepared.start {
            let listener = listening.id();
            tracing::info!(
                listener = %listening.name,
                address = %listening.address,
                requested = %listening.requested,
                activated = listening.activated,
                "listening"
            );
            for (link, socket) in self.links.iter().zip(sockets) {
                report(link.send(ToShard::Listen { listener, socket }));
            }
        }
        self.links.iter().for_each(Link::wake);

        self.status.delivered = match self.status.compiled.clone() {
            Some(stage) if stage.generation == generation.0 => Some(stage),
            Some(_) | None => self.desired(generation),
        };
        self.status.rejected = None;
        Ok(())
    }

    /// A shard has judged all its sessions by `generation`. True exactly when that makes a generation active.
    pub fn acknowledged(&mut self, shard: ShardId, generation: Generation) -> bool {
        let Some(seen) = self.acknowledged.get_mut(usize::from(shard.0)) else {
            return false;
        };
        *seen = (*seen).max(Some(generation));
        self.status.shards = self
            .acknowledged
            .iter()
            .map(|seen| seen.map(|generation| generation.0))
            .collect();
        let Some(everywhere) = self.acknowledged.iter().copied().min().flatten() else {
            return false;
        };
        self.retired
            .retain(|snapshot| snapshot.generation() >= everywhere);
        let was_active = self.status.active.as_ref().map(|stage| stage.generation);
        match &self.status.delivered {
            Some(stage) if stage.generation == everywhere.0 && was_active != Some(everywhere.0) => {
                self.status.active = Some(stage.clone());
                true
            }
            Some(_) | None => false,
        }
    }

    /// Endpoints have moved without a change of policy.
    pub fn send_directory(&mut self, directory: Directory) {
        self.directory = Arc::new(directory);
        for link in &self.links {
            report(link.send(ToShard::Directory(Arc::clone(&self.directory))));
        }
    }

    /// The directory the shards have.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.handle.load()
    }

    /// Where every generation stands.
    pub fn status(&self) -> &PolicyStatus {
        &self.status
    }

    /// What is listened on.
    pub fn listening(&self) -> Vec<Listening> {
        self.listeners.list()
    }

    fn desired(&self, generation: Generation) -> Option<Stage> {
        let desired = self.status.desired.clone();
        desired.filter(|stage| stage.generation == generation.0)
    }

    fn send_all(&self, message: impl Fn() -> ToShard) {
        for link in &self.links {
            report(link.send(message()));
        }
    }
}

/// A stuck shard does not stop the others; readiness tells, because it stops acknowledging.
fn report(sent: Result<(), super::link::Stuck>) {
    if let Err(error) = sent {
        tracing::error!(%error, "a message to a shard was dropped");
    }
}
