//! The control thread: everything slow, once per node, on one tokio thread beside the shards.
//!
//! Applies policies, verifies passwords, resolves names, checks health, drains, and answers operators. Meets the shards
//! at three things only: the policy pointer, a mailbox each way, and the table of atomics. It never touches a device's
//! socket, and a shard never waits for it: what a shard asks for, it parks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy::{Generation, ListenerId, Snapshot};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use zeroize::Zeroizing;

use crate::clock::{self, Time};
use crate::metrics::Counters;
use crate::node::{
    AfterDrain, DecisionLog, DenialFilter, Directory, DrainOutcome, Inbox, KeptOut, KickWho,
    NameKey, SessionFilter, SessionInfo, SessionRef, ShardGauges, ShardId, Table, ToControl,
    ToShard,
};
use crate::ring::Wake;

/// From a compiled snapshot to one that every shard judges by.
pub mod apply;
/// Password checks off the shards.
pub mod auth;
/// From a document to a snapshot, off this thread.
pub mod compile;
mod crowding;
/// Which decisions are logged.
pub mod decisions;
mod denials;
/// What operators see of endpoints.
pub mod endpoints;
mod events;
/// The way to a control plane.
pub mod fleet;
/// Active health checks.
pub mod health;
/// The way to each shard.
pub mod link;
/// Listening sockets.
pub mod listeners;
/// Telling systemd.
pub mod notify;
/// What operators can see.
pub mod observe;
mod operators;
mod outages;
mod priority;
/// Keys and secrets.
pub mod random;
/// Names of endpoints to addresses.
pub mod resolve;
/// How often each rule decided.
pub mod rules;

pub mod vitals;

use apply::Apply;
use compile::{Compiled, Offer, Outcome, Refusal, Work};
use decisions::DecisionLogView;
pub use denials::{DenialCursor, DenialPage, LINES_MAX as DENIALS_MAX};
use events::answer_password;
use health::Health;
use link::Link;
use notify::{Notifier, State};
use observe::{Observed, ShardView};
pub use operators::Ended;
use operators::{Kicking, Listing, Rest};
use resolve::Resolved;
use rules::{RuleView, Tallies};

/// Housekeeping: late passwords, mail that did not fit, silent shards.
const TICK: Duration = Duration::from_millis(250);
/// Every so many ticks the shards are asked how they are.
const TICKS_PER_HEARTBEAT: u64 = 8;
/// Every so many ticks names are resolved again; sooner while one has no address.
const TICKS_PER_LOOKUP: u64 = 120;
const TICKS_PER_LOOKUP_INCOMPLETE: u64 = 8;
/// Every so many ticks outlived cache entries are dropped.
const TICKS_PER_PURGE: u64 = 240;
/// Messages taken from one shard before the others get their turn.
const MAIL_BATCH: usize = 256;
/// Longest wait of an operator for fresh numbers; after it the last ones are shown.
const REPORT_WAIT: Duration = Duration::from_millis(500);
/// Operators' questions in work; more wait in the admin server.
const QUESTIONS_MAX: usize = 64;
/// What a drain may take beyond its time before the process ends anyway.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Longest time over which a drain by the control plane is spread.
const REST_MAX: Duration = Duration::from_secs(24 * 3600);

/// The ways into the control thread.
#[derive(Clone)]
pub struct ControlHandle {
    commands: mpsc::Sender<Command>,
    acknowledged: watch::Receiver<Vec<Option<u64>>>,
}

/// What an operator can ask.
enum Command {
    Observe {
        fresh: bool,
        reply: oneshot::Sender<Observed>,
    },
    Sessions {
        at: SessionCursor,
        limit: u32,
        filter: SessionFilter,
        reply: oneshot::Sender<SessionPage>,
    },
    Denials {
        after: Option<DenialCursor>,
        limit: u32,
        filter: DenialFilter,
        reply: oneshot::Sender<DenialPage>,
    },
    Kick {
        who: KickWho,
        keep_out: Option<Duration>,
        reply: oneshot::Sender<Ended>,
    },
    Drain {
        within: Option<Duration>,
        reply: oneshot::Sender<Ended>,
    },
    ServeAgain {
        reply: oneshot::Sender<Ended>,
    },
    Rules {
        reply: oneshot::Sender<Option<RuleView>>,
    },
    LogDecisions {
        wanted: Option<(DecisionLog, Duration)>,
        reply: oneshot::Sender<Option<DecisionLogView>>,
    },
}

