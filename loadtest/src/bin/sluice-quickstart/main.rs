//! `make run`: a broker, the control plane and a data plane that joined it; the example policy released through
//! `sluicectl`, an allowed and a denied device, a release that turns one into the other on its open session, the rollback,
//! and the commands to try next. Stays up until Ctrl-C or SIGTERM.
//!
//! Everything it starts runs under `sluice-tether` and so dies with it, however it ends.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use sluice_loadtest::harness::{Mosquitto, Program, Running, find_on_path, scratch, sibling};

use crate::devices::{Pair, TOPIC};
use crate::fleet::{Control, Node, Ports};

mod devices;
mod fleet;

/// Port of the broker in the example policy.
const BROKER_PORT: u16 = 1884;

/// What the second release puts before all other rules.
const SILENCE: &str = r##"  - name: sensor-1 is silent for now
    who: {users: [sensor-1]}
    actions: [publish]
    topics: ["#"]
    decision: deny

"##;

/// Starts a broker, the control plane and a data plane, releases the example policy and another, rolls back, and stays up
/// until Ctrl-C.
#[derive(Parser)]
#[command(name = "sluice-quickstart", version)]
struct Arguments {
    /// Show the devices and end.
    #[arg(long)]
    once: bool,
    /// Take free ports instead of 1883, 1884, 7443, 9090 and 9091.
    #[arg(long)]
    free_ports: bool,
    /// The broker behind the data plane.
    #[arg(long, value_enum, default_value_t = BrokerChoice::Auto)]
    broker: BrokerChoice,
    /// The policy; it must have users sensor-1, dashboard and intruder as the example has.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum BrokerChoice {
    /// Mosquitto when it is installed, else the stub.
    Auto,
    /// Mosquitto.
    Mosquitto,
    /// The small broker of this repository.
    Stub,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("\nsluice-quickstart: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout)] // a program's voice
fn say(text: &str) {
    println!("{text}");
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (events_in, events) = channel();
    // Before anything is started, so that a signal finds us ready to clean up.
    watch_signals(events_in.clone())?;
    let folder = scratch("quickstart")?;
    let broker = Broker::start(arguments, &folder)?;
    let ports = Ports::choose(arguments.free_ports);
    let policies = Policies::write(arguments, &folder, ports.proxy, broker.port())?;
    let control = Control::start(&folder, ports)?;
    let node = Node::start(&folder, ports, &control)?;
    introduce(&broker, &control, &node);

    say("\nThe example policy becomes a generation, and every shard judges by it");
    control.show(&["apply", "-f", &policies.example, "--release", "--wait"])?;
    let address = node.address()?;
    let mut pair = Pair::connect(address)?;
    pair.watch_intruders(address)?;
    say("\nA release that turns the allowed device into a denied one, on its open session");
    control.show(&["apply", "-f", &policies.silenced, "--release", "--wait"])?;
    pair.publish("22.0", false)?;
    say("\nAnd the rollback");
    control.show(&["rollback", "--wait"])?;
    pair.publish("22.5", true)?;
    drop(pair);
    say("\nWhy was the intruder refused?");
    let asked = [
        "--user",
        "intruder",
        "--client-id",
        "intruder",
        "publish",
        TOPIC,
    ];
    control.show(&[&["explain"], &asked[..]].concat())?;
    show_commands(&control, &node, address.port(), &policies);
    if !arguments.once {
        say("\nUp until Ctrl-C.");
        for (name, running) in [
            (broker.name(), broker.running()),
            ("control plane", control.running()),
            ("data plane", node.running()),
        ] {
            let events = events_in.clone();
            running.on_end(move || drop(events.send(Event::Ended(name))));
        }
        wait(&events)?;
    }
    node.stop()?;
    control.stop()?;
    drop(broker);
    let _ = std::fs::remove_dir_all(&folder);
    say("Stopped; nothing is left running.");
    Ok(())
}

fn introduce(broker: &Broker, control: &Control, node: &Node) {
    say(&format!(
        "broker:        {} on 127.0.0.1:{} (pid {})",
        broker.name(),
        broker.port(),
        broker.running().id()
    ));
    say(&format!(
        "control plane: {} (pid {})",
        control.url(),
        control.running().id()
    ));
    say(&format!(
        "data plane:    http://{} (pid {}), joined as {}",
        node.admin,
        node.running().id(),
        fleet::NODE
    ));
}

/// The documents that are released.
struct Policies {
    example: String,
    silenced: String,
}

impl Policies {
    fn write(
        arguments: &Arguments,
        folder: &Path,
        port: u16,
        broker_port: u16,
    ) -> anyhow::Result<Self> {
        let source = match &arguments.policy {
            Some(path) => path.clone(),
            None => example_policy()?,
        };
        let original = std::fs::read_to_string(&source)
            .with_context(|| format!("cannot read {}", source.display()))?;
        let text = original
            .replace(
                &format!("127.0.0.1:{}", fleet::PROXY_PORT),
                &format!("127.0.0.1:{port}"),
            )
            .replace(
                &format!("127.0.0.1:{BROKER_PORT}"),
                &format!("127.0.0.1:{broker_port}"),
            );
        let mut example = source;
        if text != original {
            // The example itself stays as it is; a copy gets the ports that are free here.
            example = folder.join("policy.yaml");
            std::fs::write(&example, &text)?;
            if !arguments.free_ports {
                say("a port of the example is taken here; using others\n");
            }
        }
        let (before, rules) = text
            .split_once("\nrules:\n")
            .context("the policy has no line `rules:`")?;
        let silenced = folder.join("silenced.yaml");
        std::fs::write(&silenced, format!("{before}\nrules:\n{SILENCE}{rules}"))?;
        Ok(Self {
            example: shown(&example),
            silenced: shown(&silenced),
        })
    }
}

/// A path as short as it can be typed from here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Why the quickstart ends.
enum Event {
    Signal,
    Ended(&'static str),
}

fn wait(events: &Receiver<Event>) -> anyhow::Result<()> {
    match events.recv().context("the signal thread is gone")? {
        Event::Signal => Ok(()),
        // Ctrl-C reaches the whole group of the terminal: a child may be gone before we hear of it ourselves.
        Event::Ended(name) => {
            let second = events.recv_timeout(std::time::Duration::from_secs(1));
            ensure!(
                matches!(second, Ok(Event::Signal)),
                "the {name} has ended by itself"
            );
            Ok(())
        }
    }
}

fn watch_signals(events: Sender<Event>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let _ = events.send(Event::Signal);
    });
    Ok(())
}

/// What stands behind the data plane.
enum Broker {
    Mosquitto(Mosquitto),
    Stub(Running, u16),
}

impl Broker {
    fn start(arguments: &Arguments, folder: &Path) -> anyhow::Result<Self> {
        let is_installed = find_on_path("mosquitto").is_some();
        let wants_stub = match arguments.broker {
            BrokerChoice::Auto => !is_installed,
            BrokerChoice::Mosquitto => false,
            BrokerChoice::Stub => true,
        };
        let port = preferred(BROKER_PORT, arguments.free_ports);
        if !wants_stub {
            let port = (port != 0).then_some(port);
            return Ok(Self::Mosquitto(Mosquitto::start_with(folder, port, "")?));
        }
        if !is_installed {
            say("mosquitto is not on the PATH; a small broker of our own takes its place\n");
        }
        let running = Program::new("broker", sibling("sluice-stub-broker")?)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .start()?;
        let port = running.wait_address("listening on")?.port();
        Ok(Self::Stub(running, port))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Mosquitto(_) => "Mosquitto",
            Self::Stub(..) => "sluice-stub-broker",
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.port(),
            Self::Stub(_, port) => *port,
        }
    }

