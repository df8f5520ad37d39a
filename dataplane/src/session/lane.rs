//! One direction of the byte stream: cuts it into packets, asks what becomes of each, and writes the outcome.
//!
//! Owns packet boundaries: forwarded runs leave as ranges of the lease, packets of the proxy's own wait until the stream
//! is between two packets. It does not know what a packet means; `Session::route` and `Session::publish` do.

use std::ops::Range;

use sluice_wire::mqtt::{
    self, At, FixedHeader, Framer, PacketKind, Step, TooLong, Version, encode_fixed_header,
    plain_first_byte,
};

use super::{Cause, Context, Output, Outputs, Phase, Session, Side};
use crate::clock::Time;

/// Packets of our own may wait for the end of the broker's PUBLISH. When they are more than this, reading of the client
/// waits, which they answer.
pub(super) const QUEUE_DOWN_BYTES_HIGH: usize = 64 * 1024;

/// Packets of our own that may wait for the end of the client's PUBLISH. They answer the broker, which hears none of them
/// before; so this is one acknowledgement for each identifier there is, and more is owed to no broker that follows
/// the protocol.
const QUEUE_UP_BYTES_MAX: usize = 4 * 65_535;

/// What becomes of the payload of the PUBLISH that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// No payload is outstanding.
    None,
    /// Its head was written to the other side, which is in mid-packet exactly as long.
    Forwarding,
    /// Nothing of it goes on.
    Discarding,
}

/// One direction: what a side sends.
pub(super) struct Lane {
    framer: Framer,
    payload: Payload,
    /// When the packet that is not finished began; `None` exactly when the lane is at a boundary.
    begun: Option<Time>,
}

impl Lane {
    /// What a client sends, until CONNECT is known.
    pub(super) fn client(connect_bytes_max: u32) -> Self {
        Self {
            framer: Framer::new(mqtt::Side::Client, connect_bytes_max),
            payload: Payload::None,
            begun: None,
        }
    }

    /// What a broker sends. The framer has no limit: a delivery that is too long is dropped, not fatal, and what is
    /// buffered is bounded by [`Session::pump`].
    pub(super) fn server() -> Self {
        Self {
            framer: Framer::new(mqtt::Side::Server, u32::MAX),
            payload: Payload::None,
            begun: None,
        }
    }

    pub(super) fn set_version(&mut self, version: Version) {
        self.framer.set_version(version);
    }

    pub(super) fn set_packet_bytes_max(&mut self, packet_bytes_max: u32) {
        self.framer.set_packet_bytes_max(packet_bytes_max);
    }

    pub(super) fn payload(&self) -> Payload {
        self.payload
    }

    pub(super) fn begun(&self) -> Option<Time> {
        self.begun
    }

    /// Begins the deadline of an unfinished packet anew.
    pub(super) fn restart(&mut self, now: Time) {
        if self.begun.is_some() {
            self.begun = Some(now);
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.framer.heap_bytes()
    }

    /// Gives back everything.
    pub(super) fn clear(&mut self) {
        *self = Self::client(0);
    }
}

/// Bytes that arrived, and how to refer to them in an [`Output`].
pub(super) struct Input<'a> {
    bytes: &'a mut [u8],
    is_lease: bool,
}

impl<'a> Input<'a> {
    /// The lease of this call.
    pub(super) fn lease(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            is_lease: true,
        }
    }

    /// Bytes of session memory: they are copied where a lease is referred to.
    pub(super) fn held(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            is_lease: false,
        }
    }

    fn rest(&self, from: usize) -> &[u8] {
        self.bytes.get(from..).unwrap_or_default()
    }

    fn forward(&self, out: &mut Outputs, to: Side, start: usize, len: usize) {
        if self.is_lease {
            out.forward(to, start, len);
        } else {
            out.write(to, self.bytes.get(start..start + len).unwrap_or_default());
        }
    }
}

/// What becomes of a packet, or of the head of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// It goes on as it is.
    Forward,
    /// It goes on with this first byte. This and the others that go on are given a header that every version takes.
    ForwardWith(u8),
    /// It goes on as it is, and then the session ends.
    Last(Cause),
    /// Something else was written in its place.
    Replaced,
    /// Nothing of it goes on.
    Absorb,
}

impl Outputs {
    fn forward(&mut self, to: Side, start: usize, len: usize) {
        let (Ok(start), Ok(len)) = (u32::try_from(start), u32::try_from(len)) else {
            return; // A lease is far below 4 GiB.
        };
        if let Some(Output::Forward { to: last, range }) = self.list.last_mut()
            && *last == to
            && range.end == start
        {
            range.end += len;
        } else {
            self.list.push(Output::Forward {
                to,
                range: start..start + len,
            });
        }
    }

    pub(super) fn write(&mut self, to: Side, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.commit(to, start);
    }

    /// Sends what was appended to [`Outputs::bytes`] since it was `start` bytes long.
    pub(super) fn commit(&mut self, to: Side, start: usize) {
        // One call's outputs are far below 4 GiB.
        let offset = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let start = offset(start);
        let end = offset(self.bytes.len());
        if start == end {
            return;
        }
        if let Some(Output::Write { to: last, range }) = self.list.last_mut()
            && *last == to
            && range.end == start
        {
            range.end = end;
        } else {
            self.list.push(Output::Write {
                to,
                range: start..end,
            });
        }
    }
}

