//! What a session does with bytes: a harness that plays the shard, the client and the broker of one session, and the
//! behaviour by area. No socket, no clock, no sleep.
// A test that meets an impossible value, or a packet of another kind than it asked for, should stop there; its tables are
// read where they stand.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::type_complexity
)]

mod harness;
mod judging;

mod admitting;
mod chance;
mod credentials;
mod denials;
mod ends;
mod faults;
mod messages;
mod opening;
mod order;
mod reason_strings;
mod regressions;
mod room;
mod rules;
mod streams;
mod subscriptions;
