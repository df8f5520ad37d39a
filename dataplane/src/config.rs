//! The settings of one node: what belongs to the machine and the process, never to the policy.
//!
//! Owns the command line of `run`, its environment spelling and its conversion into final types, once, with every
//! value checked. It opens nothing and reads no file. What a fleet shares (listeners, users, rules, limits) is policy.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use sluice_flags::Settings;
use tracing_subscriber::EnvFilter;

use crate::ring::EngineChoice;

mod fleet;

pub use fleet::{BadFleet, FleetArgs, FleetSettings};

/// Shards one process may run; a bound for tables with one row per shard.
pub const SHARDS_MAX: usize = 256;

/// Processor numbers accepted by `--cpus`; what the kernel's affinity mask of this build can name.
pub const CPUS_MAX: usize = 1024;

/// How the process runs. Every flag has an environment variable of the same name with the prefix `SLUICE_`. What goes
/// together is checked by `problems`, not by `clap`: a value may come from the file, which `clap` knows as a default.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// File with flags, in TOML: `log_level = "warn"` is --log-level warn. Flags and environment variables go before it.
    /// `config init` writes one. It is read at the start.
    #[arg(long, env = "SLUICE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Policy document to enforce (YAML). SIGHUP reads it again; a bad one is refused whole and the old one stays.
    /// Without a policy every device is refused and /readyz says so.
    #[arg(long, env = "SLUICE_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// The way to a control plane, in the place of a policy document.
    #[command(flatten)]
    pub fleet: FleetArgs,

    /// Event loops, each on its own thread and processor: a number, or `auto` for one per processor in `--cpus`.
    #[arg(
        long,
        env = "SLUICE_SHARDS",
        value_name = "N|auto",
        default_value = "auto"
    )]
    pub shards: ShardCount,

    /// How sockets are driven. `auto` takes io_uring where the kernel and the sandbox allow it, else epoll.
    #[arg(
        long,
        env = "SLUICE_ENGINE",
        value_name = "auto|uring|epoll",
        default_value = "auto"
    )]
    pub engine: EngineChoice,

    /// Processors the shards may use, for example `0,2-5`. The default is all that the process is allowed.
    #[arg(long, env = "SLUICE_CPUS", value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Address of the admin server; its page `/` lists what it answers. It has no password: keep it on loopback.
    /// Port 0 takes a free port and logs it.
    #[arg(
        long,
        env = "SLUICE_ADMIN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:9090"
    )]
    pub admin: SocketAddr,

    /// Client connections open at once on this node; more are refused at accept. The default is what the limit on
    /// descriptors allows (two for each), at most 100,000; a number beyond that limit is lowered to it, with a warning.
    #[arg(long, env = "SLUICE_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<NonZeroU32>,

    /// Of these, connections whose CONNECT has not come. The default, and the most, is three quarters. At this
    /// limit, the oldest one of the address with most of them gives way to a newcomer.
    #[arg(long, env = "SLUICE_STRANGERS_MAX", value_name = "N")]
    pub strangers_max: Option<NonZeroU32>,

    /// The same for one client address (IPv6: a /64); never more than three quarters of all of them. Raise it when more
    /// devices than this behind one address connect within a moment.
    #[arg(
        long,
        env = "SLUICE_STRANGERS_PER_ADDRESS_MAX",
        value_name = "N",
        default_value = "6000"
    )]
    pub strangers_per_address_max: NonZeroU32,

    /// How long a connection may take to send its CONNECT before it may have to give way; where nothing is short, the
    /// `connect_timeout` of its listener rules alone. At most 1h.
    #[arg(
        long,
        env = "SLUICE_STRANGERS_GRACE",
        value_name = "TIME",
        default_value = "2s",
        value_parser = at_most_an_hour
    )]
    pub strangers_grace: Span,

    /// A shard whose turns take longer than this is overloaded: it turns new connections away until they are shorter.
    /// At most 1h.
    #[arg(
        long,
        env = "SLUICE_TURN_TIME_MAX",
        value_name = "TIME",
        default_value = "250ms",
        value_parser = at_most_an_hour
    )]
    pub turn_time_max: Span,

    /// Time over which a drain (SIGTERM) spreads the end of the open sessions, for example `30s`.
    #[arg(
        long,
        env = "SLUICE_DRAIN_TIME",
        value_name = "TIME",
        default_value = "30s"
    )]
    pub drain_time: Span,

    /// Be not ready (/readyz) while an upstream of the policy has no endpoint that is used. Without this such a node is ready,
    /// and says that it is degraded: that a broker is down is no reason to take every node of a fleet out of service.
    #[arg(long, env = "SLUICE_UNREADY_WITHOUT_UPSTREAM")]
    pub unready_without_upstream: bool,

    /// Threads that verify passwords, at low priority; the default is one per processor, at most 8.
    #[arg(long, env = "SLUICE_AUTH_THREADS", value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub auth_threads: Option<u16>,

    /// Password checks that may wait, a long one counting once for each 512 bytes; beyond it a client is told that the
    /// server is busy.
    #[arg(
        long,
        env = "SLUICE_AUTH_QUEUE",
        value_name = "N",
        default_value = "8192"
    )]
    pub auth_queue: NonZeroU32,

    /// Longest wait for a password check, 100ms or more; after it the client is told that the server is busy.
    #[arg(
        long,
        env = "SLUICE_AUTH_DEADLINE",
        value_name = "TIME",
        default_value = "10s",
        value_parser = long_enough_to_verify
    )]
    pub auth_deadline: Span,

    /// Verified passwords remembered (as keyed digests), so that reconnecting costs no second hash. 0 turns it off.
    #[arg(
        long,
        env = "SLUICE_AUTH_CACHE",
        value_name = "N",
        default_value = "100000"
    )]
    pub auth_cache: u32,

    /// How long a verified password is remembered.
    #[arg(
        long,
        env = "SLUICE_AUTH_CACHE_TIME",
        value_name = "TIME",
        default_value = "10m"
    )]
    pub auth_cache_time: Span,

    /// Verified passwords remembered for a month (as keyed digests), so that devices that were here before are ahead of
    /// first logins and of guesses when checks have to wait. 0 turns it off.
    #[arg(
        long,
        env = "SLUICE_AUTH_KNOWN",
        value_name = "N",
        default_value = "100000"
    )]
    pub auth_known: u32,

    /// Form of the log on standard error.
    #[arg(long, env = "SLUICE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Log level, or a filter like `info,sluice::decision=off`. PUT /log on the admin server changes it at run time.
    #[arg(
        long,
        env = "SLUICE_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log_level: String,

    /// Most memory of each shard, in MiB, for counting how often each rule decides (`sluicectl rules`, GET /rules on the admin
    /// server); at most a quarter of what it has for backlogs. A million rules that all decide take 20. 0 turns it off.
    #[arg(
        long,
        env = "SLUICE_RULE_COUNTS_MIB",
        value_name = "N",
        default_value = "32",
        value_parser = clap::value_parser!(u32).range(..=1024)
    )]
    pub rule_counts_mib: u32,

    /// Show how often rules decided in /metrics: the first N rules by name, each two series at most.
    #[arg(
        long,
        env = "SLUICE_RULE_METRICS",
        value_name = "N",
        default_value = "0",
        value_parser = clap::value_parser!(u32).range(..=10_000)
    )]
    pub rule_metrics: u32,

    /// Log one of every N policy decisions (topics and client ids, never payloads) on target `sluice::decision`. 0 is off.
    /// PUT /decisions on the admin server switches it on for a time, for some of them.
    #[arg(
        long,
        env = "SLUICE_DECISION_LOG_SAMPLE",
        value_name = "N",
        default_value = "0"
    )]
    pub decision_log_sample: u32,

    /// Refusals that each shard keeps for an hour, for `sluicectl denials`: who was refused what and why, never a password.
    /// 1,024 take at most 1 MiB. 0 is off.
    #[arg(
        long,
        env = "SLUICE_DENIALS_MAX",
        value_name = "N",
        default_value = "1024",
        value_parser = clap::value_parser!(u32).range(0..=65_536)
    )]
    pub denials_max: u32,

    /// Show the refusals that are kept on the page `/denials` of the admin server as well. It has no password: whoever reaches
    /// it can then read client ids, topics and addresses.
    #[arg(long, env = "SLUICE_ADMIN_DENIALS")]
    pub admin_denials: bool,
}

