//! The program `sluice-loadtest`: reads the command line, runs what it says, prints the report, judges expectations.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use sluice_loadtest::load::args::{Cli, Command, RunArgs, VARIABLES};
use sluice_loadtest::load::expect::{Expectation, Outcome};
use sluice_loadtest::load::plan::Scenario;
use sluice_loadtest::load::sink::Sink;
use sluice_loadtest::load::target::Target;
use sluice_loadtest::load::{churn, compare, cpu, release, report, scenario};

/// Names of numbers listed when an expectation names none of them.
const NAMES_SHOWN: usize = 60;

fn main() -> anyhow::Result<ExitCode> {
    let given = match sluice_flags::parse::<Cli>(VARIABLES, std::env::args_os()) {
        Ok(given) => given,
        Err(unusable) => return Ok(ExitCode::from(unusable.tell())),
    };
    let stdout = &mut io::stdout();
    match given.cli.command {
        Command::Completion(args) => Ok(ExitCode::from(args.answer(given.command, stdout))),
        Command::Man(args) => Ok(ExitCode::from(args.answer(given.command, stdout))),
        Command::ConnectStorm(args) => run(Scenario::ConnectStorm, &args),
        Command::Idle(args) => run(Scenario::Idle, &args),
        Command::Publish(args) => run(Scenario::Publish, &args),
        Command::FanIn(args) => run(Scenario::FanIn, &args),
        Command::FanOut(args) => run(Scenario::FanOut, &args),
        Command::RequestResponse(args) => run(Scenario::RequestResponse, &args),
        Command::SlowReader(args) => run(Scenario::SlowReader, &args),
        Command::Compare(args) => {
            check_store(args.json.as_deref())?;
            let comparison = compare::run(&args)?;
            print(&comparison.text())?;
            warn(&comparison.warnings())?;
            store(args.json.as_deref(), &comparison)?;
            judge(&args.expectations, &comparison.numbers())
        }
        Command::PolicyChurn(args) => {
            check_store(args.json.as_deref())?;
            let report = churn::run(&args)?;
            print(&report.text())?;
            store(args.json.as_deref(), &report)?;
            judge(&args.all_expectations(), &report.numbers())
        }
        Command::Release(args) => {
            check_store(args.json.as_deref())?;
            let releases = release::run(&args)?;
            print(&releases.text())?;
            store(args.json.as_deref(), &releases)?;
            judge(&args.expectations, &releases.numbers())
        }
        Command::Diff { before, after } => {
            print(&report::difference(
                &read_json(&before)?,
                &read_json(&after)?,
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Sink { listen, core } => serve(listen, core),
    }
}

fn run(scenario: Scenario, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let sink = match (args.sink, &args.target) {
        (None, Some(_)) => None,
        (Some(address), _) => Some(address),
        (None, None) => Some(SocketAddr::from(([127, 0, 0, 1], 0))),
    };
    check_store(args.json.as_deref())?;
    let sink = sink
        .map(|address| start_sink(address, args.sink_core))
        .transpose()?;
    let target = match (&args.target, &sink) {
        (Some(target), _) => target.clone(),
        (None, Some(sink)) => Target::Tcp(sink.tcp()),
        (None, None) => anyhow::bail!("neither a target nor a sink"),
    };
    if let Some(core) = args.core {
        cpu::pin_this_thread(core)?;
    }
    let report = scenario::run(&args.plan(scenario, target)?, sink.as_ref())?;
    print(&report.text())?;
    warn(&report.warnings())?;
    store(args.json.as_deref(), &report)?;
    judge(&args.expectations, &report.numbers())
}

fn start_sink(address: SocketAddr, core: Option<usize>) -> anyhow::Result<Sink> {
    Sink::start(address, core).with_context(|| format!("cannot start the sink on {address}"))
}

fn warn(warnings: &[String]) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    warnings
        .iter()
        .try_for_each(|warning| writeln!(stderr, "warning: {warning}"))
}

fn serve(listen: SocketAddr, core: Option<usize>) -> anyhow::Result<ExitCode> {
    let sink = start_sink(listen, core)?;
    print(&format!(
        "listening on tcp://{} and unix://{}\n",
        sink.tcp(),
        sink.unix().display()
    ))?;
    // Until a signal ends the process; unparking by chance goes round.
    loop {
        std::thread::park();
    }
}

fn judge(
    expectations: &[Expectation],
    numbers: &std::collections::BTreeMap<String, f64>,
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for expectation in expectations {
        let verdict = match expectation.check(numbers) {
            Outcome::Holds => format!("holds: {expectation}\n"),
            Outcome::Fails(seen) => {
                code = ExitCode::FAILURE;
                format!("FAILS: {expectation} (measured {})\n", report::shown(seen))
            }
            Outcome::NotMeasured => {
                code = ExitCode::FAILURE;
                let names: Vec<&str> = numbers.keys().map(String::as_str).collect();
                let shown = names.get(..NAMES_SHOWN).unwrap_or(&names).join(" ");
                let more = names.len().saturating_sub(NAMES_SHOWN);
                let more = if more > 0 {
                    format!(" and {more} more, as --json has them")
                } else {
                    String::new()
                };
                format!(
                    "FAILS: {expectation} (not measured in this run; measured: {shown}{more})\n"
                )
            }
        };
        print(&verdict)?;
    }
    Ok(code)
}

/// A run is long: that its report cannot be stored is said before.
fn check_store(path: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let opened = fs::OpenOptions::new().create(true).append(true).open(path);
    opened
        .map(drop)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn store(path: Option<&Path>, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(value)?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn read_json(path: &Path) -> anyhow::Result<serde_json::Value> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}
