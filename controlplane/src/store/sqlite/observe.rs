//! What the store tells metrics: how much it takes, and how long the disk takes to make a change last.

use std::time::Duration;

use metrics::{Unit, describe_gauge, describe_histogram, gauge, histogram};

use super::file::Files;

const BYTES: &str = "sluice_control_store_bytes";
const COMMIT: &str = "sluice_control_store_commit_seconds";

/// Says what each metric means.
pub(super) fn describe() {
    describe_gauge!(
        BYTES,
        Unit::Bytes,
        "Size of the store's file and its log, as of the last generation or readiness probe."
    );
    describe_histogram!(
        COMMIT,
        Unit::Seconds,
        "Time from the record of a change until it is on the disk."
    );
}

/// A change lasts.
pub(super) fn committed(took: Duration) {
    histogram!(COMMIT).record(took.as_secs_f64());
}

/// Looks how long the files are. What cannot be looked at is told by whoever uses it next.
pub(super) fn size(files: &Files) {
    if let Ok(bytes) = files.size_bytes() {
        gauge!(BYTES).set(bytes as f64);
    }
}
