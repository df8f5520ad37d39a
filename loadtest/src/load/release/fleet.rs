//! Many simulated nodes in this process, each with a connection of its own.
//!
//! They read no rows, but they put changes to the rows they hold and check the digest, so their work is part of what is
//! measured. They share one thread.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use sluice_proto::v1::{EnrollRequest, fleet_client::FleetClient};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::clock;
use crate::fleet_node::{Memory, Options, Seen, dial, serve};

/// The nodes; gone when dropped.
pub(super) struct Fleet {
    nodes: Vec<(watch::Receiver<Seen>, JoinHandle<()>)>,
}

impl Fleet {
    /// Joins them and opens their streams. `features`: what rows they say they read.
    pub(super) async fn start(
        control_plane: SocketAddr,
        join_token: &str,
        count: u32,
        features: &[&str],
    ) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for index in 0..count {
            let mut secret = [0; 32];
            secret[..4].copy_from_slice(&index.to_be_bytes());
            let options = Options {
                features: features.iter().map(|word| (*word).to_owned()).collect(),
                shards: 1,
                ..Options::new(format!("node-{index}"), secret)
            };
            let channel = dial(control_plane, None).await?;
            let wish = EnrollRequest {
                join_token: join_token.to_owned(),
                node: options.name.clone(),
                secret: secret.to_vec(),
            };
            FleetClient::new(channel.clone()).enroll(wish).await?;
            let (sender, seen) = watch::channel(Seen::default());
            let task = tokio::spawn(async move {
                serve(channel, &options, &mut Memory::default(), &sender).await;
            });
            nodes.push((seen, task));
        }
        let fleet = Self { nodes };
        for (seen, _) in &fleet.nodes {
            let opened = seen.clone().wait_for(|seen| seen.streams > 0).await.is_ok();
            anyhow::ensure!(opened, "a simulated node was refused");
        }
        Ok(fleet)
    }

    /// Waits until the last of them has acknowledged, and says when each did.
    pub(super) async fn active(&self, number: u64, within: Duration) -> anyhow::Result<Vec<u64>> {
        let mut waiting = Vec::new();
        for (seen, _) in &self.nodes {
            let mut seen = seen.clone();
            waiting.push(tokio::spawn(async move {
                let is_active =
                    |seen: &Seen| seen.active.as_ref().is_some_and(|id| id.number >= number);
                seen.wait_for(is_active).await.ok()?;
                Some(clock::now())
            }));
        }
        let all = async {
            let mut times = Vec::new();
            for waiting in waiting {
                times.push(waiting.await.ok().flatten().context("a node has left")?);
            }
            anyhow::Ok(times)
        };
        tokio::time::timeout(within, all)
            .await
            .context("not every simulated node took the generation")?
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (_, task) in &self.nodes {
            task.abort();
        }
    }
}
