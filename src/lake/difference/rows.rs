//! One side of a comparison: some rows of some files, each with an ordinal.
//!
//! A row's *ordinal* is its place in all files of the side put end to end, rows that are not looked
//! at included: it leads back to a file and a position.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt, stream};
use roaring::RoaringTreemap;

use super::fingerprint::Fingerprints;
use super::known::Entry;
use super::shares::Shares;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeTable;
use crate::lake::file_diff::{FileRows, Rows};
use crate::lake::scan::Scan;
use crate::memory::Budget;

/// Rows of a batch: one of each column stays in the processor's cache.
const BATCH_ROWS: usize = 8192;

/// Takes fingerprints, in any order.
pub(super) trait Sink: Send + 'static {
    fn add(&mut self, fingerprint: u128, ordinal: u64) -> Result<()>;
}

impl Sink for Vec<Entry> {
    fn add(&mut self, fingerprint: u128, ordinal: u64) -> Result<()> {
        self.push(Entry::new(fingerprint, ordinal));
        Ok(())
    }
}

impl Sink for Shares {
    fn add(&mut self, fingerprint: u128, ordinal: u64) -> Result<()> {
        Shares::add(self, fingerprint, ordinal)
    }
}

/// Some rows of some files.
pub(super) struct Side {
    files: Vec<FileRows>,
    /// The ordinal of each file's first row.
    first: Vec<u64>,
}

impl Side {
    pub(super) fn new(files: Vec<FileRows>) -> Self {
        let mut next = 0;
        let first = files.iter().map(|rows| {
            let first = next;
            next += rows.file.file.record_count();
            first
        });
        Self { first: first.collect(), files }
    }

    pub(super) fn rows(&self) -> u64 {
        self.files.iter().map(FileRows::count).sum()
    }

    /// All rows, as [`place`](Self::place) gives some.
    pub(super) fn all(&self) -> Vec<(&FileRows, RoaringTreemap)> {
        self.files.iter().map(|rows| (rows, positions(rows).collect())).collect()
    }

    /// Where rows are, given by their ordinals in ascending order.
    pub(super) fn place(&self, ordinals: impl IntoIterator<Item = u64>) -> Vec<(&FileRows, RoaringTreemap)> {
        let mut placed: Vec<(&FileRows, RoaringTreemap)> = Vec::new();
        let mut last = None;
        for ordinal in ordinals {
            let file = self.first.partition_point(|first| *first <= ordinal) - 1;
            if last != Some(file) {
                placed.push((&self.files[file], RoaringTreemap::new()));
                last = Some(file);
            }
            placed.last_mut().expect("just pushed").1.insert(ordinal - self.first[file]);
        }
        placed
    }

    /// Reads all rows and fills the sink with their fingerprints.
    pub(super) async fn read<S: Sink>(
        &self,
        table: &LakeTable,
        fingerprints: &Fingerprints,
        sink: S,
        budget: Budget,
    ) -> Result<S> {
        let sink = Arc::new(Mutex::new(sink));
        let reads: Vec<_> = self
            .files
            .iter()
            .zip(&self.first)
            .map(|(rows, first)| {
                let (table, rows, first) = (table.clone(), rows.clone(), *first);
                let (fingerprints, sink) = (fingerprints.clone(), sink.clone());
                async move {
                    // In a task of its own, so that decoding has a core of its own.
                    tokio::spawn(read_file(table, rows, first, fingerprints, sink, budget)).await.map_err(
                        |source| Error::new(ErrorKind::Internal, "a reader stopped").because(source),
                    )?
                }
            })
            .collect();
        stream::iter(reads).buffer_unordered(budget.parallel()).try_collect::<()>().await?;
        let sink = Arc::into_inner(sink).expect("all readers are done");
        Ok(sink.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn read_file<S: Sink>(
    table: LakeTable,
    rows: FileRows,
    first: u64,
    mut fingerprints: Fingerprints,
    sink: Arc<Mutex<S>>,
    budget: Budget,
) -> Result<()> {
    let mut positions = positions(&rows);
    let mut batches = batches(&table, &rows, budget).await?;
    let mut of_batch = Vec::with_capacity(BATCH_ROWS);
    while let Some(batch) = batches.try_next().await? {
        of_batch.clear();
        fingerprints.of(&batch, |fingerprint| of_batch.push(fingerprint))?;
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        for (fingerprint, position) in of_batch.iter().zip(positions.by_ref()) {
            sink.add(*fingerprint, first + position)?;
        }
    }
    Ok(())
}

/// Some rows of a file, with the table's columns, in the file's order.
pub(super) async fn batches(
    table: &LakeTable,
    rows: &FileRows,
    budget: Budget,
) -> Result<SendableRecordBatchStream> {
    // One stream, since only then is the order that of the file.
    let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(BATCH_ROWS);
    config.options_mut().execution.parquet.schema_force_view_types = false;
    let runtime = budget.runtime().with_object_store_registry(table.stores.clone()).build_arc()?;
    let session = SessionContext::new_with_config_rt(config, runtime);
    let columns = table.columns_at(None)?;
    let scan = Scan {
        table,
        columns: &columns,
        constants: Vec::new(),
        files: vec![(rows.clone(), Vec::new())],
        projection: None,
        limit: None,
        ordered: false,
        distinct: HashMap::new(),
    };
    let plan = scan.plan(&session.state()).await?;
    Ok(plan.execute(0, session.task_ctx())?)
}

/// The positions of rows that are read, in ascending order.
fn positions(rows: &FileRows) -> Box<dyn Iterator<Item = u64> + Send + '_> {
    match &rows.rows {
        Rows::All => Box::new(0..rows.file.file.record_count()),
        Rows::Except(hidden) => {
            let mut hidden = hidden.iter().peekable();
            let all = 0..rows.file.file.record_count();
            Box::new(all.filter(move |position| hidden.next_if_eq(position).is_none()))
        }
        Rows::Only(positions) => Box::new(positions.iter()),
    }
}
