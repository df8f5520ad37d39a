//! What a run found: counts, latencies, cost of the target; as a text table, as JSON, and as a flat list of numbers.
//!
//! Owns the arithmetic of reporting. It reads no clock and starts nothing. Times are microseconds, memory KiB.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

/// 60 s: anything slower is recorded as that.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// A histogram of times, three digits exact.
#[derive(Clone, Debug)]
pub struct Latency(Option<Histogram<u64>>);

impl Default for Latency {
    fn default() -> Self {
        // The bounds are constants that the library accepts; without a histogram nothing would be recorded, and shown as such.
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).ok())
    }
}

impl Latency {
    /// Adds one time.
    pub fn record_ns(&mut self, nanos: u64) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(nanos);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        if let Some(histogram) = &mut self.0 {
            histogram.reset();
        }
    }

    /// The summary; `None` when nothing was recorded.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Some(Quantiles {
            count: histogram.len(),
            mean: histogram.mean() / 1_000.0,
            p50: at(0.50),
            p90: at(0.90),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1_000.0,
        })
    }
}

/// Summary of a histogram, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many times were recorded.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// Largest, exact to three digits.
    pub max: f64,
}

impl Quantiles {
    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("mean", self.mean),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p999),
            ("max", self.max),
        ]
    }
}

/// The finished run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Which scenario.
    pub scenario: String,
    /// Which target.
    pub target: String,
    /// The options that matter for reading the numbers.
    pub settings: BTreeMap<String, String>,
    /// Length of the measured window.
    pub seconds: f64,
    /// The histogram that `p50`, `p99`... without a name mean.
    pub primary: String,
    /// Latencies by name.
    pub latency_us: BTreeMap<String, Quantiles>,
    /// Counts and costs by name.
    pub values: BTreeMap<String, f64>,
}

impl Report {
    /// Adds a summary unless nothing was recorded.
    pub fn latency(&mut self, name: &str, latency: &Latency) {
        if let Some(quantiles) = latency.quantiles() {
            self.latency_us.insert(name.into(), quantiles);
        }
    }

    /// Adds a number.
    pub fn value(&mut self, name: &str, value: f64) {
        self.values.insert(name.into(), value);
    }

    /// Adds a count.
    pub fn count(&mut self, name: &str, count: u64) {
        self.value(name, count as f64);
    }

    /// Every number by a flat name: `p99` (of the primary latency), `ack.p99`, `lost`, `cpu_us_per_message`...
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let mut numbers = self.values.clone();
        for (name, quantiles) in &self.latency_us {
            for (quantile, value) in quantiles.named() {
                numbers.insert(format!("{name}.{quantile}"), value);
                if *name == self.primary {
                    numbers.insert(quantile.into(), value);
                }
            }
        }
        numbers
    }

    /// The table for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let settings: Vec<_> = self
            .settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} against {}, {:.1} s measured ({})",
            self.scenario,
            self.target,
            self.seconds,
            settings.join(", ")
        );
        if !self.latency_us.is_empty() {
            let _ = writeln!(
                text,
                "\n{:<12}{:>10}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}",
                "us", "count", "mean", "p50", "p90", "p99", "p99.9", "max"
            );
            for (name, q) in &self.latency_us {
                let _ = writeln!(
                    text,
                    "{name:<12}{:>10}{:>11.1}{:>11.1}{:>11.1}{:>11.1}{:>11.1}{:>11.1}",
                    q.count, q.mean, q.p50, q.p90, q.p99, q.p999, q.max
                );
            }
        }
        text.push('\n');
        for (name, value) in &self.values {
            let _ = writeln!(text, "{name:<32}{:>16}", shown(*value));
        }
        text
    }
}

/// Counts without a fraction, costs with three digits behind the point.
pub fn shown(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

impl Report {
    /// What makes its numbers doubtful, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let value = |name: &str| self.values.get(name).copied().unwrap_or(0.0);
        let mut warnings = Vec::new();
        for (name, what) in [
            (
                "connect_failures",
                "connections failed (enough descriptors? see ulimit -n, and the target's log)",
            ),
            ("broken", "connections ended before the run did"),
            ("lost", "messages did not arrive at the broker"),
            (
                "unsent",
                "messages or connections were due and could not be begun",
            ),
        ] {
            if value(name) > 0.0 {
                warnings.push(format!("{} {what}", value(name)));
            }
        }
        let p50 = |name: &str| self.latency_us.get(name).map(|quantiles| quantiles.p50);
        if let (Some(late), Some(seen)) = (p50("lateness"), p50(&self.primary))
            && late > seen / 2.0
        {
            warnings.push(format!(
                "the generator itself was late by {late:.0} us at the median: latencies say little"
            ));
        }
        warnings
    }
}

