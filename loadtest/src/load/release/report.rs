//! What a measurement of releases found: every round, and medians with their range. Times are microseconds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::super::report::{Spread, shown};
use super::ReleaseArgs;

/// All series.
#[derive(Debug, Default, Serialize)]
pub struct Releases {
    /// The options that matter for reading the numbers.
    pub settings: BTreeMap<String, String>,
    /// In the order measured.
    pub series: Vec<Series>,
}

/// Releases of one kind with one size of policy.
#[derive(Debug, Default, Serialize)]
pub struct Series {
    /// Kind and rules, such as `change/10000`.
    pub label: String,
    /// Every number of every release.
    pub rounds: Vec<BTreeMap<String, f64>>,
    /// Median and range of each number.
    pub spread: BTreeMap<String, Spread>,
}

impl Series {
    /// Nothing measured yet.
    pub fn new(kind: &str, rules: u32) -> Self {
        Self {
            label: format!("{kind}/{rules}"),
            ..Self::default()
        }
    }

    /// Adds a release, and gives a line about it.
    pub fn push(&mut self, round: BTreeMap<String, f64>) -> String {
        let mut line = format!("{:<20} {:>3}", self.label, self.rounds.len() + 1);
        let names = ["store", "delivery", "compile", "sweep", "acknowledge"];
        let names = names.map(|step| format!("step.{step}"));
        let names = ["active".to_owned()].into_iter().chain(names);
        for name in names.chain(["watch".to_owned(), "added.p99.9".to_owned()]) {
            if let Some(micros) = round.get(&name) {
                // Writing to a string cannot fail.
                let _ = write!(line, "  {name} {:.2} ms", micros / 1_000.0);
            }
        }
        self.rounds.push(round);
        line
    }

    /// Takes medians.
    pub fn summarise(&mut self) {
        let names: Vec<String> = self
            .rounds
            .iter()
            .flat_map(|round| round.keys().cloned())
            .collect();
        for name in names {
            let values: Vec<f64> = self
                .rounds
                .iter()
                .filter_map(|round| round.get(&name).copied())
                .collect();
            if let Some(spread) = Spread::of(&values) {
                self.spread.insert(name, spread);
            }
        }
    }
}

impl Releases {
    /// Of these options, nothing measured yet.
    pub fn new(args: &ReleaseArgs) -> Self {
        let settings = [
            ("nodes", args.nodes.to_string()),
            ("shards", args.shards.to_string()),
            ("changes", args.changes.to_string()),
            ("rollbacks", args.rollbacks.to_string()),
            ("traffic_rate", args.traffic_rate.to_string()),
            ("connections", args.connections.to_string()),
        ];
        Self {
            settings: BTreeMap::from(settings.map(|(name, value)| (name.to_owned(), value))),
            series: Vec::new(),
        }
    }

    /// Every median by a flat name, such as `change/10000/active`.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let mut numbers = BTreeMap::new();
        for series in &self.series {
            for (name, spread) in &series.spread {
                numbers.insert(format!("{}/{name}", series.label), spread.median);
            }
        }
        numbers
    }

    /// The table for people.
    pub fn text(&self) -> String {
        let settings: Vec<_> = self
            .settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let mut text = format!("release ({})\n", settings.join(", "));
        for series in &self.series {
            let _ = writeln!(
                text,
                "\n{:<24}{:>6}{:>14}{:>14}{:>14}",
                series.label,
                series.rounds.len(),
                "median us",
                "least",
                "most"
            );
            for (name, spread) in &series.spread {
                let _ = writeln!(
                    text,
                    "  {name:<28}{:>14}{:>14}{:>14}",
                    shown(spread.median),
                    shown(spread.min),
                    shown(spread.max)
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_have_flat_names() {
        let mut series = Series::new("change", 10);
        for active in [3.0, 1.0, 2.0] {
            series.push(BTreeMap::from([("active".to_owned(), active)]));
        }
        series.summarise();
        let releases = Releases {
            series: vec![series],
            ..Releases::default()
        };
        assert_eq!(releases.numbers().get("change/10/active"), Some(&2.0));
        assert!(releases.text().contains("change/10"));
    }
}
