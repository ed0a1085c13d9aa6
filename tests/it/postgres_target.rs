//! The Postgres target against a real server: what rows become, and what is left after each trouble.

use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::*;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use expect_test::{Expect, expect};
use frazil::connection::Connection;
use frazil::delta::SnapshotId;
use frazil::table::{LAKE_COLUMN_ID, OP_COLUMN, SOURCE_TYPE, TableId};
use frazil::target::{Applied, Deletes, Merge, MergeStats, Strategy, Target, TargetTable};
use frazil::{Error, ErrorKind, Result, connectors};
use futures::StreamExt;

use crate::fixture::{self, Database};

const LAKE_TABLE: uuid::Uuid = uuid::Uuid::from_u128(7);

fn open(url: &str) -> Arc<dyn Target> {
    connectors::target(&Connection::parse("dwh", url).unwrap()).unwrap()
}

fn shows(snapshot: i64) -> Applied {
    Applied::new(LAKE_TABLE, SnapshotId(snapshot))
}

/// A field of a Postgres type, as the Postgres source makes it.
fn field(name: &str, arrow: DataType, source_type: &str) -> Field {
    let metadata = [(SOURCE_TYPE.to_owned(), format!("postgres:{source_type}"))];
    Field::new(name, arrow, true).with_metadata(metadata.into())
}

/// `id bigint, name text`, keyed by id.
fn people(deletes: Deletes) -> TargetTable {
    TargetTable {
        id: TableId::new("public", "people"),
        schema: Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
        ])
        .into(),
        key: vec!["id".into()],
        deletes,
        versions: false,
    }
}

/// A batch for [`people`]: `u 1 ann` upserts, `d 2` deletes, one a line.
fn rows(text: &str) -> RecordBatch {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<_>| !words.is_empty())
        .collect();
    let ids: Int64Array = lines.iter().map(|words| words[1].parse::<i64>().ok()).collect();
    let names: StringArray = lines.iter().map(|words| words.get(2).copied()).collect();
    let ops: Int8Array = lines.iter().map(|words| Some(i8::from(words[0] == "d"))).collect();
    with_ops(&people(Deletes::Hard), vec![Arc::new(ids), Arc::new(names)], ops)
}

