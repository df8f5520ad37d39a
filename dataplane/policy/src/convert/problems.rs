//! What is wrong with messages, and in which row and field.

use std::collections::hash_map::Entry;
use std::fmt;

use foldhash::{HashMap, HashMapExt};
use sluice_proto::v1::RowKind;

use crate::document::shown;
use crate::fleet::RowKey;
use crate::{Errors, PROBLEMS_MAX, Position};

/// One thing that is wrong with a set of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowProblem {
    /// Kind of the row; unspecified for the document as a whole and for a row of a kind that is not known.
    pub kind: RowKind,
    /// Name of the row; empty where it has none.
    pub name: Box<str>,
    /// The field, as the messages call it; empty for the row as a whole.
    pub field: &'static str,
    /// What is wrong with it.
    pub wrong: Wrong,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The row says nothing, or is of a kind that came after this build.
    UnknownKind,
    /// The row needs a feature that this build lacks.
    MissingFeature(Box<str>),
    /// The number is none of the enum's.
    UnknownChoice(i32),
    /// A list holds the value that stands for "unset".
    Unspecified,
    /// The field is required.
    Missing,
    /// A row of that kind and name is there already.
    Twice,
    /// The settings row has a name.
    NamedSettings,
    /// There is no settings row.
    NoSettings,
    /// The row can be read, and what it says is refused by the checks that hold for every spelling.
    Invalid(String),
}

/// All that is wrong with a set of messages. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    problems: Vec<RowProblem>,
    left_off: usize,
}

impl Refused {
    /// The problems in the order of the rows, at most [`PROBLEMS_MAX`].
    pub fn problems(&self) -> &[RowProblem] {
        &self.problems
    }

    /// How many more there were.
    pub fn left_off(&self) -> usize {
        self.left_off
    }
}

impl Refused {
    pub(super) fn cancelled() -> Self {
        Self {
            problems: vec![RowProblem {
                kind: RowKind::Unspecified,
                name: Box::default(),
                field: "",
                wrong: Wrong::Invalid("cancelled before it was done".into()),
            }],
            left_off: 0,
        }
    }

    pub(super) fn unreadable(key: &RowKey) -> Self {
        Self {
            problems: vec![RowProblem {
                kind: key.kind,
                name: key.name.clone(),
                field: "",
                wrong: Wrong::Invalid("it cannot be read; send it again".into()),
            }],
            left_off: 0,
        }
    }
}

pub(super) type Key = (RowKind, Box<str>);

/// Notes problems, and lends rows positions by which a later problem finds its row again: the line is the row's number
/// from 1, the column the field's, 0 for the row as a whole.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) numbers: HashMap<Key, u32>,
    fields: Vec<&'static str>,
    field_numbers: HashMap<&'static str, u32>,
    /// The row being read.
    number: u32,
    key: Key,
    /// With the number of the row; at most [`PROBLEMS_MAX`].
    pub(super) problems: Vec<(u32, RowProblem)>,
    left_off: usize,
}

impl Notes {
    /// Goes on to the next row. False: its name is taken.
    pub(super) fn begin(&mut self, kind: RowKind, name: &str) -> bool {
        // More rows than that do not fit into memory.
        self.number = self.number.saturating_add(1);
        self.key = (kind, name.into());
        match self.numbers.entry(self.key.clone()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(self.number);
                true
            }
        }
    }

    /// What is noted next is about no row.
    pub(super) fn begin_document(&mut self) {
        self.number = 0;
        self.key = Key::default();
    }

    pub(super) fn at(&mut self, field: &'static str) -> Position {
        let line = self.number;
        if field.is_empty() {
            return Position { line, column: 0 };
        }
        let fields = &mut self.fields;
        let column = *self.field_numbers.entry(field).or_insert_with(|| {
            fields.push(field);
            u32::try_from(fields.len()).unwrap_or(0)
        });
        Position { line, column }
    }

    pub(super) fn add(&mut self, field: &'static str, wrong: Wrong) {
        let (kind, name) = self.key.clone();
        self.push(
            self.number,
            RowProblem {
                kind,
                name,
                field,
                wrong,
            },
        );
    }

    fn push(&mut self, number: u32, problem: RowProblem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((number, problem));
        } else {
            self.left_off += 1;
        }
    }

    /// Takes over what the checks found, with the places of the messages.
    pub(super) fn take(&mut self, errors: &Errors) {
        let mut keys: HashMap<u32, Key> = HashMap::new();
        for (key, number) in std::mem::take(&mut self.numbers) {
            keys.insert(number, key);
        }
        for problem in errors.problems() {
            let Position { line, column } = problem.at;
            let (kind, name) = keys.get(&line).cloned().unwrap_or_default();
            let field = (column as usize)
                .checked_sub(1)
                .and_then(|index| self.fields.get(index).copied())
                .unwrap_or_default();
            // The place says it already.
            let prefix = format!("{} `{}`: ", word(kind), shown(&name));
            let message = problem
                .message
                .strip_prefix(&prefix)
                .unwrap_or(&problem.message);
            let wrong = Wrong::Invalid(message.into());
            self.push(
                line,
                RowProblem {
                    kind,
                    name,
                    field,
                    wrong,
                },
            );
        }
        self.left_off += errors.left_off();
    }

    pub(super) fn refused(mut self) -> Refused {
        self.problems.sort_by_key(|(number, _)| *number);
        Refused {
            problems: self
                .problems
                .into_iter()
                .map(|(_, problem)| problem)
                .collect(),
            left_off: self.left_off,
        }
    }
}

fn word(kind: RowKind) -> &'static str {
    match kind {
        RowKind::Unspecified => "row",
        RowKind::Settings => "settings",
        RowKind::Listener => "listener",
        RowKind::Upstream => "upstream",
        RowKind::Group => "group",
        RowKind::User => "user",
        RowKind::Rule => "rule",
    }
}

impl fmt::Display for Refused {
    /// One line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index > 0 { "\n" } else { "" };
            write!(f, "{separator}{problem}")?;
        }
        if self.left_off > 0 {
            write!(f, "\nand {} more problems", self.left_off)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl fmt::Display for RowProblem {
    /// `kind name: field: what`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, &*self.name) {
            (RowKind::Unspecified, "") => f.write_str("the document")?,
            (kind, "") => f.write_str(word(kind))?,
            (kind, name) => write!(f, "{} {}", word(kind), shown(name))?,
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.wrong)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind => {
                f.write_str("it says nothing, or is of a kind that this version does not know")
            }
            Self::MissingFeature(feature) => {
                write!(f, "this node does not have `{}`", shown(feature))
            }
            Self::UnknownChoice(number) => {
                write!(f, "{number} is no choice that this version knows")
            }
            Self::Unspecified => f.write_str("UNSPECIFIED cannot stand in a list"),
            Self::Missing => f.write_str("it is required"),
            Self::Twice => f.write_str("a second row of that kind and name"),
            Self::NamedSettings => f.write_str("the settings row has no name"),
            Self::NoSettings => f.write_str("there is no settings row"),
            Self::Invalid(message) => f.write_str(message),
        }
    }
}
