//! `completion` and `man`: what a shell and a reader of manuals need, made from the command line itself.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::layers::complain;

/// `completion`.
#[derive(Args, Clone, Debug)]
pub struct CompletionArgs {
    /// For which shell; the script goes to standard output
    #[arg(value_enum)]
    shell: Shell,
}

/// `man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Write a page for the program and one for each command into this folder, which is made where it is missing
    /// [default: the program's page to standard output]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl CompletionArgs {
    /// Writes the script; gives the exit code.
    pub fn answer(&self, mut command: Command, out: &mut impl Write) -> u8 {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        told(out.write_all(&script))
    }
}

impl ManArgs {
    /// Writes the page, or the pages; gives the exit code.
    pub fn answer(&self, command: Command, out: &mut impl Write) -> u8 {
        told(match &self.dir {
            None => clap_mangen::Man::new(command).render(out),
            Some(dir) => {
                fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir))
            }
        })
    }
}

fn told(written: io::Result<()>) -> u8 {
    match written {
        Ok(()) => 0,
        // A reader that closed its end early (`| head`) has what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => complain(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(name = "p", about = "Does things.")]
    struct Cli {
        /// How many.
        #[arg(long)]
        shards: Option<u16>,
        #[command(subcommand)]
        command: What,
    }

    #[derive(clap::Subcommand)]
    enum What {
        /// The script.
        Completion(CompletionArgs),
        /// The pages.
        Man(ManArgs),
    }

    fn asked(words: &[&str]) -> (u8, String) {
        use clap::CommandFactory as _;
        let cli = Cli::try_parse_from([&["p"], words].concat()).expect("good words");
        let mut out = Vec::new();
        let code = match cli.command {
            What::Completion(args) => args.answer(Cli::command(), &mut out),
            What::Man(args) => args.answer(Cli::command(), &mut out),
        };
        (code, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn each_shell_gets_a_script_that_knows_flags_and_commands() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let (code, script) = asked(&["completion", shell]);
            assert_eq!(code, 0);
            for word in ["shards", "completion", "man"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn there_is_a_page_for_the_program_and_each_command() {
        let (code, page) = asked(&["man"]);
        assert_eq!(code, 0);
        assert!(
            page.contains(".TH p 1") && page.contains("How many"),
            "{page}"
        );
        let dir = tempfile::tempdir().expect("a folder");
        let inner = dir.path().join("man1");
        let (code, page) = asked(&["man", "--dir", inner.to_str().expect("text")]);
        assert_eq!((code, &*page), (0, ""));
        let mut names: Vec<String> = fs::read_dir(&inner)
            .expect("made")
            .map(|entry| {
                entry
                    .expect("listed")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        assert_eq!(names, ["p-completion.1", "p-man.1", "p.1"]);
        let file = inner.join("p.1").join("below a file");
        let (code, _) = asked(&["man", "--dir", file.to_str().expect("text")]);
        assert_eq!(code, 2);
    }
}
