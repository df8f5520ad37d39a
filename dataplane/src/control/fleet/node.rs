//! The shell around [`Agent`]: feeds it what comes and carries out what it decides.
//!
//! One task of the control thread's runtime. Meets the control thread where operators and SIGHUP do ([`PolicySource`],
//! [`ControlHandle`]), and the control plane by the channels of [`super::link`]. What may block is done on other threads.
//! Bounded: messages wait in one queue, and nothing more is taken in while it is full; a control plane that does not read
//! is left.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use sluice_policy::fleet::inventory_chunks;
use sluice_proto::v1::{self, FromNode, from_node};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::agent::{Agent, Output, prepare};
use super::denials;
use super::disk::{Held, StateDir};
use super::link::{Event, Link, Stream};
use super::report;
use super::status::Shared;
use crate::control::compile::{Offer, Outcome, Released};
use crate::control::vitals::resident_bytes;
use crate::control::{BadCursor, ControlHandle, NoAnswer, PolicySource, priority};
use crate::node::DenialFilter;

/// At least so often the control plane hears how the node is.
const BEAT: Duration = Duration::from_secs(10);
/// Messages that wait to be sent; while there are as many, nothing is taken in.
const OUTBOX_MAX: usize = 256;
/// Kicks, drains and lists at work at once.
const COMMANDS_MAX: usize = 16;
const BUSY: &str = "the node is busy with other requests; ask again";
/// Heartbeats until a generation that could not be written is tried again.
const BEATS_TO_KEEP_AGAIN: u32 = 6;
/// Heartbeats until a generation that the machine could not take is tried again, at most; one the first time, then twice
/// as many.
const BEATS_TO_TRY_AGAIN_MAX: u32 = 6;
/// What the link may hand on ahead of us.
const EVENTS_MAX: usize = 4;

/// See the module documentation.
pub(super) struct Node {
    agent: Agent,
    source: PolicySource,
    control: ControlHandle,
    acknowledged: watch::Receiver<Vec<Option<u64>>>,
    state: Arc<StateDir>,
    shared: Shared,
    stream: Option<Stream>,
    outbox: VecDeque<from_node::Message>,
    /// False exactly when nothing was sent since the last beat.
    has_sent: bool,
    outcomes: (mpsc::Sender<Answered>, mpsc::Receiver<Answered>),
    /// Answers on their way; those of a stream that is over are dropped with it.
    commands: JoinSet<from_node::Message>,
    keeping: Option<JoinHandle<(Held, std::io::Result<()>)>>,
    to_keep: Option<Held>,
    beats_to_keep_again: u32,
    again: Option<Again>,
}

/// A generation that the machine could not take, because a port was in use for instance. Nobody but the node sees when the
/// port is free, so it is the node that tries again.
struct Again {
    held: Held,
    /// Beats to wait this time.
    pause: u32,
    /// Of these, still to come.
    left: u32,
}

/// An offer and what became of it; `None`: a newer one was taken in its place.
type Answered = (Held, Option<Outcome>);

impl Node {
    pub(super) fn new(
        agent: Agent,
        source: PolicySource,
        control: ControlHandle,
        state: Arc<StateDir>,
        shared: Shared,
    ) -> Self {
        Self {
            agent,
            source,
            acknowledged: control.acknowledged(),
            control,
            state,
            shared,
            stream: None,
            outbox: VecDeque::new(),
            has_sent: true,
            outcomes: mpsc::channel(4),
            commands: JoinSet::new(),
            keeping: None,
            to_keep: None,
            beats_to_keep_again: 0,
            again: None,
        }
    }

