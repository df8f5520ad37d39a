//! `denials`: why devices were refused.

use serde_json::json;
use sluice_proto::control::v1::{DenialsRequest, DenialsResponse};

use super::args::{DenialsArgs, Form};
use super::connect::{Connection, within};
use super::failure::{Exit, Failure};
use super::out::Out;
use super::render::{clean, count, denials as render};

/// Shows recent refusals; with `--follow` until Ctrl-C, the control plane ends, or nobody reads.
pub(super) async fn denials(
    connection: &Connection,
    args: &DenialsArgs,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let failed = |status| Failure::from_status(&status);
    let mut client = connection.nodes();
    let begun = within(connection.call_timeout(), client.denials(request(args))).await;
    let mut stream = begun.map_err(failed)?.into_inner();
    let mut exit = Exit::Done;
    let mut is_first = true;
    // The first answer is due in a time that is known; the next ones are not.
    while let Some(answer) = next(connection, &mut stream, is_first)
        .await
        .map_err(failed)?
    {
        if !show(out, &answer, is_first, args.follow) {
            return Ok(Exit::Done);
        }
        if !answer.failed.is_empty() {
            exit = Exit::Partly;
        }
        is_first = false;
    }
    if args.follow {
        let ended = "the control plane ended the answer";
        return Err(Failure::new(Exit::Away, "unreachable", ended));
    }
    Ok(exit)
}

fn request(args: &DenialsArgs) -> DenialsRequest {
    DenialsRequest {
        node: args.node.clone(),
        user: args.user.clone(),
        client_id: args.client_id.clone(),
        address: args.address.map(|address| address.to_string()),
        reason: args.reason.clone(),
        limit: args.limit,
        follow: args.follow,
    }
}

async fn next(
    connection: &Connection,
    stream: &mut tonic::Streaming<DenialsResponse>,
    is_first: bool,
) -> Result<Option<DenialsResponse>, tonic::Status> {
    if is_first {
        within(connection.call_timeout(), stream.message()).await
    } else {
        stream.message().await
    }
}

/// False when nobody reads.
fn show(out: &mut Out, answer: &DenialsResponse, is_first: bool, follows: bool) -> bool {
    if out.form() == Form::Json {
        let document = json!({
            "denials": render::denials_json(&answer.denials),
            "left_off": answer.left_off,
            "lost": answer.lost,
            "failed": render::failed_json(&answer.failed),
        });
        return out.print(&format!("{document}\n"));
    }
    let text = match (answer.denials.is_empty(), follows) {
        (true, false) => "no refusals\n".to_owned(),
        (true, true) => String::new(),
        (false, _) => render::denials_text(&answer.denials, is_first),
    };
    let has_readers = text.is_empty() || out.print(&text);
    if answer.left_off > 0 {
        out.warn(&format!(
            "{} not shown: they are older than these (--limit shows more)",
            count(answer.left_off, "refusal")
        ));
    }
    if answer.lost > 0 {
        out.warn(&format!(
            "{} dropped by the nodes to make room for others; of an address that is refused often they keep the newest only",
            count(answer.lost, "refusal")
        ));
    }
    for node in &answer.failed {
        out.warn(&format!("{}: {}", clean(&node.node), clean(&node.error)));
    }
    has_readers
}
