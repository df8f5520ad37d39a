//! The stub's normal mode: a tiny correct broker as pure state.
//!
//! Packets in, packets out; no socket, no thread, no clock. Knows subscriptions with wildcards and share groups, QoS 0 to 2
//! in both directions, retained messages, wills, and sessions kept in memory until the process ends. Leaves out what
//! needs a clock: expiry and will delay are ignored, and keep alive is not enforced.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sluice_wire::mqtt::{
    Ack, Connect, Packet, PacketKind, Properties, Property, PropertyId, Publish, Subscribe,
    SubscribeFilter, Unsubscribe, Version, filter_matches, parse_filter,
};

use crate::packet::{self, Props};

/// One connection, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Messages kept for one session that is away or slow; more are dropped, oldest first.
pub const QUEUE_MAX: usize = 1_000;
/// Sessions kept; a new one beyond is refused with "server unavailable".
pub const SESSIONS_MAX: usize = 20_000;
/// Retained topics; a new one beyond is not kept.
pub const RETAINED_MAX: usize = 10_000;

/// What is to be done for a connection, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write these bytes.
    Send(LinkId, Vec<u8>),
    /// Close after what was written.
    Close(LinkId),
}

/// All state of the broker.
#[derive(Debug, Default)]
pub struct Broker {
    sessions: HashMap<String, Session>,
    /// Which session a connection belongs to.
    attached: HashMap<LinkId, String>,
    retained: BTreeMap<String, Message>,
    /// Turn of each share group and filter.
    turns: HashMap<String, usize>,
    effects: Vec<Effect>,
}

#[derive(Debug)]
struct Session {
    link: Option<LinkId>,
    version: Version,
    keep: bool,
    will: Option<Message>,
    subscriptions: Vec<Subscription>,
    queue: VecDeque<Delivery>,
    /// Sent at QoS above 0 and not finished, in order of sending.
    in_flight: VecDeque<InFlight>,
    receive_max: usize,
    packet_bytes_max: usize,
    next_packet_id: u16,
    /// QoS 2 packet identifiers received and not released.
    unreleased: BTreeSet<u16>,
    /// Topic aliases of this connection.
    aliases: HashMap<u32, String>,
}

#[derive(Clone, Debug)]
struct Subscription {
    whole_filter: String,
    share_group: Option<String>,
    filter: String,
    qos: u8,
    options: u8,
    identifier: Option<u32>,
}

#[derive(Clone, Debug)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: u8,
    retain: bool,
    props: Props,
}

#[derive(Clone, Debug)]
struct Delivery {
    message: Message,
    /// Subscription identifiers, in front of the message's own properties.
    identifiers: Props,
}

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    /// `None` once PUBREC has come: PUBREL is what is owed.
    delivery: Option<Delivery>,
}

impl Broker {
    /// What must be done, in order; to be called after every other call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Opens or resumes the session of a CONNECT. Gives whether it was present, or `None` when there is no room.
    pub fn open(&mut self, link: LinkId, connect: &Connect<'_>, client_id: &str) -> Option<bool> {
        if let Some(old) = self.sessions.get(client_id).and_then(|old| old.link) {
            let version = self.sessions.get(client_id).map(|old| old.version);
            if version == Some(Version::V5) {
                // Session taken over.
                self.send(old, packet::disconnect_with(0x8e, &Props::new()));
            }
            self.effects.push(Effect::Close(old));
            self.close(old, true);
        }
        if connect.clean_start {
            self.sessions.remove(client_id);
        }
        if !self.sessions.contains_key(client_id) && self.sessions.len() >= SESSIONS_MAX {
            return None;
        }
        let is_present = self.sessions.contains_key(client_id);
        let number = |id| connect.properties.number(id);
        let keep = match connect.version {
            Version::V31 | Version::V311 => !connect.clean_start,
            Version::V5 => number(PropertyId::SessionExpiryInterval).is_some_and(|secs| secs > 0),
        };
        let session = self
            .sessions
            .entry(client_id.to_owned())
            .or_insert_with(|| Session {
                link: None,
                version: connect.version,
                keep,
                will: None,
                subscriptions: Vec::new(),
                queue: VecDeque::new(),
                in_flight: VecDeque::new(),
                receive_max: usize::from(u16::MAX),
                packet_bytes_max: usize::MAX,
                next_packet_id: 0,
                unreleased: BTreeSet::new(),
                aliases: HashMap::new(),
            });
        session.link = Some(link);
        session.version = connect.version;
        session.keep = keep;
        session.receive_max = number(PropertyId::ReceiveMaximum).unwrap_or(65_535) as usize;
        session.packet_bytes_max =
            number(PropertyId::MaximumPacketSize).map_or(usize::MAX, |bytes| bytes as usize);
        session.aliases.clear();
        session.will = connect.will.as_ref().map(|will| Message {
            topic: will.topic.to_owned(),
            payload: will.payload.to_vec(),
            qos: will.qos as u8,
            retain: will.retain,
            props: forwarded(&will.properties),
        });
        self.attached.insert(link, client_id.to_owned());
        Some(is_present)
    }

