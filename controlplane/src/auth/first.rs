//! Admin tokens that come as a file: the first one of a new store, and one made offline when all others are lost.
//!
//! Owns the file: mode 0600, never one that existed, on the disk before the token works. Never says the secret elsewhere.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::credential::{Kind, random, written};
use crate::clock;
use crate::domain::{AuditEntry, Name, Role, Token};
use crate::store::Store;

/// Name of the token of a new store.
const FIRST: &str = "admin";

/// Makes the token `admin` of a store that never had one. Gives the path of its file; `None`: there are tokens.
pub async fn first_token(store: &dyn Store, data_dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    if !store.tokens().await?.is_empty() {
        return Ok(None);
    }
    let name = Name::parse(FIRST).context("the first token's name")?;
    let path = token_file(data_dir, &name);
    // Left by a start that was cut short before the store had the token: it opens nothing.
    match std::fs::remove_file(&path) {
        Ok(()) => {
            tracing::warn!(path = %path.display(), "a token file that opens nothing is replaced")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    admin_token(store, data_dir, name).await.map(Some)
}

/// Makes an admin token and writes it to `<data-dir>/<name>.token`. Gives the file's path.
pub async fn admin_token(
    store: &dyn Store,
    data_dir: &Path,
    name: Name,
) -> anyhow::Result<PathBuf> {
    let (id, secret) = random().map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let path = token_file(data_dir, &name);
    let text = written(Kind::Caller, &id, &secret);
    write_new(&path, text.as_bytes()).with_context(|| {
        format!(
            "cannot write the token to {}; move an older file of that name away",
            path.display()
        )
    })?;
    let now = clock::unix_now();
    let audit = AuditEntry {
        at: now,
        who: "control plane".into(),
        action: "token.create",
        what: format!("token {name}"),
        before: String::new(),
        after: format!("role {}, id {}, in a file", Role::Admin.name(), id.0),
        request_id: String::new(),
    };
    let token = Token {
        id,
        name,
        role: Role::Admin,
        hash: secret.hash(),
        created_at: now,
        created_by: "control plane".into(),
        expires_at: None,
        revoked_at: None,
    };
    if let Err(error) = store.add_token(token, audit).await {
        // It opens nothing. Were it left behind, the next attempt would replace it or say so.
        let _ = std::fs::remove_file(&path);
        return Err(error.into());
    }
    Ok(path)
}

fn token_file(data_dir: &Path, name: &Name) -> PathBuf {
    data_dir.join(format!("{name}.token"))
}

/// Writes a file that does not exist, mode 0600, and brings it and its name to the disk.
fn write_new(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let done = file
        .write_all(text)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .and_then(|()| match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        });
    if done.is_err() {
        let _ = std::fs::remove_file(path);
    }
    done
}
