//! The stub broker as a program, for trying things by hand and for the quickstart where Mosquitto is absent.
//!
//! Everything is in memory; sessions and retained messages are gone when it ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sluice_loadtest::packet::Props;
use sluice_loadtest::stream::Address;
use sluice_loadtest::stub::{OnConnect, Script, Stub};

/// A tiny MQTT broker for tests: 3.1, 3.1.1 and 5, everything in memory, no access control.
#[derive(Parser)]
#[command(name = "sluice-stub-broker", version)]
struct Arguments {
    /// Address to listen on; port 0 is a free one and is printed.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:1884")]
    listen: SocketAddr,
    /// Unix socket to listen on as well.
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Receive Maximum told to version 5 clients.
    #[arg(long, value_name = "N")]
    receive_maximum: Option<u16>,
    /// Topic Alias Maximum told to version 5 clients.
    #[arg(long, value_name = "N")]
    topic_alias_maximum: Option<u16>,
    /// Server Keep Alive told to version 5 clients.
    #[arg(long, value_name = "SECONDS")]
    server_keep_alive: Option<u16>,
    /// Refuse every CONNECT with this code.
    #[arg(long, value_name = "CODE")]
    refuse: Option<u8>,
}

#[allow(clippy::print_stdout, clippy::print_stderr)] // a program's voice
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut props = Props::new();
    if let Some(maximum) = arguments.receive_maximum {
        props = props.two(0x21, maximum);
    }
    if let Some(maximum) = arguments.topic_alias_maximum {
        props = props.two(0x22, maximum);
    }
    if let Some(seconds) = arguments.server_keep_alive {
        props = props.two(0x13, seconds);
    }
    let mut script = Script::new().connack_props(props);
    if let Some(code) = arguments.refuse {
        script = script.on_connect(OnConnect::Refuse(code));
    }
    let stub = Stub::new().without_records();
    stub.script_for_all(script);
    let mut addresses = vec![Address::Tcp(arguments.listen)];
    addresses.extend(arguments.unix.map(Address::Unix));
    let mut listening = Vec::new();
    for address in addresses {
        match stub.listen(address.clone()) {
            Ok(open) => {
                println!("sluice-stub-broker listening on {}", open.address());
                listening.push(open);
            }
            Err(error) => {
                eprintln!("sluice-stub-broker: cannot listen on {address}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    loop {
        // Served by the stub's threads until a signal ends the process.
        std::thread::park();
    }
}
