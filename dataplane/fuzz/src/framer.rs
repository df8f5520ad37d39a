//! The framer over any stream: however it is cut, the same steps and the same end, in bounded memory.

use sluice_wire::mqtt::{At, Framer, Side, Step, Violation, decode, decode_publish_head};

use crate::version;

/// Small, so that the limit is met.
const PACKET_BYTES_MAX: u32 = 300;

/// Input: a byte for version and side (bit 7: server, bit 6: the version is not known yet), a byte for the size of the
/// chunks, then the stream.
pub fn framer(input: &[u8]) {
    let [choice, size, stream @ ..] = input else {
        return;
    };
    let whole = run(*choice, stream, stream.len().max(1));
    let chunked = run(*choice, stream, usize::from(*size).max(1));
    let bytewise = run(*choice, stream, 1);
    assert_eq!(whole, chunked);
    assert_eq!(whole, bytewise);
}

/// Packets and payload bytes in order, and the violation that ended the stream.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    packets: Vec<Vec<u8>>,
    payload: Vec<u8>,
    end: Option<Violation>,
}

fn run(choice: u8, stream: &[u8], size: usize) -> Outcome {
    let side = if choice & 0x80 == 0 {
        Side::Client
    } else {
        Side::Server
    };
    let version = version(choice & 0x3f);
    let mut framer = Framer::new(side, PACKET_BYTES_MAX);
    if choice & 0x40 == 0 {
        framer.set_version(version);
    }
    let mut outcome = Outcome::default();
    for chunk in stream.chunks(size) {
        let mut rest = chunk;
        loop {
            let consumed = match framer.next(rest) {
                Err(violation) => {
                    outcome.end = Some(violation);
                    return outcome;
                }
                Ok(Step::Incomplete) => break,
                Ok(Step::Packet {
                    bytes,
                    at,
                    consumed,
                    ..
                }) => {
                    check_place(rest, bytes, at, consumed);
                    let _ = decode(version, side, bytes);
                    outcome.packets.push(bytes.to_vec());
                    consumed
                }
                Ok(Step::PublishHead {
                    bytes,
                    at,
                    payload_bytes,
                    consumed,
                    ..
                }) => {
                    check_place(rest, bytes, at, consumed);
                    if let Ok(head) = decode_publish_head(version, side, bytes) {
                        assert_eq!(head.payload_bytes, payload_bytes);
                    }
                    outcome.packets.push(bytes.to_vec());
                    consumed
                }
                Ok(Step::Payload { consumed, .. }) => {
                    assert!(consumed > 0);
                    outcome.payload.extend_from_slice(&rest[..consumed]);
                    consumed
                }
            };
            rest = &rest[consumed..];
            // One CONNECT is enough to go on as a session would.
            framer.set_version(version);
        }
        assert!(framer.carry_bytes() <= PACKET_BYTES_MAX as usize);
        assert!(!framer.is_at_boundary() || framer.heap_bytes() == 0);
    }
    outcome
}

fn check_place(input: &[u8], bytes: &[u8], at: At, consumed: usize) {
    match at {
        At::Input => assert_eq!(&input[..consumed], bytes),
        At::Carry => assert!(bytes.ends_with(&input[..consumed])),
    }
}
