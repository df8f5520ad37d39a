//! A raw MQTT client for tests: sends packets or bytes as they are, expects whole packets.
//!
//! Owns one connection. Answers nothing by itself (no PUBACK, no ping): what is on the wire is what the test wrote. The
//! `expect_*` calls panic with what came instead; the others return it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};

use sluice_wire::mqtt::{PacketKind, Version};

use crate::packet::{Connect, Cutter, Frame, PINGREQ, Publish, ack, subscribe};
use crate::patience::{Deadline, PATIENCE};
use crate::stream::{Address, Stream};

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    version: Version,
    cutter: Cutter,
    /// Packets that came while a handshake was waited for.
    aside: VecDeque<Frame>,
    /// Everything received, in order.
    received: Vec<u8>,
}

/// Why no packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer finished sending at a packet boundary.
    Closed,
    /// The peer finished sending in the middle of a packet.
    ClosedInPacket,
    /// The connection was reset.
    Reset,
    /// Nothing came in [`PATIENCE`].
    Silent,
    /// The bytes are not MQTT.
    NotMqtt,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the connection was closed",
            Self::ClosedInPacket => "the connection was closed in the middle of a packet",
            Self::Reset => "the connection was reset",
            Self::Silent => "nothing came in time",
            Self::NotMqtt => "the bytes received are not MQTT",
        })
    }
}

impl std::error::Error for Ended {}

impl Client {
    /// Opens a connection; nothing is sent.
    pub fn dial(address: impl Into<Address>, version: Version) -> io::Result<Self> {
        Self::over(Stream::dial(&address.into())?, version)
    }

    /// The same from a local address of one's choice.
    pub fn dial_from(source: IpAddr, address: SocketAddr, version: Version) -> io::Result<Self> {
        Self::over(Stream::dial_from(source, address)?, version)
    }

    fn over(stream: Stream, version: Version) -> io::Result<Self> {
        stream.set_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            version,
            cutter: Cutter::default(),
            aside: VecDeque::new(),
            received: Vec::new(),
        })
    }

    /// The version it was dialled with.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    /// The next whole packet.
    pub fn recv(&mut self) -> Result<Frame, Ended> {
        match self.aside.pop_front() {
            Some(frame) => Ok(frame),
            None => self.recv_from_wire(),
        }
    }

    /// The next packet of that kind and packet identifier; what comes before it is kept for [`Client::recv`].
    fn recv_ack(&mut self, kind: PacketKind, packet_id: u16) -> Result<Frame, Ended> {
        loop {
            let frame = self.recv_from_wire()?;
            if frame.is(kind) && frame.body().starts_with(&packet_id.to_be_bytes()) {
                return Ok(frame);
            }
            self.aside.push_back(frame);
        }
    }

    fn recv_from_wire(&mut self) -> Result<Frame, Ended> {
        let deadline = Deadline::generous();
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.cutter.cut() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(_) => return Err(Ended::NotMqtt),
            }
            if deadline.has_passed() {
                return Err(Ended::Silent);
            }
            match (&self.stream).read(&mut buffer) {
                Ok(0) if self.cutter.pending().is_empty() => return Err(Ended::Closed),
                Ok(0) => return Err(Ended::ClosedInPacket),
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or(&[]);
                    self.received.extend_from_slice(bytes);
                    self.cutter.push(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Err(Ended::Silent);
                }
                Err(_) => return Err(Ended::Reset),
            }
        }
    }

    /// Everything received so far.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Finishes sending and goes on receiving.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Ends the connection with a reset.
    pub fn reset(self) -> io::Result<()> {
        self.stream.reset_on_close()
    }

    /// Shrinks the receive buffer, for tests that stop reading.
    pub fn shrink_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        self.stream.shrink_receive_buffer(bytes)
    }
}

