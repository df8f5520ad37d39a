//! A policy document on its way: read with a bound, cut into the parts of a call, or checked here.

use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use sluice_policy::{DOCUMENT_BYTES_MAX, text_of};
use sluice_proto::control::v1::document_part::Part;
use sluice_proto::control::v1::{
    DocumentHeader, DocumentPart, DocumentProblem, DocumentProblems, ValidateResponse,
};

use super::failure::Failure;

/// Longest piece of text in one message, as the contract has it.
const PART_BYTES_MAX: usize = 1 << 20;

/// A document and what it is called in messages.
pub(super) struct Document {
    /// The path as given; `standard input` for `-`.
    pub(super) name: String,
    text: Bytes,
}

impl Document {
    /// Reads a file, or standard input for `-`.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Self::from_reader("standard input", std::io::stdin().lock())
                .map_err(|error| Failure::file(Path::new("standard input"), &error))?;
        }
        let name = path.display().to_string();
        std::fs::File::open(path)
            .and_then(|file| Self::from_reader(&name, file))
            .map_err(|error| Failure::file(path, &error))?
    }

    fn from_reader(name: &str, reader: impl Read) -> std::io::Result<Result<Self, Failure>> {
        let mut text = Vec::new();
        // One byte more than fits, so that what is too long is seen and never cut.
        reader
            .take(DOCUMENT_BYTES_MAX as u64 + 1)
            .read_to_end(&mut text)?;
        let found = if text.len() > DOCUMENT_BYTES_MAX {
            let message = format!("the document is longer than {DOCUMENT_BYTES_MAX} bytes");
            Err(DocumentProblems {
                problems: vec![DocumentProblem {
                    message,
                    ..DocumentProblem::default()
                }],
                left_off: 0,
            })
        } else {
            text_of(&text, name).map_err(|errors| problems(&errors))
        };
        if let Err(problems) = found {
            return Ok(Err(Failure::document(name, problems)));
        }
        Ok(Ok(Self {
            name: name.to_owned(),
            text: text.into(),
        }))
    }

    /// The header, then the text in pieces.
    pub(super) fn parts(&self, header: DocumentHeader) -> Vec<DocumentPart> {
        let mut parts = vec![header_part(DocumentHeader {
            file: Some(self.name.clone()),
            ..header
        })];
        let mut rest = self.text.clone();
        while !rest.is_empty() {
            let text = rest.split_to(rest.len().min(PART_BYTES_MAX));
            parts.push(DocumentPart {
                part: Some(Part::Text(text)),
            });
        }
        parts
    }

    /// Checks it here, with all that needs no server: the same reading and the same compiler.
    pub(super) fn check(&self) -> ValidateResponse {
        // Checked when it was read; an empty text would only say that it is empty.
        let text = std::str::from_utf8(&self.text).unwrap_or_default();
        match sluice_policy::check(text, &self.name) {
            Ok(checked) => ValidateResponse {
                // With the row of the settings, which every document has.
                rows: 1 + checked
                    .rows
                    .kinds()
                    .map(|(_, count)| count as u64)
                    .iter()
                    .sum::<u64>(),
                warnings: checked.warnings,
                ..ValidateResponse::default()
            },
            Err(errors) => ValidateResponse {
                problems: Some(problems(&errors)),
                ..ValidateResponse::default()
            },
        }
    }
}

/// The first message of a call.
pub(super) fn header_part(header: DocumentHeader) -> DocumentPart {
    DocumentPart {
        part: Some(Part::Header(header)),
    }
}

fn problems(errors: &sluice_policy::Errors) -> DocumentProblems {
    let one = |problem: &sluice_policy::Problem| DocumentProblem {
        line: problem.at.line,
        column: problem.at.column,
        message: problem.message.clone(),
    };
    DocumentProblems {
        problems: errors.problems().iter().map(one).collect(),
        left_off: errors.left_off() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &[u8]) -> Result<Document, Failure> {
        Document::from_reader("p.yaml", text).expect("reading from memory")
    }

    fn of(failure: Failure) -> (u32, u32) {
        let (_, found) = *failure.document.expect("problems");
        (found.problems[0].line, found.problems[0].column)
    }

    #[test]
    fn a_byte_that_is_no_text_is_found_with_its_place() {
        for (text, place) in [
            (&b"\xff"[..], (1, 1)),
            (b"a: b\nc: \xff", (2, 4)),
            ("ä\n\u{20ac}\u{20ac}".as_bytes(), (0, 0)),
        ] {
            match document(text) {
                Ok(_) => assert_eq!(place, (0, 0)),
                Err(failure) => assert_eq!(of(failure), place),
            }
        }
    }

    #[test]
    fn a_document_is_cut_into_parts_that_make_it_again() {
        for len in [
            0,
            1,
            PART_BYTES_MAX,
            PART_BYTES_MAX + 1,
            3 * PART_BYTES_MAX - 1,
        ] {
            let text: Vec<u8> = (0..len).map(|n| b'a' + (n % 26) as u8).collect();
            let document = document(&text).unwrap();
            let parts = document.parts(DocumentHeader::default());
            let mut again = Vec::new();
            for (index, part) in parts.into_iter().enumerate() {
                match part.part.expect("a part") {
                    Part::Header(header) => {
                        assert_eq!((index, header.file.as_deref()), (0, Some("p.yaml")));
                    }
                    Part::Text(piece) => {
                        assert!(index > 0 && (1..=PART_BYTES_MAX).contains(&piece.len()));
                        again.extend_from_slice(&piece);
                    }
                }
            }
            assert_eq!(again, text, "{len}");
        }
    }

    #[test]
    fn what_the_compiler_finds_is_passed_on_with_places() {
        let text = b"default: maybe\nusers:\n  - nmae: ann\n";
        let found = document(text).unwrap().check().problems.expect("problems");
        let places: Vec<_> = found.problems.iter().map(|p| p.line).collect();
        assert!(places.contains(&1) && places.contains(&3), "{found:?}");
        // Exactly what the data plane's own check says.
        let text = std::str::from_utf8(text).unwrap();
        let errors = sluice_policy::check(text, "p.yaml").unwrap_err();
        assert_eq!(problems(&errors), found);
    }
}
