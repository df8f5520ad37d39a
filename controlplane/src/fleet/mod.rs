//! Nodes: their streams, what they have, what they lack, and how far they are.
//!
//! Watches what is in force and brings it to every connected node; asks nodes for sessions, kicks and drains. It decides
//! nothing about policy and writes nothing but membership.
//!
//! `node` decides for one node and knows no stream; `stream` is the shell around it; `member` is the one lock that the
//! two and those who look share; `history` finds the changes; `requests` are questions that wait for answers; `service`
//! is what nodes call.

mod figures;
mod history;
mod member;
mod node;
mod observe;
mod requests;
mod service;
mod stream;
mod told;
mod view;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use foldhash::HashSet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::auth::Gate;
use crate::domain::{AuditEntry, Name, NodeRecord};
use crate::release::{InForce, Released};
use crate::store::{Enrolled, StoreError};

use history::History;
use member::Member;
use requests::Command;

pub use figures::Figures;
pub use node::{Patience, State};
pub use requests::{Answer, Question};
pub use service::MESSAGE_BYTES_MAX;
pub use told::{Capability, Refusal, Shard, Told};
pub use view::View;

/// Members at most.
pub const NODES_MAX: usize = 10_000;
/// Inventories of nodes in memory at once; others wait for their turn. One of a million rows takes some 100 MiB.
const INVENTORIES_MAX: usize = 4;
/// Calls of Enroll at once; more are told to come back.
const ENROLLING_MAX: usize = 16;
/// Callers of Watch at once.
const WATCHERS_MAX: usize = 64;

/// How long nodes are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the first message of a stream.
    pub hello: Duration,
    /// For signs of life, for an inventory, and for the answer to a generation.
    pub patience: Patience,
    /// For a node to take one message from the transport.
    pub stall: Duration,
    /// For the answer to a request.
    pub request: Duration,
    /// For one answer of Sessions, whatever number of nodes is asked.
    pub page: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            patience: Patience {
                // Three of the 10 s in which one is due, and half a one for the way.
                heartbeats: Duration::from_secs(35),
                inventory: Duration::from_secs(120),
                // A million rows are compiled in some seconds, and swept while sessions go on.
                answer: Duration::from_secs(300),
            },
            // One chunk of 1 MiB over 18 KiB/s.
            stall: Duration::from_secs(60),
            request: Duration::from_secs(5),
            page: Duration::from_secs(10),
        }
    }
}

/// How many nodes are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Members.
    pub nodes: u64,
    /// With a stream.
    pub connected: u64,
    /// Of these, with every shard judging by what is in force.
    pub active: u64,
    /// Of these, that refused it.
    pub rejected: u64,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    gate: Gate,
    in_force: InForce,
    limits: Limits,
    history: Arc<History>,
    members: RwLock<BTreeMap<Name, Arc<Member>>>,
    /// Held from the store's answer until `members` agrees with it: who joins while the same name is being removed must
    /// not be lost, nor one who was removed be left.
    membership: tokio::sync::Mutex<()>,
    inventories: Arc<Semaphore>,
    enrolling: Semaphore,
    watchers: Arc<Semaphore>,
    /// Told of every change; what changed is looked up.
    changed: watch::Sender<()>,
    is_closing: watch::Sender<bool>,
}

impl Fleet {
    /// Reads the members from the gate's store. Nobody is connected yet.
    pub async fn open(gate: Gate, in_force: InForce) -> Result<Self, StoreError> {
        Self::open_with(gate, in_force, Limits::default()).await
    }

