//! Around every call: an id, a log line, a count, a deadline, and an end for streams whose caller is not welcome any more.
//!
//! Knows methods by name and kind, from the same description that reflection serves; never looks into a message.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use http_body::{Frame, SizeHint};
use prost_types::FileDescriptorSet;
use sluice_proto::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::auth::{Call, Peer};

/// Longest time for a call of one message and one answer.
const UNARY_MAX: Duration = Duration::from_secs(60);
/// Longest time for a call that sends a document and waits for its answer.
const UPLOAD_MAX: Duration = Duration::from_secs(600);
/// Longest request id taken over.
const REQUEST_ID_BYTES_MAX: usize = 128;
const REQUEST_ID: &str = "x-request-id";
/// Label of methods that there are not.
const OTHER: &str = "other";

/// The methods served, by path.
pub struct Methods {
    by_path: HashMap<String, Method>,
    services: Vec<String>,
    other: Method,
}

#[derive(Clone)]
struct Method {
    /// Label and log field, such as `Policies/Release`.
    name: Arc<str>,
    deadline: Option<Duration>,
    /// Probes and tools that ask what there is: nothing for the log of every day.
    is_quiet: bool,
}

impl Methods {
    /// From serialized `FileDescriptorSet`s.
    pub fn new(descriptors: &[&[u8]]) -> Result<Self, sluice_proto::DecodeError> {
        let mut by_path = HashMap::default();
        // The empty name is the server as a whole.
        let mut services = vec![String::new()];
        for bytes in descriptors {
            for file in FileDescriptorSet::decode(*bytes)?.file {
                let (package, is_quiet) = (file.package(), file.package().starts_with("grpc."));
                for service in &file.service {
                    if !is_quiet {
                        services.push(format!("{package}.{}", service.name()));
                    }
                    for method in &service.method {
                        let path = format!("/{package}.{}/{}", service.name(), method.name());
                        let deadline = match (method.client_streaming(), method.server_streaming())
                        {
                            (_, true) => None,
                            (true, false) => Some(UPLOAD_MAX),
                            (false, false) => Some(UNARY_MAX),
                        };
                        let name = format!("{}/{}", service.name(), method.name()).into();
                        let method = Method {
                            name,
                            deadline,
                            is_quiet,
                        };
                        by_path.insert(path, method);
                    }
                }
            }
        }
        let other = Method {
            name: OTHER.into(),
            deadline: Some(UNARY_MAX),
            is_quiet: false,
        };
        Ok(Self {
            by_path,
            services,
            other,
        })
    }

    /// Names of the services that do the control plane's work, for health checks.
    pub fn services(&self) -> Vec<String> {
        self.services.clone()
    }

    fn of(&self, path: &str) -> Method {
        self.by_path.get(path).unwrap_or(&self.other).clone()
    }
}

/// Puts [`Calls`] around the services.
#[derive(Clone)]
pub struct CallsLayer {
    methods: Arc<Methods>,
    stopping: watch::Receiver<bool>,
}

impl CallsLayer {
    /// Streams end when `stopping` turns true.
    pub fn new(methods: Arc<Methods>, stopping: watch::Receiver<bool>) -> Self {
        Self { methods, stopping }
    }
}

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        let layer = self.clone();
        Calls { inner, layer }
    }
}

/// See the module documentation.
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    layer: CallsLayer,
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = self.layer.methods.of(request.uri().path());
        let call = Call::new(request_id(request.headers()));
        let peer = request.extensions().get::<Peer>().cloned();
        let extensions = request.extensions_mut();
        extensions.insert(call.clone());
        extensions.insert(TcpConnectInfo {
            local_addr: None,
            remote_addr: peer.as_ref().map(|peer| peer.address),
        });
        let ends = Ends::new(call.clone(), self.layer.stopping.clone());
        let request = request.map(|body| Body::new(Incoming::new(body, ends.clone())));
        let deadline = method.deadline;
        let record = Record {
            method,
            peer,
            began: Instant::now(),
            call,
            is_done: false,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = match deadline {
                Some(deadline) => tokio::time::timeout(deadline, answer)
                    .await
                    .unwrap_or_else(|_| Ok(late(deadline))),
                None => answer.await,
            };
            Ok(finish(response?, record, ends))
        })
    }
}

fn late(deadline: Duration) -> Response<Body> {
    let secs = deadline.as_secs();
    Status::deadline_exceeded(format!("the control plane gave up after {secs} s")).into_http()
}

/// Marks the answer with the id, and either writes the call's line or leaves that to the body's end.
fn finish(mut response: Response<Body>, mut record: Record, ends: Ends) -> Response<Body> {
    if let Ok(id) = HeaderValue::from_str(&record.call.request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if let Some(code) = code(response.headers()) {
        record.write(code);
        return response;
    }
    response.map(|body| {
        Body::new(Outgoing {
            inner: Some(body),
            ends,
            record,
        })
    })
}

fn code(headers: &HeaderMap) -> Option<Code> {
    let status = headers.get("grpc-status")?;
    Some(Code::from_bytes(status.as_bytes()))
}

/// The caller's id for the call when it is short and plain, else one of our own.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    if let Some(id) = given.filter(|id| is_plain(id)) {
        return id.into();
    }
    let mut bytes = [0; 8];
    // Without randomness ids are not distinct; calls are served all the same.
    let _ = getrandom::fill(&mut bytes);
    format!("{:016x}", u64::from_ne_bytes(bytes)).into()
}

fn is_plain(id: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_good)
}

