//! `config init|validate|show`: a file to begin with, what is wrong with the settings, and where each value comes from.
//!
//! Shows no secret: flags name files that hold secrets, never a secret itself, and of a URL the part before `@` is left out.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, Command, Subcommand, ValueEnum};
use serde_json::json;

use crate::file::{key_of, keys};
use crate::layers::{EXIT_USAGE, Given, Origin, complain};

/// Width of the comments in a new file.
const COMMENT_WIDTH: usize = 100;

/// The flags of a program that can have a file.
pub trait Settings: Args {
    /// Everything that is wrong with the settings as a whole.
    fn problems(&self) -> Vec<String>;
}

/// `config`.
#[derive(Subcommand, Clone, Debug)]
pub enum ConfigCommand<R: Settings> {
    /// Write a file with every setting at its default, each behind `#` and explained.
    Init(InitArgs),
    /// Check the settings as the program would find them: the file, the environment and the flags given here.
    Validate(Box<ValidateArgs<R>>),
    /// Show the value of every setting, and where it comes from.
    Show(Box<ShowArgs<R>>),
}

/// `config init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// The new file; one that exists is not overwritten [default: standard output]
    #[arg(value_name = "FILE")]
    path: Option<PathBuf>,
}

/// `config validate`.
#[derive(Args, Clone, Debug)]
pub struct ValidateArgs<R: Settings> {
    /// The settings.
    #[command(flatten)]
    run: R,
}

/// `config show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs<R: Settings> {
    /// The settings.
    #[command(flatten)]
    run: R,
    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How `config` ended.
#[derive(Debug)]
enum Answer {
    /// It was written.
    Done,
    /// The settings are wrong, and how was written.
    Wrong,
}

/// Why `config` could not answer.
#[derive(Debug)]
struct Trouble(String);

impl<R: Settings> ConfigCommand<R> {
    /// Answers on `out`, or says on standard error why it cannot; gives the exit code. `given` is the command line that
    /// asked.
    pub fn answer<C>(&self, given: &Given<C>, out: &mut impl Write) -> u8 {
        match self.try_answer(given, out) {
            Ok(Answer::Done) => 0,
            Ok(Answer::Wrong) => EXIT_USAGE,
            Err(Trouble(why)) => complain(&why),
        }
    }

    fn try_answer<C>(&self, given: &Given<C>, out: &mut impl Write) -> Result<Answer, Trouble> {
        match self {
            Self::Init(args) => args.write(&given.command, out),
            Self::Validate(args) => validate(given, &args.run.problems(), out),
            Self::Show(args) => show(given, args.output, out),
        }
    }
}

impl InitArgs {
    fn write(&self, command: &Command, out: &mut impl Write) -> Result<Answer, Trouble> {
        let text = template(command);
        match &self.path {
            None => out
                .write_all(text.as_bytes())
                .map_err(|error| unwritten(&error))?,
            Some(path) => {
                let file =
                    File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
                file.map_err(|error| Trouble(format!("{}: {error}", path.display())))?;
            }
        }
        Ok(Answer::Done)
    }
}

fn unwritten(error: &io::Error) -> Trouble {
    Trouble(format!("standard output: {error}"))
}

fn validate<C>(
    given: &Given<C>,
    problems: &[String],
    out: &mut impl Write,
) -> Result<Answer, Trouble> {
    let subject = match &given.file {
        Some(file) => file.path().display().to_string(),
        None => "settings".to_owned(),
    };
    for problem in problems {
        writeln!(out, "{subject}: error: {problem}").map_err(|error| unwritten(&error))?;
    }
    if problems.is_empty() {
        writeln!(out, "{subject}: fine").map_err(|error| unwritten(&error))?;
        return Ok(Answer::Done);
    }
    Ok(Answer::Wrong)
}

