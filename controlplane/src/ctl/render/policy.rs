//! Documents and generations: validate, apply, release, history.

use serde_json::{Value, json};
use sluice_proto::control::v1::{
    ApplyResponse, DiffSummary, Generation, GenerationState, HistoryResponse, ValidateResponse,
};

use super::{Table, clean, count, id_json, lacking_json, problems, remarks, remarks_as, time};

/// The word for a state.
pub(crate) fn state(state: GenerationState) -> &'static str {
    match state {
        GenerationState::Unspecified => "unknown",
        GenerationState::Applied => "applied",
        GenerationState::Released => "released",
        GenerationState::Superseded => "superseded",
        GenerationState::Expired => "expired",
        GenerationState::Outdated => "outdated",
    }
}

/// A generation's number; 0 when the message has none.
pub(crate) fn number(generation: &Generation) -> u64 {
    generation.id.as_ref().map_or(0, |id| id.number)
}

/// How a document was checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked {
    /// By the control plane; else here.
    pub(crate) is_online: bool,
    /// Warnings are errors.
    pub(crate) is_strict: bool,
}

impl Checked {
    /// True exactly when nothing was found that is an error.
    pub(crate) fn is_good(self, answer: &ValidateResponse) -> bool {
        let has_remarks = !(answer.warnings.is_empty() && answer.lacking.is_empty());
        answer.problems.is_none() && !(self.is_strict && has_remarks)
    }
}

/// What a validation found.
pub(crate) fn validated_text(file: &str, answer: &ValidateResponse, how: Checked) -> String {
    if let Some(found) = &answer.problems {
        return problems::text(file, found);
    }
    if !how.is_good(answer) {
        return remarks_as("error", &answer.warnings, &answer.lacking);
    }
    let place = if how.is_online {
        "by the control plane"
    } else {
        "here, without a server"
    };
    let file = clean(file);
    let rows = count(answer.rows, "row");
    remarks(&answer.warnings, &answer.lacking) + &format!("{file}: ok ({rows}), checked {place}\n")
}

/// The same.
pub(crate) fn validated_json(file: &str, answer: &ValidateResponse, how: Checked) -> Value {
    let found = answer.problems.as_ref();
    json!({
        "file": file,
        "ok": how.is_good(answer),
        "online": how.is_online,
        "problems": found.map_or_else(|| json!([]), problems::json),
        "problems_left_off": found.map_or(0, |found| found.left_off),
        "warnings": answer.warnings,
        "rows": answer.rows,
        "lacking": lacking_json(&answer.lacking),
    })
}

/// What became of a document. `is_going_on`: it is released in the same command.
pub(crate) fn applied_text(answer: &ApplyResponse, is_going_on: bool) -> String {
    let Some(generation) = &answer.generation else {
        return "the control plane named no generation\n".into();
    };
    let number = number(generation);
    let mut text = remarks(&answer.warnings, &answer.lacking);
    if answer.unchanged {
        let state = state(generation.state());
        text.push_str(&format!(
            "unchanged: generation {number} ({state}) says the same; no generation was made\n"
        ));
    } else {
        let against = match generation.base {
            0 => "with nothing in force before".into(),
            base => format!("against generation {base}"),
        };
        let summary = summary(answer.summary.as_ref());
        text.push_str(&format!("generation {number}: {summary} {against}\n"));
    }
    if !is_going_on && generation.state() == GenerationState::Applied {
        let until = generation.expires_unix_ms.map_or_else(String::new, |at| {
            format!(", possible until {}", time::utc(at))
        });
        text.push_str(&format!(
            "not in force yet: sluicectl release {number}{until}\n"
        ));
    }
    text
}

/// The same, without what a release adds.
pub(crate) fn applied_json(answer: &ApplyResponse) -> Value {
    let summary = answer.summary.unwrap_or_default();
    json!({
        "generation": answer.generation.as_ref().map_or(Value::Null, generation_json),
        "unchanged": answer.unchanged,
        "summary": summary_json(&summary),
        "warnings": answer.warnings,
        "lacking": lacking_json(&answer.lacking),
    })
}

