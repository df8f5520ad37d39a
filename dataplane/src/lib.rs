//! The data plane of Sluice. One line for each room:

/// Health, metrics and views for operators, over HTTP.
pub mod admin;
/// Start and end of the process.
pub mod boot;
/// The command line.
pub mod cli;
/// The only caller of the operating system's clock.
pub mod clock;
/// The settings of one node.
pub mod config;
/// The one thread for everything slow.
pub mod control;
/// Lines on standard error.
pub mod logging;
/// What a shard counts.
pub mod metrics;
/// What shards and the control thread share.
pub mod node;
/// Sockets and bytes: io_uring, epoll, simulated.
pub mod ring;
/// What we do with one client.
pub mod session;
/// One core's event loop.
pub mod shard;
/// Which endpoint, how often, how long: the broker's side.
pub mod upstream;
