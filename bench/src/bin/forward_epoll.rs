//! The bare epoll forwarder: level-triggered, one receive and one send per message.
//!
//! The floor for every readiness-based proxy. See `forward.rs` for what it leaves out.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use clap::Parser as _;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use sluice_bench::forward::{OWED_BYTES_MAX, Options};

const LISTENER: u64 = u64::MAX;

/// One socket of a pair.
struct Half {
    socket: OwnedFd,
    /// Index of the other one.
    peer: usize,
    /// Bytes of the peer that this socket has not taken.
    owed: Vec<u8>,
}

struct Forwarder {
    options: Options,
    epoll: OwnedFd,
    halves: Vec<Option<Half>>,
    free: Vec<usize>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let listener = options.listen()?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut forwarder = Forwarder {
        options,
        epoll,
        halves: Vec::new(),
        free: Vec::new(),
    };
    let mut events = Vec::with_capacity(512);
    let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
    loop {
        events.clear();
        match epoll::wait(
            &forwarder.epoll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            // The kernel's structure is packed: its fields are copied, never borrowed.
            let (data, flags) = (event.data, event.flags);
            if data.u64() == LISTENER {
                forwarder.accept(&listener)?;
                continue;
            }
            let index = data.u64() as usize;
            if flags.contains(EventFlags::OUT) {
                forwarder.flush(index);
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                forwarder.forward(index, &mut buffer);
            }
        }
    }
}

impl Forwarder {
    fn accept(&mut self, listener: &std::net::TcpListener) -> anyhow::Result<()> {
        loop {
            let client = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(client) => client,
                Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            rustix::net::sockopt::set_tcp_nodelay(&client, true)?;
            let Ok(upstream) = self.options.dial() else {
                continue;
            };
            let (down, up) = (self.slot(), self.slot());
            for (index, peer, socket) in [(down, up, client), (up, down, upstream)] {
                epoll::add(
                    &self.epoll,
                    &socket,
                    EventData::new_u64(index as u64),
                    EventFlags::IN,
                )?;
                if let Some(slot) = self.halves.get_mut(index) {
                    *slot = Some(Half {
                        socket,
                        peer,
                        owed: Vec::new(),
                    });
                }
            }
        }
    }

    fn slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.halves.push(None);
            self.halves.len() - 1
        })
    }

    fn half(&mut self, index: usize) -> Option<&mut Half> {
        self.halves.get_mut(index).and_then(Option::as_mut)
    }

    fn forward(&mut self, index: usize, buffer: &mut [MaybeUninit<u8>]) {
        let Some(half) = self.half(index) else { return };
        let peer = half.peer;
        let bytes = match recv(&half.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((([], _), _)) => return self.close(index),
            Ok(((bytes, _), _)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.close(index),
        };
        let Some(to) = self.half(peer) else { return };
        let mut sent = 0;
        if to.owed.is_empty() {
            match send(&to.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(taken) => sent = taken,
                // Not connected yet reads as "would block", too.
                Err(Errno::AGAIN | Errno::NOTCONN) => {}
                Err(_) => return self.close(index),
            }
        }
        let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) else {
            return;
        };
        let was_empty = to.owed.is_empty();
        to.owed.extend_from_slice(rest);
        if to.owed.len() > OWED_BYTES_MAX {
            self.close(index);
        } else if was_empty {
            self.watch(peer, EventFlags::IN | EventFlags::OUT);
        }
    }

    fn flush(&mut self, index: usize) {
        let Some(half) = self.half(index) else { return };
        match send(&half.socket, &half.owed, SendFlags::NOSIGNAL) {
            Ok(taken) => {
                half.owed.drain(..taken);
            }
            Err(Errno::AGAIN) => {}
            Err(_) => return self.close(index),
        }
        if half.owed.is_empty() {
            self.watch(index, EventFlags::IN);
        }
    }

    fn watch(&mut self, index: usize, flags: EventFlags) {
        if let Some(Some(half)) = self.halves.get(index) {
            let _ = epoll::modify(
                &self.epoll,
                &half.socket,
                EventData::new_u64(index as u64),
                flags,
            );
        }
    }

    /// Closes both sockets. Events of the same batch that name the freed slots find a newer pair at worst, and that
    /// only makes it look once for bytes that are not there.
    fn close(&mut self, index: usize) {
        let Some(half) = self.halves.get_mut(index).and_then(Option::take) else {
            return;
        };
        self.free.push(index);
        if self
            .halves
            .get_mut(half.peer)
            .and_then(Option::take)
            .is_some()
        {
            self.free.push(half.peer);
        }
    }
}
