//! The devices of the quickstart: what they try, and what they are told. Decides nothing: it prints what the data plane
//! answered, and ends the quickstart when that is not what the policy says.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use sluice_loadtest::client::{Client, Message};
use sluice_loadtest::packet::{Connect, Frame, PINGREQ, Publish, subscribe};
use sluice_wire::mqtt::{PacketKind, Version};

use crate::say;

/// Where the sensor of the example publishes.
pub(crate) const TOPIC: &str = "sensors/sensor-1/temperature";

/// A sensor and a dashboard with open sessions.
pub(crate) struct Pair {
    sensor: Device,
    dashboard: Device,
}

impl Pair {
    /// Both connect, and a first value goes through.
    pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        say("\nAn allowed pair of devices");
        let mut dashboard = device(address, "dashboard", "dashboard-secret")?;
        let code = dashboard.subscribe("sensors/#")?;
        tell("dashboard subscribes to sensors/#", "SUBACK", code);
        ensure!(code < 0x80, "the dashboard may not subscribe");
        let sensor = device(address, "sensor-1", "sensor-1-secret")?;
        let mut this = Self { sensor, dashboard };
        this.publish("21.5", true)?;
        Ok(this)
    }

    /// The sensor publishes on the session that it has; whether that is allowed must be as expected.
    pub(crate) fn publish(&mut self, value: &str, is_allowed: bool) -> anyhow::Result<()> {
        let code = self.sensor.publish(TOPIC, value)?;
        let what = format!("sensor-1 publishes {value} to {TOPIC}");
        tell(&what, "PUBACK", code);
        let message = self.dashboard.next_message()?;
        if !is_allowed {
            ensure!(code >= 0x80, "the sensor may publish");
            ensure!(message.is_none(), "the sensor's message arrived");
            say("  dashboard receives nothing");
            return Ok(());
        }
        ensure!(code < 0x80, "the sensor may not publish");
        let message = message.context("the dashboard received nothing")?;
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        say(&format!(
            "  dashboard receives {payload} on {}",
            message.topic
        ));
        ensure!(payload == value, "the dashboard received something else");
        Ok(())
    }

    /// One with a password and no rights, and one with a wrong password.
    pub(crate) fn watch_intruders(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        say("\nA device with a password and no rights");
        let mut intruder = device(address, "intruder", "intruder-secret")?;
        let code = intruder.publish(TOPIC, "99.9")?;
        let what = format!("intruder publishes 99.9 to {TOPIC}");
        tell(&what, "PUBACK", code);
        ensure!(code >= 0x80, "the intruder may publish");
        let code = intruder.subscribe("sensors/#")?;
        tell("intruder subscribes to sensors/#", "SUBACK", code);
        ensure!(code >= 0x80, "the intruder may subscribe");
        ensure!(
            self.dashboard.next_message()?.is_none(),
            "the intruder's message arrived"
        );
        say("  dashboard receives nothing of it, and the intruder's session stays open");

        say("\nA device with a wrong password");
        let code = login(address, "sensor-1-again", "sensor-1", "guess")?.1;
        let what = "sensor-1 connects with the password \"guess\"";
        tell(what, "CONNACK", code);
        ensure!(code >= 0x80, "a wrong password was accepted");
        Ok(())
    }
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
pub(crate) struct Device(Client);

fn login(
    address: SocketAddr,
    id: &str,
    user: &str,
    password: &str,
) -> anyhow::Result<(Client, u8)> {
    let mut client = Client::dial(address, Version::V5)?;
    client.send(&Connect::new(Version::V5, id).user(user, password).bytes())?;
    let connack = Device::answer(&mut client, PacketKind::Connack)?;
    let code = connack
        .body()
        .get(1)
        .copied()
        .context("CONNACK without a code")?;
    Ok((client, code))
}

fn device(address: SocketAddr, user: &str, password: &str) -> anyhow::Result<Device> {
    let (client, code) = login(address, user, user, password)?;
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
