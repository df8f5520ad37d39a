//! Where a value comes from: the command line, else the environment, else the file, else the flag's default.
//!
//! Owns the order. The words are read twice: once to learn which file is named, and once with its values as defaults.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::CONFIG;
use crate::file::{FileProblem, FlagFile, takes_file};
use crate::variables::with_variables;

/// Exit code: the command line, the environment or the file is wrong.
pub const EXIT_USAGE: u8 = 2;

/// A command line that was understood, with all that was said where.
#[derive(Debug)]
pub struct Given<C> {
    /// What is asked.
    pub cli: C,
    /// The whole command, variables included: for help, completion and man pages.
    pub command: Command,
    /// What was said for the command that was chosen.
    pub(crate) matches: ArgMatches,
    /// The file that was read.
    pub file: Option<FlagFile>,
}

/// A command line that cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// The words are wrong, or ask for help or the version.
    Words(clap::Error),
    /// The file is.
    File(Vec<FileProblem>),
}

/// Says on standard error why a command cannot be carried out; gives the exit code.
pub(crate) fn complain(why: &str) -> u8 {
    // Where nothing can be printed, there is no one to tell.
    let _ = writeln!(std::io::stderr(), "error: {why}");
    EXIT_USAGE
}

impl Unusable {
    /// Says what is wrong on standard error, or what was asked for on standard output; gives the exit code.
    pub fn tell(&self) -> u8 {
        match self {
            Self::Words(error) => {
                // Where nothing can be printed, there is no one to tell.
                let _ = error.print();
                u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE)
            }
            Self::File(problems) => {
                for problem in problems {
                    complain(&format!("{}: {}", problem.place, problem.message));
                }
                EXIT_USAGE
            }
        }
    }
}

/// Reads the words of a program, its own name first.
pub fn parse<C: CommandFactory + FromArgMatches>(
    prefix: &str,
    words: impl IntoIterator<Item = OsString>,
) -> Result<Given<C>, Unusable> {
    let words: Vec<OsString> = words.into_iter().collect();
    let command = with_variables(C::command(), prefix);
    let read = |command: Command| {
        command
            .try_get_matches_from(&words)
            .map_err(Unusable::Words)
    };
    let mut matches = read(command.clone())?;
    let mut file = None;
    if let Some(path) = file_named(&command, &matches) {
        let found = FlagFile::read(&path, &command).map_err(Unusable::File)?;
        matches = read(found.put_below(command.clone()))?;
        file = Some(found);
    }
    let cli = C::from_arg_matches(&matches)
        .map_err(|error| Unusable::Words(error.format(&mut command.clone())))?;
    Ok(Given {
        cli,
        command,
        matches: innermost(&matches).clone(),
        file,
    })
}

/// The file that the chosen command was given, if it takes one. Its keys are the flags of the program.
fn file_named(command: &Command, matches: &ArgMatches) -> Option<PathBuf> {
    if !takes_file(command) {
        return None;
    }
    let path = innermost(matches).try_get_one::<PathBuf>(CONFIG);
    path.ok().flatten().cloned()
}

fn innermost(matches: &ArgMatches) -> &ArgMatches {
    match matches.subcommand() {
        Some((_, inner)) => innermost(inner),
        None => matches,
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// The environment, by the name of the variable.
    Variable(String),
    /// The file, by its line.
    File(usize),
    /// Nobody said anything.
    Default,
}

impl<C> Given<C> {
    /// Where the value of this flag comes from.
    pub(crate) fn origin(&self, id: &str) -> Origin {
        let line = || self.file.as_ref().and_then(|file| file.line_of(id));
        match self.matches.value_source(id) {
            Some(ValueSource::CommandLine) => Origin::Flag,
            Some(ValueSource::EnvVariable) => {
                let mut arguments = self.command.get_arguments();
                let arg = arguments.find(|arg| *arg.get_id() == *id);
                let name = arg.and_then(clap::Arg::get_env);
                let name = name.map(|name| name.to_string_lossy().into_owned());
                Origin::Variable(name.unwrap_or_default())
            }
            Some(_) => line().map_or(Origin::Default, Origin::File),
            None => Origin::Default,
        }
    }

    /// The value as it was written; `None`: not set.
    pub(crate) fn value(&self, id: &str) -> Option<String> {
        let raw = self.matches.try_get_raw(id).ok().flatten()?;
        let values: Vec<_> = raw.map(|value| value.to_string_lossy()).collect();
        Some(values.join(","))
    }
}
