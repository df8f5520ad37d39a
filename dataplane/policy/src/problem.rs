//! What is wrong with a document: problems with their positions, all reported at once.
//!
//! Never holds a secret: the messages name keys and rows, and quote only values that are not password hashes.

use std::fmt;

use crate::Cancel;

/// How many problems are kept; the rest are counted only, so that a hopeless document cannot fill the memory.
pub const PROBLEMS_MAX: usize = 1_000;

/// A place in a document. Line and column count from 1; 0 means unknown (a row that did not come from a text).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub at: Position,
    /// What, and what to do about it.
    pub message: String,
}

/// All that is wrong with a document, in document order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    file: Box<str>,
    problems: Vec<Problem>,
    left_off: usize,
}

impl Errors {
    /// The file as the caller named it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The problems, at most [`PROBLEMS_MAX`].
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many more there were.
    pub fn left_off(&self) -> usize {
        self.left_off
    }
}

impl fmt::Display for Errors {
    /// One line for each: `file:line:column: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let Position { line, column } = problem.at;
            if line == 0 {
                write!(f, "{}: {}", self.file, problem.message)?;
            } else {
                write!(f, "{}:{line}:{column}: {}", self.file, problem.message)?;
            }
        }
        if self.left_off > 0 {
            write!(f, "\n{}: and {} more problems", self.file, self.left_off)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Collects problems while a document is read; bounded. Says as well when the reading is to end early.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<Problem>,
    left_off: usize,
    cancel: Option<Cancel>,
}

impl Problems {
    /// Of a reading that ends when the flag is set.
    pub(crate) fn until(cancel: &Cancel) -> Self {
        Self {
            cancel: Some(cancel.clone()),
            ..Self::default()
        }
    }

    /// True exactly when the reading is to end. What was read so far is not whole, and [`Self::finish`] does not give it.
    #[inline]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }

    /// The flag, for work that notes no problem.
    pub(crate) fn cancel(&self) -> Option<&Cancel> {
        self.cancel.as_ref()
    }

    /// Notes one.
    pub(crate) fn add(&mut self, at: Position, message: impl Into<String>) {
        if self.list.len() < PROBLEMS_MAX {
            self.list.push(Problem {
                at,
                message: message.into(),
            });
        } else {
            self.left_off += 1;
        }
    }

    /// True exactly when nothing was noted.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The end of the reading: `value` when nothing was noted, else all problems in document order.
    pub(crate) fn finish<T>(self, file: &str, value: T) -> Result<T, Errors> {
        if self.is_empty() && !self.is_cancelled() {
            Ok(value)
        } else {
            Err(self.into_errors(file))
        }
    }

    /// The end of a reading that gave no value.
    pub(crate) fn into_errors(mut self, file: &str) -> Errors {
        if self.is_cancelled() {
            self.add(Position::default(), "cancelled before it was done");
        }
        self.list.sort();
        self.list.dedup();
        Errors {
            file: file.into(),
            problems: self.list,
            left_off: self.left_off,
        }
    }
}
