//! SQLite as a source and as a target, on real files.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int8Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use expect_test::expect;
use frazil::connection::Connection;
use frazil::connectors;
use frazil::delta::{SnapshotId, Watermark};
use frazil::source::{BeyondHorizon, ChangeDetection, Extent, NullCursor, ReadRequest, Severity, Source};
use frazil::table::TableId;
use frazil::target::{Applied, Deletes, Merge, MergeStats, Strategy, Target, TargetTable};
use frazil::{Error, ErrorKind, Result};
use futures::StreamExt;
use rusqlite::Connection as Database;
use tempfile::TempDir;

use crate::fixture;

/// A database file, open as its application would have it.
struct Shop {
    dir: TempDir,
    db: Database,
}

impl Shop {
    fn new(sql: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(dir.path().join("shop.db")).unwrap();
        db.execute_batch(sql).unwrap();
        Self { dir, db }
    }

    fn run(&self, sql: &str) {
        self.db.execute_batch(sql).unwrap();
    }

    fn another(&self) -> Database {
        Database::open(self.dir.path().join("shop.db")).unwrap()
    }

    fn connection(&self) -> Connection {
        Connection::parse("shop", &format!("sqlite://{}", self.dir.path().join("shop.db").display())).unwrap()
    }

    fn source(&self) -> Arc<dyn Source> {
        connectors::source(&self.connection()).unwrap()
    }

    async fn read(&self, request: ReadRequest) -> Result<Read> {
        let mut reading = self.source().open(request).await?;
        let plan = reading.plan().clone();
        let mut read = Read {
            schema: plan.schema.clone(),
            extent: plan.extent,
            notes: plan.notes.clone(),
            batches: Vec::new(),
            resumes: Vec::new(),
        };
        while let Some(portion) = reading.next().await? {
            for mut stream in portion.streams {
                while let Some(batch) = stream.next().await {
                    read.batches.push(batch?);
                }
            }
            read.resumes.push((portion.resume, portion.complete));
        }
        // Only now does the reading know how many values it had to replace.
        read.notes.clone_from(&reading.plan().notes);
        Ok(read)
    }
}

struct Read {
    schema: SchemaRef,
    extent: Extent,
    notes: Vec<String>,
    batches: Vec<RecordBatch>,
    resumes: Vec<(Watermark, bool)>,
}

impl Read {
    fn rows(&self) -> String {
        rows(&self.batches)
    }

    fn end(&self) -> Option<Watermark> {
        self.resumes.last().map(|(resume, _)| resume.clone())
    }
}

/// One line a row.
fn rows(batches: &[RecordBatch]) -> String {
    let options = FormatOptions::default().with_null("∅");
    let mut text = String::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<_> = columns.iter().map(|column| column.value(row).to_string()).collect();
            writeln!(text, "{}", cells.join(" | ")).unwrap();
        }
    }
    text
}

fn request(table: &str) -> ReadRequest {
    ReadRequest {
        batch_rows: 65_536,
        portion_bytes: 1 << 30,
        ..fixture::read_request(TableId::bare(table), ChangeDetection::Auto)
    }
}

fn after(table: &str, from: &Option<Watermark>) -> ReadRequest {
    ReadRequest { from: from.clone(), ..request(table) }
}