    /// To be called when the CONNACK has been written: what the session is owed goes out.
    pub fn resume(&mut self, link: LinkId) {
        let Some(client_id) = self.attached.get(&link).cloned() else {
            return;
        };
        let Some(session) = self.sessions.get(&client_id) else {
            return;
        };
        let again: Vec<Vec<u8>> = session
            .in_flight
            .iter()
            .map(|entry| match &entry.delivery {
                Some(delivery) => session.publish_bytes(delivery, entry.packet_id, true),
                None => packet::ack(PacketKind::Pubrel, entry.packet_id),
            })
            .collect();
        for bytes in again {
            self.send(link, bytes);
        }
        self.flush(&client_id);
    }

    /// A packet of an open session. `false` means that the client broke the protocol and must be closed.
    pub fn handle(&mut self, link: LinkId, packet: &Packet<'_>) -> bool {
        let Some(client_id) = self.attached.get(&link).cloned() else {
            return false;
        };
        match packet {
            Packet::Publish(publish) => return self.handle_publish(link, &client_id, publish),
            Packet::Puback(ack) => self.finish(&client_id, ack),
            Packet::Pubrec(ack) => self.handle_pubrec(link, &client_id, ack),
            Packet::Pubrel(ack) => {
                if let Some(session) = self.sessions.get_mut(&client_id) {
                    session.unreleased.remove(&ack.packet_id.get());
                }
                self.send(link, packet::ack(PacketKind::Pubcomp, ack.packet_id.get()));
            }
            Packet::Pubcomp(ack) => self.finish(&client_id, ack),
            Packet::Subscribe(subscribe) => self.handle_subscribe(link, &client_id, subscribe),
            Packet::Unsubscribe(unsubscribe) => {
                self.handle_unsubscribe(link, &client_id, unsubscribe);
            }
            Packet::Pingreq => self.send(link, packet::PINGRESP.to_vec()),
            Packet::Disconnect(disconnect) => {
                // 0x04: disconnect with will message.
                self.close(link, disconnect.code == 0x04);
                self.effects.push(Effect::Close(link));
            }
            Packet::Connect(_)
            | Packet::Connack(_)
            | Packet::Suback(_)
            | Packet::Unsuback(_)
            | Packet::Pingresp
            | Packet::Auth(_) => return false,
        }
        true
    }

