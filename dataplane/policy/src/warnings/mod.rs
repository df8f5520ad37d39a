//! What is no error and yet cannot be meant: policies with which no client can connect, rules that never decide, client ids
//! that any user may take.
//!
//! Says a thing only where it is certain, whatever clients come. Each question has a share of work; when it is used up the
//! answer is left open, and a warning says so. For those who check a document: a node that follows changes asks nothing
//! here.

mod bindings;
mod listeners;
mod rules;
mod sessions;

use crate::compile::compile_noted;
use crate::problem::Problems;
use crate::rows::Rows;
use crate::validate::Source;
use crate::wording::shown;
use crate::{Cancel, Errors, Generation, Snapshot, document};

use sessions::Sessions;

/// How many rows a warning names.
const NAMED_MAX: usize = 5;
/// Steps for one question: comparisons of a session with a rule, and nodes of tables. A bound on the time, whatever the document.
const STEPS_MAX: u64 = 20_000_000;

/// What a good document is made of, and what to look at in it.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Its rows.
    pub rows: RowCounts,
    /// What an operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Rows by kind, disabled ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each field is the kind of that name
pub struct RowCounts {
    pub listeners: usize,
    pub upstreams: usize,
    pub groups: usize,
    pub users: usize,
    pub rules: usize,
}

impl RowCounts {
    /// Of the rows of a document.
    pub fn of(rows: &Rows) -> Self {
        Self {
            listeners: rows.listeners.len(),
            upstreams: rows.upstreams.len(),
            groups: rows.groups.len(),
            users: rows.users.len(),
            rules: rows.rules.len(),
        }
    }

    /// Each kind with its count.
    pub fn kinds(&self) -> [(&'static str, usize); 5] {
        [
            ("listener", self.listeners),
            ("upstream", self.upstreams),
            ("group", self.groups),
            ("user", self.users),
            ("rule", self.rules),
        ]
    }
}

/// Compiles a document to see what is wrong with it, and what to look at where nothing is.
pub fn check(document: &str, file: &str) -> Result<Checked, Errors> {
    let mut problems = Problems::default();
    let rows = document::read(document, &mut problems);
    let counts = RowCounts::of(&rows);
    let (source, generation) = (Source::Document, Generation(1));
    let snapshot = compile_noted(rows, source, file, generation, None, problems)?;
    Ok(Checked {
        rows: counts,
        warnings: snapshot.review(&Cancel::new()),
    })
}

impl Snapshot {
    /// All of [`Self::warnings`], and what takes a look at every user and rule: a few seconds for a large policy. Each kind
    /// of thing is one sentence with how many there are and the first few names. Cancelled, some are missing.
    pub fn review(&self, cancel: &Cancel) -> Vec<String> {
        self.review_within(STEPS_MAX, cancel)
    }

    fn review_within(&self, steps: u64, cancel: &Cancel) -> Vec<String> {
        let mut warnings = self.warnings();
        let work = || Work {
            left: steps,
            cancel,
        };
        let mut sessions = Sessions::new(self);
        let admitted = listeners::review(&mut sessions, &mut work());
        warnings.extend(admitted.warnings);
        if admitted.has_clients {
            warnings.extend(rules::review(&mut sessions, &mut work()));
            warnings.extend(bindings::review(self));
        }
        warnings
    }
}

/// A share of work.
struct Work<'c> {
    left: u64,
    cancel: &'c Cancel,
}

/// The share is used up, or the call was cancelled: the answer stays open.
#[derive(Debug, PartialEq, Eq)]
struct Unfinished;

impl Work<'_> {
    fn spend(&mut self, steps: usize) -> Result<(), Unfinished> {
        if self.cancel.is_cancelled() {
            return Err(Unfinished);
        }
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(steps).ok_or(Unfinished)?;
        Ok(())
    }
}

/// Rows of which a warning names the first few.
#[derive(Default)]
struct Few {
    named: Vec<String>,
    count: usize,
}

impl Few {
    /// Adds a row; `note` stands behind its name.
    fn add(&mut self, name: &str, note: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            let note = note();
            let space = if note.is_empty() { "" } else { " " };
            self.named.push(format!("`{}`{space}{note}", shown(name)));
        }
    }

    /// `\`a\`, \`b\` and 3 more`
    fn text(&self) -> String {
        let more = match self.count - self.named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        self.named.join(", ") + &more
    }
}

#[cfg(test)]
mod tests;
