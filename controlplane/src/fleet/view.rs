//! One member as it is shown: a copy, taken under the lock, of what the machine knows.

use std::sync::Arc;

use tokio::time::Instant;

use super::member::Member;
use super::node::State;
use super::told::{Refusal, Told};
use crate::domain::{GenerationId, Name, UnixMillis};
use crate::release::Released;

/// See the module documentation. The fields are those of `Node` in `control.proto`.
#[derive(Clone, Debug)]
pub struct View {
    /// Its name.
    pub name: Name,
    /// Where it stands on its way to what is in force.
    pub state: State,
    /// Of the peer.
    pub address: String,
    /// When it joined.
    pub enrolled_at: UnixMillis,
    /// When it last said something.
    pub last_seen: Option<UnixMillis>,
    /// What it should have.
    pub desired: Option<GenerationId>,
    /// What was sent to it whole.
    pub delivered: Option<GenerationId>,
    /// What it told.
    pub told: Told,
    /// Why it does not take what it should have.
    pub refusal: Option<Refusal>,
    /// Milliseconds since the release, while it is not active.
    pub lag_ms: Option<u64>,
}

impl View {
    /// As it is now.
    pub fn of(member: &Member, desired: Option<&Arc<Released>>) -> Self {
        let since = desired.map(|desired| Instant::now().saturating_duration_since(desired.since));
        let lag_ms = since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let desired = desired.map(AsRef::as_ref);
        let desired_id = desired.map(|desired| desired.id);
        member.look(|seat| {
            let node = &seat.node;
            let is_there = node.told().active() == desired_id;
            Self {
                name: member.record.name.clone(),
                state: node.state(desired),
                address: seat.address.clone(),
                enrolled_at: member.record.enrolled_at,
                last_seen: seat.last_seen,
                desired: desired_id,
                delivered: node.delivered(),
                told: node.told().clone(),
                refusal: node.refusal(desired).cloned(),
                lag_ms: lag_ms.filter(|_| !is_there),
            }
        })
    }
}