/// Where a list of sessions goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCursor {
    /// Shard.
    pub shard: u16,
    /// Slot of that shard.
    pub slot: u32,
}

impl std::fmt::Display for SessionCursor {
    /// As [`std::str::FromStr`] reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.shard, self.slot)
    }
}

impl std::str::FromStr for SessionCursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let (shard, slot) = text.split_once(':').ok_or(BadCursor)?;
        Ok(Self {
            shard: shard.parse().map_err(|_| BadCursor)?,
            slot: slot.parse().map_err(|_| BadCursor)?,
        })
    }
}

/// Not what a page said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`after` is what `next` of the page before said")]
pub struct BadCursor;

/// Part of the list of sessions.
#[derive(Debug, Default)]
pub struct SessionPage {
    /// The sessions, each with its shard and the name of its listener.
    pub sessions: Vec<(u16, SessionInfo, Box<str>)>,
    /// Where to go on; `None` at the end.
    pub next: Option<SessionCursor>,
}

/// The control thread does not answer (it is ending).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control thread does not answer")]
pub struct NoAnswer;

/// A shard thread is over.
#[derive(Debug)]
pub struct ShardExit {
    /// Which.
    pub shard: ShardId,
    /// `Ok` exactly when it was drained.
    pub result: Result<(), String>,
}

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Drained as asked.
    Drained,
    /// A second signal (its number) cut the drain short.
    Cut(i32),
    /// A shard is gone; the node must not limp.
    ShardFailed(String),
}

/// What boot gives to the control thread.
pub struct Parts {
    /// The writing end of the policy and all that goes with it.
    pub apply: Apply,
    /// The ways to the shards, by number.
    pub links: Vec<Link>,
    /// The ways from the shards, by number.
    pub inboxes: Vec<Inbox<ToControl>>,
    /// Name of each shard's engine.
    pub engines: Vec<&'static str>,
    /// Each shard's counters.
    pub counters: Vec<Arc<Counters>>,
    /// Counts of the node.
    pub table: Arc<Table>,
    /// Where dead shard threads are reported.
    pub exits: mpsc::UnboundedReceiver<ShardExit>,
    /// The password pool's threads.
    pub auth_threads: u16,
    /// The password pool's bounds.
    pub auth_limits: auth::Limits,
    /// Keys the digests in the password cache; random.
    pub auth_secret_key: [u8; 32],
    /// What SIGHUP reads again.
    pub policy_file: Option<PathBuf>,
    /// The way to a control plane, when there is one.
    pub fleet: Option<fleet::Shared>,
    /// Time of a drain.
    pub drain_time: Duration,
    /// The node is not ready while an upstream has no endpoint that is used.
    pub needs_upstreams: bool,
    /// The service manager.
    pub notifier: Notifier,
    /// What the shards log of decisions from the start.
    pub decisions: Option<DecisionLog>,
    /// For names in that log.
    pub names: NameKey,
}

/// See the module documentation.
pub struct Control {
    apply: Apply,
    links: Arc<[Link]>,
    inboxes: Vec<Inbox<ToControl>>,
    shards: Vec<Shard>,
    table: Arc<Table>,
    exits: mpsc::UnboundedReceiver<ShardExit>,
    pool: auth::Pool<Origin>,
    dummy: compile::Dummy,
    resolved: Resolved,
    health: Health,
    outages: outages::Outages,
    crowding: crowding::Crowding,
    notifier: Notifier,
    policy_file: Option<PathBuf>,
    fleet: Option<fleet::Shared>,
    drain_time: Duration,
    needs_upstreams: bool,

    mail: Arc<MailBell>,
    commands: mpsc::Receiver<Command>,
    attempts: (mpsc::Sender<Attempt>, mpsc::Receiver<Attempt>),
    lookups: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    offers: mpsc::Receiver<Offer>,

