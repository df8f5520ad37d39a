//! Commands about the control plane itself: status, audit, backup, and putting a backup back.

use serde_json::json;
use sluice_proto::control::v1::{AuditRequest, AuditResponse, BackupRequest, StatusRequest};
use tokio::time::Instant;

use super::args::{AuditArgs, BackupArgs, RestoreArgs};
use super::connect::{Connection, within};
use super::failure::{Exit, Failure};
use super::new_file::NewFile;
use super::out::{Answer, Out};
use super::render::{self, operations};
use crate::clock::unix_now;
use crate::store::{self, StoreError};

/// Records in one call, the most there can be.
const PAGE_MAX: u32 = 1000;
/// Progress is told after this many bytes more, at the earliest.
const PROGRESS_BYTES: u64 = 16 << 20;

/// `status`.
pub(super) async fn status(connection: &Connection) -> Result<Answer, Failure> {
    let mut client = connection.operations();
    let found = connection.call(client.status(StatusRequest {})).await;
    let status = found.map_err(|status| Failure::from_status(&status))?;
    let text = operations::status_text(&status, unix_now().0);
    Ok(Answer::done(text, operations::status_json(&status)))
}

/// `audit`, over as many pages as it takes.
pub(super) async fn audit(connection: &Connection, args: &AuditArgs) -> Result<Answer, Failure> {
    let mut found = AuditResponse {
        records: Vec::new(),
        chain_is_whole: true,
    };
    let (mut before, mut left) = (args.before, args.limit);
    while left > 0 {
        let limit = left.min(PAGE_MAX);
        let request = AuditRequest {
            before,
            limit: Some(limit),
        };
        let mut client = connection.operations();
        let page = connection.call(client.audit(request)).await;
        let page = page.map_err(|status| Failure::from_status(&status))?;
        let count = u32::try_from(page.records.len()).unwrap_or(u32::MAX);
        before = page.records.last().map(|record| record.number);
        found.chain_is_whole &= page.chain_is_whole;
        found.records.extend(page.records);
        left = if count < limit {
            0
        } else {
            left.saturating_sub(count)
        };
    }
    Ok(Answer {
        text: operations::audit_text(&found),
        json: operations::audit_json(&found),
        exit: if found.chain_is_whole {
            Exit::Done
        } else {
            Exit::Refused
        },
    })
}

/// `backup`.
pub(super) async fn backup(
    connection: &Connection,
    args: &BackupArgs,
    out: &mut Out,
) -> Result<Answer, Failure> {
    let failed = |status| Failure::from_status(&status);
    let mut file = NewFile::begin(&args.output)?;
    let mut client = connection.operations();
    let timeout = connection.call_timeout();
    let begun = Instant::now();
    let mut parts = within(timeout, client.backup(BackupRequest {}))
        .await
        .map_err(failed)?
        .into_inner();
    let (mut bytes, mut told): (u64, u64) = (0, 0);
    // The deadline is for each part: a large store may take its time, a stalled one may not.
    while let Some(part) = within(timeout, parts.message()).await.map_err(failed)? {
        file.write(&part.bytes)?;
        bytes += part.bytes.len() as u64;
        if bytes - told >= PROGRESS_BYTES {
            told = bytes;
            out.progress(&format!("{} written", render::bytes(bytes)));
        }
    }
    if bytes == 0 {
        return Err(Failure::new(
            Exit::Refused,
            "other",
            "the control plane sent an empty backup",
        ));
    }
    file.finish()?;
    let path = args.output.display().to_string();
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let text = format!(
        "{}: {} in {}. It holds password hashes: keep it as you keep the store\n",
        render::clean(&path),
        render::bytes(bytes),
        render::time::span(millis)
    );
    Ok(Answer::done(text, json!({ "file": path, "bytes": bytes })))
}

/// `restore`: without a server, on the files of one that is stopped.
pub(super) async fn restore(args: &RestoreArgs) -> Result<Answer, Failure> {
    if let Err(error) = std::fs::File::open(&args.input) {
        return Err(Failure::file(&args.input, &error));
    }
    let restored = store::restore(&args.input, &args.data_dir, args.force, unix_now())
        .await
        .map_err(|error| refused(&error, args))?;
    let id = render::hex(&restored.id.0);
    let replaced = restored.replaced.map(|path| path.display().to_string());
    let heads = restored.heads;
    let mut text = format!(
        "restored into {}: store {id}, generation {} in force, {} the newest (0: none)\n",
        render::clean(&args.data_dir.display().to_string()),
        heads.released,
        heads.newest
    );
    if let Some(path) = &replaced {
        text.push_str(&format!(
            "the store that was there is kept as {}\n",
            render::clean(path)
        ));
    }
    let json = json!({
        "data_dir": args.data_dir.display().to_string(),
        "store": id,
        "newest": heads.newest,
        "released": heads.released,
        "replaced": replaced,
    });
    Ok(Answer::done(text, json))
}

fn refused(error: &StoreError, args: &RestoreArgs) -> Failure {
    let dir = args.data_dir.display();
    let (code, advice) = match error {
        StoreError::Refused(_) if !args.force => (
            "exists",
            "; --force replaces it and keeps the old one beside it".to_owned(),
        ),
        StoreError::Unavailable(_) => ("unavailable", String::new()),
        StoreError::Corrupt(_) => (
            "damaged",
            format!("; {dir} is as it was: take another backup"),
        ),
        StoreError::Full(_) => ("full", format!("; {dir} is as it was: make room")),
        StoreError::Refused(_)
        | StoreError::Conflict(_)
        | StoreError::NotFound(_)
        | StoreError::Exists(_) => ("refused", String::new()),
    };
    Failure::new(
        Exit::Refused,
        code,
        format!("not restored: {error}{advice}"),
    )
}
