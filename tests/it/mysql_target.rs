//! MySQL and MariaDB as a target, against a real MariaDB: what rows become, and what is left after trouble.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use expect_test::{Expect, expect};
use frazil::connection::Connection;
use frazil::delta::SnapshotId;
use frazil::table::{LAKE_COLUMN_ID, OP_COLUMN, TableId};
use frazil::target::{Applied, Deletes, Merge, MergeStats, Strategy, Target, TargetTable};
use frazil::{Result, connectors};
use futures::TryStreamExt;

use crate::fixture::{self, MariaDatabase, read_request};

fn open(url: &str) -> Arc<dyn Target> {
    connectors::target(&Connection::parse("dwh", url).unwrap()).unwrap()
}

fn shows(snapshot: i64) -> Applied {
    Applied::new(uuid::Uuid::from_u128(7), SnapshotId(snapshot))
}

/// `id varchar, name text`, keyed by id.
fn people(deletes: Deletes) -> TargetTable {
    let id = |name: &str, nullable, number: u8| {
        let metadata = [(LAKE_COLUMN_ID.to_owned(), format!("t.{number}"))];
        Field::new(name, DataType::Utf8, nullable).with_metadata(metadata.into())
    };
    TargetTable {
        id: TableId::bare("people"),
        schema: Schema::new(vec![id("id", false, 1), id("name", true, 2)]).into(),
        key: vec!["id".into()],
        deletes,
        versions: false,
    }
}

/// A batch for [`people`]: `u a ann` upserts, `d b` deletes, one a line; `_` is a blank.
fn rows(table: &TargetTable, text: &str) -> RecordBatch {
    let lines: Vec<Vec<String>> = text
        .lines()
        .map(|line| line.split_whitespace().map(|word| word.replace('_', " ")).collect())
        .collect();
    let ids = StringArray::from_iter_values(lines.iter().map(|words| &words[1]));
    let names: StringArray = lines.iter().map(|words| words.get(2)).collect();
    let ops = Int8Array::from_iter_values(lines.iter().map(|words| i8::from(words[0] == "d")));
    with_ops(table, vec![Arc::new(ids), Arc::new(names)], ops)
}

