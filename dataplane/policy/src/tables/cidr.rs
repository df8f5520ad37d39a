//! Address blocks to what is listed under them: one look-up for each prefix length in use, whatever the number of blocks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::shared::Sharded;
use super::who::{List, put, take};
use crate::model::{Cidr, left_aligned, mask};

/// Lists by address block.
#[derive(Clone, Debug)]
pub(crate) struct CidrTable {
    blocks: Sharded<Cidr, List>,
    /// The prefix lengths in use, for IPv4 and IPv6, and by how many blocks.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Default for CidrTable {
    fn default() -> Self {
        Self {
            blocks: Sharded::with_capacity(0),
            lengths: BTreeMap::new(),
        }
    }
}

impl CidrTable {
    /// Lists `value` under a block.
    pub(crate) fn add(&mut self, block: Cidr, value: u32) {
        let length = (block.is_v6, block.prefix_len);
        *self.lengths.entry(length).or_default() += 1;
        put(&mut self.blocks, block, value);
    }

    /// Takes `value` off the list of a block, under which it stands.
    pub(crate) fn remove(&mut self, block: Cidr, value: u32) {
        let length = (block.is_v6, block.prefix_len);
        take(&mut self.blocks, block, value);
        if let Some(count) = self.lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    /// How many stand under a block.
    pub(crate) fn crowd(&self, block: &Cidr) -> usize {
        self.blocks.get(block).map_or(0, |list| list.len())
    }

    /// The next block, from a prefix length on, that contains an address: its length, and what is listed under it.
    pub(crate) fn containing(&self, address: IpAddr, from: u8) -> Option<(u8, &[u32])> {
        let (bits, is_v6) = left_aligned(address);
        let mut lengths = self.lengths.range((is_v6, from)..(is_v6, u8::MAX));
        lengths.find_map(|((_, prefix_len), _)| {
            let block = Cidr {
                bits: bits & mask(*prefix_len),
                prefix_len: *prefix_len,
                is_v6,
            };
            let list = self.blocks.get(&block)?;
            Some((*prefix_len, list.as_slice()))
        })
    }

    /// How many prefix lengths there are.
    pub(crate) fn lengths(&self) -> usize {
        self.lengths.len()
    }
}

/// Blocks that are asked one after the other; more of them are looked up by each prefix length.
const ASKED_EACH_MAX: usize = 256;

/// True exactly when one of some blocks, which are in order, contains an address.
pub(crate) fn contains(blocks: &[Cidr], address: IpAddr) -> bool {
    if blocks.len() <= ASKED_EACH_MAX {
        return blocks.iter().any(|block| block.contains(address));
    }
    let (bits, is_v6) = left_aligned(address);
    (0..=128).any(|prefix_len| {
        let block = Cidr {
            bits: bits & mask(prefix_len),
            prefix_len,
            is_v6,
        };
        blocks.binary_search(&block).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block() -> impl Strategy<Value = Cidr> {
        (any::<bool>(), any::<u128>(), 0_u8..=128).prop_map(|(is_v6, bits, length)| {
            let prefix_len = if is_v6 { length } else { length.min(32) };
            // Few different bits, so that blocks nest.
            let bits = bits & (0b11 << 126 | 0b11 << 96);
            Cidr {
                bits: bits & mask(prefix_len),
                prefix_len,
                is_v6,
            }
        })
    }

    proptest! {
        #[test]
        fn answers_like_asking_every_block(blocks in prop::collection::vec(block(), 0..12), gone in prop::collection::vec(block(), 0..12), bits: u128, is_v6: bool) {
            let bits = bits & (0b11 << 126 | 0b11 << 96 | 1);
            let address = if is_v6 { IpAddr::from(bits.to_be_bytes()) } else { IpAddr::from(((bits >> 96) as u32).to_be_bytes()) };
            let mut table = CidrTable::default();
            for (index, block) in blocks.iter().enumerate() {
                table.add(*block, index as u32);
            }
            for block in &gone {
                table.add(*block, 77);
            }
            for block in gone {
                table.remove(block, 77);
            }
            let mut found = Vec::new();
            let mut from = 0;
            while let Some((length, list)) = table.containing(address, from) {
                found.extend_from_slice(list);
                from = length + 1;
            }
            found.sort_unstable();
            let expected: Vec<u32> = (0..).zip(&blocks).filter(|(_, block)| block.contains(address)).map(|(index, _)| index).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_long_list_is_asked_like_a_short_one() {
        let mut blocks: Vec<Cidr> = (0..2_000_u128)
            .map(|number| Cidr {
                bits: number << 104,
                prefix_len: 24,
                is_v6: false,
            })
            .collect();
        blocks.push(Cidr::parse("10.0.0.0/9").unwrap());
        blocks.push(Cidr::parse("2001:db8::/32").unwrap());
        blocks.push(Cidr::parse("192.0.2.7").unwrap());
        blocks.sort();
        for address in [
            "0.7.207.1",
            "0.7.208.1",
            "10.127.0.1",
            "10.128.0.1",
            "192.0.2.7",
            "192.0.2.8",
            "2001:db8::9",
            "2001:db9::9",
            "::ffff:10.1.1.1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            let expected = blocks.iter().any(|block| block.contains(address));
            assert_eq!(contains(&blocks, address), expected, "{address}");
        }
    }
}
