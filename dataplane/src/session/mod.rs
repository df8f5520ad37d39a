//! What we do with one client: a sans-io state machine that drives `wire` and asks `policy`.
//!
//! Owns the meaning of both byte streams of a session. Makes no system call, reads no clock, knows no socket. The shard
//! calls one `handle_*`, then carries out every [`Output`] in order, then may call the next.

use std::net::IpAddr;
use std::ops::Range;

use sluice_policy::{ListenerId, Snapshot, UpstreamId, Verifier};

use crate::clock::Time;
use crate::metrics::Counters;

/// A side of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client.
    Downstream,
    /// The broker.
    Upstream,
}

/// Everything a session may look at during one call.
pub struct Context<'a> {
    /// Read once per turn.
    pub now: Time,
    /// Loaded once per turn.
    pub snapshot: &'a Snapshot,
    /// Where outputs go.
    pub out: &'a mut Outputs,
    /// The shard's counters.
    pub counters: &'a Counters,
    /// The shard's seeded generator (assigned client ids).
    pub random: &'a mut dyn FnMut() -> u64,
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
    /// Connect to the upstream, then call `handle_dialled`.
    Dial { upstream: UpstreamId, key: u64 },
    /// Stop or resume reading a side (besides what backpressure does).
    PauseReading(Side),
    /// Resume reading a side.
    ResumeReading(Side),
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

/// Outputs of one call, reused from call to call.
#[derive(Debug, Default)]
pub struct Outputs {
    /// In order.
    pub list: Vec<Output>,
    /// What [`Output::Write`] refers to.
    pub bytes: Vec<u8>,
}

/// Why a session ended: the rows of the table of design D21. One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// DISCONNECT from the client.
    ClientDisconnect,
    /// FIN or reset from the client without DISCONNECT.
    ClientGone,
    /// DISCONNECT, FIN or reset from the broker after CONNACK.
    UpstreamGone,
    /// The broker refused the CONNECT; its CONNACK was passed on.
    UpstreamRefused,
    /// No upstream could be reached: 3 / 0x88.
    UpstreamUnavailable,
    /// The client broke the protocol.
    Violation(sluice_wire::mqtt::Violation),
    /// The broker broke the protocol.
    UpstreamViolation(sluice_wire::mqtt::Violation),
    /// CONNECT was refused: credentials.
    Unauthenticated,
    /// CONNECT was refused, or the session was ended, by policy.
    Denied,
    /// Client id, version or will refused at CONNECT.
    Refused,
    /// Hashing queue full: 3 / 0x89.
    Busy,
    /// No CONNECT in time.
    ConnectTimeout,
    /// A packet once begun was not finished in time.
    PacketTimeout,
    /// Keep alive ran out: 0x8d.
    KeepAlive,
    /// The client does not take what it is owed.
    WriteStall,
    /// Kick: 0x98.
    Kicked,
    /// Drain: 0x8b.
    Drained,
    /// A bound of ours was reached: backlog budget, owned acknowledgements, aliases.
    Overload,
}

/// What a deadline of [`Session::poll_timeout`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// CONNECT must have arrived.
    Connect,
    /// A begun packet must be finished.
    Packet,
    /// Keep alive, one and a half times.
    KeepAlive,
    /// Nothing went upstream for the interval: send PINGREQ.
    UpstreamPing,
}

/// One client. See the module documentation.
pub struct Session {
    listener: ListenerId,
    peer: IpAddr,
}

impl Session {
    /// A connection was accepted on `listener`.
    pub fn accepted(context: &mut Context<'_>, listener: ListenerId, peer: IpAddr) -> Self {
        let _ = context;
        Self { listener, peer }
    }

    /// Bytes arrived from `side`.
    pub fn handle_bytes(&mut self, context: &mut Context<'_>, side: Side, lease: &mut [u8]) {
        let _ = (context, side, lease, self.listener, self.peer);
        todo!()
    }
    /// `side` finished sending or failed.
    pub fn handle_closed(&mut self, context: &mut Context<'_>, side: Side) {
        let _ = (context, side);
        todo!()
    }
    /// The answer to [`Output::Authenticate`].
    pub fn handle_authenticated(&mut self, context: &mut Context<'_>, outcome: AuthOutcome) {
        let _ = (context, outcome);
        todo!()
    }
    /// The answer to [`Output::Dial`]: true when connected, false when every attempt failed.
    pub fn handle_dialled(&mut self, context: &mut Context<'_>, connected: bool) {
        let _ = (context, connected);
        todo!()
    }
    /// The deadline of [`Session::poll_timeout`] has passed (or is checked early: must be harmless).
    pub fn handle_timeout(&mut self, context: &mut Context<'_>) {
        let _ = context;
        todo!()
    }
    /// The snapshot of `context` is another one than the session was judged by. Called before any table is read.
    pub fn handle_generation(&mut self, context: &mut Context<'_>) {
        let _ = context;
        todo!()
    }
    /// An operator ends the session (`Kicked`), we drain (`Drained`), the shard found a write stall or overload.
    pub fn handle_end(&mut self, context: &mut Context<'_>, cause: Cause) {
        let _ = (context, cause);
        todo!()
    }
    /// The shard holds reading of `side` back (or lets it go on): the keep-alive timer of that side is suspended.
    pub fn handle_held(&mut self, context: &mut Context<'_>, side: Side, held: bool) {
        let _ = (context, side, held);
        todo!()
    }
    /// When to call `handle_timeout`, and why.
    pub fn poll_timeout(&self) -> Option<(Time, Deadline)> {
        None
    }
    /// The generation the session was last judged by; `None` before CONNECT.
    pub fn generation(&self) -> Option<sluice_policy::Generation> {
        None
    }
    /// The client id, once known.
    pub fn client_id(&self) -> Option<&str> {
        None
    }
    /// The verified user name.
    pub fn username(&self) -> Option<&str> {
        None
    }
}
