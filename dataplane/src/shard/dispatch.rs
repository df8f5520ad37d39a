//! Event to session, one match; a session's outputs to operations; and at the end of a turn one send for each socket.
//!
//! Owns the rule that outputs are carried out in order and to the end before the session is called again.

use crate::clock::Time;
use crate::metrics::Counter;
use crate::ring::{End, Event, Lease, Piece, Ring, SocketId};
use crate::session::{AuthOutcome, Cause, Context, Dialled, Output, Session, Side};

use super::backlog::{After, Backlog};
use super::leg::{Chain, Closing, Reading};
use super::slots::Open;
use super::{Core, Owner, Turn};

/// Memory for written bytes that is kept from call to call: more than any packet of the proxy's own takes.
const OUTPUT_BYTES_KEPT: usize = 256 << 10;

/// What an output makes the shard tell the session next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    Authenticated(AuthOutcome),
    Dialled(Dialled),
    Held(Side, bool),
    KeptOut,
}

/// Counts bytes from this side.
fn received_counter(side: Side) -> Counter {
    match side {
        Side::Downstream => Counter::ReceivedDownstream,
        Side::Upstream => Counter::ReceivedUpstream,
    }
}

/// Counts bytes to this side.
fn sent_counter(side: Side) -> Counter {
    match side {
        Side::Downstream => Counter::SentDownstream,
        Side::Upstream => Counter::SentUpstream,
    }
}

impl<R: Ring> Core<R> {
    pub(super) fn dispatch(&mut self, turn: Turn<'_>, event: Event) {
        match event {
            Event::Received { socket, lease } => self.received(turn, socket, lease),
            Event::SendShort { socket, rest } => self.send_short(turn, socket, rest),
            Event::SentOwned {
                socket,
                buffer,
                taken,
            } => self.sent_owned(turn, socket, buffer, taken),
            Event::SendFailed { socket, errno: _ } => self.leg_failed(turn, socket),
            Event::Ended { socket, end } => self.ended(turn, socket, end),
            Event::Paused { socket } => self.paused(socket),
            Event::Connected { socket } => self.upstream_connected(turn, socket),
            Event::ConnectFailed { socket, errno } => self.upstream_failed(turn, socket, errno),
            Event::Accepted {
                listener,
                socket,
                peer,
            } => self.accepted(turn, listener, socket, peer),
            Event::AcceptFailed { .. } => self.counters.add(Counter::AcceptFailed, 1),
            // The mailbox is looked at in every turn.
            Event::Woken => {}
        }
    }

    /// The slot and side of a socket; `None` for one that is not ours any more.
    pub(super) fn owner(&self, socket: SocketId) -> Option<(u32, Side)> {
        let owner = *self.owners.get(socket.index as usize)?;
        let open = self.slots.get(owner.slot)?;
        let leg = match owner.side {
            Side::Downstream => &open.down,
            Side::Upstream => &open.up,
        };
        (leg.socket == Some(socket)).then_some((owner.slot, owner.side))
    }

    pub(super) fn set_owner(&mut self, socket: SocketId, slot: u32, side: Side) {
        let index = socket.index as usize;
        if self.owners.len() <= index {
            let nobody = Owner {
                slot: u32::MAX,
                side,
            };
            self.owners.resize(index + 1, nobody);
        }
        if let Some(owner) = self.owners.get_mut(index) {
            *owner = Owner { slot, side };
        }
    }

    /// The hot path: bytes for a session.
    fn received(&mut self, turn: Turn<'_>, socket: SocketId, lease: Lease) {
        let Some((slot, side)) = self.owner(socket) else {
            return;
        };
        let Some(Open {
            session: Some(session),
            ..
        }) = self.slots.get_mut(slot)
        else {
            return; // closing: discarded until FIN
        };
        self.counters
            .add(received_counter(side), u64::from(lease.len));
        let bytes = self.ring.lease(lease);
        self.lent.with(turn, |context| {
            session.handle_bytes(context, side, bytes);
        });
        self.settle(turn, slot, Some(lease));
    }