impl Settings for RunArgs {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.policy.is_some() && self.fleet.control_plane.is_some() {
            problems.push(
                "--policy and --control-plane do not go together: the policy comes from one place"
                    .to_owned(),
            );
        }
        if let Err(error) = self.fleet.settings() {
            problems.push(error.to_string());
        }
        if let Err(error) = self.log_level.parse::<EnvFilter>() {
            problems.push(format!("--log-level: {error}"));
        }
        problems
    }
}

fn at_most_an_hour(text: &str) -> Result<Span, BadValue> {
    let span: Span = text.parse()?;
    if span.0 > Duration::from_secs(3600) {
        return Err(BadValue::OverAnHour);
    }
    Ok(span)
}

/// With less, no password is ever verified: each check is late before it begins.
fn long_enough_to_verify(text: &str) -> Result<Span, BadValue> {
    let span: Span = text.parse()?;
    if span.0 < Duration::from_millis(100) {
        return Err(BadValue::UnderATenth);
    }
    Ok(span)
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How many shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardCount {
    /// One per processor.
    Auto,
    /// So many, 1 to [`SHARDS_MAX`].
    Exactly(usize),
}

/// Processor numbers, ascending, without repetition, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// A length of time, written with its unit: `250ms`, `30s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A value on the command line that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// Not `auto` and not a usable number.
    #[error("expected `auto` or a number from 1 to {SHARDS_MAX}")]
    Shards,
    /// Not a list of numbers and ranges.
    #[error("expected processor numbers below {CPUS_MAX} like `0,2-5`")]
    Cpus,
    /// Not a time with a unit.
    #[error("expected a whole number with a unit (ms, s, m, h), at most 24h, like `30s`")]
    Span,
    /// A time beyond what its flag takes.
    #[error("expected a time of at most 1h, like `2s`")]
    OverAnHour,
    /// A time below what its flag takes.
    #[error("expected a time of at least 100ms, like `10s`")]
    UnderATenth,
}

