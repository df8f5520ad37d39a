//! The file for flags: TOML, one `key = value` for each flag, the key being the flag with `_` for `-`.
//!
//! Owns reading and checking: every mistake with its place, an unknown key with the key that was most likely meant. A
//! value is checked by the flag's own rules, as if it stood on the command line.

use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::CONFIG;

/// Longest file read; one with every key and many comments has a few KiB.
const BYTES_MAX: u64 = 1 << 20;
/// A key is suggested from this likeness on, as `clap` does it for flags.
const LIKENESS_MIN: f64 = 0.7;

/// What a file says, checked.
#[derive(Clone, Debug)]
pub struct FlagFile {
    path: PathBuf,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    id: String,
    value: String,
    line: usize,
}

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// Where: `FILE:LINE:COLUMN`, or the file alone.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

impl FlagFile {
    /// Reads the file for the flags of `command`, or says everything that is wrong with it.
    pub(crate) fn read(path: &Path, command: &Command) -> Result<Self, Vec<FileProblem>> {
        let text = text_of(path).map_err(|message| {
            vec![FileProblem {
                place: path.display().to_string(),
                message,
            }]
        })?;
        Self::parse(path, &text, command)
    }

    fn parse(path: &Path, text: &str, command: &Command) -> Result<Self, Vec<FileProblem>> {
        let problem = |span: Range<usize>, message: String| {
            let (line, column) = place(text, span.start);
            FileProblem {
                place: format!("{}:{line}:{column}", path.display()),
                message,
            }
        };
        let table = DeTable::parse(text).map_err(|error| {
            let message = error.message().to_owned();
            vec![problem(error.span().unwrap_or(0..0), message)]
        })?;
        let (mut entries, mut problems) = (Vec::new(), Vec::new());
        for (key, value) in table.get_ref() {
            match entry(command, key, value) {
                Ok((id, value)) => entries.push(Entry {
                    id,
                    value,
                    line: place(text, key.span().start).0,
                }),
                Err((span, message)) => problems.push((span.start, problem(span, message))),
            }
        }
        if problems.is_empty() {
            let path = path.to_owned();
            return Ok(Self { path, entries });
        }
        problems.sort_by_key(|(at, _)| *at);
        Err(problems.into_iter().map(|(_, problem)| problem).collect())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line that sets this flag.
    pub(crate) fn line_of(&self, id: &str) -> Option<usize> {
        let entry = self.entries.iter().find(|entry| entry.id == id);
        entry.map(|entry| entry.line)
    }

    /// Makes its values the defaults of every command that takes the file: flags and variables go before them.
    pub(crate) fn put_below(&self, command: Command) -> Command {
        let mut command = command;
        if takes_file(&command) {
            for entry in &self.entries {
                let value = entry.value.clone();
                command = command.mut_arg(&entry.id, |arg| arg.default_value(value));
            }
        }
        let subcommands: Vec<String> = command
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        for name in subcommands {
            command = command.mut_subcommand(name, |sub| self.put_below(sub));
        }
        command
    }
}

/// True exactly when the command has the flag that names the file.
pub(crate) fn takes_file(command: &Command) -> bool {
    command.get_arguments().any(|arg| *arg.get_id() == *CONFIG)
}

/// The flags that may stand in the file.
pub(crate) fn keys(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let is_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::SetTrue);
        is_value && arg.get_long().is_some() && *arg.get_id() != *CONFIG
    })
}

/// The key of a flag.
pub(crate) fn key_of(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().replace('-', "_")
}

type Misplaced = (Range<usize>, String);

