//! Metadata as tables: `t$snapshots`, `t$history`, `t$refs`, and of one snapshot `t$files`,
//! `t$manifests`, `t$partitions`, and `t$rows`: the rows with their ids.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, Utc};
use datafusion::catalog::{MemTable, TableProvider};

use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{FileInfo, LakeTable, ManifestInfo, PartitionInfo, RefInfo};

/// A metadata table by the name after `$`; files, manifests and partitions are those of a snapshot
/// (`None`: now).
pub(super) async fn table(
    table: &LakeTable,
    what: &str,
    at: Option<SnapshotId>,
) -> Result<Arc<dyn TableProvider>> {
    match what {
        "snapshots" => snapshots(table),
        "history" => history(table),
        "refs" => refs(table),
        "files" => files(&table.files(at).await?),
        "manifests" => manifests(&table.manifests(at).await?),
        "partitions" => partitions(&table.partitions(at).await?),
        "rows" => table.provider_with_lineage(at).await,
        _ => Err(Error::new(ErrorKind::Config, format!("there is no metadata table `{what}`"))
            .with("table", table.id())
            .hint("there are `$snapshots`, `$history`, `$refs`, `$files`, `$manifests`, `$partitions` and `$rows`")),
    }
}

/// Every snapshot that can be read, newest first.
fn snapshots(table: &LakeTable) -> Result<Arc<dyn TableProvider>> {
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
fn history(table: &LakeTable) -> Result<Arc<dyn TableProvider>> {
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

/// Tags and branches.
fn refs(table: &LakeTable) -> Result<Arc<dyn TableProvider>> {
    let rows = table.refs();
    let millis = |of: fn(&RefInfo) -> Option<Duration>| {
        numbers(rows.iter().map(|row| i64::try_from(of(row)?.as_millis()).ok()))
    };
    one_batch(vec![
        ("name", texts(rows.iter().map(|row| Some(row.name.clone())))),
        ("type", texts(rows.iter().map(|row| Some(row.kind.name().to_ascii_uppercase())))),
        ("snapshot_id", ids(rows.iter().map(|row| Some(row.snapshot)))),
        ("max_reference_age_in_ms", millis(|row| row.keep)),
        ("min_snapshots_to_keep", numbers(rows.iter().map(|row| row.keep_snapshots.map(Into::into)))),
        ("max_snapshot_age_in_ms", millis(|row| row.keep_snapshots_for)),
    ])
}

fn files(rows: &[FileInfo]) -> Result<Arc<dyn TableProvider>> {
    one_batch(vec![
        ("content", texts(rows.iter().map(|row| Some(row.content.to_owned())))),
        ("file_path", texts(rows.iter().map(|row| Some(row.path.clone())))),
        ("record_count", numbers(rows.iter().map(|row| Some(row.rows as i64)))),
        ("file_size_in_bytes", numbers(rows.iter().map(|row| Some(row.bytes as i64)))),
        ("spec_id", numbers(rows.iter().map(|row| Some(row.spec_id.into())))),
        ("sequence_number", numbers(rows.iter().map(|row| Some(row.sequence)))),
        ("snapshot_id", ids(rows.iter().map(|row| Some(row.added_by)))),
    ])
}

fn manifests(rows: &[ManifestInfo]) -> Result<Arc<dyn TableProvider>> {
    let counts =
        |of: fn(&ManifestInfo) -> Option<u32>| numbers(rows.iter().map(|row| of(row).map(Into::into)));
    one_batch(vec![
        ("content", texts(rows.iter().map(|row| Some(row.content.to_owned())))),
        ("path", texts(rows.iter().map(|row| Some(row.path.clone())))),
        ("length", numbers(rows.iter().map(|row| Some(row.bytes as i64)))),
        ("partition_spec_id", numbers(rows.iter().map(|row| Some(row.spec_id.into())))),
        ("added_snapshot_id", ids(rows.iter().map(|row| Some(row.added_by)))),
        ("sequence_number", numbers(rows.iter().map(|row| Some(row.sequence)))),
        ("added_files_count", counts(|row| row.added_files)),
        ("existing_files_count", counts(|row| row.existing_files)),
        ("deleted_files_count", counts(|row| row.deleted_files)),
    ])
}

fn partitions(rows: &[PartitionInfo]) -> Result<Arc<dyn TableProvider>> {
    let counts = |of: fn(&PartitionInfo) -> u64| numbers(rows.iter().map(|row| Some(of(row) as i64)));
    one_batch(vec![
        ("partition", texts(rows.iter().map(|row| Some(row.partition.clone())))),
        ("spec_id", numbers(rows.iter().map(|row| Some(row.spec_id.into())))),
        ("record_count", counts(|row| row.rows)),
        ("file_count", counts(|row| row.data_files)),
        ("total_data_file_size_in_bytes", counts(|row| row.bytes)),
        ("delete_file_count", counts(|row| row.delete_files)),
        ("position_delete_record_count", counts(|row| row.position_deletes)),
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

fn numbers(numbers: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(numbers.collect::<Int64Array>())
}

fn ids(ids: impl Iterator<Item = Option<SnapshotId>>) -> ArrayRef {
    numbers(ids.map(|id| id.map(|id| id.0)))
}

fn texts(texts: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(texts.collect::<StringArray>())
}
