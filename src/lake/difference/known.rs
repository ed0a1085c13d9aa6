//! The fingerprints of the rows that are there, to be claimed by equal rows that come.
//!
//! Sorted, with an index of where each prefix begins: fingerprints are as good as random, so a prefix
//! of the right length has a handful of them, and a search costs two cache misses.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of memory that a row takes: its entry, its part of the index, its mark; rounded up.
pub(super) const ROW_BYTES: usize = 23;
/// Entries of one prefix, on average.
const ENTRIES_A_PREFIX: usize = 8;

/// The fingerprint of a row and where it is: 21 bytes, because there is one for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    fingerprint: [u8; 16],
    ordinal: [u8; 5],
}

impl Entry {
    pub(super) const BYTES: usize = 21;

    /// `ordinal`: below 2^40, a trillion rows.
    pub(super) fn new(fingerprint: u128, ordinal: u64) -> Self {
        debug_assert!(ordinal >> 40 == 0);
        let [_, _, _, ordinal @ ..] = ordinal.to_be_bytes();
        Self { fingerprint: fingerprint.to_be_bytes(), ordinal }
    }

    pub(super) fn fingerprint(&self) -> u128 {
        u128::from_be_bytes(self.fingerprint)
    }

    pub(super) fn ordinal(&self) -> u64 {
        let [a, b, c, d, e] = self.ordinal;
        u64::from_be_bytes([0, 0, 0, a, b, c, d, e])
    }

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.fingerprint);
        bytes[16..].copy_from_slice(&self.ordinal);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let (mut fingerprint, mut ordinal) = ([0; 16], [0; 5]);
        fingerprint.copy_from_slice(&bytes[..16]);
        ordinal.copy_from_slice(&bytes[16..]);
        Self { fingerprint, ordinal }
    }
}

/// A multiset of rows. Shared by all streams of a read.
pub(super) struct Known {
    entries: Vec<Entry>,
    /// Where each prefix begins, and the end.
    starts: Vec<usize>,
    prefix_bits: u32,
    claimed: Vec<AtomicU64>,
}

impl Known {
    pub(super) fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable_by_key(Entry::fingerprint);
        let prefix_bits = (entries.len() / ENTRIES_A_PREFIX).max(1).ilog2();
        let mut starts = Vec::with_capacity((1 << prefix_bits) + 1);
        for (place, entry) in entries.iter().enumerate() {
            while starts.len() <= prefix(entry.fingerprint(), prefix_bits) {
                starts.push(place);
            }
        }
        starts.resize((1 << prefix_bits) + 1, entries.len());
        let claimed = (0..entries.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { entries, starts, prefix_bits, claimed }
    }

    /// Whether an equal row is there that nobody has claimed yet. Now somebody has.
    pub(super) fn claim(&self, fingerprint: u128) -> bool {
        let prefix = prefix(fingerprint, self.prefix_bits);
        (self.starts[prefix]..self.starts[prefix + 1])
            .filter(|place| self.entries[*place].fingerprint() == fingerprint)
            .any(|place| {
                let mark = 1 << (place % 64);
                self.claimed[place / 64].fetch_or(mark, Ordering::Relaxed) & mark == 0
            })
    }

    /// The ordinals of rows that nobody claimed, in no order.
    pub(super) fn unclaimed(&self, mut each: impl FnMut(u64)) {
        for (place, entry) in self.entries.iter().enumerate() {
            if self.claimed[place / 64].load(Ordering::Relaxed) & (1 << (place % 64)) == 0 {
                each(entry.ordinal());
            }
        }
    }
}

fn prefix(fingerprint: u128, bits: u32) -> usize {
    // By zero bits a number cannot be shifted out of itself.
    fingerprint.checked_shr(u128::BITS - bits).unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_claimed_once() {
        let prints = [7, u128::MAX, 7, 1 << 127];
        let entries = prints.iter().zip(0..).map(|(print, ordinal)| Entry::new(*print, ordinal)).collect();
        let known = Known::new(entries);
        assert_eq!([7, 7, 7, 8, u128::MAX].map(|print| known.claim(print)), [true, true, false, false, true]);
        let mut left = Vec::new();
        known.unclaimed(|ordinal| left.push(ordinal));
        assert_eq!(left, [3]);
        assert!(!Known::new(Vec::new()).claim(7));
    }

    #[test]
    fn many_rows_are_all_found() {
        // Fingerprints are spread like these.
        let print = |n: u64| u128::from(n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        let known = Known::new((0..5000).map(|n| Entry::new(print(n), n)).collect());
        assert!((0..5000).all(|n| known.claim(print(n))));
        assert!((5000..10_000).all(|n| !known.claim(print(n))));
        known.unclaimed(|ordinal| panic!("{ordinal} was claimed"));
    }

    #[test]
    fn entries_survive_as_bytes() {
        let entry = Entry::new(u128::MAX - 5, (1 << 40) - 2);
        assert_eq!(Entry::from_bytes(&entry.to_bytes()), entry);
        assert_eq!((entry.fingerprint(), entry.ordinal()), (u128::MAX - 5, (1 << 40) - 2));
        assert_eq!(size_of::<Entry>(), Entry::BYTES);
    }
}
