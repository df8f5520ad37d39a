//! Runs a plan: connects the devices, keeps the schedule, measures the window, reports.
//!
//! Owns the order of a run. Everything happens on one monoio thread; the sink has its own.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::{FusionDriver, RuntimeBuilder};

use super::clock::{self, Metronome};
use super::cpu::Usage;
use super::device::{Device, Dial, Role, World, add, connect};
use super::frame::{DISCONNECT, Template};
use super::lanes::Lane;
use super::pace::{Pace, Window};
use super::plan::{Plan, Scenario};
use super::report::Report;
use super::sink::Sink;

/// Time between the last connection and the first message, in which set-up work ends and memory settles.
const SETTLE: Duration = Duration::from_millis(300);
/// How long messages may still arrive after the window.
const GRACE: Duration = Duration::from_secs(2);
/// How long a connection of a storm waits for the other side to close.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);
/// Connections of a storm that may be unfinished at once; more are not opened and counted as unsent.
const STORM_OPEN_MAX: u64 = 5_000;

/// Runs the plan on a runtime of its own on this thread. `sink` is the broker behind the target, when it is ours.
pub fn run(plan: &Plan, sink: Option<&Sink>) -> anyhow::Result<Report> {
    let mut runtime = RuntimeBuilder::<FusionDriver>::new()
        .with_entries(4_096)
        .enable_timer()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let run = Run {
            plan,
            sink,
            world: Rc::default(),
            metronome: Metronome::new()?,
            dial: Dial {
                target: plan.target.clone(),
                version: plan.version,
                login: plan.login.clone(),
                client_id_prefix: plan.client_id_prefix.clone(),
            },
        };
        if plan.progress {
            monoio::spawn(progress(Rc::clone(&run.world)));
        }
        match plan.scenario {
            Scenario::ConnectStorm => run.storm().await,
            Scenario::Idle
            | Scenario::Publish
            | Scenario::FanIn
            | Scenario::FanOut
            | Scenario::RequestResponse
            | Scenario::SlowReader
            | Scenario::PolicyChurn => run.devices().await,
        }
    })
}

/// One line a second, for whoever waits.
async fn progress(world: Rc<World>) {
    let mut before = 0;
    for second in 1.. {
        monoio::time::sleep(Duration::from_secs(1)).await;
        let sent = world.sent.get();
        let line = format!(
            "{second:>4} s  open {:>6}  sent {sent:>9} (+{})  delivered {:>9}  acked {:>8}  unsent {}  failed {}",
            world.open.get(),
            sent - before,
            world.delivered.get(),
            world.acked.get(),
            world.unsent.get(),
            world.connect_failures.get() + world.broken.get(),
        );
        before = sent;
        if writeln!(io::stderr(), "{line}").is_err() {
            return;
        }
    }
}

struct Run<'a> {
    plan: &'a Plan,
    sink: Option<&'a Sink>,
    world: Rc<World>,
    metronome: Metronome,
    dial: Dial,
}

/// Cost of the target at the four moments that matter.
#[derive(Default)]
struct Costs {
    before: Usage,
    connected: Usage,
    from: Usage,
    until: Usage,
}

