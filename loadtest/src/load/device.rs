//! One simulated device: a connection with a writer task and a reader task.
//!
//! Owns what a device does with its socket. It does not know the schedule: a scenario tells it what is due, and messages
//! that the socket does not take yet wait in its outbox with their due times, so that waiting counts as latency.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::TcpStream;

use super::clock;
use super::frame::{self, DISCONNECT, Frame, Login, Stamp, Template, Version, kind};
use super::pace::Window;
use super::report::Latency;
use super::target::Target;

/// Messages that wait in one device while its socket takes nothing; more are counted as unsent.
const OUTBOX_MAX: usize = 10_000;
/// Sent at once.
const WRITE_BYTES: usize = 64 << 10;
/// A connection that is not ready by then has failed.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What all devices of a run share. One thread, so plain cells.
#[derive(Default)]
pub struct World {
    /// What is measured.
    pub window: Cell<Window>,
    /// Devices whose reader still runs.
    pub open: Cell<u64>,
    /// Connections that did not get an accepting CONNACK (and SUBACK) in time.
    pub connect_failures: Cell<u64>,
    /// Connections lost while the run wanted them.
    pub broken: Cell<u64>,
    /// Messages handed to devices, and those of them due in the window.
    pub sent: Cell<u64>,
    /// See `sent`.
    pub sent_in_window: Cell<u64>,
    /// Messages dropped because an outbox was full, or its connection gone.
    pub unsent: Cell<u64>,
    /// PUBACK or PUBCOMP for messages due in the window.
    pub acked: Cell<u64>,
    /// Deliveries to readers that keep up, due in the window.
    pub delivered: Cell<u64>,
    /// Bytes read by slow readers.
    pub slow_bytes: Cell<u64>,
    /// From due to CONNACK.
    pub connect: RefCell<Latency>,
    /// From due to delivery at a subscriber, or to the response at a requester.
    pub delivery: RefCell<Latency>,
    /// From due to PUBACK or PUBCOMP.
    pub ack: RefCell<Latency>,
    /// From due to the moment the generator handed the message to the device: what of the latency is ours.
    pub lateness: RefCell<Latency>,
    is_ending: Cell<bool>,
}

/// Adds to a counter cell.
pub fn add(cell: &Cell<u64>, by: u64) {
    cell.set(cell.get() + by);
}

/// How a device connects.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Where.
    pub target: Target,
    /// Which MQTT.
    pub version: Version,
    /// As whom.
    pub login: Login,
    /// Front of the client id; the index follows.
    pub client_id_prefix: String,
}

/// What a device is for.
#[derive(Clone, Debug)]
pub enum Role {
    /// Holds a connection.
    Idle,
    /// Publishes to one topic after the other, round and round; each is a sender of its own to the broker.
    Publisher(Vec<Template>),
    /// Receives.
    Subscriber {
        /// What it subscribes to.
        filter: String,
    },
    /// Receives at most so many bytes a second.
    SlowSubscriber {
        /// What it subscribes to.
        filter: String,
        /// Bytes read a second.
        bytes_per_sec: u32,
    },
    /// Publishes requests and receives the responses.
    Requester {
        /// The request.
        template: Template,
        /// Where responses come.
        filter: String,
    },
    /// Answers `request/x` on `response/x` with the due time of the request.
    Responder {
        /// What it subscribes to.
        filter: String,
    },
}

impl Role {
    fn filter(&self) -> Option<&str> {
        match self {
            Self::Idle | Self::Publisher(_) => None,
            Self::Subscriber { filter }
            | Self::SlowSubscriber { filter, .. }
            | Self::Requester { filter, .. }
            | Self::Responder { filter } => Some(filter),
        }
    }

    /// What the message with this number is made from.
    fn template(&self, sequence: u32) -> Option<&Template> {
        match self {
            Self::Publisher(topics) => topics.get(sequence as usize % topics.len().max(1)),
            Self::Requester { template, .. } => Some(template),
            Self::Idle
            | Self::Subscriber { .. }
            | Self::SlowSubscriber { .. }
            | Self::Responder { .. } => None,
        }
    }
}

enum Item {
    /// A message from the template, due then.
    Message(u64),
    /// A packet as it is.
    Packet(Vec<u8>),
}

/// A connected device.
pub struct Device {
    index: u32,
    version: Version,
    role: Role,
    world: Rc<World>,
    outbox: RefCell<VecDeque<Item>>,
    writer: RefCell<Option<Waker>>,
    is_closed: Cell<bool>,
    sequence: Cell<u32>,
    packet_id: Cell<u16>,
    /// Messages above QoS 0 that are not acknowledged, oldest first.
    unacknowledged: RefCell<VecDeque<(u16, u64)>>,
}

