//! Schemas that change, by the program itself: `ALTER TABLE` between passes, contracts, partitions and
//! order of a table that is there.

use std::path::Path;

use rusqlite::Connection as Sqlite;

use crate::fixture::{self, Pipeline};
use crate::sync::{assert_same, two_databases};

/// A table with one column of each fate.
const THINGS: &str = "
    create table things (
        id int primary key, name text not null, n int, price numeric(10,2), f real, tags int[], old text,
        updated_at timestamptz not null default now());
    create index on things (updated_at);
    insert into things (id, name, n, price, f, tags, old)
    select i, 'thing ' || i, i, i / 8.0, i / 4.0, array[i, null], 'old ' || i from generate_series(1, 200) i";

const STREAM: &str = "public.things: { cursor: updated_at }";

/// What the source does between two passes; each time some rows change too.
const CHANGES: [&str; 7] = [
    "alter table things rename column name to title",
    "alter table things add column color text; update things set color = 'red', updated_at = clock_timestamp() where id % 3 = 0",
    "alter table things alter column n type bigint, alter column price type numeric(14,2),
         alter column f type double precision, alter column tags type bigint[];
     update things set n = n + 5000000000, f = 0.1, tags = array[7000000000], updated_at = clock_timestamp() where id % 5 = 0",
    "alter table things alter column title drop not null; update things set title = null, updated_at = clock_timestamp() where id % 7 = 0",
    "alter table things rename column n to swap; alter table things rename column color to n;
     alter table things rename column swap to color",
    "alter table things drop column old",
    "alter table things drop column n; alter table things add column n int;
     update things set n = 5, updated_at = clock_timestamp() where id % 4 = 0",
];

const CHANGED: &str = "update things set updated_at = clock_timestamp() where id % 10 = 1";

/// The columns that the source has, in the target's words too.
async fn query(source: &fixture::Database) -> String {
    let columns = source
        .text(
            "select string_agg(quote_ident(column_name), ', ' order by ordinal_position)
               from information_schema.columns where table_schema = 'public' and table_name = 'things'",
        )
        .await;
    format!("select {columns} from things")
}

#[tokio::test]
async fn a_postgres_target_follows_every_change() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "evolve").await;
    source.run(THINGS).await;
    // So that foreign readers find the source's columns, and those only.
    let stream = "public.things: { cursor: updated_at, dropped_columns: drop }";
    let pipeline = Pipeline::new(&source.url(), &target.url(), &[stream]);
    pipeline.ok(&["run"]);
    for change in CHANGES {
        source.run(change).await;
        // Seen before a row has changed: a rename in the lake and, without a snapshot, in the target.
        let planned = pipeline.ok(&["plan"]).stdout;
        let ran = pipeline.ok(&["run"]);
        for step in planned.lines().filter(|line| line.contains("column `")) {
            let step = step.trim().trim_start_matches("lake").trim();
            assert!(
                ran.stderr.contains(step) || ran.stdout.contains(step),
                "planned and not done: {step}\n{ran:?}"
            );
        }
        assert!(planned.contains("column `"), "{change}\n{planned}");
        source.run(CHANGED).await;
        pipeline.ok(&["run"]);
        let query = query(&source).await;
        assert_same(&source, &target, &query).await;
        fixture::judge(&pipeline.location("public", "things"), &source.url(), &query);
    }
    // Nothing is dropped in a target.
    assert_eq!(target.text("select count(*) from things where old is not null").await, "200");
}

#[tokio::test]
async fn a_target_that_lags_behind_takes_all_changes_at_once() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "lag").await;
    source.run(THINGS).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &[STREAM]);
    pipeline.ok(&["run"]);
    for change in CHANGES {
        source.run(change).await;
        source.run(CHANGED).await;
        pipeline.ok(&["sync"]);
    }
    // A load that broke off after the target was prepared does not rename once more.
    let ran = pipeline.run_with_faults(&["load"], "in_load_transaction=return(kill)");
    assert_eq!(ran.code, None, "{ran:?}");
    pipeline.ok(&["load"]);
    assert_same(&source, &target, &query(&source).await).await;
}

