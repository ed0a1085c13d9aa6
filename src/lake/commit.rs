//! Makes data files visible in the lake: one call, one Iceberg snapshot.
//!
//! ```text
//! data files ──┐
//!              ├──▶ one swap in the catalog ──▶ snapshot 42
//! watermark ───┘
//! ```
//!
//! Rows and the watermark that covers them appear together or not at all. A crash before the
//! swap leaves orphan files; after it, nothing is left to do.

use std::collections::BTreeMap;

use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use iceberg::{TableRequirement, TableUpdate};

use super::{LakeTable, Position, WrittenFile};
use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// Snapshot summary: this snapshot is a part of a first read that readers do not see yet.
pub(super) const UNFINISHED: &str = "frazil.unfinished";

/// What to commit.
#[derive(Debug, Clone)]
pub struct Change {
    /// New data files. May be empty: then only the watermark moves.
    pub files: Vec<WrittenFile>,
    /// What they do to what is there.
    pub effect: Effect,
    /// The position that was read from. [`Conflict`](ErrorKind::Conflict) when the table is elsewhere.
    pub from: Option<Watermark>,
    /// The position that covers the table afterwards.
    pub to: Watermark,
    /// Entries for the snapshot's summary, under `frazil.`: pass id, version, row counts.
    pub summary: BTreeMap<String, String>,
}

/// What new files do to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Rows are added; none of them has a key that is there already.
    Append,
    /// Rows are added and older rows with their keys are hidden by position deletes.
    Upsert,
    /// The table becomes exactly these rows.
    Replace,
    /// A portion of a first read: committed aside (branch `frazil_first_read`), not yet shown.
    FirstReadPart {
        /// The reading was interrupted before, so rows may repeat keys of earlier parts: hide those.
        overlaps: bool,
    },
    /// The last portion of a first read: it and all parts before it become the table.
    FirstReadEnd {
        /// As for parts.
        overlaps: bool,
    },
}

impl LakeTable {
    /// The newest position, resolved by walking the current snapshot's ancestors: rolling the table
    /// back rewinds it. Of an unfinished first read, the position of its last part.
    pub fn position(&self) -> Result<Option<Position>> {
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// Drops the parts of an unfinished first read, so that it can start from nothing.
    pub async fn abandon_first_read(&mut self) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// Commits a change on the state that `self` was loaded at, and moves `self` to the result.
    pub async fn commit(&mut self, change: Change, budget: Budget) -> Result<SnapshotId> {
        let _ = (change, budget);
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }
}

/// The update that makes `to` the current snapshot if `from` still is.
pub(super) fn moved_main(
    table: &LakeTable,
    from: SnapshotId,
    to: SnapshotId,
) -> (Vec<TableRequirement>, Vec<TableUpdate>) {
    let requirements = vec![
        TableRequirement::UuidMatch { uuid: table.uuid() },
        TableRequirement::RefSnapshotIdMatch { r#ref: MAIN_BRANCH.to_owned(), snapshot_id: Some(from.0) },
    ];
    let reference = SnapshotReference::new(to.0, SnapshotRetention::branch(None, None, None));
    (requirements, vec![TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference }])
}
