//! Whether the control plane can do its work, asked afresh each time.
//!
//! Owns the question, not the answers' use: the admin server, the health service and `Status` ask it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::store::Store;

/// Longest wait for the store's answer. A store that takes longer holds every call up as well.
const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// See the module documentation.
pub struct Readiness {
    store: Arc<dyn Store>,
    is_serving: AtomicBool,
    /// Held while the store is asked, so that however many ask, it is asked once at a time.
    asking: tokio::sync::Mutex<()>,
}

impl Readiness {
    /// Not serving yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            is_serving: AtomicBool::new(false),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Whether calls and nodes' streams are accepted.
    pub fn set_serving(&self, is_serving: bool) {
        self.is_serving.store(is_serving, Ordering::Relaxed);
    }

    /// Why it is not ready; empty: it is.
    pub async fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.is_serving.load(Ordering::Relaxed) {
            reasons.push("fleet: the gRPC server does not accept calls".to_owned());
        }
        let asked = async {
            let _one = self.asking.lock().await;
            self.store.check().await
        };
        match tokio::time::timeout(STORE_ANSWERS_WITHIN, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => reasons.push(format!("store: {error}")),
            Err(_) => reasons.push("store: it does not answer in time".to_owned()),
        }
        reasons
    }
}
