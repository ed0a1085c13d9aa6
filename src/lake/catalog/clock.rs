//! Changes of a table whose newest date lies ahead of our clock.
//!
//! ```text
//! table      ──●────●───────●            another machine's clock was ahead
//! our clock  ─────now                    a tag, a property, a branch that moves: dated by the library
//! moved back ●────●──────●│              so that the newest is older than now; then change, then forward
//! ```
//!
//! A snapshot brings its own date, after all others. What adds none is dated by our clock, and the library
//! takes a date long before the last one for damage. So the table's dates are moved back, the change is
//! made, and all dates are moved forward again: the change comes a millisecond after what was newest.

use iceberg::TableUpdate;
use iceberg::spec::{TableMetadata, TableMetadataBuildResult};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::storage::iceberg_error;

/// What the updates make of a table. `file` is where it is.
pub(super) fn build(
    metadata: TableMetadata,
    file: &str,
    updates: &[TableUpdate],
) -> Result<TableMetadataBuildResult> {
    let behind = behind(&metadata, updates);
    let metadata = if behind > 0 { moved(&metadata, -behind)? } else { metadata };
    let mut builder = metadata.into_builder(Some(file.to_owned()));
    for update in updates.iter().cloned() {
        builder = update.apply(builder).map_err(iceberg_error)?;
    }
    let mut built = builder.build().map_err(iceberg_error)?;
    if behind > 0 {
        built.metadata = moved(&built.metadata, behind)?;
    }
    Ok(built)
}

/// Milliseconds by which our clock is behind the first moment after the table's newest date.
fn behind(metadata: &TableMetadata, updates: &[TableUpdate]) -> i64 {
    if updates.iter().any(|update| matches!(update, TableUpdate::AddSnapshot { .. })) {
        return 0;
    }
    let last = metadata.history().last().map_or(i64::MIN, |entry| entry.timestamp_ms());
    let newest = metadata.last_updated_ms().max(last);
    newest.saturating_add(1).saturating_sub(chrono::Utc::now().timestamp_millis())
}

/// The same table, all that it dates moved by so many milliseconds. By way of JSON: the library lets nobody
/// set a date. Clocks that differ are rare enough for what that costs.
fn moved(metadata: &TableMetadata, by: i64) -> Result<TableMetadata> {
    let failed =
        |source| Error::new(ErrorKind::Internal, "a table's metadata do not survive as JSON").because(source);
    let shift = |date: &mut Value| {
        if let Some(millis) = date.as_i64() {
            *date = millis.saturating_add(by).into();
        }
    };
    let mut json = serde_json::to_value(metadata).map_err(failed)?;
    shift(&mut json["last-updated-ms"]);
    for list in ["snapshots", "snapshot-log", "metadata-log"] {
        for entry in json[list].as_array_mut().into_iter().flatten() {
            shift(&mut entry["timestamp-ms"]);
        }
    }
    serde_json::from_value(json).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use iceberg::TableCreation;
    use iceberg::spec::{Operation, Schema, Snapshot, SnapshotReference, SnapshotRetention, Summary};

    use super::*;
    use crate::lake::catalog::files::created;
    use crate::table::TableId;

    const AHEAD: i64 = 3_600_000;

    fn property(value: i64) -> Vec<TableUpdate> {
        vec![TableUpdate::SetProperties { updates: HashMap::from([("n".to_owned(), value.to_string())]) }]
    }

    fn main_is(snapshot_id: i64) -> TableUpdate {
        let retention = SnapshotRetention::branch(None, None, None);
        let reference = SnapshotReference::new(snapshot_id, retention);
        TableUpdate::SetSnapshotRef { ref_name: "main".to_owned(), reference }
    }

    /// A table with two snapshots, dated by a clock that is an hour ahead.
    fn table() -> TableMetadata {
        let creation =
            TableCreation::builder().name("t".into()).schema(Schema::builder().build().unwrap()).build();
        let mut table = created(&TableId::new("s", "t"), creation, "file:///nowhere").unwrap();
        let now = chrono::Utc::now().timestamp_millis();
        for id in 1..=2 {
            let snapshot = Snapshot::builder()
                .with_snapshot_id(id)
                .with_sequence_number(id)
                .with_timestamp_ms(now + AHEAD + id)
                .with_manifest_list("file:///nowhere")
                .with_summary(Summary { operation: Operation::Append, additional_properties: HashMap::new() })
                .with_schema_id(0)
                .build();
            let updates = [TableUpdate::AddSnapshot { snapshot }, main_is(id)];
            table = build(table, "file:///nowhere/1", &updates).unwrap().metadata;
        }
        table
    }

    #[test]
    fn a_clock_that_is_behind_dates_changes_after_the_newest() {
        let before = table();
        let mut now = before.clone();
        for value in 0..3 {
            let last = now.last_updated_ms();
            let built = build(now, "file:///nowhere/2", &property(value)).unwrap();
            now = built.metadata;
            assert!((last + 1..last + AHEAD).contains(&now.last_updated_ms()), "{last} {now:?}");
            assert_eq!(now.properties()["n"], value.to_string());
        }
        // Nothing else has moved.
        assert_eq!(now.history(), before.history());
        assert_eq!(now.snapshots().collect::<Vec<_>>().len(), 2);
        for snapshot in before.snapshots() {
            assert_eq!(now.snapshot_by_id(snapshot.snapshot_id()), Some(snapshot));
        }
        let rolled = build(now, "file:///nowhere/3", &[main_is(1)]).unwrap().metadata;
        let log: Vec<_> = rolled.history().iter().map(|entry| entry.timestamp_ms()).collect();
        assert_eq!(log.len(), 3);
        assert!(log.is_sorted_by(|a, b| a < b), "{log:?}");
        assert_eq!(rolled.current_snapshot_id(), Some(1));
    }

    #[test]
    fn a_clock_that_is_right_is_believed() {
        let creation =
            TableCreation::builder().name("t".into()).schema(Schema::builder().build().unwrap()).build();
        let table = created(&TableId::new("s", "t"), creation, "file:///nowhere").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let before = chrono::Utc::now().timestamp_millis();
        let now = build(table, "file:///nowhere/1", &property(1)).unwrap().metadata;
        assert!((before..=chrono::Utc::now().timestamp_millis()).contains(&now.last_updated_ms()));
    }
}
