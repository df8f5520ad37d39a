//! A session between a client and a broker that both say anything: what it writes to either side can be read there.
//!
//! Plays the shard: every output is carried out at once, dials succeed, passwords are right.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::Counters;
use sluice_dataplane::session::{AuthOutcome, Context, Dialled, Output, Outputs, Session, Side};
use sluice_policy::{Effort, Generation, Snapshot, compile};
use sluice_wire::mqtt::{
    self, Framer, PacketKind, Step, Version, decode, decode_connect, decode_publish_head,
};

use crate::version;

/// Every kind of ruling has a topic of its own, one letter long, so that a fuzzer finds them.
const POLICY: &str = r##"
default: deny
upstreams: [{name: broker, endpoints: ["tcp://127.0.0.1:1883"]}]
listeners:
  - name: plain
    address: 127.0.0.1:1884
    upstream: broker
    anonymous: {group: guests}
    limits: {packet_bytes_max: 300, receive_max: 4, topic_alias_max: 4}
groups: [{name: guests}]
users: [{name: u, password_hash: "$2b$04$abcdefghijklmnopqrstuuQdFeAJMkTDdLVCuY7K0iwZ7rMkNwQZ2"}]
rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: open, actions: [publish, subscribe], topics: ["a/#", "${client_id}"], decision: allow}
  - {name: hidden, priority: 10, actions: [receive], topics: ["a/h"], decision: deny}
  - {name: low1, actions: [publish, subscribe], topics: ["b/#"], qos_max: 1, decision: allow}
  - {name: low0, actions: [publish, subscribe], topics: ["c/#"], qos_max: 0, decision: allow}
  - {name: strict, actions: [publish], topics: ["d"], qos_max: 1, qos_over: refuse, on_deny: close, decision: allow}
  - {name: strip, actions: [publish, subscribe], topics: ["e/#"], retain: strip, decision: allow}
  - {name: bare, actions: [publish], topics: ["f"], retain: refuse, decision: allow}
  - {name: small, actions: [publish], topics: ["g"], payload_bytes_max: 4, decision: allow}
"##;

/// The next generation of the same session: what was allowed under `a` is not, so open flows lose their rights.
const NARROWER: &str = r##"
default: deny
upstreams: [{name: broker, endpoints: ["tcp://127.0.0.1:1883"]}]
listeners:
  - {name: plain, address: "127.0.0.1:1884", upstream: broker, anonymous: {group: guests}}
groups: [{name: guests}]
rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: open, actions: [publish, subscribe], topics: ["b/#"], decision: allow}
"##;

/// What a call may do of work that can be divided: so little that a SUBSCRIBE of two filters takes several.
const SHARE_NODES: u32 = 20;

/// What a session may keep, whatever it is sent: far above what these inputs need, far below a leak for each packet.
const HEAP_BYTES_MAX: usize = 256 << 10;

/// Input: a byte for the version (bit 7: the streams begin with nothing, else with an open session), then steps of a byte
/// each. A step's low three bits choose: 0 to 2 the client sends, 3 to 5 the broker (a length byte and that many
/// bytes follow), 6 time passes, 7 another generation comes or a side finishes sending.
pub fn session(input: &[u8]) {
    let [choice, steps @ ..] = input else {
        return;
    };
    let version = version(choice & 0x3f);
    let mut rig = Rig::new();
    if choice & 0x80 == 0 {
        rig.open(version);
    }
    let mut rest = steps;
    while let [step, after @ ..] = rest {
        rest = after;
        match step & 7 {
            kind @ 0..=5 => {
                let [len, after @ ..] = rest else { return };
                let (bytes, after) = after.split_at(usize::from(*len).min(after.len()));
                rest = after;
                let side = if kind < 3 {
                    Side::Downstream
                } else {
                    Side::Upstream
                };
                rig.bytes_from(side, bytes);
            }
            6 => rig.passes(Duration::from_millis(1 << (step >> 3).min(20))),
            _ => match step >> 3 {
                0 => rig.call(&mut [], |session, context, _| {
                    session.handle_closed(context, Side::Downstream);
                }),
                1 => rig.call(&mut [], |session, context, _| {
                    session.handle_closed(context, Side::Upstream);
                }),
                _ => rig.applies_other(),
            },
        }
    }
}