fn said(error: &Error) -> String {
    format!("{error:?}").lines().filter(|line| !line.starts_with("  because")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn tables_are_described_as_they_are() {
    let shop = Shop::new(
        "CREATE TABLE customers (id INTEGER PRIMARY KEY AUTOINCREMENT, mail TEXT NOT NULL UNIQUE, balance DECIMAL(12,2),
             updated_at TIMESTAMP, name TEXT GENERATED ALWAYS AS (upper(mail)) STORED);
         CREATE INDEX by_time ON customers (updated_at);
         CREATE TABLE \"Order Items\" (\"order\" INTEGER, line INTEGER, note, PRIMARY KEY (\"order\", line)) WITHOUT ROWID;
         CREATE TABLE heap (a INT, b BLOB);
         CREATE VIEW spenders AS SELECT id, balance * 2 AS twice FROM customers;
         INSERT INTO customers (mail) VALUES ('a'), ('b');",
    );
    let mut text = String::new();
    for table in shop.source().tables().await.unwrap() {
        writeln!(text, "{} {:?} rows {:?}", table.id, table.kind, table.rows).unwrap();
        for key in &table.keys {
            writeln!(text, "  key {} primary {}", key.columns.join(","), key.primary).unwrap();
        }
        for column in &table.columns {
            let flags = [
                (!column.field.is_nullable(), "!"),
                (column.generated, "generated"),
                (column.identity, "identity"),
                (column.indexed, "indexed"),
            ];
            let flags: Vec<_> = flags.iter().filter(|(is, _)| *is).map(|(_, flag)| *flag).collect();
            let cursor = column.cursor.map(|cursor| format!(" cursor {cursor:?}")).unwrap_or_default();
            writeln!(text, "  {} {} {}{cursor}", column.name, column.field.data_type(), flags.join(" "))
                .unwrap();
        }
    }
    expect![[r#"
        main.Order Items Table rows None
          key order,line primary true
          order Int64 ! indexed
          line Int64 !
          note Utf8 
        main.customers Table rows Some(2)
          key id primary true
          key mail primary false
          id Int64 ! identity indexed cursor Id
          mail Utf8 ! indexed
          balance Decimal128(12, 2) 
          updated_at Timestamp(µs) indexed cursor Timestamp
          name Utf8 generated
        main.heap Table rows Some(0)
          a Int64 
          b Binary 
        main.spenders View rows None
          id Int64 
          twice Utf8 
    "#]]
    .assert_eq(&text);
}

#[tokio::test]
async fn a_condition_may_end_in_a_comment() {
    let shop = Shop::new(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, total INT, modified_at TIMESTAMP NOT NULL);
         INSERT INTO orders VALUES (1, 5, '2024-01-01 00:00:00'), (2, 1, '2024-01-02 00:00:00'), (3, 9, '2024-01-03 00:00:00');",
    );
    let large = "total > 3 -- the large ones";
    let ids = |read: &Read| -> Vec<String> {
        read.rows().lines().map(|row| row.split(' ').next().unwrap().to_owned()).collect()
    };
    for change in [ChangeDetection::Full, ChangeDetection::Timestamp, ChangeDetection::Id] {
        let asked = ReadRequest { filter: Some(large.to_owned()), change, ..request("orders") };
        let first = shop.read(asked.clone()).await.unwrap();
        assert_eq!(ids(&first), ["1", "3"], "{change:?}");
        let next = shop.read(ReadRequest { from: first.end(), ..asked }).await.unwrap();
        assert!(!ids(&next).contains(&"2".to_owned()), "{change:?}");
    }
    assert_eq!(shop.source().count(&TableId::bare("orders"), Some(large)).await.unwrap(), 2);
}

#[tokio::test]
async fn a_wrong_name_is_met_with_the_right_one() {
    let shop = Shop::new("CREATE TABLE orders (id INTEGER PRIMARY KEY, modified_at TIMESTAMP);");
    let table = shop.source().table(&TableId::bare("order")).await.unwrap_err();
    let column = ReadRequest { cursor: Some("modified".into()), ..request("orders") };
    let column = shop.source().plan(&column).await.unwrap_err();
    let kind =
        ReadRequest { cursor: Some("id".into()), change: ChangeDetection::Timestamp, ..request("orders") };
    let kind = shop.source().plan(&kind).await.unwrap_err();
    let filter = ReadRequest { filter: Some("total > 3".into()), ..request("orders") };
    let filter = shop.source().plan(&filter).await.unwrap_err();
    let text = [&table, &column, &kind, &filter].map(said).join("\n");
    let path = shop.dir.path().display().to_string();
    expect![[r#"
        config: table does not exist (table: order, file: DIR/shop.db, connection: shop)
          hint: did you mean `main.orders`?
        config: column does not exist (table: main.orders, column: modified)
          hint: did you mean `modified_at`?
        config: a column declared `INTEGER` holds no timestamps (table: main.orders, column: id)
          hint: say what it holds: `values: {types: {id: timestamp}}`, or `unix_seconds`, `unix_milliseconds`; or use `change: id` for a number that only grows
        config: sqlite: no such column: total (file: DIR/shop.db, connection: shop)
          hint: check the names and conditions in the configuration"#]].assert_eq(&text.replace(&path, "DIR"));
}

const TYPES: &str = "CREATE TABLE types (
    id INTEGER PRIMARY KEY, i BIGINT, r DOUBLE, t TEXT, b BLOB, yes BOOLEAN, d DATE, c TIME, ts TIMESTAMP, tz TIMESTAMPTZ,
    money DECIMAL(12,2), big DECIMAL_TEXT(38,10), whole DECIMAL(18,0), u UUID, any_, number NUMERIC);
  INSERT INTO types VALUES
   (1, 9223372036854775807, 1.7976931348623157e308, 'zoë ''q'' \n 😀', x'00ff', 1, '2024-02-29', '23:59:59.999999',
    '2024-02-29 12:00:00.123456', '2024-02-29T14:00:00+02:00', 12.5, '9999999999999999999999999999.9999999999',
    999999999999999999, '6F9619FF-8B86-D011-B42D-00C04FC964FF', 1, 0.1),
   (2, -9223372036854775808, -5e-324, '', x'', 0, '0001-01-01', '00:00', '1969-12-31 23:59:59.999', '9999-12-31 23:59:59Z',
    -9999999999.99, '-0.0000000001', -999999999999999999, x'6f9619ff8b86d011b42d00c04fc964ff', 'text', 12345678901),
   (3, 0, 9e999, '007', x'27', 0, '9999-12-31', '12:30:00.5', '0000-01-01 00:00', '2024-01-01', 0, '0', 0, NULL, 1.5, '1e10'),
   (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);";

#[tokio::test]
async fn every_type_travels_and_comes_back() {
    let shop = Shop::new(TYPES);
    let read = shop.read(request("types")).await.unwrap();
    expect![[r#"
        1 | 9223372036854775807 | 1.7976931348623157e308 | zoë 'q' 
         😀 | 00ff | true | 2024-02-29 | 23:59:59.999999 | 2024-02-29T12:00:00.123456 | 2024-02-29T12:00:00Z | 12.50 | 9999999999999999999999999999.9999999999 | 999999999999999999 | 6f9619ff8b86d011b42d00c04fc964ff | 1 | 0.1
        2 | -9223372036854775808 | -5e-324 |  |  | false | 0001-01-01 | 00:00:00 | 1969-12-31T23:59:59.999 | 9999-12-31T23:59:59Z | -9999999999.99 | -0.0000000001 | -999999999999999999 | 6f9619ff8b86d011b42d00c04fc964ff | text | 12345678901
        3 | 0 | inf | 007 | 27 | false | 9999-12-31 | 12:30:00.500 | 0000-01-01T00:00:00 | 2024-01-01T00:00:00Z | 0.00 | 0.0000000000 | 0 | ∅ | 1.5 | 10000000000
        4 | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅ | ∅
    "#]].assert_eq(&read.rows());

    let copy = Shop::new("");
    let table = TargetTable {
        id: TableId::bare("types"),
        schema: read.schema.clone(),
        key: vec!["id".into()],
        deletes: Deletes::Hard,
        versions: false,
    };
    let load = Load::new(&copy, table);
    load.apply(None, 1, read.batches.clone(), Strategy::Merge).await.unwrap();
    let back = copy.read(request("types")).await.unwrap();
    assert_eq!(rows(&back.batches), read.rows());
    assert_eq!(back.schema, read.schema);
    // And the file says the same of its values, class by class; but for the forms that have a shorter way.
    let mut text = String::new();
    for column in ["i", "r", "t", "b", "yes", "d", "money", "big", "whole", "number"] {
        let sql = format!("SELECT id, quote({column}) FROM types ORDER BY id");
        if all(&shop.db, &sql) != all(&copy.db, &sql) {
            writeln!(text, "{column}: {} became {}", all(&shop.db, &sql), all(&copy.db, &sql)).unwrap();
        }
    }
    expect![[r#"
        big: 1 '9999999999999999999999999999.9999999999'; 2 '-0.0000000001'; 3 '0'; 4 NULL became 1 '9999999999999999999999999999.9999999999'; 2 '-0.0000000001'; 3 '0.0000000000'; 4 NULL
    "#]].assert_eq(&text);
}

/// All cells of a query as text.
fn all(db: &Database, sql: &str) -> String {
    let mut statement = db.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let cells: Vec<String> = (0..columns)
            .map(|at| match row.get_ref_unwrap(at) {
                rusqlite::types::ValueRef::Null => "∅".into(),
                rusqlite::types::ValueRef::Integer(value) => value.to_string(),
                rusqlite::types::ValueRef::Real(value) => format!("{value:?}"),
                rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                rusqlite::types::ValueRef::Blob(bytes) => format!("{bytes:?}"),
            })
            .collect();
        Ok(cells.join(" "))
    });
    rows.unwrap().map(|row| row.unwrap()).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn a_value_that_does_not_fit_stops_the_read_and_text_lets_it_pass() {
    let shop = Shop::new("CREATE TABLE t (id INTEGER PRIMARY KEY, v);");
    let mut text = String::new();
    for (declared, value) in [
        ("INTEGER", "'many'"),
        ("INTEGER", "1.5"),
        ("TEXT", "x'00'"),
        ("BLOB", "'text'"),
        ("BOOLEAN", "2"),
        ("DATE", "'2023-02-29'"),
        ("TIMESTAMP", "1700000000"),
        ("TIMESTAMP", "'yesterday'"),
        ("DECIMAL(5,2)", "1234.5"),
        ("DECIMAL(5,2)", "0.125"),
        ("REAL", "'x'"),
        ("", "x'00'"),
        ("TIME", "'24:00:00'"),
    ] {
        shop.run(&format!("DROP TABLE t; CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared}); INSERT INTO t VALUES (1, {value});"));
        let error = shop.read(request("t")).await.err().unwrap_or_else(|| panic!("{declared} {value}"));
        assert_eq!(error.kind(), ErrorKind::Data, "{declared} {value}");
        writeln!(text, "{error}").unwrap();
        let mut as_text = request("t");
        as_text.values.types.insert("v".into(), if value.starts_with("x'") { "blob" } else { "text" }.into());
        shop.read(as_text).await.unwrap();
    }
    expect![[r#"
        a text does not fit the column's type (declared INTEGER) (table: t, column: v)
        a real number does not fit the column's type (declared INTEGER) (table: t, column: v)
        a blob does not fit the column's type (declared TEXT) (table: t, column: v)
        a text does not fit the column's type (declared BLOB) (table: t, column: v)
        an integer is not exactly a value of the column's type (declared BOOLEAN) (table: t, column: v)
        a text is not exactly a value of the column's type (declared DATE) (table: t, column: v)
        an integer does not fit the column's type (declared TIMESTAMP) (table: t, column: v)
        a text is not exactly a value of the column's type (declared TIMESTAMP) (table: t, column: v)
        a real number is not exactly a value of the column's type (declared DECIMAL(5,2)) (table: t, column: v)
        a real number is not exactly a value of the column's type (declared DECIMAL(5,2)) (table: t, column: v)
        a text does not fit the column's type (declared REAL) (table: t, column: v)
        a blob does not fit the column's type (no declared type) (table: t, column: v)
        a text lies outside of the column's type (declared TIME) (table: t, column: v)
    "#]].assert_eq(&text);

    shop.run("DROP TABLE t; CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER); INSERT INTO t VALUES (1, 1700000000);");
    let mut unix = request("t");
    unix.values.types.insert("v".into(), "unix_seconds".into());
    assert_eq!(shop.read(unix).await.unwrap().rows(), "1 | 2023-11-14T22:13:20\n");

    shop.run(
        "DROP TABLE t; CREATE TABLE t (id TEXT PRIMARY KEY, v INTEGER); INSERT INTO t VALUES (NULL, 1);",
    );
    let error = shop.read(request("t")).await.err().unwrap();
    assert_eq!(error.message(), "a NULL where the key or NOT NULL forbids it");
}

#[tokio::test]
async fn values_that_the_policy_replaces_are_counted() {
    let shop = Shop::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TIME);
         INSERT INTO t VALUES (1, '24:00:00'), (2, '12:00:00'), (3, '24:00'), (4, NULL);",
    );
    for (policy, rows) in [
        (frazil::source::OutOfRange::Null, "1 | ∅\n2 | 12:00:00\n3 | ∅\n4 | ∅\n"),
        (
            frazil::source::OutOfRange::Clamp,
            "1 | 23:59:59.999999\n2 | 12:00:00\n3 | 23:59:59.999999\n4 | ∅\n",
        ),
    ] {
        let mut request = request("t");
        request.values.out_of_range = policy;
        let read = shop.read(request).await.unwrap();
        assert_eq!(read.rows(), rows);
        let note = "2 values of `v` were replaced by `out_of_range`".to_owned();
        assert!(read.notes.contains(&note), "{:?}", read.notes);
    }
}

const ORDERS: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, v TEXT, updated_at TIMESTAMP);
    CREATE INDEX orders_updated_at ON orders (updated_at);
    INSERT INTO orders VALUES (1, 'a', '2024-01-01 10:00:00'), (2, 'b', '2024-01-01 10:00:00'), (3, 'c', '2024-01-02T10:00:00.5Z');";

#[tokio::test]
async fn a_pass_reads_what_changed_since_the_last_and_an_idle_one_nothing() {
    let shop = Shop::new(ORDERS);
    let first = shop.read(request("orders")).await.unwrap();
    assert_eq!((first.extent, first.batches[0].num_rows()), (Extent::Whole, 3));
    let idle = std::time::Instant::now();
    let second = shop.read(after("orders", &first.end())).await.unwrap();
    assert!(idle.elapsed() < Duration::from_millis(500));
    assert_eq!((second.extent, second.rows().as_str()), (Extent::Changed, ""));
    // `update then run` sees the update, although its second has not ended yet; and once only.
    shop.run(
        "UPDATE orders SET v = 'B', updated_at = CURRENT_TIMESTAMP WHERE id = 2;
              INSERT INTO orders VALUES (4, 'd', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));",
    );
    let third = shop
        .read(ReadRequest { columns: Some(vec!["id".into(), "v".into()]), ..after("orders", &second.end()) });
    let third = third.await.unwrap();
    assert_eq!(third.rows(), "2 | B\n4 | d\n");
    assert_eq!(shop.read(after("orders", &third.end())).await.unwrap().rows(), "");
    expect![[r#"
        changes by `updated_at` (by its name, indexed)
        deletes leave no trace in a cursor; `change: full` sees them
        first read: everything"#]]
    .assert_eq(&first.notes.join("\n"));
}

#[tokio::test]
async fn times_are_compared_as_times_however_they_are_written() {
    for index in ["", "DROP INDEX orders_updated_at;"] {
        let shop = Shop::new(&format!("{ORDERS}{index} DELETE FROM orders;"));
        let at = |hour: i64| {
            let micros = 1_704_103_200_000_000 + hour * 3_600_000_000; // 2024-01-01 10:00:00Z
            Some(Watermark::new(format!(
                "{{\"v\":1,\"kind\":\"timestamp\",\"column\":\"updated_at\",\"at\":\"{micros}\"}}"
            )))
        };
        shop.run("INSERT INTO orders VALUES
            (1, 'before', '2024-01-01 09:59:59.999999'), (2, 'blank', '2024-01-01 10:00:00'), (3, 'T', '2024-01-01T10:00:00'),
            (4, 'Z', '2024-01-01T10:00:00.000Z'), (5, 'minute', '2024-01-01 10:00'), (6, 'east', '2024-01-01 23:30:00+14:00'),
            (7, 'east', '2024-01-02T00:00:00+14:00'), (8, 'west', '2023-12-31 22:00:00-12:00'), (9, 'west', '2023-12-31T21:59:59-12:00'),
            (10, 'future', '2999-01-01 00:00:00'), (11, 'null', NULL)");
        let read = ReadRequest {
            columns: Some(vec!["id".into()]),
            null_cursor: NullCursor::Exclude,
            ..after("orders", &at(0))
        };
        let read = shop.read(read).await.unwrap();
        let mut ids: Vec<i64> = read.rows().lines().map(|line| line.parse().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [2, 3, 4, 5, 7, 8], "{index}");
        // What is no time at all is not passed by in silence.
        for odd in ["1700000000", "'tomorrow'", "x'00'", "''"] {
            shop.run(&format!("UPDATE orders SET updated_at = {odd} WHERE id = 1"));
            let error =
                shop.read(ReadRequest { columns: Some(vec!["id".into()]), ..after("orders", &at(0)) }).await;
            assert_eq!(error.err().map(|error| error.kind()), Some(ErrorKind::Data), "{odd} {index}");
        }
        shop.run("DELETE FROM orders WHERE id = 1");
        // At midnight a date alone is the same time.
        shop.run("INSERT INTO orders VALUES (12, 'day', '2024-01-02'), (13, 'day', '2024-01-01')");
        let read = ReadRequest {
            columns: Some(vec!["id".into()]),
            null_cursor: NullCursor::Exclude,
            ..after("orders", &at(14))
        };
        assert_eq!(shop.read(read).await.unwrap().rows(), "12\n", "{index}");
    }
}

#[tokio::test]
async fn an_open_writer_holds_the_position_back() {
    for mode in ["wal", "delete"] {
        let shop = Shop::new(&format!("PRAGMA journal_mode = {mode}; {ORDERS}"));
        let first = shop.read(request("orders")).await.unwrap();
        let writer = shop.another();
        // Takes its time now, and commits later.
        writer
            .execute_batch("BEGIN IMMEDIATE; INSERT INTO orders VALUES (9, 'late', CURRENT_TIMESTAMP);")
            .unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let held = shop.read(after("orders", &first.end())).await.unwrap();
        assert_eq!((held.rows().as_str(), held.end()), ("", first.end()), "{mode}");
        assert!(
            held.notes.iter().any(|note| note.contains("a writer holds the database")),
            "{:?}",
            held.notes
        );
        writer.execute_batch("COMMIT").unwrap();
        let after_commit =
            shop.read(ReadRequest { columns: Some(vec!["v".into()]), ..after("orders", &held.end()) });
        assert_eq!(after_commit.await.unwrap().rows(), "late\n", "{mode}");
    }
}

#[tokio::test]
async fn a_first_read_beside_a_writer_is_repeated_or_refused() {
    let shop = Shop::new(&format!("PRAGMA journal_mode = wal; {ORDERS}"));
    let writer = shop.another();
    writer
        .execute_batch("BEGIN IMMEDIATE; INSERT INTO orders VALUES (9, 'late', '2024-01-01 00:00:00');")
        .unwrap();
    let appended = ReadRequest { keyed: false, ..request("orders") };
    assert_eq!(shop.read(appended).await.err().unwrap().kind(), ErrorKind::Transient);
    let first = shop.read(request("orders")).await.unwrap();
    assert_eq!(first.rows().lines().count(), 3);
    writer.execute_batch("COMMIT").unwrap();
    let second = shop.read(after("orders", &first.end())).await.unwrap();
    assert!(second.rows().contains("late"), "{}", second.rows());
}

#[tokio::test]
async fn null_cursors_follow_the_policy() {
    let shop = Shop::new(&format!("{ORDERS} INSERT INTO orders VALUES (5, 'null', NULL);"));
    let read = |keyed, null_cursor, from| {
        let request =
            ReadRequest { keyed, null_cursor, columns: Some(vec!["id".into()]), ..after("orders", &from) };
        shop.read(request)
    };
    for (policy, keyed, first_rows, later_rows) in [
        (NullCursor::Include, true, "1\n2\n3\n5\n", "5\n"),
        (NullCursor::Include, false, "1\n2\n3\n5\n", ""),
        (NullCursor::Exclude, true, "1\n2\n3\n", ""),
    ] {
        let first = read(keyed, policy, None).await.unwrap();
        let mut lines: Vec<_> = first
            .batches
            .iter()
            .flat_map(|batch| {
                rows(std::slice::from_ref(batch)).lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        lines.sort();
        assert_eq!(lines.join("\n") + "\n", first_rows);
        assert_eq!(read(keyed, policy, first.end()).await.unwrap().rows(), later_rows, "{policy:?} {keyed}");
    }
    assert_eq!(
        read(true, NullCursor::Fail, None).await.err().unwrap().message(),
        "the cursor is NULL in a row"
    );
}

#[tokio::test]
async fn future_times_wait_or_are_read_again_and_lag_reads_back() {
    let shop = Shop::new(ORDERS);
    let first = shop.read(request("orders")).await.unwrap();
    shop.run("INSERT INTO orders VALUES (5, 'future', '2999-01-01 00:00:00')");
    let waits = shop.read(after("orders", &first.end())).await.unwrap();
    assert_eq!(waits.rows(), "");
    assert!(
        waits.notes.contains(&"1 rows lie in the future by `updated_at` and wait".into()),
        "{:?}",
        waits.notes
    );
    let reads = ReadRequest { beyond_horizon: BeyondHorizon::Read, ..after("orders", &waits.end()) };
    let reads = shop.read(reads).await.unwrap();
    assert!(reads.rows().contains("future"));
    // A row that comes with an older time than its commit is found by lag only.
    shop.run("INSERT INTO orders VALUES (6, 'late', datetime('now', '-5 minutes'))");
    assert_eq!(shop.read(after("orders", &reads.end())).await.unwrap().rows(), "");
    let lag = ReadRequest { lag: Duration::from_secs(600), ..after("orders", &reads.end()) };
    assert!(shop.read(lag).await.unwrap().rows().starts_with("6 | late"));
}

#[tokio::test]
async fn ids_and_versions_only_grow() {
    let shop = Shop::new(
        "CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT, revision INTEGER);
         INSERT INTO log (v) VALUES ('a'), ('b');",
    );
    let first = shop.read(ReadRequest { keyed: false, ..request("log") }).await.unwrap();
    assert_eq!(first.rows(), "1 | a | ∅\n2 | b | ∅\n");
    shop.run("INSERT INTO log (v) VALUES ('c'); UPDATE log SET v = 'A' WHERE id = 1;");
    let next = shop.read(ReadRequest { keyed: false, ..after("log", &first.end()) }).await.unwrap();
    assert_eq!(next.rows(), "3 | c | ∅\n");
    assert_eq!(next.end().unwrap().as_str(), r#"{"v":1,"kind":"id","column":"id","at":"3"}"#);
    shop.run("UPDATE log SET revision = id + 10");
    let version = |from| ReadRequest {
        change: ChangeDetection::Version,
        cursor: Some("revision".into()),
        ..after("log", &from)
    };
    let first = shop.read(version(None)).await.unwrap();
    shop.run("UPDATE log SET v = 'AA', revision = 14 WHERE id = 1");
    assert_eq!(shop.read(version(first.end())).await.unwrap().rows(), "1 | AA | 14\n");
    // A position of another cursor is of no use: everything, and the reason.
    let other = shop.read(after("log", &first.end())).await.unwrap();
    assert_eq!((other.extent, other.batches[0].num_rows()), (Extent::Whole, 3));
    assert!(other.notes.iter().any(|note| note.contains("another cursor")));
}

#[tokio::test]
async fn a_first_read_in_portions_goes_on_where_it_was_broken_off() {
    let shop = Shop::new(&format!(
        "{ORDERS} DELETE FROM orders;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO orders SELECT i * 3, 'row ' || i, '2024-01-01 10:00:00' FROM n;"
    ));
    let small = |from| ReadRequest {
        portion_bytes: 100_000,
        columns: Some(vec!["id".into()]),
        ..after("orders", &from)
    };
    let mut reading = shop.source().open(small(None)).await.unwrap();
    let mut seen = Vec::new();
    let mut resume = None;
    for _ in 0..3 {
        let portion = reading.next().await.unwrap().unwrap();
        assert!(!portion.complete);
        for mut stream in portion.streams {
            while let Some(batch) = stream.next().await {
                seen.push(batch.unwrap());
            }
        }
        resume = Some(portion.resume);
    }
    drop(reading);
    shop.run("UPDATE orders SET v = 'changed', updated_at = CURRENT_TIMESTAMP WHERE id = 3");
    let rest = shop.read(small(resume)).await.unwrap();
    assert!(rest.resumes.len() > 1 && rest.resumes.iter().filter(|(_, complete)| *complete).count() == 1);
    let count = seen.iter().chain(&rest.batches).map(RecordBatch::num_rows).sum::<usize>();
    let distinct: std::collections::BTreeSet<String> = seen
        .iter()
        .chain(&rest.batches)
        .flat_map(|batch| rows(std::slice::from_ref(batch)).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!((count, distinct.len()), (20_000, 20_000));
    // What changed in a part that was read before comes with the next pass.
    let next = shop.read(after("orders", &rest.end())).await.unwrap();
    assert!(next.rows().starts_with("3 | changed"), "{}", next.rows());
}

#[tokio::test]
async fn a_reading_sees_one_state_and_blocks_no_writer_in_wal_mode() {
    let shop = Shop::new(&format!("PRAGMA journal_mode = wal; {ORDERS}"));
    let mut reading =
        shop.source().open(ReadRequest { change: ChangeDetection::Full, ..request("orders") }).await.unwrap();
    shop.run("DELETE FROM orders WHERE id = 1; UPDATE orders SET v = 'x'");
    let portion = reading.next().await.unwrap().unwrap();
    let batch = portion.streams.into_iter().next().unwrap().next().await.unwrap().unwrap();
    assert_eq!(rows(&[batch.project(&[0, 1]).unwrap()]), "1 | a\n2 | b\n3 | c\n");
}

#[tokio::test]
async fn an_index_serves_every_window() {
    let shop = Shop::new(ORDERS);
    let first = shop.read(request("orders")).await.unwrap();
    let plan = shop.source().plan(&after("orders", &first.end())).await.unwrap();
    let reading = shop.source().open(after("orders", &first.end())).await.unwrap();
    for statement in [&plan.statement, &reading.plan().statement] {
        let how = all(&shop.db, &format!("EXPLAIN QUERY PLAN {statement}"));
        assert!(how.contains("orders_updated_at") && !how.contains("SCAN"), "{statement} {how}");
    }
    // Without WAL, a reader keeps writers from committing.
    drop(reading);
    let findings = shop.source().preflight(&request("orders")).await.unwrap();
    assert!(findings.iter().all(|finding| finding.severity == Severity::Note), "{findings:?}");
    shop.run("DROP INDEX orders_updated_at");
    let findings = shop.source().preflight(&request("orders")).await.unwrap();
    let remedy = findings.iter().find_map(|finding| finding.remedy.clone()).unwrap();
    shop.run(&remedy);
}

/// A target table, and loads into it.
struct Load {
    target: Arc<dyn Target>,
    table: TargetTable,
}

const LAKE: uuid::Uuid = uuid::Uuid::from_u128(7);

fn applied(snapshot: i64) -> Applied {
    Applied::new(LAKE, SnapshotId(snapshot))
}

impl Load {
    fn new(shop: &Shop, table: TargetTable) -> Self {
        Self { target: connectors::target(&shop.connection()).unwrap(), table }
    }

    async fn apply(
        &self,
        from: Option<i64>,
        to: i64,
        batches: Vec<RecordBatch>,
        strategy: Strategy,
    ) -> Result<MergeStats> {
        self.target.prepare(&self.table).await?;
        self.target.apply(self.merge(from, to, batches.into_iter().map(Ok).collect(), strategy)).await
    }

    fn merge(
        &self,
        from: Option<i64>,
        to: i64,
        batches: Vec<Result<RecordBatch>>,
        strategy: Strategy,
    ) -> Merge {
        let mut fields = self.table.schema.fields().to_vec();
        fields.push(Arc::new(Field::new("_op", DataType::Int8, false)));
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let with_op: Vec<_> = batches
            .into_iter()
            .map(|batch| {
                let batch = batch?;
                if batch.num_columns() == schema.fields().len() {
                    return Ok(batch);
                }
                let mut columns = batch.columns().to_vec();
                columns.push(Arc::new(Int8Array::from(vec![0; batch.num_rows()])));
                Ok(RecordBatch::try_new(schema.clone(), columns)?)
            })
            .map(|batch: Result<_>| batch.map_err(Into::into))
            .collect();
        Merge {
            turn: None,
            stream: "s".into(),
            table: self.table.clone(),
            from: from.map(applied),
            to: applied(to),
            strategy,
            changes: Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(with_op))),
            rows: None,
        }
    }
}

/// `id value op`: the value `-` is NULL.
fn changes(text: &str) -> RecordBatch {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<_>| !words.is_empty())
        .collect();
    let ids: arrow::array::Int64Array =
        lines.iter().map(|words| Some(words[0].parse::<i64>().unwrap())).collect();
    let values: arrow::array::StringArray =
        lines.iter().map(|words| Some(words[1]).filter(|word| *word != "-")).collect();
    let ops: Int8Array = lines.iter().map(|words| Some(i8::from(words[2] == "d"))).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(values), Arc::new(ops)];
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Utf8, true),
        Field::new("_op", DataType::Int8, false),
    ]);
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

fn pairs(deletes: Deletes) -> TargetTable {
    let schema =
        Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("v", DataType::Utf8, true)]);
    TargetTable {
        id: TableId::bare("pairs"),
        schema: Arc::new(schema),
        key: vec!["id".into()],
        deletes,
        versions: false,
    }
}

#[tokio::test]
async fn changes_are_applied_once_and_only_where_they_differ() {
    let shop = Shop::new("");
    let load = Load::new(&shop, pairs(Deletes::Hard));
    let stats = load.apply(None, 1, vec![changes("1 a u\n2 b u\n3 - u")], Strategy::Merge).await.unwrap();
    assert_eq!((stats.staged, stats.upserted, stats.deleted), (3, 3, 0));
    let stats = load
        .apply(Some(1), 2, vec![changes("1 a u\n2 B u\n3 - d\n4 d u\n9 - d")], Strategy::Merge)
        .await
        .unwrap();
    assert_eq!((stats.staged, stats.upserted, stats.deleted), (5, 2, 1));
    assert_eq!(all(&shop.db, "SELECT * FROM pairs ORDER BY id"), "1 a; 2 B; 4 d");
    // A second runner that saw the old state is told so, and changes nothing.
    let error = load.apply(Some(1), 3, vec![changes("1 z u")], Strategy::Merge).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(load.target.applied("s", &load.table.id).await.unwrap(), Some(applied(2)));
    assert_eq!(all(&shop.db, "SELECT * FROM pairs ORDER BY id"), "1 a; 2 B; 4 d");
    // A table that was dropped shows nothing any more.
    shop.run("DROP TABLE pairs");
    assert_eq!(load.target.applied("s", &load.table.id).await.unwrap(), None);
    load.apply(None, 3, vec![changes("1 z u")], Strategy::Merge).await.unwrap();
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "1 z");
}

#[tokio::test]
async fn deletes_may_be_marked_or_ignored() {
    let shop = Shop::new("");
    let soft = Load::new(&shop, pairs(Deletes::Soft));
    soft.apply(None, 1, vec![changes("1 a u\n2 b u")], Strategy::Merge).await.unwrap();
    let stats = soft.apply(Some(1), 2, vec![changes("1 - d")], Strategy::Merge).await.unwrap();
    assert_eq!(stats.deleted, 1);
    let marked = "SELECT id, v, _deleted_at IS NOT NULL FROM pairs ORDER BY id";
    assert_eq!(all(&shop.db, marked), "1 a 1; 2 b 0");
    soft.apply(Some(2), 3, vec![changes("1 a u")], Strategy::Merge).await.unwrap();
    assert_eq!(all(&shop.db, marked), "1 a 0; 2 b 0");

    let shop = Shop::new("");
    let ignore = Load::new(&shop, pairs(Deletes::Ignore));
    ignore.apply(None, 1, vec![changes("1 a u")], Strategy::Merge).await.unwrap();
    ignore.apply(Some(1), 2, vec![changes("1 - d")], Strategy::Merge).await.unwrap();
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "1 a");
}

#[tokio::test]
async fn a_replacement_is_whole_or_not_at_all() {
    let shop = Shop::new("PRAGMA journal_mode = wal;");
    let load = Load::new(&shop, pairs(Deletes::Hard));
    load.apply(None, 1, vec![changes("1 a u\n2 b u")], Strategy::Replace).await.unwrap();
    let broken = vec![
        Ok(changes("7 x u").project(&[0, 1]).unwrap()),
        Err(Error::new(ErrorKind::Transient, "the lake hung up")),
    ];
    let error = load.target.apply(load.merge(Some(1), 2, broken, Strategy::Replace)).await.unwrap_err();
    assert_eq!(error.message(), "the lake hung up");
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "1 a; 2 b");
    load.apply(Some(1), 2, vec![changes("7 x u")], Strategy::Replace).await.unwrap();
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "7 x");
}

