//! Who may call: operators' tokens, join tokens, members of the fleet.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use subtle::ConstantTimeEq;

use super::failure::{Done, damaged};
use super::value::{hash, instant, instant_if, name, text, time, token_id};
use crate::domain::{JoinToken, Name, NodeRecord, Role, SecretHash, Token, TokenId, UnixMillis};
use crate::store::{Enrolled, StoreError};

/// Tokens of each sort that are kept. Beyond, the oldest that works no more is forgotten; when all work, a new one is
/// refused.
pub(super) const TOKENS_MAX: i64 = 10_000;
/// Members of the fleet.
pub(super) const NODES_MAX: i64 = 100_000;

/// All operators' tokens, by name.
pub(super) async fn tokens(connection: &mut SqliteConnection) -> Done<Vec<Token>> {
    let rows = sqlx::query("SELECT * FROM token ORDER BY name, created_at, id")
        .fetch_all(connection)
        .await?;
    rows.iter().map(token).collect()
}

fn token(row: &SqliteRow) -> Done<Token> {
    let role: &str = row.try_get("role")?;
    Ok(Token {
        id: token_id(row, "id")?,
        name: name(row, "name")?,
        role: Role::ALL
            .into_iter()
            .find(|known| known.name() == role)
            .ok_or_else(|| damaged("a token has a role that is not known"))?,
        hash: hash(row)?,
        created_at: instant(row, "created_at")?,
        created_by: text(row, "created_by")?,
        expires_at: instant_if(row, "expires_at")?,
        revoked_at: instant_if(row, "revoked_at")?,
    })
}