fn with_ops(table: &TargetTable, mut columns: Vec<ArrayRef>, ops: Int8Array) -> RecordBatch {
    let mut fields = table.schema.fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    columns.push(Arc::new(ops));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn merge(
    table: &TargetTable,
    from: Option<i64>,
    to: i64,
    strategy: Strategy,
    batches: Vec<Result<RecordBatch>>,
) -> Merge {
    let mut fields = table.schema.fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    let batches = batches.into_iter().map(|batch| batch.map_err(Into::into));
    Merge {
        turn: None,
        stream: "shop.people".into(),
        table: table.clone(),
        from: from.map(shows),
        to: shows(to),
        strategy,
        changes: Box::pin(RecordBatchStreamAdapter::new(
            Arc::new(Schema::new(fields)),
            futures::stream::iter(batches),
        )),
        rows: None,
    }
}

/// Prepares and loads; snapshots count from 1.
async fn load(
    target: &dyn Target,
    table: &TargetTable,
    to: i64,
    strategy: Strategy,
    text: &str,
) -> Result<MergeStats> {
    target.prepare(table).await?;
    let from = (to > 1).then_some(to - 1);
    target.apply(merge(table, from, to, strategy, vec![Ok(rows(text))])).await
}

const PEOPLE: &str = "select id, name from people order by id, name";

async fn check(db: &Database, sql: &str, expected: Expect) {
    expected.assert_eq(&db.text(sql).await);
}

fn shown(stats: MergeStats) -> (u64, u64, u64) {
    (stats.staged, stats.upserted, stats.deleted)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_inserted_updated_and_deleted_by_key() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("merge").await;
    let target = open(&db.url());
    let table = people(Deletes::Hard);
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), None);

    let stats = load(&*target, &table, 1, Strategy::Merge, "u 1 ann\nu 2 bob\nu 3").await.unwrap();
    assert_eq!(shown(stats), (3, 3, 0));
    check(&db, PEOPLE, expect!["1 | ann\n2 | bob\n3 | ∅"]).await;
    check(
        &db,
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'people'::regclass and contype = 'p'",
        expect!["PRIMARY KEY (id)"],
    )
    .await;

    let stats = load(&*target, &table, 2, Strategy::Merge, "u 1 anna\nd 2\nu 4 dan\nd 99").await.unwrap();
    assert_eq!(shown(stats), (4, 2, 1));
    check(&db, PEOPLE, expect!["1 | anna\n3 | ∅\n4 | dan"]).await;
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), Some(shows(2)));
    check(
        &db,
        "select stream, target_table, lake_table, snapshot_id, rows, columns from frazil_applied order by stream",
        expect!["(made by frazil) | people | 00000000-0000-0000-0000-000000000000 | 0 | 0 | {}\nshop.people | people | 00000000-0000-0000-0000-000000000007 | 2 | 4 | {}"],
    )
    .await;
    assert_eq!(target.plan(&table).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_deletes_mark_and_ignored_ones_stay() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("deletes").await;
    let target = open(&db.url());
    let soft = people(Deletes::Soft);
    load(&*target, &soft, 1, Strategy::Merge, "u 1 ann\nu 2 bob").await.unwrap();
    let stats = load(&*target, &soft, 2, Strategy::Merge, "d 1\nd 2").await.unwrap();
    assert_eq!(shown(stats), (2, 0, 2));
    load(&*target, &soft, 3, Strategy::Merge, "u 2 bob\nd 1").await.unwrap();
    check(
        &db,
        "select id, name, _deleted_at is not null from people order by id",
        expect!["1 | ann | t\n2 | bob | f"],
    )
    .await;

    let ignored = TargetTable { id: TableId::new("public", "kept"), ..people(Deletes::Ignore) };
    load(&*target, &ignored, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    let stats = load(&*target, &ignored, 2, Strategy::Merge, "d 1").await.unwrap();
    assert_eq!(shown(stats), (1, 0, 0));
    check(&db, "select * from kept", expect!["1 | ann"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_equal_already_are_not_written() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("noop").await;
    let target = open(&db.url());
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Merge, "u 1 ann\nu 2").await.unwrap();
    let before = db.text("select xmin, ctid from people order by id").await;
    let stats = load(&*target, &table, 2, Strategy::Merge, "u 1 ann\nu 2").await.unwrap();
    assert_eq!(shown(stats), (2, 0, 0));
    assert_eq!(db.text("select xmin, ctid from people order by id").await, before);
}

/// `1.0` and `1.00` are equal and not the same; so are `citext` in two cases and intervals of one length.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_equal_but_not_the_same_are_written() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("images").await;
    db.run("create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
            create table odd (id bigint primary key, n numeric, f float8, i interval, j jsonb, b box, c text collate nocase)").await;
    let target = open(&db.url());
    let table = TargetTable {
        id: TableId::new("public", "odd"),
        schema: Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            field("n", DataType::Utf8, "numeric"),
            field("f", DataType::Float64, "double precision"),
            field("i", DataType::Utf8, "interval"),
            field("j", DataType::Utf8, "jsonb"),
            field("b", DataType::Utf8, "box"),
            field("c", DataType::Utf8, "text"),
        ])
        .into(),
        key: vec!["id".into()],
        deletes: Deletes::Hard,
        versions: false,
    };
    let batch = |values: [&str; 6]| {
        let n = |i: usize| -> ArrayRef {
            // Row r shows the new value of column r only.
            Arc::new(StringArray::from_iter_values((0..6).map(|r| if r == i { values[i] } else { OLD[i] })))
        };
        const OLD: [&str; 6] = ["1.0", "0", "P1M", r#"{"a": 1.0}"#, "(2,2),(0,0)", "Ann"];
        let floats = Float64Array::from_iter_values(
            (0..6).map(|r| if r == 1 { values[1].parse::<f64>().unwrap() } else { 0.0 }),
        );
        let ids = Int64Array::from_iter_values(0..6);
        with_ops(
            &table,
            vec![Arc::new(ids), n(0), Arc::new(floats), n(2), n(3), n(4), n(5)],
            vec![0; 6].into(),
        )
    };
    target.prepare(&table).await.unwrap();
    let first = batch(["1.0", "0", "P1M", r#"{"a": 1.0}"#, "(2,2),(0,0)", "Ann"]);
    target.apply(merge(&table, None, 1, Strategy::Merge, vec![Ok(first)])).await.unwrap();
    let second = batch(["1.00", "-0", "P30D", r#"{"a": 1.00}"#, "(4,1),(0,0)", "ANN"]);
    let stats =
        target.apply(merge(&table, Some(1), 2, Strategy::Merge, vec![Ok(second.clone())])).await.unwrap();
    assert_eq!(shown(stats), (6, 6, 0));
    check(
        &db,
        "select n, f, i, j, b, c from odd order by id",
        expect![[r#"
        1.00 | 0 | 1 mon | {"a": 1.0} | (2,2),(0,0) | Ann
        1.0 | -0 | 1 mon | {"a": 1.0} | (2,2),(0,0) | Ann
        1.0 | 0 | 30 days | {"a": 1.0} | (2,2),(0,0) | Ann
        1.0 | 0 | 1 mon | {"a": 1.00} | (2,2),(0,0) | Ann
        1.0 | 0 | 1 mon | {"a": 1.0} | (4,1),(0,0) | Ann
        1.0 | 0 | 1 mon | {"a": 1.0} | (2,2),(0,0) | ANN"#]],
    )
    .await;
    let stats = target.apply(merge(&table, Some(2), 3, Strategy::Merge, vec![Ok(second)])).await.unwrap();
    assert_eq!(shown(stats), (6, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn appending_adds_every_row() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("append").await;
    let target = open(&db.url());
    let table = TargetTable { key: vec![], ..people(Deletes::Hard) };
    load(&*target, &table, 1, Strategy::Append, "u 1 ann").await.unwrap();
    let stats = load(&*target, &table, 2, Strategy::Append, "u 1 ann\nu 1 bob").await.unwrap();
    assert_eq!(shown(stats), (2, 2, 0));
    check(&db, PEOPLE, expect!["1 | ann\n1 | ann\n1 | bob"]).await;
}

/// Readers in every kind of transaction see the old rows or the new ones, never a mix and never none.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_is_seen_whole_or_not_at_all() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("replace").await;
    let target = open(&db.url());
    for key in [vec![], vec!["id".to_owned()]] {
        let name = if key.is_empty() { "bag" } else { "keyed" };
        let table = TargetTable { id: TableId::new("public", name), key, ..people(Deletes::Hard) };
        load(&*target, &table, 1, Strategy::Replace, "u 1 old\nu 2 old\nu 3 old").await.unwrap();
        db.run(&format!("create view {name}_view as select * from {name}")).await;
        let sql = format!("select string_agg(name, ' ' order by id) from {name}_view");

        let reader = db.client().await;
        reader
            .batch_execute("begin isolation level repeatable read; select 1 from pg_class limit 1")
            .await
            .unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let watcher = tokio::spawn({
            let (client, sql, stop) = (db.client().await, sql.clone(), stop.clone());
            async move {
                let mut seen = std::collections::BTreeSet::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let text: Option<String> = client.query_one(&sql, &[]).await.unwrap().get(0);
                    seen.insert(text.unwrap_or_default());
                }
                seen
            }
        });
        for snapshot in 2..30 {
            let text = if snapshot % 2 == 0 { "u 1 new\nu 4 new" } else { "u 1 old\nu 2 old\nu 3 old" };
            load(&*target, &table, snapshot, Strategy::Replace, text).await.unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let seen: Vec<_> = watcher.await.unwrap().into_iter().collect();
        assert_eq!(seen, ["new new", "old old old"], "{name}");
        let old: String = reader.query_one(&sql, &[]).await.unwrap().get(0);
        assert_eq!(old, "old old old", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_runners_one_wins_and_one_hears_of_it() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("conflict").await;
    let (one, two) = (open(&db.url()), open(&db.url()));
    let table = people(Deletes::Hard);
    one.prepare(&table).await.unwrap();
    for (from, to) in [(None, 1), (Some(1), 2)] {
        let text = format!("u {to} x");
        let (a, b) = tokio::join!(
            one.apply(merge(&table, from, to, Strategy::Merge, vec![Ok(rows(&text))])),
            two.apply(merge(&table, from, to, Strategy::Merge, vec![Ok(rows(&text))])),
        );
        let (winner, loser) = if a.is_ok() { (a, b) } else { (b, a) };
        winner.unwrap();
        let loser = loser.unwrap_err();
        assert_eq!(loser.kind(), ErrorKind::Conflict);
        assert!(loser.message().contains("another runner"), "{loser}");
    }
    let stale =
        one.apply(merge(&table, Some(1), 3, Strategy::Merge, vec![Ok(rows("u 9 x"))])).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Conflict);
    check(&db, PEOPLE, expect!["1 | x\n2 | x"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_breaks_off_leaves_the_old_state() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("broken").await;
    let target = open(&db.url());
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Merge, "u 1 ann").await.unwrap();

    // The stream fails in the middle.
    let broken = Err(Error::new(ErrorKind::Corrupt, "a file is damaged"));
    let error = target
        .apply(merge(&table, Some(1), 2, Strategy::Merge, vec![Ok(rows("u 1 anna\nu 2 bob")), broken]))
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Corrupt, "a file is damaged"));

    // The runner goes away in the middle: its session ends with it.
    let never = futures::stream::iter([Ok(rows("u 1 anna"))]).chain(futures::stream::pending());
    let mut hanging = merge(&table, Some(1), 2, Strategy::Merge, vec![]);
    hanging.changes = Box::pin(RecordBatchStreamAdapter::new(hanging.changes.schema(), never));
    let gone = tokio::time::timeout(std::time::Duration::from_millis(300), target.apply(hanging)).await;
    assert!(gone.is_err());

    check(&db, PEOPLE, expect!["1 | ann"]).await;
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), Some(shows(1)));
    load(&*target, &table, 2, Strategy::Merge, "u 1 anna").await.unwrap();
    check(&db, PEOPLE, expect!["1 | anna"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_users_own_are_respected() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("own").await;
    db.run(
        "create schema \"My Schema\";
            create table \"My Schema\".\"Order\" (
                \"Id\" bigint generated always as identity primary key,
                \"select\" text, \"quo\"\"te\" varchar,
                double text generated always as (\"select\" || \"select\") stored,
                noted_at timestamptz not null default now(), extra int)",
    )
    .await;
    let target = open(&db.url());
    let table = TargetTable {
        id: TableId::new("My Schema", "Order"),
        schema: Schema::new(vec![
            Field::new("Id", DataType::Int64, false),
            Field::new("select", DataType::Utf8, true),
            Field::new("quo\"te", DataType::Utf8, true),
            Field::new("double", DataType::Utf8, true),
        ])
        .into(),
        key: vec!["Id".into()],
        deletes: Deletes::Hard,
        versions: false,
    };
    target.prepare(&table).await.unwrap();
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; 2])) };
    for (from, to, value) in [(None, 1, "a"), (Some(1), 2, "b")] {
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
        let batch = with_ops(&table, vec![ids, text(value), text("q"), text("wrong")], vec![0, 0].into());
        target.apply(merge(&table, from, to, Strategy::Merge, vec![Ok(batch)])).await.unwrap();
    }
    check(&db, "select \"Id\", \"select\", \"quo\"\"te\", double, noted_at is not null, extra from \"My Schema\".\"Order\"",
        expect!["7 | b | q | bb | t | ∅\n8 | b | q | bb | t | ∅"]).await;

    let long = TargetTable { id: TableId::new("public", "x".repeat(64)), ..people(Deletes::Hard) };
    let error = target.prepare(&long).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_shape_is_named_column_by_column() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("shape").await;
    db.run(
        "create table people (id int primary key, name bytea, must text not null);
            create table nokey (id bigint, name text); insert into nokey values (1)",
    )
    .await;
    let target = open(&db.url());
    let error = target.prepare(&people(Deletes::Hard)).await.unwrap_err();
    expect![[r#"
        schema: the target table has another shape: column `id` is integer there and bigint in the stream; column `name` is bytea there and text in the stream; column `must` needs a value and the stream has none for it (table: public.people, connection: dwh)
          hint: to make it fit, if its data allow: ALTER TABLE "public"."people" ALTER COLUMN "id" TYPE bigint; ALTER TABLE "public"."people" ALTER COLUMN "name" TYPE text USING "name"::text; ALTER TABLE "public"."people" ALTER COLUMN "must" DROP NOT NULL"#]]
    .assert_eq(&format!("{error:?}"));

    let nokey = TargetTable { id: TableId::new("public", "nokey"), ..people(Deletes::Hard) };
    let error = target.prepare(&nokey).await.unwrap_err();
    expect![[r#"
        schema: no unique index has exactly the key columns "id" (table: public.nokey, connection: dwh)
          hint: run `ALTER TABLE "public"."nokey" ADD PRIMARY KEY ("id")`"#]]
    .assert_eq(&format!("{error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_ours_is_widened() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("widen").await;
    let target = open(&db.url());
    let narrow = TargetTable {
        schema: Schema::new(vec![
            Field::new("id", DataType::Int32, false),
            field("name", DataType::Utf8, "character varying(3)"),
            Field::new("net", DataType::Decimal128(5, 2), false),
        ])
        .into(),
        ..people(Deletes::Hard)
    };
    target.prepare(&narrow).await.unwrap();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![1])),
        Arc::new(StringArray::from(vec!["ann"])),
        Arc::new(Decimal128Array::from(vec![12345]).with_precision_and_scale(5, 2).unwrap()),
    ];
    let batch = with_ops(&narrow, columns, vec![0].into());
    target.apply(merge(&narrow, None, 1, Strategy::Merge, vec![Ok(batch)])).await.unwrap();

    let wide = TargetTable {
        schema: Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
            Field::new("net", DataType::Decimal128(9, 3), true),
            Field::new("since", DataType::Date32, false),
        ])
        .into(),
        ..people(Deletes::Soft)
    };
    expect![[r#"
        ALTER TABLE "public"."people" ALTER COLUMN "id" TYPE bigint
        ALTER TABLE "public"."people" ALTER COLUMN "name" TYPE text
        ALTER TABLE "public"."people" ALTER COLUMN "net" TYPE numeric(9,3)
        ALTER TABLE "public"."people" ALTER COLUMN "net" DROP NOT NULL
        ALTER TABLE "public"."people" ADD COLUMN "since" date
        ALTER TABLE "public"."people" ADD COLUMN "_deleted_at" timestamp with time zone"#]]
    .assert_eq(&target.plan(&wide).await.unwrap().join("\n"));
    target.prepare(&wide).await.unwrap();
    check(&db, "select * from people", expect!["1 | ann | 123.450 | ∅ | ∅"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_named_with_the_grant() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("rights").await;
    let role = format!("loader_{}", db.name());
    db.run(&format!(
        "create role {role} login password 'loader'; create schema closed; create schema half;
         grant usage on schema half to {role};
         create table half.people (id bigint primary key, name text)"
    ))
    .await;
    let url = db.url().replace(&format!("frazil:{}", fixture::PASSWORD), &format!("{role}:loader"));
    let target = open(&url);
    let mut text = String::new();
    for schema in ["closed", "half", "missing"] {
        let table = TargetTable { id: TableId::new(schema, "people"), ..people(Deletes::Hard) };
        for finding in target.preflight(&table).await.unwrap() {
            text += &format!(
                "{schema} {:?}: {} -> {}\n",
                finding.severity,
                finding.message,
                finding.remedy.unwrap_or_default()
            );
        }
        let error = target.prepare(&table).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission, "{error:?}");
    }
    expect![[r#"
        closed Error: "loader" may not use the schema "closed" -> GRANT USAGE, CREATE ON SCHEMA "closed" TO "loader"
        half Error: "loader" may not create tables in the schema "half" -> GRANT CREATE ON SCHEMA "half" TO "loader"
        half Error: "loader" has no right to SELECT, INSERT, UPDATE, DELETE on half.people -> GRANT SELECT, INSERT, UPDATE, DELETE ON "half"."people" TO "loader"
        missing Error: the schema does not exist, and this user may not create it (table: missing.people) -> run `CREATE SCHEMA "missing"` and grant CREATE on it
    "#]].assert_eq(&text.replace(&role, "loader"));
    db.run(&format!("drop owned by {role}; drop role {role}")).await;
}

/// The server is the judge: each value must read as the text of its literal.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_as_it_was() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("types").await;
    db.run(
        "create type mood as enum ('sad', 'glad'); create domain small as int check (value < 100);
         create type pair as (a int, b text, at timestamptz, d numeric);
         create extension if not exists citext; create extension if not exists hstore",
    )
    .await;

    let strings = |values: &[Option<&str>]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let text = |source: &'static str, values: &[&'static str]| {
        let mut literals: Vec<Option<&'static str>> = values.iter().copied().map(Some).collect();
        literals.push(None);
        (source, strings(&literals), literals)
    };
    let int64 = |values: Vec<Option<i64>>| -> ArrayRef { Arc::new(Int64Array::from(values)) };
    let int32 = |values: Vec<Option<i32>>| -> ArrayRef { Arc::new(Int32Array::from(values)) };
    let decimal = |values: Vec<Option<i128>>, precision, scale| -> ArrayRef {
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
    };
    let micros = |values: Vec<Option<i64>>| TimestampMicrosecondArray::from(values);
    let list_of = |lengths: Vec<usize>, values: ArrayRef| -> ArrayRef {
        let field = Arc::new(Field::new("element", values.data_type().clone(), true));
        Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), values, None))
    };
    let pairs = StructArray::from(vec![
        (Arc::new(Field::new("a", DataType::Int32, true)), int32(vec![Some(1), None])),
        (Arc::new(Field::new("b", DataType::Utf8, true)), strings(&[Some("x\"y,(\\ é"), Some("")])),
        (
            Arc::new(Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true)),
            Arc::new(micros(vec![Some(-62_135_596_800_000_001), Some(1)]).with_timezone("UTC")) as ArrayRef,
        ),
        (
            Arc::new(Field::new("d", DataType::Decimal128(38, 10), true)),
            decimal(vec![Some(10i128.pow(38) - 1), Some(-1)], 38, 10),
        ),
    ]);

    let cases: Vec<(&str, ArrayRef, Vec<Option<&str>>)> = vec![
        (
            "boolean",
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
            vec![Some("t"), Some("f"), None],
        ),
        ("smallint", int32(vec![Some(-32768), Some(32767), None]), vec![Some("-32768"), Some("32767"), None]),
        (
            "integer",
            int32(vec![Some(i32::MIN), Some(i32::MAX), None]),
            vec![Some("-2147483648"), Some("2147483647"), None],
        ),
        (
            "bigint",
            int64(vec![Some(i64::MIN), Some(i64::MAX), None]),
            vec![Some("-9223372036854775808"), Some("9223372036854775807"), None],
        ),
        ("oid", int64(vec![Some(0), Some(4294967295)]), vec![Some("0"), Some("4294967295")]),
        (
            "xid8",
            decimal(vec![Some(18446744073709551615), None], 20, 0),
            vec![Some("18446744073709551615"), None],
        ),
        (
            "real",
            Arc::new(Float32Array::from(vec![f32::MIN_POSITIVE, f32::NAN, f32::NEG_INFINITY, -0.0])),
            vec![Some("1.1754944e-38"), Some("NaN"), Some("-Infinity"), Some("-0")],
        ),
        (
            "double precision",
            Arc::new(Float64Array::from(vec![f64::MAX, f64::NAN, f64::INFINITY, 0.1])),
            vec![Some("1.7976931348623157e308"), Some("NaN"), Some("Infinity"), Some("0.1")],
        ),
        (
            "numeric(12,2)",
            decimal(vec![Some(-999999999999), Some(5), Some(0), None], 12, 2),
            vec![Some("-9999999999.99"), Some("0.05"), Some("0"), None],
        ),
        (
            "numeric(38,38)",
            decimal(vec![Some(1), Some(-(10i128.pow(38) - 1))], 38, 38),
            vec![
                Some("0.00000000000000000000000000000000000001"),
                Some("-0.99999999999999999999999999999999999999"),
            ],
        ),
        (
            "numeric(38,0)",
            decimal(vec![Some(10i128.pow(38) - 1), Some(10i128.pow(37))], 38, 0),
            vec![
                Some("99999999999999999999999999999999999999"),
                Some("10000000000000000000000000000000000000"),
            ],
        ),
        (
            "money",
            decimal(vec![Some(-1), Some(123456789012)], 20, 2),
            vec![Some("-0.01"), Some("1234567890.12")],
        ),
        text(
            "numeric",
            &[
                "NaN",
                "Infinity",
                "-Infinity",
                "1.00",
                "-0.000000000000000000000000000000000000000000000000001",
                "123456789012345678901234567890123456789012345678901234567890.5",
                "10000",
                "0.0",
            ],
        ),
        text("text", &["", "ü\n\t\\ \"'", "\u{10ffff}"]),
        text("character varying(5)", &["abcde", "é"]),
        text("character(4)", &["ab  "]),
        text("name", &["n"]),
        text("citext", &["MiXed"]),
        text("mood", &["glad", "sad"]),
        text("json", &[r#"{"b" : 1.0,  "a":null, "a":2}"#]),
        text("jsonb", &[r#"{"a": [1.50, "x"], "b": null}"#, "null"]),
        text("xml", &["<a>1</a>"]),
        text("inet", &["10.0.0.1/8", "::1"]),
        text("cidr", &["10.0.0.0/8"]),
        text("macaddr", &["08:00:2b:01:02:03"]),
        text("bit(3)", &["101"]),
        text("bit varying", &["1", ""]),
        text("interval", &["P1Y2M3DT4H5M6.000007S", "PT-0.000001S", "P-178000000Y"]),
        text("time with time zone", &["24:00:00+01:59", "00:00:00.000001-15:59:59"]),
        text("tsvector", &["'a':1A 'b':2"]),
        text("int4range", &["[1,5)", "empty", "(,)"]),
        text("tstzmultirange", &["{}"]),
        text("pg_lsn", &["16/B374D848"]),
        text("point", &["(1.5,-2)"]),
        text("hstore", &["\"a\"=>NULL, \"b\"=>\"1\""]),
        ("small", int32(vec![Some(99), None]), vec![Some("99"), None]),
        (
            "bytea",
            Arc::new(BinaryArray::from(vec![Some(&b""[..]), Some(&b"\x00\xff\\"[..]), None])),
            vec![Some(""), Some("\\x00ff5c"), None],
        ),
        (
            "uuid",
            Arc::new(FixedSizeBinaryArray::try_from_iter([[0xabu8; 16]].into_iter()).unwrap()),
            vec![Some("abababab-abab-abab-abab-abababababab")],
        ),
        (
            "date",
            Arc::new(Date32Array::from(vec![
                Some(0),
                Some(-2440588 + 1),
                Some(2_145_031_948 + 10_957),
                None,
            ])),
            vec![Some("1970-01-01"), Some("4714-11-25 BC"), Some("5874897-12-31"), None],
        ),
        (
            "time without time zone",
            Arc::new(Time64MicrosecondArray::from(vec![0, 86_399_999_999, 86_400_000_000])),
            vec![Some("00:00"), Some("23:59:59.999999"), Some("24:00")],
        ),
        (
            "timestamp without time zone",
            Arc::new(micros(vec![Some(0), Some(-1), Some(-210_866_803_200_000_000), None])),
            vec![
                Some("1970-01-01"),
                Some("1969-12-31 23:59:59.999999"),
                Some("4714-11-24 00:00:00 BC"),
                None,
            ],
        ),
        (
            "timestamp(3) with time zone",
            Arc::new(micros(vec![Some(1_700_000_000_123_000)]).with_timezone("UTC")),
            vec![Some("2023-11-14 22:13:20.123+00")],
        ),
        (
            "timestamp with time zone",
            Arc::new(TimestampNanosecondArray::from(vec![Some(1_000)]).with_timezone("UTC")),
            vec![Some("1970-01-01 00:00:00.000001+00")],
        ),
        (
            "integer[]",
            list_of(vec![2, 0, 1], int32(vec![Some(1), None, Some(3)])),
            vec![Some("{1,NULL,3}").map(|_| "{1,NULL}"), Some("{}"), Some("{3}")],
        ),
        (
            "text[]",
            list_of(vec![2, 1], strings(&[Some("a\"b"), Some("NULL"), None])),
            vec![Some(r#"{"a\"b","NULL"}"#), Some("{NULL}")],
        ),
        ("numeric(6,2)[]", list_of(vec![1], decimal(vec![Some(100)], 6, 2)), vec![Some("{1.00}")]),
        ("mood[]", list_of(vec![2], strings(&[Some("sad"), None])), vec![Some("{sad,NULL}")]),
        ("inet[]", list_of(vec![2], strings(&[Some("10.0.0.1"), None])), vec![Some("{10.0.0.1,NULL}")]),
        (
            "integer[]",
            list_of(vec![2, 0], list_of(vec![2, 2], int32(vec![Some(1), Some(2), Some(3), None]))),
            vec![Some("{{1,2},{3,NULL}}"), Some("{}")],
        ),
        (
            "pair",
            Arc::new(pairs.clone()),
            vec![
                Some(
                    r#"(1,"x""y,(\\ é","0001-12-31 23:59:59.999999+00 BC",9999999999999999999999999999.9999999999)"#,
                ),
                Some(r#"(,"","1970-01-01 00:00:00.000001+00",-0.0000000001)"#),
            ],
        ),
        (
            "pair[]",
            list_of(vec![2, 0], Arc::new(pairs)),
            vec![
                Some(
                    r#"{"(1,\"x\"\"y,(\\\\ é\",\"0001-12-31 23:59:59.999999+00 BC\",9999999999999999999999999999.9999999999)","(,\"\",\"1970-01-01 00:00:00.000001+00\",-0.0000000001)"}"#,
                ),
                Some("{}"),
            ],
        ),
        ("gone.type", strings(&[Some("as text")]), vec![Some("as text")]),
    ];

    let target = open(&db.url());
    let judge = db.client().await;
    judge
        .batch_execute("set intervalstyle = iso_8601; set timezone = 'UTC'; set lc_monetary = 'C'")
        .await
        .unwrap();
    let knows_xml = db.allows("select '<a/>'::xml").await;
    for (number, (source_type, values, literals)) in cases.into_iter().enumerate() {
        if source_type == "xml" && !knows_xml {
            continue;
        }
        let rows = values.len();
        let table = TargetTable {
            id: TableId::new("public", format!("t{number}")),
            schema: Schema::new(vec![
                Field::new("id", DataType::Int32, false),
                field("v", values.data_type().clone(), source_type),
            ])
            .into(),
            key: vec!["id".into()],
            deletes: Deletes::Hard,
            versions: false,
        };
        let ids: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows as i32));
        let batch = with_ops(&table, vec![ids, values], vec![0; rows].into());
        target.prepare(&table).await.unwrap_or_else(|error| panic!("{source_type}: {error:?}"));
        // Once straight into the table, once by way of staging.
        for (from, to) in [(None, 1), (Some(1), 2)] {
            if to == 2 {
                judge.batch_execute(&format!("delete from t{number} where id = 0")).await.unwrap();
            }
            let stats = target.apply(merge(&table, from, to, Strategy::Merge, vec![Ok(batch.clone())])).await;
            let stats = stats.unwrap_or_else(|error| panic!("{source_type}: {error:?}"));
            assert_eq!(stats.upserted, if to == 1 { rows as u64 } else { 1 }, "{source_type}");
            let declared = if source_type == "gone.type" { "text" } else { source_type };
            let there: String = judge
                .query_one(
                    "select format_type(atttypid, atttypmod) from pg_attribute
                     where attrelid = $1::text::regclass and attname = 'v'",
                    &[&format!("t{number}")],
                )
                .await
                .unwrap()
                .get(0);
            assert_eq!(there, declared);
            for (id, literal) in literals.iter().enumerate() {
                let literal =
                    literal.map_or("null".to_owned(), |text| format!("'{}'", text.replace('\'', "''")));
                let sql =
                    format!("select v::text, {literal}::{declared}::text from t{number} where id = {id}");
                let row = judge.query_one(&sql, &[]).await.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
                let (got, wanted): (Option<String>, Option<String>) = (row.get(0), row.get(1));
                assert_eq!(got, wanted, "{source_type} row {id}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_do_not_fit_are_refused_without_being_shown() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("misfit").await;
    let target = open(&db.url());
    let mut text = String::new();
    let nul: ArrayRef = Arc::new(StringArray::from(vec!["secret\0"]));
    let cases: Vec<(&str, ArrayRef)> = vec![
        ("smallint", Arc::new(Int32Array::from(vec![77_777]))),
        ("inet", Arc::new(StringArray::from(vec!["secret"]))),
        ("numeric", Arc::new(StringArray::from(vec!["secret"]))),
        ("text", nul),
        ("jsonb", Arc::new(StringArray::from(vec!["{secret"]))),
        ("timestamp without time zone", Arc::new(TimestampNanosecondArray::from(vec![77_777]))),
        ("timestamp without time zone", Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN]))),
    ];
    for (number, (source_type, values)) in cases.into_iter().enumerate() {
        let table = TargetTable {
            id: TableId::new("public", format!("t{number}")),
            schema: Schema::new(vec![field("v", values.data_type().clone(), source_type)]).into(),
            key: vec![],
            deletes: Deletes::Hard,
            versions: false,
        };
        target.prepare(&table).await.unwrap();
        let batch = with_ops(&table, vec![values], vec![0].into());
        let error =
            target.apply(merge(&table, None, 1, Strategy::Append, vec![Ok(batch)])).await.unwrap_err();
        text += &format!("{source_type}: {error:?}\n");
    }
    assert!(!text.contains("secret") && !text.contains("77777"), "{text}");
    expect![[r#"
        smallint: data: a value is out of the range of the target's column (column: v, table: public.t0, connection: dwh)
        inet: data: the server could not convert a value (sqlstate: 22P02, column: v, table: public.t1, connection: dwh)
        numeric: data: a text is not a number that a numeric column can hold (column: v, table: public.t2, connection: dwh)
        text: data: the server could not convert a value (sqlstate: 22021, column: v, table: public.t3, connection: dwh)
        jsonb: data: the server could not convert a value (sqlstate: 22P02, column: v, table: public.t4, connection: dwh)
        timestamp without time zone: data: a time has a fraction finer than the microseconds of postgres (column: v, table: public.t5, connection: dwh)
        timestamp without time zone: data: a value is out of the range of the target's column (column: v, table: public.t6, connection: dwh)
    "#]].assert_eq(&text);
}

/// Added anew, the column would be NULL in every row that has not changed since.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_renamed_in_the_lake_is_renamed() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("rename").await;
    let target = open(&db.url());
    let with_ids = |names: [&str; 2]| {
        let field = |number: usize, arrow, nullable| {
            let id = [(LAKE_COLUMN_ID.to_owned(), format!("lake.{}", number + 1))];
            Field::new(names[number], arrow, nullable).with_metadata(id.into())
        };
        TargetTable {
            schema: Schema::new(vec![field(0, DataType::Int64, false), field(1, DataType::Utf8, true)])
                .into(),
            key: vec![names[0].into()],
            ..people(Deletes::Hard)
        }
    };
    let batch = |table: &TargetTable, text: &str| {
        let batch = rows(text);
        with_ops(table, batch.columns()[..2].to_vec(), batch.column(2).as_primitive::<Int8Type>().clone())
    };
    let old = with_ids(["id", "name"]);
    target.prepare(&old).await.unwrap();
    let first = batch(&old, "u 1 ann\nu 2 bob");
    target.apply(merge(&old, None, 1, Strategy::Merge, vec![Ok(first)])).await.unwrap();

    let new = with_ids(["person", "full name"]);
    expect![[r#"
        ALTER TABLE "public"."people" RENAME COLUMN "id" TO "person"
        ALTER TABLE "public"."people" RENAME COLUMN "name" TO "full name"
        UPDATE "public"."frazil_applied" SET columns = '{"lake.1":"person","lake.2":"full name"}' WHERE stream = 'shop.people' AND target_table = 'people'"#]]
    .assert_eq(&target.plan(&new).await.unwrap().join("\n"));
    target.prepare(&new).await.unwrap();
    let second = batch(&new, "u 2 bobby");
    target.apply(merge(&new, Some(1), 2, Strategy::Merge, vec![Ok(second)])).await.unwrap();
    check(
        &db,
        "select person, \"full name\" from people order by 1",
        expect![[r#"
            1 | ann
            2 | bobby"#]],
    )
    .await;
    assert_eq!(target.plan(&new).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_null_is_refused() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("nullkey").await;
    db.run("create table people (id bigint unique, name text); insert into people values (1, 'ann')").await;
    let target = open(&db.url());
    let table = TargetTable {
        schema: Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
        ])
        .into(),
        ..people(Deletes::Hard)
    };
    target.prepare(&table).await.unwrap();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(vec![None])), Arc::new(StringArray::from(vec!["x"]))];
    let batch = with_ops(&table, columns, vec![0].into());
    let error = target.apply(merge(&table, None, 1, Strategy::Merge, vec![Ok(batch)])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error:?}");
    check(&db, PEOPLE, expect!["1 | ann"]).await;
}

/// The answer to COMMIT gets lost. What counts is what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_is_looked_up() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("commit").await;
    let proxy = fixture::Proxy::tcp(pg.port());
    let target = open(&db.url_through(proxy.port()));
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    // Commits take a while from now on.
    db.run(
        "create function linger() returns trigger language plpgsql as
             'begin perform pg_sleep(1); return null; end';
         create constraint trigger linger after insert on people deferrable initially deferred
             for each row execute function linger()",
    )
    .await;
    let loading = tokio::spawn({
        let (target, table) = (target.clone(), table.clone());
        async move { load(&*target, &table, 2, Strategy::Merge, "u 2 bob").await }
    });
    let commits = "select count(*) from pg_stat_activity
                   where datname = current_database() and state = 'active' and query = 'COMMIT'";
    while db.text(commits).await == "0" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    proxy.cut_after(0);
    while db.text(commits).await != "0" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    proxy.heal();
    let stats = loading.await.unwrap().unwrap();
    assert_eq!(shown(stats), (1, 1, 0));
    check(
        &db,
        PEOPLE,
        expect![[r#"
            1 | ann
            2 | bob"#]],
    )
    .await;
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), Some(shows(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_table_is_named() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("held").await;
    let target = open(&db.url());
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    let holder = db.client().await;
    holder
        .batch_execute("set application_name = 'somebody'; begin; update frazil_applied set rows = rows")
        .await
        .unwrap();
    let error = load(&*target, &table, 2, Strategy::Merge, "u 2 bob").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(format!("{error}").contains("(somebody), open since"), "{error}");
}

/// Versions begin and end with the commits of the snapshots.
fn versions(second: i64) -> Strategy {
    let at = chrono::DateTime::from_timestamp(1_763_722_800 + second, 0).unwrap();
    Strategy::Versions { at, whole: false }
}

const VERSIONS: &str = "select id, name, to_char(_valid_from at time zone 'utc', 'SS'), \
     to_char(_valid_to at time zone 'utc', 'SS'), _is_current from people order by id, _valid_from";

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_a_row_stays() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("versions").await;
    let target = open(&db.url());
    let table = TargetTable { versions: true, ..people(Deletes::Hard) };
    let load = |to, second, text| load(&*target, &table, to, versions(second), text);

    assert_eq!(shown(load(1, 10, "u 1 ann\nu 2 bob").await.unwrap()), (2, 2, 0));
    // A change, a delete, a new row; one that is the same, and one that was never there.
    let stats = load(2, 20, "u 1 anna\nd 2\nu 3\nd 9").await.unwrap();
    assert_eq!(shown(stats), (4, 2, 1));
    assert_eq!(shown(load(3, 30, "u 1 anna\nu 2 bea").await.unwrap()), (2, 1, 0));
    let expected = [
        "1 | ann | 10 | 20 | f",
        "1 | anna | 20 | ∅ | t",
        "2 | bob | 10 | 20 | f",
        "2 | bea | 30 | ∅ | t",
        "3 | ∅ | 20 | ∅ | t",
    ]
    .join("\n");
    assert_eq!(db.text(VERSIONS).await, expected);
    // The same load again finds that it was done, and changes nothing.
    assert_eq!(load(3, 30, "u 1 anna\nu 2 bea").await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(db.text(VERSIONS).await, expected);
    assert_eq!(target.plan(&table).await.unwrap(), Vec::<String>::new());

    // The lake went back to its second state: what is younger was never valid.
    load(4, 20, "d 2\nu 1 ann").await.unwrap();
    check(
        &db,
        VERSIONS,
        expect![[r#"
            1 | ann | 10 | 20 | f
            1 | ann | 20 | ∅ | t
            2 | bob | 10 | 20 | f
            3 | ∅ | 20 | ∅ | t"#]],
    )
    .await;
    // All that there is, of another table in the lake.
    let whole = match versions(40) {
        Strategy::Versions { at, .. } => Strategy::Versions { at, whole: true },
        other => other,
    };
    target.apply(merge(&table, Some(4), 5, whole, vec![Ok(rows("u 3\nu 5 eve"))])).await.unwrap();
    check(&db, "select id, name from people where _is_current order by id", expect!["3 | ∅\n5 | eve"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_versions_does_not_become_one_with_them() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("versions_refused").await;
    let target = open(&db.url());
    load(&*target, &people(Deletes::Hard), 1, Strategy::Merge, "u 1 ann").await.unwrap();
    let table = TargetTable { versions: true, ..people(Deletes::Hard) };
    let error = target.prepare(&table).await.unwrap_err();
    assert_eq!(error.message(), "the target table is there and keeps no versions");
    let kept = TargetTable { id: TableId::new("public", "kept"), ..table };
    load(&*target, &kept, 1, versions(10), "u 1 ann").await.unwrap();
    let error = target.prepare(&TargetTable { versions: false, ..kept }).await.unwrap_err();
    assert!(error.message().contains("keeps versions"), "{error}");
}
