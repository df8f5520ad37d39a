//! The thin shell around one node's machine: takes messages from its stream, puts messages into it, keeps the deadlines.
//!
//! Decides nothing about delivery ([`super::node`] does). Holds at most one message that the transport has not taken;
//! chunks are made when there is room for one. A node that does not read costs that, and ends after a while.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use sluice_policy::fleet::Change;
use sluice_proto::Message;
use sluice_proto::v1::{FromNode, ToNode, from_node, to_node};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::history::lock;
use super::member::{Member, Seat, taken_over};
use super::node::Event;
use super::requests::{Answer, Command, REQUESTS_MAX, Requests};
use super::{Inner, observe};
use crate::clock;
use crate::release::InForce;

/// What a node reads: messages, and in the end why there are no more.
pub struct Outgoing {
    messages: mpsc::Receiver<ToNode>,
    ending: Arc<Mutex<Option<Status>>>,
}

impl Stream for Outgoing {
    type Item = Result<ToNode, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context).map(|message| {
            let ending = || lock(&self.ending).take().map(Err);
            message.map(Ok).or_else(ending)
        })
    }
}

/// Takes the seat of a member and serves its stream until it ends.
#[allow(clippy::result_large_err)] // tonic's own error; it is made once, for a refused stream
pub(super) fn serve<S>(
    inner: &Arc<Inner>,
    member: &Arc<Member>,
    address: String,
    inbound: S,
) -> Result<Outgoing, Status>
where
    S: Stream<Item = Result<FromNode, Status>> + Send + Unpin + 'static,
{
    let (out, messages) = mpsc::channel(1);
    let (cut, cut_off) = oneshot::channel();
    let (ask, commands) = mpsc::channel(REQUESTS_MAX);
    let ending = Arc::new(Mutex::new(None));
    let number = member.sit(cut, ask);
    let shell = Shell {
        inner: Arc::clone(inner),
        number: number.ok_or_else(|| Status::unauthenticated("the node is not a member"))?,
        member: Arc::clone(member),
        address,
        inbound,
        out,
        cut_off,
        commands,
        in_force: inner.in_force.clone(),
        requests: Requests::default(),
        planning: None,
        permit: None,
        blocked_since: None,
    };
    inner.touch(member);
    tokio::spawn(shell.run(Arc::clone(&ending)));
    Ok(Outgoing { messages, ending })
}

type Planning = Pin<Box<dyn Future<Output = Arc<[Change]>> + Send>>;

struct Shell<S> {
    inner: Arc<Inner>,
    member: Arc<Member>,
    number: u64,
    address: String,
    inbound: S,
    out: mpsc::Sender<ToNode>,
    cut_off: oneshot::Receiver<Status>,
    commands: mpsc::Receiver<Command>,
    in_force: InForce,
    requests: Requests,
    planning: Option<Planning>,
    /// To hold an inventory in memory.
    permit: Option<OwnedSemaphorePermit>,
    /// Since when something waits that the transport does not take.
    blocked_since: Option<Instant>,
}

/// What woke the shell.
enum Input {
    Message(Option<Result<FromNode, Status>>),
    InForce,
    Command(Command),
    Changes(Arc<[Change]>),
    Permit(OwnedSemaphorePermit),
    /// The transport takes one more message.
    Room,
    Time,
    End(Status),
}

/// What the shell waits for beside what it always waits for.
struct Wants {
    permit: bool,
    room: bool,
    deadline: Instant,
}

