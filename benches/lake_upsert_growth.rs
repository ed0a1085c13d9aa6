//! How does the cost of an upsert grow with the table? Beside the floor: reading all key columns and
//! looking each key up, on all cores, with no table format around it.
//!
//! ```text
//! cargo bench --bench lake_upsert_growth                       # 1 and 10 M rows
//! FRAZIL_BENCH_ROWS=1000000,100000000 cargo bench --bench lake_upsert_growth
//! ```
//!
//! A narrow table with a `bigint` key, loaded in key order, as an identity column gives it, or in no
//! order at all; 10,000 changed keys, neighbours or at random, several times over. Of each it says the
//! best time by the clock, processor seconds of all threads, and the bytes that were asked for.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ahash::RandomState;
use arrow::array::{
    ArrayRef, AsArray, Decimal128Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec, WrittenFile};
use frazil::memory::Budget;
use frazil::table::TableId;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Rows that are generated at once.
const BATCH: i64 = 64 << 10;
/// Changed keys of an upsert.
const CHANGED: i64 = 10_000;
/// Upserts of each kind.
const ROUNDS: i64 = 5;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let sizes = std::env::var("FRAZIL_BENCH_ROWS").unwrap_or_else(|_| "1000000,10000000".to_owned());
    for rows in sizes.split(',') {
        let rows: i64 = rows.trim().parse()?;
        for ordered in [true, false] {
            growth(rows, ordered).await?;
        }
    }
    Ok(())
}

async fn growth(rows: i64, ordered: bool) -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let settings = LakeSettings {
        warehouse: directory.path().to_string_lossy().into_owned(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let spec = TableSpec {
        id: TableId::new("bench", "payments"),
        schema: schema(),
        mode: TableMode::Merge,
        key: vec!["id".to_owned()],
        partition_by: Vec::new(),
        format_version: None,
        sort_by: Vec::new(),
    };
    let mut table = Lake::open(&settings).await?.create(spec).await?;
    let all: Box<dyn Iterator<Item = i64>> = match ordered {
        true => Box::new(0..rows),
        false => Box::new((0..rows).map(move |n| scattered(n, rows))),
    };
    let loaded = Instant::now();
    let files = write(&table, all).await?;
    commit(&mut table, files, Effect::Append).await?;
    let bytes: u64 =
        data_files(directory.path())?.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum();
    println!(
        "{rows} rows {}: {:.0} MB, loaded in {:.0} s",
        if ordered { "in key order" } else { "in no order" },
        bytes as f64 / 1e6,
        loaded.elapsed().as_secs_f64()
    );
    let base = data_files(directory.path())?;
    for (name, random) in [("neighbours", false), ("at random", true)] {
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let keys: Vec<i64> = match random {
                // Twice scattered: neighbours in the file neither.
                true => (0..CHANGED).map(|n| scattered(scattered(n + round * CHANGED, rows), rows)).collect(),
                false => (0..CHANGED).map(|n| (round + 1) * (rows / (ROUNDS + 2)) + n).collect(),
            };
            let files = write(&table, keys.iter().copied()).await?;
            let before = Usage::now();
            commit(&mut table, files, Effect::Upsert).await?;
            ours.push(before.since());
            let before = Usage::now();
            let found = floor(&base, &keys).await?;
            floors.push(before.since());
            assert_eq!(found, keys.len(), "keys found");
        }
        println!("  {CHANGED} keys {name}: {}; floor {}", best(&ours), best(&floors));
    }
    Ok(())
}

/// What something cost.
struct Usage {
    at: Instant,
    processor: f64,
    read: f64,
}

impl Usage {
    fn now() -> Self {
        let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
        Self { at: Instant::now(), processor: processor_time(), read: read.unwrap_or_default() }
    }

    /// Seconds, processor seconds, megabytes.
    fn since(&self) -> [f64; 3] {
        let now = Self::now();
        let seconds = (now.at - self.at).as_secs_f64();
        [seconds, now.processor - self.processor, (now.read - self.read) / 1e6]
    }
}

fn best(rounds: &[[f64; 3]]) -> String {
    let least = |which: usize| rounds.iter().map(|round| round[which]).fold(f64::INFINITY, f64::min);
    format!("{:.0} ms, {:.3} CPU s, {:.2} MB read", least(0) * 1e3, least(1), least(2))
}

