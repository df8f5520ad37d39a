//! A fleet of one: the stub broker, a control plane and a data plane that has joined it.

use std::ops::Deref;
use std::path::PathBuf;

use super::controlplane::ControlPlane;
use super::dataplane::{DataPlane, Membership};
use super::matrix::Cell;
use super::process::scratch;
use crate::stream::Address;
use crate::stub::{Listening, Stub};

/// The name of its node.
pub const NODE: &str = "node-1";

/// See the module documentation. In policy texts `@STUB@` is replaced by the URL of the stub broker.
#[derive(Debug)]
pub struct Fleet {
    /// The scriptable broker.
    pub stub: Stub,
    /// The control plane.
    pub control: ControlPlane,
    /// The node.
    pub dataplane: DataPlane,
    /// Scratch folder.
    pub folder: PathBuf,
    stub_listening: Listening,
}

impl Fleet {
    /// Starts everything; nothing is released yet. `name` is unique in the test process.
    pub fn start(name: &str, cell: Cell, args: &[&str]) -> anyhow::Result<Self> {
        let folder = scratch(&format!("{name}-{cell}"))?;
        let stub = Stub::new();
        let stub_listening = stub.listen(Address::Tcp(([127, 0, 0, 1], 0).into()))?;
        let control = ControlPlane::start(&folder, &[])?;
        let dataplane = DataPlane::join(Membership {
            cell,
            control: control.url_for_nodes(),
            node: NODE.into(),
            token_file: Some(control.join_token(NODE)),
            state_dir: folder.join("state"),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        })?;
        Ok(Self {
            stub,
            control,
            dataplane,
            folder,
            stub_listening,
        })
    }

    /// Starts everything, for a test of its own; panics with the reason when it cannot.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn alone(name: &str, cell: Cell, args: &[&str]) -> Guarded {
        match Self::start(name, cell, args) {
            Ok(fleet) => Guarded(fleet),
            Err(error) => panic!("{cell}: {error:#}"),
        }
    }

    /// A policy text with its endpoint filled in.
    pub fn policy(&self, text: &str) -> String {
        text.replace(
            "@STUB@",
            &format!("tcp://{}", self.stub_listening.address()),
        )
    }

    /// Releases a policy and waits until every shard of the node judges by it. Gives the number of the generation.
    #[track_caller]
    pub fn put(&self, text: &str) -> u64 {
        self.control.wait_connected(NODE);
        self.control.put(&self.policy(text))
    }

    /// Where a listener of the node listens.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn listener(&self, name: &str) -> Address {
        match self.dataplane.listener(name) {
            Ok(address) => address,
            Err(error) => panic!("{error:#}"),
        }
    }
}

/// A fleet that shows its logs when the test that holds it fails.
#[derive(Debug)]
pub struct Guarded(Fleet);

impl Deref for Guarded {
    type Target = Fleet;
    fn deref(&self) -> &Fleet {
        &self.0
    }
}

impl std::ops::DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut Fleet {
        &mut self.0
    }
}

impl Drop for Guarded {
    #[allow(clippy::print_stderr)] // shown by the test runner with the failure
    fn drop(&mut self) {
        if std::thread::panicking() {
            let control = self.0.control.running().log_tail(60);
            let node = self.0.dataplane.running().log_tail(60);
            eprintln!("{control}{node}");
        }
    }
}
