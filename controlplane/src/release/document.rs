//! A document while it comes in, and when it is whole: bounded at every step, and what it will take to try it.

use sluice_policy::text_of;

use super::{Failed, Seat, Wrong};

/// Longest document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 256 << 20;
/// Longest name of a document, in bytes.
pub const FILE_BYTES_MAX: usize = 1000;
/// Longest comment, in bytes.
pub const COMMENT_BYTES_MAX: usize = 1000;

/// What a trial takes for each value, in bytes: measured as 250 for a million rules of four values and 400 for eight
/// million topics in one rule. A value ends with a line or a comma, so these are counted.
const VALUE_COST_BYTES: usize = 400;
/// What a trial takes for each byte of text beside that: it is kept in rows, in messages and in tables.
const TEXT_COST_FACTOR: usize = 4;

/// A document of which more may come.
pub struct Draft {
    seat: Seat,
    file: String,
    bytes: Vec<u8>,
    cost: usize,
}

/// A whole document. Its text may hold password hashes, so nothing shows it.
pub struct Document {
    pub(super) seat: Seat,
    pub(super) file: String,
    pub(super) text: String,
    /// What a trial of it takes at most, in bytes.
    pub(super) cost: usize,
}

impl Draft {
    /// Begins a document.
    pub fn new(seat: Seat, file: Option<String>) -> Result<Self, Failed> {
        let file = file.unwrap_or_else(|| "policy".into());
        if file.len() > FILE_BYTES_MAX {
            return Err(Failed::Invalid(format!(
                "`file` has at most {FILE_BYTES_MAX} bytes"
            )));
        }
        Ok(Self {
            seat,
            file,
            bytes: Vec::new(),
            cost: VALUE_COST_BYTES,
        })
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Failed> {
        if self.bytes.len() + piece.len() > DOCUMENT_BYTES_MAX {
            return Err(Failed::Busy(format!(
                "the document is longer than {DOCUMENT_BYTES_MAX} bytes"
            )));
        }
        self.cost += cost(piece);
        self.seat.affords(self.cost)?;
        self.make_room(piece.len())?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Grows by as much as there is already while the memory for that is there, so that a long document is not copied for
    /// each of its pieces. What is taken is what is counted.
    fn make_room(&mut self, bytes: usize) -> Result<(), Failed> {
        let missing = (self.bytes.len() + bytes).saturating_sub(self.bytes.capacity());
        if missing == 0 {
            return Ok(());
        }
        let ample = missing.max(self.bytes.len().min(DOCUMENT_BYTES_MAX - self.bytes.len()));
        let more = if self.seat.grow_if_free(ample) {
            ample
        } else {
            self.seat.grow(missing)?;
            missing
        };
        let capacity = self.bytes.capacity() + more;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        Ok(())
    }

    /// Nothing more comes.
    pub fn finish(self) -> Result<Document, Failed> {
        let Self {
            seat,
            file,
            bytes,
            cost,
        } = self;
        let text = String::from_utf8(bytes).map_err(|error| {
            // What it looks like instead is in the problem.
            let wrong = text_of(error.as_bytes(), &file).err();
            wrong.map_or_else(
                || Failed::Invalid("the document is no UTF-8".into()),
                |errors| Failed::Document(Wrong::from(&errors)),
            )
        })?;
        Ok(Document {
            seat,
            file,
            text,
            cost,
        })
    }
}

fn cost(piece: &[u8]) -> usize {
    let ends = piece.iter().filter(|byte| matches!(byte, b'\n' | b','));
    VALUE_COST_BYTES * ends.count() + TEXT_COST_FACTOR * piece.len()
}
