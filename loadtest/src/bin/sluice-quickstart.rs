//! `make run`: the data plane with the example policy in front of a broker, one allowed and one denied device, and the
//! commands to try next. Stays up until Ctrl-C or SIGTERM.
//!
//! Everything it starts runs under `sluice-tether` and so dies with it, however it ends. It decides nothing about
//! devices: what it prints is what the data plane answered.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use rustix::process::Signal;
use sluice_loadtest::client::{Client, Message};
use sluice_loadtest::harness::{
    Mosquitto, Program, Running, find_on_path, free_port, http_get, scratch, sibling,
};
use sluice_loadtest::packet::{Connect, Frame, PINGREQ, Publish, subscribe};
use sluice_loadtest::patience::Deadline;
use sluice_wire::mqtt::{PacketKind, Version};

/// Ports of the example policy and of the data plane's admin server: what the documents say.
const PROXY_PORT: u16 = 1883;
const BROKER_PORT: u16 = 1884;
const ADMIN_PORT: u16 = 9090;

const TOPIC: &str = "sensors/sensor-1/temperature";

/// Starts a broker and the data plane, shows an allowed and a denied device, and stays up until Ctrl-C.
#[derive(Parser)]
#[command(name = "sluice-quickstart", version)]
struct Arguments {
    /// Show the devices and end.
    #[arg(long)]
    once: bool,
    /// Take free ports instead of 1883, 1884 and 9090.
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
    let proxy = Proxy::start(arguments, &folder, broker.port())?;
    say(&format!(
        "broker:     {} on 127.0.0.1:{} (pid {})",
        broker.name(),
        broker.port(),
        broker.running().id()
    ));
    say(&format!(
        "data plane: 127.0.0.1:{} (pid {}), policy {}\n",
        proxy.address.port(),
        proxy.running.id(),
        proxy.policy.display()
    ));
    show_devices(proxy.address)?;
    show_explanation(&proxy.policy)?;
    show_commands(&proxy);
    if !arguments.once {
        say("\nUp until Ctrl-C.");
        broker.running().on_end({
            let events = events_in.clone();
            let name = broker.name();
            move || drop(events.send(Event::Ended(name)))
        });
        proxy
            .running
            .on_end(move || drop(events_in.send(Event::Ended("data plane"))));
        wait(&events)?;
    }
    proxy.stop()?;
    drop(broker);
    let _ = std::fs::remove_dir_all(&folder);
    say("Stopped; nothing is left running.");
    Ok(())
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
        let port = preferred(BROKER_PORT, arguments.free_ports)?;
        if !wants_stub {
            return Ok(Self::Mosquitto(Mosquitto::start_with(
                folder,
                Some(port),
                "",
            )?));
        }
        if !is_installed {
            say("mosquitto is not on the PATH; a small broker of our own takes its place\n");
        }
        let running = Program::new("broker", sibling("sluice-stub-broker")?)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .start()?;
        let ready = |line: &str| line.contains("listening on").then_some(());
        running.wait_log(0, "its start", ready)?;
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

/// The data plane.
struct Proxy {
    running: Running,
    address: SocketAddr,
    admin: SocketAddr,
    policy: PathBuf,
}

impl Proxy {
    fn start(arguments: &Arguments, folder: &Path, broker_port: u16) -> anyhow::Result<Self> {
        let example = match &arguments.policy {
            Some(path) => path.clone(),
            None => example_policy()?,
        };
        let text = std::fs::read_to_string(&example)
            .with_context(|| format!("cannot read {}", example.display()))?;
        let port = preferred(PROXY_PORT, arguments.free_ports)?;
        let admin_port = preferred(ADMIN_PORT, arguments.free_ports)?;
        let mut policy = example;
        if (port, broker_port) != (PROXY_PORT, BROKER_PORT) {
            // The example itself stays as it is; a copy gets the ports that are free here.
            let text = text
                .replace(
                    &format!("127.0.0.1:{PROXY_PORT}"),
                    &format!("127.0.0.1:{port}"),
                )
                .replace(
                    &format!("127.0.0.1:{BROKER_PORT}"),
                    &format!("127.0.0.1:{broker_port}"),
                );
            policy = folder.join("policy.yaml");
            std::fs::write(&policy, text)?;
            if !arguments.free_ports {
                say(&format!(
                    "port {PROXY_PORT} or {BROKER_PORT} is taken here; using {port} and {broker_port}\n"
                ));
            }
        }
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, admin_port));
        let running = Program::new("sluice-dataplane", sibling("sluice-dataplane")?)
            .arg("--policy")
            .arg(&policy)
            .args(["--admin", &admin.to_string()])
            // Low enough that the descriptor limit of an ordinary shell is no matter.
            .args(["--connections-max", "200", "--drain-time", "200ms"])
            .start()?;
        let deadline = Deadline::generous();
        let mut mark = 0;
        loop {
            if http_get(admin, "/readyz").is_ok_and(|answer| answer.status == 200) {
                break;
            }
            ensure!(
                !deadline.has_passed(),
                "not ready\n{}",
                running.log_tail(40)
            );
            // Every step towards readiness is logged; an end of the log is an end of the program.
            let next = |_: &str| Some(());
            running.wait_log(mark, "readiness", next)?;
            mark += 1;
        }
        Ok(Self {
            running,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            admin,
            policy,
        })
    }

    fn stop(mut self) -> anyhow::Result<()> {
        // It may have had its own Ctrl-C.
        if !self.running.has_ended() {
            let _ = self.running.signal(Signal::TERM);
        }
        self.running.wait_exit()?;
        Ok(())
    }
}

