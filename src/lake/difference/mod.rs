//! What a whole read changed: compared in the lake, row by row, so that only the difference is kept.
//!
//! ```text
//! rows of the snapshot ─▶ fingerprints ─▶ claimed one by one by equal rows of the read
//!                                           │ rows that find no equal ─▶ new files
//!                                           └ rows that nobody claims ─▶ gone (position deletes)
//! ```
//!
//! A fingerprint stands for a whole row: 128 bits of a keyed hash over an encoding that tells any two
//! different rows apart (see [`fingerprint`]). Rows are compared as a multiset, so that neither a key
//! nor an order is needed.
//!
//! When the fingerprints of the snapshot fit the memory, the read is sifted while it comes, and an
//! unchanged table writes nothing at all. When they do not, the read is written to files first, its
//! fingerprints taken on the way where rows keep their order ([`staging`]) and else read back, and then
//! compared share by share, the fingerprints of both sides waiting on the local disk; of the files only
//! changed rows are written again.
//!
//! What always holds: a row is left out only if an equal row of the snapshot stays for it.

mod fingerprint;
mod known;
mod rows;
mod shares;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

pub use self::fingerprint::Fingerprints;
use self::known::{Known, ROW_BYTES};
use self::rows::Side;
use self::shares::{MOST as MOST_SHARES, Shares};
use self::staging::{Staging, Writer};
use super::conform::Conform;
use super::file_diff::{self, FileRows, Rows};
use super::manifest::LiveFile;
use super::write::discard;
use super::{Effect, LakeTable, WrittenFile, schema};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// A staged read of which fewer rows than one in so many are unchanged is committed as it is: to write
/// the others once more would cost more than those few do.
const UNCHANGED_SHARE: u64 = 10;

/// Of the memory for rows, one share of fingerprints takes one in so many: the other parts are what readers
/// left behind that the allocator has not given back yet, and the list of what was found.
const SHARE_OF_MEMORY: usize = 2;

/// The rows of a snapshot that a whole read has not: by file, their positions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gone {
    pub(super) files: BTreeMap<String, GoneRows>,
}

/// The rows of one data file that are gone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GoneRows {
    pub(super) positions: RoaringTreemap,
    /// How many rows of the file could be seen. When that many are gone, so is the file.
    pub(super) live: u64,
}

impl Gone {
    /// Whether every row of the snapshot is still there.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// A whole read of a table, to be compared with the table's snapshot.
pub struct Comparison {
    table: LakeTable,
    budget: Budget,
    fingerprints: Fingerprints,
    old: Side,
    /// If they fit the memory.
    known: Option<Arc<Known>>,
    /// Else, what is staged, if its rows keep their order.
    staging: Option<Arc<Staging>>,
    /// In how many shares both sides are compared.
    shares: usize,
}

impl LakeTable {
    /// Makes ready to compare a whole read with the current snapshot. The table must not be moved
    /// before the outcome is committed.
    pub async fn compare(&self, budget: Budget) -> Result<Comparison> {
        self.compare_within(budget, budget.query_bytes()).await.map_err(|error| error.with("table", &self.id))
    }

    async fn compare_within(&self, budget: Budget, memory: usize) -> Result<Comparison> {
        let current = self.current().map(|current| current.0);
        let live = file_diff::between(&self.table, &self.stores, None, current).await?.added;
        let fingerprints = Fingerprints::new();
        let old = Side::new(live);
        let bytes = old.rows() as usize * ROW_BYTES;
        let shares = bytes.div_ceil((memory / SHARE_OF_MEMORY).max(1)).max(1);
        let in_order = self.writer(budget)?.keeps_order();
        let staging = if bytes > memory && shares <= MOST_SHARES && in_order {
            Some(Arc::new(Staging::new(shares)?))
        } else {
            None
        };
        let known = if bytes <= memory {
            let entries = Vec::with_capacity(old.rows() as usize);
            Some(Arc::new(Known::new(old.read(self, &fingerprints, entries, budget).await?)))
        } else {
            None
        };
        Ok(Comparison { table: self.clone(), budget, fingerprints, old, known, staging, shares })
    }
}

impl Comparison {
    /// What rows have to pass on their way to a writer. One for each stream.
    pub fn sieve(&self) -> Sieve {
        let wanted = schema::to_file_schema(self.table.table.metadata().current_schema());
        Sieve {
            conform: Conform::new(wanted),
            fingerprints: self.fingerprints.clone(),
            known: self.known.clone(),
            staged: self.staging.clone().map(|staging| (staging, Writer::default())),
        }
    }

    /// What to commit, once all rows of the read have passed, what came through is in `files`, and all
    /// sieves are finished.
    pub async fn finish(mut self, files: Vec<WrittenFile>) -> Result<(Vec<WrittenFile>, Effect)> {
        let id = self.table.id.clone();
        let (files, gone) = match &self.known {
            Some(known) => {
                let mut gone = Vec::new();
                known.unclaimed(|ordinal| gone.push(ordinal));
                gone.sort_unstable();
                (files, self.old.place(gone))
            }
            None => {
                let staging = self.staging.take();
                self.compare_staged(files, staging).await.map_err(|error| error.with("table", id))?
            }
        };
        let gone = gone.into_iter().map(|(rows, positions)| {
            (rows.file.path().to_owned(), GoneRows { positions, live: rows.count() })
        });
        Ok((files, Effect::Difference(Arc::new(Gone { files: gone.collect() }))))
    }

