//! Postgres as a source, against a real server: every type, and every rule by which no row is lost.

use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use expect_test::{Expect, expect};
use futures::{StreamExt, TryStreamExt};
use tokio_postgres::Client;

use frazil::connection::Connection;
use frazil::connectors;
use frazil::delta::Watermark;
use frazil::source::{
    BeyondHorizon, ChangeDetection, NullCursor, OutOfRange, ReadPlan, ReadRequest, UnboundedNumeric,
    ValuePolicy,
};
use frazil::table::TableId;
use frazil::{Error, ErrorKind};

use crate::fixture::{self, Database};

/// What one pass gave.
pub(crate) struct Pass {
    pub(crate) plan: ReadPlan,
    /// Rows as text, in order, columns joined by ` | `.
    pub(crate) rows: Vec<String>,
    pub(crate) resume: Watermark,
    pub(crate) portions: usize,
    pub(crate) batches: Vec<RecordBatch>,
}

pub(crate) fn request(table: &str) -> ReadRequest {
    fixture::read_request(table.parse().unwrap(), ChangeDetection::Auto)
}

pub(crate) async fn pass(db: &Database, request: ReadRequest) -> Result<Pass, Error> {
    pass_at(&db.url(), request).await
}

pub(crate) async fn pass_at(url: &str, request: ReadRequest) -> Result<Pass, Error> {
    let source = connectors::source(&Connection::parse("shop", url)?)?;
    let mut reading = source.open(request).await?;
    let mut batches = Vec::new();
    let (mut resume, mut portions, mut complete) = (None, 0, false);
    while let Some(portion) = reading.next().await? {
        assert!(!complete, "a portion follows the last");
        let parts = portion.streams.into_iter().map(|rows| rows.try_collect::<Vec<_>>());
        for part in futures::future::try_join_all(parts).await? {
            batches.extend(part);
        }
        (resume, complete) = (Some(portion.resume), portion.complete);
        portions += 1;
    }
    assert!(complete, "the reading ended without its last portion");
    let mut rows: Vec<_> = batches.iter().flat_map(text).collect();
    rows.sort();
    Ok(Pass { plan: reading.plan().clone(), rows, resume: resume.unwrap(), portions, batches })
}

pub(crate) fn text(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("∅");
    let columns: Vec<_> =
        batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
    (0..batch.num_rows())
        .map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | "))
        .collect()
}

pub(crate) fn after(request: &ReadRequest, pass: &Pass) -> ReadRequest {
    ReadRequest { from: Some(pass.resume.clone()), ..request.clone() }
}

pub(crate) fn says(pass: &Pass, words: &str) -> bool {
    pass.plan.notes.iter().any(|note| note.contains(words))
}

macro_rules! database {
    ($name:literal) => {{
        let Some(pg) = fixture::postgres().await else { return };
        let db = pg.database($name).await;
        (pg, db)
    }};
}

/// One column of values through a read; what the server calls the type, what we make of it, how exact.
async fn check_type(db: &Database, of: &str, values: &[&str], policy: ValuePolicy, expect: Expect) {
    let list =
        values.iter().enumerate().map(|(i, value)| format!("({i}, {value}::{of})")).collect::<Vec<_>>();
    db.run(&format!(
        "drop table if exists t; create table t (id int primary key, v {of}); insert into t values {}",
        list.join(", ")
    ))
    .await;
    let request = ReadRequest { values: policy, change: ChangeDetection::Full, ..request("public.t") };
    let got = match pass(db, request).await {
        Err(error) => format!("{}: {error}", error.kind()),
        Ok(pass) => {
            let mut rows = pass.rows.clone();
            rows.sort_by_key(|row| row.split(" | ").next().unwrap().parse::<i32>().unwrap());
            let values: Vec<_> = rows.iter().map(|row| row.split_once(" | ").unwrap().1).collect();
            let field = pass.plan.schema.field(1);
            let notes =
                pass.plan.notes.iter().filter(|note| note.contains("replaced")).cloned().collect::<Vec<_>>();
            format!("{}: {} {}", field.data_type(), values.join(" · "), notes.join(""))
        }
    };
    expect.assert_eq(got.trim_end());
}

