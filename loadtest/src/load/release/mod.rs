//! `release`: how long from the call Release until every shard judges by the new generation.
//!
//! Starts a control plane and a node (or simulates many), applies a policy of so many rules, releases it, and then changes
//! one row again and again. Owns the order of a measurement. What is measured are times at which answers came and lines of
//! the logs were read, all by one clock.

mod fleet;
mod gateway;
mod plane;
mod policy;
mod report;
mod traffic;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use sluice_policy::FEATURES;
use sluice_proto::control::v1 as control;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::args::seconds;
use super::expect::Expectation;
use super::report::Spread;

use fleet::Fleet;
pub(super) use gateway::Gateway;
use gateway::Moments;
use plane::Asked;
pub(super) use plane::Plane;
pub use report::{Releases, Series};
use traffic::Traffic;

/// A million rules, on a busy machine.
const WITHIN: Duration = Duration::from_secs(900);

/// Options of a measurement.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// Rules in the policy; several sizes are measured one after the other, each with new processes
    #[arg(long, value_delimiter = ',', default_value = "1,10000")]
    pub rules: Vec<u32>,
    /// One-row changes, each applied and released
    #[arg(long, default_value_t = 10)]
    pub changes: u32,
    /// Rollbacks after them: one-row changes as well, that need no document
    #[arg(long, default_value_t = 20)]
    pub rollbacks: u32,
    /// Simulated nodes in this process in the place of one data plane
    #[arg(long, default_value_t = 0)]
    pub nodes: u32,
    /// Shards of the data plane
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Messages a second through the data plane while rollbacks go on, and as long without; 0: none
    #[arg(long, default_value_t = 0, conflicts_with = "nodes")]
    pub traffic_rate: u32,
    /// Devices that send them
    #[arg(long, default_value_t = 100)]
    pub connections: u32,
    /// Seconds of traffic, once without and once with rollbacks
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub duration: Duration,
    /// Seconds from one rollback to the next; one who watches is told ten times a second at most
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub every: Duration,
    /// Folder of our own programs; that of this one by default
    #[arg(long)]
    pub programs: Option<PathBuf>,
    /// What must hold for exit code 0, such as change/10000/active<50ms; may be given several times
    #[arg(long = "expect")]
    pub expectations: Vec<Expectation>,
    /// Store the report here
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// No line for each release on standard error
    #[arg(long)]
    pub quiet: bool,
}