    /// Runs until the control thread is gone.
    pub(super) async fn run(mut self, link: Link) {
        if self.begin_from_disk().await.is_err() {
            return;
        }
        let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(link.run(events_in));
        let mut beats = interval_at(Instant::now() + BEAT, BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.stream.is_none() || self.outbox.len() < OUTBOX_MAX;
            let done = tokio::select! {
                Some(event) = events.recv(), if room => self.hear(event).await,
                Some((held, outcome)) = self.outcomes.1.recv() => self.answered(held, outcome).await,
                changed = self.acknowledged.changed() => match changed {
                    Ok(()) => self.tell_active().await,
                    Err(_) => Err(NoAnswer),
                },
                Some(answer) = self.commands.join_next(), if !self.commands.is_empty() => {
                    let is_done = matches!(answer, Ok(from_node::Message::Done(_)));
                    self.outbox.extend(answer); // one that was aborted has nobody to be told
                    // A kick or a drain shows in how the node is; nobody should wait for the next beat to see it.
                    if is_done { self.heartbeat().await } else { Ok(()) }
                }
                permit = room_to_send(self.stream.as_ref(), self.outbox.is_empty()) => {
                    self.send(permit);
                    Ok(())
                }
                kept = wait_for(self.keeping.as_mut()) => { self.kept(kept); Ok(()) }
                _ = beats.tick() => self.beat().await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// What was good when the process ended is served before the control plane is asked.
    async fn begin_from_disk(&mut self) -> Result<(), NoAnswer> {
        let state = Arc::clone(&self.state);
        let read = spawn_blocking(move || {
            let read = state.read_generation();
            if read.is_err() {
                return (read, Some(state.set_generation_aside()));
            }
            (read, None)
        });
        let (read, aside) = match read.await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "the generation on the disk could not be read");
                return Ok(());
            }
        };
        if let Some(aside) = aside {
            match aside {
                Ok(path) => tracing::warn!(path = %path.display(), "moved aside"),
                Err(error) => tracing::warn!(%error, "it could not be moved aside"),
            }
        }
        let held = match read {
            Ok(Some(held)) => held,
            Ok(None) => {
                tracing::info!(
                    "no generation on the disk: every device is refused until the control plane sends one"
                );
                return Ok(());
            }
            Err(error) => {
                tracing::error!(%error, "THE GENERATION ON THE DISK IS OF NO USE: every device is refused until the control plane sends one");
                return Ok(());
            }
        };
        let number = held.id.number;
        tracing::info!(
            generation = number,
            rows = held.rows.len(),
            "a generation is on the disk; it is served until the control plane says otherwise"
        );
        let output = self.agent.begin_with(held);
        self.carry_out(output).await?;
        let Some((held, outcome)) = self.outcomes.1.recv().await else {
            return Err(NoAnswer);
        };
        if matches!(outcome, Some(Ok(_))) {
            self.shared.on_disk(number);
        }
        self.note(&held, outcome.as_ref());
        // It is on the disk already, so the keeping that follows is left out.
        let _ = self.agent.answered(held, outcome.map(number_of));
        Ok(())
    }

    async fn hear(&mut self, event: Event) -> Result<(), NoAnswer> {
        match event {
            Event::Opened(stream) => {
                self.close();
                self.stream = Some(stream);
                self.has_sent = true;
                let hello = self.agent.connected();
                self.outbox.push_back(hello);
                self.heartbeat().await
            }
            Event::Closed => {
                self.close();
                Ok(())
            }
            Event::Message(message) => {
                if self.stream.is_none() {
                    return Ok(()); // of a stream that was left
                }
                let Some(message) = message.message else {
                    return Ok(()); // of a kind that came after this build
                };
                if let Some(output) = self.agent.take(message) {
                    self.carry_out(output).await?;
                }
                self.tell_active().await
            }
        }
    }

    fn close(&mut self) {
        self.agent.disconnected();
        self.stream = None;
        self.outbox.clear();
        self.commands.abort_all();
        self.commands = JoinSet::new();
    }