impl Run<'_> {
    async fn devices(&self) -> anyhow::Result<Report> {
        let mut costs = Costs {
            before: self.usage()?,
            ..Costs::default()
        };
        let (senders, others) = self.open_all().await?;
        monoio::time::sleep(SETTLE).await;
        costs.connected = self.usage()?;
        let window = self.begin();
        self.send(&senders, window, &mut costs).await?;
        self.wait_for_stragglers().await;
        let report = self.report(&costs, window);
        self.close(senders.iter().chain(&others)).await;
        Ok(report)
    }

    /// The roles of the run: those that send, then those that only receive or hold.
    fn roles(&self) -> (Vec<Role>, Vec<Role>) {
        let plan = self.plan;
        let devices = 0..plan.connections;
        let template = |topic: &str, response: Option<&str>| {
            Template::new(plan.version, topic, plan.qos, plan.payload_bytes, response)
        };
        let publisher = |topics: Vec<String>| {
            Role::Publisher(topics.iter().map(|topic| template(topic, None)).collect())
        };
        let publishers = || {
            devices
                .clone()
                .map(|index| publisher(plan.topics_of(index)))
                .collect::<Vec<_>>()
        };
        let one = || vec![publisher(vec![plan.topic(0)])];
        match plan.scenario {
            Scenario::Idle | Scenario::ConnectStorm => {
                (Vec::new(), devices.map(|_| Role::Idle).collect())
            }
            Scenario::Publish => (publishers(), Vec::new()),
            Scenario::PolicyChurn => {
                let lanes = |index| publisher(Lane::ALL.map(|lane| lane.topic(index)).into());
                (devices.map(lanes).collect(), Vec::new())
            }
            Scenario::FanIn => {
                let filter = filter_of(&plan.topics, plan.topics_per_device);
                (publishers(), vec![Role::Subscriber { filter }])
            }
            Scenario::FanOut | Scenario::SlowReader => {
                let filter = plan.topic(0);
                let is_slow = |index: u32| {
                    plan.scenario == Scenario::SlowReader
                        && index.is_multiple_of(plan.slow_every.max(1))
                };
                let subscribers = devices
                    .map(|index| {
                        let filter = filter.clone();
                        if is_slow(index) {
                            Role::SlowSubscriber {
                                filter,
                                bytes_per_sec: plan.slow_bytes_per_sec,
                            }
                        } else {
                            Role::Subscriber { filter }
                        }
                    })
                    .collect();
                (one(), subscribers)
            }
            Scenario::RequestResponse => {
                let requesters = devices
                    .map(|index| {
                        let response = format!("response/{index}");
                        Role::Requester {
                            template: template(&format!("request/{index}"), Some(&response)),
                            filter: response,
                        }
                    })
                    .collect();
                let filter = "request/+".to_owned();
                (requesters, vec![Role::Responder { filter }])
            }
        }
    }

    /// Opens every device at the connect rate; receivers first, so that nothing is sent to nobody.
    async fn open_all(&self) -> anyhow::Result<(Vec<Rc<Device>>, Vec<Rc<Device>>)> {
        let (senders, others) = self.roles();
        let sender_count = senders.len();
        let pace = Pace::new(clock::now(), self.plan.connect_rate);
        let mut opening = Vec::with_capacity(senders.len() + others.len());
        // Senders keep the numbers from 0 on, which their topics name.
        let numbered = (0u32..).zip(senders.into_iter().chain(others));
        let mut numbered: Vec<_> = numbered.collect();
        numbered.rotate_left(sender_count);
        for (n, (index, role)) in (0u64..).zip(numbered) {
            let due = pace.due_ns(n);
            self.metronome.until(due).await?;
            let (world, dial) = (Rc::clone(&self.world), self.dial.clone());
            opening.push((
                index,
                monoio::spawn(async move { Device::open(world, &dial, index, role, due).await }),
            ));
        }
        let (mut ready_senders, mut ready_others) = (Vec::new(), Vec::new());
        let mut first_error = None;
        for (index, task) in opening {
            match task.await {
                Ok(device) if (index as usize) < sender_count => ready_senders.push(device),
                Ok(device) => ready_others.push(device),
                Err(error) => {
                    add(&self.world.connect_failures, 1);
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if ready_senders.is_empty() && ready_others.is_empty() => {
                Err(error).with_context(|| format!("nobody could connect to {}", self.plan.target))
            }
            _ => Ok((ready_senders, ready_others)),
        }
    }

    /// Fixes the window, from a little ahead of now.
    fn begin(&self) -> Window {
        let start = clock::now() + 10_000_000;
        let from_ns = start + nanos(self.plan.warm_up);
        let window = Window {
            from_ns,
            until_ns: from_ns + nanos(self.plan.duration),
        };
        self.world.window.set(window);
        if let Some(sink) = self.sink {
            sink.measure(window);
        }
        window
    }

    /// Keeps the schedule until the window ends, and reads the cost at both its ends.
    async fn send(
        &self,
        senders: &[Rc<Device>],
        window: Window,
        costs: &mut Costs,
    ) -> anyhow::Result<()> {
        let start = window.from_ns - nanos(self.plan.warm_up);
        let burst = self.plan.burst.max(1);
        let pace = Pace::new(start, self.plan.rate / burst);
        let mut is_measuring = false;
        let mut next = 0;
        if !senders.is_empty() {
            loop {
                let due = pace.due_ns(next);
                if due >= window.until_ns {
                    break;
                }
                if due >= window.from_ns && !is_measuring {
                    self.metronome.until(window.from_ns).await?;
                    costs.from = self.usage()?;
                    is_measuring = true;
                }
                self.metronome.until(due).await?;
                if let Some(device) = senders.get((next % senders.len() as u64) as usize) {
                    for _ in 0..burst {
                        device.publish(due);
                    }
                }
                next += 1;
                // Behind the schedule, nothing above waits; let the devices write from time to time.
                if next.is_multiple_of(64) && clock::now() > pace.due_ns(next + 64) {
                    self.metronome.until(clock::now() + 1_000).await?;
                }
            }
        }
        if !is_measuring {
            self.metronome.until(window.from_ns).await?;
            costs.from = self.usage()?;
        }
        self.metronome.until(window.until_ns).await?;
        costs.until = self.usage()?;
        Ok(())
    }

    async fn wait_for_stragglers(&self) {
        let deadline = clock::now() + nanos(GRACE);
        while clock::now() < deadline && !self.is_complete() {
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn is_complete(&self) -> bool {
        let world = &self.world;
        let sent = world.sent_in_window.get();
        let at_sink = self.sink.is_none_or(|sink| in_window(sink) >= sent);
        let acked = self.plan.qos == 0 || world.acked.get() >= sent;
        at_sink && acked && world.delivered.get() >= sent * self.receivers()
    }

    /// Receivers that keep up: how often each message is delivered.
    fn receivers(&self) -> u64 {
        let connections = u64::from(self.plan.connections);
        match self.plan.scenario {
            Scenario::ConnectStorm | Scenario::Idle | Scenario::Publish | Scenario::PolicyChurn => {
                0
            }
            Scenario::FanIn | Scenario::RequestResponse => 1,
            Scenario::FanOut => connections,
            Scenario::SlowReader => {
                connections - connections.div_ceil(u64::from(self.plan.slow_every.max(1)))
            }
        }
    }

    fn report(&self, costs: &Costs, window: Window) -> Report {
        let (plan, world) = (self.plan, &self.world);
        let mut report = self.blank_report(window);
        let sent = world.sent_in_window.get();
        let receivers = self.receivers();
        report.count("sent", sent);
        report.count("unsent", world.unsent.get());
        report.count("broken", world.broken.get());
        report.latency("lateness", &world.lateness.borrow());
        if receivers > 0 {
            report.count("delivered", world.delivered.get());
            let missing = (sent * receivers).saturating_sub(world.delivered.get());
            report.count("undelivered", missing);
            report.latency("delivery", &world.delivery.borrow());
            report.primary = "delivery".into();
        }
        if let Some(sink) = self.sink {
            // Responses are published too, so the sink sees each request twice.
            let expected = if plan.scenario == Scenario::RequestResponse {
                2 * sent
            } else {
                sent
            };
            report.count("at_broker", in_window(sink));
            report.count("lost", expected.saturating_sub(in_window(sink)));
            let counts = sink.counts();
            report.count("out_of_order", load(&counts.out_of_order));
            report.count("dropped_by_broker", load(&counts.dropped));
            report.latency("to_broker", &sink.latency());
            if receivers == 0 {
                report.primary = "to_broker".into();
            }
        }
        if plan.qos > 0 {
            report.count("acked", world.acked.get());
            report.count("unacked", sent.saturating_sub(world.acked.get()));
            report.latency("ack", &world.ack.borrow());
            if report.primary.is_empty() {
                report.primary = "ack".into();
            }
        }
        if plan.scenario == Scenario::SlowReader {
            report.count("slow_bytes", world.slow_bytes.get());
        }
        if plan.scenario == Scenario::Idle {
            report.primary = "connect".into();
        }
        if !plan.pids.is_empty() {
            let opened = world.connect.borrow().quantiles().map_or(0, |q| q.count);
            costs.connections(opened, &mut report);
            costs.messages(sent + world.delivered.get(), window, &mut report);
        }
        report
    }

    fn blank_report(&self, window: Window) -> Report {
        let (plan, world) = (self.plan, &self.world);
        let settings = [
            ("connections", plan.connections.to_string()),
            ("rate", plan.rate.to_string()),
            ("burst", plan.burst.to_string()),
            ("topics_per_device", plan.topics_per_device.to_string()),
            ("payload", plan.payload_bytes.to_string()),
            ("qos", plan.qos.to_string()),
            ("version", format!("{:?}", plan.version)),
        ];
        let mut report = Report {
            scenario: plan.scenario.name().into(),
            target: plan.target.to_string(),
            settings: BTreeMap::from(settings.map(|(name, value)| (name.to_owned(), value))),
            seconds: (window.until_ns - window.from_ns) as f64 / 1e9,
            ..Report::default()
        };
        let connect = world.connect.borrow();
        report.latency("connect", &connect);
        report.count("connected", connect.quantiles().map_or(0, |q| q.count));
        report.count("connect_failures", world.connect_failures.get());
        report
    }

    async fn close(&self, devices: impl Iterator<Item = &Rc<Device>>) {
        for device in devices {
            device.close();
        }
        let deadline = clock::now() + nanos(GRACE);
        while self.world.open.get() > 0 && clock::now() < deadline {
            monoio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn usage(&self) -> io::Result<Usage> {
        Usage::read(&self.plan.pids)
    }

    /// Opens connections on schedule, whatever became of the earlier ones.
    async fn storm(&self) -> anyhow::Result<Report> {
        let window = self.begin();
        let start = window.from_ns - nanos(self.plan.warm_up);
        let pace = Pace::new(start, self.plan.rate);
        let mut costs = Costs {
            before: self.usage()?,
            ..Costs::default()
        };
        let mut is_measuring = false;
        for n in 0u64.. {
            let due = pace.due_ns(n);
            if due >= window.until_ns {
                break;
            }
            self.metronome.until(due).await?;
            if !is_measuring && due >= window.from_ns {
                costs.from = self.usage()?;
                is_measuring = true;
            }
            add(&self.world.sent, 1);
            if window.holds(due) {
                add(&self.world.sent_in_window, 1);
            }
            if self.world.open.get() >= STORM_OPEN_MAX {
                add(&self.world.unsent, 1);
                continue;
            }
            add(&self.world.open, 1);
            monoio::spawn(one_of_a_storm(
                Rc::clone(&self.world),
                self.dial.clone(),
                n,
                due,
            ));
        }
        self.metronome.until(window.until_ns).await?;
        costs.until = self.usage()?;
        let deadline = clock::now() + nanos(GRACE);
        while self.world.open.get() > 0 && clock::now() < deadline {
            monoio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut report = self.blank_report(window);
        report.primary = "connect".into();
        let due = self.world.sent_in_window.get();
        report.count("due", due);
        report.count("unsent", self.world.unsent.get());
        if !self.plan.pids.is_empty() && due > 0 {
            let cpu = costs.until.cpu_us_since(&costs.from);
            report.value("cpu_us_per_connection", cpu / due as f64);
            report.value("rss_kib", costs.until.rss_kib as f64);
        }
        Ok(report)
    }
}

async fn one_of_a_storm(world: Rc<World>, dial: Dial, n: u64, due: u64) {
    match connect(&dial, (n % u64::from(u32::MAX)) as u32).await {
        Ok(mut stream) => {
            if world.window.get().holds(due) {
                world
                    .connect
                    .borrow_mut()
                    .record_ns(clock::now().saturating_sub(due));
            }
            let _ = stream.write_all(DISCONNECT.as_slice()).await;
            // The other side closes first, as MQTT has it, so that the port of this connection is free at once. A storm
            // that closed by itself would soon measure how the kernel looks for ports that are not in TIME_WAIT.
            let end = stream.read(Vec::with_capacity(64));
            let _ = monoio::time::timeout(CLOSED_WITHIN, end).await;
        }
        Err(_) => add(&world.connect_failures, 1),
    }
    world.open.set(world.open.get().saturating_sub(1));
}

impl Costs {
    fn connections(&self, opened: u64, report: &mut Report) {
        let (before, after) = (&self.before, &self.connected);
        report.value("rss_kib_before", before.rss_kib as f64);
        report.value("rss_kib_connected", after.rss_kib as f64);
        if opened == 0 {
            return;
        }
        let each = |before: u64, after: u64| (after as f64 - before as f64) / opened as f64;
        report.value(
            "cpu_us_per_connection",
            after.cpu_us_since(before) / opened as f64,
        );
        report.value(
            "rss_kib_per_connection",
            each(before.rss_kib, after.rss_kib),
        );
        report.value(
            "anon_kib_per_connection",
            each(before.anon_kib, after.anon_kib),
        );
    }

    fn messages(&self, messages: u64, window: Window, report: &mut Report) {
        let cpu = self.until.cpu_us_since(&self.from);
        let wall = (window.until_ns - window.from_ns) as f64 / 1_000.0;
        report.value("cpu_cores", cpu / wall);
        report.value("rss_kib_end", self.until.rss_kib as f64);
        if messages > 0 {
            report.value("cpu_us_per_message", cpu / messages as f64);
        }
        if let Some(share) = self.until.user_share_since(&self.from) {
            report.value("user_share", share);
        }
    }
}

/// The filter that takes in every topic of a pattern.
fn filter_of(topics: &str, per_device: u32) -> String {
    let further = if per_device > 1 { "/+" } else { "" };
    topics
        .split('/')
        .map(|level| if level.contains('{') { "+" } else { level })
        .collect::<Vec<_>>()
        .join("/")
        + further
}

fn in_window(sink: &Sink) -> u64 {
    load(&sink.counts().in_window)
}

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_takes_in_every_device() {
        assert_eq!(filter_of("devices/{c}/telemetry", 1), "devices/+/telemetry");
        assert_eq!(filter_of("a/x{m}/b", 1), "a/+/b");
        assert_eq!(filter_of("a", 1), "a");
        assert_eq!(filter_of("a/{c}", 3), "a/+/+");
    }
}
