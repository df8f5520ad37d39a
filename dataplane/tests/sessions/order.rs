//! The order in which either publisher hears the acknowledgements of its messages, when some are ours and some pass.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_dataplane::session::{Cause, Side};
use sluice_wire::mqtt::{self, Packet, Property, PropertyId, Publish, QoS, Version, decode};

use crate::harness::{
    RULES, Rig, VERSIONS, ack, bytes, connect, document, properties, publish, subscribe,
};
use crate::streams::whole_packets;

const ENDS: [(Side, Side); 2] = [
    (Side::Downstream, Side::Upstream),
    (Side::Upstream, Side::Downstream),
];

/// Rules under which the lowered topics are received too.
fn rules() -> String {
    document("", RULES)
}

impl Rig {
    /// What went to that side since it was last looked at.
    fn take(&mut self, side: Side) -> Vec<u8> {
        match side {
            Side::Downstream => self.take_down(),
            Side::Upstream => self.take_up(),
        }
    }

    /// First bytes and identifiers of the acknowledgements that went to that side.
    fn take_answers(&mut self, side: Side) -> Vec<(u8, u16)> {
        let sender = match side {
            Side::Downstream => mqtt::Side::Server,
            Side::Upstream => mqtt::Side::Client,
        };
        let sent = self.take(side);
        let packets = whole_packets(self.version, sender, &sent).unwrap();
        let answer = |packet: &Vec<u8>| (packet[0], u16::from_be_bytes([packet[2], packet[3]]));
        packets.iter().map(answer).collect()
    }

    fn publishes(&mut self, from: Side, topic: &str, qos: QoS, number: u16, dup: bool) {
        let message = Publish {
            dup,
            ..publish(topic, qos, number, b"x")
        };
        let bytes = bytes(self.version, &Packet::Publish(message));
        self.bytes_from(from, &bytes);
    }

    fn acknowledges(&mut self, from: Side, first: u8, number: u16) {
        let ack = ack(number, 0);
        let packet = match first {
            0x40 => Packet::Puback(ack),
            0x50 => Packet::Pubrec(ack),
            0x62 => Packet::Pubrel(ack),
            _ => Packet::Pubcomp(ack),
        };
        let bytes = bytes(self.version, &packet);
        self.bytes_from(from, &bytes);
    }
}

#[test]
fn mqtt_4_6_0_2_pubacks_of_ours_wait_for_those_that_pass() {
    for version in VERSIONS {
        for (publisher, receiver) in ENDS {
            let mut rig = Rig::open(version);
            for number in 1..=4 {
                let topic = ["secret/a", "open/a"][usize::from(number % 2)];
                rig.publishes(publisher, topic, QoS::AtLeastOnce, number, false);
            }
            assert_eq!(rig.take_answers(publisher), [], "nothing has been answered");
            rig.acknowledges(receiver, 0x40, 1);
            assert_eq!(rig.take_answers(publisher), [(0x40, 1), (0x40, 2)]);
            rig.acknowledges(receiver, 0x40, 3);
            assert_eq!(rig.take_answers(publisher), [(0x40, 3), (0x40, 4)]);
            rig.publishes(publisher, "secret/a", QoS::AtLeastOnce, 5, false);
            assert_eq!(
                rig.take_answers(publisher),
                [(0x40, 5)],
                "nothing is before"
            );
        }
    }
}

#[test]
fn mqtt_4_6_0_2_deliveries_that_are_too_large_are_acknowledged_in_their_turn() {
    let list = properties(&[Property::Number(PropertyId::MaximumPacketSize, 40)]);
    let mut request = connect(Version::V5, "dev");
    request.properties = list.view();
    let mut rig = Rig::open_with(Version::V5, &rules(), &request);
    for number in 1..=4 {
        let payload = vec![0; if number % 2 == 0 { 100 } else { 1 }];
        let message = publish("open/a", QoS::AtLeastOnce, number, &payload);
        rig.broker_sends(&Packet::Publish(message));
    }
    // In one read, so that ours come between two that pass.
    let both = [1, 3].map(|number| bytes(Version::V5, &Packet::Puback(ack(number, 0))));
    rig.client(&both.concat());
    let expected = [(0x40, 1), (0x40, 2), (0x40, 3), (0x40, 4)];
    assert_eq!(rig.take_answers(Side::Upstream), expected);
}

