//! Start and end of the process: descriptors, processors, sockets, threads, signals. It wires everything and decides
//! nothing about devices.
//!
//! The main thread becomes the control thread. Each shard gets a thread of its own, pinned where possible, and makes its
//! ring there. A shard that panics or fails ends the whole process with a clear message: a node must not limp.

use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CpuSet;
use sluice_flags::{EXIT_USAGE, Settings as _};
use sluice_policy::PolicyHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin;
use crate::config::{self, CPUS_MAX, FleetSettings, RunArgs};
use crate::control::apply::Apply;
use crate::control::link::Link;
use crate::control::listeners::Listeners;
use crate::control::notify::Notifier;
use crate::control::random::random;
use crate::control::{Control, End, Parts, ShardExit, auth, fleet};
use crate::logging::{self, LogControl};
use crate::metrics::Counters;
use crate::node::{
    DecisionFilter, DecisionLog, DecisionSampler, DenialRing, Inbox, NameKey, Post, ShardId, Table,
    TableConfig, ToControl, ToShard, mailbox, strangers_share,
};
use crate::ring::{self, Decision, Engine, EngineChoice, RingConfig};
use crate::shard::{Shard, ShardLimits, ShardParts};

/// A shard failed: EX_SOFTWARE of sysexits.h.
const EXIT_SHARD_FAILED: u8 = 70;
/// Descriptors that are not sessions: engines, listeners, files, the admin server, health checks.
const DESCRIPTORS_RESERVED: u64 = 1024;
/// Connections unless told otherwise, where the descriptors suffice.
const CONNECTIONS_DEFAULT: u32 = 100_000;
/// Threads for passwords unless told otherwise; each takes tens of MiB while it hashes.
const AUTH_THREADS_MAX: usize = 8;
/// What a shard waits for a password beyond the pool's deadline: the answer travels.
const AUTH_GRACE: Duration = Duration::from_secs(1);
/// Messages in a mailbox to a shard and from a shard. What does not fit waits outside, on its sender's side.
const MAILBOX_LEN: usize = 4096;

