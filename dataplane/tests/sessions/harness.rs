//! The shard of one session, as a test sees it: every output is carried out at once, and what each side would have
//! received lies in a buffer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_dataplane::clock::Time;
use sluice_dataplane::metrics::{Counter, Counters, RuleCount, RuleCounts};
use sluice_dataplane::session::{
    Act, AuthOutcome, Cause, Context, DecisionRecord, Dialled, Output, Outputs, Reason, Session,
    Side, Unanswered, User,
};
use sluice_policy::{Effort, Generation, Snapshot, compile};
use sluice_wire::mqtt::{
    Ack, Connack, Connect, Disconnect, Packet, PacketId, Properties, PropertiesBuf, Property,
    Publish, QoS, Suback, Subscribe, SubscribeFilter, SubscribeFilters, Unsubscribe,
    UnsubscribeFilters, Version, Violation, Will, encode,
};

pub(crate) const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// Rules that cover each obligation under a topic of its own; what no rule names is denied.
pub(crate) const RULES: &str = r##"
rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: open, actions: [publish, subscribe], topics: ["open/#", "self/${client_id}/#"], decision: allow}
  - {name: hidden, priority: 10, actions: [receive], topics: ["wide/hidden"], decision: deny}
  - {name: low1, actions: [publish, subscribe], topics: ["low1/#"], qos_max: 1, decision: allow}
  - {name: low0, actions: [publish, subscribe], topics: ["low0/#"], qos_max: 0, decision: allow}
  - {name: strict1, actions: [publish], topics: ["strict1/#"], qos_max: 1, qos_over: refuse, decision: allow}
  - {name: strip, actions: [publish, subscribe], topics: ["strip/#"], retain: strip, decision: allow}
  - {name: bare, actions: [publish], topics: ["bare/#"], retain: refuse, decision: allow}
  - {name: small, actions: [publish], topics: ["small/#"], payload_bytes_max: 4, decision: allow}
  - {name: closing, actions: [publish], topics: ["closing/#"], on_deny: close, decision: deny}
  - {name: bareclose, actions: [publish], topics: ["bareclose/#"], retain: refuse, on_deny: close, decision: allow}
  - {name: qosclose, actions: [publish], topics: ["qosclose/#"], qos_max: 1, qos_over: refuse, on_deny: close, decision: allow}
  - {name: shadowed, priority: 10, actions: [publish], topics: ["open/shadow"], mode: shadow, decision: deny}
"##;

/// A document with these keys of the listener and these rules.
pub(crate) fn document(listener: &str, rules: &str) -> String {
    format!(
        r#"
default: deny
upstreams:
  - {{name: broker, balance: round_robin, endpoints: ["tcp://127.0.0.1:1883"]}}
listeners:
  - name: plain
    address: 127.0.0.1:1884
    upstream: broker
    anonymous: {{group: guests}}
{listener}
groups:
  - {{name: guests}}
users:
  - {{name: alice, password_hash: "{HASH}"}}
  - {{name: bob, password_hash: "{HASH}", enabled: false}}
{rules}
"#
    )
}

/// Never verified here: the harness plays the hashing pool.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuuQdFeAJMkTDdLVCuY7K0iwZ7rMkNwQZ2";

fn snapshot(document: &str, generation: u64, previous: Option<&Snapshot>) -> Arc<Snapshot> {
    let snapshot = compile(document, "test.yaml", Generation(generation), previous);
    Arc::new(snapshot.unwrap_or_else(|errors| panic!("{errors}")))
}

/// The first generation of a document, compiled once for each test: the property tests ask thousands of times.
fn first_snapshot(document: &str) -> Arc<Snapshot> {
    thread_local! {
        static COMPILED: RefCell<BTreeMap<String, Arc<Snapshot>>> = const { RefCell::new(BTreeMap::new()) };
    }
    COMPILED.with_borrow_mut(|compiled| {
        let entry = compiled.entry(document.to_owned());
        Arc::clone(entry.or_insert_with(|| snapshot(document, 1, None)))
    })
}

