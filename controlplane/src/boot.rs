//! Start and end of the process: log, store, sockets, signals. It wires everything and decides nothing about policy.

use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sluice_flags::Settings as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::api::{self, AccessApi, OperationsApi, Underway};
use crate::auth::{self, Gate};
use crate::config::{RunArgs, TokenArgs, unknown_variables};
use crate::fleet::Fleet;
use crate::readiness::Readiness;
use crate::release::{self, Releases};
use crate::store::{Sqlite, Store};
use crate::{admin, certificate, clock, logging, metrics, server};

/// How long calls under way have after the first signal.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Time for the store to write its log into its file at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// How long after the last call the connections have: for what was answered last, and for callers to close them.
const QUIET: Duration = Duration::from_millis(500);
/// Between two looks at what is kept for no one.
const FORGET_EVERY: Duration = Duration::from_secs(5);
/// The command line is wrong.
const EXIT_USAGE: u8 = 2;
/// Connections unless told otherwise, where the descriptors suffice.
const CONNECTIONS_DEFAULT: u32 = 4096;
/// Descriptors that are no connections: the store, the admin server, files.
const DESCRIPTORS_RESERVED: u64 = 256;

/// How the process ended.
enum End {
    /// Everything was told and closed, or cut at the deadline.
    Stopped,
    /// A second signal, by its number.
    Cut(i32),
}

