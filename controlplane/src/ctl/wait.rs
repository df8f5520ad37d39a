//! When a release has arrived: from what the control plane says of the nodes to an outcome. Pure: no clock, no connection.
//!
//! # Invariants
//!
//! - A node counts as active exactly when it is connected and every shard of it judges all sessions by the generation.
//! - A node is in one of four lists: active, pending, rejected, offline. Nothing is pending when the waiting is over,
//!   unless the time was.

use sluice_proto::control::v1::{Node, NodeState, NodesResponse};
use sluice_proto::v1::GenerationId;
use sluice_proto::v1::reject::Reason;

use super::failure::Exit;

/// Where every node stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// Every shard judges by the generation.
    pub(super) active: Vec<Node>,
    /// On the way.
    pub(super) pending: Vec<Node>,
    /// Refused it, and will again.
    pub(super) rejected: Vec<Node>,
    /// Not connected.
    pub(super) offline: Vec<Node>,
}

/// How the waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is pending.
    Settled,
    /// The time was over first.
    TimedOut,
    /// Another generation came into force: this one will not become active on nodes that it has not reached.
    Superseded {
        /// Which.
        by: u64,
    },
    /// The control plane has another store: it was restored from a backup.
    StoreChanged,
}

/// What one answer means for who waits for `wanted`: where nodes stand, and whether that is the end.
pub(super) fn judge(wanted: &GenerationId, answer: &NodesResponse) -> (Standing, Option<End>) {
    let standing = standing(wanted, &answer.nodes);
    let end = match &answer.released {
        Some(released) if released.store != wanted.store => Some(End::StoreChanged),
        // Numbers in force only grow, so a lower one is an answer from before the release.
        Some(released) if released.number > wanted.number => Some(End::Superseded {
            by: released.number,
        }),
        Some(released) if released.number < wanted.number => None,
        None => None,
        Some(_) => standing.pending.is_empty().then_some(End::Settled),
    };
    (standing, end)
}

/// The exit code of an end.
pub(super) fn exit(standing: &Standing, end: End) -> Exit {
    match end {
        End::Superseded { .. } | End::StoreChanged => Exit::Conflict,
        End::Settled | End::TimedOut if !standing.rejected.is_empty() => Exit::Wrong,
        End::TimedOut => Exit::Partly,
        End::Settled if !standing.offline.is_empty() => Exit::Partly,
        End::Settled => Exit::Done,
    }
}

fn standing(wanted: &GenerationId, nodes: &[Node]) -> Standing {
    let mut standing = Standing::default();
    for node in nodes {
        let list = if !node.connected {
            &mut standing.offline
        } else if is_active(wanted, node) {
            &mut standing.active
        } else if has_rejected(wanted, node) {
            &mut standing.rejected
        } else {
            &mut standing.pending
        };
        list.push(node.clone());
    }
    standing
}

fn is_active(wanted: &GenerationId, node: &Node) -> bool {
    let is_wanted = |id: &Option<GenerationId>| id.as_ref() == Some(wanted);
    node.state() == NodeState::Active
        && is_wanted(&node.active)
        && node.shards.iter().all(|shard| is_wanted(&shard.active))
}

