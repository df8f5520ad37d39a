//! One started program: its process id, its log, its end.
//!
//! Every program runs under `sluice-tether`, so that it dies with the test process whatever happens there. Signals go to
//! the process id we started, never to a name.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::patience::Deadline;

/// Longest run of a program that ends by itself: a document of 100,000 users and as many rules, checked, stored and
/// delivered by programs that were built without optimisation, on a machine that does something else as well.
const FINISH_MAX: Duration = Duration::from_secs(600);
/// Lines of log kept of one program; the oldest go first.
const LOG_LINES_MAX: usize = 20_000;

/// What to start.
#[derive(Clone, Debug)]
pub struct Program {
    /// What to call it in messages.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// What its environment has more than ours.
    pub envs: Vec<(OsString, OsString)>,
}

/// A program that has run to its end.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; `None`: a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A started program. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: Arc<Log>,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: VecDeque<String>,
    /// How many lines were dropped from the front.
    dropped: usize,
    /// How many of stdout and stderr have ended.
    ended: usize,
}

impl Program {
    /// A program by path.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            args: Vec::new(),
            envs: Vec::new(),
        }
    }
    /// Adds an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }
    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.args.push(arg.as_ref().to_owned());
        }
        self
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let mut command = Command::new(sibling("sluice-tether")?);
        command
            .arg(&self.path)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        spawn_from_lasting_thread(command)
            .with_context(|| format!("cannot start {}", self.path.display()))
    }

    /// Runs it to its end, which must come by itself in [`FINISH_MAX`].
    pub fn finish(self) -> anyhow::Result<Finished> {
        let mut child = self.spawn()?;
        let (done, is_done) = channel::<()>();
        let id = child.id();
        let watch = thread::spawn(move || {
            let is_late = is_done.recv_timeout(FINISH_MAX) == Err(RecvTimeoutError::Timeout);
            // Not reaped before this thread is joined, so the number is still that program's.
            if let (true, Some(pid)) = (is_late, i32::try_from(id).ok().and_then(Pid::from_raw)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let stderr = child.stderr.take().context("no pipe")?;
        let stderr = thread::spawn(move || read_text(stderr));
        let stdout = read_text(child.stdout.take().context("no pipe")?);
        let stderr = stderr.join().unwrap_or_default();
        // Both pipes end with the program.
        drop(done);
        let _ = watch.join();
        let code = child.wait()?.code();
        Ok(Finished {
            code,
            stdout,
            stderr,
        })
    }

    /// Starts it.
    pub fn start(self) -> anyhow::Result<Running> {
        let mut child = self.spawn()?;
        let log = Arc::new(Log::default());
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for pipe in pipes.into_iter().flatten() {
            let log = Arc::clone(&log);
            thread::spawn(move || log.read(pipe));
        }
        Ok(Running {
            name: self.name,
            child,
            log,
        })
    }
}

impl Running {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, in KiB.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(&path)?;
        let mut lines = status.lines();
        let found = lines.find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let found = found.with_context(|| format!("no VmRSS in {path}"))?;
        Ok(found.parse()?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for a line of its log for which `find` gives something, from line number `from` on.
    pub fn wait_log<T>(
        &self,
        from: usize,
        what: &str,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Deadline::generous();
        let mut state = self.log.lock();
        let mut seen = from;
        loop {
            for line in state.lines.iter().skip(seen.saturating_sub(state.dropped)) {
                if let Some(found) = find(line) {
                    return Ok(found);
                }
            }
            seen = state.dropped + state.lines.len();
            if state.ended == 2 || deadline.has_passed() {
                let how = if state.ended == 2 {
                    "it ended"
                } else {
                    "it did not say so"
                };
                drop(state);
                bail!(
                    "{}: waited for {what}, but {how}\n{}",
                    self.name,
                    self.log_tail(60)
                );
            }
            let waited = self.log.changed.wait_timeout(state, deadline.left());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line of its log that contains `words` and an address with a port, and gives the address.
    pub fn wait_address(&self, words: &str) -> anyhow::Result<SocketAddr> {
        self.wait_log(0, words, |line| {
            line.contains(words).then(|| address_in(line)).flatten()
        })
    }

    /// The number of the next line of its log, for [`Running::wait_log`].
    pub fn log_mark(&self) -> usize {
        let state = self.log.lock();
        state.dropped + state.lines.len()
    }

    /// The last `count` lines of its log.
    pub fn log_tail(&self, count: usize) -> String {
        let state = self.log.lock();
        let skip = state.lines.len().saturating_sub(count);
        let mut tail = format!("--- last lines of {} ---\n", self.name);
        for line in state.lines.iter().skip(skip) {
            tail.push_str(line);
            tail.push('\n');
        }
        tail
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Deadline::generous();
        let mut state = self.log.lock();
        // Both pipes end with the process; that is the event, and the wait below then returns at once.
        while state.ended < 2 {
            if deadline.has_passed() {
                drop(state);
                bail!("{} does not end\n{}", self.name, self.log_tail(60));
            }
            let waited = self.log.changed.wait_timeout(state, deadline.left());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.child.wait().context("wait")
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Calls `then` from a thread of its own when the program has ended.
    pub fn on_end(&self, then: impl FnOnce() + Send + 'static) {
        let log = Arc::clone(&self.log);
        thread::spawn(move || {
            let running = |state: &mut LogState| state.ended < 2;
            let waited = log.changed.wait_while(log.lock(), running);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            then();
        });
    }

    /// All it said, to its end.
    pub fn output(&mut self) -> anyhow::Result<(ExitStatus, String)> {
        let status = self.wait_exit()?;
        let state = self.log.lock();
        let lines: Vec<&str> = state.lines.iter().map(String::as_str).collect();
        Ok((status, lines.join("\n")))
    }

    /// True exactly when it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, pipe: Box<dyn Read + Send>) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = pipe.read_until(b'\n', &mut line);
            let mut state = self.lock();
            match count {
                Ok(0) | Err(_) => {
                    state.ended += 1;
                    drop(state);
                    self.changed.notify_all();
                    return;
                }
                Ok(_) => {
                    if state.lines.len() == LOG_LINES_MAX {
                        state.lines.pop_front();
                        state.dropped += 1;
                    }
                    let text = String::from_utf8_lossy(&line);
                    state.lines.push_back(text.trim_end().to_owned());
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}

/// The first address with a port in a line of a log.
fn address_in(line: &str) -> Option<SocketAddr> {
    line.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))
        .find_map(|word| word.parse::<SocketAddr>().ok())
        .filter(|address| address.port() != 0)
}

fn read_text(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is what there is.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A binary of this workspace: beside this executable, or one folder up when this is a test.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("where is this executable?")?;
    let mut folder = here.parent().context("executable without a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps without a folder")?;
    }
    let path = folder.join(name);
    if !path.is_file() {
        bail!(
            "{} is not built. `make test` builds it; by hand: cargo build --workspace --bins",
            path.display()
        );
    }
    Ok(path)
}

/// An empty folder for one test process, under the build folder; folders of processes that are gone are removed.
pub fn scratch(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("where is this executable?")?;
    let mut root = here.parent().context("executable without a folder")?;
    if root.ends_with("deps") {
        root = root.parent().context("deps without a folder")?;
    }
    let root = root.join("scratch");
    std::fs::create_dir_all(&root)?;
    for entry in std::fs::read_dir(&root)?.flatten() {
        let owner = entry.file_name().to_string_lossy().parse::<u32>();
        if owner.is_ok_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let folder = root.join(std::process::id().to_string()).join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A port nobody has at the moment. Somebody else may take it before it is used; whoever uses it tries again then.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The kernel ties a child to the *thread* that started it, and test threads are short. This one stays.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Request = (Command, Sender<io::Result<Child>>);
    static STARTER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (requests, to_start) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in to_start {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (answer, answered) = channel();
    let gone = |_| io::Error::other("the starting thread is gone");
    starter
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| io::Error::other("the starting thread is gone"))?;
    answered.recv().map_err(gone)?
}
