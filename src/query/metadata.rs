//! Metadata as tables: `t$snapshots`, `t$history`, `t$files`.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, Utc};
use datafusion::catalog::{MemTable, TableProvider};

use crate::delta::SnapshotId;
use crate::error::Result;
use crate::lake::LakeTable;

/// Every snapshot that can be read, newest first.
pub(super) fn snapshots(table: &LakeTable) -> Result<Arc<dyn TableProvider>> {
    let rows = table.snapshots();
    let summary = rows.iter().map(|row| serde_json::to_string(&row.summary).ok());
    one_batch(vec![
        ("committed_at", times(rows.iter().map(|row| row.committed_at))),
        ("snapshot_id", ids(rows.iter().map(|row| Some(row.id)))),
        ("parent_id", ids(rows.iter().map(|row| row.parent))),
        ("operation", texts(rows.iter().map(|row| Some(row.operation.clone())))),
        ("summary", texts(summary)),
    ])
}

/// What was the current snapshot, from when on; newest first. A rollback has an entry of its own.
pub(super) fn history(table: &LakeTable) -> Result<Arc<dyn TableProvider>> {
    let rows = table.history();
    one_batch(vec![
        ("made_current_at", times(rows.iter().map(|row| row.made_current_at))),
        ("snapshot_id", ids(rows.iter().map(|row| Some(row.snapshot)))),
        ("parent_id", ids(rows.iter().map(|row| row.parent))),
        (
            "is_current_ancestor",
            Arc::new(rows.iter().map(|row| Some(row.is_current_ancestor)).collect::<BooleanArray>()),
        ),
    ])
}

/// The files of a snapshot.
pub(super) async fn files(table: &LakeTable, at: Option<SnapshotId>) -> Result<Arc<dyn TableProvider>> {
    let rows = table.files(at).await?;
    let numbers = |of: fn(&crate::lake::FileInfo) -> i64| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row))).collect::<Int64Array>())
    };
    one_batch(vec![
        ("content", texts(rows.iter().map(|row| Some(row.content.to_owned())))),
        ("file_path", texts(rows.iter().map(|row| Some(row.path.clone())))),
        ("record_count", numbers(|row| row.rows as i64)),
        ("file_size_in_bytes", numbers(|row| row.bytes as i64)),
        ("spec_id", numbers(|row| row.spec_id.into())),
        ("sequence_number", numbers(|row| row.sequence)),
        ("snapshot_id", ids(rows.iter().map(|row| Some(row.added_by)))),
    ])
}

fn one_batch(columns: Vec<(&str, ArrayRef)>) -> Result<Arc<dyn TableProvider>> {
    // Whether a column may be NULL does not depend on the rows that happen to be there.
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?;
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

fn times(times: impl Iterator<Item = DateTime<Utc>>) -> ArrayRef {
    Arc::new(
        TimestampMicrosecondArray::from_iter_values(times.map(|time| time.timestamp_micros()))
            .with_timezone("UTC"),
    )
}

fn ids(ids: impl Iterator<Item = Option<SnapshotId>>) -> ArrayRef {
    Arc::new(ids.map(|id| id.map(|id| id.0)).collect::<Int64Array>())
}

fn texts(texts: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(texts.collect::<StringArray>())
}
