//! About how many different values there are: a theta sketch, as Apache DataSketches writes it.
//!
//! ```text
//! value ─▶ hash (63 bits) ─▶ 0 ──●●─●──●─●●┤θ························ 2⁶³
//!                                 4,096 least     all others are forgotten
//! ```
//!
//! Hashes lie evenly, so that how close the least ones are says how many there are: 4,096 of them below θ
//! make 4,096 ÷ (θ ÷ 2⁶³), within 3 % in two of three cases … 5 % in nearly all. Fewer than that are
//! counted exactly. Sketches of parts of a table make one of the whole.

/// How many hashes are kept: Iceberg's engines take as many.
const KEPT: usize = 4096;
/// The seed that all who compare sketches agree on.
const SEED: u64 = 9001;
/// The greatest hash and one: θ before anything is forgotten.
const ALL: u64 = i64::MAX as u64;

/// A sketch.
#[derive(Debug, Clone)]
pub(super) struct Theta {
    /// Below θ; those since the last time of tidying may repeat others.
    hashes: Vec<u64>,
    theta: u64,
}

impl Theta {
    pub(super) fn new() -> Self {
        Self { hashes: Vec::new(), theta: ALL }
    }

    /// A value in the bytes that Iceberg gives to a single value.
    pub(super) fn add(&mut self, value: &[u8]) {
        self.add_hash(murmur(value, SEED).0 >> 1);
    }

    /// All that another one has seen.
    pub(super) fn merge(&mut self, other: &Self) {
        self.theta = self.theta.min(other.theta);
        other.hashes.iter().for_each(|hash| self.add_hash(*hash));
        self.tidy();
    }

    fn add_hash(&mut self, hash: u64) {
        if hash == 0 || hash >= self.theta {
            return;
        }
        self.hashes.push(hash);
        if self.hashes.len() == 2 * KEPT {
            self.tidy();
        }
    }

    /// Each hash once, in order, and no more than are kept.
    fn tidy(&mut self) {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        if let Some(first_gone) = self.hashes.get(KEPT) {
            self.theta = self.theta.min(*first_gone);
        }
        let theta = self.theta;
        self.hashes.truncate(self.hashes.partition_point(|hash| *hash < theta));
    }

    /// About how many different values there are; exactly, while they are few.
    pub(super) fn estimate(&mut self) -> u64 {
        self.tidy();
        let seen = self.hashes.len() as f64;
        (seen / (self.theta as f64 / ALL as f64)).round() as u64
    }

    /// The compact form: a preamble, then the hashes in order, all numbers little-endian.
    pub(super) fn compact(&mut self) -> Vec<u8> {
        const VERSION: u8 = 3;
        const COMPACT_FAMILY: u8 = 3;
        const READ_ONLY: u8 = 1 << 1;
        const EMPTY: u8 = 1 << 2;
        const COMPACT: u8 = 1 << 3;
        const ORDERED: u8 = 1 << 4;
        const SINGLE: u8 = 1 << 5;
        self.tidy();
        // In units of eight bytes.
        let (preamble, kind) = match (self.hashes.len(), self.theta) {
            (0, ALL) => (1, EMPTY),
            (1, ALL) => (1, SINGLE),
            (_, ALL) => (2, 0),
            _ => (3, 0),
        };
        let mut bytes = vec![preamble, VERSION, COMPACT_FAMILY, 0, 0, READ_ONLY | COMPACT | ORDERED | kind];
        bytes.extend((murmur(&SEED.to_le_bytes(), 0).0 as u16).to_le_bytes());
        if preamble > 1 {
            bytes.extend((self.hashes.len() as u32).to_le_bytes());
            bytes.extend(1_f32.to_le_bytes());
        }
        if preamble > 2 {
            bytes.extend(self.theta.to_le_bytes());
        }
        bytes.extend(self.hashes.iter().flat_map(|hash| hash.to_le_bytes()));
        bytes
    }
}

/// MurmurHash3 in its form of 128 bits for machines of 64.
fn murmur(bytes: &[u8], seed: u64) -> (u64, u64) {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let (mut h1, mut h2) = (seed, seed);
    let mut blocks = bytes.chunks_exact(16);
    for block in &mut blocks {
        h1 ^= mix1(word(&block[..8]));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(word(&block[8..]));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let rest = blocks.remainder();
    let (first, second) = rest.split_at(rest.len().min(8));
    // Mixing nothing changes nothing.
    h2 ^= mix2(word(second));
    h1 ^= mix1(word(first));
    h1 ^= bytes.len() as u64;
    h2 ^= bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    (h1, h2) = (finish(h1), finish(h2));
    h1 = h1.wrapping_add(h2);
    (h1, h2.wrapping_add(h1))
}

fn finish(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl Iterator<Item = u64>) -> Theta {
        let mut sketch = Theta::new();
        values.for_each(|value| sketch.add(&value.to_le_bytes()));
        sketch
    }

    #[test]
    fn few_values_are_counted_and_many_are_estimated() {
        assert_eq!(of(0..0).estimate(), 0);
        assert_eq!(of((0..50_000).map(|n| n % 7)).estimate(), 7);
        assert_eq!(of(0..4096).estimate(), 4096);
        for values in [5_000, 100_000, 1_000_000] {
            let estimate = of(0..values).estimate();
            assert!(estimate.abs_diff(values) < values / 20, "{estimate} of {values}");
        }
    }

    #[test]
    fn parts_make_a_whole() {
        let mut parts = of(0..60_000);
        parts.merge(&of(30_000..100_000));
        let mut whole = of(0..100_000);
        assert_eq!((parts.estimate(), parts.compact()), (whole.estimate(), whole.compact()));
        let mut with_nothing = of(0..10);
        with_nothing.merge(&Theta::new());
        assert_eq!(with_nothing.estimate(), 10);
    }

    /// Published values of the hash: the empty text, and one longer than a block.
    #[test]
    fn the_hash_is_the_known_one() {
        assert_eq!(murmur(b"", 0), (0, 0));
        let text = b"The quick brown fox jumps over the lazy dog";
        assert_eq!(murmur(text, 0), (0xe34b_bc7b_bc07_1b6c, 0x7a43_3ca9_c49a_9347));
    }

    #[test]
    fn the_compact_form_says_what_it_is() {
        // The hash of the seed that all agree on is 0x93cc.
        assert_eq!(Theta::new().compact(), [1, 3, 3, 0, 0, 0b1_1110, 0xcc, 0x93]);
        assert_eq!(of(0..1).compact().len(), 16);
        assert_eq!(of(0..2).compact().len(), 32);
        assert_eq!(of(0..5_000).compact().len(), 24 + 8 * KEPT);
    }
}
