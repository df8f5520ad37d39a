//! Around every call: an id, a log line, a count, a deadline, and an end for streams whose caller is not welcome any more.
//!
//! Knows methods by name and kind, from the same description that reflection serves; never looks into a message.
//!
//! # Invariants
//!
//! - Of a caller who did not prove who they are, no message is read, except by methods that ask for no token; those read
//!   little. So strangers take no memory.

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
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::codes::code_name;
use crate::auth::{Call, Gate, Peer};
use crate::domain::Role;

/// Longest time for a call of one message and one answer.
const UNARY_MAX: Duration = Duration::from_secs(60);
/// Longest time for a call that sends a document and waits for its answer.
const UPLOAD_MAX: Duration = Duration::from_secs(600);
/// Bytes that a method without a token reads of its caller in all: a join token and two names, or questions about what
/// there is.
const OPEN_BYTES_MAX: usize = 64 * 1024;
/// Joins the fleet: its secret is in the message.
const ENROLL: &str = "/sluice.fleet.v1.Fleet/Enroll";
/// Streams without an end of their own.
const ENDLESS: [&str; 3] = [
    "/sluice.control.v1.Nodes/Watch",
    "/sluice.fleet.v1.Fleet/Connect",
    "/grpc.health.v1.Health/Watch",
];
/// Longest request id taken over.
const REQUEST_ID_BYTES_MAX: usize = 128;
const REQUEST_ID: &str = "x-request-id";
const CALLS: &str = "sluice_control_calls_total";
/// Label of methods that there are not.
const OTHER: &str = "other";

/// The methods served, by path.
pub struct Methods {
    by_path: HashMap<String, Method>,
    services: Vec<String>,
    other: Method,
}

/// What a caller has to show before anything is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// An operator's token. Whether its role is enough is the handler's question.
    Caller,
    /// A node's secret.
    Node,
    /// Nothing: health, reflection, joining, and what there is not.
    Open,
}

#[derive(Clone)]
struct Method {
    /// Label and log field, such as `Policies/Release`.
    name: Arc<str>,
    entry: Entry,
    /// Until the end of the answer; `None`: a stream, of which only the beginning has a deadline.
    deadline: Option<Duration>,
    /// A stream that goes on until its caller leaves, which is how it ends well.
    is_endless: bool,
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
                        let entry = match package {
                            _ if is_quiet || path == ENROLL => Entry::Open,
                            "sluice.fleet.v1" => Entry::Node,
                            _ => Entry::Caller,
                        };
                        let method = Method {
                            name,
                            entry,
                            deadline,
                            is_endless: ENDLESS.contains(&&*path),
                            is_quiet,
                        };
                        by_path.insert(path, method);
                    }
                }
            }
        }
        let other = Method {
            name: OTHER.into(),
            entry: Entry::Open,
            deadline: Some(UNARY_MAX),
            is_endless: false,
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

    /// Shows every counter of calls before the first.
    pub fn count_from_zero(&self) {
        for method in self.by_path.values().chain([&self.other]) {
            for code in (0..=16).map(Code::from_i32) {
                let (method, code) = (Arc::clone(&method.name), code_name(code));
                metrics::counter!(CALLS, "method" => method, "code" => code).increment(0);
            }
        }
    }

    fn of(&self, path: &str) -> Method {
        self.by_path.get(path).unwrap_or(&self.other).clone()
    }
}

/// Puts [`Calls`] around the services.
#[derive(Clone)]
pub struct CallsLayer {
    methods: Arc<Methods>,
    gate: Gate,
    underway: Underway,
    stopping: watch::Receiver<bool>,
}

/// How many calls are under way: from their headers to the end of their answers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Underway {
    count: watch::Sender<usize>,
}

impl Underway {
    /// Waits until there has been none for so long.
    pub async fn none_for(&self, quiet: Duration) {
        let mut count = self.count.subscribe();
        loop {
            // The sender lives in `self`.
            let _ = count.wait_for(|count| *count == 0).await;
            let more = tokio::time::timeout(quiet, count.changed()).await;
            if more.is_err() && *count.borrow() == 0 {
                return;
            }
        }
    }

    fn enter(&self) -> OnTheWay {
        self.count.send_modify(|count| *count += 1);
        OnTheWay(self.clone())
    }
}

/// One of them.
struct OnTheWay(Underway);

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| *count -= 1);
    }
}

