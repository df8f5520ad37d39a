//! Bounded queues between threads, each with a wake.
//!
//! Owns no meaning: what is sent is in [`super::message`]. Never blocks: a full queue tells the sender at once and gives
//! the message back, so that every sender has a defined answer to "full".
//!
//! # Invariants
//!
//! - **Nothing is lost in silence.** [`Post::send`] either puts the message in the queue or returns it.
//! - **A message sent is a message seen.** The wake comes after the message is in the queue; a reader that sets its waker
//!   late ([`Inbox::set_waker`]) must look into the queue once after that.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};

use crate::ring::Wake;

/// The sending end. Cheap to clone.
pub struct Post<T> {
    sender: SyncSender<T>,
    waker: Arc<OnceLock<Arc<dyn Wake>>>,
}

/// The receiving end; one owner.
pub struct Inbox<T> {
    receiver: Receiver<T>,
    waker: Arc<OnceLock<Arc<dyn Wake>>>,
}

/// Why a message was not queued; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Undelivered<T> {
    /// The queue is full: try again later, or take the fallback.
    Full(T),
    /// The reader is gone for good.
    Gone(T),
}

/// A queue for at most `capacity` messages.
pub fn mailbox<T>(capacity: usize) -> (Post<T>, Inbox<T>) {
    let (sender, receiver) = sync_channel(capacity);
    let waker = Arc::new(OnceLock::new());
    let post = Post {
        sender,
        waker: Arc::clone(&waker),
    };
    (post, Inbox { receiver, waker })
}

impl<T> Post<T> {
    /// Queues the message and wakes the reader.
    pub fn send(&self, message: T) -> Result<(), Undelivered<T>> {
        match self.sender.try_send(message) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(message)) => {
                self.wake();
                Err(Undelivered::Full(message))
            }
            Err(TrySendError::Disconnected(message)) => Err(Undelivered::Gone(message)),
        }
    }

    /// Wakes the reader without a message (after a swap of the policy pointer).
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            waker: Arc::clone(&self.waker),
        }
    }
}

impl<T> Inbox<T> {
    /// How senders wake this reader. The first call counts; look into the queue once after it.
    pub fn set_waker(&self, waker: Arc<dyn Wake>) {
        // A second waker would mean a second reader, which the type does not allow; the first one stays valid.
        let _ = self.waker.set(waker);
    }

    /// The next message, if there is one.
    pub fn take(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

impl<T> Undelivered<T> {
    /// The message that was not queued.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Gone(message) => message,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct CountingWaker(AtomicU32);

    impl Wake for CountingWaker {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_queue_gives_the_message_back() {
        let (post, inbox) = mailbox(2);
        assert_eq!(post.send(1), Ok(()));
        assert_eq!(post.send(2), Ok(()));
        assert_eq!(post.send(3), Err(Undelivered::Full(3)));
        assert_eq!(inbox.take(), Some(1));
        assert_eq!(post.send(3), Ok(()));
        assert_eq!(
            (inbox.take(), inbox.take(), inbox.take()),
            (Some(2), Some(3), None)
        );
    }

    #[test]
    fn a_gone_reader_gives_the_message_back() {
        let (post, inbox) = mailbox(1);
        drop(inbox);
        assert_eq!(post.send(7), Err(Undelivered::Gone(7)));
    }

    #[test]
    fn every_send_wakes_and_a_late_waker_loses_no_message() {
        let (post, inbox) = mailbox(4);
        assert_eq!(post.send(1), Ok(()));
        let waker = Arc::new(CountingWaker::default());
        inbox.set_waker(Arc::clone(&waker) as Arc<dyn Wake>);
        assert_eq!(inbox.take(), Some(1));
        assert_eq!(post.send(2), Ok(()));
        post.wake();
        assert_eq!(waker.0.load(Ordering::Relaxed), 2);
        assert_eq!(inbox.take(), Some(2));
    }
}
