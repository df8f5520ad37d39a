//! The command line of `sluice-loadtest`, and what it means.
//!
//! Owns options and their defaults. Every option changes something that a report shows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_flags::{CompletionArgs, ManArgs};

use super::expect::Expectation;
use super::frame::{Login, Stamp, Version};
use super::plan::{Plan, Scenario};
use super::target::Target;

/// An MQTT packet has at most 268,435,455 bytes behind its first ones; topic and properties need some of them.
const PAYLOAD_BYTES_MAX: usize = 268_000_000;

/// What the names of environment variables begin with.
pub const VARIABLES: &str = "SLUICE_LOADTEST_";

const VARIABLES_HELP: &str = "\
Every flag has an environment variable, which it goes before: SLUICE_LOADTEST_, the command, the flag. So --rate of
`publish` has SLUICE_LOADTEST_PUBLISH_RATE.";

/// Open-loop load generator for MQTT brokers and what stands before them.
#[derive(Debug, Parser)]
#[command(name = "sluice-loadtest", version, about, after_help = VARIABLES_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connections opened at a steady rate, each closed after its CONNACK
    ConnectStorm(RunArgs),
    /// Connections held, nothing sent: set-up cost and memory
    Idle(RunArgs),
    /// Every device publishes; the broker swallows
    Publish(RunArgs),
    /// Every device publishes, one subscriber receives all
    FanIn(RunArgs),
    /// One device publishes, all others receive
    FanOut(RunArgs),
    /// Devices publish requests, a responder answers each
    RequestResponse(RunArgs),
    /// As fan-out, but some subscribers read slowly
    SlowReader(RunArgs),
    /// Several targets in one run, in turns: medians, spread, ratios
    Compare(super::compare::CompareArgs),
    /// Policies released again and again during traffic: nothing is lost, nothing is judged by a mix of two
    PolicyChurn(super::churn::ChurnArgs),
    /// From the release of a policy by a control plane until every shard judges by it
    Release(super::release::ReleaseArgs),
    /// Two stored JSON reports side by side
    Diff {
        /// The earlier one
        before: PathBuf,
        /// The later one
        after: PathBuf,
    },
    /// Only the counting broker, until interrupted
    Sink {
        /// Where to listen by TCP
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Core of the broker
        #[arg(long)]
        core: Option<usize>,
    },
    /// Print the script by which a shell completes commands and flags
    Completion(CompletionArgs),
    /// Print the man page, or write all pages into a folder
    Man(ManArgs),
}

/// Options of one run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// tcp://host:port or unix:///path; without it the load goes straight to the sink
    #[arg(long)]
    pub target: Option<Target>,
    /// Start the counting broker here, as the upstream of the target; port 0 for any
    #[arg(long)]
    pub sink: Option<SocketAddr>,
    /// Devices
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Messages a second of all devices together (connect-storm: connections)
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Messages that become due together on one device; the rate stays the same
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub burst: u32,
    /// Connections opened a second before the run
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub connect_rate: u32,
    /// Payload; the first 16 bytes carry the time stamp
    #[arg(long, default_value_t = 128)]
    pub payload_bytes: usize,
    /// QoS of published messages
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Seconds measured
    #[arg(long, default_value = "10", value_parser = some_seconds)]
    pub duration: Duration,
    /// Seconds of the same load before
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,
    /// MQTT version
    #[arg(long, value_enum, default_value_t = VersionArg::V311)]
    pub version: VersionArg,
    /// User name of every device
    #[arg(long)]
    pub username: Option<String>,
    /// File with the password of every device; a line end at its end is left out
    #[arg(long, requires = "username")]
    pub password_file: Option<PathBuf>,
    /// Topic of a device: {c} is its number, {m} goes round from 0 to 63
    #[arg(long, default_value = "devices/{c}/telemetry")]
    pub topics: String,
    /// publish, fan-in: topics that each device goes through in turn; beyond one, each has a further level, its number
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub topics_per_device: u32,
    /// Front of the client ids; the number of the device follows
    #[arg(long, default_value = "load-")]
    pub client_id_prefix: String,
    /// slow-reader: every so many-th subscriber is slow
    #[arg(long, default_value_t = 10)]
    pub slow_every: u32,
    /// slow-reader: bytes a second that a slow one reads
    #[arg(long, default_value_t = 1_000)]
    pub slow_bytes_per_sec: u32,
    /// Process whose CPU and memory are measured; may be given several times
    #[arg(long = "pid")]
    pub pids: Vec<u32>,
    /// Core of the generator
    #[arg(long)]
    pub core: Option<usize>,
    /// Core of the sink
    #[arg(long)]
    pub sink_core: Option<usize>,
    /// What must hold for exit code 0, such as p99<5ms or lost==0; may be given several times
    #[arg(long = "expect")]
    pub expectations: Vec<Expectation>,
    /// Store the report here
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// No line a second on standard error
    #[arg(long)]
    pub quiet: bool,
}

