//! What the shards and the control thread of one node share, and nothing more.
//!
//! There are three meeting points: the policy pointer (`sluice_policy::PolicyHandle`), one bounded [`mailbox`] each way
//! per shard, and one fixed [`table`] of padded atomics. A [`directory`] (where each upstream's endpoints are) travels
//! as a message. Nothing here does I/O or reads a clock. It sits above `session`, whose questions and endings it
//! carries, and below `upstream`, `shard` and `control`, which use it.

/// Counts by client address.
pub mod addresses;
/// The sampled decision log on its way to the control thread.
pub mod decisions;
/// Recent refusals.
pub mod denials;
/// Where the endpoints of each upstream are, and which cell of the table counts for them.
pub mod directory;
/// What is known of each upstream endpoint: open connections, breaker, health, what it failed at.
pub mod endpoints;
/// Clients that an operator keeps out for a time.
pub mod kept_out;
/// Bounded queues with a wake.
pub mod mailbox;
/// The closed lists of what control and a shard tell each other.
pub mod message;
/// User names that may be shown.
pub mod names;
/// Ended sessions, failovers, faults of brokers and connections turned away, on their way to the log.
pub mod notices;
/// Counts that hold for the whole node.
pub mod table;
/// Connections that were turned away, for one line of the log.
pub mod turned_away;

pub use addresses::Address;
pub use decisions::{DecisionBatch, DecisionFilter, DecisionLine, DecisionLog, DecisionSampler};
pub use denials::{DenialFilter, DenialLine, DenialList, DenialQuery, DenialRing};
pub use directory::{Directory, DirectoryError, EndpointCell, Located, ResolvedEndpoint};
pub use endpoints::{Breaker, Dialling, Doubter, EndpointState, Fault, Proof};
pub use kept_out::{KeptOut, NotKeptOut, TIME_MAX as KEEP_OUT_MAX};
pub use mailbox::{Inbox, Post, Undelivered, mailbox};
pub use message::{
    AfterDrain, DrainOutcome, KickWho, SessionFilter, SessionInfo, SessionRef, ShardGauges,
    ShardId, ToControl, ToShard,
};
pub use names::{NameKey, ShownUser};
pub use notices::{EndedLine, FailoverLine, FaultLine, NoticeBatch, Notices};
pub use table::{
    Permit, Refused, STRANGERS_PER_ADDRESS, Scope, Table, TableConfig, strangers_share,
};
pub use turned_away::TurnedAway;
