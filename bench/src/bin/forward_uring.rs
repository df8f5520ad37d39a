//! The bare io_uring forwarder: multishot accept and receive into a buffer ring, sends that post no completion.
//!
//! The floor for the data plane's engine, one `io_uring_enter` per turn. See `forward.rs` for what it leaves out.
//!
//! # Invariants
//!
//! - A buffer is given back to the ring only after the enter that submitted the send which reads it. Such a send never
//!   waits (MSG_DONTWAIT), so it has read all it will ever read when that enter returns.
//! - At most one send per socket is in flight. More bytes of the same turn are copied and follow in the next.
//! - Memory of a waiting send belongs to its `Half` and stays until its completion.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use clap::Parser as _;
use io_uring::types::{BufRingEntry, Fd, SubmitArgs};
use io_uring::{IoUring, cqueue, opcode, squeue};

use sluice_bench::forward::{OWED_BYTES_MAX, Options};

const BUFFERS: u16 = 4_096;
const BUFFER_BYTES: usize = 4_096;
const GROUP: u16 = 0;
/// How many completions are waited for within `--min-wait`.
const BATCH: usize = 8;

/// What a completion is about, in the highest byte of its user data.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
/// Straight from a buffer; completes only when it fell short.
const SEND_LEASED: u64 = 2;
/// From memory of the half; waits for room.
const SEND_OWED: u64 = 3;

fn token(kind: u64, index: usize, buffer: u16) -> u64 {
    kind << 56 | u64::from(buffer) << 32 | index as u64
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let listener = options.listen()?;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(u32::from(BUFFERS) * 4)
        .build(u32::from(BUFFERS))?;
    let buffers = Buffers::register(&ring)?;
    let mut forwarder = Forwarder {
        options,
        listener: listener.into(),
        ring,
        buffers,
        halves: Vec::new(),
        free: Vec::new(),
        turn: 0,
        leased: Vec::new(),
        owing: Vec::new(),
        starved: Vec::new(),
        forgotten: Vec::new(),
    };
    forwarder.accept();
    forwarder.run()
}

