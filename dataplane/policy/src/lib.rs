//! Policy: document -> rows -> model -> compile -> [`Snapshot`] -> [`Verdict`].
//!
//! A snapshot is immutable, complete and cheap to ask. No I/O, no clock, no `unsafe`; it counts nothing.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod admitting;
mod brackets;
mod cancel;
mod changes;
mod compile;
pub mod convert;
mod crowd;
mod digest;
mod document;
mod effort;
mod encoding;
mod explain;
mod filter;
pub mod fleet;
mod granting;
mod live;
pub mod model;
mod narrower;
mod password;
mod problem;
mod roster;
pub mod rows;
mod rulebook;
mod ruling;
mod snapshot;
mod tables;
mod units;
mod users;
mod validate;
mod verdict;
mod warnings;
mod wording;
mod yaml;

pub use admitting::HalfAdmitted;
pub use cancel::Cancel;
pub use compile::{compile, compile_rows, compile_rows_until, compile_until};
pub use document::{parse, parse_until};
pub use effort::{Effort, SLICE_NODES};
pub use encoding::text_of;
pub use explain::{Explanation, Narrowed, PASSED_OVER_MAX, PassedOver, Question, version_name};
pub use filter::{FILTER_LEVELS_MAX, Level, TopicFilter, Variable};
pub use granting::HalfJudged;
pub use live::{PolicyCache, PolicyHandle};
pub use password::{
    ARGON2_LANES_MAX, ARGON2_MEMORY_KIB_MAX, ARGON2_PASSES_MAX, BCRYPT_COST_MAX, HashError,
    PBKDF2_ROUNDS_MAX, Verifier, hash_password,
};
pub use problem::{Errors, PROBLEMS_MAX, Position, Problem};
pub use roster::{RuleLine, RulePlace};
pub use ruling::Ruling;
pub use snapshot::*;
pub use users::LockedOut;
pub use validate::{
    ENDPOINTS_MAX, LISTENERS_MAX, PATTERN_BYTES_MAX, PATTERNS_MAX, RULES_MAX, validate,
};
pub use verdict::SESSION_CLASSES_MAX;
pub use warnings::{Checked, RowCounts, check};
pub use yaml::{ALIAS_NODES_MAX, DEPTH_MAX, DOCUMENT_BYTES_MAX, NODES_MAX};

/// What this build can do. A document that `requires` anything else is refused, so that an old node never reads a row in
/// a way its author did not mean.
pub const FEATURES: &[&str] = &[
    "mqtt",
    "users",
    "client_id_binding",
    "users.networks",
    "listeners.username",
    "listeners.reason_strings",
    "tcp_keep_alive",
    "upstreams.connack_timeout",
    "rules",
    "rules.shadow",
    "rules.qos",
    "rules.retain",
    "rules.payload",
    "rules.narrow",
];