impl FromStr for ShardCount {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(count) if (1..=SHARDS_MAX).contains(&count) => Ok(Self::Exactly(count)),
            Ok(_) | Err(_) => Err(BadValue::Shards),
        }
    }
}

impl FromStr for CpuList {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(cpu) if cpu < CPUS_MAX => Ok(cpu),
            Ok(_) | Err(_) => Err(BadValue::Cpus),
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cpus.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(BadValue::Cpus);
                    }
                    cpus.extend(first..=last);
                }
            }
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl FromStr for Span {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .ok_or(BadValue::Span)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| BadValue::Span)?;
        let millis_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(BadValue::Span),
        };
        match number.checked_mul(millis_per_unit) {
            Some(millis) if millis <= 24 * 3_600_000 => Ok(Self(Duration::from_millis(millis))),
            Some(_) | None => Err(BadValue::Span),
        }
    }
}

impl fmt::Display for ShardCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Exactly(count) => write!(f, "{count}"),
        }
    }
}

/// Chooses the processor of each shard: round robin over what is wanted and allowed.
///
/// `allowed` is the affinity mask the process was started with (cpusets and `taskset` show there). `None` for a shard
/// means that it is not pinned: more shards than processors would fight for one while another is idle.
pub fn place(
    count: ShardCount,
    wanted: Option<&CpuList>,
    allowed: &[usize],
) -> Result<Vec<Option<usize>>, CpuNotAllowed> {
    let cpus: Vec<usize> = match wanted {
        None => allowed.to_vec(),
        Some(list) => {
            if let Some(&cpu) = list.0.iter().find(|cpu| !allowed.contains(cpu)) {
                return Err(CpuNotAllowed { cpu });
            }
            list.0.clone()
        }
    };
    let shards = match count {
        ShardCount::Auto => cpus.len().clamp(1, SHARDS_MAX),
        ShardCount::Exactly(count) => count,
    };
    if shards > cpus.len() {
        return Ok(vec![None; shards]);
    }
    Ok(cpus.into_iter().take(shards).map(Some).collect())
}

