//! How far is a load into Postgres from the best that `psql` can do?
//!
//! Loads rows like those of TPC-H `lineitem` into an empty table, then changes a tenth of them; each
//! once through the target and once through the statements that one would write by hand: `COPY` and
//! `ADD PRIMARY KEY`; `COPY` into a sorted staging table and `INSERT … ON CONFLICT`. The rounds take
//! turns on the same server, so that only the ratio counts.
//!
//! `FRAZIL_BENCH_POSTGRES=postgres://… cargo bench --bench postgres_load`; an empty database is best.
//! `FRAZIL_BENCH_ROWS` (6,000,000) and `FRAZIL_BENCH_ROUNDS` (3) change its size.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Int8Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use frazil::connection::Connection;
use frazil::connectors;
use frazil::delta::SnapshotId;
use frazil::table::{OP_COLUMN, TableId};
use frazil::target::{Applied, Deletes, Merge, Strategy, TargetTable};
use futures::{SinkExt, StreamExt};
use tokio_postgres::{Client, NoTls};

const BATCH_ROWS: i64 = 65_536;
const CHUNK: usize = 256 << 10;
/// One row in this many changes.
const CHANGED: i64 = 10;
const KEY: &str = "l_orderkey, l_linenumber";

#[tokio::main]
async fn main() {
    let Ok(url) = std::env::var("FRAZIL_BENCH_POSTGRES") else {
        println!("skipped: FRAZIL_BENCH_POSTGRES names no server");
        return;
    };
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rows, rounds) = (number("FRAZIL_BENCH_ROWS", 6_000_000), number("FRAZIL_BENCH_ROUNDS", 3) as usize);
    let (client, driver) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(driver);
    let target = connectors::target(&Connection::parse("bench", &url).unwrap()).unwrap();

    let mut seconds: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        client.batch_execute("DROP TABLE IF EXISTS ours, theirs, frazil_applied; CHECKPOINT").await.unwrap();
        let table = table("ours");
        target.prepare(&table).await.unwrap();
        let started = Instant::now();
        target.apply(merge(&table, None, 1, rows, 1, 0)).await.unwrap();
        seconds[0].push(started.elapsed().as_secs_f64());

        // The bytes that psql would read from a file.
        let everything = download(&client, "COPY ours TO STDOUT (FORMAT binary)").await;
        client.batch_execute("CREATE TABLE theirs (LIKE ours); CHECKPOINT").await.unwrap();
        let started = Instant::now();
        client.batch_execute("BEGIN").await.unwrap();
        upload(&client, "COPY theirs FROM STDIN (FORMAT binary)", everything).await;
        client.batch_execute(&format!("ALTER TABLE theirs ADD PRIMARY KEY ({KEY}); COMMIT")).await.unwrap();
        seconds[1].push(started.elapsed().as_secs_f64());

        for statement in ["VACUUM ANALYZE ours", "VACUUM ANALYZE theirs", "CHECKPOINT"] {
            client.batch_execute(statement).await.unwrap();
        }
        let started = Instant::now();
        let stats = target.apply(merge(&table, Some(1), 2, rows, CHANGED, 1)).await.unwrap();
        seconds[2].push(started.elapsed().as_secs_f64());
        assert_eq!(stats.upserted, (rows as u64).div_ceil(CHANGED as u64));

        let changed = format!(
            "COPY (SELECT * FROM ours WHERE updated_at >= '2025-01-01' ORDER BY {KEY}) TO STDOUT (FORMAT binary)"
        );
        let changed = download(&client, &changed).await;
        let sets: Vec<_> = table
            .schema
            .fields()
            .iter()
            .filter(|field| !table.key.contains(field.name()))
            .map(|field| format!("{0} = excluded.{0}", field.name()))
            .collect();
        client.batch_execute("CHECKPOINT").await.unwrap();
        let started = Instant::now();
        client
            .batch_execute("BEGIN; CREATE TEMPORARY TABLE staging (LIKE theirs) ON COMMIT DROP")
            .await
            .unwrap();
        upload(&client, "COPY staging FROM STDIN (FORMAT binary)", changed).await;
        client
            .batch_execute(&format!(
                "ANALYZE staging; INSERT INTO theirs SELECT * FROM staging ORDER BY {KEY}
                 ON CONFLICT ({KEY}) DO UPDATE SET {}; COMMIT",
                sets.join(", ")
            ))
            .await
            .unwrap();
        seconds[3].push(started.elapsed().as_secs_f64());

        let differences = "SELECT count(*) FROM (
            (SELECT * FROM ours EXCEPT ALL SELECT * FROM theirs)
            UNION ALL (SELECT * FROM theirs EXCEPT ALL SELECT * FROM ours)) AS d";
        if round == 0 {
            let row = client.query_one(differences, &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), 0, "both ways must bring the same rows");
        }
        println!(
            "round {round}: first load {:.2} s, by hand {:.2} s; change {:.2} s, by hand {:.2} s",
            seconds[0][round], seconds[1][round], seconds[2][round], seconds[3][round]
        );
    }
    let best = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
    let [first, first_by_hand, change, change_by_hand] = seconds.map(|of| best(&of));
    println!("first load of {rows} rows: {first:.2} s, {:.2} x by hand", first / first_by_hand);
    println!("change of {} rows: {change:.2} s, {:.2} x by hand", rows / CHANGED, change / change_by_hand);
}

