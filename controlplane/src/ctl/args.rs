//! The words of the command line: what can be asked, with which flags. Owns parsing and help; does nothing.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_flags::{CompletionArgs, ManArgs};

use crate::domain::Role;

/// Where the control plane is looked for: on [`PORT`](crate::domain::PORT) of this machine.
pub(super) const SERVER_DEFAULT: &str = "http://127.0.0.1:7443";

/// What the names of environment variables begin with.
pub(super) const VARIABLES: &str = "SLUICE_";

const EXAMPLES: &str = "\
Examples:
  sluicectl validate -f policy.yaml                      every error with file, line and column; needs no server
  sluicectl diff -f policy.yaml                          what it would change
  sluicectl apply -f policy.yaml --release --wait        make it a generation, release it, wait for every node
  sluicectl rollback --wait                              back to what was in force before
  sluicectl explain --user ann --client-id ann publish site/7/temperature
  sluicectl token create ci --role operator --output-file ci.token
  sluicectl doctor                                       what is wrong between here and the nodes, and what to do
  sluicectl completion bash > /etc/bash_completion.d/sluicectl

Every flag has an environment variable, which it goes before: SLUICE_, the words of the command, the flag. So --ca has
SLUICE_CA, and --client-id of `kick` has SLUICE_KICK_CLIENT_ID.

The token is read from --token-file (SLUICE_TOKEN_FILE) or from SLUICE_TOKEN; it is never an argument, because arguments
can be read by every user of the machine.

Exit codes:
  0  done; with --wait: every shard of every connected, selected node judges by the generation
  1  the policy document is wrong, or a node rejected the generation
  2  the command is wrong, or a local file cannot be read or written
  3  done, but some node is offline, could not be asked, or was not ready within --timeout
  4  someone else was first: look at `sluicectl history` and try again
  5  the control plane cannot be reached, or it does not let this token in
  6  the control plane says no for another reason; the message says which
  130  interrupted";

/// The operator's command line of Sluice: policy, releases, nodes, access.
#[derive(Parser, Debug)]
#[command(name = "sluicectl", version, after_help = EXAMPLES)]
pub(super) struct Cli {
    /// How to reach the control plane.
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// Form of the answer; errors too. May stand after the command as well (not for `backup`, where it names the file).
    #[arg(long = "output", value_enum, value_name = "text|json")]
    form: Option<Form>,
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How to reach the control plane, and as whom.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(super) struct ConnectionArgs {
    /// Address of the control plane [default: http://127.0.0.1:7443]
    #[arg(long, global = true, env = "SLUICE_SERVER", value_name = "URL")]
    pub(super) server: Option<String>,
    /// File with the token, readable by its owner only
    #[arg(
        long,
        global = true,
        env = "SLUICE_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) token_file: Option<PathBuf>,
    /// Certificates that the server's must come from (PEM); required for https
    #[arg(long, global = true, env = "SLUICE_CA", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// Certificate to show to the server (PEM), with --key
    #[arg(long, global = true, value_name = "FILE", requires = "key")]
    pub(super) cert: Option<PathBuf>,
    /// Key of --cert (PEM)
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,
    /// Name that the server's certificate must have, if not the one in --server
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) domain: Option<String>,
    /// How long connecting may take
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(super) connect_timeout: Duration,
    /// How long an answer may take; a document and its trial compilation have ten times as long
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(super) call_timeout: Duration,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// For people.
    #[default]
    Text,
    /// For programs: one document on standard output.
    Json,
}

/// `--output` after the command.
#[derive(Args, Clone, Debug)]
pub(super) struct FormArg {
    /// Form of the answer; errors too [default: text]
    #[arg(long = "output", value_enum, value_name = "text|json")]
    form: Option<Form>,
}

