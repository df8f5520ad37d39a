//! The data plane under test: started with a policy, asked over its admin server, told with signals.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::Signal;

use super::admin::{HttpAnswer, Metrics, http_get};
use super::matrix::{Cell, Engine};
use super::process::{Program, Running, sibling};
use crate::patience::until;
use crate::stream::Address;

/// How to start it.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// Engine and shards.
    pub cell: Cell,
    /// The policy document.
    pub policy: &'a str,
    /// More arguments.
    pub args: &'a [&'a str],
}

/// How to start it as a node of a fleet.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Engine and shards.
    pub cell: Cell,
    /// URL of the control plane.
    pub control: String,
    /// Its name in the fleet.
    pub node: String,
    /// File with the join token; not needed when the state directory has a membership.
    pub token_file: Option<PathBuf>,
    /// Where it keeps what it must remember.
    pub state_dir: PathBuf,
    /// More arguments.
    pub args: Vec<String>,
}

/// A running data plane.
#[derive(Debug)]
pub struct DataPlane {
    running: Running,
    admin: SocketAddr,
    /// Where its policy comes from.
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Fleet(Box<Membership>),
}

impl DataPlane {
    /// Starts it with its policy file in `folder` and waits until it is ready.
    pub fn start(folder: &Path, setup: &Setup<'_>) -> anyhow::Result<Self> {
        let this = Self::start_unready(folder, setup)?;
        let mut answer = HttpAnswer {
            status: 0,
            body: String::new(),
        };
        let has_become_ready = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the data plane is ready", || {
                answer = http_get(this.admin, "/readyz").ok()?;
                (answer.status == 200).then_some(())
            });
        }));
        if has_become_ready.is_err() {
            bail!("/readyz says {answer:?}\n{}", this.running.log_tail(60));
        }
        Ok(this)
    }

    /// Starts it and waits only for its admin server.
    pub fn start_unready(folder: &Path, setup: &Setup<'_>) -> anyhow::Result<Self> {
        let policy_file = folder.join("policy.yaml");
        std::fs::write(&policy_file, setup.policy)?;
        let program = program(setup.cell)?
            .arg("--policy")
            .arg(&policy_file)
            .args(setup.args);
        Self::launch(program, Source::File(policy_file))
    }

    /// Starts it as a node of a fleet and waits only for its admin server.
    pub fn join(membership: Membership) -> anyhow::Result<Self> {
        Self::launch(membership.program()?, Source::Fleet(Box::new(membership)))
    }

    fn launch(program: Program, source: Source) -> anyhow::Result<Self> {
        let running = program.start()?;
        let admin = running.wait_address("admin server is listening")?;
        Ok(Self {
            running,
            admin,
            source,
        })
    }

    /// Kills it (SIGKILL) and starts it again on what it left behind.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        let Source::Fleet(membership) = &self.source else {
            bail!("not a node of a fleet");
        };
        *self = Self::join(Membership::clone(membership))?;
        Ok(())
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// How it was started as a node of a fleet.
    pub fn membership(&self) -> anyhow::Result<&Membership> {
        match &self.source {
            Source::Fleet(membership) => Ok(membership),
            Source::File(_) => bail!("not a node of a fleet"),
        }
    }

    /// Where a listener really listens.
    pub fn listener(&self, name: &str) -> anyhow::Result<Address> {
        let answer = http_get(self.admin, "/listeners")?;
        let page: serde_json::Value = serde_json::from_str(&answer.body)?;
        find_listener(&page, name)
            .map(Address::Tcp)
            .with_context(|| format!("no listener {name:?} in {}", answer.body))
    }

    /// Address of the admin server.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// GET of a page.
    pub fn get(&self, path: &str) -> anyhow::Result<HttpAnswer> {
        http_get(self.admin, path)
    }

    /// `/metrics`.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics::new(http_get(self.admin, "/metrics")?.body))
    }

    /// Waits until the sum of a series satisfies `is_right` and gives it.
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

    /// Replaces the policy and waits until every shard judges by the new one.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn reload(&self, policy: &str) {
        let active = [("stage", "active")];
        let before = self.wait_metric("sluice_policy_generation", &active, |now| now > 0.0);
        if let Err(error) = self.replace_policy(policy) {
            panic!("{error:#}");
        }
        self.wait_metric("sluice_policy_generation", &active, |now| now > before);
    }

    /// Replaces the policy by a bad one and waits until it has been refused.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn reload_refused(&self, policy: &str) {
        let name = "sluice_policy_rejected_total";
        let before = self.wait_metric(name, &[], |_| true);
        if let Err(error) = self.replace_policy(policy) {
            panic!("{error:#}");
        }
        self.wait_metric(name, &[], |now| now > before);
    }

    /// Descriptors the process holds.
    pub fn descriptor_count(&self) -> anyhow::Result<usize> {
        let folder = format!("/proc/{}/fd", self.running.id());
        Ok(std::fs::read_dir(folder)?.count())
    }

    /// Puts another policy in its place in one step and sends SIGHUP.
    pub fn replace_policy(&self, policy: &str) -> anyhow::Result<()> {
        let Source::File(policy_file) = &self.source else {
            bail!("its policy is in no file");
        };
        let beside = policy_file.with_extension("next");
        std::fs::write(&beside, policy)?;
        std::fs::rename(&beside, policy_file)?;
        self.running.signal(Signal::HUP)
    }

    /// The process.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// The process, to wait for its end.
    pub fn running_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}

impl Membership {
    /// The program that it asks for.
    pub fn program(&self) -> anyhow::Result<Program> {
        let mut program = program(self.cell)?
            .args(["--control-plane", &self.control, "--node", &self.node])
            .arg("--state-dir")
            .arg(&self.state_dir);
        if let Some(token_file) = &self.token_file {
            program = program.arg("--join-token-file").arg(token_file);
        }
        Ok(program.args(&self.args))
    }
}

fn program(cell: Cell) -> anyhow::Result<Program> {
    let program = Program::new("sluice-dataplane", sibling("sluice-dataplane")?)
        .args(["--admin", "127.0.0.1:0"])
        // A busy machine makes turns long; that newcomers are turned away then is tested in simulation.
        .args(["--turn-time-max", "1h"])
        .args(["--engine", engine_argument(cell.engine)])
        .args(["--shards", &cell.shards.to_string()]);
    Ok(program)
}

/// Where a sandbox or an administrator forbids io_uring, its cells of the matrix test what the data plane does then: it
/// takes epoll by itself. Anywhere else io_uring must work.
fn engine_argument(engine: Engine) -> &'static str {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let is_filtered = read("/proc/self/status")
        .lines()
        .any(|line| line.starts_with("Seccomp:") && !line.ends_with('0'));
    let disabled = read("/proc/sys/kernel/io_uring_disabled");
    let is_disabled = !matches!(disabled.trim(), "" | "0");
    match engine {
        Engine::Uring if is_filtered || is_disabled => "auto",
        Engine::Uring | Engine::Epoll => engine.name(),
    }
}

fn find_listener(page: &serde_json::Value, name: &str) -> Option<SocketAddr> {
    use serde_json::Value;
    match page {
        Value::Array(items) => items.iter().find_map(|item| find_listener(item, name)),
        Value::Object(fields) => {
            if fields.get("name").and_then(Value::as_str) == Some(name) {
                return fields.get("address")?.as_str()?.parse().ok();
            }
            fields.values().find_map(|value| find_listener(value, name))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}
