//! From a document to a snapshot, off the control thread and at low priority.
//!
//! Owns reading the file and calling the compiler. Whatever is wrong comes back as lines for people, each with file,
//! line and column where it has one; nothing is applied from here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_policy::{Generation, Snapshot, Verifier};

use super::auth::Check;
use super::priority;

/// The signal that asks for the policy file to be read again.
pub const SIGHUP: i32 = 1;

/// A policy offered to the control thread.
#[derive(Clone, Debug)]
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
        }
    }
}

/// Reads and compiles. Slow; call it on a thread that may block.
pub fn compile(
    offer: Offer,
    generation: Generation,
    previous: Option<&Snapshot>,
) -> Result<Compiled, Vec<String>> {
    priority::lower();
    let (name, document) = match offer {
        Offer::File(path) => {
            let name = path.display().to_string();
            match read(&path) {
                Ok(document) => (name, document),
                Err(error) => return Err(vec![format!("{name}: {error}")]),
            }
        }
        Offer::Text { name, document } => (name, document),
    };
    let snapshot =
        sluice_policy::compile(&document, &name, generation, previous).map_err(|errors| {
            errors
                .to_string()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })?;
    Ok(Compiled {
        digest: snapshot.digest().to_owned(),
        warnings: snapshot.warnings(),
        snapshot: Arc::new(snapshot),
    })
}

/// The whole file, if it is text; one byte more than the compiler takes, so that it can say that it is too long.
fn read(path: &PathBuf) -> std::io::Result<String> {
    use std::io::Read;
    let mut document = String::new();
    let limit = u64::try_from(sluice_policy::DOCUMENT_BYTES_MAX).unwrap_or(u64::MAX);
    std::fs::File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_string(&mut document)?;
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
