//! The control plane under test: started on free ports with its own data directory, asked through `sluicectl`, killed and
//! started again on what it left behind.
//!
//! Nodes reach it through a [`Relay`], whose address stays when a new process listens on another port.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::Value;

use super::admin::{HttpAnswer, Metrics, http_get};
use super::process::{Finished, Program, Running, sibling};
use super::relay::Relay;
use crate::patience::until;

/// A control plane, running or killed.
#[derive(Debug)]
pub struct ControlPlane {
    folder: PathBuf,
    args: Vec<String>,
    running: Running,
    api: SocketAddr,
    admin: SocketAddr,
    relay: Relay,
}

impl ControlPlane {
    /// Starts it with its data directory in `folder` and waits until it is ready.
    pub fn start(folder: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (running, api, admin) = launch(folder, &args)?;
        let this = Self {
            folder: folder.to_owned(),
            args,
            running,
            api,
            admin,
            relay: Relay::start(Some(api))?,
        };
        this.wait_ready()?;
        Ok(this)
    }

    /// The program as it is started, for tests of how it refuses to.
    pub fn program(folder: &Path) -> anyhow::Result<Program> {
        let program = Program::new("sluice-controlplane", sibling("sluice-controlplane")?)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(data_dir(folder));
        Ok(program)
    }

    /// Kills it (SIGKILL) and waits until it is gone. Nodes find nobody from then on.
    pub fn kill(&mut self) {
        self.running.kill();
        self.relay.set_target(None);
    }

