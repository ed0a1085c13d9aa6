//! What does maintenance cost, and what does it save?
//!
//! ```text
//! cargo bench --bench lake_maintain                        # 6 M rows in 60 files; 1,000 small commits
//! FRAZIL_BENCH_ROWS=600000 FRAZIL_BENCH_COMMITS=200 cargo bench --bench lake_maintain
//! ```
//!
//! First: small files become large ones; megabytes of the inputs a second, of wall time and of
//! processor time. Then a hot table: upserts of ten rows one after the other, with and without the
//! maintenance that passes do, and what a commit and a query cost at the end.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use frazil::delta::Watermark;
use frazil::lake::{CatalogSettings, Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec};
use frazil::maintain::{self, OrphanFiles, Policy};
use frazil::memory::Budget;
use frazil::table::TableId;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Rows of one small file.
const FILE_ROWS: usize = 100_000;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let number = |name: &str, usual: usize| std::env::var(name).map_or(Ok(usual), |text| text.parse());
    let rows = number("FRAZIL_BENCH_ROWS", 6_000_000)?;
    let commits = number("FRAZIL_BENCH_COMMITS", 1_000)?;
    compaction(rows).await?;
    for maintained in [false, true] {
        hot(commits, maintained).await?;
    }
    Ok(())
}

fn budget() -> Result<Budget, frazil::Error> {
    Budget::new(256 << 20, 2)
}

async fn table(directory: &tempfile::TempDir) -> Result<LakeTable, Error> {
    let settings = LakeSettings {
        warehouse: directory.path().to_string_lossy().into_owned(),
        catalog: CatalogSettings::default(),
        options: BTreeMap::new(),
    };
    let spec = TableSpec {
        id: TableId::new("bench", "lineitem"),
        schema: schema(),
        mode: TableMode::Merge,
        key: vec!["orderkey".to_owned(), "linenumber".to_owned()],
        partition_by: Vec::new(),
        sort_by: Vec::new(),
        format_version: None,
    };
    Ok(Lake::open(&settings).await?.create(spec).await?)
}

async fn compaction(rows: usize) -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let mut table = table(&directory).await?;
    let mut files = Vec::new();
    for first in (0..rows).step_by(FILE_ROWS) {
        let all: Vec<usize> = (first..(first + FILE_ROWS).min(rows)).collect();
        let mut writer = table.writer(budget()?)?;
        writer.write(&batch(&all)?).await?;
        files.extend(writer.finish().await?);
    }
    commit(&mut table, files, Effect::Append).await?;
    let (began, cpu) = (Instant::now(), processor_time());
    let report = maintain::maintain(&mut table, &Policy::default(), OrphanFiles::Leave, budget()?).await?;
    let (wall, cpu) = (began.elapsed().as_secs_f64(), processor_time() - cpu);
    let megabytes = report.bytes as f64 / 1e6;
    println!(
        "compaction: {} files as {}, {megabytes:.0} MB in {wall:.2} s: {:.0} MB/s, {:.0} MB a second of one core, {:.0} rows/s",
        report.files_before,
        report.files_after,
        megabytes / wall,
        megabytes / cpu,
        rows as f64 / wall
    );
    Ok(())
}

async fn hot(commits: usize, maintained: bool) -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let mut table = table(&directory).await?;
    let rows = FILE_ROWS;
    let all: Vec<usize> = (0..rows).collect();
    let mut writer = table.writer(budget()?)?;
    writer.write(&batch(&all)?).await?;
    let files = writer.finish().await?;
    commit(&mut table, files, Effect::Append).await?;
    let (mut times, mut maintenance) = (Vec::with_capacity(commits), Duration::ZERO);
    for number in 0..commits {
        let began = Instant::now();
        let some: Vec<usize> = (0..10).map(|n| (number * 7919 + n * 104_729) % rows).collect();
        let mut writer = table.writer(budget()?)?;
        writer.write(&batch(&some)?).await?;
        let files = writer.finish().await?;
        commit(&mut table, files, Effect::Upsert).await?;
        times.push(began.elapsed());
        if maintained {
            let began = Instant::now();
            maintain::after_pass(&mut table, &Policy::default(), budget()?).await?;
            maintenance += began.elapsed();
        }
    }
    let files = table.files(None).await?.len();
    let began = Instant::now();
    let context = SessionContext::new();
    context.register_table("t", table.provider(None).await?)?;
    let counted =
        context.sql("select count(distinct orderkey * 8 + linenumber) from t").await?.collect().await?;
    assert_eq!(counted[0].num_rows(), 1);
    let query = began.elapsed();
    let tenth = (commits / 10).max(1);
    let mean = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64() * 1e3 / times.len() as f64;
    println!(
        "{commits} commits of 10 rows, {}: the first {:.1} ms each, the last {:.1} ms, maintenance {:.1} ms a commit; \
         {files} files, a query {:.0} ms",
        if maintained { "maintained" } else { "left alone" },
        mean(&times[..tenth]),
        mean(&times[commits - tenth..]),
        maintenance.as_secs_f64() * 1e3 / commits as f64,
        query.as_secs_f64() * 1e3
    );
    Ok(())
}

async fn commit(
    table: &mut LakeTable,
    files: Vec<frazil::lake::WrittenFile>,
    effect: Effect,
) -> Result<(), Error> {
    let from = table.position()?.map(|position| position.watermark);
    let to = Watermark::new(format!("{}", table.next_sequence_number()));
    table.commit(Change { files, effect, from, to, summary: BTreeMap::new() }, budget()?).await?;
    Ok(())
}

/// Seconds that this process has used, all threads together.
fn processor_time() -> f64 {
    /// Ticks of the kernel's clock a second, as `/proc` counts on Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / TICKS
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

fn batch(rows: &[usize]) -> Result<RecordBatch, Error> {
    let decimal = |value: fn(usize) -> i128| -> Result<ArrayRef, Error> {
        let values = Decimal128Array::from_iter_values(rows.iter().map(|row| value(*row)));
        Ok(Arc::new(values.with_precision_and_scale(15, 2)?))
    };
    let text = |value: fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| value(*row))))
    };
    let columns = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| (row / 4) as i64))) as ArrayRef,
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| (row % 4) as i32 + 1))),
        decimal(|row| (row % 50) as i128 * 100)?,
        decimal(|row| (row * 7919 % 10_000_000) as i128)?,
        Arc::new(Date32Array::from_iter_values(rows.iter().map(|row| (row * 31 % 2500) as i32))),
        text(|row| ["AIR", "MAIL", "RAIL", "SHIP", "TRUCK"][row % 5].to_owned()),
        text(|row| format!("carefully {:x} of it", row.wrapping_mul(0x9E37_79B9_7F4A_7C15))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
