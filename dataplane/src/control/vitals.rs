//! How the process is, as the kernel tells it: memory, descriptors, threads, when it was started.
//!
//! Reads `/proc` and nothing else; what cannot be read is missing, never 0. A few small files for each scrape.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Ticks of `/proc` in a second: USER_HZ, which is 100 on x86-64 and on arm64.
const TICKS_PER_SEC: f64 = 100.0;

/// How the process is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vitals {
    /// Memory that it really has.
    pub resident_bytes: Option<u64>,
    /// Memory that it has addresses for.
    pub virtual_bytes: Option<u64>,
    /// Descriptors that are open.
    pub descriptors_open: Option<u64>,
    /// The limit on descriptors; none when there is no limit.
    pub descriptors_max: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// When it was started, in seconds since 1970.
    pub started_unix_secs: Option<f64>,
}

impl Vitals {
    /// As they are at this moment.
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name| number_in(&status, name).and_then(|kib| kib.checked_mul(1024));
        let descriptors = fs::read_dir("/proc/self/fd").ok();
        Self {
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            // One of them is the folder, open for counting.
            descriptors_open: descriptors.map(|all| (all.count() as u64).saturating_sub(1)),
            descriptors_max: getrlimit(Resource::Nofile).current,
            threads: number_in(&status, "Threads:"),
            started_unix_secs: started(),
        }
    }
}

/// Resident memory alone.
pub(super) fn resident_bytes() -> Option<u64> {
    Vitals::read().resident_bytes
}

/// The first number of the line that begins so.
fn number_in(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The kernel counts the start in ticks from the boot of the machine.
fn started() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let ticks = start_ticks(&stat)?;
    let booted = number_in(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
    Some(booted as f64 + ticks as f64 / TICKS_PER_SEC)
}

/// Field 22 of `/proc/self/stat`. The name of the program, field 2, may hold spaces and brackets.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_known_on_linux() {
        let vitals = Vitals::read();
        let resident = vitals.resident_bytes.expect("resident");
        assert!(vitals.virtual_bytes.is_some_and(|bytes| bytes >= resident) && resident > 0);
        assert!(vitals.threads.is_some_and(|count| count > 0));
        let open = vitals.descriptors_open.expect("descriptors");
        assert!(
            (3..=vitals.descriptors_max.unwrap_or(u64::MAX)).contains(&open),
            "{open}"
        );
        // Between the boot of the machine and a moment ago, by the clock that /proc keeps.
        let uptime = fs::read_to_string("/proc/uptime").expect("uptime");
        let uptime: f64 = uptime
            .split(' ')
            .next()
            .and_then(|text| text.parse().ok())
            .expect("a number");
        let stat = fs::read_to_string("/proc/stat").expect("stat");
        let booted = number_in(&stat, "btime").expect("boot") as f64;
        let started = vitals.started_unix_secs.expect("start");
        assert!(
            (booted..=booted + uptime + 1.0).contains(&started),
            "{started}"
        );
    }

    #[test]
    fn the_start_is_found_behind_any_name() {
        let behind = "S 1 1 1 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 3 0 4242 1000 200";
        for name in ["sluice", "a b", "x) S 9 (y"] {
            assert_eq!(
                start_ticks(&format!("7 ({name}) {behind}")),
                Some(4242),
                "{name}"
            );
        }
        assert_eq!(start_ticks(""), None);
    }
}
