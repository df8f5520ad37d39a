//! What we do with one client: a sans-io state machine that drives `wire` and asks `policy`.
//!
//! Owns the meaning of both byte streams of a session. Makes no system call, reads no clock, knows no socket. The shard
//! calls one `handle_*`, then carries out every [`Output`] in order, then may call the next.
//!
//! ```text
//!             CONNECT judged              verified                dialled            CONNACK 0
//!  Connecting ──────────────▶ Authenticating ─────▶ Dialling ─────────────▶ Connack ──────────▶ Open
//!      │         └── anonymous ──────────────────────▲ │                      │                  │
//!      │              │                    ▲           │      no answer       │                  │
//!      │              │                    └───────────│───── (once) ─────────┤                  │
//!      └──────────────┴────────────────────────────────┴───── any Cause ──────┴──────────────────┴──▶ Ended
//! ```
//!
//! # Invariants
//!
//! - **Nothing upstream is spent on a stranger.** [`Output::Dial`] comes after CONNECT was parsed, authenticated,
//!   admitted, and its will judged.
//! - **One writer per direction.** What goes to a side is the other side's packets plus packets the proxy originates; the
//!   latter are written exactly when no forwarded PUBLISH is half way, and queue (bounded) otherwise.
//! - **A PUBLISH is judged once**, when its head is complete; its payload follows that verdict whatever happens later.
//! - **After [`Output::Close`] nothing more is output**; every `handle_*` of an ended session does nothing.
//!
//! | file | noun |
//! |---|---|
//! | `lane.rs` | one direction of the byte stream: cutting, forwarding, packets of our own |
//! | `admitting.rs` | what a session is to the policy, asked in shares |
//! | `connect.rs`, `connack.rs` | how a session opens: who is it, what is told to either side |
//! | `chance.rs` | a broker that gives no answer to CONNECT, and the one that is asked instead |
//! | `identity.rs` | client id and verified user name |
//! | `publish.rs`, `alias.rs` | messages and their topic aliases |
//! | `acks.rs`, `order.rs` | acknowledgements, those that the proxy owns, and the order in which a publisher hears them |
//! | `reason_string.rs` | what a client of version 5 is told in words |
//! | `record.rs` | what is told of an answer to a client, and the reasons of refusals |
//! | `rights.rs` | what the policy lets the session do, and the last topic it asked about |
//! | `judging.rs`, `subscribe.rs` | SUBSCRIBE and UNSUBSCRIBE, judged and read in slices; its merged SUBACK |
//! | `waiting.rs` | why reading of the client waits, and what it had sent by then |
//! | `deadlines.rs` | keep alive and every other timer |
//! | `faults.rs` | what the broker does wrong, and what the client has no room for |
//! | `close.rs` | the table of how a session ends |
//! | `packets.rs` | the few packets that the proxy originates |

mod acks;
mod admitting;
mod alias;
mod chance;
mod close;
mod connack;
mod connect;
mod deadlines;
mod faults;
mod identity;
mod judging;
mod lane;
mod order;
mod packets;
mod publish;
mod reason_string;
mod record;
mod rights;
mod subscribe;
mod waiting;

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use sluice_policy::{
    Effort, Generation, ListenerId, Message, Snapshot, UpstreamId, Verdict, Verifier,
};
use sluice_wire::mqtt::{FixedHeader, Packet, PacketKind, Version, Violation, decode};

use crate::clock::Time;
use crate::metrics::{Counters, RuleCounts};

use identity::Identity;
use lane::Route;
use rights::Rights;
use waiting::Wait;

pub use chance::Unanswered;
pub use close::Cause;
pub use deadlines::Deadline;
pub use judging::SUBSCRIBE_FILTERS_MAX;
pub use record::{Act, DecisionRecord, Reason, ReasonKind, User, Wanted};

/// A side of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client.
    Downstream,
    /// The broker.
    Upstream,
}

impl Side {
    /// The opposite side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

/// Everything a session may look at during one call.
pub struct Context<'a> {
    /// Read once per turn.
    pub now: Time,
    /// Loaded once per turn.
    pub snapshot: &'a Snapshot,
    /// The share of work that can be divided. What is not done with it is left for later: [`Output::Later`].
    pub effort: &'a mut Effort,
    /// Where outputs go.
    pub out: &'a mut Outputs,
    /// The shard's counters.
    pub counters: &'a Counters,
    /// Where the shard counts how often each rule decides, by the snapshot's numbers; `None` costs one branch.
    pub rules: Option<&'a RuleCounts>,
    /// The shard's seeded generator (assigned client ids).
    pub random: &'a mut dyn FnMut() -> u64,
    /// Told of every answer to a client, when set; it samples. `None` costs one branch.
    pub decisions: Option<&'a mut dyn FnMut(&DecisionRecord<'_>)>,
    /// Told of every refusal, when set.
    pub denials: Option<&'a mut dyn FnMut(&DecisionRecord<'_>)>,
}