/// Runs the control plane until it is told to end.
pub fn run(args: &RunArgs) -> ExitCode {
    let problems = args.problems();
    if !problems.is_empty() {
        return usage(&problems);
    }
    if let Err(error) = logging::install(args.log_format, &args.log_level) {
        return usage(&[format!("the log: {error:#}")]);
    }
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in unknown_variables(names) {
        tracing::warn!(name, "no setting has this environment variable; see --help");
    }
    match in_runtime(serve(args)) {
        Ok(End::Stopped) => ExitCode::SUCCESS,
        Ok(End::Cut(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
        Err(error) => {
            tracing::error!("cannot start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes an admin token offline.
pub fn token(args: &TokenArgs) -> ExitCode {
    let made = in_runtime(async {
        if !args.data_dir.is_dir() {
            anyhow::bail!("{} is no folder (see --data-dir)", args.data_dir.display());
        }
        let store = open_store(&args.data_dir).await?;
        auth::admin_token(&*store, &args.data_dir, args.name.clone()).await
    });
    let told = match &made {
        Ok(path) => writeln!(std::io::stdout(), "{}", path.display()),
        Err(error) => writeln!(std::io::stderr(), "error: {error:#}"),
    };
    match (made, told) {
        (Ok(_), Ok(())) => ExitCode::SUCCESS,
        (Ok(_) | Err(_), _) => ExitCode::FAILURE,
    }
}

fn usage(problems: &[String]) -> ExitCode {
    for problem in problems {
        // Nobody is left to tell when this fails.
        let _ = writeln!(std::io::stderr(), "error: {problem}");
    }
    let _ = writeln!(std::io::stderr(), "\nFor more information, try '--help'.");
    ExitCode::from(EXIT_USAGE)
}

fn in_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime")?;
    let result = runtime.block_on(work);
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    result
}

async fn open_store(data_dir: &Path) -> anyhow::Result<Arc<Sqlite>> {
    let store = Sqlite::open(data_dir).await;
    let store = store.with_context(|| format!("the store in {}", data_dir.display()))?;
    Ok(Arc::new(store))
}

/// A control plane that serves.
struct Running {
    served: JoinHandle<anyhow::Result<()>>,
    underway: Underway,
    readiness: Arc<Readiness>,
    fleet: Fleet,
    sqlite: Arc<Sqlite>,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Tells everybody that it ends.
    fn tell(&self) {
        self.readiness.set_serving(false);
        self.stop.send_replace(true);
        self.fleet.close();
    }
}

async fn serve(args: &RunArgs) -> anyhow::Result<End> {
    let mut signals = signals().context("signal handlers")?;
    let running = tokio::select! {
        running = start(args) => running?,
        signal = signals.recv() => {
            tracing::info!(signal, "stopped before it served");
            return Ok(End::Stopped);
        }
    };
    let sqlite = Arc::clone(&running.sqlite);
    let end = until_stopped(&mut signals, running).await?;
    if matches!(end, End::Stopped) {
        // Its log goes into its file, so that the file alone is the whole store. What was written is safe either way.
        let closed = tokio::time::timeout(CLOSE_WITHIN, sqlite.close()).await;
        if closed.is_err() {
            tracing::warn!("the store was still in use; its log stays beside it");
        }
    }
    Ok(end)
}

async fn start(args: &RunArgs) -> anyhow::Result<Running> {
    let started_at = clock::unix_now();
    let metrics = metrics::install().context("metrics")?;
    tokio::spawn(metrics::upkeep(metrics.clone()));
    let tls = args.tls().map(certificate::open).transpose()?;
    let admin_socket = bind(args.admin, "--admin").await?;
    let socket = bind(args.listen, "--listen").await?;
    let connections_max = connections_by_descriptors(args.connections_max);

    let sqlite = open_store(&args.data_dir).await?;
    let store: Arc<dyn Store> = Arc::clone(&sqlite) as _;
    if let Some(path) = auth::first_token(&*store, &args.data_dir).await? {
        tracing::info!(
            path = %path.display(),
            "first start: the token of the first admin was written; keep it, or make others with it and delete it"
        );
    }
    let gate = Gate::open(Arc::clone(&store)).await?;
    let limits = release::Limits {
        release_within: args.release_within.0,
        readers: release::Bounds::readers(args.readers_memory_mib as usize * (1 << 20)),
        writers: release::Bounds::writers(),
    };
    let releases = Releases::open(Arc::clone(&store), limits).await?;
    let fleet = Fleet::open(gate.clone(), releases.in_force()).await?;
    tokio::spawn(forget(releases.clone(), fleet.clone()));
    let readiness = Arc::new(Readiness::new(store));
    let mut routes = Routes::builder();
    let operations = OperationsApi::new(
        gate.clone(),
        fleet.clone(),
        releases.in_force(),
        Arc::clone(&readiness),
        tls.clone(),
        args.data_dir.clone(),
        started_at,
    );
    routes
        .add_service(api::policies::service(
            gate.clone(),
            releases,
            fleet.clone(),
        ))
        .add_service(api::nodes::service(gate.clone(), fleet.clone()))
        .add_service(fleet.server())
        .add_service(AccessApi::new(gate.clone()).into_service())
        .add_service(operations.into_service());
    let page = metrics::Page::new(metrics, fleet.clone(), args.metrics_nodes_max, started_at);
    let render = Arc::new(move || page.render());
    serve_admin(admin_socket, Arc::clone(&readiness), render)?;
    let (stop, stopping) = watch::channel(false);
    let is_tls = tls.is_some();
    let address = socket.local_addr().context("--listen")?;
    let underway = Underway::default();
    let served = server::Served {
        methods: server::methods()?,
        routes: routes.routes(),
        gate,
        readiness: Arc::clone(&readiness),
        underway: underway.clone(),
    };
    readiness.set_serving(true);
    let served = server::serve(socket, connections_max, tls, served, stopping);
    let served = tokio::spawn(served);
    announce(address, args, is_tls);
    Ok(Running {
        served,
        underway,
        readiness,
        fleet,
        sqlite,
        stop,
    })
}

/// Lets go of what is kept in case it is asked for, once that has become unlikely.
async fn forget(releases: Releases, fleet: Fleet) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        let (releases, fleet) = (releases.clone(), fleet.clone());
        let forgotten = tokio::task::spawn_blocking(move || {
            releases.forget();
            fleet.forget();
        });
        // It fails only when the runtime ends.
        let _ = forgotten.await;
    }
}

/// Waits for a signal, or for the server's end, which is an error; then brings everything to its end.
async fn until_stopped(
    signals: &mut mpsc::Receiver<i32>,
    mut running: Running,
) -> anyhow::Result<End> {
    let first = tokio::select! {
        first = signals.recv() => first,
        ended = &mut running.served => {
            ended.context("the gRPC server")??;
            anyhow::bail!("the gRPC server has ended by itself");
        }
    };
    tracing::info!(
        signal = first,
        within_secs = STOP_WITHIN.as_secs(),
        "stopping"
    );
    running.tell();
    tokio::select! {
        ended = &mut running.served => {
            ended.context("the gRPC server")??;
            tracing::info!("stopped");
            Ok(End::Stopped)
        }
        // Who keeps an idle connection open holds nobody up.
        () = running.underway.none_for(QUIET) => {
            tracing::info!("stopped");
            Ok(End::Stopped)
        }
        () = tokio::time::sleep(STOP_WITHIN) => {
            tracing::warn!("stopped; calls that were still under way were cut");
            Ok(End::Stopped)
        }
        second = signals.recv() => {
            let signal = second.unwrap_or_default();
            tracing::warn!(signal, "a second signal: ended at once");
            Ok(End::Cut(signal))
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let socket = TcpListener::bind(address).await;
    socket.with_context(|| format!("{flag} {address}: cannot listen there"))
}

fn serve_admin(
    socket: TcpListener,
    readiness: Arc<Readiness>,
    metrics: admin::Render,
) -> anyhow::Result<()> {
    let address = socket.local_addr().context("--admin")?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "THE ADMIN SERVER IS REACHABLE FROM OTHER MACHINES and has no password: anyone who reaches it can read metrics"
        );
    }
    tracing::info!(%address, "admin server is listening");
    tokio::spawn(async move {
        if let Err(error) = admin::serve(socket, readiness, metrics).await {
            tracing::error!(%error, "the admin server has ended");
        }
    });
    Ok(())
}

fn announce(address: SocketAddr, args: &RunArgs, is_tls: bool) {
    if !is_tls && !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "THE GRPC SERVER LISTENS BEYOND THIS MACHINE WITHOUT TLS: every token from another machine is refused; \
             give it --tls-cert and --tls-key"
        );
    }
    let wants_client_certificates = args.tls_client_ca.is_some();
    tracing::info!(
        %address,
        tls = is_tls,
        mutual_tls = wants_client_certificates,
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %args.data_dir.display(),
        "gRPC server is listening"
    );
}

/// Raises the limit on descriptors as far as needed and allowed, and gives how many connections it really holds. Only a
/// number that was asked for and is not met deserves a warning.
fn connections_by_descriptors(asked: Option<NonZeroU32>) -> usize {
    let wanted = asked.map_or(CONNECTIONS_DEFAULT, NonZeroU32::get);
    let needed = u64::from(wanted).saturating_add(DESCRIPTORS_RESERVED);
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
    let held = connections_in(limit, wanted);
    if held < wanted && asked.is_none() {
        tracing::info!(
            connections_max = held,
            limit,
            "as many connections as the limit on descriptors allows"
        );
    } else if held < wanted {
        tracing::warn!(
            connections_max = held,
            wanted,
            limit,
            "fewer connections than --connections-max: the limit on descriptors is too low; raise LimitNOFILE or ulimit -n"
        );
    }
    held as usize
}

/// One at least. Where the limit is that of an ordinary shell, a quarter is reserve enough.
fn connections_in(descriptors: u64, wanted: u32) -> u32 {
    let reserved = DESCRIPTORS_RESERVED.min(descriptors / 4);
    let held = descriptors.saturating_sub(reserved);
    u32::try_from(held).unwrap_or(u32::MAX).clamp(1, wanted)
}

/// SIGTERM and SIGINT as numbers, in order of arrival.
fn signals() -> std::io::Result<mpsc::Receiver<i32>> {
    let (seen_in, seen) = mpsc::channel(8);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut stream = signal(kind)?;
        let seen_in = seen_in.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && seen_in.send(kind.as_raw_value()).await.is_ok() {
            }
        });
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_descriptors() {
        for (descriptors, wanted, expected) in [
            (u64::MAX, 4096, 4096),
            (4352, 4096, 4096),
            (1024, 4096, 768),
            (64, 4096, 48),
            (0, 4096, 1),
        ] {
            assert_eq!(connections_in(descriptors, wanted), expected);
        }
    }
}