fn entry(
    command: &Command,
    key: &Spanned<impl AsRef<str>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<(String, String), Misplaced> {
    let name = key.get_ref().as_ref();
    let arg = keys(command).find(|arg| key_of(arg) == name);
    let arg = arg.ok_or_else(|| (key.span(), unknown(command, name)))?;
    let wrong = |message: String| (value.span(), format!("{name}: {message}"));
    let text = plain(value.get_ref()).map_err(&wrong)?;
    check(arg, &text).map_err(&wrong)?;
    Ok((arg.get_id().to_string(), text))
}

fn unknown(command: &Command, name: &str) -> String {
    if name == CONFIG {
        return format!("`{CONFIG}` names this file; it cannot stand in it");
    }
    let likenesses = keys(command).map(|arg| {
        let key = key_of(arg);
        (strsim::jaro(name, &key), key)
    });
    let nearest = likenesses.max_by(|one, other| one.0.total_cmp(&other.0));
    match nearest {
        Some((likeness, key)) if likeness >= LIKENESS_MIN => {
            format!("`{name}` is no key; did you mean `{key}`?")
        }
        Some(_) | None => format!("`{name}` is no key; `config init` lists them"),
    }
}

/// The value as it would stand on the command line.
fn plain(value: &DeValue<'_>) -> Result<String, String> {
    let kind = match value {
        DeValue::String(text) => return Ok(text.to_string()),
        DeValue::Boolean(yes) => return Ok(yes.to_string()),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            return parsed
                .map(|number| number.to_string())
                .map_err(|_| "the number is too large".to_owned());
        }
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Err(format!(
        "expected text, a whole number, true or false, not {kind}"
    ))
}

/// Lets the flag judge the value, alone.
fn check(arg: &Arg, text: &str) -> Result<(), String> {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    if is_switch {
        return match text {
            "true" | "false" => Ok(()),
            _ => Err("expected true or false".to_owned()),
        };
    }
    let word = format!("--{}={text}", arg.get_long().unwrap_or_default());
    let alone = Command::new("check").no_binary_name(true).arg(arg.clone());
    match alone.try_get_matches_from([word]) {
        Ok(_) => Ok(()),
        Err(error) => Err(reason(&error)),
    }
}

/// What `clap` says, in one line, without how to use a program that is not meant.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim);
    let said: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    said.join(" ").trim_start_matches("error: ").to_owned()
}

fn text_of(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err("longer than 1 MiB: this is no file for flags".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())
}

/// Line and column, from 1, in characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    let column = before.get(begin..).unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use clap::builder::PossibleValuesParser;
    use clap::value_parser;

    use super::*;

    fn command() -> Command {
        Command::new("p")
            .arg(Arg::new(CONFIG).long(CONFIG))
            .arg(
                Arg::new("shards")
                    .long("shards")
                    .value_parser(value_parser!(u8).range(1..)),
            )
            .arg(
                Arg::new("engine")
                    .long("engine")
                    .value_parser(PossibleValuesParser::new(["auto", "epoll"])),
            )
            .arg(Arg::new("level").long("log-level"))
            .arg(Arg::new("bare").long("bare").action(ArgAction::SetTrue))
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        for (text, expected) in [
            ("shards = 4\nlog_level = \"info\"\nbare = true", &[][..]),
            ("", &[]),
            (
                "shards = 4\n  log-level = \"info\"",
                &["f:2:3: `log-level` is no key; did you mean `log_level`?"],
            ),
            (
                "color = 1",
                &["f:1:1: `color` is no key; `config init` lists them"],
            ),
            (
                "config = 'x'",
                &["f:1:1: `config` names this file; it cannot stand in it"],
            ),
            (
                "bare = 1\nshards = 0\nlog_level = [\"a\"]",
                &[
                    "f:1:8: bare: expected true or false",
                    "f:2:10: shards: invalid value '0' for '--shards <shards>': 0 is not in 1..=255",
                    "f:3:13: log_level: expected text, a whole number, true or false, not a list",
                ],
            ),
            (
                "engine = \"kqueue\"",
                &[
                    "f:1:10: engine: invalid value 'kqueue' for '--engine <engine>' [possible values: auto, epoll]",
                ],
            ),
            (
                "[server]\nshards = 1",
                &["f:1:2: `server` is no key; `config init` lists them"],
            ),
        ] {
            let told = match FlagFile::parse(Path::new("f"), text, &command()) {
                Ok(_) => Vec::new(),
                Err(problems) => problems,
            };
            let told: Vec<String> = told
                .iter()
                .map(|problem| format!("{}: {}", problem.place, problem.message))
                .collect();
            assert_eq!(told, expected, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_told_with_its_place() {
        for (text, place) in [("shards 4", "f:1:8"), ("a = 1\na = 2", "f:2:1")] {
            let problems = FlagFile::parse(Path::new("f"), text, &command()).expect_err(text);
            assert_eq!(problems[0].place, place, "{text:?} {problems:?}");
        }
    }
}
