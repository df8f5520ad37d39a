//! What nodes call: Enroll and Connect, from messages to calls and back.

use sluice_proto::v1;
use sluice_proto::v1::fleet_server::FleetServer;
use tonic::{Request, Response, Status, Streaming};

use super::stream::{Outgoing, serve};
use super::{Fleet, NODES_MAX};
use crate::auth::{Call, JOIN_TOKEN_REFUSED, Peer};
use crate::clock;
use crate::domain::{AuditEntry, Name, NodeRecord, Secret};
use crate::store::StoreError;

/// Longest message from a node: a chunk of an inventory with names of 900 bytes, a page of sessions with ids of 4 KiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

impl Fleet {
    /// The service, with its bounds.
    pub fn server(&self) -> FleetServer<Self> {
        FleetServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl v1::fleet_server::Fleet for Fleet {
    type ConnectStream = Outgoing;

    async fn connect(
        &self,
        request: Request<Streaming<v1::FromNode>>,
    ) -> Result<Response<Outgoing>, Status> {
        let name = self.inner.gate.node(&request)?;
        let address = address(&request);
        let member = self.inner.members().get(&name).cloned();
        let member = member.ok_or_else(|| Status::unauthenticated("the node is not a member"))?;
        if *self.inner.is_closing.borrow() {
            return Err(Status::unavailable("the control plane stops"));
        }
        serve(&self.inner, &member, address, request.into_inner()).map(Response::new)
    }

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let busy = |_| Status::resource_exhausted("many nodes join just now; come back later");
        let _place = self.inner.enrolling.try_acquire().map_err(busy)?;
        let text = &request.get_ref().join_token;
        let token = self.inner.gate.join_token(&request, text).await?;
        let wish = request.get_ref();
        let name = Name::parse(&wish.node).ok_or_else(|| {
            Status::invalid_argument("`node` must be 1 to 64 of letters, digits, `-`, `_` and `.`")
        })?;
        let secret: [u8; 32] = wish
            .secret
            .as_slice()
            .try_into()
            .map_err(|_| Status::invalid_argument("`secret` must be 32 bytes"))?;
        if token.node.as_ref().is_some_and(|node| *node != name) {
            return Err(Status::permission_denied(
                "the join token is for another node",
            ));
        }
        if self.inner.is_full_for(&name) {
            return Err(Status::resource_exhausted(format!(
                "the fleet has {NODES_MAX} nodes already; remove some"
            )));
        }
        let now = clock::unix_now();
        let audit = AuditEntry {
            at: now,
            who: format!("node {name}"),
            action: "node.enroll",
            what: format!("node {name}"),
            before: String::new(),
            after: format!("with the join token {}", token.id.0),
            request_id: request_id(&request),
            peer: peer(&request),
        };
        let record = NodeRecord {
            name,
            hash: Secret::new(secret).hash(),
            enrolled_at: now,
            join_token: token.id,
        };
        let enrolled = self.enroll(record, audit).await;
        enrolled.map_err(|error| refused(&error))?;
        let store = self.inner.gate.store().id();
        Ok(Response::new(v1::EnrollResponse {
            store: store.0.to_vec(),
        }))
    }
}

/// The contract's answers, which say less than the store does.
fn refused(error: &StoreError) -> Status {
    match error {
        StoreError::Refused(_) | StoreError::NotFound(_) => {
            Status::unauthenticated(JOIN_TOKEN_REFUSED)
        }
        StoreError::Exists(_) => Status::already_exists(
            "a node of that name is a member, with another secret; remove it first",
        ),
        StoreError::Conflict(_) => Status::aborted(error.to_string()),
        StoreError::Full(_) => Status::resource_exhausted(error.to_string()),
        StoreError::Corrupt(_) | StoreError::Unavailable(_) => {
            Status::unavailable(error.to_string())
        }
    }
}

/// Of the call; empty when nobody gave it one.
fn request_id<T>(request: &Request<T>) -> String {
    let call = request.extensions().get::<Call>();
    call.map(|call| call.request_id.to_string())
        .unwrap_or_default()
}

/// Address and port of the peer, for records; empty when it has none.
fn peer<T>(request: &Request<T>) -> String {
    let peer = request.extensions().get::<Peer>();
    peer.map(Peer::shown).unwrap_or_default()
}

/// Of the peer, without the port; empty when it has none.
fn address<T>(request: &Request<T>) -> String {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.map(|peer| peer.address.ip());
    let ip = peer.or_else(|| request.remote_addr().map(|address| address.ip()));
    ip.map(|ip| ip.to_canonical().to_string())
        .unwrap_or_default()
}