impl Session {
    fn lane(&mut self, side: Side) -> &mut Lane {
        match side {
            Side::Downstream => &mut self.down,
            Side::Upstream => &mut self.up,
        }
    }

    /// True exactly when the stream towards `to` is between two packets.
    pub(super) fn is_at_boundary(&self, to: Side) -> bool {
        let source = match to {
            Side::Downstream => &self.up,
            Side::Upstream => &self.down,
        };
        source.payload != Payload::Forwarding
    }

    /// Takes bytes of `from` apart until they are used up, must wait, or the session ends. Tells how many were taken:
    /// fewer than there are exactly when the rest must wait.
    pub(super) fn pump(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        input: &mut Input<'_>,
    ) -> usize {
        // The framer leaves its place while it runs, so that packets borrowed from it and the session can be used together.
        let lane = self.lane(from);
        let mut framer = std::mem::replace(&mut lane.framer, Framer::new(mqtt::Side::Client, 0));
        let mut at = 0;
        let mut finished_one = false;
        loop {
            if self.phase == Phase::Ended {
                return input.bytes.len();
            }
            if self.must_wait(from) {
                break;
            }
            // A broker may be left while its bytes are read; its lane is that of the next one then.
            if self.phase == Phase::Dialling && from == Side::Upstream {
                return input.bytes.len();
            }
            let step = match framer.next(input.rest(at)) {
                Ok(step) => step,
                Err(violation) => {
                    self.undecodable(context, from, input.rest(at), violation);
                    return input.bytes.len();
                }
            };
            match step {
                Step::Incomplete => {
                    at = input.bytes.len();
                    break;
                }
                Step::Packet {
                    header,
                    bytes,
                    at: place,
                    consumed,
                } => {
                    let route = self.route(context, from, header, bytes);
                    match place {
                        At::Input => {
                            self.emit(context, from, header, route, input, at..at + consumed);
                        }
                        At::Carry => self.emit_copy(context, from, header, route, bytes),
                    }
                    if header.kind == PacketKind::Connect {
                        framer.set_version(self.version);
                        framer.set_packet_bytes_max(self.packet_bytes_max);
                    }
                    self.went_on(context, from, header.kind);
                    at += consumed;
                    finished_one = true;
                }
                Step::PublishHead {
                    header,
                    bytes,
                    at: place,
                    payload_bytes,
                    consumed,
                } => {
                    let route = self.publish(context, from, header, bytes);
                    match place {
                        At::Input => {
                            self.emit(context, from, header, route, input, at..at + consumed);
                        }
                        At::Carry => self.emit_copy(context, from, header, route, bytes),
                    }
                    at += consumed;
                    finished_one |= payload_bytes == 0;
                    self.lane(from).payload = match (payload_bytes, route) {
                        (0, _) => Payload::None,
                        (_, Route::Absorb | Route::Last(_)) => Payload::Discarding,
                        (_, Route::Forward | Route::ForwardWith(_) | Route::Replaced) => {
                            Payload::Forwarding
                        }
                    };
                }
                Step::Payload { consumed, left } => {
                    if self.lane(from).payload == Payload::Forwarding {
                        input.forward(context.out, from.other(), at, consumed);
                        self.sent(context, from.other());
                    }
                    at += consumed;
                    if left == 0 {
                        finished_one = true;
                        self.lane(from).payload = Payload::None;
                        self.flush_queue(context, from.other());
                    }
                }
            }
            self.end_if_due(context);
        }
        let carry_bytes = framer.carry_bytes();
        let at_boundary = framer.is_at_boundary();
        let lane = self.lane(from);
        lane.framer = framer;
        lane.begun = match (at_boundary, lane.begun) {
            (true, _) => None,
            (false, Some(begun)) if !finished_one => Some(begun),
            (false, _) => Some(context.now),
        };
        if from == Side::Upstream && carry_bytes > upstream_carry_max(self.packet_bytes_max) {
            self.broken(context, from, mqtt::Violation::PacketTooLarge);
        }
        at
    }

    /// What follows a packet that has gone where it goes.
    pub(super) fn went_on(&mut self, context: &mut Context<'_>, from: Side, kind: PacketKind) {
        match (kind, self.phase) {
            (PacketKind::Connack, Phase::Connack) if !self.is_admitting() => self.opened(context),
            (PacketKind::Puback | PacketKind::Pubrec, Phase::Open) => {
                self.answer_in_order(context, from.other());
            }
            (PacketKind::Pubrel, Phase::Open) => self.answer_in_order(context, from),
            (_, _) => {}
        }
    }

    /// The stream of `from` cannot be followed from these bytes on.
    fn undecodable(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        bytes: &[u8],
        violation: mqtt::Violation,
    ) {
        if self.phase == Phase::Connecting {
            self.refuse_undecodable(context, bytes, violation);
        } else {
            self.broken(context, from, violation);
        }
    }

