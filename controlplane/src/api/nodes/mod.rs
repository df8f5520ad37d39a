//! The service `Nodes`: each call asks the gate, reads its message, asks the [`Fleet`] and writes the answer.
//!
//! Kicks and drains are recorded before they are done, and who reads refusals is: what cannot be recorded is not done.

mod answers;
mod denials;
mod rules;
mod sessions;
mod watching;

use sluice_proto::control::v1::nodes_server::{Nodes, NodesServer};
use sluice_proto::control::v1::{
    DenialsRequest, DrainRequest, KickRequest, ListNodesRequest, NodeAnswer, NodeAnswers,
    NodesResponse, RemoveNodeRequest, RemoveNodeResponse, RulesRequest, RulesResponse,
    SessionsRequest, SessionsResponse, kick_request,
};
use sluice_proto::v1;
use tonic::{Request, Response, Status};

use crate::api::status;
use crate::auth::{Caller, Gate};
use crate::domain::{Name, Role};
use crate::fleet::{Answer, Capability, Fleet, Question};

use watching::Watching;

/// Longest message of a call: 10,000 names of 64 bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest client id or user name: what MQTT allows.
/// Longest time for which a client is kept out; nodes have the same.
const KEEP_OUT_MILLIS_MAX: u64 = 30 * 86_400_000;
const WHO_BYTES_MAX: usize = 65_535;
/// What of it stands in the audit.
const WHO_SHOWN_CHARS_MAX: usize = 128;

