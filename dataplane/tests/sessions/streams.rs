//! Whole streams: what nothing forbids passes byte for byte at every split; garbage ends or waits; and every handshake
//! between a simple client and a simple broker comes to its end, whatever policy takes out of the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_dataplane::session::Side;
use sluice_wire::mqtt::{
    self, Packet, Properties, PropertiesBuf, Property, PropertyId, Publish, QoS, Suback, Subscribe,
    SubscribeFilter, SubscribeFilters, Unsuback, Unsubscribe, UnsubscribeFilters, Version, decode,
};

use crate::harness::{
    RULES, Rig, VERSIONS, ack, bytes, connack, connect, document, id, properties,
};

/// One packet of a stream, before it is written in a version.
#[derive(Clone, Debug)]
enum Sent {
    Message {
        topic: usize,
        qos: QoS,
        retain: bool,
        dup: bool,
        number: u16,
        payload_bytes: usize,
        alias: Option<u16>,
        has_property: bool,
    },
    Ack(u8, u16, bool),
    Request(u16, usize),
    Ping,
}

const TOPICS: [&str; 8] = [
    "open/a", "open/b/c", "secret/a", "low1/a", "low0/a", "strip/a", "bare/a", "small/a",
];

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn sent() -> impl Strategy<Value = Sent> {
    let payload = prop_oneof![4 => 0..20_usize, 1 => 100..400_usize];
    let message = (
        0..TOPICS.len(),
        0..3_usize,
        any::<(bool, bool, bool)>(),
        1..20_u16,
        payload,
        proptest::option::weighted(0.3, 1..4_u16),
    )
        .prop_map(
            |(topic, qos, (retain, dup, has_property), number, payload_bytes, alias)| {
                Sent::Message {
                    topic,
                    qos: QOS[qos],
                    retain,
                    dup: dup && qos > 0,
                    number,
                    payload_bytes,
                    alias,
                    has_property,
                }
            },
        );
    prop_oneof![
        6 => message,
        2 => (0..4_u8, 100..120_u16, any::<bool>()).prop_map(|(kind, number, short)| Sent::Ack(kind, number, short)),
        1 => (1..9_u16, 1..4_usize).prop_map(|(number, count)| Sent::Request(number, count)),
        1 => Just(Sent::Ping),
    ]
}

/// Writes a stream as `side` would send it. An alias is used alone once it has been set, so that the stream is legal.
fn write(version: Version, side: Side, stream: &[Sent]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut known = BTreeMap::new();
    for sent in stream {
        match sent {
            Sent::Message {
                topic,
                qos,
                retain,
                dup,
                number,
                payload_bytes,
                alias,
                has_property,
            } => {
                let payload = vec![0x5a; *payload_bytes];
                let mut list = PropertiesBuf::new();
                let mut name = TOPICS[*topic];
                if version == Version::V5 {
                    if let Some(alias) = alias {
                        let number = u32::from(*alias);
                        list.push(Property::Number(PropertyId::TopicAlias, number))
                            .unwrap();
                        if known.insert(*alias, *topic) == Some(*topic) {
                            name = "";
                        }
                    }
                    if *has_property {
                        list.push(Property::Pair("name", "value")).unwrap();
                    }
                }
                let message = Publish {
                    dup: *dup,
                    qos: *qos,
                    retain: *retain,
                    topic: name,
                    packet_id: (*qos != QoS::AtMostOnce).then(|| id(*number)),
                    properties: list.view(),
                    payload: &payload,
                    payload_bytes: u32::try_from(payload.len()).unwrap(),
                };
                out.extend(bytes(version, &Packet::Publish(message)));
            }
            Sent::Ack(kind, number, is_short) => {
                let code = if *is_short || *kind > 1 { 0 } else { 0x97 };
                let ack = ack(*number, code);
                let packet = match kind {
                    0 => Packet::Puback(ack),
                    1 => Packet::Pubrec(ack),
                    2 => Packet::Pubrel(ack),
                    _ => Packet::Pubcomp(ack),
                };
                out.extend(bytes(version, &packet));
            }
            Sent::Request(number, count) => out.extend(request(version, side, *number, *count)),
            Sent::Ping => out.extend_from_slice(match side {
                Side::Downstream => &[0xc0, 0],
                Side::Upstream => &[0xd0, 0],
            }),
        }
    }
    out
}

