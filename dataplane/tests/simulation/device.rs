//! A simulated client: random, within the protocol until it decides otherwise, and checking all it is given.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use sluice_dataplane::ring::simulated::{Network, Peer, PeerState, Random};
use sluice_wire::mqtt::{Packet, QoS, Side, Version, decode};

use crate::model::{Class, Judged, Stream, class_of};
use crate::packets::{self, ConnectFields, Splitter};

pub(crate) const TOPICS: &[&str] = &[
    "open/a", "open/b/x", "open/a/y", "flip/a", "flip/b", "shut/a", "other",
];
const FILTERS: &[&str] = &[
    "open/#", "open/a", "open/+/x", "flip/#", "flip/a", "shut/#", "#", "+/a",
];
/// Packets in flight with a QoS above 0.
const IN_FLIGHT_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stance {
    /// Taking part.
    Here,
    /// Has sent DISCONNECT, waits for the end.
    Leaving,
    /// Its connection is over.
    Gone,
}

pub(crate) struct Device {
    pub(crate) client_id: String,
    pub(crate) version: Version,
    peer: Peer,
    pub(crate) stance: Stance,
    /// CONNACK said yes.
    pub(crate) is_open: bool,
    /// Something may have cut the session short: what is missing then is not missed.
    pub(crate) is_cut: bool,
    is_deaf: bool,
    out: Vec<u8>,
    splitter: Splitter,
    /// What was sent towards the broker, and what the broker sent towards us.
    pub(crate) up: Stream,
    pub(crate) down: Stream,
    next_id: u16,
    flows: BTreeMap<u16, (u8, Judged)>,
    subscribes: BTreeMap<u16, (Vec<&'static str>, u64)>,
    early: u32,
    messages: u32,
}

impl Device {
    pub(crate) fn new(random: &mut Random, number: usize, peer: Peer) -> Self {
        let version = [Version::V31, Version::V311, Version::V5][random.below(3) as usize];
        let client_id = format!("device{number}");
        let login = match random.below(6) {
            0 => Some(("sensor", "right")),
            1 => Some(("sensor", "wrong")),
            2 => Some(("nobody", "right")),
            _ => None,
        };
        let out = packets::connect(&ConnectFields {
            version,
            client_id: &client_id,
            keep_alive_secs: 0,
            login,
        });
        Self {
            client_id,
            version,
            peer,
            stance: Stance::Here,
            is_open: false,
            is_cut: false,
            is_deaf: false,
            out,
            splitter: Splitter::default(),
            up: Stream::default(),
            down: Stream::default(),
            next_id: 1,
            flows: BTreeMap::new(),
            subscribes: BTreeMap::new(),
            early: 0,
            messages: 0,
        }
    }

    /// One random thing to do. `since` is the generation acknowledged last.
    pub(crate) fn act(&mut self, network: &Network, random: &mut Random, since: u64) {
        if self.stance != Stance::Here {
            return;
        }
        if !self.is_open {
            // What is sent before CONNACK waits in the proxy, in order.
            self.early += 1;
            if self.early > 2 {
                return;
            }
        }
        match random.below(100) {
            0..60 => self.publish(random, since),
            60..78 => self.subscribe(random, since),
            78..84 => self.send(&packets::pingreq(), Class::Open, since),
            84..88 => self.is_deaf = !self.is_deaf,
            88..91 => {
                self.send(&packets::disconnect(), Class::Open, since);
                self.stance = Stance::Leaving;
                self.is_deaf = false;
            }
            91 => {
                self.is_cut = true;
                self.out
                    .extend_from_slice(&[0xf0, 0xff, 0xff, 0xff, 0xff, 0xff]);
            }
            92 => self.gone(|peer| network.close(peer)),
            93 => self.gone(|peer| network.reset(peer)),
            94 => self.gone(|peer| network.finish(peer)),
            _ => {}
        }
    }

    fn gone(&mut self, how: impl FnOnce(Peer)) {
        how(self.peer);
        self.leave();
    }

    fn leave(&mut self) {
        self.stance = Stance::Gone;
        self.is_cut = true;
    }

