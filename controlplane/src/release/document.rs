//! A document while it comes in, and when it is whole: bounded at every step.

use super::{Failed, Releases, Seat};

/// Longest document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 256 << 20;
/// Longest name of a document, in bytes.
pub const FILE_BYTES_MAX: usize = 1000;
/// Longest comment, in bytes.
pub const COMMENT_BYTES_MAX: usize = 1000;

/// A document of which more may come.
pub struct Draft {
    seat: Seat,
    file: String,
    bytes: Vec<u8>,
}

/// A whole document. Its text may hold password hashes, so nothing shows it.
pub struct Document {
    pub(super) seat: Seat,
    pub(super) file: String,
    pub(super) text: String,
}

impl Releases {
    /// Begins a document; [`Failed::Busy`] when too many are on their way.
    pub fn draft(&self, file: Option<String>) -> Result<Draft, Failed> {
        let file = file.unwrap_or_else(|| "policy".into());
        if file.len() > FILE_BYTES_MAX {
            return Err(Failed::Invalid(format!(
                "`file` has at most {FILE_BYTES_MAX} bytes"
            )));
        }
        Ok(Draft {
            seat: self.inner.desk.seat()?,
            file,
            bytes: Vec::new(),
        })
    }
}

impl Draft {
    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Failed> {
        if self.bytes.len() + piece.len() > DOCUMENT_BYTES_MAX {
            return Err(Failed::Busy(format!(
                "the document is longer than {DOCUMENT_BYTES_MAX} bytes"
            )));
        }
        self.seat.grow(piece.len())?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Nothing more comes.
    pub fn finish(self) -> Result<Document, Failed> {
        let Self { seat, file, bytes } = self;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Failed::Invalid(format!("the document is no UTF-8 at byte {at}"))
        })?;
        Ok(Document { seat, file, text })
    }
}
