//! From a document to a snapshot, off the control thread and at low priority.
//!
//! Owns reading the file and calling the compiler. Whatever is wrong comes back as lines for people, each with file,
//! line and column where it has one, and for a generation of the control plane row by row; nothing is applied from here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_policy::convert::{Refused, RowProblem, Wrong, compile_inventory};
use sluice_policy::fleet::{Inventory, RowKey};
use sluice_policy::{Generation, Snapshot, Verifier};
use sluice_proto::v1::{self, RowKind, reject::Reason};
use tokio::sync::oneshot;

use super::auth::Check;
use super::priority;

/// The signal that asks for the policy file to be read again.
pub const SIGHUP: i32 = 1;

/// A policy offered to the control thread.
#[derive(Debug)]
pub enum Offer {
    /// A file to read.
    File(PathBuf),
    /// A document in hand.
    Text {
        /// What to call it in messages.
        name: String,
        /// The document.
        document: String,
    },
    /// A generation of the control plane.
    Rows(Released),
}

/// A generation of the control plane, and who wants to know what became of it.
#[derive(Debug)]
pub struct Released {
    /// Which.
    pub id: v1::GenerationId,
    /// All of its rows.
    pub rows: Inventory,
    /// Told once it is swapped in or refused; dropped when a newer one takes its place.
    pub reply: oneshot::Sender<Outcome>,
}

/// What became of a generation: the snapshot's own number, once it is swapped in.
pub type Outcome = Result<Generation, Refusal>;

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In one word.
    pub reason: Reason,
    /// All that is wrong, as far as it is kept.
    pub problems: Vec<v1::Problem>,
    /// How many more problems there are.
    pub left_off: u64,
    /// The same for people, a line each.
    pub lines: Vec<String>,
    /// True exactly when the machine is the cause and not the policy: a port in use, no memory. The same may do later.
    pub is_of_machine: bool,
}

impl Refusal {
    /// One problem.
    pub fn one(reason: Reason, problem: v1::Problem) -> Self {
        Self {
            reason,
            lines: vec![problem.message.clone()],
            problems: vec![problem],
            left_off: 0,
            is_of_machine: false,
        }
    }

    /// The machine cannot do it now.
    pub fn machine(line: String) -> Self {
        Self {
            is_of_machine: true,
            ..Self::lines(vec![line])
        }
    }

    /// Problems of a document.
    pub fn lines(lines: Vec<String>) -> Self {
        let problem = |line: &String| v1::Problem {
            row: None,
            field: String::new(),
            message: line.clone(),
        };
        Self {
            reason: Reason::Invalid,
            problems: lines.iter().map(problem).collect(),
            left_off: 0,
            lines,
            is_of_machine: false,
        }
    }

    fn rows(refused: &Refused) -> Self {
        let problems = refused.problems();
        let is_lacking = |problem: &RowProblem| matches!(problem.wrong, Wrong::MissingFeature(_));
        Self {
            reason: if problems.iter().any(is_lacking) {
                Reason::Features
            } else {
                Reason::Invalid
            },
            problems: problems.iter().map(row_problem).collect(),
            left_off: u64::try_from(refused.left_off()).unwrap_or(u64::MAX),
            lines: refused.to_string().lines().map(str::to_owned).collect(),
            is_of_machine: false,
        }
    }
}

fn row_problem(problem: &RowProblem) -> v1::Problem {
    let key = RowKey {
        kind: problem.kind,
        name: problem.name.clone(),
    };
    v1::Problem {
        row: (problem.kind != RowKind::Unspecified).then(|| key.to_wire()),
        field: problem.field.into(),
        message: problem.wrong.to_string(),
    }
}

/// A document that became tables.
pub struct Compiled {
    /// The tables.
    pub snapshot: Arc<Snapshot>,
    /// Digest of its rows.
    pub digest: String,
    /// What an operator should know although it is no error.
    pub warnings: Vec<String>,
}