/// What the session asked of the shard besides writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Authenticate {
        username: String,
        known: bool,
    },
    Dial,
    Leave {
        why: Unanswered,
        says_goodbye: bool,
        again: bool,
    },
    Pause(Side),
    Resume(Side),
    Later,
    Close(Cause),
}

/// A piece of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Forwarded(Side, usize),
    Written(Side, usize),
}

/// What was told of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) act: Act,
    pub(crate) reason: Reason,
    pub(crate) rule: Option<String>,
    pub(crate) user: String,
    pub(crate) client_id: String,
    pub(crate) topic: String,
    pub(crate) message: (Option<QoS>, bool, Option<u32>),
}

impl Denied {
    fn of(record: &DecisionRecord<'_>, snapshot: &Snapshot) -> Self {
        assert_eq!(record.peer, PEER.parse().unwrap());
        let wanted = record.wanted;
        Self {
            act: wanted.act,
            reason: record.refused.unwrap(),
            rule: record.rule.map(|rule| snapshot.rule_name(rule).to_owned()),
            user: match record.user {
                User::Nobody => String::new(),
                User::Verified(name) => format!("={name}"),
                User::Claimed(name) => format!("?{name}"),
            },
            client_id: record.client_id.to_owned(),
            topic: wanted.topic.to_owned(),
            message: (wanted.qos, wanted.retain, wanted.payload_bytes),
        }
    }
}

/// Where the client of the harness is.
pub(crate) const PEER: &str = "192.0.2.7:4711";

/// One session and everything around it.
pub(crate) struct Rig {
    pub(crate) session: Session,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) now: Time,
    pub(crate) events: Vec<Event>,
    pub(crate) decisions: Vec<(String, bool)>,
    pub(crate) denials: Vec<Denied>,
    /// Every piece that was sent: where to, from the lease or from copied bytes, and how long.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) version: Version,
    /// Clear answers to CONNECT.
    pub(crate) answered: usize,
    /// What the broker did wrong while the session went on.
    pub(crate) faults: Vec<Violation>,
    /// What a call may do of work that can be divided.
    pub(crate) share: u32,
    /// What it did.
    pub(crate) spent: u32,
    counters: Counters,
    rules: RuleCounts,
    out: Outputs,
    random: u64,
    down: Vec<u8>,
    up: Vec<u8>,
}

impl Rig {
    pub(crate) fn new(document: &str) -> Self {
        let snapshot = first_snapshot(document);
        let counters = Counters::default();
        let mut out = Outputs::default();
        let listener = snapshot.listener_by_name("plain").unwrap().id;
        let now = Time(1_000_000_000);
        let session = Session::accepted(
            &mut Context {
                now,
                snapshot: &snapshot,
                effort: &mut Effort::new(u32::MAX),
                out: &mut out,
                counters: &counters,
                rules: None,
                random: &mut || 0,
                decisions: None,
                denials: None,
            },
            listener,
            PEER.parse().unwrap(),
        );
        Self {
            session,
            snapshot,
            now,
            events: Vec::new(),
            decisions: Vec::new(),
            denials: Vec::new(),
            pieces: Vec::new(),
            version: Version::V311,
            answered: 0,
            faults: Vec::new(),
            share: u32::MAX,
            spent: 0,
            counters,
            rules: RuleCounts::new(u32::from(u16::MAX), u64::MAX),
            out,
            random: 0,
            down: Vec::new(),
            up: Vec::new(),
        }
    }

    /// An open anonymous session called `dev` under [`RULES`].
    pub(crate) fn open(version: Version) -> Self {
        Self::open_with(version, &document("", RULES), &connect(version, "dev"))
    }