    /// Calls a session, if it is there, and carries out what it wants.
    pub(super) fn call(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        call: impl FnOnce(&mut Session, &mut Context<'_>),
    ) {
        if self.ask(turn, slot, call) {
            self.settle(turn, slot, None);
        }
    }

    fn ask(
        &mut self,
        turn: Turn<'_>,
        slot: u32,
        call: impl FnOnce(&mut Session, &mut Context<'_>),
    ) -> bool {
        let Some(Open {
            session: Some(session),
            ..
        }) = self.slots.get_mut(slot)
        else {
            return false;
        };
        self.lent.with(turn, |context| call(session, context));
        true
    }

    /// Carries out the outputs of a session until it wants nothing more, then sees to reading and to its timer.
    pub(super) fn settle(&mut self, turn: Turn<'_>, slot: u32, lease: Option<Lease>) {
        let mut lease = lease;
        loop {
            let follow = self.carry_out(turn, slot, lease.take());
            let Some(follow) = follow.or_else(|| self.press(turn, slot)) else {
                break;
            };
            self.ask(turn, slot, |session, context| match follow {
                Follow::Authenticated(outcome) => session.handle_authenticated(context, outcome),
                Follow::Dialled(dialled) => session.handle_dialled(context, dialled),
                Follow::Held(side, held) => session.handle_held(context, side, held),
                Follow::KeptOut => session.handle_end(context, Cause::KeptOut),
            });
        }
        self.weigh(slot);
        self.apply_reading(slot, Side::Downstream);
        self.apply_reading(slot, Side::Upstream);
        self.schedule(turn.now, slot);
    }

    fn carry_out(&mut self, turn: Turn<'_>, slot: u32, lease: Option<Lease>) -> Option<Follow> {
        let mut outputs = std::mem::take(&mut self.lent.outputs);
        let mut follow = None;
        for output in outputs.list.drain(..) {
            match output {
                Output::Forward { to, range } => {
                    if let Some(lease) = lease {
                        self.owe_lease(slot, to, lease, range);
                    }
                }
                Output::Write { to, range } => {
                    let range = range.start as usize..range.end as usize;
                    if let Some(bytes) = outputs.bytes.get(range) {
                        self.owe_bytes(slot, to, bytes);
                    }
                }
                Output::Authenticate(credentials) => {
                    follow = follow.or(self.park(turn, slot, credentials));
                }
                Output::Dial {
                    upstream,
                    key,
                    kept,
                } => {
                    follow = follow.or(self.dial(turn, slot, upstream, key, kept));
                }
                Output::Answered => self.answered(turn, slot),
                Output::LeaveUpstream {
                    why,
                    says_goodbye,
                    again,
                } => {
                    let left = self.leave_upstream(turn, slot, why, says_goodbye, again);
                    follow = follow.or(left);
                }
                Output::PauseReading(side) => self.want_reading(slot, side, false),
                Output::ResumeReading(side) => self.want_reading(slot, side, true),
                Output::Fault(violation) => self.note_fault(turn, slot, violation, false),
                Output::OtherProtocol(protocol) => self.note_other_protocol(turn, slot, protocol),
                Output::DeliveryTooLarge {
                    packet_bytes,
                    packet_bytes_max,
                } => self.note_too_large(turn, slot, (packet_bytes, packet_bytes_max)),
                Output::Later => self.work_left(slot),
                Output::Close(cause) => {
                    self.note_ended(turn, slot, cause);
                    self.begin_close(turn, slot);
                }
            }
        }
        outputs.bytes.clear();
        // What a client sent ahead of CONNACK may be megabytes once; they are not kept for the shard's lifetime.
        outputs.bytes.shrink_to(OUTPUT_BYTES_KEPT);
        self.lent.outputs = outputs;
        follow
    }

    fn owe_lease(&mut self, slot: u32, to: Side, lease: Lease, range: std::ops::Range<u32>) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = open.leg(to);
        if leg.socket.is_none() || range.is_empty() {
            return;
        }
        self.counters.add(sent_counter(to), range.len() as u64);
        match leg.backlog.as_mut() {
            Some(backlog) => {
                let bytes = self.ring.lease(lease);
                if let Some(bytes) = bytes.get(range.start as usize..range.end as usize) {
                    backlog.append(bytes);
                    self.budget.added(bytes.len());
                }
            }
            None => {
                let buffer = lease.buffer;
                if self
                    .outbox
                    .push(&mut leg.pieces, Piece::Lease { buffer, range })
                {
                    self.outbox.mark(slot, to);
                }
            }
        }
    }

    fn owe_bytes(&mut self, slot: u32, to: Side, bytes: &[u8]) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = open.leg(to);
        if leg.socket.is_none() || bytes.is_empty() {
            return;
        }
        self.counters.add(sent_counter(to), bytes.len() as u64);
        match leg.backlog.as_mut() {
            Some(backlog) => {
                backlog.append(bytes);
                self.budget.added(bytes.len());
            }
            None => {
                let piece = self.ring.scratch(bytes);
                if self.outbox.push(&mut leg.pieces, piece) {
                    self.outbox.mark(slot, to);
                }
            }
        }
    }

    /// The end of a turn: one send for each socket that is owed something, and FIN where nothing more will be.
    /// Tells how many sockets were given something.
    pub(super) fn flush(&mut self, turn: Turn<'_>) -> u64 {
        let dirty = self.outbox.take_dirty();
        let mut sent = 0;
        for &(slot, side) in &dirty {
            let Some(open) = self.slots.get_mut(slot) else {
                continue;
            };
            let leg = open.leg(side);
            let Some(socket) = leg.socket else {
                continue;
            };
            if leg.pieces != Chain::EMPTY {
                self.outbox.collect(leg.pieces, &mut self.pieces);
                leg.pieces = Chain::EMPTY;
                self.ring.send(socket, &self.pieces);
                sent += 1;
            }
            if leg.closing == Closing::Flushing && leg.backlog.is_none() {
                self.finish_sending(turn.now, slot, side);
            }
        }
        self.outbox.end(dirty);
        self.pieces.clear();
        sent
    }

