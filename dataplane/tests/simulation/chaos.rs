//! Random lives of a shard: devices, a broker, a control thread and a network that misbehave as the seed says, and the
//! model that knows what must come of it.

use std::time::Duration;

use sluice_dataplane::metrics::Counter;
use sluice_dataplane::node::{AfterDrain, KickWho, SessionFilter, ToShard};
use sluice_dataplane::ring::simulated::{Faults, Random, Serve};
use sluice_dataplane::ring::{ListenSlot, RingConfig};

use crate::basics::address;
use crate::broker::{Around, Broker};
use crate::device::{Device, Stance};
use crate::stage::{Options, Stage};

const BACKLOG_HIGH: u64 = 4096;

/// Rules that take time when a session is admitted and say nothing.
const CROWD: u32 = 16;

/// Odd generations allow what is below `flip`.
fn policy(generation: u64) -> String {
    let flip = if generation % 2 == 1 { "allow" } else { "deny" };
    // So many who-parts nearly match that a few sessions take all of a turn's share.
    let crowd: String = (0..CROWD)
        .map(|number| {
            let who =
                format!("{{groups: [devices], addresses: ['10.0.0.0/8', '10.9.{number}.0/24']}}");
            format!(
                "  - {{name: crowd{number}, who: {who}, actions: [connect], decision: allow}}\n"
            )
        })
        .collect();
    format!(
        "
default: deny
listeners:
  - name: devices
    address: 127.0.0.1:1883
    upstream: broker
    anonymous: {{group: devices}}
    limits:
      connect_timeout: 60s
      packet_timeout: 60s
      write_stall_timeout: 60s
      backlog_bytes_high: {BACKLOG_HIGH}
      backlog_bytes_low: 512
upstreams:
  - name: broker
    endpoints: ['tcp://127.0.0.1:2001', 'tcp://127.0.0.1:2002']
    balance: client_id
    dial: {{timeout: 1s, attempts_max: 3, backoff: 100ms}}
    breaker: {{failures: 4, open: 2s}}
groups: [{{name: devices}}]
users:
  - name: sensor
    password_hash: '$argon2id$v=19$m=19456,t=2,p=1$ds+d6TOdMUN7qIcN96AnSw$JeGqZDdLySTjyWo/w1vSvRfxWeJbdyoR5Qij+qyYhBI'
    groups: [devices]
rules:
  - {{name: connect, actions: [connect], decision: allow}}
  - {{name: flip, actions: [publish, subscribe], topics: ['flip/#'], decision: {flip}}}
  - {{name: open, actions: [publish, subscribe], topics: ['open/#'], decision: allow}}
{crowd}"
    )
}

struct Life {
    stage: Stage,
    random: Random,
    devices: Vec<Device>,
    broker: Broker,
    budget: u64,
    ring: RingConfig,
    /// The network breaks connections.
    is_lossy: bool,
    is_draining: bool,
}

