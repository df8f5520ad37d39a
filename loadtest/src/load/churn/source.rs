//! A data plane whose policy changes between two, by SIGHUP on a file or by a control plane.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;

use super::super::lanes;
use super::super::process::Process;
use super::super::release::{Gateway, Plane};
use super::ChurnArgs;

/// A start, or a change of a large policy on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);
/// Policies name this; the data plane says which port it took.
const LISTEN: &str = "127.0.0.1:0";

/// See the module documentation.
pub(super) enum Source {
    /// Its own policy file.
    File(Box<Filed>),
    /// A control plane, and a node under it.
    Plane(Box<Plane>, Box<Gateway>),
}

/// A data plane and its file.
pub(super) struct Filed {
    process: Process,
    file: PathBuf,
    policies: [String; 2],
    is_b: bool,
    listener: SocketAddr,
}

impl Source {
    /// Starts what is asked for, with policy A in force.
    pub(super) async fn start(
        args: &ChurnArgs,
        programs: &Path,
        folder: &Path,
        upstream: &str,
    ) -> anyhow::Result<Self> {
        let policies = [false, true].map(|is_b| lanes::policy(is_b, LISTEN, upstream, args.rules));
        if !args.control_plane {
            let filed = Filed::start(args, programs, folder, policies).await?;
            return Ok(Self::File(Box::new(filed)));
        }
        let mut plane = Plane::start(programs, folder).await?;
        let token = plane.join_token(1).await?;
        let gateway = Gateway::start(programs, folder, plane.api, &token, args.shards);
        let mut gateway = gateway.await?;
        // B first, so that going back from A is B.
        for policy in policies.iter().rev() {
            plane.apply(policy).await?;
            let asked = plane.release().await?;
            gateway.active(asked.number, WITHIN).await?;
        }
        Ok(Self::Plane(Box::new(plane), Box::new(gateway)))
    }

    /// Where devices connect.
    pub(super) fn listener(&self) -> anyhow::Result<SocketAddr> {
        match self {
            Self::File(filed) => Ok(filed.listener),
            Self::Plane(_, gateway) => gateway.listener(),
        }
    }

    /// Forgets what was said while nobody listened.
    pub(super) fn forget(&mut self) {
        match self {
            Self::File(filed) => filed.process.forget(),
            Self::Plane(plane, gateway) => {
                plane.process.forget();
                gateway.process.forget();
            }
        }
    }

    /// The other policy, until every shard judges by it.
    pub(super) async fn change(&mut self) -> anyhow::Result<()> {
        match self {
            Self::File(filed) => filed.change().await,
            Self::Plane(plane, gateway) => {
                plane.process.forget();
                let asked = plane.rollback().await?;
                gateway.active(asked.number, WITHIN).await?;
                Ok(())
            }
        }
    }
}

impl Filed {
    async fn start(
        args: &ChurnArgs,
        programs: &Path,
        folder: &Path,
        policies: [String; 2],
    ) -> anyhow::Result<Self> {
        let file = folder.join("policy.yaml");
        std::fs::write(&file, &policies[0])?;
        let shards = args.shards.to_string();
        let mut words: Vec<OsString> = vec!["run".into(), "--policy".into(), file.clone().into()];
        for (flag, value) in [
            ("--shards", shards.as_str()),
            ("--admin", "127.0.0.1:0"),
            ("--log-format", "json"),
        ] {
            words.extend([flag.into(), value.into()]);
        }
        let mut process = Process::start("sluice-dataplane", programs, words)?;
        let mut listener = None;
        let active = process.wait("active policy", WITHIN, |line| {
            if line.says("listening") {
                listener = line.text("address").and_then(|text| text.parse().ok());
            }
            line.says("policy is active on every shard").then_some(())
        });
        active.await?;
        Ok(Self {
            process,
            file,
            policies,
            is_b: false,
            listener: listener.context("the data plane does not listen")?,
        })
    }

    async fn change(&mut self) -> anyhow::Result<()> {
        self.is_b = !self.is_b;
        let beside = self.file.with_extension("next");
        std::fs::write(&beside, &self.policies[usize::from(self.is_b)])?;
        std::fs::rename(&beside, &self.file)?;
        self.process.forget();
        self.process.signal(Signal::HUP)?;
        let active = self.process.wait("active policy", WITHIN, |line| {
            line.says("policy is active on every shard").then_some(())
        });
        active.await
    }
}
