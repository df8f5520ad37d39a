//! `check`: compiles documents and prints every problem with its place.

use std::io::Write;

use serde_json::json;
use sluice_policy::{Generation, Snapshot};

use super::{CheckArgs, EXIT_POLICY, Output};

/// Checks every file; the worst result is the exit code.
pub(super) fn check(args: &CheckArgs, out: &mut impl Write) -> u8 {
    let mut code = 0;
    let mut answers = Vec::new();
    for file in &args.files {
        let name = file.display().to_string();
        let document = match super::read(file) {
            Ok(document) => document,
            Err(unreadable) => {
                code = unreadable;
                let problem = json!({
                    "line": null,
                    "column": null,
                    "message": "cannot be read; standard error says why",
                });
                answers.push(
                    json!({ "file": name, "ok": false, "problems": [problem], "warnings": [] }),
                );
                continue;
            }
        };
        let result = sluice_policy::compile(&document, &name, Generation(1), None);
        if result.is_err() {
            code = code.max(EXIT_POLICY);
        }
        match args.output {
            Output::Text => {
                let _ = match &result {
                    Ok(snapshot) => print_good(&name, snapshot, out),
                    Err(errors) => writeln!(out, "{errors}"),
                };
            }
            Output::Json => answers.push(match &result {
                Ok(snapshot) => {
                    let warnings = snapshot.warnings();
                    json!({ "file": name, "ok": true, "problems": [], "warnings": warnings })
                }
                Err(errors) => {
                    let problems = problems(errors);
                    json!({ "file": name, "ok": false, "problems": problems, "warnings": [] })
                }
            }),
        }
    }
    if args.output == Output::Json {
        let _ = writeln!(out, "{:#}", json!({ "files": answers }));
    }
    code
}

/// Warnings change neither the answer nor the exit code.
fn print_good(name: &str, snapshot: &Snapshot, out: &mut impl Write) -> std::io::Result<()> {
    for warning in snapshot.warnings() {
        writeln!(out, "{name}: warning: {warning}")?;
    }
    let (listeners, upstreams) = (snapshot.listeners().len(), snapshot.upstreams().len());
    writeln!(
        out,
        "{name}: ok ({listeners} listeners, {upstreams} upstreams)"
    )
}

fn problems(errors: &sluice_policy::Errors) -> Vec<serde_json::Value> {
    let problem = |problem: &sluice_policy::Problem| {
        json!({
            "line": problem.at.line,
            "column": problem.at.column,
            "message": problem.message,
        })
    };
    errors.problems().iter().map(problem).collect()
}