/// Sends CONNECT on a new connection and waits for an accepting CONNACK.
pub async fn connect(dial: &Dial, index: u32) -> io::Result<TcpStream> {
    let client_id = format!("{}{index}", dial.client_id_prefix);
    let connecting = async {
        let mut stream = dial.target.connect(index).await?;
        let packet = frame::connect(dial.version, &client_id, 0, &dial.login);
        stream.write_all(packet).await.0?;
        let connack = read_one(&mut stream, kind::CONNACK).await?;
        // Session-present flag, then the code.
        match connack.get(1) {
            Some(0) => Ok(stream),
            code => Err(io::Error::other(format!("CONNACK with code {code:?}"))),
        }
    };
    monoio::time::timeout(READY_WITHIN, connecting)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

/// Reads the body of exactly one packet; nothing else is expected before it.
async fn read_one(stream: &mut TcpStream, wanted: u8) -> io::Result<Vec<u8>> {
    let mut arrived = Vec::new();
    let mut buffer = Vec::with_capacity(256);
    loop {
        let (result, returned) = stream.read(buffer).await;
        buffer = returned;
        if result? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        arrived.extend_from_slice(&buffer);
        match frame::cut(&arrived) {
            Ok(Some(packet)) if packet.kind() == wanted => return Ok(packet.body.to_vec()),
            Ok(None) => {}
            other => return Err(io::Error::other(format!("unexpected answer: {other:?}"))),
        }
    }
}

impl Device {
    /// Connects, subscribes if the role asks for it, and starts the tasks. `due_ns` is when it should have begun.
    pub async fn open(
        world: Rc<World>,
        dial: &Dial,
        index: u32,
        role: Role,
        due_ns: u64,
    ) -> io::Result<Rc<Self>> {
        let mut stream = connect(dial, index).await?;
        world
            .connect
            .borrow_mut()
            .record_ns(clock::now().saturating_sub(due_ns));
        if let Some(filter) = role.filter() {
            let packet = frame::subscribe(dial.version, 1, filter, 0);
            stream.write_all(packet).await.0?;
            let suback = monoio::time::timeout(READY_WITHIN, read_one(&mut stream, kind::SUBACK))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            if suback.last().is_none_or(|code| *code > 2) {
                return Err(io::Error::other("subscription refused"));
            }
        }
        let (reader, writer) = stream.into_split();
        let device = Rc::new(Self {
            index,
            version: dial.version,
            role,
            world,
            outbox: RefCell::default(),
            writer: RefCell::default(),
            is_closed: Cell::new(false),
            sequence: Cell::new(0),
            packet_id: Cell::new(0),
            unacknowledged: RefCell::default(),
        });
        add(&device.world.open, 1);
        monoio::spawn(Rc::clone(&device).write(writer));
        monoio::spawn(Rc::clone(&device).read(reader));
        Ok(device)
    }

    /// Sends one message that is due at `due_ns`.
    pub fn publish(&self, due_ns: u64) {
        let world = &self.world;
        add(&world.sent, 1);
        if world.window.get().holds(due_ns) {
            add(&world.sent_in_window, 1);
            world
                .lateness
                .borrow_mut()
                .record_ns(clock::now().saturating_sub(due_ns));
        }
        if self.is_closed.get() || self.outbox.borrow().len() >= OUTBOX_MAX {
            add(&world.unsent, 1);
            return;
        }
        self.push(Item::Message(due_ns));
    }

    /// Says goodbye. The other side closes.
    pub fn close(&self) {
        self.world.is_ending.set(true);
        self.push(Item::Packet(DISCONNECT.to_vec()));
    }

    fn push(&self, item: Item) {
        self.outbox.borrow_mut().push_back(item);
        if let Some(waker) = self.writer.borrow_mut().take() {
            waker.wake();
        }
    }

    fn ended(&self) {
        if !self.is_closed.replace(true) {
            let world = &self.world;
            world.open.set(world.open.get().saturating_sub(1));
            if !world.is_ending.get() {
                add(&world.broken, 1);
            }
            if let Some(waker) = self.writer.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// True when there is something to write, false when there never will be.
    async fn has_work(&self) -> bool {
        std::future::poll_fn(|context| {
            if self.is_closed.get() {
                Poll::Ready(false)
            } else if self.outbox.borrow().is_empty() {
                *self.writer.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            } else {
                Poll::Ready(true)
            }
        })
        .await
    }

    async fn write(self: Rc<Self>, mut writer: OwnedWriteHalf<TcpStream>) {
        let mut buffer = Vec::new();
        while self.has_work().await {
            buffer.clear();
            self.collect(&mut buffer);
            let (result, returned) = writer.write_all(buffer).await;
            buffer = returned;
            if result.is_err() {
                break;
            }
        }
        // A target that stays open after DISCONNECT still gets a FIN.
        let _ = writer.shutdown().await;
        self.ended();
    }

    /// Takes what waits, up to the size of one send.
    fn collect(&self, buffer: &mut Vec<u8>) {
        let mut outbox = self.outbox.borrow_mut();
        while buffer.len() < WRITE_BYTES {
            match outbox.pop_front() {
                Some(Item::Packet(packet)) => buffer.extend_from_slice(&packet),
                Some(Item::Message(due_ns)) => self.push_message(due_ns, buffer),
                None => return,
            }
        }
    }

    fn push_message(&self, due_ns: u64, buffer: &mut Vec<u8>) {
        let sequence = self.sequence.get();
        let Some(template) = self.role.template(sequence) else {
            return;
        };
        self.sequence.set(sequence.wrapping_add(1));
        let mut packet_id = 0;
        if template.qos() > 0 {
            packet_id = self.packet_id.get().checked_add(1).unwrap_or(1);
            self.packet_id.set(packet_id);
            self.unacknowledged
                .borrow_mut()
                .push_back((packet_id, due_ns));
        }
        let topics = match &self.role {
            Role::Publisher(topics) => u32::try_from(topics.len()).unwrap_or(1).max(1),
            Role::Idle
            | Role::Subscriber { .. }
            | Role::SlowSubscriber { .. }
            | Role::Requester { .. }
            | Role::Responder { .. } => 1,
        };
        let stamp = Stamp {
            due_ns,
            sender: self.index * topics + sequence % topics,
            sequence: sequence / topics,
        };
        template.push(stamp, packet_id, buffer);
    }

    async fn read(self: Rc<Self>, mut reader: OwnedReadHalf<TcpStream>) {
        if let Role::SlowSubscriber { bytes_per_sec, .. } = self.role {
            self.read_slowly(&mut reader, bytes_per_sec).await;
        } else {
            self.read_all(&mut reader).await;
        }
        self.ended();
    }

    async fn read_all(&self, reader: &mut OwnedReadHalf<TcpStream>) {
        let capacity = match &self.role {
            Role::Idle | Role::Publisher(_) => 512,
            Role::Subscriber { .. } | Role::Responder { .. } => 64 << 10,
            Role::Requester { .. } | Role::SlowSubscriber { .. } => 4 << 10,
        };
        let mut buffer = Vec::with_capacity(capacity);
        let mut carry: Vec<u8> = Vec::new();
        loop {
            let (result, returned) = reader.read(buffer).await;
            buffer = returned;
            if !matches!(result, Ok(1..)) {
                return;
            }
            let now = clock::now();
            let joined: &[u8] = if carry.is_empty() {
                &buffer
            } else {
                carry.extend_from_slice(&buffer);
                &carry
            };
            let mut rest = joined;
            while let Ok(Some(packet)) = frame::cut(rest) {
                self.packet(packet, now);
                rest = rest.get(packet.total..).unwrap_or(&[]);
            }
            carry = rest.to_vec();
        }
    }

    /// Ten reads a second of a tenth of the bytes; nothing is looked at.
    async fn read_slowly(&self, reader: &mut OwnedReadHalf<TcpStream>, bytes_per_sec: u32) {
        let mut buffer = Vec::with_capacity((bytes_per_sec / 10).max(1) as usize);
        while !self.world.is_ending.get() {
            let (result, returned) = reader.read(buffer).await;
            buffer = returned;
            let Ok(count @ 1..) = result else { return };
            add(&self.world.slow_bytes, count as u64);
            monoio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn packet(&self, packet: Frame<'_>, now: u64) {
        match packet.kind() {
            kind::PUBLISH => {
                let Some(publish) = packet.publish(self.version) else {
                    return;
                };
                if let Role::Responder { .. } = self.role {
                    self.respond(publish);
                } else if let Some(stamp) = Stamp::read(publish.payload)
                    && self.world.window.get().holds(stamp.due_ns)
                {
                    add(&self.world.delivered, 1);
                    self.world
                        .delivery
                        .borrow_mut()
                        .record_ns(now.saturating_sub(stamp.due_ns));
                }
            }
            kind::PUBREC => {
                let mut reply = Vec::new();
                frame::push_ack(kind::PUBREL, packet.packet_id().unwrap_or(0), &mut reply);
                self.push(Item::Packet(reply));
            }
            kind::PUBACK | kind::PUBCOMP => self.acknowledged(packet.packet_id(), now),
            _ => {}
        }
    }

    fn respond(&self, request: frame::Publish<'_>) {
        let mut topic = b"response/".to_vec();
        topic.extend_from_slice(request.topic.strip_prefix(b"request/").unwrap_or(b""));
        let mut body = (topic.len() as u16).to_be_bytes().to_vec();
        body.extend_from_slice(&topic);
        if self.version == Version::V5 {
            body.push(0);
        }
        let payload_at = body.len();
        body.extend_from_slice(request.payload);
        if let Some(payload) = body.get_mut(payload_at..) {
            Stamp::disown(payload);
        }
        let mut reply = Vec::with_capacity(body.len() + 5);
        frame::push_packet(kind::PUBLISH << 4, &body, &mut reply);
        self.push(Item::Packet(reply));
    }

    fn acknowledged(&self, packet_id: Option<u16>, now: u64) {
        let mut waiting = self.unacknowledged.borrow_mut();
        // Answers come in order almost always, so this looks at the front.
        let Some(at) = waiting.iter().position(|(id, _)| Some(*id) == packet_id) else {
            return;
        };
        if let Some((_, due_ns)) = waiting.remove(at)
            && self.world.window.get().holds(due_ns)
        {
            add(&self.world.acked, 1);
            self.world
                .ack
                .borrow_mut()
                .record_ns(now.saturating_sub(due_ns));
        }
    }
}
