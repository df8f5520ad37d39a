//! A simulated broker: the smallest one that routes QoS 0, 1 and 2, and that now and then delivers what it should not.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use sluice_dataplane::ring::simulated::{Network, Peer, PeerState, Random};
use sluice_wire::mqtt::{Packet, QoS, Side, Version, decode, decode_connect};

use crate::device::{Device, TOPICS};
use crate::model::{Class, Judged, Stream, class_of};
use crate::packets::{self, Splitter};

/// CONNECTs answered with a refusal, in thousandths.
const REFUSALS: u32 = 30;
/// Deliveries in flight with a QoS above 0.
const IN_FLIGHT_MAX: usize = 8;

/// One connection from the proxy.
struct Link {
    peer: Peer,
    /// Whose session it is, after CONNECT.
    device: Option<usize>,
    version: Version,
    splitter: Splitter,
    out: Vec<u8>,
    filters: Vec<(String, u8)>,
    next_id: u16,
    /// Deliveries not acknowledged yet: QoS (3 after PUBREL) and how they are judged.
    deliveries: BTreeMap<u16, (u8, Judged)>,
    /// Its CONNECT was refused: nothing is delivered.
    is_refused: bool,
    is_over: bool,
}

#[derive(Default)]
pub(crate) struct Broker {
    links: Vec<Link>,
    messages: u32,
    /// Devices whose CONNECT has come.
    asked: BTreeSet<usize>,
}

/// What the broker looks at besides its links.
pub(crate) struct Around<'a> {
    pub(crate) network: &'a Network,
    pub(crate) devices: &'a mut [Device],
    /// Generation acknowledged last, and swapped in last.
    pub(crate) since: u64,
    pub(crate) latest: u64,
}

impl Broker {
    pub(crate) fn accept(&mut self, peer: Peer) {
        self.links.push(Link {
            peer,
            device: None,
            version: Version::V311,
            splitter: Splitter::default(),
            out: Vec::new(),
            filters: Vec::new(),
            next_id: 1,
            deliveries: BTreeMap::new(),
            is_refused: false,
            is_over: false,
        });
    }

    /// One random thing to do.
    pub(crate) fn act(&mut self, random: &mut Random, around: &mut Around<'_>) {
        if self.links.is_empty() {
            return;
        }
        let number = random.below(self.links.len() as u64) as usize;
        let topic = TOPICS[random.below(TOPICS.len() as u64) as usize];
        let qos = random.below(3) as u8;
        self.messages += 1;
        let payload = format!("broker:{}", self.messages);
        let link = &mut self.links[number];
        match random.below(100) {
            // Something that nobody asked for, allowed or not.
            0..80 => link.deliver(around, topic, qos, payload.as_bytes()),
            // A burst, more than a client takes at once.
            80..90 => {
                for part in 0..10 + random.below(20) {
                    let payload = format!("{payload}:{part:400}");
                    link.deliver(around, topic, 0, payload.as_bytes());
                }
            }
            90 => link.end(around, |peer, network| network.close(peer)),
            91 => link.end(around, |peer, network| network.reset(peer)),
            _ => {}
        }
    }

    pub(crate) fn play(
        &mut self,
        random: &mut Random,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        for number in 0..self.links.len() {
            let link = &mut self.links[number];
            if link.is_over {
                continue;
            }
            let most = link.out.len().min(1 + random.below(2000) as usize);
            let written = around.network.write(link.peer, &link.out[..most]);
            link.out.drain(..written);
            let bytes = around
                .network
                .read(link.peer, 1 + random.below(4000) as usize);
            link.splitter.add(&bytes);
            self.take_all(number, random, around)?;
            let link = &mut self.links[number];
            match around.network.state(link.peer) {
                PeerState::Reset | PeerState::Refused => link.is_over = true,
                PeerState::Finished => {
                    let rest = around.network.read(link.peer, usize::MAX);
                    link.splitter.add(&rest);
                    around.network.close(link.peer);
                    self.take_all(number, random, around)?;
                    self.links[number].is_over = true;
                }
                PeerState::Connecting | PeerState::Open | PeerState::Closed => {}
            }
        }
        self.links.retain(|link| !link.is_over);
        Ok(())
    }

    pub(crate) fn close_all(&mut self, network: &Network) {
        for link in self.links.drain(..) {
            network.close(link.peer);
        }
    }