/// Stores an operator's token.
pub(super) async fn add_token(connection: &mut SqliteConnection, token: Token) -> Done<()> {
    let taken =
        sqlx::query("SELECT 1 FROM token WHERE id = ?1 OR (name = ?2 AND revoked_at IS NULL)")
            .bind(token.id.0.as_ref())
            .bind(token.name.as_str())
            .fetch_optional(&mut *connection)
            .await?;
    if taken.is_some() {
        return Err(StoreError::Exists(format!("a token named {}", token.name)).into());
    }
    if is_full(connection, "SELECT count(*) FROM token", TOKENS_MAX).await? {
        let forgotten = sqlx::query(
            "DELETE FROM token WHERE id IN (
                 SELECT id FROM token WHERE revoked_at IS NOT NULL OR expires_at <= ?1
                 ORDER BY created_at, id LIMIT 1)",
        )
        .bind(time(token.created_at))
        .execute(&mut *connection)
        .await?;
        if forgotten.rows_affected() == 0 {
            return Err(too_many(TOKENS_MAX, "tokens that work"));
        }
    }
    sqlx::query(
        "INSERT INTO token (id, name, role, hash, created_at, created_by, expires_at, revoked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )
    .bind(token.id.0.as_ref())
    .bind(token.name.as_str())
    .bind(token.role.name())
    .bind(token.hash.0.as_slice())
    .bind(time(token.created_at))
    .bind(token.created_by)
    .bind(token.expires_at.map(time))
    .bind(token.revoked_at.map(time))
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes an operator's token; false when it was revoked before.
pub(super) async fn revoke_token(
    connection: &mut SqliteConnection,
    id: &TokenId,
    at: UnixMillis,
) -> Done<bool> {
    let row = sqlx::query("SELECT * FROM token WHERE id = ?1")
        .bind(id.0.as_ref())
        .fetch_optional(&mut *connection)
        .await?
        .ok_or_else(|| StoreError::NotFound("token of that id".to_owned()))?;
    let found = token(&row)?;
    if found.revoked_at.is_some() {
        return Ok(false);
    }
    if found.role == Role::Admin && found.works(at) {
        let other = sqlx::query(
            "SELECT 1 FROM token WHERE role = 'admin' AND id <> ?1 AND revoked_at IS NULL
                 AND (expires_at IS NULL OR expires_at > ?2) LIMIT 1",
        )
        .bind(id.0.as_ref())
        .bind(time(at))
        .fetch_optional(&mut *connection)
        .await?;
        if other.is_none() {
            return Err(StoreError::Refused(format!(
                "{} is the last admin token that works; make another one first",
                found.name
            ))
            .into());
        }
    }
    sqlx::query("UPDATE token SET revoked_at = ?2 WHERE id = ?1")
        .bind(id.0.as_ref())
        .bind(time(at))
        .execute(connection)
        .await?;
    Ok(true)
}

/// All join tokens, newest first.
pub(super) async fn join_tokens(connection: &mut SqliteConnection) -> Done<Vec<JoinToken>> {
    let rows = sqlx::query("SELECT * FROM join_token ORDER BY created_at DESC, rowid DESC")
        .fetch_all(connection)
        .await?;
    rows.iter().map(join_token).collect()
}

fn join_token(row: &SqliteRow) -> Done<JoinToken> {
    let node: Option<&str> = row.try_get("node")?;
    Ok(JoinToken {
        id: token_id(row, "id")?,
        node: node.map(|_| name(row, "node")).transpose()?,
        uses_left: row.try_get("uses_left")?,
        hash: hash(row)?,
        created_at: instant(row, "created_at")?,
        created_by: text(row, "created_by")?,
        expires_at: instant(row, "expires_at")?,
        revoked_at: instant_if(row, "revoked_at")?,
    })
}

/// Stores a join token.
pub(super) async fn add_join_token(
    connection: &mut SqliteConnection,
    token: JoinToken,
) -> Done<()> {
    if find_join_token(connection, &token.id).await?.is_some() {
        return Err(StoreError::Exists("a join token of that id".to_owned()).into());
    }
    if is_full(connection, "SELECT count(*) FROM join_token", TOKENS_MAX).await? {
        let forgotten = sqlx::query(
            "DELETE FROM join_token WHERE id IN (
                 SELECT id FROM join_token
                 WHERE revoked_at IS NOT NULL OR expires_at <= ?1 OR uses_left = 0
                 ORDER BY created_at, rowid LIMIT 1)",
        )
        .bind(time(token.created_at))
        .execute(&mut *connection)
        .await?;
        if forgotten.rows_affected() == 0 {
            return Err(too_many(TOKENS_MAX, "join tokens that work"));
        }
    }
    sqlx::query(
        "INSERT INTO join_token (id, node, uses_left, hash, created_at, created_by, expires_at, revoked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )
    .bind(token.id.0.as_ref())
    .bind(token.node.as_ref().map(Name::as_str))
    .bind(token.uses_left)
    .bind(token.hash.0.as_slice())
    .bind(time(token.created_at))
    .bind(token.created_by)
    .bind(time(token.expires_at))
    .bind(token.revoked_at.map(time))
    .execute(connection)
    .await?;
    Ok(())
}

async fn find_join_token(
    connection: &mut SqliteConnection,
    id: &TokenId,
) -> Done<Option<JoinToken>> {
    let row = sqlx::query("SELECT * FROM join_token WHERE id = ?1")
        .bind(id.0.as_ref())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(join_token).transpose()
}

/// Revokes a join token; false when it was revoked before.
pub(super) async fn revoke_join_token(
    connection: &mut SqliteConnection,
    id: &TokenId,
    at: UnixMillis,
) -> Done<bool> {
    let found = find_join_token(connection, id)
        .await?
        .ok_or_else(|| StoreError::NotFound("join token of that id".to_owned()))?;
    if found.revoked_at.is_some() {
        return Ok(false);
    }
    sqlx::query("UPDATE join_token SET revoked_at = ?2 WHERE id = ?1")
        .bind(id.0.as_ref())
        .bind(time(at))
        .execute(connection)
        .await?;
    Ok(true)
}

/// All members, by name.
pub(super) async fn nodes(connection: &mut SqliteConnection) -> Done<Vec<NodeRecord>> {
    let rows = sqlx::query("SELECT * FROM node ORDER BY name")
        .fetch_all(connection)
        .await?;
    rows.iter().map(node).collect()
}

fn node(row: &SqliteRow) -> Done<NodeRecord> {
    Ok(NodeRecord {
        name: name(row, "name")?,
        hash: hash(row)?,
        enrolled_at: instant(row, "enrolled_at")?,
        join_token: token_id(row, "join_token")?,
    })
}

/// One member.
pub(super) async fn find_node(
    connection: &mut SqliteConnection,
    wanted: &Name,
) -> Done<Option<NodeRecord>> {
    let row = sqlx::query("SELECT * FROM node WHERE name = ?1")
        .bind(wanted.as_str())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(node).transpose()
}

/// Makes a node a member and uses its join token once.
pub(super) async fn enroll(connection: &mut SqliteConnection, node: &NodeRecord) -> Done<Enrolled> {
    if let Some(member) = find_node(connection, &node.name).await? {
        if is_same(&member.hash, &node.hash) && member.join_token == node.join_token {
            return Ok(Enrolled::Again);
        }
        return Err(StoreError::Exists(format!("a node named {}", node.name)).into());
    }
    let token = find_join_token(connection, &node.join_token)
        .await?
        .ok_or_else(|| StoreError::NotFound("join token of that id".to_owned()))?;
    if let Some(why) = why_not(&token, node) {
        return Err(StoreError::Refused(format!("the join token {why}")).into());
    }
    if is_full(connection, "SELECT count(*) FROM node", NODES_MAX).await? {
        return Err(too_many(NODES_MAX, "nodes"));
    }
    sqlx::query("UPDATE join_token SET uses_left = uses_left - 1 WHERE id = ?1")
        .bind(token.id.0.as_ref())
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO node (name, hash, enrolled_at, join_token) VALUES (?1, ?2, ?3, ?4)")
        .bind(node.name.as_str())
        .bind(node.hash.0.as_slice())
        .bind(time(node.enrolled_at))
        .bind(node.join_token.0.as_ref())
        .execute(connection)
        .await?;
    Ok(Enrolled::Joined)
}

fn why_not(token: &JoinToken, node: &NodeRecord) -> Option<&'static str> {
    if token.revoked_at.is_some() {
        Some("was revoked")
    } else if node.enrolled_at >= token.expires_at {
        Some("has expired")
    } else if token.node.as_ref().is_some_and(|only| *only != node.name) {
        Some("is for another node")
    } else if token.uses_left == 0 {
        Some("is used up")
    } else {
        None
    }
}

/// Compares in a time that does not tell.
fn is_same(one: &SecretHash, other: &SecretHash) -> bool {
    one.0.ct_eq(&other.0).into()
}

/// Ends a membership.
pub(super) async fn remove_node(connection: &mut SqliteConnection, wanted: &Name) -> Done<()> {
    let removed = sqlx::query("DELETE FROM node WHERE name = ?1")
        .bind(wanted.as_str())
        .execute(connection)
        .await?;
    if removed.rows_affected() == 0 {
        return Err(StoreError::NotFound(format!("node {wanted}")).into());
    }
    Ok(())
}

async fn is_full(
    connection: &mut SqliteConnection,
    counting: &'static str,
    max: i64,
) -> Done<bool> {
    let row = sqlx::query(counting).fetch_one(connection).await?;
    let count: i64 = row.try_get(0)?;
    Ok(count >= max)
}

fn too_many(max: i64, what: &str) -> super::failure::Failed {
    StoreError::Refused(format!("there are {max} {what}, and no more are kept")).into()
}
