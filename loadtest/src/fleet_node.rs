//! A node of the fleet without a data plane behind it: opens the stream, takes generations, checks their digests and
//! acknowledges for as many shards as it is told to have. Many of them make a fleet for tests and benches.
//!
//! Does what the contract says, or deliberately not: it can refuse, not read, or leave. It reads no rows.

use std::net::SocketAddr;
use std::time::Duration;

use sluice_policy::fleet::{Assembly, Delivered, Delivery, Inventory, inventory_chunks};
use sluice_proto::v1::{self, FromNode, from_node, reject::Reason, to_node};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use v1::fleet_client::FleetClient;

/// Longest message taken: a row of 3 MiB and what is around it.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Who it is and how it behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name in the fleet.
    pub name: String,
    /// Its own secret.
    pub secret: [u8; 32],
    /// Of the program it claims to be.
    pub version: String,
    /// What rows it reads.
    pub features: Vec<String>,
    /// What messages it takes.
    pub capabilities: Vec<String>,
    /// Shards that acknowledge.
    pub shards: u32,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Refuses every generation for this reason.
    pub refuses: Option<Reason>,
    /// Says Hello and reads nothing. Its heartbeats go on.
    pub is_deaf: bool,
    /// Leaves after so many messages.
    pub leaves_after: Option<u64>,
    /// What it lists; a kick ends those that match.
    pub sessions: Vec<v1::session_page::Session>,
    /// Its rules, in order, each of a priority of its own.
    pub rules: Vec<v1::rule_page::Rule>,
    /// Recent refusals; the last one is told only to those who ask again.
    pub denials: Vec<v1::Denial>,
}

impl Options {
    /// A good node with two shards that can do everything.
    pub fn new(name: impl Into<String>, secret: [u8; 32]) -> Self {
        Self {
            name: name.into(),
            secret,
            version: "simulated".to_owned(),
            features: Vec::new(),
            capabilities: ["kick", "drain", "sessions", "rules", "denials"]
                .map(str::to_owned)
                .into(),
            shards: 2,
            heartbeat: Duration::from_secs(5),
            refuses: None,
            is_deaf: false,
            leaves_after: None,
            sessions: Vec::new(),
            rules: Vec::new(),
            denials: Vec::new(),
        }
    }

    /// What it shows in `authorization`.
    pub fn bearer(&self) -> String {
        use std::fmt::Write;
        let mut text = format!("Bearer sln_{}_", self.name);
        for byte in self.secret {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// What it holds; survives its streams, as the file of a real node does.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Which generation.
    pub held: Option<v1::GenerationId>,
    /// Its rows.
    pub rows: Inventory,
}

/// What came over all of its streams.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Streams that were opened.
    pub streams: u64,
    /// Chunks of generations.
    pub chunks: u64,
    /// Changes in them.
    pub rows: u64,
    /// Times it was asked what it holds.
    pub asked: u64,
    /// The last generation it took.
    pub active: Option<v1::GenerationId>,
    /// Generations refused.
    pub refused: u64,
    /// True exactly when told to drain.
    pub is_draining: bool,
}

/// A connection of its own to a control plane on plain loopback. A small `window_bytes` makes a deaf node felt early.
pub async fn dial(
    address: SocketAddr,
    window_bytes: Option<u32>,
) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(window_bytes)
        .initial_connection_window_size(window_bytes)
        .connect()
        .await
}

/// One stream from Hello to its end, and why it ended.
pub async fn serve(
    channel: Channel,
    options: &Options,
    memory: &mut Memory,
    seen: &watch::Sender<Seen>,
) -> Status {
    let (out, messages) = mpsc::channel(16);
    let mut node = Stream {
        options,
        memory,
        seen,
        out,
        assembly: Assembly::default(),
    };
    match node.run(channel, messages).await {
        Ok(()) => Status::ok("it left"),
        Err(status) => status,
    }
}

struct Stream<'a> {
    options: &'a Options,
    memory: &'a mut Memory,
    seen: &'a watch::Sender<Seen>,
    out: mpsc::Sender<FromNode>,
    assembly: Assembly,
}

