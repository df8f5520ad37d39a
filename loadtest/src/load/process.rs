//! A program of ours that is started for a measurement, and what it says: its log as JSON, each line with the time at
//! which it was read.
//!
//! The log is the one place where both planes say when something happened, without being asked and so without being
//! disturbed. Bounded: lines that nobody takes are dropped once there are too many.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::mpsc;

use super::clock;

/// Lines that wait to be looked at.
const LINES_MAX: usize = 16_384;
/// Last lines kept for an error message.
const TAIL_MAX: usize = 20;

/// Where our own programs are: the folder given, or that of this one.
pub fn programs(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(folder) = given {
        return Ok(folder.to_path_buf());
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program lies in no folder")?;
    Ok(folder.to_path_buf())
}

/// One line of a log.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at_ns: u64,
    /// What it says.
    pub record: Value,
}

impl Line {
    /// True exactly when this is its message.
    pub fn says(&self, message: &str) -> bool {
        self.record.get("message").and_then(Value::as_str) == Some(message)
    }

    /// A number beside the message.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.record.get(field)?.as_u64()
    }

    /// A text beside the message.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.record.get(field)?.as_str()
    }
}

/// A running program; killed, by its own id, and reaped when dropped.
pub struct Process {
    name: &'static str,
    child: Child,
    lines: mpsc::Receiver<Line>,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts a program of `programs` that logs JSON on standard error. It dies with this one.
    pub fn start(
        name: &'static str,
        programs: &Path,
        args: impl IntoIterator<Item = OsString>,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(programs.join("sluice-tether"))
            .arg(programs.join(name))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} and sluice-tether in {}", programs.display()))?;
        let (sender, lines) = mpsc::channel(LINES_MAX);
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(log) = child.stderr.take() {
            let tail = Arc::clone(&tail);
            std::thread::spawn(move || read(log, &sender, &tail));
        }
        Ok(Self {
            name,
            child,
            lines,
            tail,
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this process.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Forgets what was said so far.
    pub fn forget(&mut self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// Waits for a line for which `find` gives something; lines before it are gone then.
    pub async fn wait<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut find: impl FnMut(&Line) -> Option<T>,
    ) -> anyhow::Result<T> {
        let search = async {
            while let Some(line) = self.lines.recv().await {
                if let Some(found) = find(&line) {
                    return Some(found);
                }
            }
            None
        };
        match tokio::time::timeout(within, search).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => anyhow::bail!("{} ended before {what}\n{}", self.name, self.tail()),
            Err(_) => anyhow::bail!(
                "{}: no {what} within {within:?}\n{}",
                self.name,
                self.tail()
            ),
        }
    }

    fn tail(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(log: ChildStderr, lines: &mpsc::Sender<Line>, tail: &Mutex<VecDeque<String>>) {
    for text in BufReader::new(log).lines() {
        let at_ns = clock::now();
        let Ok(text) = text else { return };
        // A line that is not JSON is of a start that failed; the tail shows it.
        if let Ok(record) = serde_json::from_str(&text) {
            // Full: nobody looks just now, and whoever looks later forgets the old ones first.
            let _ = lines.try_send(Line { at_ns, record });
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_MAX {
            tail.pop_front();
        }
        tail.push_back(text);
    }
}
