//! Test peers of Sluice: a scriptable stub broker, a raw MQTT client and the harness that starts real programs.
//!
//! Nothing here is used by the data plane. The packet builders are deliberately independent of `sluice-wire`: an encoder
//! shared with the code under test would hide its mistakes, and a test must be able to say illegal things.

/// A raw MQTT client: sends packets or bytes, expects whole packets.
pub mod client;
/// A node of the fleet without a data plane behind it.
pub mod fleet_node;
/// Starts Mosquitto and the data plane on free ports and stops them again.
pub mod harness;
/// The load generator.
pub mod load;
/// Bytes of MQTT packets, legal and illegal ones.
pub mod packet;
/// The one generous timeout, and waiting for events under it.
pub mod patience;
/// TCP or Unix stream behind one type.
pub mod stream;
/// A broker that does what it is told.
pub mod stub;