#[tokio::test]
async fn a_sqlite_target_follows_every_change() {
    let Some(pg) = fixture::postgres().await else { return };
    let source = pg.database("evolve_sqlite").await;
    source.run(THINGS).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dwh.db");
    let pipeline = Pipeline::new(&source.url(), &format!("sqlite://{}", file.display()), &[STREAM]);
    pipeline.ok(&["run"]);
    for change in CHANGES {
        source.run(change).await;
        source.run(CHANGED).await;
        pipeline.ok(&["run"]);
        // Doubles and whole numbers print alike in both; arrays and times do not.
        let columns = query(&source).await.replace("select ", "").replace(" from things", "");
        let plain: Vec<_> =
            columns.split(", ").filter(|name| !["tags", "updated_at", "price"].contains(name)).collect();
        let as_text = |kind: &str| {
            plain.iter().map(|name| format!("cast({name} as {kind})")).collect::<Vec<_>>().join(", ")
        };
        let expected = source.rows(&format!("select {} from things", as_text("text"))).await.len();
        let sum = |name: &str| format!("coalesce(sum(length(cast({name} as text))), 0), count({name})");
        let texts: Vec<_> = plain.iter().filter(|name| **name != "f").map(|name| sum(name)).collect();
        let theirs = source.text(&format!("select concat_ws('|', {}) from things", texts.join(", "))).await;
        let ours = sqlite_text(
            &file,
            &format!(
                "select {} from things",
                texts.join(" || '|' || ").replace(", count", " || '|' || count")
            ),
        );
        assert_eq!(ours, theirs, "{change}");
        assert_eq!(sqlite_text(&file, "select count(*) from things"), expected.to_string());
        assert_eq!(
            sqlite_text(&file, "select cast(round(sum(cast(price as real)) * 100) as integer) from things"),
            source.text("select (sum(price) * 100)::bigint from things").await
        );
    }
}

fn sqlite_text(file: &Path, sql: &str) -> String {
    let value: rusqlite::types::Value = Sqlite::open(file)
        .unwrap()
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|e| panic!("{e}: {sql}"));
    match value {
        rusqlite::types::Value::Integer(value) => value.to_string(),
        rusqlite::types::Value::Real(value) => value.to_string(),
        rusqlite::types::Value::Text(value) => value,
        other => format!("{other:?}"),
    }
}

/// A shop in SQLite with a lake on disk; no target.
struct Shop {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

impl Shop {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shop = dir.path().join("shop.db");
        let db = Sqlite::open(&shop).unwrap();
        db.execute_batch(
            "create table t (id integer primary key, a int, b text, day date);
             insert into t values (1, 10, 'x', '2024-01-01'), (2, 20, 'y', '2024-01-02')",
        )
        .unwrap();
        let target = dir.path().join("dwh.db");
        let url = |path: &Path| format!("sqlite://{}", path.display());
        let pipeline = Pipeline::new(&url(&shop), &url(&target), &["main.t: { change: full }"]);
        pipeline.ok(&["run"]);
        Self { dir, pipeline }
    }

    fn run(&self, sql: &str) {
        Sqlite::open(self.dir.path().join("shop.db")).unwrap().execute_batch(sql).unwrap();
    }

    fn settings(&self, settings: &str) {
        let url = |name: &str| format!("sqlite://{}", self.dir.path().join(name).display());
        let stream = format!("main.t: {{ change: full, {settings} }}");
        self.pipeline.rewrite(&url("shop.db"), &url("dwh.db"), &Default::default(), &[&stream]);
    }

    fn judged(&self, query: &str) {
        let url = format!("sqlite://{}", self.dir.path().join("shop.db").display());
        fixture::judge(&self.pipeline.location("main", "t"), &url, query);
    }

    fn in_target(&self, sql: &str) -> String {
        sqlite_text(&self.dir.path().join("dwh.db"), sql)
    }
}

