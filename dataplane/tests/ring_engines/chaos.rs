//! Random calls on both sides of many connections, against a model of what may be told. Each function takes the maker of an
//! engine.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::net::sockopt;
use sluice_dataplane::ring::{End, Event, Ring, RingConfig, SocketId};

use crate::driver::*;

const LINKS_MAX: usize = 12;

/// What a client sends at most.
const UP_BYTES: usize = 256 * 1024;

/// What the ring sends at most; several times what the small socket buffers below hold, so that sends fall short.
const DOWN_BYTES: usize = 512 * 1024;

const SOCKET_BUFFER_BYTES: usize = 32 * 1024;

pub(crate) fn random_calls_keep_the_surface<R: Ring>(make: impl Fn(&RingConfig) -> Made<R>) {
    let mut told = Told::default();
    for seed in 0..9 {
        let config = RingConfig {
            sockets_max: LINKS_MAX as u32,
            buffers: [2, 8, 64][seed % 3],
            buffer_bytes: [64, 1024, 4096][seed / 3 % 3],
        };
        let mut driver = Driver::new(&make, &config);
        let address = driver.listen_with(|socket| {
            sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES).unwrap();
            sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES).unwrap();
        });
        let mut chaos = Chaos {
            random: seed as u64,
            links: Vec::new(),
            closed: Vec::new(),
            told: &mut told,
        };
        for _ in 0..300 {
            chaos.step(&mut driver, address);
        }
        chaos.finish(&mut driver);
    }
    let Told {
        received,
        paused,
        ended,
        short,
        owned,
        failed,
    } = told;
    for count in [received, paused, ended, short, owned, failed] {
        assert!(count > 0, "too tame to show anything: {told:?}");
    }
}

/// How often each kind of event was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    received: u32,
    paused: u32,
    ended: u32,
    short: u32,
    owned: u32,
    failed: u32,
}

struct Chaos<'a> {
    told: &'a mut Told,
    random: u64,
    links: Vec<Link>,
    /// Ids that must never be heard of again.
    closed: Vec<SocketId>,
}

/// One connection: what each side has sent, and what the other has heard.
struct Link {
    /// `None` when the client has closed or reset.
    client: Option<TcpStream>,
    client_finished: bool,
    socket: SocketId,
    up: Vec<u8>,
    up_sent: usize,
    up_heard: usize,
    down: Vec<u8>,
    down_given: usize,
    down_heard: usize,
    backlog: Vec<u8>,
    owned: bool,
    receiving: bool,
    pausing: bool,
    ended: bool,
    failed: bool,
}

impl Chaos<'_> {
    fn below(&mut self, end: usize) -> usize {
        random(&mut self.random) as usize % end
    }

    fn step<R: Ring>(&mut self, driver: &mut Driver<R>, address: SocketAddr) {
        if self.links.len() < LINKS_MAX && self.below(4) == 0 {
            self.open(driver, address);
        }
        for at in 0..self.links.len() {
            let (what, len) = (self.below(12), 1 + self.below(20_000));
            self.links[at].act_as_client(what, len);
        }
        for at in (0..self.links.len()).rev() {
            let (what, len) = (self.below(12), 1 + self.below(40_000));
            if what == 11 && len < 2_000 {
                let link = self.links.swap_remove(at);
                driver.ring.close(link.socket);
                self.closed.push(link.socket);
            } else {
                self.links[at].act_as_ring(&mut driver.ring, what, len);
            }
        }
        if !self.closed.is_empty() {
            let at = self.below(self.closed.len());
            let stale = self.closed[at];
            driver.ring.receive(stale);
            driver.ring.pause(stale);
            driver.ring.send_owned(stale, vec![1], 0);
            driver.ring.close(stale);
        }
        let events = driver.poll();
        self.hear(driver, events);
    }

    fn open<R: Ring>(&mut self, driver: &mut Driver<R>, address: SocketAddr) {
        let client = TcpStream::connect(address).unwrap();
        client.set_nonblocking(true).unwrap();
        sockopt::set_socket_recv_buffer_size(&client, SOCKET_BUFFER_BYTES).unwrap();
        let mut accepted = None;
        while accepted.is_none() {
            let mut events = driver.turn();
            events.retain(|event| match event {
                Event::Accepted { socket, .. } => {
                    accepted = Some(*socket);
                    false
                }
                _ => true,
            });
            self.hear(driver, events);
        }
        let seed = random(&mut self.random);
        self.links.push(Link {
            client: Some(client),
            client_finished: false,
            socket: accepted.unwrap(),
            up: pattern(UP_BYTES, seed),
            up_sent: 0,
            up_heard: 0,
            down: pattern(DOWN_BYTES, !seed),
            down_given: 0,
            down_heard: 0,
            backlog: Vec::new(),
            owned: false,
            receiving: false,
            pausing: false,
            ended: false,
            failed: false,
        });
    }

    fn hear<R: Ring>(&mut self, driver: &mut Driver<R>, events: Vec<Event>) {
        for event in events {
            let id = match &event {
                Event::Received { socket, .. }
                | Event::SendShort { socket, .. }
                | Event::SendFailed { socket, .. }
                | Event::SentOwned { socket, .. }
                | Event::Paused { socket }
                | Event::Ended { socket, .. } => *socket,
                event => panic!("unexpected {event:?}"),
            };
            let told = &mut *self.told;
            *match &event {
                Event::Received { .. } => &mut told.received,
                Event::Paused { .. } => &mut told.paused,
                Event::Ended { .. } => &mut told.ended,
                Event::SendShort { .. } => &mut told.short,
                Event::SendFailed { .. } => &mut told.failed,
                _ => &mut told.owned,
            } += 1;
            let link = self.links.iter_mut().find(|link| link.socket == id);
            let link = link.unwrap_or_else(|| panic!("heard of a closed socket: {event:?}"));
            link.hear(&mut driver.ring, event);
        }
        for link in &mut self.links {
            link.send_backlog(&mut driver.ring);
        }
    }

    /// Lets everything that both sides have sent arrive, then closes.
    fn finish<R: Ring>(&mut self, driver: &mut Driver<R>) {
        let limit = driver.ring.now().after(PATIENCE);
        for link in &mut self.links {
            link.act_as_ring(&mut driver.ring, 0, 0);
        }
        while !self.links.iter().all(Link::is_settled) {
            assert!(driver.ring.now() < limit, "something never arrives");
            for link in &mut self.links {
                link.act_as_client(5, usize::MAX);
            }
            let events = driver.poll();
            self.hear(driver, events);
        }
        for link in self.links.drain(..) {
            driver.ring.close(link.socket);
        }
        assert!(driver.poll().is_empty());
        assert!(driver.poll().is_empty());
    }
}