/// The buffer ring and its buffers.
struct Buffers {
    entries: *mut BufRingEntry,
    memory: Vec<u8>,
    /// Bytes received into each buffer.
    filled: Vec<u32>,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring) -> anyhow::Result<Self> {
        let layout =
            Layout::from_size_align(usize::from(BUFFERS) * size_of::<BufRingEntry>(), 4_096)?;
        // SAFETY: the layout is not empty. The memory is never freed: the ring uses it until the process ends.
        let entries = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<BufRingEntry>();
        anyhow::ensure!(!entries.is_null(), "no memory for the buffer ring");
        // SAFETY: the address is page-aligned, holds BUFFERS entries and lives as long as the process.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0)
        }?;
        let mut buffers = Self {
            entries,
            // Not zero, so that the pages are there from the start and are not mistaken for memory of connections.
            memory: vec![0xaa; usize::from(BUFFERS) * BUFFER_BYTES],
            filled: vec![0; usize::from(BUFFERS)],
            tail: 0,
        };
        for buffer in 0..BUFFERS {
            buffers.give_back(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    fn address(&self, buffer: u16) -> *const u8 {
        self.memory
            .as_ptr()
            .wrapping_add(usize::from(buffer) * BUFFER_BYTES)
    }

    fn bytes(&self, buffer: u16, from: usize) -> &[u8] {
        let start = usize::from(buffer) * BUFFER_BYTES;
        let filled = self
            .filled
            .get(usize::from(buffer))
            .map_or(0, |filled| *filled as usize);
        self.memory.get(start + from..start + filled).unwrap_or(&[])
    }

    /// Puts a buffer behind the tail; the kernel sees it after [`Self::publish`].
    fn give_back(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let at = usize::from(self.tail & (BUFFERS - 1));
        let entry = self.entries.wrapping_add(at);
        // SAFETY: `at` is below BUFFERS, the length of the allocation, and the kernel does not read entries that are
        // not published yet; nobody else writes them.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: `entries` is the base of the ring, so the field is its tail, aligned and alive.
        let tail = unsafe { BufRingEntry::tail(self.entries) }.cast::<AtomicU16>();
        // SAFETY: the kernel reads the tail with acquire; we are its only writer.
        unsafe { &*tail }.store(self.tail, Ordering::Release);
    }
}

/// One socket of a pair.
struct Half {
    socket: OwnedFd,
    peer: usize,
    /// The turn in which a send from a buffer was submitted last.
    sent_in: u64,
    /// What follows once nothing is in flight.
    owed: Vec<u8>,
    /// Memory of the waiting send in flight.
    in_flight: Vec<u8>,
    is_closed: bool,
}

struct Forwarder {
    options: Options,
    listener: OwnedFd,
    ring: IoUring,
    buffers: Buffers,
    halves: Vec<Option<Half>>,
    free: Vec<usize>,
    turn: u64,
    /// Buffers received in this turn.
    leased: Vec<u16>,
    /// Halves with something owed and nothing in flight when they were put here.
    owing: Vec<usize>,
    /// Halves whose receive ended for want of buffers.
    starved: Vec<usize>,
    /// Closed in this turn. Operations not submitted yet may name their descriptors, whose numbers must not come back.
    forgotten: Vec<(usize, Half)>,
}

impl Forwarder {
    fn run(&mut self) -> anyhow::Result<()> {
        let mut completions: Vec<(u64, i32, u32)> = Vec::new();
        loop {
            self.turn += 1;
            self.enter()?;
            completions.extend(
                self.ring
                    .completion()
                    .map(|entry| (entry.user_data(), entry.result(), entry.flags())),
            );
            // Sends that fell short still refer to buffers of the last turn, so they come first.
            for (data, result, _) in completions
                .iter()
                .filter(|(data, ..)| data >> 56 == SEND_LEASED)
            {
                self.fell_short(*data, *result);
            }
            for buffer in std::mem::take(&mut self.leased) {
                self.buffers.give_back(buffer);
            }
            self.buffers.publish();
            self.free
                .extend(self.forgotten.drain(..).map(|(index, _)| index));
            for index in std::mem::take(&mut self.starved) {
                self.receive(index);
            }
            for (data, result, flags) in completions.drain(..) {
                let index = (data & u64::from(u32::MAX)) as usize;
                match data >> 56 {
                    ACCEPT => self.accepted(result, flags),
                    RECEIVE => self.received(index, result, flags),
                    SEND_OWED => self.sent_owed(index, result),
                    _ => {}
                }
            }
            for index in std::mem::take(&mut self.owing) {
                self.send_owed(index);
            }
        }
    }

    fn enter(&mut self) -> io::Result<()> {
        let result = if !self.owing.is_empty() {
            // What is owed follows the sends of this enter, which post nothing to wait for.
            self.ring.submitter().submit_and_wait(0)
        } else if self.options.min_wait > 0 {
            let args = SubmitArgs::new().min_wait_usec(self.options.min_wait);
            self.ring.submitter().submit_with_args(BATCH, &args)
        } else {
            self.ring.submitter().submit_and_wait(1)
        };
        match result {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EBUSY | libc::ETIME)
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: every operation's memory outlives it: buffers by the first invariant, owed bytes by the third, and
            // the other operations carry none.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // Full: submit what is there. A failure shows at the next enter.
            let _ = self.ring.submit();
        }
    }

    fn accept(&mut self) {
        let entry = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(token(ACCEPT, 0, 0));
        self.push(&entry);
    }

    fn accepted(&mut self, result: i32, flags: u32) {
        if !cqueue::more(flags) {
            self.accept();
        }
        if result < 0 {
            return;
        }
        // SAFETY: the completion hands over a descriptor that nobody else knows.
        let client = unsafe { OwnedFd::from_raw_fd(result) };
        let _ = rustix::net::sockopt::set_tcp_nodelay(&client, true);
        let Ok(upstream) = self.options.dial() else {
            return;
        };
        // Operations on the ring wait by themselves, but not on a descriptor that says it must not. A connection in
        // progress is waited for by the first send and receive.
        let _ = rustix::io::ioctl_fionbio(&upstream, false);
        let (down, up) = (self.slot(), self.slot());
        for (index, peer, socket) in [(down, up, client), (up, down, upstream)] {
            if let Some(slot) = self.halves.get_mut(index) {
                *slot = Some(Half {
                    socket,
                    peer,
                    sent_in: 0,
                    owed: Vec::new(),
                    in_flight: Vec::new(),
                    is_closed: false,
                });
            }
        }
        self.receive(down);
        self.receive(up);
    }

    fn slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.halves.push(None);
            self.halves.len() - 1
        })
    }

    fn half(&mut self, index: usize) -> Option<&mut Half> {
        self.halves
            .get_mut(index)
            .and_then(Option::as_mut)
            .filter(|half| !half.is_closed)
    }

    fn receive(&mut self, index: usize) {
        let Some(half) = self.half(index) else { return };
        let entry = opcode::RecvMulti::new(Fd(half.socket.as_raw_fd()), GROUP)
            .build()
            .user_data(token(RECEIVE, index, 0));
        self.push(&entry);
    }

    fn received(&mut self, index: usize, result: i32, flags: u32) {
        let buffer = cqueue::buffer_select(flags);
        if let Some(buffer) = buffer {
            self.leased.push(buffer);
        }
        match (result, buffer) {
            (1.., Some(buffer)) => {
                if let Some(filled) = self.buffers.filled.get_mut(usize::from(buffer)) {
                    *filled = result as u32;
                }
                self.forward(index, buffer);
                if !cqueue::more(flags) {
                    self.receive(index);
                }
            }
            (result, _) if result == -libc::ENOBUFS => self.starved.push(index),
            // A slot is free again only when its receive has ended.
            _ if !cqueue::more(flags) => self.close(index),
            _ => {}
        }
    }

    fn forward(&mut self, index: usize, buffer: u16) {
        let turn = self.turn;
        let Some(peer) = self.half(index).map(|half| half.peer) else {
            return;
        };
        let address = self.buffers.address(buffer);
        let Some(to) = self.halves.get_mut(peer).and_then(Option::as_mut) else {
            return;
        };
        if to.owed.is_empty() && to.in_flight.is_empty() && to.sent_in != turn {
            to.sent_in = turn;
            let len = self
                .buffers
                .filled
                .get(usize::from(buffer))
                .copied()
                .unwrap_or(0);
            let entry = opcode::Send::new(Fd(to.socket.as_raw_fd()), address, len)
                .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(token(SEND_LEASED, peer, buffer));
            self.push(&entry);
        } else {
            to.owed.extend_from_slice(self.buffers.bytes(buffer, 0));
            self.owing.push(peer);
        }
    }

    /// A send from a buffer took only a part: the rest goes before everything else that is owed.
    fn fell_short(&mut self, data: u64, result: i32) {
        let index = (data & u64::from(u32::MAX)) as usize;
        let buffer = (data >> 32) as u16;
        if result < 0 && result != -libc::EAGAIN {
            return self.close(index);
        }
        let rest = self
            .buffers
            .bytes(buffer, usize::try_from(result).unwrap_or(0))
            .to_vec();
        if let Some(half) = self.half(index) {
            half.owed.splice(0..0, rest);
            self.owing.push(index);
        }
    }

    fn send_owed(&mut self, index: usize) {
        let turn = self.turn;
        let Some(half) = self.half(index) else { return };
        if half.owed.is_empty() || !half.in_flight.is_empty() {
            return;
        }
        if half.sent_in == turn {
            // The send of this turn goes first.
            self.owing.push(index);
            return;
        }
        if half.owed.len() > OWED_BYTES_MAX {
            return self.close(index);
        }
        half.in_flight = std::mem::take(&mut half.owed);
        let entry = opcode::Send::new(
            Fd(half.socket.as_raw_fd()),
            half.in_flight.as_ptr(),
            half.in_flight.len() as u32,
        )
        .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
        .build()
        .user_data(token(SEND_OWED, index, 0));
        self.push(&entry);
    }

    fn sent_owed(&mut self, index: usize, result: i32) {
        let Some(half) = self.halves.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let in_flight = std::mem::take(&mut half.in_flight);
        if half.is_closed {
            return self.forget(index);
        }
        let Ok(taken) = usize::try_from(result) else {
            return self.close(index);
        };
        half.owed
            .splice(0..0, in_flight.get(taken..).unwrap_or(&[]).iter().copied());
        self.owing.push(index);
    }

    /// Ends both sockets. Each slot is freed when its own receive has ended, which a shutdown brings about.
    fn close(&mut self, index: usize) {
        let Some(half) = self.halves.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let peer = half.peer;
        half.is_closed = true;
        let is_idle = half.in_flight.is_empty();
        // Ends a send that waits for room.
        let _ = rustix::net::shutdown(&half.socket, rustix::net::Shutdown::Both);
        if is_idle {
            self.forget(index);
        }
        if let Some(other) = self.half(peer) {
            let _ = rustix::net::shutdown(&other.socket, rustix::net::Shutdown::Both);
        }
    }

    fn forget(&mut self, index: usize) {
        if let Some(half) = self.halves.get_mut(index).and_then(Option::take) {
            self.forgotten.push((index, half));
        }
    }
}