/// Seconds that this process has used, all living threads together, to the nanosecond.
fn processor_time() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of = |task: PathBuf| -> Option<f64> {
        std::fs::read_to_string(task.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    tasks.flatten().filter_map(|task| of(task.path())).sum::<f64>() / 1e9
}

/// The n-th of the numbers below `rows` in an order without order: each comes once.
fn scattered(n: i64, rows: i64) -> i64 {
    let bits = i64::BITS - (rows - 1).leading_zeros();
    let mask = (1_u64 << bits) - 1;
    let mut value = n as u64;
    loop {
        // Steps that can be undone, so that no two numbers meet; those beyond the end go round again.
        for factor in [0x9E37_79B9_7F4A_7C15_u64, 0xBF58_476D_1CE4_E5B9] {
            value = value.wrapping_mul(factor | 1) & mask;
            value ^= value >> (bits / 2);
        }
        if (value as i64) < rows {
            return value as i64;
        }
    }
}

fn budget() -> Result<Budget, Error> {
    Ok(Budget::new(256 << 20, 2)?)
}

async fn write(table: &LakeTable, mut keys: impl Iterator<Item = i64>) -> Result<Vec<WrittenFile>, Error> {
    let mut writer = table.writer(budget()?)?;
    loop {
        let some: Vec<i64> = keys.by_ref().take(BATCH as usize).collect();
        if some.is_empty() {
            return Ok(writer.finish().await?);
        }
        writer.write(&batch(&some)?).await?;
    }
}

async fn commit(table: &mut LakeTable, files: Vec<WrittenFile>, effect: Effect) -> Result<(), Error> {
    let from = table.position()?.map(|position| position.watermark);
    let to = Watermark::new(format!("{}", table.next_sequence_number()));
    table.commit(Change { files, effect, from, to, summary: BTreeMap::new() }, budget()?).await?;
    Ok(())
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("amount", DataType::Decimal128(12, 2), false),
        Field::new("state", DataType::Utf8, false),
        Field::new("updated_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
    ]))
}

fn batch(keys: &[i64]) -> Result<RecordBatch, Error> {
    let hash = |key: i64| (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let amounts = keys.iter().map(|key| (hash(*key) % 1_000_000) as i128);
    let states = keys.iter().map(|key| ["new", "paid", "sent", "returned"][(hash(*key) % 4) as usize]);
    let times = keys.iter().map(|key| 1_700_000_000_000_000 + key * 250_000);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(keys.to_vec())),
        Arc::new(Decimal128Array::from_iter_values(amounts).with_precision_and_scale(12, 2)?),
        Arc::new(StringArray::from_iter_values(states)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

/// Reads the key columns of files and looks each row up, on all cores.
async fn floor(files: &[PathBuf], keys: &[i64]) -> Result<usize, Error> {
    let wanted: Arc<HashSet<i64, RandomState>> = Arc::new(keys.iter().copied().collect());
    let mut pieces = Vec::new();
    for file in files {
        let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file)?)?;
        pieces.extend((0..builder.metadata().num_row_groups()).map(|group| (file.clone(), group)));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = |core: usize| {
        let mine: Vec<_> = pieces.iter().skip(core).step_by(cores).cloned().collect();
        let wanted = wanted.clone();
        // On threads that stay, so that their time is counted.
        tokio::task::spawn_blocking(move || {
            mine.iter().map(|(file, group)| look(file, *group, &wanted)).sum::<Result<usize, Error>>()
        })
    };
    let workers: Vec<_> = (0..cores).map(share).collect();
    let mut found = 0;
    for worker in workers {
        found += worker.await??;
    }
    Ok(found)
}

fn look(file: &Path, group: usize, wanted: &HashSet<i64, RandomState>) -> Result<usize, Error> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file)?)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), [0]);
    let reader =
        builder.with_row_groups(vec![group]).with_projection(mask).with_batch_size(16 << 10).build()?;
    let mut found = 0;
    for batch in reader {
        let batch = batch?;
        let keys = batch.column(0).as_primitive::<Int64Type>().values();
        found += keys.iter().filter(|key| wanted.contains(key)).count();
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
