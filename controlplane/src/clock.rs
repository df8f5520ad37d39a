//! The only caller of the operating system's clock. Times that are stored or shown come from here; waiting is tokio's.

use crate::domain::UnixMillis;

/// Now, as people count. May jump; nothing but lifetimes and records depends on it.
#[allow(clippy::disallowed_methods)] // this is the clock the lint sends everyone to
pub fn unix_now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis());
    UnixMillis(u64::try_from(millis).unwrap_or(u64::MAX))
}