#[tokio::test]
async fn appended_rows_need_no_key() {
    let shop = Shop::new("");
    let load = Load::new(&shop, TargetTable { key: Vec::new(), ..pairs(Deletes::Hard) });
    load.apply(None, 1, vec![changes("1 a u\n1 a u")], Strategy::Append).await.unwrap();
    load.apply(Some(1), 2, vec![changes("1 a u")], Strategy::Append).await.unwrap();
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "1 a; 1 a; 1 a");
}

#[tokio::test]
async fn a_table_is_widened_and_one_of_another_shape_is_refused() {
    let shop = Shop::new("CREATE TABLE pairs (id INTEGER PRIMARY KEY, extra INTEGER DEFAULT 7);");
    let load = Load::new(&shop, pairs(Deletes::Hard));
    assert_eq!(
        load.target.plan(&load.table).await.unwrap()[1..],
        [r#"ALTER TABLE "pairs" ADD COLUMN "v" TEXT"#]
    );
    load.apply(None, 1, vec![changes("1 a u")], Strategy::Merge).await.unwrap();
    assert_eq!(all(&shop.db, "SELECT id, extra, v FROM pairs"), "1 7 a");
    let mut text = String::new();
    for other in [
        "id INTEGER PRIMARY KEY, v INTEGER",
        "id INTEGER, v TEXT",
        "id TEXT PRIMARY KEY, v TEXT",
        "id INTEGER PRIMARY KEY, v TEXT, needed TEXT NOT NULL",
    ] {
        let shop = Shop::new(&format!("CREATE TABLE pairs ({other})"));
        let load = Load::new(&shop, pairs(Deletes::Hard));
        writeln!(text, "{}", said(&load.target.prepare(&load.table).await.unwrap_err())).unwrap();
    }
    expect![[r#"
        schema: the target table has another shape: column `v` is INTEGER there and TEXT in the stream (table: pairs)
          hint: load into another table, or rename this one away
        schema: no unique index has exactly the stream's key (table: pairs, key: id)
          hint: CREATE UNIQUE INDEX "pairs_key" ON "pairs" ("id")
        schema: the target table has another shape: column `id` is TEXT there and INTEGER in the stream (table: pairs)
          hint: load into another table, or rename this one away
        schema: the target table has another shape: column `needed` needs a value and the stream has none for it (table: pairs)
          hint: load into another table, or rename this one away
    "#]].assert_eq(&text);
}

#[tokio::test]
async fn collations_hide_no_change_and_computed_columns_are_left_alone() {
    let shop = Shop::new(
        "CREATE TABLE pairs (id INTEGER PRIMARY KEY, v TEXT COLLATE NOCASE, double INTEGER AS (id * 2) STORED);",
    );
    let load = Load::new(&shop, pairs(Deletes::Hard));
    load.apply(None, 1, vec![changes("1 a u")], Strategy::Merge).await.unwrap();
    load.apply(Some(1), 2, vec![changes("1 A u")], Strategy::Merge).await.unwrap();
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "1 A 2");
}

#[tokio::test]
async fn a_locked_target_says_so() {
    let shop = Shop::new("");
    let load = Load::new(&shop, pairs(Deletes::Hard));
    load.apply(None, 1, vec![changes("1 a u")], Strategy::Merge).await.unwrap();
    shop.run("BEGIN IMMEDIATE");
    let error = load.apply(Some(1), 2, vec![changes("1 b u")], Strategy::Merge).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Transient, "sqlite: database is locked"));
}

#[tokio::test]
async fn a_crash_inside_the_load_leaves_the_old_state() {
    let shop = Shop::new("");
    let load = Load::new(&shop, pairs(Deletes::Hard));
    load.apply(None, 1, vec![changes("1 a u")], Strategy::Merge).await.unwrap();
    // The runtime of the load is dropped in its middle: the changes break off, nothing ends them.
    let table = load.table.clone();
    let (first, then_never) = (changes("1 b u"), futures::stream::pending());
    let merge = Merge {
        changes: Box::pin(RecordBatchStreamAdapter::new(
            first.schema(),
            futures::stream::iter([Ok(first.clone())]).chain(then_never),
        )),
        ..load.merge(Some(1), 2, Vec::new(), Strategy::Merge)
    };
    let cut = tokio::time::timeout(Duration::from_millis(300), load.target.apply(merge)).await;
    assert!(cut.is_err());
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "1 a");
    let again = Load { target: load.target.clone(), table };
    again.apply(Some(1), 2, vec![changes("1 b u")], Strategy::Merge).await.unwrap();
    assert_eq!(all(&shop.db, "SELECT * FROM pairs"), "1 b");
}
