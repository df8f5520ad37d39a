//! Nodes, waiting for them, sessions, and what nodes answered.

use serde_json::{Value, json};
use sluice_proto::control::v1::{
    Node, NodeAnswer, NodeSession, NodeShard, NodeState, NodesResponse, Rejection,
};
use sluice_proto::v1::EndpointTrouble;
use sluice_proto::v1::endpoint_trouble::Fault;
use sluice_proto::v1::reject::Reason;
use sluice_proto::v1::session_page::Session;

use super::diff::kind;
use super::{Table, clean, count, id_json, number, time};
use crate::ctl::wait::{End, Standing};

/// Problems shown of one rejection; JSON has all that came.
const PROBLEMS_SHOWN_MAX: usize = 20;

/// The word for a state.
pub(crate) fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Offline => "offline",
        NodeState::Idle => "idle",
        NodeState::Delivering => "delivering",
        NodeState::Sweeping => "sweeping",
        NodeState::Active => "active",
        NodeState::Rejected => "rejected",
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "it gave no reason",
        Reason::Invalid => "it cannot be put in force there",
        Reason::Features => "it needs features that the node lacks",
        Reason::BaseUnknown => "the node did not have what the changes were made to",
        Reason::Digest => "what arrived was not complete",
        Reason::TooLarge => "it is larger than the node allows",
    }
}

/// All nodes, and below them why some refused or are not ready.
pub(crate) fn nodes_text(answer: &NodesResponse) -> String {
    let in_force = match &answer.released {
        Some(id) => format!("in force: generation {}\n", id.number),
        None => "in force: nothing\n".into(),
    };
    if answer.nodes.is_empty() {
        return in_force + "no nodes; `sluicectl token join create` lets one join\n";
    }
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        ">DESIRED",
        ">DELIVERED",
        ">ACTIVE",
        ">SHARDS",
        ">SESSIONS",
        ">LAG",
        "NOTE",
    ]);
    for node in &answer.nodes {
        let active = node
            .shards
            .iter()
            .filter(|shard| shard.active.is_some() && shard.active == node.desired);
        let sessions: u64 = node.shards.iter().map(|shard| shard.sessions).sum();
        table.row([
            node.name.clone(),
            state(node.state()).into(),
            number(node.desired.as_ref()),
            number(node.delivered.as_ref()),
            number(node.active.as_ref()),
            format!("{}/{}", active.count(), node.shards.len()),
            sessions.to_string(),
            node.lag_ms.map_or_else(|| "-".into(), time::span),
            note(node),
        ]);
    }
    let mut text = in_force + &table.text();
    for node in &answer.nodes {
        if let Some(rejection) = &node.rejection {
            text.push_str(&rejection_text(&node.name, rejection));
        }
        for why in &node.not_ready {
            text.push_str(&format!(
                "{} is not ready: {}\n",
                clean(&node.name),
                clean(why)
            ));
        }
        for trouble in &node.troubles {
            text.push_str(&format!(
                "{}: {}\n",
                clean(&node.name),
                trouble_text(trouble)
            ));
        }
        if node.troubles_left_off > 0 {
            let more = node.troubles_left_off;
            text.push_str(&format!(
                "{}: and {more} more endpoints\n",
                clean(&node.name)
            ));
        }
    }
    text
}

/// The endpoint, where it is, and what it failed at.
pub(crate) fn trouble_text(trouble: &EndpointTrouble) -> String {
    let (upstream, endpoint) = (clean(&trouble.upstream), clean(&trouble.endpoint));
    let address = if trouble.address.is_empty() || trouble.endpoint.ends_with(&trouble.address) {
        String::new()
    } else {
        format!(" ({})", clean(&trouble.address))
    };
    let fault = fault_words(trouble.fault());
    format!("upstream {upstream}: {endpoint}{address}: {fault}")
}

fn fault_words(fault: Fault) -> &'static str {
    match fault {
        Fault::Unspecified => "does not work",
        Fault::Refused => "refused",
        Fault::Unreachable => "unreachable",
        Fault::TimedOut => "timed out",
        Fault::NameNotFound => "name not found",
        Fault::NoConnack => "no CONNACK",
        Fault::ClosedBeforeConnack => "closed before CONNACK",
        Fault::Unavailable => "says that it is unavailable",
        Fault::NotMqtt => "sends no answer to CONNECT",
    }
}

fn trouble_json(trouble: &EndpointTrouble) -> Value {
    json!({
        "upstream": trouble.upstream,
        "endpoint": trouble.endpoint,
        "address": trouble.address,
        "reason": fault_words(trouble.fault()),
        "is_last": trouble.is_last,
    })
}

