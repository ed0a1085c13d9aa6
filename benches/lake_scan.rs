//! How fast is a query over a lake table, and what do hidden rows cost it?
//!
//! Makes a table of 6 million rows shaped like TPC-H `lineitem` in a temporary directory, then times
//! an aggregation over most columns (as Q1), a selective one (as Q6), a look-up by key, `count(*)`,
//! and the delta of a small change; each before and after one row in a hundred is updated.
//!
//! `cargo bench --bench lake_scan`; `ROWS=600000` for a smaller table.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec};
use frazil::memory::Budget;
use frazil::table::TableId;
use frazil::{Result, merge, query};
use futures::TryStreamExt;

const BATCH: i64 = 65_536;
/// Runs of each query, of which the best counts: the first fills caches.
const RUNS: usize = 4;

const QUERIES: [(&str, &str); 5] = [
    (
        "as Q1",
        "select l_returnflag, l_linestatus, sum(l_quantity), sum(l_extendedprice), \
         sum(l_extendedprice * (1 - l_discount)), avg(l_discount), count(*) from lineitem \
         where l_shipdate <= date '1998-09-02' group by 1, 2 order by 1, 2",
    ),
    (
        "as Q6",
        "select sum(l_extendedprice * l_discount) from lineitem where l_shipdate >= date '1994-01-01' \
         and l_shipdate < date '1995-01-01' and l_discount between 0.05 and 0.07 and l_quantity < 24",
    ),
    ("one key", "select * from lineitem where l_orderkey = 777777"),
    ("ten last", "select * from lineitem order by l_orderkey desc limit 10"),
    ("count(*)", "select count(*) from lineitem"),
];

#[tokio::main]
async fn main() -> Result<()> {
    let rows = std::env::var("ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(6_000_000_i64);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let settings = LakeSettings {
        warehouse: directory.path().display().to_string(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let budget = Budget::new(256 << 20, 2)?;
    let lake = Lake::open(&settings).await?;
    let spec = TableSpec {
        id: TableId::new("main", "lineitem"),
        schema: schema(),
        mode: TableMode::Merge,
        key: vec!["l_orderkey".to_owned(), "l_linenumber".to_owned()],
        partition_by: Vec::new(),
        format_version: None,
        sort_by: Vec::new(),
    };
    let mut table = lake.create(spec).await?;
    write(&mut table, 0, rows, 1, Effect::Append, budget).await?;
    queries(&lake, budget, &format!("{rows} rows")).await?;

    let before = table.current();
    write(&mut table, 0, rows, 100, Effect::Upsert, budget).await?;
    queries(&lake, budget, "1 % of rows updated").await?;

    let started = Instant::now();
    let delta = table.delta(before, table.current().expect("there are rows")).await?;
    let planned = started.elapsed();
    let runtime = merge::runtime(budget, lake.stores())?;
    let mut changes = merge::collapse(&delta, &table.key(), runtime).await?;
    let mut count = 0;
    while let Some(batch) = changes.try_next().await? {
        count += batch.num_rows();
    }
    println!(
        "delta of {count} changes: {:.1} ms, of which {:.1} ms planning",
        ms(started),
        planned.as_secs_f64() * 1e3
    );
    Ok(())
}

async fn queries(lake: &Lake, budget: Budget, title: &str) -> Result<()> {
    println!("{title}");
    for (name, text) in QUERIES {
        let mut best = f64::INFINITY;
        let mut found = 0;
        for _ in 0..RUNS {
            let started = Instant::now();
            let session = query::session(lake, budget, None).await?;
            let batches = query::sql(&session, text).await?.collect().await?;
            found = batches.iter().map(RecordBatch::num_rows).sum();
            best = best.min(ms(started));
        }
        println!("  {name:10} {best:8.1} ms  {found} rows");
    }
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Commits every `step`-th row.
async fn write(
    table: &mut LakeTable,
    from: i64,
    to: i64,
    step: i64,
    effect: Effect,
    budget: Budget,
) -> Result<()> {
    let mut writer = table.writer(budget)?;
    let mut at = from;
    while at < to {
        let end = to.min(at + BATCH * step);
        writer.write(&batch((at..end).step_by(step as usize).collect())).await?;
        at = end;
    }
    let change = Change {
        files: writer.finish().await?,
        from: table.position()?.map(|position| position.watermark),
        to: Watermark::new(format!("{effect:?}")),
        effect,
        summary: BTreeMap::new(),
    };
    table.commit(change, budget).await?;
    Ok(())
}

fn schema() -> SchemaRef {
    let decimal = DataType::Decimal128(12, 2);
    Arc::new(Schema::new(vec![
        Field::new("l_orderkey", DataType::Int64, false),
        Field::new("l_linenumber", DataType::Int32, false),
        Field::new("l_partkey", DataType::Int64, false),
        Field::new("l_quantity", decimal.clone(), false),
        Field::new("l_extendedprice", decimal.clone(), false),
        Field::new("l_discount", decimal, false),
        Field::new("l_returnflag", DataType::Utf8, false),
        Field::new("l_linestatus", DataType::Utf8, false),
        Field::new("l_shipdate", DataType::Date32, false),
        Field::new("l_comment", DataType::Utf8, false),
    ]))
}

/// Rows made from their numbers, so that every run has the same.
fn batch(rows: Vec<i64>) -> RecordBatch {
    // A cheap scramble: neighbours get unlike values.
    let mixed =
        |row: i64, below: i64| (row.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64) >> 17).rem_euclid(below);
    let longs = |of: &dyn Fn(i64) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| of(*row))))
    };
    let decimals = |of: &dyn Fn(i64) -> i64| -> ArrayRef {
        let values = Decimal128Array::from_iter_values(rows.iter().map(|row| of(*row).into()));
        Arc::new(values.with_precision_and_scale(12, 2).expect("it fits"))
    };
    let texts = |of: &dyn Fn(i64) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| of(*row))))
    };
    let columns: Vec<ArrayRef> = vec![
        longs(&|row| row / 4),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| (row % 4) as i32))),
        longs(&|row| mixed(row, 200_000)),
        decimals(&|row| (1 + mixed(row, 50)) * 100),
        decimals(&|row| 90_000 + mixed(row + 1, 10_000_000)),
        decimals(&|row| mixed(row + 2, 11)),
        texts(&|row| ["A", "N", "R"][mixed(row + 3, 3) as usize].to_owned()),
        texts(&|row| ["F", "O"][mixed(row + 4, 2) as usize].to_owned()),
        Arc::new(Date32Array::from_iter_values(rows.iter().map(|row| 8_036 + mixed(row + 5, 2_526) as i32))),
        texts(&|row| format!("carefully final packages {:x}", mixed(row + 6, 1 << 40))),
    ];
    RecordBatch::try_new(schema(), columns).expect("columns of one length")
}