    fn publish(&mut self, random: &mut Random, since: u64) {
        let topic = TOPICS[random.below(TOPICS.len() as u64) as usize];
        let mut qos = random.below(3) as u8;
        if self.flows.len() >= IN_FLIGHT_MAX {
            qos = 0;
        }
        let id = self.next_id;
        self.messages += 1;
        let mut payload = format!("{}:{}:", self.client_id, self.messages).into_bytes();
        payload.resize(payload.len() + random.below(300) as usize, b'.');
        let packet = packets::publish(self.version, topic, qos, id, &payload);
        let judged = Judged {
            class: class_of(topic),
            since,
        };
        if qos > 0 {
            self.next_id += 1;
            self.flows.insert(id, (qos, judged));
        }
        self.send(&packet, judged.class, since);
    }

    fn subscribe(&mut self, random: &mut Random, since: u64) {
        let id = self.next_id;
        self.next_id += 1;
        let count = 1 + random.below(3);
        let filters: Vec<(&'static str, u8)> = (0..count)
            .map(|_| {
                (
                    FILTERS[random.below(FILTERS.len() as u64) as usize],
                    random.below(3) as u8,
                )
            })
            .collect();
        let packet = packets::subscribe(self.version, id, &filters);
        self.out.extend_from_slice(&packet);
        let names = filters.iter().map(|(filter, _)| *filter).collect();
        self.subscribes.insert(id, (names, since));
        self.up.sent_subscribe(id, filters, since);
    }

    fn send(&mut self, packet: &[u8], class: Class, since: u64) {
        self.out.extend_from_slice(packet);
        self.up.sent(packet, Judged { class, since });
    }

    /// Reads and writes what the network allows. `latest` is the generation swapped in last.
    pub(crate) fn play(
        &mut self,
        network: &Network,
        random: &mut Random,
        since: u64,
        latest: u64,
    ) -> Result<(), String> {
        if self.stance == Stance::Gone {
            return Ok(());
        }
        let most = self.out.len().min(1 + random.below(2000) as usize);
        let written = network.write(self.peer, &self.out[..most]);
        self.out.drain(..written);
        if !self.is_deaf {
            let bytes = network.read(self.peer, 1 + random.below(4000) as usize);
            self.splitter.add(&bytes);
        }
        while let Some(packet) = self.splitter.next() {
            self.take(&packet, since, latest)
                .map_err(|why| format!("{} ({:?}): {why}", self.client_id, self.version))?;
        }
        match network.state(self.peer) {
            PeerState::Refused | PeerState::Reset => self.leave(),
            PeerState::Finished if network.read(self.peer, 0).is_empty() => {
                // What is still unread is read on the next turns; FIN is seen after it.
                let rest = network.read(self.peer, usize::MAX);
                self.splitter.add(&rest);
                while let Some(packet) = self.splitter.next() {
                    self.take(&packet, since, latest)?;
                }
                // Without CONNACK it was turned away.
                let is_graceful =
                    self.is_open && self.stance == Stance::Leaving && self.out.is_empty();
                network.close(self.peer);
                self.stance = Stance::Gone;
                self.is_cut |= !is_graceful;
            }
            PeerState::Connecting | PeerState::Open | PeerState::Finished | PeerState::Closed => {}
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], since: u64, latest: u64) -> Result<(), String> {
        let packet = decode(self.version, Side::Server, bytes)
            .map_err(|violation| format!("{violation:?} in {bytes:02x?}"))?;
        match packet {
            Packet::Connack(connack) => {
                if self.is_open {
                    return Err("a second CONNACK".to_owned());
                }
                self.is_open = connack.code == 0;
                self.is_cut |= !self.is_open;
                Ok(())
            }
            Packet::Publish(publish) => {
                self.down.came(bytes, latest)?;
                match (publish.qos, publish.packet_id) {
                    (QoS::AtLeastOnce, Some(id)) => self.answer(&packets::puback(id), since),
                    (QoS::ExactlyOnce, Some(id)) => self.answer(&packets::pubrec(id), since),
                    (_, _) => {}
                }
                Ok(())
            }
            Packet::Pubrel(ack) => {
                self.down.came(bytes, latest)?;
                self.answer(&packets::pubcomp(ack.packet_id), since);
                Ok(())
            }
            Packet::Puback(ack) => self.flow_step(bytes, ack.packet_id, 1, ack.code, latest),
            Packet::Pubrec(ack) => self.flow_step(bytes, ack.packet_id, 2, ack.code, latest),
            Packet::Pubcomp(ack) => self.flow_step(bytes, ack.packet_id, 3, ack.code, latest),
            Packet::Suback(suback) => self.check_suback(suback.packet_id, suback.codes, latest),
            Packet::Pingresp => self.down.came(bytes, latest),
            Packet::Disconnect(_) => {
                self.is_cut = true;
                Ok(())
            }
            other @ (Packet::Connect(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::Unsuback(_)
            | Packet::Pingreq
            | Packet::Auth(_)) => Err(format!("the proxy sent {other:?}")),
        }
    }

    fn answer(&mut self, packet: &[u8], since: u64) {
        // After DISCONNECT nothing more may be sent.
        if self.stance == Stance::Here {
            self.send(packet, Class::Open, since);
        }
    }

    /// An acknowledgement of a message of ours: the broker's, in order, or the proxy's for a message that it refused.
    /// `step`: 1 is PUBACK, 2 PUBREC, 3 PUBCOMP (after which a flow of QoS 2 is at 3 here).
    fn flow_step(
        &mut self,
        bytes: &[u8],
        id: NonZeroU16,
        step: u8,
        code: u8,
        latest: u64,
    ) -> Result<(), String> {
        let Some((qos, judged)) = self.flows.get(&id.get()).copied() else {
            return Err(format!("an acknowledgement of nothing: {bytes:02x?}"));
        };
        if self.down.awaits(bytes) {
            self.down.came(bytes, latest)?;
        } else if !judged.may_drop(latest) {
            return Err(format!("the broker never sent {bytes:02x?}"));
        }
        match (step, qos) {
            (1, 1) | (3, 3) => {
                self.flows.remove(&id.get());
            }
            (2, 2) if code >= 0x80 => {
                self.flows.remove(&id.get());
            }
            (2, 2) => {
                self.flows.insert(id.get(), (3, judged));
                if self.stance == Stance::Here {
                    self.send(&packets::pubrel(id), judged.class, judged.since);
                }
            }
            _ => return Err(format!("step {step} of a flow at {qos}: {bytes:02x?}")),
        }
        Ok(())
    }

    fn check_suback(&mut self, id: NonZeroU16, codes: &[u8], latest: u64) -> Result<(), String> {
        let Some((filters, since)) = self.subscribes.remove(&id.get()) else {
            return Err("a SUBACK of nothing".to_owned());
        };
        if filters.len() != codes.len() {
            return Err(format!("{} codes for {filters:?}", codes.len()));
        }
        for (filter, code) in filters.iter().zip(codes) {
            let judged = Judged {
                class: class_of(filter),
                since,
            };
            let is_granted = *code < 0x80;
            // Version 3.1 has no code for failure.
            let may_be_refused = judged.may_drop(latest) && self.version != Version::V31;
            let may_be_granted = judged.may_pass(latest) || self.version == Version::V31;
            if (is_granted && !may_be_granted) || (!is_granted && !may_be_refused) {
                return Err(format!("{filter}: {code:#x}"));
            }
        }
        Ok(())
    }

    /// From here on it behaves: reads, and waits.
    pub(crate) fn calm_down(&mut self) {
        self.is_deaf = false;
    }

    pub(crate) fn close(&mut self, network: &Network) {
        if self.stance != Stance::Gone {
            network.close(self.peer);
            self.leave();
        }
    }

    /// All that had to arrive has arrived.
    pub(crate) fn check_settled(&self, latest: u64) -> Result<(), String> {
        if self.is_cut {
            return Ok(());
        }
        if self.stance == Stance::Leaving {
            return Err(format!(
                "{} said goodbye and was never let go",
                self.client_id
            ));
        }
        self.up.is_settled(latest).map_err(|why| {
            format!(
                "{} ({:?}, {:?}, open: {}), up: {why}",
                self.client_id, self.version, self.stance, self.is_open
            )
        })?;
        if self.stance == Stance::Here {
            self.down
                .is_settled(latest)
                .map_err(|why| format!("{} ({:?}), down: {why}", self.client_id, self.version))?;
        }
        Ok(())
    }
}
