//! How fast do rows become a durable, described lake file, beside the bare Parquet encoder?
//!
//! `cargo bench --bench lake_write [-- ROWS]` prints rows per second for a table shaped like TPC-H
//! `lineitem`, and how long commits take as a table gets older.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Date32Array, Decimal128Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{Int32Array, TimestampMicrosecondArray};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec};
use frazil::memory::Budget;
use frazil::table::TableId;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

const BATCH: usize = 65_536;

/// A small generator: the same rows in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit) as i64
    }
}

fn lineitem(first: usize, rows: usize) -> RecordBatch {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (first as u64 + 1));
    let words =
        ["carefully", "quickly", "final", "deposits", "sleep", "furiously", "regular", "the", "pending"];
    let decimal = |values: Vec<i128>| -> ArrayRef {
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(15, 2).expect("fits"))
    };
    let pick = |random: &mut Random, from: &[&str]| -> ArrayRef {
        let values = (0..rows).map(|_| from[random.below(from.len() as u64) as usize]);
        Arc::new(StringArray::from_iter_values(values))
    };
    let orderkey = Int64Array::from_iter_values((first..first + rows).map(|row| (row / 4) as i64));
    let linenumber = Int32Array::from_iter_values((first..first + rows).map(|row| (row % 4) as i32));
    let mut numbers = |limit| Int64Array::from_iter_values((0..rows).map(|_| random.below(limit)));
    let (partkey, suppkey) = (numbers(200_000), numbers(10_000));
    let mut money = |limit| decimal((0..rows).map(|_| i128::from(random.below(limit))).collect());
    let (quantity, price, discount, tax) = (money(5000), money(10_000_000), money(11), money(9));
    let flag = pick(&mut random, &["A", "N", "R"]);
    let status = pick(&mut random, &["O", "F"]);
    let mut days =
        || Arc::new(Date32Array::from_iter_values((0..rows).map(|_| 8000 + random.below(2500) as i32)));
    let (ship, commit, receipt) = (days(), days(), days());
    let instruct = pick(&mut random, &["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"]);
    let mode = pick(&mut random, &["AIR", "FOB", "MAIL", "RAIL", "REG AIR", "SHIP", "TRUCK"]);
    let comment = StringArray::from_iter_values((0..rows).map(|_| {
        (0..4).map(|_| words[random.below(words.len() as u64) as usize]).collect::<Vec<_>>().join(" ")
    }));
    let updated = TimestampMicrosecondArray::from_iter_values(
        (0..rows).map(|_| 1_700_000_000_000_000 + random.below(1 << 40)),
    );
    RecordBatch::try_from_iter_with_nullable([
        ("l_orderkey", Arc::new(orderkey) as ArrayRef, false),
        ("l_linenumber", Arc::new(linenumber), false),
        ("l_partkey", Arc::new(partkey), true),
        ("l_suppkey", Arc::new(suppkey), true),
        ("l_quantity", quantity, true),
        ("l_extendedprice", price, true),
        ("l_discount", discount, true),
        ("l_tax", tax, true),
        ("l_returnflag", flag, true),
        ("l_linestatus", status, true),
        ("l_shipdate", ship, true),
        ("l_commitdate", commit, true),
        ("l_receiptdate", receipt, true),
        ("l_shipinstruct", instruct, true),
        ("l_shipmode", mode, true),
        ("l_comment", Arc::new(comment), true),
        ("updated_at", Arc::new(updated.with_timezone("UTC")), true),
    ])
    .expect("columns of one length")
}

async fn table(lake: &Lake, name: &str, mode: TableMode) -> LakeTable {
    let spec = TableSpec {
        id: TableId::new("bench", name),
        schema: lineitem(0, 1).schema(),
        mode,
        key: vec!["l_orderkey".into(), "l_linenumber".into()],
        partition_by: Vec::new(),
        format_version: None,
        sort_by: Vec::new(),
    };
    lake.create(spec).await.expect("a new table")
}