    /// Carries out a route for bytes that lie in the input.
    fn emit(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        header: FixedHeader,
        route: Route,
        input: &mut Input<'_>,
        range: Range<usize>,
    ) {
        let first = match route {
            Route::Forward | Route::Last(_) => header.first_byte(),
            Route::ForwardWith(first) => first,
            Route::Replaced => return self.sent(context, from.other()),
            Route::Absorb => return,
        };
        let first = plain_first_byte(first);
        let mut start = range.start;
        if !header.is_minimal() {
            start += usize::from(header.header_bytes);
            write_header(context.out, from.other(), header, first);
        } else if let Some(byte) = input.bytes.get_mut(start)
            && *byte != first
        {
            *byte = first;
        }
        if start < range.end {
            input.forward(context.out, from.other(), start, range.end - start);
        }
        self.sent(context, from.other());
        if let Route::Last(cause) = route {
            self.end(context, cause);
        }
    }

    /// Carries out a route for bytes that lie in session memory: the framer's carry, or a packet that was kept.
    pub(super) fn emit_copy(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        header: FixedHeader,
        route: Route,
        bytes: &[u8],
    ) {
        let first = match route {
            Route::Forward | Route::Last(_) => header.first_byte(),
            Route::ForwardWith(first) => first,
            Route::Replaced => return self.sent(context, from.other()),
            Route::Absorb => return,
        };
        write_header(context.out, from.other(), header, plain_first_byte(first));
        let rest = bytes.get(usize::from(header.header_bytes)..);
        context.out.write(from.other(), rest.unwrap_or_default());
        self.sent(context, from.other());
        if let Route::Last(cause) = route {
            self.end(context, cause);
        }
    }

    fn sent(&mut self, context: &Context<'_>, to: Side) {
        if to == Side::Upstream {
            self.timers.spoke(context.now);
        }
    }

    /// Writes a packet that stands in the place of a peer's. False when it cannot be written, which takes a packet that
    /// grows past what MQTT can say, or past what the client takes; the session is ended then.
    pub(super) fn encode_to(
        &mut self,
        context: &mut Context<'_>,
        to: Side,
        encode: impl FnOnce(Version, &mut Vec<u8>) -> Result<(), TooLong>,
    ) -> bool {
        let start = context.out.bytes.len();
        let bytes = &mut context.out.bytes;
        if encode(self.version, bytes).is_err() {
            self.end(context, Cause::Overload);
            return false;
        }
        if to == Side::Downstream && !self.fits_client(bytes, start) {
            self.end(context, Cause::ClientNoRoom);
            return false;
        }
        context.out.commit(to, start);
        true
    }

    /// Sends a packet of our own: at once at a boundary, else when the forwarded PUBLISH is complete.
    pub(super) fn originate(&mut self, context: &mut Context<'_>, to: Side, packet: &[u8]) {
        if self.phase == Phase::Ended {
            return;
        }
        if to == Side::Downstream && !self.is_taken(packet.len()) {
            self.rare().must_end = Some(Cause::ClientNoRoom);
            return;
        }
        if self.is_at_boundary(to) {
            context.out.write(to, packet);
            return self.sent(context, to);
        }
        let rare = self.rare();
        match to {
            Side::Downstream => rare.queue_down.extend_from_slice(packet),
            Side::Upstream if rare.queue_up.len() + packet.len() <= QUEUE_UP_BYTES_MAX => {
                rare.queue_up.extend_from_slice(packet);
            }
            // Not ended here: the packet that is being routed must be settled first, so that boundaries are known.
            Side::Upstream => rare.must_end = Some(Cause::Overload),
        }
    }

    fn flush_queue(&mut self, context: &mut Context<'_>, to: Side) {
        let Some(rare) = self.rare.as_mut() else {
            return;
        };
        let queue = match to {
            Side::Downstream => std::mem::take(&mut rare.queue_down),
            Side::Upstream => std::mem::take(&mut rare.queue_up),
        };
        if !queue.is_empty() {
            context.out.write(to, &queue);
            self.sent(context, to);
        }
    }
}

/// Writes a fixed header with this first byte, and a length that every version takes.
fn write_header(out: &mut Outputs, to: Side, header: FixedHeader, first: u8) {
    let start = out.bytes.len();
    // A length that was read can be written.
    let _ = encode_fixed_header(first, header.remaining_bytes, &mut out.bytes);
    out.commit(to, start);
}

/// What may be buffered of one packet of a broker that is not finished. The longest head of a delivery before version 5
/// always may: its broker cannot be told how much we take, so the delivery is dropped and not the session.
fn upstream_carry_max(packet_bytes_max: u32) -> usize {
    const HEAD_BYTES_MAX: usize = 5 + 2 + 65_535 + 2;
    usize::try_from(packet_bytes_max)
        .unwrap_or(usize::MAX)
        .max(HEAD_BYTES_MAX)
}

/// The side of `wire` that speaks on our `side`.
pub(super) fn speaker(side: Side) -> mqtt::Side {
    match side {
        Side::Downstream => mqtt::Side::Client,
        Side::Upstream => mqtt::Side::Server,
    }
}
