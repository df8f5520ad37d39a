//! SUBSCRIBE, filter by filter, and the SUBACK that is merged from two answers.
//!
//! Owns the list of SUBSCRIBEs that went upstream without some of their filters, until their SUBACK comes. A SUBSCRIBE
//! of which nothing is refused or lowered is forwarded as it lies and leaves no trace here, but in 3.1: its SUBACK cannot say
//! that a subscription failed, so that the QoS that was asked for must be known.

use sluice_policy::{Action, Decision, Effort};
use sluice_wire::mqtt::{
    Packet, PacketId, Properties, QoS, ReasonCode, Suback, Subscribe, SubscribeFilter, Version,
    Violation, encode, encode_subscribe, parse_filter,
};

use super::lane::Route;
use super::{Cause, Context, Session, Side};
use crate::metrics::Counter;

/// When so many SUBSCRIBEs await their SUBACK with a merge to do, reading of the client waits for the broker's answers.
const PENDING_MAX: usize = 64;

/// The same for the filters in all of them. The last one may go beyond it, by less than a packet has bytes.
const PENDING_CODES_MAX: usize = 64 * 1024;

/// In a list of codes: the broker's answer goes here. The QoS that it is asked for stands in the two low bits. No SUBACK
/// code is that great.
const FROM_BROKER: u8 = 0xfc;

/// SUBSCRIBEs whose SUBACK is to be merged.
#[derive(Default)]
pub(super) struct Pending {
    list: Vec<PendingSubscribe>,
    /// Filters in all of them.
    codes_len: usize,
}

struct PendingSubscribe {
    packet_id: PacketId,
    /// One for each filter of the client; [`FROM_BROKER`] and the QoS where the broker decides.
    codes: Box<[u8]>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.list.capacity() * size_of::<PendingSubscribe>() + self.codes_len
    }

    /// True exactly when the next packet of the client must wait.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= PENDING_MAX || self.codes_len >= PENDING_CODES_MAX
    }

    fn push(&mut self, packet_id: PacketId, codes: Vec<u8>) {
        self.codes_len += codes.len();
        self.list.push(PendingSubscribe {
            packet_id,
            codes: codes.into_boxed_slice(),
        });
    }

    fn codes(&self, packet_id: PacketId) -> Option<&[u8]> {
        let mut list = self.list.iter();
        Some(&list.find(|entry| entry.packet_id == packet_id)?.codes)
    }

    fn take(&mut self, packet_id: PacketId) -> Option<Box<[u8]>> {
        let index = self
            .list
            .iter()
            .position(|entry| entry.packet_id == packet_id)?;
        let codes = self.list.remove(index).codes;
        self.codes_len -= codes.len();
        Some(codes)
    }
}

impl Session {
    /// SUBSCRIBE from the client.
    pub(super) fn subscribe(
        &mut self,
        context: &mut Context<'_>,
        subscribe: &Subscribe<'_>,
    ) -> Route {
        let mut filters = Vec::new();
        let mut codes = Vec::new();
        let mut is_changed = false;
        let mut refused = 0_usize;
        let mut effort = Effort::default();
        for mut filter in subscribe.filters() {
            if self.version == Version::V31 {
                // The other bits are "not used", and a broker may not take them.
                is_changed |= filter.options != filter.qos.bits();
                filter.options = filter.qos.bits();
            }
            match self.judge_filter(context, &filter, &mut effort) {
                Decided::Granted(qos) => {
                    is_changed |= qos != filter.qos;
                    codes.push(FROM_BROKER | filter.qos.bits());
                    filters.push(SubscribeFilter { qos, ..filter });
                }
                Decided::Refused(code) => {
                    refused += 1;
                    codes.push(code);
                }
            }
        }
        if refused == 0 && self.version == Version::V31 {
            // For the answer's sake: see `requested_qos`.
            self.rare()
                .subscribes
                .push(subscribe.packet_id, codes.clone());
        }
        if refused == 0 && !is_changed {
            return Route::Forward;
        }
        if filters.is_empty() {
            self.answer_subscribe(context, subscribe.packet_id, &codes);
            return Route::Absorb;
        }
        if refused > 0 {
            self.rare().subscribes.push(subscribe.packet_id, codes);
        }
        let (packet_id, properties) = (subscribe.packet_id, subscribe.properties);
        if self.encode_to(context, Side::Upstream, |version, buffer| {
            encode_subscribe(version, packet_id, properties, filters, buffer)
        }) {
            Route::Replaced
        } else {
            Route::Absorb
        }
    }

    fn judge_filter(
        &self,
        context: &mut Context<'_>,
        filter: &SubscribeFilter<'_>,
        effort: &mut Effort,
    ) -> Decided {
        // Decoding has checked the filter; if it had not, this would refuse it.
        let Ok(parsed) = parse_filter(filter.filter) else {
            return Decided::Refused(self.refusal_code(filter.qos));
        };
        let verdict = context.snapshot.subscribe_within(
            self.rights.classes(),
            &self.identity.vars(),
            parsed.filter,
            filter.qos,
            effort,
        );
        self.note(context, Action::Subscribe, filter.filter, &verdict);
        match verdict.decision {
            Decision::Allow => {
                let qos = filter.qos.min(verdict.qos_max);
                if qos != filter.qos {
                    context.counters.add(Counter::QosLowered, 1);
                }
                context.counters.add(Counter::SubscribeForwarded, 1);
                Decided::Granted(qos)
            }
            Decision::Deny(_) => {
                context.counters.add(Counter::SubscribeDenied, 1);
                Decided::Refused(self.refusal_code(filter.qos))
            }
        }
    }

    /// MQTT 3.1 has no failure code: the client is told that it has what it asked for, and nothing will come.
    fn refusal_code(&self, requested: QoS) -> u8 {
        match self.version {
            Version::V31 => requested as u8,
            Version::V311 => 0x80,
            Version::V5 => ReasonCode::NotAuthorized.byte(),
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
        let Some(codes) = rare.subscribes.take(suback.packet_id) else {
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
        let answer = Packet::Suback(Suback {
            codes: &merged,
            ..suback.clone()
        });
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
    fn answer_subscribe(&mut self, context: &mut Context<'_>, packet_id: PacketId, codes: &[u8]) {
        let answer = Packet::Suback(Suback {
            packet_id,
            properties: Properties::EMPTY,
            codes,
        });
        let mut packet = Vec::new();
        match encode(self.version, &answer, &mut packet) {
            Ok(()) => self.originate(context, Side::Downstream, &packet),
            Err(_) => self.end(context, Cause::Overload),
        }
    }
}

enum Decided {
    /// Goes on, with this QoS.
    Granted(QoS),
    /// Does not; the client is given this code.
    Refused(u8),
}
