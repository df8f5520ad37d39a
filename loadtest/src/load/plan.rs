//! What a run is asked to do: the options of a scenario, as given on the command line or by `compare`.

use std::time::Duration;

use super::frame::{Login, Version};
use super::target::Target;

/// The scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Connections opened at a steady rate, each closed after its CONNACK.
    ConnectStorm,
    /// Connections held, nothing sent.
    Idle,
    /// Every device publishes to its own topics; the broker swallows.
    Publish,
    /// Every device publishes, one subscriber receives all.
    FanIn,
    /// One device publishes, every other one receives all.
    FanOut,
    /// Devices publish requests, a responder answers each.
    RequestResponse,
    /// As fan-out, but some subscribers read slowly: the others must not notice.
    SlowReader,
    /// Every device publishes to the topics of [`lanes`](super::lanes) in turn. Only with a policy that goes with them.
    #[value(skip)]
    PolicyChurn,
}

impl Scenario {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectStorm => "connect-storm",
            Self::Idle => "idle",
            Self::Publish => "publish",
            Self::FanIn => "fan-in",
            Self::FanOut => "fan-out",
            Self::RequestResponse => "request-response",
            Self::SlowReader => "slow-reader",
            Self::PolicyChurn => "policy-churn",
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which scenario.
    pub scenario: Scenario,
    /// Against what.
    pub target: Target,
    /// Devices. In fan-in, request-response and fan-out the one opposite end comes on top.
    pub connections: u32,
    /// Messages (connect-storm: connections) a second, all devices together.
    pub rate: u32,
    /// Messages that become due together; the rate stays the same.
    pub burst: u32,
    /// Connections opened a second before the run.
    pub connect_rate: u32,
    /// Length of the payload, at least the stamp.
    pub payload_bytes: usize,
    /// QoS of published messages.
    pub qos: u8,
    /// MQTT version.
    pub version: Version,
    /// Measured time.
    pub duration: Duration,
    /// Time before it, with the same load.
    pub warm_up: Duration,
    /// Topic of a publisher: `{c}` is the device, `{m}` counts devices round from 0 to 63.
    pub topics: String,
    /// publish, fan-in: topics that each device goes through in turn. Beyond one, each has a further level: its number.
    pub topics_per_device: u32,
    /// Front of client ids.
    pub client_id_prefix: String,
    /// Credentials of every device.
    pub login: Login,
    /// slow-reader: every so many-th subscriber is slow.
    pub slow_every: u32,
    /// slow-reader: bytes a second of a slow one.
    pub slow_bytes_per_sec: u32,
    /// Processes whose cost is measured.
    pub pids: Vec<u32>,
    /// One line a second on standard error.
    pub progress: bool,
}

impl Plan {
    /// A small plan against `target`; callers change what they need.
    pub fn new(scenario: Scenario, target: Target) -> Self {
        Self {
            scenario,
            target,
            connections: 100,
            rate: 1_000,
            burst: 1,
            connect_rate: 2_000,
            payload_bytes: 128,
            qos: 0,
            version: Version::V311,
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(1),
            topics: "devices/{c}/telemetry".into(),
            topics_per_device: 1,
            client_id_prefix: "load-".into(),
            login: Login::default(),
            slow_every: 10,
            slow_bytes_per_sec: 1_000,
            pids: Vec::new(),
            progress: false,
        }
    }

    /// The topic of device `index`.
    pub fn topic(&self, index: u32) -> String {
        self.topics
            .replace("{c}", &index.to_string())
            .replace("{m}", &(index % 64).to_string())
    }

    /// All topics of device `index`.
    pub fn topics_of(&self, index: u32) -> Vec<String> {
        let topic = self.topic(index);
        match self.topics_per_device {
            0 | 1 => vec![topic],
            count => (0..count).map(|t| format!("{topic}/{t}")).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_name_the_device() {
        let target = "unix:///x".parse().unwrap();
        let mut plan = Plan::new(Scenario::Publish, target);
        plan.topics = "a/{c}/{m}/{other}".into();
        assert_eq!(plan.topic(65), "a/65/1/{other}");
        assert_eq!(plan.topics_of(65), ["a/65/1/{other}"]);
        plan.topics = "a/{c}".into();
        plan.topics_per_device = 2;
        assert_eq!(plan.topics_of(7), ["a/7/0", "a/7/1"]);
    }
}
