//! How much is done at once: who may bring a document, how many bytes of documents are held, how many are compiled, and at
//! which priority.
//!
//! # Invariants
//!
//! - A seat is taken before the first byte of a document is kept, and given back when the last of it is gone.
//! - Slow work runs on threads of its own at low priority, so that calls and the nodes' streams are answered meanwhile.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{Failed, Limits};

/// How much nicer than the process slow work is.
const NICER_BY: i32 = 10;
/// The nicest there is.
const NICEST: i32 = 19;
/// Memory is counted in these, because a semaphore counts to 2^32 at once.
const UNIT_BYTES: usize = 1024;

/// See the module documentation.
#[derive(Clone)]
pub(super) struct Desk {
    seats: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    trials: Arc<Semaphore>,
}

/// The right to bring one document, or to have one generation compiled.
pub struct Seat {
    _seat: OwnedSemaphorePermit,
    memory: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Desk {
    pub(super) fn new(limits: &Limits) -> Self {
        let trials_max = limits.trials_max.max(1);
        Self {
            seats: Arc::new(Semaphore::new(trials_max + limits.waiting_max)),
            memory: Arc::new(Semaphore::new(limits.documents_bytes_max / UNIT_BYTES)),
            trials: Arc::new(Semaphore::new(trials_max)),
        }
    }

    /// A seat, if one is free.
    pub(super) fn seat(&self) -> Result<Seat, Failed> {
        let seat = Arc::clone(&self.seats).try_acquire_owned();
        let seat = seat.map_err(|_| {
            Failed::Busy("too many documents are being read or compiled; try again later".into())
        })?;
        Ok(Seat {
            _seat: seat,
            memory: Arc::clone(&self.memory),
            held: None,
            bytes: 0,
        })
    }

    /// Waits for its turn, then does slow work, which changes nothing, on a thread of its own. Who asks holds a seat meanwhile, so the line is
    /// bounded.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let turn = Arc::clone(&self.trials).acquire_owned().await;
        let turn = turn.map_err(|_| Failed::Stopped)?; // never: nobody closes it
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("trial".into());
        let spawned = thread.spawn(move || {
            lower_priority();
            let done = work();
            drop(turn);
            let _ = sender.send(done); // nobody waits any more: fine
        });
        spawned.map_err(|error| Failed::Busy(format!("no thread to compile on: {error}")))?;
        receiver.await.map_err(|_| Failed::Stopped)
    }
}

impl Seat {
    /// Makes room for more bytes of the document.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Failed> {
        let units = |bytes: usize| bytes.div_ceil(UNIT_BYTES);
        let more = units(self.bytes + bytes) - units(self.bytes);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.memory).try_acquire_many_owned(more);
        let permit = permit.map_err(|_| {
            Failed::Busy("other documents take all the memory there is for them; try again".into())
        })?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        self.bytes += bytes;
        Ok(())
    }
}

/// Makes the calling thread nicer than the process. A system that refuses leaves it as it is: slower for others, not wrong.
fn lower_priority() {
    use rustix::process::{getpid, getpriority_process, setpriority_process};
    // On Linux the nice value belongs to the thread; the process id names the main thread, which never changes its own.
    let own = getpriority_process(Some(getpid())).unwrap_or(0);
    let nice = (own + NICER_BY).min(NICEST);
    let _ = setpriority_process(Some(rustix::thread::gettid()), nice);
}
