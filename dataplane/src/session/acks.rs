//! Acknowledgements: those that pass, and those that the proxy owns, in which what one side hears is not what the other
//! side said.
//!
//! Owns what becomes of each, by the state of its flow (`order.rs` has the states, and whose turn it is). Flows are keyed
//! by the packet identifier of the publisher. An identifier that is not known belongs to a flow of an earlier connection,
//! and passes through. The proxy never originates an identifier, so nothing here can collide. A message with DUP is the one
//! that has its identifier already; without, the publisher has given that one up.
//!
//! ```text
//!  publisher            proxy                 receiver
//!  PUBLISH 1  ──▶  refused: PUBACK ◀── us                           (nothing)
//!  PUBLISH 2  ──▶  refused, 3.x: PUBREC ◀── us, AwaitPubrel         (nothing)
//!  PUBLISH 2  ──▶  lowered to 0: PUBREC ◀── us, AwaitPubrel    ──▶  PUBLISH 0
//!  PUBLISH 2  ──▶  lowered to 1: AwaitPuback                   ──▶  PUBLISH 1
//!             ◀──  PUBREC, its code; AwaitPubrel               ◀──  PUBACK
//!  PUBREL     ──▶  PUBCOMP ◀── us, done
//! ```
//!
//! What we say in the place of a PUBACK or PUBREC waits until every earlier one has passed. A PUBREC that passes waits
//! only for the PUBREC of an earlier message that was lowered: the receiver, who answers that one with PUBACK, does not
//! know of their order. It then goes on with its code alone. All else of the receiver passes as it comes.

use sluice_wire::mqtt::{Ack, PacketId, PacketKind, Publish, ReasonCode, Version};

use super::lane::Route;
use super::order::{Answer, Flow, Flows, Run};
use super::reason_string::Why;
use super::{Cause, Context, Session, Side, packets};
use crate::clock::Time;
use crate::metrics::Counter;

impl Session {
    fn run(&mut self, publisher: Side) -> &mut Run {
        match publisher {
            Side::Downstream => &mut self.run_up,
            Side::Upstream => &mut self.run_down,
        }
    }

    fn flows(&self, publisher: Side) -> Option<&Flows> {
        let rare = self.rare.as_deref()?;
        Some(match publisher {
            Side::Downstream => &rare.flows_up,
            Side::Upstream => &rare.flows_down,
        })
    }

    fn flows_mut(&mut self, publisher: Side) -> &mut Flows {
        let rare = self.rare();
        match publisher {
            Side::Downstream => &mut rare.flows_up,
            Side::Upstream => &mut rare.flows_down,
        }
    }

    fn flow(&self, publisher: Side, packet_id: PacketId) -> Option<(Flow, Answer)> {
        self.flows(publisher)?.flow(packet_id)
    }

    /// The table takes over what the run holds.
    fn unroll(&mut self, now: Time, publisher: Side) {
        let run = std::mem::take(self.run(publisher));
        if run.len() == 0 {
            return;
        }
        let flows = self.flows_mut(publisher);
        for packet_id in run.ids() {
            flows.put(now, packet_id, run.answer(), Flow::Passes);
        }
    }

    fn put_flow(&mut self, now: Time, publisher: Side, id: PacketId, answer: Answer, flow: Flow) {
        self.unroll(now, publisher);
        self.flows_mut(publisher).put(now, id, answer, flow);
        if publisher == Side::Downstream {
            // What was kept belonged to an earlier message with that identifier.
            self.take_reason(id);
        }
    }

    /// True exactly when one more message of `publisher` may be in flight. Version 5 was told how many; before it, only
    /// identifiers are scarce.
    pub(super) fn has_room_for_flow(&mut self, publisher: Side) -> bool {
        if self.version != Version::V5 {
            return true;
        }
        let len = self.run(publisher).len() + self.flows(publisher).map_or(0, Flows::len);
        len < usize::from(self.receive_max)
    }

    /// Ends the session because `publisher` has more in flight than it was allowed.
    pub(super) fn too_many_flows(&mut self, context: &mut Context<'_>, publisher: Side) {
        match publisher {
            Side::Downstream => {
                let reason = ReasonCode::ReceiveMaximumExceeded;
                self.end_telling(context, Cause::Overload, reason, None);
            }
            Side::Upstream => self.end(context, Cause::Overload),
        }
    }

