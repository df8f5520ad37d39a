//! A control plane that plays a script: it takes whoever joins, and says what the test says.
//!
//! Runs on a thread of its own; the test blocks on channels with one generous bound.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use sluice_policy::convert::to_messages;
use sluice_policy::fleet::{Change, Delivery, Inventory};
use sluice_proto::v1::fleet_server::{Fleet, FleetServer};
use sluice_proto::v1::{self, EnrollRequest, EnrollResponse, FromNode, ToNode, from_node, to_node};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::harness::PATIENCE;

/// A control plane that runs until it is dropped.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    pub(crate) url: String,
    streams: Receiver<Stream>,
    enrolled: Arc<Mutex<Vec<EnrollRequest>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A stream that a node has opened.
pub(crate) struct Stream {
    /// What it proves itself with.
    pub(crate) bearer: String,
    heard: Receiver<from_node::Message>,
    say: mpsc::Sender<Result<ToNode, Status>>,
}

struct Script {
    streams: Sender<Stream>,
    enrolled: Arc<Mutex<Vec<EnrollRequest>>>,
}

#[tonic::async_trait]
impl Fleet for Script {
    type ConnectStream = ReceiverStream<Result<ToNode, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let bearer = request.metadata().get("authorization");
        let bearer = bearer.and_then(|value| value.to_str().ok()).unwrap_or("");
        let (heard_in, heard) = channel();
        let (say, said) = mpsc::channel(64);
        let stream = Stream {
            bearer: bearer.to_owned(),
            heard,
            say,
        };
        let _ = self.streams.send(stream);
        let mut from_node = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = from_node.message().await {
                if let Some(message) = message.message
                    && heard_in.send(message).is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let mut enrolled = self.enrolled.lock().expect("nobody panics with it");
        enrolled.push(request.into_inner());
        Ok(Response::new(EnrollResponse { store: vec![1; 16] }))
    }
}

impl ControlPlane {
    /// On this address, or on a free port.
    pub(crate) fn start(address: Option<SocketAddr>) -> Self {
        Self::start_with(address, Server::builder(), true)
    }

    /// With TLS, found by the name `localhost`.
    pub(crate) fn start_tls(tls: ServerTlsConfig) -> Self {
        let server = Server::builder().tls_config(tls).expect("certificates");
        let mut started = Self::start_with(None, server, true);
        started.url = format!("https://localhost:{}", started.address.port());
        started
    }

    /// A gRPC server that is none.
    pub(crate) fn start_without_fleet() -> Self {
        Self::start_with(None, Server::builder(), false)
    }

    fn start_with(address: Option<SocketAddr>, mut server: Server, has_fleet: bool) -> Self {
        let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let (streams_in, streams) = channel();
        let enrolled = Arc::new(Mutex::new(Vec::new()));
        let script = Script {
            streams: streams_in,
            enrolled: Arc::clone(&enrolled),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound_in, bound) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind(address)
                    .await
                    .expect("a port");
                bound_in
                    .send(listener.local_addr().expect("bound"))
                    .expect("the test waits");
                let serve = server
                    .add_optional_service(has_fleet.then(|| FleetServer::new(script)))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serve => served.expect("it serves"),
                    _ = stopped => {}
                }
            });
        });
        let address = bound.recv().expect("it starts");
        Self {
            address,
            url: format!("http://{address}"),
            streams,
            enrolled,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The next stream that a node opens.
    #[track_caller]
    pub(crate) fn stream(&self) -> Stream {
        self.streams.recv_timeout(PATIENCE).expect("a stream")
    }

    pub(crate) fn enrolled(&self) -> Vec<EnrollRequest> {
        self.enrolled.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Stream {
    /// The next message that is looked for; others are passed over.
    #[track_caller]
    pub(crate) fn next<T>(&mut self, mut find: impl FnMut(from_node::Message) -> Option<T>) -> T {
        loop {
            let message = self.heard.recv_timeout(PATIENCE).expect("a message");
            if let Some(found) = find(message) {
                return found;
            }
        }
    }

    /// The first message.
    #[track_caller]
    pub(crate) fn hello(&mut self) -> v1::Hello {
        match self.heard.recv_timeout(PATIENCE).expect("a message") {
            from_node::Message::Hello(hello) => hello,
            other => panic!("the first message is {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn heartbeat(&mut self) -> v1::Heartbeat {
        self.next(|message| match message {
            from_node::Message::Heartbeat(heartbeat) => Some(heartbeat),
            _ => None,
        })
    }

    pub(crate) fn say(&self, message: to_node::Message) {
        let message = ToNode {
            message: Some(message),
        };
        self.say.blocking_send(Ok(message)).expect("the node reads");
    }

    pub(crate) fn deliver(
        &self,
        id: &v1::GenerationId,
        base: Option<&v1::GenerationId>,
        changes: Vec<Change>,
    ) {
        let delivery = Delivery {
            generation: id.clone(),
            base: base.cloned(),
            changes,
        };
        for chunk in delivery.into_chunks() {
            self.say(to_node::Message::Generation(chunk));
        }
    }

    /// Waits until a heartbeat says that every shard has it; the shards that acknowledged it until then, in order.
    #[track_caller]
    pub(crate) fn active(&mut self, id: &v1::GenerationId) -> Vec<u32> {
        let mut acknowledged = Vec::new();
        self.next(|message| match message {
            from_node::Message::Ack(ack) if ack.generation.as_ref() == Some(id) => {
                acknowledged.push(ack.shard);
                None
            }
            from_node::Message::Heartbeat(heartbeat) => heartbeat
                .shards
                .iter()
                .all(|shard| shard.active.as_ref() == Some(id))
                .then_some(()),
            from_node::Message::Reject(reject) => panic!("{reject:?}"),
            _ => None,
        });
        acknowledged.sort_unstable();
        acknowledged
    }
}

/// The rows of a document, checked or not.
pub(crate) fn rows(document: &str) -> Inventory {
    let rows = sluice_policy::parse(document, "test").expect("a document that can be read");
    Inventory::from_messages(&to_messages(&rows)).expect("rows")
}

pub(crate) fn generation(number: u64, rows: &Inventory) -> v1::GenerationId {
    v1::GenerationId {
        store: vec![1; 16],
        number,
        digest: rows.digest().to_vec(),
    }
}