    fn take_all(
        &mut self,
        number: usize,
        random: &mut Random,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        while let Some(packet) = self.links[number].splitter.next() {
            let was_unknown = self.links[number].device.is_none();
            let routed = self.links[number]
                .take(&packet, random, around)
                .map_err(|why| {
                    let device = self.links[number].device;
                    format!("upstream of {device:?}: {why}")
                })?;
            if was_unknown {
                self.forget_first_chance(number, around);
            }
            if let Some((topic, qos, payload)) = routed {
                for link in &mut self.links {
                    if let Some(granted) = link.wants(&topic) {
                        link.deliver(around, &topic, qos.min(granted), &payload);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Broker {
    /// A CONNECT that comes a second time is one whose first broker was left: what that one has to say goes nowhere.
    fn forget_first_chance(&mut self, number: usize, around: &mut Around<'_>) {
        let Some(device) = self.links[number].device else {
            return;
        };
        if self.asked.insert(device) {
            return;
        }
        let last = self
            .links
            .iter()
            .rposition(|link| link.device == Some(device));
        for (other, link) in self.links.iter_mut().enumerate() {
            link.is_refused |= link.device == Some(device) && Some(other) != last;
        }
        if last != Some(number) {
            return; // it is the first one that comes late
        }
        around.devices[device].down = Stream::default();
    }
}

type Routed = Option<(String, u8, Vec<u8>)>;

impl Link {
    fn take(
        &mut self,
        bytes: &[u8],
        random: &mut Random,
        around: &mut Around<'_>,
    ) -> Result<Routed, String> {
        let Some(device) = self.device else {
            return self.connect(bytes, random, around).map(|()| None);
        };
        let Around {
            devices,
            since,
            latest,
            ..
        } = around;
        let (since, latest) = (*since, *latest);
        let device = &mut devices[device];
        let packet = decode(self.version, Side::Client, bytes)
            .map_err(|violation| format!("{violation:?} in {bytes:02x?}"))?;
        let open = Judged {
            class: Class::Open,
            since,
        };
        match packet {
            Packet::Publish(publish) => {
                device.up.came(bytes, latest)?;
                let answer = match (publish.qos, publish.packet_id) {
                    (QoS::AtLeastOnce, Some(id)) => Some(packets::puback(id)),
                    (QoS::ExactlyOnce, Some(id)) => Some(packets::pubrec(id)),
                    (_, _) => None,
                };
                if let Some(answer) = answer {
                    self.send(device, &answer, open);
                }
                return Ok(Some((
                    publish.topic.to_owned(),
                    publish.qos as u8,
                    publish.payload.to_vec(),
                )));
            }
            Packet::Pubrel(ack) => {
                device.up.came(bytes, latest)?;
                self.send(device, &packets::pubcomp(ack.packet_id), open);
            }
            Packet::Puback(ack) => self.delivery_step(device, bytes, ack.packet_id, 1, latest)?,
            Packet::Pubrec(ack) => self.delivery_step(device, bytes, ack.packet_id, 2, latest)?,
            Packet::Pubcomp(ack) => self.delivery_step(device, bytes, ack.packet_id, 3, latest)?,
            Packet::Subscribe(subscribe) => {
                let (asked, asked_since) = device
                    .up
                    .came_subscribe(subscribe.packet_id.get(), latest)?;
                let got: Vec<(String, u8)> = subscribe
                    .filters()
                    .map(|filter| (filter.filter.to_owned(), filter.qos as u8))
                    .collect();
                check_filters(&asked, asked_since, &got, latest)?;
                let codes: Vec<u8> = got.iter().map(|(_, qos)| *qos).collect();
                self.filters.extend(got);
                let suback = packets::suback(self.version, subscribe.packet_id, &codes);
                self.out.extend_from_slice(&suback); // merged on its way: checked by the device
            }
            Packet::Pingreq => {
                device.up.came(bytes, latest)?;
                self.send(device, &packets::pingresp(), open);
            }
            Packet::Disconnect(_) => device.up.came(bytes, latest)?,
            other @ (Packet::Connect(_)
            | Packet::Connack(_)
            | Packet::Suback(_)
            | Packet::Unsubscribe(_)
            | Packet::Unsuback(_)
            | Packet::Pingresp
            | Packet::Auth(_)) => return Err(format!("the proxy sent {other:?}")),
        }
        Ok(None)
    }

    fn connect(
        &mut self,
        bytes: &[u8],
        random: &mut Random,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        let connect = decode_connect(bytes).map_err(|violation| format!("{violation:?}"))?;
        let device = around
            .devices
            .iter()
            .position(|device| device.client_id == connect.client_id)
            .ok_or("a CONNECT of nobody")?;
        self.version = connect.version;
        self.device = Some(device);
        let is_refused = random.chance(REFUSALS);
        let code = match (is_refused, self.version) {
            (false, _) => 0,
            (true, Version::V5) => 0x89,
            (true, Version::V31 | Version::V311) => 3,
        };
        around.devices[device].is_cut |= is_refused;
        self.is_refused = is_refused;
        self.out
            .extend_from_slice(&packets::connack(self.version, code));
        Ok(())
    }

    /// A client's acknowledgement, in order, or the proxy's for a delivery that it dropped.
    fn delivery_step(
        &mut self,
        device: &mut Device,
        bytes: &[u8],
        id: NonZeroU16,
        step: u8,
        latest: u64,
    ) -> Result<(), String> {
        let Some((qos, judged)) = self.deliveries.get(&id.get()).copied() else {
            return Err(format!("an acknowledgement of nothing: {bytes:02x?}"));
        };
        if device.up.awaits(bytes) {
            device.up.came(bytes, latest)?;
        } else if !judged.may_drop(latest) {
            return Err(format!("the client never sent {bytes:02x?}"));
        }
        match (step, qos) {
            (1, 1) | (3, 3) => {
                self.deliveries.remove(&id.get());
            }
            (2, 2) => {
                self.deliveries.insert(id.get(), (3, judged));
                self.send(device, &packets::pubrel(id), judged);
            }
            _ => return Err(format!("step {step} of a delivery at {qos}: {bytes:02x?}")),
        }
        Ok(())
    }

    fn send(&mut self, device: &mut Device, packet: &[u8], judged: Judged) {
        self.out.extend_from_slice(packet);
        device.down.sent(packet, judged);
    }

    fn deliver(&mut self, around: &mut Around<'_>, topic: &str, qos: u8, payload: &[u8]) {
        let Some(device) = self.device.filter(|_| !self.is_refused) else {
            return;
        };
        let device = &mut around.devices[device];
        let qos = if self.deliveries.len() < IN_FLIGHT_MAX {
            qos
        } else {
            0
        };
        let id = self.next_id;
        let judged = Judged {
            class: class_of(topic),
            since: around.since,
        };
        if qos > 0 {
            self.next_id += 1;
            self.deliveries.insert(id, (qos, judged));
        }
        let packet = packets::publish(self.version, topic, qos, id, payload);
        self.send(device, &packet, judged);
    }

    fn wants(&self, topic: &str) -> Option<u8> {
        self.filters
            .iter()
            .filter(|(filter, _)| sluice_wire::mqtt::filter_matches(filter, topic))
            .map(|(_, qos)| *qos)
            .max()
    }

    fn end(&mut self, around: &mut Around<'_>, how: impl FnOnce(Peer, &Network)) {
        how(self.peer, around.network);
        self.is_over = true;
        for (number, device) in around.devices.iter_mut().enumerate() {
            // Before CONNECT it is anybody's who has no CONNACK yet.
            device.is_cut |= self.device.map_or(!device.is_open, |own| own == number);
        }
    }
}

/// The filters that came are those asked for, in order, without the refused ones.
fn check_filters(
    asked: &[(&'static str, u8)],
    since: u64,
    got: &[(String, u8)],
    latest: u64,
) -> Result<(), String> {
    let mut got = got.iter().peekable();
    for (filter, qos) in asked {
        let judged = Judged {
            class: class_of(filter),
            since,
        };
        if got
            .next_if(|(name, granted)| name == filter && granted == qos)
            .is_some()
        {
            if !judged.may_pass(latest) {
                return Err(format!("the filter {filter} was forwarded"));
            }
        } else if !judged.may_drop(latest) {
            return Err(format!("the filter {filter} was lost"));
        }
    }
    match got.next() {
        None => Ok(()),
        Some(more) => Err(format!("a filter out of nowhere: {more:?}")),
    }
}
