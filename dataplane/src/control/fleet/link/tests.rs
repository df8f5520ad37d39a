//! The link against a control plane that plays a script, over pipes in memory and on a paused clock: what it waits for,
//! and for how long.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use sluice_proto::v1::EnrollResponse;
use sluice_proto::v1::fleet_server::{Fleet, FleetServer};
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tonic::Response;
use tonic::codegen::Service;
use tonic::transport::Server;

use super::*;

/// What becomes of a stream.
#[derive(Clone, Copy)]
enum Fate {
    Refused(Code),
    /// Open for so long.
    Open(Duration),
}

/// What becomes of a call of Enroll.
#[derive(Clone, Copy)]
enum Answer {
    /// It is done, and the answer is lost.
    Lost,
    Refused(Code),
    Joined,
}

#[derive(Default)]
struct Played {
    /// The next ones; once none is left, streams stay open.
    fates: VecDeque<Fate>,
    /// The next ones; once none is left, everybody joins.
    answers: VecDeque<Answer>,
    /// When streams were asked for, and with what.
    opened: Vec<(Instant, String)>,
    enrolled: Vec<(Instant, EnrollRequest)>,
}

#[derive(Clone, Default)]
struct Script(Arc<Mutex<Played>>);

impl Script {
    fn new(fates: &[Fate], answers: &[Answer]) -> Self {
        Self(Arc::new(Mutex::new(Played {
            fates: fates.iter().copied().collect(),
            answers: answers.iter().copied().collect(),
            ..Played::default()
        })))
    }

    fn played<T>(&self, look: impl FnOnce(&mut Played) -> T) -> T {
        look(&mut self.0.lock().expect("nobody panics with it"))
    }

    /// Seconds between the attempts to open a stream.
    fn pauses(&self) -> Vec<f64> {
        self.played(|played| {
            let pairs = played.opened.windows(2);
            pairs
                .map(|pair| pair[1].0.duration_since(pair[0].0).as_secs_f64())
                .collect()
        })
    }
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
        let fate = self.played(|played| {
            played.opened.push((Instant::now(), bearer.to_owned()));
            played.fates.pop_front()
        });
        let (say, said) = mpsc::channel(1);
        let lasts = match fate {
            Some(Fate::Refused(code)) => return Err(Status::new(code, "as the script says")),
            Some(Fate::Open(lasts)) => lasts,
            None => Duration::from_secs(1 << 30),
        };
        tokio::spawn(async move {
            sleep(lasts).await;
            drop((say, request));
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let answer = self.played(|played| {
            played.enrolled.push((Instant::now(), request.into_inner()));
            played.answers.pop_front()
        });
        match answer {
            Some(Answer::Lost) => std::future::pending().await,
            Some(Answer::Refused(code)) => Err(Status::new(code, "as the script says")),
            Some(Answer::Joined) | None => Ok(Response::new(EnrollResponse { store: vec![1; 16] })),
        }
    }
}

/// Dials by a pipe in memory; what goes through it stops when `is_dead` says so, without a word.
#[derive(Clone)]
struct Pipe {
    script: Script,
    is_dead: watch::Receiver<bool>,
}

impl Service<tonic::transport::Uri> for Pipe {
    type Response = TokioIo<DuplexStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::transport::Uri) -> Self::Future {
        let (ours, mut near) = duplex(1 << 16);
        let (mut far, theirs) = duplex(1 << 16);
        let mut is_dead = self.is_dead.clone();
        tokio::spawn(async move {
            let dies = async {
                if is_dead.wait_for(|is| *is).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                () = dies => std::future::pending().await, // both ends stay open
            }
        });
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
        let serve = Server::builder()
            .add_service(FleetServer::new(self.script.clone()))
            .serve_with_incoming(incoming.chain(tokio_stream::pending()));
        tokio::spawn(serve);
        Box::pin(async move { Ok(TokioIo::new(ours)) })
    }
}