/// The line and the count of one call; written at its end, also when it is dropped before.
struct Record {
    method: Method,
    peer: Option<Peer>,
    began: Instant,
    call: Call,
    is_done: bool,
}

impl Record {
    fn write(&mut self, code: Code) {
        if std::mem::replace(&mut self.is_done, true) {
            return;
        }
        let (method, code) = (Arc::clone(&self.method.name), code_name(code));
        let took = self.began.elapsed();
        metrics::counter!("sluice_control_calls_total", "method" => Arc::clone(&method), "code" => code)
            .increment(1);
        metrics::histogram!("sluice_control_call_seconds", "method" => Arc::clone(&method))
            .record(took.as_secs_f64());
        let who = self.call.who().unwrap_or("");
        let peer = self
            .peer
            .as_ref()
            .map(|peer| tracing::field::display(peer.address));
        let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let request_id = &*self.call.request_id;
        if self.method.is_quiet {
            tracing::debug!(target: "sluice::call", %method, code, duration_us, peer, who, request_id, "call");
        } else {
            tracing::info!(target: "sluice::call", %method, code, duration_us, peer, who, request_id, "call");
        }
    }
}

impl Drop for Record {
    /// The caller went away.
    fn drop(&mut self) {
        self.write(Code::Cancelled);
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// When a stream has to end before its handler says so.
struct Ends {
    call: Call,
    stopping: watch::Receiver<bool>,
    /// Made when it is first asked after the caller is known.
    waiting: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
    is_known: bool,
}

impl Clone for Ends {
    fn clone(&self) -> Self {
        Self::new(self.call.clone(), self.stopping.clone())
    }
}

impl Ends {
    fn new(call: Call, stopping: watch::Receiver<bool>) -> Self {
        Self {
            call,
            stopping,
            waiting: None,
            is_known: false,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if !self.is_known {
            let stay = self.call.stay();
            if self.waiting.is_none() || stay.is_some() {
                self.is_known = stay.is_some();
                let mut stopping = self.stopping.clone();
                self.waiting = Some(Box::pin(async move {
                    let ended = async {
                        match stay {
                            Some(stay) => stay.ended().await,
                            None => std::future::pending().await,
                        }
                    };
                    // The sender lives as long as the process serves; its end is a stop as well.
                    let stopped =
                        async { stopping.wait_for(|is_stopping| *is_stopping).await.is_ok() };
                    tokio::select! {
                        () = ended => Status::unauthenticated("the token was revoked or has expired, or the node was removed"),
                        _ = stopped => Status::unavailable("the control plane is stopping"),
                    }
                }));
            }
        }
        match &mut self.waiting {
            Some(waiting) => waiting.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

/// The body of a request.
struct Incoming {
    inner: Option<Body>,
    ends: Ends,
}

impl Incoming {
    fn new(body: Body, ends: Ends) -> Self {
        Self {
            inner: Some(body),
            ends,
        }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        // Only who waits for more is cut here: what has arrived whole is answered.
        match self.ends.poll(context) {
            Poll::Ready(status) => {
                self.inner = None;
                Poll::Ready(Some(Err(status)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// The body of an answer.
struct Outgoing {
    inner: Option<Body>,
    ends: Ends,
    record: Record,
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.inner.is_none() {
            return Poll::Ready(None);
        }
        // Asked first: a handler that always has more to say is cut as well. An answer of one message is never cut.
        if self.record.method.deadline.is_none()
            && let Poll::Ready(status) = self.ends.poll(context)
        {
            self.inner = None;
            self.record.write(status.code());
            let mut trailers = HeaderMap::new();
            return match status.add_header(&mut trailers) {
                Ok(()) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Err(error) => Poll::Ready(Some(Err(error))),
            };
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(inner).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code) {
                    self.record.write(code);
                }
            }
            Poll::Ready(Some(Err(status))) => self.record.write(status.code()),
            Poll::Ready(None) => self.record.write(Code::Unknown),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_taken_over_only_when_plain() {
        let long = "x".repeat(129);
        for (given, is_taken) in [
            ("a", true),
            ("Trace-1_2.3", true),
            (&long[1..], true),
            (&*long, false),
            ("", false),
            ("a b", false),
            ("a\"b", false),
            ("a=1", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, given.parse().expect("a header"));
            let found = request_id(&headers);
            assert_eq!(&*found == given, is_taken, "{given:?}");
            assert!(is_plain(&found));
        }
        let none = HeaderMap::new();
        assert_ne!(request_id(&none), request_id(&none));
    }

    #[test]
    fn every_method_has_a_label_and_others_share_one() {
        let methods = Methods::new(&[sluice_proto::DESCRIPTORS]).expect("our own");
        let of = |path| methods.of(path);
        for (path, name, deadline) in [
            (
                "/sluice.control.v1.Policies/Release",
                "Policies/Release",
                Some(UNARY_MAX),
            ),
            (
                "/sluice.control.v1.Policies/Apply",
                "Policies/Apply",
                Some(UPLOAD_MAX),
            ),
            ("/sluice.control.v1.Nodes/Watch", "Nodes/Watch", None),
            ("/sluice.fleet.v1.Fleet/Connect", "Fleet/Connect", None),
            (
                "/sluice.control.v1.Policies/Nothing",
                OTHER,
                Some(UNARY_MAX),
            ),
            ("/", OTHER, Some(UNARY_MAX)),
        ] {
            assert_eq!(&*of(path).name, name);
            assert_eq!(of(path).deadline, deadline, "{path}");
        }
    }
}
