//! The stage: one whole shard on a simulated network, and a test that plays the control thread.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::{Counter, Counters};
use sluice_dataplane::node::{
    DenialList, DenialRing, Directory, DrainOutcome, Inbox, Located, NameKey, NoticeBatch, Post,
    SessionRef, ShardGauges, ShardId, Table, TableConfig, ToControl, ToShard, mailbox,
};
use sluice_dataplane::ring::simulated::{Faults, Network, Serve, Simulated};
use sluice_dataplane::ring::{ListenSlot, RingConfig, Target};
use sluice_dataplane::session::AuthOutcome;
use sluice_dataplane::shard::{Shard, ShardLimits, ShardParts};
use sluice_policy::{Endpoint, Generation, ListenerId, PolicyHandle, Snapshot};

pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    pub(crate) ring: RingConfig,
    pub(crate) table: TableConfig,
    pub(crate) limits: ShardLimits,
    /// Messages in the mailbox to control.
    pub(crate) mailbox_len: usize,
    /// Refusals that are kept.
    pub(crate) denials_max: u32,
}

impl Options {
    pub(crate) fn quiet() -> Self {
        Self {
            seed: 1,
            faults: Faults::none(),
            ring: RingConfig {
                sockets_max: 256,
                buffers: 64,
                buffer_bytes: 1024,
            },
            table: TableConfig::default(),
            limits: ShardLimits::default(),
            mailbox_len: 64,
            denials_max: 0,
        }
    }

    /// The mailbox to control has room for one, and a new policy is nothing to tell of before its sweep.
    pub(crate) fn one_message() -> Self {
        Self {
            mailbox_len: 1,
            limits: ShardLimits {
                rule_counts_bytes_max: 0,
                ..ShardLimits::default()
            },
            ..Self::quiet()
        }
    }
}

pub(crate) struct Stage {
    pub(crate) network: Network,
    pub(crate) shard: Shard<Simulated>,
    pub(crate) table: Arc<Table>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) to_shard: Post<ToShard>,
    from_shard: Inbox<ToControl>,
    policy: PolicyHandle,
    /// Every snapshot that was swapped in, the last one active. Kept: only control drops snapshots.
    snapshots: Vec<Arc<Snapshot>>,
    directory: Arc<Directory>,
    /// The generation that the shard acknowledged last.
    pub(crate) acknowledged: u64,
    pub(crate) drained: Option<DrainOutcome>,
    pub(crate) passwords: VecDeque<(SessionRef, AuthOutcome)>,
    pub(crate) kicked: Vec<(u64, u32)>,
    pub(crate) listed: Vec<String>,
    pub(crate) notices: Vec<NoticeBatch>,
    /// The last answer about refusals.
    pub(crate) denials: Option<DenialList>,
    pub(crate) gauges: Option<ShardGauges>,
    /// Samples of added latency at the last report.
    pub(crate) latency_samples: u64,
    /// False while control is too busy to read its mail.
    pub(crate) is_reading_mail: bool,
}

impl Stage {
    pub(crate) fn new(options: &Options) -> Self {
        let network = Network::new(options.seed, options.faults.clone());
        let ring = Simulated::new(&network, &options.ring).expect("a ring");
        let table = Arc::new(Table::new(&options.table));
        let counters = Arc::new(Counters::default());
        let (to_shard, inbox) = mailbox(64);
        let (control, from_shard) = mailbox(options.mailbox_len);
        let policy = PolicyHandle::default();
        let shard = Shard::new(
            ring,
            ShardParts {
                shard: ShardId(0),
                inbox,
                control,
                policy: policy.clone(),
                table: Arc::clone(&table),
                counters: Arc::clone(&counters),
                limits: options.limits.clone(),
                decisions: None,
                denials: (options.denials_max > 0)
                    .then(|| DenialRing::new(options.denials_max, NameKey::default())),
                seed: options.seed,
            },
        )
        .expect("a shard");
        Self {
            network,
            shard,
            table,
            counters,
            to_shard,
            from_shard,
            policy,
            snapshots: Vec::new(),
            directory: Arc::default(),
            acknowledged: 0,
            drained: None,
            passwords: VecDeque::new(),
            kicked: Vec::new(),
            listed: Vec::new(),
            notices: Vec::new(),
            denials: None,
            gauges: None,
            latency_samples: 0,
            is_reading_mail: true,
        }
    }

    /// A stage with this policy, listening, its endpoints accepting.
    pub(crate) fn with_policy(options: &Options, document: &str) -> Self {
        let mut stage = Self::new(options);
        stage.apply(document);
        let targets: Vec<Target> = stage.directory.all().map(|e| e.target.clone()).collect();
        for target in targets {
            stage.network.serve(&target, Serve::Accept);
        }
        stage.listen_all();
        stage.turn();
        stage
    }

