//! PUBLISH, in both directions: judged once, when its head is complete.
//!
//! Owns what becomes of a message: forwarded as it lies, with another first byte, with a rewritten head, or dropped with
//! whatever the protocol owes its publisher. A message of the client is judged as a publish, one of the broker as a
//! receive; all else is the same path.

use std::num::NonZeroU16;

use sluice_policy::{Decision, Denial, OnDeny, Verdict};
use sluice_wire::mqtt::{
    FixedHeader, Property, PropertyId, Publish, QoS, ReasonCode, Version, Violation,
    decode_publish_head, encode_publish_head,
};

use super::alias::Aliases;
use super::connect::{BARE, denial_reason};
use super::lane::{Route, speaker};
use super::reason_string::{Refused, Why};
use super::{
    Act, Cause, Context, Message, Output, Phase, Reason, Session, Side, Wanted, faults, packets,
};
use crate::metrics::Counter;

/// How a message that may pass goes on.
#[derive(Clone, Copy)]
struct Passage<'a> {
    /// The topic to send: the full one where the receiver does not know the alias, else as it came.
    topic: &'a str,
    topic_is_new: bool,
    qos: QoS,
    retain: bool,
}

/// What the properties say that matters here.
#[derive(Clone, Copy, Default)]
struct Hints<'a> {
    alias: Option<NonZeroU16>,
    response_topic: Option<&'a str>,
}

impl<'a> Hints<'a> {
    fn of(publish: &Publish<'a>) -> Self {
        let mut hints = Self::default();
        if publish.properties.as_bytes().is_empty() {
            return hints;
        }
        for property in publish.properties.iter() {
            if let Property::Number(PropertyId::TopicAlias, alias) = property {
                hints.alias = u16::try_from(alias).ok().and_then(NonZeroU16::new);
            } else if let Property::Text(PropertyId::ResponseTopic, topic) = property {
                hints.response_topic = Some(topic);
            }
        }
        hints
    }
}

impl Session {
    /// The head of a PUBLISH from `from`.
    pub(super) fn publish(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        header: FixedHeader,
        bytes: &[u8],
    ) -> Route {
        if self.phase != Phase::Open {
            self.broken(context, from, faults::too_early(from));
            return Route::Absorb;
        }
        let publish = match decode_publish_head(self.version, speaker(from), bytes) {
            Ok(publish) => publish,
            Err(violation) => return self.illegal_publish(context, from, violation, bytes),
        };
        let hints = Hints::of(&publish);
        match hints.alias {
            None => self.message(context, from, header, &publish, hints, publish.topic, false),
            Some(alias) => self.aliased(context, from, header, &publish, hints, alias),
        }
    }

    /// A PUBLISH with a topic alias: the table is brought up to date, then the message is judged by the topic it means.
    fn aliased(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        header: FixedHeader,
        publish: &Publish<'_>,
        hints: Hints<'_>,
        alias: NonZeroU16,
    ) -> Route {
        let max = match from {
            Side::Downstream => self.alias_max_up,
            Side::Upstream => self.alias_max_down,
        };
        if alias.get() > max {
            return self.unjudged(context, from, Violation::TopicAliasAboveMaximum, publish);
        }
        // The table leaves its place while a topic in it is judged.
        let mut aliases = self.aliases(from).take().unwrap_or_default();
        if !publish.topic.is_empty() {
            aliases.set(alias, publish.topic);
        }
        let route = match aliases.topic(alias) {
            None => self.unjudged(context, from, Violation::TopicAliasUnknown, publish),
            Some((topic, known)) => {
                let must_tell = publish.topic.is_empty() && !known;
                self.message(context, from, header, publish, hints, topic, must_tell)
            }
        };
        if self.phase != Phase::Ended {
            if route != Route::Absorb {
                aliases.told(alias);
            }
            *self.aliases(from) = Some(aliases);
        }
        route
    }

    fn aliases(&mut self, publisher: Side) -> &mut Option<Box<Aliases>> {
        let rare = self.rare();
        match publisher {
            Side::Downstream => &mut rare.alias_up,
            Side::Upstream => &mut rare.alias_down,
        }
    }

    /// A message whose topic is known. `must_tell`: the receiver has to be told that topic.
    #[allow(clippy::too_many_arguments)] // One message in its parts; a struct would be built only to be taken apart.
    fn message(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        header: FixedHeader,
        publish: &Publish<'_>,
        hints: Hints<'_>,
        topic: &str,
        must_tell: bool,
    ) -> Route {
        if self.rare.is_some() && self.is_owned_duplicate(context, from, publish) {
            return Route::Absorb;
        }
        let verdict = self.judge_message(context, from, publish, hints, topic);
        if let Decision::Deny(denial) = verdict.decision {
            let why = Why::denied(denial, verdict.rule);
            return self.refuse(context, from, publish, denial, verdict.on_deny, why);
        }
        let passage = Passage {
            topic: if must_tell { topic } else { publish.topic },
            topic_is_new: must_tell,
            qos: publish.qos.min(verdict.qos_max),
            retain: publish.retain && !verdict.strip_retain,
        };
        self.pass(context, from, header, publish, passage)
    }

