//! A running binary for the tests of [`super`]: its log, its admin server, its end; a device and a broker of few bytes.
//!
//! Everything waits for an event under one generous bound. Nothing sleeps, ports are chosen by the system, and a
//! process is killed by its own handle when its test is over.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

/// Longest wait for anything; reached only by a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at something that cannot tell us by itself.
const LOOK_EVERY: Duration = Duration::from_millis(5);

const BINARY: &str = env!("CARGO_BIN_EXE_sluice-dataplane");

/// Runs a command that ends by itself, with this on its standard input.
pub(crate) fn ask(args: &[&str], stdin: &[u8]) -> Output {
    let mut child = command()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that does not read may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(stdin);
    child.wait_with_output().expect("it ends")
}

/// The binary with no setting from the outside.
fn command() -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SLUICE_") || name == "NOTIFY_SOCKET" {
            command.env_remove(name);
        }
    }
    command
}

/// A running data plane.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    pub(crate) admin: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
}

impl Running {
    /// Starts with this policy (none at all for `None`) and waits for the admin server.
    pub(crate) fn start(policy: Option<&str>, args: &[&str]) -> Self {
        Self::start_with(policy, args, |_| {})
    }

    /// The same, with a hand on the command.
    pub(crate) fn start_with(
        policy: Option<&str>,
        args: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = command();
        command.args(["--admin", "127.0.0.1:0"]);
        // A busy machine makes turns long; that newcomers are turned away then is tested in simulation.
        command.args(["--turn-time-max", "1h"]).args(args);
        if let Some(policy) = policy {
            let file = folder.path().join("policy.yaml");
            std::fs::write(&file, policy).expect("the policy is written");
            command.arg("--policy").arg(file);
        }
        change(&mut command);
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (line_in, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line_in.send(line).is_err() {
                    return;
                }
            }
        });
        let mut running = Self {
            child,
            lines,
            seen: Vec::new(),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            folder,
        };
        let line = running.wait_log("admin server is listening");
        let json: Option<serde_json::Value> = serde_json::from_str(&line).ok();
        let address = match &json {
            Some(json) => json["address"].as_str(),
            None => field(&line, "address"),
        };
        running.admin = address
            .and_then(|text| text.parse().ok())
            .expect("an address");
        running
    }

    /// The same, and waits until it is ready.
    pub(crate) fn start_ready(policy: &str, args: &[&str]) -> Self {
        let running = Self::start(Some(policy), args);
        running.wait_for("/readyz", |answer| answer.status == 200);
        running
    }

    /// The next line of the log (or one seen before) with this text.
    #[track_caller]
    pub(crate) fn wait_log(&mut self, text: &str) -> String {
        if let Some(line) = self.seen.iter().find(|line| line.contains(text)) {
            return line.clone();
        }
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} is not in the log: {:#?}", self.seen)
                }
            }
        }
    }

    /// A line with this text that is in the log by now.
    pub(crate) fn logged(&mut self, text: &str) -> Option<String> {
        self.seen.extend(self.lines.try_iter());
        self.seen.iter().find(|line| line.contains(text)).cloned()
    }

    /// The threads of the process, from `/proc`.
    pub(crate) fn threads(&self) -> Vec<Thread> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let tasks = std::fs::read_dir(tasks).expect("a running process");
        tasks
            .flatten()
            .filter_map(|task| {
                let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
                let (name, stat, status) = (read("comm")?, read("stat")?, read("status")?);
                // After the name in parentheses: state is field 3, nice is field 19.
                let nice = stat
                    .rsplit_once(')')?
                    .1
                    .split_whitespace()
                    .nth(16)?
                    .parse()
                    .ok()?;
                let cpus = status
                    .lines()
                    .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
                Some(Thread {
                    name: name.trim().to_owned(),
                    nice,
                    cpus: cpus.trim().to_owned(),
                })
            })
            .collect()
    }

    pub(crate) fn policy_file(&self) -> PathBuf {
        self.folder.path().join("policy.yaml")
    }

    /// Puts another policy in its place and asks for it to be read.
    pub(crate) fn replace_policy(&self, policy: &str) {
        let beside = self.folder.path().join("next.yaml");
        std::fs::write(&beside, policy).expect("written");
        std::fs::rename(&beside, self.policy_file()).expect("renamed");
        self.signal(Signal::HUP);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("our own child takes signals");
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        http(self.admin, "GET", path, "").expect("the admin server answers")
    }

    pub(crate) fn put(&self, path: &str, body: &str) -> Answer {
        http(self.admin, "PUT", path, body).expect("the admin server answers")
    }

    pub(crate) fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path).body).expect("JSON")
    }

    /// Looks at a page until it is as it should be.
    #[track_caller]
    pub(crate) fn wait_for(&self, path: &str, is_right: impl Fn(&Answer) -> bool) -> Answer {
        let mut last = None;
        for _ in 0..PATIENCE.as_millis() / LOOK_EVERY.as_millis() {
            if let Ok(answer) = http(self.admin, "GET", path, "") {
                if is_right(&answer) {
                    return answer;
                }
                last = Some(answer);
            }
            pause();
        }
        panic!("{path} stays {last:?}")
    }

    /// The value of a metric without labels, or with exactly these as written.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let page = self.get("/metrics").body;
        let line = page.lines().find_map(|line| line.strip_prefix(series))?;
        line.trim().parse().ok()
    }

    /// Where a listener really listens.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        let page = self.json("/listeners");
        let listeners = page["listeners"].as_array().expect("a list");
        let listener = listeners.iter().find(|listener| listener["name"] == name);
        let address = listener.expect("the listener")["address"]
            .as_str()
            .expect("text");
        address.parse().expect("an address")
    }

    /// Waits for the end and gives all of the log.
    #[track_caller]
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        for _ in 0..PATIENCE.as_millis() / LOOK_EVERY.as_millis() {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                self.seen.extend(self.lines.iter());
                return (status, std::mem::take(&mut self.seen));
            }
            pause();
        }
        panic!("it does not end: {:#?}", self.seen)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A thread as the kernel sees it.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) name: String,
    pub(crate) nice: i32,
    pub(crate) cpus: String,
}