/// Median, quartiles and range of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; the mean of the two middle ones when their number is even.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// A quarter of them is below; between neighbours on a straight line.
    pub low: f64,
    /// A quarter of them is above.
    pub high: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values
            .iter()
            .copied()
            .filter(|value| value.is_finite())
            .collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: part(&sorted, 0.5)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            low: part(&sorted, 0.25)?,
            high: part(&sorted, 0.75)?,
        })
    }
}

/// The value with `share` of the others below it, between neighbours on a straight line.
fn part(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * (sorted.len().checked_sub(1)? as f64);
    let lower = *sorted.get(place.floor() as usize)?;
    let upper = *sorted.get(place.ceil() as usize)?;
    Some(lower + (upper - lower) * place.fract())
}

/// The numbers of a stored report (of any shape this program writes) by their path, for comparing two of them: those of single
/// rounds are left out, and who has a label is named by it.
pub fn flatten(json: &serde_json::Value) -> BTreeMap<String, f64> {
    fn walk(path: &str, value: &serde_json::Value, found: &mut BTreeMap<String, f64>) {
        let below = |name: &str| {
            if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}/{name}")
            }
        };
        match value {
            serde_json::Value::Number(number) => {
                found.insert(path.to_owned(), number.as_f64().unwrap_or(f64::NAN));
            }
            serde_json::Value::Object(fields) => {
                // Single rounds of two runs have nothing to do with each other.
                for (name, value) in fields.iter().filter(|(name, _)| *name != "rounds") {
                    walk(&below(name), value, found);
                }
            }
            serde_json::Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    // Who is compared is known by name, whatever place he had.
                    let label = value.get("label").and_then(serde_json::Value::as_str);
                    walk(&below(label.unwrap_or(&index.to_string())), value, found);
                }
            }
            serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::String(_) => {
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", json, &mut found);
    found
}

/// What was not the same when the two were measured, a line each: their numbers may not be comparable.
fn unlike(before: &serde_json::Value, after: &serde_json::Value) -> String {
    let settings = |json: &serde_json::Value| {
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        let fields = json.get("settings").and_then(serde_json::Value::as_object);
        for (name, value) in fields.into_iter().flatten() {
            found.insert(name.clone(), value.to_string());
        }
        for name in ["scenario", "base"] {
            if let Some(value) = json.get(name) {
                found.insert(name.to_owned(), value.to_string());
            }
        }
        found
    };
    let (before, after) = (settings(before), settings(after));
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let none = "nothing".to_owned();
    names
        .into_iter()
        .map(|name| {
            (
                name,
                before.get(name).unwrap_or(&none),
                after.get(name).unwrap_or(&none),
            )
        })
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("not the same: {name} was {old} and is {new}\n"))
        .collect()
}