/// `2 rows added, 1 changed, 0 removed`.
pub(crate) fn summary(summary: Option<&DiffSummary>) -> String {
    let summary = summary.copied().unwrap_or_default();
    let added = count(summary.added, "row");
    format!(
        "{added} added, {} changed, {} removed",
        summary.changed, summary.removed
    )
}

/// The same.
pub(crate) fn summary_json(summary: &DiffSummary) -> Value {
    json!({ "added": summary.added, "changed": summary.changed, "removed": summary.removed })
}

/// What a release or a rollback made of it.
pub(crate) fn released_text(generation: &Generation, warnings: &[String]) -> String {
    let number = number(generation);
    let origin = generation.rollback_of.map_or_else(String::new, |of| {
        format!(", with the rows of generation {of}")
    });
    remarks(warnings, &[]) + &format!("generation {number} is in force{origin}\n")
}

/// Generations, newest first.
pub(crate) fn history_text(answer: &HistoryResponse) -> String {
    if answer.generations.is_empty() {
        return "no generations\n".into();
    }
    let mut table = Table::new(&[
        ">GEN",
        "STATE",
        ">BASE",
        ">ROWS",
        ">CHANGES",
        ">WARNINGS",
        "MADE",
        "BY",
        "COMMENT",
    ]);
    for generation in &answer.generations {
        let comment = match generation.rollback_of {
            Some(of) if generation.comment.is_empty() => format!("rollback to {of}"),
            Some(of) => format!("rollback to {of}: {}", generation.comment),
            None => generation.comment.clone(),
        };
        table.row([
            number(generation).to_string(),
            state(generation.state()).into(),
            generation.base.to_string(),
            generation.rows.to_string(),
            generation.changes.to_string(),
            generation
                .warnings
                .map_or_else(|| "-".into(), |count| count.to_string()),
            time::utc(generation.created_unix_ms),
            generation.created_by.clone(),
            comment,
        ]);
    }
    table.text()
}

/// The same.
pub(crate) fn history_json(answer: &HistoryResponse) -> Value {
    json!({
        "generations": answer.generations.iter().map(generation_json).collect::<Value>(),
        "newest": answer.newest,
        "released": answer.released,
    })
}

