//! What the benches and the bare forwarders share.
//!
//! Owns options and fixtures. Nothing depends on this crate.

/// Options, listening and dialling of the bare forwarders.
pub mod forward;

/// Packets, topics and policies.
pub mod fixtures;