fn note(node: &Node) -> String {
    let mut notes = Vec::new();
    if node.is_draining {
        notes.push("draining".to_owned());
    }
    if node.endpoints_healthy < node.endpoints {
        let (healthy, all) = (node.endpoints_healthy, node.endpoints);
        notes.push(format!("endpoints {healthy}/{all}"));
    }
    if !node.connected {
        let seen = node.last_seen_unix_ms.map(time::utc);
        notes.push(seen.map_or_else(|| "not seen".into(), |at| format!("seen {at}")));
    }
    notes.join(", ")
}

/// Why a node refused, a line for each problem.
pub(crate) fn rejection_text(node: &str, rejection: &Rejection) -> String {
    let generation = number(rejection.generation.as_ref());
    let why = reason(rejection.reason());
    let mut text = format!("{} rejected generation {generation}: {why}\n", clean(node));
    for problem in rejection.problems.iter().take(PROBLEMS_SHOWN_MAX) {
        let row = problem.row.as_ref().map_or_else(String::new, |key| {
            format!("{} {}: ", kind(key.kind()), clean(&key.name))
        });
        let field = match problem.field.as_str() {
            "" => String::new(),
            field => format!("{}: ", clean(field)),
        };
        text.push_str(&format!("    {row}{field}{}\n", clean(&problem.message)));
    }
    let hidden = rejection.problems.len().saturating_sub(PROBLEMS_SHOWN_MAX) as u64;
    if hidden + rejection.left_off > 0 {
        text.push_str(&format!("    and {} more\n", hidden + rejection.left_off));
    }
    text
}

/// The same as [`nodes_text`].
pub(crate) fn nodes_json(answer: &NodesResponse) -> Value {
    json!({
        "released": id_json(answer.released.as_ref()),
        "nodes": answer.nodes.iter().map(node_json).collect::<Value>(),
    })
}

fn node_json(node: &Node) -> Value {
    json!({
        "name": node.name,
        "state": state(node.state()),
        "connected": node.connected,
        "version": node.version,
        "address": node.address,
        "enrolled_unix_ms": node.enrolled_unix_ms,
        "last_seen_unix_ms": node.last_seen_unix_ms,
        "desired": id_json(node.desired.as_ref()),
        "delivered": id_json(node.delivered.as_ref()),
        "active": id_json(node.active.as_ref()),
        "shards": node.shards.iter().map(shard_json).collect::<Value>(),
        "rejection": node.rejection.as_ref().map(rejection_json),
        "lag_ms": node.lag_ms,
        "is_draining": node.is_draining,
        "not_ready": node.not_ready,
        "endpoints": node.endpoints,
        "endpoints_healthy": node.endpoints_healthy,
        "memory_bytes": node.memory_bytes,
        "troubles": node.troubles.iter().map(trouble_json).collect::<Value>(),
        "troubles_left_off": node.troubles_left_off,
        "features": node.features,
    })
}

fn shard_json(shard: &NodeShard) -> Value {
    json!({
        "active": id_json(shard.active.as_ref()),
        "sessions": shard.sessions,
        "messages": shard.messages,
        "denials": shard.denials,
        "turn_max_us": shard.turn_max_us,
        "backlog_bytes": shard.backlog_bytes,
    })
}

fn rejection_json(rejection: &Rejection) -> Value {
    let problem = |problem: &sluice_proto::v1::Problem| {
        json!({
            "kind": problem.row.as_ref().map(|key| kind(key.kind())),
            "name": problem.row.as_ref().map(|key| &key.name),
            "field": problem.field,
            "message": problem.message,
        })
    };
    let reason = match rejection.reason() {
        Reason::Unspecified => "unknown",
        Reason::Invalid => "invalid",
        Reason::Features => "features",
        Reason::BaseUnknown => "base_unknown",
        Reason::Digest => "digest",
        Reason::TooLarge => "too_large",
    };
    json!({
        "generation": id_json(rejection.generation.as_ref()),
        "reason": reason,
        "problems": rejection.problems.iter().map(problem).collect::<Value>(),
        "left_off": rejection.left_off,
    })
}

