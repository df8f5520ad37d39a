//! The page of recent refusals, where a flag enables it: the admin server has no password.

use std::net::IpAddr;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use crate::control::{DenialCursor, DenialPage, NoAnswer};
use crate::node::{DenialFilter, DenialLine, ShownUser};

/// Lines of one answer unless said otherwise.
const LIMIT: u32 = 100;

#[derive(Deserialize)]
pub(super) struct DenialsQuery {
    limit: Option<u32>,
    after: Option<String>,
    client_id: Option<Box<str>>,
    username: Option<Box<str>>,
    address: Option<IpAddr>,
    reason: Option<Box<str>>,
}

pub(super) async fn denials(
    State(admin): State<Admin>,
    Query(query): Query<DenialsQuery>,
) -> Result<Response, NoAnswer> {
    if !admin.shows_denials {
        let hint = "not shown here: this server has no password. Use `sluicectl denials`, or start the node with --admin-denials\n";
        return Ok((StatusCode::NOT_FOUND, hint).into_response());
    }
    let after = match query.after.as_deref().map(str::parse::<DenialCursor>) {
        None => None,
        Some(Ok(cursor)) => Some(cursor),
        Some(Err(error)) => return Ok(bad_request(&error.to_string())),
    };
    let filter = DenialFilter {
        user: query.username,
        client_id: query.client_id,
        address: query.address,
        reason: query.reason,
    };
    let filter = match filter.checked() {
        Ok(filter) => filter,
        Err(error) => return Ok(bad_request(&error)),
    };
    let limit = query.limit.unwrap_or(LIMIT);
    let page = admin.control.denials(after, limit, filter).await?;
    Ok(Json(page_json(&page)).into_response())
}

fn bad_request(error: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
}

fn page_json(page: &DenialPage) -> Value {
    let line = |(shard, unix_ms, line): &(u16, u64, DenialLine)| {
        json!({
            "shard": shard,
            "unix_ms": unix_ms,
            "peer": line.peer,
            "listener": line.listener,
            "client_id": line.client_id,
            "user": (line.user != ShownUser::Nobody).then(|| line.user.to_string()),
            "action": line.act.name(),
            "topic": line.topic,
            "qos": line.qos.map(sluice_wire::mqtt::QoS::bits),
            "retain": line.retain,
            "payload_bytes": line.payload_bytes,
            "reason": line.reason.name(),
            "rule": (!line.rule.is_empty()).then_some(&line.rule),
            "clause": (!line.clause.is_empty()).then_some(line.clause),
        })
    };
    let denials: Vec<Value> = page.lines.iter().map(line).collect();
    json!({
        "denials": denials,
        "next": page.next.to_string(),
        "left_off": page.left_off,
        "lost": page.lost,
        "error": (!page.error.is_empty()).then_some(&page.error),
    })
}