/// What `work` over all batches takes, in time and processor seconds; batches are made outside of it.
/// The last call, with nothing, ends the work.
async fn timed(rows: usize, mut work: impl AsyncFnMut(Option<&RecordBatch>)) -> (Duration, f64) {
    let mut taken = (Duration::ZERO, 0.0);
    let starts = (0..rows).step_by(BATCH).map(Some).chain([None]);
    for first in starts {
        let batch = first.map(|first| lineitem(first, BATCH.min(rows - first)));
        let (started, before) = (Instant::now(), cpu());
        work(batch.as_ref()).await;
        taken.0 += started.elapsed();
        taken.1 += cpu() - before;
    }
    taken
}

/// Processor seconds of this process so far: unlike the clock, they do not depend on the neighbours.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn say(what: &str, rows: usize, bytes: u64, taken: (Duration, f64)) {
    let (wall, cpu) = (taken.0.as_secs_f64(), taken.1);
    let speed = rows as f64 / wall / 1e6;
    eprintln!("{what:40} {wall:6.2} s {cpu:6.2} cpu s {speed:6.2} M rows/s {:7.1} MB", bytes as f64 / 1e6);
}

#[tokio::main]
async fn main() {
    let rows = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(2_000_000);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = LakeSettings {
        warehouse: folder.path().display().to_string(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let lake = Lake::open(&settings).await.expect("a lake");
    let budget = Budget::new(256 << 20, 2).expect("enough");

    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let path = folder.path().join("bare.parquet");
    let file = std::fs::File::create(&path).expect("a file");
    let bare = ArrowWriter::try_new(file, lineitem(0, 1).schema(), Some(properties)).expect("a writer");
    let mut bare = Some(bare);
    let taken = timed(rows, async |batch| match batch {
        Some(batch) => bare.as_mut().expect("open").write(batch).expect("encoded"),
        None => drop(bare.take().expect("open").close().expect("closed")),
    });
    let taken = taken.await;
    say("bare ArrowWriter, zstd(1), defaults", rows, std::fs::metadata(&path).expect("there").len(), taken);

    for (name, mode) in [("append", TableMode::Append), ("merge", TableMode::Merge)] {
        let table = table(&lake, name, mode).await;
        let mut writer = Some(table.writer(budget).expect("a writer"));
        let mut bytes = 0;
        let taken = timed(rows, async |batch| match batch {
            Some(batch) => writer.as_mut().expect("open").write(batch).await.expect("written"),
            None => {
                let files = writer.take().expect("open").finish().await.expect("finished");
                bytes = files.iter().map(|written| written.file.file_size_in_bytes()).sum();
            }
        });
        let taken = taken.await;
        say(&format!("lake writer, {name} table, durable"), rows, bytes, taken);
    }

    let mut table = table(&lake, "commits", TableMode::Append).await;
    let mut from = None;
    let mut slowest = Duration::ZERO;
    let mut hundred = Instant::now();
    for i in 1..=300 {
        let started = Instant::now();
        let mut writer = table.writer(budget).expect("a writer");
        writer.write(&lineitem(i, 10)).await.expect("written");
        let files = writer.finish().await.expect("finished");
        let to = Watermark::new(i.to_string());
        let change = Change { files, effect: Effect::Append, from, to: to.clone(), summary: BTreeMap::new() };
        table.commit(change, budget).await.expect("committed");
        from = Some(to);
        slowest = slowest.max(started.elapsed());
        if i % 100 == 0 {
            eprintln!(
                "commits {:3}..{i}: {:.1} ms each, slowest {:.0} ms",
                i - 99,
                hundred.elapsed().as_secs_f64() * 10.0,
                slowest.as_secs_f64() * 1e3
            );
            (hundred, slowest) = (Instant::now(), Duration::ZERO);
        }
    }
}
