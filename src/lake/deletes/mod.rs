//! Finds the places of rows by key, and hides them: position deletes.
//!
//! The cost follows the delta: data files are pruned by partition and by the bounds of their keys,
//! row groups by statistics and bloom filters, and of what remains only key columns are read.

use super::{LakeTable, WrittenFile};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// What [`hide`] did. Nothing is visible before the files are committed.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// Position-delete files, to be committed in the snapshot that adds the new files.
    pub(super) files: Vec<WrittenFile>,
    /// Rows of the snapshot that are now hidden: keys that were there before.
    pub(super) old_rows: u64,
    /// Rows of the new files that a later one with the same key hides.
    pub(super) repeated_rows: u64,
}

/// Hides the rows of snapshot `at` (`None`: an empty table) that have a key of `new_files`, and of
/// rows that share a key within `new_files` all but the last, in the order of the files and of the
/// rows in them.
pub(super) async fn hide(
    table: &LakeTable,
    at: Option<SnapshotId>,
    new_files: &[WrittenFile],
    key: &[String],
    budget: Budget,
) -> Result<Hidden> {
    let _ = (table, at, new_files, key, budget);
    Err(Error::new(ErrorKind::Unsupported, "not built yet"))
}
