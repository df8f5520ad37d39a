//! Refusals that the shard keeps: those of connections that become no session, the memory of all, and the questions for them.
//!
//! What sessions are refused they tell the store themselves; see `session/record.rs`.

use std::net::SocketAddr;

use sluice_policy::{ListenerId, Snapshot};

use crate::clock::Time;
use crate::metrics::Counter;
use crate::node::{DenialQuery, DenialRing, ToControl};
use crate::ring::Ring;
use crate::session::{Act, DecisionRecord, Reason, User, Wanted};

use super::Core;

impl<R: Ring> Core<R> {
    /// A connection was closed at accept.
    pub(super) fn note_turned_away(
        &mut self,
        now: Time,
        snapshot: Option<&Snapshot>,
        (listener, peer): (ListenerId, SocketAddr),
        reason: Counter,
    ) {
        let Some(ring) = self.lent.denials.as_mut() else {
            return;
        };
        let record = DecisionRecord {
            peer,
            listener,
            version: None,
            client_id: "",
            user: User::Nobody,
            wanted: Wanted::only(Act::Accept),
            refused: Some(Reason::TurnedAway(reason)),
            rule: None,
            shadow: None,
        };
        ring.note(now, snapshot, &record);
    }

    /// Brings the budget up to date with what is kept.
    #[inline]
    pub(super) fn weigh_denials(&mut self) {
        let bytes = self.lent.denials.as_ref().map_or(0, DenialRing::heap_bytes);
        let before = std::mem::replace(&mut self.denial_bytes, bytes);
        if bytes != before {
            self.budget.removed(before);
            self.budget.added(bytes);
        }
    }

    /// Answers a question.
    pub(super) fn list_denials(&mut self, request: u64, query: &DenialQuery) {
        let now = self.ring.now();
        let ring = self.lent.denials.as_ref();
        let list = ring.map(|ring| Box::new(ring.list(now, query)));
        let shard = self.shard;
        self.outgoing.tell(ToControl::Denials {
            shard,
            request,
            list,
        });
    }
}