impl<S> Shell<S>
where
    S: Stream<Item = Result<FromNode, Status>> + Send + Unpin + 'static,
{
    async fn run(mut self, ending: Arc<Mutex<Option<Status>>>) {
        let status = match self.greet().await {
            Ok(()) => self.drive().await,
            Err(status) => status,
        };
        let name = &self.member.record.name;
        let was_seated = self.member.leave(self.number);
        tracing::info!(
            node = name.as_str(),
            code = ?status.code(),
            why = status.message(),

            "node offline"
        );
        if was_seated {
            self.inner.touch(&self.member);
        }
        let is_error = status.code() != tonic::Code::Ok;
        *lock(&ending) = is_error.then_some(status);
        // Dropping `out` lets the node see it.
    }

    /// Waits for the Hello.
    async fn greet(&mut self) -> Result<(), Status> {
        let first = tokio::select! {
            end = &mut self.cut_off => return Err(cut_status(end)),
            first = timeout(self.inner.limits.hello, self.inbound.next()) => first,
        };
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))?;
        let first = first.ok_or_else(|| Status::ok("the node has gone"))??;
        let Some(from_node::Message::Hello(hello)) = first.message else {
            return Err(Status::invalid_argument("the first message is not Hello"));
        };
        if hello.node != self.member.record.name.as_str() {
            return Err(Status::permission_denied(
                "the token is another node's than the one that Hello names",
            ));
        }
        let desired = self.inner.desired(&mut self.in_force);
        let version = super::told::cut(hello.version.clone());
        let shards = hello.shards;
        let address = std::mem::take(&mut self.address);
        let event = self.act(|seat| {
            seat.address = address;
            seat.last_seen = Some(clock::unix_now());
            seat.node.hello(hello, desired, Instant::now())
        })?;
        let event = event.map_err(|bad| Status::invalid_argument(bad.0))?;
        let node = self.member.record.name.as_str();
        tracing::info!(node, version, shards, "node connected");
        self.tell(event);
        Ok(())
    }

    async fn drive(&mut self) -> Status {
        loop {
            let wants = match self.prepare() {
                Ok(wants) => wants,
                Err(status) => return status,
            };
            let input = self.next(&wants).await;
            if let Err(status) = self.take(input) {
                return status;
            }
        }
    }

    /// Starts a comparison when one is due, and finds out what to wait for.
    fn prepare(&mut self) -> Result<Wants, Status> {
        let now = Instant::now();
        let inner = Arc::clone(&self.inner);
        let patience = inner.limits.patience;
        let may_plan = self.planning.is_none();
        let has_permit = self.permit.is_some();
        let (plan, is_comparing, asks, has_chunk, deadline) = self.act(|seat| {
            let node = &mut seat.node;
            let plan = may_plan.then(|| node.next_plan(|id| inner.history.knows(id)));
            (
                plan.flatten(),
                node.is_comparing(),
                may_plan && node.wants_inventory(),
                node.has_chunk(),
                node.deadline(&patience),
            )
        })?;
        if let Some(plan) = plan {
            self.planning = Some(Box::pin(Arc::clone(&inner.history).changes(plan)));
        }
        if has_permit && !is_comparing && !asks {
            self.permit = None;
        }
        let has_room_for = self.requests.has_message() || has_chunk || (asks && has_permit);
        self.blocked_since = has_room_for.then(|| self.blocked_since.unwrap_or(now));
        let blocked_until = self.blocked_since.map(|since| since + inner.limits.stall);
        let deadline = deadline.into_iter().chain(blocked_until).min();
        Ok(Wants {
            permit: asks && !has_permit,
            room: has_room_for,
            deadline: deadline.unwrap_or(now + patience.heartbeats),
        })
    }

    /// The next thing that happens. Cancelled at any point it loses nothing.
    async fn next(&mut self, wants: &Wants) -> Input {
        let may_ask = self.requests.has_room();
        let inventories = Arc::clone(&self.inner.inventories);
        tokio::select! {
            biased;
            end = &mut self.cut_off => Input::End(cut_status(end)),
            () = self.out.closed() => Input::End(Status::ok("the node has gone")),
            changed = self.in_force.changed() => match changed {
                Ok(()) => Input::InForce,
                Err(_) => Input::End(Status::unavailable("the control plane stops")),
            },
            message = self.inbound.next() => Input::Message(message),
            Some(command) = self.commands.recv(), if may_ask => Input::Command(command),
            changes = planned(&mut self.planning) => Input::Changes(changes),
            Ok(_) = self.out.reserve(), if wants.room => Input::Room,
            Ok(permit) = inventories.acquire_owned(), if wants.permit => Input::Permit(permit),
            () = sleep_until(wants.deadline) => Input::Time,
        }
    }

    fn take(&mut self, input: Input) -> Result<(), Status> {
        match input {
            Input::Message(message) => self.receive(message)?,
            Input::InForce => {
                let desired = self.inner.desired(&mut self.in_force);
                let event = self.act(|seat| seat.node.desire(desired, Instant::now()))?;
                self.tell(event);
            }
            Input::Command(command) => self.requests.ask(command),
            Input::Changes(changes) => {
                self.planning = None;
                self.act(|seat| seat.node.planned(changes))?;
            }
            Input::Permit(permit) => self.permit = Some(permit),
            Input::Room => self.send()?,
            Input::Time => self.check_time()?,
            Input::End(status) => return Err(status),
        }
        Ok(())
    }

    fn receive(&mut self, message: Option<Result<FromNode, Status>>) -> Result<(), Status> {
        let message = message.ok_or_else(|| Status::ok("the node has gone"))??;
        let message = match message.message {
            None => return Ok(()), // of a kind that this build does not know
            Some(from_node::Message::Hello(_)) => {
                return Err(Status::invalid_argument("a second Hello"));
            }
            Some(from_node::Message::Done(done)) => {
                self.requests.take(Answer::Done(done));
                return Ok(());
            }
            Some(from_node::Message::Rules(page)) => {
                self.requests.take(Answer::Rules(page));
                return Ok(());
            }
            Some(from_node::Message::Sessions(page)) => {
                self.requests.take(Answer::Sessions(page));
                return Ok(());
            }
            Some(from_node::Message::Denials(page)) => {
                self.requests.take(Answer::Denials(page));
                return Ok(());
            }
            Some(message) => message,
        };
        let event = self.act(|seat| {
            seat.last_seen = Some(clock::unix_now());
            seat.node.receive(message, Instant::now())
        })?;
        self.tell(event);
        Ok(())
    }

    /// One message into the transport: answers to operators first, they are short.
    fn send(&mut self) -> Result<(), Status> {
        let message = match self.requests.next_message() {
            Some(message) => Some(message),
            None => self.act(|seat| {
                let node = &mut seat.node;
                if node.wants_inventory() {
                    let ask = node.ask_inventory(Instant::now());
                    return Some(to_node::Message::AskInventory(ask));
                }
                let chunk = node.next_chunk(Instant::now());
                chunk.map(to_node::Message::Generation)
            })?,
        };
        let Some(message) = message else {
            return Ok(());
        };
        let rows = match &message {
            to_node::Message::Generation(chunk) => chunk.changes.len(),
            to_node::Message::AskInventory(_)
            | to_node::Message::Kick(_)
            | to_node::Message::Drain(_)
            | to_node::Message::ListSessions(_)
            | to_node::Message::ListRules(_)
            | to_node::Message::ListDenials(_) => 0,
        };
        let message = ToNode {
            message: Some(message),
        };
        observe::sent(rows, message.encoded_len());
        self.blocked_since = None;
        // There is room, or nobody reads any more, which the next turn sees.
        let _ = self.out.try_send(message);
        if rows > 0 {
            self.inner.touch(&self.member);
        }
        Ok(())
    }

    fn check_time(&mut self) -> Result<(), Status> {
        let now = Instant::now();
        let limits = &self.inner.limits;
        let is_blocked = |since: Instant| now >= since + limits.stall;
        if self.blocked_since.is_some_and(is_blocked) {
            return Err(Status::resource_exhausted("the node does not read"));
        }
        match self.act(|seat| seat.node.overdue(&limits.patience, now))? {
            Some(why) => Err(Status::deadline_exceeded(why)),
            None => Ok(()),
        }
    }

    /// On the seat, as long as it is this stream's.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once, at the end of a stream
    fn act<R>(&self, act: impl FnOnce(&mut Seat) -> R) -> Result<R, Status> {
        self.member.act(self.number, act).ok_or_else(taken_over)
    }

    fn tell(&self, event: Option<Event>) {
        if let Some(event) = event {
            observe::event(self.member.record.name.as_str(), &event);
        }
        self.inner.touch(&self.member);
    }
}

/// The comparison under way; never, when there is none.
async fn planned(planning: &mut Option<Planning>) -> Arc<[Change]> {
    match planning {
        Some(planning) => planning.await,
        None => std::future::pending().await,
    }
}

fn cut_status(end: Result<Status, oneshot::error::RecvError>) -> Status {
    end.unwrap_or_else(|_| Status::unavailable("the control plane stops"))
}

#[cfg(test)]
mod tests;
