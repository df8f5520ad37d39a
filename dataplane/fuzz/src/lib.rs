//! What must hold for any bytes, one function for each decoder: the bodies of the fuzz targets.
//!
//! Owns the properties and the layout of an input (its first bytes choose version, side and cuts). Knows no engine:
//! `tests/targets.rs` runs the functions under bolero, over the committed corpus and over random bytes.

// cargo-bolero builds this library as a test too, with coverage. Only bolero brings the runtime that such a binary needs to link.
#[cfg(test)]
use bolero as _;

mod decoder;
mod document;
mod framer;
mod session;
mod topics;

pub use decoder::{decode_client, decode_server};
pub use document::document;
pub use framer::framer;
pub use session::session;
pub use topics::topics;

use sluice_wire::mqtt::Version;

/// The version that a byte of the input chooses.
fn version(byte: u8) -> Version {
    match byte % 3 {
        0 => Version::V31,
        1 => Version::V311,
        _ => Version::V5,
    }
}