fn dial(script: &Script, is_dead: &watch::Receiver<bool>) -> Dial {
    let (script, is_dead) = (script.clone(), is_dead.clone());
    Box::new(move || {
        let endpoint = with_pings(Endpoint::from_static("http://control.example"));
        let pipe = Pipe {
            script: script.clone(),
            is_dead: is_dead.clone(),
        };
        Box::pin(async move { endpoint.connect_with_connector(pipe).await })
    })
}

struct Site {
    folder: tempfile::TempDir,
    is_dead: watch::Sender<bool>,
    shared: Shared,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "slj_1_x\n").expect("written");
        Self {
            folder,
            is_dead: watch::Sender::new(false),
            shared: Shared::new("edge", "http://control.example"),
        }
    }

    /// Runs a link until the test drops what it is given. Its identity is read, or made, in the folder.
    fn run(&self, script: &Script) -> mpsc::Receiver<Event> {
        let state = StateDir::open(&self.folder.path().join("state")).expect("a state directory");
        let identity = state.read_identity().expect("good").unwrap_or_else(|| {
            let identity = Identity {
                node: "edge".into(),
                secret: Zeroizing::new(random().expect("randomness")),
                is_member: false,
            };
            state.write_identity(&identity).expect("written");
            identity
        });
        let link = Link {
            dial: dial(script, &self.is_dead.subscribe()),
            way: Way::Plain,
            identity,
            join_token_file: Some(self.folder.path().join("token")),
            state: Arc::new(state),
            shared: self.shared.clone(),
        };
        let (events_in, events) = mpsc::channel(4);
        tokio::spawn(link.run(events_in));
        events
    }
}

