//! The past of a table: its snapshots, and which of them a moment means.

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Utc};
use iceberg::spec::SnapshotRef;

use super::storage::iceberg_error;
use super::{LakeTable, SnapshotInfo, schema};
use crate::delta::SnapshotId;
use crate::error::Result;

impl LakeTable {
    /// All snapshots that readers can see or could, newest first. Parts of an unfinished first read
    /// are not among them.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let metadata = self.table.metadata();
        let mut snapshots: Vec<&SnapshotRef> = metadata
            .snapshots()
            .filter(|snapshot| {
                !snapshot.summary().additional_properties.contains_key(super::commit::UNFINISHED)
            })
            .collect();
        snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.sequence_number()));
        snapshots.into_iter().map(info).collect()
    }

    /// What readers saw at a moment; `None` before the first snapshot.
    pub fn snapshot_at(&self, moment: DateTime<Utc>) -> Option<SnapshotId> {
        let moment = moment.timestamp_millis();
        let log = self.table.metadata().history();
        log.iter()
            .rev()
            .find(|entry| entry.timestamp_ms() <= moment)
            .map(|entry| SnapshotId(entry.snapshot_id))
    }

    /// The columns as they were at a snapshot.
    pub fn schema_at(&self, at: SnapshotId) -> Result<SchemaRef> {
        let metadata = self.table.metadata();
        let snapshot = metadata.snapshot_by_id(at.0).ok_or_else(|| self.no_snapshot(at))?;
        let schema = snapshot.schema(metadata).map_err(iceberg_error)?;
        Ok(schema::to_arrow(&schema, metadata.properties()))
    }

    /// A snapshot and its ancestors, newest first, as far as they are still known.
    pub(super) fn ancestors(&self, of: SnapshotId) -> impl Iterator<Item = &SnapshotRef> {
        let metadata = self.table.metadata();
        std::iter::successors(metadata.snapshot_by_id(of.0), |snapshot| {
            metadata.snapshot_by_id(snapshot.parent_snapshot_id()?)
        })
    }

    /// Whether `older` is `newer` or one of its ancestors.
    pub fn is_ancestor(&self, older: SnapshotId, newer: SnapshotId) -> bool {
        self.ancestors(newer).any(|snapshot| snapshot.snapshot_id() == older.0)
    }
}

fn info(snapshot: &SnapshotRef) -> SnapshotInfo {
    let summary = snapshot.summary();
    SnapshotInfo {
        id: SnapshotId(snapshot.snapshot_id()),
        parent: snapshot.parent_snapshot_id().map(SnapshotId),
        committed_at: DateTime::from_timestamp_millis(snapshot.timestamp_ms()).unwrap_or_default(),
        operation: summary.operation.as_str().to_owned(),
        summary: summary.additional_properties.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}
