//! The command line: what can be asked of the program, and the answers that need no sockets.
//!
//! `run` (also without the word) starts the data plane and is [`crate::config`]'s and boot's. The others work offline,
//! print to standard output, and end with 0 (fine), 1 (the policy is wrong) or 2 (the command is).

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_flags::{CompletionArgs, ConfigCommand, EXIT_USAGE, Given, ManArgs};

use crate::config::RunArgs;

mod check;
mod explain;
mod password;

/// The policy is wrong.
const EXIT_POLICY: u8 = 1;
/// What the names of environment variables begin with.
const VARIABLES: &str = "SLUICE_";

const EXAMPLES: &str = "\
Examples:
  sluice-dataplane --policy policy.yaml                  enforce a policy; SIGHUP reads it again, SIGTERM drains
  sluice-dataplane check policy.yaml                     every error with file, line and column
  sluice-dataplane explain --policy policy.yaml --user sensor-7 --client-id sensor-7 publish site/7/temperature
  sluice-dataplane hash-password < secret.txt            a hash for the policy file
  sluice-dataplane config init node.toml                 a file for the flags; then --config node.toml
  sluice-dataplane completion bash > /etc/bash_completion.d/sluice-dataplane

A value comes from its flag, else from its environment variable, else from the file of --config, else it is the default;
`config show` says which. Flags of commands have variables too: SLUICE_, the command, the flag (SLUICE_EXPLAIN_USER).

Exit codes of check and explain: 0 whatever the verdict, 1 the policy is wrong, 2 the command is (or a file cannot be read).
Exit codes of config: 0 fine, 2 the flags, the environment or the file are wrong (a start ends with 2 as well).
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
    /// Check policy documents: every error with file, line and column; warnings about what cannot be meant; rows by kind.
    Check(CheckArgs),
    /// Say what a policy decides about one request, by which rule, and which rules were passed over.
    Explain(Box<ExplainArgs>),
    /// Read a password (the first line of standard input) and print a hash (argon2id) for the policy. Never give it as an
    /// argument: arguments can be read by every user of the machine.
    HashPassword,
    /// Write a file for flags, check the settings, or show where each value comes from.
    #[command(subcommand)]
    Config(ConfigCommand<RunArgs>),
    /// Print the script by which a shell completes commands and flags.
    Completion(CompletionArgs),
    /// Print the man page, or write all pages into a folder.
    Man(ManArgs),
}

/// `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Documents to check, each on its own.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Warnings are errors: exit code 1.
    #[arg(long)]
    strict: bool,
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

/// Reads the command line, the environment and the file for flags. The exit code when there is nothing to do.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Given<Cli>, ExitCode> {
    sluice_flags::parse(VARIABLES, words).map_err(|unusable| ExitCode::from(unusable.tell()))
}

/// The settings to run with; or a question that needs no sockets was answered, and this is the exit code.
pub fn answer(given: &Given<Cli>) -> Result<&RunArgs, ExitCode> {
    let mut out = std::io::stdout().lock();
    let code = match &given.cli.command {
        None => return Ok(&given.cli.run),
        Some(Command::Run(args)) => return Ok(args),
        Some(Command::Check(args)) => check::check(args, &mut out),
        Some(Command::Explain(args)) => explain::explain(args, &mut out),
        Some(Command::HashPassword) => password::hash(&mut out),
        Some(Command::Config(config)) => config.answer(given, &mut out),
        Some(Command::Completion(args)) => args.answer(given.command.clone(), &mut out),
        Some(Command::Man(args)) => args.answer(given.command.clone(), &mut out),
    };
    // A reader that closed its end early (`| head`) has what it wanted.
    let _ = out.flush();
    Err(ExitCode::from(code))
}

/// A line about what is wrong with the command itself.
fn complain(message: std::fmt::Arguments<'_>) -> u8 {
    let _ = writeln!(std::io::stderr(), "error: {message}");
    EXIT_USAGE
}

fn read(path: &Path) -> Result<Vec<u8>, u8> {
    std::fs::read(path).map_err(|error| complain(format_args!("{}: {error}", path.display())))
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
    fn every_flag_has_a_variable_and_one_rule_names_them() {
        let command = sluice_flags::with_variables(Cli::command(), VARIABLES);
        assert_eq!(sluice_flags::broken_rules(&command, VARIABLES), [""; 0]);
        // What the environment of a container sets is written out, so that it can be looked for.
        let run = Cli::command();
        let run = run.find_subcommand("run").expect("the command");
        let bare = run.get_arguments().find(|arg| arg.get_env().is_none());
        assert!(bare.is_none(), "{bare:?}");
    }

    #[test]
    fn run_is_what_happens_without_a_word() {
        for words in [
            &["sluice-dataplane", "--shards", "2"][..],
            &["sluice-dataplane", "run", "--shards", "2"],
        ] {
            let given = parse(words.iter().map(OsString::from)).expect("good arguments");
            let args = answer(&given).expect("run");
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
