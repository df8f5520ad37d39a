//! The certificate of the gRPC server: read from its files, read again when they change, and watched for its end.
//!
//! New connections get what is newest and good; a pair that cannot be used changes nothing and is told. Who may call is the
//! gate's question.

mod expiry;
mod secured;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_rustls::rustls;

use crate::clock;
use crate::config::TlsFiles;
use crate::domain::UnixMillis;

pub use secured::{Secured, plain, secured};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A certificate that ends sooner than this is warned of.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// Between two warnings of the same.
const WARN_EVERY: Duration = Duration::from_secs(86_400);
const EXPIRES: &str = "sluice_control_certificate_expiration_timestamp_seconds";
const RELOADS: &str = "sluice_control_certificate_reloads_total";

/// What is in use.
#[derive(Clone)]
pub struct InUse {
    config: Arc<ServerConfig>,
    /// When the first certificate of the chain ends.
    pub expires_at: UnixMillis,
    /// Why the files, which were changed, are not used; `None`: they are.
    pub problem: Option<Arc<str>>,
}

/// What is in use, now and later.
pub type Current = watch::Receiver<InUse>;

/// Where the files are.
#[derive(Clone, Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// Which files they are and what state they are in; equal: nothing was changed.
type Stamp = Vec<Option<(u64, u64, i64, i64, u64)>>;

impl Files {
    fn stamp(&self) -> Stamp {
        let paths = [&self.cert, &self.key].into_iter().chain(&self.client_ca);
        let one = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            let (secs, nanos) = (found.mtime(), found.mtime_nsec());
            Some((found.dev(), found.ino(), secs, nanos, found.len()))
        };
        paths.map(one).collect()
    }

    fn read(&self) -> anyhow::Result<InUse> {
        let (cert, key) = (self.cert.display(), self.key.display());
        let chain = certificates("--tls-cert", &self.cert)?;
        let bytes = read("--tls-key", &self.key)?;
        let private = PrivateKeyDer::from_pem_slice(&bytes);
        let private =
            private.with_context(|| format!("--tls-key {key}: no PEM with `PRIVATE KEY` in it"))?;
        let ends = chain.iter().map(|one| expiry::not_after(one));
        let ends: Option<Vec<UnixMillis>> = ends.collect();
        let expires_at = ends.and_then(|ends| ends.into_iter().min());
        let expires_at = expires_at
            .with_context(|| format!("--tls-cert {cert}: it does not say when it ends"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("the versions of TLS")?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates("--tls-client-ca", file)?);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                let shown = file.display();
                builder.with_client_cert_verifier(
                    verifier.with_context(|| format!("--tls-client-ca {shown}"))?,
                )
            }
        };
        let mut config = builder.with_single_cert(chain, private).with_context(|| {
            format!("--tls-cert {cert} and --tls-key {key} cannot be used together")
        })?;
        config.alpn_protocols.push(b"h2".to_vec());
        Ok(InUse {
            config: Arc::new(config),
            expires_at,
            problem: None,
        })
    }
}

fn read(flag: &str, file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("{flag} {}", file.display()))
}

fn certificates(flag: &str, file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let bytes = read(flag, file)?;
    let shown = file.display();
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.with_context(|| format!("{flag} {shown}"))?;
    if found.is_empty() {
        bail!("{flag} {shown}: no PEM with `BEGIN CERTIFICATE` in it");
    }
    Ok(found)
}

/// Reads and checks the certificates, which is an error at the start; then watches the files for as long as the process
/// runs.
pub fn open(files: TlsFiles<'_>) -> anyhow::Result<Current> {
    let files = Files {
        cert: files.cert.clone(),
        key: files.key.clone(),
        client_ca: files.client_ca.cloned(),
    };
    describe();
    let stamp = files.stamp();
    let first = files.read()?;
    warn_of_readers(&files.key);
    let (sender, current) = watch::channel(first);
    tokio::spawn(follow(files, stamp, sender));
    Ok(current)
}

fn describe() {
    describe_gauge!(
        EXPIRES,
        "When the first certificate in the chain of the gRPC server ends, in seconds since 1970."
    );
    describe_counter!(
        RELOADS,
        "Changed certificate files of the gRPC server that were read again, by result (done or failed)."
    );
    for result in ["done", "failed"] {
        counter!(RELOADS, "result" => result).increment(0);
    }
}