/// What the shard must do, in order.
#[derive(Debug)]
pub enum Output {
    /// Bytes of the lease given to this call go to `to`, unchanged since the session returned.
    Forward { to: Side, range: Range<u32> },
    /// Bytes of [`Outputs::bytes`] go to `to`.
    Write { to: Side, range: Range<u32> },
    /// Verify a password off the shard, then call `handle_authenticated`.
    Authenticate(Box<Credentials>),
    /// Connect to the upstream, then call `handle_dialled`. `kept`: the client wants its MQTT state kept between
    /// connections, so that it matters which endpoint it comes to.
    Dial {
        upstream: UpstreamId,
        key: u64,
        kept: bool,
    },
    /// The broker gave a clear answer to CONNECT, whatever it says; AUTH is one. Said once or more.
    Answered,
    /// The broker gave no usable answer to CONNECT: close its connection, which is no side's any more; `chance.rs` says how
    /// (`says_goodbye`: what was written to it ends with DISCONNECT). `again`: connect to another endpoint, then call
    /// `handle_dialled`.
    LeaveUpstream {
        why: Unanswered,
        says_goodbye: bool,
        again: bool,
    },
    /// Stop reading a side (besides what backpressure does). What was received before still comes to the session.
    PauseReading(Side),
    /// Resume reading a side.
    ResumeReading(Side),
    /// The broker broke a rule and the session goes on: for the log.
    Fault(Violation),
    /// What the client sends is no MQTT, but this: for the log.
    OtherProtocol(Reason),
    /// A message of the broker was dropped, because it has more bytes than the client is sent: for the log.
    DeliveryTooLarge {
        packet_bytes: u32,
        packet_bytes_max: u32,
    },
    /// Work was left: call `handle_share` in a later turn, once for each time this is said.
    Later,
    /// The session is over: flush what was written, then close both sides. Nothing more is given to the session.
    Close(Cause),
}

/// Credentials to verify. Wiped when dropped; `Debug` prints none of it.
pub struct Credentials {
    /// User name.
    pub username: Box<str>,
    /// What the client claims.
    pub password: Vec<u8>,
    /// What is stored; `None` when the user is unknown: a dummy is verified so that the answer takes as long.
    pub verifier: Option<Verifier>,
}

impl Drop for Credentials {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.password);
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// The answer to [`Output::Authenticate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthOutcome {
    /// The password is right.
    Verified,
    /// It is not, or the user is unknown.
    Refused,
    /// The hashing queue is full or its deadline passed.
    Busy,
}

/// The answer to [`Output::Dial`] and to [`Output::LeaveUpstream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// The connection stands. `another_after`: there is an endpoint to go to if this one has not answered CONNECT after that
    /// time, and room to keep CONNECT until then.
    Connected {
        /// See above.
        another_after: Option<Duration>,
    },
    /// Every attempt failed.
    Failed,
}

/// Outputs of one call, reused from call to call.
#[derive(Debug, Default)]
pub struct Outputs {
    /// In order.
    pub list: Vec<Output>,
    /// What [`Output::Write`] refers to.
    pub bytes: Vec<u8>,
}

/// Where a session stands; the diagram is in the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// CONNECT has not come.
    Connecting,
    /// The password is being verified off the shard.
    Authenticating,
    /// The upstream is being dialled.
    Dialling,
    /// CONNECT was sent upstream; its CONNACK has not come.
    Connack,
    /// CONNACK said yes and was passed on.
    Open,
    /// [`Output::Close`] was output.
    Ended,
}