    /// A message goes on with the QoS it has: what its receiver answers passes.
    #[inline]
    pub(super) fn passes(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        publish: &Publish<'_>,
    ) {
        let (Some(answer), Some(id)) = (Answer::to(publish.qos), publish.packet_id) else {
            return;
        };
        let is_run = self.flows(publisher).is_none_or(Flows::is_empty);
        if !is_run || !self.run(publisher).push(answer, id, publish.dup) {
            self.passes_in_line(context, publisher, answer, id, publish.dup);
        }
    }

    fn passes_in_line(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        answer: Answer,
        id: PacketId,
        is_again: bool,
    ) {
        self.unroll(context.now, publisher);
        let flows = self.flows_mut(publisher);
        match flows.flow(id) {
            // Sent again, it keeps its place.
            Some((Flow::Passes | Flow::Held(_), of)) if is_again && of == answer => {}
            Some(_) | None => flows.put(context.now, id, answer, Flow::Passes),
        }
        self.answer_in_order(context, publisher);
    }

    /// A message came again while we see to its flow: it is answered as far as the flow has got, and never forwarded. With
    /// QoS 2 that is any message with its identifier. True exactly when that was so.
    pub(super) fn is_owned_duplicate(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        publish: &Publish<'_>,
    ) -> bool {
        let (Some(answer), Some(id)) = (Answer::to(publish.qos), publish.packet_id) else {
            return false;
        };
        if answer == Answer::Puback && !publish.dup {
            return false;
        }
        match self.flow(publisher, id) {
            Some((Flow::AwaitPuback | Flow::Answered(_), of)) => of == answer,
            Some((Flow::AwaitPubrel, of)) if of == answer => {
                self.acknowledge(context, publisher, PacketKind::Pubrec, id, 0, None);
                true
            }
            Some(_) | None => false,
        }
    }

    /// True exactly when this message is sent again while the receiver has it as it was sent first.
    pub(super) fn is_with_receiver(&mut self, publisher: Side, publish: &Publish<'_>) -> bool {
        let (Some(answer), Some(id)) = (Answer::to(publish.qos), publish.packet_id) else {
            return false;
        };
        let run = *self.run(publisher);
        let is_passing = match self.flow(publisher, id) {
            Some((Flow::Passes | Flow::Held(_), of)) => of == answer,
            Some(_) | None => run.has(answer) && run.contains(id),
        };
        publish.dup && is_passing
    }

    /// A message is answered by us, in its turn: its receiver does not get it, or not so that it would answer.
    pub(super) fn answer(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        publish: &Publish<'_>,
        code: u8,
        why: Option<Why>,
    ) {
        let (Some(answer), Some(id)) = (Answer::to(publish.qos), publish.packet_id) else {
            return;
        };
        let run = *self.run(publisher);
        let is_first = !run.has(answer)
            && !run.contains(id)
            && self
                .flows(publisher)
                .is_none_or(|flows| !flows.has(answer) && flows.flow(id).is_none());
        if is_first {
            // Needs no place in line.
            if answer == Answer::Pubrec && code < 0x80 {
                self.put_flow(context.now, publisher, id, answer, Flow::AwaitPubrel);
            }
            return self.acknowledge(context, publisher, answer.kind(), id, code, why);
        }
        self.unroll(context.now, publisher);
        match self.flow(publisher, id) {
            // Sent again: one answer is on its way already, ours or the receiver's.
            Some((flow, of)) if publish.dup && of == answer && flow.is_in_line() => {}
            Some(_) | None => {
                let flow = Flow::Answered(code);
                self.put_flow(context.now, publisher, id, answer, flow);
                if let Some(why) = why {
                    self.keep_reason(context, id, why);
                }
            }
        }
        self.answer_in_order(context, publisher);
    }

    /// A QoS 2 PUBLISH goes on as QoS 1.
    pub(super) fn own_lowered(&mut self, now: Time, publisher: Side, packet_id: PacketId) {
        let (answer, flow) = (Answer::Pubrec, Flow::AwaitPuback);
        self.put_flow(now, publisher, packet_id, answer, flow);
    }

    /// Says what it is the turn of, after something else was acknowledged.
    #[inline]
    pub(super) fn answer_in_order(&mut self, context: &mut Context<'_>, publisher: Side) {
        if self.flows(publisher).is_none_or(Flows::is_empty) {
            return;
        }
        for answer in Answer::ALL {
            while let Some((id, code)) = self.flows_mut(publisher).next_answer(context.now, answer)
            {
                let why = match publisher {
                    Side::Downstream => self.take_reason(id),
                    Side::Upstream => None,
                };
                self.acknowledge(context, publisher, answer.kind(), id, code, why);
            }
        }
    }

