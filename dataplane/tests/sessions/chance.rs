//! The second chance of a CONNECT: when another broker is asked, what each of them hears, and what the client does.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::session::{Cause, Deadline, Dialled, Side, Unanswered};
use sluice_wire::mqtt::{
    Auth, Connect, Packet, Property, PropertyId, QoS, Version, Violation, decode_connect,
};

use crate::harness::{
    Event, RULES, Rig, VERSIONS, bytes, connack, connect, document, properties, publish, will,
};

const TIMEOUT: Duration = Duration::from_secs(10);
const DISCONNECT: [u8; 2] = [0xe0, 0];
/// What a port that expects TLS says to CONNECT.
const TLS_ALERT: [u8; 7] = [0x15, 3, 1, 0, 2, 2, 70];

fn limits() -> String {
    document("    limits: {connect_timeout: 10s}", RULES)
}

/// A session whose CONNECT went to a broker while there is another one; and the CONNECT as it went there.
fn asked(version: Version, document: &str, connect: &Connect<'_>) -> (Rig, Vec<u8>) {
    let mut rig = Rig::new(document);
    rig.version = version;
    rig.client(&bytes(version, &Packet::Connect(connect.clone())));
    rig.dialled_as(Dialled::Connected {
        another_after: Some(TIMEOUT),
    });
    let sent = rig.take_up();
    assert_eq!(sent.first(), Some(&0x10));
    rig.clear();
    (rig, sent)
}

fn unavailable(version: Version) -> u8 {
    if version == Version::V5 { 0x88 } else { 3 }
}

/// What a broker does in the place of an answer.
fn fails(rig: &mut Rig, how: Unanswered) {
    match how {
        Unanswered::Silent => rig.passes(TIMEOUT / 2),
        Unanswered::Closed => rig.closed(Side::Upstream),
        Unanswered::Unavailable(code) => {
            let refusal = connack(rig.version, code, &[]);
            rig.broker(&refusal);
        }
        Unanswered::Broken(_) => rig.broker(&TLS_ALERT),
    }
}

fn faults(version: Version) -> [Unanswered; 4] {
    let code = unavailable(version);
    [
        Unanswered::Silent,
        Unanswered::Closed,
        Unanswered::Unavailable(code),
        Unanswered::Broken(Violation::KindNotFromServer),
    ]
}

/// What the client hears when that was the last word.
fn told(version: Version, why: Unanswered) -> (Vec<u8>, Cause) {
    let is_v5 = version == Version::V5;
    let refusal = |code: u8| {
        if is_v5 {
            vec![0x20, 3, 0, code, 0]
        } else {
            vec![0x20, 2, 0, code]
        }
    };
    match why {
        Unanswered::Silent => (refusal(unavailable(version)), Cause::UpstreamUnavailable),
        Unanswered::Closed if is_v5 => (refusal(0x80), Cause::UpstreamClosed),
        Unanswered::Closed => (vec![], Cause::UpstreamClosed),
        Unanswered::Unavailable(code) => (refusal(code), Cause::UpstreamRefused),
        Unanswered::Broken(violation) => (
            refusal(unavailable(version)),
            Cause::UpstreamViolation(violation),
        ),
    }
}

#[test]
fn a_broker_without_an_answer_is_left_once_for_another() {
    for version in VERSIONS {
        for first in faults(version) {
            let (mut rig, sent) = asked(version, &limits(), &connect(version, "dev"));
            fails(&mut rig, first);
            let left = Event::Leave {
                why: first,
                says_goodbye: false,
                again: true,
            };
            assert_eq!(rig.events, [left], "{version:?} {first:?}");
            rig.expect(&[], &[], "neither side hears a thing");
            rig.dialled_as(Dialled::Connected {
                another_after: None,
            });
            rig.expect(&[], &sent, "the same CONNECT");
            let yes = connack(version, 0, &[]);
            rig.broker(&yes);
            assert_eq!(rig.take_down().first(), Some(&0x20), "CONNACK");
            assert!(rig.session.is_open());
            assert_eq!(rig.session.kept_connect_bytes(), 0);
            assert_eq!((rig.answered, rig.count(Counter::SecondChances)), (1, 1));
        }
    }
}

