//! Bounds-checked reading of borrowed bytes: the only place of this crate that takes buffers apart.
//!
//! Owns the primitive encodings (integers, length-prefixed data, the variable byte integer). Knows no packet and names
//! no violation: `None` means that the bytes end too early, and the caller knows which clause that breaks.

/// Reads from the front of a slice; what is left is the state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

/// The outcome of reading a variable byte integer (MQTT 5 section 1.5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Varint {
    /// A value and the number of bytes it took, 1 to 4.
    Value(u32, u8),
    /// The bytes end inside the integer.
    Incomplete,
    /// The fourth byte announces a fifth.
    TooLong,
    /// The same, in more bytes than the value needs.
    NotMinimal(u32, u8),
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.rest.split_first_chunk::<2>()?;
        self.rest = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    /// Two bytes of length, then that many bytes.
    #[inline]
    pub(crate) fn prefixed(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let len = usize::from(ahead.u16()?);
        let data = ahead.take(len)?;
        *self = ahead;
        Some(data)
    }

    /// A variable byte integer; the cursor moves only when there is a value.
    #[inline]
    pub(crate) fn varint(&mut self) -> Varint {
        let outcome = varint(self.rest);
        if let Varint::Value(_, len) = outcome {
            self.rest = self.rest.get(usize::from(len)..).unwrap_or_default();
        }
        outcome
    }
}

/// The variable byte integer at the front of `bytes`.
#[inline]
pub(crate) fn varint(bytes: &[u8]) -> Varint {
    let Some(&first) = bytes.first() else {
        return Varint::Incomplete;
    };
    if first < 0x80 {
        return Varint::Value(u32::from(first), 1);
    }
    long_varint(bytes)
}

fn long_varint(bytes: &[u8]) -> Varint {
    let mut value = 0;
    for (index, &byte) in (0u8..4).zip(bytes) {
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            // A last byte of zero adds nothing to the value [MQTT-1.5.5-1].
            return if byte == 0 && index > 0 {
                Varint::NotMinimal(value, index + 1)
            } else {
                Varint::Value(value, index + 1)
            };
        }
    }
    if bytes.len() < 4 {
        Varint::Incomplete
    } else {
        Varint::TooLong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_table() {
        let table: &[(&[u8], Varint)] = &[
            (&[], Varint::Incomplete),
            (&[0x00], Varint::Value(0, 1)),
            (&[0x7f, 0xff], Varint::Value(127, 1)),
            (&[0x80], Varint::Incomplete),
            (&[0x80, 0x01], Varint::Value(128, 2)),
            (&[0xff, 0x7f], Varint::Value(16_383, 2)),
            (&[0x80, 0x80, 0x01], Varint::Value(16_384, 3)),
            (&[0xff, 0xff, 0xff], Varint::Incomplete),
            (&[0xff, 0xff, 0xff, 0x7f], Varint::Value(268_435_455, 4)),
            (&[0x80, 0x00], Varint::NotMinimal(0, 2)),
            (&[0x88, 0x00], Varint::NotMinimal(8, 2)),
            (&[0xff, 0xff, 0xff, 0x00], Varint::NotMinimal(2_097_151, 4)),
            (&[0x80, 0x80, 0x80, 0x80], Varint::TooLong),
            (&[0x80, 0x80, 0x80, 0x80, 0x01], Varint::TooLong),
        ];
        for (bytes, expected) in table {
            assert_eq!(varint(bytes), *expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn prefixed_moves_only_when_whole() {
        let mut cursor = Cursor::new(&[0, 3, b'a', b'b']);
        assert_eq!(cursor.prefixed(), None);
        assert_eq!(cursor.rest().len(), 4);
        assert_eq!(cursor.u16(), Some(3));
        assert_eq!(cursor.take(2), Some(&b"ab"[..]));
        assert_eq!(
            (cursor.u8(), cursor.u16(), cursor.u32()),
            (None, None, None)
        );
    }
}
