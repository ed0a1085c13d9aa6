//! What the metadata says, for people: the metadata tables of a query.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use iceberg::spec::DataContentType;

use super::LakeTable;
use crate::delta::SnapshotId;
use crate::error::Result;

/// One change of what readers see.
#[derive(Debug, Clone)]
pub struct HistoryEntry {
    /// When.
    pub made_current_at: DateTime<Utc>,
    /// What they see since then.
    pub snapshot: SnapshotId,
    /// The snapshot it was made from, if that is still known.
    pub parent: Option<SnapshotId>,
    /// Whether it still counts: not so when the table was rolled back behind it.
    pub is_current_ancestor: bool,
}

/// One file of a snapshot.
#[derive(Debug, Clone)]
pub struct FileInfo {
    /// `data`, `position_deletes` or `equality_deletes`.
    pub content: &'static str,
    /// Where it is.
    pub path: String,
    /// How many rows or positions it has.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// The partition spec it was written by.
    pub spec_id: i32,
    /// Its data sequence number.
    pub sequence: i64,
    /// The snapshot that added it.
    pub added_by: SnapshotId,
}

impl LakeTable {
    /// What readers saw and since when, newest first.
    pub fn history(&self) -> Vec<HistoryEntry> {
        let metadata = self.table.metadata();
        let line: HashSet<i64> = self
            .current()
            .into_iter()
            .flat_map(|id| self.ancestors(id))
            .map(|snapshot| snapshot.snapshot_id())
            .collect();
        let entries = metadata.history().iter().rev().map(|entry| HistoryEntry {
            made_current_at: DateTime::from_timestamp_millis(entry.timestamp_ms()).unwrap_or_default(),
            snapshot: SnapshotId(entry.snapshot_id),
            parent: metadata
                .snapshot_by_id(entry.snapshot_id)
                .and_then(|snapshot| snapshot.parent_snapshot_id())
                .map(SnapshotId),
            is_current_ancestor: line.contains(&entry.snapshot_id),
        });
        entries.collect()
    }

    /// The files of a snapshot (`None`: now).
    pub async fn files(&self, at: Option<SnapshotId>) -> Result<Vec<FileInfo>> {
        let live = self.live_files(at).await?;
        let files = live.data.into_iter().chain(live.deletes).map(|file| FileInfo {
            content: match file.file.content_type() {
                DataContentType::Data => "data",
                DataContentType::PositionDeletes => "position_deletes",
                DataContentType::EqualityDeletes => "equality_deletes",
            },
            path: file.path().to_owned(),
            rows: file.file.record_count(),
            bytes: file.file.file_size_in_bytes(),
            spec_id: file.spec_id,
            sequence: file.sequence,
            added_by: file.added_by,
        });
        Ok(files.collect())
    }
}