/// The service, ready to be served.
pub fn service(gate: Gate, fleet: Fleet) -> NodesServer<impl Nodes> {
    NodesServer::new(Desk { gate, fleet }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

struct Desk {
    gate: Gate,
    fleet: Fleet,
}

#[tonic::async_trait]
impl Nodes for Desk {
    type WatchStream = Watching;
    type DenialsStream = denials::Answers;

    async fn list(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<NodesResponse>, Status> {
        self.gate.caller(&request, Role::Viewer)?;
        let only = names(&request.into_inner().nodes)?;
        answers::nodes(&self.fleet, &only).map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<Watching>, Status> {
        self.gate.caller(&request, Role::Viewer)?;
        let only = names(&request.into_inner().nodes)?;
        answers::nodes(&self.fleet, &only)?; // a name that is no member's is told at once
        Watching::start(&self.fleet, only).map(Response::new)
    }

    async fn sessions(
        &self,
        request: Request<SessionsRequest>,
    ) -> Result<Response<SessionsResponse>, Status> {
        self.gate.caller(&request, Role::Auditor)?;
        let wish = sessions::Wish::read(request.into_inner())?;
        if let Some(node) = &wish.node {
            self.member(node)?;
        }
        let page = sessions::page(&self.fleet, wish).await;
        Ok(Response::new(page))
    }

    async fn rules(
        &self,
        request: Request<RulesRequest>,
    ) -> Result<Response<RulesResponse>, Status> {
        self.gate.caller(&request, Role::Viewer)?;
        let wish = rules::Wish::read(request.into_inner())?;
        if let Some(node) = &wish.node {
            self.member(node)?;
        }
        Ok(Response::new(rules::page(&self.fleet, wish).await))
    }

    async fn denials(
        &self,
        request: Request<DenialsRequest>,
    ) -> Result<Response<denials::Answers>, Status> {
        let caller = self.gate.caller(&request, Role::Auditor)?;
        let wish = denials::Wish::read(request.into_inner())?;
        if let Some(node) = &wish.node {
            self.member(node)?;
        }
        let action = if wish.follows {
            "denials.follow"
        } else {
            "denials.list"
        };
        let of = match &wish.node {
            Some(node) => format!("asked of the node {node}"),
            None => "asked of all connected nodes".to_owned(),
        };
        let what = format!("refusals {}", wish.words());
        self.note(&caller, action, what, of).await?;
        denials::Answers::start(&self.fleet, wish).map(Response::new)
    }

    async fn kick(&self, request: Request<KickRequest>) -> Result<Response<NodeAnswers>, Status> {
        let caller = self.gate.caller(&request, Role::Operator)?;
        let request = request.into_inner();
        let (who, what) = who(request.who)?;
        let keep_out_ms = request.keep_out_ms;
        if keep_out_ms.is_some_and(|millis| millis > KEEP_OUT_MILLIS_MAX) {
            return Err(Status::invalid_argument(
                "a client is kept out for 30 days at most",
            ));
        }
        let nodes = match &request.node {
            Some(node) => vec![self.member(&name(node)?)?],
            None => self.fleet.connected(None),
        };
        let of = match &request.node {
            Some(node) => format!("asked of the node {node}"),
            None => format!("asked of {} connected nodes", nodes.len()),
        };
        let of = match keep_out_ms {
            Some(0) => format!("{of}; let in again"),
            Some(millis) => format!("{of}; kept out for {millis} ms"),
            None => of,
        };
        self.note(&caller, "session.kick", what, of).await?;
        let capability = match keep_out_ms {
            Some(_) => Capability::KeepOut,
            None => Capability::Kick,
        };
        // All are asked before the first is waited for, so a silent one delays nobody.
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|node| {
                let (who, capability) = (who.clone(), capability);
                let question = Question::Kick { who, keep_out_ms };
                let pending = self.fleet.ask(&node, capability, question);
                (node, pending)
            })
            .collect();
        let mut answers = Vec::new();
        for (node, pending) in asked {
            let answer = match pending {
                Ok(pending) => self.fleet.answer(pending).await,
                Err(why) => Err(why),
            };
            answers.push(answer_of(&node, answer));
        }
        Ok(Response::new(NodeAnswers { answers }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<NodeAnswers>, Status> {
        let caller = self.gate.caller(&request, Role::Operator)?;
        let request = request.into_inner();
        let node = self.member(&name(&request.node)?)?;
        self.fleet
            .can(&node, Capability::Drain)
            .map_err(Status::failed_precondition)?;
        let action = if request.undo {
            "node.undrain"
        } else {
            "node.drain"
        };
        let within = match (request.undo, request.within_ms) {
            (true, _) => String::new(),
            (false, None) => "within the node's own time".to_owned(),
            (false, Some(millis)) => format!("within {millis} ms"),
        };
        let what = format!("node {node}");
        self.note(&caller, action, what, within).await?;
        let question = Question::Drain {
            within_us: request.within_ms.map(|millis| millis.saturating_mul(1000)),
            undo: request.undo,
        };
        let pending = self.fleet.ask(&node, Capability::Drain, question);
        let pending = pending.map_err(Status::failed_precondition)?;
        let answer = self.fleet.answer(pending).await;
        Ok(Response::new(NodeAnswers {
            answers: vec![answer_of(&node, answer)],
        }))
    }

    async fn remove(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Admin)?;
        let node = name(&request.into_inner().node)?;
        let audit = caller.audit("node.remove", format!("node {node}"));
        let removed = self.fleet.remove(node, audit).await;
        removed.map_err(|error| status(&error))?;
        Ok(Response::new(RemoveNodeResponse {}))
    }
}

impl Desk {
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    fn member(&self, name: &Name) -> Result<Name, Status> {
        let is_member = self.fleet.has(name);
        is_member
            .then(|| name.clone())
            .ok_or_else(|| no_such_node(name))
    }

    async fn note(
        &self,
        caller: &Caller,
        action: &'static str,
        what: String,
        after: String,
    ) -> Result<(), Status> {
        let mut audit = caller.audit(action, what);
        audit.after = after;
        let noted = self.gate.store().note(audit).await;
        noted.map_err(|error| status(&error))
    }
}

fn no_such_node(name: &Name) -> Status {
    Status::not_found(format!("there is no node {name}"))
}

#[allow(clippy::result_large_err)] // as above
fn name(text: &str) -> Result<Name, Status> {
    // What is no name can be no member's.
    Name::parse(text).ok_or_else(|| Status::not_found("there is no node of such a name"))
}

#[allow(clippy::result_large_err)] // as above
fn names(texts: &[String]) -> Result<Vec<Name>, Status> {
    texts.iter().map(|text| name(text)).collect()
}

/// Whose sessions, for the node and in words.
#[allow(clippy::result_large_err)] // as above
fn who(who: Option<kick_request::Who>) -> Result<(v1::kick::Who, String), Status> {
    let (kind, text) = match &who {
        Some(kick_request::Who::ClientId(id)) => ("client id", id),
        Some(kick_request::Who::Username(user)) => ("user", user),
        None => ("", &String::new()),
    };
    if text.is_empty() || text.len() > WHO_BYTES_MAX {
        return Err(Status::invalid_argument(
            "name a client id or a user, of 1 to 65535 bytes",
        ));
    }
    let shown: String = text.chars().take(WHO_SHOWN_CHARS_MAX).collect();
    let what = format!("{kind} `{}`", shown.escape_debug());
    let who = match who {
        Some(kick_request::Who::Username(user)) => v1::kick::Who::Username(user),
        Some(kick_request::Who::ClientId(id)) => v1::kick::Who::ClientId(id),
        None => return Err(Status::invalid_argument("name a client id or a user")),
    };
    Ok((who, what))
}

fn answer_of(node: &Name, answer: Result<Answer, String>) -> NodeAnswer {
    let node = node.as_str().to_owned();
    let (sessions, error) = match answer {
        Ok(Answer::Done(done)) => (done.sessions, answers::line(done.error)),
        Ok(Answer::Sessions(_) | Answer::Rules(_) | Answer::Denials(_)) => {
            (0, "the node answered something else".to_owned())
        }
        Err(why) => (0, why),
    };
    NodeAnswer {
        node,
        sessions,
        error,
    }
}
