//! Recent refusals across nodes: an answer with the newest, and for those who follow further ones as refusals come.
//!
//! Nodes keep and filter them; they are asked some at a time, and what they say is put in order of time. Bounded: an answer
//! in lines, an asker who does not read by one answer that waits, and those who follow share the places of those who watch.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use sluice_proto::control::v1::{DenialsRequest, DenialsResponse, NodeAnswer, NodeDenial};
use sluice_proto::v1::DenialPage;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;
use tonic::Status;

use super::{WHO_BYTES_MAX, WHO_SHOWN_CHARS_MAX, answers, name};
use crate::domain::Name;
use crate::fleet::{Answer, Capability, Fleet, Question};

/// Lines of the first answer unless said otherwise, and at most.
const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 500;
/// Lines that a node is asked for by one who follows, and those of a further answer. A line has at most 4 KiB, so an answer stays
/// below what clients take as one message.
const FOLLOW_LINES: u32 = 250;
/// Nodes asked at once.
const NODES_AT_ONCE: usize = 32;
/// Between two questions of one who follows.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest name of a reason that is passed on.
const REASON_BYTES_MAX: usize = 64;
/// Longest cursor of a node that is kept: a number for each of its shards.
const CURSOR_BYTES_MAX: usize = 32 << 10;

/// A request, checked.
#[derive(Debug)]
pub(super) struct Wish {
    /// Only this one.
    pub(super) node: Option<Name>,
    /// Goes on.
    pub(super) follows: bool,
    user: Option<String>,
    client_id: Option<String>,
    address: Option<IpAddr>,
    reason: Option<String>,
    limit: u32,
}

impl Wish {
    /// Checks it.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    pub(super) fn read(request: DenialsRequest) -> Result<Self, Status> {
        let limit = request.limit.unwrap_or(LIMIT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Status::invalid_argument("`limit` must be 1 to 500"));
        }
        let is_longer = |text: &Option<String>, max| {
            let text = text.as_ref();
            text.is_some_and(|text| text.len() > max)
        };
        if [&request.user, &request.client_id]
            .into_iter()
            .any(|text| is_longer(text, WHO_BYTES_MAX))
        {
            return Err(Status::invalid_argument(
                "`client_id` and `user` have at most 65535 bytes",
            ));
        }
        if is_longer(&request.reason, REASON_BYTES_MAX) {
            return Err(Status::invalid_argument("there is no such reason"));
        }
        let address = request.address.as_deref().map(str::parse).transpose();
        Ok(Self {
            node: request.node.as_deref().map(name).transpose()?,
            follows: request.follow,
            user: request.user,
            client_id: request.client_id,
            address: address.map_err(|_| {
                Status::invalid_argument("`address` must be an IP address, without a port")
            })?,
            reason: request.reason,
            limit,
        })
    }

    /// In words, for the audit log. Of a user only the length: people look for tokens that devices send as names.
    pub(super) fn words(&self) -> String {
        let shown = |text: &String| {
            let text: String = text.chars().take(WHO_SHOWN_CHARS_MAX).collect();
            text.escape_debug().to_string()
        };
        let user = self.user.as_ref();
        let words = [
            user.map(|user| format!("a user of {} bytes", user.len())),
            self.client_id
                .as_ref()
                .map(|id| format!("client id `{}`", shown(id))),
            self.address.map(|address| format!("address {address}")),
            self.reason
                .as_ref()
                .map(|reason| format!("reason `{}`", shown(reason))),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        if words.is_empty() {
            "of all clients".to_owned()
        } else {
            format!("of {}", words.join(", "))
        }
    }

    fn question(&self, after: Option<&String>) -> Question {
        Question::Denials {
            after: after.cloned(),
            limit: if after.is_some() {
                FOLLOW_LINES
            } else {
                self.limit
            },
            user: self.user.clone(),
            client_id: self.client_id.clone(),
            address: self.address.map(|address| address.to_string()),
            reason: self.reason.clone(),
        }
    }
}