    /// An open session of that CONNECT; a user is taken to have the right password.
    pub(crate) fn open_with(version: Version, document: &str, connect: &Connect<'_>) -> Self {
        let mut rig = Self::dialled(version, document, connect);
        rig.broker(&connack(version, 0, &[]));
        assert!(rig.session.is_open(), "{:?}", rig.events);
        rig.clear();
        rig
    }

    /// A session whose CONNECT went upstream.
    pub(crate) fn dialled(version: Version, document: &str, connect: &Connect<'_>) -> Self {
        let mut rig = Self::new(document);
        rig.version = version;
        rig.client(&bytes(version, &Packet::Connect(connect.clone())));
        if connect.username.is_some() {
            rig.authenticated(AuthOutcome::Verified);
        }
        assert_eq!(rig.events.last(), Some(&Event::Dial));
        assert!(
            rig.up.is_empty(),
            "something went upstream before it was there"
        );
        rig.dialled_now(true);
        rig
    }

    /// How often a rule decided, by its name in the snapshot at hand.
    pub(crate) fn rule_count(&self, name: &str) -> RuleCount {
        let mut rules = self.snapshot.rules_behind(None);
        let rule = rules.find(|rule| rule.name() == name).unwrap();
        self.rules.read(rule.id.0)
    }

    /// Decisions of the default.
    pub(crate) fn by_default(&self) -> u64 {
        self.rules.by_default()
    }

