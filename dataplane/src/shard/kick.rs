//! Sessions that an operator ends: looked for a few slots at a time, so that a search never holds up traffic.
//!
//! Owns the searches under way. There is no index by client id or user: an operator kicks seldom, and an index would cost
//! every session memory. A session that comes in behind the search is a new one, and stays.

use std::collections::VecDeque;

use crate::node::{KickWho, ToControl};
use crate::ring::Ring;
use crate::session::{Cause, Session};

use super::{Core, Turn};

/// Slots looked at in one turn.
const TURN_MAX: u32 = 4096;

/// A search.
pub(super) struct Kick {
    request: u64,
    who: KickWho,
    next_slot: u32,
    /// Slots in use when it began.
    end: u32,
    sessions: u32,
}

/// Searches, the first one under way. Bounded by the mail: no order is read while answers are owed.
pub(super) type Kicks = VecDeque<Kick>;

impl Kick {
    fn is_meant(&self, session: &Session) -> bool {
        match &self.who {
            KickWho::ClientId(client_id) => session.client_id() == Some(client_id),
            KickWho::Username(username) => session.username() == Some(username),
        }
    }
}

impl<R: Ring> Core<R> {
    /// True exactly when an operator keeps the client of this session out. Asked when who it is has been verified: a name that
    /// is only claimed is told nothing.
    pub(super) fn is_kept_out(&self, turn: Turn<'_>, slot: u32) -> bool {
        let open = self.slots.get(slot);
        let session = open.and_then(|open| open.session.as_ref());
        session.is_some_and(|session| {
            let client_id = session.client_id().unwrap_or_default();
            self.kept_out
                .is_out(client_id, session.username(), turn.now)
        })
    }

    pub(super) fn begin_kick(&mut self, request: u64, who: KickWho) {
        self.kicks.push_back(Kick {
            request,
            who,
            next_slot: 0,
            end: self.slots.used(),
            sessions: 0,
        });
    }

    /// Goes on with the first search. Without a policy there are no sessions, and it is over at once.
    pub(super) fn kick(&mut self, turn: Option<Turn<'_>>) {
        let Some(mut kick) = self.kicks.pop_front() else {
            return;
        };
        let end = match turn {
            Some(turn) => {
                let end = kick.end.min(kick.next_slot.saturating_add(TURN_MAX));
                for slot in kick.next_slot..end {
                    kick.sessions += u32::from(self.kick_one(turn, slot, &kick));
                }
                end
            }
            None => kick.end,
        };
        kick.next_slot = end;
        if end < kick.end {
            self.kicks.push_front(kick);
            return;
        }
        self.outgoing.tell(ToControl::Kicked {
            shard: self.shard,
            request: kick.request,
            sessions: kick.sessions,
        });
    }

    fn kick_one(&mut self, turn: Turn<'_>, slot: u32, kick: &Kick) -> bool {
        let open = self.slots.get(slot);
        let session = open.and_then(|open| open.session.as_ref());
        let is_meant = session.is_some_and(|session| kick.is_meant(session));
        if is_meant {
            self.call(turn, slot, |session, context| {
                session.handle_end(context, Cause::Kicked);
            });
        }
        is_meant
    }
}
