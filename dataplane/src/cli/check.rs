//! `check`: compiles documents and prints every problem with its place.

use std::io::Write;

use serde_json::json;
use sluice_policy::Generation;

use super::{CheckArgs, EXIT_POLICY, Output};

/// Checks every file; the worst result is the exit code.
pub(super) fn check(args: &CheckArgs, out: &mut impl Write) -> u8 {
    let mut code = 0;
    let mut answers = Vec::new();
    for file in &args.files {
        let document = match super::read(file) {
            Ok(document) => document,
            Err(unreadable) => {
                code = unreadable;
                continue;
            }
        };
        let name = file.display().to_string();
        let result = sluice_policy::compile(&document, &name, Generation(1), None);
        if result.is_err() {
            code = code.max(EXIT_POLICY);
        }
        match args.output {
            Output::Text => {
                let _ = match &result {
                    Ok(snapshot) => writeln!(
                        out,
                        "{name}: ok ({} listeners, {} upstreams)",
                        snapshot.listeners().len(),
                        snapshot.upstreams().len()
                    ),
                    Err(errors) => writeln!(out, "{errors}"),
                };
            }
            Output::Json => answers.push(match &result {
                Ok(_) => json!({ "file": name, "ok": true, "problems": [] }),
                Err(errors) => json!({ "file": name, "ok": false, "problems": problems(errors) }),
            }),
        }
    }
    if args.output == Output::Json {
        let _ = writeln!(out, "{:#}", json!({ "files": answers }));
    }
    code
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
