//! `compare`: several subjects in one run, in turns, so that what the machine does meanwhile meets all of them.
//!
//! Owns the order of rounds and the arithmetic over them: medians, ranges, and ratios to a base taken round by round. A
//! subject is started anew in every round; set-up cost and memory come from the same run as the cost of messages.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::args::{VersionArg, seconds, some_seconds};
use super::cpu;
use super::expect::Expectation;
use super::plan::{Plan, Scenario};
use super::report::Spread;
use super::scenario;
use super::sink::Sink;
use super::subject::{Spec, Subject, Surroundings};

/// Options of a comparison.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// direct, sluice, nginx, haproxy, epoll, uring, monoio, glommio, each with +unix, +waitN (sluice, uring), +epoll (sluice),
    /// +before (our own, of another build); or label=tcp://host:port@pid of one that runs already with the sink as its upstream
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "direct,epoll,uring,nginx,haproxy,sluice"
    )]
    pub targets: Vec<Spec>,
    /// Whom ratios refer to: one of the targets; nginx where it is one, else the first
    #[arg(long)]
    pub base: Option<String>,
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// What is run against each
    #[arg(long, value_enum, default_value_t = Scenario::Publish)]
    pub scenario: Scenario,
    /// Devices
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Messages a second (connect-storm: connections)
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Messages that become due together on one device
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub burst: u32,
    /// Connections opened a second before the run
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub connect_rate: u32,
    /// publish, fan-in: topics that each device goes through in turn; beyond one, each has a further level, its number
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub topics_per_device: u32,
    /// Payload
    #[arg(long, default_value_t = 128)]
    pub payload_bytes: usize,
    /// QoS of published messages
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// MQTT version
    #[arg(long, value_enum, default_value_t = VersionArg::V311)]
    pub version: VersionArg,
    /// Seconds measured in each round
    #[arg(long, default_value = "5", value_parser = some_seconds)]
    pub duration: Duration,
    /// Seconds of the same load before
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,
    /// Core of the subject
    #[arg(long, default_value_t = 0)]
    pub target_core: usize,
    /// Core of generator and sink
    #[arg(long, default_value_t = 1)]
    pub load_core: usize,
    /// Where the sink listens; subjects that run already need a fixed port
    #[arg(long, default_value = "127.0.0.1:0")]
    pub sink: SocketAddr,
    /// Rules in the policy of Sluice
    #[arg(long, default_value_t = 10_000)]
    pub rules: u32,
    /// Policy of Sluice instead; {listen}, {upstream} and {latency_budget} are filled in
    #[arg(long)]
    pub policy: Option<PathBuf>,
    /// Folder of our own programs; that of this one by default
    #[arg(long)]
    pub programs: Option<PathBuf>,
    /// Folder of our own programs of another build, for targets with +before
    #[arg(long)]
    pub before: Option<PathBuf>,
    /// What must hold for exit code 0, such as sluice/ratio.cpu_us_per_message<=0.88
    #[arg(long = "expect")]
    pub expectations: Vec<Expectation>,
    /// Store the comparison here
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Comparison {
    /// The options that matter for reading the numbers.
    pub settings: BTreeMap<String, String>,
    /// Whom ratios refer to.
    pub base: String,
    /// By label, in the order given.
    pub subjects: Vec<Row>,
}

/// All rounds of one subject.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// As on the command line.
    pub label: String,
    /// Every number of every round.
    pub rounds: Vec<BTreeMap<String, f64>>,
    /// Median and range of each number, `added.` latencies included.
    pub spread: BTreeMap<String, Spread>,
    /// Median of the ratios to the base, taken round by round.
    pub ratio: BTreeMap<String, f64>,
    /// Their spread.
    pub ratio_spread: BTreeMap<String, Spread>,
}

