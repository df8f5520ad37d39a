//! Memory that the kernel and the shard share: receive buffers with their leases, and the scratch of a turn.
//!
//! Owns every byte that a [`Lease`] or a [`Piece`] can name, and checks both before it hands out a slice. It knows no
//! sockets. A buffer is in exactly one of two hands: with whoever receives (the kernel, or the free list), or lent out
//! as a lease until [`Pool::give_back`].
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::{Lease, Piece, RingConfig};

/// The only buffer group of a ring.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Most buffers a group can have (the kernel's bound on a buffer ring).
const BUFFERS_MAX: u16 = 1 << 15;

/// Bytes of an ordinary scratch chunk; larger pieces get a chunk of their own for the turn.
const SCRATCH_CHUNK_BYTES: usize = 16 * 1024;

/// Scratch chunks kept from turn to turn (1 MiB at most).
const SCRATCH_CHUNKS_KEPT: usize = 64;

/// Marks a buffer that is not lent out.
const NOT_LENT: u32 = u32::MAX;

/// Zeroed, page-aligned memory that costs nothing until it is touched, and never moves.
pub(super) struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

impl Region {
    /// Reserves at least one byte.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.max(1);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    /// The bytes `range`, which must lie inside the region.
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.bytes {
            return None;
        }
        // SAFETY: offset <= end <= self.bytes, so the result stays inside (or one past) the mapping.
        Some(unsafe { self.start.add(offset) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made by `new`, unmapped once; every slice borrowed from an owner of the region.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// All receive buffers of a ring, and which of them are lent out.
///
/// # Invariants
///
/// - `lent[b]` is the number of bytes received exactly while buffer `b` is lent out, else [`NOT_LENT`].
/// - `out` names each lent buffer once.
/// - Only a lent buffer is ever borrowed as a slice; the kernel writes only to buffers that are not lent.
pub(super) struct Pool {
    region: Region,
    buffer_bytes: u32,
    lent: Vec<u32>,
    out: Vec<u16>,
}

impl Pool {
    fn new(config: &RingConfig) -> io::Result<Self> {
        let count = config.buffers;
        if !count.is_power_of_two() || count > BUFFERS_MAX || config.buffer_bytes == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "receive buffers: the number must be a power of two up to 32768, the size at least 1",
            ));
        }
        let bytes = usize::from(count).saturating_mul(config.buffer_bytes as usize);
        Ok(Self {
            region: Region::new(bytes)?,
            buffer_bytes: config.buffer_bytes,
            lent: vec![NOT_LENT; usize::from(count)],
            out: Vec::with_capacity(usize::from(count)),
        })
    }

    /// How many buffers there are.
    pub(super) fn count(&self) -> usize {
        self.lent.len()
    }

    /// How many buffers are not lent out.
    pub(super) fn free(&self) -> usize {
        self.lent.len() - self.out.len()
    }

    /// Makes a lease of `len` received bytes. `None` when the number or the length cannot be right.
    pub(super) fn lend(&mut self, buffer: u16, len: u32) -> Option<Lease> {
        let slot = self.lent.get_mut(usize::from(buffer))?;
        if *slot != NOT_LENT || len > self.buffer_bytes {
            debug_assert!(false, "buffer {buffer} lent twice or overfull ({len})");
            return None;
        }
        *slot = len;
        self.out.push(buffer);
        Some(Lease {
            buffer: u32::from(buffer),
            len,
        })
    }

