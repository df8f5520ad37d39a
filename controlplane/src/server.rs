//! The gRPC server: one listener for operators and nodes, its limits, health and reflection.
//!
//! Puts services together and decides nothing about calls. Who may call is the gate's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::{CallsLayer, Methods, Underway};
use crate::auth::Gate;
use crate::certificate::{Current, plain, secured};
use crate::connections::{Bounded, Limits};
use crate::readiness::Readiness;

/// Calls at once on one connection.
const STREAMS_MAX: u32 = 128;
/// Headers of one call: a token, an id, and what libraries add.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// A peer that does not answer for this long, twice over, is gone.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Until somebody proves who they are; a TLS handshake is part of it.
const STRANGER_MAX: Duration = Duration::from_secs(30);
/// Between two looks at what the health service says.
const HEALTH_EVERY: Duration = Duration::from_secs(2);

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
    tls: Option<Current>,
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
    let accepted = match tls {
        Some(current) => secured(accepted, current),
        None => plain(accepted),
    };
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER));
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
