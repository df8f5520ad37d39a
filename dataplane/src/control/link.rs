//! The control thread's end of each shard's mailbox: nothing sent is lost while the shard lives.
//!
//! A shard's mailbox is small. What does not fit waits here, in order, and is sent again on the next tick. Usable from
//! any thread (password threads answer through it), never blocks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::node::{Post, ShardId, ToShard, Undelivered};

/// Messages that wait outside of the mailbox beyond the answers that parked sessions wait for; a shard that leaves more
/// than this lying is stuck, and readiness says so.
const CONTROL_MESSAGES_MAX: usize = 1024;

/// The way to one shard. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    /// Which shard.
    pub shard: ShardId,
    post: Post<ToShard>,
    waiting: Arc<Mutex<VecDeque<ToShard>>>,
    waiting_max: usize,
}

/// The shard takes nothing any more, or has left too much lying; the message is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard {} takes no messages", .0.0)]
pub struct Stuck(pub ShardId);

impl Link {
    /// `sessions_max` bounds the password answers that can be under way at once.
    pub fn new(shard: ShardId, post: Post<ToShard>, sessions_max: usize) -> Self {
        Self {
            shard,
            post,
            waiting: Arc::default(),
            waiting_max: sessions_max.saturating_add(CONTROL_MESSAGES_MAX),
        }
    }

    /// Sends, or keeps the message for the next [`Link::flush`].
    pub fn send(&self, message: ToShard) -> Result<(), Stuck> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            match self.post.send(message) {
                Ok(()) => return Ok(()),
                Err(Undelivered::Gone(_)) => return Err(Stuck(self.shard)),
                Err(Undelivered::Full(message)) => waiting.push_back(message),
            }
            return Ok(());
        }
        if waiting.len() >= self.waiting_max {
            return Err(Stuck(self.shard));
        }
        waiting.push_back(message);
        Ok(())
    }

    /// Sends what waits, as far as it fits. True when nothing is left.
    pub fn flush(&self) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(message) = waiting.pop_front() {
            match self.post.send(message) {
                Ok(()) => {}
                Err(Undelivered::Full(message)) => {
                    waiting.push_front(message);
                    return false;
                }
                Err(Undelivered::Gone(_)) => waiting.clear(),
            }
        }
        true
    }

    /// Wakes the shard without a message, after the policy pointer was swapped.
    pub fn wake(&self) {
        self.post.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Inbox, mailbox};

    fn link(capacity: usize, sessions_max: usize) -> (Link, Inbox<ToShard>) {
        let (post, inbox) = mailbox(capacity);
        (Link::new(ShardId(3), post, sessions_max), inbox)
    }

    fn report(request: u64) -> ToShard {
        ToShard::Report { request }
    }

    fn taken(inbox: &Inbox<ToShard>) -> Vec<u64> {
        std::iter::from_fn(|| inbox.take())
            .map(|message| {
                let ToShard::Report { request } = message else {
                    panic!("only reports are sent here: {message:?}");
                };
                request
            })
            .collect()
    }

    #[test]
    fn what_does_not_fit_waits_in_order() {
        let (link, inbox) = link(2, 0);
        for request in 0..5 {
            assert_eq!(link.send(report(request)), Ok(()));
        }
        assert_eq!(taken(&inbox), [0, 1]);
        assert_eq!(link.send(report(5)), Ok(()), "nothing overtakes what waits");
        assert!(!link.flush());
        assert_eq!(taken(&inbox), [2, 3]);
        assert!(link.flush());
        assert_eq!(taken(&inbox), [4, 5]);
    }

    #[test]
    fn a_shard_that_takes_nothing_is_stuck_at_the_bound() {
        let (link, _inbox) = link(1, 2);
        let bound = 1 + 2 + CONTROL_MESSAGES_MAX as u64;
        for request in 0..bound {
            assert_eq!(link.send(report(request)), Ok(()));
        }
        assert_eq!(link.send(report(bound)), Err(Stuck(ShardId(3))));
    }

    #[test]
    fn a_shard_that_is_gone_is_stuck_at_once() {
        let (link, inbox) = link(1, 0);
        drop(inbox);
        assert_eq!(link.send(report(0)), Err(Stuck(ShardId(3))));
        assert!(link.flush());
    }
}