fn with_ops(table: &TargetTable, mut columns: Vec<ArrayRef>, ops: Int8Array) -> RecordBatch {
    let mut fields = table.schema.fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    columns.push(Arc::new(ops));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Prepares and loads; snapshots count from 1.
async fn load(
    target: &dyn Target,
    table: &TargetTable,
    to: i64,
    strategy: Strategy,
    batch: RecordBatch,
) -> Result<MergeStats> {
    target.prepare(table).await?;
    let stats = target
        .apply(Merge {
            turn: None,
            stream: "shop.people".into(),
            table: table.clone(),
            from: (to > 1).then(|| shows(to - 1)),
            to: shows(to),
            strategy,
            changes: Box::pin(RecordBatchStreamAdapter::new(
                batch.schema(),
                futures::stream::iter([Ok(batch)]),
            )),
            rows: None,
        })
        .await?;
    assert_eq!(target.plan(table).await?, Vec::<String>::new(), "nothing is left to prepare");
    Ok(stats)
}

async fn load_people(
    target: &dyn Target,
    table: &TargetTable,
    to: i64,
    strategy: Strategy,
    text: &str,
) -> Result<(u64, u64, u64)> {
    let stats = load(target, table, to, strategy, rows(table, text)).await?;
    Ok((stats.staged, stats.upserted, stats.deleted))
}

async fn check(db: &MariaDatabase, sql: &str, expected: Expect) {
    expected.assert_eq(&db.text(sql).await);
}

const PEOPLE: &str =
    "SELECT CONCAT(id, '|'), CONCAT(name, '|') FROM people ORDER BY CAST(id AS BINARY), name";

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_inserted_updated_and_deleted_by_key() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("merge").await;
    let (target, table) = (open(&db.url()), people(Deletes::Hard));
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), None);
    let merge = Strategy::Merge;
    assert_eq!(load_people(&*target, &table, 1, merge, "u a ann\nu b bob\nu c").await.unwrap(), (3, 3, 0));
    check(
        &db,
        PEOPLE,
        expect![[r#"
        a| | ann|
        b| | bob|
        c| | ∅"#]],
    )
    .await;
    check(
        &db,
        "SHOW CREATE TABLE people",
        expect![[r#"
        people | CREATE TABLE `people` (
          `id` varchar(768) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL,
          `name` longtext DEFAULT NULL,
          PRIMARY KEY (`id`)
        ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci"#]],
    )
    .await;
    // Case and blanks at the end tell keys apart.
    let changes = "u a anna\nu A upper\nu a_ blank\nd b\nd nobody";
    assert_eq!(load_people(&*target, &table, 2, merge, changes).await.unwrap(), (5, 3, 1));
    check(
        &db,
        PEOPLE,
        expect![[r#"
        A| | upper|
        a| | anna|
        a | | blank|
        c| | ∅"#]],
    )
    .await;
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), Some(shows(2)));
    // A second runner that saw what the first saw comes too late, and changes nothing.
    let late = load_people(&*target, &table, 2, merge, "u z zoe").await.unwrap_err();
    expect![[r#"
        conflict: another runner has moved this table in the meantime (table: DB.people, connection: dwh)
          hint: nothing of this run was loaded; the next one goes on from there"#]]
    .assert_eq(&format!("{late:?}").replace(db.name(), "DB"));
    check(
        &db,
        PEOPLE,
        expect![[r#"
        A| | upper|
        a| | anna|
        a | | blank|
        c| | ∅"#]],
    )
    .await;

    assert_eq!(
        load_people(&*target, &table, 3, Strategy::Replace, "u a anna\nu d dan").await.unwrap(),
        (2, 2, 3)
    );
    check(
        &db,
        PEOPLE,
        expect![[r#"
        a| | anna|
        d| | dan|"#]],
    )
    .await;
    let mut log = people(Deletes::Hard);
    (log.id, log.key) = (TableId::new(db.name(), "log"), Vec::new());
    for to in 1..=2 {
        assert_eq!(
            load_people(&*target, &log, to, Strategy::Append, "u a x\nu a x").await.unwrap(),
            (2, 2, 0)
        );
    }
    assert_eq!(db.text("SELECT COUNT(*) FROM log").await, "4");
    assert_eq!(load_people(&*target, &log, 3, Strategy::Replace, "u b y").await.unwrap(), (1, 1, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_rows_are_marked_or_stay() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("deletes").await;
    let (target, mut table) = (open(&db.url()), people(Deletes::Soft));
    load_people(&*target, &table, 1, Strategy::Merge, "u a ann\nu b bob").await.unwrap();
    load_people(&*target, &table, 2, Strategy::Merge, "d a\nd b").await.unwrap();
    load_people(&*target, &table, 3, Strategy::Merge, "u b bob").await.unwrap();
    check(
        &db,
        "SELECT id, _deleted_at IS NOT NULL FROM people ORDER BY id",
        expect![[r#"
        a | 1
        b | 0"#]],
    )
    .await;
    table.deletes = Deletes::Ignore;
    load_people(&*target, &table, 4, Strategy::Merge, "d a\nd b").await.unwrap();
    assert_eq!(db.text("SELECT COUNT(*) FROM people").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_kept() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("versions").await;
    let (target, mut table) = (open(&db.url()), people(Deletes::Hard));
    table.versions = true;
    let at = |second: i64, whole| Strategy::Versions {
        at: chrono::DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap(),
        whole,
    };
    load_people(&*target, &table, 1, at(1, false), "u a ann\nu b bob").await.unwrap();
    load_people(&*target, &table, 2, at(2, false), "u a anna\nu b bob\nd c").await.unwrap();
    load_people(&*target, &table, 3, at(3, false), "d b\nu a anna_").await.unwrap();
    load_people(&*target, &table, 4, at(4, true), "u d dan").await.unwrap();
    check(
        &db,
        "SELECT id, CONCAT(name, '|'), UNIX_TIMESTAMP(_valid_from) - 1700000000, UNIX_TIMESTAMP(_valid_to) - 1700000000, _is_current
         FROM people ORDER BY id, _valid_from",
        expect![[r#"
            a | ann| | 1.000000 | 2.000000 | 0
            a | anna| | 2.000000 | 3.000000 | 0
            a | anna | | 3.000000 | 4.000000 | 0
            b | bob| | 1.000000 | 3.000000 | 0
            d | dan| | 4.000000 | ∅ | 1"#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_change_with_the_lake() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("shapes").await;
    let target = open(&db.url());
    let field = |name: &str, of: DataType, number: u8| {
        let metadata = [(LAKE_COLUMN_ID.to_owned(), format!("t.{number}"))];
        Field::new(name, of, true).with_metadata(metadata.into())
    };
    let table =
        |fields: Vec<Field>| TargetTable { schema: Schema::new(fields).into(), ..people(Deletes::Hard) };
    let before = table(vec![
        field("id", DataType::Int32, 1),
        field("a", DataType::Utf8, 2),
        field("b", DataType::Utf8, 3),
        field("n", DataType::Int32, 4),
    ]);
    let text = |value: &str| Arc::new(StringArray::from(vec![value])) as ArrayRef;
    let int = |value: i32| Arc::new(Int32Array::from(vec![value])) as ArrayRef;
    let op = || Int8Array::from(vec![0]);
    let batch = with_ops(&before, vec![int(1), text("of a"), text("of b"), int(7)], op());
    load(&*target, &before, 1, Strategy::Merge, batch).await.unwrap();
    // Names exchanged, a type widened, a column more.
    let after = table(vec![
        field("id", DataType::Int64, 1),
        field("b", DataType::Utf8, 2),
        field("a", DataType::Utf8, 3),
        field("n", DataType::Int64, 4),
        field("new", DataType::Date32, 5),
    ]);
    let long = |value: i64| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let date = Arc::new(Date32Array::from(vec![0]));
    let batch = with_ops(&after, vec![long(1 << 40), text("x"), text("y"), long(1 << 40), date], op());
    load(&*target, &after, 2, Strategy::Merge, batch).await.unwrap();
    check(
        &db,
        "SELECT id, a, b, n, new FROM people ORDER BY id",
        expect![[r#"
        1 | of b | of a | 7 | ∅
        1099511627776 | y | x | 1099511627776 | 1970-01-01"#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_is_said_and_changes_nothing() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("wrong").await;
    let (target, table) = (open(&db.url()), people(Deletes::Hard));
    let trouble = async |sql: &str, changes: &str| {
        db.run(&format!("DROP TABLE IF EXISTS people, frazil_applied;\n{sql}")).await;
        let error = load_people(&*target, &table, 1, Strategy::Merge, changes).await.unwrap_err();
        let text = format!("{error:?}").replace(db.name(), "DB");
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), None, "{text}");
        text
    };
    let mut said = String::new();
    for (sql, changes) in [
        ("CREATE TABLE people (id varchar(5) PRIMARY KEY, name varchar(3))", "u a ann\nu b four"),
        (
            "CREATE TABLE people (id varchar(5) COLLATE utf8mb4_general_ci PRIMARY KEY, name text)",
            "u a s3cret\nu A s3cret",
        ),
        (
            "CREATE TABLE people (id varchar(5) PRIMARY KEY, name varchar(20) UNIQUE)",
            "u a s3cret\nu b s3cret",
        ),
        (
            "CREATE TABLE people (id varchar(5) PRIMARY KEY, name text CHARACTER SET latin1)",
            "u a s3cret\u{1f980}",
        ),
        ("CREATE TABLE people (id varchar(5) PRIMARY KEY, name enum('x'))", "u a s3cret"),
        ("CREATE TABLE people (id varchar(5) PRIMARY KEY, name char(9))", "u a blank_"),
        ("CREATE TABLE people (id varchar(5) PRIMARY KEY, name text CHECK (name <> 's3cret'))", "u a s3cret"),
        ("CREATE TABLE people (id varchar(5) PRIMARY KEY, name int)", "u a 1"),
        ("CREATE TABLE people (id varchar(5) PRIMARY KEY, name text) ENGINE=MyISAM", "u a ann"),
        ("CREATE TABLE people (id varchar(5) CHARACTER SET latin1 PRIMARY KEY, name text)", "u a ann"),
        ("CREATE TABLE people (id varchar(5), name text);\nINSERT INTO people VALUES ('x', 'y')", "u a ann"),
        ("CREATE VIEW people AS SELECT 'a' AS id, 'b' AS name", "u a ann"),
    ] {
        said += &(trouble(sql, changes).await + "\n");
    }
    expect![[r#"
        data: a value is longer than the target's column (column: name, table: DB.people, connection: dwh)
          hint: give the column of the target a type that holds what the source has
        data: two keys of the stream are one to the target's key column (table: DB.people, connection: dwh)
          hint: give the column a collation that tells them apart: `utf8mb4_nopad_bin`, in MySQL `utf8mb4_0900_bin`
        data: a row has a key that another row has (number: 1062, table: DB.people, connection: dwh)
          hint: another unique index of the target has this value already
        data: a value is not one of its column's type or character set (number: 1366, table: DB.people, connection: dwh)
        data: a value is not one of its column's type or character set (number: 1265, table: DB.people, connection: dwh)
        data: a text ends with a blank, which the target's `char` column would lose (column: name, table: DB.people, connection: dwh)
          hint: give the column of the target a type that holds what the source has
        data: a row does not meet a condition of the table (number: 4025, table: DB.people, connection: dwh)
        schema: the target table has another shape: column `name` is int there and longtext in the stream (table: DB.people, connection: dwh)
          hint: to make it fit, if its data allow: ALTER TABLE `DB`.`people` MODIFY COLUMN `name` longtext NULL
        config: the target's engine MyISAM has no transactions (table: DB.people, connection: dwh)
          hint: run `ALTER TABLE `DB`.`people` ENGINE=InnoDB`
        schema: a column of type varchar(5) in latin1_swedish_ci cannot be a key (table: DB.people, column: id, connection: dwh)
          hint: give it a type with a length and the character set utf8mb4
        schema: no unique index has exactly the key columns `id` (table: DB.people, connection: dwh)
          hint: run `ALTER TABLE `DB`.`people` ADD PRIMARY KEY (`id`)`
        config: the target is a view, which cannot be loaded (table: DB.people, connection: dwh)
          hint: load into another table, or rename this one away
    "#]].assert_eq(&said);
}

/// Values of every Arrow type, at the edges of what both sides hold.
fn mixed() -> (TargetTable, Vec<ArrayRef>) {
    let decimal = |precision, scale, values: Vec<Option<i128>>| {
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
            as ArrayRef
    };
    let nines = 10_i128.pow(38) - 1;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("yes", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("i4", Arc::new(Int32Array::from(vec![Some(i32::MIN), Some(i32::MAX), None]))),
        ("i8", Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), None]))),
        (
            "f4",
            Arc::new(Float32Array::from(vec![Some(f32::MIN), Some(f32::MIN_POSITIVE), Some(16_777_217.0)])),
        ),
        ("f8", Arc::new(Float64Array::from(vec![Some(f64::MAX), Some(5e-324), Some(-5e-324)]))),
        ("n", decimal(38, 10, vec![Some(-nines), Some(1), None])),
        ("n0", decimal(20, 0, vec![Some(u64::MAX.into()), Some(0), None])),
        ("t", Arc::new(StringArray::from(vec![Some("\0\t\n\r\\N\\' \u{1f980}"), Some(""), None]))),
        ("b", Arc::new(BinaryArray::from(vec![Some(all_bytes.as_slice()), Some(b""), None]))),
        (
            "fixed",
            Arc::new(FixedSizeBinaryArray::try_from_iter([[0, 9, 10, 92], [255; 4], [0; 4]].iter()).unwrap()),
        ),
        ("d", Arc::new(Date32Array::from(vec![Some(-719_162), Some(2_932_896), None]))),
        ("tm", Arc::new(Time64MicrosecondArray::from(vec![Some(0), Some(86_399_999_999), None]))),
        (
            "ts",
            Arc::new(TimestampMicrosecondArray::from(vec![
                Some(-62_135_596_800_000_000),
                Some(253_402_300_799_999_999),
                None,
            ])),
        ),
        (
            "tz",
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(-1), Some(4_102_444_800_000_001), None])
                    .with_timezone("UTC"),
            ),
        ),
    ];
    let fields: Vec<_> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let table = TargetTable { schema: Schema::new(fields).into(), ..people(Deletes::Hard) };
    (table, columns.into_iter().map(|(_, array)| array).collect())
}

/// What the table holds, read back by the source.
async fn read_back(db: &MariaDatabase, columns: &Schema) -> Vec<ArrayRef> {
    let source = connectors::source(&Connection::parse("dwh", &db.url()).unwrap()).unwrap();
    let mut request = read_request(TableId::new(db.name(), "people"), frazil::source::ChangeDetection::Full);
    request.parallel = 1;
    if columns.column_with_name("yes").is_some() {
        request.values.types.insert("yes".into(), "boolean".into());
    }
    let mut reading = source.open(request).await.unwrap();
    let portion = reading.next().await.unwrap().unwrap();
    let batches: Vec<RecordBatch> = portion.streams.into_iter().next().unwrap().try_collect().await.unwrap();
    let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
    columns.fields().iter().map(|field| batch.column_by_name(field.name()).unwrap().clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_come_back_to_the_last_bit() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("values").await;
    let target = open(&db.url());
    let (table, columns) = mixed();
    // Once as a file, once by INSERTs, as where the server takes no files.
    for (to, takes_files) in [(1, "ON"), (2, "OFF")] {
        db.run(&format!("SET GLOBAL local_infile = {takes_files}")).await;
        let batch = with_ops(&table, columns.clone(), Int8Array::from(vec![0; 3]));
        let loaded = load(&*target, &table, to, Strategy::Replace, batch).await;
        db.run("SET GLOBAL local_infile = ON").await;
        loaded.unwrap();
        let there = read_back(&db, &table.schema).await;
        for ((field, wrote), read) in table.schema.fields().iter().zip(&columns).zip(&there) {
            let read = match field.name().as_str() {
                // What a `datetime` holds has no zone.
                "tz" => arrow::compute::cast(read, field.data_type()).unwrap(),
                "fixed" => arrow::compute::cast(read, &DataType::FixedSizeBinary(4)).unwrap(),
                _ => read.clone(),
            };
            assert_eq!(&read, wrote, "{} by a file: {takes_files}", field.name());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_values_come_back_to_the_last_bit() {
    use proptest::prelude::{Strategy as _, any};
    use proptest::strategy::ValueTree;
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("random").await;
    let target = open(&db.url());
    let row = (
        any::<Option<i64>>(),
        // The server has one zero.
        proptest::option::of(any::<f32>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| n + 0.0)),
        proptest::option::of(any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| n + 0.0)),
        proptest::option::of(-(10_i128.pow(38) - 1)..10_i128.pow(38)),
        any::<Option<String>>(),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        proptest::option::of(-62_135_596_800_000_000_i64..253_402_300_800_000_000),
    );
    let mut runner = proptest::test_runner::TestRunner::default();
    let all = proptest::collection::vec(row, 2000).new_tree(&mut runner).unwrap().current();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..all.len() as i64))),
        ("i8", Arc::new(all.iter().map(|row| row.0).collect::<Int64Array>())),
        ("f4", Arc::new(all.iter().map(|row| row.1).collect::<Float32Array>())),
        ("f8", Arc::new(all.iter().map(|row| row.2).collect::<Float64Array>())),
        (
            "n",
            Arc::new(
                all.iter()
                    .map(|row| row.3)
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(38, 19)
                    .unwrap(),
            ),
        ),
        ("t", Arc::new(all.iter().map(|row| row.4.clone()).collect::<StringArray>())),
        ("b", Arc::new(all.iter().map(|row| row.5.clone()).collect::<BinaryArray>())),
        ("ts", Arc::new(all.iter().map(|row| row.6).collect::<TimestampMicrosecondArray>())),
    ];
    let fields: Vec<_> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let columns: Vec<ArrayRef> = columns.into_iter().map(|(_, array)| array).collect();
    let table = TargetTable { schema: Schema::new(fields).into(), ..people(Deletes::Hard) };
    let batch = with_ops(&table, columns.clone(), Int8Array::from(vec![0; all.len()]));
    load(&*target, &table, 1, Strategy::Merge, batch).await.unwrap();
    // In the order of the key, as InnoDB keeps its rows.
    for ((field, wrote), read) in
        table.schema.fields().iter().zip(&columns).zip(read_back(&db, &table.schema).await)
    {
        assert_eq!(&read, wrote, "{}", field.name());
    }
}
