//! Random legal packets of every kind, version and side, as owned material that a [`Packet`] borrows from.

use proptest::prelude::*;

use super::super::codes;
use super::super::properties::{DataType, Place};
use super::*;

/// Everything a packet may borrow, and which packet to make of it.
#[derive(Clone, Debug)]
pub(super) struct Material {
    pub(super) version: Version,
    pub(super) side: Side,
    kind: PacketKind,
    bits: u32,
    packet_id: PacketId,
    code: u8,
    codes: Vec<u8>,
    topic: String,
    texts: (String, String),
    data: (Vec<u8>, Vec<u8>),
    properties: PropertiesBuf,
    will_properties: PropertiesBuf,
    subscribe: SubscribeFilters,
    unsubscribe: UnsubscribeFilters,
}

/// Packets of one direction after CONNECT.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) version: Version,
    pub(super) side: Side,
    pub(super) packets: Vec<Material>,
}

impl Stream {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for material in &self.packets {
            encode(self.version, &material.packet(), &mut bytes).unwrap();
        }
        bytes
    }
}

impl Material {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(self.version, &self.packet(), &mut bytes).unwrap();
        bytes
    }

    fn bit(&self, index: u32) -> bool {
        self.bits >> index & 1 == 1
    }

    pub(super) fn packet(&self) -> Packet<'_> {
        let properties = self.properties.view();
        let ack = Ack {
            packet_id: self.packet_id,
            code: self.code,
            properties,
        };
        match self.kind {
            PacketKind::Connect => Packet::Connect(self.connect()),
            PacketKind::Connack => Packet::Connack(Connack {
                session_present: self.code == 0 && self.bit(0),
                code: self.code,
                properties,
            }),
            PacketKind::Publish => Packet::Publish(self.publish()),
            PacketKind::Puback => Packet::Puback(ack),
            PacketKind::Pubrec => Packet::Pubrec(ack),
            PacketKind::Pubrel => Packet::Pubrel(ack),
            PacketKind::Pubcomp => Packet::Pubcomp(ack),
            PacketKind::Subscribe => {
                Packet::Subscribe(Subscribe::new(self.packet_id, properties, &self.subscribe))
            }
            PacketKind::Suback => Packet::Suback(Suback {
                packet_id: self.packet_id,
                properties,
                codes: &self.codes,
            }),
            PacketKind::Unsubscribe => Packet::Unsubscribe(Unsubscribe::new(
                self.packet_id,
                properties,
                &self.unsubscribe,
            )),
            PacketKind::Unsuback => Packet::Unsuback(Unsuback {
                packet_id: self.packet_id,
                properties,
                codes: &self.codes,
            }),
            PacketKind::Pingreq => Packet::Pingreq,
            PacketKind::Pingresp => Packet::Pingresp,
            PacketKind::Disconnect => Packet::Disconnect(Disconnect {
                code: self.code,
                properties,
            }),
            PacketKind::Auth => Packet::Auth(Auth {
                code: self.code,
                properties,
            }),
        }
    }

    fn connect(&self) -> Connect<'_> {
        let username = self.bit(3).then_some(self.texts.1.as_str());
        let may_have_password = self.version == Version::V5 || username.is_some();
        Connect {
            version: self.version,
            is_bridge: self.version != Version::V5 && self.bit(5),
            clean_start: self.bit(0),
            keep_alive_secs: self.packet_id.get(),
            properties: self.properties.view(),
            client_id: &self.texts.0,
            will: self.bit(1).then(|| Will {
                qos: self.qos(),
                retain: self.bit(2),
                properties: self.will_properties.view(),
                topic: &self.topic,
                payload: &self.data.0,
            }),
            username,
            password: (may_have_password && self.bit(4)).then_some(&self.data.1),
        }
    }

    fn publish(&self) -> Publish<'_> {
        let qos = self.qos();
        let properties = self.properties.view();
        let has_alias = properties.number(PropertyId::TopicAlias).is_some();
        Publish {
            dup: qos > QoS::AtMostOnce && self.bit(0),
            qos,
            retain: self.bit(1),
            topic: if has_alias && self.bit(2) {
                ""
            } else {
                &self.topic
            },
            packet_id: (qos > QoS::AtMostOnce).then_some(self.packet_id),
            properties,
            payload: &self.data.0,
            payload_bytes: self.data.0.len() as u32,
        }
    }

    fn qos(&self) -> QoS {
        QoS::from_bits((self.bits >> 8) as u8 % 3).unwrap()
    }
}

