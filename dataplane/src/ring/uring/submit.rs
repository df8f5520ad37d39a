//! What a turn submits: the notes of the calls since the last turn, as entries of the submission queue.
//!
//! Sends come first and closes last, so that a descriptor is open as long as anything before it names it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue, squeue::Flags};

use super::enter::message_header;
use super::{Accepting, Receiving, Uring};
use crate::clock::Time;
use crate::ring::buffers::{BUFFER_GROUP, resolve};
use crate::ring::lifecycle::{PIECES_MAX, Token};
use crate::ring::{ListenSlot, SocketId};

/// A turn gives its leases back before it waits when fewer than one in this many buffers is left.
const BUFFERS_LOW_FRACTION: usize = 4;

/// What a turn submits.
impl Uring {
    pub(super) fn listening(&self, slot: ListenSlot) -> Option<usize> {
        self.listeners
            .iter()
            .position(|found| found.slot == slot && found.accepting != Accepting::Stopping)
    }

    /// Ends the rest of listeners whose time has come, and says when to wake for the others.
    pub(super) fn rest_or_rearm(&mut self, now: Time, until: Option<Time>) -> Option<Time> {
        let mut wake_at = until;
        for listener in &mut self.listeners {
            if let Accepting::Resting(at) = listener.accepting {
                if at <= now {
                    listener.accepting = Accepting::Queued;
                } else {
                    wake_at = Some(wake_at.map_or(at, |until| until.min(at)));
                }
            }
        }
        wake_at
    }

    /// Whether this turn must learn how its sends went, or give its leases back, before it may wait.
    pub(super) fn must_settle_first(&self) -> bool {
        !self.fins.is_empty()
            || self.outbox.has_refused()
            || !self.line.is_empty()
            || self.pool.free() < self.pool.count() / BUFFERS_LOW_FRACTION
    }

    /// Turns all notes into submission entries. Sends come first and closes last.
    pub(super) fn submit_notes(&mut self) -> io::Result<()> {
        self.submit_sends()?;
        self.submit_connects()?;
        for at in 0..self.owned_queued.len() {
            if let Some(&(index, epoch)) = self.owned_queued.get(at) {
                self.submit_owned(index, epoch)?;
            }
        }
        self.owned_queued.clear();
        self.submit_accepts()?;
        self.submit_receives()?;
        for at in 0..self.cancels.len() {
            if let Some(token) = self.cancels.get(at).copied() {
                let entry = opcode::AsyncCancel::new(token.encode()).build();
                self.push(entry.flags(Flags::SKIP_SUCCESS), Token::Ignored)?;
            }
        }
        self.cancels.clear();
        while let Some(fd) = self.closes.pop() {
            let entry = opcode::Close::new(Fd(fd.as_raw_fd())).build();
            self.push(entry.flags(Flags::SKIP_SUCCESS), Token::Ignored)?;
            // The kernel owns the descriptor with the entry; only a ring that dies in between would leave it open.
            let _ = fd.into_raw_fd();
        }
        if !self.wake_armed {
            self.arm_wake()?;
        }
        Ok(())
    }

    pub(super) fn submit_sends(&mut self) -> io::Result<()> {
        if self.outbox.sends().is_empty() || self.outbox.submitted {
            return Ok(());
        }
        self.outbox.submitted = true;
        // Nothing may move once an entry points to it, so both vectors have their full size before the first entry.
        self.vectors.clear();
        self.headers.clear();
        self.vectors.reserve(self.outbox.pieces_len());
        self.headers.reserve(self.outbox.sends().len());
        for at in 0..self.outbox.sends().len() {
            if let Some((entry, token)) = self.send_entry(at) {
                self.push(entry, token)?;
            }
        }
        Ok(())
    }