#[test]
fn a_broker_that_is_unavailable_in_the_form_of_another_version_is_left_too() {
    for (version, refusal, code) in [
        (Version::V5, [0x20, 2, 0, 3].as_slice(), 0x88),
        (Version::V311, &[0x20, 3, 0, 0x88, 0], 3),
        (Version::V31, &[0x20, 3, 0, 0x89, 0], 3),
    ] {
        let (mut rig, _) = asked(version, &limits(), &connect(version, "dev"));
        rig.broker(refusal);
        let left = Event::Leave {
            why: Unanswered::Unavailable(code),
            says_goodbye: false,
            again: true,
        };
        assert_eq!(rig.events, [left], "{version:?} {refusal:02x?}");
    }
}

#[test]
fn there_is_no_third_broker_and_the_last_word_is_told() {
    for version in VERSIONS {
        for first in faults(version) {
            for second in faults(version) {
                let (mut rig, _) = asked(version, &limits(), &connect(version, "dev"));
                fails(&mut rig, first);
                rig.dialled_as(Dialled::Connected {
                    another_after: Some(TIMEOUT),
                });
                rig.clear();
                if second == Unanswered::Silent {
                    rig.passes(TIMEOUT / 2); // what the first one left of the time
                }
                fails(&mut rig, second);
                let (words, cause) = told(version, second);
                rig.expect(&words, &[], &format!("{version:?} {first:?} {second:?}"));
                let left = Event::Leave {
                    why: second,
                    says_goodbye: false,
                    again: false,
                };
                assert_eq!(rig.events, [left, Event::Close(cause)]);
                assert_eq!(rig.answered, 0);
            }
            let (mut rig, _) = asked(version, &limits(), &connect(version, "dev"));
            fails(&mut rig, first);
            rig.clear();
            rig.dialled_as(Dialled::Failed);
            let (words, cause) = told(version, first);
            rig.expect(&words, &[], "the other one cannot be reached");
            assert_eq!(rig.ended(), Some(cause));
        }
    }
}

/// An endpoint of another protocol: a web server, a port that expects TLS, a broker that knows no refusal.
#[test]
fn a_broker_that_sends_something_else_is_left_for_another() {
    let web = [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[b' '; 100]].concat();
    let message = [0x30, 5, 0, 1, b'a', 0, 0];
    for version in VERSIONS {
        for words in [&web[..], &TLS_ALERT, &message] {
            for has_will in [false, true] {
                let request = Connect {
                    will: has_will.then(|| will("open/will", QoS::AtMostOnce, false, b"gone")),
                    ..connect(version, "dev")
                };
                let (mut rig, sent) = asked(version, &limits(), &request);
                rig.broker(words);
                let [
                    Event::Leave {
                        why,
                        says_goodbye,
                        again: true,
                    },
                ] = rig.events[..]
                else {
                    panic!("{version:?} {words:02x?}: {:?}", rig.events);
                };
                assert!(matches!(why, Unanswered::Broken(_)));
                assert_eq!((says_goodbye, rig.faults.is_empty()), (has_will, false));
                let goodbye: &[u8] = if has_will { &DISCONNECT } else { &[] };
                rig.expect(&[], goodbye, "the client hears nothing");
                rig.dialled_as(Dialled::Connected {
                    another_after: Some(TIMEOUT),
                });
                rig.expect(&[], &sent, "the same CONNECT");
                rig.broker(words);
                rig.expect(
                    &told(version, Unanswered::Silent).0,
                    goodbye,
                    "both are the same",
                );
                assert!(matches!(rig.ended(), Some(Cause::UpstreamViolation(_))));
            }
        }
    }
}

/// Half a CONNACK has a deadline of its own, which may be due at the same time.
#[test]
fn a_broker_that_stalls_in_its_connack_is_left_for_another_too() {
    let limits = document(
        "    limits: {connect_timeout: 10s, packet_timeout: 5s}",
        RULES,
    );
    for version in VERSIONS {
        let (mut rig, sent) = asked(version, &limits, &connect(version, "dev"));
        rig.broker(&connack(version, 0, &[])[..1]);
        rig.passes(TIMEOUT / 2);
        assert_eq!(rig.ended(), None, "{:?}", rig.events);
        rig.dialled_as(Dialled::Connected {
            another_after: None,
        });
        rig.expect(&[], &sent, "the same CONNECT");
    }
}

