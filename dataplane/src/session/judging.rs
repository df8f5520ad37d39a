//! A SUBSCRIBE is judged filter by filter, in slices: what is left when a share of work is used up is done in later turns. An
//! UNSUBSCRIBE, of which nothing is judged, is read in the same way: it may have even more filters.
//!
//! Owns the packet until then, and how much of such work a session may cause: an allowance that refills with time. A
//! session that goes beyond it waits; it is not refused. Until all filters were judged nothing of the packet goes on;
//! another generation judges it from the start. Packets of the client that come behind it wait.

use std::time::Duration;

use sluice_policy::{Decision, Generation, HalfJudged, Verdict};
use sluice_wire::mqtt::{
    FixedHeader, PacketKind, QoS, ReasonCode, SubscribeFilter, SubscribeFilters, Version,
    Violation, decode_subscribe_head, decode_unsubscribe_head, next_subscribe_filter,
    next_unsubscribe_filter, parse_filter,
};

use super::lane::Route;
use super::reason_string::{FilterReasons, Refused, Why};
use super::subscribe::FROM_BROKER;
use super::{Context, Reason, Session, Side, Wanted};
use crate::clock::Time;
use crate::metrics::Counter;

/// Filters of one SUBSCRIBE; all of a longer one are refused. Its client waits for the answer to all of them together:
/// this many of usual cost are judged within about a second's allowance, and clients give up on a SUBACK after a few seconds.
pub const SUBSCRIBE_FILTERS_MAX: usize = 16_384;

/// The least bytes a filter takes in a packet: its length, a letter, its options.
const FILTER_BYTES_MIN: usize = 4;

/// How a node of work counts against the session: 250,000 a second. On tables that are in no cache that is a fortieth of a
/// shard's time; usual filters cost 20 nodes.
const NODE_TIME: Duration = Duration::from_micros(4);
/// What a session that did nothing for a while may do at once.
const ALLOWANCE: Duration = Duration::from_secs(1);

/// What a packet costs besides its filters, in nodes: it is decoded, and perhaps written and answered.
const PACKET_NODES: u32 = 16;
/// What a filter costs besides its check, in nodes: it is decoded, and perhaps written.
const FILTER_NODES: u32 = 2;
/// The same for a filter that is only decoded.
const FILTER_READ_NODES: u32 = 1;
/// Bytes that are checked and copied at the cost of one node.
const BYTES_A_NODE: usize = 128;
/// Bytes of a packet that are kept, and later written, at the cost of one node.
const PACKET_BYTES_A_NODE: usize = 2048;

/// How much work a session may cause now. As a time: what was done so far would be paid for by then.
#[derive(Clone, Copy)]
pub(super) struct Allowance {
    paid: Time,
}

impl Allowance {
    pub(super) fn full() -> Self {
        Self { paid: Time(0) }
    }

    fn spend(&mut self, now: Time, nodes: u32) {
        self.paid = self.paid.max(now).after(NODE_TIME * nodes);
    }

    /// From when on more may be done.
    fn open_at(self) -> Time {
        Time(self.paid.0.saturating_sub(ALLOWANCE.as_nanos() as u64))
    }
}

/// A SUBSCRIBE that is being judged, or an UNSUBSCRIBE that is being read. Its memory is bounded by that of a packet: what goes on is part of it, and a code is
/// shorter than its filter.
pub(super) struct Judging {
    header: FixedHeader,
    /// As sent. Empty while it lies in the input, where it stays when it is judged at once.
    packet: Box<[u8]>,
    /// That judges it.
    generation: Generation,
    /// Where its filters begin, and the next one to be judged.
    filters_at: usize,
    next_at: usize,
    half: Option<Box<HalfJudged>>,
    /// True exactly when there are more than [`SUBSCRIBE_FILTERS_MAX`].
    is_too_long: bool,
    /// True exactly when it waits for the allowance; else it waits for its share of a turn.
    is_paused: bool,
    pub(super) judged: Judged,
}

/// What was found so far.
#[derive(Default)]
pub(super) struct Judged {
    /// One for each filter: what the client is answered, or [`FROM_BROKER`] and the QoS it asked for.
    pub(super) codes: Vec<u8>,
    /// The filters that go on.
    pub(super) granted: SubscribeFilters,
    pub(super) refused: usize,
    pub(super) lowered: usize,
    /// Of those that go on: some of what they can deliver is refused.
    pub(super) narrowed: usize,
    /// True exactly when a filter goes on with other options than it came with.
    pub(super) is_changed: bool,
    pub(super) reasons: FilterReasons,
}

/// Why judging does not go on.
enum Stop {
    Later,
    Broken(Violation),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Broken(violation)
    }
}