    /// The bytes of a lease; empty when it is not lent out (a lease of an earlier turn).
    pub(super) fn bytes(&mut self, lease: Lease) -> &mut [u8] {
        match self.lent_at(lease.buffer, 0..lease.len) {
            // SAFETY: inside the region, and lent out, so the kernel does not touch it; `&mut self` makes it unique.
            Some((start, len)) => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) },
            None => &mut [],
        }
    }

    /// A range of a lent buffer.
    pub(super) fn range(&self, buffer: u32, range: &Range<u32>) -> Option<&[u8]> {
        let (start, len) = self.lent_at(buffer, range.clone())?;
        // SAFETY: inside the region, and lent out, so the kernel does not write to it while `self` is borrowed.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), len) })
    }

    fn lent_at(&self, buffer: u32, range: Range<u32>) -> Option<(NonNull<u8>, usize)> {
        let received = *self.lent.get(buffer as usize)?;
        if received == NOT_LENT || range.start > range.end || range.end > received {
            return None;
        }
        let len = (range.end - range.start) as usize;
        let start = self
            .region
            .at(self.offset(buffer) + range.start as usize, len)?;
        Some((start, len))
    }

    fn offset(&self, buffer: u32) -> usize {
        (buffer as usize).saturating_mul(self.buffer_bytes as usize)
    }

    /// Ends all leases; `to` is told the buffers.
    fn give_back(&mut self, mut to: impl FnMut(&Region, u16)) {
        for buffer in self.out.drain(..) {
            if let Some(slot) = self.lent.get_mut(usize::from(buffer)) {
                *slot = NOT_LENT;
                to(&self.region, buffer);
            }
        }
    }
}

/// Buffers filled in user space: what is not lent is in a free list.
pub(super) struct UserPool {
    pool: Pool,
    free: Vec<u16>,
}

impl UserPool {
    pub(super) fn new(config: &RingConfig) -> io::Result<Self> {
        let pool = Pool::new(config)?;
        Ok(Self {
            free: (0..config.buffers).rev().collect(),
            pool,
        })
    }

