//! The way to the control plane: joining, dialling, one stream at a time, and the pauses between, for ever.
//!
//! Owns the gRPC client. Hands on what comes and sends what it is given; it understands neither. Everything it hands on
//! waits for room, so a control plane that says more than the node takes in is held back by HTTP/2.

use std::path::PathBuf;
use std::time::Duration;

use sluice_proto::v1::fleet_client::FleetClient;
use sluice_proto::v1::{EnrollRequest, FromNode, ToNode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxFuture;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Error};
use tonic::{Code, Request, Status, Streaming};
use zeroize::Zeroizing;

use super::advice::{self, Way};
use super::back_off::{BackOff, Ended};
use super::disk::{Identity, StateDir};
use super::status::{LinkState, Shared};
use crate::control::random::random;

/// A row has at most 3 MiB, and is alone in its message then.
const MESSAGE_BYTES_MAX: usize = 5 << 20;
/// Longest wait for a connection, and for the answer that a stream is open.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Pings, so that a peer that is gone without a word is found.
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_MAX: Duration = Duration::from_secs(10);
/// Messages handed to the transport ahead of it.
const OUTGOING_MAX: usize = 16;
/// Longest file of a join token.
const TOKEN_BYTES_MAX: u64 = 4096;

/// What the link tells the node.
pub(super) enum Event {
    /// A stream is open.
    Opened(Stream),
    /// A message has come.
    Message(ToNode),
    /// The stream is over.
    Closed,
}

/// The node's end of an open stream.
pub(super) struct Stream {
    /// What is to be said.
    pub(super) outgoing: mpsc::Sender<FromNode>,
    /// Dropped to cut the stream.
    pub(super) _keep: oneshot::Sender<()>,
}

/// Opens a connection to the control plane.
pub(super) type Dial = Box<dyn Fn() -> BoxFuture<Channel, Error> + Send + Sync>;

/// See the module documentation.
pub(super) struct Link {
    pub(super) dial: Dial,
    pub(super) way: Way,
    pub(super) identity: Identity,
    pub(super) join_token_file: Option<PathBuf>,
    pub(super) state: std::sync::Arc<StateDir>,
    pub(super) shared: Shared,
}

/// Why an attempt is over.
struct Over {
    ended: Ended,
    why: String,
}

impl Link {
    /// Runs until nobody listens.
    pub(super) async fn run(mut self, events: mpsc::Sender<Event>) {
        let mut back_off = BackOff::default();
        while !events.is_closed() {
            let over = match self.attempt(&events).await {
                Ok(never) => match never {},
                Err(over) => over,
            };
            let pause = back_off.pause(over.ended, jitter());
            self.shared.waiting(&over.why);
            match over.ended {
                Ended::Broken(_) => tracing::warn!(
                    why = %over.why, next_attempt_in = ?pause,
                    "no stream to the control plane; what is in force stays"
                ),
                Ended::Refused => tracing::error!(
                    why = %over.why, next_attempt_in = ?pause,
                    "THE CONTROL PLANE REFUSES THIS NODE; what is in force stays. A join token that does not work is replaced in its file, which is read again at each attempt (`sluicectl token join create`). If the node was removed from the fleet, stop it, delete the file `node` of its state directory and start it with a new --join-token-file"
                ),
                Ended::Replaced => tracing::error!(
                    why = %over.why, next_attempt_in = ?pause,
                    "another process connects to the control plane as this node; give each node a name and a state directory of its own"
                ),
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = events.closed() => return,
            }
        }
    }

