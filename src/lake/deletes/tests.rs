//! Random histories of upserts against a map, and how little of a file is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float64Array, Int32Array,
    Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema};
use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Datum, Literal, Struct};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::lake::{Lake, LakeSettings, TableMode, TableSpec, position_deletes, schema};
use crate::table::{FormatVersion, TableId};

mod by_lead;

/// New files, and no keys that go.
fn alone(files: &[WrittenFile]) -> [By<'_>; 2] {
    [By { files, placed: true }, By { files: &[], placed: false }]
}

/// What the second key column is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Date,
    SmallDecimal,
    LargeDecimal,
    Text,
    Uuid,
    Float,
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Self::Int => DataType::Int32,
            Self::Date => DataType::Date32,
            Self::SmallDecimal => DataType::Decimal128(9, 2),
            Self::LargeDecimal => DataType::Decimal128(30, 2),
            Self::Text => DataType::Utf8,
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Float => DataType::Float64,
        }
    }

    fn array(self, values: &[i32]) -> ArrayRef {
        let values = values.iter().copied();
        let wide = |n: i32| i128::from(n) << 70;
        match self {
            Self::Int => Arc::new(Int32Array::from_iter_values(values)),
            Self::Date => Arc::new(Date32Array::from_iter_values(values)),
            Self::SmallDecimal => Arc::new(
                Decimal128Array::from_iter_values(values.map(i128::from))
                    .with_precision_and_scale(9, 2)
                    .unwrap(),
            ),
            Self::LargeDecimal => Arc::new(
                Decimal128Array::from_iter_values(values.map(wide)).with_precision_and_scale(30, 2).unwrap(),
            ),
            // Longer than the 64 bytes at which writers cut statistics.
            Self::Text => Arc::new(StringArray::from_iter_values(values.map(|n| format!("{:_>70}{n}", "")))),
            Self::Uuid => Arc::new(
                FixedSizeBinaryArray::try_from_iter(values.map(|n| {
                    Uuid::from_u128((n as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
                        .into_bytes()
                }))
                .unwrap(),
            ),
            Self::Float => Arc::new(Float64Array::from_iter_values(
                values.map(|n| if n == 3 { f64::NAN } else { f64::from(n) / 2.0 }),
            )),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    a: i64,
    n: i32,
    p: i32,
}

/// How files are laid out.
#[derive(Debug, Clone, Copy)]
struct Layout {
    kind: Kind,
    partition_by: Option<&'static str>,
    row_group: usize,
    bounds: bool,
    bloom: bool,
    memory: usize,
    version: FormatVersion,
}

const PLAIN: Layout = Layout {
    kind: Kind::Int,
    partition_by: None,
    row_group: 1000,
    bounds: true,
    bloom: false,
    memory: 1 << 20,
    version: FormatVersion::V2,
};

/// A table whose snapshots are lists of files in memory: this is about files, not about commits.
struct Lab {
    _dir: tempfile::TempDir,
    layout: Layout,
    table: LakeTable,
    live: LiveFiles,
    sequence: i64,
    rows: i64,
    model: BTreeMap<(i64, i32), i64>,
}

impl Lab {
    async fn new(layout: Layout) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: dir.path().to_str().unwrap().to_owned(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        let mut b = Field::new("b", layout.kind.data_type(), false);
        if layout.kind == Kind::Uuid {
            b = b.with_metadata(HashMap::from([("ARROW:extension:name".into(), "arrow.uuid".into())]));
        }
        let schema = Schema::new(vec![
            Field::new("p", DataType::Int32, true),
            b,
            Field::new("a", DataType::Int64, false),
            Field::new("n", DataType::Int32, true),
            Field::new("v", DataType::Int64, true),
        ]);
        let spec = TableSpec {
            id: TableId::bare("t"),
            schema: Arc::new(schema),
            mode: TableMode::Merge,
            key: vec!["a".to_owned(), "b".to_owned()],
            partition_by: layout.partition_by.into_iter().map(str::to_owned).collect(),
            format_version: Some(layout.version),
            sort_by: Vec::new(),
        };
        let table = Lake::open(&settings).await.unwrap().create(spec).await.unwrap();
        Self {
            _dir: dir,
            layout,
            table,
            live: LiveFiles::default(),
            sequence: 0,
            rows: 0,
            model: BTreeMap::new(),
        }
    }

    /// Writes rows into files of their own by partition.
    fn write(&mut self, rows: &[Row]) -> Vec<(WrittenFile, Vec<Row>)> {
        let mut groups: BTreeMap<Option<i64>, Vec<Row>> = BTreeMap::new();
        for row in rows {
            let partition = match self.layout.partition_by {
                Some("p") => Some(i64::from(row.p)),
                Some("a") => Some(row.a),
                _ => None,
            };
            groups.entry(partition).or_default().push(*row);
        }
        groups.into_iter().map(|(partition, rows)| (self.write_file(partition, &rows), rows)).collect()
    }

    fn write_file(&mut self, partition: Option<i64>, rows: &[Row]) -> WrittenFile {
        let metadata = self.table.table.metadata();
        let iceberg = metadata.current_schema().clone();
        let schema = schema::to_file_schema(&iceberg);
        let first = self.rows;
        self.rows += rows.len() as i64;
        let b: Vec<i32> = rows.iter().map(|row| row.n).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.p))),
            self.layout.kind.array(&b),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.a))),
            Arc::new(Int32Array::from(b.clone())),
            Arc::new(Int64Array::from_iter_values(first..self.rows)),
        ];
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let location = format!("{}/data/{}.parquet", self.table.location(), Uuid::new_v4());
        let local = location.strip_prefix("file://").unwrap();
        std::fs::create_dir_all(std::path::Path::new(local).parent().unwrap()).unwrap();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(self.layout.row_group))
            .set_data_page_row_count_limit(50)
            .set_write_batch_size(25)
            .set_bloom_filter_enabled(self.layout.bloom)
            .build();
        let mut writer =
            ArrowWriter::try_new(File::create(local).unwrap(), schema, Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let id = |name: &str| iceberg.field_id_by_name(name).unwrap();
        let (mut lower, mut upper) = (HashMap::new(), HashMap::new());
        if self.layout.bounds {
            let a = || rows.iter().map(|row| row.a);
            lower.insert(id("a"), Datum::long(a().min().unwrap()));
            upper.insert(id("a"), Datum::long(a().max().unwrap()));
            if self.layout.kind == Kind::Int {
                lower.insert(id("b"), Datum::int(*b.iter().min().unwrap()));
                upper.insert(id("b"), Datum::int(*b.iter().max().unwrap()));
            }
        }
        let partition = match (self.layout.partition_by, partition) {
            (Some("p"), Some(value)) => Struct::from_iter([Some(Literal::int(value as i32))]),
            (Some("a"), Some(value)) => Struct::from_iter([Some(Literal::long(value))]),
            _ => Struct::empty(),
        };
        let spec_id = metadata.default_partition_spec_id();
        let file = DataFileBuilder::default()
            .content(DataContentType::Data)
            .file_path(location.clone())
            .file_format(DataFileFormat::Parquet)
            .partition(partition)
            .partition_spec_id(spec_id)
            .record_count(rows.len() as u64)
            .file_size_in_bytes(std::fs::metadata(local).unwrap().len())
            .lower_bounds(lower)
            .upper_bounds(upper)
            .build()
            .unwrap();
        WrittenFile { file, spec_id }
    }

    /// Upserts rows, in files of `per_file`, and checks the table against the map.
    async fn upsert(&mut self, rows: &[Row], per_file: usize) -> Hidden {
        let mut before = self.rows;
        let mut files = Vec::new();
        let mut newest = BTreeMap::new();
        for chunk in rows.chunks(per_file) {
            for (file, rows) in self.write(chunk) {
                for row in rows {
                    newest.insert((row.a, row.n), before);
                    before += 1;
                }
                files.push(file);
            }
        }
        let hidden =
            hide_among(&self.table, &self.live, alone(&files), &Gone::default(), None, self.layout.memory)
                .await
                .unwrap();
        let updated = newest.keys().filter(|key| self.model.contains_key(key)).count();
        assert_eq!(hidden.old_rows, updated as u64, "old rows");
        assert_eq!(hidden.repeated_rows, (rows.len() - newest.len()) as u64, "repeated rows");
        self.model.extend(newest);
        self.sequence += 1;
        let live = |written: &WrittenFile| LiveFile {
            file: Arc::new(written.file.clone()),
            spec_id: written.spec_id,
            sequence: self.sequence,
            added_by: SnapshotId(self.sequence),
            first_row_id: None,
        };
        self.live.data.extend(files.iter().map(live));
        self.live.deletes.retain(|file| !hidden.superseded.contains(&FileKey::of(&file.file)));
        self.live.deletes.extend(hidden.files.iter().map(live));
        assert_eq!(self.read().await, self.model);
        hidden
    }

    /// The table's rows, and that no position is hidden twice.
    async fn read(&self) -> BTreeMap<(i64, i32), i64> {
        let hidden = position_deletes::read(&self.table.stores, &self.live.deletes, None).await.unwrap();
        let hidden: HashMap<String, RoaringTreemap> =
            hidden.into_iter().map(|(path, deleted)| (path, deleted.positions())).collect();
        let positions: u64 = hidden.values().map(RoaringTreemap::len).sum();
        let records: u64 = self.live.deletes.iter().map(|file| file.file.record_count()).sum();
        // Of a table that was raised, lists of several files stay beside the vectors that hold their rows.
        if self.table.format_version() == self.layout.version {
            assert_eq!(positions, records, "positions that are hidden once");
        }
        let mut rows = BTreeMap::new();
        for file in &self.live.data {
            let local = File::open(file.path().strip_prefix("file://").unwrap()).unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(local).unwrap().build().unwrap();
            let mut position = 0;
            for batch in reader {
                let batch = batch.unwrap();
                let a = batch.column(2).as_primitive::<Int64Type>();
                let n = batch.column(3).as_primitive::<Int32Type>();
                let v = batch.column(4).as_primitive::<Int64Type>();
                for row in 0..batch.num_rows() {
                    if !hidden.get(file.path()).is_some_and(|hidden| hidden.contains(position)) {
                        let before = rows.insert((a.value(row), n.value(row)), v.value(row));
                        assert!(before.is_none(), "two rows with one key");
                    }
                    position += 1;
                }
            }
        }
        rows
    }
}

