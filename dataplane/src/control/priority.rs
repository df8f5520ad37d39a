//! Low priority for what is slow: hashing and compiling must not take a shard's processor.

/// How much nicer than the shards slow work is (19 is the nicest).
const NICE: i32 = 10;

/// Lowers the priority of the calling thread. Refused (by a sandbox) the work is still done, only less politely.
pub(crate) fn lower() {
    // On Linux the nice value belongs to the thread, and a thread id names it.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
}