    /// Lets `fill` write into a free buffer and lends it out with the number of bytes it returns.
    ///
    /// `None` when no buffer is free. A buffer of which 0 bytes were used stays free.
    pub(super) fn fill<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<Option<Lease>, E>> {
        let buffer = *self.free.last()?;
        let len = self.pool.buffer_bytes as usize;
        let start = self
            .pool
            .region
            .at(self.pool.offset(u32::from(buffer)), len)?;
        // SAFETY: inside the region; the buffer is in the free list, so it is not lent, and no kernel has it.
        let space = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) };
        match fill(space) {
            Ok(0) => Some(Ok(None)),
            Ok(filled) => {
                self.free.pop();
                let filled = u32::try_from(filled.min(len)).unwrap_or(u32::MAX);
                Some(Ok(self.pool.lend(buffer, filled)))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Ends all leases.
    pub(super) fn give_back(&mut self) {
        let free = &mut self.free;
        self.pool.give_back(|_, buffer| free.push(buffer));
    }
}

impl Deref for UserPool {
    type Target = Pool;
    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl DerefMut for UserPool {
    fn deref_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }
}

/// Buffers filled by the kernel: what is not lent is in a buffer ring that the kernel takes from.
pub(super) struct KernelPool {
    pool: Pool,
    entries: Region,
    tail: u16,
}

impl KernelPool {
    /// Registers all buffers with the ring `fd`. The pool must outlive every operation of that ring.
    pub(super) fn new(config: &RingConfig, ring: &io_uring::IoUring) -> io::Result<Self> {
        let pool = Pool::new(config)?;
        let entries = Region::new(usize::from(config.buffers) * size_of::<BufRingEntry>())?;
        let address = entries.start.as_ptr() as u64;
        // SAFETY: the entries are page aligned and stay mapped as long as `self`; the owner of `self` keeps it until no
        // operation of the ring is in flight.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                address,
                config.buffers,
                BUFFER_GROUP,
                0,
            )?;
        }
        let mut kernel = Self {
            pool,
            entries,
            tail: 0,
        };
        for buffer in 0..config.buffers {
            kernel.tail = push_entry(
                &kernel.entries,
                kernel.tail,
                config.buffers - 1,
                &kernel.pool.region,
                config.buffer_bytes,
                buffer,
            );
        }
        kernel.publish();
        Ok(kernel)
    }

    /// Ends all leases; the kernel may fill the buffers from here on.
    pub(super) fn give_back(&mut self) {
        let (entries, bytes) = (&self.entries, self.pool.buffer_bytes);
        let mask = u16::try_from(self.pool.lent.len() - 1).unwrap_or(0);
        let mut tail = self.tail;
        self.pool.give_back(|region, buffer| {
            tail = push_entry(entries, tail, mask, region, bytes, buffer);
        });
        self.tail = tail;
        self.publish();
    }

    /// Gives one buffer back that was never lent out (bytes for a socket that is closed).
    pub(super) fn discard(&mut self, buffer: u16) {
        let count = self.pool.lent.len();
        if usize::from(buffer) >= count
            || self.pool.lent.get(usize::from(buffer)) != Some(&NOT_LENT)
        {
            debug_assert!(false, "buffer {buffer} discarded while lent");
            return;
        }
        let mask = u16::try_from(count - 1).unwrap_or(0);
        self.tail = push_entry(
            &self.entries,
            self.tail,
            mask,
            &self.pool.region,
            self.pool.buffer_bytes,
            buffer,
        );
        self.publish();
    }

    fn publish(&self) {
        let base = self.entries.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `base` is the first entry of the mapped ring, where the kernel keeps the tail.
        let tail = unsafe { BufRingEntry::tail(base) }.cast::<AtomicU16>();
        // SAFETY: aligned for u16 inside the mapping; the kernel only reads it, and we only write it here.
        let tail = unsafe { &*tail };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Writes the entry for `buffer` at `tail` and returns the next tail; not seen by the kernel before `publish`.
fn push_entry(
    entries: &Region,
    tail: u16,
    mask: u16,
    buffers: &Region,
    buffer_bytes: u32,
    buffer: u16,
) -> u16 {
    let index = usize::from(tail & mask);
    let address = buffers.at(
        usize::from(buffer) * buffer_bytes as usize,
        buffer_bytes as usize,
    );
    let entry = entries.at(index * size_of::<BufRingEntry>(), size_of::<BufRingEntry>());
    let (Some(address), Some(entry)) = (address, entry) else {
        return tail;
    };
    // SAFETY: inside the mapping, aligned to 16 (page start plus a multiple of 16), and between the kernel's head and
    // our unpublished tail: there are as many entries as buffers, so the kernel does not read this one now.
    let entry = unsafe { &mut *entry.as_ptr().cast::<BufRingEntry>() };
    entry.set_addr(address.as_ptr() as u64);
    entry.set_len(buffer_bytes);
    entry.set_bid(buffer);
    tail.wrapping_add(1)
}

impl Deref for KernelPool {
    type Target = Pool;
    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl DerefMut for KernelPool {
    fn deref_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }
}

/// Bytes copied for the sends of one turn. A chunk never grows beyond its first capacity, so its bytes never move.
#[derive(Default)]
pub(super) struct Scratch {
    chunks: Vec<Vec<u8>>,
    /// Index of the chunk that is being filled.
    current: usize,
}

impl Scratch {
    /// Copies `bytes`, which stay put until [`Scratch::clear`].
    pub(super) fn add(&mut self, bytes: &[u8]) -> Piece {
        while let Some(chunk) = self.chunks.get_mut(self.current) {
            if chunk.capacity() - chunk.len() >= bytes.len() {
                return Self::append(chunk, self.current, bytes);
            }
            self.current += 1;
        }
        let mut chunk = Vec::with_capacity(bytes.len().max(SCRATCH_CHUNK_BYTES));
        let piece = Self::append(&mut chunk, self.chunks.len(), bytes);
        self.chunks.push(chunk);
        piece
    }

    fn append(chunk: &mut Vec<u8>, index: usize, bytes: &[u8]) -> Piece {
        let start = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        chunk.extend_from_slice(bytes);
        let end = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        Piece::Scratch {
            chunk: u32::try_from(index).unwrap_or(u32::MAX),
            range: start..end,
        }
    }

    pub(super) fn range(&self, chunk: u32, range: &Range<u32>) -> Option<&[u8]> {
        self.chunks
            .get(chunk as usize)?
            .get(range.start as usize..range.end as usize)
    }

    /// Forgets the bytes of the turn and keeps a bounded amount of memory.
    pub(super) fn clear(&mut self) {
        if self.chunks.is_empty() {
            return;
        }
        self.chunks
            .retain(|chunk| chunk.capacity() <= SCRATCH_CHUNK_BYTES);
        self.chunks.truncate(SCRATCH_CHUNKS_KEPT);
        for chunk in &mut self.chunks {
            chunk.clear();
        }
        self.current = 0;
    }
}

/// The bytes that a piece names; `None` when it names nothing of this turn.
pub(super) fn resolve<'a>(pool: &'a Pool, scratch: &'a Scratch, piece: &Piece) -> Option<&'a [u8]> {
    match piece {
        Piece::Lease { buffer, range } => pool.range(*buffer, range),
        Piece::Scratch { chunk, range } => scratch.range(*chunk, range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RingConfig {
        RingConfig {
            sockets_max: 4,
            buffers: 4,
            buffer_bytes: 8,
        }
    }

    #[test]
    fn a_stale_or_wrong_lease_names_no_bytes() {
        let mut pool = UserPool::new(&config()).unwrap();
        let lease = pool
            .fill(|space| {
                space[..3].copy_from_slice(b"abc");
                Ok::<_, ()>(3)
            })
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(pool.bytes(lease), b"abc");
        assert_eq!(pool.range(lease.buffer, &(1..3)), Some(&b"bc"[..]));
        assert_eq!(pool.range(lease.buffer, &(1..4)), None, "beyond what came");
        #[allow(clippy::reversed_empty_ranges)]
        // a range that nothing should hand out is what is tried
        let reversed = 2..1;
        assert_eq!(pool.range(lease.buffer, &reversed), None);
        assert_eq!(pool.range(99, &(0..1)), None);
        assert_eq!(pool.range(lease.buffer + 1, &(0..1)), None, "not lent");
        pool.give_back();
        assert_eq!(pool.bytes(lease), b"", "a lease never survives its turn");
    }

    #[test]
    fn buffers_run_out_and_come_back() {
        let mut pool = UserPool::new(&config()).unwrap();
        for _ in 0..4 {
            assert!(matches!(pool.fill(|_| Ok::<_, ()>(8)), Some(Ok(Some(_)))));
        }
        assert_eq!(pool.free(), 0);
        assert!(pool.fill(|_| Ok::<_, ()>(1)).is_none());
        pool.give_back();
        assert_eq!(pool.free(), 4);
        assert!(matches!(pool.fill(|_| Ok::<_, ()>(0)), Some(Ok(None))));
        assert_eq!(pool.free(), 4, "nothing came, nothing is lent");
    }

    #[test]
    fn bad_sizes_are_refused() {
        for (buffers, buffer_bytes) in [(0, 8), (3, 8), (4, 0)] {
            let config = RingConfig {
                sockets_max: 1,
                buffers,
                buffer_bytes,
            };
            assert!(
                UserPool::new(&config).is_err(),
                "{buffers} x {buffer_bytes}"
            );
        }
    }

    #[test]
    fn scratch_stays_put_and_is_bounded() {
        let mut scratch = Scratch::default();
        let first = scratch.add(b"first");
        let Piece::Scratch { chunk, range } = first else {
            panic!("scratch gives scratch");
        };
        let before = scratch.range(chunk, &range).unwrap().as_ptr();
        let pieces: Vec<Piece> = (0..200).map(|_| scratch.add(&[7; 9_000])).collect();
        let large = scratch.add(&vec![9; 3 * SCRATCH_CHUNK_BYTES]);
        assert_eq!(scratch.range(chunk, &range).unwrap().as_ptr(), before);
        assert_eq!(scratch.range(chunk, &range).unwrap(), b"first");
        for piece in pieces.iter().chain([&large]) {
            let Piece::Scratch { chunk, range } = piece else {
                panic!("scratch gives scratch");
            };
            assert!(scratch.range(*chunk, range).is_some());
        }
        scratch.clear();
        assert_eq!(scratch.range(chunk, &range), None, "gone with its turn");
        assert!(scratch.chunks.len() <= SCRATCH_CHUNKS_KEPT);
        let kept: usize = scratch.chunks.iter().map(Vec::capacity).sum();
        assert!(kept <= SCRATCH_CHUNKS_KEPT * SCRATCH_CHUNK_BYTES);
    }
}
