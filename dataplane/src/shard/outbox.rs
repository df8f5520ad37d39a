//! What the sockets are owed in this turn: pieces in one arena, chained by socket, sent at the end of the turn.
//!
//! Owns no bytes: a piece names a lease or scratch memory of the ring, both valid until the next turn. The arena and its
//! lists keep their memory from turn to turn, so that a warm turn allocates nothing.

use super::leg::Chain;
use crate::ring::Piece;
use crate::session::Side;

const NONE: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Outbox {
    pieces: Vec<(Piece, u32)>,
    /// Legs that are owed something or wait for the end of the turn; a leg may be named twice.
    dirty: Vec<(u32, Side)>,
}

impl Outbox {
    /// Adds a piece to a chain. True when the chain was empty: the leg is then to be marked.
    pub(super) fn push(&mut self, chain: &mut Chain, piece: Piece) -> bool {
        if let Some((last, _)) = self.pieces.get_mut(chain.last as usize)
            && joined(last, &piece)
        {
            return false;
        }
        let Ok(number) = u32::try_from(self.pieces.len()) else {
            debug_assert!(false, "a turn of four billion pieces");
            return false;
        };
        self.pieces.push((piece, NONE));
        match self.pieces.get_mut(chain.last as usize) {
            Some((_, next)) if chain.last != NONE => *next = number,
            Some(_) | None => chain.first = number,
        }
        chain.last = number;
        chain.first == number
    }

    /// Looks at this leg at the end of the turn.
    pub(super) fn mark(&mut self, slot: u32, side: Side) {
        self.dirty.push((slot, side));
    }

    /// The legs marked, taken out; give the list back with [`Outbox::end`].
    pub(super) fn take_dirty(&mut self) -> Vec<(u32, Side)> {
        std::mem::take(&mut self.dirty)
    }

    /// Copies the pieces of a chain, in order, into `into`.
    pub(super) fn collect(&self, chain: Chain, into: &mut Vec<Piece>) {
        into.clear();
        let mut number = chain.first;
        while let Some((piece, next)) = self.pieces.get(number as usize) {
            into.push(piece.clone());
            number = *next;
        }
    }

    /// The turn is over: forgets the pieces, keeps the memory.
    pub(super) fn end(&mut self, mut dirty: Vec<(u32, Side)>) {
        dirty.clear();
        self.pieces.clear();
        self.dirty = dirty;
    }
}

/// Makes one piece of two that lie side by side.
fn joined(last: &mut Piece, next: &Piece) -> bool {
    match (last, next) {
        (
            Piece::Lease { buffer, range },
            Piece::Lease {
                buffer: same,
                range: more,
            },
        ) if buffer == same && range.end == more.start => {
            range.end = more.end;
            true
        }
        (
            Piece::Scratch { chunk, range },
            Piece::Scratch {
                chunk: same,
                range: more,
            },
        ) if chunk == same && range.end == more.start => {
            range.end = more.end;
            true
        }
        (Piece::Lease { .. } | Piece::Scratch { .. }, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(buffer: u32, start: u32, end: u32) -> Piece {
        Piece::Lease {
            buffer,
            range: start..end,
        }
    }

    #[test]
    fn chains_keep_their_order_apart_and_join_neighbours() {
        let mut outbox = Outbox::default();
        let (mut a, mut b) = (Chain::EMPTY, Chain::EMPTY);
        assert!(outbox.push(&mut a, lease(1, 0, 10)));
        assert!(outbox.push(&mut b, lease(1, 10, 20)));
        assert!(!outbox.push(&mut a, lease(1, 10, 15)));
        assert!(!outbox.push(&mut a, lease(1, 16, 20)));
        assert!(!outbox.push(&mut b, lease(2, 20, 30)));
        let mut pieces = Vec::new();
        outbox.collect(a, &mut pieces);
        assert_eq!(pieces, [lease(1, 0, 15), lease(1, 16, 20)]);
        outbox.collect(b, &mut pieces);
        assert_eq!(pieces, [lease(1, 10, 20), lease(2, 20, 30)]);
        outbox.collect(Chain::EMPTY, &mut pieces);
        assert!(pieces.is_empty());
    }
}
