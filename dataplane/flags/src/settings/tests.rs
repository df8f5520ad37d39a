//! A small program with a file: which value is heard, what is shown, what is wrong.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::Parser;

use super::*;
use crate::layers::{Unusable, parse};

#[derive(Args, Clone, Debug, PartialEq)]
struct Run {
    /// The file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How many. A second sentence, so long that the comment of the new file has to be wrapped into several lines of it.
    #[arg(long, value_name = "N", default_value_t = 4)]
    shards: u16,
    /// Where.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// From the environment of the test, which has it always.
    #[arg(long, env = "PATH", default_value = "none")]
    path: String,
    /// Of its own kind.
    #[arg(long)]
    bare: bool,
}

impl Settings for Run {
    fn problems(&self) -> Vec<String> {
        let is_odd = self.bare && self.server.is_some();
        is_odd
            .then(|| "--bare has no --server".to_owned())
            .into_iter()
            .collect()
    }
}

#[derive(Parser, Debug)]
#[command(name = "p", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<What>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand, Debug)]
enum What {
    Run(Run),
    #[command(subcommand)]
    Config(ConfigCommand<Run>),
}

fn given(words: &str, file: &Path) -> Result<Given<Cli>, Unusable> {
    let words = words.replace("FILE", &file.display().to_string());
    parse("SLUICE_FLAGS_TEST_", words.split(' ').map(OsString::from))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), text).expect("written");
    file
}

fn run_of(given: &Given<Cli>) -> &Run {
    match &given.cli.command {
        Some(What::Run(run)) => run,
        Some(What::Config(ConfigCommand::Show(args))) => &args.run,
        Some(What::Config(ConfigCommand::Validate(args))) => &args.run,
        Some(What::Config(ConfigCommand::Init(_))) | None => &given.cli.run,
    }
}

fn asked(words: &str, file: &Path) -> (String, bool) {
    let given = given(words, file).expect(words);
    let Some(What::Config(config)) = &given.cli.command else {
        panic!("{words}: another command");
    };
    let mut out = Vec::new();
    let answer = config.try_answer(&given, &mut out).expect("an answer");
    let text = String::from_utf8(out).expect("text");
    (text, matches!(answer, Answer::Done))
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let file = file("shards = 7\nserver = \"a\"\npath = \"from the file\"\nbare = true\n");
    for (words, shards, server, bare) in [
        ("p", 4, None, false),
        ("p --config FILE", 7, Some("a"), true),
        ("p run --config FILE", 7, Some("a"), true),
        ("p --config FILE --shards 9", 9, Some("a"), true),
        (
            "p run --shards 9 --server b --config FILE",
            9,
            Some("b"),
            true,
        ),
        ("p config show --shards 9 --config FILE", 9, Some("a"), true),
    ] {
        let given = given(words, file.path()).expect(words);
        let run = run_of(&given);
        assert_eq!(
            (run.shards, run.server.as_deref(), run.bare),
            (shards, server, bare),
            "{words}"
        );
        assert_eq!(
            Some(run.path.clone()),
            std::env::var("PATH").ok(),
            "{words}"
        );
    }
}

#[test]
fn it_is_shown_where_each_value_comes_from() {
    let file = file("# one\nshards = 7\npath = \"x\"\n");
    let words = "p config show --config FILE --server http://u:secret@h:1/p --output json";
    let (text, _) = asked(words, file.path());
    let shown: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(shown["file"], json!(file.path()));
    let path = std::env::var("PATH").expect("a path");
    assert_eq!(
        shown["settings"],
        json!([
            { "key": "shards", "value": "7", "source": "file", "line": 2 },
            { "key": "server", "value": "http://...@h:1/p", "source": "flag" },
            { "key": "path", "value": path, "source": "environment", "variable": "PATH" },
            { "key": "bare", "value": "false", "source": "default" },
        ])
    );
    let (text, _) = asked("p config show --config FILE", file.path());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4);
    let from_file = format!("file: {}:2", file.path().display());
    assert!(
        lines[0].starts_with("shards  7 ") && lines[0].ends_with(&from_file),
        "{text}"
    );
    assert!(
        lines[1].starts_with("server  - ") && lines[1].ends_with("  default"),
        "{text}"
    );
    let column = lines[0].find("file:");
    assert_eq!(lines[1].find("default"), column, "aligned: {text}");
}

#[test]
fn a_new_file_says_the_defaults_and_is_taken_as_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("p.toml");
    let (text, _) = asked("p config init", &path);
    assert!(
        text.lines()
            .all(|line| line.is_empty() || line.starts_with('#')),
        "{text}"
    );
    assert!(text.lines().all(|line| line.len() <= 125), "{text}");
    asked("p config init FILE", &path);
    assert_eq!(fs::read_to_string(&path).expect("a file"), text);
    let again = given("p config init FILE", &path).expect("words");
    let Some(What::Config(config)) = &again.cli.command else {
        panic!("another command");
    };
    let refused = config.try_answer(&again, &mut Vec::new());
    assert!(refused.is_err(), "what exists is not overwritten");
    // With the signs of comments taken from the keys it says the same.
    let keys = text
        .replace("# shards =", "shards =")
        .replace("# bare =", "bare =");
    fs::write(&path, keys).expect("written");
    let read = given("p --config FILE", &path).expect("the file is good");
    let plain = given("p", &path).expect("good words");
    assert_eq!(
        Run {
            config: None,
            ..run_of(&read).clone()
        },
        *run_of(&plain)
    );
}

#[test]
fn what_is_wrong_as_a_whole_is_found_before_a_start() {
    let odd = file("bare = true\nserver = \"a\"\n");
    let (text, is_fine) = asked("p config validate --config FILE", odd.path());
    let expected = format!("{}: error: --bare has no --server\n", odd.path().display());
    assert_eq!((text, is_fine), (expected, false));
    let good = file("bare = true\n");
    let (text, is_fine) = asked("p config validate --config FILE", good.path());
    assert_eq!(
        (text, is_fine),
        (format!("{}: fine\n", good.path().display()), true)
    );
    let wrong = file("shard = 2\n");
    let problems = match given("p --config FILE", wrong.path()) {
        Err(Unusable::File(problems)) => problems,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        problems[0].message,
        "`shard` is no key; did you mean `shards`?"
    );
    let missing = given("p --config FILE", Path::new("/nowhere/p.toml"));
    assert!(matches!(missing, Err(Unusable::File(_))));
}