fn warn_of_readers(key: &Path) {
    let Ok(metadata) = std::fs::metadata(key) else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(file = %key.display(), mode = format!("{mode:o}"), "the private key can be read by others; make it 0600");
    }
}

/// Looks at the files again and again.
async fn follow(files: Files, mut stamp: Stamp, sender: watch::Sender<InUse>) {
    let mut warnings = Warnings::default();
    loop {
        let expires_at = sender.borrow().expires_at;
        gauge!(EXPIRES).set(expires_at.0 as f64 / 1e3);
        warnings.tell(&files.cert, expires_at, clock::unix_now());
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = sender.closed() => return,
        }
        let (files, before) = (files.clone(), stamp.clone());
        let looked = tokio::task::spawn_blocking(move || {
            // Before they are read: what is changed meanwhile is seen at the next look.
            let stamp = files.stamp();
            (stamp != before).then(|| (stamp, files.read()))
        });
        if let Ok(Some((seen, read))) = looked.await {
            stamp = seen;
            take(read, &sender);
        }
    }
}

fn take(read: anyhow::Result<InUse>, sender: &watch::Sender<InUse>) {
    match read {
        Ok(new) => {
            counter!(RELOADS, "result" => "done").increment(1);
            tracing::info!("the certificate was changed; new connections get the new one");
            sender.send_replace(new);
        }
        Err(error) => {
            counter!(RELOADS, "result" => "failed").increment(1);
            let problem = format!("{error:#}");
            tracing::warn!(
                problem,
                "the certificate's files were changed and cannot be used; the one before stays until they can"
            );
            sender.send_modify(|in_use| in_use.problem = Some(problem.into()));
        }
    }
}

/// How near the end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nearness {
    Far,
    Soon,
    Over,
}

fn nearness(expires_at: UnixMillis, now: UnixMillis) -> Nearness {
    let soon = u64::try_from(SOON.as_millis()).unwrap_or(u64::MAX);
    match expires_at.0.checked_sub(now.0) {
        None | Some(0) => Nearness::Over,
        Some(left) if left <= soon => Nearness::Soon,
        Some(_) => Nearness::Far,
    }
}

/// What was warned of last, and when.
#[derive(Default)]
struct Warnings {
    last: Option<(Nearness, UnixMillis, UnixMillis)>,
}

impl Warnings {
    /// Whether to warn: at once, when it got nearer or another one is no better, and then once a day.
    fn is_due(&mut self, expires_at: UnixMillis, now: UnixMillis) -> bool {
        let nearness = nearness(expires_at, now);
        let every = u64::try_from(WARN_EVERY.as_millis()).unwrap_or(u64::MAX);
        let is_told = self.last.is_some_and(|(last, of, at)| {
            last == nearness && of == expires_at && now.0.saturating_sub(at.0) < every
        });
        if is_told {
            return false;
        }
        self.last = Some((nearness, expires_at, now));
        nearness != Nearness::Far
    }

    fn tell(&mut self, cert: &Path, expires_at: UnixMillis, now: UnixMillis) {
        if !self.is_due(expires_at, now) {
            return;
        }
        let days = expires_at.0.saturating_sub(now.0) / 86_400_000;
        if nearness(expires_at, now) == Nearness::Over {
            tracing::warn!(cert = %cert.display(), "THE CERTIFICATE OF THE GRPC SERVER HAS EXPIRED: nodes and operators refuse it; put another one in its place");
        } else {
            tracing::warn!(cert = %cert.display(), days, "the certificate of the gRPC server expires within 30 days; put another one in its place, it is taken without a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_warned_of_when_it_gets_near_its_end_and_then_daily() {
        const DAY: u64 = 86_400_000;
        let mut warnings = Warnings::default();
        let end = 100 * DAY;
        for (now, expires_at, is_due) in [
            (0, end, false),
            (70 * DAY - 1, end, false),
            (70 * DAY, end, true),
            (70 * DAY + 2000, end, false),
            (71 * DAY, end, true),
            (71 * DAY + 1, end + 1, true),
            (72 * DAY, 200 * DAY, false),
            (200 * DAY, 200 * DAY, true),
            (200 * DAY + 1, 200 * DAY, false),
            (201 * DAY, 200 * DAY, true),
        ] {
            let found = warnings.is_due(UnixMillis(expires_at), UnixMillis(now));
            assert_eq!(found, is_due, "{now} {expires_at}");
        }
    }
}