fn row() -> impl Strategy<Value = Row> {
    (-6i64..6, 0i32..5, 0i32..3).prop_map(|(a, n, p)| Row { a, n, p })
}

fn layout() -> impl Strategy<Value = Layout> {
    let kinds =
        [Kind::Int, Kind::Date, Kind::SmallDecimal, Kind::LargeDecimal, Kind::Text, Kind::Uuid, Kind::Float];
    (
        prop::sample::select(kinds.to_vec()),
        prop::sample::select(vec![None, Some("p"), Some("a")]),
        1usize..12,
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![1usize << 20, 600]),
        prop::sample::select(vec![FormatVersion::V2, FormatVersion::V3]),
    )
        .prop_map(|(kind, partition_by, row_group, bounds, bloom, memory, version)| Layout {
            version,
            kind,
            partition_by,
            row_group,
            bounds,
            bloom,
            memory,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the files look like and in whatever order keys come, the table is the map.
    #[test]
    fn a_table_is_the_map_of_its_upserts(
        layout in layout(),
        commits in prop::collection::vec((prop::collection::vec(row(), 0..40), 1usize..30), 1..6),
        raise_at in 0usize..12,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let mut lab = Lab::new(layout).await;
            for (commit, (rows, per_file)) in commits.into_iter().enumerate() {
                if commit == raise_at {
                    lab.table.raise_format(FormatVersion::V3).await.unwrap();
                }
                lab.upsert(&rows, per_file).await;
            }
        });
    }
}

