//! Reading of the client waits: why, and what it had sent by then.
//!
//! Owns the one way in which a session takes nothing more from its client for a while: what arrives is held, in order, in
//! session memory that the shard's budget counts, and reading pauses once that is more than a few packets. Every
//! `handle_*` ends by taking up what is held, as far as nothing makes it wait again. Nothing is switched on or off: whether
//! to wait, and why, is read off the state that it is about. The broker waits in the same way, but only while the policy has
//! not said what the session is to it (`admitting.rs`).

use super::lane::{Input, Payload};
use super::{Cause, Context, Output, Phase, Rare, Session, Side};
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
    /// The session, or its SUBSCRIBE, is being judged: every turn, or the session's allowance, brings it forward.
    Share,
    /// SUBACKs of the broker: as many SUBSCRIBEs as may be remembered are under way.
    Answers,
    /// The end of the broker's PUBLISH, which has the deadline of a packet: many answers of ours wait for it.
    Boundary,
}

/// What a side sent that was not taken up.
#[derive(Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    /// The bytes before this place were taken up since.
    from: usize,
    /// When waiting began, or last came forward.
    since: Time,
    /// True exactly when this made us pause reading the side.
    is_paused: bool,
    /// True exactly when the side finished sending while something was held or judged: what it sent still counts.
    is_finished: bool,
}

impl Held {
    /// True exactly when everything was taken up.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn is_unused(&self) -> bool {
        self.is_empty() && !self.is_paused && !self.is_finished
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
        match from {
            Side::Downstream => {
                self.down.payload() == Payload::None
                    && (self.phase != Phase::Open || self.rare.is_some())
                    && self.wait().is_some()
            }
            Side::Upstream => {
                self.rare.is_some() && self.up.payload() == Payload::None && self.is_admitting()
            }
        }
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

    fn held(&mut self, from: Side) -> &mut Held {
        let rare = self.rare();
        match from {
            Side::Downstream => &mut rare.held,
            Side::Upstream => &mut rare.held_up,
        }
    }

    /// Keeps what must wait.
    pub(super) fn hold(&mut self, context: &mut Context<'_>, from: Side, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let held = self.held(from);
        held.append(context.now, bytes);
        if held.bytes.len() > HELD_BYTES_MAX {
            return self.end(context, Cause::Overload);
        }
        if held.bytes.len() > HELD_BYTES_HIGH && !held.is_paused {
            held.is_paused = true;
            let pause = Output::PauseReading(from);
            context.out.list.push(pause);
        }
    }

    /// A side finished sending. True exactly when what it sent is to be taken up first.
    pub(super) fn finishes_later(&mut self, from: Side) -> bool {
        let is_admitting = self.is_admitting();
        let has_sent = |rare: &Rare| match from {
            Side::Downstream => !rare.held.is_empty() || rare.judging.is_some(),
            Side::Upstream => false,
        };
        let is_later = is_admitting || self.rare.as_deref().is_some_and(has_sent);
        if is_later {
            self.held(from).is_finished = true;
        }
        is_later
    }

    /// Takes up what is held until it must wait again.
    pub(super) fn take_up_held(&mut self, context: &mut Context<'_>) {
        // What the broker sent may be what the client waits for.
        for from in [Side::Upstream, Side::Downstream] {
            let Some(rare) = self.rare.as_deref() else {
                return;
            };
            let is_due = match from {
                Side::Upstream => !rare.held_up.is_unused() && !self.is_admitting(),
                Side::Downstream => !rare.held.is_unused() && self.wait().is_none(),
            };
            if is_due {
                self.take_up(context, from);
            }
        }
    }

    fn take_up(&mut self, context: &mut Context<'_>, from: Side) {
        // It leaves its place while it is read. Until then the side could not be heard: its deadlines start again.
        let mut held = std::mem::take(self.held(from));
        match from {
            Side::Downstream => {
                self.timers.heard(context.now);
                self.down.restart(context.now);
            }
            Side::Upstream => self.up.restart(context.now),
        }
        let rest = held.bytes.get_mut(held.from..).unwrap_or_default();
        held.from += self.pump(context, from, &mut Input::held(rest));
        if self.phase == Phase::Ended {
            return;
        }
        if held.from < held.bytes.len() {
            held.since = context.now;
            *self.held(from) = held;
        } else if held.is_finished {
            self.closed(context, from);
        } else if held.is_paused {
            let resume = Output::ResumeReading(from);
            context.out.list.push(resume);
        }
    }
}