fn request(version: Version, side: Side, number: u16, count: usize) -> Vec<u8> {
    let mut filters = SubscribeFilters::new();
    let mut names = UnsubscribeFilters::new();
    for index in 0..count {
        let name = TOPICS[(usize::from(number) + index) % TOPICS.len()];
        filters
            .push(&SubscribeFilter::new(name, QOS[index % 3]))
            .unwrap();
        names.push(name).unwrap();
    }
    let codes = vec![0; count];
    let is_subscribe = number.is_multiple_of(2);
    let packet = match (side, is_subscribe) {
        (Side::Downstream, true) => {
            Packet::Subscribe(Subscribe::new(id(number), Properties::EMPTY, &filters))
        }
        (Side::Downstream, false) => {
            Packet::Unsubscribe(Unsubscribe::new(id(number), Properties::EMPTY, &names))
        }
        (Side::Upstream, true) => Packet::Suback(Suback {
            packet_id: id(number),
            properties: Properties::EMPTY,
            codes: &codes,
        }),
        (Side::Upstream, false) => Packet::Unsuback(Unsuback {
            packet_id: id(number),
            properties: Properties::EMPTY,
            codes: if version == Version::V5 { &codes } else { &[] },
        }),
    };
    bytes(version, &packet)
}

/// An open session in which both sides may use aliases.
fn rig(version: Version, document: &str) -> Rig {
    let limits = [
        Property::Number(PropertyId::TopicAliasMaximum, 8),
        Property::Number(PropertyId::ReceiveMaximum, 500),
        Property::Number(PropertyId::MaximumPacketSize, 5_000),
    ];
    let list = if version == Version::V5 {
        properties(&limits)
    } else {
        PropertiesBuf::new()
    };
    let mut request = connect(version, "dev");
    request.properties = list.view();
    let mut rig = Rig::dialled(version, document, &request);
    let limits = if version == Version::V5 {
        &limits[..]
    } else {
        &[]
    };
    rig.broker(&connack(version, 0, limits));
    rig.clear();
    rig
}

fn allow_all() -> String {
    document("", "").replace("default: deny", "default: allow")
}