    /// True exactly while a document is being compiled and its names resolved.
    is_compiling: bool,
    /// What to compile next; a newer one replaces it.
    next_offer: Option<Offer>,
    is_looking_up: bool,
    delivered_at: Time,
    /// Listeners a shard could not accept on.
    deaf: Vec<(ShardId, ListenerId, String)>,
    report_number: u64,
    waiting_for_reports: Vec<(u64, Time, oneshot::Sender<Observed>)>,
    waiting_for_lists: Vec<Listing>,
    waiting_for_kicks: Vec<Kicking>,
    waiting_for_denials: Vec<denials::Asking>,
    kept_out: KeptOut,
    acknowledged: watch::Sender<Vec<Option<u64>>>,
    tallies: Tallies,
    decisions: decisions::Switch,
    /// Counts of rules that were carried over to another generation.
    carried: (mpsc::Sender<Carry>, mpsc::Receiver<Carry>),
    ticks: u64,
    /// Until the process ends.
    drain: Option<Drain>,
    /// Until the node serves again.
    rest: Option<Rest>,
}

/// What is remembered of a shard.
struct Shard {
    engine: &'static str,
    counters: Arc<Counters>,
    gauges: ShardGauges,
    latency: Option<Box<hdrhistogram::Histogram<u64>>>,
    answered_at: Time,
    answered_report: u64,
    drained: Option<DrainOutcome>,
    has_ended: bool,
}

struct Drain {
    signal: i32,
    deadline: Time,
}

/// Where a password's answer goes.
struct Origin {
    shard: ShardId,
    session: SessionRef,
}

/// A compiled document with the addresses its endpoints have.
struct Attempt {
    generation: Generation,
    result: Result<(Compiled, Resolved), Refusal>,
    reply: Option<oneshot::Sender<Outcome>>,
}

/// What was counted before a generation, and which.
type Carry = (crate::metrics::RuleCounts, Generation);

/// The waker of the mailboxes from the shards.
#[derive(Default)]
struct MailBell(Notify);

impl Wake for MailBell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// The way by which the control plane's generations reach the control thread.
#[derive(Clone)]
pub struct PolicySource {
    offers: mpsc::Sender<Offer>,
}

impl PolicySource {
    /// Offers a policy. Of several offered while one is being compiled, the last is taken.
    pub async fn offer(&self, offer: Offer) -> Result<(), NoAnswer> {
        self.offers.send(offer).await.map_err(|_| NoAnswer)
    }
}

impl ControlHandle {
    /// What is known now; `fresh` asks the shards first.
    pub async fn observe(&self, fresh: bool) -> Result<Observed, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Observe { fresh, reply }).await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// Part of the list of sessions. A page goes on from one shard to the next; it may hold fewer than `limit`, and even
    /// none, and still have a `next`.
    pub async fn sessions(
        &self,
        at: SessionCursor,
        limit: u32,
        filter: SessionFilter,
    ) -> Result<SessionPage, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Sessions {
            at,
            limit,
            filter,
            reply,
        })
        .await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// Recent refusals: the newest, or what came behind `after`; at most [`DENIALS_MAX`].
    pub async fn denials(
        &self,
        after: Option<DenialCursor>,
        limit: u32,
        filter: DenialFilter,
    ) -> Result<DenialPage, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Denials {
            after,
            limit,
            filter,
            reply,
        })
        .await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// Ends sessions; answered when every shard has looked at all of its own. With a time, their clients are kept out for so
    /// long, too; with none of it, they are let in again.
    pub async fn kick(&self, who: KickWho, keep_out: Option<Duration>) -> Result<Ended, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Kick {
            who,
            keep_out,
            reply,
        })
        .await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// Takes the node out of service within this time (`None`: its own setting); the process stays. Answered when no
    /// session is left, or after two seconds with what was ended so far.
    pub async fn drain(&self, within: Option<Duration>) -> Result<Ended, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Drain { within, reply }).await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// Puts the node back into service.
    pub async fn serve_again(&self) -> Result<Ended, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::ServeAgain { reply }).await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// How often each rule decided; `None` before the first policy.
    pub async fn rules(&self) -> Result<Option<RuleView>, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Rules { reply }).await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// Logs decisions for a time, instead of what was logged before, or none.
    pub async fn log_decisions(
        &self,
        wanted: Option<(DecisionLog, Duration)>,
    ) -> Result<Option<DecisionLogView>, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::LogDecisions { wanted, reply }).await?;
        answer.await.map_err(|_| NoAnswer)
    }

    /// What each shard judges by, by its number, and whenever that changes.
    pub fn acknowledged(&self) -> watch::Receiver<Vec<Option<u64>>> {
        self.acknowledged.clone()
    }

    async fn ask(&self, command: Command) -> Result<(), NoAnswer> {
        self.commands.send(command).await.map_err(|_| NoAnswer)
    }
}

