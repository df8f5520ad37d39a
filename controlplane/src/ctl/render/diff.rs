//! What would change, row by row and field by field.

use serde_json::{Value, json};
use sluice_proto::control::v1::row_diff::Change;
use sluice_proto::control::v1::{DiffResponse, FieldDiff, RowDiff};
use sluice_proto::v1::RowKind;

use super::policy::{summary, summary_json};
use super::{clean, remarks};

/// `document` is what the document is called, when one was compared.
pub(crate) fn text(answer: &DiffResponse, document: Option<&str>) -> String {
    let mut text = remarks(&answer.warnings, &[]);
    let from = match answer.from {
        0 => "nothing in force".to_owned(),
        number => format!("generation {number}"),
    };
    let to = match (answer.to, document) {
        (Some(number), _) => format!("generation {number}"),
        (None, Some(name)) => clean(name),
        (None, None) => "the document".into(),
    };
    let counts = answer.summary.unwrap_or_default();
    if counts.added + counts.changed + counts.removed == 0 {
        text.push_str(&format!("{from} -> {to}: no difference\n"));
        return text;
    }
    text.push_str(&format!("{from} -> {to}: {}\n", summary(Some(&counts))));
    for row in &answer.rows {
        text.push_str(&format!("{} {}\n", sign(row.change()), clean(&row.title)));
        for field in &row.fields {
            text.push_str(&format!("    {}\n", field_text(field)));
        }
    }
    if answer.left_off > 0 {
        text.push_str(&format!(
            "and {} more; --limit shows them\n",
            answer.left_off
        ));
    }
    text
}

fn sign(change: Change) -> char {
    match change {
        Change::Unspecified => '?',
        Change::Added => '+',
        Change::Changed => '~',
        Change::Removed => '-',
    }
}

fn field_text(field: &FieldDiff) -> String {
    let name = clean(&field.field);
    match (&field.before, &field.after) {
        (Some(before), Some(after)) => format!("{name}: {} -> {}", clean(before), clean(after)),
        (None, Some(after)) => format!("{name}: {}", clean(after)),
        (Some(before), None) => format!("{name}: {} -> (not set)", clean(before)),
        (None, None) => name,
    }
}

/// The same.
pub(crate) fn json(answer: &DiffResponse) -> Value {
    json!({
        "from": answer.from,
        "to": answer.to,
        "summary": summary_json(&answer.summary.unwrap_or_default()),
        "rows": answer.rows.iter().map(row_json).collect::<Value>(),
        "left_off": answer.left_off,
        "warnings": answer.warnings,
    })
}

fn row_json(row: &RowDiff) -> Value {
    let change = match row.change() {
        Change::Unspecified => "unknown",
        Change::Added => "added",
        Change::Changed => "changed",
        Change::Removed => "removed",
    };
    let field = |field: &FieldDiff| json!({ "field": field.field, "before": field.before, "after": field.after });
    json!({
        "kind": row.row.as_ref().map(|key| kind(key.kind())),
        "name": row.row.as_ref().map(|key| &key.name),
        "change": change,
        "title": row.title,
        "fields": row.fields.iter().map(field).collect::<Value>(),
    })
}

/// As the document calls it, in the singular.
pub(crate) fn kind(kind: RowKind) -> &'static str {
    match kind {
        RowKind::Unspecified => "unknown",
        RowKind::Settings => "settings",
        RowKind::Listener => "listener",
        RowKind::Upstream => "upstream",
        RowKind::Group => "group",
        RowKind::User => "user",
        RowKind::Rule => "rule",
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::DiffSummary;
    use sluice_proto::v1::RowKey;

    use super::*;

    fn field(field: &str, before: Option<&str>, after: Option<&str>) -> FieldDiff {
        FieldDiff {
            field: field.into(),
            before: before.map(Into::into),
            after: after.map(Into::into),
        }
    }

    fn row(change: Change, kind: RowKind, name: &str, fields: Vec<FieldDiff>) -> RowDiff {
        RowDiff {
            row: Some(RowKey {
                kind: kind.into(),
                name: name.into(),
            }),
            change: change.into(),
            title: format!("{} {name}", super::kind(kind)),
            fields,
        }
    }

    #[test]
    fn a_difference_is_shown_row_by_row() {
        let answer = DiffResponse {
            summary: Some(DiffSummary {
                added: 1,
                changed: 1,
                removed: 1,
            }),
            rows: vec![
                row(
                    Change::Changed,
                    RowKind::User,
                    "ann",
                    vec![
                        field("groups", Some("a"), Some("a, b")),
                        field("client_id", Some("x\x07"), None),
                        field("password_hash", None, None),
                    ],
                ),
                row(
                    Change::Added,
                    RowKind::Rule,
                    "r1",
                    vec![field("topics", None, Some("site/#"))],
                ),
                row(Change::Removed, RowKind::Rule, "r2", vec![]),
            ],
            left_off: 4,
            from: 6,
            to: None,
            warnings: vec!["odd".into()],
        };
        let expected = "\
warning: odd
generation 6 -> p.yaml: 1 row added, 1 changed, 1 removed
~ user ann
    groups: a -> a, b
    client_id: x\\u{7} -> (not set)
    password_hash
+ rule r1
    topics: site/#
- rule r2
and 4 more; --limit shows them
";
        assert_eq!(text(&answer, Some("p.yaml")), expected);
        let json = json(&answer);
        assert_eq!(json["rows"][0]["kind"], "user");
        assert_eq!(json["rows"][1]["change"], "added");
        assert_eq!(json["to"], Value::Null);
    }

    #[test]
    fn no_difference_is_said() {
        let answer = DiffResponse {
            to: Some(7),
            ..DiffResponse::default()
        };
        assert_eq!(
            text(&answer, None),
            "nothing in force -> generation 7: no difference\n"
        );
    }
}