impl Link {
    fn act_as_client(&mut self, what: usize, len: usize) {
        let Some(client) = &mut self.client else {
            return;
        };
        match what {
            0..=4 if !self.client_finished => {
                let end = (self.up_sent + len).min(self.up.len());
                if let Ok(taken) = client.write(&self.up[self.up_sent..end]) {
                    self.up_sent += taken;
                }
            }
            5..=8 => {
                let mut bytes = vec![0; len.min(1 << 16)];
                if let Ok(came) = client.read(&mut bytes) {
                    assert_same(&bytes[..came], &self.down[self.down_heard..][..came]);
                    self.down_heard += came;
                }
            }
            9 if len < 2_000 => {
                self.client_finished = true;
                client.shutdown(Shutdown::Write).unwrap();
            }
            10 if len < 600 => reset(self.client.take().unwrap()),
            11 if len < 600 => self.client = None,
            _ => {}
        }
    }

    fn act_as_ring<R: Ring>(&mut self, ring: &mut R, what: usize, len: usize) {
        match what {
            0..=3 => {
                ring.receive(self.socket);
                self.receiving = !self.ended;
                self.pausing = false;
            }
            4..=5 => {
                ring.pause(self.socket);
                self.pausing |= self.receiving;
            }
            6..=9 if !self.failed => {
                let end = (self.down_given + len).min(self.down.len());
                let bytes = &self.down[self.down_given..end];
                self.down_given = end;
                if self.owned || !self.backlog.is_empty() {
                    self.backlog.extend(bytes);
                } else {
                    let (head, tail) = bytes.split_at(bytes.len() / 3);
                    let (tail, head) = (ring.scratch(tail), ring.scratch(head));
                    ring.send(self.socket, &[head, tail]);
                }
            }
            _ => {}
        }
    }

    fn hear<R: Ring>(&mut self, ring: &mut R, event: Event) {
        match event {
            Event::Received { lease, .. } => {
                assert!(self.receiving, "received while paused or ended");
                let bytes = ring.lease(lease);
                assert_same(bytes, &self.up[self.up_heard..][..lease.len as usize]);
                self.up_heard += bytes.len();
                assert!(self.up_heard <= self.up_sent);
            }
            Event::Paused { .. } => {
                assert!(self.pausing, "paused without being asked");
                (self.receiving, self.pausing) = (false, false);
            }
            Event::Ended { end, .. } => {
                assert!(self.receiving && !self.ended, "one end, while receiving");
                (self.receiving, self.pausing, self.ended) = (false, false, true);
                match end {
                    End::Eof => {
                        // After a reset that a send was told of, the kernel ends the receive like a FIN.
                        assert!(self.client_finished || self.client.is_none());
                        let all = self.up_heard == self.up_sent;
                        assert!(all || self.client.is_none(), "all before the end");
                    }
                    End::Failed(_) => assert!(self.client.is_none(), "{end:?}"),
                }
            }
            Event::SendShort { rest, .. } => {
                assert!(self.backlog.is_empty() && !rest.is_empty());
                assert_same(
                    &rest,
                    &self.down[self.down_given - rest.len()..self.down_given],
                );
                self.backlog = rest;
            }
            Event::SentOwned { buffer, taken, .. } => {
                assert!(std::mem::take(&mut self.owned));
                match taken {
                    Ok(taken) => {
                        assert!(taken > 0);
                        let rest = std::mem::take(&mut self.backlog);
                        self.backlog = [&buffer[taken..], &rest].concat();
                    }
                    Err(errno) => self.fail(errno),
                }
            }
            Event::SendFailed { errno, .. } => self.fail(errno),
            event => panic!("unexpected {event:?}"),
        }
    }

    fn fail(&mut self, errno: i32) {
        assert!(
            self.client.is_none(),
            "failed with {errno} on an open connection"
        );
        self.failed = true;
        self.backlog.clear();
    }

    fn send_backlog<R: Ring>(&mut self, ring: &mut R) {
        if !self.owned && !self.backlog.is_empty() {
            self.owned = true;
            ring.send_owned(self.socket, std::mem::take(&mut self.backlog), 0);
        }
    }

    fn is_settled(&self) -> bool {
        self.client.is_none()
            || (self.down_heard == self.down_given && self.up_heard == self.up_sent)
    }
}