/// The calls that panic: assertions of tests.
#[allow(clippy::panic, clippy::expect_used)] // a test fails by panicking
impl Client {
    /// Connects with a clean session and is accepted.
    #[track_caller]
    pub fn open(address: impl Into<Address>, version: Version, client_id: &str) -> Self {
        Self::open_with(address, &Connect::new(version, client_id))
    }

    /// Connects with `connect` and is accepted.
    #[track_caller]
    pub fn open_with(address: impl Into<Address>, connect: &Connect) -> Self {
        let mut client = Self::start(address, connect.version);
        let code = client.connect(connect);
        assert_eq!(code, 0, "CONNACK code of {:?}", connect.client_id);
        client
    }

    /// Dials; panics when nobody listens.
    #[track_caller]
    pub fn start(address: impl Into<Address>, version: Version) -> Self {
        let address = address.into();
        match Self::dial(address.clone(), version) {
            Ok(client) => client,
            Err(error) => panic!("dial {address:?}: {error}"),
        }
    }

    /// Sends CONNECT and gives the code of the CONNACK.
    #[track_caller]
    pub fn connect(&mut self, connect: &Connect) -> u8 {
        self.put(&connect.bytes());
        let connack = self.expect(PacketKind::Connack);
        connack.body().get(1).copied().expect("CONNACK has a code")
    }

    /// Writes bytes; panics when the connection is gone.
    #[track_caller]
    pub fn put(&mut self, bytes: &[u8]) {
        if let Err(error) = self.send(bytes) {
            panic!("send: {error}");
        }
    }

    /// The next packet, which must be of that kind.
    #[track_caller]
    pub fn expect(&mut self, kind: PacketKind) -> Frame {
        match self.recv() {
            Ok(frame) if frame.is(kind) => frame,
            Ok(frame) => panic!("expected {kind:?}, got {frame:?}"),
            Err(ended) => panic!("expected {kind:?}, but {ended}"),
        }
    }

    /// The next packet, which must have exactly these bytes.
    #[track_caller]
    pub fn expect_bytes(&mut self, bytes: &[u8]) {
        let expected = Frame {
            bytes: bytes.to_vec(),
        };
        match self.recv() {
            Ok(frame) => assert_eq!(frame, expected),
            Err(ended) => panic!("expected {expected:?}, but {ended}"),
        }
    }

    /// The connection ends without another packet.
    #[track_caller]
    pub fn expect_end(&mut self) -> Ended {
        match self.recv() {
            Ok(frame) => panic!("expected the end, got {frame:?}"),
            Err(ended @ (Ended::Closed | Ended::Reset)) => ended,
            Err(ended) => panic!("expected the end, but {ended}"),
        }
    }

    /// A DISCONNECT with `code` (version 5 only), then the end. Below version 5, just the end.
    #[track_caller]
    pub fn expect_disconnect(&mut self, code: u8) {
        if self.version == Version::V5 {
            let disconnect = self.expect(PacketKind::Disconnect);
            let got = disconnect.body().first().copied().unwrap_or(0);
            assert_eq!(
                got, code,
                "reason code {got:#04x} of DISCONNECT, expected {code:#04x}"
            );
        }
        self.expect_end();
    }