#[test]
fn a_frozen_stream_stops_before_it_writes() {
    let shop = Shop::new();
    shop.settings("schema: freeze");
    shop.pipeline.ok(&["run"]);
    let before = shop.pipeline.parquet_files();
    shop.run("alter table t add column c text; insert into t values (3, 30, 'z', null, 'new')");
    for verb in ["run", "plan", "check"] {
        let ran = shop.pipeline.run(&[verb]);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert_ne!(ran.code, Some(0), "{verb}: {said}");
        assert!(said.contains("column `c` is new") && said.contains("schema: evolve"), "{verb}: {said}");
    }
    assert_eq!(shop.pipeline.parquet_files(), before);
    shop.settings("schema: evolve");
    shop.pipeline.ok(&["run"]);
    shop.judged("select * from t");
}

#[test]
fn what_a_contract_leaves_out_is_counted() {
    for (contract, rows, values) in [("discard_value", "5", 2), ("discard_row", "3", 2)] {
        let shop = Shop::new();
        shop.settings(&format!("schema: {contract}"));
        shop.run("alter table t add column c text;
                  insert into t values (3, 30, 'z', null, 'new'), (4, 40, 'z', null, 'new'), (5, 50, 'z', null, null)");
        let planned = shop.pipeline.ok(&["plan"]).stdout;
        assert!(planned.contains("column `c` is new") && planned.contains(contract), "{planned}");
        let ran = shop.pipeline.ok(&["run", "--output", "json"]);
        let report: serde_json::Value = serde_json::from_str(ran.stdout.trim()).unwrap();
        assert_eq!(report["extract"]["left_out"]["values"]["c"], values, "{ran:?}");
        assert_eq!(shop.in_target("select count(*) from t"), rows);
        assert_eq!(shop.in_target("select count(*) from pragma_table_info('t')"), "4");
        let kept = if contract == "discard_row" { "where c is null" } else { "" };
        shop.judged(&format!("select id, a, b, day from t {kept}"));
    }
}

#[test]
fn a_lossy_change_stops_and_says_what_would_let_it_pass() {
    let shop = Shop::new();
    shop.run(
        "alter table t rename column a to z; alter table t add column a text;
              update t set a = 'word'; alter table t drop column z",
    );
    let ran = shop.pipeline.run(&["run"]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("discard_value") || ran.stdout.contains("discard_value"), "{ran:?}");
    shop.settings("schema: discard_value");
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.in_target("select count(*) from t where a is null"), "2");
}

#[test]
fn partitions_and_order_change_for_new_files() {
    let shop = Shop::new();
    let upsert = "insert or replace into t select id % 40 + 1, id, 'r' || id, date('2024-01-01', (id % 5) || ' days')
                  from (with recursive n(id) as (select 1 union all select id + 1 from n where id < 300) select * from n)";
    let states = [
        "partition_by: [day(day)], sort_by: [a desc]",
        "partition_by: [\"bucket(4, id)\"], sort_by: [b, id desc nulls last]",
        "partition_by: [\"bucket(8, id)\", b]",
        "partition_by: [], sort_by: []",
        "partition_by: [\"bucket(4, id)\"]",
    ];
    for state in states {
        shop.settings(state);
        let planned = shop.pipeline.ok(&["plan"]).stdout;
        assert!(planned.contains("older files stay as they are"), "{planned}");
        shop.run(upsert);
        shop.pipeline.ok(&["run"]);
        shop.judged("select * from t");
        let planned = shop.pipeline.ok(&["plan"]).stdout;
        assert!(planned.contains("no change of the table"), "{planned}");
        assert_eq!(shop.in_target("select count(*) from t"), "40");
    }
    let ran = shop.pipeline.run(&["plan", "--partition-by", "day(nothing)"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
}

/// The schema is a commit of its own: a crash behind it leaves the rows that were there.
#[test]
fn a_crash_between_schema_and_rows_is_harmless() {
    for action in ["kill", "error"] {
        let shop = Shop::new();
        shop.run("alter table t add column c text; update t set c = 'v'; insert into t values (3, 3, 'z', null, 'v')");
        let ran = shop.pipeline.run_with_faults(&["run"], &format!("after_evolution=return({action})"));
        assert_ne!(ran.code, Some(0), "{ran:?}");
        shop.judged("select id, a, b, day, cast(null as varchar) as c from t where id < 3");
        shop.pipeline.ok(&["run"]);
        shop.judged("select * from t");
        assert_eq!(shop.in_target("select count(*) from t where c = 'v'"), "3");
    }
}
