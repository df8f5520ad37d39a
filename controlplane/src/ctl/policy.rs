//! Commands that look at policy: validate, diff, history, explain.

use sluice_proto::control::v1::{
    DocumentHeader, ExplainRequest, Generation, HistoryRequest, HistoryResponse, ValidateResponse,
};

use super::args::{DiffArgs, ExplainArgs, HistoryArgs, ValidateArgs};
use super::connect::Connection;
use super::document::{Document, header_part};
use super::failure::{Exit, Failure};
use super::out::Answer;
use super::render::{diff as render_diff, policy as render};

/// Generations in one call, the most there can be.
const PAGE_MAX: u32 = 1000;

/// `validate` without a server.
pub(super) fn validate_here(args: &ValidateArgs) -> Result<Answer, Failure> {
    let document = match Document::read(&args.file) {
        Ok(document) => document,
        Err(failure) => return unreadable(failure, args.strict),
    };
    Ok(validated(
        &document.name,
        &document.check(),
        render::Checked {
            is_online: false,
            is_strict: args.strict,
        },
    ))
}

/// `validate` with one.
pub(super) async fn validate(
    connection: &Connection,
    args: &ValidateArgs,
) -> Result<Answer, Failure> {
    let document = match Document::read(&args.file) {
        Ok(document) => document,
        Err(failure) => return unreadable(failure, args.strict),
    };
    let parts = document.parts(DocumentHeader::default());
    let mut client = connection.policies();
    let answer = connection
        .call_with_document(client.validate(tokio_stream::iter(parts)))
        .await
        .map_err(|status| Failure::from_document_status(&status, &document.name))?;
    Ok(validated(
        &document.name,
        &answer,
        render::Checked {
            is_online: true,
            is_strict: args.strict,
        },
    ))
}

fn validated(file: &str, answer: &ValidateResponse, how: render::Checked) -> Answer {
    Answer {
        text: render::validated_text(file, answer, how),
        json: render::validated_json(file, answer, how),
        exit: if how.is_good(answer) {
            Exit::Done
        } else {
            Exit::Wrong
        },
    }
}

/// What is wrong with the bytes of a document is an answer of `validate`, like everything that is wrong with it.
fn unreadable(failure: Failure, is_strict: bool) -> Result<Answer, Failure> {
    match failure.document {
        Some(document) => {
            let (file, problems) = *document;
            let answer = ValidateResponse {
                problems: Some(problems),
                ..ValidateResponse::default()
            };
            let how = render::Checked {
                is_online: false,
                is_strict,
            };
            Ok(validated(&file, &answer, how))
        }
        None => Err(failure),
    }
}

/// `diff`.
pub(super) async fn diff(connection: &Connection, args: &DiffArgs) -> Result<Answer, Failure> {
    let document = args.file.as_deref().map(Document::read).transpose()?;
    let (from, to) = match args.generations.as_slice() {
        [from, to] => (Some(*from), Some(*to)),
        [to] => (None, Some(*to)),
        _ => (args.from, None),
    };
    let header = DocumentHeader {
        from,
        to,
        limit: Some(args.limit),
        ..DocumentHeader::default()
    };
    let parts = match &document {
        Some(document) => document.parts(header),
        None => vec![header_part(header)],
    };
    let name = document.as_ref().map(|document| document.name.as_str());
    let mut client = connection.policies();
    let answer = connection
        .call_with_document(client.diff(tokio_stream::iter(parts)))
        .await
        .map_err(|status| Failure::from_document_status(&status, name.unwrap_or("the document")))?;
    Ok(Answer::done(
        render_diff::text(&answer, name),
        render_diff::json(&answer),
    ))
}

/// `history`, over as many pages as it takes.
pub(super) async fn history(
    connection: &Connection,
    args: &HistoryArgs,
) -> Result<Answer, Failure> {
    let mut found = HistoryResponse::default();
    let (mut before, mut left) = (args.before, args.limit);
    while left > 0 {
        let limit = left.min(PAGE_MAX);
        let page = page(connection, before, limit).await?;
        (found.newest, found.released) = (page.newest, page.released);
        let count = u32::try_from(page.generations.len()).unwrap_or(u32::MAX);
        before = page.generations.last().map(render::number);
        found.generations.extend(page.generations);
        // A server that gives the same page for ever would not end it either: `left` shrinks with every page.
        left = if count < limit {
            0
        } else {
            left.saturating_sub(count)
        };
    }
    Ok(Answer::done(
        render::history_text(&found),
        render::history_json(&found),
    ))
}

/// What is newest and what is in force: the state that a write names when the caller named none.
pub(super) async fn heads(connection: &Connection) -> Result<HistoryResponse, Failure> {
    page(connection, None, 1).await
}

/// One generation; `None`: there is none of that number.
pub(super) async fn generation(
    connection: &Connection,
    number: u64,
) -> Result<Option<Generation>, Failure> {
    let found = page(connection, Some(number.saturating_add(1)), 1).await?;
    let mut found = found.generations.into_iter();
    Ok(found.find(|found| render::number(found) == number))
}

async fn page(
    connection: &Connection,
    before: Option<u64>,
    limit: u32,
) -> Result<HistoryResponse, Failure> {
    let mut client = connection.policies();
    let request = HistoryRequest {
        before,
        limit: Some(limit),
    };
    connection
        .call(client.history(request))
        .await
        .map_err(|status| Failure::from_status(&status))
}

/// `explain`.
pub(super) async fn explain(
    connection: &Connection,
    args: &ExplainArgs,
) -> Result<Answer, Failure> {
    let request = ExplainRequest {
        generation: args.generation,
        username: args.user.clone(),
        client_id: args.client_id.clone(),
        address: Some(args.address.to_string()),
        listener: args.listener.clone(),
        version: Some(args.version.name().into()),
        action: args.action.name().into(),
        topic: args.topic.clone(),
        qos: args.qos,
        retain: args.retain,
        payload_bytes: args.payload_bytes,
    };
    let mut client = connection.policies();
    let answer = connection
        .call(client.explain(request))
        .await
        .map_err(|status| Failure::from_status(&status))?;
    let json = serde_json::from_str(&answer.json).map_err(|error| {
        let message = format!("the control plane's explanation is no JSON: {error}");
        Failure::new(Exit::Refused, "other", message)
    })?;
    // Lines of the policy crate, in which names of users and topics may stand.
    let lines = answer.text.lines().map(super::render::clean);
    let text = lines.map(|line| line + "\n").collect();
    Ok(Answer::done(text, json))
}
