//! What a session does with bytes: a harness that plays the shard, the client and the broker of one session, and the
//! behaviour by area. No socket, no clock, no sleep.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that meets an impossible value should stop there.

mod harness;

mod ends;
mod messages;
mod opening;
// mod streams;
mod subscriptions;