/// Feeds both streams in turns, cut at these lengths.
fn feed(rig: &mut Rig, up: &[u8], down: &[u8], cuts: &[usize]) {
    let mut rest = [(Side::Downstream, up), (Side::Upstream, down)];
    let mut cuts = cuts.iter().copied().cycle();
    while rest.iter().any(|(_, bytes)| !bytes.is_empty()) {
        for (side, bytes) in &mut rest {
            let (part, left) = bytes.split_at(cuts.next().unwrap().min(bytes.len()));
            *bytes = left;
            if !part.is_empty() {
                rig.bytes_from(*side, part);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn what_nothing_forbids_passes_byte_for_byte(
        up in vec(sent(), 0..12),
        down in vec(sent(), 0..12),
        cuts in vec(1..60_usize, 1..8),
    ) {
        for version in VERSIONS {
            let up = write(version, Side::Downstream, &up);
            let down = write(version, Side::Upstream, &down);
            for cuts in [&cuts[..], &[1], &[100_000]] {
                let mut rig = rig(version, &allow_all());
                feed(&mut rig, &up, &down, cuts);
                prop_assert_eq!(rig.ended(), None);
                prop_assert_eq!(&rig.take_up(), &up);
                prop_assert_eq!(&rig.take_down(), &down);
            }
        }
    }

    #[test]
    fn what_comes_out_does_not_depend_on_how_it_is_cut(
        stream in vec(sent(), 0..14),
        cuts in vec(1..60_usize, 1..8),
        side in prop_oneof![Just(Side::Downstream), Just(Side::Upstream)],
    ) {
        for version in VERSIONS {
            let bytes = write(version, side, &stream);
            let mut whole = rig(version, &document("", RULES));
            whole.bytes_from(side, &bytes);
            let expected = (whole.take_down(), whole.take_up(), whole.ended());
            for cuts in [&cuts[..], &[1]] {
                let mut cut = rig(version, &document("", RULES));
                let (up, down) = match side {
                    Side::Downstream => (&bytes[..], &[][..]),
                    Side::Upstream => (&[][..], &bytes[..]),
                };
                feed(&mut cut, up, down, cuts);
                prop_assert_eq!((cut.take_down(), cut.take_up(), cut.ended()), expected.clone());
            }
        }
    }

    #[test]
    fn what_comes_out_can_be_read_by_its_receiver(
        up in vec(sent(), 0..14),
        down in vec(sent(), 0..14),
        cuts in vec(1..60_usize, 1..8),
    ) {
        for version in VERSIONS {
            let up = write(version, Side::Downstream, &up);
            let down = write(version, Side::Upstream, &down);
            let mut rig = rig(version, &document("", RULES));
            feed(&mut rig, &up, &down, &cuts);
            for (sender, bytes) in [
                (mqtt::Side::Client, rig.take_up()),
                (mqtt::Side::Server, rig.take_down()),
            ] {
                let ended = rig.ended();
                prop_assert!(whole_packets(version, sender, &bytes).is_ok(), "{sender:?} {ended:?}");
            }
        }
    }

    #[test]
    fn garbage_ends_or_waits(
        garbage in vec(vec(any::<u8>(), 0..40), 0..12),
        phase in 0..4_u8,
        sides in any::<u16>(),
    ) {
        for version in VERSIONS {
            let mut rig = at_phase(version, phase);
            for (index, part) in garbage.iter().enumerate() {
                let side = if sides >> index & 1 == 0 { Side::Downstream } else { Side::Upstream };
                rig.bytes_from(side, part);
                rig.passes(Duration::from_millis(100));
            }
            rig.passes(Duration::from_secs(1_000));
            prop_assert!(rig.ended().is_some() || phase == 1 || phase == 2, "nothing left to wait for");
        }
    }

    #[test]
    fn damaged_streams_end_or_wait(
        stream in vec(sent(), 1..10),
        flips in vec((any::<usize>(), any::<u8>()), 1..4),
        cuts in vec(1..60_usize, 1..8),
        side in prop_oneof![Just(Side::Downstream), Just(Side::Upstream)],
    ) {
        for version in VERSIONS {
            let mut bytes = write(version, side, &stream);
            for (at, value) in &flips {
                let at = at % bytes.len();
                bytes[at] = *value;
            }
            let mut rig = rig(version, &document("", RULES));
            let (up, down) = match side {
                Side::Downstream => (&bytes[..], &[][..]),
                Side::Upstream => (&[][..], &bytes[..]),
            };
            feed(&mut rig, up, down, &cuts);
            rig.passes(Duration::from_secs(1_000));
            prop_assert!(rig.ended().is_some());
        }
    }
}

/// A session that waits for CONNECT, for the hashing pool, for the dial, or that is open.
fn at_phase(version: Version, phase: u8) -> Rig {
    let document = document("", RULES);
    let mut rig = Rig::new(&document);
    let mut request = connect(version, "dev");
    match phase {
        0 => {}
        1 => {
            request.username = Some("alice");
            request.password = Some(b"x");
            rig.client(&bytes(version, &Packet::Connect(request)));
        }
        2 => rig.client(&bytes(version, &Packet::Connect(request))),
        _ => rig = Rig::open(version),
    }
    rig
}

/// Takes bytes apart as a receiver does; a PUBLISH cut off at the end is no error.
pub(crate) fn whole_packets(
    version: Version,
    sender: mqtt::Side,
    bytes: &[u8],
) -> Result<Vec<Vec<u8>>, mqtt::Violation> {
    let mut packets = Vec::new();
    let mut rest = bytes;
    while rest.len() > 1 {
        let length_bytes = rest[1..]
            .iter()
            .position(|byte| byte & 0x80 == 0)
            .unwrap_or(0)
            + 1;
        let length = rest[1..=length_bytes]
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
        let Some((packet, left)) = rest.split_at_checked(1 + length_bytes + length) else {
            break;
        };
        decode(version, sender, packet)?;
        packets.push(packet.to_vec());
        rest = left;
    }
    Ok(packets)
}

/// A peer that publishes and receives by the book, and remembers what it got.
#[derive(Default)]
struct Peer {
    /// Packet identifiers of its own messages that are not settled.
    in_flight: BTreeSet<u16>,
    /// QoS 2 messages received and not released.
    unreleased: BTreeSet<u16>,
    /// First payload byte of each message received: its name.
    received: Vec<u8>,
}

impl Peer {
    /// Reads packets and gives the answers.
    fn reads(&mut self, version: Version, sender: mqtt::Side, bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        let mut answer =
            |packet: Packet<'_>| answers.extend(crate::harness::bytes(version, &packet));
        for packet in whole_packets(version, sender, bytes).unwrap() {
            match decode(version, sender, &packet).unwrap() {
                Packet::Publish(message) => {
                    let number = message.packet_id.map_or(0, |id| id.get());
                    let is_new = message.qos != QoS::ExactlyOnce || self.unreleased.insert(number);
                    if is_new {
                        self.received.push(message.payload[0]);
                    }
                    match message.qos {
                        QoS::AtMostOnce => {}
                        QoS::AtLeastOnce => answer(Packet::Puback(ack(number, 0))),
                        QoS::ExactlyOnce => answer(Packet::Pubrec(ack(number, 0))),
                    }
                }
                Packet::Puback(ack) => {
                    assert!(
                        self.in_flight.remove(&ack.packet_id.get()),
                        "PUBACK of nothing"
                    );
                }
                // A message sent twice is answered twice, hence no complaint about the second of the next three.
                Packet::Pubrec(received) => {
                    let number = received.packet_id.get();
                    if received.code < 0x80 {
                        answer(Packet::Pubrel(ack(number, 0)));
                    } else {
                        self.in_flight.remove(&number);
                    }
                }
                Packet::Pubrel(released) => {
                    let number = released.packet_id.get();
                    self.unreleased.remove(&number);
                    answer(Packet::Pubcomp(ack(number, 0)));
                }
                Packet::Pubcomp(ack) => {
                    self.in_flight.remove(&ack.packet_id.get());
                }
                other => panic!("{other:?}"),
            }
        }
        answers
    }
}

/// Topic, whether the client may publish it, and whether it may receive it.
const FLOWS: [(&str, bool, bool); 4] = [
    ("open/a", true, true),
    ("secret/a", false, false),
    ("low1/a", true, true),
    ("low0/a", true, true),
];

/// A client and a broker that talk through a session until neither has anything to say.
struct Talk {
    version: Version,
    rig: Rig,
    client: Peer,
    broker: Peer,
    /// What the client, and the broker, has still to send.
    to_send: [Vec<u8>; 2],
}

impl Talk {
    fn new(version: Version) -> Self {
        Self {
            version,
            rig: Rig::open(version),
            client: Peer::default(),
            broker: Peer::default(),
            to_send: [Vec::new(), Vec::new()],
        }
    }

    fn publishes(&mut self, from_client: bool, message: &Publish<'_>, is_repeated: bool) {
        let (peer, stream) = if from_client {
            (&mut self.client, 0)
        } else {
            (&mut self.broker, 1)
        };
        self.to_send[stream].extend(bytes(self.version, &Packet::Publish(message.clone())));
        peer.in_flight.extend(message.packet_id.map(|id| id.get()));
        if is_repeated && message.qos == QoS::ExactlyOnce {
            let again = Publish {
                dup: true,
                ..message.clone()
            };
            self.to_send[stream].extend(bytes(self.version, &Packet::Publish(again)));
        }
    }

    /// Passes one packet on, of the client if it is its turn. False when nothing is left.
    fn step(&mut self, is_clients_turn: bool) -> bool {
        let stream = match self.to_send.each_ref().map(Vec::is_empty) {
            [true, true] => return false,
            [true, false] => 1,
            [false, true] => 0,
            [false, false] => usize::from(!is_clients_turn),
        };
        let side = [Side::Downstream, Side::Upstream][stream];
        // Every packet here is short: one byte of length.
        let length = 2 + usize::from(self.to_send[stream][1]);
        let packet: Vec<u8> = self.to_send[stream].drain(..length).collect();
        self.rig.bytes_from(side, &packet);
        assert_eq!(self.rig.ended(), None);
        let (down, up) = (self.rig.take_down(), self.rig.take_up());
        let answers = self.client.reads(self.version, mqtt::Side::Server, &down);
        self.to_send[0].extend(answers);
        let answers = self.broker.reads(self.version, mqtt::Side::Client, &up);
        self.to_send[1].extend(answers);
        true
    }

    /// Every handshake has come to its end on either side.
    fn is_settled(&self) -> bool {
        [&self.client, &self.broker]
            .iter()
            .all(|peer| peer.in_flight.is_empty() && peer.unreleased.is_empty())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_handshake_comes_to_its_end(
        messages in vec((0..FLOWS.len(), 0..3_usize, any::<bool>(), any::<bool>()), 1..20),
        order in vec(any::<bool>(), 1..16),
    ) {
        for version in VERSIONS {
            let mut talk = Talk::new(version);
            let mut expected = [Vec::new(), Vec::new()];
            for (number, (flow, qos, from_client, is_repeated)) in (1..).zip(&messages) {
                let (topic, may_publish, may_receive) = FLOWS[*flow];
                let name = [u8::try_from(number).unwrap(), 0, 0];
                let message = crate::harness::publish(topic, QOS[*qos], number, &name);
                talk.publishes(*from_client, &message, *is_repeated);
                if if *from_client { may_publish } else { may_receive } {
                    expected[usize::from(!from_client)].push(name[0]);
                }
            }
            let turns = order.iter().cycle().take(10_000);
            prop_assert!(!turns.clone().all(|turn| talk.step(*turn)), "they never stop");
            prop_assert!(talk.is_settled());
            prop_assert_eq!(&talk.broker.received, &expected[0]);
            prop_assert_eq!(&talk.client.received, &expected[1]);
        }
    }

    #[test]
    fn every_handshake_comes_to_its_end_whatever_generations_come_in_between(
        messages in vec((0..FLOWS.len(), 0..3_usize, any::<bool>()), 1..20),
        order in vec((any::<bool>(), 0..60_u8), 1..60),
    ) {
        let documents = [
            document("", RULES),
            document("", &RULES.replace("\"open/#\", ", "")),
            document("", &RULES.replace("qos_max: 1", "qos_max: 0")),
            allow_all(),
        ];
        for version in VERSIONS {
            let mut talk = Talk::new(version);
            for (number, (flow, qos, from_client)) in (1..).zip(&messages) {
                let message = crate::harness::publish(FLOWS[*flow].0, QOS[*qos], number, b"abc");
                talk.publishes(*from_client, &message, false);
            }
            let mut turns = order.iter().cycle().take(10_000);
            let is_over = !turns.all(|(turn, generation)| {
                if let Some(document) = documents.get(usize::from(*generation)) {
                    talk.rig.applies(document);
                }
                talk.step(*turn)
            });
            prop_assert!(is_over, "they never stop");
            prop_assert!(talk.is_settled());
        }
    }
}