impl Judging {
    fn begin(
        version: Version,
        generation: Generation,
        header: FixedHeader,
        bytes: &[u8],
    ) -> Result<Self, Violation> {
        let is_subscribe = header.kind == PacketKind::Subscribe;
        let head = if is_subscribe {
            decode_subscribe_head(version, bytes)?
        } else {
            decode_unsubscribe_head(version, bytes)?
        };
        let filters = head.filters;
        let filters_at = bytes.len() - filters.len();
        Ok(Self {
            header,
            packet: Box::default(),
            generation,
            filters_at,
            next_at: filters_at,
            half: None,
            is_too_long: is_subscribe && are_too_many(filters),
            is_paused: false,
            judged: Judged::default(),
        })
    }

    fn restart(&mut self, generation: Generation) {
        self.generation = generation;
        self.next_at = self.filters_at;
        self.half = None;
        self.judged = Judged::default();
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let half = self.half.as_ref().map_or(0, |_| size_of::<HalfJudged>());
        size_of::<Self>()
            + self.packet.len()
            + half
            + self.judged.codes.capacity()
            + self.judged.granted.heap_bytes()
            + self.judged.reasons.heap_bytes()
    }
}

/// Counts no further than it must, and looks at lengths only.
fn are_too_many(filters: &[u8]) -> bool {
    if filters.len() <= SUBSCRIBE_FILTERS_MAX * FILTER_BYTES_MIN {
        return false;
    }
    let mut rest = filters;
    let mut count = 0;
    while let Some(length) = rest.first_chunk::<2>() {
        let filter_bytes = 2 + usize::from(u16::from_be_bytes(*length)) + 1;
        rest = rest.get(filter_bytes..).unwrap_or_default();
        count += 1;
        if count > SUBSCRIBE_FILTERS_MAX {
            return true;
        }
    }
    false
}

impl Session {
    /// SUBSCRIBE or UNSUBSCRIBE from the client. One that can be judged at once leaves no trace here.
    pub(super) fn take_filters(
        &mut self,
        context: &mut Context<'_>,
        header: FixedHeader,
        bytes: &[u8],
    ) -> Route {
        let mut judging = match Judging::begin(self.version, self.generation, header, bytes) {
            Ok(judging) => judging,
            Err(violation) => return self.break_off(context, violation),
        };
        let before = context.effort.spent();
        let copied = bytes.len() / PACKET_BYTES_A_NODE;
        context.effort.spend_for(PACKET_NODES, copied);
        let spent = context.effort.spent() - before;
        self.allowance.spend(context.now, spent);
        match self.judge_on(context, &mut judging, bytes) {
            Ok(()) => self.all_judged(context, judging, bytes),
            Err(Stop::Broken(violation)) => self.break_off(context, violation),
            Err(Stop::Later) => {
                judging.packet = bytes.into();
                self.keep_judging(context, Box::new(judging));
                Route::Absorb
            }
        }
    }

    /// Goes on with a packet that was kept.
    pub(super) fn go_on_judging(&mut self, context: &mut Context<'_>) {
        let Some(mut judging) = self.rare.as_mut().and_then(|rare| rare.judging.take()) else {
            return;
        };
        if judging.generation != self.generation {
            judging.restart(self.generation);
        }
        let header = judging.header;
        let packet = std::mem::take(&mut judging.packet);
        let route = match self.judge_on(context, &mut judging, &packet) {
            Ok(()) => self.all_judged(context, *judging, &packet),
            Err(Stop::Broken(violation)) => self.break_off(context, violation),
            Err(Stop::Later) => {
                judging.packet = packet;
                return self.keep_judging(context, judging);
            }
        };
        self.emit_copy(context, Side::Downstream, header, route, &packet);
    }

    fn all_judged(&mut self, context: &mut Context<'_>, judging: Judging, packet: &[u8]) -> Route {
        if judging.header.kind == PacketKind::Unsubscribe {
            return Route::Forward;
        }
        self.judged(context, judging.judged, packet)
    }

    fn break_off(&mut self, context: &mut Context<'_>, violation: Violation) -> Route {
        self.broken(context, Side::Downstream, violation);
        Route::Absorb
    }

    fn keep_judging(&mut self, context: &mut Context<'_>, mut judging: Box<Judging>) {
        judging.is_paused = self.allowance.open_at() > context.now;
        if judging.is_paused {
            context.counters.add(Counter::SubscribePaused, 1);
        } else {
            self.leave_work(context);
        }
        self.rare().judging = Some(judging);
    }

    /// When a packet that waits for the allowance is to be gone on with.
    pub(super) fn judging_deadline(&self) -> Option<Time> {
        let judging = self.rare.as_ref()?.judging.as_ref()?;
        judging.is_paused.then(|| self.allowance.open_at())
    }

    /// Judges filters until none is left, or the turn's share of work, or the session's allowance, is used up.
    fn judge_on(
        &mut self,
        context: &mut Context<'_>,
        judging: &mut Judging,
        packet: &[u8],
    ) -> Result<(), Stop> {
        let mut rest = packet.get(judging.next_at..).unwrap_or_default();
        while !rest.is_empty() {
            if context.effort.is_used_up() || self.allowance.open_at() > context.now {
                return Err(Stop::Later);
            }
            let before = context.effort.spent();
            let taken = if judging.header.kind == PacketKind::Subscribe {
                self.take_filter(context, judging, &mut rest)
            } else {
                self.read_filter(context, &mut rest)
            };
            let spent = context.effort.spent() - before;
            self.allowance.spend(context.now, spent);
            taken?;
            judging.next_at = packet.len() - rest.len();
        }
        Ok(())
    }

