//! Who owns what until which completion: socket slots and epochs, tokens, what a socket is sent in a turn, owned sends.
//!
//! No engine and no system call here; all three engines keep their books with these types.
//!
//! # Invariants
//!
//! - **A [`SocketId`] is live exactly while its slot holds that epoch.** Closing frees the slot at once; what the kernel
//!   still completes for it carries the old epoch and finds nothing.
//! - **The kernel refers to nothing in a slot.** Received bytes lie in the pool, lease sends are done when the submission
//!   returns, addresses are copied at submission, and the buffer of an owned send lies in [`OwnedSends`] until its
//!   completion, whatever became of the socket. That is why a slot can be used again at once.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use super::buffers::{Pool, Scratch, resolve};
use super::{Event, Full, Piece, SocketId};

/// Most pieces one vectored send can have (UIO_MAXIOV); what has more is gathered into scratch.
pub(super) const PIECES_MAX: usize = 1024;

/// Marks the absence of a queued send.
const NONE: u32 = u32::MAX;

/// What a completion carries back: kind, index and epoch in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Multishot accept; index = listener, epoch = the reuse counter of its number.
    Accept { index: u32, epoch: u32 },
    /// Multishot receive of a socket.
    Receive(SocketId),
    /// Connect of a socket.
    Connect(SocketId),
    /// Lease send; index into the turn's [`Outbox`], epoch = turn.
    Send { index: u32, epoch: u32 },
    /// Owned send; index into [`OwnedSends`], epoch = its reuse counter.
    SendOwned { index: u32, epoch: u32 },
    /// Read of the waker.
    Wake,
    /// Cancel and close: told only when they fail, and then ignored.
    Ignored,
}

/// Bits of the index in a token.
const INDEX_BITS: u32 = 24;

/// Largest number of indexes that a token can tell apart.
pub(super) const INDEX_MAX: u32 = 1 << INDEX_BITS;

impl Token {
    /// As user data of an operation.
    pub(super) fn encode(self) -> u64 {
        let (kind, index, epoch) = match self {
            Self::Ignored => (0, 0, 0),
            Self::Accept { index, epoch } => (1, index, epoch),
            Self::Receive(socket) => (2, socket.index, socket.epoch),
            Self::Connect(socket) => (3, socket.index, socket.epoch),
            Self::Send { index, epoch } => (4, index, epoch),
            Self::SendOwned { index, epoch } => (5, index, epoch),
            Self::Wake => (6, 0, 0),
        };
        let index = u64::from(index & (INDEX_MAX - 1));
        (kind << (32 + INDEX_BITS)) | (index << 32) | u64::from(epoch)
    }

    /// From the user data of a completion. What we did not write is ignored.
    pub(super) fn decode(data: u64) -> Self {
        let index = u32::try_from((data >> 32) & u64::from(INDEX_MAX - 1)).unwrap_or(0);
        let epoch = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(0);
        let socket = SocketId { index, epoch };
        match data >> (32 + INDEX_BITS) {
            1 => Self::Accept { index, epoch },
            2 => Self::Receive(socket),
            3 => Self::Connect(socket),
            4 => Self::Send { index, epoch },
            5 => Self::SendOwned { index, epoch },
            6 => Self::Wake,
            _ => Self::Ignored,
        }
    }
}

/// What an engine knows without the kernel; told at the next turn, if the socket still lives.
pub(super) enum Note {
    Connected(SocketId),
    ConnectFailed(SocketId, i32),
    Paused(SocketId),
    SentOwned(SocketId, Vec<u8>, Result<usize, i32>),
}

impl Note {
    /// Tells the note; nothing when its socket is closed.
    pub(super) fn tell<S: Socket>(self, sockets: &mut Slots<S>, events: &mut Vec<Event>) {
        match self {
            Self::Connected(socket) => {
                if sockets.get(socket).is_some() {
                    events.push(Event::Connected { socket });
                }
            }
            Self::ConnectFailed(socket, errno) => {
                if sockets.get(socket).is_some() {
                    events.push(Event::ConnectFailed { socket, errno });
                }
            }
            Self::Paused(socket) => {
                if sockets.get_mut(socket).is_some_and(Socket::answer_pause) {
                    events.push(Event::Paused { socket });
                }
            }
            Self::SentOwned(socket, buffer, taken) => {
                if sockets.get(socket).is_some() {
                    events.push(Event::SentOwned {
                        socket,
                        buffer,
                        taken,
                    });
                }
            }
        }
    }
}

/// What the books ask of an engine's socket.
pub(super) trait Socket {
    fn sending(&mut self) -> &mut Sending;

