//! Programs that `compare` measures: how each is configured as the plainest proxy it can be, started and stopped.
//!
//! Owns the configuration files (in a temporary folder) and the child processes. Every subject gets one worker on one
//! core, the same upstream and no logging of connections; Sluice also gets a policy with as many rules as asked.

use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::clock;
use super::target::Target;

/// A subject must accept connections by then.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a subject may take to end before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// No proxy: what generator and sink cost by themselves.
    Direct,
    /// `sluice-dataplane` from the folder of this program.
    Sluice,
    /// nginx with the stream module.
    Nginx,
    /// HAProxy in TCP mode.
    Haproxy,
    /// The bare epoll forwarder of `bench/`.
    Epoll,
    /// The bare io_uring forwarder of `bench/`.
    Uring,
    /// The forwarder on monoio of `bench/`.
    Monoio,
    /// The forwarder on glommio of `bench/glommio/`.
    Glommio,
}

/// Names on the command line.
const PROGRAMS: [(&str, Program); 8] = [
    ("direct", Program::Direct),
    ("sluice", Program::Sluice),
    ("nginx", Program::Nginx),
    ("haproxy", Program::Haproxy),
    ("epoll", Program::Epoll),
    ("uring", Program::Uring),
    ("monoio", Program::Monoio),
    ("glommio", Program::Glommio),
];

/// How a subject is started, by the words behind its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// `+unix`: the upstream is reached by Unix socket.
    unix: bool,
    /// `+waitN`: latency budget in microseconds (Sluice and the io_uring forwarder); 0 is off.
    wait_micros: u32,
    /// `+epoll`: Sluice runs on its epoll engine.
    epoll_engine: bool,
    /// `+before`: the program of the other build, see [`Surroundings::before`].
    before: bool,
}

/// A subject as named on the command line: `name`, `name+unix+wait300`, or `label=tcp://host:port@pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// Started by us.
    Started {
        /// Which one.
        program: Program,
        /// How.
        manner: Manner,
        /// As written.
        label: String,
    },
    /// Runs already, with the sink as its upstream.
    Given {
        /// Name in the table.
        label: String,
        /// Its listener.
        target: Target,
        /// Its process.
        pid: u32,
    },
}

/// Why a subject cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    /// Neither a known program nor `label=address@pid`.
    #[error(
        "`{0}`: known are direct, sluice, nginx, haproxy, epoll, uring, monoio, glommio, or label=tcp://host:port@pid"
    )]
    Unknown(String),
    /// An option that this program does not have.
    #[error(
        "`{0}`: `+{1}` is no option of it (+unix; +waitN for sluice and uring; +epoll for sluice; +before for our own)"
    )]
    Option(String, String),
}

impl FromStr for Spec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        if let Some((label, rest)) = text.split_once('=') {
            let given = || {
                let (target, pid) = rest.rsplit_once('@')?;
                Some(Self::Given {
                    label: label.into(),
                    target: target.parse().ok()?,
                    pid: pid.parse().ok()?,
                })
            };
            return given().ok_or_else(|| BadSpec::Unknown(text.into()));
        }
        let mut words = text.split('+');
        let name = words.next().unwrap_or_default();
        let program = PROGRAMS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, program)| *program)
            .ok_or_else(|| BadSpec::Unknown(text.into()))?;
        let mut manner = Manner::default();
        for option in words {
            let waits = matches!(program, Program::Sluice | Program::Uring);
            match option.strip_prefix("wait").map(str::parse) {
                Some(Ok(micros)) if waits => manner.wait_micros = micros,
                None if option == "unix" => manner.unix = true,
                None if option == "epoll" && program == Program::Sluice => {
                    manner.epoll_engine = true;
                }
                None if option == "before" && program.is_ours() => manner.before = true,
                _ => return Err(BadSpec::Option(text.into(), option.into())),
            }
        }
        Ok(Self::Started {
            program,
            manner,
            label: text.into(),
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { label, .. } | Self::Given { label, .. } => f.write_str(label),
        }
    }
}

impl Spec {
    /// True exactly when it is a program of another build.
    pub fn is_before(&self) -> bool {
        matches!(self, Self::Started { manner, .. } if manner.before)
    }

    /// What to do about a program that is missing, where it is not obvious.
    pub fn how_to_get(&self) -> &'static str {
        match self {
            Self::Started {
                program: Program::Glommio,
                ..
            } => " (make glommio)",
            Self::Started { .. } | Self::Given { .. } => "",
        }
    }

    /// False when its program is not on this machine.
    pub fn is_installed(&self, around: &Surroundings) -> bool {
        match self {
            Self::Given { .. } => true,
            Self::Started {
                program, manner, ..
            } => program.file().is_empty() || around.find(*program, *manner).is_some(),
        }
    }
}

