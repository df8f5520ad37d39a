//! The data plane of Sluice. One line for each room:

/// The only caller of the operating system's clock.
pub mod clock;
/// What a shard counts.
pub mod metrics;
/// What shards and the control thread share.
pub mod node;
/// Sockets and bytes: io_uring, epoll, simulated.
pub mod ring;
/// What we do with one client.
pub mod session;
/// Which endpoint, how often, how long: the broker's side.
pub mod upstream;