#[test]
fn mqtt_4_6_0_3_pubrecs_of_refused_and_lowered_messages_come_in_order() {
    for version in VERSIONS {
        for (publisher, receiver) in ENDS {
            let mut rig = Rig::open(version);
            for (number, topic) in (1..).zip(["open/a", "low1/a", "low0/a", "secret/a", "open/a"]) {
                rig.publishes(publisher, topic, QoS::ExactlyOnce, number, false);
            }
            assert_eq!(rig.take_answers(publisher), []);
            rig.acknowledges(receiver, 0x50, 1);
            assert_eq!(rig.take_answers(publisher), [(0x50, 1)]);
            // The receiver has the second at QoS 1, and knows of no order between this and the next.
            rig.acknowledges(receiver, 0x50, 5);
            assert_eq!(rig.take_answers(publisher), []);
            rig.acknowledges(receiver, 0x40, 2);
            let rest = [(0x50, 2), (0x50, 3), (0x50, 4), (0x50, 5)];
            assert_eq!(rig.take_answers(publisher), rest);
            rig.take(receiver);
            // PUBRELs follow in that order [MQTT-4.6.0-4]; those of flows that pass go on.
            for number in 1..=5 {
                rig.acknowledges(publisher, 0x62, number);
            }
            let passed = rig.take_answers(receiver);
            let is_refusal_told = version == Version::V5 && publisher == Side::Downstream;
            let refused = if is_refusal_told {
                &[(0x62, 4)][..]
            } else {
                &[]
            };
            assert_eq!(passed, [&[(0x62, 1)], refused, &[(0x62, 5)]].concat());
        }
    }
}

#[test]
fn the_two_kinds_do_not_wait_for_each_other() {
    for (publisher, _) in ENDS {
        let mut rig = Rig::open(Version::V311);
        rig.publishes(publisher, "open/a", QoS::ExactlyOnce, 1, false);
        rig.publishes(publisher, "secret/a", QoS::AtLeastOnce, 2, false);
        assert_eq!(rig.take_answers(publisher), [(0x40, 2)]);
        rig.publishes(publisher, "low0/a", QoS::AtLeastOnce, 3, false);
        assert_eq!(rig.take_answers(publisher), [(0x40, 3)]);
        rig.publishes(publisher, "open/a", QoS::AtLeastOnce, 4, false);
        rig.publishes(publisher, "low0/a", QoS::AtLeastOnce, 5, false);
        assert_eq!(rig.take_answers(publisher), [], "behind the fourth");
    }
}

#[test]
fn what_a_receiver_answers_passes_as_it_comes() {
    for version in VERSIONS {
        for (publisher, receiver) in ENDS {
            let mut rig = Rig::open(version);
            for number in [7, 8, 9] {
                rig.publishes(publisher, "open/a", QoS::AtLeastOnce, number, false);
            }
            rig.publishes(publisher, "secret/a", QoS::AtLeastOnce, 10, false);
            for number in [9, 7, 8] {
                // One of an earlier connection, that it has not heard of.
                rig.acknowledges(receiver, 0x40, 500);
                rig.acknowledges(receiver, 0x40, number);
            }
            let passed = [500, 9, 500, 7, 500, 8, 10].map(|number| (0x40, number));
            assert_eq!(rig.take_answers(publisher), passed);
        }
    }
}

#[test]
fn resends_keep_their_place_and_let_nothing_wait_for_ever() {
    for (publisher, receiver) in ENDS {
        for version in [Version::V31, Version::V311] {
            let mut rig = Rig::open(version);
            for number in [1, 2, 3] {
                let topic = ["secret/a", "open/a"][usize::from(number % 2)];
                rig.publishes(publisher, topic, QoS::AtLeastOnce, number, false);
            }
            for number in [1, 2, 3] {
                let topic = ["secret/a", "open/a"][usize::from(number % 2)];
                rig.publishes(publisher, topic, QoS::AtLeastOnce, number, true);
            }
            assert_eq!(rig.take_answers(publisher), []);
            // The receiver answers each that it got, and did not get the second.
            for number in [1, 3, 1, 3] {
                rig.acknowledges(receiver, 0x40, number);
            }
            let heard = [1, 2, 3, 1, 3].map(|number| (0x40, number));
            assert_eq!(rig.take_answers(publisher), heard);
        }
    }
}

