//! The control plane: stores policy as numbered generations, releases them, pushes them to every node and shows what is
//! really active there. It never sees a device's packet.
//!
//! Data goes one way: `api` asks `release` and `fleet`; `release` writes the `store` and publishes what is in force;
//! `fleet` watches that and brings it to the nodes. Floors and invariants stand in `README.md`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

/// Health and metrics over HTTP.
pub mod admin;
/// What operators can ask over gRPC.
pub mod api;
/// Who may call.
pub mod auth;
/// Start and end of the process.
pub mod boot;
/// The certificate of the gRPC server.
pub mod certificate;
/// The only caller of the operating system's clock.
pub mod clock;
/// The settings of the process.
pub mod config;
/// Connections from outside, bounded.
pub mod connections;
/// sluicectl.
pub mod ctl;
/// Plain types and their rules.
pub mod domain;
/// Nodes: their streams, what they have and what they lack.
pub mod fleet;
/// The log.
pub mod logging;
/// What is counted.
pub mod metrics;
/// Whether it can do its work.
pub mod readiness;
/// From documents to generations in force.
pub mod release;
/// The gRPC server.
pub mod server;
/// Where everything is kept.
pub mod store;
