//! Policy: document -> model -> compile -> [`Snapshot`] -> [`Verdict`].
//!
//! A snapshot is immutable, complete and cheap to ask. No I/O, no clock, no `unsafe`; it counts nothing.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod live;
mod snapshot;

pub use live::{PolicyCache, PolicyHandle};
pub use snapshot::*;
