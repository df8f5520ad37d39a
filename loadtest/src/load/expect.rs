//! Expectations given on the command line, such as `p99<5ms`: what a run must show to exit with 0.
//!
//! Owns their grammar: `name op value[unit]`, where the name is a key of the report's flat list of numbers
//! ([`super::report::Report::numbers`]). A name that the run did not measure does not hold: silence is no proof.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One expectation.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    name: String,
    relation: Relation,
    /// Microseconds for times, the plain number otherwise.
    value: f64,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
}

/// Longer operators first, so that `<=` is not read as `<`.
const RELATIONS: [(&str, Relation); 6] = [
    ("<=", Relation::LessOrEqual),
    (">=", Relation::GreaterOrEqual),
    ("==", Relation::Equal),
    ("<", Relation::Less),
    (">", Relation::Greater),
    ("=", Relation::Equal),
];

/// Times are held in microseconds, as the report has them.
const UNITS: [(&str, f64); 4] = [
    ("ns", 0.001),
    ("us", 1.0),
    ("ms", 1_000.0),
    ("s", 1_000_000.0),
];

/// Why an expectation cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Neither `<` nor any other relation in it.
    #[error("`{0}` has no relation: write it like `p99<5ms` or `lost==0`")]
    NoRelation(String),
    /// Nothing before the relation.
    #[error("`{0}` does not say what it is about")]
    NoName(String),
    /// Not a number with a known unit.
    #[error("`{0}`: `{1}` is not a number with an optional unit (ns, us, ms, s)")]
    BadValue(String, String),
}

impl FromStr for Expectation {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let found = RELATIONS
            .iter()
            .filter_map(|(sign, relation)| text.find(sign).map(|at| (at, *sign, *relation)))
            // The earliest; among those at one place the longest, which is listed first (`min_by_key` keeps it).
            .min_by_key(|(at, _, _)| *at);
        let Some((at, sign, relation)) = found else {
            return Err(Unreadable::NoRelation(text.into()));
        };
        let (name, value) = (text[..at].trim(), text[at + sign.len()..].trim());
        if name.is_empty() {
            return Err(Unreadable::NoName(text.into()));
        }
        let value = number(value).ok_or_else(|| Unreadable::BadValue(text.into(), value.into()))?;
        Ok(Self {
            name: name.into(),
            relation,
            value,
            text: text.trim().into(),
        })
    }
}

fn number(text: &str) -> Option<f64> {
    let (digits, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .unwrap_or((text, 1.0));
    let value: f64 = digits.trim().replace('_', "").parse().ok()?;
    value.is_finite().then_some(value * factor)
}

/// What became of an expectation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It does not; what was measured instead.
    Fails(f64),
    /// The run measured nothing of that name.
    NotMeasured,
}

impl Expectation {
    /// Looks the name up in the numbers of a report.
    pub fn check(&self, numbers: &BTreeMap<String, f64>) -> Outcome {
        let Some(seen) = numbers.get(&self.name).copied() else {
            return Outcome::NotMeasured;
        };
        let holds = match self.relation {
            Relation::Less => seen < self.value,
            Relation::LessOrEqual => seen <= self.value,
            Relation::Greater => seen > self.value,
            Relation::GreaterOrEqual => seen >= self.value,
            Relation::Equal => seen == self.value,
        };
        if holds {
            Outcome::Holds
        } else {
            Outcome::Fails(seen)
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> BTreeMap<String, f64> {
        [
            ("p99", 4_000.0),
            ("lost", 0.0),
            ("cpu_us_per_message", 11.5),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    #[test]
    fn expectations_are_read_and_checked() {
        let cases = [
            ("p99<5ms", Outcome::Holds),
            ("p99 < 4ms", Outcome::Fails(4_000.0)),
            ("p99<=4ms", Outcome::Holds),
            ("p99<=4000us", Outcome::Holds),
            ("p99<=4_000_000ns", Outcome::Holds),
            ("p99>0.003s", Outcome::Holds),
            ("p99>=4001", Outcome::Fails(4_000.0)),
            ("lost==0", Outcome::Holds),
            ("lost=0", Outcome::Holds),
            ("lost>0", Outcome::Fails(0.0)),
            ("cpu_us_per_message<12", Outcome::Holds),
            ("p99.9<1s", Outcome::NotMeasured),
        ];
        for (text, outcome) in cases {
            let expectation: Expectation = text.parse().unwrap();
            assert_eq!(expectation.check(&numbers()), outcome, "{text}");
            assert_eq!(expectation.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let cases = [
            ("p99", Unreadable::NoRelation("p99".into())),
            ("", Unreadable::NoRelation(String::new())),
            ("<5ms", Unreadable::NoName("<5ms".into())),
            ("p99<", Unreadable::BadValue("p99<".into(), String::new())),
            ("p99<5m", Unreadable::BadValue("p99<5m".into(), "5m".into())),
            (
                "p99<inf",
                Unreadable::BadValue("p99<inf".into(), "inf".into()),
            ),
            ("p99<<5", Unreadable::BadValue("p99<<5".into(), "<5".into())),
        ];
        for (text, why) in cases {
            assert_eq!(text.parse::<Expectation>(), Err(why), "{text}");
        }
    }
}
