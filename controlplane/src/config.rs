//! The settings of the process: command line, environment, and their check as a whole.
//!
//! Opens nothing and reads no file. What the fleet shares (listeners, users, rules) is policy and comes over the API.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use sluice_flags::{CompletionArgs, ConfigCommand, Given, ManArgs, Settings};

use crate::domain::{Name, PORT};

/// What the names of environment variables begin with.
const VARIABLES: &str = "SLUICE_CONTROL_";

const EXAMPLES: &str = "\
Examples:
  sluice-controlplane --data-dir ./state
      for one machine: the API on 127.0.0.1:7443, the admin server on 127.0.0.1:9091
  sluice-controlplane --data-dir /var/lib/sluice-controlplane --listen 0.0.0.0:7443 \\
      --tls-cert server.pem --tls-key server.key
      for nodes on other machines; with --tls-client-ca ca.pem they must show certificates as well
  sluice-controlplane token --data-dir /var/lib/sluice-controlplane --name rescue
      all admin tokens are lost: stop the control plane, make another, start it again
  sluice-controlplane config init control.toml
      a file for the flags; then --config control.toml

A value comes from its flag, else from its environment variable, else from the file of --config, else it is the default;
`config show` says which.

The first start writes the token of the first admin to <data-dir>/admin.token (readable by this user only) and logs that
path. Give it to sluicectl: SLUICE_TOKEN_FILE=<data-dir>/admin.token sluicectl status

SIGTERM and SIGINT stop it: streams are told and ended, calls under way have 10 s. A second one ends it at once.

Exit codes: 0 stopped, 1 could not start (or the token could not be made), 2 the flags, the environment or the file are wrong,
128+N cut short by a second signal N (143 for SIGTERM).";

/// Stores policy, releases it to the fleet, and shows what is active on every node.
#[derive(Parser, Debug)]
#[command(name = "sluice-controlplane", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; without it, `run`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What can be asked.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the control plane (the default).
    Run(Box<RunArgs>),
    /// Make another admin token, as a file, while the control plane is stopped.
    Token(TokenArgs),
    /// Write a file for flags, check the settings, or show where each value comes from.
    #[command(subcommand)]
    Config(ConfigCommand<RunArgs>),
    /// Print the script by which a shell completes commands and flags.
    Completion(CompletionArgs),
    /// Print the man page, or write all pages into a folder.
    Man(ManArgs),
}

/// `token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Folder of the control plane's files.
    #[arg(
        long,
        env = "SLUICE_CONTROL_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/sluice-controlplane"
    )]
    pub data_dir: PathBuf,
    /// Name of the token: 1 to 64 of letters, digits, `-`, `_` and `.`. It is written to <data-dir>/<name>.token.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Name,
}

