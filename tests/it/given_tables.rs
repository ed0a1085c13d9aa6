//! Tables that were there before us keep the shape that they were given, however often they are loaded.

use expect_test::expect;
use mysql_async::prelude::Queryable;

use crate::fixture::{self, Pipeline};

/// A source in SQLite, whose columns may all be NULL.
fn source() -> (tempfile::TempDir, rusqlite::Connection, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("source.db");
    let source = rusqlite::Connection::open(&file).unwrap();
    source
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, note TEXT); INSERT INTO t VALUES (1, 'one')")
        .unwrap();
    let url = format!("sqlite://{}", file.display());
    (folder, source, url)
}

/// Loads twice, then a row that the table does not take.
fn load(pipeline: &Pipeline, source: &rusqlite::Connection) -> String {
    pipeline.ok(&["run"]);
    source.execute_batch("INSERT INTO t VALUES (2, 'two')").unwrap();
    pipeline.ok(&["run"]);
    source.execute_batch("INSERT INTO t VALUES (3, NULL)").unwrap();
    let refused = pipeline.run(&["run"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    refused.stderr
}

#[tokio::test]
async fn a_table_of_the_user_in_postgres_keeps_its_constraints() {
    let Some(pg) = fixture::postgres().await else { return };
    let db = pg.database("given").await;
    let target = db.client().await;
    target
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, note text NOT NULL CHECK (note <> ''))")
        .await
        .unwrap();
    let (_folder, source, url) = source();
    let pipeline = Pipeline::new(&url, &db.url(), &["t: { change: full, target: dwh.public }"]);
    let said = load(&pipeline, &source);
    assert!(said.contains("note"), "{said}");
    let sql = "SELECT (SELECT attnotnull FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'note'), \
               (SELECT count(*) FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'c'), \
               (SELECT count(*) FROM t)";
    let row = target.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (true, 1, 2));

    // One that we made follows the source.
    target.batch_execute("DROP TABLE t").await.unwrap();
    pipeline.ok(&["load", "--full-refresh"]);
    let columns = "SELECT attnotnull FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'note'";
    assert!(!target.query_one(columns, &[]).await.unwrap().get::<_, bool>(0));
    target.batch_execute("ALTER TABLE t ALTER note TYPE varchar(3), ALTER id TYPE integer").await.unwrap();
    source.execute_batch("INSERT INTO t VALUES (4, 'a longer one')").unwrap();
    pipeline.ok(&["run"]);
    let sql = "SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute \
               WHERE attrelid = 't'::regclass AND attnum > 0";
    expect!["bigint, text"].assert_eq(target.query_one(sql, &[]).await.unwrap().get(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_user_in_mariadb_keeps_its_constraints() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("given").await;
    db.run("CREATE TABLE t (id BIGINT PRIMARY KEY, note VARCHAR(20) NOT NULL CHECK (note <> ''))").await;
    let shape = async || -> String {
        let row: Option<(String, String)> =
            db.client().await.query_first("SHOW CREATE TABLE t").await.unwrap();
        row.unwrap().1
    };
    let before = shape().await;
    let (_folder, source, url) = source();
    let stream = format!("t: {{ change: full, target: dwh.{} }}", db.name());
    let pipeline = Pipeline::new(&url, &db.url(), &[&stream]);
    let said = load(&pipeline, &source);
    assert!(said.contains("note"), "{said}");
    assert_eq!(shape().await, before);
}