pub(super) fn material() -> impl Strategy<Value = Material> {
    direction()
        .prop_flat_map(|(version, side)| (Just(version), Just(side), kind(version, side, true)))
        .prop_flat_map(|(version, side, kind)| material_of(version, side, kind))
}

pub(super) fn stream() -> impl Strategy<Value = Stream> {
    direction().prop_flat_map(|(version, side)| {
        let packet =
            kind(version, side, false).prop_flat_map(move |kind| material_of(version, side, kind));
        prop::collection::vec(packet, 1..6).prop_map(move |packets| Stream {
            version,
            side,
            packets,
        })
    })
}

fn direction() -> impl Strategy<Value = (Version, Side)> {
    (
        prop::sample::select(vec![Version::V31, Version::V311, Version::V5]),
        prop::sample::select(vec![Side::Client, Side::Server]),
    )
}

fn kind(version: Version, side: Side, with_connect: bool) -> impl Strategy<Value = PacketKind> {
    use PacketKind::*;
    let mut kinds = vec![Publish, Publish, Puback, Pubrec, Pubrel, Pubcomp];
    kinds.extend(match side {
        Side::Client => vec![Subscribe, Unsubscribe, Pingreq, Disconnect],
        Side::Server => vec![Connack, Suback, Unsuback, Pingresp],
    });
    if version == Version::V5 {
        kinds.extend([Auth, Disconnect]);
    }
    if side == Side::Client && with_connect {
        kinds.extend([Connect, Connect]);
    }
    prop::sample::select(kinds)
}

fn material_of(version: Version, side: Side, kind: PacketKind) -> impl Strategy<Value = Material> {
    (
        (any::<u32>(), any::<PacketId>(), topic()),
        code(version, side, kind),
        prop::collection::vec(code(version, side, kind), 1..5),
        (text(), text()),
        (data(), data()),
        properties(version, place(kind, side)),
        properties(version, Place::Will),
        prop::collection::vec((filter(), 0..3u8, 0..16u8), 1..4),
    )
        .prop_map(
            move |(
                (bits, packet_id, topic),
                code,
                codes,
                texts,
                data,
                properties,
                will_properties,
                filters,
            )| {
                let mut subscribe = SubscribeFilters::new();
                let mut unsubscribe = UnsubscribeFilters::new();
                for (filter, qos, others) in &filters {
                    let options = options(version, filter, *others);
                    let qos = QoS::from_bits(*qos).unwrap();
                    let filter = SubscribeFilter {
                        options,
                        ..SubscribeFilter::new(filter, qos)
                    };
                    subscribe.push(&filter).unwrap();
                    unsubscribe.push(filter.filter).unwrap();
                }
                let has_no_codes = kind == PacketKind::Unsuback && version < Version::V5;
                Material {
                    version,
                    side,
                    kind,
                    bits,
                    packet_id,
                    code,
                    codes: if has_no_codes { Vec::new() } else { codes },
                    topic,
                    texts,
                    data,
                    properties,
                    will_properties,
                    subscribe,
                    unsubscribe,
                }
            },
        )
}

/// Options of version 5 without the QoS bits: retain handling 0 to 2, No Local not on a share.
fn options(version: Version, filter: &str, others: u8) -> u8 {
    if version < Version::V5 {
        return 0;
    }
    let retain_handling = (others >> 2) % 3;
    let no_local = others & 1 == 1 && !filter.starts_with("$share/");
    retain_handling << 4 | (others & 2) << 2 | if no_local { 4 } else { 0 }
}

fn place(kind: PacketKind, side: Side) -> Place {
    match kind {
        PacketKind::Connect => Place::Connect,
        PacketKind::Connack => Place::Connack,
        PacketKind::Publish => Place::Publish(side),
        PacketKind::Subscribe => Place::Subscribe,
        PacketKind::Unsubscribe => Place::Unsubscribe,
        PacketKind::Disconnect => Place::Disconnect(side),
        PacketKind::Auth => Place::Auth,
        PacketKind::Puback
        | PacketKind::Pubrec
        | PacketKind::Pubrel
        | PacketKind::Pubcomp
        | PacketKind::Suback
        | PacketKind::Unsuback
        | PacketKind::Pingreq
        | PacketKind::Pingresp => Place::Ack,
    }
}