    /// What the proxy added: from the start of the turn in which bytes came to the flush, or to the end of the backlog.
    pub(super) fn record_latency(&mut self, began: Time, ended: Time, count: u64) {
        if count == 0 {
            return;
        }
        let micros = u64::try_from(ended.since(began).as_micros()).unwrap_or(u64::MAX);
        self.latency.saturating_record_n(micros.max(1), count);
    }

    /// The last send was not taken whole: from here on everything goes through the backlog.
    fn send_short(&mut self, turn: Turn<'_>, socket: SocketId, rest: Vec<u8>) {
        let Some((slot, side)) = self.owner(socket) else {
            return;
        };
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = open.leg(side);
        if rest.is_empty() || leg.backlog.is_some() {
            debug_assert!(leg.backlog.is_none(), "a send while a backlog exists");
            return;
        }
        self.budget.added(rest.len());
        self.budget.begun(slot);
        leg.backlog = Some(Box::new(Backlog::begun(turn.now, turn.now, &rest)));
        self.ring.send_owned(socket, rest, 0);
        self.counters.add(Counter::SendShort, 1);
        self.resume_flushing(turn, slot, side);
        self.settle(turn, slot, None);
    }

    fn sent_owned(
        &mut self,
        turn: Turn<'_>,
        socket: SocketId,
        buffer: Vec<u8>,
        taken: Result<usize, i32>,
    ) {
        let Some((slot, side)) = self.owner(socket) else {
            return;
        };
        let Ok(taken) = taken else {
            self.leg_failed(turn, socket);
            return;
        };
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let leg = open.leg(side);
        let Some(backlog) = leg.backlog.as_mut() else {
            return;
        };
        self.budget.removed(taken);
        match backlog.taken(turn.now, buffer, taken) {
            After::Send(buffer, from) => self.ring.send_owned(socket, buffer, from),
            After::Empty => {
                let since = backlog.since;
                leg.backlog = None;
                if leg.closing == Closing::Flushing {
                    self.outbox.mark(slot, side);
                }
                self.record_latency(since, turn.now, 1);
            }
        }
        self.settle(turn, slot, None);
    }

    fn ended(&mut self, turn: Turn<'_>, socket: SocketId, end: End) {
        let Some((slot, side)) = self.owner(socket) else {
            return;
        };
        match end {
            End::Failed(_) => self.leg_failed(turn, socket),
            End::Eof => {
                let Some(open) = self.slots.get_mut(slot) else {
                    return;
                };
                let leg = open.leg(side);
                leg.reading = Reading::Ended;
                if leg.closing == Closing::Lingering {
                    self.drop_leg(slot, side);
                    self.free_if_closed(slot);
                    return;
                }
                self.call(turn, slot, |session, context| {
                    session.handle_closed(context, side)
                });
            }
        }
    }

    /// The connection is broken: nothing more can be sent or received on it.
    fn leg_failed(&mut self, turn: Turn<'_>, socket: SocketId) {
        let Some((slot, side)) = self.owner(socket) else {
            return;
        };
        self.drop_leg(slot, side);
        self.call(turn, slot, |session, context| {
            session.handle_closed(context, side)
        });
        self.free_if_closed(slot);
    }

    fn paused(&mut self, socket: SocketId) {
        let Some((slot, side)) = self.owner(socket) else {
            return;
        };
        if let Some(open) = self.slots.get_mut(slot) {
            let leg = open.leg(side);
            if leg.reading == Reading::Pausing {
                leg.reading = Reading::Idle;
            }
        }
    }

    fn want_reading(&mut self, slot: u32, side: Side, wanted: bool) {
        if let Some(open) = self.slots.get_mut(slot) {
            open.leg(side).wanted = wanted;
        }
    }

    /// Makes the ring read exactly when it should: what comes on a closing leg is read to be discarded.
    pub(super) fn apply_reading(&mut self, slot: u32, side: Side) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        let is_over = open.session.is_none();
        let leg = open.leg(side);
        let Some(socket) = leg.socket else {
            return;
        };
        let wanted = is_over || (leg.wanted && !leg.held);
        match (wanted, leg.reading) {
            (true, Reading::Idle | Reading::Pausing) => {
                leg.reading = Reading::Receiving;
                self.ring.receive(socket);
            }
            (false, Reading::Receiving) => {
                leg.reading = Reading::Pausing;
                self.ring.pause(socket);
            }
            (true, Reading::Receiving | Reading::Unconnected | Reading::Ended)
            | (false, Reading::Idle | Reading::Pausing | Reading::Unconnected | Reading::Ended) => {
            }
        }
    }
}
