//! The waker of both real engines: an eventfd that is written once, however often it is used before the ring looks.
//!
//! Used from any thread; the ring side is [`EventWaker::take`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::EventfdFlags;

use super::Wake;

/// Wakes a ring by an eventfd.
pub(super) struct EventWaker {
    eventfd: OwnedFd,
    /// True from the first use until the ring has seen it; further uses meanwhile have nothing to add.
    pending: AtomicBool,
}

impl EventWaker {
    /// `nonblocking` as the engine needs it for reading.
    pub(super) fn new(nonblocking: bool) -> io::Result<Self> {
        let mut flags = EventfdFlags::CLOEXEC;
        flags.set(EventfdFlags::NONBLOCK, nonblocking);
        Ok(Self {
            eventfd: rustix::event::eventfd(0, flags)?,
            pending: AtomicBool::new(false),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Marks the wake as seen. Must come after the eventfd was read and before [`super::Event::Woken`] is told: what
    /// another thread did before its `wake` is then visible, and a later `wake` writes again.
    pub(super) fn take(&self) {
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl Wake for EventWaker {
    fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // It cannot fail for lack of room: the counter is at most one between two reads.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }
}