    /// One attempt, to its end.
    async fn attempt(&mut self, events: &mpsc::Sender<Event>) -> Result<Never, Over> {
        self.shared.set(LinkState::Connecting);
        let channel = timeout(ANSWER_MAX, (self.dial)())
            .await
            .map_err(|_| Over::broken("no answer in time".into()))?
            .map_err(|error| Over::broken(advice::of_error(&error)))?;
        if !self.identity.is_member {
            self.enroll(channel.clone()).await?;
        }
        let bearer = bearer(&self.identity)?;
        let mut client = FleetClient::with_interceptor(channel, move |mut request: Request<()>| {
            request
                .metadata_mut()
                .insert("authorization", bearer.clone());
            Ok(request)
        })
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, from_node) = mpsc::channel(OUTGOING_MAX);
        let (keep, mut cut) = oneshot::channel::<()>();
        let began = Instant::now();
        // The node says hello before the answer is there: who waits for it to answer would wait for ever.
        let stream = Stream {
            outgoing,
            _keep: keep,
        };
        hand_on(events, Event::Opened(stream)).await?;
        let open = client.connect(ReceiverStream::new(from_node));
        let over = match timeout(ANSWER_MAX, open).await {
            Err(_) => Over::broken("no answer in time".into()),
            Ok(Err(status)) => Over::of(&status, Duration::ZERO, Some(self.way)),
            Ok(Ok(answer)) => {
                self.shared.set(LinkState::Connected);
                tracing::info!(control_plane = %self.shared.view().control_plane, "connected to the control plane");
                tokio::select! {
                    over = receive(answer.into_inner(), events, began) => over,
                    _ = &mut cut => Over {
                        ended: Ended::Broken(began.elapsed()),
                        why: "the control plane does not read what this node says".into(),
                    },
                }
            }
        };
        hand_on(events, Event::Closed).await?;
        Err(over)
    }

    /// Trades the join token for membership. The secret is on the disk already, so a lost answer costs nothing.
    async fn enroll(&mut self, channel: Channel) -> Result<(), Over> {
        let file = self.join_token_file.clone();
        let token = read_token(file).await.map_err(|why| Over {
            ended: Ended::Refused,
            why,
        })?;
        let request = EnrollRequest {
            join_token: token.trim().to_owned(),
            node: self.identity.node.clone(),
            secret: self.identity.secret.to_vec(),
        };
        timeout(ANSWER_MAX, FleetClient::new(channel).enroll(request))
            .await
            .map_err(|_| Over::broken("no answer in time".into()))?
            .map_err(|status| Over::of_enrolling(&status, self.way))?;
        self.identity.is_member = true;
        tracing::info!(node = %self.identity.node, "this node has joined the fleet");
        let (state, identity) = (self.state.clone(), self.identity.clone());
        let written = tokio::task::spawn_blocking(move || state.write_identity(&identity)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the membership cannot be noted in the state directory; the next start joins again");
        }
        Ok(())
    }
}

/// Nothing comes of an attempt but its end.
enum Never {}

impl Over {
    fn broken(why: String) -> Self {
        let ended = Ended::Broken(Duration::ZERO);
        Self { ended, why }
    }

    fn of(status: &Status, lasted: Duration, way: Option<Way>) -> Self {
        // What is left is for the network or the control plane to mend by itself.
        #[expect(clippy::wildcard_enum_match_arm)]
        let ended = match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition => {
                Ended::Refused
            }
            Code::AlreadyExists => Ended::Replaced,
            _ => Ended::Broken(lasted),
        };
        Self {
            ended,
            why: advice::of_status(status, way),
        }
    }

    /// A member of that name, with another secret, is no second stream: an operator has to help.
    fn of_enrolling(status: &Status, way: Way) -> Self {
        let mut over = Self::of(status, Duration::ZERO, Some(way));
        if over.ended == Ended::Replaced {
            over.ended = Ended::Refused;
        }
        over.why = format!("joining: {}", over.why);
        over
    }
}

/// Hands on what comes until it ends.
async fn receive(
    mut incoming: Streaming<ToNode>,
    events: &mpsc::Sender<Event>,
    began: Instant,
) -> Over {
    loop {
        match incoming.message().await {
            Ok(Some(message)) => {
                if let Err(over) = hand_on(events, Event::Message(message)).await {
                    return over;
                }
            }
            Ok(None) => {
                return Over {
                    ended: Ended::Broken(began.elapsed()),
                    why: "the control plane has ended the stream".into(),
                };
            }
            Err(status) => return Over::of(&status, began.elapsed(), None),
        }
    }
}

async fn hand_on(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Over> {
    let sent = events.send(event).await;
    sent.map_err(|_| Over::broken("the node is ending".into()))
}

/// What a control plane that is not there yet, or not there any more, is asked with.
pub(super) fn with_pings(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(ANSWER_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_MAX)
        .keep_alive_while_idle(true)
}

fn bearer(identity: &Identity) -> Result<MetadataValue<Ascii>, Over> {
    use std::fmt::Write;
    let mut text = Zeroizing::new(String::with_capacity(160));
    let _ = write!(text, "Bearer sln_{}_", identity.node); // writing to a String cannot fail
    for byte in identity.secret.iter() {
        let _ = write!(text, "{byte:02x}");
    }
    let mut value = MetadataValue::try_from(text.as_str())
        .map_err(|_| Over::broken("the node's name cannot stand in a header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read_token(file: Option<PathBuf>) -> Result<Zeroizing<String>, String> {
    let Some(file) = file else {
        return Err("this node is no member yet, and there is no --join-token-file".into());
    };
    let shown = file.display().to_string();
    let read = move || {
        use std::io::Read;
        let mut text = Zeroizing::new(String::new());
        let opened = std::fs::File::open(file)?;
        opened.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(format!("--join-token-file {shown}: {error}")),
        Err(error) => Err(format!("--join-token-file {shown}: {error}")),
    }
}

fn jitter() -> u32 {
    // Without randomness every node waits the same: worse, not wrong.
    random().map_or(u32::MAX / 2, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests;
