//! Types and shapes that no database of the tests has, written by the lake and judged by readers that
//! are not ours: columns that changed within others, and nanoseconds.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, ListArray, MapArray, RecordBatch,
    StringArray, StructArray, TimestampNanosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec, Wanted};
use frazil::memory::Budget;
use frazil::table::{FormatVersion, TableId};
use parquet::arrow::ArrowWriter;

use super::fixture::{self, Store};

async fn create(directory: &Path, schema: SchemaRef, format_version: Option<FormatVersion>) -> LakeTable {
    let settings = LakeSettings {
        warehouse: directory.join("lake").display().to_string(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let spec = TableSpec {
        id: TableId::new("main", "t"),
        schema,
        mode: TableMode::Append,
        key: Vec::new(),
        partition_by: Vec::new(),
        sort_by: Vec::new(),
        format_version,
    };
    Lake::open(&settings).await.unwrap().create(spec).await.unwrap()
}

async fn append(table: &mut LakeTable, rows: &RecordBatch) {
    let budget = Budget::new(256 << 20, 1).unwrap();
    let mut writer = table.writer(budget).unwrap();
    writer.write(rows).await.unwrap();
    let from = table.position().unwrap().map(|position| position.watermark);
    let change = Change {
        files: writer.finish().await.unwrap(),
        effect: Effect::Append,
        to: Watermark::new(table.next_sequence_number().to_string()),
        from,
        summary: BTreeMap::new(),
    };
    table.commit(change, budget).await.unwrap();
}

/// Judges the table against rows that the test knows, as they would be in its newest columns.
fn judged(directory: &Path, table: &LakeTable, truth: &[RecordBatch], readers: &[&str]) {
    let path = directory.join("truth.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), truth[0].schema(), None).unwrap();
    truth.iter().for_each(|rows| writer.write(rows).unwrap());
    writer.close().unwrap();
    let rows: usize = truth.iter().map(RecordBatch::num_rows).sum();
    let (location, truth) = (table.location(), path.to_str().unwrap());
    if let Some(seen) = fixture::judge_by(Store::Local, location, truth, "select * from rows", readers) {
        assert_eq!(seen, rows as u64);
    }
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Fields =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

/// A struct of these columns, NULL where `there` says so.
fn record(columns: Vec<(&str, ArrayRef)>, there: Option<Vec<bool>>) -> ArrayRef {
    let fields: Fields =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    Arc::new(StructArray::new(fields, arrays, there.map(NullBuffer::from)))
}

/// One list a length.
fn list(values: ArrayRef, lengths: &[usize], there: Vec<bool>) -> ArrayRef {
    let element = Arc::new(Field::new("element", values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Arc::new(ListArray::new(element, offsets, values, Some(there.into())))
}

/// One map a length.
fn map(keys: Vec<&str>, values: ArrayRef, lengths: &[usize]) -> ArrayRef {
    let fields: Fields =
        vec![Field::new("key", DataType::Utf8, false), Field::new("value", values.data_type().clone(), true)]
            .into();
    let entries = StructArray::new(fields.clone(), vec![Arc::new(StringArray::from(keys)), values], None);
    let entry = Arc::new(Field::new("key_value", DataType::Struct(fields), false));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Arc::new(MapArray::new(entry, offsets, entries, None, false))
}

fn ints(values: Vec<Option<i32>>) -> ArrayRef {
    Arc::new(Int32Array::from(values))
}

fn longs(values: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

fn texts(values: Vec<Option<&str>>) -> ArrayRef {
    Arc::new(StringArray::from(values))
}

/// Fields are added and widened within a struct, a list of structs and a map; old files keep their shape.
#[tokio::test(flavor = "multi_thread")]
async fn others_read_columns_that_changed_within_others() {
    let directory = tempfile::tempdir().unwrap();
    let shape = Some(vec![true, false, true]);
    // No list is NULL: pyiceberg 0.12 reads such a one as empty where its elements have changed.
    let (lengths, lists) = ([2, 0, 1], vec![true, true, true]);
    let pairs = [1, 0, 1];
    let before = batch(vec![
        ("id", longs(vec![Some(1), Some(2), Some(3)])),
        ("s", record(vec![("a", ints(vec![Some(7), None, None]))], shape.clone())),
        ("l", list(record(vec![("x", ints(vec![Some(1), None, Some(3)]))], None), &lengths, lists.clone())),
        ("m", map(vec!["p", "q"], Arc::new(Float32Array::from(vec![Some(0.5), None])), &pairs)),
    ]);
    let mut table = create(directory.path(), before.schema(), None).await;
    append(&mut table, &before).await;

    let after = batch(vec![
        ("id", longs(vec![Some(4)])),
        ("s", record(vec![("a", longs(vec![Some(1 << 40)])), ("b", texts(vec![Some("new")]))], None)),
        (
            "l",
            list(
                record(vec![("x", longs(vec![Some(-(1 << 50))])), ("y", texts(vec![None]))], None),
                &[1],
                vec![true],
            ),
        ),
        ("m", map(vec!["r"], Arc::new(Float64Array::from(vec![0.1])), &[1])),
    ]);
    let evolution = table.evolution(&Wanted::columns(&after.schema())).unwrap();
    table.evolve(&evolution).await.unwrap();
    append(&mut table, &after).await;

    let before_as_now = batch(vec![
        ("id", longs(vec![Some(1), Some(2), Some(3)])),
        (
            "s",
            record(
                vec![("a", longs(vec![Some(7), None, None])), ("b", texts(vec![None, None, None]))],
                shape,
            ),
        ),
        (
            "l",
            list(
                record(
                    vec![("x", longs(vec![Some(1), None, Some(3)])), ("y", texts(vec![None, None, None]))],
                    None,
                ),
                &lengths,
                lists,
            ),
        ),
        ("m", map(vec!["p", "q"], Arc::new(Float64Array::from(vec![Some(0.5), None])), &pairs)),
    ]);
    judged(directory.path(), &table, &[before_as_now, after], &["duckdb", "pyiceberg"]);
}

/// In format version 3, with and without a zone, before 1970 and to the last digit.
#[tokio::test(flavor = "multi_thread")]
async fn others_read_nanoseconds() {
    let moments = vec![Some(1_700_000_000_123_456_789), Some(-1), None, Some(0), Some(i64::MAX), Some(1)];
    let ids = longs((0..6).map(Some).collect());
    let plain = TimestampNanosecondArray::from(moments);
    let zoned: ArrayRef = Arc::new(plain.clone().with_timezone("UTC"));
    let plain: ArrayRef = Arc::new(plain);
    assert_eq!(*plain.data_type(), DataType::Timestamp(TimeUnit::Nanosecond, None));
    let truth = batch(vec![("id", ids.clone()), ("at", plain.clone())]);
    // DuckDB 1.5.5 does not know those with a zone.
    for (column, readers) in [(plain, &["duckdb", "pyiceberg"][..]), (zoned, &["pyiceberg"])] {
        let directory = tempfile::tempdir().unwrap();
        let rows = batch(vec![("id", ids.clone()), ("at", column)]);
        let mut table = create(directory.path(), rows.schema(), Some(FormatVersion::V3)).await;
        append(&mut table, &rows).await;
        judged(directory.path(), &table, std::slice::from_ref(&truth), readers);
    }
}
