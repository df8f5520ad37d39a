//! Low priority for what is slow: hashing and compiling must not take a shard's processor.

use rustix::process::{getpid, getpriority_process, setpriority_process};

/// How much nicer than the process slow work is.
const NICER_BY: i32 = 10;
/// The nicest there is.
const NICEST: i32 = 19;

/// Lowers the priority of the calling thread below the process's own. Refused (by a sandbox) the work is still done,
/// only less politely.
pub(crate) fn lower() {
    // On Linux the nice value belongs to the thread; the process id names the main thread, which never changes its own.
    let own = getpriority_process(Some(getpid())).unwrap_or(0);
    let _ = setpriority_process(Some(rustix::thread::gettid()), (own + NICER_BY).min(NICEST));
}