    /// The note that answers a pause is told here. False when a receive that was asked for since has taken the pause back.
    fn answer_pause(&mut self) -> bool;
}

/// A bounded table of sockets with epochs. The last slot freed is the first used again, while its memory is warm.
pub(super) struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    max: u32,
}

struct Entry<T> {
    epoch: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// Reserves address space for `max` entries; memory is used as they are.
    pub(super) fn new(max: u32) -> Self {
        let max = max.min(INDEX_MAX);
        Self {
            entries: Vec::with_capacity(max as usize),
            free: Vec::new(),
            max,
        }
    }

    /// How many slots are in use.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.max as usize
    }

    pub(super) fn insert(&mut self, value: T) -> Result<SocketId, Full> {
        if let Some(index) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(index as usize)
        {
            entry.value = Some(value);
            return Ok(SocketId {
                index,
                epoch: entry.epoch,
            });
        }
        let index = u32::try_from(self.entries.len()).map_err(|_| Full)?;
        if index >= self.max {
            return Err(Full);
        }
        self.entries.push(Entry {
            epoch: 0,
            value: Some(value),
        });
        Ok(SocketId { index, epoch: 0 })
    }

    pub(super) fn get(&self, id: SocketId) -> Option<&T> {
        let entry = self.entries.get(id.index as usize)?;
        entry.value.as_ref().filter(|_| entry.epoch == id.epoch)
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut T> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.epoch == id.epoch {
            entry.value.as_mut()
        } else {
            None
        }
    }

    /// Frees the slot; the id and everything that carries it is stale from here on.
    pub(super) fn remove(&mut self, id: SocketId) -> Option<T> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.epoch != id.epoch {
            return None;
        }
        let value = entry.value.take()?;
        entry.epoch = entry.epoch.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }
}

/// What a socket sends: at most one send in flight, and FIN after all that is owed.
#[derive(Debug)]
pub(super) struct Sending {
    /// Index into the turn's outbox, [`NONE`] when nothing is queued.
    queued: u32,
    /// Index into [`OwnedSends`], [`NONE`] when no owned send is in flight.
    owned: u32,
    /// Bytes told as short and not yet taken by an owned send.
    owed: usize,
    /// True exactly while FIN is asked for and not sent.
    pub(super) fin_wanted: bool,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            queued: NONE,
            owned: NONE,
            owed: 0,
            fin_wanted: false,
        }
    }
}

impl Sending {
    pub(super) fn is_queued(&self) -> bool {
        self.queued != NONE
    }

    /// The turn's send is done.
    pub(super) fn unqueue(&mut self) {
        self.queued = NONE;
    }

    /// The owned send ended with `taken` bytes; an error ends all sending.
    pub(super) fn end_owned(&mut self, taken: Result<usize, i32>) {
        self.owned = NONE;
        match taken {
            Ok(taken) => self.owed = self.owed.saturating_sub(taken),
            Err(_) => self.fail(),
        }
    }

    /// `rest` bytes of the queued send were not taken.
    pub(super) fn fall_short(&mut self, rest: usize) {
        self.owed = self.owed.saturating_add(rest);
    }

    /// Nothing can be sent any more, FIN neither.
    pub(super) fn fail(&mut self) {
        self.owed = 0;
        self.fin_wanted = false;
    }

    /// Whether FIN is wanted and nothing is left to go before it. Answers yes once.
    pub(super) fn take_fin(&mut self) -> bool {
        let due = self.fin_wanted && !self.is_queued() && self.owned == NONE && self.owed == 0;
        if due {
            self.fin_wanted = false;
        }
        due
    }
}

/// One socket's send of this turn.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) socket: SocketId,
    pub(super) fd: RawFd,
    first: u32,
    count: u32,
}

/// What all sockets are sent in one turn, in the order of the calls.
#[derive(Default)]
pub(super) struct Outbox {
    sends: Vec<Outgoing>,
    pieces: Vec<Piece>,
    /// Sends that were refused because an owned send was in flight; told as short in full.
    refused: Vec<(SocketId, Vec<u8>)>,
    /// True from the submission of the sends until they are settled.
    pub(super) submitted: bool,
}

