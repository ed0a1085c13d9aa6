//! What does an upsert cost in a large table? Beside the floor: reading all key columns and looking
//! each key up, on all cores, with no table format around it.
//!
//! ```text
//! cargo bench --bench lake_upsert            # 6 M rows
//! FRAZIL_BENCH_ROWS=600000 cargo bench --bench lake_upsert
//! ```
//!
//! The table has the shape of TPC-H's lineitem, with the key (orderkey, linenumber). Upserts follow
//! each other in one table, as they would in life; each finds the delete files of those before.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use arrow::array::{
    ArrayRef, AsArray, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec};
use frazil::memory::Budget;
use frazil::table::TableId;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

type Error = Box<dyn std::error::Error + Send + Sync>;

const LINES: usize = 4;
const BATCH: usize = 64 << 10;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let rows: usize = std::env::var("FRAZIL_BENCH_ROWS").map_or(Ok(6_000_000), |rows| rows.parse())?;
    let directory = tempfile::tempdir()?;
    let settings = LakeSettings {
        warehouse: directory.path().to_string_lossy().into_owned(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let lake = Lake::open(&settings).await?;
    let mut table = lake
        .create(TableSpec {
            id: TableId::new("bench", "lineitem"),
            schema: schema(),
            mode: TableMode::Merge,
            key: vec!["orderkey".to_owned(), "linenumber".to_owned()],
            partition_by: Vec::new(),
            format_version: None,
            sort_by: Vec::new(),
        })
        .await?;
    let all: Vec<usize> = (0..rows).collect();
    let (written, committed, _) = upsert(&mut table, &all, Effect::Append).await?;
    print(&format!("{rows} rows, first load"), written, committed, None);
    for count in [1_000, 60_000, 600_000].map(|count: usize| count.min(rows)) {
        let start = rows / 3;
        let clustered: Vec<usize> = (start..start + count).map(|row| row % rows).collect();
        // A stride that is prime to the number of rows visits each once.
        let stride = (1..).map(|n| rows * 7 / 11 + n).find(|stride| prime_to(*stride, rows)).unwrap_or(1);
        let random: Vec<usize> = (0..count).map(|row| row * stride % rows).collect();
        for (name, keys) in [("clustered", clustered), ("random", random)] {
            let floor = floor(directory.path(), &keys)?;
            let (written, committed, hidden) = upsert(&mut table, &keys, Effect::Upsert).await?;
            assert_eq!(hidden, Some(keys.len().to_string()), "rows hidden");
            print(&format!("{count} {name} keys"), written, committed, Some(floor));
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a bench reports on stdout")]
fn print(what: &str, written: Duration, committed: Duration, floor: Option<Duration>) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let floor = floor.map_or(String::new(), |floor| {
        format!(", floor {:.0} ms, ratio {:.2}", ms(floor), committed.as_secs_f64() / floor.as_secs_f64())
    });
    println!("{what}: write {:.0} ms, hide and commit {:.0} ms{floor}", ms(written), ms(committed));
}

/// Writes rows and commits them; also what the summary says of deleted positions.
async fn upsert(
    table: &mut LakeTable,
    rows: &[usize],
    effect: Effect,
) -> Result<(Duration, Duration, Option<String>), Error> {
    let budget = Budget::new(256 << 20, 2)?;
    let start = Instant::now();
    let mut writer = table.writer(budget)?;
    for chunk in rows.chunks(BATCH) {
        writer.write(&batch(chunk)?).await?;
    }
    let files = writer.finish().await?;
    let written = start.elapsed();
    let start = Instant::now();
    let from = table.position()?.map(|position| position.watermark);
    let to = Watermark::new(format!("{}", table.next_sequence_number()));
    let change = Change { files, effect, from, to, summary: BTreeMap::new() };
    let id = table.commit(change, budget).await?;
    let committed = start.elapsed();
    let snapshot = table.snapshots().into_iter().find(|snapshot| snapshot.id == id);
    let hidden = snapshot.and_then(|snapshot| snapshot.summary.get("added-position-deletes").cloned());
    Ok((written, committed, hidden))
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("orderkey", DataType::Int64, false),
        Field::new("linenumber", DataType::Int32, false),
        Field::new("quantity", DataType::Decimal128(15, 2), false),
        Field::new("extendedprice", DataType::Decimal128(15, 2), false),
        Field::new("shipdate", DataType::Date32, false),
        Field::new("shipmode", DataType::Utf8, false),
        Field::new("comment", DataType::Utf8, false),
    ]))
}

fn key(row: usize) -> (i64, i32) {
    ((row / LINES) as i64, (row % LINES) as i32 + 1)
}

fn batch(rows: &[usize]) -> Result<RecordBatch, Error> {
    let decimal = |value: fn(usize) -> i128| -> Result<ArrayRef, Error> {
        let values = Decimal128Array::from_iter_values(rows.iter().map(|row| value(*row)));
        Ok(Arc::new(values.with_precision_and_scale(15, 2)?))
    };
    let text = |value: fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| value(*row))))
    };
    let columns = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| key(*row).0))) as ArrayRef,
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| key(*row).1))),
        decimal(|row| (row % 50) as i128 * 100)?,
        decimal(|row| (row * 7919 % 10_000_000) as i128)?,
        Arc::new(Date32Array::from_iter_values(rows.iter().map(|row| (row * 31 % 2500) as i32))),
        text(|row| ["AIR", "MAIL", "RAIL", "SHIP", "TRUCK"][row % 5].to_owned()),
        text(|row| format!("carefully {:x} of it", row.wrapping_mul(0x9E37_79B9_7F4A_7C15))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

/// Reads the key columns of all data files and looks each row up, on all cores.
fn floor(warehouse: &Path, keys: &[usize]) -> Result<Duration, Error> {
    let files = data_files(warehouse)?;
    let start = Instant::now();
    let wanted: HashSet<(i64, i32), RandomState> = keys.iter().map(|row| key(*row)).collect();
    let mut pieces = Vec::new();
    for file in &files {
        let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file)?)?;
        pieces.extend((0..builder.metadata().num_row_groups()).map(|group| (file, group)));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found = std::thread::scope(|scope| -> Result<usize, Error> {
        let share = |core: usize| {
            let (pieces, wanted) = (&pieces, &wanted);
            scope.spawn(move || -> Result<usize, Error> {
                let mine = pieces.iter().skip(core).step_by(cores);
                mine.map(|(file, group)| look(file, *group, wanted)).sum()
            })
        };
        let workers: Vec<_> = (0..cores).map(share).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).sum()
    })?;
    assert!(found >= keys.len(), "found {found} of {}", keys.len());
    Ok(start.elapsed())
}

fn look(file: &Path, group: usize, wanted: &HashSet<(i64, i32), RandomState>) -> Result<usize, Error> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file)?)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), [0, 1]);
    let reader =
        builder.with_row_groups(vec![group]).with_projection(mask).with_batch_size(16 << 10).build()?;
    let mut found = 0;
    for batch in reader {
        let batch = batch?;
        let orders = batch.column(0).as_primitive::<Int64Type>().values();
        let lines = batch.column(1).as_primitive::<Int32Type>().values();
        found += orders.iter().zip(lines).filter(|(order, line)| wanted.contains(&(**order, **line))).count();
    }
    Ok(found)
}

fn data_files(warehouse: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![warehouse.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".parquet") && !name.ends_with("-deletes.parquet") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn prime_to(a: usize, b: usize) -> bool {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}
