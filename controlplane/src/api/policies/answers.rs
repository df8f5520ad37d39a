//! What callers are told: results as messages, failures as statuses.

use sluice_policy::fleet::RowKey;
use sluice_proto::Message;
use sluice_proto::control::v1::{
    self, DiffSummary, DocumentProblem, DocumentProblems, GenerationState, LackingNode,
};
use tonic::{Code, Status};

use crate::api::status;
use crate::domain::diff::{Became, Diff, FieldDiff, RowDiff, Summary};
use crate::domain::{Generation, Name, State, UnixMillis};
use crate::release::{Failed, Wrong};

/// Longest details of a status, in bytes: they travel as a header, and clients take 16 KiB of headers unless told otherwise.
/// Validate tells all.
pub(super) const DETAILS_BYTES_MAX: usize = 6 << 10;
/// Longest message of a status about a document, in characters; for the same reason.
const MESSAGE_CHARS_MAX: usize = 400;

/// The status for a failure.
pub(super) fn failure(failed: &Failed) -> Status {
    match failed {
        Failed::Store(error) => status(error),
        Failed::Document(wrong) => {
            let message: String = wrong.to_string().chars().take(MESSAGE_CHARS_MAX).collect();
            let details = problems(wrong, DETAILS_BYTES_MAX).encode_to_vec();
            Status::with_details(Code::InvalidArgument, message, details.into())
        }
        Failed::Invalid(text) => Status::invalid_argument(text),
        Failed::NotFound(text) => Status::not_found(text),
        Failed::Refused(text) => Status::failed_precondition(text),
        Failed::Unwelcome => Status::unauthenticated(failed.to_string()),
        Failed::Busy(text) => Status::resource_exhausted(text),
        Failed::Stopped => Status::internal(failed.to_string()),
        Failed::Interrupted => Status::unknown(failed.to_string()),
    }
}

/// What is wrong with a document, as much of it as fits.
pub(super) fn problems(wrong: &Wrong, bytes_max: usize) -> DocumentProblems {
    let mut out = DocumentProblems::default();
    let mut bytes = 16; // for `left_off`
    for problem in &wrong.problems {
        let problem = DocumentProblem {
            line: problem.at.line,
            column: problem.at.column,
            message: problem.message.clone(),
        };
        bytes += problem.encoded_len() + 6; // its tag and length
        if bytes > bytes_max {
            break;
        }
        out.problems.push(problem);
    }
    out.left_off = wrong.left_off + (wrong.problems.len() - out.problems.len()) as u64;
    out
}

pub(super) fn generation(generation: Generation, in_force: u64, now: UnixMillis) -> v1::Generation {
    let state = generation.state(in_force, now);
    let warnings = generation.warnings.as_ref().map(Vec::len);
    v1::Generation {
        warnings: warnings.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        id: Some(generation.id.to_wire()),
        base: generation.base,
        state: state_number(state).into(),
        rollback_of: generation.rollback_of,
        rows: generation.rows,
        changes: generation.changes,
        comment: generation.comment,
        created_unix_ms: generation.created_at.0,
        created_by: generation.created_by,
        released_unix_ms: generation.released_at.map(|at| at.0),
        released_by: generation.released_by,
        expires_unix_ms: (state == State::Applied).then_some(generation.expires_at.0),
    }
}

fn state_number(state: State) -> GenerationState {
    match state {
        State::Applied => GenerationState::Applied,
        State::Released => GenerationState::Released,
        State::Superseded => GenerationState::Superseded,
        State::Expired => GenerationState::Expired,
        State::Outdated => GenerationState::Outdated,
    }
}

pub(super) fn lacking(nodes: Vec<(Name, Vec<String>)>) -> Vec<LackingNode> {
    let nodes = nodes.into_iter();
    nodes
        .map(|(node, features)| LackingNode {
            node: node.as_str().into(),
            features,
        })
        .collect()
}

pub(super) fn summary(summary: Summary) -> DiffSummary {
    DiffSummary {
        added: summary.added,
        changed: summary.changed,
        removed: summary.removed,
    }
}

pub(super) fn diff(
    diff: Diff,
    from: u64,
    to: Option<u64>,
    warnings: Vec<String>,
) -> v1::DiffResponse {
    v1::DiffResponse {
        summary: Some(summary(diff.summary)),
        rows: diff.rows.into_iter().map(row).collect(),
        left_off: diff.left_off,
        from,
        to,
        warnings,
    }
}

fn row(row: RowDiff) -> v1::RowDiff {
    use v1::row_diff::Change;
    let change = match row.became {
        Became::Added => Change::Added,
        Became::Changed => Change::Changed,
        Became::Removed => Change::Removed,
    };
    v1::RowDiff {
        row: Some(RowKey::to_wire(&row.key)),
        change: change.into(),
        title: row.title,
        fields: row.fields.into_iter().map(field).collect(),
    }
}

fn field(field: FieldDiff) -> v1::FieldDiff {
    v1::FieldDiff {
        field: field.field.into(),
        before: field.before,
        after: field.after,
    }
}