/// Runs all rounds.
pub fn run(args: &CompareArgs) -> anyhow::Result<Comparison> {
    let sink = Sink::start(args.sink, Some(args.load_core)).context("cannot start the sink")?;
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => std::env::current_exe()?
            .parent()
            .context("this program lies in no folder")?
            .to_path_buf(),
    };
    let around = Surroundings {
        sink_tcp: sink.tcp(),
        sink_unix: sink.unix().to_path_buf(),
        core: args.target_core,
        rules: args.rules,
        policy: args.policy.clone(),
        programs,
        before: args.before.clone(),
    };
    cpu::pin_this_thread(args.load_core)?;
    check_before(args, &around)?;
    let (targets, missing): (Vec<_>, Vec<_>) = args
        .targets
        .iter()
        .partition(|spec| spec.is_installed(&around));
    for spec in missing {
        writeln!(
            io::stderr(),
            "{spec} is left out: its program is neither in {} nor on the search path{}",
            around.programs.display(),
            spec.how_to_get()
        )?;
    }
    let base = base_of(args, &targets)?;
    let mut rows: Vec<Row> = targets
        .iter()
        .map(|spec| Row {
            label: spec.to_string(),
            ..Row::default()
        })
        .collect();
    for round in 0..args.rounds {
        for index in order(rows.len(), round as usize) {
            let (Some(spec), Some(row)) = (targets.get(index), rows.get_mut(index)) else {
                continue;
            };
            let numbers = one(spec, args, &around, &sink)
                .with_context(|| format!("round {} of {spec}", round + 1))?;
            writeln!(io::stderr(), "{}", line(round, spec, &numbers))?;
            row.rounds.push(numbers);
        }
    }
    summarise(&mut rows, &base);
    Ok(Comparison {
        settings: settings(args),
        base,
        subjects: rows,
    })
}

/// Whom ratios refer to.
fn base_of(args: &CompareArgs, targets: &[&Spec]) -> anyhow::Result<String> {
    let labels: Vec<String> = targets.iter().map(ToString::to_string).collect();
    let wanted = args.base.as_deref();
    let found = |name: &str| labels.iter().find(|label| *label == name).cloned();
    match wanted {
        Some(name) => found(name).with_context(|| {
            format!(
                "--base {name} is none of those that are measured: {}",
                labels.join(", ")
            )
        }),
        None => found("nginx")
            .or_else(|| labels.first().cloned())
            .context("no target is left to be measured"),
    }
}

