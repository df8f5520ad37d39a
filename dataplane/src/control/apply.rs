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
//! - **No shard drops a snapshot**: it is let go of here, after every shard acknowledged a later one, and dropped where a
//!   second of work is in no one's way.
//! - **A directory precedes the policy that needs it** into every mailbox.

use std::sync::Arc;

use serde::Serialize;
use sluice_policy::{Generation, PolicyHandle, Snapshot};

use super::link::Link;
use super::listeners::{Listeners, Listening, Prepared, Wanted};
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
    /// Its number in the fleet, when it is the control plane's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet_generation: Option<u64>,
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
    /// False exactly while the node is drained by the control plane: then nothing is listened on.
    is_accepting: bool,
    directory: Arc<Directory>,
    acknowledged: Vec<Option<Generation>>,
    /// Replaced snapshots, oldest first.
    retired: Vec<Arc<Snapshot>>,
    /// Those that no shard reads any more.
    outlived: Vec<Arc<Snapshot>>,
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
            is_accepting: true,
            directory: Arc::default(),
            acknowledged: vec![None; shards],
            retired: Vec::new(),
            outlived: Vec::new(),
            status: PolicyStatus {
                shards: vec![None; shards],
                ..PolicyStatus::default()
            },
            last_number: 0,
        }
    }

    /// A source wants another policy: gives it a number. Numbers of refused ones are not used again.
    pub fn desire(&mut self, source: &str, fleet_generation: Option<u64>) -> Generation {
        self.last_number += 1;
        self.status.desired = Some(Stage {
            generation: self.last_number,
            source: source.into(),
            digest: None,
            fleet_generation,
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
        let prepared = if self.is_accepting {
            let prepared = self.listeners.prepare(&wanted(&snapshot));
            prepared.map_err(|error| error.to_string())?
        } else {
            Prepared::default()
        };
        let generation = snapshot.generation();

        self.send_directory(directory);
        self.retired.extend(self.handle.swap(snapshot));
        self.listen(prepared);
        self.links.iter().for_each(Link::wake);

        self.status.delivered = match self.status.compiled.clone() {
            Some(stage) if stage.generation == generation.0 => Some(stage),
            Some(_) | None => self.desired(generation),
        };
        self.status.rejected = None;
        Ok(())
    }

    /// The shards stop accepting by themselves; nothing is opened any more, whatever generation comes.
    pub fn stop_accepting(&mut self) {
        self.is_accepting = false;
        self.listeners.rest();
    }

    /// Opens what the snapshot in force names, or changes nothing.
    pub fn accept_again(&mut self) -> Result<(), String> {
        let prepared = match self.handle.load() {
            Some(snapshot) => self.listeners.prepare(&wanted(&snapshot)),
            None => Ok(Prepared::default()),
        };
        let prepared = prepared.map_err(|error| error.to_string())?;
        self.is_accepting = true;
        self.send_all(|| ToShard::ServeAgain);
        self.listen(prepared);
        Ok(())
    }

    fn listen(&mut self, prepared: Prepared) {
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
        let is_outlived = |snapshot: &mut Arc<Snapshot>| snapshot.generation() < everywhere;
        let outlived = self.retired.extract_if(.., is_outlived);
        self.outlived.extend(outlived);
        let was_active = self.status.active.as_ref().map(|stage| stage.generation);
        match &self.status.delivered {
            Some(stage) if stage.generation == everywhere.0 && was_active != Some(everywhere.0) => {
                self.status.active = Some(stage.clone());
                true
            }
            Some(_) | None => false,
        }
    }

    /// Snapshots that no shard reads any more, to be dropped: of a million rules one takes a second.
    pub fn take_outlived(&mut self) -> Vec<Arc<Snapshot>> {
        std::mem::take(&mut self.outlived)
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

fn wanted(snapshot: &Snapshot) -> Vec<Wanted<'_>> {
    let listeners = snapshot.listeners().iter();
    listeners
        .map(|listener| Wanted {
            id: listener.id,
            name: &listener.name,
            address: listener.address,
        })
        .collect()
}

/// A stuck shard does not stop the others; readiness tells, because it stops acknowledging.
fn report(sent: Result<(), super::link::Stuck>) {
    if let Err(error) = sent {
        tracing::error!(%error, "a message to a shard was dropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Inbox, mailbox};

    const LISTENER: &str = "listeners: [{name: devices, address: '127.0.0.1:0', upstream: b}]\n";
    const UPSTREAM: &str = "upstreams: [{name: b, endpoints: ['tcp://127.0.0.1:1']}]\n";

    struct Bench {
        apply: Apply,
        handle: PolicyHandle,
        inboxes: Vec<Inbox<ToShard>>,
    }

    impl Bench {
        fn new(shards: u16) -> Self {
            let handle = PolicyHandle::default();
            let (mut links, mut inboxes) = (Vec::new(), Vec::new());
            for shard in 0..shards {
                let (post, inbox) = mailbox(64);
                links.push(Link::new(ShardId(shard), post, 0));
                inboxes.push(inbox);
            }
            let listeners = Listeners::new(usize::from(shards), Vec::new());
            Self {
                apply: Apply::new(handle.clone(), links, listeners),
                handle,
                inboxes,
            }
        }

        fn compile(&mut self, document: &str) -> Arc<Snapshot> {
            let generation = self.apply.desire("test", None);
            let previous = self.apply.snapshot();
            let snapshot =
                sluice_policy::compile(document, "test", generation, previous.as_deref());
            let snapshot = snapshot.expect("a good document");
            self.apply.compiled(generation, snapshot.digest());
            Arc::new(snapshot)
        }

        fn deliver(&mut self, document: &str) -> Result<(), String> {
            let snapshot = self.compile(document);
            self.apply.deliver(snapshot, Directory::default())
        }

        fn acknowledge(&mut self, shard: u16, generation: u64) -> bool {
            self.apply
                .acknowledged(ShardId(shard), Generation(generation))
        }

        /// Desired, compiled, delivered and active.
        fn stages(&self) -> [Option<u64>; 4] {
            let status = self.apply.status();
            let stages = [
                &status.desired,
                &status.compiled,
                &status.delivered,
                &status.active,
            ];
            stages.map(|stage| stage.as_ref().map(|stage| stage.generation))
        }

        fn mail(&self, shard: usize) -> Vec<&'static str> {
            std::iter::from_fn(|| self.inboxes[shard].take())
                .map(|message| match message {
                    ToShard::Directory(_) => "directory",
                    ToShard::Listen { .. } => "listen",
                    ToShard::StopListening { .. } => "stop",
                    ToShard::Authenticated { .. }
                    | ToShard::Kick { .. }
                    | ToShard::KeptOut(_)
                    | ToShard::List { .. }
                    | ToShard::LogDecisions(_)
                    | ToShard::ListDenials { .. }
                    | ToShard::Drain { .. }
                    | ToShard::ServeAgain
                    | ToShard::Report { .. } => "other",
                })
                .collect()
        }
    }

    fn good() -> String {
        format!("{LISTENER}{UPSTREAM}")
    }

    #[test]
    fn the_four_stages_are_told_apart() {
        let mut bench = Bench::new(2);
        assert_eq!(bench.stages(), [None; 4]);
        let snapshot = bench.compile(&good());
        assert_eq!(bench.stages(), [Some(1), Some(1), None, None]);
        assert!(bench.handle.load().is_none(), "compiled is not in force");
        bench
            .apply
            .deliver(snapshot, Directory::default())
            .expect("delivered");
        assert_eq!(bench.stages(), [Some(1), Some(1), Some(1), None]);
        for shard in 0..2 {
            assert_eq!(
                bench.mail(shard),
                ["directory", "listen"],
                "the directory comes first"
            );
        }
        assert!(!bench.acknowledge(0, 1));
        assert_eq!(
            bench.stages(),
            [Some(1), Some(1), Some(1), None],
            "one shard is not all"
        );
        assert!(bench.acknowledge(1, 1));
        assert_eq!(bench.stages(), [Some(1); 4]);
        assert!(!bench.acknowledge(1, 1), "said once");
        assert!(!bench.acknowledge(9, 1), "a shard that is none");
    }

    #[test]
    fn a_replaced_snapshot_lives_until_every_shard_has_moved_on() {
        let mut bench = Bench::new(2);
        bench.deliver(&good()).expect("delivered");
        let first = Arc::downgrade(&bench.handle.load().expect("in force"));
        assert!(!bench.acknowledge(0, 1));
        assert!(bench.acknowledge(1, 1));
        bench.deliver(&good()).expect("delivered");
        assert_eq!(
            bench.mail(0),
            ["directory", "listen", "directory"],
            "the same listener stays"
        );
        assert!(!bench.acknowledge(0, 2));
        assert!(bench.apply.take_outlived().is_empty());
        assert!(first.upgrade().is_some(), "shard 1 may still read it");
        assert!(bench.acknowledge(1, 2));
        assert_eq!(bench.apply.take_outlived().len(), 1);
        assert!(first.upgrade().is_none());
    }

    #[test]
    fn a_shard_may_skip_generations_but_the_last_one_counts() {
        let mut bench = Bench::new(2);
        for _ in 0..3 {
            bench.deliver(&good()).expect("delivered");
        }
        assert!(!bench.acknowledge(0, 3));
        assert!(
            !bench.acknowledge(1, 2),
            "generation 2 is not the delivered one"
        );
        assert_eq!(bench.stages()[3], None);
        assert!(bench.acknowledge(1, 3));
        assert_eq!(bench.stages(), [Some(3); 4]);
    }

    #[test]
    fn a_port_in_use_refuses_and_changes_nothing() {
        let mut bench = Bench::new(1);
        bench.deliver(&good()).expect("delivered");
        bench.mail(0);
        let (before, listening) = (bench.handle.load(), bench.apply.listening());
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("bound").port();
        let document = format!(
            "listeners: [{{name: new, address: '127.0.0.1:{port}', upstream: b}}]\n{UPSTREAM}"
        );
        let error = bench.deliver(&document).expect_err("the port is taken");
        assert!(
            error.contains("`new`") && error.contains(&port.to_string()),
            "{error}"
        );
        bench.apply.reject(Generation(2), vec![error]);
        assert_eq!(bench.stages(), [Some(2), Some(2), Some(1), None]);
        assert!(Arc::ptr_eq(
            &before.expect("one"),
            &bench.handle.load().expect("one")
        ));
        assert_eq!(bench.apply.listening(), listening);
        assert_eq!(bench.mail(0), [""; 0]);
    }

    #[test]
    fn a_refusal_is_shown_until_a_later_generation_is_delivered_and_is_bounded() {
        let mut bench = Bench::new(1);
        let generation = bench.apply.desire("file:bad.yaml", None);
        bench.apply.reject(
            generation,
            vec!["bad.yaml:1:1: no".into(); PROBLEMS_SHOWN_MAX + 5],
        );
        let status = bench.apply.status().clone();
        let rejection = status.rejected.expect("shown");
        assert_eq!(
            (rejection.generation, rejection.source.as_str()),
            (1, "file:bad.yaml")
        );
        assert_eq!(
            (rejection.errors.len(), rejection.errors_left_off),
            (PROBLEMS_SHOWN_MAX, 5)
        );
        bench.deliver(&good()).expect("delivered");
        assert_eq!(
            bench.stages()[2],
            Some(2),
            "the number of a refused one is not used again"
        );
        assert_eq!(bench.apply.status().rejected, None);
        assert_eq!(bench.apply.status().rejections, 1);
    }

    #[test]
    fn replaced_snapshots_do_not_pile_up_behind_a_silent_shard() {
        let mut bench = Bench::new(1);
        for _ in 0..=RETIRED_MAX {
            assert!(bench.apply.has_room());
            bench.deliver(&good()).expect("delivered");
        }
        assert!(!bench.apply.has_room(), "the caller waits");
        let last = RETIRED_MAX as u64 + 1;
        assert!(bench.acknowledge(0, last));
        assert!(bench.apply.has_room());
    }
}