    /// Subscribes to one filter and is given a code.
    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        self.subscribe_all(&[(filter, qos)])[0]
    }

    /// Subscribes to several filters in one packet and is given their codes.
    #[track_caller]
    pub fn subscribe_all(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        self.put(&subscribe(self.version, 1, filters));
        let suback = self.expect(PacketKind::Suback);
        let skip = if self.version == Version::V5 {
            2 + 1 + usize::from(suback.body()[2])
        } else {
            2
        };
        assert_eq!(
            suback.body()[..2],
            [0, 1],
            "packet identifier of {suback:?}"
        );
        suback.body()[skip..].to_vec()
    }

    /// Publishes at QoS 0.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, payload: &str) {
        let publish = Publish::new(self.version, topic, payload);
        self.put(&publish.bytes());
    }

    /// Publishes at QoS 1 and gives the code of the PUBACK.
    #[track_caller]
    pub fn publish_acked(&mut self, topic: &str, payload: &str, packet_id: u16) -> u8 {
        let publish = Publish::new(self.version, topic, payload).qos(1, packet_id);
        self.put(&publish.bytes());
        let puback = self.expect(PacketKind::Puback);
        assert_eq!(puback.body()[..2], packet_id.to_be_bytes());
        puback.body().get(2).copied().unwrap_or(0)
    }

    /// Publishes at QoS 2 through the whole handshake; the code of the PUBREC, which ends it when it is a failure.
    #[track_caller]
    pub fn publish_exactly_once(&mut self, topic: &str, payload: &str, packet_id: u16) -> u8 {
        let publish = Publish::new(self.version, topic, payload).qos(2, packet_id);
        self.put(&publish.bytes());
        let pubrec = self.expect(PacketKind::Pubrec);
        assert_eq!(pubrec.body()[..2], packet_id.to_be_bytes());
        let code = pubrec.body().get(2).copied().unwrap_or(0);
        if code < 0x80 {
            self.put(&ack(PacketKind::Pubrel, packet_id));
            let pubcomp = self.expect(PacketKind::Pubcomp);
            assert_eq!(pubcomp.body()[..2], packet_id.to_be_bytes());
        }
        code
    }

    /// The next packet is a PUBLISH with this topic and payload; it is acknowledged as its QoS asks.
    #[track_caller]
    pub fn expect_message(&mut self, topic: &str, payload: &str) -> Message {
        let frame = self.expect(PacketKind::Publish);
        let message = Message::read(self.version, &frame);
        assert_eq!(
            (
                message.topic.as_str(),
                String::from_utf8_lossy(&message.payload).as_ref()
            ),
            (topic, payload)
        );
        match message.qos {
            1 => self.put(&ack(PacketKind::Puback, message.packet_id)),
            2 => {
                self.put(&ack(PacketKind::Pubrec, message.packet_id));
                if let Err(ended) = self.recv_ack(PacketKind::Pubrel, message.packet_id) {
                    panic!("expected PUBREL, but {ended}");
                }
                self.put(&ack(PacketKind::Pubcomp, message.packet_id));
            }
            _ => {}
        }
        message
    }

    /// A round trip: everything sent before has been handled by whoever answers, and nothing else was owed to us.
    #[track_caller]
    pub fn ping(&mut self) {
        self.put(&PINGREQ);
        self.expect(PacketKind::Pingresp);
    }
}

/// A PUBLISH taken apart without the codec under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// QoS.
    pub qos: u8,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// DUP.
    pub dup: bool,
    /// RETAIN.
    pub retain: bool,
    /// Properties without their length.
    pub props: Vec<u8>,
}

impl Message {
    /// Takes a PUBLISH apart; panics on anything else.
    #[allow(clippy::expect_used)] // a test fails by panicking
    #[track_caller]
    pub fn read(version: Version, frame: &Frame) -> Self {
        assert!(frame.is(PacketKind::Publish), "{frame:?} is not a PUBLISH");
        let first = frame.bytes[0];
        let qos = first >> 1 & 3;
        let mut rest = frame.body();
        let topic_bytes = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let topic = std::str::from_utf8(&rest[2..2 + topic_bytes])
            .expect("topic is UTF-8")
            .to_owned();
        rest = &rest[2 + topic_bytes..];
        let mut packet_id = 0;
        if qos > 0 {
            packet_id = u16::from_be_bytes([rest[0], rest[1]]);
            rest = &rest[2..];
        }
        let mut props = Vec::new();
        if version == Version::V5 {
            let (mut length, mut shift, mut used) = (0usize, 0, 0);
            loop {
                let byte = rest[used];
                used += 1;
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            props = rest[used..used + length].to_vec();
            rest = &rest[used + length..];
        }
        Self {
            topic,
            payload: rest.to_vec(),
            qos,
            packet_id,
            dup: first & 8 != 0,
            retain: first & 1 != 0,
            props,
        }
    }
}