impl Outbox {
    /// Queues the pieces for `socket`, behind what it is owed already this turn.
    ///
    /// Pieces that name nothing are left out. While an owned send is in flight the bytes come back as short.
    pub(super) fn add(
        &mut self,
        socket: SocketId,
        fd: RawFd,
        sending: &mut Sending,
        pieces: &[Piece],
        pool: &Pool,
        scratch: &mut Scratch,
    ) {
        if sending.owned != NONE {
            let bytes = gather(pieces, pool, scratch);
            sending.fall_short(bytes.len());
            self.refused.push((socket, bytes));
            return;
        }
        let first = self.begin(sending.queued);
        for piece in pieces {
            match resolve(pool, scratch, piece) {
                Some([]) => {}
                Some(_) => self.append(first, piece),
                None => debug_assert!(false, "a piece names nothing of this turn: {piece:?}"),
            }
        }
        if self.pieces.len() - first > PIECES_MAX
            && let Some(pieces) = self.pieces.get(first..)
        {
            let gathered = scratch.add(&gather(pieces, pool, scratch));
            self.pieces.truncate(first);
            self.pieces.push(gathered);
        }
        let count = self.pieces.len() - first;
        if count == 0 {
            return;
        }
        let outgoing = Outgoing {
            socket,
            fd,
            first: u32::try_from(first).unwrap_or(NONE),
            count: u32::try_from(count).unwrap_or(0),
        };
        match self.sends.get_mut(sending.queued as usize) {
            Some(send) if sending.queued != NONE => *send = outgoing,
            _ => {
                sending.queued = u32::try_from(self.sends.len()).unwrap_or(NONE);
                self.sends.push(outgoing);
            }
        }
    }

    /// Index of the first piece of a send; pieces queued before for the same socket are moved to the end.
    fn begin(&mut self, queued: u32) -> usize {
        let first = self.pieces.len();
        if queued != NONE
            && let Some(send) = self.sends.get(queued as usize)
        {
            let range = send.first as usize..(send.first + send.count) as usize;
            if range.end == first {
                return range.start;
            }
            let before: Vec<Piece> = self
                .pieces
                .get(range)
                .map(<[Piece]>::to_vec)
                .unwrap_or_default();
            self.pieces.extend(before);
        }
        first
    }

    /// Appends a piece, joined with the one before it when both are neighbours in the same memory.
    fn append(&mut self, first: usize, piece: &Piece) {
        if self.pieces.len() > first
            && let Some(last) = self.pieces.last_mut()
        {
            match (last, piece) {
                (
                    Piece::Lease { buffer, range },
                    Piece::Lease {
                        buffer: b,
                        range: r,
                    },
                ) if *buffer == *b && range.end == r.start => {
                    range.end = r.end;
                    return;
                }
                (Piece::Scratch { chunk, range }, Piece::Scratch { chunk: c, range: r })
                    if *chunk == *c && range.end == r.start =>
                {
                    range.end = r.end;
                    return;
                }
                (Piece::Lease { .. } | Piece::Scratch { .. }, _) => {}
            }
        }
        self.pieces.push(piece.clone());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.refused.is_empty()
    }

    /// Whether a send was refused, which is told without any completion.
    pub(super) fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    pub(super) fn sends(&self) -> &[Outgoing] {
        &self.sends
    }

    /// The send that this socket has queued.
    pub(super) fn queued(&self, sending: &Sending) -> Option<&Outgoing> {
        self.sends.get(sending.queued as usize)
    }

    pub(super) fn pieces_len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn pieces(&self, send: &Outgoing) -> &[Piece] {
        self.pieces
            .get(send.first as usize..(send.first + send.count) as usize)
            .unwrap_or(&[])
    }

    /// What is left of a send after `taken` bytes.
    fn rest(&self, send: &Outgoing, taken: usize, pool: &Pool, scratch: &Scratch) -> Vec<u8> {
        let mut skip = taken;
        let mut rest = Vec::new();
        for piece in self.pieces(send) {
            let bytes = resolve(pool, scratch, piece).unwrap_or(&[]);
            rest.extend_from_slice(bytes.get(skip..).unwrap_or(&[]));
            skip = skip.saturating_sub(bytes.len());
        }
        rest
    }