/// The two generations, in turn.
fn snapshots() -> [Arc<Snapshot>; 2] {
    thread_local! {
        static COMPILED: RefCell<Option<[Arc<Snapshot>; 2]>> = const { RefCell::new(None) };
    }
    COMPILED.with_borrow_mut(|compiled| {
        compiled
            .get_or_insert_with(|| {
                let of = |text, number, previous| {
                    let snapshot = compile(text, "fuzz.yaml", Generation(number), previous);
                    Arc::new(snapshot.unwrap_or_else(|errors| panic!("{errors}")))
                };
                let first = of(POLICY, 1, None);
                let second = of(NARROWER, 2, Some(&first));
                [first, second]
            })
            .clone()
    })
}

/// One session, and what reads on both sides of it.
struct Rig {
    session: Session,
    snapshots: [Arc<Snapshot>; 2],
    generation: usize,
    now: Time,
    counters: Counters,
    out: Outputs,
    random: u64,
    /// Reads what goes to the client, and what goes to the broker.
    client: Reader,
    broker: Reader,
    /// What the session waits for.
    waits: Vec<Waits>,
    /// It left work for the next call.
    has_work: bool,
    is_closed: bool,
}

#[derive(Clone, Copy)]
enum Waits {
    Password,
    Dial,
}

impl Rig {
    fn new() -> Self {
        let snapshots = snapshots();
        let (counters, mut out) = (Counters::default(), Outputs::default());
        let now = Time(1_000_000_000);
        let listener = snapshots[0].listener_by_name("plain").map(|row| row.id);
        let session = Session::accepted(
            &mut Context {
                now,
                snapshot: &snapshots[0],
                effort: &mut Effort::new(SHARE_NODES),
                out: &mut out,
                counters: &counters,
                rules: None,
                random: &mut || 0,
                decisions: None,
                denials: None,
            },
            listener.unwrap_or_else(|| unreachable!("the policy above has it")),
            SocketAddr::from(([192, 0, 2, 7], 4711)),
        );
        Self {
            session,
            snapshots,
            generation: 0,
            now,
            counters,
            out,
            random: 0,
            client: Reader::new(mqtt::Side::Server),
            broker: Reader::new(mqtt::Side::Client),
            waits: Vec::new(),
            has_work: false,
            is_closed: false,
        }
    }

    /// CONNECT of the client `x` and the broker's yes.
    fn open(&mut self, version: Version) {
        let connect: &[u8] = match version {
            Version::V31 => b"\x10\x0f\0\x06MQIsdp\x03\x02\0\0\0\x01x",
            Version::V311 => b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01x",
            Version::V5 => b"\x10\x0e\0\x04MQTT\x05\x02\0\0\0\0\x01x",
        };
        self.bytes_from(Side::Downstream, connect);
        // Aliases of the client are allowed, so that they are met.
        let connack: &[u8] = match version {
            Version::V31 | Version::V311 => b"\x20\x02\0\0",
            Version::V5 => b"\x20\x06\0\0\x03\x22\0\x04",
        };
        self.bytes_from(Side::Upstream, connack);
        assert!(self.session.is_open(), "{version:?}");
    }

    fn bytes_from(&mut self, side: Side, bytes: &[u8]) {
        // Nothing comes from a broker that was not dialled.
        if side == Side::Upstream && !self.broker.has_begun {
            return;
        }
        let mut lease = bytes.to_vec();
        self.call(&mut lease, |session, context, lease| {
            session.handle_bytes(context, side, lease);
        });
    }

    fn passes(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        self.call(&mut [], |session, context, _| {
            session.handle_timeout(context);
        });
    }

    fn applies_other(&mut self) {
        self.generation = 1 - self.generation;
        self.call(&mut [], |session, context, _| {
            session.handle_generation(context);
        });
    }

