//! Plain types and the rules that hold for them wherever they come from. No I/O, no clock.

mod audit;
mod calendar;
pub mod diff;
mod generation;
pub mod order;
mod token;

pub use audit::{AuditEntry, AuditRecord};
pub use calendar::days_since_1970;
pub use generation::{Generation, GenerationId, NewGeneration, State, StoreId};
pub use token::{JoinToken, Name, NodeRecord, Role, Secret, SecretHash, Token, TokenId};

/// Where the control plane's gRPC server listens unless told otherwise: needs no privilege, registered for nothing common.
pub const PORT: u16 = 7443;

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);