/// How the process runs. Every flag has an environment variable with the prefix `SLUICE_CONTROL_`. What goes together is
/// checked by `problems`, not by `clap`: a value may come from the file, which `clap` knows as a default.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// File with flags, in TOML: `log_level = "warn"` is --log-level warn. Flags and environment variables go before it.
    /// `config init` writes one. It is read at the start.
    #[arg(long, env = "SLUICE_CONTROL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Folder of the store and the first token; made at first start. One control plane at a time uses it.
    #[arg(
        long,
        env = "SLUICE_CONTROL_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/sluice-controlplane"
    )]
    pub data_dir: PathBuf,

    /// Address of the gRPC server, for operators and nodes. Port 0 takes a free port and logs it.
    #[arg(long, env = "SLUICE_CONTROL_LISTEN", value_name = "ADDR:PORT",
          default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT))]
    pub listen: SocketAddr,

    /// Certificate chain (PEM) of the gRPC server. Without it the server speaks plaintext, and tokens are taken only from
    /// this machine.
    #[arg(long, env = "SLUICE_CONTROL_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key (PEM) of the certificate.
    #[arg(long, env = "SLUICE_CONTROL_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificates (PEM) of those who sign callers' certificates: with it, who shows none is refused.
    #[arg(long, env = "SLUICE_CONTROL_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Connections open at once on the gRPC server: one for each node, and some for operators. The default is what the
    /// limit on descriptors allows, at most 4,096; a number beyond that limit is lowered to it, with a warning.
    #[arg(long, env = "SLUICE_CONTROL_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<NonZeroU32>,

    /// Address of the admin server (/livez, /readyz, /metrics). It has no password: keep it on loopback. Port 0 takes a
    /// free port and logs it.
    #[arg(
        long,
        env = "SLUICE_CONTROL_ADMIN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:9091"
    )]
    pub admin: SocketAddr,

    /// Nodes that have series of their own in /metrics; the first by name, 0 for none. A series says how many are left out.
    #[arg(
        long,
        env = "SLUICE_CONTROL_METRICS_NODES_MAX",
        value_name = "N",
        default_value_t = 200
    )]
    pub metrics_nodes_max: usize,

    /// How long an applied generation can be released, for example `24h`; 1 s to 30 d.
    #[arg(
        long,
        env = "SLUICE_CONTROL_RELEASE_WITHIN",
        value_name = "TIME",
        default_value = "7d"
    )]
    pub release_within: Span,

    /// Memory, in MiB, that calls which only look (validate, diff, explain) may take in all; at least 16. A document of a
    /// million rules of ordinary size takes about 2,000. Calls that write have their own.
    #[arg(
        long,
        env = "SLUICE_CONTROL_READERS_MEMORY_MIB",
        value_name = "MIB",
        default_value = "3072",
        value_parser = clap::value_parser!(u32).range(16..)
    )]
    pub readers_memory_mib: u32,

    /// Form of the log on standard error.
    #[arg(long, env = "SLUICE_CONTROL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Log level (error, warn, info, debug, trace, off), or a filter like `info,sluice::call=off`.
    #[arg(
        long,
        env = "SLUICE_CONTROL_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log_level: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// The files of a TLS server.
#[derive(Clone, Copy, Debug)]
pub struct TlsFiles<'a> {
    /// Its certificate chain.
    pub cert: &'a PathBuf,
    /// Its private key.
    pub key: &'a PathBuf,
    /// Who signs callers' certificates.
    pub client_ca: Option<&'a PathBuf>,
}

impl Settings for RunArgs {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => problems.push("--tls-cert needs --tls-key".to_owned()),
            (None, Some(_)) => problems.push("--tls-key needs --tls-cert".to_owned()),
            (Some(_), Some(_)) | (None, None) => {}
        }
        if self.tls_client_ca.is_some() && self.tls_cert.is_none() {
            problems.push("--tls-client-ca needs --tls-cert and --tls-key".to_owned());
        }
        if self.listen == self.admin && self.listen.port() != 0 {
            problems.push(format!(
                "--listen and --admin are both {}; they are two servers",
                self.listen
            ));
        }
        if self.data_dir.as_os_str().is_empty() {
            problems.push("--data-dir is empty".to_owned());
        }
        if let Err(error) = self.log_level.parse::<tracing_subscriber::EnvFilter>() {
            problems.push(format!("--log-level: {error}"));
        }
        problems
    }
}

impl RunArgs {
    /// The files of the TLS server; `None`: plaintext.
    pub fn tls(&self) -> Option<TlsFiles<'_>> {
        Some(TlsFiles {
            cert: self.tls_cert.as_ref()?,
            key: self.tls_key.as_ref()?,
            client_ca: self.tls_client_ca.as_ref(),
        })
    }
}

/// A time on the command line: a whole number with a unit, 1 s to 30 d.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A value on the command line that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a whole number with a unit (s, m, h, d), 1s to 30d, like `24h`")]
pub struct BadSpan;

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let at = text.find(|c: char| !c.is_ascii_digit()).ok_or(BadSpan)?;
        let (number, unit) = text.split_at(at);
        let number: u64 = number.parse().map_err(|_| BadSpan)?;
        let secs_per_unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(BadSpan),
        };
        let secs = number.checked_mul(secs_per_unit);
        let secs = secs.filter(|secs| (1..=30 * 86_400).contains(secs));
        secs.map(|secs| Self(Duration::from_secs(secs)))
            .ok_or(BadSpan)
    }
}

