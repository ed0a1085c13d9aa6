//! What changed between two snapshots, row by row.

use std::sync::Arc;

use datafusion::catalog::TableProvider;

use super::LakeTable;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

/// The rows that came and went between two snapshots.
pub struct TableDelta {
    /// The table's columns, then `_op` (`Int8`, [`Op`](crate::delta::Op)) and `_seq` (`Int64`). Of two rows
    /// with one key, the one with the higher `_seq` is the newer; within one `_seq`, an upsert beats a
    /// delete. Deletes have NULL in all columns but the key's.
    pub rows: Arc<dyn TableProvider>,
    /// What they are a change of.
    pub extent: DeltaExtent,
    /// Whether no key comes twice, so that nothing needs to be collapsed.
    pub one_row_a_key: bool,
    /// How many rows were added, at most.
    pub added: u64,
    /// How many rows were removed, at most.
    pub removed: u64,
}

/// What a [`TableDelta`] is a change of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaExtent {
    /// All rows of a snapshot: there was nothing before.
    Whole,
    /// A change of what was there before.
    Changes,
}

impl LakeTable {
    /// From one snapshot (`None`: from nothing) to another, in either direction of history.
    /// Compactions (`replace` snapshots) are no change.
    pub async fn delta(&self, from: Option<SnapshotId>, to: SnapshotId) -> Result<TableDelta> {
        let _ = (from, to);
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }
}
