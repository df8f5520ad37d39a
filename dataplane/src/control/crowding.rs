//! One line a second at most about connections that are turned away: how many, why, and from where most of them came.
//!
//! Owns what was added up since the last line. Shards tell it in their notices; see `node/turned_away.rs`.

use std::fmt::Write;
use std::time::Duration;

use crate::clock::Time;
use crate::node::TurnedAway;

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// See the module documentation.
#[derive(Default)]
pub(super) struct Crowding {
    sum: TurnedAway,
    told: Option<Time>,
}

impl Crowding {
    pub(super) fn add(&mut self, seen: &TurnedAway) {
        self.sum.merge(seen);
    }

    /// What the next line is about; `None` while there is nothing, or a line was written just now.
    pub(super) fn take(&mut self, now: Time) -> Option<TurnedAway> {
        let is_soon = self.told.is_some_and(|told| now.since(told) < PAUSE);
        if self.sum.is_empty() || is_soon {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.sum))
    }
}

/// Writes the line.
pub(super) fn tell(seen: &TurnedAway) {
    let (address, count) = seen.most().unzip();
    tracing::warn!(
        connections = seen.total(),
        reasons = reasons(seen),
        most_from = address.map(tracing::field::display),
        about = count,
        "connections are turned away"
    );
}

/// As the metrics call them: `strangers_address 40, gave_way 2`.
fn reasons(seen: &TurnedAway) -> String {
    let mut text = String::new();
    for (reason, count) in seen.reasons() {
        // The only one without a reason for a label is that of strangers who gave way.
        let label = reason.labels().first().map(|(_, value)| *value);
        let name = label.unwrap_or("gave_way");
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{name} {count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::metrics::Counter;
    use crate::node::Address;

    #[test]
    fn a_line_a_second_says_what_happened_meanwhile() {
        let mut crowding = Crowding::default();
        let now = Time(5);
        assert_eq!(crowding.take(now), None);
        let from: Address = IpAddr::from([192, 0, 2, 1]).into();
        let mut seen = TurnedAway::default();
        seen.note(Counter::RefusedStrangersAddress, from);
        seen.note(Counter::RefusedStrangersAddress, from);
        seen.note(Counter::StrangersGaveWay, from);
        seen.note(Counter::RefusedNode, from);
        crowding.add(&seen);
        let told = crowding.take(now).expect("a line");
        assert_eq!(
            reasons(&told),
            "strangers_address 2, gave_way 1, node_full 1"
        );
        crowding.add(&seen);
        crowding.add(&seen);
        assert_eq!(crowding.take(now.after(PAUSE / 2)), None);
        let told = crowding.take(now.after(PAUSE)).expect("a line");
        assert_eq!((told.total(), told.most()), (8, Some((from, 8))));
    }
}