    /// Calls into the session and carries out what it says. `lease` is what it was given.
    pub(crate) fn call(
        &mut self,
        lease: &mut [u8],
        call: impl FnOnce(&mut Session, &mut Context<'_>, &mut [u8]),
    ) {
        let random = &mut self.random;
        let (decisions, denials) = (&mut self.decisions, &mut self.denials);
        let snapshot = &self.snapshot;
        let was_ended = self.session.is_ended();
        let mut effort = Effort::new(self.share);
        call(
            &mut self.session,
            &mut Context {
                now: self.now,
                snapshot: &self.snapshot,
                effort: &mut effort,
                out: &mut self.out,
                counters: &self.counters,
                rules: Some(&self.rules),
                random: &mut || {
                    *random += 1;
                    *random
                },
                decisions: Some(&mut |record: &DecisionRecord<'_>| {
                    let is_allowed = record.refused.is_none();
                    decisions.push((record.wanted.topic.to_owned(), is_allowed));
                }),
                denials: Some(&mut |record: &DecisionRecord<'_>| {
                    denials.push(Denied::of(record, snapshot));
                }),
            },
            lease,
        );
        self.spent = effort.spent();
        assert!(
            !was_ended || self.out.list.is_empty(),
            "an ended session still says {:?}",
            self.out.list
        );
        let written = std::mem::take(&mut self.out.bytes);
        for output in std::mem::take(&mut self.out.list) {
            assert!(
                !matches!(self.events.last(), Some(Event::Close(_))),
                "{output:?} after Close"
            );
            let (to, part) = match &output {
                Output::Forward { to, range } => {
                    (*to, &lease[range.start as usize..range.end as usize])
                }
                Output::Write { to, range } => {
                    (*to, &written[range.start as usize..range.end as usize])
                }
                Output::Authenticate(credentials) => {
                    self.events.push(Event::Authenticate {
                        username: credentials.username.to_string(),
                        known: credentials.verifier.is_some(),
                    });
                    continue;
                }
                Output::Dial { .. } => {
                    self.events.push(Event::Dial);
                    continue;
                }
                Output::Answered => {
                    self.answered += 1;
                    continue;
                }
                Output::LeaveUpstream {
                    why,
                    says_goodbye,
                    again,
                } => {
                    self.events.push(Event::Leave {
                        why: *why,
                        says_goodbye: *says_goodbye,
                        again: *again,
                    });
                    continue;
                }
                Output::PauseReading(side) => {
                    self.events.push(Event::Pause(*side));
                    continue;
                }
                Output::ResumeReading(side) => {
                    self.events.push(Event::Resume(*side));
                    continue;
                }
                Output::Fault(violation) => {
                    self.faults.push(*violation);
                    continue;
                }
                Output::OtherProtocol(_) | Output::DeliveryTooLarge { .. } => continue,
                Output::Later => {
                    self.events.push(Event::Later);
                    continue;
                }
                Output::Close(cause) => {
                    self.events.push(Event::Close(*cause));
                    continue;
                }
            };
            assert!(!part.is_empty(), "an empty piece");
            self.pieces.push(match output {
                Output::Forward { .. } => Piece::Forwarded(to, part.len()),
                _ => Piece::Written(to, part.len()),
            });
            match to {
                Side::Downstream => self.down.extend_from_slice(part),
                Side::Upstream => self.up.extend_from_slice(part),
            }
        }
    }

    pub(crate) fn bytes_from(&mut self, side: Side, bytes: &[u8]) {
        let mut lease = bytes.to_vec();
        self.call(&mut lease, |session, context, lease| {
            session.handle_bytes(context, side, lease);
        });
    }

    pub(crate) fn client(&mut self, bytes: &[u8]) {
        self.bytes_from(Side::Downstream, bytes);
    }

    pub(crate) fn broker(&mut self, bytes: &[u8]) {
        self.bytes_from(Side::Upstream, bytes);
    }

    pub(crate) fn client_sends(&mut self, packet: &Packet<'_>) {
        let bytes = bytes(self.version, packet);
        self.client(&bytes);
    }

    pub(crate) fn broker_sends(&mut self, packet: &Packet<'_>) {
        let bytes = bytes(self.version, packet);
        self.broker(&bytes);
    }

    pub(crate) fn authenticated(&mut self, outcome: AuthOutcome) {
        self.call(&mut [], |session, context, _| {
            session.handle_authenticated(context, outcome);
        });
    }

    /// The broker is there, and there is no other; or none can be reached.
    pub(crate) fn dialled_now(&mut self, connected: bool) {
        self.dialled_as(if connected {
            Dialled::Connected {
                another_after: None,
            }
        } else {
            Dialled::Failed
        });
    }

    pub(crate) fn dialled_as(&mut self, dialled: Dialled) {
        self.call(&mut [], |session, context, _| {
            session.handle_dialled(context, dialled);
        });
    }

    pub(crate) fn closed(&mut self, side: Side) {
        self.call(&mut [], |session, context, _| {
            session.handle_closed(context, side);
        });
    }

    pub(crate) fn end(&mut self, cause: Cause) {
        self.call(&mut [], |session, context, _| {
            session.handle_end(context, cause);
        });
    }

    pub(crate) fn held(&mut self, side: Side, held: bool) {
        self.call(&mut [], |session, context, _| {
            session.handle_held(context, side, held);
        });
    }

    /// Lets time pass and checks the deadlines, due or not.
    pub(crate) fn passes(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        self.call(&mut [], |session, context, _| {
            session.handle_timeout(context);
        });
    }

    /// A share of a turn, where the session said that it has work left.
    pub(crate) fn goes_on(&mut self) {
        assert_eq!(self.events.pop(), Some(Event::Later));
        self.call(&mut [], |session, context, _| session.handle_share(context));
    }

    /// Another generation, known to the session from its next call on.
    pub(crate) fn applies(&mut self, document: &str) {
        let generation = self.snapshot.generation().0 + 1;
        self.snapshot = snapshot(document, generation, Some(&self.snapshot));
    }

    /// Tells the session of it.
    pub(crate) fn sweeps(&mut self) {
        self.call(&mut [], |session, context, _| {
            session.handle_generation(context);
        });
    }

    pub(crate) fn take_down(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.down)
    }

    pub(crate) fn take_up(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.up)
    }

    pub(crate) fn clear(&mut self) {
        self.down.clear();
        self.up.clear();
        self.events.clear();
        self.decisions.clear();
        self.denials.clear();
        self.pieces.clear();
        self.faults.clear();
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.counters.read(counter)
    }

    pub(crate) fn ended(&self) -> Option<Cause> {
        match self.events.last() {
            Some(Event::Close(cause)) => Some(*cause),
            Some(_) | None => None,
        }
    }

    /// What went to each side since it was last looked at.
    #[track_caller]
    pub(crate) fn expect(&mut self, down: &[u8], up: &[u8], note: &str) {
        assert_eq!(self.take_down(), down, "down: {note}");
        assert_eq!(self.take_up(), up, "up: {note}");
    }
}