/// Two stored reports side by side, without what is nothing in both: name, before, after, ratio.
pub fn difference(before: &serde_json::Value, after: &serde_json::Value) -> String {
    let mut text = unlike(before, after);
    let (before, after) = (flatten(before), flatten(after));
    let _ = writeln!(
        text,
        "{:<56}{:>14}{:>14}{:>9}",
        "", "before", "after", "ratio"
    );
    let is_nothing = |name: &String, new: f64| new == 0.0 && before.get(name) == Some(&0.0);
    for (name, new) in after.iter().filter(|(name, new)| !is_nothing(name, **new)) {
        let line = match before.get(name) {
            Some(old) if *old != 0.0 => {
                format!("{:>14}{:>14}{:>9.3}", shown(*old), shown(*new), new / old)
            }
            Some(old) => format!("{:>14}{:>14}{:>9}", shown(*old), shown(*new), "-"),
            None => format!("{:>14}{:>14}{:>9}", "-", shown(*new), "-"),
        };
        let _ = writeln!(text, "{name:<56}{line}");
    }
    for (name, old) in before.iter().filter(|(name, _)| !after.contains_key(*name)) {
        let _ = writeln!(text, "{name:<56}{:>14}{:>14}{:>9}", shown(*old), "-", "-");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_microseconds_of_recorded_nanoseconds() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantiles(), None, "nothing is not zero");
        for micros in 1..=1_000 {
            latency.record_ns(micros * 1_000);
        }
        let quantiles = latency.quantiles().unwrap();
        assert_eq!(quantiles.count, 1_000);
        for (seen, expected) in [
            (quantiles.p50, 500.0),
            (quantiles.p90, 900.0),
            (quantiles.p99, 990.0),
            (quantiles.p999, 999.0),
            (quantiles.max, 1_000.0),
            (quantiles.mean, 500.5),
        ] {
            assert!(
                (seen - expected).abs() <= expected * 0.002,
                "{seen} is not {expected}"
            );
        }
        latency.clear();
        assert_eq!(latency.quantiles(), None);
    }

    #[test]
    fn too_slow_is_recorded_as_slowest() {
        let mut latency = Latency::default();
        latency.record_ns(u64::MAX);
        assert_eq!(latency.quantiles().unwrap().count, 1);
        assert!(latency.quantiles().unwrap().max >= 60_000_000.0);
    }

    #[test]
    fn numbers_have_flat_names_and_the_primary_latency_short_ones() {
        let mut one = Latency::default();
        one.record_ns(2_000);
        let mut report = Report {
            primary: "delivery".into(),
            ..Report::default()
        };
        report.latency("delivery", &one);
        report.latency("ack", &one);
        report.latency("connect", &Latency::default());
        report.count("lost", 3);
        let numbers = report.numbers();
        assert_eq!(numbers.get("lost"), Some(&3.0));
        assert_eq!(numbers.get("p50"), numbers.get("delivery.p50"));
        assert!(numbers.contains_key("ack.p99.9"));
        assert!(!numbers.contains_key("connect.p50"));
        let text = report.text();
        assert!(text.contains("delivery") && text.contains("lost"));
    }

    #[test]
    fn spread_is_median_and_range() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[f64::NAN]), None);
        let cases: [(&[f64], [f64; 5]); 3] = [
            (&[3.0], [3.0, 3.0, 3.0, 3.0, 3.0]),
            (&[9.0, 1.0, 5.0], [5.0, 1.0, 9.0, 3.0, 7.0]),
            (&[4.0, 1.0, f64::NAN, 2.0, 9.0], [3.0, 1.0, 9.0, 1.75, 5.25]),
        ];
        for (values, [median, min, max, low, high]) in cases {
            let expected = Spread {
                median,
                min,
                max,
                low,
                high,
            };
            assert_eq!(Spread::of(values), Some(expected), "{values:?}");
        }
    }

    #[test]
    fn stored_reports_are_compared_by_path() {
        let before = serde_json::json!({"a": {"b": 2.0}, "gone": 1, "text": "x", "same": 0, "settings": {"rate": "1"},
            "subjects": [{"label": "x", "p50": 1, "rounds": [4]}, {"label": "y", "p50": 4}]});
        let after = serde_json::json!({"a": {"b": 3.0}, "new": [7], "same": 0, "settings": {"rate": "2"},
            "subjects": [{"label": "y", "p50": 6}]});
        let text = difference(&before, &after);
        let line = |name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(line("a/b"), ["a/b", "2", "3", "1.500"]);
        assert_eq!(line("new/0"), ["new/0", "-", "7", "-"]);
        assert_eq!(line("gone"), ["gone", "1", "-", "-"]);
        // By name, not by place; single rounds and what is nothing in both are left out.
        assert_eq!(
            line("subjects/y/p50"),
            ["subjects/y/p50", "4", "6", "1.500"]
        );
        assert!(
            !text.contains("rounds") && !line("same").contains(&"0".to_owned()),
            "{text}"
        );
        assert!(text.starts_with("not the same: rate was \"1\" and is \"2\"\n"));
    }

    #[test]
    fn what_makes_numbers_doubtful_is_said() {
        let (mut late, mut seen) = (Latency::default(), Latency::default());
        late.record_ns(60_000);
        seen.record_ns(100_000);
        let mut report = Report {
            primary: "to_broker".into(),
            ..Report::default()
        };
        report.latency("to_broker", &seen);
        report.count("connect_failures", 0);
        assert_eq!(report.warnings(), Vec::<String>::new());
        report.latency("lateness", &late);
        report.count("connect_failures", 3);
        report.count("broken", 2);
        let said = report.warnings();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("3 connections failed"));
    }
}