/// Measures every size.
pub fn run(args: &ReleaseArgs) -> anyhow::Result<Releases> {
    let programs = super::process::programs(args.programs.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let mut releases = Releases::new(args);
    for &rules in &args.rules {
        let measured = runtime.block_on(one_size(args, &programs, rules));
        releases
            .series
            .extend(measured.with_context(|| format!("with {rules} rules"))?);
    }
    Ok(releases)
}

async fn one_size(args: &ReleaseArgs, programs: &Path, rules: u32) -> anyhow::Result<Vec<Series>> {
    let folder = tempfile::Builder::new()
        .prefix("sluice-release")
        .tempdir()?;
    let mut site = Site::start(args, programs, folder.path()).await?;
    let mut first = Series::new("first", rules);
    let mut change = Series::new("change", rules);
    let mut rollback = Series::new("rollback", rules);
    let mut ticks = pace(args.every);
    for variant in 0..=u64::from(args.changes) {
        let text = policy::document(rules, variant, &site.upstream());
        let applied = tokio::join!(site.plane.apply(&text), ticks.tick());
        applied.0?;
        drop(text);
        let times = site.measure(false).await?;
        let series = if variant == 0 {
            &mut first
        } else {
            &mut change
        };
        site.tell(&series.push(times))?;
    }
    // A node has something to go back to once a change was released.
    let rollbacks = if args.changes > 0 { args.rollbacks } else { 0 };
    for _ in 0..rollbacks {
        ticks.tick().await;
        let times = site.measure(true).await?;
        site.tell(&rollback.push(times))?;
    }
    let mut all = vec![first, change, rollback];
    if args.traffic_rate > 0 && rollbacks > 0 {
        all.push(site.under_traffic(args, rules).await?);
    }
    for series in &mut all {
        series.summarise();
    }
    all.retain(|series| !series.rounds.is_empty());
    Ok(all)
}

/// Who takes the generations.
enum Takers {
    One(Gateway),
    Many(Fleet),
}

/// Everything that runs for one size.
struct Site {
    plane: Plane,
    takers: Takers,
    watch: mpsc::Receiver<(u64, control::NodesResponse)>,
    traffic: Traffic,
    nodes: usize,
    is_quiet: bool,
}

impl Site {
    async fn start(args: &ReleaseArgs, programs: &Path, folder: &Path) -> anyhow::Result<Self> {
        let plane = Plane::start(programs, folder).await?;
        let token = plane.join_token(args.nodes.max(1)).await?;
        let takers = if args.nodes == 0 {
            let gateway = Gateway::start(programs, folder, plane.api, &token, args.shards);
            Takers::One(gateway.await?)
        } else {
            Takers::Many(Fleet::start(plane.api, &token, args.nodes, FEATURES).await?)
        };
        Ok(Self {
            watch: plane.watch().await?,
            plane,
            takers,
            traffic: Traffic::new(args)?,
            nodes: args.nodes.max(1) as usize,
            is_quiet: args.quiet,
        })
    }

    fn upstream(&self) -> String {
        self.traffic.upstream()
    }

    /// One release of what was applied, or one rollback: times in microseconds from the call, and between the steps.
    async fn measure(&mut self, is_rollback: bool) -> anyhow::Result<BTreeMap<String, f64>> {
        self.plane.process.forget();
        if let Takers::One(gateway) = &mut self.takers {
            gateway.process.forget();
        }
        let asked = if is_rollback {
            self.plane.rollback().await?
        } else {
            self.plane.release().await?
        };
        let mut times = Times::new(asked);
        match &mut self.takers {
            Takers::One(gateway) => {
                let moments = gateway.active(asked.number, WITHIN).await?;
                times.node(moments);
            }
            Takers::Many(fleet) => {
                let mut active = fleet.active(asked.number, WITHIN).await?;
                active.sort_unstable();
                times.at("node_first", active.first());
                times.at("node_median", active.get(active.len() / 2));
                times.at("node_active", active.last());
            }
        }
        let (in_force_ns, active_ns) = told(&mut self.plane, asked.number, self.nodes).await?;
        times.at("in_force", Some(&in_force_ns));
        times.at("active", Some(&active_ns));
        let watched = watched(&mut self.watch, asked.number, self.nodes).await?;
        times.at("watch", Some(&watched));
        Ok(times.with_steps())
    }

    /// Devices publish through the node, first undisturbed, then while one row changes again and again.
    async fn under_traffic(&mut self, args: &ReleaseArgs, rules: u32) -> anyhow::Result<Series> {
        let Takers::One(gateway) = &self.takers else {
            anyhow::bail!("simulated nodes carry no traffic");
        };
        let listener = gateway.listener()?;
        let mut series = Series::new("traffic", rules);
        let still = self.traffic.send(args, listener, rules)?;
        let mut numbers = traffic::named(&still.wait().await?, "still");
        let changing = self.traffic.send(args, listener, rules)?;
        let mut active = Vec::new();
        let mut ticks = pace(args.every);
        while !changing.has_ended() {
            ticks.tick().await;
            let times = self.measure(true).await?;
            active.extend(times.get("active"));
        }
        numbers.extend(traffic::named(&changing.wait().await?, "changing"));
        numbers.insert("releases".into(), active.len() as f64);
        if let Some(spread) = Spread::of(&active) {
            numbers.insert("active".into(), spread.median);
            numbers.insert("active_max".into(), spread.max);
        }
        for quantile in ["p50", "p99", "p99.9"] {
            let of = |when: &str| numbers.get(&format!("{when}.{quantile}")).copied();
            if let (Some(still), Some(changing)) = (of("still"), of("changing")) {
                numbers.insert(format!("added.{quantile}"), changing - still);
            }
        }
        self.tell(&series.push(numbers))?;
        Ok(series)
    }

    fn tell(&self, line: &str) -> io::Result<()> {
        if self.is_quiet {
            return Ok(());
        }
        writeln!(io::stderr(), "{line}")
    }
}

fn pace(every: Duration) -> Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// When the control plane said that a generation is in force, and that the last of the nodes is active.
async fn told(plane: &mut Plane, number: u64, nodes: usize) -> anyhow::Result<(u64, u64)> {
    let (mut in_force_ns, mut active) = (0, 0);
    let waited = plane.process.wait("active nodes", WITHIN, |line| {
        if line.number("generation") != Some(number) {
            return None;
        }
        if line.says("in force") {
            in_force_ns = line.at_ns;
        }
        if line.says("node active") {
            active += 1;
        }
        (active >= nodes).then_some(line.at_ns)
    });
    let active_ns = waited.await?;
    Ok((in_force_ns, active_ns))
}

/// When one who watches was told that every shard of every node is active.
async fn watched(
    watch: &mut mpsc::Receiver<(u64, control::NodesResponse)>,
    number: u64,
    nodes: usize,
) -> anyhow::Result<u64> {
    let search = async {
        while let Some((at_ns, answer)) = watch.recv().await {
            let is_active = |node: &control::Node| {
                let has = |id: &sluice_proto::v1::GenerationId| id.number == number;
                node.active.as_ref().is_some_and(has)
            };
            if answer.nodes.len() == nodes && answer.nodes.iter().all(is_active) {
                return Some(at_ns);
            }
        }
        None
    };
    let found = tokio::time::timeout(WITHIN, search).await;
    found
        .context("the watch does not tell that all are active")?
        .context("the watch has ended")
}

/// Times of one release, in microseconds after the call.
struct Times {
    began_ns: u64,
    values: BTreeMap<String, f64>,
}

impl Times {
    fn new(asked: Asked) -> Self {
        let mut times = Self {
            began_ns: asked.began_ns,
            values: BTreeMap::new(),
        };
        times.at("returned", Some(&asked.returned_ns));
        times
    }

    fn at(&mut self, name: &str, at_ns: Option<&u64>) {
        if let Some(at_ns) = at_ns {
            let after = at_ns.saturating_sub(self.began_ns) as f64 / 1_000.0;
            self.values.insert(name.to_owned(), after);
        }
    }

    fn node(&mut self, moments: Moments) {
        self.at("compiling", Some(&moments.compiling_ns));
        self.at("delivered", Some(&moments.delivered_ns));
        self.at("node_active", Some(&moments.active_ns));
    }

    /// With what each step took.
    fn with_steps(mut self) -> BTreeMap<String, f64> {
        for (step, from, until) in [
            ("step.store", None, "in_force"),
            ("step.delivery", Some("in_force"), "compiling"),
            ("step.compile", Some("compiling"), "delivered"),
            ("step.sweep", Some("delivered"), "node_active"),
            ("step.acknowledge", Some("node_active"), "active"),
        ] {
            let at = |name: &str| self.values.get(name).copied();
            let from = match from {
                None => Some(0.0),
                Some(name) => at(name),
            };
            if let (Some(from), Some(until)) = (from, at(until)) {
                self.values.insert(step.to_owned(), until - from);
            }
        }
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_to_the_whole() {
        let mut times = Times::new(Asked {
            number: 1,
            began_ns: 1_000,
            returned_ns: 9_000,
        });
        times.at("in_force", Some(&4_000));
        times.node(Moments {
            compiling_ns: 5_000,
            delivered_ns: 8_000,
            active_ns: 10_000,
        });
        times.at("active", Some(&11_000));
        let values = times.with_steps();
        let steps: Vec<_> = values
            .iter()
            .filter(|(name, _)| name.starts_with("step."))
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        let expected = [
            ("step.acknowledge", 1.0),
            ("step.compile", 3.0),
            ("step.delivery", 1.0),
            ("step.store", 3.0),
            ("step.sweep", 2.0),
        ];
        assert_eq!(steps, expected);
        assert_eq!(values.get("active"), Some(&10.0));
    }
}
