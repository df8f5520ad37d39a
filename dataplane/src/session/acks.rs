//! Acknowledgements that the proxy owns: flows in which what one side hears is not what the other side said.
//!
//! Owns a table per direction, keyed by the packet identifier of the publisher. An identifier that is not in the table
//! belongs to a flow that passes through. The proxy never originates an identifier, so nothing here can collide.
//!
//! ```text
//!  publisher            proxy                 receiver
//!  PUBLISH 2  ──▶  refused, 3.x: PUBREC ◀── us, AwaitPubrel         (nothing)
//!  PUBLISH 2  ──▶  lowered to 0: PUBREC ◀── us, AwaitPubrel    ──▶  PUBLISH 0
//!  PUBLISH 2  ──▶  lowered to 1: AwaitPuback                   ──▶  PUBLISH 1
//!             ◀──  PUBREC, its code; AwaitPubrel               ◀──  PUBACK
//!  PUBREL     ──▶  PUBCOMP ◀── us, done
//! ```

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use sluice_wire::mqtt::{Ack, PacketId, PacketKind, ReasonCode};

use super::lane::Route;
use super::{Cause, Context, Session, Side, packets};
use crate::metrics::Counter;

/// Where an owned flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The receiver has the message at QoS 1; its PUBACK becomes the publisher's PUBREC.
    AwaitPuback,
    /// The publisher has its PUBREC; its PUBREL is answered by us.
    AwaitPubrel,
    /// The publisher gave the flow up before the receiver's PUBACK, which is swallowed.
    SwallowPuback,
}

/// The owned flows of one direction. Allocates with the first.
#[derive(Default)]
pub(super) struct Owned {
    flows: HashMap<PacketId, Flow, FixedState>,
}

impl Owned {
    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.flows.allocation_size()
    }
}

impl Session {
    fn owned(&mut self, publisher: Side) -> &mut Owned {
        let rare = self.rare();
        match publisher {
            Side::Downstream => &mut rare.owned_up,
            Side::Upstream => &mut rare.owned_down,
        }
    }

    /// The owned flow of `publisher` with this identifier.
    fn flow(&self, publisher: Side, packet_id: PacketId) -> Option<Flow> {
        let rare = self.rare.as_deref()?;
        let owned = match publisher {
            Side::Downstream => &rare.owned_up,
            Side::Upstream => &rare.owned_down,
        };
        owned.flows.get(&packet_id).copied()
    }

    fn set_flow(&mut self, publisher: Side, packet_id: PacketId, flow: Flow) {
        self.owned(publisher).flows.insert(packet_id, flow);
    }

    fn end_flow(&mut self, publisher: Side, packet_id: PacketId) {
        let owned = self.owned(publisher);
        owned.flows.remove(&packet_id);
        if owned.flows.is_empty() {
            *owned = Owned::default();
        }
    }

    /// True exactly when one more flow of `publisher` may be owned.
    pub(super) fn has_room_for_flow(&mut self, publisher: Side) -> bool {
        let bound = usize::from(self.receive_max);
        self.owned(publisher).flows.len() < bound
    }

    /// Ends the session because `publisher` has more in flight than it was allowed.
    pub(super) fn too_many_flows(&mut self, context: &mut Context<'_>, publisher: Side) {
        match publisher {
            Side::Downstream => {
                let reason = ReasonCode::ReceiveMaximumExceeded;
                self.end_telling(context, Cause::Overload, reason);
            }
            Side::Upstream => self.end(context, Cause::Overload),
        }
    }

    /// A PUBLISH with QoS 2 came again while its flow is owned: it is answered as far as the flow has got, and never
    /// forwarded. True exactly when that was so.
    pub(super) fn is_owned_duplicate(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        packet_id: PacketId,
    ) -> bool {
        match self.flow(publisher, packet_id) {
            None | Some(Flow::SwallowPuback) => false,
            Some(Flow::AwaitPuback) => true,
            Some(Flow::AwaitPubrel) => {
                self.acknowledge(context, publisher, PacketKind::Pubrec, packet_id, 0);
                true
            }
        }
    }

    /// Sends an acknowledgement of our own to `publisher`.
    pub(super) fn acknowledge(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        kind: PacketKind,
        packet_id: PacketId,
        code: u8,
    ) {
        context.counters.add(Counter::AcknowledgementsOwned, 1);
        let packet = packets::ack(self.version, kind, packet_id, code);
        self.originate(context, publisher, &packet);
    }

    /// Answers a QoS 2 PUBLISH ourselves: PUBREC, and the PUBREL to come is ours to answer.
    pub(super) fn own_handshake(
        &mut self,
        context: &mut Context<'_>,
        publisher: Side,
        packet_id: PacketId,
    ) {
        self.set_flow(publisher, packet_id, Flow::AwaitPubrel);
        self.acknowledge(context, publisher, PacketKind::Pubrec, packet_id, 0);
    }

    /// A QoS 2 PUBLISH goes on as QoS 1.
    pub(super) fn own_lowered(&mut self, publisher: Side, packet_id: PacketId) {
        self.set_flow(publisher, packet_id, Flow::AwaitPuback);
    }

    /// PUBACK from the receiver `from`.
    pub(super) fn puback(&mut self, context: &mut Context<'_>, from: Side, ack: &Ack<'_>) -> Route {
        let publisher = from.other();
        match self.flow(publisher, ack.packet_id) {
            None => Route::Forward,
            Some(Flow::SwallowPuback) => {
                self.end_flow(publisher, ack.packet_id);
                Route::Absorb
            }
            Some(Flow::AwaitPuback) => {
                if ack.code < 0x80 {
                    self.set_flow(publisher, ack.packet_id, Flow::AwaitPubrel);
                } else {
                    // An error code in PUBREC ends the flow: no PUBREL follows it (MQTT 5 section 4.3.3).
                    self.end_flow(publisher, ack.packet_id);
                }
                self.acknowledge(
                    context,
                    publisher,
                    PacketKind::Pubrec,
                    ack.packet_id,
                    ack.code,
                );
                Route::Absorb
            }
            // The receiver answers what it was not sent, or answers twice.
            Some(Flow::AwaitPubrel) => Route::Absorb,
        }
    }

    /// PUBREC from the receiver `from`: what we lowered has none, so it belongs to a flow that passes through, or is a
    /// stray answer to one of ours.
    pub(super) fn pubrec(&mut self, from: Side, ack: &Ack<'_>) -> Route {
        match self.flow(from.other(), ack.packet_id) {
            None => Route::Forward,
            Some(Flow::AwaitPuback | Flow::AwaitPubrel | Flow::SwallowPuback) => Route::Absorb,
        }
    }

    /// PUBREL from the publisher `from`.
    pub(super) fn pubrel(&mut self, context: &mut Context<'_>, from: Side, ack: &Ack<'_>) -> Route {
        match self.flow(from, ack.packet_id) {
            None => return Route::Forward,
            Some(Flow::AwaitPubrel) => self.end_flow(from, ack.packet_id),
            Some(Flow::AwaitPuback | Flow::SwallowPuback) => {
                self.set_flow(from, ack.packet_id, Flow::SwallowPuback);
            }
        }
        self.acknowledge(context, from, PacketKind::Pubcomp, ack.packet_id, 0);
        Route::Absorb
    }
}