/// Reads the command line, the environment and the file for flags; the exit code when there is nothing to do.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Given<Cli>, u8> {
    sluice_flags::parse(VARIABLES, words).map_err(|unusable| unusable.tell())
}

/// Those of these environment variables that look like a setting and are none: spelling errors, most likely.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    // Of nodes, which may run on the same machine.
    const OF_NODES: &str = "SLUICE_CONTROL_PLANE";
    let command = sluice_flags::with_variables(Cli::command(), VARIABLES);
    let mut known = BTreeSet::new();
    collect_variables(&command, &mut known);
    let is_unknown = |name: &String| {
        name.starts_with(VARIABLES) && !name.starts_with(OF_NODES) && !known.contains(&**name)
    };
    let mut unknown: Vec<_> = names.filter(is_unknown).collect();
    unknown.sort();
    unknown
}

fn collect_variables<'a>(command: &'a clap::Command, known: &mut BTreeSet<&'a str>) {
    let names = command.get_arguments().filter_map(clap::Arg::get_env);
    known.extend(names.filter_map(std::ffi::OsStr::to_str));
    for subcommand in command.get_subcommands() {
        collect_variables(subcommand, known);
    }
}

fn name(text: &str) -> Result<Name, String> {
    let why = "expected 1 to 64 of letters, digits, `-`, `_` and `.`";
    let parsed = Name::parse(text).filter(|name| !name.as_str().starts_with('.'));
    parsed.ok_or_else(|| why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> RunArgs {
        let args = [&["sluice-controlplane"], args].concat();
        Cli::try_parse_from(args).expect("parses").run
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_and_one_rule_names_them() {
        let command = sluice_flags::with_variables(Cli::command(), VARIABLES);
        assert_eq!(sluice_flags::broken_rules(&command, VARIABLES), [""; 0]);
        let run = Cli::command();
        let run = run.find_subcommand("run").expect("the command");
        let bare = run.get_arguments().find(|arg| arg.get_env().is_none());
        assert!(bare.is_none(), "{bare:?}");
    }

    #[test]
    fn variables_that_are_no_setting_are_found() {
        let names = [
            "PATH",
            "SLUICE_CONTROL_LISTEM",
            "SLUICE_CONTROL_LISTEN",
            "SLUICE_CONTROL_RELEASE_WITHIN",
            "SLUICE_CONTROL_DATA_DIR",
            "SLUICE_CONTROL_TOKEN_NAME",
            "SLUICE_CONTROL_MAN_DIR",
            "SLUICE_CONTROL_PLANE_CA",
            "SLUICE_CONTROL_",
        ];
        let unknown = unknown_variables(names.map(str::to_owned).into_iter());
        assert_eq!(unknown, ["SLUICE_CONTROL_", "SLUICE_CONTROL_LISTEM"]);
    }

    #[test]
    fn times_have_a_unit_and_bounds() {
        for (text, secs) in [
            ("1s", Some(1)),
            ("90m", Some(5400)),
            ("24h", Some(86_400)),
            ("30d", Some(2_592_000)),
            ("31d", None),
            ("0s", None),
            ("10", None),
            ("", None),
            ("-1s", None),
            ("1 s", None),
            ("99999999999999999999d", None),
        ] {
            let found = text.parse::<Span>().ok();
            assert_eq!(
                found,
                secs.map(|secs| Span(Duration::from_secs(secs))),
                "{text:?}"
            );
        }
    }

    #[test]
    fn c17_all_problems_are_told_at_once() {
        let args = parse(&[
            "--tls-key",
            "k",
            "--tls-client-ca",
            "c",
            "--admin",
            "127.0.0.1:7443",
            "--log-level",
            "a=b=c",
        ]);
        let problems = args.problems();
        assert_eq!(problems.len(), 4, "{problems:?}");
        for text in [
            "--tls-key needs",
            "--tls-client-ca needs",
            "two servers",
            "--log-level",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(text)),
                "{text}"
            );
        }
        assert!(parse(&[]).problems().is_empty());
        let free_ports = parse(&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        assert!(free_ports.problems().is_empty());
    }
}