    /// Sends an acknowledgement of our own to `publisher`.
    fn acknowledge(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        kind: PacketKind,
        packet_id: PacketId,
        code: u8,
        why: Option<Why>,
    ) {
        context.counters.add(Counter::AcknowledgementsOwned, 1);
        let saying = why.and_then(|why| self.refusal_saying(context, kind, packet_id, code, why));
        if let Some(saying) = saying {
            return self.originate(context, publisher, &saying);
        }
        let packet = packets::ack(self.version, kind, packet_id, code);
        self.originate(context, publisher, &packet);
    }

    /// A client that pings has nothing else to say: memory for the next message is given back.
    pub(super) fn rest(&mut self, now: Time) {
        if let Some(rare) = self.rare.as_mut() {
            rare.flows_up.rest(now);
            rare.flows_down.rest(now);
        }
    }

    /// The flow that a receiver acknowledges; `None` when that just passes.
    #[inline]
    fn acknowledged(
        &mut self,
        now: Time,
        publisher: Side,
        answer: Answer,
        id: PacketId,
    ) -> Option<(Flow, Answer)> {
        let run = self.run(publisher);
        if run.pop(answer, id) {
            return None;
        }
        if run.contains(id) {
            self.unroll(now, publisher);
        }
        self.flow(publisher, id)
    }

    /// PUBACK from the receiver `from`. [`Session::answer_in_order`] follows.
    pub(super) fn puback(&mut self, context: &mut Context<'_>, from: Side, ack: &Ack<'_>) -> Route {
        let (publisher, id, now) = (from.other(), ack.packet_id, context.now);
        let Some((flow, answer)) = self.acknowledged(now, publisher, Answer::Puback, id) else {
            return Route::Forward;
        };
        let flows = self.flows_mut(publisher);
        match flow {
            Flow::Passes | Flow::Held(_) => {
                // The wrong kind is the publisher's to judge.
                if answer == Answer::Puback {
                    flows.remove(now, id);
                }
                return Route::Forward;
            }
            Flow::SwallowPuback => flows.remove(now, id),
            Flow::AwaitPuback => flows.change(id, Flow::Answered(ack.code)),
            // The receiver answers what it was not sent, or answers twice.
            Flow::Answered(_) | Flow::AwaitPubrel => {}
        }
        Route::Absorb
    }

    /// PUBREC from the receiver `from`: what we lowered has none, so it belongs to a flow that passes through, or is a
    /// stray answer to one of ours. [`Session::answer_in_order`] follows.
    pub(super) fn pubrec(&mut self, context: &mut Context<'_>, from: Side, ack: &Ack<'_>) -> Route {
        let (publisher, id, now) = (from.other(), ack.packet_id, context.now);
        let flow = self.acknowledged(now, publisher, Answer::Pubrec, id);
        match flow {
            None | Some((Flow::Passes, Answer::Puback)) => Route::Forward,
            Some((Flow::Passes, Answer::Pubrec)) => {
                let flows = self.flows_mut(publisher);
                if flows.would_overtake(Answer::Pubrec, id) {
                    flows.change(id, Flow::Held(ack.code));
                    return Route::Absorb;
                }
                flows.remove(now, id);
                Route::Forward
            }
            Some((
                Flow::Held(_)
                | Flow::AwaitPuback
                | Flow::Answered(_)
                | Flow::AwaitPubrel
                | Flow::SwallowPuback,
                _,
            )) => Route::Absorb,
        }
    }

    /// PUBREL from the publisher `from`. [`Session::answer_in_order`] follows.
    pub(super) fn pubrel(&mut self, context: &mut Context<'_>, from: Side, ack: &Ack<'_>) -> Route {
        let (id, now) = (ack.packet_id, context.now);
        if self.run(from).has(Answer::Pubrec) && self.run(from).contains(id) {
            self.unroll(now, from);
        }
        match self.flow(from, id) {
            None | Some((_, Answer::Puback)) => return Route::Forward,
            // It does not wait for PUBREC, so nothing else is to wait for that either.
            Some((Flow::Passes | Flow::Held(_), _)) => {
                self.flows_mut(from).remove(now, id);
                return Route::Forward;
            }
            Some((Flow::AwaitPubrel | Flow::Answered(_), _)) => {
                self.flows_mut(from).remove(now, id);
            }
            Some((Flow::AwaitPuback | Flow::SwallowPuback, answer)) => {
                self.put_flow(now, from, id, answer, Flow::SwallowPuback);
            }
        }
        self.acknowledge(context, from, PacketKind::Pubcomp, id, 0, None);
        Route::Absorb
    }
}