/// The answers to one call.
pub(super) struct Answers {
    answers: mpsc::Receiver<Result<DenialsResponse, Status>>,
}

impl Answers {
    /// Takes a place when it goes on.
    #[allow(clippy::result_large_err)] // as above
    pub(super) fn start(fleet: &Fleet, wish: Wish) -> Result<Self, Status> {
        let place = match (wish.follows, fleet.watcher()) {
            (true, None) => {
                let too_many =
                    "too many watch or follow already; end one, or ask from time to time";
                return Err(Status::resource_exhausted(too_many));
            }
            (true, place) => place,
            (false, _) => None,
        };
        let (out, answers) = mpsc::channel(1);
        let fleet = fleet.clone();
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = Asking::new(&fleet, &wish, &out).run() => {}
                () = out.closed() => {}
                () = fleet.closed() => {
                    let stops = Status::unavailable("the control plane stops");
                    // One who does not read is told by the end of the connection.
                    let _ = out.try_send(Err(stops));
                }
            }
        });
        Ok(Self { answers })
    }
}

impl Stream for Answers {
    type Item = Result<DenialsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_recv(context)
    }
}

/// The asker is gone.
struct Gone;

struct Asking<'a> {
    fleet: &'a Fleet,
    wish: &'a Wish,
    out: &'a mpsc::Sender<Result<DenialsResponse, Status>>,
    /// Where each node goes on.
    after: BTreeMap<Name, String>,
    /// Nodes of which it was said that they do not answer, and why.
    troubled: BTreeMap<Name, String>,
}

impl<'a> Asking<'a> {
    fn new(
        fleet: &'a Fleet,
        wish: &'a Wish,
        out: &'a mpsc::Sender<Result<DenialsResponse, Status>>,
    ) -> Self {
        Self {
            fleet,
            wish,
            out,
            after: BTreeMap::new(),
            troubled: BTreeMap::new(),
        }
    }

    async fn run(mut self) {
        if self.first().await.is_err() || !self.wish.follows {
            return;
        }
        loop {
            sleep(PAUSE).await;
            if self.further().await.is_err() {
                return;
            }
        }
    }

    fn nodes(&self) -> Vec<Name> {
        match &self.wish.node {
            Some(node) => vec![node.clone()],
            None => self.fleet.connected(None),
        }
    }

    /// The newest of all.
    async fn first(&mut self) -> Result<(), Gone> {
        let until = Instant::now() + self.fleet.limits().page;
        let limit = self.wish.limit as usize;
        let mut answer = DenialsResponse::default();
        for nodes in self.nodes().chunks(NODES_AT_ONCE) {
            self.ask(nodes, until, &mut answer).await;
            in_order(&mut answer);
            let beyond = answer.denials.len().saturating_sub(limit);
            answer.denials.drain(..beyond);
            answer.left_off += beyond as u64;
        }
        self.send(answer).await
    }