    /// The connection is gone; its will is published unless it said good-bye.
    pub fn close(&mut self, link: LinkId, publish_will: bool) {
        let Some(client_id) = self.attached.remove(&link) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&client_id) else {
            return;
        };
        session.link = None;
        let will = session.will.take().filter(|_| publish_will);
        if !session.keep {
            self.sessions.remove(&client_id);
        }
        if let Some(will) = will {
            self.distribute(&will, None);
        }
    }

    /// Sessions in memory.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    fn handle_publish(&mut self, link: LinkId, client_id: &str, publish: &Publish<'_>) -> bool {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return false;
        };
        let alias = publish.properties.number(PropertyId::TopicAlias);
        let topic = match (alias, publish.topic) {
            (Some(alias), "") => match session.aliases.get(&alias) {
                Some(topic) => topic.clone(),
                None => return false,
            },
            (Some(alias), topic) => {
                session.aliases.insert(alias, topic.to_owned());
                topic.to_owned()
            }
            (None, topic) => topic.to_owned(),
        };
        let packet_id = publish.packet_id.map_or(0, |id| id.get());
        let qos = publish.qos as u8;
        let is_new = qos < 2 || session.unreleased.insert(packet_id);
        if is_new {
            let message = Message {
                topic,
                payload: publish.payload.to_vec(),
                qos,
                retain: publish.retain,
                props: forwarded(&publish.properties),
            };
            self.distribute(&message, Some(client_id));
        }
        match qos {
            1 => self.send(link, packet::ack(PacketKind::Puback, packet_id)),
            2 => self.send(link, packet::ack(PacketKind::Pubrec, packet_id)),
            _ => {}
        }
        true
    }

    fn handle_pubrec(&mut self, link: LinkId, client_id: &str, ack: &Ack<'_>) {
        if ack.code >= 0x80 {
            return self.finish(client_id, ack);
        }
        let packet_id = ack.packet_id.get();
        let session = self.sessions.get_mut(client_id);
        if let Some(entry) = session.and_then(|session| {
            let mut entries = session.in_flight.iter_mut();
            entries.find(|entry| entry.packet_id == packet_id)
        }) {
            entry.delivery = None;
        }
        self.send(link, packet::ack(PacketKind::Pubrel, packet_id));
    }

    fn finish(&mut self, client_id: &str, ack: &Ack<'_>) {
        if let Some(session) = self.sessions.get_mut(client_id) {
            let packet_id = ack.packet_id.get();
            session
                .in_flight
                .retain(|entry| entry.packet_id != packet_id);
        }
        self.flush(client_id);
    }

    fn handle_subscribe(&mut self, link: LinkId, client_id: &str, subscribe: &Subscribe<'_>) {
        let identifier = subscribe
            .properties
            .number(PropertyId::SubscriptionIdentifier);
        let mut codes = Vec::new();
        let mut wanted = Vec::new();
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let version = session.version;
        for asked in subscribe.filters() {
            let Ok(parsed) = parse_filter(asked.filter) else {
                codes.push(if version == Version::V5 { 0x8f } else { 0x80 });
                continue;
            };
            let subscription = Subscription {
                whole_filter: asked.filter.to_owned(),
                share_group: parsed.share_group.map(str::to_owned),
                filter: parsed.filter.to_owned(),
                qos: asked.qos as u8,
                options: asked.options,
                identifier,
            };
            let old = session
                .subscriptions
                .iter_mut()
                .find(|old| old.whole_filter == asked.filter);
            let is_new = old.is_none();
            match old {
                Some(old) => *old = subscription.clone(),
                None => session.subscriptions.push(subscription.clone()),
            }
            if wants_retained(&asked, is_new) && subscription.share_group.is_none() {
                wanted.push(subscription);
            }
            codes.push(asked.qos as u8);
        }
        self.send(
            link,
            packet::suback(version, subscribe.packet_id.get(), &codes),
        );
        for subscription in wanted {
            let kept: Vec<Message> = self
                .retained
                .values()
                .filter(|message| filter_matches(&subscription.filter, &message.topic))
                .cloned()
                .collect();
            for message in kept {
                self.enqueue(client_id, &message, &[&subscription], true);
            }
        }
        self.flush(client_id);
    }

    fn handle_unsubscribe(&mut self, link: LinkId, client_id: &str, packet: &Unsubscribe<'_>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let mut codes = Vec::new();
        for filter in packet.filters() {
            let before = session.subscriptions.len();
            session
                .subscriptions
                .retain(|subscription| subscription.whole_filter != filter);
            // 0x11: no subscription existed.
            codes.push(if session.subscriptions.len() < before {
                0
            } else {
                0x11
            });
        }
        if session.version != Version::V5 {
            codes.clear();
        }
        let bytes = packet::unsuback(session.version, packet.packet_id.get(), &codes);
        self.send(link, bytes);
    }

    /// Keeps the message when it is retained and gives it to every subscriber once.
    fn distribute(&mut self, message: &Message, from: Option<&str>) {
        if message.retain {
            if message.payload.is_empty() {
                self.retained.remove(&message.topic);
            } else if self.retained.contains_key(&message.topic)
                || self.retained.len() < RETAINED_MAX
            {
                self.retained.insert(message.topic.clone(), message.clone());
            }
        }
        let mut takers: BTreeMap<String, Vec<Subscription>> = BTreeMap::new();
        let mut groups: BTreeMap<String, Vec<(String, Subscription)>> = BTreeMap::new();
        for (client_id, session) in &self.sessions {
            for subscription in &session.subscriptions {
                let is_own = from == Some(client_id) && subscription.options & 0x04 != 0;
                if is_own || !filter_matches(&subscription.filter, &message.topic) {
                    continue;
                }
                if subscription.share_group.is_some() {
                    let members = groups.entry(subscription.whole_filter.clone()).or_default();
                    members.push((client_id.clone(), subscription.clone()));
                } else {
                    let own = takers.entry(client_id.clone()).or_default();
                    own.push(subscription.clone());
                }
            }
        }
        for (whole_filter, mut members) in groups {
            members.sort_by(|left, right| left.0.cmp(&right.0));
            let turn = self.turns.entry(whole_filter).or_default();
            let chosen = *turn % members.len();
            *turn = turn.wrapping_add(1);
            let (client_id, subscription) = members.swap_remove(chosen);
            takers.entry(client_id).or_default().push(subscription);
        }
        for (client_id, subscriptions) in takers {
            let refs: Vec<&Subscription> = subscriptions.iter().collect();
            self.enqueue(&client_id, message, &refs, false);
            self.flush(&client_id);
        }
    }

    fn enqueue(
        &mut self,
        client_id: &str,
        message: &Message,
        by: &[&Subscription],
        from_retained: bool,
    ) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let mut message = message.clone();
        let granted = by.iter().map(|subscription| subscription.qos).max();
        message.qos = message.qos.min(granted.unwrap_or(0));
        // Retain as published is bit 3 of the options.
        message.retain &= from_retained
            || by
                .iter()
                .any(|subscription| subscription.options & 0x08 != 0);
        if session.link.is_none() && message.qos == 0 {
            return;
        }
        let mut identifiers = Props::new();
        for identifier in by.iter().filter_map(|subscription| subscription.identifier) {
            identifiers = identifiers.variable(0x0b, identifier);
        }
        if session.queue.len() == QUEUE_MAX {
            session.queue.pop_front();
        }
        session.queue.push_back(Delivery {
            message,
            identifiers,
        });
    }

    /// Sends what the receive maximum allows.
    fn flush(&mut self, client_id: &str) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(link) = session.link else {
            return;
        };
        while let Some(next) = session.queue.front() {
            if next.message.qos > 0 && session.in_flight.len() >= session.receive_max {
                break;
            }
            let Some(delivery) = session.queue.pop_front() else {
                break;
            };
            let mut packet_id = 0;
            if delivery.message.qos > 0 {
                packet_id = session.free_packet_id();
            }
            let bytes = session.publish_bytes(&delivery, packet_id, false);
            // A message the client cannot take is dropped as if delivered [MQTT-3.1.2-25].
            if bytes.len() > session.packet_bytes_max {
                continue;
            }
            if packet_id > 0 {
                session.in_flight.push_back(InFlight {
                    packet_id,
                    delivery: Some(delivery),
                });
            }
            self.effects.push(Effect::Send(link, bytes));
        }
    }

    fn send(&mut self, link: LinkId, bytes: Vec<u8>) {
        self.effects.push(Effect::Send(link, bytes));
    }
}