impl Stream<'_> {
    async fn run(
        &mut self,
        channel: Channel,
        messages: mpsc::Receiver<FromNode>,
    ) -> Result<(), Status> {
        self.say(from_node::Message::Hello(self.hello())).await?;
        self.say(self.heartbeat()).await?;
        let mut request = Request::new(ReceiverStream::new(messages));
        let bearer = self.options.bearer().parse();
        let bearer = bearer.map_err(|_| Status::invalid_argument("the name is no metadata"))?;
        request.metadata_mut().insert("authorization", bearer);
        let mut client = FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut inbound = client.connect(request).await?.into_inner();
        self.seen.send_modify(|seen| seen.streams += 1);
        let mut beat = interval(self.options.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        let mut left = self.options.leaves_after.unwrap_or(u64::MAX);
        while left > 0 {
            tokio::select! {
                message = inbound.message(), if !self.options.is_deaf => {
                    let ended = || Status::unavailable("the stream ended without a status");
                    let message = message?.ok_or_else(ended)?;
                    if let Some(message) = message.message {
                        self.take(message).await?;
                    }
                    left -= 1;
                }
                _ = beat.tick() => self.say(self.heartbeat()).await?,
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: to_node::Message) -> Result<(), Status> {
        match message {
            to_node::Message::AskInventory(_) => {
                self.seen.send_modify(|seen| seen.asked += 1);
                for chunk in inventory_chunks(&self.memory.rows) {
                    self.say(from_node::Message::Inventory(chunk)).await?;
                }
                Ok(())
            }
            to_node::Message::Generation(chunk) => self.take_chunk(chunk).await,
            to_node::Message::Kick(kick) => {
                let sessions = self.matching(kick.who.as_ref());
                self.done(kick.request, sessions).await
            }
            to_node::Message::Drain(drain) => {
                self.seen.send_modify(|seen| seen.is_draining = !drain.undo);
                self.done(drain.request, 0).await?;
                self.say(self.heartbeat()).await
            }
            to_node::Message::ListSessions(list) => {
                let page = self.page(&list);
                self.say(from_node::Message::Sessions(page)).await
            }
            to_node::Message::ListRules(list) => {
                let page = self.rules(&list);
                self.say(from_node::Message::Rules(page)).await
            }
            to_node::Message::ListDenials(list) => {
                let page = self.denials(&list);
                self.say(from_node::Message::Denials(page)).await
            }
        }
    }

    async fn take_chunk(&mut self, chunk: v1::GenerationChunk) -> Result<(), Status> {
        self.seen.send_modify(|seen| {
            seen.chunks += 1;
            seen.rows += u64::try_from(chunk.changes.len()).unwrap_or(u64::MAX);
        });
        match self.assembly.take(chunk) {
            Delivered::Part => Ok(()),
            Delivered::Whole(delivery) => match self.apply(&delivery) {
                Ok(rows) => self.activate(delivery.generation, rows).await,
                Err(reason) => self.refuse(delivery.generation, reason).await,
            },
            Delivered::Refused {
                generation, reason, ..
            } => self.refuse(generation, reason).await,
        }
    }

    fn apply(&self, delivery: &Delivery) -> Result<Inventory, Reason> {
        if let Some(reason) = self.options.refuses {
            return Err(reason);
        }
        let base = match &delivery.base {
            None => Inventory::default(),
            Some(_) if delivery.base == self.memory.held => self.memory.rows.clone(),
            Some(_) => return Err(Reason::BaseUnknown),
        };
        let rows = base.with(delivery.changes.iter().cloned());
        let is_right = rows.digest().as_slice() == delivery.generation.digest;
        is_right.then_some(rows).ok_or(Reason::Digest)
    }

    async fn activate(&mut self, id: v1::GenerationId, rows: Inventory) -> Result<(), Status> {
        self.memory.held = Some(id.clone());
        self.memory.rows = rows;
        for shard in 0..self.options.shards {
            let generation = Some(id.clone());
            self.say(from_node::Message::Ack(v1::Ack { generation, shard }))
                .await?;
        }
        self.seen.send_modify(|seen| seen.active = Some(id));
        Ok(())
    }

    async fn refuse(&mut self, id: v1::GenerationId, reason: Reason) -> Result<(), Status> {
        self.seen.send_modify(|seen| seen.refused += 1);
        let problem = v1::Problem {
            message: "this node refuses what it is told to refuse".to_owned(),
            ..v1::Problem::default()
        };
        self.say(from_node::Message::Reject(v1::Reject {
            generation: Some(id),
            reason: reason.into(),
            problems: vec![problem],
            left_off: 0,
        }))
        .await
    }

    fn matching(&self, who: Option<&v1::kick::Who>) -> u64 {
        let sessions = self.options.sessions.iter();
        let is_meant = |session: &&v1::session_page::Session| match who {
            Some(v1::kick::Who::ClientId(id)) => session.client_id == *id,
            Some(v1::kick::Who::Username(name)) => session.username.as_ref() == Some(name),
            None => false,
        };
        u64::try_from(sessions.filter(is_meant).count()).unwrap_or(u64::MAX)
    }

    /// Two rules in a page, however many are asked for.
    fn rules(&self, list: &v1::ListRules) -> v1::RulePage {
        let of = |rule: &v1::rule_page::Rule| rule.place.clone();
        let priority = |place: Option<v1::RulePlace>| place.map_or(i64::MAX, |at| at.priority);
        let behind = priority(list.behind.clone());
        let all = self.options.rules.iter();
        let is_before =
            |rule: &&v1::rule_page::Rule| list.behind.is_some() && priority(of(rule)) >= behind;
        let from = all.clone().take_while(is_before).count();
        let rules: Vec<_> = all.skip(from).take(2).cloned().collect();
        let is_last = from + rules.len() >= self.options.rules.len();
        let next = rules.last().and_then(of).filter(|_| !is_last);
        v1::RulePage {
            request: list.request,
            rules,
            next,
            by_default: 1,
            since_unix_ms: 1,
            ..v1::RulePage::default()
        }
    }

    fn page(&self, list: &v1::ListSessions) -> v1::SessionPage {
        let from: usize = match list.after.as_deref().map(str::parse) {
            None => 0,
            Some(Ok(from)) => from,
            Some(Err(_)) => {
                return v1::SessionPage {
                    request: list.request,
                    error: "no such cursor".to_owned(),
                    ..v1::SessionPage::default()
                };
            }
        };
        let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
        let all = &self.options.sessions;
        let next = from.saturating_add(limit);
        let is_meant = |session: &&v1::session_page::Session| {
            let id = list.client_id.as_ref();
            id.is_none_or(|id| session.client_id == *id)
                && (list.username.is_none() || session.username == list.username)
        };
        v1::SessionPage {
            request: list.request,
            sessions: all
                .iter()
                .skip(from)
                .take(limit)
                .filter(is_meant)
                .cloned()
                .collect(),
            next: (next < all.len()).then(|| next.to_string()),
            error: String::new(),
        }
    }

    fn denials(&self, list: &v1::ListDenials) -> v1::DenialPage {
        let all = &self.options.denials;
        let from = list.after.as_ref().and_then(|after| after.parse().ok());
        let range = match from {
            Some(from) => all.len().min(from)..all.len(),
            None => 0..all.len().saturating_sub(1),
        };
        v1::DenialPage {
            request: list.request,
            next: range.end.to_string(),
            denials: all.get(range).unwrap_or_default().to_vec(),
            ..v1::DenialPage::default()
        }
    }

    async fn done(&self, request: u64, sessions: u64) -> Result<(), Status> {
        self.say(from_node::Message::Done(v1::Done {
            request,
            sessions,
            error: String::new(),
        }))
        .await
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            node: self.options.name.clone(),
            version: self.options.version.clone(),
            features: self.options.features.clone(),
            capabilities: self.options.capabilities.clone(),
            shards: self.options.shards,
            held: self.memory.held.clone(),
        }
    }

    fn heartbeat(&self) -> from_node::Message {
        let shard = v1::heartbeat::Shard {
            active: self.memory.held.clone(),
            sessions: 1,
            ..v1::heartbeat::Shard::default()
        };
        let shards = usize::try_from(self.options.shards).unwrap_or_default();
        from_node::Message::Heartbeat(v1::Heartbeat {
            shards: vec![shard; shards],
            is_draining: self.seen.borrow().is_draining,
            ..v1::Heartbeat::default()
        })
    }

    async fn say(&self, message: from_node::Message) -> Result<(), Status> {
        let message = FromNode {
            message: Some(message),
        };
        let gone = |_| Status::unavailable("the stream is over");
        self.out.send(message).await.map_err(gone)
    }
}
