//! A data plane under a control plane, as a real process on this machine.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::super::process::Process;

/// A start.
const SOON: Duration = Duration::from_secs(60);

/// A running data plane.
pub(in crate::load) struct Gateway {
    /// The process and its log.
    pub(in crate::load) process: Process,
    listener: Option<SocketAddr>,
}

/// When the node did what, for one generation.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::load) struct Moments {
    /// It began to compile.
    pub(in crate::load) compiling_ns: u64,
    /// The tables were swapped in.
    pub(in crate::load) delivered_ns: u64,
    /// Every shard had judged all its sessions by it.
    pub(in crate::load) active_ns: u64,
}

impl Gateway {
    /// Starts it as the node `local` and waits until its admin server answers.
    pub(in crate::load) async fn start(
        programs: &Path,
        folder: &Path,
        control_plane: SocketAddr,
        join_token: &str,
        shards: u16,
    ) -> anyhow::Result<Self> {
        let token_file = folder.join("join.token");
        std::fs::write(&token_file, join_token)?;
        let url = format!("http://{control_plane}");
        let shards = shards.to_string();
        let mut args: Vec<OsString> = vec!["run".into()];
        for (flag, value) in [
            ("--control-plane", url.as_str()),
            ("--node", "local"),
            ("--shards", &shards),
            ("--admin", "127.0.0.1:0"),
            ("--log-format", "json"),
        ] {
            args.extend([flag.into(), value.into()]);
        }
        args.extend(["--state-dir".into(), folder.join("node").into()]);
        args.extend(["--join-token-file".into(), token_file.into()]);
        let mut process = Process::start("sluice-dataplane", programs, args)?;
        let connected = process.wait("stream to the control plane", SOON, |line| {
            line.says("connected to the control plane").then_some(())
        });
        connected.await?;
        Ok(Self {
            process,
            listener: None,
        })
    }

    /// Waits until a generation of the fleet is active here.
    pub(in crate::load) async fn active(
        &mut self,
        number: u64,
        within: Duration,
    ) -> anyhow::Result<Moments> {
        let mut own = None;
        let mut moments = Moments::default();
        let listener = &mut self.listener;
        let waited = self.process.wait("active policy", within, |line| {
            if line.says("listening") {
                *listener = line.text("address").and_then(|text| text.parse().ok());
            }
            if line.says("compiling policy") && line.number("fleet_generation") == Some(number) {
                own = line.number("generation");
                moments.compiling_ns = line.at_ns;
            }
            if own.is_none() || line.number("generation") != own {
                return None;
            }
            if line.says("policy is delivered to the shards") {
                moments.delivered_ns = line.at_ns;
            }
            line.says("policy is active on every shard").then(|| {
                moments.active_ns = line.at_ns;
                moments
            })
        });
        waited.await
    }

    /// Where devices connect, once a generation is active.
    pub(in crate::load) fn listener(&self) -> anyhow::Result<SocketAddr> {
        self.listener.context("the node does not listen yet")
    }
}
