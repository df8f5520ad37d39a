//! `/rules`: how often each rule decided, page by page; and the few of them that `/metrics` shows.
//!
//! Counts are added up on another thread: there may be a million rules, and the control thread has other things to do.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_policy::{Effect, RulePlace};

use super::Admin;
use super::exposition::RuleSeries;
use crate::control::NoAnswer;
use crate::control::rules::{RuleFilter, RulePage, RuleTally};

/// Rules in one answer, at most and by default.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;

/// What of them is asked for.
#[derive(Deserialize)]
pub(super) struct RulesQuery {
    limit: Option<usize>,
    after: Option<String>,
    unused: Option<String>,
    shadow: Option<String>,
}

/// `GET /rules`.
pub(super) async fn list(
    State(admin): State<Admin>,
    Query(query): Query<RulesQuery>,
) -> Result<Response, NoAnswer> {
    let behind = match query.after.as_deref().map(cursor) {
        None => None,
        Some(Some(place)) => Some(place),
        Some(None) => {
            let error = "`after` is what `next` of the page before said";
            return Ok((StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response());
        }
    };
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let filter = RuleFilter {
        unused: query.unused.is_some(),
        shadow: query.shadow.is_some(),
    };
    let page = admin.control.rule_page(behind, limit, filter).await?;
    Ok(Json(shown(&page.unwrap_or_default())).into_response())
}

fn shown(page: &RulePage) -> Value {
    json!({
        "generation": page.generation,
        "rules": page.rules.iter().map(rule).collect::<Value>(),
        "next": page.next.as_ref().map(written),
        "by_default": page.by_default,
        "left_off": page.left_off,
        "since_unix_ms": page.since_unix_ms,
    })
}

fn rule(rule: &RuleTally) -> Value {
    json!({
        "name": rule.place.name,
        "priority": rule.place.priority,
        "mode": if rule.is_shadow { "shadow" } else { "enforce" },
        "decision": match rule.effect { Effect::Allow => "allow", Effect::Deny => "deny" },
        "decided": rule.count.decided,
        "otherwise": rule.is_shadow.then_some(rule.count.otherwise),
        "since_unix_ms": rule.since_unix_ms,
    })
}

/// `priority:order:tie:name`.
fn written(place: &RulePlace) -> String {
    let RulePlace {
        priority,
        order,
        tie,
        name,
    } = place;
    format!("{priority}:{order}:{tie}:{name}")
}

fn cursor(text: &str) -> Option<RulePlace> {
    let mut parts = text.splitn(4, ':');
    Some(RulePlace {
        priority: parts.next()?.parse().ok()?,
        order: parts.next()?.parse().ok()?,
        tie: parts.next()?.parse().ok()?,
        name: parts.next()?.into(),
    })
}

/// What `/metrics` shows.
pub(super) async fn counted(admin: &Admin) -> Result<RuleSeries, NoAnswer> {
    let Some(view) = admin.control.rules().await? else {
        return Ok(RuleSeries::default());
    };
    let (max, (by_default, left_off)) = (admin.rule_metrics, view.rest());
    let bytes = view.heap_bytes();
    let rules = if max == 0 {
        Vec::new()
    } else {
        let owned = move || {
            let rules = view.by_name(max);
            let rules = rules.map(|(name, is_shadow, count)| (name.to_owned(), is_shadow, count));
            rules.collect()
        };
        let owned = tokio::task::spawn_blocking(owned).await;
        owned.map_err(|_| NoAnswer)?
    };
    Ok(RuleSeries {
        rules,
        by_default,
        left_off,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_being_written_out_and_others_are_refused() {
        for text in ["0:3:0:a", "-7:9223372036854775807:1:a:b", "1:-1:0:"] {
            let place = cursor(text).expect("a cursor");
            assert_eq!(written(&place), text);
        }
        for text in ["", "a", "1:2", "1:2:3", "x:0:0:a", "0:0:-1:a"] {
            assert_eq!(cursor(text), None, "{text:?}");
        }
    }
}