#[test]
fn a_resend_that_another_generation_judges_is_answered_once() {
    for (publisher, receiver) in ENDS {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let answer = if qos == QoS::AtLeastOnce { 0x40 } else { 0x50 };
            let closed = RULES.replace("\"open/#\", ", "");
            let lowered = RULES.replace(
                "\"open/#\", \"self/${client_id}/#\"], ",
                "\"open/#\"], qos_max: 0, ",
            );
            // Passed, then refused or lowered: the receiver has it, and answers.
            for rules in [&closed, &lowered] {
                let mut rig = Rig::open(Version::V31);
                rig.publishes(publisher, "open/a", qos, 1, false);
                rig.applies(&document("", rules));
                rig.take(receiver);
                rig.publishes(publisher, "open/a", qos, 1, true);
                assert_eq!((rig.take(receiver), rig.take(publisher)), (vec![], vec![]));
                rig.acknowledges(receiver, answer, 1);
                assert_eq!(rig.take_answers(publisher), [(answer, 1)]);
            }
            // Refused, then allowed, before its turn had come: it was refused.
            let mut rig = Rig::open(Version::V31);
            rig.publishes(publisher, "self/dev/a", qos, 1, false);
            rig.applies(&document("", &closed));
            rig.publishes(publisher, "open/a", qos, 2, false);
            rig.applies(&document("", RULES));
            rig.take(receiver);
            rig.publishes(publisher, "open/a", qos, 2, true);
            assert!(rig.take(receiver).is_empty());
            rig.acknowledges(receiver, answer, 1);
            assert_eq!(rig.take_answers(publisher), [(answer, 1), (answer, 2)]);
        }
    }
}

#[test]
fn an_identifier_that_is_used_again_for_another_kind_waits_for_nothing() {
    for (publisher, receiver) in ENDS {
        let mut rig = Rig::open(Version::V311);
        rig.publishes(publisher, "open/a", QoS::AtLeastOnce, 1, false);
        rig.publishes(publisher, "secret/a", QoS::AtLeastOnce, 2, false);
        assert_eq!(rig.take_answers(publisher), []);
        rig.publishes(publisher, "open/a", QoS::ExactlyOnce, 1, false);
        assert_eq!(
            rig.take_answers(publisher),
            [(0x40, 2)],
            "the first is given up"
        );
        rig.acknowledges(receiver, 0x50, 1);
        assert_eq!(rig.take_answers(publisher), [(0x50, 1)]);
        // One that comes without DUP is another message.
        rig.publishes(publisher, "open/a", QoS::AtLeastOnce, 5, false);
        rig.publishes(publisher, "secret/a", QoS::AtLeastOnce, 5, false);
        assert_eq!(rig.take_answers(publisher), [(0x40, 5)]);
        // A publisher that releases what it has no PUBREC for gives that up too.
        for number in [3, 4] {
            let topic = ["secret/a", "open/a"][usize::from(number % 2)];
            rig.publishes(publisher, topic, QoS::ExactlyOnce, number, false);
        }
        assert_eq!(rig.take_answers(publisher), []);
        rig.acknowledges(publisher, 0x62, 3);
        assert_eq!(rig.take_answers(publisher), [(0x50, 4)]);
    }
}

