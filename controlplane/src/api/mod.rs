//! What operators can ask over gRPC: from messages to calls and back. Owns the mapping of errors to statuses; decides
//! nothing else. Every handler asks the [`Gate`](crate::auth::Gate) first.

mod fail;
pub mod policies;

pub use fail::status;