/// What can be asked.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Make a generation from a policy document; with --release, bring it into force.
    Apply(ApplyArgs),
    /// Check a policy document: every error with file, line and column. Without a server, or with --offline, here.
    Validate(ValidateArgs),
    /// Show what a document, or one generation against another, would change.
    Diff(DiffArgs),
    /// Bring a generation into force.
    Release(ReleaseArgs),
    /// Bring back the rows of an earlier generation, as a new one.
    Rollback(RollbackArgs),
    /// List generations, newest first.
    History(HistoryArgs),
    /// Say what a generation decides about one request, by which rule, and which rules were passed over.
    Explain(Box<ExplainArgs>),
    /// Show every node: what it should have, what it has, how it is.
    Nodes(NodesArgs),
    /// List open sessions.
    Sessions(SessionsArgs),
    /// Show how often each rule in force decided, added up over shards and nodes.
    Rules(RulesArgs),
    /// Say why devices were refused: recent refusals of the nodes, with who, what, rule and reason.
    Denials(DenialsArgs),
    /// End sessions of a client id or a user.
    Kick(KickArgs),
    /// Take a node out of service, or back into it; a node that restarts is back in service.
    Drain(DrainArgs),
    /// Manage the membership of nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show the control plane in one look.
    Status(StatusArgs),
    /// Check everything between here and the nodes, step by step, and say what to do.
    Doctor(DoctorArgs),
    /// Manage tokens of operators, and with `join` those with which nodes become members.
    #[command(subcommand)]
    Token(TokenCommand),
    /// List who did what, newest first.
    Audit(AuditArgs),
    /// Copy the store into a file while it is used. The file holds password hashes: keep it as you keep the store.
    Backup(BackupArgs),
    /// Put a backup in place of a store. The control plane must be stopped.
    Restore(RestoreArgs),
    /// Print the script by which a shell completes commands and flags.
    Completion(CompletionArgs),
    /// Print the man page, or write all pages into a folder.
    Man(ManArgs),
}

/// Waiting for nodes, the same for `apply`, `release` and `rollback`.
#[derive(Args, Clone, Debug)]
pub(super) struct WaitArgs {
    /// Wait until every shard of every connected node judges by it; nodes that are offline are listed
    #[arg(long)]
    pub(super) wait: bool,
    /// How long to wait; then exit 3
    #[arg(long, requires = "wait", value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(super) timeout: Duration,
    /// Wait for these nodes only (repeat, or separate with commas)
    #[arg(
        long = "node",
        requires = "wait",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub(super) nodes: Vec<String>,
}

