//! What the policy of the session's generation lets it do, and the last topic it asked about.
//!
//! Devices publish to the same topic again and again. By the next message of a device, the kernel's path and the messages of
//! others have driven the policy's tables out of the nearest caches, so the walk through them is mostly waiting; the ruling
//! on the last topic lies beside the session instead. Owns nothing that decides: a kept ruling is the policy's own, and is
//! found by comparing the whole topic.
//!
//! # Invariants
//!
//! - A kept ruling is of these classes, of the generation they are of, and of the session's variables: classes are only
//!   ever replaced together with it, and every change of what a session is called is followed by new classes.

use sluice_policy::{Action, Classes, Ruling, Snapshot, Vars};

/// Topics longer than this are looked up each time.
const TOPIC_BYTES_MAX: usize = 91;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Rights {
    classes: Classes,
    /// `None` until the session has published.
    recent: Option<Box<Recent>>,
}

/// A topic and the ruling on it: two cache lines, the first of which does for topics up to 27 bytes.
#[repr(C, align(64))]
struct Recent {
    ruling: Ruling,
    topic_bytes: u8,
    topic: [u8; TOPIC_BYTES_MAX],
}

const _: () = assert!(size_of::<Recent>() == 128);

impl Rights {
    pub(super) fn new(classes: Classes) -> Self {
        Self {
            classes,
            recent: None,
        }
    }

    pub(super) fn classes(&self) -> &Classes {
        &self.classes
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.recent.as_ref().map_or(0, |_| size_of::<Recent>())
    }

    /// What the rules say to publishing to this topic.
    #[inline]
    pub(super) fn publish(&mut self, snapshot: &Snapshot, vars: &Vars<'_>, topic: &str) -> Ruling {
        match &self.recent {
            Some(recent) if recent.topic() == topic.as_bytes() => recent.ruling,
            Some(_) | None => self.look_up(snapshot, vars, topic),
        }
    }

    fn look_up(&mut self, snapshot: &Snapshot, vars: &Vars<'_>, topic: &str) -> Ruling {
        let ruling = snapshot.ruling(&self.classes, vars, Action::Publish, topic);
        if topic.len() <= TOPIC_BYTES_MAX {
            match &mut self.recent {
                Some(recent) => recent.set(ruling, topic),
                None => {
                    let mut recent = Box::new(Recent {
                        ruling,
                        topic_bytes: 0,
                        topic: [0; TOPIC_BYTES_MAX],
                    });
                    recent.set(ruling, topic);
                    self.recent = Some(recent);
                }
            }
        }
        ruling
    }
}

impl Recent {
    #[inline]
    fn topic(&self) -> &[u8] {
        self.topic
            .get(..usize::from(self.topic_bytes))
            .unwrap_or_default()
    }

    /// For topics that fit.
    fn set(&mut self, ruling: Ruling, topic: &str) {
        let room = self.topic.get_mut(..topic.len());
        if let (Some(room), Ok(topic_bytes)) = (room, u8::try_from(topic.len())) {
            room.copy_from_slice(topic.as_bytes());
            self.topic_bytes = topic_bytes;
            self.ruling = ruling;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;
    use sluice_policy::{Decision, Generation, Request, Who, compile};
    use sluice_wire::mqtt::{QoS, Version};

    use super::*;

    const POLICY: &str = r#"
default: deny
listeners: [{name: devices, address: "127.0.0.1:0", upstream: broker, anonymous: {group: devices}}]
upstreams: [{name: broker, endpoints: ["tcp://127.0.0.1:1"]}]
groups: [{name: devices}]
rules:
  - {name: connect, actions: [connect], decision: allow}
  - {name: own, actions: [publish], topics: ["d/${client_id}/#"], qos_max: 1, payload_bytes_max: 100, decision: allow}
  - {name: tried, priority: 10, mode: shadow, actions: [publish], topics: ["d/+/x"], decision: deny}
  - {name: plain, actions: [publish], topics: ["d/+/bare"], retain: refuse, priority: 5, decision: allow}
"#;

    /// A snapshot, and what its policy lets the client `a` do.
    fn rights() -> (Snapshot, Rights) {
        let snapshot = compile(POLICY, "test.yaml", Generation(1), None).expect("it compiles");
        let who = Who {
            listener: snapshot.listeners()[0].id,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            version: Version::V5,
            client_id: "a",
            username: None,
        };
        let admission = snapshot.admit(&who).expect("it may connect");
        (snapshot, Rights::new(admission.classes))
    }

    const VARS: Vars<'_> = Vars {
        client_id: "a",
        username: "",
    };

    /// Topics that are allowed, denied, shadowed, equal but for their end, and at both sides of what is kept.
    fn topic() -> impl Strategy<Value = String> {
        let fitting = TOPIC_BYTES_MAX - "d/a/".len();
        prop_oneof![
            prop::sample::select(vec![
                "d/a/x", "d/a/y", "d/a/", "d/a", "d/b/bare", "d/a/bare", "e"
            ])
            .prop_map(str::to_owned),
            (
                fitting - 1..=fitting + 1,
                prop::sample::select(vec!["a", "b"])
            )
                .prop_map(|(len, device)| format!("d/{device}/{}", "z".repeat(len))),
        ]
    }

    proptest! {
        #[test]
        fn a_ruling_at_hand_is_the_one_that_would_be_looked_up(
            asked in prop::collection::vec((topic(), 0_u8..3, any::<bool>(), 90_u32..110), 1..40)
        ) {
            let (snapshot, mut rights) = rights();
            for (topic, qos, retain, payload_bytes) in asked {
                let request = Request {
                    action: Action::Publish,
                    topic: &topic,
                    qos: QoS::from_bits(qos).unwrap_or(QoS::AtMostOnce),
                    retain,
                    payload_bytes,
                };
                let expected = snapshot.verdict(rights.classes(), &VARS, &request);
                let ruling = rights.publish(&snapshot, &VARS, &topic);
                prop_assert_eq!(ruling.verdict(&request), expected);
                let is_kept = rights.recent.as_ref().is_some_and(|recent| recent.topic() == topic.as_bytes());
                prop_assert_eq!(is_kept, topic.len() <= TOPIC_BYTES_MAX);
            }
        }
    }

    #[test]
    fn the_last_topic_costs_no_second_look() {
        let (snapshot, mut rights) = rights();
        let allowed = rights.publish(&snapshot, &VARS, "d/a/y");
        // Asked under another name the tables would say no: so they are not asked.
        let other = Vars {
            client_id: "b",
            username: "",
        };
        assert_eq!(rights.publish(&snapshot, &other, "d/a/y"), allowed);
        let request = Request {
            action: Action::Publish,
            topic: "d/a/y",
            qos: QoS::AtMostOnce,
            retain: false,
            payload_bytes: 0,
        };
        let asked = snapshot.verdict(rights.classes(), &other, &request);
        assert_ne!(asked.decision, Decision::Allow);
        assert_eq!(allowed.verdict(&request).decision, Decision::Allow);
    }
}