/// A generation.
pub(crate) fn generation_json(generation: &Generation) -> Value {
    json!({
        "number": number(generation),
        "id": id_json(generation.id.as_ref()),
        "base": generation.base,
        "state": state(generation.state()),
        "rollback_of": generation.rollback_of,
        "rows": generation.rows,
        "changes": generation.changes,
        "warnings": generation.warnings,
        "comment": generation.comment,
        "created_unix_ms": generation.created_unix_ms,
        "created_by": generation.created_by,
        "released_unix_ms": generation.released_unix_ms,
        "released_by": generation.released_by,
        "expires_unix_ms": generation.expires_unix_ms,
    })
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::{DocumentProblem, DocumentProblems, LackingNode};
    use sluice_proto::v1::GenerationId;

    use super::*;

    fn generation(number: u64, state: GenerationState) -> Generation {
        Generation {
            id: Some(GenerationId {
                store: vec![1; 16],
                number,
                digest: vec![2; 32],
            }),
            base: number - 1,
            state: state.into(),
            rows: 12,
            changes: 2,
            warnings: (number > 7).then_some(1),
            comment: "more sensors".into(),
            created_unix_ms: 1_000_000_000_000,
            created_by: "ops".into(),
            expires_unix_ms: (state == GenerationState::Applied).then_some(1_000_003_600_000),
            ..Generation::default()
        }
    }

    #[test]
    fn a_validation_says_where_it_was_made() {
        let good = ValidateResponse {
            rows: 5,
            warnings: vec!["rule x never matches".into()],
            lacking: vec![LackingNode {
                node: "edge-1".into(),
                features: vec!["a".into(), "b".into()],
            }],
            ..ValidateResponse::default()
        };
        let expected = "\
warning: rule x never matches
warning: node edge-1 would refuse it: it lacks a, b
p.yaml: ok (5 rows), checked by the control plane
";
        let how = |is_online, is_strict| Checked {
            is_online,
            is_strict,
        };
        assert_eq!(validated_text("p.yaml", &good, how(true, false)), expected);
        let here = validated_text("p.yaml", &good, how(false, false));
        assert!(here.contains("without a server"), "{here}");
        let json = validated_json("p.yaml", &good, how(true, false));
        assert_eq!(
            (&json["lacking"][0]["features"][1], &json["ok"]),
            (&"b".into(), &true.into())
        );
        let strict = "\
error: rule x never matches
error: node edge-1 would refuse it: it lacks a, b
";
        assert_eq!(validated_text("p.yaml", &good, how(true, true)), strict);
        assert_eq!(
            validated_json("p.yaml", &good, how(true, true))["ok"],
            false
        );
        let plain = ValidateResponse {
            rows: 5,
            ..ValidateResponse::default()
        };
        assert!(validated_text("p.yaml", &plain, how(true, true)).contains("ok (5 rows)"));
        let bad = ValidateResponse {
            problems: Some(DocumentProblems {
                problems: vec![DocumentProblem {
                    line: 2,
                    column: 1,
                    message: "unknown key `x`".into(),
                }],
                left_off: 0,
            }),
            ..ValidateResponse::default()
        };
        assert_eq!(
            validated_text("p.yaml", &bad, how(false, false)),
            "p.yaml:2:1: unknown key `x`\n"
        );
        assert_eq!(
            validated_json("p.yaml", &bad, how(false, false))["ok"],
            false
        );
    }

    #[test]
    fn an_apply_says_what_comes_next() {
        let answer = ApplyResponse {
            generation: Some(generation(7, GenerationState::Applied)),
            summary: Some(DiffSummary {
                added: 1,
                changed: 2,
                removed: 3,
            }),
            ..ApplyResponse::default()
        };
        let expected = "\
generation 7: 1 row added, 2 changed, 3 removed against generation 6
not in force yet: sluicectl release 7, possible until 2001-09-09 02:46:40Z
";
        assert_eq!(applied_text(&answer, false), expected);
        assert_eq!(applied_text(&answer, true).lines().count(), 1);
        let first = ApplyResponse {
            generation: Some(generation(1, GenerationState::Applied)),
            ..answer.clone()
        };
        assert!(applied_text(&first, true).contains("with nothing in force before"));
        let unchanged = ApplyResponse {
            generation: Some(generation(7, GenerationState::Released)),
            unchanged: true,
            ..answer
        };
        let expected = "unchanged: generation 7 (released) says the same; no generation was made\n";
        assert_eq!(applied_text(&unchanged, false), expected);
        assert_eq!(applied_json(&unchanged)["unchanged"], true);
        assert_eq!(applied_json(&unchanged)["generation"]["number"], 7);
    }

    #[test]
    fn history_is_a_table() {
        let rollback = Generation {
            rollback_of: Some(5),
            ..generation(8, GenerationState::Released)
        };
        let answer = HistoryResponse {
            generations: vec![rollback, generation(7, GenerationState::Superseded)],
            newest: 8,
            released: 8,
        };
        let expected = "\
GEN  STATE       BASE  ROWS  CHANGES  WARNINGS  MADE                  BY   COMMENT
  8  released       7    12        2         1  2001-09-09 01:46:40Z  ops  rollback to 5: more sensors
  7  superseded     6    12        2         -  2001-09-09 01:46:40Z  ops  more sensors
";
        assert_eq!(history_text(&answer), expected);
        assert_eq!(
            history_text(&HistoryResponse::default()),
            "no generations\n"
        );
        let json = history_json(&answer);
        assert_eq!(json["released"], 8);
        assert_eq!(json["generations"][0]["rollback_of"], 5);
        assert_eq!(json["generations"][1]["expires_unix_ms"], Value::Null);
        assert_eq!(json["generations"][1]["id"]["digest"], "02".repeat(32));
    }
}
