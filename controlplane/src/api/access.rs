//! `sluice.control.v1.Access`: who may call, as messages. The [`Gate`] does it; this reads and writes messages.

use sluice_proto::control::v1 as wire;
use tonic::{Request, Response, Status};
use wire::access_server::{Access, AccessServer};

use super::status;
use crate::auth::{Gate, Kind, random, written};
use crate::clock;
use crate::domain::{JoinToken, Name, Role, Token, TokenId, UnixMillis};

/// Requests hold a name and a few numbers.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Longest life of a token of a caller that does not live until revoked: ten years.
const TOKEN_LIFETIME_SECS_MAX: u64 = 315_360_000;
/// Longest life of a join token: a year.
const JOIN_LIFETIME_SECS_MAX: u64 = 31_536_000;
const JOIN_LIFETIME_SECS: u64 = 3600;
const JOIN_USES_MAX: u32 = 10_000;
/// Join tokens that can be used, at most: each is looked at when a node joins.
const JOIN_TOKENS_MAX: usize = 1000;
/// Tokens that work no more, in one list, at most: the newest.
const LISTED_DEAD_MAX: usize = 1000;

/// See the module documentation.
pub struct AccessApi {
    gate: Gate,
}

impl AccessApi {
    /// Answers for this gate.
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }

    /// Ready to be served.
    pub fn into_service(self) -> AccessServer<Self> {
        AccessServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Access for AccessApi {
    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Admin)?;
        let asked = request.into_inner();
        let name = name(&asked.name)?;
        let role = role_from_wire(asked.role)?;
        let lifetime = lifetime(asked.lifetime_secs, TOKEN_LIFETIME_SECS_MAX)?;
        let (id, secret) = random().map_err(|_| no_randomness())?;
        let now = clock::unix_now();
        let token = Token {
            id,
            name,
            role,
            hash: secret.hash(),
            created_at: now,
            created_by: caller.name.clone(),
            expires_at: lifetime.map(|secs| after(now, secs)),
            revoked_at: None,
        };
        let mut audit = caller.audit("token.create", format!("token {}", token.name));
        audit.after = format!(
            "role {}, id {}, {}",
            role.name(),
            token.id.0,
            until(lifetime)
        );
        let text = written(Kind::Caller, &token.id, &secret);
        self.gate
            .create_token(token.clone(), audit)
            .await
            .map_err(|error| status(&error))?;
        tracing::info!(name = %token.name, role = role.name(), by = caller.name, "token created");
        Ok(Response::new(wire::CreateTokenResponse {
            token: Some(token_to_wire(&token)),
            secret: text.as_str().to_owned(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<wire::ListTokensRequest>,
    ) -> Result<Response<wire::ListTokensResponse>, Status> {
        self.gate.caller(&request, Role::Admin)?;
        let tokens = self.gate.store().tokens().await;
        let tokens = tokens.map_err(|error| status(&error))?;
        let now = clock::unix_now();
        let shown = without_old(tokens, |token| token.works(now), |token| token.created_at);
        Ok(Response::new(wire::ListTokensResponse {
            tokens: shown.iter().map(token_to_wire).collect(),
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<wire::RevokeTokenRequest>,
    ) -> Result<Response<wire::RevokeTokenResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Admin)?;
        let id = token_id(request.into_inner().id)?;
        let audit = caller.audit("token.revoke", format!("token id {}", id.0));
        self.gate
            .revoke_token(id.clone(), clock::unix_now(), audit)
            .await
            .map_err(|error| status(&error))?;
        tracing::info!(id = &*id.0, by = caller.name, "token revoked");
        Ok(Response::new(wire::RevokeTokenResponse {}))
    }

    async fn create_join_token(
        &self,
        request: Request<wire::CreateJoinTokenRequest>,
    ) -> Result<Response<wire::CreateJoinTokenResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Admin)?;
        let asked = request.into_inner();
        let node = asked.node.as_deref().map(name).transpose()?;
        let uses_max = if node.is_some() { 1 } else { JOIN_USES_MAX };
        let uses = asked.uses.unwrap_or(1);
        if !(1..=uses_max).contains(&uses) {
            return Err(Status::invalid_argument(format!(
                "uses: expected 1 to {uses_max}"
            )));
        }
        let lifetime = lifetime(asked.lifetime_secs, JOIN_LIFETIME_SECS_MAX)?;
        let lifetime = lifetime.unwrap_or(JOIN_LIFETIME_SECS);
        let (id, secret) = random().map_err(|_| no_randomness())?;
        let now = clock::unix_now();
        let token = JoinToken {
            id,
            node,
            uses_left: uses,
            hash: secret.hash(),
            created_at: now,
            created_by: caller.name.clone(),
            expires_at: after(now, lifetime),
            revoked_at: None,
        };
        let mut audit = caller.audit("join-token.create", format!("join token {}", token.id.0));
        let node = token.node.as_ref().map_or("any node", Name::as_str);
        audit.after = format!("for {node}, uses {uses}, {}", until(Some(lifetime)));
        let text = written(Kind::Join, &token.id, &secret);
        self.gate
            .create_join_token(token.clone(), JOIN_TOKENS_MAX, audit)
            .await
            .map_err(|error| status(&error))?;
        tracing::info!(id = &*token.id.0, by = caller.name, "join token created");
        Ok(Response::new(wire::CreateJoinTokenResponse {
            token: Some(join_token_to_wire(&token)),
            secret: text.as_str().to_owned(),
        }))
    }

    async fn list_join_tokens(
        &self,
        request: Request<wire::ListJoinTokensRequest>,
    ) -> Result<Response<wire::ListJoinTokensResponse>, Status> {
        self.gate.caller(&request, Role::Admin)?;
        let tokens = self.gate.store().join_tokens().await;
        let tokens = tokens.map_err(|error| status(&error))?;
        let now = clock::unix_now();
        let works = |token: &JoinToken| token.works(now);
        let shown = without_old(tokens, works, |token| token.created_at);
        Ok(Response::new(wire::ListJoinTokensResponse {
            tokens: shown.iter().map(join_token_to_wire).collect(),
        }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<wire::RevokeJoinTokenRequest>,
    ) -> Result<Response<wire::RevokeJoinTokenResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Admin)?;
        let id = token_id(request.into_inner().id)?;
        let audit = caller.audit("join-token.revoke", format!("join token {}", id.0));
        self.gate
            .store()
            .revoke_join_token(&id, clock::unix_now(), audit)
            .await
            .map_err(|error| status(&error))?;
        tracing::info!(id = &*id.0, by = caller.name, "join token revoked");
        Ok(Response::new(wire::RevokeJoinTokenResponse {}))
    }
}

/// All that work, and the newest of the others, in the order given.
fn without_old<T>(
    mut tokens: Vec<T>,
    works: impl Fn(&T) -> bool,
    created_at: impl Fn(&T) -> UnixMillis,
) -> Vec<T> {
    let dead = tokens.iter().filter(|token| !works(token));
    let mut times: Vec<_> = dead.map(&created_at).collect();
    if times.len() > LISTED_DEAD_MAX {
        times.sort_unstable();
        let oldest_shown = times.get(times.len() - LISTED_DEAD_MAX).copied();
        tokens.retain(|token| works(token) || Some(created_at(token)) >= oldest_shown);
    }
    tokens
}

#[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
fn name(text: &str) -> Result<Name, Status> {
    Name::parse(text).ok_or_else(|| {
        Status::invalid_argument("a name is 1 to 64 of letters, digits, `-`, `_` and `.`")
    })
}

#[allow(clippy::result_large_err)] // as above
fn token_id(text: String) -> Result<TokenId, Status> {
    if text.is_empty() || text.len() > 64 {
        return Err(Status::not_found("there is no token with that id"));
    }
    Ok(TokenId(text.into()))
}

#[allow(clippy::result_large_err)] // as above
fn role_from_wire(role: i32) -> Result<Role, Status> {
    match wire::Role::try_from(role) {
        Ok(wire::Role::Viewer) => Ok(Role::Viewer),
        Ok(wire::Role::Auditor) => Ok(Role::Auditor),
        Ok(wire::Role::Operator) => Ok(Role::Operator),
        Ok(wire::Role::Admin) => Ok(Role::Admin),
        Ok(wire::Role::Unspecified) | Err(_) => Err(Status::invalid_argument(
            "role: expected viewer, auditor, operator or admin",
        )),
    }
}

/// For the wire.
pub(super) fn role_to_wire(role: Role) -> wire::Role {
    match role {
        Role::Viewer => wire::Role::Viewer,
        Role::Auditor => wire::Role::Auditor,
        Role::Operator => wire::Role::Operator,
        Role::Admin => wire::Role::Admin,
    }
}

#[allow(clippy::result_large_err)] // as above
fn lifetime(secs: Option<u64>, secs_max: u64) -> Result<Option<u64>, Status> {
    match secs {
        Some(secs) if !(1..=secs_max).contains(&secs) => Err(Status::invalid_argument(format!(
            "lifetime: expected 1 to {secs_max} seconds"
        ))),
        Some(_) | None => Ok(secs),
    }
}

fn after(now: UnixMillis, secs: u64) -> UnixMillis {
    UnixMillis(now.0.saturating_add(secs.saturating_mul(1000)))
}

fn until(lifetime_secs: Option<u64>) -> String {
    lifetime_secs.map_or_else(
        || "until revoked".to_owned(),
        |secs| format!("for {secs} s"),
    )
}

fn no_randomness() -> Status {
    Status::unavailable("the kernel gives no randomness")
}

fn token_to_wire(token: &Token) -> wire::Token {
    wire::Token {
        id: token.id.0.to_string(),
        name: token.name.as_str().to_owned(),
        role: role_to_wire(token.role).into(),
        created_unix_ms: token.created_at.0,
        created_by: token.created_by.clone(),
        expires_unix_ms: token.expires_at.map(|at| at.0),
        revoked_unix_ms: token.revoked_at.map(|at| at.0),
    }
}

fn join_token_to_wire(token: &JoinToken) -> wire::JoinToken {
    wire::JoinToken {
        id: token.id.0.to_string(),
        node: token.node.as_ref().map(|node| node.as_str().to_owned()),
        uses_left: token.uses_left,
        created_unix_ms: token.created_at.0,
        created_by: token.created_by.clone(),
        expires_unix_ms: token.expires_at.0,
        revoked_unix_ms: token.revoked_at.map(|at| at.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_all_that_work_and_a_bounded_rest() {
        let tokens: Vec<u64> = (0..5000).collect();
        let works = |token: &u64| token.is_multiple_of(100);
        let shown = without_old(tokens, works, |token| UnixMillis(*token));
        assert_eq!(shown.iter().filter(|token| works(token)).count(), 50);
        let dead: Vec<_> = shown.iter().filter(|token| !works(token)).collect();
        assert_eq!(dead.len(), LISTED_DEAD_MAX);
        assert!(dead.iter().all(|token| **token > 3900), "the newest");
    }

    #[test]
    fn lifetimes_have_bounds() {
        for (secs, is_good) in [
            (None, true),
            (Some(0), false),
            (Some(1), true),
            (Some(10), true),
            (Some(11), false),
        ] {
            assert_eq!(lifetime(secs, 10).is_ok(), is_good, "{secs:?}");
        }
        assert_eq!(after(UnixMillis(5), u64::MAX), UnixMillis(u64::MAX));
    }
}
