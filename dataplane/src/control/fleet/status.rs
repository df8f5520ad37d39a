//! What operators can see of the way to the control plane.
//!
//! A few values behind a lock that is never held for longer than it takes to copy them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Where the link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Nothing was tried yet: the generation on the disk comes first.
    #[default]
    Starting,
    /// An attempt is being made.
    Connecting,
    /// A stream is open.
    Connected,
    /// Between two attempts.
    Waiting,
}

impl LinkState {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Starting,
        Self::Connecting,
        Self::Connected,
        Self::Waiting,
    ];

    /// The value of a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Waiting => "waiting",
        }
    }
}

/// Shown as `/fleet`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FleetView {
    /// This node's name in the fleet.
    pub node: String,
    /// Where its control plane is.
    pub control_plane: String,
    /// Where the link is.
    pub state: LinkState,
    /// Streams opened since the start.
    pub connects: u64,
    /// Attempts that failed and streams that ended since the start.
    pub disconnects: u64,
    /// Why the last one ended, in one line.
    pub last_end: Option<String>,
    /// Number of the generation on the disk; `None`: none is there.
    pub on_disk: Option<u64>,
}

/// Shared by those who change it and those who show it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<FleetView>>);

impl Shared {
    /// Nothing was tried yet.
    pub fn new(node: &str, control_plane: &str) -> Self {
        Self(Arc::new(Mutex::new(FleetView {
            node: node.into(),
            control_plane: control_plane.into(),
            ..FleetView::default()
        })))
    }

    /// How it is.
    pub fn view(&self) -> FleetView {
        self.lock().clone()
    }

    pub(super) fn set(&self, state: LinkState) {
        let mut view = self.lock();
        view.connects += u64::from(state == LinkState::Connected);
        view.state = state;
    }

    pub(super) fn waiting(&self, why: &str) {
        let mut view = self.lock();
        view.state = LinkState::Waiting;
        view.disconnects += 1;
        view.last_end = Some(why.into());
    }

    pub(super) fn on_disk(&self, number: u64) {
        self.lock().on_disk = Some(number);
    }

    fn lock(&self) -> MutexGuard<'_, FleetView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