/// How the waiting for a generation ended.
pub(crate) fn waited_text(generation: u64, standing: &Standing, end: End) -> String {
    let mut text = match end {
        End::Settled => String::new(),
        End::TimedOut => "not all nodes were ready in time\n".into(),
        End::Superseded { by } => {
            format!(
                "generation {by} came into force meanwhile; generation {generation} is not waited for\n"
            )
        }
        End::StoreChanged => {
            "the control plane's store was replaced meanwhile; nothing is waited for\n".into()
        }
    };
    let active = count(standing.active.len() as u64, "node");
    text.push_str(&format!("active on {active}\n"));
    for node in &standing.pending {
        let state = state(node.state());
        text.push_str(&format!("waiting: {} ({state})\n", clean(&node.name)));
    }
    for node in &standing.rejected {
        match &node.rejection {
            Some(rejection) => text.push_str(&rejection_text(&node.name, rejection)),
            None => text.push_str(&format!(
                "{} rejected generation {generation}: it lacks a feature that a row needs\n",
                clean(&node.name)
            )),
        }
    }
    for node in &standing.offline {
        let has = match &node.active {
            Some(id) => format!("it goes on with generation {}", id.number),
            None => "it goes on with what it has".into(),
        };
        text.push_str(&format!("offline: {}; {has}\n", clean(&node.name)));
    }
    text
}

/// The same.
pub(crate) fn waited_json(standing: &Standing, end: End) -> Value {
    let names = |nodes: &[Node]| {
        nodes
            .iter()
            .map(|node| node.name.as_str())
            .collect::<Value>()
    };
    let rejected = |node: &Node| json!({ "name": node.name, "rejection": node.rejection.as_ref().map(rejection_json) });
    let (end, superseded_by) = match end {
        End::Settled => ("settled", None),
        End::TimedOut => ("timed_out", None),
        End::Superseded { by } => ("superseded", Some(by)),
        End::StoreChanged => ("store_changed", None),
    };
    json!({
        "end": end,
        "superseded_by": superseded_by,
        "active": names(&standing.active),
        "pending": names(&standing.pending),
        "rejected": standing.rejected.iter().map(rejected).collect::<Value>(),
        "offline": names(&standing.offline),
    })
}

/// A page of sessions, with a header.
pub(crate) fn sessions_text(sessions: &[NodeSession]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "CLIENT ID",
        "USER",
        "PEER",
        "LISTENER",
        ">OPEN",
        ">SHARD",
    ]);
    for entry in sessions {
        let none = Session::default();
        let session = entry.session.as_ref().unwrap_or(&none);
        table.row([
            entry.node.clone(),
            dash_if_empty(&session.client_id),
            session.username.clone().unwrap_or_else(|| "-".into()),
            session.peer.clone(),
            session.listener.clone(),
            time::span(session.open_secs.saturating_mul(1000)),
            session.shard.to_string(),
        ]);
    }
    table.text()
}

fn dash_if_empty(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.into()
    }
}

/// One session.
pub(crate) fn session_json(entry: &NodeSession) -> Value {
    let none = Session::default();
    let session = entry.session.as_ref().unwrap_or(&none);
    json!({
        "node": entry.node,
        "client_id": session.client_id,
        "username": session.username,
        "peer": session.peer,
        "listener": session.listener,
        "open_secs": session.open_secs,
        "shard": session.shard,
    })
}

/// What nodes answered to a kick or a drain; `done` says what was done, such as `sessions ended`.
pub(crate) fn answers_text(answers: &[NodeAnswer], done: &str) -> String {
    if answers.is_empty() {
        return "no node is connected\n".into();
    }
    let mut text = String::new();
    for answer in answers {
        let node = clean(&answer.node);
        text.push_str(&if answer.error.is_empty() {
            format!(
                "{node}: {done}, {} ended so far\n",
                count(answer.sessions, "session")
            )
        } else {
            format!("{node}: not done: {}\n", clean(&answer.error))
        });
    }
    text
}

