//! The admin server: health and metrics, on an address of its own.
//!
//! Read-only, without a password and without anything secret, so it listens on loopback unless told otherwise. One request
//! for each connection, so that a few seconds are enough for any of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::connections::{Bounded, Limits};
use crate::readiness::Readiness;

/// Scrapers, probes, a few people.
const CONNECTIONS_MAX: usize = 64;
/// A request is one small packet, and every answer is at hand or given up within seconds.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Admin {
    readiness: Arc<Readiness>,
    metrics: Render,
}

/// Makes the page of metrics.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves until the runtime ends.
pub async fn serve(
    socket: TcpListener,
    readiness: Arc<Readiness>,
    metrics: Render,
) -> std::io::Result<()> {
    let is_loopback = socket.local_addr()?.ip().is_loopback();
    let limits = Limits {
        connections_max: CONNECTIONS_MAX,
        stranger_max: CONNECTION_MAX,
    };
    let bounded = Bounded::new(socket, limits, false, "admin");
    let router = router(Admin { readiness, metrics }).layer(from_fn(move |request, next| {
        guard(is_loopback, request, next)
    }));
    axum::serve(bounded, router).await
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(0))
        .with_state(admin)
}

/// A web page in a browser of this machine is no operator. Browsers tell the page's origin with every change; a page
/// whose name was made to point at loopback (DNS rebinding) gives itself away by that name.
async fn guard(is_loopback: bool, request: Request, next: Next) -> Response {
    let mut response = if is_from_web_page(is_loopback, request.headers()) {
        let text = "web pages may not use the admin server\n";
        (StatusCode::FORBIDDEN, text).into_response()
    } else {
        next.run(request).await
    };
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

fn is_from_web_page(is_loopback: bool, headers: &HeaderMap) -> bool {
    let is_foreign = |host: &str| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) | None => host,
        };
        let address = name.trim_start_matches('[').trim_end_matches(']');
        !name.eq_ignore_ascii_case("localhost") && address.parse::<std::net::IpAddr>().is_err()
    };
    let host = headers.get(header::HOST).map(|host| host.to_str());
    headers.contains_key(header::ORIGIN)
        || (is_loopback && host.is_some_and(|host| host.map_or(true, is_foreign)))
}

async fn index() -> &'static str {
    "sluice-controlplane\n\
     GET /livez      the process answers\n\
     GET /readyz     can it do its work? (?verbose: why not, as JSON)\n\
     GET /metrics    for Prometheus\n"
}

/// The process answers. Whether it can do its work is `/readyz`.
async fn livez() -> &'static str {
    "ok\n"
}

#[derive(Deserialize)]
struct Readyz {
    verbose: Option<String>,
}

async fn readyz(State(admin): State<Admin>, Query(query): Query<Readyz>) -> Response {
    let reasons = admin.readiness.reasons().await;
    let is_ready = reasons.is_empty();
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    if query.verbose.is_some() {
        let body = json!({ "ready": is_ready, "reasons": reasons });
        let content_type = [(header::CONTENT_TYPE, "application/json")];
        return (status, content_type, format!("{body}\n")).into_response();
    }
    let text = if is_ready { "ready\n" } else { "not ready\n" };
    (status, text).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let content_type = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (content_type, (admin.metrics)()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_pages_are_told_from_operators() {
        for (host, origin, is_loopback, expected) in [
            (Some("127.0.0.1:9091"), None, true, false),
            (Some("[::1]:9091"), None, true, false),
            (Some("localhost"), None, true, false),
            (None, None, true, false),
            (Some("evil.example:9091"), None, true, true),
            (Some("localhost.evil.example"), None, true, true),
            (Some("127.0.0.1"), Some("http://evil.example"), true, true),
            (Some("sluice-0.sluice:9091"), None, false, false),
            (Some("sluice-0.sluice:9091"), Some("null"), false, true),
        ] {
            let mut headers = HeaderMap::new();
            for (name, text) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if let Some(text) = text {
                    headers.insert(name, HeaderValue::from_static(text));
                }
            }
            let found = is_from_web_page(is_loopback, &headers);
            assert_eq!(found, expected, "{host:?} {origin:?} {is_loopback}");
        }
    }
}