#[test]
fn identifiers_are_the_bound_below_version_5_and_memory_comes_back() {
    let limits = document("    limits: {receive_max: 3}", RULES);
    for (publisher, receiver) in ENDS {
        let mut rig = Rig::open_with(Version::V311, &limits, &connect(Version::V311, "dev"));
        let small = rig.session.heap_bytes();
        rig.publishes(publisher, "open/a", QoS::AtLeastOnce, 1, false);
        for number in 2..=u16::MAX {
            rig.publishes(publisher, "secret/a", QoS::AtLeastOnce, number, false);
        }
        assert_eq!((rig.ended(), rig.take_answers(publisher)), (None, vec![]));
        let bytes = rig.session.heap_bytes();
        assert!(
            (1 << 19..3 << 19).contains(&bytes),
            "it is counted: {bytes}"
        );
        rig.acknowledges(receiver, 0x40, 1);
        let heard = rig.take_answers(publisher);
        assert_eq!(
            heard,
            (1..=u16::MAX)
                .map(|number| (0x40, number))
                .collect::<Vec<_>>()
        );
        assert!(rig.session.heap_bytes() < 1 << 14, "nearly empty");
        rig.passes(Duration::from_secs(2));
        assert!(rig.session.heap_bytes() <= small + 256, "nothing is left");

        for number in 1..=u16::MAX {
            rig.publishes(publisher, "low0/a", QoS::ExactlyOnce, number, false);
        }
        assert_eq!(rig.ended(), None, "as many flows of ours");
    }
}

#[test]
fn many_that_pass_are_all_waited_for() {
    for (publisher, receiver) in ENDS {
        let mut rig = Rig::open(Version::V311);
        for number in 1..=1_000 {
            rig.publishes(publisher, "open/a", QoS::AtLeastOnce, number, false);
        }
        rig.publishes(publisher, "secret/a", QoS::AtLeastOnce, 1_001, false);
        for number in 1..=1_000 {
            rig.acknowledges(receiver, 0x40, number);
        }
        let heard = (1..=1_001).map(|number| (0x40, number));
        assert_eq!(rig.take_answers(publisher), heard.collect::<Vec<_>>());
    }
}

#[test]
fn version_5_was_told_how_much_may_be_in_flight() {
    let limits = document("    limits: {receive_max: 3}", RULES);
    let topics = ["secret/a", "open/a"]; // we answer, or it passes
    for (publisher, topic) in ENDS
        .into_iter()
        .flat_map(|(publisher, _)| topics.map(|topic| (publisher, topic)))
    {
        let mut rig = Rig::open_with(Version::V5, &limits, &connect(Version::V5, "dev"));
        rig.publishes(publisher, "open/a", QoS::AtLeastOnce, 1, false);
        for number in [2, 3] {
            rig.publishes(publisher, topic, QoS::AtLeastOnce, number, false);
        }
        assert_eq!(rig.ended(), None);
        rig.publishes(publisher, topic, QoS::AtLeastOnce, 3, true);
        assert_eq!(rig.ended(), None, "it is in flight already");
        rig.take_down();
        rig.publishes(publisher, topic, QoS::AtLeastOnce, 4, false);
        let told = match publisher {
            Side::Downstream => [0xe0, 1, 0x93],
            Side::Upstream => [0xe0, 1, 0x97],
        };
        assert_eq!(
            (rig.ended(), rig.take_down()),
            (Some(Cause::Overload), told.to_vec())
        );
    }
}

/// One message of a publisher, as the model knows it.
struct Sent {
    number: u16,
    qos: QoS,
    topic: usize,
    /// The receiver got it so that it answers.
    is_given: bool,
    is_answered: bool,
    is_heard: bool,
    is_sent_again: bool,
}

/// One direction: a publisher, and a receiver who answers each kind in order, or as it likes.
struct Direction {
    publisher: Side,
    receiver: Side,
    is_orderly: bool,
    /// In the order in which they were published.
    sent: Vec<Sent>,
    next: u16,
    in_use: BTreeMap<u16, usize>,
    /// What the receiver has to answer: PUBACKs, PUBRECs, PUBCOMPs.
    owed: [VecDeque<u16>; 3],
    /// PUBRELs that the publisher has to send.
    to_release: VecDeque<u16>,
    recs: Vec<u16>,
    released: Vec<u16>,
}

const TOPICS: [&str; 5] = ["open/a", "secret/a", "low1/a", "low0/a", "self/dev/x"];

impl Direction {
    fn new((publisher, receiver): (Side, Side), is_orderly: bool, first: u16) -> Self {
        Self {
            publisher,
            receiver,
            is_orderly,
            sent: Vec::new(),
            next: first,
            in_use: BTreeMap::new(),
            owed: [const { VecDeque::new() }; 3],
            to_release: VecDeque::new(),
            recs: Vec::new(),
            released: Vec::new(),
        }
    }

