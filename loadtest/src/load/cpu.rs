//! Processor time and memory of processes, from `/proc`, and pinning to a core.
//!
//! Owns what is read of `/proc`. Time comes from `schedstat` of each thread, which the scheduler keeps in nanoseconds;
//! the share of user time comes from `stat`, which has ticks of 10 ms and is only good as a ratio over seconds.

use std::fs;
use std::io;
use std::path::Path;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Pins the calling thread.
pub fn pin_this_thread(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        let text = format!("there is no core {core}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).map_err(|errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("cannot run on core {core}: {error}"))
    })
}

/// A reading of one or several processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Time on a core, all threads.
    pub cpu_ns: u64,
    /// User time in ticks.
    pub user_ticks: u64,
    /// Kernel time in ticks.
    pub system_ticks: u64,
    /// Resident memory.
    pub rss_kib: u64,
    /// Resident anonymous memory: what the program took for itself.
    pub anon_kib: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Reads `/proc` for each pid. A process that is gone is an error: a figure without it would be wrong.
    pub fn read(pids: &[u32]) -> io::Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let process = Path::new("/proc").join(pid.to_string());
            let one = Self::read_one(&process).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot read process {pid}: {error}"))
            })?;
            sum.cpu_ns += one.cpu_ns;
            sum.user_ticks += one.user_ticks;
            sum.system_ticks += one.system_ticks;
            sum.rss_kib += one.rss_kib;
            sum.anon_kib += one.anon_kib;
            sum.threads += one.threads;
        }
        Ok(sum)
    }

    fn read_one(process: &Path) -> io::Result<Self> {
        let mut usage = Self::default();
        for task in fs::read_dir(process.join("task"))? {
            // A thread may end between listing and reading.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            usage.cpu_ns += field(&text, 0);
            usage.threads += 1;
        }
        let stat = fs::read_to_string(process.join("stat"))?;
        // The name in parentheses may hold anything; fields are counted behind it. utime is the 14th of all, stime the 15th.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        usage.user_ticks = field(after_name, 11);
        usage.system_ticks = field(after_name, 12);
        let status = fs::read_to_string(process.join("status"))?;
        usage.rss_kib = status_kib(&status, "VmRSS:");
        usage.anon_kib = status_kib(&status, "RssAnon:");
        Ok(usage)
    }

    /// Time since an earlier reading, in microseconds.
    pub fn cpu_us_since(&self, earlier: &Self) -> f64 {
        self.cpu_ns.saturating_sub(earlier.cpu_ns) as f64 / 1_000.0
    }

    /// Which part of the time since an earlier reading was user time; `None` when too little passed to say.
    pub fn user_share_since(&self, earlier: &Self) -> Option<f64> {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks);
        let system = self.system_ticks.saturating_sub(earlier.system_ticks);
        (user + system >= 10).then(|| user as f64 / (user + system) as f64)
    }
}

fn field(text: &str, index: usize) -> u64 {
    text.split_whitespace()
        .nth(index)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

fn status_kib(status: &str, key: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .map_or(0, |rest| field(rest, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let usage = Usage::read(&[std::process::id()]).unwrap();
        assert!(usage.rss_kib > 0 && usage.anon_kib > 0 && usage.threads > 0);
        assert!(usage.anon_kib <= usage.rss_kib);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        // Above the highest pid that Linux can give.
        assert!(Usage::read(&[u32::MAX]).is_err());
    }

    #[test]
    fn differences_are_per_reading() {
        let earlier = Usage {
            cpu_ns: 1_000_000,
            user_ticks: 10,
            system_ticks: 10,
            ..Usage::default()
        };
        let later = Usage {
            cpu_ns: 3_500_000,
            user_ticks: 13,
            system_ticks: 19,
            ..Usage::default()
        };
        assert_eq!(later.cpu_us_since(&earlier), 2_500.0);
        assert_eq!(later.user_share_since(&earlier), Some(0.25));
        assert_eq!(earlier.user_share_since(&earlier), None);
    }
}
