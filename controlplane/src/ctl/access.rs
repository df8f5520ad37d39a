//! Commands about tokens. A new secret goes into a file that is made before the call, so that it cannot be lost for want
//! of a place, or to standard output when that was asked for.

use serde_json::{Value, json};
use sluice_proto::control::v1::{
    CreateJoinTokenRequest, CreateTokenRequest, ListJoinTokensRequest, ListTokensRequest,
    RevokeJoinTokenRequest, RevokeTokenRequest, Role as WireRole,
};
use zeroize::Zeroizing;

use super::args::{JoinCreateArgs, SecretTo, TokenCreateArgs, TokenRevokeArgs};
use super::connect::Connection;
use super::failure::Failure;
use super::new_file::NewFile;
use super::out::Answer;
use super::render::access::{self as render, SecretAt};
use super::render::clean;
use crate::clock::unix_now;
use crate::domain::Role;

/// `token create`.
pub(super) async fn create(
    connection: &Connection,
    args: &TokenCreateArgs,
) -> Result<Answer, Failure> {
    let place = begin(&args.secret)?;
    let request = CreateTokenRequest {
        name: args.name.clone(),
        role: to_wire(args.role).into(),
        lifetime_secs: args.lifetime.map(|lifetime| lifetime.as_secs()),
    };
    let mut client = connection.access();
    let made = connection.call(client.create_token(request)).await;
    let made = made.map_err(|status| Failure::from_status(&status))?;
    let secret = Zeroizing::new(made.secret);
    let token = made.token.unwrap_or_default();
    keep(
        "token",
        &token.id,
        &render::token_json(&token),
        &secret,
        place,
    )
}

/// `token join create`.
pub(super) async fn create_join(
    connection: &Connection,
    args: &JoinCreateArgs,
) -> Result<Answer, Failure> {
    let place = begin(&args.secret)?;
    let request = CreateJoinTokenRequest {
        node: args.node.clone(),
        uses: args.uses,
        lifetime_secs: args.lifetime.map(|lifetime| lifetime.as_secs()),
    };
    let mut client = connection.access();
    let made = connection.call(client.create_join_token(request)).await;
    let made = made.map_err(|status| Failure::from_status(&status))?;
    let secret = Zeroizing::new(made.secret);
    let token = made.token.unwrap_or_default();
    keep(
        "join token",
        &token.id,
        &render::join_json(&token),
        &secret,
        place,
    )
}

/// The file for the secret, and its name; `None`: standard output.
type Place = Option<(NewFile, String)>;

fn begin(to: &SecretTo) -> Result<Place, Failure> {
    let Some(path) = &to.output_file else {
        return Ok(None);
    };
    Ok(Some((NewFile::begin(path)?, path.display().to_string())))
}

fn keep(
    what: &str,
    id: &str,
    token: &Value,
    secret: &str,
    place: Place,
) -> Result<Answer, Failure> {
    let Some((mut file, path)) = place else {
        let at = SecretAt::Shown(secret);
        return Ok(Answer::done(
            render::created_text(what, id, at),
            render::created_json(token, at),
        ));
    };
    let written = file
        .write(secret.as_bytes())
        .and_then(|()| file.write(b"\n"))
        .and_then(|()| file.finish());
    written.map_err(|failure| {
        let message = format!(
            "{}; {what} {id} was made and its secret is lost: revoke it",
            failure.message
        );
        Failure { message, ..failure }
    })?;
    let at = SecretAt::File(&path);
    Ok(Answer::done(
        render::created_text(what, id, at),
        render::created_json(token, at),
    ))
}

fn to_wire(role: Role) -> WireRole {
    match role {
        Role::Viewer => WireRole::Viewer,
        Role::Auditor => WireRole::Auditor,
        Role::Operator => WireRole::Operator,
        Role::Admin => WireRole::Admin,
    }
}

/// `token list`.
pub(super) async fn list(connection: &Connection) -> Result<Answer, Failure> {
    let mut client = connection.access();
    let found = connection
        .call(client.list_tokens(ListTokensRequest {}))
        .await;
    let tokens = found
        .map_err(|status| Failure::from_status(&status))?
        .tokens;
    let json = tokens.iter().map(render::token_json).collect::<Value>();
    let text = render::tokens_text(&tokens, unix_now().0);
    Ok(Answer::done(text, json!({ "tokens": json })))
}

/// `token join list`.
pub(super) async fn list_joins(connection: &Connection) -> Result<Answer, Failure> {
    let mut client = connection.access();
    let found = connection
        .call(client.list_join_tokens(ListJoinTokensRequest {}))
        .await;
    let tokens = found
        .map_err(|status| Failure::from_status(&status))?
        .tokens;
    let json = tokens.iter().map(render::join_json).collect::<Value>();
    let text = render::joins_text(&tokens, unix_now().0);
    Ok(Answer::done(text, json!({ "tokens": json })))
}

/// `token revoke`.
pub(super) async fn revoke(
    connection: &Connection,
    args: &TokenRevokeArgs,
) -> Result<Answer, Failure> {
    let request = RevokeTokenRequest {
        id: args.id.clone(),
    };
    let mut client = connection.access();
    let revoked = connection.call(client.revoke_token(request)).await;
    revoked.map_err(|status| Failure::from_status(&status))?;
    Ok(revoked_answer("token", &args.id))
}

/// `token join revoke`.
pub(super) async fn revoke_join(
    connection: &Connection,
    args: &TokenRevokeArgs,
) -> Result<Answer, Failure> {
    let request = RevokeJoinTokenRequest {
        id: args.id.clone(),
    };
    let mut client = connection.access();
    let revoked = connection.call(client.revoke_join_token(request)).await;
    revoked.map_err(|status| Failure::from_status(&status))?;
    Ok(revoked_answer("join token", &args.id))
}

fn revoked_answer(what: &str, id: &str) -> Answer {
    let text = format!("{what} {} is worth nothing from now on\n", clean(id));
    Answer::done(text, json!({ "revoked": id }))
}