#[tokio::test]
async fn a_delete_file_names_its_data_file_when_it_is_the_only_one() {
    let mut lab = Lab::new(PLAIN).await;
    let rows: Vec<_> = (0..100).map(|a| Row { a, n: 0, p: 0 }).collect();
    assert!(lab.upsert(&rows, 50).await.files.is_empty());
    let one = lab.upsert(&rows[..3], 50).await;
    let data = lab.live.data[0].path().to_owned();
    assert_eq!(one.files[0].file.referenced_data_file(), Some(data));
    let two = lab.upsert(&rows[49..51], 50).await;
    assert_eq!((two.files.len(), two.files[0].file.referenced_data_file()), (1, None));
}

#[tokio::test]
async fn in_version_3_a_data_file_has_one_vector_that_holds_all() {
    let mut lab = Lab::new(Layout { version: FormatVersion::V3, ..PLAIN }).await;
    let rows: Vec<_> = (0..100).map(|a| Row { a, n: 0, p: 0 }).collect();
    assert!(lab.upsert(&rows, 50).await.files.is_empty());
    let data: Vec<_> = lab.live.data.iter().map(|file| file.path().to_owned()).collect();
    let described = |hidden: &Hidden| {
        let of = |file: &WrittenFile| {
            let data_file = file.file.referenced_data_file().unwrap();
            (data.iter().position(|path| *path == data_file).unwrap(), file.file.record_count())
        };
        hidden.files.iter().map(of).collect::<BTreeSet<_>>()
    };
    let first = lab.upsert(&rows[48..53], 100).await;
    assert_eq!(described(&first), BTreeSet::from([(0, 2), (1, 3)]));
    assert_ne!(first.files[0].file.file_path(), first.files[1].file.file_path(), "each has a file");
    let size = std::fs::metadata(first.files[0].file.file_path().strip_prefix("file://").unwrap()).unwrap();
    assert_eq!(first.files[0].file.file_size_in_bytes(), size.len());
    let second = lab.upsert(&rows[0..10], 100).await;
    assert_eq!(described(&second), BTreeSet::from([(0, 12)]));
    let gone: Vec<_> = first.files.iter().filter(|file| file.file.record_count() == 2).collect();
    assert_eq!(second.superseded, HashSet::from([FileKey::of(&gone[0].file)]));
}

