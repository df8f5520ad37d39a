//! Commands about nodes and their sessions.

use serde_json::{Value, json};
use std::time::Duration;

use sluice_proto::control::v1::kick_request::Who;
use sluice_proto::control::v1::{
    DrainRequest, KickRequest, ListNodesRequest, NodeAnswer, RemoveNodeRequest, SessionsRequest,
    SessionsResponse,
};

use super::args::{DrainArgs, Form, KickArgs, NodesArgs, RemoveArgs, SessionsArgs};
use super::connect::{Connection, within};
use super::failure::{Exit, Failure};
use super::out::{Answer, Out};
use super::render::{clean, nodes as render};

/// Sessions in one call, the most there can be.
const PAGE_MAX: u64 = 1000;

/// `nodes`.
pub(super) async fn nodes(connection: &Connection, args: &NodesArgs) -> Result<Answer, Failure> {
    let mut client = connection.nodes();
    let answer = connection
        .call(client.list(selected(args)))
        .await
        .map_err(|status| Failure::from_status(&status))?;
    Ok(Answer::done(
        render::nodes_text(&answer),
        render::nodes_json(&answer),
    ))
}

fn selected(args: &NodesArgs) -> ListNodesRequest {
    ListNodesRequest {
        nodes: args.names.clone(),
    }
}

/// `nodes --watch`: until Ctrl-C, the control plane ends, or nobody reads.
pub(super) async fn watch(
    connection: &Connection,
    args: &NodesArgs,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let failed = |status| Failure::from_status(&status);
    let mut client = connection.nodes();
    let begun = within(connection.call_timeout(), client.watch(selected(args))).await;
    let mut stream = begun.map_err(failed)?.into_inner();
    let mut is_first = true;
    while let Some(answer) = stream.message().await.map_err(failed)? {
        let piece = match out.form() {
            Form::Json => format!("{}\n", render::nodes_json(&answer)),
            Form::Text if is_first => render::nodes_text(&answer),
            Form::Text => format!("\n{}", render::nodes_text(&answer)),
        };
        is_first = false;
        if !out.print(&piece) {
            return Ok(Exit::Done);
        }
    }
    Err(Failure::new(
        Exit::Away,
        "unreachable",
        "the control plane ended the watch",
    ))
}

/// `sessions`: page by page, so that a fleet's sessions need not fit into memory.
pub(super) async fn sessions(
    connection: &Connection,
    args: &SessionsArgs,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut failed: Vec<NodeAnswer> = Vec::new();
    let mut after = None;
    let mut shown: u64 = 0;
    // Before anything is printed, so that what fails at once is an error like any other.
    let mut next = Some(page(connection, args, after.take(), left).await?);
    if out.form() == Form::Json {
        out.print("{\"sessions\":[");
    }
    let mut broken = None;
    while let Some(answer) = next.take() {
        let count = answer.sessions.len() as u64;
        let has_readers = out.print(&piece(out.form(), &answer, shown));
        shown += count;
        left = left.saturating_sub(count);
        for node in answer.failed {
            if !failed.iter().any(|known| known.node == node.node) {
                failed.push(node);
            }
        }
        let Some(cursor) = answer.next.filter(|_| has_readers && left > 0) else {
            break;
        };
        match page(connection, args, Some(cursor), left).await {
            Ok(answer) => next = Some(answer),
            Err(failure) => broken = Some(failure),
        }
    }
    Ok(end_sessions(out, shown, &failed, broken))
}

async fn page(
    connection: &Connection,
    args: &SessionsArgs,
    after: Option<String>,
    left: u64,
) -> Result<SessionsResponse, Failure> {
    let request = SessionsRequest {
        node: args.node.clone(),
        client_id: args.client_id.clone(),
        username: args.user.clone(),
        limit: u32::try_from(left.min(PAGE_MAX)).ok(),
        after,
    };
    let mut client = connection.nodes();
    connection
        .call(client.sessions(request))
        .await
        .map_err(|status| Failure::from_status(&status))
}

fn piece(form: Form, answer: &SessionsResponse, shown: u64) -> String {
    match form {
        Form::Text if answer.sessions.is_empty() => String::new(),
        Form::Text => render::sessions_text(&answer.sessions),
        Form::Json => {
            let mut text = String::new();
            for (index, session) in answer.sessions.iter().enumerate() {
                let comma = if shown == 0 && index == 0 { "" } else { "," };
                text.push_str(&format!("{comma}\n{}", render::session_json(session)));
            }
            text
        }
    }
}