impl Program {
    /// True exactly when it is built here.
    fn is_ours(self) -> bool {
        match self {
            Self::Sluice | Self::Epoll | Self::Uring | Self::Monoio | Self::Glommio => true,
            Self::Direct | Self::Nginx | Self::Haproxy => false,
        }
    }

    /// Name of the executable; empty when there is none.
    fn file(self) -> &'static str {
        match self {
            Self::Direct => "",
            Self::Sluice => "sluice-dataplane",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Epoll => "forward_epoll",
            Self::Uring => "forward_uring",
            Self::Monoio => "forward_monoio",
            Self::Glommio => "forward_glommio",
        }
    }
}

/// What a subject is given.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The sink by TCP.
    pub sink_tcp: SocketAddr,
    /// The sink by Unix socket.
    pub sink_unix: PathBuf,
    /// Core to run on.
    pub core: usize,
    /// Rules in the policy of Sluice.
    pub rules: u32,
    /// A policy document to use instead; `{listen}`, `{upstream}` and `{latency_budget}` are filled in.
    pub policy: Option<PathBuf>,
    /// Where our own programs are.
    pub programs: PathBuf,
    /// Where those of another build are, to be measured beside these.
    pub before: Option<PathBuf>,
}

impl Surroundings {
    /// Looks in our own folder first, then where systems keep programs. Debian has proxies in `/usr/sbin`, which is not in
    /// the search path of everyone. Of the other build, only its folder will do.
    fn find(&self, program: Program, manner: Manner) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = if manner.before {
            self.before.iter().cloned().collect()
        } else {
            [self.programs.clone()]
                .into_iter()
                .chain(std::env::split_paths(&path))
                .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
                .collect()
        };
        folders
            .into_iter()
            .map(|folder| folder.join(program.file()))
            .find(|candidate| candidate.is_file())
    }
}

/// A running subject; stopped when dropped.
#[derive(Debug)]
pub struct Subject {
    target: Target,
    child: Option<Child>,
    pid: Option<u32>,
    _folder: tempfile::TempDir,
}