/// Lives one life and tells what was counted in it; a broken promise comes back as text.
pub(crate) fn live(seed: u64) -> Result<Vec<(Counter, u64)>, String> {
    let mut life = Life::new(seed);
    let steps = 150 + life.random.below(150);
    for step in 0..steps {
        life.step().map_err(|why| format!("step {step}: {why}"))?;
    }
    life.settle()
        .map_err(|why| format!("{why}; {:?}", life.stage.counts()))?;
    life.end()?;
    Ok(life.stage.counts())
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x1f3d_5b79);
        let faults = match random.below(4) {
            0 => Faults::none(),
            1 => Faults::hostile(seed),
            _ => Faults::lossless(seed),
        };
        let budget = random.pick(&[4 << 10, 64 << 10, 1 << 20]);
        let ring = RingConfig {
            sockets_max: random.pick(&[6, 64, 64]),
            buffers: random.pick(&[2, 16, 64]),
            buffer_bytes: random.pick(&[64, 512, 4096]),
        };
        let is_lossy = faults.reset > 0;
        let mut options = Options {
            seed,
            faults,
            ring: ring.clone(),
            ..Options::quiet()
        };
        options.limits.backlog_bytes_max = budget;
        options.limits.sessions_max = 12;
        Self {
            stage: Stage::with_policy(&options, &policy(1)),
            random,
            devices: Vec::new(),
            broker: Broker::default(),
            budget,
            ring,
            is_lossy,
            is_draining: false,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let wait = Duration::from_micros(self.random.pick(&[0, 100, 3_000, 40_000, 300_000]));
        let alarm = self.stage.now().after(wait);
        self.stage.network.set_alarm(Some(alarm));
        self.act();
        self.turn()
    }

    /// One random thing to do, by anyone.
    fn act(&mut self) {
        let (since, generation) = (self.stage.acknowledged, self.stage.generation());
        match self.random.below(100) {
            0..20 if self.devices.len() < 10 => {
                let number = self.devices.len();
                let peer = self
                    .stage
                    .network
                    .connect(ListenSlot(0), address((number % 4) as u8));
                let device = Device::new(&mut self.random, number, peer);
                self.devices.push(device);
            }
            0..70 if !self.devices.is_empty() => {
                let number = self.random.below(self.devices.len() as u64) as usize;
                self.devices[number].act(&self.stage.network, &mut self.random, since);
            }
            70..88 => {
                let (broker, mut around) = parts(&mut self.broker, &self.stage, &mut self.devices);
                broker.act(&mut self.random, &mut around);
            }
            88..93 => self.stage.apply(&policy(generation + 1)),
            93 => {
                let targets = self.stage.targets();
                let serve = [
                    Serve::Accept,
                    Serve::Accept,
                    Serve::Refuse(111),
                    Serve::Blackhole,
                ];
                let target = &targets[self.random.below(2) as usize];
                self.stage
                    .network
                    .serve(target, serve[self.random.below(4) as usize]);
            }
            94 if !self.devices.is_empty() => {
                let number = self.random.below(self.devices.len() as u64) as usize;
                self.devices[number].is_cut = true;
                let client_id = self.devices[number].client_id.as_str().into();
                let who = KickWho::ClientId(client_id);
                let request = number as u64;
                self.stage.send(ToShard::Kick { request, who });
            }
            95 => self.stage.send(ToShard::Report { request: 1 }),
            96 => self.stage.send(ToShard::List {
                request: 2,
                from: 0,
                limit: 3,
                filter: SessionFilter::default(),
            }),
            97..100 => self.stage.answer_passwords(),
            _ => {}
        }
    }

    fn turn(&mut self) -> Result<(), String> {
        self.stage.turn();
        for target in self.stage.targets() {
            while let Some(peer) = self.stage.network.accept(&target) {
                self.broker.accept(peer);
            }
        }
        let (broker, mut around) = parts(&mut self.broker, &self.stage, &mut self.devices);
        broker.play(&mut self.random, &mut around)?;
        let (since, latest) = (self.stage.acknowledged, self.stage.generation());
        for device in &mut self.devices {
            device.play(&self.stage.network, &mut self.random, since, latest)?;
        }
        self.check_bounds()
    }

    fn check_bounds(&mut self) -> Result<(), String> {
        let (sessions, backlog) = (
            self.stage.shard.sessions(),
            self.stage.shard.backlog_bytes(),
        );
        if self.stage.table.connections() != sessions {
            return Err(format!(
                "{} counted, {sessions} open",
                self.stage.table.connections()
            ));
        }
        if sessions > 12 {
            return Err(format!("{sessions} sessions"));
        }
        // High mark, twice for what the proxy itself writes, and one turn's buffers.
        let turn = u64::from(self.ring.buffers) * u64::from(self.ring.buffer_bytes);
        let marks = u64::from(sessions) * 2 * (2 * BACKLOG_HIGH + turn);
        if backlog > marks.min(self.budget) {
            return Err(format!("{backlog} bytes of backlog"));
        }
        Ok(())
    }

    /// Everybody behaves, the network too: what had to arrive arrives.
    fn settle(&mut self) -> Result<(), String> {
        self.stage.network.set_faults(Faults::none());
        for device in &mut self.devices {
            device.calm_down();
        }
        for _ in 0..60 {
            self.stage.answer_passwords();
            let alarm = self.stage.now().after(Duration::from_millis(200));
            while self.stage.now() < alarm {
                self.stage.network.set_alarm(Some(alarm));
                self.turn()?;
            }
        }
        let (latest, acknowledged) = (self.stage.generation(), self.stage.acknowledged);
        if latest != acknowledged {
            return Err(format!(
                "generation {latest} active, {acknowledged} acknowledged"
            ));
        }
        // A network that breaks connections owes nobody anything, nor does a shard that sheds load.
        let may_lose = self.is_lossy || self.stage.count(Counter::BacklogShed) > 0;
        if may_lose {
            return Ok(());
        }
        self.devices
            .iter()
            .try_for_each(|device| device.check_settled(latest))
    }

    /// Everybody goes, by a drain or by themselves: nothing is left.
    fn end(&mut self) -> Result<(), String> {
        self.is_draining = self.random.below(2) == 0;
        if self.is_draining {
            let within = Duration::from_secs(self.random.below(20));
            self.stage.send(ToShard::Drain {
                within,
                then: AfterDrain::End,
            });
        } else {
            for device in &mut self.devices {
                device.close(&self.stage.network);
            }
        }
        let end = self.stage.now().after(Duration::from_secs(90));
        while self.stage.now() < end && (self.stage.shard.sessions() > 0 || self.is_draining) {
            let alarm = self.stage.now().after(Duration::from_millis(500));
            self.stage.network.set_alarm(Some(alarm.min(end)));
            for device in &mut self.devices {
                device.is_cut = true;
            }
            self.turn()?;
            if self.stage.drained.is_some() && self.stage.shard.is_finished() {
                break;
            }
        }
        self.broker.close_all(&self.stage.network);
        if self.is_draining && self.stage.drained.is_none() {
            return Err("the drain has no end".to_owned());
        }
        let stance = |device: &Device| device.stance != Stance::Gone;
        if self.is_draining && self.devices.iter().any(stance) && self.stage.shard.sessions() > 0 {
            return Err("drained, but somebody is still there".to_owned());
        }
        self.stage.assert_empty();
        Ok(())
    }
}

fn parts<'a>(
    broker: &'a mut Broker,
    stage: &'a Stage,
    devices: &'a mut [Device],
) -> (&'a mut Broker, Around<'a>) {
    let around = Around {
        network: &stage.network,
        devices,
        since: stage.acknowledged,
        latest: stage.generation(),
    };
    (broker, around)
}