    /// Books the outcome of send `index`: bytes taken, or errno. Tells the caller when it was not all.
    ///
    /// `sending` is that of the socket, when it still lives. Must come before the leases go back.
    pub(super) fn settle(
        &self,
        index: u32,
        outcome: Result<usize, i32>,
        sending: Option<&mut Sending>,
        pool: &Pool,
        scratch: &Scratch,
        events: &mut Vec<Event>,
    ) {
        let (Some(send), Some(sending)) = (self.sends.get(index as usize), sending) else {
            return;
        };
        let taken = match outcome {
            Ok(taken) => taken,
            Err(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => 0,
            Err(errno) => {
                sending.fail();
                events.push(Event::SendFailed {
                    socket: send.socket,
                    errno,
                });
                return;
            }
        };
        let rest = self.rest(send, taken, pool, scratch);
        if !rest.is_empty() {
            sending.fall_short(rest.len());
            events.push(Event::SendShort {
                socket: send.socket,
                rest,
            });
        }
    }

    /// Ends the turn: no socket has a send queued any more. Tells the refused sends, and calls `finish` for each socket of
    /// `fins` whose FIN is due.
    pub(super) fn end_turn<S: Socket>(
        &mut self,
        sockets: &mut Slots<S>,
        fins: &mut Vec<SocketId>,
        mut finish: impl FnMut(&S),
        events: &mut Vec<Event>,
    ) {
        for send in self.sends.drain(..) {
            if let Some(socket) = sockets.get_mut(send.socket) {
                socket.sending().unqueue();
            }
        }
        for (socket, rest) in self.refused.drain(..) {
            if sockets.get(socket).is_some() && !rest.is_empty() {
                events.push(Event::SendShort { socket, rest });
            }
        }
        for id in fins.drain(..) {
            if let Some(socket) = sockets.get_mut(id)
                && socket.sending().take_fin()
            {
                finish(socket);
            }
        }
        self.pieces.clear();
        self.submitted = false;
    }
}

/// All bytes of the pieces.
fn gather(pieces: &[Piece], pool: &Pool, scratch: &Scratch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(resolve(pool, scratch, piece).unwrap_or(&[]));
    }
    bytes
}

/// An owned send in flight.
pub(super) struct OwnedSend {
    pub(super) socket: SocketId,
    pub(super) buffer: Vec<u8>,
    pub(super) from: usize,
}

impl OwnedSend {
    pub(super) fn new(socket: SocketId, buffer: Vec<u8>, from: usize) -> Self {
        Self {
            socket,
            buffer,
            from,
        }
    }

    /// The bytes to send.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.from..).unwrap_or(&[])
    }
}

/// An owned send that is over before it began: its buffer, and the outcome to tell.
pub(super) type SentAtOnce = (Vec<u8>, Result<usize, i32>);

/// Buffers of owned sends, which outlive their sockets until the completion.
pub(super) struct OwnedSends {
    slots: Slots<OwnedSend>,
}

impl OwnedSends {
    /// One for each socket, and as many again of closed sockets whose cancelled send has not completed.
    pub(super) fn new(sockets_max: u32) -> Self {
        Self {
            slots: Slots::new(sockets_max.saturating_mul(2)),
        }
    }

    /// Takes the buffer of a send, and books it as in flight. Gives index and epoch.
    ///
    /// A send of nothing, a second send at a time (EALREADY) and one too many (ENOBUFS) come back at once.
    pub(super) fn begin(
        &mut self,
        sending: &mut Sending,
        send: OwnedSend,
    ) -> Result<(u32, u32), SentAtOnce> {
        let len = send.bytes().len();
        if len == 0 {
            return Err((send.buffer, Ok(0)));
        }
        if sending.owned != NONE || sending.queued != NONE {
            debug_assert!(false, "one send at a time: {sending:?}");
            return Err((send.buffer, Err(libc::EALREADY)));
        }
        if self.slots.is_full() {
            return Err((send.buffer, Err(libc::ENOBUFS)));
        }
        let Ok(id) = self.slots.insert(send) else {
            return Err((Vec::new(), Err(libc::ENOBUFS)));
        };
        sending.owned = id.index;
        sending.owed = sending.owed.max(len);
        Ok((id.index, id.epoch))
    }

    pub(super) fn get(&self, index: u32, epoch: u32) -> Option<&OwnedSend> {
        self.slots.get(SocketId { index, epoch })
    }

    pub(super) fn remove(&mut self, index: u32, epoch: u32) -> Option<OwnedSend> {
        self.slots.remove(SocketId { index, epoch })
    }

    /// Index and epoch of the send that this socket has in flight.
    pub(super) fn in_flight(&self, sending: &Sending) -> Option<(u32, u32)> {
        let entry = self.slots.entries.get(sending.owned as usize)?;
        let in_flight = sending.owned != NONE && entry.value.is_some();
        in_flight.then_some((sending.owned, entry.epoch))
    }
}

/// Sockets that wait for receive buffers, first in, first out.
#[derive(Default)]
pub(super) struct Line {
    sockets: VecDeque<SocketId>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    pub(super) fn push(&mut self, socket: SocketId) {
        self.sockets.push_back(socket);
    }

    pub(super) fn pop(&mut self) -> Option<SocketId> {
        self.sockets.pop_front()
    }
}
