//! What becomes of a SUBSCRIBE that was judged, and the SUBACK that is merged from two answers.
//!
//! Owns the list of SUBSCRIBEs that went upstream without some of their filters, until their SUBACK comes. A SUBSCRIBE
//! of which nothing is refused or lowered is forwarded as it lies and leaves no trace here, but in 3.1: its SUBACK cannot say
//! that a subscription failed, so that the QoS that was asked for must be known.

use sluice_wire::mqtt::{
    Packet, PacketId, Properties, QoS, ReasonCode, Suback, Subscribe, Version, Violation,
    decode_subscribe_head, encode,
};

use super::judging::Judged;
use super::lane::Route;
use super::{Cause, Context, Session, Side};
use crate::metrics::Counter;

/// SUBSCRIBEs that may await their SUBACK with a merge to do; then reading of the client waits for the broker's answers.
const PENDING_MAX: usize = 64;

/// The same for the filters in all of them. The last one may go beyond it, by less than a packet has bytes.
const PENDING_CODES_MAX: usize = 64 * 1024;

/// In a list of codes: the broker's answer goes here. The QoS that it is asked for stands in the two low bits. No SUBACK
/// code is that great.
pub(super) const FROM_BROKER: u8 = 0xfc;

/// SUBSCRIBEs whose SUBACK is to be merged.
#[derive(Default)]
pub(super) struct Pending {
    list: Vec<PendingSubscribe>,
    /// Filters in all of them.
    codes_len: usize,
    /// Bytes of the texts of all.
    text_bytes: usize,
}

struct PendingSubscribe {
    packet_id: PacketId,
    /// One for each filter of the client; [`FROM_BROKER`] and the QoS where the broker decides.
    codes: Box<[u8]>,
    /// Why filters were refused, in words.
    text: Option<Box<str>>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.list.capacity() * size_of::<PendingSubscribe>() + self.codes_len + self.text_bytes
    }

    /// True exactly when the next packet of the client must wait.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= PENDING_MAX || self.codes_len >= PENDING_CODES_MAX
    }

    fn push(&mut self, packet_id: PacketId, codes: Vec<u8>, text: Option<Box<str>>) {
        self.codes_len += codes.len();
        self.text_bytes += text.as_ref().map_or(0, |text| text.len());
        self.list.push(PendingSubscribe {
            packet_id,
            codes: codes.into_boxed_slice(),
            text,
        });
    }

    fn codes(&self, packet_id: PacketId) -> Option<&[u8]> {
        let mut list = self.list.iter();
        Some(&list.find(|entry| entry.packet_id == packet_id)?.codes)
    }

    fn take(&mut self, packet_id: PacketId) -> Option<PendingSubscribe> {
        let index = self
            .list
            .iter()
            .position(|entry| entry.packet_id == packet_id)?;
        let taken = self.list.remove(index);
        self.codes_len -= taken.codes.len();
        self.text_bytes -= taken.text.as_ref().map_or(0, |text| text.len());
        Some(taken)
    }
}

impl Session {
    /// All filters of a SUBSCRIBE were judged.
    pub(super) fn judged(
        &mut self,
        context: &mut Context<'_>,
        judged: Judged,
        bytes: &[u8],
    ) -> Route {
        let forwarded = judged.codes.len() - judged.refused;
        for (counter, count) in [
            (Counter::SubscribeForwarded, forwarded),
            (Counter::SubscribeDenied, judged.refused),
            (Counter::SubscribeNarrowed, judged.narrowed),
            (Counter::QosLowered, judged.lowered),
        ] {
            context.counters.add(counter, count as u64);
        }
        let is_whole = judged.refused == 0;
        if is_whole && !judged.is_changed && self.version > Version::V31 {
            return Route::Forward;
        }
        let head = match decode_subscribe_head(self.version, bytes) {
            Ok(head) => head,
            Err(violation) => {
                // It was decoded when it came.
                self.broken(context, Side::Downstream, violation);
                return Route::Absorb;
            }
        };
        let text = self.filters_text(context, &judged.reasons);
        if forwarded == 0 && !is_whole {
            self.answer_subscribe(context, head.packet_id, &judged.codes, text.as_deref());
            return Route::Absorb;
        }
        // In 3.1 for the answer's sake: see `requested_qos`.
        if !is_whole || self.version == Version::V31 {
            let subscribes = &mut self.rare().subscribes;
            subscribes.push(head.packet_id, judged.codes, text);
        }
        if is_whole && !judged.is_changed {
            return Route::Forward;
        }
        let rest = Subscribe::new(head.packet_id, head.properties, &judged.granted);
        if self.encode_to(context, Side::Upstream, |version, buffer| {
            encode(version, &Packet::Subscribe(rest), buffer)
        }) {
            Route::Replaced
        } else {
            Route::Absorb
        }
    }