    async fn carry_out(&mut self, output: Output) -> Result<(), NoAnswer> {
        let mut next = Some(output);
        while let Some(output) = next.take() {
            match output {
                Output::Send(message) => self.outbox.push_back(message),
                Output::SendInventory(rows) => {
                    let is_said = |message: &from_node::Message| {
                        matches!(message, from_node::Message::Inventory(_))
                    };
                    if self.outbox.iter().any(is_said) {
                        continue; // the answer is on its way already
                    }
                    let chunks = spawn_blocking(move || inventory_chunks(&rows)).await;
                    let chunks = chunks.map_err(|_| NoAnswer)?;
                    let messages = chunks.into_iter().map(from_node::Message::Inventory);
                    self.outbox.extend(messages);
                }
                Output::Prepare { base, delivery } => {
                    let work = move || {
                        priority::lower();
                        prepare(&base, delivery)
                    };
                    let prepared = spawn_blocking(work).await.map_err(|_| NoAnswer)?;
                    next = self.agent.prepared(prepared);
                }
                Output::Offer(held) => self.offer(held).await?,
                Output::Keep(held) => {
                    self.to_keep = Some(held);
                    self.keep();
                }
                Output::Kick {
                    request,
                    who,
                    keep_out,
                } => {
                    let control = self.control.clone();
                    self.command(busy(request), async move {
                        let kicked = control.kick(who, keep_out).await;
                        done(
                            request,
                            kicked.map(|kicked| (kicked.sessions, kicked.error)),
                        )
                    });
                }
                Output::Drain(drain) => {
                    let control = self.control.clone();
                    let within = drain.within_us.map(Duration::from_micros);
                    self.command(busy(drain.request), async move {
                        let drained = if drain.undo {
                            control.serve_again().await
                        } else {
                            control.drain(within).await
                        };
                        let drained = drained.map(|drained| (drained.sessions, drained.error));
                        done(drain.request, drained)
                    });
                }
                Output::List {
                    request,
                    after,
                    limit,
                    filter,
                } => {
                    let Some(at) = report::cursor(after.as_deref()) else {
                        let page = report::no_page(
                            request,
                            "`after` is what `next` of the page before said",
                        );
                        self.outbox.push_back(from_node::Message::Sessions(page));
                        continue;
                    };
                    let control = self.control.clone();
                    let busy = from_node::Message::Sessions(report::no_page(request, BUSY));
                    self.command(busy, async move {
                        let page = match control.sessions(at, limit, filter).await {
                            Ok(page) => report::page(request, &page),
                            Err(error) => report::no_page(request, &error.to_string()),
                        };
                        from_node::Message::Sessions(page)
                    });
                }
                Output::Rules {
                    request,
                    behind,
                    limit,
                    filter,
                } => {
                    let control = self.control.clone();
                    let busy = from_node::Message::Rules(report::no_rules(request, BUSY));
                    self.command(busy, async move {
                        let limit = usize::try_from(limit).unwrap_or(1);
                        let page = control.rule_page(behind, limit, filter).await;
                        from_node::Message::Rules(match page {
                            Ok(page) => report::rules(request, &page.unwrap_or_default()),
                            Err(error) => report::no_rules(request, &error.to_string()),
                        })
                    });
                }
                Output::ListDenials {
                    request,
                    after,
                    limit,
                    filter,
                } => self.list_denials(request, after.as_deref(), limit, filter),
            }
        }
        Ok(())
    }

    fn list_denials(
        &mut self,
        request: u64,
        after: Option<&str>,
        limit: u32,
        filter: Result<DenialFilter, String>,
    ) {
        let none = move |error: &str| from_node::Message::Denials(denials::no_page(request, error));
        let after = after.map(str::parse).transpose();
        let (after, filter) = match (after, filter) {
            (Ok(after), Ok(filter)) => (after, filter),
            (Err(error), _) => {
                let error: BadCursor = error;
                return self.outbox.push_back(none(&error.to_string()));
            }
            (Ok(_), Err(error)) => return self.outbox.push_back(none(&error)),
        };
        let control = self.control.clone();
        self.command(none(BUSY), async move {
            match control.denials(after, limit, filter).await {
                Ok(page) => from_node::Message::Denials(denials::page(request, &page)),
                Err(error) => none(&error.to_string()),
            }
        });
    }

    /// Answers later; at once with `busy` when too many are at work.
    fn command(
        &mut self,
        busy: from_node::Message,
        work: impl Future<Output = from_node::Message> + Send + 'static,
    ) {
        if self.commands.len() < COMMANDS_MAX {
            self.commands.spawn(work);
            return;
        }
        self.outbox.push_back(busy);
    }

    async fn offer(&mut self, held: Held) -> Result<(), NoAnswer> {
        let (reply, answer) = oneshot::channel();
        let released = Released {
            id: held.id.clone(),
            rows: held.rows.clone(),
            reply,
        };
        self.source.offer(Offer::Rows(released)).await?;
        let outcomes = self.outcomes.0.clone();
        tokio::spawn(async move {
            // Fails only when the node is ending.
            let _ = outcomes.send((held, answer.await.ok())).await;
        });
        Ok(())
    }

    async fn answered(&mut self, held: Held, outcome: Option<Outcome>) -> Result<(), NoAnswer> {
        self.note(&held, outcome.as_ref());
        if let Some(output) = self.agent.answered(held, outcome.map(number_of)) {
            self.carry_out(output).await?;
        }
        self.tell_active().await
    }

    /// Whether this is to be tried again. What came before it is not wanted any more.
    fn note(&mut self, held: &Held, outcome: Option<&Outcome>) {
        let before = self.again.take();
        if !matches!(outcome, Some(Err(refusal)) if refusal.is_of_machine) {
            return;
        }
        let before = before.filter(|before| before.held.id == held.id);
        let pause = before.map_or(1, |before| (before.pause * 2).min(BEATS_TO_TRY_AGAIN_MAX));
        tracing::info!(
            generation = held.id.number,
            after = ?BEAT.saturating_mul(pause),
            "it is the machine that cannot take it: it is tried again"
        );
        self.again = Some(Again {
            held: held.clone(),
            pause,
            left: pause,
        });
    }

