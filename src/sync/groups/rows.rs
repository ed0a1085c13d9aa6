//! Checkpoints as rows of a table, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Utc};

use super::checkpoints::{Checkpoint, CheckpointTable};
use crate::delta::SnapshotId;
use crate::error::Result;

const NUMBERS: [&str; 2] = ["checkpoint", "snapshot"];
const TEXTS: [(&str, bool); 7] = [
    ("position", false),
    ("server", true),
    ("stream", false),
    ("source", false),
    ("lake_table", false),
    ("table_uuid", false),
    ("tag", false),
];
const TIMES: [&str; 2] = ["source_time", "committed_at"];

/// The columns of the table.
pub(super) fn schema() -> SchemaRef {
    let at = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let numbers = NUMBERS.map(|name| Field::new(name, DataType::Int64, false));
    let texts = TEXTS.map(|(name, nullable)| Field::new(name, DataType::Utf8, nullable));
    let times = TIMES.map(|name| Field::new(name, at.clone(), false));
    Arc::new(Schema::new(numbers.into_iter().chain(texts).chain(times).collect::<Vec<_>>()))
}

/// Checkpoints as rows, one for each of their tables.
pub(super) fn batch(checkpoints: &[Checkpoint]) -> Result<RecordBatch> {
    let rows: Vec<(&Checkpoint, &CheckpointTable)> =
        checkpoints.iter().flat_map(|all| all.tables.iter().map(move |table| (all, table))).collect();
    let number = |of: &dyn Fn(&(&Checkpoint, &CheckpointTable)) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(of)))
    };
    let text = |of: &dyn Fn(&(&Checkpoint, &CheckpointTable)) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let time = |of: &dyn Fn(&(&Checkpoint, &CheckpointTable)) -> DateTime<Utc>| -> ArrayRef {
        let micros = rows.iter().map(|row| of(row).timestamp_micros());
        Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
    };
    let columns = vec![
        number(&|(all, _)| all.checkpoint as i64),
        number(&|(_, table)| table.snapshot.0),
        text(&|(all, _)| Some(all.position.clone())),
        text(&|(all, _)| all.server.clone()),
        text(&|(_, table)| Some(table.stream.clone())),
        text(&|(_, table)| Some(table.source.clone())),
        text(&|(_, table)| Some(table.lake_table.written())),
        text(&|(_, table)| Some(table.table_uuid.to_string())),
        text(&|(_, table)| Some(table.tag.clone())),
        time(&|(all, _)| all.source_time),
        time(&|(all, _)| all.committed_at),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

/// Adds a batch to what was found; `None` if it does not make sense.
pub(super) fn take(batch: &RecordBatch, group: &str, found: &mut BTreeMap<u64, Checkpoint>) -> Option<()> {
    let number = |name: &str, row: usize| {
        Some(batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?.value(row))
    };
    let text = |name: &str, row: usize| {
        let texts = batch.column_by_name(name)?.as_string_opt::<i32>()?;
        (!texts.is_null(row)).then(|| texts.value(row).to_owned())
    };
    let time = |name: &str, row: usize| {
        let times = batch.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
        DateTime::from_timestamp_micros(times.value(row))
    };
    for row in 0..batch.num_rows() {
        let checkpoint = u64::try_from(number("checkpoint", row)?).ok()?;
        let of = found.entry(checkpoint).or_insert(Checkpoint {
            group: group.to_owned(),
            checkpoint,
            position: text("position", row)?,
            server: text("server", row),
            source_time: time("source_time", row)?,
            committed_at: time("committed_at", row)?,
            tables: Vec::new(),
        });
        of.tables.push(CheckpointTable {
            stream: text("stream", row)?,
            source: text("source", row)?,
            lake_table: text("lake_table", row)?.parse().ok()?,
            table_uuid: text("table_uuid", row)?.parse().ok()?,
            snapshot: SnapshotId(number("snapshot", row)?),
            tag: text("tag", row)?,
        });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::checkpoints::testing::checkpoint;
    use super::*;

    #[test]
    fn checkpoints_are_read_as_they_were_written() {
        let written = vec![checkpoint(1), checkpoint(2)];
        let mut found = BTreeMap::new();
        take(&batch(&written).unwrap(), "shop", &mut found).unwrap();
        assert_eq!(found.into_values().collect::<Vec<_>>(), written);
    }
}
