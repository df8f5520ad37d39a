//! The gRPC server: one listener for operators and nodes, its limits, its certificates, health and reflection.
//!
//! Puts services together and decides nothing about calls. Who may call is the gate's.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::{CallsLayer, Methods, Underway};
use crate::auth::Gate;
use crate::config::TlsFiles;
use crate::connections::{Bounded, Limits};
use crate::readiness::Readiness;

/// Calls at once on one connection.
const STREAMS_MAX: u32 = 128;
/// Headers of one call: a token, an id, and what libraries add.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// A peer that does not answer for this long, twice over, is gone.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// A TLS handshake. The time until somebody proves who they are is longer, and holds for plaintext as well.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const STRANGER_MAX: Duration = Duration::from_secs(30);
/// Between two looks at what the health service says.
const HEALTH_EVERY: Duration = Duration::from_secs(2);

/// Reads and checks the certificates.
pub fn tls(files: TlsFiles<'_>) -> anyhow::Result<ServerTlsConfig> {
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
    let cert = pem("--tls-cert", files.cert, CERTIFICATE)?;
    let key = pem("--tls-key", files.key, "PRIVATE KEY-----")?;
    warn_of_readers(files.key);
    let mut config = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert, key))
        .timeout(HANDSHAKE_MAX);
    if let Some(file) = files.client_ca {
        let roots = pem("--tls-client-ca", file, CERTIFICATE)?;
        config = config.client_ca_root(Certificate::from_pem(roots));
    }
    // The server makes it again from the same bytes; made here, its errors come before anything is opened.
    Server::builder()
        .tls_config(config.clone())
        .with_context(|| {
            let (cert, key) = (files.cert.display(), files.key.display());
            format!("--tls-cert {cert} and --tls-key {key} cannot be used together")
        })?;
    Ok(config)
}

fn pem(flag: &str, file: &Path, mark: &str) -> anyhow::Result<Vec<u8>> {
    let shown = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("{flag} {shown}"))?;
    let has_mark = bytes
        .windows(mark.len())
        .any(|part| part == mark.as_bytes());
    if !has_mark {
        bail!("{flag} {shown}: no PEM with `{mark}` in it");
    }
    Ok(bytes)
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

/// What is served, and to whom.
pub struct Served {
    /// What is served, see [`methods`].
    pub methods: Methods,
    /// The services.
    pub routes: Routes,
    /// Who may call.
    pub gate: Gate,
    /// What the health service says.
    pub readiness: Arc<Readiness>,
    /// Counts calls.
    pub underway: Underway,
}

/// The methods served, each with counters that begin at zero.
pub fn methods() -> anyhow::Result<Methods> {
    let descriptors = [
        sluice_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let methods = Methods::new(&descriptors).context("the description of the services")?;
    methods.count_from_zero();
    Ok(methods)
}

/// Serves until `stopping` turns true and the last connection has ended.
pub async fn serve(
    socket: TcpListener,
    connections_max: usize,
    tls: Option<ServerTlsConfig>,
    served: Served,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let Served {
        methods,
        routes,
        gate,
        readiness,
        underway,
    } = served;
    let names = methods.services();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(sluice_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // The older of the two is what many tools still ask for.
    let reflection_alpha = reflection().build_v1alpha().context("reflection")?;
    let reflection = reflection().build_v1().context("reflection")?;
    let (reporter, health) = tonic_health::server::health_reporter();
    // Known by name before the first call, else who asks early is told that there is no such service.
    for name in &names {
        let not_yet = ServingStatus::NotServing;
        reporter.set_service_status(name, not_yet).await;
    }
    tokio::spawn(report_health(reporter, names, readiness, stopping.clone()));

    let limits = Limits {
        connections_max,
        stranger_max: STRANGER_MAX,
    };
    let accepted = Bounded::new(socket, limits, tls.is_some(), "grpc").into_channel();
    let mut server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER));
    if let Some(tls) = tls {
        server = server.tls_config(tls).context("TLS")?;
    }
    let stopped = {
        let mut stopping = stopping.clone();
        async move { drop(stopping.wait_for(|is_stopping| *is_stopping).await) }
    };
    stopping.mark_unchanged();
    server
        .layer(CallsLayer::new(Arc::new(methods), gate, underway, stopping))
        .add_routes(routes)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stopped)
        .await
        .context("the gRPC server")
}

/// Says for each service whether it can do its work, until the server stops.
async fn report_health(
    reporter: HealthReporter,
    names: Vec<String>,
    readiness: Arc<Readiness>,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        let is_stopping = *stopping.borrow_and_update();
        let status = if !is_stopping && readiness.reasons().await.is_empty() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in &names {
            reporter.set_service_status(name, status).await;
        }
        if is_stopping {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH_EVERY) => {}
            changed = stopping.changed() => if changed.is_err() { return },
        }
    }
}
