//! A share of work, counted in nodes of the tables: what one call may do before others have their turn.
//!
//! Owns the unit. A node visited is one; what a question costs besides nodes is counted as the nodes that take as long.

/// What may be done in one go: on the worst tables this takes 250 us at most (bench `slices`).
pub const SLICE_NODES: u32 = 512;

/// A share of work, and what was done of it.
#[derive(Clone, Debug)]
pub struct Effort {
    share: u32,
    spent: u32,
}

impl Effort {
    /// A share of `nodes` nodes.
    #[must_use]
    pub fn new(nodes: u32) -> Self {
        Self {
            share: nodes,
            spent: 0,
        }
    }

    /// Nodes of work done so far. May exceed the share a little, because some steps cannot be divided.
    #[must_use]
    pub fn spent(&self) -> u32 {
        self.spent
    }

    /// True exactly when nothing is left: work that can wait stops here.
    #[inline]
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.spent >= self.share
    }

    /// Adds `nodes` to the work done.
    #[inline]
    pub fn spend(&mut self, nodes: u32) {
        self.spent = self.spent.saturating_add(nodes);
    }

    /// Adds a fixed part and a part that depends on sizes.
    #[inline]
    pub fn spend_for(&mut self, nodes: u32, more: usize) {
        self.spend(nodes.saturating_add(u32::try_from(more).unwrap_or(u32::MAX)));
    }
}