/// A refusal that sending again does not mend.
fn has_rejected(wanted: &GenerationId, node: &Node) -> bool {
    if node.state() != NodeState::Rejected || node.desired.as_ref() != Some(wanted) {
        return false;
    }
    // Without a rejection the node was not sent what it lacks a feature for.
    node.rejection.as_ref().is_none_or(|rejection| {
        let is_mended = matches!(rejection.reason(), Reason::BaseUnknown | Reason::Digest);
        !is_mended && rejection.generation.as_ref().is_none_or(|id| id == wanted)
    })
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::{NodeShard, Rejection};

    use super::*;

    fn id(number: u64) -> GenerationId {
        GenerationId {
            store: vec![1; 16],
            number,
            digest: vec![u8::try_from(number).unwrap(); 32],
        }
    }

    fn node(name: &str, state: NodeState, active: u64) -> Node {
        let shard = NodeShard {
            active: Some(id(active)),
            ..NodeShard::default()
        };
        Node {
            name: name.into(),
            state: state.into(),
            connected: state != NodeState::Offline,
            desired: Some(id(7)),
            active: Some(id(active)),
            shards: vec![shard.clone(), shard],
            ..Node::default()
        }
    }

    fn rejecting(reason: Reason, generation: u64) -> Node {
        Node {
            rejection: Some(Rejection {
                generation: Some(id(generation)),
                reason: reason.into(),
                ..Rejection::default()
            }),
            ..node("r", NodeState::Rejected, 6)
        }
    }

    fn answer(released: u64, nodes: Vec<Node>) -> NodesResponse {
        NodesResponse {
            nodes,
            released: (released > 0).then(|| id(released)),
        }
    }

    #[test]
    fn each_node_is_in_one_list() {
        use NodeState::{Active, Delivering, Idle, Offline, Rejected, Sweeping};
        let lagging_shard = {
            let mut node = node("n", Active, 7);
            node.shards[1].active = Some(id(6));
            node
        };
        let earlier_desired = Node {
            desired: Some(id(6)),
            ..rejecting(Reason::Invalid, 6)
        };
        // Which of active, pending, rejected, offline.
        for (case, expected, note) in [
            (node("n", Active, 7), [1, 0, 0, 0], "there"),
            (
                node("n", Active, 6),
                [0, 1, 0, 0],
                "active with what came before",
            ),
            (lagging_shard, [0, 1, 0, 0], "one shard is behind"),
            (
                node("n", Sweeping, 7),
                [0, 1, 0, 0],
                "not every session judged",
            ),
            (node("n", Delivering, 6), [0, 1, 0, 0], "on its way"),
            (node("n", Idle, 6), [0, 1, 0, 0], "an answer from before"),
            (node("n", Offline, 7), [0, 0, 0, 1], "had it, but who knows"),
            (
                node("n", Rejected, 6),
                [0, 0, 1, 0],
                "lacks a feature, was not sent",
            ),
            (rejecting(Reason::Invalid, 7), [0, 0, 1, 0], "refused"),
            (rejecting(Reason::Features, 7), [0, 0, 1, 0], "refused"),
            (rejecting(Reason::TooLarge, 7), [0, 0, 1, 0], "refused"),
            (
                rejecting(Reason::Unspecified, 7),
                [0, 0, 1, 0],
                "unknown reason",
            ),
            (
                rejecting(Reason::BaseUnknown, 7),
                [0, 1, 0, 0],
                "is sent again",
            ),
            (rejecting(Reason::Digest, 7), [0, 1, 0, 0], "is sent again"),
            (earlier_desired, [0, 1, 0, 0], "refused what came before"),
        ] {
            let found = standing(&id(7), &[case]);
            let lens = [
                &found.active,
                &found.pending,
                &found.rejected,
                &found.offline,
            ]
            .map(Vec::len);
            assert_eq!(lens, expected, "{note}");
        }
    }

    #[test]
    fn a_sequence_of_answers_ends_when_nothing_is_pending() {
        use NodeState::{Active, Delivering, Offline, Sweeping};
        let steps = [
            (
                answer(6, vec![node("a", Active, 6), node("b", Active, 6)]),
                None,
            ),
            (
                answer(7, vec![node("a", Delivering, 6), node("b", Active, 6)]),
                None,
            ),
            (
                answer(7, vec![node("a", Sweeping, 6), node("b", Active, 7)]),
                None,
            ),
            (
                answer(7, vec![node("a", Active, 7), node("b", Sweeping, 6)]),
                None,
            ),
            (
                answer(7, vec![node("a", Active, 7), node("b", Active, 7)]),
                Some((End::Settled, Exit::Done)),
            ),
            (
                answer(7, vec![node("a", Active, 7), node("b", Offline, 6)]),
                Some((End::Settled, Exit::Partly)),
            ),
            (
                answer(
                    7,
                    vec![node("b", Offline, 6), rejecting(Reason::Invalid, 7)],
                ),
                Some((End::Settled, Exit::Wrong)),
            ),
            (answer(7, vec![]), Some((End::Settled, Exit::Done))),
            // Nobody is connected, but the answer is from before the release.
            (answer(0, vec![node("b", Offline, 6)]), None),
            (
                answer(9, vec![node("a", Sweeping, 7)]),
                Some((End::Superseded { by: 9 }, Exit::Conflict)),
            ),
        ];
        for (index, (answer, expected)) in steps.into_iter().enumerate() {
            let (standing, end) = judge(&id(7), &answer);
            let found = end.map(|end| (end, exit(&standing, end)));
            assert_eq!(found, expected, "step {index}");
        }
    }

    #[test]
    fn a_restored_store_is_not_waited_for() {
        let mut other = answer(7, vec![]);
        other.released.as_mut().unwrap().store = vec![2; 16];
        let (standing, end) = judge(&id(7), &other);
        assert_eq!(end, Some(End::StoreChanged));
        assert_eq!(exit(&standing, End::StoreChanged), Exit::Conflict);
    }

    #[test]
    fn when_the_time_is_over_a_rejection_outweighs_it() {
        let pending = standing(&id(7), &[node("a", NodeState::Sweeping, 6)]);
        assert_eq!(exit(&pending, End::TimedOut), Exit::Partly);
        let rejected = standing(&id(7), &[rejecting(Reason::Invalid, 7)]);
        assert_eq!(exit(&rejected, End::TimedOut), Exit::Wrong);
    }
}