/// Runs until so many streams were asked for. Streams are kept open as long as the control plane keeps them.
async fn until_opened(script: &Script, events: &mut mpsc::Receiver<Event>, count: usize) {
    let mut open = None;
    let all = async {
        while script.played(|played| played.opened.len()) < count {
            tokio::select! {
                event = events.recv() => match event.expect("the link runs") {
                    Event::Opened(stream) => open = Some(stream),
                    Event::Message(_) => {}
                    Event::Closed => open = None,
                },
                () = sleep(Duration::from_millis(100)) => {}
            }
        }
    };
    let in_time = timeout(Duration::from_secs(600), all).await;
    assert!(in_time.is_ok(), "no further attempt");
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_are_short_again_after_a_good_stream_and_are_longest_when_another_took_over() {
    let unavailable = Fate::Refused(Code::Unavailable);
    let script = Script::new(
        &[
            unavailable,
            unavailable,
            unavailable,
            Fate::Refused(Code::AlreadyExists),
            Fate::Refused(Code::Unauthenticated),
            unavailable,
            Fate::Open(Duration::from_secs(9)),
            unavailable,
            Fate::Open(Duration::from_secs(10)),
            unavailable,
            unavailable,
        ],
        &[],
    );
    let site = Site::new();
    let mut events = site.run(&script);
    until_opened(&script, &mut events, 11).await;
    let due = [
        (0.25, 0.5),
        (0.5, 1.0),
        (1.0, 2.0),
        (30.0, 60.0),      // replaced: the longest
        (15.0, 30.0),      // refused: slowly
        (2.0, 4.0),        // neither changed what is due
        (9.0 + 4.0, 17.0), // a stream that did not live long enough
        (8.0, 16.0),       // so it goes on
        (10.25, 10.5),     // one that lived
        (0.5, 1.0),
    ];
    let pauses = script.pauses();
    for (index, (pause, (least, most))) in pauses.iter().zip(due).enumerate() {
        // The clock of the runtime counts milliseconds.
        let is_right = (least..=most + 0.01).contains(pause);
        assert!(is_right, "pause {index}: {pauses:?}");
    }
    assert_eq!(pauses.len(), due.len());
    assert_eq!(site.shared.view().connects, 2);
}

#[tokio::test(start_paused = true)]
async fn pauses_have_jitter() {
    let script = Script::new(&[Fate::Open(Duration::from_secs(10)); 12], &[]);
    let site = Site::new();
    let mut events = site.run(&script);
    until_opened(&script, &mut events, 12).await;
    let millis = script
        .pauses()
        .into_iter()
        .map(|pause| (pause * 1e3) as u64);
    let mut millis: Vec<u64> = millis.collect();
    millis.sort_unstable();
    millis.dedup();
    assert!(millis.len() > 3, "of eleven: {millis:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_enroll_is_asked_for_again_with_the_same_secret_also_after_a_restart() {
    let answers = [
        Answer::Lost,
        Answer::Refused(Code::Unavailable),
        Answer::Lost,
        Answer::Joined,
    ];
    let script = Script::new(&[], &answers);
    let site = Site::new();
    let mut events = site.run(&script);
    while script.played(|played| played.enrolled.len()) < 3 {
        tokio::select! {
            _ = events.recv() => panic!("no stream without a membership"),
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
    let after = script.played(|played| played.enrolled[1].0 - played.enrolled[0].0);
    assert!(after >= ANSWER_MAX && after < ANSWER_MAX * 2, "{after:?}");
    // The process is killed before the third answer is there.
    drop(events);
    let lock = site.folder.path().join("state/lock");
    while StateDir::open(lock.parent().expect("a folder")).is_err() {
        sleep(Duration::from_secs(1)).await;
    }
    let mut events = site.run(&script);
    until_opened(&script, &mut events, 1).await;
    let (requests, bearer) = script.played(|played| {
        let requests: Vec<EnrollRequest> = played
            .enrolled
            .iter()
            .map(|(_, request)| request.clone())
            .collect();
        (requests, played.opened[0].1.clone())
    });
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|request| *request == requests[0]));
    assert_eq!(
        (requests[0].join_token.as_str(), requests[0].node.as_str()),
        ("slj_1_x", "edge")
    );
    let secret = requests[0].secret.iter().map(|byte| format!("{byte:02x}"));
    assert_eq!(
        bearer,
        format!("Bearer sln_edge_{}", secret.collect::<String>())
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_join_token_is_tried_slowly_and_read_anew() {
    let refused = Answer::Refused(Code::Unauthenticated);
    let taken = Answer::Refused(Code::AlreadyExists);
    let script = Script::new(&[], &[refused, taken, refused]);
    let site = Site::new();
    let mut events = site.run(&script);
    while script.played(|played| played.enrolled.len()) < 3 {
        sleep(Duration::from_secs(1)).await;
    }
    let why = site.shared.view().last_end.expect("it failed");
    assert!(why.starts_with("joining: "), "{why}");
    std::fs::write(site.folder.path().join("token"), "slj_2_y").expect("written");
    until_opened(&script, &mut events, 1).await;
    script.played(|played| {
        for pair in played.enrolled.windows(2) {
            let pause = (pair[1].0 - pair[0].0).as_secs_f64();
            assert!((15.0..=30.1).contains(&pause), "{pause}");
        }
        assert_eq!(played.enrolled[3].1.join_token, "slj_2_y");
    });
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_without_a_word_is_found_by_pings() {
    let script = Script::new(&[], &[]);
    let site = Site::new();
    let mut events = site.run(&script);
    let Some(Event::Opened(stream)) = events.recv().await else {
        panic!("no stream");
    };
    let quiet = sleep(Duration::from_secs(3600));
    tokio::select! {
        _ = events.recv() => panic!("a stream that answers pings stays, however quiet"),
        () = quiet => {}
    }
    site.is_dead.send_replace(true);
    let died = Instant::now();
    assert!(matches!(events.recv().await, Some(Event::Closed)));
    let took = died.elapsed();
    assert!(
        took <= PING_EVERY + PONG_MAX + Duration::from_secs(1),
        "{took:?}"
    );
    drop(stream);
    site.is_dead.send_replace(false);
    until_opened(&script, &mut events, 2).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_at_home_is_given_up_in_time() {
    let site = Site::new();
    site.is_dead.send_replace(true); // the pipe takes what is sent, and that is all
    let script = Script::new(&[], &[]);
    let _events = site.run(&script);
    let began = Instant::now();
    while site.shared.view().disconnects == 0 {
        sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() <= ANSWER_MAX + Duration::from_secs(1));
    assert!(script.played(|played| played.enrolled.is_empty()));
}
