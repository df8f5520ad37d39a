//! A control plane as a process of its own, and callers of it.
#![allow(dead_code, clippy::expect_used)] // each test file uses its part; a test that cannot go on ends here

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut};
use rustix::process::{Pid, Signal, kill_process};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Longest wait for anything; reached only by a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    child: Child,
    /// Everything it has written.
    pub(crate) log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) data_dir: PathBuf,
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-controlplane"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_CONTROL_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

impl Server {
    pub(crate) fn start(data_dir: &Path, more: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", data_dir, more)
    }

    pub(crate) fn start_on(listen: &str, data_dir: &Path, more: &[&str]) -> Self {
        let mut command = command();
        command.args(["--log-format", "json", "--admin", "127.0.0.1:0"]);
        command.args(["--listen", listen, "--data-dir"]);
        command.arg(data_dir).args(more).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program");
        let stderr = child.stderr.take().expect("piped");
        let log = Arc::new(Mutex::new(String::new()));
        let (found, listening) = mpsc::channel();
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock().expect("a log");
                    log.push_str(&line);
                    log.push('\n');
                    let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else {
                        continue;
                    };
                    let message = line["message"].as_str().unwrap_or_default();
                    if message.ends_with("server is listening") {
                        let address = line["address"].as_str().expect("an address");
                        let address: SocketAddr = address.parse().expect("an address");
                        let _ = found.send((message.starts_with("gRPC"), address));
                    }
                }
            }
        });
        let mut addresses = [None; 2];
        while addresses.iter().any(Option::is_none) {
            match listening.recv_timeout(PATIENCE) {
                Ok((is_grpc, address)) => addresses[usize::from(is_grpc)] = Some(address),
                Err(error) => panic!("{error}: {}", log.lock().expect("a log")),
            }
        }
        Self {
            child,
            log,
            reader: Some(reader),
            admin: addresses[0].expect("set"),
            address: addresses[1].expect("set"),
            data_dir: data_dir.to_owned(),
        }
    }

    pub(crate) fn token(&self) -> String {
        let text = std::fs::read_to_string(self.data_dir.join("admin.token"));
        text.expect("the first token").trim().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
    }

    /// Ends it and gives how it ended and all it wrote.
    pub(crate) fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end, see [`Server::stop`].
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("its end");
        self.reader.take().expect("once").join().expect("its log");
        let log = self.log.lock().expect("a log").clone();
        (status, log)
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("its end");
    }

    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        endpoint.expect("an address").connect_lazy()
    }

    /// The status code and body of an answer of the admin server.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).expect("the admin server");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
            self.admin
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        (code.expect("a status"), body.to_owned())
    }

    /// The value of a metric with exactly these labels; 0 when it was never counted.
    pub(crate) fn metric(&self, name_and_labels: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let value = lines.find(|(name, _)| *name == name_and_labels);
        value.map_or(0.0, |(_, value)| value.parse().expect("a number"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request with a token.
pub(crate) fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("ascii");
    request.metadata_mut().insert("authorization", value);
    request
}

/// Calls any method with one empty message and gives the status of the answer's beginning.
pub(crate) async fn call_empty(
    channel: Channel,
    path: &str,
    token: Option<&str>,
) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    let ready = client.ready().await;
    ready.map_err(|error| Status::internal(error.to_string()))?;
    let message = tokio_stream::once(Vec::new());
    let request = match token {
        Some(token) => with(token, message),
        None => Request::new(message),
    };
    let path = path.parse().expect("a path");
    let mut answer = client.streaming(request, path, Plain).await?.into_inner();
    let first = tokio::time::timeout(Duration::from_secs(5), answer.message());
    first.await.map_or(Ok(()), |message| message.map(drop))
}

/// Messages as they are.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}