    /// Compiles and swaps in a policy as control does: endpoints first, then the pointer, then the wake.
    pub(crate) fn apply(&mut self, document: &str) {
        let previous = self.snapshots.last();
        let generation = Generation(previous.map_or(0, |snapshot| snapshot.generation().0) + 1);
        let snapshot =
            sluice_policy::compile(document, "simulation", generation, previous.map(|p| &**p))
                .unwrap_or_else(|errors| panic!("{errors}"));
        let located = snapshot
            .upstreams()
            .iter()
            .flat_map(|upstream| {
                upstream.endpoints.iter().map(|endpoint| Located {
                    upstream: upstream.id,
                    name: format!("{endpoint:?}").into(),
                    target: target_of(endpoint),
                })
            })
            .collect();
        let directory = Directory::build(&self.directory, &self.table, located).expect("cells");
        self.directory = Arc::new(directory);
        self.send(ToShard::Directory(Arc::clone(&self.directory)));
        let snapshot = Arc::new(snapshot);
        self.snapshots.push(Arc::clone(&snapshot));
        let _ = self.policy.swap(snapshot);
        self.to_shard.wake();
    }

    pub(crate) fn listen_all(&mut self) {
        let listeners: Vec<ListenerId> = self
            .snapshot()
            .listeners()
            .iter()
            .map(|row| row.id)
            .collect();
        for listener in listeners {
            let socket = File::open("/dev/null").expect("a descriptor").into();
            self.send(ToShard::Listen { listener, socket });
        }
    }

    pub(crate) fn send(&self, message: ToShard) {
        assert!(
            self.to_shard.send(message).is_ok(),
            "the mailbox of the shard is full"
        );
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        self.snapshots.last().expect("a policy")
    }

    /// The generation swapped in last.
    pub(crate) fn generation(&self) -> u64 {
        self.snapshots
            .last()
            .map_or(0, |snapshot| snapshot.generation().0)
    }

    /// The first listener.
    pub(crate) fn listener(&self) -> ListenSlot {
        ListenSlot(
            self.snapshot()
                .listeners()
                .first()
                .map_or(0, |row| row.id.0),
        )
    }

    pub(crate) fn targets(&self) -> Vec<Target> {
        self.directory
            .all()
            .map(|endpoint| endpoint.target.clone())
            .collect()
    }

    pub(crate) fn now(&self) -> Time {
        self.network.now()
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.counters.read(counter)
    }

    /// Everything that was counted.
    pub(crate) fn counts(&self) -> Vec<(Counter, u64)> {
        Counter::ALL
            .iter()
            .map(|counter| (*counter, self.count(*counter)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// One turn, and whatever the shard then says to control.
    pub(crate) fn turn(&mut self) {
        self.shard.turn().expect("a turn");
        if self.is_reading_mail {
            self.read_mail();
        }
    }

    /// Turns until nothing happens for the rest of `time`.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now().after(time);
        self.run_until(end);
    }

    pub(crate) fn run_until(&mut self, end: Time) {
        let mut turns = 0;
        while self.now() < end {
            self.network.set_alarm(Some(end));
            self.turn();
            turns += 1;
            assert!(turns < 100_000, "the shard turns without end");
        }
        self.network.set_alarm(None);
    }

    fn read_mail(&mut self) {
        while let Some(message) = self.from_shard.take() {
            match message {
                ToControl::Authenticate {
                    session,
                    credentials,
                    ..
                } => {
                    let is_right =
                        credentials.verifier.is_some() && credentials.password == b"right";
                    let outcome = if is_right {
                        AuthOutcome::Verified
                    } else {
                        AuthOutcome::Refused
                    };
                    self.passwords.push_back((session, outcome));
                }
                ToControl::Counting { .. } => {}
                ToControl::Acknowledged { generation, .. } => self.acknowledged = generation.0,
                ToControl::Drained { outcome, .. } => self.drained = Some(outcome),
                ToControl::Kicked {
                    request, sessions, ..
                } => self.kicked.push((request, sessions)),
                ToControl::Listed { sessions, .. } => {
                    self.listed = sessions
                        .iter()
                        .map(|info| info.client_id.as_deref().unwrap_or("").to_owned())
                        .collect();
                }
                ToControl::Reported {
                    latency, gauges, ..
                } => {
                    self.latency_samples = latency.len();
                    self.gauges = Some(gauges);
                }
                ToControl::ListenFailed { error, .. } => panic!("listening failed: {error}"),
                ToControl::Denials { list, .. } => self.denials = list.map(|list| *list),
                ToControl::Decisions { .. } => {}
                ToControl::Notices { batch, .. } => self.notices.push(*batch),
            }
        }
    }

    /// Answers the passwords that wait.
    pub(crate) fn answer_passwords(&mut self) {
        while let Some((session, outcome)) = self.passwords.pop_front() {
            self.send(ToShard::Authenticated { session, outcome });
        }
    }

    /// The residue check: nothing of any session is left anywhere.
    pub(crate) fn assert_empty(&mut self) {
        assert_eq!(self.shard.sessions(), 0, "slots");
        assert_eq!(self.shard.backlog_bytes(), 0, "backlogs");
        assert!(self.table.is_empty(), "the node's counts");
        assert_eq!(self.shard.ring_mut().sockets_open(), 0, "sockets");
    }
}

fn target_of(endpoint: &Endpoint) -> Target {
    match endpoint {
        Endpoint::Tcp { host, port } => {
            Target::Tcp(SocketAddr::new(host.parse().expect("an address"), *port))
        }
        Endpoint::Unix { path } => Target::Unix(path.to_string().into()),
    }
}