/// The port of the documents when it is free, else any free one.
fn preferred(port: u16, any: bool) -> anyhow::Result<u16> {
    if !any && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
        return Ok(port);
    }
    free_port().context("no free port")
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

// ---- the devices ----

fn show_devices(address: SocketAddr) -> anyhow::Result<()> {
    say("An allowed pair of devices");
    let mut dashboard = device(address, "dashboard", "dashboard-secret")?;
    let code = dashboard.subscribe("sensors/#")?;
    tell("dashboard subscribes to sensors/#", "SUBACK", code);
    ensure!(code < 0x80, "the dashboard may not subscribe");
    let mut sensor = device(address, "sensor-1", "sensor-1-secret")?;
    let code = sensor.publish(TOPIC, "21.5")?;
    tell(
        &format!("sensor-1 publishes 21.5 to {TOPIC}"),
        "PUBACK",
        code,
    );
    ensure!(code < 0x80, "the sensor may not publish");
    let message = dashboard
        .next_message()?
        .context("the dashboard received nothing")?;
    let payload = String::from_utf8_lossy(&message.payload).into_owned();
    say(&format!(
        "  dashboard receives {payload} on {}",
        message.topic
    ));
    ensure!(payload == "21.5", "the dashboard received something else");

    say("\nA device with a password and no rights");
    let mut intruder = device(address, "intruder", "intruder-secret")?;
    let code = intruder.publish(TOPIC, "99.9")?;
    tell(
        &format!("intruder publishes 99.9 to {TOPIC}"),
        "PUBACK",
        code,
    );
    ensure!(code >= 0x80, "the intruder may publish");
    let code = intruder.subscribe("sensors/#")?;
    tell("intruder subscribes to sensors/#", "SUBACK", code);
    ensure!(code >= 0x80, "the intruder may subscribe");
    ensure!(
        dashboard.next_message()?.is_none(),
        "the intruder's message arrived"
    );
    say("  dashboard receives nothing of it, and the intruder's session stays open");

    say("\nA device with a wrong password");
    let code = login(address, "sensor-1", "guess")?.1;
    tell(
        "sensor-1 connects with the password \"guess\"",
        "CONNACK",
        code,
    );
    ensure!(code >= 0x80, "a wrong password was accepted");
    Ok(())
}

fn tell(what: &str, answer: &str, code: u8) {
    say(&format!(
        "  {what}: {answer} 0x{code:02x} ({})",
        meaning(code)
    ));
}

fn meaning(code: u8) -> &'static str {
    match code {
        0x00 => "success",
        0x01 => "granted QoS 1",
        0x02 => "granted QoS 2",
        0x10 => "no matching subscribers",
        0x86 => "bad user name or password",
        0x87 => "not authorized",
        _ => "see MQTT 5, section 2.4",
    }
}

/// One connected device.
struct Device(Client);