    /// The same with other limits.
    pub async fn open_with(
        gate: Gate,
        in_force: InForce,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        observe::describe();
        let records = gate.store().nodes().await?;
        let members = records.into_iter().map(|record| {
            observe::moved(None, Some(State::Offline));
            (record.name.clone(), Arc::new(Member::new(record)))
        });
        let inner = Inner {
            members: RwLock::new(members.collect()),
            membership: tokio::sync::Mutex::default(),
            gate,
            in_force,
            limits,
            history: Arc::new(History::new()),
            inventories: Arc::new(Semaphore::new(INVENTORIES_MAX)),
            enrolling: Semaphore::new(ENROLLING_MAX),
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            changed: watch::Sender::new(()),
            is_closing: watch::Sender::new(false),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Ends every stream and every watcher: the control plane stops.
    pub fn close(&self) {
        self.inner.is_closing.send_replace(true);
        for member in self.inner.members().values() {
            member.cut(Status::unavailable("the control plane stops"));
            self.inner.touch(member);
        }
    }

    /// Resolves when [`Fleet::close`] was called.
    pub async fn closed(&self) {
        let mut closing = self.inner.is_closing.subscribe();
        // The sender lives in `self`.
        let _ = closing.wait_for(|is_closing| *is_closing).await;
    }

    /// Lets go of generations that are kept only for nodes that still hold them, where that takes much memory and has become
    /// unlikely. May take a second; to be called every few seconds on a thread that may block.
    pub fn forget(&self) {
        let mut in_force = self.inner.in_force.clone();
        drop(self.inner.desired(&mut in_force));
        drop(self.inner.history.forget(Instant::now()));
    }

    /// Makes a node a member, and lets its stream in.
    pub async fn enroll(
        &self,
        node: NodeRecord,
        audit: AuditEntry,
    ) -> Result<Enrolled, StoreError> {
        let inner = Arc::clone(&self.inner);
        let work = async move {
            let _membership = inner.membership.lock().await;
            let enrolled = inner.gate.enroll(node.clone(), audit).await?;
            let name = node.name.clone();
            if enrolled == Enrolled::Joined {
                let member = Arc::new(Member::new(node));
                inner.members_mut().insert(name, member);
                observe::moved(None, Some(State::Offline));
                inner.changed.send_replace(());
            }
            Ok(enrolled)
        };
        finish(work).await
    }

    /// Ends a membership and cuts the stream.
    pub async fn remove(&self, name: Name, audit: AuditEntry) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        let work = async move {
            let _membership = inner.membership.lock().await;
            inner.gate.remove_node(name.clone(), audit).await?;
            let removed = inner.members_mut().remove(&name);
            if let Some(member) = removed {
                member.remove(Status::unauthenticated("the node was removed"));
                let counted = member.look(|seat| {
                    seat.counted_troubles.become_those(&[]);
                    seat.counted
                });
                observe::moved(Some(counted), None);
                tracing::info!(node = name.as_str(), "node removed");
            }
            inner.changed.send_replace(());
            Ok(())
        };
        finish(work).await
    }

    /// Connected nodes that lack some of these features, each with those it lacks, by name.
    pub fn lacking(&self, features: &HashSet<String>) -> Vec<(Name, Vec<String>)> {
        let members = self.inner.members();
        let lacking = members.iter().filter_map(|(name, member)| {
            let lacks = member.look(|seat| seat.node.lacking(features))?;
            (!lacks.is_empty()).then(|| (name.clone(), lacks))
        });
        lacking.collect()
    }

    /// How many nodes are where.
    pub fn counts(&self) -> Counts {
        let desired = self.inner.in_force.borrow().clone();
        let mut counts = Counts::default();
        for member in self.inner.members().values() {
            counts.nodes += 1;
            let state = member.look(|seat| seat.node.state(desired.as_deref()));
            counts.connected += u64::from(state != State::Offline);
            counts.active += u64::from(state == State::Active);
            counts.rejected += u64::from(state == State::Rejected);
        }
        counts
    }

    /// Whether there is such a member.
    pub fn has(&self, name: &Name) -> bool {
        self.inner.members().contains_key(name)
    }

    /// Names of connected members from this one on, in order.
    pub fn connected(&self, from: Option<&Name>) -> Vec<Name> {
        let members = self.inner.members();
        let is_here =
            |member: &Arc<Member>| -> bool { member.look(|seat| seat.node.is_connected()) };
        members
            .iter()
            .filter(|(name, member)| from.is_none_or(|from| *name >= from) && is_here(member))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Members as they are, by name: all, or those named. `Err` names one that is no member.
    pub fn views(&self, only: &[Name]) -> Result<Vec<View>, Name> {
        let desired = self.inner.in_force.borrow().clone();
        let members = self.inner.members();
        let view = |member: &Arc<Member>| View::of(member, desired.as_ref());
        if only.is_empty() {
            return Ok(members.values().map(view).collect());
        }
        let mut named: Vec<&Name> = only.iter().collect();
        named.sort();
        named.dedup();
        let found = named.into_iter().map(|name| {
            let member = members.get(name).ok_or_else(|| name.clone())?;
            Ok(view(member))
        });
        found.collect()
    }

    /// What is in force.
    pub fn in_force(&self) -> InForce {
        self.inner.in_force.clone()
    }

    /// Told of every change in the fleet. What is in force changes beside it.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// A watcher's place, for as long as it is held; `None`: all are taken.
    pub fn watcher(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.inner.watchers).try_acquire_owned().ok()
    }

    /// How long nodes are waited for.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Asks a node; the answer comes to [`Fleet::answer`]. `Err` says in words why it cannot be asked.
    pub fn ask(
        &self,
        name: &Name,
        capability: Capability,
        question: Question,
    ) -> Result<Pending, String> {
        let member = self.able(name, capability)?;
        let (answer, pending) = oneshot::channel();
        member.ask(Command { question, answer })?;
        let until = Instant::now() + self.inner.limits.request;
        Ok(Pending { pending, until })
    }

    /// Whether a node is connected and takes such messages; `Err` says in words why not.
    pub fn can(&self, name: &Name, capability: Capability) -> Result<(), String> {
        self.able(name, capability).map(drop)
    }

    fn able(&self, name: &Name, capability: Capability) -> Result<Arc<Member>, String> {
        let member = self.inner.members().get(name).cloned();
        let member = member.ok_or("there is no such node")?;
        let (is_connected, can) = member.look(|seat| {
            let node = &seat.node;
            (node.is_connected(), node.can(capability))
        });
        if !is_connected {
            return Err("the node is not connected".to_owned());
        }
        let word = capability.word();
        let cannot = || format!("the node cannot do it: it lacks the capability `{word}`");
        can.then_some(member).ok_or_else(cannot)
    }

    /// Waits for the answer; `Err` says in words why there is none.
    pub async fn answer(&self, pending: Pending) -> Result<Answer, String> {
        match timeout_at(pending.until, pending.pending).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err("the node went away before it answered".to_owned()),
            Err(_) => Err("the node did not answer in time".to_owned()),
        }
    }
}

