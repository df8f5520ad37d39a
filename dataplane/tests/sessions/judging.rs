//! A SUBSCRIBE is judged in slices: the session waits, nothing is refused for being long work, nothing half-judged goes on.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::session::{Cause, Deadline, SUBSCRIBE_FILTERS_MAX, Side};
use sluice_wire::mqtt::{Packet, QoS, Version, Violation};

use crate::harness::{
    Event, RULES, Rig, VERSIONS, connect, disconnect, document, publish, suback, subscribe,
    unsubscribe,
};

const PINGREQ: [u8; 2] = [0xc0, 0];

/// Every second filter is refused, every fourth lowered.
fn filters(count: usize) -> Vec<(String, QoS)> {
    let name = |number: usize| match number % 4 {
        0 => format!("open/{number}/+"),
        2 => format!("low1/{number}"),
        _ => format!("secret/{number}"),
    };
    let list = (0..count).map(|number| (name(number), QoS::ExactlyOnce));
    list.collect()
}

fn packet(version: Version, filters: &[(String, QoS)]) -> Vec<u8> {
    let borrowed: Vec<(&str, QoS)> = filters.iter().map(|(name, qos)| (&**name, *qos)).collect();
    subscribe(version, 7, &borrowed)
}

/// Goes on until no work is left.
fn finish(rig: &mut Rig) -> usize {
    let mut shares = 0;
    while rig.events.last() == Some(&Event::Later) {
        rig.goes_on();
        shares += 1;
    }
    shares
}

#[test]
fn however_small_the_shares_are_the_outcome_is_the_same() {
    for version in VERSIONS {
        for sent in [
            packet(version, &filters(40)),
            packet(version, &vec![("open/a".into(), QoS::AtMostOnce); 20]),
        ] {
            let outcome = |share| {
                let mut rig = Rig::open(version);
                rig.share = share;
                rig.client(&sent);
                finish(&mut rig);
                let mut written = vec![rig.take_down(), rig.take_up()];
                rig.broker(&suback(version, 7, &[1; 20]));
                written.push(rig.take_down());
                let counted = [
                    Counter::SubscribeForwarded,
                    Counter::SubscribeDenied,
                    Counter::QosLowered,
                ]
                .map(|counter| rig.count(counter));
                (written, counted, rig.ended())
            };
            for share in [1, 7, 50, 1_000] {
                assert_eq!(outcome(share), outcome(u32::MAX), "{share} nodes at a time");
            }
        }
    }
}

#[test]
fn a_share_is_kept_to_and_each_brings_the_packet_forward() {
    let mut rig = Rig::open(Version::V5);
    rig.share = 100;
    let list: Vec<(String, QoS)> = (0..1_000)
        .map(|number| (format!("open/{number}"), QoS::AtMostOnce))
        .collect();
    let sent = packet(Version::V5, &list);
    rig.client(&sent);
    let mut shares = 1;
    while rig.events.last() == Some(&Event::Later) {
        rig.expect(&[], &[], "nothing half-judged");
        rig.goes_on();
        shares += 1;
        assert!(rig.spent <= 130, "{}", rig.spent);
    }
    assert!((100..600).contains(&shares), "{shares}");
    rig.expect(&[], &sent, "as it was sent");
}

#[test]
fn what_comes_behind_it_waits_and_the_other_direction_does_not() {
    let mut rig = Rig::open(Version::V311);
    rig.share = 10;
    let sent = packet(Version::V311, &filters(8));
    let behind = [&sent[..], &PINGREQ].concat();
    rig.client(&behind);
    rig.client(&PINGREQ);
    rig.expect(&[], &[], "all of it waits");
    rig.broker_sends(&Packet::Publish(publish(
        "open/x",
        QoS::AtMostOnce,
        0,
        b"x",
    )));
    assert!(!rig.take_down().is_empty(), "deliveries go on");
    finish(&mut rig);
    let up = rig.take_up();
    assert!(up.ends_with(&[PINGREQ, PINGREQ].concat()) && up.len() > 4);
    assert_eq!(rig.ended(), None);
}

#[test]
fn a_client_that_leaves_meanwhile_is_served_to_the_end() {
    for behind in [&[][..], &disconnect(Version::V5, 0)] {
        let mut rig = Rig::open(Version::V5);
        rig.share = 10;
        let sent = packet(
            Version::V5,
            &[
                ("open/a".into(), QoS::AtMostOnce),
                ("open/b".into(), QoS::AtMostOnce),
            ],
        );
        rig.client(&[&sent[..], behind].concat());
        rig.closed(Side::Downstream);
        assert_eq!(rig.events.last(), Some(&Event::Later));
        finish(&mut rig);
        rig.expect(&[], &[&sent[..], behind].concat(), "then it ends");
        let cause = if behind.is_empty() {
            Cause::ClientGone
        } else {
            Cause::ClientDisconnect
        };
        assert_eq!(rig.ended(), Some(cause));
    }
}