/// `apply`.
#[derive(Args, Debug)]
pub(super) struct ApplyArgs {
    /// The document; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Refuse unless this is the newest generation (0: none) [default: what is newest when the command starts]
    #[arg(long, value_name = "N")]
    pub(super) expect: Option<u64>,
    /// Why, for history and audit
    #[arg(long, value_name = "TEXT")]
    pub(super) comment: Option<String>,
    /// Bring it into force at once
    #[arg(long)]
    pub(super) release: bool,
    /// See [`WaitArgs`].
    #[command(flatten)]
    pub(super) wait: WaitArgs,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `validate`.
#[derive(Args, Debug)]
pub(super) struct ValidateArgs {
    /// The document; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Ask no server, even if one is given
    #[arg(long)]
    pub(super) offline: bool,
    /// Warnings are errors: exit code 1
    #[arg(long)]
    pub(super) strict: bool,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `diff`.
#[derive(Args, Debug)]
#[command(override_usage = "sluicectl diff -f FILE [--from N]\n       sluicectl diff [FROM] TO")]
pub(super) struct DiffArgs {
    /// The document; `-` reads standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "generations")]
    pub(super) file: Option<PathBuf>,
    /// With -f: what to compare with [default: what is in force]
    #[arg(long, value_name = "N", conflicts_with = "generations")]
    pub(super) from: Option<u64>,
    /// One number: what is in force against it. Two: the first against the second
    #[arg(value_name = "GENERATION", num_args = 1..=2, required_unless_present = "file")]
    pub(super) generations: Vec<u64>,
    /// Changes listed at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) limit: u32,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `release`.
#[derive(Args, Debug)]
pub(super) struct ReleaseArgs {
    /// Which. With --wait, one that is in force already is only waited for
    #[arg(value_name = "GENERATION", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) generation: u64,
    /// Refuse unless this is in force (0: nothing) [default: what is in force when the command starts]
    #[arg(long, value_name = "N")]
    pub(super) expect: Option<u64>,
    /// Why, for history and audit
    #[arg(long, value_name = "TEXT")]
    pub(super) comment: Option<String>,
    /// See [`WaitArgs`].
    #[command(flatten)]
    pub(super) wait: WaitArgs,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `rollback`.
#[derive(Args, Debug)]
pub(super) struct RollbackArgs {
    /// Whose rows [default: what was in force before the present one]
    #[arg(value_name = "GENERATION", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) generation: Option<u64>,
    /// The same: go back to this generation
    #[arg(long, value_name = "N", conflicts_with = "generation", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) to: Option<u64>,
    /// Do not ask when what is in force is a rollback itself, so that this one brings back what was just left
    #[arg(long)]
    pub(super) yes: bool,
    /// Refuse unless this is in force [default: what is in force when the command starts]
    #[arg(long, value_name = "N")]
    pub(super) expect: Option<u64>,
    /// Why, for history and audit
    #[arg(long, value_name = "TEXT")]
    pub(super) comment: Option<String>,
    /// See [`WaitArgs`].
    #[command(flatten)]
    pub(super) wait: WaitArgs,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `history`.
#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    /// Only generations with a lower number
    #[arg(long, value_name = "N")]
    pub(super) before: Option<u64>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) limit: u32,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `explain`.
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    /// The generation [default: what is in force]
    #[arg(long, value_name = "N")]
    pub(super) generation: Option<u64>,
    /// The verified user name; without it the client is anonymous
    #[arg(long)]
    pub(super) user: Option<String>,
    /// The client id
    #[arg(long, default_value = "")]
    pub(super) client_id: String,
    /// The client's address
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(super) address: IpAddr,
    /// The listener's name; may be left out when the policy has one only
    #[arg(long)]
    pub(super) listener: Option<String>,
    /// The protocol version
    #[arg(long, value_enum, default_value_t = ProtocolVersion::V5)]
    pub(super) version: ProtocolVersion,
    /// QoS of the message or subscription
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=2))]
    pub(super) qos: u32,
    /// The message has RETAIN set
    #[arg(long)]
    pub(super) retain: bool,
    /// Length of the payload
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) payload_bytes: u32,
    /// What the client wants to do
    #[arg(value_enum)]
    pub(super) action: ActionName,
    /// The topic, or the filter of a subscription
    #[arg(required_if_eq_any([("action", "publish"), ("action", "subscribe"), ("action", "receive")]))]
    pub(super) topic: Option<String>,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// What a client can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ActionName {
    /// Open a session.
    Connect,
    /// Send a message.
    Publish,
    /// Ask for messages.
    Subscribe,
    /// Be sent a message.
    Receive,
}

impl ActionName {
    /// As the call spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Receive => "receive",
        }
    }
}

/// Versions of MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ProtocolVersion {
    /// 3.1.
    #[value(name = "3.1")]
    V31,
    /// 3.1.1.
    #[value(name = "3.1.1", alias = "4")]
    V311,
    /// 5.
    #[value(name = "5", alias = "5.0")]
    V5,
}

impl ProtocolVersion {
    /// As the call spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V31 => "3.1",
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        }
    }
}

