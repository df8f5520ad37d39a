//! Questions to one node that wait for their answers: kick, drain, sessions, rules, refusals.
//!
//! Pure but for the channels on which answers leave. Bounded: a node that does not answer is asked no more.

use std::collections::VecDeque;

use foldhash::HashMap;
use sluice_proto::v1::{self, to_node};
use tokio::sync::oneshot;

/// Questions that wait for an answer, of one node.
pub(super) const REQUESTS_MAX: usize = 16;

/// What is asked. The number is filled in here.
#[derive(Clone, Debug)]
pub enum Question {
    /// End sessions.
    Kick {
        /// Whose.
        who: v1::kick::Who,
        /// And keep these clients out for so long; 0 lets them in again.
        keep_out_ms: Option<u64>,
    },
    /// Out of service, or back.
    Drain {
        /// By when.
        within_us: Option<u64>,
        /// Back.
        undo: bool,
    },
    /// List sessions.
    Sessions {
        /// Where to go on.
        after: Option<String>,
        /// At most.
        limit: u32,
        /// Only this one.
        client_id: Option<String>,
        /// Only this one's.
        username: Option<String>,
    },
    /// List rules with their counts.
    Rules {
        /// Where to go on.
        behind: Option<v1::RulePlace>,
        /// At most.
        limit: u32,
        /// Only those in shadow.
        only_shadow: bool,
    },
    /// List recent refusals.
    Denials {
        /// Where to go on; `None`: the newest.
        after: Option<String>,
        /// At most.
        limit: u32,
        /// Only this one's.
        user: Option<String>,
        /// Only this one.
        client_id: Option<String>,
        /// Only from there.
        address: Option<String>,
        /// Only for this reason, or kind of reasons.
        reason: Option<String>,
    },
}

/// What a node answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To a kick or a drain.
    Done(v1::Done),
    /// To a list.
    Sessions(v1::SessionPage),
    /// To a list of rules.
    Rules(v1::RulePage),
    /// To a list of refusals.
    Denials(v1::DenialPage),
}

/// A question and where its answer goes.
pub struct Command {
    /// What.
    pub question: Question,
    /// Dropped when there will be none.
    pub answer: oneshot::Sender<Answer>,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Requests {
    last: u64,
    to_send: VecDeque<to_node::Message>,
    waiting: HashMap<u64, Command>,
}

impl Requests {
    /// True exactly when one more may be asked. Forgets those that nobody waits for.
    pub(super) fn has_room(&mut self) -> bool {
        self.waiting
            .retain(|_, command| !command.answer.is_closed());
        self.waiting.len() < REQUESTS_MAX && self.to_send.len() < REQUESTS_MAX
    }

    /// One more. Without room it is dropped, which its asker is told.
    pub(super) fn ask(&mut self, command: Command) {
        if !self.has_room() {
            return;
        }
        self.last += 1;
        self.to_send
            .push_back(command.question.clone().message(self.last));
        self.waiting.insert(self.last, command);
    }

    /// True exactly when a message waits to be sent.
    pub(super) fn has_message(&self) -> bool {
        !self.to_send.is_empty()
    }

    /// The next message.
    pub(super) fn next_message(&mut self) -> Option<to_node::Message> {
        self.to_send.pop_front()
    }

    /// An answer. One that nobody waits for, or of the wrong kind, is passed over.
    pub(super) fn take(&mut self, answer: Answer) {
        let request = match &answer {
            Answer::Done(done) => done.request,
            Answer::Sessions(page) => page.request,
            Answer::Rules(page) => page.request,
            Answer::Denials(page) => page.request,
        };
        let fits = |command: &Command| command.question.is_answered_by(&answer);
        if self.waiting.get(&request).is_some_and(fits)
            && let Some(command) = self.waiting.remove(&request)
        {
            // The asker may have gone away.
            let _ = command.answer.send(answer);
        }
    }
}

impl Question {
    fn is_answered_by(&self, answer: &Answer) -> bool {
        match self {
            Self::Kick { .. } | Self::Drain { .. } => matches!(answer, Answer::Done(_)),
            Self::Sessions { .. } => matches!(answer, Answer::Sessions(_)),
            Self::Rules { .. } => matches!(answer, Answer::Rules(_)),
            Self::Denials { .. } => matches!(answer, Answer::Denials(_)),
        }
    }

    fn message(self, request: u64) -> to_node::Message {
        match self {
            Self::Kick { who, keep_out_ms } => to_node::Message::Kick(v1::Kick {
                request,
                who: Some(who),
                keep_out_ms,
            }),
            Self::Drain { within_us, undo } => to_node::Message::Drain(v1::Drain {
                request,
                within_us,
                undo,
            }),
            Self::Sessions {
                after,
                limit,
                client_id,
                username,
            } => to_node::Message::ListSessions(v1::ListSessions {
                request,
                after,
                limit,
                client_id,
                username,
            }),
            Self::Rules {
                behind,
                limit,
                only_shadow,
            } => to_node::Message::ListRules(v1::ListRules {
                request,
                behind,
                limit,
                only_shadow,
            }),
            Self::Denials {
                after,
                limit,
                user,
                client_id,
                address,
                reason,
            } => to_node::Message::ListDenials(v1::ListDenials {
                request,
                after,
                limit,
                user,
                client_id,
                address,
                reason,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain() -> (Command, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let question = Question::Drain {
            within_us: None,
            undo: false,
        };
        (Command { question, answer }, receiver)
    }

    fn done(request: u64) -> Answer {
        Answer::Done(v1::Done {
            request,
            ..v1::Done::default()
        })
    }

    #[test]
    fn answers_find_their_questions_and_others_are_passed_over() {
        let mut requests = Requests::default();
        let (first, mut first_answer) = drain();
        let (second, mut second_answer) = drain();
        requests.ask(first);
        requests.ask(second);
        assert!(matches!(
            requests.next_message(),
            Some(to_node::Message::Drain(v1::Drain { request: 1, .. }))
        ));
        requests.take(done(2));
        assert!(second_answer.try_recv().is_ok());
        requests.take(done(7));
        requests.take(Answer::Sessions(v1::SessionPage {
            request: 1,
            ..v1::SessionPage::default()
        }));
        assert!(first_answer.try_recv().is_err(), "not its answer");
        requests.take(done(1));
        assert!(first_answer.try_recv().is_ok());
    }

    #[test]
    fn a_node_that_does_not_answer_is_asked_no_more_until_someone_gives_up() {
        let mut requests = Requests::default();
        let mut askers: Vec<_> = (0..REQUESTS_MAX)
            .map(|_| {
                let (command, asker) = drain();
                requests.ask(command);
                requests.next_message();
                asker
            })
            .collect();
        assert!(!requests.has_room());
        let (command, mut refused) = drain();
        requests.ask(command);
        assert!(matches!(
            refused.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        ));
        askers.pop();
        assert!(requests.has_room());
    }
}