pub(crate) fn bytes(version: Version, packet: &Packet<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(version, packet, &mut out).unwrap();
    out
}

pub(crate) fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}

pub(crate) fn properties(list: &[Property<'_>]) -> PropertiesBuf {
    let mut buffer = PropertiesBuf::new();
    for property in list {
        buffer.push(*property).unwrap();
    }
    buffer
}

pub(crate) fn connect(version: Version, client_id: &str) -> Connect<'_> {
    Connect {
        is_bridge: false,
        version,
        clean_start: true,
        keep_alive_secs: 60,
        properties: Properties::EMPTY,
        client_id,
        will: None,
        username: None,
        password: None,
    }
}

pub(crate) fn will<'a>(topic: &'a str, qos: QoS, retain: bool, payload: &'a [u8]) -> Will<'a> {
    Will {
        qos,
        retain,
        properties: Properties::EMPTY,
        topic,
        payload,
    }
}

pub(crate) fn connack(version: Version, code: u8, list: &[Property<'_>]) -> Vec<u8> {
    let list = properties(list);
    let connack = Connack {
        session_present: false,
        code,
        properties: list.view(),
    };
    bytes(version, &Packet::Connack(connack))
}

pub(crate) fn publish<'a>(topic: &'a str, qos: QoS, number: u16, payload: &'a [u8]) -> Publish<'a> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic,
        packet_id: (qos != QoS::AtMostOnce).then(|| id(number)),
        properties: Properties::EMPTY,
        payload,
        payload_bytes: u32::try_from(payload.len()).unwrap(),
    }
}

pub(crate) fn ack<'a>(number: u16, code: u8) -> Ack<'a> {
    Ack {
        packet_id: id(number),
        code,
        properties: Properties::EMPTY,
    }
}

pub(crate) fn subscribe(version: Version, number: u16, filters: &[(&str, QoS)]) -> Vec<u8> {
    let mut buffer = SubscribeFilters::new();
    for (filter, qos) in filters {
        buffer.push(&SubscribeFilter::new(filter, *qos)).unwrap();
    }
    bytes(
        version,
        &Packet::Subscribe(Subscribe::new(id(number), Properties::EMPTY, &buffer)),
    )
}

pub(crate) fn unsubscribe<'a>(
    version: Version,
    number: u16,
    filters: impl Iterator<Item = &'a str>,
) -> Vec<u8> {
    let mut buffer = UnsubscribeFilters::new();
    for filter in filters {
        buffer.push(filter).unwrap();
    }
    let unsubscribe = Unsubscribe::new(id(number), Properties::EMPTY, &buffer);
    bytes(version, &Packet::Unsubscribe(unsubscribe))
}

pub(crate) fn suback(version: Version, number: u16, codes: &[u8]) -> Vec<u8> {
    bytes(
        version,
        &Packet::Suback(Suback {
            packet_id: id(number),
            properties: Properties::EMPTY,
            codes,
        }),
    )
}

pub(crate) fn disconnect(version: Version, code: u8) -> Vec<u8> {
    bytes(
        version,
        &Packet::Disconnect(Disconnect {
            code,
            properties: Properties::EMPTY,
        }),
    )
}
