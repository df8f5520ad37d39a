//! The load generator: an open loop of simulated devices, a counting broker behind the target, and a report.
//!
//! It runs on monoio, an engine other than the data plane's, and shares no code with it: what measures must not inherit
//! the faults of what is measured. The scenarios are in `plan.rs`; a run goes through `scenario.rs` from top to bottom.

/// The command line.
pub mod args;
/// A scenario while something else is done.
pub mod beside;
/// Releases during traffic.
pub mod churn;
/// Monotonic time and an exact timer.
pub mod clock;
/// Several targets in turns.
pub mod compare;
/// CPU and memory of processes.
pub mod cpu;
/// One simulated device.
pub mod device;
/// What a run must show.
pub mod expect;
/// Packets.
pub mod frame;
/// How a mix of two generations is seen.
pub mod lanes;
/// The schedule.
pub mod pace;
/// What a run is asked to do.
pub mod plan;
/// Programs and their logs.
pub mod process;
/// From the release of a policy until it is active.
pub mod release;
/// What a run found.
pub mod report;
/// Runs a plan.
pub mod scenario;
/// The counting broker.
pub mod sink;
/// Programs that `compare` starts.
pub mod subject;
/// Where the load goes.
pub mod target;
