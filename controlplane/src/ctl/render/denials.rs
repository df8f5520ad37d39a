//! Refusals, as people and programs read them.

use serde_json::{Value, json};
use sluice_proto::control::v1::{NodeAnswer, NodeDenial};
use sluice_proto::v1::Denial;
use sluice_proto::v1::denial::UserKind;

use super::{Table, time};

/// A table; its header only where it begins.
pub(crate) fn denials_text(denials: &[NodeDenial], has_header: bool) -> String {
    let mut table = Table::new(&[
        "TIME",
        "NODE",
        "PEER",
        "LISTENER",
        "CLIENT ID",
        "USER",
        "ACTION",
        "REASON",
        "WHAT",
    ]);
    for entry in denials {
        let none = Denial::default();
        let denial = entry.denial.as_ref().unwrap_or(&none);
        table.row([
            time::utc(denial.unix_ms),
            entry.node.clone(),
            denial.peer.clone(),
            dash_if_empty(&denial.listener),
            dash_if_empty(&denial.client_id),
            dash_if_empty(&user(denial)),
            denial.action.clone(),
            denial.reason.clone(),
            dash_if_empty(&what(denial)),
        ]);
    }
    let text = table.text();
    match text.split_once('\n') {
        Some((_, rows)) if !has_header => rows.to_owned(),
        Some(_) | None => text,
    }
}

/// The same.
pub(crate) fn denials_json(denials: &[NodeDenial]) -> Value {
    denials.iter().map(denial_json).collect()
}

/// Nodes that did not answer, or not wholly.
pub(crate) fn failed_json(failed: &[NodeAnswer]) -> Value {
    let one = |node: &NodeAnswer| json!({ "node": node.node, "error": node.error });
    failed.iter().map(one).collect()
}

fn denial_json(entry: &NodeDenial) -> Value {
    let none = Denial::default();
    let denial = entry.denial.as_ref().unwrap_or(&none);
    let kind = match denial.user_kind() {
        UserKind::Unspecified | UserKind::Nobody => Value::Null,
        UserKind::Verified => "verified".into(),
        UserKind::Claimed => "claimed".into(),
        UserKind::Hidden => "hidden".into(),
    };
    let is_hidden = denial.user_kind() == UserKind::Hidden;
    let or_null = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "node": entry.node,
        "shard": denial.shard,
        "at": time::utc(denial.unix_ms),
        "unix_ms": denial.unix_ms,
        "peer": denial.peer,
        "listener": denial.listener,
        "client_id": denial.client_id,
        "user": or_null(&denial.user),
        "user_kind": kind,
        "user_bytes": is_hidden.then_some(denial.user_bytes),
        "user_mark": is_hidden.then(|| format!("{:016x}", denial.user_mark)),
        "action": denial.action,
        "topic": or_null(&denial.topic),
        "qos": denial.qos,
        "retain": denial.retain,
        "payload_bytes": denial.payload_bytes,
        "reason": denial.reason,
        "rule": or_null(&denial.rule),
        "clause": or_null(&denial.clause),
    })
}

fn user(denial: &Denial) -> String {
    match denial.user_kind() {
        UserKind::Unspecified | UserKind::Nobody => String::new(),
        UserKind::Verified => denial.user.clone(),
        UserKind::Claimed => format!("{} (not verified)", denial.user),
        // Enough of the mark to tell two apart.
        UserKind::Hidden => format!(
            "(hidden: {} bytes, {:08x})",
            denial.user_bytes,
            denial.user_mark >> 32
        ),
    }
}

/// Topic, message, rule and clause, as far as there are any.
fn what(denial: &Denial) -> String {
    let mut parts = Vec::new();
    if !denial.topic.is_empty() {
        parts.push(denial.topic.clone());
    }
    parts.extend(denial.qos.map(|qos| format!("QoS {qos}")));
    if denial.retain {
        parts.push("RETAIN".into());
    }
    parts.extend(denial.payload_bytes.map(|bytes| format!("{bytes} B")));
    if !denial.rule.is_empty() {
        parts.push(format!("rule `{}`", denial.rule));
    }
    if !denial.clause.is_empty() {
        parts.push(format!("[{}]", denial.clause));
    }
    parts.join(", ")
}

fn dash_if_empty(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(denial: Denial) -> NodeDenial {
        NodeDenial {
            node: "edge-1".into(),
            denial: Some(Denial {
                unix_ms: 1_763_647_507_000,
                peer: "192.0.2.7:4711".into(),
                listener: "main".into(),
                client_id: "dev".into(),
                ..denial
            }),
        }
    }

    #[test]
    fn refusals_as_a_table_and_as_json() {
        let message = entry(Denial {
            user_kind: UserKind::Verified.into(),
            user: "alice".into(),
            action: "publish".into(),
            reason: "denied_by_rule".into(),
            topic: "a/\u{202e}b".into(),
            qos: Some(1),
            retain: true,
            payload_bytes: Some(5),
            rule: "no-retain".into(),
            ..Denial::default()
        });
        let login = entry(Denial {
            user_kind: UserKind::Hidden.into(),
            user_bytes: 9,
            user_mark: 0x0123_4567_89ab_cdef,
            action: "connect".into(),
            reason: "user_unknown".into(),
            ..Denial::default()
        });
        let both = [message, login];
        let expected = "\
TIME                  NODE    PEER            LISTENER  CLIENT ID  USER                         ACTION   REASON          WHAT
2025-11-20 14:05:07Z  edge-1  192.0.2.7:4711  main      dev        alice                        publish  denied_by_rule  a/\\u{202e}b, QoS 1, RETAIN, 5 B, rule `no-retain`
2025-11-20 14:05:07Z  edge-1  192.0.2.7:4711  main      dev        (hidden: 9 bytes, 01234567)  connect  user_unknown    -
";
        assert_eq!(denials_text(&both, true), expected);
        let rows = denials_text(&both, false);
        assert!(!rows.contains("TIME") && expected.ends_with(&rows));
        let json = denials_json(&both);
        assert_eq!(json[0]["user_kind"], "verified");
        assert_eq!(json[1]["user"], Value::Null);
        assert_eq!(json[1]["user_mark"], "0123456789abcdef");
        assert_eq!(json[0]["payload_bytes"], 5);
    }
}