#[test]
fn another_generation_judges_it_from_the_start() {
    let mut rig = Rig::open(Version::V5);
    rig.share = 30;
    let list: Vec<(String, QoS)> = ["open/a", "low1/b", "open/c", "low1/d", "open/e", "low1/f"]
        .map(|name| (name.to_owned(), QoS::AtLeastOnce))
        .into();
    rig.client(&packet(Version::V5, &list));
    rig.goes_on();
    assert_eq!(
        rig.events.last(),
        Some(&Event::Later),
        "half of it is judged"
    );
    rig.applies(&document("", &RULES.replace("\"open/#\", ", "")));
    rig.sweeps();
    rig.expect(&[], &[], "nothing half-judged");
    finish(&mut rig);
    let rest: Vec<(String, QoS)> = list
        .into_iter()
        .filter(|(name, _)| name.starts_with("low1"))
        .collect();
    rig.expect(&[], &packet(Version::V5, &rest), "as the new rules say");
    rig.broker(&suback(Version::V5, 7, &[1, 1, 1]));
    let codes = [0x87, 1, 0x87, 1, 0x87, 1];
    rig.expect(&suback(Version::V5, 7, &codes), &[], "all answers");
    assert_eq!(
        (
            rig.count(Counter::SubscribeForwarded),
            rig.count(Counter::SubscribeDenied)
        ),
        (3, 3),
        "counted once"
    );
}

#[test]
fn only_a_packet_with_too_many_filters_is_refused() {
    for (version, code) in [
        (Version::V31, 2),
        (Version::V311, 0x80),
        (Version::V5, 0x97),
    ] {
        let most: Vec<(String, QoS)> = (0..SUBSCRIBE_FILTERS_MAX)
            .map(|_| ("open/#".to_owned(), QoS::ExactlyOnce))
            .collect();
        let mut rig = Rig::open(version);
        let sent = packet(version, &most);
        let mut waits = 0;
        rig.client(&sent);
        while rig.take_up() != sent {
            rig.passes(Duration::from_millis(100));
            waits += 1;
            assert!(waits < 100 && rig.ended().is_none(), "{waits}");
        }
        rig.expect(&[], &[], "the most there may be");
        let mut more = most;
        more.push(("open/#".to_owned(), QoS::ExactlyOnce));
        rig.clear();
        rig.client(&packet(version, &more));
        for _ in 0..100 {
            rig.passes(Duration::from_millis(100));
        }
        rig.expect(
            &suback(version, 7, &vec![code; more.len()]),
            &[],
            "one more",
        );
        assert_eq!(rig.ended(), None);
    }
}

/// The account of a session: 250,000 nodes a second, and as many at once after a rest.
#[test]
fn a_session_that_causes_much_work_is_paused_and_not_refused() {
    let mut rig = Rig::open(Version::V5);
    let small = subscribe(Version::V5, 7, &[("open/a", QoS::AtMostOnce)]);
    let mut sent = 0_usize;
    let mut nodes = 0;
    while rig.session.poll_timeout().map(|(_, why)| why) != Some(Deadline::Judging) {
        rig.client(&small);
        nodes += rig.spent;
        sent += 1;
        assert!(sent < 100_000, "streams of small ones count");
    }
    assert!((250_000..251_000).contains(&nodes), "{nodes}");
    assert!(!rig.events.contains(&Event::Later), "it asks for no turn");
    let forwarded = rig.take_up().len() / small.len();
    assert_eq!(forwarded, sent - 1, "the last one waits");
    // What comes is held, bounded, and reading pauses.
    for _ in 0..1_000 {
        rig.client(&small);
    }
    assert!(rig.events.contains(&Event::Pause(Side::Downstream)));
    rig.events.clear();
    let (due, _) = rig.session.poll_timeout().expect("a deadline");
    assert!(due.since(rig.now) <= Duration::from_millis(5));
    // A tenth of a second pays for a tenth of the nodes.
    rig.spent = 0;
    let per_packet = nodes as usize / sent;
    rig.passes(Duration::from_millis(10));
    let forwarded = rig.take_up().len() / small.len();
    let expected = 2_500 / per_packet;
    assert!(
        forwarded.abs_diff(expected) <= 2,
        "{forwarded} of {expected}"
    );
    let mut all = forwarded;
    for _ in 0..40 {
        rig.passes(Duration::from_millis(10));
        all += rig.take_up().len() / small.len();
    }
    assert_eq!(all, 1_001, "all of them, in time");
    assert_eq!(rig.events, [Event::Resume(Side::Downstream)]);
}

