//! A table in a few megabytes: how many rows each bucket of keys has, and the sum of their fingerprints.
//!
//! Sums do not depend on the order of rows, so that places are read as suits them. A fingerprint is a
//! keyed hash of 128 bits over the whole row; that two different tables have one digest takes more
//! luck than a disk that flips a bit unseen.

use std::hash::Hasher;
use std::sync::Arc;

use ahash::RandomState;
use arrow::array::RecordBatch;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::rows::{Columns, Encoder};
use super::side::Drain;
use crate::error::Result;

/// Buckets of keys: few enough to be nothing beside a batch, so many that a few changed rows in a large
/// table leave nearly all of them equal.
const BUCKETS: usize = 1 << 16;

/// How both sides of one comparison hash keys and rows.
#[derive(Debug, Clone)]
pub(super) struct Hash {
    keys: RandomState,
    rows: SipHasher13,
}

/// A new one: nobody can prepare rows that collide.
pub(super) fn hasher() -> Hash {
    let keys = RandomState::new();
    let rows = SipHasher13::new_with_keys(keys.hash_one(1), keys.hash_one(2));
    Hash { keys, rows }
}

impl Hash {
    pub(super) fn bucket(&self, key: &[u8]) -> usize {
        self.keys.hash_one(key) as usize % BUCKETS
    }

    pub(super) fn row(&self, row: &[u8]) -> u128 {
        let mut hasher = self.rows;
        hasher.write(row);
        hasher.finish128().as_u128()
    }
}

/// What a bucket, or a key, has: so many rows, and the sum of their fingerprints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) rows: u64,
    fingerprints: u128,
}

impl Sum {
    pub(super) fn add(&mut self, fingerprint: u128) {
        self.rows += 1;
        self.fingerprints = self.fingerprints.wrapping_add(fingerprint);
    }

    pub(super) fn join(&mut self, other: Self) {
        self.rows += other.rows;
        self.fingerprints = self.fingerprints.wrapping_add(other.fingerprints);
    }
}

/// The digest of some rows.
pub(super) struct Digest {
    encoder: Encoder,
    hash: Hash,
    buckets: Vec<Sum>,
}

impl Digest {
    pub(super) fn new(columns: Arc<Columns>, hash: Hash) -> Result<Self> {
        Ok(Self { encoder: Encoder::new(columns)?, hash, buckets: vec![Sum::default(); BUCKETS] })
    }

    /// Of all rows, where each part has some.
    pub(super) fn sum(parts: Vec<Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let mut all = parts.next().expect("a place has at least one worker");
        for part in parts {
            all.buckets.iter_mut().zip(part.buckets).for_each(|(bucket, other)| bucket.join(other));
        }
        Ok(all)
    }

    pub(super) fn rows(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.rows).sum()
    }

    pub(super) fn hasher(&self) -> Hash {
        self.hash.clone()
    }

    /// The buckets that differ, as many of them as have at most so many rows; and whether that is all.
    pub(super) fn differing(&self, other: &Self, most_rows: u64) -> (Vec<bool>, bool) {
        let mut differing = Vec::new();
        let mut rows = 0;
        for (at, (here, there)) in self.buckets.iter().zip(&other.buckets).enumerate() {
            if here == there {
                continue;
            }
            rows += here.rows + there.rows;
            if rows > most_rows && !differing.is_empty() {
                return (differing, false);
            }
            differing.resize(BUCKETS, false);
            differing[at] = true;
        }
        (differing, true)
    }
}

impl Drain for Digest {
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let (keys, rows) = (self.encoder.keys(batch)?, self.encoder.rows(batch)?);
        for (key, row) in keys.iter().zip(rows.iter()) {
            self.buckets[self.hash.bucket(key.data())].add(self.hash.row(row.data()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int32Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn digest(hash: &Hash, ids: impl Iterator<Item = i32>) -> Digest {
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, false)]));
        let columns = Arc::new(Columns::shared(&schema, &schema, &["id".into()]).unwrap());
        let mut digest = Digest::new(columns, hash.clone()).unwrap();
        let ids = Int32Array::from_iter_values(ids);
        digest.take(&RecordBatch::try_new(schema, vec![Arc::new(ids)]).unwrap()).unwrap();
        digest
    }

    #[test]
    fn order_does_not_count_and_every_row_does() {
        let hash = hasher();
        let all = digest(&hash, 0..5000);
        let parts = Digest::sum(vec![digest(&hash, (2500..5000).rev()), digest(&hash, 0..2500)]).unwrap();
        assert_eq!(all.differing(&parts, 1), (vec![], true));
        assert_eq!(all.differing(&digest(&hash, 0..4999), u64::MAX).0.iter().filter(|it| **it).count(), 1);
        let twice = digest(&hash, (0..5000).chain([17]));
        assert_eq!(all.differing(&twice, u64::MAX).0.iter().filter(|it| **it).count(), 1);
    }

    #[test]
    fn no_more_buckets_are_looked_at_than_fit() {
        let hash = hasher();
        let (here, there) = (digest(&hash, 0..100_000), digest(&hash, 100_000..200_000));
        let (buckets, complete) = here.differing(&there, 1000);
        assert!(!complete);
        let rows = |of: &Digest| -> u64 {
            of.buckets.iter().zip(&buckets).filter(|(_, it)| **it).map(|(bucket, _)| bucket.rows).sum()
        };
        assert!((1..=1000).contains(&(rows(&here) + rows(&there))));
        assert!(here.differing(&there, u64::MAX).1);
    }
}
