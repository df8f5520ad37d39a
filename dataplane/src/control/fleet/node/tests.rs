//! The shell against a control plane that does not read, on a paused clock.

use std::sync::Mutex;

use hyper_util::rt::TokioIo;
use sluice_policy::ListenerId;
use sluice_proto::v1::fleet_server::{Fleet, FleetServer};
use sluice_proto::v1::{EnrollRequest, EnrollResponse, ToNode, to_node};
use tokio::io::{DuplexStream, duplex};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::{Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};
use zeroize::Zeroizing;

use super::*;
use crate::control::apply::PolicyStatus;
use crate::control::auth::PoolGauges;
use crate::control::compile::Refusal;
use crate::control::fleet::advice::Way;
use crate::control::fleet::disk::Identity;
use crate::control::observe::{Crowd, Observed};
use crate::control::{Command, SessionPage};
use crate::node::{KickWho, SessionInfo, SessionRef};

/// Bytes of questions on their way before HTTP/2 holds their sender back.
const QUESTION_WINDOW_BYTES: u32 = 65_535;
/// The same for answers.
const ANSWER_WINDOW_BYTES: u32 = 1 << 20;
/// Long, because HTTP/2 ends a connection on which many small frames wait unread.
const QUESTION_BYTES: usize = 800;
const ANSWER_BYTES: usize = 600;

/// Asks without end and reads nothing.
#[derive(Clone, Default)]
struct Deaf(Arc<Mutex<Vec<usize>>>);

#[tonic::async_trait]
impl Fleet for Deaf {
    type ConnectStream = ReceiverStream<Result<ToNode, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (say, said) = mpsc::channel(1);
        let asked = Arc::clone(&self.0);
        let stream = {
            let mut asked = asked.lock().expect("nobody panics with it");
            asked.push(0);
            asked.len() - 1
        };
        tokio::spawn(async move {
            let question = ToNode {
                message: Some(to_node::Message::ListSessions(v1::ListSessions {
                    request: 1,
                    limit: 1,
                    client_id: Some("x".repeat(QUESTION_BYTES)),
                    ..v1::ListSessions::default()
                })),
            };
            while say.send(Ok(question.clone())).await.is_ok() {
                asked.lock().expect("nobody panics with it")[stream] += 1;
            }
            drop(request); // kept until then, and never read
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }

    async fn enroll(&self, _: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        Ok(Response::new(EnrollResponse { store: vec![1; 16] }))
    }
}

#[derive(Clone)]
struct Pipe(Deaf);

impl Service<Uri> for Pipe {
    type Response = TokioIo<DuplexStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (ours, theirs) = duplex(1 << 16);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
        let serve = Server::builder()
            .initial_stream_window_size(ANSWER_WINDOW_BYTES)
            .initial_connection_window_size(ANSWER_WINDOW_BYTES)
            .add_service(FleetServer::new(self.0.clone()))
            .serve_with_incoming(incoming.chain(tokio_stream::pending()));
        tokio::spawn(serve);
        Box::pin(async move { Ok(TokioIo::new(ours)) })
    }
}

fn observed() -> Observed {
    Observed {
        policy: PolicyStatus::default(),
        listeners: Vec::new(),
        shards: Vec::new(),
        endpoints: Vec::new(),
        connections: Crowd::default(),
        connections_by_listener: Vec::new(),
        strangers_per_address_max: 0,
        auth: PoolGauges::default(),
        latency: None,
        counters: Vec::new(),
        decision_log: None,
        is_draining: false,
        kept_out: Vec::new(),
        fleet: None,
        not_ready: Vec::new(),
        degraded: Vec::new(),
    }
}

/// A page with a session that makes it long.
fn page() -> SessionPage {
    let session = SessionInfo {
        session: SessionRef { slot: 0, epoch: 0 },
        listener: ListenerId(0),
        client_id: None,
        username: None,
        peer: std::net::Ipv4Addr::LOCALHOST.into(),
        open_for: Duration::ZERO,
    };
    SessionPage {
        sessions: vec![(0, session, "x".repeat(ANSWER_BYTES).into())],
        next: None,
    }
}

