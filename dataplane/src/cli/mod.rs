//! The command line: what can be asked of the program, and the answers that need no sockets.
//!
//! `run` (also without the word) starts the data plane and is [`crate::config`]'s and boot's. The others work offline,
//! print to standard output, and end with 0 (fine), 1 (the policy is wrong) or 2 (the command is).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::RunArgs;

mod check;
mod explain;
mod password;

/// The policy is wrong.
const EXIT_POLICY: u8 = 1;
/// The command is.
const EXIT_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  sluice-dataplane --policy policy.yaml                  enforce a policy; SIGHUP reads it again, SIGTERM drains
  sluice-dataplane check policy.yaml                     every error with file, line and column
  sluice-dataplane explain --policy policy.yaml --user sensor-7 --client-id sensor-7 publish site/7/temperature
  sluice-dataplane hash-password < secret.txt            a hash for the policy file

Exit codes of check and explain: 0 whatever the verdict, 1 the policy is wrong, 2 the command is (or a file cannot be read).
Exit codes of run: 0 drained, 1 could not start, 70 a shard failed, 128+N cut short by a second signal N (143 for SIGTERM).";

/// A proxy that judges every MQTT packet against a compiled policy.
#[derive(Parser, Debug)]
#[command(name = "sluice-dataplane", version, about, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
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
    /// Start the data plane (the default).
    Run(Box<RunArgs>),
    /// Check policy documents: every error with file, line and column.
    Check(CheckArgs),
    /// Say what a policy decides about one request, by which rule, and which rules were passed over.
    Explain(Box<ExplainArgs>),
    /// Read a password (the first line of standard input) and print a hash (argon2id) for the policy. Never give it as an
    /// argument: arguments can be read by every user of the machine.
    HashPassword,
}

/// `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Documents to check, each on its own.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The policy document.
    #[arg(long, env = "SLUICE_POLICY", value_name = "FILE")]
    policy: PathBuf,
    /// The verified user name; without it the client is anonymous.
    #[arg(long)]
    user: Option<String>,
    /// The client id.
    #[arg(long, default_value = "")]
    client_id: String,
    /// The client's address.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: std::net::IpAddr,
    /// The listener's name; may be left out when the policy has one only.
    #[arg(long)]
    listener: Option<String>,
    /// The protocol version.
    #[arg(long, value_enum, default_value_t = ProtocolVersion::V5)]
    version: ProtocolVersion,
    /// QoS of the message or subscription.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// The message has RETAIN set.
    #[arg(long)]
    retain: bool,
    /// Length of the payload.
    #[arg(long, value_name = "N", default_value_t = 0)]
    payload_bytes: u32,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// What the client wants to do.
    #[arg(value_enum)]
    action: ActionName,
    /// The topic, or the filter of a subscription.
    #[arg(required_if_eq_any([("action", "publish"), ("action", "subscribe"), ("action", "receive")]))]
    topic: Option<String>,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActionName {
    Connect,
    Publish,
    Subscribe,
    Receive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolVersion {
    #[value(name = "3.1")]
    V31,
    #[value(name = "3.1.1", alias = "4")]
    V311,
    #[value(name = "5", alias = "5.0")]
    V5,
}

/// Answers a question that needs no sockets.
pub fn answer(command: &Offline) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let code = match command {
        Offline::Check(args) => check::check(args, &mut out),
        Offline::Explain(args) => explain::explain(args, &mut out),
        Offline::HashPassword => password::hash(&mut out),
    };
    // A reader that closed its end early (`| head`) has what it wanted.
    let _ = out.flush();
    ExitCode::from(code)
}

/// The commands that need no sockets.
#[derive(Debug)]
pub enum Offline {
    /// See [`Command::Check`].
    Check(CheckArgs),
    /// See [`Command::Explain`].
    Explain(Box<ExplainArgs>),
    /// See [`Command::HashPassword`].
    HashPassword,
}

impl Cli {
    /// Either the settings to run with, or a question to answer.
    pub fn resolve(self) -> Result<Box<RunArgs>, Offline> {
        match self.command {
            None => Ok(Box::new(self.run)),
            Some(Command::Run(args)) => Ok(args),
            Some(Command::Check(args)) => Err(Offline::Check(args)),
            Some(Command::Explain(args)) => Err(Offline::Explain(args)),
            Some(Command::HashPassword) => Err(Offline::HashPassword),
        }
    }
}

/// A line about what is wrong with the command itself.
fn complain(message: std::fmt::Arguments<'_>) -> u8 {
    let _ = writeln!(std::io::stderr(), "error: {message}");
    EXIT_USAGE
}

fn read(path: &Path) -> Result<String, u8> {
    std::fs::read_to_string(path)
        .map_err(|error| complain(format_args!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_what_happens_without_a_word() {
        for words in [
            &["sluice-dataplane", "--shards", "2"][..],
            &["sluice-dataplane", "run", "--shards", "2"],
        ] {
            let cli = Cli::try_parse_from(words).expect("good arguments");
            let args = cli.resolve().expect("run");
            assert_eq!(
                args.shards,
                crate::config::ShardCount::Exactly(2),
                "{words:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for words in [
            &["x", "check"][..],
            &["x", "--shards", "0"],
            &["x", "--drain-time", "30"],
            &["x", "--connections-max", "0"],
            &["x", "--engine", "kqueue"],
            &["x", "--admin", "localhost"],
            &["x", "explain", "--policy", "p", "publish"],
            &[
                "x", "explain", "--policy", "p", "--qos", "3", "publish", "t",
            ],
            &["x", "hash-password", "secret"],
            &["x", "--policy", "p", "check", "f"],
        ] {
            assert!(Cli::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