impl Session {
    fn free_packet_id(&mut self) -> u16 {
        loop {
            self.next_packet_id = self.next_packet_id.checked_add(1).unwrap_or(1);
            let id = self.next_packet_id;
            // `in_flight` is shorter than 65,535 by the receive maximum, so a free one exists.
            if !self.in_flight.iter().any(|entry| entry.packet_id == id) {
                return id;
            }
        }
    }

    fn publish_bytes(&self, delivery: &Delivery, packet_id: u16, dup: bool) -> Vec<u8> {
        let message = &delivery.message;
        let mut props = delivery.identifiers.clone();
        props.0.extend_from_slice(&message.props.0);
        let mut publish = packet::Publish::new(self.version, &message.topic, &*message.payload)
            .qos(message.qos, packet_id)
            .props(props);
        publish.dup = dup;
        publish.retain = message.retain;
        publish.bytes()
    }
}

fn wants_retained(asked: &SubscribeFilter<'_>, is_new: bool) -> bool {
    // Retain Handling: 0 always, 1 when the subscription is new, 2 never.
    match asked.options >> 4 & 3 {
        0 => true,
        1 => is_new,
        _ => false,
    }
}

/// The properties of a PUBLISH or will that go on to subscribers: all but those of the hop.
fn forwarded(properties: &Properties<'_>) -> Props {
    let mut out = Props::new();
    for property in properties.iter() {
        out = match property {
            Property::Number(PropertyId::TopicAlias | PropertyId::WillDelayInterval, _) => out,
            Property::Number(id @ PropertyId::PayloadFormatIndicator, value) => {
                out.byte(id as u8, value as u8)
            }
            Property::Number(id, value) => out.four(id as u8, value),
            Property::Text(id, text) => out.text(id as u8, text),
            Property::Data(id, data) => out.text(id as u8, data),
            Property::Pair(name, value) => out.user(name, value),
        };
    }
    out
}