impl Control {
    /// Puts the control thread together; nothing runs until [`Control::run`]. Needs the tokio runtime it will run on.
    pub fn new(parts: Parts) -> std::io::Result<(Self, ControlHandle, PolicySource)> {
        let links: Arc<[Link]> = parts.links.into();
        let dummy = compile::Dummy::default();
        let pool = {
            let (links, dummy) = (Arc::clone(&links), dummy.clone());
            auth::Pool::start(
                parts.auth_threads,
                parts.auth_limits,
                parts.auth_secret_key,
                Box::new(move |check| dummy.verify(check)),
                Box::new(move |origin: Origin, outcome| answer_password(&links, &origin, outcome)),
            )?
        };
        let now = clock::monotonic();
        let shards = parts.engines.into_iter().zip(parts.counters);
        let shards = shards.map(|(engine, counters)| Shard::new(engine, counters, now));
        parts.table.set_logs_ended(crate::logging::wants_ended());
        let mail = Arc::new(MailBell::default());
        for inbox in &parts.inboxes {
            inbox.set_waker(Arc::clone(&mail) as Arc<dyn Wake>);
        }
        mail.wake(); // what was sent before there was a bell
        let (commands_in, commands) = mpsc::channel(QUESTIONS_MAX);
        let (offers_in, offers) = mpsc::channel(4);
        let (acknowledged_in, acknowledged) = watch::channel(parts.apply.status().shards.clone());
        let tallies = Tallies::new(links.len());
        let control = Self {
            apply: parts.apply,
            links,
            inboxes: parts.inboxes,
            shards: shards.collect(),
            health: Health::new(Arc::clone(&parts.table)),
            outages: outages::Outages::default(),
            crowding: crowding::Crowding::default(),
            table: parts.table,
            exits: parts.exits,
            pool,
            dummy,
            resolved: Resolved::default(),
            notifier: parts.notifier,
            policy_file: parts.policy_file,
            fleet: parts.fleet,
            drain_time: parts.drain_time,
            needs_upstreams: parts.needs_upstreams,
            mail,
            commands,
            attempts: mpsc::channel(1),
            lookups: mpsc::channel(1),
            offers,
            is_compiling: false,
            next_offer: None,
            is_looking_up: false,
            delivered_at: now,
            deaf: Vec::new(),
            report_number: 0,
            waiting_for_reports: Vec::new(),
            waiting_for_lists: Vec::new(),
            waiting_for_kicks: Vec::new(),
            waiting_for_denials: Vec::new(),
            kept_out: KeptOut::default(),
            acknowledged: acknowledged_in,
            tallies,
            decisions: decisions::Switch::new(parts.names, parts.decisions),
            carried: mpsc::channel(1),
            ticks: 0,
            drain: None,
            rest: None,
        };
        let handle = ControlHandle {
            commands: commands_in,
            acknowledged,
        };
        let source = PolicySource { offers: offers_in };
        Ok((control, handle, source))
    }

    /// Runs until the process should end. `signals` carries signal numbers.
    pub async fn run(mut self, mut signals: mpsc::Receiver<i32>) -> End {
        if let Some(path) = self.policy_file.clone() {
            self.next_offer = Some(Offer::File(path));
            self.begin_compiling();
        } else {
            if self.fleet.is_none() {
                tracing::warn!(
                    "no policy: every device is refused (see --policy and --control-plane)"
                );
            }
            self.notifier.tell(State::Ready, "no policy yet");
        }
        let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mail = Arc::clone(&self.mail);
        loop {
            let end = tokio::select! {
                () = mail.0.notified() => { self.take_mail(); None }
                Some(command) = self.commands.recv() => { self.obey(command); None }
                Some(attempt) = self.attempts.1.recv() => { self.finish_attempt(attempt); None }
                Some(resolved) = self.lookups.1.recv() => { self.finish_lookup(resolved); None }
                Some((counts, to)) = self.carried.1.recv() => { self.finish_carrying(counts, to); None }
                Some(offer) = self.offers.recv() => { self.take_offer(offer); None }
                Some(exit) = self.exits.recv() => self.shard_ended(exit),
                Some(signal) = signals.recv() => self.signalled(signal),
                _ = ticks.tick() => self.tick(),
            };
            if let Some(end) = end.or_else(|| self.drained()) {
                return end;
            }
        }
    }
}
