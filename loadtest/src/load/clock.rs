//! The load tester's clock: monotonic nanoseconds, and a timer that fires at one of them.
//!
//! Owns the only clock reads of the load tester. One clock serves generator and sink, so that a time stamped by one can
//! be compared with a time read by the other.

use std::io;
use std::os::fd::OwnedFd;

use monoio::net::TcpStream;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Monotonic nanoseconds.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let secs = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    secs * NANOS_PER_SEC + nanos
}

/// Waits for points in time far more exactly than the millisecond wheel of the runtime: at 20,000 messages a second
/// that wheel would send twenty at once and measure its own lateness.
pub struct Metronome {
    timer: OwnedFd,
    /// A duplicate of `timer`. The runtime has no type for "any descriptor that can be polled", and of a stream only
    /// `readable` is used here, which is a poll whatever lies behind the descriptor.
    polled: TcpStream,
}

impl Metronome {
    /// A timer of the current runtime.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let polled = TcpStream::from_std(std::net::TcpStream::from(timer.try_clone()?))?;
        Ok(Self { timer, polled })
    }

    /// Returns at or after `at_ns`; at once when that has passed.
    pub async fn until(&self, at_ns: u64) -> io::Result<()> {
        if now() >= at_ns {
            return Ok(());
        }
        let at = Timespec {
            tv_sec: i64::try_from(at_ns / NANOS_PER_SEC).unwrap_or(i64::MAX),
            tv_nsec: (at_ns % NANOS_PER_SEC) as _,
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: at,
        };
        // Setting the timer also takes back an earlier expiry, so the descriptor need not be read.
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        self.polled.readable(false).await
    }
}
