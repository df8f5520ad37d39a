//! The admin server: health, metrics and what an operator may look at, on an address of its own.
//!
//! Read-only except for the log level and the decision log. It has no password, so it listens on loopback unless told otherwise, and says so
//! loudly when it does not. It asks the control thread and renders the answer; it never touches a shard.

use std::net::{SocketAddr, TcpListener};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::control::{BadCursor, ControlHandle, NoAnswer, SessionCursor};
use crate::logging::LogControl;
use crate::node::SessionFilter;

use socket::{Bounded, Limits};

mod decisions;
mod denials;
/// Names, values and help of what is exported.
pub mod exposition;
mod rules;
mod socket;

/// Longest body taken (a log filter).
const BODY_BYTES_MAX: usize = 4096;
/// Sessions in one answer of `/sessions`, at most and by default.
const SESSIONS_PAGE_MAX: u32 = 1000;
const SESSIONS_PAGE: u32 = 100;

/// What the handlers know.
#[derive(Clone)]
struct Admin {
    control: ControlHandle,
    log: LogControl,
    shows_denials: bool,
    /// Rules in `/metrics`.
    rule_metrics: usize,
}

/// Opens the admin server's socket and says where it is.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    let bound = socket.local_addr()?;
    if !bound.ip().is_loopback() {
        tracing::warn!(
            address = %bound,
            "THE ADMIN SERVER IS REACHABLE FROM OTHER MACHINES and has no password: anyone who reaches it can read client ids and change the log level"
        );
    }
    tracing::info!(address = %bound, requested = %address, "admin server is listening");
    Ok(socket)
}

/// Serves until the runtime ends.
pub async fn serve(
    socket: TcpListener,
    control: ControlHandle,
    log: LogControl,
    shows_denials: bool,
    rule_metrics: usize,
) -> std::io::Result<()> {
    let is_loopback = socket.local_addr()?.ip().is_loopback();
    let socket = tokio::net::TcpListener::from_std(socket)?;
    let bounded = Bounded::new(socket, Limits::default());
    let admin = Admin {
        control,
        log,
        shows_denials,
        rule_metrics,
    };
    let router = router(admin).layer(from_fn(move |request, next| {
        no_web_pages(is_loopback, request, next)
    }));
    axum::serve(bounded, router).await
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/policy", get(policy))
        .route("/fleet", get(fleet))
        .route("/listeners", get(listeners))
        .route("/upstreams", get(upstreams))
        .route("/shards", get(shards))
        .route("/sessions", get(sessions))
        .route("/denials", get(denials::denials))
        .route("/rules", get(rules::list))
        .route(
            "/decisions",
            get(decisions::show)
                .put(decisions::switch_on)
                .delete(decisions::switch_off),
        )
        .route("/kept-out", get(kept_out))
        .route("/log", get(log_level).put(set_log_level))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(admin)
}