    /// Compares what was staged with the snapshot, and writes again what is new of it.
    async fn compare_staged(
        &self,
        staged: Vec<WrittenFile>,
        staging: Option<Arc<Staging>>,
    ) -> Result<(Vec<WrittenFile>, Vec<(&FileRows, RoaringTreemap)>)> {
        if self.shares > MOST_SHARES {
            return Ok((staged, self.old.all()));
        }
        let (changed, gone) = match self.difference_of(&staged, staging).await {
            Ok(found) => found,
            Err(error) => {
                discard(&self.table.stores, &staged).await;
                return Err(error);
            }
        };
        let count: u64 = changed.iter().map(|(_, positions)| positions.len()).sum();
        let rows: u64 = staged.iter().map(|staged| staged.file.record_count()).sum();
        if (rows - count) * UNCHANGED_SHARE < rows {
            return Ok((staged, self.old.all()));
        }
        let rewritten = self.rewrite(changed).await;
        discard(&self.table.stores, &staged).await;
        Ok((rewritten?, gone))
    }

    /// The staged rows that the snapshot has not, and the rows of the snapshot that are gone.
    async fn difference_of(
        &self,
        staged: &[WrittenFile],
        staging: Option<Arc<Staging>>,
    ) -> Result<(Vec<(FileRows, RoaringTreemap)>, Vec<(&FileRows, RoaringTreemap)>)> {
        let (table, fingerprints, budget) = (&self.table, &self.fingerprints, self.budget);
        let old_shares = self.old.read(table, fingerprints, Shares::new(self.shares)?, budget).await?;
        let new = Side::new(staged.iter().map(staged_rows).collect());
        let (new_shares, places) = match staging {
            Some(staging) => {
                let staging = Arc::into_inner(staging)
                    .ok_or_else(|| Error::new(ErrorKind::Internal, "a stream of the read is not done"))?;
                let (shares, places) = staging.finish();
                (shares, Some(places))
            }
            None => (new.read(table, fingerprints, Shares::new(self.shares)?, budget).await?, None),
        };
        let (changed, gone) =
            tokio::task::spawn_blocking(move || shares::compare(old_shares, new_shares)).await.map_err(
                |source| Error::new(ErrorKind::Internal, "a comparison ended early").because(source),
            )??;
        let changed = match places {
            Some(places) => {
                let of = |(number, at): (usize, _)| (staged_rows(&staged[number]), at);
                places.place(changed, staged)?.into_iter().map(of).collect()
            }
            None => new.place(changed).into_iter().map(|(rows, at)| (rows.clone(), at)).collect(),
        };
        Ok((changed, self.old.place(gone)))
    }

    /// Writes some rows of staged files into files of their own.
    async fn rewrite(&self, changed: Vec<(FileRows, RoaringTreemap)>) -> Result<Vec<WrittenFile>> {
        let mut writer = self.table.writer(self.budget)?;
        for (rows, positions) in changed {
            let only = FileRows { rows: Rows::Only(Arc::new(positions)), ..rows };
            let mut batches = rows::batches(&self.table, &only, self.budget).await?;
            while let Some(batch) = batches.try_next().await? {
                writer.write(&batch).await?;
            }
        }
        writer.finish().await
    }
}

/// A file that is in no snapshot yet, as if it were.
fn staged_rows(written: &WrittenFile) -> FileRows {
    let file = LiveFile {
        file: Arc::new(written.file.clone()),
        spec_id: written.spec_id,
        sequence: 0,
        added_by: SnapshotId(0),
        first_row_id: None,
    };
    FileRows { file, rows: Rows::All }
}

/// Lets only such rows pass as may be new.
pub struct Sieve {
    conform: Conform,
    fingerprints: Fingerprints,
    known: Option<Arc<Known>>,
    staged: Option<(Arc<Staging>, Writer)>,
}

impl Sieve {
    /// The rows of a batch that have to be written.
    pub fn sift(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        let Some(known) = &self.known else { return self.stage(batch) };
        let batch = self.conform.apply(&batch)?;
        let mut is_new = Vec::with_capacity(batch.num_rows());
        self.fingerprints.of(&batch, |fingerprint| is_new.push(!known.claim(fingerprint)))?;
        match is_new.iter().any(|is_new| *is_new) {
            true => Ok(filter_record_batch(&batch, &BooleanArray::from(is_new))?),
            false => Ok(batch.slice(0, 0)),
        }
    }

    fn stage(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        let Some((staging, writer)) = &mut self.staged else { return Ok(batch) };
        let batch = self.conform.apply(&batch)?;
        let mut fingerprints = Vec::with_capacity(batch.num_rows());
        self.fingerprints.of(&batch, |fingerprint| fingerprints.push(fingerprint))?;
        staging.add(writer, &fingerprints)?;
        Ok(batch)
    }

    /// All rows of a stream have passed, and its writer made these files of what came through.
    pub fn finish(self, files: &[WrittenFile]) -> Result<()> {
        match self.staged {
            Some((staging, writer)) => staging.written(writer, files),
            None => Ok(()),
        }
    }
}