fn end_sessions(out: &mut Out, shown: u64, failed: &[NodeAnswer], broken: Option<Failure>) -> Exit {
    match out.form() {
        Form::Text => {
            if shown == 0 {
                out.print("no sessions\n");
            }
            for node in failed {
                out.warn(&format!(
                    "{} was not asked: {}",
                    clean(&node.node),
                    clean(&node.error)
                ));
            }
        }
        Form::Json => {
            let failed = render::answers_json(failed);
            let error = broken
                .as_ref()
                .map_or(Value::Null, |failure| failure.json()["error"].clone());
            out.print(&format!("\n],\"failed\":{failed},\"error\":{error}}}\n"));
        }
    }
    match broken {
        Some(failure) if out.form() == Form::Text => out.failure(&failure),
        Some(failure) => failure.exit,
        None if failed.is_empty() => Exit::Done,
        None => Exit::Partly,
    }
}

/// `kick`.
pub(super) async fn kick(connection: &Connection, args: &KickArgs) -> Result<Answer, Failure> {
    let who = match (&args.who.client_id, &args.who.user) {
        (Some(client_id), _) => Who::ClientId(client_id.clone()),
        (None, Some(user)) => Who::Username(user.clone()),
        (None, None) => return Err(Failure::usage("--client-id or --user is needed")),
    };
    let request = KickRequest {
        node: args.node.clone(),
        who: Some(who),
        keep_out_ms: args
            .keep_out
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    };
    let mut client = connection.nodes();
    let found = connection.call(client.kick(request)).await;
    let found = found.map_err(|status| Failure::from_status(&status))?;
    let done = match args.keep_out {
        None => "kicked",
        Some(Duration::ZERO) => "let in again",
        Some(_) => "kicked and kept out",
    };
    let mut answer = answered(&found.answers, done);
    let is_done = answer.exit == Exit::Done && !found.answers.is_empty();
    if is_done && found.answers.iter().all(|one| one.sessions == 0) {
        answer
            .text
            .push_str("nothing was ended: no node that was asked has such a session\n");
    }
    Ok(answer)
}

/// `drain`.
pub(super) async fn drain(connection: &Connection, args: &DrainArgs) -> Result<Answer, Failure> {
    let within_ms = args
        .within
        .map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
    let request = DrainRequest {
        node: args.node.clone(),
        within_ms,
        undo: args.undo,
    };
    let mut client = connection.nodes();
    let found = connection.call(client.drain(request)).await;
    let found = found.map_err(|status| Failure::from_status(&status))?;
    let done = if args.undo {
        "back in service"
    } else {
        "draining"
    };
    Ok(answered(&found.answers, done))
}

/// Done everywhere, on some nodes, or on none.
fn answered(answers: &[NodeAnswer], done: &str) -> Answer {
    let failed = answers
        .iter()
        .filter(|answer| !answer.error.is_empty())
        .count();
    Answer {
        text: render::answers_text(answers, done),
        json: json!({ "answers": render::answers_json(answers) }),
        exit: match failed {
            0 => Exit::Done,
            count if count == answers.len() => Exit::Refused,
            _ => Exit::Partly,
        },
    }
}

/// `node remove`.
pub(super) async fn remove(connection: &Connection, args: &RemoveArgs) -> Result<Answer, Failure> {
    let request = RemoveNodeRequest {
        node: args.node.clone(),
    };
    let mut client = connection.nodes();
    let removed = connection.call(client.remove(request)).await;
    removed.map_err(|status| Failure::from_status(&status))?;
    let text = format!(
        "{} is no member any more; it goes on with what it has until it is stopped\n",
        clean(&args.node)
    );
    Ok(Answer::done(text, json!({ "removed": args.node })))
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::NodeSession;

    use super::*;

    #[test]
    fn an_answer_is_done_everywhere_somewhere_or_nowhere() {
        let node = |error: &str| NodeAnswer {
            node: "n".into(),
            sessions: 0,
            error: error.into(),
        };
        for (answers, expected) in [
            (vec![], Exit::Done),
            (vec![node(""), node("")], Exit::Done),
            (vec![node(""), node("gone")], Exit::Partly),
            (vec![node("gone")], Exit::Refused),
        ] {
            assert_eq!(answered(&answers, "done").exit, expected);
        }
    }

    #[test]
    fn pages_make_one_json_document() {
        let page = |count| SessionsResponse {
            sessions: vec![NodeSession::default(); count],
            ..SessionsResponse::default()
        };
        let mut text = String::from("[");
        let mut shown = 0;
        for count in [0, 2, 0, 1] {
            text.push_str(&piece(Form::Json, &page(count), shown));
            shown += count as u64;
        }
        text.push(']');
        let read: Value = serde_json::from_str(&text).expect("one document");
        assert_eq!(read.as_array().map(Vec::len), Some(3));
    }
}
