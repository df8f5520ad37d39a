//! HTTP/2 by hand, for callers that no library would be: frames as they are, kept promises only where a test wants them.
#![allow(dead_code, clippy::expect_used)] // each test file uses its part; a test that cannot go on ends here

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Longest wait for the server; reached only by a failing test. Shorter than what it grants to strangers.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that answers nothing by itself.
pub(crate) struct Frames {
    stream: TcpStream,
}

/// Kind, flags, stream and payload.
pub(crate) type Frame = (u8, u8, u32, Vec<u8>);

impl Frames {
    /// Connects and sends the preface, with settings as pairs of id and value.
    pub(crate) fn open(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).expect("a queue");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a read timeout");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("a write timeout");
        let mut frames = Self { stream };
        assert!(frames.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        assert!(frames.send(SETTINGS, 0, 0, &payload));
        frames
    }

    /// Sends bytes; false: the server has closed the connection.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a frame; false: as above.
    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.write(&frame(kind, flags, stream, payload))
    }

    /// Begins a call.
    pub(crate) fn call(&mut self, stream: u32, flags: u8, path: &str, more: &[(&str, &str)]) {
        let block = headers(path, more);
        self.send(HEADERS, flags | END_HEADERS, stream, &block);
    }

    /// The next frame; `None`: the server has closed the connection.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = self.stream.read_exact(&mut head);
        if let Err(error) = read {
            assert!(!is_late(&error), "nothing came");
            return None;
        }
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream & 0x7fff_ffff, payload))
    }

    /// Reads until a frame of that kind for that stream; `None`: as above.
    pub(crate) fn until(&mut self, kind: u8, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.0 == kind && frame.2 == stream {
                return Some(frame);
            }
        }
    }

    /// Reads until the server closes the connection.
    pub(crate) fn until_closed(&mut self) {
        while self.next().is_some() {}
    }
}

fn is_late(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The headers of a gRPC call as one block.
pub(crate) fn headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let first = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in first.iter().chain(more) {
        field(&mut block, name, value);
    }
    block
}

/// A literal that no table keeps.
pub(crate) fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        let mut len = text.len();
        if len < 127 {
            block.push(u8::try_from(len).expect("small"));
        } else {
            block.push(127);
            len -= 127;
            while len >= 128 {
                block.push(u8::try_from(len % 128).expect("small") | 128);
                len /= 128;
            }
            block.push(u8::try_from(len).expect("small"));
        }
        block.extend_from_slice(text.as_bytes());
    }
}

/// One gRPC message around these bytes.
pub(crate) fn message(is_compressed: bool, bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("a message");
    let mut message = vec![u8::from(is_compressed)];
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(bytes);
    message
}
