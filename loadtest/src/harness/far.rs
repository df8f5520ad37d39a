//! A machine that can vanish: its cable is pulled, and neither FIN nor reset comes from it any more.
//!
//! Owns two network namespaces with a cable (a veth pair) between them. The test runs once more in the one, as a process of
//! its own ([`is_in_own_network`]), and so do the programs that it starts; the other is the far machine, where the test opens
//! sockets. Nothing of it reaches the network of the machine that the tests run on, and all of it is gone with the processes.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::mosquitto::find_on_path;
use super::process::{Finished, Program, Running, sibling};
use crate::patience::until;

/// Set for a test that runs in a network of its own.
const IN_OWN_NETWORK: &str = "SLUICE_TEST_IN_OWN_NETWORK";
/// Ways to make a namespace: as root, and as anybody where the kernel lets them.
const WAYS: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];

/// This end of the cable.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 211, 0, 1);
/// The far machine's.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 211, 0, 2);

/// True: this process is in a network of its own, and the test can begin. False: it has run there and passed, or it cannot
/// run on this machine, which is told with the reason.
///
/// # Panics
/// When it has run there and failed.
#[track_caller]
#[allow(clippy::panic, clippy::print_stderr)] // a test fails by panicking, and says why it was skipped
pub fn is_in_own_network(test: &str) -> bool {
    if std::env::var_os(IN_OWN_NETWORK).is_some() {
        return true;
    }
    let way = match possible_way() {
        Ok(way) => way,
        Err(reason) => {
            eprintln!("{test} is skipped, it needs a network namespace: {reason:#}");
            return false;
        }
    };
    match run_there(way, test) {
        Ok(done) if done.code == Some(0) && done.stdout.contains(" 1 passed") => {}
        Ok(done) => panic!("{}{}", done.stdout, done.stderr),
        Err(error) => panic!("{error:#}"),
    }
    false
}

/// Tries all that the test will need.
fn possible_way() -> anyhow::Result<&'static [&'static str]> {
    let unshare = program("unshare")?;
    let ip = program("ip")?;
    let mut refusals = Vec::new();
    for way in WAYS {
        let veth = ["link", "add", "near", "type", "veth", "peer", "name", "far"];
        let tried = Program::new("unshare", &unshare)
            .args(way)
            .arg(&ip)
            .args(veth)
            .finish()?;
        if tried.code == Some(0) {
            return Ok(way);
        }
        refusals.push(tried.stderr.trim().to_owned());
    }
    bail!("{}", refusals.join("; "))
}

/// The tether is said twice: making a user namespace unties a process from its parent.
fn run_there(way: &[&str], test: &str) -> anyhow::Result<Finished> {
    let here = std::env::current_exe().context("where is this executable?")?;
    Program::new(test, program("unshare")?)
        .args(way)
        .arg(sibling("sluice-tether")?)
        .arg(here)
        .args(["--exact", test, "--nocapture"])
        .env(IN_OWN_NETWORK, "1")
        .finish()
}

/// The machine at the other end of the cable.
#[derive(Debug)]
pub struct Far {
    /// Holds its namespace.
    holder: Running,
}

impl Far {
    /// Starts it, and connects it to this network, whose loopback is brought up too.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn start() -> Self {
        match Self::try_start() {
            Ok(far) => far,
            Err(error) => panic!("{error:#}"),
        }
    }

    fn try_start() -> anyhow::Result<Self> {
        let holder = Program::new("the far machine", program("unshare")?)
            .args(["--net", "sleep", "infinity"])
            .start()?;
        let far = Self { holder };
        let own = std::fs::read_link("/proc/self/ns/net")?;
        until("the far machine has a network of its own", || {
            let its = std::fs::read_link(far.network()).ok()?;
            (its != own).then_some(())
        });
        let id = far.holder.id().to_string();
        ip(&["link", "set", "lo", "up"])?;
        let cable = ["link", "add", "near", "type", "veth"];
        let peer = ["peer", "name", "far", "netns", &id];
        ip(&[&cable[..], &peer[..]].concat())?;
        plug_in("near", NEAR)?;
        far.there(|| plug_in("far", FAR))?;
        Ok(far)
    }

    /// Does something there: sockets that are opened meanwhile are that machine's, and stay it.
    ///
    /// # Panics
    /// When `what` does.
    #[track_caller]
    #[allow(clippy::expect_used)] // a test fails by panicking
    pub fn there<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let network = self.network();
        let visit = move || {
            let network = File::open(network).expect("the far machine is there");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).expect("its network can be entered");
            what()
        };
        // A thread of its own, which alone moves there.
        let done = thread::scope(|scope| scope.spawn(visit).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Pulls the cable out at the far end: what is sent there is lost, and nothing comes back.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    #[allow(clippy::panic)] // a test fails by panicking
    pub fn vanish(&self) {
        if let Err(error) = self.there(|| ip(&["link", "set", "far", "down"])) {
            panic!("{error:#}");
        }
    }

    fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }
}

fn plug_in(end: &str, address: Ipv4Addr) -> anyhow::Result<()> {
    ip(&["address", "add", &format!("{address}/24"), "dev", end])?;
    ip(&["link", "set", end, "up"])
}

/// Runs `ip` in the network of this thread.
fn ip(args: &[&str]) -> anyhow::Result<()> {
    let done = Command::new(program("ip")?).args(args).output()?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr).into_owned();
        bail!("ip {}: {}", args.join(" "), why.trim());
    }
    Ok(())
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    find_on_path(name).with_context(|| format!("`{name}` is not on the PATH"))
}
