//! Fingerprints of a read that is written to files before it is compared, taken on the way there.
//!
//! ```text
//! batch ─┬─▶ fingerprints, each with an ordinal ─▶ shares on the local disk
//!        └─▶ writer ─▶ files          ordinal ─▶ batch ─▶ row of its writer ─▶ file and position
//! ```
//!
//! So the files need not be read again to be compared. It works for writers that keep the order of
//! rows: one without partitions and without a sort order has the n-th row that it was given in the n-th
//! place of its files, put end to end.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use roaring::RoaringTreemap;

use super::shares::Shares;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::WrittenFile;

/// What is staged by all streams of a read.
pub(super) struct Staging {
    shares: Mutex<Shares>,
    /// The ordinal of the next row.
    next: AtomicU64,
    writers: Mutex<Vec<Writer>>,
}

/// What went through one writer.
#[derive(Default)]
pub(super) struct Writer {
    batches: Vec<Batch>,
    rows: u64,
    /// The files that came of it, each with the row of the writer that it begins with.
    files: Vec<(u64, String)>,
}

/// Rows that follow each other, in their writer and by their ordinals.
#[derive(Clone, Copy)]
struct Batch {
    ordinal: u64,
    row: u64,
}

impl Staging {
    /// For a comparison in so many shares.
    pub(super) fn new(shares: usize) -> Result<Self> {
        Ok(Self {
            shares: Mutex::new(Shares::new(shares)?),
            next: AtomicU64::new(0),
            writers: Mutex::new(Vec::new()),
        })
    }

    /// Takes the fingerprints of a batch that goes to a writer.
    pub(super) fn add(&self, writer: &mut Writer, fingerprints: &[u128]) -> Result<()> {
        let ordinal = self.next.fetch_add(fingerprints.len() as u64, Ordering::Relaxed);
        writer.batches.push(Batch { ordinal, row: writer.rows });
        writer.rows += fingerprints.len() as u64;
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        fingerprints.iter().zip(ordinal..).try_for_each(|(print, ordinal)| shares.add(*print, ordinal))
    }

    /// A writer is done, and these are its files, in their order.
    pub(super) fn written(&self, mut writer: Writer, files: &[WrittenFile]) -> Result<()> {
        let mut rows = 0;
        for written in files {
            writer.files.push((rows, written.file.file_path().to_owned()));
            rows += written.file.record_count();
        }
        if rows != writer.rows {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{} rows were staged and {rows} written", writer.rows),
            ));
        }
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).push(writer);
        Ok(())
    }

    /// The fingerprints, and what leads from their ordinals to rows of the staged files.
    pub(super) fn finish(self) -> (Shares, Staged) {
        let writers = self.writers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut batches: Vec<_> = (0..)
            .zip(&writers)
            .flat_map(|(number, writer)| writer.batches.iter().map(move |batch| (*batch, number)))
            .collect();
        batches.sort_unstable_by_key(|(batch, _)| batch.ordinal);
        (self.shares.into_inner().unwrap_or_else(PoisonError::into_inner), Staged { batches, writers })
    }
}

/// Where staged rows are.
pub(super) struct Staged {
    /// By ordinal, each with the number of its writer.
    batches: Vec<(Batch, usize)>,
    writers: Vec<Writer>,
}

impl Staged {
    /// The positions of rows in the files, as these are numbered in `files`.
    pub(super) fn place(
        &self,
        ordinals: impl IntoIterator<Item = u64>,
        files: &[WrittenFile],
    ) -> Result<BTreeMap<usize, RoaringTreemap>> {
        let numbers: HashMap<&str, usize> = files.iter().map(|of| of.file.file_path()).zip(0..).collect();
        let mut placed: BTreeMap<usize, RoaringTreemap> = BTreeMap::new();
        for ordinal in ordinals {
            let batch = self.batches.partition_point(|(batch, _)| batch.ordinal <= ordinal).checked_sub(1);
            let (batch, writer) = batch.map(|batch| self.batches[batch]).ok_or_else(lost)?;
            let row = batch.row + (ordinal - batch.ordinal);
            let files = &self.writers[writer].files;
            let file = files.partition_point(|(first, _)| *first <= row).checked_sub(1).ok_or_else(lost)?;
            let (first, path) = &files[file];
            let number = numbers.get(path.as_str()).ok_or_else(lost)?;
            placed.entry(*number).or_default().insert(row - first);
        }
        Ok(placed)
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Internal, "a staged row is in none of the files")
}
