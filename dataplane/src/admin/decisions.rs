//! `/decisions`: the decision log, switched on for a time and off. Its lines go to the log, target `sluice::decision`.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use sluice_wire::mqtt::parse_filter;

use super::{Admin, Page};
use crate::config::Span;
use crate::control::NoAnswer;
use crate::control::decisions::DecisionLogView;
use crate::node::{DecisionFilter, DecisionLog};

/// How long it is on unless said otherwise.
const TIME: Duration = Duration::from_secs(600);

/// What is to be logged. All of it may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wish {
    r#for: Option<String>,
    every: Option<NonZeroU32>,
    denials: bool,
    listener: Option<Box<str>>,
    client_id: Option<Box<str>>,
    user: Option<Box<str>>,
    topic: Option<Box<str>>,
}

impl Wish {
    /// From JSON; empty is all decisions. The error is for the caller.
    fn read(text: &str) -> Result<(DecisionLog, Duration), String> {
        let wish = match text.trim() {
            "" => Self::default(),
            text => serde_json::from_str(text).map_err(|error| error.to_string())?,
        };
        let time = wish.r#for.as_deref().map(Span::from_str).transpose();
        let time = time.map_err(|error| format!("`for`: {error}"))?;
        let time = time.map_or(TIME, |span| span.0);
        if time.is_zero() {
            return Err("`for`: DELETE /decisions switches it off".into());
        }
        if wish
            .topic
            .as_deref()
            .is_some_and(|topic| parse_filter(topic).is_err())
        {
            return Err("`topic` is a topic or a filter like `site/+/state`".into());
        }
        let log = DecisionLog {
            every: wish.every.unwrap_or(NonZeroU32::MIN),
            filter: DecisionFilter {
                denials: wish.denials,
                listener: wish.listener,
                client_id: wish.client_id,
                user: wish.user,
                topic: wish.topic,
            },
            until: None,
        };
        Ok((log, time))
    }
}

fn shown(view: Option<&DecisionLogView>) -> Response {
    Page(json!({ "decision_log": view })).into_response()
}

pub(super) async fn show(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(false).await?;
    Ok(shown(observed.decision_log.as_ref()))
}

pub(super) async fn switch_on(
    State(admin): State<Admin>,
    body: String,
) -> Result<Response, NoAnswer> {
    let wanted = match Wish::read(&body) {
        Ok(wanted) => wanted,
        Err(error) => return Ok((StatusCode::BAD_REQUEST, format!("{error}\n")).into_response()),
    };
    let view = admin.control.log_decisions(Some(wanted)).await?;
    Ok(shown(view.as_ref()))
}

pub(super) async fn switch_off(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let view = admin.control.log_decisions(None).await?;
    Ok(shown(view.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_or_refused_with_a_reason() {
        let (log, time) = Wish::read("").expect("all decisions");
        assert_eq!((log.filter, time), (DecisionFilter::default(), TIME));
        let text = r#"{"for": "30s", "every": 5, "denials": true, "listener": "l", "client_id": "c", "user": "u", "topic": "a/#"}"#;
        let (log, time) = Wish::read(text).expect("a wish");
        assert_eq!((log.every.get(), time), (5, Duration::from_secs(30)));
        let text = |text: &str| Some(Box::from(text));
        let filter = DecisionFilter {
            denials: true,
            listener: text("l"),
            client_id: text("c"),
            user: text("u"),
            topic: text("a/#"),
        };
        assert_eq!(log.filter, filter);
        for (bad, said) in [
            (r#"{"denial": true}"#, "unknown field"),
            (r#"{"for": "25h"}"#, "`for`"),
            (r#"{"for": "0s"}"#, "DELETE"),
            (r#"{"every": 0}"#, "nonzero"),
            (r#"{"topic": "a/#/b"}"#, "`topic`"),
            ("denials", "expected"),
        ] {
            let error = Wish::read(bad).expect_err(bad);
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
