//! What the metadata says, for people: the metadata tables of a query.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use iceberg::spec::{DataContentType, ManifestContentType};

use super::{LakeTable, manifest};
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

/// One manifest of a snapshot.
#[derive(Debug, Clone)]
pub struct ManifestInfo {
    /// `data` or `deletes`.
    pub content: &'static str,
    /// Where it is.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The partition spec of its files.
    pub spec_id: i32,
    /// The snapshot that added it.
    pub added_by: SnapshotId,
    /// Its sequence number.
    pub sequence: i64,
    /// Files that were added with it.
    pub added_files: Option<u32>,
    /// Files that were there before.
    pub existing_files: Option<u32>,
    /// Files that went with it.
    pub deleted_files: Option<u32>,
}

/// One partition of a snapshot.
#[derive(Debug, Clone)]
pub struct PartitionInfo {
    /// Its values: `created_at_day=2026-08-21/id_bucket=3`; empty where the table has no partitions.
    pub partition: String,
    /// The partition spec.
    pub spec_id: i32,
    /// Rows in its data files, hidden ones among them.
    pub rows: u64,
    /// Its data files.
    pub data_files: u64,
    /// Bytes of its data files.
    pub bytes: u64,
    /// Its delete files.
    pub delete_files: u64,
    /// Positions in its delete files.
    pub position_deletes: u64,
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

    /// The manifests of a snapshot (`None`: now).
    pub async fn manifests(&self, at: Option<SnapshotId>) -> Result<Vec<ManifestInfo>> {
        let metadata = self.table.metadata();
        let Some(at) = at.or(self.current()) else { return Ok(Vec::new()) };
        let snapshot = metadata.snapshot_by_id(at.0).ok_or_else(|| self.no_snapshot(at))?;
        let manifests = manifest::manifests(&self.table, snapshot).await?;
        let manifests = manifests.into_iter().map(|manifest| ManifestInfo {
            content: match manifest.content {
                ManifestContentType::Data => "data",
                ManifestContentType::Deletes => "deletes",
            },
            bytes: u64::try_from(manifest.manifest_length).unwrap_or_default(),
            spec_id: manifest.partition_spec_id,
            added_by: SnapshotId(manifest.added_snapshot_id),
            sequence: manifest.sequence_number,
            added_files: manifest.added_files_count,
            existing_files: manifest.existing_files_count,
            deleted_files: manifest.deleted_files_count,
            path: manifest.manifest_path,
        });
        Ok(manifests.collect())
    }

    /// The partitions of a snapshot (`None`: now), in the order of their values.
    pub async fn partitions(&self, at: Option<SnapshotId>) -> Result<Vec<PartitionInfo>> {
        let metadata = self.table.metadata();
        let live = self.live_files(at).await?;
        let mut partitions: BTreeMap<(i32, String), PartitionInfo> = BTreeMap::new();
        for file in live.data.iter().chain(&live.deletes) {
            let spec = metadata.partition_spec_by_id(file.spec_id).filter(|spec| !spec.is_unpartitioned());
            let partition = spec
                .map(|spec| spec.partition_to_path(file.file.partition(), metadata.current_schema().clone()));
            let partition = partition.unwrap_or_default();
            let info = partitions.entry((file.spec_id, partition.clone())).or_insert(PartitionInfo {
                partition,
                spec_id: file.spec_id,
                rows: 0,
                data_files: 0,
                bytes: 0,
                delete_files: 0,
                position_deletes: 0,
            });
            match file.file.content_type() {
                DataContentType::Data => {
                    info.rows += file.file.record_count();
                    info.data_files += 1;
                    info.bytes += file.file.file_size_in_bytes();
                }
                DataContentType::PositionDeletes => {
                    info.delete_files += 1;
                    info.position_deletes += file.file.record_count();
                }
                DataContentType::EqualityDeletes => info.delete_files += 1,
            }
        }
        Ok(partitions.into_values().collect())
    }
}