/// Runs the data plane until it is told to end.
pub fn run(args: &RunArgs) -> ExitCode {
    let problems = args.problems();
    if !problems.is_empty() {
        return usage(&problems);
    }
    let log = match logging::install(args.log_format, &args.log_level) {
        Ok(log) => log,
        Err(error) => return usage(&[format!("--log-level: {error:#}")]),
    };
    report_panics();
    match start(args, log) {
        Ok(End::Drained) => ExitCode::SUCCESS,
        Ok(End::Cut(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
        Ok(End::ShardFailed(why)) => {
            tracing::error!("{why}; the process ends, so that its supervisor can start it again");
            ExitCode::from(EXIT_SHARD_FAILED)
        }
        Err(error) => {
            tracing::error!("cannot start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &RunArgs, log: LogControl) -> anyhow::Result<End> {
    let fleet = args.fleet.settings()?;
    let cpus = config::place(args.shards, args.cpus.as_ref(), &allowed_cpus())?;
    let sessions_max = sessions_by_descriptors(args.connections_max);
    let engine = choose_engine(args.engine)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        shards = cpus.len(),
        pinned = cpus.iter().all(Option::is_some),
        "starting"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the control thread's runtime")?;
    let end = runtime.block_on(control_thread(
        args,
        fleet,
        log,
        &cpus,
        engine,
        sessions_max,
    ));
    // A name lookup may hang in the resolver; nothing waits for it.
    runtime.shutdown_background();
    end
}

async fn control_thread(
    args: &RunArgs,
    fleet: Option<FleetSettings>,
    log: LogControl,
    cpus: &[Option<usize>],
    engine: Engine,
    sessions_max: u32,
) -> anyhow::Result<End> {
    let signals = signals().context("signal handlers")?;
    let member = fleet.as_ref().map(fleet::open).transpose()?;
    let admin_socket = admin::listen(args.admin).with_context(|| {
        format!(
            "the admin server cannot listen on {} (see --admin)",
            args.admin
        )
    })?;
    let table = Arc::new(Table::new(&table_config(args, sessions_max, random_u64()?)));
    let policy = PolicyHandle::default();
    let names = NameKey::default();
    let decision_log = NonZeroU32::new(args.decision_log_sample).map(|every| DecisionLog {
        every,
        filter: DecisionFilter::default(),
        until: None,
    });

    let (exits_in, exits) = mpsc::unbounded_channel();
    let (mut links, mut inboxes, mut counters) = (Vec::new(), Vec::new(), Vec::new());
    for (number, cpu) in (0_u16..).zip(cpus) {
        let shard = ShardId(number);
        let (post, to_shard) = mailbox(MAILBOX_LEN);
        let (to_control, from_shard) = mailbox(MAILBOX_LEN);
        let cells = Arc::new(Counters::default());
        let thread = ShardThread {
            shard,
            cpu: *cpu,
            engine,
            limits: shard_limits(args, sessions_max),
            decisions: decision_log
                .clone()
                .map(|log| DecisionSampler::new(log, names.clone())),
            denials: (args.denials_max > 0)
                .then(|| DenialRing::new(args.denials_max, names.clone())),
            policy: policy.clone(),
            inbox: to_shard,
            control: to_control,
            table: Arc::clone(&table),
            counters: Arc::clone(&cells),
            seed: random_u64()?,
            exits: exits_in.clone(),
        };
        thread.start().with_context(|| format!("shard {number}"))?;
        links.push(Link::new(shard, post, sessions_max as usize));
        inboxes.push(from_shard);
        counters.push(cells);
    }
    drop(exits_in);

    let listeners = Listeners::new(cpus.len(), activated_sockets());
    let (control, handle, source) = Control::new(Parts {
        apply: Apply::new(policy, links.clone(), listeners),
        links,
        inboxes,
        engines: vec![engine_name(engine); cpus.len()],
        counters,
        table,
        exits,
        auth_threads: args.auth_threads.unwrap_or_else(auth_threads),
        auth_limits: auth_limits(args, sessions_max),
        auth_secret_key: random().context("randomness from the kernel")?,
        policy_file: args.policy.clone(),
        fleet: member.as_ref().map(fleet::Member::shared),
        drain_time: args.drain_time.0,
        needs_upstreams: args.unready_without_upstream,
        notifier: Notifier::from_env(),
        decisions: decision_log,
        names,
    })
    .context("the password threads")?;
    if let Some(member) = member {
        let shards = u16::try_from(cpus.len()).unwrap_or(u16::MAX);
        tokio::spawn(member.run(shards, source, handle.clone()));
    }
    let shows_denials = args.admin_denials;
    let rule_metrics = usize::try_from(args.rule_metrics).unwrap_or(0);
    tokio::spawn(async move {
        let served = admin::serve(admin_socket, handle, log, shows_denials, rule_metrics).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin server has ended");
        }
    });
    Ok(control.run(signals).await)
}

/// All that a shard's thread needs to begin.
struct ShardThread {
    shard: ShardId,
    cpu: Option<usize>,
    engine: Engine,
    limits: ShardLimits,
    decisions: Option<DecisionSampler>,
    denials: Option<DenialRing>,
    policy: PolicyHandle,
    inbox: Inbox<ToShard>,
    control: Post<ToControl>,
    table: Arc<Table>,
    counters: Arc<Counters>,
    seed: u64,
    exits: mpsc::UnboundedSender<ShardExit>,
}

impl ShardThread {
    /// Starts the thread and waits until its ring stands, so that a machine that lacks something is told at once.
    fn start(self) -> anyhow::Result<()> {
        let (made_in, made) = std_mpsc::sync_channel(1);
        let name = format!("shard-{}", self.shard.0);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || self.main(&made_in))?;
        match made.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(std_mpsc::RecvError) => anyhow::bail!("its thread panicked while starting"),
        }
    }

    /// The thread: pin, make the ring here, run, tell how it ended.
    fn main(self, made: &std_mpsc::SyncSender<anyhow::Result<()>>) {
        let (shard, exits) = (self.shard, self.exits.clone());
        // Sent when this function is left, by whatever way.
        let mut exit = ExitGuard {
            shard,
            exits,
            result: Err("its thread panicked; the log has the message".to_owned()),
        };
        if let Some(cpu) = self.cpu {
            pin(shard, cpu);
        }
        let config = ring_config(self.limits.sessions_max);
        exit.result = match self.engine {
            Engine::Uring => match ring::Uring::new(&config) {
                Ok(ring) => self.serve(ring, made),
                Err(error) => failed(made, "io_uring", error),
            },
            Engine::Epoll => match ring::Epoll::new(&config) {
                Ok(ring) => self.serve(ring, made),
                Err(error) => failed(made, "epoll", error),
            },
        };
    }

    fn serve<R: ring::Ring>(
        self,
        ring: R,
        made: &std_mpsc::SyncSender<anyhow::Result<()>>,
    ) -> Result<(), String> {
        let parts = ShardParts {
            shard: self.shard,
            inbox: self.inbox,
            control: self.control,
            policy: self.policy,
            table: self.table,
            counters: self.counters,
            limits: self.limits,
            decisions: self.decisions,
            denials: self.denials,
            seed: self.seed,
        };
        let shard = match Shard::new(ring, parts) {
            Ok(shard) => shard,
            Err(error) => return failed(made, "the shard", error),
        };
        // Fails only when the starting thread is gone, and with it the process.
        let _ = made.send(Ok(()));
        shard.run().map_err(|error| format!("its engine: {error}"))
    }
}

/// Tells the control thread that a shard is gone, also when its thread panics.
struct ExitGuard {
    shard: ShardId,
    exits: mpsc::UnboundedSender<ShardExit>,
    result: Result<(), String>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        // Fails only when the control thread is gone, and then there is nobody to tell.
        let _ = self.exits.send(ShardExit {
            shard: self.shard,
            result: std::mem::replace(&mut self.result, Ok(())),
        });
    }
}

fn failed(
    made: &std_mpsc::SyncSender<anyhow::Result<()>>,
    engine: &str,
    error: std::io::Error,
) -> Result<(), String> {
    let message = format!("{engine}: {error}");
    let _ = made.send(Err(anyhow::Error::new(error).context(engine.to_owned())));
    Err(message)
}

/// They are nicer than the shards and use what these leave, on any processor.
fn auth_threads() -> u16 {
    let cpus = allowed_cpus().len().clamp(1, AUTH_THREADS_MAX);
    u16::try_from(cpus).unwrap_or(1)
}

/// Strangers leave a quarter of the places alone, whatever was asked for.
fn table_config(args: &RunArgs, connections_max: u32, seed: u64) -> TableConfig {
    let share = strangers_share(connections_max);
    let wanted = args.strangers_max.map_or(share, NonZeroU32::get);
    if wanted > share {
        tracing::warn!(
            strangers_max = share,
            wanted,
            "--strangers-max is lowered to three quarters of the connections there may be"
        );
    }
    TableConfig {
        connections_max,
        strangers_max: wanted.min(share),
        strangers_per_address_max: args.strangers_per_address_max.get(),
        seed,
        ..TableConfig::default()
    }
}

/// Sessions that wait for a password have the share of the places that strangers have, and one address what one address
/// has of it: whatever is claimed, some places are left to others.
fn auth_limits(args: &RunArgs, sessions_max: u32) -> auth::Limits {
    let waiters_max = strangers_share(sessions_max);
    auth::Limits {
        queue_max: args.auth_queue.get() as usize,
        waiters_max: waiters_max as usize,
        waiters_per_address_max: strangers_share(waiters_max) as usize,
        deadline: args.auth_deadline.0,
        cache_entries_max: args.auth_cache as usize,
        cache_lifetime: args.auth_cache_time.0,
        known_entries_max: args.auth_known as usize,
    }
}

/// The kernel spreads connections over the shards as it likes, so each must be able to hold all of them, and all that
/// wait for a password: whom there is no room for is the pool's to say, which is fair between addresses and lets a
/// remembered password in at once. A shard gives up on a password a little after the pool would have said that it is late.
fn shard_limits(args: &RunArgs, sessions_max: u32) -> ShardLimits {
    ShardLimits {
        sessions_max,
        authenticating_max: sessions_max,
        authenticate_timeout: args.auth_deadline.0 + AUTH_GRACE,
        strangers_grace: args.strangers_grace.0,
        turn_time_max: args.turn_time_max.0,
        rule_counts_bytes_max: u64::from(args.rule_counts_mib) << 20,
        ..ShardLimits::default()
    }
}

/// Receive buffers of a shard: what its clients may send between two turns before the rest waits in the kernel.
fn ring_config(sessions_max: u32) -> RingConfig {
    RingConfig {
        sockets_max: sessions_max.saturating_mul(2),
        buffers: 1024,
        buffer_bytes: 4096,
    }
}

/// The engine to use: what was asked for, or the better one that works here, with one line that says why.
fn choose_engine(choice: EngineChoice) -> anyhow::Result<Engine> {
    let Decision { engine, reason } = ring::probe(choice).context("--engine")?;
    match (choice, engine) {
        (EngineChoice::Auto, Engine::Epoll) => tracing::warn!(%engine, reason, "engine"),
        (EngineChoice::Auto | EngineChoice::Forced(_), _) => {
            tracing::info!(%engine, reason, "engine")
        }
    }
    Ok(engine)
}

/// The value of the label `engine`.
fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Uring => "uring",
        Engine::Epoll => "epoll",
    }
}