    /// What came since, in as many answers as it takes; none when there is nothing to say.
    async fn further(&mut self) -> Result<(), Gone> {
        let until = Instant::now() + self.fleet.limits().page;
        for nodes in self.nodes().chunks(NODES_AT_ONCE) {
            let mut answer = DenialsResponse::default();
            self.ask(nodes, until, &mut answer).await;
            in_order(&mut answer);
            while answer.denials.len() > FOLLOW_LINES as usize {
                let rest = answer.denials.split_off(FOLLOW_LINES as usize);
                let denials = std::mem::replace(&mut answer.denials, rest);
                let piece = DenialsResponse {
                    denials,
                    ..DenialsResponse::default()
                };
                self.send(piece).await?;
            }
            if answer != DenialsResponse::default() {
                self.send(answer).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, answer: DenialsResponse) -> Result<(), Gone> {
        self.out.send(Ok(answer)).await.map_err(|_| Gone)
    }

    /// Asks these nodes at once, and adds what they say.
    async fn ask(&mut self, nodes: &[Name], until: Instant, answer: &mut DenialsResponse) {
        let asked: Vec<_> = nodes
            .iter()
            .map(|node| {
                if Instant::now() >= until {
                    return (
                        node,
                        Err("it was not asked: others took too long".to_owned()),
                    );
                }
                let question = self.wish.question(self.after.get(node));
                (node, self.fleet.ask(node, Capability::Denials, question))
            })
            .collect();
        for (node, pending) in asked {
            let said = match pending {
                Ok(pending) => self.fleet.answer(pending).await,
                Err(why) => Err(why),
            };
            match said {
                Ok(Answer::Denials(page)) => self.take(node, page, answer),
                Ok(Answer::Done(_) | Answer::Sessions(_) | Answer::Rules(_)) => {
                    self.trouble(node, "the node answered something else".to_owned(), answer);
                }
                Err(why) => self.trouble(node, why, answer),
            }
        }
    }

    fn take(&mut self, node: &Name, page: DenialPage, answer: &mut DenialsResponse) {
        if !page.next.is_empty() && page.next.len() <= CURSOR_BYTES_MAX {
            self.after.insert(node.clone(), page.next);
        }
        answer.left_off += page.left_off;
        answer.lost += page.lost;
        let of_node = |denial| NodeDenial {
            node: node.as_str().to_owned(),
            denial: Some(denial),
        };
        answer.denials.extend(page.denials.into_iter().map(of_node));
        if page.error.is_empty() {
            self.troubled.remove(node);
        } else {
            self.trouble(node, answers::line(page.error), answer);
        }
    }

    /// Said once, until it is otherwise.
    fn trouble(&mut self, node: &Name, error: String, answer: &mut DenialsResponse) {
        if self.troubled.get(node) == Some(&error) {
            return;
        }
        self.troubled.insert(node.clone(), error.clone());
        answer.failed.push(NodeAnswer {
            node: node.as_str().to_owned(),
            sessions: 0,
            error,
        });
    }
}

fn in_order(answer: &mut DenialsResponse) {
    let at = |line: &NodeDenial| line.denial.as_ref().map_or(0, |denial| denial.unix_ms);
    answer.denials.sort_by_key(at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_beyond_its_bounds_is_refused() {
        let good = DenialsRequest {
            node: Some("edge".into()),
            address: Some("2001:db8::1".into()),
            reason: Some("no_rule".into()),
            limit: Some(500),
            ..DenialsRequest::default()
        };
        assert!(Wish::read(good.clone()).is_ok());
        let cases = [
            DenialsRequest {
                limit: Some(0),
                ..good.clone()
            },
            DenialsRequest {
                limit: Some(501),
                ..good.clone()
            },
            DenialsRequest {
                address: Some("10.0.0.1:1883".into()),
                ..good.clone()
            },
            DenialsRequest {
                reason: Some("x".repeat(65)),
                ..good.clone()
            },
            DenialsRequest {
                user: Some("x".repeat(65_536)),
                ..good
            },
        ];
        for case in cases {
            let refused = Wish::read(case).err().map(|status| status.code());
            assert_eq!(refused, Some(tonic::Code::InvalidArgument));
        }
    }

    #[test]
    fn the_audit_log_is_told_what_was_asked_but_no_user_name() {
        let wish = |request| Wish::read(request).expect("a good request").words();
        assert_eq!(wish(DenialsRequest::default()), "of all clients");
        let words = wish(DenialsRequest {
            user: Some("eyJ.token".into()),
            client_id: Some("a\nb".into()),
            address: Some("10.0.0.1".into()),
            reason: Some("limits".into()),
            ..DenialsRequest::default()
        });
        let expected = "of a user of 9 bytes, client id `a\\nb`, address 10.0.0.1, reason `limits`";
        assert_eq!(words, expected);
    }
}
