//! Tokens. A secret is shown only where it was asked for.

use serde_json::{Value, json};
use sluice_proto::control::v1::{JoinToken, Role, Token};

use super::{Table, clean, time};

/// The word for a role.
pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "unknown",
        Role::Viewer => "viewer",
        Role::Auditor => "auditor",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// Where a new secret went.
#[derive(Clone, Copy)]
pub(crate) enum SecretAt<'a> {
    /// Into a file of this name.
    File(&'a str),
    /// To standard output.
    Shown(&'a str),
}

/// A new token. With a secret to show, the text is that and nothing else, so that it can be captured.
pub(crate) fn created_text(what: &str, id: &str, secret: SecretAt<'_>) -> String {
    match secret {
        SecretAt::File(path) => {
            format!("{} {}: the secret is in {}\n", what, clean(id), clean(path))
        }
        SecretAt::Shown(secret) => format!("{}\n", clean(secret)),
    }
}

/// The same.
pub(crate) fn created_json(token: &Value, secret: SecretAt<'_>) -> Value {
    match secret {
        SecretAt::File(path) => json!({ "token": token, "secret_file": path }),
        SecretAt::Shown(secret) => json!({ "token": token, "secret": secret }),
    }
}

/// `works`, `expired`, `revoked`; `now` decides about the lifetime.
fn standing(expires: Option<u64>, revoked: Option<u64>, now: u64) -> &'static str {
    match (revoked, expires) {
        (Some(_), _) => "revoked",
        (None, Some(at)) if at <= now => "expired",
        (None, _) => "works",
    }
}

/// Tokens of operators.
pub(crate) fn tokens_text(tokens: &[Token], now: u64) -> String {
    let mut table = Table::new(&["ID", "NAME", "ROLE", "STATE", "MADE", "BY", "EXPIRES"]);
    for token in tokens {
        table.row([
            token.id.clone(),
            token.name.clone(),
            role(token.role()).into(),
            standing(token.expires_unix_ms, token.revoked_unix_ms, now).into(),
            time::utc(token.created_unix_ms),
            token.created_by.clone(),
            time::utc_or_dash(token.expires_unix_ms),
        ]);
    }
    table.text()
}

/// One of them.
pub(crate) fn token_json(token: &Token) -> Value {
    json!({
        "id": token.id,
        "name": token.name,
        "role": role(token.role()),
        "created_unix_ms": token.created_unix_ms,
        "created_by": token.created_by,
        "expires_unix_ms": token.expires_unix_ms,
        "revoked_unix_ms": token.revoked_unix_ms,
    })
}

/// Tokens with which nodes join.
pub(crate) fn joins_text(tokens: &[JoinToken], now: u64) -> String {
    if tokens.is_empty() {
        return "no join tokens\n".into();
    }
    let mut table = Table::new(&["ID", "NODE", ">USES LEFT", "STATE", "MADE", "BY", "EXPIRES"]);
    for token in tokens {
        let state = match standing(Some(token.expires_unix_ms), token.revoked_unix_ms, now) {
            "works" if token.uses_left == 0 => "used up",
            state => state,
        };
        table.row([
            token.id.clone(),
            token.node.clone().unwrap_or_else(|| "any".into()),
            token.uses_left.to_string(),
            state.into(),
            time::utc(token.created_unix_ms),
            token.created_by.clone(),
            time::utc(token.expires_unix_ms),
        ]);
    }
    table.text()
}

/// One of them.
pub(crate) fn join_json(token: &JoinToken) -> Value {
    json!({
        "id": token.id,
        "node": token.node,
        "uses_left": token.uses_left,
        "created_unix_ms": token.created_unix_ms,
        "created_by": token.created_by,
        "expires_unix_ms": token.expires_unix_ms,
        "revoked_unix_ms": token.revoked_unix_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000_000;

    #[test]
    fn tokens_show_whether_they_work() {
        let token = |id: &str, expires, revoked| Token {
            id: id.into(),
            name: "ci".into(),
            role: Role::Operator.into(),
            created_unix_ms: NOW,
            created_by: "ops".into(),
            expires_unix_ms: expires,
            revoked_unix_ms: revoked,
        };
        let tokens = [
            token("aaaa", None, None),
            token("bbbb", Some(NOW), None),
            token("cccc", None, Some(NOW)),
        ];
        let expected = "\
ID    NAME  ROLE      STATE    MADE                  BY   EXPIRES
aaaa  ci    operator  works    2001-09-09 01:46:40Z  ops  -
bbbb  ci    operator  expired  2001-09-09 01:46:40Z  ops  2001-09-09 01:46:40Z
cccc  ci    operator  revoked  2001-09-09 01:46:40Z  ops  -
";
        assert_eq!(tokens_text(&tokens, NOW), expected);
        assert_eq!(token_json(&tokens[1])["expires_unix_ms"], NOW);
    }

    #[test]
    fn join_tokens_show_whether_they_work() {
        let token = |node: Option<&str>, uses_left, expires| JoinToken {
            id: "aaaa".into(),
            node: node.map(Into::into),
            uses_left,
            created_unix_ms: NOW,
            created_by: "ops".into(),
            expires_unix_ms: expires,
            revoked_unix_ms: None,
        };
        let tokens = [token(Some("edge-1"), 0, NOW + 1), token(None, 3, NOW + 1)];
        let expected = "\
ID    NODE    USES LEFT  STATE    MADE                  BY   EXPIRES
aaaa  edge-1          0  used up  2001-09-09 01:46:40Z  ops  2001-09-09 01:46:40Z
aaaa  any             3  works    2001-09-09 01:46:40Z  ops  2001-09-09 01:46:40Z
";
        assert_eq!(joins_text(&tokens, NOW), expected);
        assert_eq!(join_json(&tokens[1])["node"], Value::Null);
    }

    #[test]
    fn a_secret_is_shown_alone_or_not_at_all() {
        let shown = created_text("token", "aaaa", SecretAt::Shown("slc_aaaa_s"));
        assert_eq!(shown, "slc_aaaa_s\n");
        let filed = created_text("token", "aaaa", SecretAt::File("ci.token"));
        assert_eq!(filed, "token aaaa: the secret is in ci.token\n");
        let json = created_json(&json!({ "id": "aaaa" }), SecretAt::File("ci.token"));
        assert_eq!(json["secret"], Value::Null);
    }
}
