//! `policy-churn`: releases during traffic. No message may be judged by a mix of two generations, none that both allow may
//! be lost, and latency is compared with the same traffic without releases.
//!
//! Owns the order of a run. Why a mix is visible is said in [`lanes`](super::lanes).

mod source;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::time::{Instant, sleep_until};

use super::args::some_seconds;
use super::beside::Beside;
use super::expect::Expectation;
use super::lanes::{Findings, Lane};
use super::plan::{Plan, Scenario};
use super::report::Report;
use super::sink::Sink;
use super::target::Target;
use source::Source;

/// What must hold whatever else is expected. A run without changes shows nothing.
const REQUIRED: [&str; 9] = [
    "mixed==0",
    "lost==0",
    "torn==0",
    "turned==0",
    "unsent==0",
    "broken==0",
    "changes>0",
    "turns_least>0",
    "rounds_per_change>=4",
];

/// Options of a run.
#[derive(Debug, Args)]
pub struct ChurnArgs {
    /// Devices
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Messages a second of all devices together, four at a time
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Seconds of traffic, once without and once with releases
    #[arg(long, default_value = "10", value_parser = some_seconds)]
    pub duration: Duration,
    /// Seconds from one release to the next
    #[arg(long, default_value = "0.2", value_parser = some_seconds)]
    pub every: Duration,
    /// Rules in each policy beside those that matter
    #[arg(long, default_value_t = 10_000)]
    pub rules: u32,
    /// Shards of the data plane
    #[arg(long, default_value_t = 2)]
    pub shards: u16,
    /// Release through a control plane, not by SIGHUP on a file
    #[arg(long)]
    pub control_plane: bool,
    /// Folder of our own programs; that of this one by default
    #[arg(long)]
    pub programs: Option<PathBuf>,
    /// What must hold besides for exit code 0, such as added.p99.9<1ms; may be given several times
    #[arg(long = "expect")]
    pub expectations: Vec<Expectation>,
    /// Store the report here
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// No line a second on standard error
    #[arg(long)]
    pub quiet: bool,
}

impl ChurnArgs {
    /// What must hold: always, and as asked.
    pub fn all_expectations(&self) -> Vec<Expectation> {
        let required = REQUIRED.iter().filter_map(|text| text.parse().ok());
        required.chain(self.expectations.iter().cloned()).collect()
    }
}

/// Runs it.
pub fn run(args: &ChurnArgs) -> anyhow::Result<Report> {
    let programs = super::process::programs(args.programs.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let folder = tempfile::Builder::new().prefix("sluice-churn").tempdir()?;
    runtime.block_on(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sink = Arc::new(Sink::start(any, None).context("cannot start the sink")?);
        let upstream = format!("tcp://{}", sink.tcp());
        let mut source = Source::start(args, &programs, folder.path(), &upstream).await?;
        let plan = plan(args, source.listener()?);
        let still = phase(args, &plan, &sink, &mut source, false).await?;
        let churning = phase(args, &plan, &sink, &mut source, true).await?;
        Ok(joined(args, &still, churning))
    })
}

fn plan(args: &ChurnArgs, listener: SocketAddr) -> Plan {
    Plan {
        connections: args.connections,
        rate: args.rate,
        // All lanes at once, so that often one receive holds messages of several.
        burst: Lane::ALL.len() as u32,
        duration: args.duration,
        // Everything counts, from the first message on.
        warm_up: Duration::ZERO,
        progress: !args.quiet,
        ..Plan::new(Scenario::PolicyChurn, Target::Tcp(listener))
    }
}

