//! How much slow work is done at once, and for whom: who may bring a document, how many bytes of documents are held, how
//! many are tried, what a trial may take, and at which priority.
//!
//! There are two shares of all this, one for calls that write and one for calls that only look.
//!
//! # Invariants
//!
//! - **Calls that write never wait for calls that look**: neither for a seat, nor for memory, nor for a thread.
//! - A seat is taken before the first byte of a document is kept, and given back when the last of it is gone.
//! - A document that is still coming in holds a seat and its bytes, and no place among the trials.
//! - Slow work runs on threads of its own at low priority, so that calls and the nodes' streams are answered meanwhile.
//! - Work is cancelled when the call it is for has gone.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;
use metrics::{counter, gauge};
use sluice_policy::Cancel;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{Bounds, Failed, Limits};
use crate::domain::TokenId;

/// The nicest there is.
const NICEST: i32 = 19;
/// Memory is counted in these, because a semaphore counts to 2^32 at once.
const UNIT_BYTES: usize = 1024;

/// Which calls slow work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Those that only look.
    Readers,
    /// Those that write.
    Writers,
}

/// Shows every counter of trials before the first.
pub(super) fn count_from_zero() {
    for share in [Share::Readers, Share::Writers].map(Share::name) {
        gauge!("sluice_control_trials_underway", "share" => share).set(0.0);
        for end in ["done", "cancelled"] {
            counter!("sluice_control_trials_total", "share" => share, "end" => end).increment(0);
        }
        for reason in ["token", "seats", "memory", "size"] {
            counter!("sluice_control_trials_refused_total", "share" => share, "reason" => reason)
                .increment(0);
        }
    }
}

impl Share {
    /// Label and word.
    fn name(self) -> &'static str {
        match self {
            Self::Readers => "readers",
            Self::Writers => "writers",
        }
    }

    /// How much nicer than the process the work is.
    fn nicer_by(self) -> i32 {
        match self {
            Self::Readers => NICEST,
            Self::Writers => 10,
        }
    }
}

/// See the module documentation.
pub(super) struct Desk {
    readers: Arc<Lane>,
    writers: Arc<Lane>,
}

/// What one share has.
struct Lane {
    share: Share,
    bounds: Bounds,
    seats: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    trials: Arc<Semaphore>,
    /// Seats taken by each token; those with none are left out.
    taken: Mutex<HashMap<TokenId, usize>>,
}

/// The right to bring one document, or to have one generation read or compiled.
pub struct Seat {
    _seat: OwnedSemaphorePermit,
    held: Option<OwnedSemaphorePermit>,
    bytes: usize,
    of_token: OfToken,
}

/// One of a token's seats.
struct OfToken {
    lane: Arc<Lane>,
    token: TokenId,
}

/// A seat whose turn has come. Cheap to clone; the turn is over when the last copy is gone.
#[derive(Clone)]
pub(super) struct Turn {
    held: Arc<Held>,
}

struct Held {
    seat: Seat,
    _turn: OwnedSemaphorePermit,
}

impl Desk {
    pub(super) fn new(limits: &Limits) -> Self {
        let lane = |share, bounds: &Bounds| Arc::new(Lane::new(share, bounds.clone()));
        Self {
            readers: lane(Share::Readers, &limits.readers),
            writers: lane(Share::Writers, &limits.writers),
        }
    }

    /// A seat for a call of this token, if one is free.
    pub(super) fn seat(&self, share: Share, token: &TokenId) -> Result<Seat, Failed> {
        let lane = match share {
            Share::Readers => &self.readers,
            Share::Writers => &self.writers,
        };
        Lane::seat(lane, token)
    }
}

impl Lane {
    fn new(share: Share, bounds: Bounds) -> Self {
        Self {
            share,
            seats: Arc::new(Semaphore::new(bounds.seats_max)),
            memory: Arc::new(Semaphore::new(bounds.documents_bytes_max / UNIT_BYTES)),
            trials: Arc::new(Semaphore::new(bounds.trials_max.max(1))),
            taken: Mutex::default(),
            bounds,
        }
    }

    fn seat(lane: &Arc<Self>, token: &TokenId) -> Result<Seat, Failed> {
        let of_token = Self::of_token(lane, token)?;
        let seat = Arc::clone(&lane.seats).try_acquire_owned();
        let seat = seat.map_err(|_| {
            lane.refuse(
                "seats",
                "too many documents are being read or compiled; try again later".into(),
            )
        })?;
        Ok(Seat {
            _seat: seat,
            held: None,
            bytes: 0,
            of_token,
        })
    }

