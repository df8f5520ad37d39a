//! A real Mosquitto on a free port and a Unix socket, with everything in memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::process::{Program, Running, free_port};
use crate::stream::Address;

/// How often a port that was free a moment ago may turn out to be taken.
const PORT_ATTEMPTS: usize = 10;

/// A running broker.
#[derive(Debug)]
pub struct Mosquitto {
    running: Running,
    address: SocketAddr,
    unix: PathBuf,
}

impl Mosquitto {
    /// Starts it with its configuration and Unix socket in `folder`.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(folder, None, "")
    }

    /// Starts it on a port of one's choice, with more lines of configuration.
    pub fn start_with(folder: &Path, port: Option<u16>, more: &str) -> anyhow::Result<Self> {
        let path = find_on_path("mosquitto").context(
            "mosquitto is not on the PATH; `make test` installs it on Debian when run as root",
        )?;
        let unix = folder.join("mosquitto.sock");
        let config = folder.join("mosquitto.conf");
        for _ in 0..PORT_ATTEMPTS {
            let port = match port {
                Some(port) => port,
                None => free_port()?,
            };
            let _ = std::fs::remove_file(&unix);
            // As root it would change its user, which unties it from us and forbids it the folder.
            let text = format!(
                "user root\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n\
                 log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\nlog_type information\nlog_type subscribe\n\
                 listener {port} 127.0.0.1\nlistener 0 {}\n{more}\n",
                unix.display()
            );
            std::fs::write(&config, text)?;
            let running = Program::new("mosquitto", &path)
                .arg("-c")
                .arg(&config)
                .start()?;
            let said = running.wait_log(0, "its start", |line| {
                if line.contains("running") {
                    return Some(true);
                }
                line.contains("in use").then_some(false)
            })?;
            if said {
                return Ok(Self {
                    running,
                    address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                    unix,
                });
            }
        }
        bail!("no free port for Mosquitto in {PORT_ATTEMPTS} attempts")
    }

    /// Its TCP address.
    pub fn address(&self) -> Address {
        Address::Tcp(self.address)
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Its Unix socket.
    pub fn unix(&self) -> &Path {
        &self.unix
    }

    /// Ends it and waits until it is gone.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// The process.
    pub fn running(&self) -> &Running {
        &self.running
    }
}

/// A program on the PATH or in one of the folders where Debian keeps servers.
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