impl Offer {
    /// For the status and the log.
    pub fn source(&self) -> String {
        match self {
            Self::File(path) => format!("file:{}", path.display()),
            Self::Text { name, .. } => name.clone(),
            Self::Rows(_) => "control plane".to_owned(),
        }
    }

    /// What it is called in the fleet, where it comes from there.
    pub fn fleet_generation(&self) -> Option<u64> {
        match self {
            Self::File(_) | Self::Text { .. } => None,
            Self::Rows(released) => Some(released.id.number),
        }
    }

    /// What is compiled, and who is told what became of it.
    pub fn into_parts(self) -> (Work, Option<oneshot::Sender<Outcome>>) {
        match self {
            Self::File(path) => (Work::File(path), None),
            Self::Text { name, document } => (Work::Text { name, document }, None),
            Self::Rows(released) => (Work::Rows(released.rows), Some(released.reply)),
        }
    }
}

/// What the compiler is given.
pub enum Work {
    /// A file to read.
    File(PathBuf),
    /// A document in hand.
    Text {
        /// What to call it in messages.
        name: String,
        /// The document.
        document: String,
    },
    /// Rows.
    Rows(Inventory),
}

/// Reads and compiles. Slow; call it on a thread that may block.
pub fn compile(
    work: Work,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Compiled, Refusal> {
    priority::lower();
    let (name, document) = match work {
        Work::Rows(rows) => return compile_rows(&rows, generation, previous),
        Work::File(path) => {
            let name = path.display().to_string();
            match read(&path) {
                Ok(document) => (name, document),
                Err(error) => return Err(Refusal::lines(vec![format!("{name}: {error}")])),
            }
        }
        Work::Text { name, document } => (name, document.into_bytes()),
    };
    let snapshot = sluice_policy::text_of(&document, &name)
        .and_then(|text| sluice_policy::compile(text, &name, generation, previous))
        .map_err(|errors| {
            Refusal::lines(errors.to_string().lines().map(str::to_owned).collect())
        })?;
    Ok(Compiled::new(snapshot))
}

fn compile_rows(
    rows: &Inventory,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Compiled, Refusal> {
    compile_inventory(rows, generation, previous)
        .map(Compiled::new)
        .map_err(|refused| Refusal::rows(&refused))
}

impl Compiled {
    fn new(snapshot: Snapshot) -> Self {
        Self {
            digest: snapshot.digest().to_owned(),
            warnings: snapshot.warnings(),
            snapshot: Arc::new(snapshot),
        }
    }
}

/// The whole file; one byte more than the compiler takes, so that it can say that it is too long.
fn read(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut document = Vec::new();
    let limit = u64::try_from(sluice_policy::DOCUMENT_BYTES_MAX).unwrap_or(u64::MAX);
    std::fs::File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut document)?;
    Ok(document)
}

/// What is verified for a user who does not exist, so that the answer takes as long.
#[derive(Clone)]
pub struct Dummy {
    verifier: Arc<Mutex<Verifier>>,
}

impl Default for Dummy {
    fn default() -> Self {
        Self {
            verifier: Arc::new(Mutex::new(Verifier::dummy())),
        }
    }
}

impl Dummy {
    /// Takes on the cost of the passwords of a new policy.
    pub fn follow(&self, snapshot: &Snapshot) {
        let verifier = snapshot.dummy_verifier().clone();
        *self.verifier.lock().unwrap_or_else(PoisonError::into_inner) = verifier;
    }

    /// Verifies a password: always one hash, whether the user exists or not.
    pub fn verify(&self, check: &Check) -> bool {
        if let Some(verifier) = &check.verifier {
            return verifier.verify(&check.secret);
        }
        let dummy = self
            .verifier
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // The hash is computed for its cost only; nobody knows a password of it, and its answer is not looked at.
        let _ = std::hint::black_box(dummy.verify(&check.secret));
        false
    }
}