/// A control thread that only says how it is.
fn control() -> (ControlHandle, PolicySource) {
    let (commands, mut asked) = mpsc::channel(4);
    let (acknowledged_in, acknowledged) = watch::channel(vec![None]);
    let (offers, offered) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            match command {
                Command::Observe { reply, .. } => drop(reply.send(observed())),
                Command::Sessions { reply, .. } => drop(reply.send(page())),
                Command::Denials { .. }
                | Command::Rules { .. }
                | Command::LogDecisions { .. }
                | Command::Kick { .. }
                | Command::Drain { .. }
                | Command::ServeAgain { .. } => {}
            }
        }
        drop((acknowledged_in, offered));
    });
    let handle = ControlHandle {
        commands,
        acknowledged,
    };
    (handle, PolicySource { offers })
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_does_not_read_is_held_back_and_then_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = Arc::new(StateDir::open(&folder.path().join("state")).expect("a directory"));
    let shared = Shared::new("edge", "http://control.example");
    let deaf = Deaf::default();
    let pipe = Pipe(deaf.clone());
    let link = Link {
        dial: Box::new(move || {
            let pipe = pipe.clone();
            let endpoint = Endpoint::from_static("http://control.example")
                .initial_stream_window_size(QUESTION_WINDOW_BYTES)
                .initial_connection_window_size(QUESTION_WINDOW_BYTES);
            Box::pin(async move { endpoint.connect_with_connector(pipe).await })
        }),
        way: Way::Plain,
        identity: Identity {
            node: "edge".into(),
            secret: Zeroizing::new([1; 32]),
            is_member: true,
        },
        join_token_file: None,
        state: Arc::clone(&state),
        shared: shared.clone(),
    };
    let (control, source) = control();
    let agent = Agent::new("edge".into(), 1);
    let node = Node::new(agent, source, control, state, shared.clone());
    let began = Instant::now();
    let running = tokio::spawn(node.run(link));
    let asked = || deaf.0.lock().expect("nobody panics with it").clone();
    let left = timeout(Duration::from_secs(60), async {
        while shared.view().disconnects == 0 {
            sleep(Duration::from_millis(100)).await;
        }
    });
    left.await.expect("it leaves");
    let why = shared.view().last_end.expect("it left");
    let took = began.elapsed();
    assert!(
        why.contains("does not read"),
        "{why} {took:?} {:?}",
        asked()
    );
    assert!(took > BEAT, "not at the first beat that waits: {took:?}");
    // Two windows, the outbox, and the little that the channels between hold; a node that is busy answers in few words.
    let answers_max = OUTBOX_MAX + ANSWER_WINDOW_BYTES as usize / BUSY.len();
    let bound = QUESTION_WINDOW_BYTES as usize * 3 / QUESTION_BYTES + answers_max;
    assert!(
        asked()[0] > OUTBOX_MAX,
        "the outbox was full: {:?}",
        asked()
    );
    assert!(asked()[0] < bound, "{:?}, {bound}", asked());
    let again = timeout(Duration::from_secs(60), async {
        while asked().len() < 2 {
            sleep(Duration::from_millis(100)).await;
        }
    });
    again.await.expect("it comes back");
    running.abort();
}

#[tokio::test]
async fn more_commands_than_are_worked_on_at_once_are_told_to_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = Arc::new(StateDir::open(&folder.path().join("state")).expect("a directory"));
    let (control, source) = control();
    let agent = Agent::new("edge".into(), 1);
    let mut node = Node::new(agent, source, control, state, Shared::default());
    let kick = |request| Output::Kick {
        request,
        who: KickWho::ClientId("c".into()),
        keep_out: None,
    };
    let all = COMMANDS_MAX as u64 + 3;
    for request in 0..all {
        node.carry_out(kick(request)).await.expect("it runs");
    }
    assert_eq!(node.commands.len(), COMMANDS_MAX);
    let busy: Vec<u64> = node
        .outbox
        .drain(..)
        .map(|message| {
            let from_node::Message::Done(done) = message else {
                panic!("{message:?}");
            };
            assert_eq!(done.error, BUSY);
            done.request
        })
        .collect();
    assert_eq!(busy, (COMMANDS_MAX as u64..all).collect::<Vec<_>>());
    // One that is answered makes room for one.
    node.commands
        .join_next()
        .await
        .expect("there are some")
        .expect("it ends");
    node.carry_out(kick(all)).await.expect("it runs");
    assert_eq!(node.commands.len(), COMMANDS_MAX);
    assert!(node.outbox.is_empty());
}

#[tokio::test]
async fn what_the_machine_could_not_take_is_tried_again_and_what_is_wrong_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = Arc::new(StateDir::open(&folder.path().join("state")).expect("a directory"));
    let (control, _) = control();
    let (offers, mut offered) = mpsc::channel(1);
    let agent = Agent::new("edge".into(), 1);
    let source = PolicySource { offers };
    let mut node = Node::new(agent, source, control, state, Shared::default());
    let held = |number| Held {
        id: v1::GenerationId {
            store: vec![1; 16],
            number,
            digest: vec![0; 32],
        },
        rows: sluice_policy::fleet::Inventory::default(),
    };
    let mut number_offered = || match offered.try_recv() {
        Ok(Offer::Rows(released)) => Some(released.id.number),
        Ok(Offer::File(_) | Offer::Text { .. }) | Err(_) => None,
    };
    let port_in_use = || Some(Err(Refusal::machine("port 1883 is in use".into())));
    for pause in [1, 2, 4, 6, 6] {
        node.answered(held(7), port_in_use())
            .await
            .expect("it runs");
        for beat in 1..=pause {
            node.beat().await.expect("it runs");
            let expected = (beat == pause).then_some(7);
            assert_eq!(number_offered(), expected, "beat {beat} of {pause}");
        }
        node.beat().await.expect("it runs");
        assert_eq!(number_offered(), None, "its answer is waited for");
    }
    // What is wrong stays wrong, and with a newer one nobody wants the old one any more.
    let wrong = Refusal::one(v1::reject::Reason::Invalid, v1::Problem::default());
    let after: [(u64, Option<Outcome>); 3] = [
        (8, Some(Err(wrong))),
        (8, Some(Ok(sluice_policy::Generation(2)))),
        (8, None),
    ];
    for (number, outcome) in after {
        node.answered(held(7), port_in_use())
            .await
            .expect("it runs");
        node.answered(held(number), outcome).await.expect("it runs");
        for _ in 0..BEATS_TO_TRY_AGAIN_MAX {
            node.beat().await.expect("it runs");
            assert_eq!(number_offered(), None);
        }
    }
}