fn show<C>(given: &Given<C>, form: Form, out: &mut impl Write) -> Result<Answer, Trouble> {
    let rows = keys(&given.command).map(|arg| Row::new(given, arg));
    let rows: Vec<Row> = rows.collect();
    let text = match form {
        Form::Text => aligned(&rows, given),
        Form::Json => {
            let settings: Vec<_> = rows.iter().map(Row::json).collect();
            let file = given.file.as_ref().map(|file| file.path());
            format!("{:#}\n", json!({ "file": file, "settings": settings }))
        }
    };
    out.write_all(text.as_bytes())
        .map_err(|error| unwritten(&error))?;
    Ok(Answer::Done)
}

/// A setting as it is shown.
struct Row {
    key: String,
    value: Option<String>,
    origin: Origin,
}

impl Row {
    fn new<C>(given: &Given<C>, arg: &Arg) -> Self {
        let id = arg.get_id().as_str();
        Self {
            key: key_of(arg),
            value: given.value(id).map(|value| without_login(&value)),
            origin: given.origin(id),
        }
    }

    fn json(&self) -> serde_json::Value {
        let mut row = json!({ "key": self.key, "value": self.value });
        let (source, detail) = match &self.origin {
            Origin::Flag => ("flag", None),
            Origin::Variable(name) => ("environment", Some(("variable", json!(name)))),
            Origin::File(line) => ("file", Some(("line", json!(line)))),
            Origin::Default => ("default", None),
        };
        row["source"] = json!(source);
        if let Some((name, value)) = detail {
            row[name] = value;
        }
        row
    }
}

fn aligned<C>(rows: &[Row], given: &Given<C>) -> String {
    let value = |row: &Row| row.value.clone().unwrap_or_else(|| "-".to_owned());
    let keys = rows.iter().map(|row| row.key.len()).max().unwrap_or(0);
    let values = rows.iter().map(|row| value(row).chars().count()).max();
    let values = values.unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let origin = match &row.origin {
            Origin::Flag => "flag".to_owned(),
            Origin::Variable(name) => format!("environment: {name}"),
            Origin::File(line) => {
                let path = given
                    .file
                    .as_ref()
                    .map(|file| file.path().display().to_string());
                format!("file: {}:{line}", path.unwrap_or_default())
            }
            Origin::Default => "default".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:keys$}  {:values$}  {origin}", row.key, value(row));
    }
    text
}

/// A URL may have a user and a password before its host.
fn without_login(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return value.to_owned();
    };
    let host_ends = rest.find('/').unwrap_or(rest.len());
    match rest[..host_ends].rfind('@') {
        Some(at) => format!("{scheme}://...{}", &rest[at..]),
        None => value.to_owned(),
    }
}

/// Every setting at its default, explained, and commented out.
fn template(command: &Command) -> String {
    let name = command.get_name();
    let mut text = format!(
        "# Settings of {name}, read with --config FILE, in TOML. A flag goes before its environment variable, that before\n\
         # this file, and this file before the default. What stands behind `#` is the default, or an example where it has\n\
         # none. Secrets never stand here, only the names of files that hold them.\n"
    );
    for arg in keys(command) {
        text.push('\n');
        let help = arg.get_long_help().or_else(|| arg.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        for line in wrapped(&help) {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "# {} = {}", key_of(arg), example(arg));
    }
    text
}

fn wrapped(help: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in help.split_whitespace() {
        let line = lines.last_mut().map_or(0, |line| line.len());
        if line > 0 && line + word.len() >= COMMENT_WIDTH {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// The default, or the name of the value.
fn example(arg: &Arg) -> String {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return "false".to_owned();
    }
    let default = arg.get_default_values().first();
    let text = match default {
        Some(default) => default.to_string_lossy().into_owned(),
        None => {
            let names = arg.get_value_names().and_then(|names| names.first());
            names.map(ToString::to_string).unwrap_or_default()
        }
    };
    match text.parse::<i64>() {
        Ok(number) => number.to_string(),
        Err(_) => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests;