    /// The entry for the send `at` of the outbox.
    pub(super) fn send_entry(&mut self, at: usize) -> Option<(squeue::Entry, Token)> {
        const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let send = self.outbox.sends().get(at)?;
        let token = Token::Send {
            index: u32::try_from(at).ok()?,
            epoch: self.turn,
        };
        let pieces = self.outbox.pieces(send);
        let fd = Fd(send.fd);
        let entry = if let [piece] = pieces {
            let bytes = resolve(&self.pool, &self.scratch, piece)?;
            let len = u32::try_from(bytes.len()).ok()?;
            opcode::Send::new(fd, bytes.as_ptr(), len)
                .flags(FLAGS)
                .build()
        } else {
            let first = self.vectors.len();
            for piece in pieces.iter().take(PIECES_MAX) {
                let bytes = resolve(&self.pool, &self.scratch, piece)?;
                self.vectors.push(libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                });
            }
            let vectors = self.vectors.get_mut(first..)?;
            debug_assert!(self.headers.len() < self.headers.capacity());
            self.headers.push(message_header(vectors));
            let header = self.headers.last()?;
            opcode::SendMsg::new(fd, header.as_ptr())
                .flags(FLAGS.cast_unsigned())
                .build()
        };
        Some((entry.flags(Flags::SKIP_SUCCESS), token))
    }

    pub(super) fn submit_connects(&mut self) -> io::Result<()> {
        if self.connects.is_empty() {
            return Ok(());
        }
        self.addresses.clear();
        self.addresses.reserve(self.connects.len());
        let connects = std::mem::take(&mut self.connects);
        for &(id, address) in &connects {
            let Some(socket) = self.sockets.get(id) else {
                continue;
            };
            let fd = Fd(socket.fd.as_raw_fd());
            self.addresses.push(address);
            if let Some(address) = self.addresses.last() {
                let entry = opcode::Connect::new(fd, address.as_ptr(), address.len()).build();
                self.push(entry, Token::Connect(id))?;
                self.in_flight += 1;
            }
        }
        self.connects = connects;
        self.connects.clear();
        Ok(())
    }

    pub(super) fn submit_owned(&mut self, index: u32, epoch: u32) -> io::Result<()> {
        let Some(send) = self.owned.get(index, epoch) else {
            return Ok(());
        };
        let Some(socket) = self.sockets.get(send.socket) else {
            // Closed before it was submitted: the kernel never saw the buffer.
            self.owned.remove(index, epoch);
            return Ok(());
        };
        let bytes = send.bytes();
        // A short send is progress and completes; so what does not fit the length is simply left for the next.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1);
        let entry = opcode::Send::new(Fd(socket.fd.as_raw_fd()), bytes.as_ptr(), len)
            .flags(libc::MSG_NOSIGNAL)
            .build();
        self.push(entry, Token::SendOwned { index, epoch })?;
        self.in_flight += 1;
        Ok(())
    }

    pub(super) fn submit_accepts(&mut self) -> io::Result<()> {
        for at in 0..self.listeners.len() {
            let Some(listener) = self.listeners.get_mut(at) else {
                continue;
            };
            if listener.accepting != Accepting::Queued {
                continue;
            }
            listener.accepting = Accepting::Armed;
            let token = Token::Accept {
                index: u32::from(listener.slot.0),
                epoch: listener.epoch,
            };
            let entry = opcode::AcceptMulti::new(Fd(listener.fd.as_raw_fd()))
                .flags(libc::SOCK_CLOEXEC)
                .build();
            self.push(entry, token)?;
            self.in_flight += 1;
        }
        Ok(())
    }

    /// Arms the receives asked for, and as many of those in line as there are free buffers.
    pub(super) fn submit_receives(&mut self) -> io::Result<()> {
        for at in 0..self.receives.len() {
            if let Some(id) = self.receives.get(at).copied() {
                self.submit_receive(id, Receiving::Queued)?;
            }
        }
        self.receives.clear();
        let mut free = self.pool.free();
        while free > 0
            && let Some(id) = self.line.pop()
        {
            let Some(socket) = self.sockets.get_mut(id) else {
                continue;
            };
            socket.in_line = false;
            if socket.receiving == Receiving::Waiting {
                free -= 1;
                self.submit_receive(id, Receiving::Waiting)?;
            }
        }
        Ok(())
    }

    pub(super) fn submit_receive(&mut self, id: SocketId, expected: Receiving) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(id) else {
            return Ok(());
        };
        if socket.receiving != expected {
            return Ok(());
        }
        socket.receiving = Receiving::Armed;
        let fd = Fd(socket.fd.as_raw_fd());
        self.push(
            opcode::RecvMulti::new(fd, BUFFER_GROUP).build(),
            Token::Receive(id),
        )?;
        self.in_flight += 1;
        Ok(())
    }

    pub(super) fn arm_wake(&mut self) -> io::Result<()> {
        let fd = Fd(self.waker.fd().as_raw_fd());
        let value: *mut u64 = &raw mut **self.wake_value;
        self.push(opcode::Read::new(fd, value.cast(), 8).build(), Token::Wake)?;
        self.in_flight += 1;
        self.wake_armed = true;
        Ok(())
    }

    pub(super) fn push(&mut self, entry: squeue::Entry, token: Token) -> io::Result<()> {
        let entry = entry.user_data(token.encode());
        if self.ring.submission().is_full() {
            self.enter_now()?;
        }
        // SAFETY: what an entry points to stays put until its submission returns (vectors, headers, addresses, leases,
        // scratch) or until its completion (owned sends, the value of the waker, the pool): see the invariants.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue stays full"))
    }
}
