//! The process as the kernel sees it, under the names that Prometheus' own client libraries use. What cannot be read is left
//! out. The data plane has its own copy: the two share no crate that reads files.

use std::fmt::Write;
use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::{describe, single};
use crate::domain::UnixMillis;

/// Everything.
pub(super) fn write(text: &mut String, started_at: UnixMillis) {
    let name = "sluice_control_build_info";
    let help = "Which version of the control plane runs, as a label of a series that is always 1.";
    describe(text, name, "gauge", help);
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(text, "{name}{{version=\"{version}\"}} 1");
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |field: &str| Some(1024.0 * number_after(&status, field)?);
    let figures = [
        (
            "process_cpu_seconds_total",
            "counter",
            "User and system processor time that the process has used, in seconds.",
            Some(cpu_seconds()),
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "When the process started, in seconds since 1970.",
            Some(started_at.0 as f64 / 1e3),
        ),
        (
            "process_open_fds",
            "gauge",
            "File descriptors that the process has open.",
            open_descriptors(),
        ),
        (
            "process_max_fds",
            "gauge",
            "File descriptors that the process may have open.",
            getrlimit(Resource::Nofile)
                .current
                .map(|limit| limit as f64),
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory of the process that is in RAM, in bytes.",
            kib("VmRSS:"),
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Address space that the process has reserved, in bytes.",
            kib("VmSize:"),
        ),
    ];
    for (name, kind, help, value) in figures {
        if let Some(value) = value {
            single(text, name, kind, help, value);
        }
    }
}

fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Without the one that looks.
fn open_descriptors() -> Option<f64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(open.saturating_sub(1) as f64)
}

fn number_after(text: &str, field: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let status = "Name:\tx\nVmSize:\t  2048 kB\nVmRSS:\t    17 kB\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(17.0));
        assert_eq!(number_after(status, "VmSize:"), Some(2048.0));
        assert_eq!(number_after(status, "VmSwap:"), None);
    }
}