    fn publish(&mut self, rig: &mut Rig, topic: usize, qos: QoS, is_lowest: bool) {
        let number = if is_lowest {
            (1..)
                .find(|number| !self.in_use.contains_key(number))
                .unwrap()
        } else {
            while self.in_use.contains_key(&self.next) || self.next == 0 {
                self.next = self.next.wrapping_add(1);
            }
            self.next
        };
        self.in_use.insert(number, self.sent.len());
        self.sent.push(Sent {
            number,
            qos,
            topic,
            is_given: false,
            is_answered: false,
            is_heard: false,
            is_sent_again: false,
        });
        rig.publishes(self.publisher, TOPICS[topic], qos, number, false);
    }

    /// Sends one that is not acknowledged once more. Its identifier is not used again: a second answer may be under way.
    fn publish_again(&mut self, rig: &mut Rig, which: usize) {
        let mut open: Vec<&mut Sent> = self.sent.iter_mut().filter(|sent| !sent.is_heard).collect();
        if open.is_empty() {
            return;
        }
        let which = which % open.len();
        let sent = &mut open[which];
        sent.is_sent_again = true;
        rig.publishes(
            self.publisher,
            TOPICS[sent.topic],
            sent.qos,
            sent.number,
            true,
        );
    }

    /// The receiver answers something, if it owes that.
    fn answer(&mut self, rig: &mut Rig, kind: usize, which: usize) {
        let owed = &mut self.owed[kind];
        let which = if self.is_orderly {
            0
        } else {
            which % owed.len().max(1)
        };
        let Some(number) = owed.remove(which) else {
            return;
        };
        if kind < 2
            && let Some(index) = self.in_use.get(&number)
            && !std::mem::replace(&mut self.sent[*index].is_answered, true)
            && kind == 1
        {
            self.recs.push(number);
        }
        rig.acknowledges(self.receiver, [0x40, 0x50, 0x70][kind], number);
    }

    fn release(&mut self, rig: &mut Rig) {
        if let Some(number) = self.to_release.pop_front() {
            rig.acknowledges(self.publisher, 0x62, number);
        }
    }

    /// Takes what came to the receiver.
    fn receive(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::Publish(message) if message.qos != QoS::AtMostOnce => {
                let number = message.packet_id.unwrap().get();
                self.owed[usize::from(message.qos == QoS::ExactlyOnce)].push_back(number);
                self.sent[self.in_use[&number]].is_given = true;
            }
            Packet::Pubrel(ack) => {
                self.released.push(ack.packet_id.get());
                self.owed[2].push_back(ack.packet_id.get());
            }
            _ => {}
        }
    }

    /// Takes what came to the publisher.
    fn hear(&mut self, packet: &Packet<'_>) {
        let (kind, ack) = match packet {
            Packet::Puback(ack) => (QoS::AtLeastOnce, ack),
            Packet::Pubrec(ack) => (QoS::ExactlyOnce, ack),
            Packet::Pubcomp(ack) => return self.forget(ack.packet_id.get()),
            _ => return,
        };
        let number = ack.packet_id.get();
        let index = self.in_use.get(&number).copied();
        let Some(index) = index.filter(|index| !self.sent[*index].is_heard) else {
            let is_known = self
                .sent
                .iter()
                .any(|sent| sent.number == number && sent.is_sent_again);
            assert!(is_known, "an answer to nothing");
            return;
        };
        assert_eq!(self.sent[index].qos, kind);
        self.sent[index].is_heard = true;
        // Ours comes after everything before it; where the receiver keeps order, so does all.
        if self.is_orderly || !self.sent[index].is_given {
            let before = self.sent[..index].iter().filter(|sent| sent.qos == kind);
            let late: Vec<u16> = before
                .filter(|sent| !sent.is_heard)
                .map(|sent| sent.number)
                .collect();
            assert!(late.is_empty(), "{number} overtakes {late:?}");
        }
        if kind == QoS::ExactlyOnce && ack.code < 0x80 {
            self.to_release.push_back(number);
        } else {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u16) {
        let is_sent_again = |index: &usize| self.sent[*index].is_sent_again;
        if !self.in_use.get(&number).is_none_or(is_sent_again) {
            self.in_use.remove(&number);
        }
    }

    /// Nothing waits that need not.
    fn check_prompt(&self) {
        for kind in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let of_kind = self.sent.iter().filter(|sent| sent.qos == kind);
            let due = of_kind.take_while(|sent| !sent.is_given || sent.is_answered);
            let late: Vec<u16> = due
                .filter(|sent| !sent.is_heard)
                .map(|sent| sent.number)
                .collect();
            assert!(late.is_empty(), "{late:?} wait for nothing");
        }
        if self.is_orderly {
            assert!(self.recs.starts_with(&self.released), "[MQTT-4.6.0-4]");
        }
    }

    fn has_ended(&self) -> bool {
        let is_idle = self.owed.iter().all(VecDeque::is_empty) && self.to_release.is_empty();
        is_idle && self.sent.iter().all(|sent| sent.is_heard)
    }
}

