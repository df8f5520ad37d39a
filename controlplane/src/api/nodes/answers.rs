//! Members as messages.

use sluice_proto::control::v1::{Node, NodeShard, NodeState, NodesResponse, Rejection};
use tonic::Status;

use super::no_such_node;
use crate::domain::{GenerationId, Name};
use crate::fleet::{Fleet, Refusal, Shard, State, View};

/// Longest line of a node that is passed on.
const LINE_CHARS_MAX: usize = 300;

/// All members, or those named.
#[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
pub(super) fn nodes(fleet: &Fleet, only: &[Name]) -> Result<NodesResponse, Status> {
    let views = fleet.views(only).map_err(|name| no_such_node(&name))?;
    let in_force = fleet.in_force();
    let released = in_force.borrow().as_ref().map(|released| released.id);
    Ok(NodesResponse {
        nodes: views.into_iter().map(node).collect(),
        released: released.map(GenerationId::to_wire),
    })
}

/// One line of bounded length.
pub(super) fn line(text: String) -> String {
    let is_good = text.len() <= LINE_CHARS_MAX && !text.contains(char::is_control);
    if is_good {
        return text;
    }
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(LINE_CHARS_MAX).map(plain).collect()
}

fn node(view: View) -> Node {
    let active = view.told.active();
    let told = view.told;
    Node {
        name: view.name.as_str().to_owned(),
        state: state(view.state).into(),
        connected: view.state != State::Offline,
        version: told.version,
        address: view.address,
        enrolled_unix_ms: view.enrolled_at.0,
        last_seen_unix_ms: view.last_seen.map(|at| at.0),
        desired: view.desired.map(GenerationId::to_wire),
        delivered: view.delivered.map(GenerationId::to_wire),
        active: active.map(GenerationId::to_wire),
        shards: told.shards.into_iter().map(shard).collect(),
        rejection: view.refusal.map(rejection),
        lag_ms: view.lag_ms,
        is_draining: told.is_draining,
        not_ready: told.not_ready,
        endpoints: told.endpoints,
        endpoints_healthy: told.endpoints_healthy,
        memory_bytes: told.memory_bytes,
        troubles: told.troubles,
        troubles_left_off: told.troubles_left_off,
        features: told.features,
    }
}

fn state(state: State) -> NodeState {
    match state {
        State::Offline => NodeState::Offline,
        State::Idle => NodeState::Idle,
        State::Delivering => NodeState::Delivering,
        State::Sweeping => NodeState::Sweeping,
        State::Active => NodeState::Active,
        State::Rejected => NodeState::Rejected,
    }
}

fn shard(shard: Shard) -> NodeShard {
    NodeShard {
        active: shard.active.map(GenerationId::to_wire),
        sessions: shard.sessions,
        messages: shard.messages,
        denials: shard.denials,
        turn_max_us: shard.turn_max_us,
        backlog_bytes: shard.backlog_bytes,
    }
}

fn rejection(refusal: Refusal) -> Rejection {
    Rejection {
        generation: Some(refusal.generation.to_wire()),
        reason: refusal.reason.into(),
        problems: refusal.problems,
        left_off: refusal.left_off,
    }
}