    async fn try_again(&mut self) -> Result<(), NoAnswer> {
        let Some(again) = &mut self.again else {
            return Ok(());
        };
        again.left = again.left.saturating_sub(1);
        if again.left > 0 {
            return Ok(());
        }
        let held = again.held.clone();
        match self.agent.offer_again(held) {
            Some(output) => self.carry_out(output).await,
            None => Ok(()), // a newer one is at work
        }
    }

    /// Says which shards have acknowledged since the last time; with the last of them, how the node is.
    async fn tell_active(&mut self) -> Result<(), NoAnswer> {
        let (acks, is_everywhere) = {
            let shards = self.acknowledged.borrow_and_update();
            let first = shards.first();
            let is_everywhere = shards.iter().all(|seen| Some(seen) == first);
            (self.agent.acknowledged(&shards), is_everywhere)
        };
        let is_news = !acks.is_empty();
        self.outbox.extend(acks);
        if is_news && is_everywhere {
            return self.heartbeat().await;
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), NoAnswer> {
        if self.beats_to_keep_again > 0 {
            self.beats_to_keep_again -= 1;
            self.keep();
        }
        self.try_again().await?;
        if !self.outbox.is_empty() && !self.has_sent && self.stream.is_some() {
            self.close(); // the link says so in the log
            return Ok(());
        }
        self.has_sent = false;
        self.heartbeat().await
    }

    async fn heartbeat(&mut self) -> Result<(), NoAnswer> {
        let is_said =
            |message: &from_node::Message| matches!(message, from_node::Message::Heartbeat(_));
        if self.stream.is_none() || self.outbox.iter().any(is_said) {
            return Ok(());
        }
        let observed = self.control.observe(false).await?;
        let heartbeat = report::heartbeat(&observed, &self.agent, resident_bytes().unwrap_or(0));
        self.outbox
            .push_back(from_node::Message::Heartbeat(heartbeat));
        Ok(())
    }

    fn send(&mut self, permit: Option<mpsc::OwnedPermit<FromNode>>) {
        let Some(permit) = permit else {
            self.close();
            return;
        };
        let message = self.outbox.pop_front();
        if message.is_some() {
            permit.send(FromNode { message });
            self.has_sent = true;
        }
    }

    /// Writes what is to be kept, one at a time; of several the newest.
    fn keep(&mut self) {
        if self.keeping.is_some() || self.beats_to_keep_again > 0 {
            return;
        }
        let Some(held) = self.to_keep.take() else {
            return;
        };
        let state = Arc::clone(&self.state);
        self.keeping = Some(spawn_blocking(move || {
            priority::lower();
            let written = state.write_generation(&held);
            (held, written)
        }));
    }

    fn kept(&mut self, kept: Option<(Held, std::io::Result<()>)>) {
        self.keeping = None;
        match kept {
            Some((held, Ok(()))) => {
                self.shared.on_disk(held.id.number);
                tracing::debug!(generation = held.id.number, "the generation is on the disk");
            }
            Some((held, Err(error))) => {
                tracing::error!(generation = held.id.number, %error, "the generation cannot be written to the state directory; it is in force, but a restart would begin with the one before");
                self.beats_to_keep_again = BEATS_TO_KEEP_AGAIN;
                self.to_keep.get_or_insert(held);
            }
            None => tracing::error!("the thread that writes the generation has failed"),
        }
        self.keep();
    }
}

fn number_of(outcome: Outcome) -> Result<u64, crate::control::compile::Refusal> {
    outcome.map(|generation| generation.0)
}

fn busy(request: u64) -> from_node::Message {
    done(request, Ok((0, BUSY.to_owned())))
}

fn done(request: u64, answer: Result<(u64, String), NoAnswer>) -> from_node::Message {
    let (sessions, error) = answer.unwrap_or_else(|error| (0, error.to_string()));
    from_node::Message::Done(v1::Done {
        request,
        sessions,
        error,
    })
}

/// Room for one message; `None` when the stream is over. Waits for ever while there is nothing to send.
async fn room_to_send(
    stream: Option<&Stream>,
    is_empty: bool,
) -> Option<mpsc::OwnedPermit<FromNode>> {
    match stream {
        Some(stream) if !is_empty => stream.outgoing.clone().reserve_owned().await.ok(),
        Some(_) | None => pending().await,
    }
}

async fn wait_for<T>(handle: Option<&mut JoinHandle<T>>) -> Option<T> {
    match handle {
        Some(handle) => handle.await.ok(),
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
