//! The rule for names of environment variables: each flag has one, and nothing but the flag decides its name.
//!
//! Prefix of the program, words of the command (but `run`), the flag, in capitals: `sluicectl kick --client-id` has
//! `SLUICE_KICK_CLIENT_ID`. A flag that the program has without a command, too, has the same variable everywhere.

use std::collections::BTreeSet;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};

/// The command that a program without a command runs; its flags are the program's.
const RUN: &str = "run";

/// Gives every flag that has none its environment variable. Help does not list these: the rule says them all.
pub fn with_variables(command: Command, prefix: &str) -> Command {
    let shared: BTreeSet<String> = own_flags(&command).into_iter().collect();
    name_flags(command, prefix, &shared, true)
}

/// Flags whose variable breaks the rule, or that have none: for a test of each program.
pub fn broken_rules(command: &Command, prefix: &str) -> Vec<String> {
    let shared: BTreeSet<String> = own_flags(command).into_iter().collect();
    let rule = Rule {
        program: prefix,
        shared,
    };
    let mut broken = Vec::new();
    rule.look(command, prefix, true, &mut broken);
    broken
}

fn name_flags(command: Command, prefix: &str, shared: &BTreeSet<String>, is_top: bool) -> Command {
    let mut command = command;
    for id in own_flags(&command) {
        let is_elsewhere = !is_top && shared.contains(&id);
        command = command.mut_arg(&id, |arg| named(arg, prefix, is_elsewhere));
    }
    let subcommands: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in subcommands {
        let prefix = inner(prefix, &name);
        let is_run = is_top && name == RUN;
        command = command.mut_subcommand(name, |sub| name_flags(sub, &prefix, shared, is_run));
    }
    command
}

/// A flag that stands on the top level too takes its variable there: it would have more weight here than the flag has there.
fn named(arg: Arg, prefix: &str, is_elsewhere: bool) -> Arg {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let arg = if is_switch {
        arg.value_parser(BoolishValueParser::new())
    } else {
        arg
    };
    if is_elsewhere || arg.get_env().is_some() {
        return arg;
    }
    let name = arg.get_long().map(|long| variable(prefix, long));
    match name {
        Some(name) => arg.env(name).hide_env(true),
        None => arg,
    }
}

/// What the names of one program follow.
struct Rule<'a> {
    program: &'a str,
    /// Flags of the top level.
    shared: BTreeSet<String>,
}

impl Rule<'_> {
    fn look(&self, command: &Command, prefix: &str, is_top: bool, broken: &mut Vec<String>) {
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str();
            let Some(long) = arg.get_long().filter(|_| is_flag(arg)) else {
                continue;
            };
            let is_shared = self.shared.contains(id);
            let prefix = if is_shared { self.program } else { prefix };
            let expected = variable(prefix, long);
            let found = arg.get_env().map(|name| name.to_string_lossy());
            let is_right = match &found {
                Some(name) => *name == expected,
                None => !is_top && is_shared,
            };
            if !is_right {
                let found = found.as_deref().unwrap_or("no variable");
                broken.push(format!(
                    "{} --{long}: {found}, not {expected}",
                    command.get_name()
                ));
            }
        }
        for sub in command.get_subcommands() {
            let is_run = is_top && sub.get_name() == RUN;
            self.look(sub, &inner(prefix, sub.get_name()), is_run, broken);
        }
    }
}

/// Ids of the flags of this command.
fn own_flags(command: &Command) -> Vec<String> {
    let flags = command.get_arguments().filter(|arg| is_flag(arg));
    flags.map(|arg| arg.get_id().to_string()).collect()
}

/// What has a long form, but for help and version.
fn is_flag(arg: &Arg) -> bool {
    let is_answer = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    arg.get_long().is_some() && !is_answer
}

fn inner(prefix: &str, command: &str) -> String {
    match command {
        RUN => prefix.to_owned(),
        command => format!("{prefix}{}_", spelled(command)),
    }
}

fn variable(prefix: &str, long: &str) -> String {
    format!("{prefix}{}", spelled(long))
}

fn spelled(word: &str) -> String {
    word.replace('-', "_").to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let level = || Arg::new("level").long("log-level").env("P_LOG_LEVEL");
        let quiet = || Arg::new("quiet").long("quiet").action(ArgAction::SetTrue);
        let kick = Command::new("kick")
            .arg(Arg::new("id").long("client-id"))
            .arg(quiet())
            .arg(Arg::new("who"));
        let token = Command::new("token")
            .subcommand(Command::new("create").arg(Arg::new("role").long("role")));
        Command::new("p")
            .arg(level())
            .arg(quiet())
            .subcommand(Command::new("run").arg(level()).arg(quiet()))
            .subcommand(kick)
            .subcommand(token)
    }

    fn of(command: &Command, path: &[&str], id: &str) -> Option<String> {
        let mut at = command;
        for name in path {
            at = at.find_subcommand(name)?;
        }
        let arg = at.get_arguments().find(|arg| arg.get_id() == id)?;
        Some(arg.get_env()?.to_string_lossy().into_owned())
    }

    #[test]
    fn the_name_follows_from_the_flag() {
        let command = with_variables(program(), "P_");
        for (path, id, expected) in [
            (&[][..], "level", Some("P_LOG_LEVEL")),
            (&[], "quiet", Some("P_QUIET")),
            (&["run"], "quiet", Some("P_QUIET")),
            (&["kick"], "id", Some("P_KICK_CLIENT_ID")),
            (&["kick"], "quiet", None), // the program's own is heard
            (&["kick"], "who", None),   // no flag
            (&["token", "create"], "role", Some("P_TOKEN_CREATE_ROLE")),
        ] {
            assert_eq!(of(&command, path, id).as_deref(), expected, "{path:?} {id}");
        }
        assert_eq!(broken_rules(&command, "P_"), [""; 0]);
    }

    #[test]
    fn a_flag_without_a_variable_or_with_another_name_is_found() {
        assert_eq!(
            broken_rules(&program(), "P_").len(),
            4,
            "quiet twice, client-id, role"
        );
        let odd = Command::new("p").arg(Arg::new("level").long("log-level").env("P_LEVEL"));
        assert_eq!(
            broken_rules(&odd, "P_"),
            ["p --log-level: P_LEVEL, not P_LOG_LEVEL"]
        );
    }
}
