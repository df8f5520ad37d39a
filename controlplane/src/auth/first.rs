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

/// What a restore records, also in a store without tokens.
const RESTORE: &str = "store.restore";
/// Restores of a store that was never used, one after the other, are fewer.
const ASKED_FOR_RECORDS: u32 = 1000;
/// Name of the token of a new store.
const FIRST: &str = "admin";

/// Old token files that are kept, at most.
const KEPT_MAX: u32 = 1000;

/// Makes the token `admin` of a store that never had one. Gives the path of its file; `None`: there are tokens. An error for
/// a store that has lost its tokens.
pub async fn first_token(store: &dyn Store, data_dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    if !store.tokens().await?.is_empty() {
        return Ok(None);
    }
    // The first token is the first thing that is recorded.
    let records = store.audit(None, ASKED_FOR_RECORDS).await?;
    if records.iter().any(|record| record.action != RESTORE) {
        let dir = data_dir.display();
        anyhow::bail!(
            "the store is damaged: it has an audit log and no tokens, not even revoked ones; nothing was changed. Restore a \
             backup (`sluicectl restore --input BACKUP --data-dir {dir} --force`), or go on with what is left after \
             `sluice-controlplane token --data-dir {dir} --name rescue`"
        );
    }
    let name = Name::parse(FIRST).context("the first token's name")?;
    let path = token_file(data_dir, &name);
    // Left by a start that was cut short before the store had the token, or by another store: it opens nothing here.
    if let Some(kept) = move_away(&path).with_context(|| path.display().to_string())? {
        tracing::warn!(kept = %kept.display(), "a token file of another store was there; it is kept under another name");
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
        peer: String::new(),
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

/// Gives a file that exists a name that no other has.
fn move_away(path: &Path) -> std::io::Result<Option<PathBuf>> {
    for number in 1..=KEPT_MAX {
        let mut kept = path.as_os_str().to_owned();
        kept.push(format!(".{number}"));
        match std::fs::hard_link(path, &kept) {
            Ok(()) => {
                std::fs::remove_file(path)?;
                return Ok(Some(kept.into()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other(
        "too many old token files are kept; remove some",
    ))
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