    fn judge_message(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        publish: &Publish<'_>,
        hints: Hints<'_>,
        topic: &str,
    ) -> Verdict {
        let message = Message {
            qos: publish.qos,
            retain: publish.retain,
            payload_bytes: publish.payload_bytes,
        };
        match (from, hints.response_topic) {
            (Side::Upstream, _) => self.judge(context, Act::Receive, topic, message),
            (Side::Downstream, None) => self.judge_publish(context, topic, message),
            (Side::Downstream, Some(response_topic)) => {
                let verdict = self.judge_publish(context, topic, message);
                self.judge_response_topic(context, response_topic, verdict)
            }
        }
    }

    /// A Response Topic must be one that the sender may receive: else it could have others send where it may not listen.
    pub(super) fn judge_response_topic(
        &self,
        context: &mut Context<'_>,
        response_topic: &str,
        verdict: Verdict,
    ) -> Verdict {
        if verdict.decision != Decision::Allow {
            return verdict;
        }
        let receive = self.judge(context, Act::ResponseTopic, response_topic, BARE);
        match receive.decision {
            Decision::Allow => verdict,
            Decision::Deny(_) => Verdict {
                decision: Decision::Deny(Denial::NotAuthorized),
                rule: receive.rule,
                ..verdict
            },
        }
    }

    /// The message may pass.
    fn pass(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        header: FixedHeader,
        publish: &Publish<'_>,
        passage: Passage<'_>,
    ) -> Route {
        let may = if passage.qos == publish.qos {
            self.may_pass(context, from, publish)
        } else {
            self.may_lower(context, from, publish)
        };
        if !may {
            return Route::Absorb;
        }
        let takes_id_off = publish.qos != QoS::AtMostOnce && passage.qos == QoS::AtMostOnce;
        let must_rewrite = passage.topic_is_new || takes_id_off;
        let start = context.out.bytes.len();
        let head_bytes = if must_rewrite {
            self.rewrite_head(context, publish, passage)
        } else {
            header.packet_bytes().saturating_sub(publish.payload_bytes)
        };
        let packet_bytes = head_bytes.saturating_add(publish.payload_bytes);
        if packet_bytes > self.receiver_bytes_max(from.other()) {
            context.out.bytes.truncate(start);
            return self.too_long(context, from, publish, passage.topic, packet_bytes);
        }
        if must_rewrite {
            context.out.commit(from.other(), start);
        }
        if passage.qos == publish.qos {
            self.passes(context, from, publish);
        } else {
            self.lower(context, from, publish, passage.qos);
        }
        if passage.retain != publish.retain {
            context.counters.add(Counter::RetainStripped, 1);
        }
        context.counters.add(forwarded_counter(from), 1);
        if must_rewrite {
            return Route::Replaced;
        }
        if passage.qos == publish.qos && passage.retain == publish.retain {
            return Route::Forward;
        }
        Route::ForwardWith(packets::publish_first_byte(
            publish.dup,
            passage.qos,
            passage.retain,
        ))
    }

    /// Appends the head with another topic, or without identifier and DUP, and gives its length. One that cannot be
    /// written has the greatest length there is.
    fn rewrite_head(
        &self,
        context: &mut Context<'_>,
        publish: &Publish<'_>,
        passage: Passage<'_>,
    ) -> u32 {
        let acknowledged = passage.qos != QoS::AtMostOnce;
        let head = Publish {
            dup: publish.dup && acknowledged,
            qos: passage.qos,
            retain: passage.retain,
            topic: passage.topic,
            packet_id: publish.packet_id.filter(|_| acknowledged),
            ..publish.clone()
        };
        let start = context.out.bytes.len();
        match encode_publish_head(self.version, &head, &[], &mut context.out.bytes) {
            Ok(()) => u32::try_from(context.out.bytes.len() - start).unwrap_or(u32::MAX),
            Err(_) => u32::MAX,
        }
    }

    fn receiver_bytes_max(&self, receiver: Side) -> u32 {
        match receiver {
            Side::Downstream => self.client_bytes_max.min(self.packet_bytes_max),
            Side::Upstream => self.upward_bytes_max,
        }
    }

    /// True exactly when a message may go on with the QoS it has. The session is ended when too much is in flight.
    #[inline]
    fn may_pass(&mut self, context: &mut Context<'_>, from: Side, publish: &Publish<'_>) -> bool {
        if publish.qos == QoS::AtMostOnce
            || self.has_room_for_flow(from)
            || self.is_with_receiver(from, publish)
        {
            return true;
        }
        self.too_many_flows(context, from);
        false
    }