#[test]
fn both_brokers_together_have_the_time_of_one() {
    let (mut rig, _) = asked(Version::V5, &limits(), &connect(Version::V5, "dev"));
    let begun = rig.now;
    let deadline = |rig: &Rig| {
        let (at, why) = rig.session.poll_timeout().unwrap();
        assert_eq!(why, Deadline::Connack);
        at.since(begun)
    };
    assert_eq!(deadline(&rig), TIMEOUT / 2);
    fails(&mut rig, Unanswered::Silent);
    assert_eq!(deadline(&rig), TIMEOUT, "while the other one is dialled");
    rig.dialled_as(Dialled::Connected {
        another_after: Some(TIMEOUT),
    });
    assert_eq!(deadline(&rig), TIMEOUT);

    let (quick, slow) = (Duration::from_secs(2), Duration::from_secs(9));
    for (wanted, first) in [(quick, quick), (slow, TIMEOUT / 2)] {
        let mut rig = Rig::new(&limits());
        let hello = connect(Version::V5, "dev");
        rig.client(&bytes(Version::V5, &Packet::Connect(hello)));
        rig.dialled_as(Dialled::Connected {
            another_after: Some(wanted),
        });
        let (at, _) = rig.session.poll_timeout().unwrap();
        assert_eq!(at.since(rig.now), first, "the first one's time");
    }

    let (mut rig, _) = asked(Version::V5, &limits(), &connect(Version::V5, "dev"));
    fails(&mut rig, Unanswered::Closed);
    rig.clear();
    rig.passes(TIMEOUT);
    assert_eq!(rig.ended(), Some(Cause::UpstreamClosed), "dialled too long");
}

#[test]
fn a_silent_broker_that_has_the_will_is_told_goodbye() {
    for version in VERSIONS {
        for has_another in [true, false] {
            let with_will = Connect {
                will: Some(will("open/will", QoS::AtLeastOnce, false, b"gone")),
                ..connect(version, "dev")
            };
            let mut rig = Rig::new(&limits());
            rig.version = version;
            rig.client(&bytes(version, &Packet::Connect(with_will)));
            rig.dialled_as(Dialled::Connected {
                another_after: has_another.then_some(TIMEOUT),
            });
            let sent = rig.take_up();
            rig.clear();
            rig.passes(if has_another { TIMEOUT / 2 } else { TIMEOUT });
            assert_eq!(rig.take_up(), DISCONNECT, "{version:?} {has_another}");
            let left = Event::Leave {
                why: Unanswered::Silent,
                says_goodbye: true,
                again: has_another,
            };
            assert_eq!(rig.events.first(), Some(&left));
            if has_another {
                rig.dialled_as(Dialled::Connected {
                    another_after: None,
                });
                assert_eq!(rig.take_up(), sent, "will and all");
            }
        }
    }
}

#[test]
fn a_will_that_a_later_generation_forbids_is_not_brought_to_another_broker() {
    let with_will = Connect {
        will: Some(will("open/will", QoS::AtMostOnce, false, b"gone")),
        ..connect(Version::V5, "dev")
    };
    let (mut rig, _) = asked(Version::V5, &limits(), &with_will);
    rig.applies(&limits().replace("\"open/#\", ", ""));
    fails(&mut rig, Unanswered::Closed);
    assert_eq!(rig.ended(), Some(Cause::UpstreamClosed));

    // A broker that may have read CONNECT is told goodbye, once.
    let why = Unanswered::Broken(Violation::KindNotFromServer);
    let (mut rig, _) = asked(Version::V5, &limits(), &with_will);
    rig.applies(&limits().replace("\"open/#\", ", ""));
    fails(&mut rig, why);
    assert_eq!(rig.take_up(), DISCONNECT);
    assert_eq!(rig.ended(), Some(told(Version::V5, why).1));
}

