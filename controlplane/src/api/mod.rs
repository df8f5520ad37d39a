//! What operators can ask over gRPC: from messages to calls and back. Owns the mapping of errors to statuses; decides
//! nothing else. Every handler asks the [`Gate`](crate::auth::Gate) first.

mod access;
mod calls;
mod codes;
mod fail;
pub mod nodes;
mod operations;
pub mod policies;

pub use access::AccessApi;
pub use calls::{CallsLayer, Methods, Underway};
pub use fail::status;
pub use operations::OperationsApi;