impl CallsLayer {
    /// The gate says who may come in. Streams end when `stopping` turns true.
    pub fn new(
        methods: Arc<Methods>,
        gate: Gate,
        underway: Underway,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            methods,
            gate,
            underway,
            stopping,
        }
    }

    /// Whether the caller may come in.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    fn ask<B>(&self, entry: Entry, request: &Request<B>) -> Result<(), Status> {
        if entry == Entry::Open {
            return Ok(());
        }
        let metadata = MetadataMap::from_headers(request.headers().clone());
        let extensions = request.extensions().clone();
        let asked = tonic::Request::from_parts(metadata, extensions, ());
        match entry {
            Entry::Caller => self.gate.caller(&asked, Role::Viewer).map(drop),
            Entry::Node => self.gate.node(&asked).map(drop),
            Entry::Open => Ok(()),
        }
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
        let deadline = method.deadline.unwrap_or(UNARY_MAX);
        let entry = method.entry;
        let record = Record {
            method,
            peer,
            began: Instant::now(),
            call,
            is_done: false,
            has_answered: false,
            _underway: self.layer.underway.enter(),
        };
        if let Err(status) = self.layer.ask(entry, &request) {
            return Box::pin(async move { Ok(finish(status.into_http(), record, ends)) });
        }
        let bytes_max = (entry == Entry::Open).then_some(OPEN_BYTES_MAX);
        let request = request.map(|body| Body::new(Incoming::new(body, bytes_max, ends.clone())));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = tokio::time::timeout(deadline, answer).await;
            let response = response.unwrap_or_else(|_| Ok(late(deadline)));
            Ok(finish(response?, record, ends))
        })
    }
}

fn late(deadline: Duration) -> Response<Body> {
    let secs = deadline.as_secs();
    Status::deadline_exceeded(format!("the control plane gave up after {secs} s")).into_http()
}

fn too_much() -> Status {
    Status::resource_exhausted(format!(
        "calls without a token may send at most {OPEN_BYTES_MAX} bytes"
    ))
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
    /// True exactly when a part of the answer was sent.
    has_answered: bool,
    _underway: OnTheWay,
}

impl Record {
    fn write(&mut self, code: Code) {
        if std::mem::replace(&mut self.is_done, true) {
            return;
        }
        let (method, code) = (Arc::clone(&self.method.name), code_name(code));
        let took = self.began.elapsed();
        metrics::counter!(CALLS, "method" => Arc::clone(&method), "code" => code).increment(1);
        metrics::histogram!("sluice_control_call_seconds", "method" => Arc::clone(&method))
            .record(took.as_secs_f64());
        let who = self.call.who().unwrap_or("");
        let peer = self
            .peer
            .as_ref()
            .map(|peer| tracing::field::display(peer.address));
        let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let request_id = &*self.call.request_id;
        // Strangers fill no disk: the gate writes of them, and not more than so much.
        if self.method.is_quiet || who.is_empty() {
            tracing::debug!(target: "sluice::call", %method, code, duration_us, peer, who, request_id, "call");
        } else {
            tracing::info!(target: "sluice::call", %method, code, duration_us, peer, who, request_id, "call");
        }
    }
}

impl Drop for Record {
    /// The caller went away.
    fn drop(&mut self) {
        let has_served = self.method.is_endless && self.has_answered;
        self.write(if has_served {
            Code::Ok
        } else {
            Code::Cancelled
        });
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
    /// Bytes that may still come; `None`: that is the handler's.
    left: Option<usize>,
    ends: Ends,
}

impl Incoming {
    fn new(body: Body, bytes_max: Option<usize>, ends: Ends) -> Self {
        Self {
            inner: Some(body),
            left: bytes_max,
            ends,
        }
    }

