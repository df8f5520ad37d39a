//! Reading of the client waits: why, and what it had sent by then.
//!
//! Owns the one way in which a session takes nothing more from its client for a while: what arrives is held, in order, in
//! session memory that the shard's budget counts, and reading pauses once that is more than a few packets. Every
//! `handle_*` ends by taking up what is held, as far as nothing makes it wait again. Nothing is switched on or off: whether
//! to wait, and why, is read off the state that it is about.

use super::lane::{Input, Payload};
use super::{Cause, Context, Output, Phase, Session, Side};
use crate::clock::Time;

/// Reading the client pauses when this much is held: enough for what a client sends ahead without waiting, small beside
/// what a connection costs in the kernel.
const HELD_BYTES_HIGH: usize = 4 * 1024;

/// A session that holds more is ended. A pause takes effect after the turn, and until then the receive buffers of a whole
/// shard (4 MiB) may have been filled by one client; twice that is never reached by a client that is merely fast.
const HELD_BYTES_MAX: usize = 8 << 20;

/// Why packets of the client are not taken up. What is in the middle of a PUBLISH comes to its end all the same: its
/// payload makes no work, and what waits for a boundary would wait for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// CONNACK has not come. Every step on the way to it has a deadline.
    Opening,
    /// A SUBSCRIBE is being judged: every turn, or the session's allowance, brings it forward.
    Share,
    /// SUBACKs of the broker: as many SUBSCRIBEs as may be remembered are under way.
    Answers,
    /// The end of the broker's PUBLISH, which has the deadline of a packet: many answers of ours wait for it.
    Boundary,
}

/// What a client sent that was not taken up.
#[derive(Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    /// The bytes before this place were taken up since.
    from: usize,
    /// When waiting began, or last came forward.
    since: Time,
    /// True exactly when this made us pause reading the client.
    is_paused: bool,
    /// True exactly when the client finished sending while something was held or judged: what it sent still counts.
    is_client_finished: bool,
}

impl Held {
    /// True exactly when everything was taken up.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn is_unused(&self) -> bool {
        self.is_empty() && !self.is_paused && !self.is_client_finished
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    fn append(&mut self, now: Time, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.since = now;
        }
        self.bytes.drain(..self.from);
        self.from = 0;
        self.bytes.extend_from_slice(bytes);
    }
}

impl Session {
    /// Why packets of the client are not taken up; `None` when they are.
    pub(super) fn wait(&self) -> Option<Wait> {
        match self.phase {
            Phase::Connecting | Phase::Ended => None,
            Phase::Authenticating | Phase::Dialling => Some(Wait::Opening),
            Phase::Connack if !self.takes_auth() => Some(Wait::Opening),
            Phase::Connack | Phase::Open => self.rare.as_ref()?.wait(),
        }
    }

    /// True exactly when the next packet of `from` must wait.
    #[inline]
    pub(super) fn must_wait(&self, from: Side) -> bool {
        from == Side::Downstream
            && self.down.payload() == Payload::None
            && (self.phase != Phase::Open || self.rare.is_some())
            && self.wait().is_some()
    }

    /// Since when the client waits for answers of the broker, while it has sent more.
    pub(super) fn waits_for_answers_since(&self) -> Option<Time> {
        let rare = self.rare.as_ref()?;
        (!rare.held.is_empty() && self.wait() == Some(Wait::Answers)).then_some(rare.held.since)
    }

    /// The broker could not be heard until now: it has all of the time again.
    pub(super) fn restart_waiting(&mut self, now: Time) {
        if let Some(rare) = self.rare.as_mut() {
            rare.held.since = now;
        }
    }

    /// True exactly when something of the client was received and not taken up.
    pub(super) fn is_holding(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.held.is_empty())
    }

    /// Keeps what must wait.
    pub(super) fn hold(&mut self, context: &mut Context<'_>, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let held = &mut self.rare().held;
        held.append(context.now, bytes);
        if held.bytes.len() > HELD_BYTES_MAX {
            return self.end(context, Cause::Overload);
        }
        if held.bytes.len() > HELD_BYTES_HIGH && !held.is_paused {
            held.is_paused = true;
            let pause = Output::PauseReading(Side::Downstream);
            context.out.list.push(pause);
        }
    }

    /// The client finished sending. True exactly when what it sent is to be taken up first.
    pub(super) fn finishes_later(&mut self) -> bool {
        match self.rare.as_mut() {
            Some(rare) if !rare.held.is_empty() || rare.judging.is_some() => {
                rare.held.is_client_finished = true;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes up what is held until it must wait again.
    pub(super) fn take_up_held(&mut self, context: &mut Context<'_>) {
        let is_unused = self.rare.as_ref().is_none_or(|rare| rare.held.is_unused());
        if is_unused || self.wait().is_some() {
            return;
        }
        // It leaves its place while it is read. Until then the client could not be heard: its deadlines start again.
        let mut held = std::mem::take(&mut self.rare().held);
        self.timers.heard(context.now);
        self.down.restart(context.now);
        let rest = held.bytes.get_mut(held.from..).unwrap_or_default();
        held.from += self.pump(context, Side::Downstream, &mut Input::held(rest));
        if self.phase == Phase::Ended {
            return;
        }
        if held.from < held.bytes.len() {
            held.since = context.now;
            self.rare().held = held;
        } else if held.is_client_finished {
            self.end(context, Cause::ClientGone);
        } else if held.is_paused {
            let resume = Output::ResumeReading(Side::Downstream);
            context.out.list.push(resume);
        }
    }
}
