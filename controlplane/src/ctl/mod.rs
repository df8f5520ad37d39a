//! sluicectl: the operator's command line.
//!
//! A client of the operators' calls and nothing else: it knows the contract and the domain's words, the policy crate to
//! check documents here, and the store only to put a backup in its place. What can be decided without a connection
//! stands in functions of messages ([`wait`], [`render`]); the commands are thin.

mod access;
mod args;
mod connect;
mod denials;
mod doctor;
mod document;
mod failure;
mod fleet;
mod new_file;
mod operations;
mod out;
mod policy;
mod release;
mod render;
mod rules;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use sluice_flags::{Given, Unusable};

use args::{Cli, Command, Form, NodeCommand, TokenCommand, VARIABLES};
use connect::Connection;
use failure::{Exit, Failure};
use out::{Answer, Out};

/// Runs one command line, its own name first; the exit code is what `--help` says.
pub fn run(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    let given = match sluice_flags::parse::<Cli>(VARIABLES, words.iter().cloned()) {
        Ok(given) => given,
        Err(Unusable::Words(error)) => return ExitCode::from(misunderstood(&error, &words) as u8),
        Err(unusable) => return ExitCode::from(unusable.tell()),
    };
    let mut out = Out::new(given.cli.form());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let exit = match runtime {
        Ok(runtime) => runtime.block_on(finish(&given, &mut out)),
        Err(error) => out.failure(&Failure::usage(format!("cannot start: {error}"))),
    };
    ExitCode::from(exit as u8)
}

/// Help, the version, or what is wrong with the words.
fn misunderstood(error: &clap::Error, words: &[OsString]) -> Exit {
    if !error.use_stderr() {
        // Nobody to tell when standard output is gone.
        let _ = error.print();
        return Exit::Done;
    }
    // The words cannot be relied on to say the form, so any that asks for JSON counts.
    let is_json = words
        .windows(2)
        .any(|pair| pair[0] == "--output" && pair[1] == "json")
        || words.iter().any(|word| word == "--output=json");
    if is_json {
        let message = error.to_string();
        let message = message.trim_start_matches("error: ").trim_end();
        return Out::new(Form::Json).failure(&Failure::usage(message));
    }
    let _ = error.print();
    Exit::Usage
}

/// Runs the command to its end, or until Ctrl-C; files begun are removed either way.
async fn finish(given: &Given<Cli>, out: &mut Out) -> Exit {
    let ended = tokio::select! {
        ended = perform(given, out) => ended,
        Ok(()) = tokio::signal::ctrl_c() => {
            Err(Failure::new(Exit::Interrupted, "interrupted", "interrupted; what was asked may have been done"))
        }
    };
    match ended {
        Ok(exit) => exit,
        Err(failure) => out.failure(&failure),
    }
}

async fn perform(given: &Given<Cli>, out: &mut Out) -> Result<Exit, Failure> {
    let cli = &given.cli;
    let page = |code: u8| if code == 0 { Exit::Done } else { Exit::Usage };
    let answer = match &cli.command {
        Command::Restore(args) => operations::restore(args).await,
        Command::Doctor(args) => Ok(match &args.backup {
            Some(file) => doctor::examine_backup(file, out).await,
            None => doctor::examine(&cli.connection, out).await,
        }),
        Command::Validate(args) if args.offline || cli.connection.server.is_none() => {
            policy::validate_here(args)
        }
        Command::Validate(args) => policy::validate(&open(cli, out).await?, args).await,
        Command::Apply(args) => release::apply(&open(cli, out).await?, args, out).await,
        Command::Release(args) => release::release(&open(cli, out).await?, args, out).await,
        Command::Rollback(args) => release::rollback(&open(cli, out).await?, args, out).await,
        Command::Diff(args) => policy::diff(&open(cli, out).await?, args).await,
        Command::History(args) => policy::history(&open(cli, out).await?, args).await,
        Command::Explain(args) => policy::explain(&open(cli, out).await?, args).await,
        Command::Nodes(args) if args.watch => {
            return fleet::watch(&open(cli, out).await?, args, out).await;
        }
        Command::Nodes(args) => fleet::nodes(&open(cli, out).await?, args).await,
        Command::Sessions(args) => {
            return fleet::sessions(&open(cli, out).await?, args, out).await;
        }
        Command::Rules(args) => {
            return rules::rules(&open(cli, out).await?, args, out).await;
        }
        Command::Denials(args) => {
            return denials::denials(&open(cli, out).await?, args, out).await;
        }
        Command::Kick(args) => fleet::kick(&open(cli, out).await?, args).await,
        Command::Drain(args) => fleet::drain(&open(cli, out).await?, args).await,
        Command::Node(NodeCommand::Remove(args)) => {
            fleet::remove(&open(cli, out).await?, args).await
        }
        Command::Status(_) => operations::status(&open(cli, out).await?).await,
        Command::Audit(args) => operations::audit(&open(cli, out).await?, args).await,
        Command::Backup(args) => operations::backup(&open(cli, out).await?, args, out).await,
        Command::Token(command) => token(&open(cli, out).await?, command).await,
        Command::Completion(args) => {
            return Ok(page(
                args.answer(given.command.clone(), &mut std::io::stdout()),
            ));
        }
        Command::Man(args) => {
            return Ok(page(
                args.answer(given.command.clone(), &mut std::io::stdout()),
            ));
        }
    };
    Ok(out.answer(&answer?))
}

async fn open(cli: &Cli, out: &mut Out) -> Result<Connection, Failure> {
    Connection::open(&cli.connection, |warning| out.warn(warning)).await
}

async fn token(connection: &Connection, command: &TokenCommand) -> Result<Answer, Failure> {
    use args::JoinCommand::{Create, List, Revoke};
    match command {
        TokenCommand::Create(args) => access::create(connection, args).await,
        TokenCommand::List(_) => access::list(connection).await,
        TokenCommand::Revoke(args) => access::revoke(connection, args).await,
        TokenCommand::Join(Create(args)) => access::create_join(connection, args).await,
        TokenCommand::Join(List(_)) => access::list_joins(connection).await,
        TokenCommand::Join(Revoke(args)) => access::revoke_join(connection, args).await,
    }
}