/// Who asks for another build and gives none, or not all of it, would compare with nothing.
fn check_before(args: &CompareArgs, around: &Surroundings) -> anyhow::Result<()> {
    for spec in args.targets.iter().filter(|spec| spec.is_before()) {
        match &args.before {
            None => anyhow::bail!(
                "{spec} needs --before FOLDER: where the programs of the other build are"
            ),
            Some(folder) if !spec.is_installed(around) => {
                anyhow::bail!("{spec}: its program is not in {}", folder.display())
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The order of subjects in a round: the rows of a Williams square. In as many rounds as there are subjects everyone has
/// every place once; and everyone follows everyone else once in these, or twice in double of them where the number is odd.
///
/// Source: E. J. Williams, "Experimental designs balanced for the estimation of residual effects of treatments", 1949.
fn order(subjects: usize, round: usize) -> Vec<usize> {
    let zigzag = |place: usize| match place % 2 {
        0 => subjects - place / 2,
        _ => place.div_ceil(2),
    };
    let mut order: Vec<usize> = (0..subjects)
        .map(|place| (zigzag(place) + round) % subjects)
        .collect();
    if subjects % 2 == 1 && (round / subjects) % 2 == 1 {
        order.reverse();
    }
    order
}

fn one(
    spec: &Spec,
    args: &CompareArgs,
    around: &Surroundings,
    sink: &Sink,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let subject = Subject::start(spec, around)?;
    let plan = Plan {
        connections: args.connections,
        rate: args.rate,
        burst: args.burst,
        connect_rate: args.connect_rate,
        topics_per_device: args.topics_per_device,
        payload_bytes: args.payload_bytes,
        qos: args.qos,
        version: args.version.into(),
        duration: args.duration,
        warm_up: args.warm_up,
        pids: subject.pid().into_iter().collect(),
        ..Plan::new(args.scenario, subject.target().clone())
    };
    Ok(scenario::run(&plan, Some(sink))?.numbers())
}

fn line(round: u32, spec: &Spec, numbers: &BTreeMap<String, f64>) -> String {
    let number = |name: &str| {
        numbers
            .get(name)
            .map_or("-".into(), |value| format!("{value:.2}"))
    };
    format!(
        "round {} {spec:<24} cpu us/msg {:>7}  p50 {:>8}  p99 {:>9}  lost {}",
        round + 1,
        number("cpu_us_per_message"),
        number("p50"),
        number("p99"),
        number("lost"),
    )
}

fn settings(args: &CompareArgs) -> BTreeMap<String, String> {
    [
        ("scenario", args.scenario.name().to_owned()),
        ("connections", args.connections.to_string()),
        ("rate", args.rate.to_string()),
        ("burst", args.burst.to_string()),
        ("topics_per_device", args.topics_per_device.to_string()),
        ("payload", args.payload_bytes.to_string()),
        ("qos", args.qos.to_string()),
        ("rules", args.rules.to_string()),
        ("rounds", args.rounds.to_string()),
        ("seconds", args.duration.as_secs_f64().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Fills in added latencies, spreads and ratios.
fn summarise(rows: &mut [Row], base: &str) {
    let rounds_of = |rows: &[Row], label: &str| {
        rows.iter()
            .find(|row| row.label == label)
            .map(|row| row.rounds.clone())
    };
    if let Some(direct) = rounds_of(rows, "direct") {
        for row in rows.iter_mut() {
            for (numbers, floor) in row.rounds.iter_mut().zip(&direct) {
                for name in ["p50", "p90", "p99", "p99.9"] {
                    if let (Some(seen), Some(floor)) = (numbers.get(name), floor.get(name)) {
                        let added = seen - floor;
                        numbers.insert(format!("added.{name}"), added);
                    }
                }
            }
        }
    }
    let base = rounds_of(rows, base).unwrap_or_default();
    for row in rows {
        let names: Vec<String> = row
            .rounds
            .iter()
            .flat_map(|numbers| numbers.keys().cloned())
            .collect();
        for name in names {
            let values: Vec<f64> = row
                .rounds
                .iter()
                .filter_map(|numbers| numbers.get(&name).copied())
                .collect();
            let ratios: Vec<f64> = row
                .rounds
                .iter()
                .zip(&base)
                .filter_map(|(numbers, base)| Some((numbers.get(&name)?, base.get(&name)?)))
                .filter(|(_, base)| **base != 0.0)
                .map(|(seen, base)| seen / base)
                .collect();
            if let Some(spread) = Spread::of(&values) {
                row.spread.insert(name.clone(), spread);
            }
            if let Some(spread) = Spread::of(&ratios) {
                row.ratio.insert(name.clone(), spread.median);
                row.ratio_spread.insert(name, spread);
            }
        }
    }
}

/// Columns of the table: title, number, digits behind the point, whether the ratio is of interest.
const COLUMNS: [(&str, &str, usize, bool); 9] = [
    ("CPU us/msg", "cpu_us_per_message", 2, true),
    ("user share", "user_share", 2, false),
    ("p50 us", "p50", 0, true),
    ("p99 us", "p99", 0, true),
    ("added p50", "added.p50", 0, true),
    ("added p99", "added.p99", 0, true),
    ("CPU us/connection", "cpu_us_per_connection", 1, true),
    ("KiB/connection", "rss_kib_per_connection", 2, false),
    ("lost", "lost", 0, false),
];

impl Comparison {
    /// One block of lines for each subject that has something to show.
    pub fn text(&self) -> String {
        let settings: Vec<_> = self
            .settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        // Writing to a string cannot fail.
        let mut text = format!(
            "{}; median (smallest-largest) x ratio to {} [middle half of the rounds]\n",
            settings.join(", "),
            self.base
        );
        for (title, name, digits, has_ratio) in COLUMNS {
            if self
                .subjects
                .iter()
                .all(|row| !row.spread.contains_key(name))
            {
                continue;
            }
            let _ = writeln!(text, "\n{title}");
            for row in &self.subjects {
                let Some(spread) = row.spread.get(name) else {
                    continue;
                };
                let ratio = row.ratio_spread.get(name).filter(|_| has_ratio).map_or(
                    String::new(),
                    |ratio| {
                        format!(
                            "  x {:.3} [{:.3}-{:.3}]",
                            ratio.median, ratio.low, ratio.high
                        )
                    },
                );
                let _ = writeln!(
                    text,
                    "  {:<24}{:>12.digits$} ({:.digits$}-{:.digits$}){ratio}",
                    row.label, spread.median, spread.min, spread.max
                );
            }
        }
        text
    }

    /// What makes its numbers doubtful, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let doubtful = |row: &Row| {
            let most = |name: &str| row.spread.get(name).map_or(0.0, |spread| spread.max);
            let (lost, failed) = (most("lost"), most("connect_failures"));
            (lost > 0.0 || failed > 0.0).then(|| {
                format!(
                    "{}: up to {lost} messages of a round were lost and {failed} connections failed; its costs are of less work",
                    row.label
                )
            })
        };
        self.subjects.iter().filter_map(doubtful).collect()
    }

    /// `label/number` medians and `label/ratio.number`.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let mut numbers = BTreeMap::new();
        for row in &self.subjects {
            for (name, spread) in &row.spread {
                numbers.insert(format!("{}/{name}", row.label), spread.median);
            }
            for (name, ratio) in &row.ratio {
                numbers.insert(format!("{}/ratio.{name}", row.label), *ratio);
            }
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, rounds: &[&[(&str, f64)]]) -> Row {
        Row {
            label: label.into(),
            rounds: rounds
                .iter()
                .map(|numbers| {
                    numbers
                        .iter()
                        .map(|(name, value)| ((*name).to_owned(), *value))
                        .collect()
                })
                .collect(),
            ..Row::default()
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine is twice as slow in the second round: the ratio of medians would hide nothing, but a ratio of
        // unmatched rounds would.
        let mut rows = vec![
            row(
                "direct",
                &[&[("p50", 10.0)], &[("p50", 20.0)], &[("p50", 10.0)]],
            ),
            row(
                "nginx",
                &[
                    &[("cpu", 10.0), ("p50", 110.0)],
                    &[("cpu", 20.0), ("p50", 220.0)],
                    &[("cpu", 10.0), ("p50", 110.0)],
                ],
            ),
            row(
                "sluice",
                &[
                    &[("cpu", 8.0), ("p50", 60.0)],
                    &[("cpu", 16.0), ("p50", 120.0)],
                    &[("cpu", 9.0), ("p50", 65.0)],
                ],
            ),
        ];
        summarise(&mut rows, "nginx");
        let comparison = Comparison {
            base: "nginx".into(),
            subjects: rows,
            ..Comparison::default()
        };
        let numbers = comparison.numbers();
        for (name, expected) in [
            ("sluice/ratio.cpu", 0.8),
            ("nginx/ratio.cpu", 1.0),
            ("sluice/cpu", 9.0),
            ("sluice/added.p50", 55.0),
            ("sluice/ratio.added.p50", 0.5),
        ] {
            let seen = numbers.get(name).copied().unwrap_or(f64::NAN);
            assert!((seen - expected).abs() < 1e-9, "{name}: {seen}");
        }
        assert!(comparison.text().contains("added p50"));
        // The rounds' ratios are 0.8, 0.8 and 0.9: half of them lies from 0.8 to 0.85.
        let spread = comparison.subjects[2].ratio_spread["cpu"];
        assert!((spread.low - 0.8).abs() < 1e-9 && (spread.high - 0.85).abs() < 1e-9);
        let text = comparison.text();
        assert!(text.contains("x 0.500 [0.500-0.525]"), "{text}");
    }

    #[test]
    fn everyone_has_every_place_and_every_neighbour_equally_often() {
        for subjects in 1..=11 {
            let (rounds, follows) = match subjects % 2 {
                0 => (subjects, 1),
                _ => (2 * subjects, 2),
            };
            let orders: Vec<_> = (0..rounds).map(|round| order(subjects, round)).collect();
            let count = |is: &dyn Fn(&[usize]) -> bool| orders.iter().filter(|o| is(o)).count();
            for a in 0..subjects {
                for place in 0..subjects {
                    assert_eq!(count(&|order| order[place] == a), rounds / subjects);
                }
                for b in (0..subjects).filter(|b| *b != a) {
                    let is_pair = |order: &[usize]| order.windows(2).any(|pair| pair == [a, b]);
                    assert_eq!(count(&is_pair), follows, "{b} after {a} of {subjects}");
                }
            }
        }
    }

    #[test]
    fn without_a_base_there_are_no_ratios() {
        let mut rows = vec![row("epoll", &[&[("cpu", 1.0)]])];
        summarise(&mut rows, "nginx");
        assert!(rows[0].ratio.is_empty());
        assert_eq!(rows[0].spread["cpu"].median, 1.0);
    }
}
