//! The matrix of engines and shard counts, and the set of programs each test file shares within one cell of it.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::dataplane::{DataPlane, Setup};
use super::mosquitto::Mosquitto;
use super::process::scratch;
use crate::stream::Address;
use crate::stub::{Listening, Stub};

/// How the data plane drives its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl Engine {
    /// As the data plane's `--engine` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// One way to run the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Engine.
    pub engine: Engine,
    /// Shards.
    pub shards: u8,
}

/// All of them.
pub const CELLS: [Cell; 4] = [
    Cell {
        engine: Engine::Uring,
        shards: 1,
    },
    Cell {
        engine: Engine::Uring,
        shards: 3,
    },
    Cell {
        engine: Engine::Epoll,
        shards: 1,
    },
    Cell {
        engine: Engine::Epoll,
        shards: 3,
    },
];

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.engine.name(), self.shards)
    }
}

/// A data plane between Mosquitto and the stub broker on one side and the tests on the other.
///
/// In the policy text these words are replaced: `@MOSQUITTO@`, `@MOSQUITTO_UNIX@`, `@STUB@`, `@STUB_UNIX@` by the URL of
/// an endpoint.
#[derive(Debug)]
pub struct Gate {
    /// The broker.
    pub mosquitto: Mosquitto,
    /// The scriptable broker.
    pub stub: Stub,
    /// The data plane.
    pub dataplane: DataPlane,
    /// Scratch folder.
    pub folder: PathBuf,
    stub_listening: Option<Listening>,
    stub_address: Address,
    stub_unix: Listening,
}

impl Gate {
    /// Starts everything. `name` is unique among the gates of a test process.
    pub fn start(name: &str, cell: Cell, policy: &str, args: &[&str]) -> anyhow::Result<Self> {
        let folder = scratch(&format!("{name}-{cell}"))?;
        let mosquitto = Mosquitto::start(&folder)?;
        let stub = Stub::new();
        let stub_listening = stub.listen(Address::Tcp(([127, 0, 0, 1], 0).into()))?;
        let stub_path = folder.join("stub.sock");
        let _ = std::fs::remove_file(&stub_path);
        let stub_unix = stub.listen(Address::Unix(stub_path))?;
        let policy = fill_in(
            policy,
            &mosquitto,
            stub_listening.address(),
            stub_unix.address(),
        );
        let setup = Setup {
            cell,
            policy: &policy,
            args,
        };
        let dataplane = DataPlane::start(&folder, &setup)?;
        Ok(Self {
            mosquitto,
            stub,
            dataplane,
            folder,
            stub_address: stub_listening.address().clone(),
            stub_listening: Some(stub_listening),
            stub_unix,
        })
    }

    /// Where a listener of the data plane listens.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn listener(&self, name: &str) -> Address {
        match self.dataplane.listener(name) {
            Ok(address) => address,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Starts everything, for a test of its own; panics with the reason when it cannot.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn alone(name: &str, cell: Cell, policy: &str, args: &[&str]) -> Self {
        match Self::start(name, cell, policy, args) {
            Ok(gate) => gate,
            Err(error) => panic!("{cell}: {error:#}"),
        }
    }

    /// Shows the logs when the test that uses the gate fails.
    pub fn visit(&self) -> Visit<'_> {
        Visit { gate: self }
    }

    /// Replaces the policy and waits until it is active.
    #[track_caller]
    pub fn reload(&self, policy: &str) {
        self.dataplane.reload(&self.policy(policy));
    }

    /// Kills Mosquitto and starts it again on its port, with nothing remembered.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn restart_mosquitto(&mut self) {
        let port = self.mosquitto.port();
        self.mosquitto.kill();
        match Mosquitto::start_with(&self.folder, Some(port), "") {
            Ok(mosquitto) => self.mosquitto = mosquitto,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Stops the stub's TCP listener; its port is free until [`Gate::stub_up`].
    pub fn stub_down(&mut self) {
        self.stub_listening = None;
    }

    /// Listens again where the stub listened before.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn stub_up(&mut self) {
        match self.stub.listen(self.stub_address.clone()) {
            Ok(listening) => self.stub_listening = Some(listening),
            Err(error) => panic!("the stub's port is gone: {error}"),
        }
    }

    /// A policy text with its endpoints filled in, for a reload.
    pub fn policy(&self, text: &str) -> String {
        fill_in(
            text,
            &self.mosquitto,
            &self.stub_address,
            self.stub_unix.address(),
        )
    }

    /// The logs, for a failed test.
    pub fn logs(&self) -> String {
        format!(
            "{}{}",
            self.mosquitto.running().log_tail(30),
            self.dataplane.running().log_tail(60)
        )
    }
}

fn fill_in(text: &str, mosquitto: &Mosquitto, stub: &Address, stub_unix: &Address) -> String {
    let port = mosquitto.port();
    text.replace("@MOSQUITTO@", &format!("tcp://127.0.0.1:{port}"))
        .replace(
            "@MOSQUITTO_UNIX@",
            &format!("unix://{}", mosquitto.unix().display()),
        )
        .replace("@STUB@", &format!("tcp://{stub}"))
        .replace("@STUB_UNIX@", &format!("unix://{stub_unix}"))
}

/// The gates of one test file: one for each cell, started when the first test asks and shared by the others.
#[derive(Debug)]
pub struct Gates {
    name: &'static str,
    policy: &'static str,
    args: &'static [&'static str],
    cells: [OnceLock<Result<Gate, String>>; CELLS.len()],
}

impl Gates {
    /// Gates with this policy.
    pub const fn new(
        name: &'static str,
        policy: &'static str,
        args: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            policy,
            args,
            cells: [const { OnceLock::new() }; CELLS.len()],
        }
    }

    /// The gate of a cell.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn visit(&'static self, cell: Cell) -> Visit<'static> {
        let index = CELLS.iter().position(|known| *known == cell).unwrap_or(0);
        let gate = self.cells.get(index).map(|slot| {
            slot.get_or_init(|| {
                Gate::start(self.name, cell, self.policy, self.args)
                    .map_err(|error| format!("{error:#}"))
            })
        });
        match gate {
            Some(Ok(gate)) => Visit { gate },
            Some(Err(error)) => panic!("{cell}: {error}"),
            None => panic!("{cell} is not in the matrix"),
        }
    }
}

/// One test's use of a gate. Shows the logs when the test fails.
#[derive(Debug)]
pub struct Visit<'a> {
    gate: &'a Gate,
}

impl Deref for Visit<'_> {
    type Target = Gate;
    fn deref(&self) -> &Gate {
        self.gate
    }
}

impl Drop for Visit<'_> {
    #[allow(clippy::print_stderr)] // shown by the test runner with the failure
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.gate.logs());
        }
    }
}
