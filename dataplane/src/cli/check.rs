//! `check`: compiles documents and prints every problem with its place, or what to look at where there is none.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sluice_policy::{Checked, Errors, RowCounts};

use super::{CheckArgs, EXIT_POLICY, Output};

/// Checks every file; the worst result is the exit code.
pub(super) fn check(args: &CheckArgs, out: &mut impl Write) -> u8 {
    let mut code = 0;
    let mut answers = Vec::new();
    for file in &args.files {
        let answer = Answer::about(file, args.strict);
        code = code.max(answer.code());
        match args.output {
            Output::Text => {
                let _ = answer.print(out);
            }
            Output::Json => answers.push(answer.json()),
        }
    }
    if args.output == Output::Json {
        let _ = writeln!(out, "{:#}", json!({ "files": answers }));
    }
    code
}

/// What is known of one file.
struct Answer {
    name: String,
    found: Found,
    is_strict: bool,
}

enum Found {
    /// It cannot be read; standard error says why. The exit code.
    Nothing(u8),
    Wrong(Errors),
    Good(Checked),
}

impl Answer {
    fn about(file: &Path, is_strict: bool) -> Self {
        let name = file.display().to_string();
        let found = match super::read(file) {
            Err(code) => Found::Nothing(code),
            Ok(bytes) => {
                let text = sluice_policy::text_of(&bytes, &name);
                match text.and_then(|text| sluice_policy::check(text, &name)) {
                    Ok(checked) => Found::Good(checked),
                    Err(errors) => Found::Wrong(errors),
                }
            }
        };
        Self {
            name,
            found,
            is_strict,
        }
    }

    /// How many warnings count as errors.
    fn refused_warnings(&self) -> usize {
        match &self.found {
            Found::Good(checked) if self.is_strict => checked.warnings.len(),
            Found::Good(_) | Found::Nothing(_) | Found::Wrong(_) => 0,
        }
    }

    fn code(&self) -> u8 {
        match &self.found {
            Found::Nothing(code) => *code,
            Found::Wrong(_) => EXIT_POLICY,
            Found::Good(_) if self.refused_warnings() > 0 => EXIT_POLICY,
            Found::Good(_) => 0,
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let name = &self.name;
        match &self.found {
            Found::Nothing(_) => Ok(()),
            Found::Wrong(errors) => writeln!(out, "{errors}"),
            Found::Good(checked) => {
                let word = if self.is_strict { "error" } else { "warning" };
                for warning in &checked.warnings {
                    writeln!(out, "{name}: {word}: {warning}")?;
                }
                if self.refused_warnings() > 0 {
                    return Ok(());
                }
                writeln!(out, "{name}: ok ({})", in_words(&checked.rows))
            }
        }
    }

    fn json(&self) -> Value {
        let (problems, warnings, rows) = match &self.found {
            Found::Nothing(_) => {
                let problem = json!({
                    "line": null,
                    "column": null,
                    "message": "cannot be read; standard error says why",
                });
                (vec![problem], json!([]), Value::Null)
            }
            Found::Wrong(errors) => (problems(errors), json!([]), Value::Null),
            Found::Good(checked) => (Vec::new(), json!(checked.warnings), rows(&checked.rows)),
        };
        json!({
            "file": self.name,
            "ok": self.code() == 0,
            "problems": problems,
            "warnings": warnings,
            "rows": rows,
        })
    }
}

/// `1 listener, 2 upstreams, ...`
fn in_words(rows: &RowCounts) -> String {
    let count = |(kind, count): (&str, usize)| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {kind}{plural}")
    };
    rows.kinds().map(count).join(", ")
}

fn rows(rows: &RowCounts) -> Value {
    let counts = rows
        .kinds()
        .map(|(kind, count)| (format!("{kind}s"), json!(count)));
    Value::Object(counts.into_iter().collect())
}

fn problems(errors: &Errors) -> Vec<Value> {
    let problem = |problem: &sluice_policy::Problem| {
        json!({
            "line": problem.at.line,
            "column": problem.at.column,
            "message": problem.message,
        })
    };
    errors.problems().iter().map(problem).collect()
}