    /// True exactly when a message may go on with a lower QoS. One that the receiver has, from when the policy let it pass
    /// as it is, is not sent again as another. The session is ended when too much is in flight.
    fn may_lower(&mut self, context: &mut Context<'_>, from: Side, publish: &Publish<'_>) -> bool {
        if self.is_with_receiver(from, publish) {
            return false;
        }
        if !self.has_room_for_flow(from) {
            self.too_many_flows(context, from);
        }
        self.phase != Phase::Ended
    }

    /// Takes over what the publisher no longer gets from the receiver.
    fn lower(&mut self, context: &mut Context<'_>, from: Side, publish: &Publish<'_>, qos: QoS) {
        context.counters.add(Counter::QosLowered, 1);
        match publish.packet_id {
            Some(packet_id) if qos == QoS::AtLeastOnce => {
                self.own_lowered(context.now, from, packet_id);
            }
            Some(_) | None => self.answer(context, from, publish, 0, None),
        }
    }

    /// The receiver does not take a packet of that length. A delivery is dropped [MQTT-3.1.2-25]; a message of the client
    /// gets here only when its topic had to be written out for the broker, and is refused as too large.
    fn too_long(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        publish: &Publish<'_>,
        topic: &str,
        packet_bytes: u32,
    ) -> Route {
        let (act, reason) = match from {
            Side::Downstream => (Act::Publish, Reason::PacketTooLarge),
            Side::Upstream => (Act::Receive, Reason::DeliveryTooLarge),
        };
        let message = Message {
            qos: publish.qos,
            retain: publish.retain,
            payload_bytes: publish.payload_bytes,
        };
        self.note_denial(context, Wanted::message(act, topic, message), reason);
        match from {
            Side::Downstream => {
                let denial = Denial::PayloadTooLarge;
                let why = Why::alone(Refused::TooLarge);
                self.refuse(context, from, publish, denial, OnDeny::Drop, why)
            }
            Side::Upstream => {
                context.counters.add(Counter::DeliveryTooLarge, 1);
                context.out.list.push(Output::DeliveryTooLarge {
                    packet_bytes,
                    packet_bytes_max: self.receiver_bytes_max(Side::Downstream),
                });
                self.drop_delivery(context, publish)
            }
        }
    }

    /// The message may not pass.
    fn refuse(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        publish: &Publish<'_>,
        denial: Denial,
        on_deny: OnDeny,
        why: Why,
    ) -> Route {
        match from {
            Side::Downstream => {
                context.counters.add(Counter::PublishDenied, 1);
                context.counters.add(denied_counter(denial), 1);
                match on_deny {
                    OnDeny::Drop => self.answer_refused(context, publish, why),
                    OnDeny::Close => {
                        let reason = denial_reason(denial);
                        self.end_telling(context, Cause::Denied, reason, Some(why));
                    }
                }
                Route::Absorb
            }
            Side::Upstream => {
                context.counters.add(Counter::DeliveryDenied, 1);
                self.drop_delivery(context, publish)
            }
        }
    }

    /// What a client hears whose message was dropped: in version 5 the reason; before, there is none to be had.
    fn answer_refused(&mut self, context: &mut Context<'_>, publish: &Publish<'_>, why: Why) {
        let code = match self.version {
            Version::V5 => ReasonCode::NotAuthorized.byte(),
            Version::V31 | Version::V311 => 0,
        };
        self.answer_dropped(context, Side::Downstream, publish, code, Some(why));
    }

    /// A delivery does not reach the client: the broker is told that it did, to the end of the handshake, so that it
    /// neither sends it again nor keeps its identifier in flight.
    pub(super) fn drop_delivery(
        &mut self,
        context: &mut Context<'_>,
        publish: &Publish<'_>,
    ) -> Route {
        self.answer_dropped(context, Side::Upstream, publish, 0, None);
        Route::Absorb
    }

    fn answer_dropped(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        publish: &Publish<'_>,
        code: u8,
        why: Option<Why>,
    ) {
        if publish.qos == QoS::AtMostOnce || self.has_room_for_flow(from) {
            self.answer(context, from, publish, code, why);
        } else {
            self.too_many_flows(context, from);
        }
    }
}

fn forwarded_counter(from: Side) -> Counter {
    match from {
        Side::Downstream => Counter::PublishForwarded,
        Side::Upstream => Counter::DeliveryForwarded,
    }
}

fn denied_counter(denial: Denial) -> Counter {
    match denial {
        Denial::NotAuthorized | Denial::TooComplex => Counter::DeniedNotAuthorized,
        Denial::RetainRefused => Counter::DeniedRetain,
        Denial::QosRefused => Counter::DeniedQos,
        Denial::PayloadTooLarge => Counter::DeniedPayload,
    }
}
