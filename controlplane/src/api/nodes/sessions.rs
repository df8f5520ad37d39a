//! Pages of sessions across nodes: in the order of names, from where the page before ended.
//!
//! A cursor is `<node>` (from its first session on) or `<node>/<the node's own cursor>`.

use sluice_proto::control::v1::{NodeAnswer, NodeSession, SessionsRequest, SessionsResponse};
use sluice_proto::v1::SessionPage;
use tokio::time::Instant;
use tonic::Status;

use super::{WHO_BYTES_MAX, answers, name};
use crate::domain::Name;
use crate::fleet::{Answer, Capability, Fleet, Question};

/// Sessions of a page unless said otherwise, and at most.
const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1000;
/// Longest cursor that is taken, and of a node that is passed on.
const CURSOR_BYTES_MAX: usize = 4096;
/// Bytes of sessions in a page, nodes' messages being bounded too: less than what clients take as one message.
const PAGE_BYTES_MAX: usize = 2 << 20;

/// A request, checked.
pub(super) struct Wish {
    /// Only this one.
    pub(super) node: Option<Name>,
    client_id: Option<String>,
    username: Option<String>,
    limit: u32,
    from: Option<Cursor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    node: Name,
    after: Option<String>,
}

impl Cursor {
    fn read(text: &str) -> Option<Self> {
        let (node, after) = match text.split_once('/') {
            Some((node, after)) => (node, Some(after.to_owned())),
            None => (text, None),
        };
        let node = Name::parse(node)?;
        (text.len() <= CURSOR_BYTES_MAX).then_some(Self { node, after })
    }

    fn write(&self) -> String {
        match &self.after {
            Some(after) => format!("{}/{after}", self.node),
            None => self.node.as_str().to_owned(),
        }
    }
}

impl Wish {
    /// Checks it.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    pub(super) fn read(request: SessionsRequest) -> Result<Self, Status> {
        let limit = request.limit.unwrap_or(LIMIT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Status::invalid_argument("`limit` must be 1 to 1000"));
        }
        let texts = [&request.client_id, &request.username];
        let is_long = |text: &&Option<String>| {
            let text = text.as_ref();
            text.is_some_and(|text| text.len() > WHO_BYTES_MAX)
        };
        if texts.iter().any(is_long) {
            return Err(Status::invalid_argument(
                "`client_id` and `username` have at most 65535 bytes",
            ));
        }
        let node = request.node.as_deref().map(name).transpose()?;
        let no_cursor = || Status::invalid_argument("`after` is no cursor of this list");
        let from = match request.after {
            None => None,
            Some(after) => Some(Cursor::read(&after).ok_or_else(no_cursor)?),
        };
        let is_others = |from: &Cursor| node.as_ref().is_some_and(|node| *node != from.node);
        if from.as_ref().is_some_and(is_others) {
            return Err(no_cursor());
        }
        Ok(Self {
            node,
            client_id: request.client_id,
            username: request.username,
            limit,
            from,
        })
    }

    fn question(&self, after: Option<String>, taken: usize) -> Question {
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        Question::Sessions {
            after,
            limit: self.limit.saturating_sub(taken).max(1),
            client_id: self.client_id.clone(),
            username: self.username.clone(),
        }
    }
}

/// Asks node after node until the page is full, all were asked, or it takes too long.
pub(super) async fn page(fleet: &Fleet, wish: Wish) -> SessionsResponse {
    let until = Instant::now() + fleet.limits().page;
    let limit = usize::try_from(wish.limit).unwrap_or(usize::MAX);
    let mut page = SessionsResponse::default();
    let mut bytes = 0;
    let from = wish.from.as_ref().map(|cursor| &cursor.node);
    let nodes = match &wish.node {
        Some(node) => vec![node.clone()],
        None => fleet.connected(from),
    };
    for node in nodes {
        let continued = wish.from.as_ref().filter(|cursor| cursor.node == node);
        let mut after = continued.and_then(|cursor| cursor.after.clone());
        loop {
            let here = Cursor {
                node: node.clone(),
                after: after.clone(),
            };
            let is_full = page.sessions.len() >= limit || bytes >= PAGE_BYTES_MAX;
            if is_full || Instant::now() >= until {
                page.next = Some(here.write());
                return page;
            }
            let question = wish.question(after.take(), page.sessions.len());
            let of_node = match ask(fleet, &node, question).await {
                Ok(of_node) => of_node,
                Err(error) => {
                    page.failed.push(NodeAnswer {
                        node: node.as_str().to_owned(),
                        sessions: 0,
                        error,
                    });
                    break;
                }
            };
            for session in of_node.sessions {
                bytes += 64 + session.client_id.len() + session.listener.len();
                bytes += session.username.as_ref().map_or(0, String::len) + session.peer.len();
                page.sessions.push(NodeSession {
                    node: node.as_str().to_owned(),
                    session: Some(session),
                });
            }
            match of_node.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    page
}

async fn ask(fleet: &Fleet, node: &Name, question: Question) -> Result<SessionPage, String> {
    let pending = fleet.ask(node, Capability::Sessions, question)?;
    let page = match fleet.answer(pending).await? {
        Answer::Sessions(page) => page,
        Answer::Done(_) | Answer::Rules(_) | Answer::Denials(_) => {
            return Err("the node answered something else".to_owned());
        }
    };
    if !page.error.is_empty() {
        return Err(answers::line(page.error));
    }
    let next = page.next.as_ref();
    if next.is_some_and(|next| next.len() > CURSOR_BYTES_MAX / 2) {
        return Err("the node gave a cursor that is too long".to_owned());
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_being_written_out_and_others_are_refused() {
        for text in ["edge-1", "edge-1/", "edge-1/7", "a/b/c/ä"] {
            let cursor = Cursor::read(text).expect("a cursor");
            assert_eq!(cursor.write(), text);
        }
        let long = format!("a/{}", "x".repeat(CURSOR_BYTES_MAX));
        for text in ["", "/", "/7", "ä", "a b/1", &long] {
            assert_eq!(Cursor::read(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_request_beyond_its_bounds_is_refused() {
        let good = SessionsRequest {
            node: Some("b".into()),
            limit: Some(1000),
            after: Some("b/3".into()),
            ..SessionsRequest::default()
        };
        assert!(Wish::read(good.clone()).is_ok());
        let cases = [
            SessionsRequest {
                limit: Some(0),
                ..good.clone()
            },
            SessionsRequest {
                limit: Some(1001),
                ..good.clone()
            },
            SessionsRequest {
                after: Some("a/3".into()),
                ..good.clone()
            },
            SessionsRequest {
                after: Some(String::new()),
                ..good.clone()
            },
            SessionsRequest {
                client_id: Some("x".repeat(65_536)),
                ..good
            },
        ];
        for case in cases {
            let refused = Wish::read(case).err().map(|status| status.code());
            assert_eq!(refused, Some(tonic::Code::InvalidArgument));
        }
    }
}