/// Processors this process may run on, ascending; empty when the kernel does not say.
fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..CPUS_MAX).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => Vec::new(),
    }
}

fn pin(shard: ShardId, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    match rustix::thread::sched_setaffinity(None, &set) {
        Ok(()) => tracing::debug!(shard = shard.0, cpu, "pinned"),
        Err(error) => {
            tracing::warn!(shard = shard.0, cpu, %error, "a shard cannot be pinned; it runs anywhere")
        }
    }
}

/// Raises the limit on descriptors (two for each session) as far as needed and allowed, and returns how many sessions
/// it really holds: refusing the next device by count is kind, running out of descriptors is not. Without a number it
/// takes what there is: only a number that was asked for and is not met deserves a warning.
fn sessions_by_descriptors(asked: Option<NonZeroU32>) -> u32 {
    let wanted = asked.map_or(CONNECTIONS_DEFAULT, NonZeroU32::get);
    let needed = u64::from(wanted)
        .saturating_mul(2)
        .saturating_add(DESCRIPTORS_RESERVED);
    let before = getrlimit(Resource::Nofile);
    if before.current.is_some_and(|current| current < needed) {
        let raised = Rlimit {
            current: Some(before.maximum.unwrap_or(needed).min(needed)),
            maximum: before.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit on descriptors cannot be raised");
        }
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let sessions = sessions_in(limit, wanted);
    if sessions < wanted && asked.is_none() {
        tracing::info!(
            connections_max = sessions,
            limit,
            "as many connections as the limit on descriptors allows (two for each)"
        );
    } else if sessions < wanted {
        tracing::warn!(
            connections_max = sessions,
            wanted,
            limit,
            needed,
            "fewer connections than --connections-max: the limit on descriptors (two for each) is too low; raise LimitNOFILE or ulimit -n"
        );
    }
    sessions
}

/// How many of the wanted sessions so many descriptors hold; one at least, to say no to. Where the limit is that of an
/// ordinary shell (1,024), a quarter is reserve enough: sessions are what the process is for.
fn sessions_in(descriptors: u64, wanted: u32) -> u32 {
    let reserved = DESCRIPTORS_RESERVED.min(descriptors / 4);
    let held = descriptors.saturating_sub(reserved) / 2;
    u32::try_from(held).unwrap_or(u32::MAX).clamp(1, wanted)
}

/// Sockets the service manager opened for us (`LISTEN_FDS`); those that are no TCP listeners are left alone.
fn activated_sockets() -> Vec<std::net::TcpListener> {
    let mut given = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        match given.take_tcp_listener(index) {
            Ok(Some(socket)) => sockets.push(socket),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(index, %error, "a socket of the service manager cannot be used")
            }
        }
    }
    sockets
}