/// `nodes`.
#[derive(Args, Debug)]
pub(super) struct NodesArgs {
    /// Only these [default: all]
    #[arg(value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Go on, and show them again whenever something changed; in JSON one document on each line
    #[arg(long)]
    pub(super) watch: bool,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `sessions`.
#[derive(Args, Debug)]
pub(super) struct SessionsArgs {
    /// Only of this node
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// Only of this client id
    #[arg(long, value_name = "ID")]
    pub(super) client_id: Option<String>,
    /// Only of this verified user
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// At most so many [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `rules`.
#[derive(Args, Debug)]
pub(super) struct RulesArgs {
    /// Only rules that decided nothing; in shadow: that would have decided nothing
    #[arg(long)]
    pub(super) unused: bool,
    /// Only rules in shadow
    #[arg(long)]
    pub(super) shadow: bool,
    /// Only what this node counted
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// At most so many [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `denials`.
#[derive(Args, Debug)]
pub(super) struct DenialsArgs {
    /// Go on, and show further ones as they come; in JSON one document on each line
    #[arg(long)]
    pub(super) follow: bool,
    /// Only of this node
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// Only of this user, verified or claimed; a name that is not shown is found too
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Only of this client id
    #[arg(long, value_name = "ID")]
    pub(super) client_id: Option<String>,
    /// Only from this address
    #[arg(long, value_name = "IP")]
    pub(super) address: Option<IpAddr>,
    /// Only for this reason, such as no_rule, or for this kind of reasons: rules, too_large, credentials, client_id, limits,
    /// protocol, operator, upstream
    #[arg(long, value_name = "REASON")]
    pub(super) reason: Option<String>,
    /// At most so many of those there are, 1 to 500 [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(super) limit: Option<u32>,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `kick`.
#[derive(Args, Debug)]
pub(super) struct KickArgs {
    /// Whose sessions.
    #[command(flatten)]
    pub(super) who: Whose,
    /// Only on this node
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// Keep the client out for so long, too, at most 30d: its CONNECT is refused as banned (MQTT 5: 0x8a, below: 5). Nodes that
    /// restart forget it, nodes that connect later do not know it. 0s lets it in again
    #[arg(long, value_name = "DURATION", value_parser = keep_out)]
    pub(super) keep_out: Option<Duration>,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// Whose sessions `kick` ends; one of them.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Whose {
    /// The session with this client id
    #[arg(long, value_name = "ID")]
    pub(super) client_id: Option<String>,
    /// All sessions of this verified user
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
}

/// `drain`.
#[derive(Args, Debug)]
pub(super) struct DrainArgs {
    /// Which node
    #[arg(value_name = "NODE")]
    pub(super) node: String,
    /// By when all sessions are ended; 0s: at once [default: the node's own setting]
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "undo")]
    pub(super) within: Option<Duration>,
    /// Back into service; what was ended stays ended
    #[arg(long)]
    pub(super) undo: bool,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `node`.
#[derive(Subcommand, Debug)]
pub(super) enum NodeCommand {
    /// End a node's membership: its secret is worth nothing from now on. It goes on with what it has.
    Remove(RemoveArgs),
}

/// `node remove`.
#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    /// Which node
    #[arg(value_name = "NODE")]
    pub(super) node: String,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `status`.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `doctor`.
#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// Look at this backup instead, without a server: its tables, its audit log, and the policy in force
    #[arg(long, value_name = "FILE")]
    pub(super) backup: Option<PathBuf>,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `token`.
#[derive(Subcommand, Debug)]
pub(super) enum TokenCommand {
    /// Make a token for an operator or a program.
    Create(TokenCreateArgs),
    /// List them, also revoked ones. Secrets are not kept and not shown.
    List(TokenListArgs),
    /// Make one worthless from now on.
    Revoke(TokenRevokeArgs),
    /// Manage the tokens with which nodes become members.
    #[command(subcommand)]
    Join(JoinCommand),
}

/// `token join`.
#[derive(Subcommand, Debug)]
pub(super) enum JoinCommand {
    /// Make one.
    Create(JoinCreateArgs),
    /// List them, newest first.
    List(TokenListArgs),
    /// Make one worthless; nodes that have joined stay members.
    Revoke(TokenRevokeArgs),
}

/// Where a new secret goes; it is shown once.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct SecretTo {
    /// Write the secret to this new file, readable by its owner only
    #[arg(long, value_name = "FILE")]
    pub(super) output_file: Option<PathBuf>,
    /// Print the secret to standard output
    #[arg(long)]
    pub(super) print: bool,
}

/// `token create`.
#[derive(Args, Debug)]
pub(super) struct TokenCreateArgs {
    /// Stands in audit as who: 1 to 64 letters, digits, `-`, `_`, `.`
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// What it may do; each role may do all that those before may
    #[arg(long, value_name = "viewer|auditor|operator|admin", value_parser = role)]
    pub(super) role: Role,
    /// How long it works, at least a second [default: until revoked]
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    pub(super) lifetime: Option<Duration>,
    /// See [`SecretTo`].
    #[command(flatten)]
    pub(super) secret: SecretTo,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `token list` and `token join list`.
#[derive(Args, Debug)]
pub(super) struct TokenListArgs {
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `token revoke` and `token join revoke`.
#[derive(Args, Debug)]
pub(super) struct TokenRevokeArgs {
    /// Its id, as `list` shows it
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `token join create`.
#[derive(Args, Debug)]
pub(super) struct JoinCreateArgs {
    /// Only for the node of this name [default: any that is not a member]
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// How many nodes may join with it [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "node")]
    pub(super) uses: Option<u32>,
    /// How long it works, at least a second [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    pub(super) lifetime: Option<Duration>,
    /// See [`SecretTo`].
    #[command(flatten)]
    pub(super) secret: SecretTo,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `audit`.
#[derive(Args, Debug)]
pub(super) struct AuditArgs {
    /// Only records with a lower number
    #[arg(long, value_name = "N")]
    pub(super) before: Option<u64>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) limit: u32,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

/// `backup`.
#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    /// The new file, readable by its owner only; one that exists is not overwritten
    #[arg(long, value_name = "FILE")]
    pub(super) output: PathBuf,
}

/// `restore`.
#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The backup
    #[arg(long, value_name = "FILE")]
    pub(super) input: PathBuf,
    /// Directory of the control plane's data
    #[arg(long, env = "SLUICE_CONTROL_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: PathBuf,
    /// Replace the store that is there
    #[arg(long)]
    pub(super) force: bool,
    /// See [`FormArg`].
    #[command(flatten)]
    pub(super) form: FormArg,
}

impl Cli {
    /// The form of the answer, wherever it was said; what stands nearer to the command wins.
    pub(super) fn form(&self) -> Form {
        let nearer = match &self.command {
            Command::Apply(args) => args.form.form,
            Command::Validate(args) => args.form.form,
            Command::Diff(args) => args.form.form,
            Command::Release(args) => args.form.form,
            Command::Rollback(args) => args.form.form,
            Command::History(args) => args.form.form,
            Command::Explain(args) => args.form.form,
            Command::Nodes(args) => args.form.form,
            Command::Sessions(args) => args.form.form,
            Command::Rules(args) => args.form.form,
            Command::Denials(args) => args.form.form,
            Command::Kick(args) => args.form.form,
            Command::Drain(args) => args.form.form,
            Command::Node(NodeCommand::Remove(args)) => args.form.form,
            Command::Status(args) => args.form.form,
            Command::Doctor(args) => args.form.form,
            Command::Token(command) => command.form(),
            Command::Audit(args) => args.form.form,
            Command::Backup(_) | Command::Completion(_) | Command::Man(_) => None,
            Command::Restore(args) => args.form.form,
        };
        nearer.or(self.form).unwrap_or_default()
    }
}

impl TokenCommand {
    fn form(&self) -> Option<Form> {
        match self {
            Self::Create(args) => args.form.form,
            Self::List(args) | Self::Join(JoinCommand::List(args)) => args.form.form,
            Self::Revoke(args) | Self::Join(JoinCommand::Revoke(args)) => args.form.form,
            Self::Join(JoinCommand::Create(args)) => args.form.form,
        }
    }
}

/// `500ms`, `30s`, `5m`, `2h`, `7d`. A number alone is refused: it does not say of what.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write `500ms`, `30s`, `5m`, `2h` or `7d`");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let count: u64 = count.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    // A hundred years: longer is a slip of the finger, and would overflow what counts in it.
    const MILLIS_MAX: u64 = 100 * 365 * 86_400_000;
    match count.checked_mul(millis) {
        Some(millis) if millis <= MILLIS_MAX => Ok(Duration::from_millis(millis)),
        _ => Err(format!("`{text}` is longer than a hundred years")),
    }
}

/// A duration of at least a second, whole seconds.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = duration(text)?;
    if lifetime.is_zero() || lifetime.subsec_millis() != 0 {
        return Err(format!(
            "`{text}` is not a whole number of seconds, at least one"
        ));
    }
    Ok(lifetime)
}

/// A duration of at most 30 days.
fn keep_out(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time > Duration::from_secs(30 * 86_400) {
        return Err(format!("`{text}` is longer than 30d"));
    }
    Ok(time)
}

fn role(text: &str) -> Result<Role, String> {
    let found = Role::ALL.into_iter().find(|role| role.name() == text);
    found.ok_or_else(|| format!("`{text}` is no role: viewer, auditor, operator or admin"))
}

#[cfg(test)]
mod tests;
