//! Faults of the broker, and packets that its client has no room for.
//!
//! Owns what becomes of a packet that breaks a rule: one of the client ends the session, one of the broker rarely does. A
//! client that is cut off comes back and meets the same packet, so what a broker can only have meant is passed on in legal
//! form, and what cannot be told is dropped. The session ends where the stream, or the session, could not be followed: the
//! table in `dataplane/README.md` has each case.

use std::num::NonZeroU16;

use sluice_wire::mqtt::{
    self, PacketKind, Properties, Publish, Violation, decode, mend, publish_remains, slim,
};

use super::lane::Route;
use super::{Cause, Context, Output, Phase, Session, Side};
use crate::metrics::Counter;

impl Session {
    /// A packet other than PUBLISH that `from` should not have sent like that.
    pub(super) fn illegal(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        violation: Violation,
        bytes: &[u8],
    ) -> Route {
        if from == Side::Downstream {
            self.broken(context, from, violation);
            return Route::Absorb;
        }
        let mended = mend(self.version, bytes, |id| self.requested_qos(id));
        let Some(mended) = mended else {
            return self.drop_packet(context, violation, bytes);
        };
        match decode(self.version, mqtt::Side::Server, &mended) {
            Ok(packet) => {
                self.note_fault(context, violation, Counter::BrokerPacketsMended);
                let route = self.packet(context, from, &packet);
                self.pass_copy(context, route, &mended)
            }
            // Only legal packets come out of there.
            Err(violation) => self.drop_packet(context, violation, bytes),
        }
    }

    /// A packet of the broker that cannot be mended. Without its CONNACK, or in the middle of an authentication, there is
    /// no session to go on with.
    fn drop_packet(
        &mut self,
        context: &mut Context<'_>,
        violation: Violation,
        bytes: &[u8],
    ) -> Route {
        let is_auth = bytes.first().map(|first| first >> 4) == Some(PacketKind::Auth.number());
        if self.phase == Phase::Connack || is_auth {
            self.broken(context, Side::Upstream, violation);
        } else {
            self.note_fault(context, violation, Counter::BrokerPacketsDropped);
        }
        Route::Absorb
    }

    /// A packet that has no place where it came: the client's ends the session, the broker's is dropped.
    pub(super) fn misplaced(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        violation: Violation,
    ) -> Route {
        if from == Side::Downstream || self.phase == Phase::Connack {
            self.broken(context, from, violation);
        } else {
            self.note_fault(context, violation, Counter::BrokerPacketsDropped);
        }
        Route::Absorb
    }

    /// The head of a PUBLISH that cannot be judged. A delivery is dropped with its acknowledgement, or the broker would
    /// send it again for ever.
    pub(super) fn illegal_publish(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        violation: Violation,
        head: &[u8],
    ) -> Route {
        let remains = match from {
            Side::Downstream => None,
            Side::Upstream => publish_remains(self.version, head),
        };
        let Some(remains) = remains else {
            self.broken(context, from, violation);
            return Route::Absorb;
        };
        match remains.alias {
            // It may have given any alias another topic, so that later messages could be taken for what they are not.
            Err(_) if self.alias_max_down > 0 => {
                self.broken(context, from, violation);
                return Route::Absorb;
            }
            Ok(Some(alias)) => self.forget_alias(alias),
            Ok(None) | Err(_) => {}
        }
        let delivery = Publish {
            dup: remains.dup,
            qos: remains.qos,
            retain: false,
            topic: "",
            packet_id: remains.packet_id,
            properties: Properties::EMPTY,
            payload: &[],
            payload_bytes: 0,
        };
        self.unjudged(context, from, violation, &delivery)
    }

    /// A PUBLISH with a topic alias that says nothing: the client's ends the session, the broker's is dropped with its
    /// acknowledgement.
    pub(super) fn unjudged(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        violation: Violation,
        publish: &Publish<'_>,
    ) -> Route {
        if from == Side::Downstream {
            self.broken(context, from, violation);
            return Route::Absorb;
        }
        self.note_fault(context, violation, Counter::BrokerPacketsDropped);
        self.drop_delivery(context, publish)
    }

    fn forget_alias(&mut self, alias: u32) {
        let alias = u16::try_from(alias).ok().and_then(NonZeroU16::new);
        if let (Some(alias), Some(rare)) = (alias, self.rare.as_mut())
            && let Some(aliases) = &mut rare.alias_down
        {
            aliases.forget(alias);
        }
    }

    /// Counts a fault that did not end the session, and tells the log.
    pub(super) fn note_fault(
        &self,
        context: &mut Context<'_>,
        violation: Violation,
        counter: Counter,
    ) {
        context.counters.add(counter, 1);
        context.out.list.push(Output::Fault(violation));
    }

    /// Carries out a route for a packet of the broker that lies neither in the input nor in the carry.
    pub(super) fn pass_copy(
        &mut self,
        context: &mut Context<'_>,
        route: Route,
        packet: &[u8],
    ) -> Route {
        match route {
            Route::Forward => {
                self.tell_client(context, packet);
                Route::Replaced
            }
            Route::Last(cause) => {
                if self.tell_client(context, packet) {
                    self.end(context, cause);
                }
                Route::Replaced
            }
            // Only a PUBLISH goes on with another first byte.
            Route::ForwardWith(_) | Route::Replaced | Route::Absorb => route,
        }
    }

    /// A packet of the broker that goes on as it is, unless the client takes none of that length [MQTT-3.1.2-24].
    pub(super) fn fitted(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        route: Route,
        bytes: &[u8],
    ) -> Route {
        if from == Side::Downstream || self.is_taken(bytes.len()) {
            return route;
        }
        self.pass_copy(context, route, bytes)
    }

    /// True exactly when the client takes a packet of that length.
    pub(super) fn is_taken(&self, len: usize) -> bool {
        u32::try_from(len).is_ok_and(|len| len <= self.client_bytes_max)
    }

    /// Writes a whole packet to the client, which is at a boundary. False when the client has no room for it, not even
    /// without what may be left out; the session is ended then.
    fn tell_client(&mut self, context: &mut Context<'_>, packet: &[u8]) -> bool {
        if self.is_taken(packet.len()) {
            context.out.write(Side::Downstream, packet);
            return true;
        }
        match slim(self.version, packet) {
            Some(slimmed) if self.is_taken(slimmed.len()) => {
                context.out.write(Side::Downstream, &slimmed);
                true
            }
            Some(_) | None => {
                self.end(context, Cause::ClientNoRoom);
                false
            }
        }
    }

    /// Cuts what was written to [`super::Outputs::bytes`] from `start` on down to what the client takes. False when that
    /// cannot be done.
    pub(super) fn fits_client(&self, bytes: &mut Vec<u8>, start: usize) -> bool {
        let packet = bytes.get(start..).unwrap_or_default();
        if self.is_taken(packet.len()) {
            return true;
        }
        let slimmed = slim(self.version, packet).filter(|slimmed| self.is_taken(slimmed.len()));
        bytes.truncate(start);
        bytes.extend_from_slice(slimmed.as_deref().unwrap_or_default());
        slimmed.is_some()
    }
}

/// What a packet breaks that comes before CONNACK.
pub(super) fn too_early(from: Side) -> Violation {
    match from {
        Side::Downstream => Violation::PacketBeforeConnack,
        Side::Upstream => Violation::FirstPacketNotConnack,
    }
}
