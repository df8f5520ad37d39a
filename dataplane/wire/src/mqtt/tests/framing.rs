//! The framer: every split point, the bounds of the carry, and what is refused before it is buffered.

use proptest::prelude::*;

use super::random::stream;
use super::*;

const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00";

fn chunks_at<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2)
        .map(|pair| &bytes[pair[0]..pair[1]])
        .collect()
}

proptest! {
    /// Whole, byte by byte and in random chunks, a stream gives the same steps and ends without heap.
    #[test]
    fn every_split_gives_the_same_steps(
        stream in stream(),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = stream.bytes();
        let run = |chunks: Vec<&[u8]>| {
            let mut framer = framer(stream.side, Some(stream.version), u32::MAX);
            let seen = gather(&mut framer, chunks).unwrap();
            assert!(framer.is_at_boundary());
            assert_eq!((framer.heap_bytes(), framer.carry_bytes()), (0, 0));
            seen
        };
        let whole = run(vec![&bytes]);
        prop_assert_eq!(whole.len(), stream.packets.len());
        prop_assert_eq!(&run(bytes.chunks(1).collect()), &whole);
        prop_assert_eq!(&run(chunks_at(&bytes, &cuts)), &whole);
    }

    /// Any bytes in any chunks end in a violation or are used up, and the carry never exceeds what came or the limit.
    #[test]
    fn any_bytes_are_bounded(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        first in prop::sample::select(vec![0x10, 0x20, 0x30, 0x32, 0x3d, 0x82, 0xc0, 0xe0, 0xf0]),
        size in 1..40usize,
        version in prop::sample::select(vec![None, Some(Version::V31), Some(Version::V311), Some(Version::V5)]),
        side in prop::sample::select(vec![Side::Client, Side::Server]),
    ) {
        let bytes = [&[first], &bytes[..]].concat();
        let mut framer = framer(side, version, 64);
        let mut fed = 0;
        'stream: for chunk in bytes.chunks(size) {
            fed += chunk.len();
            let mut rest = chunk;
            loop {
                let consumed = match framer.next(rest) {
                    Err(_) => break 'stream,
                    Ok(Step::Incomplete) => break,
                    Ok(Step::Packet { consumed, .. } | Step::PublishHead { consumed, .. }) => consumed,
                    Ok(Step::Payload { consumed, .. }) => consumed,
                };
                rest = &rest[consumed..];
            }
            prop_assert!(framer.carry_bytes() <= fed.min(64));
        }
    }
}

#[test]
fn framer_is_small() {
    assert!(size_of::<Framer>() <= 48);
}

#[test]
fn a_whole_publish_is_neither_copied_nor_kept() {
    let mut framer = framer(Side::Client, Some(Version::V311), 1000);
    let bytes = packet(0x30, b"\x00\x01apayload");
    let step = framer.next(&bytes).unwrap();
    let Step::PublishHead {
        at, payload_bytes, ..
    } = step
    else {
        panic!("{step:?}");
    };
    assert_eq!((at, payload_bytes), (At::Input, 7));
    assert_eq!(framer.payload_left(), 7);
    assert!(!framer.is_at_boundary());
    let step = framer.next(&bytes[5..]).unwrap();
    assert_eq!(
        step,
        Step::Payload {
            consumed: 7,
            left: 0
        }
    );
    assert!(framer.is_at_boundary());
    assert_eq!(framer.heap_bytes(), 0);
}

#[test]
fn a_stream_that_is_always_cut_allocates_once() {
    let mut framer = framer(Side::Client, Some(Version::V311), 1000);
    let bytes = packet(0x30, b"\x00\x0bdevices/one").repeat(20);
    let mut chunks = bytes.chunks(7);
    gather(&mut framer, chunks.by_ref().take(3)).unwrap();
    let held = framer.heap_bytes();
    assert!(held > 0);
    for chunk in chunks.by_ref().take(11) {
        gather(&mut framer, [chunk]).unwrap();
        assert_eq!(framer.heap_bytes(), held);
    }
    gather(&mut framer, chunks).unwrap();
    assert_eq!(framer.heap_bytes(), 0, "it ends at a boundary");
}

