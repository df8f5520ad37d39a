//! A few numbers of a node, for its series in metrics.

use super::Fleet;
use super::member::Member;
use crate::domain::Name;

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Of the node.
    pub name: Name,
    /// `None`: it is not connected, and what it told last need not be so.
    pub now: Option<Now>,
}

/// What a connected node told last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Open, on all its shards.
    pub sessions: u64,
    /// By which all its shards judge; 0: they do not agree, or have none.
    pub active_generation: u64,
    /// Upstream endpoints.
    pub endpoints: u64,
    /// Of these, that clients can be sent to.
    pub endpoints_usable: u64,
}

impl Fleet {
    /// Of the first `max` members by name, and how many there are more.
    pub fn figures(&self, max: usize) -> (Vec<Figures>, usize) {
        let members = self.inner.members();
        let first = members.iter().take(max);
        let figures = first.map(|(name, member)| Figures {
            name: name.clone(),
            now: now(member),
        });
        (figures.collect(), members.len().saturating_sub(max))
    }
}

fn now(member: &Member) -> Option<Now> {
    member.look(|seat| {
        let told = seat.node.told();
        seat.node.is_connected().then(|| Now {
            sessions: told
                .shards
                .iter()
                .map(|shard| shard.sessions)
                .fold(0, u64::saturating_add),
            active_generation: told.active().map_or(0, |active| active.number),
            endpoints: told.endpoints.into(),
            endpoints_usable: told.endpoints_healthy.into(),
        })
    })
}