/// A web page in a browser of this machine is no operator. Browsers tell the page's origin with every change; a page
/// whose name was made to point at loopback (DNS rebinding) gives itself away by that name.
async fn no_web_pages(is_loopback: bool, request: Request, next: Next) -> Response {
    if is_from_web_page(is_loopback, request.headers()) {
        let text = "web pages may not use the admin server\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
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

/// A page for programs: JSON, and a line end, so that a terminal shows the prompt where it belongs.
struct Page<T>(T);

impl<T: Serialize> IntoResponse for Page<T> {
    fn into_response(self) -> Response {
        match serde_json::to_string(&self.0) {
            Ok(text) => {
                let content_type = [(header::CONTENT_TYPE, "application/json")];
                (content_type, text + "\n").into_response()
            }
            Err(error) => {
                let text = format!("{error}\n");
                (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
            }
        }
    }
}

async fn index() -> &'static str {
    "sluice-dataplane\n\
     GET /livez      the process answers\n\
     GET /readyz     send it devices? (?verbose: why not, and what does not work, as JSON)\n\
     GET /metrics    for Prometheus\n\
     GET /policy     desired, compiled, delivered and active generation; the last refusal\n\
     GET /fleet      the link to the control plane; null without one\n\
     GET /listeners  what is listened on, with the real ports\n\
     GET /upstreams  endpoints, their health and breakers\n\
     GET /shards     what each shard holds\n\
     GET /sessions   open sessions (?limit=N&after=CURSOR&client_id=ID&username=NAME)\n\
     GET /denials    recent refusals, with --admin-denials (?limit=N&after=CURSOR&client_id=ID&username=NAME&address=IP&reason=R)\n\
     GET /rules      how often each rule decided (?unused&shadow&limit=N&after=CURSOR)\n\
     GET /decisions  the decision log; PUT {\"for\": \"10m\", \"denials\": true} switches it on, DELETE off\n\
     GET /kept-out   clients that an operator keeps out, and for how long yet\n\
     GET /log        the log filter; PUT a new one, for example: debug\n"
}

/// The process answers. Whether it should get traffic is `/readyz`.
async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(admin): State<Admin>, Query(query): Query<Readyz>) -> Response {
    let (reasons, degraded, decision_log) = match admin.control.observe(false).await {
        Ok(observed) => (observed.not_ready, observed.degraded, observed.decision_log),
        Err(error) => (vec![error.to_string()], Vec::new(), None),
    };
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    if query.verbose.is_some() {
        let ready = reasons.is_empty();
        let said = json!({
            "ready": ready,
            "reasons": reasons,
            "degraded": degraded,
            "decision_log": decision_log,
        });
        return (status, Page(said)).into_response();
    }
    let text = match (reasons.is_empty(), degraded.is_empty()) {
        (true, true) => "ready\n",
        (true, false) => "ready, but degraded\n",
        (false, _) => "not ready\n",
    };
    (status, text).into_response()
}

#[derive(Deserialize)]
struct Readyz {
    verbose: Option<String>,
}

async fn metrics(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(true).await?;
    let content_type = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    let rules = rules::counted(&admin).await?;
    let text = exposition::render(&observed, &rules);
    Ok((content_type, text).into_response())
}

async fn policy(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(false).await?;
    Ok(Page(observed.policy).into_response())
}

async fn fleet(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(false).await?;
    Ok(Page(json!({ "fleet": observed.fleet })).into_response())
}

async fn listeners(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(false).await?;
    Ok(Page(json!({ "listeners": observed.listeners })).into_response())
}

async fn upstreams(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(false).await?;
    Ok(Page(json!({ "endpoints": observed.endpoints })).into_response())
}

async fn shards(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(true).await?;
    Ok(Page(json!({ "shards": observed.shards })).into_response())
}

async fn kept_out(State(admin): State<Admin>) -> Result<Response, NoAnswer> {
    let observed = admin.control.observe(false).await?;
    Ok(Page(json!({ "kept_out": observed.kept_out })).into_response())
}

#[derive(Deserialize)]
struct SessionsQuery {
    limit: Option<u32>,
    after: Option<String>,
    client_id: Option<Box<str>>,
    username: Option<Box<str>>,
}

async fn sessions(
    State(admin): State<Admin>,
    Query(query): Query<SessionsQuery>,
) -> Result<Response, NoAnswer> {
    let at = match query.after.as_deref().map(str::parse) {
        None => SessionCursor::default(),
        Some(Ok(cursor)) => cursor,
        Some(Err(error)) => {
            let error: BadCursor = error;
            let error = error.to_string();
            return Ok((StatusCode::BAD_REQUEST, Page(json!({ "error": error }))).into_response());
        }
    };
    let limit = query
        .limit
        .unwrap_or(SESSIONS_PAGE)
        .clamp(1, SESSIONS_PAGE_MAX);
    let filter = SessionFilter {
        client_id: query.client_id,
        username: query.username,
    };
    let page = admin.control.sessions(at, limit, filter).await?;
    let sessions: Vec<_> = page
        .sessions
        .iter()
        .map(|(shard, info, listener)| {
            json!({
                "shard": shard,
                "client_id": info.client_id,
                "username": info.username,
                "peer": info.peer,
                "listener": listener,
                "open_secs": info.open_for.as_secs(),
            })
        })
        .collect();
    let next = page.next.map(|next| next.to_string());
    Ok(Page(json!({ "sessions": sessions, "next": next })).into_response())
}

async fn log_level(State(admin): State<Admin>) -> String {
    format!("{}\n", admin.log.current())
}

async fn set_log_level(State(admin): State<Admin>, body: String) -> Response {
    let filter = body.trim();
    match admin.log.set(filter) {
        Ok(()) => {
            tracing::info!(filter, "log filter changed");
            format!("{}\n", admin.log.current()).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

impl IntoResponse for NoAnswer {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{self}\n")).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn web_pages_are_told_from_operators() {
        for (host, origin, is_loopback, expected) in [
            (Some("127.0.0.1:9090"), None, true, false),
            (Some("[::1]:9090"), None, true, false),
            (Some("[::1]"), None, true, false),
            (Some("localhost"), None, true, false),
            (Some("LOCALHOST:9090"), None, true, false),
            (None, None, true, false),
            (Some("evil.example:9090"), None, true, true),
            (Some("localhost.evil.example"), None, true, true),
            (Some("127.0.0.1"), Some("http://evil.example"), true, true),
            (Some("sluice-0.sluice:9090"), None, false, false),
            (Some("sluice-0.sluice:9090"), Some("null"), false, true),
        ] {
            let mut headers = HeaderMap::new();
            let texts = [(header::HOST, host), (header::ORIGIN, origin)];
            for (name, text) in texts {
                if let Some(text) = text {
                    headers.insert(name, HeaderValue::from_static(text));
                }
            }
            let found = is_from_web_page(is_loopback, &headers);
            assert_eq!(found, expected, "{host:?} {origin:?} {is_loopback}");
        }
    }
}