/// One client. See the module documentation.
pub struct Session {
    phase: Phase,
    /// Of the CONNECT; meaningless while [`Phase::Connecting`].
    version: Version,
    listener: ListenerId,
    peer: IpAddr,
    peer_port: u16,
    /// What comes from the client.
    down: lane::Lane,
    /// What comes from the broker.
    up: lane::Lane,
    identity: Identity,
    generation: Generation,
    /// Of `generation`.
    rights: Rights,
    timers: deadlines::Timers,
    allowance: judging::Allowance,
    /// The longest packet either side may send us: the listener's limit when the session opened.
    packet_bytes_max: u32,
    /// The longest packet the client takes, as it said in CONNECT.
    client_bytes_max: u32,
    /// The longest packet the upstream takes (as told to the client).
    upward_bytes_max: u32,
    /// Topic aliases the client may use, as told to it.
    alias_max_up: u16,
    /// Topic aliases the broker may use, as told to it.
    alias_max_down: u16,
    /// Messages in flight at once, per direction, as version 5 was told.
    receive_max: u16,
    /// Messages of the client, and of the broker, that await their acknowledgement, while they can be written like this.
    run_up: order::Run,
    run_down: order::Run,
    /// True exactly when authentication is left to the upstream, so that AUTH packets pass.
    upstream_auth: bool,
    /// False when CONNECT said that problem information is not wanted (version 5).
    wants_problems: bool,
    /// True exactly when CONNECT said that the MQTT session ends with the connection (version 5).
    expires_at_close: bool,
    /// True exactly when the client id was assigned here, so that a client of version 5 is to be told.
    assigned_client_id: bool,
    /// True exactly when the address alone has proven the user name.
    is_proven_by_address: bool,
    /// The will as it was sent upstream.
    will: Option<Box<connect::WillRecord>>,
    /// Everything that an idle session does not have.
    rare: Option<Box<Rare>>,
}

/// What few sessions need, or needed only for a while. Dropped when nothing of it is in use.
#[derive(Default)]
struct Rare {
    /// The CONNECT, until no broker needs it any more.
    connect: connect::KeptConnect,
    /// Digest of the stored hash that the password is being verified against.
    verified_against: Option<[u8; 32]>,
    chance: chance::Chance,
    /// What the client, and the broker, sent while their packets had to wait.
    held: waiting::Held,
    held_up: waiting::Held,
    /// The policy has not said yet what the session is to it.
    admitting: Option<Box<admitting::Admitting>>,
    /// [`Output::Later`] was said, and the share has not come.
    is_queued: bool,
    /// PINGRESPs of the upstream that answer a PINGREQ of ours.
    pings_owned: u8,
    /// Originated packets that wait for a boundary, towards the client and the upstream.
    queue_down: Vec<u8>,
    queue_up: Vec<u8>,
    /// A packet of ours found no room; the session ends for this before the next packet is read.
    must_end: Option<Cause>,
    /// The same when they cannot, and flows that we see to.
    flows_up: order::Flows,
    flows_down: order::Flows,
    /// Why messages of the client were refused whose answers wait.
    reasons: Option<Box<reason_string::Waiting>>,
    /// A SUBSCRIBE that is not judged to its end, or an UNSUBSCRIBE that is not read to it.
    judging: Option<Box<judging::Judging>>,
    /// SUBSCRIBEs forwarded without some of their filters.
    subscribes: subscribe::Pending,
    /// Topic aliases of the client, and of the broker.
    alias_up: Option<Box<alias::Aliases>>,
    alias_down: Option<Box<alias::Aliases>>,
}

impl Rare {
    fn heap_bytes(&self) -> usize {
        let aliases = [&self.alias_up, &self.alias_down].into_iter().flatten();
        let judging = self.judging.as_deref();
        size_of::<Self>()
            + self.connect.heap_bytes()
            + self.held.heap_bytes()
            + self.held_up.heap_bytes()
            + self
                .admitting
                .as_deref()
                .map_or(0, admitting::Admitting::heap_bytes)
            + self.queue_down.capacity()
            + self.queue_up.capacity()
            + self.flows_up.heap_bytes()
            + self.flows_down.heap_bytes()
            + self
                .reasons
                .as_ref()
                .map_or(0, |reasons| reasons.heap_bytes())
            + judging.map_or(0, judging::Judging::heap_bytes)
            + self.subscribes.heap_bytes()
            + aliases.map(|aliases| aliases.heap_bytes()).sum::<usize>()
    }

    /// Why packets of the client are not taken up.
    fn wait(&self) -> Option<Wait> {
        if self.judging.is_some() || self.admitting.is_some() {
            Some(Wait::Share)
        } else if self.subscribes.is_full() {
            Some(Wait::Answers)
        } else if self.queue_down.len() > lane::QUEUE_DOWN_BYTES_HIGH {
            Some(Wait::Boundary)
        } else {
            None
        }
    }

