//! Batches into data files: Parquet, partitioned, rolled at a size, with exact bounds.

use arrow::array::RecordBatch;
use iceberg::spec::DataFile;

use super::LakeTable;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// A file that is written and not yet part of any snapshot.
#[derive(Debug, Clone)]
pub struct WrittenFile {
    /// As it will stand in a manifest.
    pub file: DataFile,
    /// The partition spec it was written by.
    pub spec_id: i32,
}

/// Writes rows of one table into new data files. One for each parallel stream; used by one task.
pub struct TableWriter {}

impl TableWriter {
    /// Adds a batch with the table's columns, matched by name.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let _ = batch;
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// Completes the files. Dropping a writer instead leaves at most orphans.
    pub async fn finish(self) -> Result<Vec<WrittenFile>> {
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }
}

impl LakeTable {
    /// A writer by the table's current schema and partition spec.
    pub fn writer(&self, budget: Budget) -> Result<TableWriter> {
        let _ = budget;
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }
}
