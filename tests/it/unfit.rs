//! Rows with a value that its column cannot hold go aside where they may, and the others go on.

use rusqlite::Connection as Sqlite;
use serde_json::Value;

use crate::fixture::{self, Pipeline, Ran};
use crate::mssql_shop::{Fake, Shop};
use crate::sync::two_databases;
use crate::tds::{Type, Value as Cell};

const STREAM: &str = "values: { on_unfit: dead_letter }";

fn lines(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The keys of the letters and what is said of them, in order.
fn letters(pipeline: &Pipeline, stream: &str) -> Vec<String> {
    let shown = lines(&pipeline.ok(&["dlq", "show", stream, "--output", "json"]));
    let text = |letter: &Value, name: &str| letter[name].as_str().unwrap_or_default().to_owned();
    let mut letters: Vec<_> =
        shown.iter().map(|letter| format!("{} {}", text(letter, "key"), text(letter, "reason"))).collect();
    letters.sort();
    letters
}

struct Files {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

impl Files {
    fn new(table: &str, stream: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", dir.path().join(name).display());
        Sqlite::open(dir.path().join("shop.db")).unwrap().execute_batch(table).unwrap();
        let stream = format!("main.t: {{ {stream} }}");
        let pipeline = Pipeline::new(&url("shop.db"), &url("dwh.db"), &[&stream]);
        Self { dir, pipeline }
    }

    fn sql(&self, sql: &str) {
        Sqlite::open(self.dir.path().join("shop.db")).unwrap().execute_batch(sql).unwrap();
    }

    fn ids(&self) -> Vec<i64> {
        let db = Sqlite::open(self.dir.path().join("dwh.db")).unwrap();
        let mut query = db.prepare("select id from t order by id").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

const TABLE: &str = "create table t (id integer primary key, n int not null, day date, changed timestamp);
    insert into t values (1, 1, '2024-01-31', '2024-01-31 10:00:00'),
        (2, 'two', '2024-01-31', '2024-01-31 10:00:00'),
        (3, 3, 'soon', '2024-01-31 10:00:00'), (4, x'00', 'never', '2024-01-31 10:00:00')";

#[test]
fn rows_that_do_not_fit_stop_a_pass_unless_they_may_go_aside() {
    let files = Files::new(TABLE, "change: full");
    let ran = files.pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(!ran.stderr.contains("'two'"), "{ran:?}");

    let files = Files::new(TABLE, &format!("cursor: changed, {STREAM}"));
    let report = lines(&files.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(
        (&report["extract"]["rejected"], &report["extract"]["read"]),
        (&3.into(), &4.into()),
        "{report}"
    );
    assert_eq!(files.ids(), [1]);
    let said = letters(&files.pipeline, "main.t");
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(
        said[0].starts_with(r#"{"id":2} a text does not fit the column's type (declared INT)"#),
        "{said:?}"
    );
    // Two values of one row.
    assert!(
        said[2].contains("a blob does not fit") && said[2].contains("; a text is not exactly"),
        "{said:?}"
    );
    assert!(!said.concat().contains("soon"), "{said:?}");

    // One is mended, one becomes bad, one stays as it is.
    files.sql(
        "update t set n = 2, changed = datetime('now') where id = 2;
         update t set day = 'later', changed = datetime('now') where id = 1",
    );
    // The second in which they changed has to be over.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    files.pipeline.ok(&["run"]);
    assert_eq!(files.ids(), [1, 2], "what the lake has of a row stays until it fits again");
    let said = letters(&files.pipeline, "main.t");
    let keys: Vec<_> = said.iter().map(|text| text.split(' ').next().unwrap()).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":3}"#, r#"{"id":4}"#]);
}

#[test]
fn of_a_table_that_is_read_whole_the_letter_is_what_is_left() {
    let files = Files::new(TABLE, &format!("change: full, {STREAM}"));
    files.pipeline.ok(&["run"]);
    assert_eq!(files.ids(), [1]);
    files.sql("update t set n = 2 where id = 2; update t set day = 'later' where id = 1");
    files.pipeline.ok(&["run"]);
    assert_eq!((files.ids(), letters(&files.pipeline, "main.t").len()), (vec![2], 3));
    let report = lines(&files.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(report["verdict"], "nothing_to_do", "{report}");
}

#[test]
fn too_many_rows_that_do_not_fit_stop_a_pass_and_a_key_always_does() {
    let files = Files::new(TABLE, &format!("change: full, max_rejected: 2, {STREAM}"));
    let ran = files.pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("3 rows are rejected") || ran.stderr.contains("3 of"), "{ran:?}");

    let table = "create table t (id text primary key, n int); insert into t values ('a', 1), (x'00', 2)";
    let files = Files::new(table, &format!("change: full, {STREAM}"));
    let ran = files.pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("column: id"), "{ran:?}");
}

#[test]
fn a_crash_loses_and_doubles_nothing_that_does_not_fit() {
    for point in ["before_commit", "after_commit", "before_acknowledge"] {
        let files = Files::new(TABLE, &format!("cursor: changed, {STREAM}"));
        let ran = files.pipeline.run_with_faults(&["run"], &format!("{point}=return(kill)"));
        assert_ne!(ran.code, Some(0), "{point}: {ran:?}");
        files.pipeline.ok(&["run"]);
        assert_eq!((files.ids(), letters(&files.pipeline, "main.t").len()), (vec![1], 3), "{point}");
    }
}

#[tokio::test]
async fn postgres_values_without_a_place_go_aside() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "unfit").await;
    source
        .run(
            "create table t (id int primary key, at timestamptz not null, n numeric(10,2), days int[]);
             insert into t select i, '2024-01-31'::timestamptz + i * interval '1 s', i, array[i, i] from generate_series(1, 20000) i;
             insert into t values (30001, 'infinity', 1, null), (30002, now(), 'NaN', null), (30003, now(), 1, array[[1],[2]])",
        )
        .await;
    let stream = format!("public.t: {{ change: full, {STREAM} }}");
    let pipeline = Pipeline::new(&source.url(), &target.url(), &[&stream]);
    pipeline.ok(&["run"]);
    let said = letters(&pipeline, "public.t");
    let keys: Vec<_> = said.iter().map(|text| text.split(' ').next().unwrap()).collect();
    assert_eq!(keys, [r#"{"id":30001}"#, r#"{"id":30002}"#, r#"{"id":30003}"#], "{said:?}");
    assert!(said[0].contains("infinity has no place") && said[1].contains("NaN"), "{said:?}");
    assert!(said[2].contains("other dimensions"), "{said:?}");
    crate::sync::assert_same(&source, &target, "select id, at, n, days from t where id <= 20000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_values_without_a_place_go_aside() {
    let Some(server) = fixture::mariadb().await else { return };
    let db = server.database("unfit").await;
    db.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, d date NOT NULL, ti time);
         INSERT INTO t VALUES (1, '2024-02-29', '10:00:00'), (2, '0000-00-00', '838:59:59'), (3, '2024-03-01', NULL)",
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
    let name = format!("{}.t", db.name());
    let pipeline = Pipeline::new(&db.url(), &target, &[&format!("{name}: {{ change: full, {STREAM} }}")]);
    let report = lines(&pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(
        (&report["extract"]["read"], &report["extract"]["rejected"]),
        (&3.into(), &1.into()),
        "{report}"
    );
    let said = letters(&pipeline, &name);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with(r#"{"id":2} "#) && said[0].contains("; a time"), "{said:?}");
}

/// The server is one of `mssql_shop.rs`, which is pretended.
#[test]
fn sql_server_values_without_a_place_go_aside() {
    let mut shop = Shop::of(&[("id", "int", 4, 0, Type::Int), ("at", "datetime2", 8, 7, Type::DateTime2(7))]);
    let at = |id, ticks| vec![Cell::Int(id), Cell::DateTime2(719_162, ticks)];
    shop.rows = vec![at(1, 10), at(2, 19), at(3, 30)];
    let fake = Fake::new(shop);
    let folder = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
    let stream = format!("dbo.t: {{ change: full, primary_key: [id], {STREAM} }}");
    let pipeline = Pipeline::new(&fake.server.url(), &target, &[&stream]);
    pipeline.ok(&["run"]);
    let said = letters(&pipeline, "dbo.t");
    assert_eq!(said, [r#"{"id":2} a time is finer than a microsecond (column: at)"#]);
}