    fn is_unused(&self, now: Time) -> bool {
        self.connect.is_empty()
            && self.chance == chance::Chance::None
            && self.held.is_unused()
            && self.held_up.is_unused()
            && self.admitting.is_none()
            && !self.is_queued
            && self.pings_owned == 0
            && self.queue_down.is_empty()
            && self.queue_up.is_empty()
            && self.must_end.is_none()
            && self.flows_up.is_unused(now)
            && self.flows_down.is_unused(now)
            && self.judging.is_none()
            && self.subscribes.is_empty()
            && self.alias_up.is_none()
            && self.alias_down.is_none()
    }
}

impl Session {
    /// A connection was accepted on `listener`.
    pub fn accepted(context: &mut Context<'_>, listener: ListenerId, peer: SocketAddr) -> Self {
        let limits = context.snapshot.listener(listener).map(|row| &row.limits);
        let connect_bytes_max = limits.map_or(0, |limits| limits.connect_bytes_max);
        Self {
            phase: Phase::Connecting,
            version: Version::V311,
            listener,
            peer: peer.ip(),
            peer_port: peer.port(),
            down: lane::Lane::client(connect_bytes_max),
            up: lane::Lane::server(),
            identity: Identity::default(),
            generation: Generation::default(),
            rights: Rights::default(),
            timers: deadlines::Timers::accepted(context.now, limits),
            allowance: judging::Allowance::full(),
            packet_bytes_max: limits.map_or(0, |limits| limits.packet_bytes_max),
            client_bytes_max: u32::MAX,
            upward_bytes_max: u32::MAX,
            alias_max_up: 0,
            alias_max_down: 0,
            receive_max: limits.map_or(1, |limits| limits.receive_max.max(1)),
            run_up: order::Run::default(),
            run_down: order::Run::default(),
            upstream_auth: false,
            wants_problems: true,
            expires_at_close: false,
            assigned_client_id: false,
            is_proven_by_address: false,
            will: None,
            rare: None,
        }
    }

    /// Bytes arrived from `side`.
    pub fn handle_bytes(&mut self, context: &mut Context<'_>, side: Side, lease: &mut [u8]) {
        if !self.is_there(context) || lease.is_empty() {
            return;
        }
        if side == Side::Downstream {
            self.timers.heard(context.now);
        }
        let taken = self.pump(context, side, &mut lane::Input::lease(lease));
        self.hold(context, side, lease.get(taken..).unwrap_or_default());
        self.settle(context);
    }

    /// `side` finished sending or failed.
    ///
    /// A client may send CONNECT, messages and DISCONNECT in one go and leave without waiting for CONNACK. What it sent
    /// ahead, or while it had to wait, is then delivered before the session ends; one that sent nothing ahead ends here,
    /// and costs no upstream.
    pub fn handle_closed(&mut self, context: &mut Context<'_>, side: Side) {
        if self.is_there(context) && !self.finishes_later(side) {
            self.closed(context, side);
        }
    }

    /// The answer to [`Output::Authenticate`].
    pub fn handle_authenticated(&mut self, context: &mut Context<'_>, outcome: AuthOutcome) {
        let is_admitting = self
            .rare
            .as_ref()
            .is_some_and(|rare| rare.admitting.is_some());
        if self.phase == Phase::Authenticating && !is_admitting {
            self.authenticated(context, outcome);
            self.settle(context);
        }
    }

    /// The answer to [`Output::Dial`] or [`Output::LeaveUpstream`].
    pub fn handle_dialled(&mut self, context: &mut Context<'_>, dialled: Dialled) {
        if !self.is_there(context)
            || self.phase != Phase::Dialling
            || self.is_dialled_later(dialled)
        {
            return;
        }
        self.dialled(context, dialled);
        self.settle(context);
    }

    /// The deadline of [`Session::poll_timeout`] has passed (or is checked early: must be harmless).
    pub fn handle_timeout(&mut self, context: &mut Context<'_>) {
        if self.is_current(context) {
            self.check_deadlines(context);
            self.settle(context);
        }
    }

    /// A share of a turn for the work that was left by [`Output::Later`].
    pub fn handle_share(&mut self, context: &mut Context<'_>) {
        if let Some(rare) = self.rare.as_mut() {
            rare.is_queued = false;
        }
        if self.is_current(context) {
            self.go_on_identifying(context);
            self.go_on_judging(context);
            self.settle(context);
        }
    }