#[test]
fn what_is_kept_counts_and_is_given_back() {
    let mut rig = Rig::open(Version::V5);
    let idle = rig.session.heap_bytes();
    rig.share = 64;
    let sent = packet(Version::V5, &filters(2_000));
    rig.client(&sent);
    assert!(rig.session.heap_bytes() >= idle + sent.len());
    while rig.events.last() == Some(&Event::Later) {
        rig.goes_on();
        let most = idle + 4 * sent.len() + 8 * 1024;
        assert!(
            rig.session.heap_bytes() <= most,
            "{}",
            rig.session.heap_bytes()
        );
    }
    rig.broker(&suback(Version::V5, 7, &vec![1; 1_000]));
    assert_eq!(rig.session.heap_bytes(), idle);
}

#[test]
fn a_broken_filter_behind_good_ones_ends_the_session_and_nothing_goes_on() {
    for share in [10, u32::MAX] {
        let mut rig = Rig::open_with(
            Version::V5,
            &document("", RULES),
            &connect(Version::V5, "d"),
        );
        rig.share = share;
        let mut sent = packet(
            Version::V5,
            &[
                ("open/a".into(), QoS::AtMostOnce),
                ("open/+".into(), QoS::AtMostOnce),
            ],
        );
        // The last options byte: QoS 3.
        *sent.last_mut().expect("a byte") = 3;
        rig.client(&sent);
        finish(&mut rig);
        assert_eq!(
            rig.ended(),
            Some(Cause::Violation(Violation::SubscribeQos3))
        );
        assert!(rig.take_up().is_empty());
        assert_eq!(rig.count(Counter::SubscribeForwarded), 0);
    }
}

/// As long as a packet may be, and no filter of it too many: a client leaves what it was let into.
#[test]
fn an_unsubscribe_is_read_in_shares_and_goes_on_as_it_came() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let idle = rig.session.heap_bytes();
        rig.share = 100;
        let count = SUBSCRIBE_FILTERS_MAX + 1;
        let sent = unsubscribe(version, 7, std::iter::repeat_n("a/b", count));
        rig.client(&[&sent[..], &PINGREQ].concat());
        assert!(rig.session.heap_bytes() >= idle + sent.len());
        let mut shares = 1;
        while rig.events.last() == Some(&Event::Later) {
            assert!(
                rig.spent <= 100 + sent.len() as u32 / 2048 + 20,
                "{}",
                rig.spent
            );
            rig.expect(&[], &[], "nothing half-read");
            rig.goes_on();
            shares += 1;
        }
        assert!(shares > count / 100, "{shares}");
        rig.expect(
            &[],
            &[&sent[..], &PINGREQ].concat(),
            "as it was sent, in order",
        );
        assert_eq!(rig.session.heap_bytes(), idle);
        assert_eq!(rig.ended(), None);
    }
}

/// Many of them use up the same allowance.
#[test]
fn unsubscribes_that_cause_much_work_pause_the_session() {
    let mut rig = Rig::open(Version::V5);
    let sent = unsubscribe(Version::V5, 7, std::iter::repeat_n("a", 200_000));
    rig.client(&sent);
    rig.client(&sent);
    assert_eq!(rig.take_up().len(), sent.len(), "the second one waits");
    assert_eq!(
        rig.session.poll_timeout().map(|(_, why)| why),
        Some(Deadline::Judging)
    );
    for _ in 0..20 {
        rig.passes(Duration::from_millis(100));
    }
    rig.expect(&[], &sent, "and is read");
    assert_eq!(rig.ended(), None);
}

#[test]
fn a_broken_filter_of_an_unsubscribe_ends_the_session_and_nothing_goes_on() {
    for share in [10, u32::MAX] {
        let mut rig = Rig::open(Version::V5);
        rig.share = share;
        let mut sent = unsubscribe(Version::V5, 7, ["open/a"; 50].into_iter().chain(["open/+"]));
        // The last filter: a wildcard that is not alone.
        let last = sent.len() - 2;
        sent[last] = b'+';
        rig.client(&sent);
        finish(&mut rig);
        assert_eq!(
            rig.ended(),
            Some(Cause::Violation(Violation::FilterSingleLevel))
        );
        assert!(rig.take_up().is_empty());
    }
}
