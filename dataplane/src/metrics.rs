//! What a shard counts: plain single-writer cells, read by the control thread on a tick. Never a macro on the hot path.
//!
//! Labels are closed: a counter is a variant of [`Counter`] with a fixed name and fixed label values.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the counters once: variant, metric name, labels. The table is the documentation and the exporter's source.
macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal { $($label:literal : $value:literal),* };)*) => {
        /// Everything a shard counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant),* }

        impl Counter {
            /// All counters, in order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// Prometheus name.
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }
            /// Fixed label values.
            pub fn labels(self) -> &'static [(&'static str, &'static str)] {
                match self { $(Self::$variant => &[$(($label, $value)),*]),* }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    ConnectionsAccepted => "sluice_connections_accepted_total" {};
    /// PUBLISH packets from clients that were forwarded.
    PublishForwarded => "sluice_publish_total" { "direction": "up", "result": "forwarded" };
    /// PUBLISH packets from clients that policy refused.
    PublishDenied => "sluice_publish_total" { "direction": "up", "result": "denied" };
    /// PUBLISH packets from the upstream that were forwarded.
    DeliveryForwarded => "sluice_publish_total" { "direction": "down", "result": "forwarded" };
    /// PUBLISH packets from the upstream that policy refused.
    DeliveryDenied => "sluice_publish_total" { "direction": "down", "result": "denied" };
}

/// One shard's counters. Written by that shard only, so an addition is a load and a store.
pub struct Counters {
    cells: [AtomicU64; Counter::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            cells: [const { AtomicU64::new(0) }; Counter::ALL.len()],
        }
    }
}

impl Counters {
    /// Adds `n`. Only the owning shard may call this.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(cell) = self.cells.get(counter as usize) {
            cell.store(
                cell.load(Ordering::Relaxed).wrapping_add(n),
                Ordering::Relaxed,
            );
        }
    }

    /// The value, from any thread.
    pub fn read(&self, counter: Counter) -> u64 {
        self.cells
            .get(counter as usize)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}