/// MQTT versions as people write them.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum VersionArg {
    /// MQTT 3.1
    #[value(name = "3.1")]
    V31,
    /// MQTT 3.1.1
    #[value(name = "3.1.1")]
    V311,
    /// MQTT 5
    #[value(name = "5")]
    V5,
}

impl From<VersionArg> for Version {
    fn from(version: VersionArg) -> Self {
        match version {
            VersionArg::V31 => Self::V31,
            VersionArg::V311 => Self::V311,
            VersionArg::V5 => Self::V5,
        }
    }
}

/// Reads seconds with an optional fraction.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(value).map_err(|error| format!("`{text}`: {error}"))
}

/// The same, but not none.
pub fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("nothing can be measured in no time".into()),
        duration => Ok(duration),
    }
}

impl RunArgs {
    /// The plan against a known target.
    pub fn plan(&self, scenario: Scenario, target: Target) -> anyhow::Result<Plan> {
        anyhow::ensure!(
            self.payload_bytes >= Stamp::BYTES,
            "--payload-bytes must be at least {}: the time stamp is in the payload",
            Stamp::BYTES
        );
        anyhow::ensure!(
            self.payload_bytes <= PAYLOAD_BYTES_MAX,
            "--payload-bytes must be at most {PAYLOAD_BYTES_MAX}: an MQTT packet holds no more"
        );
        let password = self
            .password_file
            .as_ref()
            .map(|path| {
                let mut bytes = std::fs::read(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                while matches!(bytes.last(), Some(b'\n' | b'\r')) {
                    bytes.pop();
                }
                anyhow::Ok(bytes)
            })
            .transpose()?;
        Ok(Plan {
            connections: self.connections,
            rate: self.rate,
            burst: self.burst,
            connect_rate: self.connect_rate,
            payload_bytes: self.payload_bytes,
            qos: self.qos,
            version: self.version.into(),
            duration: self.duration,
            warm_up: self.warm_up,
            topics: self.topics.clone(),
            topics_per_device: self.topics_per_device,
            client_id_prefix: self.client_id_prefix.clone(),
            login: Login {
                username: self.username.clone(),
                password,
            },
            slow_every: self.slow_every,
            slow_bytes_per_sec: self.slow_bytes_per_sec,
            pids: self.pids.clone(),
            progress: !self.quiet,
            ..Plan::new(scenario, target)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_and_one_rule_names_them() {
        use clap::CommandFactory as _;
        let command = sluice_flags::with_variables(Cli::command(), VARIABLES);
        assert_eq!(sluice_flags::broken_rules(&command, VARIABLES), [""; 0]);
    }

    #[test]
    fn options_reach_the_plan() {
        let line = "sluice-loadtest publish --target tcp://127.0.0.1:1 --rate 7 --connections 3 --version 5 \
                    --qos 1 --duration 0.5 --expect p99<5ms --expect lost==0 --pid 4 --topics a/{c}";
        let Command::Publish(args) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("another command");
        };
        let plan = args
            .plan(Scenario::Publish, args.target.clone().unwrap())
            .unwrap();
        assert_eq!((plan.rate, plan.connections, plan.qos), (7, 3, 1));
        assert_eq!(plan.version, Version::V5);
        assert_eq!(plan.duration, Duration::from_millis(500));
        assert_eq!(plan.pids, [4]);
        assert_eq!(plan.topic(2), "a/2");
        assert_eq!(args.expectations.len(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "sluice-loadtest publish --target localhost:1",
            "sluice-loadtest publish --expect p99",
            "sluice-loadtest publish --rate 0",
            "sluice-loadtest publish --connections 0",
            "sluice-loadtest publish --burst 0",
            "sluice-loadtest publish --connect-rate 0",
            "sluice-loadtest publish --duration 0",
            "sluice-loadtest publish --duration -1",
            "sluice-loadtest compare --rounds 0",
            "sluice-loadtest policy-churn --connections 0",
            "sluice-loadtest publish --qos 3",
            "sluice-loadtest publish --duration -1",
            "sluice-loadtest publish --password-file x",
        ] {
            assert!(
                Cli::try_parse_from(line.split_whitespace()).is_err(),
                "{line}"
            );
        }
    }
}