fn login(address: SocketAddr, user: &str, password: &str) -> anyhow::Result<(Client, u8)> {
    let mut client = Client::dial(address, Version::V5)?;
    client.send(&Connect::new(Version::V5, user).user(user, password).bytes())?;
    let connack = Device::answer(&mut client, PacketKind::Connack)?;
    let code = connack
        .body()
        .get(1)
        .copied()
        .context("CONNACK without a code")?;
    Ok((client, code))
}

fn device(address: SocketAddr, user: &str, password: &str) -> anyhow::Result<Device> {
    let (client, code) = login(address, user, password)?;
    tell(&format!("{user} connects"), "CONNACK", code);
    ensure!(code == 0, "{user} was refused");
    Ok(Device(client))
}

impl Device {
    fn answer(client: &mut Client, kind: PacketKind) -> anyhow::Result<Frame> {
        let frame = client.recv()?;
        ensure!(frame.is(kind), "expected {kind:?}, got {frame:?}");
        Ok(frame)
    }

    fn subscribe(&mut self, filter: &str) -> anyhow::Result<u8> {
        self.0.send(&subscribe(Version::V5, 1, &[(filter, 1)]))?;
        let suback = Self::answer(&mut self.0, PacketKind::Suback)?;
        suback
            .body()
            .last()
            .copied()
            .context("SUBACK without a code")
    }

    fn publish(&mut self, topic: &str, payload: &str) -> anyhow::Result<u8> {
        let publish = Publish::new(Version::V5, topic, payload).qos(1, 1);
        self.0.send(&publish.bytes())?;
        let puback = Self::answer(&mut self.0, PacketKind::Puback)?;
        // Success is left out of the short form.
        Ok(puback.body().get(2).copied().unwrap_or(0))
    }

    /// What arrives before the answer to a ping; `None` when nothing does.
    fn next_message(&mut self) -> anyhow::Result<Option<Message>> {
        self.0.send(&PINGREQ)?;
        let mut message = None;
        loop {
            let frame = self.0.recv()?;
            if frame.is(PacketKind::Pingresp) {
                return Ok(message);
            }
            if !frame.is(PacketKind::Publish) {
                bail!("unexpected {frame:?}");
            }
            message = Some(Message::read(Version::V5, &frame));
        }
    }
}

// ---- what to look at next ----

fn show_explanation(policy: &Path) -> anyhow::Result<()> {
    let arguments = [
        "--user",
        "intruder",
        "--client-id",
        "intruder",
        "publish",
        TOPIC,
    ];
    say("\nWhy was the intruder refused? Ask:");
    let program = sibling("sluice-dataplane")?;
    // As short as it can be typed from here.
    let here = std::env::current_dir()?;
    let shown = program.strip_prefix(&here).unwrap_or(&program);
    say(&format!(
        "  {} explain --policy {} {}",
        shown.display(),
        policy.display(),
        arguments.join(" ")
    ));
    let mut explain = Program::new("explain", program.clone())
        .args(["explain", "--policy"])
        .arg(policy)
        .args(arguments)
        .start()?;
    let (_, output) = explain.output()?;
    for line in output.lines() {
        say(&format!("    {line}"));
    }
    Ok(())
}

fn show_commands(proxy: &Proxy) {
    let port = proxy.address.port();
    let admin = proxy.admin;
    let mut text = String::from("\nTry next:\n");
    let device = |program: &str, user: &str| {
        format!("{program} -p {port} -V mqttv5 -u {user} -P {user}-secret -i {user}")
    };
    for line in [
        format!("{} -t 'sensors/#' -v", device("mosquitto_sub", "dashboard")),
        format!(
            "{} -q 1 -t {TOPIC} -m 22.0",
            device("mosquitto_pub", "sensor-1")
        ),
        format!(
            "{} -q 1 -t {TOPIC} -m 99.9",
            device("mosquitto_pub", "intruder")
        ),
        format!("curl http://{admin}/metrics"),
        format!("curl http://{admin}/readyz"),
        format!(
            "kill -HUP {}    # after editing {}",
            proxy.running.id(),
            proxy.policy.display()
        ),
        format!("curl http://{admin}/policy    # was the edit taken, or why not"),
        format!("curl http://{admin}/    # all pages"),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {line}");
    }
    say(text.trim_end());
}