#[test]
fn a_large_carry_gives_its_memory_back_at_the_next_call() {
    let mut framer = framer(Side::Client, Some(Version::V311), 100_000);
    let subscribe = packet(
        0x82,
        &[b"\x00\x01\x9c\x40", &[b'x'; 40_000][..], b"\x00"].concat(),
    );
    let (head, tail) = subscribe.split_at(30_000);
    assert_eq!(framer.next(head), Ok(Step::Incomplete));
    assert_eq!(framer.carry_bytes(), 30_000);
    let step = framer.next(tail).unwrap();
    assert!(matches!(step, Step::Packet { at: At::Carry, bytes, .. } if bytes == subscribe));
    assert_eq!(framer.carry_bytes(), 0, "spent");
    assert!(framer.is_at_boundary());
    // Two more bytes of the next packet need no more than themselves.
    assert_eq!(framer.next(b"\x82"), Ok(Step::Incomplete));
    assert!(framer.heap_bytes() < 100);
}

/// Scenario M14: a length of 256 MiB is refused when it is known, and allocates nothing even where it is allowed.
#[test]
fn m14_a_claimed_length_is_refused_or_not_believed() {
    let claim = b"\x30\xff\xff\xff\x7f";
    let mut strict = framer(Side::Client, Some(Version::V5), 1 << 20);
    for byte in &claim[..4] {
        assert_eq!(strict.next(&[*byte]), Ok(Step::Incomplete));
    }
    assert_eq!(strict.next(&claim[4..]), Err(Violation::PacketTooLarge));
    assert!(strict.heap_bytes() <= 64);

    let mut lax = framer(Side::Client, Some(Version::V5), u32::MAX);
    assert_eq!(lax.next(claim), Ok(Step::Incomplete));
    assert_eq!(lax.next(b"\xff\xff"), Ok(Step::Incomplete));
    assert!(
        lax.heap_bytes() <= 64,
        "a topic of 64 KiB is claimed, two bytes came"
    );
}

#[test]
fn the_packet_limit_counts_the_fixed_header() {
    let bytes = packet(0x30, b"\x00\x01apayload");
    let limit = bytes.len() as u32;
    let mut exact = framer(Side::Client, Some(Version::V311), limit);
    assert_eq!(gather(&mut exact, [&bytes[..]]).unwrap().len(), 1);
    exact.set_packet_bytes_max(limit - 1);
    let refused = gather(&mut exact, [&bytes[..]]);
    assert_eq!(refused, Err(Violation::PacketTooLarge));
}

#[test]
fn the_first_byte_decides_before_connect() {
    for first in 0..=u8::MAX {
        let mut framer = framer(Side::Client, None, 1000);
        let outcome = framer.next(std::slice::from_ref(&first));
        match first {
            // 3.1 does not use the flags, and the version is not known yet.
            0x10..=0x1f => assert_eq!(outcome, Ok(Step::Incomplete)),
            _ => assert_eq!(outcome, Err(Violation::FirstPacketNotConnect)),
        }
    }
}

#[test]
fn connect_then_packets_of_its_version() {
    let mut framer = framer(Side::Client, None, 1000);
    for chunk in CONNECT.chunks(5) {
        if let Step::Packet { bytes, .. } = framer.next(chunk).unwrap() {
            let version = decode_connect(bytes).unwrap().version;
            framer.set_version(version);
        }
    }
    let seen = gather(&mut framer, [&b"\x30\x05\x00\x01a\x00x"[..]]).unwrap();
    let publish = Seen::Publish(b"\x30\x05\x00\x01a\x00".to_vec(), b"x".to_vec());
    assert_eq!(seen, [publish]);
    assert_eq!(framer.next(CONNECT), Err(Violation::SecondConnect));
}

#[test]
fn a_violation_may_be_met_again() {
    let mut framer = framer(Side::Client, Some(Version::V5), 1000);
    assert_eq!(framer.next(b"\x82"), Ok(Step::Incomplete));
    let broken = b"\x80\x80\x80\x80\x01";
    for _ in 0..3 {
        assert_eq!(framer.next(broken), Err(Violation::RemainingLengthTooLong));
    }
}
