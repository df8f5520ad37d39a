//! What is wrong with a document: `file:line:column: message`, the same whoever found it.

use serde_json::{Value, json};
use sluice_proto::control::v1::DocumentProblems;

use super::clean;

/// A line for each problem, and one for those left off.
pub(crate) fn text(file: &str, found: &DocumentProblems) -> String {
    let file = clean(file);
    let mut text = String::new();
    for problem in &found.problems {
        let message = clean(&problem.message);
        let line = match (problem.line, problem.column) {
            (0, _) => format!("{file}: {message}\n"),
            (line, 0) => format!("{file}:{line}: {message}\n"),
            (line, column) => format!("{file}:{line}:{column}: {message}\n"),
        };
        text.push_str(&line);
    }
    if found.left_off > 0 {
        text.push_str(&format!("{file}: and {} more problems\n", found.left_off));
    }
    text
}

/// A list; line and column are 0 where they are not known.
pub(crate) fn json(found: &DocumentProblems) -> Value {
    let one = |problem: &sluice_proto::control::v1::DocumentProblem| json!({ "line": problem.line, "column": problem.column, "message": problem.message });
    found.problems.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::DocumentProblem;

    use super::*;

    #[test]
    fn problems_have_places_as_far_as_they_are_known() {
        let problem = |line, column, message: &str| DocumentProblem {
            line,
            column,
            message: message.into(),
        };
        let found = DocumentProblems {
            problems: vec![
                problem(0, 0, "too long"),
                problem(3, 0, "odd"),
                problem(4, 7, "unknown key `\x1b`"),
            ],
            left_off: 9,
        };
        let expected = "\
p.yaml: too long
p.yaml:3: odd
p.yaml:4:7: unknown key `\\u{1b}`
p.yaml: and 9 more problems
";
        assert_eq!(text("p.yaml", &found), expected);
        assert_eq!(json(&found)[2]["column"], 7);
    }
}
