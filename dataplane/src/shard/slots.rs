//! The sessions of a shard: a slab that grows by chunks and never moves what it holds.
//!
//! Owns the memory of sessions and their reuse counters. Knows nothing of what happens in a session. An idle session is
//! its [`Open`] and nothing else: what few need (a dial, a backlog) is boxed and dropped after use.

use std::net::IpAddr;

use sluice_policy::ListenerId;

use super::leg::Leg;
use crate::clock::Time;
use crate::node::{EndpointCell, Permit, SessionRef};
use crate::session::{Session, Side};
use crate::upstream::Dial;

/// Slots of a chunk: about 64 KiB at a kilobyte each.
const CHUNK: u32 = 64;
const NONE: u32 = u32::MAX;

/// A session of the shard and its two connections.
pub(super) struct Open {
    /// `None` exactly when the session is over and its connections are being closed.
    pub(super) session: Option<Session>,
    pub(super) down: Leg,
    pub(super) up: Leg,
    /// What the session waits for besides bytes.
    pub(super) waiting: Option<Box<Waiting>>,
    /// The deadline for which it was entered in the timer wheel; `Time(u64::MAX)` when it is not in.
    pub(super) timer: Time,
    pub(super) opened: Time,
    /// Its place in the node's counts; `None` only while it is being given back.
    pub(super) permit: Option<Permit>,
    pub(super) peer: IpAddr,
    pub(super) listener: ListenerId,
    /// Where the upstream connection is counted, once it stands.
    pub(super) cell: Option<EndpointCell>,
    /// What the budget counts for what the session keeps; see `pressure.rs`.
    pub(super) kept_bytes: usize,
}

/// What a session may wait for, one at a time.
#[derive(Debug)]
pub(super) enum Waiting {
    /// An upstream connection.
    Dial(Dial),
    /// The broker's answer to CONNECT, and how much of it is kept for another one.
    Connack { dial: Dial, kept_bytes: u64 },
    /// A password, until then at most.
    Password(Time),
}

impl Waiting {
    pub(super) fn is_dial(&self) -> bool {
        matches!(self, Self::Dial(_))
    }

    pub(super) fn is_connack(&self) -> bool {
        matches!(self, Self::Connack { .. })
    }
}

impl Open {
    pub(super) fn leg(&mut self, side: Side) -> &mut Leg {
        match side {
            Side::Downstream => &mut self.down,
            Side::Upstream => &mut self.up,
        }
    }
}

// A slot is as large as a session on purpose: sessions lie in chunks, not behind a pointer each.
#[allow(clippy::large_enum_variant)]
enum Slot {
    Free { next: u32, epoch: u32 },
    Open { epoch: u32, open: Open },
}

/// The slab.
pub(super) struct Slots {
    chunks: Vec<Vec<Slot>>,
    /// Slots ever used, dense from 0.
    used: u32,
    free: u32,
    open: u32,
    max: u32,
}

impl Slots {
    pub(super) fn new(max: u32) -> Self {
        Self {
            chunks: Vec::new(),
            used: 0,
            free: NONE,
            open: 0,
            max: max.min(NONE - 1),
        }
    }

    /// Sessions open.
    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// One more than the highest slot number in use so far; what a sweep walks over.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// True exactly when [`Slots::insert`] would refuse.
    pub(super) fn is_full(&self) -> bool {
        self.free == NONE && self.used >= self.max
    }

    /// Puts a session in; gives it back when every slot is taken.
    #[allow(clippy::large_types_passed_by_value)] // it is moved into its place
    pub(super) fn insert(&mut self, open: Open) -> Option<u32> {
        let index = match self.free {
            NONE => self.grow()?,
            free => free,
        };
        let slot = self.slot_mut(index)?;
        let Slot::Free { next, epoch } = *slot else {
            debug_assert!(false, "the free list names an open slot");
            return None;
        };
        *slot = Slot::Open { epoch, open };
        self.free = next;
        self.open += 1;
        Some(index)
    }

    /// Takes a session out; its epoch ends.
    pub(super) fn remove(&mut self, index: u32) -> Option<Open> {
        let free = self.free;
        let slot = self.slot_mut(index)?;
        let Slot::Open { epoch, .. } = *slot else {
            return None;
        };
        let next = Slot::Free {
            next: free,
            epoch: epoch.wrapping_add(1),
        };
        let Slot::Open { open, .. } = std::mem::replace(slot, next) else {
            return None;
        };
        self.free = index;
        self.open -= 1;
        Some(open)
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Open> {
        match self.slot(index)? {
            Slot::Open { open, .. } => Some(open),
            Slot::Free { .. } => None,
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Open> {
        match self.slot_mut(index)? {
            Slot::Open { open, .. } => Some(open),
            Slot::Free { .. } => None,
        }
    }

    /// The name of an open slot towards other threads.
    pub(super) fn name(&self, index: u32) -> Option<SessionRef> {
        match *self.slot(index)? {
            Slot::Open { epoch, .. } => Some(SessionRef { slot: index, epoch }),
            Slot::Free { .. } => None,
        }
    }

    /// The slot of a session that is still the same one.
    pub(super) fn find(&self, name: SessionRef) -> Option<u32> {
        (self.name(name.slot)? == name).then_some(name.slot)
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        self.chunks
            .get((index / CHUNK) as usize)?
            .get((index % CHUNK) as usize)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.chunks
            .get_mut((index / CHUNK) as usize)?
            .get_mut((index % CHUNK) as usize)
    }

    /// One more slot at the end.
    fn grow(&mut self) -> Option<u32> {
        if self.used >= self.max {
            return None;
        }
        let index = self.used;
        if index.is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK as usize));
        }
        self.chunks.last_mut()?.push(Slot::Free {
            next: NONE,
            epoch: 0,
        });
        self.used += 1;
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn open() -> Open {
        Open {
            session: None,
            down: Leg::none(),
            up: Leg::none(),
            waiting: None,
            timer: Time(0),
            opened: Time(0),
            permit: None,
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            listener: ListenerId(0),
            cell: None,
            kept_bytes: 0,
        }
    }

    /// The budget is a kilobyte for an idle session: its slot, its entry in the wheel (12), two socket owners (16), and
    /// what the session itself keeps on the heap (name and classes).
    #[test]
    fn an_idle_session_stays_small() {
        let bytes = size_of::<Slot>();
        assert!(bytes <= 512, "{bytes} bytes for each slot");
    }

    #[test]
    fn slots_are_bounded_reused_and_told_apart_by_their_epoch() {
        let max = CHUNK + 3;
        let mut slots = Slots::new(max);
        for index in 0..max {
            assert_eq!(slots.insert(open()), Some(index));
        }
        assert!(slots.is_full() && slots.insert(open()).is_none());
        let name = slots.name(5).unwrap();
        assert_eq!(slots.find(name), Some(5));
        assert!(slots.remove(5).is_some() && slots.remove(5).is_none());
        assert_eq!(
            (slots.find(name), slots.open(), slots.used()),
            (None, max - 1, max)
        );
        assert_eq!(slots.insert(open()), Some(5));
        assert_eq!(slots.find(name), None, "another session");
        assert_ne!(slots.name(5), Some(name));
    }
}