/// Everything that was written since, given to whom it concerns.
fn pass_on(rig: &mut Rig, directions: &mut [Direction; 2]) {
    assert_eq!(rig.ended(), None);
    for (side, sender) in [
        (Side::Downstream, mqtt::Side::Server),
        (Side::Upstream, mqtt::Side::Client),
    ] {
        let bytes = rig.take(side);
        for packet in whole_packets(rig.version, sender, &bytes).unwrap() {
            let packet = decode(rig.version, sender, &packet).unwrap();
            for direction in directions.iter_mut() {
                if direction.publisher == side {
                    direction.hear(&packet);
                } else {
                    direction.receive(&packet);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn every_publisher_hears_its_answers_in_order_and_all_of_them(
        steps in vec((0..2_usize, 0..20_u8, 0..64_usize, 0..3_u8), 1..120),
        orderly in any::<(bool, bool)>(),
        (first, is_lowest) in (prop_oneof![Just(1_u16), Just(65_500), Just(65_534)], any::<bool>()),
    ) {
        let documents = [rules(), document("", &RULES.replace("\"open/#\", ", ""))];
        for version in VERSIONS {
            let mut rig = Rig::open(version);
            let small = rig.session.heap_bytes();
            let mut directions = [
                Direction::new(ENDS[0], orderly.0, first),
                Direction::new(ENDS[1], orderly.1, 1),
            ];
            for (which, step, pick, qos) in &steps {
                let direction = &mut directions[*which];
                match step {
                    0..7 => {
                        let qos = if *qos == 0 { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
                        direction.publish(&mut rig, pick % TOPICS.len(), qos, is_lowest);
                    }
                    7 if version != Version::V5 => direction.publish_again(&mut rig, *pick),
                    8 => rig.applies(&documents[pick % 2]),
                    9..12 => direction.release(&mut rig),
                    _ => direction.answer(&mut rig, usize::from(*step) % 3, *pick),
                }
                pass_on(&mut rig, &mut directions);
                directions.iter().for_each(Direction::check_prompt);
            }
            for turn in 0..4 * steps.len() {
                for direction in &mut directions {
                    direction.release(&mut rig);
                    (0..3).for_each(|kind| direction.answer(&mut rig, kind, turn));
                }
                pass_on(&mut rig, &mut directions);
                directions.iter().for_each(Direction::check_prompt);
            }
            prop_assert!(directions.iter().all(Direction::has_ended));
            rig.passes(Duration::from_secs(2));
            let bytes = rig.session.heap_bytes();
            prop_assert!(bytes <= small + 256, "{bytes} are left");
        }
    }
}

#[test]
fn what_waits_for_its_turn_does_not_hold_up_a_subscription() {
    let mut rig = Rig::open(Version::V311);
    rig.publishes(Side::Downstream, "open/a", QoS::AtLeastOnce, 1, false);
    rig.publishes(Side::Downstream, "secret/a", QoS::AtLeastOnce, 2, false);
    rig.client(&subscribe(
        Version::V311,
        3,
        &[("secret/a", QoS::AtMostOnce)],
    ));
    assert_eq!(rig.take_answers(Side::Downstream), [(0x90, 3)]);
}