    /// Starts it again on its data directory; kills it before when it runs.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        (self.running, self.api, self.admin) = launch(&self.folder, &self.args)?;
        self.relay.set_target(Some(self.api));
        self.wait_ready()
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let mut answer = None;
        let is_ready = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the control plane is ready", || {
                answer = http_get(self.admin, "/readyz").ok();
                answer
                    .as_ref()
                    .is_some_and(|a| a.status == 200)
                    .then_some(())
            });
        }));
        if is_ready.is_err() {
            bail!("/readyz says {answer:?}\n{}", self.running.log_tail(60));
        }
        Ok(())
    }

    /// Where nodes find it, now and after a restart.
    pub fn url_for_nodes(&self) -> String {
        format!("http://{}", self.relay.address())
    }

    /// What stands between it and the nodes.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Address of its API.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        data_dir(&self.folder)
    }

    /// The file with the first admin token.
    pub fn token_file(&self) -> PathBuf {
        self.data_dir().join("admin.token")
    }

    /// The process.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// The process, to wait for its end.
    pub fn running_mut(&mut self) -> &mut Running {
        &mut self.running
    }

    /// GET of a page of its admin server.
    pub fn get(&self, path: &str) -> anyhow::Result<HttpAnswer> {
        http_get(self.admin, path)
    }

    /// `/metrics`.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics::new(self.get("/metrics")?.body))
    }

    /// `sluicectl` with these arguments, about to be started.
    pub fn ctl_program(&self, args: &[&str]) -> anyhow::Result<Program> {
        self.ctl_program_at(self.api, args)
    }

    /// The same, through another address.
    pub fn ctl_program_at(&self, address: SocketAddr, args: &[&str]) -> anyhow::Result<Program> {
        Ok(Program::new("sluicectl", sibling("sluicectl")?)
            .env("SLUICE_SERVER", format!("http://{address}"))
            .env("SLUICE_TOKEN_FILE", self.token_file())
            .args(args))
    }

    /// Writes a document into the scratch folder and gives its path.
    pub fn document(&self, text: &str) -> anyhow::Result<String> {
        let path = self.folder.join("document.yaml");
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

/// The calls that panic: assertions of tests.
#[allow(clippy::panic)] // a test fails by panicking
impl ControlPlane {
    /// Runs `sluicectl`.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> Finished {
        match self.ctl_program(args).and_then(Program::finish) {
            Ok(finished) => finished,
            Err(error) => panic!("sluicectl {args:?}: {error:#}"),
        }
    }

    /// Runs `sluicectl`, which must end with `code`, and gives what it said as JSON.
    #[track_caller]
    pub fn ctl_code(&self, code: i32, args: &[&str]) -> Value {
        let json = [args, &["--output", "json"]].concat();
        let finished = self.ctl(&json);
        assert_eq!(
            finished.code,
            Some(code),
            "sluicectl {args:?}\n{}{}",
            finished.stdout,
            finished.stderr
        );
        match serde_json::from_str(&finished.stdout) {
            Ok(value) => value,
            Err(error) => panic!("sluicectl {args:?}: {error}: {}", finished.stdout),
        }
    }

    /// Runs `sluicectl`, which must succeed, and gives what it said as JSON.
    #[track_caller]
    pub fn ctl_json(&self, args: &[&str]) -> Value {
        self.ctl_code(0, args)
    }

    /// Makes a generation from a document and gives its number.
    #[track_caller]
    pub fn apply(&self, text: &str) -> u64 {
        let path = self
            .document(text)
            .unwrap_or_else(|error| panic!("{error:#}"));
        number_of(&self.ctl_json(&["apply", "-f", &path]))
    }

    /// Brings a generation into force and waits until every shard of every node judges by it.
    #[track_caller]
    pub fn release(&self, number: u64) {
        self.ctl_json(&["release", &number.to_string(), "--wait"]);
    }

    /// Makes a generation from a document, brings it into force, and waits for every node. Gives its number.
    #[track_caller]
    pub fn put(&self, text: &str) -> u64 {
        let number = self.apply(text);
        self.release(number);
        number
    }

    /// A file with a join token.
    #[track_caller]
    pub fn join_token(&self, node: &str) -> PathBuf {
        let path = self.folder.join(format!("join-{node}.token"));
        let _ = std::fs::remove_file(&path);
        let path_text = path.display().to_string();
        self.ctl_json(&[
            "token",
            "join",
            "create",
            "--node",
            node,
            "--output-file",
            &path_text,
        ]);
        path
    }

    /// What `sluicectl nodes` says of one node.
    #[track_caller]
    pub fn node(&self, name: &str) -> Value {
        let answer = self.ctl_json(&["nodes", name]);
        answer["nodes"][0].clone()
    }

    /// Waits until a node's state is this one and gives what is said of it.
    #[track_caller]
    pub fn wait_node(&self, name: &str, state: &str) -> Value {
        until(&format!("node {name} is {state}"), || {
            let node = self.node(name);
            (node["state"] == state).then_some(node)
        })
    }

    /// Waits until a node is connected.
    #[track_caller]
    pub fn wait_connected(&self, name: &str) {
        until(&format!("node {name} is connected"), || {
            let is_connected = self.ctl_json(&["nodes"])["nodes"]
                .as_array()
                .is_some_and(|nodes| {
                    let mut nodes = nodes.iter();
                    nodes.any(|node| node["name"] == name && node["connected"] == true)
                });
            is_connected.then_some(())
        });
    }

    /// Waits until its sum of a series is as expected and gives it.
    #[track_caller]
    pub fn wait_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        is_right: impl Fn(f64) -> bool,
    ) -> f64 {
        until(&format!("{name}{labels:?} is as expected"), || {
            let sum = self.metrics().ok()?.sum(name, labels).unwrap_or(0.0);
            is_right(sum).then_some(sum)
        })
    }
}

/// The number of the generation that an answer of `sluicectl` is about; 0 when there is none.
pub fn number_of(answer: &Value) -> u64 {
    answer["generation"]["number"].as_u64().unwrap_or(0)
}

fn data_dir(folder: &Path) -> PathBuf {
    folder.join("control")
}

fn launch(folder: &Path, args: &[String]) -> anyhow::Result<(Running, SocketAddr, SocketAddr)> {
    let running = ControlPlane::program(folder)?.args(args).start()?;
    let admin = running.wait_address("admin server is listening")?;
    let api = running.wait_address("gRPC server is listening")?;
    Ok((running, api, admin))
}