    /// Counts a frame; false: too much has come.
    fn takes(&mut self, frame: &Frame<Bytes>) -> bool {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match &mut self.left {
            None => true,
            Some(left) => left.checked_sub(bytes).map(|less| *left = less).is_some(),
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
            let fits = match &frame {
                Some(Ok(frame)) => self.takes(frame),
                Some(Err(_)) | None => true,
            };
            if !fits {
                self.inner = None;
                return Poll::Ready(Some(Err(too_much())));
            }
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
                self.record.has_answered |= frame.is_data();
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
        for (path, name, deadline, entry) in [
            (
                "/sluice.control.v1.Policies/Release",
                "Policies/Release",
                Some(UNARY_MAX),
                Entry::Caller,
            ),
            (
                "/sluice.control.v1.Policies/Apply",
                "Policies/Apply",
                Some(UPLOAD_MAX),
                Entry::Caller,
            ),
            (
                "/sluice.control.v1.Nodes/Watch",
                "Nodes/Watch",
                None,
                Entry::Caller,
            ),
            (
                "/sluice.fleet.v1.Fleet/Connect",
                "Fleet/Connect",
                None,
                Entry::Node,
            ),
            (ENROLL, "Fleet/Enroll", Some(UNARY_MAX), Entry::Open),
            (
                "/sluice.control.v1.Policies/Nothing",
                OTHER,
                Some(UNARY_MAX),
                Entry::Open,
            ),
            ("/", OTHER, Some(UNARY_MAX), Entry::Open),
        ] {
            assert_eq!(&*of(path).name, name);
            assert_eq!(of(path).deadline, deadline, "{path}");
            assert_eq!(of(path).entry, entry, "{path}");
        }
        let open = methods.by_path.values();
        let open = open.filter(|method| method.entry == Entry::Open);
        assert_eq!(open.count(), 1, "of our own, joining alone");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_under_way_are_waited_for_and_a_while_longer() {
        let underway = Underway::default();
        let quiet = Duration::from_secs(1);
        let begin = Instant::now();
        underway.none_for(quiet).await;
        assert_eq!(begin.elapsed(), quiet);
        let (first, second) = (underway.enter(), underway.enter());
        let waiting = tokio::spawn({
            let underway = underway.clone();
            async move { underway.none_for(quiet).await }
        });
        tokio::time::sleep(quiet * 9).await;
        drop(first);
        tokio::time::sleep(quiet * 9).await;
        assert!(!waiting.is_finished(), "one is left");
        drop(second);
        tokio::time::sleep(quiet / 2).await;
        drop(underway.enter());
        tokio::time::sleep(quiet * 3 / 4).await;
        assert!(!waiting.is_finished(), "another came");
        waiting.await.expect("none");
    }

    /// Calls around a handler that never answers.
    async fn never(folder: &std::path::Path) -> Calls<Never> {
        let store = crate::store::Sqlite::open(folder).await.expect("a store");
        let gate = Gate::open(Arc::new(store)).await.expect("a gate");
        let methods = [
            sluice_proto::DESCRIPTORS,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        ];
        let methods = Methods::new(&methods).expect("our own");
        let (_, stopping) = watch::channel(false);
        CallsLayer::new(Arc::new(methods), gate, Underway::default(), stopping).layer(Never)
    }

    #[derive(Clone)]
    struct Never;

    impl Service<Request<Body>> for Never {
        type Response = Response<Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Pending<Result<Response<Body>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::pending()
        }
    }

    #[tokio::test]
    async fn every_call_has_a_deadline_streams_for_their_beginning() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut calls = never(folder.path()).await;
        // From here on time passes as fast as nothing happens.
        tokio::time::pause();
        for path in [
            ENROLL,
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/no.such/Method",
        ] {
            let begin = Instant::now();
            let request = Request::builder().uri(path).body(Body::empty());
            let answer = calls.call(request.expect("a request")).await;
            let answer = answer.expect("an answer");
            assert_eq!(code(answer.headers()), Some(Code::DeadlineExceeded));
            assert!(answer.headers().contains_key(REQUEST_ID), "{path}");
            assert_eq!(begin.elapsed().as_secs(), UNARY_MAX.as_secs(), "{path}");
        }
    }

    #[tokio::test]
    async fn strangers_are_turned_away_before_their_message_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut calls = never(folder.path()).await;
        let paths: Vec<_> = calls.layer.methods.by_path.keys().cloned().collect();
        for path in paths.iter().filter(|path| !path.starts_with("/grpc.")) {
            let request = Request::builder().uri(path).body(Body::empty());
            let answer = calls.call(request.expect("a request"));
            let answer = tokio::time::timeout(Duration::from_millis(1), answer).await;
            if path == ENROLL {
                assert!(answer.is_err(), "its secret is in the message");
                continue;
            }
            let answer = answer.expect("at once").expect("an answer");
            assert_eq!(code(answer.headers()), Some(Code::Unauthenticated));
        }
    }

    #[tokio::test]
    async fn without_a_token_little_is_read() {
        use http_body::Body as _;
        let (_, stopping) = watch::channel(false);
        for (bytes_max, expected) in [(None, 3), (Some(20), 2), (Some(30), 3)] {
            let pieces = (0..3).map(|_| Ok::<_, Status>(Frame::data(Bytes::from_static(&[0; 10]))));
            let body = Body::new(Pieces(pieces.collect()));
            let ends = Ends::new(Call::new("x".into()), stopping.clone());
            let mut body = Incoming::new(body, bytes_max, ends);
            let mut taken = 0;
            let end = loop {
                match std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
                {
                    Some(Ok(_)) => taken += 1,
                    Some(Err(status)) => break Some(status.code()),
                    None => break None,
                }
            };
            assert_eq!(taken, expected);
            let refused = (taken < 3).then_some(Code::ResourceExhausted);
            assert_eq!(end, refused, "{bytes_max:?}");
        }
    }

    /// A body in pieces.
    struct Pieces(std::collections::VecDeque<Result<Frame<Bytes>, Status>>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front())
        }
    }
}