/// SIGTERM, SIGINT and SIGHUP as numbers, in order of arrival.
fn signals() -> std::io::Result<mpsc::Receiver<i32>> {
    let (seen_in, seen) = mpsc::channel(8);
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        let mut stream = signal(kind)?;
        let seen_in = seen_in.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && seen_in.send(kind.as_raw_value()).await.is_ok() {
            }
        });
    }
    Ok(seen)
}

/// A panic becomes a line of the log, with its thread and place, before the thread's end is noticed.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(
            thread = thread.name().unwrap_or("?"),
            place,
            "panic: {message}"
        );
    }));
}

fn random_u64() -> anyhow::Result<u64> {
    let bytes = random().context("randomness from the kernel")?;
    Ok(u64::from_ne_bytes(bytes))
}

fn usage(problems: &[String]) -> ExitCode {
    use std::io::Write;
    let mut stderr = std::io::stderr().lock();
    for problem in problems {
        let _ = writeln!(stderr, "error: {problem}");
    }
    let _ = writeln!(stderr, "\nFor more information, try '--help'.");
    ExitCode::from(EXIT_USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_follow_the_descriptors_there_are() {
        for (descriptors, wanted, expected) in [
            (1 << 20, 100_000, 100_000),
            (20_000, 100_000, 9_488),
            (1_024, 100_000, 384),
            (1_024, 100, 100),
            (10, 100_000, 4),
            (1, 100_000, 1),
            (u64::MAX, u32::MAX, u32::MAX),
        ] {
            assert_eq!(sessions_in(descriptors, wanted), expected, "{descriptors}");
        }
    }

    /// The arguments of a start with these flags.
    fn args(flags: &[&str]) -> Result<RunArgs, clap::Error> {
        #[derive(clap::Parser)]
        struct Start {
            #[command(flatten)]
            run: RunArgs,
        }
        let flags = ["test"].iter().chain(flags);
        <Start as clap::Parser>::try_parse_from(flags).map(|start| start.run)
    }

    #[test]
    fn strangers_leave_places_alone_whatever_is_asked_for() {
        for (flags, places, expected) in [
            (&[][..], 100_000, (75_000, 6_000)),
            (&[], 9_488, (7_116, 6_000)),
            (&["--strangers-max", "10"], 9_488, (10, 6_000)),
            (&["--strangers-max", "9488"], 9_488, (7_116, 6_000)),
            (&["--strangers-per-address-max", "9"], 12, (9, 9)),
        ] {
            let config = table_config(&args(flags).unwrap(), places, 0);
            let shares = (config.strangers_max, config.strangers_per_address_max);
            assert_eq!((shares, config.connections_max), (expected, places));
        }
        for (grace, expected) in [("0s", true), ("1h", true), ("61m", false), ("2", false)] {
            let args = args(&["--strangers-grace", grace]);
            assert_eq!(args.is_ok(), expected, "{grace}");
        }
        for (deadline, expected) in [
            ("0s", false),
            ("0ms", false),
            ("99ms", false),
            ("100ms", true),
        ] {
            let args = args(&["--auth-deadline", deadline]);
            assert_eq!(args.is_ok(), expected, "{deadline}");
        }
        // The password queue also has room for a fleet of 5,000 behind one address on a node with 9,488 places.
        let passwords = auth_limits(&args(&[]).unwrap(), 9_488);
        assert!(passwords.queue_max >= 5_000 && passwords.waiters_per_address_max >= 5_000);
        assert!(passwords.waiters_per_address_max < passwords.waiters_max);
        assert!(passwords.waiters_max < 9_488);
        let (defaults, nothing_said) = (ShardLimits::default(), args(&[]).unwrap());
        let limits = shard_limits(&nothing_said, 1);
        assert_eq!(limits.strangers_grace, defaults.strangers_grace);
        assert_eq!(limits.turn_time_max, defaults.turn_time_max);
        let patient = args(&["--turn-time-max", "1m"]).unwrap();
        let limits = shard_limits(&patient, 1);
        assert_eq!(limits.turn_time_max, Duration::from_secs(60));
    }

    #[test]
    fn a_panicking_shard_is_told_as_one() {
        let (exits, mut seen) = mpsc::unbounded_channel();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _exit = ExitGuard {
                shard: ShardId(3),
                exits,
                result: Err("panicked".to_owned()),
            };
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        let exit = seen.try_recv().expect("told");
        assert_eq!(
            (exit.shard, exit.result),
            (ShardId(3), Err("panicked".to_owned()))
        );
    }
}