#[tokio::test]
async fn deletes_that_say_nothing_are_refused() {
    let mut lab = Lab::new(PLAIN).await;
    lab.upsert(&[Row { a: 1, n: 1, p: 0 }], 1).await;
    let mut foreign = lab.live.data[0].clone();
    foreign.file = Arc::new(
        DataFileBuilder::default()
            .content(DataContentType::EqualityDeletes)
            .file_path("file:///gone.parquet".to_owned())
            .file_format(DataFileFormat::Parquet)
            .record_count(1)
            .file_size_in_bytes(1)
            .build()
            .unwrap(),
    );
    lab.live.deletes.push(foreign);
    let (new, _) = lab.write(&[Row { a: 1, n: 1, p: 0 }]).remove(0);
    let error =
        hide_among(&lab.table, &lab.live, alone(&[new]), &Gone::default(), None, 1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// What is read of one file of 1000 rows in row groups of 200 and pages of 50, for some keys.
async fn pieces_of(layout: Layout, old: &[Row], new: &[Row]) -> Vec<String> {
    let mut lab = Lab::new(layout).await;
    let (old, _) = lab.write(old).remove(0);
    let (new, _) = lab.write(new).remove(0);
    let columns = prune::key_columns(lab.table.table.metadata(), &lab.table.key()).unwrap();
    let new = NewRows::open(&lab.table, &[new], columns.clone(), None).await.unwrap();
    let pass = Pass { number: 0, of: 1, hasher: RandomState::new() };
    let (keys, _) = new.keys(pass, 1 << 20).await.unwrap().unwrap();
    let candidate = Candidate { path: old.file.file_path().to_owned(), size: old.file.file_size_in_bytes() };
    probe::described(&lab.table.stores, &columns, &candidate, &keys).await.unwrap()
}

#[tokio::test]
async fn clustered_keys_read_the_pages_that_hold_them() {
    let layout = Layout { row_group: 200, ..PLAIN };
    let old: Vec<_> = (0..1000).map(|a| Row { a: a * 2, n: 7, p: 0 }).collect();
    let new = |keys: &[i64]| keys.iter().map(|a| Row { a: *a, n: 7, p: 0 }).collect::<Vec<_>>();
    assert_eq!(pieces_of(layout, &old, &new(&[10, 12])).await, ["row group 0: 50 of 200 rows"]);
    assert_eq!(
        pieces_of(layout, &old, &new(&[399, 400, 1998])).await,
        ["row group 1: 50 of 200 rows", "row group 4: 50 of 200 rows"]
    );
    // In the gap between two row groups, and beyond the end.
    assert_eq!(pieces_of(layout, &old, &new(&[399, 2000])).await, Vec::<String>::new());
    let all: Vec<_> = (0..1000).map(|a| a * 2).collect();
    assert_eq!(pieces_of(layout, &old, &new(&all)).await.len(), 5);
    // The other key column rules out what the first does not.
    let other: Vec<_> = new(&[10]).into_iter().map(|row| Row { n: 8, ..row }).collect();
    assert_eq!(pieces_of(layout, &old, &other).await, Vec::<String>::new());
}

#[tokio::test]
async fn bloom_filters_rule_out_row_groups_when_statistics_cannot() {
    let scattered = |n: i32| Row { a: 0, n, p: 0 };
    let old: Vec<_> = (0..1000).map(scattered).collect();
    let missing: Vec<_> = (1000..1005).map(scattered).collect();
    let present = [scattered(450)];
    let layout = Layout { kind: Kind::Uuid, row_group: 200, bloom: true, ..PLAIN };
    // A filter errs now and then, and only by letting a row group pass.
    assert!(pieces_of(layout, &old, &missing).await.len() <= 1);
    let pieces = pieces_of(layout, &old, &present).await;
    assert!(pieces.iter().any(|piece| piece.starts_with("row group 2:")) && pieces.len() <= 2, "{pieces:?}");
    assert_eq!(pieces_of(Layout { bloom: false, ..layout }, &old, &missing).await.len(), 5);
}

#[tokio::test]
async fn a_key_column_that_is_null_is_named() {
    let lab = Lab::new(PLAIN).await;
    let missing = prune::key_columns(lab.table.table.metadata(), &["nope".to_owned()]).unwrap_err();
    assert_eq!(
        (missing.kind(), missing.to_string().as_str()),
        (ErrorKind::Config, "the key column does not exist (column: nope)")
    );
}

/// Sizes in the manifest are those on disk, and the file is where it says.
#[tokio::test]
async fn delete_files_are_described_as_they_are() {
    let mut lab = Lab::new(PLAIN).await;
    let rows: Vec<_> = (0..100).map(|a| Row { a, n: 0, p: 0 }).collect();
    lab.upsert(&rows, 100).await;
    let hidden = lab.upsert(&rows[10..20], 100).await;
    let file = &hidden.files[0].file;
    let on_disk = std::fs::metadata(file.file_path().strip_prefix("file://").unwrap()).unwrap().len();
    assert_eq!((file.file_size_in_bytes(), file.record_count()), (on_disk, 10));
    let ids: BTreeSet<i32> = file.lower_bounds().keys().copied().collect();
    assert_eq!(ids, BTreeSet::from([2_147_483_545, 2_147_483_546]));
    assert_eq!(file.upper_bounds()[&2_147_483_545], Datum::long(19));
}