/// A code that the kind defines; 0 where the version has none.
fn code(version: Version, side: Side, kind: PacketKind) -> impl Strategy<Value = u8> {
    let is_v5 = version == Version::V5;
    let is_defined = move |code: &u8| match (kind, is_v5) {
        (PacketKind::Connack, _) => codes::is_connack(version, *code),
        (PacketKind::Suback, _) => codes::is_suback(version, *code),
        (PacketKind::Puback | PacketKind::Pubrec, true) => codes::is_puback_or_pubrec(side, *code),
        (PacketKind::Pubrel | PacketKind::Pubcomp, true) => {
            codes::is_pubrel_or_pubcomp(side, *code)
        }
        (PacketKind::Unsuback, true) => codes::is_unsuback(*code),
        (PacketKind::Disconnect, true) => codes::is_disconnect(side, *code),
        (PacketKind::Auth, true) => codes::is_auth(side, *code),
        (_, _) => *code == 0,
    };
    prop::sample::select((0..=u8::MAX).filter(is_defined).collect::<Vec<_>>())
}

/// Mostly short; now and then long enough for lengths of two bytes and more.
fn text() -> impl Strategy<Value = String> {
    let any_char = any::<char>().prop_map(|c| if c == '\0' { 'x' } else { c });
    prop_oneof![
        8 => prop::collection::vec(any_char, 0..6).prop_map(String::from_iter),
        1 => "[a-z/é]{100,400}",
    ]
}

fn topic() -> impl Strategy<Value = String> {
    text().prop_map(|text| {
        let topic = text.replace(['+', '#'], "/");
        if topic.is_empty() {
            "t".to_owned()
        } else {
            topic
        }
    })
}

fn filter() -> impl Strategy<Value = String> {
    let plain = prop_oneof![
        topic(),
        topic().prop_map(|topic| format!("{topic}/+/#")),
        Just("#".to_owned()),
        Just("+/a".to_owned()),
    ];
    (plain, prop::bool::weighted(0.2)).prop_map(|(filter, is_shared)| {
        // What happens to begin with `$share/` need not be a legal share.
        let filter = filter.replace("$share", "$shared");
        if is_shared {
            format!("$share/g/{filter}")
        } else {
            filter
        }
    })
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..12),
        1 => prop::collection::vec(any::<u8>(), 100..600),
    ]
}

/// Legal properties of a place in any order; empty below version 5.
fn properties(version: Version, place: Place) -> BoxedStrategy<PropertiesBuf> {
    if version < Version::V5 {
        return Just(PropertiesBuf::new()).boxed();
    }
    let mut ids: Vec<PropertyId> = PropertyId::ALL.to_vec();
    ids.retain(|id| place.allows(*id));
    ids.push(PropertyId::UserProperty);
    if place == Place::Publish(Side::Server) {
        ids.push(PropertyId::SubscriptionIdentifier);
    }
    let count = ids.len();
    (
        prop::sample::subsequence(ids, 0..=count).prop_shuffle(),
        prop::collection::vec((any::<u32>(), text(), topic(), data()), count),
    )
        .prop_map(move |(ids, values)| {
            let mut buf = PropertiesBuf::new();
            for (id, (number, text, topic, data)) in ids.iter().zip(&values) {
                let data = &data[..data.len().min(300)];
                buf.push(property(*id, *number, text, topic, data)).unwrap();
            }
            let is_missing_method = place == Place::Auth
                || (place == Place::Connect && ids.contains(&PropertyId::AuthenticationData));
            if is_missing_method && !ids.contains(&PropertyId::AuthenticationMethod) {
                let method = Property::Text(PropertyId::AuthenticationMethod, "m");
                buf.push(method).unwrap();
            }
            buf
        })
        .boxed()
}

fn property<'a>(
    id: PropertyId,
    number: u32,
    text: &'a str,
    topic: &'a str,
    data: &'a [u8],
) -> Property<'a> {
    match id.data_type() {
        DataType::Byte => Property::Number(id, number % 2),
        DataType::TwoByte => Property::Number(id, number % 65_535 + 1),
        DataType::FourByte => Property::Number(id, number.max(1)),
        DataType::Variable => Property::Number(id, number % 268_435_455 + 1),
        DataType::Text if id == PropertyId::ResponseTopic => Property::Text(id, topic),
        DataType::Text => Property::Text(id, text),
        DataType::Binary => Property::Data(id, data),
        DataType::Pair => Property::Pair(text, topic),
    }
}
