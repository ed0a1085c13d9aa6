//! Random tables before and after, of types that are easily taken for one another, in memory and on
//! disk, with keys and without: the lake is what was read, and its delta what a person would say.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int32Array, Int32Builder, Int64Array,
    ListBuilder, MapBuilder, StringArray, StringBuilder, StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields, Int8Type, Int64Type, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use expect_test::expect;
use futures::TryStreamExt;
use proptest::prelude::*;

use super::*;
use crate::delta::Watermark;
use crate::lake::{Change, Lake, LakeSettings, RowCounts, TableMode, TableSpec};
use crate::merge;
use crate::table::{FormatVersion, OP_COLUMN, TableId};

/// A row: what all its columns are made from. 0 and the values around it are the interesting ones.
type Row = (i64, u8);

/// Enough for everything here, and for next to nothing.
const MEMORY: [usize; 2] = [1 << 20, 2 * ROW_BYTES];

fn columns() -> SchemaRef {
    let pair =
        Fields::from(vec![Field::new("a", DataType::Int32, true), Field::new("b", DataType::Utf8, true)]);
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("float", DataType::Float64, true),
        Field::new("text", DataType::Utf8, true),
        Field::new("number", DataType::Decimal128(20, 2), true),
        Field::new("list", DataType::List(Field::new("element", DataType::Int32, true).into()), true),
        Field::new("pair", DataType::Struct(pair), true),
        Field::new("map", map(&[]).data_type().clone(), true),
    ]))
}

/// The value of one column for a kind of row: neighbours are as alike as values can be.
fn batch(rows: &[Row]) -> RecordBatch {
    let kinds = || rows.iter().map(|row| row.1);
    let ids = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
    let floats = [None, Some(0.0), Some(-0.0), Some(f64::NAN), Some(-f64::NAN), Some(f64::INFINITY)];
    let floats = Float64Array::from_iter(kinds().map(|kind| floats[kind as usize % floats.len()]));
    let texts = [None, Some(""), Some("\0"), Some("0"), Some(" ")];
    let texts = StringArray::from_iter(kinds().map(|kind| texts[kind as usize % texts.len()]));
    let numbers = kinds().map(|kind| (kind % 3 > 0).then_some(i128::from(kind) - 2));
    let numbers = Decimal128Array::from_iter(numbers).with_precision_and_scale(20, 2).unwrap();
    let fields = [
        Arc::new(ids) as ArrayRef,
        Arc::new(floats),
        Arc::new(texts),
        Arc::new(numbers),
        list(&kinds().collect::<Vec<_>>()),
        pair(&kinds().collect::<Vec<_>>()),
        map(&kinds().collect::<Vec<_>>()),
    ];
    RecordBatch::try_new(columns(), fields.to_vec()).unwrap()
}

fn list(kinds: &[u8]) -> ArrayRef {
    let element = Field::new("element", DataType::Int32, true);
    let mut lists = ListBuilder::new(Int32Builder::new()).with_field(element);
    for kind in kinds {
        match kind % 5 {
            0 => lists.append_null(),
            1 => lists.append(true),
            2 => lists.append_value([None]),
            3 => lists.append_value([Some(0)]),
            _ => lists.append_value([Some(0), None]),
        }
    }
    Arc::new(lists.finish())
}

fn pair(kinds: &[u8]) -> ArrayRef {
    let a: Int32Array = kinds.iter().map(|kind| (kind % 2 > 0).then_some(0)).collect();
    let b: StringArray = kinds.iter().map(|kind| (kind % 3 > 0).then_some("")).collect();
    // Beneath a NULL there may be anything.
    let valid = NullBuffer::from_iter(kinds.iter().map(|kind| kind % 4 > 0));
    let DataType::Struct(fields) = columns().field(5).data_type().clone() else { unreachable!() };
    Arc::new(StructArray::new(fields, vec![Arc::new(a), Arc::new(b)], Some(valid)))
}

fn map(kinds: &[u8]) -> ArrayRef {
    let names =
        arrow::array::MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut maps = MapBuilder::new(Some(names), StringBuilder::new(), Int32Builder::new());
    for kind in kinds {
        for n in 0..kind % 3 {
            maps.keys().append_value(n.to_string());
            maps.values().append_option((kind % 2 > 0).then_some(0));
        }
        maps.append(kind % 4 > 0 || kind % 3 > 0).unwrap();
    }
    Arc::new(maps.finish())
}

struct Lab {
    _directory: tempfile::TempDir,
    lake: Lake,
    table: LakeTable,
    passes: u32,
}

