//! The control plane and the data plane of the quickstart: started, joined, asked through `sluicectl`, stopped.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use sluice_loadtest::harness::{Finished, Program, Running, http_get, sibling};
use sluice_loadtest::patience::try_until;

use crate::{preferred, say, shown};

/// Port of the listener in the example policy.
pub(crate) const PROXY_PORT: u16 = 1883;
const CONTROL_PORT: u16 = 7443;
const CONTROL_ADMIN_PORT: u16 = 9091;
const ADMIN_PORT: u16 = 9090;

/// What the data plane is called in the fleet.
pub(crate) const NODE: &str = "node-1";

/// Where everybody listens: what the documents say, as far as it is free. 0: any, found out after the start.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) proxy: u16,
    admin: u16,
    control: u16,
    control_admin: u16,
}

impl Ports {
    /// Takes those of the documents that are free, or any.
    pub(crate) fn choose(any: bool) -> Self {
        Self {
            proxy: preferred(PROXY_PORT, any),
            admin: preferred(ADMIN_PORT, any),
            control: preferred(CONTROL_PORT, any),
            control_admin: preferred(CONTROL_ADMIN_PORT, any),
        }
    }
}

/// The control plane.
pub(crate) struct Control {
    running: Running,
    address: SocketAddr,
    admin: SocketAddr,
    data_dir: PathBuf,
}

impl Control {
    /// Starts it with an empty store and waits until it is ready.
    pub(crate) fn start(folder: &Path, ports: Ports) -> anyhow::Result<Self> {
        let data_dir = folder.join("control");
        let running = Program::new("sluice-controlplane", sibling("sluice-controlplane")?)
            .args(["--listen", &local(ports.control).to_string()])
            .args(["--admin", &local(ports.control_admin).to_string()])
            .arg("--data-dir")
            .arg(&data_dir)
            .start()?;
        let admin = running.wait_address("admin server is listening")?;
        let address = running.wait_address("gRPC server is listening")?;
        let mut this = Self {
            running,
            address,
            admin,
            data_dir,
        };
        wait_ready(&mut this.running, admin)?;
        Ok(this)
    }

    /// The process.
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Where operators and nodes find it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its metrics and health.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The first admin token.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.data_dir.join("admin.token")
    }

    /// Runs `sluicectl`.
    fn ctl(&self, args: &[&str]) -> anyhow::Result<Finished> {
        Program::new("sluicectl", sibling("sluicectl")?)
            .env("SLUICE_SERVER", self.url())
            .env("SLUICE_TOKEN_FILE", self.token_file())
            .args(args)
            .finish()
    }

    /// Runs `sluicectl`, which must succeed.
    fn ctl_done(&self, args: &[&str]) -> anyhow::Result<Finished> {
        let finished = self.ctl(args)?;
        ensure!(
            finished.code == Some(0),
            "sluicectl {}: exit code {:?}\n{}{}",
            args.join(" "),
            finished.code,
            finished.stdout,
            finished.stderr
        );
        Ok(finished)
    }

    /// The same, for everybody to see: what was asked and what was answered.
    pub(crate) fn show(&self, args: &[&str]) -> anyhow::Result<()> {
        say(&format!(
            "  $ {} {}",
            shown(&sibling("sluicectl")?),
            args.join(" ")
        ));
        for line in self.ctl_done(args)?.stdout.lines() {
            say(&format!("    {line}"));
        }
        Ok(())
    }

    /// Ends it in order.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        stop(self.running)
    }
}

/// The data plane.
pub(crate) struct Node {
    running: Running,
    /// Its metrics and pages.
    pub(crate) admin: SocketAddr,
}

impl Node {
    /// Starts it, joins it to the control plane with a join token, and waits until it is connected.
    pub(crate) fn start(folder: &Path, ports: Ports, control: &Control) -> anyhow::Result<Self> {
        let token_file = folder.join("join.token");
        let token_path = token_file.display().to_string();
        let create = ["token", "join", "create", "--node", NODE];
        control.ctl_done(&[&create[..], &["--output-file", &token_path]].concat())?;
        let mut running = Program::new("sluice-dataplane", sibling("sluice-dataplane")?)
            .args(["--control-plane", &control.url(), "--node", NODE])
            .arg("--join-token-file")
            .arg(&token_file)
            .arg("--state-dir")
            .arg(folder.join("state"))
            .args(["--admin", &local(ports.admin).to_string()])
            // Low enough that the descriptor limit of an ordinary shell is no matter.
            .args(["--connections-max", "200", "--drain-time", "200ms"])
            .start()?;
        let admin = running.wait_address("admin server is listening")?;
        let is_connected = || {
            let nodes = control.ctl(&["nodes", NODE, "--output", "json"]).ok()?;
            let nodes: serde_json::Value = serde_json::from_str(&nodes.stdout).ok()?;
            (nodes["nodes"][0]["connected"] == true || running.has_ended()).then_some(())
        };
        let connected = try_until(is_connected);
        ensure!(
            connected.is_some() && !running.has_ended(),
            "the data plane did not join\n{}",
            running.log_tail(40)
        );
        Ok(Self { running, admin })
    }

    /// Where the listener of the example listens, once its policy is in force.
    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        let page = http_get(self.admin, "/listeners")?.body;
        let listeners: serde_json::Value = serde_json::from_str(&page)?;
        find_address(&listeners).with_context(|| format!("no listener in {page}"))
    }

    /// The process.
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Ends it in order.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        stop(self.running)
    }
}

fn find_address(page: &serde_json::Value) -> Option<SocketAddr> {
    use serde_json::Value;
    match page {
        Value::Array(items) => items.iter().find_map(find_address),
        Value::Object(fields) => {
            let address = fields.get("address").and_then(Value::as_str);
            address
                .and_then(|address| address.parse().ok())
                .or_else(|| fields.values().find_map(find_address))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn stop(mut running: Running) -> anyhow::Result<()> {
    // It may have had its own Ctrl-C.
    if !running.has_ended() {
        let _ = running.signal(Signal::TERM);
    }
    running.wait_exit()?;
    Ok(())
}

fn wait_ready(running: &mut Running, admin: SocketAddr) -> anyhow::Result<()> {
    let is_ready = || http_get(admin, "/readyz").is_ok_and(|answer| answer.status == 200);
    try_until(|| (is_ready() || running.has_ended()).then_some(()));
    ensure!(is_ready(), "not ready\n{}", running.log_tail(40));
    Ok(())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
