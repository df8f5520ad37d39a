//! `sluice.control.v1.Operations`: the control plane itself. How it is, who did what, and a copy of all it keeps.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::control::v1 as wire;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::operations_server::{Operations, OperationsServer};

use super::access::role_to_wire;
use super::status;
use crate::auth::Gate;
use crate::certificate::Current;
use crate::domain::{AuditRecord, Role, UnixMillis};
use crate::fleet::Fleet;
use crate::readiness::Readiness;
use crate::release::InForce;
use crate::store::{Chain, Store, Verified};

/// Requests hold a name and a few numbers.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Bytes in one part of a backup: well below what every client takes in one message.
const PART_BYTES_MAX: usize = 64 * 1024;
/// Parts read ahead of the caller.
const PARTS_AHEAD: usize = 4;
/// Longest wait for a caller who does not read the next part.
const PART_TAKEN_WITHIN: Duration = Duration::from_secs(30);
/// Records in an answer, at most and by default.
const AUDIT_MAX: u32 = 1000;
const AUDIT: u32 = 100;
/// Longest wait for a caller who does not read how far the audit log was read.
const PROGRESS_TAKEN_WITHIN: Duration = Duration::from_secs(30);
/// How copies in the making are called.
const COPY_PREFIX: &str = "backup-";
const COPY_SUFFIX: &str = ".part";

/// See the module documentation.
pub struct OperationsApi {
    gate: Gate,
    fleet: Fleet,
    in_force: InForce,
    readiness: Arc<Readiness>,
    certificate: Option<Current>,
    data_dir: PathBuf,
    started_at: UnixMillis,
    backups: Arc<Semaphore>,
    verifying: Arc<Semaphore>,
}

impl OperationsApi {
    /// Copies are made in `data_dir`; what an earlier process left of them there is removed.
    pub fn new(
        gate: Gate,
        fleet: Fleet,
        in_force: InForce,
        readiness: Arc<Readiness>,
        certificate: Option<Current>,
        data_dir: PathBuf,
        started_at: UnixMillis,
    ) -> Self {
        remove_left_copies(&data_dir);
        Self {
            gate,
            fleet,
            in_force,
            readiness,
            certificate,
            data_dir,
            started_at,
            backups: Arc::new(Semaphore::new(1)),
            verifying: Arc::new(Semaphore::new(1)),
        }
    }

    /// Ready to be served.
    pub fn into_service(self) -> OperationsServer<Self> {
        OperationsServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Operations for OperationsApi {
    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let caller = self.gate.caller(&request, Role::Viewer)?;
        let store = self.gate.store();
        let heads = store.heads().await.map_err(|error| status(&error))?;
        let store_bytes = store.size_bytes().await.map_err(|error| status(&error))?;
        let counts = self.fleet.counts();
        let in_force = self.in_force.borrow().clone();
        let certificate = self
            .certificate
            .as_ref()
            .map(|current| current.borrow().clone());
        let problem = certificate
            .as_ref()
            .and_then(|in_use| in_use.problem.as_deref());
        Ok(Response::new(wire::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: store.id().0.to_vec(),
            started_unix_ms: self.started_at.0,
            newest: heads.newest,
            released: heads.released,
            nodes: counts.nodes,
            nodes_connected: counts.connected,
            nodes_active: counts.active,
            nodes_rejected: counts.rejected,
            store_bytes,
            not_ready: self.readiness.reasons().await,
            role: role_to_wire(caller.role).into(),
            is_tls: caller.is_tls,
            caller: caller.name,
            warnings: in_force.map_or_else(Vec::new, |in_force| in_force.warnings.to_vec()),
            certificate_problem: problem.unwrap_or_default().to_owned(),
            certificate_expires_unix_ms: certificate.map(|in_use| in_use.expires_at.0),
        }))
    }

    async fn audit(
        &self,
        request: Request<wire::AuditRequest>,
    ) -> Result<Response<wire::AuditResponse>, Status> {
        self.gate.caller(&request, Role::Auditor)?;
        let asked = request.into_inner();
        let limit = asked.limit.unwrap_or(AUDIT);
        if !(1..=AUDIT_MAX).contains(&limit) {
            return Err(Status::invalid_argument(format!(
                "limit: expected 1 to {AUDIT_MAX}"
            )));
        }
        let store = self.gate.store();
        let records = store.audit(asked.before, limit).await;
        let records = records.map_err(|error| status(&error))?;
        let chain_is_whole = store.audit_is_whole().await;
        Ok(Response::new(wire::AuditResponse {
            records: records.into_iter().map(record_to_wire).collect(),
            chain_is_whole: chain_is_whole.map_err(|error| status(&error))?,
        }))
    }

    type VerifyAuditStream = ReceiverStream<Result<wire::VerifyAuditProgress, Status>>;