impl Lab {
    async fn new(mode: TableMode, partition_by: &[&str]) -> Self {
        Self::of_version(FormatVersion::V2, mode, partition_by).await
    }

    async fn of_version(version: FormatVersion, mode: TableMode, partition_by: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: directory.path().to_str().unwrap().to_owned(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        let lake = Lake::open(&settings).await.unwrap();
        let spec = TableSpec {
            id: TableId::bare("t"),
            schema: columns(),
            mode,
            key: if mode == TableMode::Merge { vec!["id".to_owned()] } else { Vec::new() },
            partition_by: partition_by.iter().map(|&by| by.to_owned()).collect(),
            sort_by: Vec::new(),
            format_version: Some(version),
        };
        let table = lake.create(spec).await.unwrap();
        Self { _directory: directory, lake, table, passes: 0 }
    }

    /// Reads these rows as the whole table.
    async fn pass(&mut self, rows: &[Row], memory: usize) -> RowCounts {
        let comparison = self.table.compare_within(budget(), memory).await.unwrap();
        let mut files = Vec::new();
        // Two streams, each in several batches.
        for half in rows.chunks(rows.len().div_ceil(2).max(1)) {
            let (mut sieve, mut writer) = (comparison.sieve(), self.table.writer(budget()).unwrap());
            for rows in half.chunks(3) {
                writer.write(&sieve.sift(batch(rows)).unwrap()).await.unwrap();
            }
            let written = writer.finish().await.unwrap();
            sieve.finish(&written).unwrap();
            files.extend(written);
        }
        let (files, effect) = comparison.finish(files).await.unwrap();
        let before = self.table.current();
        let from = self.table.position().unwrap().map(|position| position.watermark);
        let to = Watermark::new("full");
        let change = Change { files, effect, from, to, summary: BTreeMap::new() };
        let after = self.table.commit(change, budget()).await.unwrap();
        self.passes += 1;
        if before == Some(after) { RowCounts::default() } else { self.table.row_counts() }
    }

    async fn rows(&self) -> Vec<String> {
        let provider = self.table.provider(None).await.unwrap();
        let batches = session(&self.lake).read_table(provider).unwrap().collect().await.unwrap();
        let mut rows: Vec<_> = batches.iter().flat_map(shown).collect();
        rows.sort();
        rows
    }

    /// Keys that the delta since a snapshot upserts, and those that it deletes.
    async fn delta(&self, from: SnapshotId) -> (BTreeSet<i64>, BTreeSet<i64>) {
        let delta = self.table.delta(Some(from), self.table.current().unwrap()).await.unwrap();
        let runtime = merge::runtime(budget(), self.lake.stores()).unwrap();
        let rows = merge::collapse(&delta, &self.table.key(), runtime).await.unwrap();
        let (mut upserts, mut deletes) = (BTreeSet::new(), BTreeSet::new());
        for batch in rows.try_collect::<Vec<_>>().await.unwrap() {
            let ops = batch.column_by_name(OP_COLUMN).unwrap().as_primitive::<Int8Type>().clone();
            let ids = batch.column(0).as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                let side = if ops.value(row) == 0 { &mut upserts } else { &mut deletes };
                assert!(side.insert(ids.value(row)), "a key comes once");
            }
        }
        (upserts, deletes)
    }

    /// How many data files the directory holds: what staging leaves behind would be among them.
    fn files_on_disk(&self) -> usize {
        let mut folders = vec![std::path::PathBuf::from(self.table.location().trim_start_matches("file://"))];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                match entry.is_dir() {
                    true => folders.push(entry),
                    false => files += usize::from(entry.extension().is_some_and(|kind| kind == "parquet")),
                }
            }
        }
        files
    }
}

fn budget() -> Budget {
    Budget::new(128 << 20, 2).unwrap()
}

fn session(lake: &Lake) -> SessionContext {
    SessionContext::new_with_config_rt(merge::config(), merge::runtime(budget(), lake.stores()).unwrap())
}

fn shown(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let row =
        |row| columns.iter().map(|column| format!("{:?}", column.value(row).to_string())).collect::<Vec<_>>();
    (0..batch.num_rows()).map(|index| row(index).join("|")).collect()
}

fn sorted(rows: &[Row]) -> Vec<String> {
    let mut rows = shown(&batch(rows));
    rows.sort();
    rows
}

