//! A test's hold on one connection of the stub: what came in, and what is to be done to it.

use std::sync::Arc;

use sluice_wire::mqtt::{PacketKind, Version, decode_connect};

use super::broker::LinkId;
use super::link::{Link, accept_connect};
use super::{Shared, State};
use crate::packet::Frame;

/// How a connection ended, as the stub saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The other side finished sending.
    Closed,
    /// The other side reset it.
    Reset,
    /// The script said so.
    Refused,
    /// The other side broke the protocol.
    NotMqtt,
    /// Too many writes were waiting.
    TooSlow,
}

/// One connection that reached the stub.
#[derive(Debug)]
pub struct Peer {
    shared: Arc<Shared>,
    id: LinkId,
    /// How many recorded packets were looked at.
    seen: usize,
}

impl Peer {
    pub(super) fn new(shared: Arc<Shared>, id: LinkId) -> Self {
        Self {
            shared,
            id,
            seen: 0,
        }
    }

    /// Sends bytes as they are.
    pub fn send(&self, bytes: &[u8]) {
        self.with(|link| link.send(bytes.to_vec()));
    }

    /// Finishes sending and goes on receiving.
    pub fn finish(&self) {
        self.with(Link::finish);
    }

    /// Closes.
    pub fn close(&self) {
        self.with(Link::close);
    }

    /// Resets.
    pub fn reset(&self) {
        self.with(Link::reset);
    }

    /// Stops reading after what is being read.
    pub fn stall(&self) {
        self.with(|link| link.is_stalled = true);
    }

    /// Reads again.
    pub fn resume(&self) {
        self.with(|link| link.is_stalled = false);
    }

    /// Answers a CONNECT that was held back.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        let Some(link) = state.links.get_mut(&self.id) else {
            return;
        };
        link.is_released = true;
        let Some(first) = link.frames.first().cloned() else {
            return;
        };
        if let Ok(connect) = decode_connect(&first.bytes) {
            accept_connect(&mut state, self.id, &connect);
            state.carry_out();
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The version of its CONNECT.
    pub fn version(&self) -> Version {
        let state = self.shared.lock();
        state
            .links
            .get(&self.id)
            .map_or(Version::V311, |link| link.version)
    }

    /// All packets received so far.
    pub fn frames(&self) -> Vec<Frame> {
        let state = self.shared.lock();
        state
            .links
            .get(&self.id)
            .map_or(Vec::new(), |link| link.frames.clone())
    }

    /// All bytes of whole packets received so far.
    pub fn received(&self) -> Vec<u8> {
        self.frames()
            .into_iter()
            .flat_map(|frame| frame.bytes)
            .collect()
    }

    /// How many packets of a kind were received so far.
    pub fn count(&self, kind: PacketKind) -> usize {
        self.frames().iter().filter(|frame| frame.is(kind)).count()
    }

    /// Waits for the next packet; `None` when the connection ends first.
    #[track_caller]
    pub fn try_next(&mut self) -> Option<Frame> {
        let (id, seen) = (self.id, self.seen);
        let found = self.shared.wait(|state: &mut State| {
            let link = state.links.get(&id)?;
            match link.frames.get(seen) {
                Some(frame) => Some(Some(frame.clone())),
                None if link.end.is_some() => Some(None),
                None => None,
            }
        });
        #[allow(clippy::panic)] // a test fails by panicking
        let Some(found) = found else {
            panic!(
                "the stub waited in vain for packet number {seen}; {:?}",
                self.frames()
            );
        };
        self.seen += usize::from(found.is_some());
        found
    }

    /// Waits for the next packet, which must be of that kind.
    #[track_caller]
    pub fn expect(&mut self, kind: PacketKind) -> Frame {
        #[allow(clippy::panic)] // a test fails by panicking
        match self.try_next() {
            Some(frame) if frame.is(kind) => frame,
            Some(frame) => panic!("the stub expected {kind:?} and got {frame:?}"),
            None => panic!("the stub expected {kind:?}, but the connection ended"),
        }
    }

    /// Waits for the next packet, which must have exactly these bytes.
    #[track_caller]
    pub fn expect_bytes(&mut self, bytes: &[u8]) {
        let frame = self.try_next();
        let expected = Frame {
            bytes: bytes.to_vec(),
        };
        assert_eq!(frame, Some(expected));
    }

    /// Waits for the end of the connection; packets not looked at are an error.
    #[track_caller]
    pub fn expect_end(&mut self) -> End {
        let next = self.try_next();
        assert_eq!(next, None, "the stub expected the end of the connection");
        let state = self.shared.lock();
        let link = state.links.get(&self.id);
        link.and_then(|link| link.end).unwrap_or(End::Closed)
    }

    fn with(&self, act: impl FnOnce(&mut Link)) {
        if let Some(link) = self.shared.lock().links.get_mut(&self.id) {
            act(link);
        }
        self.shared.changed.notify_all();
    }
}