#[tokio::test]
async fn scalars_travel_exactly() {
    let (_pg, db) = database!("scalars");
    db.run("create extension citext; create extension hstore; create extension ltree").await;
    db.run(
        "create type mood as enum ('sad', 'happy'); create domain price as numeric(10,2) check (value >= 0)",
    )
    .await;
    let check = |of, values, expect| check_type(&db, of, values, ValuePolicy::default(), expect);
    check("bool", &["true", "false", "null"], expect![["Boolean: true · false · ∅"]]).await;
    check("int2", &["'-32768'", "32767"], expect![["Int32: -32768 · 32767"]]).await;
    check("int4", &["'-2147483648'", "2147483647", "null"], expect![["Int32: -2147483648 · 2147483647 · ∅"]])
        .await;
    check(
        "int8",
        &["'-9223372036854775808'", "9223372036854775807"],
        expect![["Int64: -9223372036854775808 · 9223372036854775807"]],
    )
    .await;
    check("oid", &["4294967295"], expect![["Int64: 4294967295"]]).await;
    check("xid8", &["'18446744073709551615'"], expect![["Decimal128(20, 0): 18446744073709551615"]]).await;
    check(
        "float4",
        &["'NaN'", "'Infinity'", "3.4028235e38", "1e-45"],
        expect![["Float32: NaN · inf · 3.4028235e38 · 1e-45"]],
    )
    .await;
    check("float8", &["'NaN'", "'-Infinity'", "0.1", "'-0'"], expect![["Float64: NaN · -inf · 0.1 · -0.0"]])
        .await;
    check(
        "numeric(12,2)",
        &["1234567890.12", "'-0.01'", "0", "null"],
        expect![["Decimal128(12, 2): 1234567890.12 · -0.01 · 0.00 · ∅"]],
    )
    .await;
    check(
        "numeric(38,38)",
        &["0.99999999999999999999999999999999999999"],
        expect![["Decimal128(38, 38): 0.99999999999999999999999999999999999999"]],
    )
    .await;
    check(
        "numeric(38,0)",
        &["99999999999999999999999999999999999999", "'-10000'"],
        expect![["Decimal128(38, 0): 99999999999999999999999999999999999999 · -10000"]],
    )
    .await;
    check("numeric(5,-2)", &["1234567", "100"], expect![["Decimal128(7, 0): 1234600 · 100"]]).await;
    check("numeric(3,5)", &["0.00123"], expect![["Decimal128(5, 5): 0.00123"]]).await;
    check(
        "numeric",
        &["1.10", "1e50", "'NaN'", "'-Infinity'"],
        expect![["Utf8: 1.10 · 100000000000000000000000000000000000000000000000000 · NaN · -Infinity"]],
    )
    .await;
    check("numeric(50,2)", &["1.1"], expect![["Utf8: 1.10"]]).await;
    check("price", &["12.5"], expect![["Decimal128(10, 2): 12.50"]]).await;
    check(
        "money",
        &["12.34", "'-92233720368547758.08'"],
        expect![["Decimal128(20, 2): 12.34 · -92233720368547758.08"]],
    )
    .await;
    check("text", &["''", "'ü€😀'", "E'a\\tb'"], expect![["Utf8:  · ü€😀 · a\tb"]]).await;
    check("char(4)", &["'ab'"], expect![["Utf8: ab  "]].into_inner_trimmed()).await;
    check("varchar(3)", &["'abc'"], expect![["Utf8: abc"]]).await;
    check("\"char\"", &["'x'"], expect![["Utf8: x"]]).await;
    check("name", &["'n'"], expect![["Utf8: n"]]).await;
    check("citext", &["'MiXed'"], expect![["Utf8: MiXed"]]).await;
    check("mood", &["'happy'", "null"], expect![["Utf8: happy · ∅"]]).await;
    check("json", &["'{\"b\": 1,  \"a\":2}'"], expect![[r#"Utf8: {"b": 1,  "a":2}"#]]).await;
    check("jsonb", &["'{\"b\": 1,  \"a\":2}'"], expect![[r#"Utf8: {"a": 2, "b": 1}"#]]).await;
    check("bytea", &["'\\x00ff'", "''"], expect![["Binary: 00ff · "]].into_inner_trimmed()).await;
    check(
        "uuid",
        &["'00112233-4455-6677-8899-aabbccddeeff'"],
        expect![["FixedSizeBinary(16): 00112233445566778899aabbccddeeff"]],
    )
    .await;
    check(
        "date",
        &["'2000-02-29'", "'1969-12-31'", "'0044-03-15 BC'"],
        expect![["Date32: 2000-02-29 · 1969-12-31 · -0043-03-15"]],
    )
    .await;
    check("time", &["'23:59:59.999999'", "'00:00'"], expect![["Time64(µs): 23:59:59.999999 · 00:00:00"]])
        .await;
    check(
        "timestamp",
        &["'1999-12-31 23:59:59.999999'", "'0044-03-15 BC'"],
        expect![["Timestamp(µs): 1999-12-31T23:59:59.999999 · -0043-03-15T00:00:00"]],
    )
    .await;
    check(
        "timestamptz",
        &["'2024-03-31 02:30:00+02'"],
        expect![[r#"Timestamp(µs, "UTC"): 2024-03-31T00:30:00Z"#]],
    )
    .await;
    check("timetz", &["'12:00:00+02'"], expect![["Utf8: 12:00:00+02"]]).await;
    check(
        "interval",
        &["'1 year 2 mons 3 days 04:05:06.7'", "'-1 day'"],
        expect![["Utf8: P1Y2M3DT4H5M6.7S · P-1D"]],
    )
    .await;
    check("inet", &["'10.0.0.1/8'"], expect![["Utf8: 10.0.0.1/8"]]).await;
    check("macaddr", &["'08:00:2b:01:02:03'"], expect![["Utf8: 08:00:2b:01:02:03"]]).await;
    check("bit(3)", &["B'101'"], expect![["Utf8: 101"]]).await;
    check("tsvector", &["'a:1 b:2'"], expect![["Utf8: 'a':1 'b':2"]]).await;
    check("hstore", &["'a=>1'"], expect![[r#"Utf8: "a"=>"1""#]]).await;
    check("ltree", &["'a.b'"], expect![["Utf8: a.b"]]).await;
    check("pg_lsn", &["'1/2A'"], expect![["Utf8: 1/2A"]]).await;
    check("point", &["'(1,2)'"], expect![["Utf8: (1,2)"]]).await;
    check("int4range", &["'[1,5)'"], expect![["Utf8: [1,5)"]]).await;
    check("int4multirange", &["'{[1,5)}'"], expect![["Utf8: {[1,5)}"]]).await;
    if db.allows("select '<a/>'::xml").await {
        check("xml", &["'<a>1</a>'"], expect![["Utf8: <a>1</a>"]]).await;
    }
}

/// Trailing blanks are cut off by the comparison.
trait Trimmed {
    fn into_inner_trimmed(self) -> Expect;
}

impl Trimmed for Expect {
    fn into_inner_trimmed(mut self) -> Expect {
        self.data = self.data.trim_end().to_owned().leak();
        self
    }
}

#[tokio::test]
async fn nested_values_travel() {
    let (_pg, db) = database!("nested");
    db.run("create type pair as (a int, b text); create type odd as (a inet)").await;
    let check = |of, values, expect| check_type(&db, of, values, ValuePolicy::default(), expect);
    check(
        "int[]",
        &["'{1,null,3}'", "'{}'", "null"],
        expect!["List(Int32, field: 'element'): [1, ∅, 3] · [] · ∅"],
    )
    .await;
    check(
        "int[][]",
        &["'{{1,2},{3,4}}'", "'{}'"],
        expect!["List(List(Int32, field: 'element'), field: 'element'): [[1, 2], [3, 4]] · []"],
    )
    .await;
    check("int[]", &["'{{1,2},{3,4}}'"], expect!["data: an array has other dimensions than its column declares, or does not count from 1 (column: v)"]).await;
    check("int[]", &["'[0:1]={1,2}'"], expect!["data: an array has other dimensions than its column declares, or does not count from 1 (column: v)"]).await;
    check("text[]", &["'{a,\"b,c\",null}'"], expect!["List(Utf8, field: 'element'): [a, b,c, ∅]"]).await;
    check("inet[]", &["'{10.0.0.1,::1}'"], expect!["List(Utf8, field: 'element'): [10.0.0.1/32, ::1/128]"])
        .await;
    check(
        "numeric(4,1)[]",
        &["'{1.5,-2}'"],
        expect!["List(Decimal128(4, 1), field: 'element'): [1.5, -2.0]"],
    )
    .await;
    check(
        "pair",
        &["'(1,x)'", "'(,)'", "null"],
        expect![[r#"Struct("a": Int32, "b": Utf8): {a: 1, b: x} · {a: ∅, b: ∅} · ∅"#]],
    )
    .await;
    check(
        "pair[]",
        &["'{\"(1,x)\",\"(2,y)\"}'"],
        expect![[r#"List(Struct("a": Int32, "b": Utf8), field: 'element'): [{a: 1, b: x}, {a: 2, b: y}]"#]],
    )
    .await;
    check("odd", &["'(10.0.0.1)'"], expect!["Utf8: (10.0.0.1)"]).await;
}

#[tokio::test]
async fn what_has_no_place_follows_the_policy() {
    let (_pg, db) = database!("policy");
    let stop = ValuePolicy::default();
    let null = ValuePolicy { out_of_range: OutOfRange::Null, ..stop.clone() };
    let clamp = ValuePolicy { out_of_range: OutOfRange::Clamp, ..stop.clone() };
    let values: &[&str] = &["'infinity'", "'-infinity'", "'2024-01-01'"];
    check_type(
        &db,
        "timestamptz",
        values,
        stop.clone(),
        expect!["data: infinity has no place in the lake's type (column: v)"],
    )
    .await;
    check_type(&db, "timestamptz", values, null.clone(), expect![[r#"Timestamp(µs, "UTC"): ∅ · ∅ · 2024-01-01T00:00:00Z 2 values of `v` were replaced by `out_of_range`"#]]).await;
    check_type(
        &db,
        "date",
        values,
        null.clone(),
        expect!["Date32: ∅ · ∅ · 2024-01-01 2 values of `v` were replaced by `out_of_range`"],
    )
    .await;
    check_type(
        &db,
        "time",
        &["'24:00'"],
        stop.clone(),
        expect!["data: 24:00:00 has no place in the lake's type (column: v)"],
    )
    .await;
    check_type(
        &db,
        "time",
        &["'24:00'"],
        clamp.clone(),
        expect!["Time64(µs): 23:59:59.999999 1 values of `v` were replaced by `out_of_range`"],
    )
    .await;
    check_type(
        &db,
        "numeric(4,1)",
        &["'NaN'", "1"],
        stop.clone(),
        expect!["data: NaN has no place in the lake's type (column: v)"],
    )
    .await;
    check_type(
        &db,
        "numeric(4,1)",
        &["'NaN'", "1"],
        clamp.clone(),
        expect!["Decimal128(4, 1): ∅ · 1.0 1 values of `v` were replaced by `out_of_range`"],
    )
    .await;
    let decimal = |policy: &ValuePolicy| ValuePolicy {
        types: [("v".to_owned(), "decimal(4,1)".to_owned())].into(),
        ..policy.clone()
    };
    check_type(
        &db,
        "numeric",
        &["1.25", "99999", "1.5"],
        decimal(&stop),
        expect![
            "data: a number with too many digits behind the point has no place in the lake's type (column: v)"
        ],
    )
    .await;
    check_type(
        &db,
        "numeric",
        &["1.25", "99999", "1.5"],
        decimal(&clamp),
        expect!["Decimal128(4, 1): 1.3 · 999.9 · 1.5 2 values of `v` were replaced by `out_of_range`"],
    )
    .await;
    check_type(
        &db,
        "numeric",
        &["1.25", "99999", "1.5"],
        decimal(&null),
        expect!["Decimal128(4, 1): ∅ · ∅ · 1.5 2 values of `v` were replaced by `out_of_range`"],
    )
    .await;
    let refuse = ValuePolicy { unbounded_numeric: UnboundedNumeric::Fail, ..stop.clone() };
    check_type(
        &db,
        "numeric",
        &["1"],
        refuse,
        expect![
            "config: a numeric column declares no precision up to 38 digits (column: v, table: public.t, connection: shop)"
        ],
    )
    .await;
    let as_text = ValuePolicy { types: [("v".to_owned(), "text".to_owned())].into(), ..stop };
    check_type(&db, "int[]", &["'[0:1]={1,2}'"], as_text, expect!["Utf8: [0:1]={1,2}"]).await;
}

const EVENTS: &str =
    "create table e (id int primary key, v text, updated_at timestamptz); create index on e (updated_at)";

/// A session in a transaction of its own.
async fn open_transaction(db: &Database, sql: &str) -> Client {
    let client = db.client().await;
    client.batch_execute(&format!("begin; {sql}")).await.unwrap();
    client
}

#[tokio::test]
async fn a_late_commit_with_an_older_time_is_not_lost() {
    let (_pg, db) = database!("late");
    db.run(EVENTS).await;
    let late = open_transaction(&db, "insert into e values (1, 'late', now())").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    db.run("insert into e values (2, 'early', now())").await;

    for keyed in [true, false] {
        let request = ReadRequest { keyed, cursor: Some("updated_at".into()), ..request("public.e") };
        let first = pass(&db, request.clone()).await.unwrap();
        assert_eq!(first.rows.len(), usize::from(keyed), "row 2 is only read where it may be read again");
        assert!(says(&first, "held back by the transaction of process"), "{:?}", first.plan.notes);
        let second = pass(&db, after(&request, &first)).await.unwrap();
        assert_eq!(second.rows.len(), 0, "still held back");
    }
    let request = request("public.e");
    let held = pass(&db, request.clone()).await.unwrap();
    late.batch_execute("commit").await.unwrap();
    let then = pass(&db, after(&request, &held)).await.unwrap();
    assert_eq!(then.rows.len(), 2, "{:?}", then.rows);
    assert!(then.rows[0].starts_with("1 | late"));
    let idle = pass(&db, after(&request, &then)).await.unwrap();
    assert_eq!(idle.rows, Vec::<String>::new());
    assert!(idle.plan.continues);
}

#[tokio::test]
async fn a_prepared_transaction_holds_back() {
    let (_pg, db) = database!("prepared");
    if db.text("show max_prepared_transactions").await == "0" {
        return fixture::skip("max_prepared_transactions > 0");
    }
    db.run(EVENTS).await;
    let request = request("public.e");
    let first = pass(&db, request.clone()).await.unwrap();
    let late = open_transaction(&db, "insert into e values (1, 'late', now())").await;
    late.batch_execute("prepare transaction 'p'").await.unwrap();
    db.run("insert into e values (2, 'early', now())").await;
    let held = pass(&db, after(&request, &first)).await.unwrap();
    assert!(says(&held, "prepared transaction"), "{:?}", held.plan.notes);
    db.run("commit prepared 'p'").await;
    let then = pass(&db, after(&request, &held)).await.unwrap();
    assert_eq!(then.rows.len(), 2);
}

#[tokio::test]
async fn equal_times_are_read_once_and_all() {
    let (_pg, db) = database!("ties");
    db.run(EVENTS).await;
    db.run("insert into e select g, 'a', '2024-01-01' from generate_series(1, 5) g").await;
    let request = ReadRequest { keyed: false, change: ChangeDetection::Timestamp, ..request("public.e") };
    let first = pass(&db, request.clone()).await.unwrap();
    assert_eq!(first.rows.len(), 5);
    let mut pass_from = first;
    for round in 0..3 {
        db.run(&format!(
            "insert into e select {round} * 10 + 10 + g, 'b', now() from generate_series(1, 5) g"
        ))
        .await;
        let next = pass(&db, after(&request, &pass_from)).await.unwrap();
        assert_eq!(next.rows.len(), 5, "round {round}: {:?}", next.rows);
        pass_from = next;
    }
}

#[tokio::test]
async fn a_lag_reads_again_or_waits() {
    let (_pg, db) = database!("lag");
    db.run(EVENTS).await;
    let keyed = ReadRequest { lag: Duration::from_secs(3600), ..request("public.e") };
    let first = pass(&db, keyed.clone()).await.unwrap();
    db.run("insert into e values (1, 'backdated', now() - interval '30 min'), (2, 'old', now() - interval '2 h')").await;
    let second = pass(&db, after(&keyed, &first)).await.unwrap();
    assert_eq!(second.rows.len(), 1);
    assert_eq!(pass(&db, after(&keyed, &second)).await.unwrap().rows.len(), 1, "read again while in the lag");

    let appended = ReadRequest { keyed: false, change: ChangeDetection::Timestamp, ..keyed };
    let first = pass(&db, appended.clone()).await.unwrap();
    assert_eq!(first.rows.len(), 1, "what is younger than the lag waits: {:?}", first.rows);
    assert_eq!(pass(&db, after(&appended, &first)).await.unwrap().rows.len(), 0);
}

#[tokio::test]
async fn rows_without_a_cursor_follow_the_policy() {
    let (_pg, db) = database!("nulls");
    db.run(EVENTS).await;
    db.run("insert into e values (1, 'none', null), (2, 'some', '2024-01-01')").await;
    for (policy, keyed, first_rows, later_rows) in [
        (NullCursor::Include, true, 2, 1),
        (NullCursor::Include, false, 2, 0),
        (NullCursor::Exclude, true, 1, 0),
        (NullCursor::Exclude, false, 1, 0),
    ] {
        let request = ReadRequest {
            null_cursor: policy,
            keyed,
            change: ChangeDetection::Timestamp,
            ..request("public.e")
        };
        let first = pass(&db, request.clone()).await.unwrap();
        assert_eq!(first.rows.len(), first_rows, "{policy:?} {keyed}");
        assert_eq!(says(&first, "left out"), policy == NullCursor::Exclude);
        let later = pass(&db, after(&request, &first)).await.unwrap();
        assert_eq!(later.rows.len(), later_rows, "{policy:?} {keyed}");
    }
    let error =
        pass(&db, ReadRequest { null_cursor: NullCursor::Fail, ..request("public.e") }).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Data);
}

#[tokio::test]
async fn times_in_the_future_wait_or_are_read_again() {
    let (_pg, db) = database!("future");
    db.run(EVENTS).await;
    let request = request("public.e");
    let first = pass(&db, request.clone()).await.unwrap();
    db.run("insert into e values (1, 'future', now() + interval '1 day')").await;
    let waits = pass(&db, after(&request, &first)).await.unwrap();
    assert_eq!(waits.rows.len(), 0);
    assert!(says(&waits, "1 rows lie beyond the horizon"), "{:?}", waits.plan.notes);
    let reads = ReadRequest { beyond_horizon: BeyondHorizon::Read, ..request };
    let now = pass(&db, after(&reads, &first)).await.unwrap();
    assert_eq!(now.rows.len(), 1);
    assert_eq!(pass(&db, after(&reads, &now)).await.unwrap().rows.len(), 1, "and again");
}

#[tokio::test]
async fn coarse_and_local_times_lose_nothing() {
    let (_pg, db) = database!("local");
    db.run(&format!("alter database \"{}\" set timezone = 'America/New_York'", db.name())).await;
    for of in ["timestamp", "timestamp(0)", "timestamptz(0)", "date"] {
        db.run(&format!("drop table if exists e; create table e (id int primary key, updated_at {of}); create index on e (updated_at)")).await;
        let request = ReadRequest { cursor: Some("updated_at".into()), ..request("public.e") };
        let mut last = pass(&db, request.clone()).await.unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for id in 0..6 {
            db.run(&format!("insert into e values ({id}, now())")).await;
            last = pass(&db, after(&request, &last)).await.unwrap();
            seen.extend(last.rows.iter().map(|row| row.split(" | ").next().unwrap().to_owned()));
            tokio::time::sleep(Duration::from_millis(230)).await;
        }
        // The last value may have been rounded up to the next second, which has to be over.
        tokio::time::sleep(Duration::from_millis(2000)).await;
        last = pass(&db, after(&request, &last)).await.unwrap();
        seen.extend(last.rows.iter().map(|row| row.split(" | ").next().unwrap().to_owned()));
        assert_eq!(seen.len(), 6, "{of}: {seen:?} {:?}", last.plan.notes);
        assert_eq!(says(&last, "America/New_York"), !of.starts_with("timestamptz"));
    }
}

#[tokio::test]
async fn an_id_waits_for_whoever_is_inserting() {
    let (_pg, db) = database!("ids");
    db.run("create table e (id serial primary key, v text)").await;
    for keyed in [true, false] {
        db.run("truncate e restart identity; insert into e (v) values ('a')").await;
        let request = ReadRequest { keyed, ..request("public.e") };
        let first = pass(&db, request.clone()).await.unwrap();
        assert_eq!((first.plan.change, first.rows.len()), (ChangeDetection::Id, 1));
        let late = open_transaction(&db, "insert into e (v) values ('late')").await;
        db.run("insert into e (v) values ('early')").await;
        let held = pass(&db, after(&request, &first)).await.unwrap();
        assert!(says(&held, "which is writing to the table"), "{:?}", held.plan.notes);
        assert_eq!(held.rows.len(), 0);
        late.batch_execute("commit").await.unwrap();
        let then = pass(&db, after(&request, &held)).await.unwrap();
        assert_eq!(then.rows, ["2 | late", "3 | early"]);
        assert_eq!(pass(&db, after(&request, &then)).await.unwrap().rows.len(), 0);
    }
}

#[tokio::test]
async fn a_first_read_goes_on_where_it_stopped() {
    let (_pg, db) = database!("resume");
    db.run(EVENTS).await;
    db.run("insert into e select g, repeat('x', 500), '2024-01-01' from generate_series(1, 20000) g").await;
    let request = ReadRequest { portion_bytes: 2 << 20, ..request("public.e") };
    let whole = pass(&db, request.clone()).await.unwrap();
    assert_eq!(whole.rows.len(), 20000);
    assert!(whole.portions > 3 && whole.plan.resumable);
    assert!(whole.rows.windows(2).all(|two| two[0] != two[1]), "no row comes twice");

    let source = connectors::source(&Connection::parse("shop", &db.url()).unwrap()).unwrap();
    let mut reading = source.open(request.clone()).await.unwrap();
    let portion = reading.next().await.unwrap().unwrap();
    let mut before = 0;
    for mut rows in portion.streams {
        while let Some(batch) = rows.next().await {
            before += batch.unwrap().num_rows();
        }
    }
    drop(reading);
    // An update between the attempts is in the first pass after them.
    db.run("update e set v = 'new', updated_at = now() where id = 1").await;
    let rest_request = ReadRequest { from: Some(portion.resume), ..request.clone() };
    let rest = pass(&db, rest_request).await.unwrap();
    assert!(rest.plan.continues && rest.plan.resumable, "{:?}", rest.plan);
    assert!((20000..=20001).contains(&(before + rest.rows.len())), "{before} + {}", rest.rows.len());
    let next = pass(&db, after(&request, &rest)).await.unwrap();
    assert_eq!(next.rows.len(), 1, "{:?}", next.rows);

    let mut reading = source.open(request.clone()).await.unwrap();
    let resume = reading.next().await.unwrap().unwrap().resume;
    drop(reading);
    db.run("vacuum full e").await;
    let anew = pass(&db, ReadRequest { from: Some(resume), ..request }).await.unwrap();
    assert_eq!(anew.rows.len(), 20000);
    assert!(!anew.plan.continues && says(&anew, "was rewritten"), "{:?}", anew.plan.notes);
}

#[tokio::test]
async fn a_first_read_sees_one_moment() {
    let (_pg, db) = database!("moment");
    db.run("create table e (id int primary key, n int, pad text); insert into e select g, 0, repeat('x', 400) from generate_series(1, 30000) g").await;
    let client = db.client().await;
    let updates = tokio::spawn(async move {
        for n in 1..40 {
            client.execute("update e set n = $1 where id % 7 = 0", &[&n]).await.unwrap();
        }
    });
    let request = ReadRequest { change: ChangeDetection::Full, ..request("public.e") };
    for _ in 0..5 {
        let all = pass(&db, request.clone()).await.unwrap();
        assert_eq!(all.rows.len(), 30000);
        let mut ids = std::collections::BTreeSet::new();
        let mut states = std::collections::BTreeSet::new();
        for row in &all.rows {
            let mut fields = row.split(" | ");
            let id: i32 = fields.next().unwrap().parse().unwrap();
            assert!(ids.insert(id), "{id} came twice");
            if id % 7 == 0 {
                states.insert(fields.next().unwrap().to_owned());
            }
        }
        assert_eq!(states.len(), 1, "two moments in one read");
    }
    updates.await.unwrap();
}

#[tokio::test]
async fn partitions_views_and_odd_names_are_read() {
    let (_pg, db) = database!("shapes");
    db.run(
        r#"create table p (id int, updated_at timestamptz, primary key (id)) partition by range (id);
           create table p1 partition of p for values from (0) to (100);
           create table p2 partition of p for values from (100) to (1000);
           insert into p select g, '2024-01-01' from generate_series(1, 300) g;
           create view v as select id, updated_at from p where id <= 10;
           create materialized view m as select id from p where id <= 20;
           create schema "Odd.Schema";
           create table "Odd.Schema"."select ""x""" (id int primary key, "Order" int, "a b" text);
           insert into "Odd.Schema"."select ""x""" values (1, 2, 'c');
           create table base (id int); create table child (more int) inherits (base);
           insert into base values (1); insert into child values (2, 3)"#,
    )
    .await;
    assert_eq!(pass(&db, request("public.p")).await.unwrap().rows.len(), 300);
    assert_eq!(pass(&db, request("public.p1")).await.unwrap().rows.len(), 99);
    assert_eq!(pass(&db, request("public.v")).await.unwrap().rows.len(), 10);
    assert_eq!(pass(&db, request("public.m")).await.unwrap().rows.len(), 20);
    assert_eq!(pass(&db, request("public.base")).await.unwrap().rows, ["1", "2"]);
    assert_eq!(pass(&db, request("base")).await.unwrap().rows, ["1", "2"]);
    let odd = ReadRequest { table: TableId::new("Odd.Schema", "select \"x\""), ..request("x.y") };
    let odd =
        pass(&db, ReadRequest { columns: Some(vec!["a b".into(), "Order".into()]), ..odd }).await.unwrap();
    assert_eq!(odd.rows, ["c | 2"]);

    let source = connectors::source(&Connection::parse("shop", &db.url()).unwrap()).unwrap();
    let tables = source.tables().await.unwrap();
    let names: Vec<_> = tables.iter().map(|table| format!("{} {:?}", table.id, table.kind)).collect();
    expect![[r#"
        Odd.Schema.select "x" Table
        public.base Table
        public.child Table
        public.m MaterializedView
        public.p PartitionedTable
        public.v View"#]]
    .assert_eq(&names.join("\n"));
    assert_eq!(tables[4].primary_key(), Some(["id".to_owned()].as_slice()));
    assert!(tables[4].bytes > Some(0));
}

#[tokio::test]
async fn hidden_transactions_are_waited_for() {
    let (pg, db) = database!("hidden");
    db.run(EVENTS).await;
    let role = fixture::unique("lowly");
    db.run(&format!(
        "drop role if exists {role}; create role {role} login password 'low'; grant select on e to {role}"
    ))
    .await;
    let url = format!("postgres://{role}:low@127.0.0.1:{}/{}", pg.port(), db.name());
    let request = request("public.e");
    let first = pass_at(&url, request.clone()).await.unwrap();
    let late = open_transaction(&db, "insert into e values (1, 'late', now())").await;
    db.run("insert into e values (2, 'early', now())").await;
    let held = pass_at(&url, after(&request, &first)).await.unwrap();
    assert!(says(&held, "is hidden") && says(&held, "GRANT pg_read_all_stats"), "{:?}", held.plan.notes);
    assert_eq!(held.rows.len(), 0);
    late.batch_execute("commit").await.unwrap();
    let then = pass_at(&url, after(&request, &held)).await.unwrap();
    assert_eq!(then.rows.len(), 2);
    db.run(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_position_that_means_nothing_is_not_used() {
    let (_pg, db) = database!("foreign");
    db.run(EVENTS).await;
    db.run("alter table e add other_update timestamptz; insert into e values (1, 'a', now(), now())").await;
    let request = request("public.e");
    let first = pass(&db, request.clone()).await.unwrap();
    let used = pass(&db, after(&request, &first)).await.unwrap();
    assert!(used.plan.continues);
    let resume = first.resume.as_str();
    let other = Watermark::new(resume.replace("\"updated_at\"", "\"other_update\""));
    let cluster = db.text("select system_identifier from pg_control_system()").await;
    let restored = Watermark::new(resume.replace(&cluster, "1"));
    for (watermark, why) in [
        (other, "column `other_update`"),
        (restored, "another server"),
        (Watermark::new("x"), "not readable"),
    ] {
        let anew = pass(&db, ReadRequest { from: Some(watermark), ..request.clone() }).await.unwrap();
        assert!(!anew.plan.continues && says(&anew, why), "{:?}", anew.plan.notes);
        assert_eq!(anew.rows.len(), 1);
    }
}

#[tokio::test]
async fn a_condition_may_end_in_a_comment() {
    let (_pg, db) = database!("comment");
    db.run(
        "create table orders (id int primary key, total int, updated_at timestamptz not null default now())",
    )
    .await;
    db.run("insert into orders values (1, 5), (2, 1), (3, 9); create view chosen as select * from orders")
        .await;
    let large = "total > 3 -- the large ones";
    let ids = |pass: &Pass| -> Vec<String> {
        pass.rows.iter().map(|row| row.split(' ').next().unwrap().to_owned()).collect()
    };
    for table in ["orders", "chosen"] {
        for change in [ChangeDetection::Full, ChangeDetection::Timestamp] {
            let asked = ReadRequest { filter: Some(large.to_owned()), change, ..request(table) };
            let first = pass(&db, asked.clone()).await.unwrap();
            assert_eq!(ids(&first), ["1", "3"], "{table} {change:?}");
            let next = pass(&db, after(&asked, &first)).await.unwrap();
            assert!(!ids(&next).contains(&"2".to_owned()), "{table} {change:?}");
        }
    }
    let source = connectors::source(&Connection::parse("shop", &db.url()).unwrap()).unwrap();
    assert_eq!(source.count(&"orders".parse().unwrap(), Some(large)).await.unwrap(), 2);
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let (pg, db) = database!("wrong");
    db.run("create table orders (id int primary key, updated_at timestamptz, n point)").await;
    let role = format!("nobody_{}", std::process::id());
    db.run(&format!("drop role if exists {role}; create role {role} login password 'low'")).await;
    let mut said = Vec::new();
    let mut say = |what: &str, error: Option<Error>| {
        let error = error.unwrap_or_else(|| panic!("{what} is no error"));
        assert!(!format!("{error:?}").contains(fixture::PASSWORD));
        said.push(format!(
            "{what}: {}: {}\n    {}",
            error.kind(),
            error.message(),
            error.hint_text().unwrap_or("-")
        ));
    };
    let url = db.url();
    say("password", pass_at(&url.replace(fixture::PASSWORD, "wrong"), request("orders")).await.err());
    say("host", pass_at(&url.replace("127.0.0.1", "nowhere.invalid"), request("orders")).await.err());
    say("port", pass_at(&url.replace(&pg.port().to_string(), "1"), request("orders")).await.err());
    say("database", pass_at(&url.replace(db.name(), "nodb"), request("orders")).await.err());
    say("table", pass(&db, request("public.order")).await.err());
    let low = format!("postgres://{role}:low@127.0.0.1:{}/{}", pg.port(), db.name());
    say("right", pass_at(&low, request("orders")).await.err());
    let ask = |cursor: &str, change| ReadRequest { cursor: Some(cursor.into()), change, ..request("orders") };
    say("cursor", pass(&db, ask("update_at", ChangeDetection::Auto)).await.err());
    say("cursor type", pass(&db, ask("n", ChangeDetection::Auto)).await.err());
    say("change", pass(&db, ask("id", ChangeDetection::Timestamp)).await.err());
    say(
        "filter",
        pass(&db, ReadRequest { filter: Some("nope = 1".into()), ..request("orders") }).await.err(),
    );
    say(
        "version",
        pass(&db, ReadRequest { change: ChangeDetection::Version, ..request("orders") }).await.err(),
    );
    db.run(&format!("drop role {role}")).await;
    expect![[r#"
        password: permission: password authentication failed for user "frazil"
            check user and password of the connection
        host: config: the host is not known
            check its name in the connection's URL (failed to lookup address information: Name or service not known)
        port: transient: the server refused the connection
            is the server running, and is the port right?
        database: config: database "nodb" does not exist
            check the database name at the end of the URL
        table: config: table does not exist
            did you mean `public.orders`?
        right: permission: permission denied for table orders
            run `GRANT SELECT ON orders TO <user>` (a target needs INSERT, UPDATE, DELETE too)
        cursor: config: column does not exist
            did you mean `updated_at`?
        cursor type: config: a column of type point cannot be a cursor
            candidates are `updated_at`
        change: config: `change: timestamp` does not go with a column of type integer
            candidates are `updated_at`
        filter: config: column "nope" does not exist
            -
        version: config: no column can serve `change: version`
            name it as `cursor`, or use `change: full`"#]].assert_eq(&said.join("\n").replace(db.name(), "DB"));
}

#[tokio::test]
async fn tls_is_as_strict_as_asked() {
    let (pg, db) = database!("tls");
    let Some(authority) = pg.authority() else { return fixture::skip("openssl") };
    db.run("create table e (id int primary key)").await;
    let authority = authority.display();
    for (options, works) in [
        ("sslmode=disable".to_owned(), true),
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=require".to_owned(), true),
        (format!("sslmode=verify-ca&sslrootcert={authority}"), true),
        (format!("sslmode=verify-full&sslrootcert={authority}"), true),
        ("sslmode=verify-full&sslrootcert=system".to_owned(), false),
    ] {
        let outcome = pass_at(&format!("{}?{options}", db.url()), request("e")).await;
        assert_eq!(outcome.is_ok(), works, "{options}: {:?}", outcome.err());
    }
}

#[tokio::test]
async fn rows_larger_than_any_buffer_arrive() {
    let (_pg, db) = database!("large");
    db.run("create table e (id int primary key, v text); insert into e select g, repeat(md5(g::text), 100000) from generate_series(1, 6) g; insert into e values (7, null)").await;
    let all = pass(&db, ReadRequest { change: ChangeDetection::Full, ..request("e") }).await.unwrap();
    assert_eq!(all.rows.len(), 7);
    assert!(all.batches.len() >= 6, "wide rows make small batches: {}", all.batches.len());
    assert_eq!(all.rows.iter().map(String::len).max(), Some(4 + 3_200_000));
    assert!(all.batches.iter().all(|batch| batch.column(1).len() <= 2));
}