/// Traffic with or without changes, its report, what the ledger shows, and how many changes there were.
async fn phase(
    args: &ChurnArgs,
    plan: &Plan,
    sink: &Arc<Sink>,
    source: &mut Source,
    is_churning: bool,
) -> anyhow::Result<(Report, Findings, u32)> {
    sink.keep_ledger(plan.connections);
    source.forget();
    let traffic = Beside::start(plan.clone(), Arc::clone(sink));
    let mut changes = 0;
    if is_churning {
        let mut due = Instant::now();
        while !traffic.has_ended() {
            sleep_until(due).await;
            source.change().await?;
            changes += 1;
            due = due.max(Instant::now()) + pause(args.every, changes);
        }
        if !args.quiet {
            writeln!(io::stderr(), "{changes} releases")?;
        }
    }
    let report = traffic.wait().await?;
    let sent = report.values.get("sent").map_or(0, |sent| *sent as u64);
    let rounds = sent / Lane::ALL.len() as u64;
    let devices = u64::from(plan.connections.max(1));
    let of_device = |device: usize| {
        let more = u64::from((device as u64) < rounds % devices);
        u32::try_from(rounds / devices + more).unwrap_or(u32::MAX)
    };
    let findings = sink.ledger().findings(of_device, changes);
    Ok((report, findings, changes))
}

/// The pause after so many changes: half of what is asked for to one and a half, and never in step with devices, who would
/// otherwise see each policy as often as the other, or only one of them.
fn pause(every: Duration, changes: u32) -> Duration {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    every.mul_f64(0.5 + (f64::from(changes) * GOLDEN).fract())
}

/// The report with changes, and beside it what was measured without.
fn joined(
    args: &ChurnArgs,
    still: &(Report, Findings, u32),
    churning: (Report, Findings, u32),
) -> Report {
    let (still, before, _) = still;
    let (mut report, findings, changes) = churning;
    let how = if args.control_plane {
        "control plane"
    } else {
        "SIGHUP"
    };
    for (name, value) in [
        ("rules", args.rules.to_string()),
        ("shards", args.shards.to_string()),
        ("every", format!("{:?}", args.every)),
        ("by", how.to_owned()),
    ] {
        report.settings.insert(name.to_owned(), value);
    }
    // Half of what is sent is denied, so what is missing and out of order says nothing here.
    report.values.remove("out_of_order");
    report.count("changes", changes.into());
    report.count("turns_least", findings.turns_least);
    report.count("lost", findings.lost + before.lost);
    report.count("mixed", findings.mixed + before.mixed);
    report.count("torn", findings.torn + before.torn);
    report.count("turned", findings.turned + before.turned);
    // One pair a change is excused, for each device: it must not be all of them.
    let sent = report.values.get("sent").copied().unwrap_or(0.0);
    let rounds = sent / Lane::ALL.len() as f64 / f64::from(args.connections.max(1));
    report.value("rounds_per_change", rounds / f64::from(changes.max(1)));
    report.count("torn_excused", findings.torn_excused);
    if let Some(quantiles) = still.latency_us.get("to_broker") {
        report.latency_us.insert("still".into(), *quantiles);
    }
    let numbers = report.numbers();
    for quantile in ["p50", "p99", "p99.9", "max"] {
        let of = |name: &str| numbers.get(&format!("{name}.{quantile}")).copied();
        if let (Some(still), Some(churning)) = (of("still"), of("to_broker")) {
            report.value(&format!("added.{quantile}"), churning - still);
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_what_was_asked_for_in_the_mean_and_in_step_with_nothing() {
        let every = Duration::from_millis(20);
        let pauses: Vec<Duration> = (0..1_000).map(|changes| pause(every, changes)).collect();
        let mean = pauses.iter().sum::<Duration>() / 1_000;
        assert!(
            mean.abs_diff(every) < Duration::from_micros(100),
            "{mean:?}"
        );
        let range = every / 2..every * 3 / 2;
        assert!(pauses.iter().all(|pause| range.contains(pause)));
        // Eight devices at a hundred rounds a second: how many changes come between two rounds of one of them.
        let mut at = Duration::ZERO;
        let mut between = vec![0_u32; 200];
        for pause in pauses {
            at += pause;
            if let Some(count) = between.get_mut((at.as_millis() / 80) as usize) {
                *count += 1;
            }
        }
        let odd = between.iter().filter(|count| *count % 2 == 1).count();
        assert!((40..160).contains(&odd), "{odd} of 200");
    }

    #[test]
    fn what_is_required_can_be_read() {
        let read = REQUIRED.map(|text| text.parse::<Expectation>().is_ok());
        assert_eq!(read, [true; REQUIRED.len()]);
    }
}
