//! A first question before a key is looked up: most rows of a large table have none of a change's keys.
//!
//! One bit a key, in a field that stays in the processor's cache: a multiplication and a shift instead
//! of a hash and a place in a table that is not there.

/// Bits for each key: of the rows that have none of the keys, one in sixteen or fewer is looked up.
const BITS_A_KEY: usize = 16;

/// Spreads neighbouring numbers over all bits: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Which keys may be in a set. The answer "no" is certain.
#[derive(Debug, Default)]
pub(super) struct Filter {
    bits: Vec<u64>,
    /// How far a spread key is shifted to become the number of its bit.
    shift: u32,
}

impl Filter {
    /// A filter of these keys, of which there are so many.
    pub(super) fn of(keys: impl Iterator<Item = u64>, count: usize) -> Self {
        let size = (count * BITS_A_KEY).next_power_of_two().max(u64::BITS as usize);
        let mut filter = Self { bits: vec![0; size / u64::BITS as usize], shift: u64::BITS - size.ilog2() };
        for key in keys {
            let (word, bit) = filter.place(key);
            filter.bits[word] |= bit;
        }
        filter
    }

    /// Whether the set may have this key.
    pub(super) fn may_have(&self, key: u64) -> bool {
        let (word, bit) = self.place(key);
        self.bits[word] & bit != 0
    }

    fn place(&self, key: u64) -> (usize, u64) {
        let place = key.wrapping_mul(SPREAD) >> self.shift;
        ((place / u64::from(u64::BITS)) as usize, 1 << (place % u64::from(u64::BITS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_keys_pass_and_few_others() {
        for count in [0, 1, 3, 5000] {
            let filter = Filter::of((0..count).map(|key| key * 7), count as usize);
            assert!((0..count).all(|key| filter.may_have(key * 7)));
            let others = (0..100_000u64).filter(|key| key % 7 != 0 && filter.may_have(*key)).count();
            assert!(others < 100_000 / 10, "{others} of 100000 others pass, with {count} keys");
        }
    }
}