/// An answer that is waited for, until some time. Dropped, nobody waits.
pub struct Pending {
    pending: oneshot::Receiver<Answer>,
    until: Instant,
}

impl Inner {
    /// What is in force, seen by the history too.
    fn desired(&self, in_force: &mut InForce) -> Option<Arc<Released>> {
        let desired = in_force.borrow_and_update().clone();
        if let Some(desired) = &desired {
            self.history.see(desired);
        }
        desired
    }

    /// Something about a member changed: it is counted anew, and those who watch are told.
    fn touch(&self, member: &Member) {
        let desired = self.in_force.borrow().clone();
        member.look(|seat| {
            let state = seat.node.state(desired.as_deref());
            if state != seat.counted {
                observe::moved(Some(seat.counted), Some(state));
                seat.counted = state;
            }
            // What a node that is away told last is not known to be so.
            let is_away = state == State::Offline;
            let told = if is_away {
                &[]
            } else {
                seat.node.told().troubles.as_slice()
            };
            seat.counted_troubles.become_those(told);
        });
        self.changed.send_replace(());
    }

    /// Whether there is no room for this node. Those who join at the same moment may be a few more.
    fn is_full_for(&self, name: &Name) -> bool {
        let members = self.members();
        members.len() >= NODES_MAX && !members.contains_key(name)
    }

    fn members(&self) -> RwLockReadGuard<'_, BTreeMap<Name, Arc<Member>>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn members_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Name, Arc<Member>>> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does it to its end, also when the caller goes away in the middle.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
}