#[tokio::test]
async fn only_the_difference_is_kept() {
    for memory in MEMORY {
        let mut lab = Lab::new(TableMode::Merge, &[]).await;
        let mut seen = Vec::new();
        let passes: [&[Row]; 6] = [
            &[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)],
            &[(5, 5), (4, 4), (3, 3), (2, 2), (1, 1)],
            &[(5, 5), (4, 4), (3, 3), (2, 1), (6, 6)],
            &[(5, 1), (4, 2), (3, 1), (2, 2), (6, 4)],
            &[],
            &[],
        ];
        for rows in passes {
            let counts = lab.pass(rows, memory).await;
            assert_eq!(lab.rows().await, sorted(rows));
            seen.push(format!("{counts:?}, {} files", lab.files_on_disk()));
        }
        expect![[r#"
            RowCounts { inserted: 5, updated: 0, deleted: 0 }, 2 files
            RowCounts { inserted: 0, updated: 0, deleted: 0 }, 2 files
            RowCounts { inserted: 1, updated: 1, deleted: 1 }, 4 files
            RowCounts { inserted: 0, updated: 5, deleted: 0 }, 6 files
            RowCounts { inserted: 0, updated: 0, deleted: 5 }, 6 files
            RowCounts { inserted: 0, updated: 0, deleted: 0 }, 6 files"#]]
        .assert_eq(&seen.join("\n"));
    }
}

#[tokio::test]
async fn a_row_that_is_there_twice_without_a_key_is_two_rows() {
    for memory in MEMORY {
        let mut lab = Lab::new(TableMode::Replace, &[]).await;
        lab.pass(&[(1, 1), (1, 1), (2, 2), (3, 3), (4, 4)], memory).await;
        let before = lab.table.current();
        lab.pass(&[(2, 2), (1, 1), (4, 4), (3, 3), (1, 1)], memory).await;
        assert_eq!(lab.table.current(), before, "nothing changed");
        let rows = [(2, 2), (1, 1), (2, 2), (3, 3), (4, 4)];
        let counts = lab.pass(&rows, memory).await;
        assert_eq!(lab.rows().await, sorted(&rows));
        assert_eq!(counts, RowCounts { inserted: 1, updated: 0, deleted: 1 });
    }
}

#[tokio::test]
async fn a_key_that_the_source_has_twice_is_one_row() {
    for memory in MEMORY {
        let mut lab = Lab::new(TableMode::Merge, &[]).await;
        for rows in [&[(1, 1), (2, 2), (1, 3)], &[(1, 3), (2, 2), (1, 1)], &[(1, 4), (1, 3), (1, 5)]] {
            lab.pass(rows, memory).await;
            let mut ids: Vec<_> = lab.rows().await.iter().map(|row| row[..3].to_owned()).collect();
            ids.dedup();
            assert_eq!(ids.len(), lab.rows().await.len(), "{ids:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_lake_becomes_what_was_read(
        passes in prop::collection::vec(prop::collection::btree_map(0i64..24, 0u8..12, 0..24), 2..4),
        keyed in any::<bool>(),
        partitioned in any::<bool>(),
        little_memory in any::<bool>(),
        version in prop::sample::select(vec![FormatVersion::V2, FormatVersion::V3]),
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let mode = if keyed { TableMode::Merge } else { TableMode::Replace };
            let partition_by: &[&str] = if partitioned { &["bucket(3, id)"] } else { &[] };
            let mut lab = Lab::of_version(version, mode, partition_by).await;
            let mut before = BTreeMap::new();
            let mut from = None;
            for after in passes {
                let rows: Vec<Row> = after.iter().map(|(id, kind)| (*id, *kind)).collect();
                let counts = lab.pass(&rows, MEMORY[usize::from(little_memory)]).await;
                prop_assert_eq!(lab.rows().await, sorted(&rows));

                let changed = |id: &&i64| before.get(*id) != after.get(*id);
                let upserts: BTreeSet<i64> = after.keys().filter(changed).copied().collect();
                let deletes: BTreeSet<i64> = before.keys().filter(|id| !after.contains_key(id)).copied().collect();
                let updated = upserts.iter().filter(|id| before.contains_key(id)).count() as u64;
                // Staged rows that nearly all changed are not written again to leave out the others.
                let whole = little_memory && (after.len() - upserts.len()) * 10 < after.len();
                if keyed && !whole && let Some(from) = from {
                    prop_assert_eq!(lab.delta(from).await, (upserts.clone(), deletes.clone()));
                    let deleted = deletes.len() as u64;
                    let inserted = upserts.len() as u64 - updated;
                    prop_assert_eq!(counts, RowCounts { inserted, updated, deleted });
                }
                from = lab.table.current();
                before = after;
            }
            Ok(())
        })?;
    }
}