    /// The next filter of an UNSUBSCRIBE.
    fn read_filter(&self, context: &mut Context<'_>, rest: &mut &[u8]) -> Result<(), Stop> {
        let filter = next_unsubscribe_filter(self.version, rest)?;
        let bytes = filter.map_or(0, str::len);
        let nodes = FILTER_READ_NODES;
        context.effort.spend_for(nodes, bytes / BYTES_A_NODE);
        Ok(())
    }

    /// The next filter of a SUBSCRIBE.
    fn take_filter(
        &self,
        context: &mut Context<'_>,
        judging: &mut Judging,
        rest: &mut &[u8],
    ) -> Result<(), Stop> {
        let Some(filter) = next_subscribe_filter(self.version, rest)? else {
            return Ok(());
        };
        let code = self.judge_filter(context, judging, &filter);
        // Counted last, so that each share brings the packet forward however small it is.
        let bytes = filter.filter.len();
        context.effort.spend_for(FILTER_NODES, bytes / BYTES_A_NODE);
        judging.judged.codes.push(code.ok_or(Stop::Later)?);
        Ok(())
    }

    /// Judges one filter, or goes on judging it: the code that stands in its place, `None` when the share of work is used
    /// up before.
    fn judge_filter(
        &self,
        context: &mut Context<'_>,
        judging: &mut Judging,
        filter: &SubscribeFilter<'_>,
    ) -> Option<u8> {
        let judged = &mut judging.judged;
        if judging.is_too_long {
            let reason = Reason::FiltersTooMany;
            return Some(self.refuse_filter(context, judged, filter, reason));
        }
        // Below version 5 a share that is not well formed is decoded, and what it would deliver is not known.
        let Ok(parsed) = parse_filter(filter.filter) else {
            let reason = Reason::FilterMalformed;
            return Some(self.refuse_filter(context, judged, filter, reason));
        };
        let verdict = context.snapshot.subscribe_within(
            self.rights.classes(),
            &self.identity.vars(),
            parsed.filter,
            filter.qos,
            parsed.share_group.is_some(),
            context.effort,
            &mut judging.half,
        )?;
        let wanted = Wanted::filter(filter.filter, filter.qos);
        self.note(context, wanted, &verdict);
        if let Decision::Deny(denial) = verdict.decision {
            self.note_filter(context, judged, Why::denied(denial, verdict.rule));
        }
        Some(self.take_down(judged, filter, &verdict))
    }

    /// Refuses a filter that no rule was asked about.
    fn refuse_filter(
        &self,
        context: &mut Context<'_>,
        judged: &mut Judged,
        filter: &SubscribeFilter<'_>,
        reason: Reason,
    ) -> u8 {
        judged.refused += 1;
        // All filters of a SUBSCRIBE that is too long are refused: the first one is told of, and stands for them.
        if reason != Reason::FiltersTooMany || judged.refused == 1 {
            let wanted = Wanted::filter(filter.filter, filter.qos);
            self.note_denial(context, wanted, reason);
        }
        let (code, what) = if reason == Reason::FiltersTooMany {
            (ReasonCode::QuotaExceeded, Refused::TooMany)
        } else {
            (ReasonCode::NotAuthorized, Refused::Malformed)
        };
        self.note_filter(context, judged, Why::alone(what));
        self.refusal_code(filter.qos, code)
    }

    /// Notes what becomes of a filter.
    fn take_down(
        &self,
        judged: &mut Judged,
        filter: &SubscribeFilter<'_>,
        verdict: &Verdict,
    ) -> u8 {
        let qos = filter.qos.min(verdict.qos_max);
        let options = match self.version {
            // The other bits are "not used", and a broker may not take them.
            Version::V31 => filter.qos.bits(),
            Version::V311 | Version::V5 => filter.options,
        };
        let granted = SubscribeFilter {
            qos,
            options,
            ..*filter
        };
        // What was decoded is never too long to be written.
        if verdict.decision == Decision::Allow && judged.granted.push(&granted).is_ok() {
            judged.lowered += usize::from(qos != filter.qos);
            judged.narrowed += usize::from(verdict.is_narrowed);
            judged.is_changed |= granted.options_with_qos() != filter.options;
            FROM_BROKER | filter.qos.bits()
        } else {
            judged.refused += 1;
            self.refusal_code(filter.qos, ReasonCode::NotAuthorized)
        }
    }

    /// MQTT 3.1 has no failure code: the client is told that it has what it asked for, and nothing will come.
    fn refusal_code(&self, requested: QoS, reason: ReasonCode) -> u8 {
        match self.version {
            Version::V31 => requested.bits(),
            Version::V311 => 0x80,
            Version::V5 => reason.byte(),
        }
    }
}