impl Subject {
    /// Starts it and waits until it accepts.
    pub fn start(spec: &Spec, around: &Surroundings) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sluice-compare")
            .tempdir()?;
        match spec {
            Spec::Given { target, pid, .. } => Ok(Self {
                target: target.clone(),
                child: None,
                pid: Some(*pid),
                _folder: folder,
            }),
            Spec::Started {
                program: Program::Direct,
                manner,
                ..
            } => Ok(Self {
                target: if manner.unix {
                    Target::Unix(around.sink_unix.clone())
                } else {
                    Target::Tcp(around.sink_tcp)
                },
                child: None,
                pid: None,
                _folder: folder,
            }),
            Spec::Started {
                program, manner, ..
            } => {
                let listen = free_port()?;
                let line = Line {
                    folder: folder.path(),
                    listen,
                    manner: *manner,
                    around,
                };
                let words = line.words(*program)?;
                let log = fs::File::create(folder.path().join("log"))?;
                // Killed with this program, however that ends; both keep the process id.
                let child = Command::new("setpriv")
                    .args(["--pdeathsig", "KILL", "taskset", "-c"])
                    .arg(around.core.to_string())
                    .args(&words)
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log)
                    .spawn()
                    .context("cannot start setpriv and taskset (util-linux)")?;
                let mut subject = Self {
                    target: Target::Tcp(listen),
                    pid: Some(child.id()),
                    child: Some(child),
                    _folder: folder,
                };
                subject
                    .wait_until_ready(listen)
                    .with_context(|| format!("{spec} does not run: {}", subject.log()))?;
                Ok(subject)
            }
        }
    }

    /// Where it listens.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its process; `None` for no proxy.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    fn wait_until_ready(&mut self, listen: SocketAddr) -> anyhow::Result<()> {
        let deadline = clock::now() + u64::try_from(READY_WITHIN.as_nanos())?;
        while clock::now() < deadline {
            if TcpStream::connect(listen).is_ok() {
                return Ok(());
            }
            if self.ends_within(Duration::from_millis(20))? {
                anyhow::bail!("it ended at once");
            }
        }
        anyhow::bail!("nothing accepts on {listen}")
    }

    /// Waits on the process, for at most so long.
    fn ends_within(&mut self, limit: Duration) -> io::Result<bool> {
        let Some(child) = &mut self.child else {
            return Ok(true);
        };
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))?;
        Ok(child.try_wait()?.is_some())
    }

    fn log(&self) -> String {
        fs::read_to_string(self._folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        if !self.ends_within(STOP_WITHIN).unwrap_or(false)
            && let Some(child) = &mut self.child
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that was free a moment ago; subjects that cannot say which one they took need it.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// What goes into a command line.
struct Line<'a> {
    folder: &'a Path,
    listen: SocketAddr,
    manner: Manner,
    around: &'a Surroundings,
}

impl Line<'_> {
    /// Writes the configuration and returns the command.
    fn words(&self, program: Program) -> anyhow::Result<Vec<String>> {
        let command = self
            .around
            .find(program, self.manner)
            .with_context(|| format!("{} is not installed", program.file()))?
            .display()
            .to_string();
        let words = match program {
            Program::Direct => Vec::new(),
            Program::Nginx => {
                let file = self.write("nginx.conf", &self.nginx())?;
                vec![command, "-c".into(), file]
            }
            Program::Haproxy => {
                let file = self.write("haproxy.cfg", &self.haproxy())?;
                vec![command, "-db".into(), "-f".into(), file]
            }
            Program::Epoll | Program::Monoio | Program::Glommio => self.forwarder(command),
            Program::Uring => {
                let mut words = self.forwarder(command);
                if self.manner.wait_micros > 0 {
                    words.extend(["--min-wait".into(), self.manner.wait_micros.to_string()]);
                }
                words
            }
            Program::Sluice => {
                let policy = match &self.around.policy {
                    Some(path) => fs::read_to_string(path)
                        .with_context(|| format!("cannot read {}", path.display()))?
                        .replace("{listen}", &self.listen.to_string())
                        .replace("{upstream}", &self.upstream_url())
                        .replace(
                            "{latency_budget}",
                            &format!("{}us", self.manner.wait_micros),
                        ),
                    None => self.policy(),
                };
                let file = self.write("policy.yaml", &policy)?;
                let core = self.around.core.to_string();
                let engine = if self.manner.epoll_engine {
                    "epoll"
                } else {
                    "uring"
                };
                let mut words = vec![command, "run".into()];
                for (flag, value) in [
                    ("--policy", file.as_str()),
                    ("--shards", "1"),
                    ("--cpus", &core),
                    ("--admin", "127.0.0.1:0"),
                    ("--engine", engine),
                ] {
                    words.extend([flag.to_owned(), value.to_owned()]);
                }
                words
            }
        };
        Ok(words)
    }

    fn write(&self, name: &str, text: &str) -> io::Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn upstream(&self, unix_prefix: &str) -> String {
        if self.manner.unix {
            format!("{unix_prefix}{}", self.around.sink_unix.display())
        } else {
            self.around.sink_tcp.to_string()
        }
    }

    fn upstream_url(&self) -> String {
        let upstream = if self.manner.unix {
            Target::Unix(self.around.sink_unix.clone())
        } else {
            Target::Tcp(self.around.sink_tcp)
        };
        upstream.to_string()
    }

    fn forwarder(&self, command: String) -> Vec<String> {
        let (listen, upstream) = (Target::Tcp(self.listen).to_string(), self.upstream_url());
        vec![
            command,
            "--listen".into(),
            listen,
            "--upstream".into(),
            upstream,
        ]
    }

    fn nginx(&self) -> String {
        // Debian builds the module as a file of its own; where it is built in, there is none to load.
        let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
        let load = if module.exists() {
            format!("load_module {};\n", module.display())
        } else {
            String::new()
        };
        format!(
            "{load}daemon off;\nmaster_process off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log crit;\n\
             events {{ worker_connections 19000; use epoll; }}\n\
             stream {{\n  access_log off;\n  server {{\n    listen {listen} backlog=4096;\n    proxy_pass {upstream};\n  }}\n}}\n",
            folder = self.folder.display(),
            listen = self.listen,
            upstream = self.upstream("unix:"),
        )
    }

    fn haproxy(&self) -> String {
        format!(
            "global\n  nbthread 1\n  maxconn 9500\n  pidfile {folder}/pid\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             frontend devices\n  bind {listen} backlog 4096\n  default_backend broker\n\
             backend broker\n  server sink {upstream}\n",
            folder = self.folder.display(),
            listen = self.listen,
            upstream = self.upstream("unix@"),
        )
    }

    /// One rule per device, all in one class, so that every PUBLISH is decided by one of `rules`.
    fn policy(&self) -> String {
        let mut text = format!(
            "listeners:\n  - name: devices\n    address: {}\n    upstream: broker\n    anonymous: {{ group: devices }}\n    \
             limits:\n      connections_per_address_max: unlimited\n",
            self.listen
        );
        // Writing to a string cannot fail.
        if self.manner.wait_micros > 0 {
            let _ = writeln!(text, "      latency_budget: {}us", self.manner.wait_micros);
        }
        let _ = write!(
            text,
            "upstreams:\n  - name: broker\n    endpoints: [\"{}\"]\n    balance: round_robin\n\
             groups:\n  - name: devices\n\
             rules:\n  - name: connect\n    who: {{ groups: [devices] }}\n    actions: [connect]\n    decision: allow\n",
            self.upstream_url()
        );
        for device in 0..self.around.rules {
            let _ = write!(
                text,
                "  - name: device-{device}\n    who: {{ groups: [devices] }}\n    actions: [publish]\n    \
                 topics: [\"devices/{device}/telemetry/#\"]\n    decision: allow\n"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_read() {
        let manner = |unix, wait_micros, epoll_engine, before| Manner {
            unix,
            wait_micros,
            epoll_engine,
            before,
        };
        let cases = [
            ("nginx", Program::Nginx, Manner::default()),
            ("nginx+unix", Program::Nginx, manner(true, 0, false, false)),
            (
                "uring+wait300",
                Program::Uring,
                manner(false, 300, false, false),
            ),
            (
                "sluice+unix+wait300+before",
                Program::Sluice,
                manner(true, 300, false, true),
            ),
            (
                "sluice+epoll",
                Program::Sluice,
                manner(false, 0, true, false),
            ),
        ];
        for (text, program, manner) in cases {
            let spec: Spec = text.parse().unwrap();
            let label = text.into();
            assert_eq!(
                spec,
                Spec::Started {
                    program,
                    manner,
                    label
                }
            );
            assert_eq!(spec.to_string(), text);
        }
        let given = Spec::Given {
            label: "mine".into(),
            target: "unix:///run/x".parse().unwrap(),
            pid: 7,
        };
        assert_eq!("mine=unix:///run/x@7".parse(), Ok(given));
    }

    #[test]
    fn unknown_subjects_and_options_are_refused() {
        for text in [
            "",
            "apache",
            "a=b",
            "a=tcp://127.0.0.1:1",
            "a=tcp://127.0.0.1:1@x",
        ] {
            assert_eq!(text.parse::<Spec>(), Err(BadSpec::Unknown(text.into())));
        }
        for (text, option) in [
            ("nginx+wait3", "wait3"),
            ("haproxy+before", "before"),
            ("uring+waitlong", "waitlong"),
            ("uring+epoll", "epoll"),
            ("sluice+", ""),
        ] {
            assert_eq!(
                text.parse::<Spec>(),
                Err(BadSpec::Option(text.into(), option.into()))
            );
        }
    }

    #[test]
    fn another_build_is_found_in_its_own_folder_only() {
        let (now, before) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut around = Surroundings {
            sink_tcp: ([127, 0, 0, 1], 1).into(),
            sink_unix: "/s".into(),
            core: 0,
            rules: 1,
            policy: None,
            programs: now.path().into(),
            before: Some(before.path().into()),
        };
        let spec: Spec = "sluice+before".parse().unwrap();
        assert!(spec.is_before() && !spec.is_installed(&around));
        let file = Program::Sluice.file();
        for folder in [&now, &before] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let found = |around: &Surroundings, before| {
            let manner = Manner {
                before,
                ..Manner::default()
            };
            around.find(Program::Sluice, manner)
        };
        assert_eq!(found(&around, false), Some(now.path().join(file)));
        assert_eq!(found(&around, true), Some(before.path().join(file)));
        around.before = None;
        assert_eq!(found(&around, true), None);
    }

    #[test]
    fn the_policy_has_one_rule_for_each_device() {
        let around = Surroundings {
            sink_tcp: ([127, 0, 0, 1], 1).into(),
            sink_unix: "/s".into(),
            core: 0,
            rules: 3,
            policy: None,
            programs: "/".into(),
            before: None,
        };
        let line = Line {
            folder: Path::new("/"),
            listen: ([127, 0, 0, 1], 2).into(),
            manner: Manner {
                unix: true,
                wait_micros: 300,
                ..Manner::default()
            },
            around: &around,
        };
        let policy = line.policy();
        assert_eq!(policy.matches("actions: [publish]").count(), 3);
        assert!(policy.contains("latency_budget: 300us"));
        assert!(policy.contains("endpoints: [\"unix:///s\"]"));
        assert!(line.nginx().contains("proxy_pass unix:/s;"));
        assert!(line.haproxy().contains("server sink unix@/s"));
    }
}