    /// The snapshot of `context` is another one than the session was judged by. Called before any table is read; every
    /// other `handle_*` sees to it by itself, so only a session that is idle needs the call. The session may ask for a
    /// later turn: [`Session::generation`] tells.
    pub fn handle_generation(&mut self, context: &mut Context<'_>) {
        if self.is_current(context) {
            self.settle(context);
        }
    }

    /// An operator ends the session (`Kicked`), we drain (`Drained`), the shard found a write stall or overload.
    pub fn handle_end(&mut self, context: &mut Context<'_>, cause: Cause) {
        if self.is_there(context) && !self.ends_later(cause) {
            self.finish(context, cause);
        }
    }

    /// The shard holds reading of `side` back (or lets it go on): the keep-alive timer of that side is suspended.
    pub fn handle_held(&mut self, context: &mut Context<'_>, side: Side, held: bool) {
        self.hold_timers(context.now, side, held);
    }

    /// When to call `handle_timeout`, and why. Cheap: computed from stored times.
    pub fn poll_timeout(&self) -> Option<(Time, Deadline)> {
        self.next_deadline()
    }

    /// The generation the session was last judged by; `None` before it was admitted and after its end.
    pub fn generation(&self) -> Option<Generation> {
        self.is_judged().then_some(self.generation)
    }

    /// The client id, once known.
    pub fn client_id(&self) -> Option<&str> {
        let client_id = self.identity.client_id();
        (!client_id.is_empty()).then_some(client_id)
    }

    /// The verified user name.
    pub fn username(&self) -> Option<&str> {
        self.identity.username()
    }

    /// The listener it came in on.
    pub fn listener(&self) -> ListenerId {
        self.listener
    }

    /// Where it came from.
    pub fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.peer, self.peer_port)
    }

    /// The protocol version, once CONNECT has come.
    pub fn version(&self) -> Option<Version> {
        (self.phase != Phase::Connecting).then_some(self.version)
    }

    /// Heap behind this session, for the memory budget: an account of the large parts, not of the allocator.
    pub fn heap_bytes(&self) -> usize {
        let rare = self.rare.as_deref().map_or(0, Rare::heap_bytes);
        let will = self
            .will
            .as_deref()
            .map_or(0, connect::WillRecord::heap_bytes);
        let lanes = self.down.heap_bytes() + self.up.heap_bytes();
        self.identity.heap_bytes() + self.rights.heap_bytes() + lanes + rare + will
    }

    /// Bytes of the CONNECT that is kept; 0 when no broker needs it any more.
    pub fn kept_connect_bytes(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.connect.len())
    }

    /// True exactly when CONNACK said yes and the session has not ended.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// True exactly when [`Output::Close`] was output.
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }
}

/// What the files beside this one share.
impl Session {
    /// True exactly when `rights` are what the snapshot of `generation` said.
    fn is_judged(&self) -> bool {
        match self.phase {
            Phase::Dialling | Phase::Connack | Phase::Open => true,
            Phase::Connecting | Phase::Authenticating | Phase::Ended => false,
        }
    }

    /// Brings a session of an older generation up to date, or nearer to it. True exactly when it is still there.
    fn is_there(&mut self, context: &mut Context<'_>) -> bool {
        let is_current = self.generation == context.snapshot.generation() && !self.is_admitting();
        if !is_current && self.is_judged() {
            self.admit_again(context);
        }
        self.phase != Phase::Ended
    }

