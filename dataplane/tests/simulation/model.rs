//! What must arrive: for each direction of a session the packets sent into it, in order, with what policy may do to each.
//!
//! Topics below `open` are allowed, below `shut` denied, and below `flip` allowed by odd generations only. While a policy
//! is being replaced both answers are right; a message is judged by some generation between the one acknowledged when it
//! was sent and the last one swapped in.

use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Open,
    Shut,
    Flip,
}

/// A class, and the oldest generation that may judge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    pub(crate) class: Class,
    pub(crate) since: u64,
}

impl Judged {
    pub(crate) fn may_pass(self, latest: u64) -> bool {
        match self.class {
            Class::Open => true,
            Class::Shut => false,
            Class::Flip => (self.since..=latest).any(flip_is_allowed),
        }
    }

    pub(crate) fn may_drop(self, latest: u64) -> bool {
        match self.class {
            Class::Open => false,
            Class::Shut => true,
            Class::Flip => (self.since..=latest).any(|generation| !flip_is_allowed(generation)),
        }
    }
}

fn flip_is_allowed(generation: u64) -> bool {
    generation % 2 == 1
}

/// The class of a topic, and of a filter: what it can deliver at worst.
pub(crate) fn class_of(topic_or_filter: &str) -> Class {
    match topic_or_filter.split('/').next() {
        Some("open") => Class::Open,
        Some("flip") => Class::Flip,
        Some(_) | None => Class::Shut,
    }
}

/// Filters of a SUBSCRIBE with the QoS asked for.
pub(crate) type Filters = Vec<(&'static str, u8)>;

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Exactly these bytes.
    Packet(Vec<u8>),
    /// A SUBSCRIBE, which may lose filters on its way.
    Subscribe { id: u16, filters: Filters },
}

#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) what: What,
    pub(crate) judged: Judged,
}

/// One direction of a session.
#[derive(Default)]
pub(crate) struct Stream {
    expected: VecDeque<Expected>,
}

impl Stream {
    pub(crate) fn sent(&mut self, packet: &[u8], judged: Judged) {
        self.expected.push_back(Expected {
            what: What::Packet(packet.to_vec()),
            judged,
        });
    }

    pub(crate) fn sent_subscribe(&mut self, id: u16, filters: Filters, since: u64) {
        // Forwarded unless every filter may be refused; the worst class says which.
        let class = [Class::Open, Class::Flip, Class::Shut]
            .into_iter()
            .find(|class| filters.iter().any(|(filter, _)| class_of(filter) == *class))
            .unwrap_or(Class::Shut);
        self.expected.push_back(Expected {
            what: What::Subscribe { id, filters },
            judged: Judged { class, since },
        });
    }

    /// True exactly when this packet is still to come.
    pub(crate) fn awaits(&self, packet: &[u8]) -> bool {
        self.expected
            .iter()
            .any(|expected| matches!(&expected.what, What::Packet(bytes) if bytes == packet))
    }

    /// A packet came out at the other end: it must be the next one that policy lets through.
    pub(crate) fn came(&mut self, packet: &[u8], latest: u64) -> Result<(), String> {
        self.take(
            latest,
            |what| matches!(what, What::Packet(bytes) if bytes == packet),
        )
        .map(|_| ())
        .map_err(|why| format!("{why}: {packet:02x?}"))
    }

    /// A SUBSCRIBE came out: the filters that were asked for.
    pub(crate) fn came_subscribe(
        &mut self,
        id: u16,
        latest: u64,
    ) -> Result<(Filters, u64), String> {
        let taken = self.take(
            latest,
            |what| matches!(what, What::Subscribe { id: sent, .. } if *sent == id),
        )?;
        match taken.what {
            What::Subscribe { filters, .. } => Ok((filters, taken.judged.since)),
            What::Packet(_) => Err("not a SUBSCRIBE".to_owned()),
        }
    }

    fn take(&mut self, latest: u64, is_it: impl Fn(&What) -> bool) -> Result<Expected, String> {
        loop {
            let Some(next) = self.expected.pop_front() else {
                return Err("nothing more was sent, or out of order".to_owned());
            };
            if is_it(&next.what) {
                if !next.judged.may_pass(latest) {
                    return Err(format!("denied, but it passed ({:?})", next.judged));
                }
                return Ok(next);
            }
            if !next.judged.may_drop(latest) {
                return Err(format!(
                    "lost or out of order: {:02x?} was to come before",
                    next.what
                ));
            }
        }
    }

    /// Nothing is left that had to arrive.
    pub(crate) fn is_settled(&self, latest: u64) -> Result<(), String> {
        match self
            .expected
            .iter()
            .find(|expected| !expected.judged.may_drop(latest))
        {
            None => Ok(()),
            Some(missing) => Err(format!("never arrived: {:02x?}", missing.what)),
        }
    }
}
