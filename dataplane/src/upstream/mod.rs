//! The other side: which endpoint of an upstream a session goes to, how often and how long it is tried, and which endpoint
//! is charged when there is no answer.
//!
//! Sans-io like `session`: it decides, the shard connects. What is known of each endpoint (breaker, health, open
//! connections) is in the node's table, `node/endpoints.rs`: it is read here, and told how dials ended. This module sits
//! beside `session` and below `shard` and `control`.

/// Which endpoint.
pub mod balance;
/// One session's way to a broker that answers: attempts, back-off, the second endpoint, who is charged.
pub mod dial;

pub use dial::{Dial, Step};
