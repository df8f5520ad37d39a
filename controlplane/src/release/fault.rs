//! Why something was not done, whose fault it was, and all that is wrong with a document.

use sluice_policy::{Errors, PROBLEMS_MAX, Position, Problem};

use crate::store::StoreError;

/// Why a call on [`Releases`](super::Releases) ended without what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The store did not do it, or someone else was first.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The document is wrong.
    #[error("{0}")]
    Document(Wrong),
    /// What was asked makes no sense; the text says what.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The rules of releasing forbid it; the text says which and what to do.
    #[error("{0}")]
    Refused(String),
    /// The author's token was revoked or has expired meanwhile; nothing was written.
    #[error("the token was revoked or has expired meanwhile; nothing was written")]
    Unwelcome,
    /// Too much at once, or something longer than its bound.
    #[error("{0}")]
    Busy(String),
    /// Reading or compiling did not end. Nothing was changed.
    #[error(
        "it did not end, and nothing was changed: the control plane stops, or has a fault that its log tells of"
    )]
    Stopped,
    /// It was begun and its end is not known: look before trying again.
    #[error("it was begun and did not end; look at the history before trying again")]
    Interrupted,
}

/// All that is wrong with a document, in its order. Never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wrong {
    /// At most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub left_off: u64,
}

impl Wrong {
    pub(super) fn add(&mut self, at: Position, message: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { at, message });
        } else {
            self.left_off += 1;
        }
    }

    /// Takes more problems in; those that do not fit are counted.
    pub(super) fn join(&mut self, errors: &Errors) {
        self.problems.extend(errors.problems().iter().cloned());
        self.problems.sort();
        let beyond = self.problems.len().saturating_sub(PROBLEMS_MAX);
        self.problems.truncate(PROBLEMS_MAX);
        self.left_off += (beyond + errors.left_off()) as u64;
    }
}

impl From<&Errors> for Wrong {
    fn from(errors: &Errors) -> Self {
        let mut wrong = Self::default();
        wrong.join(errors);
        wrong
    }
}

impl std::fmt::Display for Wrong {
    /// How many, and the first.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.problems.len() as u64 + self.left_off;
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "the document has {count} {noun}")?;
        if let Some(Problem { at, message }) = self.problems.first() {
            write!(f, "; the first: {}:{}: {message}", at.line, at.column)?;
        }
        Ok(())
    }
}