    fn running(&self) -> &Running {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.running(),
            Self::Stub(running, _) => running,
        }
    }
}

/// The port of the documents when it is free, else 0, which takes any.
fn preferred(port: u16, any: bool) -> u16 {
    let is_free = !any && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    if is_free { port } else { 0 }
}

fn example_policy() -> anyhow::Result<PathBuf> {
    let name = "deploy/examples/policy.yaml";
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    [Some(Path::new("")), repository]
        .into_iter()
        .flatten()
        .map(|root| root.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not here; run this from the repository"))
}

fn show_commands(control: &Control, node: &Node, port: u16, policies: &Policies) {
    let ctl = shown(&sibling("sluicectl").unwrap_or_default());
    let mut text = String::from("\nTry next:\n");
    let device = |program: &str, user: &str| {
        format!("{program} -p {port} -V mqttv5 -u {user} -P {user}-secret -i {user}")
    };
    for line in [
        format!("export SLUICE_SERVER={}", control.url()),
        format!(
            "export SLUICE_TOKEN_FILE={}",
            control.token_file().display()
        ),
        format!("{ctl} nodes    # what each should have, and what each shard has"),
        format!("{ctl} history"),
        format!("{ctl} explain --user sensor-1 --client-id sensor-1 publish {TOPIC}"),
        format!(
            "{} -t 'sensors/#' -v &",
            device("mosquitto_sub", "dashboard")
        ),
        format!(
            "{} -q 1 -t {TOPIC} -m 23.0",
            device("mosquitto_pub", "sensor-1")
        ),
        format!(
            "{} -q 1 -t {TOPIC} -m 99.9",
            device("mosquitto_pub", "intruder")
        ),
        format!("{ctl} sessions"),
        format!("{ctl} kick --client-id dashboard"),
        format!("{ctl} audit"),
        format!("{ctl} doctor"),
        format!("{ctl} diff -f {}    # edit it first", policies.example),
        format!("{ctl} apply -f {} --release --wait", policies.example),
        format!(
            "{ctl} rollback --wait    # to what was in force before; once more goes forth again"
        ),
        format!(
            "curl http://{}/    # all pages of the data plane",
            node.admin
        ),
        format!("curl http://{}/metrics", node.admin),
        format!(
            "curl http://{}/metrics    # of the control plane",
            control.admin()
        ),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {line}");
    }
    say(text.trim_end());
}
