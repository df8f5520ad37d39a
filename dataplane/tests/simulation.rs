//! The whole shard in simulation: simulated clients, a simulated broker, a virtual clock, seeded faults.

#[path = "simulation/basics.rs"]
mod basics;
#[path = "simulation/packets.rs"]
mod packets;
#[path = "simulation/stage.rs"]
mod stage;
