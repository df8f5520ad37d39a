//! This node as a member of a fleet: the stream to its control plane, and what of it outlives the process.
//!
//! Owns joining, the stream, the rows of the generation in force, and the state directory. It applies nothing itself:
//! generations are offered to the control thread like any other policy. The data plane never waits for a control plane.
//!
//! ```text
//!  link  dial, join, back off   <->  node   feeds the agent, carries out what it decides
//!                                     |
//!                                    agent  decides; no stream, no disk, no clock
//!                                     |
//!                                    disk   last good generation, identity
//! ```

mod advice;
mod agent;
mod back_off;
mod denials;
mod disk;
mod link;
mod node;
mod report;
mod status;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity as Certified};
use zeroize::Zeroizing;

use super::random::random;
use super::{ControlHandle, PolicySource};
use crate::config::FleetSettings;

use advice::Way;
use disk::{Identity, StateDir};
pub use status::{FleetView, LinkState, Shared};

/// Longest certificate or key file.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// A member whose files are open and in order; nothing runs yet.
pub struct Member {
    node: String,
    link: link::Link,
    state: Arc<StateDir>,
    shared: Shared,
}

/// Opens the state directory, makes this node's secret where there is none, and reads certificates. Blocks; for the start.
pub fn open(settings: &FleetSettings) -> anyhow::Result<Member> {
    let at = || format!("--state-dir {}", settings.state_dir.display());
    let state = Arc::new(StateDir::open(&settings.state_dir).with_context(at)?);
    let identity = identity(settings, &state).with_context(at)?;
    let shared = Shared::new(&settings.node, &settings.url.to_string());
    Ok(Member {
        node: settings.node.clone(),
        link: link::Link {
            dial: dial(endpoint(settings)?),
            way: match (&settings.ca_file, &settings.certificate_files) {
                (None, _) => Way::Plain,
                (Some(_), None) => Way::Tls,
                (Some(_), Some(_)) => Way::MutualTls,
            },
            identity,
            join_token_file: settings.join_token_file.clone(),
            state: Arc::clone(&state),
            shared: shared.clone(),
        },
        state,
        shared,
    })
}

impl Member {
    /// What operators can see of it.
    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }

    /// Runs until the control thread is gone.
    pub async fn run(self, shards: u16, source: PolicySource, control: ControlHandle) {
        let agent = agent::Agent::new(self.node, shards.into());
        let node = node::Node::new(agent, source, control, self.state, self.shared);
        node.run(self.link).await;
    }
}

fn identity(settings: &FleetSettings, state: &StateDir) -> anyhow::Result<Identity> {
    let identity = match state.read_identity()? {
        Some(identity) if identity.node != settings.node => anyhow::bail!(
            "it belongs to node `{}`, not to `{}`: give each node a directory of its own",
            identity.node,
            settings.node
        ),
        Some(identity) => identity,
        None => {
            let identity = Identity {
                node: settings.node.clone(),
                secret: Zeroizing::new(random().context("randomness from the kernel")?),
                is_member: false,
            };
            state.write_identity(&identity)?;
            identity
        }
    };
    if !identity.is_member {
        let file = settings.join_token_file.as_ref().context(
            "this node is no member of the fleet yet: make a join token (`sluicectl token join create --output-file FILE`) and give its file as --join-token-file",
        )?;
        // It is read when there is a connection, and again at each attempt; a wrong path is said at once.
        std::fs::File::open(file).with_context(|| {
            format!(
                "the node has to join first: --join-token-file {}",
                file.display()
            )
        })?;
    }
    Ok(identity)
}

fn endpoint(settings: &FleetSettings) -> anyhow::Result<Endpoint> {
    let endpoint = link::with_pings(Endpoint::from(settings.url.clone()));
    let Some(ca) = &settings.ca_file else {
        return Ok(endpoint);
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(ca)?));
    if let Some((certificate, key)) = &settings.certificate_files {
        tls = tls.identity(Certified::from_pem(pem(certificate)?, pem(key)?));
    }
    endpoint
        .tls_config(tls)
        .context("--control-plane-ca, --control-plane-cert, --control-plane-key")
}

fn dial(endpoint: Endpoint) -> link::Dial {
    Box::new(move || {
        let endpoint = endpoint.clone();
        Box::pin(async move { endpoint.connect().await })
    })
}

fn pem(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read;
    let mut bytes = Zeroizing::new(Vec::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut bytes))
        .with_context(|| path.display().to_string())?;
    Ok(bytes)
}