/// `--cpus` names a processor that this process may not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "processor {cpu} is not in the set this process may use (cpuset, taskset or container limits)"
)]
pub struct CpuNotAllowed {
    /// Its number.
    pub cpu: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_need_a_unit_and_stay_below_a_day() {
        for (text, expected) in [
            ("250ms", Ok(Duration::from_millis(250))),
            ("0s", Ok(Duration::ZERO)),
            ("30s", Ok(Duration::from_secs(30))),
            ("5m", Ok(Duration::from_secs(300))),
            ("24h", Ok(Duration::from_secs(86_400))),
            ("25h", Err(BadValue::Span)),
            ("30", Err(BadValue::Span)),
            ("s", Err(BadValue::Span)),
            ("-1s", Err(BadValue::Span)),
            ("1.5s", Err(BadValue::Span)),
            ("18446744073709551615h", Err(BadValue::Span)),
            ("99999999999999999999s", Err(BadValue::Span)),
            ("", Err(BadValue::Span)),
        ] {
            assert_eq!(
                text.parse::<Span>().map(|span| span.0),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn processor_lists_take_numbers_and_ranges() {
        for (text, expected) in [
            ("0", Ok(vec![0])),
            ("3,0-1,1", Ok(vec![0, 1, 3])),
            ("1023", Ok(vec![1023])),
            ("1024", Err(BadValue::Cpus)),
            ("5-2", Err(BadValue::Cpus)),
            ("0-", Err(BadValue::Cpus)),
            ("", Err(BadValue::Cpus)),
            ("a", Err(BadValue::Cpus)),
        ] {
            assert_eq!(
                text.parse::<CpuList>().map(|list| list.0),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn shard_counts_are_bounded() {
        for (text, expected) in [
            ("auto", Ok(ShardCount::Auto)),
            ("1", Ok(ShardCount::Exactly(1))),
            ("256", Ok(ShardCount::Exactly(256))),
            ("257", Err(BadValue::Shards)),
            ("0", Err(BadValue::Shards)),
            ("two", Err(BadValue::Shards)),
        ] {
            assert_eq!(text.parse::<ShardCount>(), expected, "{text:?}");
        }
    }

    #[test]
    fn shards_are_pinned_one_per_allowed_processor_or_not_at_all() {
        let list = |cpus: &[usize]| Some(CpuList(cpus.to_vec()));
        for (count, wanted, allowed, expected, note) in [
            (
                ShardCount::Auto,
                None,
                vec![0, 1],
                Ok(vec![Some(0), Some(1)]),
                "all there are",
            ),
            (
                ShardCount::Auto,
                list(&[3]),
                vec![1, 3],
                Ok(vec![Some(3)]),
                "only the listed",
            ),
            (
                ShardCount::Exactly(1),
                None,
                vec![4, 5],
                Ok(vec![Some(4)]),
                "the first",
            ),
            (
                ShardCount::Exactly(3),
                None,
                vec![0, 1],
                Ok(vec![None; 3]),
                "more than processors: unpinned",
            ),
            (
                ShardCount::Auto,
                list(&[7]),
                vec![0],
                Err(CpuNotAllowed { cpu: 7 }),
                "outside the cpuset",
            ),
            (
                ShardCount::Auto,
                None,
                vec![],
                Ok(vec![None]),
                "an unreadable mask still runs one",
            ),
        ] {
            assert_eq!(place(count, wanted.as_ref(), &allowed), expected, "{note}");
        }
    }
}