    fn of_token(lane: &Arc<Self>, token: &TokenId) -> Result<OfToken, Failed> {
        let mut taken = lane.taken();
        let count = taken.get(token).copied().unwrap_or(0);
        if count >= lane.bounds.seats_per_token_max {
            let other = match lane.share {
                Share::Readers => "a document to look at or a generation to read",
                Share::Writers => "as many documents to apply as it may",
            };
            return Err(lane.refuse(
                "token",
                format!("this token has {other} under way already: wait for that call to end, or end it, then try again"),
            ));
        }
        taken.insert(token.clone(), count + 1);
        Ok(OfToken {
            lane: Arc::clone(lane),
            token: token.clone(),
        })
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, HashMap<TokenId, usize>> {
        // Nothing panics between lock and unlock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, reason: &'static str, text: String) -> Failed {
        let share = self.share.name();
        counter!("sluice_control_trials_refused_total", "share" => share, "reason" => reason)
            .increment(1);
        Failed::Busy(text)
    }
}

impl Drop for OfToken {
    fn drop(&mut self) {
        let mut taken = self.lane.taken();
        match taken.get_mut(&self.token) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                taken.remove(&self.token);
            }
        }
    }
}

impl Seat {
    fn lane(&self) -> &Arc<Lane> {
        &self.of_token.lane
    }

    /// Makes room for more bytes of the document.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Failed> {
        if self.grow_if_free(bytes) {
            return Ok(());
        }
        let share = self.lane().share.name();
        let text = format!(
            "the documents of other {share} take all the memory there is for them; try again later"
        );
        Err(self.lane().refuse("memory", text))
    }

    /// The same. False: there is none, and nothing has changed.
    pub(super) fn grow_if_free(&mut self, bytes: usize) -> bool {
        let units = |bytes: usize| bytes.div_ceil(UNIT_BYTES);
        let more = units(self.bytes + bytes) - units(self.bytes);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.lane().memory).try_acquire_many_owned(more) else {
            return false;
        };
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        self.bytes += bytes;
        true
    }

    /// Refuses work that would take more memory than there is for it, before it is begun.
    pub(super) fn affords(&self, bytes: usize) -> Result<(), Failed> {
        let bytes_max = self.lane().bounds.trial_bytes_max;
        if bytes <= bytes_max {
            return Ok(());
        }
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let text = format!(
            "this takes about {} MiB of memory, and calls that only look may take {} MiB (--readers-memory-mib of the control \
             plane); a document can be checked without a server: sluicectl validate -f FILE",
            mib(bytes),
            mib(bytes_max)
        );
        Err(self.lane().refuse("size", text))
    }

    /// Waits for the turn of work that takes so much memory.
    pub(super) async fn turn(self, bytes: usize) -> Result<Turn, Failed> {
        self.affords(bytes)?;
        let turn = Arc::clone(&self.lane().trials).acquire_owned().await;
        let turn = turn.map_err(|_| Failed::Stopped)?; // never: it is not closed
        Ok(Turn {
            held: Arc::new(Held {
                seat: self,
                _turn: turn,
            }),
        })
    }
}

impl Turn {
    /// Does slow work, which changes nothing, on a thread of its own. The flag is set when the caller has gone; the turn is
    /// over only when the work has ended as well.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cancel) -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let cancel = Cancel::new();
        let _gone = CancelOnDrop(cancel.clone());
        let turn = self.clone();
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("trial".into());
        let spawned = thread.spawn(move || {
            let share = turn.held.seat.lane().share;
            lower_priority(share.nicer_by());
            let underway = gauge!("sluice_control_trials_underway", "share" => share.name());
            underway.increment(1);
            let done = work(&cancel);
            underway.decrement(1);
            let end = if cancel.is_cancelled() {
                "cancelled"
            } else {
                "done"
            };
            counter!("sluice_control_trials_total", "share" => share.name(), "end" => end)
                .increment(1);
            drop(turn);
            let _ = sender.send(done); // the caller may have left
        });
        spawned.map_err(|error| Failed::Busy(format!("no thread to compile on: {error}")))?;
        receiver.await.map_err(|_| Failed::Stopped)
    }
}

/// Cancels when its owner, who waits for the result, is gone.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Makes the calling thread nicer than the process. A system that refuses leaves it as it is: slower for others, not wrong.
fn lower_priority(nicer_by: i32) {
    use rustix::process::{getpid, getpriority_process, setpriority_process};
    // On Linux the nice value belongs to the thread; the process id names the main thread, which never changes its own.
    let own = getpriority_process(Some(getpid())).unwrap_or(0);
    let nice = (own + nicer_by).min(NICEST);
    let _ = setpriority_process(Some(rustix::thread::gettid()), nice);
}
