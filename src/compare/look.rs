//! The rows of buckets that differ, key by key.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::Keys;
use super::digest::{Sum, bucket_of};
use super::rows::{Columns, Encoder, Marks};
use super::sample::Range;
use super::side::Drain;
use crate::error::Result;

/// Where to look.
pub(super) struct Look {
    pub(super) columns: Arc<Columns>,
    /// Which buckets.
    pub(super) buckets: Arc<Vec<bool>>,
    pub(super) marks: Marks,
    /// The rows that are looked at, where that is a sample.
    pub(super) only: Option<Range>,
}

impl Look {
    pub(super) fn encoder(&self) -> Result<Encoder> {
        Encoder::new(self.columns.clone(), &self.marks)
    }

    pub(super) fn collector(&self) -> Result<Collector> {
        Ok(Collector {
            encoder: self.encoder()?,
            buckets: self.buckets.clone(),
            marks: self.marks.clone(),
            keys: HashMap::new(),
        })
    }
}

/// What one reader saw of those buckets.
pub(super) struct Collector {
    encoder: Encoder,
    buckets: Arc<Vec<bool>>,
    marks: Marks,
    keys: HashMap<Box<[u8]>, Sum>,
}

impl Drain for Collector {
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let Self { encoder, buckets, marks, keys } = self;
        encoder.each(batch, |key, row| {
            if buckets[bucket_of(marks, key)] {
                keys.entry(key.into()).or_default().add(row);
            }
        })
    }
}

/// How a key differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only the first place has it.
    Missing,
    /// Only the second place has it.
    Surplus,
    /// Both have it, with other values or another number of rows.
    Different,
}

/// The keys that differ.
pub(super) struct Found {
    keys: HashMap<Box<[u8]>, Kind>,
}

impl Found {
    /// What differs between what two places have in the same buckets. Where rows stay that were deleted
    /// before, the second may have more.
    pub(super) fn between(one: Vec<Collector>, other: Vec<Collector>, keeps_deleted: bool) -> Self {
        let (one, mut other) = (gather(one), gather(other));
        let mut keys = HashMap::new();
        for (key, here) in one {
            match other.remove(&key) {
                None => drop(keys.insert(key, Kind::Missing)),
                Some(there) if there != here => drop(keys.insert(key, Kind::Different)),
                Some(_) => {}
            }
        }
        if !keeps_deleted {
            keys.extend(other.into_keys().map(|key| (key, Kind::Surplus)));
        }
        Self { keys }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Missing, surplus, different.
    pub(super) fn counts(&self) -> [u64; 3] {
        [Kind::Missing, Kind::Surplus, Kind::Different]
            .map(|kind| self.keys.values().filter(|of| **of == kind).count() as u64)
    }

    /// Forgets keys that another look found in order; how they differ is what it saw.
    pub(super) fn keep_those_in(&mut self, other: &Self) {
        self.keys.retain(|key, kind| other.keys.get(key).inspect(|now| *kind = **now).is_some());
    }

    /// How a key differs, if it does.
    pub(super) fn kind(&self, key: &[u8]) -> Option<Kind> {
        self.keys.get(key).copied()
    }

    /// How many.
    pub(super) fn len(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Those of one kind.
    pub(super) fn of(&self, kind: Kind) -> Vec<&[u8]> {
        self.keys.iter().filter(|(_, of)| **of == kind).map(|(key, _)| &**key).collect()
    }

    /// Those that the second place has.
    pub(super) fn in_second(&self) -> Vec<&[u8]> {
        self.keys.iter().filter(|(_, of)| **of != Kind::Missing).map(|(key, _)| &**key).collect()
    }

    /// The first so many, in the keys' order, for whoever asked.
    pub(super) fn keys(&self, look: &Look, most: usize) -> Result<Keys> {
        if most == 0 {
            return Ok(Keys::default());
        }
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_unstable_by(|a, b| a.0.cmp(b.0));
        keys.truncate(most);
        let values = look.encoder()?.key_columns(keys.iter().map(|(key, _)| &***key))?;
        let kinds = keys.iter().map(|(_, kind)| match kind {
            Kind::Missing => "missing",
            Kind::Surplus => "surplus",
            Kind::Different => "different",
        });
        Ok(Keys { names: look.columns.key_names(), values, kinds: kinds.collect() })
    }
}

fn gather(parts: Vec<Collector>) -> HashMap<Box<[u8]>, Sum> {
    let mut parts = parts.into_iter().map(|part| part.keys);
    let mut all = parts.next().unwrap_or_default();
    for (key, sum) in parts.flatten() {
        all.entry(key).or_default().join(sum);
    }
    all
}
