//! Address blocks to what is listed under them: one look-up for each prefix length in use, whatever the number of blocks.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use crate::model::{Cidr, left_aligned, mask};

/// Lists by address block.
#[derive(Debug, Default)]
pub(crate) struct CidrTable {
    blocks: HashMap<Cidr, Vec<u32>>,
    /// The prefix lengths in use, for IPv4 and IPv6.
    lengths: BTreeSet<(bool, u8)>,
}

impl CidrTable {
    /// Lists `value` under a block.
    pub(crate) fn add(&mut self, block: Cidr, value: u32) {
        self.lengths.insert((block.is_v6, block.prefix_len));
        self.blocks.entry(block).or_default().push(value);
    }

    /// What is listed under the blocks that contain an address, block by block.
    pub(crate) fn containing(&self, address: IpAddr) -> impl Iterator<Item = &[u32]> {
        let (bits, is_v6) = left_aligned(address);
        self.lengths
            .range((is_v6, 0)..=(is_v6, 128))
            .filter_map(move |(_, prefix_len)| {
                let block = Cidr {
                    bits: bits & mask(*prefix_len),
                    prefix_len: *prefix_len,
                    is_v6,
                };
                self.blocks.get(&block).map(Vec::as_slice)
            })
    }
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
        fn answers_like_asking_every_block(blocks in prop::collection::vec(block(), 0..12), bits: u128, is_v6: bool) {
            let bits = bits & (0b11 << 126 | 0b11 << 96 | 1);
            let address = if is_v6 { IpAddr::from(bits.to_be_bytes()) } else { IpAddr::from(((bits >> 96) as u32).to_be_bytes()) };
            let mut table = CidrTable::default();
            for (index, block) in blocks.iter().enumerate() {
                table.add(*block, index as u32);
            }
            let mut found: Vec<u32> = table.containing(address).flatten().copied().collect();
            found.sort_unstable();
            let expected: Vec<u32> = (0..).zip(&blocks).filter(|(_, block)| block.contains(address)).map(|(index, _)| index).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
