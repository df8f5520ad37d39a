//! The whole shard in simulation: simulated clients, a simulated broker, a virtual clock, seeded faults.
//!
//! `chaos` lives a thousand random lives and compares each with a model; `basics` and `deadlines` play scenes. A seed that
//! fails says how to live it again.
#![allow(clippy::expect_used)] // helpers of a test are a test

#[path = "simulation/basics.rs"]
mod basics;
#[path = "simulation/bounds.rs"]
mod bounds;
#[path = "simulation/broker.rs"]
mod broker;
#[path = "simulation/chance.rs"]
mod chance;
#[path = "simulation/chaos.rs"]
mod chaos;
#[path = "simulation/deadlines.rs"]
mod deadlines;
#[path = "simulation/denials.rs"]
mod denials;
#[path = "simulation/device.rs"]
mod device;
#[path = "simulation/lag.rs"]
mod lag;
#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/notices.rs"]
mod notices;
#[path = "simulation/packets.rs"]
mod packets;
#[path = "simulation/reload.rs"]
mod reload;
#[path = "simulation/stage.rs"]
mod stage;
#[path = "simulation/strangers.rs"]
mod strangers;
#[path = "simulation/work.rs"]
mod work;

use std::collections::BTreeSet;
use std::panic::catch_unwind;

use sluice_dataplane::metrics::Counter;

/// Lives of one run of the tests; [`SEEDS_VARIABLE`] asks for more.
const SEEDS: u64 = 1000;
/// Threads that live them.
const THREADS: u64 = 2;
const SEED_VARIABLE: &str = "SLUICE_SIM_SEED";
const SEEDS_VARIABLE: &str = "SLUICE_SIM_SEEDS";

/// What the lives must have met: a simulation that never gets there proves nothing.
const REACHED: &[Counter] = &[
    Counter::PublishForwarded,
    Counter::PublishDenied,
    Counter::DeliveryForwarded,
    Counter::DeliveryDenied,
    Counter::SubscribeForwarded,
    Counter::SubscribeDenied,
    Counter::AcknowledgementsOwned,
    Counter::EndedClientDisconnect,
    Counter::EndedClientGone,
    Counter::EndedUpstreamGone,
    Counter::EndedUpstreamRefused,
    Counter::EndedUpstreamUnavailable,
    Counter::EndedViolation,
    Counter::EndedUnauthenticated,
    Counter::EndedKicked,
    Counter::EndedDrained,
    Counter::EndedOverload,
    Counter::AcceptFailed,
    Counter::DialFailed,
    Counter::DialFailover,
    Counter::DialNoSocket,
    Counter::SendShort,
    Counter::BacklogShed,
    Counter::AdmissionWaited,
];

#[test]
fn random_lives_agree_with_the_model() {
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        let seed = seed.parse().expect("a number");
        let counts = chaos::live(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        eprintln!("seed {seed}: {counts:?}");
        return;
    }
    let seeds =
        std::env::var(SEEDS_VARIABLE).map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    let threads: Vec<_> = (0..THREADS)
        .map(|first| std::thread::spawn(move || live_many(first, seeds)))
        .collect();
    let (mut failures, mut reached) = (Vec::new(), BTreeSet::new());
    for thread in threads {
        let (failed, met) = thread.join().expect("a thread");
        failures.extend(failed);
        reached.extend(met);
    }
    for (seed, why) in &failures {
        eprintln!(
            "seed {seed}: {why}\n  live it again: {SEED_VARIABLE}={seed} cargo test -p sluice-dataplane --test simulation random_lives"
        );
    }
    assert!(failures.is_empty(), "{} lives went wrong", failures.len());
    let missed: Vec<_> = REACHED
        .iter()
        .filter(|counter| !reached.contains(&(**counter as usize)))
        .collect();
    assert!(missed.is_empty(), "no life met {missed:?}");
}

/// Every second life; gives up after three failures.
fn live_many(first: u64, seeds: u64) -> (Vec<(u64, String)>, BTreeSet<usize>) {
    let (mut failures, mut reached) = (Vec::new(), BTreeSet::new());
    for seed in (first..seeds).step_by(THREADS as usize) {
        match live(seed) {
            Ok(counts) => reached.extend(counts.iter().map(|(counter, _)| *counter as usize)),
            Err(why) => failures.push((seed, why)),
        }
        if failures.len() == 3 {
            break;
        }
    }
    (failures, reached)
}

/// One life; a panic is a failure too.
fn live(seed: u64) -> Result<Vec<(Counter, u64)>, String> {
    catch_unwind(|| chaos::live(seed)).unwrap_or_else(|panic| {
        Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic".to_owned()))
    })
}
