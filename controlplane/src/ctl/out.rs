//! Where answers go: standard output in the form asked for; progress and warnings on standard error.
//!
//! A reader that closes its end early (`| head`) has what it wanted: that is no failure.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use super::args::Form;
use super::failure::{Exit, Failure};
use super::render;

/// What a command has to say, in both forms, and how it ends.
#[derive(Debug)]
pub(super) struct Answer {
    /// For people; lines, each with its end.
    pub(super) text: String,
    /// For programs.
    pub(super) json: Value,
    /// Exit code.
    pub(super) exit: Exit,
}

impl Answer {
    /// One that was done.
    pub(super) fn done(text: String, json: Value) -> Self {
        Self {
            text,
            json,
            exit: Exit::Done,
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Out {
    form: Form,
    is_terminal: bool,
    /// Length of the line of progress that stands on the terminal.
    progress_len: usize,
}

impl Out {
    /// In this form.
    pub(super) fn new(form: Form) -> Self {
        Self {
            form,
            is_terminal: std::io::stderr().is_terminal(),
            progress_len: 0,
        }
    }

    /// The form asked for.
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Prints an answer.
    pub(super) fn answer(&mut self, answer: &Answer) -> Exit {
        self.end_progress();
        match self.form {
            Form::Text => self.print(&answer.text),
            Form::Json => self.print(&format!("{:#}\n", answer.json)),
        };
        answer.exit
    }

    /// Prints why there is no answer.
    pub(super) fn failure(&mut self, failure: &Failure) -> Exit {
        self.end_progress();
        match self.form {
            Form::Text => self.complain(&failure.text()),
            Form::Json => {
                self.print(&format!("{:#}\n", failure.json()));
            }
        }
        failure.exit
    }

    /// A piece of a long answer. False: nobody reads on.
    pub(super) fn print(&mut self, text: &str) -> bool {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .is_ok()
    }

    /// Something to look at, in either form.
    pub(super) fn warn(&mut self, message: &str) {
        self.end_progress();
        self.complain(&format!("warning: {message}"));
    }

    /// Asks the person at the terminal; `None`: there is none, or they want JSON, which programs read.
    pub(super) async fn ask(&mut self, question: &str) -> Option<String> {
        let is_a_person = self.is_terminal && std::io::stdin().is_terminal();
        if !is_a_person || self.form == Form::Json {
            return None;
        }
        self.end_progress();
        let _ = write!(std::io::stderr(), "{question}");
        let (said, line) = tokio::sync::oneshot::channel();
        // A thread of its own: Ctrl-C ends the program without waiting for the line.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = std::io::stdin().read_line(&mut line);
            // The other end is gone when the program ends.
            let _ = said.send(read.map(|_| line).unwrap_or_default());
        });
        Some(line.await.unwrap_or_default())
    }

    /// How far it is: one line that is written over on a terminal, else a line of its own.
    pub(super) fn progress(&mut self, line: &str) {
        let line = render::clean(line);
        if !self.is_terminal {
            self.complain(&line);
            return;
        }
        let len = line.chars().count();
        let rest = self.progress_len.saturating_sub(len);
        let _ = write!(std::io::stderr(), "\r{line}{:rest$}", "");
        self.progress_len = len;
    }

    fn end_progress(&mut self) {
        if self.progress_len > 0 {
            let _ = write!(std::io::stderr(), "\r{:1$}\r", "", self.progress_len);
            self.progress_len = 0;
        }
    }

    fn complain(&self, text: &str) {
        // Nowhere to say so when standard error is gone.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
