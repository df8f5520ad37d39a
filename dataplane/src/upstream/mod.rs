//! The other side: which endpoint of an upstream a session goes to, and how often and how long it is tried.
//!
//! Sans-io like `session`: it decides, the shard connects. It reads the node's table and writes only what concerns dials
//! (breaker, open connections). It sits beside `session` and below `shard` and `control`.

/// Which endpoint.
pub mod balance;
/// One session's way to a connection: attempts, back-off, breaker.
pub mod dial;

pub use dial::{Dial, Step};
