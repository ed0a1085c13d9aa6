//! A table in a few megabytes: how many rows each bucket of keys has, and the sum of their fingerprints.
//!
//! Sums do not depend on the order of rows, so that places are read as suits them. A fingerprint has 128
//! bits ([`Fingerprints`](crate::lake::Fingerprints)); that two different tables have one digest takes
//! more luck than a disk that flips a bit unseen.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::rows::{Columns, Encoder, Marks};
use super::side::Drain;
use crate::error::Result;

/// Buckets of keys: few enough to be nothing beside a batch, so many that a few changed rows in a large
/// table leave nearly all of them equal.
const BUCKETS: usize = 1 << 16;
/// What a key that is looked at takes beside its bytes, about: its sum, and the map around it.
const KEY_OVERHEAD: u64 = 128;

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

/// The rows of some keys.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    sum: Sum,
    key_bytes: u64,
}

/// The digest of some rows.
pub(super) struct Digest {
    encoder: Encoder,
    marks: Marks,
    buckets: Vec<Bucket>,
}

/// The bucket of a key.
pub(super) fn bucket_of(marks: &Marks, key: &[u8]) -> usize {
    marks.buckets.hash_one(key) as usize % BUCKETS
}

impl Digest {
    pub(super) fn new(columns: Arc<Columns>, marks: &Marks) -> Result<Self> {
        let buckets = vec![Bucket::default(); BUCKETS];
        Ok(Self { encoder: Encoder::new(columns, marks)?, marks: marks.clone(), buckets })
    }

    /// Of all rows, where each part has some.
    pub(super) fn sum(parts: Vec<Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let mut all = parts.next().expect("a place has at least one worker");
        for part in parts {
            for (bucket, other) in all.buckets.iter_mut().zip(part.buckets) {
                bucket.sum.join(other.sum);
                bucket.key_bytes += other.key_bytes;
            }
        }
        Ok(all)
    }

    pub(super) fn rows(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.sum.rows).sum()
    }

    /// The buckets that differ, as many of them as can be looked at in so many bytes; and whether that is all.
    pub(super) fn differing(&self, other: &Self, most_bytes: u64) -> (Vec<bool>, bool) {
        let mut differing = Vec::new();
        let mut bytes = 0;
        for (at, (here, there)) in self.buckets.iter().zip(&other.buckets).enumerate() {
            if here.sum == there.sum {
                continue;
            }
            bytes += here.bytes() + there.bytes();
            if bytes > most_bytes && !differing.is_empty() {
                return (differing, false);
            }
            differing.resize(BUCKETS, false);
            differing[at] = true;
        }
        (differing, true)
    }
}

impl Bucket {
    /// What it takes to look at its keys.
    fn bytes(&self) -> u64 {
        self.key_bytes + self.sum.rows * KEY_OVERHEAD
    }
}

impl Drain for Digest {
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let Self { encoder, marks, buckets } = self;
        encoder.each(batch, |key, row| {
            let bucket = &mut buckets[bucket_of(marks, key)];
            bucket.sum.add(row);
            bucket.key_bytes += key.len() as u64;
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int32Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn digest(marks: &Marks, ids: impl Iterator<Item = i32>) -> Digest {
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, false)]));
        let columns = Arc::new(Columns::shared(&schema, &schema, &["id".into()]).unwrap());
        let mut digest = Digest::new(columns, marks).unwrap();
        let ids = Int32Array::from_iter_values(ids);
        digest.take(&RecordBatch::try_new(schema, vec![Arc::new(ids)]).unwrap()).unwrap();
        digest
    }

    #[test]
    fn order_does_not_count_and_every_row_does() {
        let marks = Marks::new();
        let all = digest(&marks, 0..5000);
        let parts = Digest::sum(vec![digest(&marks, (2500..5000).rev()), digest(&marks, 0..2500)]).unwrap();
        assert_eq!(all.differing(&parts, 1), (vec![], true));
        assert_eq!(all.differing(&digest(&marks, 0..4999), u64::MAX).0.iter().filter(|it| **it).count(), 1);
        let twice = digest(&marks, (0..5000).chain([17]));
        assert_eq!(all.differing(&twice, u64::MAX).0.iter().filter(|it| **it).count(), 1);
    }

    #[test]
    fn no_more_buckets_are_looked_at_than_fit() {
        let marks = Marks::new();
        let (here, there) = (digest(&marks, 0..100_000), digest(&marks, 100_000..200_000));
        let (buckets, complete) = here.differing(&there, 1000 * KEY_OVERHEAD);
        assert!(!complete);
        let rows = |of: &Digest| -> u64 {
            of.buckets.iter().zip(&buckets).filter(|(_, it)| **it).map(|(bucket, _)| bucket.sum.rows).sum()
        };
        assert!((1..=1000).contains(&(rows(&here) + rows(&there))));
        assert!(here.differing(&there, u64::MAX).1);
    }
}