    async fn verify_audit(
        &self,
        request: Request<wire::VerifyAuditRequest>,
    ) -> Result<Response<Self::VerifyAuditStream>, Status> {
        self.gate.caller(&request, Role::Auditor)?;
        let permit = Arc::clone(&self.verifying).try_acquire_owned();
        let permit = permit.map_err(|_| {
            Status::resource_exhausted("the audit log is being read for another caller; try again")
        })?;
        let store = Arc::clone(self.gate.store());
        let (parts, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let _permit = permit;
            verify(&*store, parts).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type BackupStream = ReceiverStream<Result<wire::BackupPart, Status>>;

    async fn backup(
        &self,
        request: Request<wire::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let caller = self.gate.caller(&request, Role::Admin)?;
        let permit = Arc::clone(&self.backups).try_acquire_owned();
        let permit = permit
            .map_err(|_| Status::resource_exhausted("another backup is being taken; try again"))?;
        let audit = caller.audit("store.backup", "store");
        let store = Arc::clone(self.gate.store());
        let data_dir = self.data_dir.clone();
        let (parts, receiver) = mpsc::channel(PARTS_AHEAD);
        // In a task of its own, so that the copy is removed whatever becomes of the caller.
        tokio::spawn(async move {
            let copied = async {
                let copy = Copy::at(&data_dir)?;
                store
                    .backup(&copy.path)
                    .await
                    .map_err(|error| status(&error))?;
                store.note(audit).await.map_err(|error| status(&error))?;
                // The name goes when `copy` does; the open file is enough.
                std::fs::File::open(&copy.path).map_err(|error| unreadable(&error))
            };
            match copied.await {
                Ok(file) => send_parts(file, parts, permit),
                Err(error) => drop(parts.send(Err(error)).await),
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Reads the audit log part by part, until its end or for as long as the caller reads on.
async fn verify(store: &dyn Store, parts: mpsc::Sender<Result<wire::VerifyAuditProgress, Status>>) {
    let mut from = Verified::default();
    loop {
        let part = store.verify_audit(from).await;
        let is_last = !matches!(&part, Ok(part) if part.found == Chain::More);
        let told = part.map_err(|error| status(&error)).map(|part| {
            from = part.upto;
            wire::VerifyAuditProgress {
                verified: part.upto.number,
                newest: part.newest,
                is_done: is_last,
                broken_at: (part.found == Chain::Broken).then_some(part.upto.number + 1),
            }
        });
        let sent = tokio::time::timeout(PROGRESS_TAKEN_WITHIN, parts.send(told)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// A copy in the making; its file's name is removed when this is dropped.
struct Copy {
    path: PathBuf,
}

impl Copy {
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    fn at(data_dir: &Path) -> Result<Self, Status> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|_| Status::unavailable("the kernel gives no randomness"))?;
        let number = u64::from_ne_bytes(bytes);
        let path = data_dir.join(format!("{COPY_PREFIX}{number:016x}{COPY_SUFFIX}"));
        Ok(Self { path })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a copy of the store cannot be removed; remove it");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Reads the file on a thread for blocking work and sends its parts, until the caller has them all, goes away, or does
/// not read any more.
fn send_parts(
    mut file: std::fs::File,
    parts: mpsc::Sender<Result<wire::BackupPart, Status>>,
    permit: OwnedSemaphorePermit,
) {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        loop {
            let part = match next_part(&mut file) {
                Ok(None) => return,
                Ok(Some(part)) => Ok(part),
                Err(error) => Err(unreadable(&error)),
            };
            let is_last = part.is_err();
            let sent = tokio::time::timeout(PART_TAKEN_WITHIN, parts.send(part));
            if is_last || !matches!(runtime.block_on(sent), Ok(Ok(()))) {
                return;
            }
        }
    });
}

fn next_part(file: &mut impl Read) -> std::io::Result<Option<wire::BackupPart>> {
    let mut bytes = Vec::with_capacity(PART_BYTES_MAX);
    file.take(PART_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok((!bytes.is_empty()).then(|| wire::BackupPart {
        bytes: bytes.into(),
    }))
}

fn unreadable(error: &std::io::Error) -> Status {
    Status::unavailable(format!("the copy of the store cannot be read: {error}"))
}

/// What a process that was killed in the middle left behind.
fn remove_left_copies(data_dir: &Path) {
    let entries = std::fs::read_dir(data_dir).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(COPY_PREFIX) && name.ends_with(COPY_SUFFIX) {
            drop(Copy { path: entry.path() });
        }
    }
}

fn record_to_wire(record: AuditRecord) -> wire::AuditRecord {
    wire::AuditRecord {
        hash: record
            .hash
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        number: record.number,
        at_unix_ms: record.at.0,
        who: record.who,
        action: record.action,
        what: record.what,
        before: record.before,
        after: record.after,
        request_id: record.request_id,
        peer: record.peer.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_sent_in_parts_and_whole() {
        for len in [0, 1, PART_BYTES_MAX, PART_BYTES_MAX + 1, 3 * PART_BYTES_MAX] {
            let file: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (mut rest, mut sent) = (file.as_slice(), Vec::new());
            while let Some(part) = next_part(&mut rest).expect("memory") {
                assert!((1..=PART_BYTES_MAX).contains(&part.bytes.len()));
                sent.extend_from_slice(&part.bytes);
            }
            assert!(sent == file, "{len}");
        }
    }

    #[test]
    fn only_left_copies_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["backup-00.part", "backup-mine.db", "store.db"] {
            std::fs::write(folder.path().join(name), b"x").expect("written");
        }
        remove_left_copies(folder.path());
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["backup-mine.db", "store.db"]);
    }
}
