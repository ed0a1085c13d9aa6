//! Damaged and missing files: each is said by name, with what can be done, and whether to try again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use frazil::delta::Watermark;
use frazil::error::{Error, ErrorKind};
use frazil::lake::{Change, Effect, Lake, LakeSettings, TableMode, TableSpec};
use frazil::memory::Budget;
use frazil::query;
use frazil::table::TableId;

struct Table {
    directory: tempfile::TempDir,
}

impl Table {
    /// Two commits of 20,000 rows each: pages beyond what one read of a footer brings along.
    async fn new() -> Self {
        let table = Self { directory: tempfile::tempdir().unwrap() };
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("x", DataType::Float64, true),
        ]));
        let spec = TableSpec {
            id: TableId::new("main", "t"),
            schema: schema.clone(),
            mode: TableMode::Append,
            key: Vec::new(),
            partition_by: Vec::new(),
            sort_by: Vec::new(),
            format_version: None,
        };
        let mut lake = table.lake().await.create(spec).await.unwrap();
        for part in 0..2_i64 {
            let ids = (0..20_000).map(|row| part * 20_000 + row);
            // Noise does not compress: the file is larger than one read.
            let noise =
                ids.clone().map(|id| f64::from_bits((id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2));
            let columns: Vec<arrow::array::ArrayRef> = vec![
                Arc::new(Int64Array::from_iter_values(ids)),
                Arc::new(Float64Array::from_iter_values(noise)),
            ];
            let mut writer = lake.writer(budget()).unwrap();
            writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).await.unwrap();
            let change = Change {
                files: writer.finish().await.unwrap(),
                effect: Effect::Append,
                from: lake.position().unwrap().map(|position| position.watermark),
                to: Watermark::new(part.to_string()),
                summary: BTreeMap::new(),
            };
            lake.commit(change, budget()).await.unwrap();
        }
        table
    }

    async fn lake(&self) -> Lake {
        let settings = LakeSettings {
            warehouse: self.directory.path().display().to_string(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        Lake::open(&settings).await.unwrap()
    }

    /// The newest file of a folder whose name ends so.
    fn newest(&self, folder: &str, end: &str, begin: &str) -> PathBuf {
        let files = fs::read_dir(self.directory.path().join("main/t").join(folder)).unwrap();
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(end) && name.starts_with(begin)
        };
        let files = files.map(|entry| entry.unwrap().path()).filter(named);
        files.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).unwrap()
    }

    async fn fails(&self, sql: &str) -> Error {
        self.sum(sql).await.unwrap_err()
    }

    async fn sum(&self, sql: &str) -> Result<usize, Error> {
        let session = query::session(&self.lake().await, budget(), None).await?;
        let rows = query::sql(&session, sql).await?.collect().await?;
        Ok(rows.iter().map(RecordBatch::num_rows).sum())
    }
}

fn budget() -> Budget {
    Budget::new(256 << 20, 1).unwrap()
}

fn cut(file: &Path, keep: fn(usize) -> usize) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..keep(bytes.len())]).unwrap();
}

/// The error says that this file is damaged, and what can be done.
fn names(error: &Error, file: &Path) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(error.to_string().contains(name), "{error:?}");
    assert!(error.hint_text().is_some(), "{error:?}");
}

const ALL: &str = "select sum(x) from t";

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_data_file_is_named() {
    let table = Table::new().await;
    let file = table.newest("data", ".parquet", "");
    fs::remove_file(&file).unwrap();
    names(&table.fails(ALL).await, &file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_file_that_was_cut_is_named() {
    let table = Table::new().await;
    let file = table.newest("data", ".parquet", "");
    cut(&file, |length| length / 2);
    names(&table.fails(ALL).await, &file);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_were_overwritten_are_damage() {
    let table = Table::new().await;
    let file = table.newest("data", ".parquet", "");
    let mut bytes = fs::read(&file).unwrap();
    let half = bytes.len() / 2;
    bytes[100..half].fill(0xA5);
    fs::write(&file, bytes).unwrap();
    assert_eq!(table.fails(ALL).await.kind(), ErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_was_cut_is_named() {
    let table = Table::new().await;
    let file = table.newest("metadata", "-m0.avro", "");
    cut(&file, |length| length * 3 / 4);
    names(&table.fails(ALL).await, &file);
    fs::write(&file, b"").unwrap();
    names(&table.fails(ALL).await, &file);
    fs::remove_file(&file).unwrap();
    names(&table.fails(ALL).await, &file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_list_that_was_cut_is_named() {
    let table = Table::new().await;
    let file = table.newest("metadata", ".avro", "snap-");
    cut(&file, |length| length / 2);
    names(&table.fails(ALL).await, &file);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_an_unknown_version_or_half_of_them_are_named() {
    let table = Table::new().await;
    let file = table.newest("metadata", ".metadata.json", "v3");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"format-version\":2", "\"format-version\":9")).unwrap();
    let error = table.fails(ALL).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("v3.metadata.json"), "{error:?}");
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    names(&table.fails(ALL).await, &file);
}