fn table(name: &str) -> TargetTable {
    TargetTable {
        id: TableId::new("public", name),
        schema: schema(),
        key: vec!["l_orderkey".into(), "l_linenumber".into()],
        deletes: Deletes::Hard,
        versions: false,
    }
}

fn schema() -> SchemaRef {
    let decimal = DataType::Decimal128(12, 2);
    let column = |name: &str, arrow: &DataType| Field::new(name, arrow.clone(), false);
    let (int, text, date) = (DataType::Int64, DataType::Utf8, DataType::Date32);
    Schema::new(vec![
        column("l_orderkey", &int),
        column("l_partkey", &int),
        column("l_suppkey", &int),
        column("l_linenumber", &DataType::Int32),
        column("l_quantity", &decimal),
        column("l_extendedprice", &decimal),
        column("l_discount", &decimal),
        column("l_tax", &decimal),
        column("l_returnflag", &text),
        column("l_linestatus", &text),
        column("l_shipdate", &date),
        column("l_commitdate", &date),
        column("l_receiptdate", &date),
        column("l_shipinstruct", &text),
        column("l_shipmode", &text),
        column("l_comment", &text),
        column("updated_at", &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
    ])
    .into()
}

/// Every `step`-th of `rows` rows, in key order, in their `version`. Made as they are asked for: that
/// takes the place of reading them from the lake, and is paid by our side alone.
fn merge(table: &TargetTable, from: Option<i64>, to: i64, rows: i64, step: i64, version: i64) -> Merge {
    let mut fields = table.schema.fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let made = schema.clone();
    let starts = (0..rows).step_by((BATCH_ROWS * step) as usize);
    let batches = starts.map(move |start| {
        let numbers: Vec<i64> = (start..rows.min(start + BATCH_ROWS * step)).step_by(step as usize).collect();
        Ok(batch(&made, &numbers, version))
    });
    let shows = |snapshot| Applied::new(uuid::Uuid::from_u128(1), SnapshotId(snapshot));
    Merge {
        stream: "bench".into(),
        table: table.clone(),
        from: from.map(shows),
        to: shows(to),
        turn: None,
        strategy: Strategy::Merge,
        changes: Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches))),
        rows: None,
    }
}

fn batch(schema: &SchemaRef, numbers: &[i64], version: i64) -> RecordBatch {
    const COMMENT: &str = "carefully final deposits detect slyly again";
    const YEAR_2024: i64 = 1_704_067_200_000_000;
    let int = |value: fn(i64) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(numbers.iter().map(|n| value(*n))))
    };
    let decimal = |modulus: i64, factor: i64| -> ArrayRef {
        let values = numbers.iter().map(|n| i128::from(n * factor % modulus + version));
        Arc::new(Decimal128Array::from_iter_values(values).with_precision_and_scale(12, 2).unwrap())
    };
    let text = |words: &'static [&'static str]| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(numbers.iter().map(|n| words[*n as usize % words.len()])))
    };
    let date = |factor: i64| -> ArrayRef {
        Arc::new(Date32Array::from_iter_values(numbers.iter().map(|n| 8_035 + (n * factor % 2_500) as i32)))
    };
    let comments = numbers.iter().map(|n| &COMMENT[..10 + (n * 7_919 % 34) as usize]);
    let stamps = numbers.iter().map(|n| YEAR_2024 + n + version * 400 * 86_400_000_000);
    let columns: Vec<ArrayRef> = vec![
        int(|n| n / 4),
        int(|n| n * 7_919 % 200_000),
        int(|n| n * 104_729 % 10_000),
        Arc::new(Int32Array::from_iter_values(numbers.iter().map(|n| (n % 4 + 1) as i32))),
        decimal(5_000, 100),
        decimal(9_500_000, 7_907),
        decimal(11, 1),
        decimal(9, 1),
        text(&["A", "N", "R"]),
        text(&["O", "F"]),
        date(1),
        date(3),
        date(7),
        text(&["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"]),
        text(&["TRUCK", "MAIL", "REG AIR", "SHIP", "FOB", "RAIL", "AIR"]),
        Arc::new(StringArray::from_iter_values(comments)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(stamps).with_timezone("UTC")),
        Arc::new(Int8Array::from_iter_values(std::iter::repeat_n(0, numbers.len()))),
    ];
    RecordBatch::try_new(schema.clone(), columns).unwrap()
}

async fn download(client: &Client, statement: &str) -> Vec<Bytes> {
    client.copy_out(statement).await.unwrap().map(|chunk| chunk.unwrap()).collect().await
}

/// Sends rows as psql does from a file, in chunks.
async fn upload(client: &Client, statement: &str, rows: Vec<Bytes>) {
    let sink = client.copy_in::<_, Bytes>(statement).await.unwrap();
    let mut sink = std::pin::pin!(sink);
    let mut chunk = Vec::with_capacity(CHUNK * 2);
    for row in rows {
        chunk.extend_from_slice(&row);
        if chunk.len() >= CHUNK {
            sink.feed(Bytes::from(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK * 2))))
                .await
                .unwrap();
        }
    }
    sink.feed(Bytes::from(chunk)).await.unwrap();
    sink.finish().await.unwrap();
}