    /// Calls into the session, carries out what it says, and answers what it asks for.
    fn call(
        &mut self,
        lease: &mut [u8],
        call: impl FnOnce(&mut Session, &mut Context<'_>, &mut [u8]),
    ) {
        if std::mem::take(&mut self.has_work) {
            self.call_once(&mut [], |session, context, _| session.handle_share(context));
        }
        self.call_once(lease, call);
        while let Some(waits) = self.waits.pop() {
            self.call_once(&mut [], |session, context, _| match waits {
                Waits::Password => session.handle_authenticated(context, AuthOutcome::Verified),
                Waits::Dial => session.handle_dialled(
                    context,
                    Dialled::Connected {
                        another_after: Some(Duration::from_secs(5)),
                    },
                ),
            });
        }
        assert!(self.session.heap_bytes() <= HEAP_BYTES_MAX);
    }

    fn call_once(
        &mut self,
        lease: &mut [u8],
        call: impl FnOnce(&mut Session, &mut Context<'_>, &mut [u8]),
    ) {
        let random = &mut self.random;
        call(
            &mut self.session,
            &mut Context {
                now: self.now,
                snapshot: &self.snapshots[self.generation],
                effort: &mut Effort::new(SHARE_NODES),
                out: &mut self.out,
                counters: &self.counters,
                rules: None,
                random: &mut || {
                    *random += 1;
                    *random
                },
                decisions: None,
                denials: None,
            },
            lease,
        );
        let written = std::mem::take(&mut self.out.bytes);
        for output in std::mem::take(&mut self.out.list) {
            assert!(!self.is_closed, "{output:?} after Close");
            match output {
                Output::Forward { to, range } => {
                    self.reads(to, &lease[range.start as usize..range.end as usize]);
                }
                Output::Write { to, range } => {
                    self.reads(to, &written[range.start as usize..range.end as usize]);
                }
                Output::Authenticate(_) => self.waits.push(Waits::Password),
                Output::Dial { .. } => self.waits.push(Waits::Dial),
                Output::LeaveUpstream { again, .. } => {
                    self.broker = Reader::new(mqtt::Side::Client);
                    if again {
                        self.waits.push(Waits::Dial);
                    }
                }
                Output::Answered
                | Output::PauseReading(_)
                | Output::ResumeReading(_)
                | Output::Fault(_)
                | Output::OtherProtocol(_)
                | Output::DeliveryTooLarge { .. } => {}
                Output::Later => self.has_work = true,
                Output::Close(_) => self.is_closed = true,
            }
        }
        assert_eq!(self.is_closed, self.session.is_ended());
    }

    fn reads(&mut self, to: Side, bytes: &[u8]) {
        assert!(!bytes.is_empty(), "an empty piece");
        let version = self.session.version();
        match to {
            Side::Downstream => self.client.read(version, bytes),
            Side::Upstream => self.broker.read(version, bytes),
        }
    }
}

/// A peer that ends the test at the first byte it cannot make sense of.
struct Reader {
    from: mqtt::Side,
    framer: Framer,
    has_begun: bool,
}

impl Reader {
    fn new(from: mqtt::Side) -> Self {
        Self {
            from,
            framer: Framer::new(from, u32::MAX),
            has_begun: false,
        }
    }

    fn read(&mut self, version: Option<Version>, bytes: &[u8]) {
        let version = version.unwrap_or(Version::V311);
        let mut rest = bytes;
        loop {
            // A broker learns the version from CONNECT, its first packet.
            if self.from == mqtt::Side::Server || self.has_begun {
                self.framer.set_version(version);
            }
            let step = self.framer.next(rest);
            let step = step.unwrap_or_else(|violation| panic!("{violation:?} in {rest:02x?}"));
            rest = match step {
                Step::Incomplete => return,
                Step::Packet {
                    header,
                    bytes,
                    consumed,
                    ..
                } => {
                    let read = if header.kind == PacketKind::Connect {
                        decode_connect(bytes).map(drop)
                    } else {
                        decode(version, self.from, bytes).map(drop)
                    };
                    if let Err(violation) = read {
                        panic!("{violation:?} in {bytes:02x?}");
                    }
                    self.has_begun = true;
                    &rest[consumed..]
                }
                Step::PublishHead {
                    bytes, consumed, ..
                } => {
                    if let Err(violation) = decode_publish_head(version, self.from, bytes) {
                        panic!("{violation:?} in {bytes:02x?}");
                    }
                    &rest[consumed..]
                }
                Step::Payload { consumed, .. } => &rest[consumed..],
            };
        }
    }
}