    /// The same. True exactly when it is up to date as well.
    fn is_current(&mut self, context: &mut Context<'_>) -> bool {
        self.is_there(context) && !self.is_admitting()
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The end of a call: takes up what waited, and gives memory back that nothing uses any more.
    fn settle(&mut self, context: &mut Context<'_>) {
        self.end_if_due(context);
        self.take_up_held(context);
        if self
            .rare
            .as_ref()
            .is_some_and(|rare| rare.is_unused(context.now))
        {
            self.rare = None;
        }
    }

    /// Ends the session when a packet could not be written while another one was being routed.
    fn end_if_due(&mut self, context: &mut Context<'_>) {
        if let Some(cause) = self.rare.as_ref().and_then(|rare| rare.must_end) {
            self.end(context, cause);
        }
    }

    /// True exactly when packets of the client are read although CONNACK has not come: AUTH, when the upstream
    /// authenticates. What was sent ahead of that stays held, or the order would be lost.
    fn takes_auth(&self) -> bool {
        self.upstream_auth
            && self.phase == Phase::Connack
            && self.rare.as_ref().is_none_or(|rare| rare.held.is_empty())
    }

    /// What becomes of a packet other than PUBLISH. One with filters is not decoded at once: there may be very many in it.
    fn route(
        &mut self,
        context: &mut Context<'_>,
        from: Side,
        header: FixedHeader,
        bytes: &[u8],
    ) -> Route {
        if self.phase == Phase::Connecting {
            return self.connect(context, bytes);
        }
        let has_filters = matches!(header.kind, PacketKind::Subscribe | PacketKind::Unsubscribe);
        if has_filters && from == Side::Downstream && self.phase == Phase::Open {
            return self.take_filters(context, header, bytes);
        }
        match decode(self.version, lane::speaker(from), bytes) {
            Ok(packet) => {
                let route = self.packet(context, from, &packet);
                self.fitted(context, from, route, bytes)
            }
            Err(violation) => self.illegal(context, from, violation, bytes),
        }
    }

    fn packet(&mut self, context: &mut Context<'_>, from: Side, packet: &Packet<'_>) -> Route {
        let violation = match (self.phase, packet) {
            (_, Packet::Auth(_)) if self.upstream_auth => {
                self.auth_passes(context, from);
                return Route::Forward;
            }
            (_, Packet::Auth(_)) => Violation::AuthNotNegotiated,
            // [MQTT-3.14.0-1]
            (Phase::Connack, Packet::Disconnect(_)) if from == Side::Upstream => {
                faults::too_early(from)
            }
            (_, Packet::Disconnect(disconnect)) => {
                return self.disconnect(context, from, disconnect);
            }
            (Phase::Connack, Packet::Connack(connack)) => return self.connack(context, connack),
            (_, Packet::Connack(_)) => Violation::SecondConnack,
            (Phase::Open, Packet::Puback(ack)) => return self.puback(context, from, ack),
            (Phase::Open, Packet::Pubrec(ack)) => return self.pubrec(context, from, ack),
            (Phase::Open, Packet::Pubrel(ack)) => return self.pubrel(context, from, ack),
            (Phase::Open, Packet::Suback(suback)) => return self.suback(context, suback),
            (Phase::Open, Packet::Pingresp) if self.swallows_pingresp() => return Route::Absorb,
            (Phase::Open, Packet::Pingreq) => {
                self.rest(context.now);
                return Route::Forward;
            }
            (Phase::Open, Packet::Pubcomp(_) | Packet::Unsuback(_) | Packet::Pingresp) => {
                return Route::Forward;
            }
            // A framer gives no PUBLISH as a whole packet, and CONNECT only as the first.
            (_, Packet::Connect(_) | Packet::Publish(_)) => Violation::SecondConnect,
            (
                _,
                Packet::Puback(_)
                | Packet::Pubrec(_)
                | Packet::Pubrel(_)
                | Packet::Pubcomp(_)
                | Packet::Subscribe(_)
                | Packet::Suback(_)
                | Packet::Unsubscribe(_)
                | Packet::Unsuback(_)
                | Packet::Pingreq
                | Packet::Pingresp,
            ) => faults::too_early(from),
        };
        self.misplaced(context, from, violation)
    }

    /// Asks the policy about one message, and tells who wants to know.
    fn judge(&self, context: &mut Context<'_>, act: Act, topic: &str, message: Message) -> Verdict {
        let (classes, vars) = (self.rights.classes(), self.identity.vars());
        let action = act.action();
        let ruling = context.snapshot.ruling(classes, &vars, action, topic);
        let verdict = ruling.verdict(message);
        self.note(context, Wanted::message(act, topic, message), &verdict);
        verdict
    }

    /// The same for a message that the client publishes, by a ruling that may be at hand.
    fn judge_publish(
        &mut self,
        context: &mut Context<'_>,
        topic: &str,
        message: Message,
    ) -> Verdict {
        let vars = self.identity.vars();
        let ruling = self.rights.on_publish(context.snapshot, &vars, topic);
        let verdict = ruling.verdict(message);
        let wanted = Wanted::message(Act::Publish, topic, message);
        self.note(context, wanted, &verdict);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 KiB per idle session is the budget; the shard's slot and the timer entry need their part of it.
    #[test]
    fn idle_session_is_small() {
        assert!(
            size_of::<Session>() <= 320,
            "Session has grown to {} bytes",
            size_of::<Session>()
        );
    }
}