#[test]
fn a_will_goes_to_another_broker_as_the_generation_of_that_moment_wants_it() {
    let with_will = Connect {
        will: Some(will("open/will", QoS::ExactlyOnce, true, b"gone")),
        ..connect(Version::V5, "dev")
    };
    let open = "topics: [\"open/#\", \"self/${client_id}/#\"]";
    let lower = format!("{open}, qos_max: 1, retain: strip");
    let (mut rig, _) = asked(Version::V5, &limits(), &with_will);
    rig.applies(&limits().replace(open, &lower));
    rig.sweeps();
    fails(&mut rig, Unanswered::Closed);
    rig.dialled_as(Dialled::Connected {
        another_after: None,
    });
    let sent = rig.take_up();
    let sent = decode_connect(&sent).unwrap().will.unwrap();
    assert_eq!((sent.qos, sent.retain), (QoS::AtLeastOnce, false));
}

#[test]
fn clear_answers_are_passed_on_and_nothing_is_kept() {
    for version in VERSIONS {
        let is_v5 = version == Version::V5;
        let codes: &[u8] = if is_v5 {
            &[0x80, 0x85, 0x86, 0x87, 0x8a, 0x97, 0x9d]
        } else {
            &[1, 2, 4, 5]
        };
        for code in codes {
            let (mut rig, _) = asked(version, &limits(), &connect(version, "dev"));
            let refusal = connack(version, *code, &[]);
            rig.broker(&refusal);
            rig.expect(&refusal, &[], &format!("{version:?} {code:#x}"));
            assert_eq!(rig.ended(), Some(Cause::UpstreamRefused));
            assert_eq!(rig.answered, 1);
        }
    }
}

#[test]
fn a_broker_that_has_begun_to_authenticate_is_not_left() {
    let document = document(
        "    upstream_auth: pass\n    limits: {connect_timeout: 10s}",
        RULES,
    );
    let method = properties(&[Property::Text(PropertyId::AuthenticationMethod, "SCRAM")]);
    let request = Connect {
        properties: method.view(),
        ..connect(Version::V5, "dev")
    };
    let auth = bytes(
        Version::V5,
        &Packet::Auth(Auth {
            code: 0x18,
            properties: method.view(),
        }),
    );
    let (mut rig, _) = asked(Version::V5, &document, &request);
    fails(&mut rig, Unanswered::Closed);
    assert!(rig.ended().is_none(), "nothing was said yet");

    // Its AUTH is an answer: from here on it may be the client that keeps the other side waiting.
    for then in [Unanswered::Silent, Unanswered::Closed] {
        let (mut rig, _) = asked(Version::V5, &document, &request);
        rig.broker(&auth);
        rig.expect(&auth, &[], "AUTH");
        assert_eq!(rig.session.kept_connect_bytes(), 0);
        assert_eq!(rig.answered, 1, "it is not blamed for what follows");
        fails(&mut rig, then);
        assert_eq!(rig.ended(), Some(told(Version::V5, then).1));
    }
}

#[test]
fn what_was_sent_ahead_reaches_the_second_broker_and_half_an_answer_of_the_first_is_forgotten() {
    for version in VERSIONS {
        let (mut rig, sent) = asked(version, &limits(), &connect(version, "dev"));
        let message = publish("open/a", QoS::AtMostOnce, 0, b"ahead");
        rig.client_sends(&Packet::Publish(message.clone()));
        let yes = connack(version, 0, &[]);
        rig.broker(&yes[..2]);
        fails(&mut rig, Unanswered::Closed);
        rig.dialled_as(Dialled::Connected {
            another_after: None,
        });
        rig.expect(&[], &sent, "CONNECT alone");
        rig.broker(&yes);
        let ahead = bytes(version, &Packet::Publish(message));
        assert_eq!(rig.take_up(), ahead, "then what was sent ahead");
    }
}

#[test]
fn without_another_broker_nothing_is_kept() {
    let mut rig = Rig::dialled(Version::V5, &limits(), &connect(Version::V5, "dev"));
    assert_eq!(rig.session.kept_connect_bytes(), 0);
    rig.clear();
    rig.passes(TIMEOUT / 2);
    assert_eq!(rig.ended(), None, "it has all of the time");
    rig.passes(TIMEOUT / 2);
    assert_eq!(rig.ended(), Some(Cause::UpstreamUnavailable));
}
