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
//!   ever replaced by [`Rights::replace`], which forgets it, and whatever changes what a session is called is followed by
//!   that or by the session's end.

use sluice_policy::{Action, Classes, Ruling, Snapshot, Vars};

/// Topics longer than this are looked up each time.
const TOPIC_BYTES_MAX: usize = 91;
/// In place of a length: there is no topic.
const NO_TOPIC: u8 = u8::MAX;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Rights {
    classes: Classes,
    /// `None` until the session has published.
    recent: Option<Box<Recent>>,
}

/// A topic and the ruling on it: 128 bytes, of which a topic of usual length takes part of the first 64.
#[repr(C)]
struct Recent {
    ruling: Ruling,
    topic_bytes: u8,
    topic: [u8; TOPIC_BYTES_MAX],
}

const _: () = assert!(size_of::<Recent>() == 128);

impl Rights {
    pub(super) fn classes(&self) -> &Classes {
        &self.classes
    }

    /// Another generation, or another name: what was known is known no more. The memory stays for the next message.
    pub(super) fn replace(&mut self, classes: Classes) {
        self.classes = classes;
        if let Some(recent) = &mut self.recent {
            recent.topic_bytes = NO_TOPIC;
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.recent.as_ref().map_or(0, |_| size_of::<Recent>())
    }

    /// What the rules say to publishing to this topic.
    #[inline]
    pub(super) fn on_publish(
        &mut self,
        snapshot: &Snapshot,
        vars: &Vars<'_>,
        topic: &str,
    ) -> Ruling {
        match &self.recent {
            Some(recent) if recent.topic() == Some(topic.as_bytes()) => recent.ruling,
            Some(_) | None => self.look_up(snapshot, vars, topic),
        }
    }

    fn look_up(&mut self, snapshot: &Snapshot, vars: &Vars<'_>, topic: &str) -> Ruling {
        let ruling = snapshot.ruling(&self.classes, vars, Action::Publish, topic);
        if topic.len() <= TOPIC_BYTES_MAX {
            let recent = self.recent.get_or_insert_with(|| {
                Box::new(Recent {
                    ruling,
                    topic_bytes: NO_TOPIC,
                    topic: [0; TOPIC_BYTES_MAX],
                })
            });
            recent.set(ruling, topic);
        }
        ruling
    }
}

impl Recent {
    #[inline]
    fn topic(&self) -> Option<&[u8]> {
        self.topic.get(..usize::from(self.topic_bytes))
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
    use sluice_policy::{Generation, Message, Request, Who, compile};
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
        let mut rights = Rights::default();
        rights.replace(admission.classes);
        (snapshot, rights)
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
                let ruling = rights.on_publish(&snapshot, &VARS, &topic);
                let message = Message { qos: request.qos, retain, payload_bytes };
                prop_assert_eq!(ruling.verdict(message), expected);
                let is_kept = rights.recent.as_ref().is_some_and(|recent| recent.topic() == Some(topic.as_bytes()));
                prop_assert_eq!(is_kept, topic.len() <= TOPIC_BYTES_MAX);
            }
        }
    }

    #[test]
    fn the_last_topic_is_not_looked_up_again_until_the_classes_are_replaced() {
        let (snapshot, mut rights) = rights();
        // Of nobody's classes every ruling is another, so it shows whether the tables were asked.
        for topic in ["d/a/y", ""] {
            let known = rights.on_publish(&snapshot, &VARS, topic);
            let own = std::mem::take(&mut rights.classes);
            assert_eq!(rights.on_publish(&snapshot, &VARS, topic), known);
            rights.replace(Classes::default());
            let unknown = snapshot.ruling(rights.classes(), &VARS, Action::Publish, topic);
            assert_eq!(rights.on_publish(&snapshot, &VARS, topic), unknown);
            if !topic.is_empty() {
                assert_ne!(known, unknown);
            }
            rights.replace(own);
            assert_eq!(rights.on_publish(&snapshot, &VARS, topic), known);
        }
    }
}