/// Lets the other process work before the next look.
fn pause() {
    let (_never, silence) = channel::<()>();
    let _ = silence.recv_timeout(LOOK_EVERY);
}

/// `key=value` of a text log line.
pub(crate) fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let at = line.find(&format!(" {key}="))?;
    line[at + key.len() + 2..].split_whitespace().next()
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let len = body.len();
    // HTTP/1.0: the body is what comes until the end.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nContent-Length: {len}\r\n\r\n{body}"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let broken = || std::io::Error::other("not an HTTP answer");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        status: status.ok_or_else(broken)?,
        body: body.to_owned(),
    })
}

/// A broker that says yes to every CONNECT and reads whatever comes.
pub(crate) fn broker() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let mut is_connected = false;
                while let Ok(1..) = client.read(&mut buffer) {
                    if !is_connected {
                        is_connected = true;
                        if client.write_all(&[0x20, 2, 0, 0]).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// An MQTT 3.1.1 device.
pub(crate) struct Device {
    pub(crate) stream: TcpStream,
}

impl Device {
    /// Connects and sends CONNECT; the answer is [`Device::connack`].
    pub(crate) fn connect(
        address: SocketAddr,
        client_id: &str,
        login: Option<(&str, &str)>,
    ) -> Self {
        Self::connect_from([127, 0, 0, 1], address, client_id, login)
    }

    /// The same, from another address of this machine.
    pub(crate) fn connect_from(
        source: [u8; 4],
        address: SocketAddr,
        client_id: &str,
        login: Option<(&str, &str)>,
    ) -> Self {
        let mut flags = 2; // clean session
        let mut payload = text(client_id);
        if let Some((user, password)) = login {
            flags |= 0xc0;
            payload.extend(text(user));
            payload.extend(text(password));
        }
        let mut body = text("MQTT");
        body.extend([4, flags, 0, 60]);
        body.extend(payload);
        let mut packet = vec![0x10, u8::try_from(body.len()).expect("a short packet")];
        assert!(body.len() < 128, "one byte of length");
        packet.extend(body);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let source = SocketAddr::from((source, 0));
        socket.bind(&source.into()).expect("an address of loopback");
        socket
            .connect(&address.into())
            .expect("the listener accepts");
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&packet).expect("sent");
        Self { stream }
    }

    /// The return code of CONNACK.
    pub(crate) fn connack(&mut self) -> u8 {
        let mut packet = [0; 4];
        self.stream.read_exact(&mut packet).expect("a CONNACK");
        assert_eq!(packet[..2], [0x20, 2], "a CONNACK");
        packet[3]
    }

    /// Waits until the other side has closed.
    pub(crate) fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = self.stream.read_to_end(&mut rest);
    }
}

fn text(text: &str) -> Vec<u8> {
    let len = u16::try_from(text.len()).expect("short");
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Bytes of a file beside the tests.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/process")
        .join(name)
}
