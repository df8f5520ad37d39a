//! The control plane itself: status, audit, and the doctor's stages.

use serde_json::{Value, json};
use sluice_proto::control::v1::{AuditRecord, AuditResponse, StatusResponse};

use super::{access, bytes, clean, hex, time};

/// In one look.
pub(crate) fn status_text(status: &StatusResponse, now: u64) -> String {
    let or_nothing = |number: u64| match number {
        0 => "nothing".to_owned(),
        number => format!("generation {number}"),
    };
    let ready = if status.not_ready.is_empty() {
        "yes".to_owned()
    } else {
        format!("no: {}", status.not_ready.join("; "))
    };
    let up = time::span(now.saturating_sub(status.started_unix_ms));
    let encrypted = if status.is_tls { "TLS" } else { "no TLS" };
    let lines = [
        ("version", status.version.clone()),
        (
            "up",
            format!("{up}, since {}", time::utc(status.started_unix_ms)),
        ),
        ("ready", ready),
        ("in force", or_nothing(status.released)),
        ("newest", or_nothing(status.newest)),
        (
            "nodes",
            format!(
                "{} members, {} connected, {} active, {} rejected",
                status.nodes, status.nodes_connected, status.nodes_active, status.nodes_rejected
            ),
        ),
        (
            "store",
            format!("{}, {}", hex(&status.store), bytes(status.store_bytes)),
        ),
        (
            "caller",
            format!(
                "{} ({}), {encrypted}",
                status.caller,
                access::role(status.role())
            ),
        ),
    ];
    let warnings = status.warnings.iter();
    lines
        .into_iter()
        .chain(warnings.map(|warning| ("warning", warning.clone())))
        .map(|(name, value)| format!("{name:<9} {}\n", clean(&value)))
        .collect()
}

/// The same.
pub(crate) fn status_json(status: &StatusResponse) -> Value {
    json!({
        "version": status.version,
        "warnings": status.warnings,
        "store": hex(&status.store),
        "started_unix_ms": status.started_unix_ms,
        "newest": status.newest,
        "released": status.released,
        "nodes": status.nodes,
        "nodes_connected": status.nodes_connected,
        "nodes_active": status.nodes_active,
        "nodes_rejected": status.nodes_rejected,
        "store_bytes": status.store_bytes,
        "not_ready": status.not_ready,
        "caller": status.caller,
        "role": access::role(status.role()),
        "is_tls": status.is_tls,
        "certificate_expires_unix_ms": status.certificate_expires_unix_ms,
        "certificate_problem": status.certificate_problem,
    })
}

/// What an audit chain that does not hold means.
pub(crate) const CHAIN_BROKEN: &str =
    "the chain of records is BROKEN: a record was changed, taken out or put in later";

/// Who did what: a line for each record, and one each for where the caller was, before and after.
pub(crate) fn audit_text(answer: &AuditResponse) -> String {
    let mut text = String::new();
    for record in &answer.records {
        let at = time::utc(record.at_unix_ms);
        let head = format!(
            "{} {at} {} {} {}",
            record.number, record.who, record.action, record.what
        );
        text.push_str(clean(&head).trim_end());
        text.push('\n');
        let lines = [
            ("from", &record.peer),
            ("before", &record.before),
            ("after", &record.after),
        ];
        for (word, value) in lines {
            if !value.is_empty() {
                text.push_str(&format!("    {word}: {}\n", clean(value)));
            }
        }
    }
    text.push_str(if answer.chain_is_whole {
        "the chain of records is whole\n"
    } else {
        CHAIN_BROKEN
    });
    if !answer.chain_is_whole {
        text.push('\n');
    }
    text
}

/// The same.
pub(crate) fn audit_json(answer: &AuditResponse) -> Value {
    let record = |record: &AuditRecord| {
        json!({
            "number": record.number,
            "at_unix_ms": record.at_unix_ms,
            "who": record.who,
            "action": record.action,
            "what": record.what,
            "before": record.before,
            "after": record.after,
            "request_id": record.request_id,
            "peer": record.peer,
            "hash": record.hash,
        })
    };
    json!({
        "records": answer.records.iter().map(record).collect::<Value>(),
        "chain_is_whole": answer.chain_is_whole,
    })
}

#[cfg(test)]
mod tests {
    use sluice_proto::control::v1::Role;

    use super::*;

    #[test]
    fn status_is_one_look() {
        let status = StatusResponse {
            version: "0.1.0".into(),
            store: vec![0xab; 16],
            started_unix_ms: 1_000_000_000_000,
            newest: 7,
            released: 6,
            nodes: 3,
            nodes_connected: 2,
            nodes_active: 1,
            nodes_rejected: 1,
            store_bytes: 4096,
            not_ready: vec!["the store is full".into()],
            caller: "ops".into(),
            role: Role::Admin.into(),
            is_tls: false,
            warnings: vec!["user `x` cannot log in".into()],
            ..StatusResponse::default()
        };
        let expected = "\
version   0.1.0
up        1m 0s, since 2001-09-09 01:46:40Z
ready     no: the store is full
in force  generation 6
newest    generation 7
nodes     3 members, 2 connected, 1 active, 1 rejected
store     abababababababababababababababab, 4.0 KiB
caller    ops (admin), no TLS
warning   user `x` cannot log in
";
        assert_eq!(status_text(&status, 1_000_000_060_000), expected);
        // A clock that is behind the server's does no harm.
        assert!(status_text(&status, 0).contains("up        0ms"));
        assert_eq!(status_json(&status)["role"], "admin");
        assert_eq!(status_json(&status)["store"], "ab".repeat(16));
    }

    #[test]
    fn a_broken_chain_is_said_loudly() {
        let record = AuditRecord {
            number: 3,
            at_unix_ms: 1_000_000_000_000,
            who: "ops".into(),
            action: "policy.release".into(),
            what: "generation 7".into(),
            before: "generation 6".into(),
            after: "generation 7\x1b".into(),
            request_id: "r-1".into(),
            hash: "00".into(),
            peer: "10.0.0.1:50123".into(),
        };
        let mut answer = AuditResponse {
            records: vec![record],
            chain_is_whole: true,
        };
        let expected = "\
3 2001-09-09 01:46:40Z ops policy.release generation 7
    from: 10.0.0.1:50123
    before: generation 6
    after: generation 7\\u{1b}
the chain of records is whole
";
        assert_eq!(audit_text(&answer), expected);
        answer.chain_is_whole = false;
        assert!(audit_text(&answer).contains("BROKEN"));
        assert_eq!(audit_json(&answer)["chain_is_whole"], false);
        assert_eq!(audit_json(&answer)["records"][0]["request_id"], "r-1");
    }
}
