//! Bytes to packets and back: the protocols Sluice speaks, as pure state.
//!
//! Owns every rule that a specification states about bytes. Does no I/O, reads no clock, draws no random number,
//! logs nothing and holds no `unsafe`. It sits below `session`, which decides what the packets are for.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// Tests may index: a panic there is a failed test.
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::cast_possible_truncation)
)]

mod cursor;
pub mod mqtt;

/// The example of the README, kept true by compiling it.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