    /// The QoS that the broker was asked for by each filter of a SUBSCRIBE that waits for its SUBACK; nothing when that is
    /// not known.
    pub(super) fn requested_qos(&self, packet_id: PacketId) -> Vec<QoS> {
        let codes = self
            .rare
            .as_deref()
            .and_then(|rare| rare.subscribes.codes(packet_id))
            .unwrap_or_default();
        codes
            .iter()
            .filter(|code| **code >= FROM_BROKER)
            .filter_map(|code| QoS::from_bits(*code))
            .collect()
    }

    /// SUBACK from the broker.
    pub(super) fn suback(&mut self, context: &mut Context<'_>, suback: &Suback<'_>) -> Route {
        let Some(rare) = self.rare.as_mut() else {
            return Route::Forward;
        };
        let Some(PendingSubscribe { codes, text, .. }) = rare.subscribes.take(suback.packet_id)
        else {
            return Route::Forward;
        };
        let asked = codes.iter().filter(|code| **code >= FROM_BROKER).count();
        if asked == codes.len() {
            return Route::Forward;
        }
        if asked != suback.codes.len() {
            let violation = Violation::AckCountMismatch;
            self.note_fault(context, violation, Counter::BrokerPacketsMended);
        }
        let mut answers = suback.codes.iter();
        let merged: Vec<u8> = codes
            .iter()
            .map(|code| match *code {
                // What the broker does not answer is no grant.
                FROM_BROKER.. => match answers.next() {
                    Some(answer) => *answer,
                    None => self.failure_code(*code),
                },
                ours => ours,
            })
            .collect();
        let answer = Suback {
            codes: &merged,
            ..suback.clone()
        };
        let saying = text.and_then(|text| self.suback_saying(&answer, &text));
        if let Some(saying) = saying {
            context.out.write(Side::Downstream, &saying);
            return Route::Replaced;
        }
        let answer = Packet::Suback(answer);
        if self.encode_to(context, Side::Downstream, |version, buffer| {
            encode(version, &answer, buffer)
        }) {
            Route::Replaced
        } else {
            Route::Absorb
        }
    }

    /// What a client is told of a filter that the broker was asked for and did not answer.
    fn failure_code(&self, asked: u8) -> u8 {
        match self.version {
            Version::V31 => asked & !FROM_BROKER,
            Version::V311 | Version::V5 => ReasonCode::UnspecifiedError.byte(),
        }
    }

    /// Answers a SUBSCRIBE of which nothing goes upstream.
    fn answer_subscribe(
        &mut self,
        context: &mut Context<'_>,
        packet_id: PacketId,
        codes: &[u8],
        text: Option<&str>,
    ) {
        let answer = Suback {
            packet_id,
            properties: Properties::EMPTY,
            codes,
        };
        if let Some(saying) = text.and_then(|text| self.suback_saying(&answer, text)) {
            return self.originate(context, Side::Downstream, &saying);
        }
        let mut packet = Vec::new();
        match encode(self.version, &Packet::Suback(answer), &mut packet) {
            Ok(()) => self.originate(context, Side::Downstream, &packet),
            Err(_) => self.end(context, Cause::Overload),
        }
    }
}