/// The same.
pub(crate) fn answers_json(answers: &[NodeAnswer]) -> Value {
    let one = |answer: &NodeAnswer| {
        let error = (!answer.error.is_empty()).then_some(&answer.error);
        json!({ "node": answer.node, "sessions": answer.sessions, "error": error })
    };
    answers.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::{GenerationId, Problem, RowKey, RowKind};

    use super::*;

    fn id(number: u64) -> Option<GenerationId> {
        Some(GenerationId {
            store: vec![1; 16],
            number,
            digest: vec![2; 32],
        })
    }

    fn node(name: &str, state: NodeState, active: u64) -> Node {
        let shard = |sessions| NodeShard {
            active: id(active),
            sessions,
            ..NodeShard::default()
        };
        Node {
            name: name.into(),
            state: state.into(),
            connected: state != NodeState::Offline,
            desired: id(7),
            delivered: id(7),
            active: id(active),
            shards: vec![shard(10), shard(5)],
            endpoints: 2,
            endpoints_healthy: 2,
            ..Node::default()
        }
    }

    fn rejected() -> Node {
        let problem = |message: &str, field: &str| Problem {
            row: Some(RowKey {
                kind: RowKind::Rule.into(),
                name: "r1".into(),
            }),
            field: field.into(),
            message: message.into(),
        };
        Node {
            rejection: Some(Rejection {
                generation: id(7),
                reason: Reason::Invalid.into(),
                problems: vec![problem("no such group `x`", "groups"), problem("odd", "")],
                left_off: 3,
            }),
            lag_ms: Some(61_000),
            ..node("edge-2", NodeState::Rejected, 6)
        }
    }

    fn offline() -> Node {
        Node {
            last_seen_unix_ms: Some(1_000_000_000_000),
            is_draining: true,
            endpoints_healthy: 1,
            ..node("edge-3", NodeState::Offline, 6)
        }
    }

    #[test]
    fn nodes_are_a_table_with_reasons_below() {
        let answer = NodesResponse {
            nodes: vec![node("edge-1", NodeState::Active, 7), rejected(), offline()],
            released: id(7),
        };
        let expected = "\
in force: generation 7
NODE    STATE     DESIRED  DELIVERED  ACTIVE  SHARDS  SESSIONS    LAG  NOTE
edge-1  active          7          7       7     2/2        15      -
edge-2  rejected        7          7       6     0/2        15  1m 1s
edge-3  offline         7          7       6     0/2        15      -  draining, endpoints 1/2, seen 2001-09-09 01:46:40Z
edge-2 rejected generation 7: it cannot be put in force there
    rule r1: groups: no such group `x`
    rule r1: odd
    and 3 more
";
        assert_eq!(nodes_text(&answer), expected);
        let empty = "in force: nothing\nno nodes; `sluicectl token join create` lets one join\n";
        assert_eq!(nodes_text(&NodesResponse::default()), empty);
        let json = nodes_json(&answer);
        assert_eq!(json["nodes"][0]["shards"][1]["active"]["number"], 7);
        assert_eq!(json["nodes"][1]["rejection"]["problems"][0]["name"], "r1");
        assert_eq!(json["nodes"][1]["rejection"]["reason"], "invalid");
        assert_eq!(json["nodes"][0]["rejection"], Value::Null);
    }

    #[test]
    fn waiting_says_who_is_there_and_who_is_not() {
        let standing = Standing {
            active: vec![node("edge-1", NodeState::Active, 7)],
            pending: vec![node("edge-4", NodeState::Sweeping, 6)],
            rejected: vec![rejected(), node("edge-5", NodeState::Rejected, 6)],
            offline: vec![offline()],
        };
        let expected = "\
not all nodes were ready in time
active on 1 node
waiting: edge-4 (sweeping)
edge-2 rejected generation 7: it cannot be put in force there
    rule r1: groups: no such group `x`
    rule r1: odd
    and 3 more
edge-5 rejected generation 7: it lacks a feature that a row needs
offline: edge-3; it goes on with generation 6
";
        assert_eq!(waited_text(7, &standing, End::TimedOut), expected);
        let json = waited_json(&standing, End::Superseded { by: 9 });
        assert_eq!(json["superseded_by"], 9);
        assert_eq!(json["rejected"][0]["name"], "edge-2");
        assert_eq!(json["offline"][0], "edge-3");
    }

    #[test]
    fn a_client_id_with_an_escape_is_shown_as_text() {
        let session = NodeSession {
            node: "edge-1".into(),
            session: Some(Session {
                client_id: "\x1b[31mx".into(),
                username: None,
                peer: "10.0.0.1".into(),
                listener: "main".into(),
                open_secs: 75,
                shard: 1,
            }),
        };
        let expected = "\
NODE    CLIENT ID    USER  PEER      LISTENER    OPEN  SHARD
edge-1  \\u{1b}[31mx  -     10.0.0.1  main      1m 15s      1
";
        assert_eq!(sessions_text(std::slice::from_ref(&session)), expected);
        assert_eq!(session_json(&session)["username"], Value::Null);
    }

    #[test]
    fn answers_of_nodes_are_lines() {
        let answers = [
            NodeAnswer {
                node: "a".into(),
                sessions: 1,
                error: String::new(),
            },
            NodeAnswer {
                node: "b".into(),
                sessions: 0,
                error: "gone".into(),
            },
        ];
        let expected = "a: done, 1 session ended so far\nb: not done: gone\n";
        assert_eq!(answers_text(&answers, "done"), expected);
        assert_eq!(answers_text(&[], "done"), "no node is connected\n");
        assert_eq!(answers_json(&answers)[0]["error"], Value::Null);
        assert_eq!(answers_json(&answers)[1]["error"], "gone");
    }
}
