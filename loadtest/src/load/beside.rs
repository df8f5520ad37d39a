//! A scenario on a thread of its own, while something else is done.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::plan::Plan;
use super::report::Report;
use super::scenario;
use super::sink::Sink;

/// A scenario on its way.
pub struct Beside {
    report: oneshot::Receiver<anyhow::Result<Report>>,
    thread: JoinHandle<()>,
}

impl Beside {
    /// Begins.
    pub fn start(plan: Plan, sink: Arc<Sink>) -> Self {
        let (done, report) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            // Nobody waits any more: fine.
            let _ = done.send(scenario::run(&plan, Some(&sink)));
        });
        Self { report, thread }
    }

    /// True exactly when it is over.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// What came of it.
    pub async fn wait(self) -> anyhow::Result<Report> {
        self.report.await?
    }
}
